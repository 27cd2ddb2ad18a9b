"""Full disks, places that cannot be written, addresses of nothing, databases of others."""

from __future__ import annotations

import runpy
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import Logbook
from nightbeam.cli import main
from nightbeam.elogsync.files import snapshots
from nightbeam.testing.elog_service import FakeLogbook

pytestmark = pytest.mark.system

_helpers = runpy.run_path(str(Path(__file__).resolve().parents[2] / "elog_mirror.py"))
content, differences, ledger, nothing_lost = (
    _helpers[name] for name in ("content", "differences", "ledger", "nothing_lost")
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system in memory, whose options can be changed while it is there."""
    where = tmp_path / "disk"
    where.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if where.is_mount() else ""
        argv = ["mount", "-t", "tmpfs", "-o", f"{again}{options}", "none", str(where)]
        if subprocess.run(argv, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here; tests/unit/elogsync fills a disk by injection")
        return where

    yield mount
    if where.is_mount():
        subprocess.run(["umount", str(where)], check=True)


@pytest.fixture
def at(fake: FakeLogbook, capsys: pytest.CaptureFixture[str]):
    """Update a mirror in a directory; returns exit code and standard error."""

    def run(directory: Path, *arguments: Any, base_url: str = "") -> tuple[int, str]:
        argv = ["elog", "update", "--everything", "--base-url", base_url or fake.url, "--auth", "none"]
        with pytest.raises(SystemExit) as ended:
            main([*argv, "--database-dir", str(directory), *map(str, arguments)])
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def test_a_disk_that_is_full_keeps_what_it_has_and_goes_on_when_there_is_space(
    fake: FakeLogbook, disk: Callable[[str], Path], at: Any
):
    fake.populate(3, 5, 3, 3, parameters=14, fields=3, seed=61)
    where = disk("size=3m")
    assert at(where)[0] == 0
    book = Logbook(f"sqlite:///{where}/elog.db")
    rows, whole = ledger(book), content(book)
    for experiment in fake.experiments:
        fake.post(experiment, "x" * 3_000_000)
        fake.start_run(experiment)
    code, err = at(where)
    assert code == 74
    assert str(where) in err
    assert "full" in err or "no space left" in err
    rows = nothing_lost(rows, book)
    assert book.problems() == []
    (snapshot,) = snapshots(where)
    assert content(Logbook(f"sqlite:///{snapshot}")) == whole
    assert not list(where.glob(".*.part*"))
    disk("size=64m")
    assert at(where)[0] == 0
    assert differences(book, fake, without={"jobs"}) == []
    assert content(Logbook(f"sqlite:///{snapshots(where)[-1]}")) == content(book)
    nothing_lost(rows, book)


def test_a_snapshot_that_has_no_space_leaves_the_last_one_and_comes_with_the_next_update(
    fake: FakeLogbook, disk: Callable[[str], Path], at: Any, tmp_path: Path
):
    fake.populate(2, 4, 2, 2, parameters=14, fields=2, seed=62)
    where, database = disk("size=2m"), tmp_path / "elog.db"
    assert at(where, "--database", database)[0] == 0
    (before,) = snapshots(where)
    book, whole = Logbook(f"sqlite:///{database}"), before.read_bytes()
    fake.post(fake.experiments[0], "y" * 3_000_000)
    code, err = at(where, "--database", database)
    assert code == 74
    assert str(where) in err
    assert (snapshots(where), before.read_bytes()) == ([before], whole)
    assert [path.name for path in where.iterdir()] == [before.name]
    assert differences(book, fake, without={"jobs"}) == []
    disk("size=64m")
    fake.forget()
    assert at(where, "--database", database)[0] == 0
    assert content(Logbook(f"sqlite:///{snapshots(where)[-1]}")) == content(book)


@pytest.mark.parametrize("known", [True, False])
def test_a_directory_that_cannot_be_written_is_named(
    fake: FakeLogbook, disk: Callable[[str], Path], at: Any, known: bool
):
    fake.populate(2, 4, 2, 2, parameters=14, fields=2, seed=63)
    where = disk("size=16m")
    if known:
        assert at(where)[0] == 0
        book = Logbook(f"sqlite:///{where}/elog.db")
        rows = ledger(book)
    fake.stir(10)
    disk("ro")
    fake.forget()
    code, err = at(where)
    assert code == 74
    assert str(where) in err
    assert "fix:" in err
    assert fake.requests == [], "the logbook is asked although nothing can be stored"
    disk("rw")
    assert known or list(where.iterdir()) == []
    assert at(where, "--full")[0] == 0
    book = Logbook(f"sqlite:///{where}/elog.db")
    assert differences(book, fake, without={"jobs"}) == []
    if known:
        nothing_lost(rows, book)


def test_an_address_without_a_service_is_named_and_leaves_nothing(at: Any, tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        code, err = at(tmp_path / "mirror", base_url=address)
    assert code == 69
    assert f"at {address}" in err
    assert "Connection refused" in err
    assert "fix:" in err
    assert list((tmp_path / "mirror").iterdir()) == []


def test_an_address_of_something_else_is_named_and_the_mirror_stays_as_it_was(
    fake: FakeLogbook, at: Any, tmp_path: Path
):
    fake.populate(2, 4, 2, 2, parameters=14, fields=2, seed=64)
    where = tmp_path / "mirror"
    assert at(where)[0] == 0
    book = Logbook(f"sqlite:///{where}/elog.db")
    before, states = content(book), book.states()
    code, err = at(where, base_url=f"{fake.url}/elsewhere")
    assert code == 66
    assert f"{fake.url}/elsewhere" in err
    assert "check the service's address" in err
    assert (content(book), book.states()) == (before, states)


def test_a_mirror_of_a_newer_nightbeam_is_left_alone_and_it_is_said_what_helps(
    fake: FakeLogbook, logbook_url: str, elog: Any
):
    fake.populate(1, 3, 2, 2, parameters=14, fields=2, seed=65)
    assert elog("update", "--everything")[0] == 0
    book = Logbook(logbook_url)
    with book.database.write() as connection:
        connection.exec_driver_sql("UPDATE nightbeam_elog_version SET version_num = '0999'")
    before = content(book)
    fake.post(fake.experiments[0], "new")
    fake.forget()
    for command in ("update", "status", "verify"):
        code, lines, err = elog(command)
        assert (command, code, lines) == (command, 65, [])
        assert "has schema 0999" in err
        assert "fix: upgrade nightbeam" in err
    assert fake.requests == []
    assert content(book) == before
