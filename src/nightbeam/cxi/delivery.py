"""From the work to the files: what came of batches goes on in the order in which their producers made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nightbeam.cxi.outlet import Outlet, Parcel
from nightbeam.stream.order import Resequencer

__all__ = ["Delivery"]

_GAP_WAIT_S: Final = 10.0


@dataclass(slots=True, eq=False)
class _Result:
    """What became of a batch: a parcel, or nothing where it was turned down; its place in which line."""

    line: str
    sequence: int | None
    number: int | None
    parcel: Parcel | None


class Delivery:
    """Put what came of batches into the outlet, each when its turn has come; know what they keep in memory.

    Where order is wanted, jobs are brought into that of their numbers first, and then batches into that of their lines:
    what comes of a number that came twice does not depend on who was faster.

    Parameters
    ----------
    outlet
        Takes the parcels.
    ordered
        Whether order is wanted; else all goes on as it comes.
    clock
        Seconds, of a clock that does not jump.
    """

    def __init__(self, outlet: Outlet, *, ordered: bool, clock: Callable[[], float]) -> None:
        self._outlet, self._ordered, self._clock = outlet, ordered, clock
        self._order: Resequencer[_Result] = Resequencer(max_wait_s=_GAP_WAIT_S)
        self._results: dict[int, _Result] = {}
        self._next = 0
        self._bytes: dict[int, int] = {}

    # -- memory -------------------------------------------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """Bytes of the batches that are in work or wait for their turn."""
        return sum(list(self._bytes.values()))

    @property
    def pending_bytes(self) -> int:
        """Bytes of all batches that were taken and are not with the files."""
        return self.held_bytes + self._outlet.waiting_bytes

    def keep(self, number: int, n_bytes: int) -> None:
        """Note how many bytes the batch of a job keeps, from now until it goes on."""
        self._bytes[number] = n_bytes

    def free(self, number: int) -> None:
        """Note that the batch of a job keeps nothing any more."""
        self._bytes.pop(number, None)

    # -- order --------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many results wait for a batch before them that has not come."""
        return self._order.held

    def deliver(self, number: int, line: str, sequence: int | None, parcel: Parcel | None) -> None:
        """Take what came of a job; it goes on when its turn has come.

        Parameters
        ----------
        number
            Of the job, counted from 0 without a hole.
        line, sequence
            Where its batch stands; no ``sequence`` where the producer does not count.
        parcel
            None: nothing is left of the batch.
        """
        result = _Result(line, sequence, number, parcel)
        if not self._ordered:
            self._pass_on([result])
            return
        self._results[number] = result
        while self._next in self._results:
            self._in_sequence(self._results.pop(self._next))
            self._next += 1

    def skip(self, line: str, sequence: int) -> None:
        """Let what follows a batch that was turned down not wait for it."""
        if self._ordered:
            self._in_sequence(_Result(line, sequence, None, None))

    def expect(self, line: str, due: int) -> None:
        """Let nobody wait for what stands before ``due`` in a line."""
        self._pass_on(self._order.expect(line, due))

    def end(self, line: str, total: int | None) -> None:
        """Note that a line has ended after so many batches, where it says so."""
        self._pass_on(self._order.end(line, total, self._clock()))

    def expire(self) -> None:
        """Let go on what has waited for too long."""
        self._pass_on(self._order.expire(self._clock()))

    def flush(self) -> None:
        """Let go on all that waits for a batch that has not come."""
        self._pass_on(self._order.flush())

    def _in_sequence(self, result: _Result) -> None:
        ready = self._order.add(result.line, result.sequence, result, self._clock())
        self._pass_on([*ready, *(again for _, _, again in self._order.take_refused())])

    def _pass_on(self, results: list[_Result]) -> None:
        for result in results:
            if result.number is not None:
                self.free(result.number)
            if result.parcel is not None:
                self._outlet.put(result.parcel)
