"""The virtual file of a run."""

from __future__ import annotations

import shutil
from dataclasses import replace

import h5py
import numpy as np

from nightbeam.cxi.files import read_chunk, read_image
from nightbeam.cxi.writing import CxiWriter


def files_of(writer):
    """Return its files, oldest first: their names have the time."""
    return sorted(writer.plan.output_dir.rglob("*.cxi"), key=lambda path: path.name)


def write(plan, *batches):
    writer = CxiWriter(plan, geometry=None)
    for batch in batches:
        writer.submit(batch)
    writer.flush_final()
    return writer


def test_the_master_is_all_files_in_one_and_can_be_moved_with_them(plan, make_batch, tmp_path):
    one, two, three = (0, 1.0, 2.0), (1, 3.0, 4.0), (2, 5.0, 6.0)
    batches = [make_batch(0, events=4, places=[one]), make_batch(1, events=3, places=[one, two, three])]
    write(replace(plan, compat=()), *batches)
    moved = tmp_path / "moved"
    shutil.move(plan.output_dir, moved)
    master = read_chunk(moved / "p_master.h5")
    assert master.n_peaks.tolist() == [1, 1, 1, 1, 3, 3, 3]
    assert master.table("peakYPosRaw", 3).tolist() == [1.0]
    assert master.table("peakYPosRaw", 4).tolist() == [1.0, 23.0, 45.0]
    for n, event in enumerate(e for b in batches for e in b.events):
        assert np.array_equal(read_image(moved / "p_master.h5", n), event.image.reshape(80, 24))
    names = master.events["/entry_1/experiment_identifier"]
    assert len({*names}) == 7
    assert len(list(moved.glob("*.cxi"))) == 2


def test_the_master_is_no_cxi_that_a_user_would_index_twice(plan, make_batch):
    write(plan, make_batch())
    assert [p.name for p in plan.output_dir.glob("*_master*")] == ["p_master.h5"]
    assert "p_master.h5" not in (plan.output_dir / "p.lst").read_text()


def test_a_later_writer_adds_its_files_to_the_master(plan, make_batch):
    write(plan, make_batch(0))
    write(plan, make_batch(1))
    assert len(read_chunk(plan.output_dir / "p_master.h5").n_peaks) == 6


def test_files_of_another_shape_or_damaged_are_left_out(plan, make_batch):
    other = write(plan, make_batch(0, shape=(2, 20, 24), places=[]))
    broken = files_of(other)[0].with_name(files_of(other)[0].name.replace("chunk0000", "chunk0001"))
    broken.write_bytes(b"no HDF5")
    write(plan, make_batch(1))
    with h5py.File(plan.output_dir / "p_master.h5") as file:
        assert file["/entry_1/data_1/data"].shape == (3, 80, 24)


def test_masks_of_each_event_are_in_the_master(plan, geometry, make_batch):
    writer = CxiWriter(plan, geometry=geometry)
    for n in range(2):
        writer.submit(make_batch(n))
    writer.flush_final()
    with h5py.File(plan.output_dir / "p_master.h5") as file:
        mask = file["/entry_1/data_1/mask"][...]
        assert file["/instrument/detector_1/EncoderValue"].shape == (6,)
        assert file["/entry_1/data_1/data"].attrs["numEvents"] == 6
    assert mask.shape == (6, 40, 48)
    assert (mask.sum(axis=(1, 2)) == 2).all()
