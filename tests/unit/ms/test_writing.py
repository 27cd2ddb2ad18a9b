from __future__ import annotations

import numpy as np
import pytest

from nightbeam.casa import open_table
from nightbeam.ms import read_summary
from nightbeam.ms.writing import create_ms, new_rows, probe_raw_columns, read_record, write_record


def test_what_threads_write_plainly_casacore_reads(made_ms, rows):
    with open_table(made_ms) as table:
        for name, wanted in rows.columns().items():
            assert np.array_equal(table.getcol(name), wanted), name


def test_the_probe_finds_plain_rows(layout, tmp_path):
    create_ms(tmp_path / "a.ms", layout)
    found = probe_raw_columns(tmp_path / "a.ms", layout)
    assert {name: size for name, (_, size) in found.items()} == {
        "DATA": 64, "FLAG": 1, "WEIGHT_SPECTRUM": 32, "WEIGHT": 8, "SIGMA": 8, "UVW": 24,
    }  # fmt: skip


def test_the_probe_fails_where_a_file_is_not_what_we_think(layout, tmp_path, monkeypatch):
    from nightbeam.ms import writing

    create_ms(tmp_path / "a.ms", layout)
    monkeypatch.setattr(writing, "_row_bytes", lambda value: bytes(value.nbytes))
    assert probe_raw_columns(tmp_path / "a.ms", layout) is None
    with new_rows(tmp_path / "a.ms", layout) as sink:
        assert sink.way == "casacore"


def test_times_windows_and_antennas_are_repeated_in_order(made_ms, layout):
    with open_table(made_ms) as table:
        times, windows, one = (table.getcol(n) for n in ("TIME", "DATA_DESC_ID", "ANTENNA1"))
        constant = {n: set(table.getcol(n)) for n in ("SCAN_NUMBER", "INTERVAL", "EXPOSURE", "STATE_ID", "FIELD_ID")}
    assert times == pytest.approx(np.tile(np.repeat(layout.times_mjd * 86400, 6), 2), abs=1e-6)
    assert windows.tolist() == [0] * 12 + [1] * 12
    assert one.tolist() == layout.antenna1.tolist() * 4
    assert constant == {"SCAN_NUMBER": {1}, "INTERVAL": {10.0}, "EXPOSURE": {10.0}, "STATE_ID": {0}, "FIELD_ID": {0}}


def test_flag_category_is_there_and_columns_of_zeros_are_not(made_ms):
    columns = read_summary(made_ms).columns
    assert "FLAG_CATEGORY" in columns
    assert not {"MODEL_DATA", "CORRECTED_DATA"} & set(columns)


def test_a_renamed_set_keeps_its_sub_tables(own_ms, tmp_path):
    own_ms.rename(tmp_path / "other.ms")
    with open_table(tmp_path / "other.ms") as table:
        assert table.getkeyword("SOURCE").endswith("other.ms/SOURCE")
        assert table.getkeyword("ANTENNA").endswith("other.ms/ANTENNA")


def test_what_made_a_set_stays_with_it(own_ms, made_ms):
    write_record(own_ms, '{"a": 1}')
    assert read_record(own_ms) == '{"a": 1}'
    assert read_record(made_ms) == ""
