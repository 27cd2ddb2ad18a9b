"""Tables are opened briefly, refuse at once where they must, and name what is wrong."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from nightbeam.casa import tables
from nightbeam.casa.tables import array_column, create_table, is_table, new_ms, open_table, scalar_column
from nightbeam.core.errors import BusyError, InputError, MissingError, StorageError


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "a.tab"
    with create_table(path, [scalar_column("X", 1.0), array_column("V", 1j, shape=(2, 3))], rows=4) as table:
        table.putcol("X", np.arange(4.0))
    return path


HOLD = """
import sys
from nightbeam.casa.tables import open_table
with open_table(sys.argv[1], write=True):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_what_is_written_is_read_back(small):
    with open_table(small, write=True) as table:
        table.putcell("X", 2, 7.5)
    with open_table(small) as table:
        assert list(table.getcol("X")) == [0.0, 1.0, 7.5, 3.0]
        assert table.getcol("V").shape == (4, 2, 3)
    assert is_table(small)


def test_a_table_that_somebody_writes_can_be_read_and_is_refused_for_writing_at_once(small):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, small], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        begin = time.monotonic()
        with open_table(small) as table:
            assert table.getcell("X", 3) == 3.0
        with pytest.raises(BusyError, match="being written by another"), open_table(small, write=True):
            pass
        assert time.monotonic() - begin < 60  # it is held for as long as we like
    finally:
        holder.communicate(b"\n")
    with open_table(small, write=True) as table:
        assert table.nrows() == 4


def test_a_missing_table_and_a_plain_directory_are_told_apart(tmp_path):
    with pytest.raises(MissingError, match="does not exist"), open_table(tmp_path / "no.ms"):
        pass
    with pytest.raises(MissingError, match="no casacore table"), open_table(tmp_path):
        pass


def test_a_damaged_table_is_an_input_error(small):
    (small / "table.dat").write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"a\.tab"), open_table(small):
        pass


def test_a_column_that_is_not_there_is_an_input_error(small):
    with pytest.raises(InputError, match=r"a\.tab"), open_table(small) as table:
        table.getcol("NO_SUCH")


def test_a_new_measurement_set_has_the_required_sub_tables(tmp_path):
    new_ms(tmp_path / "n.ms", columns=[array_column("DATA", 1j, ndim=2)])
    with open_table(tmp_path / "n.ms") as table:
        assert "DATA" in table.colnames()
    assert is_table(tmp_path / "n.ms" / "ANTENNA")


def test_on_a_full_disk_nothing_is_begun_that_casacore_could_not_end(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "full_place", lambda *_: "0.00 GB free in here")
    monkeypatch.setattr("nightbeam.core.files.full_place", lambda *_: "0.00 GB free in here")
    with (
        pytest.raises(StorageError, match=r"no space left for .*a\.tab \(0\.00 GB free"),
        open_table(small, write=True),
    ):
        pytest.fail("it was opened")
    with pytest.raises(StorageError, match="no space left for"):
        new_ms(tmp_path / "n.ms")
    with open_table(small) as table:  # reading needs no room
        assert table.nrows() == 4


def test_a_table_that_cannot_be_closed_for_want_of_room_is_closed_when_there_is_some(small, monkeypatch):
    full = ["", "0.00 GB free in here", "0.00 GB free in here", "0.00 GB free in here"]
    with monkeypatch.context() as patch:
        patch.setattr(tables, "full_place", lambda *_: full.pop(0))
        with pytest.raises(StorageError, match="no space left"), open_table(small, write=True) as table:
            table.putcell("X", 2, 7.5)
        assert [path for path, _ in tables._stuck] == [small]
    with open_table(small) as table:
        assert table.getcell("X", 2) == 7.5
    assert tables._stuck == []


def test_what_a_lost_table_holds_of_the_disk_is_given_back_but_not_what_another_shares(tmp_path, monkeypatch):
    path = tmp_path / ".b.ms.1.abcdef01.part"
    with create_table(path, [scalar_column("X", 1.0)], rows=4) as table:
        table.putcol("X", np.arange(4.0))
    shared = path / "table.f0"
    os.link(shared, tmp_path / "of_another")
    kept = shared.stat().st_size
    full = ["", "full", "full", "full"]
    monkeypatch.setattr(tables, "full_place", lambda *_: full.pop(0) if full else "full")
    with pytest.raises(StorageError), open_table(path, write=True) as table:
        table.putcell("X", 0, 1.0)
    assert (tmp_path / "of_another").stat().st_size == kept > 0
    assert (path / "table.dat").stat().st_size == 0
    assert tables._stuck == []


def test_what_fails_while_the_disk_is_full_is_not_called_damage(small, monkeypatch):
    (small / "table.dat").write_bytes(b"garbage")
    monkeypatch.setattr(tables, "full_place", lambda *_: "5 inodes free in here")
    with pytest.raises(StorageError, match="no space left"), open_table(small):
        pass
