"""The mirror of the logbook against a truth that is known, after every kind of change."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from nightbeam.catalog import Access, Logbook
from nightbeam.elog.model import Resource
from nightbeam.testing.elog_service import FakeLogbook

pytestmark = pytest.mark.system

_helpers = runpy.run_path(str(Path(__file__).resolve().parents[2] / "elog_mirror.py"))
asker, differences, go, ledger, mirrored, nothing_lost = (
    _helpers[name] for name in ("asker", "differences", "go", "ledger", "mirrored", "nothing_lost")
)


def threads(fake: FakeLogbook, x: list[str]) -> None:
    first = fake.post(x[0], "<p>Ice?</p>", title="Ice", tags=["jet", "Σ"], run_num=2)
    answer = fake.reply(x[0], first["_id"], "Yes")
    fake.reply(x[0], answer["_id"], "No more")
    fake.reply(x[0], next(iter(fake.truth(x[0]).entries)), "to an old one")


def edits(fake: FakeLogbook, x: list[str]) -> None:
    oldest = next(iter(fake.truth(x[1]).entries))
    for n in range(3):
        fake.edit(x[1], oldest, f"version {n}", editor="zoë", title="Étape", tags=[f"v{n}"], run_num=n + 1)


def deletions(fake: FakeLogbook, x: list[str]) -> None:
    for entry in list(fake.truth(x[1]).entries)[::3]:
        fake.delete_entry(x[1], entry, by="cleaner")


def runs(fake: FakeLogbook, x: list[str]) -> None:
    fake.end_run(x[0])
    fake.start_run(x[0], params={"DAQ Detectors/New|Epix-0": True, "DAQ Detector Totals/Events": 7}, sample="ice")
    fake.start_run(x[1], 99)
    fake.set_params(x[0], 1, {"late": float("nan"), "nul\0": "\0", "beam on": None, "big": 2**70})
    fake.set_editable(x[0], 1, "comment", "bad")


def new_files(fake: FakeLogbook, x: list[str]) -> None:
    fake.register_file(x[0], "/new/é.h5", 1, 2**40)
    fake.register_file(x[0], "/new/no-size.h5", 2, None, old_times=True)


def files_again(fake: FakeLogbook, x: list[str]) -> None:
    for run, path in list(fake.truth(x[1]).files)[:3]:
        fake.register_file(x[1], path, run, 5)


def located_files(fake: FakeLogbook, x: list[str]) -> None:
    for run, path in fake.truth(x[0]).files:
        fake.locate_file(x[0], path, run, "TAPE")


def workflows(fake: FakeLogbook, x: list[str]) -> None:
    made = fake.define_workflow(x[0], "#new", trigger="END_OF_RUN", changes={"run_param_val": "x"})
    fake.alter_workflow(x[0], next(iter(fake.truth(x[0]).workflow_definitions)), parameters="--other", location=None)
    job = fake.submit_job(x[0], made["_id"], 1)
    fake.alter_job(x[0], job["_id"], status="OUT_OF_ME\0MORY", counters=[{"key": "<b>n</b>", "value": "1"}])


def dropped_workflow(fake: FakeLogbook, x: list[str]) -> None:
    fake.drop_workflow(x[0], next(iter(fake.truth(x[0]).workflow_definitions)), even_with_jobs=True)


def answers(fake: FakeLogbook, x: list[str]) -> None:
    fake.set_field(x[0], "xray-energy-1", "9.5 keV", modified_time="whenever")
    fake.set_field(x[0], next(iter(fake.truth(x[0]).questionnaire)), "", by="zoë")


def another_proposal(fake: FakeLogbook, x: list[str]) -> None:
    fake.change_info(x[1], params={"PNR": "L-77777", "run_period": "26"}, contact_info="Zoë (z@example.org)")
    fake.set_field(x[1], "sample-name-1", "lysozyme")


def early_cross_posts(fake: FakeLogbook, x: list[str]) -> None:
    fake.post(x[0], "to all", to=[x[1], "Sample_Delivery_System"])


def late_cross_posts(fake: FakeLogbook, x: list[str]) -> None:
    for entry in list(fake.truth(x[0]).entries)[:3]:
        fake.cross_post(x[0], entry, "Sample_Delivery_System")


def standing_entries(fake: FakeLogbook, x: list[str]) -> None:
    fake.post("Sample Delivery System", "<p>pump</p>")


def new_experiment(fake: FakeLogbook, x: list[str]) -> None:
    fake.populate(1, 4, 2, 3, parameters=14, fields=3, odd=0.5, seed=77)


#: What is changed, and whether a full reading is needed to see it.
CHANGES: tuple[tuple[Callable[[FakeLogbook, list[str]], None], bool], ...] = (
    (threads, False), (edits, False), (deletions, True), (runs, False), (new_files, False), (files_again, False),
    (located_files, True), (workflows, False), (dropped_workflow, False), (answers, False), (another_proposal, False),
    (early_cross_posts, False), (late_cross_posts, True), (standing_entries, False), (new_experiment, False),
)  # fmt: skip


def test_after_every_change_the_mirror_is_the_truth_and_nothing_stored_disappears(fake: FakeLogbook, logbook_url: str):
    experiments = fake.populate(3, 12, 4, 8, parameters=16, fields=6, jobs=4, standing=1, odd=0.2, seed=11)
    book = Logbook(logbook_url)
    with asker(fake) as client:
        report = go(client, book)
        assert (report.failed, differences(book, fake)) == ((), [])
        rows = ledger(book)
        assert len(rows) > 100
        for change, full in CHANGES:
            change(fake, experiments)
            assert differences(book, fake) != [], change.__name__
            report = go(client, book, full=full, names=("Sample Delivery System",))
            assert (change.__name__, report.failed, differences(book, fake)) == (change.__name__, (), [])
            assert report.change.written > 0, change.__name__
            before, rows = rows, nothing_lost(rows, book)
            assert len(rows) > len(before) or change in (
                deletions, files_again, located_files, dropped_workflow,
            ), change.__name__  # fmt: skip
        for full in (False, True):
            calm = go(client, book, full=full, names=("Sample Delivery System",))
            assert (calm.failed, calm.change.written, ledger(book)) == ((), 0, rows)
    assert book.problems() == []
    assert fake.traffic.writes == ()


def test_renamed_lost_and_removed_experiments_stay_as_they_were(fake: FakeLogbook, logbook_url: str):
    a, b, c, d = fake.populate(4, 8, 3, 4, parameters=14, fields=4, seed=12)
    book = Logbook(logbook_url)
    status = lambda: {row.experiment_id: row.status for row in book.experiments()}  # noqa: E731
    with asker(fake) as client:
        go(client, book)
        rows, known = ledger(book), {key: mirrored(book, key) for key in (a, b, c, d)}

        fake.rename(a, "mfx999999925", errors=3)
        fake.deny(b)
        fake.delete_experiment(c)
        fake.post("mfx999999925", "after the renaming")
        first = go(client, book)
        assert first.failed == () or [(o.experiment_id, *o.errors) for o in first.failed] == [(a, Resource.INFO)]
        second = go(client, book)
        assert second.failed == ()
        assert status() == {
            a: Access.GONE, b: Access.NO_ACCESS, c: Access.GONE, d: Access.OK, "mfx999999925": Access.OK,
        }  # fmt: skip
        assert differences(book, fake, ["mfx999999925", d]) == []
        for key in (b, c):
            assert mirrored(book, key) == known[key]
        assert {k: v for k, v in mirrored(book, a).items() if k != "info"} == {
            k: v for k, v in known[a].items() if k != "info"
        }
        rows = nothing_lost(rows, book)

        fake.forget()
        go(client, book)
        assert not {a, b, c} & set(fake.traffic.by_experiment), "what is lost is asked for again and again"

        fake.allow(b)
        fake.post(b, "back")
        fake.rename("mfx999999925", a)
        report = go(client, book)
        assert report.failed == ()
        assert (status()[a], status()[b], status()["mfx999999925"]) == (Access.OK, Access.OK, Access.GONE)
        assert differences(book, fake) == []
        nothing_lost(rows, book)


def test_a_right_that_is_lost_in_the_middle_of_a_sync_takes_nothing_away(fake: FakeLogbook, logbook_url: str):
    experiments = fake.populate(3, 6, 3, 4, parameters=14, fields=3, seed=13)
    book = Logbook(logbook_url)
    with asker(fake) as client:
        go(client, book)
        rows = ledger(book)
        fake.stir(10, seed=1)
        fake.fail(None, "403", route=f"^{experiments[0]}/(runs|info)")
        fake.fail(None, "404", route=f"^{experiments[1]}/(files|info)")
        report = go(client, book, full=True)
        assert report.failed == ()
        assert sum("what is stored stays" in note for o in report.outcomes for note in o.notes) == 2
        rows = nothing_lost(rows, book)
        fake.recover()
        assert go(client, book, full=True).failed == ()
        assert {row.status for row in book.experiments()} == {Access.OK}
        assert differences(book, fake) == []
        nothing_lost(rows, book)
