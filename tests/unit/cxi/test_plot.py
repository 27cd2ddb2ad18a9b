"""Figures of files."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest

from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.cxi.plot import draw_view, picture_of, plot_files, view_files
from nightbeam.cxi.writing import CxiWriter
from nightbeam.geometry.files import parse_geometry


@pytest.fixture
def files(plan, geometry, make_batch):
    writer = CxiWriter(plan, geometry=geometry)
    writer.submit(make_batch(0, events=4, hits=[0], places=[(0, 2.0, 3.0)]))
    writer.submit(make_batch(1, events=4, places=[(0, 2.0, 3.0), (3, 1.0, 20.0)]))
    writer.flush_final()
    return sorted(writer.plan.output_dir.glob("*.cxi"))


def test_the_frame_with_the_most_peaks_is_shown_where_the_slab_has_them(files):
    view = view_files(files)
    assert view.n_peaks.tolist() == [1, 2, 2, 2, 2]
    assert view.frame.shape == (40, 48)
    assert [*zip(view.peak_row.tolist(), view.peak_column.tolist(), strict=True)] == [(2, 3), (21, 44)]


def test_with_a_geometry_the_detector_stands_as_it_does_in_the_laboratory(files, geometry):
    # Panels are set apart by 6 px along x and y, and every pixel has a place of its own.
    view = view_files(files, geometry=geometry)
    assert view.frame.shape == (46, 54)
    assert np.isfinite(view.frame).sum() == 40 * 48
    assert (view.peak_row[1], view.peak_column[1]) == (21 + 6, 44 + 6)


def test_the_rate_of_hits_counts_a_batch_once_though_two_files_share_it(files):
    view = view_files(files)
    assert len(files) == 2
    assert view.rate.tolist() == [0.25, 1.0]
    assert view.rate_event.tolist() == [2.0, 6.0]


def test_the_rate_of_hits_is_drawn_against_time_where_all_times_are_known(plan, make_batch):
    writer = CxiWriter(plan, geometry=None)
    for number, seconds in enumerate((1_300_000_000, 1_300_000_060)):
        writer.submit(make_batch(number, events=3, timestamps=np.full(3, seconds << 32, np.uint64)))
    writer.flush_final()
    view = view_files(sorted(plan.output_dir.glob("*.cxi")))
    assert view.rate_when_s.tolist() == [1_300_000_000.0, 1_300_000_060.0]
    rate = draw_view(view).axes[3]
    assert (rate.get_xlabel(), rate.lines[0].get_xdata().tolist()) == ("time [s]", [0.0, 60.0])
    unknown = replace(view, rate_when_s=np.zeros(2))
    assert draw_view(unknown).axes[3].get_xlabel() == "event received"


def test_large_slabs_are_made_smaller_and_the_brightest_pixel_stays():
    slab = np.zeros((5632, 384), np.float32)
    slab[5000, 17] = 9.0
    picture = picture_of((5632, 384)).of(slab)
    assert max(picture.shape) <= 1400
    assert picture.max() == 9.0


def test_a_figure_is_written_and_is_the_same_each_time(files, geometry, tmp_path):
    first = plot_files(files, tmp_path / "a.png", geometry=geometry)
    again = plot_files(files, tmp_path / "b.png", geometry=geometry)
    assert first.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert first.read_bytes() == again.read_bytes()


def test_lists_of_peaks_alone_can_be_drawn(plan, make_batch):
    writer = CxiWriter(replace(plan, images=False), geometry=None)
    writer.submit(make_batch(images=False, timestamps=np.zeros(3, np.uint64)))
    writer.flush_final()
    assert draw_view(view_files(sorted(writer.plan.output_dir.glob("*.cxi")))) is not None


def test_what_cannot_be_drawn_is_an_error(files, geom_text, tmp_path):
    with pytest.raises(MissingError, match="no event 7"):
        view_files(files, event=(files[0], 7))
    with pytest.raises(MissingError):
        view_files([tmp_path / "gone.cxi"])
    with pytest.raises(MissingError):
        view_files([])
    with pytest.raises(UsageError):
        plot_files(files, tmp_path)
    larger = parse_geometry(geom_text().replace("p3a1/max_ss = 39", "p3a1/max_ss = 49"))
    with pytest.raises(InputError, match="slab"):
        view_files(files, geometry=larger)


def replaced(path, name, data):
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = data


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("/entry_1/data_1/data", np.zeros((4, 0, 0), np.float32)),
        ("/entry_1/data_1/data", np.full((4, 40, 48), b"a")),
        ("/entry_1/data_1/powderHits", np.full((40, 48), b"a")),
        ("/entry_1/result_1/peakXPosRaw", np.full((4, 2), b"a")),
        ("/LCLS/detector_1/timestamp", np.full(4, b"a")),
    ],
)
def test_a_file_without_the_numbers_of_a_figure_is_one_error(files, name, data):
    replaced(files[0], name, data)
    with pytest.raises(InputError, match=files[0].name):
        draw_view(view_files(files[:1]))


@pytest.mark.parametrize("events", ['"x"', "1e400", "NaN", "null", "-1", "1" + "0" * 400])
def test_counts_of_batches_that_are_no_numbers_are_one_error(files, events):
    with h5py.File(files[0], "r+") as file:
        file.attrs["batches"] = f'[{{"batch_id": ["a"], "events": {events}, "hits": 1}}]'
    with pytest.raises(InputError, match="batches"):
        view_files(files[:1])


def test_a_time_that_is_none_is_unknown(files):
    replaced(files[0], "/LCLS/detector_1/timestamp", np.array([np.nan, -1.0, np.inf, 1_700_000_000 * 2.0**32]))
    assert view_files(files[:1]).when_s.tolist() == [0, 0, 0, 1_700_000_000]


def test_pixels_beyond_float32_are_infinite_in_a_picture():
    assert picture_of((1, 2)).of(np.array([[1e300, 2.0]])).tolist() == [[np.inf, 2.0]]
