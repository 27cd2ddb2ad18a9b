"""One place where groups are worked on: its directories, its databases and its ways."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from nightbeam.core.errors import ConfigError
from nightbeam.core.locks import remove_free_lock
from nightbeam.core.settings import (
    CalibrateSettings,
    ConvertSettings,
    FlagSettings,
    HousekeepingSettings,
    ImageSettings,
    IngestSettings,
    MosaicSettings,
    PipelineSettings,
    PressureSettings,
    QaSettings,
    Settings,
)

if TYPE_CHECKING:
    from nightbeam.catalog import Products, Queue, Registry
    from nightbeam.contimg.budget import Ledger

__all__ = ["Site", "ram_of_machine"]


def ram_of_machine(shm: Path = Path("/dev/shm")) -> Path:
    """Return this user's directory in the machine's memory file system."""
    return shm / f"nightbeam-{os.geteuid()}"


def _ram(chosen: str | Path, convert: ConvertSettings) -> Path | None:
    if chosen == "auto":
        return ram_of_machine()
    if chosen == "off":
        return ram_of_machine(convert.tmpfs_path) if convert.stage_to_tmpfs else None
    return ram_of_machine(Path(chosen).expanduser())


@dataclass(frozen=True, slots=True)
class Site:
    """Where a site's files lie and how its groups are worked on.

    Attributes
    ----------
    state_dir
        Locks, logs, QA.
    input_dir
        Where subbands arrive.
    output_dir
        Measurement Sets, ``caltables/`` and ``images/``.
    scratch_dir
        Work in progress.
    queue_url, registry_url, products_url
        SQLAlchemy URLs.
    scratch_ram
        Where scratch of conversion and imaging lies while there is room; None: in ``scratch_dir``.
    ledger_dir
        Who works on each machine; None: in the state directory.
    nightly_mosaics
        Whether the schedule of the nightly mosaics makes anything.
    threads
        Of each child process.
    step_timeout_s
        After which a child of CASA that solves or applies is stopped; the imager has its own limit.
    """

    state_dir: Path
    input_dir: Path
    output_dir: Path
    scratch_dir: Path
    queue_url: str
    registry_url: str
    products_url: str
    ingest: IngestSettings = field(default_factory=IngestSettings)
    pipeline: PipelineSettings = field(default_factory=PipelineSettings)
    convert: ConvertSettings = field(default_factory=ConvertSettings)
    flag: FlagSettings = field(default_factory=FlagSettings)
    calibrate: CalibrateSettings = field(default_factory=CalibrateSettings)
    image: ImageSettings = field(default_factory=ImageSettings)
    mosaic: MosaicSettings = field(default_factory=MosaicSettings)
    qa: QaSettings = field(default_factory=QaSettings)
    housekeeping: HousekeepingSettings = field(default_factory=HousekeepingSettings)
    pressure: PressureSettings = field(default_factory=PressureSettings)
    nightly_mosaics: bool = True
    threads: int = 1
    step_timeout_s: float = 1800.0
    scratch_ram: Path | None = None
    ledger_dir: Path | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the site of some settings, resolved or not."""
        resolved = settings.resolved()
        c = resolved.contimg
        if not (c.input_dir and c.output_dir and c.scratch_dir and c.queue_db and c.registry_db and c.products_db):
            raise ConfigError("the settings of contimg leave a path open", fix="see docs/reference/settings.md")
        return cls(
            state_dir=c.state_dir or resolved.state_dir,
            input_dir=c.input_dir,
            output_dir=c.output_dir,
            scratch_dir=c.scratch_dir,
            queue_url=c.queue_db,
            registry_url=c.registry_db,
            products_url=c.products_db,
            ingest=c.ingest,
            pipeline=c.pipeline,
            convert=c.convert,
            flag=c.flag,
            calibrate=c.calibrate,
            image=c.image,
            mosaic=c.mosaic,
            qa=c.qa,
            housekeeping=c.housekeeping,
            pressure=c.pressure,
            nightly_mosaics=c.nightly_mosaics,
            threads=c.threads,
            scratch_ram=_ram(c.scratch_ram, c.convert),
            # Its own also in a site that is derived from it, such as the canary's: they share one machine.
            ledger_dir=(c.state_dir or resolved.state_dir) / "ledger",
        )

    # -- databases ----------------------------------------------------------------------------------------------

    def queue(self) -> Queue:
        """Open the queue."""
        from nightbeam.catalog import Queue

        return Queue(self.queue_url, max_retries=self.ingest.max_retries)

    def registry(self) -> Registry:
        """Open the calibration registry."""
        from nightbeam.catalog import Registry

        return Registry(self.registry_url)

    def products(self) -> Products:
        """Open the products."""
        from nightbeam.catalog import Products

        return Products(self.products_url)

    # -- the machine --------------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """Return the ledger of what steps take of this machine's memory."""
        from nightbeam.contimg.budget import Ledger

        return Ledger(self.ledgers())

    def ledgers(self) -> Path:
        """Return where the ledgers of all machines lie."""
        return self.ledger_dir or self.state_dir / "ledger"

    def ram_places(self) -> list[Path]:
        """Return where there may be scratch in memory, as the settings say it or said it before."""
        return list(dict.fromkeys(p for p in (self.scratch_ram, ram_of_machine()) if p is not None))

    # -- names --------------------------------------------------------------------------------------------------

    def ms_path(self, group_id: str) -> Path:
        """Return where the Measurement Set of a group lies."""
        return self.output_dir / f"{group_id}.ms"

    def caltable_prefix(self, group_id: str, cal_field: str = "0") -> Path:
        """Return what the names of the tables solved on a group begin with."""
        return self.output_dir / "caltables" / f"{group_id}_{cal_field}"

    def image_stem(self, group_id: str) -> Path:
        """Return what the names of the images of a group begin with."""
        return self.output_dir / "images" / f"{group_id}.img"

    def mosaic_dir(self) -> Path:
        """Return where mosaics lie."""
        return self.mosaic.output_dir or self.output_dir / "mosaics"

    def quarantine_dir(self) -> Path:
        """Return where products go that are no longer wanted, before they are deleted."""
        return self.housekeeping.quarantine_dir or self.output_dir / "quarantine"

    def set_aside_dir(self) -> Path:
        """Return where files go that are no readable subbands."""
        return self.ingest.set_aside_dir or self.input_dir / ".set-aside"

    def qa_dir(self) -> Path:
        """Return where groups have their QA directories."""
        return self.state_dir / "qa"

    def log(self, group_id: str, step: str) -> Path:
        """Return where the children of a step write what they say."""
        return self.state_dir / "logs" / "groups" / group_id / f"{step}.log"

    def group_lock(self, group_id: str) -> Path:
        """Return the lock that keeps two processes of this machine off one group."""
        return self.state_dir / "locks" / f"group-{group_id}.lock"

    def remove_free_locks(self, *, keep: Collection[str] = ()) -> None:
        """Remove the locks of groups that nobody works on, except those of the groups to ``keep``."""
        kept = {self.group_lock(group_id) for group_id in keep}
        for lock in (self.state_dir / "locks").glob("group-*.lock"):
            if lock not in kept:
                remove_free_lock(lock)
