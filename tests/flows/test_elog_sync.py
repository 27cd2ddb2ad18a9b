"""The flow that keeps the logbook's mirror, against a logbook on loopback."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.states import State

from blocks import ElogService, save_site_blocks
from flows.elog_sync import elog_sync
from nightbeam.catalog import Logbook
from nightbeam.core.errors import BusyError, PartialError, RejectedError
from nightbeam.core.settings import Settings
from nightbeam.elog.model import Resource
from nightbeam.elog.remote import LogbookClient, NoAuth
from nightbeam.elogsync.model import Policy
from nightbeam.elogsync.worker import look_around, sync
from nightbeam.testing.elog_service import FakeLogbook

differences = runpy.run_path(str(Path(__file__).resolve().parents[1] / "elog_mirror.py"))["differences"]


class Place:
    """A logbook, and a block that points at it and at an empty mirror."""

    def __init__(self, fake: FakeLogbook, directory: Path, name: str) -> None:
        self.fake, self.directory, self.name = fake, directory, name
        self.url = f"sqlite:///{directory}/elog.db"
        ElogService(
            url=fake.url,
            auth="none",
            database=self.url,
            database_dir=str(directory),
            options={"parallel_jobs": 3, "everything": True, "read_timeout": 20.0},
        ).save(name, overwrite=True)

    def run(self, **options: Any) -> Any:
        # Its own second attempt would come after a minute.
        return elog_sync.with_options(retries=options.pop("retries", 0), retry_delay_seconds=0)(self.name, **options)

    def tables(self) -> list[list[dict[str, Any]]]:
        """All of them, the newest last."""
        with get_client(sync_client=True) as api:
            found = api.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["elog-table"])))
        return [json.loads(str(one.data)) for one in sorted(found, key=lambda a: str(a.created))]

    def table(self) -> list[dict[str, Any]]:
        return self.tables()[-1]

    @property
    def book(self) -> Logbook:
        return Logbook(self.url, create=False)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with FakeLogbook(everyone="jdoe") as fake:
        fake.populate(3, 8, 3, 5, parameters=6, seed=4)
        yield Place(fake, tmp_path, "test-logbook")


def test_the_mirror_is_filled_published_and_shown_and_the_next_run_finds_nothing_new(place):
    told = place.run()
    assert (told["experiments"], told["failed"]) == (3, 0)
    assert told["new"] > 3 * (8 + 3 + 5)
    assert Path(told["snapshot"]).exists()
    assert {row["experiment"] for row in place.table()} == set(place.fake.experiments)
    for experiment in place.fake.experiments:
        held = {d["_id"] for d in place.book.documents(Resource.ENTRIES, experiment)}
        assert held == set(place.fake.truth(experiment).entries)
    again = place.run()
    assert (again["new"], again["changed"], again["snapshot"]) == (0, 0, None)


def test_a_run_with_failures_fails_and_its_table_says_what(place):
    bad = place.fake.experiments[0]
    place.fake.fail(None, "500", route=f"{bad}/runs$")
    with pytest.raises(PartialError, match=f"1 of 3 experiments could not be read: {bad}"):
        place.run()
    (row,) = [row for row in place.table() if row["failure"]]
    assert row["experiment"] == bad
    assert "500" in row["failure"]
    assert place.book.state(bad)[Resource.ENTRIES].status == "ok"
    assert (place.directory / "failed_experiments.json").exists()


def test_a_second_attempt_reads_only_what_failed(place):
    bad = place.fake.experiments[0]
    place.fake.fail(3, "500", route=f"{bad}/runs$")
    told = place.run(retries=1)
    assert told["failed"] == 0
    asked = [(request.experiment, request.route) for request in place.fake.requests if request.experiment]
    assert asked.count((bad, "runs")) == 4
    assert all(asked.count(one) == 1 for one in set(asked) if one != (bad, "runs"))


@pytest.mark.parametrize("route", ["experiments$", "/(elog|search_elog)$"])
def test_after_an_attempt_that_was_not_let_in_the_second_reads_all_that_there_is(place, route):
    place.run()
    place.fake.stir(30, seed=3)
    place.fake.post(place.fake.experiments[0], "after the first sync")
    place.fake.fail(2, "401", route=route)
    told = place.run(retries=1, full=True)
    assert (told["experiments"], told["failed"]) == (3, 0)
    assert differences(place.book, place.fake, without={"jobs"}) == []
    assert not (place.directory / "failed_experiments.json").exists()


def test_an_attempt_that_was_not_let_in_is_no_update(place):
    place.run()
    before = place.book.metadata()["last_update"]
    place.fake.fail(None, "401", route="/(elog|search_elog)$")
    with pytest.raises(PartialError, match="3 of 3"):
        place.run(full=True)
    assert place.book.metadata()["last_update"] == before


def test_a_mirror_that_has_shrunk_fails_every_attempt_and_the_table_is_there(place):
    place.run()
    for experiment in place.fake.experiments:
        held = place.fake._held[experiment]
        held.entries.clear()
        held.version = -1
    with pytest.raises(RejectedError, match="logbook_entries has 0 rows"):
        place.run(retries=1, full=True)
    assert {row["experiment"] for row in place.table()} == {"-"}  # the second attempt's, which had nothing to read
    assert "no longer in the logbook" in json.dumps(place.tables())


def test_what_an_earlier_update_stored_and_did_not_publish_is_published(place):
    with LogbookClient(place.fake.url, auth=NoAuth()) as client:
        book = Logbook(place.url)
        sync(client, book, look_around(client, book, Policy(everything=True)), jobs=3)
    told = place.run()
    assert (told["new"], told["changed"]) == (0, 0)
    assert Path(told["snapshot"]).exists()


def test_who_is_not_let_in_ends_the_run_at_once(place):
    place.run()
    place.fake.fail(None, "401")
    place.fake.forget()
    state: State[Any] = place.run(return_state=True)
    assert state.is_failed()
    assert len(place.fake.requests) < 12


def test_a_mirror_that_somebody_else_syncs_is_left_alone(place):
    place.run()
    with place.book.sole_writer(), pytest.raises(BusyError):
        place.run()


def test_how_to_be_let_in_is_the_operators_and_survives_another_apply(tmp_path):
    settings = Settings(state_dir=tmp_path).resolved()
    save_site_blocks(settings)
    block = ElogService.load("main")
    block.auth, block.principal, block.token_file = "bearer", "svc@ELOG", "/secret/token"
    block.save("main", overwrite=True)
    save_site_blocks(settings)
    kept = ElogService.load("main")
    assert (kept.auth, kept.principal, kept.token_file) == ("bearer", "svc@ELOG", "/secret/token")
    assert kept.settings().hours_lookback == settings.elog.hours_lookback


def test_a_keytab_gives_a_ticket_of_its_own(tmp_path):
    block = ElogService(
        url="http://localhost",
        keytab="/etc/svc.keytab",
        principal="svc",
        database="sqlite:///x",
        database_dir=str(tmp_path),
    )
    assert block.kinit() == ["kinit", "-c", f"FILE:{tmp_path}/.ticket", "-k", "-t", "/etc/svc.keytab", "svc"]
    assert "/etc/svc.keytab" not in repr(block)
    assert block.model_copy(update={"keytab": None}).kinit() is None
