"""Interferometer gains: which calibrator, the model, the solutions, whether to believe them, and their use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightbeam.gains.compute import match_calibrators, table_stats
    from nightbeam.gains.files import flag_bad_data, read_caltable
    from nightbeam.gains.model import (
        Acceptance,
        ApplyReport,
        CalibratorMatch,
        CalSolutions,
        CalTable,
        FlagReport,
        ModelSource,
        SolutionReport,
        SolutionSet,
        SolveOptions,
        TableKind,
        TableStats,
    )
    from nightbeam.gains.remote import apply_gains, other_sources, solve_gains, tables_of_prefix, write_model

__all__ = [
    "Acceptance",
    "ApplyReport",
    "CalSolutions",
    "CalTable",
    "CalibratorMatch",
    "FlagReport",
    "ModelSource",
    "SolutionReport",
    "SolutionSet",
    "SolveOptions",
    "TableKind",
    "TableStats",
    "apply_gains",
    "flag_bad_data",
    "match_calibrators",
    "other_sources",
    "read_caltable",
    "solve_gains",
    "table_stats",
    "tables_of_prefix",
    "write_model",
]

_ROOMS = {
    "compute": ("match_calibrators", "table_stats"),
    "files": ("flag_bad_data", "read_caltable"),
    "remote": ("apply_gains", "other_sources", "solve_gains", "tables_of_prefix", "write_model"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: numpy and erfa are not needed to list commands."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = next((room for room, names in _ROOMS.items() if name in names), "model")
    return getattr(importlib.import_module(f"{__name__}.{room}"), name)
