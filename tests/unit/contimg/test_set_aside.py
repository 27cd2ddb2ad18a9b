"""Bad files are moved out of the input directory, never deleted, and can be put back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightbeam.catalog.set_aside import SetAside
from nightbeam.contimg import Site, Tools, quarantine, scan_arrivals
from nightbeam.contimg import set_aside as module
from nightbeam.contimg.set_aside import bad_lines, put_back
from nightbeam.core.errors import InputError, MissingError, StorageError, UnavailableError
from nightbeam.core.settings import Settings

NAME = "2025-10-02T01:02:01_sb03.hdf5"


class Killed(BaseException):
    """As by the kernel: nothing of ours catches it."""


def read(path: Path) -> Any:
    if not path.read_text().startswith("+"):
        raise InputError(f"{path.name} is not HDF5")
    start = 2460950.5 + (3723.25 / 86400)
    return SimpleNamespace(subband=None, start_jd=start, mid_jd=start + 0.0018, dec_rad=0.5)


TOOLS = Tools(read_header=read)


def make_site(state: Path, **contimg: Any) -> Site:
    ingest = {"settle_s": 0, "bad_file_wait_s": 600}
    settings = {"state_dir": state, "contimg": {"ingest": ingest, **contimg}}
    site = Site.from_settings(Settings.model_validate(settings))
    site.input_dir.mkdir(parents=True)
    return site


@pytest.fixture
def site(tmp_path: Path, contimg_databases: dict[str, str]) -> Site:
    return make_site(tmp_path / "state", **contimg_databases)


def put(site: Site, text: str = "rubbish", name: str = NAME) -> Path:
    path = site.input_dir / name
    path.write_text(text)
    return path


def scan(site: Site, after_s: float = 0.0) -> Any:
    """Scan so long after the file was last touched (and now, if it is not there)."""
    path = site.input_dir / NAME
    changed = path.stat().st_ctime if path.exists() else 4e9
    return scan_arrivals(site, tools=TOOLS, now=changed + after_s)


def held(site: Site) -> list[tuple[str, str]]:
    rows = site.queue().set_aside.rows()
    return [(Path(row.path).read_text(), row.state) for row in rows if Path(row.path).exists()]


def test_a_bad_file_is_moved_when_it_has_not_changed_for_long_enough_and_keeps_its_bytes(site: Site):
    bad = put(site)
    assert scan(site, 599.0).set_aside == ()
    assert bad.exists()
    assert scan(site, 601.0).set_aside == (str(bad),)
    assert not bad.exists()
    (row,) = site.queue().set_aside.rows()
    assert (row.original_path, row.reason, row.state, row.size_bytes) == (
        str(bad), f"{NAME} is not HDF5", "held", 7,
    )  # fmt: skip
    assert Path(row.path).read_text() == "rubbish"
    assert Path(row.path).is_relative_to(site.input_dir / ".set-aside")
    assert site.queue().bad_files() == []
    assert [p.name for p in site.input_dir.iterdir()] == [".set-aside"]


def test_a_file_without_bytes_that_fills_later_is_taken_in(site: Site):
    bad = put(site, "")
    assert scan(site, 500.0).bad == {str(bad): "0 bytes"}
    put(site, "+")
    report = scan(site, 601.0)
    assert (report.new_files, report.set_aside) == (1, ())
    assert site.queue().bad_files() == []


def test_a_good_file_of_the_same_name_is_taken_in_after_the_bad_one_was_moved(site: Site):
    put(site)
    scan(site, 601.0)
    good = put(site, "+")
    assert scan(site).new_files == 1
    assert good.exists()
    assert held(site) == [("rubbish", "held")]


def test_two_bad_files_of_one_name_are_both_kept(site: Site):
    for text in ("rubbish", "more rubbish"):
        put(site, text)
        scan(site, 601.0)
    assert held(site) == [("rubbish", "held"), ("more rubbish", "held")]


def test_a_bad_file_that_somebody_removed_is_forgotten(site: Site):
    bad = put(site)
    scan(site)
    bad.unlink()
    scan(site, 601.0)
    assert (site.queue().bad_files(), site.queue().set_aside.rows()) == ([], [])


def test_a_good_file_that_comes_at_the_last_moment_is_not_moved(site: Site, monkeypatch: pytest.MonkeyPatch):
    bad = put(site)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self == bad:
            fresh = site.input_dir / "fresh"
            fresh.write_text("+ and whole")
            fresh.replace(bad)
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        assert scan(site, 601.0).set_aside == ()
    assert bad.read_text() == "+ and whole"
    assert site.queue().set_aside.rows() == []
    assert scan(site).new_files == 1


def test_what_cannot_be_moved_stays_is_said_and_is_moved_when_it_can_be(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    bad = put(site)
    with monkeypatch.context() as patched:  # root may write anywhere but on such a file system
        real = os.access
        patched.setattr(os, "access", lambda path, mode: path != site.input_dir and real(path, mode))
        for _ in range(2):
            assert scan(site, 601.0).set_aside == ()
    assert bad.exists()
    assert sum("stays where it is" in record.message for record in caplog.records) == 1
    (line,) = bad_lines(site)
    assert line["what"] == f"stays: {site.input_dir} cannot be written"
    assert scan(site, 601.0).set_aside == (str(bad),)


def test_a_full_disk_leaves_the_file_where_it_is(site: Site, monkeypatch: pytest.MonkeyPatch):
    bad = put(site)

    def full(here: Path, there: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(module, "move", full)
        assert scan(site, 601.0).set_aside == ()
    assert bad.read_text() == "rubbish"
    assert "No space left" in bad_lines(site)[0]["what"]
    assert scan(site, 601.0).set_aside == (str(bad),)


def test_no_inode_for_the_directory_is_said(site: Site, monkeypatch: pytest.MonkeyPatch):
    put(site)
    real = Path.mkdir

    def full(self: Path, *args: Any, **options: Any) -> None:
        if self.is_relative_to(site.set_aside_dir()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", full)
        assert scan(site, 601.0).set_aside == ()
    assert "no space left for" in bad_lines(site)[0]["what"]
    assert scan(site, 601.0).set_aside


def test_a_file_that_was_put_back_is_judged_again(site: Site):
    bad = put(site)
    scan(site, 601.0)
    assert put_back(site, bad, now=1.0) == bad
    assert bad.read_text() == "rubbish"
    assert site.queue().set_aside.rows(states=("held",)) == []
    report = scan(site, 1.0)
    assert (list(report.bad), report.set_aside) == ([str(bad)], ())
    assert scan(site, 601.0).set_aside == (str(bad),)


def test_nothing_is_put_back_over_another_file_or_that_was_never_moved(site: Site):
    bad = put(site)
    scan(site, 601.0)
    put(site, "+")
    with pytest.raises(InputError, match="something lies at"):
        put_back(site, bad, now=1.0)
    assert held(site) == [("rubbish", "held")]
    with pytest.raises(MissingError, match="nothing that was set aside"):
        put_back(site, site.input_dir / "other", now=1.0)
    bad.unlink()
    Path(site.queue().set_aside.rows()[0].path).unlink()
    with pytest.raises(MissingError, match="is gone"):
        put_back(site, bad, now=1.0)


def far_away(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Play a directory on another file system."""
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target).is_relative_to(place) != self.is_relative_to(place):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(self, target)

    def rename_new(source: Path, target: Path) -> None:
        rename(source, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr("nightbeam.contimg.quarantine.rename_new", rename_new)


def test_a_database_that_fails_for_an_instant_loses_no_file_from_the_lists(site: Site, monkeypatch: pytest.MonkeyPatch):
    bad = put(site)

    def busy(*_: Any, **__: Any) -> None:
        raise UnavailableError("the server is away")

    with monkeypatch.context() as patched:
        patched.setattr(SetAside, "hold", busy)
        assert scan(site, 601.0).set_aside == ()
    assert [line["file"] for line in bad_lines(site)] == [str(bad)] * len(bad_lines(site)) != []
    scan(site, 601.0)
    assert held(site) == [("rubbish", "held")]


def test_what_is_on_its_way_is_not_forgotten_while_a_mount_is_missing(site: Site, monkeypatch: pytest.MonkeyPatch):
    bad, there = put(site), site.input_dir.with_name("there")
    killed_at(monkeypatch, SetAside, "hold", after=False, act=lambda: scan(site, 601.0))
    site.input_dir.rename(there)
    site.input_dir.mkdir()
    scan(site)
    site.input_dir.rmdir()
    there.rename(site.input_dir)
    scan(site)
    assert [(row.original_path, row.state) for row in site.queue().set_aside.rows()] == [(str(bad), "held")]
    assert held(site) == [("rubbish", "held")]


def test_where_no_lock_can_be_made_bad_files_stay_and_good_ones_go_on(site: Site, monkeypatch: pytest.MonkeyPatch):
    bad = put(site)

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("no room for a lock")

    monkeypatch.setattr(module, "sole_owner", full)
    scan(site)
    put(site, "+", NAME.replace("sb03", "sb04"))
    assert scan(site, 601.0).new_files == 1
    assert bad.exists()


def test_a_name_that_is_no_text_in_the_input_directory_stops_nothing(site: Site):
    put(site, "+")
    Path(os.fsdecode(os.fsencode(site.input_dir) + b"/caf\xe9.txt")).touch()
    assert scan(site, 601.0).new_files == 1


#: What changes anything on disk or in the tables while a file is moved aside or put back.
DEEDS: list[tuple[Any, str]] = [
    (Path, "rename"), (quarantine, "rename_new"), (module, "move"), (module, "remove"), (quarantine, "_copy"),
    (quarantine, "_drop"), (os, "link"), (Path, "unlink"), (SetAside, "begin"), (SetAside, "hold"),
    (SetAside, "become"),
]  # fmt: skip


def killed_at(
    monkeypatch: pytest.MonkeyPatch, place: Any, deed: str, *, after: bool, act: Callable[[], object]
) -> None:
    """Act, and be killed before or after the first of such deeds."""
    with monkeypatch.context() as patched:
        real = getattr(place, deed)

        def stopped(*args: Any, **options: Any) -> Any:
            if after:
                real(*args, **options)
            raise Killed

        patched.setattr(place, deed, stopped)
        with suppress(Killed):
            act()


@pytest.mark.parametrize("far", [False, True], ids=["beside", "on another file system"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("deed", range(len(DEEDS)), ids=lambda n: DEEDS[n][1])
def test_whoever_is_killed_while_moving_leaves_one_whole_file_that_the_next_look_settles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far: bool, after: bool, deed: int
):
    site, place = make_site(tmp_path / "state"), tmp_path / "far"
    if far:
        site = replace(site, ingest=site.ingest.model_copy(update={"set_aside_dir": place}))
        far_away(monkeypatch, place)
    bad = put(site)
    killed_at(monkeypatch, *DEEDS[deed], after=after, act=lambda: scan(site, 601.0))
    copies = [p for root in (site.input_dir, place) for p in root.rglob("*") if p.is_file() and p.suffix != ".part"]
    assert {p.read_text() for p in copies} == {"rubbish"}
    scan(site, 601.0)
    scan(site, 601.0)
    assert held(site) == [("rubbish", "held")]
    assert not bad.exists()
    assert set(names_in(site.input_dir)) <= {".set-aside"}
    assert site.queue().bad_files() == []
    killed_at(monkeypatch, *DEEDS[deed], after=after, act=lambda: put_back(site, bad, now=1.0))
    with suppress(MissingError):
        put_back(site, bad, now=1.0)
    assert bad.read_text() == "rubbish"
    assert held(site) == []
    assert {row.state for row in site.queue().set_aside.rows()} == {"restored"}
    assert set(names_in(site.input_dir)) <= {".set-aside", bad.name}


def names_in(directory: Path) -> list[str]:
    """Return what lies there, but for halves of copies.

    Who makes them dies in earnest only in other tests: here its process lives on, and nobody removes what is its own.
    """
    return [path.name for path in directory.iterdir() if path.suffix != ".part"]


DEAD = 2**22 + 5


def of_a_dead_process(site: Site) -> list[Path]:
    """Have the halves of copies in the input directory be of a process that is gone; returns them."""
    found = []
    for path in sorted(site.input_dir.glob(".*.part")):
        pid, rest = f".{os.getpid()}.", f".{DEAD}."
        assert pid in path.name
        found.append(path.rename(path.with_name(path.name.replace(pid, rest))))
    return found


@pytest.mark.parametrize("deed", [(quarantine, "_copy"), (quarantine, "remove")], ids=["put back", "moved aside"])
def test_half_a_copy_that_was_left_by_a_kill_is_removed_when_it_is_old_and_its_process_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: tuple[Any, str]
):
    place = tmp_path / "far"
    site = make_site(tmp_path / "state")
    site = replace(site, ingest=site.ingest.model_copy(update={"set_aside_dir": place}))
    far_away(monkeypatch, place)
    bad = put(site)
    real = quarantine.remove
    monkeypatch.setattr(quarantine, "remove", lambda path: None)  # as by the kernel: nothing is cleaned up
    if deed[1] == "_copy":
        scan(site, 601.0)
        for left in site.input_dir.glob(".*.part"):
            real(left)
        killed_at(monkeypatch, *deed, after=True, act=lambda: put_back(site, bad, now=1.0))
    else:
        scan(site, 601.0)
    monkeypatch.setattr(quarantine, "remove", real)
    mine = sorted(site.input_dir.glob(".*.part"))
    assert len(mine) == 1
    written = mine[0].stat().st_ctime
    scan_arrivals(site, tools=TOOLS, now=written + 3601.0)
    assert mine[0].exists(), "this process lives"
    (part,) = of_a_dead_process(site)
    written = part.stat().st_ctime
    scan_arrivals(site, tools=TOOLS, now=written + 3599.0)
    assert part.exists(), "another machine may be at it"
    scan_arrivals(site, tools=TOOLS, now=written + 3601.0)
    assert not part.exists()
    assert held(site) == [("rubbish", "held")]


def test_parts_of_others_and_of_what_is_nowhere_else_are_left_alone(site: Site):
    names = [
        f".{NAME}.{DEAD}.00ff00ff.part",  # no row tells that the rest of it lies anywhere
        f".notes.txt.{DEAD}.00ff00ff.part",
        f"{NAME}.part",
        f".{NAME}.Xy12.part",
        f"..{NAME}.2026-01-01.aside.{DEAD}.00ff00ff.part",
    ]
    for name in names:
        put(site, "half", name)
    scan_arrivals(site, tools=TOOLS, now=4e9)
    assert sorted(path.name for path in site.input_dir.iterdir()) == sorted(names)


def test_what_is_put_back_replaces_no_file_that_comes_at_the_last_moment(site: Site, monkeypatch: pytest.MonkeyPatch):
    bad = put(site)
    scan(site, 601.0)
    real = module.move

    def move(source: Path, target: Path) -> None:
        real(source, target)
        if source.is_relative_to(site.set_aside_dir()):
            put(site, "+ and new")

    with monkeypatch.context() as patched:
        patched.setattr(module, "move", move)
        with pytest.raises(InputError, match="something lies at"):
            put_back(site, bad, now=1.0)
    assert bad.read_text() == "+ and new"
    assert held(site) == [("rubbish", "held")]
    assert set(names_in(site.input_dir)) == {".set-aside", NAME}


def test_a_bad_link_is_listed_with_its_reason_and_stays(site: Site, tmp_path: Path):
    nowhere, rubbish = site.input_dir / NAME, site.input_dir / NAME.replace("sb03", "sb04")
    (tmp_path / "rubbish").write_text("rubbish")
    nowhere.symlink_to(tmp_path / "gone")
    rubbish.symlink_to(tmp_path / "rubbish")
    made = nowhere.lstat().st_ctime
    assert list(scan_arrivals(site, tools=TOOLS, now=made + 599.0).unready) == [str(nowhere)]
    report = scan_arrivals(site, tools=TOOLS, now=made + 601.0)
    assert list(report.bad) == [str(nowhere)]
    scan_arrivals(site, tools=TOOLS, now=made + 9999.0)
    assert [(line["file"], line["what"]) for line in bad_lines(site)] == [
        (str(path), "stays: it is a symbolic link, and what it leads to is not ours to move")
        for path in (nowhere, rubbish)
    ]
    (tmp_path / "gone").write_text("+")
    assert scan_arrivals(site, tools=TOOLS, now=made + 9999.0).new_files == 1
    assert [b.path for b in site.queue().bad_files()] == [str(rubbish)]


def test_a_bad_file_that_is_dated_ahead_is_moved_as_long_after_it_was_judged(site: Site):
    bad = put(site)
    before = bad.stat().st_ctime - 3600.0  # the clock was set back by an hour
    scan_arrivals(site, tools=TOOLS, now=before)
    assert scan_arrivals(site, tools=TOOLS, now=before + 599.0).set_aside == ()
    assert scan_arrivals(site, tools=TOOLS, now=before + 601.0).set_aside == (str(bad),)
