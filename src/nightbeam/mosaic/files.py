"""Tiles read in pieces and inspected; mosaics written in pieces, described, and read back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.files import sha256, storage_errors, write_text
from nightbeam.core.times import datetime_from_mjd, mjd_from_datetime
from nightbeam.imaging.compute import robust_noise
from nightbeam.imaging.files import SkyImage, measure_plane
from nightbeam.imaging.model import SourceFit
from nightbeam.mosaic.compute import Block, CatalogueFigures
from nightbeam.mosaic.model import MosaicOptions, MosaicProduct, Reason, ReasonCode, Tile, TileFacts
from nightbeam.sky import is_alone, separation
from nightbeam.sky.model import Calibrator

__all__ = [
    "NotUsableError",
    "PlaneFile",
    "PlaneWriter",
    "against_catalogue",
    "describe_mosaic",
    "inspect_tile",
    "mosaic_sidecar_path",
    "open_plane",
    "outline_of",
    "read_mosaic",
    "reading",
    "tile_planes",
    "verify_mosaic",
    "write_mosaic",
]

_VERSION = 1
_TYPES = {-32: ">f4", -64: ">f8"}
#: Rows that are looked at to see whether there is anything on a tile.
_SAMPLE_ROWS = 128
#: The middle of a tile on which interpolation is tried out.
_MIDDLE_PX = 192
#: A piece narrower than one part in so many of the width is read row by row.
_NARROW = 4
_OUTLINE_POINTS = 33
_FLAT_SUFFIX, _PBCOR_SUFFIX = ".image.fits", ".image.pbcor.fits"
#: Sources are looked for where the noise lets them show this clearly; the brightest so many, each takes 20 ms.
_LOOK_SNR, _FOUND_SNR = 10.0, 5.0
_MOST_ON_TILE, _MOST_ON_MOSAIC = 25, 300
_ALONE_BEAMS = 2.0


class NotUsableError(InputError):
    """A file is no plane of the sky; ``code`` says in which way."""

    def __init__(self, what: str, *, fix: str = "", code: ReasonCode = ReasonCode.UNREADABLE) -> None:
        super().__init__(what, fix=fix)
        self.code = code


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of a file that is read that it cannot be, so that this is not taken for a fault of what is written.

    Raises
    ------
    NotUsableError
        With its name.
    """
    try:
        yield
    except FileNotFoundError as error:
        what = f"{path} was taken away while it was read"
        raise NotUsableError(what, fix="plan the mosaic again", code=ReasonCode.MISSING) from error
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror or error}"
        raise NotUsableError(what, fix="look after its disk and its owner, or make it again") from error


@dataclass(frozen=True)
class PlaneFile:
    """One plane of the sky in a FITS file, read piece by piece.

    Attributes
    ----------
    header : astropy.io.fits.Header
    start
        Where its pixels begin, bytes.
    """

    path: Path
    header: Any
    start: int
    dtype: str
    width: int
    height: int

    @cached_property
    def wcs(self) -> Any:
        """Celestial, two axes.

        Raises
        ------
        NotUsableError
            If it has none.
        """
        import warnings

        from astropy.wcs import WCS, FITSFixedWarning

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FITSFixedWarning)  # astropy tells how it reads old-style headers
                found = WCS(self.header).celestial
        except Exception as error:  # wcslib and astropy have a dozen kinds for what a header may hold
            raise NotUsableError(f"its coordinates cannot be read: {error}", code=ReasonCode.NO_WCS) from error
        if found.naxis != 2 or not all(found.wcs.ctype) or not np.all(np.isfinite(found.wcs.crval)):
            raise NotUsableError("its header says nothing of where on the sky it lies", code=ReasonCode.NO_WCS)
        return found

    @property
    def cell_arcsec(self) -> float:
        """Side of a pixel: root of its area where the projection is true."""
        from astropy.wcs.utils import proj_plane_pixel_area

        return 3600.0 * math.sqrt(float(proj_plane_pixel_area(self.wcs)))

    def read(self, piece: Block) -> NDArray[np.float32]:
        """Return a piece of it.

        Raises
        ------
        NotUsableError
            If the file ends before.
        """
        rows, columns = piece.shape
        if _NARROW * columns < self.width:
            return self._lines(range(piece.y0, piece.y1), piece.x0, piece.x1)
        offset = self.start + np.dtype(self.dtype).itemsize * piece.y0 * self.width
        with reading(self.path):
            data = np.fromfile(self.path, self.dtype, rows * self.width, offset=offset)
        if data.size < rows * self.width:
            raise self._ends(piece.y1)
        return data.reshape(rows, self.width)[:, piece.x0 : piece.x1].astype(np.float32)

    def rows(self, step: int) -> NDArray[np.float32]:
        """Return every so many rows, beginning in the middle of the first step."""
        return self._lines(range(step // 2, self.height, step), 0, self.width)

    def _lines(self, rows: range, x0: int, x1: int) -> NDArray[np.float32]:
        """Return some columns of some rows, of which each is looked for."""
        item = np.dtype(self.dtype).itemsize
        found = np.empty((len(rows), x1 - x0), np.float32)
        with reading(self.path), self.path.open("rb") as data:
            for k, y in enumerate(rows):
                data.seek(self.start + item * (self.width * y + x0))
                line = data.read(item * (x1 - x0))
                if len(line) < item * (x1 - x0):
                    raise self._ends(y + 1)
                found[k] = np.frombuffer(line, self.dtype)
        return found

    def _ends(self, row: int) -> NotUsableError:
        return NotUsableError(f"{self.path} ends before row {row}", fix="make the image again")


def open_plane(path: Path) -> PlaneFile:
    """Return a FITS image of one plane, of which only the header is read.

    Raises
    ------
    NotUsableError
        If it is not there, no FITS image, cut short, or has more than one plane.
    """
    from astropy.io.fits import Header

    try:
        if path.is_dir():
            raise NotUsableError("it is a directory, not a FITS file", fix="make the image with FITS")
        with path.open("rb") as data:
            header = Header.fromfile(data)
            start, size = data.tell(), os.fstat(data.fileno()).st_size
        shape = [int(header[f"NAXIS{k}"]) for k in range(int(header["NAXIS"]), 0, -1)]
        bits = int(header["BITPIX"])
    except NotUsableError:
        raise
    except FileNotFoundError as error:
        raise NotUsableError("it is not there", code=ReasonCode.MISSING) from error
    except Exception as error:  # a file of anything: astropy raises whatever its parser stumbles on
        raise NotUsableError(f"it is not a FITS image: {str(error) or type(error).__name__}") from error
    if bits not in _TYPES or header.get("BSCALE", 1) != 1 or header.get("BZERO", 0) != 0:
        raise NotUsableError(f"its pixels are of BITPIX {bits}, -32 or -64 without a scale is wanted")
    if len(shape) < 2 or any(n != 1 for n in shape[:-2]):
        raise NotUsableError(f"it holds {shape}, one plane is wanted")
    need = start + abs(bits) // 8 * math.prod(shape)
    if size < need:
        raise NotUsableError(f"it was cut short: {size} bytes of {need} are there")
    return PlaneFile(path, header, start, _TYPES[bits], shape[-1], shape[-2])


def tile_planes(tile: Tile) -> tuple[PlaneFile, PlaneFile | None]:
    """Return the image of a tile and its primary beam, if it names one.

    Raises
    ------
    NotUsableError
        If one of them cannot be read, or they are not of one shape.
    """
    image = open_plane(tile.path)
    if tile.pb_path is None:
        return image, None
    try:
        pb = open_plane(tile.pb_path)
    except NotUsableError as error:
        code = ReasonCode.NO_PB if error.code is ReasonCode.MISSING else error.code
        raise NotUsableError(f"its primary beam {tile.pb_path.name}: {error.what}", code=code) from error
    if (pb.width, pb.height) != (image.width, image.height):
        raise NotUsableError(
            f"its primary beam has {pb.width} x {pb.height} pixels, the image {image.width} x {image.height}",
            code=ReasonCode.PRIMARY_BEAM,
        )
    return image, pb


def inspect_tile(
    tile: Tile, *, options: MosaicOptions | None = None, catalogue: Sequence[Calibrator] = ()
) -> TileFacts:
    """Return what the files of a tile say of it.

    Headers, and up to 128 rows of image and beam; with a catalogue the whole image, on which its sources are measured.
    What the headers say replaces what the tile was said to be.

    Parameters
    ----------
    tile
        With its paths at least.
    options
        ``pb_cut``, ``method`` and the limits of sources.
    catalogue
        Sources to compare with.

    Returns
    -------
    TileFacts
        With problems in place of an exception, whatever is wrong with the files.
    """
    options = options or MosaicOptions()
    try:
        image, pb = tile_planes(tile)
        if pb is None and options.method == "weighted":
            raise NotUsableError("it has no primary beam to weigh it by", code=ReasonCode.NO_PB)
        return _inspected(tile, image, pb, options, catalogue)
    except NotUsableError as error:
        return TileFacts(tile=tile, problems=(Reason(error.code, error.what),))
    except (OSError, ValueError) as error:  # of whatever a file may hold
        return TileFacts(tile=tile, problems=(Reason(ReasonCode.UNREADABLE, f"it cannot be read: {error}"),))


def _inspected(
    tile: Tile, image: PlaneFile, pb: PlaneFile | None, options: MosaicOptions, catalogue: Sequence[Calibrator]
) -> TileFacts:
    tile = _described(tile, image)
    outline_of(image)  # or it says that this is no part of the sky
    step = max(1, image.height // _SAMPLE_ROWS)
    data = image.rows(step)
    if not np.isfinite(data).any() or not np.any(data[np.isfinite(data)]):
        raise NotUsableError("it is blank: no pixel is finite and not zero", code=ReasonCode.ALL_NAN)
    level = np.ones_like(data) if pb is None else pb.rows(step)
    with np.errstate(invalid="ignore"):
        used = np.isfinite(data) & (level >= options.pb_cut)
    problems = _beam_problems(level, used, options) or _not_corrected(tile, data, level, step)
    flat = data * level if tile.pbcor else data
    noise = tile.noise_jy
    if noise is None and used.any():
        noise = robust_noise(flat[used])
    tile = replace(tile, noise_jy=noise)
    if tile.dynamic_range is None and noise and used.any():
        tile = replace(tile, dynamic_range=float(flat[used].max()) / noise)
    facts = TileFacts(
        tile=tile,
        problems=tuple(problems),
        valid_fraction=float(used.mean()),
        pb_min=float(level[used].min()) if used.any() else None,
        pb_max=float(np.nanmax(level)) if np.isfinite(level).any() else None,
    )
    if problems or not catalogue:
        return facts
    found = _tile_against(image, pb, tile, catalogue, options)
    return replace(
        facts,
        sources=found.found,
        astrometry_arcsec=found.offset_arcsec,
        astrometry_error_arcsec=found.offset_error_arcsec,
        flux_ratio=found.flux_ratio,
    )


def _described(tile: Tile, image: PlaneFile) -> Tile:
    header = image.header
    beam = [header.get(name) for name in ("BMAJ", "BMIN", "BPA")]
    if not all(isinstance(b, int | float) for b in beam) or not (beam[0] > 0 and beam[1] > 0):
        raise NotUsableError(f"its header has no restoring beam (BMAJ, BMIN, BPA are {beam})", code=ReasonCode.NO_BEAM)
    ra, dec = _to_icrs(image, 0.5 * image.width, 0.5 * image.height)
    if not (math.isfinite(ra) and math.isfinite(dec)):
        raise NotUsableError("its middle does not lie on the sky", code=ReasonCode.NO_WCS)
    known = {
        "noise_jy": _positive(header.get("NOISE")),
        "dynamic_range": _positive(header.get("DYNRANGE")),
        "freq_hz": _positive(_frequency(header)),
        "start_mjd": _mjd(header, "MJD-OBS", "DATE-OBS"),
        "mid_mjd": _mjd(header, "MJD-AVG", "DATE-AVG"),
        "end_mjd": _mjd(header, "MJD-END", "DATE-END"),
        "calibration_set": header.get("CALSET"),
    }
    return replace(
        tile,
        ra_deg=ra,
        dec_deg=dec,
        width=image.width,
        height=image.height,
        cell_arcsec=image.cell_arcsec,
        beam_major_arcsec=3600.0 * beam[0],
        beam_minor_arcsec=3600.0 * beam[1],
        beam_pa_deg=float(beam[2]),
        **{name: value for name, value in known.items() if value is not None},
    )


def outline_of(image: PlaneFile) -> NDArray[np.floating[Any]]:
    """Return the border of an image in ICRS degrees (n, 2).

    Raises
    ------
    NotUsableError
        If a part of it is not on the sky.
    """
    from astropy.wcs.utils import pixel_to_skycoord

    x, y = (np.linspace(-0.5, n - 0.5, _OUTLINE_POINTS) for n in (image.width, image.height))
    bx = np.concatenate([x, x, np.full(len(y), x[0]), np.full(len(y), x[-1])])
    by = np.concatenate([np.full(len(x), y[0]), np.full(len(x), y[-1]), y, y])
    sky = pixel_to_skycoord(bx, by, image.wcs, origin=0).icrs
    border = np.stack([sky.ra.deg, sky.dec.deg], axis=-1)
    if not np.isfinite(border).all():
        what = f"it reaches beyond the sky: {image.width} x {image.height} pixels of {image.cell_arcsec:.4g} arcsec"
        raise NotUsableError(what, fix="make a smaller image", code=ReasonCode.NO_WCS)
    return border


def _positive(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


def _frequency(header: Any) -> Any:
    for axis in range(1, int(header["NAXIS"]) + 1):
        if str(header.get(f"CTYPE{axis}", "")).startswith("FREQ"):
            return header.get(f"CRVAL{axis}")
    return header.get("RESTFRQ")


def _mjd(header: Any, number: str, text: str) -> float | None:
    if (value := _positive(header.get(number))) is not None:
        return value
    from datetime import UTC, datetime

    try:
        when = datetime.fromisoformat(str(header[text]))
    except (KeyError, ValueError):
        return None
    return mjd_from_datetime(when if when.tzinfo else when.replace(tzinfo=UTC))


def _to_icrs(image: PlaneFile, x: float, y: float) -> tuple[float, float]:
    return SkyImage(image.path, np.empty((0, 0), np.float32), image.header, image.wcs).to_sky(x, y)


def _beam_problems(level: NDArray[np.float32], used: NDArray[np.bool_], options: MosaicOptions) -> list[Reason]:
    highest = float(np.nanmax(level)) if np.isfinite(level).any() else math.nan
    if not 0.3 <= highest <= 1.05:  # 1 in its middle; an image beside its field does not reach it
        return [Reason(ReasonCode.PRIMARY_BEAM, f"its primary beam reaches {highest:.3g}, 0.3 to 1.05 is wanted")]
    if not used.any():
        text = f"no pixel is finite where its primary beam is above {options.pb_cut:g}"
        return [Reason(ReasonCode.PRIMARY_BEAM, text)]
    return []


def _not_corrected(tile: Tile, data: NDArray[np.float32], level: NDArray[np.float32], step: int) -> list[Reason]:
    """Compare an image that is called corrected with the flat one beside it, if that is there."""
    if not (tile.pbcor and tile.pb_path and tile.path.name.endswith(_PBCOR_SUFFIX)):
        return []
    try:
        beside = open_plane(tile.path.with_name(tile.path.name.removesuffix(_PBCOR_SUFFIX) + _FLAT_SUFFIX))
    except NotUsableError:
        return []
    flat = beside.rows(step) if (beside.width, beside.height) == (tile.width, tile.height) else None
    with np.errstate(invalid="ignore"):
        here = np.isfinite(data) & (level > 0)
    if flat is None or not here.any():
        return []
    scale = float(np.abs(flat[here]).max())
    off = float(np.abs(data * level - flat)[here].max())
    if off <= 1e-3 * scale:
        return []
    text = f"times its primary beam it is not the image {beside.path.name} (they differ by {off:.3g} Jy/beam)"
    return [Reason(ReasonCode.NOT_PBCOR, text)]


def _tile_against(
    image: PlaneFile, pb: PlaneFile | None, tile: Tile, catalogue: Sequence[Calibrator], options: MosaicOptions
) -> CatalogueFigures:
    whole = Block(0, 0, image.width, image.height)
    data = image.read(whole)
    level = np.ones_like(data) if pb is None else pb.read(whole)
    # On the flat image: the slope of a primary beam that was divided out moves a peak.
    sky = SkyImage(image.path, data * level if tile.pbcor else data, image.header, image.wcs)
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = float(tile.noise_jy or math.inf) / level
        sigma[~(level >= options.pb_cut) | ~np.isfinite(data)] = np.inf

    def noise_at(x: int, y: int) -> float:
        return float(sigma[y, x])

    beam = SkyImage(image.path, level, image.header, image.wcs)

    def measure(source: Calibrator, _x: int, _y: int) -> SourceFit:
        place = (source.ra_deg, source.dec_deg)
        return measure_plane(sky, [place], pb=beam, names=[source.name], min_snr=_FOUND_SNR)[0]

    return _compared(sky, catalogue, options, noise_at, measure, _MOST_ON_TILE)


def against_catalogue(
    image: PlaneFile, noise: PlaneFile, catalogue: Sequence[Calibrator], options: MosaicOptions
) -> CatalogueFigures:
    """Measure the sources of a catalogue on a mosaic, each on a piece of it about its place."""
    header = image.header
    sky = SkyImage(image.path, np.empty((image.height, image.width), np.float32)[:0], header, image.wcs)
    beam_px = sky.beam.major_px
    half = max(60, math.ceil(15.0 * beam_px))

    def noise_at(x: int, y: int) -> float:
        found = float(noise.read(Block(x, y, x + 1, y + 1))[0, 0])
        return found if math.isfinite(found) else math.inf

    def measure(source: Calibrator, x: int, y: int) -> SourceFit:
        piece = Block(
            max(0, x - half), max(0, y - half), min(image.width, x + half + 1), min(image.height, y + half + 1)
        )
        wcs = image.wcs.deepcopy()
        wcs.wcs.crpix -= (piece.x0, piece.y0)
        cut = SkyImage(image.path, image.read(piece), header, wcs)
        return measure_plane(cut, [(source.ra_deg, source.dec_deg)], names=[source.name], min_snr=_FOUND_SNR)[0]

    return _compared(sky, catalogue, options, noise_at, measure, _MOST_ON_MOSAIC, shape=(image.height, image.width))


def _compared(
    sky: SkyImage,
    catalogue: Sequence[Calibrator],
    options: MosaicOptions,
    noise_at: Callable[[int, int], float],
    measure: Callable[[Calibrator, int, int], SourceFit],
    most: int,
    *,
    shape: tuple[int, int] | None = None,
) -> CatalogueFigures:
    ny, nx = shape or sky.data.shape
    beam_arcsec = float(sky.header["BMAJ"]) * 3600.0, float(sky.header["BMIN"]) * 3600.0
    fits: list[tuple[Calibrator, SourceFit]] = []
    looked_for = 0
    apart_arcsec = _ALONE_BEAMS * beam_arcsec[0]
    near = _near(catalogue, sky, nx, ny, apart_arcsec / 3600.0)
    bright = sorted(
        _inside([s for s in near if s.flux_jy >= options.min_source_jy], sky, nx, ny), key=lambda s: -s.flux_jy
    )
    for source in _alone(bright, near, apart_arcsec):
        x, y = sky.to_pixel(source.ra_deg, source.dec_deg)
        if not (0 <= x <= nx - 1 and 0 <= y <= ny - 1):
            continue
        at = round(x), round(y)
        if not source.flux_jy >= _LOOK_SNR * noise_at(*at):
            continue
        looked_for += 1
        fit = measure(source, *at)
        if fit.found:
            fits.append((source, fit))
        if looked_for >= most:
            break
    if not fits:
        return CatalogueFigures(looked_for, 0, None, None, None)
    east = [
        ((f.found_ra_deg - s.ra_deg + 180.0) % 360.0 - 180.0) * 3600.0 * math.cos(math.radians(s.dec_deg))
        for s, f in fits
    ]
    north = [(f.found_dec_deg - s.dec_deg) * 3600.0 for s, f in fits]
    # A Gaussian of width theta is found to theta / (2 SNR) along each axis; a median is 1.25 times worse than a mean.
    each = [math.sqrt(beam_arcsec[0] * beam_arcsec[1]) / (2.0 * f.snr) for _, f in fits]
    error = 1.2533 * math.sqrt(sum(e**2 for e in each)) / len(fits)
    return CatalogueFigures(
        looked_for=looked_for,
        found=len(fits),
        flux_ratio=float(np.median([f.peak_jy / s.flux_jy for s, f in fits])),
        offset_arcsec=math.hypot(float(np.median(east)), float(np.median(north))),
        offset_error_arcsec=error,
    )


def _near(catalogue: Sequence[Calibrator], sky: SkyImage, nx: int, ny: int, margin_deg: float) -> list[Calibrator]:
    """Return the sources that may be on an image or within a margin of it."""
    if not catalogue:
        return []
    ra, dec = sky.to_sky(0.5 * (nx - 1), 0.5 * (ny - 1))
    corners = [sky.to_sky(x, y) for x in (0, nx - 1) for y in (0, ny - 1)]
    away = [float(separation(ra, dec, *corner)) for corner in corners if math.isfinite(corner[0])]
    reach = 1.1 * max(away or [180.0]) + margin_deg
    if not math.isfinite(reach):
        return list(catalogue)
    distance = separation(ra, dec, [s.ra_deg for s in catalogue], [s.dec_deg for s in catalogue])
    return [catalogue[k] for k in np.flatnonzero(distance <= reach)]


def _inside(sources: Sequence[Calibrator], sky: SkyImage, nx: int, ny: int) -> list[Calibrator]:
    """Return those which fall on an image, or just beside it."""
    from astropy.coordinates import SkyCoord
    from astropy.wcs.utils import skycoord_to_pixel

    if not sources:
        return []
    places = SkyCoord([s.ra_deg for s in sources], [s.dec_deg for s in sources], unit="deg", frame="icrs")
    with np.errstate(invalid="ignore"):
        x, y = skycoord_to_pixel(places, sky.wcs, origin=0)
        here = (x > -2) & (x < nx + 1) & (y > -2) & (y < ny + 1)
    return [sources[k] for k in np.flatnonzero(here)]


def _alone(sources: Sequence[Calibrator], catalogue: Sequence[Calibrator], apart_arcsec: float) -> list[Calibrator]:
    """Leave out those which have a neighbour that would change their peak."""
    places = {id(source): k for k, source in enumerate(catalogue)}
    lists = [s.ra_deg for s in catalogue], [s.dec_deg for s in catalogue], [s.flux_jy for s in catalogue]
    alone = is_alone(*lists, within_arcsec=apart_arcsec, among=[places[id(source)] for source in sources])
    return [source for source, free in zip(sources, alone, strict=True) if free]


class PlaneWriter:
    """A FITS image of one plane, float32, written in pieces in any order and by any number of threads.

    The whole file is claimed first, so that a full disk is met at the beginning and not by half.
    """

    def __init__(self, path: Path, header: Any, width: int, height: int) -> None:
        self.path, self._width = path, width
        head = header.tostring().encode("ascii")
        size = 4 * width * height
        with storage_errors(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(self._handle, 0, len(head) + -(-size // 2880) * 2880)
                _write_all(self._handle, head, 0)
            except BaseException:
                os.close(self._handle)
                raise
        self._start = len(head)

    def write(self, block: Block, data: NDArray[np.floating[Any]]) -> None:
        """Write the pixels of a block (ny, nx)."""
        plain = np.ascontiguousarray(data, ">f4")
        with storage_errors(self.path):
            if block.x0 == 0 and block.x1 == self._width:
                _write_all(self._handle, plain.data.cast("B"), self._start + 4 * block.y0 * self._width)
                return
            for k, row in enumerate(plain):
                _write_all(
                    self._handle, row.data.cast("B"), self._start + 4 * ((block.y0 + k) * self._width + block.x0)
                )

    def close(self) -> None:
        """Bring it to the disk and close it."""
        with storage_errors(self.path):
            try:
                os.fsync(self._handle)
            finally:
                os.close(self._handle)


def _write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    while len(data):
        done = os.pwrite(handle, data, offset)
        data, offset = data[done:], offset + done


def mosaic_sidecar_path(stem: Path) -> Path:
    """Return the JSON file whose presence says that a mosaic is whole."""
    return stem.with_name(stem.name + ".json")


def describe_mosaic(product: MosaicProduct) -> str:
    """Return the description of a finished mosaic, as `write_mosaic` writes it."""
    plain = {"version": _VERSION, "mosaic": product.to_json()}
    return json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_mosaic(stem: Path, description: str) -> None:
    """Write the description of a finished mosaic, last of all its files."""
    write_text(mosaic_sidecar_path(stem), description)


def read_mosaic(stem: Path) -> MosaicProduct:
    """Return the mosaic of a stem, as described beside it; its files are not looked at.

    Raises
    ------
    MissingError
        If there is no description.
    InputError
        If it is damaged or of another version.
    """
    path = mosaic_sidecar_path(stem)
    try:
        plain = json.loads(path.read_text())
        version, product = plain["version"], plain["mosaic"]
    except FileNotFoundError as error:
        raise MissingError(f"no mosaic {stem}: {path.name} is not there", fix="build the mosaic") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe a mosaic: {error}", fix="build the mosaic again") from error
    if version != _VERSION:
        raise InputError(f"{path} is of version {version}, wanted {_VERSION}", fix="build the mosaic again")
    return MosaicProduct.from_json(product, stem.parent)


def verify_mosaic(product: MosaicProduct) -> None:
    """Prove that every file of a mosaic is there and unchanged.

    Raises
    ------
    MissingError
        Naming a file that is gone.
    InputError
        Naming one whose bytes have changed.
    """
    for path in (*product.fits.values(), product.png):
        if not path.exists():
            raise MissingError(f"{path} is gone", fix="build the mosaic again")
        wanted = product.sha256.get(path.name)
        if wanted is not None and sha256(path) != wanted:
            raise InputError(f"{path} was changed after it was made", fix="build the mosaic again")


def fits_time(mjd: float) -> str:
    """Return a time as FITS writes it, UTC to the millisecond."""
    return datetime_from_mjd(mjd).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]


def middle_piece(image: PlaneFile) -> Block:
    """Return the middle of an image, on which interpolation is tried out."""
    half = _MIDDLE_PX // 2
    x, y = image.width // 2, image.height // 2
    return Block(max(0, x - half), max(0, y - half), min(image.width, x + half), min(image.height, y + half))
