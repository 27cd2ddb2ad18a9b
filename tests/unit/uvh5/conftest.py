"""Small groups of subbands whose truth is known, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nightbeam.simulate import SimulationSpec, SkySource, Truth, plan_simulation, simulate_subbands
from nightbeam.sky import offset_position


@pytest.fixture(scope="session")
def group_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight antennas, 16 x 8 channels, 24 integrations; one source of 1 Jy 0.5 deg north-east of the centre."""
    out = tmp_path_factory.mktemp("group")
    size = SimulationSpec(antennas=8, channels=8, noise=None, gains=False, sources=())
    centre = plan_simulation(size).groups[0]
    ra, dec = offset_position(centre.ra_deg, centre.dec_deg, 0.5, 45.0)
    source = SkySource("north-east", float(ra), float(dec), 1.0)
    simulate_subbands(out, SimulationSpec(**{**vars(size), "sources": (source,)}))
    return out


@pytest.fixture(scope="session")
def truth(group_dir: Path) -> Truth:
    from nightbeam.simulate import read_truth

    return read_truth(group_dir)


@pytest.fixture(scope="session")
def group_files(group_dir: Path) -> list[Path]:
    return sorted(group_dir.glob("*.hdf5"))


@pytest.fixture
def own_files(group_files: list[Path], tmp_path: Path) -> list[Path]:
    """A copy of the group that a test may spoil; in order of subband."""
    there = tmp_path / "in"
    there.mkdir()
    copies = [Path(shutil.copy2(f, there)) for f in group_files]
    return sorted(copies, key=lambda p: p.name[-7:])
