"""From the settings of a site to how its scans are calibrated."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from nightbeam.core.errors import UsageError
from nightbeam.core.settings import ScansSettings, Settings
from nightbeam.scans.model import CalibrationOptions, PipelineConfig, ScanLimits

__all__ = ["pipeline_config"]

_OF_OPTIONS = {one.name for one in fields(CalibrationOptions)} - {"limits"}
_OF_CONFIG = {one.name for one in fields(PipelineConfig)} - {"options"}


def pipeline_config(settings: Settings, **overrides: Any) -> PipelineConfig:
    """Return how scans are calibrated.

    Parameters
    ----------
    settings
        Resolved or not.
    overrides
        Attributes of `PipelineConfig` and of `CalibrationOptions`, by name; None where nothing else is wanted.

    Raises
    ------
    ConfigError
        If they contradict each other.
    UsageError
        If an override is none of those.

    Examples
    --------
    >>> config = pipeline_config(Settings(), scans=(3,), sky="off", force=None)
    >>> config.scans, config.options.sky, config.force, config.atmosphere
    ((3,), 'off', False, 'casa')
    """
    if unknown := sorted(overrides.keys() - _OF_OPTIONS - _OF_CONFIG):
        raise UsageError(f"nothing about the calibration of scans is called {', '.join(unknown)}")
    section = settings.resolved().scans
    wanted = _of_section(section) | {name: value for name, value in overrides.items() if value is not None}
    limits = ScanLimits(**section.limits.model_dump())
    options = CalibrationOptions(limits=limits, **{name: wanted[name] for name in _OF_OPTIONS & wanted.keys()})
    return PipelineConfig(options=options, **{name: wanted[name] for name in _OF_CONFIG & wanted.keys()})


def _of_section(section: ScansSettings) -> dict[str, Any]:
    found = {name: getattr(section, name) for name in ScansSettings.model_fields if name in _OF_OPTIONS | _OF_CONFIG}
    if section.memory_budget_gb is not None:
        found["memory_budget_bytes"] = int(section.memory_budget_gb * 1e9)
    return found
