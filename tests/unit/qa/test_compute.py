from pathlib import Path

import numpy as np
import pytest

from nightbeam.gains.model import CalSolutions
from nightbeam.qa.compute import amplitudes_by_spacing, gain_points, waterfall


def solutions(values, flags=None, *, antenna, spw, freqs, names=("103", "7", "11")):
    values = np.asarray(values)
    rows = len(values)
    return CalSolutions(
        path=Path("x_bpcal"),
        kind_name="B Jones",
        antennas=names,
        antenna=np.array(antenna),
        spw=np.array(spw),
        field_id=np.zeros(rows, int),
        refant=np.zeros(rows, int),
        time_mjd=60951.5 + np.arange(rows) / 1440.0,
        values=values,
        flags=np.zeros(values.shape, bool) if flags is None else np.asarray(flags),
        snr=np.ones(values.shape),
        freqs_hz=tuple(np.array(f) for f in freqs),
    )


def test_a_bandpass_lies_by_antenna_and_rising_frequency():
    # two windows of one channel, the second one lower; antenna 1 has no solution and is left out
    table = solutions(
        [[[2.0 + 0j]], [[1j]], [[5.0]], [[3.0]], [[4.0]], [[6.0]]],
        [[[False]], [[False]], [[True]], [[False]], [[False]], [[True]]],
        antenna=[0, 0, 1, 2, 2, 1], spw=[0, 1, 0, 0, 1, 1], freqs=[[1.4e9], [1.3e9]],
    )  # fmt: skip
    found = waterfall(table)
    assert found.antennas == ("103", "11")
    assert found.freq_mhz.tolist() == [1300.0, 1400.0]
    assert found.amplitude[0].tolist() == [[1.0, 2.0], [4.0, 3.0]]
    assert found.phase_deg[0, 0].tolist() == pytest.approx([90.0, 0.0])


def test_a_missing_channel_is_nan_and_repeated_times_are_averaged():
    table = solutions(
        [[[2.0], [2.0]], [[4.0], [9.0]]], [[[False], [True]], [[False], [True]]],
        antenna=[0, 0], spw=[0, 0], freqs=[[1.3e9, 1.4e9]],
    )  # fmt: skip
    found = waterfall(table)
    assert found.amplitude[0, 0, 0] == 3.0
    assert np.isnan(found.amplitude[0, 0, 1])


def test_gains_keep_their_antenna_and_their_minute():
    table = solutions(
        [[[2.0, 2j]], [[3.0, 4.0]]], [[[False, False]], [[False, True]]],
        antenna=[2, 0], spw=[0, 0], freqs=[[1.4e9]],
    )  # fmt: skip
    points = gain_points(table)
    assert points.names == ("103", "11")
    assert points.antenna.tolist() == [1, 1, 0]
    assert points.polarization.tolist() == [0, 1, 0]
    assert points.amplitude.tolist() == [2.0, 2.0, 3.0]
    assert points.phase_deg.tolist() == [0.0, 90.0, 0.0]
    assert points.minutes.tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-4)


def test_amplitudes_fall_into_bins_of_equal_number():
    spacing = np.arange(40.0)
    binned = amplitudes_by_spacing(spacing, np.where(spacing < 20, 1.0, 3.0), bins=2)
    assert binned.median.tolist() == [1.0, 3.0]
    assert binned.spacing_klambda.tolist() == [9.5, 29.5]
    assert (binned.low <= binned.high).all()


def test_what_is_not_finite_falls_into_no_bin():
    binned = amplitudes_by_spacing(np.arange(20.0), np.array([1.0] * 19 + [np.inf]))
    assert binned.high.max() == 1.0
