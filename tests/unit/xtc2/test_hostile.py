"""Whatever is cut or changed: a report or Xtc2Error, soon, and in little memory."""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from nightbeam.testing.xtc2_files import block, datagram, detector, names_block, names_of, write_xtc2, xtc2_bytes
from nightbeam.xtc2 import (
    ChunkInfo,
    Names,
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
#: No real file of ours has more than 1 MiB; whatever is cut or changed, a few times that must do.
CUT_MIB, CHANGED_MIB = 2, 8
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


@contextmanager
def memory_below(mib: float) -> Iterator[None]:
    """Fail if more is held at any moment within; what was held before, and given back, does not count.

    The system's own figure, ru_maxrss, never falls: after one hungry test all others would pass.
    """
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < mib * (1 << 20), f"{peak / (1 << 20):.1f} MiB"


def a_look(number: int, mib: float) -> AbstractContextManager[None]:
    """Measure every twentieth look: measuring makes them several times slower."""
    return memory_below(mib) if number % 20 == 0 else nullcontext()


def test_memory_is_measured_also_after_somebody_held_more():
    del [bytes(60 << 20)][:]
    with pytest.raises(AssertionError, match=r"20\.0 MiB"), memory_below(16):
        bytes(20 << 20)
    with pytest.raises(AssertionError), memory_below(16):
        np.zeros(20 << 20, np.uint8)
    with memory_below(16):
        bytes(15 << 20)


def structure(path: Path) -> tuple[set[int], set[int]]:
    """Return where the complete datagrams of a file end, and every size near a place where something begins or ends.

    What begins or ends is a datagram, its header and the first block in it, each with 36 bytes on either side, so that
    every field of a header and of a block is cut at every byte.
    """
    ends, near = {0}, set(range(120))
    for one in read_datagrams(path, growing=True):
        end = one.offset + one.header.size
        ends.add(end)
        near.update(range(end - 36, end + 24 + 36))
    return ends, near


def truncations(path: Path) -> int:
    """Cut a file near all of its structure at every byte, and elsewhere at every 97th.

    Elsewhere is within a payload of which a reader of a cut file reads nothing, as its end is missing: there a cut
    differs from the next in the number of bytes that are told to be left, and in nothing else.
    """
    whole = path.read_bytes()
    ends, near = structure(path)
    rank, sizes = len(ORDER), near | set(range(0, len(whole), 97))
    cuts = sorted((size for size in sizes if 0 <= size < len(whole)), reverse=True)
    with os.fdopen(os.memfd_create(path.name), "wb") as memory:  # a disk takes longer to cut a file than we to read it
        memory.write(whole)
        memory.flush()
        copy = Path(f"/proc/self/fd/{memory.fileno()}")
        for count, size in enumerate(cuts):
            os.truncate(copy, size)
            with a_look(count, CUT_MIB):
                report = inspect_file(copy)
            assert (report.size_bytes, report.truncated) == (size, size not in ends)
            assert not report.damaged
            assert ORDER.index(report.status) <= rank, size
            rank = ORDER.index(report.status)
    return len(cuts)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_real_file_cut_anywhere_is_reported_on(shared_data, name):
    path = shared_data / "xtc2" / name
    assert truncations(path) >= path.stat().st_size // 97


def test_a_written_file_cut_anywhere_is_reported_on(tmp_path):
    path = write_xtc2(tmp_path / "whole.xtc2", DETECTORS, events=2, next_chunk=ChunkInfo(1, "next"))
    assert truncations(path) > 600


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
        path.unlink(missing_ok=True)  # a file written anew over its old self goes to the disk at once
        path.write_bytes(data)
        began = time.process_time()
        with a_look(number, CHANGED_MIB):
            good += read_everything(path)
            if number % 20 == 0:
                judge_run(work, "mfx1", 1)
        assert time.process_time() - began < 5
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
    good = mutations((shared_data / "xtc2" / name).read_bytes(), tmp_path, count, seed=3)
    assert good < count


def test_random_changes_of_a_written_file_end_in_a_report_or_the_one_error(tmp_path):
    whole = xtc2_bytes(DETECTORS, next_chunk=ChunkInfo(1, "next"))
    good = mutations(whole, tmp_path, 500, seed=4)
    assert 0 < good < 500


def test_noise_is_no_xtc2(tmp_path):
    dice = random.Random(5)
    path = tmp_path / "noise.xtc2"
    for _ in range(300):
        path.unlink(missing_ok=True)
        path.write_bytes(dice.randbytes(dice.randrange(24, 400)))
        assert not read_everything(path)


def test_a_configure_that_claims_more_than_may_be_read_costs_no_memory(tmp_path):
    path = claiming(tmp_path / "a.xtc2", 900 << 20)
    with memory_below(1):
        report = inspect_file(path)
        assert not judge_run(tmp_path, "mfx1", 1).usable
        with pytest.raises(Xtc2Error):
            read_configure(path)
    assert (report.status, report.damaged) == (StreamStatus.NOT_XTC2, True)
    assert "Configure at 0 has 943718388 bytes, more than 67108864" in report.reason
    # What may be read is read, and seen to be.
    with pytest.raises(AssertionError, match="MiB"), memory_below(1):
        inspect_file(claiming(tmp_path / "b.xtc2", 4 << 20))


def claiming(path: Path, extent: int) -> Path:
    """Write a Configure of so many bytes that are a hole: they are there for whoever asks."""
    with path.open("wb") as out:
        out.write(datagram(Transition.Configure, extent=extent))
        out.truncate(extent + 12)
    return path


def a_run_named(experiment: bytes, run: int) -> bytes:
    """Return a BeginRun whose ``expt`` is any bytes."""
    names = Names(1 << 8 | 255, "runinfo", "runinfo", "", 0, "runinfo", (0, 0, 1), ())
    shapes = block(BlockKind.SHAPES, struct.pack("<5I", len(experiment), 0, 0, 0, 0))
    data = block(BlockKind.DATA, experiment + struct.pack("<I", run))
    return datagram(Transition.BeginRun, block(BlockKind.SHAPES_DATA, shapes + data, source=names.names_id))


def test_a_run_with_an_endless_name_costs_no_more_than_its_bytes(tmp_path):
    path = tmp_path / "mfx1-r0001-s000-c000.xtc2"
    name = b"\xff" * (4 << 20)
    with path.open("wb") as out:
        out.write(xtc2_bytes(DETECTORS, until=Transition.Configure))
        for run in range(4):
            out.write(a_run_named(name, run))
    with memory_below(9):  # one body, and the next before it is given back
        report = inspect_file(path)
        assert judge_run(tmp_path, "mfx1", 1).usable
    assert (report.runs, report.datagrams["BeginRun"]) == ((), 4)
    assert "expt has more than 127 characters; 3 more" in report.reason
    with pytest.raises(AssertionError, match="MiB"), memory_below(9):
        [one.body for one in read_datagrams(path, bodies={Transition.BeginRun})]


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
    began = time.process_time()
    assert inspect_file(path).datagrams["L1Accept"] == 1_000_000
    assert time.process_time() - began < 20
    os.truncate(path, path.stat().st_size // 10)  # enough to see, and measuring takes its time
    with memory_below(1):
        assert inspect_file(path).datagrams["L1Accept"] > 90_000
    with pytest.raises(AssertionError, match="MiB"), memory_below(1):
        list(islice(read_datagrams(path), 50_000))


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
    began = time.process_time()
    assert "more than 131072 blocks" in inspect_file(path).reason
    assert time.process_time() - began < 10
