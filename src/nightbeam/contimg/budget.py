"""The memory of this machine, shared by the steps that run on it: each says what it takes and waits for its turn.

A ledger of small files, one for each step that waits or works, in a directory of this host. A file is added, renamed
and removed under a lock; that of a process that is gone counts no more. So a step that is killed gives its memory back
with its life, and one that has ended does so on a full disk too, where nothing can be written.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nightbeam.contimg.owners import process_birth, same_process
from nightbeam.core.errors import ConfigError, ResourceError, StorageError
from nightbeam.core.files import write_text
from nightbeam.core.locks import sole_owner
from nightbeam.core.memory import Memory, read_memory

__all__ = ["Budget", "Ledger", "Place", "Refusal", "why_not", "why_waiting"]

logger = logging.getLogger(__name__)

#: The share of the machine's memory that groups may take, where no setting says so.
SHARE_OF_MEMORY = 0.75
#: Between two looks of one that waits, and how long one may be silent that others wait for.
_LOOK_S, _SILENT_S = 1.0, 60.0
#: How often one that waits asks whether it is to wait still.
_ASK_S = 30.0
_LOCK_WAIT_S = 30.0
_WAITS, _WORKS = ".waits", ".works"


@dataclass(frozen=True, slots=True)
class Place:
    """A step in the ledger.

    Attributes
    ----------
    ident
        Of this step, once.
    order
        Who has the smaller goes first: the name of its group, which is the time of its data.
    step, memory_bytes
        What is to be done, and what it takes.
    pid, birth
        Of its process (`nightbeam.contimg.owners.process_birth`).
    works
        Whether it has begun.
    reason
        What it waits for.
    same_step
        Steps of its kind at a time, as its own process counts them; None where that is not said.
    """

    ident: str
    order: str
    step: str
    memory_bytes: int
    pid: int
    birth: str | None = None
    works: bool = False
    reason: str = ""
    same_step: int | None = None

    @property
    def turn(self) -> tuple[str, str]:
        """What those who wait are sorted by."""
        return self.order, self.ident


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a step may not begin now.

    Attributes
    ----------
    kind : {"step", "order", "budget", "machine"}
        Enough of its kind work; an older one waits; the budget is taken; the machine has no memory free.
    text
        The same for people.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Budget:
    """What steps may take together, and how long one waits for memory that nobody of ours holds.

    Attributes
    ----------
    memory_gb
        None: three quarters of the machine's, or of what its cgroup allows.
    same_step
        Steps of a kind at a time.
    patience_s
        After which a step gives up waiting for memory that others than our steps have.
    """

    memory_gb: float | None = None
    same_step: int | None = None
    patience_s: float = 600.0

    def bytes_of(self, memory: Memory) -> int:
        """Return the budget on a machine."""
        return int(SHARE_OF_MEMORY * memory.total_bytes) if self.memory_gb is None else int(self.memory_gb * 1e9)


def why_not(
    mine: Place, others: Iterable[Place], *, budget_bytes: int, same_step: int, available_bytes: int
) -> Refusal | None:
    """Return why a step may not begin now; None if it may.

    The oldest data go first: nobody passes an older step that waits for memory. One that waits only because enough of
    its own kind work is passed, or groups would not overlap. A step larger than the budget works alone.

    Parameters
    ----------
    mine
        Who asks.
    others
        All others in the ledger.
    budget_bytes
        What all may take together.
    same_step
        Steps of this kind at a time; of others, their own number counts.
    available_bytes
        What the machine has free now.
    """
    others = list(others)
    working = [place for place in others if place.works]
    if same := _too_many(mine, working, same_step):
        return Refusal("step", f"{mine.step} of {', '.join(same)} is at work")
    for older in sorted((p for p in others if not p.works and p.turn < mine.turn), key=lambda place: place.turn):
        if not _too_many(older, working, older.same_step or same_step):
            return Refusal("order", f"{older.step} of {older.order} is before it")
    used = sum(place.memory_bytes for place in working)
    if working and used + mine.memory_bytes > budget_bytes:
        who = ", ".join(f"{place.step} of {place.order}" for place in working)
        wanted = f"{_gb(mine.memory_bytes)} of memory wanted"
        return Refusal("budget", f"{wanted}, {_gb(used)} of {_gb(budget_bytes)} are taken by {who}")
    if available_bytes < mine.memory_bytes:
        wanted = f"{_gb(mine.memory_bytes)} of memory wanted"
        return Refusal("machine", f"{wanted}, {_gb(available_bytes)} are free on the machine")
    return None


def _too_many(mine: Place, working: Sequence[Place], same_step: int) -> list[str]:
    same = [place.order for place in working if place.step == mine.step]
    return same if len(same) >= same_step else []


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


#: Steps of this process that wait or work; what else bears its number in the ledger is of an end that was cut short.
_ours: set[str] = set()


class Ledger:
    """Who waits and who works on this host.

    Parameters
    ----------
    directory
        In the site's state; each host has one below it.
    read, clock, sleep
        Memory, seconds that only grow, and how one waits.
    """

    def __init__(
        self,
        directory: Path,
        *,
        read: Callable[[], Memory] = read_memory,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._directory = directory / socket.gethostname()
        self._read, self._clock, self._sleep = read, clock, sleep

    @contextmanager
    def turn(
        self,
        order: str,
        step: str,
        memory_bytes: int,
        *,
        budget: Budget,
        same_step: int = 1,
        lower: str = "",
        still: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Wait until a step may begin, and hold its memory for the block.

        Parameters
        ----------
        order, step, memory_bytes
            As in `Place`.
        budget
            What all may take together.
        same_step
            Steps of this kind at a time, where the budget does not say it.
        lower
            Settings that make this step smaller, for the error.
        still
            Called every half minute while it waits; an error of it ends the wait.

        Raises
        ------
        ConfigError
            If it takes more than the machine has.
        ResourceError
            If nothing of ours works and there was too little free memory for ``budget.patience_s``.
        BusyError
            If the ledger is held by somebody for too long.
        StorageError
            If the ledger cannot be written.
        """
        memory = self._read()
        total, what = budget.bytes_of(memory), f"{step} of {order}"
        fix = f"lower {lower}, or " if lower else ""
        if memory_bytes > memory.total_bytes:
            raise ConfigError(
                f"{what} takes {_gb(memory_bytes)} of memory, this machine has {_gb(memory.total_bytes)}",
                fix=f"{fix}work on it on a larger machine",
            )
        if memory_bytes > total:
            logger.warning("%s takes %s, more than the budget of %s: alone", what, _gb(memory_bytes), _gb(total))
        pid, most = os.getpid(), budget.same_step or same_step
        place = Place(uuid.uuid4().hex, order, step, memory_bytes, pid, process_birth(pid), same_step=most)
        _ours.add(place.ident)
        try:
            self._join(place)
            self._wait(place, budget, total, most, fix, still)
            yield
        finally:
            self._leave(place)

    def places(self) -> list[Place]:
        """Return who waits and works, but for the dead, oldest data first."""
        return sorted((place for place, _ in self._look()), key=lambda place: place.turn)

    def _join(self, place: Place) -> None:
        with self._locked():
            write_text(self._path(place, _WAITS), json.dumps(asdict(place)))

    def _wait(
        self, place: Place, budget: Budget, total: int, same_step: int, fix: str, still: Callable[[], None]
    ) -> None:
        begin = free_since = asked = self._clock()
        told = ""
        while refusal := self._try(place, total, same_step):
            now = self._clock()
            if refusal.kind != told:
                told = refusal.kind
                self._say(place, refusal)
            if refusal.kind != "machine" or any(other.works for other, _ in self._look()):
                free_since = now
            elif now - free_since >= budget.patience_s:
                raise ResourceError(
                    f"{place.step} of {place.order}: {refusal.text}, for {now - free_since:.0f} s now",
                    fix=f"{fix}end what else takes memory; it is tried again",
                )
            if now - asked >= _ASK_S:
                asked = now
                still()
            self._sleep(_LOOK_S)
        if told:
            logger.info("%s of %s waited %.0f s", place.step, place.order, self._clock() - begin)

    def _say(self, place: Place, refusal: Refusal) -> None:
        logger.info("%s of %s waits: %s", place.step, place.order, refusal.text)
        with suppress(StorageError, OSError):  # for people alone
            write_text(self._path(place, _WAITS), json.dumps(asdict(replace(place, reason=refusal.text))))

    def _try(self, place: Place, total: int, same_step: int) -> Refusal | None:
        """Begin, or return why not."""
        path, now = self._path(place, _WAITS), time.time()
        with self._locked():
            others = []
            for other, touched in self._look(clean=True):
                silent = not other.works and abs(now - touched) > _SILENT_S
                if other.ident != place.ident and not silent:
                    others.append(other)
            refusal = why_not(
                place,
                others,
                budget_bytes=total,
                same_step=same_step,
                available_bytes=self._read().available_bytes,
            )
            if not path.exists():  # somebody has tidied up too well
                write_text(path, json.dumps(asdict(place)))
            if refusal:
                os.utime(path, (now, now))
            else:
                path.rename(self._path(place, _WORKS))
        return refusal

    def _leave(self, place: Place) -> None:
        _ours.discard(place.ident)
        for state in (_WAITS, _WORKS):
            # Were it to fail, whoever looks next sees that it is not ours any more, or that we are gone.
            with suppress(OSError):
                self._path(place, state).unlink(missing_ok=True)

    def _look(self, *, clean: bool = False) -> list[tuple[Place, float]]:
        found = []
        for path in sorted(self._directory.glob("*.*")) if self._directory.is_dir() else []:
            if path.suffix not in (_WAITS, _WORKS):
                continue
            try:
                place, touched = _read_place(path), path.stat().st_mtime
            except FileNotFoundError:
                continue
            if place is not None and _lives(place):
                found.append((place, touched))
            elif clean:
                logger.warning("%s counts no more: its process is gone", path.name if place is None else place.step)
                path.unlink(missing_ok=True)
        return found

    def _path(self, place: Place, state: str) -> Path:
        return self._directory / f"{place.ident}{state}"

    def _locked(self) -> AbstractContextManager[None]:
        return sole_owner(self._directory / "lock", wait_s=_LOCK_WAIT_S, what="the ledger of memory")


def why_waiting(directory: Path, order: str) -> str | None:
    """Return which step of a group waits for its turn and for what, on whichever host; None if none does."""
    for path in directory.glob(f"*/*{_WAITS}"):
        place = _read_place(path)
        if place is not None and place.order == order:
            return f"{place.step} waits: {place.reason or 'its turn comes'}"
    return None


def _lives(place: Place) -> bool:
    if place.pid == os.getpid() and place.birth == process_birth(place.pid):
        return place.ident in _ours
    return same_process(place.pid, place.birth)


def _read_place(path: Path) -> Place | None:
    try:
        place = Place(**{**json.loads(path.read_text()), "works": path.suffix == _WORKS})
    except (OSError, ValueError, TypeError):
        return None
    kinds: tuple[tuple[Any, Any], ...] = (
        (place.memory_bytes, int),
        (place.pid, int),
        (place.order, str),
        (place.same_step, int | None),
    )
    return place if all(isinstance(value, kind) for value, kind in kinds) else None
