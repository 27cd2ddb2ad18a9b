"""``nightbeam mosaic``: tiles become mosaics."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import dry_run_option, json_option, settings_of, show, talk
from nightbeam.core.errors import InputError, MissingError, RejectedError, UsageError

if TYPE_CHECKING:
    from nightbeam.catalog.model import MosaicRow
    from nightbeam.contimg import Site
    from nightbeam.contimg.mosaic_plan import MosaicPlan, Window
    from nightbeam.contimg.nights import NightOutcome

__all__ = ["mosaic"]

#: What fits a terminal of 80 characters; ``--json`` has more.
_COLUMNS = ("name", "status", "observed", "tiles", "rejected", "noise_mjy", "good", "error")
#: As the commands in use before ended: there is no tile, or no such plan; the tiles do not share their pixels.
_NOTHING, _NOT_ALIGNED = 1, 2
#: How the builder says the latter.
_UNLIKE = "do not share their pixels"
#: Smaller numbers are days written without dashes, or years.
_LEAST_SECONDS = 1e9
_TIMES = "2025-10-03 or 2025-10-03T11:48:57, or seconds since 1970 (of 2001 or later)"


class Moment(click.ParamType[float]):
    """A time as seconds since 1970 or as ISO 8601 (UTC unless it says otherwise); becomes an MJD."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the MJD."""
        from nightbeam.core.times import mjd_from_datetime

        try:
            return mjd_from_datetime(_moment(str(value)))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time: give {_TIMES}", param, ctx)


def _moment(text: str) -> datetime:
    try:
        seconds = float(text)
    except ValueError:
        found = datetime.fromisoformat(text)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    if not seconds >= _LEAST_SECONDS:  # 20251003 is a day in August 1970, and never meant
        raise ValueError(text)
    return datetime.fromtimestamp(seconds, UTC)


def db_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--products-db``."""
    return click.option("--products-db", help="SQLite file or SQLAlchemy URL.  [default: of the settings]")(function)


@click.group("mosaic")
def mosaic() -> None:
    """Plan, build and show mosaics; make those of the nights.

    A mosaic is planned by when its tiles were observed. Tiles that do not lie side by side make several mosaics:
    NAME, NAME_strip1 and so on.
    """


@mosaic.command("plan")
@db_option
@click.option("--name", required=True, help="Name of the plan; planning it again replaces it.")
@click.option("--night", metavar="YYYY-MM-DD", help="A UTC day of observation.")
@click.option("--since", type=Moment(), help="Observed at this time or later: seconds since 1970, or ISO 8601.")
@click.option("--until", type=Moment(), help="Observed before this time.")
@click.option("--method", type=click.Choice(["weighted", "mean"]), help="How.  [default: of the settings]")
@click.option("--include-unpbcor", is_flag=True, default=None, help="Also tiles without primary-beam correction.")
@json_option
@dry_run_option
@click.pass_context
def plan(
    ctx: click.Context,
    products_db: str | None,
    name: str,
    night: str | None,
    since: float | None,
    until: float | None,
    method: str | None,
    include_unpbcor: bool | None,
    as_json: bool,
    dry_run: bool,
) -> int:
    """Choose the tiles that were observed in a window, and say of each why it is used or not.

    Exit code 1 if none can be used; then an earlier plan of the name stays.
    """
    from nightbeam.contimg.mosaic_plan import check_name, options_of, plan_mosaic
    from nightbeam.contimg.mosaics import hold_plan, store_plan

    site = _site(ctx, products_db)
    window = _window(night, since, until)
    options = options_of(site, method=method, include_unpbcor=include_unpbcor)
    if dry_run:
        planned = plan_mosaic(site, check_name(name), window, options=options)
    else:
        with hold_plan(site, check_name(name)):
            planned = plan_mosaic(site, name, window, options=options)
            if planned.strips:
                store_plan(site, planned)
    _show_plan(planned, as_json=as_json)
    if not planned.strips:
        talk(f"nightbeam: {planned.why_nothing()}")
        return _NOTHING
    return 0


def _show_plan(planned: MosaicPlan, *, as_json: bool) -> None:
    from nightbeam.contimg.mosaics import verdict_lines

    strips = [
        {
            "name": one.name,
            "tiles": len(one.strip.tiles),
            "rejected": len([v for v in one.verdicts if not v.accepted]),
            "ra_deg": one.strip.ra_deg,
            "dec_deg": one.strip.dec_deg,
        }
        for one in planned.strips
    ]
    tiles = verdict_lines(planned.verdicts)
    if as_json:
        common = {"plan": planned.name, "window": str(planned.window), "method": planned.options.method}
        show([{**common, "catalogue": planned.catalogue, "mosaics": strips, "tiles": tiles}], as_json=True)
        return
    if tiles:
        columns = ("tile", "used", "reasons")
        show([{name: line[name] for name in columns} for line in tiles], title=f"tiles of {planned.window}")
    if strips:
        show(strips, title=f"plan {planned.name}")


@mosaic.command("build")
@db_option
@click.option("--name", required=True, help="Name of a plan, or of one of its strips.")
@click.option("--output", type=click.Path(path_type=Path), help="The image, without its suffix.  [default: by name]")
@click.option("--force", is_flag=True, help="Make it again although it is there.")
@json_option
@click.pass_context
def build(
    ctx: click.Context, products_db: str | None, name: str, output: Path | None, force: bool, as_json: bool
) -> int:
    """Make the mosaics of a plan that are not there yet.

    Exit code 1 if there is no such plan, 2 if the method is mean and the tiles do not share their pixels, 3 if a mosaic
    was made that a check finds fault with.
    """
    from nightbeam.contimg.mosaics import build_mosaics, is_good, mosaic_line, rows_of

    site = _site(ctx, products_db)
    try:
        rows_of(site, name)
    except MissingError as error:
        talk(f"nightbeam: {error}")
        return _NOTHING
    try:
        rows = build_mosaics(site, name, output=output, force=force)
    except InputError as error:
        if _UNLIKE not in error.what:
            raise
        talk(f"nightbeam: {error}")
        return _NOT_ALIGNED
    show([_line(row) for row in rows] if not as_json else [mosaic_line(row) for row in rows], as_json=as_json)
    for row in rows:
        for issue in (row.validation_issues or "").splitlines():
            talk(f"{row.name}: {issue}")
    return 0 if all(is_good(row) for row in rows) else RejectedError.exit_code


@mosaic.command("show")
@click.argument("name", required=False)
@db_option
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The newest so many.")
@json_option
@click.pass_context
def show_mosaic(ctx: click.Context, name: str | None, products_db: str | None, limit: int, as_json: bool) -> None:
    """List the mosaics, newest observations first; or show NAME with its tiles, their verdicts, and its checks."""
    from nightbeam.contimg.mosaics import mosaic_line, mosaic_report, rows_of

    site = _site(ctx, products_db)
    if name is None:
        rows = site.products().mosaics(limit=limit)
        show([mosaic_line(row) if as_json else _line(row) for row in rows], as_json=as_json, title="mosaics")
        return
    for row in rows_of(site, name):
        report = mosaic_report(row)
        if as_json:
            show([report], as_json=True)
            continue
        show([{"field": key, "value": value} for key, value in report["mosaic"].items()], title=row.name)
        for part in ("tiles", "checks"):
            if report[part]:
                show(report[part], title=part)
        if report["before"]:
            known = [{"field": key, "value": value} for key, value in report["before"].items() if key != "files"]
            show(known, title=f"the {row.name} that was made before, and is still there")
        for issue in report["issues"]:
            talk(issue)


@mosaic.command("nightly")
@click.option("--night", metavar="YYYY-MM-DD", multiple=True, help="This night, due or not; repeatable.")
@click.option("--now", metavar="TIME", help="Take this for the present: what is due then?")
@click.option("--force", is_flag=True, help="Make again what has not changed.")
@json_option
@dry_run_option
@click.pass_context
def nightly(
    ctx: click.Context, night: tuple[str, ...], now: str | None, force: bool, as_json: bool, dry_run: bool
) -> None:
    """Make the mosaics of the nights that are due, as the flow nightly-mosaic does.

    Due are yesterday and the nights before it that were missed, or whose tiles have changed. A night that cannot be
    made does not stop the others; exit code 2 then.
    """
    from nightbeam.contimg.nights import make_nights, mosaic_of_night, nights_due

    site = _site(ctx, None)
    present = _present(now)
    nights = list(night) or nights_due(site, now=present)
    if dry_run:
        show([{"night": one, "mosaic": mosaic_of_night(site, one)} for one in nights], as_json=as_json, title="due")
        return
    outcomes: list[NightOutcome] = []
    try:
        make_nights(site, nights, force=force, on_night=outcomes.append)
    finally:
        show(outcomes, as_json=as_json, title="nights")


def _present(text: str | None) -> datetime | None:
    try:
        return None if text is None else _moment(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is no time", fix=f"give {_TIMES}") from error


def _window(night: str | None, since: float | None, until: float | None) -> Window:
    from nightbeam.contimg.mosaic_plan import Window

    if night is None:
        return Window(since, until)
    if since is not None or until is not None:
        raise click.UsageError("give --night, or --since and --until")
    return Window.of_night(night)


def _line(row: MosaicRow) -> dict[str, Any]:
    from nightbeam.contimg.mosaics import mosaic_line

    line = mosaic_line(row)
    return {name: line[name] for name in _COLUMNS}


def _site(ctx: click.Context, products_db: str | None) -> Site:
    from nightbeam.catalog import Products
    from nightbeam.contimg import Site

    site = Site.from_settings(settings_of(ctx, contimg__products_db=products_db))
    if products_db is not None:
        # The site's own are empty at first; a database that somebody names is there, or its name is wrong.
        Products(site.products_url, create=False)
    return site
