"""The atmosphere of CASA: its published numbers, and layers that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightbeam.atmosphere import Weather, remote, transmission
from nightbeam.atmosphere.remote import casa_atmosphere, rounded
from nightbeam.casa import air_layers
from nightbeam.core.errors import InputError, UsageError

pytestmark = pytest.mark.system

FYST = Weather(altitude_m=5612.0, pressure_hpa=520.0, temperature_k=270.0, humidity_pct=20.0)

#: GHz, dry and wet opacity, Rayleigh-Jeans sky in K: casatools 6.7.0.31, one channel each, pwv 0.5 mm, airmass 1.2.
PUBLISHED = [
    (230.0, 0.009809, 0.020063, 8.9213),
    (345.0, 0.024167, 0.069710, 26.2429),
    (460.5, 0.035494, 0.331016, 88.4725),
    (492.16, 0.108511, 0.440689, 119.1514),
    (661.0, 0.061083, 0.485076, 117.2945),
    (809.3, 0.086160, 0.672068, 144.3099),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("air")


@pytest.fixture(scope="module")
def air(cache: Path) -> Any:
    # Near each frequency, on a grid that has it; ten frequencies are enough for a spline.
    return casa_atmosphere(FYST, [np.array([freq - 0.002, freq + 0.002]) for freq, *_ in PUBLISHED], cache_dir=cache)


@pytest.mark.parametrize(("freq", "dry", "wet", "sky"), PUBLISHED)
def test_opacity_and_brightness_are_the_published_ones(air: Any, freq: float, dry: float, wet: float, sky: float):
    assert air.opacity([freq], 0.0)[0] == pytest.approx(dry, abs=2e-5)
    assert air.opacity([freq], 0.5)[0] - air.opacity([freq], 0.0)[0] == pytest.approx(wet, abs=1e-4)
    assert air.sky([freq], 0.5, 1.2)[0] == pytest.approx(sky, abs=0.03)


def test_exactly_where_the_model_was_asked_it_is_exact(tmp_path: Path):
    weather = {"altitude_m": 5612.0, "pressure_hpa": 520.0, "temperature_k": 265.0, "humidity_pct": 20.0}
    signal, image = air_layers(weather, [(809.3, 0.0, 0.0), (797.3, 0.0, 0.0)], work_dir=tmp_path / "work")
    for band, dry, wet, through in (
        (signal, 0.08858716, 0.86904929, 0.27449858),
        (image, 0.08766234, 1.11381801, 0.19750360),
    ):
        found_dry, found_wet = band["tau_dry"].sum(), 0.62 * band["tau_wet_per_mm"].sum()
        assert (found_dry, found_wet) == (pytest.approx(dry, rel=1e-6), pytest.approx(wet, rel=1e-6))
        assert transmission(found_dry + found_wet, 1.35) == pytest.approx(through, rel=1e-6)
    assert list((tmp_path / "work").iterdir()) == []


def test_layers_are_asked_for_once_and_a_damaged_file_is_made_anew(
    cache: Path, air: Any, monkeypatch: pytest.MonkeyPatch
):
    bands = [np.array([freq - 0.002, freq + 0.002]) for freq, *_ in PUBLISHED]
    (file,) = cache.glob("air-*.npz")
    asked = []
    monkeypatch.setattr(remote, "air_layers", lambda *a, **k: asked.append(a) or air_layers(*a, **k))
    like = Weather(altitude_m=5609.0, pressure_hpa=520.3, temperature_k=270.2, humidity_pct=21.0)
    again = casa_atmosphere(like, bands, cache_dir=cache)
    assert asked == []
    assert again.sky([809.3], 0.5, 1.2) == pytest.approx(air.sky([809.3], 0.5, 1.2), rel=1e-12)
    file.write_bytes(file.read_bytes()[:1000])
    assert casa_atmosphere(FYST, bands, cache_dir=cache).sky([230.0], 0.5, 1.2) == pytest.approx(
        air.sky([230.0], 0.5, 1.2), rel=1e-12
    )
    assert len(asked) == 1
    casa_atmosphere(Weather(5612.0, 520.0, 272.0, 20.0), bands[:1], cache_dir=cache)
    assert len(asked) == 2


def test_like_weathers_are_one():
    assert rounded(Weather(5609.0, 520.3, 270.2, 21.0)) == rounded(FYST) == Weather(5610.0, 520.0, 270.0, 20.0)
    assert rounded(Weather(5612.0, 520.0, 270.3, 20.0)).temperature_k == 270.5


def test_what_the_model_would_hang_on_does_not_reach_it(tmp_path: Path):
    for weather in ({"pressure_hpa": float("nan")}, {"temperature_k": float("inf")}):
        with pytest.raises(UsageError, match="no air to ask for"):
            air_layers(weather, [(230.0, 0.0, 0.0)], work_dir=tmp_path)
    with pytest.raises(UsageError, match="no air to ask for"):
        air_layers({"pressure_hpa": 520.0}, [], work_dir=tmp_path)
    with pytest.raises(InputError, match="a band from"):
        casa_atmosphere(FYST, [np.array([809.0, np.nan])], cache_dir=tmp_path)
