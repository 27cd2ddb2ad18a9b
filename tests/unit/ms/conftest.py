"""A tiny Measurement Set of known content, and copies of it to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from nightbeam.ms.model import MsAntenna, MsLayout, SpectralWindow
from nightbeam.ms.writing import RowValues, create_ms, new_rows, put_row_flags


@pytest.fixture(scope="session")
def layout() -> MsLayout:
    """Three antennas, two windows of four channels, two times: 24 rows."""
    one, two = np.triu_indices(3)
    return MsLayout(
        telescope="OVRO_MMA",
        antennas=tuple(MsAntenna(k, str(k + 1), (-2409555.0 + 10 * k, -4478213.0, 3838767.0), 4.65, "ALT-AZ")
                       for k in range(3)),
        field_name="meridian",
        ra_deg=71.5,
        dec_deg=54.5,
        windows=tuple(SpectralWindow(w, tuple(1.3e9 + 1e7 * w + 1e6 * c for c in range(4)), (1e6,) * 4, f"w{w}")
                      for w in range(2)),
        times_mjd=60951.5 + np.array([0.0, 10.0]) / 86400.0,
        integration_s=10.0,
        antenna1=one.astype(np.int32),
        antenna2=two.astype(np.int32),
        corr_types=(9, 12),
        pointing_deg=np.array([[71.4, 54.5], [71.6, 54.5]]),
        history=("made by hand",),
    )  # fmt: skip


@pytest.fixture(scope="session")
def rows(layout: MsLayout) -> RowValues:
    rng = np.random.default_rng(0)
    shape = (layout.n_rows, layout.n_chan, layout.n_pol)
    auto = np.tile(layout.antenna1 == layout.antenna2, 4)
    flag = np.zeros(shape, bool)
    flag[auto] = True
    flag[1] = True  # baseline 0-1, window 0, time 0: an eighth of the twelve cross-correlations
    return RowValues(
        data=(rng.random(shape) + 1j * rng.random(shape)).astype(np.complex64),
        flag=flag,
        spectrum=np.full(shape, 2.0, np.float32),
        weight=np.full((layout.n_rows, 2), 2.0, np.float32),
        sigma=np.full((layout.n_rows, 2), 0.5**0.5, np.float32),
        uvw_m=np.where(auto[:, None], 0.0, [3.0, 4.0, 1.0]) * (1.0 + np.arange(layout.n_rows)[:, None]),
    )


@pytest.fixture(scope="session")
def made_ms(layout: MsLayout, rows: RowValues, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ms = tmp_path_factory.mktemp("made") / "a.ms"
    create_ms(ms, layout)
    with new_rows(ms, layout) as sink:
        sink.put(0, rows)
    put_row_flags(ms, rows.flag.all(axis=(1, 2)))
    return ms


@pytest.fixture
def own_ms(made_ms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_ms, tmp_path / "own.ms"))
