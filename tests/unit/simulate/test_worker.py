"""Whole simulations: what is planned, written, repeated, and what goes wrong on purpose."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from nightbeam.core.errors import InputError, MissingError, StorageError, UsageError
from nightbeam.core.keys import SubbandName
from nightbeam.core.times import datetime_from_jd
from nightbeam.simulate import (
    Fault,
    SimulationSpec,
    SkySource,
    Truth,
    expected_sources,
    plan_simulation,
    simulate_subbands,
)
from nightbeam.simulate.compute import CADENCE_S
from nightbeam.sky import OVRO_DSA110, apparent_hadec, beam_attenuation, separation

TINY = SimulationSpec(antennas=4, channels=2, integrations=2, subbands=3, sources=2)


def _vis(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file["Data/visdata"][:, 0])


def _pairs(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        return np.asarray(file["Header/ant_1_array"][:]), np.asarray(file["Header/ant_2_array"][:])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path):
    one = simulate_subbands(tmp_path / "one", TINY)
    two = simulate_subbands(tmp_path / "two", TINY)
    assert one == two
    for name in one.groups[0].files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_another_seed_gives_another_sky_noise_and_gains(tmp_path: Path):
    one = simulate_subbands(tmp_path / "one", TINY)
    two = simulate_subbands(tmp_path / "two", replace(TINY, seed=1))
    assert one.sources != two.sources
    assert one.gains != two.gains
    first = [_vis(tmp_path / d / t.groups[0].files[0]) for d, t in (("one", one), ("two", two))]
    assert not np.array_equal(*first)


def test_nothing_is_left_but_finished_files_and_the_truth(tmp_path: Path):
    truth = simulate_subbands(tmp_path / "out", replace(TINY, groups=2))
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"truth.json", *truth.groups[0].files, *truth.groups[1].files}
    assert all(SubbandName.parse(n) for n in names - {"truth.json"})


def test_files_are_incomplete_until_they_are_renamed(tmp_path: Path):
    seen: list[set[str]] = []
    simulate_subbands(tmp_path / "out", TINY, on_file=lambda path: seen.append({p.name for p in path.parent.iterdir()}))
    assert [sum("_incomplete" in name for name in names) for names in seen] == [2, 1, 0]
    assert all("truth.json" in names for names in seen)


def test_groups_follow_the_cadence_and_are_named_by_their_headers(tmp_path: Path):
    truth = simulate_subbands(
        tmp_path / "out", replace(TINY, groups=3, start=datetime(2025, 10, 3, 11, 48, 57, tzinfo=UTC))
    )
    assert [g.group_id for g in truth.groups] == ["2025-10-03T11:48:57", "2025-10-03T11:54:06", "2025-10-03T11:59:15"]
    assert np.diff([g.start_jd for g in truth.groups]) * 86400 == pytest.approx(CADENCE_S, abs=1e-3)
    for group in truth.groups:
        with h5py.File(tmp_path / "out" / group.files[0]) as file:
            assert file["Header/time_array"][0] == group.start_jd


def test_names_are_clocks_shortly_before_the_first_sample():
    truth = plan_simulation(replace(TINY, groups=50, subbands=16, sources=0))
    for group in truth.groups:
        sample = datetime_from_jd(group.start_jd).timestamp() - 6.442
        stamps = [SubbandName.parse(n).stamp.timestamp() for n in group.files]  # type: ignore[union-attr]
        assert 0 < sample - max(stamps) <= 4.5
        assert sample - min(stamps) <= 105
    assert sum(len({n[:19] for n in g.files}) > 1 for g in truth.groups) > 40


def test_a_stride_leaves_observations_out():
    truth = plan_simulation(replace(TINY, groups=2, stride=5))
    assert (truth.groups[1].start_jd - truth.groups[0].start_jd) * 86400 == pytest.approx(5 * CADENCE_S, abs=1e-3)


def test_strides_may_differ_from_group_to_group_and_the_last_goes_on():
    truth = plan_simulation(replace(TINY, groups=4, stride=(1, 3)))
    starts = [round((group.start_jd - truth.groups[0].start_jd) * 86400.0 / 309.24) for group in truth.groups]
    assert starts == [0, 1, 4, 7]
    with_calibrator = plan_simulation(replace(TINY, groups=3, stride=(1, 3), calibrator="3C48", calibrator_group=2))
    assert [group.calibrator is not None for group in with_calibrator.groups] == [False, False, True]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_calibrator_transits_in_the_middle_of_its_group(at: int):
    spec = replace(TINY, groups=3, calibrator="3C48", calibrator_group=at, integrations=24)
    truth = plan_simulation(spec)
    assert [g.calibrator for g in truth.groups] == ["0137+331" if k == at else None for k in range(3)]
    group = truth.groups[at]
    assert separation(group.ra_deg, group.dec_deg, 24.42208096, 33.15975916) * 3600 < 0.01
    ha, dec = apparent_hadec(group.mid_jd, 24.42208096, 33.15975916, OVRO_DSA110)
    assert math.degrees(ha) * 3600 == pytest.approx(0.0, abs=0.01)
    assert math.degrees(dec) == pytest.approx(truth.array.dec_apparent_deg, abs=1e-7)
    assert 0 <= (truth.groups[0].start_jd - 2460951.992) < 1.0
    assert truth.sources[0] == SkySource("0137+331", truth.sources[0].ra_deg, truth.sources[0].dec_deg, 16.5)


def test_a_given_declination_is_kept_and_the_calibrator_lies_off_centre():
    truth = plan_simulation(replace(TINY, calibrator="3C48", dec_deg=33.0))
    assert truth.array.dec_apparent_deg == pytest.approx(33.0)
    assert separation(truth.groups[0].ra_deg, truth.groups[0].dec_deg, 24.42208, 33.15976) == pytest.approx(
        0.29, abs=0.02
    )


def test_the_calibrators_group_may_have_its_own_number_of_sources():
    truth = plan_simulation(replace(TINY, groups=2, calibrator="3C48", sources=5, calibrator_sources=1))
    assert [s.name for s in truth.sources] == ["0137+331", "g00s00", *(f"g01s{k:02d}" for k in range(5))]


def test_without_noise_and_gains_a_source_at_the_centre_is_its_flux_on_every_baseline(tmp_path: Path):
    plan = plan_simulation(replace(TINY, integrations=1, sources=0))
    centre = plan.groups[0]
    source = SkySource("s", centre.ra_deg, centre.dec_deg, 3.0, 0.0)
    truth = simulate_subbands(
        tmp_path / "out", replace(TINY, integrations=1, sources=(source,), noise=None, gains=False)
    )
    for name in truth.groups[0].files:
        assert _vis(tmp_path / "out" / name) == pytest.approx(3.0, abs=1e-5)
    assert (truth.gains, truth.bandpass, truth.noise_jy) == ({}, {}, None)


def test_a_source_off_centre_is_dimmed_by_the_beam(tmp_path: Path):
    plan = plan_simulation(replace(TINY, integrations=1, sources=0))
    source = SkySource("s", plan.groups[0].ra_deg, plan.groups[0].dec_deg + 0.8, 3.0, 0.0)
    spec = replace(TINY, integrations=1, subbands=1, sources=(source,), noise=None, gains=False, beam="gaussian")
    truth = simulate_subbands(tmp_path / "out", spec)
    with h5py.File(tmp_path / "out" / truth.groups[0].files[0]) as file:
        freqs = file["Header/freq_array"][0]
        amps = np.abs(file["Data/visdata"][:, 0])
    # Gaussian of FWHM 1.22 lambda/D: exp(-4 ln 2 (0.8 deg / FWHM)^2)
    fwhm = np.degrees(1.22 * 299792458.0 / freqs / 4.65)
    assert amps[0, :, 0] == pytest.approx(3.0 * 0.5 ** (4 * (0.8 / fwhm) ** 2), rel=1e-4)
    assert beam_attenuation(np.radians(0.8), freqs, model="gaussian", diameter_m=4.65)[0] < 0.9


def test_what_an_image_should_show_is_the_mean_of_what_the_files_hold(tmp_path: Path):
    plan = plan_simulation(replace(TINY, integrations=24, sources=0))
    source = SkySource("s", plan.groups[0].ra_deg + 1.2, plan.groups[0].dec_deg, 3.0, -0.7)
    faults = (Fault("missing-subband", 0),)
    spec = replace(TINY, integrations=24, sources=(source,), noise=None, gains=False, faults=faults)
    truth = simulate_subbands(tmp_path / "out", spec)
    (found,) = expected_sources(truth, truth.groups[0].group_id)
    amps = np.stack([np.abs(_vis(tmp_path / "out" / name)) for name in truth.groups[0].files])
    assert found.apparent_jy == pytest.approx(amps.mean(), rel=1e-5)
    assert found.sep_deg == pytest.approx(1.2 * math.cos(math.radians(54.52)), abs=0.01)
    # Between sb01 and sb02 the middle is 1.4753 GHz.
    assert found.flux_jy == pytest.approx(3.0 * (1.4753 / 1.405) ** -0.7, rel=1e-3)
    assert expected_sources(truth, truth.groups[0].group_id, within_deg=0.5) == []
    with pytest.raises(MissingError, match="no group '2000"):
        expected_sources(truth, "2000-01-01T00:00:00")


def test_raw_visibilities_are_the_true_ones_times_the_gains_of_the_truth(tmp_path: Path):
    spec = replace(TINY, noise=None, delay_rms_ns=3.0)
    raw = simulate_subbands(tmp_path / "raw", spec)
    true = simulate_subbands(tmp_path / "true", replace(spec, gains=False))
    assert raw.sources == true.sources
    for name in raw.groups[0].files:
        with h5py.File(tmp_path / "raw" / name) as file:
            freqs = file["Header/freq_array"][0]
        got, wanted = _vis(tmp_path / "raw" / name), _vis(tmp_path / "true" / name)
        for row, (one, two) in enumerate(zip(*_pairs(tmp_path / "raw" / name), strict=True)):
            for p, pol in enumerate(("XX", "YY")):
                gain = raw.receptor_gain(freqs, one + 1, pol) * raw.receptor_gain(freqs, two + 1, pol).conj()
                assert got[row, :, p] == pytest.approx(gain * wanted[row, :, p], rel=1e-4)
    amps = [g.amp for pols in raw.gains.values() for g in pols.values()]
    assert np.mean(amps) == pytest.approx(0.07, rel=0.2)


def test_noise_is_added_in_jansky(tmp_path: Path):
    spec = replace(TINY, channels=48, integrations=4, subbands=1, gains=False, sources=0, noise=0.5)
    truth = simulate_subbands(tmp_path / "out", spec)
    file = tmp_path / "out" / truth.groups[0].files[0]
    one, two = _pairs(file)
    assert _vis(file)[one != two].real.std() == pytest.approx(0.5, rel=0.05)
    assert truth.noise_jy == 0.5


def test_a_missing_subband_never_comes(tmp_path: Path):
    truth = simulate_subbands(tmp_path / "out", replace(TINY, groups=2, faults=(Fault("missing-subband", 1, 1),)))
    assert [g.missing for g in truth.groups] == [(), (1,)]
    present = [sorted(SubbandName.parse(n).subband for n in g.files) for g in truth.groups]  # type: ignore[union-attr]
    assert present == [[0, 1, 2], [0, 2]]
    assert len(list((tmp_path / "out").glob("*.hdf5"))) == 5


def test_a_late_subband_comes_after_the_whole_next_group(tmp_path: Path):
    order: list[str] = []
    truth = simulate_subbands(
        tmp_path / "out",
        replace(TINY, groups=3, faults=(Fault("late-subband", 2, 0),)),
        on_file=lambda path: order.append(path.name),
    )
    late = next(n for n in truth.groups[0].files if "_sb02" in n)
    assert order.index(late) == 5  # two of its own group, three of the next
    assert truth.groups[0].late == (2,)
    assert len(order) == 9


def test_a_dead_antenna_is_exact_zeros_on_all_its_baselines_and_only_there(tmp_path: Path):
    station = plan_simulation(TINY).array.stations[1]
    truth = simulate_subbands(tmp_path / "out", replace(TINY, faults=(Fault("dead-antenna", station),)))
    file = tmp_path / "out" / truth.groups[0].files[0]
    one, two = _pairs(file)
    dead = (one == station - 1) | (two == station - 1)
    assert not _vis(file)[dead].any()
    assert np.abs(_vis(file)[~dead]).min() > 0
    assert truth.groups[0].dead_stations == (station,)


def test_a_fault_without_a_number_is_drawn_and_recorded():
    truth = plan_simulation(replace(TINY, groups=3, faults=(Fault("missing-subband"), Fault("dead-antenna"))))
    assert sum(len(g.missing) for g in truth.groups) == 1
    assert all(len(g.dead_stations) == 1 and g.dead_stations[0] in truth.array.stations for g in truth.groups)
    assert [Fault.parse(f).number is not None for f in truth.faults] == [True, True]


def test_at_a_rate_files_come_with_their_spacing(tmp_path: Path):
    waits: list[float] = []
    clock = [0.0]

    def pause(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    simulate_subbands(tmp_path / "out", replace(TINY, groups=3, rate=10.0), pause=pause, clock=lambda: clock[0])
    # Two more groups after the first: two cadences, ten times faster, give or take the seconds of copying.
    assert sum(waits) == pytest.approx(2 * CADENCE_S / 10, abs=0.5)
    assert max(waits) == pytest.approx(CADENCE_S / 10, abs=0.5)


def test_at_once_nobody_waits(tmp_path: Path):
    simulate_subbands(tmp_path / "out", replace(TINY, groups=2), pause=lambda _: pytest.fail("waited"))


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path):
    simulate_subbands(tmp_path / "out", TINY)
    with pytest.raises(InputError, match="is not empty") as caught:
        simulate_subbands(tmp_path / "out", TINY)
    assert "--overwrite" in caught.value.fix


def test_overwriting_removes_the_earlier_simulation_and_nothing_else(tmp_path: Path):
    out = tmp_path / "out"
    earlier = simulate_subbands(out, replace(TINY, seed=5, start=datetime(2025, 1, 1, tzinfo=UTC)))
    (out / "notes.txt").write_text("mine")
    (out / earlier.groups[0].files[0].replace(".hdf5", "_incomplete.hdf5")).write_bytes(b"a killed run left this")
    truth = simulate_subbands(out, TINY, overwrite=True)
    assert {p.name for p in out.iterdir()} == {"notes.txt", "truth.json", *truth.groups[0].files}


def test_what_no_simulation_wrote_is_never_overwritten(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "2025-10-02T01:02:03_sb00.hdf5").write_bytes(b"real data")
    with pytest.raises(InputError, match="nothing there is ours"):
        simulate_subbands(out, TINY, overwrite=True)
    assert (out / "2025-10-02T01:02:03_sb00.hdf5").read_bytes() == b"real data"


def test_a_file_where_a_directory_should_be_is_named(tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is no directory"):
        simulate_subbands(tmp_path / "out", TINY)


def test_too_little_space_is_found_before_the_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(StorageError, match="the simulation needs"):
        simulate_subbands(tmp_path / "out", TINY)
    assert not list((tmp_path / "out").glob("*.hdf5"))


def test_a_plan_writes_nothing(tmp_path: Path):
    truth = plan_simulation(replace(TINY, groups=2))
    assert isinstance(truth, Truth)
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 0}, "groups is 0"),
        ({"antennas": 97}, "97 antennas"),
        ({"channels": 0}, "channels is 0"),
        ({"subbands": 17}, "subbands is 17"),
        ({"integrations": 25}, "integrations is 25"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": (1, 0)}, "stride is"),
        ({"stride": ()}, "stride is"),
        ({"rate": -1.0}, "rate is -1"),
        ({"rate": math.nan}, "rate is nan"),
        ({"noise": -1.0}, "noise is -1"),
        ({"dec_deg": -80.0}, "never above the horizon"),
        ({"beam": "sinc"}, "no beam model"),
        ({"sources": -1}, "-1 sources"),
        ({"stations": (1, 118)}, "cannot be simulated"),
        ({"stations": (1, 1)}, "cannot be simulated"),
        ({"calibrator_group": 1}, "no group 1"),
        ({"calibrator": "3C48", "dec_deg": 54.0}, "outside the beam"),
        ({"faults": (Fault("missing-subband", 3),)}, "no subband 3"),
        ({"faults": (Fault("late-subband", 1, 4),)}, "no group 4"),
        ({"faults": (Fault("dead-antenna", 117),)}, "no station 117"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(changes: dict[str, object], message: str):
    with pytest.raises(UsageError, match=message) as caught:
        plan_simulation(replace(TINY, **changes))  # type: ignore[arg-type]
    assert caught.value.fix


def test_an_unknown_calibrator_is_missed():
    with pytest.raises(MissingError, match="no calibrator '3C999'"):
        plan_simulation(replace(TINY, calibrator="3C999"))
