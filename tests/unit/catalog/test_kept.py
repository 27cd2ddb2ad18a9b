"""A database that is looked at again and again, whatever becomes of it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nightbeam.catalog import FileFact, GroupFact, Queue
from nightbeam.catalog.kept import KeptDatabase
from nightbeam.core.errors import InputError, MissingError, NightbeamError, UnavailableError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/q.sqlite3"


@pytest.fixture
def kept(url: str, clock: Clock) -> Iterator[KeptDatabase]:
    found = KeptDatabase(url, "queue", clock=clock)
    yield found
    found.close()


def groups(kept: KeptDatabase) -> int:
    with kept.read() as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM ingest_queue")).scalar_one())


def record(url: str, name: str) -> None:
    Queue(url).record(GroupFact(name, 60950.0), [FileFact(0, Path(f"/in/{name}_sb00.hdf5"))])


def test_a_file_that_is_not_there_is_missing_and_is_not_made(kept: KeptDatabase, tmp_path: Path):
    with pytest.raises(MissingError, match="no queue database"):
        groups(kept)
    assert not (tmp_path / "state").exists()


def test_one_that_is_made_meanwhile_is_found_after_a_moment(kept: KeptDatabase, clock: Clock, url: str):
    with pytest.raises(MissingError):
        groups(kept)
    record(url, "a")
    with pytest.raises(MissingError):
        groups(kept)
    clock.now = 2.0
    assert groups(kept) == 1


def test_what_is_written_meanwhile_is_seen(kept: KeptDatabase, url: str):
    record(url, "a")
    assert groups(kept) == 1
    record(url, "b")
    assert groups(kept) == 2


def test_a_file_that_was_replaced_or_taken_away_is_noticed_at_once(
    kept: KeptDatabase, clock: Clock, url: str, tmp_path: Path
):
    record(url, "a")
    assert groups(kept) == 1
    other = f"sqlite:///{tmp_path}/other.sqlite3"
    for name in ("x", "y", "z"):
        record(other, name)
    with closing(sqlite3.connect(tmp_path / "other.sqlite3")) as raw:
        raw.execute("PRAGMA journal_mode=DELETE")
    (tmp_path / "other.sqlite3").replace(tmp_path / "state" / "q.sqlite3")
    assert groups(kept) == 3
    (tmp_path / "state" / "q.sqlite3").unlink()
    with pytest.raises(MissingError):
        groups(kept)


def test_a_schema_that_becomes_a_newer_one_is_noticed_within_ten_seconds(kept: KeptDatabase, clock: Clock, url: str):
    record(url, "a")
    assert groups(kept) == 1
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as raw:
        raw.execute("UPDATE nightbeam_queue_version SET version_num = '0099'")
        raw.commit()
    clock.now = 10.0
    with pytest.raises(InputError, match="has schema 0099"):
        groups(kept)


def test_an_older_schema_is_said_and_left_as_it_is(kept: KeptDatabase, url: str):
    record(url, "a")
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as raw:
        raw.execute("UPDATE nightbeam_queue_version SET version_num = '0003'")
        raw.commit()
    with pytest.raises(InputError, match=r"has schema 0003, this nightbeam wants 0007"):
        groups(kept)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as raw:
        assert raw.execute("SELECT version_num FROM nightbeam_queue_version").fetchone() == ("0003",)


@pytest.mark.parametrize("content", [b"", b"no database, but long enough to be one" * 100])
def test_a_file_that_is_no_database_is_one_error(kept: KeptDatabase, tmp_path: Path, content: bytes):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "q.sqlite3").write_bytes(content)
    with pytest.raises(InputError):
        groups(kept)


def test_a_name_that_is_no_file_is_one_error(kept: KeptDatabase, tmp_path: Path):
    (tmp_path / "state" / "q.sqlite3").mkdir(parents=True)
    with pytest.raises(NightbeamError):
        groups(kept)


def test_a_database_that_could_not_be_opened_is_not_tried_with_each_request(
    kept: KeptDatabase, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    tried = []

    def refuse(self: KeptDatabase) -> None:
        tried.append(clock.now)
        raise InputError("no")

    monkeypatch.setattr(KeptDatabase, "_opened", refuse)
    for now in (0.0, 0.5, 1.9, 2.0, 2.1):
        clock.now = now
        with pytest.raises(InputError):
            groups(kept)
    assert tried == [0.0, 2.0]


def test_one_whose_opening_took_long_is_not_tried_again_at_once(
    kept: KeptDatabase, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    tried = []

    def refuse(self: KeptDatabase) -> None:
        tried.append(clock.now)
        clock.now += 3.0
        raise InputError("no")

    monkeypatch.setattr(KeptDatabase, "_opened", refuse)
    for _ in range(5):
        with pytest.raises(InputError):
            groups(kept)
    assert tried == [0.0]
    clock.now = 5.0
    with pytest.raises(InputError):
        groups(kept)
    assert tried == [0.0, 5.0]


def test_a_server_that_was_away_is_tried_in_the_background_and_nobody_waits_for_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, url: str
):
    kept = KeptDatabase("postgresql://127.0.0.1:1/nightbeam", "queue", clock=clock)
    tried: list[str] = []
    begun, back = threading.Event(), threading.Event()
    opened = KeptDatabase._opened

    def away(self: KeptDatabase) -> Any:
        tried.append(threading.current_thread().name)
        if len(tried) == 1:
            raise UnavailableError("no answer")
        begun.set()
        assert back.wait(30.0)
        self._url = url
        return opened(self)

    monkeypatch.setattr(KeptDatabase, "_opened", away)
    with pytest.raises(UnavailableError):
        groups(kept)
    clock.now = 2.0
    for _ in range(3):
        with pytest.raises(UnavailableError, match="no answer"):
            groups(kept)
        assert begun.wait(30.0)
    record(url, "a")
    back.set()
    assert kept._trying is not None
    kept._trying.join(30.0)
    assert groups(kept) == 1
    assert tried == ["MainThread", "try-queue"]
    kept.close()


def test_a_password_is_not_shown_and_a_server_that_is_away_is_waited_for_a_moment_only():
    kept = KeptDatabase("postgresql://me:secret@127.0.0.1:1/nightbeam", "queue")
    assert "secret" not in kept.shown
    assert "connect_timeout=3" in kept._url
    with pytest.raises(NightbeamError) as caught, kept.read():
        pass
    assert "secret" not in str(caught.value)
