"""``nightbeam calib``: detector constants, and the runs that they are for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import json_option, show, talk
from nightbeam.core.errors import InputError, MissingError, NightbeamError

if TYPE_CHECKING:
    from nightbeam.xtc2 import Detector, FileReport

__all__ = ["calib"]


@click.group("calib")
def calib() -> None:
    """Detector constants: inspect runs, prefetch, look at the cache."""


@calib.command("inspect")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--all", "with_pseudo", is_flag=True, help="Also runinfo, epics and others that never have constants.")
@json_option
def inspect(files: tuple[Path, ...], with_pseudo: bool, as_json: bool) -> int:
    """Say what the data files FILE... (.xtc2) hold: detectors, datagrams, runs.

    The exit code is 65 if a file could not be read, 66 if one is missing; the others are reported all the same.
    """
    found = [_inspected(path, with_pseudo) for path in files]
    show([row if as_json else _for_people(row) for row, _ in found], as_json=as_json)
    troubles = [trouble for _, trouble in found if trouble]
    for trouble in troubles:
        talk(f"nightbeam: {trouble}")
    return min((trouble.exit_code for trouble in troubles), default=0)


def _inspected(path: Path, with_pseudo: bool) -> tuple[dict[str, Any], NightbeamError | None]:
    from nightbeam.xtc2 import StreamStatus, inspect_file

    try:
        report = inspect_file(path)
    except MissingError as error:
        return _row(path, StreamStatus.NO_FILE), error
    except NightbeamError as error:
        # A file that the system does not let us read is one more file that could not be read.
        return _row(path, StreamStatus.UNREADABLE), InputError(error.what, fix=error.fix)
    row = _row(path, report.status, report, with_pseudo=with_pseudo)
    if not report.readable:
        what = report.reason if str(path) in report.reason else f"{path}: {report.reason}"
        return row, InputError(what, fix="give LCLS-II .xtc2 files; if this is one, copy it again")
    for note in _notes(report):
        talk(f"{path}: {note}")
    return row, None


def _row(path: Path, status: str, report: FileReport | None = None, *, with_pseudo: bool = False) -> dict[str, Any]:
    detectors = report.detectors if report else ()
    return {
        "path": path,
        "status": status,
        "detectors": [_detector(d) for d in detectors if with_pseudo or d.is_real],
        "datagrams": dict(report.datagrams) if report else {},
        "runs": report.runs if report else (),
    }


def _detector(detector: Detector) -> dict[str, Any]:
    return {
        "name": detector.name,
        "type": detector.type,
        "unique_id": detector.unique_id,
        "segments": [segment.number for segment in detector.segments],
    }


def _notes(report: FileReport) -> list[str]:
    notes = [report.reason] if report.reason else []
    notes += [f"goes on in chunk {chunk.chunk}, {chunk.filename}" for chunk in report.chunks]
    for later in report.configurations[1:]:
        names = ", ".join(d.name for d in later.detectors if d.is_real) or "none"
        notes.append(f"another Configure at byte {later.offset}: {names}")
    return notes


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "file": row["path"],
        "status": row["status"],
        "detectors": "\n".join(f"{d['name']} = {d['unique_id']} {d['segments']}" for d in row["detectors"]) or None,
        "datagrams": "\n".join(f"{count} {name}" for name, count in row["datagrams"].items()) or None,
        "runs": "\n".join(f"{run.experiment} {run.run}" for run in row["runs"]) or None,
    }
