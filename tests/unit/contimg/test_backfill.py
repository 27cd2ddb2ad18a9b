"""Imaging what was missed, with stand-ins for the tools."""

from __future__ import annotations

import dataclasses
import errno
import runpy
import shutil
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightbeam.catalog import Owner, Queue, Registry
from nightbeam.contimg import Site, run_group, scan_arrivals, this_process
from nightbeam.contimg.backfill import BackfillReport, backfill, find_unimaged, parse_night
from nightbeam.contimg.housekeeping import tidy_up
from nightbeam.core.errors import (
    BusyError,
    InputError,
    MissingError,
    PartialError,
    RejectedError,
    StorageError,
    ToolError,
)
from nightbeam.core.locks import sole_owner
from nightbeam.core.settings import Settings
from nightbeam.core.times import mjd_from_datetime

pytestmark = pytest.mark.slow

steps = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("test_steps.py"))))
G, MID, DAY = steps.G, steps.MID, 86400.0
FOREIGN = "2025-10-02T03:00:00"


@pytest.fixture
def site(tmp_path: Path, contimg_databases: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr("nightbeam.catalog.registry.check_table", steps._is_there)
    monkeypatch.setattr(Site, "registry", lambda self: Registry(self.registry_url, check=steps._is_there))
    contimg = {"ingest": {"settle_s": 0}, **contimg_databases}
    settings = Settings.model_validate({"state_dir": tmp_path / "state", "contimg": contimg})
    site = Site.from_settings(settings)
    site.input_dir.mkdir(parents=True)
    return site


@pytest.fixture
def fakes(site: Site) -> Any:
    """The tools, and a group that was imaged with them."""
    fakes = steps.Fakes()
    steps.arrive(site)
    scan_arrivals(site, tools=fakes.tools())
    run_group(site, G, tools=fakes.tools())
    fakes.calls.clear()
    return fakes


def mjd(group: str) -> float:
    return mjd_from_datetime(datetime.fromisoformat(group).replace(tzinfo=UTC))


def put_foreign(directory: Path, start: str = FOREIGN, *, name: str | None = None) -> Path:
    """Lay down a Measurement Set that the queue does not know."""
    ms = directory / f"{name or start}.ms"
    ms.mkdir(parents=True)
    # A tenth of a second into its second, as real ones are: the name of a group is the second in which it starts.
    (ms / "table.dat").write_text(f"start {mjd(start) + 0.1 / DAY!r}")
    return ms


def go(site: Site, fakes: Any, directory: Path | None = None, **more: Any) -> BackfillReport:
    wanted = find_unimaged(site, directory, tools=fakes.tools(), night=more.pop("night", None))
    return backfill(site, wanted, tools=fakes.tools(), **more)


def states(report: BackfillReport) -> dict[str | None, str]:
    return {outcome.group_id: outcome.state for outcome in report.outcomes}


# -- sets of the queue ------------------------------------------------------------------------------------------


def test_what_has_a_good_image_is_not_done_again(site, fakes):
    assert go(site, fakes).outcomes == ()
    assert fakes.calls == []


def test_an_image_that_is_gone_is_made_again_from_what_is_finished(site, fakes):
    fits = site.image_stem(G).with_name(f"{G}.img.image.pbcor.fits")
    fits.unlink()
    (found,) = find_unimaged(site, tools=fakes.tools())
    assert (found.group_id, found.through_queue) == (G, True)
    assert found.why == f"its image is not good: {fits} is gone"
    assert states(go(site, fakes)) == {G: "imaged"}
    assert fakes.calls == ["image", "qa"]
    assert site.queue().group(G).state == "completed"
    assert fits.exists()
    assert go(site, fakes).outcomes == ()


def test_a_failed_group_is_tried_again_with_a_new_set_of_attempts(site):
    fakes = steps.Fakes(fail={"image": RejectedError("the image is empty")})
    steps.arrive(site)
    scan_arrivals(site, tools=fakes.tools())
    with pytest.raises(RejectedError):
        run_group(site, G, tools=fakes.tools())
    (found,) = find_unimaged(site, tools=fakes.tools())
    assert found.why == "its group is failed: the image is empty"
    fakes.fail.clear()
    fakes.calls.clear()
    assert states(go(site, fakes)) == {G: "imaged"}
    assert fakes.calls == ["image", "qa"]
    assert go(site, fakes).outcomes == ()


@pytest.mark.parametrize("who", [this_process("somebody"), Owner("a flow run", "another-machine", 7, 1.0)])
def test_a_group_that_somebody_works_on_is_left_alone(site, fakes, who):
    queue = site.queue()
    site.image_stem(G).with_name(f"{G}.img.image.pbcor.fits").unlink()
    queue.requeue(G)
    queue.claim(G, who)
    before = queue.group(G)
    (outcome,) = go(site, fakes).outcomes
    assert (outcome.state, outcome.why) == ("left alone", f"its group is being worked on by {who.name}")
    assert queue.group(G) == before
    assert fakes.calls == []


def test_a_group_that_is_claimed_after_the_search_is_left_alone(site, fakes):
    site.image_stem(G).with_name(f"{G}.img.image.pbcor.fits").unlink()
    wanted = find_unimaged(site, tools=fakes.tools())
    site.queue().requeue(G)
    site.queue().claim(G, Owner("somebody", "another-machine", 7, 1.0))
    (outcome,) = backfill(site, wanted, tools=fakes.tools()).outcomes
    assert outcome.state == "left alone"
    assert site.queue().group(G).owner == "somebody"


def test_a_pending_group_that_was_handed_out_is_left_to_its_run(site, fakes):
    site.image_stem(G).with_name(f"{G}.img.image.pbcor.fits").unlink()
    site.queue().requeue(G)
    site.queue().take_dispatchable(1)
    (outcome,) = go(site, fakes).outcomes
    assert (outcome.state, fakes.calls) == ("left alone", [])


def test_a_group_that_waits_for_gains_is_done_when_there_is_a_set(site):
    fakes = steps.Fakes(calibrator=False)
    steps.arrive(site)
    scan_arrivals(site, tools=fakes.tools())
    run_group(site, G, tools=fakes.tools())
    (left,) = go(site, fakes).outcomes
    assert (left.state, left.why) == ("left alone", f"there is no calibration set for MJD {MID:.5f} yet")
    steps.put_set(site, "calset_later", MID + 0.01)
    assert states(go(site, fakes)) == {G: "imaged"}


# -- sets that the queue does not know --------------------------------------------------------------------------


def test_a_foreign_set_is_calibrated_imaged_recorded_and_judged_by_its_own_time(site, fakes, tmp_path):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    ms = put_foreign(tmp_path / "elsewhere" / "deep", name="whatever")
    (outcome,) = go(site, fakes, tmp_path / "elsewhere").outcomes
    assert (outcome.group_id, outcome.state) == (FOREIGN, "imaged")
    assert fakes.calls == ["read_ms", "read_ms", "apply", "image", "qa"]
    row = site.products().ms(ms)
    assert row is not None
    assert (row.status, row.stage, row.cal_applied, row.calibration_set) == ("done", "imaged", 1, "calset_near")
    assert row.start_mjd == pytest.approx(mjd(FOREIGN) - 6.3 / DAY, abs=1.0 / DAY)
    (image,) = site.products().images(ms_path=ms)
    assert (image.group_id, image.calibration_set) == (FOREIGN, "calset_near")
    assert [a.name for a in site.products().qa_artifacts(FOREIGN)] == ["image.png"]
    assert [g.group_id for g in site.queue().groups()] == [G]
    fakes.calls.clear()
    assert go(site, fakes, tmp_path / "elsewhere").outcomes == ()
    assert fakes.calls == []


def test_images_of_foreign_sets_go_where_one_says(site, fakes, tmp_path):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    put_foreign(tmp_path / "elsewhere")
    (outcome,) = go(site, fakes, tmp_path / "elsewhere", out_dir=tmp_path / "out").outcomes
    assert outcome.image == str(tmp_path / "out" / f"{FOREIGN}.img.image.pbcor.fits")


def test_a_foreign_set_without_gains_waits_until_there_are_some(site, fakes, tmp_path):
    ms = put_foreign(tmp_path / "elsewhere", "2025-11-20T00:00:00")
    assert states(go(site, fakes, ms.parent)) == {"2025-11-20T00:00:00": "waiting_for_gains"}
    row = site.products().ms(ms)
    assert row is not None
    assert row.status == "skipped_no_caltables"
    assert "apply" not in fakes.calls
    assert states(go(site, fakes, ms.parent)) == {"2025-11-20T00:00:00": "left alone"}
    steps.put_set(site, "calset_late", mjd("2025-11-20T00:00:00"))
    assert states(go(site, fakes, ms.parent)) == {"2025-11-20T00:00:00": "imaged"}


def test_one_bad_set_does_not_stop_the_others_and_all_bad_ones_are_named(site, fakes, tmp_path):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    directory = tmp_path / "elsewhere"
    (directory / "rubbish.ms").mkdir(parents=True)
    for second in range(3):
        put_foreign(directory, f"2025-10-02T03:00:0{second}")
    real = fakes.image

    def image(site: Site, ms: Path, stem: Path, **more: Any) -> Any:
        if ms.name == "2025-10-02T03:00:01.ms":
            raise ToolError("tclean fell over")
        if ms.name == "2025-10-02T03:00:02.ms":
            raise ValueError("nobody thought of this")
        return real(site, ms, stem, **more)

    fakes.image = image
    report = go(site, fakes, directory)
    assert [o.state for o in report.outcomes] == ["failed", "imaged", "failed", "failed"]
    with pytest.raises(PartialError) as error:
        report.raise_failures()
    assert error.value.exit_code == 2
    assert error.value.what.startswith("3 of 4 Measurement Sets failed")
    for word in ("rubbish.ms: ", "2025-10-02T03:00:01: tclean fell over", "2025-10-02T03:00:02: ValueError: nobody"):
        assert word in error.value.what
    failed = site.products().ms(directory / "2025-10-02T03:00:02.ms")
    assert failed is not None
    assert failed.status == "failed"
    fakes.image = real
    assert [o.state for o in go(site, fakes, directory).outcomes] == ["failed", "imaged", "imaged"]


def test_a_set_or_an_image_that_cannot_be_read_does_not_stop_the_search(site, fakes, tmp_path):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    directory = tmp_path / "elsewhere"
    shut, sick, good = (put_foreign(directory, f"2025-10-02T03:00:0{second}") for second in range(3))
    assert states(go(site, fakes, sick)) == {sick.stem: "imaged"}
    read_ms, finished = fakes.read_ms, fakes.finished_image

    def refused(ms: Path, **more: Any) -> Any:
        if ms == shut:
            raise PermissionError(errno.EACCES, "Permission denied", str(ms))
        return read_ms(ms, **more)

    def broken(stem: Path) -> Any:
        if stem.name == f"{sick.stem}.img":
            raise OSError(errno.EIO, "Input/output error", str(stem))
        return finished(stem)

    fakes.read_ms, fakes.finished_image = refused, broken
    report = go(site, fakes, directory)
    assert {o.ms: o.state for o in report.outcomes} == {str(shut): "failed", str(sick): "failed", str(good): "imaged"}
    with pytest.raises(PartialError) as error:
        report.raise_failures()
    assert f"{shut.name}: [Errno 13] Permission denied" in error.value.what
    assert f"{sick.name}: its image cannot be looked at: [Errno 5] Input/output error" in error.value.what


def test_a_file_that_goes_while_it_is_looked_at_means_that_its_set_changes(site, fakes, tmp_path, monkeypatch):
    ms = put_foreign(tmp_path / "elsewhere")
    is_file = Path.is_file

    def goes(path: Path) -> bool:
        there = is_file(path)
        if path == ms / "table.dat":
            path.unlink()
        return there

    def read_ms(path: Path) -> Any:
        found = fakes.read_ms(path)
        monkeypatch.setattr(Path, "is_file", goes)
        return found

    (found,) = find_unimaged(site, ms.parent, tools=dataclasses.replace(fakes.tools(), read_ms=read_ms))
    assert (found.state, found.why) == ("left alone", "it still changes")


def test_a_full_disk_fails_that_set_and_loses_nothing(site, fakes, tmp_path):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    ms = put_foreign(tmp_path / "elsewhere")
    fakes.fail["image"] = StorageError("no space left")
    assert states(go(site, fakes, ms.parent)) == {FOREIGN: "failed"}
    assert (ms / "table.dat").exists()
    assert list(site.scratch_dir.iterdir()) == []
    fakes.fail.clear()
    assert states(go(site, fakes, ms.parent)) == {FOREIGN: "imaged"}


class Killed(BaseException):
    """The end of a process, which nothing in it can catch."""


@pytest.mark.parametrize("end", [Killed(), StorageError("no space left")])
@pytest.mark.parametrize("again", [False, True])
def test_a_set_is_judged_though_the_first_try_ended_between_its_image_and_that(site, fakes, tmp_path, end, again):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    ms = put_foreign(tmp_path / "elsewhere")
    if again:  # one that had an image before, which is gone
        go(site, fakes, ms.parent)
        site.image_stem(FOREIGN).with_name(f"{FOREIGN}.img.image.pbcor.fits").unlink()
    fakes.fail["qa"] = end
    if isinstance(end, Killed):
        with pytest.raises(Killed):
            go(site, fakes, ms.parent)
    else:
        assert states(go(site, fakes, ms.parent)) == {FOREIGN: "failed"}
    row = site.products().ms(ms)
    assert row is not None
    assert row.status != "done"
    assert site.products().scores("group", FOREIGN) == []
    fakes.fail.clear()
    assert states(go(site, fakes, ms.parent)) == {FOREIGN: "imaged"}
    assert [score.verdict for score in site.products().scores("group", FOREIGN)] == ["good"]
    assert go(site, fakes, ms.parent).outcomes == ()


def test_what_was_said_of_an_earlier_image_is_not_said_of_a_set_that_failed_since(site, fakes, tmp_path):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    ms = put_foreign(tmp_path / "elsewhere")
    go(site, fakes, ms.parent)
    site.image_stem(FOREIGN).with_name(f"{FOREIGN}.img.image.pbcor.fits").unlink()
    fakes.good = False
    assert states(go(site, fakes, ms.parent)) == {FOREIGN: "failed"}
    assert site.products().scores("group", FOREIGN) == []
    assert site.products().qa_artifacts(FOREIGN) == []


def test_a_bad_image_is_not_recorded(site, fakes, tmp_path):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    ms = put_foreign(tmp_path / "elsewhere")
    fakes.good = False
    (outcome,) = go(site, fakes, ms.parent).outcomes
    assert outcome.state == "failed"
    assert "is not good: peak 2.0 times the noise" in outcome.why
    assert site.products().images(ms_path=ms) == []


def test_two_copies_of_the_same_data_are_imaged_once(site, fakes, tmp_path):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    one, two = (put_foreign(tmp_path / "elsewhere" / name) for name in ("a", "b"))
    report = go(site, fakes, tmp_path / "elsewhere")
    assert [(o.ms, o.state) for o in report.outcomes] == [(str(one), "imaged"), (str(two), "left alone")]
    assert report.outcomes[1].why == f"it holds the same data as {one}"


def test_a_copy_of_a_group_that_has_a_good_image_needs_none(site, fakes, tmp_path):
    copy = tmp_path / "elsewhere" / "copy.ms"
    copy.mkdir(parents=True)
    (copy / "table.dat").write_text(f"start {60950.0 + 3723.25 / 86400!r}")
    assert go(site, fakes, tmp_path / "elsewhere").outcomes == ()


def test_a_set_whose_lock_somebody_holds_is_left_alone(site, fakes, tmp_path):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    put_foreign(tmp_path / "elsewhere")
    with sole_owner(site.group_lock(FOREIGN)):
        (outcome,) = go(site, fakes, tmp_path / "elsewhere").outcomes
    assert outcome.state == "left alone"
    assert outcome.why.startswith(f"group {FOREIGN} is held by process")


def test_a_set_that_is_being_copied_is_left_alone(site, fakes, tmp_path):
    from dataclasses import replace

    patient = replace(site, ingest=site.ingest.model_copy(update={"settle_s": 3600.0}))
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    put_foreign(tmp_path / "elsewhere")
    (outcome,) = go(patient, fakes, tmp_path / "elsewhere").outcomes
    assert (outcome.state, outcome.why) == ("left alone", "it still changes")


# -- where is looked --------------------------------------------------------------------------------------------


def test_neither_sets_nor_quarantine_nor_scratch_nor_hidden_directories_are_entered(site, fakes):
    out = site.output_dir
    put_foreign(out / "a" / "b")
    for place in (out / f"{FOREIGN}.ms" / "SUB", site.quarantine_dir() / "2026-01-01", out / ".hidden"):
        put_foreign(place, "2025-10-02T05:00:00")
    put_foreign(site.scratch_dir, "2025-10-02T06:00:00")
    shutil.rmtree(out / f"{FOREIGN}.ms")
    found = find_unimaged(site, tools=fakes.tools())
    assert [Path(one.ms) for one in found] == [out / "a" / "b" / f"{FOREIGN}.ms"]


@pytest.mark.parametrize("linked", [False, True])
def test_nothing_is_imaged_that_lies_in_quarantine_or_scratch_however_it_is_named(site, fakes, tmp_path, linked):
    day = site.quarantine_dir() / "2026-01-01"
    ms = put_foreign(day)
    put_foreign(site.scratch_dir, "2025-10-02T06:00:00")
    link = tmp_path / "link"
    for place in (site.quarantine_dir(), day, ms, site.scratch_dir):
        if linked:
            link.symlink_to(place)
        with pytest.raises(InputError, match="whose sets are not imaged"):
            find_unimaged(site, link if linked else place, tools=fakes.tools())
        link.unlink(missing_ok=True)
    link.symlink_to(site.output_dir)
    assert find_unimaged(site, link if linked else site.output_dir, tools=fakes.tools()) == []


def test_a_set_of_the_queue_is_known_by_whatever_link_leads_to_it(site, fakes, tmp_path):
    site.image_stem(G).with_name(f"{G}.img.image.pbcor.fits").unlink()
    (tmp_path / "link").symlink_to(site.output_dir)
    (found,) = find_unimaged(site, tmp_path / "link", tools=fakes.tools())
    assert (found.ms, found.through_queue) == (str(site.ms_path(G)), True)


def test_a_night_is_a_utc_day_of_the_data(site, fakes):
    for start in ("2025-10-01T23:59:50", "2025-10-02T00:00:10", "2025-10-02T23:59:50", "2025-10-03T00:00:10"):
        put_foreign(site.output_dir, start)
    found = find_unimaged(site, night=date(2025, 10, 2), tools=fakes.tools())
    assert [one.group_id for one in found] == ["2025-10-02T00:00:10", "2025-10-02T23:59:50"]


def test_what_is_no_night_or_no_directory_is_said(site, fakes, tmp_path):
    with pytest.raises(InputError, match="is not a night"):
        parse_night("yesterday")
    with pytest.raises(MissingError, match="no directory"):
        find_unimaged(site, tmp_path / "nowhere", tools=fakes.tools())


def test_only_looking_makes_no_database(tmp_path):
    contimg = {"ingest": {"settle_s": 0}}
    site = Site.from_settings(Settings.model_validate({"state_dir": tmp_path / "state", "contimg": contimg}))
    put_foreign(site.output_dir)
    (found,) = find_unimaged(site, tools=steps.Fakes().tools(), look_only=True)
    assert (found.group_id, found.why) == (FOREIGN, "it has no image")
    assert not list(site.state_dir.glob("*.sqlite3*"))


def test_what_was_put_aside_needs_no_image(site, fakes):
    tools = fakes.tools()
    site.registry().retire(f"calset_{G}", "of no use")
    later = datetime.now(UTC).timestamp() + 40 * DAY
    tidy_up(site, now=later, force=True, tools=tools)
    assert not site.ms_path(G).exists()
    assert go(site, fakes).outcomes == ()
    assert find_unimaged(site, site.output_dir, tools=tools) == []


def test_a_group_that_was_handed_out_after_the_search_is_left_to_its_run(site, fakes):
    site.image_stem(G).with_name(f"{G}.img.image.pbcor.fits").unlink()
    wanted = find_unimaged(site, tools=fakes.tools())
    site.queue().requeue(G)
    site.queue().take_dispatchable(1)
    (outcome,) = backfill(site, wanted, tools=fakes.tools()).outcomes
    assert (outcome.state, fakes.calls) == ("left alone", [])


# -- two at once ------------------------------------------------------------------------------------------------


def test_a_foreign_set_that_two_have_found_is_imaged_once(site, fakes, tmp_path):
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    ms = put_foreign(tmp_path / "elsewhere")
    wanted = find_unimaged(site, ms.parent, tools=fakes.tools())
    assert states(backfill(site, wanted, tools=fakes.tools())) == {FOREIGN: "imaged"}
    fakes.calls.clear()
    before = site.products().ms(ms), site.products().images(ms_path=ms)
    (outcome,) = backfill(site, wanted, tools=fakes.tools()).outcomes
    assert (outcome.state, outcome.why) == ("left alone", "it needs no image any more")
    assert (fakes.calls, (site.products().ms(ms), site.products().images(ms_path=ms))) == ([], before)


def test_a_group_that_two_have_found_is_done_once(site, fakes):
    site.image_stem(G).with_name(f"{G}.img.image.pbcor.fits").unlink()
    wanted = find_unimaged(site, tools=fakes.tools())
    assert states(backfill(site, wanted, tools=fakes.tools())) == {G: "imaged"}
    before = site.queue().group(G)
    (outcome,) = backfill(site, wanted, tools=fakes.tools()).outcomes
    assert (outcome.state, outcome.why) == ("left alone", "it needs no image any more")
    assert site.queue().group(G) == before


def test_a_group_that_another_one_requeues_first_is_left_to_it(site, fakes, monkeypatch):
    site.image_stem(G).with_name(f"{G}.img.image.pbcor.fits").unlink()
    wanted = find_unimaged(site, tools=fakes.tools())
    requeue = Queue.requeue

    def too_late(queue: Queue, group_id: str) -> Any:
        requeue(queue, group_id)
        return requeue(queue, group_id)

    monkeypatch.setattr(Queue, "requeue", too_late)
    (outcome,) = backfill(site, wanted, tools=fakes.tools()).outcomes
    assert (outcome.state, outcome.why) == ("left alone", f"group {G} is pending, not completed or failed")


@pytest.mark.parametrize("whose", ["the queue's", "foreign"])
def test_a_database_that_stays_locked_has_failed_the_set_and_says_so(site, fakes, tmp_path, whose):
    site.image_stem(G).with_name(f"{G}.img.image.pbcor.fits").unlink()
    steps.put_set(site, "calset_near", mjd(FOREIGN))
    ms = put_foreign(tmp_path / "elsewhere") if whose == "foreign" else None
    fakes.fail["image"] = BusyError("products.sqlite3 stayed locked for 30 s")
    (outcome,) = go(site, fakes, ms).outcomes
    assert (outcome.state, outcome.why) == ("failed", "products.sqlite3 stayed locked for 30 s")


def test_a_group_that_is_taken_away_meanwhile_is_left_to_who_took_it(site, fakes):
    site.image_stem(G).with_name(f"{G}.img.image.pbcor.fits").unlink()
    image = fakes.image

    def slow(*told: Any, **more: Any) -> Any:
        site.queue().reprocess(G, force=True)
        site.queue().claim(G, Owner("somebody", "another-machine", 7, 1.0))
        return image(*told, **more)

    fakes.image = slow
    (outcome,) = go(site, fakes).outcomes
    assert outcome.state == "left alone"
    assert "is no longer held by" in outcome.why
    assert site.queue().group(G).owner == "somebody"
