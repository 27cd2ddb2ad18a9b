"""What comes out of the queue: end markers, batches, batches that were there before, and things that are none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from nightbeam.cxi.ledger import Ranges
from nightbeam.stream.compute import producer_of
from nightbeam.stream.model import BatchError, BatchHeader

__all__ = ["Ends", "Seen", "announced_events", "numbered"]

_REMEMBERED: Final = 10_000
_MOST_EVENTS: Final = 1 << 20


class Seen:
    """Remembers batches, to know one that comes again.

    Numbers of producers that count are all remembered, names of batches the last 10,000.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, Ranges] = {}
        self._names: OrderedDict[str, str] = OrderedDict()

    def check(self, header: BatchHeader) -> None:
        """Remember a batch.

        Raises
        ------
        BatchError
            ``duplicate``, if it was there before.
        """
        numbers = self._numbers.setdefault(header.producer, Ranges())
        if header.sequence is not None and not numbers.add(header.sequence):
            raise BatchError(
                f"batch {header.sequence} of producer {header.producer!r} came before",
                reason="duplicate",
                fix="a producer that starts again needs another producer_id, or must end with an end marker",
            )
        if header.batch_id and header.batch_id in self._names:
            raise BatchError(
                f"a batch {header.batch_id!r} came before", reason="duplicate", fix="each batch needs its own batch_id"
            )
        if header.batch_id:
            self._names[header.batch_id] = header.producer
            while len(self._names) > _REMEMBERED:
                self._names.popitem(last=False)

    def forget(self, producer: str) -> None:
        """Let a producer begin again: it has ended."""
        self._numbers.pop(producer, None)
        for name in [name for name, of in self._names.items() if of == producer]:
            del self._names[name]


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
