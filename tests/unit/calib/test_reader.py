import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from nightbeam.calib import open_constants
from nightbeam.calib.files import Payload, entry_path, write_entry
from nightbeam.core.errors import InputError, MissingError, RejectedError

ARRAY = np.arange(24, dtype="f4").reshape(2, 3, 4)


@pytest.fixture
def cache(tmp_path):
    constants = {"jf": [Payload("pedestals", "cdb_x", {"_id": "1", "run": 3}, ARRAY)], "hsd": [], "opal": None}
    write_entry(entry_path(tmp_path, "xpp001", 5), {"jf": "jf_1", "hsd": "hsd_", "opal": "opal_2"}, constants)
    return tmp_path


def test_constants_are_a_mapping_of_detectors_of_types_of_pairs(cache):
    constants = open_constants("xpp001", 5, cache)
    assert {name: list(constants[name]) for name in constants} == {"jf": ["pedestals"], "hsd": []}
    data, document = constants["jf"]["pedestals"]
    np.testing.assert_array_equal(data, ARRAY)
    assert document == {"_id": "1", "run": 3}
    assert len(constants) == 2
    assert constants["jf"] is constants["jf"]
    assert "jf" in repr(constants)


def test_a_detector_that_was_skipped_or_is_unknown_is_absent_and_says_why(cache):
    constants = open_constants("xpp001", 5, cache)
    assert "opal" not in constants
    with pytest.raises(KeyError, match="skipped"):
        constants["opal"]
    with pytest.raises(KeyError, match="not in this run"):
        constants["nobody"]


def test_neither_arrays_nor_mappings_can_be_written(cache):
    constants = open_constants("xpp001", 5, cache)
    with pytest.raises(ValueError, match="read-only"):
        constants["jf"]["pedestals"][0][0] = 1
    with pytest.raises(TypeError):
        constants["jf"]["pedestals"] = None
    with pytest.raises(ValueError, match="WRITEABLE"):
        constants["jf"]["pedestals"][0].setflags(write=True)


def test_arrays_outlive_the_file_and_the_mapping(cache):
    data = open_constants("xpp001", 5, cache)["jf"]["pedestals"][0]
    entry_path(cache, "xpp001", 5).unlink()
    np.testing.assert_array_equal(data, ARRAY)


def test_opening_leaves_no_handle_open(cache):
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [open_constants("xpp001", 5, cache) for _ in range(20)]
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= len(kept)  # one of each mapping, none of ours


def test_a_pickle_of_another_program_is_read_too(cache):
    path = entry_path(cache, "xpp001", 6)
    path.write_bytes(pickle.dumps({"det_info": {"jf": "x"}, "calib_const": {"jf": {"p": (ARRAY, {})}, "opal": None}}))
    path.chmod(0o640)
    constants = open_constants("xpp001", 6, cache)
    assert list(constants) == ["jf"]
    np.testing.assert_array_equal(constants["jf"]["p"][0], ARRAY)
    assert not constants["jf"]["p"][0].flags.writeable


def test_every_way_to_fail_is_one_named_error(cache):
    with pytest.raises(MissingError, match="nightbeam calib prefetch"):
        open_constants("xpp001", 7, cache)
    with pytest.raises(MissingError):
        open_constants("xpp001", 7, cache / "no")
    with pytest.raises(InputError):
        open_constants("../x", 7, cache)
    os.link(entry_path(cache, "xpp001", 5), entry_path(cache, "other", 5))
    with pytest.raises(InputError, match="constants of xpp001"):
        open_constants("other", 5, cache)
    entry_path(cache, "xpp001", 5).chmod(0o666)
    with pytest.raises(RejectedError):
        open_constants("xpp001", 5, cache)
