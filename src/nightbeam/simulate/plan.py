"""What will be true of a simulation before any of its files is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nightbeam.core.errors import UsageError
from nightbeam.core.times import jd_from_datetime
from nightbeam.simulate import compute
from nightbeam.simulate.faults import mix_faults, real_faults, restart_of, settle_faults, value_of
from nightbeam.simulate.files import read_stations
from nightbeam.simulate.groups import Night, plan_group
from nightbeam.simulate.inventory import draw_succession
from nightbeam.simulate.model import (
    ARRIVAL_KINDS,
    Fault,
    SimulationSpec,
    SkySource,
    Truth,
    TruthArray,
    TruthGroup,
)
from nightbeam.sky import (
    BEAM_MODELS,
    DISH_DIAMETER_M,
    OVRO_DSA110,
    Calibrator,
    beam_first_null_rad,
    find_calibrator,
    read_calibrators,
)

__all__ = ["plan_simulation"]

DEFAULT_DEC_DEG = 54.57

CONVENTIONS = {
    "sign": "V = sum S B exp(+2 pi i (u l + v m + w (n-1)) nu/c), baseline = position(ant_2) - position(ant_1)",
    "gains": "V_raw = g_i conj(g_j) V for ant_1 = i, ant_2 = j; a Measurement Set holds the conjugate",
    "bandpass": "x = (nu - band_hz[0]) / (band_hz[1] - band_hz[0]); amplitude 1 + sum_k amp[k-1] cos(pi k x), "
    "phase sum_k phase_deg[k-1] cos(pi k x), k from 1",
    "delays": "phase 2 pi tau (nu - middle of the band)",
    "noise": "standard deviation of the real and of the imaginary part of one visibility in Jy, before gains",
    "flux": "Jy at reference_freq_hz, the same in XX and YY, S ~ nu ** spectral_index, before the beam",
    "directions": "ICRS; centre = hour angle 0 at the apparent pointing declination at mid_jd",
    "times": "JD (UTC) at the middle of integrations",
}


def plan_simulation(spec: SimulationSpec) -> Truth:
    """Return all that will be true of the files, without writing any.

    Raises
    ------
    UsageError
        If the numbers asked for make no sense.
    MissingError
        If the calibrator is in no list.
    """
    _check(spec)
    stations = compute.correlator_order(_stations(spec))
    calibrator = _calibrator(spec)
    night = _night(spec, stations, calibrator)
    planned = [plan_group(night, k) for k in range(spec.groups)]
    groups = tuple(one.group for one in planned)
    receptors = {s: compute.draw_receptors(spec.seed, s, scale=spec.gain_scale) for s in stations} if spec.gains else {}
    arrivals = sorted((a for one in planned for a in one.arrivals), key=lambda a: (a.arrival_s, a.name))
    return Truth(
        seed=spec.seed,
        array=_array(spec, stations, night.dec_rad),
        sources=_sky(spec, groups, calibrator),
        beam={"model": spec.beam, "diameter_m": DISH_DIAMETER_M},
        groups=groups,
        gains={str(s): gains for s, (gains, _) in receptors.items()},
        bandpass={str(s): bands for s, (_, bands) in receptors.items()},
        delays_ns={str(s): compute.draw_delays(spec.seed, s, spec.delay_rms_ns) for s in receptors},
        noise_jy=_noise(spec),
        band_hz=compute.band_edges(),
        faults=tuple(str(f) for f in night.faults),
        reference_freq_hz=compute.REFERENCE_FREQ_HZ,
        conventions=CONVENTIONS,
        events=tuple(event for one in planned for event in one.events),
        arrivals=tuple(arrivals),
    )


def _night(spec: SimulationSpec, stations: tuple[int, ...], calibrator: Calibrator | None) -> Night:
    succession = []
    if spec.arrivals == "real":
        succession = draw_succession(np.random.default_rng([spec.seed, 20]), spec.groups, subbands=spec.subbands)
    asked = [*spec.faults, *mix_faults(spec, np.random.default_rng([spec.seed, 19]))]
    drawn = real_faults(spec, succession)
    # What is drawn anyhow is not asked for: a plan's own faults, given again, make the same plan.
    faults = [
        fault
        for fault in settle_faults(asked, spec, stations, np.random.default_rng([spec.seed, 13]))
        if fault not in drawn
    ]
    broken = {f.group for f in faults if f.kind == "restart-gap"}
    faults += [f for f in drawn if f.kind != "restart-gap" or f.group not in broken]
    restarts = {f.group: restart_of(f) for f in reversed(faults) if f.kind == "restart-gap"}
    starts_s, delay_s = [], 0.0
    for k in range(spec.groups):
        starts_s.append(spec.observation(k) * compute.CADENCE_S + delay_s)
        delay_s += restarts[k][0] - compute.CADENCE_S if k in restarts else 0.0
    middle = spec.calibrator_group
    integrations = restarts[middle][1] if middle in restarts else spec.integrations
    lead_s = starts_s[middle] + 0.5 * (integrations - 1) * compute.INTEGRATION_S
    start_jd, dec_rad = _start_and_dec(spec, calibrator, lead_s)
    _check_pointing(dec_rad, faults)
    return Night(
        spec=spec,
        faults=tuple(faults),
        starts_s=tuple(starts_s),
        intervals=tuple("restart" if k - 1 in broken else one.interval for k, one in enumerate(succession)),
        first_jd=start_jd,
        dec_rad=dec_rad,
        calibrator=calibrator,
    )


def _check_pointing(dec_rad: float, faults: Sequence[Fault]) -> None:
    for fault in faults:
        if fault.kind == "wrong-pointing" and abs(math.degrees(dec_rad) + value_of(fault)) > 90.0:
            raise UsageError(f"{fault}: no header can say that", fix="give a smaller angle")


def _check(spec: SimulationSpec) -> None:
    limits = {"groups": (1, 10_000), "channels": (1, 384), "subbands": (1, 16), "integrations": (1, 24)}
    for name, (low, high) in {**limits, "stride": (1, 1000)}.items():
        value = getattr(spec, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(low <= one <= high for one in values):
            raise UsageError(f"{name} is {value}", fix=f"give {low} to {high}")
    if not 0 <= spec.calibrator_group < spec.groups:
        raise UsageError(f"no group {spec.calibrator_group} among {spec.groups}", fix="count groups from 0")
    if spec.arrivals not in ARRIVAL_KINDS:
        raise UsageError(f"no arrivals {spec.arrivals!r}", fix=f"choose one of {', '.join(ARRIVAL_KINDS)}")
    if not 0.0 <= spec.fault_rate <= 1.0:
        raise UsageError(f"the fault rate is {spec.fault_rate}", fix="give 0 to 1, a part of the groups")
    for name in ("rate", "delay_rms_ns"):
        if not (math.isfinite(getattr(spec, name)) and getattr(spec, name) >= 0):
            raise UsageError(f"{name} is {getattr(spec, name)}", fix="give 0 or more")
    if isinstance(spec.noise, int | float) and not (math.isfinite(spec.noise) and spec.noise >= 0):
        raise UsageError(f"the noise is {spec.noise} Jy", fix="give 0 or more, or none")
    if spec.dec_deg is not None and not -52.0 <= spec.dec_deg <= 90.0:
        raise UsageError(f"Dec {spec.dec_deg} is never above the horizon of the site", fix="give -52 to 90 deg")
    if spec.beam not in BEAM_MODELS:
        raise UsageError(f"no beam model {spec.beam!r}", fix=f"choose one of {', '.join(BEAM_MODELS)}")
    if isinstance(spec.sources, int) and spec.sources < 0:
        raise UsageError(f"{spec.sources} sources", fix="give 0 or more")


def _stations(spec: SimulationSpec) -> tuple[int, ...]:
    table = read_stations()
    if spec.stations is None:
        return compute.choose_stations(table, spec.antennas)
    unknown = sorted(set(spec.stations) - {int(n) for n in table.number})
    if unknown or len(spec.stations) < 2 or len(set(spec.stations)) != len(spec.stations):
        raise UsageError(f"stations {spec.stations} cannot be simulated", fix="give two or more of 1 to 117, each once")
    return spec.stations


def _calibrator(spec: SimulationSpec) -> Calibrator | None:
    if spec.calibrator is None:
        return None
    found = find_calibrator(read_calibrators(), spec.calibrator)
    return found if spec.calibrator_flux_jy is None else replace(found, flux_jy=spec.calibrator_flux_jy)


def _start_and_dec(spec: SimulationSpec, calibrator: Calibrator | None, lead_s: float) -> tuple[float, float]:
    """Return the first time of the first group, and where the array points; ``lead_s`` later is the transit."""
    start_jd = jd_from_datetime(spec.start)
    if calibrator is None:
        return start_jd, math.radians(DEFAULT_DEC_DEG if spec.dec_deg is None else spec.dec_deg)
    transit_jd, dec_rad = compute.transit_after(
        start_jd + lead_s / 86400.0, calibrator.ra_deg, calibrator.dec_deg, OVRO_DSA110
    )
    if spec.dec_deg is not None:
        off_rad = abs(math.radians(spec.dec_deg) - dec_rad)
        if off_rad > beam_first_null_rad(compute.REFERENCE_FREQ_HZ, diameter_m=DISH_DIAMETER_M):
            raise UsageError(
                f"{calibrator.name} at Dec {math.degrees(dec_rad):.2f} deg is outside the beam at {spec.dec_deg} deg",
                fix="leave --dec out, or choose a calibrator of this strip",
            )
        dec_rad = math.radians(spec.dec_deg)
    return transit_jd - lead_s / 86400.0, dec_rad


def _array(spec: SimulationSpec, stations: tuple[int, ...], dec_rad: float) -> TruthArray:
    return TruthArray(
        telescope="OVRO_MMA",
        longitude_deg=OVRO_DSA110.longitude_deg,
        latitude_deg=OVRO_DSA110.latitude_deg,
        height_m=OVRO_DSA110.height_m,
        stations=stations,
        subbands=spec.subbands,
        channels=spec.channels,
        integrations=spec.integrations,
        integration_s=compute.INTEGRATION_S,
        channel_width_hz=compute.channel_width(spec.channels),
        dec_apparent_deg=math.degrees(dec_rad),
    )


def _sky(spec: SimulationSpec, groups: tuple[TruthGroup, ...], calibrator: Calibrator | None) -> tuple[SkySource, ...]:
    sky = []
    if calibrator:
        sky.append(SkySource(calibrator.name, calibrator.ra_deg, calibrator.dec_deg, calibrator.flux_jy))
    if not isinstance(spec.sources, int):
        return (*sky, *spec.sources)
    for index, group in enumerate(groups):
        count = spec.sources
        if group.calibrator and spec.calibrator_sources is not None:
            count = spec.calibrator_sources
        sky += compute.draw_sources(
            np.random.default_rng([spec.seed, 15, index]),
            count,
            ra_deg=group.ra_deg,
            dec_deg=group.dec_deg,
            radius_deg=spec.source_radius_deg,
            flux_jy=spec.source_flux_jy,
            prefix=f"g{index:02d}s",
        )
    return tuple(sky)


def _noise(spec: SimulationSpec) -> float | None:
    if spec.noise == "radiometer":
        return compute.radiometer_noise(compute.channel_width(spec.channels))
    return float(spec.noise) if spec.noise else None
