"""Mosaics from plan to product: their rows, who makes them, what is left when that is interrupted, what is shown."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nightbeam import __version__
from nightbeam.catalog.model import MosaicRow
from nightbeam.contimg.guard import at_work, plan_mosaic
from nightbeam.contimg.mosaic_plan import (
    MOSAIC_TOOLS,
    MosaicPlan,
    MosaicTools,
    PlannedStrip,
    options_of,
    reference_sources,
)
from nightbeam.contimg.owners import owned_scratch, this_process
from nightbeam.contimg.provenance import note_mosaic
from nightbeam.contimg.quality import forget_quality, record_quality
from nightbeam.contimg.site import Site
from nightbeam.core.errors import InputError, MissingError, NightbeamError, PartialError, RejectedError
from nightbeam.core.files import storage_errors, write_bytes
from nightbeam.core.locks import is_held, sole_owner
from nightbeam.core.times import datetime_from_mjd, iso_z
from nightbeam.mosaic.files import mosaic_sidecar_path
from nightbeam.mosaic.model import MosaicOptions, MosaicProduct, Tile, TileVerdict, mosaic_path

if TYPE_CHECKING:
    from nightbeam.catalog import Products

__all__ = [
    "LEFT_BEHIND",
    "build_mosaics",
    "build_rows",
    "hold_plan",
    "is_good",
    "is_plan_held",
    "is_whole",
    "judge_once",
    "mosaic_line",
    "mosaic_report",
    "output_stem",
    "rows_of",
    "store_plan",
    "verdict_lines",
]

logger = logging.getLogger(__name__)

#: What a line of ``validation_issues`` begins with that names a file of an earlier plan.
LEFT_BEHIND = "left behind: "
_SUFFIXES = (".image.fits", ".image", ".img", ".im", ".fits", ".fit")
#: The picture among the QA artifacts of a mosaic.
PICTURE = "image.png"


@contextmanager
def hold_plan(site: Site, plan: str) -> Iterator[None]:
    """Be the only one that plans or builds these mosaics on this machine.

    Raises
    ------
    BusyError
        Naming who does.
    """
    with sole_owner(_plan_lock(site, plan), what=f"the mosaic {plan}"):
        yield


def is_plan_held(site: Site, plan: str) -> bool:
    """Say whether somebody on this machine plans or builds these mosaics just now."""
    return is_held(_plan_lock(site, plan))


def _plan_lock(site: Site, plan: str) -> Path:
    return site.state_dir / "locks" / f"mosaic-{plan}.lock"


# -- the rows of a plan -------------------------------------------------------------------------------------------


def store_plan(site: Site, plan: MosaicPlan) -> list[MosaicRow]:
    """Make the rows of a plan what it says, all at once; for who holds it.

    A mosaic that was built of the very same stays built, and what was said of it holds; what was said of the others is
    forgotten. No file of a mosaic is touched: what was built by an earlier plan and will not be written again is named
    in ``validation_issues``.

    Raises
    ------
    RejectedError
        If there is nothing to make; the rows stay as they were.
    """
    if not plan.strips:
        raise RejectedError(plan.why_nothing(), fix="look at the tiles, or plan another window")
    products = site.products()
    before = {row.name: row for row in [*products.mosaics(plan=plan.name), *_adopted(products, plan)]}
    kept = {s.name for s in plan.strips if (row := before.get(s.name)) and _is_same(row, s) and is_whole(row)}
    left: dict[str, list[str]] = {}
    for row in before.values():
        if row.name not in kept:
            heir = row.name if row.name in {s.name for s in plan.strips} else plan.name
            left.setdefault(heir, []).extend(_files_left(row))
    rows = []
    for strip in plan.strips:
        old = before[strip.name] if strip.name in kept else None
        values = _row(plan, strip, old, left.get(strip.name, []))
        if old is None and (last := _before(before.get(strip.name))):
            values["parameters"]["before"] = last
        rows.append(values)
    for name in sorted(before.keys() - kept):  # before the rows: killed in between, it is judged anew or replaced
        forget_quality(site, name, kind="mosaic")
    return products.put_plan(plan.name, rows)


def _adopted(products: Products, plan: MosaicPlan) -> list[MosaicRow]:
    """Return the row of this name that an older pipeline left, which belongs to no plan."""
    found = products.mosaic(plan.name)
    return [found] if found is not None and found.plan is None else []


def _is_same(row: MosaicRow, strip: PlannedStrip) -> bool:
    return row.status == "built" and _parameters(row).get("inputs") == strip.inputs


def is_whole(row: MosaicRow) -> bool:
    """Return whether a mosaic is built, its files are where they were, and its description says that it is whole.

    One of an older pipeline has no description, and says nothing of its files.
    """
    return row.status == "built" and _is_there(row.output_path, json.loads(row.files or "{}"))


def _is_there(output_path: str | None, named: Mapping[str, str]) -> bool:
    if output_path is None:
        return False
    files = [Path(path) for path in named.values()]
    if files:
        files.append(mosaic_sidecar_path(output_stem(Path(output_path))))
    return all(path.exists() for path in [*files, Path(output_path)])


def _files_left(row: MosaicRow) -> list[str]:
    named = [line for line in (row.validation_issues or "").splitlines() if line.startswith(LEFT_BEHIND)]
    if row.output_path:
        named.append(LEFT_BEHIND + row.output_path)
    return [line for line in named if Path(line.removeprefix(LEFT_BEHIND)).exists()]


def _row(plan: MosaicPlan, strip: PlannedStrip, old: MosaicRow | None, left: Iterable[str]) -> dict[str, Any]:
    tiles = strip.strip.tiles
    # Of a mosaic that stays, what its builder found holds, not what the plan thinks of the same tiles.
    verdicts = strip.verdicts if old is None else _as_built(strip.verdicts, old)
    begin, end = strip.strip.start_mjd, strip.strip.end_mjd
    mine = {
        "name": strip.name,
        "strip": strip.number,
        "method": plan.options.method,
        "tiles": "\n".join(str(tile.path) for tile in tiles),
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "tiles_used": len(tiles) if old is None else old.tiles_used,
        "tiles_rejected": len([v for v in verdicts if not v.accepted]),
    }
    if old is None:
        planned = {
            **{"start_mjd": begin, "mid_mjd": strip.strip.mid_mjd, "end_mjd": end},
            **{"ra_deg": strip.strip.ra_deg, "dec_deg": strip.strip.dec_deg},
            "version": __version__,
        }
    else:
        planned = asdict(old)
        del planned["id"]
    issues = _issues_of(old)
    issues += [line for line in left if line not in issues]
    parameters = {
        **({} if old is None else _parameters(old)),
        "window": [plan.window.start_mjd, plan.window.end_mjd],
        "options": asdict(plan.options),
        "catalogue": plan.catalogue,
        "reference": plan.reference,
        "inputs": strip.inputs,
        "candidates": dict(plan.candidates) if strip.number == 0 else {},
    }
    return {**planned, **mine, "validation_issues": "\n".join(issues) or None, "parameters": parameters}


def _before(row: MosaicRow | None) -> dict[str, Any] | None:
    """Return where the mosaic lies that a row had before it was planned anew, if that is still whole."""
    if row is None:
        return None
    told = ("output_path", "sha256", "built_at", "tiles_used", "noise_jy", "peak_jy", "version")
    mine = {**{name: getattr(row, name) for name in told}, "files": json.loads(row.files or "{}")}
    last = mine if row.status == "built" else _parameters(row).get("before")
    return last if isinstance(last, dict) and _is_there(last.get("output_path"), last.get("files") or {}) else None


def _as_built(verdicts: Sequence[TileVerdict], row: MosaicRow) -> list[TileVerdict]:
    found = {v.tile.path: v for v in map(TileVerdict.from_json, json.loads(row.verdicts or "[]"))}
    return [found.get(v.tile.path, v) if v.accepted else v for v in verdicts]


def _issues_of(row: MosaicRow | None) -> list[str]:
    return [] if row is None else (row.validation_issues or "").splitlines()


def _parameters(row: MosaicRow) -> dict[str, Any]:
    found = json.loads(row.parameters or "{}")
    return found if isinstance(found, dict) else {}


# -- making them --------------------------------------------------------------------------------------------------


def rows_of(site: Site, name: str) -> list[MosaicRow]:
    """Return the mosaics of a plan, or the one of that name.

    Raises
    ------
    MissingError
        If there is neither.
    """
    products = site.products()
    rows = products.mosaics(plan=name)
    if not rows and (one := products.mosaic(name)) is not None:
        rows = [one]
    if not rows:
        raise MissingError(f"there is no mosaic {name}", fix=f"plan it first: nightbeam mosaic plan --name {name}")
    return rows


def output_stem(output: Path) -> Path:
    """Return what the names of the files begin with that are asked for as ``output``: that without its suffix.

    Only what images end in is a suffix: the day of ``sky_2025.10.03`` is none.
    """
    name = output.name
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and name != suffix:
            return output.with_name(name.removesuffix(suffix))
    return output


def build_mosaics(
    site: Site, name: str, *, output: Path | None = None, force: bool = False, tools: MosaicTools | None = None
) -> list[MosaicRow]:
    """Make the mosaics of a plan that are not there yet.

    Parameters
    ----------
    site, name
        Where, and which plan; or one strip of one.
    output
        Where the image goes; its suffix is taken off. Further strips get their own names beside it.
    force
        Make those again that are there.
    tools
        What works on tiles.

    Returns
    -------
    list of MosaicRow
        All of them, as they are now.

    Raises
    ------
    MissingError
        If there is no such plan.
    BusyError
        If somebody else is at it.
    PartialError
        If some of several could not be made; the rows say why.
    NightbeamError
        Why the only one could not.
    """
    (first, *_) = rows_of(site, name)
    with hold_plan(site, first.plan or first.name):
        return build_rows(site, rows_of(site, name), output=output, force=force, tools=tools)


def build_rows(
    site: Site,
    rows: Sequence[MosaicRow],
    *,
    output: Path | None = None,
    force: bool = False,
    tools: MosaicTools | None = None,
) -> list[MosaicRow]:
    """Do what `build_mosaics` does, for who holds the plan."""
    tools = tools or MOSAIC_TOOLS
    done: list[MosaicRow] = []
    failed: list[tuple[str, Exception]] = []
    for row in rows:
        stem = _stem(site, row, output)
        if is_whole(row) and not force and (output is None or _is_at(row, stem)):
            judge_once(site, row, tools)
            done.append(row)
            continue
        try:
            _check_free(site, row, stem)
            done.append(_build(site, row, stem, tools, force=force))
        except Exception as error:  # raised at the end, with its mosaic
            ours = not isinstance(error, NightbeamError)
            logger.error("the mosaic %s could not be made: %s", row.name, _text_of(error), exc_info=ours)
            failed.append((row.name, error))
    if failed and len(rows) == 1:
        raise failed[0][1]
    if failed:
        raise _partial(failed, len(rows))
    return done


def _partial(failed: Sequence[tuple[str, Exception]], of: int) -> NightbeamError:
    """Return one error for several mosaics: one that may pass by itself, if one of theirs may."""
    named = "; ".join(f"{name}: {_text_of(error)}" for name, error in failed)
    told = [error for _, error in failed if isinstance(error, NightbeamError)]
    passing = [error for error in told if error.retry]
    kind = type(passing[0]) if passing else PartialError
    fix = next((error.fix for error in [*passing, *told] if error.fix), "")
    return kind(f"{len(failed)} of {of} mosaics could not be made: {named}", fix=fix)


def _text_of(error: Exception) -> str:
    return error.what if isinstance(error, NightbeamError) else f"{type(error).__name__}: {error}"


def _stem(site: Site, row: MosaicRow, output: Path | None) -> Path:
    if output is None:
        return site.mosaic_dir() / row.name
    stem = output_stem(output.absolute())
    return stem.with_name(f"{stem.name}_strip{row.strip}") if row.strip else stem


def _check_free(site: Site, row: MosaicRow, stem: Path) -> None:
    """Raise an InputError if the files of another mosaic have these names, or will have."""
    products = site.products()
    others = {other.name for other in products.mosaics(output_path=mosaic_path(stem, "image"))}
    if stem.parent == site.mosaic_dir().absolute() and products.mosaic(stem.name) is not None:
        others.add(stem.name)
    if others := others - {row.name}:
        raise InputError(f"{stem} is where the mosaic {min(others)} has its files", fix="choose another output")


def _is_at(row: MosaicRow, stem: Path) -> bool:
    return row.output_path is not None and Path(row.output_path).name.startswith(f"{stem.name}.") and (
        Path(row.output_path).parent == stem.parent
    )  # fmt: skip


def _build(site: Site, row: MosaicRow, stem: Path, tools: MosaicTools, *, force: bool) -> MosaicRow:
    products = site.products()
    # From here to its end it is not built, whatever happens to this process: its files are replaced one by one.
    products.change_mosaic(row.name, status="planned", error=None)
    products.put_scores("mosaic", row.name, ())  # what was said of an earlier one does not hold
    try:
        product = _make(site, row, stem, tools, force=force)
        note_mosaic(site, row, product, run=this_process().name)  # before it is built for everybody else
        built = products.mosaic_built(row.name, **_built(row, product))
    except Exception as error:  # told to the row, then raised
        failed = products.mosaic_failed(row.name, _text_of(error))
        try:
            _judge(site, failed, tools)
        except NightbeamError as other:  # must not hide why the mosaic failed
            logger.warning("the scores of %s could not be recorded: %s", row.name, other.what)
        raise
    _judge(site, built, tools)
    return built


def judge_once(site: Site, row: MosaicRow, tools: MosaicTools | None = None) -> None:
    """Judge a mosaic that nobody has judged, because its maker was killed or was an older nightbeam."""
    if not site.products().scores("mosaic", row.name):
        _judge(site, row, tools or MOSAIC_TOOLS)


def _judge(site: Site, row: MosaicRow, tools: MosaicTools) -> None:
    """Record how good a mosaic is and why, with its picture and its figures."""
    from nightbeam.qa import QaArtifact, QaLimits, QaReport, judge_mosaic

    artifacts: list[QaArtifact] = []
    if row.status == "built":
        files = json.loads(row.files or "{}")
        verdicts = _judged(row)
        try:
            if "png" in files:
                picture = site.qa_dir() / row.name / PICTURE
                write_bytes(picture, Path(files["png"]).read_bytes())
                artifacts.append(QaArtifact(row.name, PICTURE, picture))
            artifacts += tools.draw(site, row, verdicts)
        except (InputError, MissingError, FileNotFoundError) as error:
            logger.warning("the figures of %s could not be drawn: %s", row.name, error)
    scores = judge_mosaic(row, QaLimits.from_mapping(site.qa.model_dump()))
    record_quality(site, row.name, QaReport(tuple(artifacts), scores), kind="mosaic")


def _make(site: Site, row: MosaicRow, stem: Path, tools: MosaicTools, *, force: bool) -> MosaicProduct:
    tiles, options = _tiles(row), _options(site, row)
    with storage_errors(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
    catalogue, sources = reference_sources(site, tiles)
    window = _parameters(row).get("window")
    provenance = {"plan": row.plan or row.name, "window": _shown(window), "catalogue": catalogue}
    name = f"mosaic-{row.name}"
    with (
        at_work(site, name, "mosaic", plan_mosaic(site, len(tiles))),
        owned_scratch(site.scratch_dir, name, "build") as scratch,
    ):
        return tools.build(
            site,
            tiles,
            stem,
            options,
            scratch=scratch,
            name=row.name,
            provenance=provenance,
            catalogue=sources,
            rejected=[verdict for verdict in _judged(row) if not verdict.accepted],
            force=force,
        )


def _shown(window: Sequence[float | None] | None) -> str:
    return "/".join("" if mjd is None else iso_z(datetime_from_mjd(mjd)) for mjd in window or ())


def _judged(row: MosaicRow) -> list[TileVerdict]:
    return [TileVerdict.from_json(plain) for plain in json.loads(row.verdicts or "[]")]


def _tiles(row: MosaicRow) -> list[Tile]:
    """Return the tiles of a plan: as they were judged, or by their paths alone in a row of an older pipeline."""
    known = {str(verdict.tile.path): verdict.tile for verdict in _judged(row)}
    return [known.get(line) or Tile(path=Path(line)) for line in row.tiles.splitlines() if line]


def _options(site: Site, row: MosaicRow) -> MosaicOptions:
    told = _parameters(row).get("options")
    return MosaicOptions.from_mapping(told) if told else options_of(site, method=row.method)


def _built(row: MosaicRow, product: MosaicProduct) -> dict[str, Any]:
    # Reasons of the plan are kept: the builder was offered the accepted tiles only.
    later = {verdict.tile.path: verdict for verdict in product.verdicts}
    judged = _judged(row)
    verdicts = [later.pop(v.tile.path, v) if v.accepted else v for v in judged] + list(later.values())
    left = [line for line in _files_left(row) if line != LEFT_BEHIND + str(product.path)]
    issues = [f"{check.name}: {check.text}" for check in product.checks if check.passed is False] + left
    if quick := [verdict.tile.name for verdict in verdicts if verdict.accepted and verdict.tile.quick]:
        issues.append(f"{len(quick)} of its tiles are quick images: {', '.join(quick[:5])}{' ...' * (len(quick) > 5)}")
    measured = ("ra_deg", "dec_deg", "width", "height", "cell_arcsec", "freq_hz", "peak_jy")
    beam = ("beam_major_arcsec", "beam_minor_arcsec", "beam_pa_deg")
    times = ("start_mjd", "mid_mjd", "end_mjd")
    return {
        **{name: getattr(product, name) for name in (*measured, *beam)},
        **{name: value for name in times if (value := getattr(product, name)) is not None},
        "method": product.method,
        "noise_jy": product.noise_least_jy,
        "output_path": str(product.path),
        "files": {**{kind: str(path) for kind, path in product.fits.items()}, "png": str(product.png)},
        "sha256": product.sha256.get(product.path.name),
        "checks": [asdict(check) for check in product.checks],
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "tiles_used": len(product.tiles),
        "tiles_rejected": len([v for v in verdicts if not v.accepted]),
        "parameters": {**_without_before(row), "made": dict(product.parameters)},
        "validation_issues": "\n".join(dict.fromkeys(issues)) or None,
        "version": product.version,
    }


def _without_before(row: MosaicRow) -> dict[str, Any]:
    return {name: value for name, value in _parameters(row).items() if name != "before"}


# -- what people and programs are shown ---------------------------------------------------------------------------


def mosaic_line(row: MosaicRow) -> dict[str, Any]:
    """Return what a list says of a mosaic."""
    return {
        "name": row.name,
        "plan": row.plan,
        "strip": row.strip,
        "status": row.status,
        "observed": None if row.mid_mjd is None else iso_z(datetime_from_mjd(row.mid_mjd)),
        "tiles": row.tiles_used if row.tiles_used is not None else len(row.tiles.splitlines()),
        "rejected": row.tiles_rejected,
        "ra_deg": row.ra_deg,
        "dec_deg": row.dec_deg,
        "noise_mjy": None if row.noise_jy is None else 1e3 * row.noise_jy,
        "good": None
        if row.status != "built"
        else not any(c["passed"] is False for c in json.loads(row.checks or "[]")),
        "image": row.output_path,
        "error": row.error,
    }


def is_good(row: MosaicRow) -> bool | None:
    """Return whether no check of a mosaic failed; None for one that is not built."""
    if row.status != "built":
        return None
    return not any(check["passed"] is False for check in json.loads(row.checks or "[]"))


def verdict_lines(verdicts: Iterable[TileVerdict | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one line for each tile: whether it is used, and every reason why not."""
    plain = [v.to_json() if isinstance(v, TileVerdict) else v for v in verdicts]
    return [
        {
            "tile": v["name"],
            "used": v["accepted"],
            "reasons": "; ".join(r["text"] for r in v["reasons"]),
            "path": v["path"],
        }
        for v in plain
    ]


def mosaic_report(row: MosaicRow) -> dict[str, Any]:
    """Return everything that the products know of a mosaic."""
    measured = ("width", "height", "cell_arcsec", "freq_hz", "beam_major_arcsec", "beam_minor_arcsec", "beam_pa_deg")
    return {
        "mosaic": {
            **mosaic_line(row),
            "method": row.method,
            **{name: getattr(row, name) for name in measured},
            "peak_jy": row.peak_jy,
            "sha256": row.sha256,
            "version": row.version,
        },
        "tiles": verdict_lines(json.loads(row.verdicts or "[]")),
        "checks": json.loads(row.checks or "[]"),
        "files": json.loads(row.files or "{}"),
        "issues": _issues_of(row),
        "before": None if row.status == "built" else _before(row),
    }
