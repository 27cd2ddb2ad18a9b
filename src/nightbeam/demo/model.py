"""What the demo finds out about each group, and whether all of it is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DemoReport", "GroupCheck", "MosaicSource", "RealCheck", "SourceCheck"]


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """One source of the simulated sky beside what the image shows at its place.

    ``flux_ratio`` is found over true; ``offset_beams`` in restoring beams. Both NaN if it was not found.
    """

    name: str
    true_jy: float
    found: bool
    flux_ratio: float
    offset_beams: float


@dataclass(frozen=True, slots=True)
class GroupCheck:
    """One group: how it ended, how long its stages took, and its image against the truth.

    ``problems`` is empty if and only if everything about it is right.
    """

    group_id: str
    state: str
    attempts: int
    seconds: Mapping[str, float]
    image: Path | None
    calibration_set: str
    noise_mjy: float
    expected_sources: int
    found_sources: int
    worst_offset_beams: float
    calibrator_flux_ratio: float
    median_flux_ratio: float
    flow_run: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MosaicSource:
    """One source of the simulated sky beside what a mosaic shows at its place."""

    mosaic: str
    check: SourceCheck

    @property
    def name(self) -> str:
        """What it is called."""
        return self.check.name


@dataclass(frozen=True, slots=True)
class RealCheck:
    """Something found beside what was expected: a figure that others published, or what was put in."""

    what: str
    expected: str
    found: str
    ok: bool


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Everything the demo did; ``left_out`` says in words what it did not do."""

    groups: tuple[GroupCheck, ...]
    real_data: tuple[RealCheck, ...] = ()
    constants: tuple[RealCheck, ...] = ()
    logbook: tuple[RealCheck, ...] = ()
    scans: tuple[RealCheck, ...] = ()
    stream: tuple[RealCheck, ...] = ()
    mosaic: tuple[RealCheck, ...] = ()
    mosaic_sources: tuple[MosaicSource, ...] = ()
    page: tuple[RealCheck, ...] = ()
    address: str = ""
    left_out: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong, in words."""
        wrong = [f"{group.group_id}: {problem}" for group in self.groups for problem in group.problems]
        rows = (*self.constants, *self.logbook, *self.scans, *self.stream, *self.mosaic, *self.page, *self.real_data)
        return wrong + [f"{row.what}: {row.found}, expected {row.expected}" for row in rows if not row.ok]
