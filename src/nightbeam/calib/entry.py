"""One open cache file as a mapping: detector -> type of constant -> (data, document)."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from nightbeam.calib.layout import ConstantPlace, DetectorPlace, EntryIndex, decode_value
from nightbeam.calib.pickles import PlacedArray

__all__ = ["CalibEntry", "Constants"]

#: What every reader gets: detector -> type of constant -> (data, document).
Constants = Mapping[str, Mapping[str, tuple[Any, Mapping[str, Any]]]]


class CalibEntry(Mapping[str, Mapping[str, tuple[Any, Mapping[str, Any]]]]):
    """The constants of one run; arrays are read-only views of pages that all processes share.

    The views keep the mapping alive, so there is nothing to close; a file that is replaced or removed stays readable.

    Attributes
    ----------
    path
        The file, as it was opened.
    index
        What the file says of itself.
    identity
        Device, inode, size and time of the last change (ns): other bytes always have another.
    """

    def __init__(
        self, path: Path, index: EntryIndex, buffer: mmap.mmap, identity: tuple[int, int, int, int] = (0, 0, 0, 0)
    ) -> None:
        self.path, self.index, self._buffer, self.identity = path, index, buffer, identity
        self._found: dict[str, Mapping[str, tuple[Any, Mapping[str, Any]]]] = {}

    @property
    def det_info(self) -> Mapping[str, str]:
        """Unique id by detector name; a detector that was skipped has no valid constants and is not there."""
        skipped = self.index.skipped
        return {name: uid for name, uid in self.index.det_info.items() if name not in skipped}

    def __getitem__(self, detector: str) -> Mapping[str, tuple[Any, Mapping[str, Any]]]:
        if detector not in self._found:
            place = self.index.detectors.get(detector)
            if place is None or place.constants is None:
                raise KeyError(_why_not(detector, place))
            self._found[detector] = MappingProxyType(
                {ctype: (self.value_of(c), dict(c.document)) for ctype, c in place.constants.items()}
            )
        return self._found[detector]

    def __iter__(self) -> Iterator[str]:
        return (name for name, place in self.index.detectors.items() if place.constants is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<CalibEntry {self.path.name}: {', '.join(self) or 'no constants'}>"

    def value_of(self, place: ConstantPlace) -> Any:
        """Return the data of a constant of this file."""
        return decode_value(place.data, self._array)

    def _array(self, place: PlacedArray) -> np.ndarray[Any, Any]:
        if place.nbytes == 0:
            array = np.empty(place.shape, place.dtype)
            array.setflags(write=False)
            return array
        return np.ndarray(place.shape, place.dtype, self._buffer, place.offset)

    def body(self, offset: int, nbytes: int) -> memoryview:
        """Return some of the file's bytes, shared."""
        return memoryview(self._buffer)[offset : offset + nbytes]


def _why_not(detector: str, place: DetectorPlace | None) -> str:
    return f"{detector} was skipped when this was cached" if place else f"{detector} is not in this run"
