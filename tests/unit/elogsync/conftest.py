"""A logbook on loopback, a mirror of it, and the comparison of the two."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import Logbook
from nightbeam.elog.remote import LogbookClient, NoAuth
from nightbeam.elogsync.model import Policy, SyncReport
from nightbeam.elogsync.worker import look_around, sync
from nightbeam.testing.elog_service import FakeLogbook

differences = runpy.run_path(str(Path(__file__).resolve().parents[2] / "elog_mirror.py"))["differences"]


@pytest.fixture
def fake() -> Iterator[FakeLogbook]:
    with FakeLogbook(everyone="jdoe") as service:
        yield service


@pytest.fixture
def book(tmp_path: Path) -> Logbook:
    return Logbook(f"sqlite:///{tmp_path}/elog.db")


@pytest.fixture
def client(fake: FakeLogbook) -> Iterator[LogbookClient]:
    with LogbookClient(fake.url, auth=NoAuth(), read_s=5.0, attempts=3, backoff_s=0.01) as one:
        yield one


@pytest.fixture
def run(client: LogbookClient, book: Logbook) -> Callable[..., SyncReport]:
    """Look around and sync; keywords are the policy's."""

    def go(**policy: Any) -> SyncReport:
        plan = look_around(client, book, Policy(**({"everything": True} | policy)))
        return sync(client, book, plan, jobs=4)

    return go


@pytest.fixture
def same(book: Logbook, fake: FakeLogbook) -> Callable[[], None]:
    """Compare every experiment document by document; jobs of workflows are not read unless it is asked for."""

    def check() -> None:
        assert differences(book, fake, without={"jobs"}) == []

    return check
