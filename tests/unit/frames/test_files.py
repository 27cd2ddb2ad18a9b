"""Files of frames are read as they are, and what is none is refused with one clear error."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import InputError, MissingError, NightbeamError, UsageError
from nightbeam.frames.compute import true_peaks
from nightbeam.frames.files import open_frames
from nightbeam.frames.model import FramePlan
from nightbeam.frames.truth import write_truth

FRAMES = np.arange(3 * 4 * 6, dtype=np.uint16).reshape(3, 4, 6)


def cxi(path: Path, data: np.ndarray = FRAMES, name: str = "/entry_1/data_1/data", **more: object) -> Path:
    with h5py.File(path, "w") as file:
        file[name] = data
        for where, value in more.items():
            file[where.replace("__", "/")] = value
    return path


def test_a_cxi_file_is_found_by_its_usual_name_and_read_in_part(tmp_path):
    path = cxi(tmp_path / "a.cxi", other=np.zeros((2, 2, 2)))
    with open_frames(path) as reader:
        assert (reader.dataset, reader.shape, reader.n_events) == ("/entry_1/data_1/data", (1, 4, 6), 3)
        some = reader.read(1, 10)
    assert some.images.dtype == np.float32
    assert np.array_equal(some.images, FRAMES[1:, None])
    assert some.first_event == 1
    assert some.timestamps.tolist() == [0, 0]
    assert some.photon_energy_ev is None


def test_a_slab_is_cut_into_panels(tmp_path):
    with open_frames(cxi(tmp_path / "a.cxi"), panel_shape=(2, 3)) as reader:
        images = reader.read(0, 1).images
    assert reader.shape == (4, 2, 3)
    assert images[0, 1].tolist() == [[12, 13, 14], [18, 19, 20]]  # below the first: columns come first


def test_origins_choose_the_panels(tmp_path):
    with open_frames(cxi(tmp_path / "a.cxi"), panel_shape=(2, 2), origins=np.array([[2, 4], [0, 1]])) as reader:
        assert reader.read(0, 1).images[0].tolist() == [[[16, 17], [22, 23]], [[1, 2], [7, 8]]]


def test_four_axes_are_panels_already(tmp_path):
    path = cxi(tmp_path / "a.h5", FRAMES.reshape(3, 2, 2, 6), "frames")
    with open_frames(path, panel_shape=(2, 6)) as reader:
        assert reader.shape == (2, 2, 6)
        assert np.array_equal(reader.read(2, 1).images[0, 1], FRAMES[2, 2:])
    with pytest.raises(InputError, match=r"panels of \(2, 6\), not \(4, 6\)"):
        open_frames(path, panel_shape=(4, 6))


def test_energies_lengths_and_times_of_a_cxi_file_are_read(tmp_path):
    path = cxi(
        tmp_path / "a.cxi",
        LCLS__photon_energy_eV=[9000.0, 9001.0, 9002.0],
        LCLS__detector_1__EncoderValue=[[120.0], [121.0], [122.0]],
        LCLS__detector_1__timestamp=np.array([5 << 32, 6 << 32, 1 << 63], np.uint64),
    )
    with open_frames(path) as reader:
        some = reader.read(1, 2)
    assert some.photon_energy_ev.tolist() == [9001, 9002]
    assert some.clen_mm.tolist() == [121, 122]
    assert some.timestamps.tolist() == [6 << 32, 1 << 63]


def test_joules_and_machine_times_serve_where_lcls_has_none(tmp_path):
    path = cxi(
        tmp_path / "a.cxi",
        entry_1__instrument_1__source_1__energy=np.full(3, 9500 * 1.602176634e-19),
        LCLS__machineTime=np.array([7, 8, 9], np.int32),
        LCLS__machineTimeNanoSeconds=np.array([1, 2, 3], np.int32),
    )
    with open_frames(path) as reader:
        some = reader.read(0, 3)
    assert some.photon_energy_ev == pytest.approx([9500] * 3)
    assert some.timestamps.tolist() == [(7 << 32) + 1, (8 << 32) + 2, (9 << 32) + 3]


def test_one_value_may_serve_for_all_events(tmp_path):
    with open_frames(cxi(tmp_path / "a.cxi", LCLS__photon_energy_eV=8123.0)) as reader:
        assert reader.read(0, 3).photon_energy_ev.tolist() == [8123.0] * 3


def test_energies_of_fewer_events_are_an_error(tmp_path):
    with pytest.raises(InputError, match=r"photon_energy_eV .* of shape \(2,\), and there are 3 events"):
        open_frames(cxi(tmp_path / "a.cxi", LCLS__photon_energy_eV=[1.0, 2.0]))


def test_of_several_datasets_one_must_be_named(tmp_path):
    path = cxi(tmp_path / "a.h5", FRAMES, "one", deep__two=FRAMES + 1, flat=np.zeros((4, 4)), text=b"x")
    with pytest.raises(InputError, match="several") as error:
        open_frames(path)
    assert "/deep/two, /one" in error.value.fix
    with open_frames(path, "deep/two") as reader:
        assert reader.read(0, 1).images[0, 0, 0, 0] == 1
    with pytest.raises(MissingError, match="no dataset three"):
        open_frames(path, "three")
    with pytest.raises(MissingError, match="no dataset deep"):
        open_frames(path, "deep")


def test_the_only_dataset_needs_no_name(tmp_path):
    with open_frames(cxi(tmp_path / "a.h5", FRAMES, "detector/raw", flat=np.zeros((4, 4)))) as reader:
        assert reader.dataset == "/detector/raw"


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (np.zeros((4, 4)), "x", "no dataset of three or four axes"),
        (np.zeros((0, 4, 4)), "x", "is of shape"),
        (np.zeros((2, 4, 4), complex), "x", "no dataset of three"),
    ],
)
def test_a_file_without_frames_is_refused(tmp_path, data, name, said):
    with pytest.raises(InputError, match=said):
        open_frames(cxi(tmp_path / "a.h5", data, name))


def test_a_dataset_of_the_wrong_kind_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="complex128"):
        open_frames(cxi(tmp_path / "a.h5", np.zeros((2, 4, 4), complex), "x"), "x")


def test_an_event_that_is_said_to_be_huge_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", shape=(10, 1 << 20, 1 << 20), dtype="f4", chunks=(1, 64, 64))
    with pytest.raises(InputError, match="more than 4 GiB"):
        open_frames(path)


def test_a_huge_number_of_events_costs_nothing(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", shape=(1 << 36, 8, 8), dtype="f4", chunks=(1, 8, 8), fillvalue=2)
    with open_frames(path) as reader:
        assert reader.read((1 << 36) - 1, 5).images.shape == (1, 1, 8, 8)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.98])
def test_a_truncated_file_is_one_clear_error(tmp_path, keep):
    whole = cxi(tmp_path / "a.cxi", np.random.default_rng(1).integers(0, 9, (3, 64, 64))).read_bytes()
    path = tmp_path / "b.cxi"
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(InputError, match=r"b\.cxi"), open_frames(path) as reader:
        reader.read(0, 3)


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"PK\x03\x04" + bytes(100), b"\x93NUMPY", bytes(600)])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "x.cxi"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.cxi"):
        open_frames(path)


def test_what_is_not_there_or_no_file_is_said(tmp_path):
    with pytest.raises(MissingError, match="no file"):
        open_frames(tmp_path / "none.npy")
    with pytest.raises(InputError, match="directory"):
        open_frames(tmp_path)


@given(st.data())
def test_a_damaged_file_never_raises_anything_foreign(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.cxi"
    raw = bytearray(cxi(path, LCLS__photon_energy_eV=[1.0, 2.0, 3.0]).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=20)):
        raw[at] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        with open_frames(path) as reader:
            reader.read(0, 3)
    except NightbeamError:
        pass


# -- npy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (6, 4, 5), (4, 5)])
def test_an_npy_file_of_each_rank_is_read(tmp_path, shape):
    array = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "a.npy", array)
    with open_frames(tmp_path / "a.npy") as reader:
        images = reader.read(0, 100).images
    four = array if array.ndim == 4 else array.reshape(-1, 1, 4, 5)
    assert reader.shape == four.shape[1:]
    assert np.array_equal(images, four.astype(np.float32))


def test_an_npy_file_of_slabs_is_cut(tmp_path):
    np.save(tmp_path / "a.npy", FRAMES)
    with open_frames(tmp_path / "a.npy", panel_shape=(2, 6)) as reader:
        assert np.array_equal(reader.read(0, 3).images, FRAMES.reshape(3, 2, 2, 6))


def test_an_npy_file_that_would_run_code_or_is_cut_off_is_refused(tmp_path):
    out = io.BytesIO()
    np.save(out, FRAMES)
    cases = {"cut.npy": out.getvalue()[:-10], "pickle.npy": None, "rank.npy": None}
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(tmp_path / "rank.npy", np.zeros(5))
    (tmp_path / "cut.npy").write_bytes(cases["cut.npy"])
    for name in cases:
        with pytest.raises(InputError, match=name):
            open_frames(tmp_path / name)
    (tmp_path / "x.npy").write_bytes(pickle.dumps(FRAMES))
    with pytest.raises(InputError, match="neither"):
        open_frames(tmp_path / "x.npy")


def test_an_npy_file_has_no_datasets(tmp_path):
    np.save(tmp_path / "a.npy", FRAMES)
    with pytest.raises(InputError, match="no dataset d"):
        open_frames(tmp_path / "a.npy", "d")


def test_origins_without_a_shape_are_a_mistake_in_the_call(tmp_path):
    with pytest.raises(UsageError):
        open_frames(tmp_path / "a.npy", origins=np.zeros((1, 2), int))


def test_a_range_before_the_first_event_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", FRAMES)
    with open_frames(tmp_path / "a.npy") as reader, pytest.raises(InputError, match="from number -1"):
        reader.read(-1, 2)


# -- truth --------------------------------------------------------------------------------------------------------


def test_the_truth_is_written_as_arrays_and_as_lines(tmp_path):
    truth = true_peaks(FramePlan(n_peaks=(2, 3)), 10, 6)
    write_truth(tmp_path / "t.npz", truth)
    write_truth(tmp_path / "t.jsonl", truth)
    with np.load(tmp_path / "t.npz") as arrays:
        assert np.array_equal(arrays["x"], truth.x)
        assert int(arrays["first_event"]) == 10
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == list(range(10, 16))
    peaks = [[line["event"], *peak] for line in lines for peak in line["peaks"]]
    assert peaks == [list(row) for row in zip(truth.event, truth.panel, truth.y, truth.x, truth.total_adu, strict=True)]
    assert [line["timestamp"] for line in lines] == truth.timestamps.tolist()


# -- what a file says of its events ---------------------------------------------------------------------------------


def stamps(path, **columns):
    with open_frames(cxi(path, **columns)) as reader:
        return reader.timestamps.tolist()


def test_times_that_are_none_are_unknown(tmp_path):
    path = tmp_path / "a.cxi"
    assert stamps(path, LCLS__detector_1__timestamp=np.array([np.nan, -1.0, 2.0**40])) == [0, 0, 2**40]
    assert stamps(path, LCLS__detector_1__timestamp=np.array([-1, 0, 2**62])) == [0, 0, 2**62]
    parts = {"LCLS__machineTime": np.array([-1, 2**32 - 1, 3]), "LCLS__machineTimeNanoSeconds": np.array([5, 6, -7])}
    assert stamps(path, **parts) == [0, ((2**32 - 1) << 32) + 6, 3 << 32]


@pytest.mark.parametrize(
    "columns",
    [
        {"LCLS__detector_1__timestamp": np.array([1.0, np.inf, 1.0])},
        {"LCLS__detector_1__timestamp": np.array([1.0, 2.0**64, 1.0])},
        {"LCLS__machineTime": np.array([1, 2**62, 1]), "LCLS__machineTimeNanoSeconds": np.zeros(3, int)},
        {"LCLS__machineTime": np.array([1, 2**32, 1]), "LCLS__machineTimeNanoSeconds": np.zeros(3, int)},
        {"LCLS__machineTime": np.ones(3, int), "LCLS__machineTimeNanoSeconds": np.array([1, 10**9, 1])},
    ],
)
def test_a_time_beyond_all_times_is_an_error_that_names_its_event(tmp_path, columns):
    with pytest.raises(InputError, match="of event 1, no time"):
        stamps(tmp_path / "a.cxi", **columns)


def test_values_of_more_events_than_there_can_be_are_not_read(tmp_path):
    with h5py.File(tmp_path / "a.cxi", "w") as file:
        file.create_dataset("/entry_1/data_1/data", (2**39, 8, 8), "f4", chunks=(1, 8, 8))
        file.create_dataset("/LCLS/photon_energy_eV", (2**39,), "f4", chunks=(1024,))
    with pytest.raises(InputError, match="says it has 549755813888 values") as caught:
        open_frames(tmp_path / "a.cxi")
    assert "cannot read" not in str(caught.value)


def test_a_value_of_the_wrong_shape_is_said_once(tmp_path):
    with pytest.raises(InputError) as caught:
        open_frames(cxi(tmp_path / "a.cxi", LCLS__photon_energy_eV=np.ones(2)))
    assert caught.value.what.startswith("/LCLS/photon_energy_eV of ")


def test_a_dataset_of_times_is_no_frames(tmp_path):
    path = cxi(tmp_path / "a.h5", name="frames")
    with h5py.File(path, "r+") as file:
        h5py.h5d.create(file.id, b"times", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((3, 8, 8)))
    with pytest.raises(InputError, match=r"times of .* no frames"):
        open_frames(path, "times")
    with open_frames(path) as reader:
        assert reader.dataset == "/frames"
