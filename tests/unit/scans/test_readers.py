"""Results as others open them, who have none of our code; and what options do to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from nightbeam.atmosphere import ClosedFormAtmosphere
from nightbeam.scans.compute import zero_point
from nightbeam.scans.files import RawStore
from nightbeam.scans.model import CalibrationOptions, Phase
from nightbeam.scans.worker import calibrate_store

pytestmark = pytest.mark.slow


def opened(l1, scan: int = 1) -> xr.Dataset:
    return xr.open_zarr(l1, group=f"scans/scan_{scan:06d}", consolidated=False, chunks=None)


def test_a_result_opens_with_its_axes_and_units(l0, l1, config):
    calibrate_store(l0, l1, config)
    found, raw = opened(l1), RawStore(l0).read(1)
    assert {"time", "frequency", "frequency_image", "lon_off", "lat_off"} == set(found.coords)
    assert dict(found.sizes) | {"any_dump": 1} == {"dump": 10, "pixel": 4, "channel": 128, "any_dump": 1}
    assert found.ta_star.dims == ("dump", "pixel", "channel")
    assert set(found.ta_star.coords) == {"time", "frequency", "frequency_image", "lon_off", "lat_off"}
    units = {name: found[name].attrs["units"] for name in ("ta_star", "time", "frequency", "tsys", "pwv", "weight")}
    assert units == {"ta_star": "K", "time": "s", "frequency": "Hz", "tsys": "K", "pwv": "mm", "weight": "K-2"}
    assert all(one.attrs["units"] for one in found.variables.values())
    assert np.array_equal(found.time, raw.time_s[raw.phase == Phase.ON])
    assert np.array_equal(found.frequency, raw.freq_hz)
    assert found.attrs["status"] == "complete"
    assert found.attrs["pwv_mm"] == pytest.approx(float(found.pwv.median()), rel=1e-6)


def test_flags_are_integers_and_stand_where_there_is_no_number(l0, l1, config, group_of):
    counts = group_of(l0, 1)["counts"]
    counts[3, 2, 7] = np.nan
    counts[4, 1, 9] = 2e8
    calibrate_store(l0, l1, config)
    found = opened(l1)
    assert found.flag.dtype == np.uint8
    assert np.array_equal(found.flag.values != 0, np.isnan(found.ta_star.values))
    assert (int(found.flag[2, 2, 7]), int(found.flag[3, 1, 9]), int((found.flag != 0).sum())) == (1, 4, 2)
    assert found.attrs["quality"]["flagged"] == 2 / (10 * 4 * 128)


@pytest.mark.parametrize("name", ["ta_star", "flag", "tsys", "frequency"])
def test_a_byte_that_has_flipped_in_a_result_is_noticed(l0, l1, config, name):
    calibrate_store(l0, l1, replace(config, scans=(1,)))
    chunk = next(path for path in sorted((l1 / "scans" / "scan_000001" / name / "c").rglob("*")) if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match="checksum do not match"):
        opened(l1)[name].load()


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_option(l0, tmp_path, config):
    """Calibrate one scan with some options, and open it."""

    def calibrated(**options: object) -> xr.Dataset:
        l1 = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        chosen = CalibrationOptions(**options)  # type: ignore[arg-type]
        result = calibrate_store(l0, l1, replace(config, scans=(1,), options=chosen, retries=0))
        assert result.exit_code == 0, result.failures
        return opened(l1)

    return calibrated


@pytest.mark.parametrize("scale", ["off", "load"])
def test_the_zero_point_moves_the_receiver_by_half_a_photon_and_the_source_by_nothing(l0, with_option, scale):
    plain, photons = with_option(scale=scale), with_option(scale=scale, callen_welton=True)
    assert np.array_equal(plain.ta_star, photons.ta_star, equal_nan=True)
    assert np.array_equal(plain.tsys, photons.tsys)
    assert np.array_equal(plain.pwv, photons.pwv)
    scan = RawStore(l0).read(1)
    half = zero_point(scan.freq_hz / 1e9, scan.image_hz / 1e9, scan.gain_signal)
    # h/2k = 0.0239962 K/GHz at 809.3 and 797.3 GHz, a half of each.
    assert half[0, 64] == pytest.approx(0.0239962 * 803.3, rel=1e-5)
    assert plain.trec.values - photons.trec.values == pytest.approx(np.broadcast_to(half, (4, 128)), abs=2e-5)
    assert (plain.attrs["temperature_scale"], photons.attrs["temperature_scale"]) == ("rj-planck", "callen-welton")


def test_water_that_is_not_fitted_says_so(l0, with_option, group_of):
    nothing_left = {"exclude_ghz": ((0.0, 2000.0),)}
    found = with_option(pwv_fallback=("radiometer", "configured"), pwv_mm=0.7, **nothing_left)
    assert (found.attrs["pwv_source"], found.attrs["pwv_mm"]) == ("configured", 0.7)
    assert "the water is configured, not fitted: no pixel has more than 0 bins" in found.attrs["warnings"][0]
    assert np.isnan(found.pwv_error).all()
    group_of(l0, 1).attrs["radiometer_pwv_mm"] = 0.55
    found = with_option(pwv_fallback=("radiometer", "configured"), pwv_mm=0.7, **nothing_left)
    assert (found.attrs["pwv_source"], found.attrs["pwv_mm"]) == ("radiometer", 0.55)


def test_channels_that_are_left_out_of_the_fit_are_calibrated_all_the_same(l0, with_option, group_of):
    usual = with_option()
    sky = int(np.flatnonzero(RawStore(l0).read(100_001).phase == Phase.SKY)[0])
    counts = group_of(l0, 100_001)["counts"]
    counts[sky, :, 10:20] = counts[sky, :, 10:20] * 1.05
    freq = np.sort(RawStore(l0).read(1).freq_hz[[10, 19]]) / 1e9
    spoilt, left_out = with_option(), with_option(exclude_ghz=((freq[0] - 1e-4, freq[1] + 1e-4),))
    assert abs(spoilt.attrs["pwv_mm"] - usual.attrs["pwv_mm"]) > 0.01
    assert left_out.attrs["pwv_mm"] == pytest.approx(usual.attrs["pwv_mm"], abs=5e-4)
    assert left_out.attrs["quality"]["pwv_channels"] == 4 * 24
    assert np.isfinite(left_out.ta_star[:, :, 10:20]).all()


def test_a_load_that_is_seen_in_part_makes_the_loads_more_alike(with_option):
    usual, part = with_option(), with_option(hot_coupling=0.95, scale="load", pwv_fallback=("configured",), pwv_mm=0.6)
    # 5 % of air at 265 K in place of a load of 293 K: the gain follows from less difference.
    assert part.gamma.values == pytest.approx(
        usual.gamma.values * (274.1 - 60.3) / (274.1 - 60.3 - 0.05 * 27.95), rel=1e-3
    )


def test_what_the_elevation_has_changed_is_kept_beside_what_is_left(l0, with_option, group_of):
    elevation, phase = group_of(l0, 1)["elevation"], group_of(l0, 1)["phase"][...]
    elevation[...] = np.where(phase == Phase.OFF, elevation[0] + 1.0, elevation[0])
    plain, model = with_option(), with_option(elevation_correction="model")
    assert "baseline_model" not in plain
    # The counts were made at one elevation: the correction is what the model says, and can be undone.
    assert abs(float(model.baseline_model.median())) > 1.0
    assert (model.ta_star + model.baseline_model).values == pytest.approx(plain.ta_star.values, abs=2e-3)
    air = ClosedFormAtmosphere()
    assert air.sky(809.3, 0.6, 1.4) > air.sky(809.3, 0.6, 1.3)
    assert float(model.baseline_model.median()) > 0, "the source is lower than its reference"
