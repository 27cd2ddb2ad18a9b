"""``nightbeam calib``: detector constants, and the runs that they are for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import dry_run_option, json_option, printable, settings_of, show, talk
from nightbeam.cli.signals import answered_signals
from nightbeam.core.errors import InputError, MissingError, NightbeamError

if TYPE_CHECKING:
    from nightbeam.calib.listing import ConstantLine
    from nightbeam.calib.prefetch import PrefetchReport
    from nightbeam.calib.remote import CalibService
    from nightbeam.core.settings import CalibSettings
    from nightbeam.xtc2 import Detector, FileReport

__all__ = ["calib"]


@click.group("calib")
def calib() -> None:
    """Detector constants: inspect runs, prefetch, look at the cache."""


@calib.command("inspect")
# Not for click to ask whether they are readable: it would end there, and the others not be reported.
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False))
@click.option("--all", "with_pseudo", is_flag=True, help="Also runinfo, epics and others that never have constants.")
@json_option
def inspect(files: tuple[Path, ...], with_pseudo: bool, as_json: bool) -> int:
    """Say what the data files FILE... (.xtc2) hold: detectors, datagrams, runs.

    The exit code is 65 if a file is missing or could not be read; the others are reported all the same.
    """
    found = [_inspected(path, with_pseudo) for path in files]
    show([row if as_json else _for_people(row) for row, _ in found], as_json=as_json)
    troubles = [trouble for _, trouble in found if trouble]
    for trouble in troubles:
        talk(f"nightbeam: {InputError(printable(trouble.what, keep=''), fix=trouble.fix)}")
    return InputError.exit_code if troubles else 0


def _inspected(path: Path, with_pseudo: bool) -> tuple[dict[str, Any], NightbeamError | None]:
    from nightbeam.xtc2 import StreamStatus, Xtc2Error, inspect_file

    try:
        report = inspect_file(path)
    except MissingError as error:
        return _row(path, StreamStatus.NO_FILE), error
    except Xtc2Error as error:  # a directory, pipe or device
        return _row(path, StreamStatus.NOT_XTC2), error
    except NightbeamError as error:
        return _row(path, StreamStatus.UNREADABLE), error
    row = _row(path, report.status, report, with_pseudo=with_pseudo)
    if not report.readable:
        what = report.reason if str(path) in report.reason else f"{path}: {report.reason}"
        return row, InputError(what, fix="give LCLS-II .xtc2 files; if this is one, copy it again")
    for note in _notes(report):
        talk(printable(f"{path}: {note}", keep=""))
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
        "file": printable(str(row["path"]), keep=""),
        "status": row["status"],
        "detectors": "\n".join(f"{d['name']} = {d['unique_id']} {d['segments']}" for d in row["detectors"]) or None,
        "datagrams": "\n".join(f"{count} {name}" for name, count in row["datagrams"].items()) or None,
        "runs": "\n".join(f"{run.experiment} {run.run}" for run in row["runs"]) or None,
    }


_output_dir = click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Directory of the cache.  [default: /dev/shm]",
)


@calib.command("prefetch")
@click.option("-e", "--expcode", help="Experiment, such as xpptut15.")
@click.option("--xtc-dir", type=click.Path(path_type=Path), help="Where its .xtc2 files lie.")
@_output_dir
@click.option("--interval", type=click.FloatRange(min=0, min_open=True), help="Minutes between checks.  [default: 5]")
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
    help="How much is said, to standard error.",
)
@click.option("--timestamp", is_flag=True, help="Begin each line of the log with the time (UTC).")
@click.option("--once", is_flag=True, help="One pass; its failure is the exit code.")
@click.option("--skip", multiple=True, metavar="DETECTOR", help="Leave this detector out; may be repeated.")
@click.option("--service-url", help="Address of the calibration service.")
@click.option("--keep", type=click.IntRange(min=1), help="Runs whose constants stay in the cache.  [default: 5]")
@json_option
@click.pass_context
def prefetch(
    ctx: click.Context,
    expcode: str | None,
    xtc_dir: Path | None,
    output_dir: Path | None,
    interval: float | None,
    log_level: str,
    timestamp: bool,
    once: bool,
    skip: tuple[str, ...],
    service_url: str | None,
    keep: int | None,
    as_json: bool,
) -> int:
    """Keep the constants of an experiment's latest run in shared memory, until told to stop.

    What is not given here comes from the settings, section calib.
    SIGTERM and SIGINT end it at once: with exit code 0, or with --once with 128 and the signal's number.
    """
    from nightbeam.calib.worker import prefetch_loop
    from nightbeam.core.log import set_up_logging

    set_up_logging(log_level, timestamps=timestamp)
    settings = _settings(
        ctx,
        experiment=expcode,
        xtc_dir=xtc_dir,
        output_dir=output_dir,
        interval_minutes=interval,
        skip=skip or None,
        service_url=service_url,
        keep=keep,
    )
    if settings.experiment is None or settings.xtc_dir is None:
        raise click.UsageError("give --expcode and --xtc-dir, or set calib.experiment and calib.xtc_dir")
    try:
        with _ended_by_signals(), _service(settings) as service:
            prefetch_loop(
                threading.Event(),
                experiment=settings.experiment,
                xtc_dir=settings.xtc_dir,
                output_dir=settings.output_dir,
                service=service,
                interval_s=60.0 * settings.interval_minutes,
                once=once,
                skip=settings.skip,
                keep=settings.keep,
                owners=settings.owners,
                on_report=lambda report: _show_pass(report, as_json=as_json, once=once),
            )
    except _ToldToStop as told:
        talk(f"ended by {signal.Signals(told.number).name}")
        return 128 + told.number if once else 0
    return 0


@calib.command("status")
@click.argument("experiment", required=False)
@_output_dir
@click.option("--verify", is_flag=True, help="Read every array and compare its checksum; exit code 65 if one is wrong.")
@json_option
@click.pass_context
def status(ctx: click.Context, experiment: str | None, output_dir: Path | None, verify: bool, as_json: bool) -> int:
    """List the runs whose constants are cached, of EXPERIMENT or of all; and what cannot be used, and why."""
    from nightbeam.calib.files import list_entries

    settings = _settings(ctx, output_dir=output_dir)
    lines = list_entries(settings.output_dir, experiment, owners=settings.owners, verify=verify)
    rows = [
        {
            "experiment": line.experiment,
            "run": line.run,
            "mb": round(line.bytes / 1e6, 3),
            "detectors": line.detectors,
            "constants": line.constants,
            "skipped": list(line.skipped),
            "shared_by": line.shared_by,
            "created": line.created,
            "problem": line.reason,
        }
        for line in lines
    ]
    show(rows, as_json=as_json, title=str(settings.output_dir))
    return InputError.exit_code if verify and any(line.reason for line in lines) else 0


@calib.command("show")
@click.argument("run")
@_output_dir
@json_option
@click.pass_context
def show_run(ctx: click.Context, run: str, output_dir: Path | None, as_json: bool) -> None:
    """Show the constants that are cached for RUN, written like mfxl1033223:r0042."""
    from nightbeam.calib.listing import read_lines
    from nightbeam.core.keys import RunKey

    settings, key = _settings(ctx, output_dir=output_dir), RunKey.parse(run)
    lines = read_lines(settings.output_dir, key.experiment, key.run, owners=settings.owners)
    show(lines if as_json else [_brief(line) for line in lines], as_json=as_json, title=str(key))


@calib.command("gc")
@click.argument("experiment", required=False)
@_output_dir
@click.option("--keep", type=click.IntRange(min=1), help="Highest runs of each experiment that stay.  [default: 5]")
@json_option
@dry_run_option
@click.pass_context
def gc(
    ctx: click.Context, experiment: str | None, output_dir: Path | None, keep: int | None, as_json: bool, dry_run: bool
) -> None:
    """Remove the cached constants of old runs, and what dead writers left. Who has them mapped keeps them."""
    from nightbeam.calib.files import collect

    settings = _settings(ctx, output_dir=output_dir, keep=keep)
    gone = collect(settings.output_dir, keep=settings.keep, experiment=experiment, dry_run=dry_run)
    rows = [{"experiment": line.experiment, "run": line.run, "path": line.path, "bytes": line.bytes} for line in gone]
    show(rows, as_json=as_json, title="would be removed" if dry_run else "removed")


class _ToldToStop(BaseException):
    """A signal came; whatever is going on ends, and cleans up on its way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    def end(number: int) -> None:
        raise _ToldToStop(number)

    with answered_signals(end):
        yield


def _settings(ctx: click.Context, **overrides: Any) -> CalibSettings:
    return settings_of(ctx, **{f"calib__{name}": value for name, value in overrides.items()}).calib


def _service(settings: CalibSettings) -> CalibService:
    from nightbeam.calib.remote import CalibService

    return CalibService.from_environment(os.environ, url=settings.service_url, auth=settings.auth)


def _show_pass(report: PrefetchReport, *, as_json: bool, once: bool) -> None:
    if as_json:
        show([report], as_json=True)
    elif once:
        for run, why in (report.rejected_runs or {}).items():
            talk(f"run {run} cannot be used: {why}")
        if report.reason:
            talk(report.reason)
        rows = [
            {
                "detector": row.detector,
                "constant": _constant(row.ctype, row.reason),
                "document": row.document_id,
                "from_run": row.run_from,
                "days": None if row.age_days is None else round(row.age_days, 1),
                "mb": round(row.bytes / 1e6, 2),
            }
            for row in report.detectors
        ]
        show(rows, title=f"{report.path or report.experiment}: {report.action}")


def _brief(line: ConstantLine) -> dict[str, Any]:
    return {
        "detector": line.detector,
        "constant": _constant(line.ctype, line.note),
        "array": f"{line.dtype} {line.shape}" if line.shape is not None else None,
        "mb": round(line.bytes / 1e6, 2),
        "runs": f"{line.valid_from}-{line.valid_to}" if line.valid_to else None,
    }


def _constant(ctype: str | None, note: str | None) -> str:
    return ": ".join(part for part in (ctype, note) if part)
