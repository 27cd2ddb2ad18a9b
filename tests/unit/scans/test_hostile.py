"""Stores that are none, or that say what cannot be: one clear error each, and nothing lost."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from nightbeam.core.errors import InputError, MissingError, NightbeamError
from nightbeam.scans.files import RawStore
from nightbeam.scans.model import CalibrationError, ScanSchemaError
from nightbeam.scans.worker import calibrate_store
from nightbeam.testing.night import write_zarr_v2

pytestmark = pytest.mark.slow


def nothing(path: Path) -> None:
    pass


def text(path: Path) -> None:
    path.write_text("counts")


def foreign(path: Path) -> None:
    zarr.create_group(path, zarr_format=3, attributes={"schema": "of somebody else"})


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (nothing, MissingError, "there is no store"),
        (text, InputError, "is no Zarr store"),
        (Path.mkdir, InputError, "is no Zarr store"),
        (write_zarr_v2, InputError, "Zarr store of format 2"),
        (foreign, InputError, "a store of 'of somebody else'"),
    ],
)
def test_what_is_no_store_of_raw_scans_is_said_before_anything_is_written(tmp_path, l1, config, make, error, said):
    make(tmp_path / "input")
    with pytest.raises(error, match=said):
        calibrate_store(tmp_path / "input", l1, config)
    assert not l1.exists()


@pytest.mark.parametrize("make", [text, foreign, write_zarr_v2])
def test_what_stands_in_the_place_of_results_is_left_as_it_is(l0, l1, config, make):
    make(l1)
    before = {path: path.is_file() and path.read_bytes() for path in [l1, *l1.rglob("*")]}
    with pytest.raises(InputError):
        calibrate_store(l0, l1, config)
    assert {path: path.is_file() and path.read_bytes() for path in [l1, *l1.rglob("*")]} == before


def test_results_that_are_none_of_ours_any_more_are_done_again(l0, l1, config, contents):
    calibrate_store(l0, l1, config)
    whole = contents(l1)
    (l1 / "scans" / "scan_000001" / "zarr.json").write_text('{"attributes": 5}')
    (l1 / "scans" / "scan_000002" / "zarr.json").write_bytes(b"\xff\xfe")
    assert [one.scan for one in calibrate_store(l0, l1, config).successes] == [1, 2]
    assert contents(l1) == whole


HUGE = 10**400


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("t_hot_k", float("nan"), "t_hot_k is nan, a number is wanted"),
        ("lo_hz", HUGE, "lo_hz is 1e+30"),
        ("lo_hz", float("nan"), "lo_hz is nan"),
        ("forward_eff", 0.0, "forward_eff is 0, a number above zero"),
        ("forward_eff", -float("inf"), "forward_eff is -1e+30"),
        ("adc_ceiling", float("nan"), "adc_ceiling is nan"),
        ("temperature_k", -3, "temperature_k is -3"),
        ("obs_type", ["otf"], "none of a source"),
        ("backend", {"name": 1}, "backend is {'name': 1}, a str is wanted"),
        ("source", None, "the attribute source is missing"),
    ],
)
def test_attributes_that_cannot_be_fail_their_scan_and_no_other(l0, l1, config, name, value, said):
    place = l0 / "scans" / "scan_000002" / "zarr.json"
    found = json.loads(place.read_text())
    found["attributes"][name] = value
    place.write_text(json.dumps(found) if value != HUGE else json.dumps(found).replace(str(HUGE), "1" + "0" * 400))
    result = calibrate_store(l0, l1, replace(config, retries=0))
    assert [one.scan for one in result.successes][:1] + [one.scan for one in result.successes][-1:] == [1, 3]
    if name != "obs_type":
        (failure,) = result.failures
        assert (failure.scan, failure.error) == (2, "ScanSchemaError")
        assert said in failure.message


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("time", lambda t: np.where(t > t[0], t, np.nan), "ScanSchemaError"),
        ("time", lambda t: np.linspace(1e300, 1e305, t.size), "ScanSchemaError"),
        ("time", lambda t: np.linspace(-5.0, 5.0, t.size), "ScanSchemaError"),
        ("duration", lambda d: d * np.inf, "ScanSchemaError"),
        ("elevation", lambda e: -e, "ElevationError"),
        ("frequency", lambda f: f * 0, "FrequencyAxisError"),
        ("gain_signal", lambda g: np.where(np.arange(g.size) > 0, g, np.nan), "ScanSchemaError"),
    ],
)
def test_numbers_that_cannot_be_fail_their_scan_and_no_other(l0, l1, config, group_of, name, change, error):
    array = group_of(l0, 2)[name]
    array[...] = change(array[...])
    result = calibrate_store(l0, l1, replace(config, retries=0))
    assert [one.scan for one in result.successes] == [1, 3]
    assert [(one.scan, one.error, one.kind) for one in result.failures] == [(2, error, "calibration")]


def spoil(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = json.loads(place.read_text())
    change(found)
    place.write_text(json.dumps(found))


@pytest.mark.parametrize("size", [10**5, 10**9, 10**13])
@pytest.mark.parametrize("whole", [False, True])
def test_huge_shapes_that_the_metadata_claim_take_no_memory(l0, l1, config, size, whole):
    """All arrays claim the same number of dumps, in one chunk if they can: only the files tell."""
    for path in sorted((l0 / "scans" / "scan_000002").glob("*/zarr.json")):

        def claim(found: dict[str, Any]) -> None:
            if found["dimension_names"][0] == "dump":
                found["shape"][0] = size
                if whole:
                    found["chunk_grid"]["configuration"]["chunk_shape"][0] = size

        spoil(path, claim)
    # Not ru_maxrss, which never falls: after one hungry test all others would pass.
    tracemalloc.start()
    try:
        result = calibrate_store(l0, l1, replace(config, retries=0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [one.scan for one in result.successes] == [1, 3]
    (failure,) = result.failures
    assert failure.error in ("StoreReadError", "ScanSchemaError")
    assert peak < 200 << 20


ODD: list[Any] = [None, -1, 0, 1.5, "x", [], {}, [1, 2], True, 1e308, "bytes", [{"name": "bytes"}], 2**70]


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every part of something read from JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return (
        [path, *(way for name, one in items for way in places_of(one, (*path, name)))]
        if path
        else [way for name, one in items for way in places_of(one, (name,))]
    )


def what_is_wrong(store: RawStore) -> str | None:
    try:
        store.kind(2)
        store.shape(2)
        store.read(2)
    except CalibrationError as error:
        return error.what
    return None


@pytest.mark.parametrize("seed", range(4))
def test_metadata_with_anything_in_the_place_of_anything_are_one_error(l0, seed):
    dice = random.Random(seed)
    files = [
        l0 / "scans" / "scan_000002" / name / "zarr.json" for name in ("", "counts", "time", "flag", "gain_signal")
    ]
    good = {path: path.read_text() for path in files}
    store, refused = RawStore(l0), 0
    for _ in range(60):
        path = dice.choice(files)
        found = json.loads(good[path])
        way = dice.choice(places_of(found))
        inner = found
        for name in way[:-1]:
            inner = inner[name]
        inner[way[-1]] = dice.choice(ODD)
        path.write_text(json.dumps(found))
        said = what_is_wrong(store)
        refused += said is not None
        assert said is None or ("scan 2" in said and len(said) < 600)
        path.write_text(good[path])
    assert refused > 20
    assert store.read(2).counts.shape == (8, 4, 128)


@pytest.mark.parametrize("name", ["counts", "time", "flag"])
def test_a_group_in_the_place_of_an_array_is_no_array(l0, name):
    place = l0 / "scans" / "scan_000002" / name
    shutil.rmtree(place)
    zarr.create_group(place, zarr_format=3)
    if name == "flag":  # which may be missing
        assert not RawStore(l0).read(2).flag.any()
    else:
        with pytest.raises(ScanSchemaError, match=f"{name} missing"):
            RawStore(l0).read(2)
    if name == "counts":
        with pytest.raises(NightbeamError, match="counts is no array"):
            RawStore(l0).shape(2)
