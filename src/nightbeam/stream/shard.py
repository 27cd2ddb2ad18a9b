"""The actor behind a shard: what the clients of existing pipelines call, no more.

Ray's workers and clients of other programs get this class by value, for they may have no nightbeam: so it may use the
standard library only.
"""

from collections import deque
from typing import Any

__all__ = ["Shard"]


class Shard:
    """A bounded first-in-first-out list of messages.

    Parameters
    ----------
    maxsize
        How many messages it holds.
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> bool:
        """Take a message; False, and nothing taken, where it is full."""
        if len(self._items) >= self._maxsize:
            return False
        self._items.append(item)
        return True

    def get(self) -> Any:
        """Hand out the oldest message; None where there is none."""
        return self._items.popleft() if self._items else None

    def size(self) -> int:
        """Return how many messages there are."""
        return len(self._items)

    def is_empty(self) -> bool:
        """Return whether there is none."""
        return not self._items

    def is_full(self) -> bool:
        """Return whether no more is taken."""
        return len(self._items) >= self._maxsize
