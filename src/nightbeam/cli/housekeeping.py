"""``nightbeam housekeeping``: tidy a site up, look into its quarantine, put something back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import dry_run_option, json_option, settings_of, show, talk

if TYPE_CHECKING:
    from nightbeam.catalog.model import QuarantineRow

__all__ = ["housekeeping"]


@click.command()
@click.option("--queue-db", help="Instead of contimg.queue_db; it must be there.")
@click.option("--scratch-dir", type=click.Path(path_type=Path), help="Instead of contimg.scratch_dir.")
@click.option(
    "--in-progress-timeout",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Instead of contimg.ingest.in_progress_timeout_s.",
)
@click.option(
    "--collecting-timeout",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="Instead of contimg.ingest.collecting_timeout_s.",
)
@click.option(
    "--temp-age",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Instead of contimg.housekeeping.scratch_age_s.",
)
@click.option("--force", is_flag=True, help="Also where the clock seems to have jumped.")
@click.option("--held", is_flag=True, help="List what lies in quarantine; do nothing.")
@click.option("--restore", type=click.Path(path_type=Path), metavar="PATH", help="Put this back from quarantine.")
@dry_run_option
@json_option
@click.pass_context
def housekeeping(
    ctx: click.Context,
    queue_db: str | None,
    scratch_dir: Path | None,
    in_progress_timeout: float | None,
    collecting_timeout: float | None,
    temp_age: float | None,
    force: bool,
    held: bool,
    restore: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take groups back from dead runs, give up those that stay incomplete, remove scratch, put old products aside.

    Nothing that a live run owns is touched. What is put aside is deleted for good after
    contimg.housekeeping.quarantine_days; until then --restore brings it back.
    """
    from nightbeam.contimg import Site
    from nightbeam.contimg.housekeeping import held_in_quarantine, put_back, require_queue, tidy_up

    if sum((held, restore is not None)) > 1 or (restore is not None and dry_run):
        raise click.UsageError("--held, --restore and --dry-run exclude each other")
    given = {
        "contimg__queue_db": queue_db,
        "contimg__scratch_dir": scratch_dir,
        "contimg__ingest__in_progress_timeout_s": in_progress_timeout,
        "contimg__ingest__collecting_timeout_s": collecting_timeout,
        "contimg__housekeeping__scratch_age_s": temp_age,
    }
    site = Site.from_settings(settings_of(ctx, **{name: v for name, v in given.items() if v is not None}))
    if held:
        show(map(_held, held_in_quarantine(site)), as_json=as_json, title="in quarantine")
        return
    if restore is not None:
        show([{"restored": put_back(site, restore.expanduser())}], as_json=as_json)
        return
    if queue_db is not None:
        require_queue(site, look_only=dry_run)
    report = tidy_up(site, dry_run=dry_run, force=force)
    for note in report.notes:
        talk(note)
    if as_json:
        show([report.to_json()], as_json=True)
    else:
        show(report.lines(), title="would be done" if dry_run else "done")
    report.raise_failures()


def _held(row: QuarantineRow) -> dict[str, Any]:
    return {
        "original_path": row.original_path,
        "kind": row.kind,
        "state": row.state,
        "moved_at": datetime.fromtimestamp(row.moved_at, UTC),
        "size_bytes": row.size_bytes,
        "reason": row.reason,
        "path": row.path,
    }
