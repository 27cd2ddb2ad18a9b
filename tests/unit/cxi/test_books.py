"""Counts, ledger and log agree about every batch."""

import logging

import pytest

from nightbeam.core.errors import StorageError, UnavailableError
from nightbeam.cxi.books import Books
from nightbeam.cxi.ledger import StreamLedger
from nightbeam.stream.model import BatchError, LostError


@pytest.fixture
def books():
    return Books()


@pytest.fixture
def header(make_batch):
    return lambda number, **changes: make_batch(number, **changes).batch


def test_what_an_earlier_writer_had_is_told_with_the_first_batch_of_its_line_and_not_again(books, header):
    earlier = StreamLedger()
    for k in range(3):
        earlier.take(header(k), now="2025-10-02T01:02:03Z")
    books.ledger = StreamLedger.from_json(earlier.to_json())
    line, due = books.enter(header(4))
    assert due == 3
    assert books.enter(header(3)) == (line, None)


def test_a_producer_that_begins_again_stands_in_another_line_where_nothing_is_due(books, header):
    first, due = books.enter(header(0))
    assert due is None
    assert books.came_before("gpu0", 0)
    books.begin_again("gpu0")
    assert not books.came_before("gpu0", 0)
    second, due = books.enter(header(0))
    assert second != first
    assert due is None


def test_a_number_of_an_earlier_writer_alone_did_not_come_before(books, header):
    earlier = StreamLedger()
    earlier.take(header(0), now="2025-10-02T01:02:03Z")
    books.ledger = StreamLedger.from_json(earlier.to_json())
    assert not books.came_before("gpu0", 0)


@pytest.mark.parametrize(("error", "reason"), [
    (LostError("gone"), "object lost"),
    (StorageError("full"), "object store full"),
    (UnavailableError("away"), "unavailable"),
])  # fmt: skip
def test_a_batch_is_lost_for_the_reason_that_the_error_has(books, error, reason):
    books.counts.take(3)
    books.lose_by(3, error, "b")
    assert books.counts.lost == {reason: 3}
    assert books.counts.balance() == 0


def test_what_is_gone_is_said_loudly_once_of_each_reason_and_quietly_for_each_batch(books, caplog):
    for name in ("a", "b"):
        books.counts.take(2)
        books.reject(2, BatchError("bad", reason="no shape"), name)
        books.counts.take(2)
        books.lose(2, "no shape", "gone", name)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2 + [logging.WARNING] * 2
    assert books.counts.balance() == 0


def test_odd_things_are_counted_by_kind_and_said_once(books, header, caplog):
    for k in range(3):
        books.warn(f"{k} pixels are odd", header(k))
    assert books.counts.warnings == {"# pixels are odd": 3}
    assert caplog.text.count("pixels are odd") == 1


def test_there_are_not_more_than_a_hundred_kinds_of_odd_things(books, header):
    for k in range(200):
        books.warn("x" * (k + 1), header(0))
    assert books.counts.warnings["other"] == 99
    assert len(books.counts.warnings) == 102
