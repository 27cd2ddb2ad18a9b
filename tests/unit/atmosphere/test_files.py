"""Layers of air on disk."""

from __future__ import annotations

import numpy as np
import pytest

from nightbeam.atmosphere import BandedAtmosphere, LayeredAtmosphere, Layers
from nightbeam.atmosphere.files import layers_path, read_layers, write_layers
from nightbeam.core.errors import InputError


def band(begin: float) -> Layers:
    freq = begin + 0.1 * np.arange(11)
    return Layers(freq, np.array([270.0, 230.0]), np.full((2, 11), 0.05), np.full((2, 11), 0.2))


def test_layers_come_back_as_they_were_written(tmp_path):
    path = layers_path(tmp_path / "air", {"a": 1, "b": [2.0, "x"]})
    assert read_layers(path) is None
    write_layers(path, [band(100.0), band(200.0)])
    again = read_layers(path)
    assert [one.freq_ghz[0] for one in again] == [100.0, 200.0]
    assert np.array_equal(again[1].tau_wet_per_mm, band(200.0).tau_wet_per_mm)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_another_question_has_another_file(tmp_path):
    assert layers_path(tmp_path, {"a": 1, "b": 2}) == layers_path(tmp_path, {"b": 2, "a": 1})
    assert layers_path(tmp_path, {"a": 1}) != layers_path(tmp_path, {"a": 1.5})


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.99])
def test_a_file_that_is_cut_is_no_layers(tmp_path, part):
    path = tmp_path / "air.npz"
    write_layers(path, [band(100.0)])
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(InputError, match="holds no layers of air"):
        read_layers(path)


def test_what_is_no_array_of_numbers_is_not_opened(tmp_path):
    path = tmp_path / "air.npz"
    np.savez(path, freq_ghz_0=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="holds no layers of air"):
        read_layers(path)
    np.savez(path, freq_ghz_0=np.arange(5.0))
    with pytest.raises(InputError, match="holds no layers of air"):
        read_layers(path)


def test_each_band_answers_for_its_frequencies():
    air = BandedAtmosphere([LayeredAtmosphere(band(100.0)), LayeredAtmosphere(band(200.0))])
    for begin in (100.0, 200.0):
        assert air.opacity([begin + 0.5], 1.0) == pytest.approx(0.5)
        assert air.sky([begin + 0.5], 1.0, 1.0) == pytest.approx(
            LayeredAtmosphere(band(begin)).sky([begin + 0.5], 1.0, 1.0)
        )
    with pytest.raises(InputError, match=r"100\.000 to 101\.000, 200\.000 to 201\.000"):
        air.sky([100.5, 200.5], 1.0, 1.0)
    with pytest.raises(InputError, match="without a band"):
        BandedAtmosphere([])
