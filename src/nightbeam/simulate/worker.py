"""The loop that writes a night of subbands, at once or at the pace of the telescope."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.core.files import require_space, storage_errors
from nightbeam.core.keys import GroupId, SubbandName
from nightbeam.core.times import datetime_from_jd, jd_from_datetime
from nightbeam.simulate import compute
from nightbeam.simulate.files import (
    TRUTH_NAME,
    incomplete_path,
    read_stations,
    read_truth,
    write_incomplete,
    write_truth,
)
from nightbeam.simulate.model import (
    POLARIZATIONS,
    Fault,
    SimulationSpec,
    SkySource,
    StationTable,
    SubbandBlock,
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
    meridian_icrs,
    read_calibrators,
    uvw_basis,
)

__all__ = ["plan_simulation", "simulate_subbands"]

_log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

DEFAULT_DEC_DEG = 54.57
#: A late file comes when the next group is complete, and then half a cadence more.
LATE_CADENCES = 1.5
#: Sources farther from the centre than this have no effect through any of the beams.
FARTHEST_SOURCE_RAD = math.radians(12.0)

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


@dataclass(frozen=True)
class _Instrument:
    """What all files of a simulation share."""

    table: StationTable
    stations: tuple[int, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    dec_rad: float

    @property
    def antenna_uvw_m(self) -> Floats:
        positions = self.table.positions_m[np.array(self.stations) - 1]
        return np.asarray(positions @ uvw_basis(0.0, self.dec_rad, OVRO_DSA110.longitude_deg).T, float)


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
    start_jd, dec_rad = _start_and_dec(spec, calibrator)
    faults = _settled_faults(spec, stations)
    groups = tuple(_group(spec, k, start_jd, dec_rad, faults, calibrator) for k in range(spec.groups))
    receptors = {s: compute.draw_receptors(spec.seed, s, scale=spec.gain_scale) for s in stations} if spec.gains else {}
    return Truth(
        seed=spec.seed,
        array=_array(spec, stations, dec_rad),
        sources=_sky(spec, groups, calibrator),
        beam={"model": spec.beam, "diameter_m": DISH_DIAMETER_M},
        groups=groups,
        gains={str(s): gains for s, (gains, _) in receptors.items()},
        bandpass={str(s): bands for s, (_, bands) in receptors.items()},
        delays_ns={str(s): compute.draw_delays(spec.seed, s, spec.delay_rms_ns) for s in receptors},
        noise_jy=_noise(spec),
        band_hz=compute.band_edges(),
        faults=tuple(str(f) for f in faults),
        reference_freq_hz=compute.REFERENCE_FREQ_HZ,
        conventions=CONVENTIONS,
    )


def simulate_subbands(
    out_dir: Path,
    spec: SimulationSpec,
    *,
    overwrite: bool = False,
    on_file: Callable[[Path], None] | None = None,
    pause: Callable[[float], object] = time.sleep,
) -> Truth:
    """Write groups of subband files as the telescope would, and ``truth.json`` beside them.

    Parameters
    ----------
    out_dir
        Made if it is not there. It must be empty, or ``overwrite`` given: then the files of the
        simulation that is there are removed, and nothing else.
    spec
        What to simulate. The same spec gives the same bytes of data.
    on_file
        Called with the path of each file when it has got its final name.
    pause
        How to wait for some seconds; not used where ``spec.rate`` is 0.

    Returns
    -------
    Truth
        As in ``truth.json``, which is written before the first file.

    Raises
    ------
    UsageError
        If the spec makes no sense.
    InputError
        If the directory is not empty.
    StorageError
        If the disk is full or unwritable.
    """
    truth = plan_simulation(spec)
    _claim(out_dir, overwrite=overwrite)
    require_space(out_dir, _bytes_of(truth), what="the simulation")
    write_truth(out_dir, truth)
    instrument = _instrument(truth)
    timetable = _Timetable(spec.rate, on_file, pause)
    for index, group in enumerate(truth.groups):
        for name in group.files:
            path = out_dir / name
            subband = SubbandName.parse(name)
            assert subband is not None  # we made the name
            block = _block(truth, instrument, index, subband.subband)
            timetable.add(_arrival_s(truth, index, subband.subband), write_incomplete(path, block), path)
            _log.debug("made %s", path.name)
        later = index + 1 < len(truth.groups)
        timetable.release(before_s=_arrival_s(truth, index + 1, None) if later else math.inf)
    return truth


class _Timetable:
    """Gives files their final names in the order, and at the times, of their arrival."""

    def __init__(self, rate: float, on_file: Callable[[Path], None] | None, pause: Callable[[float], object]) -> None:
        self._rate, self._on_file, self._pause = rate, on_file, pause
        self._waiting: list[tuple[float, Path, Path]] = []
        self._began: tuple[float, float] | None = None

    def add(self, arrival_s: float, part: Path, path: Path) -> None:
        self._waiting.append((arrival_s, part, path))

    def release(self, *, before_s: float) -> None:
        self._waiting.sort()
        while self._waiting and self._waiting[0][0] < before_s:
            arrival_s, part, path = self._waiting.pop(0)
            self._wait_until(arrival_s)
            with storage_errors(path):
                part.replace(path)
            if self._on_file:
                self._on_file(path)

    def _wait_until(self, arrival_s: float) -> None:
        if not self._rate:
            return
        if self._began is None:
            self._began = (time.monotonic(), arrival_s)
        wall, first_s = self._began
        ahead = (arrival_s - first_s) / self._rate - (time.monotonic() - wall)
        if ahead > 0:
            self._pause(ahead)


def _check(spec: SimulationSpec) -> None:
    limits = {"groups": (1, 10_000), "channels": (1, 384), "subbands": (1, 16), "integrations": (1, 24)}
    for name, (low, high) in {**limits, "stride": (1, 1000)}.items():
        value = getattr(spec, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(low <= one <= high for one in values):
            raise UsageError(f"{name} is {value}", fix=f"give {low} to {high}")
    if not 0 <= spec.calibrator_group < spec.groups:
        raise UsageError(f"no group {spec.calibrator_group} among {spec.groups}", fix="count groups from 0")
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


def _start_and_dec(spec: SimulationSpec, calibrator: Calibrator | None) -> tuple[float, float]:
    start_jd = jd_from_datetime(spec.start)
    if calibrator is None:
        return start_jd, math.radians(DEFAULT_DEC_DEG if spec.dec_deg is None else spec.dec_deg)
    lead_s = spec.observation(spec.calibrator_group) * compute.CADENCE_S
    lead_s += 0.5 * (spec.integrations - 1) * compute.INTEGRATION_S
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


def _settled_faults(spec: SimulationSpec, stations: tuple[int, ...]) -> tuple[Fault, ...]:
    rng = np.random.default_rng([spec.seed, 13])
    settled = []
    for fault in spec.faults:
        if fault.kind == "dead-antenna":
            number = int(rng.choice(stations)) if fault.number is None else fault.number
            if number not in stations:
                raise UsageError(f"no station {number} among the simulated ones", fix=f"choose one of {stations}")
            settled.append(Fault(fault.kind, number, fault.group))
            continue
        group = int(rng.integers(spec.groups)) if fault.number is None and fault.group is None else fault.group
        number = int(rng.integers(spec.subbands)) if fault.number is None else fault.number
        if number >= spec.subbands:
            raise UsageError(f"no subband {number} among {spec.subbands}", fix="count subbands from 0")
        settled.append(Fault(fault.kind, number, group))
    for fault in settled:
        if fault.group is not None and fault.group >= spec.groups:
            raise UsageError(f"no group {fault.group} among {spec.groups}", fix="count groups from 0")
    return tuple(settled)


def _group(
    spec: SimulationSpec,
    index: int,
    first_jd: float,
    dec_rad: float,
    faults: tuple[Fault, ...],
    calibrator: Calibrator | None,
) -> TruthGroup:
    start_jd = first_jd + spec.observation(index) * compute.CADENCE_S / 86400.0
    times = compute.integration_times(start_jd, spec.integrations)
    mid_jd = float(0.5 * (times[0] + times[-1]))
    ra, dec = meridian_icrs(mid_jd, dec_rad, OVRO_DSA110)
    here = [f for f in faults if f.group in (None, index) and f.number is not None]

    def numbers(kind: str) -> tuple[int, ...]:
        return tuple(sorted({f.number for f in here if f.kind == kind and f.number is not None}))

    missing = numbers("missing-subband")
    return TruthGroup(
        group_id=str(GroupId.from_jd(start_jd)),
        start_jd=start_jd,
        mid_jd=mid_jd,
        end_jd=float(times[-1]),
        ra_deg=float(ra),
        dec_deg=float(dec),
        files=tuple(name for sb, name in enumerate(_names(spec, index, start_jd)) if sb not in missing),
        missing=missing,
        late=tuple(sb for sb in numbers("late-subband") if sb not in missing),
        dead_stations=numbers("dead-antenna"),
        calibrator=calibrator.name if calibrator and index == spec.calibrator_group else None,
    )


def _names(spec: SimulationSpec, index: int, start_jd: float) -> list[str]:
    # The latest computer opens its file just before the first sample, which is half an integration
    # before the first time in the header; its name has whole seconds.
    rng = np.random.default_rng([spec.seed, 14, index])
    opened = datetime_from_jd(start_jd) - timedelta(seconds=0.5 * compute.INTEGRATION_S + float(rng.uniform(0.0, 3.0)))
    latest = opened.replace(microsecond=0)
    offsets = compute.clock_offsets(rng, spec.subbands)
    first = latest - timedelta(seconds=int(offsets.max()))
    return [str(SubbandName(first + timedelta(seconds=int(s)), sb)) for sb, s in enumerate(offsets)]


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


def _instrument(truth: Truth) -> _Instrument:
    stations = truth.array.stations
    first, second = compute.baseline_pairs(len(stations))
    return _Instrument(read_stations(), stations, first, second, math.radians(truth.array.dec_apparent_deg))


def _block(truth: Truth, instrument: _Instrument, index: int, subband: int) -> SubbandBlock:
    group, array = truth.groups[index], truth.array
    numbers = np.array(instrument.stations) - 1
    antenna_uvw_m = instrument.antenna_uvw_m
    times = compute.integration_times(group.start_jd, array.integrations)
    made = datetime_from_jd(group.start_jd).strftime("%Y-%m-%dT%H:%M:%S")
    return SubbandBlock(
        vis=_raw_visibilities(truth, instrument, index, subband),
        times_jd=times,
        freqs_hz=compute.channel_freqs(subband, array.channels),
        channel_width_hz=array.channel_width_hz,
        integration_s=array.integration_s,
        ant1=numbers[instrument.first],
        ant2=numbers[instrument.second],
        uvw_m=antenna_uvw_m[instrument.second] - antenna_uvw_m[instrument.first],
        dec_rad=instrument.dec_rad,
        site=OVRO_DSA110,
        positions_m=instrument.table.positions_m,
        applied_delays_ns=_applied_delays(truth.seed, instrument),
        history=f"simulated by nightbeam, seed {truth.seed}, for {made}",
    )


def _raw_visibilities(truth: Truth, instrument: _Instrument, index: int, subband: int) -> NDArray[np.complex64]:
    array = truth.array
    freqs = compute.channel_freqs(subband, array.channels)
    vis = _sky_visibilities(truth, instrument, index, freqs)
    first, second = instrument.first, instrument.second
    if truth.noise_jy:
        rng = np.random.default_rng([truth.seed, 16, index, subband])
        compute.add_noise(vis, first == second, rng, sigma_jy=truth.noise_jy, width_hz=array.channel_width_hz)
    if truth.gains:
        response = np.array(
            [[truth.receptor_gain(freqs, s, pol) for pol in POLARIZATIONS] for s in instrument.stations]
        ).swapaxes(1, 2)
        vis *= (response[first] * response[second].conj()).astype(np.complex64)
    dead = np.isin(np.array(instrument.stations), truth.groups[index].dead_stations)
    vis[:, dead[first] | dead[second]] = 0.0
    return vis


def _sky_visibilities(truth: Truth, instrument: _Instrument, index: int, freqs: Floats) -> NDArray[np.complex64]:
    array = truth.array
    times = compute.integration_times(truth.groups[index].start_jd, array.integrations)
    first, second = instrument.first, instrument.second
    vis = np.zeros((len(times), len(first), len(freqs), len(POLARIZATIONS)), np.complex64)
    if not truth.sources:
        return vis
    lmn, theta = compute.source_terms(truth.sources, times, instrument.dec_rad, OVRO_DSA110)
    seen = np.flatnonzero((theta < FARTHEST_SOURCE_RAD).any(axis=0))
    sources = [truth.sources[k] for k in seen]
    uvw = instrument.antenna_uvw_m
    for t in range(len(times)):
        seen_now = compute.true_visibilities(
            uvw, (first, second), lmn[t, seen], theta[t, seen], sources, freqs,
            beam=truth.beam["model"], diameter_m=truth.beam["diameter_m"],
        )  # fmt: skip
        vis[t] = seen_now[..., np.newaxis]
    return vis


def _applied_delays(seed: int, instrument: _Instrument) -> NDArray[np.int64]:
    # Like those of a real header: even numbers of ns for both polarizations, none for unused stations.
    delays = np.zeros((len(instrument.table.number), len(POLARIZATIONS)), np.int64)
    for number in instrument.table.number[instrument.table.active]:
        rng = np.random.default_rng([seed, 17, int(number)])
        delays[number - 1] = 2 * (rng.integers(7600, 8200) + rng.integers(0, 2, len(POLARIZATIONS)))
    return delays.ravel()


def _arrival_s(truth: Truth, index: int, subband: int | None) -> float:
    """Return when a file gets its final name, in seconds since the first group began; None: the group's first."""
    group = truth.groups[index]
    done = (group.start_jd - truth.groups[0].start_jd) * 86400.0 + truth.array.integrations * compute.INTEGRATION_S
    if subband is None:
        return done
    copied = float(np.random.default_rng([truth.seed, 18, index, subband]).uniform(0.0, 4.0))
    return done + copied + (LATE_CADENCES * compute.CADENCE_S if subband in group.late else 0.0)


def _bytes_of(truth: Truth) -> int:
    array = truth.array
    baselines = len(array.stations) * (len(array.stations) + 1) // 2
    rows = baselines * array.integrations
    one = rows * (array.channels * 2 * 13 + 44) * 1.02 + 200_000
    return int(one * sum(len(g.files) for g in truth.groups))


def _claim(out_dir: Path, *, overwrite: bool) -> None:
    with storage_errors(out_dir):
        if out_dir.exists() and not out_dir.is_dir():
            raise InputError(f"{out_dir} is no directory", fix="give another one")
        out_dir.mkdir(parents=True, exist_ok=True)
        if not any(out_dir.iterdir()):
            return
        if not overwrite:
            raise InputError(f"{out_dir} is not empty", fix="give another directory, or --overwrite")
        try:
            earlier = read_truth(out_dir)
        except MissingError as error:
            raise InputError(
                f"{out_dir} is not empty and holds no {TRUTH_NAME}, so nothing there is ours to overwrite",
                fix="give another directory",
            ) from error
        for group in earlier.groups:
            for name in group.files:
                (out_dir / name).unlink(missing_ok=True)
                incomplete_path(out_dir / name).unlink(missing_ok=True)
        (out_dir / TRUTH_NAME).unlink(missing_ok=True)
