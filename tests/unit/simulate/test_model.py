"""How faults are written, and what a receptor's truth says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nightbeam.core.errors import UsageError
from nightbeam.simulate import Fault, SimulationSpec, plan_simulation
from nightbeam.simulate.model import Bandpass, Gain


@pytest.mark.parametrize(
    "text",
    [
        "missing-subband",
        "late-subband:3",
        "missing-subband:5@1",
        "missing-subband@1",
        "dead-antenna:24",
        "clock-jump:3=-82@0",
        "restart-gap=412/3@2",
        "truncated-subband=0.5",
        "foreign-file:2=no-header",
    ],
)
def test_a_fault_prints_as_it_was_written(text: str):
    assert str(Fault.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fire",
        "missing-subband:",
        "missing-subband:x",
        "missing-subband@",
        "late-subband:-1",
        "zero-byte=",
        "zero-byte@1:2",
    ],
)
def test_a_fault_nobody_knows_is_refused_with_the_list_of_those_there_are(text: str):
    with pytest.raises(UsageError, match="no fault") as caught:
        Fault.parse(text)
    assert "missing-subband, late-subband, dead-antenna" in caught.value.fix


def test_a_receptor_multiplies_gain_bandpass_and_delay():
    truth = plan_simulation(SimulationSpec(antennas=2, channels=1, integrations=1, sources=0))
    station = str(truth.array.stations[0])
    low, high = 1.0e9, 1.1e9
    truth = dataclasses.replace(
        truth,
        band_hz=(low, high),
        gains={station: {"XX": Gain(0.5, 90.0)}},
        bandpass={station: {"XX": Bandpass((0.1, 0.0), (0.0, 30.0))}},
        delays_ns={station: {"XX": 5.0}},
    )
    response = truth.receptor_gain(np.array([low, 0.5 * (low + high), high]), int(station), "XX")
    # x = 0, 1/2, 1: cos(pi x) = 1, 0, -1 and cos(2 pi x) = 1, -1, 1; half the band times 5 ns is a quarter turn.
    assert np.abs(response) == pytest.approx([0.55, 0.5, 0.45])
    assert np.degrees(np.angle(response)) == pytest.approx([90 + 30 - 90, 90 - 30, 90 + 30 + 90 - 360])


def test_without_gains_the_response_is_one():
    truth = plan_simulation(SimulationSpec(antennas=2, channels=1, integrations=1, sources=0, gains=False))
    assert truth.receptor_gain(np.array([1.4e9]), truth.array.stations[0], "XX") == pytest.approx([1.0])
