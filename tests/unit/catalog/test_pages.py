"""Pages of rows, newest first. What SQLite promises, PostgreSQL does too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from nightbeam.catalog import FileFact, GroupFact, Owner, Products, Queue, Registry, SetSpec, TableSpec
from nightbeam.catalog.kept import KeptDatabase
from nightbeam.catalog.pages import ProductPages, QueuePages, RegistryPages
from nightbeam.core.errors import BusyError, InputError, MissingError

ME = Owner("me", "here", 1, 1.0)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/all.sqlite3"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def queue(url: str, open_new: Callable[..., Queue]) -> Queue:
    return open_new(Queue, url)


@pytest.fixture
def pages(queue: Queue, url: str) -> Iterator[QueuePages]:
    kept = KeptDatabase(url, "queue")
    yield QueuePages(kept)
    kept.close()


@pytest.fixture
def products(url: str, open_new: Callable[..., Products]) -> Products:
    return open_new(Products, url.replace("all.sqlite3", "products.sqlite3"))


@pytest.fixture
def made(products: Products, url: str) -> Iterator[ProductPages]:
    kept = KeptDatabase(url.replace("all.sqlite3", "products.sqlite3"), "products")
    yield ProductPages(kept)
    kept.close()


def record(queue: Queue, name: str, mjd: float, *, subbands: int = 1, now: float = 0.0) -> None:
    files = [FileFact(k, Path(f"/in/{name}_sb{k:02d}.hdf5")) for k in range(subbands)]
    queue.record(GroupFact(name, mjd), files, now=now)


def as_of_the_seed(queue: Queue, name: str, received_at: float) -> None:
    """Take from a group the time of its data, as in a database of the older pipeline."""
    record(queue, name, 1.0, now=received_at)
    with queue.database.write() as connection:
        connection.execute(sa.text("UPDATE ingest_queue SET start_mjd = NULL WHERE group_id = :g"), {"g": name})


def names(rows: list) -> list[str]:
    return [row.group_id for row in rows]


def test_groups_come_newest_data_first_and_those_without_a_time_last(queue: Queue, pages: QueuePages):
    for name, mjd in (("b", 60950.2), ("a", 60950.3), ("c", 60950.1)):
        record(queue, name, mjd, subbands=2)
    as_of_the_seed(queue, "old", 5.0)
    as_of_the_seed(queue, "older", 4.0)
    found = pages.groups()
    assert names(found) == ["a", "b", "c", "old", "older"]
    assert [row.subbands_present for row in found] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_page_after_page_has_every_group_once_also_where_times_are_equal(queue: Queue, pages: QueuePages, size: int):
    for number in range(4):
        record(queue, f"g{number}", 60950.0)
        as_of_the_seed(queue, f"s{number}", 7.0)
    record(queue, "late", 60951.0)
    found: list[str] = []
    while page := pages.groups(limit=size, before=found[-1] if found else None):
        found += names(page)
    assert found == ["late", "g3", "g2", "g1", "g0", "s3", "s2", "s1", "s0"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pages_of_a_search_too_have_every_group_once_where_times_are_equal(queue: Queue, pages: QueuePages, size: int):
    for number, received in enumerate((30.0, 10.0, 20.0, 40.0)):
        record(queue, f"group{number}", 60950.0, now=received)
    found: list[str] = []
    while page := pages.groups(text="group", limit=size, before=found[-1] if found else None):
        found += names(page)
    assert found == ["group3", "group2", "group1", "group0"]


def test_a_group_to_go_on_from_that_is_gone_is_said(queue: Queue, pages: QueuePages):
    record(queue, "a", 60950.0)
    with pytest.raises(MissingError, match="begin again"):
        pages.groups(before="nobody")


def test_groups_of_a_time_from_and_to(queue: Queue, pages: QueuePages):
    for number in range(5):
        record(queue, f"g{number}", 60950.0 + number)
    as_of_the_seed(queue, "old", 5.0)
    assert names(pages.groups(since_mjd=60951.0, until_mjd=60953.0)) == ["g2", "g1"]
    assert names(pages.groups(since_mjd=60953.0)) == ["g4", "g3"]


def test_groups_of_a_state(queue: Queue, pages: QueuePages):
    record(queue, "full", 60950.0, subbands=16)
    record(queue, "part", 60950.1)
    assert names(pages.groups(state="pending")) == ["full"]
    assert names(pages.in_state("collecting", limit=5)) == ["part"]
    assert pages.counts() == {"collecting": 1, "pending": 1, "in_progress": 0, "completed": 0, "failed": 0}
    assert set(pages.oldest()) == {"collecting", "pending"}


def test_a_text_is_looked_for_as_it_is_in_id_error_and_calibrators(queue: Queue, pages: QueuePages):
    for name in ("alpha", "beta", "gamma"):
        record(queue, name, 60950.0, subbands=16)
    queue.claim("beta", ME)
    queue.fail("beta", ME, "100% of \\it_ is bad", final=True)
    queue.set_calibrators("gamma", [{"name": "3C48"}])
    found = {
        text: names(pages.groups(text=text)) for text in ("ALPH", "3c48", "100%", "\\it_", "%", "_", "'; --", "no")
    }
    assert found == {
        "ALPH": ["alpha"], "3c48": ["gamma"], "100%": ["beta"], "\\it_": ["beta"], "%": ["beta"], "_": ["beta"],
        "'; --": [], "no": [],
    }  # fmt: skip
    assert names(pages.groups(matched=True)) == ["gamma"]


def test_what_the_queue_knows_of_a_group_comes_in_one_look(queue: Queue, pages: QueuePages):
    for number in range(3):
        record(queue, f"g{number}", 60950.0 + number, subbands=16)
    queue.claim("g1", ME, now=10.0)
    queue.put_receipt("g1", ME, "convert", {}, seconds=5.0, now=20.0)
    row = pages.group("g1")
    assert row is not None
    about = pages.about(row)
    assert (about.older, about.newer) == ("g0", "g2")
    assert (len(about.subbands), [a.outcome for a in about.attempts]) == (16, ["running"])
    assert [(r.step, r.seconds) for r in about.receipts] == [("convert", 5.0)]
    assert pages.group("nobody") is None


def test_what_has_failed_and_was_finished_since_a_time(queue: Queue, pages: QueuePages):
    for number in range(3):
        record(queue, f"g{number}", 60950.0 + number, subbands=16)
        queue.claim(f"g{number}", ME, now=10.0)
    queue.fail("g0", ME, "bad", final=True, now=100.0)
    queue.fail("g1", ME, "bad", final=True, now=200.0)
    queue.complete("g2", ME, now=200.0)
    assert names(pages.failed_since(150.0, limit=5)) == ["g1"]
    assert (pages.failures_since(50.0), pages.failures_since(150.0), pages.failures_since(250.0)) == (2, 1, 0)
    assert (pages.finished_since(150.0), pages.finished_since(300.0)) == (1, 0)
    assert pages.last_update() == 200.0


def test_a_group_is_requeued_and_dispatched_in_one_and_only_once(queue: Queue):
    record(queue, "g", 60950.0, subbands=16)
    first, new = queue.reprocess_and_dispatch("g", now=1.0)
    assert (first.idempotency_key, new, queue.group("g").retry_count) == ("g#1", True, 0), "it was pending already"
    assert queue.reprocess_and_dispatch("g", now=2.0) == (first, False)
    queue.claim("g", ME)
    with pytest.raises(BusyError):
        queue.reprocess_and_dispatch("g")
    queue.complete("g", ME)
    second, new = queue.reprocess_and_dispatch("g", now=3.0)
    assert (second.idempotency_key, new, queue.group("g").retry_count) == ("g#2", True, 1)
    assert queue.take_dispatchable(5) == []
    with pytest.raises(MissingError):
        queue.reprocess_and_dispatch("nobody")


def test_sets_come_newest_first_and_so_do_those_that_only_have_tables(url: str, tmp_path: Path):
    url = url.replace("all.sqlite3", "registry.sqlite3")
    registry = Registry(url, check=lambda _path: None)
    for number, name in enumerate(("a", "b", "c")):
        table = tmp_path / f"{name}_bpcal"
        table.mkdir()
        (table / "x").write_text("x")
        spec = SetSpec(name, (TableSpec(table, "BP", 30),), 60950.0 + number, 60950.5 + number, calibrator="3C48")
        registry.register_set(spec, now=100.0 + number)
    with registry.database.write() as connection:
        connection.execute(sa.text("DELETE FROM calsets WHERE set_name = 'b'"))
        connection.execute(
            sa.text("INSERT INTO calsets (set_name, status, reason, created_at) VALUES ('d', 'failed', 'too few', 99)")
        )
    kept = KeptDatabase(url, "registry")
    found = RegistryPages(kept)
    assert [(short.set, short.active, short.status) for short, *_ in found.sets()] == [
        ("c", 1, "active"), ("b", 1, "active"), ("a", 1, "active"), ("d", 0, "failed"),
    ]  # fmt: skip
    assert [short.set for short, *_ in found.sets(since_mjd=60950.7, until_mjd=60951.2)] == ["b"]
    assert [short.set for short, *_ in found.sets(limit=1)] == ["c"]
    kept.close()


def test_a_window_that_is_no_number_is_said(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/registry.sqlite3"
    registry = Registry(url, check=lambda _path: None)
    tables = []
    for name in ("a_0", "a_1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
        tables.append(TableSpec(tmp_path / name, "BP", 30 + len(tables)))
    registry.register_set(SetSpec("a", tuple(tables), 60950.0, 60950.5), now=100.0)
    with registry.database.write() as connection:
        connection.execute(sa.text("UPDATE caltables SET valid_start_mjd = 'soon' WHERE order_index = 30"))
    kept = KeptDatabase(url, "registry")
    for ask in (RegistryPages(kept).sets, lambda: RegistryPages(kept).named("a")):
        with pytest.raises(InputError, match="something else than it should"):
            ask()
    kept.close()


def test_images_come_newest_first_page_after_page(products: Products, made: ProductPages):
    for number in range(5):
        products.upsert_image(
            Path(f"/i/{number}"), ms_path=Path("/m"), mid_mjd=60950.0 + number, now=100.0 + number // 2
        )
    first = made.images(limit=2)
    rest = made.images(limit=9, before=first[-1].id)
    assert [row.path for row in [*first, *rest]] == ["/i/4", "/i/3", "/i/2", "/i/1", "/i/0"]
    assert [row.path for row in made.images(since_mjd=60951.0, until_mjd=60953.0)] == ["/i/2", "/i/1"]
    with pytest.raises(MissingError, match="begin again"):
        made.images(before=10**9)


def test_sets_of_a_stage_come_by_its_time_and_those_without_one_last(products: Products, made: ProductPages):
    products.upsert_ms(Path("/none"), status="done")
    for number in range(3):
        products.upsert_ms(Path(f"/m{number}"), stage="imaged", status="done", now=100.0 + number)
    products.upsert_ms(Path("/other"), stage="calibrated", status="failed", now=500.0)
    paths = [row.path for row in made.ms_index(stage=None, status=None, limit=9)]
    assert paths == ["/other", "/m2", "/m1", "/m0", "/none"]
    assert [row.path for row in made.ms_index(stage="imaged", status=None, limit=2)] == ["/m2", "/m1"]
    assert [row.path for row in made.ms_index(stage=None, status="done", limit=9)] == ["/m2", "/m1", "/m0", "/none"]
    assert made.ms_index(stage="imaged", status="failed", limit=9) == []


def test_the_newest_picture_of_each_group_is_found_behind_many_others(products: Products, made: ProductPages):
    products.put_qa_artifact("quiet", "only.PNG", Path("/q"), now=1.0)
    products.put_qa_artifact("quiet", "report.json", Path("/q"), now=2.0)
    for number in range(400):
        products.put_qa_artifact("busy", f"{number}.png", Path("/q"), now=10.0 + number)
    found = made.newest_artifacts(endings=(".png",), limit=2)
    assert [(row.group_id, row.name) for row in found] == [("busy", "399.png"), ("quiet", "only.PNG")]


def test_a_search_for_pictures_ends_where_all_are_of_one_moment(products: Products, made: ProductPages):
    for number in range(120):
        products.put_qa_artifact("g", f"{number:03d}.json", Path("/q"), now=10.0)
    assert made.newest_artifacts(endings=(".png",), limit=1) == []


def test_groups_of_a_state_without_a_time_come_last_in_every_database(pages: QueuePages, queue: Queue):
    for name, mjd in (("b", 60002.0), ("a", 60003.0)):
        queue.record(GroupFact(name, mjd), [FileFact(0, Path(f"/in/{name}"))])
    with queue.database.write() as connection:
        connection.execute(sa.text("UPDATE ingest_queue SET start_mjd = NULL WHERE group_id = 'a'"))
    queue.record(GroupFact("c", 60001.0), [FileFact(0, Path("/in/c"))])
    assert names(pages.in_state("collecting", limit=5)) == ["c", "b", "a"]
    assert names(pages.in_state("collecting", limit=2)) == ["c", "b"]


def test_bad_files_are_told_with_where_they_are_now(queue: Queue, pages: QueuePages):
    queue.record_bad_file(Path("/in/a"), "0 bytes", size_bytes=0, mtime=1.0, now=10.0)
    queue.record_bad_file(Path("/in/b"), "0 bytes", size_bytes=0, mtime=1.0, now=11.0)
    queue.note_not_moved(Path("/in/b"), "read only")
    for name, when in (("a", 12.0), ("back", 13.0)):
        aside = Path(f"/aside/{name}")
        queue.set_aside.begin(aside, original=Path(f"/in/{name}"), reason="0 bytes", size_bytes=0, mtime=1.0, now=when)
        queue.set_aside.hold(queue.set_aside.row(aside), now=when)
    queue.set_aside.become(Path("/aside/back"), "restored", now=14.0)
    found = [(row.path, row.not_moved) for row in pages.bad_files(limit=9)]
    assert found == [("/in/a", "now at /aside/a"), ("/in/b", "read only")]
    assert len(pages.bad_files(limit=1)) == 1
