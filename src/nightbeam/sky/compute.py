"""Times to sidereal times, directions to apparent places and back, angles, beams. Pure arithmetic.

Apparent places are topocentric and of date: precession, nutation, annual and diurnal aberration,
light deflection, polar motion, and no refraction. They agree with astropy's ``HADec`` and, within an
arcsecond, with casacore's HADEC, in which the correlator of DSA-110 gives its pointing.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nightbeam.core.errors import UsageError
from nightbeam.sky.model import BEAM_MODELS, SPEED_OF_LIGHT_M_S, BeamModel, Site

__all__ = [
    "EarthOrientation",
    "apparent_hadec",
    "beam_attenuation",
    "beam_first_null_rad",
    "beam_fwhm_rad",
    "earth_orientation",
    "is_alone",
    "itrf_from_site",
    "lst_rad",
    "meridian_icrs",
    "offset_position",
    "separation",
    "uvw_basis",
]

_log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

# Not used by erfa where the pressure is zero, but it wants them: temperature C, humidity, wavelength um.
_NO_REFRACTION = (0.0, 0.0, 0.0, 200000.0)
_ERFA_KNOWS_JD = (2437665.5, 2460310.5 + 4 * 365.25)  # 1962 to 2028


class EarthOrientation(NamedTuple):
    """UT1-UTC in seconds and the pole in radians, each of the shape of the times asked for."""

    dut1_s: Floats
    pole_x_rad: Floats
    pole_y_rad: Floats


@lru_cache(maxsize=1)
def _iers_table() -> Any:
    # The table that comes with astropy: nothing is ever fetched. IERS_A, not IERS_Auto, which complains
    # of its own age.
    from astropy.utils import iers

    return iers.IERS_A.open(iers.IERS_A_FILE)


def earth_orientation(jd: ArrayLike) -> EarthOrientation:
    """Return how the Earth stood at UTC times.

    Beyond the shipped table (about a year of predictions) the value at its end is used and a warning
    is logged; UT1-UTC then drifts by some 0.1 s (1.5 arcsec in right ascension) per year.

    Parameters
    ----------
    jd : any shape, days
        Julian Dates, UTC.

    Returns
    -------
    EarthOrientation
        Three arrays of the shape of ``jd``.

    References
    ----------
    IERS Bulletin A, ``finals2000A.all``.
    """
    times = np.asarray(jd, float)
    table = _iers_table()
    first, last = (float(table["MJD"][i].value) + 2400000.5 for i in (0, -1))
    if times.size and (times.min() < first or times.max() > last):
        _log.warning("the Earth orientation table ends at JD %.1f; its last value is used beyond", last)
    whole, part = _two_part(np.clip(times, first, last - 1.0))
    dut1, _ = table.ut1_utc(whole, part, return_status=True)
    x, y, _ = table.pm_xy(whole, part, return_status=True)
    return EarthOrientation(
        *(np.asarray(q.to_value(unit)).reshape(times.shape) for q, unit in ((dut1, "s"), (x, "rad"), (y, "rad")))
    )


def lst_rad(jd: ArrayLike, longitude_deg: float) -> Floats:
    """Return the local apparent sidereal time in radians, 0 to 2 pi.

    Parameters
    ----------
    jd : any shape, days
        Julian Dates, UTC.
    longitude_deg
        East positive.

    References
    ----------
    IAU 2006/2000A, `erfa.gst06a`.
    """
    import erfa

    whole, part = _two_part(jd)
    ut = part + earth_orientation(jd).dut1_s / 86400.0
    with _dubious_years(jd):
        tt = erfa.taitt(*erfa.utctai(whole, part))
        sidereal = erfa.gst06a(whole, ut, *tt)
    return np.asarray((sidereal + np.radians(longitude_deg)) % (2.0 * np.pi), float)


def apparent_hadec(jd: ArrayLike, ra_deg: ArrayLike, dec_deg: ArrayLike, site: Site) -> tuple[Floats, Floats]:
    """Return the apparent hour angle and declination of ICRS directions.

    Parameters
    ----------
    jd, ra_deg, dec_deg : shapes that broadcast
        Julian Dates (UTC, days) and ICRS directions in degrees.
    site
        The place of observation.

    Returns
    -------
    ha_rad, dec_rad : the broadcast shape
        Hour angle in -pi to pi, positive west of the meridian.
    """
    import erfa

    astrom = _astrometry(jd, site)
    with _dubious_years(jd):
        ri, di = erfa.atciqz(np.radians(ra_deg), np.radians(dec_deg), astrom)
        _, _, ha, dec, _ = erfa.atioq(ri, di, astrom)
    return np.asarray((ha + np.pi) % (2.0 * np.pi) - np.pi, float), np.asarray(dec, float)


def meridian_icrs(jd: ArrayLike, dec_apparent_rad: ArrayLike, site: Site) -> tuple[Floats, Floats]:
    """Return the ICRS direction of hour angle 0 at an apparent declination.

    Parameters
    ----------
    jd, dec_apparent_rad : shapes that broadcast
        Julian Dates (UTC, days) and apparent declinations of date in radians.
    site
        The place of observation.

    Returns
    -------
    ra_deg, dec_deg : the broadcast shape
        ICRS, right ascension in 0 to 360.

    Notes
    -----
    The meridian is the one of the Earth-fixed frame in which antenna positions are given, so the
    result agrees with `apparent_hadec` to numerical precision.
    """
    import erfa

    times, dec = np.broadcast_arrays(np.asarray(jd, float), np.asarray(dec_apparent_rad, float))
    whole, part = _two_part(times)
    earth = earth_orientation(times)
    with _dubious_years(times):
        ra, dec_icrs = erfa.atoc13(
            "H", 0.0, dec, whole, part, earth.dut1_s,
            site.longitude_rad, site.latitude_rad, site.height_m,
            earth.pole_x_rad, earth.pole_y_rad, *_NO_REFRACTION,
        )  # fmt: skip
    return np.asarray(np.degrees(ra) % 360.0, float), np.asarray(np.degrees(dec_icrs), float)


def separation(ra1_deg: ArrayLike, dec1_deg: ArrayLike, ra2_deg: ArrayLike, dec2_deg: ArrayLike) -> Floats:
    """Return the great-circle angle in degrees between two directions given in degrees.

    It is exact at every size of angle (Vincenty's formula), at the poles and across 0 h.
    """
    ra1, dec1, ra2, dec2 = (np.radians(np.asarray(a, float)) for a in (ra1_deg, dec1_deg, ra2_deg, dec2_deg))
    dra = ra2 - ra1
    across = np.cos(dec2) * np.sin(dra)
    along = np.cos(dec1) * np.sin(dec2) - np.sin(dec1) * np.cos(dec2) * np.cos(dra)
    towards = np.sin(dec1) * np.sin(dec2) + np.cos(dec1) * np.cos(dec2) * np.cos(dra)
    return np.asarray(np.degrees(np.arctan2(np.hypot(across, along), towards)), float)


def is_alone(
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    flux: ArrayLike,
    *,
    within_arcsec: float,
    among: ArrayLike | None = None,
    share: float = 0.02,
) -> NDArray[np.bool_]:
    """Return which sources of a list have no neighbour that would change the peak by which they are measured.

    Parameters
    ----------
    ra_deg, dec_deg, flux : (n,)
        All of the list.
    within_arcsec
        How near a neighbour counts.
    among : (k,), int
        The numbers of those that are asked for; None: all of them.
    share
        Of a source's flux: what is fainter is no neighbour of it.

    Returns
    -------
    (k,), bool
    """
    from scipy.spatial import cKDTree

    ras, decs, fluxes = np.radians(np.asarray(ra_deg, float)), np.radians(np.asarray(dec_deg, float)), np.asarray(flux)
    asked = np.arange(len(ras)) if among is None else np.asarray(among, int)
    if not len(asked):
        return np.ones(0, bool)
    places = np.stack([np.cos(decs) * np.cos(ras), np.cos(decs) * np.sin(ras), np.sin(decs)], axis=-1)
    chord = 2.0 * math.sin(0.5 * math.radians(within_arcsec / 3600.0))
    near = cKDTree(places).query_ball_point(places[asked], chord)
    # each is its own neighbour
    return np.array([(fluxes[n] > share * fluxes[k]).sum() <= 1 for n, k in zip(near, asked, strict=True)])


def offset_position(
    ra_deg: ArrayLike, dec_deg: ArrayLike, distance_deg: ArrayLike, bearing_deg: ArrayLike
) -> tuple[Floats, Floats]:
    """Return the direction (degrees) at a great-circle distance and bearing (north through east)."""
    ra, dec, rho, pa = (np.radians(np.asarray(a, float)) for a in (ra_deg, dec_deg, distance_deg, bearing_deg))
    sin_dec = np.sin(dec) * np.cos(rho) + np.cos(dec) * np.sin(rho) * np.cos(pa)
    east = np.sin(rho) * np.sin(pa)
    north = np.cos(dec) * np.cos(rho) - np.sin(dec) * np.sin(rho) * np.cos(pa)
    new_dec = np.arctan2(sin_dec, np.hypot(east, north))
    return np.degrees(ra + np.arctan2(east, north)) % 360.0, np.asarray(np.degrees(new_dec), float)


def uvw_basis(ha_rad: float, dec_rad: float, longitude_deg: float) -> Floats:
    """Return the axes u (east), v (north), w (towards the source) as rows, in Earth-fixed coordinates.

    Parameters
    ----------
    ha_rad, dec_rad
        Apparent direction of the phase centre.
    longitude_deg
        East longitude of the meridian from which hour angles count.

    Returns
    -------
    (3, 3)
        ``positions_itrf_m @ basis.T`` gives u, v, w in metres.
    """
    theta = np.radians(longitude_deg) - ha_rad
    sin_t, cos_t = np.sin(theta), np.cos(theta)
    sin_d, cos_d = np.sin(dec_rad), np.cos(dec_rad)
    return np.array(
        [[-sin_t, cos_t, 0.0], [-sin_d * cos_t, -sin_d * sin_t, cos_d], [cos_d * cos_t, cos_d * sin_t, sin_d]]
    )


def itrf_from_site(site: Site) -> Floats:
    """Return the Earth-centred position (3,) in metres of a geodetic WGS84 place."""
    import erfa

    return np.asarray(erfa.gd2gc(1, site.longitude_rad, site.latitude_rad, site.height_m), float)


def beam_attenuation(
    theta_rad: ArrayLike, freq_hz: ArrayLike, *, model: BeamModel = "dsacalib", diameter_m: float
) -> Floats:
    """Return the power pattern of a dish, 1 at its centre.

    Parameters
    ----------
    theta_rad, freq_hz : shapes that broadcast
        Angle from the pointing centre, 0 to pi, and frequency.
    model : {"dsacalib", "gaussian", "airy"}
        ``dsacalib`` [1]_: ``(cos(pi x) / (1 - 4 x**2))**4`` with ``x = 1.2 theta D / lambda``, full width
        at half maximum 1.86 deg at 1405 MHz for 4.65 m. ``gaussian``: full width 1.22 lambda/D
        (3.2 deg). ``airy``: a uniformly lit aperture, full width 1.03 lambda/D.
    diameter_m
        Of the dish.

    Returns
    -------
    the broadcast shape
        Between 0 and 1.

    Raises
    ------
    UsageError
        If there is no such model.

    References
    ----------
    .. [1] dsa110-calib, ``dsacalib.fringestopping.pb_resp``.
    """
    theta = np.asarray(theta_rad, float)
    size = theta * diameter_m * np.asarray(freq_hz, float) / SPEED_OF_LIGHT_M_S
    if model == "dsacalib":
        return _cosine_taper(1.2 * size) ** 4
    if model == "gaussian":
        return np.asarray(np.exp(-4.0 * np.log(2.0) * (size / 1.22) ** 2), float)
    if model == "airy":
        from scipy.special import j1

        x = np.pi * diameter_m * np.asarray(freq_hz, float) / SPEED_OF_LIGHT_M_S * np.sin(np.minimum(theta, np.pi / 2))
        small = np.abs(x) < 1e-6
        return np.asarray(np.where(small, 1.0, (2.0 * j1(x) / np.where(small, 1.0, x)) ** 2), float)
    raise UsageError(f"no beam model {model!r}", fix=f"choose one of {', '.join(BEAM_MODELS)}")


def beam_first_null_rad(freq_hz: float, *, model: BeamModel = "dsacalib", diameter_m: float) -> float:
    """Return the angle of the first null, infinite for a beam that has none."""
    wave = SPEED_OF_LIGHT_M_S / freq_hz / diameter_m
    if model == "gaussian":
        return float("inf")
    if model == "airy":
        return float(np.arcsin(min(1.0, 1.2196698912665045 * wave)))
    return 1.25 * wave  # x = 1.5


def beam_fwhm_rad(freq_hz: float, *, model: BeamModel = "dsacalib", diameter_m: float) -> float:
    """Return the full width at half maximum."""
    from scipy.optimize import brentq

    edge = min(beam_first_null_rad(freq_hz, model=model, diameter_m=diameter_m), 0.5 * np.pi)

    def above_half(theta: float) -> float:
        return float(beam_attenuation(theta, freq_hz, model=model, diameter_m=diameter_m)) - 0.5

    return 2.0 * float(brentq(above_half, 0.0, edge))


def _cosine_taper(x: Floats) -> Floats:
    # At x = 1/2 both parts vanish; the limit is pi/4.
    below = 1.0 - 4.0 * x**2
    near = np.abs(below) < 1e-9
    return np.where(near, np.pi / 4.0, np.cos(np.pi * x) / np.where(near, 1.0, below))


def _two_part(jd: ArrayLike) -> tuple[Floats, Floats]:
    # erfa keeps more digits than one double if it gets the day and its fraction apart.
    times = np.asarray(jd, float)
    whole = np.floor(times)
    return whole, times - whole


def _astrometry(jd: ArrayLike, site: Site) -> Any:
    import erfa

    whole, part = _two_part(jd)
    earth = earth_orientation(jd)
    with _dubious_years(jd):
        astrom, _ = erfa.apco13(
            whole, part, earth.dut1_s,
            site.longitude_rad, site.latitude_rad, site.height_m,
            earth.pole_x_rad, earth.pole_y_rad, *_NO_REFRACTION,
        )  # fmt: skip
    return astrom


@contextmanager
def _dubious_years(jd: ArrayLike) -> Iterator[None]:
    # erfa warns of leap seconds that it cannot know, five years after its release; one is 15 arcsec of
    # rotation, and UT1 is clipped by then anyway. Filters of warnings are not safe between threads, so they
    # are left alone for the years in which it never warns.
    times = np.asarray(jd, float)
    if bool(np.all((times > _ERFA_KNOWS_JD[0]) & (times < _ERFA_KNOWS_JD[1]))):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*dubious year.*")
        yield
