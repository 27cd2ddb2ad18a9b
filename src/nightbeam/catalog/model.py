"""Plain rows of the three databases, and the words for the states of a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

__all__ = [
    "AttemptRow",
    "BacklogRow",
    "BadFileRow",
    "CalSet",
    "CalSetSummary",
    "CalTableRow",
    "ClockStep",
    "Dispatch",
    "DuplicateRow",
    "FileFact",
    "GroupFact",
    "GroupRow",
    "GroupStepRow",
    "ImageRow",
    "Imaging",
    "KnownFile",
    "MosaicRow",
    "MsRow",
    "NightRow",
    "Owed",
    "Owner",
    "PerformanceRow",
    "PressureRow",
    "ProvenanceInput",
    "ProvenanceRow",
    "QaArtifactRow",
    "QaScoreRow",
    "QuarantineRow",
    "ReceiptRow",
    "Recorded",
    "Scored",
    "SetAsideRow",
    "SetSpec",
    "Stage",
    "State",
    "SubbandRow",
    "TableSpec",
]


class State(StrEnum):
    """Where a group stands in the queue."""

    COLLECTING = "collecting"
    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class Stage(StrEnum):
    """What is being done to a group, beside its state."""

    COLLECTING = "collecting"
    FRESH = "processing_fresh"
    RESUMING = "resuming"
    WAITING_FOR_GAINS = "waiting_for_gains"
    COMPLETED = "completed"
    FAILED = "failed"


class Imaging(StrEnum):
    """How the image of a group is made."""

    FULL = "full"
    QUICK = "quick"


class Owed(StrEnum):
    """What was put off of a group, and is made when nothing else waits."""

    IMAGE = "image"
    FIGURES = "figures"


class Recorded(StrEnum):
    """What became of a file that was shown to the queue."""

    NEW = "new"
    KNOWN = "known"
    DUPLICATE = "duplicate"
    LATE = "late"
    #: It contradicts the majority of its group, and is among the bad files now.
    ODD = "odd"
    #: It was put behind another one that is gone: it is to be looked at as a new one.
    FREED = "freed"


@dataclass(frozen=True, slots=True)
class GroupFact:
    """What the ingest knows of a group when it records its files."""

    group_id: str
    start_mjd: float
    start_source: str = "header"
    mid_mjd: float | None = None
    dec_deg: float | None = None


@dataclass(frozen=True, slots=True)
class FileFact:
    """One subband file as it was found on disk, and what its header says of the observation.

    What is None of the latter is as the group's.
    """

    subband: int
    path: Path
    size_bytes: int | None = None
    mtime: float | None = None
    start_mjd: float | None = None
    mid_mjd: float | None = None
    dec_deg: float | None = None
    layout: str | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """Who works on a group: a name that survives a restart, and the process that has it now.

    ``started`` is the epoch second at which the process began, since the kernel gives pids again; ``birth`` says the
    same in a way that setting the machine's clock does not change.
    """

    name: str
    host: str | None = None
    pid: int | None = None
    started: float | None = None
    birth: str | None = None

    def __str__(self) -> str:
        return self.name + (f" (process {self.pid} on {self.host})" if self.pid is not None else "")


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One row of ``ingest_queue``. Times ``*_at``, ``received_at`` and ``last_update`` are epoch seconds."""

    group_id: str
    state: str
    received_at: float
    last_update: float
    expected_subbands: int | None
    retry_count: int
    error: str | None
    checkpoint_path: str | None
    processing_stage: str | None
    chunk_minutes: float | None
    has_calibrator: int | None
    calibrators: str | None
    start_mjd: float | None
    start_source: str | None
    mid_mjd: float | None
    dec_deg: float | None
    owner: str | None
    owner_host: str | None
    owner_pid: int | None
    owner_started: float | None
    owner_birth: str | None
    heartbeat_at: float | None
    attempts: int
    retry_base: int
    current_step: str | None
    dispatched_at: float | None
    dispatch_key: str | None
    dispatches: int
    partial: int
    finished_at: float | None
    imaging: str | None = None
    owed: str | None = None
    subbands_present: int = 0


@dataclass(frozen=True, slots=True)
class BacklogRow:
    """How many groups stand where, and when the oldest data begin that wait (MJD).

    Groups ``waiting`` could be worked on now and are not; those that are taken up again for what they are owed are in
    ``owed_waiting`` and ``owed_in_work`` instead. ``owed_images`` and ``owed_figures`` are completed.
    """

    waiting: int = 0
    in_work: int = 0
    for_gains: int = 0
    owed_waiting: int = 0
    owed_in_work: int = 0
    owed_images: int = 0
    owed_figures: int = 0
    oldest_mjd: float | None = None


@dataclass(frozen=True, slots=True)
class PressureRow:
    """How far behind the site was when that last changed, and how many groups waited then."""

    level: str
    since: float
    waiting: int


@dataclass(frozen=True, slots=True)
class SubbandRow:
    """One row of ``subband_files``.

    ``late`` is 1 for a file that came after the group had been taken, ``changed_at`` when one that was recorded was
    first seen rewritten after that.
    """

    group_id: str
    subband_idx: int
    path: str
    size_bytes: int | None
    mtime: float | None
    recorded_at: float | None
    late: int
    changed_at: float | None = None


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A recorded file that may still matter, and the state of its group."""

    group_id: str
    subband_idx: int
    path: str
    size_bytes: int | None
    mtime: float | None
    state: str


@dataclass(frozen=True, slots=True)
class DuplicateRow:
    """A second file for a subband that the queue had already."""

    group_id: str
    subband_idx: int
    path: str
    first_path: str
    recorded_at: float


@dataclass(frozen=True, slots=True)
class BadFileRow:
    """A file that is no readable subband, and why; ``not_moved`` says why it is still there after its time.

    ``group_id`` is the group whose other files it contradicts, if that is why.
    """

    path: str
    reason: str
    size_bytes: int | None
    mtime: float | None
    recorded_at: float
    not_moved: str | None = None
    group_id: str | None = None


@dataclass(frozen=True, slots=True)
class ClockStep:
    """What the queue knows of a machine's clock.

    Attributes
    ----------
    step_s
        By how much it was set since the machine's last scan, 0 if it was not; the queue has followed it.
    elapsed_s
        Since that scan.
    stepped
        Whether it was set since the machine began.
    beats
        As they were kept.
    moved
        How many groups had their age kept.
    """

    step_s: float = 0.0
    elapsed_s: float = 0.0
    stepped: bool = False
    beats: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    moved: int = 0


@dataclass(frozen=True, slots=True)
class SetAsideRow:
    """A file that was moved out of the input directory.

    Attributes
    ----------
    path, original_path
        Where it lies, and where it lay.
    reason
        Why it is no readable subband.
    size_bytes, mtime
        What it was when it was judged.
    moved_at, ended_at
        When it came here, and when it was put back (epoch seconds).
    state
        ``moving``, ``held``, ``restoring`` or ``restored``.
    """

    path: str
    original_path: str
    reason: str
    size_bytes: int | None
    mtime: float | None
    moved_at: float
    state: str
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt at a group: who, when, how it ended (running, completed, failed, lost, released, waiting, disk)."""

    group_id: str
    attempt: int
    owner: str | None
    started_at: float
    ended_at: float | None
    outcome: str
    step: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """What a finished step left behind; ``content`` is a JSON object."""

    group_id: str
    step: str
    attempt: int | None
    finished_at: float
    seconds: float | None
    content: str


@dataclass(frozen=True, slots=True)
class PerformanceRow:
    """Measured seconds of the stages of a group."""

    group_id: str
    load_time: float | None
    phase_time: float | None
    write_time: float | None
    total_time: float | None
    writer_type: str | None
    recorded_at: float
    calibrate_time: float | None = None
    apply_time: float | None = None
    image_time: float | None = None
    group_time: float | None = None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A group that must now be started, once; ``attempt`` counts its dispatches.

    The key is the same however often the same dispatch is sent.
    """

    group_id: str
    attempt: int
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One calibration table to register: where, what kind (K, BA, BP, GA, GP, 2G, G, FLUX) and its place."""

    path: Path
    table_type: str
    order_index: int
    cal_field: str | None = None
    refant: str | None = None


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A set of calibration tables to register as a whole; the window is required."""

    name: str
    tables: tuple[TableSpec, ...]
    valid_start_mjd: float
    valid_end_mjd: float
    status: str = "active"
    mid_mjd: float | None = None
    dec_deg: float | None = None
    group_id: str | None = None
    calibrator: str | None = None
    notes: str | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CalTableRow:
    """One row of ``caltables``."""

    id: int
    set_name: str
    path: str
    table_type: str
    order_index: int
    cal_field: str | None
    refant: str | None
    created_at: float
    valid_start_mjd: float | None
    valid_end_mjd: float | None
    status: str
    notes: str | None
    sha256: str | None
    mid_mjd: float | None
    dec_deg: float | None


@dataclass(frozen=True, slots=True)
class CalSet:
    """The set chosen for a time, with how far from it and whether it was borrowed from outside its window.

    ``age_days`` is positive when the set is older than the data.
    """

    set_name: str
    tables: tuple[CalTableRow, ...]
    mid_mjd: float
    created_at: float
    age_days: float
    borrowed: bool
    passed_over: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The tables in the order in which they are applied."""
        return tuple(Path(t.path) for t in self.tables)


@dataclass(frozen=True, slots=True)
class CalSetSummary:
    """One set for the list that people read."""

    set: str
    rows: int
    active: int
    min_order: int | None
    status: str
    valid_start_mjd: float | None
    valid_end_mjd: float | None
    dec_deg: float | None
    created_at: float
    calibrator: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class MsRow:
    """One row of ``ms_index``."""

    path: str
    start_mjd: float | None
    end_mjd: float | None
    mid_mjd: float | None
    processed_at: float | None
    status: str | None
    stage: str | None
    stage_updated_at: float | None
    cal_applied: int | None
    imagename: str | None
    group_id: str | None
    partial: int | None
    ra_deg: float | None
    dec_deg: float | None
    flagged_fraction: float | None
    n_rows: int | None
    n_spw: int | None
    writer_type: str | None
    calibration_set: str | None
    cal_age_days: float | None
    cal_borrowed: int | None
    version: str | None


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One row of ``images``."""

    id: int
    path: str
    ms_path: str
    created_at: float
    type: str
    beam_major_arcsec: float | None
    noise_jy: float | None
    pbcor: int | None
    group_id: str | None
    mid_mjd: float | None
    beam_minor_arcsec: float | None
    beam_pa_deg: float | None
    peak_jy: float | None
    noise_centre_jy: float | None
    dynamic_range: float | None
    ra_deg: float | None
    dec_deg: float | None
    imsize: int | None
    cell_arcsec: float | None
    freq_hz: float | None
    bandwidth_hz: float | None
    integration_s: float | None
    calibration_set: str | None
    cal_age_days: float | None
    cal_borrowed: int | None
    partial: int | None
    files: str | None
    parameters: str | None
    version: str | None
    sha256: str | None
    quick: int | None = None


@dataclass(frozen=True, slots=True)
class MosaicRow:
    """One row of ``mosaics``.

    ``plan`` is what it was asked for as (a night has one plan and a mosaic for each of its strips), ``tiles``
    one path a line; ``verdicts``, ``checks``, ``files`` and ``parameters`` are JSON. ``status`` is ``planned``,
    ``built`` or ``failed``.
    """

    id: int
    name: str
    created_at: float
    status: str
    method: str | None
    tiles: str
    output_path: str | None
    validation_issues: str | None
    plan: str | None
    strip: int | None
    start_mjd: float | None
    mid_mjd: float | None
    end_mjd: float | None
    ra_deg: float | None
    dec_deg: float | None
    width: int | None
    height: int | None
    cell_arcsec: float | None
    freq_hz: float | None
    beam_major_arcsec: float | None
    beam_minor_arcsec: float | None
    beam_pa_deg: float | None
    noise_jy: float | None
    peak_jy: float | None
    tiles_used: int | None
    tiles_rejected: int | None
    verdicts: str | None
    checks: str | None
    files: str | None
    parameters: str | None
    error: str | None
    version: str | None
    sha256: str | None
    built_at: float | None


@dataclass(frozen=True, slots=True)
class NightRow:
    """One row of ``nights``: ``state`` is ``done``, ``empty`` or ``failed``; ``night`` is a UTC day, YYYY-MM-DD.

    ``inputs`` changes with what was tried: tiles, options, catalogue.
    """

    night: str
    state: str
    tiles: int | None
    attempts: int
    updated_at: float
    error: str | None
    inputs: str | None


@dataclass(frozen=True, slots=True)
class QaScoreRow:
    """One row of ``qa_scores``.

    ``kind`` is ``group`` or ``mosaic``, ``subject`` its id or name; ``score`` runs from 0 to 1 and ``verdict`` is
    ``good``, ``warn``, ``bad`` or ``unknown``.
    """

    kind: str
    subject: str
    name: str
    value: float | None
    unit: str | None
    score: float | None
    verdict: str
    reason: str | None
    created_at: float


class Scored(Protocol):
    """A judged measure as it is handed to the products; see `QaScoreRow` for what its parts mean."""

    @property
    def name(self) -> str:
        """Unique among the measures of its group or mosaic."""

    @property
    def value(self) -> float | None:
        """What was measured."""

    @property
    def unit(self) -> str | None:
        """Of the value."""

    @property
    def score(self) -> float | None:
        """From 0 to 1."""

    @property
    def verdict(self) -> str:
        """In a word."""

    @property
    def reason(self) -> str | None:
        """In words."""


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """One row of ``quarantine``.

    ``state`` is ``held``, ``restored`` or ``deleted``, and in the middle of getting there ``moving``, ``restoring`` or
    ``deleting``.
    """

    path: str
    original_path: str
    kind: str
    reason: str
    size_bytes: int | None
    moved_at: float
    state: str
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class QaArtifactRow:
    """One row of ``qa_artifacts``."""

    group_id: str
    name: str
    path: str
    created_at: float


@dataclass(frozen=True, slots=True)
class ProvenanceRow:
    """Who made a product, when and with what; ``digest_kind`` says what ``digest`` is of (`contimg.checksums`)."""

    path: str
    kind: str
    subject: str | None
    digest: str | None
    digest_kind: str | None
    size_bytes: int | None
    made_at: float
    run: str | None
    version: str | None
    programs: str | None
    configuration: str | None
    files: str | None


@dataclass(frozen=True, slots=True)
class ProvenanceInput:
    """What a product was made of, as it was then; ``mtime`` in epoch seconds."""

    path: str
    role: str
    size_bytes: int | None = None
    mtime: float | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class GroupStepRow:
    """Who did a step of a group the last time, and with which settings."""

    group_id: str
    step: str
    run: str | None
    version: str | None
    configuration: str | None
    seconds: float | None
    finished_at: float
