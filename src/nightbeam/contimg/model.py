"""Receipts: what each step of a group leaves behind. All of them are plain JSON types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = [
    "STEPS",
    "ApplyReceipt",
    "ArrivalReport",
    "CalibrateReceipt",
    "Claim",
    "ConvertReceipt",
    "GroupOutcome",
    "ImageReceipt",
    "QaReceipt",
    "Receipt",
    "RecordReceipt",
]

#: The steps of a group in their order; each is a key of its receipts.
STEPS = ("convert", "calibrate", "apply", "image", "record", "qa")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a finished step left behind."""

    group_id: str

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self | None:
        """Return the receipt that `to_json` wrote, or None for one of another version."""
        names = {f.name for f in dataclasses.fields(cls)}
        # One of an older version may lack what has a default; finished groups are to stay readable.
        must = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
        if not must <= set(content) <= names:
            return None
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Claim:
    """Whether a group is ours now, and if not, why."""

    group_id: str
    owner: str
    claimed: bool
    state: str
    attempt: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ConvertReceipt(Receipt):
    """A Measurement Set and what was measured while it was written (MJD in days, UTC; ICRS degrees).

    ``flagging`` says how interference was flagged (`nightbeam.rfi.FlagReport`), None where it was not;
    ``flagged_fraction`` is that after it.
    """

    ms: str
    writer_type: str
    rows: int
    n_spw: int
    missing_subbands: tuple[int, ...]
    start_mjd: float
    mid_mjd: float
    end_mjd: float
    ra_deg: float
    dec_deg: float
    flagged_fraction: float
    load_s: float | None
    phase_s: float | None
    write_s: float | None
    total_s: float
    flagging: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CalibrateReceipt(Receipt):
    """The set of tables that serves a group, whether solved here, found or borrowed.

    ``set_name`` is None where there is none and the group waits; ``rejected`` says why the solutions of
    a calibrator in this very field were turned down.
    """

    set_name: str | None
    tables: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    mid_mjd: float | None = None
    age_days: float | None = None
    borrowed: bool = False
    solved: bool = False
    calibrator: str | None = None
    rejected: str | None = None
    seconds: float = 0.0

    @property
    def waiting(self) -> bool:
        """Whether there is no set yet."""
        return self.set_name is None


@dataclass(frozen=True, slots=True)
class ApplyReceipt(Receipt):
    """CORRECTED_DATA was written with this set and proved."""

    ms: str
    set_name: str
    flagged_fraction: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ImageReceipt(Receipt):
    """A verified image; ``quick`` where it was made so because the site was behind.

    ``turned_down`` says why the full image that was owed was not good: then the quick one stands.
    """

    stem: str
    path: str
    sha256: str | None
    noise_jy: float
    peak_jy: float
    dynamic_range: float
    beam_major_arcsec: float
    seconds: float
    quick: bool = False
    turned_down: str = ""


@dataclass(frozen=True, slots=True)
class RecordReceipt(Receipt):
    """The rows of the products database."""

    ms: str
    image: str
    image_id: int


@dataclass(frozen=True, slots=True)
class QaReceipt(Receipt):
    """The QA artifacts, by name; ``figures`` says whether they were drawn, or put off."""

    artifacts: dict[str, str]
    figures: bool = True


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """How the work on a group ended: ``completed``, or ``waiting_for_gains``."""

    group_id: str
    state: str
    image: str | None = None
    calibration_set: str | None = None
    noise_jy: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArrivalReport:
    """What one look at the input directory and the queue found and changed; files by path, groups by id.

    ``changed`` are recorded files that were rewritten after their group was taken, ``partial`` groups that are imaged
    with what they have, ``set_aside`` bad files that were moved out of the input directory, ``still_bad`` bad files
    that are as they were when they were judged.
    """

    new_files: int = 0
    duplicates: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    bad: dict[str, str] = field(default_factory=dict)
    still_bad: tuple[str, ...] = ()
    unready: dict[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    became_pending: tuple[str, ...] = ()
    recovered: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    woken: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
