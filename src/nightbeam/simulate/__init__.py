"""Data whose truth is known: groups of DSA-110 subbands, with faults on demand."""

from __future__ import annotations

from nightbeam.simulate.compute import expected_sources
from nightbeam.simulate.files import read_sources, read_stations, read_truth, write_subband
from nightbeam.simulate.model import (
    FAULT_KINDS,
    ExpectedSource,
    Fault,
    SimulationSpec,
    SkySource,
    SubbandBlock,
    Truth,
    TruthArray,
    TruthGroup,
)
from nightbeam.simulate.worker import plan_simulation, simulate_subbands

__all__ = [
    "FAULT_KINDS",
    "ExpectedSource",
    "Fault",
    "SimulationSpec",
    "SkySource",
    "SubbandBlock",
    "Truth",
    "TruthArray",
    "TruthGroup",
    "expected_sources",
    "plan_simulation",
    "read_sources",
    "read_stations",
    "read_truth",
    "simulate_subbands",
    "write_subband",
]
