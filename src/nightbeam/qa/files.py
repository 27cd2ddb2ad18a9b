"""What quality control reads from a Measurement Set and from images, and the report that it keeps."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.files import write_text
from nightbeam.gains.files import read_layout
from nightbeam.ms.compute import row_runs
from nightbeam.qa.model import FlagCounts, VisibilitySample
from nightbeam.sky.model import SPEED_OF_LIGHT_M_S

__all__ = [
    "METRICS",
    "CoarsePlane",
    "count_flags",
    "image_outline",
    "read_coarse",
    "read_metrics",
    "sample_visibilities",
    "update_metrics",
]

logger = logging.getLogger(__name__)

METRICS = "metrics.json"

_BLOCK_ROWS = 32768
#: Rows read in one piece for a sample, because single rows cost a seek each.
_RUN_ROWS = 512
#: Of an image that is shown coarsely, so many values are held at a time.
_BLOCK_VALUES = 2_000_000


def count_flags(ms: Path, *, most_uv: int = 500_000) -> FlagCounts:
    """Count the flags of the parallel hands of all cross-correlations, in one pass over FLAG.

    Parameters
    ----------
    ms
        Its directory.
    most_uv
        Of the uv coverage no more places than this are kept, evenly many of each stretch of rows.

    Raises
    ------
    MissingError, InputError
        If it is not there or damaged.
    """
    layout = read_layout(ms)
    hands, n = list(layout.parallel), len(layout.antenna_names)
    shape = (len(layout.channel_hz), len(hands), n * n)
    total, flagged, uv = np.zeros(shape), np.zeros(shape), [np.zeros((0, 2), np.float32)]
    # Every so-many-th row would take some baselines always and others never.
    chance, share = np.random.default_rng(0), min(1.0, most_uv / layout.rows)
    with open_table(ms) as table:
        interval = float(table.getcell("INTERVAL", 0))
        described = table.getcol("DATA_DESC_ID")
        for rows in row_runs(described, _BLOCK_ROWS):
            window, part = layout.window_of_ddid[int(described[rows[0]])], _rows_of(table, rows)
            ant1, ant2 = part("ANTENNA1").astype(np.int64), part("ANTENNA2").astype(np.int64)
            cross = ant1 != ant2
            flags = (part("FLAG")[:, :, hands] | part("FLAG_ROW")[:, None, None])[cross]
            pair = (np.minimum(ant1, ant2) * n + np.maximum(ant1, ant2))[cross]
            bad = flags.sum(axis=1)
            for hand in range(len(hands)):
                total[window, hand] += np.bincount(pair, minlength=n * n) * flags.shape[1]
                flagged[window, hand] += np.bincount(pair, bad[:, hand], n * n)
            chosen = ~flags.all(axis=(1, 2))
            chosen &= chance.random(len(chosen)) < share
            middle_hz = float(np.mean(layout.channel_hz[window]))
            uvw = part("UVW")[cross][chosen, :2]
            uv.append((uvw * (middle_hz / SPEED_OF_LIGHT_M_S / 1e3)).astype(np.float32))
    xyz = layout.antenna_xyz_m
    return FlagCounts(
        antennas=layout.antenna_names,
        lengths_m=np.linalg.norm(xyz[:, None] - xyz[None], axis=2),
        total=total.reshape(*shape[:2], n, n),
        flagged=flagged.reshape(*shape[:2], n, n),
        uv_klambda=np.concatenate(uv),
        width_hz=_channel_width(ms),
        integration_s=interval,
        telescope=layout.telescope,
    )


def _rows_of(table: Any, rows: NDArray[np.int64]) -> Callable[[str], NDArray[Any]]:
    """Return a function from a column's name to its values in ``rows``, read in one piece where they touch."""
    first, count = int(rows[0]), len(rows)
    if int(rows[-1]) - first + 1 == count:
        return lambda name: np.asarray(table.getcol(name, first, count))
    chosen = table.selectrows(rows.tolist())
    return lambda name: np.asarray(chosen.getcol(name))


def _channel_width(ms: Path) -> float:
    with open_table(ms / "SPECTRAL_WINDOW") as table:
        widths = [np.abs(table.getcell("CHAN_WIDTH", row)) for row in range(table.nrows())]
    return float(np.median(np.concatenate(widths)))


def sample_visibilities(ms: Path, *, most_rows: int = 20_000) -> VisibilitySample:
    """Return unflagged cross-correlations spread evenly over a Measurement Set.

    CORRECTED_DATA is looked at where there is one, else DATA.

    Raises
    ------
    MissingError, InputError
        If it is not there or damaged.
    """
    layout = read_layout(ms)
    column = "CORRECTED_DATA" if "CORRECTED_DATA" in layout.columns else "DATA"
    hands = list(layout.parallel)
    parts: list[tuple[NDArray[Any], ...]] = []
    seen = usable = 0
    with open_table(ms) as table:
        described = table.getcol("DATA_DESC_ID")
        runs = list(row_runs(described, _RUN_ROWS))
        for k in _spread(len(runs), max(1, most_rows // _RUN_ROWS)):
            rows = runs[k]
            freqs = layout.channel_hz[layout.window_of_ddid[int(described[rows[0]])]]
            part = _read_rows(table, rows, column, hands)
            fine, unflagged, row = _means(part, float(np.mean(freqs)))
            usable, seen = usable + fine, seen + unflagged
            parts.append(row)
    u, v, amplitude, phase = (np.concatenate(c) for c in zip(*parts, strict=True)) if parts else [np.zeros(0)] * 4
    return VisibilitySample(column, u, v, amplitude, phase, usable / seen if seen else math.nan)


def _spread(n: int, most: int) -> list[int]:
    """Return at most so many numbers below ``n``, evenly spread."""
    return sorted({int(k) for k in np.linspace(0, n - 1, min(n, most)).round()}) if n else []


def _read_rows(table: Any, rows: NDArray[np.int64], column: str, hands: list[int]) -> dict[str, NDArray[Any]]:
    part = _rows_of(table, rows)
    cross = part("ANTENNA1") != part("ANTENNA2")
    flags = (part("FLAG") | part("FLAG_ROW")[:, None, None])[cross][:, :, hands]
    return {"uvw": part("UVW")[cross], "flags": flags, "data": part(column)[cross][:, :, hands]}


def _means(part: Mapping[str, NDArray[Any]], freq_hz: float) -> tuple[int, int, tuple[NDArray[Any], ...]]:
    data, flags = part["data"], part["flags"]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        good = ~flags & np.isfinite(data)
        count = good.sum(axis=(1, 2))
        values = np.where(good, data, 0).astype(complex)
        amplitude = np.abs(values).sum(axis=(1, 2)) / count
        phase = np.degrees(np.angle(values.sum(axis=(1, 2))))
    keep = count > 0
    klambda = part["uvw"][keep, :2] * (freq_hz / SPEED_OF_LIGHT_M_S / 1e3)
    fine = int(np.count_nonzero(good & (data != 0)))
    return fine, int((~flags).sum()), (klambda[:, 0], klambda[:, 1], amplitude[keep], phase[keep])


class CoarsePlane(NamedTuple):
    """An image in cells of ``step`` by ``step`` pixels: (ny, nx), NaN where there is nothing finite.

    ``least`` is the least of all pixels, NaN where none is finite.
    """

    data: NDArray[np.float32]
    step: int
    shape: tuple[int, int]
    wcs: Any
    least: float = math.nan


def read_coarse(path: Path, *, most: int = 900, brightest: bool = True) -> CoarsePlane:
    """Read an image in cells so large that no side has more than ``most`` of them, holding a part of it at a time.

    Parameters
    ----------
    path
        FITS, one plane.
    most
        Cells on the longer side.
    brightest
        Whether a cell shows its brightest pixel, so that no source is lost; else their mean.

    Raises
    ------
    MissingError
        If it is not there.
    InputError
        If it is no FITS image of one plane of the sky.
    """
    from astropy.io import fits

    with _fits_errors(path), fits.open(path, memmap=False) as hdus:
        header, plane = hdus[0].header, hdus[0].section
        ny, nx = _plane_shape(path, hdus[0].shape)
        leading = (0,) * (len(hdus[0].shape) - 2)
        step = max(1, -(-max(ny, nx) // most))
        lines = max(1, _BLOCK_VALUES // (nx * step))
        across = step * max(1, _BLOCK_VALUES // (lines * step**2))
        least = [math.nan]

        def cells(y: int, x: int) -> NDArray[np.float32]:
            part = plane[(*leading, slice(y, min(ny, y + lines * step)), slice(x, min(nx, x + across)))]
            block = np.asarray(part, np.float32)
            if (finite := block[np.isfinite(block)]).size:
                least[0] = float(np.fmin(least[0], finite.min()))
            return _cells(block, step, brightest)

        found = np.block([[cells(y, x) for x in range(0, nx, across)] for y in range(0, ny, lines * step)])
        return CoarsePlane(found, step, (ny, nx), _celestial(path, header), least[0])


def _cells(block: NDArray[np.float32], step: int, brightest: bool) -> NDArray[np.float32]:
    if step == 1:
        return np.where(np.isfinite(block), block, np.float32(np.nan))
    ny, nx = (-(-side // step) for side in block.shape)
    padded = np.full((ny * step, nx * step), np.nan, np.float32)
    padded[: block.shape[0], : block.shape[1]] = block
    cells = padded.reshape(ny, step, nx, step)
    finite = np.isfinite(cells)
    count = finite.sum(axis=(1, 3))
    if brightest:
        found = np.where(finite, cells, np.float32(-np.inf)).max(axis=(1, 3))
    else:
        found = np.where(finite, cells, 0).sum(axis=(1, 3), dtype=float) / np.maximum(count, 1)
    return np.where(count > 0, found, np.nan).astype(np.float32)


def image_outline(path: Path, *, points: int = 8) -> NDArray[np.float64]:
    """Return the edge of an image as ICRS degrees (n, 2), read from its header alone; NaN where there is no sky.

    Raises
    ------
    MissingError, InputError
        As `read_coarse`.
    """
    from astropy.io import fits

    with _fits_errors(path):
        header = fits.getheader(path)
        shape = tuple(int(header[f"NAXIS{k}"]) for k in range(int(header["NAXIS"]), 0, -1))
        ny, nx = _plane_shape(path, shape)
        wcs = _celestial(path, header)
    along = np.linspace(-0.5, 0.5, points, endpoint=False)
    x = np.concatenate([along, np.full(points, 0.5), -along, np.full(points, -0.5)]) * nx + 0.5 * (nx - 1)
    y = np.concatenate([np.full(points, -0.5), along, np.full(points, 0.5), -along]) * ny + 0.5 * (ny - 1)
    from astropy.wcs.utils import pixel_to_skycoord

    with np.errstate(invalid="ignore"):
        sky = pixel_to_skycoord(x, y, wcs, origin=0).icrs
    return np.stack([sky.ra.deg, sky.dec.deg], axis=1)


@contextmanager
def _fits_errors(path: Path) -> Iterator[None]:
    """Turn what astropy says of a file into our words."""
    try:
        yield
    except (InputError, MissingError):
        raise
    except FileNotFoundError as error:
        raise MissingError(f"no image {path}", fix="make it again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a FITS image: {error}", fix="make it again") from error


def _plane_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2 or any(n != 1 for n in shape[:-2]):
        raise InputError(f"{path} holds {shape}, wanted one plane", fix="give an image of one frequency and Stokes I")
    return int(shape[-2]), int(shape[-1])


def _celestial(path: Path, header: Any) -> Any:
    import warnings

    from astropy.wcs import WCS, FITSFixedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(header).celestial
    if wcs.naxis != 2:
        raise InputError(f"{path} has no celestial axes", fix="give an image of the sky")
    return wcs


def read_metrics(directory: Path) -> dict[str, Any]:
    """Return the report of a group, empty if there is none yet.

    Raises
    ------
    InputError
        If it is no JSON object.
    """
    path = directory / METRICS
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", fix="remove it; it is written again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no report", fix="remove it; it is written again")
    return found


def update_metrics(directory: Path, sections: Mapping[str, Any]) -> Path:
    """Put sections into a group's report, leaving the others, and return its path; a damaged report is replaced."""
    path = directory / METRICS
    try:
        before = read_metrics(directory)
    except InputError as error:
        logger.warning("%s and is replaced", error.what)
        before = {}
    whole = before | dict(sections)
    write_text(path, json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return path
