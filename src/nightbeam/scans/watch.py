"""A store of raw scans that grows: which of its scans are whole. Nothing of their spectra is read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightbeam.core.errors import InputError, NightbeamError
from nightbeam.scans.files import RawStore, scan_name
from nightbeam.scans.model import StoreReadError
from nightbeam.scans.run import NOT_OF_A_SOURCE

__all__ = ["WatchedStore"]

#: A file as it was last seen.
_Stamp = tuple[int, int, int]
_CALIBRATIONS = ("calibration", "cal")
#: After so long what could not be opened is opened again.
_REOPEN_S = 60.0


@dataclass(slots=True)
class _Seen:
    """A scan as it was last seen."""

    stamp: _Stamp | None = None
    readable: bool = False
    kind: str = ""
    complete: bool | None = None
    mark: str = ""
    since_s: float = 0.0
    next_s: float = 0.0
    whole: bool = False


@dataclass(slots=True)
class WatchedStore:
    """A store that somebody writes to, looked at again and again.

    A scan is whole when its attribute ``complete`` says so; where there is no such attribute, when none of its files
    has changed for ``settle_s``. What is whole is looked at again only where something in its directory was made or
    removed: a scan that is written anew is found, one whose chunks are exchanged in place is not.

    Attributes
    ----------
    problem
        Why it is no store of raw scans, or cannot be looked at; empty where nothing is wrong.
    touched
        When the directory of its scans was last written to; 0 where there is none.
    """

    path: Path
    settle_s: float
    problem: str = ""
    touched: int = 0
    _raw: RawStore | None = None
    _root: Any = None
    _reopen_s: float = 0.0
    _names: frozenset[str] = frozenset()
    _scans: dict[int, _Seen] = field(default_factory=dict)

    def look(self, now_s: float) -> set[int]:
        """Look once; returns the scans that are not any more what they were: removed, being written anew, readable now.

        Parameters
        ----------
        now_s
            Of any clock that goes on.
        """
        if not self._is_store(now_s):
            return set()
        changed = self._look_for_names()
        for scan, seen in self._scans.items():
            if seen.whole and not seen.readable and _stamp(self._metadata(scan)) != seen.stamp:
                self.forget(scan, now_s)
                changed.add(scan)
            elif not seen.whole:
                self._look_at(scan, seen, now_s)
        return changed

    def sources(self) -> list[int]:
        """Return the whole scans of a source, by number."""
        return sorted(scan for scan, seen in self._scans.items() if seen.whole and seen.kind not in NOT_OF_A_SOURCE)

    def calibrations(self) -> list[int]:
        """Return the whole load calibrations, by number."""
        return sorted(scan for scan, seen in self._scans.items() if seen.whole and seen.kind in _CALIBRATIONS)

    def writing(self) -> int:
        """Return how many scans are not whole yet."""
        return sum(not seen.whole for seen in self._scans.values())

    def forget(self, scan: int, now_s: float) -> None:
        """Look at a scan anew, if it is there."""
        if scan in self._scans:
            self._scans[scan] = seen = _Seen()
            self._look_at(scan, seen, now_s)

    def mark(self, scan: int) -> str:
        """Return what changes when a scan does; empty for one that cannot be looked at."""
        if self._raw is None:
            return ""
        try:
            return self._raw.stat(scan)
        except (StoreReadError, RecursionError):
            return ""

    # ------------------------------------------------------------ looking

    def _is_store(self, now_s: float) -> bool:
        """Say whether it is a store of raw scans; what is none is opened again when it has changed, or later."""
        root = tuple(_stamp(self.path / name) for name in ("zarr.json", ".zgroup", ".zarray"))
        if root != self._root or (self._raw is None and now_s >= self._reopen_s):
            self._root, self._reopen_s = root, now_s + _REOPEN_S
            try:
                self._raw, self.problem = RawStore(self.path), ""
            except NightbeamError as error:
                self._raw, self.problem = None, error.what
            except Exception as error:  # whatever lies there; the other stores go on
                self._raw, self.problem = None, f"{self.path} cannot be opened: {type(error).__name__}: {error}"
        return self._raw is not None

    def _look_for_names(self) -> set[int]:
        assert self._raw is not None
        top = self.path / "scans"
        try:
            touched, names = top.stat().st_mtime_ns, frozenset(os.listdir(top))  # noqa: PTH208 (names are all we want)
            there = set() if (touched, names) == (self.touched, self._names) else set(self._raw.scans())
        except FileNotFoundError:
            touched, names, there = 0, frozenset(), set()
        except (OSError, InputError) as error:  # what is known is kept: it may pass
            why = error.strerror if isinstance(error, OSError) else error.what
            self.problem = f"the scans of {self.path} cannot be listed: {why}"
            return set()
        self.problem = ""
        if (touched, names) == (self.touched, self._names):
            return set()
        changed = {
            scan
            for scan, seen in self._scans.items()
            if seen.whole and (scan not in there or _stamp(self._metadata(scan)) != seen.stamp)
        }
        self._scans = {scan: _Seen() if scan in changed else self._scans.get(scan) or _Seen() for scan in sorted(there)}
        self.touched, self._names = touched, names
        return changed

    def _look_at(self, scan: int, seen: _Seen, now_s: float) -> None:
        stamp = _stamp(self._metadata(scan))
        # Half a file is read again.
        if stamp != seen.stamp or not seen.readable:
            said = _attributes(self._metadata(scan))
            kind, complete = ("", None) if said is None else (said.get("obs_type"), said.get("complete"))
            seen.kind = kind if isinstance(kind, str) else ""
            seen.complete = complete if isinstance(complete, bool) else None
            seen.stamp, seen.readable = stamp, said is not None
        if seen.complete is not None:
            seen.whole = seen.complete
        elif now_s >= seen.next_s:
            seen.whole = self._has_settled(scan, seen, now_s)

    def _has_settled(self, scan: int, seen: _Seen, now_s: float) -> bool:
        mark = self.mark(scan)
        if mark != seen.mark or not mark:
            seen.mark, seen.since_s = mark, now_s
        seen.next_s = now_s + self.settle_s / 4.0
        return bool(mark) and now_s - seen.since_s >= self.settle_s

    def _metadata(self, scan: int) -> Path:
        return self.path / "scans" / scan_name(scan) / "zarr.json"


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _attributes(path: Path) -> dict[str, Any] | None:
    """Return what a scan says of itself; None where it cannot be read, or not yet."""
    try:
        said = json.loads(path.read_text()).get("attributes", {})
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return said if isinstance(said, dict) else None
