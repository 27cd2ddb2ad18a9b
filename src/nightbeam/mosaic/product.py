"""From tiles to a finished, measured, described mosaic: made aside in blocks, published as one."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam import __version__
from nightbeam.core.errors import InputError, MissingError, RejectedError, UsageError
from nightbeam.core.files import (
    part_path,
    remove,
    remove_parts,
    replace_path,
    require_space,
    scratch_directory,
    sha256,
    storage_errors,
)
from nightbeam.core.locks import sole_owner
from nightbeam.core.times import iso_z, utc_now
from nightbeam.imaging.figures import draw_image, save_png
from nightbeam.imaging.files import SkyImage, set_cards
from nightbeam.mosaic.compute import (
    BLANK_MARGIN_PX,
    NOISE_SAMPLES,
    Block,
    BlockFigures,
    Combination,
    Sums,
    common_grid,
    footprint,
    grid_blocks,
    grid_wcs,
    interpolation_factor,
    mean_beam,
    measure_block,
    sampled_noise,
)
from nightbeam.mosaic.files import (
    NotUsableError,
    PlaneFile,
    PlaneWriter,
    against_catalogue,
    describe_mosaic,
    fits_time,
    inspect_tile,
    middle_piece,
    mosaic_sidecar_path,
    open_plane,
    outline_of,
    read_mosaic,
    reading,
    tile_planes,
    verify_mosaic,
    write_mosaic,
)
from nightbeam.mosaic.judging import judge_mosaic, judge_tiles
from nightbeam.mosaic.model import (
    MOSAIC_KINDS,
    MosaicKind,
    MosaicOptions,
    MosaicProduct,
    ReasonCode,
    SkyGrid,
    Strip,
    Tile,
    TileUse,
    TileVerdict,
    mosaic_path,
)
from nightbeam.sky.model import Calibrator

__all__ = ["build_mosaic"]

logger = logging.getLogger(__name__)

#: Part of the tile about a block's that the spline needs before it has died away.
_SPLINE_MARGIN_PX = 12
_MOST_PICTURE_PX = 1600
#: Side of the parts whose noise is compared: enough beams that chance is small.
_PART_BEAMS, _LEAST_PART_PX = 16, 64
_AGAIN = "plan and build the mosaic again"
#: What of a tile's header describes its pixels.
_GRID_CARDS = ("CTYPE", "CUNIT", "CRVAL", "CRPIX", "CDELT", "PC", "PV", "LONPOLE", "LATPOLE", "RADESYS", "EQUINOX")


@dataclass(frozen=True)
class _LaidTile:
    tile: Tile
    image: PlaneFile
    pb: PlaneFile | None
    factor: float
    boxes: tuple[Block, ...]

    @property
    def sigma(self) -> float:
        return self.factor * float(self.tile.noise_jy or math.nan)


@dataclass(frozen=True)
class _Measured:
    """What is known of a mosaic when its pixels are written; before that everything is 0."""

    noise_least: float = 0.0
    noise_median: float = 0.0
    peak: float = 0.0
    peak_ra: float = 0.0
    peak_dec: float = 0.0
    covered: float = 0.0
    beam: tuple[float, float, float] = (0.0, 0.0, 0.0)
    freq_hz: float | None = None
    shares: tuple[float, ...] = ()


def build_mosaic(
    tiles: Sequence[Tile],
    stem: Path,
    options: MosaicOptions | None = None,
    *,
    scratch: Path,
    name: str,
    provenance: Mapping[str, str] | None = None,
    catalogue: Sequence[Calibrator] = (),
    rejected: Sequence[TileVerdict] = (),
    workers: int = 2,
    block_pixels: int = 1024,
    force: bool = False,
) -> MosaicProduct:
    """Inspect and judge tiles, combine those that are good, and measure and describe what came out.

    Parameters
    ----------
    tiles
        Of one strip; what of them is not known is read from their files.
    stem
        What the names of the products begin with, e.g. ``mosaics/night_2025_10_02``: beside it appear ``.image.fits``,
        ``.weight.fits``, ``.noise.fits``, ``.png`` and, last of all, ``.json``, whose presence says that it is whole.
    options
        What it is; the defaults of `MosaicOptions` if not given.
    scratch
        Where a scratch directory is made; it is gone when this returns.
    name
        What it is called in headers and reports.
    provenance
        Goes into the FITS headers and the description.
    catalogue
        Sources that tiles and mosaic are compared with.
    rejected
        What was turned down before, when the mosaic was planned; counted and named in the headers.
    workers, block_pixels
        Threads, and the side of the pieces in which they work: memory is theirs, whatever the number of tiles and the
        size of the mosaic. The result does not depend on them but by the rounding of interpolation.
    force
        Make it again even if a finished mosaic of the same tiles and options is there.

    Returns
    -------
    MosaicProduct
        The one that was there, if it is of the same tiles, options and catalogue and its files are unchanged; else a
        new one. Its checks may have failed: ``product.good``.

    Raises
    ------
    InputError
        If there is no tile, if tiles are of several strips, if a plain mean is asked of tiles that do not share their
        pixels, or if one changes meanwhile.
    RejectedError
        If no tile is good; with every reason.
    BusyError
        If somebody else is making the same mosaic.
    StorageError
        If there is no room.
    """
    options, stem = options or MosaicOptions(), stem.absolute()
    if not tiles:
        raise InputError(f"no tile to make the mosaic {name} of", fix="choose another time, or make images first")
    if not stem.name or stem.is_dir():
        raise UsageError(f"{stem} is no name for a mosaic", fix="give a directory and the beginning of a name")
    with storage_errors(stem), sole_owner(stem.with_name(f".{stem.name}.lock"), what=f"the mosaic {stem.name}"):
        before = _fingerprint(tiles, options, name, catalogue)
        if not force and (found := _finished(stem, before)):
            logger.info("%s is finished already", stem.name)
            return found
        for path in _files_of(stem):
            remove_parts(path)  # of one that was killed while publishing
        work = scratch_directory(scratch.absolute(), owner="mosaic")
        try:
            product = _make(
                tiles,
                stem,
                options,
                work,
                name,
                dict(provenance or {}),
                catalogue,
                rejected,
                before,
                workers,
                block_pixels,
            )
            if _fingerprint(tiles, options, name, catalogue) != before:
                raise InputError(f"a tile of {name} was changed while it was read", fix="build the mosaic again")
            return _publish(product)
        finally:
            remove(work)


def _files_of(stem: Path) -> list[Path]:
    planes = [mosaic_path(stem, kind) for kind in MOSAIC_KINDS]
    return [*planes, stem.with_name(stem.name + ".png"), mosaic_sidecar_path(stem)]


def _fingerprint(tiles: Sequence[Tile], options: MosaicOptions, name: str, catalogue: Sequence[Calibrator]) -> str:
    files = [[_stamp(t.path), None if t.pb_path is None else _stamp(t.pb_path)] for t in tiles]
    plain = [[t.to_json() for t in tiles], files, asdict(options), name, [asdict(c) for c in catalogue]]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except OSError:  # why is told by who opens it
        return None
    return [found.st_size, found.st_mtime_ns]


def _finished(stem: Path, before: str) -> MosaicProduct | None:
    try:
        product = read_mosaic(stem)
        if product.input_fingerprint != before or product.version != __version__:
            return None
        verify_mosaic(product)
    except (MissingError, InputError) as error:
        if mosaic_sidecar_path(stem).exists():
            logger.warning("%s is made again: %s", stem.name, error.what)
        return None
    return product


def _make(
    tiles: Sequence[Tile],
    stem: Path,
    options: MosaicOptions,
    work: Path,
    name: str,
    provenance: dict[str, str],
    catalogue: Sequence[Calibrator],
    rejected: Sequence[TileVerdict],
    before: str,
    workers: int,
    block_pixels: int,
) -> MosaicProduct:
    begin = time.monotonic()
    verdicts = judge_tiles([inspect_tile(t, options=options, catalogue=catalogue) for t in tiles], options)
    good = _good(verdicts, name)
    planes = [_opened(tile) for tile in good]
    outlines = [outline_of(image) for image, _ in planes]
    grid = _shared_grid(good, planes) if options.method == "mean" else common_grid(good, outlines=outlines)
    for place in {work, stem.parent}:
        require_space(place, 3 * 4 * grid.width * grid.height + 2**21, what=f"the mosaic {name}")
    laid = [
        _lay(tile, image, pb, grid, outline, options)
        for tile, (image, pb), outline in zip(good, planes, outlines, strict=True)
    ]
    header = _Headers(name, grid, laid, [*verdicts, *rejected], options, provenance)
    paths = {kind: work / f"mosaic.{kind}.fits" for kind in MOSAIC_KINDS}
    figures, shares = _fill(paths, header, grid, laid, options, workers, block_pixels)
    measured = _measure(figures, shares, grid, laid)
    for kind, path in paths.items():
        header.rewrite(path, kind, measured)
    against = None
    if catalogue:
        against = against_catalogue(open_plane(paths["image"]), open_plane(paths["noise"]), catalogue, options)
    png = work / "mosaic.png"
    title = f"{name}, {len(good)} tiles"
    title += "" if measured.freq_hz is None else f", {measured.freq_hz / 1e6:.0f} MHz"
    save_png(draw_image(_small(open_plane(paths["image"]), block_pixels), title=title), png)
    strip = Strip(tuple(good))
    return MosaicProduct(
        stem=stem,
        name=name,
        method=options.method,
        fits=dict(paths),
        png=png,
        width=grid.width,
        height=grid.height,
        projection=grid.projection,
        ra_deg=grid.ra_deg,
        dec_deg=grid.dec_deg,
        cell_arcsec=grid.cell_arcsec,
        beam_major_arcsec=measured.beam[0],
        beam_minor_arcsec=measured.beam[1],
        beam_pa_deg=measured.beam[2],
        freq_hz=measured.freq_hz,
        start_mjd=strip.start_mjd,
        mid_mjd=strip.mid_mjd,
        end_mjd=strip.end_mjd,
        noise_least_jy=measured.noise_least,
        noise_median_jy=measured.noise_median,
        peak_jy=measured.peak,
        peak_ra_deg=measured.peak_ra,
        peak_dec_deg=measured.peak_dec,
        covered_fraction=measured.covered,
        tiles=tuple(_use(one, share) for one, share in zip(laid, measured.shares, strict=True)),
        verdicts=tuple(verdicts),
        checks=judge_mosaic(figures, grid.width * grid.height, against, options),
        made_at=utc_now(),
        seconds=round(time.monotonic() - begin, 3),
        version=__version__,
        versions={"nightbeam": __version__, **{p: version_of(p) for p in ("reproject", "astropy", "scipy", "numpy")}},
        parameters={"block_pixels": block_pixels, "workers": workers, "catalogue_sources": len(catalogue)},
        provenance=provenance,
        options=options,
        input_fingerprint=before,
    )


def _good(verdicts: Sequence[TileVerdict], name: str) -> list[Tile]:
    apart = [v for v in verdicts if any(r.code is ReasonCode.STRIP for r in v.reasons)]
    if apart:
        told = _told(apart, ReasonCode.STRIP)
        raise InputError(
            f"the tiles of {name} are of more than one strip:\n{told}", fix="build one mosaic for each strip"
        )
    crooked = [v for v in verdicts if any(r.code is ReasonCode.NOT_ALIGNED for r in v.reasons)]
    if crooked:
        told = _told(crooked, ReasonCode.NOT_ALIGNED)
        raise InputError(f"the tiles of {name} do not share their pixels:\n{told}", fix="use the method weighted")
    good = [v.tile for v in verdicts if v.accepted]
    if not good:
        raise RejectedError(
            f"none of {len(verdicts)} tiles of {name} is good:\n{_told(verdicts)}",
            fix="correct or leave out what is named",
        )
    return good


def _opened(tile: Tile) -> tuple[PlaneFile, PlaneFile | None]:
    try:
        return tile_planes(tile)
    except NotUsableError as error:  # it was sound a moment ago
        raise InputError(f"the tile {tile.name} was changed while it was read: {error.what}", fix=_AGAIN) from error


def _told(verdicts: Sequence[TileVerdict], code: ReasonCode | None = None) -> str:
    lines = [f"  {v.tile.name}: {r.text}" for v in verdicts for r in v.reasons if code in (None, r.code)]
    more = [f"  and {len(lines) - 20} more"] if len(lines) > 20 else []
    return "\n".join(lines[:20] + more)


def _shared_grid(tiles: Sequence[Tile], planes: Sequence[tuple[PlaneFile, PlaneFile | None]]) -> SkyGrid:
    """Return the pixels that all tiles have, or say that they have not the same."""
    first = planes[0][0]
    border = outline_of(first)
    for tile, (image, _) in zip(tiles[1:], planes[1:], strict=True):
        if np.abs((outline_of(image) - border + 180.0) % 360.0 - 180.0).max() > 0.05 * first.cell_arcsec / 3600.0:
            raise InputError(
                f"{tile.name} and {tiles[0].name} do not share their pixels, as a plain mean needs",
                fix="use the method weighted",
            )
    cards = {k: v for k, v in first.wcs.to_header().items() if k.startswith(_GRID_CARDS)}
    return SkyGrid(
        projection=str(cards["CTYPE1"])[-3:],
        width=first.width,
        height=first.height,
        cell_arcsec=first.cell_arcsec,
        ra_deg=float(tiles[0].ra_deg or 0.0),
        dec_deg=float(tiles[0].dec_deg or 0.0),
        cards=cards,
    )


def _lay(
    tile: Tile,
    image: PlaneFile,
    pb: PlaneFile | None,
    grid: SkyGrid,
    outline: NDArray[np.floating[Any]],
    options: MosaicOptions,
) -> _LaidTile:
    if options.method == "mean":
        return _LaidTile(tile, image, pb, 1.0, (Block(0, 0, grid.width, grid.height),))
    flat, _ = _flat(tile, image, pb, middle_piece(image))
    return _LaidTile(tile, image, pb, interpolation_factor(flat), tuple(footprint(grid, outline)))


def _flat(
    tile: Tile, image: PlaneFile, pb: PlaneFile | None, piece: Block
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a piece of an image with the beam on it, whose noise is uniform, and the beam."""
    data = image.read(piece)
    level = np.ones_like(data) if pb is None else pb.read(piece)
    return (data * level if tile.pbcor else data), level


def _fill(
    paths: Mapping[MosaicKind, Path],
    header: _Headers,
    grid: SkyGrid,
    laid: Sequence[_LaidTile],
    options: MosaicOptions,
    workers: int,
    block_pixels: int,
) -> tuple[list[BlockFigures], list[float]]:
    """Write all blocks, several at a time; returns what was measured on each, and every tile's sum of weights."""
    beam_px = float(laid[0].tile.beam_major_arcsec or 0.0) / grid.cell_arcsec
    part_px = max(_LEAST_PART_PX, math.ceil(_PART_BEAMS * beam_px))
    blocks = grid_blocks(grid.width, grid.height, max(block_pixels, part_px))
    wcs = grid_wcs(grid.cards)
    most = max(16, NOISE_SAMPLES // len(blocks))
    writers = {kind: PlaneWriter(path, header.of(kind), grid.width, grid.height) for kind, path in paths.items()}

    def work(block: Block) -> tuple[BlockFigures, list[float]]:
        found, shares = _combine(block, wcs, laid, options)
        with np.errstate(divide="ignore"):
            noise = np.where(found.weight > 0, 1.0 / np.sqrt(found.weight), np.nan)
        writers["image"].write(block, found.image)
        writers["weight"].write(block, found.weight)
        writers["noise"].write(block, noise)
        return measure_block(found, block, part_px=part_px, samples=most), shares

    try:
        with ThreadPoolExecutor(max(1, workers), thread_name_prefix="mosaic") as pool:
            try:
                done = list(pool.map(work, blocks))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for writer in writers.values():
            writer.close()
    return [figures for figures, _ in done], [math.fsum(s) for s in zip(*(shares for _, shares in done), strict=True)]


def _combine(
    block: Block, grid: Any, laid: Sequence[_LaidTile], options: MosaicOptions
) -> tuple[Combination, list[float]]:
    sums, shares = Sums(block.shape), [0.0] * len(laid)
    for k, one in enumerate(laid):
        for piece in filter(None, (box.meet(block) for box in one.boxes)):
            where = (
                slice(piece.y0 - block.y0, piece.y1 - block.y0),
                slice(piece.x0 - block.x0, piece.x1 - block.x0),
            )
            if options.method == "mean":
                shares[k] += _add_plain(sums, where, one, piece)
            elif (planes := _resampled(one, piece, grid)) is not None:
                shares[k] += sums.add(where, *planes, noise_jy=one.sigma, cut=options.pb_cut)
    return sums.result(), shares


def _add_plain(sums: Sums, where: tuple[slice, slice], one: _LaidTile, piece: Block) -> float:
    data = one.image.read(piece)
    noise: Any = one.sigma
    if one.pb is not None and one.tile.pbcor:
        level = one.pb.read(piece)
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = one.sigma / level
        data = np.where(np.isfinite(noise), data, np.nan)
    return sums.add_plain(where, data, noise)


def _resampled(one: _LaidTile, piece: Block, grid: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return flat image and beam of a tile on a piece of the grid, NaN where there is none; None if nowhere."""
    from nightbeam.mosaic.resample import interpolate, places

    x, y = places(piece, grid, one.image.wcs)
    width, height = one.image.width, one.image.height
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    if not inside.any():
        return None
    margin = _SPLINE_MARGIN_PX
    cut = Block(
        max(0, math.floor(x[inside].min()) - margin),
        max(0, math.floor(y[inside].min()) - margin),
        min(width, math.ceil(x[inside].max()) + margin + 1),
        min(height, math.ceil(y[inside].max()) + margin + 1),
    )
    flat, level = _flat(one.tile, one.image, one.pb, cut)
    known = np.isfinite(flat) & np.isfinite(level)
    if not known.any():
        return None
    near: NDArray[np.bool_] | None = None
    if not known.all():
        near = _near_blank(known)
        flat, level = np.where(known, flat, 0.0), np.where(known, level, 0.0)
    x, y = x - cut.x0, y - cut.y0
    found, beam = iter(interpolate(np.stack([flat, level]), x, y))
    if near is not None:
        rows = np.clip(np.rint(y), 0, near.shape[0] - 1).astype(np.intp)
        cols = np.clip(np.rint(x), 0, near.shape[1] - 1).astype(np.intp)
        found[near[rows, cols]] = np.nan
    found[~inside] = np.nan
    return found, beam


def _near_blank(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what lies so near to blank pixels that the zeros put there would be seen."""
    from scipy.ndimage import minimum_filter

    clear: NDArray[np.bool_] = minimum_filter(known, size=2 * BLANK_MARGIN_PX + 1, mode="nearest")
    return ~clear


def _measure(
    figures: Sequence[BlockFigures], shares: Sequence[float], grid: SkyGrid, laid: Sequence[_LaidTile]
) -> _Measured:
    covered = sum(f.covered for f in figures)
    if covered == 0:
        raise RejectedError("the mosaic is blank: no pixel of a tile is above pb_cut", fix="lower pb_cut")
    top = max(figures, key=lambda f: f.peak_jy)
    ra, dec = grid_wcs(grid.cards).wcs_pix2world(top.peak_x, top.peak_y, 0)
    total = math.fsum(shares)
    tiles = [one.tile for one in laid]
    beams = [
        (float(t.beam_major_arcsec or 0.0), float(t.beam_minor_arcsec or 0.0), float(t.beam_pa_deg or 0.0))
        for t in tiles
    ]
    freqs = [(share, t.freq_hz) for share, t in zip(shares, tiles, strict=True) if t.freq_hz]
    return _Measured(
        noise_least=min(f.noise_least_jy for f in figures),
        noise_median=float(np.median(sampled_noise(figures))),
        peak=top.peak_jy,
        peak_ra=float(ra) % 360.0,
        peak_dec=float(dec),
        covered=covered / (grid.width * grid.height),
        beam=mean_beam(beams, shares),
        freq_hz=math.fsum(s * f for s, f in freqs) / math.fsum(s for s, _ in freqs) if freqs else None,
        shares=tuple(share / total for share in shares),
    )


def _use(one: _LaidTile, share: float) -> TileUse:
    tile = one.tile
    return TileUse(
        path=tile.path,
        name=tile.name,
        noise_jy=float(tile.noise_jy or 0.0),
        interpolation_factor=one.factor,
        beam_major_arcsec=float(tile.beam_major_arcsec or 0.0),
        beam_minor_arcsec=float(tile.beam_minor_arcsec or 0.0),
        beam_pa_deg=float(tile.beam_pa_deg or 0.0),
        share=share,
        sha256=_digest(tile.path),
    )


def _digest(path: Path) -> str:
    with reading(path):
        return sha256(path)


@dataclass(frozen=True)
class _Headers:
    """The FITS headers of one mosaic. With other numbers they have as many cards, so that they can be written twice."""

    name: str
    grid: SkyGrid
    laid: Sequence[_LaidTile]
    verdicts: Sequence[TileVerdict]
    options: MosaicOptions
    provenance: Mapping[str, str]

    def of(self, kind: MosaicKind, measured: _Measured | None = None) -> Any:
        """Return the header of one file."""
        from astropy.io.fits import Header

        m = measured or _Measured()
        header = Header()
        first = self.laid[0].image.header
        crval3 = {"CRVAL3": m.freq_hz or 0.0} if self._has_frequency() else {}
        specsys = self._common("SPECSYS")
        freq_width = first.get("BANDWID", first.get("CDELT3", 1.0))
        unit, what = {
            "image": ("Jy/beam", "Intensity"),
            "weight": ("beam2/Jy2", "Weight"),
            "noise": ("Jy/beam", "Noise"),
        }[kind]
        axes = {
            "SIMPLE": True, "BITPIX": -32, "NAXIS": 4,
            "NAXIS1": self.grid.width, "NAXIS2": self.grid.height, "NAXIS3": 1, "NAXIS4": 1,
            "EXTEND": True, "BUNIT": unit, "BTYPE": what,
            **self.grid.cards,
            "CTYPE3": "FREQ", "CUNIT3": "Hz", **crval3, "CRPIX3": 1.0, "CDELT3": float(freq_width),
            **({"SPECSYS": specsys} if specsys else {}),
            "CTYPE4": "STOKES", "CUNIT4": "", "CRVAL4": 1.0, "CRPIX4": 1.0, "CDELT4": 1.0,
        }  # fmt: skip
        for card, value in axes.items():
            header[card] = value
        set_cards(header, self._cards(m), self._history())
        return header

    def rewrite(self, path: Path, kind: MosaicKind, measured: _Measured) -> None:
        """Put the numbers into the header of a file that is written."""
        with storage_errors(path), path.open("r+b") as out:
            out.write(self.of(kind, measured).tostring().encode("ascii"))

    def _has_frequency(self) -> bool:
        """Return whether there is one to write; before it is measured as well, for the number of cards stays."""
        return any(one.tile.freq_hz for one in self.laid)

    def _common(self, card: str) -> str:
        """Return what all tiles have in a card, or nothing."""
        found = {one.image.header.get(card) for one in self.laid}
        return str(found.pop() or "") if len(found) == 1 else ""

    def _cards(self, m: _Measured) -> dict[str, tuple[Any, str]]:
        strip = Strip(tuple(one.tile for one in self.laid))
        sets = {one.tile.calibration_set for one in self.laid} - {None}
        times: dict[str, tuple[Any, str]] = {}
        for word, mjd, meaning in (
            ("OBS", strip.start_mjd, "beginning of the first tile"),
            ("AVG", strip.mid_mjd, "middle"),
            ("END", strip.end_mjd, "end of the last tile"),
        ):
            if mjd is not None:
                times[f"DATE-{word}"] = (fits_time(mjd), meaning)
                times[f"MJD-{word}"] = (mjd, "[d]")
        return {
            "BMAJ": (m.beam[0] / 3600.0, "[deg] weighted mean of the tiles' beams"),
            "BMIN": (m.beam[1] / 3600.0, "[deg]"),
            "BPA": (m.beam[2], "[deg] north to east"),
            "OBJECT": (self.name[:60], ""),
            "TELESCOP": (self._common("TELESCOP"), ""),
            "TIMESYS": ("UTC", ""),
            **times,
            **({"RESTFRQ": (m.freq_hz or 0.0, "[Hz]")} if self._has_frequency() else {}),
            "NOISE": (m.noise_median, "[Jy/beam] median of the noise map"),
            "NOISEMIN": (m.noise_least, "[Jy/beam] least of the noise map"),
            "PEAK": (m.peak, "[Jy/beam] brightest pixel"),
            "COVERED": (m.covered, "covered fraction of the grid"),
            "MOSAIC": (self.options.method, "how tiles were combined"),
            "PBCUT": (self.options.pb_cut, "beam level below which a tile does not count"),
            "NTILES": (len(self.laid), "tiles used"),
            "NREJECT": (sum(not v.accepted for v in self.verdicts), "tiles rejected"),
            "CALSET": (str(next(iter(sets))) if len(sets) == 1 else f"{len(sets)} sets", "calibration of the tiles"),
            "CREATOR": (f"nightbeam {__version__}", ""),
        }

    def _history(self) -> list[str]:
        lines = [f"nightbeam: mosaic made {iso_z(utc_now())} on a {self.grid.projection} grid"]
        lines += [f"nightbeam: {name} = {value}" for name, value in sorted(self.provenance.items())]
        lines += [f"nightbeam: option {name} = {value!r}" for name, value in sorted(asdict(self.options).items())]
        for one in self.laid:
            tile = one.tile
            lines.append(
                f"nightbeam: tile {tile.path.name}: noise {1e3 * float(tile.noise_jy or 0):.4g} mJy/beam x "
                f"{one.factor:.4f}, beam {tile.beam_major_arcsec:.2f} x {tile.beam_minor_arcsec:.2f} arcsec at "
                f"{tile.beam_pa_deg:.1f} deg"
            )
        for verdict in self.verdicts:
            for reason in verdict.reasons:
                lines.append(f"nightbeam: not used: {verdict.tile.path.name}: {reason.code}: {reason.text}")
        return lines


def _small(image: PlaneFile, side: int) -> SkyImage:
    """Return a picture's worth of an image: of each square of pixels the brightest, so that no source is lost.

    It is read in pieces of about ``side`` pixels.
    """
    step = max(1, math.ceil(max(image.width, image.height) / _MOST_PICTURE_PX))
    data = np.full((-(-image.height // step), -(-image.width // step)), -np.inf, np.float32)
    side = step * max(1, side // step)  # of whole cells, so that each is seen at once; one cell at least
    for block in grid_blocks(image.width, image.height, side):
        piece = image.read(block)
        filled = np.full([-(-n // step) * step for n in piece.shape], -np.inf, np.float32)
        filled[: piece.shape[0], : piece.shape[1]] = np.where(np.isfinite(piece), piece, -np.inf)
        cells = filled.reshape(filled.shape[0] // step, step, -1, step).max(axis=(1, 3))
        y, x = block.y0 // step, block.x0 // step
        data[y : y + cells.shape[0], x : x + cells.shape[1]] = cells
    data[~np.isfinite(data)] = np.nan
    header, wcs = image.header.copy(), image.wcs.deepcopy()
    wcs.wcs.crpix = (np.asarray(wcs.wcs.crpix) - 0.5) / step + 0.5
    wcs.wcs.cdelt = np.asarray(wcs.wcs.cdelt) * step
    header["CDELT2"] = float(header["CDELT2"]) * step
    return SkyImage(image.path, data, header, wcs)


def _publish(product: MosaicProduct) -> MosaicProduct:
    """Bring everything beside its final name, then rename it all; the description goes first and comes last."""
    import shutil

    stem = product.stem
    targets = {kind: mosaic_path(stem, kind) for kind in MOSAIC_KINDS}
    png = stem.with_name(stem.name + ".png")
    moves = [(product.fits[kind], target) for kind, target in targets.items()] + [(product.png, png)]
    parts = [(part_path(target), target) for _, target in moves]
    try:
        for (source, _), (part, _) in zip(moves, parts, strict=True):
            shutil.move(source, part)  # a rename, or a copy where scratch is another file system
        digests = {target.name: sha256(part) for part, target in parts}
        product = replace(product, fits=targets, png=png, sha256=digests)
        description = describe_mosaic(product)  # while nothing is replaced yet
        mosaic_sidecar_path(stem).unlink(missing_ok=True)
        for part, target in parts:
            replace_path(part, target)
    finally:
        for part, _ in parts:
            remove(part)
    write_mosaic(stem, description)
    return product
