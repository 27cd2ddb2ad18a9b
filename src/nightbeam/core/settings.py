"""Everything that a site decides: defaults < YAML file < environment < command line.

Unknown keys are refused wherever they come from, because a misspelt setting that is silently
ignored costs a night. Library functions take values; only programs and flows read `Settings`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nightbeam.core.errors import ConfigError

__all__ = [
    "SEED_VARIABLES",
    "CalibSettings",
    "CalibrateSettings",
    "ContimgSettings",
    "ConvertSettings",
    "CxiSettings",
    "DoctorSettings",
    "ElogSettings",
    "FlagSettings",
    "HousekeepingSettings",
    "ImageSettings",
    "IngestSettings",
    "MonitorSettings",
    "MosaicSettings",
    "PipelineSettings",
    "PlatformSettings",
    "PressureSettings",
    "QaSettings",
    "ScanLimitsSettings",
    "ScansSettings",
    "Settings",
    "StreamSettings",
    "database_url",
    "load_settings",
]

PREFIX = "NIGHTBEAM_"
#: Users of elogfetch have variables of this name; those that mean something are in `SEED_VARIABLES`.
_ELOGFETCH = "FETCH_ELOG_"
CONFIG_VARIABLE = "NIGHTBEAM_CONFIG"
DEFAULT_FILE = Path("nightbeam.yaml")
_FLUX_DENSITY = r"^\s*(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*(|Jy|mJy|uJy)\s*$"

#: Variables that sites of the DSA-110 pipeline and users of elogfetch already set, and where each belongs
#: here. Where several name one setting, the first that is set wins.
SEED_VARIABLES: Mapping[str, str] = {
    "PIPELINE_STATE_DIR": "state_dir",
    "CONTIMG_STATE_DIR": "state_dir",
    "PIPELINE_QUEUE_DB": "contimg.queue_db",
    "CONTIMG_QUEUE_DB": "contimg.queue_db",
    "CAL_REGISTRY_DB": "contimg.registry_db",
    "PIPELINE_REGISTRY_DB": "contimg.registry_db",
    "CONTIMG_REGISTRY_DB": "contimg.registry_db",
    "PIPELINE_PRODUCTS_DB": "contimg.products_db",
    "CONTIMG_PRODUCTS_DB": "contimg.products_db",
    "CONTIMG_INPUT_DIR": "contimg.input_dir",
    "CONTIMG_OUTPUT_DIR": "contimg.output_dir",
    "CONTIMG_SCRATCH_DIR": "contimg.scratch_dir",
    "PIPELINE_EXPECTED_SUBBANDS": "contimg.ingest.expected_subbands",
    "CONTIMG_EXPECTED_SUBBANDS": "contimg.ingest.expected_subbands",
    "CONTIMG_CHUNK_MINUTES": "contimg.ingest.chunk_minutes",
    "SCHED_INPROG_TIMEOUT": "contimg.ingest.in_progress_timeout_s",
    "SCHED_COLLECTING_TIMEOUT": "contimg.ingest.collecting_timeout_s",
    "SCHED_TEMP_AGE": "contimg.housekeeping.scratch_age_s",
    "CONTIMG_LOG_LEVEL": "log_level",
    "OMP_NUM_THREADS": "contimg.threads",
    "MKL_NUM_THREADS": "contimg.threads",
    "PIPELINE_POINTING_DEC_DEG": "contimg.calibrate.pointing_dec_deg",
    "VLA_CALIBRATOR_CSV": "contimg.calibrate.catalogue",
    "CAL_MATCH_RADIUS_DEG": "contimg.calibrate.match_radius_deg",
    "CAL_MATCH_TOPN": "contimg.calibrate.match_topn",
    "BP_MINSNR": "contimg.calibrate.bp_minsnr",
    "IMG_IMSIZE": "contimg.image.imsize",
    "IMG_ROBUST": "contimg.image.robust",
    "IMG_NITER": "contimg.image.niter",
    "IMG_THRESHOLD": "contimg.image.threshold",
    "SCHED_MOSAIC_ENABLE": "contimg.nightly_mosaics",
    "SCHED_MOSAIC_OUTPUT_DIR": "contimg.mosaic.output_dir",
    "SCHED_MOSAIC_NAME_PREFIX": "contimg.mosaic.name_prefix",
    "SCHED_MOSAIC_WINDOW_DAYS": "contimg.mosaic.window_days",
    "FETCH_ELOG_HOURS_LOOKBACK": "elog.hours_lookback",
    "FETCH_ELOG_PARALLEL_JOBS": "elog.parallel_jobs",
    "FETCH_ELOG_DATABASE_DIR": "elog.database_dir",
    "FETCH_ELOG_LOCK_TIMEOUT": "elog.lock_timeout",
    "FETCH_ELOG_BASE_URL": "elog.base_url",
    "FETCH_ELOG_KERBEROS_PRINCIPAL": "elog.kerberos_principal",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IngestSettings(_Section):
    """How files become groups, and how often a group is tried."""

    expected_subbands: int = Field(16, ge=1, le=99, description="Subbands of a complete group.")
    chunk_minutes: float = Field(5.0, gt=0, description="Nominal length of a group; recorded, not used to group.")
    name_gap_s: float = Field(90.0, gt=0, description="Gap between names that begins a new group (fall-back).")
    settle_s: float = Field(2.0, ge=0, description="A file must not have changed for this long.")
    max_retries: int = Field(3, ge=1, description="Attempts before a group is failed for good.")
    in_progress_timeout_s: float = Field(900.0, gt=0, description="Age at which a silent run's group is taken back.")
    collecting_warn_s: float = Field(180.0, gt=0, description="Age at which an incomplete group is warned of.")
    collecting_timeout_s: float = Field(
        340.0, gt=0, description="Age at which a group of too few subbands is failed; one comes each 310 s."
    )
    min_subbands: int = Field(
        16, ge=1, le=99, description="Subbands with which an incomplete group is imaged as partial; 16: never."
    )
    partial_after_s: float = Field(
        340.0,
        gt=0,
        description="Age at which an incomplete group of so many subbands is imaged; one comes each 310 s.",
    )
    bad_file_wait_s: float = Field(
        600.0, ge=0, description="A bad file must not have changed for this long before it is moved aside."
    )
    set_aside_dir: Path | None = Field(
        None, description="Where bad files are moved; None: .set-aside in the input directory."
    )
    watch_every_s: float = Field(0.25, gt=0, description="Between two looks of the watcher at the input directory.")
    watch_by: Literal["auto", "listing"] = Field(
        "auto", description="listing: the watcher lists the directory at each look, as it does by itself where it must."
    )
    remember_s: float = Field(
        86400.0, ge=0, description="So long after the end of a group its files are watched for being rewritten."
    )

    @property
    def give_up_s(self) -> float:
        """Age at which a group of too few subbands is failed: not before those of enough have gone on."""
        policy = self.min_subbands < self.expected_subbands
        return max(self.collecting_timeout_s, self.partial_after_s) if policy else self.collecting_timeout_s


class ConvertSettings(_Section):
    """How subbands become a Measurement Set."""

    writer: Literal["direct-subband", "pyuvdata", "auto"] = Field("direct-subband", description="Which strategy.")
    max_workers: int = Field(4, ge=1, description="Subbands handled at the same time, at most the cores there are.")
    stage_to_tmpfs: bool = Field(
        False, description="Write in memory first where there is room; of groups contimg.scratch_ram says more."
    )
    tmpfs_path: Path = Field(Path("/dev/shm"), description="The memory file system.")
    max_flagged_fraction: float = Field(0.9, gt=0, le=1, description="Refuse a group with more of it flagged.")


class FlagSettings(_Section):
    """Whether and how interference is flagged, between conversion and calibration."""

    engine: Literal["none", "aoflagger"] = Field("none", description="Which flagger.")
    strategy: Path | None = Field(None, description="Lua script of AOFlagger; None: its own choice.")
    max_flagged_fraction: float = Field(
        0.5, gt=0, le=1, description="Refuse a group with more of it flagged afterwards."
    )
    timeout_s: float = Field(1800.0, gt=0, description="The flagger is stopped after this long.")


class CalibrateSettings(_Section):
    """Which calibrator is believed, how it is solved, and for how long."""

    catalogue: Path | None = Field(None, description="VLA calibrator list (text or CSV); None: the shipped one.")
    pointing_dec_deg: float | None = Field(
        None, ge=-90, le=90, description="Used only where a file does not say its Dec."
    )
    match_radius_deg: float = Field(1.0, gt=0, description="Farthest calibrator from the meridian centre.")
    match_topn: int = Field(3, ge=1, description="Matches kept for a group.")
    min_flux_jy: float = Field(1.0, ge=0, description="Least flux times beam of a calibrator worth solving on.")
    refants: tuple[str, ...] = Field(("103",), description="Reference antennas in order of preference.")
    bp_minsnr: float = Field(5.0, gt=0, description="Least SNR of a bandpass solution.")
    gain_minsnr: float = Field(3.0, gt=0, description="Least SNR of a gain solution.")
    solve_delays: bool = Field(False, description="Solve K first; the correlator applies delays already.")
    validity_minutes: float = Field(30.0, gt=0, description="A set is valid this long before and after its data.")
    borrow_days: float = Field(0.5, ge=0, description="How old a borrowed set of the same strip may be; 0: never.")
    max_flagged_fraction: float = Field(0.5, gt=0, le=1, description="Refuse data with more flagged than this.")
    uvrange: str = Field("", description="CASA selection for the solves, e.g. '>0.1klambda'.")


class ImageSettings(_Section):
    """How an image is made."""

    engine: Literal["tclean", "wsclean"] = Field("tclean", description="Which imager.")
    imsize: int = Field(1024, ge=64, description="Pixels on a side.")
    cell_arcsec: float | None = Field(
        None, gt=0, description="Pixel size; None: what shows the primary beam, well sampled."
    )
    weighting: Literal["briggs", "natural", "uniform"] = Field("briggs", description="uv weighting.")
    robust: float = Field(0.0, ge=-2, le=2, description="Briggs robustness.")
    niter: int = Field(1000, ge=0, description="Clean components at most.")
    threshold: str = Field("0.0Jy", pattern=_FLUX_DENSITY, description="Where cleaning stops.")
    deconvolver: str = Field("hogbom", description="CASA's name of the minor cycle.")
    gridder: Literal["standard", "wproject"] = Field("wproject", description="standard displaces sources.")
    wprojplanes: int = Field(-1, description="-1: chosen by CASA.")
    pblimit: float = Field(0.2, description="Beam level where the primary-beam corrected image ends.")
    psfcutoff: float = Field(0.35, gt=0, lt=1, description="The restoring beam is fitted to the dirty beam above this.")
    chanbin: int = Field(8, ge=1, description="Channels averaged before imaging.")
    max_smearing: float = Field(0.05, gt=0, lt=1, description="Fewer channels are averaged where more would be lost.")
    beam_model: Literal["auto", "engine", "dsacalib", "gaussian", "airy"] = Field(
        "auto", description="Primary beam; auto: dsacalib averaged over the drift for DSA-110, else the imager's own."
    )
    datacolumn: Literal["auto", "corrected", "data"] = Field("auto", description="auto: CORRECTED_DATA if it has any.")
    timeout_s: float = Field(1800.0, gt=0, description="The imager is stopped after this long.")
    memory_gb: float = Field(4.0, gt=0, description="What WSClean plans for; tclean cannot be told.")
    quick: bool = Field(False, description="At most 512 pixels and 300 components.")
    min_peak_over_noise: float = Field(5.0, gt=0, description="A fainter image is not good.")


class MosaicSettings(_Section):
    """Which tiles make a mosaic, how they are combined, and what is asked of the result."""

    output_dir: Path | None = Field(None, description="Where mosaics go; None: `mosaics` in output_dir.")
    name_prefix: str = Field(
        "night", pattern=r"^[A-Za-z0-9_-]{1,32}$", description="A night is named prefix_YYYY_MM_DD."
    )
    method: Literal["weighted", "mean"] = Field(
        "weighted", description="weighted: by beam and noise, on a common grid; mean: for tiles that are co-aligned."
    )
    window_days: int = Field(1, ge=1, le=31, description="UTC days that one nightly mosaic looks back on.")
    catch_up_days: int = Field(7, ge=0, le=366, description="Nights this old are made up for when they were missed.")
    include_unpbcor: bool = Field(False, description="Also use tiles that are not corrected for the primary beam.")
    pb_cut: float = Field(0.15, gt=0, lt=1, description="A tile counts where its primary beam is above this.")
    min_dynamic_range: float = Field(5.0, ge=0, description="A tile with less is rejected.")
    max_noise_factor: float = Field(5.0, gt=1, description="A tile noisier than this times the median is rejected.")
    beam_tolerance: float = Field(0.2, gt=0, description="How far a tile's beam may be from the median, as a fraction.")
    freq_tolerance_mhz: float = Field(50.0, gt=0, description="How far a tile's frequency may be from the median.")
    dec_tolerance_deg: float = Field(1.0, gt=0, description="Tiles farther apart in Dec are of two strips.")
    min_overlap: float = Field(
        0.0, ge=0, lt=1, description="Neighbours of a strip overlap by this fraction of a tile at least."
    )
    max_span_deg: float = Field(
        60.0, ge=5, le=360, description="A strip with more right ascension from end to end is cut into several mosaics."
    )
    overlap_tiles: int = Field(2, ge=0, le=20, description="So many tiles a piece of a strip shares with the next.")
    max_astrometry_arcsec: float = Field(2.0, gt=0, description="A tile whose sources are farther off is rejected.")
    min_sources: int = Field(3, ge=1, description="Fewer sources in common with the catalogue judge nothing.")
    min_source_jy: float = Field(0.01, gt=0, description="Fainter sources of the catalogue are not looked for.")
    catalogue: Path | None = Field(None, description="Sources to compare with (CSV: name, ra_deg, dec_deg, flux_jy).")
    block_pixels: int = Field(1024, ge=64, le=8192, description="Side of the pieces in which a mosaic is made.")
    workers: int = Field(2, ge=1, le=64, description="Threads that reproject tiles at a time.")


class QaSettings(_Section):
    """What a group and a mosaic are judged by. Each pair: from where on it is worth a warning, and bad."""

    flagged_fraction: tuple[float, float] = Field((0.2, 0.5), description="Flagged, of working receptors.")
    flagged_share: tuple[float, float] = Field(
        (0.1, 0.3), description="Share of antennas, windows, baseline lengths that are badly flagged."
    )
    dead_receptors: tuple[float, float] = Field((0.4, 0.7), description="Share of receptors with everything flagged.")
    bandpass_flagged: tuple[float, float] = Field((0.03, 0.2), description="Flagged bandpass of working receptors.")
    solution_snr: tuple[float, float] = Field((10.0, 3.0), description="Median of a table's solutions.")
    solved_antennas: tuple[float, float] = Field((12.0, 10.0), description="Antennas that have solutions.")
    unsolved_receptors: tuple[float, float] = Field(
        (0.15, 0.3), description="Share of the recorded receptors, or antennas, that a table has no solution for."
    )
    bandpass_scatter: tuple[float, float] = Field((0.1, 0.3), description="Relative scatter of bandpass amplitudes.")
    bandpass_phase_deg: tuple[float, float] = Field((20.0, 45.0), description="Scatter of bandpass phases.")
    gain_scatter: tuple[float, float] = Field((0.5, 1.0), description="Relative scatter of gain amplitudes.")
    calibrator_ratio: tuple[float, float] = Field(
        (1.5, 5.0), description="Factor between the calibrator's corrected and model flux."
    )
    calibration_age_hours: tuple[float, float] = Field((1.0, 12.0), description="From the data to their calibration.")
    uv_gap: tuple[float, float] = Field((0.5, 0.8), description="Largest gap of the uv coverage over its outer edge.")
    uv_elongation: tuple[float, float] = Field(
        (5.0, 20.0), description="Width of the uv coverage in one direction over that in another."
    )
    dynamic_range: tuple[float, float] = Field((20.0, 5.0), description="Peak over noise of an image.")
    noise_mjy: tuple[float, float] = Field((40.0, 100.0), description="Robust noise of an image.")
    thermal_factor: tuple[float, float] = Field((100.0, 500.0), description="Noise over that of the receivers alone.")
    peak_over_hole: tuple[float, float] = Field((4.0, 2.0), description="Peak of an image over its deepest hole.")
    beam_elongation: tuple[float, float] = Field((3.0, 6.0), description="Long over narrow side of the beam.")
    beam_factor: tuple[float, float] = Field((3.0, 6.0), description="Factor between the beam and what is expected.")
    flux_ratio: tuple[float, float] = Field((1.2, 1.5), description="Median factor from the catalogue's fluxes.")
    astrometry_arcsec: tuple[float, float] = Field((2.0, 5.0), description="Median offset from the catalogue.")
    completeness: tuple[float, float] = Field((0.9, 0.6), description="Share of the expected sources that are found.")
    missing_subbands: tuple[float, float] = Field((0.1, 0.5), description="Share of subbands that did not come.")
    rejected_tiles: tuple[float, float] = Field((0.25, 0.75), description="Share of a mosaic's tiles not used.")

    @field_validator("*")
    @classmethod
    def _in_order(cls, pair: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        usual = cls.model_fields[str(info.field_name)].default
        if not all(0.0 < limit < float("inf") for limit in pair):
            raise ValueError("both limits are positive numbers")
        if (pair[0] < pair[1]) != (usual[0] < usual[1]) or pair[0] == pair[1]:
            raise ValueError(f"a warning comes before bad, as in {usual}")
        if info.field_name in _FACTORS and pair[0] <= 1.0:
            raise ValueError("a factor of 1 is as good as can be; limits are above it")
        if info.field_name in _SHARES and max(pair) >= 1.0:
            raise ValueError("a share is below 1")
        return pair


#: Limits of what is 1 at its best and grows from there, and of what is 1 at its best and shrinks.
_FACTORS = frozenset(
    {"calibrator_ratio", "flux_ratio", "thermal_factor", "beam_elongation", "beam_factor", "uv_elongation"}
)
_SHARES = frozenset({"completeness", "unsolved_receptors"})


class HousekeepingSettings(_Section):
    """What is tidied up, and when. None as a number of days: never."""

    scratch_age_s: float = Field(86400.0, ge=0, description="Scratch of dead runs this old is removed.")
    quarantine_dir: Path | None = Field(None, description="None: `quarantine` in output_dir.")
    quarantine_days: float | None = Field(30.0, gt=0, description="After which what is in quarantine is deleted.")
    ms_days: float | None = Field(30.0, gt=0, description="Age at which a Measurement Set goes into quarantine.")
    image_days: float | None = Field(None, gt=0, description="The same for images.")
    mosaic_days: float | None = Field(None, gt=0, description="The same for mosaics.")
    qa_days: float | None = Field(None, gt=0, description="The same for figures and reports of quality.")
    leftover_days: float | None = Field(7.0, gt=0, description="The same for mosaics that an earlier plan left behind.")
    log_days: float | None = Field(90.0, gt=0, description="Age at which logs of groups are deleted.")


class PipelineSettings(_Section):
    """Groups that are worked on at the same time on one machine."""

    memory_gb: float | None = Field(
        None, gt=0, description="Memory that their steps may take together; None: three quarters of the machine's."
    )
    same_step: int | None = Field(
        None, ge=1, description="Steps of a kind at a time; None: as many as have cores of their own."
    )
    patience_s: float = Field(
        600.0, ge=0, description="A step waits so long for memory that others than groups have, then it fails."
    )


class PressureSettings(_Section):
    """What gives way when groups come faster than they are imaged."""

    mode: Literal["off", "optional", "quick"] = Field(
        "quick", description="off: nothing gives way; optional: optional work waits; quick: images are quicker, too."
    )
    behind_groups: int = Field(
        10, ge=1, description="More groups than this wait: optional work is put off. 10 are 50 minutes."
    )
    quick_groups: int = Field(20, ge=1, description="More than this: groups are imaged quickly, and in full later.")
    relief: float = Field(0.5, gt=0, le=1, description="Either ends when no more wait than this part of what began it.")
    quick_tolerance: float = Field(
        2.0, ge=1, description="Factor by which noise and dynamic range of a quick image may be worse (contimg.qa)."
    )

    @model_validator(mode="after")
    def _in_order(self) -> PressureSettings:
        if self.quick_groups < self.behind_groups:
            raise ValueError("quick_groups is below behind_groups: optional work gives way first")
        return self


class ContimgSettings(_Section):
    """Continuum imaging: where files lie and how they are worked on. None means: under the state directory."""

    state_dir: Path | None = Field(
        None, description="Locks, logs and figures of groups, for all machines of a site; None: the site's state_dir."
    )
    input_dir: Path | None = Field(None, description="Where subbands arrive.")
    output_dir: Path | None = Field(None, description="Measurement Sets, tables and images.")
    scratch_dir: Path | None = Field(None, description="Work in progress; may be lost at any time.")
    scratch_ram: Literal["off", "auto"] | Path = Field(
        "off",
        union_mode="left_to_right",
        description="Scratch of conversion and imaging in memory where there is room: off, auto (/dev/shm), or a path.",
    )
    queue_db: str | None = Field(None, description="Path of a SQLite file, or an SQLAlchemy URL.")
    registry_db: str | None = Field(None, description="Path of a SQLite file, or an SQLAlchemy URL.")
    products_db: str | None = Field(None, description="Path of a SQLite file, or an SQLAlchemy URL.")
    threads: int = Field(
        1, ge=1, description="Threads of each CASA child; more than there are free cores make it slow."
    )
    nightly_mosaics: bool = Field(True, description="Whether the schedule of the flow nightly-mosaic makes anything.")
    ingest: IngestSettings = IngestSettings()
    pipeline: PipelineSettings = PipelineSettings()
    convert: ConvertSettings = ConvertSettings()
    flag: FlagSettings = FlagSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    image: ImageSettings = ImageSettings()
    mosaic: MosaicSettings = MosaicSettings()
    qa: QaSettings = QaSettings()
    housekeeping: HousekeepingSettings = HousekeepingSettings()
    pressure: PressureSettings = PressureSettings()

    @field_validator("threads", mode="before")
    @classmethod
    def _outermost(cls, value: Any) -> Any:
        # OpenMP lets OMP_NUM_THREADS name one number for each level of nesting: "4,2".
        return value.split(",")[0] if isinstance(value, str) else value

    @field_validator("scratch_ram", mode="before")
    @classmethod
    def _word_or_path(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML reads off and on so
            return "auto" if value else "off"
        if isinstance(value, str) and value not in ("off", "auto") and not Path(value).expanduser().is_absolute():
            raise ValueError("off, auto, or a path that begins with /")
        return value


class CalibSettings(_Section):
    """Detector constants: whose, from where, and how many are kept."""

    experiment: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_-]{1,127}$", description="Whose constants are kept ready, such as mfxl1033223."
    )
    xtc_dir: Path | None = Field(None, description="Where the experiment's .xtc2 files lie.")
    output_dir: Path = Field(Path("/dev/shm"), description="Where constants are cached for every process.")
    service_url: str | None = Field(
        None, description="The calibration service; None: LCLS_CALIB_HTTP, else the laboratory's own."
    )
    auth: Literal["none", "token", "kerberos"] | None = Field(
        None, description="How the service is told who asks: none, token or kerberos; None: token if CALIB_JWT is set."
    )
    interval_minutes: float = Field(5.0, gt=0, description="Between two looks at the runs and the service.")
    keep: int = Field(5, ge=1, description="Runs of an experiment whose constants stay in the cache.")
    skip: tuple[str, ...] = Field((), description="Detectors whose constants are not fetched.")
    owners: tuple[str, ...] = Field((), description="Other users whose cache files are trusted, by name or number.")


class ElogSettings(_Section):
    """The electronic logbook: whom to ask, what to mirror, and where to."""

    base_url: str = Field("https://pswww.slac.stanford.edu", description="All of the logbook's address before `ws`.")
    application: str = Field(
        "lgbk", pattern=r"^[a-z0-9]{1,32}$", description="devlgbk for the service's development instance."
    )
    auth: Literal["kerberos", "bearer", "none"] = Field("kerberos", description="How the service is told who asks.")
    kerberos_principal: str = Field("", description="The service's principal, such as HTTP@host; empty: of the host.")
    token_file: Path | None = Field(None, description="Where a bearer token lies; None: where the facility puts it.")
    database: str | None = Field(
        None, description="The mirror: path of a SQLite file, or an SQLAlchemy URL; None: elog.db in database_dir."
    )
    database_dir: Path | None = Field(
        None, description="Where snapshots are published; None: beside the mirror's file, or elog in state_dir."
    )
    hours_lookback: float = Field(168.0, gt=0, le=1e6, description="How far back an experiment counts as active.")
    update_frequency_hours: float = Field(
        0.0, ge=0, description="An update does nothing where the last one is younger, unless it is forced."
    )
    exclude_patterns: tuple[str, ...] = Field((), description="Shell patterns of experiments that are never read.")
    names: tuple[str, ...] = Field((), description="Experiments that are always read, such as standing logbooks.")
    everything: bool = Field(False, description="Mirror all that may be read, active or not.")
    workflow_jobs: bool = Field(False, description="Also the jobs of workflows: one more request an experiment.")
    full_days: float = Field(7.0, gt=0, description="Every list is read whole at least this often.")
    slow_hours: float = Field(24.0, ge=0, description="Workflows and questionnaires are read this often.")
    overlap_minutes: float = Field(60.0, ge=0, description="How far a window of entries reaches back into the last.")
    due_most: int = Field(100, ge=0, description="Experiments that are read in one update only because they are due.")
    parallel_jobs: int = Field(10, ge=1, le=64, description="Experiments, and requests, at a time.")
    lock_timeout: float = Field(0.0, ge=0, description="Seconds to wait for another update of the same mirror.")
    read_timeout: float = Field(300.0, gt=0, description="Seconds that one answer may take.")
    publish: bool = Field(True, description="Whether an update publishes a snapshot.")
    most_shrink: float = Field(
        0.1, ge=0, le=1, description="A snapshot with a table that lost more of its rows than this is not published."
    )
    log_file: Path | None = Field(None, description="Where the commands of the logbook also write what they do.")


class PlatformSettings(_Section):
    """The servers and workers of a site."""

    host: str = Field("127.0.0.1", description="Where the Prefect server listens.")
    port: int | None = Field(None, ge=1, le=65535, description="None: 4200 if free, else the next free one.")
    api_url: str | None = Field(None, description="An existing Prefect server to use instead of our own.")
    page_api_url: str | None = Field(
        None, description="Address of the API as browsers see it; None: where the server listens."
    )
    auth_string: str | None = Field(None, description="user:password for the Prefect API.")
    database_url: str | None = Field(None, description="Prefect's own database; None: SQLite in the state directory.")
    redis_url: str | None = Field(
        None, description="Redis for what the server's processes tell each other; None: in memory, one process."
    )
    server_workers: int = Field(
        1, ge=1, le=64, description="Processes of Prefect's API; more than one need redis_url and PostgreSQL."
    )
    shares_pools: bool | None = Field(
        None,
        description="Whether others serve the pools too: a stop then ends this machine's runs alone. "
        "None: where api_url is given, or other machines' workers are seen.",
    )
    watches: bool | None = Field(
        None,
        description="Whether this machine raises the alarms for runs and pools. None: where the server is its own.",
    )
    pools: dict[str, PositiveInt] = Field(
        default={"batch": 4, "casa": 2, "cxi-writer": 1, "example-service": 1, "scan-calibrator": 1},
        description="Work pools that this machine serves, and how many runs of each it bears at a time.",
    )


class DoctorSettings(_Section):
    """What `nightbeam doctor` and the flight check hold against what they find."""

    expected_mounts: tuple[Path, ...] = Field(
        (), description="Directories at which something must be mounted, such as /data/incoming."
    )
    backlog_groups: int = Field(10, ge=1, description="Groups that wait before it is warned of: 10 are 50 minutes.")
    ahead_groups: int = Field(
        12, ge=1, description="For so many more groups there must be room, or it is warned of: 12 are an hour."
    )
    ticket_hours: float = Field(12.0, ge=0, description="A Kerberos ticket must last this long, or it is warned of.")
    notify_block: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]+/[a-z0-9-]+$",
        description="Prefect block that tells of alarms; None: nobody is told.",
    )
    canary_hours: float = Field(36.0, gt=0, description="A canary must have been right within this time.")


class MonitorSettings(_Section):
    """The page and the API that show the state of everything."""

    enabled: bool = Field(True, description="Whether the platform starts it.")
    host: str = Field("127.0.0.1", description="Where the page listens.")
    port: int | None = Field(None, ge=1, le=65535, description="None: 8000 if free, else the next free one.")
    token_file: Path | None = Field(
        None,
        description="Holds the word that changing anything asks for; None: `monitor.token` in state_dir, made anew.",
    )
    prefect_url: str | None = Field(
        None, description="Address of Prefect's page as browsers see it; None: that of the platform's server."
    )
    allowed_hosts: tuple[str, ...] = Field(
        ("127.0.0.1", "localhost"), description="Names by which browsers may reach the page; * for any."
    )


class ScanLimitsSettings(_Section):
    """What is believed of loads, receivers and air."""

    t_hot_k: tuple[float, float] = Field((200.0, 400.0), description="Lowest and highest temperature of the hot load.")
    t_cold_k: tuple[float, float] = Field((2.0, 250.0), description="Lowest and highest temperature of the cold load.")
    least_load_k: float = Field(20.0, gt=0, description="Least difference of the loads (Rayleigh-Jeans).")
    t_rec_k: float = Field(20_000.0, gt=0, description="Highest receiver temperature (DSB).")
    gain_factor: float = Field(20.0, gt=1, description="How far a channel's gain may be from its neighbours'.")
    tr_min: float = Field(0.02, gt=0, lt=1, description="Channels with less transmission are opaque.")
    pwv_rms_k: float = Field(20.0, gt=0, description="What the fit of the water may leave of the sky (median pixel).")
    load_span_s: float = Field(300.0, gt=0, description="A calibration that took longer is warned of.")
    elevation_deg: float = Field(3.0, gt=0, description="A reference farther up or down is warned of.")

    @field_validator("t_hot_k", "t_cold_k")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] < value[1]:
            raise ValueError("the lowest, then the highest, above 0 K")
        return value


class ScansSettings(_Section):
    """Single-dish scans: where raw ones arrive, where calibrated ones go, and how they are calibrated."""

    input_dir: Path | None = Field(None, description="Where stores of raw scans (L0) arrive.")
    output_dir: Path | None = Field(None, description="Where stores of calibrated scans (L1) go.")
    cache_dir: Path | None = Field(
        None, description="Where layers of air are kept; None: in the user's cache directory."
    )
    atmosphere: Literal["casa", "closed-form"] = Field("casa", description="closed-form is for simulations only.")
    scale: Literal["off", "load"] = Field("off", description="What gives the scale: the reference, or the loads.")
    off_mode: Literal["linear", "nearest", "mean"] = Field("linear", description="How references serve a dump.")
    sideband_mode: Literal["line", "continuum"] = Field(
        "line", description="continuum: the source shines in both sidebands."
    )
    elevation_correction: Literal["none", "model"] = Field(
        "none", description="model: take away what the air differs between source and reference."
    )
    common_pwv: bool = Field(True, description="One amount of water for all pixels.")
    bandwidth_factor: float = Field(1.0, gt=0, description="Noise bandwidth of a channel in units of its width.")
    sky: Literal["cal", "off"] = Field("cal", description="Water from the calibration's sky, or the scan's reference.")
    cal_mode: Literal["past-then-future", "nearest", "linear"] = Field(
        "past-then-future", description="Which load calibration serves; linear: between two."
    )
    max_cal_age_s: float = Field(1800.0, gt=0, description="Load calibrations farther away in time are not used.")
    exclude_ghz: tuple[tuple[float, float], ...] = Field(
        (), description="Ranges of signal frequency that the water is not found from."
    )
    pwv_offset: bool = Field(False, description="Also fit an additive constant for each pixel.")
    pwv_fallback: tuple[Literal["radiometer", "configured"], ...] = Field(
        (), description="What may serve, in this order, where the sky cannot be fitted."
    )
    pwv_mm: float | None = Field(None, gt=0, lt=30, description="The configured water.")
    callen_welton: bool = Field(False, description="Receiver temperatures with the zero-point noise at the source.")
    hot_coupling: float = Field(1.0, gt=0.5, le=1, description="How much of the hot load the receiver sees.")
    cold_coupling: float = Field(1.0, gt=0.5, le=1, description="How much of the cold load the receiver sees.")
    spikes: bool = Field(True, description="Flag single samples that stand out.")
    limits: ScanLimitsSettings = ScanLimitsSettings()
    memory_budget_gb: float | None = Field(
        None, gt=0, description="For scans in work; None: 40 % of the machine's memory."
    )
    retries: int = Field(2, ge=0, description="How often a scan that could not be read is tried again.")
    interval_s: float = Field(5.0, gt=0, description="The service looks for new scans this often.")
    settle_s: float = Field(
        60.0, ge=0, description="A scan that does not say whether it is complete must not have changed for so long."
    )


class StreamSettings(_Section):
    """The Ray cluster through which networks hand on their batches."""

    address: str | None = Field(
        None,
        pattern=r"^(auto|(ray://)?[^\s/:]+:\d{1,5})$",
        description="host:port of an existing cluster, or auto; None: the platform starts one on this machine.",
    )
    token_file: Path | None = Field(
        None,
        description="Holds the word that the cluster asks for; None: it asks for none, or the platform's own does.",
    )
    namespace: str = Field("peaknet-pipeline", min_length=1, description="Ray's namespace of the queues.")
    port: int | None = Field(
        None,
        ge=1024,
        le=65535,
        description="Of the cluster on this machine; None: 6379 if free, else the next free one.",
    )
    num_cpus: int | None = Field(
        None, ge=1, description="Tasks that the cluster on this machine runs at a time; None: one a core."
    )
    object_store_gb: float = Field(
        2.0, ge=0.1, description="Memory of the cluster on this machine for arrays that wait to be read."
    )


class CxiSettings(_Section):
    """The service that writes CXI files."""

    config: Path | None = Field(None, description="The writer's configuration (YAML) that the service uses.")
    output_dir: Path | None = Field(None, description="Where files go; None: as that configuration says.")


class Settings(_Section):
    """All settings of a site."""

    state_dir: Path = Field(Path("state"), description="Databases, locks, logs, and by default all else.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR."
    )
    calib: CalibSettings = CalibSettings()
    contimg: ContimgSettings = ContimgSettings()
    cxi: CxiSettings = CxiSettings()
    doctor: DoctorSettings = DoctorSettings()
    elog: ElogSettings = ElogSettings()
    monitor: MonitorSettings = MonitorSettings()
    platform: PlatformSettings = PlatformSettings()
    scans: ScansSettings = ScansSettings()
    stream: StreamSettings = StreamSettings()

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    def resolved(self) -> Self:
        """Return the same settings with every path absolute and every path left open filled in."""
        state = self.state_dir.expanduser().absolute()
        c = self.contimg
        shared = _absolute(c.state_dir, state)
        output_dir = _absolute(c.output_dir, shared / "ms")
        mosaic = c.mosaic.model_copy(
            update={
                "output_dir": _absolute(c.mosaic.output_dir, output_dir / "mosaics"),
                "catalogue": c.mosaic.catalogue and c.mosaic.catalogue.expanduser().absolute(),
            }
        )
        tidy = _absolute(c.housekeeping.quarantine_dir, output_dir / "quarantine")
        input_dir = _absolute(c.input_dir, shared / "incoming")
        aside = _absolute(c.ingest.set_aside_dir, input_dir / ".set-aside")
        contimg = c.model_copy(
            update={
                "ingest": c.ingest.model_copy(update={"set_aside_dir": aside}),
                "mosaic": mosaic,
                "housekeeping": c.housekeeping.model_copy(update={"quarantine_dir": tidy}),
                "state_dir": shared,
                "input_dir": input_dir,
                "output_dir": output_dir,
                "scratch_dir": _absolute(c.scratch_dir, shared / "scratch"),
                "queue_db": database_url(c.queue_db, shared / "ingest.sqlite3"),
                "registry_db": database_url(c.registry_db, shared / "cal_registry.sqlite3"),
                "products_db": database_url(c.products_db, shared / "products.sqlite3"),
            }
        )
        calib = self.calib.model_copy(
            update={
                "xtc_dir": self.calib.xtc_dir and self.calib.xtc_dir.expanduser().absolute(),
                "output_dir": self.calib.output_dir.expanduser().absolute(),
            }
        )
        directory = _absolute(self.elog.database_dir, _home_of(self.elog.database) or state / "elog")
        elog = self.elog.model_copy(
            update={
                "database_dir": directory,
                "database": database_url(self.elog.database, directory / "elog.db"),
                "token_file": self.elog.token_file and self.elog.token_file.expanduser().absolute(),
                "log_file": self.elog.log_file and self.elog.log_file.expanduser().absolute(),
            }
        )
        s = self.scans
        scans = s.model_copy(
            update={
                "input_dir": _absolute(s.input_dir, state / "scans" / "l0"),
                "output_dir": _absolute(s.output_dir, state / "scans" / "l1"),
                "cache_dir": s.cache_dir and s.cache_dir.expanduser().absolute(),
            }
        )
        cxi = self.cxi.model_copy(
            update={
                "config": self.cxi.config and self.cxi.config.expanduser().absolute(),
                "output_dir": self.cxi.output_dir and self.cxi.output_dir.expanduser().absolute(),
            }
        )
        token = self.stream.token_file
        stream = self.stream.model_copy(update={"token_file": token and token.expanduser().absolute()})
        parts = {"calib": calib, "contimg": contimg, "cxi": cxi, "elog": elog, "scans": scans, "stream": stream}
        return self.model_copy(update={"state_dir": state, **parts})

    def to_yaml(self) -> str:
        """Return the settings as the YAML that `load_settings` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _home_of(database: str | None) -> Path | None:
    """Return the directory of a database that is a file."""
    url = database_url(database, Path()) if database else ""
    file = url.removeprefix("sqlite:///")
    return Path(file).parent.absolute() if url != file and file not in ("", ":memory:") else None


def database_url(value: str | None, default: Path) -> str:
    """Return an SQLAlchemy URL for a URL, the path of a SQLite file, or nothing."""
    if value and "://" in value:
        return value
    path = Path(value).expanduser() if value else default
    return f"sqlite:///{path.absolute()}"


def load_settings(
    *,
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings of this process.

    Parameters
    ----------
    config
        YAML file. Without it ``NIGHTBEAM_CONFIG``, then ``nightbeam.yaml`` where we stand, then nothing.
    overrides
        What the command line says, by dotted name: ``{"contimg.image.niter": 300}``.
    environ
        The environment; `os.environ` by default. ``NIGHTBEAM_CONTIMG__IMAGE__NITER=300`` and the names
        in `SEED_VARIABLES` are read; the former win.
    more
        By dotted name, what another configuration file says; the environment wins over it.

    Raises
    ------
    ConfigError
        Naming the key, what was found and the nearest key that exists.
    """
    environ = os.environ if environ is None else environ
    tree = _read_yaml(config, environ)
    for dotted, value in (more or {}).items():
        _put(tree, dotted.split("."), value)
    for name, dotted in reversed(list(SEED_VARIABLES.items())):
        if environ.get(name):
            _put(tree, dotted.split("."), environ[name])
    for name, value in environ.items():
        if name.startswith(_ELOGFETCH) and name not in SEED_VARIABLES:
            raise _no_variable_of_elogfetch(name)
        if name.startswith(PREFIX) and name != CONFIG_VARIABLE:
            _put(tree, _path_of_variable(name), _yaml_value(value))
    for dotted, value in (overrides or {}).items():
        if value is not None:
            _put(tree, dotted.split("."), value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_complaint(error), fix="see docs/reference/settings.md") from error


def known_keys() -> list[str]:
    """Return the dotted name of every setting."""
    return sorted(_keys_below(Settings, ""))


def _keys_below(model: type[BaseModel], prefix: str) -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += _keys_below(kind, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


def _read_yaml(config: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    named = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    path = named or DEFAULT_FILE
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        if named is None:
            return {}
        raise ConfigError(f"no configuration file {path}", fix="create it or correct its name") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}", fix="correct the file") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", fix="check the file") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}, not settings", fix="write `name: value` lines")
    return tree


def _path_of_variable(name: str) -> list[str]:
    path = name.removeprefix(PREFIX).lower().split("__")
    dotted = ".".join(path)
    known = known_keys()
    if dotted not in known and not any(k.startswith(dotted + ".") for k in known):
        near = difflib.get_close_matches(dotted, known, n=1, cutoff=0.4)
        variable = PREFIX + near[0].upper().replace(".", "__") if near else ""
        raise ConfigError(
            f"the environment variable {name} names no setting",
            fix=f"did you mean {variable}?" if variable else "unset it",
        )
    return path


def _no_variable_of_elogfetch(name: str) -> ConfigError:
    """Return the error that names what was meant: one of elogfetch's variables, or ours of that setting."""
    key = name.removeprefix(_ELOGFETCH).lower()
    old = [known for known in SEED_VARIABLES if known.startswith(_ELOGFETCH)]
    near = [f"{PREFIX}ELOG__{key.upper()}"] if key in ElogSettings.model_fields else []
    near = near or difflib.get_close_matches(name, old, n=1, cutoff=0.75)
    return ConfigError(
        f"the environment variable {name} names no setting",
        fix=f"did you mean {near[0]}?" if near else "unset it",
    )


def _yaml_value(text: str) -> Any:
    # Lists and objects are written as YAML (JSON is YAML); plain text stays text for pydantic to judge.
    if text[:1] in "[{":
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
    return None if text == "null" else text


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        below = tree.setdefault(name, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{'.'.join(path)} cannot be set: {name} is {below!r}", fix="make it a section")
        tree = below
    tree[last] = value


def _complaint(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        dotted = ".".join(str(p) for p in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(dotted, known_keys(), n=1, cutoff=0.4)
            lines.append(f"no setting {dotted!r}" + (f" (did you mean {near[0]}?)" if near else ""))
        else:
            lines.append(f"{dotted}: {item['msg']}, found {item['input']!r}")
    return "; ".join(lines)


def _absolute(path: Path | None, default: Path) -> Path:
    return (path or default).expanduser().absolute()
