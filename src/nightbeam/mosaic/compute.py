"""Which tiles belong together, on what grid they are laid, how they are weighed, and what came out. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError
from nightbeam.imaging.compute import robust_noise
from nightbeam.mosaic.model import (
    SkyGrid,
    Strip,
    Tile,
)

__all__ = [
    "NOISE_SAMPLES",
    "Block",
    "BlockFigures",
    "CatalogueFigures",
    "Combination",
    "Place",
    "Sums",
    "circular_mean_deg",
    "combine",
    "common_grid",
    "cut_strip",
    "footprint",
    "grid_blocks",
    "grid_wcs",
    "interpolation_factor",
    "mean_beam",
    "measure_block",
    "place_of",
    "sampled_noise",
    "split_strips",
    "tile_outline",
]

Floats = NDArray[np.floating[Any]]

#: Within this angle of its middle a mosaic is laid on a plane (ZEA); there it stretches shapes by at most 0.8 %.
COMPACT_DEG = 10.0
#: Nearer to a pole than this a cylinder along the equator would stretch shapes too much.
POLAR_DEC_DEG = 60.0
#: Pixels across the narrow side of a beam below which a grid would lose it.
PIXELS_PER_BEAM = 3.0
MOST_PIXELS = 2**32
#: Far enough from blank pixels that the spline through them, filled with zeros, has died away.
BLANK_MARGIN_PX = 4


def circular_mean_deg(angles_deg: Sequence[float]) -> float:
    """Return the mean direction of angles, 0 to 360: that of 359 and 1 is 0.

    Raises
    ------
    InputError
        If there is none: no angle, or angles that cancel each other.
    """
    east = math.fsum(math.sin(math.radians(a)) for a in angles_deg)
    north = math.fsum(math.cos(math.radians(a)) for a in angles_deg)
    if not math.hypot(east, north) > 1e-9 * max(len(angles_deg), 1):
        raise InputError("these right ascensions have no mean: they go all around", fix="split them into strips")
    return math.degrees(math.atan2(east, north)) % 360.0


class Place(NamedTuple):
    """Centre, width and height of a tile, degrees."""

    ra: float
    dec: float
    width: float
    height: float


def split_strips(tiles: Sequence[Tile], *, dec_tolerance_deg: float = 1.0, min_overlap: float = 0.0) -> list[Strip]:
    """Return the strips that tiles form on the sky.

    Parameters
    ----------
    tiles
        With centre, size and pixel size.
    dec_tolerance_deg
        No two tiles of a strip are farther apart in declination.
    min_overlap
        Neighbours have more than this fraction of a tile in common, along both axes.

    Returns
    -------
    list of Strip
        In the order in which they were observed (those of unknown time last). Each is ordered by right ascension, which
        is the order in which it drifted through the beam; it begins after its widest gap, so that one across 0 h stays
        in one piece.

    Raises
    ------
    InputError
        If the place or the size of a tile is not known.
    """
    # Bands are laid through what hangs together, and only where that is too high: a tile elsewhere shifts none.
    strips = [
        Strip(tuple(_eastwards(part)))
        for whole in _connected(list(tiles), min_overlap, dec_tolerance_deg)
        for band in _bands(whole, dec_tolerance_deg)
        for part in _connected(band, min_overlap, dec_tolerance_deg)
    ]
    return sorted(strips, key=lambda s: (s.start_mjd is None, s.start_mjd or 0.0, s.ra_deg, s.dec_deg))


def place_of(tile: Tile) -> Place:
    """Return where a tile lies, in degrees.

    Raises
    ------
    InputError
        If its place or size is not known.
    """
    numbers = tile.ra_deg, tile.dec_deg, tile.width, tile.height, tile.cell_arcsec
    if not all(n is not None and math.isfinite(n) for n in numbers):
        raise InputError(f"where {tile.name} lies is not known", fix="inspect the tile first")
    ra, dec, width, height, cell = (float(n) for n in numbers if n is not None)
    return Place(ra % 360.0, dec, width * cell / 3600.0, height * cell / 3600.0)


def _bands(tiles: Sequence[Tile], tolerance: float) -> Iterator[list[Tile]]:
    band: list[Tile] = []
    for tile in sorted(tiles, key=lambda t: place_of(t).dec):
        if band and place_of(tile).dec - place_of(band[0]).dec > tolerance:
            yield band
            band = []
        band.append(tile)
    if band:
        yield band


def _connected(tiles: list[Tile], min_overlap: float, tolerance: float) -> Iterator[list[Tile]]:
    places = {id(tile): place_of(tile) for tile in tiles}

    def touch(one: Tile, other: Tile) -> bool:
        here, there = places[id(one)], places[id(other)]
        return abs(here.dec - there.dec) <= tolerance and _overlap(here, there, min_overlap)

    left = list(tiles)
    while left:
        part, border = [], [left.pop(0)]
        while border:
            tile = border.pop()
            part.append(tile)
            near = [other for other in left if touch(tile, other)]
            left = [other for other in left if not any(other is n for n in near)]
            border += near
        yield part


def _overlap(one: Place, other: Place, least: float) -> bool:
    across = abs((one.ra - other.ra + 180.0) % 360.0 - 180.0)
    parallel = math.cos(math.radians(0.5 * (one.dec + other.dec)))
    along = 2.0 * math.degrees(math.asin(min(1.0, parallel * math.sin(math.radians(0.5 * across)))))
    return along < 0.5 * (one.width + other.width) * (1.0 - least) and abs(one.dec - other.dec) < 0.5 * (
        one.height + other.height
    ) * (1.0 - least)


def _eastwards(tiles: list[Tile]) -> list[Tile]:
    ordered = sorted(tiles, key=lambda t: (place_of(t).ra, t.mid_mjd or 0.0, str(t.path)))
    ras = [place_of(t).ra for t in ordered]
    gaps = [(ras[k] - ras[k - 1]) % 360.0 for k in range(len(ras))]
    first = max(range(len(gaps)), key=gaps.__getitem__)
    return ordered[first:] + ordered[:first]


def cut_strip(strip: Strip, *, max_span_deg: float, overlap_tiles: int = 2) -> list[Strip]:
    """Return the pieces of a strip that is longer than one mosaic is to be; itself if it is not.

    It is cut at fixed right ascensions, multiples of the limit (or of a little less, where that does not go into the
    circle), so that a tile that comes late changes its own piece and at most the one before. What would be shorter than
    a quarter of that belongs to its neighbour.

    Parameters
    ----------
    strip
        As `split_strips` gives it.
    max_span_deg
        Right ascension from the first centre of a piece to its last, before others are added to it.
    overlap_tiles
        Of the next piece so many of the first tiles belong to a piece too: no source is cut by a seam. The last piece
        of a strip that goes all around ends with the first tiles of the first.
    """
    ras = [float(tile.ra_deg or 0.0) % 360.0 for tile in strip.tiles]
    if _span(ras) <= max_span_deg:
        return [strip]
    cell = 360.0 / math.ceil(360.0 / max_span_deg)
    cells = [math.floor(ra / cell) for ra in ras]
    ring = _span(ras) > 180.0 and _overlap(place_of(strip.tiles[-1]), place_of(strip.tiles[0]), 0.0)
    first = next((k for k in range(1, len(cells)) if cells[k] != cells[k - 1]), 0) if ring else 0
    order = [*range(first, len(cells)), *range(first)]
    runs = _without_slivers([list(run) for _, run in groupby(order, key=cells.__getitem__)], ras, cell / 4.0)
    pieces = []
    for k, run in enumerate(runs):
        after = runs[(k + 1) % len(runs)] if ring or k + 1 < len(runs) else []
        more = after[:overlap_tiles] if len(runs) > 1 else []
        pieces.append(Strip(tuple(strip.tiles[i] for i in [*run, *more])))
    return pieces


def _span(ras: Sequence[float]) -> float:
    """Return how far right ascensions that are ordered eastwards go on."""
    return math.fsum((after - before) % 360.0 for before, after in pairwise(ras))


def _without_slivers(runs: list[list[int]], ras: Sequence[float], least_deg: float) -> list[list[int]]:
    kept: list[list[int]] = []
    for run in runs:
        if kept and _span([ras[k] for k in run]) < least_deg:
            kept[-1] = kept[-1] + run
        else:
            kept.append(run)
    if len(kept) > 1 and _span([ras[k] for k in kept[0]]) < least_deg:
        kept[:2] = [kept[0] + kept[1]]
    return kept


def tile_outline(tile: Tile, *, points: int = 9) -> Floats:
    """Return the border of a tile (n, 2) as ICRS degrees, taken as orthographic with north up.

    Raises
    ------
    InputError
        If its place or size is not known.
    """
    place = place_of(tile)
    side = np.linspace(-0.5, 0.5, points)
    low, high = np.full(points, -0.5), np.full(points, 0.5)
    east = np.radians(np.concatenate([side, side, low, high]) * place.width)
    north = np.radians(np.concatenate([low, high, side, side]) * place.height)
    up = np.sqrt(np.maximum(0.0, 1.0 - east**2 - north**2))
    sin_d, cos_d = math.sin(math.radians(place.dec)), math.cos(math.radians(place.dec))
    dec = np.arcsin(np.clip(north * cos_d + up * sin_d, -1.0, 1.0))
    ra = math.radians(place.ra) + np.arctan2(east, up * cos_d - north * sin_d)
    return np.stack([np.degrees(ra) % 360.0, np.degrees(dec)], axis=-1)


def common_grid(tiles: Sequence[Tile], *, outlines: Sequence[Floats] | None = None) -> SkyGrid:
    """Return the grid on which tiles are laid.

    Its pixels have one and the same solid angle, the median of the tiles' (or finer, where that would not sample the
    narrowest beam by three pixels), so that a sum of pixels over the beam's area is a flux anywhere. A mosaic that lies
    within 10 degrees of its middle is laid on a plane (ZEA). A longer one is laid on a cylinder along the equator (CEA)
    whose scale is true at the strip's mean declination and on which north is up everywhere, or, if it comes nearer to a
    pole than 30 degrees, on a plane about that pole with north up at its middle.

    Parameters
    ----------
    tiles
        Accepted, with place, size, pixel size and beam.
    outlines
        Their borders, (n, 2) in ICRS degrees; `tile_outline` if not given.

    Raises
    ------
    InputError
        If there is no tile, or the grid would have more than 2**32 pixels.
    """
    if not tiles:
        raise InputError("no tile to lay out a mosaic for", fix="give at least one")
    borders = [tile_outline(tile) for tile in tiles] if outlines is None else list(outlines)
    sky = np.concatenate(borders)
    cell = _cell_arcsec(tiles) / 3600.0
    middle = _unit(sky).mean(axis=0)
    angle = math.degrees(
        math.acos(np.clip((_unit(sky) @ middle).min() / max(np.linalg.norm(middle), 1e-12), -1.0, 1.0))
    )
    strip = Strip(tuple(_eastwards(list(tiles))))
    if angle <= COMPACT_DEG:
        at = middle / np.linalg.norm(middle)
        centre = math.degrees(math.atan2(at[1], at[0])) % 360.0, math.degrees(math.asin(np.clip(at[2], -1.0, 1.0)))
        cards = _zenithal(*centre, cell)
    elif np.abs(sky[:, 1]).max() > POLAR_DEC_DEG:
        cards = _zenithal(strip.ra_deg, math.copysign(90.0, strip.dec_deg), cell)
    else:
        cards = _cylindrical(strip.ra_deg, strip.dec_deg, cell)
    return _fitted(cards, borders, cell)


def _cell_arcsec(tiles: Sequence[Tile]) -> float:
    cell = median([float(t.cell_arcsec) for t in tiles if t.cell_arcsec])
    beams = [float(t.beam_minor_arcsec) for t in tiles if t.beam_minor_arcsec]
    return min([cell, *(b / PIXELS_PER_BEAM for b in beams)])


def _unit(ra_dec_deg: Floats) -> Floats:
    ra, dec = np.radians(ra_dec_deg[:, 0]), np.radians(ra_dec_deg[:, 1])
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def _cards(kind: str, ra: float, dec: float, cell_x: float, cell_y: float, **more: float) -> dict[str, float | str]:
    return {
        "CTYPE1": f"RA---{kind}",
        "CTYPE2": f"DEC--{kind}",
        "CUNIT1": "deg",
        "CUNIT2": "deg",
        "CRVAL1": round(ra, 9),
        "CRVAL2": round(dec, 9),
        "CRPIX1": 0.0,
        "CRPIX2": 0.0,
        "CDELT1": -cell_x,
        "CDELT2": cell_y,
        **more,
        "RADESYS": "ICRS",
    }


def _zenithal(ra: float, dec: float, cell: float) -> dict[str, float | str]:
    # Without LONPOLE the plane about the north pole would have its south up.
    return _cards("ZEA", ra, dec, cell, cell, LONPOLE=180.0)


def _cylindrical(ra: float, dec: float, cell: float) -> dict[str, float | str]:
    # x = ra, y = sin(dec) / lambda: with lambda = cos(dec0) a step of CDELT2 is as many degrees of the sky at dec0.
    parallel = math.cos(math.radians(dec))
    return _cards("CEA", ra, 0.0, cell / parallel, cell, PV2_1=parallel, LONPOLE=0.0)


def _fitted(cards: dict[str, float | str], borders: Sequence[Floats], cell: float) -> SkyGrid:
    wcs = grid_wcs(cards)
    turn = _turn_px(cards)
    places = [_border_px(wcs, border, turn) for border in borders]
    x, y = (np.concatenate([place[k] for place in places]) for k in (0, 1))
    low_x, low_y = math.floor(x.min()) - 1, math.floor(y.min()) - 1
    width, height = math.ceil(x.max()) + 2 - low_x, math.ceil(y.max()) + 2 - low_y
    if turn and (width > turn or np.abs(x).max() > 0.5 * turn):  # it goes all around
        low_x, width = -math.floor(0.5 * turn), math.floor(turn)
    if width * height > MOST_PIXELS:
        raise InputError(
            f"a mosaic of {width} x {height} pixels is more than we make", fix="build shorter strips or coarser tiles"
        )
    ra, dec = wcs.wcs_pix2world(low_x + 0.5 * (width - 1), low_y + 0.5 * (height - 1), 0)
    fitted = {**cards, "CRPIX1": float(-low_x), "CRPIX2": float(-low_y)}
    return SkyGrid(
        projection=str(cards["CTYPE1"])[-3:],
        width=width,
        height=height,
        cell_arcsec=3600.0 * cell,
        ra_deg=float(ra) % 360.0,
        dec_deg=float(dec),
        cards=fitted,
    )


def grid_wcs(cards: Mapping[str, float | str]) -> Any:
    """Return the coordinate system (astropy, two axes) of a grid's cards; it goes on beyond a cylinder's seam."""
    from astropy.io.fits import Header
    from astropy.wcs import WCS

    wcs = WCS(Header(cards))
    wcs.wcs.bounds_check(False, False)
    return wcs


def _turn_px(cards: Mapping[str, float | str]) -> float:
    """Return after how many columns a grid comes back to where it began; 0 if it does not."""
    return 360.0 / abs(float(cards["CDELT1"])) if str(cards["CTYPE1"]).endswith("CEA") else 0.0


def _border_px(wcs: Any, border: Floats, turn: float) -> tuple[Floats, Floats]:
    """Return the pixels of a border, in one piece also where it crosses the seam of a cylinder."""
    x, y = wcs.wcs_world2pix(border[:, 0], border[:, 1], 0)
    return (x - np.round((x - x[0]) / turn) * turn if turn else x), y


class Block(NamedTuple):
    """A rectangle of the grid: first column and row, and the ones after the last."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    def meet(self, other: Block) -> Block | None:
        """Return what it has in common with another, or None."""
        both = Block(max(self.x0, other.x0), max(self.y0, other.y0), min(self.x1, other.x1), min(self.y1, other.y1))
        return both if both.x0 < both.x1 and both.y0 < both.y1 else None


def grid_blocks(width: int, height: int, side: int) -> list[Block]:
    """Return the blocks of at most ``side`` x ``side`` pixels that make up a grid, row by row."""
    return [
        Block(x, y, min(x + side, width), min(y + side, height))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]


def footprint(grid: SkyGrid, outline: Floats) -> list[Block]:
    """Return the rectangles of a grid in which an outline (n, 2) in ICRS degrees lies: two where it meets the seam."""
    turn = _turn_px(grid.cards)
    x, y = _border_px(grid_wcs(grid.cards), outline, turn)
    everything = Block(0, 0, grid.width, grid.height)
    found = []
    for shift in (0.0, -turn, turn) if turn else (0.0,):
        box = Block(
            math.floor(x.min() + shift) - 2,
            math.floor(y.min()) - 2,
            math.ceil(x.max() + shift) + 3,
            math.ceil(y.max()) + 3,
        )
        if (piece := box.meet(everything)) is not None:
            found.append(piece)
    return found


class Combination(NamedTuple):
    """Image and weight of a block: NaN and 0 where no tile counts. The noise is ``1 / sqrt(weight)``."""

    image: NDArray[np.float32]
    weight: NDArray[np.float32]


class Sums:
    """Running sums of a block over its tiles, for either method, in double precision."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.flux = np.zeros(shape)
        self.weight = np.zeros(shape)
        self.variance = np.zeros(shape)

    def add(self, where: tuple[slice, slice], image: Floats, pb: Floats, *, noise_jy: float, cut: float) -> float:
        """Add a tile with weights ``(B/s)**2``.

        Parameters
        ----------
        where
            Its part of the block.
        image, pb
            Flat image ``B I`` and beam on that part; NaN where there is none.
        noise_jy, cut
            Of the flat image; least level of the beam that counts.

        Returns
        -------
        float
            The sum of its weights.
        """
        with np.errstate(invalid="ignore"):
            counts = (pb >= cut) & np.isfinite(image)
        weight = np.where(counts, pb / noise_jy, 0.0) ** 2
        # B^2 I / s^2 = B (B I) / s^2: nothing is ever divided by the beam.
        self.flux[where] += np.where(counts, pb * image, 0.0) / noise_jy**2
        self.weight[where] += weight
        self.variance[where] += weight
        return float(weight.sum())

    def add_plain(self, where: tuple[slice, slice], image: Floats, noise: Floats | float) -> float:
        """Add a tile with weight 1 and the standard deviation ``noise`` of its pixels."""
        counts = np.isfinite(image)
        self.flux[where] += np.where(counts, image, 0.0)
        self.weight[where] += counts
        self.variance[where] += np.where(counts, np.square(noise), 0.0)
        return float(np.count_nonzero(counts))

    def result(self) -> Combination:
        """Return ``sum(w I) / sum(w)`` and ``sum(w)^2 / sum(w^2 sigma^2)``."""
        with np.errstate(invalid="ignore", divide="ignore"):
            image = self.flux / self.weight
            weight = np.where(self.variance > 0, self.weight**2 / self.variance, 0.0)
        return Combination(image.astype(np.float32), weight.astype(np.float32))


def combine(
    images: Sequence[Floats], beams: Sequence[Floats], noises_jy: Sequence[float], *, cut: float
) -> Combination:
    """Return the linear mosaic of flat images and beams (ny, nx) that lie on the same pixels already.

    ``M = sum(B_i^2 I_i / s_i^2) / sum(B_i^2 / s_i^2)`` with ``I_i`` the image corrected for its beam, here given as
    ``B_i I_i``; its noise is ``1 / sqrt(sum(B_i^2 / s_i^2))``.
    """
    sums = Sums(images[0].shape)
    everything = (slice(None), slice(None))
    for image, pb, noise in zip(images, beams, noises_jy, strict=True):
        sums.add(everything, image, pb, noise_jy=noise, cut=cut)
    return sums.result()


def interpolation_factor(image: Floats) -> float:
    """Return how much of its noise an image keeps when it is interpolated by cubic splines.

    Parameters
    ----------
    image : (ny, nx)
        With uniform noise.

    Returns
    -------
    float
        Root of the mean square, over all positions between pixels, of the robust noise after over before; 1 for noise
        that is sampled well, 0.87 for white noise; 1 where there is nothing to measure.
    """
    from scipy.ndimage import map_coordinates, spline_filter

    clean = np.where(np.isfinite(image), image, 0.0)
    if min(clean.shape) < 32 or not (before := robust_noise(clean)) > 0:
        return 1.0
    spline = spline_filter(clean, order=3)
    inside = np.mgrid[8 : clean.shape[0] - 8, 8 : clean.shape[1] - 8].astype(float)
    before = robust_noise(clean[8:-8, 8:-8])
    if not before > 0:  # a hole in the middle
        return 1.0
    total = 0.0
    steps = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.25))  # 0.75 is 0.25 seen from the other side
    for dy, share_y in steps:
        for dx, share_x in steps:
            moved = map_coordinates(spline, inside + np.array([dy, dx])[:, None, None], order=3, prefilter=False)
            total += share_y * share_x * (robust_noise(moved) / before) ** 2
    return math.sqrt(total)


def mean_beam(beams: Sequence[tuple[float, float, float]], weights: Sequence[float]) -> tuple[float, float, float]:
    """Return major and minor axis and position angle (degrees) of the weighted mean of beams.

    The mean is that of their second moments, which knows no ambiguity of angles.
    """
    total = np.zeros((2, 2))
    for (major, minor, pa), weight in zip(beams, weights, strict=True):
        c, s = math.cos(math.radians(pa)), math.sin(math.radians(pa))
        turn = np.array([[c, -s], [s, c]])  # axes: north, east
        total += weight * turn @ np.diag([major**2, minor**2]) @ turn.T
    values, vectors = np.linalg.eigh(total / math.fsum(weights))
    pa = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    return math.sqrt(values[1]), math.sqrt(values[0]), (pa + 90.0) % 180.0 - 90.0


@dataclass(frozen=True, slots=True)
class BlockFigures:
    """What was measured on one block.

    Attributes
    ----------
    covered, negative
        Pixels with an image, and those of them below -5 sigma.
    peak_jy, peak_x, peak_y
        Brightest pixel and where on the grid; -inf in an empty block.
    noise_least_jy
        Of the noise map; inf in an empty block.
    noise_jy
        A sample of the noise map.
    ratios
        Measured over expected noise of parts of the block.
    """

    covered: int
    negative: int
    peak_jy: float
    peak_x: int
    peak_y: int
    noise_least_jy: float
    noise_jy: NDArray[np.float32]
    ratios: tuple[float, ...]


NEGATIVE_SIGMA = -5.0
_SAMPLE_STEP = 8
#: Of a noise map so many pixels are looked at for its median, however large it is.
NOISE_SAMPLES = 2**20


def sampled_noise(figures: Sequence[BlockFigures]) -> NDArray[np.float32]:
    """Return the sample of the noise map that blocks have kept."""
    return np.concatenate([np.empty(0, np.float32), *(f.noise_jy for f in figures)])


def measure_block(found: Combination, block: Block, *, part_px: int, samples: int = NOISE_SAMPLES) -> BlockFigures:
    """Measure a finished block; its noise in parts of ``part_px`` pixels that are covered by half at least.

    Of its noise map about ``samples`` pixels are kept at most.
    """
    image, weight = found
    covered = weight > 0
    if not covered.any():
        return BlockFigures(0, 0, -math.inf, 0, 0, math.inf, np.empty(0, np.float32), ())
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = image * np.sqrt(weight)
        noise = np.where(covered, 1.0 / np.sqrt(weight), np.nan)
    y, x = np.unravel_index(int(np.nanargmax(image)), image.shape)
    ratios = []
    for part in grid_blocks(image.shape[1], image.shape[0], part_px):
        cut = slice(part.y0, part.y1), slice(part.x0, part.x1)
        here = covered[cut]
        if np.count_nonzero(here) >= 0.5 * part_px**2:
            ratios.append(robust_noise(snr[cut][here]))
    step = max(_SAMPLE_STEP, math.ceil(math.sqrt(noise.size / samples)))
    sample = noise[::step, ::step]
    return BlockFigures(
        covered=int(np.count_nonzero(covered)),
        negative=int(np.count_nonzero(snr[covered] < NEGATIVE_SIGMA)),
        peak_jy=float(image[y, x]),
        peak_x=block.x0 + int(x),
        peak_y=block.y0 + int(y),
        noise_least_jy=float(np.nanmin(noise)),
        noise_jy=sample[np.isfinite(sample)].astype(np.float32),
        ratios=tuple(ratios),
    )


@dataclass(frozen=True, slots=True)
class CatalogueFigures:
    """An image against a catalogue.

    Attributes
    ----------
    looked_for, found
        Sources that should show at 10 sigma, and those that do.
    flux_ratio
        Median of measured over catalogued peak.
    offset_arcsec, offset_error_arcsec
        Length of the median offset, and its error from the noise.
    """

    looked_for: int
    found: int
    flux_ratio: float | None
    offset_arcsec: float | None
    offset_error_arcsec: float | None
