"""What waits in the queue and what groups are owed, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nightbeam.catalog import FileFact, GroupFact, Owner, Queue
from nightbeam.catalog.model import BacklogRow, Imaging, Owed, PressureRow
from nightbeam.core.errors import BusyError, InputError, MissingError

ME, YOU = Owner("me"), Owner("you")
MJD = 60950.0


@pytest.fixture
def queue(database_url: str, open_new: Callable[..., Queue]) -> Queue:
    return open_new(Queue, database_url)


def name(n: int) -> str:
    return f"2025-10-02T00:{n:02d}:00"


def put(queue: Queue, *numbers: int) -> None:
    for n in numbers:
        files = [FileFact(sb, Path(f"/in/{name(n)}_sb{sb:02d}.hdf5")) for sb in range(16)]
        queue.record(GroupFact(name(n), MJD + n, dec_deg=33.0), files, now=1000.0)


def done(queue: Queue, n: int, owed: Owed | None = None, *, quick: bool = False) -> None:
    queue.claim(name(n), ME)
    queue.arrears.decide(name(n), ME, Imaging.QUICK if quick else Imaging.FULL)
    queue.put_receipt(name(n), ME, "convert", {"ms": "x"})
    queue.complete(name(n), ME, owed=owed)


def test_of_an_empty_queue_nothing_waits(queue: Queue):
    assert (queue.arrears.backlog(), queue.arrears.pressure()) == (BacklogRow(), None)


def test_each_group_is_counted_where_it_stands(queue: Queue):
    put(queue, 1, 2, 3, 4, 5, 6)
    queue.claim(name(1), ME)
    queue.claim(name(2), ME)
    queue.wait_for_gains(name(2), ME, "no set")
    done(queue, 3, Owed.IMAGE, quick=True)
    done(queue, 4, Owed.FIGURES)
    found = queue.arrears.backlog()
    assert found == BacklogRow(waiting=2, in_work=1, for_gains=1, owed_images=1, owed_figures=1, oldest_mjd=MJD + 5)


def test_the_level_is_noted_by_the_first_of_two_who_see_it_change(queue: Queue):
    assert queue.arrears.put_pressure("behind", before=None, waiting=11, now=5.0)
    assert not queue.arrears.put_pressure("quick", before=None, waiting=30, now=6.0)
    known = queue.arrears.pressure()
    assert known == PressureRow("behind", 5.0, 11)
    assert queue.arrears.put_pressure("quick", before=known, waiting=21, now=7.0)
    assert not queue.arrears.put_pressure("calm", before=known, waiting=1, now=8.0)
    assert queue.arrears.pressure() == PressureRow("quick", 7.0, 21)


def test_how_a_group_is_imaged_is_decided_once_and_by_whoever_has_it(queue: Queue):
    put(queue, 1)
    queue.claim(name(1), ME)
    assert queue.arrears.decide(name(1), ME, Imaging.QUICK) is Imaging.QUICK
    assert queue.arrears.decide(name(1), ME, Imaging.FULL) is Imaging.QUICK
    with pytest.raises(BusyError):
        queue.arrears.decide(name(1), YOU, Imaging.FULL, change=True)
    queue.fail(name(1), ME, "killed")
    queue.claim(name(1), YOU)
    assert queue.arrears.decide(name(1), YOU, Imaging.FULL) is Imaging.QUICK
    assert queue.arrears.decide(name(1), YOU, Imaging.FULL, change=True) is Imaging.FULL
    queue.fail(name(1), YOU, "again", final=True)
    assert queue.reprocess(name(1)).imaging is None


def test_a_group_is_taken_up_for_its_full_image_when_nothing_else_is_to_be_done(queue: Queue):
    put(queue, 1, 2)
    done(queue, 1, Owed.IMAGE, quick=True)
    assert queue.arrears.owed() == [(name(1), Owed.IMAGE)]
    assert not queue.arrears.take_up(name(1)), "another waits"
    queue.claim(name(2), YOU)
    assert not queue.arrears.take_up(name(1)), "another is worked on"
    queue.complete(name(2), YOU)
    assert queue.arrears.take_up(name(1))
    row = queue.group(name(1))
    assert (row.state, row.imaging, row.owed) == ("pending", "full", "image")
    assert queue.receipt(name(1), "convert") == {"ms": "x"}, "what was finished is kept"
    assert not queue.arrears.take_up(name(1))
    assert queue.arrears.backlog() == BacklogRow(owed_waiting=1), "it is no backlog"


def test_one_is_taken_up_at_a_time_and_the_next_when_that_one_is_begun(queue: Queue):
    put(queue, 1, 2)
    done(queue, 1, Owed.IMAGE, quick=True)
    done(queue, 2, Owed.FIGURES)
    assert queue.arrears.take_up(name(1))
    assert not queue.arrears.take_up(name(2))
    queue.claim(name(1), ME)
    assert queue.arrears.take_up(name(2))
    assert queue.group(name(2)).imaging == "full"


def test_new_data_are_dispatched_before_what_is_owed_though_it_is_older(queue: Queue):
    put(queue, 1)
    done(queue, 1, Owed.IMAGE, quick=True)
    queue.arrears.take_up(name(1))
    put(queue, 2, 3)
    assert [d.group_id for d in queue.take_dispatchable(2)] == [name(2), name(3)]
    row = queue.claim_next(ME)
    assert row is not None
    assert row.group_id == name(2)
    assert [d.group_id for d in queue.take_dispatchable(2)] == [name(1)]


def test_what_is_paid_is_owed_no_longer(queue: Queue):
    put(queue, 1)
    done(queue, 1, Owed.FIGURES)
    queue.arrears.pay(name(1), Owed.IMAGE)
    assert queue.arrears.owed(limit=1) == [(name(1), Owed.FIGURES)]
    queue.arrears.pay(name(1), Owed.FIGURES)
    assert queue.arrears.owed() == []


def test_a_person_decides_for_a_group_that_is_not_imaged_or_is_owed_its_image(queue: Queue):
    put(queue, 1, 2, 3)
    queue.arrears.force(name(1), Imaging.QUICK)
    queue.claim(name(1), ME)
    assert queue.arrears.decide(name(1), ME, Imaging.FULL) is Imaging.QUICK
    with pytest.raises(BusyError, match="is being worked on"):
        queue.arrears.force(name(1), Imaging.FULL)
    queue.complete(name(1), ME, owed=Owed.IMAGE)
    queue.arrears.force(name(1), Imaging.FULL)
    row = queue.group(name(1))
    assert (row.state, row.imaging, row.owed) == ("pending", "full", None)
    assert queue.arrears.backlog().waiting == 3, "it is a group like any other"
    done(queue, 2)
    with pytest.raises(InputError, match="is completed and owed no image"):
        queue.arrears.force(name(2), Imaging.FULL)
    with pytest.raises(MissingError):
        queue.arrears.force(name(9), Imaging.FULL)
