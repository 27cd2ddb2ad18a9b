import gc
from pathlib import Path

import h5py
import numpy as np
import pytest

from nightbeam.core.errors import InputError, MissingError, NightbeamError
from nightbeam.cxi.doors import the_world
from nightbeam.cxi.masks import check_mask, mask_place, read_mask
from nightbeam.testing.cxi_world import small_config

SLAB = np.zeros((40, 48), np.uint16)
SLAB[3, 4] = 7


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32])
def test_a_mask_is_read_from_npy_and_from_hdf5(tmp_path, dtype):
    np.save(tmp_path / "m.npy", SLAB.astype(dtype))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a/mask"] = SLAB.astype(dtype)
    for place in ("m.npy", "m.h5:/a/mask"):
        found = read_mask(tmp_path / place)
        assert found.dtype == bool
        assert np.argwhere(found).tolist() == [[3, 4]]


def test_a_place_is_a_file_and_a_dataset():
    assert mask_place(Path("/x/m.npy")) == (Path("/x/m.npy"), "")
    assert mask_place(Path("/x/m.h5:/a/b")) == (Path("/x/m.h5"), "/a/b")


def _write(path: Path, what: str) -> Path:
    if what == "objects":
        np.save(path, np.array([[object()]]), allow_pickle=True)
    elif what == "floats":
        np.save(path, np.zeros((4, 4)))
    elif what == "a line":
        np.save(path, np.zeros(4, int))
    elif what == "archive":
        np.savez(path, a=SLAB)
        path = path.with_name(path.name + ".npz")
    elif what == "truncated":
        np.save(path, SLAB)
        path.write_bytes(path.read_bytes()[:200])
    elif what == "huge":
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000), }"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    elif what == "group":
        h5py.File(path, "w").close()
        path = Path(f"{path}:/none")
    elif what == "no hdf5":
        path.write_text("words")
        path = Path(f"{path}:/mask")
    elif what == "directory":
        path.mkdir()
    else:
        path.write_text(what)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    ["objects", "floats", "a line", "archive", "truncated", "huge", "group", "no hdf5", "directory", "words", ""],
)
def test_what_is_no_mask_is_one_clear_error(tmp_path, what):
    with pytest.raises((InputError, MissingError)) as caught:
        read_mask(_write(tmp_path / "m.npy", what))
    assert "m.npy" in str(caught.value)
    del caught
    gc.collect()  # what was left open is said now, and a warning is an error


def test_a_mask_of_another_detector_is_refused_before_anything_is_taken(geometry):
    check_mask(SLAB != 0, geometry=geometry)
    check_mask(np.zeros((4, 20, 24), bool), geometry=geometry)
    check_mask(np.zeros((5, 6), bool), geometry=None)
    for shape in ((41, 48), (3, 20, 24), (4, 24, 20)):
        with pytest.raises(InputError, match="the mask does not fit"):
            check_mask(np.zeros(shape, bool), geometry=geometry)
    with pytest.raises(InputError, match="2 places"):
        check_mask(np.zeros((3, 8, 8), bool), geometry=None, origins=[[0, 0], [8, 0]])


def test_the_users_mask_and_the_geometrys_bad_regions_are_in_the_files(tmp_path, geometry, make_batch):
    np.save(tmp_path / "m.npy", SLAB)
    config = small_config(tmp_path, geometry={"mask_file": str(tmp_path / "m.npy")})
    files = the_world().files(config, geometry)
    files.submit(make_batch())
    files.flush_final()
    with h5py.File(files.get_statistics()["last_file"]) as file:
        bad = file["/entry_1/data_1/mask"][0]
    assert bad[3, 4] != 0
    assert (bad[30, 40:42] != 0).all()  # bad_spot
    assert np.count_nonzero(bad) == 3


def test_a_bad_mask_stops_the_writer_at_its_start(tmp_path, geometry):
    np.save(tmp_path / "m.npy", SLAB[:5])
    with pytest.raises(NightbeamError, match=r"geometry\.mask_file"):
        the_world().files(small_config(tmp_path, geometry={"mask_file": str(tmp_path / "m.npy")}), geometry)


def test_files_that_cxiview_cannot_open_are_said_at_the_start(tmp_path, geometry, caplog):
    the_world().files(small_config(tmp_path), None)
    assert "instrument.pixel_size_m" in caplog.text
    caplog.clear()
    the_world().files(small_config(tmp_path, output={"file_prefix": "b"}), geometry)
    the_world().files(small_config(tmp_path, instrument={"pixel_size_m": 1e-4}, output={"file_prefix": "c"}), None)
    the_world().files(small_config(tmp_path, output={"compat": ["psocake"], "file_prefix": "d"}), None)
    assert "instrument.pixel_size_m" not in caplog.text
