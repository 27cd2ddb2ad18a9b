"""The atmosphere of CASA (ATM), asked once for each weather and tuning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from nightbeam.atmosphere.compute import BandedAtmosphere, LayeredAtmosphere
from nightbeam.atmosphere.files import layers_path, read_layers, write_layers
from nightbeam.atmosphere.model import Layers, Weather
from nightbeam.casa import air_layers
from nightbeam.core.errors import InputError, StorageError
from nightbeam.core.log import span

__all__ = ["STEP_GHZ", "casa_atmosphere", "rounded"]

_log = logging.getLogger(__name__)

#: Of the grid: ozone's lines are 20 to 100 MHz wide.
STEP_GHZ = 0.005
#: Beyond the ends of a band, so that its ends are inside of the splines.
_MARGIN = 4
#: What makes the layers other ones when it changes.
_MODEL = {"model": "ATM-1_0_0", "kind": 1, "lapse_k_km": -5.6, "scale_height_km": 2.0}

#: Cache directories of which it was said that they cannot be written.
_SAID: set[Path] = set()


def rounded(weather: Weather) -> Weather:
    """Return the weather that is asked for: like weathers share their layers.

    To 10 m, 1 hPa, 0.5 K and 5 %; the half kelvin changes the transmission by 0.2 % at most (809 GHz).
    """
    return Weather(
        altitude_m=round(weather.altitude_m, -1),
        pressure_hpa=float(round(weather.pressure_hpa)),
        temperature_k=round(2.0 * weather.temperature_k) / 2.0,
        humidity_pct=5.0 * round(weather.humidity_pct / 5.0),
    )


def casa_atmosphere(
    weather: Weather,
    bands_ghz: Sequence[NDArray[np.float64]],
    *,
    cache_dir: Path,
    step_ghz: float = STEP_GHZ,
    timeout_s: float = 120.0,
) -> BandedAtmosphere:
    """Return the atmosphere of CASA above a site, for the frequencies of some bands.

    Parameters
    ----------
    bands_ghz
        Frequencies of each band, e.g. those of the signal and of the image sideband.
    cache_dir
        Layers are kept here; a file that cannot be read is made anew. Where nothing can be kept they are made anew
        every time, which is said once.

    Raises
    ------
    ToolError
        If CASA cannot be asked.
    StorageError
        If the system has no space for its temporary files either.
    """
    asked, edges = rounded(weather), [_edges(band, step_ghz) for band in bands_ghz]
    station = {name: getattr(asked, name) for name in Weather.__slots__}
    path = layers_path(cache_dir, {**_MODEL, "weather": station, "edges_ghz": edges, "step_ghz": step_ghz})
    layers = _kept(path)
    if layers is None:
        bands = [(0.5 * (low + high), high - low, step_ghz) for low, high in edges]
        with span(_log, f"layers of air for {len(bands)} bands"):
            layers = _made(station, bands, cache_dir, timeout_s)
        _keep(path, layers)
    return BandedAtmosphere([LayeredAtmosphere(one) for one in layers])


def _edges(band: NDArray[np.float64], step: float) -> tuple[float, float]:
    """Return the ends of the grid of a band, on whole steps, so that shifted bands share it where they can."""
    low, high = float(np.min(band)), float(np.max(band))
    if not 0 < low <= high < np.inf:
        raise InputError(f"a band from {low} to {high} GHz", fix="check the frequencies of the scan")
    first, last = np.floor(low / step) - _MARGIN, np.ceil(high / step) + _MARGIN
    return round(float(first * step), 6), round(float(last * step), 6)


def _made(
    station: dict[str, float], bands: list[tuple[float, float, float]], cache_dir: Path, timeout_s: float
) -> list[Layers]:
    try:
        found = air_layers(station, bands, work_dir=cache_dir, timeout_s=timeout_s)
    except OSError as error:  # the scans are worth more than the cache
        _say_once(cache_dir, error)
        with TemporaryDirectory(prefix="nightbeam-air.") as elsewhere:
            found = air_layers(station, bands, work_dir=Path(elsewhere), timeout_s=timeout_s)
    return [Layers(**one) for one in found]


def _keep(path: Path, layers: Sequence[Layers]) -> None:
    try:
        write_layers(path, layers)
    except OSError as error:
        _say_once(path.parent, error)
    else:
        _SAID.discard(path.parent)


def _say_once(cache_dir: Path, error: OSError) -> None:
    if cache_dir not in _SAID:
        _SAID.add(cache_dir)
        why = error.what if isinstance(error, StorageError) else f"{cache_dir}: {error.strerror}"
        _log.warning("layers of air cannot be kept and are made anew each time: %s", why)


def _kept(path: Path) -> list[Layers] | None:
    try:
        return read_layers(path)
    except InputError as error:
        _log.warning("%s", error.what)
        return None
