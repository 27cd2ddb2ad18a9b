"""The loop that writes a night of subbands, at once or at the pace of the telescope."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.files import require_space, storage_errors
from nightbeam.core.times import datetime_from_jd
from nightbeam.simulate import compute
from nightbeam.simulate.files import (
    TRUTH_NAME,
    SubbandImages,
    headless_image,
    hidden_path,
    incomplete_path,
    misshapen_image,
    read_stations,
    read_truth,
    write_part,
    write_truth,
)
from nightbeam.simulate.groups import BEYOND_THE_BAND
from nightbeam.simulate.model import (
    POLARIZATIONS,
    Fault,
    SimulationSpec,
    SkySource,
    StationTable,
    SubbandBlock,
    Truth,
    TruthArrival,
    TruthFault,
)
from nightbeam.simulate.plan import plan_simulation
from nightbeam.sky import OVRO_DSA110, uvw_basis

__all__ = ["simulate_subbands"]

_log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

#: Sources farther from the centre than this have no effect through any of the beams.
FARTHEST_SOURCE_RAD = math.radians(12.0)
#: Products of gains of this size are not worth working out again for each group.
KEPT_GAINS_BYTES = 1 << 20


@dataclass(frozen=True)
class _Instrument:
    """What all files of a simulation share."""

    truth: Truth
    table: StationTable
    stations: tuple[int, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    dec_rad: float

    @cached_property
    def antenna_uvw_m(self) -> Floats:
        return self.antenna_uvw_at(self.dec_rad)

    def antenna_uvw_at(self, dec_rad: float) -> Floats:
        positions = self.table.positions_m[np.array(self.stations) - 1]
        return np.asarray(positions @ uvw_basis(0.0, dec_rad, OVRO_DSA110.longitude_deg).T, float)

    @cached_property
    def applied_delays_ns(self) -> NDArray[np.int64]:
        # Like those of a real header: even numbers of ns for both polarizations, none for unused stations.
        delays = np.zeros((len(self.table.number), len(POLARIZATIONS)), np.int64)
        for number in self.table.number[self.table.active]:
            rng = np.random.default_rng([self.truth.seed, 17, int(number)])
            delays[number - 1] = 2 * (rng.integers(7600, 8200) + rng.integers(0, 2, len(POLARIZATIONS)))
        return delays.ravel()

    @cached_property
    def events(self) -> dict[str, list[TruthFault]]:
        """What goes wrong, by group."""
        found: dict[str, list[TruthFault]] = {}
        for event in self.truth.events:
            found.setdefault(event.group_id, []).append(event)
        return found

    def sky(self, index: int) -> tuple[list[SkySource], Floats, Floats]:
        """Return the sources that a group sees, and where: the same in all its subbands."""
        if index not in self.skies:
            group = self.truth.groups[index]
            times = compute.integration_times(group.start_jd, group.integrations)
            lmn, theta = compute.source_terms(self.truth.sources, times, self.dec_rad, OVRO_DSA110)
            seen = np.flatnonzero((theta < FARTHEST_SOURCE_RAD).any(axis=0))
            self.skies.clear()
            self.skies[index] = ([self.truth.sources[k] for k in seen], lmn[:, seen], theta[:, seen])
        return self.skies[index]

    @cached_property
    def skies(self) -> dict[int, tuple[list[SkySource], Floats, Floats]]:
        return {}

    @cached_property
    def images(self) -> SubbandImages:
        return SubbandImages()

    @cached_property
    def responses(self) -> dict[int, NDArray[np.complex64]]:
        """What gains make of the visibilities of each subband, (baseline, channel, pol)."""
        return {}


def simulate_subbands(
    out_dir: Path,
    spec: SimulationSpec,
    *,
    overwrite: bool = False,
    on_file: Callable[[Path], None] | None = None,
    pause: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
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
    pause, clock
        How to wait for some seconds, and what tells how many have gone by; not used where ``spec.rate`` is 0.

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
    timetable = _Timetable(spec.rate, on_file, pause, clock)
    of_group: dict[str, list[TruthArrival]] = {group.group_id: [] for group in truth.groups}
    for arrival in truth.arrivals:
        of_group[arrival.group_id].append(arrival)
    for index, (group, next_s) in enumerate(zip(truth.groups, _begins(of_group.values()), strict=True)):
        for arrival, image, part in _files(truth, instrument, index, of_group[group.group_id], out_dir):
            write_part(part, image)
            timetable.add(arrival.arrival_s, part, out_dir / arrival.name)
            _log.debug("made %s", arrival.name)
        timetable.release(before_s=next_s)
    return truth


def _begins(of_groups: Iterable[list[TruthArrival]]) -> list[float]:
    """Return, for each group, when the first file of any later one comes: until then nothing else has to be made."""
    first = [min((arrival.arrival_s for arrival in arrivals), default=math.inf) for arrivals in of_groups]
    return [*list(accumulate(reversed(first), min))[::-1][1:], math.inf]


class _Timetable:
    """Gives files their final names in the order, and at the times, of their arrival."""

    def __init__(
        self,
        rate: float,
        on_file: Callable[[Path], None] | None,
        pause: Callable[[float], object],
        clock: Callable[[], float],
    ) -> None:
        self._rate, self._on_file, self._pause, self._clock = rate, on_file, pause, clock
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
            self._began = (self._clock(), arrival_s)
        wall, first_s = self._began
        ahead = (arrival_s - first_s) / self._rate - (self._clock() - wall)
        if ahead > 0:
            self._pause(ahead)


def _instrument(truth: Truth) -> _Instrument:
    stations = truth.array.stations
    first, second = compute.baseline_pairs(len(stations))
    return _Instrument(truth, read_stations(), stations, first, second, math.radians(truth.array.dec_apparent_deg))


def _files(
    truth: Truth, instrument: _Instrument, index: int, arrivals: list[TruthArrival], out_dir: Path
) -> Iterator[tuple[TruthArrival, bytes, Path]]:
    """Yield all files of a group with their bytes, and the name that each has until it comes."""
    group = truth.groups[index]
    events = instrument.events.get(group.group_id, [])
    made: tuple[int, bytes] | None = None
    for arrival in sorted(arrivals, key=lambda a: (-1 if a.subband is None else a.subband, a.arrival_s)):
        path = out_dir / arrival.name
        if arrival.subband is None:
            (event,) = (e for e in events if arrival.name in e.files and e.kind == "foreign-file")
            yield arrival, _foreign_image(truth, instrument, index, Fault.parse(event.fault)), hidden_path(path)
            continue
        again = made is not None and made[0] == arrival.subband
        if made is None or not again:
            here = [event for event in events if arrival.subband in event.subbands]
            made = (arrival.subband, _image(truth, instrument, index, arrival.subband, here))
        yield arrival, made[1], hidden_path(path) if again else incomplete_path(path)


def _image(truth: Truth, instrument: _Instrument, index: int, subband: int, events: list[TruthFault]) -> bytes:
    """Return the bytes of one subband with all that goes wrong in it."""
    refused = {event.kind: event for event in events if event.file_outcome == "bad"}
    if "zero-byte" in refused:
        return b""
    image = instrument.images.image(_block(truth, instrument, index, subband, events))
    cut = refused.get("truncated-subband")
    return image if cut is None or cut.value is None else image[: int(cut.value * len(image))]


def _foreign_image(truth: Truth, instrument: _Instrument, index: int, fault: Fault) -> bytes:
    assert fault.number is not None
    if fault.value in ("text", "spl"):
        return b"This is no subband file.\n"
    if fault.value == "no-header":
        return headless_image()
    if fault.value == "extra-subband":
        return instrument.images.image(_block(truth, instrument, index, BEYOND_THE_BAND, []))
    block = _block(truth, instrument, index, fault.number, [])
    if fault.value == "shape":
        return misshapen_image(block)
    image = instrument.images.image(block)
    return image[: len(image) // 2]


def _block(truth: Truth, instrument: _Instrument, index: int, subband: int, events: list[TruthFault]) -> SubbandBlock:
    group, array = truth.groups[index], truth.array
    numbers = np.array(instrument.stations) - 1
    off_deg = sum(event.value or 0.0 for event in events if event.kind == "wrong-pointing")
    dec_rad, antenna_uvw_m = instrument.dec_rad, instrument.antenna_uvw_m
    if off_deg:
        dec_rad += math.radians(off_deg)
        antenna_uvw_m = instrument.antenna_uvw_at(dec_rad)
    made = datetime_from_jd(group.start_jd).strftime("%Y-%m-%dT%H:%M:%S")
    return SubbandBlock(
        vis=_raw_visibilities(truth, instrument, index, subband, events),
        times_jd=compute.integration_times(group.start_jd, group.integrations),
        freqs_hz=compute.channel_freqs(subband, array.channels),
        channel_width_hz=array.channel_width_hz,
        integration_s=array.integration_s,
        ant1=numbers[instrument.first],
        ant2=numbers[instrument.second],
        uvw_m=antenna_uvw_m[instrument.second] - antenna_uvw_m[instrument.first],
        dec_rad=dec_rad,
        site=OVRO_DSA110,
        positions_m=instrument.table.positions_m,
        applied_delays_ns=instrument.applied_delays_ns,
        history=f"simulated by nightbeam, seed {truth.seed}, for {made}",
    )


def _raw_visibilities(
    truth: Truth, instrument: _Instrument, index: int, subband: int, events: list[TruthFault]
) -> NDArray[np.complex64]:
    array = truth.array
    freqs = compute.channel_freqs(subband, array.channels)
    vis = _sky_visibilities(truth, instrument, index, freqs)
    first, second = instrument.first, instrument.second
    if truth.noise_jy:
        rng = np.random.default_rng([truth.seed, 16, index, subband])
        compute.add_noise(vis, first == second, rng, sigma_jy=truth.noise_jy, width_hz=array.channel_width_hz)
    for event in events:
        if event.kind in ("rfi-line", "rfi-burst"):
            _interfere(vis, truth, instrument, index, event, freqs)
    if truth.gains:
        vis *= _gains(truth, instrument, subband, freqs)
    dead = np.isin(np.array(instrument.stations), truth.groups[index].dead_stations)
    vis[:, dead[first] | dead[second]] = 0.0
    for event in events:
        if event.kind == "nan-block":
            vis[list(event.integrations), slice(*event.baselines)] = np.nan
    return vis


def _gains(truth: Truth, instrument: _Instrument, subband: int, freqs: Floats) -> NDArray[np.complex64]:
    """Return the gains of both ends multiplied, (baseline, channel, pol); small ones are kept for the next group."""
    if subband in instrument.responses:
        return instrument.responses[subband]
    response = np.array(
        [[truth.receptor_gain(freqs, s, pol) for pol in POLARIZATIONS] for s in instrument.stations]
    ).swapaxes(1, 2)
    product: NDArray[np.complex64] = (response[instrument.first] * response[instrument.second].conj()).astype(
        np.complex64
    )
    if product.nbytes <= KEPT_GAINS_BYTES:
        instrument.responses[subband] = product
    return product


def _interfere(
    vis: NDArray[np.complex64], truth: Truth, instrument: _Instrument, index: int, event: TruthFault, freqs: Floats
) -> None:
    fault = Fault.parse(event.fault)
    assert fault.number is not None
    emitter = compute.draw_emitter(truth.seed, event.kind, fault.number)
    flux = np.zeros((len(vis), len(freqs)))
    line = event.kind == "rfi-line"
    diluted = min(1.0, compute.LINE_WIDTH_HZ / truth.array.channel_width_hz) if line else 1.0
    power = (event.value or 0.0) * diluted * emitter.strength(index, len(vis))
    times = list(event.integrations)
    flux[np.ix_(times, list(event.channels))] = power[times][:, None]
    compute.add_interference(
        vis, instrument.antenna_uvw_m, (instrument.first, instrument.second), emitter.responses(instrument.stations),
        flux, freqs, azimuth_deg=emitter.azimuth_deg, dec_rad=instrument.dec_rad, site=OVRO_DSA110,
    )  # fmt: skip


def _sky_visibilities(truth: Truth, instrument: _Instrument, index: int, freqs: Floats) -> NDArray[np.complex64]:
    group = truth.groups[index]
    times = compute.integration_times(group.start_jd, group.integrations)
    first, second = instrument.first, instrument.second
    vis = np.zeros((len(times), len(first), len(freqs), len(POLARIZATIONS)), np.complex64)
    if not truth.sources:
        return vis
    sources, lmn, theta = instrument.sky(index)
    uvw = instrument.antenna_uvw_m
    for t in range(len(times)):
        seen_now = compute.true_visibilities(
            uvw, (first, second), lmn[t], theta[t], sources, freqs,
            beam=truth.beam["model"], diameter_m=truth.beam["diameter_m"],
        )  # fmt: skip
        vis[t] = seen_now[..., np.newaxis]
    return vis


def _bytes_of(truth: Truth) -> int:
    array = truth.array
    baselines = len(array.stations) * (len(array.stations) + 1) // 2
    rows = baselines * array.integrations
    one = rows * (array.channels * 2 * 13 + 44) * 1.02 + 200_000
    return int(one * len(truth.arrivals))


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
        for name in {name for group in earlier.groups for name in group.files} | {a.name for a in earlier.arrivals}:
            for path in (out_dir / name, incomplete_path(out_dir / name), hidden_path(out_dir / name)):
                path.unlink(missing_ok=True)
        (out_dir / TRUTH_NAME).unlink(missing_ok=True)
