"""From a sky to raw visibilities, and the habits of the real instrument. Pure arithmetic.

The geometry is done source by source and integration by integration from apparent places in the
Earth-fixed frame, with nothing in common with the converter's rotation of phases: that is what makes a
test of the one against the other worth something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import UsageError
from nightbeam.simulate.model import (
    FAULT_KINDS,
    POLARIZATIONS,
    Bandpass,
    ExpectedSource,
    FaultKind,
    Gain,
    SkySource,
    StatedOutcome,
    StationTable,
    Truth,
)
from nightbeam.sky import (
    SPEED_OF_LIGHT_M_S,
    BeamModel,
    Site,
    apparent_hadec,
    beam_attenuation,
    offset_position,
    separation,
)

__all__ = [
    "CADENCE_S",
    "INTEGRATION_S",
    "LINE_WIDTH_HZ",
    "SEFD_JY",
    "Emitter",
    "add_interference",
    "add_noise",
    "band_edges",
    "baseline_pairs",
    "channel_freqs",
    "channel_width",
    "choose_stations",
    "clock_offsets",
    "correlator_order",
    "draw_delays",
    "draw_emitter",
    "draw_receptors",
    "draw_sources",
    "expected_sources",
    "integration_times",
    "line_channels",
    "radiometer_noise",
    "source_terms",
    "stated_outcome",
    "transit_after",
    "true_visibilities",
]

Floats = NDArray[np.float64]

#: 96 samples of 0.134217728 s.
INTEGRATION_S = 12.884901888
#: One file after the other without a gap: 24 integrations.
CADENCE_S = 24 * INTEGRATION_S
#: Of one antenna and polarization.
SEFD_JY = 6500.0
REFERENCE_FREQ_HZ = 1.405e9
#: Of a line of interference: a channel of a full-size file. In wider channels it is diluted.
LINE_WIDTH_HZ = 244140.625

# The correlator's 8192 raw channels over 250 MHz fall from 1530 MHz; a subband takes 384 of them.
_TOP_HZ = 1530e6
_RAW_HZ = 250e6 / 8192
_RAW_FIRST, _RAW_PER_SUBBAND = 1024, 384

_SIDEREAL_RAD_PER_DAY = 2.0 * np.pi * 1.00273790935


def channel_freqs(subband: int, channels: int = 48) -> Floats:
    """Return the channel centres in Hz of one subband, falling; exact for 48 channels."""
    first = _RAW_FIRST + _RAW_PER_SUBBAND * subband - 0.5
    raw = first + (np.arange(channels) + 0.5) * (_RAW_PER_SUBBAND / channels)
    return np.asarray(_TOP_HZ - raw * _RAW_HZ, float)


def channel_width(channels: int = 48) -> float:
    """Return the width in Hz of one of so many channels of a subband."""
    return _RAW_PER_SUBBAND * _RAW_HZ / channels


def band_edges(subbands: int = 16) -> tuple[float, float]:
    """Return the lower and upper edge in Hz of so many subbands, from sb00 down."""
    high = _TOP_HZ - (_RAW_FIRST - 0.5) * _RAW_HZ
    return high - subbands * _RAW_PER_SUBBAND * _RAW_HZ, high


def integration_times(start_jd: float, integrations: int) -> Floats:
    """Return the middles (JD, UTC) of the integrations of a file whose first one is ``start_jd``."""
    return np.asarray(start_jd + np.arange(integrations) * (INTEGRATION_S / 86400.0), float)


def choose_stations(table: StationTable, antennas: int) -> tuple[int, ...]:
    """Return so many active stations that see the sky much as the whole array does.

    Both arms are sampled evenly from end to end, and outriggers come in the proportion they have in the
    array (14 of 96), with 103, the usual reference antenna, first among them.

    Raises
    ------
    UsageError
        If there are not so many.
    """
    active = [int(n) for n in table.number[table.active]]
    if not 2 <= antennas <= len(active):
        raise UsageError(f"{antennas} antennas cannot be simulated", fix=f"ask for 2 to {len(active)}")
    arm_of = dict(zip(table.number.tolist(), table.arm, strict=True))
    arms = {arm: [n for n in active if arm_of[n] == arm] for arm in ("E-W", "N-S", "outrigger")}
    far = round(antennas * len(arms["outrigger"]) / len(active))
    far = max(far, 1) if antennas >= 4 else far
    north = min(round((antennas - far) * 0.45), len(arms["N-S"]))
    east = antennas - far - north
    if east > len(arms["E-W"]):
        east, north = len(arms["E-W"]), antennas - far - len(arms["E-W"])
    chosen = _evenly(arms["E-W"], east) + _evenly(arms["N-S"], north) + _evenly(arms["outrigger"], far)
    return tuple(sorted(chosen))


def _evenly(items: Sequence[int], count: int) -> list[int]:
    if count == 0:
        return []
    if count == 1:
        return [items[0]]
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]


def correlator_order(stations: Sequence[int]) -> tuple[int, ...]:
    """Return the stations in an order that, like the correlator's, is not that of their numbers.

    The real order changes with the cabling and is not public. This one begins in the middle of the
    east-west arm, so that files with ant_1 > ant_2 happen, as they do at the telescope.
    """

    def rank(station: int) -> tuple[int, int]:
        if 24 <= station <= 51:
            return (0, station)
        if station < 24:
            return (1, -station)
        return (2, station) if station >= 103 else (3, station)

    return tuple(sorted(stations, key=rank))


def baseline_pairs(antennas: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return both ends of all baselines, autocorrelations included, in lower-triangle order.

    (0,0), (0,1), (1,1), (0,2), (1,2), (2,2) ... as places in the correlator's order.
    """
    second, first = np.tril_indices(antennas)
    return first.astype(np.int64), second.astype(np.int64)


def radiometer_noise(width_hz: float, *, sefd_jy: float = SEFD_JY, integration_s: float = INTEGRATION_S) -> float:
    """Return the standard deviation in Jy of the real (or imaginary) part of one visibility."""
    return sefd_jy / math.sqrt(2.0 * width_hz * integration_s)


def transit_after(jd: float, ra_deg: float, dec_deg: float, site: Site) -> tuple[float, float]:
    """Return when (JD, UTC) an ICRS direction next crosses the meridian, and its apparent Dec (rad) then."""
    ha, dec = apparent_hadec(jd, ra_deg, dec_deg, site)
    when = jd + float((-ha) % (2.0 * np.pi)) / _SIDEREAL_RAD_PER_DAY
    for _ in range(3):
        ha, dec = apparent_hadec(when, ra_deg, dec_deg, site)
        when -= float(ha) / _SIDEREAL_RAD_PER_DAY
    return when, float(dec)


def draw_sources(
    rng: np.random.Generator,
    count: int,
    *,
    ra_deg: float,
    dec_deg: float,
    radius_deg: float,
    flux_jy: tuple[float, float],
    prefix: str,
    least_gap_deg: float = 0.04,
) -> list[SkySource]:
    """Return sources at random places of a disc, no two nearer than ``least_gap_deg``.

    Fluxes are log-uniform, the spectral index is -0.7 (that of most radio sources).

    Raises
    ------
    UsageError
        If so many do not fit.
    """
    found: list[SkySource] = []
    for _ in range(100 * max(count, 1)):
        if len(found) == count:
            return found
        distance, bearing = radius_deg * math.sqrt(rng.random()), 360.0 * rng.random()
        flux = float(np.exp(rng.uniform(*np.log(flux_jy))))
        ra, dec = (float(x) for x in offset_position(ra_deg, dec_deg, distance, bearing))
        if all(separation(ra, dec, s.ra_deg, s.dec_deg) >= least_gap_deg for s in found):
            found.append(SkySource(f"{prefix}{len(found):02d}", ra, dec, flux, -0.7))
    if len(found) == count:
        return found
    raise UsageError(f"{count} sources do not fit within {radius_deg} deg", fix="ask for fewer or a larger radius")


def draw_receptors(
    seed: int, station: int, *, scale: float, order: int = 4
) -> tuple[dict[str, Gain], dict[str, Bandpass]]:
    """Return the gains and bandpasses of one station, by polarization; the same for any choice of the others."""
    rng = np.random.default_rng([seed, 11, station])
    gains, bands = {}, {}
    falling = 1.0 / np.arange(1, order + 1)
    for pol in POLARIZATIONS:
        amp = scale * float(np.clip(rng.normal(1.0, 0.12), 0.6, 1.4))
        gains[pol] = Gain(amp, float(rng.uniform(-180.0, 180.0)))
        ripple, turn = rng.normal(0.0, 0.04, order) * falling, rng.normal(0.0, 6.0, order) * falling
        bands[pol] = Bandpass(tuple(ripple.tolist()), tuple(turn.tolist()))
    return gains, bands


def draw_delays(seed: int, station: int, rms_ns: float) -> dict[str, float]:
    """Return the residual delays of one station in ns, by polarization."""
    rng = np.random.default_rng([seed, 12, station])
    return {pol: float(rms_ns * rng.normal()) for pol in POLARIZATIONS}


def clock_offsets(rng: np.random.Generator, subbands: int) -> NDArray[np.int64]:
    """Return by how many whole seconds the clocks in the names of one observation differ, least 0.

    Drawn from 2,208 real observations (January and February 2026): the spread is 0 s in 31 of them, 1 s in
    1,867, 2-12 s in 112, 13-22 s in 186 (first file after a restart) and 59-82 s in 12; neighbouring names
    never differ by more than 20 s.
    """
    if subbands == 1:
        return np.zeros(1, np.int64)
    ranges = [(0, 0), (1, 1), (2, 12), (13, 22), (59, 82)]
    low, high = ranges[rng.choice(5, p=np.array([31, 1867, 112, 186, 12]) / 2208)]
    spread = min(int(rng.integers(low, high + 1)), 10 * (subbands - 1))  # few clocks cannot bridge a wide one
    while True:
        offsets = rng.integers(0, spread + 1, subbands)
        offsets[rng.choice(subbands, 2, replace=False)] = (0, spread)
        if np.diff(np.sort(offsets)).max() <= 20:
            return offsets


def source_terms(sources: Sequence[SkySource], times_jd: Floats, dec_rad: float, site: Site) -> tuple[Floats, Floats]:
    """Return where sources are, seen from a phase centre at hour angle 0 and an apparent declination.

    Parameters
    ----------
    sources : n sources
    times_jd : (time,)

    Returns
    -------
    lmn : (time, source, 3)
        Direction cosines l (east), m (north) and n - 1.
    theta_rad : (time, source)
        Angle from the phase centre.
    """
    ra = np.array([s.ra_deg for s in sources])
    dec = np.array([s.dec_deg for s in sources])
    ha, app = apparent_hadec(times_jd[:, None], ra, dec, site)
    east = -np.cos(app) * np.sin(ha)
    north = np.sin(app) * np.cos(dec_rad) - np.cos(app) * np.sin(dec_rad) * np.cos(ha)
    towards = np.sin(app) * np.sin(dec_rad) + np.cos(app) * np.cos(dec_rad) * np.cos(ha)
    return np.stack([east, north, towards - 1.0], axis=-1), np.arctan2(np.hypot(east, north), towards)


def true_visibilities(
    antenna_uvw_m: Floats,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    lmn: Floats,
    theta_rad: Floats,
    sources: Sequence[SkySource],
    freqs_hz: Floats,
    *,
    beam: BeamModel,
    diameter_m: float,
) -> NDArray[np.complex64]:
    """Return what a perfect array sees of point sources in one integration.

    Parameters
    ----------
    antenna_uvw_m : (antenna, 3)
        Antenna positions along u, v, w of the phase centre.
    pairs : two of (baseline,)
        Both ends of each baseline as places in ``antenna_uvw_m``.
    lmn, theta_rad : (source, 3), (source,)
        From `source_terms`.
    freqs_hz : (channel,)

    Returns
    -------
    (baseline, channel), Jy
        ``sum_s S_s B_s exp(+2 pi i (u l + v m + w (n-1)) nu/c)`` where u, v, w are the position of the second
        end minus that of the first. Channels are monochromatic and integrations instantaneous.
    """
    from nightbeam.simulate.kernels import sum_sources

    flux = np.array([s.flux_jy for s in sources])
    slope = np.array([s.spectral_index for s in sources])
    nu = freqs_hz[:, None]
    power = (
        flux * (nu / REFERENCE_FREQ_HZ) ** slope * beam_attenuation(theta_rad, nu, model=beam, diameter_m=diameter_m)
    )
    path = antenna_uvw_m @ lmn.T
    phasor = np.exp((2j * np.pi / SPEED_OF_LIGHT_M_S) * freqs_hz[:, None, None] * path)
    vis = np.empty((len(pairs[0]), len(freqs_hz)), np.complex64)
    sum_sources(phasor, power, *pairs, vis)
    return vis


def add_noise(
    vis: NDArray[np.complex64], auto: NDArray[np.bool_], rng: np.random.Generator, *, sigma_jy: float, width_hz: float
) -> None:
    """Add receiver noise in place to visibilities (time, baseline, channel, pol) in Jy.

    Cross-correlations get ``sigma_jy`` in the real and in the imaginary part. Autocorrelations get the
    system's own power and real noise, both of the system that has this ``sigma_jy``.
    """
    noise = rng.standard_normal((*vis.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    noise *= np.float32(sigma_jy)
    system = sigma_jy * math.sqrt(2.0 * width_hz * INTEGRATION_S)
    noise[:, auto] = math.sqrt(2.0) * noise[:, auto].real + system
    vis += noise


@dataclass(frozen=True)
class Emitter:
    """Something on the ground that the dishes hear through their far sidelobes.

    Attributes
    ----------
    azimuth_deg
        Where on the horizon, from north through east.
    place
        0 to 1: which channel of a subband a line is in.
    """

    azimuth_deg: float
    place: float
    stream: tuple[int, ...]

    def responses(self, stations: Sequence[int]) -> NDArray[np.complex128]:
        """Return the far sidelobe of each receptor in its direction, (station, pol), about 1."""
        found = np.empty((len(stations), len(POLARIZATIONS)), complex)
        for k, station in enumerate(stations):
            rng = np.random.default_rng([*self.stream, station])
            level, turn = rng.normal(0.0, 0.4, len(POLARIZATIONS)), rng.uniform(0.0, 2.0 * np.pi, len(POLARIZATIONS))
            found[k] = np.exp(level + 1j * turn)
        return found

    def strength(self, index: int, integrations: int) -> Floats:
        """Return how its power goes up and down in one group, (time,), about 1."""
        rng = np.random.default_rng([*self.stream, 0, index])
        return np.clip(rng.normal(1.0, 0.1, integrations), 0.5, 1.5)


def draw_emitter(seed: int, kind: FaultKind, number: int) -> Emitter:
    """Return the emitter of one line or burst; that of a line is the same in all groups."""
    stream = (seed, 22, FAULT_KINDS.index(kind), number)
    rng = np.random.default_rng(stream)
    return Emitter(float(rng.uniform(0.0, 360.0)), float(rng.random()), stream)


def line_channels(emitter: Emitter, channels: int) -> tuple[int, ...]:
    """Return the channels that a line touches: two neighbours where channels are narrow, else one."""
    width = 2 if channels >= 16 else 1
    first = int(emitter.place * (channels - width + 1))
    return tuple(range(first, first + width))


def add_interference(
    vis: NDArray[np.complex64],
    antenna_uvw_m: Floats,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    responses: NDArray[np.complex128],
    flux_jy: Floats,
    freqs_hz: Floats,
    *,
    azimuth_deg: float,
    dec_rad: float,
    site: Site,
) -> None:
    """Add in place what an array that stops the fringes of its meridian sees of an emitter on the horizon.

    Parameters
    ----------
    vis : (time, baseline, channel, pol), Jy
    antenna_uvw_m : (antenna, 3)
        Antenna positions along u, v, w of the phase centre.
    pairs : two of (baseline,)
        Both ends of each baseline.
    responses : (antenna, pol)
        What each receptor makes of it.
    flux_jy : (time, channel)
        Zero where there is nothing.
    freqs_hz : (channel,)

    Notes
    -----
    The emitter stands still and so does the phase centre (hour angle 0), so that its fringes do not turn. It is
    taken to be far away: near ones have curved wave fronts, which is left out.
    """
    lat, azimuth = math.radians(site.latitude_deg), math.radians(azimuth_deg)
    # Hour angle and declination of a point on the horizon, then as for a source.
    dec = math.asin(math.cos(lat) * math.cos(azimuth))
    ha = math.atan2(-math.sin(azimuth), -math.sin(lat) * math.cos(azimuth))
    east = -math.cos(dec) * math.sin(ha)
    north = math.sin(dec) * math.cos(dec_rad) - math.cos(dec) * math.sin(dec_rad) * math.cos(ha)
    towards = math.sin(dec) * math.sin(dec_rad) + math.cos(dec) * math.cos(dec_rad) * math.cos(ha)
    path = antenna_uvw_m @ np.array([east, north, towards - 1.0])
    phasor = np.exp((2j * np.pi / SPEED_OF_LIGHT_M_S) * freqs_hz * path[:, None])
    seen = phasor[:, :, None] * responses[:, None, :].conj()
    first, second = pairs
    correlated = (seen[first].conj() * seen[second]).astype(np.complex64)
    for t in np.flatnonzero(flux_jy.any(axis=1)):
        vis[t] += correlated * flux_jy[t][None, :, None].astype(np.float32)


def stated_outcome(
    truth: Truth,
    group_id: str,
    *,
    minimum_subbands: int | None = None,
    timeout_s: float = math.inf,
    minimum_integrations: int = 1,
) -> StatedOutcome:
    """Return how a group should end under one policy.

    Parameters
    ----------
    truth
        Of the simulation.
    group_id
        One of its groups.
    minimum_subbands
        With how many a group is imaged although others are missing; None: only with all.
    timeout_s
        How long after its first good file a group waits for others, in seconds of the telescope.
    minimum_integrations
        With fewer a group is refused.

    Returns
    -------
    StatedOutcome
        ``completed``: with all subbands; ``partial``: imaged with ``used`` at the timeout; ``failed``: with a reason;
        ``absent``: nothing of it can be read, so that an ingest knows no such group.

    Raises
    ------
    MissingError
        If there is no such group.
    """
    group = truth.group(group_id)
    came = {
        a.subband: a.arrival_s
        for a in truth.arrivals
        if a.group_id == group_id and a.outcome == "used" and a.subband is not None
    }
    if not came:
        return StatedOutcome("absent", (), (), group.reason)
    until_s = min(came.values()) + timeout_s
    used = tuple(sorted(sb for sb, when_s in came.items() if when_s <= until_s))
    late = tuple(sorted(set(came) - set(used)))
    lacking = truth.array.subbands - len(used)
    if group.integrations < minimum_integrations:
        return StatedOutcome("failed", used, late, f"{group.integrations} integrations")
    if not lacking:
        return StatedOutcome("completed", used, late)
    reason = "; ".join(filter(None, (group.reason, *(f"sb{sb:02d} late" for sb in late))))
    enough = minimum_subbands is not None and len(used) >= minimum_subbands
    return StatedOutcome("partial" if enough else "failed", used, late, reason)


def expected_sources(truth: Truth, group_id: str, *, within_deg: float = 1.0) -> list[ExpectedSource]:
    """Return what an image of one group should show, brightest first.

    Parameters
    ----------
    truth
        Of the simulation.
    group_id
        One of its groups.
    within_deg
        Sources farther from the group's centre are left out.

    Raises
    ------
    MissingError
        If there is no such group.
    """
    group, array = truth.group(group_id), truth.array
    if not group.usable:
        return []
    site = Site(array.longitude_deg, array.latitude_deg, array.height_m)
    near = [s for s in truth.sources if separation(group.ra_deg, group.dec_deg, s.ra_deg, s.dec_deg) <= within_deg]
    if not near:
        return []
    freqs = np.concatenate([channel_freqs(sb, array.channels) for sb in group.usable])
    times = integration_times(group.start_jd, group.integrations)
    _, theta = source_terms(near, times, math.radians(array.dec_apparent_deg), site)
    found = []
    for k, source in enumerate(near):
        flux = source.flux_jy * (freqs / truth.reference_freq_hz) ** source.spectral_index
        beam = beam_attenuation(
            theta[:, k, np.newaxis], freqs, model=truth.beam["model"], diameter_m=truth.beam["diameter_m"]
        )
        sep = separation(group.ra_deg, group.dec_deg, source.ra_deg, source.dec_deg)
        found.append(
            ExpectedSource(
                source.name, source.ra_deg, source.dec_deg, float(sep), float((flux * beam).mean()), float(flux.mean())
            )
        )
    return sorted(found, key=lambda e: -e.apparent_jy)
