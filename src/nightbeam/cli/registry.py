"""``nightbeam registry``: sets of calibration tables and where they are valid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import dry_run_option, json_option, plain, settings_of, show, talk

if TYPE_CHECKING:
    from nightbeam.catalog import Registry

__all__ = ["registry"]


def db_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--db``."""
    return click.option("--db", help="SQLite file or SQLAlchemy URL.  [default: of the settings]")(function)


@click.group("registry")
def registry() -> None:
    """Keep the registry of calibration tables."""


@registry.command("init")
@db_option
@click.pass_context
def init(ctx: click.Context, db: str | None) -> None:
    """Make the registry, or bring an older one up to date."""
    opened = _open(ctx, db, make=True)
    talk(f"{opened.database.shown} is at schema {opened.database.revision()}")


@registry.command("register")
@db_option
@click.option("--name", required=True, help="Name of the set.")
@click.option(
    "--prefix", required=True, type=click.Path(path_type=Path), help="The tables are the directories PREFIX*."
)
@click.option("--cal-field", help="Field on which they were solved.")
@click.option("--refant", help="Reference antenna.")
@click.option("--valid-start", type=float, help="Begin of validity, MJD (UTC).")
@click.option("--valid-end", type=float, help="End of validity, MJD (UTC).")
@click.option(
    "--status", type=click.Choice(["active", "retired", "failed"]), default="active", show_default=True, help="Status."
)
@json_option
@dry_run_option
@click.pass_context
def register(
    ctx: click.Context,
    db: str | None,
    name: str,
    prefix: Path,
    cal_field: str | None,
    refant: str | None,
    valid_start: float | None,
    valid_end: float | None,
    status: str,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Register the tables PREFIX* as one set, once all of them exist and open.

    Tables are told by the end of their names: _kcal, _bacal, _bpcal, _gacal, _gcal, _gpcal, _2gcal, _flux.cal.
    """
    opened = _open(ctx, db, make=True)
    if dry_run:
        from nightbeam.catalog.compute import tables_of_prefix

        show(tables_of_prefix(opened.tables_at(prefix), cal_field=cal_field, refant=refant), as_json=as_json)
        return
    rows = opened.register_prefix(
        prefix,
        name=name,
        valid_start_mjd=valid_start,
        valid_end_mjd=valid_end,
        cal_field=cal_field,
        refant=refant,
        status=status,
    )
    show(rows, as_json=as_json, title=name)


@registry.command("active")
@db_option
@click.option("--mjd", type=float, help="Time of the data, MJD (UTC).")
@click.option("--set", "set_name", help="A set by name instead of a time.")
@click.pass_context
def active(ctx: click.Context, db: str | None, mjd: float | None, set_name: str | None) -> int:
    """Print the tables to apply to data of a time as {"applylist": [...]}; exit code 1 if there are none."""
    if (mjd is None) == (set_name is None):
        raise click.UsageError("give --mjd or --set")
    paths = _open(ctx, db).active_paths(mjd=mjd, name=set_name)
    click.echo(json.dumps({"applylist": [str(path) for path in paths]}))
    return 0 if paths else 1


@registry.command("list")
@db_option
@json_option
@click.pass_context
def list_sets(ctx: click.Context, db: str | None, as_json: bool) -> None:
    """List the sets, also those that were turned down."""
    show(_open(ctx, db).sets(), as_json=as_json, title="calibration sets")


@registry.command("list-sets")
@db_option
@click.pass_context
def list_sets_json(ctx: click.Context, db: str | None) -> None:
    """Print the sets as one JSON list of {set, rows, active, min_order}."""
    names = ("set", "rows", "active", "min_order")
    lines = [{name: plain(getattr(line, name)) for name in names} for line in _open(ctx, db).sets()]
    click.echo(json.dumps(lines))


@registry.command("retire")
@db_option
@click.option("--name", required=True, help="Name of the set.")
@click.option("--reason", required=True, help="Why; kept with its tables.")
@dry_run_option
@click.pass_context
def retire(ctx: click.Context, db: str | None, name: str, reason: str, dry_run: bool) -> None:
    """Let a set serve no data any more."""
    opened = _open(ctx, db)
    if dry_run:
        opened.require_set(name)
        show(opened.tables(name), title=f"{name} would be retired")
        return
    talk(f"{opened.retire(name, reason)} tables of {name} are retired")


registry.add_command(register, "register-prefix")


def _open(ctx: click.Context, db: str | None, *, make: bool = False) -> Registry:
    from nightbeam.catalog import Registry

    settings = settings_of(ctx, contimg__registry_db=db)
    # The site's own registry is empty at first; one that somebody names is there, or its name is wrong.
    return Registry(str(settings.contimg.registry_db), create=make or db is None)
