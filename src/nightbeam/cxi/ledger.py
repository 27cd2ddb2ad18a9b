"""Which batches of which producer were taken, which of them ended in a file, and which are nowhere."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.locks import is_held
from nightbeam.stream.model import BatchHeader

__all__ = [
    "ProducerAccount",
    "ProducerLedger",
    "Range",
    "Ranges",
    "StreamLedger",
    "account",
    "batches_of_file",
    "lock_path",
    "read_status",
    "status_path",
]

_log = logging.getLogger(__name__)

_MOST_BYTES: Final = 64 << 20
_MOST_RANGES: Final = 100_000
_MOST: Final = 1 << 62


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Batches ``first`` to ``last`` of a producer, both included.

    Attributes
    ----------
    first, last
        Running numbers.
    first_event, end_event
        Number of their first event, and of the first one after them; None where the producer does not count events.
    """

    first: int
    last: int
    first_event: int | None = None
    end_event: int | None = None

    @property
    def events(self) -> int | None:
        """Return how many events they hold; None where nobody said."""
        if self.first_event is None or self.end_event is None:
            return None
        return self.end_event - self.first_event


class Ranges:
    """A set of running numbers that are mostly consecutive.

    Parameters
    ----------
    ranges
        To begin with; in any order.
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._all: list[Range] = []
        for one in sorted(ranges):
            self._insert(one)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._all)

    def __len__(self) -> int:
        return sum(one.last - one.first + 1 for one in self._all)

    def __contains__(self, number: int) -> bool:
        at = self._before(number)
        return at >= 0 and self._all[at].last >= number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._all == other._all

    __hash__ = None  # type: ignore[assignment]

    def add(self, number: int, first_event: int | None = None, n_events: int | None = None) -> bool:
        """Take a number in; False if it was there."""
        if number in self:
            return False
        known = first_event is not None and n_events is not None
        self._insert(Range(number, number, first_event, first_event + n_events if known else None))  # type: ignore[operator]
        return True

    def without(self, other: Ranges) -> list[Range]:
        """Return what is in here and not in ``other``; events are known where their borders are."""
        left: list[Range] = []
        for one in self._all:
            first, event = one.first, one.first_event
            for cut in other._all:
                if cut.last < first or cut.first > one.last:
                    continue
                if cut.first > first:
                    left.append(Range(first, cut.first - 1, event, cut.first_event))
                first, event = cut.last + 1, cut.end_event
            if first <= one.last:
                left.append(Range(first, one.last, event, one.end_event))
        return [_sure(one) for one in left]

    def gaps(self) -> list[Range]:
        """Return what lies between the first of all numbers, 0, and the last one here, and is not here."""
        found, first, event = [], 0, 0 if self._all and self._all[0].first_event is not None else None
        for one in self._all:
            if one.first > first:
                found.append(_sure(Range(first, one.first - 1, event, one.first_event)))
            first, event = one.last + 1, one.end_event
        return found

    def to_json(self) -> list[list[int | None]]:
        """Return ``[first, last, first_event, end_event]`` of each."""
        return [[one.first, one.last, one.first_event, one.end_event] for one in self._all]

    @classmethod
    def from_json(cls, rows: Any) -> Ranges:
        """Return what `to_json` returned.

        Raises
        ------
        InputError
            If it is something else.
        """
        if not isinstance(rows, list) or len(rows) > _MOST_RANGES:
            raise InputError("ranges are a list of at most 100000", fix="the status file is damaged: remove it")
        return cls(_range(row) for row in rows)

    def _before(self, number: int) -> int:
        low, high = 0, len(self._all)
        while low < high:
            middle = (low + high) // 2
            if self._all[middle].first <= number:
                low = middle + 1
            else:
                high = middle
        return low - 1

    def _insert(self, new: Range) -> None:
        at = self._before(new.first)
        if at >= 0 and self._all[at].last >= new.first:
            if self._all[at].last >= new.last:
                return
            new = Range(self._all[at].last + 1, new.last, self._all[at].end_event, new.end_event)
        self._all.insert(at + 1, new)
        self._join(at + 1)
        if at >= 0:
            self._join(at)

    def _join(self, at: int) -> None:
        """Make one of two neighbours where nothing lies between them."""
        if at + 1 >= len(self._all):
            return
        left, right = self._all[at], self._all[at + 1]
        if left.last + 1 == right.first and left.end_event == right.first_event:
            self._all[at : at + 2] = [Range(left.first, right.last, left.first_event, right.end_event)]


def _sure(one: Range) -> Range:
    """Return the range without its events where their numbers make no sense."""
    events = one.events
    if events is None or events < 0:
        return Range(one.first, one.last)
    return one


def _range(row: Any) -> Range:
    good = isinstance(row, list) and len(row) == 4
    if good:
        numbers = [one for one in row if one is not None]
        good = all(type(one) is int and 0 <= one < _MOST for one in numbers) and None not in row[:2]
    if not good or row[1] < row[0]:
        raise InputError(f"{str(row)[:60]} is no range", fix="the status file is damaged: remove it")
    return Range(*row)


@dataclass(slots=True)
class ProducerLedger:
    """What one producer's batches came to.

    Attributes
    ----------
    taken
        Batches that were taken out of the queue.
    settled
        Those of them whose events are in files, or were counted as filtered, rejected or lost.
    abandoned
        Batches that a writer that was killed had taken and not settled.
    ended
        Whether its end marker has come.
    since
        When the first of them was taken, ISO 8601; files that are older are of an earlier stream.
    """

    taken: Ranges = field(default_factory=Ranges)
    settled: Ranges = field(default_factory=Ranges)
    abandoned: Ranges = field(default_factory=Ranges)
    ended: bool = False
    since: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "taken": self.taken.to_json(),
            "settled": self.settled.to_json(),
            "abandoned": self.abandoned.to_json(),
            "ended": self.ended,
            "since": self.since,
        }

    @classmethod
    def from_json(cls, tree: Any) -> ProducerLedger:
        """Return what `to_json` returned.

        Raises
        ------
        InputError
            If it is something else.
        """
        if not isinstance(tree, Mapping):
            raise InputError("a producer's ledger is no object", fix="the status file is damaged: remove it")
        ranges = {name: Ranges.from_json(tree.get(name, [])) for name in ("taken", "settled", "abandoned")}
        return cls(**ranges, ended=tree.get("ended") is True, since=str(tree.get("since", ""))[:40])


class StreamLedger:
    """The ledgers of all producers that number their batches.

    Parameters
    ----------
    producers
        Of earlier writers of the same files.
    """

    def __init__(self, producers: Mapping[str, ProducerLedger] | None = None) -> None:
        self.producers: dict[str, ProducerLedger] = dict(producers or {})
        self._mine: set[str] = set()
        self._pages: Counter[str] = Counter()

    def take(self, header: BatchHeader, *, now: str) -> None:
        """Note that a batch was taken.

        A producer that has ended, or was heard by an earlier writer, and begins again gets a new page.
        """
        if header.sequence is None:
            return
        page = self.producers.get(header.producer)
        if page is None or (header.producer not in self._mine and header.sequence in page.taken):
            page = self.producers[header.producer] = ProducerLedger(since=now)
            self._pages[header.producer] += 1
        self._mine.add(header.producer)
        page.ended = False
        page.taken.add(header.sequence, header.first_event, header.n_events)

    def page_of(self, producer: str) -> str:
        """Return a name for a producer that is another one after it has begun again."""
        return f"{producer}\0{self._pages[producer]}"

    def settle(self, header: BatchHeader) -> None:
        """Note that every event of a batch is in a file or counted."""
        page = self.producers.get(header.producer)
        if header.sequence is not None and page is not None:
            page.settled.add(header.sequence, header.first_event, header.n_events)

    def end(self, producer: str) -> None:
        """Note that a producer has no more."""
        if producer in self.producers:
            self.producers[producer].ended = True
        self._mine.discard(producer)

    def due(self) -> dict[str, int]:
        """Return the number that each unfinished producer of an earlier writer is expected to go on with."""
        return {
            name: max(one.last for one in page.taken) + 1
            for name, page in self.producers.items()
            if not page.ended and len(page.taken)
        }

    def missing(self) -> dict[str, list[Range]]:
        """Return what never came, by producer: numbers below the last one that were not taken."""
        found = {name: page.taken.gaps() for name, page in self.producers.items()}
        return {name: gaps for name, gaps in found.items() if gaps}

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {name: page.to_json() for name, page in self.producers.items()}

    @classmethod
    def from_json(cls, tree: Any) -> StreamLedger:
        """Return what `to_json` returned.

        Raises
        ------
        InputError
            If it is something else.
        """
        if not isinstance(tree, Mapping):
            raise InputError("the ledger is no object", fix="the status file is damaged: remove it")
        return cls({str(name): ProducerLedger.from_json(page) for name, page in tree.items()})


# -- after the writer has gone ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProducerAccount:
    """What became of one producer's batches.

    Attributes
    ----------
    producer
        Its name.
    received
        Batches that were taken and are in files, or were counted as filtered, rejected or lost.
    missing
        Batches that were taken and are nowhere, because the writer was killed.
    never_received
        Batches before the last one taken that were not taken; what a writer took in the last second before it was
        killed is among them.
    in_hand
        Batches that a running writer has in work.
    events_missing
        Events of ``missing``; None where the producer does not count them.
    """

    producer: str
    received: tuple[Range, ...]
    missing: tuple[Range, ...]
    never_received: tuple[Range, ...]
    in_hand: tuple[Range, ...]
    events_missing: int | None


def status_path(output_dir: Path, prefix: str) -> Path:
    """Return where a writer says how it does."""
    return output_dir / f"{prefix}_status.json"


def lock_path(output_dir: Path, prefix: str) -> Path:
    """Return the lock of the writer of a directory and prefix."""
    return output_dir / f".{prefix}.lock"


def read_status(path: Path) -> dict[str, Any]:
    """Return a writer's status file.

    Raises
    ------
    MissingError
        If there is none.
    InputError
        If it is no status.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        tree = json.loads(data) if len(data) <= _MOST_BYTES else None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"no status file {path}", fix="check the directory and --prefix") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no status file: {str(error)[:100]}", fix="remove it") from error
    if not isinstance(tree, dict) or "counters" not in tree:
        raise InputError(f"{path} is no status file of a CXI writer", fix="remove it")
    return tree


def account(output_dir: Path, prefix: str = "peaknet_cxi") -> list[ProducerAccount]:
    """State which batches were taken and never written.

    Parameters
    ----------
    output_dir, prefix
        Of the writer, which may be running or not.

    Returns
    -------
    list of ProducerAccount
        By name. Producers that do not number their batches cannot be accounted for.

    Raises
    ------
    MissingError, InputError
        If there is no status file, or it is damaged.
    """
    ledger = StreamLedger.from_json(read_status(status_path(output_dir, prefix)).get("producers", {}))
    running = is_held(lock_path(output_dir, prefix))
    files = _batches_in_files(output_dir)
    return [_account(name, page, files.get(name, []), running) for name, page in sorted(ledger.producers.items())]


def reconcile(ledger: StreamLedger, output_dir: Path) -> dict[str, list[Range]]:
    """Settle what files hold, and mark what an earlier writer had taken beyond it as abandoned.

    Returns
    -------
    dict
        What is newly known to be abandoned, by producer.
    """
    files, found = _batches_in_files(output_dir), {}
    for name, page in ledger.producers.items():
        _add_files(page, files.get(name, []))
        gone = Ranges(page.taken.without(page.settled)).without(page.abandoned)
        if gone:
            found[name] = gone
            page.abandoned = Ranges([*page.abandoned, *gone])
    return found


def batches_of_file(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return when a file was made, and the batches that it holds whole or in part.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            rows = json.loads(str(file.attrs.get("batches", "[]")))
            made = str(file.attrs.get("creation_time", ""))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {str(error)[:100]}", fix="nightbeam cxi check says what is wrong") from error
    return made, [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _batches_in_files(output_dir: Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path in sorted([*output_dir.glob("*.cxi"), *output_dir.glob("r[0-9]*/*.cxi")]):
        try:
            made, rows = batches_of_file(path)
        except InputError as error:
            _log.warning("%s", error)
            continue
        for row in rows:
            found.setdefault(str(row.get("producer", "")), []).append((made, row))
    return found


def _account(name: str, page: ProducerLedger, rows: list[tuple[str, dict[str, Any]]], running: bool) -> ProducerAccount:
    _add_files(page, rows)
    open_ = page.taken.without(page.settled)
    in_hand = Ranges(open_).without(page.abandoned) if running else []
    missing = tuple(page.abandoned) if running else tuple(open_)
    counts = [one.events for one in missing]
    return ProducerAccount(
        producer=name,
        received=tuple(page.settled),
        missing=missing,
        never_received=tuple(page.taken.gaps()),
        in_hand=tuple(in_hand),
        events_missing=None if None in counts else sum(count for count in counts if count is not None),
    )


def _add_files(page: ProducerLedger, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Settle the batches whose events are all accounted for by files of this stream."""
    parts: dict[int, list[dict[str, Any]]] = {}
    for made, row in rows:
        if made[:19] >= page.since[:19] and type(row.get("sequence")) is int and 0 <= row["sequence"] < _MOST:
            parts.setdefault(row["sequence"], []).append(row)
    for sequence, some in sorted(parts.items()):
        first, events = (_number(some[0].get(key)) for key in ("first_event", "events"))
        page.taken.add(sequence, first, events)
        if _is_whole(some):
            page.settled.add(sequence, first, events)


def _is_whole(rows: list[dict[str, Any]]) -> bool:
    """Return whether these files hold all hits of a batch."""
    hits = [_number(row.get("hits")) for row in rows]
    if hits[0] is None:
        return True
    return sum(_number(row.get("written")) or 0 for row in rows) >= hits[0]


def _number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST else None
