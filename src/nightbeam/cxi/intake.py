"""What comes out of the queue: end markers, batches, batches that were there before, and things that are none."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from nightbeam.core.errors import InputError
from nightbeam.cxi.ledger import Ranges
from nightbeam.geometry.compute import count_tiles
from nightbeam.geometry.model import Geometry
from nightbeam.stream.compute import producer_of
from nightbeam.stream.model import BatchError, BatchHeader, MessageDefaults

__all__ = ["Ends", "Seen", "announced_events", "numbered", "panels_by_geometry"]

_REMEMBERED: Final = 10_000
_MOST_EVENTS: Final = 1 << 20
#: Numbers below it are those of a producer that has just begun; their batches are remembered as long as it goes on.
_FIRST: Final = 64
_AGAIN: Final = "its producer has begun again without an end marker"
_TAKEN: Final = "its number came before with other events; it is written without a number"
_UNSURE: Final = "its batch_id came before, and no timestamps tell whether the events did; they are written"

_Key = tuple[str, int | None, bytes]


@dataclass(slots=True)
class _Line:
    """What a producer has numbered since it began, and which batches its first numbers were."""

    numbers: Ranges = field(default_factory=Ranges)
    first: dict[int, _Key] = field(default_factory=dict)

    def goes_back(self, number: int) -> bool:
        """Say whether a number is so far below the last one that nobody sends it again: the count has begun anew."""
        highest = max(one.last for one in self.numbers)
        return highest > 0 if number == 0 else highest - number >= _FIRST


class Seen:
    """Remembers batches, to know one that comes again.

    A batch is the same if its ``batch_id``, its run and its times are. Numbers of producers that count are all
    remembered, batches the last 10,000. Where nothing tells a batch that comes again from another one it is taken:
    to write twice is better than to lose.
    """

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._keys: OrderedDict[_Key, str] = OrderedDict()

    def check(self, header: BatchHeader) -> tuple[BatchHeader, bool]:
        """Remember a batch.

        Returns
        -------
        header : BatchHeader
            As it was, or with a warning, and without its number where that belongs to another batch.
        again : bool
            Whether its producer has begun again without an end marker, with this batch or one near it.

        Raises
        ------
        BatchError
            ``duplicate``, if it was there before.
        """
        key, timed = _key(header), _is_timed(header)
        if header.sequence is None:
            return self._unnumbered(header, key, timed), False
        line = self._lines.setdefault(header.producer, _Line())
        if header.sequence not in line.numbers:
            if timed and header.batch_id and key in self._keys:
                raise _came_before(header)
            self._note(header, header.sequence, key)
            return header, False
        same = key in self._keys or key == line.first.get(header.sequence)
        if same and (timed or not line.goes_back(header.sequence)):
            raise _came_before(header)
        if same or header.sequence < _FIRST:
            self.forget(header.producer)
            self._note(header, header.sequence, key)
            return _warned(header, _AGAIN), True
        self._remember(header, key)
        return _warned(replace(header, sequence=None, first_event=None), _TAKEN), False

    def _unnumbered(self, header: BatchHeader, key: _Key, timed: bool) -> BatchHeader:
        if not header.batch_id:
            return header
        again = key in self._keys
        if again and timed:
            raise _came_before(header)
        self._remember(header, key)
        return _warned(header, _UNSURE) if again else header

    def _note(self, header: BatchHeader, number: int, key: _Key) -> None:
        line = self._lines.setdefault(header.producer, _Line())
        line.numbers.add(number)
        if number < _FIRST:
            line.first[number] = key
        if header.batch_id:
            self._remember(header, key)

    def _remember(self, header: BatchHeader, key: _Key) -> None:
        self._keys[key] = header.producer
        while len(self._keys) > _REMEMBERED:
            self._keys.popitem(last=False)

    def forget(self, producer: str) -> None:
        """Let a producer begin again: it has ended."""
        self._lines.pop(producer, None)
        for key in [key for key, of in self._keys.items() if of == producer]:
            del self._keys[key]


def _key(header: BatchHeader) -> _Key:
    times = hashlib.blake2b(header.timestamps.tobytes(), digest_size=16)
    times.update(repr(header.wall_clock_s).encode())
    return header.batch_id, header.run, times.digest()


def _is_timed(header: BatchHeader) -> bool:
    return bool(header.timestamps.any()) or header.wall_clock_s is not None


def _warned(header: BatchHeader, text: str) -> BatchHeader:
    return replace(header, warnings=(*header.warnings, text))


def _came_before(header: BatchHeader) -> BatchError:
    number = "" if header.sequence is None else f", number {header.sequence} of producer {header.producer!r},"
    return BatchError(
        f"batch {header.batch_id!r}{number} came before, "
        + ("with the same times" if _is_timed(header) else "and no times tell the two apart"),
        reason="duplicate",
        fix="each batch needs its own batch_id; a producer that starts again its own producer_id, or other times",
    )


def panels_by_geometry(message: Any, defaults: MessageDefaults, geometry: Geometry | None,
                       shape: Sequence[int] | None) -> MessageDefaults:  # fmt: skip
    """Return the defaults with the number of panels that the geometry has, where nothing else says it.

    Parameters
    ----------
    message
        Nothing is changed where it has ``preprocessing_metadata``.
    defaults
        Nothing is changed where they know the number. The panel's size is theirs, or that of the predictions.
    geometry
        None: nothing is known.
    shape
        Of the predictions (rows, K, H, W), where it is known; else what came with the message is looked at.
    """
    said = getattr(message, "preprocessing_metadata", None)
    if said is not None or defaults.num_panels is not None or geometry is None:
        return defaults
    shape = shape if shape is not None else getattr(getattr(message, "predictions", None), "shape", None)
    panel = defaults.panel_shape or (None if shape is None or len(shape) < 2 else (int(shape[-2]), int(shape[-1])))
    if panel is None:
        return defaults
    try:
        return replace(defaults, num_panels=count_tiles(geometry, panel))
    except InputError as error:
        raise BatchError(
            f"nothing says how many panels an event has: {error.what}",
            reason="no shape",
            fix="set detector.num_panels and detector.panel_shape, or let the producer send preprocessing_metadata",
        ) from error


class Ends:
    """Counts the producers that have no more.

    Parameters
    ----------
    wanted
        How many there are.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted, self._names, self._nameless = wanted, set[str](), 0

    def add(self, producer: str) -> None:
        """Note that one has ended; those without a name count each time."""
        if producer:
            self._names.add(producer)
        else:
            self._nameless += 1

    @property
    def all(self) -> bool:
        """Return whether all have ended."""
        return len(self._names) + self._nameless >= self._wanted


def announced_events(message: Any) -> int:
    """Return how many events a message that cannot be used says that it holds; 0 where it does not say."""
    shape = getattr(getattr(message, "preprocessing_metadata", None), "original_shape", None)
    if not isinstance(shape, Sequence) or isinstance(shape, str | bytes) or not len(shape):
        return 0
    first = shape[0]
    is_count = isinstance(first, int | np.integer) and not isinstance(first, bool)
    return int(first) if is_count and 0 < first <= _MOST_EVENTS else 0


def numbered(message: Any) -> tuple[str, int | None]:
    """Return the producer and the running number of a message that cannot be used, as far as it says them."""
    metadata = getattr(message, "metadata", None)
    if not isinstance(metadata, Mapping):
        return "", None
    found = metadata.get("sequence")
    is_count = isinstance(found, int | np.integer) and not isinstance(found, bool)
    return producer_of(message), int(found) if is_count and found >= 0 else None  # type: ignore[operator, arg-type]
