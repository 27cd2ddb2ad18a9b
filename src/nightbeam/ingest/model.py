"""Files that arrived, and the groups that they form."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nightbeam.core.keys import GroupId

__all__ = ["Arrival", "BadFile", "Kind", "Majority", "Scan", "SubbandGroup", "Unready"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One subband file.

    Attributes
    ----------
    path
        Where it lies.
    stamp
        The clock of its computer when it opened the file, from the name; None for a foreign name.
    subband
        0 to 15.
    start_jd, mid_jd
        Mid-time of the first integration, and middle of the data (days, UTC); None: header not read.
    dec_deg
        Apparent declination of the pointing.
    size_bytes, mtime
        As found on disk.
    layout
        Integrations, antennas, channels and polarizations in words, alike in all files of an observation; empty:
        not known.
    """

    path: Path
    stamp: datetime | None
    subband: int
    start_jd: float | None = None
    mid_jd: float | None = None
    dec_deg: float | None = None
    size_bytes: int | None = None
    mtime: float | None = None
    layout: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file says of its observation, alike in all files of one; what is not known contradicts nothing."""

    start_mjd: float | None = None
    dec_deg: float | None = None
    layout: str | None = None


@dataclass(frozen=True, slots=True)
class Majority:
    """What most subbands of a group say.

    ``subbands`` is how many, ``tied`` whether as many say something else.
    """

    kind: Kind
    subbands: int
    tied: bool


@dataclass(frozen=True, slots=True)
class SubbandGroup:
    """The files of one observation, by subband and then by name.

    ``start_jd`` is from the headers; None where none of them could be read and the names alone decided.
    """

    group_id: GroupId
    arrivals: tuple[Arrival, ...]
    start_jd: float | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The first file of each subband."""
        first: dict[int, Path] = {}
        for arrival in self.arrivals:
            first.setdefault(arrival.subband, arrival.path)
        return tuple(first.values())

    @property
    def subbands(self) -> tuple[int, ...]:
        """The subbands that are there, rising."""
        return tuple(sorted({a.subband for a in self.arrivals}))

    @property
    def confirmed(self) -> bool:
        """Whether the header of every file says that it belongs here."""
        return self.start_jd is not None and all(a.start_jd is not None for a in self.arrivals)

    def missing(self, expected: int = 16) -> tuple[int, ...]:
        """Return the subbands that are not there."""
        return tuple(sorted(set(range(expected)) - set(self.subbands)))


@dataclass(frozen=True, slots=True)
class Unready:
    """A file that may still be on its way."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that has settled and is no readable subband."""

    path: Path
    reason: str
    size_bytes: int
    mtime: float


@dataclass(frozen=True, slots=True)
class Scan:
    """What a look at the directory found, the files already known left out.

    ``still_bad`` are bad files that have not changed since they were judged.
    """

    ready: tuple[Arrival, ...]
    unready: tuple[Unready, ...]
    bad: tuple[BadFile, ...]
    still_bad: tuple[Path, ...] = ()
