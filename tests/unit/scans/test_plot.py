"""Figures show the numbers of the store, on axes that say what they are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.scans import plot
from nightbeam.scans.files import scan_name
from nightbeam.scans.plot import draw_night, draw_scan, plot_night, plot_scan, velocity_km_s, view_scan
from nightbeam.scans.results import ResultStore
from nightbeam.scans.summary import ScanSummary, summarize_store

pytestmark = pytest.mark.slow


def group_of(store: Path, scan: int = 2) -> zarr.Group:
    return zarr.open_group(store / "scans" / scan_name(scan), mode="r", use_consolidated=False)


def line(axes, n: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = axes.lines[n].get_data()
    return np.asarray(x, float), np.asarray(y, float)


def test_the_mean_spectrum_is_weighted_and_blank_where_all_is_flagged(results: Path):
    view, group = view_scan(results, 2), group_of(results)
    spectra, weight = group["ta_star"][...].astype(float), group["weight"][...].astype(float)
    channel = 16
    by_hand = (weight * spectra[:, :, channel]).sum() / weight.sum()
    assert view.ta_star_k[channel] == pytest.approx(by_hand, rel=1e-6)
    assert np.isnan(view.ta_star_k[5])
    # Of channel 9 only the first pixel is good.
    assert view.ta_star_k[9] == pytest.approx(np.average(spectra[:, 0, 9], weights=weight[:, 0]), rel=1e-6)
    assert view.dumps_k.shape == (30, 32)
    assert view.dumps_k[4, channel] == pytest.approx(np.average(spectra[4, :, channel], weights=weight[4]), rel=1e-6)
    assert (view.dumps, view.pixels, view.pixel) == (30, 2, None)


def test_one_pixel_is_its_own_mean(results: Path):
    view, group = view_scan(results, 2, pixel=1), group_of(results)
    spectra, weight = group["ta_star"][:, 1, :].astype(float), group["weight"][:, 1].astype(float)
    assert view.ta_star_k[20] == pytest.approx(np.average(spectra[:, 20], weights=weight), rel=1e-6)
    assert np.isnan(view.ta_star_k[9])
    assert np.allclose(view.t_sys_k, group["tsys"][1], equal_nan=True)
    with pytest.raises(UsageError, match="no pixel 2"):
        view_scan(results, 2, pixel=2)


def test_reading_in_pieces_gives_the_same(results: Path, monkeypatch: pytest.MonkeyPatch):
    whole = view_scan(results, 2)
    monkeypatch.setattr(plot, "_PIECE_BYTES", 1)
    monkeypatch.setattr(plot, "_PICTURE", (4, 5))
    pieces = view_scan(results, 2)
    assert np.allclose(pieces.ta_star_k, whole.ta_star_k, equal_nan=True)
    assert pieces.dumps_k.shape == (4, 5)
    # Eight dumps and seven channels at a time; the weights of all dumps are the same to a few per cent.
    assert pieces.dumps_k[0, 2] == pytest.approx(np.mean(whole.dumps_k[:8, 14:21]), abs=0.2)


def test_signal_frequency_ascends_whatever_the_order_in_the_store(results: Path, tmp_path: Path):
    group, store = group_of(results), ResultStore(tmp_path / "lsb.zarr")
    by_channel = {"ta_star", "flag", "tsys", "trec", "gamma", "tr_s", "tr_i", "tau_s", "tau_i", "frequency"}
    arrays = {name: array[...] for name, array in group.arrays()}
    turned = by_channel | {"frequency_image"}
    store.write(2, {n: np.ascontiguousarray(v[..., ::-1]) if n in turned else v for n, v in arrays.items()}, {})
    one, other = view_scan(results, 2), view_scan(store.path, 2)
    assert np.all(np.diff(other.freq_ghz) > 0)
    for name in ("freq_ghz", "image_ghz", "ta_star_k", "t_sys_k", "tau_s", "dumps_k"):
        assert np.allclose(getattr(one, name), getattr(other, name), equal_nan=True), name


def test_the_axes_say_what_they_show_and_show_the_arrays(results: Path):
    view, group = view_scan(results, 2), group_of(results)
    figure = draw_scan(view, rest_ghz=809.3)
    spectrum, receiver, air, dumps = figure.axes[:4]
    assert spectrum.get_ylabel() == r"$T_A^*$ [K]"
    other = figure.axes[4]
    assert receiver.get_ylabel() == r"$T_{sys}$ [K]"
    assert other.get_ylabel() == r"$T_{rec}$ (DSB) [K]"
    assert air.get_ylabel() == r"$\tau$ [Np]"
    assert dumps.get_xlabel() == "signal frequency [GHz]"
    assert spectrum.lines[0].get_drawstyle() == "steps-mid"
    freq, kelvin = line(spectrum)
    assert np.allclose(freq, group["frequency"][...] / 1e9)
    assert np.allclose(kelvin, view.ta_star_k, equal_nan=True)
    assert np.allclose(line(receiver)[1], np.median(group["tsys"][...], axis=0))
    assert np.allclose(line(other)[1], np.median(group["trec"][...], axis=0))
    assert np.allclose(line(air)[1], group["tau_s"][...])
    assert np.allclose(line(air, 1)[1], group["tau_i"][...])
    assert np.allclose(np.asarray(dumps.images[0].get_array().filled(np.nan)), view.dumps_k, equal_nan=True)
    [above] = spectrum.child_axes
    assert "radio velocity [km s$^{-1}$]" in above.get_xlabel()
    assert "scan 2, OMC1, otf, 2025-11-21 00:03:43 UTC, 2 pixels, 30 dumps, pwv" in figure.get_suptitle()
    assert draw_scan(view).axes[0].child_axes == []


def test_a_line_is_where_it_was_put(results: Path):
    view = view_scan(results, 3)
    half = 0.5 * np.nanmax(view.ta_star_k)
    assert view.freq_ghz[view.ta_star_k > half].mean() == pytest.approx(809.3, abs=0.002)


def test_velocities_are_radio_velocities():
    # 1 GHz below a line of 100 GHz: a hundredth of the speed of light, away from us.
    assert velocity_km_s(np.array([99.0, 100.0]), 100.0) == pytest.approx([2997.92458, 0.0])


@pytest.mark.parametrize("rest_ghz", [0.0, -3.0, float("inf"), float("nan")])
def test_a_rest_frequency_is_one(results: Path, rest_ghz: float):
    with pytest.raises(UsageError, match="rest frequency"):
        draw_scan(view_scan(results, 2), rest_ghz=rest_ghz)


def test_a_night_is_water_and_system_temperature_against_utc(results: Path):
    scans = summarize_store(results)
    scans.append(replace(scans[0], scan=9, pwv_source="configured", pwv_error_mm=None, t_sys_k=None))
    figure = draw_night([*scans, ScanSummary(7, "damaged")], title="l1.zarr")
    water, system = figure.axes
    assert water.get_ylabel() == "pwv [mm]"
    assert system.get_ylabel() == r"median $T_{sys}$ [K]"
    assert system.get_xlabel() == "UTC, from 2025-11-21"
    assert [text.get_text() for text in water.get_legend().get_texts()] == ["fit", "configured"]
    fitted = water.containers[0]
    assert list(fitted.lines[0].get_ydata()) == [one.pwv_mm for one in scans[:2]]
    low, high = fitted.lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * scans[0].pwv_error_mm)
    assert list(system.lines[0].get_ydata()) == [one.t_sys_k for one in scans[:2]]


def test_a_night_without_a_scan_is_no_figure(tmp_path: Path):
    store = ResultStore(tmp_path / "l1.zarr")
    with pytest.raises(MissingError, match="when it was observed"):
        plot_night(store.path, tmp_path / "night.png")
    assert not (tmp_path / "night.png").exists()


def test_figures_are_files_whole_and_the_same_each_time(results: Path, tmp_path: Path):
    for make in (lambda out: plot_scan(results, 2, out, rest_ghz=809.3), lambda out: plot_night(results, out)):
        out = tmp_path / "new" / "figure.png"
        assert make(out) == out
        first = out.read_bytes()
        assert first.startswith(b"\x89PNG")
        assert make(out).read_bytes() == first
        assert [path.name for path in out.parent.iterdir()] == ["figure.png"]
    with pytest.raises(UsageError, match="is a directory"):
        plot_scan(results, 2, tmp_path)


def test_a_damaged_array_is_one_clear_error(results: Path, tmp_path: Path):
    own = Path(shutil.copytree(results, tmp_path / "own.zarr"))
    chunk = next(path for path in (own / "scans" / scan_name(2) / "ta_star" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(InputError, match=r"result of scan 2 .* cannot be read"):
        view_scan(own, 2)
    shutil.rmtree(own / "scans" / scan_name(3) / "tsys")
    with pytest.raises(InputError, match=r"result of scan 3 .* cannot be read"):
        view_scan(own, 3)
    with pytest.raises(MissingError, match="no result of scan 4"):
        view_scan(own, 4)
