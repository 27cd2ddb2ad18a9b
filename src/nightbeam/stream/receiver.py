"""Receiving: messages out of all shards of a queue, in the order in which one producer put them."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from nightbeam.core.errors import ConfigError, NightbeamError, UnavailableError
from nightbeam.stream.faults import line_of, ray_errors, root_of
from nightbeam.stream.queues import ShardedQueue

__all__ = ["Receiver", "Unreadable"]

log = logging.getLogger(__name__)

_MOST_WAIT_S: Final = 0.1
#: A question costs a millisecond of CPU. With 8 shards that have nothing this makes some 3 % of a core.
_IDLE_S: Final = 0.15


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What came in place of a message.

    Attributes
    ----------
    reason
        A short word that is counted: ``unreadable``: a message was taken and cannot be unpickled here; ``shard
        lost``: a shard has died with what it held, which may have been nothing; ``shard silent``: it could not be
        reached just now, and the message of one answer may be lost.
    text
        What there is to say.
    shard
        Where.
    """

    reason: str
    text: str
    shard: int


@dataclass(slots=True)
class _Lane:
    """What a receiver knows of a shard."""

    open: deque[tuple[Any, int, float]] = field(default_factory=deque)  # reference, number of the question, since when
    items: deque[tuple[Any, int]] = field(default_factory=deque)  # message, number of the last question when it came
    empty: int = -1  # number of the last question to which the answer was: nothing
    due_s: float = 0.0
    wait_s: float = 0.0


class Receiver:
    """What takes messages out of a queue, all shards at once, in the order in which one producer put them.

    A shard that has nothing is asked again after ``poll_s``, later and later, so that waiting costs little: the shard
    whose turn it is every 150 ms, the others less often the more there are.

    An item is gone from the queue as soon as a shard has answered. Therefore `stop_asking` and `drain` at the end.

    Parameters
    ----------
    queue
        Which.
    in_flight
        Questions and messages held here, for each shard.
    poll_s
        The first pause before a shard that had nothing is asked again.

    Raises
    ------
    ConfigError
        If a number is not above 0.
    """

    def __init__(self, queue: ShardedQueue, *, in_flight: int = 1, poll_s: float = 0.01) -> None:
        if in_flight < 1 or not poll_s > 0:
            raise ConfigError(f"in_flight is {in_flight}, poll_timeout {poll_s}", fix="give numbers above 0")
        self.queue, self._in_flight, self._poll_s = queue, in_flight, poll_s
        self._lanes = [_Lane() for _ in range(queue.num_shards)]
        self._turn = 0
        self._asked = 0
        self._stopped = False
        self._sizes: list[Any] = []

    def take(self, timeout_s: float | None) -> Any:
        """Return the next message, an `Unreadable` in its place, or None where none came in time.

        Parameters
        ----------
        timeout_s
            How long to wait; None: for ever.

        Raises
        ------
        UnavailableError
            If every shard has died.
        """
        until = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while True:
            found = self._next()
            now = time.monotonic()
            if found is not None or (now >= until and timeout_s):
                return found
            if not self._stopped:
                self._ask_those_due(now)
            elif not any(lane.open for lane in self._lanes):
                return self._next(strict=False)
            self._await(min(until, now + _MOST_WAIT_S) - now)
            if now >= until:
                return self._next()

    def look_once(self) -> Any:
        """Ask every shard and return what comes first, in no order; None: each has answered that it has nothing.

        A shard that does not answer within a second counts as one that has nothing.
        """
        begin = self._asked
        until = time.monotonic() + 1.0
        while True:
            found = self._next(strict=False)
            open_ones = [k for k in self._living() if self._lanes[k].empty < begin]
            if found is not None or not open_ones or time.monotonic() > until:
                return found
            for k in open_ones:
                if not self._lanes[k].open:
                    self._ask(k)
            self._await(0.05)

    def size(self, timeout_s: float = 0.2) -> int:
        """Return how many messages the queue holds, without waiting long.

        Raises
        ------
        UnavailableError
            If a shard does not say so in time; the next call looks whether it has answered meanwhile.
        """
        import ray

        if self._sizes:
            timeout_s = 0.0  # that long it was waited for before
        with ray_errors(f"the size of queue {self.queue.name!r}"):
            self._sizes = self._sizes or [self.queue.call(k, "size") for k in self._living()]
            late = self._sizes and ray.wait(self._sizes, num_returns=len(self._sizes), timeout=timeout_s)[1]
            if late:
                raise UnavailableError(f"{len(late)} shards of queue {self.queue.name!r} do not say their size")
            answers, self._sizes = self._sizes, []
            return sum(ray.get(answers))

    def stop_asking(self) -> None:
        """Ask no more; `take` still returns what open questions bring."""
        self._stopped = True

    def drain(self, *, timeout_s: float = 5.0) -> list[Any]:
        """Stop asking and return all that open questions still bring; where the cluster has gone, what is here."""
        self.stop_asking()
        until = time.monotonic() + timeout_s
        found = []
        try:
            while any(lane.open for lane in self._lanes) and time.monotonic() < until:
                self._await(0.1)
        except NightbeamError as error:
            log.error("queue %r does not bring what it was asked for: %s", self.queue.name, error)
        while (item := self._first(strict=False)) is not None:
            found.append(item)
        if late := [k for k, lane in enumerate(self._lanes) if lane.open]:
            log.error("shards %s of queue %r did not answer; a message of each may be lost", late, self.queue.name)
        return found

    # A message is handed out when every shard before its own, from the one whose turn it is, has said after the
    # message came that it has nothing: with one producer, that is the order in which it put them.

    def _next(self, *, strict: bool = True) -> Any:
        found = self._first(strict=strict)
        if found is None and not any(lane.items for lane in self._lanes) and not self._living():
            raise self.queue.gone()
        return found

    def _first(self, *, strict: bool) -> Any:
        n = len(self._lanes)
        for i in range(n):
            k = (self._turn + i) % n
            lane = self._lanes[k]
            if not lane.items:
                continue
            item, question = lane.items[0]
            if isinstance(item, Unreadable) and item.reason != "unreadable":
                return lane.items.popleft()[0]  # news of a shard; it is still the same one's turn
            if strict and not self._stopped and not self._all_empty_since(question, range(i)):
                return None
            self._turn = (k + 1) % n
            return self._hand_out(lane)
        return None

    def _hand_out(self, lane: _Lane) -> Any:
        for one in self._lanes:
            one.wait_s = one.due_s = 0.0
        return lane.items.popleft()[0]

    def _all_empty_since(self, question: int, steps: range) -> bool:
        sure, now = True, time.monotonic()
        for i in steps:
            k = (self._turn + i) % len(self._lanes)
            lane = self._lanes[k]
            slow = bool(lane.open) and now - lane.open[0][2] > 1.0
            if k in self.queue.dead or lane.empty > question or slow:
                continue
            lane.due_s, sure = 0.0, False
        return sure

    def _living(self) -> list[int]:
        return [k for k in range(len(self._lanes)) if k not in self.queue.dead]

    def _ask_those_due(self, now: float) -> None:
        living = [(k, self._lanes[k]) for k in self._living()]
        if not any(lane.due_s <= now and self._wants_more(lane) for _, lane in living):
            return
        for k, lane in living:
            # Two questions at once cost little more than one: whose turn comes soon is asked with those who are due.
            if lane.due_s - min(lane.wait_s / 2, _IDLE_S / 3) <= now:
                while len(lane.open) + len(lane.items) < self._in_flight:
                    self._ask(k)

    def _ask(self, k: int) -> None:
        self._asked += 1
        self._lanes[k].open.append((self.queue.call(k, "get"), self._asked, time.monotonic()))

    def _await(self, seconds: float) -> None:
        """Wait for an answer, or until a shard is to be asked again, and take in the answers that are there."""
        import ray

        now = time.monotonic()
        if not self._stopped:
            free = [self._lanes[k].due_s - now for k in self._living() if self._wants_more(self._lanes[k])]
            seconds = min(seconds, *free) if free else seconds
        seconds = max(seconds, 0.0)
        refs = [lane.open[0][0] for lane in self._lanes if lane.open]
        if not refs:
            time.sleep(seconds)
            return
        with ray_errors(f"queue {self.queue.name!r}"):
            # A question that has been put is answered in a millisecond: not to wait for it would only ask again.
            ready, rest = ray.wait(refs, timeout=max(seconds, 0.002))
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        there = set(ready)
        for k, lane in enumerate(self._lanes):
            while lane.open and lane.open[0][0] in there:
                self._take_in(k, lane)

    def _wants_more(self, lane: _Lane) -> bool:
        return len(lane.open) + len(lane.items) < self._in_flight

    def _take_in(self, k: int, lane: _Lane) -> None:
        ref, question, _ = lane.open.popleft()
        answer = self._read(k, ref)
        if answer is not None:
            lane.items.append((answer, self._asked))
            return
        lane.empty = question
        if k in self.queue.dead:
            return
        most_s = _IDLE_S if k == self._turn else max(_IDLE_S, _IDLE_S / 2 * len(self._lanes))
        lane.wait_s = min(max(2 * lane.wait_s, self._poll_s), max(most_s, self._poll_s))
        lane.due_s = time.monotonic() + lane.wait_s

    def _read(self, k: int, ref: Any) -> Any:
        import ray

        try:
            answer = ray.get(ref)
        except ray.exceptions.RayActorError as error:
            return self._failure(k, error)
        except (ray.exceptions.RpcError, ray.exceptions.LocalRayletDiedError, ConnectionError) as error:
            raise UnavailableError(
                f"queue {self.queue.name!r} cannot be reached: {line_of(error)}", fix="is the Ray cluster still up?"
            ) from error
        except Exception as error:  # to unpickle a stranger's message may raise anything
            text = f"a message of shard {k} of queue {self.queue.name!r} cannot be read: {line_of(root_of(error))}"
            log.error("%s", text)
            return Unreadable("unreadable", text, k)
        self.queue.note_answer(k)
        return answer

    def _failure(self, k: int, error: BaseException) -> Unreadable | None:
        if k in self.queue.dead:
            return None
        state = self.queue.note_failure(k, error)
        if state == "still silent":
            return None
        what, reason = ("has died", "shard lost") if state == "dead" else ("does not answer", "shard silent")
        return Unreadable(reason, f"shard {k} of queue {self.queue.name!r} {what}: {line_of(error)}", k)
