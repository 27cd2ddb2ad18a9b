import json
import os
from datetime import datetime

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import InputError, MissingError
from nightbeam.cxi import ledger as ledger_module
from nightbeam.cxi.ledger import ProducerLedger, Range, Ranges, StreamLedger, account, resume, status_path
from nightbeam.cxi.naming import Naming, new_writer

NUMBERS = st.lists(st.integers(0, 60), unique=True, max_size=40)


def ranges(numbers, size=4):
    found = Ranges()
    for number in numbers:
        found.add(number, number * size, size)
    return found


def numbers(some):
    return {k for one in some for k in range(one.first, one.last + 1)}


@given(NUMBERS)
def test_a_set_of_numbers_in_any_order_is_the_set(some):
    found = ranges(some)
    assert numbers(found) == set(some)
    assert len(found) == len(some)
    assert all(k in found for k in some)
    assert found == ranges(sorted(some)) == Ranges.from_json(json.loads(json.dumps(found.to_json())))
    assert all(a.last + 1 < b.first for a, b in zip(list(found), list(found)[1:], strict=False))


@given(NUMBERS, NUMBERS)
def test_what_is_in_one_and_not_in_the_other_has_its_numbers_and_its_events(some, other):
    left = ranges(some).without(ranges(other))
    assert numbers(left) == set(some) - set(other)
    assert sum(one.events for one in left) == 4 * len(set(some) - set(other))


@given(NUMBERS)
def test_gaps_are_what_is_missing_below_the_last(some):
    gaps = ranges(some).gaps()
    assert numbers(gaps) == set(range(max(some, default=-1) + 1)) - set(some)
    assert all(one.events == 4 * (one.last - one.first + 1) for one in gaps)


def test_a_number_that_is_there_is_not_taken_in_again():
    found = ranges([1, 2])
    assert not found.add(2)
    assert found.add(3)


@pytest.mark.parametrize(
    "rows", ["x", [[1, 0, 0, 0]], [[1, 2, 3]], [[-1, 2, 0, 0]], [[0, 1.5, 0, 0]], [None], [[True] * 4]]
)
def test_rows_that_are_no_ranges_are_refused(rows):
    with pytest.raises(InputError):
        Ranges.from_json(rows)


class Header:
    def __init__(self, sequence, producer="p", n_events=4):
        self.producer, self.sequence, self.n_events = producer, sequence, n_events
        self.first_event = None if sequence is None else sequence * n_events


NOW = "2026-01-02T03:04:05Z"


def test_a_ledger_goes_on_where_an_earlier_writer_was():
    first = StreamLedger()
    for k in range(3):
        first.take(Header(k), now=NOW)
    second = StreamLedger.from_json(json.loads(json.dumps(first.to_json())))
    assert second.due("p") == 3
    assert second.due("q") is None
    second.take(Header(3), now=NOW)
    assert list(second.producers["p"].taken) == [Range(0, 3, 0, 16)]


def test_a_producer_that_begins_again_gets_a_new_page():
    first = StreamLedger()
    first.take(Header(0), now=NOW)
    first.end("p")
    second = StreamLedger.from_json(first.to_json())
    assert second.due("p") is None
    second.take(Header(0), now="later")
    assert second.producers["p"].since == "later"


def test_a_batch_that_its_end_marker_has_overtaken_begins_nothing():
    ledger = StreamLedger()
    ledger.take(Header(0), now=NOW)
    ledger.end("p", 3)
    ledger.take(Header(2), now=NOW)
    page = ledger.producers["p"]
    assert (page.ended, ledger.due("p")) == (True, None)
    assert 2 in page.taken
    ledger.take(Header(3), now=NOW)
    assert not page.ended
    ledger.end("p", 4)
    ledger.take(Header(0), now="later")
    assert ledger.producers["p"].since == "later"


def test_batches_without_a_number_are_not_kept():
    ledger = StreamLedger()
    ledger.take(Header(None), now=NOW)
    ledger.settle(Header(None))
    assert ledger.to_json() == {}


def seconds(text):
    return datetime.fromisoformat(text).timestamp()


def a_file(directory, rows, made="2026-01-02T03:05:00Z", prefix="peaknet_cxi", template=None, changed=None):
    naming = Naming(prefix, template or "{prefix}_{time}_{writer}_chunk{chunk}")
    when = datetime.fromisoformat(made)
    path = directory / naming.name(chunk=0, writer=new_writer(), when=when, run=None, experiment=None)
    with h5py.File(path, "w") as file:
        file.attrs["batches"] = json.dumps(rows)
        file.attrs["creation_time"] = made
    os.utime(path, (seconds(changed or made),) * 2)
    return path


def row(sequence, hits=2, written=2):
    return {
        "batch_id": f"b{sequence}", "producer": "p", "sequence": sequence, "first_event": 4 * sequence,
        "events": 4, "hits": hits, "written": written,
    }  # fmt: skip


def killed(directory, taken, settled, *, ended=False, prefix="peaknet_cxi", **status):
    ledger = StreamLedger()
    for k in taken:
        ledger.take(Header(k), now=NOW)
    for k in settled:
        ledger.settle(Header(k))
    if ended:
        ledger.end("p")
    leave(directory, ledger, prefix=prefix, **status)
    return ledger


def leave(directory, ledger, *, prefix="peaknet_cxi", **status):
    about = {"counters": {}, "producers": ledger.to_json(), "producers_forgotten": ledger.forgotten}
    status_path(directory, prefix).write_text(json.dumps(about | status))


@pytest.fixture
def opened_files(monkeypatch):
    """Names of the files that are looked into."""
    names, whole = [], ledger_module.batches_of_file
    monkeypatch.setattr(ledger_module, "batches_of_file", lambda path: (names.append(path.name), whole(path))[1])
    return names


def test_after_a_kill_what_was_taken_and_is_in_no_file_is_missing_with_its_events(tmp_path):
    killed(tmp_path, range(8), range(2))
    a_file(tmp_path, [row(2), row(3), row(4, hits=3, written=1)])
    (found,) = account(tmp_path)
    assert found.received == (Range(0, 3, 0, 16),)
    assert found.missing == (Range(4, 7, 16, 32),)
    assert found.events_missing == 16


def test_files_tell_of_batches_that_the_status_had_not_seen(tmp_path):
    killed(tmp_path, range(2), range(2))
    a_file(tmp_path, [row(2), row(5)])
    (found,) = account(tmp_path)
    assert found.missing == ()
    assert found.never_received == (Range(3, 4, 12, 20),)


def test_a_batch_in_two_files_is_whole_when_all_its_hits_are_there(tmp_path):
    killed(tmp_path, range(1), [])
    a_file(tmp_path, [row(0, hits=3, written=1)])
    (tmp_path / "r0042").mkdir()
    a_file(tmp_path / "r0042", [row(0, hits=3, written=2)])
    assert account(tmp_path)[0].missing == ()


def test_files_of_an_earlier_stream_do_not_count(tmp_path):
    killed(tmp_path, range(1), [])
    a_file(tmp_path, [row(0)], made="2026-01-01T00:00:00Z")
    assert account(tmp_path)[0].missing == (Range(0, 0, 0, 4),)


def test_what_was_abandoned_is_found_once_and_kept(tmp_path):
    killed(tmp_path, range(5), range(3))
    ledger, found = resume(tmp_path, "peaknet_cxi")
    assert found == {"p": [Range(3, 4, 12, 20)]}
    leave(tmp_path, ledger)
    ledger, found = resume(tmp_path, "peaknet_cxi")
    assert found == {}
    assert list(ledger.producers["p"].abandoned) == [Range(3, 4, 12, 20)]


def test_a_file_that_is_none_does_not_stop_the_account(tmp_path):
    killed(tmp_path, range(2), range(2))
    a_file(tmp_path, []).write_bytes(b"not HDF5")
    assert account(tmp_path)[0].missing == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"counters": {}, "producers": 3}', "{" * 10000, "\x00"])
def test_a_status_that_is_none_is_a_clear_error(tmp_path, text):
    status_path(tmp_path, "peaknet_cxi").write_text(text)
    with pytest.raises(InputError, match=r"status|ledger"):
        account(tmp_path)


def test_no_status_is_a_clear_error(tmp_path):
    with pytest.raises(MissingError, match="--prefix"):
        account(tmp_path, "other")


# -- which files are looked into ----------------------------------------------------------------------------------


def test_files_of_another_prefix_do_not_count(tmp_path):
    killed(tmp_path, range(2), [0], prefix="A")
    a_file(tmp_path, [row(1), row(5)], prefix="B")
    (found,) = account(tmp_path, "A")
    assert (found.missing, found.never_received) == ((Range(1, 1, 4, 8),), ())
    a_file(tmp_path, [row(1)], prefix="A")
    assert account(tmp_path, "A")[0].missing == ()


def test_files_are_known_by_the_template_of_the_writer(tmp_path):
    killed(tmp_path, range(2), [0], name_template="{chunk}_{prefix}")
    a_file(tmp_path, [row(1)], template="{chunk}_of_others_{prefix}")
    assert account(tmp_path)[0].missing == (Range(1, 1, 4, 8),)
    a_file(tmp_path, [row(1)], template="{chunk}_{prefix}")
    assert account(tmp_path)[0].missing == ()


def test_a_status_with_a_template_that_is_none_is_damaged(tmp_path):
    killed(tmp_path, range(2), [0], name_template="../{chunk}")
    with pytest.raises(InputError, match="remove it"):
        account(tmp_path)


def test_no_file_is_looked_into_where_nothing_is_open(tmp_path, opened_files):
    a_file(tmp_path, [row(0)])
    killed(tmp_path, range(2), range(2), ended=True)
    resume(tmp_path, "peaknet_cxi")
    killed(tmp_path, range(2), range(2), state="ended")
    resume(tmp_path, "peaknet_cxi")
    assert opened_files == []
    killed(tmp_path, range(2), range(2), state="running")
    resume(tmp_path, "peaknet_cxi")
    assert len(opened_files) == 1


def test_files_from_before_the_oldest_open_batch_are_not_looked_into(tmp_path, opened_files):
    old = a_file(tmp_path, [row(0)], made="2026-01-01T00:00:00Z")
    new = a_file(tmp_path, [row(1)], made="2026-01-02T03:04:06Z")
    (tmp_path / "r0001").mkdir()
    os.utime(tmp_path / "r0001", (seconds("2026-01-01T00:00:00Z"),) * 2)
    killed(tmp_path, range(2), [0])
    assert account(tmp_path)[0].missing == ()
    assert opened_files == [new.name]
    assert old.exists()


def test_files_from_before_the_last_status_are_not_looked_into_where_all_is_settled(tmp_path, opened_files):
    a_file(tmp_path, [row(1)], made="2026-01-02T03:04:06Z")
    new = a_file(tmp_path, [row(2)], made="2026-03-01T00:00:00Z")
    killed(tmp_path, range(2), range(2), state="running", updated="2026-03-01T00:00:00Z")
    ledger, found = resume(tmp_path, "peaknet_cxi")
    assert (opened_files, found) == ([new.name], {})
    assert list(ledger.producers["p"].settled) == [Range(0, 2, 0, 12)]


def test_the_oldest_open_batch_is_of_the_time_since_when_something_was_always_open():
    page = ProducerLedger(since="a")
    for number, now in enumerate("bcd"):
        page.take(number, None, None, now=now)
        if number != 1:
            page.settle(number, None, None)
    assert page.open_since == "c"
    page.settle(1, None, None)
    page.take(3, None, None, now="e")
    assert page.open_since == "e"


# -- one page and the next ----------------------------------------------------------------------------------------


def test_a_batch_is_settled_on_the_page_on_which_it_was_taken():
    ledger, first, second = StreamLedger(), Header(0), Header(0)
    ledger.take(first, now=NOW)
    ledger.end("p")
    ledger.take(second, now="later")
    ledger.settle(first)
    assert list(ledger.producers["p"].settled) == []
    ledger.settle(second)
    assert list(ledger.producers["p"].settled) == [Range(0, 0, 0, 4)]


def test_a_batch_that_was_abandoned_and_comes_again_is_missing_no_more():
    page = ProducerLedger(taken=ranges(range(5)), settled=ranges([0, 4]), abandoned=ranges([1, 2, 3]))
    page.settle(2, 8, 4)
    assert numbers(page.abandoned) == {1, 3}
    assert page.open == 0


# -- what grows ---------------------------------------------------------------------------------------------------


def test_pages_that_are_ended_and_settled_are_given_up_when_there_are_many_and_their_totals_are_kept(monkeypatch):
    monkeypatch.setattr(ledger_module, "_KEPT_PAGES", 3)
    ledger = StreamLedger()
    for n in range(6):
        for k in (0, 2):
            header = Header(k, f"p{n}")
            ledger.take(header, now=NOW)
            if n != 1:
                ledger.settle(header)
        ledger.end(f"p{n}")
    assert list(ledger.producers) == ["p1", "p4", "p5"]
    assert ledger.forgotten == {"pages": 3, "taken": 6, "never_received": 3, "abandoned": 0}
    again = StreamLedger.from_json(ledger.to_json(), forgotten=json.loads(json.dumps(ledger.forgotten)))
    assert again.forgotten == ledger.forgotten


def test_a_page_of_a_producer_that_never_ended_is_given_up_by_a_later_writer(monkeypatch):
    monkeypatch.setattr(ledger_module, "_KEPT_PAGES", 2)
    first = StreamLedger()
    for name in "ab":
        header = Header(0, name)
        first.take(header, now=NOW)
        first.settle(header)
    first.take(Header(0, "c"), now=NOW)
    assert list(first.producers) == ["a", "b", "c"]
    second = StreamLedger.from_json(first.to_json())
    second.take(Header(0, "d"), now=NOW)
    assert list(second.producers) == ["c", "d"]


def with_gaps(pieces, *, abandon=()):
    page = ProducerLedger(since=NOW)
    for k in range(pieces):
        page.take(2 * k, 8 * k, 4, now=NOW)
        if k in abandon:
            page.abandoned.add(2 * k, 8 * k, 4)
        else:
            page.settle(2 * k, 8 * k, 4)
    return page


def test_a_producer_with_very_many_gaps_keeps_counts_of_the_oldest():
    page = with_gaps(3000, abandon=(1, 2))
    assert page.taken.pieces <= 1000
    assert page.never_received() == {"batches": 2999, "events": 4 * 2999}
    assert (page.merged.abandoned, len(page.abandoned), page.open) == (2, 0, 0)
    assert page.taken.last == 5998
    assert len(json.dumps(page.to_json())) < 100_000
    again = ProducerLedger.from_json(json.loads(json.dumps(page.to_json())))
    assert again.to_json() == page.to_json()


def test_what_is_open_is_not_merged():
    page = ProducerLedger(since=NOW)
    for k in range(1500):
        page.take(2 * k, 8 * k, 4, now=NOW)
        if k != 7:
            page.settle(2 * k, 8 * k, 4)
    assert numbers(page.taken.without(page.settled)) == {14}
    for k in range(1500, 3000):
        page.take(2 * k, 8 * k, 4, now=NOW)
        page.settle(2 * k, 8 * k, 4)
    page.settle(14, 56, 4)
    for k in range(3000, 8000):
        page.take(2 * k, 8 * k, 4, now=NOW)
        page.settle(2 * k, 8 * k, 4)
    assert page.taken.pieces <= 1000
    assert page.never_received() == {"batches": 7999, "events": 4 * 7999}


@given(NUMBERS, NUMBERS, NUMBERS, st.integers(1, 8))
def test_merging_changes_no_count(taken, settled, abandoned, kept):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ledger_module, "_KEPT_RANGES", kept)
        taken_set, settled_set = set(taken), set(settled) & set(taken)
        abandoned_set = (set(abandoned) & taken_set) - settled_set
        page = ProducerLedger(ranges(taken), ranges(settled_set), ranges(abandoned_set))
        open_, never = taken_set - settled_set - abandoned_set, page.never_received()
        page._merge_at = 0
        page.merge()
    assert page.never_received() == never
    assert page.open == len(open_)
    assert set(open_) == numbers(Ranges(page.taken.without(page.settled)).without(page.abandoned))
    assert page.merged.abandoned + len(page.abandoned) == len(abandoned_set)
    assert page.taken.last == max(taken, default=None)


@pytest.mark.slow
def test_an_old_status_with_very_many_ranges_is_no_damage(tmp_path):
    rows = [[2 * k, 2 * k, 8 * k, 8 * k + 4] for k in range(100_002)]
    page = {"taken": rows, "settled": rows, "abandoned": [], "ended": False, "since": NOW}
    about = {"counters": {}, "producers": {"p": page}, "state": "running"}
    status_path(tmp_path, "peaknet_cxi").write_text(json.dumps(about))
    ledger, found = resume(tmp_path, "peaknet_cxi")
    assert (ledger.due("p"), found) == (200_003, {})
    assert ledger.never_received() == {"p": {"batches": 100_001, "events": 400_004}}
    assert ledger.producers["p"].merged.never_received > 99_000


@pytest.mark.parametrize("merged", [3, {}, {"last": -1}, {"last": 1, "never_received": "x", "abandoned": 0}])
def test_counts_of_merged_batches_that_are_none_are_refused(merged):
    with pytest.raises(InputError):
        ProducerLedger.from_json({"merged": merged})


@given(NUMBERS, st.integers(0, 60))
def test_a_number_that_is_taken_out_is_out(some, number):
    found = ranges(some)
    found.remove(number)
    assert numbers(found) == set(some) - {number}
    assert len(found) == len(numbers(found))


@given(NUMBERS, st.integers(0, 60))
def test_what_is_dropped_or_filled_up_to_a_number_leaves_the_rest(some, last):
    dropped, filled = ranges(some), ranges(some)
    dropped.drop(last)
    filled.fill(last)
    assert numbers(dropped) == {k for k in some if k > last}
    assert numbers(filled) == numbers(dropped) | {*range(last + 1)}
    assert (len(dropped), len(filled)) == (len(numbers(dropped)), len(numbers(filled)))
