"""The service's loop by hand: what it looks at, what it calibrates, what it tries again, and what it says."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nightbeam.core.errors import BusyError, ConfigError, InputError, MissingError, StorageError, UsageError
from nightbeam.core.files import part_path
from nightbeam.scans import watch
from nightbeam.scans.files import RawStore, create_raw_store, scan_name, write_raw_scan
from nightbeam.scans.model import CalibrationOptions, PipelineConfig, PipelineResult, ScanFailure, ScanResult
from nightbeam.scans.results import ResultStore
from nightbeam.scans.service import ScanService
from nightbeam.scans.worker import calibrate_store
from nightbeam.testing.dish import Line
from nightbeam.testing.night import Fault, NightPlan, simulate_night

pytestmark = pytest.mark.slow

CONFIG = PipelineConfig(atmosphere="closed-form", engine="numpy")
BAD = 3
PLAN = NightPlan(
    scans=4, pixels=2, channels=64, rows=1, dumps=4, width_hz=10e6, lines=(Line(5.0, 809.3e9, 100e6),),
    faults=(Fault("truncated-chunk", BAD),), calibration_every=2,
)  # fmt: skip


class Clock:
    """Time that passes when somebody says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Canned:
    """Calibrates nothing, and says what it was told to say of each scan, or of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.fails: dict[int, dict[str, Any]] = {}
        self.raises: Exception | None = None

    def __call__(
        self, l0: Path, l1: Path, config: PipelineConfig, *, stop: Any, on_scan: Any, **_: Any
    ) -> PipelineResult:
        assert config.scans is not None
        assert not config.force
        self.calls.append(config.scans)
        if self.raises is not None:
            raise self.raises
        for scan in config.scans:
            if scan in self.fails:
                usual = {"error": "GainError", "kind": "calibration", "stage": "resolve", "message": "swapped"}
                on_scan(ScanFailure(scan, **{**usual, **self.fails[scan]}))
            else:
                on_scan(ScanResult(scan, l1, (100,), 0.6, "fit", 1.0, {"load": 0.5, "write": 0.25}, {}))
        return PipelineResult()


class Place:
    """An empty location, a service that watches it, and a store in it."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.l0, self.l1 = directory / "l0", directory / "l1"
        self.l0.mkdir()
        self.clock, self.canned = Clock(), Canned()
        options = {"calibrate": self.canned, "clock": self.clock, "interval_s": 5.0, "settle_s": 60.0, **options}
        self.service = ScanService(self.l0, self.l1, CONFIG, **options)

    def store(self, name: str = "night.zarr") -> Path:
        path = self.l0 / name
        create_raw_store(path, telescope="FYST", altitude_m=5612.0)
        return path

    def scan(self, number: int, store: str = "night.zarr", **said: Any) -> Path:
        place = self.l0 / store / "scans" / scan_name(number)
        place.mkdir(parents=True, exist_ok=True)
        attributes = {"obs_type": "otf", "complete": True, **said}
        attributes = {name: value for name, value in attributes.items() if value is not None}
        part = place / "part"
        part.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
        part.replace(place / "zarr.json")
        return place

    def poll(self, seconds: float = 0.0) -> list[tuple[int, ...]]:
        """Let time pass, poll until nothing is to do, and return what was calibrated."""
        self.clock.now_s += seconds
        before = len(self.canned.calls)
        while self.service.poll():
            assert len(self.canned.calls) < before + 20, "it works for nothing"
        return self.canned.calls[before:]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.store()
    return place


def test_a_scan_is_calibrated_once_and_only_when_it_is_complete(place):
    place.scan(100, obs_type="calibration")
    place.scan(1)
    place.scan(2, complete=False)
    assert place.poll() == [(1,)]
    assert place.poll(5) == []
    assert (place.service.counters().done, place.service.counters().writing) == (1, 1)
    place.scan(2)
    assert place.poll(5) == [(2,)]
    assert place.poll(5) == []
    assert place.service.counters().seconds == {"load": 0.5, "write": 0.25}


def test_a_scan_that_does_not_say_so_must_not_have_changed_for_a_while(place):
    data = place.scan(1, complete=None) / "counts"
    data.write_bytes(b"1")
    assert place.poll() == place.poll(30) == []
    data.write_bytes(b"12")
    assert place.poll(20) == place.poll(20) == place.poll(20) == []
    assert place.poll(20) == [(1,)]


def test_a_scan_that_says_nothing_at_all_is_tried_when_it_has_settled(place):
    place.scan(1)
    (place.l0 / "night.zarr" / "scans" / scan_name(1) / "zarr.json").write_text('{"zarr_fo')
    assert place.poll() == []
    assert place.poll(60) == [(1,)]


def test_what_turns_out_to_be_loads_when_its_metadata_can_be_read_is_no_source_any_more(place):
    for number in (1, 100):
        metadata = place.scan(number) / "zarr.json"
        metadata.write_text('{"zarr_fo')
        place.canned.fails[number] = {"error": "ScanSchemaError", "stage": "load"}
    assert place.poll() == []
    assert place.poll(60) == [(1, 100)]
    assert place.poll(60) == []
    place.scan(100, obs_type="calibration")
    assert place.poll(5) == []
    assert [one.scan for _, one in place.service.failures()] == [1]
    place.scan(1)
    assert place.poll(5) == [(1,)]


def test_new_scans_do_not_have_one_that_cannot_be_read_tried_again(place):
    place.scan(1)
    (place.l0 / "night.zarr" / "scans" / scan_name(1) / "zarr.json").write_text('{"zarr_fo')
    place.canned.fails[1] = {"error": "ScanSchemaError", "stage": "load"}
    assert place.poll() == []
    assert place.poll(60) == [(1,)]
    place.scan(2)
    assert place.poll(5) == [(2,)]
    assert place.poll(60) == place.poll(60) == []


def test_a_failed_scan_that_has_become_loads_is_forgotten(place):
    place.scan(1)
    place.canned.fails[1] = {}
    assert place.poll() == [(1,)]
    place.scan(1, obs_type="calibration")
    assert place.poll(5) == []
    assert place.service.counters().failed == 0


@pytest.mark.parametrize("error", [UsageError("scan 1 is a calibration"), MissingError("there is no scan 1")])
def test_scans_that_are_not_what_they_were_taken_for_are_looked_at_again_soon(place, error):
    place.scan(1)
    place.scan(2)
    place.canned.raises = error
    assert place.poll() == [(1, 2)]
    assert place.poll(5) == [(1, 2)]
    metadata = place.l0 / "night.zarr" / "scans" / scan_name(1) / "zarr.json"
    metadata.write_text(metadata.read_text().replace("otf", "calibration"))
    assert place.poll(5) == [(1, 2)]
    place.canned.raises = None
    assert place.poll(5) == [(2,)]
    assert place.service.counters().problems == ()


def test_a_scan_that_is_written_anew_is_calibrated_anew(place):
    old = place.scan(1)
    place.poll()
    shutil.rmtree(old)
    place.scan(1, complete=False)
    assert place.poll(5) == []
    place.scan(1, source="OMC1")
    assert place.poll(5) == [(1,)]


def test_the_store_that_was_written_to_last_has_the_first_turn(place):
    place.scan(1)
    place.store("later.zarr")
    place.scan(7, "later.zarr")
    for name, at in (("night.zarr", 1_000), ("later.zarr", 2_000)):
        os.utime(place.l0 / name / "scans", (at, at))
    assert place.poll() == [(7,), (1,)]


def test_one_store_can_be_watched_alone_and_other_files_do_not_matter(tmp_path):
    place = Place(tmp_path)
    place.store("one.zarr")
    place.store("other.zarr")
    place.scan(1, "one.zarr")
    place.scan(2, "other.zarr")
    (place.l0 / "readme.zarr").write_text("no store")
    one = ScanService(place.l0 / "one.zarr", place.l1, CONFIG, calibrate=place.canned, clock=place.clock)
    assert one.poll()
    assert not one.poll()
    assert place.canned.calls == [(1,)]


def test_results_among_raw_scans_are_refused(tmp_path):
    (tmp_path / "l0").mkdir()
    with pytest.raises(ConfigError, match="where raw scans are"):
        ScanService(tmp_path / "l0", tmp_path / "l0")
    with pytest.raises(ConfigError, match="where raw scans are"):
        ScanService(tmp_path / "l0" / "night.zarr", tmp_path / "l0")
    with pytest.raises(ConfigError, match="where raw scans are"):
        ScanService(tmp_path / "l0", tmp_path / "l0" / "night.zarr" / "l1")


def test_what_is_wrong_with_the_data_is_tried_again_only_when_the_scan_or_its_loads_change(place):
    loads = place.scan(100, obs_type="calibration")
    bad = place.scan(1)
    place.canned.fails[1] = {"error": "MissingOffError", "stage": "prepare", "calibration_scans": (100,)}
    assert place.poll() == [(1,)]
    assert place.poll(10_000) == place.poll(10_000) == []
    assert place.service.counters().failed == 1
    place.scan(101, obs_type="calibration")
    assert place.poll(5) == [], "other loads do not bring a reference"
    (loads / "counts").write_bytes(b"mended")
    assert place.poll(5) == [(1,)]
    del place.canned.fails[1]
    assert place.poll(10_000) == []
    (bad / "counts").write_bytes(b"mended")
    assert place.poll(5) == [(1,)]
    assert (place.service.counters().failed, place.service.counters().done) == (0, 1)
    assert place.poll(10_000) == []


@pytest.mark.parametrize("said", [{"error": "NoCalibrationError"}, {"error": "GainError", "calibration_scans": (100,)}])
def test_what_lacks_loads_is_tried_again_when_there_are_new_ones(place, said):
    place.scan(100, obs_type="calibration")
    place.scan(1)
    place.canned.fails[1] = said
    assert place.poll() == [(1,)]
    place.scan(101, obs_type="calibration", complete=False)
    assert place.poll(5) == [], "they are being observed"
    place.scan(101, obs_type="calibration")
    assert place.poll(5) == [(1,)]
    assert place.poll(5) == []


@pytest.mark.parametrize("kind", ["read", "internal"])
def test_what_may_heal_is_tried_again_after_longer_and_longer_waits_and_not_for_ever(place, kind):
    place.scan(1)
    place.canned.fails[1] = {"error": "StoreReadError", "kind": kind, "stage": "load"}
    assert place.poll() == [(1,)]
    tried_at = [place.clock.now_s]
    for _ in range(3_000):
        if place.poll(1.0):
            tried_at.append(place.clock.now_s)
    waits = [b - a for a, b in itertools.pairwise(tried_at)]
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 512]
    (place.l0 / "night.zarr" / "scans" / scan_name(1) / "counts").write_bytes(b"copied again")
    assert place.poll(1.0) == [(1,)]
    assert place.poll(2.0) == [(1,)], "and from the beginning"


def test_after_a_restart_a_failed_scan_is_tried_once(place):
    place.scan(1)
    place.canned.fails[1] = {"stage": "prepare"}
    place.poll()
    again = ScanService(place.l0, place.l1, CONFIG, calibrate=place.canned, clock=place.clock)
    assert again.poll()
    assert not again.poll()
    assert place.canned.calls == [(1,), (1,)]


def test_new_scans_have_their_turn_before_failed_ones(place):
    place.scan(1)
    place.canned.fails[1] = {"kind": "read"}
    place.poll()
    place.scan(2)
    assert place.poll(2) == [(2, 1)]


def test_many_failed_scans_are_looked_at_in_turn(place):
    for number in range(1, 51):
        place.scan(number)
        place.canned.fails[number] = {"stage": "prepare"}
    assert [len(scans) for scans in place.poll()] == [50]
    (place.l0 / "night.zarr" / "scans" / scan_name(50) / "counts").write_bytes(b"mended")
    assert [place.poll(5) for _ in range(3)].count([(50,)]) == 1


def test_who_is_at_the_same_results_is_waited_for_and_told_of_once(place, caplog):
    place.scan(1)
    place.canned.raises = BusyError("the results are held by process 1")
    assert place.poll() == [(1,)]
    assert place.poll(1) == []
    assert place.poll(5) == place.poll(5) == [(1,)]
    assert caplog.text.count("held by process 1") == 1
    assert "held by process 1" in place.service.counters().problems[0]
    place.canned.raises = None
    assert place.poll(5) == [(1,)]
    assert place.service.counters().problems == ()


def test_a_full_disk_is_told_of_once_and_nothing_is_lost(place, caplog):
    place.scan(1)
    place.store("other.zarr")
    place.scan(2, "other.zarr")
    place.canned.raises = StorageError("no space left")
    assert len(place.poll()) == 1
    waits = [n for n in range(1, 2000) if place.poll(1.0)]
    assert [b - a for a, b in zip([0, *waits], waits, strict=False)][:8] == [5, 10, 20, 40, 80, 160, 320, 600]
    assert caplog.text.count("no space left") == 1
    place.canned.raises = None
    assert sorted(place.poll(600)) == [(1,), (2,)]
    assert place.service.counters().backlog == 0


@pytest.mark.parametrize("error", [StorageError("no space left"), RuntimeError("a mistake")])
def test_what_failed_in_a_run_that_could_not_write_it_down_has_another_turn(place, error):
    def calibrate(*arguments: Any, **options: Any) -> PipelineResult:
        result = place.canned(*arguments, **options)
        if len(place.canned.calls) == 1:
            raise error
        return result

    place.scan(1)
    place.scan(2)
    place.canned.fails[1] = {"stage": "prepare"}
    service = ScanService(place.l0, place.l1, CONFIG, calibrate=calibrate, clock=place.clock)
    assert service.poll()
    assert service.counters().failed == 1
    for _ in range(3):
        place.clock.now_s += 600.0
        service.poll()
    assert place.canned.calls == [(1, 2), (1,)]
    assert service.counters().failed == 1


def test_one_store_that_cannot_be_worked_on_does_not_stop_the_others(place, caplog):
    place.scan(1)

    def calibrate(l0: Path, *rest: Any, **options: Any) -> PipelineResult:
        if l0.name == "night.zarr":
            raise RuntimeError("a mistake")
        return place.canned(l0, *rest, **options)

    service = ScanService(place.l0, place.l1, CONFIG, calibrate=calibrate, clock=place.clock)
    place.store("other.zarr")
    place.scan(2, "other.zarr")
    for _ in range(4):
        service.poll()
    assert place.canned.calls == [(2,)]
    assert caplog.text.count("a mistake") == 1
    assert service.counters().backlog == 1


def test_a_store_that_is_none_is_told_of_once_and_looked_at_again_when_it_has_changed(place, caplog):
    odd = place.l0 / "odd.zarr"
    odd.mkdir()
    (odd / "zarr.json").write_text("{")
    for _ in range(3):
        place.poll(5)
    assert caplog.text.count("odd.zarr is no Zarr store") == 1
    assert place.service.counters().stores == 1
    shutil.rmtree(odd)
    place.store("odd.zarr")
    place.scan(1, "odd.zarr")
    assert place.poll(5) == [(1,)]
    assert place.service.counters().problems == ()


@pytest.mark.parametrize("root", ["null", "5", "[" * 100_000, '{"attributes": 3}'])
def test_a_store_whose_metadata_are_nonsense_does_not_stop_the_others(place, root):
    odd = place.l0 / "a-odd.zarr"
    odd.mkdir()
    (odd / "zarr.json").write_text(root)
    place.scan(1)
    assert place.poll() == [(1,)]
    (problem,) = place.service.counters().problems
    assert "a-odd.zarr" in problem


def test_scans_that_cannot_be_listed_do_not_stop_the_other_stores(place, caplog):
    place.store("a-odd.zarr")
    top = place.l0 / "a-odd.zarr" / "scans"
    shutil.rmtree(top, ignore_errors=True)
    top.write_text("a file")
    (place.l0 / "b-odd.zarr").symlink_to(place.l0 / "b-odd.zarr")
    place.scan(1)
    assert place.poll() == [(1,)]
    assert place.poll(5) == []
    assert caplog.text.count("cannot be listed") == 1
    assert len(place.service.counters().problems) == 2
    top.unlink()
    place.scan(2, "a-odd.zarr")
    assert place.poll(5) == [(2,)]
    assert len(place.service.counters().problems) == 1


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(5, "broken"), OSError(116, "stale")])
def test_while_scans_cannot_be_listed_what_is_known_is_kept(place, monkeypatch, error):
    place.scan(1)
    assert place.poll() == [(1,)]

    def fail(path: Any) -> list[str]:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(watch.os, "listdir", fail)
        assert place.poll(5) == []
        assert error.strerror in place.service.counters().problems[0]
    assert place.poll(5) == []
    assert place.service.counters().problems == ()


def test_scans_that_become_a_file_while_they_are_listed_are_a_problem_of_their_store(place, monkeypatch):
    place.scan(1)
    assert place.poll() == [(1,)]
    place.scan(2)

    def fail(_store: RawStore) -> list[int]:
        raise InputError("a file")

    with monkeypatch.context() as patch:
        patch.setattr(RawStore, "scans", fail)
        assert place.poll(5) == []
        assert place.service.counters().problems == (
            f"the scans of {place.l0 / 'night.zarr'} cannot be listed: a file",
        )
    assert place.poll(5) == [(2,)]


def test_metadata_of_a_scan_that_are_nonsense_stop_nothing(place):
    place.scan(1)
    (place.l0 / "night.zarr" / "scans" / scan_name(1) / "zarr.json").write_text("[" * 100_000)
    place.scan(2)
    assert place.poll() == [(2,)]


def test_a_mistake_while_one_store_is_looked_at_is_told_of_once_and_the_others_go_on(place, caplog, monkeypatch):
    place.store("a-odd.zarr")
    place.scan(1)
    original = watch.WatchedStore.look

    def look(self: watch.WatchedStore, now_s: float) -> set[int]:
        if self.path.name == "a-odd.zarr":
            raise RuntimeError("a mistake")
        return original(self, now_s)

    monkeypatch.setattr(watch.WatchedStore, "look", look)
    assert place.poll() == [(1,)]
    assert place.poll(5) == []
    assert caplog.text.count("a mistake") == 1
    monkeypatch.undo()
    assert place.poll(5) == []
    assert place.service.counters().problems == ()


def test_a_store_that_could_not_be_opened_is_opened_again_in_a_while(place, monkeypatch):
    place.scan(1)

    def fail(path: Path) -> RawStore:
        raise OSError(5, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(watch, "RawStore", fail)
        assert place.poll() == []
    assert place.poll(5) == []
    assert "broken" in place.service.counters().problems[0]
    assert place.poll(55) == [(1,)]
    assert place.service.counters().problems == ()


def test_a_location_that_is_not_there_is_told_of_once_and_waited_for(tmp_path, caplog):
    canned = Canned()
    service = ScanService(tmp_path / "later", tmp_path / "l1", CONFIG, calibrate=canned, clock=Clock())
    for _ in range(3):
        assert not service.poll()
    assert caplog.text.count("cannot be listed") == 1
    create_raw_store(tmp_path / "later" / "night.zarr", telescope="FYST", altitude_m=5612.0)
    assert not service.poll()
    assert (service.counters().stores, service.counters().problems) == (1, ())


def test_a_store_that_is_removed_is_forgotten(place):
    place.scan(1, complete=False)
    place.poll()
    shutil.rmtree(place.l0 / "night.zarr")
    assert place.poll(5) == []
    assert (place.service.counters().stores, place.service.counters().writing) == (0, 0)


def test_what_a_run_found_incomplete_is_looked_at_again(place):
    def calibrate(*arguments: Any, **options: Any) -> PipelineResult:
        place.scan(1, complete=False)
        place.canned.calls.append((1,))
        return PipelineResult(incomplete=(1,))

    place.scan(1)
    service = ScanService(place.l0, place.l1, CONFIG, calibrate=calibrate, clock=place.clock)
    assert service.poll()
    assert not service.poll()
    assert service.counters().writing == 1


def test_a_heartbeat_says_what_the_counters_say(tmp_path):
    beat = tmp_path / "beat.json"
    place = Place(tmp_path, heartbeat=beat)
    place.store()
    place.scan(1)
    place.scan(2)
    place.canned.fails[2] = {"message": "swapped\nwith a traceback"}
    place.poll()
    said = json.loads(beat.read_text())
    assert said["pid"] == os.getpid()
    assert said["at"].endswith("Z")
    assert (said["done"], said["failed"], said["backlog"]) == (1, 1, 0)
    assert said["last_error"] == "night.zarr, scan 2: GainError: swapped"
    assert said["last_scan"].startswith("night.zarr, scan 1: pwv 0.600 mm (fit)")
    assert [(store, one.scan) for store, one in place.service.failures()] == [("night.zarr", 2)]


def test_a_heartbeat_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    beat = tmp_path / "a-file" / "beat.json"
    beat.parent.write_text("in the way")
    place = Place(tmp_path, heartbeat=beat)
    place.store()
    place.scan(1)
    assert place.poll() == [(1,)]
    assert place.poll(5) == []
    assert caplog.text.count("heartbeat cannot be written") == 1


def test_half_a_heartbeat_of_who_was_killed_is_removed_at_the_start_and_nothing_else(tmp_path):
    beat, stop = tmp_path / "beat[1].json", threading.Event()
    half = [part_path(beat) for _ in range(2)]
    others = [part_path(tmp_path / "beat1.json"), tmp_path / ".beat[1].json.notes", part_path(tmp_path / "night.json")]
    for path in (*half, *others):
        path.write_text("{")
    stop.set()
    Place(tmp_path, heartbeat=beat).service.loop(stop)
    assert [path.exists() for path in half] == [False, False]
    assert all(path.exists() for path in others)


def test_the_loop_ends_when_it_is_asked_to_and_says_what_is_left(place, caplog, monkeypatch):
    # Who configured the log before, as commands do, may have it pass nothing on.
    logger = logging.getLogger("nightbeam.scans.service")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    caplog.set_level("INFO", logger=logger.name)
    place.scan(1)
    place.scan(2)
    stop = threading.Event()

    def calibrate(l0: Path, l1: Path, config: PipelineConfig, **options: Any) -> PipelineResult:
        assert options["stop"] is stop
        stop.set()
        return PipelineResult(stopped=True)

    ScanService(place.l0, place.l1, CONFIG, calibrate=calibrate, clock=place.clock).loop(stop)
    assert "drained: 0 scans calibrated, 0 failed, 2 wait" in caplog.text


@pytest.mark.parametrize("mode", ["past-then-future", "linear"])
def test_a_scan_has_another_turn_when_other_loads_come_and_new_scans_are_first(tmp_path, mode):
    config = PipelineConfig(atmosphere="closed-form", options=CalibrationOptions(cal_mode=mode))
    place = Place(tmp_path)
    place.store()
    service = ScanService(place.l0, place.l1, config, calibrate=place.canned, clock=place.clock)
    place.scan(100, obs_type="calibration")
    place.scan(1)
    assert service.poll()
    assert not service.poll()
    place.scan(101, obs_type="calibration")
    place.scan(2)
    assert service.poll()
    assert not service.poll()
    assert place.canned.calls == [(1,), (2, 1)]


# -- with real scans ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("night") / "night.zarr"
    simulate_night(store, PLAN)
    return store


@pytest.fixture
def drop(night: Path) -> Callable[..., None]:
    """Have some scans of the night in a store that is watched."""

    def copy(to: Path, *scans: int) -> None:
        (to / "scans").mkdir(parents=True, exist_ok=True)
        shutil.copy(night / "zarr.json", to)
        for scan in scans:
            shutil.copytree(night / "scans" / scan_name(scan), to / "scans" / scan_name(scan))

    return copy


def contents(l1: Path) -> dict[str, bytes]:
    """Return every chunk of a store of results, and every array's metadata."""
    files = {path.relative_to(l1): path for path in l1.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if len(name.parts) > 3}


def test_a_night_that_trickles_in_gives_what_one_run_gives_and_a_second_service_finds_it_done(tmp_path, night, drop):
    store = tmp_path / "l0" / "night.zarr"
    clock = Clock()
    service = ScanService(store.parent, tmp_path / "l1", CONFIG, clock=clock)
    scans = RawStore(night).scans()
    assert [scan for scan in scans if scan < 100] == [1, 2, 3, 4]
    for scan in sorted(scans, key=lambda scan: (scan % 1000, -scan)):
        drop(store, scan)
        while service.poll():
            pass
    found = service.counters()
    assert (found.done, found.failed, found.backlog) == (3, 1, 0)
    assert [(one.scan, one.source) for one in found.water] == [(1, "fit"), (2, "fit"), (4, "fit")]
    assert [one.pwv_mm for one in found.water] == pytest.approx([0.60, 0.61, 0.63], abs=0.05)
    assert "StoreReadError" in found.last_error

    calibrate_store(night, tmp_path / "at-once.zarr", CONFIG)
    assert contents(tmp_path / "l1" / "night.zarr") == contents(tmp_path / "at-once.zarr")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "l1" / "night.zarr").rglob("*")}
    again = ScanService(store.parent, tmp_path / "l1", CONFIG, clock=clock)
    while again.poll():
        pass
    found = again.counters()
    assert (found.done, found.skipped, found.failed) == (0, 3, 1)
    assert len(found.water) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_between_two_loads_is_interpolated_as_soon_as_the_second_has_come(tmp_path, drop):
    store = tmp_path / "l0" / "night.zarr"
    config = replace(CONFIG, options=CalibrationOptions(cal_mode="linear"))
    service = ScanService(store.parent, tmp_path / "l1", config, clock=Clock())
    used = []
    for scans in ((100_001, 1), (100_003,)):
        drop(store, *scans)
        while service.poll():
            pass
        used.append(ResultStore(tmp_path / "l1" / "night.zarr").attributes(1)["calibration_scans"])
    assert used == [[100_001], [100_001, 100_003]]


def test_loads_that_come_late_but_are_earlier_replace_those_that_were_used(tmp_path, night):
    source, store = RawStore(night), tmp_path / "l0" / "night.zarr"
    loads, scan = source.read(100_001), source.read(2)
    first = scan.time_s[0] - loads.time_s[-1]
    create_raw_store(store, telescope="FYST", altitude_m=5612.0)
    service = ScanService(store.parent, tmp_path / "l1", CONFIG, clock=Clock())
    used = []
    for number, by_s in ((100_001, 0.0), (100_002, first - 10.0)):
        write_raw_scan(store, replace(loads, info=replace(loads.info, scan=number), time_s=loads.time_s + by_s))
        if number == 100_001:
            write_raw_scan(store, scan)
        while service.poll():
            pass
        used.append(ResultStore(tmp_path / "l1" / "night.zarr").attributes(2)["calibration_scans"])
    assert used == [[100_001], [100_002]]
    assert service.counters().done == 2


def test_a_scan_is_calibrated_when_its_damaged_chunk_has_been_copied_again(tmp_path, drop):
    store = tmp_path / "l0" / "night.zarr"
    drop(store, 100_003, BAD)
    service = ScanService(store.parent, tmp_path / "l1", CONFIG, clock=Clock())
    while service.poll():
        pass
    assert service.counters().failed == 1
    good = tmp_path / "good.zarr"
    simulate_night(good, NightPlan(**{**{n: getattr(PLAN, n) for n in PLAN.__slots__}, "faults": ()}))
    shutil.rmtree(store / "scans" / scan_name(BAD))
    shutil.copytree(good / "scans" / scan_name(BAD), store / "scans" / scan_name(BAD))
    while service.poll():
        pass
    assert (service.counters().failed, service.counters().done) == (0, 1)
    assert ResultStore(tmp_path / "l1" / "night.zarr").scans() == [BAD]
    assert not (tmp_path / "l1" / "night.failures.json").exists()


def test_something_else_in_the_place_of_results_is_told_of_and_put_off(tmp_path, drop, caplog):
    store = tmp_path / "l0" / "night.zarr"
    drop(store, 100_001, 1)
    create_raw_store(tmp_path / "l1" / "night.zarr", telescope="FYST", altitude_m=5612.0)
    service = ScanService(store.parent, tmp_path / "l1", CONFIG, clock=Clock())
    assert service.poll()
    assert not service.poll()
    assert caplog.text.count("is a store of 'scal-l0'") == 1
    with pytest.raises(InputError):
        ResultStore(tmp_path / "l1" / "night.zarr")
