"""``nightbeam scans``: what is asked reaches the library, what happened is told, and the exit code says it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nightbeam.cli import main
from nightbeam.core.errors import BusyError, ConfigError, InputError, MissingError, StorageError, UsageError
from nightbeam.core.locks import sole_owner
from nightbeam.scans import worker
from nightbeam.scans.files import RawStore, create_raw_store, scan_name
from nightbeam.scans.model import PipelineConfig, PipelineResult, RejectedCalibration, ScanFailure, ScanResult
from nightbeam.scans.report import failures_path, write_failures
from nightbeam.scans.results import ResultStore
from nightbeam.testing.night import SHARED, read_truth
from nightbeam.testing.night_faults import FAULT_KINDS

pytestmark = pytest.mark.usefixtures("_clean_environ")

DONE = ScanResult(1, Path("l1.zarr/scans/scan_000001"), (100001,), 0.62, "fit", 0.5, {"load": 0.1}, {"t_sys_k": 2800.0})
BAD = ScanFailure(3, "StoreReadError", "read", "load", "scan 3: 1 of 4 chunks\nare missing", None, (), 0.2)
SMALL = ("--pixels", "2", "--channels", "32", "--rows", "2", "--dumps", "4")


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["scans", *(str(word) for word in argv)])
    return int(stopped.value.code or 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Any, ...]]]:
    """Put something in the place of the calibration; returns what it is asked for."""

    def answer(result: PipelineResult | Exception) -> list[tuple[Any, ...]]:
        asked: list[tuple[Any, ...]] = []

        def calibrate(l0: Path, l1: Path, config: PipelineConfig, *, stop: Any, on_begin: Any, on_scan: Any) -> Any:
            asked.append((l0, l1, config))
            if isinstance(result, Exception):
                raise result
            on_begin(len(result.successes) + len(result.failures))
            for one in (*result.successes, *result.failures):
                on_scan(one)
            return result

        monkeypatch.setattr(worker, "calibrate_store", calibrate)
        return asked

    return answer


# -- calibrate ----------------------------------------------------------------------------------------------------


def test_what_is_asked_reaches_the_library(calls, tmp_path: Path):
    asked = calls(PipelineResult(skipped=(1,)))
    settings = tmp_path / "site.yaml"
    settings.write_text("scans: {scale: load, sky: cal, memory_budget_gb: 3, limits: {tr_min: 0.05}}")
    words = ["--scan", 7, "--scan", 3, "--scan", 7, "--force", "--calibration", "3=100001", "--sky", "off"]
    words += ["--atmosphere", "closed-form", "--memory-budget", "1.5GiB", "--failures", "f.json", "--config", settings]
    assert run("calibrate", "l0.zarr", "l1.zarr", *words) == 0
    [(l0, l1, config)] = asked
    assert (l0, l1, config.scans, config.force) == (Path("l0.zarr"), Path("l1.zarr"), (3, 7), True)
    assert (config.options.sky, config.options.scale, config.options.limits.tr_min) == ("off", "load", 0.05)
    assert config.options.force_calibration == ((3, 100001),)
    assert (config.atmosphere, config.memory_budget_bytes) == ("closed-form", 3 * 2**29)
    assert config.failures == Path("f.json")


def test_what_is_not_asked_comes_from_the_settings(calls, monkeypatch: pytest.MonkeyPatch):
    asked = calls(PipelineResult(skipped=(1,)))
    assert run("calibrate", "l0.zarr", "l1.zarr") == 0
    assert asked[0][2] == PipelineConfig()
    monkeypatch.setenv("NIGHTBEAM_SCANS__ATMOSPHERE", "closed-form")
    assert run("calibrate", "l0.zarr", "l1.zarr", "--memory-budget", "8") == 0
    assert (asked[1][2].atmosphere, asked[1][2].memory_budget_bytes) == ("closed-form", 8_000_000_000)


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (PipelineResult(successes=(DONE,)), 0),
        (PipelineResult(skipped=(1, 2)), 0),
        (PipelineResult(), 0),
        (PipelineResult(successes=(DONE,), failures=(BAD,)), 2),
        (PipelineResult(skipped=(1,), failures=(BAD,)), 2),
        (PipelineResult(failures=(BAD,)), 1),
        (MissingError("no l0"), 1),
        (InputError("no store"), 1),
        (ConfigError("no"), 1),
        (StorageError("disk full"), 1),
        (BusyError("another run"), 75),
        (UsageError("scan 3 is a calibration"), 64),
    ],
)
def test_the_exit_code_says_how_it_went(calls, result: PipelineResult | Exception, code: int):
    calls(result)
    assert run("calibrate", "l0.zarr", "l1.zarr") == code


@pytest.mark.parametrize(
    "words",
    [
        ("calibrate", "l0.zarr"),
        ("calibrate", "l0.zarr", "l1.zarr", "--skyy", "off"),
        ("calibrate", "l0.zarr", "l1.zarr", "--sky", "cold"),
        ("calibrate", "l0.zarr", "l1.zarr", "--memory-budget", "much"),
        ("calibrate", "l0.zarr", "l1.zarr", "--memory-budget", "0"),
        ("calibrate", "l0.zarr", "l1.zarr", "--calibration", "3"),
        ("calibrate", "l0.zarr", "l1.zarr", "--calibration", "3=1", "--calibration", "3=2"),
        ("calibrate", "l0.zarr", "l1.zarr", "--scan", "-1"),
        ("plot", "l1.zarr", "--pixel", "1"),
        ("plot", "l1.zarr", "--rest-ghz", "809"),
        ("simulate",),
        ("simulate", "n.zarr", "--pwv", "wet"),
        ("simulate", "n.zarr", "--pwv", "0:1"),
        ("simulate", "n.zarr", "--line", "5"),
        ("simulate", "n.zarr", "--line", "5@809.3:0"),
        ("simulate", "n.zarr", "--line", "5@345.8:40"),
        ("simulate", "n.zarr", "--fault", "bad-luck:1"),
        ("simulate", "n.zarr", "--fault", "spike:99"),
        ("simulate", "n.zarr", "--scans", "0"),
        ("polish",),
    ],
)
def test_what_makes_no_sense_is_64_and_does_nothing(calls, words: tuple[str, ...]):
    asked = calls(PipelineResult())
    assert run(*words) == 64
    assert asked == []
    assert list(Path.cwd().iterdir()) == []


def test_settings_that_cannot_be_read_end_it_before_it_begins(calls, capsys: pytest.CaptureFixture[str]):
    asked = calls(PipelineResult())
    assert run("calibrate", "l0.zarr", "l1.zarr", "--config", "none.yaml") == 1
    assert "no configuration file none.yaml" in capsys.readouterr().err
    assert asked == []


def test_a_failed_scan_is_one_line_and_the_good_ones_a_table(calls, capsys: pytest.CaptureFixture[str]):
    calls(PipelineResult(successes=(DONE,), failures=(BAD,), skipped=(2,), incomplete=(4,)))
    assert run("calibrate", "l0.zarr", "night.zarr") == 2
    out, err = capsys.readouterr()
    assert "scan 3 failed (load, StoreReadError): scan 3: 1 of 4 chunks\n" in err
    assert "1 calibrated, 1 failed, 1 were there already, 1 are still being written" in err
    assert "night.failures.json" in err
    assert "0.62" in out
    assert "2800" in out


def test_json_is_an_object_for_each_scan_and_one_for_the_run(calls, capsys: pytest.CaptureFixture[str]):
    calls(PipelineResult(successes=(DONE,), failures=(BAD,)))
    assert run("calibrate", "l0.zarr", "l1.zarr", "--json") == 2
    good, bad, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert (good["kind"], good["status"], good["scan"], good["pwv_mm"]) == ("scan", "calibrated", 1, 0.62)
    assert (bad["kind"], bad["status"], bad["failure_kind"], bad["stage"]) == ("scan", "failed", "read", "load")
    assert whole == {
        "kind": "run", "calibrated": 1, "failed": 1, "skipped": 0, "incomplete": 0, "stopped": False,
        "rejected_calibrations": [], "failures": "l1.failures.json", "exit_code": 2,
    }  # fmt: skip


def test_a_store_without_scans_is_a_warning(calls, capsys: pytest.CaptureFixture[str]):
    calls(PipelineResult())
    assert run("calibrate", "l0.zarr", "l1.zarr") == 0
    assert "no scan of a source" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_sets_the_event_and_what_is_in_hand_is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
):
    def calibrate(*_: object, stop: Any, on_scan: Any, **__: object) -> PipelineResult:
        os.kill(os.getpid(), number)
        assert stop.wait(10)
        on_scan(DONE)
        return PipelineResult(successes=(DONE,), stopped=True)

    monkeypatch.setattr(worker, "calibrate_store", calibrate)
    before = signal.getsignal(number)
    assert run("calibrate", "l0.zarr", "l1.zarr", "--json") == code
    assert signal.getsignal(number) == before
    good, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert (good["scan"], whole["stopped"], whole["exit_code"]) == (1, True, code)


def test_who_was_told_to_stop_and_had_finished_has_finished(monkeypatch: pytest.MonkeyPatch):
    def calibrate(*_: object, stop: Any, **__: object) -> PipelineResult:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
        return PipelineResult(successes=(DONE,))

    monkeypatch.setattr(worker, "calibrate_store", calibrate)
    assert run("calibrate", "l0.zarr", "l1.zarr") == 0


def test_a_terminal_has_a_bar_and_nothing_else_has(calls, monkeypatch: pytest.MonkeyPatch, capsys):
    calls(PipelineResult(successes=(DONE,), failures=(BAD,)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    assert run("calibrate", "l0.zarr", "l1.zarr") == 2
    err = capsys.readouterr().err
    assert "━" in err
    assert "scan 3 failed" in err
    assert run("calibrate", "l0.zarr", "l1.zarr", "--json") == 2
    assert "━" not in capsys.readouterr().err


# -- from simulate to plot ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_a_simulated_night_to_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    l0, l1 = tmp_path / "night.zarr", tmp_path / "l1.zarr"
    calibrate = ("calibrate", l0, l1, "--atmosphere", "closed-form")
    assert run("simulate", l0, "--scans", 3, *SMALL, "--fault", "no-off:2") == 0
    assert run(*calibrate, "--dry-run", "--json") == 0
    plan = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(one["scan"], one["would_be"]) for one in plan][:3] == [(n, "calibrate") for n in (1, 2, 3)]
    assert not l1.exists()
    assert run(*calibrate) == 2
    said = capsys.readouterr().err
    assert said.count("scan 2 failed") == 1
    assert run(*calibrate, "--scan", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 1
    assert run("status", l1, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["kind"], one.get("scan")) for one in rows] == [
        ("scan", 1), ("scan", 3), ("failure", 2), ("store", None),
    ]  # fmt: skip
    assert rows[0]["pwv_mm"] == pytest.approx(read_truth(l0).of(1).pwv_at_loads_mm, rel=0.05)
    assert None not in (rows[0]["t_sys_k"], rows[0]["t_rec_k"], rows[0]["flagged"], rows[0]["scatter"])
    assert rows[2]["error"] == "MissingOffError"
    assert rows[3]["running"] is None
    assert run("status", l1) == 0
    out, err = capsys.readouterr()
    assert "MissingOffError" in out
    assert "2 scans calibrated, 1 failed in the last run" in err
    assert run("plot", l1, 1, "--rest-ghz", "809.3") == 0
    assert run("plot", l1, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"scan": None, "figure": str(tmp_path / "l1.night.png")}
    assert run("plot", l1, 3, "--pixel", 1, "-o", tmp_path / "one.png") == 0
    for name in ("l1.scan_000001.png", "l1.night.png", "one.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert run("plot", l1, 3, "--pixel", 2) == 64
    assert run("plot", l1, 2) == 1


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_file_in_the_place_of_the_scans_ends_with_1_and_says_what_to_do(tmp_path: Path, capsys, more):
    create_raw_store(tmp_path / "l0.zarr", telescope="FYST", altitude_m=5612.0)
    (tmp_path / "l0.zarr" / "scans").write_text("x")
    assert run("calibrate", tmp_path / "l0.zarr", tmp_path / "l1.zarr", "--atmosphere", "closed-form", *more) == 1
    said = capsys.readouterr().err
    assert "scans cannot be listed: Not a directory" in said
    assert "fix: " in said


def test_status_shows_who_is_at_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    l1 = ResultStore(tmp_path / "l1.zarr").path
    with sole_owner(tmp_path / "l1.zarr.lock"):
        assert run("status", l1) == 0
        assert f"a run is going on (process {os.getpid()}" in capsys.readouterr().err
        assert run("calibrate", tmp_path / "none.zarr", l1) == 1


def test_loads_that_cannot_be_used_are_named_by_the_run_and_by_the_status(calls, tmp_path: Path, capsys):
    bad = RejectedCalibration(100002, "GainError", "resolve", "scan 100002: the loads were exchanged", "5b1c")
    result = PipelineResult(successes=(DONE,), rejected=(bad,))
    calls(result)
    assert run("calibrate", "l0.zarr", "l1.zarr") == 0
    said = capsys.readouterr().err
    assert "load calibrations that cannot be used: 100002" in said
    assert "l1.failures.json" in said
    assert run("calibrate", "l0.zarr", "l1.zarr", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rejected_calibrations"] == [100002]
    l1 = ResultStore(tmp_path / "l1.zarr").path
    write_failures(failures_path(l1), result, run_id="a", store=l1, output=l1, started="x", finished="y")
    assert run("status", l1) == 0
    out, err = capsys.readouterr()
    assert "100002" in out
    assert "GainError" in out
    assert "0 failed in the last run" in err
    assert run("status", l1, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["kind"], row.get("scan")) for row in rows] == [("rejected_calibration", 100002), ("store", None)]
    assert (rows[-1]["failed"], rows[-1]["rejected_calibrations"]) == (0, 1)


def test_failures_at_another_place_are_read_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    l1, other = ResultStore(tmp_path / "l1.zarr").path, tmp_path / "f.json"
    write_failures(
        other, PipelineResult(failures=(BAD,)), run_id="a", store=l1, output=l1, started="x", finished="y"
    )  # fmt: skip
    assert run("status", l1, "--failures", other, "--json") == 0
    bad, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert (bad["kind"], bad["failure_kind"], bad["scan"], whole["failed"]) == ("failure", "read", 3, 1)
    assert whole["last_failure"] == {"path": str(other), "run_id": "a", "finished": "y"}
    assert run("status", l1, "--failures", tmp_path / "none.json") == 1


@pytest.mark.parametrize("words", [("status",), ("plot",), ("plot", 1)])
def test_what_is_no_store_of_results_ends_with_1(tmp_path: Path, words: tuple[object, ...]):
    command, *rest = words
    assert run(command, tmp_path / "none.zarr", *rest) == 1
    assert run(command, tmp_path, *rest) == 1


# -- simulate -----------------------------------------------------------------------------------------------------


def test_what_is_simulated_is_what_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "night.zarr"
    words = ["--scans", 2, *SMALL, "--mode", "tp", "--pwv", "0.5:0.9", "--gain-drift", 0.1, "--no-noise", "--seed", 5]
    words += ["--line", "2@809.301:8", "--line", "-1@809.295:4", "--fault", "spike:2"]
    assert run("simulate", out, *words, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    plan = read_truth(out).plan
    assert [(one["scan"], one["fault"]) for one in rows] == [(1, None), (2, "spike")]
    assert (plan.pixels, plan.channels, plan.rows, plan.dumps, plan.mode, plan.seed) == (2, 32, 2, 4, "tp", 5)
    assert (plan.pwv_mm, plan.gain_drift, plan.noise) == ((0.5, 0.9), 0.1, False)
    assert [(one.peak_k, one.freq_hz, one.fwhm_hz) for one in plan.lines] == [(2, 809.301e9, 8e6), (-1, 809.295e9, 4e6)]
    assert RawStore(out).scans() == [1, 2, SHARED + 1]
    assert run("simulate", out, *words) == 1


def test_one_amount_of_water_is_that_all_night(tmp_path: Path):
    assert run("simulate", tmp_path / "n.zarr", "--scans", 1, *SMALL, "--pwv", "0.7") == 0
    assert read_truth(tmp_path / "n.zarr").plan.pwv_mm == (0.7, 0.7)


def test_a_dry_simulation_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("simulate", tmp_path / "n.zarr", "--scans", 2, "--fault", "opaque:2", "--dry-run", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        {"scan": 1, "type": "otf", "fault": None, "owed": None},
        {"scan": 2, "type": "tp", "fault": "opaque", "owed": "OpaqueError"},
    ]
    assert not (tmp_path / "n.zarr").exists()


def test_help_lists_every_kind_of_fault(capsys: pytest.CaptureFixture[str]):
    assert run("simulate", "--help") == 0
    said = capsys.readouterr().out
    assert not [kind for kind in FAULT_KINDS if kind not in said]


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_ends_soon_and_is_gone_on_with(tmp_path: Path):
    l0, l1 = tmp_path / "night.zarr", tmp_path / "l1.zarr"
    assert run("simulate", l0, "--scans", 40, *SMALL) == 0
    argv = [sys.executable, "-m", "nightbeam", "scans", "calibrate", str(l0), str(l1), "--atmosphere", "closed-form"]
    process = subprocess.Popen([*argv, "--json"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    last = json.loads(process.communicate(timeout=60)[0].splitlines()[-1])
    assert time.monotonic() - begin < 20
    assert (process.returncode, last["stopped"]) == (143, True)
    assert (l1 / "scans" / scan_name(first["scan"])).exists()
    assert run("calibrate", l0, l1, "--atmosphere", "closed-form") == 0
    assert len(ResultStore(l1).scans()) == 40
