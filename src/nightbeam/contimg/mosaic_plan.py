"""Which tiles make a mosaic: those observed in a window, each judged with its reasons, strip by strip."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nightbeam.catalog.model import ImageRow, MosaicRow
from nightbeam.contimg.site import Site
from nightbeam.core.errors import UsageError
from nightbeam.core.times import datetime_from_mjd, iso_z, mjd_from_datetime
from nightbeam.mosaic.model import MosaicOptions, Reason, ReasonCode, Strip, Tile, TileFacts, TileVerdict
from nightbeam.simulate import SkySource, read_sources, read_truth
from nightbeam.simulate.files import TRUTH_NAME
from nightbeam.sky import Calibrator

if TYPE_CHECKING:
    from nightbeam.mosaic.model import MosaicProduct
    from nightbeam.qa import QaArtifact

__all__ = [
    "MOSAIC_TOOLS",
    "MosaicPlan",
    "MosaicTools",
    "PlannedStrip",
    "Window",
    "catalogue_stamp",
    "check_name",
    "night_inputs",
    "night_of",
    "options_of",
    "plan_mosaic",
    "reference_sources",
    "strip_name",
    "tile_identity",
    "tile_of",
]

logger = logging.getLogger(__name__)

#: Fluxes of a site's catalogue are given at this frequency.
CATALOGUE_HZ = 1.4e9
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_STRIP = re.compile(r"_strip\d+$")
_NO_FILE = "missing"
#: So often tiles are judged at most; each time one of a strip at least is gone.
_ROUNDS = 5
#: No observation of ours lies outside; days near the ends of the calendar have no day before or after them.
_YEARS = (1900, 2100)


@dataclass(frozen=True, slots=True)
class Window:
    """Times of observation, from the first and before the second, MJD (UTC); None: no bound."""

    start_mjd: float | None = None
    end_mjd: float | None = None

    def __post_init__(self) -> None:
        if self.start_mjd is not None and self.end_mjd is not None and self.start_mjd >= self.end_mjd:
            raise UsageError(f"the window {self} is empty", fix="give an end that is after its begin")

    @classmethod
    def of_night(cls, night: str, *, days: int = 1) -> Self:
        """Return the UTC days that end with ``night``.

        Parameters
        ----------
        night
            YYYY-MM-DD.
        days
            How many.

        Raises
        ------
        UsageError
            If it is no day.
        """
        last = date.fromisoformat(night_of(night))
        midnight = datetime(last.year, last.month, last.day, tzinfo=UTC)
        begin, end = midnight - timedelta(days=days - 1), midnight + timedelta(days=1)
        return cls(mjd_from_datetime(begin), mjd_from_datetime(end))

    def __str__(self) -> str:
        begin, end = (
            "ever" if mjd is None else iso_z(datetime_from_mjd(mjd)) for mjd in (self.start_mjd, self.end_mjd)
        )
        return f"{begin}/{end}"


def night_of(text: str) -> str:
    """Return a night as it is written everywhere; one night under two names would have two mosaics.

    Raises
    ------
    UsageError
        If it is no UTC day between 1900 and 2100, or is written in another way than YYYY-MM-DD.
    """
    try:
        found = date.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{text!r} is no night", fix="write it like 2025-10-03, a UTC day") from error
    if text != found.isoformat() or not _YEARS[0] <= found.year < _YEARS[1]:
        raise UsageError(f"{text!r} is no night", fix=f"write it like 2025-10-03, a UTC day: {found.isoformat()}?")
    return text


@dataclass(frozen=True, slots=True)
class MosaicTools:
    """What works on tiles; the real things by default, which are loaded when they are needed."""

    inspect: Callable[[Site, Tile, MosaicOptions, Sequence[Calibrator]], TileFacts]
    judge: Callable[[Sequence[TileFacts], MosaicOptions], Sequence[TileVerdict]]
    split: Callable[[Sequence[Tile], MosaicOptions], Sequence[Strip]]
    build: Callable[..., MosaicProduct]
    draw: Callable[[Site, MosaicRow, Sequence[TileVerdict]], Sequence[QaArtifact]]


@dataclass(frozen=True, slots=True)
class PlannedStrip:
    """One mosaic of a plan.

    Attributes
    ----------
    name, number
        The plan's name, with ``_strip1``, ``_strip2`` and so on for all but the first; 0 for the first.
    strip
        Its tiles.
    verdicts
        On these, and on those that were turned down near them.
    inputs
        Changes with the tiles, with what they hold, and with the options.
    """

    name: str
    number: int
    strip: Strip
    verdicts: tuple[TileVerdict, ...]
    inputs: str


@dataclass(frozen=True, slots=True)
class MosaicPlan:
    """What is to become of the tiles of a window.

    Attributes
    ----------
    strips
        In the order of their first observations; empty if no tile is usable.
    verdicts
        On every tile of the window, in the order of their times.
    candidates
        Each tile's path and what tells whether it has changed.
    catalogue
        What tiles were compared with; empty if with nothing.
    reference
        What changes when the site's catalogue does: `catalogue_stamp`.
    """

    name: str
    window: Window
    options: MosaicOptions
    strips: tuple[PlannedStrip, ...]
    verdicts: tuple[TileVerdict, ...]
    candidates: Mapping[str, str]
    catalogue: str
    reference: list[Any] | None = None

    @property
    def rejected(self) -> tuple[TileVerdict, ...]:
        """The tiles that are not used."""
        return tuple(verdict for verdict in self.verdicts if not verdict.accepted)

    def why_nothing(self) -> str:
        """Say why there is nothing to make, in one line."""
        if not self.verdicts:
            return f"no tile was observed in {self.window}"
        found = [f"{v.tile.name} ({'; '.join(r.text for r in v.reasons)})" for v in self.rejected]
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        return f"none of {len(found)} tiles of {self.window} is usable: {', '.join(found[:5])}{more}"


def check_name(name: str) -> str:
    """Return the name of a plan if it can be one.

    Raises
    ------
    UsageError
        If it cannot be part of a file's name, is what a further strip of another plan is called, or ends as the
        addresses of JSON do.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a mosaic", fix="use up to 100 letters, digits and . _ + -")
    if name.endswith(".json"):
        raise UsageError(f"{name!r} ends in .json, as addresses of the monitor do", fix="choose another name")
    if found := _STRIP.search(name):
        raise UsageError(f"{name!r} ends in {found[0]}, as strips of a plan do", fix="choose another name")
    return name


def strip_name(plan: str, number: int) -> str:
    """Return what the mosaic of a strip is called."""
    return plan if number == 0 else f"{plan}_strip{number}"


def options_of(site: Site, *, method: str | None = None, include_unpbcor: bool | None = None) -> MosaicOptions:
    """Return the options of a site's settings, or of the caller where it says something."""
    known = {f.name for f in dataclasses.fields(MosaicOptions)}
    values = {name: value for name, value in site.mosaic.model_dump().items() if name in known}
    told = {"method": method, "include_unpbcor": include_unpbcor}
    return MosaicOptions.from_mapping(values | {name: value for name, value in told.items() if value is not None})


def tile_of(row: ImageRow) -> Tile:
    """Return the tile that a row of the products is."""
    files = json.loads(row.files or "{}")
    pb = files.get("pb") if isinstance(files, dict) else None
    return Tile(
        path=Path(row.path),
        pb_path=Path(pb) if pb else None,
        group_id=row.group_id,
        ms_path=row.ms_path,
        mid_mjd=row.mid_mjd,
        ra_deg=row.ra_deg,
        dec_deg=row.dec_deg,
        width=row.imsize,
        height=row.imsize,
        cell_arcsec=row.cell_arcsec,
        beam_major_arcsec=row.beam_major_arcsec,
        beam_minor_arcsec=row.beam_minor_arcsec,
        beam_pa_deg=row.beam_pa_deg,
        noise_jy=row.noise_jy,
        dynamic_range=row.dynamic_range,
        freq_hz=row.freq_hz,
        calibration_set=row.calibration_set,
        cal_age_days=row.cal_age_days,
        cal_borrowed=bool(row.cal_borrowed),
        pbcor=bool(row.pbcor),
        quick=bool(row.quick),
    )


def tile_identity(row: ImageRow) -> str:
    """Return what changes when a tile is made again; ``missing`` where its file is."""
    try:
        found = Path(row.path).stat()
    except OSError:
        return _NO_FILE
    return row.sha256 or f"{found.st_size}:{found.st_mtime_ns}"


def catalogue_stamp(site: Site) -> list[Any] | None:
    """Return what changes when the site's catalogue does: its path, size and time; None without one."""
    path = site.mosaic.catalogue
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return [str(path), None, None]
    return [str(path), found.st_size, found.st_mtime_ns]


def night_inputs(site: Site, rows: Iterable[ImageRow]) -> str:
    """Return what changes when a night could end otherwise than before: tiles, options, catalogue."""
    tiles = sorted([row.path, tile_identity(row)] for row in rows)
    content = {"tiles": tiles, "options": _plain_options(options_of(site)), "catalogue": catalogue_stamp(site)}
    return _fingerprint(content)


def has_changed(candidates: Mapping[str, str], before: Mapping[str, str]) -> bool:
    """Return whether there are tiles that were not there before, or that are others now.

    Those that are gone do not count: what was made of them while they were there is no worse for it.
    """
    return any(now not in (_NO_FILE, before.get(path)) for path, now in candidates.items())


def reference_sources(site: Site, tiles: Iterable[Tile]) -> tuple[str, list[Calibrator]]:
    """Return where the sources are written that tiles can be compared with, and these at the tiles' frequency.

    The truth of a simulation where the tiles are simulated, else the site's catalogue, else nothing.

    Raises
    ------
    MissingError, InputError
        If the catalogue cannot be read.
    """
    tiles = list(tiles)
    freqs = sorted(tile.freq_hz for tile in tiles if tile.freq_hz)
    freq_hz = freqs[len(freqs) // 2] if freqs else None
    truth_file = site.input_dir / TRUTH_NAME
    if truth_file.is_file():
        truth = read_truth(truth_file)
        if {tile.group_id for tile in tiles} & {group.group_id for group in truth.groups}:
            return str(truth_file), _at_frequency(truth.sources, truth.reference_freq_hz, freq_hz)
    if site.mosaic.catalogue is not None:
        sources = read_sources(site.mosaic.catalogue)
        return str(site.mosaic.catalogue), _at_frequency(sources, CATALOGUE_HZ, freq_hz)
    return "", []


def _at_frequency(sources: Iterable[SkySource], reference_hz: float, freq_hz: float | None) -> list[Calibrator]:
    ratio = 1.0 if freq_hz is None else freq_hz / reference_hz
    return [Calibrator(s.name, s.ra_deg, s.dec_deg, float(s.flux_jy * ratio**s.spectral_index)) for s in sources]


def plan_mosaic(
    site: Site,
    name: str,
    window: Window = Window(),
    *,
    options: MosaicOptions | None = None,
    tools: MosaicTools | None = None,
) -> MosaicPlan:
    """Look at every tile that was observed in a window, judge it, and say which mosaics are to be made.

    Parameters
    ----------
    site, name
        Where, and what the plan is called.
    window
        Of observation times: when a tile was made, or made again, says nothing of the sky.
    options
        Those of the site by default.
    tools
        What works on tiles.

    Raises
    ------
    UsageError
        If the name cannot be one.
    MissingError, InputError
        If the site's catalogue cannot be read.
    """
    check_name(name)
    options, tools = options or options_of(site), tools or MOSAIC_TOOLS
    rows = site.products().tiles_observed(window.start_mjd, window.end_mjd)
    candidates = {row.path: tile_identity(row) for row in rows}
    reference = catalogue_stamp(site)  # before it is read: what is written meanwhile is read the next time
    catalogue, sources = reference_sources(site, (tile_of(row) for row in rows))
    left_out, facts = _looked_at(rows, candidates, lambda tile: tools.inspect(site, tile, options, sources))
    strips, judged = _strips(facts, options, tools)
    verdicts = tuple(left_out.get(row.path) or judged[Path(row.path)] for row in rows)
    identity = {"options": _plain_options(options), "catalogue": catalogue, "reference": reference}
    planned = tuple(
        PlannedStrip(
            strip_name(name, number),
            number,
            strip,
            _near(number, strips, verdicts),
            _fingerprint({**identity, "tiles": [[str(t.path), candidates[str(t.path)]] for t in strip.tiles]}),
        )
        for number, strip in enumerate(strips)
    )
    return MosaicPlan(name, window, options, planned, verdicts, candidates, catalogue, reference)


def _looked_at(
    rows: Sequence[ImageRow], candidates: Mapping[str, str], look: Callable[[Tile], TileFacts]
) -> tuple[dict[str, TileVerdict], list[TileFacts]]:
    """Return the verdicts, by path, on tiles that need not be looked at, and what the others are.

    Of several images of one observation the newest corrected one that is there and sound serves: the same data twice
    are not half the noise.
    """
    verdicts: dict[str, TileVerdict] = {}
    facts: dict[str, TileFacts] = {}
    observations: dict[str, list[ImageRow]] = {}
    for row in rows:
        if row.mid_mjd is None:
            why = "when it was observed is not known: neither images nor ms_index has its mid_mjd"
            verdicts[row.path] = TileVerdict(tile_of(row), False, (Reason(ReasonCode.MISSING, why),))
        else:
            observations.setdefault(row.ms_path, []).append(row)
    for images in observations.values():
        chosen: ImageRow | None = None
        order = sorted(images, key=lambda r: (candidates[r.path] != _NO_FILE, bool(r.pbcor), r.id), reverse=True)
        for row in order:
            if chosen is None:
                facts[row.path] = look(tile_of(row))
                chosen = None if facts[row.path].problems else row
                continue
            why = f"{Path(chosen.path).name} is a later or corrected image of the same observation"
            verdicts[row.path] = TileVerdict(tile_of(row), False, (Reason(ReasonCode.DUPLICATE, why),))
    return verdicts, [facts[row.path] for row in rows if row.path in facts]


def _strips(
    facts: Sequence[TileFacts], options: MosaicOptions, tools: MosaicTools
) -> tuple[list[Strip], dict[Path, TileVerdict]]:
    """Judge tiles among their neighbours; what is left of a strip is split again where a joining tile is gone.

    And judged again, because medians change with it: who builds it judges what is left, and should find no other.
    """
    by_path = {fact.tile.path: fact for fact in facts}
    unfit = [fact for fact in facts if fact.problems]
    verdicts = {v.tile.path: v for v in tools.judge(unfit, options)} if unfit else {}
    strips: list[Strip] = []
    left = list(tools.split([fact.tile for fact in facts if not fact.problems], options))
    for _ in range(_ROUNDS):
        parts: list[Strip] = []
        for whole in left:
            judged = [_for_a_mean(v) for v in tools.judge([by_path[tile.path] for tile in whole.tiles], options)]
            verdicts |= {verdict.tile.path: verdict for verdict in judged}
            accepted = [verdict.tile for verdict in judged if verdict.accepted]
            if len(accepted) == len(judged):
                strips.append(whole)
            elif accepted:
                parts += tools.split(accepted, options)
        left = parts
    pieces = [piece for strip in [*strips, *left] for piece in _cut(strip, options, tools)]
    return sorted(pieces, key=_time_of), verdicts


def _cut(strip: Strip, options: MosaicOptions, tools: MosaicTools) -> list[Strip]:
    """Return the pieces of a strip, each of which hangs together."""
    from nightbeam.mosaic import cut_strip

    if options.method == "mean":
        return [strip]
    pieces = cut_strip(strip, max_span_deg=options.max_span_deg, overlap_tiles=options.overlap_tiles)
    return pieces if len(pieces) == 1 else [part for piece in pieces for part in tools.split(piece.tiles, options)]


def _for_a_mean(verdict: TileVerdict) -> TileVerdict:
    """Keep a tile that only does not share its pixels with the others, as the plans in use before did.

    A mean of whatever few tiles happen to do is not what was asked for: the build refuses, and says which they are.
    """
    if verdict.reasons and all(reason.code is ReasonCode.NOT_ALIGNED for reason in verdict.reasons):
        return dataclasses.replace(verdict, accepted=True)
    return verdict


def _time_of(strip: Strip) -> tuple[float, float]:
    return strip.start_mjd or 0.0, strip.mid_mjd or 0.0


def _near(number: int, strips: Sequence[Strip], verdicts: Sequence[TileVerdict]) -> tuple[TileVerdict, ...]:
    """Return the verdicts that belong to a strip: on its tiles, and on the rejected ones nearest to it in time."""
    mine = {tile.path for tile in strips[number].tiles}

    def nearest(verdict: TileVerdict) -> int:
        when = verdict.tile.mid_mjd
        if when is None:
            return 0
        return min(range(len(strips)), key=lambda k: abs((strips[k].mid_mjd or 0.0) - when))

    return tuple(v for v in verdicts if (v.tile.path in mine if v.accepted else nearest(v) == number))


def _plain_options(options: MosaicOptions) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(options)))
    return plain


def _fingerprint(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# -- the real things ----------------------------------------------------------------------------------------------


def _inspect(_site: Site, tile: Tile, options: MosaicOptions, sources: Sequence[Calibrator]) -> TileFacts:
    from nightbeam.mosaic import inspect_tile

    return inspect_tile(tile, options=options, catalogue=sources)


def _judge(facts: Sequence[TileFacts], options: MosaicOptions) -> Sequence[TileVerdict]:
    from nightbeam.mosaic import judge_tiles

    return judge_tiles(facts, options)


def _split(tiles: Sequence[Tile], options: MosaicOptions) -> Sequence[Strip]:
    from nightbeam.mosaic import split_strips

    return split_strips(tiles, dec_tolerance_deg=options.dec_tolerance_deg, min_overlap=options.min_overlap)


def _build(site: Site, *args: Any, **keywords: Any) -> MosaicProduct:
    from nightbeam.mosaic import build_mosaic

    return build_mosaic(*args, workers=site.mosaic.workers, block_pixels=site.mosaic.block_pixels, **keywords)


def _draw(site: Site, row: MosaicRow, verdicts: Sequence[TileVerdict]) -> Sequence[QaArtifact]:
    from nightbeam.qa import write_mosaic_qa

    assert row.output_path is not None  # it is built
    noise = json.loads(row.files or "{}").get("noise")
    return write_mosaic_qa(
        row.name,
        site.qa_dir(),
        Path(row.output_path),
        Path(noise) if noise else None,
        tiles=[v.tile.path for v in verdicts if v.accepted],
        rejected=[v.tile.path for v in verdicts if not v.accepted],
    )


MOSAIC_TOOLS = MosaicTools(_inspect, _judge, _split, _build, _draw)
