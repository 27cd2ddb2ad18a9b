"""The tables of the three databases as SQLAlchemy models.

The first columns of each table, up to the comment ``ours``, have the names and types of the DSA-110
pipeline of October 2025, because people query these files with ``sqlite3``. A change here needs a
migration in ``migrations/``; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import REAL, BigInteger, Double, ForeignKey, Index, Integer, MetaData, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "AttemptTable",
    "BadFileTable",
    "CalSetTable",
    "CalTable",
    "ClockTable",
    "ConfigurationTable",
    "DuplicateTable",
    "GroupStepTable",
    "ImageTable",
    "MosaicTable",
    "MsTable",
    "NightTable",
    "PerformanceTable",
    "PressureTable",
    "ProductsBase",
    "ProvenanceInputTable",
    "ProvenanceTable",
    "QaArtifactTable",
    "QaScoreTable",
    "QuarantineTable",
    "QueueBase",
    "QueueTable",
    "ReceiptTable",
    "RegistryBase",
    "SetAsideTable",
    "SubbandTable",
    "real",
]


def real() -> Double[float]:
    """Return the type of every number with a fraction: 8 bytes everywhere, named REAL in SQLite."""
    return Double().with_variant(REAL(), "sqlite")


class QueueBase(DeclarativeBase):
    """Tables of the queue, ``state/ingest.sqlite3``."""

    metadata = MetaData()


class RegistryBase(DeclarativeBase):
    """Tables of the calibration registry, ``state/cal_registry.sqlite3``."""

    metadata = MetaData()


class ProductsBase(DeclarativeBase):
    """Tables of the products, ``state/products.sqlite3``."""

    metadata = MetaData()


class QueueTable(QueueBase):
    """One row per group of subbands."""

    __tablename__ = "ingest_queue"
    __table_args__ = (
        Index("idx_ingest_queue_state_start", "state", "start_mjd"),
        Index("idx_ingest_queue_start_received", "start_mjd", "received_at"),
        Index("idx_ingest_queue_calibrator_start", "has_calibrator", "start_mjd"),
        Index("idx_ingest_queue_received_at", "received_at"),
        Index("idx_ingest_queue_last_update", "last_update"),
        Index("idx_ingest_queue_owed_start", "owed", "start_mjd"),
    )
    group_id: Mapped[str] = mapped_column(Text, primary_key=True)
    state: Mapped[str] = mapped_column(Text)
    received_at: Mapped[float] = mapped_column(real())
    last_update: Mapped[float] = mapped_column(real())
    expected_subbands: Mapped[int | None] = mapped_column(Integer)
    retry_count: Mapped[int] = mapped_column(Integer, server_default="0", default=0)
    error: Mapped[str | None] = mapped_column(Text)
    checkpoint_path: Mapped[str | None] = mapped_column(Text)
    processing_stage: Mapped[str | None] = mapped_column(Text, server_default="collecting", default="collecting")
    chunk_minutes: Mapped[float | None] = mapped_column(real())
    has_calibrator: Mapped[int | None] = mapped_column(Integer)
    calibrators: Mapped[str | None] = mapped_column(Text)
    # ours
    start_mjd: Mapped[float | None] = mapped_column(real())
    start_source: Mapped[str | None] = mapped_column(Text)
    mid_mjd: Mapped[float | None] = mapped_column(real())
    dec_deg: Mapped[float | None] = mapped_column(real())
    owner: Mapped[str | None] = mapped_column(Text)
    owner_host: Mapped[str | None] = mapped_column(Text)
    owner_pid: Mapped[int | None] = mapped_column(Integer)
    owner_started: Mapped[float | None] = mapped_column(real())
    heartbeat_at: Mapped[float | None] = mapped_column(real())
    attempts: Mapped[int] = mapped_column(Integer, server_default="0", default=0)
    retry_base: Mapped[int] = mapped_column(Integer, server_default="0", default=0)
    current_step: Mapped[str | None] = mapped_column(Text)
    dispatched_at: Mapped[float | None] = mapped_column(real())
    dispatch_key: Mapped[str | None] = mapped_column(Text)
    dispatches: Mapped[int] = mapped_column(Integer, server_default="0", default=0)
    partial: Mapped[int] = mapped_column(Integer, server_default="0", default=0)
    finished_at: Mapped[float | None] = mapped_column(real())
    owner_birth: Mapped[str | None] = mapped_column(Text)
    imaging: Mapped[str | None] = mapped_column(Text)
    owed: Mapped[str | None] = mapped_column(Text)


class PressureTable(QueueBase):
    """How far behind the site was when that was last changed; one row. Ours."""

    __tablename__ = "pressure"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    level: Mapped[str] = mapped_column(Text)
    since: Mapped[float] = mapped_column(real())
    waiting: Mapped[int] = mapped_column(Integer)


class SubbandTable(QueueBase):
    """One row per subband of a group: the first file that came for it."""

    __tablename__ = "subband_files"
    __table_args__ = (Index("idx_subband_files_path", "path"),)
    group_id: Mapped[str] = mapped_column(Text, primary_key=True)
    subband_idx: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    path: Mapped[str] = mapped_column(Text)
    # ours
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    mtime: Mapped[float | None] = mapped_column(real())
    recorded_at: Mapped[float | None] = mapped_column(real())
    late: Mapped[int] = mapped_column(Integer, server_default="0", default=0)
    changed_at: Mapped[float | None] = mapped_column(real())
    start_mjd: Mapped[float | None] = mapped_column(real())
    mid_mjd: Mapped[float | None] = mapped_column(real())
    dec_deg: Mapped[float | None] = mapped_column(real())
    layout: Mapped[str | None] = mapped_column(Text)


class PerformanceTable(QueueBase):
    """Measured seconds of a group's stages."""

    __tablename__ = "performance_metrics"
    group_id: Mapped[str] = mapped_column(Text, primary_key=True)
    load_time: Mapped[float | None] = mapped_column(real())
    phase_time: Mapped[float | None] = mapped_column(real())
    write_time: Mapped[float | None] = mapped_column(real())
    total_time: Mapped[float | None] = mapped_column(real())
    writer_type: Mapped[str | None] = mapped_column(Text)
    recorded_at: Mapped[float] = mapped_column(real())
    # ours
    calibrate_time: Mapped[float | None] = mapped_column(real())
    apply_time: Mapped[float | None] = mapped_column(real())
    image_time: Mapped[float | None] = mapped_column(real())
    group_time: Mapped[float | None] = mapped_column(real())


class DuplicateTable(QueueBase):
    """Files that came for a subband that was there already. Ours."""

    __tablename__ = "duplicate_files"
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    group_id: Mapped[str] = mapped_column(Text, ForeignKey("ingest_queue.group_id", ondelete="CASCADE"))
    subband_idx: Mapped[int] = mapped_column(Integer)
    first_path: Mapped[str] = mapped_column(Text)
    recorded_at: Mapped[float] = mapped_column(real())
    start_mjd: Mapped[float | None] = mapped_column(real())
    dec_deg: Mapped[float | None] = mapped_column(real())
    layout: Mapped[str | None] = mapped_column(Text)


class BadFileTable(QueueBase):
    """Files that are no readable subband, with the reason. Ours."""

    __tablename__ = "bad_files"
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    mtime: Mapped[float | None] = mapped_column(real())
    recorded_at: Mapped[float] = mapped_column(real())
    not_moved: Mapped[str | None] = mapped_column(Text)
    group_id: Mapped[str | None] = mapped_column(Text)


class ClockTable(QueueBase):
    """What the clock of each machine, by its boot, said at the last scan. Ours."""

    __tablename__ = "clocks"
    boot: Mapped[str] = mapped_column(Text, primary_key=True)
    host: Mapped[str] = mapped_column(Text)
    wall: Mapped[float] = mapped_column(real())
    since_boot: Mapped[float] = mapped_column(real())
    stepped: Mapped[int] = mapped_column(Integer, server_default="0", default=0)
    beats: Mapped[str | None] = mapped_column(Text)


class SetAsideTable(QueueBase):
    """Files that were moved out of the input directory: where they lay, and what became of them. Ours."""

    __tablename__ = "set_aside_files"
    __table_args__ = (Index("idx_set_aside_files_original", "original_path"),)
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    original_path: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    mtime: Mapped[float | None] = mapped_column(real())
    moved_at: Mapped[float] = mapped_column(real())
    state: Mapped[str] = mapped_column(Text)
    ended_at: Mapped[float | None] = mapped_column(real())


class AttemptTable(QueueBase):
    """Every attempt at a group, with its error. Ours."""

    __tablename__ = "attempts"
    group_id: Mapped[str] = mapped_column(
        Text, ForeignKey("ingest_queue.group_id", ondelete="CASCADE"), primary_key=True
    )
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    owner: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[float] = mapped_column(real())
    ended_at: Mapped[float | None] = mapped_column(real())
    outcome: Mapped[str] = mapped_column(Text)
    step: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)


class ReceiptTable(QueueBase):
    """What each finished step of a group left behind, as JSON. Ours."""

    __tablename__ = "receipts"
    group_id: Mapped[str] = mapped_column(
        Text, ForeignKey("ingest_queue.group_id", ondelete="CASCADE"), primary_key=True
    )
    step: Mapped[str] = mapped_column(Text, primary_key=True)
    attempt: Mapped[int | None] = mapped_column(Integer)
    finished_at: Mapped[float] = mapped_column(real())
    seconds: Mapped[float | None] = mapped_column(real())
    content: Mapped[str] = mapped_column(Text)


class CalTable(RegistryBase):
    """One row per calibration table."""

    __tablename__ = "caltables"
    __table_args__ = (
        UniqueConstraint("path"),
        Index("idx_caltables_set", "set_name"),
        Index("idx_caltables_valid", "valid_start_mjd", "valid_end_mjd"),
    )
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    set_name: Mapped[str] = mapped_column(Text)
    path: Mapped[str] = mapped_column(Text)
    table_type: Mapped[str] = mapped_column(Text)
    order_index: Mapped[int] = mapped_column(Integer)
    cal_field: Mapped[str | None] = mapped_column(Text)
    refant: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(real())
    valid_start_mjd: Mapped[float | None] = mapped_column(real())
    valid_end_mjd: Mapped[float | None] = mapped_column(real())
    status: Mapped[str] = mapped_column(Text)
    notes: Mapped[str | None] = mapped_column(Text)
    # ours
    sha256: Mapped[str | None] = mapped_column(Text)
    mid_mjd: Mapped[float | None] = mapped_column(real())
    dec_deg: Mapped[float | None] = mapped_column(real())


class CalSetTable(RegistryBase):
    """One row per set, also of those that were turned down and have no table. Ours."""

    __tablename__ = "calsets"
    set_name: Mapped[str] = mapped_column(Text, primary_key=True)
    status: Mapped[str] = mapped_column(Text)
    group_id: Mapped[str | None] = mapped_column(Text)
    calibrator: Mapped[str | None] = mapped_column(Text)
    mid_mjd: Mapped[float | None] = mapped_column(real())
    dec_deg: Mapped[float | None] = mapped_column(real())
    reason: Mapped[str | None] = mapped_column(Text)
    report: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(real())


class MsTable(ProductsBase):
    """One row per Measurement Set."""

    __tablename__ = "ms_index"
    __table_args__ = (
        Index("idx_ms_index_stage_path", "stage", "path"),
        Index("idx_ms_index_status", "status"),
        Index("idx_ms_index_stage_updated", "stage", "stage_updated_at"),
        Index("idx_ms_index_status_updated", "status", "stage_updated_at"),
        Index("idx_ms_index_stage_updated_at", "stage_updated_at"),
        Index("idx_ms_index_group_id", "group_id"),
    )
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    start_mjd: Mapped[float | None] = mapped_column(real())
    end_mjd: Mapped[float | None] = mapped_column(real())
    mid_mjd: Mapped[float | None] = mapped_column(real())
    processed_at: Mapped[float | None] = mapped_column(real())
    status: Mapped[str | None] = mapped_column(Text)
    stage: Mapped[str | None] = mapped_column(Text)
    stage_updated_at: Mapped[float | None] = mapped_column(real())
    cal_applied: Mapped[int | None] = mapped_column(Integer, server_default="0", default=0)
    imagename: Mapped[str | None] = mapped_column(Text)
    # ours
    group_id: Mapped[str | None] = mapped_column(Text)
    partial: Mapped[int | None] = mapped_column(Integer)
    ra_deg: Mapped[float | None] = mapped_column(real())
    dec_deg: Mapped[float | None] = mapped_column(real())
    flagged_fraction: Mapped[float | None] = mapped_column(real())
    n_rows: Mapped[int | None] = mapped_column(BigInteger)
    n_spw: Mapped[int | None] = mapped_column(Integer)
    writer_type: Mapped[str | None] = mapped_column(Text)
    calibration_set: Mapped[str | None] = mapped_column(Text)
    cal_age_days: Mapped[float | None] = mapped_column(real())
    cal_borrowed: Mapped[int | None] = mapped_column(Integer)
    version: Mapped[str | None] = mapped_column(Text)


class ImageTable(ProductsBase):
    """One row per image."""

    __tablename__ = "images"
    __table_args__ = (
        Index("idx_images_ms_path", "ms_path"),
        Index("uq_images_path", "path", unique=True),
        Index("idx_images_mid_mjd", "mid_mjd"),
        Index("idx_images_created_at", "created_at"),
        Index("idx_images_group_id", "group_id"),
    )
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    path: Mapped[str] = mapped_column(Text)
    ms_path: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(real())
    type: Mapped[str] = mapped_column(Text)
    beam_major_arcsec: Mapped[float | None] = mapped_column(real())
    noise_jy: Mapped[float | None] = mapped_column(real())
    pbcor: Mapped[int | None] = mapped_column(Integer, server_default="0", default=0)
    # ours
    group_id: Mapped[str | None] = mapped_column(Text)
    mid_mjd: Mapped[float | None] = mapped_column(real())
    beam_minor_arcsec: Mapped[float | None] = mapped_column(real())
    beam_pa_deg: Mapped[float | None] = mapped_column(real())
    peak_jy: Mapped[float | None] = mapped_column(real())
    noise_centre_jy: Mapped[float | None] = mapped_column(real())
    dynamic_range: Mapped[float | None] = mapped_column(real())
    ra_deg: Mapped[float | None] = mapped_column(real())
    dec_deg: Mapped[float | None] = mapped_column(real())
    imsize: Mapped[int | None] = mapped_column(Integer)
    cell_arcsec: Mapped[float | None] = mapped_column(real())
    freq_hz: Mapped[float | None] = mapped_column(real())
    bandwidth_hz: Mapped[float | None] = mapped_column(real())
    integration_s: Mapped[float | None] = mapped_column(real())
    calibration_set: Mapped[str | None] = mapped_column(Text)
    cal_age_days: Mapped[float | None] = mapped_column(real())
    cal_borrowed: Mapped[int | None] = mapped_column(Integer)
    partial: Mapped[int | None] = mapped_column(Integer)
    files: Mapped[str | None] = mapped_column(Text)
    parameters: Mapped[str | None] = mapped_column(Text)
    version: Mapped[str | None] = mapped_column(Text)
    sha256: Mapped[str | None] = mapped_column(Text)
    quick: Mapped[int | None] = mapped_column(Integer)


class MosaicTable(ProductsBase):
    """One row per mosaic: one strip of a night, or of a window that somebody named."""

    __tablename__ = "mosaics"
    __table_args__ = (
        Index("idx_mosaics_name", "name"),
        Index("uq_mosaics_name", "name", unique=True),
        Index("idx_mosaics_plan", "plan"),
        Index("idx_mosaics_mid_mjd", "mid_mjd"),
    )
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(real())
    status: Mapped[str] = mapped_column(Text)
    method: Mapped[str | None] = mapped_column(Text)
    tiles: Mapped[str] = mapped_column(Text)
    output_path: Mapped[str | None] = mapped_column(Text)
    # ours
    validation_issues: Mapped[str | None] = mapped_column(Text)
    plan: Mapped[str | None] = mapped_column(Text)
    strip: Mapped[int | None] = mapped_column(Integer)
    start_mjd: Mapped[float | None] = mapped_column(real())
    mid_mjd: Mapped[float | None] = mapped_column(real())
    end_mjd: Mapped[float | None] = mapped_column(real())
    ra_deg: Mapped[float | None] = mapped_column(real())
    dec_deg: Mapped[float | None] = mapped_column(real())
    width: Mapped[int | None] = mapped_column(Integer)
    height: Mapped[int | None] = mapped_column(Integer)
    cell_arcsec: Mapped[float | None] = mapped_column(real())
    freq_hz: Mapped[float | None] = mapped_column(real())
    beam_major_arcsec: Mapped[float | None] = mapped_column(real())
    beam_minor_arcsec: Mapped[float | None] = mapped_column(real())
    beam_pa_deg: Mapped[float | None] = mapped_column(real())
    noise_jy: Mapped[float | None] = mapped_column(real())
    peak_jy: Mapped[float | None] = mapped_column(real())
    tiles_used: Mapped[int | None] = mapped_column(Integer)
    tiles_rejected: Mapped[int | None] = mapped_column(Integer)
    verdicts: Mapped[str | None] = mapped_column(Text)
    checks: Mapped[str | None] = mapped_column(Text)
    files: Mapped[str | None] = mapped_column(Text)
    parameters: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    version: Mapped[str | None] = mapped_column(Text)
    sha256: Mapped[str | None] = mapped_column(Text)
    built_at: Mapped[float | None] = mapped_column(real())


class NightTable(ProductsBase):
    """What became of each night's mosaic, so that missed ones are made up for. Ours."""

    __tablename__ = "nights"
    night: Mapped[str] = mapped_column(Text, primary_key=True)
    state: Mapped[str] = mapped_column(Text)
    tiles: Mapped[int | None] = mapped_column(Integer)
    attempts: Mapped[int] = mapped_column(Integer, server_default="0", default=0)
    updated_at: Mapped[float] = mapped_column(real())
    error: Mapped[str | None] = mapped_column(Text)
    inputs: Mapped[str | None] = mapped_column(Text)


class QaScoreTable(ProductsBase):
    """One judged measure of a group or a mosaic. Ours."""

    __tablename__ = "qa_scores"
    __table_args__ = (
        Index("idx_qa_scores_verdict", "verdict"),
        Index("idx_qa_scores_verdict_created", "verdict", "created_at"),
        Index("idx_qa_scores_created_at", "created_at"),
    )
    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    subject: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[float | None] = mapped_column(real())
    unit: Mapped[str | None] = mapped_column(Text)
    score: Mapped[float | None] = mapped_column(real())
    verdict: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(real())


class QuarantineTable(ProductsBase):
    """One product that was put aside, where it lay, and what became of it. Ours."""

    __tablename__ = "quarantine"
    __table_args__ = (Index("idx_quarantine_original", "original_path"),)
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    original_path: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    moved_at: Mapped[float] = mapped_column(real())
    state: Mapped[str] = mapped_column(Text)
    ended_at: Mapped[float | None] = mapped_column(real())


class QaArtifactTable(ProductsBase):
    """One row per QA plot or report of a group or of a mosaic."""

    __tablename__ = "qa_artifacts"
    __table_args__ = (
        Index("idx_qa_artifacts_created_at", "created_at"),
        Index("idx_qa_artifacts_group_created", "group_id", "created_at"),
    )
    group_id: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    path: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(real())


class ConfigurationTable(ProductsBase):
    """The settings of a site as they were in force, once for each content, without secrets. Ours."""

    __tablename__ = "configurations"
    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    content: Mapped[str] = mapped_column(Text)
    first_used_at: Mapped[float] = mapped_column(real())


class ProvenanceTable(ProductsBase):
    """Who made a product, when and with what; one row per product that was made since this is kept. Ours."""

    __tablename__ = "provenance"
    __table_args__ = (Index("idx_provenance_subject", "subject"),)
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    subject: Mapped[str | None] = mapped_column(Text)
    digest: Mapped[str | None] = mapped_column(Text)
    digest_kind: Mapped[str | None] = mapped_column(Text)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    made_at: Mapped[float] = mapped_column(real())
    run: Mapped[str | None] = mapped_column(Text)
    version: Mapped[str | None] = mapped_column(Text)
    programs: Mapped[str | None] = mapped_column(Text)
    configuration: Mapped[str | None] = mapped_column(Text)
    files: Mapped[str | None] = mapped_column(Text)


class ProvenanceInputTable(ProductsBase):
    """What a product was made of: one row per file or directory, as it was then. Ours."""

    __tablename__ = "provenance_inputs"
    __table_args__ = (Index("idx_provenance_inputs_path", "path"),)
    product: Mapped[str] = mapped_column(Text, primary_key=True)
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    role: Mapped[str] = mapped_column(Text)
    place: Mapped[int] = mapped_column(Integer)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    mtime: Mapped[float | None] = mapped_column(real())
    digest: Mapped[str | None] = mapped_column(Text)


class GroupStepTable(ProductsBase):
    """Who did a step of a group the last time, with which nightbeam and which settings. Ours."""

    __tablename__ = "group_steps"
    group_id: Mapped[str] = mapped_column(Text, primary_key=True)
    step: Mapped[str] = mapped_column(Text, primary_key=True)
    run: Mapped[str | None] = mapped_column(Text)
    version: Mapped[str | None] = mapped_column(Text)
    configuration: Mapped[str | None] = mapped_column(Text)
    seconds: Mapped[float | None] = mapped_column(real())
    finished_at: Mapped[float] = mapped_column(real())
