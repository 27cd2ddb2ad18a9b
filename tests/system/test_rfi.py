"""AOFlagger on a simulated sky with interference whose place we know."""

import shutil

import numpy as np
import pytest

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import ToolError
from nightbeam.rfi import FlagOptions, flag_ms
from nightbeam.simulate import SimulationSpec, simulate_subbands
from nightbeam.uvh5 import convert_group

pytestmark = pytest.mark.system

#: Window and channel of carriers that are always there, and integrations in which all channels are hit.
NARROW = ((1, 3), (5, 0), (9, 6), (13, 2))
BROAD = (7, 15)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Ten antennas, 16 windows of 8 channels, radiometer noise and a few sources."""
    root = tmp_path_factory.mktemp("rfi")
    truth = simulate_subbands(
        root / "in", SimulationSpec(antennas=10, channels=8, gains=False, noise="radiometer", sources=3, seed=8)
    )
    return convert_group([root / "in" / name for name in truth.groups[0].files], root / "clean.ms", max_workers=1).ms


def columns(ms):
    with open_table(ms) as table:
        return {name: table.getcol(name) for name in ("DATA", "FLAG", "TIME", "DATA_DESC_ID", "ANTENNA1", "ANTENNA2")}


def run(ms, tmp_path, **options):
    return flag_ms(
        ms, options=FlagOptions(**options), work_dir=tmp_path / "scratch", log=tmp_path / "log", timeout_s=300
    )


def test_noise_alone_is_hardly_flagged_and_old_flags_stay(clean, tmp_path):
    own = shutil.copytree(clean, tmp_path / "own.ms")
    with open_table(own, write=True) as table:
        flags = table.getcol("FLAG")
        flags[:, 4] = True  # as if convert had found a channel of zeros
        table.putcol("FLAG", flags)
    before = columns(own)
    report = run(own, tmp_path)
    after = columns(own)
    assert report.before == pytest.approx(1 / 8, abs=1e-3)
    assert after["FLAG"][before["FLAG"]].all()
    assert report.after - report.before < 0.01
    assert np.array_equal(after["DATA"], before["DATA"])
    with open_table(own) as table:
        assert "QUALITY_TIME_STATISTIC" not in table.keywordnames()  # AOFlagger wrote those into the twin


@pytest.mark.parametrize(("level", "least"), [(3.0, 0.85), (10.0, 0.999)])
def test_carriers_and_bursts_are_found_and_little_else(clean, tmp_path, level, least):
    own = shutil.copytree(clean, tmp_path / "own.ms")
    seen = columns(own)
    cross = seen["ANTENNA1"] != seen["ANTENNA2"]
    hit = np.zeros(seen["DATA"].shape, bool)
    for window, channel in NARROW:
        hit[seen["DATA_DESC_ID"] == window, channel] = True
    hit[np.isin(seen["TIME"], np.unique(seen["TIME"])[list(BROAD)])] = True
    hit &= cross[:, None, None]
    sigma = np.median(np.abs(seen["DATA"][cross])) / np.sqrt(2.0 * np.log(2.0))  # of one part: a Rayleigh median
    phase = np.exp(2j * np.pi * np.random.default_rng(3).uniform(size=hit.shape))
    with open_table(own, write=True) as table:
        table.putcol("DATA", (seen["DATA"] + np.where(hit, level * sigma * phase, 0)).astype(np.complex64))
    run(own, tmp_path)
    flags = columns(own)["FLAG"]
    found = flags[hit].mean()
    false = flags[cross[:, None, None] & ~hit].mean()
    assert found > least
    assert false < 0.02


def test_a_strategy_that_is_not_lua_is_quoted(clean, tmp_path):
    own = shutil.copytree(clean, tmp_path / "own.ms")
    (tmp_path / "bad.lua").write_text("function execute(input) this is wrong")
    with pytest.raises(ToolError, match="syntax error near 'is'"):
        run(own, tmp_path, strategy=tmp_path / "bad.lua")
    assert np.array_equal(columns(own)["FLAG"], columns(clean)["FLAG"])
