"""Tables are opened briefly, refuse at once where they must, and name what is wrong."""

import subprocess
import sys
import time

import numpy as np
import pytest

from nightbeam.casa.tables import array_column, create_table, is_table, new_ms, open_table, scalar_column
from nightbeam.core.errors import BusyError, InputError, MissingError


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
