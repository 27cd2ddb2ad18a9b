"""Three threads and two scans: what is in memory, what overlaps, what ends them, what is tried again."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nightbeam.core.errors import BusyError, StorageError
from nightbeam.scans import files, pipeline, results
from nightbeam.scans.files import RawStore
from nightbeam.scans.model import CalibrationOptions, PipelineResult, RawScan, ScanResult
from nightbeam.scans.results import ResultStore, StagedScan
from nightbeam.scans.run import MODES
from nightbeam.scans.stages import prepare_otf
from nightbeam.scans.worker import calibrate_store

pytestmark = pytest.mark.slow

#: Long enough for any machine; only a test that hangs waits for it.
PATIENCE_S = 60.0

Hook = Callable[[int], None]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("scans-")]
    assert left == []


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Hook], None]:
    """Have something happen when a scan is calibrated or written (its spectra, then its end)."""

    def at(what: str, do: Hook) -> None:
        owner, name, number = {
            "calibrate": (pipeline, "calibrate_full", lambda given: given[0].info.scan),
            "write": (StagedScan, "put_ta_star", lambda given: given[0]._scan),
            "finish": (StagedScan, "finish", lambda given: given[0]._scan),
        }[what]
        original = getattr(owner, name)

        def hooked(*given: Any, **more: Any) -> Any:
            do(number(given))
            return original(*given, **more)

        monkeypatch.setattr(owner, name, hooked)

    return at


def reader(store: Path, do: Hook) -> Callable[..., RawScan]:
    """Read as usual, after something else."""
    opened = RawStore(store)

    def read(scan: int, **more: Any) -> RawScan:
        do(scan)
        return opened.read(scan, **more)

    return read


def twice(l0: Path) -> None:
    """Have a night of six scans, of three."""
    for scan in (1, 2, 3):
        other = l0 / "scans" / f"scan_{scan + 3:06d}"
        other.mkdir()
        for path in sorted((l0 / "scans" / f"scan_{scan:06d}").rglob("*")):
            target = other / path.relative_to(l0 / "scans" / f"scan_{scan:06d}")
            target.mkdir() if path.is_dir() else target.hardlink_to(path)


def numbers(result: PipelineResult) -> list[int]:
    return [one.scan for one in result.successes]


def eventually(is_so: Callable[[], bool]) -> None:
    """Wait for another thread to do its part."""
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def arrive(barrier: threading.Barrier) -> None:
    barrier.wait(PATIENCE_S)


# -- memory and overlap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [None, 3 * 4 * 13 * 3 * 128])
def test_no_more_than_two_scans_are_raw_while_a_third_is_written(l0, l1, config, hook, blocks):
    """The writer waits until the reader cannot go on; a third raw scan would show itself meanwhile."""
    twice(l0)
    begun, written, pieces, opened = [], [], [], RawStore(l0)

    def read(scan: int, **more: Any) -> RawScan:
        begun.append(scan)
        if not any(piece() is more["into"] for piece in pieces):
            pieces.append(weakref.ref(more["into"]))
        eventually(lambda: sum(piece() is not None for piece in pieces) <= 3)
        return opened.read(scan, **more)

    def write(scan: int) -> None:
        written.append(scan)
        # While this one is held back two others are read, and a third one has the time to be begun, if it may.
        eventually(lambda: len(begun) >= min(len(written) + 2, total))
        time.sleep(0.05)
        assert len(begun) == min(len(written) + 2, total)

    total = 6 if blocks is None else 10  # the four maps are longer, and go through in two
    hook("write", write)
    result = calibrate_store(l0, l1, replace(config, memory_budget_bytes=blocks, retries=0), read=read)
    assert numbers(result) == [1, 2, 3, 4, 5, 6]
    assert len(begun) == len(written) == total


def test_scans_that_fail_are_not_kept_in_memory_by_what_was_wrong_with_them(l0, l1, config, monkeypatch):
    twice(l0)
    kept, most = [], []

    def prepared(*given: Any, **more: Any) -> Any:
        found = prepare_otf(*given, **more)
        kept.append(weakref.ref(found.off_counts))
        return found

    for mode in ("otf", "tp"):
        monkeypatch.setitem(MODES, mode, prepared)
    # Nothing is left to find the water from: an error after the references have been made.
    options = CalibrationOptions(exclude_ghz=((0.0, 2000.0),))
    result = calibrate_store(
        l0, l1, replace(config, options=options),
        on_scan=lambda one: most.append(sum(array() is not None for array in kept)),
    )  # fmt: skip
    assert [one.error for one in result.failures] == ["AtmosphereFitError"] * 6
    assert len(most) == 6
    assert max(most) <= 1


def test_a_scan_is_read_one_calibrated_and_one_written_at_the_same_time(l0, l1, config, hook):
    twice(l0)
    meeting = threading.Barrier(3)

    def meet(at: int) -> Hook:
        return lambda scan: arrive(meeting) if scan == at else None

    hook("calibrate", meet(2))
    hook("write", meet(1))
    result = calibrate_store(l0, l1, config, read=reader(l0, meet(3)))
    assert numbers(result) == [1, 2, 3, 4, 5, 6]
    assert not meeting.broken


def test_every_read_overlaps_with_a_calibration_and_every_write_with_another(l0, l1, config, hook):
    """Each stage waits until the one before it has begun the next scan: one after another would wait for ever."""
    twice(l0)
    begun = {what: {scan: threading.Event() for scan in range(1, 8)} for what in ("read", "calibrate")}
    for what in begun:
        begun[what][7].set()

    def after(what: str, own: str | None) -> Hook:
        def wait(scan: int) -> None:
            if own:
                begun[own][scan].set()
            assert begun[what][scan + 1].wait(PATIENCE_S)

        return wait

    hook("calibrate", after("read", "calibrate"))
    hook("write", after("calibrate", None))
    result = calibrate_store(l0, l1, config, read=reader(l0, lambda scan: begun["read"][scan].set()))
    assert numbers(result) == [1, 2, 3, 4, 5, 6]


# -- ends -------------------------------------------------------------------------------------------------------------


class SpamError(Exception):
    """Something that nobody has foreseen."""


@pytest.mark.parametrize("what", ["calibrate", "write", "finish", "read"])
@pytest.mark.parametrize("kind", [SpamError, MemoryError])
def test_whatever_goes_wrong_in_a_thread_fails_its_scan_alone(l0, l1, config, hook, leftovers, what, kind):
    def fail(scan: int) -> None:
        if scan == 2:
            raise kind("spam")

    if what != "read":
        hook(what, fail)
    result = calibrate_store(
        l0, l1, replace(config, retries=0), read=reader(l0, fail if what == "read" else lambda _: None)
    )
    assert numbers(result) == [1, 3]
    (failure,) = result.failures
    stage = {"read": "load", "finish": "write"}.get(what, what)
    kinds = {"write": "write", "finish": "write"}
    assert (failure.scan, failure.error, failure.stage) == (2, kind.__name__, stage)
    assert failure.kind == kinds.get(what, "internal")
    assert leftovers(l1) == []
    assert ResultStore(l1).scans() == [1, 3]


@pytest.mark.parametrize("what", ["read", "calibrate", "write", "finish", "told"])
def test_who_stops_a_run_ends_it_soon_and_leaves_it_resumable(
    l0, l1, config, hook, leftovers, contents, what, tmp_path
):
    stop = threading.Event()
    if what in ("calibrate", "write", "finish"):
        hook(what, lambda scan: stop.set())
    result = calibrate_store(
        l0, l1, config, stop=stop,
        read=reader(l0, lambda scan: stop.set() if what == "read" else None),
        on_scan=lambda one: stop.set() if what == "told" else None,
    )  # fmt: skip
    assert result.stopped
    assert len(result.successes) < 3
    assert result.failures == ()
    assert leftovers(l1) == []
    assert ResultStore(l1).scans() == numbers(result)
    again = calibrate_store(l0, l1, config)
    assert (again.skipped, numbers(result) + numbers(again)) == (tuple(numbers(result)), [1, 2, 3])
    calibrate_store(l0, tmp_path / "other.zarr", config)
    assert contents(l1) == contents(tmp_path / "other.zarr")


@pytest.mark.parametrize("during", ["loads", "scan"])
def test_who_stops_a_run_does_not_wait_for_all_the_counts_that_are_being_read(
    l0, l1, config, contents, monkeypatch, tmp_path, group_of, during
):
    counts = group_of(l0, 1)["counts"][...]
    loads = group_of(l0, 100_001)["counts"][...]
    for number, values in ((1, counts), (100_001, loads)):
        group_of(l0, number).create_array("counts", data=values, chunks=(1, 4, 128), overwrite=True)
    monkeypatch.setattr(files, "_PART_BYTES", 1)
    original, stop, parts = files._parts, threading.Event(), []

    def stopping(begin: int, end: int, step: int) -> Iterator[slice]:
        for part in original(begin, end, step):
            parts.append(part)
            yield part
            if end - begin == len(counts if during == "scan" else loads):
                stop.set()

    monkeypatch.setattr(files, "_parts", stopping)
    result = calibrate_store(l0, l1, replace(config, scans=(1,)), stop=stop)
    assert (result.stopped, result.successes, result.failures) == (True, (), ())
    assert parts[-2:] == [slice(0, 1), slice(1, 2)], "the second one is not read any more"
    monkeypatch.undo()
    calibrate_store(l0, l1, config)
    calibrate_store(l0, tmp_path / "other.zarr", config)
    assert contents(l1) == contents(tmp_path / "other.zarr")


def test_who_stops_a_run_while_it_looks_what_is_to_do_does_not_wait_for_all_scans(l0, l1, config, monkeypatch):
    stop, original, asked = threading.Event(), RawStore.info, []

    def info(self: RawStore, scan: int) -> Any:
        asked.append(scan)
        stop.set()
        return original(self, scan)

    monkeypatch.setattr(RawStore, "info", info)
    result = calibrate_store(l0, l1, config, stop=stop)
    assert (asked, result.stopped, result.successes, result.failures) == ([1], True, (), ())


def test_a_run_that_is_stopped_before_it_begins_does_nothing(l0, l1, config):
    stop = threading.Event()
    stop.set()
    result = calibrate_store(l0, l1, config, stop=stop)
    assert (result.stopped, result.successes, result.failures) == (True, (), ())


def test_who_stops_a_run_while_it_waits_to_try_again_is_told_the_failures(l0, l1, config, chunk_of):
    chunk_of(l0, 2).unlink()
    stop, told = threading.Event(), []

    def on_scan(one: Any) -> None:
        told.append(one)
        if one.scan == 3:  # the last of the first attempt
            stop.set()

    result = calibrate_store(l0, l1, replace(config, retry_wait_s=PATIENCE_S), stop=stop, on_scan=on_scan)
    assert result.stopped
    assert [one.scan for one in result.failures] == [2]
    assert sorted(one.scan for one in told) == [1, 2, 3]


def test_a_signal_while_the_last_scan_is_written_ends_it_before_anything_else(l0, l1, config, hook, leftovers):
    ended: list[bool] = []
    came = threading.Event()

    def interrupt(scan: int) -> None:
        if scan == 3 and not ended:
            time.sleep(0.3)  # the main thread has nothing to do any more but wait
            os.kill(os.getpid(), signal.SIGINT)
            assert came.wait(60)
            time.sleep(0.3)
            ended.append(True)

    def answer(*_: Any) -> None:
        came.set()
        raise KeyboardInterrupt

    hook("write", interrupt)
    before = signal.signal(signal.SIGINT, answer)
    try:
        with pytest.raises(KeyboardInterrupt):
            calibrate_store(l0, l1, config)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [True], "the writer was waited for"
    assert leftovers(l1) == []
    assert ResultStore(l1).scans() == [1, 2]
    assert calibrate_store(l0, l1, config).exit_code == 0


@pytest.mark.parametrize(
    ("where", "kind"),
    # An ordinary error of "calibrate" is a failure of its scan, and interrupts nothing.
    [("calibrate", KeyboardInterrupt), ("calibrate", SystemExit)]
    + [(where, kind) for where in ("told", "begin") for kind in (KeyboardInterrupt, SystemExit, SpamError)],
)
def test_what_interrupts_the_main_thread_ends_the_others(l0, l1, config, hook, leftovers, where, kind):
    come = iter([kind("spam")])

    def interrupt(*_: Any) -> None:
        for error in come:
            raise error

    if where == "calibrate":
        hook("calibrate", interrupt)
    with pytest.raises(kind):
        calibrate_store(
            l0, l1, config,
            on_scan=interrupt if where == "told" else None,
            on_begin=interrupt if where == "begin" else None,
        )  # fmt: skip
    assert leftovers(l1) == []
    assert calibrate_store(l0, l1, config).exit_code == 0


@pytest.mark.parametrize("blocks", [None, 3 * 4 * 13 * 1 * 128])
def test_an_interrupt_while_the_writer_is_at_work_ends_it(l0, l1, config, hook, leftovers, blocks):
    writing = threading.Event()
    hook("write", lambda scan: writing.set())

    def interrupt(scan: int) -> None:
        if scan == 2:
            assert writing.wait(PATIENCE_S)
            raise KeyboardInterrupt

    hook("calibrate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibrate_store(l0, l1, replace(config, memory_budget_bytes=blocks))
    assert leftovers(l1) == []


def test_a_scan_that_fails_in_two_threads_fails_once(l0, l1, config, monkeypatch):
    """The writer fails with its first block while the second one is calibrated, which then fails as well."""
    written = threading.Event()
    original = pipeline.Pipeline._fail

    def fail(self: Any, *given: Any) -> None:
        original(self, *given)
        written.set()

    def put(*given: Any, **more: Any) -> bool:
        raise SpamError("writer")

    def calibrated(*given: Any, **more: Any) -> Any:
        if more["pixels"].start > 0:
            assert written.wait(PATIENCE_S)
            raise SpamError("main")
        return calibrate(*given, **more)

    calibrate = pipeline.calibrate_full
    monkeypatch.setattr(pipeline.Pipeline, "_fail", fail)
    monkeypatch.setattr(StagedScan, "put_ta_star", put)
    monkeypatch.setattr(pipeline, "calibrate_full", calibrated)
    result = calibrate_store(l0, l1, replace(config, scans=(1,), retries=0, memory_budget_bytes=3 * 4 * 13 * 2 * 128))
    assert [one.message.splitlines()[0] for one in result.failures] == ["SpamError: writer"]


# -- again ------------------------------------------------------------------------------------------------------------


def test_what_could_not_be_read_or_was_a_mistake_is_tried_again_after_all_others_and_nothing_else(
    l0, l1, config, group_of, hook
):
    group_of(l0, 3).attrs["t_hot_k"] = "warm"
    reads, made = [], []

    def read(scan: int) -> None:
        reads.append(scan)
        if scan == 1 and reads.count(1) < 3:
            raise OSError(errno.EIO, "the cable")

    def calibrate(scan: int) -> None:
        made.append(scan)
        if scan == 2 and made.count(2) < 2:
            raise SpamError

    hook("calibrate", calibrate)
    result = calibrate_store(l0, l1, config, read=reader(l0, read))
    assert numbers(result) == [1, 2]
    assert [(one.scan, one.error) for one in result.failures] == [(3, "ScanSchemaError")]
    assert (reads, made) == ([1, 2, 1, 2, 1], [2, 2, 1])


def test_a_scan_that_changes_while_it_is_read_is_read_again(l0, l1, config, chunk_of, tmp_path, contents):
    spoilt = []

    def change(scan: int) -> None:
        if scan == 2 and not spoilt:
            spoilt.append(scan)
            data = chunk_of(l0, 2).read_bytes()
            chunk_of(l0, 2).write_bytes(data)  # the same, at another time

    failures = []
    result = calibrate_store(l0, l1, config, read=reader(l0, change), on_scan=failures.append)
    assert numbers(result) == [1, 2, 3]
    assert all(isinstance(one, ScanResult) for one in failures)
    assert [one.scan for one in failures] == [1, 3, 2]
    calibrate_store(l0, tmp_path / "other.zarr", config)
    assert contents(l1) == contents(tmp_path / "other.zarr")
    spoilt.clear()
    (failure,) = calibrate_store(l0, l1, replace(config, retries=0, force=True), read=reader(l0, change)).failures
    assert (failure.error, failure.kind) == ("StoreReadError", "read")
    assert "scan 2 has changed while it was read" in failure.message


def test_loads_that_change_while_they_are_read_are_read_again(l0, l1, config, monkeypatch, chunk_of):
    original, changed = RawStore.read, []

    def read(self: RawStore, scan: int, **more: Any) -> RawScan:
        found = original(self, scan, **more)
        if scan > 3 and more.get("counts", True) and not changed:
            changed.append(scan)
            chunk_of(l0, scan).write_bytes(chunk_of(l0, scan).read_bytes())
        return found

    monkeypatch.setattr(RawStore, "read", read)
    result = calibrate_store(l0, l1, replace(config, retries=1))
    assert numbers(result) == [1, 2, 3]
    assert changed
    assert calibrate_store(l0, l1, config).skipped == (1, 2, 3)


# -- disks ------------------------------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow larger: the kernel's own way to say that there is no space."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_disk_that_is_full_ends_the_run_and_the_next_one_goes_on(l0, l1, config, leftovers, contents, tmp_path):
    assert numbers(calibrate_store(l0, l1, replace(config, scans=(2,)))) == [2]
    before = contents(l1)
    chunk_bytes = 10 * 4 * 128 * 4  # of a map's temperatures; a checksum comes on top
    with largest_file(chunk_bytes), pytest.raises(StorageError, match="no space left"):
        calibrate_store(l0, l1, config)
    assert contents(l1) == before
    assert leftovers(l1) == []
    assert numbers(calibrate_store(l0, l1, config)) == [1, 3]
    calibrate_store(l0, tmp_path / "other.zarr", config)
    assert contents(l1) == contents(tmp_path / "other.zarr")


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "cannot write")])
@pytest.mark.parametrize("at", [1, 20, 47, 60])
def test_a_write_that_fails_deep_inside_ends_the_run_whichever_it_is(
    l0, l1, config, leftovers, monkeypatch, number, said, at
):
    calibrate_store(l0, l1, replace(config, scans=(1,)))
    original, calls, staging = Path.open, [], ResultStore(l1).staging

    def open_(path: Path, mode: str = "r", *given: Any, **more: Any) -> Any:
        """Of what we write as of what zarr writes."""
        if mode == "wb" and staging in path.parents:
            calls.append(path)
            if len(calls) == at:
                raise OSError(number, "of the disk", str(path))
        return original(path, mode, *given, **more)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(StorageError, match=said):
        calibrate_store(l0, l1, replace(config, force=True))
    monkeypatch.undo()
    assert leftovers(l1) == []
    assert 1 in ResultStore(l1).scans(), "what was there stays until it is replaced"
    assert calibrate_store(l0, l1, config).exit_code == 0
    assert ResultStore(l1).scans() == [1, 2, 3]


# -- two at once ------------------------------------------------------------------------------------------------------


def test_a_second_run_on_the_same_results_is_turned_away_and_changes_nothing(l0, l1, config, contents, hook):
    inside, go_on = threading.Event(), threading.Event()
    found: list[PipelineResult] = []

    def wait(scan: int) -> None:
        inside.set()
        assert go_on.wait(PATIENCE_S)

    hook("write", wait)
    first = threading.Thread(target=lambda: found.append(calibrate_store(l0, l1, config)))
    first.start()
    try:
        assert inside.wait(PATIENCE_S)
        with pytest.raises(BusyError, match="is held by process"):
            calibrate_store(l0, l1, config)
    finally:
        go_on.set()
        first.join(PATIENCE_S)
    assert numbers(found[0]) == [1, 2, 3]
    assert len(contents(l1)) == 3


def test_of_two_that_make_the_same_store_at_once_the_second_takes_it_as_it_is(l1, monkeypatch):
    ResultStore(l1)
    monkeypatch.setattr(results, "_is_empty", lambda path: True)  # as it was when the second one looked
    assert ResultStore(l1).scans() == []


def test_two_runs_on_one_night_do_not_meet_in_two_stores(l0, l1, config, contents, tmp_path):
    places = [l1, tmp_path / "other.zarr"]
    found: list[PipelineResult] = []
    threads = [threading.Thread(target=lambda at=at: found.append(calibrate_store(l0, at, config))) for at in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [numbers(one) for one in found] == [[1, 2, 3]] * 2
    assert contents(places[0]) == contents(places[1])
