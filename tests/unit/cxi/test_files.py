"""Files read back, and files that want to be read and cannot."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest

from nightbeam.core.errors import InputError, MissingError
from nightbeam.cxi.files import read_chunk, read_image, summarize
from nightbeam.cxi.writing import CxiWriter


@pytest.fixture
def path(plan, geometry, make_batch):
    writer = CxiWriter(replace(plan, compression="gzip-1"), geometry=geometry)
    writer.submit(make_batch(run=42))
    writer.flush_final()
    return writer.files[0]


def test_a_summary_says_what_is_in_a_file(path):
    said = summarize(path)
    assert (said.events, said.peaks, said.slab, said.dtype, said.run) == (3, 6, (40, 48), "float32", 42)
    assert said.compression == "shuffle+gzip"
    assert (said.first_event, said.last_event) == ("1700000000-1000-0", "1700000000-1002-0")
    assert (said.photon_energy_ev, said.clen_mm, said.batches) == (9500.0, 120.0, 1)


@pytest.mark.parametrize("read", [read_chunk, summarize])
def test_what_is_no_file_of_peaks_is_one_clear_error(tmp_path, path, read):
    with pytest.raises(MissingError):
        read(tmp_path / "gone.cxi")
    (tmp_path / "text.cxi").write_text("not HDF5")
    with pytest.raises(InputError, match=r"text\.cxi"):
        read(tmp_path / "text.cxi")
    with h5py.File(tmp_path / "other.cxi", "w") as file:
        file["a"] = 1
    with pytest.raises(InputError, match="nPeaks"):
        read(tmp_path / "other.cxi")
    (tmp_path / "short.cxi").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError):
        read(tmp_path / "short.cxi")


def test_a_file_that_says_it_is_huge_is_not_believed(tmp_path):
    with h5py.File(tmp_path / "huge.cxi", "w") as file:
        file.create_dataset("/entry_1/result_1/nPeaks", (10**12,), "i4", chunks=(1024,))
    with pytest.raises(InputError, match="values"):
        read_chunk(tmp_path / "huge.cxi")


def test_an_image_that_is_not_there_is_missing(path):
    assert read_image(path, 2).dtype == np.float32
    with pytest.raises(MissingError):
        read_image(path, 3)
