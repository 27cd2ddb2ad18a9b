"""``nightbeam elog``: a mirror of the electronic logbook; also installed as ``elogfetch``."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from nightbeam.cli.output import dry_run_option, json_option, printable, show, talk
from nightbeam.core.errors import (
    BusyError,
    ConfigError,
    InputError,
    MissingError,
    NightbeamError,
    PartialError,
    UsageError,
)

if TYPE_CHECKING:
    from nightbeam.catalog import Logbook
    from nightbeam.core.settings import ElogSettings
    from nightbeam.elog.remote import LogbookClient
    from nightbeam.elogsync.model import Outcome, Plan, Policy, SyncReport

__all__ = ["elog", "elogfetch"]

F = TypeVar("F", bound=Callable[..., Any])
_log = logging.getLogger(__name__)


class _Logged(click.Group):
    """A group whose errors are in the log as well, which may be a file that is read the next day."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except NightbeamError as error:
            _log.info("exit code %d: %s", error.exit_code, error.what)
            raise


def _keep_config(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    # That of the command comes after that of the group, and wins.
    if path is not None:
        ctx.obj = dict(ctx.obj or {}) | {"flat": path}


_config_option = click.option(
    *("-c", "--config"),
    type=click.Path(path_type=Path),
    callback=_keep_config,
    expose_value=False,
    help="Configuration file of elogfetch.",
)


@click.group("elog", cls=_Logged, context_settings={"help_option_names": ["-h", "--help"]})
@_config_option
@click.option("-v", "--verbose", is_flag=True, help="Say what is asked.")
@click.option("-q", "--quiet", is_flag=True, help="Say errors only.")
@click.pass_context
def elog(ctx: click.Context, verbose: bool, quiet: bool) -> None:
    """Mirror the electronic logbook in a database of your own, search it, and take from it."""
    from nightbeam.core.log import set_up_logging

    ctx.obj = dict(ctx.obj or {}) | {"quiet": quiet, "verbose": verbose}
    if verbose or quiet:
        set_up_logging("ERROR" if quiet else "DEBUG")


def _tell(ctx: click.Context, message: str) -> None:
    """Say what is no error, unless nobody wants to hear it or the log says it there already."""
    _log.info(message)
    if not ctx.obj.get("quiet") and not ctx.obj.get("verbose"):
        talk(message)


def elogfetch() -> NoReturn:
    """Run ``nightbeam elog`` under the name that its users know."""
    from nightbeam.cli import main

    main(["elog", *sys.argv[1:]])


# -- options ------------------------------------------------------------------------------------------------------


def _service_options(function: F) -> F:
    for option in (
        click.option("--token-file", type=click.Path(path_type=Path), help="Where a bearer token lies."),
        click.option("--auth", type=click.Choice(["kerberos", "bearer", "none"]), help="How to say who asks."),
        click.option("--base-url", help="Address of the logbook, up to its `ws`."),
        click.option("-p", "--jobs", "--parallel", type=click.IntRange(1, 64), help="Requests at a time."),
    ):
        function = option(function)
    return function


def _mirror_options(function: F) -> F:
    for option in (
        _config_option,
        click.option(
            "-d", "-o", "--database-dir", "--output-dir", type=click.Path(path_type=Path), help="Where snapshots are."
        ),
        click.option("--database", help="The mirror: path of a SQLite file, or an SQLAlchemy URL."),
    ):
        function = option(function)
    return function


def _old_options(function: F) -> F:
    """Accept what crontabs of elogfetch have in them."""
    for option in (
        click.option("-b", "--batch-size", type=int, hidden=True, help="Of no effect."),
        click.option("-q", "--queue-size", type=int, hidden=True, help="Of no effect."),
        click.option("-i", "--incremental", is_flag=False, flag_value="", hidden=True, help="Of no effect."),
    ):
        function = option(function)
    return function


def _pass_over(ctx: click.Context, options: dict[str, Any]) -> None:
    """Drop the options of elogfetch that mean nothing here, and say so once."""
    names = ("incremental", "queue_size", "batch_size")
    given = [f"--{name.replace('_', '-')}" for name in names if options.pop(name) is not None]
    if given:
        _tell(ctx, f"{', '.join(given)}: nothing of the kind is needed; an update reads only what is new or due")


def _settings(ctx: click.Context, **options: Any) -> ElogSettings:
    from nightbeam.core.log import log_also_to
    from nightbeam.core.settings import ElogSettings, load_settings
    from nightbeam.elogsync.files import read_config

    more = read_config(ctx.obj.get("flat"), os.environ, ElogSettings.model_fields)
    names = {"jobs": "parallel_jobs", "hours": "hours_lookback", "exclude": "exclude_patterns"}
    found = {f"elog.{names.get(name, name)}": value for name, value in options.items() if value not in (None, ())}
    settings = load_settings(config=ctx.obj.get("config"), overrides=found, more=more).resolved().elog
    if options.get("token_file") is not None and settings.auth != "bearer":
        raise UsageError(f"--token-file says nothing with auth {settings.auth}", fix="add --auth bearer")
    if settings.log_file is not None:
        log_also_to(settings.log_file, level="DEBUG")
        _log.info("nightbeam elog %s", ctx.info_name)
    _check_directory(_directory(settings))
    if (file := _file(settings)) is not None:
        _check_directory(file.parent)
    return settings


def _check_directory(path: Path) -> None:
    from nightbeam.core.files import storage_errors

    with storage_errors(path):
        found = next(one for one in (path, *path.parents) if one.exists())
        if not found.is_dir():
            raise ConfigError(f"{found} is no directory", fix="name one with --database-dir, or in the settings")


def _database(settings: ElogSettings) -> str:
    assert settings.database is not None  # resolved
    return settings.database


def _file(settings: ElogSettings) -> Path | None:
    """Return the mirror's file; None where a server has it."""
    url = _database(settings)
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def _directory(settings: ElogSettings) -> Path:
    assert settings.database_dir is not None  # resolved
    return settings.database_dir


@contextmanager
def _client(settings: ElogSettings, stop: threading.Event | None = None) -> Iterator[LogbookClient]:
    from nightbeam.elog.credentials import auth_from
    from nightbeam.elog.remote import LogbookClient

    auth = auth_from(settings.auth, os.environ, token_file=settings.token_file, service=settings.kerberos_principal)
    with LogbookClient(
        settings.base_url,
        auth=auth,
        read_s=settings.read_timeout,
        application=settings.application,
        sleep=(stop or threading.Event()).wait,
    ) as client:
        yield client


def _policy(settings: ElogSettings, *, full: bool = False) -> Policy:
    from nightbeam.elogsync.model import Policy

    return Policy(
        hours=settings.hours_lookback,
        full_days=settings.full_days,
        slow_hours=settings.slow_hours,
        overlap_minutes=settings.overlap_minutes,
        due_most=settings.due_most,
        jobs=settings.workflow_jobs,
        names=settings.names,
        exclude=settings.exclude_patterns,
        everything=settings.everything,
        full=full,
    )


# -- reading ------------------------------------------------------------------------------------------------------


@elog.command("update")
@click.option("-H", "--hours", type=float, help="How far back an experiment counts as active.  [default: 168]")
@click.option("--force", is_flag=True, help="Although the last update is younger than update_frequency_hours.")
@click.option("--full", is_flag=True, help="Read everything again, whatever is known of it.")
@click.option("-e", "--exclude", multiple=True, metavar="PATTERN", help="Leave these out; may be repeated.")
@click.option("--everything", is_flag=True, default=None, help="All that may be read, active or not.")
@click.option("--publish/--no-publish", default=None, help="Whether a snapshot is published.  [default: yes]")
@click.option("--shrink", is_flag=True, help="Publish although far fewer rows are left than last time.")
@_service_options
@_mirror_options
@_old_options
@dry_run_option
@json_option
@click.pass_context
def update(
    ctx: click.Context, /, force: bool, full: bool, shrink: bool, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Bring the mirror up to date: recently active, changed, due and configured experiments.

    Exit code 2 if some experiments could not be read (they are listed), 77 without a usable credential, 75 if
    another update is running.
    """
    from nightbeam.elogsync.worker import look_around

    _pass_over(ctx, options)
    settings = _settings(ctx, **options)
    policy = _policy(settings, full=full)
    if dry_run:
        with _glimpsed(settings) as book, _client(settings) as client:
            _show_plan(ctx, look_around(client, book, policy), as_json=as_json)
        return 0
    stop = threading.Event()
    with _opened(settings, create=True) as book, _client(settings, stop) as client:
        if young := _young(book, settings, force=force or full):
            _tell(ctx, young)
            return 0
        plan = lambda there: look_around(client, there, policy)  # noqa: E731
        return _sync(ctx, book, client, plan, settings, as_json=as_json, stop=stop, shrink=shrink, update=True)


@elog.command("fetch")
@click.argument("experiments", metavar="EXPERIMENT...", nargs=-1, required=True)
@click.option("--publish/--no-publish", default=None, help="Whether a snapshot is published.  [default: yes]")
@_service_options
@_mirror_options
@json_option
@click.pass_context
def fetch(ctx: click.Context, /, experiments: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Read the experiments EXPERIMENT... whole, active or not."""
    return _read_named(ctx, experiments, _settings(ctx, **options), as_json=as_json)


@elog.command("retry")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="List of failures.  [default: of the last update]")
@_service_options
@_mirror_options
@json_option
@click.pass_context
def retry(ctx: click.Context, /, file: Path | None, as_json: bool, **options: Any) -> int:
    """Read once more, whole, the experiments that the last update could not read, or not all of them."""
    from nightbeam.elogsync.files import FAILED, read_failed

    settings = _settings(ctx, **options)
    listed = file or _directory(settings) / FAILED
    if listed.is_dir():
        raise UsageError(f"{listed} is a directory", fix="name the file that an update wrote")
    names = [] if file is None and not listed.exists() else read_failed(listed)
    if not names:
        _tell(ctx, f"nothing to read again: no failures in {listed}")
        return 0
    return _read_named(ctx, names, settings, as_json=as_json, again=True)


def _read_named(
    ctx: click.Context, names: Iterable[str], settings: ElogSettings, *, as_json: bool, again: bool = False
) -> int:
    from nightbeam.elogsync.model import Reason
    from nightbeam.elogsync.worker import plan_of

    def plan(book: Logbook) -> Plan:
        return plan_of(names, book, jobs=settings.workflow_jobs, reason=Reason.FAILED if again else Reason.ASKED)

    stop = threading.Event()
    with _opened(settings, create=True) as book, _client(settings, stop) as client:
        return _sync(ctx, book, client, plan, settings, as_json=as_json, stop=stop)


@contextmanager
def _glimpsed(settings: ElogSettings) -> Iterator[Logbook]:
    """Open the mirror as it is; an empty one elsewhere, for as long as it is looked at, where there is none."""
    from nightbeam.catalog import Logbook

    file = _file(settings)
    if file is None or file.exists():
        yield Logbook(_database(settings))
        return
    with tempfile.TemporaryDirectory(prefix="nightbeam-elog-") as nowhere:
        yield Logbook(f"sqlite:///{nowhere}/elog.db")


@contextmanager
def _opened(settings: ElogSettings, *, create: bool = False) -> Iterator[Logbook]:
    """Open the mirror; one that was made for nothing does not stay."""
    from nightbeam.catalog import Logbook

    file = _file(settings)
    there = file is None or file.exists()
    book = Logbook(_database(settings), create=create)
    try:
        yield book
    finally:
        if file is not None and not there:
            _discard_empty(book, file)


def _discard_empty(book: Logbook, file: Path) -> None:
    """Remove a mirror without experiments, unless somebody else is about to fill it."""
    from nightbeam.core.locks import sole_owner

    opening, lock = book.database.beside(".lock"), book.database.beside(".sync.lock")
    with suppress(NightbeamError), book.sole_writer(), sole_owner(opening):
        if not book.experiments():
            # By their exact names: a file that only begins like it is somebody's own.
            beside = (file.with_name(f"{file.name}-{end}") for end in ("wal", "shm", "journal"))
            for leftover in (file, *beside, lock, opening):
                leftover.unlink(missing_ok=True)


def _young(book: Logbook, settings: ElogSettings, *, force: bool) -> str | None:
    from nightbeam.elog.compute import parse_time

    last = parse_time(book.metadata().get("last_update"))
    hours = settings.update_frequency_hours
    if force or not hours or last is None or datetime.now(UTC) - last > timedelta(hours=hours):
        return None
    if _owes(book, settings):
        return None
    return f"nothing done: the last update was at {last:%Y-%m-%d %H:%M} UTC, one every {hours:g} h is wanted (--force)"


def _owes(book: Logbook, settings: ElogSettings) -> bool:
    """Say whether the last update could not read all that the next one would read again."""
    from nightbeam.elog.model import Resource
    from nightbeam.elogsync.compute import excluded
    from nightbeam.elogsync.files import FAILED

    if (_directory(settings) / FAILED).exists():
        return True
    read = {one.experiment_id for one in book.experiments(status="ok")
            if not excluded(one.name, settings.exclude_patterns)}  # fmt: skip
    # Some questionnaires never come; which of them did is no matter of an update's success.
    failed = (state for state in book.states(status="failed") if state.resource is not Resource.QUESTIONNAIRE)
    return any(state.experiment_id in read for state in failed)


def _sync(
    ctx: click.Context,
    book: Logbook,
    client: LogbookClient,
    make_plan: Callable[[Logbook], Plan],
    settings: ElogSettings,
    *,
    as_json: bool,
    stop: threading.Event,
    shrink: bool = False,
    update: bool = False,
) -> int:
    from nightbeam.catalog import Logbook
    from nightbeam.elogsync.worker import sync

    with book.sole_writer(wait_s=settings.lock_timeout):
        # Opened and planned only now: who held it until now has written to it, or has discarded it.
        book = Logbook(_database(settings))
        plan, looked = make_plan(book), client.traffic
        with _progress(ctx, plan, as_json=as_json) as step:
            report = sync(client, book, plan, jobs=settings.parallel_jobs, on_outcome=step, stop=stop)
        requests, retries = report.requests + looked.requests, report.retries + looked.retries
        report = replace(report, requests=requests, retries=retries)
        written = _write_down(book, report, settings, shrink=shrink, update=update)
    _show_report(ctx, report, written, as_json=as_json)
    return _end(report.stopped, written.error, _partial(report))


@dataclass(slots=True)
class _Written:
    """What an update leaves beside the mirror, and what prevented it from leaving more."""

    failed: Path | None = None
    snapshot: Path | None = None
    error: NightbeamError | None = None


def _write_down(book: Logbook, report: SyncReport, settings: ElogSettings, *, shrink: bool, update: bool) -> _Written:
    """Write the list of failures and publish; what was read is told whatever comes of that."""
    from nightbeam.elogsync.files import outdated, publish, write_failed

    directory, written = _directory(settings), _Written()
    try:
        if report.outcomes or directory.exists():
            written.failed = write_failed(directory, report.outcomes, others=not update)
        if update and report.stopped is None:
            book.set_metadata(
                last_update=datetime.now(UTC).isoformat(timespec="seconds"),
                hours_lookback=f"{settings.hours_lookback:g}",
            )
        # Who has lost the lock leaves snapshots to whoever has it now.
        ours = settings.publish and not isinstance(report.stopped, BusyError)
        if ours and book.experiments() and (shrink or outdated(book, directory)):
            written.snapshot = publish(book, directory, most_shrink=settings.most_shrink, shrink=shrink).path
    except NightbeamError as error:
        written.error = error
    return written


def _partial(report: SyncReport) -> PartialError | None:
    if not report.failed:
        return None
    names = ", ".join(outcome.name for outcome in report.failed[:10])
    more = f" and {len(report.failed) - 10} more" if len(report.failed) > 10 else ""
    return PartialError(
        f"{len(report.failed)} of {len(report.outcomes)} experiments could not be read, or not all of them: "
        f"{names}{more}",
        fix="nightbeam elog retry",
    )


def _end(*errors: NightbeamError | None) -> int:
    """End with the first of the errors; the others are said before it."""
    ranked = [error for error in errors if error is not None]
    for other in ranked[1:]:
        _log.info("also: %s", other.what)
        talk(f"nightbeam: {other}")
    if ranked:
        raise ranked[0]
    return 0


def _newest(directory: Path) -> Path | None:
    from nightbeam.elogsync.files import latest_snapshot

    return latest_snapshot(directory)


@contextmanager
def _progress(ctx: click.Context, plan: Plan, *, as_json: bool) -> Iterator[Callable[[Outcome], None]]:
    if as_json or ctx.obj.get("quiet") or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("experiments", total=len(plan.planned))
        yield lambda outcome: bar.update(task, advance=1, description=printable(outcome.name))


def _show_plan(ctx: click.Context, plan: Plan, *, as_json: bool) -> None:
    rows = [
        {
            "experiment": one.experiment_id,
            "name": one.name,
            "why": [str(reason) for reason in one.reasons],
            "read": {resource.value: "all" if need.full else need.since for resource, need in one.needs.items()},
        }
        for one in plan.planned
    ]
    if as_json:
        show(rows, as_json=True)
        return
    short = [
        {
            "experiment": row["experiment"],
            "why": ", ".join(row["why"]),
            "read": ", ".join(row["read"]),
        }
        for row in rows
    ]
    show(short, title="would be read")
    if plan.excluded:
        _tell(ctx, f"left out by a pattern: {', '.join(plan.excluded)}")
    if plan.postponed:
        _tell(ctx, f"due, but later: {plan.postponed}")


def _show_report(ctx: click.Context, report: SyncReport, written: _Written, *, as_json: bool) -> None:
    rows = [_line(outcome) for outcome in report.outcomes]
    whole = {
        "experiments": len(report.outcomes),
        "failed": len(report.failed),
        "requests": report.requests,
        "retries": report.retries,
        "new": report.change.new,
        "changed": report.change.changed + report.change.missing + report.change.back,
        "seconds": round(report.seconds, 1),
        "snapshot": written.snapshot,
        "failures": written.failed,
    }
    if as_json:
        show([*({"kind": "experiment"} | row for row in rows), {"kind": "update"} | whole], as_json=True)
        return
    told = [row for row in rows if row["new"] or row["changed"] or row["errors"] or row["notes"]]
    if told and not ctx.obj.get("quiet"):
        brief = [{k: v if isinstance(v, int) else _brief(v) for k, v in row.items()} for row in told]
        show(brief, title="what came")
    _tell(
        ctx,
        f"{whole['experiments']} experiments, {whole['failed']} failed; {whole['new']} rows new, {whole['changed']} "
        f"changed; {whole['requests']} requests in {whole['seconds']} s",
    )
    if report.plan.postponed:
        _tell(ctx, f"{report.plan.postponed} more are due and wait for the next update")
    if written.snapshot is not None:
        _tell(ctx, f"published {written.snapshot}")


def _line(outcome: Outcome) -> dict[str, Any]:
    change = outcome.change
    return {
        "experiment": outcome.experiment_id,
        "why": [str(reason) for reason in outcome.reasons],
        "requests": outcome.requests,
        "new": change.new,
        "changed": change.changed + change.missing + change.back,
        "errors": {resource.value: error for resource, error in outcome.errors.items()},
        "notes": list(outcome.notes) if outcome.attempted else ["not attempted", *outcome.notes],
    }


def _brief(value: Any) -> Any:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {text}" for name, text in value.items()) or None
    return ", ".join(value) or None if isinstance(value, list) else value


# -- looking ------------------------------------------------------------------------------------------------------


@elog.command("status")
@_mirror_options
@json_option
@click.pass_context
def status(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Show the mirror: how large, how old, what could not be read, and the newest snapshot."""
    settings = _settings(ctx, **options)
    with _opened(settings) as book:
        states, experiments = book.states(), book.experiments()
        failing = [state for state in states if state.status == "failed"]
        row = {
            "database": book.database.shown,
            "bytes": book.database.file.stat().st_size if book.database.file else None,
            "last_update": book.metadata().get("last_update"),
            "experiments": len(experiments),
            "gone": sum(one.status == "gone" for one in experiments),
            "no_access": sum(one.status == "no access" for one in experiments),
            "rows": book.counts(),
            "failing": [f"{state.experiment_id} {state.resource.value}: {state.error}" for state in failing],
            "snapshot": _newest(_directory(settings)),
        }
    if as_json:
        show([row], as_json=True)
        return
    rows = row.pop("rows")
    show([{"": name.replace("_", " "), "value": _brief(value)} for name, value in row.items()])
    show([{"table": table, "rows": count} for table, count in rows.items()])  # type: ignore[union-attr]


@elog.command("list")
@click.option("--remote", is_flag=True, help="What the service calls recently active, not what the mirror has.")
@click.option("-H", "--hours", type=float, help="How far back; only with --remote.  [default: 168]")
@click.option("-e", "--exclude", multiple=True, metavar="PATTERN", help="Leave these out; may be repeated.")
@_service_options
@_mirror_options
@json_option
@click.pass_context
def list_experiments(ctx: click.Context, /, remote: bool, as_json: bool, **options: Any) -> None:
    """List the experiments of the mirror, or those that have been active lately."""
    from nightbeam.elogsync.compute import excluded

    if options["hours"] is not None and not remote:
        raise UsageError("the mirror's experiments have no hours", fix="add --remote")
    settings = _settings(ctx, **options)
    if remote:
        _list_active(settings, as_json=as_json)
        return
    with _opened(settings) as book:
        found = [one for one in book.experiments() if not excluded(one.name, settings.exclude_patterns)]
    rows = found if as_json else [
        {"experiment": one.experiment_id, "instrument": one.instrument, "runs": one.run_count, "files": one.total_files,
         "status": one.status, "description": one.description}
        for one in found
    ]  # fmt: skip
    show(rows, as_json=as_json)


@elog.command("list-experiments")
@click.option("-H", "--hours", type=float, help="How far back.  [default: 168]")
@click.option("-e", "--exclude", multiple=True, metavar="PATTERN", help="Leave these out; may be repeated.")
@_service_options
@_mirror_options
@json_option
@click.pass_context
def list_active(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """List the experiments that the service calls recently active; the same as list --remote."""
    _list_active(_settings(ctx, **options), as_json=as_json)


def _list_active(settings: ElogSettings, *, as_json: bool) -> None:
    from nightbeam.elogsync.compute import excluded

    with _client(settings) as client:
        names = sorted(client.recent(settings.hours_lookback))
    show([{"name": name} for name in names if not excluded(name, settings.exclude_patterns)], as_json=as_json)


@elog.command("search")
@click.argument("text")
@click.option("--experiment", help="In this one only.")
@click.option("--since", help="Not older than this time, ISO 8601.")
@click.option("--deleted", is_flag=True, help="Also deleted entries and earlier versions of edited ones.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@_mirror_options
@json_option
@click.pass_context
def search(
    ctx: click.Context,
    /,
    text: str,
    experiment: str | None,
    since: str | None,
    deleted: bool,
    limit: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Find entries with all words of TEXT; "several words" in quotes follow each other, word* is a beginning."""
    from nightbeam.elog.compute import parse_time

    when = parse_time(since)
    if since is not None and when is None:
        raise UsageError(f"{since!r} is no time", fix="write it like 2026-02-03 or 2026-02-03T04:05:06Z")
    with _opened(_settings(ctx, **options)) as book:
        hits = book.search(text, experiment=experiment, since=when, include_deleted=deleted, limit=limit)
    rows = hits if as_json else [
        {"experiment": hit.name, "when": hit.created_at, "author": hit.author, "run": hit.run_num, "text": hit.snippet}
        for hit in hits
    ]  # fmt: skip
    show(rows, as_json=as_json)


@elog.command("export")
@click.argument("table", default="logbook_entries")
@click.option("--experiment", help="Of this one only.")
@click.option(
    "--format", "form", type=click.Choice(["csv", "json", "ndjson"]), default="csv", show_default=True, help="Of rows."
)
@click.option("--spreadsheet", is_flag=True, help="CSV in which no spreadsheet finds a formula: '=1+1 for =1+1.")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Where to.  [default: standard output]")
@_mirror_options
@click.pass_context
def export(
    ctx: click.Context,
    /,
    table: str,
    experiment: str | None,
    form: Any,
    spreadsheet: bool,
    file: Path | None,
    **options: Any,
) -> None:
    """Write the rows of TABLE, any table or view of the mirror, for other programs: in UTF-8, as they are."""
    from nightbeam.elogsync.export import columns_of, write_rows

    if spreadsheet and form != "csv":
        raise UsageError(f"--spreadsheet is for CSV, not for {form}", fix="leave one of the two out")
    with _opened(_settings(ctx, **options)) as book:
        rows = book.rows(table, experiment=experiment)
        with _output(file) as out:
            count = write_rows(rows, out, form=form, columns=columns_of(table), spreadsheet=spreadsheet)
    if file is not None:
        _tell(ctx, f"{count} rows in {file}")


@contextmanager
def _output(file: Path | None) -> Iterator[TextIO]:
    """Open a file that appears when it is whole, or standard output; in UTF-8, whatever the terminal says."""
    from nightbeam.core.files import part_path, storage_errors

    if file is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="")
        yield sys.stdout
        return
    if not file.parent.is_dir():
        raise MissingError(f"no directory {file.parent}", fix="create it, or name another file")
    if file.is_dir():
        raise UsageError(f"{file} is a directory", fix="name a file in it")
    part = part_path(file)
    with storage_errors(file):
        try:
            with part.open("w", encoding="utf-8", newline="") as out:
                yield out
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


@elog.command("verify")
@_mirror_options
@json_option
@click.pass_context
def verify(ctx: click.Context, /, as_json: bool, **options: Any) -> int:
    """Look for damage in the mirror and in its newest snapshot; exit code 65 if there is any."""
    from nightbeam.catalog import Logbook

    settings = _settings(ctx, **options)
    rows = []
    with _opened(settings) as book:
        rows += [{"of": book.database.shown, "problem": problem} for problem in book.problems()]
    newest = _newest(_directory(settings))
    if newest is not None:
        try:
            found = Logbook(f"sqlite:///{newest}", read_only=True).problems()
        except NightbeamError as error:
            found = [error.what]
        rows += [{"of": str(newest), "problem": problem} for problem in found]
    if rows or as_json:
        show(rows, as_json=as_json)
    else:
        _tell(ctx, "nothing is wrong")
    return InputError.exit_code if rows else 0


@elog.command("browse")
@click.option("--port", type=click.IntRange(1, 65535), default=8001, show_default=True, help="On this machine.")
@click.option("--snapshot", is_flag=True, help="The newest snapshot, not the mirror itself.")
@_mirror_options
@click.pass_context
def browse(ctx: click.Context, /, port: int, snapshot: bool, **options: Any) -> None:
    """Show the mirror in a browser, read-only, with datasette (pip install 'nightbeam[browse]').

    The first line of standard output is a link that lets one browser in, once; without it nobody on this machine
    sees anything. Ctrl-C ends it.
    """
    from nightbeam.elogsync.browse import serve

    settings = _settings(ctx, **options)
    if snapshot:
        file = _newest(_directory(settings))
        if file is None:
            raise MissingError(f"no snapshot in {_directory(settings)}", fix="nightbeam elog update")
    else:
        with _opened(settings) as book:
            file = book.database.file
        if file is None:
            raise UsageError("datasette shows SQLite files only", fix="publish a snapshot and use --snapshot")
    serve(file, port=port)
