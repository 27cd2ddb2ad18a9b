"""Three threads: one reads ahead, the caller's calibrates, one writes.

At most two raw scans and one result are in memory; scans that are too large for that go through in blocks of pixels,
with the same result to the last bit.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import NightbeamError, StorageError
from nightbeam.scans.describe import ScanWork, attributes_of, begin_result, result_of, span
from nightbeam.scans.files import ReadingStopped
from nightbeam.scans.model import (
    CalibrationError,
    CalibrationResult,
    Flag,
    PipelineResult,
    PreparedData,
    RawScan,
    SaturationError,
    ScanFailure,
    ScanResult,
    StoreReadError,
)
from nightbeam.scans.run import MODES, Run
from nightbeam.scans.stages import (
    calibrate_full,
    determine_atmosphere_full,
)

__all__ = ["Pipeline"]

_log = logging.getLogger(__name__)

_TICK_S = 0.1


# -- what travels between the threads -----------------------------------------------------------------------------


@dataclass
class _Block:
    """Some pixels of a scan, as they were read."""

    work: ScanWork
    pixels: slice
    raw: RawScan
    memory: NDArray[np.float32]
    last: bool


@dataclass
class _Failed:
    """A scan that could not be read; it takes the place of its blocks."""

    scan: int
    stage: str
    error: Exception
    begun: float
    tried: tuple[int, ...] = ()
    work: ScanWork | None = None


@dataclass
class _Output:
    """Some pixels of a result, to be written."""

    block: _Block
    prepared: PreparedData
    result: CalibrationResult


class _Memory:
    """Three pieces of memory that raw scans and results take turns in, and two rights to read.

    A raw scan becomes a result in the same place. So there are never more than two raw scans and one result.
    """

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._free: queue.SimpleQueue[NDArray[np.float32]] = queue.SimpleQueue()
        for _ in range(3):
            self._free.put(np.empty(0, np.float32))
        self._raw = threading.Semaphore(2)
        self._writing = threading.Semaphore(1)
        self._stop = stop

    def take(self, size: int) -> NDArray[np.float32] | None:
        """Return memory for a raw scan when there is some; None if the run ends before."""
        if not self._acquire(self._raw):
            return None
        while not self._stop():
            with contextlib.suppress(queue.Empty):
                memory = self._free.get(timeout=_TICK_S)
                if memory.size >= size:
                    return memory
                del memory
                return np.empty(size, np.float32)
        self._raw.release()
        return None

    def hand_over(self) -> bool:
        """Make a raw scan a result that may be written, when the one before has been."""
        if not self._acquire(self._writing):
            return False
        self._raw.release()
        return True

    def written(self, memory: NDArray[np.float32]) -> None:
        """Give back what a result was in."""
        self._free.put(memory)
        self._writing.release()

    def dropped(self, memory: NDArray[np.float32]) -> None:
        """Give back what a raw scan was in that became nothing."""
        self._free.put(memory)
        self._raw.release()

    def _acquire(self, semaphore: threading.Semaphore) -> bool:
        while not self._stop():
            if semaphore.acquire(timeout=_TICK_S):
                return True
        return False


# -- the three threads --------------------------------------------------------------------------------------------

_END = object()


class Pipeline:
    """Reads, calibrates and writes some scans; made for one use."""

    def __init__(self, run: Run, todo: Sequence[int], told: Callable[[ScanResult | ScanFailure], None]) -> None:
        self._run, self._todo, self._told = run, todo, told
        self._abort = threading.Event()
        self._stopped_at: float | None = None
        self._memory = _Memory(self._ended)
        # Of capacity one: beside the scan that is worked on there is one that has been read.
        self._read_ahead: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._to_write: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[ScanResult | ScanFailure] = queue.SimpleQueue()
        self._found: list[ScanResult | ScanFailure] = []
        self._fatal: BaseException | None = None
        self._failing, self._written = threading.Lock(), threading.Event()

    def run(self) -> PipelineResult:
        """Work through the scans. Raises `StorageError` if results cannot be written."""
        reader = threading.Thread(target=self._read_all, name="scans-read", daemon=True)
        writer = threading.Thread(target=self._write_all, name="scans-write", daemon=True)
        reader.start()
        writer.start()
        try:
            self._calibrate_all()
        except BaseException:
            self._abort.set()
            raise
        finally:
            self._to_write.put(_END)
            try:
                self._wait_for_writer()
            finally:
                self._drain(reader)
                self._tell()
        if self._fatal is not None:
            raise self._fatal
        return PipelineResult(
            successes=tuple(one for one in self._found if isinstance(one, ScanResult)),
            failures=tuple(one for one in self._found if isinstance(one, ScanFailure)),
            stopped=self._run.stop.is_set(),
        )

    def _wait_for_writer(self) -> None:
        """Wait until the writer has ended, also where a signal's exception comes meanwhile.

        Not with `join`: interrupted, Python 3.11 takes the thread for ended.
        """
        try:
            self._written.wait()
        except BaseException:
            self._abort.set()
            self._written.wait()
            raise

    def _ended(self) -> bool:
        return self._run.stop.is_set() or self._abort.is_set()

    def _too_late(self) -> bool:
        """Say whether what is being written has to be given up: a run that was stopped ends soon."""
        if not self._ended():
            return False
        self._stopped_at = self._stopped_at or time.monotonic()
        return self._abort.is_set() or time.monotonic() - self._stopped_at > 4.0

    def _tell(self) -> None:
        while True:
            try:
                one = self._outcomes.get_nowait()
            except queue.Empty:
                return
            self._found.append(one)
            self._told(one)

    def _drain(self, reader: threading.Thread) -> None:
        """Have the reader end, whatever it waits for."""
        while reader.is_alive():
            if self._fatal is not None or self._ended():
                with contextlib.suppress(queue.Empty):
                    self._read_ahead.get_nowait()
            reader.join(_TICK_S)

    # ------------------------------------------------------------ reading

    def _read_all(self) -> None:
        try:
            for scan in self._todo:
                if self._ended():
                    break
                self._read_scan(scan)
        finally:
            self._pass_on(_END)

    def _read_scan(self, scan: int) -> None:
        begun, work, run = time.monotonic(), None, self._run
        try:
            work = run.begin(scan)
            blocks = run.blocks(scan)
            for pixels in blocks:
                if not self._read_block(work, pixels, last=pixels is blocks[-1]) or work.failed:
                    return
        except ReadingStopped:
            return
        except Exception as error:  # of one scan; the others go on
            tried: tuple[int, ...] = getattr(error, "calibrations", ()) if work is None else work.tried
            self._pass_on(_Failed(scan, getattr(error, "stage", "load"), error, begun, tried, work))

    # What a function was about it forgets when it returns: the name of a piece of memory, kept while the next one is
    # waited for, would keep the memory.

    def _read_block(self, work: ScanWork, pixels: slice, *, last: bool) -> bool:
        """Read some pixels, when there is memory for them, and pass them on. False: the run ends."""
        run = self._run
        dumps, _, channels, _ = run.store.shape(work.scan)
        memory = self._memory.take(dumps * (pixels.stop - pixels.start) * channels)
        if memory is None:
            return False
        try:
            with span(work.timings, "load"):
                raw = run.read(work, pixels, memory, self._ended)
                if last:
                    run.require_unchanged(work.scan)
        except BaseException:
            self._memory.dropped(memory)
            raise
        if self._pass_on(_Block(work, pixels, raw, memory, last)):
            return True
        self._memory.dropped(memory)
        return False

    def _pass_on(self, item: Any) -> bool:
        while True:
            try:
                self._read_ahead.put(item, timeout=_TICK_S)
                return True
            except queue.Full:
                if self._ended():
                    return False

    # ------------------------------------------------------------ calibrating

    def _calibrate_all(self) -> None:
        while not self._ended() and self._calibrate_next():
            self._tell()

    def _calibrate_next(self) -> bool:
        """Calibrate what has been read, if something has been. False: that was all."""
        try:
            item = self._read_ahead.get(timeout=_TICK_S)
        except queue.Empty:
            return True
        if isinstance(item, _Failed):
            self._fail(item.scan, item.error, item.begun, item.tried, item.work)
        elif isinstance(item, _Block) and item.work.failed:
            self._memory.dropped(item.memory)
        elif isinstance(item, _Block):
            self._calibrate(item)
        return item is not _END

    def _calibrate(self, block: _Block) -> None:
        work = block.work
        try:
            output = self._result_of(block)
        except Exception as error:  # of one scan; the others go on
            self._memory.dropped(block.memory)
            self._fail(work.scan, error, work.begun, work.tried, work)
            return
        except BaseException:
            self._memory.dropped(block.memory)
            raise
        if self._memory.hand_over():
            self._to_write.put(output)
        else:
            self._memory.dropped(block.memory)

    def _result_of(self, block: _Block) -> _Output:
        run, work, raw, pixels = self._run, block.work, block.raw, block.pixels
        options, engine = run.options, run.config.engine
        zero = None if work.load.zero is None else work.load.zero[pixels]
        with span(work.timings, "prepare"):
            whole = pixels == slice(0, work.head.lon_off_deg.shape[1])
            prepared = MODES[raw.info.obs_type](raw, options=options, zero=zero, whole=whole, engine=engine)
        if work.air is None or work.model is None:
            with span(work.timings, "atmosphere"):
                work.model = run.model_of(work)
                sky = work.sky or work.load.sky
                work.air = determine_atmosphere_full(raw, work.load, work.model, prepared, sky=sky, options=options)
        with span(work.timings, "calibrate"):
            into = raw.counts if raw.counts.dtype == np.float32 else None
            result = calibrate_full(
                raw, prepared, work.load, work.air, work.model, options=options, pixels=pixels, out=into, engine=engine
            )
            work.usable |= bool(np.any(result.weight > 0))
            if block.last and not work.usable:
                if _mostly_saturated(result):
                    raise SaturationError(
                        f"scan {work.scan}: most of its samples are saturated", fix="attenuate the receiver"
                    )
                raise CalibrationError(
                    f"scan {work.scan}: no sample of any pixel can be used", fix="look at its flags and references"
                )
        return _Output(block, prepared, result)

    def _fail(self, scan: int, error: Exception, begun: float, tried: tuple[int, ...], work: ScanWork | None) -> None:
        if work is not None:
            with self._failing:  # blocks of a scan may fail in two threads; the first one says why
                if work.failed:
                    return
                work.failed = True
            self._to_write.put(work)
        failure = _failure_of(scan, error, begun, tried)
        self._run.error = _without_frames(error, failure.message)
        _log.error("scan %d failed (%s, %s): %s", scan, failure.error, failure.stage, failure.message)
        self._outcomes.put(failure)

    # ------------------------------------------------------------ writing

    def _write_all(self) -> None:
        open_: dict[int, ScanWork] = {}
        try:
            while self._write_next(open_):
                pass
            for work in open_.values():
                _discard(work)
        finally:
            self._written.set()

    def _write_next(self, open_: dict[int, ScanWork]) -> bool:
        """Write what has been calibrated, when something has been. False: that was all."""
        item = self._to_write.get()
        if isinstance(item, ScanWork):
            _discard(open_.pop(item.scan, None))
        elif isinstance(item, _Output):
            self._write_block(item, open_)
        return item is not _END

    def _write_block(self, item: _Output, open_: dict[int, ScanWork]) -> None:
        work = item.block.work
        try:
            if not work.failed:
                open_[work.scan] = work
                if not self._write(item):
                    work.failed = True
        except StorageError as error:
            # Every other scan would fail in the same way: the run ends, and can be gone on with.
            work.failed, self._fatal = True, error
            self._abort.set()
        except Exception as error:  # of one scan; the others go on
            self._fail(work.scan, error, work.begun, work.tried, work)
        finally:
            self._memory.written(item.block.memory)
            if item.block.last or work.failed:
                _discard(open_.pop(work.scan, None))

    def _write(self, output: _Output) -> bool:
        """Write a block, and with the last one all else. False: there was no time left."""
        block, result, prepared = output.block, output.result, output.prepared
        work, store = block.work, self._run.output
        with span(work.timings, "write"):
            if work.staged is None:
                work.staged = begin_result(store, work, output.prepared, self._run.options)
            staged, pixels = work.staged, block.pixels
            if not staged.put_ta_star(result.ta_star, pixels=pixels, stop=self._too_late):
                return False
            if result.baseline_model is not None:
                staged.put("baseline_model", result.baseline_model, pixels=pixels, stop=self._too_late)
            work.weights.append(result.weight)
            work.t_sys.append(result.t_sys.astype(np.float32))
            work.scatter.append(result.scatter)
            if not block.last:
                return True
            staged.put("weight", np.concatenate(work.weights, axis=1))
            staged.put("tsys", np.concatenate(work.t_sys))
            _require_unsaturated(work, prepared)
        if self._too_late():
            return False
        said = attributes_of(work, prepared, self._run.options, self._run.atmosphere)
        said["config_hash"] = self._run.config_hash
        with span({}, "write"):
            path = staged.finish(said)
        self._outcomes.put(result_of(work, path, said))
        return True


def _mostly_saturated(result: CalibrationResult) -> bool:
    return bool(np.mean((result.flag & Flag.SATURATED) != 0) > 0.5)


def _require_unsaturated(work: ScanWork, prepared: PreparedData) -> None:
    assert work.staged is not None
    samples = prepared.on.size * work.head.lon_off_deg.shape[1] * work.head.freq_hz.size
    if 2 * work.staged.saturated > samples:
        error = SaturationError(
            f"scan {work.scan}: {work.staged.saturated / samples:.0%} of its samples are saturated",
            fix="attenuate the receiver",
        )
        error.stage = "calibrate"  # type: ignore[attr-defined]
        raise error


def _failure_of(scan: int, error: Exception, begun: float, tried: tuple[int, ...]) -> ScanFailure:
    stage = getattr(error, "stage", "load")
    message = error.what if isinstance(error, NightbeamError) else f"{type(error).__name__}: {error}"
    if isinstance(error, StoreReadError):
        kind = "read"
    elif isinstance(error, CalibrationError):
        kind = "calibration"
    elif stage == "write":
        kind = "write"
    else:
        kind = "internal"
        if not isinstance(error, NightbeamError):
            message += "\n" + "".join(traceback.format_exception(error))
    fix = f"; {error.fix}" if isinstance(error, NightbeamError) and error.fix else ""
    return ScanFailure(
        scan, type(error).__name__, kind, stage, message + fix, getattr(error, "pixel", None), tried,  # type: ignore[arg-type]
        round(time.monotonic() - begun, 3),
    )  # fmt: skip


def _without_frames(error: Exception, message: str) -> Exception:
    """Have an error forget the functions it came through, which would keep their arrays in memory."""
    if not isinstance(error, NightbeamError):
        error.add_note(message)
    one: BaseException | None = error
    while one is not None:
        one = one.with_traceback(None).__cause__ or one.__context__
    return error


def _discard(work: ScanWork | None) -> None:
    if work is not None and work.staged is not None:
        work.staged.discard()
        work.staged = None
