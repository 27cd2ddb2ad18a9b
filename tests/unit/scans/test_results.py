"""Stores of calibrated scans: whole or not there, resumed, written by one at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from nightbeam.core.errors import BusyError, InputError, StorageError, UsageError
from nightbeam.core.locks import is_held
from nightbeam.scans import results
from nightbeam.scans.files import create_raw_store, scan_name
from nightbeam.scans.results import ResultStore, arrays_of, fingerprint
from nightbeam.scans.stages import calibrate_full, determine_atmosphere_full, load_of_scan, prepare_otf
from nightbeam.testing.dish import Dish, Line


@pytest.fixture(scope="module")
def made() -> dict[str, np.ndarray]:
    dish = Dish(pixels=2, channels=32, lines=(Line(5.0, 809.3e9, 8e6),))
    scan, load = dish.otf(2), load_of_scan(dish.calibration(1))
    prepared = prepare_otf(scan)
    air = determine_atmosphere_full(scan, load, dish.air, prepared)
    return arrays_of(scan, prepared, load, air, calibrate_full(scan, prepared, load, air, dish.air))


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "l1.zarr", l0="l0.zarr")


def test_a_result_comes_back_as_it_was_written(store: ResultStore, made: dict[str, np.ndarray]):
    with store.sole_writer():
        place = store.write(2, made, {"fingerprint": "abc", "pwv_source": "fit"})
    group = zarr.open_group(store.path, mode="r", use_consolidated=False)["scans/scan_000002"]
    assert place == store.path / "scans" / "scan_000002"
    assert set(group.array_keys()) == set(made)
    for name, values in made.items():
        array = group[name]
        assert np.array_equal(array[...], values, equal_nan=values.dtype.kind == "f"), name
        assert array.dtype == values.dtype
        assert len(array.metadata.dimension_names) == values.ndim
        assert "Crc32c" in str(array.metadata.codecs)
    assert group.attrs["status"] == "complete"
    assert "frequency" in group.attrs["coordinates"]
    assert store.scans() == [2]
    assert not store.staging.exists()


def test_who_may_read_the_store_may_read_its_scans(store: ResultStore, made: dict[str, np.ndarray]):
    place = store.write(2, made, {})
    modes = {path.stat().st_mode & 0o777 for path in (store.path, place.parent, place, place / "ta_star")}
    assert len(modes) == 1, "directories of results are all made alike"


def test_a_scan_is_done_where_it_is_whole_and_of_the_same_inputs(store: ResultStore, made: dict[str, np.ndarray]):
    mark = fingerprint({"scan": 2}, [1, 2])
    assert mark == fingerprint({"scan": 2}, [1, 2]) != fingerprint({"scan": 2}, [1, 3])
    assert not store.done(2, mark)
    store.write(2, made, {"fingerprint": mark})
    assert store.done(2, mark)
    assert not store.done(2, "another")
    (store.path / "scans" / scan_name(2) / "zarr.json").write_text("{")
    assert not store.done(2, mark)


def test_a_result_is_replaced_whole(store: ResultStore, made: dict[str, np.ndarray]):
    store.write(2, made, {"fingerprint": "a"})
    store.write(2, {name: made[name] for name in ("ta_star", "time")}, {"fingerprint": "b"})
    group = zarr.open_group(store.path, mode="r", use_consolidated=False)["scans/scan_000002"]
    assert set(group.array_keys()) == {"ta_star", "time"}
    assert store.done(2, "b")


@pytest.mark.parametrize("number", [1, 9])
def test_who_cannot_write_all_of_it_leaves_what_was_there(
    store: ResultStore, made: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, number: int
):
    store.write(2, made, {"fingerprint": "a"})
    original, calls = results.StagedScan.put, []

    def full(*given: object, **more: object) -> object:
        calls.append(given)
        if len(calls) == number:
            raise StorageError("no space left for it")
        return original(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(results.StagedScan, "put", full)
    with pytest.raises(StorageError, match="no space left"):
        store.write(2, made, {"fingerprint": "b"})
    assert store.done(2, "a")
    assert list(store.staging.iterdir()) == []


def test_one_at_a_time_and_what_the_dead_left_is_removed(store: ResultStore):
    (store.staging / "scan_000007.pid1.x").mkdir(parents=True)
    with store.sole_writer():
        assert not store.staging.exists()
        with pytest.raises(BusyError, match="process"), ResultStore(store.path).sole_writer():
            pass


def test_who_only_looks_at_the_lock_keeps_nobody_from_writing(store: ResultStore, monkeypatch: pytest.MonkeyPatch):
    with store.sole_writer():
        pass
    lock = store.path.with_name(f"{store.path.name}.lock")
    with lock.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("nightbeam.core.locks.time.sleep", lambda _s: fcntl.flock(looking, fcntl.LOCK_UN))
        with store.sole_writer():
            assert is_held(lock)


def test_what_is_no_store_of_results_is_left_alone(tmp_path: Path):
    create_raw_store(tmp_path / "l0.zarr", telescope="FYST", altitude_m=5612.0)
    with pytest.raises(InputError, match="a store of 'scal-l0'"):
        ResultStore(tmp_path / "l0.zarr")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is no Zarr store"):
        ResultStore(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_a_result_that_was_about_to_be_replaced_by_who_was_killed_comes_back(
    store: ResultStore, made: dict[str, np.ndarray]
):
    """Killed between two names: the old one was aside already, and the new one not yet there."""
    store.write(2, made, {"fingerprint": "a"})
    store.write(3, made, {"fingerprint": "b"})
    place = store.place(2)
    place.rename(place.with_name(f".{place.name}.17.0123abcd.part"))
    (place.with_name(".scan_000003.17.0123abcd.part") / "ta_star").mkdir(parents=True)
    with store.sole_writer():
        assert store.done(2, "a")
        assert store.done(3, "b")
    assert not list(store.path.rglob("*.part"))


def test_a_store_and_the_group_of_its_scans_are_on_the_disk_with_their_names(tmp_path: Path, made, monkeypatch):
    synced: list[Path] = []
    original = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))  # noqa: PTH115
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    new = ResultStore(tmp_path / "tonight" / "dish" / "l1.zarr")
    top = new.path
    assert synced == [top / "zarr.json", top, top.parent, top.parent.parent, tmp_path]
    synced.clear()
    new.write(2, made, {"fingerprint": "a"})
    assert {top / "scans" / "zarr.json", top / "scans", top} <= {*synced}
    synced.clear()
    ResultStore(top)
    new.name_the_group()
    assert synced == []


def test_two_names_of_one_store_are_one_place_with_one_lock(store: ResultStore, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "link.zarr"
    other.symlink_to(store.path)
    linked = ResultStore(other)
    assert (linked.path, linked.staging, linked.given) == (store.path, store.staging, other)
    with store.sole_writer(), pytest.raises(BusyError), linked.sole_writer():
        pass
    assert list(other.parent.iterdir()) == [other]


def test_a_link_to_a_place_where_nothing_is_yet_becomes_a_store_there(tmp_path: Path):
    (tmp_path / "link.zarr").symlink_to(tmp_path / "disk" / "l1.zarr")
    assert ResultStore(tmp_path / "link.zarr").path == tmp_path / "disk" / "l1.zarr"
    assert (tmp_path / "disk" / "l1.zarr" / "zarr.json").exists()


def test_a_link_to_itself_is_refused(tmp_path: Path):
    (tmp_path / "link.zarr").symlink_to(tmp_path / "link.zarr")
    with pytest.raises((InputError, StorageError)):
        ResultStore(tmp_path / "link.zarr")


@pytest.mark.parametrize("place", [".", "/", "..", "somewhere/.."])
def test_a_place_without_a_name_is_refused(place: str):
    with pytest.raises(UsageError, match="has no name"):
        ResultStore(Path(place))
