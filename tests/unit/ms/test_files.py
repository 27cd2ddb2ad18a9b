from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

from nightbeam.casa import open_table
from nightbeam.core.errors import InputError, MissingError, RejectedError
from nightbeam.ms import (
    MsExpectation,
    flagged_by_antenna,
    flagged_by_window,
    iterate_blocks,
    read_fields,
    read_summary,
    uv_range_m,
    verify_ms,
    write_model_column,
)


def change(ms, column, row, value):
    with open_table(ms, write=True) as table:
        table.putcell(column, row, value)


def test_summary_says_what_is_inside(made_ms):
    found = read_summary(made_ms)
    assert (found.rows, found.n_spw, found.n_chan, found.n_pol, found.n_times) == (24, 2, 4, 2, 2)
    assert found.active_antennas == (0, 1, 2)
    assert found.start_mjd == pytest.approx(60951.5 - 5 / 86400, abs=1e-9)
    assert found.end_mjd == pytest.approx(60951.5 + 15 / 86400, abs=1e-9)
    assert found.mid_mjd == pytest.approx(60951.5 + 5 / 86400, abs=1e-9)
    assert (found.freq_low_hz, found.freq_high_hz) == (1.3e9 - 5e5, 1.3135e9)
    assert found.flagged_fraction == pytest.approx(1 / 12)
    assert math.isnan(read_summary(made_ms, flags=False).flagged_fraction)
    (field,) = read_fields(made_ms)
    assert (field.ra_deg, field.dec_deg, field.frame) == (pytest.approx(71.5), pytest.approx(54.5), "ICRS")


def test_flags_are_counted_by_antenna_and_by_window(made_ms):
    # One of twelve rows is flagged: of each of its two antennas one in eight.
    assert flagged_by_antenna(made_ms) == {"1": 1 / 8, "2": 1 / 8, "3": 0.0}
    assert flagged_by_window(made_ms) == {0: 1 / 6, 1: 0.0}


def test_spacings_are_those_of_cross_correlations(made_ms):
    assert uv_range_m(made_ms) == (5.0 * 2, 5.0 * 23)


def test_a_sound_set_is_believed(made_ms):
    expect = MsExpectation(
        rows=24, n_spw=2, n_chan=4, n_pol=2, antennas=3, telescope="OVRO_MMA", ra_deg=71.5, dec_deg=54.5
    )
    assert verify_ms(made_ms, expect).rows == 24


@pytest.mark.parametrize(
    ("expect", "complaint"),
    [
        (MsExpectation(rows=25), "rows 24, wanted 25"),
        (MsExpectation(n_spw=16), "spectral windows 2, wanted 16"),
        (MsExpectation(telescope="VLA"), "telescope OVRO_MMA, wanted VLA"),
        (MsExpectation(ra_deg=71.6, dec_deg=54.5), r"is 209\.1 arcsec from the wanted"),
        (MsExpectation(columns=("CORRECTED_DATA",)), "no column CORRECTED_DATA"),
    ],
)
def test_a_set_that_is_not_what_was_expected_is_refused(made_ms, expect, complaint):
    with pytest.raises(InputError, match=complaint):
        verify_ms(made_ms, expect)


def test_too_many_flags_are_a_rejection_and_not_an_error_of_the_input(made_ms):
    with pytest.raises(RejectedError, match=r"8\.3 % of the cross-correlations are flagged, at most 5 %"):
        verify_ms(made_ms, MsExpectation(max_flagged_fraction=0.05))


@pytest.mark.parametrize("part", ["FIELD", "ANTENNA", "POINTING"])
def test_a_missing_sub_table_is_named(own_ms, part):
    shutil.rmtree(own_ms / part)
    with pytest.raises(MissingError, match=part):
        verify_ms(own_ms)


def test_no_set_at_all_is_missing(tmp_path):
    with pytest.raises(MissingError, match="does not exist"):
        read_summary(tmp_path / "none.ms")


def test_data_cut_short_are_noticed(own_ms):
    with open_table(own_ms) as table:
        name = own_ms / f"table.f{table.getdminfo('DATA')['SEQNR']}_TSM0"
    with name.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(InputError):
        verify_ms(own_ms)


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("DATA", np.full((4, 2), np.nan, np.complex64), "not finite"),
        ("WEIGHT", np.zeros(2, np.float32), "not positive"),
        ("UVW", np.full(3, np.nan), "not finite"),
    ],
)
def test_rows_that_would_spoil_a_solve_are_found(own_ms, column, value, complaint):
    change(own_ms, "FLAG", 23, np.zeros((4, 2), bool))
    change(own_ms, column, 23, value)
    with pytest.raises(InputError, match=f"row 23 .*{complaint}"):
        verify_ms(own_ms)


def test_a_window_of_zeros_is_found(own_ms):
    for row in range(12):
        change(own_ms, "DATA", row, np.zeros((4, 2), np.complex64))
    with pytest.raises(InputError, match="window 0 has no unflagged cross-correlation"):
        verify_ms(own_ms)


def test_falling_frequencies_are_found(own_ms):
    with open_table(own_ms / "SPECTRAL_WINDOW", write=True) as table:
        table.putcell("CHAN_FREQ", 0, table.getcell("CHAN_FREQ", 0)[::-1])
    with pytest.raises(InputError, match="fall inside window 0"):
        verify_ms(own_ms)


def test_a_model_fills_every_row(own_ms):
    write_model_column(
        own_ms, lambda block: (block.rows[:, None] + 1j * block.freqs_hz / 1e9)[:, :, None], block_rows=5
    )
    with open_table(own_ms) as table:
        model = table.getcol("MODEL_DATA")
    assert model.shape == (24, 4, 2)
    assert np.array_equal(model[:, 0, 1].real, np.arange(24))
    assert model[13, 2, 0].imag == pytest.approx(1.312)
    write_model_column(own_ms, 1.0)
    with open_table(own_ms) as table:
        assert (table.getcol("MODEL_DATA") == 1).all()
    assert read_summary(own_ms).has_model


@pytest.mark.parametrize(("model", "complaint"), [(np.nan, "not finite"), (lambda block: np.ones((7, 9, 9)), "wanted")])
def test_a_model_of_nonsense_is_refused(own_ms, model, complaint):
    with pytest.raises(InputError, match=complaint):
        write_model_column(own_ms, model)


def test_blocks_hold_one_window_each_and_all_rows(made_ms):
    blocks = list(iterate_blocks(made_ms, block_rows=7))
    assert [b.window for b in blocks] == [0, 0, 1, 1]
    assert np.array_equal(np.concatenate([b.rows for b in blocks]), np.arange(24))
    assert blocks[0].time_mjd[0] == pytest.approx(60951.5)
