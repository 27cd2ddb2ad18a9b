"""Layers of air that are kept, and what happens where they cannot be; CASA itself is asked by the tests of casa."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightbeam.atmosphere import Weather, remote
from nightbeam.core.files import storage_errors

WEATHER = Weather(5612.0, 520.0, 265.0)
BANDS = [np.linspace(807.0, 811.0, 9), np.linspace(795.0, 799.0, 9)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Have air of one layer without CASA; returns where its child has worked."""
    places: list[Path] = []

    def air_layers(_station: Any, bands: Any, *, work_dir: Path, timeout_s: float) -> list[dict[str, Any]]:
        del timeout_s
        with storage_errors(work_dir):
            (work_dir / "scratch").mkdir(parents=True)
            (work_dir / "scratch").rmdir()
        places.append(work_dir)
        found = []
        for centre, width, step in bands:
            freq = np.arange(centre - width / 2, centre + width / 2 + step, step)
            tau = np.full((1, freq.size), 0.1)
            found.append({"freq_ghz": freq, "temperature_k": np.array([260.0]), "tau_dry": tau, "tau_wet_per_mm": tau})
        return found

    monkeypatch.setattr(remote, "air_layers", air_layers)
    monkeypatch.setattr(remote, "_SAID", set())
    return places


def test_layers_are_asked_for_once(asked: list[Path], tmp_path: Path):
    first = remote.casa_atmosphere(WEATHER, BANDS, cache_dir=tmp_path / "air")
    again = remote.casa_atmosphere(WEATHER, BANDS, cache_dir=tmp_path / "air")
    assert asked == [tmp_path / "air"]
    assert np.array_equal(first.opacity(BANDS[0], 0.6), again.opacity(BANDS[0], 0.6))


def test_where_no_layers_can_be_kept_they_are_made_anew_and_that_is_said_once(
    asked: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("in the way")
    for cache in (tmp_path / "file", tmp_path / "file" / "air"):
        caplog.clear()
        for _ in range(3):
            air = remote.casa_atmosphere(WEATHER, BANDS, cache_dir=cache)
            assert air.opacity(BANDS[0], 0.5) == pytest.approx(0.15)
        assert caplog.text.count("layers of air cannot be kept and are made anew each time") == 1
        assert len(caplog.records) == 1
    assert len(asked) == 6
    assert not any(tmp_path in place.parents or place.exists() for place in asked)


def test_a_full_disk_for_layers_is_said_once_until_there_is_space_again(
    asked: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for times in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(np, "savez", full)
            for _ in range(2):
                remote.casa_atmosphere(WEATHER, BANDS, cache_dir=tmp_path)
        assert caplog.text.count("no space left for") == times
        remote.casa_atmosphere(WEATHER, BANDS, cache_dir=tmp_path)
        next(tmp_path.glob("air-*.npz")).unlink()
    assert len(asked) == 6
