"""A small Measurement Set made by hand: two windows, known gains, one source off the phase centre."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from nightbeam.casa.tables import array_column, new_ms, open_table

C = 299_792_458.0
CENTRE = (150.0, 33.0)
FLUX = 5.0
OFFSET = (150.02, 33.015)


@dataclass
class Made:
    """What was put into the Measurement Set."""

    path: Path
    gains: np.ndarray  # (ant, pol)
    freqs: np.ndarray  # (spw, chan)
    names: list[str]


@dataclass
class Sky:
    """The one source."""

    offset: tuple[float, float] = OFFSET
    centre: tuple[float, float] = CENTRE
    flux: float = FLUX


def lmn(ra: float, dec: float) -> np.ndarray:
    """Direction cosines from unit vectors, independently of the package."""

    def unit(a: float, d: float) -> np.ndarray:
        a, d = np.radians([a, d])
        return np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])

    a0, d0 = np.radians(CENTRE)
    east = np.array([-np.sin(a0), np.cos(a0), 0.0])
    north = np.array([-np.sin(d0) * np.cos(a0), -np.sin(d0) * np.sin(a0), np.cos(d0)])
    s, s0 = unit(ra, dec), unit(*CENTRE)
    return np.array([s @ east, s @ north, s @ s0 - 1.0])


def build(path: Path, *, antennas: int = 12, times: int = 3, noise: float = 0.0, seed: int = 1) -> Made:
    """Write it: UVW = pos(ANTENNA1) - pos(ANTENNA2), V = g1 conj(g2) S exp(+2 pi i (ul + vm + w(n-1)) nu/c)."""
    rng = np.random.default_rng(seed)
    new_ms(
        path,
        columns=[
            array_column("DATA", 1j, ndim=2, valuetype="complex"),
            array_column("WEIGHT_SPECTRUM", 1.0, ndim=2, valuetype="float"),
        ],
    )
    freqs = np.array([1.40e9 + np.arange(8) * 1e6, 1.42e9 + np.arange(8) * 1e6])
    enu = rng.normal(scale=300.0, size=(antennas, 3))
    names = [str(i + 101) for i in range(antennas)]
    gains = rng.uniform(0.8, 1.2, (antennas, 2)) * np.exp(2j * np.pi * rng.random((antennas, 2)))
    with open_table(path / "ANTENNA", write=True) as table:
        table.addrows(antennas)
        table.putcol("NAME", names)
        table.putcol("STATION", names)
        table.putcol("MOUNT", ["ALT-AZ"] * antennas)
        table.putcol("DISH_DIAMETER", np.full(antennas, 4.65))
        table.putcol("POSITION", np.array([-2409555.9, -4478213.6, 3838767.5]) + enu)
    _small_tables(path, freqs)
    i, j = np.triu_indices(antennas)
    rows = []
    for window in range(2):
        for t in range(times):
            uvw = enu[i] - enu[j]
            phase = np.exp(2j * np.pi * (uvw @ lmn(*OFFSET))[:, None] * freqs[window] / C)
            data = FLUX * phase[:, :, None] * (gains[i] * gains[j].conj())[:, None, :]
            data = data + noise * (rng.normal(size=data.shape) + 1j * rng.normal(size=data.shape))
            rows.append((window, 60000.0 + t * 13.0 / 86400.0, uvw, data))
    _main_table(path, rows, i, j)
    return Made(path, gains, freqs, names)


def _small_tables(path: Path, freqs: np.ndarray) -> None:
    n = freqs.shape[1]
    with open_table(path / "SPECTRAL_WINDOW", write=True) as table:
        table.addrows(2)
        for w, f in enumerate(freqs):
            table.putcell("NUM_CHAN", w, n)
            table.putcell("CHAN_FREQ", w, f)
            for name in ("CHAN_WIDTH", "EFFECTIVE_BW", "RESOLUTION"):
                table.putcell(name, w, np.full(n, 1e6))
            table.putcell("TOTAL_BANDWIDTH", w, n * 1e6)
            table.putcell("REF_FREQUENCY", w, f[0])
            table.putcell("MEAS_FREQ_REF", w, 5)
            table.putcell("NAME", w, f"w{w}")
    with open_table(path / "POLARIZATION", write=True) as table:
        table.addrows(1)
        table.putcell("NUM_CORR", 0, 2)
        table.putcell("CORR_TYPE", 0, np.array([9, 12], np.int32))
        table.putcell("CORR_PRODUCT", 0, np.array([[0, 0], [1, 1]], np.int32))
    with open_table(path / "DATA_DESCRIPTION", write=True) as table:
        table.addrows(2)
        table.putcol("SPECTRAL_WINDOW_ID", np.arange(2, dtype=np.int32))
        table.putcol("POLARIZATION_ID", np.zeros(2, np.int32))
    with open_table(path / "FIELD", write=True) as table:
        table.addrows(1)
        table.putcell("NAME", 0, "centre")
        table.putcell("NUM_POLY", 0, 0)
        for name in ("PHASE_DIR", "DELAY_DIR", "REFERENCE_DIR"):
            table.putcell(name, 0, np.radians([CENTRE]))
    with open_table(path / "OBSERVATION", write=True) as table:
        table.addrows(1)
        table.putcell("TELESCOPE_NAME", 0, "OVRO_MMA")
        table.putcell("TIME_RANGE", 0, np.array([60000.0, 60001.0]) * 86400.0)
    with open_table(path / "STATE", write=True) as table:
        table.addrows(1)
    with open_table(path / "PROCESSOR", write=True) as table:
        table.addrows(1)
    with open_table(path / "FEED", write=True) as table, open_table(path / "ANTENNA") as antennas:
        count = antennas.nrows()
        table.addrows(count)
        for a in range(count):
            table.putcell("ANTENNA_ID", a, a)
            table.putcell("SPECTRAL_WINDOW_ID", a, -1)
            table.putcell("NUM_RECEPTORS", a, 2)
            table.putcell("BEAM_ID", a, -1)
            table.putcell("BEAM_OFFSET", a, np.zeros((2, 2)))
            table.putcell("POLARIZATION_TYPE", a, {"shape": [2], "array": ["X", "Y"]})
            table.putcell("POL_RESPONSE", a, np.eye(2, dtype=complex))
            table.putcell("RECEPTOR_ANGLE", a, np.zeros(2))
            table.putcell("POSITION", a, np.zeros(3))
            table.putcell("INTERVAL", a, 1e30)


def _main_table(path: Path, rows: list, i: np.ndarray, j: np.ndarray) -> None:
    n = len(i)
    with open_table(path, write=True) as table:
        table.addrows(n * len(rows))
        for k, (window, mjd, uvw, data) in enumerate(rows):
            at = (k * n, n)
            fill = {"UVW": uvw, "DATA": data.astype(np.complex64), "FLAG": np.zeros(data.shape, bool)}
            fill |= {"ANTENNA1": i.astype(np.int32), "ANTENNA2": j.astype(np.int32)}
            fill |= {"DATA_DESC_ID": np.full(n, window, np.int32), "SCAN_NUMBER": np.ones(n, np.int32)}
            fill |= {name: np.full(n, mjd * 86400.0) for name in ("TIME", "TIME_CENTROID")}
            fill |= {name: np.full(n, 13.0) for name in ("INTERVAL", "EXPOSURE")}
            fill |= {name: np.ones((n, 2), np.float32) for name in ("WEIGHT", "SIGMA")}
            fill |= {"WEIGHT_SPECTRUM": np.ones(data.shape)}
            for name, value in fill.items():
                table.putcol(name, value, *at)


@pytest.fixture
def made(tmp_path):
    """A Measurement Set with noise of a ten-thousandth of the source (CASA solves nothing where there is none)."""
    return build(tmp_path / "made.ms", noise=5e-4)


@pytest.fixture
def sky():
    """Where the one source stands and how bright it is."""
    return Sky()
