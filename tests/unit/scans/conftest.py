"""Scans as they are observed: on the fly, with loads and without noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightbeam.scans.model import Phase, RawScan, ScanInfo
from nightbeam.scans.results import ResultStore, arrays_of
from nightbeam.scans.stages import calibrate_full, determine_atmosphere_full, load_of_scan, prepare_otf
from nightbeam.testing.dish import Dish, Line

LO_HZ = 803.3e9


@pytest.fixture
def make_scan() -> Callable[..., RawScan]:
    """Make a scan of 2 pixels and 16 channels; keywords replace its parts."""

    def make(number: int = 7, dumps: int = 6, **parts: object) -> RawScan:
        rng = np.random.default_rng(number)
        freq = LO_HZ + 6e9 + 1e6 * np.arange(16)
        info = ScanInfo(
            scan=number, obs_type="otf", source="OMC1", lo_hz=LO_HZ, signal_sideband="USB", tuning_id="co7-6",
            backend="dFTS", t_hot_k=293.0, t_cold_k=78.0, altitude_m=5612.0, pressure_hpa=520.0, temperature_k=265.0,
            humidity_pct=20.0, adc_ceiling=4e7, complete=True,
        )  # fmt: skip
        usual: dict[str, object] = {
            "info": info,
            "counts": rng.uniform(5e6, 7e6, (dumps, 2, 16)).astype(np.float32),
            "phase": np.array([Phase.OFF, *[Phase.ON] * (dumps - 2), Phase.OFF], np.uint8),
            "time_s": 5.2e9 + np.arange(dumps, dtype=float),
            "duration_s": np.ones(dumps),
            "elevation_deg": np.full(dumps, 48.0),
            "azimuth_deg": np.full(dumps, 120.0),
            "lon_off_deg": np.zeros((dumps, 2)),
            "lat_off_deg": np.zeros((dumps, 2)),
            "row": np.zeros(dumps, np.int32),
            "freq_hz": freq,
            "image_hz": 2 * LO_HZ - freq,
            "gain_signal": np.full((2, 1), 0.5, np.float32),
            "main_beam_eff": np.full(2, 0.8, np.float32),
            "flag": np.zeros((dumps, 2), np.uint8),
        }
        return RawScan(**(usual | parts))  # type: ignore[arg-type]

    return make


def calibrated(dish: Dish, number: int, at_s: float) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a scan, and what is said of it."""
    scan, load = dish.otf(number, at_s=at_s), load_of_scan(dish.calibration(1))
    prepared = prepare_otf(scan)
    air = determine_atmosphere_full(scan, load, dish.air, prepared)
    result = calibrate_full(scan, prepared, load, air, dish.air)
    assert air.pwv is not None
    said = {
        "obs_type": "otf", "source": "OMC1", "fingerprint": "abc", "calibration_scans": [1], "pwv_mm": air.pwv_mm,
        "pwv_source": air.source, "warnings": ["it was late"], "seconds": 0.25, "timings": {"load": 0.1},
        "quality": {
            "t_sys_k": float(np.nanmedian(result.t_sys)), "t_rec_k": 180.0, "flagged": 0.125,
            "scatter": float(np.nanmedian(result.scatter)), "pwv_error_mm": float(air.pwv.error_mm[0]),
        },
        "finished": "2025-11-25T01:02:03Z",
    }  # fmt: skip
    return arrays_of(scan, prepared, load, air, result), said


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two calibrated scans, 2 (a pixel is dead in one channel) and 3; not to be changed."""
    dish = Dish(pixels=2, channels=32, lines=(Line(5.0, 809.3e9, 8e6),))
    store = ResultStore(tmp_path_factory.mktemp("results") / "l1.zarr", l0="/data/l0.zarr")
    for number in (2, 3):
        arrays, said = calibrated(dish, number, 100.0 * number)
        if number == 2:
            arrays["ta_star"][:, :, 5] = np.nan
            arrays["ta_star"][:, 1, 9] = np.nan
        store.write(number, arrays, said)
    return store.path
