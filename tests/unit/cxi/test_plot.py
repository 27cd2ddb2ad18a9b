"""Figures of files."""

from __future__ import annotations

from dataclasses import replace

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
    return writer.files


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
    assert draw_view(view_files(writer.files)) is not None


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
