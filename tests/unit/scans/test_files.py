"""Stores of raw scans: what is written is read, and what is damaged is not."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from nightbeam.core.errors import InputError, MissingError, StorageError
from nightbeam.scans import files
from nightbeam.scans.files import RawStore, ReadingStopped, create_raw_store, scan_name, write_raw_scan
from nightbeam.scans.model import ElevationError, FrequencyAxisError, RawScan, ScanSchemaError, StoreReadError

Make = Callable[..., RawScan]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "l0.zarr"
    create_raw_store(path, telescope="FYST", altitude_m=5612.0)
    return path


def group(store: Path, scan: int = 7) -> zarr.Group:
    return zarr.open_group(store, mode="r+", use_consolidated=False)[f"scans/{scan_name(scan)}"]


def chunk_files(store: Path, array: str = "counts", scan: int = 7) -> list[Path]:
    return sorted(path for path in (store / "scans" / scan_name(scan) / array / "c").rglob("*") if path.is_file())


def test_a_scan_comes_back_as_it_was_written(store: Path, make_scan: Make):
    scan = make_scan()
    write_raw_scan(store, scan)
    again = RawStore(store).read(7)
    assert again.info == scan.info
    for one in fields(RawScan):
        if one.name != "info":
            assert np.array_equal(getattr(again, one.name), getattr(scan, one.name)), one.name
            assert getattr(again, one.name).dtype == getattr(scan, one.name).dtype


def test_scans_are_listed_by_number_and_other_things_beside_them_are_not(store: Path, make_scan: Make):
    assert RawStore(store).scans() == []
    for number in (12, 7, 1_000_000):
        write_raw_scan(store, make_scan(number))
    for other in ("notes", "scan_0000008", "scan_0000007", "scan_00000\u0661", "scan_7"):
        (store / "scans" / other).mkdir()
    assert RawStore(store).scans() == [7, 12, 1_000_000]


def test_a_place_of_scans_that_cannot_be_listed_is_said(store: Path, monkeypatch: pytest.MonkeyPatch):
    (store / "scans").write_text("x")
    with pytest.raises(InputError, match="scans cannot be listed: Not a directory; a directory with a group") as caught:
        RawStore(store).scans()
    assert "copy the store again" in caught.value.fix
    opened = RawStore(store)

    def refuse(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="scans cannot be listed: Permission denied"):
        opened.scans()
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(InputError, match="cannot be looked at: Permission denied"):
        RawStore(store)


def test_some_pixels_are_read_alone(store: Path, make_scan: Make):
    scan = make_scan()
    write_raw_scan(store, scan)
    one = RawStore(store).read(7, pixels=slice(1, 2))
    assert np.array_equal(one.counts, scan.counts[:, 1:])
    assert (one.gain_signal.shape, one.main_beam_eff.shape, one.flag.shape) == ((1, 1), (1,), (6, 1))


@pytest.fixture
def in_parts(store: Path, make_scan: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], np.ndarray]:
    """Write a scan of seven dumps, two in a chunk, of which two chunks are read at a time; returns its counts."""

    def write(kind: str) -> np.ndarray:
        write_raw_scan(store, make_scan(dumps=7))
        array = group(store)["counts"]
        counts = array[...].astype(kind)
        group(store).create_array("counts", data=counts, chunks=(2, 1, 16), overwrite=True)
        monkeypatch.setattr(files, "_PART_BYTES", 4 * 2 * 16 * counts.itemsize)
        return counts

    return write


@pytest.mark.parametrize("kind", ["f4", "f8", "i4", ">f4"])
@pytest.mark.parametrize("dumps", [slice(None), slice(1, 6), slice(3, 4)])
@pytest.mark.parametrize("head", [False, True])
def test_counts_that_are_read_in_parts_are_those_that_are_read_at_once(
    store: Path, in_parts: Callable[[str], np.ndarray], kind: str, dumps: slice, head: bool
):
    counts, raw = in_parts(kind), RawStore(store)
    known = raw.read(7, counts=False) if head else None
    whole = raw.read(7, dumps=dumps, head=known)
    assert np.array_equal(whole.counts, counts[dumps])
    into = np.full(counts.size + 5, -1.0, np.float32)
    again = raw.read(7, dumps=dumps, into=into, head=known)
    assert np.shares_memory(again.counts, into)
    assert np.array_equal(again.counts, counts[dumps].astype(np.float32))
    assert np.array_equal(again.time_s, whole.time_s)


def test_who_asks_for_an_end_waits_for_one_part(store: Path, in_parts: Callable[[str], np.ndarray]):
    counts, into, asked = in_parts("f4"), np.zeros(7 * 2 * 16, np.float32), iter([False, True])
    with pytest.raises(ReadingStopped):
        RawStore(store).read(7, into=into, stop=lambda: next(asked))
    read = into.reshape(counts.shape)
    assert np.array_equal(read[:4], counts[:4])
    assert not read[4:].any()


def test_every_array_says_its_axes_its_units_and_has_a_checksum(store: Path, make_scan: Make):
    write_raw_scan(store, make_scan())
    for name, array in group(store).arrays():
        assert array.metadata.dimension_names
        assert array.attrs["units"], name
        assert "Crc32c" in str(array.metadata.codecs)


def test_a_scan_in_the_making_is_not_complete(store: Path, make_scan: Make):
    write_raw_scan(store, make_scan(), complete=False)
    assert RawStore(store).info(7).complete is False
    write_raw_scan(store, make_scan())
    assert RawStore(store).info(7).complete is True


def test_what_may_be_missing_has_its_usual_value(store: Path, make_scan: Make):
    write_raw_scan(store, make_scan())
    del group(store).attrs["humidity_pct"], group(store).attrs["adc_ceiling"]
    for name in ("flag", "row"):
        shutil.rmtree(store / "scans" / scan_name(7) / name)
    again = RawStore(store).read(7)
    assert (again.info.humidity_pct, again.info.adc_ceiling) == (20.0, None)
    assert not again.flag.any()
    assert set(again.row) == {-1}


def test_sideband_gains_may_be_of_each_channel_and_times_of_unix(store: Path, make_scan: Make):
    gains = np.linspace(0.3, 0.7, 32, dtype=np.float32).reshape(2, 16)
    write_raw_scan(store, make_scan(gain_signal=gains))
    time = group(store)["time"]
    time[...] = np.arange(6) + 1.7e9
    time.attrs["epoch"] = "unix"
    again = RawStore(store).read(7)
    assert np.array_equal(again.gain_signal, gains)
    assert again.time_s[0] == 1.7e9 + 40587 * 86400
    time.attrs["epoch"] = "J2000"
    with pytest.raises(ScanSchemaError, match="count from 'J2000'"):
        RawStore(store).read(7)


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("array", ["counts", "time", "frequency", "phase", "gain_signal"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_chunk_is_one_error(store: Path, make_scan: Make, array: str, damage: str):
    write_raw_scan(store, make_scan())
    file = chunk_files(store, array)[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes({"flip": bytes(data), "cut": bytes(data[:-5]), "empty": b""}[damage])
    with pytest.raises(StoreReadError, match="scan 7 cannot be read") as caught:
        RawStore(store).read(7)
    assert caught.value.retry


def test_a_chunk_that_is_missing_is_not_taken_for_numbers(store: Path, make_scan: Make):
    write_raw_scan(store, make_scan())
    chunk_files(store)[0].unlink()
    with pytest.raises(StoreReadError, match="1 of 1 chunks of counts are missing"):
        RawStore(store).read(7)


def without_empty_chunks(
    store: Path, make_scan: Make, name: str, values: np.ndarray, rows: int, fill: float = 0
) -> int:
    """Write an array as Zarr does if nobody says otherwise; returns how many chunks it has written."""
    write_raw_scan(store, make_scan())
    shutil.rmtree(store / "scans" / scan_name(7) / name)
    chunks = (rows, *values.shape[1:])
    array = group(store).create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks, fill_value=fill)
    array[...] = values
    return len(chunk_files(store, name))


@pytest.mark.parametrize("name", ["flag", "row", "lon_off", "lat_off", "azimuth"])
@pytest.mark.parametrize("rows", [6, 2])
def test_an_array_of_zeros_of_which_nothing_was_written_is_zero(store: Path, make_scan: Make, name: str, rows: int):
    values = np.zeros_like(group_values(make_scan(), name))
    assert without_empty_chunks(store, make_scan, name, values, rows) == 0
    again = group_values(RawStore(store).read(7), name)
    assert not again.any()
    assert again.shape == values.shape


@pytest.mark.parametrize("name", ["flag", "row", "lon_off", "azimuth"])
def test_where_some_of_the_chunks_are_missing_they_may_have_been_lost(store: Path, make_scan: Make, name: str):
    values = np.zeros_like(group_values(make_scan(), name))
    values[0] = 1
    assert without_empty_chunks(store, make_scan, name, values, 2) == 1
    with pytest.raises(StoreReadError, match=f"scan 7: 2 of 3 chunks of {name} are missing") as caught:
        RawStore(store).read(7)
    assert "write_empty_chunks" in caught.value.fix


@pytest.mark.parametrize("kind", ["u4", "i4", "f4"])
@pytest.mark.parametrize("empty", [slice(None), slice(2, 4)])
def test_counts_that_are_missing_are_never_taken_for_zeros(store: Path, make_scan: Make, kind: str, empty: slice):
    values = make_scan().counts.astype(kind)
    values[empty] = 0
    assert without_empty_chunks(store, make_scan, "counts", values, 2) < 3
    for counts in (True, False):
        with pytest.raises(StoreReadError, match="of 3 chunks of counts are missing"):
            RawStore(store).read(7, counts=counts)


@pytest.mark.parametrize("rows", [6, 2])
def test_phases_that_are_missing_are_never_taken_for_the_source(store: Path, make_scan: Make, rows: int):
    values = make_scan().phase
    values[2:4] = 0
    assert without_empty_chunks(store, make_scan, "phase", values, rows) == (1 if rows == 6 else 2)
    if rows == 6:
        assert np.array_equal(RawStore(store).read(7).phase, values)
        chunk_files(store, "phase")[0].unlink()
    with pytest.raises(StoreReadError, match="chunks of phase are missing"):
        RawStore(store).read(7)


@pytest.mark.parametrize(
    ("name", "fill"), [("main_beam_eff", 0.0), ("main_beam_eff", 0.9), ("gain_signal", 1.0), ("flag", 1)]
)
def test_what_was_lost_is_not_its_fill_value(store: Path, make_scan: Make, name: str, fill: float):
    values = group_values(make_scan(), name)
    without_empty_chunks(store, make_scan, name, values[:, 0] if name == "gain_signal" else values, len(values), fill)
    RawStore(store).read(7)
    chunk_files(store, name)[0].unlink()
    with pytest.raises(StoreReadError, match=f"1 of 1 chunks of {name} are missing"):
        RawStore(store).read(7)


def group_values(scan: RawScan, name: str) -> np.ndarray:
    return np.asarray(
        getattr(scan, {"lon_off": "lon_off_deg", "lat_off": "lat_off_deg", "azimuth": "azimuth_deg"}.get(name, name))
    )


@pytest.mark.parametrize("name", ["counts", "phase", "time", "frequency_image", "main_beam_eff"])
def test_an_array_that_is_missing_is_named(store: Path, make_scan: Make, name: str):
    write_raw_scan(store, make_scan())
    shutil.rmtree(store / "scans" / scan_name(7) / name)
    with pytest.raises(ScanSchemaError, match=f"scan 7: {name} missing"):
        RawStore(store).read(7)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("elevation", np.zeros(5), r"elevation has the shape \(5,\), \(6,\)"),
        ("lon_off", np.zeros((2, 6)), r"lon_off has the shape \(2, 6\), \(6, 2\)"),
        ("phase", np.zeros(6), "phase has the type float64"),
        ("time", np.ones(6, bool), "time has the type bool"),
        ("counts", np.zeros((6, 32), np.float32), "counts has the shape"),
        ("counts", np.zeros((0, 2, 16), np.float32), "shape|empty"),
    ],
)
def test_arrays_that_do_not_fit_together_are_named(
    store: Path, make_scan: Make, name: str, values: np.ndarray, said: str
):
    write_raw_scan(store, make_scan())
    group(store).create_array(name, data=values, overwrite=True)
    with pytest.raises(ScanSchemaError, match=said):
        RawStore(store).read(7)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lo_hz", None, "attribute lo_hz is missing"),
        ("t_hot_k", "warm", "t_hot_k is 'warm', a float is wanted"),
        ("complete", "yes", "complete is 'yes', a bool is wanted"),
        ("forward_eff", True, "forward_eff is True"),
    ],
)
def test_an_attribute_that_makes_no_sense_is_named(store: Path, make_scan: Make, name: str, value: object, said: str):
    write_raw_scan(store, make_scan())
    group(store).attrs[name] = value
    with pytest.raises(ScanSchemaError, match=said):
        RawStore(store).info(7)


def changed(values: np.ndarray, at: int, to: float) -> np.ndarray:
    copy = values.copy()
    copy[at] = to
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "change", "error", "said"),
    [
        ("time_s", lambda t: t[::-1].copy(), ScanSchemaError, "do not increase"),
        ("time_s", lambda t: changed(t, 2, np.nan), ScanSchemaError, "do not increase"),
        ("duration_s", lambda d: changed(d, 0, 0.0), ScanSchemaError, "a dump of 0 s"),
        ("phase", lambda p: changed(p, 1, 9), ScanSchemaError, r"phases \[9\] mean nothing"),
        ("gain_signal", lambda g: changed(g, 0, 1.5), ScanSchemaError, "sideband gain"),
        ("elevation_deg", lambda e: changed(e, 3, 2.0), ElevationError, "elevation of 2 degrees"),
        ("elevation_deg", lambda e: changed(e, 3, np.nan), ElevationError, "elevation of nan"),
        ("freq_hz", lambda f: changed(f, 4, np.nan), FrequencyAxisError, "not above zero"),
        ("freq_hz", lambda f: changed(f, 4, f[9]), FrequencyAxisError, "neither rise nor fall"),
        ("image_hz", lambda f: f + 5e6, FrequencyAxisError, "5e\\+06 Hz beside the local oscillator"),
        ("freq_hz", lambda f: f / 1e9, FrequencyAxisError, "local oscillator"),
    ],
)
def test_axes_that_cannot_be_those_of_an_observation_are_named(store: Path, make_scan: Make, part, change, error, said):
    scan = make_scan()
    write_raw_scan(store, replace(scan, **{part: change(getattr(scan, part))}))
    with pytest.raises(error, match=said):
        RawStore(store).read(7)


def test_a_scan_that_is_not_there_is_named(store: Path):
    with pytest.raises(StoreReadError, match="scan 99 cannot be read"):
        RawStore(store).read(99)


# -- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["", "counts", "counts/c", "counts/c/0"])
def test_what_lies_behind_a_link_is_read_and_watched_like_all_else(
    store: Path, make_scan: Make, tmp_path: Path, part: str
):
    scan = make_scan()
    write_raw_scan(store, scan)
    link = store / "scans" / scan_name(7) / part
    disk = link.rename(tmp_path / "disk")
    link.symlink_to(disk)
    raw = RawStore(store)
    before = raw.stat(7)
    assert raw.stat(7) == before
    assert np.array_equal(raw.read(7).counts, scan.counts)
    chunk = next(path for path in sorted(disk.rglob("*")) if path.is_file() and path.parent.name == "0")
    chunk.write_bytes(chunk.read_bytes() + b"x")
    assert raw.stat(7) != before
    chunk.unlink()
    with pytest.raises(StoreReadError, match="chunks of counts are missing"):
        raw.read(7)


def test_links_that_lead_in_circles_are_an_error_and_not_followed_for_ever(store: Path, make_scan: Make):
    write_raw_scan(store, make_scan())
    place = store / "scans" / scan_name(7)
    (place / "a").mkdir()
    for name in ("one", "two"):  # at every turn there are two ways
        (place / "a" / name).symlink_to(place)
    with pytest.raises(StoreReadError, match=r"scan 7 cannot be looked at: .*a loop of links"):
        RawStore(store).stat(7)
    shutil.rmtree(place / "a")
    for name in ("one", "two"):
        (place / "counts" / name).symlink_to(place / "counts")
    with pytest.raises(StoreReadError, match="a loop of links"):
        RawStore(store).read(7)


def test_directories_that_are_too_deep_are_an_error(store: Path, make_scan: Make):
    write_raw_scan(store, make_scan())
    deep = [f"{store}/scans/{scan_name(7)}{'/d' * depth}" for depth in range(1, 1500)]
    try:
        for one in deep:
            os.mkdir(one)  # noqa: PTH102 (pathlib cannot go as deep)
        with pytest.raises(StoreReadError, match="scan 7 cannot be looked at"):
            RawStore(store).stat(7)
    finally:
        for one in filter(os.path.exists, reversed(deep)):  # nor can who tidies up
            os.rmdir(one)  # noqa: PTH106


@pytest.mark.parametrize("name", ["phase", "flag", "lon_off"])
def test_what_is_no_chunk_is_not_opened(store: Path, make_scan: Make, name: str):
    write_raw_scan(store, make_scan())
    place = store / "scans" / scan_name(7) / name
    os.mkfifo(place / "pipe")
    (place / ".hidden").write_text("of a file manager")
    assert np.array_equal(RawStore(store).read(7, counts=False).phase, make_scan().phase)


def test_an_array_of_zeros_may_lie_beside_what_is_no_chunk(store: Path, make_scan: Make):
    write_raw_scan(store, make_scan())
    place = store / "scans" / scan_name(7) / "flag"
    shutil.rmtree(place / "c")
    (place / ".hidden").write_text("of a file manager")
    assert not RawStore(store).read(7, counts=False).flag.any()


def test_what_is_no_store_of_raw_scans_is_said(tmp_path: Path, store: Path):
    with pytest.raises(MissingError, match="there is no store"):
        RawStore(tmp_path / "nowhere.zarr")
    (tmp_path / "directory").mkdir()
    with pytest.raises(InputError, match="is no Zarr store"):
        RawStore(tmp_path / "directory")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is no Zarr store"):
        RawStore(tmp_path / "file")
    zarr.create_group(tmp_path / "old.zarr", zarr_format=2)
    with pytest.raises(InputError, match="format 2"):
        RawStore(tmp_path / "old.zarr")
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3, attributes={"schema": "scal-l1"})
    with pytest.raises(InputError, match="a store of 'scal-l1'"):
        RawStore(tmp_path / "other.zarr")
    (store / "zarr.json").write_text(
        (store / "zarr.json").read_text().replace('"schema_version": 1', '"schema_version": 2')
    )
    with pytest.raises(InputError, match="has version 2"):
        RawStore(store)
    (store / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="is no Zarr store"):
        RawStore(store)


def test_a_store_that_is_there_is_gone_on_with(store: Path, make_scan: Make):
    write_raw_scan(store, make_scan())
    create_raw_store(store, telescope="FYST", altitude_m=5612.0)
    assert RawStore(store).scans() == [7]


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, NotADirectoryError)):
        create_raw_store(tmp_path / "file" / "l0.zarr", telescope="FYST", altitude_m=5612.0)
