"""LCLS-II data files (.xtc2): datagrams, detectors, and whether a run can be used."""

from __future__ import annotations

from nightbeam.xtc2.compute import detectors_of
from nightbeam.xtc2.files import Datagram, inspect_file, read_configure, read_datagrams
from nightbeam.xtc2.model import (
    Algorithm,
    ChunkInfo,
    Detector,
    FieldType,
    FileReport,
    Names,
    RunInfo,
    RunVerdict,
    Segment,
    StreamStatus,
    StreamVerdict,
    Transition,
    Xtc2Error,
)
from nightbeam.xtc2.runs import StreamFile, StreamName, find_runs, judge_run, latest_usable_run, list_runs

__all__ = [
    "Algorithm",
    "ChunkInfo",
    "Datagram",
    "Detector",
    "FieldType",
    "FileReport",
    "Names",
    "RunInfo",
    "RunVerdict",
    "Segment",
    "StreamFile",
    "StreamName",
    "StreamStatus",
    "StreamVerdict",
    "Transition",
    "Xtc2Error",
    "detectors_of",
    "find_runs",
    "inspect_file",
    "judge_run",
    "latest_usable_run",
    "list_runs",
    "read_configure",
    "read_datagrams",
]
