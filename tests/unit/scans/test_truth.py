"""Whole nights against their truth: water, receivers and sources within the errors that are stated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nightbeam.scans.model import CalibrationOptions
from nightbeam.scans.worker import calibrate_store
from nightbeam.testing.dish import Line
from nightbeam.testing.night import NightPlan, simulate_night, truth_spectrum

pytestmark = pytest.mark.slow

STILL = NightPlan(
    scans=2, pixels=4, channels=256, rows=4, dumps=16, pwv_mm=(0.6, 0.6), gain_drift=0.0,
    gain_signal=(0.35, 0.45, 0.55, 0.65), lines=(Line(8.0, 809.3e9, 40e6), Line(-2.0, 809.25e9, 10e6)), seed=11,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, {}),
        ({}, {"scale": "load"}),
        ({}, {"sky": "off", "common_pwv": False}),
        ({"gain_drift": 0.02}, {}),
        ({"elevation_deg": (15.0, 16.0), "pwv_mm": (0.3, 0.3)}, {}),
        ({"pwv_mm": (1.3, 1.3), "elevation_deg": (60.0, 62.0), "lines": (Line(60.0, 809.3e9, 40e6),)}, {}),
        ({"gain_signal": (0.9, 0.97, 0.99, 1.0)}, {}),
    ],
    ids=["still", "load-scale", "own-sky", "drift", "low", "near-opaque", "single-sideband"],
)
def test_a_night_is_found_within_the_errors_that_are_stated(tmp_path, config, group_of, change, options):
    plan = replace(STILL, **change)
    truth = simulate_night(tmp_path / "l0.zarr", plan)
    result = calibrate_store(
        tmp_path / "l0.zarr", tmp_path / "l1.zarr", replace(config, options=CalibrationOptions(**options))
    )
    assert result.exit_code == 0, result.failures
    dish = plan.dish()
    for one in result.successes:
        group = group_of(tmp_path / "l1.zarr", one.scan)
        # Between hot load and sky the gain grows by 2 x 20 s of 2 % an hour: 2.2e-4 of some 430 K, by dJ/dpwv.
        drift_mm = 0.0 if plan.gain_drift == 0 else 2e-3
        off = group["pwv"][...] - truth.of(one.scan).pwv_mm
        assert np.all(np.abs(off) < 4 * group["pwv_error"][...] + drift_mm)
        # Of T_rec, for loads of 20 s and channels of 1 MHz: (T_rec + J) / sqrt(B t) of both, over their difference.
        hot_k, cold_k = dish.t_rec_k + 274.0, dish.t_rec_k + 60.0
        slope = cold_k / 214.0
        sigma = np.hypot(slope * hot_k, (1 + slope) * cold_k) / np.sqrt(1e6 * 20.0)
        pulls = (group["trec"][...] - dish.t_recs) / sigma
        assert pulls.std() == pytest.approx(1.0, abs=0.12)
        # The hot load comes 20 s before the cold one: 1.1e-4 of 454 K over 214 K, times 240 K, are 0.056 K.
        assert abs(pulls.mean()) < 0.2 + (0.0 if plan.gain_drift == 0 else 0.056 / sigma)
        pulls = (group["ta_star"][...] - truth_spectrum(truth, one.scan)) * np.sqrt(group["weight"][...])[:, :, None]
        assert not group["flag"][...].any()
        assert pulls.std() == pytest.approx(1.0, abs=0.06)
        assert abs(pulls.mean()) < 0.12
        assert one.quality["scatter"] == pytest.approx(1.0, abs=0.06)
