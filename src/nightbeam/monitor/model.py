"""What the monitor answers. Times are aware and in UTC; what ends in ``_mjd`` are days (UTC) as in the databases.

Every answer that is a list has ``problems``: why it may be empty or old, in words. A question is never answered with an
error because a database or a service is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

__all__ = [
    "Artifact",
    "Artifacts",
    "Attempt",
    "BadFile",
    "CalibrationSet",
    "CalibrationSets",
    "CalibrationTable",
    "CalibratorMatch",
    "CalibratorMatches",
    "ConstantsFile",
    "ConstantsState",
    "CxiFile",
    "CxiProducer",
    "CxiState",
    "CxiWriter",
    "ElogExperiment",
    "ElogFailure",
    "ElogSnapshot",
    "ElogState",
    "GroupDetail",
    "GroupFile",
    "GroupStep",
    "Groups",
    "Health",
    "Image",
    "Images",
    "Match",
    "MeasurementSet",
    "MeasurementSets",
    "Mosaic",
    "MosaicDetail",
    "Mosaics",
    "Night",
    "Nights",
    "PlatformState",
    "Pool",
    "Process",
    "Product",
    "Products",
    "Put",
    "Quarantined",
    "QueueBacklog",
    "QueueCounts",
    "QueueGroup",
    "Reprocessed",
    "ScanFailure",
    "ScanStore",
    "ScanWater",
    "ScansState",
    "Score",
    "Scores",
    "Standing",
    "Status",
    "System",
    "SystemMetrics",
    "Tonight",
]


class Standing(StrEnum):
    """How a system does, worst first."""

    TROUBLE = "trouble"  # somebody should look
    WAITING = "waiting"  # it works, or would, and something else is awaited
    UNKNOWN = "unknown"  # it cannot be told
    OFF = "off"  # nobody has started it
    OK = "ok"


# -- the queue ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A calibrator in the field of a group."""

    name: str
    ra_deg: float | None = None
    dec_deg: float | None = None
    sep_deg: float | None = None
    weighted_flux: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueGroup:
    """One group of subbands; ``start`` is when its data begin.

    ``stage`` is the step at work, or at which it waits; ``matches`` is null where nobody has looked for calibrators.
    """

    group_id: str
    state: str
    received_at: datetime | None
    last_update: datetime | None
    subbands_present: int
    expected_subbands: int | None
    has_calibrator: bool | None = None
    matches: list[Match] | None = None
    stage: str | None = None
    start: datetime | None = None
    start_mjd: float | None = None
    dec_deg: float | None = None
    attempts: int = 0
    retries: int = 0
    partial: bool = False
    owner: str | None = None
    error: str | None = None
    finished_at: datetime | None = None
    imaging: str | None = None
    owed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """How many groups there are in each state."""

    total: int = 0
    pending: int = 0
    in_progress: int = 0
    failed: int = 0
    completed: int = 0
    collecting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueBacklog:
    """What has come and is not imaged, and what gives way because of it.

    ``level`` is ``calm``, ``behind`` (optional work waits) or ``quick`` (images are quick, too), ``since`` when that
    was noted. ``waiting`` groups are ``minutes`` of sky; those in work, and those that wait for gains, are not among
    them. The data of the oldest began ``oldest_s`` seconds ago. Groups that are owed a full image or figures are done.
    """

    level: str = "calm"
    since: datetime | None = None
    waiting: int = 0
    minutes: float = 0.0
    oldest_s: float | None = None
    in_work: int = 0
    for_gains: int = 0
    owed_images: int = 0
    owed_figures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Groups, newest data first.

    ``before`` is what to ask for to go on with older ones, null at the end. ``searched`` is how many of the newest were
    looked through for a text, null where all were.
    """

    items: list[QueueGroup]
    before: str | None = None
    searched: int | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFile:
    """What is there of one subband: ``arrived_at`` is when it was recorded, null for one that is missing."""

    subband: int
    path: str | None = None
    size_bytes: int | None = None
    arrived_at: datetime | None = None
    written_at: datetime | None = None
    late: bool = False
    missing: bool = False
    duplicates: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStep:
    """One step of the chain; ``state`` is ``done``, ``running``, ``failed`` or ``open``."""

    step: str
    state: str
    seconds: float | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at a group; ``run_url`` is the page of its flow run, where it was one."""

    attempt: int
    outcome: str
    step: str | None
    owner: str | None
    started_at: datetime | None
    ended_at: datetime | None
    error: str | None
    run_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BadFile:
    """A file that is no readable subband; ``note`` says where it is now, or why it stays."""

    path: str
    reason: str
    size_bytes: int | None
    recorded_at: datetime | None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratorMatch:
    """The calibrators of one group."""

    group_id: str
    matched: bool
    matches: list[Match]
    received_at: datetime | None
    last_update: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratorMatches:
    """Groups with their calibrators, newest data first."""

    items: list[CalibratorMatch]
    problems: list[str] = field(default_factory=list)


# -- calibration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTable:
    """One table of a set, in the order in which they are applied."""

    path: str
    table_type: str
    order_index: int
    status: str
    cal_field: str | None
    refant: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSet:
    """A set of calibration tables and when it is valid; ``active`` of its ``total`` tables are."""

    set_name: str
    tables: list[str]
    active: int
    total: int
    status: str = ""
    calibrator: str | None = None
    group_id: str | None = None
    valid_start: datetime | None = None
    valid_end: datetime | None = None
    valid_start_mjd: float | None = None
    valid_end_mjd: float | None = None
    mid_mjd: float | None = None
    dec_deg: float | None = None
    created_at: datetime | None = None
    reason: str | None = None
    details: list[CalibrationTable] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSets:
    """Sets of calibration tables, newest first."""

    items: list[CalibrationSet]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The queue in short; ``matched_recent`` of the recent groups have a calibrator."""

    queue: QueueCounts
    recent_groups: list[QueueGroup]
    calibration_sets: list[CalibrationSet]
    matched_recent: int
    backlog: QueueBacklog = field(default_factory=lambda: QueueBacklog())
    problems: list[str] = field(default_factory=list)


# -- products -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One image, in the words of the older pipeline."""

    id: int
    path: str
    ms_path: str
    created_at: datetime | None
    type: str
    beam_major_arcsec: float | None = None
    noise_jy: float | None = None
    pbcor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Images, the newest first."""

    items: list[Product]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image with what was measured on it; ``png_url`` is null where there is no picture that may be shown.

    ``put_aside_at`` is when housekeeping put its files into quarantine; null where they are at their place.
    """

    id: int
    path: str
    ms_path: str
    created_at: datetime | None
    type: str
    group_id: str | None = None
    mid: datetime | None = None
    mid_mjd: float | None = None
    beam_major_arcsec: float | None = None
    beam_minor_arcsec: float | None = None
    beam_pa_deg: float | None = None
    noise_jy: float | None = None
    noise_centre_jy: float | None = None
    peak_jy: float | None = None
    dynamic_range: float | None = None
    ra_deg: float | None = None
    dec_deg: float | None = None
    imsize: int | None = None
    cell_arcsec: float | None = None
    freq_hz: float | None = None
    bandwidth_hz: float | None = None
    integration_s: float | None = None
    calibration_set: str | None = None
    cal_age_days: float | None = None
    cal_borrowed: bool = False
    partial: bool = False
    quick: bool = False
    pbcor: bool = False
    png_url: str | None = None
    version: str | None = None
    put_aside_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Images, the newest first; ``before`` is what to ask for to go on, null at the end."""

    items: list[Image]
    before: int | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementSet:
    """One row of the index of Measurement Sets."""

    path: str
    start_mjd: float | None
    end_mjd: float | None
    mid_mjd: float | None
    processed_at: datetime | None
    status: str | None
    stage: str | None
    stage_updated_at: datetime | None
    cal_applied: int | None
    imagename: str | None
    group_id: str | None = None
    partial: bool = False
    flagged_fraction: float | None = None
    calibration_set: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementSets:
    """Measurement Sets, the newest change of stage first."""

    items: list[MeasurementSet]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mosaic:
    """One mosaic: a strip of a night, or of a window that somebody named (``plan``).

    ``put_aside_at`` as of an image.
    """

    id: int
    name: str
    status: str
    created_at: datetime | None
    built_at: datetime | None = None
    method: str | None = None
    plan: str | None = None
    strip: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    start_mjd: float | None = None
    mid_mjd: float | None = None
    end_mjd: float | None = None
    ra_deg: float | None = None
    dec_deg: float | None = None
    width: int | None = None
    height: int | None = None
    cell_arcsec: float | None = None
    freq_hz: float | None = None
    beam_major_arcsec: float | None = None
    beam_minor_arcsec: float | None = None
    beam_pa_deg: float | None = None
    noise_jy: float | None = None
    peak_jy: float | None = None
    tiles_used: int | None = None
    tiles_rejected: int | None = None
    output_path: str | None = None
    png_url: str | None = None
    error: str | None = None
    put_aside_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mosaics:
    """Mosaics, the newest data first."""

    items: list[Mosaic]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicDetail:
    """A mosaic with its tiles, what was said of each of them, the checks of the result and its files."""

    mosaic: Mosaic
    tiles: list[str]
    verdicts: Any = None
    checks: Any = None
    parameters: Any = None
    validation_issues: Any = None
    files: Mapping[str, str] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    qa: list[Artifact] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What became of a night's mosaic: ``done``, ``empty`` or ``failed``."""

    night: str
    state: str
    tiles: int | None
    attempts: int
    updated_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nights:
    """Nights, the last first."""

    items: list[Night]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One figure or report of a group or a mosaic; ``url`` is null where the file may not be shown."""

    group_id: str
    name: str
    path: str
    created_at: datetime | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """Figures and reports, the newest first."""

    items: list[Artifact]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One judged measure of a group or a mosaic; ``verdict`` is ``good``, ``warn``, ``bad`` or ``unknown``."""

    kind: str
    subject: str
    name: str
    value: float | None
    unit: str | None
    score: float | None
    verdict: str
    reason: str | None
    created_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Judged measures, the newest first; those of one subject by name."""

    items: list[Score]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """One product that was put aside."""

    path: str
    original_path: str
    kind: str
    reason: str
    size_bytes: int | None
    moved_at: datetime | None
    state: str
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """What is in quarantine, the last first, and what was."""

    items: list[Quarantined]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDetail:
    """Everything that the databases know of a group; ``newer`` and ``older`` are its neighbours in time.

    ``calibration`` is what the step ``calibrate`` left behind: set, tables, age, whether borrowed; empty before it.
    """

    group_id: str
    state: str
    received_at: datetime | None
    last_update: datetime | None
    subbands_present: int
    expected_subbands: int | None
    has_calibrator: bool | None = None
    matches: list[Match] | None = None
    stage: str | None = None
    start: datetime | None = None
    start_mjd: float | None = None
    dec_deg: float | None = None
    attempts: int = 0
    retries: int = 0
    partial: bool = False
    owner: str | None = None
    error: str | None = None
    finished_at: datetime | None = None
    imaging: str | None = None
    owed: str | None = None
    qa: list[Artifact] = field(default_factory=list)
    perf_total_time: float | None = None
    writer_type: str | None = None
    performance: dict[str, float | None] = field(default_factory=dict)
    files: list[GroupFile] = field(default_factory=list)
    steps: list[GroupStep] = field(default_factory=list)
    calibration: dict[str, Any] = field(default_factory=dict)
    history: list[Attempt] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    measurement_sets: list[MeasurementSet] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    newer: str | None = None
    older: str | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reprocessed:
    """What came of a request to do a group again; ``run_id`` is the flow run that does it, if ``started`` a new one."""

    ok: bool
    error: str | None = None
    group_id: str | None = None
    run_id: str | None = None
    run_url: str | None = None
    started: bool | None = None


# -- the machine --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemMetrics:
    """The machine at one moment; bytes, per cent, and the load over 1, 5 and 15 minutes."""

    ts: datetime
    cpu_percent: float | None = None
    mem_percent: float | None = None
    mem_total: int | None = None
    mem_used: int | None = None
    disk_total: int | None = None
    disk_used: int | None = None
    load_1: float | None = None
    load_5: float | None = None
    load_15: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether the databases can be read; ``status`` is ``ok`` or ``unhealthy``, each database has a word of its own."""

    status: str
    version: str
    databases: dict[str, str]
    problems: list[str] = field(default_factory=list)


# -- the services -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """How one of the systems does; ``since`` is its last sign of life, ``facts`` a few numbers or words for people."""

    key: str
    title: str
    standing: Standing
    reason: str
    since: datetime | None = None
    facts: dict[str, int | float | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tonight:
    """All systems at a glance, those in trouble first; ``standing`` is the worst of them."""

    now: datetime
    standing: Standing
    systems: list[System]
    queue: QueueCounts
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ElogExperiment:
    """One experiment of the mirror; its times are as the service writes them."""

    experiment_id: str
    name: str
    instrument: str | None
    start_time: str | None
    end_time: str | None
    status: str
    run_count: int | None
    last_run: int | None
    updated_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ElogFailure:
    """A list of an experiment whose last reading failed."""

    experiment_id: str
    resource: str
    error: str | None
    attempted_at: datetime | None
    synced_at: datetime | None
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ElogSnapshot:
    """A published copy of the mirror."""

    path: str
    size_bytes: int
    written_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ElogState:
    """The mirror of the logbook: what it holds and how the last update went."""

    system: System
    database: str
    last_update: datetime | None = None
    last_success: datetime | None = None
    experiments: int = 0
    entries: int = 0
    runs: int = 0
    lists_ok: int = 0
    lists_failed: int = 0
    newest: list[ElogExperiment] = field(default_factory=list)
    failures: list[ElogFailure] = field(default_factory=list)
    snapshots: list[ElogSnapshot] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantsFile:
    """One cache file of detector constants; ``reason`` says why it cannot be used."""

    experiment: str
    run: int
    path: str
    size_bytes: int
    created_at: datetime | None = None
    detectors: int | None = None
    constants: int | None = None
    skipped: list[str] = field(default_factory=list)
    shared_by: int = 1
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantsState:
    """The cache of detector constants of this machine, newest run first."""

    system: System
    directory: str
    experiment: str | None
    items: list[ConstantsFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanStore:
    """A store of calibrated scans."""

    name: str
    path: str
    scans: int
    changed_at: datetime | None = None
    failures: int = 0
    running: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanWater:
    """The water above the telescope during one scan."""

    at: datetime | None
    store: str
    scan: int
    pwv_mm: float | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFailure:
    """A scan that the last run of its store could not calibrate."""

    store: str
    scan: int
    error: str
    stage: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScansState:
    """The scan calibrator and its stores, the one written to last first."""

    system: System
    directory: str
    running: bool = False
    pid: int | None = None
    beat_at: datetime | None = None
    done: int = 0
    skipped: int = 0
    failed: int = 0
    backlog: int = 0
    writing: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    last_scan: str | None = None
    last_error: str | None = None
    water: list[ScanWater] = field(default_factory=list)
    stores: list[ScanStore] = field(default_factory=list)
    failures: list[ScanFailure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class CxiProducer:
    """What was taken from one producer, and what of it is nowhere."""

    name: str
    batches: int
    settled: int
    abandoned: int
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CxiRun:
    """One run as a writer has counted it: events that were looked at, hits among them, peaks of these."""

    writer: str
    experiment: str | None
    run: int | None
    events: int
    hits: int
    peaks: int
    hit_rate: float | None
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CxiWriter:
    """One writer of CXI files as its status file has it; ``counters`` are all that it counts."""

    prefix: str
    directory: str
    state: str
    running: bool
    updated_at: datetime | None
    pid: int | None = None
    host: str | None = None
    queue: str | None = None
    ended_by: str | None = None
    events_received: int = 0
    events_written: int = 0
    events_filtered: int = 0
    events_rejected: int = 0
    events_lost: int = 0
    files: int = 0
    events_per_s: float | None = None
    hit_rate: float | None = None
    last_file: str | None = None
    queue_size: int | None = None
    producers: list[CxiProducer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    counters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CxiFile:
    """One finished file of a writer."""

    name: str
    size_bytes: int
    written_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CxiState:
    """The CXI writers of the output directory, and the files written last."""

    system: System
    directory: str | None
    writers: list[CxiWriter] = field(default_factory=list)
    runs: list[CxiRun] = field(default_factory=list)
    newest: list[CxiFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of the platform."""

    name: str
    state: str
    pid: int | None
    since: str
    restarts: int
    last_exit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One work pool as the server sees it."""

    name: str
    paused: bool
    workers_online: int
    running: int
    pending: int
    scheduled: int
    late: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformState:
    """Supervisor, Prefect's server, processes and pools; ``page_url`` is Prefect's page for browsers."""

    system: System
    phase: str
    server: str
    api_url: str
    page_url: str | None
    ray: str = ""
    processes: list[Process] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    asked_at: datetime | None = None
    problems: list[str] = field(default_factory=list)
