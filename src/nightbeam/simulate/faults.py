"""Which faults there are in a simulation: those asked for, with all that was left open drawn. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np

from nightbeam.core.errors import UsageError
from nightbeam.simulate.compute import CADENCE_S
from nightbeam.simulate.inventory import Succession
from nightbeam.simulate.model import (
    DUPLICATE_KINDS,
    FAULT_KINDS,
    FOREIGN_KINDS,
    Fault,
    FaultKind,
    SimulationSpec,
)

__all__ = ["REAL_FRACTION", "mix_faults", "real_faults", "restart_of", "settle_faults", "value_of"]

T = TypeVar("T")

#: What was left of a real truncated file: 142,348,126 of 145,348,600 bytes.
REAL_FRACTION: Final = 142_348_126 / 145_348_600
#: Two kinds of breaks stand out in reality, and are about as frequent.
RESTARTS_S: Final = (412, 605)
#: A late file comes when the next group is complete, and then half a cadence more.
LATE_CADENCES: Final = 1.5
#: A header that is less wrong than this is not wrong.
LEAST_ANGLE_DEG: Final = 0.001

# Values are numbers within limits, with a default, or words of which one is drawn or the first taken.
_NUMBERS: Final[dict[FaultKind, tuple[float, float, float]]] = {
    "late-subband": (0.0, 7 * 86400.0, LATE_CADENCES * CADENCE_S),
    "truncated-subband": (0.01, 0.9999, REAL_FRACTION),
    "nan-block": (0.0, 0.9, 0.25),
    "clock-jump": (-7 * 86400.0, 7 * 86400.0, math.nan),
    "rfi-line": (0.0, 1e9, 500.0),
    "rfi-burst": (0.0, 1e9, 500.0),
    "wrong-pointing": (-90.0, 90.0, 0.3),
}
_WORDS: Final[dict[FaultKind, tuple[str, ...]]] = {
    "duplicate-subband": DUPLICATE_KINDS,
    "foreign-file": FOREIGN_KINDS,
}
_EVERYWHERE: Final[tuple[FaultKind, ...]] = ("dead-antenna", "rfi-line")


def settle_faults(
    faults: Iterable[Fault], spec: SimulationSpec, stations: Sequence[int], rng: np.random.Generator
) -> list[Fault]:
    """Return faults with all numbers, groups and values that were left open, in their order.

    Raises
    ------
    UsageError
        If there is no such subband, station, integration or group, or a value makes no sense.
    """
    settled = [one for fault in faults for one in _settled(fault, spec, stations, rng)]
    for fault in settled:
        if fault.group is not None and fault.group >= spec.groups:
            raise UsageError(f"no group {fault.group} among {spec.groups}", fix="count groups from 0")
    return settled


def mix_faults(spec: SimulationSpec, rng: np.random.Generator) -> list[Fault]:
    """Return one fault for each of a part of the groups (``spec.fault_rate``), whatever can go wrong.

    Each kind comes once if there are enough groups, then each of its variants, then any. The calibrator's group is
    left in peace, as without it no other could be calibrated.
    """
    if not spec.fault_rate:
        return []
    open_groups = [k for k in range(spec.groups) if spec.calibrator is None or k != spec.calibrator_group]
    variants = _variants(spec)
    first = {fault.kind: fault for fault in reversed(variants)}
    others = [fault for fault in variants if first[fault.kind] is not fault]
    count = min(len(open_groups), max(len(first), round(spec.fault_rate * spec.groups)))
    chosen = [*_shuffled(rng, list(first.values())), *_shuffled(rng, others)][:count]
    while len(chosen) < count:
        kind = list(first)[int(rng.integers(len(first)))]
        alike = [fault for fault in variants if fault.kind == kind]
        chosen.append(alike[int(rng.integers(len(alike)))])
    groups = _shuffled(rng, open_groups)[:count]
    pairs = sorted(zip(groups, chosen, strict=True), key=lambda pair: pair[0])
    return [replace(fault, group=group) for group, fault in pairs]


def real_faults(spec: SimulationSpec, succession: Sequence[Succession]) -> list[Fault]:
    """Return the breaks and the missing subbands of a real succession of observations."""
    found = []
    for k, observation in enumerate(succession):
        if k and observation.seconds is not None:
            found.append(Fault("restart-gap", None, k - 1, f"{observation.seconds}/{spec.integrations}"))
        if spec.calibrator is None or k != spec.calibrator_group:
            found += [Fault("missing-subband", subband, k) for subband in observation.missing]
    return found


def value_of(fault: Fault) -> float:
    """Return the number that goes with a settled fault."""
    return _NUMBERS[fault.kind][2] if fault.value is None else float(fault.value)


def restart_of(fault: Fault) -> tuple[float, int]:
    """Return the seconds between the starts before and after a settled break, and the integrations before it."""
    seconds, _, integrations = str(fault.value).partition("/")
    return float(seconds), int(integrations)


def _variants(spec: SimulationSpec) -> list[Fault]:
    found = []
    for kind in FAULT_KINDS:
        if kind == "restart-gap":
            found += [Fault(kind, value=str(s)) for s in RESTARTS_S] if spec.integrations > 1 else []
        elif kind in _WORDS:
            found += [Fault(kind, value=word) for word in _WORDS[kind]]
        else:
            found.append(Fault(kind))
        if kind == "wrong-pointing" and spec.subbands > 2:
            found.append(Fault(kind, number=spec.subbands // 2))
    return found


def _shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    return [items[int(k)] for k in rng.permutation(len(items))]


def _settled(fault: Fault, spec: SimulationSpec, stations: Sequence[int], rng: np.random.Generator) -> Iterable[Fault]:
    group = fault.group
    if group is None and fault.number is None and fault.kind not in _EVERYWHERE:
        group = int(rng.integers(spec.groups))
    here = replace(fault, group=group)
    if fault.kind == "restart-gap":
        return [_settled_restart(here, spec, rng)]
    if fault.kind == "clock-jump":
        return _settled_jumps(here, spec, rng)
    number = _number(here, spec, stations, rng)
    return [replace(here, number=number, value=_value(here, rng))]


def _number(fault: Fault, spec: SimulationSpec, stations: Sequence[int], rng: np.random.Generator) -> int | None:
    number = fault.number
    if fault.kind == "dead-antenna":
        number = int(rng.choice(stations)) if number is None else number
        if number not in stations:
            raise UsageError(f"no station {number} among the simulated ones", fix=f"choose one of {tuple(stations)}")
        return number
    if fault.kind == "rfi-burst":
        return _within(fault, "integration", spec.integrations, rng)
    if fault.kind == "wrong-pointing" and number is None:
        return None
    if fault.kind == "wrong-pointing" and spec.subbands < 3:
        raise UsageError(
            "among fewer than three subbands nothing tells which of them is wrong", fix="leave the number out"
        )
    return _within(fault, "subband", spec.subbands, rng)


def _within(fault: Fault, what: str, count: int, rng: np.random.Generator) -> int:
    number = int(rng.integers(count)) if fault.number is None else fault.number
    if number >= count:
        raise UsageError(f"no {what} {number} among {count}", fix=f"count {what}s from 0")
    return number


def _value(fault: Fault, rng: np.random.Generator) -> str | None:
    if fault.kind in _WORDS:
        words = _WORDS[fault.kind]
        if fault.value is None:
            return words[0] if fault.kind == "duplicate-subband" else words[int(rng.integers(len(words)))]
        if fault.value not in words:
            raise UsageError(f"{fault}: no {fault.kind} is {fault.value!r}", fix=f"choose one of {', '.join(words)}")
        return fault.value
    if fault.kind not in _NUMBERS:
        if fault.value is not None:
            raise UsageError(f"{fault}: {fault.kind} takes no value", fix=f"leave ={fault.value} out")
        return None
    if fault.value is not None:
        low, high, _ = _NUMBERS[fault.kind]
        value = _float(fault, fault.value)
        _require(fault, value, lambda x: low <= x <= high, f"give {low:g} to {high:g}")
        if fault.kind == "wrong-pointing":
            _require(fault, value, lambda x: abs(x) >= LEAST_ANGLE_DEG, f"give {LEAST_ANGLE_DEG:g} or more")
    return fault.value


def _settled_jumps(fault: Fault, spec: SimulationSpec, rng: np.random.Generator) -> list[Fault]:
    """Return the jump of one clock or, where it is not said which, of one to three."""
    if fault.number is None:
        count = int(rng.integers(1, min(3, spec.subbands) + 1))
        numbers = sorted(int(n) for n in rng.choice(spec.subbands, count, replace=False))
    else:
        numbers = [_within(fault, "subband", spec.subbands, rng)]
    value = _value(fault, rng) or str(int(rng.integers(15, 121)) * int(rng.choice((-1, 1))))
    return [replace(fault, number=number, value=value) for number in numbers]


def _settled_restart(fault: Fault, spec: SimulationSpec, rng: np.random.Generator) -> Fault:
    if fault.number is not None:
        raise UsageError(f"{fault}: a restart concerns all subbands", fix=f"leave :{fault.number} out")
    text = str(rng.choice(RESTARTS_S)) if fault.value is None else fault.value
    seconds, slash, integrations = text.partition("/")
    drawn = int(rng.integers(1, max(spec.integrations, 2)))
    _require(fault, _float(fault, seconds), lambda s: CADENCE_S <= s <= 86400, f"give {CADENCE_S:.0f} to 86400 seconds")
    if slash and not (integrations.isdigit() and 1 <= int(integrations) <= spec.integrations):
        raise UsageError(f"{fault}: {integrations!r} integrations", fix=f"give 1 to {spec.integrations}, as in 412/2")
    return replace(fault, value=f"{seconds}/{integrations if slash else drawn}")


def _float(fault: Fault, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{fault}: {text!r} is no number", fix="give a number, or leave it out") from error


def _require(fault: Fault, value: float, fits: Callable[[float], bool], fix: str) -> None:
    if not (math.isfinite(value) and fits(value)):
        raise UsageError(f"{fault}: the value is {value:g}", fix=fix)
