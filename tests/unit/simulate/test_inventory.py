"""The embedded tables of real observations, against the real names and against what is drawn from them."""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nightbeam.core.keys import SubbandName
from nightbeam.simulate import Fault, SimulationSpec, plan_simulation
from nightbeam.simulate.inventory import BREAKS, SUBBANDS_OF_INCOMPLETE, draw_offsets, draw_succession

#: First and last name of an observation in seconds, and how many subbands it has.
Observation = tuple[float, float, int]
TINY = SimulationSpec(antennas=2, channels=1, integrations=24, sources=0)


def _real(shared_data: Path) -> list[Observation]:
    with (shared_data / "dsa110" / "subband_name_inventory_2026.csv").open() as table:
        rows = [r for r in csv.DictReader(table) if r["source"] == "fs" and int(r["bytes"])]
    names = sorted((datetime.fromisoformat(r["name_timestamp"]).timestamp(), int(r["n_files"])) for r in rows)
    groups: list[list[tuple[float, int]]] = []
    for when, files in names:
        if not groups or when - groups[-1][-1][0] > 90:
            groups.append([])
        groups[-1].append((when, files))
    return [(g[0][0], g[-1][0], sum(n for _, n in g)) for g in groups]


def _simulated(groups: int, seed: int) -> list[Observation]:
    truth = plan_simulation(replace(TINY, groups=groups, arrivals="real", seed=seed))
    found = []
    for group in truth.groups:
        stamps = [SubbandName.parse(name).stamp.timestamp() for name in group.files]  # type: ignore[union-attr]
        found.append((min(stamps), max(stamps), len(stamps)))
    return found


def _steps(observations: list[Observation]) -> Counter[str]:
    """Count the intervals between the last names of neighbours, hours of standing still left out."""
    ranges = {"cadence": (300, 320), "settling": (390, 405), "resuming": (450, 480), "restart": (570, 630)}
    found: Counter[str] = Counter()
    for (_, one, m), (_, two, n) in pairwise(observations):
        # The last name is that of the latest clock, if there are enough to tell.
        if m >= 8 and n >= 8 and two - one < 2000:
            kinds = [kind for kind, (low, high) in ranges.items() if low <= two - one <= high]
            found[kinds[0] if kinds else "stop"] += 1
    return found


def _spreads(observations: list[Observation]) -> Counter[tuple[int, int]]:
    ranges = [(0, 0), (1, 1), (2, 12), (13, 22), (59, 82)]
    spreads = [last - first for first, last, n in observations if n == 16]
    return Counter((low, high) for s in spreads for low, high in ranges if low <= s <= high)


def _agree(found: int, of: int, real: int, of_real: int) -> bool:
    """Whether two counts may come of one chance: within 4.5 standard deviations of their difference."""
    chance = (found + real) / (of + of_real)
    sigma = math.sqrt(max(chance * (1 - chance), 1e-9) * (1 / of + 1 / of_real))
    return abs(found / of - real / of_real) <= 4.5 * sigma


@pytest.fixture(scope="module")
def drawn() -> list[list[Observation]]:
    return [_simulated(600, seed) for seed in range(3)]


def test_what_is_drawn_is_distributed_as_the_real_inventory(shared_data: Path, drawn: list[list[Observation]]):
    real = _real(shared_data)
    assert len(real) == 2231
    for count in (_spreads, _steps):
        wanted = count(real)
        found: Counter[object] = Counter()
        for night in drawn:
            found.update(count(night))
        for key in wanted | found:
            assert _agree(found[key], found.total(), wanted[key], wanted.total()), (key, found, wanted)
    incomplete = sum(n < 16 for night in drawn for _, _, n in night)
    assert _agree(incomplete, sum(map(len, drawn)), sum(n < 16 for _, _, n in real), len(real))


def test_the_tables_are_those_of_the_inventory(shared_data: Path):
    real = _real(shared_data)
    assert Counter(n for _, _, n in real if n < 16) == SUBBANDS_OF_INCOMPLETE
    steps = Counter(round(two - one) for (_, one, _), (_, two, _) in pairwise(real))
    for table in BREAKS.values():
        assert {seconds: steps[seconds] for seconds in table} == table


def test_spreads_follow_restarts():
    rng = np.random.default_rng(5)
    after = {kind: [draw_offsets(rng, 16, kind).max() for _ in range(300)] for kind in ("cadence", "restart", "stop")}  # type: ignore[arg-type]
    assert np.median(after["cadence"]) == 1
    assert np.median(after["restart"]) == 16
    assert max(after["stop"]) >= 59


@pytest.mark.parametrize("subbands", [1, 2, 5, 16])
def test_no_hole_between_real_names_is_longer_than_20_s(subbands: int):
    rng = np.random.default_rng(6)
    for _ in range(200):
        offsets = draw_offsets(rng, subbands, "stop")
        assert (len(offsets), offsets.min()) == (subbands, 0)
        assert np.diff(np.sort(offsets)).max(initial=0) <= 20


def test_a_group_that_lacks_subbands_keeps_at_least_one():
    rng = np.random.default_rng(7)
    for subbands in (2, 3, 16):
        lacking = [one.missing for one in draw_succession(rng, 3000, subbands=subbands) if one.missing]
        assert lacking
        assert all(0 < len(missing) < subbands for missing in lacking)
        assert all(0 <= sb < subbands for missing in lacking for sb in missing)


def test_real_breaks_and_gaps_are_faults_like_others_and_files_of_wide_names_come_apart():
    truth = plan_simulation(replace(TINY, groups=300, arrivals="real", seed=2))
    kinds = Counter(event.kind for event in truth.events)
    assert kinds["restart-gap"] > 20
    assert kinds["missing-subband"] == sum(len(g.missing) for g in truth.groups) > 0
    assert all(g.integrations == 24 for g in truth.groups)
    for group in truth.groups:
        came = [a.arrival_s for a in truth.arrivals if a.group_id == group.group_id]
        stamps = [SubbandName.parse(name).stamp.timestamp() for name in group.files]  # type: ignore[union-attr]
        assert max(came) - min(came) == pytest.approx(max(stamps) - min(stamps), abs=4.0)


def test_a_restart_that_was_asked_for_stands_in_the_place_of_a_drawn_one():
    spec = replace(TINY, groups=30, arrivals="real", seed=2)
    broken = next(k for k in range(30) if f"@{k}" in str([f for f in plan_simulation(spec).faults if "gap" in f]))
    fault = Fault.parse(f"restart-gap=1000/24@{broken}")
    truth = plan_simulation(replace(spec, faults=(fault,)))
    assert [f for f in truth.faults if f.endswith(f"@{broken}") and "gap" in f] == [str(fault)]
    one, two = truth.groups[broken : broken + 2]
    assert (two.start_jd - one.start_jd) * 86400 == pytest.approx(1000, abs=1e-3)


def test_the_calibrators_group_is_never_incomplete_by_chance():
    for seed in range(60):
        spec = replace(TINY, groups=2, arrivals="real", seed=seed, calibrator="3C48", calibrator_group=1, subbands=4)
        assert plan_simulation(spec).groups[1].missing == ()
