"""Scans as they are observed: on the fly, with loads and without noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nightbeam.scans.model import Phase, RawScan, ScanInfo

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
