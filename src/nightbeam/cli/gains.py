"""``nightbeam gains``: match calibrators, solve, apply."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import dry_run_option, json_option, settings_of, show, talk

if TYPE_CHECKING:
    from nightbeam.core.settings import CalibrateSettings
    from nightbeam.gains import CalibratorMatch, SolutionReport

__all__ = ["gains"]

_PATH = click.Path(path_type=Path)


@click.group()
def gains() -> None:
    """Match calibrators, solve and apply interferometer gains."""


@gains.command()
@click.option("--ms", type=_PATH, help="Take field and time from this Measurement Set.")
@click.option("--ra", type=float, help="Centre of the field, ICRS degrees.")
@click.option("--dec", type=float, help="Centre of the field, ICRS degrees; with --mjd alone, apparent.")
@click.option("--mjd", type=float, help="Middle of the observation (UTC): the field is the meridian at --dec.")
@click.option("--radius", type=float, help="Farthest calibrator, degrees.")
@click.option("--topn", type=int, help="Matches shown at most.")
@click.option("--min-flux", type=float, help="Least flux times beam, Jy.")
@click.option("--catalogue", type=_PATH, help="VLA calibrator list (NRAO text or CSV).")
@json_option
@click.pass_context
def match(
    ctx: click.Context,
    /,
    ms: Path | None,
    ra: float | None,
    dec: float | None,
    mjd: float | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Show the calibrators near a field, the most useful first."""
    section = _section(ctx, asked)
    show(_matches(ms, ra, dec, mjd, section), as_json=as_json, title="" if as_json else "calibrators")


@gains.command()
@click.argument("ms", type=_PATH)
@click.option("--calibrator", default="auto", show_default=True, help="Name in the list, or auto: the best match.")
@click.option("--cal-ra-deg", type=float, help="A calibrator at this place (ICRS) instead of a listed one.")
@click.option("--cal-dec-deg", type=float, help="Its declination; its flux density is --flux.")
@click.option("--flux", "--cal-flux-jy", type=float, help="Flux density in Jy instead of the list's.")
@click.option("--refant", help="Reference antennas by name, the preferred first, separated by commas.")
@click.option("--out", type=_PATH, help="What the tables' names begin with.  [MS stem_0]")
@click.option("--field", type=int, default=0, show_default=True, help="Field to solve on.")
@click.option("--delays", is_flag=True, help="Solve delays first.")
@click.option("--fast", metavar="INTERVAL", help="A second gain at this interval on top, e.g. 60s.")
@click.option("--uvrange", help="CASA selection, e.g. '>0.1klambda'.")
@click.option("--autoflag", multiple=True, type=click.Choice(["tfcrop", "rflag"]), help="Run CASA's flagger first.")
@click.option("--timeout", type=float, default=1800.0, show_default=True, help="Seconds that CASA may take.")
@dry_run_option
@json_option
@click.pass_context
def solve(
    ctx: click.Context,
    ms: Path,
    calibrator: str,
    cal_ra_deg: float | None,
    cal_dec_deg: float | None,
    flux: float | None,
    refant: str | None,
    out: Path | None,
    field: int,
    delays: bool,
    fast: str | None,
    uvrange: str | None,
    autoflag: tuple[str, ...],
    timeout: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Solve bandpass and gains of MS on a calibrator, and refuse them if they are not good.

    Exit code 3: the data or the solutions were turned down; the reasons are in the message and in
    OUT_solutions.json, and no table is left.
    """
    from nightbeam.gains import SolveOptions, other_sources, solve_gains
    from nightbeam.sky import read_calibrators

    section = _section(ctx, {"refants": None if refant is None else tuple(refant.split(",")), "uvrange": uvrange})
    if cal_ra_deg is None and cal_dec_deg is None:
        source = _calibrator(calibrator, flux, ms, section)
    else:
        source = _calibrator_at(calibrator, cal_ra_deg, cal_dec_deg, flux)
    prefix = (out or ms.with_name(f"{ms.name.removesuffix('.ms')}_{field}")).absolute()
    options = SolveOptions(
        refants=section.refants,
        solve_delays=delays or section.solve_delays,
        fast_interval=fast,
        bp_minsnr=section.bp_minsnr,
        gain_minsnr=section.gain_minsnr,
        uvrange=section.uvrange,
        autoflag=autoflag,
        max_flagged_fraction=section.max_flagged_fraction,
        timeout_s=timeout,
    )
    others = other_sources(ms, source, read_calibrators(section.catalogue), options=options, field=field)
    if dry_run:
        plan = {"ms": ms, "calibrator": source, "others": others, "out": prefix, "options": asdict(options)}
        show([plan], as_json=as_json)
        return
    log = prefix.with_name(f"{prefix.name}_solve.log")
    found = solve_gains(
        ms, source, prefix, options=options, others=others, field=field, work_dir=prefix.parent, log=log
    )
    for warning in found.report.warnings:
        talk(f"warning: {warning}")
    if as_json:
        show([found], as_json=True)
    else:
        _show_report(found.report)
        show([{"table": t.path, "type": t.kind, "order": t.order_index, "refant": t.refant} for t in found.tables])


@gains.command()
@click.argument("ms", type=_PATH)
@click.option("--tables", "first", type=_PATH, help="Tables to apply, or one prefix that they share.")
@click.argument("more", type=_PATH, nargs=-1)
@click.option("--calwt", is_flag=True, help="Scale the weights by the gains as well.")
@click.option("--timeout", type=float, default=1800.0, show_default=True, help="Seconds that CASA may take.")
@dry_run_option
@json_option
def apply(
    ms: Path, first: Path | None, more: tuple[Path, ...], calwt: bool, timeout: float, dry_run: bool, as_json: bool
) -> None:
    """Apply calibration tables to MS: --tables T1 T2 ..., or --tables PREFIX.

    Doing it again gives the same. Tables of other antennas, windows or products are refused.
    """
    from nightbeam.gains import apply_gains, tables_of_prefix

    if first is None:
        raise click.UsageError("say which tables: --tables T1 T2 ..., or --tables PREFIX")
    tables: list[Any] = [first, *more]
    if not more and not first.exists():
        tables = list(tables_of_prefix(first))
    if dry_run:
        show([{"ms": ms, "table": getattr(t, "path", t)} for t in tables], as_json=as_json)
        return
    log = ms.absolute().with_name(f"{ms.name.removesuffix('.ms')}_apply.log")
    report = apply_gains(ms, tables, work_dir=log.parent, log=log, timeout_s=timeout, calwt=calwt)
    show([report], as_json=as_json)


def _section(ctx: click.Context, asked: dict[str, Any]) -> CalibrateSettings:
    names = {"radius": "match_radius_deg", "topn": "match_topn", "min_flux": "min_flux_jy"}
    given = {f"contimg__calibrate__{names.get(k, k)}": v for k, v in asked.items()}
    return settings_of(ctx, **given).contimg.calibrate


def _matches(
    ms: Path | None, ra: float | None, dec: float | None, mjd: float | None, section: CalibrateSettings
) -> list[CalibratorMatch]:
    import math

    from nightbeam.gains import match_calibrators
    from nightbeam.sky import read_calibrators

    place: dict[str, Any]
    if ms is not None:
        from nightbeam.ms import read_fields

        place = {"ra_deg": read_fields(ms)[0].ra_deg, "dec_deg": read_fields(ms)[0].dec_deg}
    elif ra is not None and dec is not None:
        place = {"ra_deg": ra, "dec_deg": dec}
    elif mjd is not None and dec is not None:
        place = {"mid_mjd": mjd, "dec_apparent_rad": math.radians(dec)}
    else:
        raise click.UsageError("say where to look: --ms MS, --ra with --dec, or --mjd with --dec")
    return match_calibrators(
        read_calibrators(section.catalogue),
        **place,
        radius_deg=section.match_radius_deg,
        topn=section.match_topn,
        min_weighted_jy=section.min_flux_jy,
    )


def _calibrator(name: str, flux: float | None, ms: Path, section: CalibrateSettings) -> CalibratorMatch:
    from dataclasses import replace

    from nightbeam.core.errors import MissingError
    from nightbeam.gains import CalibratorMatch
    from nightbeam.sky import find_calibrator, read_calibrators

    if name == "auto":
        matches = _matches(ms, None, None, None, section)
        if not matches:
            raise MissingError(
                f"no calibrator within {section.match_radius_deg:g} deg of the field of {ms}",
                fix="name one with --calibrator, or widen contimg.calibrate.match_radius_deg",
            )
        found = matches[0]
    else:
        listed = find_calibrator(read_calibrators(section.catalogue), name)
        found = CalibratorMatch(listed.name, listed.ra_deg, listed.dec_deg, listed.flux_jy)
    return found if flux is None else replace(found, flux_jy=flux)


def _calibrator_at(name: str, ra: float | None, dec: float | None, flux: float | None) -> CalibratorMatch:
    from nightbeam.gains import CalibratorMatch

    if ra is None or dec is None or flux is None:
        raise click.UsageError("a calibrator that is not listed needs --cal-ra-deg, --cal-dec-deg and --flux")
    if not (0 <= ra < 360 and -90 <= dec <= 90 and 0 < flux < float("inf")):
        raise click.UsageError(f"no source can be at {ra} {dec} deg with {flux} Jy")
    return CalibratorMatch("calibrator" if name == "auto" else name, ra, dec, flux)


def _show_report(report: SolutionReport) -> None:
    rows = [
        {
            "table": t.name,
            "antennas": t.antennas_with_solutions,
            "dead receptors": t.dead_receptors,
            "flagged": t.flagged_fraction,
            "median snr": t.median_snr,
            "amplitude": t.median_amplitude,
        }
        for t in report.tables
    ]
    show(rows, title=f"refant {report.refant}, corrected/model {report.corrected_over_model or float('nan'):.4f}")
