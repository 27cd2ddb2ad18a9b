"""A logbook on loopback, a mirror of it, and the comparison of the two."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import Logbook
from nightbeam.elog.model import Resource
from nightbeam.elog.remote import LogbookClient, NoAuth
from nightbeam.elogsync.model import Policy, SyncReport
from nightbeam.elogsync.worker import look_around, sync
from nightbeam.testing.elog_service import FakeLogbook


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


def _plain(documents: dict[Any, Any]) -> dict[str, str]:
    # NaN is not equal to itself, but its text is.
    return {str(key): json.dumps(document, sort_keys=True) for key, document in documents.items()}


def mirrored(book: Logbook, experiment: str) -> dict[str, dict[str, str]]:
    """What the mirror holds of an experiment, in the form of `true`."""
    of = lambda resource: list(book.documents(resource, experiment))  # noqa: E731
    return {
        "entries": _plain({d["_id"]: d for d in of(Resource.ENTRIES)}),
        "runs": _plain({d["num"]: d for d in of(Resource.RUNS)}),
        "files": _plain({(d["run_num"], d["path"]): d for d in of(Resource.FILES)}),
        "workflows": _plain({d["_id"]: d for d in of(Resource.WORKFLOWS)}),
    }


def true(fake: FakeLogbook, experiment: str) -> dict[str, dict[str, str]]:
    """What the service holds of an experiment."""
    truth = fake.truth(experiment)
    return {
        "entries": _plain(truth.entries),
        "runs": _plain(truth.runs),
        "files": _plain(truth.files),
        "workflows": _plain(truth.workflow_definitions),
    }


@pytest.fixture
def same(book: Logbook, fake: FakeLogbook) -> Callable[[], None]:
    """Compare every experiment row by row."""

    def check() -> None:
        for experiment in fake.experiments:
            assert mirrored(book, experiment) == true(fake, experiment), experiment

    return check
