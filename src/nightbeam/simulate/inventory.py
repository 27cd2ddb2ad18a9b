"""How observations followed each other at the telescope, as a few tables to draw from.

Counted in the names of 2,231 observations of 14 dates in January and February 2026 (the part of the team's
inventory that has the names as the correlator gave them: dsa110-continuum, ``inventory.csv``, made-up entries left
out). A name is the clock of one computer when it opened the file. Nothing is known of when files were closed or
copied. Every file of the inventory has its full size: if the last one before a restart was shorter, it was not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["BREAKS", "SUBBANDS_OF_INCOMPLETE", "Interval", "Succession", "draw_offsets", "draw_succession"]

T = TypeVar("T")

#: What lies between the starts of two observations: the cadence of 309.24 s, a restart, what follows a restart
#: (the correlator then finds back to its grid), a longer variant of that, or a stop.
Interval = Literal["cadence", "restart", "settling", "resuming", "stop"]

#: Observed numbers of seconds from the last name of one observation to the last name of the next; the latest clock
#: opens its file just before the first sample. Stops beyond half an hour (six: 80 minutes to 5.7 days) are left out.
BREAKS: Final[Mapping[Interval, Mapping[int, int]]] = {
    "restart": {
        577: 2, 578: 4, 579: 1, 617: 1, 618: 6, 619: 22, 620: 38, 621: 60, 622: 23, 623: 8, 624: 2, 626: 2,
        627: 2, 628: 3,
    },
    "settling": {395: 5, 396: 24, 397: 66, 398: 46, 399: 24, 400: 9, 401: 1},
    "resuming": {453: 1, 473: 2, 474: 3, 475: 4, 476: 1},
    "stop": dict.fromkeys(
        (669, 742, 780, 788, 815, 816, 818, 831, 854, 891, 1017, 1145, 1189, 1219, 1220, 1241, 1277, 1293, 1341, 1373,
         1381, 1432, 1433, 1435, 1485, 1521, 1758), 1
    ) | {740: 3, 741: 2},
}  # fmt: skip

# After which interval came which, how many times; cadences are counted in runs below.
_NEXT: Final[Mapping[Interval, Mapping[Interval, int]]] = {
    "cadence": {"restart": 167, "stop": 33},
    "restart": {"settling": 164, "cadence": 8, "stop": 2},
    "settling": {"cadence": 175},
    "resuming": {"cadence": 11},
    "stop": {"settling": 11, "resuming": 11, "restart": 7, "cadence": 6, "stop": 3},
}
# How many cadences came in a row; two runs of 49 and 75 are left out.
_RUNS: Final[Mapping[int, int]] = {1: 4, 2: 2, 3: 1, 4: 2, 5: 5, 6: 1, 7: 2, 9: 175, 10: 2, 11: 2, 12: 2}

# By how many seconds the 16 names of an observation differ, by the interval before it.
_SPREADS: Final[Mapping[Interval, Mapping[int, int]]] = {
    "cadence": {0: 28, 1: 1683, 2: 103, 14: 1},
    "settling": {0: 3, 1: 163, 2: 7, 4: 1},
    "restart": {1: 6, 2: 1, 13: 2, 14: 15, 15: 23, 16: 76, 17: 31, 18: 11, 19: 3, 20: 1, 21: 1, 22: 1},
    "resuming": {1: 11},
    "stop": {1: 3, 14: 1, 15: 2, 16: 12, 17: 4, 18: 2, 59: 2, 60: 1, 61: 4, 62: 1, 64: 2, 65: 1, 82: 1},
}

#: How many subbands were there in the 23 incomplete observations, and how often.
SUBBANDS_OF_INCOMPLETE: Final[Mapping[int, int]] = {1: 10, 2: 3, 3: 1, 6: 1, 8: 2, 9: 2, 10: 2, 13: 1, 15: 1}
_OBSERVATIONS: Final = 2231
_SUBBANDS: Final = 16
#: No two neighbouring names of an observation were further apart.
_WIDEST_HOLE_S: Final = 20


@dataclass(frozen=True, slots=True)
class Succession:
    """One observation: the interval before it, its length in s (None: one cadence), and the subbands that it lacks."""

    interval: Interval
    seconds: int | None
    missing: tuple[int, ...]


def draw_succession(rng: np.random.Generator, observations: int, *, subbands: int = _SUBBANDS) -> list[Succession]:
    """Return observations as they followed each other in reality; the first comes somewhere in a run of cadences.

    Parameters
    ----------
    rng
        What to draw with.
    observations, subbands
        How many. Of fewer than 16 subbands a proportional number is missing, at least one and never all.
    """
    found: list[Succession] = []
    interval: Interval = "cadence"
    left = int(rng.integers(0, _pick(rng, _RUNS)))
    while len(found) < observations:
        missing = _draw_missing(rng, subbands)
        if not found or interval == "cadence":
            found.append(Succession("cadence", None, missing))
        else:
            found.append(Succession(interval, _pick(rng, BREAKS[interval]), missing))
        if interval == "cadence" and left > 0:
            left -= 1
            continue
        interval = _pick(rng, _NEXT[interval])
        left = _pick(rng, _RUNS) - 1 if interval == "cadence" else 0
    return found


def draw_offsets(rng: np.random.Generator, subbands: int, interval: Interval) -> NDArray[np.int64]:
    """Return by how many whole seconds the names of one observation differ, least 0, after such an interval."""
    if subbands == 1:
        return np.zeros(1, np.int64)
    spread = min(_pick(rng, _SPREADS[interval]), 10 * (subbands - 1))  # few clocks cannot bridge a wide one
    while True:
        offsets = rng.integers(0, spread + 1, subbands)
        offsets[rng.choice(subbands, 2, replace=False)] = (0, spread)
        if np.diff(np.sort(offsets)).max() <= _WIDEST_HOLE_S:
            return offsets


def _draw_missing(rng: np.random.Generator, subbands: int) -> tuple[int, ...]:
    if subbands == 1 or rng.random() >= sum(SUBBANDS_OF_INCOMPLETE.values()) / _OBSERVATIONS:
        return ()
    there = min(max(round(_pick(rng, SUBBANDS_OF_INCOMPLETE) * subbands / _SUBBANDS), 1), subbands - 1)
    return tuple(sorted(int(n) for n in rng.choice(subbands, subbands - there, replace=False)))


def _pick(rng: np.random.Generator, counts: Mapping[T, int]) -> T:
    weights = np.array(list(counts.values()), float)
    return list(counts)[int(rng.choice(len(weights), p=weights / weights.sum()))]
