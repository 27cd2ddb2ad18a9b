"""Whole stores: every error and every flag, what is told of a run, and what a second run does."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightbeam import __version__
from nightbeam.atmosphere import BandedAtmosphere, ClosedFormAtmosphere, LayeredAtmosphere, Layers
from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.scans import run
from nightbeam.scans.files import RawStore, scan_name, write_raw_scan
from nightbeam.scans.model import (
    CalibrationOptions,
    Flag,
    PipelineConfig,
    PipelineResult,
    ScanFailure,
    ScanLimits,
    ScanResult,
    StoreReadError,
)
from nightbeam.scans.report import failures_path, read_failures, read_rejected
from nightbeam.scans.results import ResultStore
from nightbeam.scans.summary import failure_report
from nightbeam.scans.worker import calibrate_single_scan, calibrate_store, plan_store
from nightbeam.testing.night import OWN, SHARED, Fault, NightPlan, NightTruth, leave_incomplete, simulate_night
from nightbeam.testing.night_faults import FAULT_KINDS

pytestmark = pytest.mark.slow

LOADS = SHARED + 1


# -- everything goes wrong --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worst(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NightTruth, PipelineResult]:
    """A night with every fault there is, each in one scan, calibrated; and the same night without any."""
    place = tmp_path_factory.mktemp("worst")
    faults = tuple(Fault(kind, 2 + n) for n, kind in enumerate(FAULT_KINDS))
    # Few dumps and channels: what is shown are the classes.
    plan = NightPlan(scans=len(faults) + 2, pixels=2, channels=64, rows=2, dumps=5, calibration_every=6)
    config = PipelineConfig(atmosphere="closed-form", retry_wait_s=0.01, retries=1)
    simulate_night(place / "clean.zarr", plan)
    truth = simulate_night(place / "worst.zarr", replace(plan, faults=faults))
    good = tuple(one.scan for one in truth.scans if one.fault is None)
    calibrate_store(place / "clean.zarr", place / "clean.l1.zarr", replace(config, scans=good))
    return place, truth, calibrate_store(place / "worst.zarr", place / "worst.l1.zarr", config)


def test_every_fault_ends_as_the_truth_says_and_stops_no_other_scan(worst):
    place, truth, result = worst
    assert {one.scan: one.error for one in result.failures} == truth.errors()
    assert {one.scan for one in result.successes} == {one.scan for one in truth.scans} - truth.errors().keys()
    assert (result.exit_code, result.skipped, result.stopped) == (2, (), False)
    said = json.loads((place / "worst.l1.failures.json").read_text())
    assert (said["n_scans"], said["n_ok"], said["n_failed"]) == (len(truth.scans), len(result.successes), 23)
    assert {one["scan"]: one["error"] for one in said["failures"]} == truth.errors()
    assert [one["scan"] for one in said["failures"]] == sorted(truth.errors())
    for one in said["failures"]:
        assert one["kind"] == ("read" if one["error"] == "StoreReadError" else "calibration")
        assert f"scan {one['scan']}" in one["message"]
        if truth.of(one["scan"]).calibration == OWN + one["scan"]:
            assert one["calibration_scans"] == [OWN + one["scan"]]


def test_good_scans_among_bad_ones_are_those_of_a_night_without_faults(worst, contents):
    place, _, _ = worst
    # The fingerprint knows the times of the files that were read.
    clean, among = (contents(place / name, "fingerprint") for name in ("clean.l1.zarr", "worst.l1.zarr"))
    assert len(clean) == 2
    assert clean == {name: among[name] for name in clean}


@pytest.mark.parametrize("kind", [kind for kind, meaning in FAULT_KINDS.items() if meaning.error is None])
def test_a_fault_of_samples_shows_its_flag_where_the_truth_says_and_nowhere_else(worst, group_of, kind):
    place, truth, _ = worst
    (one,) = (one for one in truth.scans if one.fault == kind)
    group = group_of(place / "worst.l1.zarr", one.scan)
    flag, ta_star = group["flag"][...], group["ta_star"][...]
    expected = np.zeros(flag.shape, np.uint8)
    for spot in one.flagged:
        expected[tuple(slice(None) if index is None else index for index in spot)] = one.flag
    if kind == "opaque-channels":  # which ones depends on the air
        expected[:, :, group["tr_s"][0] < 0.02] = Flag.OPAQUE
        assert 0.25 < np.mean(expected != 0) < 0.75
    assert np.array_equal(flag, expected)
    assert np.array_equal(np.isnan(ta_star), flag != 0)


# -- what is told -----------------------------------------------------------------------------------------------------


def test_scans_are_told_as_they_end_and_failures_after_the_last_attempt(l0, l1, config, chunk_of):
    chunk_of(l0, 2).write_bytes(b"x")
    begun: list[int] = []
    told: list[ScanResult | ScanFailure] = []
    result = calibrate_store(l0, l1, config, on_begin=begun.append, on_scan=told.append)
    assert begun == [3]
    assert [(type(one), one.scan) for one in told] == [(ScanResult, 1), (ScanResult, 3), (ScanFailure, 2)]
    assert (result.successes, result.failures) == (tuple(told[:2]), (told[2],))
    assert result.successes[0].calibration_scans == (LOADS,)
    assert result.successes[0].path == l1 / "scans" / "scan_000001"
    assert set(result.successes[0].timings) == {"load", "resolve", "prepare", "atmosphere", "calibrate", "write"}


def test_a_mistake_in_the_program_fails_one_scan_with_a_traceback_after_all_attempts(l0, l1, config, monkeypatch):
    original = run.MODES["tp"]
    calls = []

    def mistaken(*given: Any, **more: Any) -> Any:
        calls.append(given[0].info.scan)
        raise KeyError("spam")

    monkeypatch.setitem(run.MODES, "tp", mistaken)
    result = calibrate_store(l0, l1, config)
    (failure,) = result.failures
    assert (failure.scan, failure.error, failure.kind, failure.stage) == (2, "KeyError", "internal", "prepare")
    assert "Traceback" in failure.message
    assert "mistaken" in failure.message
    assert calls == [2] * (1 + config.retries)
    assert result.exit_code == 2
    with pytest.raises(KeyError, match="spam"):
        calibrate_single_scan(l0, l1, 2, config)
    monkeypatch.setitem(run.MODES, "tp", original)
    assert calibrate_store(l0, l1, config).exit_code == 0


def test_nothing_but_failures_is_another_exit_code_than_some(l0, l1, config):
    assert calibrate_store(l0, l1, replace(config, options=CalibrationOptions(max_cal_age_s=1e-3))).exit_code == 1
    assert [one.error for one in read_failures(failures_path(l1))] == ["NoCalibrationError"] * 3


def test_a_store_without_a_scan_of_a_source_is_no_failure(l0, l1, config, group_of, caplog):
    for scan in (1, 2, 3):
        group_of(l0, scan).attrs["obs_type"] = "pointing"
    result = calibrate_store(l0, l1, config)
    assert (result.exit_code, result.successes) == (0, ())
    assert "has no scan of a source" in caplog.text


def test_one_scan_alone_gives_what_it_gives_among_others_and_raises_what_is_wrong(
    l0, l1, config, contents, chunk_of, tmp_path
):
    calibrate_store(l0, l1, config)
    found = calibrate_single_scan(l0, tmp_path / "one.zarr", 2, config)
    assert (found.scan, found.pwv_source) == (2, "fit")
    assert contents(tmp_path / "one.zarr") == {"scan_000002": contents(l1)["scan_000002"]}
    chunk_of(l0, 2).unlink()
    with pytest.raises(StoreReadError, match="1 of 1 chunks of counts are missing"):
        calibrate_single_scan(l0, tmp_path / "one.zarr", 2, config)
    leave_incomplete(l0, 3)
    with pytest.raises(StoreReadError, match="not complete yet"):
        calibrate_single_scan(l0, tmp_path / "one.zarr", 3, config)


def test_who_asks_for_a_scan_that_is_none_is_told(l0, l1, config):
    with pytest.raises(MissingError, match="no scan 9"):
        calibrate_store(l0, l1, replace(config, scans=(9,)))
    with pytest.raises(UsageError, match=f"scan {LOADS} is a calibration"):
        calibrate_store(l0, l1, replace(config, scans=(LOADS,)))
    with pytest.raises(InputError, match="is a store of 'scal-l0'"):
        calibrate_store(l0, l0, config)
    with pytest.raises(UsageError, match="has no name"):
        calibrate_store(l0, Path(), config)


# -- again ------------------------------------------------------------------------------------------------------------


def numbers(results: tuple[ScanResult, ...]) -> list[int]:
    return [one.scan for one in results]


def test_a_second_run_has_nothing_to_do_and_says_so(l0, l1, config, contents):
    assert plan_store(l0, l1, config) == [(1, "calibrate"), (2, "calibrate"), (3, "calibrate"), (LOADS, "calibration")]
    assert not l1.exists()
    calibrate_store(l0, l1, config)
    before = {path: path.stat().st_mtime_ns for path in l1.rglob("*")}
    assert plan_store(l0, l1, config) == [(1, "done"), (2, "done"), (3, "done"), (LOADS, "calibration")]
    again = calibrate_store(l0, l1, config)
    assert (again.successes, again.skipped, again.exit_code) == ((), (1, 2, 3), 0)
    assert {path: path.stat().st_mtime_ns for path in l1.rglob("*")} == before
    first = contents(l1)
    forced = calibrate_store(l0, l1, replace(config, force=True, scans=(3, 1, 3)))
    assert (numbers(forced.successes), forced.skipped) == ([1, 3], ())
    assert contents(l1) == first


def test_every_option_but_the_way_to_run_has_all_done_again(l0, l1, config):
    config = replace(config, scans=(2,))
    calibrate_store(l0, l1, config)
    other = replace(config, memory_budget_bytes=20_000, retries=0, failures=l1.with_name("f.json"))
    assert calibrate_store(l0, l1, other).skipped == (2,)
    for changed in (
        {"scale": "load"},
        {"sky": "off"},
        {"exclude_ghz": ((809.0, 809.1),)},
        {"limits": ScanLimits(tr_min=0.03)},
    ):
        other = replace(config, options=CalibrationOptions(**changed))  # type: ignore[arg-type]
        assert plan_store(l0, l1, other) == [(2, "calibrate")], changed
    assert numbers(calibrate_store(l0, l1, other).successes) == [2]
    assert plan_store(l0, l1, config) == [(2, "calibrate")]


def test_each_scan_says_which_options_it_was_made_with_and_the_store_those_of_the_last_run_that_wrote(l0, l1, config):
    def root() -> dict[str, Any]:
        return dict(json.loads((l1 / "zarr.json").read_text())["attributes"])

    other = replace(config, options=CalibrationOptions(scale="load"))
    calibrate_store(l0, l1, config)
    first, store = root()["config_hash"], ResultStore(l1)
    assert (root()["schema"], root()["l0"], root()["version"]) == ("scal-l1", str(l0), __version__)
    calibrate_store(l0, l1, replace(other, scans=(2,)))
    second = root()["config_hash"]
    assert second != first
    assert [store.attributes(scan)["config_hash"] for scan in (1, 2, 3)] == [first, second, first]
    # Neither which scans, nor how they are worked through, nor a run that has nothing to do.
    calibrate_store(l0, l1, replace(config, scans=(1,), retries=0, options=CalibrationOptions()))
    assert root()["config_hash"] == second
    forced = CalibrationOptions(force_calibration=((1, LOADS),))
    calibrate_store(l0, l1, replace(config, scans=(1,), force=True, memory_budget_bytes=20_000, options=forced))
    assert root()["config_hash"] == store.attributes(1)["config_hash"] == first


class PlainAir:
    """An atmosphere of somebody else, which says nothing of itself."""

    def __init__(self, dry: float, name: str = "") -> None:
        self._air = ClosedFormAtmosphere(dry=dry)
        if name:
            self.name = name

    def opacity(self, *given: Any) -> Any:
        return self._air.opacity(*given)

    def sky(self, *given: Any) -> Any:
        return self._air.sky(*given)


@dataclass
class TableAir(PlainAir):
    """The same, with fields."""

    dry: float
    table: Any

    def __post_init__(self) -> None:
        super().__init__(self.dry)


def layers(wet: float) -> BandedAtmosphere:
    freq = np.linspace(790.0, 815.0, 26)
    one = Layers(freq, np.array([260.0]), np.full((1, 26), 0.08), np.full((1, 26), wet))
    return BandedAtmosphere([LayeredAtmosphere(one)])


@pytest.mark.parametrize(
    ("same", "others"),
    [
        (lambda: PlainAir(0.12, "mine"), [lambda: PlainAir(0.13, "another")]),
        (lambda: ClosedFormAtmosphere(dry=0.12), [lambda: ClosedFormAtmosphere(dry=0.13)]),
        (
            lambda: TableAir(0.12, np.arange(5000.0)),
            [lambda: TableAir(0.12, np.where(np.arange(5000) == 2500, 0, np.arange(5000.0)))],
        ),
        (lambda: layers(1.2), [lambda: layers(1.3)]),
    ],
    ids=["named", "dataclass", "arrays", "layers"],
)
def test_an_atmosphere_of_somebody_else_is_known_again_by_its_fields_or_its_name(l0, l1, config, caplog, same, others):
    config = replace(config, scans=(2,))
    assert numbers(calibrate_store(l0, l1, config, air=same()).successes) == [2]
    assert calibrate_store(l0, l1, config, air=same()).skipped == (2,)
    for other in others:
        assert calibrate_store(l0, l1, config, air=other()).skipped == ()
    assert "cannot be recognised" not in caplog.text


@pytest.mark.parametrize("make", [lambda: PlainAir(0.12), lambda: TableAir(0.12, object())], ids=["plain", "fields"])
def test_an_atmosphere_that_nothing_is_known_of_is_never_taken_for_another_and_told_of(l0, l1, config, caplog, make):
    air, config = make(), replace(config, scans=(2,))
    for runs in (1, 2):
        assert numbers(calibrate_store(l0, l1, config, air=air).successes) == [2]
        assert caplog.text.count("cannot be recognised in a later run") == runs


def test_a_scan_that_has_changed_is_done_again_and_no_other(l0, l1, config, group_of):
    calibrate_store(l0, l1, config)
    group_of(l0, 1).attrs["temperature_k"] = 266.0
    counts = group_of(l0, 3)["counts"]
    counts[0, 0, 0] = counts[0, 0, 0] * 1.001
    again = calibrate_store(l0, l1, config)
    assert (numbers(again.successes), again.skipped) == ([1, 3], (2,))


def test_calibrations_that_change_are_worse_or_are_better_decide_what_is_done_again(l0, l1, config, group_of):
    calibrate_store(l0, l1, config)
    store = RawStore(l0)
    loads, scan = store.read(LOADS), store.read(2)
    shift = scan.time_s[0] - 20.0 - loads.time_s[-1]

    def observe(number: int, by_s: float) -> None:
        write_raw_scan(l0, replace(loads, info=replace(loads.info, scan=number), time_s=loads.time_s + by_s))

    observe(150_000, -600.0)  # before the one that was used
    assert calibrate_store(l0, l1, config).skipped == (1, 2, 3)
    observe(150_001, 4000.0)  # after all scans
    assert calibrate_store(l0, l1, config).skipped == (1, 2, 3)
    observe(150_002, shift)  # between the first scan and the second
    better = calibrate_store(l0, l1, config)
    assert [(one.scan, one.calibration_scans) for one in better.successes] == [(2, (150_002,)), (3, (150_002,))]
    group_of(l0, 150_002).attrs["t_hot_k"] = 294.0
    assert numbers(calibrate_store(l0, l1, config).successes) == [2, 3]
    group_of(l0, LOADS).attrs["t_hot_k"] = 294.0
    assert numbers(calibrate_store(l0, l1, config).successes) == [1]


@pytest.mark.parametrize("mode", ["past-then-future", "linear"])
def test_a_calibration_that_was_passed_over_and_is_mended_has_its_scans_done_again(l0, l1, config, group_of, mode):
    store = RawStore(l0)
    loads = store.read(LOADS)
    late = replace(
        loads,
        info=replace(loads.info, scan=150_000),
        time_s=store.read(3).time_s[-1] + 10.0 + loads.time_s - loads.time_s[0],
    )
    write_raw_scan(l0, late)
    spoilt = LOADS if mode == "past-then-future" else 150_000
    group_of(l0, spoilt).attrs["t_hot_k"] = 93.0
    config = replace(config, options=CalibrationOptions(cal_mode=mode))
    first = calibrate_store(l0, l1, config)
    assert {one.calibration_scans for one in first.successes} == {(LOADS + 150_000 - spoilt,)}
    assert all(f"calibration {spoilt} was passed over" in one.warnings[0] for one in first.successes)
    assert calibrate_store(l0, l1, config).skipped == (1, 2, 3)
    group_of(l0, spoilt).attrs["t_hot_k"] = 293.0
    again = calibrate_store(l0, l1, config)
    expected = (LOADS,) if mode == "past-then-future" else (LOADS, 150_000)
    assert [one.calibration_scans for one in again.successes] == [expected] * 3


def test_a_calibration_that_is_not_valid_is_read_once_and_told_once(l0, l1, config, group_of, caplog, monkeypatch):
    store = RawStore(l0)
    loads = store.read(LOADS)
    write_raw_scan(l0, replace(loads, info=replace(loads.info, scan=150_000), time_s=loads.time_s + 15.0))
    group_of(l0, 150_000).attrs["t_hot_k"] = 93.0
    asked = []
    original = run.load_of_counts
    monkeypatch.setattr(
        run, "load_of_counts", lambda scan, *a, **k: (asked.append(scan.info.scan), original(scan, *a, **k))[1]
    )
    result = calibrate_store(l0, l1, config)
    assert asked == [150_000, LOADS]
    assert caplog.text.count("calibration 150000 is not used: the hot load has 93.0 K") == 1
    assert [one.warnings[0].split(":")[0] for one in result.successes] == ["calibration 150000 was passed over"] * 3
    assert [len(one.warnings) for one in result.successes] == [1, 1, 1]


def test_loads_that_cannot_be_used_are_listed_until_they_change_and_told_of_once(l0, l1, config, group_of, caplog):
    loads = RawStore(l0).read(LOADS)
    for number, by_s in ((150_000, 15.0), (150_001, 30.0)):
        write_raw_scan(l0, replace(loads, info=replace(loads.info, scan=number), time_s=loads.time_s + by_s))
    group_of(l0, 150_000).attrs["t_hot_k"] = 93.0
    chunk = l0 / "scans" / scan_name(150_001) / "time" / "c" / "0"
    good = chunk.read_bytes()
    chunk.unlink()
    path = failures_path(l1)
    result = calibrate_store(l0, l1, config)
    expected = [(150_000, "LoadTemperatureError", "resolve"), (150_001, "StoreReadError", "load")]
    assert [(one.scan, one.error, one.stage) for one in result.rejected] == expected
    assert (result.failures, result.exit_code) == ((), 0)
    assert tuple(read_rejected(path)) == result.rejected
    report = failure_report(l1)
    assert report is not None
    assert (report.failures, report.rejected) == ((), result.rejected)
    # Also runs that have nothing to do, or need others, list them; as those of a service do, scan by scan.
    for again in (config, replace(config, scans=(3,)), replace(config, scans=(2,), force=True)):
        assert calibrate_store(l0, l1, again).rejected == result.rejected
    assert caplog.text.count("calibration 150000 is not used") == 1
    assert caplog.text.count("calibration 150001 is not used") == 1
    group_of(l0, 150_000).attrs["t_hot_k"] = 94.0  # another file, the same trouble
    calibrate_store(l0, l1, config)
    assert caplog.text.count("calibration 150000 is not used") == 2
    chunk.write_bytes(good)
    assert [one.scan for one in calibrate_store(l0, l1, config).rejected] == [150_000]
    shutil.rmtree(l0 / "scans" / scan_name(150_000))
    assert calibrate_store(l0, l1, config).rejected == ()
    assert not path.exists()


def test_loads_that_can_be_used_after_all_are_listed_no_longer(l0, l1, config):
    options = CalibrationOptions(limits=ScanLimits(t_rec_k=1.0))
    first = calibrate_store(l0, l1, replace(config, options=options))
    assert [(one.scan, one.error) for one in first.rejected] == [(LOADS, "ReceiverTemperatureError")]
    assert calibrate_store(l0, l1, config).rejected == ()


def test_a_scan_in_the_making_waits_and_so_does_a_calibration(l0, l1, config, group_of):
    leave_incomplete(l0, 2)
    first = calibrate_store(l0, l1, config)
    assert (numbers(first.successes), first.incomplete, first.exit_code) == ([1, 3], (2,), 0)
    assert (2, "incomplete") in plan_store(l0, l1, config)
    group_of(l0, 2).attrs["complete"] = True
    assert numbers(calibrate_store(l0, l1, config).successes) == [2]
    leave_incomplete(l0, LOADS)
    assert {one.error for one in calibrate_store(l0, l1, replace(config, force=True)).failures} == {
        "NoCalibrationError"
    }


def test_failures_of_others_are_kept_until_those_are_tried_again(l0, l1, config, group_of, contents):
    for scan in (1, 2):
        group_of(l0, scan).attrs["t_cold_k"] = "cold"
    calibrate_store(l0, l1, config)
    path = failures_path(l1)
    assert path.name == "l1.failures.json"
    assert [one.scan for one in read_failures(path)] == [1, 2]
    calibrate_store(l0, l1, replace(config, scans=(3,)))
    assert [one.scan for one in read_failures(path)] == [1, 2]
    group_of(l0, 1).attrs["t_cold_k"] = 78.0
    calibrate_store(l0, l1, replace(config, scans=(1,)))
    assert [one.scan for one in read_failures(path)] == [2]
    group_of(l0, 2).attrs["t_cold_k"] = 78.0
    assert calibrate_single_scan(l0, l1, 2, config).scan == 2
    calibrate_store(l0, l1, replace(config, scans=(3,)))
    assert not path.exists()


def test_the_failure_of_a_scan_that_was_removed_is_told_no_longer(l0, l1, config, group_of):
    for scan in (1, 2):
        group_of(l0, scan).attrs["t_cold_k"] = "cold"
    calibrate_store(l0, l1, config)
    shutil.rmtree(l0 / "scans" / scan_name(2))
    calibrate_store(l0, l1, replace(config, scans=(3,)))
    assert [one.scan for one in read_failures(failures_path(l1))] == [1]


def test_failures_lie_beside_the_name_that_was_given_and_results_where_it_leads(l0, tmp_path, config, group_of):
    group_of(l0, 2).attrs["t_cold_k"] = "cold"
    link = tmp_path / "named" / "tonight.zarr"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "disk" / "l1.zarr")
    assert calibrate_store(l0, link, config).exit_code == 2
    assert {path.name for path in link.parent.iterdir()} == {"tonight.zarr", "tonight.failures.json"}
    assert (tmp_path / "disk" / "l1.zarr" / "scans" / "scan_000001").exists()


def test_a_scan_whose_old_result_stands_is_a_failure_as_long_as_its_last_try_has_failed(l0, l1, config, group_of):
    calibrate_store(l0, l1, config)
    group_of(l0, 2).attrs["t_cold_k"] = "cold"
    assert calibrate_store(l0, l1, config).exit_code == 2
    assert (l1 / "scans" / "scan_000002").exists()
    calibrate_store(l0, l1, replace(config, scans=(1,)))
    assert [one.scan for one in read_failures(failures_path(l1))] == [2]


def test_a_report_of_failures_that_are_none_any_more_is_removed(l0, l1, config, tmp_path):
    path = tmp_path / "elsewhere.json"
    path.touch()
    config = replace(config, failures=path, scans=(1,))
    calibrate_store(l0, l1, replace(config, options=CalibrationOptions(max_cal_age_s=1e-3)))
    assert [one.error for one in read_failures(path)] == ["NoCalibrationError"]
    calibrate_store(l0, l1, config)
    assert not path.exists()


@pytest.mark.parametrize("text", ["[1, 2", "notes", '{"schema": 2, "failures": []}', '{"schema": 1}', None])
@pytest.mark.parametrize("usual", [False, True])
def test_something_else_where_failures_are_to_be_written_is_refused_and_stays(l0, l1, config, tmp_path, text, usual):
    path = failures_path(l1) if usual else tmp_path / "elsewhere.json"
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)
    config = replace(config, failures=None if usual else path)
    for run_it in (lambda: calibrate_store(l0, l1, config), lambda: calibrate_single_scan(l0, l1, 1, config)):
        with pytest.raises(UsageError, match="is no list of failures"):
            run_it()
    assert path.is_dir() if text is None else path.read_text() == text
    assert not l1.exists()


def test_times_and_tunings_of_loads_are_read_once_until_their_files_change(l0, l1, config, monkeypatch):
    original, heads, known = RawStore.read, [], {}

    def read(store: RawStore, scan: int, **more: Any) -> Any:
        if more.get("counts") is False:
            heads.append(scan)
        return original(store, scan, **more)

    monkeypatch.setattr(RawStore, "read", read)
    (load,) = set(RawStore(l0).scans()) - {1, 2, 3}
    calibrate_store(l0, l1, replace(config, scans=(1,)), known=known)
    assert heads.count(load) == 1
    calibrate_store(l0, l1, replace(config, scans=(2,)), known=known)
    assert heads.count(load) == 1
    moved = original(RawStore(l0), load)
    write_raw_scan(l0, replace(moved, time_s=moved.time_s + 86_400.0))
    (failure,) = calibrate_store(l0, l1, replace(config, scans=(3,)), known=known).failures
    assert failure.error == "NoCalibrationError", "it is of another day now"
    assert heads.count(load) == 2


@pytest.mark.parametrize("wrong", [{"scan": [1]}, {"scan": "a"}, {"message": 3}, {"files": None}])
def test_a_list_of_failures_with_strange_entries_is_none(tmp_path, wrong):
    path = tmp_path / "failures.json"
    one = {"scan": 1, "error": "GainError", "stage": "resolve", "message": "why", "files": "ab"}
    path.write_text(json.dumps({"schema": 1, "failures": [], "calibrations": [one]}))
    assert [found.scan for found in read_rejected(path)] == [1]
    path.write_text(json.dumps({"schema": 1, "failures": [], "calibrations": [one | wrong]}))
    assert read_rejected(path) == []
