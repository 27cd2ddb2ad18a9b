"""What goes wrong on purpose: the files that come of each fault, and what the truth says of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from nightbeam.core.errors import InputError, UsageError
from nightbeam.core.keys import GroupId, SubbandName
from nightbeam.core.times import datetime_from_jd
from nightbeam.simulate import (
    FAULT_KINDS,
    Fault,
    SimulationSpec,
    Truth,
    TruthFault,
    plan_simulation,
    read_truth,
    simulate_subbands,
    stated_outcome,
)
from nightbeam.simulate.compute import CADENCE_S, INTEGRATION_S
from nightbeam.simulate.files import SubbandImages, read_stations, subband_image
from nightbeam.simulate.worker import _block, _instrument
from nightbeam.sky import OVRO_DSA110, separation
from nightbeam.uvh5 import check_subband

TINY = SimulationSpec(antennas=4, channels=4, integrations=4, subbands=4, sources=1)
SPEED_OF_LIGHT_M_S = 299792458.0


def _simulate(out: Path, *faults: str, spec: SimulationSpec = TINY) -> Truth:
    return simulate_subbands(out, replace(spec, faults=tuple(map(Fault.parse, faults))))


def _event(truth: Truth) -> TruthFault:
    (event,) = truth.events
    return event


def _vis(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        shape = (int(file["Header/Ntimes"][()]), -1, *file["Data/visdata"].shape[2:])
        return np.asarray(file["Data/visdata"][()]).reshape(shape)


def _header(path: Path, name: str) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file[f"Header/{name}"][()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """The same group with nothing wrong."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, _simulate(out)


@pytest.mark.parametrize(
    ("fault", "kept"), [("truncated-subband:2", 142348126 / 145348600), ("truncated-subband:2=0.5", 0.5)]
)
def test_a_truncated_file_is_the_beginning_of_the_whole_one(
    tmp_path: Path, whole: tuple[Path, Truth], fault: str, kept: float
):
    truth = _simulate(tmp_path / "out", fault)
    name = truth.groups[0].files[2]
    found, wanted = (tmp_path / "out" / name).read_bytes(), (whole[0] / name).read_bytes()
    assert found == wanted[: int(len(wanted) * kept)]
    with pytest.raises(InputError, match="is truncated"):
        check_subband(tmp_path / "out" / name)
    arrival = next(a for a in truth.arrivals if a.name == name)
    assert (arrival.outcome, arrival.reason, arrival.faults) == ("bad", "truncated", truth.faults)
    assert (truth.groups[0].outcome, truth.groups[0].reason) == ("incomplete", "sb02 truncated")
    assert truth.groups[0].usable == (0, 1, 3)


def test_a_file_of_zero_bytes_is_bad(tmp_path: Path):
    truth = _simulate(tmp_path / "out", "zero-byte:1")
    assert (tmp_path / "out" / truth.groups[0].files[1]).stat().st_size == 0
    assert [a.outcome for a in truth.arrivals if a.subband == 1] == ["bad"]
    assert truth.groups[0].reason == "sb01 zero bytes"


def test_a_subband_that_comes_again_has_the_same_bytes_and_another_name(tmp_path: Path):
    truth = _simulate(tmp_path / "out", "duplicate-subband:1")
    first, second = (a for a in truth.arrivals if a.subband == 1)
    assert first.name != second.name
    assert (tmp_path / "out" / first.name).read_bytes() == (tmp_path / "out" / second.name).read_bytes()
    assert second.arrival_s > first.arrival_s
    assert second.name > first.name  # whoever looks at both at once keeps the same one
    assert [first.outcome, second.outcome] == ["used", "duplicate"]
    assert truth.groups[0].outcome == "completed"


def test_a_copy_of_a_bad_file_is_bad_too():
    faults = tuple(map(Fault.parse, ("zero-byte:1@0", "duplicate-subband:1@0")))
    truth = plan_simulation(replace(TINY, faults=faults))
    assert [(a.outcome, a.reason) for a in truth.arrivals if a.subband == 1] == [("bad", "zero bytes")] * 2
    assert truth.groups[0].usable == (0, 2, 3)


def test_a_group_of_which_nothing_comes_holds_nobody_up(tmp_path: Path):
    came: list[str] = []
    faults = tuple(Fault("missing-subband", sb, 1) for sb in range(4))
    spec = replace(TINY, groups=3, faults=faults)
    truth = simulate_subbands(tmp_path / "out", spec, on_file=lambda path: came.append(path.name))
    assert came == [a.name for a in truth.arrivals]
    assert [g.outcome for g in truth.groups] == ["completed", "absent", "completed"]
    assert stated_outcome(truth, truth.groups[1].group_id).state == "absent"


def test_a_file_that_is_written_again_is_another_file_of_the_same_name_and_bytes(
    tmp_path: Path, whole: tuple[Path, Truth]
):
    seen: list[tuple[str, int]] = []
    spec = replace(TINY, faults=(Fault.parse("duplicate-subband:1=rewritten"),))
    truth = simulate_subbands(tmp_path / "out", spec, on_file=lambda path: seen.append((path.name, path.stat().st_ino)))
    name = truth.groups[0].files[1]
    inodes = [inode for found, inode in seen if found == name]
    assert len(set(inodes)) == 2
    assert (tmp_path / "out" / name).read_bytes() == (whole[0] / name).read_bytes()
    assert [(a.name, a.outcome) for a in truth.arrivals if a.subband == 1] == [(name, "used"), (name, "ignored")]


def test_a_block_of_nan_is_where_the_truth_says_and_nowhere_else(tmp_path: Path, whole: tuple[Path, Truth]):
    truth = _simulate(tmp_path / "out", "nan-block:3=0.3")
    event = _event(truth)
    found, wanted = (_vis(out / truth.groups[0].files[3]) for out in (tmp_path / "out", whole[0]))
    block = np.zeros(found.shape, bool)
    block[list(event.integrations), slice(*event.baselines)] = True
    assert block.mean() == pytest.approx(0.3, abs=0.1)
    assert np.array_equal(np.isnan(found), block)
    assert np.array_equal(found[~block], wanted[~block])
    assert (event.flagged, event.file_outcome, event.group_outcome) == (True, "used", "completed")


@pytest.mark.parametrize("seconds", [412, 605])
def test_before_a_restart_files_are_shorter_and_the_next_observation_is_late(tmp_path: Path, seconds: int):
    truth = _simulate(tmp_path / "out", f"restart-gap={seconds}/3@0", spec=replace(TINY, groups=3))
    one, two, three = truth.groups
    assert (two.start_jd - one.start_jd) * 86400 == pytest.approx(seconds, abs=1e-3)
    assert (three.start_jd - two.start_jd) * 86400 == pytest.approx(CADENCE_S, abs=1e-3)
    assert [g.integrations for g in truth.groups] == [3, 4, 4]
    for group in truth.groups:
        for name in group.files:
            header = check_subband(tmp_path / "out" / name)
            assert (header.n_times, header.start_jd) == (group.integrations, group.start_jd)
    # The middle of the first integration is 0; the last ends half of one after its own.
    for index, group in enumerate(truth.groups):
        came = [a.arrival_s for a in truth.arrivals if a.group_id == group.group_id]
        done_s = (group.end_jd - one.start_jd) * 86400 + 0.5 * INTEGRATION_S
        assert min(came) >= done_s, index
        assert max(came) <= done_s + 4.0, index


def test_a_restart_that_is_left_open_is_one_of_the_two_real_ones_and_shortens_a_group():
    spec = replace(TINY, groups=4, faults=(Fault("restart-gap"),))
    for seed in range(10):
        truth = plan_simulation(replace(spec, seed=seed))
        short = [g for g in truth.groups if g.integrations < 4]
        assert len(short) == 1
        assert _event(truth).value in (412, 605)


def test_a_calibrator_still_transits_in_the_middle_of_its_group_after_a_restart():
    spec = replace(TINY, groups=3, calibrator="3C48", calibrator_group=2)
    truth = plan_simulation(
        replace(spec, faults=(Fault.parse("restart-gap=605@0"), Fault.parse("restart-gap=412/2@2")))
    )
    group = truth.groups[2]
    assert separation(group.ra_deg, group.dec_deg, 24.42208096, 33.15975916) * 3600 < 0.01


@pytest.mark.parametrize("seconds", [-40, 82, 400])
def test_a_clock_that_jumps_changes_a_name_and_nothing_else(tmp_path: Path, whole: tuple[Path, Truth], seconds: int):
    truth = _simulate(tmp_path / "out", f"clock-jump:2={seconds}")
    names = truth.groups[0].files
    was, now = (SubbandName.parse(t.groups[0].files[2]) for t in (whole[1], truth))
    assert was is not None
    assert now is not None
    assert (now.stamp - was.stamp).total_seconds() == seconds
    assert (tmp_path / "out" / names[2]).read_bytes() == (whole[0] / whole[1].groups[0].files[2]).read_bytes()
    assert names[:2] == whole[1].groups[0].files[:2]
    assert truth.groups[0].outcome == "completed"


def test_clocks_that_jump_without_a_number_are_one_to_three():
    counts = {
        len(plan_simulation(replace(TINY, seed=seed, faults=(Fault("clock-jump"),))).events) for seed in range(20)
    }
    assert counts == {1, 2, 3}


def test_a_clock_that_jumps_onto_the_name_of_another_file_takes_the_next_second():
    # 309 s back, or more or less, is where the same subband of the group before has its name.
    spec = replace(TINY, groups=2)
    for seconds in range(-312, -305):
        truth = plan_simulation(replace(spec, faults=(Fault.parse(f"clock-jump:1={seconds}@1"),)))
        names = [a.name for a in truth.arrivals]
        assert len(set(names)) == len(names) == 8


def _quiet(**more: object) -> SimulationSpec:
    return replace(TINY, sources=0, noise=None, gains=False, **more)  # type: ignore[arg-type]


def test_a_line_of_interference_is_in_its_channel_in_all_integrations_of_its_subband(tmp_path: Path):
    truth = _simulate(tmp_path / "out", "rfi-line:2=900", spec=_quiet())
    event = _event(truth)
    assert event.subbands == (2,)
    for subband, name in enumerate(truth.groups[0].files):
        vis = _vis(tmp_path / "out" / name)
        touched = np.abs(vis).min(axis=(0, 1, 3)) > 0
        assert np.flatnonzero(touched).tolist() == (list(event.channels) if subband == 2 else [])
        assert not vis[:, :, ~touched].any()
    freqs = _header(tmp_path / "out" / truth.groups[0].files[2], "freq_array")[0]
    assert list(event.freqs_hz) == list(freqs[list(event.channels)])


def test_a_line_is_weaker_in_a_wider_channel_and_the_same_in_every_group(tmp_path: Path):
    fine = _simulate(tmp_path / "fine", "rfi-line:2=900", spec=_quiet(channels=48))
    wide = _simulate(tmp_path / "wide", "rfi-line:2=900", spec=_quiet(groups=2))
    autos = {}
    for out, truth in (("fine", fine), ("wide", wide)):
        for event, group in zip(truth.events, truth.groups, strict=True):
            vis = _vis(tmp_path / out / group.files[2])[0, 0, event.channels[0], 0].real
            autos[out, group.group_id] = float(vis)
    (first, second) = (autos["wide", g.group_id] for g in wide.groups)
    # The power goes up and down by a tenth.
    assert first == pytest.approx(second, rel=0.7)
    assert autos["fine", fine.groups[0].group_id] == pytest.approx(12 * first, rel=1e-5)
    assert len({event.freqs_hz for event in wide.events}) == 1
    assert len({event.what for event in wide.events}) == 1


def test_interference_is_one_signal_from_the_horizon_with_the_delays_of_its_azimuth(tmp_path: Path):
    truth = _simulate(tmp_path / "out", "rfi-burst:1=700", spec=_quiet(channels=48))
    event = _event(truth)
    azimuth = math.radians(float(event.what.split("azimuth ")[1].split(" deg")[0]))
    path = tmp_path / "out" / truth.groups[0].files[0]
    vis = _vis(path)
    assert [bool(np.abs(v).any()) for v in vis] == [False, True, False, False]
    one, two = (_header(path, f"ant_{k}_array").reshape(4, -1)[0] for k in (1, 2))
    freqs = _header(path, "freq_array")[0]
    positions = read_stations().positions_m
    lat, lon = math.radians(OVRO_DSA110.latitude_deg), math.radians(OVRO_DSA110.longitude_deg)
    east = np.array([-math.sin(lon), math.cos(lon), 0.0])
    north = np.array([-math.sin(lat) * math.cos(lon), -math.sin(lat) * math.sin(lon), math.cos(lat)])
    up = np.array([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)])
    dec = math.radians(truth.array.dec_apparent_deg)
    # The phase centre is on the meridian, at the zenith distance lat - dec towards the south.
    centre = math.cos(lat - dec) * up - math.sin(lat - dec) * north
    emitter = math.sin(azimuth) * east + math.cos(azimuth) * north
    power = {int(a): vis[1, row, 0, 0].real for row, (a, b) in enumerate(zip(one, two, strict=True)) if a == b}
    for row, (a, b) in enumerate(zip(one, two, strict=True)):
        seen = vis[1, row, :, 0]
        assert np.abs(seen) == pytest.approx(math.sqrt(power[int(a)] * power[int(b)]), rel=1e-4)
        delay_s = (positions[b] - positions[a]) @ (emitter - centre) / SPEED_OF_LIGHT_M_S
        turned = seen * np.exp(-2j * np.pi * delay_s * (freqs - freqs[0]))
        # The azimuth is given to a tenth of a degree: 2 m at the longest baseline.
        assert np.abs(np.angle(turned / turned[0])).max() < 0.7
    assert np.median(list(power.values())) == pytest.approx(700, rel=0.9)


def test_interference_goes_through_the_gains(tmp_path: Path):
    quiet = _simulate(tmp_path / "one", "rfi-burst:1=700", spec=_quiet())
    raw = _simulate(tmp_path / "two", "rfi-burst:1=700", spec=replace(_quiet(), gains=True))
    name = quiet.groups[0].files[0]
    one, two = (_header(tmp_path / "one" / name, f"ant_{k}_array").reshape(4, -1)[0] for k in (1, 2))
    freqs = _header(tmp_path / "one" / name, "freq_array")[0]
    found, before = _vis(tmp_path / "two" / name)[1], _vis(tmp_path / "one" / name)[1]
    for row, (a, b) in enumerate(zip(one, two, strict=True)):
        gain = raw.receptor_gain(freqs, a + 1, "YY") * raw.receptor_gain(freqs, b + 1, "YY").conj()
        assert found[row, :, 1] == pytest.approx(gain * before[row, :, 1], rel=1e-4)


def test_one_header_that_points_elsewhere_makes_its_file_bad_and_leaves_its_data(
    tmp_path: Path, whole: tuple[Path, Truth]
):
    truth = _simulate(tmp_path / "out", "wrong-pointing:1=-0.5")
    decs = [math.degrees(check_subband(tmp_path / "out" / name).dec_rad) for name in truth.groups[0].files]
    assert decs == pytest.approx([54.57, 54.07, 54.57, 54.57])
    name = truth.groups[0].files[1]
    assert np.array_equal(_vis(tmp_path / "out" / name), _vis(whole[0] / name))
    assert [a.reason for a in truth.arrivals if a.outcome == "bad"] == ["pointing"]
    assert truth.groups[0].usable == (0, 2, 3)
    assert truth.groups[0].header_dec_deg == pytest.approx(54.57)


def test_headers_that_all_point_elsewhere_cannot_be_known(tmp_path: Path, whole: tuple[Path, Truth]):
    truth = _simulate(tmp_path / "out", "wrong-pointing=0.4")
    for name in truth.groups[0].files:
        assert math.degrees(check_subband(tmp_path / "out" / name).dec_rad) == pytest.approx(54.97)
        assert np.array_equal(_vis(tmp_path / "out" / name), _vis(whole[0] / name))
    assert truth.groups[0].outcome == "completed"
    assert truth.groups[0].header_dec_deg == pytest.approx(54.97)
    assert truth.groups[0].dec_deg == whole[1].groups[0].dec_deg


def test_one_header_is_off_from_the_others_also_where_all_are_off(tmp_path: Path):
    truth = _simulate(tmp_path / "out", "wrong-pointing=0.4@0", "wrong-pointing:1=0.4@0")
    decs = [math.degrees(check_subband(tmp_path / "out" / name).dec_rad) for name in truth.groups[0].files]
    assert decs == pytest.approx([54.97, 55.37, 54.97, 54.97])
    assert truth.groups[0].usable == (0, 2, 3)
    assert truth.groups[0].header_dec_deg == pytest.approx(54.97)


def test_where_as_many_headers_point_here_as_there_nobody_is_wrong():
    faults = (Fault("wrong-pointing", 0), Fault("wrong-pointing", 1))
    truth = plan_simulation(replace(TINY, faults=faults))
    assert truth.events == ()
    assert truth.groups[0].outcome == "completed"


@pytest.mark.parametrize(
    ("what", "outcome", "refusal"),
    [
        ("text", "bad", "not an HDF5 file"),
        ("no-header", "bad", "no Header"),
        ("shape", "bad", "the header promises"),
        ("extra-subband", "bad", None),
        ("spl", "ignored", None),
        ("hidden", "ignored", None),
        ("incomplete", "ignored", None),
    ],
)
def test_a_foreign_file_is_what_it_says_and_the_group_is_as_without_it(
    tmp_path: Path, whole: tuple[Path, Truth], what: str, outcome: str, refusal: str | None
):
    truth = _simulate(tmp_path / "out", f"foreign-file:1={what}")
    (arrival,) = (a for a in truth.arrivals if a.subband is None)
    assert arrival.outcome == outcome
    assert (SubbandName.parse(arrival.name) is None) == (outcome == "ignored")
    if refusal:
        with pytest.raises(InputError, match=refusal):
            check_subband(tmp_path / "out" / arrival.name)
    if what == "extra-subband":
        # Subband 15 ends at 1311.265 MHz.
        assert _header(tmp_path / "out" / arrival.name, "freq_array").max() < 1311.265e6
        assert "_sb16" in arrival.name
    assert truth.groups[0] == whole[1].groups[0]
    for name in truth.groups[0].files:
        assert (tmp_path / "out" / name).read_bytes() == (whole[0] / name).read_bytes()


def test_the_headers_of_the_files_to_be_used_form_the_groups_of_the_truth_whatever_their_names_say(tmp_path: Path):
    spec = replace(TINY, groups=30, integrations=2, channels=2, sources=0, fault_rate=1.0, arrivals="real", seed=3)
    jumps = tuple(map(Fault.parse, ("clock-jump:0=-309@4", "clock-jump:1=82@4", "clock-jump:2=3000@4")))
    truth = simulate_subbands(tmp_path / "out", replace(spec, faults=jumps))
    found: dict[str, tuple[int, ...]] = {}
    for arrival in sorted(truth.arrivals, key=lambda a: a.subband or 0):
        if arrival.outcome == "used" and arrival.subband is not None:
            header = check_subband(tmp_path / "out" / arrival.name)
            group_id = str(GroupId.from_jd(header.start_jd))
            found[group_id] = (*found.get(group_id, ()), arrival.subband)
    assert found == {g.group_id: g.usable for g in truth.groups if g.usable}


def test_nothing_but_what_the_truth_lists_is_left_and_overwriting_takes_all_of_it(tmp_path: Path):
    spec = replace(TINY, groups=20, sources=0, integrations=2, fault_rate=1.0)
    truth = simulate_subbands(tmp_path / "out", spec)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"truth.json", *(a.name for a in truth.arrivals)}
    assert read_truth(tmp_path / "out") == truth
    later = simulate_subbands(tmp_path / "out", replace(TINY, seed=1), overwrite=True)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"truth.json", *later.groups[0].files}


def test_at_a_rate_every_file_comes_at_its_time_also_after_the_end_of_the_night(tmp_path: Path):
    now = [100.0]
    came: list[tuple[str, float]] = []

    def pause(seconds: float) -> None:
        now[0] += seconds

    faults = tuple(map(Fault.parse, ("late-subband:1=2000@2", "duplicate-subband:0@0", "restart-gap=605@0")))
    truth = simulate_subbands(
        tmp_path / "out",
        replace(TINY, groups=3, rate=60.0, faults=faults),
        on_file=lambda path: came.append((path.name, now[0] - 100.0)),
        pause=pause,
        clock=lambda: now[0],
    )
    assert [name for name, _ in came] == [a.name for a in truth.arrivals]
    first_s = truth.arrivals[0].arrival_s
    assert [when for _, when in came] == pytest.approx([(a.arrival_s - first_s) / 60.0 for a in truth.arrivals])
    assert truth.arrivals[-1].subband == 1
    assert truth.arrivals[-1].arrival_s > truth.arrivals[-2].arrival_s + 1900


def test_a_simulator_that_fell_behind_catches_up(tmp_path: Path):
    now = [0.0]
    waits: list[float] = []

    def slow(_: Path) -> None:
        now[0] += 3.0  # longer than the 0.5 s between two groups at this rate

    simulate_subbands(
        tmp_path / "out", replace(TINY, groups=3, rate=600.0), on_file=slow, pause=waits.append, clock=lambda: now[0]
    )
    assert sum(waits) < 0.1


@pytest.mark.parametrize(
    ("faults", "policy", "state", "used", "late", "reason"),
    [
        ((), {}, "completed", (0, 1, 2, 3), (), ""),
        (("missing-subband:1@0",), {}, "failed", (0, 2, 3), (), "sb01 missing"),
        (("missing-subband:1@0",), {"minimum_subbands": 3}, "partial", (0, 2, 3), (), "sb01 missing"),
        (
            ("missing-subband:1@0", "zero-byte:0@0"),
            {"minimum_subbands": 3},
            "failed",
            (2, 3),
            (),
            "sb00 zero bytes; sb01 missing",
        ),
        (("late-subband:1=500@0",), {}, "completed", (0, 1, 2, 3), (), ""),
        (("late-subband:1=500@0",), {"timeout_s": 400.0}, "failed", (0, 2, 3), (1,), "sb01 late"),
        (
            ("late-subband:1=500@0",),
            {"timeout_s": 400.0, "minimum_subbands": 3},
            "partial",
            (0, 2, 3),
            (1,),
            "sb01 late",
        ),
        (("restart-gap=412/2@0",), {}, "completed", (0, 1, 2, 3), (), ""),
        (("restart-gap=412/2@0",), {"minimum_integrations": 3}, "failed", (0, 1, 2, 3), (), "2 integrations"),
        (
            tuple(f"zero-byte:{sb}@0" for sb in range(4)),
            {},
            "absent",
            (),
            (),
            "sb00 zero bytes; sb01 zero bytes; sb02 zero bytes; sb03 zero bytes",
        ),
    ],
)
def test_how_a_group_should_end_follows_from_the_policy(
    faults: tuple[str, ...],
    policy: dict[str, float],
    state: str,
    used: tuple[int, ...],
    late: tuple[int, ...],
    reason: str,
):
    truth = plan_simulation(replace(TINY, faults=tuple(map(Fault.parse, faults))))
    found = stated_outcome(truth, truth.groups[0].group_id, **policy)  # type: ignore[arg-type]
    assert (found.state, found.used, found.late, found.reason) == (state, used, late, reason)


def test_a_night_of_everything_has_each_kind_at_least_once_and_one_in_a_group():
    spec = replace(TINY, groups=60, fault_rate=0.5, calibrator="3C48", calibrator_group=7, antennas=8)
    truth = plan_simulation(spec)
    assert {event.kind for event in truth.events} == set(FAULT_KINDS)
    ids = [g.group_id for g in truth.groups]
    hit = {event.group_id: event.kind for event in truth.events}
    assert len(hit) == 30
    assert len({(event.group_id, event.kind) for event in truth.events}) == 30
    assert ids[7] not in hit
    values = {Fault.parse(e.fault).value for e in truth.events}
    assert {
        "renamed",
        "rewritten",
        "text",
        "no-header",
        "shape",
        "extra-subband",
        "spl",
        "hidden",
        "incomplete",
    } <= values
    assert plan_simulation(spec) == truth
    assert plan_simulation(replace(spec, seed=1)).faults != truth.faults


def test_few_groups_have_as_many_kinds_as_there_are_groups():
    truth = plan_simulation(replace(TINY, groups=5, fault_rate=0.01))
    kinds = {(event.group_id, event.kind) for event in truth.events}
    assert len(kinds) == len({kind for _, kind in kinds}) == 5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("zero-byte:4", "no subband 4"),
        ("zero-byte:1=3", "takes no value"),
        ("missing-subband:1=3", "takes no value"),
        ("dead-antenna:117", "no station 117"),
        ("rfi-burst:4", "no integration 4"),
        ("rfi-line:1=loud", "'loud' is no number"),
        ("rfi-line:1=nan", "the value is nan"),
        ("truncated-subband:1=1.0", "the value is 1"),
        ("nan-block:1=0.95", "the value is 0.95"),
        ("clock-jump:1=9999999", "the value is"),
        ("late-subband:1=-3", "the value is -3"),
        ("restart-gap:1", "concerns all subbands"),
        ("restart-gap=100", "the value is 100"),
        ("restart-gap=412/5", "'5' integrations"),
        ("restart-gap=412/", "'' integrations"),
        ("duplicate-subband:1=twice", "no duplicate-subband is 'twice'"),
        ("foreign-file:1=cat", "no foreign-file is 'cat'"),
        ("wrong-pointing=0", "the value is 0"),
        ("wrong-pointing=60", "no header can say that"),
        ("zero-byte@1", "no group 1"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(fault: str, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        plan_simulation(replace(TINY, faults=(Fault.parse(fault),)))
    assert caught.value.fix


def test_of_two_subbands_nobody_can_say_which_header_is_wrong():
    with pytest.raises(UsageError, match="nothing tells which"):
        plan_simulation(replace(TINY, subbands=2, faults=(Fault("wrong-pointing", 1),)))


@pytest.mark.parametrize("change", [{"fault_rate": 1.5}, {"fault_rate": math.nan}, {"arrivals": "sometimes"}])
def test_a_night_that_makes_no_sense_is_refused(change: dict[str, object]):
    with pytest.raises(UsageError) as caught:
        plan_simulation(replace(TINY, **change))  # type: ignore[arg-type]
    assert caught.value.fix


def test_a_truth_from_before_there_were_outcomes_is_still_read(tmp_path: Path):
    import json

    truth = _simulate(tmp_path / "out", "missing-subband:1")
    tree = json.loads((tmp_path / "out" / "truth.json").read_text())
    for name in ("events", "arrivals"):
        del tree[name]
    for group in tree["groups"]:
        for name in ("integrations", "usable", "header_dec_deg", "outcome", "reason"):
            del group[name]
    (tmp_path / "truth.json").write_text(json.dumps(tree))
    found = read_truth(tmp_path / "truth.json")
    assert found.groups == tuple(replace(g, reason="") for g in truth.groups)
    assert found.events == ()


@pytest.mark.parametrize("fault", [None, "wrong-pointing=0.2", "restart-gap=412/1@0"])
def test_images_made_from_a_pattern_have_the_bytes_of_those_made_anew(fault: str | None):
    spec = replace(TINY, groups=2, faults=(Fault.parse(fault),) if fault else ())
    truth = plan_simulation(spec)
    instrument, images = _instrument(truth), SubbandImages()
    make: Callable[..., bytes] = images.image
    for index in range(2):
        for subband in range(4):
            events = [e for e in truth.events if e.group_id == truth.groups[index].group_id]
            block = _block(truth, instrument, index, subband, events)
            assert make(block) == subband_image(block)


def test_a_name_stays_near_the_start_of_its_data_unless_its_clock_jumped():
    truth = plan_simulation(replace(TINY, groups=40, fault_rate=1.0, subbands=16))
    jumped = {name for event in truth.events if event.kind == "clock-jump" for name in event.files}
    for group in truth.groups:
        start = datetime_from_jd(group.start_jd)
        for name in set(group.files) - jumped:
            found = SubbandName.parse(name)
            assert found is not None
            assert 0 <= (start - found.stamp).total_seconds() <= 105
