"""Blocks of pixels: whatever the memory, the results are the same to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightbeam.scans.files import RawStore, create_raw_store, write_raw_scan
from nightbeam.scans.model import CalibrationOptions, Phase, RawScan
from nightbeam.scans.worker import calibrate_store
from nightbeam.testing.dish import Dish, Line, Pointing, point_calibration, point_otf

pytestmark = pytest.mark.slow

PIXELS, CHANNELS, DUMPS = 19, 48, 17
#: Bytes of one pixel of the map, three times: for so much memory go so many pixels through together.
PIXEL = 3 * 4 * DUMPS * CHANNELS
GAINS = tuple(np.linspace(0.3, 0.7, PIXELS))


def appended(pointing: Pointing, phase: Phase) -> Pointing:
    """Add dumps of a phase at the end, as long as the last one."""
    rest = {
        name: np.append(getattr(pointing, name), getattr(pointing, name)[-1:])
        for name in ("duration_s", "elevation_deg", "lon_deg", "lat_deg", "row")
    }
    time_s = np.append(pointing.time_s, pointing.time_s[-1] + pointing.duration_s[-1])
    return replace(pointing, phase=np.append(pointing.phase, np.uint8(phase)), time_s=time_s, **rest)


def without(scan: RawScan, phase: Phase) -> RawScan:
    kept = scan.phase != phase
    names = ("phase", "time_s", "duration_s", "elevation_deg", "azimuth_deg", "lon_off_deg", "lat_off_deg", "row",
             "flag", "counts")  # fmt: skip
    return replace(scan, **{name: getattr(scan, name)[kept] for name in names})


def with_zero(scan: RawScan, level: float) -> RawScan:
    """Have all counts stand on a level, which the dumps of phase ZERO show alone."""
    counts = scan.counts + np.float32(level) * np.linspace(0.9, 1.1, CHANNELS, dtype=np.float32)
    empty = level * np.linspace(0.9, 1.1, CHANNELS)
    counts[scan.phase == Phase.ZERO] = empty.astype(np.float32)
    return replace(scan, counts=counts)


def observe(path: Path, kind: str) -> None:
    """Write loads before and after a map, with bad pixels, channels and samples."""
    dish = Dish(pixels=PIXELS, channels=CHANNELS, gain_signal=GAINS, gain_drift=0.2, lines=(Line(5.0, 809.3e9, 8e6),))
    create_raw_store(path, telescope="FYST", altitude_m=5612.0)
    loads = [(1, point_calibration()), (3, point_calibration(at_s=300.0))]
    map_ = point_otf(rows=2, dumps=7)
    if kind == "zero":
        loads = [(number, appended(where, Phase.ZERO)) for number, where in loads]
    for number, where in loads:
        scan = dish.observe(number, "calibration", where)
        scan = without(scan, Phase.SKY) if kind == "no-sky" else scan
        write_raw_scan(path, with_zero(scan, 1e6) if kind == "zero" else scan)
    scan = dish.observe(2, "otf", map_)
    scan = with_zero(scan, 1e6) if kind == "zero" else scan
    counts, flag = scan.counts.copy(), scan.flag.copy()
    counts[3, 2, 7], counts[4, 9, 8], counts[:, 12], counts[5, 16, 20] = np.nan, 0.0, 0.0, 9e7
    flag[8, 5], flag[6, 18], flag[scan.phase == Phase.OFF, 14] = 1, 1, 1
    write_raw_scan(path, replace(scan, counts=counts, flag=flag))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("usual", {}), ("usual", {"scale": "load"}), ("usual", {"scale": "load", "cal_mode": "linear"}),
        ("usual", {"sky": "off"}), ("usual", {"common_pwv": False, "off_mode": "mean"}),
        ("usual", {"elevation_correction": "model", "sideband_mode": "continuum"}),
        ("zero", {}), ("zero", {"scale": "load", "sky": "off"}), ("no-sky", {}),
    ],
    ids=str,
)  # fmt: skip
def test_results_are_the_same_to_the_bit_for_any_memory(tmp_path, config, contents, kind, options: dict[str, Any]):
    observe(tmp_path / "l0.zarr", kind)
    config = replace(config, options=CalibrationOptions(**options), retries=0)
    found = {}
    for pixels in (PIXELS, 8, 5, 1):
        l1 = tmp_path / f"{pixels}.zarr"
        result = calibrate_store(tmp_path / "l0.zarr", l1, replace(config, memory_budget_bytes=PIXEL * pixels))
        assert result.exit_code == 0, result.failures
        found[pixels] = contents(l1)["scan_000002"]
    for pixels in (8, 5, 1):
        assert found[pixels][0] == found[PIXELS][0], pixels
        assert found[pixels][1] == found[PIXELS][1], pixels
    assert found[1][1]["quality"]["flagged"] > 1 / PIXELS


def test_a_zero_level_changes_nothing_but_the_noise_of_its_own_dumps(tmp_path, config, group_of):
    """Of loads and map: what stands on it comes off, to what float32 keeps of counts on a level of 1e6."""
    ta_star = []
    for kind in ("usual", "zero"):
        observe(tmp_path / f"{kind}.zarr", kind)
        calibrate_store(tmp_path / f"{kind}.zarr", tmp_path / f"{kind}.l1.zarr", config)
        group = group_of(tmp_path / f"{kind}.l1.zarr", 2)
        ta_star.append((group["ta_star"][...], group["trec"][...], float(group.attrs["pwv_mm"])))
    good = np.isfinite(ta_star[0][0]) & np.isfinite(ta_star[1][0])
    assert good.mean() > 0.85  # two of nineteen pixels are dead or without a reference
    # One float32 step of 8e6 counts is half a count: 3e-8 of the system temperature of some 3000 K, here and there.
    assert ta_star[1][0][good] == pytest.approx(ta_star[0][0][good], abs=0.05)
    assert ta_star[1][2] == pytest.approx(ta_star[0][2], rel=1e-4)


@pytest.mark.parametrize("kind", ["u4", "i4", "f8", ">f4"])
def test_counts_of_another_type_are_calibrated_in_blocks_and_whole_alike(tmp_path, config, contents, group_of, kind):
    l0 = tmp_path / "l0.zarr"
    observe(l0, "usual")
    for scan in (1, 2, 3):
        values = np.nan_to_num(group_of(l0, scan)["counts"][...])
        group_of(l0, scan).create_array(
            "counts",
            data=values.astype(kind),
            chunks=(4, 8, CHANNELS),
            overwrite=True,
            config={"write_empty_chunks": True},
        )
    found = []
    for pixels in (PIXELS, 3):
        result = calibrate_store(l0, tmp_path / f"{pixels}.zarr", replace(config, memory_budget_bytes=PIXEL * pixels))
        assert result.exit_code == 0, result.failures
        found.append(contents(tmp_path / f"{pixels}.zarr"))
    assert found[0] == found[1]
    read = RawStore(l0).read(2, into=np.empty(DUMPS * PIXELS * CHANNELS, np.float32), dumps=slice(3, 9)).counts
    assert np.array_equal(read, group_of(l0, 2)["counts"][3:9].astype(np.float32))
