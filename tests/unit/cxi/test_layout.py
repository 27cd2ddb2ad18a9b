"""The layout as data."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from nightbeam.core.errors import ConfigError
from nightbeam.cxi import layout
from nightbeam.cxi.writing import CxiWriter

EVERYTHING = ("images", "geometry", "mask", "pixel size", "distance", "clen", "timestamps", "clock", "segmentation",
              "cheetah", "psocake")  # fmt: skip


def test_no_two_datasets_of_a_file_share_a_path_or_a_name():
    for conditions in (EVERYTHING, tuple(c for c in EVERYTHING if c != "cheetah"), ()):
        datasets = layout.wanted(conditions)
        assert len({d.path for d in datasets}) == len(datasets)
        assert len({d.name for d in datasets}) == len(datasets)


def test_what_crystfel_needs_is_in_every_file_with_images():
    paths = {d.path for d in layout.wanted(("images",)) if d.who.startswith("C")}
    assert {layout.DATA, layout.N_PEAKS, layout.PEAK_X, layout.PEAK_Y, layout.TOTAL_INTENSITY} <= paths


@pytest.mark.parametrize("name", ["", "a/b", "..", "detector_1", "machineTime", "line\nbreak"])
def test_a_name_that_cannot_be_or_is_taken_is_refused(name):
    with pytest.raises(ConfigError):
        layout.check_names([name], below=layout.COPIED, what="key")


def test_a_written_file_has_what_the_layout_says_and_nothing_else(plan, geometry, make_batch):
    writer = CxiWriter(plan, geometry=geometry)
    writer.submit(make_batch())
    writer.flush_final()
    hold = ("images", "geometry", "mask", "pixel size", "distance", "clen", "timestamps", "cheetah")
    wanted = {d.path: d for d in layout.wanted(hold)}
    found = {}
    with h5py.File(writer.files[0]) as file:
        file.visititems(lambda name, item: found.update({f"/{name}": item}) if isinstance(item, h5py.Dataset) else None)
        assert set(found) == set(wanted)
        lengths = {"event": 3, "peak": 2, "ss": 40, "fs": 48}
        for path, dataset in wanted.items():
            assert found[path].shape == layout.shape_of(dataset, lengths), path
            if dataset.dtype not in ("S", "output"):
                assert found[path].dtype == dataset.dtype, path
            assert layout.attributes_of(dataset).items() <= dict(found[path].attrs).items()
        for where, target, _ in layout.LINKS:
            assert file.get(where, getlink=True).path == target


def test_the_producers_clock_is_kept_where_it_is_all_that_was_said_of_time(plan, make_batch):
    writer = CxiWriter(plan, geometry=None)
    writer.submit(make_batch(0, events=1, wall_clock_s=1.7e9, timestamps=np.zeros(1, np.uint64)))
    writer.submit(make_batch(1, events=1))
    writer.flush_final()
    with h5py.File(writer.files[0]) as file:
        clock = file["/LCLS/detector_1/producer_clock_s"]
        assert (clock[0], np.isnan(clock[1]), clock.attrs["units"]) == (1.7e9, True, "s")
