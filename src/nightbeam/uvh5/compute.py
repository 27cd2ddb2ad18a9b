"""Which files are one observation, and the geometry that brings it to one phase centre. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError
from nightbeam.sky import apparent_hadec, meridian_icrs, uvw_basis
from nightbeam.uvh5 import model
from nightbeam.uvh5.model import Observation, PhaseTrack, SubbandHeader

__all__ = [
    "SUBBANDS_IN_BAND",
    "conjugate_rows",
    "group_observation",
    "phase_track",
    "rotation_sign",
    "subband_edges",
    "subband_of_frequency",
]

# The correlator's 8192 raw channels over 250 MHz fall from 1530 MHz; a subband takes 384 of them.
_TOP_HZ = 1530e6
_RAW_HZ = 250e6 / 8192
_RAW_FIRST, _RAW_PER_SUBBAND = 1024, 384
SUBBANDS_IN_BAND = 16

_SAME_TIME_DAYS = 1e-3 / 86400.0
_SAME_POINTING_RAD = 1e-6  # 0.2 arcsec
_SAME_PLACE_M = 1e-3


def subband_edges(subband: int) -> tuple[float, float]:
    """Return the lower and upper edge in Hz of a subband of the correlator's band plan."""
    high = _TOP_HZ - (_RAW_FIRST + _RAW_PER_SUBBAND * subband - 0.5) * _RAW_HZ
    return high - _RAW_PER_SUBBAND * _RAW_HZ, high


def subband_of_frequency(freq_hz: float) -> int | None:
    """Return the subband in which a frequency lies, or None outside the band."""
    raw = (_TOP_HZ - freq_hz) / _RAW_HZ - _RAW_FIRST + 0.5
    subband = int(np.floor(raw / _RAW_PER_SUBBAND))
    return subband if 0 <= subband < SUBBANDS_IN_BAND else None


def group_observation(headers: Sequence[SubbandHeader], *, expected_subbands: int = 16) -> Observation:
    """Return the observation that files make, or say why they are none.

    All must have the same times, pointing, antennas, baselines, polarizations and channel width; each must
    be another subband, and its frequencies those of the band plan.

    Raises
    ------
    InputError
        Naming the file and what differs.
    """
    if not headers:
        raise InputError("no files were given", fix="give the subband files of one group")
    by_subband: dict[int, SubbandHeader] = {}
    for header in headers:
        subband = _checked_subband(header)
        if subband in by_subband:
            raise InputError(
                f"subband {subband:02d} is there twice: {by_subband[subband].path} and {header.path}",
                fix="leave one of them out",
            )
        by_subband[subband] = header
    ordered = sorted(by_subband, reverse=True)  # sb15 is the lowest in frequency
    reference = _commonest(headers)
    for subband in ordered:
        _require_alike(by_subband[subband], reference)
    missing = tuple(sorted(set(range(expected_subbands)) - set(ordered)))
    return Observation(tuple(by_subband[s] for s in ordered), tuple(ordered), missing)


def phase_track(header: SubbandHeader, centre_deg: tuple[float, float] | None = None) -> PhaseTrack:
    """Return one phase centre as the array sees it in each integration of a file.

    Parameters
    ----------
    header
        Times, antennas, site and pointing.
    centre_deg
        ICRS right ascension and declination; by default the point on the meridian at the pointing
        declination in the middle of the observation.

    Returns
    -------
    PhaseTrack

    Notes
    -----
    The correlator phases each integration to hour angle 0 and the apparent pointing declination, whose w is
    the same in every integration. The phase to be taken out is that of the difference to the new w.
    u, v, w are those of the apparent direction (with aberration, so that w is the true path), turned about
    it so that v points to ICRS north, as in pyuvdata and in CASA.
    """
    times = np.array(header.times_jd)
    if centre_deg is None:
        ra, dec = (float(x) for x in meridian_icrs(header.mid_jd, header.dec_rad, header.site))
    else:
        ra, dec = centre_deg
    meridian_w = header.antenna_positions_m @ uvw_basis(0.0, header.dec_rad, header.longitude_deg)[2]
    uvw = np.empty((len(times), header.n_bls, 3))
    path = np.empty((len(times), header.n_bls))
    one, two = header.ant_1, header.ant_2
    for k, basis in enumerate(_icrs_bases(times, ra, dec, header)):
        antenna_uvw = header.antenna_positions_m @ basis.T
        uvw[k] = antenna_uvw[two] - antenna_uvw[one]
        path[k] = uvw[k, :, 2] - (meridian_w[two] - meridian_w[one])
    pointing = np.stack(meridian_icrs(times, header.dec_rad, header.site), axis=-1)
    return PhaseTrack(ra_deg=ra, dec_deg=dec, uvw_m=uvw, path_m=path, pointing_deg=pointing)


def rotation_sign() -> float:
    """Return s in ``exp(s 2 pi i path nu / c)``, the factor that brings a file's data to the new centre."""
    return -float(model.FILE_SIGN)


def conjugate_rows(ant_1: NDArray[np.integer], ant_2: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which baselines of a file must be conjugated for a Measurement Set.

    The set has ANTENNA1 <= ANTENNA2, UVW = position(ANTENNA1) - position(ANTENNA2) and the exponent
    +2 pi i. A file's row with ant_1 > ant_2 becomes one by exchanging the antennas alone; of the others the
    data are conjugated and uvw is negated. With the other sign in the file it is the other way about.
    """
    forward = np.asarray(ant_1) <= np.asarray(ant_2)
    return forward if model.FILE_SIGN > 0 else ~forward


def _icrs_bases(
    times_jd: NDArray[np.float64], ra_deg: float, dec_deg: float, header: SubbandHeader
) -> NDArray[np.float64]:
    """Return, for each time, the axes u, v, w as rows in Earth-fixed coordinates, v to ICRS north."""
    step_deg = 0.01 if dec_deg < 89.0 else -0.01
    ha, dec = apparent_hadec(times_jd, ra_deg, dec_deg, header.site)
    north_ha, north_dec = apparent_hadec(times_jd, ra_deg, dec_deg + step_deg, header.site)
    bases = np.empty((len(times_jd), 3, 3))
    for k in range(len(times_jd)):
        u, v, w = uvw_basis(float(ha[k]), float(dec[k]), header.longitude_deg)
        north = uvw_basis(float(north_ha[k]), float(north_dec[k]), header.longitude_deg)[2]
        angle = np.arctan2(np.sign(step_deg) * (north @ u), np.sign(step_deg) * (north @ v))
        cos, sin = np.cos(angle), np.sin(angle)
        bases[k] = (cos * u - sin * v, cos * v + sin * u, w)
    return bases


def _checked_subband(header: SubbandHeader) -> int:
    low, high = float(header.freqs_hz.min()), float(header.freqs_hz.max())
    found = subband_of_frequency(0.5 * (low + high))
    subband = found if header.subband is None else header.subband
    if subband is None or found is None:
        raise InputError(
            f"{header.path}: {low / 1e6:.3f} to {high / 1e6:.3f} MHz is outside the band", fix="leave the file out"
        )
    bottom, top = subband_edges(subband)
    if low < bottom or high > top:
        raise InputError(
            f"{header.path}: subband {subband:02d} is {bottom / 1e6:.3f} to {top / 1e6:.3f} MHz, "
            f"the file has {low / 1e6:.3f} to {high / 1e6:.3f} MHz",
            fix="correct the name of the file, or leave it out",
        )
    return subband


def _commonest(headers: Sequence[SubbandHeader]) -> SubbandHeader:
    """Return a header of the majority's start and pointing, so that the odd one is named and not the others."""
    kinds = [(round(h.start_jd * 86400.0), round(h.dec_rad * 1e5), h.n_bls, h.n_freqs) for h in headers]
    return headers[kinds.index(max(kinds, key=kinds.count))]


def _require_alike(header: SubbandHeader, reference: SubbandHeader) -> None:
    def differs(what: str, has: object, wants: object) -> InputError:
        return InputError(
            f"{header.path} is no part of the group: {what} {has}, but {wants} in {reference.path.name}",
            fix="leave it out, or convert it with its own group",
        )

    late_s = (header.start_jd - reference.start_jd) * 86400.0
    if abs(header.start_jd - reference.start_jd) > _SAME_TIME_DAYS:
        raise differs("it starts", f"{late_s:+.3f} s away at JD {header.start_jd:.9f}", f"JD {reference.start_jd:.9f}")
    if header.n_times != reference.n_times:
        raise differs("integrations", header.n_times, reference.n_times)
    if np.abs(np.array(header.times_jd) - np.array(reference.times_jd)).max() > _SAME_TIME_DAYS:
        raise differs("its times", "have another spacing", "not so")
    if abs(header.integration_s - reference.integration_s) > _SAME_TIME_DAYS * 86400.0:
        raise differs("integrations last", f"{header.integration_s:.6f} s", f"{reference.integration_s:.6f} s")
    if abs(header.dec_rad - reference.dec_rad) > _SAME_POINTING_RAD:
        raise differs(
            "it points to Dec", f"{np.degrees(header.dec_rad):.4f} deg", f"{np.degrees(reference.dec_rad):.4f} deg"
        )
    if header.telescope != reference.telescope:
        raise differs("telescope", header.telescope, reference.telescope)
    if header.polarizations != reference.polarizations:
        raise differs("polarizations", header.polarizations, reference.polarizations)
    _require_same_array(header, reference, differs)
    if (header.n_freqs, header.channel_width_hz) != (reference.n_freqs, reference.channel_width_hz):
        has, wants = (f"{h.n_freqs} x {h.channel_width_hz:.3f} Hz" for h in (header, reference))
        raise differs("channels", has, wants)


def _require_same_array(
    header: SubbandHeader, reference: SubbandHeader, differs: Callable[[str, object, object], InputError]
) -> None:
    if set(header.ant_numbers) != set(reference.ant_numbers):
        odd = sorted({a + 1 for a in set(header.ant_numbers) ^ set(reference.ant_numbers)})
        raise differs("antennas", len(header.ant_numbers), f"{len(reference.ant_numbers)} (stations {odd} in one only)")
    if not (np.array_equal(header.ant_1, reference.ant_1) and np.array_equal(header.ant_2, reference.ant_2)):
        raise differs("baselines", "in another order", "not so")
    apart = np.abs(header.antenna_positions_m - reference.antenna_positions_m).max()
    if header.antenna_names != reference.antenna_names or apart > _SAME_PLACE_M:
        raise differs("antenna positions", f"up to {apart:.3f} m away", "not so")
    site = (header.longitude_deg, header.latitude_deg, header.altitude_m)
    if not np.allclose(
        site, (reference.longitude_deg, reference.latitude_deg, reference.altitude_m), rtol=0, atol=1e-6
    ):
        raise differs("site", site, reference.site)
