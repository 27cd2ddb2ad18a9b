"""Full disks, and what shells need to know."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest

from nightbeam.core.errors import ConfigError, StorageError
from nightbeam.cxi.chunkfile import Powders, compression_of, environment_line, open_new

FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from nightbeam.core.errors import StorageError
from nightbeam.cxi.chunkfile import open_new
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
path = Path(sys.argv[1])
for _ in range(3):
    try:
        with open_new(path) as file:
            made = file.create_dataset("data", (64, 64, 64), "f4", chunks=(1, 64, 64))
            for n in range(64):
                made.id.write_direct_chunk((n, 0, 0), np.ones((64, 64), "f4")) if sys.argv[2] == "chunks" else None
            file["more"] = np.ones(2_000_000 if sys.argv[2] != "chunks" else 250_000)
    except StorageError as error:
        print(error.what)
    assert not path.exists()
"""


@pytest.mark.parametrize("what", ["chunks", "one"])
def test_a_file_that_does_not_fit_leaves_nothing_however_often_it_is_tried(tmp_path, what):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "f.h5"), what], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no space left for") == 3
    assert list(tmp_path.glob("*.h5")) == []


def test_a_file_that_cannot_be_made_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot write"), open_new(tmp_path / "nowhere" / "f.h5"):
        pass


def test_a_mistake_of_ours_is_not_taken_for_a_full_disk_and_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), open_new(tmp_path / "f.h5") as file:
        file["a"] = 1 / 0
    assert not (tmp_path / "f.h5").exists()


def test_long_attributes_can_be_read_again(tmp_path):
    with open_new(tmp_path / "f.h5") as file:
        file.attrs["long"] = "x" * 200_000
    with h5py.File(tmp_path / "f.h5") as file:
        assert len(file.attrs["long"]) == 200_000


def test_the_superblock_is_one_that_hdf5_1_10_knows(tmp_path):
    with open_new(tmp_path / "f.h5") as file:
        file["a"] = 1
    # HDF5 file format, superblock: the version is the byte after the signature; 1.10 reads 0 to 3.
    assert (tmp_path / "f.h5").read_bytes()[8] <= 3


def test_a_missing_plugin_is_named_with_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(ConfigError, match="hdf5plugin") as caught:
        compression_of("bslz4")
    assert "pip install hdf5plugin" in caught.value.fix


def test_only_plugins_need_a_line_for_the_shell():
    pytest.importorskip("hdf5plugin")
    assert environment_line("gzip-3") == ""
    assert environment_line("zstd").startswith("export HDF5_PLUGIN_PATH=/")


def test_what_is_not_finite_is_no_brightest_value():
    powders = Powders()
    for values in ([np.inf, np.nan, 1.0, -np.inf], [2.0, 3.0, np.inf, -np.inf]):
        powders.add_hit(np.array(values, np.float32).reshape(1, 2, 2))
    assert powders.hits.ravel().tolist() == [2.0, 3.0, 1.0, -np.inf]
    powders.add_hit(np.array([1e300, -1e300, 4.0, 5.0]).reshape(1, 2, 2))
    assert powders.hits.ravel().tolist() == [2.0, 3.0, 4.0, 5.0]
    powders.add_hit(np.array([7, 0, 0, 0], np.int64).reshape(1, 2, 2))
    assert powders.hits.ravel().tolist() == [7.0, 3.0, 4.0, 5.0]
