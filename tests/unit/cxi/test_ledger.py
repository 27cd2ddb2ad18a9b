import json

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import InputError, MissingError
from nightbeam.cxi.ledger import Range, Ranges, StreamLedger, account, reconcile, status_path

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
    assert second.due() == {"p": 3}
    second.take(Header(3), now=NOW)
    assert list(second.producers["p"].taken) == [Range(0, 3, 0, 16)]


def test_a_producer_that_begins_again_gets_a_new_page():
    first = StreamLedger()
    first.take(Header(0), now=NOW)
    first.end("p")
    second = StreamLedger.from_json(first.to_json())
    assert second.due() == {}
    second.take(Header(0), now="later")
    assert second.producers["p"].since == "later"


def test_batches_without_a_number_are_not_kept():
    ledger = StreamLedger()
    ledger.take(Header(None), now=NOW)
    ledger.settle(Header(None))
    assert ledger.to_json() == {}


def a_file(path, rows, made="2026-01-02T03:05:00Z"):
    with h5py.File(path, "w") as file:
        file.attrs["batches"] = json.dumps(rows)
        file.attrs["creation_time"] = made


def row(sequence, hits=2, written=2):
    return {
        "batch_id": f"b{sequence}", "producer": "p", "sequence": sequence, "first_event": 4 * sequence,
        "events": 4, "hits": hits, "written": written,
    }  # fmt: skip


def killed(directory, taken, settled):
    ledger = StreamLedger()
    for k in taken:
        ledger.take(Header(k), now=NOW)
    for k in settled:
        ledger.settle(Header(k))
    status_path(directory, "peaknet_cxi").write_text(json.dumps({"counters": {}, "producers": ledger.to_json()}))
    return ledger


def test_after_a_kill_what_was_taken_and_is_in_no_file_is_missing_with_its_events(tmp_path):
    killed(tmp_path, range(8), range(2))
    a_file(tmp_path / "a.cxi", [row(2), row(3), row(4, hits=3, written=1)])
    (found,) = account(tmp_path)
    assert found.received == (Range(0, 3, 0, 16),)
    assert found.missing == (Range(4, 7, 16, 32),)
    assert found.events_missing == 16


def test_files_tell_of_batches_that_the_status_had_not_seen(tmp_path):
    killed(tmp_path, range(2), range(2))
    a_file(tmp_path / "a.cxi", [row(2), row(5)])
    (found,) = account(tmp_path)
    assert found.missing == ()
    assert found.never_received == (Range(3, 4, 12, 20),)


def test_a_batch_in_two_files_is_whole_when_all_its_hits_are_there(tmp_path):
    killed(tmp_path, range(1), [])
    a_file(tmp_path / "a.cxi", [row(0, hits=3, written=1)])
    (tmp_path / "r0042").mkdir()
    a_file(tmp_path / "r0042" / "b.cxi", [row(0, hits=3, written=2)])
    assert account(tmp_path)[0].missing == ()


def test_files_of_an_earlier_stream_do_not_count(tmp_path):
    killed(tmp_path, range(1), [])
    a_file(tmp_path / "a.cxi", [row(0)], made="2026-01-01T00:00:00Z")
    assert account(tmp_path)[0].missing == (Range(0, 0, 0, 4),)


def test_what_was_abandoned_is_found_once_and_kept(tmp_path):
    ledger = killed(tmp_path, range(5), range(3))
    assert reconcile(ledger, tmp_path) == {"p": [Range(3, 4, 12, 20)]}
    assert reconcile(ledger, tmp_path) == {}
    assert list(StreamLedger.from_json(ledger.to_json()).producers["p"].abandoned) == [Range(3, 4, 12, 20)]


def test_a_file_that_is_none_does_not_stop_the_account(tmp_path):
    killed(tmp_path, range(2), range(2))
    (tmp_path / "x.cxi").write_bytes(b"not HDF5")
    assert account(tmp_path)[0].missing == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"counters": {}, "producers": 3}', "{" * 10000, "\x00"])
def test_a_status_that_is_none_is_a_clear_error(tmp_path, text):
    status_path(tmp_path, "peaknet_cxi").write_text(text)
    with pytest.raises(InputError, match=r"status|ledger"):
        account(tmp_path)


def test_no_status_is_a_clear_error(tmp_path):
    with pytest.raises(MissingError, match="--prefix"):
        account(tmp_path, "other")
