"""Syncing from a logbook whose truth is known."""

from __future__ import annotations

import pytest

from nightbeam.catalog import Access
from nightbeam.core.errors import NightbeamError
from nightbeam.elog.model import Resource
from nightbeam.elogsync.model import Reason


@pytest.fixture
def three(fake):
    fake.populate(3, 12, 5, 8, parameters=15, standing=1, seed=5)
    return fake.experiments


def test_a_fresh_sync_is_the_truth_and_costs_five_requests_an_experiment(run, same, fake, three):
    report = run()
    assert report.failed == ()
    same()
    assert report.requests + 2 == len(fake.requests) <= 5 * len(three) + 2
    assert not fake.traffic.writes
    assert report.change.new > 0


def test_where_nothing_changed_nothing_is_written_and_two_questions_are_asked(run, same, fake, three, book):
    run()
    counts = book.counts()
    fake.forget()
    report = run(everything=False)
    assert report.change.written == 0
    assert report.failed == ()
    assert len(fake.requests) <= 2 * len(three) + 2
    assert book.counts() == counts
    same()


def test_what_changed_since_is_found(run, same, fake, three):
    run()
    for seed in range(4):
        fake.stir(25, seed=seed)
        report = run(everything=False)
        assert report.failed == ()
    run(full=True)
    same()


def test_an_edited_entry_comes_by_its_window(run, fake, three, book):
    run()
    experiment = three[0]
    entry = next(e for e in fake.truth(experiment).entries.values() if "parent" not in e)
    fake.edit(experiment, entry["_id"], content="<p>corrected</p>")
    fake.forget()
    run(everything=False)
    assert not any(r.route == "elog" for r in fake.requests)
    assert book.document(Resource.ENTRIES, experiment, entry["_id"])["content"] == "<p>corrected</p>"


def test_a_deletion_is_found_by_the_next_full_read_and_nothing_disappears(run, fake, three, book):
    run()
    experiment = three[0]
    entries = fake.truth(experiment).entries
    answered = {e.get(key) for e in entries.values() for key in ("parent", "root", "previous_version")}
    entry = next(e for e in entries.values() if e["_id"] not in answered)
    fake.delete_entry(experiment, entry["_id"])
    run(everything=False)
    assert "deleted_by" not in book.document(Resource.ENTRIES, experiment, entry["_id"])
    run(full=True)
    assert book.document(Resource.ENTRIES, experiment, entry["_id"])["deleted_by"]


def test_a_renamed_experiment_is_gone_under_the_old_name_and_there_under_the_new(run, same, fake, three, book):
    run()
    old = next(name for name in three if "_" not in name)
    before = len(list(book.documents(Resource.ENTRIES, old)))
    fake.rename(old, "mfx999999926")
    report = run()
    assert book.experiment(old).status == Access.GONE.value
    assert len(list(book.documents(Resource.ENTRIES, old))) == before
    assert report.failed == ()
    same()


def test_an_experiment_that_may_not_be_read_any_more_stays_and_comes_back(run, same, fake, three, book):
    run()
    denied = three[0]
    before = len(list(book.documents(Resource.ENTRIES, denied)))
    fake.deny(denied)
    report = run()
    assert book.experiment(denied).status == Access.NO_ACCESS.value
    assert report.failed == ()
    assert "may not be read" in " ".join(note for outcome in report.outcomes for note in outcome.notes)
    assert len(list(book.documents(Resource.ENTRIES, denied))) == before
    fake.allow(denied)
    run()
    assert book.experiment(denied).status == Access.OK.value
    same()


def test_a_list_that_fails_is_noted_and_read_again_and_the_others_are_there(run, same, fake, three, book):
    fake.fail(None, "503", route=f"{three[0]}/files$")
    report = run()
    (failed,) = report.failed
    assert failed.experiment_id == three[0]
    assert set(failed.errors) == {Resource.FILES}
    assert book.state(three[0])[Resource.FILES].status == "failed"
    assert book.state(three[0])[Resource.RUNS].status == "ok"
    fake.recover()
    fake.forget()
    again = run(everything=False, hours=1e-6)
    assert [o.experiment_id for o in again.outcomes if Reason.FAILED in o.reasons] == [three[0]]
    assert again.failed == ()
    same()


def test_without_a_credential_the_sync_ends_and_says_who_was_not_read(run, fake, three, book):
    run()
    fake.fail(None, "401", route="elog|runs|files")
    report = run(full=True)
    assert report.stopped is not None
    assert report.stopped.exit_code == 77
    assert any("HTTP status 401" in error for outcome in report.outcomes for error in outcome.errors.values())
    assert len(report.failed) == len(report.outcomes)


@pytest.mark.parametrize("kind", ["503", "reset", "short-body", "truncated", "html", "401", "duplicates", "500"])
def test_no_fault_takes_a_row_away_and_the_next_sync_repairs(run, same, fake, three, book, kind):
    run()
    counts = book.counts(present=True)
    fake.stir(20, seed=3)
    fake.fail(None, kind, chance=0.3)
    report, refused = None, None
    try:
        report = run(full=True)
    except NightbeamError as error:  # the two lists of experiments can fail too
        refused = error
    if report is None:
        assert refused.exit_code in (65, 69, 77)
    else:
        failed = any(state.status == "failed" for state in book.states())
        assert (report.failed != ()) == (failed or report.stopped is not None)
    after = book.counts(present=True)
    assert all(after[table] >= rows for table, rows in counts.items() if table != "experiments")
    fake.recover()
    report = run(full=True)
    assert report.failed == ()
    same()
