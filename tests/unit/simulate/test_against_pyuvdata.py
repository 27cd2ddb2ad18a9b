"""The independent judge: pyuvdata reads our files, and its own geometry finds our sources where we put them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightbeam.simulate import SimulationSpec, SkySource, Truth, plan_simulation, simulate_subbands
from nightbeam.sky import OVRO_DSA110, offset_position

pytestmark = pytest.mark.slow

SPEC = SimulationSpec(antennas=10, channels=4, subbands=1, integrations=24, noise=None, gains=False)


@pytest.fixture(autouse=True)
def _offline() -> Iterator[None]:
    from astropy.utils import iers

    # pyuvdata warns of the old layout on every read; what it says is what spec (a.6) lists.
    with (
        warnings.catch_warnings(),
        iers.conf.set_temp("auto_download", False),
        iers.conf.set_temp("auto_max_age", None),
    ):
        warnings.simplefilter("ignore")
        yield


def _read(path: Path) -> Any:
    from pyuvdata import UVData

    uv = UVData()
    uv.read(
        path,
        file_type="uvh5",
        run_check=False,
        run_check_acceptability=False,
        strict_uvw_antpos_check=False,
        check_extra=False,
    )
    return uv


def _phased_to(uv: Any, truth: Truth, ra_deg: float, dec_deg: float) -> Any:
    """Say that the data are phased to the meridian (a drift scan), then let pyuvdata phase them to a direction."""
    dec = truth.array.dec_apparent_deg
    altitude, azimuth = 90.0 - abs(dec - OVRO_DSA110.latitude_deg), 0.0 if dec > OVRO_DSA110.latitude_deg else 180.0
    uv.uvw_array = uv.uvw_array.astype(float)
    meridian = uv._add_phase_center(
        cat_name="meridian",
        cat_type="driftscan",
        cat_lon=np.radians(azimuth),
        cat_lat=np.radians(altitude),
        cat_frame="altaz",
    )
    uv.phase_center_id_array[:] = meridian
    uv._set_app_coords_helper()
    uv.set_uvws_from_antenna_positions(update_vis=False)
    uv.phase(lon=np.radians(ra_deg), lat=np.radians(dec_deg), epoch="J2000", phase_frame="icrs", cat_name="there")
    return uv


def test_pyuvdata_reads_a_file_with_the_flags_that_the_real_ones_need(tmp_path: Path):
    truth = simulate_subbands(tmp_path / "out", SPEC)
    uv = _read(tmp_path / "out" / truth.groups[0].files[0])
    assert uv.data_array.shape == (24 * 55, 4, 2)
    assert (uv.Nants_data, uv.telescope.Nants, uv.telescope.name) == (10, 117, "OVRO_MMA")
    assert uv.uvw_array.dtype == np.float32
    assert uv.polarization_array.tolist() == [-5, -6]
    assert uv.telescope.location.lon.deg == pytest.approx(-118.283)
    assert uv.extra_keywords["phase_center_epoch"] == "HADEC"


@pytest.mark.parametrize(("dec_deg", "bearing_deg"), [(54.57, 40.0), (16.1, 200.0)])
def test_pyuvdata_finds_a_source_half_a_degree_off_centre_where_we_put_it(
    tmp_path: Path, dec_deg: float, bearing_deg: float
):
    spec = SimulationSpec(**{**SPEC.__dict__, "dec_deg": dec_deg, "sources": 0})
    centre = plan_simulation(spec).groups[0]
    ra, dec = (float(x) for x in offset_position(centre.ra_deg, centre.dec_deg, 0.5, bearing_deg))
    spec = SimulationSpec(**{**spec.__dict__, "sources": (SkySource("s", ra, dec, 2.0),)})
    truth = simulate_subbands(tmp_path / "out", spec)
    uv = _phased_to(_read(tmp_path / "out" / truth.groups[0].files[0]), truth, ra, dec)
    cross = uv.data_array[uv.ant_1_array != uv.ant_2_array]
    # On 2.6 km a milliarcsecond is 4e-4 rad: flat to 1e-4 leaves nothing to a wrong sign, drift or precession.
    assert np.abs(np.angle(cross)).max() < 1e-4
    assert np.ptp(np.abs(cross.reshape(24, -1, 4, 2)), axis=1).max() < 1e-4

    mirror = tuple(float(x) for x in offset_position(centre.ra_deg, centre.dec_deg, 0.5, bearing_deg + 180.0))
    uv = _phased_to(_read(tmp_path / "out" / truth.groups[0].files[0]), truth, *mirror)
    assert np.abs(np.angle(uv.data_array[uv.ant_1_array != uv.ant_2_array])).max() > 1.0
