"""Simulated nights: the store is what the truth says, and every fault is what it is called."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nightbeam.atmosphere import ClosedFormAtmosphere
from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.scans.compute import flag_spikes
from nightbeam.scans.files import RawStore, scan_name
from nightbeam.scans.model import (
    Atmosphere,
    AtmosphereFitError,
    CalibrationError,
    CalibrationLoadFull,
    Flag,
    OpaqueError,
    Phase,
    RawScan,
    ScanLimits,
)
from nightbeam.scans.stages import calibrate_full, determine_atmosphere_full, load_of_scan, prepare_otf, prepare_tp
from nightbeam.testing.dish import Dish, Line
from nightbeam.testing.night import (
    OWN,
    SHARED,
    Fault,
    NightPlan,
    NightTruth,
    ScanTruth,
    leave_incomplete,
    read_truth,
    simulate_night,
    truth_path,
    truth_spectrum,
    write_zarr_v2,
)
from nightbeam.testing.night_faults import FAULT_KINDS

pytestmark = pytest.mark.slow

AIR = ClosedFormAtmosphere()
SMALL = NightPlan(scans=5, pixels=2, channels=32, rows=2, dumps=5, calibration_every=2, mode="both")
#: Scan 1 is good, so is the last one.
SCAN_OF = {kind: 2 + n for n, kind in enumerate(FAULT_KINDS)}
ENDING = [kind for kind, meaning in FAULT_KINDS.items() if meaning.error is not None]
FLAGGING = [kind for kind in FAULT_KINDS if kind not in ENDING]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[RawStore, NightTruth]:
    """A night in which everything goes wrong, each in one scan."""
    path = tmp_path_factory.mktemp("night") / "night.zarr"
    faults = tuple(Fault(kind, scan) for kind, scan in SCAN_OF.items())
    truth = simulate_night(path, replace(SMALL, scans=len(faults) + 2, calibration_every=6, faults=faults))
    return RawStore(path), truth


def load_of(store: RawStore, truth: NightTruth, scan: int) -> CalibrationLoadFull:
    """Calibrate with the loads that are to be used, or those that must not be."""
    number = truth.of(scan).calibration
    assert number is not None
    return load_of_scan(store.read(number))


def air_of(store: RawStore, truth: NightTruth, scan: int) -> tuple[RawScan, Atmosphere]:
    raw = store.read(scan)
    prepared = prepare_tp(raw) if raw.info.obs_type == "tp" else prepare_otf(raw)
    return raw, determine_atmosphere_full(raw, load_of(store, truth, scan), AIR, prepared)


def matching(store: RawStore, scan: int) -> list[int]:
    """Return the calibrations of a scan's tuning."""
    lo_hz = store.info(scan).lo_hz
    infos = [store.info(number) for number in store.scans() if number > SHARED]
    return [one.scan for one in infos if abs(one.lo_hz - lo_hz) < 1e3]


# -- good nights ----------------------------------------------------------------------------------------------------


def test_a_night_is_a_store_of_maps_positions_and_loads(night: tuple[RawStore, NightTruth]):
    store, truth = night
    assert [one for one in store.scans() if one < SHARED] == list(range(1, truth.plan.scans + 1))
    assert [one for one in store.scans() if SHARED < one < OWN] == [
        SHARED + n for n in range(1, truth.plan.scans + 1, 6)
    ]
    first, loads = store.read(1), store.read(SHARED + 1)
    assert (first.info.obs_type, first.info.tuning_id, first.info.altitude_m) == ("otf", "sim", 5612.0)
    assert first.counts.shape == (3 + 2 * 5, 2, 32)
    assert first.info.complete
    assert [Phase(one).name for one in loads.phase] == ["HOT", "COLD", "SKY"]
    assert store.attributes["telescope"] == "FYST"


def test_water_elevation_and_gain_change_from_scan_to_scan_and_the_truth_says_so(tmp_path: Path):
    plan = replace(SMALL, pwv_mm=(0.5, 1.0), elevation_deg=(40.0, 60.0), gain_drift=0.5, noise=False)
    seen: list[ScanTruth] = []
    truth = simulate_night(tmp_path / "l0.zarr", plan, on_scan=seen.append)
    assert tuple(seen) == truth.scans
    assert [one.obs_type for one in truth.scans] == ["otf", "tp", "otf", "tp", "otf"]
    assert [one.calibration for one in truth.scans] == [SHARED + n for n in (1, 1, 3, 3, 5)]
    store = RawStore(tmp_path / "l0.zarr")
    before = 0.0
    for one in truth.scans:
        raw, air = air_of(store, truth, one.scan)
        assert air.pwv_mm == pytest.approx(one.pwv_at_loads_mm, rel=0.1)  # the gain drifts between load and sky
        assert set(raw.elevation_deg) == {one.elevation_deg}
        assert before < one.begin_s < raw.time_s[0] < raw.time_s[-1] < one.end_s
        before = one.end_s
        gain = load_of(store, truth, one.scan).gain.gamma.mean() / plan.dish().gammas.mean()
        assert gain == pytest.approx(one.gain_factor, abs=0.1)
    assert np.all(np.diff([one.pwv_mm for one in truth.scans]) > 0.05)
    assert (truth.scans[0].pwv_mm, truth.scans[-1].pwv_mm) == (pytest.approx(0.5, abs=0.1), pytest.approx(1.0, abs=0.1))


@pytest.mark.parametrize("mode", ["otf", "tp"])
def test_without_noise_a_calibration_gives_the_truth(tmp_path: Path, mode: str):
    plan = replace(
        SMALL, scans=1, rows=3, mode=mode, noise=False, gain_drift=0.0, pwv_mm=(0.6, 0.6), gain_signal=(0.4, 0.6),
        lines=(Line(5.0, 809.3e9, 10e6, size_deg=0.02),),
    )  # fmt: skip
    truth = simulate_night(tmp_path / "l0.zarr", plan)
    store, known = RawStore(tmp_path / "l0.zarr"), truth_spectrum(truth, 1)
    raw, air = air_of(store, truth, 1)
    prepared = prepare_otf(raw)
    found = calibrate_full(raw, prepared, load_of(store, truth, 1), air, AIR)
    assert known.shape == (15 if mode == "otf" else 6, 2, 32)
    assert 4.9 < known.max() < 5.0
    assert found.ta_star == pytest.approx(known, abs=5e-3)


def test_a_scans_noise_is_its_own_whatever_was_observed_before():
    dish = Dish(pixels=1, channels=16)
    alone = dish.otf(3).counts
    dish.calibration(1)
    assert np.array_equal(dish.otf(3).counts, alone)
    assert not np.array_equal(dish.otf(4).counts, alone)
    assert not np.array_equal(replace(dish, seed=2).otf(3).counts, alone)


def test_one_scan_is_in_memory_at_a_time(tmp_path: Path):
    def peak(scans: int) -> int:
        plan = replace(SMALL, scans=scans, channels=2048, rows=4, dumps=50, mode="otf", calibration_every=1)
        tracemalloc.start()
        simulate_night(tmp_path / f"{scans}.zarr", plan)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    scan_bytes = 4 * 2048 * 2 * (4 * 51 + 1)
    assert peak(1) + scan_bytes > peak(4)


# -- faults ---------------------------------------------------------------------------------------------------------


def test_every_error_and_every_flag_can_be_had():
    assert {FAULT_KINDS[kind].error for kind in ENDING} == set(CalibrationError.__subclasses__())
    assert {FAULT_KINDS[kind].flag for kind in FLAGGING} == set(Flag) - {Flag.NONE}
    assert all(meaning.says for meaning in FAULT_KINDS.values())


def test_a_fault_is_written_with_its_scan():
    fault = Fault.parse("truncated-chunk:12")
    assert fault == Fault("truncated-chunk", 12)
    assert str(fault) == "truncated-chunk:12"
    with pytest.raises(UsageError, match=r"no fault is called 'rain'(.|\n)*truncated-chunk, missing-chunk"):
        Fault.parse("rain:3")
    for text in ("truncated-chunk", "truncated-chunk:", "truncated-chunk:-1", "truncated-chunk:x", ""):
        with pytest.raises(UsageError, match="write it like truncated-chunk:12"):
            Fault.parse(text)


def first_error(store: RawStore, truth: NightTruth, scan: int) -> type[CalibrationError] | None:
    try:
        raw = store.read(scan)
        prepare_tp(raw)
        if truth.of(scan).calibration is not None:
            air_of(store, truth, scan)
    except CalibrationError as error:
        return type(error)
    return None


@pytest.mark.parametrize("kind", [kind for kind in ENDING if FAULT_KINDS[kind].calibration in ("shared", "own")])
def test_a_fault_ends_with_the_error_that_the_truth_names(night: tuple[RawStore, NightTruth], kind: str):
    store, truth = night
    one = truth.of(SCAN_OF[kind])
    assert one.fault == kind
    assert (found := first_error(store, truth, one.scan)) is FAULT_KINDS[kind].error
    assert found.__name__ == one.error == truth.errors()[one.scan]


@pytest.mark.parametrize("kind", ["no-calibration", "old-calibration"])
def test_a_scan_without_loads_has_none_or_old_ones(night: tuple[RawStore, NightTruth], kind: str):
    store, truth = night
    one = truth.of(SCAN_OF[kind])
    assert (one.error, one.calibration, one.pwv_at_loads_mm) == ("NoCalibrationError", None, None)
    assert first_error(store, truth, one.scan) is None
    there = matching(store, one.scan)
    assert there == ([] if kind == "no-calibration" else [OWN + one.scan])
    assert all(store.read(number).time_s.mean() < one.begin_s - 3600 for number in there)


def test_loads_of_a_fault_are_of_a_tuning_of_its_own(night: tuple[RawStore, NightTruth]):
    store, truth = night
    for one in truth.scans:
        if one.fault != "missing-attribute" and one.calibration is not None and one.calibration > OWN:
            assert matching(store, one.scan) == [OWN + one.scan] == [one.calibration]
    assert all(number < OWN for number in matching(store, 1))


def test_good_scans_of_a_night_of_faults_are_good(night: tuple[RawStore, NightTruth]):
    store, truth = night
    good = [one.scan for one in truth.scans if one.fault is None]
    assert good == [1, truth.plan.scans]
    assert [first_error(store, truth, scan) for scan in good] == [None, None]


def spoilt(truth: ScanTruth, shape: tuple[int, ...]) -> np.ndarray:
    """Return where the truth has flags: (dump on the source, pixel, channel)."""
    there = np.zeros(shape, bool)
    for place in truth.flagged:
        there[tuple(slice(None) if index is None else index for index in place)] = True
    return there


@pytest.mark.parametrize(
    ("kind", "is_bad"),
    [
        ("nan-samples", lambda raw, on: np.isnan(on)),
        ("dead-channel", lambda raw, on: on == 0),
        ("dead-pixel", lambda raw, on: on == 0),
        ("saturated-samples", lambda raw, on: on >= raw.info.adc_ceiling),
        ("spike", lambda raw, on: on > 1.5 * np.median(on)),
        ("user-flag", lambda raw, on: (raw.flag[raw.phase == Phase.ON] != 0)[:, :, None] & np.isfinite(on)),
    ],
)
def test_samples_are_spoilt_where_the_truth_says(night: tuple[RawStore, NightTruth], kind: str, is_bad):
    store, truth = night
    one, raw = truth.of(SCAN_OF[kind]), store.read(SCAN_OF[kind])
    on = raw.counts[raw.phase == Phase.ON]
    assert (one.error, one.flag) == (None, FAULT_KINDS[kind].flag)
    assert spoilt(one, on.shape).any()
    assert np.array_equal(is_bad(raw, on), spoilt(one, on.shape))


@pytest.mark.parametrize("kind", ["dead-channel", "odd-gain", "odd-receiver"])
def test_loads_flag_the_channel_of_the_truth_alone(night: tuple[RawStore, NightTruth], kind: str):
    store, truth = night
    one = truth.of(SCAN_OF[kind])
    flag = load_of(store, truth, one.scan).gain.flag
    assert np.array_equal(flag != 0, spoilt(one, (1, *flag.shape))[0])
    assert set(flag[flag != 0]) == {one.flag}


def test_a_dead_pixel_is_dead_on_the_loads_too(night: tuple[RawStore, NightTruth]):
    store, truth = night
    one = truth.of(SCAN_OF["dead-pixel"])
    assert one.flagged == ((None, 1, None),)
    for number in (one.scan, one.calibration):
        counts = store.read(number).counts
        assert not counts[:, 1].any()
        assert counts[:, 0].all()


def test_a_spike_is_one_by_the_rule(night: tuple[RawStore, NightTruth]):
    store, truth = night
    one, raw = truth.of(SCAN_OF["spike"]), store.read(SCAN_OF["spike"])
    ((dump, pixel, channel),) = one.flagged
    on = raw.counts[raw.phase == Phase.ON][:, pixel].astype(float)
    found = flag_spikes(on, np.full(on.shape[0], on.mean() / np.sqrt(1e6)))
    assert np.argwhere(found).tolist() == [[dump, channel]]


def test_air_is_opaque_in_all_channels_or_in_half(night: tuple[RawStore, NightTruth]):
    store, truth = night
    _, air = air_of(store, truth, SCAN_OF["opaque-channels"])
    closed = (air.tr_s < ScanLimits().tr_min).any(axis=0)
    assert 0.25 < closed.mean() < 0.75
    assert truth.of(SCAN_OF["opaque-channels"]).pwv_mm == pytest.approx(air.pwv_mm, rel=0.02)
    with pytest.raises(OpaqueError):
        air_of(store, truth, SCAN_OF["opaque"])
    with pytest.raises(AtmosphereFitError):
        air_of(store, truth, SCAN_OF["hot-sky"])


def files_of(store: Path, scan: int) -> dict[str, bytes]:
    place = store / "scans" / scan_name(scan)
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_good_scans_are_the_same_to_the_byte_whatever_goes_wrong_with_others(tmp_path: Path):
    clean, faulty, other = tmp_path / "clean.zarr", tmp_path / "faulty.zarr", tmp_path / "other.zarr"
    faults = (Fault("flipped-byte", 2), Fault("swapped-loads", 4))
    truth = simulate_night(clean, SMALL)
    wrong = simulate_night(faulty, replace(SMALL, faults=faults))
    simulate_night(other, replace(SMALL, scans=1, seed=2))
    for scan in (1, 3, 5, *(SHARED + n for n in (1, 3, 5))):
        assert files_of(clean, scan) == files_of(faulty, scan)
    for scan in (1, 3, 5):
        assert truth.of(scan) == wrong.of(scan)
    assert files_of(clean, 2) != files_of(faulty, 2)
    assert files_of(clean, 1)["counts/c/0/0/0"] != files_of(other, 1)["counts/c/0/0/0"]
    assert set(RawStore(faulty).scans()) - set(RawStore(clean).scans()) == {OWN + 4}


# -- truth, plans and stores ----------------------------------------------------------------------------------------


def test_the_truth_comes_back_as_it_was_written(night: tuple[RawStore, NightTruth]):
    store, truth = night
    assert truth_path(store.path).name == "night.truth.json"
    assert read_truth(store.path) == read_truth(truth_path(store.path)) == truth
    assert json.loads(truth_path(store.path).read_text())["scans"][1]["error"] == "StoreReadError"
    with pytest.raises(MissingError, match="scan 99 is no science scan"):
        truth.of(99)


def test_what_is_no_truth_is_said(tmp_path: Path):
    with pytest.raises(MissingError, match="there is no truth"):
        read_truth(tmp_path / "night.zarr")
    for text in ("{", "[]", "{}", '{"schema": "night-truth", "schema_version": 9}', "null"):
        (tmp_path / "night.truth.json").write_text(text)
        with pytest.raises(InputError, match="is no truth of a night"):
            read_truth(tmp_path / "night.zarr")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"scans": 0}, "a night of 0 scans"),
        ({"mode": "chopped"}, "no way of observing is called 'chopped'"),
        ({"pixels": 0}, "without pixels"),
        ({"channels": 8}, "less than 16 channels"),
        ({"seed": -1}, "below zero"),
        ({"gain_signal": (0.5, 0.5, 0.5)}, "3 sideband gains for 2 pixels"),
        ({"scans": 40, "calibration_every": 40}, "s old in the middle of a scan"),
        ({"faults": (Fault("no-off", 6),)}, "no-off:6: the science scans are 1 to 5"),
        ({"faults": (Fault("no-off", 2), Fault("no-on", 2))}, "scan 2 has a fault already"),
        ({"pixels": 1, "faults": (Fault("dead-pixel", 2),)}, "the only pixel"),
        ({"adc_ceiling": None, "faults": (Fault("saturated", 2),)}, "nothing saturates"),
    ],
)
def test_a_night_that_cannot_be_observed_is_refused(parts: dict[str, object], said: str):
    with pytest.raises(UsageError, match=said):
        replace(SMALL, **parts)  # type: ignore[arg-type]


def test_where_the_air_is_never_opaque_nothing_is_written(tmp_path: Path):
    plan = replace(SMALL, lo_hz=224e9, faults=(Fault("opaque", 2),))
    with pytest.raises(UsageError, match=r"at 230 GHz no water from 0.02 to 7.5 mm"):
        simulate_night(tmp_path / "l0.zarr", plan)
    assert not (tmp_path / "l0.zarr").exists()


def test_a_store_that_is_there_is_not_written_over(tmp_path: Path):
    (tmp_path / "l0.truth.json").write_text("")
    with pytest.raises(InputError, match="is there already"):
        simulate_night(tmp_path / "l0.zarr", SMALL)
    assert not (tmp_path / "l0.zarr").exists()


def test_a_scan_can_be_left_incomplete_and_a_store_be_of_the_old_format(tmp_path: Path):
    simulate_night(tmp_path / "l0.zarr", replace(SMALL, scans=1))
    leave_incomplete(tmp_path / "l0.zarr", 1)
    assert RawStore(tmp_path / "l0.zarr").info(1).complete is False
    write_zarr_v2(tmp_path / "old.zarr")
    with pytest.raises(InputError, match="format 2"):
        RawStore(tmp_path / "old.zarr")
