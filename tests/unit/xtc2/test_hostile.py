"""Whatever is cut or changed: a report or Xtc2Error, soon, and in little memory."""

from __future__ import annotations

import os
import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nightbeam.testing.xtc2_files import block, datagram, detector, names_block, names_of, write_xtc2, xtc2_bytes
from nightbeam.xtc2 import (
    ChunkInfo,
    StreamStatus,
    Transition,
    Xtc2Error,
    inspect_file,
    judge_run,
    read_configure,
    read_datagrams,
)
from nightbeam.xtc2.compute import read_values
from nightbeam.xtc2.files import MOST_NAMED
from nightbeam.xtc2.model import BlockKind

REAL = (
    "chunking/data-r0001-s000-c001.xtc2",
    "chunking/smalldata/xpptut15-r0014-s000-c000.smd.xtc2",
    "chunking/xpptut15-r0014-s000-c000.xtc2",
    "mixed_rate/xpptut15-r0014-s000-c000.xtc2",
    "mixed_rate/xpptut15-r0014-s001-c000.xtc2",
    "multirun/xpptut15-r0014-s000-c000.xtc2",
    "single/test_hsd.xtc2",
    "single/test_ts.xtc2",
)
#: How far a file can have come, so that a shorter file never seems to have come further.
ORDER = ("empty", "not xtc2", "partial configure", "continuation", "configured", "begun", "has events")
DETECTORS = [detector("epix", "epix10ka", ["11-22", "33-44"]), detector("hsd", "hsd", [""])]


def read_everything(path: Path) -> bool:
    """Read a file in every way that there is; return whether all of it could be read."""
    report = inspect_file(path)
    assert report.status in ORDER
    try:
        names = read_configure(path)
        for one in read_datagrams(path, bodies=set(Transition)):
            for _ in read_values(one.body or b"", names):
                pass
    except Xtc2Error:
        return False
    return report.readable


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def truncations(path: Path, work: Path) -> int:
    whole = path.read_bytes()
    ends = {0}
    for one in read_datagrams(path, growing=True):
        ends.add(one.offset + one.header.size)
    copy = work / path.name
    copy.write_bytes(whole)
    rank, count = len(ORDER), 0
    for size in range(len(whole) - 1, -1, -7):
        os.truncate(copy, size)
        report = inspect_file(copy)
        assert (report.size_bytes, report.truncated) == (size, size not in ends)
        assert not report.damaged
        assert ORDER.index(report.status) <= rank, size
        rank, count = ORDER.index(report.status), count + 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_real_file_cut_at_any_seventh_byte_is_reported_on(shared_data, tmp_path, name):
    before = memory_mib()
    path = shared_data / "xtc2" / name
    assert truncations(path, tmp_path) == -(-path.stat().st_size // 7)
    assert memory_mib() - before < 64


def test_a_written_file_cut_at_any_seventh_byte_is_reported_on(tmp_path):
    path = write_xtc2(tmp_path / "whole.xtc2", DETECTORS, events=2, next_chunk=ChunkInfo(1, "next"))
    (tmp_path / "work").mkdir()
    assert truncations(path, tmp_path / "work") > 1000


def change_bytes(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 8)):
        data[dice.randrange(len(data))] = dice.randrange(256)


def change_number(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(0, len(data) - 4)
    number = dice.choice(
        (0, 1, 11, 12, 13, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, len(data), dice.getrandbits(32))
    )
    data[at : at + 4] = struct.pack("<I", number)


def change_extent(data: bytearray, dice: random.Random) -> None:
    """Change a number where extents, kinds and counts are: near the begin of a block."""
    at = dice.choice((0, 8, 16, 20, 24, 30, 32, 36, 1060, 1084, 1088))
    if at + 4 < len(data):
        data[at : at + 4] = struct.pack("<I", dice.getrandbits(dice.choice((4, 12, 32))))


def remove(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    del data[at : at + dice.choice((1, 4, 12, 24, 524))]


def repeat(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    piece = data[at : at + dice.choice((1, 12, 24, 524, 1060))]
    to = dice.randrange(len(data))
    data[to:to] = piece


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    change_bytes,
    change_number,
    change_extent,
    remove,
    repeat,
)


def mutations(whole: bytes, work: Path, count: int, *, seed: int) -> int:
    dice = random.Random(seed)
    path = work / "mfx1-r0001-s000-c000.xtc2"
    good = 0
    for number in range(count):
        data = bytearray(whole)
        dice.choice(CHANGES)(data, dice)
        path.write_bytes(data)
        began = time.monotonic()
        good += read_everything(path)
        if number % 20 == 0:
            judge_run(work, "mfx1", 1)
        assert time.monotonic() - began < 5
    return good


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("multirun/xpptut15-r0014-s000-c000.xtc2", 4000),
        ("chunking/data-r0001-s000-c001.xtc2", 2000),
        ("mixed_rate/xpptut15-r0014-s001-c000.xtc2", 2000),
        ("chunking/smalldata/xpptut15-r0014-s000-c000.smd.xtc2", 2000),
    ],
)
def test_ten_thousand_random_changes_of_real_files_end_in_a_report_or_the_one_error(shared_data, tmp_path, name, count):
    before = memory_mib()
    good = mutations((shared_data / "xtc2" / name).read_bytes(), tmp_path, count, seed=3)
    assert good < count
    assert memory_mib() - before < 64


def test_random_changes_of_a_written_file_end_in_a_report_or_the_one_error(tmp_path):
    whole = xtc2_bytes(DETECTORS, next_chunk=ChunkInfo(1, "next"))
    good = mutations(whole, tmp_path, 500, seed=4)
    assert 0 < good < 500


def test_noise_is_no_xtc2(tmp_path):
    dice = random.Random(5)
    path = tmp_path / "noise.xtc2"
    for _ in range(300):
        path.write_bytes(dice.randbytes(dice.randrange(24, 400)))
        assert not read_everything(path)


def test_a_configure_that_claims_more_than_may_be_read_costs_no_memory(tmp_path):
    path = tmp_path / "a.xtc2"
    before = memory_mib()
    with path.open("wb") as out:
        out.write(datagram(Transition.Configure, extent=900 << 20))
        out.truncate((900 << 20) + 12)  # a hole: the bytes are there for whoever asks
    report = inspect_file(path)
    assert (report.status, report.damaged) == (StreamStatus.NOT_XTC2, True)
    assert "Configure at 0 has 943718388 bytes, more than 67108864" in report.reason
    assert memory_mib() - before < 16


def test_configures_without_end_are_not_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("nightbeam.xtc2.files.MOST_CONFIGURE_BYTES", 50_000)
    one = datagram(Transition.Configure, b"".join(names_block(n) for n in names_of(DETECTORS)))
    path = tmp_path / "a.xtc2"
    path.write_bytes(one * 20)
    report = inspect_file(path)
    assert report.damaged
    assert "the Configures of this file have more than 50000 bytes" in report.reason
    assert len(report.configurations) == 50_000 // (len(one) - 24)


def test_runs_without_end_are_not_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("nightbeam.xtc2.files.MOST_NAMED", 10)
    first, rest = xtc2_bytes([], run=1, until=Transition.Configure), b""
    for run in range(20):
        rest += xtc2_bytes([], run=run, until=Transition.BeginRun)[len(first) :]
    path = tmp_path / "a.xtc2"
    path.write_bytes(first + rest)
    report = inspect_file(path)
    assert report.damaged
    assert "names more than 10 runs and chunks" in report.reason
    assert MOST_NAMED == 1 << 16


@pytest.mark.slow
def test_a_million_tiny_datagrams_take_seconds_and_little_memory(tmp_path):
    path = tmp_path / "a.xtc2"
    path.write_bytes(xtc2_bytes(DETECTORS, until=Transition.Enable) + datagram(Transition.L1Accept) * 1_000_000)
    before, began = memory_mib(), time.monotonic()
    assert inspect_file(path).datagrams["L1Accept"] == 1_000_000
    assert time.monotonic() - began < 20
    assert memory_mib() - before < 16


def test_a_file_that_shrinks_under_the_reader_is_an_error(tmp_path):
    path = write_xtc2(tmp_path / "a.xtc2", DETECTORS, events=1000)
    datagrams = read_datagrams(path)
    assert next(datagrams).transition is Transition.Configure
    os.truncate(path, 20_000)
    with pytest.raises(Xtc2Error, match="became shorter"):
        list(datagrams)


def test_empty_parents_by_the_million_are_given_up_soon(tmp_path):
    path = tmp_path / "a.xtc2"
    path.write_bytes(datagram(Transition.Configure, block(BlockKind.PARENT) * 3_000_000))
    began = time.monotonic()
    assert "more than 131072 blocks" in inspect_file(path).reason
    assert time.monotonic() - began < 10
