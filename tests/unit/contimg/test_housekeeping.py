"""Tidying up a site of rows and small files."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from nightbeam.catalog import Owner
from nightbeam.catalog.products import Products
from nightbeam.catalog.quarantine import Quarantine
from nightbeam.catalog.schema import MosaicTable
from nightbeam.contimg import Site, housekeeping, quarantine
from nightbeam.contimg.clock import ClockLook, Instant
from nightbeam.contimg.housekeeping import held_in_quarantine, put_back, tidy_up
from nightbeam.core.errors import BusyError, InputError, MissingError, PartialError, StorageError
from nightbeam.core.locks import sole_owner

tidy = SimpleNamespace(**runpy.run_path(str(Path(__file__).resolve().parents[2] / "tidy_site.py")))
NOW, DAY, TOOLS = tidy.NOW, tidy.DAY, tidy.TOOLS
A, B, C = (tidy.group_name(n) for n in range(3))


@pytest.fixture
def site(tmp_path: Path, contimg_databases: dict[str, str]) -> Site:
    site = tidy.new_site(tmp_path / "state", housekeeping={"log_days": 90.0}, **contimg_databases)
    for make in (site.queue, site.registry, site.products):  # in a server, nobody has made their tables yet
        make()
    return site


def go(site: Site, **more):
    return tidy_up(site, now=more.pop("now", NOW), tools=TOOLS, **more)


def whole(site: Site) -> dict[str, str]:
    return tidy.tree(site.state_dir)


# -- groups -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held_by", "age_s", "state"),
    [
        ("alive", 10.0, "in_progress"),
        ("alive", 90000.0, "in_progress"),
        ("dead", 10.0, "pending"),
        ("dead", 90000.0, "pending"),
        ("elsewhere", 800.0, "in_progress"),
        ("elsewhere", 901.0, "pending"),
    ],
)
def test_a_group_comes_back_from_who_is_gone_and_stays_with_who_lives(site, held_by, age_s, state):
    tidy.put_group(site, A, "in_progress", seen_at=NOW - age_s, held_by=held_by)
    before = site.queue().group(A)
    report = go(site)
    row = site.queue().group(A)
    assert row.state == state
    if state == "in_progress":
        assert row == before
        assert [a.subject for a in report.left] == ([A] if age_s > 900 else [])
    else:
        assert (row.retry_count, row.owner) == (1, None)
        assert row.error.startswith(f"lost by {before.owner}")


def test_a_process_that_really_lives_keeps_its_group_for_as_long_as_it_lives(site):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        tidy.put_group(site, A, "pending", seen_at=NOW - 7 * DAY)
        born = psutil.Process(other.pid).create_time()
        site.queue().claim(A, Owner("other", socket.gethostname(), other.pid, born), now=NOW - 7 * DAY)
        scratch = site.scratch_dir / f"{socket.gethostname()}.{A}.image.pid{other.pid}.abc12345"
        tidy.put_scratch(scratch, NOW - 7 * DAY)
        before = whole(site)
        told = go(site, dry_run=True)
        assert [(a.kind, Path(a.subject).name) for a in told.left] == [("lease", A), ("scratch", scratch.name)]
        assert go(site).done == ()
        assert site.queue().group(A).owner == "other"
        assert {k: v for k, v in whole(site).items() if "scratch/" in k} == {
            k: v for k, v in before.items() if "scratch/" in k
        }
    finally:
        other.communicate(b"\n")
    assert [a.verb for a in go(site).done] == ["take back", "remove"]


def test_the_last_retry_that_is_lost_fails_the_group(site):
    tidy.put_group(site, A, "in_progress", seen_at=NOW - 1000.0, held_by="elsewhere")
    for n in range(3):
        assert site.queue().group(A).state == "in_progress", n
        go(site)
        if n < 2:
            site.queue().claim(A, tidy.owner("elsewhere"), now=NOW - 1000.0)
    assert (site.queue().group(A).state, site.queue().group(A).retry_count) == ("failed", 3)


def test_an_owner_that_gives_a_sign_of_life_meanwhile_keeps_its_group(site, monkeypatch):
    tidy.put_group(site, A, "in_progress", seen_at=NOW - 1000.0, held_by="elsewhere")
    real = housekeeping.decide

    def decide(*facts):
        decided = real(*facts)
        site.queue().heartbeat(A, tidy.owner("elsewhere"), now=NOW)
        return decided

    monkeypatch.setattr(housekeeping, "decide", decide)
    report = go(site)
    assert site.queue().group(A).state == "in_progress"
    assert "it has changed meanwhile" in report.left[0].reason


def test_an_incomplete_group_is_failed_after_its_time_with_the_seeds_words(site):
    tidy.put_group(site, A, "collecting", seen_at=NOW - 3941)
    tidy.put_group(site, B, "collecting", seen_at=NOW - 3939)
    assert go(site).counts["expire"] == 1
    assert site.queue().group(A).state == "failed"
    assert site.queue().group(A).error.startswith("Collecting timeout: 3 of 16 subbands")
    assert site.queue().group(B).state == "collecting"


def test_no_group_is_given_up_for_its_age_where_the_input_directory_is_empty_or_the_clock_was_set(site, monkeypatch):
    tidy.put_group(site, A, "collecting", seen_at=NOW - 4000)
    tidy.put_group(site, B, "in_progress", seen_at=NOW - 4000, held_by="elsewhere")
    tidy.put_group(site, C, "in_progress", seen_at=NOW - 10, held_by="dead")
    away = site.input_dir.with_name("away")
    site.input_dir.rename(away)
    site.input_dir.mkdir()
    assert "expire" not in {action.verb for action in go(site, dry_run=True).done}
    site.input_dir.rmdir()
    away.rename(site.input_dir)
    monkeypatch.setattr(housekeeping, "look_at_clock", lambda _queue: ClockLook(Instant.now(), 0.0, True, 0, {}))
    monkeypatch.setattr(housekeeping.time, "time", lambda: NOW)
    done = tidy_up(site, tools=TOOLS).done
    assert [(action.verb, action.subject) for action in done] == [("take back", C)], "its process is gone"
    assert site.queue().group(A).state == "collecting"
    assert {(action.verb, action.subject) for action in go(site).done} == {("take back", B), ("expire", A)}


def test_whoever_died_on_a_full_disk_costs_its_group_no_attempt(site, monkeypatch):
    tidy.put_group(site, A, "in_progress", seen_at=NOW - 10, held_by="dead")
    monkeypatch.setattr(housekeeping, "full_disk", lambda _site: "0.00 GB free in /data")
    go(site)
    row = site.queue().group(A)
    assert (row.state, row.retry_count) == ("pending", 0)
    assert "no space left (0.00 GB free in /data)" in row.error


# -- scratch ----------------------------------------------------------------------------------------------------


def test_scratch_of_dead_runs_goes_and_everything_else_stays(site):
    host, dead, old = socket.gethostname(), tidy.dead_pid(), NOW - 2 * DAY
    tidy.put_group(site, B, "in_progress", seen_at=NOW - 10, held_by="elsewhere")
    goes = [
        site.scratch_dir / f"{host}.{A}.image.pid{dead}.abc12345",
        site.scratch_dir / f"elsewhere.{A}.image.pid{os.getpid()}.abc12345",
        site.scratch_dir / f"imaging.pid{dead}.abc12345",
        site.scratch_dir / "stream_2025-10-02T01:02:03_x7",
        site.output_dir / f".{A}.ms.{dead}.00ff00ff.part",
    ]
    stays = [
        site.scratch_dir / f"{host}.{A}.image.pid{os.getpid()}.abc12345",
        site.scratch_dir / f"elsewhere.{B}.image.pid12.abc12345",
        site.scratch_dir / f"imaging.pid{os.getpid()}.abc12345",
        site.scratch_dir / f"stream_{B}_x7",
        site.scratch_dir / "somebody_elses",
        site.output_dir / f".{B}.ms.{dead}.00ff00ff.part",
        site.output_dir / "stream_of_results",
    ]
    for path in (*goes, *stays):
        tidy.put_scratch(path, old)
    young = tidy.put_scratch(site.scratch_dir / "stream_young", NOW - 3600)
    go(site)
    assert not [path.name for path in goes if path.exists()]
    assert not [path.name for path in (*stays, young) if not path.exists()]


def test_scratch_in_which_a_process_stands_or_has_a_file_open_is_in_use(site):
    stood_in, opened = (
        tidy.put_scratch(site.scratch_dir / name, NOW - 2 * DAY) for name in ("stream_stood_in", "stream_opened")
    )
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=stood_in)
    try:
        with (opened / "half").open():
            report = go(site)
        assert stood_in.exists()
        assert opened.exists()
        assert {a.reason.partition("; ")[2] for a in report.left} == {"a process uses it"}
    finally:
        other.communicate(b"\n")
    go(site)
    assert not stood_in.exists()


def test_a_link_in_scratch_is_removed_and_not_what_it_leads_to(site, tmp_path):
    precious = tidy.put_scratch(tmp_path / "precious", NOW - 2 * DAY)
    link = site.scratch_dir / "stream_link"
    link.symlink_to(precious)
    os.utime(link, (NOW - 2 * DAY, NOW - 2 * DAY), follow_symlinks=False)
    go(site)
    assert not link.is_symlink()
    assert (precious / "half").exists()


# -- retention --------------------------------------------------------------------------------------------------


def test_an_old_measurement_set_with_a_good_image_goes_into_quarantine(site):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    ms = tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    tidy.put_group(site, B, "completed", seen_at=NOW - 5 * DAY)
    young = tidy.put_ms(site, B, made_at=NOW - 5 * DAY)
    report = go(site)
    assert (report.counts["put aside"], report.failed) == (1, {})
    (row,) = held_in_quarantine(site)
    place = Path(row.path)
    assert place == site.quarantine_dir() / "2026-01-31" / f"{A}.ms"
    assert (place / "table.dat").read_text() == f"visibilities of {A}"
    assert not ms.exists()
    assert young.exists()
    assert (row.original_path, row.kind, row.state, row.moved_at) == (str(ms), "ms", "held", NOW)
    assert row.size_bytes == len(f"visibilities of {A}") + len("field")
    assert row.reason == "31.0 d old, limit 30 d"
    assert [m.status for m in (site.products().ms(ms), site.products().ms(young))] == ["quarantined", "done"]
    assert site.image_stem(A).with_name(f"{A}.img.json").exists()
    assert list((site.state_dir / "locks").glob("group-*")) == []


@pytest.mark.parametrize(
    ("why", "arrange"),
    [
        ("its group is failed", {"state": "failed"}),
        ("its group is pending", {"state": "pending"}),
        ("its group is in_progress", {"state": "in_progress"}),
        ("it has no good image: it is skipped_no_caltables", {"status": "skipped_no_caltables"}),
        ("it has no image", {"image": False}),
        ("it has no good image", {"spoil": True}),
        ("an active calibration set was solved on it", {"set": "active"}),
        ("there is a calibrator in its field", {"has_calibrator": 1}),
        ("there is a calibrator in its field", {"has_calibrator": 1, "set": "failed"}),
        ("its group is being worked on", {"lock": True}),
    ],
)
def test_an_old_measurement_set_stays_while_it_is_needed(site, why, arrange):
    seen = NOW - 10 if arrange.get("state") == "in_progress" else NOW - 40 * DAY
    values = {"has_calibrator": arrange["has_calibrator"]} if "has_calibrator" in arrange else {}
    tidy.put_group(site, A, arrange.get("state", "completed"), seen_at=seen, **values)
    made = {name: arrange[name] for name in ("status", "image") if name in arrange}
    ms = tidy.put_ms(site, A, made_at=NOW - 40 * DAY, **made)
    if "set" in arrange:
        tidy.put_set(site, A, arrange["set"])
    if "spoil" in arrange:
        site.image_stem(A).with_name(f"{A}.img.json").unlink()
    if "lock" in arrange:
        with sole_owner(site.group_lock(A)):
            report = go(site, force=True)
    else:
        report = go(site, force=True)
    assert ms.exists()
    assert why in report.left[0].reason
    assert site.products().ms(ms).status == arrange.get("status", "done")


def test_a_calibrator_whose_set_was_retired_may_go(site):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY, has_calibrator=1)
    ms = tidy.put_ms(site, A, made_at=NOW - 40 * DAY)
    tidy.put_set(site, A, "retired")
    go(site, force=True)
    assert not ms.exists()
    assert (site.output_dir / "caltables" / f"{A}_0_bpcal").exists()


def test_products_outside_of_the_output_directory_and_links_are_nobodys_to_move(site, tmp_path):
    elsewhere = tmp_path / "elsewhere" / f"{A}.ms"
    elsewhere.mkdir(parents=True)
    site.products().upsert_ms(elsewhere, status="done", processed_at=NOW - 99 * DAY)
    link = site.output_dir / f"{B}.ms"
    link.symlink_to(elsewhere)
    site.products().upsert_ms(link, status="done", processed_at=NOW - 99 * DAY)
    report = go(site, force=True)
    assert elsewhere.exists()
    assert link.is_symlink()
    assert ["symbolic link" in a.reason for a in report.left] == [True]


def test_images_and_figures_go_only_where_the_site_says_so_and_then_whole(tmp_path):
    site = tidy.new_site(tmp_path / "state", housekeeping={"image_days": 10.0, "qa_days": 10.0, "ms_days": 60.0})
    tidy.put_group(site, A, "completed", seen_at=NOW - 20 * DAY)
    tidy.put_ms(site, A, made_at=NOW - 20 * DAY)
    figure = site.qa_dir() / A / "image.png"
    figure.parent.mkdir(parents=True)
    figure.write_text("png")
    site.products().put_qa_artifact(A, "image.png", figure, now=NOW - 20 * DAY)
    before = {p.name: p.read_text() for p in site.image_stem(A).parent.glob(f"{A}.img.*")}
    assert go(site, force=True).counts["put aside"] == 2
    place = site.quarantine_dir() / "2026-01-31" / f"{A}.img"
    assert {p.name: p.read_text() for p in place.iterdir()} == before
    assert not list(site.image_stem(A).parent.glob(f"{A}.img.*"))
    assert not figure.exists()
    assert put_back(site, site.image_stem(A), now=NOW) == site.image_stem(A)
    assert {p.name: p.read_text() for p in site.image_stem(A).parent.glob(f"{A}.img.*")} == before
    assert put_back(site, figure.parent, now=NOW) == figure.parent
    assert figure.exists()
    # A set whose image was put aside, on purpose, is not one that has none: it may go in its turn.
    go(site, now=NOW + 11 * DAY, force=True)
    assert go(site, now=NOW + 50 * DAY, force=True).failed == {}
    assert site.products().ms(site.ms_path(A)).status == "quarantined"


def test_a_mosaic_goes_with_all_its_files_and_a_planned_one_keeps_its_tiles(tmp_path):
    site = tidy.new_site(tmp_path / "state", housekeeping={"image_days": 10.0, "mosaic_days": 10.0})
    for group in (A, B):
        tidy.put_group(site, group, "completed", seen_at=NOW - 20 * DAY)
        tidy.put_ms(site, group, made_at=NOW - 20 * DAY)
    tile = next(row.path for row in site.products().images(group_id=A))
    files = {kind: str(site.mosaic_dir() / f"night.{kind}.fits") for kind in ("image", "weight")}
    site.mosaic_dir().mkdir()
    for path in (*files.values(), str(site.mosaic_dir() / "other.fits")):
        Path(path).write_text("a mosaic")
    built = {"output_path": files["image"], "files": json.dumps(files), "built_at": NOW - 20 * DAY, "tiles": ""}
    with site.products().database.write() as connection:
        made = {"created_at": NOW - 20 * DAY}
        connection.execute(tidy.sa.insert(MosaicTable).values(name="night", status="built", **made, **built))
        connection.execute(tidy.sa.insert(MosaicTable).values(name="next", status="planned", tiles=tile, **made))
    report = go(site, force=True)
    assert {Path(a.subject).name for a in report.done} == {"night.image.fits", f"{B}.img"}
    assert [a.reason.partition("; ")[2] for a in report.left] == ["a planned mosaic needs it"]
    assert [path.name for path in site.mosaic_dir().iterdir()] == ["other.fits"]
    assert put_back(site, Path(files["image"]), now=NOW) == Path(files["image"])
    assert sorted(path.name for path in site.mosaic_dir().iterdir()) == [
        "night.image.fits", "night.weight.fits", "other.fits"
    ]  # fmt: skip


def test_logs_of_groups_are_deleted_by_age_and_not_of_a_group_at_work(site):
    tidy.put_group(site, B, "in_progress", seen_at=NOW - 10)
    logs = [tidy.put_scratch(site.log(g, "image").parent, NOW - age) for g, age in ((A, 91 * DAY), (B, 91 * DAY))]
    logs.append(tidy.put_scratch(site.log(C, "image").parent, NOW - 89 * DAY))
    go(site, force=True)
    assert [path.exists() for path in logs] == [False, True, True]


def test_quarantine_is_emptied_after_its_time_and_the_rows_say_so(site):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    ms = tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    go(site, force=True)
    (row,) = held_in_quarantine(site)
    assert go(site, now=NOW + 29 * DAY, force=True).counts["delete"] == 0
    assert Path(row.path).exists()
    assert go(site, now=NOW + 31 * DAY, force=True).counts["delete"] == 1
    assert not Path(row.path).parent.exists()
    assert site.products().quarantine.row(Path(row.path)).state == "deleted"
    assert site.products().ms(ms).status == "deleted"
    assert held_in_quarantine(site) == []


def test_a_row_that_points_out_of_the_quarantine_deletes_nothing(site, tmp_path):
    precious = tidy.put_scratch(tmp_path / "precious", NOW)
    gate = site.quarantine_dir() / "gate"
    gate.parent.mkdir(parents=True)
    gate.symlink_to(tmp_path)
    quarantine = site.products().quarantine
    for path in (precious, gate / "precious", site.quarantine_dir(), site.quarantine_dir() / ".." / "ms"):
        quarantine.begin(path, original=Path("/x"), kind="ms", reason="", size_bytes=0, now=NOW - 90 * DAY)
        quarantine.become(path, "held")
    report = go(site, force=True)
    assert report.counts["delete"] == 0
    assert len(report.left) == 4
    assert (precious / "half").exists()
    assert site.output_dir.exists()


def test_nothing_is_deleted_that_does_not_lie_in_quarantine_whoever_asks(site, tmp_path):
    precious = tidy.put_scratch(tmp_path / "precious", NOW)
    products = site.products()
    products.quarantine.begin(precious, original=Path("/x"), kind="ms", reason="", size_bytes=0)
    with pytest.raises(InputError, match="is not in"):
        quarantine.purge(site, products, products.quarantine.row(precious), now=NOW)
    assert (precious / "half").exists()
    assert products.quarantine.row(precious).state == "moving"


@pytest.mark.parametrize("meanwhile", ["reprocessed", "solved on", "spoilt", "finished again"])
def test_a_set_that_is_needed_again_between_the_look_and_the_deed_stays(site, monkeypatch, meanwhile):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    ms = tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    real = housekeeping.decide

    def decide(*facts):
        decided = real(*facts)
        if meanwhile == "reprocessed":
            site.queue().reprocess(A)
        elif meanwhile == "solved on":
            tidy.put_set(site, A, "active")
        elif meanwhile == "finished again":
            site.products().upsert_ms(ms, status="done", processed_at=NOW - 60)
        else:
            site.image_stem(A).with_name(f"{A}.img.json").unlink()
        return decided

    monkeypatch.setattr(housekeeping, "decide", decide)
    report = go(site, force=True)
    assert ms.exists()
    assert (report.done, len(report.left)) == ((), 1)


# -- putting back -----------------------------------------------------------------------------------------------


def test_what_is_put_back_is_as_it_was_and_its_age_begins_anew(site):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    ms = tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    before = tidy.tree(ms)
    go(site, force=True)
    (row,) = held_in_quarantine(site)
    assert put_back(site, Path(row.path), now=NOW + 60) == ms
    assert tidy.tree(ms) == before
    assert site.products().ms(ms).status == "done"
    assert go(site, now=NOW + 120).counts["put aside"] == 0
    assert go(site, now=NOW + 31 * DAY, force=True).counts["put aside"] == 1
    assert [r.state for r in site.products().quarantine.rows()] == ["restored", "held"]


def test_nothing_is_put_back_over_something_or_from_nowhere(site):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    ms = tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    go(site, force=True)
    ms.mkdir()
    with pytest.raises(InputError, match="something lies at"):
        put_back(site, ms)
    with pytest.raises(MissingError, match="is not in quarantine"):
        put_back(site, site.ms_path(B))


# -- manners ----------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_changes_no_byte(site):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    tidy.put_group(site, B, "in_progress", seen_at=NOW - 1000.0, held_by="dead")
    tidy.put_group(site, C, "collecting", seen_at=NOW - 2 * DAY)
    tidy.put_scratch(site.scratch_dir / "stream_old", NOW - 2 * DAY)
    before = whole(site)
    told = go(site, dry_run=True)
    assert whole(site) == before
    assert [a.verb for a in told.done] == ["take back", "expire", "remove", "put aside"]
    assert go(site).done == told.done


def test_what_was_done_on_a_full_disk_is_told_though_it_cannot_be_noted(site, monkeypatch):
    def full(path, _text):
        raise StorageError(f"no space left for {path}")

    tidy.put_group(site, A, "in_progress", seen_at=NOW - 1000.0, held_by="elsewhere")
    monkeypatch.setattr(housekeeping, "write_text", full)
    report = go(site)
    assert [a.verb for a in report.done] == ["take back"]
    assert "what was done could not be noted: no space left" in report.notes[-1]
    report.raise_failures()


def test_doing_it_twice_is_doing_it_once(site):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    tidy.put_group(site, B, "in_progress", seen_at=NOW - 2 * DAY, held_by="elsewhere")
    tidy.put_scratch(site.scratch_dir / f"elsewhere.{B}.image.pid1.abc12345", NOW - 2 * DAY)
    assert len(go(site, force=True).done) == 3

    def contents() -> dict[str, str]:
        return {path: what for path, what in whole(site).items() if "housekeeping." not in path}

    before = contents()
    assert go(site).done == ()
    assert contents() == before


@pytest.mark.parametrize("database", ["queue_url", "registry_url", "products_url"])
def test_without_a_database_its_part_is_left_out_and_nothing_is_made(site, database):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    ms = tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    absent = site.state_dir / "absent.sqlite3"
    report = go(replace(site, **{database: f"sqlite:///{absent}"}), force=True)
    assert "there is no" in report.notes[0]
    assert report.done == ()
    assert not absent.exists()
    assert ms.exists()


def test_a_site_where_nothing_has_happened_yet_is_tidy(tmp_path):
    from nightbeam.core.settings import Settings

    site = Site.from_settings(Settings(state_dir=tmp_path / "state"))
    assert go(site).done == ()


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_database_of_a_newer_nightbeam_stops_everything_before_it_begins(site, dry_run):
    tidy.put_scratch(site.scratch_dir / "stream_old", NOW - 2 * DAY)
    with site.products().database.write() as connection:
        connection.exec_driver_sql("UPDATE nightbeam_products_version SET version_num = '9999'")
    with pytest.raises(InputError, match="has schema 9999"):
        go(site, dry_run=dry_run)
    assert (site.scratch_dir / "stream_old").exists()


def test_a_clock_that_jumped_ahead_puts_nothing_aside(site):
    for group in (A, B, C):
        tidy.put_group(site, group, "completed", seen_at=NOW - DAY)
        tidy.put_ms(site, group, made_at=NOW - DAY)
    go(site)
    before = whole(site)
    with pytest.raises(InputError, match=r"the clock says 2027-01-31T12:00:00Z.*3 of 3 ms"):
        go(site, now=NOW + 365 * DAY)
    told = go(site, now=NOW + 365 * DAY, dry_run=True)
    assert "nothing would be done without --force" in told.notes[0]
    assert len(told.done) == 3
    assert {k: v for k, v in whole(site).items() if "locks" not in k} == {
        k: v for k, v in before.items() if "locks" not in k
    }
    assert go(site, now=NOW + 365 * DAY, force=True).counts["put aside"] == 3


def test_a_clock_that_went_back_makes_nothing_old(site):
    tidy.put_group(site, A, "in_progress", seen_at=NOW - 60, held_by="elsewhere")
    tidy.put_group(site, B, "collecting", seen_at=NOW - 60)
    tidy.put_group(site, C, "completed", seen_at=NOW - 60)
    tidy.put_ms(site, C, made_at=NOW - 60)
    tidy.put_scratch(site.scratch_dir / "stream_x", NOW - 60)
    go(site)
    assert go(site, now=NOW - 365 * DAY).done == ()


def test_two_do_not_tidy_at_once(site):
    with sole_owner(site.state_dir / "locks" / "housekeeping.lock"), pytest.raises(BusyError, match="housekeeping is"):
        go(site)


# -- trouble ----------------------------------------------------------------------------------------------------


def _no_rename(monkeypatch, quarantine: Path) -> None:
    """Play a quarantine on another file system."""
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target).is_relative_to(quarantine) != self.is_relative_to(quarantine):
            raise OSError(18, "Invalid cross-device link")
        return real(self, target)

    def rename_new(source: Path, target: Path) -> None:
        rename(source, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr("nightbeam.contimg.quarantine.rename_new", rename_new)


def test_a_quarantine_on_another_file_system_is_filled_by_copies(site, monkeypatch):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    ms = tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    before = {p.relative_to(ms): p.lstat().st_mtime_ns for p in ms.rglob("*")}
    _no_rename(monkeypatch, site.quarantine_dir())
    go(site, force=True)
    (row,) = held_in_quarantine(site)
    assert {p.relative_to(row.path): p.lstat().st_mtime_ns for p in Path(row.path).rglob("*")} == before
    assert [p.name for p in site.output_dir.iterdir() if ".ms" in p.name] == []
    assert put_back(site, ms, now=NOW) == ms
    assert {p.relative_to(ms): p.lstat().st_mtime_ns for p in ms.rglob("*")} == before


def test_a_disk_that_is_full_in_the_middle_of_a_copy_loses_nothing(site, monkeypatch):
    for group in (A, B):
        tidy.put_group(site, group, "completed", seen_at=NOW - 40 * DAY)
        tidy.put_ms(site, group, made_at=NOW - 31 * DAY)
    before = tidy.tree(site.output_dir)
    _no_rename(monkeypatch, site.quarantine_dir())

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nightbeam.contimg.quarantine.shutil.copy2", full)
    with pytest.raises(PartialError, match="2 things could not be done: no space left"):
        go(site, force=True).raise_failures()
    left = {path: what for path, what in tidy.tree(site.output_dir).items() if "quarantine" not in path}
    assert left == before
    assert list(site.quarantine_dir().iterdir()) == []
    assert held_in_quarantine(site) == []
    assert {row.status for row in site.products().ms_index()} == {"done"}


def test_a_copy_that_differs_is_no_copy_and_the_original_stays(site, monkeypatch):
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    ms = tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    before = tidy.tree(ms)
    _no_rename(monkeypatch, site.quarantine_dir())
    real = shutil.copy2

    def faulty(source, target):
        real(source, target)
        if source.name == "table.dat":
            target.write_text("visibilities of nobody")

    monkeypatch.setattr("nightbeam.contimg.quarantine.shutil.copy2", faulty)
    with pytest.raises(StorageError, match="differs from it"):
        go(site, force=True).raise_failures()
    assert tidy.tree(ms) == before
    assert held_in_quarantine(site) == []
    assert not [path for path in site.quarantine_dir().rglob("*") if path.is_file()]


def test_one_thing_that_fails_does_not_stop_the_others_and_is_the_error(site, monkeypatch):
    tidy.put_scratch(site.scratch_dir / "stream_a", NOW - 2 * DAY)
    tidy.put_scratch(site.scratch_dir / "stream_b", NOW - 2 * DAY)
    real = housekeeping.remove

    def remove(path):
        if path.name == "stream_a":
            raise OSError(30, "Read-only file system")
        real(path)

    monkeypatch.setattr(housekeeping, "remove", remove)
    report = go(site)
    assert [Path(a.subject).name for a in report.done] == ["stream_b"]
    with pytest.raises(StorageError, match=r"cannot write .*stream_a: Read-only file system"):
        report.raise_failures()
    assert (site.scratch_dir / "stream_a").exists()
    assert not (site.scratch_dir / "stream_b").exists()


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "far", "number"),
    [
        *((deed, False, number) for deed in ("put aside", "put back", "delete") for number in range(10)),
        *((deed, True, number) for deed in ("put aside", "put back") for number in range(18)),
    ],
)
def test_being_killed_between_any_two_steps_leaves_the_truth_and_the_next_run_ends_it(
    site, monkeypatch, deed, number, far
):
    """Every change of a row or of a name is a moment to be killed at, before it or after it."""
    if far:
        _no_rename(monkeypatch, site.quarantine_dir())
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    ms = tidy.put_ms(site, A, made_at=NOW - 31 * DAY)
    if deed != "put aside":
        go(site, force=True)

    def act():
        if deed == "put back":
            put_back(site, ms, now=NOW)
        else:
            go(site, now=NOW + (31 * DAY if deed == "delete" else 0), force=True)

    moment = iter(range(1000))

    def dying(real):
        def step(*args, **more):
            if next(moment) == number:
                raise Killed
            result = real(*args, **more)
            if next(moment) == number:
                raise Killed
            return result

        return step

    with monkeypatch.context() as patched:
        for owner, name in (
            (Quarantine, "begin"),
            (Quarantine, "become"),
            (Products, "upsert_ms"),
            (quarantine, "move"),
            (quarantine, "remove"),
            (quarantine, "sha256"),
            (Path, "rename"),
            (quarantine, "rename_new"),
        ):
            patched.setattr(owner, name, dying(getattr(owner, name)))
        with suppress(Killed):
            act()

    # The truth: it is whole at one place or the other, and a row says so, unless it is being deleted.
    rows = [r for r in site.products().quarantine.rows() if r.state not in ("restored", "deleted")]
    places = [p for p in (ms, *(Path(r.path) for r in rows)) if (p / "table.dat").exists()]
    if deed != "delete":
        assert len(places) == 1 or (far and len(places) == 2)
        assert (places[0] / "FIELD" / "table.dat").exists()
    later = NOW + (31 * DAY if deed == "delete" else 3660)
    go(site, now=NOW + 60, force=True)  # somebody may still be at it
    go(site, now=later, force=True)
    go(site, now=later, force=True)
    (row,) = [r for r in site.products().quarantine.rows() if r.original_path == str(ms)][-1:]
    status = site.products().ms(ms).status
    if deed == "delete":
        assert (row.state, status, ms.exists(), Path(row.path).exists()) == ("deleted", "deleted", False, False)
    elif ms.exists():
        assert (row.state, status) == ("restored", "done")
    else:
        assert (row.state, status, Path(row.path).exists()) == ("held", "quarantined", True)
    assert json.loads((site.state_dir / "housekeeping.json").read_text())["ended_at"] == later
