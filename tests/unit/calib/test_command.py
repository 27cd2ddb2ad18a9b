import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nightbeam.calib.files import entry_path, list_entries
from nightbeam.cli import main
from nightbeam.testing.calib_service import FakeCalibService
from nightbeam.testing.xtc2_files import detector, write_run

EXP, UID = "mfxl1033223", "jungfrau_0123456-789_abc"


@pytest.fixture(autouse=True)
def _plain(_clean_environ, monkeypatch):
    for name in ("LCLS_CALIB_HTTP", "CALIB_JWT", "SIT_PSDM_OFFSITE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake():
    with FakeCalibService(hang_s=60.0) as service:
        service.add_detector(UID)
        service.deploy(EXP, UID, "pedestals", np.full((3, 2, 4, 4), 1.5, np.float32), run=1)
        service.deploy(EXP, UID, "geometry", "# geometry\n", run=1)
        yield service


@pytest.fixture
def xtc(tmp_path):
    directory = tmp_path / "xtc"
    directory.mkdir()
    jf, hsd = detector("jf", "jungfrau", UID.split("_")[1:]), detector("hsd", "hsd", ["detnum1234"])
    write_run(directory, [jf, hsd], experiment=EXP, run=3)
    return directory


def run(*argv):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in argv])
    return stopped.value.code


@pytest.fixture
def arguments(fake, cache, xtc):
    return ["-e", EXP, "--xtc-dir", xtc, "--output-dir", cache, "--service-url", fake.url]


def test_one_pass_caches_the_latest_run_and_shows_it(arguments, cache, capsys):
    assert run("calib", "prefetch", *arguments, "--once", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["run"], said["action"]) == (3, "fetched")
    found = {(d["detector"], d["ctype"]) for d in said["detectors"]}
    assert found == {("hsd", None), ("jf", "geometry"), ("jf", "pedestals")}
    assert entry_path(cache, EXP, 3).exists()


def test_a_table_for_people_and_the_log_on_stderr(arguments, capsys):
    assert run("calib", "prefetch", *arguments, "--once", "--timestamp", "--log-level", "info") == 0
    found = capsys.readouterr()
    assert "pedestals" in found.out
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO .*fetched", found.err, re.MULTILINE)
    assert run("calib", "prefetch", *arguments, "--once") == 0
    assert re.search(r"^INFO .*current", capsys.readouterr().err, re.MULTILINE)


def test_a_skipped_detector_is_left_out_and_old_runs_are_removed(arguments, cache, xtc):
    assert run("calib", "prefetch", *arguments, "--once", "--skip", "hsd") == 0
    assert list_entries(cache)[0].skipped == ("hsd",)
    write_run(xtc, [detector("jf", "jungfrau", UID.split("_")[1:])], experiment=EXP, run=4)
    assert run("calib", "prefetch", *arguments, "--once", "--keep", "1") == 0
    assert [line.run for line in list_entries(cache)] == [4]


def test_a_pass_that_fails_is_the_exit_code_of_once(arguments, fake, capsys, tmp_path):
    fake.fail(None, "401")
    assert run("calib", "prefetch", *arguments, "--once") == 77
    assert "401" in capsys.readouterr().err
    assert run("calib", "prefetch", "-e", EXP, "--xtc-dir", tmp_path / "no", "--once") == 66


def test_nothing_to_do_is_no_failure(arguments, capsys):
    assert run("calib", "prefetch", *arguments[2:], "-e", "other0001", "--once") == 0
    assert "no run of other0001" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--interval", "0"], ["--log-level", "LOUD"], ["--keep", "0"], ["--expcode"], ["--interval", "soon"]]
)
def test_wrong_usage_is_64(arguments, wrong):
    assert run("calib", "prefetch", *arguments, *wrong) == 64


def test_experiment_and_directory_are_needed_from_somewhere(tmp_path, monkeypatch):
    assert run("calib", "prefetch", "--once") == 64
    monkeypatch.setenv("NIGHTBEAM_CALIB__EXPERIMENT", "../x")
    assert run("calib", "prefetch", "--once") == 78


def test_the_settings_say_what_the_command_line_does_not(fake, cache, xtc, monkeypatch):
    for name, value in {"EXPERIMENT": EXP, "XTC_DIR": xtc, "OUTPUT_DIR": cache, "SERVICE_URL": fake.url}.items():
        monkeypatch.setenv(f"NIGHTBEAM_CALIB__{name}", str(value))
    assert run("calib", "prefetch", "--once") == 0
    assert [line.run for line in list_entries(cache)] == [3]


def test_status_show_and_gc_look_at_the_cache(arguments, cache, xtc, capsys):
    run("calib", "prefetch", *arguments, "--once")
    write_run(xtc, [detector("jf", "jungfrau", UID.split("_")[1:])], experiment=EXP, run=4)
    run("calib", "prefetch", *arguments, "--once", "--skip", "jf2")
    bad = entry_path(cache, EXP, 9)
    bad.write_bytes(b"rubbish")
    bad.chmod(0o640)
    capsys.readouterr()
    assert run("calib", "status", "--output-dir", cache, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["run"], line["constants"]) for line in lines] == [(3, 2), (4, 2), (9, None)]
    assert "no index" in lines[2]["problem"]
    assert run("calib", "status", EXP, "--output-dir", cache, "--verify") == 65

    assert run("calib", "show", f"{EXP}:r0003", "--output-dir", cache, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    pedestals = next(row for row in rows if row["ctype"] == "pedestals")
    assert (pedestals["dtype"], pedestals["shape"], pedestals["valid_from"]) == ("<f4", [3, 2, 4, 4], 1)
    assert {row["note"] for row in rows if row["detector"] == "hsd"} == {"no constants"}
    assert run("calib", "show", f"{EXP}:r0003", "--output-dir", cache) == 0
    assert run("calib", "show", f"{EXP}:r0077", "--output-dir", cache) == 66
    assert run("calib", "show", f"{EXP}:r0009", "--output-dir", cache) == 65
    assert run("calib", "show", "nonsense", "--output-dir", cache) == 65

    capsys.readouterr()
    assert run("calib", "gc", "--output-dir", cache, "--keep", "2", "--dry-run", "--json") == 0
    assert [json.loads(line)["run"] for line in capsys.readouterr().out.splitlines()] == [9]  # damaged
    assert [line.run for line in list_entries(cache)] == [3, 4, 9]
    assert run("calib", "gc", EXP, "--output-dir", cache, "--keep", "1") == 0
    assert [line.run for line in list_entries(cache)] == [4]
    assert run("calib", "status", "--output-dir", cache / "no") == 66


# --- signals


def start(arguments, *more):
    argv = [sys.executable, "-m", "nightbeam", "calib", "prefetch", *map(str, arguments), *more]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_loop_ends_at_once_and_cleanly_while_it_sleeps(arguments, cache, number):
    process = start(arguments, "--interval", "600", "--json")
    assert json.loads(process.stdout.readline())["action"] == "fetched"
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0
    assert f"ended by {signal.Signals(number).name}" in err
    assert "Traceback" not in err


def test_a_signal_while_it_fetches_ends_it_at_once_and_leaves_nothing(arguments, cache, fake):
    fake.fail(None, "timeout", path="/gridfs/")
    process = start(arguments, "--once")
    wait_for(lambda: list(cache.glob("*.inprogress")))
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    assert list(cache.glob("calibconst*")) == []


WITHIN_THE_LOCK = """
import os, signal, sys, threading
def send(frame, event, argument):
    if frame.f_code.co_name == "wait" and isinstance(frame.f_locals.get("self"), threading.Condition):
        sys.settrace(None)
        os.kill(os.getpid(), signal.SIGTERM)
from nightbeam.cli import main
sys.settrace(send)
main(sys.argv[1:])
"""


def test_a_signal_in_the_one_moment_when_sleep_holds_its_lock_ends_the_loop(arguments):
    argv = [sys.executable, "-c", WITHIN_THE_LOCK, "calib", "prefetch", *map(str, arguments), "--interval", "60"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "ended by SIGTERM" in done.stderr


@pytest.mark.parametrize(("minutes", "code"), [("inf", 65), ("1e18", 65), ("nan", 78)])
def test_an_interval_that_cannot_be_slept_is_refused(arguments, minutes, code):
    assert run("calib", "prefetch", *arguments, "--interval", minutes) == code


def test_handlers_are_as_before_afterwards(arguments):
    before = signal.getsignal(signal.SIGTERM)
    run("calib", "prefetch", *arguments, "--once")
    assert signal.getsignal(signal.SIGTERM) is before
