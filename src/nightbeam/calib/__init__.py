"""Detector constants: the right ones for a run, one copy for each machine.

Readers need `open_constants` alone; it loads neither the client of the service nor the reader of data files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightbeam.calib.contract import (
        detector_info_from_file,
        detector_info_from_run,
        ensure_valid_calibconst,
        get_latest_run,
        load_existing_run,
        needs_update,
        try_load_calib_const_from_file,
        update_calib,
    )
    from nightbeam.calib.reader import open_constants

__all__ = [
    "detector_info_from_file",
    "detector_info_from_run",
    "ensure_valid_calibconst",
    "get_latest_run",
    "load_existing_run",
    "needs_update",
    "open_constants",
    "try_load_calib_const_from_file",
    "update_calib",
]

_HOMES = dict.fromkeys(__all__, "contract") | {"open_constants": "reader", "needs_update": "compute"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
