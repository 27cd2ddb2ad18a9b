"""``nightbeam elog``: a mirror of the electronic logbook; also installed as ``elogfetch``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from nightbeam.cli.output import dry_run_option, json_option, printable, show, talk
from nightbeam.core.errors import InputError, MissingError, NightbeamError, PartialError, UsageError

if TYPE_CHECKING:
    from nightbeam.catalog import Logbook
    from nightbeam.core.settings import ElogSettings
    from nightbeam.elog.remote import LogbookClient
    from nightbeam.elogsync.model import Outcome, Plan, Policy, SyncReport

__all__ = ["elog", "elogfetch"]

F = TypeVar("F", bound=Callable[..., Any])


@click.group("elog", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--config", "flat", type=click.Path(path_type=Path), help="Configuration file of elogfetch.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is asked.")
@click.option("-q", "--quiet", is_flag=True, help="Say errors only.")
@click.pass_context
def elog(ctx: click.Context, flat: Path | None, verbose: bool, quiet: bool) -> None:
    """Mirror the electronic logbook in a database of your own, search it, and take from it."""
    from nightbeam.core.log import set_up_logging

    ctx.obj = dict(ctx.obj or {}) | {"flat": flat, "quiet": quiet}
    if verbose or quiet:
        set_up_logging("ERROR" if quiet else "INFO")


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
        click.option(
            "-d", "-o", "--database-dir", "--output-dir", type=click.Path(path_type=Path), help="Where snapshots are."
        ),
        click.option("--database", help="The mirror: path of a SQLite file, or an SQLAlchemy URL."),
    ):
        function = option(function)
    return function


def _settings(ctx: click.Context, **options: Any) -> ElogSettings:
    from nightbeam.core.settings import ElogSettings, load_settings
    from nightbeam.elogsync.files import read_config

    more = read_config(ctx.obj.get("flat"), os.environ, ElogSettings.model_fields)
    names = {"jobs": "parallel_jobs", "hours": "hours_lookback", "exclude": "exclude_patterns"}
    found = {f"elog.{names.get(name, name)}": value for name, value in options.items() if value not in (None, ())}
    return load_settings(config=ctx.obj.get("config"), overrides=found, more=more).resolved().elog


def _database(settings: ElogSettings) -> str:
    assert settings.database is not None  # resolved
    return settings.database


def _directory(settings: ElogSettings) -> Path:
    assert settings.database_dir is not None  # resolved
    return settings.database_dir


@contextmanager
def _client(settings: ElogSettings) -> Iterator[LogbookClient]:
    from nightbeam.elog.credentials import auth_from
    from nightbeam.elog.remote import LogbookClient

    auth = auth_from(settings.auth, os.environ, token_file=settings.token_file, service=settings.kerberos_principal)
    with LogbookClient(
        settings.base_url, auth=auth, read_s=settings.read_timeout, application=settings.application
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

    settings = _settings(ctx, **options)
    policy = _policy(settings, full=full)
    with _opened(settings, create=True) as book, _client(settings) as client:
        if dry_run:
            _show_plan(look_around(client, book, policy), as_json=as_json)
            return 0
        if young := _young(book, settings, force=force or full):
            talk(young)
            return 0
        plan = lambda there: look_around(client, there, policy)  # noqa: E731
        return _sync(ctx, book, client, plan, settings, as_json=as_json, shrink=shrink)


@elog.command("fetch")
@click.argument("experiments", metavar="EXPERIMENT...", nargs=-1, required=True)
@click.option("--publish/--no-publish", default=None, help="Whether a snapshot is published.  [default: yes]")
@_service_options
@_mirror_options
@json_option
@click.pass_context
def fetch(ctx: click.Context, /, experiments: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Read the experiments EXPERIMENT... whole, active or not."""
    from nightbeam.elogsync.worker import plan_of

    settings = _settings(ctx, **options)
    plan = lambda book: plan_of(experiments, book, jobs=settings.workflow_jobs)  # noqa: E731
    with _opened(settings, create=True) as book, _client(settings) as client:
        return _sync(ctx, book, client, plan, settings, as_json=as_json, others=True)


@elog.command("retry")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="List of failures.  [default: of the last update]")
@_service_options
@_mirror_options
@json_option
@click.pass_context
def retry(ctx: click.Context, /, file: Path | None, as_json: bool, **options: Any) -> int:
    """Read once more what the last update could not."""
    from nightbeam.elogsync.files import FAILED, read_failed
    from nightbeam.elogsync.worker import plan_of

    settings = _settings(ctx, **options)
    names = read_failed(file or _directory(settings) / FAILED)
    plan = lambda book: plan_of(names, book, jobs=settings.workflow_jobs)  # noqa: E731
    with _opened(settings, create=True) as book, _client(settings) as client:
        return _sync(ctx, book, client, plan, settings, as_json=as_json, others=True)


@contextmanager
def _opened(settings: ElogSettings, *, create: bool = False) -> Iterator[Logbook]:
    """Open the mirror; one that was made for nothing does not stay."""
    from nightbeam.catalog import Logbook

    url = _database(settings)
    file = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None
    there = file is None or file.exists()
    book = Logbook(url, create=create)
    try:
        yield book
    finally:
        if file is not None and not there:
            _discard_empty(book, file)


def _discard_empty(book: Logbook, file: Path) -> None:
    """Remove a mirror without experiments, unless somebody else is about to fill it."""
    from nightbeam.core.locks import sole_owner

    opening = file.with_name(f".{file.name}.lock")
    with suppress(NightbeamError), book.sole_writer(), sole_owner(opening):
        if not book.experiments():
            for leftover in (file, *file.parent.glob(f"{file.name}-*"), *file.parent.glob(f".{file.name}.*lock")):
                leftover.unlink(missing_ok=True)


def _young(book: Logbook, settings: ElogSettings, *, force: bool) -> str | None:
    from nightbeam.elog.compute import parse_time

    last = parse_time(book.metadata().get("last_update"))
    hours = settings.update_frequency_hours
    if force or not hours or last is None or datetime.now(UTC) - last > timedelta(hours=hours):
        return None
    return f"nothing done: the last update was at {last:%Y-%m-%d %H:%M} UTC, one every {hours:g} h is wanted (--force)"


def _sync(
    ctx: click.Context,
    book: Logbook,
    client: LogbookClient,
    make_plan: Callable[[Logbook], Plan],
    settings: ElogSettings,
    *,
    as_json: bool,
    shrink: bool = False,
    others: bool = False,
) -> int:
    from nightbeam.catalog import Logbook
    from nightbeam.elogsync.files import outdated, publish, write_failed
    from nightbeam.elogsync.worker import sync

    directory = _directory(settings)
    with book.sole_writer(wait_s=settings.lock_timeout):
        # Opened and planned only now: who held it until now has written to it, or has discarded it.
        book = Logbook(_database(settings))
        plan, looked = make_plan(book), client.traffic
        with _progress(ctx, plan, as_json=as_json) as step:
            report = sync(client, book, plan, jobs=settings.parallel_jobs, on_outcome=step)
        requests, retries = report.requests + looked.requests, report.retries + looked.retries
        report, failed = replace(report, requests=requests, retries=retries), None
        if report.outcomes or directory.exists():
            failed = write_failed(directory, report.outcomes, others=others)
        if report.stopped is None:
            book.set_metadata(
                last_update=datetime.now(UTC).isoformat(timespec="seconds"),
                hours_lookback=f"{settings.hours_lookback:g}",
            )
        snapshot = None
        if settings.publish and book.experiments() and (shrink or outdated(book, directory)):
            snapshot = publish(book, directory, most_shrink=settings.most_shrink, shrink=shrink).path
    _show_report(report, snapshot, failed, as_json=as_json)
    if report.stopped is not None:
        raise report.stopped
    if report.failed:
        names = ", ".join(outcome.name for outcome in report.failed[:10])
        more = f" and {len(report.failed) - 10} more" if len(report.failed) > 10 else ""
        raise PartialError(
            f"{len(report.failed)} of {len(report.outcomes)} experiments could not be read, or not all of them: "
            f"{names}{more}",
            fix="nightbeam elog retry",
        )
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


def _show_plan(plan: Plan, *, as_json: bool) -> None:
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
        talk(f"left out by a pattern: {', '.join(plan.excluded)}")
    if plan.postponed:
        talk(f"due, but later: {plan.postponed}")


def _show_report(report: SyncReport, snapshot: Path | None, failed: Path | None, *, as_json: bool) -> None:
    rows = [_line(outcome) for outcome in report.outcomes]
    whole = {
        "experiments": len(report.outcomes),
        "failed": len(report.failed),
        "requests": report.requests,
        "retries": report.retries,
        "new": report.change.new,
        "changed": report.change.changed + report.change.missing + report.change.back,
        "seconds": round(report.seconds, 1),
        "snapshot": snapshot,
        "failures": failed,
    }
    if as_json:
        show([*({"kind": "experiment"} | row for row in rows), {"kind": "update"} | whole], as_json=True)
        return
    told = [row for row in rows if row["new"] or row["changed"] or row["errors"] or row["notes"]]
    if told:
        brief = [{k: v if isinstance(v, int) else _brief(v) for k, v in row.items()} for row in told]
        show(brief, title="what came")
    talk(
        f"{whole['experiments']} experiments, {whole['failed']} failed; {whole['new']} rows new, {whole['changed']} "
        f"changed; {whole['requests']} requests in {whole['seconds']} s"
    )
    if snapshot is not None:
        talk(f"published {snapshot}")


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
@click.option("-H", "--hours", type=float, help="With --remote: how far back.  [default: 168]")
@click.option("-e", "--exclude", multiple=True, metavar="PATTERN", help="Leave these out; may be repeated.")
@_service_options
@_mirror_options
@json_option
@click.pass_context
def list_experiments(ctx: click.Context, /, remote: bool, as_json: bool, **options: Any) -> None:
    """List the experiments of the mirror, or those that have been active lately."""
    from nightbeam.elogsync.compute import excluded

    settings = _settings(ctx, **options)
    if remote:
        with _client(settings) as client:
            names = sorted(client.recent(settings.hours_lookback))
        show([{"name": n} for n in names if not excluded(n, settings.exclude_patterns)], as_json=as_json)
        return
    with _opened(settings) as book:
        found = [one for one in book.experiments() if not excluded(one.name, settings.exclude_patterns)]
    rows = found if as_json else [
        {"experiment": one.experiment_id, "instrument": one.instrument, "runs": one.run_count, "files": one.total_files,
         "status": one.status, "description": one.description}
        for one in found
    ]  # fmt: skip
    show(rows, as_json=as_json)


elog.add_command(list_experiments, "list-experiments")


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
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Where to.  [default: standard output]")
@_mirror_options
@click.pass_context
def export(
    ctx: click.Context, /, table: str, experiment: str | None, form: Any, file: Path | None, **options: Any
) -> None:
    """Write the rows of TABLE, any table or view of the mirror, for other programs."""
    from nightbeam.core.files import part_path, storage_errors
    from nightbeam.elogsync.export import write_rows

    with _opened(_settings(ctx, **options)) as book:
        rows = book.rows(table, experiment=experiment)
        if file is None:
            write_rows(rows, sys.stdout, form=form)
            return
        part = part_path(file)
        with storage_errors(file):
            try:
                with part.open("w", encoding="utf-8", newline="") as out:
                    count = write_rows(rows, out, form=form)
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
        talk(f"{count} rows in {file}")


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
            found = Logbook(f"sqlite:///{newest}", create=False).problems()
        except NightbeamError as error:
            found = [error.what]
        rows += [{"of": str(newest), "problem": problem} for problem in found]
    if rows or as_json:
        show(rows, as_json=as_json)
    else:
        talk("nothing is wrong")
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
