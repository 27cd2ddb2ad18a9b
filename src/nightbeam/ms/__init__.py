"""Measurement Sets: what is inside one, how one is written, and whether one can be trusted."""

from __future__ import annotations

from nightbeam.ms.files import (
    flagged_by_antenna,
    flagged_by_window,
    iterate_blocks,
    read_antennas,
    read_fields,
    read_spectral_windows,
    read_summary,
    read_telescope,
    uv_range_m,
    verify_ms,
    write_model_column,
)
from nightbeam.ms.model import (
    ModelFunction,
    MsAntenna,
    MsExpectation,
    MsField,
    MsSummary,
    RowBlock,
    SpectralWindow,
)

__all__ = [
    "ModelFunction",
    "MsAntenna",
    "MsExpectation",
    "MsField",
    "MsSummary",
    "RowBlock",
    "SpectralWindow",
    "flagged_by_antenna",
    "flagged_by_window",
    "iterate_blocks",
    "read_antennas",
    "read_fields",
    "read_spectral_windows",
    "read_summary",
    "read_telescope",
    "uv_range_m",
    "verify_ms",
    "write_model_column",
]
