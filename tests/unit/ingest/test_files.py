"""What is ready in the directory, what is on its way, what is no subband."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nightbeam.core.errors import InputError, MissingError, StorageError
from nightbeam.ingest import Looks, group_files, scan_directory

JD = 2460950.5430


@dataclass
class Header:
    subband: int | None = None
    start_jd: float = JD
    mid_jd: float = JD + 0.0018
    dec_rad: float = 0.5


def put(folder: Path, name: str, content: str = "data") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def read(path: Path) -> Any:
    if path.read_text() == "broken":
        raise InputError(f"{path.name} is not HDF5")
    return Header()


def test_only_finished_subbands_directly_in_the_directory_are_looked_at(tmp_path: Path):
    good = put(tmp_path, "2025-10-02T01:02:03_sb07.hdf5")
    for name in (
        "2025-10-02T01:02:03_sb08_incomplete.hdf5", ".2025-10-02T01:02:03_sb09.hdf5.Xy12",
        "2025-10-02T01:02:03_sb01_spl.hdf5", "notes.txt",
    ):  # fmt: skip
        put(tmp_path, name)
    (tmp_path / "sub").mkdir()
    put(tmp_path / "sub", "2025-10-02T01:02:03_sb10.hdf5")
    scan = scan_directory(tmp_path, settle_s=0, read=read)
    (found,) = scan.ready
    assert (found.path, found.subband, found.start_jd, found.size_bytes) == (good, 7, JD, 4)
    assert found.dec_deg == pytest.approx(28.6479, abs=1e-4)
    assert scan.unready == scan.bad == ()


def test_a_file_must_have_settled(tmp_path: Path):
    path = put(tmp_path, "2025-10-02T01:02:03_sb07.hdf5")
    changed = path.stat().st_ctime
    scan = scan_directory(tmp_path, settle_s=2.0, read=read, now=changed + 0.5)
    assert scan.ready == ()
    assert "changed 0.5 s ago" in scan.unready[0].reason
    assert len(scan_directory(tmp_path, settle_s=2.0, read=read, now=changed + 2.5).ready) == 1


def test_a_file_dated_in_the_future_still_settles(tmp_path: Path):
    path = put(tmp_path, "2025-10-02T01:02:03_sb07.hdf5")
    changed = path.stat().st_ctime
    os.utime(path, (changed + 9e5, changed + 9e5))
    assert len(scan_directory(tmp_path, settle_s=2.0, read=read, now=path.stat().st_ctime + 3).ready) == 1


def test_a_link_stands_for_what_it_leads_to_and_one_that_leads_nowhere_is_bad_after_its_time(tmp_path: Path):
    incoming, elsewhere = tmp_path / "incoming", tmp_path / "elsewhere"
    incoming.mkdir()
    elsewhere.write_text("data")
    names = [f"2025-10-02T01:02:03_sb{sb:02d}.hdf5" for sb in range(3)]
    for name, target in zip(names, ("elsewhere", "nowhere", "a-circle"), strict=True):
        (incoming / name).symlink_to(tmp_path / target)
    (tmp_path / "a-circle").symlink_to(incoming / names[2])
    made = max(path.lstat().st_ctime for path in incoming.iterdir())
    scan = scan_directory(incoming, settle_s=0, link_wait_s=600.0, read=read, now=made + 599.0)
    assert [a.path.name for a in scan.ready] == [names[0]]
    assert [u.path.name for u in scan.unready] == names[1:]
    scan = scan_directory(incoming, settle_s=0, link_wait_s=600.0, read=read, now=made + 601.0)
    assert [b.path.name for b in scan.bad] == names[1:]
    assert scan.bad[0].reason == (
        f"it is a symbolic link to {tmp_path / 'nowhere'}, which cannot be reached: No such file or directory"
    )
    rejected = {b.path: (b.size_bytes, b.mtime) for b in scan.bad}
    scan = scan_directory(incoming, settle_s=0, read=read, rejected=rejected, now=made + 602.0)
    assert (len(scan.bad), len(scan.still_bad)) == (0, 2)
    (tmp_path / "nowhere").write_text("data")
    scan = scan_directory(incoming, settle_s=0, read=read, rejected=rejected)
    assert [a.path.name for a in scan.ready] == names[:2]


def test_a_file_that_is_dated_ahead_is_as_old_as_what_was_seen_of_it(tmp_path: Path):
    path, seconds = put(tmp_path, "2025-10-02T01:02:03_sb07.hdf5"), [100.0]
    looks, ahead = Looks(lambda: seconds[0]), path.stat().st_ctime - 3600.0

    def scan() -> Any:
        return scan_directory(tmp_path, settle_s=2.0, read=read, looks=looks, now=ahead)

    assert scan().ready == ()
    assert looks.ahead == {path.name}
    seconds[0] += 1.9
    assert scan().ready == ()
    path.write_text("more data")
    seconds[0] += 0.2
    assert scan().ready == ()
    seconds[0] += 2.1
    assert len(scan().ready) == 1
    looks.forget({path.name})
    assert looks.ahead == set()


def test_a_file_that_grows_while_we_look_is_not_ready(tmp_path: Path):
    path = put(tmp_path, "2025-10-02T01:02:03_sb07.hdf5")

    def grow(_: Path) -> Any:
        path.write_text("more and more")
        return Header()

    scan = scan_directory(tmp_path, settle_s=0, read=grow)
    assert scan.unready[0].reason == "it changed while we looked"


def test_bad_files_come_with_their_reason_and_only_once(tmp_path: Path):
    put(tmp_path, "2025-10-02T01:02:03_sb00.hdf5", "")
    put(tmp_path, "2025-10-02T01:02:03_sb01.hdf5", "broken")
    scan = scan_directory(tmp_path, settle_s=0, read=read)
    assert [b.reason for b in scan.bad] == ["0 bytes", "2025-10-02T01:02:03_sb01.hdf5 is not HDF5"]
    rejected = {b.path: (b.size_bytes, b.mtime) for b in scan.bad}
    assert scan_directory(tmp_path, settle_s=0, read=read, rejected=rejected).bad == ()
    put(tmp_path, "2025-10-02T01:02:03_sb01.hdf5", "now it is whole")
    assert len(scan_directory(tmp_path, settle_s=0, read=read, rejected=rejected).ready) == 1


def test_a_failing_disk_is_no_reason_to_call_a_file_bad(tmp_path: Path):
    put(tmp_path, "2025-10-02T01:02:03_sb01.hdf5")

    def fails(_: Path) -> Any:
        raise StorageError("input/output error")

    scan = scan_directory(tmp_path, settle_s=0, read=fails)
    assert (scan.bad, scan.unready[0].reason) == ((), "input/output error")


def test_a_file_over_which_its_reader_stumbles_does_not_keep_the_others_out(tmp_path: Path):
    odd, good = "2025-10-02T01:02:03_sb00.hdf5", "2025-10-02T01:02:03_sb01.hdf5"
    for name in (odd, good):
        (tmp_path / name).write_text("x")

    def stumble(path: Path) -> Any:
        if path.name == odd:
            raise MemoryError
        return read(path)

    scan = scan_directory(tmp_path, settle_s=0.0, read=stumble)
    assert [a.path.name for a in scan.ready] == [good]
    assert [(u.path.name, u.reason) for u in scan.unready] == [(odd, "cannot be looked at: MemoryError: ")]


def test_a_file_that_is_just_going_away_is_not_called_bad(tmp_path: Path):
    (tmp_path / "2025-10-02T01:02:03_sb00.hdf5").write_text("x")

    def read(path: Path) -> Any:
        raise MissingError(f"no file {path}")

    scan = scan_directory(tmp_path, settle_s=0.0, read=read)
    assert (len(scan.unready), scan.bad) == (1, ())


def test_known_files_are_not_opened_again(tmp_path: Path):
    path = put(tmp_path, "2025-10-02T01:02:03_sb01.hdf5", "broken")
    assert scan_directory(tmp_path, known={path.name}, settle_s=0, read=read).bad == ()


def test_a_name_that_contradicts_the_header_is_bad(tmp_path: Path):
    put(tmp_path, "2025-10-02T01:02:03_sb01.hdf5")
    (bad,) = scan_directory(tmp_path, settle_s=0, read=lambda p: Header(subband=5)).bad  # type: ignore[arg-type,return-value]
    assert "is named sb01 and holds the frequencies of sb05" in bad.reason


def test_a_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(MissingError, match="no input directory"):
        scan_directory(tmp_path / "nowhere", read=read)


def test_files_are_grouped_by_their_headers_or_refused(tmp_path: Path):
    good = put(tmp_path, "2025-10-02T01:02:03_sb00.hdf5")
    bad = put(tmp_path, "2025-10-02T01:02:04_sb01.hdf5", "broken")
    with pytest.raises(InputError, match=r"sb01\.hdf5 is not HDF5"):
        group_files([good, bad], read=read)
    (group,) = group_files([good, bad], strict=False, read=read)
    assert group.subbands == (0, 1)
    foreign = put(tmp_path, "mine.hdf5")
    with pytest.raises(InputError, match="does not say which subband"):
        group_files([foreign], read=read)
    (group,) = group_files([foreign], read=lambda p: Header(subband=3))  # type: ignore[arg-type,return-value]
    assert group.subbands == (3,)


def test_a_subband_that_the_band_has_not_is_bad(tmp_path: Path):
    put(tmp_path, "2025-10-02T01:02:03_sb16.hdf5")
    (bad,) = scan_directory(tmp_path, settle_s=0, read=read).bad
    assert "sb16 is outside the band" in bad.reason
