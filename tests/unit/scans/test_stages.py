"""Whole calibrations against a telescope whose sky, water and receivers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nightbeam.atmosphere import ClosedFormAtmosphere
from nightbeam.core.errors import ConfigError
from nightbeam.scans.model import (
    AtmosphereFitError,
    CalibrationOptions,
    CalibrationResult,
    Flag,
    MissingOffError,
    MissingOnError,
    OpaqueError,
    Phase,
    RawScan,
    ScanSchemaError,
    UnsupportedModeError,
)
from nightbeam.scans.stages import calibrate_full, determine_atmosphere_full, load_of_scan, prepare_otf, prepare_tp
from nightbeam.testing.dish import Dish, Line

pytestmark = pytest.mark.slow

LINE = Line(5.0, 809.3e9, 40e6)
QUIET = {"noise": False, "lines": (LINE,)}


def calibrated(dish: Dish, scan: RawScan, load: RawScan | None = None, **options: object) -> CalibrationResult:
    chosen = CalibrationOptions(**options)  # type: ignore[arg-type]
    prepared = prepare_otf(scan, options=chosen)
    found = load_of_scan(load or dish.calibration(1), options=chosen)
    air = determine_atmosphere_full(scan, found, dish.air, prepared, options=chosen)
    return calibrate_full(scan, prepared, found, air, dish.air, options=chosen)


def truth(dish: Dish, scan: RawScan) -> np.ndarray:
    on = scan.phase == Phase.ON
    lines = [
        sum(line.spectrum(dish.freq_hz, scan.lon_off_deg[on, p], scan.lat_off_deg[on, p]) for line in dish.lines)
        for p in range(dish.pixels)
    ]
    return np.stack(lines, axis=1)


@pytest.mark.parametrize("scale", ["off", "load"])
@pytest.mark.parametrize("pwv_mm", [0.1, 0.62, 1.0])
def test_without_noise_the_line_is_what_it_was(scale, pwv_mm):
    dish = Dish(pwv_mm=pwv_mm, gain_signal=(0.4, 0.5, 0.55, 0.7), **QUIET)
    scan = dish.otf(2)
    found = calibrated(dish, scan, scale=scale)
    assert found.ta_star == pytest.approx(truth(dish, scan), abs=5e-3)
    assert not found.flag.any()


def test_load_and_water_are_what_they_were():
    dish = Dish(noise=False, gain_signal=(0.4, 0.5, 0.55, 0.7))
    load = load_of_scan(dish.calibration(1))
    assert load.gain.gamma == pytest.approx(dish.gammas, rel=1e-5)
    assert load.gain.t_rec == pytest.approx(dish.t_recs, rel=1e-4)
    scan = dish.otf(2)
    air = determine_atmosphere_full(scan, load, dish.air, prepare_otf(scan))
    assert air.pwv_mm == pytest.approx(0.62, rel=1e-4)
    assert (air.source, air.tr_s.shape) == ("fit", (1, 256))


def test_with_noise_the_residuals_are_as_wide_as_the_weights_say():
    dish = Dish(channels=512, lines=(LINE,), seed=9)
    scan = dish.otf(2, rows=4, dumps=20)
    found = calibrated(dish, scan)
    pulls = (found.ta_star - truth(dish, scan)) * np.sqrt(found.weight)[:, :, None]
    assert pulls.std() == pytest.approx(1.0, abs=0.06)
    assert abs(pulls.mean()) < 0.05


def test_a_drift_of_the_gain_spoils_the_load_scale_and_not_the_other():
    dish = Dish(gain_drift=0.1, **QUIET)  # ten per cent in the hour between the loads and the scan
    scan, load = dish.otf(2, at_s=3600.0), dish.calibration(1)
    peak = np.abs(dish.freq_hz - LINE.freq_hz).argmin()
    off, by_load = (calibrated(dish, scan, load, scale=scale).ta_star[:, :, peak] for scale in ("off", "load"))
    expected = truth(dish, scan)[0, 0, peak]
    assert off == pytest.approx(expected, rel=2e-2)
    assert np.median(by_load) > 1.08 * expected


def test_a_difference_in_elevation_is_a_baseline_that_the_model_takes_away():
    dish = Dish(**QUIET)
    scan = dish.otf(2, elevation_deg=48.0, off_elevation_deg=46.0)
    plain = calibrated(dish, scan)
    corrected = calibrated(dish, scan, elevation_correction="model")
    assert np.median(plain.ta_star) < -3.0
    assert corrected.ta_star == pytest.approx(truth(dish, scan), abs=5e-2)
    assert corrected.ta_star + corrected.baseline_model == pytest.approx(plain.ta_star, abs=1e-3)
    assert plain.baseline_model is None


def test_a_continuum_source_is_divided_by_both_sidebands():
    dish = Dish(**QUIET)
    scan = dish.otf(2)
    line, both = (calibrated(dish, scan, sideband_mode=mode).ta_star for mode in ("line", "continuum"))
    assert np.nanmax(both) < 0.7 * np.nanmax(line)


@pytest.mark.parametrize("order", ["OFF ON ON OFF", "ON OFF", "OFF ON", "ON ON OFF OFF ON"])
def test_positions_may_come_in_any_order(order):
    dish = Dish(**QUIET)
    scan = dish.tp(2, order)
    prepared, load = prepare_tp(scan), load_of_scan(dish.calibration(1))
    air = determine_atmosphere_full(scan, load, dish.air, prepared)
    found = calibrate_full(scan, prepared, load, air, dish.air)
    assert found.ta_star.shape[0] == order.split().count("ON")
    assert found.ta_star == pytest.approx(truth(dish, scan), abs=5e-3)


@pytest.mark.parametrize("off_mode", ["linear", "nearest", "mean"])
def test_every_way_to_use_the_references_gives_the_line(off_mode):
    dish = Dish(**QUIET)
    scan = dish.otf(2)
    assert calibrated(dish, scan, off_mode=off_mode).ta_star == pytest.approx(truth(dish, scan), abs=5e-3)


def test_a_reference_that_is_bad_for_a_pixel_is_left_out_for_that_one():
    dish = Dish(**QUIET)
    scan = dish.otf(2)
    flag = scan.flag.copy()
    second = np.flatnonzero(scan.phase == Phase.OFF)[1]
    flag[second, 1] = 1
    spoilt = scan.counts.copy()
    spoilt[second, 1] = 9e7
    found = calibrated(dish, replace(scan, flag=flag, counts=spoilt))
    assert found.ta_star == pytest.approx(truth(dish, scan), abs=5e-3)
    flag[scan.phase == Phase.OFF, 1] = 1
    without = calibrated(dish, replace(scan, flag=flag))
    assert (without.flag[:, 1] & Flag.DEAD).all()
    assert (without.flag[:, 1] & Flag.USER).all(), "and why"
    assert without.weight[:, 1].max() == 0
    assert np.array_equal(without.ta_star[:, 2:], calibrated(dish, scan).ta_star[:, 2:])
    flag[scan.phase == Phase.OFF] = 1
    with pytest.raises(MissingOffError, match="no pixel has a good reference"):
        prepare_otf(replace(scan, flag=flag))


def test_a_bad_sample_is_flagged_and_nothing_else():
    dish = Dish(**QUIET)
    scan = dish.otf(2)
    on = np.flatnonzero(scan.phase == Phase.ON)
    counts, flag = scan.counts.copy(), scan.flag.copy()
    counts[on[3], 0, 7], counts[on[4], 1, 8], counts[on[5], 2, 9] = np.nan, 0.0, 2e8
    flag[on[6], 3] = 1
    found = calibrated(dish, replace(scan, counts=counts, flag=flag))
    assert found.flag[3, 0, 7] == Flag.NOT_FINITE
    assert found.flag[4, 1, 8] & Flag.DEAD
    assert found.flag[5, 2, 9] == Flag.SATURATED
    assert (found.flag[6, 3] == Flag.USER).all()
    assert np.count_nonzero(found.flag) == 3 + 256
    assert np.isnan(found.ta_star[found.flag != 0]).all()
    assert found.weight[6, 3] == 0
    good = found.flag == 0
    assert found.ta_star[good] == pytest.approx(truth(dish, scan)[good], abs=5e-3)


def test_the_scans_own_reference_serves_where_the_calibration_has_no_sky():
    dish = Dish(**QUIET)
    load = dish.calibration(1)
    kept = load.phase != Phase.SKY
    bare = replace(load, **{
        name: getattr(load, name)[kept]
        for name in ("counts", "phase", "time_s", "duration_s", "elevation_deg", "azimuth_deg", "lon_off_deg",
                     "lat_off_deg", "row", "flag")
    })  # fmt: skip
    scan = dish.otf(2)
    assert load_of_scan(bare).sky is None
    assert calibrated(dish, scan, bare).ta_star == pytest.approx(truth(dish, scan), abs=5e-3)


def test_what_is_missing_or_not_calibrated_is_said():
    dish = Dish(noise=False)
    scan, load = dish.otf(2), dish.calibration(1)
    with pytest.raises(MissingOnError, match="scan 2 has no dump on the source"):
        prepare_otf(replace(scan, phase=np.full_like(scan.phase, Phase.OFF)))
    with pytest.raises(MissingOffError, match="scan 2 has no dump on a reference"):
        prepare_otf(replace(scan, phase=np.full_like(scan.phase, Phase.ON)))
    with pytest.raises(UnsupportedModeError, match="chopped"):
        prepare_otf(replace(scan, phase=np.where(scan.phase == Phase.OFF, Phase.REF, scan.phase).astype(np.uint8)))
    with pytest.raises(MissingOffError, match="cold load was not observed"):
        load_of_scan(replace(load, phase=np.full_like(load.phase, Phase.HOT)))


def test_without_a_fit_the_configured_water_serves_and_says_so_or_it_is_an_error():
    dish = Dish(noise=False)
    scan, load = dish.otf(2), load_of_scan(dish.calibration(1))
    bright = replace(load, sky=replace(load.sky, j_sky=np.full_like(load.sky.j_sky, 290.0)))
    prepared = prepare_otf(scan)
    with pytest.raises(AtmosphereFitError, match="brighter than the hot load"):
        determine_atmosphere_full(scan, bright, dish.air, prepared)
    allowed = CalibrationOptions(pwv_fallback=("radiometer", "configured"), pwv_mm=0.7)
    air = determine_atmosphere_full(scan, bright, dish.air, prepared, options=allowed)
    assert (air.source, air.pwv_mm, air.pwv) == ("configured", 0.7, None)
    assert "brighter than the hot load" in air.failure
    seen = replace(scan, info=replace(scan.info, radiometer_pwv_mm=0.5))
    assert determine_atmosphere_full(seen, bright, dish.air, prepared, options=allowed).source == "radiometer"
    wet = CalibrationOptions(pwv_fallback=("configured",), pwv_mm=7.0)
    with pytest.raises(OpaqueError, match="scan 2: at most"):
        determine_atmosphere_full(scan, bright, ClosedFormAtmosphere(wet=30.0), prepared, options=wet)


def with_zero(scan: RawScan, level: float, *, bad: tuple[int, ...] = ()) -> RawScan:
    """Add a level to all counts, and a dump that shows it; of some pixels it is flagged."""
    dumps = {name: np.concatenate([getattr(scan, name)[:1], getattr(scan, name)]) for name in (
        "counts", "phase", "duration_s", "elevation_deg", "azimuth_deg", "lon_off_deg", "lat_off_deg", "row", "flag",
    )}  # fmt: skip
    counts, flag, phase = dumps["counts"] + np.float32(level), dumps["flag"].copy(), dumps["phase"].copy()
    counts[0], phase[0] = level, Phase.ZERO
    flag[0, list(bad)] = 1
    time_s = np.concatenate([scan.time_s[:1] - scan.duration_s[0] - 1.0, scan.time_s])
    return replace(scan, **(dumps | {"counts": counts, "flag": flag, "phase": phase, "time_s": time_s}))


def test_the_zero_level_is_taken_from_all_phases_or_the_scan_is_refused():
    dish = Dish(**QUIET)
    scan, load = dish.otf(2), dish.calibration(1)
    lifted, loads = with_zero(scan, 8e5), load_of_scan(with_zero(load, 8e5))
    prepared = prepare_otf(lifted, zero=loads.zero)
    air = determine_atmosphere_full(lifted, loads, dish.air, prepared)
    assert calibrate_full(lifted, prepared, loads, air, dish.air).ta_star == pytest.approx(truth(dish, scan), abs=1e-2)
    bare = load_of_scan(load)
    with pytest.raises(ScanSchemaError, match="known to the scan alone"):
        calibrate_full(lifted, prepared, bare, air, dish.air)


def test_where_a_pixels_zero_is_flagged_that_of_the_calibration_serves():
    dish = Dish(**QUIET)
    scan, loads = dish.otf(2), load_of_scan(with_zero(dish.calibration(1), 8e5))
    lifted = with_zero(scan, 8e5, bad=(1,))
    prepared = prepare_otf(lifted, zero=loads.zero)
    air = determine_atmosphere_full(lifted, loads, dish.air, prepared)
    assert calibrate_full(lifted, prepared, loads, air, dish.air).ta_star == pytest.approx(truth(dish, scan), abs=1e-2)


@pytest.mark.parametrize("engine", ["numba", "numpy"])
def test_weights_are_of_the_whole_band_and_of_dumps_that_show_something(engine):
    dish = Dish(channels=511, width_hz=12e6, lo_hz=455e9, if_hz=5e9, noise=False)
    scan, load = dish.otf(2), load_of_scan(dish.calibration(1))
    counts = scan.counts.copy()
    on = np.flatnonzero(scan.phase == Phase.ON)
    counts[on[4]] = np.nan
    scan = replace(scan, counts=counts)
    prepared = prepare_otf(scan, engine=engine)
    air = determine_atmosphere_full(scan, load, dish.air, prepared)
    found = calibrate_full(scan, prepared, load, air, dish.air, engine=engine)
    assert (found.weight[4] == 0).all()
    middle = np.median(found.t_sys, axis=1)
    expected = 1.0 / (middle**2 * (1.0 / 12e6) * (1.0 + 1.0 / prepared.references.effective_s[:, 0]))
    assert found.weight[0] == pytest.approx(expected, rel=0.01)


def test_a_few_good_pixels_among_dead_ones_go_on():
    dish = Dish(**QUIET)
    scan, load = dish.otf(2), dish.calibration(1)
    scan.counts[:, 1:], load.counts[:, 1:] = 0.0, 0.0
    found = calibrated(dish, scan, load)
    assert found.ta_star[:, 0] == pytest.approx(truth(dish, scan)[:, 0], abs=5e-3)
    assert (found.flag[:, 1:] & Flag.DEAD).all()


def test_water_that_cannot_be_is_no_fallback():
    dish = Dish(noise=False)
    scan, load = dish.otf(2), load_of_scan(dish.calibration(1))
    bright = replace(load, sky=replace(load.sky, j_sky=np.full_like(load.sky.j_sky, 290.0)))
    wrong = replace(scan, info=replace(scan.info, radiometer_pwv_mm=-0.5))
    with pytest.raises(AtmosphereFitError):
        determine_atmosphere_full(
            wrong, bright, dish.air, prepare_otf(wrong), options=CalibrationOptions(pwv_fallback=("radiometer",))
        )
    with pytest.raises(ConfigError, match=r"-3 mm"):
        CalibrationOptions(pwv_fallback=("configured",), pwv_mm=-3.0)
