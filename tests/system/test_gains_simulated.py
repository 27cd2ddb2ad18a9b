"""Simulated subbands through conversion, solving and application: the truth comes out."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from nightbeam.casa.tables import open_table
from nightbeam.cli.gains import gains as command
from nightbeam.gains import ModelSource, SolveOptions, apply_gains, match_calibrators, read_caltable, solve_gains
from nightbeam.gains.compute import direction_cosines, gain_cube
from nightbeam.gains.files import read_layout
from nightbeam.simulate import Fault, SimulationSpec, SkySource, simulate_subbands
from nightbeam.sky import beam_attenuation, read_calibrators, separation
from nightbeam.uvh5.convert import convert_group

pytestmark = pytest.mark.system

C = 299_792_458.0
# 0.3 and 0.4 deg from 3C48, in two directions
SOURCES = (SkySource("north-east", 24.65, 33.39, 1.2, -0.7), SkySource("west", 23.95, 33.05, 0.8, 0.0))

STATIONS = (1, 5, 9, 13, 17, 20, 24, 28, 32, 36, 70, 75, 80, 90, 100, 103)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """One group around 3C48 with two known sources and one dead antenna, converted."""
    home = tmp_path_factory.mktemp("night")
    spec = SimulationSpec(
        antennas=16, channels=4, subbands=4, integrations=6, calibrator="0137+331", sources=SOURCES,
        faults=(Fault.parse("dead-antenna:24"),), stations=STATIONS,
        seed=11, noise=0.5,
    )  # fmt: skip
    truth = simulate_subbands(home / "in", spec)
    group = truth.groups[0]
    convert_group([home / "in" / name for name in group.files], home / "a.ms", expected_subbands=4)
    return home, truth, group


@pytest.fixture(scope="module")
def solved(night):
    home, truth, group = night
    calibrator = match_calibrators(
        read_calibrators(),
        mid_mjd=group.mid_jd - 2400000.5,
        dec_apparent_rad=math.radians(truth.array.dec_apparent_deg),
    )[0]
    others = [ModelSource(s.name, s.ra_deg, s.dec_deg, s.flux_jy, s.spectral_index) for s in SOURCES]
    found = solve_gains(
        home / "a.ms", calibrator, home / "cal" / "a_0", others=others,
        options=SolveOptions(refants=("103",)), work_dir=home / "work", log=home / "log",
    )  # fmt: skip
    return found, apply_gains(home / "a.ms", found.tables, work_dir=home / "work", log=home / "log")


def errors(night, found):
    """Amplitude ratios and phase differences (deg) of solved over simulated gains: (station, chan, pol)."""
    home, truth, group = night
    layout = read_layout(home / "a.ms")
    stations = [s for s in truth.array.stations if s not in group.dead_stations]
    index = [layout.antenna_names.index(str(s)) for s in stations]
    ratios = []
    for window, freqs in enumerate(layout.channel_hz):
        whole = 1.0
        for table in found.tables:
            cube, bad = gain_cube(read_caltable(table.path), window, freqs, group.mid_jd - 2400000.5)
            assert not bad[index].any()
            whole = whole * cube[index]
        true = np.array([[truth.receptor_gain(freqs, s, p) for p in ("XX", "YY")] for s in stations])
        reference = np.array([truth.receptor_gain(freqs, int(found.report.refant), p) for p in ("XX", "YY")])
        # the Measurement Set holds conjugate visibilities; phases are those relative to the reference antenna
        true = np.conj(true * np.exp(-1j * np.angle(reference))).transpose(0, 2, 1)
        ratios.append(whole / true)
    ratio = np.concatenate(ratios, axis=1)
    return np.abs(ratio), np.degrees(np.angle(ratio))


def test_gains_and_bandpass_come_out_of_the_noise(night, solved):
    found, _ = solved
    amplitude, phase = errors(night, found)
    # noise 0.5 Jy on 16.5 Jy, 14 baselines, 6 integrations: 0.5 / 16.5 / sqrt(84) = 0.33 % a channel; the phase is
    # a difference of two antennas, sqrt(2) times 0.19 deg
    assert abs(amplitude.mean() - 1) < 0.002
    assert amplitude.std() < 0.006
    assert np.sqrt(np.mean(phase**2)) < 0.5
    # over the 16 channels
    assert amplitude.mean(axis=1).std() < 0.002
    assert np.sqrt(np.mean(phase.mean(axis=1) ** 2)) < 0.15


def test_the_dead_antenna_is_left_out(solved):
    found, _ = solved
    assert found.report.flags.dead == ("24",)
    assert all(t.antennas_with_solutions == 15 and t.flagged_fraction == 0.0 for t in found.report.tables)
    assert found.report.refant == "103"


def test_calibrated_fluxes_are_within_two_percent_of_the_truth(night, solved):
    """Each source by itself: the data times the conjugate of its fringe, the others' model taken away first."""
    home, truth, group = night
    _, applied = solved
    assert applied.corrected_over_model == pytest.approx(1.0, abs=0.002)
    layout = read_layout(home / "a.ms")
    ra0, dec0 = layout.field_deg[0]
    with open_table(home / "a.ms") as table:
        data, flags = table.getcol("CORRECTED_DATA"), table.getcol("FLAG")
        uvw, ddid = table.getcol("UVW"), table.getcol("DATA_DESC_ID")
        times = table.getcol("TIME") / 86400.0
    freqs = np.array(layout.channel_hz)[np.array(layout.window_of_ddid)[ddid]]
    every = list(truth.sources)
    patterns = [_pattern(s, uvw, freqs, times, ra0, dec0, group) for s in every]
    good = ~flags
    stacked = np.stack([np.broadcast_to(p[:, :, None], data.shape)[good] for p in patterns])
    # least squares for all fluxes at once, from the visibilities: no imager and no gridding in between
    normal = (stacked.conj() @ stacked.T).real
    flux = np.linalg.solve(normal, (stacked.conj() @ data[good]).real)
    for source, found in zip(every, flux, strict=True):
        assert found == pytest.approx(1.0, abs=0.02), f"{source.name}: {found:.4f} of its flux"


def _pattern(source, uvw, freqs, times, ra0, dec0, group):
    """One source's visibilities by its true flux, with the beam where the meridian is at each time."""
    lmn = direction_cosines(np.array([source.ra_deg]), np.array([source.dec_deg]), ra0, dec0)[0]
    east = (times - (group.mid_jd - 2400000.5)) * 86400.0 * 15.041068 / 3600.0
    theta = np.radians(separation(ra0 + east, np.full_like(east, dec0), source.ra_deg, source.dec_deg))
    beam = beam_attenuation(theta[:, None], freqs, model="dsacalib", diameter_m=4.65)
    spectrum = source.flux_jy * (freqs / 1.405e9) ** source.spectral_index
    return spectrum * beam * np.exp(2j * np.pi * (uvw @ lmn)[:, None] * freqs / C)


def test_the_command_matches_solves_and_applies(night):
    home, _, _ = night
    run = CliRunner().invoke
    matched = run(command, ["match", "--ms", str(home / "a.ms"), "--json"], obj={})
    assert json.loads(matched.stdout)["name"] == "0137+331"
    dry = run(command, ["solve", str(home / "a.ms"), "--dry-run", "--json"], obj={})
    assert json.loads(dry.stdout)["calibrator"]["name"] == "0137+331"
    solved = run(
        command, ["solve", str(home / "a.ms"), "--calibrator", "3C48", "--out", str(home / "b_0"), "--json"], obj={}
    )
    assert solved.exit_code == 0, solved.output
    assert [t["kind"] for t in json.loads(solved.stdout)["tables"]] == ["BP", "GA"]
    applied = run(command, ["apply", str(home / "a.ms"), "--tables", str(home / "b_0"), "--json"], obj={})
    assert applied.exit_code == 0, applied.output
    assert json.loads(applied.stdout)["corrected_over_model"] == pytest.approx(1.0, abs=0.01)
