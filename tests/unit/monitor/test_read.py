"""What is read is what is there; what is not there, damaged or of another version is empty, and said."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nightbeam.catalog import FileFact, GroupFact, Logbook, Products, Queue, Registry
from nightbeam.contimg import Site, nights
from nightbeam.contimg.mosaics import hold_plan
from nightbeam.core.settings import Settings
from nightbeam.monitor.model import Standing
from nightbeam.monitor.read import Reader

FIRST = "2025-10-02T00:00:00"
ALL = (
    "counts", "status", "groups", "calibrator_matches", "calibration_sets", "products", "images", "ms_index", "mosaics",
    "nights", "qa", "qa_thumbs", "scores", "quarantine", "elog", "constants", "scans", "cxi", "platform", "tonight",
    "health", "bad_files", "oldest",
)  # fmt: skip


def ask_all(reader: Reader) -> dict[str, Any]:
    return {name: getattr(reader, name)() for name in ALL}


def file_of(settings: Settings, name: str) -> Path:
    return Path(str(getattr(settings.contimg, f"{name}_db")).removeprefix("sqlite:///"))


# -- what is there ------------------------------------------------------------------------------------------------


def test_the_queue_in_short(reader: Reader):
    found = reader.status(limit=3)
    counts = found.queue
    assert (counts.total, counts.completed, counts.failed) == (5, 1, 1)
    assert (counts.in_progress, counts.pending, counts.collecting) == (1, 1, 1)
    assert [group.state for group in found.recent_groups] == ["collecting", "pending", "in_progress"]
    assert (found.matched_recent, [one.set_name for one in found.calibration_sets]) == (0, ["a"])
    assert reader.status().matched_recent == 1
    assert found.problems == []


def test_all_that_is_known_of_a_group(reader: Reader):
    found = reader.group(FIRST)
    assert found is not None
    assert (found.state, found.subbands_present, found.has_calibrator) == ("completed", 16, True)
    assert found.start == datetime(2025, 10, 2, tzinfo=UTC)
    assert [match.name for match in found.matches or []] == ["3C48 <b>"]
    assert (found.perf_total_time, found.writer_type) == (61.5, "direct-subband")
    assert [(one.subband, one.missing) for one in found.files] == [(n, False) for n in range(16)]
    convert = found.steps[0]
    assert (convert.step, convert.state, convert.seconds) == ("convert", "done", 60.0)
    assert convert.started_at == datetime(2025, 10, 2, 0, 6, 40, tzinfo=UTC), "60 s before 00:07:40"
    assert [one.state for one in found.steps[1:]] == ["open"] * 5
    assert [one.name for one in found.qa] == ["image.png", "metrics.json", "plot.svg"]
    assert [one.png_url for one in found.images] == ["/api/images/1/png"]
    assert (found.older, found.newer) == (None, "2025-10-02T00:05:09")


def test_the_step_at_work_the_failed_one_and_the_missing_subbands(reader: Reader):
    working = reader.group("2025-10-02T00:10:18")
    assert working is not None
    assert {one.step: one.state for one in working.steps}["image"] == "running"
    assert [(one.outcome, one.step) for one in working.history] == [("running", None)]
    part = reader.group_files("2025-10-02T00:20:36")
    assert [one.subband for one in part if one.missing] == list(range(3, 16))
    assert part[1].written_at is not None
    failed = reader.group("2025-10-02T00:05:09")
    assert failed is not None
    assert (failed.error, failed.history[0].outcome) == ("the imager failed", "failed")


def test_a_set_is_found_by_its_name(reader: Reader):
    found = reader.calibration_set("a")
    assert found is not None
    assert found == reader.calibration_sets().items[0]
    assert reader.calibration_set("nobody") is None


def test_a_part_of_a_date_finds_the_groups_of_that_time(reader: Reader):
    assert len(reader.groups(text="2025-10-02").items) == 5
    assert len(reader.groups(text="2025-10-02T00:1").items) == 2, "that is no part of a date, but of two ids"
    assert [one.group_id[11:] for one in reader.groups(text="2025-10-02T00:10").items] == ["00:10:18"]
    assert reader.groups(text="2025-10-03").items == []
    assert [one.group_id for one in reader.groups(text="3c48").items] == [FIRST]


def test_a_group_is_found_by_its_own_id_though_its_time_has_passed_through_a_julian_date(filled: Settings):
    ids = []
    with closing(sqlite3.connect(file_of(filled, "queue"))) as raw:
        raw.execute("PRAGMA foreign_keys=OFF")
        raw.execute("DELETE FROM ingest_queue")
        for number in range(40):
            at = datetime(2025, 10, 2, tzinfo=UTC).timestamp() + 309.0 * number
            ids.append(datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
            mjd = (at / 86400.0 + 40587.0 + 2400000.5) - 2400000.5
            raw.execute(
                "INSERT INTO ingest_queue (group_id, state, received_at, last_update, start_mjd)"
                " VALUES (?, 'completed', 0, 0, ?)",
                (ids[-1], mjd if number else None),
            )
        raw.commit()
    reader = Reader(filled)
    assert [[one.group_id for one in reader.groups(text=name).items] for name in ids] == [[name] for name in ids]
    minutes = [[one.group_id for one in reader.groups(text=name[:16]).items] for name in ids[1:]]
    assert minutes == [[name] for name in ids[1:]]
    assert reader.groups(text=ids[3], state="failed").items == []
    assert reader.groups(text=ids[0], since=datetime(2025, 10, 2, tzinfo=UTC)).items == []
    assert reader.groups(text=ids[3], until=datetime(2025, 10, 2, tzinfo=UTC)).items == []
    reader.close()


def test_a_row_to_go_on_from_that_is_gone_is_said(reader: Reader):
    for found in (reader.groups(before="2025-10-01T00:00:00"), reader.images(before=99)):
        assert (found.items, "begin again" in found.problems[0]) == ([], True)


def test_health_has_each_database_answer_something(reader: Reader):
    asked: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    for kept in reader._databases().values():
        if kept.name != "elog":
            sa.event.listen(kept._database().engine, "before_cursor_execute", note)
    assert reader.health().status == "ok"
    assert [one for one in asked if one != "BEGIN"] == ["SELECT 1"] * 3


def test_of_many_failures_all_are_counted(filled: Settings):
    with closing(sqlite3.connect(file_of(filled, "queue"))) as raw:
        for number in range(60):
            raw.execute(
                "INSERT INTO ingest_queue (group_id, state, received_at, last_update) VALUES (?, 'failed', 0, ?)",
                (f"f{number}", 1_759_363_200.0 + number),
            )
        raw.execute("UPDATE ingest_queue SET state = 'completed' WHERE state = 'in_progress'")
        raw.commit()
    reader = Reader(filled, clock=lambda: 1_759_363_200.0 + 1000.0)
    system = reader.contimg()
    assert (system.facts["failed_24h"], "61 groups failed" in system.reason) == (61, True), system.reason
    reader.close()


def test_groups_go_on_where_they_ended(reader: Reader):
    first = reader.groups(limit=3)
    rest = reader.groups(limit=3, before=first.before)
    assert [len(first.items), len(rest.items), rest.before] == [3, 2, None]
    times = [one.start for one in [*first.items, *rest.items]]
    assert times == sorted(times, reverse=True)  # type: ignore[type-var]


def test_a_picture_is_served_from_where_pictures_are(reader: Reader, filled: Settings):
    assert reader.image_png(1).read_bytes() == b"\x89PNG image"
    assert reader.qa_file(FIRST, "image.png").read_bytes() == b"\x89PNG qa"


def test_without_rows_the_files_of_quality_are_listed(reader: Reader, filled: Settings):
    with closing(sqlite3.connect(file_of(filled, "products"))) as raw:
        raw.execute("DELETE FROM qa_artifacts")
        raw.commit()
    assert [(one.name, one.url) for one in reader.qa().items] == [
        ("image.png", "/api/qa/file/2025-10-02T00%3A00%3A00/image.png"),
        ("plot.svg", "/api/qa/file/2025-10-02T00%3A00%3A00/plot.svg"),
    ]
    assert [one.group_id for one in reader.qa_thumbs().items] == [FIRST]


# -- what is not there --------------------------------------------------------------------------------------------


def test_of_a_site_where_nothing_has_happened_everything_is_empty_and_nothing_is_made(settings: Settings):
    found = ask_all(Reader(settings))
    assert found["status"].queue.total == 0
    assert found["groups"].items == found["images"].items == found["qa"].items == []
    assert "there is no queue database" in found["groups"].problems[0]
    assert found["health"].status == "ok", "nobody has made it yet"
    assert {one.standing for one in found["tonight"].systems} == {Standing.OFF}
    assert not settings.state_dir.exists()


@pytest.mark.parametrize("version", ["0001", "0099"])
def test_of_another_schema_lists_are_empty_and_it_is_said(filled: Settings, version: str):
    for name in ("queue", "registry", "products"):
        with closing(sqlite3.connect(file_of(filled, name))) as raw:
            raw.execute(f"UPDATE nightbeam_{name}_version SET version_num = ?", (version,))
            raw.commit()
    found = ask_all(Reader(filled))
    assert found["groups"].items == found["calibration_sets"].items == found["images"].items == []
    for answer in ("groups", "calibration_sets", "images"):
        assert f"has schema {version}" in found[answer].problems[0]
    assert found["health"].status == "unhealthy"
    assert found["tonight"].standing is Standing.TROUBLE


@pytest.mark.parametrize("damage", [b"", b"\0" * 5000, b"no database" * 1000])
def test_of_damaged_files_lists_are_empty_and_it_is_said(filled: Settings, damage: bytes):
    for name in ("queue", "registry", "products"):
        for end in ("-wal", "-shm"):
            file_of(filled, name).with_name(file_of(filled, name).name + end).unlink(missing_ok=True)
        file_of(filled, name).write_bytes(damage)
    found = ask_all(Reader(filled))
    assert (found["groups"].items, found["status"].queue.total) == ([], 0)
    assert found["groups"].problems
    assert found["health"].status == "unhealthy"


def test_a_file_that_is_damaged_in_its_middle_is_said(filled: Settings):
    file = file_of(filled, "queue")
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raw.execute("PRAGMA journal_mode=DELETE")
    data = bytearray(file.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    file.write_bytes(bytes(data))
    assert ask_all(Reader(filled))["groups"].problems


def test_a_table_that_somebody_has_dropped_is_said(filled: Settings):
    with closing(sqlite3.connect(file_of(filled, "products"))) as raw:
        raw.execute("DROP TABLE images")
        raw.commit()
    reader = Reader(filled)
    found = reader.images()
    assert (found.items, "images" in found.problems[0]) == ([], True)
    group = reader.group(FIRST)
    assert group is not None
    assert (group.state, len(group.problems)) == ("completed", 1)


@pytest.mark.parametrize("value", [1e18, -1e18, "yesterday", None, b"\xff", float("inf")])
def test_numbers_that_are_no_times_harm_nothing(filled: Settings, value: Any):
    with closing(sqlite3.connect(file_of(filled, "queue"))) as raw:
        raw.execute("PRAGMA foreign_keys=OFF")
        names = ["start_mjd", "mid_mjd", "dec_deg", "heartbeat_at", "calibrators"]
        names += [] if value is None else ["received_at", "last_update"]
        raw.execute(f"UPDATE ingest_queue SET {', '.join(f'{name} = ?1' for name in names)}", (value,))
        raw.execute("UPDATE receipts SET finished_at = 1e300, seconds = 'x'")
        raw.commit()
    reader = Reader(filled)
    found = ask_all(reader)
    assert found["status"].queue.total == 5
    assert len(found["groups"].items) + len(found["groups"].problems) >= 1
    assert reader.group(FIRST) is not None


def test_a_sign_of_life_of_the_future_is_a_clock_that_is_wrong(filled: Settings):
    with closing(sqlite3.connect(file_of(filled, "queue"))) as raw:
        raw.execute("UPDATE ingest_queue SET state = 'completed', last_update = 1759363200.0 + 90000.0")
        raw.commit()
    system = Reader(filled, clock=lambda: 1_759_363_200.0 + 86_400.0).contimg()
    assert (system.standing, "60 min in the future" in system.reason) == (Standing.TROUBLE, True)


def test_a_directory_that_may_not_be_looked_into_is_said(filled: Settings, monkeypatch: pytest.MonkeyPatch):
    import os

    truth = os.scandir

    def forbidden(path: Any) -> Any:
        if "scans" in str(path) or "constants" in str(path):
            raise PermissionError(13, "Permission denied")
        return truth(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert "cannot be listed" in Reader(filled).scans().problems[0]


def test_no_answer_shows_a_password(settings: Settings):
    url = "postgresql+psycopg://me:secret@127.0.0.1:1/x"
    contimg = settings.contimg.model_copy(update=dict.fromkeys(("queue_db", "registry_db", "products_db"), url))
    elog = settings.elog.model_copy(update={"database": url})
    reader = Reader(settings.model_copy(update={"contimg": contimg, "elog": elog}))
    found = ask_all(reader)
    assert "does not answer" in found["groups"].problems[0]
    assert "secret" not in repr(found)
    assert found["health"].status == "unhealthy"


@pytest.mark.system
def test_on_postgresql_the_same_is_read_and_nothing_is_made(settings: Settings, postgresql_url: str):
    three = dict.fromkeys(("queue_db", "registry_db", "products_db"), postgresql_url)
    contimg = settings.contimg.model_copy(update=three)
    elog = settings.elog.model_copy(update={"database": postgresql_url})
    there = settings.model_copy(update={"contimg": contimg, "elog": elog})
    reader = Reader(there)
    found = ask_all(reader)
    assert "there is no queue database in postgresql" in found["groups"].problems[0]
    assert found["status"].queue.total == 0
    assert set(found["health"].databases.values()) == {"not there yet"}
    reader.close()

    queue, products = Queue(postgresql_url), Products(postgresql_url)
    Registry(postgresql_url)
    Logbook(postgresql_url)
    queue.record(GroupFact(FIRST, 60950.0), [FileFact(k, Path(f"/in/sb{k:02d}.hdf5")) for k in range(16)])
    products.upsert_image(Path("/i/a.fits"), ms_path=Path("/m"), group_id=FIRST, mid_mjd=60950.0, now=5.0)
    products.put_qa_artifact(FIRST, "a.png", Path("/q/a.png"), now=5.0)
    reader = Reader(there)
    found = ask_all(reader)
    assert (found["status"].queue.pending, found["health"].status) == (1, "ok")
    assert [one.group_id for one in reader.groups(text="2025-10-02").items] == [FIRST], "MJD 60950 is that day"
    assert [one.group_id for one in reader.groups(text="02t00").items] == [FIRST]
    assert [len(found[name].items) for name in ("images", "qa", "qa_thumbs")] == [1, 1, 1]
    group = reader.group(FIRST)
    assert group is not None
    assert (len(group.files), len(group.images), group.problems) == (16, 1, [])
    reader.close()


def test_a_night_that_is_being_made_is_not_said_to_have_failed(settings: Settings):
    site = Site.from_settings(settings.resolved())
    site.products().put_night("2025-10-03", "failed", tiles=1, attempts=1, error=nights._BEGUN, inputs="x")
    reader = Reader(settings)
    with hold_plan(site, nights.mosaic_of_night(site, "2025-10-03")):
        (found,) = reader.nights().items
        assert (found.state, found.error) == ("running", None)
    (found,) = reader.nights().items
    assert (found.state, "its process was killed" in (found.error or "")) == ("failed", True)
    reader.close()
