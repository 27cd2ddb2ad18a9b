"""Data whose truth is known: groups of DSA-110 subbands, with faults on demand."""

from __future__ import annotations

from nightbeam.simulate.compute import expected_sources, stated_outcome
from nightbeam.simulate.files import read_sources, read_stations, read_truth, write_subband
from nightbeam.simulate.model import (
    FAULT_KINDS,
    ExpectedSource,
    Fault,
    SimulationSpec,
    SkySource,
    StatedOutcome,
    SubbandBlock,
    Truth,
    TruthArray,
    TruthArrival,
    TruthFault,
    TruthGroup,
)
from nightbeam.simulate.plan import plan_simulation
from nightbeam.simulate.worker import simulate_subbands

__all__ = [
    "FAULT_KINDS",
    "ExpectedSource",
    "Fault",
    "SimulationSpec",
    "SkySource",
    "StatedOutcome",
    "SubbandBlock",
    "Truth",
    "TruthArray",
    "TruthArrival",
    "TruthFault",
    "TruthGroup",
    "expected_sources",
    "plan_simulation",
    "read_sources",
    "read_stations",
    "read_truth",
    "simulate_subbands",
    "stated_outcome",
    "write_subband",
]
