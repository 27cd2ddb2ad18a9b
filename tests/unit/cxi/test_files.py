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


# -- files of others, and damaged ones ------------------------------------------------------------------------------


RESULT = "/entry_1/result_1/"


def changed(path, name, data, **options):
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        file.create_dataset(name, data=data, **options)
    return path


def attributed(path, **attributes):
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)
    return path


def test_attributes_of_any_shape_are_read(path):
    attributed(path, foo=np.arange(4), one=np.array([7]), none=h5py.Empty("f"), run="x")
    found = read_chunk(path).attributes
    assert (found["foo"], found["one"], found["none"]) == ([0, 1, 2, 3], 7, None)
    assert summarize(path).run is None


@pytest.mark.parametrize("text", ["5", "null", "{", "[" * 100_000])
def test_an_attribute_of_batches_that_is_no_list_is_one_error(path, text):
    with h5py.File(path, "r+", libver="v110") as file:
        file.attrs["batches"] = text
    with pytest.raises(InputError, match="attribute batches"):
        summarize(path)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (RESULT + "nPeaks", np.array([2, -1, 2]), "nPeaks is -1, of event 1"),
        (RESULT + "nPeaks", np.array([2**64 - 1, 2, 2], np.uint64), "of event 0"),
        (RESULT + "nPeaks", np.array([b"a", b"b", b"c"]), "nPeaks is of type"),
        (RESULT + "peakXPosRaw", np.array([[b"a", b"b"]] * 3), "peakXPosRaw is of type"),
        (RESULT + "peakXPosRaw", np.zeros((3, 2), [("a", "f4")]), "peakXPosRaw is of type"),
        ("/LCLS/photon_energy_eV", np.array([b"a"] * 3), "photon_energy_eV is of type"),
        ("/LCLS/detector_1/timestamp", np.array([b"a"] * 3), "timestamp is of type"),
        ("/entry_1/experiment_identifier", np.zeros(3, [("a", "f4")]), "identifier is of type"),
        ("/entry_1/data_1/data", np.full((3, 40, 48), b"a"), "data is of type"),
        ("/entry_1/data_1/data", np.zeros((3, 0, 0), np.float32), "of shape"),
    ],
)
def test_a_dataset_of_another_type_or_sense_is_one_error_that_names_it(path, name, data, words):
    with pytest.raises(InputError, match=words):
        summarize(changed(path, name, data))


def test_a_table_of_text_that_is_not_ours_is_left_out(path):
    assert "note" not in read_chunk(changed(path, RESULT + "note", np.array([[b"a", b"b"]] * 3))).peaks


@pytest.mark.parametrize(("names", "first"), [(np.arange(3) + 4, "4"), (["\u00e4", "b", "c"], "\u00e4")])
def test_names_of_events_may_be_numbers_or_text(path, names, first):
    options = {} if isinstance(names, np.ndarray) else {"dtype": h5py.string_dtype()}
    assert summarize(changed(path, "/entry_1/experiment_identifier", names, **options)).first_event == first


def test_a_list_of_2_to_the_28_counts_is_not_read(tmp_path):
    with h5py.File(tmp_path / "huge.cxi", "w") as file:
        file.create_dataset("/entry_1/result_1/nPeaks", (2**28,), "i1", chunks=(2**20,))
    with pytest.raises(InputError, match="values"):
        read_chunk(tmp_path / "huge.cxi")
