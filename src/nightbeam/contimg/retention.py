"""What is to be tidied up, decided from plain facts and a time. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nightbeam.core.errors import InputError
from nightbeam.core.times import SECONDS_PER_DAY, datetime_from_mjd, iso_z

__all__ = [
    "Action",
    "Collecting",
    "Facts",
    "Held",
    "Lease",
    "Limits",
    "Product",
    "Scratch",
    "Verb",
    "check_clock",
    "decide",
    "is_older",
]

_MJD_OF_EPOCH = 40587.0
#: After this long without a sign of life, most things being too old at once is a matter for a person.
_LONG_S = SECONDS_PER_DAY
#: And this is most.
_MOST = 0.5


class Verb(StrEnum):
    """What is done to something."""

    TAKE_BACK = "take back"
    EXPIRE = "expire"
    REMOVE = "remove"
    PUT_ASIDE = "put aside"
    SETTLE = "settle"
    DELETE = "delete"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Lease:
    """A group that somebody works on; ``alive`` is None where its owner is of another machine, or unknown."""

    group_id: str
    owner: str
    seen_at: float
    alive: bool | None


@dataclass(frozen=True, slots=True)
class Collecting:
    """A group that lacks subbands."""

    group_id: str
    received_at: float


@dataclass(frozen=True, slots=True)
class Scratch:
    """Something half-written: when anything of it last changed, and who may still want it.

    Attributes
    ----------
    alive
        Whether its maker lives; None where that cannot be known.
    in_use
        Whether a process of this machine stands in it or has a file of it open.
    groups
        In progress, whose name it carries.
    """

    path: str
    changed_at: float
    alive: bool | None
    in_use: bool = False
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Product:
    """A product or a log: what it is, how old, and why it must stay whatever its age.

    ``since`` is None where nobody knows: such a thing has no age.
    """

    kind: str
    path: str
    since: float | None
    keep: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """Something in quarantine; ``keep`` says why it may not be deleted."""

    path: str
    kind: str
    state: str
    moved_at: float
    size_bytes: int | None = None
    keep: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is decided on.

    Attributes
    ----------
    last_known
        When the site was last known to be looked after: at the end of the last housekeeping, or else when the
        newest row was written.
    """

    leases: tuple[Lease, ...] = ()
    collecting: tuple[Collecting, ...] = ()
    scratch: tuple[Scratch, ...] = ()
    products: tuple[Product, ...] = ()
    held: tuple[Held, ...] = ()
    last_known: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """From which age on.

    Attributes
    ----------
    settle_s
        After which a move that was begun is taken for one whose maker was stopped. Of another machine's nothing is
        known but when it began.
    days
        A number, or None for never, for each kind of product and for ``log``.
    """

    lease_s: float = 900.0
    collecting_s: float = 86400.0
    scratch_s: float = 86400.0
    quarantine_days: float | None = 30.0
    settle_s: float = 3600.0
    days: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to be done, to a group or a path, and why."""

    verb: Verb
    kind: str
    subject: str
    reason: str
    size_bytes: int | None = None


def is_older(since: float | None, limit_s: float | None, now: float) -> bool:
    """Return whether something is older than a limit; what comes from the future, or has no age or limit, is not."""
    return since is not None and limit_s is not None and now - since > limit_s


def decide(facts: Facts, limits: Limits, now: float) -> list[Action]:
    """Return what is to be done, and what is left alone although it is old.

    Nothing that a live run owns is named but to be left.

    Parameters
    ----------
    facts, limits
        What there is, and how old it may become.
    now
        Epoch seconds.
    """
    leases = [_of_lease(lease, limits, now) for lease in facts.leases]
    free = {a.subject for a in leases if a is not None and a.verb is Verb.TAKE_BACK}
    return [
        *(action for action in leases if action is not None),
        *_of_collecting(facts, limits, now),
        *_of_scratch(facts, limits, now, free),
        # What somebody was stopped in the middle of is whole again before anything more is moved.
        *sorted(_of_held(facts, limits, now), key=lambda action: action.verb is not Verb.SETTLE),
        *_of_products(facts, limits, now),
    ]


def check_clock(facts: Facts, actions: list[Action], now: float) -> None:
    """Refuse to put aside or delete most of what there is at once, after a long time in which nobody was here.

    A clock that jumped forward looks the same. Each kind is counted by itself, without what stays whatever its age, so
    that many logs do not hide what becomes of the products; so is what lies in quarantine and would be gone for good.

    Raises
    ------
    InputError
        Naming both times, and how many of how many.
    """
    if facts.last_known is None or now - facts.last_known <= _LONG_S:
        return
    staying = {a.subject for a in actions if a.verb is Verb.LEAVE}
    there = Counter(product.kind for product in facts.products if product.path not in staying)
    held = {held.path for held in facts.held}
    going = [a for a in actions if a.verb in (Verb.PUT_ASIDE, Verb.DELETE)]
    # What earlier plans left behind is old whenever it is found.
    doomed = Counter(a.kind for a in going if a.subject not in held and a.kind != "leftover")
    told = [f"{n} of {there[kind]} {kind}" for kind, n in doomed.items() if n > _MOST * there[kind]]
    deleted = sum(a.subject in held for a in going)
    if deleted > _MOST * len(held):
        told.append(f"{deleted} of {len(held)} in quarantine")
    if told:
        raise InputError(
            f"the clock says {_iso(now)}, the site was last looked after at {_iso(facts.last_known)}: "
            f"{', '.join(told)} would be put aside or deleted at once",
            fix="if the clock is right: nightbeam housekeeping --dry-run shows them, --force does it",
        )


def _of_lease(lease: Lease, limits: Limits, now: float) -> Action | None:
    old, silent = is_older(lease.seen_at, limits.lease_s, now), now - lease.seen_at
    if lease.alive is False:
        return Action(Verb.TAKE_BACK, "lease", lease.group_id, "its process is gone")
    if not old:
        return None
    if lease.alive:
        reason = f"silent for {silent:.0f} s, but the process of {lease.owner} lives"
        return Action(Verb.LEAVE, "lease", lease.group_id, reason)
    return Action(Verb.TAKE_BACK, "lease", lease.group_id, f"silent for {silent:.0f} s")


def _of_collecting(facts: Facts, limits: Limits, now: float) -> Iterator[Action]:
    for group in facts.collecting:
        if is_older(group.received_at, limits.collecting_s, now):
            yield Action(Verb.EXPIRE, "group", group.group_id, "Collecting timeout")


def _of_scratch(facts: Facts, limits: Limits, now: float, free: set[str]) -> Iterator[Action]:
    for scratch in facts.scratch:
        if not is_older(scratch.changed_at, limits.scratch_s, now):
            continue
        held = [group for group in scratch.groups if group not in free]
        why = ""
        if scratch.alive:
            why = "its maker lives"
        elif scratch.in_use:
            why = "a process uses it"
        elif held:
            why = f"group {held[0]} is in progress"
        age = f"unchanged for {_ago(now - scratch.changed_at)}"
        verb = Verb.LEAVE if why else Verb.REMOVE
        yield Action(verb, "scratch", scratch.path, f"{age}; {why}" if why else age)


def _of_products(facts: Facts, limits: Limits, now: float) -> Iterator[Action]:
    for product in facts.products:
        days = limits.days.get(product.kind)
        if product.since is None or days is None or not is_older(product.since, days * SECONDS_PER_DAY, now):
            continue
        age = f"{_ago(now - product.since)} old, limit {days:g} d"
        doing = Verb.DELETE if product.kind == "log" else Verb.PUT_ASIDE
        verb, reason = (Verb.LEAVE, f"{age}; {product.keep}") if product.keep else (doing, age)
        yield Action(verb, product.kind, product.path, reason, product.size_bytes)


def _of_held(facts: Facts, limits: Limits, now: float) -> Iterator[Action]:
    days = limits.quarantine_days
    for held in facts.held:
        if held.state in ("moving", "restoring"):
            stopped = is_older(held.moved_at, limits.settle_s, now)
            why = f"somebody was stopped while {held.state} it" if stopped else f"somebody may be {held.state} it"
            verb = Verb.SETTLE if stopped and not held.keep else Verb.LEAVE
            yield Action(verb, held.kind, held.path, f"{why}; {held.keep}" if held.keep else why)
            continue
        begun = held.state == "deleting"
        if begun or (days is not None and is_older(held.moved_at, days * SECONDS_PER_DAY, now)):
            age = f"in quarantine for {_ago(now - held.moved_at)}" + ("; its deletion was begun" if begun else "")
            verb, reason = (Verb.LEAVE, f"{age}; {held.keep}") if held.keep else (Verb.DELETE, age)
            yield Action(verb, held.kind, held.path, reason, held.size_bytes)


def _ago(seconds: float) -> str:
    return f"{seconds / SECONDS_PER_DAY:.1f} d" if seconds >= SECONDS_PER_DAY else f"{seconds / 3600.0:.1f} h"


def _iso(epoch_s: float) -> str:
    try:
        return iso_z(datetime_from_mjd(_MJD_OF_EPOCH + epoch_s / SECONDS_PER_DAY))
    except (OverflowError, ValueError):
        return f"{epoch_s:.0f} s"
