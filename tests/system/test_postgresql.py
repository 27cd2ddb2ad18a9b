"""The databases on a real PostgreSQL, started for the test as the user postgres on a Unix socket."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from nightbeam.catalog import (
    FileFact,
    GroupFact,
    Owner,
    Products,
    Queue,
    Recorded,
    Registry,
    SetSpec,
    TableSpec,
    schema,
)
from nightbeam.catalog.serial import one_at_a_time
from nightbeam.core.errors import BusyError, InputError, UnavailableError

pytestmark = pytest.mark.system

G = "2025-10-02T01:02:03"
ME = Owner("me", "here", 1, 1.0)


@pytest.fixture
def url(postgresql_url: str) -> str:
    """All histories live in one database, emptied for each test."""
    return postgresql_url


def fill(queue: Queue, n: int = 16) -> dict[Path, Recorded]:
    return queue.record(GroupFact(G, 60950.043), [FileFact(sb, Path(f"/in/{sb}")) for sb in range(n)])


@pytest.mark.parametrize(
    ("name", "base", "kind"),
    [
        ("queue", schema.QueueBase, Queue),
        ("registry", schema.RegistryBase, Registry),
        ("products", schema.ProductsBase, Products),
    ],
)
def test_the_migrations_give_what_the_models_say(url: str, name: str, base: Any, kind: Any):
    database = kind(url).database
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, base.metadata)
    assert [d[1].name for d in differences] == [f"nightbeam_{name}_version"]


def test_many_may_open_a_new_database_at_once(url: str):
    errors: list[Exception] = []

    def open_it(kind: Any) -> None:
        try:
            kind(url)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it, args=(kind,)) for kind in (Queue, Registry, Products) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_group_lives_its_life(url: str):
    queue = Queue(url)
    assert set(fill(queue).values()) == {Recorded.NEW}
    assert set(fill(queue).values()) == {Recorded.KNOWN}
    twice = queue.record(GroupFact(G, 60950.043), [FileFact(3, Path("/in/again"))])
    assert list(twice.values()) == [Recorded.DUPLICATE]
    assert [d.idempotency_key for d in queue.take_dispatchable(5)] == [f"{G}#1"]
    queue.claim(G, ME)
    with pytest.raises(BusyError):
        queue.claim(G, Owner("you"))
    queue.put_receipt(G, ME, "convert", {"ms": "/m"})
    assert queue.fail(G, ME, "no luck").state == "pending"
    assert queue.claim(G, ME).processing_stage == "resuming"
    assert queue.recover(lambda row: True) == [G]
    queue.claim(G, ME)
    queue.complete(G, ME)
    assert [a.outcome for a in queue.attempts(G)] == ["failed", "lost", "completed"]
    assert queue.counts()["completed"] == 1
    assert queue.group(G).start_mjd == 60950.043  # eight bytes, not four


def test_only_one_of_many_gets_a_group(url: str):
    queue = Queue(url)
    fill(queue)
    got: list[str] = []

    def take(name: str) -> None:
        try:
            queue.claim(G, Owner(name))
            got.append(name)
        except BusyError:
            pass

    threads = [threading.Thread(target=take, args=(f"w{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [queue.group(G).owner] == got


def test_files_recorded_by_many_at_once_are_one_group(url: str):
    queue = Queue(url)
    errors: list[Exception] = []

    def record() -> None:
        try:
            fill(queue)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=record) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (queue.group(G).state, queue.group(G).subbands_present) == ("pending", 16)


def test_sets_and_products_are_kept(url: str, tmp_path: Path):
    registry, products = Registry(url, check=lambda path: None), Products(url)
    path = tmp_path / "a_bpcal"
    path.mkdir()
    registry.register_set(SetSpec("a", (TableSpec(path, "BP", 30),), 60000.0, 60001.0, dec_deg=33.0))
    found = registry.find_set(60000.4, dec_deg=33.1)
    assert found is not None
    assert found.paths == (path,)
    assert registry.retire("a", "old") == 1
    for noise in (0.1, 0.2):
        products.upsert_image(Path("/i/a.fits"), ms_path=Path("/m"), noise_jy=noise)
    assert [i.noise_jy for i in products.images()] == [0.2]
    products.upsert_ms(Path("/m"), stage="imaged", cal_applied=1)
    assert products.upsert_ms(Path("/m"), status="done").cal_applied == 1


def test_a_newer_schema_is_refused(url: str):
    queue = Queue(url)
    with queue.database.write() as connection:
        connection.exec_driver_sql("UPDATE nightbeam_queue_version SET version_num = '0099'")
    with pytest.raises(InputError, match="has schema 0099"):
        Queue(url)


def test_a_server_that_does_not_answer_is_unavailable():
    with pytest.raises(UnavailableError, match="does not answer"):
        Queue("postgresql://postgres@/postgres?host=/nowhere")


def test_one_at_a_time_whatever_machine_and_whatever_driver_the_url_names(url: str):
    other = url.replace("+psycopg", "+asyncpg")
    with one_at_a_time(url, "a thing", wait_s=5.0):
        with pytest.raises(BusyError, match="a thing"), one_at_a_time(other, "a thing", wait_s=0.3):
            pytest.fail("two at once")
        with one_at_a_time(other, "another thing", wait_s=0.3):
            pass
    with one_at_a_time(other, "a thing", wait_s=0.3):
        pass
