"""What is to be tidied up, against a table of states and ages."""

from __future__ import annotations

import pytest

from nightbeam.contimg.retention import (
    Collecting,
    Facts,
    Held,
    Lease,
    Limits,
    Product,
    Scratch,
    Verb,
    check_clock,
    decide,
)
from nightbeam.core.errors import InputError

DAY = 86400.0
NOW = 1_800_000_000.0
G = "2025-10-02T01:02:03"
LIMITS = Limits(
    lease_s=900.0,
    collecting_s=DAY,
    scratch_s=DAY,
    quarantine_days=30.0,
    days={"ms": 30.0, "image": None, "log": 90.0},
)


def verbs(facts: Facts, *, now: float = NOW) -> list[str]:
    return [action.verb.value for action in decide(facts, LIMITS, now)]


@pytest.mark.parametrize(
    ("age_s", "alive", "wanted"),
    [
        (10.0, None, []),
        (900.0, None, []),
        (900.5, None, ["take back"]),
        (10.0, True, []),
        (901.0, True, ["leave"]),
        (365 * DAY, True, ["leave"]),
        (901.0, False, ["take back"]),
        (10.0, False, ["take back"]),
        (-5000.0, None, []),
        (-5000.0, True, []),
        (-5000.0, False, ["take back"]),
    ],
)
def test_a_lease_is_taken_back_when_its_owner_is_gone_or_silent_elsewhere(age_s, alive, wanted):
    assert verbs(Facts(leases=(Lease(G, "me", NOW - age_s, alive),))) == wanted


def test_a_live_run_beyond_the_limit_is_named_and_left_alone():
    (left,) = decide(Facts(leases=(Lease(G, "flow-7", NOW - 1800.0, True),)), LIMITS, NOW)
    assert (left.verb, left.subject) == (Verb.LEAVE, G)
    assert left.reason == "silent for 1800 s, but the process of flow-7 lives"


@pytest.mark.parametrize(("age_s", "wanted"), [(DAY - 1, []), (DAY + 1, ["expire"]), (-DAY, [])])
def test_a_group_that_stays_incomplete_expires(age_s, wanted):
    assert verbs(Facts(collecting=(Collecting(G, NOW - age_s),))) == wanted


@pytest.mark.parametrize(
    ("age_s", "alive", "in_use", "groups", "wanted"),
    [
        (DAY - 1, False, False, (), []),
        (DAY + 1, False, False, (), ["remove"]),
        (DAY + 1, None, False, (), ["remove"]),
        (DAY + 1, True, False, (), ["leave"]),
        (DAY + 1, None, True, (), ["leave"]),
        (DAY + 1, None, False, (G,), ["leave"]),
        (-DAY, False, False, (), []),
    ],
)
def test_scratch_goes_when_it_is_old_and_nobody_may_still_want_it(age_s, alive, in_use, groups, wanted):
    assert verbs(Facts(scratch=(Scratch("/scratch/x", NOW - age_s, alive, in_use, groups),))) == wanted


def test_scratch_of_a_group_that_is_taken_back_goes_at_once():
    lease, scratch = Lease(G, "gone", NOW - DAY, None), Scratch("/scratch/x", NOW - 2 * DAY, None, groups=(G,))
    assert verbs(Facts(leases=(lease,), scratch=(scratch,))) == ["take back", "remove"]


@pytest.mark.parametrize(
    ("kind", "age_days", "keep", "wanted"),
    [
        ("ms", 29.9, "", []),
        ("ms", 30.1, "", ["put aside"]),
        ("ms", 30.1, "it has no image", ["leave"]),
        ("ms", -1.0, "", []),
        ("image", 4000.0, "", []),
        ("log", 89.0, "", []),
        ("log", 91.0, "", ["delete"]),
        ("log", 91.0, "its group is pending", ["leave"]),
    ],
)
def test_products_go_by_their_kind_and_age(kind, age_days, keep, wanted):
    assert verbs(Facts(products=(Product(kind, "/data/x", NOW - age_days * DAY, keep),))) == wanted


def test_what_has_no_age_never_goes():
    assert verbs(Facts(products=(Product("ms", "/data/x", None),))) == []


@pytest.mark.parametrize(
    ("state", "age_days", "keep", "wanted"),
    [
        ("held", 29.0, "", []),
        ("held", 31.0, "", ["delete"]),
        ("held", 31.0, "it does not lie in /q", ["leave"]),
        ("held", -31.0, "", []),
        ("deleting", 0.1, "", ["delete"]),
        ("deleting", 0.1, "it does not lie in /q", ["leave"]),
        ("moving", 99.0, "", ["settle"]),
        ("restoring", 99.0, "", ["settle"]),
        ("moving", 0.5 / 24, "", ["leave"]),
        ("restoring", 0.5 / 24, "", ["leave"]),
        ("moving", -1.0, "", ["leave"]),
        ("moving", 99.0, "it does not lie in /q", ["leave"]),
        ("restoring", 99.0, "it does not lie in /q", ["leave"]),
    ],
)
def test_quarantine_is_emptied_by_age_and_what_was_begun_is_ended(state, age_days, keep, wanted):
    assert verbs(Facts(held=(Held("/q/x", "ms", state, NOW - age_days * DAY, keep=keep),))) == wanted


def _old(n: int, *, of: int, last_known: float | None) -> Facts:
    products = [Product("ms", f"/data/{k}", NOW - (40.0 if k < n else 1.0) * DAY) for k in range(of)]
    return Facts(products=tuple(products), last_known=last_known)


@pytest.mark.parametrize(
    ("facts", "stops"),
    [
        (_old(6, of=10, last_known=NOW - 1.1 * DAY), True),
        (_old(5, of=10, last_known=NOW - 1.1 * DAY), False),
        (_old(10, of=10, last_known=NOW - 0.9 * DAY), False),
        (_old(10, of=10, last_known=NOW + 400 * DAY), False),
        (_old(10, of=10, last_known=None), False),
        (_old(0, of=10, last_known=NOW - 400 * DAY), False),
    ],
)
def test_most_of_all_going_at_once_after_a_long_silence_is_a_matter_for_a_person(facts, stops):
    actions = decide(facts, LIMITS, NOW)
    if not stops:
        check_clock(facts, actions, NOW)
        return
    with pytest.raises(InputError, match="6 of 10 ms would be put aside or deleted at once") as stopped:
        check_clock(facts, actions, NOW)
    assert "--force" in stopped.value.fix


def test_what_was_begun_is_whole_again_before_anything_else_is_moved():
    product, held = Product("ms", "/data/x", NOW - 40 * DAY), Held("/q/y", "ms", "moving", NOW - DAY)
    gone = Held("/q/z", "ms", "held", NOW - 40 * DAY)
    assert verbs(Facts(products=(product,), held=(gone, held))) == ["settle", "delete", "put aside"]


def _steady(now: float, *, logs: int = 0) -> Facts:
    """Return a site as it is after years: 280 sets a day, 30 days of them, 30 days in quarantine, and logs."""
    ages = [n / 280 for n in range(30 * 280)]
    return Facts(
        products=(
            *(Product("ms", f"/data/{age}", NOW - age * DAY) for age in ages),
            *(Product("log", f"/logs/{n}", NOW - n * DAY * 90 / logs) for n in range(logs)),
        ),
        held=tuple(Held(f"/q/{age}", "ms", "held", NOW - age * DAY) for age in ages),
        last_known=NOW,
    )


@pytest.mark.parametrize("logs", [0, 90 * 280])
def test_a_clock_that_jumps_ahead_on_a_steady_site_stops_everything_however_many_logs_there_are(logs):
    now = NOW + 24 * DAY
    facts = _steady(now, logs=logs)
    with pytest.raises(InputError, match=r"6\d\d\d of 8400 ms, 6\d\d\d of 8400 in quarantine would be"):
        check_clock(facts, decide(facts, LIMITS, now), now)


def test_what_would_be_deleted_for_good_is_counted_by_itself():
    held = tuple(Held(f"/q/{n}", "ms", "held", NOW - (40.0 if n < 6 else 1.0) * DAY) for n in range(10))
    products = tuple(Product("ms", f"/data/{n}", NOW - DAY) for n in range(1000))
    facts = Facts(products=products, held=held, last_known=NOW - 2 * DAY)
    with pytest.raises(InputError, match="6 of 10 in quarantine would be"):
        check_clock(facts, decide(facts, LIMITS, NOW), NOW)


def test_what_stays_whatever_its_age_does_not_make_the_others_look_few():
    products = [Product("ms", f"/data/{n}", NOW - 40 * DAY, "a calibrator") for n in range(20)]
    products += [Product("ms", f"/data/{n}", NOW - 40 * DAY) for n in range(20, 30)]
    facts = Facts(products=tuple(products), last_known=NOW - 2 * DAY)
    with pytest.raises(InputError, match="10 of 10 ms would be"):
        check_clock(facts, decide(facts, LIMITS, NOW), NOW)
