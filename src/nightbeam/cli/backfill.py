"""``nightbeam backfill``: image what was missed."""

from __future__ import annotations

from pathlib import Path

import click

from nightbeam.cli.output import dry_run_option, json_option, settings_of, show, talk

__all__ = ["backfill"]


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--night", metavar="YYYY-MM-DD", help="Only sets whose data begin on this UTC day.")
@click.option("--ms-dir", type=click.Path(path_type=Path), help="The same as DIRECTORY.")
@click.option(
    "--out-dir", type=click.Path(path_type=Path), help="Where images of sets go that the queue does not know."
)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many sets.")
@click.option("--queue-db", help="Instead of contimg.queue_db.")
@click.option("--registry-db", help="Instead of contimg.registry_db.")
@click.option("--products-db", help="Instead of contimg.products_db.")
@dry_run_option
@json_option
@click.pass_context
def backfill(
    ctx: click.Context,
    /,
    directory: Path | None,
    night: str | None,
    ms_dir: Path | None,
    out_dir: Path | None,
    limit: int | None,
    dry_run: bool,
    as_json: bool,
    **databases: str | None,
) -> None:
    """Image the Measurement Sets below DIRECTORY, or of a night, that have no good image.

    Without either: those below the site's output directory and all of the index. A set of the queue goes through
    the queue, and one that somebody works on is left alone. One bad set does not stop the others: exit code 2.
    """
    from nightbeam.contimg import Site
    from nightbeam.contimg.backfill import backfill as image_all
    from nightbeam.contimg.backfill import find_unimaged, first_to_do, parse_night

    if directory is not None and ms_dir is not None:
        raise click.UsageError("give DIRECTORY or --ms-dir, not both")
    given = {f"contimg__{name}": value for name, value in databases.items() if value is not None}
    site = Site.from_settings(settings_of(ctx, **given))
    day = None if night is None else parse_night(night)
    wanted = first_to_do(find_unimaged(site, directory or ms_dir, night=day, look_only=dry_run), limit)
    if dry_run:
        show(wanted, as_json=as_json, title="have no good image")
        return
    report = image_all(
        site, wanted, out_dir=out_dir, on_each=lambda one: talk(f"{one.group_id or one.ms}: {one.state} {one.why}")
    )
    show(report.outcomes, as_json=as_json, title="have had no good image")
    report.raise_failures()
