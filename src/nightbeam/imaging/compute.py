"""Pixel sizes, noise, beams and sources. Pure functions on arrays; FITS headers come as astropy WCS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError
from nightbeam.imaging.model import ImageProduct, SourceFit, Verdict
from nightbeam.sky import beam_attenuation
from nightbeam.sky.model import SPEED_OF_LIGHT_M_S, BeamModel

__all__ = [
    "Beam",
    "averaging_width",
    "beam_area_pixels",
    "beam_profile",
    "cell_size_arcsec",
    "central_quarter",
    "choose_cell_arcsec",
    "correct_for_beam",
    "drift_beam",
    "fit_beam",
    "fit_source",
    "judge_image",
    "local_maxima",
    "robust_noise",
    "smearing_loss",
    "synthesized_beam_rad",
    "w_planes",
]

Floats = NDArray[np.floating[Any]]

ARCSEC_PER_RAD = 180.0 * 3600.0 / math.pi
CELL_LIMITS_ARCSEC = (0.1, 60.0)
CELL_UNKNOWN_ARCSEC = 2.0
#: Pixels across the narrow side of the synthesized beam that a fit of the beam and cleaning need.
PIXELS_PER_BEAM = 4.0
_FWHM_PER_SIGMA = math.sqrt(8.0 * math.log(2.0))
#: Coarse grid on which a primary beam is worked out; it is smooth over tens of pixels.
_BEAM_GRID = 129


class Beam(NamedTuple):
    """A restoring beam: full widths at half maximum in pixels, position angle in degrees (north to east)."""

    major_px: float
    minor_px: float
    pa_deg: float


def cell_size_arcsec(uv_max_m: float, freq_hz: float) -> float:
    """Return the pixel size for the longest baseline: a fifth of half its fringe.

    Parameters
    ----------
    uv_max_m
        Length of the longest projected baseline, of u *and* v.
    freq_hz
        Where the wavelength is taken.

    Returns
    -------
    float
        ``0.5 lambda / uv_max / 5`` in arcsec, between 0.1 and 60; 2 if the baseline is unknown (0 or NaN).
    """
    if not (uv_max_m > 0 and freq_hz > 0):
        return CELL_UNKNOWN_ARCSEC
    cell = 0.5 * SPEED_OF_LIGHT_M_S / freq_hz / uv_max_m / 5.0 * ARCSEC_PER_RAD
    return min(max(cell, CELL_LIMITS_ARCSEC[0]), CELL_LIMITS_ARCSEC[1])


def synthesized_beam_rad(
    uv_wavelengths: Floats,
    *,
    weighting: Literal["briggs", "natural", "uniform"],
    robust: float,
    field_of_view_rad: float,
    most_cells: int = 20_000,
) -> float:
    """Return the narrowest full width at half maximum of the point-spread function.

    Parameters
    ----------
    uv_wavelengths : (n, 2)
        Where there are visibilities; their conjugates are understood.
    weighting, robust
        As in imaging; Briggs' weights are those of CASA [1]_.
    field_of_view_rad
        Its inverse is the size of a cell of the uv plane, in which weights are counted.
    most_cells
        More occupied cells than this are sampled evenly: a beam needs no more.

    Returns
    -------
    float
        NaN if there is no visibility off the origin.

    References
    ----------
    .. [1] Briggs (1995), *High Fidelity Deconvolution of Moderately Resolved Sources*, ch. 3.
    """
    uv = uv_wavelengths[np.hypot(*uv_wavelengths.T) > 0]
    if not len(uv):
        return math.nan
    cells, counts = np.unique(np.floor(uv * field_of_view_rad).astype(np.int64), axis=0, return_counts=True)
    weights = _cell_weights(counts.astype(float), weighting, robust)
    step = -(-len(cells) // most_cells)
    places, weights = (cells[::step] + 0.5) / field_of_view_rad, weights[::step]
    longest = float(np.hypot(*uv.T).max())
    radii = np.geomspace(0.05 / longest, 1e3 / longest, 96)
    widths = [_half_power_radius(places @ _direction(k), weights, radii) for k in range(_BEAM_DIRECTIONS)]
    return 2.0 * min(widths)


_BEAM_DIRECTIONS = 12


def _direction(k: int) -> Floats:
    angle = math.pi * k / _BEAM_DIRECTIONS
    return np.array([math.cos(angle), math.sin(angle)])


def _cell_weights(counts: Floats, weighting: str, robust: float) -> Floats:
    if weighting == "natural":
        return counts
    if weighting == "uniform":
        return np.ones_like(counts)
    f2 = (5.0 * 10.0**-robust) ** 2 / (float((counts**2).sum()) / float(counts.sum()))
    return np.asarray(counts / (1.0 + counts * f2), float)


def _half_power_radius(along: Floats, weights: Floats, radii: Floats) -> float:
    psf = np.array([float(weights @ np.cos(2.0 * np.pi * along * r)) for r in radii]) / float(weights.sum())
    below = np.flatnonzero(psf < 0.5)
    if not len(below) or below[0] == 0:
        return math.inf
    k = int(below[0])
    return float(np.interp(-0.5, -psf[k - 1 : k + 1], radii[k - 1 : k + 1]))


def choose_cell_arcsec(
    *, uv_max_m: float, freq_hz: float, imsize: int, field_of_view_arcsec: float, beam_minor_arcsec: float
) -> float:
    """Return the pixel size of an image whose size in pixels is given.

    A fifth of half the finest fringe (`cell_size_arcsec`), or as much more as it takes to see the whole primary
    beam, since sources outside the image are not cleaned and raise its noise; but never more than a
    quarter of the synthesized beam, nor than four fifths of half the finest fringe, beyond which the longest
    baselines would fall off the uv grid.
    """
    fine = cell_size_arcsec(uv_max_m, freq_hz)
    if not math.isfinite(beam_minor_arcsec):
        return fine
    coarsest = min(beam_minor_arcsec / PIXELS_PER_BEAM, 4.0 * fine, CELL_LIMITS_ARCSEC[1])
    return max(fine, min(field_of_view_arcsec / imsize, coarsest))


def w_planes(*, uv_max_m: float, freq_hz: float, field_of_view_rad: float) -> int:
    """Return how many w planes keep the phase error at the edge of a field small.

    Two for each turn of phase between the planes farthest apart, ``w (1 - cos(theta))``, and at least 16:
    left to itself, tclean chooses too few for small fields and ends with a crash.
    """
    turns = uv_max_m * freq_hz / SPEED_OF_LIGHT_M_S * 0.5 * (field_of_view_rad / math.sqrt(2.0)) ** 2
    return int(min(max(16, math.ceil(2.0 * turns)), 512))


def smearing_loss(bandwidth_hz: float, offset_rad: float, uv_max_m: float) -> float:
    """Return the fraction of amplitude lost at ``offset_rad`` when ``bandwidth_hz`` are averaged.

    ``1 - sinc(B theta Delta_nu / c)`` on a baseline of ``uv_max_m`` along the offset, the worst case.
    """
    return 1.0 - abs(float(np.sinc(uv_max_m * offset_rad * bandwidth_hz / SPEED_OF_LIGHT_M_S)))


def averaging_width(
    channels: Sequence[int], channel_width_hz: float, *, most: int, uv_max_m: float, offset_rad: float, max_loss: float
) -> int:
    """Return how many channels may be averaged.

    Parameters
    ----------
    channels
        Number of channels of each spectral window.
    channel_width_hz
        Of the widest channel.
    most
        Never more than this.
    uv_max_m, offset_rad, max_loss
        A source at ``offset_rad`` must not lose more than ``max_loss`` on the longest baseline.

    Returns
    -------
    int
        The largest number that divides every window (nothing is left over) and keeps the loss; at least 1.
    """
    whole = math.gcd(*channels) if channels else 1
    for width in range(min(most, whole), 1, -1):
        if whole % width == 0 and smearing_loss(width * channel_width_hz, offset_rad, uv_max_m) <= max_loss:
            return width
    return 1


def robust_noise(values: Floats) -> float:
    """Return 1.4826 times the median absolute deviation of the finite values.

    It equals the standard deviation for Gaussian noise and hardly sees sources.

    Raises
    ------
    InputError
        If nothing is finite.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise InputError("no finite pixel to measure the noise on", fix="look at the image: it is blank")
    middle = np.median(finite)
    return float(1.4826 * np.median(np.abs(finite - middle)))


def central_quarter(image: Floats) -> Floats:
    """Return the central quarter (half of each side) of an image (ny, nx)."""
    ny, nx = image.shape
    return image[ny // 4 : ny - ny // 4, nx // 4 : nx - nx // 4]


def beam_area_pixels(beam: Beam) -> float:
    """Return the solid angle of a Gaussian beam in pixels."""
    return math.pi / (4.0 * math.log(2.0)) * beam.major_px * beam.minor_px


def beam_profile(
    theta_rad: Floats, freqs_hz: Sequence[float], *, model: BeamModel, diameter_m: float, n_grid: int = 2048
) -> Floats:
    """Return the power pattern averaged over frequencies, at any angles.

    Tabulated once in angle and interpolated, because a mosaic asks for it a hundred million times.
    """
    top = float(theta_rad.max(initial=0.0))
    grid = np.linspace(0.0, top or 1e-6, n_grid)
    profile = np.mean([beam_attenuation(grid, nu, model=model, diameter_m=diameter_m) for nu in freqs_hz], axis=0)
    return np.asarray(np.interp(theta_rad, grid, profile))


def drift_beam(
    wcs: Any,
    shape: tuple[int, int],
    pointings_deg: Floats,
    freqs_hz: Sequence[float],
    *,
    model: BeamModel,
    diameter_m: float,
) -> NDArray[np.float32]:
    """Return the primary beam of a drift scan: averaged over where the dishes pointed, and over the band.

    Parameters
    ----------
    wcs : astropy.wcs.WCS, celestial, 2 axes
        Of the image.
    shape : (ny, nx)
        Of the image.
    pointings_deg : (n, 2), degrees
        Right ascension and declination at each integration, in the frame of ``wcs``.
    freqs_hz
        Frequencies of equal weight.
    model, diameter_m
        As for `nightbeam.sky.beam_attenuation`.

    Returns
    -------
    (ny, nx), float32
        Between 0 and 1; NaN where the projection has no sky.

    Notes
    -----
    Worked out on a grid of 129 x 129 and brought to the pixels by cubic splines: over a beam of a
    degree or more the difference is below 1e-5.
    """
    from scipy.ndimage import map_coordinates

    ny, nx = shape
    rows = np.linspace(0, ny - 1, min(_BEAM_GRID, ny))
    cols = np.linspace(0, nx - 1, min(_BEAM_GRID, nx))
    grid_x, grid_y = np.meshgrid(cols, rows)
    with np.errstate(invalid="ignore"):
        ra, dec = wcs.all_pix2world(grid_x, grid_y, 0)
    sky = _unit_vectors(np.asarray(ra), np.asarray(dec))
    on_sky = np.asarray(np.isfinite(sky).all(axis=-1))
    total = np.zeros(grid_x.shape)
    for point in _unit_vectors(pointings_deg[:, 0], pointings_deg[:, 1]):
        chord = np.linalg.norm(np.where(on_sky[..., None], sky, point) - point, axis=-1)
        angle = 2.0 * np.arcsin(np.clip(chord / 2.0, 0.0, 1.0))
        total += beam_profile(angle, freqs_hz, model=model, diameter_m=diameter_m)
    coarse = total / len(pointings_deg)
    y = np.arange(ny) / max(ny - 1, 1) * (len(rows) - 1)
    x = np.arange(nx) / max(nx - 1, 1) * (len(cols) - 1)
    fine = map_coordinates(coarse, np.meshgrid(y, x, indexing="ij"), order=3, mode="nearest")
    if not on_sky.all():
        near = map_coordinates(on_sky.astype(float), np.meshgrid(y, x, indexing="ij"), order=1, mode="nearest")
        fine[near < 1.0] = np.nan
    return np.asarray(np.clip(fine, 0.0, 1.0), np.float32)


def _unit_vectors(ra_deg: Floats, dec_deg: Floats) -> Floats:
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def correct_for_beam(image: Floats, pb: Floats, *, limit: float) -> NDArray[np.float32]:
    """Return ``image / pb``, NaN where the beam is below ``limit`` or unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        corrected = np.where(pb >= abs(limit), image / pb, np.nan)
    return np.asarray(corrected, np.float32)


def local_maxima(image: Floats, *, above: float, beam: Beam) -> list[tuple[int, int]]:
    """Return (y, x) of pixels above a level that are the highest within a beam's width, brightest first."""
    from scipy.ndimage import maximum_filter

    size = max(3, round(beam.major_px) | 1)
    clean = np.where(np.isfinite(image), image, -np.inf)
    highest = maximum_filter(clean, size=size, mode="constant", cval=-np.inf)
    y, x = np.nonzero((clean == highest) & (clean > above))
    order = np.argsort(-clean[y, x], kind="stable")
    return [(int(y[i]), int(x[i])) for i in order]


def fit_beam(psf: Floats, *, cutoff: float) -> Beam:
    """Fit the restoring beam to the main lobe of a dirty beam, as CASA does.

    Parameters
    ----------
    psf : (ny, nx)
        1 at its peak.
    cutoff
        Only what is above this, and hangs together with the peak, counts.

    Returns
    -------
    Beam
        Of the Gaussian of height 1 about the peak that is nearest in the sense of least squares.

    Raises
    ------
    InputError
        If there is no main lobe to fit.

    Notes
    -----
    The lobe is first resampled by cubic splines to at least five points a pixel, because a beam of three pixels leaves
    a dozen above the cutoff. Fitted over a box that takes in the sidelobes instead, the beam of an array with long arms
    comes out three times as long as it is.
    """
    from scipy.ndimage import label, map_coordinates
    from scipy.optimize import least_squares

    y0, x0 = (int(k) for k in np.unravel_index(int(np.argmax(psf)), psf.shape))
    lobe, _ = label(psf >= cutoff)
    inside = lobe == lobe[y0, x0] if lobe[y0, x0] else np.zeros_like(psf, bool)
    rows, cols = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows) or inside.all():
        raise InputError("the dirty beam has no main lobe", fix="look at the weights and the pixel size")
    half = 1 + max(rows[-1] - y0, y0 - rows[0], cols[-1] - x0, x0 - cols[0])
    offsets = np.linspace(-half, half, 2 * half * max(5, 60 // half) + 1)
    dy, dx = np.meshgrid(offsets, offsets, indexing="ij")
    fine = map_coordinates(psf, [y0 + dy, x0 + dx], order=3, mode="nearest")
    lobe, _ = label(fine >= cutoff)
    inside = lobe == lobe[len(offsets) // 2, len(offsets) // 2]
    x, y, values = dx[inside], dy[inside], np.maximum(fine[inside], cutoff)
    terms = np.stack([x * x, 2.0 * x * y, y * y], axis=-1)
    start = np.linalg.lstsq(terms * values[:, None], -np.log(values.clip(max=1.0)) * values, rcond=None)[0]
    form = least_squares(lambda p: np.exp(np.clip(-(terms @ p), -50.0, 5.0)) - values, start).x
    size, axes = np.linalg.eigh(np.array([[form[0], form[1]], [form[1], form[2]]]))
    if not size[0] > 0:
        raise InputError("the dirty beam has no main lobe", fix="look at the weights and the pixel size")
    major, minor = 2.0 * np.sqrt(math.log(2.0) / size)
    pa = math.degrees(math.atan2(-axes[0, 0], axes[1, 0]))  # from +y (north) towards -x (east)
    return Beam(float(major), float(minor), (pa + 90.0) % 180.0 - 90.0)


class GaussianFit(NamedTuple):
    """A fitted elliptical Gaussian: amplitude in the image's unit, the rest in pixels (0, 0 = first pixel's centre)."""

    amplitude: float
    x: float
    y: float
    major_px: float
    minor_px: float


def fit_source(image: Floats, x: float, y: float, *, beam: Beam, search_px: float) -> GaussianFit | None:
    """Fit an elliptical Gaussian to the brightest peak near a place.

    Parameters
    ----------
    image : (ny, nx)
        Jy/beam.
    x, y
        Where to look, pixels from the centre of the first one.
    beam
        The restoring beam, where the fit begins.
    search_px
        A peak within this distance is taken: the brightest, after a Gaussian of one major axis (to half) from the
        place has been laid over it, so that a bright neighbour does not stand in for a fainter source.

    Returns
    -------
    GaussianFit or None
        None if there is no finite positive pixel to begin with, or nothing like a Gaussian is there.

    Notes
    -----
    Least squares (`scipy.optimize.curve_fit`) over a square of 1.25 major axes to each side. The widths may lie
    between 0.5 and 4 beams. The sum under the fit over the beam's area is the integrated flux.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    start = _nearest_peak(image, x, y, reach_px=search_px, prefer_px=beam.major_px)
    if start is None:
        return None
    x0, y0 = start
    half = max(3, math.ceil(1.25 * beam.major_px))
    ny, nx = image.shape
    ys, xs = slice(max(0, y0 - half), min(ny, y0 + half + 1)), slice(max(0, x0 - half), min(nx, x0 + half + 1))
    cut = image[ys, xs]
    gy, gx = np.mgrid[ys, xs]
    good = np.isfinite(cut)
    if good.sum() < 12:
        return None
    s1, s2 = beam.major_px / _FWHM_PER_SIGMA, beam.minor_px / _FWHM_PER_SIGMA
    first = (float(image[y0, x0]), float(x0), float(y0), s1, s2, math.radians(beam.pa_deg))
    low = (0.0, x0 - beam.major_px, y0 - beam.major_px, 0.5 * s2, 0.5 * s2, -10.0)
    high = (10.0 * first[0], x0 + beam.major_px, y0 + beam.major_px, 4.0 * s1, 4.0 * s1, 10.0)
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # the covariance is not used
            found, _ = curve_fit(
                _gaussian, (gx[good], gy[good]), cut[good].astype(float), p0=first, bounds=(low, high), maxfev=2000
            )
    except RuntimeError:  # it did not converge: there is nothing like a Gaussian
        return None
    amplitude, fx, fy, a, b = (float(v) for v in found[:5])
    return GaussianFit(amplitude, fx, fy, max(a, b) * _FWHM_PER_SIGMA, min(a, b) * _FWHM_PER_SIGMA)


def _nearest_peak(image: Floats, x: float, y: float, *, reach_px: float, prefer_px: float) -> tuple[int, int] | None:
    from scipy.ndimage import maximum_filter

    ny, nx = image.shape
    reach = math.ceil(max(reach_px, 1.0))
    cx, cy = round(x), round(y)
    ys, xs = slice(max(0, cy - reach), min(ny, cy + reach + 1)), slice(max(0, cx - reach), min(nx, cx + reach + 1))
    cut = np.where(np.isfinite(image[ys, xs]), image[ys, xs], -np.inf)
    if cut.size == 0:
        return None
    gy, gx = np.mgrid[ys, xs]
    away = np.hypot(gx - x, gy - y)
    peak = (cut == maximum_filter(cut, size=3, mode="nearest")) & (cut > 0) & (away <= max(reach_px, 1.0))
    if not peak.any():
        return None
    score = np.where(peak, cut * np.exp(-math.log(2.0) * (away / prefer_px) ** 2), -np.inf)
    best = int(np.argmax(score))
    return int(gx.flat[best]), int(gy.flat[best])


def _gaussian(xy: Any, amplitude: float, x0: float, y0: float, s1: float, s2: float, pa: float) -> Floats:
    # pa from north (+y) to east (-x), as BPA counts it on an image with RA growing to the left.
    x, y = xy
    along = -(x - x0) * np.sin(pa) + (y - y0) * np.cos(pa)
    across = (x - x0) * np.cos(pa) + (y - y0) * np.sin(pa)
    return np.asarray(amplitude * np.exp(-0.5 * ((along / s1) ** 2 + (across / s2) ** 2)))


def judge_image(
    product: ImageProduct,
    *,
    min_peak_over_noise: float = 5.0,
    calibrator: SourceFit | None = None,
    max_offset_beams: float = 1.0,
) -> Verdict:
    """Say whether an image is good, with every reason why not.

    Parameters
    ----------
    product
        With its metrics.
    min_peak_over_noise
        A fainter image shows nothing but noise.
    calibrator
        The calibrator measured on the image, if there is one in the field.
    max_offset_beams
        How far from its place it may be.
    """
    reasons = list(_complaints(product, min_peak_over_noise))
    if calibrator is not None:
        reasons += _calibrator_complaints(calibrator, max_offset_beams)
    return Verdict(not reasons, tuple(reasons))


def _complaints(product: ImageProduct, least: float) -> Iterable[str]:
    if not (math.isfinite(product.noise_jy) and product.noise_jy > 0):
        yield f"the noise of the residual is {product.noise_jy}: the image is blank"
        return
    ratio = product.peak_jy / product.noise_jy
    if ratio < least:
        yield f"its peak of {product.peak_jy:.4g} Jy is {ratio:.1f} times the noise, less than {least:g}"
    if product.deepest_jy < -6.0 * product.noise_jy and -product.deepest_jy > 0.5 * product.peak_jy:
        yield (
            f"its deepest hole of {product.deepest_jy:.4g} Jy is more than half its peak of {product.peak_jy:.4g} Jy: "
            "its calibration is wrong, or a bright source lies outside of it"
        )


def _calibrator_complaints(calibrator: SourceFit, most: float) -> list[str]:
    if not calibrator.found:
        return [f"the calibrator {calibrator.name} was not found: {calibrator.reason}"]
    if calibrator.offset_beams > most:
        return [
            f"the calibrator {calibrator.name} is {calibrator.offset_arcsec:.2f} arcsec "
            f"({calibrator.offset_beams:.2f} beams) from its place"
        ]
    return []
