"""Events and hits of each run."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from nightbeam.cxi.tallies import MOST_RUNS, RunTallies
from nightbeam.stream.model import BatchHeader


def header(run: int | None, experiment: str | None = "mfxl1033223") -> Any:
    empty = {f.name: None for f in dataclasses.fields(BatchHeader)}
    return BatchHeader(**{**empty, "run": run, "experiment": experiment})  # type: ignore[arg-type]


def tallies(*runs: int | None) -> RunTallies:
    found = RunTallies()
    for k, run in enumerate(runs):
        found.add(header(run), events=10, hits=3, peaks=30, now=f"2026-11-21T00:00:{k:02d}Z")
    return found


def test_batches_of_a_run_are_added_up_and_the_run_heard_of_last_comes_first():
    one, other = tallies(1, 2, 1).newest()
    assert (one.run, one.events, one.hits, one.peaks, one.hit_rate) == (1, 20, 6, 60, 0.3)
    assert (one.since, one.until) == ("2026-11-21T00:00:00Z", "2026-11-21T00:00:02Z")
    assert other.run == 2


def test_the_same_number_of_another_experiment_is_another_run():
    found = tallies(7)
    found.add(header(7, "cxilx0001"), events=1, hits=0, peaks=0, now="x")
    assert [(t.experiment, t.hit_rate) for t in found.newest()] == [("cxilx0001", 0.0), ("mfxl1033223", 0.3)]


def test_batches_without_a_run_are_counted_as_such():
    (one,) = tallies(None, None).newest()
    assert (one.run, one.events) == (None, 20)


def test_a_run_of_no_events_has_no_hit_rate():
    found = RunTallies()
    found.add(header(1), events=0, hits=0, peaks=0, now="x")
    assert found.newest()[0].hit_rate is None


def test_the_run_heard_of_longest_ago_is_let_go():
    found = tallies(*range(MOST_RUNS), 0, MOST_RUNS)
    runs = [t.run for t in found.newest()]
    assert len(runs) == MOST_RUNS
    assert runs[:2] == [MOST_RUNS, 0]
    assert 1 not in runs


def test_tallies_come_back_as_they_were_written():
    found = tallies(1, None, 3, 1)
    back = RunTallies.from_json(json.loads(json.dumps(found.to_json())))
    assert back.newest() == found.newest()


@pytest.mark.parametrize(
    "rows", [None, {}, "text", [1, None, "x"], [{"run": -1}], [{"experiment": 3, "run": 1, "events": True}]]
)
def test_what_is_no_tally_is_left_out(rows: Any):
    assert RunTallies.from_json(rows).newest() == []
