"""Runs that are killed at any moment: what is there is whole, and the next run finishes what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Run in an interpreter of its own: children are forked from it before it has a thread, so that they need not import.
SERVER = '''
import os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np
from nightbeam.scans.model import PipelineConfig
from nightbeam.scans.worker import calibrate_store
from nightbeam.scans.stages import calibrate_full, determine_atmosphere_full, load_of_scan, prepare_otf
from nightbeam.scans.kernel import flag_bytes
from nightbeam.testing.dish import Dish
from nightbeam.testing.night import Fault, NightPlan, simulate_night

PLACE = Path(sys.argv[1])
CONFIG = PipelineConfig(atmosphere="closed-form", retries=0)
FAULTS = (Fault("flipped-byte", 2), Fault("nan-samples", 3))
PLAN = NightPlan(scans=4, pixels=2, channels=64, rows=2, dumps=3, calibration_every=6, faults=FAULTS)

def warm_up():
    """Have the compiled kernel in memory, without a thread."""
    dish = Dish(pixels=2, channels=64)
    scan, load = dish.otf(2), load_of_scan(dish.calibration(1))
    prepared = prepare_otf(scan)
    air = determine_atmosphere_full(scan, load, dish.air, prepared)
    out = calibrate_full(scan, prepared, load, air, dish.air).ta_star
    flag_bytes(out.view(np.uint32), np.empty(out.shape, np.uint8))

def child(work):
    """Start work in a process of its own; it says when it begins."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(write, b"x")
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.read(read, 1)
    os.close(read), os.close(write)
    return pid

def finished(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def run(l1, force=False):
    from dataclasses import replace
    return lambda: calibrate_store(PLACE / "l0.zarr", l1, replace(CONFIG, force=force))

warm_up()
assert finished(child(lambda: simulate_night(PLACE / "l0.zarr", PLAN))) == 0
whole, lives = PLACE / "whole.zarr", []
for _ in range(3):
    shutil.rmtree(whole, ignore_errors=True)
    begun = time.monotonic()
    assert finished(child(run(whole))) == 0
    lives.append(time.monotonic() - begun)
life, dice = min(lives), random.Random(20_251_002)
print("life", round(life, 3))
for number in range(int(sys.argv[2])):
    l1, replacing = PLACE / f"{number:03d}" / "l1.zarr", number % 3 == 2
    l1.parent.mkdir()
    if replacing:
        shutil.copytree(whole, l1)
    # One moment in each equal part of a run's life.
    at = life * (number + dice.random()) / int(sys.argv[2])
    status = 0
    while status == 0:  # it may have been quicker this time: what was alive no more does not count
        pid = child(run(l1, force=replacing))
        time.sleep(at)
        os.kill(pid, signal.SIGKILL)
        status = finished(pid)
        at *= 0.9
    assert status == -signal.SIGKILL, status
    parts = [str(p.relative_to(l1.parent)) for p in l1.parent.rglob("*") if p.suffix in (".part", ".partial")]
    stage = len(list((l1 / "scans").glob("scan_*"))) if (l1 / "scans").exists() else -1
    assert finished(child(run(l1))) == 0
    print("killed", number, "results", stage, "parts", len(parts), "staging", int(bool(parts)), flush=True)
'''
KILLS = 54


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_who_is_killed_at_any_moment_loses_nothing_and_leaves_nothing(tmp_path: Path, contents, leftovers):
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path), str(KILLS)], capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr[-3000:]
    met = [line.split() for line in done.stdout.splitlines() if line.startswith("killed")]
    assert len(met) == KILLS, "each kill met a living process"
    results = {line[3] for line in met}
    assert results >= {"-1", "3"}, "at the begin, near the end"
    assert results & {"1", "2"}, "in the middle"
    expected = contents(tmp_path / "whole.zarr")
    assert sorted(expected) == [f"scan_{scan:06d}" for scan in (1, 3, 4)]
    for number in range(KILLS):
        place = tmp_path / f"{number:03d}"
        assert contents(place / "l1.zarr") == expected, number
        assert leftovers(place / "l1.zarr") == []
        assert {path.name for path in place.iterdir()} == {"l1.zarr", "l1.zarr.lock", "l1.failures.json"}
        assert "StoreReadError" in (place / "l1.failures.json").read_text()
