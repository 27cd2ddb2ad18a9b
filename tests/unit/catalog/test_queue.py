"""The queue: states, owners, attempts, dispatch."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import FileFact, GroupFact, Owner, Queue, Recorded
from nightbeam.core.errors import BusyError, InputError, MissingError

G = "2025-10-02T01:02:03"
MJD = 60950.043


@pytest.fixture
def queue(database_url: str, open_new: Callable[..., Queue]) -> Queue:
    return open_new(Queue, database_url)


def fill(queue: Queue, group_id: str = G, n: int = 16, *, mjd: float = MJD, first: int = 0, **keywords: float) -> None:
    files = [FileFact(sb, Path(f"/in/{group_id}_sb{sb:02d}.hdf5")) for sb in range(first, first + n)]
    queue.record(GroupFact(group_id, mjd, dec_deg=33.0), files, now=keywords.get("now"))


ME, YOU = Owner("me", "here", 1, 1.0), Owner("you", "there", 2, 1.0)


def test_a_group_collects_until_its_last_subband(queue: Queue):
    fill(queue, n=15)
    assert (queue.group(G).state, queue.group(G).subbands_present) == ("collecting", 15)
    fill(queue, n=1, first=15)
    row = queue.group(G)
    assert (row.state, row.processing_stage, row.subbands_present) == ("pending", "processing_fresh", 16)
    assert (row.start_mjd, row.dec_deg) == (MJD, 33.0)


def test_the_same_path_is_nothing_new_and_another_one_a_duplicate(queue: Queue):
    fill(queue, n=2)
    again = queue.record(GroupFact(G, MJD), [FileFact(1, Path(f"/in/{G}_sb01.hdf5"))])
    other = queue.record(GroupFact(G, MJD), [FileFact(1, Path("/in/later_sb01.hdf5"))])
    assert list(again.values()) == [Recorded.KNOWN]
    assert list(other.values()) == [Recorded.DUPLICATE]
    assert queue.subbands(G)[1].path == f"/in/{G}_sb01.hdf5"
    (duplicate,) = queue.duplicates(G)
    assert (duplicate.path, duplicate.first_path) == ("/in/later_sb01.hdf5", f"/in/{G}_sb01.hdf5")
    known = {f"/in/{G}_sb00.hdf5", f"/in/{G}_sb01.hdf5", "/in/later_sb01.hdf5"}
    assert queue.known_among([*known, "/in/never_came.hdf5", '/in/it\'s "odd".hdf5']) == known
    assert queue.known_among([]) == set()


@pytest.mark.parametrize("state", ["in_progress", "completed", "failed"])
def test_a_late_or_repeated_file_moves_no_group_that_was_taken(queue: Queue, state: str):
    fill(queue)
    queue.claim(G, ME)
    if state == "completed":
        queue.complete(G, ME)
    if state == "failed":
        queue.fail(G, ME, "broken", final=True)
    late = queue.record(GroupFact(G, MJD), [FileFact(16, Path("/in/extra_sb16.hdf5"))])
    fill(queue)
    queue.record(GroupFact(G, MJD), [FileFact(3, Path("/in/twice_sb03.hdf5"))])
    assert list(late.values()) == [Recorded.LATE]
    assert queue.group(G).state == state
    assert queue.subbands(G)[16].late == 1


ODD = {
    "start": ({"start_mjd": MJD + 0.4 / 86400}, "it starts +0.400 s from the others"),
    "pointing": ({"dec_deg": 33.3}, "its pointing is Dec 33.3000 deg, that of the others 33.0000 deg"),
    "layout": ({"layout": "23 integrations"}, "it holds 23 integrations, the others 24 integrations"),
}


def of(subband: int, folder: str = "in", **odd: Any) -> FileFact:
    """Return a file that says of its observation what the others do, but for ``odd``."""
    kind = {"start_mjd": MJD, "mid_mjd": MJD + 0.001, "dec_deg": 33.0, "layout": "24 integrations"} | odd
    return FileFact(subband, Path(f"/{folder}/sb{subband:02d}.hdf5"), 5, 1.0, **kind)


def show(queue: Queue, group_id: str, files: list[FileFact], expected: int = 16) -> dict[Path, Recorded]:
    first = files[0]
    group = GroupFact(group_id, first.start_mjd or 0.0, mid_mjd=first.mid_mjd, dec_deg=first.dec_deg)
    return queue.record(group, files, expected_subbands=expected)


@pytest.mark.parametrize("what", ODD)
def test_of_sixteen_files_the_odd_one_is_bad_in_whatever_order_and_parts_they_come(queue: Queue, what: str):
    odd, reason = ODD[what]
    for seed in range(12):
        dice, group_id = random.Random(seed), f"group {seed}"
        files = [of(sb, f"{seed}", **(odd if sb == 5 else {})) for sb in range(16)]
        dice.shuffle(files)
        if seed < 2:  # the odd one before all others, and after them
            files.sort(key=lambda f: (f.subband == 5) == bool(seed))
        while files:
            n = 1 if seed < 2 else dice.randint(1, 16)
            show(queue, group_id, files[:n])
            files = files[n:]
        assert [f.subband_idx for f in queue.subbands(group_id)] == [sb for sb in range(16) if sb != 5]
        (bad,) = [b for b in queue.bad_files() if b.group_id == group_id]
        assert (bad.path, bad.size_bytes, bad.mtime) == (f"/{seed}/sb05.hdf5", 5, 1.0)
        assert bad.reason == f"sb05.hdf5 is no part of group {group_id}: {reason}"
        row = queue.group(group_id)
        assert (row.state, row.start_mjd, row.mid_mjd, row.dec_deg) == ("collecting", MJD, MJD + 0.001, 33.0)


def test_nobody_is_bad_before_more_than_half_of_the_subbands_agree(queue: Queue):
    show(queue, G, [of(5, dec_deg=33.3)])
    show(queue, G, [of(sb) for sb in range(6, 14)])
    assert (len(queue.subbands(G)), queue.bad_files()) == (9, [])
    assert show(queue, G, [of(0)]) == {Path("/in/sb05.hdf5"): Recorded.ODD, Path("/in/sb00.hdf5"): Recorded.NEW}
    assert [s.subband_idx for s in queue.subbands(G)] == [0, *range(6, 14)]


def test_a_group_of_two_minds_is_not_pending_however_full(queue: Queue):
    show(queue, G, [of(sb) for sb in range(8)])
    show(queue, G, [of(sb, dec_deg=33.3) for sb in range(8, 16)])
    assert (queue.group(G).state, queue.group(G).subbands_present, queue.bad_files()) == ("collecting", 16, [])


def test_when_its_time_is_up_the_most_of_a_group_are_right_and_in_a_tie_it_fails_with_its_reason(queue: Queue):
    fact = GroupFact(G, MJD, dec_deg=33.0)
    queue.record(fact, [of(4, dec_deg=33.3), *(of(sb) for sb in (5, 6))], now=1000.0)
    assert queue.decide_contradictions(340.0, now=1339.0) == {}
    assert queue.decide_contradictions(340.0, now=1341.0) == {Path("/in/sb04.hdf5"): Recorded.ODD}
    assert [s.subband_idx for s in queue.subbands(G)] == [5, 6]
    queue.record(GroupFact("tie", MJD), [of(sb, "tie", dec_deg=33.0 + sb) for sb in (4, 5)], now=1000.0)
    assert queue.decide_contradictions(340.0, now=1341.0) == {}
    assert queue.group("tie").state == "failed"
    assert "its files contradict each other" in (queue.group("tie").error or "")
    assert "Dec 38.0000 deg" in (queue.group("tie").error or "")


def test_a_group_whose_files_contradict_each_other_does_not_go_on_as_partial_before_that_is_decided(queue: Queue):
    queue.record(GroupFact(G, MJD, dec_deg=33.0), [of(4), *(of(sb, dec_deg=33.3) for sb in (5, 6))], now=1000.0)
    assert queue.let_partial_go(2, 340.0, now=1341.0) == []
    queue.decide_contradictions(340.0, now=1341.0)
    assert queue.let_partial_go(2, 340.0, now=1341.0) == [G]
    assert [s.subband_idx for s in queue.subbands(G)] == [5, 6]


def test_those_who_were_called_odd_too_early_are_looked_at_again(queue: Queue):
    fact = GroupFact(G, MJD, dec_deg=33.0)
    queue.record(fact, [of(4), *(of(sb, dec_deg=33.3) for sb in (5, 6))], now=1000.0)
    assert queue.decide_contradictions(340.0, now=1341.0) == {Path("/in/sb04.hdf5"): Recorded.ODD}
    found = show(queue, G, [of(sb) for sb in range(7, 16)])
    assert found[Path("/in/sb04.hdf5")] is Recorded.FREED
    assert [b.path for b in queue.bad_files()] == ["/in/sb05.hdf5", "/in/sb06.hdf5"]


def test_a_second_file_takes_the_place_of_a_first_that_was_odd_or_was_rewritten(queue: Queue):
    show(queue, G, [of(5, dec_deg=33.3)])
    assert list(show(queue, G, [of(5, "again")]).values()) == [Recorded.DUPLICATE]
    found = show(queue, G, [of(sb) for sb in range(6, 15)])
    assert found[Path("/again/sb05.hdf5")] is Recorded.FREED
    assert queue.known_among(["/again/sb05.hdf5", "/in/sb05.hdf5"]) == set()
    show(queue, G, [of(5, "again")])
    assert queue.subbands(G)[0].path == "/again/sb05.hdf5"
    show(queue, G, [of(5, "third")])
    (fifth,) = [f for f in queue.living_files(0.0) if f.subband_idx == 5]
    assert queue.file_changed(fifth, 6, 2.0)
    assert queue.known_among(["/again/sb05.hdf5", "/third/sb05.hdf5"]) == set()


def test_a_second_file_that_is_odd_is_bad_whether_it_came_before_or_after_the_others(queue: Queue):
    show(queue, G, [of(5)])
    show(queue, G, [of(5, "early", dec_deg=33.3)])
    found = show(queue, G, [of(sb) for sb in range(6, 16)])
    assert found[Path("/early/sb05.hdf5")] is Recorded.FREED
    for name in ("early", "late"):
        assert list(show(queue, G, [of(5, name, dec_deg=33.3)]).values()) == [Recorded.ODD]
    assert queue.duplicates(G) == []


def test_a_group_that_somebody_has_begun_with_stays_what_it_is(queue: Queue):
    show(queue, G, [of(sb) for sb in range(3)], expected=3)
    queue.claim(G, ME)
    found = show(queue, G, [of(sb, "other", dec_deg=33.3) for sb in range(3, 9)])
    assert set(found.values()) == {Recorded.ODD}
    assert len(queue.subbands(G)) == 3


def test_a_late_file_of_a_group_that_was_given_up_is_judged_as_at_its_end(queue: Queue):
    show(queue, G, [of(sb) for sb in range(3)])
    assert queue.expire(queue.group(G))
    found = show(queue, G, [of(3, dec_deg=33.3), of(4)])
    assert found == {Path("/in/sb03.hdf5"): Recorded.ODD, Path("/in/sb04.hdf5"): Recorded.LATE}
    later = show(queue, G, [of(sb, "other", dec_deg=33.3) for sb in range(5, 16)])
    assert set(later.values()) == {Recorded.ODD, Recorded.FREED, Recorded.LATE}
    assert [s.subband_idx for s in queue.subbands(G)] == list(range(5, 16))


def test_files_that_an_older_nightbeam_recorded_are_of_the_kind_of_their_group(queue: Queue):
    fill(queue, n=9)
    with queue.database.write() as connection:
        connection.exec_driver_sql("UPDATE subband_files SET start_mjd = NULL, dec_deg = NULL")
    assert list(show(queue, G, [of(9, dec_deg=33.3)]).values()) == [Recorded.ODD]
    assert list(show(queue, G, [of(10)]).values()) == [Recorded.NEW]


def test_a_start_guessed_from_names_gives_way_to_the_header(queue: Queue):
    queue.record(GroupFact(G, MJD - 0.001, "name"), [FileFact(0, Path("/in/a_sb00.hdf5"))])
    fill(queue, n=1, first=1)
    assert (queue.group(G).start_mjd, queue.group(G).start_source) == (MJD, "header")


def test_an_unknown_group_is_missing(queue: Queue):
    for call in (queue.group, lambda g: queue.claim(g, ME), queue.reprocess, lambda g: queue.complete(g, ME)):
        with pytest.raises(MissingError, match="the queue has no group 1999-01-01T00:00:00"):
            call("1999-01-01T00:00:00")


def test_only_one_of_many_gets_a_group(queue: Queue):
    fill(queue)
    got: list[str] = []

    def take(name: str) -> None:
        try:
            queue.claim(G, Owner(name))
            got.append(name)
        except BusyError:
            pass

    threads = [threading.Thread(target=take, args=(f"worker-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert queue.group(G).owner == got[0]
    assert len(queue.attempts(G)) == 1


def test_the_owner_may_claim_again_and_nobody_else(queue: Queue):
    fill(queue)
    queue.claim(G, ME)
    assert queue.claim(G, Owner("me", "here", 77)).owner_pid == 77
    assert len(queue.attempts(G)) == 1
    with pytest.raises(BusyError, match="is being worked on by me"):
        queue.claim(G, YOU)
    with pytest.raises(BusyError, match="no longer held by you"):
        queue.heartbeat(G, YOU)


def test_what_is_not_pending_cannot_be_claimed(queue: Queue):
    fill(queue, n=3)
    with pytest.raises(InputError, match="is collecting, not pending"):
        queue.claim(G, ME)
    fill(queue)
    queue.claim(G, ME)
    queue.complete(G, ME)
    with pytest.raises(InputError, match=r"is completed, not pending\n  fix: to do it again: nightbeam groups repro"):
        queue.claim(G, YOU)


def test_work_is_taken_in_the_order_of_the_data(queue: Queue):
    fill(queue, "2025-10-02T01:12:21", mjd=MJD + 0.007, now=1.0)
    fill(queue, "2025-10-02T01:07:12", mjd=MJD + 0.0035, now=2.0)
    fill(queue, G, mjd=MJD, now=3.0)
    order = ["2025-10-02T01:02:03", "2025-10-02T01:07:12", "2025-10-02T01:12:21"]
    assert [d.group_id for d in queue.take_dispatchable(9)] == order
    assert [row.group_id for _ in order if (row := queue.claim_next(ME))] == order
    assert queue.claim_next(ME) is None


def test_a_group_is_failed_after_its_last_attempt_and_keeps_every_error(queue: Queue):
    fill(queue)
    states = []
    for n in range(3):
        queue.claim(G, ME)
        queue.heartbeat(G, ME, step="image")
        states.append(queue.fail(G, ME, f"tclean fell over {n}").state)
    assert states == ["pending", "pending", "failed"]
    assert (queue.group(G).retry_count, queue.group(G).error) == (3, "tclean fell over 2")
    assert [(a.attempt, a.outcome, a.step, a.error) for a in queue.attempts(G)] == [
        (1, "failed", "image", "tclean fell over 0"),
        (2, "failed", "image", "tclean fell over 1"),
        (3, "failed", "image", "tclean fell over 2"),
    ]


def test_data_that_are_at_fault_are_not_tried_again(queue: Queue):
    fill(queue)
    queue.claim(G, ME)
    assert queue.fail(G, ME, "not HDF5", final=True).state == "failed"


def test_attempts_that_a_disk_has_ended_use_no_group_up_and_are_known(queue: Queue):
    fill(queue)
    for number in range(5):
        queue.claim(G, ME)
        queue.heartbeat(G, ME, step="image")
        row = queue.fail(G, ME, "no space left for x", short_of="disk", now=100.0 + number)
    assert (row.state, row.retry_count, row.processing_stage) == ("pending", 0, "resuming")
    assert (row.error, row.current_step, row.owner) == ("no space left for x", "image", None)
    assert [a.outcome for a in queue.attempts(G)] == ["disk"] * 5
    (stopped,) = queue.stopped()
    assert (stopped.attempt, stopped.ended_at, stopped.error) == (5, 104.0, "no space left for x")
    for n in (1, 2, 3):  # what fails otherwise afterwards has all its attempts still
        queue.claim(G, ME)
        assert queue.stopped() == []
        assert queue.fail(G, ME, "broken").state == ("failed" if n == 3 else "pending")


def test_an_owner_that_died_on_a_full_disk_does_not_count_either(queue: Queue):
    fill(queue)
    for _ in range(4):
        queue.claim(G, ME)
        assert queue.recover(lambda _row: True, full="0 bytes free in /out") == [G]
    row = queue.group(G)
    assert (row.state, row.retry_count) == ("pending", 0)
    assert "its process is gone; no space left (0 bytes free in /out)" in (row.error or "")
    assert {a.outcome for a in queue.attempts(G)} == {"disk"}


def test_the_next_group_and_the_size_of_its_files_are_known(queue: Queue):
    assert (queue.next_pending(), queue.bytes_of([])) == (None, {})
    later = "2025-10-02T01:07:12"
    fill(queue, later, mjd=MJD + 0.003)
    files = [FileFact(sb, Path(f"/in/{G}_sb{sb:02d}.hdf5"), 100 + sb, 1.0) for sb in range(16)]
    queue.record(GroupFact(G, MJD), files)
    assert queue.next_pending() == G
    assert queue.bytes_of([G, later]) == {G: 16 * 100 + 120, later: 0}


def test_a_dead_owner_counts_as_a_retry_and_the_last_one_fails(queue: Queue):
    fill(queue)
    for attempt in (1, 2, 3):
        queue.claim(G, Owner(f"run-{attempt}", "here", 100 + attempt))
        assert queue.recover(lambda row: False, lease_s=900) == []
        assert queue.recover(lambda row: (row.owner_pid or 0) > 100) == [G]
    assert (queue.group(G).state, queue.group(G).retry_count) == ("failed", 3)
    assert {a.outcome for a in queue.attempts(G)} == {"lost"}
    assert "its process is gone" in (queue.group(G).error or "")


def test_workers_that_die_one_step_further_each_time_do_not_use_a_group_up(queue: Queue):
    fill(queue)
    for step in ("convert", "calibrate", "apply", "image", "record", "qa"):
        queue.claim(G, ME)
        queue.heartbeat(G, ME, step=step)
        assert queue.recover(lambda row: True) == [G]
        assert queue.group(G).state == "pending"
    assert queue.group(G).retry_count == 6
    for expected in ("pending", "failed"):  # the second and the third time at one step
        queue.claim(G, ME)
        queue.heartbeat(G, ME, step="image")
        queue.recover(lambda row: True)
        assert queue.group(G).state == expected


def test_three_failures_are_enough_wherever_they_happen(queue: Queue):
    fill(queue)
    for step, expected in (("convert", "pending"), ("apply", "pending"), ("image", "failed")):
        queue.claim(G, ME)
        queue.heartbeat(G, ME, step=step)
        assert queue.fail(G, ME, "broken").state == expected


def test_a_silent_owner_loses_its_lease_and_a_beating_one_does_not(queue: Queue):
    fill(queue)
    queue.claim(G, ME, now=1000.0)
    queue.heartbeat(G, ME, now=1800.0)
    assert queue.recover(lambda row: False, lease_s=900, now=2600.0) == []
    assert queue.recover(lambda row: False, lease_s=900, now=2701.0) == [G]
    with pytest.raises(BusyError, match="no longer held by me"):
        queue.complete(G, ME)
    assert queue.group(G).state == "pending"


def test_a_silent_owner_that_is_known_to_live_keeps_its_group(queue: Queue):
    fill(queue)
    queue.claim(G, ME, now=1000.0)
    before = queue.group(G)
    assert queue.recover(lambda row: False, lease_s=900, is_alive=lambda row: True, now=9000.0) == []
    assert queue.group(G) == before


def test_a_sign_of_life_after_the_look_saves_a_group(queue: Queue):
    fill(queue)
    queue.claim(G, ME, now=1000.0)
    seen = queue.group(G)
    queue.heartbeat(G, ME, now=2000.0)
    assert not queue.take_back(seen, "silent for 1000 s", now=2000.0)
    assert queue.group(G).owner == "me"
    assert queue.take_back(queue.group(G), "silent for 1000 s", now=3000.0)
    assert (queue.group(G).state, queue.group(G).error) == ("pending", "lost by me: silent for 1000 s")


@pytest.mark.parametrize("end", ["complete", "fail"])
def test_a_group_that_is_requeued_keeps_what_it_finished_and_has_new_attempts(queue: Queue, end: str):
    fill(queue)
    queue.claim(G, ME)
    queue.put_receipt(G, ME, "convert", {"ms": "/a.ms"})
    if end == "complete":
        queue.complete(G, ME)
    else:
        queue.fail(G, ME, "broken", final=True)
    row = queue.requeue(G)
    assert (row.state, row.processing_stage, row.error, row.owner) == ("pending", "resuming", None, None)
    assert queue.receipt(G, "convert") == {"ms": "/a.ms"}
    for expected in ("pending", "pending", "failed"):
        queue.claim(G, ME)
        assert queue.fail(G, ME, "broken again").state == expected


@pytest.mark.parametrize("state", ["collecting", "pending", "in_progress"])
def test_only_a_group_that_has_ended_is_requeued(queue: Queue, state: str):
    fill(queue, n=3 if state == "collecting" else 16)
    if state == "in_progress":
        queue.claim(G, ME)
    before = queue.group(G)
    with pytest.raises(InputError, match=f"is {state}, not completed or failed"):
        queue.requeue(G)
    assert queue.group(G) == before
    with pytest.raises(MissingError):
        queue.requeue("1999-01-01T00:00:00")


def test_a_group_that_became_full_meanwhile_does_not_expire(queue: Queue):
    fill(queue, n=15)
    seen = queue.group(G)
    fill(queue, n=1, first=15)
    assert not queue.expire(seen)
    assert queue.group(G).state == "pending"


def test_each_attempt_is_dispatched_once(queue: Queue):
    fill(queue)
    (first,) = queue.take_dispatchable(5)
    assert (first.group_id, first.attempt, first.idempotency_key) == (G, 1, f"{G}#1")
    assert queue.take_dispatchable(5) == []
    queue.claim(G, ME)
    assert queue.take_dispatchable(5) == []
    queue.fail(G, ME, "no luck")
    (second,) = queue.take_dispatchable(5)
    assert second.idempotency_key == f"{G}#2"


def test_a_dispatch_that_nobody_claimed_is_sent_again_with_the_same_key(queue: Queue):
    fill(queue)
    (first,) = queue.take_dispatchable(5, now=100.0)
    assert queue.take_dispatchable(5, resend_after_s=60, now=130.0) == []
    assert queue.take_dispatchable(5, resend_after_s=60, now=161.0) == [first]


def test_a_run_that_ended_before_it_claimed_is_followed_by_another(queue: Queue):
    fill(queue)
    (first,) = queue.take_dispatchable(5)
    assert queue.forget_dispatch(first)
    (second,) = queue.take_dispatchable(5)
    assert second.idempotency_key == f"{G}#2"
    assert not queue.forget_dispatch(first)
    queue.reprocess(G)
    assert [d.idempotency_key for d in queue.take_dispatchable(5)] == [f"{G}#3"]


def test_many_dispatchers_share_the_groups_without_overlap(queue: Queue):
    ids = [f"2025-10-02T0{h}:00:00" for h in range(8)]
    for n, group_id in enumerate(ids):
        fill(queue, group_id, mjd=MJD + n)
    taken: list[str] = []
    threads = [
        threading.Thread(target=lambda: taken.extend(d.group_id for d in queue.take_dispatchable(3))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == ids


def test_a_group_without_gains_waits_until_it_is_woken(queue: Queue):
    fill(queue)
    queue.claim(G, ME)
    queue.wait_for_gains(G, ME, "no set covers it")
    row = queue.group(G)
    assert (row.state, row.processing_stage, row.retry_count) == ("pending", "waiting_for_gains", 0)
    assert queue.take_dispatchable(5) == []
    assert queue.claim_next(ME) is None
    assert [r.group_id for r in queue.waiting_for_gains()] == [G]
    assert queue.wake(G)
    assert not queue.wake(G)
    assert [d.idempotency_key for d in queue.take_dispatchable(5)] == [f"{G}#1"]
    assert queue.attempts(G)[0].outcome == "waiting"


def test_a_released_group_is_pending_without_a_retry(queue: Queue):
    fill(queue)
    queue.claim(G, ME)
    queue.release(G, ME)
    assert (queue.group(G).state, queue.group(G).retry_count, queue.group(G).owner) == ("pending", 0, None)


@pytest.mark.system
@pytest.mark.parametrize(
    ("end", "state"),
    [
        (lambda queue: queue.complete(G, ME), "completed"),
        (lambda queue: queue.release(G, ME), "released"),
        (lambda queue: queue.wait_for_gains(G, ME, "no set covers it"), "waiting"),
        (lambda queue: queue.fail(G, ME, "broken"), "failed"),
    ],
    ids=["complete", "release", "wait", "fail"],
)
def test_who_ends_its_work_while_it_is_taken_back_does_not_wait_for_who_waits_for_it(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch, end: Callable[[Queue], object], state: str
):
    queue, other = Queue(postgresql_url), Queue(postgresql_url)
    fill(queue)
    queue.claim(G, ME)
    seen, taken = other.group(G), []
    thread = threading.Thread(target=lambda: taken.append(other.take_back(seen, "silent")))
    real = queue._end_attempt

    def end_attempt(*told: Any) -> None:
        real(*told)
        thread.start()
        _until_somebody_waits_for_a_lock(postgresql_url)

    monkeypatch.setattr(queue, "_end_attempt", end_attempt)
    end(queue)
    thread.join()
    assert taken == [False]
    assert [attempt.outcome for attempt in queue.attempts(G)] == [state]


def _until_somebody_waits_for_a_lock(url: str) -> None:
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        while connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (0,):
            pass


def test_reprocess_gives_a_new_set_of_attempts_and_forgets_the_receipts(queue: Queue):
    fill(queue)
    for _ in range(3):
        queue.claim(G, ME)
        queue.put_receipt(G, ME, "convert", {"ms": "/m"})
        queue.fail(G, ME, "broken")
    row = queue.reprocess(G)
    assert (row.state, row.retry_count, row.error, queue.receipts(G)) == ("pending", 4, None, [])
    for expected in ("pending", "pending", "failed"):
        queue.claim(G, ME)
        assert queue.fail(G, ME, "broken").state == expected
    assert len(queue.attempts(G)) == 6


def test_reprocess_asks_for_force_where_it_would_hurt(queue: Queue):
    fill(queue, n=14)
    with pytest.raises(InputError, match="has 14 of 16 subbands"):
        queue.reprocess(G)
    assert queue.reprocess(G, force=True).partial == 1
    queue.claim(G, ME)
    with pytest.raises(BusyError, match="is being worked on by me"):
        queue.reprocess(G, force=False)
    assert queue.reprocess(G, force=True).state == "pending"
    with pytest.raises(BusyError):
        queue.complete(G, ME)


def test_an_incomplete_group_times_out_saying_what_it_lacks(queue: Queue):
    fill(queue, n=14, now=1000.0)
    assert queue.expire_collecting(86400, now=87000.0) == []
    assert [r.group_id for r in queue.stale_collecting(600, now=1700.0)] == [G]
    assert queue.expire_collecting(86400, now=87401.0) == [G]
    row = queue.group(G)
    assert (row.state, row.error) == ("failed", "Collecting timeout: 14 of 16 subbands, missing sb14, sb15")


def test_receipts_are_the_owners_and_come_back_as_they_were(queue: Queue):
    fill(queue)
    queue.claim(G, ME)
    queue.put_receipt(G, ME, "convert", {"ms": "/m.ms", "rows": 12}, seconds=1.5)
    assert queue.receipt(G, "convert") == {"ms": "/m.ms", "rows": 12}
    assert queue.receipt(G, "image") is None
    with pytest.raises(BusyError):
        queue.put_receipt(G, YOU, "image", {})
    queue.fail(G, ME, "later")
    assert queue.claim(G, YOU).processing_stage == "resuming"


def test_counts_name_every_state(queue: Queue):
    fill(queue, n=2)
    fill(queue, "2025-10-02T01:07:12", mjd=MJD + 1)
    assert queue.counts() == {
        "total": 2, "collecting": 1, "pending": 1, "in_progress": 0, "completed": 0, "failed": 0
    }  # fmt: skip


def test_bad_files_and_measures_are_kept(queue: Queue):
    queue.record_bad_file(Path("/in/x"), "0 bytes", size_bytes=0)
    queue.record_bad_file(Path("/in/x"), "not HDF5", size_bytes=5)
    assert [(b.path, b.reason) for b in queue.bad_files()] == [("/in/x", "not HDF5")]
    queue.forget_bad_file(Path("/in/x"))
    assert queue.bad_files() == []
    fill(queue)
    queue.put_performance(G, load_time=1.0, writer_type="direct-subband")
    queue.put_performance(G, image_time=3.0)
    measured = queue.performance(G)
    assert measured is not None
    assert (measured.load_time, measured.image_time, measured.writer_type) == (1.0, 3.0, "direct-subband")
