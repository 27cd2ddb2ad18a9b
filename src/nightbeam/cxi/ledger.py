"""Which batches of which producer were taken, which of them ended in a file, and which are nowhere."""

from __future__ import annotations

import json
import logging
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from nightbeam.core.errors import ConfigError, InputError, MissingError
from nightbeam.core.locks import is_held
from nightbeam.cxi.naming import Naming
from nightbeam.stream.model import BatchHeader

__all__ = [
    "Merged",
    "ProducerAccount",
    "ProducerLedger",
    "Range",
    "Ranges",
    "StreamLedger",
    "account",
    "batches_of_file",
    "lock_path",
    "read_status",
    "resume",
    "status_path",
    "total_batches",
    "total_events",
]

_log = logging.getLogger(__name__)

_MOST_BYTES: Final = 64 << 20
_MOST_RANGES: Final = 1_000_000
_MOST: Final = 1 << 62
#: Of a page's ranges, more than this are made fewer: the status is written every second.
_KEPT_RANGES: Final = 1000
_USUAL_TEMPLATE: Final = "{prefix}_{time}_{writer}_chunk{chunk}"
#: Producers whose pages are kept.
_KEPT_PAGES: Final = 200
#: Clocks of file servers go wrong by so much, seconds.
_SLACK_S: Final = 600.0


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
        self._size = 0
        for one in sorted(ranges, key=lambda one: (one.first, one.last)):
            self._insert(one)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._all)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, number: int) -> bool:
        at = self._before(number)
        return at >= 0 and self._all[at].last >= number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._all == other._all

    __hash__ = None  # type: ignore[assignment]

    @property
    def pieces(self) -> int:
        """Return how many ranges they are."""
        return len(self._all)

    @property
    def last(self) -> int | None:
        """Return the largest number; None without any."""
        return self._all[-1].last if self._all else None

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
        cuts, at = other._all, 0
        for one in self._all:
            first, event = one.first, one.first_event
            while at < len(cuts) and cuts[at].last < first:
                at += 1
            while at < len(cuts) and cuts[at].first <= one.last:
                cut = cuts[at]
                if cut.first > first:
                    left.append(Range(first, cut.first - 1, event, cut.first_event))
                first, event = cut.last + 1, cut.end_event
                if cut.last > one.last:  # it cuts into the next one, too
                    break
                at += 1
            if first <= one.last:
                left.append(Range(first, one.last, event, one.end_event))
        return [_sure(one) for one in left]

    def drop(self, last: int, *, border_event: int | None = None) -> None:
        """Take out all numbers up to ``last``; ``border_event`` is the first event after it."""
        at = bisect_right(self._all, last, key=lambda one: one.last)
        rest = self._all[at:]
        if rest and rest[0].first <= last:
            rest[0] = Range(last + 1, rest[0].last, border_event, rest[0].end_event)
        self._all = rest
        self._size = sum(one.last - one.first + 1 for one in rest)

    def fill(self, last: int, *, border_event: int | None = None) -> None:
        """Take in all numbers up to ``last``."""
        self.drop(last, border_event=border_event)
        self._insert(Range(0, last, None if border_event is None else 0, border_event))

    def remove(self, number: int) -> None:
        """Take a number out; events of its range are then known no more."""
        at = self._before(number)
        if at < 0 or self._all[at].last < number:
            return
        one = self._all[at]
        sides = Range(one.first, number - 1, one.first_event), Range(number + 1, one.last, None, one.end_event)
        self._all[at : at + 1] = [side for side in sides if side.first <= side.last]
        self._size -= 1

    def gaps(self) -> list[Range]:
        """Return what lies between the first of all numbers, 0, and the last one here, and is not here."""
        found, first, event = [], 0, 0 if self._all and self._all[0].first_event is not None else None
        for one in self._all:
            if one.first > first:
                found.append(_sure(Range(first, one.first - 1, event, one.first_event)))
            first, event = one.last + 1, one.end_event
        return found

    def border(self, kept: int) -> int:
        """Return the number after which ``kept`` ranges begin; -1 where there are no more than so many."""
        return self._all[-kept].first - 1 if len(self._all) > kept else -1

    def at_or_before(self, number: int) -> tuple[int, int | None]:
        """Return the last number here that is not after ``number``, -1 for none, and the event after it if known."""
        at = self._before(number)
        if at < 0:
            return -1, None
        one = self._all[at]
        return (one.last, one.end_event) if one.last <= number else (number, None)

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
            raise InputError(
                f"ranges are a list of at most {_MOST_RANGES}", fix="the status file is damaged: remove it"
            )
        return cls(_range(row) for row in rows)

    def _before(self, number: int) -> int:
        return bisect_right(self._all, number, key=lambda one: one.first) - 1

    def _insert(self, new: Range) -> None:
        at = len(self._all) - 1 if self._all and self._all[-1].first <= new.first else self._before(new.first)
        if at >= 0 and self._all[at].last >= new.first:
            if self._all[at].last >= new.last:
                return
            new = Range(self._all[at].last + 1, new.last, self._all[at].end_event, new.end_event)
        self._all.insert(at + 1, new)
        self._size += new.last - new.first + 1
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


def total_batches(ranges: Iterable[Range]) -> int:
    """Return how many batches ranges are."""
    return sum(one.last - one.first + 1 for one in ranges)


def total_events(ranges: Iterable[Range]) -> int | None:
    """Return how many events ranges hold; None where nobody said."""
    total = 0
    for one in ranges:
        if one.events is None:
            return None
        total += one.events
    return total


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
class Merged:
    """What is still known of the oldest batches of a producer with very many gaps: counts.

    Up to ``last`` they all stand as taken and settled.

    Attributes
    ----------
    last
        The last of them; -1: there are none.
    never_received, abandoned
        How many of them were not taken, and how many were taken by a writer that was killed and are nowhere.
    events_never_received
        Events of the former; None where nobody said.
    """

    last: int = -1
    never_received: int = 0
    abandoned: int = 0
    events_never_received: int | None = 0

    @classmethod
    def from_json(cls, tree: Any) -> Merged:
        """Return what `dataclasses.asdict` returned.

        Raises
        ------
        InputError
            If it is something else.
        """
        if tree is None:
            return cls()
        found = {name: _number(tree.get(name)) for name in _MERGED} if isinstance(tree, Mapping) else {}
        events = found.pop("events_never_received", None)
        if not found or None in found.values():
            raise InputError(f"{str(tree)[:60]} counts no merged batches", fix="the status file is damaged: remove it")
        return cls(**found, events_never_received=events)  # type: ignore[arg-type]


_MERGED: Final = ("last", "never_received", "abandoned", "events_never_received")


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
    open_since
        When the first of those was taken that were not settled when this writer began; files that are older say
        nothing new.
    merged
        What the oldest of them came to, where there are too many ranges.
    total
        How many its end marker said that there are.
    """

    taken: Ranges = field(default_factory=Ranges)
    settled: Ranges = field(default_factory=Ranges)
    abandoned: Ranges = field(default_factory=Ranges)
    ended: bool = False
    since: str = ""
    open_since: str = ""
    merged: Merged = field(default_factory=Merged)
    total: int | None = None
    _merge_at: int = _KEPT_RANGES

    @property
    def open(self) -> int:
        """Return how many were taken and neither settled nor abandoned."""
        return len(self.taken) - len(self.settled) - len(self.abandoned)

    def take(self, number: int, first_event: int | None, n_events: int | None, *, now: str) -> None:
        """Note that a batch was taken."""
        if self.open <= 0:
            self.open_since = now
        self.taken.add(number, first_event, n_events)
        self.merge()

    def settle(self, number: int, first_event: int | None, n_events: int | None) -> None:
        """Note that a batch that was taken is in files or counted, even if it was abandoned before."""
        self.abandoned.remove(number)
        self.settled.add(number, first_event, n_events)
        self.merge()

    def merge(self) -> None:
        """Keep counts alone of the oldest where there are too many ranges, but for what is still open."""
        every = (self.taken, self.settled, self.abandoned)
        most = max(one.pieces for one in every)
        if most <= self._merge_at:
            return
        border = max(one.border(_KEPT_RANGES // 2) for one in every)
        open_ = Ranges(self.taken.without(self.settled)).without(self.abandoned)
        last, event = self.taken.at_or_before(min(border, open_[0].first - 1) if open_ else border)
        if last > self.merged.last:
            self._merge_up_to(last, event)
        self._merge_at = max(_KEPT_RANGES, 2 * max(one.pieces for one in every))

    def _merge_up_to(self, last: int, event: int | None) -> None:
        gaps = [one for one in self.taken.gaps() if one.last < last]
        merged, events = self.merged, total_events(gaps)
        merged.last = last
        merged.never_received += total_batches(gaps)
        unknown = events is None or merged.events_never_received is None
        merged.events_never_received = None if unknown else merged.events_never_received + events  # type: ignore[operator]
        before = len(self.abandoned)
        self.abandoned.drop(last)
        merged.abandoned += before - len(self.abandoned)
        self.taken.fill(last, border_event=event)
        self.settled.fill(last, border_event=event)

    def never_received(self) -> dict[str, int | None]:
        """Return how many ``batches`` and ``events`` below the last one taken never came; None where nobody said."""
        gaps, merged = self.taken.gaps(), self.merged
        events = total_events(gaps)
        unknown = events is None or merged.events_never_received is None
        return {
            "batches": total_batches(gaps) + merged.never_received,
            "events": None if unknown else events + merged.events_never_received,  # type: ignore[operator]
        }

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "taken": self.taken.to_json(),
            "settled": self.settled.to_json(),
            "abandoned": self.abandoned.to_json(),
            "ended": self.ended,
            "since": self.since,
            "open_since": self.open_since,
            **({"merged": asdict(self.merged)} if self.merged.last >= 0 else {}),
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
        since = str(tree.get("since", ""))[:40]
        page = cls(
            taken=Ranges.from_json(tree.get("taken", [])),
            settled=Ranges.from_json(tree.get("settled", [])),
            abandoned=Ranges.from_json(tree.get("abandoned", [])),
            ended=tree.get("ended") is True,
            since=since,
            open_since=str(tree.get("open_since", since))[:40],
            merged=Merged.from_json(tree.get("merged")),
        )
        page.merge()
        return page


class StreamLedger:
    """The ledgers of all producers that number their batches.

    Parameters
    ----------
    producers
        Of earlier writers of the same files.
    forgotten
        Totals of the pages that were given up, because there were too many: ``pages``, and batches ``taken``,
        ``never_received`` and ``abandoned``.
    """

    def __init__(
        self,
        producers: Mapping[str, ProducerLedger] | None = None,
        *,
        forgotten: Mapping[str, int] | None = None,
    ) -> None:
        self.producers: dict[str, ProducerLedger] = dict(producers or {})
        self.forgotten: Counter[str] = Counter(forgotten or {})
        self._mine: set[str] = set()
        self._pages: Counter[str] = Counter()
        # By identity: a header is no key, and the producer may have begun another page when it is settled.
        self._open: dict[int, tuple[BatchHeader, ProducerLedger]] = {}

    def take(self, header: BatchHeader, *, now: str) -> None:
        """Note that a batch was taken.

        A producer that has ended, or was heard by an earlier writer, and begins again gets a new page.
        """
        if header.sequence is None:
            return
        page = self.producers.get(header.producer)
        if page is None or (header.producer not in self._mine and header.sequence in page.taken):
            page = self._new_page(header.producer, now)
        # Of several producers one may be overtaken by its own end marker: then this is one of those it told of.
        if not page.ended or header.sequence >= (page.total or 0):
            self._mine.add(header.producer)
            page.ended = False
        page.take(header.sequence, header.first_event, header.n_events, now=now)
        self._open[id(header)] = header, page

    def _new_page(self, producer: str, now: str) -> ProducerLedger:
        if producer in self.producers:
            self._forget(producer)
        page = self.producers[producer] = ProducerLedger(since=now, open_since=now)
        self._pages[producer] += 1
        while len(self.producers) > _KEPT_PAGES and (oldest := self._oldest()) is not None:
            self._forget(oldest)
        return page

    def _oldest(self) -> str | None:
        """Return whose page says least: of those with nothing open the oldest that has ended, or is not heard."""
        silent = [name for name, page in self.producers.items() if page.open <= 0 and name not in self._mine]
        return next((name for name in silent if self.producers[name].ended), next(iter(silent[:-1]), None))

    def _forget(self, producer: str) -> None:
        page = self.producers.pop(producer)
        self.forgotten.update(
            pages=1,
            taken=len(page.taken) - page.merged.never_received,
            never_received=page.never_received()["batches"] or 0,
            abandoned=len(page.abandoned) + page.merged.abandoned,
        )

    def page_of(self, producer: str) -> str:
        """Return a name for a producer that is another one after it has begun again."""
        return f"{producer}\0{self._pages[producer]}"

    def settle(self, header: BatchHeader) -> None:
        """Note that every event of a batch is in a file or counted, on the page on which it was taken."""
        _, page = self._open.pop(id(header), (header, self.producers.get(header.producer)))
        if header.sequence is not None and page is not None:
            page.settle(header.sequence, header.first_event, header.n_events)

    def end(self, producer: str, total: int | None = None) -> None:
        """Note that a producer has no more than ``total`` batches, where it says how many."""
        if producer in self.producers:
            self.producers[producer].ended, self.producers[producer].total = True, total
        self._mine.discard(producer)

    def due(self, producer: str) -> int | None:
        """Return the number that an unfinished producer of an earlier writer is expected to go on with, if any."""
        page = self.producers.get(producer)
        return None if page is None or page.ended or page.taken.last is None else page.taken.last + 1

    def never_received(self) -> dict[str, dict[str, int | None]]:
        """Return by producer how many ``batches`` and ``events`` below the last one taken were not taken."""
        found = {name: page.never_received() for name, page in self.producers.items()}
        return {name: counts for name, counts in found.items() if counts["batches"]}

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {name: page.to_json() for name, page in self.producers.items()}

    @classmethod
    def from_json(cls, tree: Any, *, forgotten: Any = None) -> StreamLedger:
        """Return what `to_json` returned; ``forgotten`` is what the other of that name was.

        Raises
        ------
        InputError
            If it is something else.
        """
        if not isinstance(tree, Mapping):
            raise InputError("the ledger is no object", fix="the status file is damaged: remove it")
        counts = forgotten.items() if isinstance(forgotten, Mapping) else ()
        return cls(
            {str(name): ProducerLedger.from_json(page) for name, page in tree.items()},
            forgotten={str(name): count for name, count in counts if _number(count) is not None},
        )


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
    merged
        Counts of the oldest batches, where the producer has very many gaps: these stand as received.
    """

    producer: str
    received: tuple[Range, ...]
    missing: tuple[Range, ...]
    never_received: tuple[Range, ...]
    in_hand: tuple[Range, ...]
    events_missing: int | None
    merged: Merged = field(default_factory=Merged)


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
    status = read_status(status_path(output_dir, prefix))
    ledger = _ledger_of(status)
    running = is_held(lock_path(output_dir, prefix))
    files = _files_that_matter(ledger, status, output_dir, prefix)
    return [_account(name, page, files.get(name, []), running) for name, page in sorted(ledger.producers.items())]


def resume(output_dir: Path, prefix: str) -> tuple[StreamLedger, dict[str, list[Range]]]:
    """Return the ledger of an earlier writer, to go on with.

    What its files hold is settled, and what it had taken beyond that is marked as abandoned.

    Returns
    -------
    ledger
        With nothing open.
    abandoned
        What is newly known to be abandoned, by producer.

    Raises
    ------
    MissingError, InputError
        If there is no status file, or it is damaged.
    """
    status = read_status(status_path(output_dir, prefix))
    ledger, found = _ledger_of(status), {}
    files = _files_that_matter(ledger, status, output_dir, prefix)
    for name, page in ledger.producers.items():
        _add_files(page, files.get(name, []))
        gone = Ranges(page.taken.without(page.settled)).without(page.abandoned)
        if gone:
            found[name] = gone
            page.abandoned = Ranges([*page.abandoned, *gone])
        page.merge()
    return ledger, found


def _ledger_of(status: Mapping[str, Any]) -> StreamLedger:
    return StreamLedger.from_json(status.get("producers", {}), forgotten=status.get("producers_forgotten"))


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


def _files_that_matter(
    ledger: StreamLedger, status: Mapping[str, Any], output_dir: Path, prefix: str
) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return when a file was made and what it holds, by producer, of files that may say more than the status."""
    since_s = min((_needed_since(page, status) for page in ledger.producers.values()), default=math.inf)
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path in () if since_s == math.inf else _files_since(output_dir, _naming_of(status, prefix), since_s):
        try:
            made, rows = batches_of_file(path)
        except InputError as error:
            _log.warning("%s", error)
            continue
        for row in rows:
            found.setdefault(str(row.get("producer", "")), []).append((made, row))
    return found


def _needed_since(page: ProducerLedger, status: Mapping[str, Any]) -> float:
    """Return the age of the oldest file that matters for a page, seconds since 1970; infinite where none does."""
    if Ranges(page.taken.without(page.settled)).without(page.abandoned):
        return _seconds(page.open_since)
    if page.ended or status.get("state") == "ended":
        return math.inf
    return _seconds(status.get("updated", page.since))


def _seconds(text: Any) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp() - _SLACK_S
    except (ValueError, OverflowError):
        return -math.inf


def _naming_of(status: Mapping[str, Any], prefix: str) -> Naming:
    try:
        return Naming(prefix, str(status.get("name_template", _USUAL_TEMPLATE)))
    except ConfigError as error:
        raise InputError(
            f"the status names no files: {error.what}", fix="the status file is damaged: remove it"
        ) from error


def _files_since(output_dir: Path, naming: Naming, since_s: float) -> Iterator[Path]:
    # A directory changes when it gets a file.
    runs = (path for path in sorted(output_dir.glob("r[0-9]*")) if path.is_dir() and path.stat().st_mtime >= since_s)
    for directory in (output_dir, *runs):
        yield from naming.ours_in(directory, since_s=since_s)


def _account(name: str, page: ProducerLedger, rows: list[tuple[str, dict[str, Any]]], running: bool) -> ProducerAccount:
    _add_files(page, rows)
    open_ = page.taken.without(page.settled)
    in_hand = Ranges(open_).without(page.abandoned) if running else []
    missing = tuple(page.abandoned) if running else tuple(open_)
    return ProducerAccount(
        producer=name,
        received=tuple(page.settled),
        missing=missing,
        never_received=tuple(page.taken.gaps()),
        in_hand=tuple(in_hand),
        events_missing=total_events(missing),
        merged=page.merged,
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
            page.settle(sequence, first, events)


def _is_whole(rows: list[dict[str, Any]]) -> bool:
    """Return whether these files hold all hits of a batch."""
    hits = [_number(row.get("hits")) for row in rows]
    if hits[0] is None:
        return True
    return sum(_number(row.get("written")) or 0 for row in rows) >= hits[0]


def _number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST else None
