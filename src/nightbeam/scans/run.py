"""What the scans of one run have in common: what is to do, loads and atmospheres that many share, how a scan begins."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from nightbeam import __version__
from nightbeam.atmosphere import AtmosphereModel, ClosedFormAtmosphere, Weather
from nightbeam.atmosphere.remote import casa_atmosphere, rounded
from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.scans.choice import CalibrationScan, candidates, resolve_calibration_load_full
from nightbeam.scans.describe import ScanWork, early_warnings, ends, span, suspect_ceiling
from nightbeam.scans.files import RawStore
from nightbeam.scans.model import (
    AtmosphereFitError,
    CalibrationError,
    CalibrationLoadFull,
    LoadCounts,
    MeasuredSky,
    Phase,
    PipelineConfig,
    PipelineResult,
    RawScan,
    RejectedCalibration,
    StoreReadError,
    Tuning,
    UnsupportedModeError,
)
from nightbeam.scans.results import CHUNK_PIXELS, ResultStore, fingerprint
from nightbeam.scans.stages import (
    load_counts,
    load_of_counts,
    prepare_otf,
    prepare_tp,
    reference_sky,
)

__all__ = ["MODES", "NOT_OF_A_SOURCE", "KnownCalibrations", "Run"]

_log = logging.getLogger(__name__)

#: Ways of observing that are not calibrated, because they show no source.
NOT_OF_A_SOURCE = frozenset({"calibration", "cal", "skydip", "pointing", "focus", "tuning", "test"})
#: Ways of observing that are, and what prepares them.
MODES = {"otf": prepare_otf, "tp": prepare_tp}
#: Changes when the same input would give another result.
_ALGORITHM = 1
#: Of the machine's memory, where nothing is said.
_SHARE_OF_MEMORY = 0.4
#: Loads and atmospheres that are kept: many scans share one.
_KEPT = 4
_TICK_S = 0.1

#: Times and tunings of load calibrations, None for one that is not whole yet, with the files they were read from.
KnownCalibrations = dict[int, tuple[str, CalibrationScan | None]]

Key = TypeVar("Key")
Value = TypeVar("Value")


# -- a run --------------------------------------------------------------------------------------------------------


class Run:
    """What the scans of a store have in common."""

    def __init__(
        self,
        store: RawStore,
        output: ResultStore | None,
        config: PipelineConfig,
        *,
        air: AtmosphereModel | None = None,
        stop: threading.Event | None = None,
        read: Callable[..., RawScan] | None = None,
        known: KnownCalibrations | None = None,
    ) -> None:
        self.store, self.config, self.options = store, config, config.options
        self._output = output
        self.stop = stop or threading.Event()
        #: Of the scan that failed last.
        self.error: Exception | None = None
        self._read, self._known = read, {} if known is None else known
        self._air, self._loads, self._airs = air, _Kept[int, CalibrationLoadFull](), _Kept[Any, AtmosphereModel]()
        self._stats: dict[int, str] = {}
        self._calibrations: list[CalibrationScan] | None = None
        self._load_warnings: dict[int, list[str]] = {}
        self._bad_loads: dict[int, CalibrationError] = {}
        #: Calibrations that cannot be used; those of earlier runs are put in by who knows them.
        self.rejected: dict[int, RejectedCalibration] = {}

    @property
    def atmosphere(self) -> str:
        """What the atmosphere is called."""
        return self.config.atmosphere if self._air is None else "given"

    @cached_property
    def config_hash(self) -> str:
        """What results of the same options and atmosphere have in common."""
        return fingerprint(*self._options_and_air)

    @cached_property
    def _options_and_air(self) -> tuple[dict[str, Any], str | None]:
        atmosphere: str | None = self.config.atmosphere
        if self._air is not None and (atmosphere := _name_of_air(self._air)) is None:
            atmosphere = uuid.uuid4().hex  # its address would be that of another one in the next run
            _log.warning(
                "an atmosphere of the class %s cannot be recognised in a later run, which will do all scans again: "
                "give it an attribute `name`, or make it a dataclass", type(self._air).__qualname__,
            )  # fmt: skip
        # Which calibration a scan has to use is said by what it has used.
        return asdict(self.options) | {"force_calibration": None}, atmosphere

    @property
    def output(self) -> ResultStore:
        """Where results go."""
        assert self._output is not None
        return self._output

    # ------------------------------------------------------------ what is to do

    def plan(self) -> tuple[list[int], PipelineResult]:
        """Return the scans that are to do, and what is known without doing them; of some, if it is to stop."""
        todo, skipped, incomplete = [], [], []
        for scan in self._asked():
            if self.stop.is_set():
                break
            if self._is_incomplete(scan):
                _log.warning("scan %d is not complete yet and left out", scan)
                incomplete.append(scan)
            elif not self.config.force and self._done(scan):
                skipped.append(scan)
            else:
                todo.append(scan)
        return todo, PipelineResult(skipped=tuple(skipped), incomplete=tuple(incomplete))

    def _asked(self) -> list[int]:
        there = self.store.scans()
        if self.config.scans is None:
            return [scan for scan in there if self.store.kind(scan) not in NOT_OF_A_SOURCE]
        for scan in self.config.scans:
            if scan not in there:
                raise MissingError(f"there is no scan {scan} in {self.store.path}", fix="list those that are there")
            if (kind := self.store.kind(scan)) in NOT_OF_A_SOURCE:
                raise UsageError(f"scan {scan} is a {kind}, which is not calibrated", fix="name others")
        return sorted(set(self.config.scans))

    def _is_incomplete(self, scan: int) -> bool:
        try:
            return self.store.info(scan).complete is False
        except CalibrationError:
            return False  # what is wrong with it is said when its turn comes

    def _done(self, scan: int) -> bool:
        """Say whether a result is of the present input: of the same calibrations, which are still the best choice."""
        if self._output is None:
            return False
        said = self._output.attributes(scan)
        tried, used = said.get("calibrations_tried"), said.get("calibration_scans")
        if said.get("status") != "complete" or not isinstance(tried, list) or not isinstance(used, list):
            return False
        try:
            choices = self._choices(scan)
            if tuple(used) not in choices:
                return False
            first = [number for numbers in choices[: choices.index(tuple(used)) + 1] for number in numbers]
            return first == tried and said.get("fingerprint") == self._mark(scan, tuple(tried))
        except CalibrationError:
            return False

    def _mark(self, scan: int, calibrations: tuple[int, ...]) -> str:
        stats = [self._stat(number) for number in (scan, *calibrations)]
        return fingerprint(_ALGORITHM, __version__, stats, list(calibrations), *self._options_and_air)

    def _stat(self, scan: int) -> str:
        if scan not in self._stats:
            self._stats[scan] = self.store.stat(scan)
        return self._stats[scan]

    def _choices(self, scan: int, head: RawScan | None = None) -> list[tuple[int, ...]]:
        head = head or self.store.read(scan, counts=False)
        return candidates(scan, self._tuning(head), ends(head), self._all_calibrations(), options=self.options)

    def _tuning(self, head: RawScan) -> Tuning:
        info = head.info
        ends_hz = float(head.freq_hz[0]), float(head.freq_hz[-1])
        pixels = head.lon_off_deg.shape[1]
        return Tuning(info.lo_hz, info.signal_sideband, info.backend, head.freq_hz.size, pixels, *ends_hz)

    def _all_calibrations(self) -> list[CalibrationScan]:
        if self._calibrations is None:
            found = []
            for scan in self.store.scans():
                if self.store.kind(scan) not in ("calibration", "cal"):
                    continue
                files = self._files(scan)
                if scan not in self._known or self._known[scan][0] != files or not files:
                    try:
                        head = self.store.read(scan, counts=False)
                    except CalibrationError as error:
                        self._reject(scan, error, "load")
                        self._known.pop(scan, None)
                        continue
                    middle = 0.5 * sum(ends(head))
                    one = CalibrationScan(scan, self._tuning(head), middle)
                    self._known[scan] = files, None if head.info.complete is False else one
                self._accept(scan, "load")
                if (known := self._known[scan][1]) is not None:
                    found.append(known)
            self._calibrations = found
        return self._calibrations

    def look_anew(self) -> None:
        """Forget what was read: it may have been mended, or have arrived, meanwhile."""
        self._stats.clear()
        self._loads, self._calibrations = _Kept[int, CalibrationLoadFull](), None
        self._bad_loads.clear()

    # ------------------------------------------------------------ a scan

    def begin(self, scan: int) -> ScanWork:
        """Read what has to be known of a scan before its counts."""
        begun = time.monotonic()
        timings: dict[str, float] = {}
        with span(timings, "load"):
            self._stats.pop(scan, None)
            self._stat(scan)
            head = self.store.read(scan, counts=False)
            if head.info.obs_type not in MODES:
                raise UnsupportedModeError(
                    f"scan {scan} was observed as {head.info.obs_type!r}, which is not calibrated here",
                    fix=f"{' and '.join(MODES)} are",
                )
        with span(timings, "resolve"):
            begin, end = ends(head)
            choices = self._choices(scan, head)
            load, passed_over = resolve_calibration_load_full(scan, 0.5 * (begin + end), choices, self.load)
            tried = tuple(number for numbers in choices[: choices.index(load.scans) + 1] for number in numbers)
        sky = None
        if self.options.sky == "off" or load.sky is None:
            with span(timings, "load"):
                sky = self._sky_of(scan, head, load)
        work = ScanWork(scan, begun, head, load, passed_over, tried, self._mark(scan, tried), sky, [], timings)
        work.warnings = early_warnings(head, load, passed_over, self.options.limits)
        for number in load.scans:
            work.warnings += self._load_warnings.get(number, [])
        return work

    def read(
        self, work: ScanWork, pixels: slice, into: NDArray[np.float32], stop: Callable[[], bool] | None = None
    ) -> RawScan:
        """Return some pixels of a scan that was begun, with their counts in ``into``.

        Raises `ReadingStopped` if ``stop`` says so.
        """
        if self._read is not None:
            return self._read(work.scan, pixels=pixels, into=into)
        return self.store.read(work.scan, pixels=pixels, into=into, head=work.head, stop=stop)

    def load(self, scan: int) -> CalibrationLoadFull:
        """Return a load calibration, or raise what is wrong with it; either is kept for the next scans."""
        if scan in self._bad_loads:
            raise self._bad_loads[scan]
        if (kept := self._loads.get(scan)) is not None:
            return kept
        try:
            load = self._read_load(scan)
        except CalibrationError as error:
            self._reject(scan, error, "resolve")
            self._bad_loads[scan] = error
            raise
        self._accept(scan, "resolve")
        self._loads.put(scan, load)
        return load

    def _reject(self, scan: int, error: CalibrationError, stage: Literal["load", "resolve"]) -> None:
        """Note a calibration that cannot be used, and say it, but not what was said before of the same files."""
        one = RejectedCalibration(scan, type(error).__name__, stage, error.what, self._files(scan))
        before = self.rejected.get(scan)
        if before is None or (before.error, before.files) != (one.error, one.files):
            _log.warning("calibration %d is not used: %s", scan, error.what)
        self.rejected[scan] = one

    def _accept(self, scan: int, stage: Literal["load", "resolve"]) -> None:
        if scan in self.rejected and stage in ("resolve", self.rejected[scan].stage):
            del self.rejected[scan]

    def still_rejected(self) -> tuple[RejectedCalibration, ...]:
        """Return the calibrations that cannot be used, of this run and of earlier ones, unless they have changed."""
        there = {*self.store.scans()} if self.rejected else set()
        every = sorted(self.rejected.values(), key=lambda one: one.scan)
        return tuple(one for one in every if one.scan in there and self._files(one.scan) == one.files)

    def _files(self, scan: int) -> str:
        try:
            return self._stat(scan)
        except StoreReadError:
            return ""

    def _read_load(self, scan: int) -> CalibrationLoadFull:
        self._stats.pop(scan, None)
        self._stat(scan)
        self._load_warnings[scan] = []
        parts, gains, first = [], [], None
        for pixels in self.blocks(scan):
            part = self.store.read(scan, pixels=pixels, stop=self.stop.is_set)
            parts.append(load_counts(part, engine=self.config.engine))
            gains.append(part.gain_signal)
            first = first or part
            self._load_warnings[scan] += suspect_ceiling(part)
        assert first is not None
        self.require_unchanged(scan)
        counts = parts[0] if len(parts) == 1 else _joined(parts)
        return load_of_counts(first, counts, np.concatenate(gains), options=self.options)

    def _sky_of(self, scan: int, head: RawScan, load: CalibrationLoadFull) -> MeasuredSky:
        """Measure the sky with the scan's own references, of all pixels."""
        at = np.flatnonzero(head.phase == Phase.OFF)
        if at.size == 0:
            return MeasuredSky(np.full(load.gain.gamma.shape, np.nan), np.ones(load.gain.gamma.shape), 1.0)
        # One visit is enough: the nearest to the loads that has a good dump, and one on the source to prepare.
        good = at[(head.flag[at] == 0).any(axis=1)]
        nearest = int(
            (good if good.size else at)[np.argmin(np.abs(head.time_s[good if good.size else at] - load.time_s))]
        )
        first = last = nearest
        while first > 0 and head.phase[first - 1] == Phase.OFF:
            first -= 1
        while last + 1 < head.phase.size and head.phase[last + 1] == Phase.OFF:
            last += 1
        visit = self.store.read(scan, dumps=slice(first, last + 1), head=head, stop=self.stop.is_set)
        one_on = replace(
            visit,
            phase=np.append(visit.phase, np.uint8(Phase.ON)),
            **{
                name: np.concatenate([getattr(visit, name), getattr(visit, name)[-1:]])
                for name in (
                    "counts",
                    "duration_s",
                    "elevation_deg",
                    "azimuth_deg",
                    "lon_off_deg",
                    "lat_off_deg",
                    "row",
                    "flag",
                )
            },
            time_s=np.append(visit.time_s, visit.time_s[-1] + 1.0),
        )
        prepared = prepare_otf(one_on, options=self.options, zero=load.zero, whole=False, engine=self.config.engine)
        if not prepared.off_seconds.any():
            return MeasuredSky(np.full(load.gain.gamma.shape, np.nan), np.ones(load.gain.gamma.shape), 1.0)
        return reference_sky(one_on, prepared, load, self.options)

    def blocks(self, scan: int) -> list[slice]:
        """Return the pixels that go through together."""
        dumps, pixels, channels, of_chunk = self.store.shape(scan)
        budget = self.config.memory_budget_bytes or int(_SHARE_OF_MEMORY * psutil.virtual_memory().total)
        each = max(1, int(budget / 3 / (4 * max(1, dumps) * max(1, channels))))
        if each >= pixels:
            return [slice(0, pixels)]
        whole = int(np.lcm(of_chunk, CHUNK_PIXELS)) if np.lcm(of_chunk, CHUNK_PIXELS) <= each else CHUNK_PIXELS
        each = each // whole * whole if each >= whole else each
        return [slice(begin, min(begin + each, pixels)) for begin in range(0, pixels, each)]

    def require_unchanged(self, scan: int) -> None:
        """Raise `StoreReadError` unless a scan is what it was when it was begun."""
        if self.store.stat(scan) != self._stat(scan):
            raise StoreReadError(f"scan {scan} has changed while it was read", fix="wait until it has been written")

    def model_of(self, work: ScanWork) -> AtmosphereModel:
        """Return the atmosphere above a scan."""
        if self._air is not None:
            return self._air
        if self.config.atmosphere == "closed-form":
            return ClosedFormAtmosphere()
        info, freq, image = work.head.info, work.head.freq_hz / 1e9, work.head.image_hz / 1e9
        try:
            weather = Weather(info.altitude_m, info.pressure_hpa, info.temperature_k, info.humidity_pct)
            key = (rounded(weather), float(freq[0]), float(freq[-1]), float(image[0]), float(image[-1]))
        except InputError as error:
            raise AtmosphereFitError(f"scan {work.scan}: {error.what}", fix=error.fix) from error
        if (kept := self._airs.get(key)) is None:
            cache = self.config.cache_dir or Path.home() / ".cache" / "nightbeam" / "air"
            kept = casa_atmosphere(weather, [freq, image], cache_dir=cache)
            self._airs.put(key, kept)
        return kept


def _name_of_air(air: AtmosphereModel) -> str | None:
    """Return what a caller's atmosphere is known by from run to run: class and fields, or name; None: nothing is."""
    kind, name = f"{type(air).__module__}.{type(air).__qualname__}", getattr(air, "name", None)
    if is_dataclass(air):
        with suppress(TypeError):
            return f"{kind} {json.dumps(asdict(air), sort_keys=True, default=_of_array)}"
    return f"{kind} {name}" if isinstance(name, str) and name else None


def _of_array(value: Any) -> Any:
    """Return what an array, or a number of numpy, is in JSON; a TypeError for what has no value that could be said."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [str(value.dtype), value.shape, hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()]
    raise TypeError(type(value))


class _Kept(Generic[Key, Value]):
    """The last few of something."""

    def __init__(self) -> None:
        self._items: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)

    def put(self, key: Key, value: Value) -> None:
        self._items[key] = value
        while len(self._items) > _KEPT:
            self._items.popitem(last=False)


def _joined(parts: Sequence[LoadCounts]) -> LoadCounts:
    """Return the counts of all pixels from those of some at a time."""
    first = parts[0]

    def of(name: str) -> dict[Phase, NDArray[Any]]:
        return {phase: np.concatenate([getattr(part, name)[phase] for part in parts]) for phase in first.counts}

    return LoadCounts(of("counts"), of("flag"), of("seconds"), first.airmass, first.time_s, first.span_s)
