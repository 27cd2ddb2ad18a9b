"""What came of batches goes on in order, and what it keeps in memory is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.cxi import delivery
from nightbeam.cxi.delivery import Delivery
from nightbeam.cxi.outlet import Parcel
from nightbeam.testing.cxi_world import Clock


class Taker:
    """What stands in for the outlet."""

    def __init__(self):
        self.taken, self.waiting_bytes = [], 0

    def put(self, parcel):
        self.taken.append(parcel.batch)


@pytest.fixture
def taker():
    return Taker()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def out(taker, clock):
    return Delivery(taker, ordered=True, clock=clock)


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_whoever_is_faster_batches_go_on_in_the_order_of_their_line(jobs, sequences):
    taker = Taker()
    out = Delivery(taker, ordered=True, clock=Clock())
    for number in jobs:
        out.deliver(number, "p", sequences[number], Parcel(sequences[number]))
    assert taker.taken == list(range(6))


def test_a_number_that_comes_twice_goes_on_as_it_was_taken_whoever_is_faster(out, taker):
    out.deliver(1, "p", 0, Parcel("second"))
    assert taker.taken == []
    out.deliver(0, "p", 0, Parcel("first"))
    assert taker.taken == ["first", "second"]


def test_without_order_all_goes_on_as_it_comes(taker, clock):
    out = Delivery(taker, ordered=False, clock=clock)
    for number in (2, 0, 1):
        out.deliver(number, "p", number, Parcel(number))
    assert taker.taken == [2, 0, 1]


def test_what_failed_or_was_turned_down_or_is_not_due_is_not_waited_for(out, taker):
    out.expect("p", 4)
    for number in (0, 1):
        out.deliver(number, "p", 7 - number, Parcel(7 - number))
    assert (taker.taken, out.waiting) == ([], 2)
    out.skip("p", 4)
    out.deliver(2, "p", 5, None)
    assert (taker.taken, out.waiting) == ([6, 7], 0)


def test_a_gap_is_waited_for_ten_seconds_or_until_all_goes_on(out, taker, clock):
    out.deliver(0, "p", 1, Parcel(1))
    clock.now_s += delivery._GAP_WAIT_S - 0.1
    out.expire()
    assert taker.taken == []
    clock.now_s += 0.1
    out.expire()
    assert taker.taken == [1]
    out.deliver(1, "p", 3, Parcel(3))
    out.flush()
    assert taker.taken == [1, 3]


def test_a_batch_keeps_its_memory_until_it_goes_on_or_fails_and_the_outlets_counts_too(out, taker):
    for number in range(3):
        out.keep(number, 100)
    out.keep(1, 40)
    taker.waiting_bytes = 7
    assert (out.held_bytes, out.pending_bytes) == (240, 247)
    out.deliver(1, "p", 1, Parcel(1))  # it waits for its turn
    assert out.held_bytes == 240
    out.free(2)
    out.deliver(0, "p", 0, Parcel(0))
    assert (out.held_bytes, out.pending_bytes) == (0, 7)
