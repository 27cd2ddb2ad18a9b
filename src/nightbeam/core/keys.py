"""The names by which people call data: LCLS runs and DSA-110 groups. Parsed and printed only here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from nightbeam.core.errors import InputError
from nightbeam.core.times import datetime_from_jd

__all__ = ["GroupId", "RunKey", "SubbandName"]

_RUN = re.compile(r"(?P<experiment>[a-z][a-z0-9]{2,19}):r(?P<run>\d{1,6})")
_GROUP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
_SUBBAND = re.compile(r"(?P<stamp>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)_sb(?P<sb>\d\d)\.hdf5", re.ASCII)
_ISO_SECOND = "%Y-%m-%dT%H:%M:%S"


@dataclass(frozen=True, order=True, slots=True)
class RunKey:
    """One run of one experiment, written ``mfxl1033223:r0042``."""

    experiment: str
    run: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key that ``text`` names.

        Raises
        ------
        InputError
            If it is not an experiment and a run, as in ``mfxl1033223:r0042``.
        """
        found = _RUN.fullmatch(text)
        if not found:
            raise InputError(f"{text!r} is not a run", fix="write it like mfxl1033223:r0042")
        return cls(found["experiment"], int(found["run"]))

    def __str__(self) -> str:
        return f"{self.experiment}:r{self.run:04d}"


@dataclass(frozen=True, order=True, slots=True)
class GroupId:
    """One group of subbands, named by the ISO second (UTC) at which its data start.

    The same text is the key of the queue, the stem of the Measurement Set and of the image.
    """

    start: datetime

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the group that ``text`` names.

        Raises
        ------
        InputError
            If it is not a date and time to the second, as in ``2025-10-02T01:02:03``.
        """
        if not _GROUP.fullmatch(text):
            raise InputError(f"{text!r} is not a group", fix="write it like 2025-10-02T01:02:03 (UTC)")
        try:
            return cls(datetime.strptime(text, _ISO_SECOND).replace(tzinfo=UTC))
        except ValueError as error:
            raise InputError(f"{text!r} is not a group: {error}", fix="give a real date and time") from error

    @classmethod
    def from_jd(cls, jd: float) -> Self:
        """Return the group whose first integration is at ``jd`` (UTC, days).

        The start is rounded to 1 ms before its second is taken, so that the noise of a double
        (40 microseconds) cannot give two names to one group.
        """
        milliseconds = round(datetime_from_jd(jd).timestamp() * 1000.0)
        return cls(datetime.fromtimestamp(milliseconds // 1000, UTC))

    @classmethod
    def from_name(cls, stamp: datetime) -> Self:
        """Return the group that starts, as far as a file's name tells, at ``stamp``."""
        return cls(stamp.astimezone(UTC).replace(microsecond=0))

    def __str__(self) -> str:
        return self.start.strftime(_ISO_SECOND)


@dataclass(frozen=True, order=True, slots=True)
class SubbandName:
    """What the name of a finished subband file says: the clock of one computer, and which subband."""

    stamp: datetime
    subband: int

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return what ``name`` says, or None for any file that is not a finished subband.

        Files still being written (``_incomplete``), those that rsync is writing (a leading dot) and
        spectral-line products (``spl``) are not finished subbands.
        """
        found = _SUBBAND.fullmatch(name)
        if not found:
            return None
        try:
            stamp = datetime.strptime(found["stamp"], _ISO_SECOND).replace(tzinfo=UTC)
        except ValueError:
            return None
        return cls(stamp, int(found["sb"]))

    def __str__(self) -> str:
        return f"{self.stamp.strftime(_ISO_SECOND)}_sb{self.subband:02d}.hdf5"

    def later(self, seconds: float) -> SubbandName:
        """Return the name that a computer whose clock is ``seconds`` ahead would have given."""
        return SubbandName(self.stamp + timedelta(seconds=round(seconds)), self.subband)
