"""Whatever goes wrong on purpose: names, arrivals and truth agree, and the same spec gives the same bytes."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nightbeam.core.keys import SubbandName
from nightbeam.simulate import (
    FAULT_KINDS,
    Fault,
    SimulationSpec,
    Truth,
    plan_simulation,
    read_truth,
    simulate_subbands,
    stated_outcome,
)
from nightbeam.simulate.files import write_truth

SPEC = SimulationSpec(groups=3, antennas=3, channels=2, integrations=3, subbands=4, sources=0)
STATIONS = plan_simulation(SPEC).array.stations
OF_FILES = ("used", "duplicate", "bad", "ignored")
VALUES = {
    "late-subband": ["0", "700", "5000"],
    "duplicate-subband": ["renamed", "rewritten"],
    "truncated-subband": ["0.2", "0.99"],
    "nan-block": ["0.01", "0.9"],
    "restart-gap": ["412", "605/1", "620/3"],
    "clock-jump": ["-309", "0", "82", "618"],
    "wrong-pointing": ["-1", "0.25"],
    "foreign-file": ["text", "no-header", "shape", "extra-subband", "spl", "hidden", "incomplete"],
}


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    kind = draw(st.sampled_from(FAULT_KINDS))
    numbers = st.sampled_from(STATIONS) if kind == "dead-antenna" else st.integers(0, 2)
    number = None if kind == "restart-gap" else draw(st.none() | numbers)
    value = draw(st.none() | st.sampled_from(VALUES[kind])) if kind in VALUES else None
    return Fault(kind, number, draw(st.none() | st.integers(0, 2)), value)


specs = st.builds(
    lambda some, seed, rate, arrivals: replace(SPEC, faults=tuple(some), seed=seed, fault_rate=rate, arrivals=arrivals),
    st.lists(faults(), max_size=8),
    st.integers(0, 5),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(["regular", "real"]),
)


def _agree(truth: Truth) -> None:
    names = Counter(arrival.name for arrival in truth.arrivals)
    again = Counter(a.name for a in truth.arrivals if a.reason == "same path again")
    bad_again = Counter(e.files[0] for e in truth.events if "rewritten" in e.fault)
    assert all(count == 1 + bad_again[name] for name, count in names.items())
    assert again == bad_again
    assert [a.arrival_s for a in truth.arrivals] == sorted(a.arrival_s for a in truth.arrivals)
    assert set(truth.faults) >= {event.fault for event in truth.events}
    for event in truth.events:
        assert set(event.files) <= set(names)
        assert event.file_outcome in (None, *OF_FILES)
    for arrival in truth.arrivals:
        assert arrival.outcome in OF_FILES
        assert bool(arrival.reason) == (arrival.outcome != "used")
        name = SubbandName.parse(arrival.name)
        if arrival.subband is not None:
            assert name is not None
            assert name.subband == arrival.subband


def _groups_agree(truth: Truth) -> None:
    ids = [group.group_id for group in truth.groups]
    assert sorted(ids) == ids
    for group in truth.groups:
        here = [a for a in truth.arrivals if a.group_id == group.group_id]
        used = [a.subband for a in here if a.outcome == "used"]
        assert sorted(used) == sorted(group.usable)
        first = {a.name for a in here if a.subband is not None} - {
            name for e in truth.events if "renamed" in e.fault for name in e.files
        }
        assert first == set(group.files)
        present = {SubbandName.parse(name).subband for name in group.files}  # type: ignore[union-attr]
        assert present | set(group.missing) == set(range(truth.array.subbands))
        done_s = (group.end_jd - truth.groups[0].start_jd) * 86400 + 0.5 * 12.884901888
        assert all(a.arrival_s >= done_s - 1e-3 for a in here)
        lacks = any(e.group_outcome != "completed" for e in truth.events if e.group_id == group.group_id)
        assert lacks == (group.outcome != "completed") == bool(group.reason)
        assert stated_outcome(truth, group.group_id).used == group.usable


@given(specs)
@settings(max_examples=60)
def test_names_arrivals_and_outcomes_agree_whatever_goes_wrong(spec: SimulationSpec):
    truth = plan_simulation(spec)
    _agree(truth)
    _groups_agree(truth)


@given(specs)
@settings(max_examples=25)
def test_what_was_settled_gives_the_same_plan_again(spec: SimulationSpec):
    # So many groups that real arrivals have breaks among them.
    spec = replace(spec, groups=20)
    truth = plan_simulation(spec)
    settled = tuple(Fault.parse(text) for text in truth.faults)
    assert plan_simulation(replace(spec, fault_rate=0.0, faults=settled)) == truth


@given(specs)
@settings(max_examples=25)
def test_a_truth_survives_the_disk(spec: SimulationSpec):
    truth = plan_simulation(spec)
    with tempfile.TemporaryDirectory() as directory:
        write_truth(Path(directory), truth)
        assert read_truth(Path(directory)) == truth


@given(specs)
@settings(max_examples=6)
def test_the_same_spec_gives_the_same_bytes_and_no_file_that_the_truth_does_not_know(spec: SimulationSpec):
    with tempfile.TemporaryDirectory() as directory:
        one, two = Path(directory) / "one", Path(directory) / "two"
        came: list[str] = []
        truth = simulate_subbands(one, spec, on_file=lambda path: came.append(path.name))
        assert came == [arrival.name for arrival in truth.arrivals]
        simulate_subbands(two, spec)
        assert {path.name for path in one.iterdir()} == {"truth.json", *(a.name for a in truth.arrivals)}
        assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}
