"""Whatever the states and ages: nothing of a live run is touched, and doing it twice is doing it once."""

from __future__ import annotations

import runpy
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightbeam.contimg.housekeeping import tidy_up
from nightbeam.contimg.retention import Collecting, Facts, Held, Lease, Limits, Product, Scratch, Verb, decide

tidy = SimpleNamespace(**runpy.run_path(str(Path(__file__).resolve().parents[1] / "tidy_site.py")))
NOW, DAY = tidy.NOW, tidy.DAY

ages = st.one_of(st.floats(-2 * DAY, 400 * DAY), st.sampled_from([0.0, 900.0, DAY, 30 * DAY, 60 * DAY]))
maybe = st.sampled_from([True, False, None])
groups = st.integers(0, 5).map(tidy.group_name)
facts = st.builds(
    Facts,
    leases=st.lists(st.builds(Lease, groups, st.just("me"), ages.map(lambda a: NOW - a), maybe), max_size=5).map(tuple),
    collecting=st.lists(st.builds(Collecting, groups, ages.map(lambda a: NOW - a)), max_size=3).map(tuple),
    scratch=st.lists(
        st.builds(
            Scratch, st.just("/s/x"), ages.map(lambda a: NOW - a), maybe, st.booleans(), st.lists(groups).map(tuple)
        ),
        max_size=5,
    ).map(tuple),
    products=st.lists(
        st.builds(
            Product,
            st.sampled_from(["ms", "image", "log"]),
            st.just("/d/x"),
            st.none() | ages.map(lambda a: NOW - a),
            st.sampled_from(["", "its group is in_progress"]),
        ),
        max_size=5,
    ).map(tuple),
    held=st.lists(
        st.builds(
            Held,
            st.just("/q/x"),
            st.just("ms"),
            st.sampled_from(["held", "moving", "restoring", "deleting"]),
            ages.map(lambda a: NOW - a),
        ),
        max_size=5,
    ).map(tuple),
)
LIMITS = Limits(days={"ms": 30.0, "image": None, "log": 90.0})


@given(facts)
def test_nothing_from_the_future_or_of_the_living_is_named_but_to_be_left(found: Facts):
    actions = decide(found, LIMITS, NOW)
    taken = {a.subject for a in actions if a.verb is Verb.TAKE_BACK}
    assert taken <= {lease.group_id for lease in found.leases if lease.alive is not True}
    removed = sum(a.verb is Verb.REMOVE for a in actions)
    assert removed <= sum(not s.alive and not s.in_use for s in found.scratch)
    gone = sum(a.verb in (Verb.PUT_ASIDE, Verb.DELETE) for a in actions)
    assert gone <= sum(not p.keep for p in found.products) + len(found.held)
    young = replace(
        found,
        leases=tuple(replace(lease, seen_at=NOW + 1) for lease in found.leases if lease.alive is not False),
        collecting=tuple(replace(c, received_at=NOW + 1) for c in found.collecting),
        scratch=tuple(replace(s, changed_at=NOW + 1) for s in found.scratch),
        products=tuple(replace(p, since=NOW + 1) for p in found.products),
        held=tuple(replace(h, moved_at=NOW + 1) for h in found.held if h.state == "held"),
    )
    assert decide(young, LIMITS, NOW) == []


state = st.sampled_from(["collecting", "pending", "in_progress", "completed", "failed"])
row = st.fixed_dictionaries(
    {
        "state": state,
        "age_s": ages,
        "held_by": st.sampled_from(["alive", "dead", "elsewhere"]),
        "ms_age_s": st.none() | ages,
        "scratch_age_s": st.none() | ages,
        "log_age_s": st.none() | ages,
    }
)


def _build(site: Any, table: list[dict[str, Any]]) -> list[str]:
    """Make the table true; return the groups of live owners."""
    living = []
    for number, line in enumerate(table):
        group = tidy.group_name(number)
        tidy.put_group(site, group, line["state"], seen_at=NOW - line["age_s"], held_by=line["held_by"])
        owner = tidy.owner(line["held_by"])
        if line["ms_age_s"] is not None:
            tidy.put_ms(site, group, made_at=NOW - line["ms_age_s"])
        if line["scratch_age_s"] is not None:
            name = f"{owner.host}.{group}.image.pid{owner.pid}.abc12345"
            tidy.put_scratch(site.scratch_dir / name, NOW - line["scratch_age_s"])
        if line["log_age_s"] is not None:
            tidy.put_scratch(site.log(group, "image").parent, NOW - line["log_age_s"])
        fresh = line["age_s"] <= 900.0
        if line["state"] == "in_progress" and (
            line["held_by"] == "alive" or (line["held_by"] == "elsewhere" and fresh)
        ):
            living.append(group)
    return living


def _world(site: Any) -> dict[str, Any]:
    files = {path: what for path, what in tidy.tree(site.state_dir).items() if "sqlite3" not in path}
    files = {path: what for path, what in files.items() if "housekeeping." not in path}
    products = site.products()
    rows: dict[str, Any] = {row.group_id: row for row in site.queue().groups()}
    rows |= {row.path: row for row in products.ms_index()}
    return files | rows | {row.path: row for row in products.quarantine.rows()}


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(row, min_size=1, max_size=5))
def test_nothing_of_a_live_owner_changes_and_twice_is_once(table: list[dict[str, Any]]):
    with tempfile.TemporaryDirectory() as name:
        site = tidy.new_site(Path(name) / "state")
        living = _build(site, table)
        before = _world(site)
        tidy_up(site, now=NOW, force=True, tools=tidy.TOOLS)
        after = _world(site)
        for group in living:
            mine = {key for key in before if group in key}
            assert {key: after[key] for key in mine} == {key: before[key] for key in mine}
            assert {key for key in after if group in key} == mine
        assert tidy_up(site, now=NOW, force=True, tools=tidy.TOOLS).done == ()
        assert _world(site) == after
