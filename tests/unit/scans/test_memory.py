"""What a run has in memory: two raw scans and a result, however many scans there are, or what it is allowed to have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

#: Of the scans that are measured: 190 dumps of 64 pixels of 2048 channels.
SCAN_MB = 190 * 64 * 2048 * 4 / 1e6
#: Interpreter, libraries and a small run: 167 to 242 MB, as numba finds its code in its cache or has to make it.
BASE_MB = 250.0
#: What a run may have besides: chunks of 8 MB in zarr's hands (four are read and four are written at a time, each in
#: two or three copies), means of loads and of references, the table of the sky. Less than three scans and less than
#: what would hide a fourth: 720 to 740 MB in all have been measured, whatever the number of scans.
ALLOWANCE_MB = 230.0
MEASURED = """
import json, sys
from pathlib import Path
from nightbeam.scans.model import CalibrationOptions, PipelineConfig
from nightbeam.scans.worker import calibrate_store

def peak_mb():
    # Not ru_maxrss: it begins with the size of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

place, scans, options = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
config = PipelineConfig(atmosphere="closed-form", retries=0, memory_budget_bytes=options.pop("budget", None),
                        options=CalibrationOptions(**options))
calibrate_store(place / "small.zarr", place / "small.l1.zarr", config)
base = peak_mb()
from dataclasses import replace
result = calibrate_store(place / "l0.zarr", place / "l1.zarr", replace(config, scans=tuple(scans), force=True))
print(json.dumps([base, peak_mb(), len(result.successes), len(result.failures)]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of sixteen scans of 100 MB, which are links to one, and a small one to warm up with."""
    place = tmp_path_factory.mktemp("memory")
    made = """
import sys
from pathlib import Path
from nightbeam.testing.night import NightPlan, simulate_night
place = Path(sys.argv[1])
simulate_night(place / "small.zarr", NightPlan(scans=1, pixels=2, channels=64, rows=2, dumps=5))
wide = NightPlan(scans=1, pixels=64, channels=2048, rows=9, dumps=20, off_s=2.0)
simulate_night(place / "l0.zarr", wide)
"""
    subprocess.run([sys.executable, "-c", made, str(place)], check=True, timeout=200)
    first = place / "l0.zarr" / "scans" / "scan_000001"
    for number in range(2, 17):
        other = first.with_name(f"scan_{number:06d}")
        other.mkdir()
        for path in sorted(first.rglob("*")):
            target = other / path.relative_to(first)
            target.mkdir() if path.is_dir() else target.hardlink_to(path)
    return place


def peak_mb(place: Path, scans: int, **options: object) -> float:
    """Return the most that a run has had in memory, after a small one before it."""
    given = [str(place), json.dumps(list(range(1, scans + 1))), json.dumps(options)]
    done = subprocess.run([sys.executable, "-c", MEASURED, *given], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    base, peak, good, bad = json.loads(done.stdout)
    assert (good, bad) == (scans, 0)
    print(f"{scans} scans, {options}: {base:.0f} MB before, {peak:.0f} MB at most")  # noqa: T201
    return float(peak)


@pytest.mark.slow
def test_two_scans_and_a_result_are_in_memory_however_many_there_are(place: Path):
    few, many = peak_mb(place, 5), peak_mb(place, 16)
    assert many < BASE_MB + 3 * SCAN_MB + ALLOWANCE_MB
    # How much of it comes at the same moment is chance; that every scan leaves something would show itself.
    assert many < few + SCAN_MB


@pytest.mark.slow
def test_a_budget_is_kept_by_blocks_of_pixels(place: Path):
    assert peak_mb(place, 4, budget=60_000_000) < BASE_MB + 60 + ALLOWANCE_MB
