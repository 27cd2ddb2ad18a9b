"""Batches in the order in which their producer made them, although several shards bring them in another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nightbeam.core.errors import UsageError

__all__ = ["Resequencer"]

T = TypeVar("T")


@dataclass(slots=True)
class _Line(Generic[T]):
    """What one producer has sent: all below ``due`` was passed on or given up."""

    due: int = 0
    held: dict[int, tuple[float, T]] = field(default_factory=dict)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    total: int | None = None
    ended_s: float = 0.0

    def pass_on(self) -> Iterator[T]:
        while self.due in self.held:
            yield self.held.pop(self.due)[1]
            self.due += 1

    def skip(self) -> Iterator[T]:
        """Give up what is due, up to the next that is there, and pass on from there."""
        there = min(self.held) if self.held else self.total
        if there is None:
            return
        if there > self.due:
            self.gaps.append((self.due, there - 1))
        yield from self.go_on_at(there)

    def go_on_at(self, due: int) -> Iterator[T]:
        """Pass on what is held below a number, in order, and what follows from there; nothing below it is held then."""
        self.due = max(self.due, due)
        for number in sorted(number for number in self.held if number < self.due):
            yield self.held.pop(number)[1]
        yield from self.pass_on()

    def waits_since(self) -> float | None:
        """Return since when something waits for what is due; None where nothing does."""
        since = [arrived for arrived, _ in self.held.values()]
        if self.total is not None and self.due < self.total:
            since.append(self.ended_s)
        return min(since, default=None)

    def close_gap(self, sequence: int) -> bool:
        """Take a number out of what was given up; False where it was not."""
        at = bisect_right(self.gaps, (sequence, sequence)) if self.gaps else 0
        for k in (at - 1, at):
            if 0 <= k < len(self.gaps) and self.gaps[k][0] <= sequence <= self.gaps[k][1]:
                first, last = self.gaps[k]
                self.gaps[k : k + 1] = [
                    part for part in ((first, sequence - 1), (sequence + 1, last)) if part[0] <= part[1]
                ]
                return True
        return False


class Resequencer(Generic[T]):
    """Hold what came too early until what is before it has come, but not for ever.

    Each producer is a line of its own, numbered from 0. What has no number is passed on as it comes. A number that is
    waited for too long, or with too many waiting behind it, is given up: it is then in ``missing``. If it comes after
    all it is passed on late, and is missing no more.

    Parameters
    ----------
    max_held
        Items of one producer that wait for a missing one, at most.
    max_wait_s
        How long an item waits, at most.

    Attributes
    ----------
    duplicates
        Items whose number had come before.
    late
        Items that came after they had been given up.
    """

    def __init__(self, *, max_held: int = 64, max_wait_s: float = 10.0) -> None:
        if max_held < 1 or not max_wait_s >= 0:
            raise UsageError(
                f"max_held is {max_held}, max_wait_s {max_wait_s}", fix="hold one at least, wait 0 s or more"
            )
        self.max_held, self.max_wait_s = max_held, max_wait_s
        self.duplicates = self.late = 0
        self._lines: dict[str, _Line[T]] = {}
        self._refused: list[tuple[str, int, T]] = []

    def expect(self, producer: str, sequence: int) -> list[T]:
        """Say that what a producer numbered below ``sequence`` is known and will not come.

        Returns
        -------
        list
            What was held below it, in order, and what is ready by it.
        """
        return list(self._line(producer).go_on_at(sequence))

    def add(self, producer: str, sequence: int | None, item: T, now_s: float) -> list[T]:
        """Take an item in and return those that are ready, in order.

        Parameters
        ----------
        producer
            Who made it.
        sequence
            Its running number from 0; None where the producer does not count.
        item
            Anything.
        now_s
            The time, of a clock that does not jump.
        """
        if sequence is None:
            return [item]
        line = self._line(producer)
        if sequence in line.held or (sequence < line.due and not line.close_gap(sequence)):
            self.duplicates += 1
            self._refused.append((producer, sequence, item))
            return []
        if sequence < line.due:
            self.late += 1
            return [item]
        line.held[sequence] = (now_s, item)
        ready = list(line.pass_on())
        while len(line.held) > self.max_held:
            ready += line.skip()
        return ready

    def end(self, producer: str, total: int | None, now_s: float) -> list[T]:
        """Take note that a producer has ended after ``total`` items, and return those that are ready."""
        if total is not None:
            line = self._line(producer)
            line.total, line.ended_s = max(total, line.total or 0), now_s
        return []

    def expire(self, now_s: float) -> list[T]:
        """Give up what has been waited for too long and return what that sets free, in order."""
        ready: list[T] = []
        for line in self._lines.values():
            while (since := line.waits_since()) is not None and now_s - since >= self.max_wait_s:
                ready += line.skip()
        return ready

    def flush(self) -> list[T]:
        """Give up all that is missing and return all that is held, in order."""
        ready: list[T] = []
        for line in self._lines.values():
            while line.waits_since() is not None:
                ready += line.skip()
        return ready

    def take_refused(self) -> list[tuple[str, int, T]]:
        """Return the duplicates that came since the last call: producer, number, item."""
        refused, self._refused = self._refused, []
        return refused

    @property
    def held(self) -> int:
        """How many items wait."""
        return sum(len(line.held) for line in self._lines.values())

    @property
    def missing(self) -> dict[str, list[tuple[int, int]]]:
        """First and last number of every range that was given up, by producer."""
        return {name: list(line.gaps) for name, line in self._lines.items() if line.gaps}

    def due(self) -> dict[str, int]:
        """Return the next number of each producer."""
        return {name: line.due for name, line in self._lines.items()}

    def next_s(self) -> float | None:
        """Return when `expire` will next set something free; None where nothing waits."""
        since = [one for line in self._lines.values() if (one := line.waits_since()) is not None]
        return min(since) + self.max_wait_s if since else None

    def _line(self, producer: str) -> _Line[T]:
        return self._lines.setdefault(producer, _Line())
