"""Scans as they are observed, on the fly, with loads and without noise; and small nights of them, calibrated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from nightbeam.scans.files import scan_name
from nightbeam.scans.model import Phase, PipelineConfig, RawScan, ScanInfo
from nightbeam.scans.results import ResultStore, arrays_of
from nightbeam.scans.stages import calibrate_full, determine_atmosphere_full, load_of_scan, prepare_otf
from nightbeam.testing.dish import Dish, Line
from nightbeam.testing.night import NightPlan, simulate_night

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


# -- whole stores -----------------------------------------------------------------------------------------------------

#: A map, two positions and another map; all share one calibration, of number `SHARED` + 1.
NIGHT = NightPlan(scans=3, pixels=4, channels=128, rows=2, dumps=5, calibration_every=6, gain_drift=0.0)
#: Without waiting, and with the air that the night was simulated with.
CONFIG = PipelineConfig(atmosphere="closed-form", retry_wait_s=0.01)
#: What a result says of the run that made it.
_OF_RUN = frozenset({"timings", "seconds", "finished"})

Contents = dict[str, tuple[dict[str, bytes], dict[str, Any]]]


@pytest.fixture
def config() -> PipelineConfig:
    """How most tests calibrate."""
    return CONFIG


@pytest.fixture(scope="session")
def _written_night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("night") / "l0.zarr"
    simulate_night(path, NIGHT)
    return path


@pytest.fixture
def l0(_written_night: Path, tmp_path: Path) -> Path:
    """A small night of a test's own: to be read, or to be spoilt."""
    return Path(shutil.copytree(_written_night, tmp_path / "l0.zarr"))


@pytest.fixture
def l1(tmp_path: Path) -> Path:
    """Where its results go."""
    return tmp_path / "l1.zarr"


@pytest.fixture
def group_of() -> Callable[[Path, int], Any]:
    """Open the group of a scan of a store, to change it."""
    return lambda store, scan: zarr.open_group(store, mode="r+", use_consolidated=False)[f"scans/{scan_name(scan)}"]


@pytest.fixture
def chunk_of() -> Callable[[Path, int], Path]:
    """Return the file of the first chunk of a scan's counts, to damage it."""
    return lambda store, scan: store / "scans" / scan_name(scan) / "counts" / "c" / "0" / "0" / "0"


@pytest.fixture
def contents() -> Callable[..., Contents]:
    """Return all that is in a store of results, each file to the byte, but for when and how fast it was made."""

    def of(store: Path, *without: str) -> Contents:
        found: Contents = {}
        for place in sorted((store / "scans").glob("scan_*")):
            files = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
            said = json.loads(files.pop("zarr.json"))["attributes"]
            found[place.name] = files, {name: said[name] for name in said.keys() - _OF_RUN - {*without}}
        return found

    return of


@pytest.fixture
def leftovers() -> Callable[[Path], list[Path]]:
    """Return what lies about a store of results that a run should not have left."""

    def of(store: Path) -> list[Path]:
        every = [*store.parent.iterdir(), *store.rglob("*")]
        return [path for path in every if path.suffix in (".staging", ".part", ".partial")]

    return of
