import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import UsageError
from nightbeam.stream.order import Resequencer


def fed(numbers, **how):
    line = Resequencer(**how)
    return line, [one for n in numbers for one in line.add("p", n, n, 0.0)]


def test_what_comes_in_order_is_passed_on_at_once():
    line = Resequencer()
    assert [line.add("p", n, n, 0.0) for n in range(3)] == [[0], [1], [2]]


def test_what_comes_too_early_waits_for_what_is_before_it():
    line = Resequencer()
    assert line.add("p", 1, "b", 0.0) == []
    assert line.held == 1
    assert line.add("p", 0, "a", 0.0) == ["a", "b"]
    assert line.held == 0


def test_twelve_batches_in_the_order_of_four_shards_come_in_theirs():
    _, out = fed([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])
    assert out == list(range(12))


def test_what_has_no_number_is_passed_on():
    line = Resequencer()
    line.add("p", 1, "held", 0.0)
    assert line.add("p", None, "now", 0.0) == ["now"]


def test_producers_do_not_wait_for_one_another():
    line = Resequencer()
    assert line.add("p", 1, "p1", 0.0) == []
    assert line.add("q", 0, "q0", 0.0) == ["q0"]


def test_no_more_are_held_than_may_be():
    line, out = fed([1, 2, 3, 4], max_held=3)
    assert out == [1, 2, 3, 4]
    assert line.missing == {"p": [(0, 0)]}


def test_a_gap_is_given_up_in_time_and_named():
    line = Resequencer(max_wait_s=5.0)
    line.add("p", 0, 0, 0.0)
    line.add("p", 3, 3, 1.0)
    line.add("p", 4, 4, 3.0)
    assert line.next_s() == 6.0
    assert line.expire(5.9) == []
    assert line.expire(6.0) == [3, 4]
    assert line.missing == {"p": [(1, 2)]}


def test_a_late_one_is_passed_on_and_is_missing_no_more():
    line = Resequencer(max_wait_s=0.0)
    line.add("p", 5, 5, 0.0)
    line.expire(0.0)
    assert line.add("p", 2, 2, 1.0) == [2]
    assert line.missing == {"p": [(0, 1), (3, 4)]}
    assert line.late == 1
    assert [line.add("p", n, n, 1.0) for n in (0, 1, 4, 3)] == [[0], [1], [4], [3]]
    assert line.missing == {}


def test_a_duplicate_is_handed_back_and_not_passed_on():
    line, out = fed([0, 0, 2, 2])
    assert out == [0]
    assert line.duplicates == 2
    assert line.take_refused() == [("p", 0, 0), ("p", 2, 2)]
    assert line.take_refused() == []


def test_a_late_one_that_comes_twice_is_a_duplicate():
    line = Resequencer(max_wait_s=0.0)
    line.add("p", 1, 1, 0.0)
    line.expire(0.0)
    assert line.add("p", 0, 0, 0.0) == [0]
    assert line.add("p", 0, 0, 0.0) == []
    assert line.duplicates == 1


def test_the_end_tells_what_is_missing_at_the_tail():
    line = Resequencer(max_wait_s=5.0)
    line.add("p", 0, 0, 0.0)
    line.end("p", 3, 1.0)
    assert line.expire(5.0) == []
    assert line.missing == {}
    line.expire(6.0)
    assert line.missing == {"p": [(1, 2)]}


def test_an_end_without_a_count_says_nothing():
    line = Resequencer(max_wait_s=0.0)
    line.end("p", None, 0.0)
    line.expire(1.0)
    assert line.missing == {}


def test_what_is_known_is_not_waited_for():
    line = Resequencer()
    line.expect("p", 40)
    assert line.add("p", 40, 40, 0.0) == [40]
    assert line.missing == {}
    assert line.due() == {"p": 41}


def test_what_is_held_below_what_is_expected_is_handed_out_at_once():
    line = Resequencer(max_wait_s=10.0)
    assert line.add("p", 55, "x", 0.0) == line.add("p", 58, "z", 0.0) == []
    assert line.expect("p", 57) == ["x"]
    assert line.add("p", 57, "y", 0.0) == ["y", "z"]
    assert line.expire(20.0) == line.flush() == []
    assert (line.held, line.due(), line.next_s()) == (0, {"p": 59}, None)


def test_to_expect_what_is_held_hands_it_out_too():
    line = Resequencer()
    line.add("p", 3, 3, 0.0)
    assert line.expect("p", 3) == [3]
    assert line.expect("p", 1) == []
    assert line.due() == {"p": 4}


def test_a_hostile_number_costs_no_memory():
    line, out = fed([10**18, 0], max_held=1)
    line.flush()
    assert line.missing == {"p": [(1, 10**18 - 1)]}
    assert out == [0]


def test_bounds_that_make_no_sense_are_refused():
    with pytest.raises(UsageError):
        Resequencer(max_held=0)
    with pytest.raises(UsageError):
        Resequencer(max_wait_s=float("nan"))


@given(st.permutations(range(20)))
def test_any_permutation_within_the_bound_comes_out_in_order(numbers):
    line, out = fed(numbers, max_held=20)
    assert out == list(range(20))
    assert (line.held, line.missing, line.duplicates) == (0, {}, 0)


@given(
    st.lists(st.tuples(st.sampled_from("pq"), st.one_of(st.none(), st.integers(0, 30)), st.floats(0, 3)), max_size=60),
    st.integers(1, 6),
    st.floats(0, 5),
)
def test_nothing_is_lost_or_doubled(arrivals, max_held, max_wait_s):
    line = Resequencer(max_held=max_held, max_wait_s=max_wait_s)
    out, now = [], 0.0
    for index, (producer, sequence, pause) in enumerate(arrivals):
        now += pause
        out += line.add(producer, sequence, index, now)
        out += line.expire(now)
        assert line.held <= 2 * max_held
    out += line.flush()
    refused = [index for _, _, index in line.take_refused()]
    assert sorted(out + refused) == list(range(len(arrivals)))
    assert line.held == 0
    seen = {p: {n for q, n, _ in arrivals if q == p and n is not None} for p in "pq"}
    for producer in "pq":
        gone = {n for first, last in line.missing.get(producer, []) for n in range(first, last + 1)}
        assert gone == set(range(max(seen[producer], default=-1) + 1)) - seen[producer]


_LINES = st.sampled_from("pq")
_NUMBERS = st.integers(0, 12)
_STEPS = st.one_of(
    st.tuples(st.just("add"), _LINES, st.one_of(st.none(), _NUMBERS)),
    st.tuples(st.sampled_from(["expect", "end"]), _LINES, _NUMBERS),
    st.tuples(st.sampled_from(["expire", "flush"]), _LINES, _NUMBERS),
)


@given(st.lists(_STEPS, max_size=60), st.integers(1, 6), st.sampled_from([0.0, 3.0]))
def test_whatever_is_expected_or_ends_nothing_is_lost_doubled_or_waited_for_for_ever(steps, max_held, max_wait_s):
    line = Resequencer(max_held=max_held, max_wait_s=max_wait_s)
    out, added = [], 0
    for now, (kind, producer, number) in enumerate(steps):
        if kind == "add":
            out += line.add(producer, number, added, float(now))
            added += 1
        elif kind == "expect":
            out += line.expect(producer, number)
        elif kind == "end":
            out += line.end(producer, number, float(now))
        else:
            out += line.expire(float(now)) if kind == "expire" else line.flush()
        assert all(number >= one.due for one in line._lines.values() for number in one.held)
    out += line.flush()
    assert sorted(out + [item for _, _, item in line.take_refused()]) == list(range(added))
    assert (line.held, line.next_s()) == (0, None)
