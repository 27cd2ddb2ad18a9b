"""Drift tiles of a known sky, made without an interferometer: images as `nightbeam.imaging` leaves them.

Every source is a Gaussian beam at its exact place in the tile's own orthographic projection, times the primary beam of
a dish that stood still while the sky drifted; the noise has the width of the beam and a stated rms. All of it is
written out here, so that what is tested with these tiles is not tested with itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.files import sha256, write_bytes
from nightbeam.core.times import datetime_from_mjd
from nightbeam.imaging.files import write_product
from nightbeam.imaging.model import ImageKind, ImageOptions, ImageProduct, product_path
from nightbeam.sky import beam_attenuation, separation
from nightbeam.sky.model import DISH_DIAMETER_M, Calibrator

__all__ = ["TILE_STEP_DEG", "SkyTile", "drift_night", "random_sky", "write_tile"]

Floats = NDArray[np.floating[Any]]

#: Right ascension that passes from one observation (24 integrations of 12.88 s) to the next.
TILE_STEP_DEG = 309.12 * 360.9856473 / 86400.0
_OBSERVATION_DAYS = 309.12 / 86400.0
_FWHM_PER_SIGMA = math.sqrt(8.0 * math.log(2.0))
_POINTINGS = 7
_MADE_AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyTile:
    """What a tile is asked to be.

    Attributes
    ----------
    ra_deg, dec_deg
        Its centre, and where the dish pointed at the middle of the observation.
    mid_mjd
        Middle of the observation, UTC.
    noise_jy
        Rms of the flat image.
    shift_arcsec
        East and north, by which every source is put beside its place; a fault to be found.
    flux_scale
        By which every source is too bright; another.
    calibration_set
        Name in the provenance; empty: none.
    """

    ra_deg: float
    dec_deg: float
    mid_mjd: float
    noise_jy: float = 2e-3
    imsize: int = 256
    cell_arcsec: float = 40.0
    beam_major_arcsec: float = 200.0
    beam_minor_arcsec: float = 160.0
    beam_pa_deg: float = 30.0
    freq_hz: float = 1.405e9
    pblimit: float = 0.2
    shift_arcsec: tuple[float, float] = (0.0, 0.0)
    flux_scale: float = 1.0
    calibration_set: str = "3C286_2025-10-02"
    seed: int = 0


def random_sky(
    n: int,
    *,
    ra_deg: tuple[float, float],
    dec_deg: tuple[float, float],
    flux_jy: tuple[float, float] = (0.1, 2.0),
    apart_deg: float = 0.25,
    seed: int = 0,
) -> list[Calibrator]:
    """Return up to ``n`` sources between two right ascensions (the second may be beyond 360) and declinations.

    Logarithmically spread in flux and no two nearer to each other than ``apart_deg``.
    """
    chance = np.random.default_rng(seed)
    found: list[Calibrator] = []
    for k in range(50 * n):
        ra, dec = chance.uniform(*ra_deg) % 360.0, chance.uniform(*dec_deg)
        flux = float(np.exp(chance.uniform(*np.log(flux_jy))))
        if found:
            away = separation(ra, dec, [s.ra_deg for s in found], [s.dec_deg for s in found])
            if float(np.min(away)) < apart_deg:
                continue
        found.append(Calibrator(f"S{k:04d}", float(ra), float(dec), flux))
        if len(found) == n:
            break
    return found


def drift_night(
    directory: Path,
    sources: Sequence[Calibrator],
    *,
    tiles: int,
    first_ra_deg: float,
    dec_deg: float,
    start_mjd: float = 60950.1,
    noises_jy: Sequence[float] = (),
    like: SkyTile | None = None,
) -> list[ImageProduct]:
    """Write adjacent tiles of one night, named by number, 309 s apart in time and 1.29 degrees in right ascension.

    ``noises_jy`` gives one each; ``like`` what they have in common.
    """
    base = like or SkyTile(ra_deg=0.0, dec_deg=dec_deg, mid_mjd=start_mjd)
    noises = list(noises_jy) or [base.noise_jy] * tiles
    return [
        write_tile(
            directory / f"tile{k:03d}.img",
            replace(
                base,
                ra_deg=(first_ra_deg + k * TILE_STEP_DEG) % 360.0,
                dec_deg=dec_deg,
                mid_mjd=start_mjd + (k + 0.5) * _OBSERVATION_DAYS,
                noise_jy=noises[k],
                seed=base.seed + k,
            ),
            sources,
        )
        for k in range(tiles)
    ]


def write_tile(stem: Path, tile: SkyTile, sources: Sequence[Calibrator]) -> ImageProduct:
    """Write image, pb, pbcor and residual as FITS, a stand-in for the picture, and the description of the product."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    pb = _primary_beam(tile)
    noise = _noise(tile)
    image = noise + _sources(tile, sources)
    with np.errstate(divide="ignore", invalid="ignore"):
        pbcor = np.where(pb >= tile.pblimit, image / pb, np.nan)
    planes: dict[ImageKind, Floats] = {"image": image, "pb": pb, "pbcor": pbcor, "residual": noise}
    paths = {kind: product_path(stem, kind) for kind in planes}
    for kind, plane in planes.items():
        _write_fits(paths[kind], plane, tile, kind, peak=float(image.max()))
    png = stem.with_name(stem.name + ".png")
    write_bytes(png, b"not a picture")
    product = _product(stem, tile, image, pbcor, paths, png)
    write_product(product)
    return product


def _pixels(tile: SkyTile) -> tuple[Floats, Floats]:
    """Return direction cosines east and north of all pixels; the reference pixel is that of CASA, n/2 from 0."""
    step = math.radians(tile.cell_arcsec / 3600.0)
    axis = (np.arange(tile.imsize) - tile.imsize // 2) * step
    north, west = np.meshgrid(axis, axis, indexing="ij")
    return -west, north


def _primary_beam(tile: SkyTile) -> Floats:
    east, north = _pixels(tile)
    up = np.sqrt(1.0 - east**2 - north**2)
    sin_d, cos_d = math.sin(math.radians(tile.dec_deg)), math.cos(math.radians(tile.dec_deg))
    dec = np.degrees(np.arcsin(north * cos_d + up * sin_d))
    ra = tile.ra_deg + np.degrees(np.arctan2(east, up * cos_d - north * sin_d))
    return _drifting_beam(tile, ra, dec)


def _drifting_beam(tile: SkyTile, ra: Any, dec: Any) -> Floats:
    # Midpoint rule over the right ascensions that passed through the beam.
    drift = (np.arange(_POINTINGS) + 0.5) / _POINTINGS - 0.5
    levels = [
        beam_attenuation(
            np.radians(separation(tile.ra_deg + d * TILE_STEP_DEG, tile.dec_deg, ra, dec)),
            tile.freq_hz,
            diameter_m=DISH_DIAMETER_M,
        )
        for d in drift
    ]
    return np.asarray(np.mean(levels, axis=0))


def _sources(tile: SkyTile, sources: Sequence[Calibrator]) -> Floats:
    image = np.zeros((tile.imsize, tile.imsize))
    for source in sources:
        if float(separation(tile.ra_deg, tile.dec_deg, source.ra_deg, source.dec_deg)) < 10.0:
            _add_source(image, tile, source)
    return image


def _add_source(image: Floats, tile: SkyTile, source: Calibrator) -> None:
    d_ra = math.radians(source.ra_deg - tile.ra_deg)
    dec, dec0 = math.radians(source.dec_deg), math.radians(tile.dec_deg)
    east = math.cos(dec) * math.sin(d_ra) + math.radians(tile.shift_arcsec[0] / 3600.0)
    north = math.sin(dec) * math.cos(dec0) - math.cos(dec) * math.sin(dec0) * math.cos(d_ra)
    north += math.radians(tile.shift_arcsec[1] / 3600.0)
    level = float(_drifting_beam(tile, source.ra_deg, source.dec_deg))
    step = math.radians(tile.cell_arcsec / 3600.0)
    x, y = tile.imsize // 2 - east / step, tile.imsize // 2 + north / step
    reach = math.ceil(3.0 * tile.beam_major_arcsec / tile.cell_arcsec)
    ys = slice(max(0, round(y) - reach), max(0, min(tile.imsize, round(y) + reach + 1)))
    xs = slice(max(0, round(x) - reach), max(0, min(tile.imsize, round(x) + reach + 1)))
    if ys.stop > ys.start and xs.stop > xs.start:
        gy, gx = np.mgrid[ys, xs]
        image[ys, xs] += source.flux_jy * tile.flux_scale * level * _beam(tile, gx - x, gy - y)


def _beam(tile: SkyTile, dx: Floats, dy: Floats, *, narrower: float = 1.0) -> Floats:
    """Return the restoring beam; its position angle counts from north (+y) to east (-x)."""
    pa = math.radians(tile.beam_pa_deg)
    along, across = -dx * math.sin(pa) + dy * math.cos(pa), dx * math.cos(pa) + dy * math.sin(pa)
    s1, s2 = (
        width / tile.cell_arcsec / _FWHM_PER_SIGMA * narrower
        for width in (tile.beam_major_arcsec, tile.beam_minor_arcsec)
    )
    return np.asarray(np.exp(-0.5 * ((along / s1) ** 2 + (across / s2) ** 2)))


def _noise(tile: SkyTile) -> Floats:
    """Return noise whose autocorrelation is that of white noise seen through the beam, of the rms asked for."""
    white = np.random.default_rng(tile.seed).normal(size=(tile.imsize, tile.imsize))
    away = np.fft.fftfreq(tile.imsize, 1.0 / tile.imsize)
    dy, dx = np.meshgrid(away, away, indexing="ij")
    # A kernel narrower by root 2 than the beam gives noise whose autocorrelation is the beam.
    kernel = np.fft.fft2(_beam(tile, dx, dy, narrower=math.sqrt(0.5)))
    noise = np.fft.ifft2(np.fft.fft2(white) * kernel).real
    return np.asarray(tile.noise_jy * noise / noise.std())


def _write_fits(path: Path, plane: Floats, tile: SkyTile, kind: str, *, peak: float) -> None:
    from astropy.io import fits

    half = tile.imsize // 2 + 1.0
    start, middle, end = (
        datetime_from_mjd(tile.mid_mjd + part * _OBSERVATION_DAYS).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        for part in (-0.5, 0.0, 0.5)
    )
    cell = tile.cell_arcsec / 3600.0
    cards: dict[str, Any] = {
        "BUNIT": "" if kind == "pb" else "Jy/beam", "BTYPE": "Beam" if kind == "pb" else "Intensity",
        "OBJECT": "drift", "TELESCOP": "OVRO_MMA", "RADESYS": "ICRS", "LONPOLE": 180.0, "LATPOLE": tile.dec_deg,
        "CTYPE1": "RA---SIN", "CRVAL1": tile.ra_deg, "CRPIX1": half, "CDELT1": -cell, "CUNIT1": "deg",
        "CTYPE2": "DEC--SIN", "CRVAL2": tile.dec_deg, "CRPIX2": half, "CDELT2": cell, "CUNIT2": "deg",
        "CTYPE3": "FREQ", "CRVAL3": tile.freq_hz, "CRPIX3": 1.0, "CDELT3": 1.875e8, "CUNIT3": "Hz",
        "CTYPE4": "STOKES", "CRVAL4": 1.0, "CRPIX4": 1.0, "CDELT4": 1.0, "CUNIT4": "",
        "TIMESYS": "UTC", "DATE-OBS": start, "DATE-AVG": middle, "DATE-END": end,
        "MJD-OBS": tile.mid_mjd - 0.5 * _OBSERVATION_DAYS, "MJD-AVG": tile.mid_mjd,
        "RESTFRQ": tile.freq_hz, "BANDWID": 1.875e8, "NOISE": tile.noise_jy, "DYNRANGE": peak / tile.noise_jy,
        "PBLIMIT": tile.pblimit,
    }  # fmt: skip
    if kind != "pb":
        cards |= {
            "BMAJ": tile.beam_major_arcsec / 3600.0,
            "BMIN": tile.beam_minor_arcsec / 3600.0,
            "BPA": tile.beam_pa_deg,
        }
    if tile.calibration_set:
        cards["CALSET"] = tile.calibration_set
    header = fits.Header(cards)
    fits.writeto(path, plane.astype(np.float32)[None, None], header, overwrite=True)


def _product(
    stem: Path, tile: SkyTile, image: Floats, pbcor: Floats, paths: dict[ImageKind, Path], png: Path
) -> ImageProduct:
    peak = float(image.max())
    return ImageProduct(
        stem=stem,
        ms=stem.with_name(stem.name.removesuffix(".img") + ".ms"),
        engine="drawn",
        fits=paths,
        native={},
        png=png,
        object_name="drift",
        telescope="OVRO_MMA",
        beam_major_arcsec=tile.beam_major_arcsec,
        beam_minor_arcsec=tile.beam_minor_arcsec,
        beam_pa_deg=tile.beam_pa_deg,
        noise_jy=tile.noise_jy,
        noise_centre_jy=tile.noise_jy,
        peak_jy=peak,
        peak_ra_deg=tile.ra_deg,
        peak_dec_deg=tile.dec_deg,
        deepest_jy=float(image.min()),
        dynamic_range=peak / tile.noise_jy,
        peak_pbcor_jy=float(np.nanmax(pbcor)),
        ra_deg=tile.ra_deg,
        dec_deg=tile.dec_deg,
        imsize=tile.imsize,
        cell_arcsec=tile.cell_arcsec,
        freq_hz=tile.freq_hz,
        bandwidth_hz=1.875e8,
        integration_s=309.12,
        start_mjd=tile.mid_mjd - 0.5 * _OBSERVATION_DAYS,
        mid_mjd=tile.mid_mjd,
        end_mjd=tile.mid_mjd + 0.5 * _OBSERVATION_DAYS,
        datacolumn="corrected",
        flagged_fraction=0.0,
        channels_averaged=1,
        beam_model="dsacalib",
        pbcor=True,
        made_at=_MADE_AT,
        seconds=0.0,
        version="0",
        versions={},
        parameters={},
        provenance={"calibration_set": tile.calibration_set} if tile.calibration_set else {},
        options=ImageOptions(imsize=tile.imsize, cell_arcsec=tile.cell_arcsec, pblimit=tile.pblimit),
        input_fingerprint="",
        sha256={path.name: sha256(path) for path in (*paths.values(), png)},
    )
