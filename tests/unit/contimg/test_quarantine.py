"""What is put aside stays whole, wherever somebody is stopped, and whoever works beside it."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from errno import EXDEV
from pathlib import Path
from types import SimpleNamespace

import pytest

from nightbeam.catalog.products import Products
from nightbeam.catalog.quarantine import Quarantine
from nightbeam.catalog.schema import MosaicTable
from nightbeam.contimg import Site, housekeeping, quarantine
from nightbeam.contimg.backfill import find_unimaged
from nightbeam.contimg.housekeeping import held_in_quarantine, put_back, tidy_up
from nightbeam.contimg.mosaics import hold_plan
from nightbeam.contimg.quarantine import inside, item_of, mosaic_files, move
from nightbeam.core.errors import BusyError, InputError, StorageError
from nightbeam.core.files import rename_new
from nightbeam.core.locks import sole_owner

tidy = SimpleNamespace(**runpy.run_path(str(Path(__file__).resolve().parents[2] / "tidy_site.py")))
NOW, DAY, HOUR, TOOLS = tidy.NOW, tidy.DAY, 3600.0, tidy.TOOLS
A, B = (tidy.group_name(n) for n in range(2))
DAYS = {"image_days": 10.0, "mosaic_days": 10.0, "qa_days": 10.0, "ms_days": 60.0}


@pytest.fixture
def site(tmp_path: Path, contimg_databases: dict[str, str]) -> Site:
    site = tidy.new_site(tmp_path / "state", housekeeping=DAYS, **contimg_databases)
    for make in (site.queue, site.registry, site.products):
        make()
    return site


def go(site: Site, **more):
    return tidy_up(site, now=more.pop("now", NOW), tools=TOOLS, force=True, **more)


def put_old_image(site: Site, group_id: str = A) -> Path:
    tidy.put_group(site, group_id, "completed", seen_at=NOW - 20 * DAY)
    tidy.put_ms(site, group_id, made_at=NOW - 20 * DAY)
    return site.image_stem(group_id)


def put_mosaic(site: Site, name: str = "night", *, built_at: float = NOW - 20 * DAY, text: str = "old") -> Path:
    """Make a mosaic of four files, in the tables and on disk."""
    stem = site.mosaic_dir() / name
    stem.parent.mkdir(exist_ok=True)
    files = {kind: f"{stem}.{kind}.fits" for kind in ("image", "weight")} | {"png": f"{stem}.png"}
    for path in (*files.values(), f"{stem}.json"):
        Path(path).write_text(f"{text} {Path(path).name}")
    values = {"output_path": files["image"], "files": json.dumps(files), "built_at": built_at, "status": "built"}
    products = site.products()
    if products.mosaic(name) is None:
        with products.database.write() as connection:
            insert = tidy.sa.insert(MosaicTable)
            connection.execute(insert.values(name=name, plan=name, tiles="", created_at=NOW - 20 * DAY, **values))
    else:
        products.change_mosaic(name, **values)
    return stem


def put_leftover(site: Site, *, at: Path | None = None, age_days: float = 20.0) -> Path:
    """Make what a plan of three strips left behind that has two now, named in the row of the first."""
    stem = at or site.mosaic_dir() / "night_strip2"
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending in ("json", "image.fits", "noise.fits", "weight.fits", "png"):
        path = stem.with_name(f"{stem.name}.{ending}")
        path.write_text(f"left {ending}")
        os.utime(path, (NOW - age_days * DAY, NOW - age_days * DAY))
    issues = f"noise: too high\nleft behind: {stem}.image.fits"
    with site.products().database.write() as connection:
        for strip, name in enumerate(("night", "night_strip1")):
            row = {"name": name, "plan": "night", "strip": strip, "status": "planned", "tiles": "", "created_at": NOW}
            told = issues if strip == 0 else None
            connection.execute(tidy.sa.insert(MosaicTable).values(**row, validation_issues=told))
    return stem


def put_row(site: Site, name: str, **values: object) -> None:
    with site.products().database.write() as connection:
        row = {"name": name, "plan": name, "status": "planned", "tiles": "", "created_at": NOW, **values}
        connection.execute(tidy.sa.insert(MosaicTable).values(**row))


def files_of(directory: Path, stem: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in directory.glob(f"{stem.name}.*") if p.is_file()}


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> bool:
    """Do something and be killed before a change of a row or of a name; returns False if it came through."""
    moment = iter(range(10000))

    def dying(real):
        def step(*args, **more):
            if next(moment) == number:
                raise Killed
            return real(*args, **more)

        return step

    with monkeypatch.context() as patched:
        for owner, name in (
            (Quarantine, "begin"),
            (Quarantine, "become"),
            (Products, "change_mosaic"),
            (quarantine, "remove"),
            (Path, "rename"),
            (quarantine, "rename_new"),
        ):
            patched.setattr(owner, name, dying(getattr(owner, name)))
        try:
            act()
        except Killed:
            return True
    return False


def far_away(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Play a quarantine on another file system."""
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target).is_relative_to(place) != self.is_relative_to(place):
            raise OSError(18, "Invalid cross-device link")
        return real(self, target)

    def rename_new(source: Path, target: Path) -> None:
        rename(source, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr("nightbeam.contimg.quarantine.rename_new", rename_new)


def kill_after_files(monkeypatch: pytest.MonkeyPatch, n: int, act: Callable[[], object]) -> None:
    """Do something and be killed when so many files have their new name."""
    real, moved = quarantine.move, []

    def move(here: Path, there: Path) -> None:
        if len(moved) == n:
            raise Killed
        real(here, there)
        moved.append(there)

    with monkeypatch.context() as patched:
        patched.setattr(quarantine, "move", move)
        with suppress(Killed):
            act()
    assert len(moved) == n


# -- stopped in the middle --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "deed", "far"),
    [
        *(("image", deed, far) for deed in ("put aside", "put back") for far in (False, True)),
        ("mosaic", "put aside", False),
        ("mosaic", "put back", False),
        ("leftover", "put aside", False),
        ("leftover", "put back", False),
    ],
)
def test_a_product_of_several_files_is_whole_at_one_place_wherever_somebody_was_killed(tmp_path, kind, deed, far):
    for number in range(1000):
        with pytest.MonkeyPatch.context() as monkeypatch:
            site = tidy.new_site(tmp_path / str(number), housekeeping=DAYS)
            if far:
                far_away(monkeypatch, site.quarantine_dir())
            stem = {"image": put_old_image, "mosaic": put_mosaic, "leftover": put_leftover}[kind](site)
            original = stem if kind == "image" else stem.with_name(f"{stem.name}.image.fits")
            before = files_of(stem.parent, stem)
            if deed == "put back":
                go(site)
            act = (
                (lambda s=site: go(s)) if deed == "put aside" else (lambda s=site, o=original: put_back(s, o, now=NOW))
            )
            killed = kill_at(monkeypatch, number, act)
            for later in (60.0, 2 * HOUR):
                assert go(site, now=NOW + later).failed == {}
            rows = [r for r in site.products().quarantine.rows() if r.kind == kind]
            aside = [r for r in rows if r.state == "held"]
            assert {r.state for r in rows} <= {"held", "restored"}, number
            places = [files_of(stem.parent, stem), *(files_of(Path(r.path), stem) for r in aside)]
            assert [place for place in places if place] == [before], number
            if kind == "leftover":
                assert bool(aside) or deed == "put back" or not rows
                assert (site.products().mosaic("night").validation_issues == "noise: too high") is bool(rows)
        if not killed:
            break
    assert number >= 5


@pytest.mark.parametrize("state", ["pending", "in_progress", "failed"])
def test_what_a_run_writes_meanwhile_is_not_put_aside_with_what_was_there_before(site, monkeypatch, state):
    stem = put_old_image(site)
    kill_after_files(monkeypatch, 1, lambda: go(site))
    site.queue().reprocess(A)
    if state != "pending":
        site.queue().claim(A, tidy.owner("alive"), now=NOW + HOUR)
    if state == "failed":
        site.queue().fail(A, tidy.owner("alive"), "it failed", final=True, now=NOW + HOUR)
    fits = stem.with_name(f"{stem.name}.image.pbcor.fits")
    fits.write_text("new")
    report = go(site, now=NOW + 2 * HOUR)
    assert fits.read_text() == "new"
    assert f"its group is {state}" in "; ".join(a.reason for a in report.left)
    assert [row.state for row in held_in_quarantine(site)] == ["moving"]


def test_an_image_that_was_made_anew_stays_whole_and_what_was_moved_of_the_old_one_is_held(site, monkeypatch):
    stem = put_old_image(site)
    kill_after_files(monkeypatch, 1, lambda: go(site))
    for ending in (".image.pbcor.fits", ".png", ".json"):
        stem.with_name(stem.name + ending).write_text("new")
    fits = stem.with_name(f"{stem.name}.image.pbcor.fits")
    site.products().upsert_image(fits, ms_path=site.ms_path(A), group_id=A, now=NOW + HOUR)
    go(site, now=NOW + 2 * HOUR)
    assert set(files_of(stem.parent, stem).values()) == {"new"}
    assert len(files_of(stem.parent, stem)) == 3
    (row,) = held_in_quarantine(site)
    assert (row.state, list(files_of(Path(row.path), stem))) == ("held", [f"{stem.name}.json"])


def test_a_mosaic_that_was_built_anew_stays_whole(site, monkeypatch):
    stem = put_mosaic(site)
    kill_after_files(monkeypatch, 2, lambda: go(site))
    put_mosaic(site, built_at=NOW + HOUR, text="new")
    before = files_of(stem.parent, stem)
    go(site, now=NOW + 2 * HOUR)
    assert files_of(stem.parent, stem) == before
    assert [row.state for row in held_in_quarantine(site)] == ["held"]


def test_nothing_is_moved_over_what_lies_in_quarantine(site, monkeypatch):
    stem = put_old_image(site)
    kill_after_files(monkeypatch, 1, lambda: go(site))
    stem.with_name(f"{stem.name}.json").write_text("of another one")  # whose row nobody wrote
    before = files_of(stem.parent, stem)
    go(site, now=NOW + 2 * HOUR)
    assert files_of(stem.parent, stem) == before
    (row,) = held_in_quarantine(site)
    assert files_of(Path(row.path), stem) == {f"{stem.name}.json": f"{A}.json"}


def test_a_move_that_another_machine_has_just_begun_is_left_to_it(site):
    stem = put_old_image(site)
    site.products().quarantine.begin(
        site.quarantine_dir() / "2026-01-31" / stem.name, original=stem, kind="image", reason="", size_bytes=1, now=NOW
    )
    before = files_of(stem.parent, stem)
    report = go(site, now=NOW + 60)
    assert (report.done, files_of(stem.parent, stem)) == ((), before)
    assert [row.state for row in held_in_quarantine(site)] == ["moving"]
    assert "settle" in [a.verb for a in go(site, now=NOW + 2 * HOUR).done]
    assert held_in_quarantine(site) == []
    assert files_of(stem.parent, stem) == before


def test_what_was_half_put_aside_can_be_put_back_at_once(site, monkeypatch):
    stem = put_old_image(site)
    before = files_of(stem.parent, stem)
    kill_after_files(monkeypatch, 2, lambda: go(site))
    assert put_back(site, stem, now=NOW + 60) == stem
    assert files_of(stem.parent, stem) == before
    assert held_in_quarantine(site) == []


@pytest.mark.parametrize("full_at", [1, 2, 3])
def test_a_quarantine_that_is_full_in_the_middle_of_an_image_leaves_it_whole_where_it_was(site, monkeypatch, full_at):
    stem = put_old_image(site)
    before = files_of(stem.parent, stem)
    far_away(monkeypatch, site.quarantine_dir())
    real, copied = quarantine.shutil.copy2, []

    def copy(source, target):
        copied.append(target)
        if len(copied) == full_at:
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr("nightbeam.contimg.quarantine.shutil.copy2", copy)
    with pytest.raises(StorageError, match="no space left"):
        go(site).raise_failures()
    assert files_of(stem.parent, stem) == before
    assert held_in_quarantine(site) == []
    assert not [path for path in site.quarantine_dir().rglob("*") if path.is_file()]


def test_there_is_room_for_all_files_before_the_first_is_copied(site, monkeypatch, tmp_path):
    stem = put_old_image(site)
    real = Path.stat

    def stat(self, **more):
        found = real(self, **more)
        values = list(found)
        if self.is_relative_to(site.quarantine_dir()):
            values[2] += 1  # st_dev
        return os.stat_result(values)

    asked = []

    def no_room(directory, need_bytes, *, what):
        asked.append(need_bytes)
        raise StorageError(f"{what} needs more")

    size = sum(len(text) for text in files_of(stem.parent, stem).values())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", stat)
        patched.setattr(quarantine, "require_space", no_room)
        with pytest.raises(StorageError, match="needs more"):
            go(site).raise_failures()
    assert asked == [size]
    assert held_in_quarantine(site) == []


# -- others at work ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("across", [False, True])
def test_what_came_to_a_place_meanwhile_is_not_replaced(tmp_path, monkeypatch, across):
    here, there = tmp_path / "a", tmp_path / "b"
    here.write_text("ours")
    if across:
        at_first = [OSError(EXDEV, "Invalid cross-device link")]

        def rename(source: Path, target: Path) -> None:
            if at_first:
                there.write_text("theirs")  # while we copy
                raise at_first.pop()
            rename_new(source, target)

        monkeypatch.setattr("nightbeam.contimg.quarantine.rename_new", rename)
    else:
        there.write_text("theirs")
    with pytest.raises(InputError, match="something lies at"):
        move(here, there)
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {
        "a": "ours",
        "b": "theirs",
    }


def test_an_image_that_a_mosaic_was_planned_with_meanwhile_stays(site, monkeypatch):
    stem = put_old_image(site)
    tile = site.products().images(group_id=A)[0].path
    real = housekeeping.decide

    def decide(*facts):
        decided = real(*facts)
        with site.products().database.write() as connection:
            insert = tidy.sa.insert(MosaicTable)
            connection.execute(insert.values(name="next", status="planned", tiles=tile, created_at=NOW))
        return decided

    monkeypatch.setattr(housekeeping, "decide", decide)
    assert go(site).done == ()
    assert len(files_of(stem.parent, stem)) == 3


def test_an_image_that_was_made_again_meanwhile_stays(site, monkeypatch):
    stem = put_old_image(site)
    row = site.products().images(group_id=A)[0]
    real = housekeeping.decide

    def decide(*facts):
        decided = real(*facts)
        site.products().upsert_image(Path(row.path), ms_path=site.ms_path(A), group_id=A, now=NOW - 60)
        return decided

    monkeypatch.setattr(housekeeping, "decide", decide)
    assert go(site).done == ()
    assert len(files_of(stem.parent, stem)) == 3


def test_a_mosaic_and_its_figures_stay_while_somebody_holds_its_plan(site):
    put_mosaic(site)
    figure = site.qa_dir() / "night" / "image.png"
    figure.parent.mkdir(parents=True)
    figure.write_text("png")
    site.products().put_qa_artifact("night", "image.png", figure, now=NOW - 20 * DAY)
    with hold_plan(site, "night"):
        report = go(site)
    assert (report.done, ["the mosaic night is held" in a.reason for a in report.left]) == ((), [True, True])
    assert go(site).counts["put aside"] == 2


@pytest.mark.parametrize("state", ["pending", "in_progress"])
def test_nothing_is_put_back_into_the_work_of_a_run(site, state):
    stem = put_old_image(site)
    go(site)
    site.queue().reprocess(A)
    if state == "in_progress":
        site.queue().claim(A, tidy.owner("alive"), now=NOW)
    with pytest.raises(BusyError, match=f"group {A} is {state}"):
        put_back(site, stem, now=NOW)
    assert files_of(stem.parent, stem) == {}


def test_nothing_is_put_back_while_somebody_holds_the_group(site):
    stem = put_old_image(site)
    go(site)
    with sole_owner(site.group_lock(A)), pytest.raises(BusyError, match=f"group {A} is held"):
        put_back(site, stem, now=NOW)
    assert [row.state for row in held_in_quarantine(site)] == ["held"]
    put_back(site, stem, now=NOW)
    assert len(files_of(stem.parent, stem)) == 3


# -- what belongs to a product ----------------------------------------------------------------------------------


def test_an_image_takes_no_measurement_set_and_no_stranger_of_its_name_along(site):
    directory = site.output_dir / "ms"
    ms = directory / "A.ms"
    ms.mkdir(parents=True)
    (ms / "table.dat").write_text("visibilities")
    for name in ("A.fits", "A.json", "A.image.pb.notes", "A.uvfits"):
        (directory / name).write_text(name)
    native = directory / "A.residual"
    native.mkdir()
    products = site.products()
    products.upsert_ms(ms, status="done", processed_at=NOW)
    products.upsert_image(directory / "A.fits", ms_path=ms, files={"x": str(ms)}, now=NOW - 20 * DAY)
    item = item_of(products, "image", directory / "A")
    assert [p.name for p in item.members] == ["A.json", "A.fits", "A.residual"]
    go(site)
    assert sorted(p.name for p in directory.iterdir()) == ["A.image.pb.notes", "A.ms", "A.uvfits"]
    assert (ms / "table.dat").exists()


def test_a_mosaic_is_put_aside_with_its_description_and_comes_back_with_it(site):
    stem = put_mosaic(site)
    before = files_of(stem.parent, stem)
    assert mosaic_files(site.products().mosaic("night"))[0].name == "night.json"
    go(site)
    assert files_of(stem.parent, stem) == {}
    put_back(site, stem.with_name("night.image.fits"), now=NOW)
    assert files_of(stem.parent, stem) == before


def test_a_directory_and_what_is_above_it_do_not_lie_in_it(tmp_path):
    (tmp_path / "q" / "day").mkdir(parents=True)
    assert inside(tmp_path / "q" / "day", tmp_path / "q")
    for outside in (tmp_path / "q", tmp_path / "q" / "..", tmp_path / "q" / "day" / "..", Path("/")):
        assert not inside(outside, tmp_path / "q")


# -- what an earlier plan left behind ---------------------------------------------------------------------------


def test_what_a_plan_of_fewer_strips_left_behind_is_put_aside_comes_back_or_is_deleted_in_its_time(site):
    stem = put_leftover(site)
    strangers = [stem.with_name(n) for n in ("night_strip2.notes", "night_strip21.png", "night.image.fits")]
    for path in strangers:
        path.write_text("a stranger")
    left = {name: text for name, text in files_of(stem.parent, stem).items() if "notes" not in name}
    assert len(left) == 5
    assert [(a.verb, a.kind) for a in go(site).done] == [("put aside", "leftover")]
    (row,) = held_in_quarantine(site)
    assert files_of(Path(row.path), stem) == left
    assert all(path.exists() for path in strangers)
    assert site.products().mosaic("night").validation_issues == "noise: too high"
    assert put_back(site, Path(row.original_path), now=NOW).name == "night_strip2.image.fits"
    assert {name: text for name, text in files_of(stem.parent, stem).items() if "notes" not in name} == left
    assert go(site, now=NOW + 40 * DAY).done == ()  # who puts it back keeps it: no row names it any longer


def test_what_was_left_behind_is_deleted_after_its_time_in_quarantine(site):
    stem = put_leftover(site)
    go(site)
    assert go(site, now=NOW + 31 * DAY).counts["delete"] == 1
    assert files_of(stem.parent, stem) == {}
    assert held_in_quarantine(site) == []


@pytest.mark.parametrize(
    ("days", "age_days"), [(7.0, 6.9), (None, 4000.0)], ids=["younger than its limit", "without a limit"]
)
def test_what_was_left_behind_stays_until_its_limit(tmp_path, days, age_days):
    site = tidy.new_site(tmp_path / "state", housekeeping={"leftover_days": days})
    stem = put_leftover(site, age_days=age_days)
    assert go(site).done == ()
    assert len(files_of(stem.parent, stem)) == 5


@pytest.mark.parametrize(
    ("taken", "why"),
    [
        ({"name": "night_strip2"}, "the mosaic night_strip2 will be made there"),
        ({"name": "night_strip2", "status": "failed"}, "the mosaic night_strip2 will be made there"),
        ({"name": "x", "status": "built", "output_path": "{stem}.image.fits"}, "it is the mosaic x's now"),
        ({"name": "x", "output_path": "{stem}.noise.fits"}, "it is the mosaic x's now"),
        ({"name": "x", "files": '{{"png": "{stem}.png"}}'}, "it is the mosaic x's now"),
    ],
)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_was_left_behind_and_is_somebodys_again_stays(site, monkeypatch, taken, why, when):
    stem = put_leftover(site)
    values = {name: value.format(stem=stem) for name, value in taken.items()}
    real = housekeeping.decide

    def decide(*facts):
        decided = real(*facts)
        put_row(site, **values)
        return decided

    if when == "before":
        put_row(site, **values)
    else:
        monkeypatch.setattr(housekeeping, "decide", decide)
    report = go(site)
    assert (report.done, len(files_of(stem.parent, stem))) == ((), 5)
    assert (why if when == "before" else "it has changed meanwhile") in report.left[0].reason


def test_what_was_left_behind_elsewhere_or_by_a_link_stays(site, tmp_path):
    stem = put_leftover(site, at=tmp_path / "elsewhere" / "night_strip2")
    assert "it does not lie in" in go(site).left[0].reason
    assert len(files_of(stem.parent, stem)) == 5
    link = site.mosaic_dir() / "linked.image.fits"
    link.parent.mkdir()
    link.symlink_to(stem.with_name("night_strip2.image.fits"))
    os.utime(link, (NOW - 20 * DAY, NOW - 20 * DAY), follow_symlinks=False)
    site.products().change_mosaic("night", validation_issues=f"left behind: {link}")
    assert "it does not lie in" in go(site).left[0].reason
    assert link.is_symlink()


@pytest.mark.parametrize("lock", ["plan", "file"])
def test_what_was_left_behind_stays_while_somebody_holds_its_plan_or_its_name(site, lock):
    stem = put_leftover(site)
    held = hold_plan(site, "night") if lock == "plan" else sole_owner(stem.with_name(f".{stem.name}.lock"))
    with held:
        report = go(site)
    assert (report.done, "is held by" in report.left[0].reason) == ((), True)
    assert len(files_of(stem.parent, stem)) == 5
    go(site)
    assert list(stem.parent.iterdir()) == []


def test_what_was_left_behind_does_not_look_like_a_clock_that_jumped(site):
    put_leftover(site)
    (site.state_dir / "housekeeping.json").write_text(json.dumps({"ended_at": NOW - 3 * DAY}))
    assert tidy_up(site, now=NOW, tools=TOOLS).counts["put aside"] == 1


# -- scratch, faults, calibrators -------------------------------------------------------------------------------


def test_scratch_in_use_stays_where_the_way_to_it_is_a_link(tmp_path):
    real = tmp_path / "big disk"
    real.mkdir()
    site = tidy.new_site(tmp_path / "state")
    site.scratch_dir.rmdir()
    site.scratch_dir.symlink_to(real)
    stood_in = tidy.put_scratch(site.scratch_dir / "stream_stood_in", NOW - 2 * DAY)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=stood_in)
    try:
        report = go(site)
        assert (stood_in / "half").exists()
        assert [a.reason.partition("; ")[2] for a in report.left] == ["a process uses it"]
    finally:
        other.communicate(b"\n")
    go(site)
    assert not stood_in.exists()


def test_scratch_that_somebody_begins_to_use_between_the_look_and_the_deed_stays(site, monkeypatch):
    path = tidy.put_scratch(site.scratch_dir / "stream_x", NOW - 2 * DAY)
    answers = iter([[], [path.resolve() / "half"]])
    monkeypatch.setattr(housekeeping, "places_in_use", lambda: next(answers))
    report = go(site)
    assert (path / "half").exists()
    assert "a process uses" in report.left[0].reason


@pytest.mark.parametrize("fault", ["image", "row", "directory"])
def test_one_thing_that_cannot_be_looked_at_stays_and_does_not_stop_the_others(site, monkeypatch, fault):
    put_old_image(site, A)
    tidy.put_group(site, B, "in_progress", seen_at=NOW - 2000, held_by="dead")
    put_mosaic(site)
    if fault == "row":
        site.products().change_mosaic("night", files="[]")
        wanted = {"night.image.fits"}
    elif fault == "image":
        monkeypatch.setattr(housekeeping, "item_of", _with_an_error_on(f"{A}.img", housekeeping.item_of))
        wanted = {f"{A}.img"}
    else:
        site.quarantine_dir().mkdir()
        real = Path.iterdir

        def iterdir(self):
            if self == site.quarantine_dir():
                raise PermissionError(13, "Permission denied")
            return real(self)

        monkeypatch.setattr(Path, "iterdir", iterdir)
        wanted = set()
    report = go(site)
    assert site.queue().group(B).state == "pending"
    assert {Path(a.subject).name for a in report.left if a.kind != "lease"} == wanted
    assert report.counts["put aside"] == 2 - len(wanted)
    if fault == "directory":
        assert any("cannot look into" in note for note in report.notes)
    else:
        assert "it cannot be looked at" in report.left[0].reason


def _with_an_error_on(name, real):
    def look(products, kind, original, *more):
        if original.name == name:
            raise OSError(5, "Input/output error")
        return real(products, kind, original, *more)

    return look


def test_a_set_whose_image_cannot_be_read_stays_and_says_so(tmp_path):
    site = tidy.new_site(tmp_path / "state")
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY)
    ms = tidy.put_ms(site, A, made_at=NOW - 40 * DAY)

    def broken(stem):
        raise OSError(5, "Input/output error")

    report = tidy_up(site, now=NOW, tools=tidy.Tools(finished_image=broken), force=True)
    assert [a.reason.partition("; ")[2] for a in report.left] == ["its image cannot be read: Input/output error"]
    assert ms.exists()


@pytest.mark.parametrize(
    ("calibrators", "stays"),
    [
        ([{"name": "weak", "weighted_flux": 0.4}], False),
        ([{"name": "weak", "weighted_flux": 0.4}, {"name": "strong", "weighted_flux": 1.0}], True),
        ([{"name": "of an older pipeline"}], True),
        (None, True),
    ],
)
def test_a_calibrator_too_weak_to_be_solved_on_keeps_nothing(tmp_path, calibrators, stays):
    site = tidy.new_site(tmp_path / "state", calibrate={"min_flux_jy": 1.0})
    told = None if calibrators is None else json.dumps(calibrators)
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY, has_calibrator=1, calibrators=told)
    ms = tidy.put_ms(site, A, made_at=NOW - 40 * DAY)
    go(site)
    assert ms.exists() is stays


def test_a_weak_calibrator_that_a_set_was_solved_on_keeps_its_measurement_set(tmp_path):
    site = tidy.new_site(tmp_path / "state", calibrate={"min_flux_jy": 1.0})
    weak = json.dumps([{"name": "weak", "weighted_flux": 0.4}])
    tidy.put_group(site, A, "completed", seen_at=NOW - 40 * DAY, has_calibrator=1, calibrators=weak)
    ms = tidy.put_ms(site, A, made_at=NOW - 40 * DAY)
    tidy.put_set(site, A, "failed")
    go(site)
    assert ms.exists()


def test_young_images_cost_a_look_at_their_row_and_no_more(site, monkeypatch):
    for n in range(3):
        tidy.put_ms(site, tidy.group_name(n), made_at=NOW - DAY)
    monkeypatch.setattr(housekeeping, "item_of", lambda *_: pytest.fail("the files of a young image were asked for"))
    assert go(site).left == ()


def test_a_row_whose_files_are_no_names_is_an_error_of_its_own(site):
    put_mosaic(site)
    with pytest.raises(InputError, match="names no files but"):
        mosaic_files(site.products().change_mosaic("night", files='["x"]'))


@pytest.mark.parametrize("stem", ["2025_10_02_a", "night"])
@pytest.mark.parametrize("active", [True, False])
def test_a_set_of_any_name_keeps_the_measurement_set_that_it_was_solved_on(tmp_path, stem, active):
    site = tidy.new_site(tmp_path / "state")
    ms = site.output_dir / f"{stem}.ms"
    ms.mkdir()
    image = site.output_dir / "images" / f"{stem}.img.image.fits"
    image.parent.mkdir()
    for path in (image, image.with_name(f"{stem}.img.json")):
        path.write_text("an image")
    products = site.products()
    products.upsert_ms(ms, status="done", processed_at=NOW - 40 * DAY)
    products.upsert_image(image, ms_path=ms, now=NOW - 40 * DAY)
    status = "active" if active else "retired"
    with site.registry().database.write() as connection:
        named = {"set_name": "the best", "status": status, "created_at": NOW}
        connection.execute(tidy.sa.insert(tidy.CalSetTable).values(**named))
        path = str(site.output_dir / "caltables" / f"{stem}_0_1_bpcal")
        kind = {"table_type": "BP", "order_index": 30, "valid_start_mjd": 1.0, "valid_end_mjd": 2.0}
        connection.execute(tidy.sa.insert(tidy.CalTable).values(path=path, **kind, **named))
    go(site)
    assert ms.exists() is active


@pytest.mark.parametrize("n", [1, 2])
def test_an_image_in_the_middle_of_being_put_aside_is_not_made_anew(site, monkeypatch, n):
    put_old_image(site)
    site.products().upsert_ms(site.ms_path(A), start_mjd=60950.0)
    kill_after_files(monkeypatch, n, lambda: go(site))
    assert find_unimaged(site, tools=TOOLS, now=NOW) == []


def test_what_comes_to_a_place_after_the_look_costs_nothing_that_is_put_back(site, monkeypatch):
    stem = put_old_image(site)
    before = files_of(stem.parent, stem)
    go(site)
    (row,) = held_in_quarantine(site)
    foreign = stem.parent / sorted(before)[-1]
    become = Quarantine.become

    def late(self, path, state, **more):
        become(self, path, state, **more)
        foreign.write_text("of somebody else")

    monkeypatch.setattr(Quarantine, "become", late)
    with pytest.raises(InputError, match="something lies at"):
        put_back(site, stem, now=NOW)
    assert foreign.read_text() == "of somebody else"
    assert foreign.name in {path.name for path in Path(row.path).iterdir()}
