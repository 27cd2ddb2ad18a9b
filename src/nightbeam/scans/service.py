"""The scan calibrator as a service: it watches where raw scans arrive, and calibrates each once, as it completes."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from nightbeam.core.errors import BusyError, ConfigError, MissingError, NightbeamError, StorageError, UsageError
from nightbeam.core.files import remove_parts, write_text
from nightbeam.core.times import iso_z, utc_now
from nightbeam.scans.model import NoCalibrationError, PipelineConfig, PipelineResult, ScanFailure, ScanResult
from nightbeam.scans.results import ResultStore
from nightbeam.scans.run import KnownCalibrations
from nightbeam.scans.watch import WatchedStore
from nightbeam.scans.worker import calibrate_store

__all__ = ["ScanService", "ServiceCounters", "Water"]

_log = logging.getLogger(__name__)

#: Scans of a store that are calibrated before the others are looked at again.
_BATCH = 50
#: Failed scans whose files are looked at in one poll.
_LOOKS = 20
#: A scan that could not be read is tried so often, and with no longer waits; then only when its files change.
_TRIES = 10
_LONGEST_WAIT_S = 600.0
#: How many values of the water are kept.
_WATER = 500

Marks = Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Water:
    """The water of one scan, and when it began."""

    at: str
    store: str
    scan: int
    pwv_mm: float
    source: str


@dataclass(frozen=True, slots=True)
class ServiceCounters:
    """What a service has done since it began, and what is left.

    Attributes
    ----------
    done, skipped
        Scans that it has calibrated, and that it found calibrated.
    failed
        Scans that cannot be calibrated, as things are.
    backlog
        Whole scans that have not had their turn.
    writing
        Scans that are not whole yet.
    seconds
        Mean of each stage.
    water
        The last of the night, by time.
    last_scan, last_error
        In words.
    problems
        What keeps it from working: stores that are none, a full disk, somebody else at the results.
    """

    stores: int = 0
    done: int = 0
    skipped: int = 0
    failed: int = 0
    backlog: int = 0
    writing: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    water: tuple[Water, ...] = ()
    last_scan: str = ""
    last_error: str = ""
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class _Trouble:
    """A scan that has failed: what it was tried with, and when it is tried again."""

    failure: ScanFailure
    marks: Marks
    tries: int
    due_s: float


@dataclass(slots=True)
class _Work:
    """A store, and what has become of its scans."""

    watch: WatchedStore
    l1: Path
    done: set[int] = field(default_factory=set)
    trouble: dict[int, _Trouble] = field(default_factory=dict)
    loads: frozenset[int] = frozenset()
    known: KnownCalibrations = field(default_factory=dict)
    told: set[int] = field(default_factory=set)
    due_s: float = -math.inf
    wait_s: float = 0.0

    def waiting(self, now_s: float) -> list[int]:
        """Return the scans whose turn it is: new ones first, those that have failed before last."""
        if self.watch.problem:
            return []
        found = [scan for scan in self.watch.sources() if scan not in self.done and self._is_due(scan, now_s)]
        return sorted(found, key=lambda scan: (scan in self.trouble, scan in self.told, scan))

    def _is_due(self, scan: int, now_s: float) -> bool:
        return scan not in self.trouble or self.trouble[scan].due_s <= now_s

    def depends_on(self, failure: ScanFailure) -> set[int]:
        """Return the scans that may help a failed one when they change: where it lacks loads, new ones too."""
        found = {failure.scan, *failure.calibration_scans}
        if failure.stage == "resolve" or failure.error == NoCalibrationError.__name__:
            found |= set(self.watch.calibrations())
        return found


class ScanService:
    """Calibrates what arrives: ``INPUT/NAME.zarr`` into ``OUTPUT/NAME.zarr``, scan by scan.

    What is done is known from the results alone, so it may be killed at any moment. One process at a time may run it
    on an output; the caller sees to that.

    Parameters
    ----------
    input_dir
        A directory with stores of raw scans, or one such store.
    output_dir
        Where the stores of results are, or will be.
    config
        How scans are calibrated; which ones, and how often they are tried, the service decides.
    interval_s
        Between two looks when there is nothing to do.
    settle_s
        A scan that does not say whether it is complete must not have changed for so long.
    heartbeat
        A JSON file that says what `counters` says, and when, of this service alone; None: there is none.
    calibrate, clock
        In place of `calibrate_store` and of the time, for tests.

    Raises
    ------
    ConfigError
        If results would be written where raw scans are.
    """

    def __init__(
        self,
        input_dir: Path,
        output_dir: Path,
        config: PipelineConfig | None = None,
        *,
        interval_s: float = 5.0,
        settle_s: float = 60.0,
        heartbeat: Path | None = None,
        calibrate: Callable[..., PipelineResult] = calibrate_store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.input_dir, self.output_dir = input_dir.resolve(), output_dir.resolve()
        stores_in = self.input_dir.parent if _is_store(self.input_dir) else self.input_dir
        if self.output_dir == stores_in or any(map(_is_store, (self.output_dir, *self.output_dir.parents))):
            raise ConfigError(
                f"results would be written to {output_dir}, where raw scans are", fix="name another output_dir"
            )
        self._config = replace(config or PipelineConfig(), scans=None, force=False, failures=None, retries=0)
        self._interval_s, self._settle_s, self._heartbeat = interval_s, settle_s, heartbeat
        self._calibrate, self._clock = calibrate, clock
        self._works: dict[Path, _Work] = {}
        self._said: dict[Any, str] = {}
        self._disk_due_s, self._disk_wait_s, self._turn = -math.inf, 0.0, 0
        self._tally = _Tally()

    def loop(self, stop: threading.Event) -> None:
        """Work until asked to stop; the scan that is being written is given up then, and begun anew next time."""
        _log.info("scans of %s are calibrated into %s", self.input_dir, self.output_dir)
        if self._heartbeat is not None:
            with contextlib.suppress(OSError):  # what it is, is said when it is written
                remove_parts(self._heartbeat)
        while not stop.is_set():
            if not self.poll(stop):
                stop.wait(self._interval_s)
        found = self.counters()
        _log.info("drained: %d scans calibrated, %d failed, %d wait", found.done, found.failed, found.backlog)

    def poll(self, stop: threading.Event | None = None) -> bool:
        """Look once, and calibrate some scans of the store that was written to last; returns whether there were any."""
        now_s = self._clock()
        self._look(now_s)
        self._beat()
        if now_s < self._disk_due_s:
            return False
        newest = sorted(self._works.values(), key=lambda work: -work.watch.touched)
        for work in newest:
            if now_s >= work.due_s and (scans := tuple(islice(work.waiting(now_s), _BATCH))):
                self._work(work, scans, stop or threading.Event())
                self._beat()
                return True
        return False

    def counters(self) -> ServiceCounters:
        """Return what has been done and what is left; may be asked for by another thread."""
        return self._tally.counters()

    def failures(self) -> list[tuple[str, ScanFailure]]:
        """Return the scans that cannot be calibrated, with the name of their store; for another thread too."""
        return self._tally.failures()

    # ------------------------------------------------------------ looking

    def _look(self, now_s: float) -> None:
        paths = self._paths()
        if paths is not None:
            self._works = {
                path: self._works.get(path) or _Work(WatchedStore(path, self._settle_s), self.output_dir / path.name)
                for path in paths
            }
        for work in self._works.values():
            try:
                self._look_at_store(work, now_s)
            except Exception as error:  # of one store; the others go on
                _log.debug("%s", work.watch.path, exc_info=True)
                work.watch.problem = f"{work.watch.path} cannot be looked at: {type(error).__name__}: {error}"
            self._say(("store", work.watch.path), work.watch.problem, f"{work.watch.path} is a store of raw scans now")
        self._look_at_failed(now_s)
        self._count()

    def _look_at_store(self, work: _Work, now_s: float) -> None:
        for scan in work.watch.look(now_s):
            work.done.discard(scan)
            work.trouble.pop(scan, None)
        self._look_for_loads(work)

    def _look_for_loads(self, work: _Work) -> None:
        """Have the library look at new loads, which may be earlier than the scans; it skips what is still best."""
        loads = frozenset(work.watch.calibrations())
        if loads - work.loads:
            work.done.clear()
        work.loads = loads

    def _paths(self) -> list[Path] | None:
        """Return the stores that are there; None where nobody can tell."""
        try:
            if _is_store(self.input_dir):
                found = [self.input_dir]
            else:
                with os.scandir(self.input_dir) as entries:
                    found = sorted(Path(one.path) for one in entries if one.name.endswith(".zarr") and _may_be_dir(one))
        except OSError as error:
            self._say("input", f"{self.input_dir} cannot be listed: {error.strerror}", "")
            return None
        self._say("input", "", f"{self.input_dir} is there")
        return found

    def _look_at_failed(self, now_s: float) -> None:
        """Find failed scans that have become others since, or have got other loads: some in each poll, in turn."""
        waiting = [(work, one) for work in self._works.values() for one in work.trouble.values() if one.due_s > now_s]
        some = [waiting[(self._turn + n) % len(waiting)] for n in range(min(_LOOKS, len(waiting)))]
        self._turn = (self._turn + len(some)) % max(1, len(waiting))
        seen: dict[tuple[Path, int], str] = {}
        for work, trouble in some:
            keys = {scan: (work.watch.path, scan) for scan in work.depends_on(trouble.failure)}
            for scan, key in keys.items():
                if key not in seen:
                    seen[key] = work.watch.mark(scan)
            marks = {scan: seen[key] for scan, key in keys.items()}
            if marks != trouble.marks:
                del work.trouble[trouble.failure.scan]
                for scan in marks.keys() & trouble.marks.keys():
                    if marks[scan] != trouble.marks[scan]:  # it may be of another kind now
                        work.watch.forget(scan, now_s)

    # ------------------------------------------------------------ working

    def _work(self, work: _Work, scans: tuple[int, ...], stop: threading.Event) -> None:
        l0, told, before = work.watch.path, set[int](), dict(work.trouble)
        # Marked before they are read: what changes meanwhile is found next time.
        marks = {scan: work.watch.mark(scan) for scan in {*scans, *work.watch.calibrations()}}

        def note(one: ScanResult | ScanFailure) -> None:
            told.add(one.scan)
            if isinstance(one, ScanResult):
                self._succeeded(work, one)
            else:
                self._failed(work, one, marks)
            self._beat()

        whole = False
        try:
            result = self._calibrate(
                l0, work.l1, replace(self._config, scans=scans), stop=stop, on_scan=note, known=work.known
            )
            self._settle(work, result, set(scans) - told)
            whole = True
        except BusyError as error:
            self._put_off(work, f"{error.what}; it is waited for", once_s=self._interval_s)
        except StorageError as error:
            self._disk_wait_s = _next_wait(self._disk_wait_s, self._interval_s)
            self._disk_due_s = self._clock() + self._disk_wait_s
            self._say("disk", f"{error.what}; results wait until it can be written", "")
        except (UsageError, MissingError) as error:
            # They are not what they were taken for.
            for scan in scans:
                work.watch.forget(scan, self._clock())
                work.trouble.pop(scan, None)
            self._put_off(work, error.what, once_s=self._interval_s)
        except NightbeamError as error:
            self._put_off(work, error.what)
        except Exception as error:  # of one store; the others go on
            _log.debug("%s", l0, exc_info=True)
            self._put_off(work, f"{l0} cannot be worked on: {type(error).__name__}: {error}")
        else:
            self._say("disk", "", "results can be written again")
            self._say(("work", l0), "", f"{l0} is worked on again")
            self._disk_wait_s = work.wait_s = 0.0
        if not whole:
            self._have_tried_again(work, told, before)
        self._count()

    def _have_tried_again(self, work: _Work, told: set[int], before: Mapping[int, _Trouble]) -> None:
        """Give another turn to what failed in a run that did not get to write its failures down."""
        for scan in told & work.trouble.keys():
            trouble = work.trouble[scan]
            trouble.tries, trouble.due_s = before[scan].tries if scan in before else 0, self._clock()

    def _settle(self, work: _Work, result: PipelineResult, left: set[int]) -> None:
        """Note those scans of which nothing was told while the store was worked on."""
        output = ResultStore(work.l1) if result.skipped else None
        for scan in result.skipped:
            work.done.add(scan)
            work.trouble.pop(scan, None)
            if output is not None and scan not in work.told:
                work.told.add(scan)
                self._tally.found(work.l1.name, scan, output.attributes(scan))
        for scan in result.incomplete:
            work.watch.forget(scan, self._clock())
        if left - {*result.skipped, *result.incomplete} and not result.stopped:
            work.due_s = self._clock() + self._interval_s

    def _succeeded(self, work: _Work, one: ScanResult) -> None:
        work.done.add(one.scan)
        work.told.add(one.scan)
        work.trouble.pop(one.scan, None)
        self._tally.calibrated(work.l1.name, one, ResultStore(work.l1).attributes(one.scan))

    def _failed(self, work: _Work, failure: ScanFailure, marks: Marks) -> None:
        before, now_s = work.trouble.get(failure.scan), self._clock()
        tries = 1 if before is None else before.tries + 1
        depends = {scan: marks.get(scan) or work.watch.mark(scan) for scan in work.depends_on(failure)}
        if failure.kind == "calibration" or tries >= _TRIES:
            due_s = math.inf
        else:
            due_s = now_s + min(_LONGEST_WAIT_S, self._config.retry_wait_s * 2.0 ** (tries - 1))
        work.trouble[failure.scan] = _Trouble(failure, depends, tries, due_s)
        self._tally.failed(work.l1.name, failure)

    def _put_off(self, work: _Work, why: str, *, once_s: float | None = None) -> None:
        work.wait_s = _next_wait(work.wait_s, self._interval_s) if once_s is None else once_s
        work.due_s = self._clock() + work.wait_s
        self._say(("work", work.watch.path), why, "")

    # ------------------------------------------------------------ telling

    def _say(self, about: Any, problem: str, after: str) -> None:
        """Say a problem once, and when it is over."""
        if problem and self._said.get(about) != problem:
            _log.warning("%s", problem)
            self._said[about] = problem
        elif not problem and self._said.pop(about, None) is not None and after:
            _log.info("%s", after)

    def _count(self) -> None:
        works = list(self._works.values())
        # What is wrong with a store that is gone is over.
        self._said = {
            about: text for about, text in self._said.items() if isinstance(about, str) or about[1] in self._works
        }
        self._tally.set(
            stores=sum(not work.watch.problem for work in works),
            backlog=sum(len(set(work.watch.sources()) - work.done - work.trouble.keys()) for work in works),
            writing=sum(work.watch.writing() for work in works),
            problems=tuple(self._said.values()),
            failures=[(work.l1.name, one.failure) for work in works for one in work.trouble.values()],
        )

    def _beat(self) -> None:
        if self._heartbeat is None:
            return
        said = {"at": iso_z(utc_now()), "pid": os.getpid(), **asdict(self.counters())}
        try:
            write_text(self._heartbeat, json.dumps(said, indent=1) + "\n")
        except OSError as error:
            self._say("heartbeat", f"the heartbeat cannot be written: {error}", "")
        else:
            self._say("heartbeat", "", "the heartbeat can be written again")


class _Tally:
    """The numbers of a service, which another thread may ask for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = ServiceCounters()
        self._failures: list[tuple[str, ScanFailure]] = []
        self._seconds: Counter[str] = Counter()
        self._water: dict[tuple[str, int], Water] = {}

    def counters(self) -> ServiceCounters:
        with self._lock:
            mean = {stage: round(total / max(1, self._now.done), 3) for stage, total in self._seconds.items()}
            water = tuple(sorted(self._water.values(), key=lambda one: (one.at, one.scan)))
            return replace(self._now, seconds=mean, water=water)

    def failures(self) -> list[tuple[str, ScanFailure]]:
        with self._lock:
            return list(self._failures)

    def set(self, *, failures: list[tuple[str, ScanFailure]], **numbers: Any) -> None:
        with self._lock:
            self._failures = failures
            self._now = replace(self._now, failed=len(failures), **numbers)

    def calibrated(self, store: str, one: ScanResult, said: Mapping[str, Any]) -> None:
        with self._lock:
            self._seconds.update(one.timings)
            words = f"{store}, scan {one.scan}: pwv {one.pwv_mm:.3f} mm ({one.pwv_source}), {one.seconds:.1f} s"
            self._now = replace(self._now, done=self._now.done + 1, last_scan=words)
            self._add_water(store, one.scan, said)

    def found(self, store: str, scan: int, said: Mapping[str, Any]) -> None:
        with self._lock:
            self._now = replace(self._now, skipped=self._now.skipped + 1)
            self._add_water(store, scan, said)

    def failed(self, store: str, failure: ScanFailure) -> None:
        words = f"{store}, scan {failure.scan}: {failure.error}: {failure.message.splitlines()[0]}"
        with self._lock:
            self._now = replace(self._now, last_error=words)

    def _add_water(self, store: str, scan: int, said: Mapping[str, Any]) -> None:
        at, pwv_mm = said.get("begin"), said.get("pwv_mm")
        if isinstance(at, str) and isinstance(pwv_mm, int | float):
            self._water[store, scan] = Water(at, store, scan, float(pwv_mm), str(said.get("pwv_source")))
        while len(self._water) > _WATER:
            del self._water[min(self._water, key=lambda key: self._water[key].at)]


def _next_wait(wait_s: float, first_s: float) -> float:
    return min(_LONGEST_WAIT_S, max(first_s, 2.0 * wait_s))


def _may_be_dir(entry: os.DirEntry[str]) -> bool:
    """Say whether something is a directory; what cannot be told is looked at as a store, which says what is wrong."""
    try:
        return entry.is_dir()
    except OSError:
        return True


def _is_store(path: Path) -> bool:
    return path.suffix == ".zarr" or (path / "zarr.json").exists()
