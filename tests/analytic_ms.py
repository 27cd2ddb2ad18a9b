"""A Measurement Set of point sources written by pyuvdata from the formula of the visibility: none of our code."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

LIGHT = 299792458.0
START_JD = 2460951.992331498  # a real observation's first time
CADENCE_S = 12.884901888


def write_analytic_ms(
    path: Path,
    *,
    centre: tuple[float, float],
    sources: Sequence[tuple[float, float, float]],
    antennas: int = 12,
    channels: int = 8,
    integrations: int = 4,
    noise: float = 0.0,
    seed: int = 1,
    longest_m: float = 1100.0,
    attenuation: Callable[[float, float, float, np.ndarray], np.ndarray] | None = None,
) -> Path:
    """Write sources (RA, Dec, Jy; ICRS degrees) as seen with the phase centre ``centre``.

    ``attenuation(jd, ra, dec, freqs_hz)`` multiplies a source's flux, (chan,).
    """
    import astropy.units as u
    from astropy.coordinates import EarthLocation
    from astropy.utils import iers
    from pyuvdata import Telescope, UVData, utils

    rng = np.random.default_rng(seed)
    radius, angle = longest_m * np.sqrt(rng.uniform(0.001, 1.0, antennas)) / 2, rng.uniform(0, 2 * np.pi, antennas)
    enu = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.uniform(-2, 2, antennas)], 1)
    site = EarthLocation.from_geodetic(-118.283 * u.deg, 37.2334051 * u.deg, 1188.05 * u.m)
    middle = np.array([site.x.value, site.y.value, site.z.value])
    times = START_JD + np.arange(integrations) * CADENCE_S / 86400
    width = 187.5e6 / channels
    freqs = 1.311265e9 + (np.arange(channels) + 0.5) * width
    with warnings.catch_warnings(), iers.conf.set_temp("auto_download", False):
        warnings.simplefilter("ignore")
        telescope = Telescope.new(
            name="OVRO_MMA", location=site, instrument="DSA", feeds=["x", "y"], mount_type="alt-az",
            antenna_positions=utils.ECEF_from_ENU(enu, center_loc=site) - middle,
            antenna_names=[str(k + 1) for k in range(antennas)], antenna_numbers=np.arange(antennas),
            antenna_diameters=np.full(antennas, 4.65),
        )  # fmt: skip
        data = UVData.new(
            freq_array=freqs, polarization_array=[-5, -6], times=times, telescope=telescope, do_blt_outer=True,
            antpairs=[(i, j) for i in range(antennas) for j in range(i + 1, antennas)],
            integration_time=CADENCE_S, channel_width=width, empty=True,
        )  # fmt: skip
        ra0, dec0 = np.radians(centre)
        data.phase(ra=ra0, dec=dec0, cat_name="tile", phase_frame="icrs")
        seen = np.zeros(data.data_array.shape, complex)
        for ra_deg, dec_deg, flux in sources:
            ra, dec = np.radians((ra_deg, dec_deg))
            l = np.cos(dec) * np.sin(ra - ra0)  # noqa: E741 - the direction cosine
            m = np.sin(dec) * np.cos(dec0) - np.cos(dec) * np.sin(dec0) * np.cos(ra - ra0)
            path_m = data.uvw_array @ np.array([l, m, np.sqrt(1 - l * l - m * m) - 1])
            fringe = flux * np.exp(2j * np.pi * path_m[:, None] * freqs / LIGHT)
            if attenuation is not None:
                for jd in np.unique(data.time_array):
                    fringe[data.time_array == jd] *= attenuation(float(jd), ra_deg, dec_deg, freqs)
            seen += fringe[:, :, None]
        seen += noise * (rng.normal(size=seen.shape) + 1j * rng.normal(size=seen.shape))
        data.data_array = seen.astype(np.complex64)
        data.nsample_array[:], data.flag_array[:] = 1, False
        data.vis_units = "Jy"
        data.write_ms(str(path))
    return path
