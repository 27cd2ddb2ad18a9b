"""What is read, what has shrunk, which snapshots stay."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.catalog import ExperimentRow, SyncState
from nightbeam.elog.model import Resource, Summary
from nightbeam.elogsync.compute import (
    excluded,
    kept_snapshots,
    make_plan,
    shrunk,
    snapshot_name,
    snapshot_time,
)
from nightbeam.elogsync.model import Policy, Reason

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LISTS = (Resource.ENTRIES, Resource.RUNS, Resource.FILES, Resource.WORKFLOWS)


def row(key, **changes):
    blank = dict.fromkeys(ExperimentRow.__dataclass_fields__)
    return ExperimentRow(**(blank | {"experiment_id": key, "name": key, "status": "ok"} | changes))


def state(key, resource, *, hours=1.0, **changes):
    when = NOW - timedelta(hours=hours)
    found = SyncState(key, resource, "ok", None, when, when, when, when, "x", 1, 0)
    return replace(found, **changes)


def states(key, **changes):
    return {key: {resource: state(key, resource, **changes) for resource in LISTS}}


def plan(policy=None, *, recent=(), summaries=(), known=(), states=None):
    return make_plan(policy or Policy(), recent=recent, summaries=summaries, known=known, states=states or {}, now=NOW)


def test_a_recent_experiment_that_is_not_known_is_read_whole():
    (one,) = plan(recent=["cxi1"], summaries=[Summary("cxi1", "cxi1")]).planned
    assert one.reasons == (Reason.NEW, Reason.RECENT)
    assert set(one.needs) == set(LISTS)
    assert all(need.full for need in one.needs.values())


def test_a_questionnaire_is_asked_for_where_there_is_a_proposal():
    listed = Summary("cxilw4021", "cxilw4021", params={"PNR": "LW40"})
    (one,) = plan(recent=["cxilw4021"], summaries=[listed]).planned
    assert Resource.QUESTIONNAIRE in one.needs


def test_a_recent_experiment_without_news_is_asked_for_entries_of_the_window_and_runs():
    (one,) = plan(recent=["a"], summaries=[Summary("a", "a")], known=[row("a")], states=states("a")).planned
    assert set(one.needs) == {Resource.ENTRIES, Resource.RUNS}
    assert one.needs[Resource.ENTRIES].since == NOW - timedelta(hours=2)


def test_more_runs_or_files_than_before_are_read_though_nobody_calls_it_recent():
    summaries = [Summary("a", "a", run_count=5, last_run=5), Summary("b", "b", total_files=7, total_gib=1.5)]
    found = plan(summaries=summaries, known=[row("a"), row("b")], states=states("a") | states("b"))
    assert [(one.experiment_id, one.reasons) for one in found.planned] == [
        ("a", (Reason.CHANGED,)),
        ("b", (Reason.CHANGED,)),
    ]
    assert Resource.FILES not in found.planned[0].needs
    assert Resource.FILES in found.planned[1].needs


def test_what_was_not_read_whole_for_a_week_is_due_the_oldest_first_and_not_all_at_once():
    known = [row(f"e{n}") for n in range(5)]
    old = {key: found for n in range(5) for key, found in states(f"e{n}", hours=200 + n).items()}
    summaries = [Summary(f"e{n}", f"e{n}") for n in range(5)]
    found = plan(Policy(due_most=2), summaries=summaries, known=known, states=old)
    assert [one.experiment_id for one in found.planned] == ["e3", "e4"]
    assert all(need.full for one in found.planned for need in one.needs.values())
    assert found.postponed == 3


def test_a_name_with_spaces_is_not_the_id():
    found = plan(Policy(names=("Sample Delivery System",)), summaries=None)
    assert [(one.experiment_id, one.name) for one in found.planned] == [
        ("Sample_Delivery_System", "Sample Delivery System")
    ]
    assert Resource.INFO in found.planned[0].needs


def test_patterns_match_whole_names_in_any_case_and_what_is_asked_for_is_read_in_spite_of_them():
    assert excluded("XCSDAQ02", ["xcs*"])
    assert not excluded("mfxcs01", ["xcs*"])
    found = plan(Policy(exclude=("x*",), names=("xpp2",)), recent=["xpp1", "xpp2", "mfx1"], summaries=None)
    assert [one.name for one in found.planned] == ["mfx1", "xpp2"]
    assert found.excluded == ("xpp1",)


def test_an_experiment_that_is_no_longer_listed_is_asked_for_itself_and_for_what_is_due():
    (one,) = plan(known=[row("a")], states=states("a")).planned
    assert one.reasons == (Reason.VANISHED,)
    assert set(one.needs) == {Resource.INFO}
    (old,) = plan(known=[row("a")], states=states("a", hours=200)).planned
    assert set(old.needs) == {Resource.INFO, *LISTS}


def test_what_is_configured_or_all_that_there_is_is_read_although_it_is_not_listed():
    for policy in (Policy(names=("a",)), Policy(full=True)):
        (one,) = plan(policy, known=[row("a")], states=states("a")).planned
        assert {Resource.INFO, Resource.ENTRIES, Resource.RUNS} <= set(one.needs)


def test_a_questionnaire_that_was_never_asked_for_is_owed_however_quiet_the_experiment_is():
    listed = Summary("cxilw4021", "cxilw4021", params={"PNR": "LW40"})
    (one,) = plan(summaries=[listed], known=[row("cxilw4021")], states=states("cxilw4021")).planned
    assert (one.reasons, set(one.needs)) == ((Reason.DUE,), {Resource.QUESTIONNAIRE})


def test_jobs_are_owed_from_the_day_on_which_they_are_wanted():
    quiet = {"summaries": [Summary("a", "a")], "known": [row("a")], "states": states("a")}
    assert plan(**quiet).planned == ()
    (one,) = plan(Policy(jobs=True), **quiet).planned
    assert set(one.needs) == {Resource.JOBS}


def test_an_experiment_that_could_not_be_asked_for_itself_is_asked_again():
    held = states("a")
    held["a"][Resource.INFO] = state("a", Resource.INFO, status="failed", error="503", failures=1)
    (one,) = plan(summaries=[Summary("a", "a")], known=[row("a")], states=held).planned
    assert (one.reasons, set(one.needs)) == ((Reason.FAILED,), {Resource.INFO})


def test_a_second_attempt_reads_what_the_service_counts_beside_what_failed():
    held = states("a") | states("b")
    held["a"][Resource.ENTRIES] = state("a", Resource.ENTRIES, status="failed", error="503", failures=1)
    grown = [Summary(key, key, run_count=4, last_run=4, total_files=9, total_gib=1.0) for key in ("a", "b")]
    (one,) = plan(Policy(only_failed=True), summaries=grown, known=[row("a"), row("b")], states=held).planned
    assert (one.experiment_id, set(one.needs)) == ("a", {Resource.ENTRIES, Resource.RUNS, Resource.FILES})


def test_a_questionnaire_that_never_comes_does_not_make_an_experiment_the_oldest():
    known, old = [row("a"), row("b")], states("a", hours=200) | states("b", hours=300)
    failed = state("a", Resource.QUESTIONNAIRE, status="failed", error="500", failures=9, full_at=None)
    old["a"][Resource.QUESTIONNAIRE] = failed
    summaries = [Summary(key, key) for key in ("a", "b")]
    assert [
        one.experiment_id for one in plan(Policy(due_most=1), summaries=summaries, known=known, states=old).planned
    ] == ["b"]


def test_who_is_active_and_may_not_be_read_is_left_alone_unless_somebody_asks_for_it():
    lost = [row("b", status="no access")]
    assert plan(recent=["a", "b"], known=lost, states=states("b")).planned == ()
    found = plan(Policy(names=("a", "b")), recent=["a", "b"], known=lost, states=states("b"))
    assert [one.experiment_id for one in found.planned] == ["a", "b"]
    listed = plan(recent=["b"], summaries=[Summary("b", "b")], known=lost, states=states("b"))
    assert [one.experiment_id for one in listed.planned] == ["b"]
    without = plan(recent=["a", "b"], summaries=None, known=lost, states=states("b"))
    assert [one.experiment_id for one in without.planned] == ["a", "b"]


def test_without_a_list_nothing_vanishes():
    assert plan(summaries=None, known=[row("a")], states=states("a")).planned == ()


def test_what_failed_is_tried_again():
    failed = states("a")
    failed["a"][Resource.FILES] = replace(failed["a"][Resource.FILES], status="failed")
    listed = [Summary("a", "a")]
    (one,) = plan(summaries=listed, known=[row("a")], states=failed).planned
    assert one.reasons == (Reason.FAILED,)
    assert set(one.needs) == {Resource.FILES}


@pytest.mark.parametrize(("failures", "hours", "again"), [(1, 1, True), (2, 1, True), (3, 1, False), (9, 25, True)])
def test_a_questionnaire_that_has_failed_again_and_again_is_tried_once_a_day(failures, hours, again):
    listed = Summary("cxilw4021", "cxilw4021", params={"PNR": "LW40"})
    held = states("cxilw4021")
    held["cxilw4021"][Resource.QUESTIONNAIRE] = state(
        "cxilw4021", Resource.QUESTIONNAIRE, hours=hours, status="failed", full_at=None, failures=failures
    )
    found = plan(summaries=[listed], known=[row("cxilw4021")], states=held).planned
    assert [set(one.needs) for one in found] == ([{Resource.QUESTIONNAIRE}] if again else [])


def test_what_is_gone_is_left_in_peace_until_it_is_listed_again():
    gone = [row("a", status="gone")]
    assert plan(known=gone, states=states("a")).planned == ()
    (one,) = plan(summaries=[Summary("a", "a")], known=gone, states=states("a")).planned
    assert one.reasons == (Reason.NEW,)


# --- shrinking and snapshots


def test_a_table_that_lost_a_third_or_all_has_shrunk_and_a_few_rows_are_not_spoken_of():
    assert shrunk({"runs": 300}, {"runs": 200}, most=0.1) == ["runs has 200 rows, the last one had 300"]
    assert shrunk({"runs": 300}, {"runs": 290}, most=0.1) == []
    assert shrunk({"runs": 12}, {"runs": 3}, most=0.1) == []
    assert shrunk({"runs": 3}, {}, most=0.1) == ["runs has 0 rows, the last one had 3"]
    assert shrunk({"runs": 3}, {"runs": 4, "files": 9}, most=0.1) == []


def test_a_snapshots_name_says_when():
    when = datetime(2026, 2, 3, 4, 5)
    assert snapshot_name(when) == "elog_2026_0203_0405.db"
    assert snapshot_time("elog_2026_0203_0405.db") == when
    assert snapshot_time("elog_2026_1340_0405.db") is None
    assert snapshot_time("elog_2026_0203_0405.db.part") is None


def test_of_a_year_of_hourly_snapshots_some_of_each_age_stay():
    now = datetime(2026, 11, 21, 12)
    names = {snapshot_name(now - timedelta(hours=h)) for h in range(24 * 365)}
    kept = kept_snapshots(names, now=now)
    ages = sorted((now - snapshot_time(name)) / timedelta(days=1) for name in kept)
    assert len([age for age in ages if age <= 2]) == 49
    assert 11 <= len([age for age in ages if 2 < age <= 14]) <= 13
    assert 6 <= len([age for age in ages if 14 < age <= 61]) <= 10
    assert 9 <= len([age for age in ages if age > 61]) <= 11
    assert len(kept) < 90


@pytest.mark.slow
@given(st.lists(st.integers(0, 1000 * 24 * 60), max_size=60), st.integers(0, 500 * 24 * 60))
def test_the_newest_and_foreign_files_always_stay_and_what_stayed_stays_until_it_is_older(minutes, later):
    now = datetime(2026, 11, 21, 12)
    names = {snapshot_name(now - timedelta(minutes=m)) for m in minutes} | {"notes.txt"}
    kept = kept_snapshots(names, now=now)
    assert "notes.txt" in kept
    snapshots = {name for name in names if snapshot_time(name)}
    if snapshots:
        assert max(snapshots) in kept
    assert kept_snapshots(kept, now=now) == kept  # doing it twice removes no more
    assert kept_snapshots(kept, now=now + timedelta(minutes=later)) <= kept
