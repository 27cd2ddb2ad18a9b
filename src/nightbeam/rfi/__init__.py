"""Interference is found and flagged before anything is calibrated, by AOFlagger."""

from __future__ import annotations

from nightbeam.rfi.model import FlagOptions, FlagReport
from nightbeam.rfi.remote import flag_ms

__all__ = ["FlagOptions", "FlagReport", "flag_ms"]
