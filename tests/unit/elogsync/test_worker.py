"""Syncing from a logbook whose truth is known."""

from __future__ import annotations

import threading

import pytest

from nightbeam.catalog import Access
from nightbeam.core.errors import NightbeamError
from nightbeam.elog.model import Resource
from nightbeam.elog.remote import ServiceDownError
from nightbeam.elogsync.model import Policy, Reason
from nightbeam.elogsync.worker import look_around, plan_of, sync

pytestmark = pytest.mark.slow


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


def test_what_was_not_read_before_the_end_is_read_by_the_next_update_however_quiet(run, same, fake, three, book):
    fake.fail(None, "401", route="proposal")
    assert all(set(outcome.errors) <= {Resource.QUESTIONNAIRE} for outcome in run().outcomes)
    fake.recover()
    with book.database.write() as connection:  # as a kill before the questionnaire leaves it
        connection.exec_driver_sql("DELETE FROM sync_state WHERE resource = 'questionnaire'")
    assert run(everything=False, hours=1e-6).failed == ()
    same()


@pytest.mark.parametrize("kind", ["html", "redirect", "401"])
def test_a_questionnaire_service_that_wants_a_login_does_not_end_the_sync(run, same, fake, three, kind):
    fake.fail(None, kind, route="proposal")
    report = run()
    assert report.stopped is None
    assert all(outcome.attempted and set(outcome.errors) <= {Resource.QUESTIONNAIRE} for outcome in report.outcomes)
    assert report.failed
    fake.recover()
    assert run(only_failed=True).failed == ()
    same()


@pytest.mark.parametrize("status", ["404", "403"])
def test_one_list_that_is_not_given_is_a_failure_of_that_list_and_not_the_end_of_the_experiment(
    run, same, fake, three, book, status
):
    run()
    fake.fail(None, status, route=f"{three[0]}/runs$")
    (failed,) = run(full=True).failed
    assert (failed.experiment_id, set(failed.errors)) == (three[0], {Resource.RUNS})
    assert book.experiment(three[0]).status == Access.OK.value
    assert book.state(three[0])[Resource.RUNS].status == "failed"
    assert book.state(three[0])[Resource.FILES].status == "ok"
    fake.recover()
    assert run(everything=False, hours=1e-6).failed == ()
    same()


def test_who_asks_for_an_experiment_that_is_gone_is_told(fake, client, book, run, three):
    run()
    fake.delete_experiment(three[0])
    (outcome,) = sync(client, book, plan_of([three[0]], book)).outcomes
    assert outcome.failed
    assert "what is stored stays" in outcome.notes[0]
    assert book.experiment(three[0]).status == Access.GONE.value
    assert sync(client, book, plan_of([three[0]], book, reason=Reason.FAILED)).failed == ()


def test_a_service_that_answers_nothing_any_more_is_not_asked_to_the_bitter_end(fake, client, book, run):
    fake.populate(12, 2, 1, 1, parameters=14, fields=2, seed=6)
    run()
    fake.fail(None, "503", route="^[a-z]+[0-9]+/")
    fake.forget()
    report = run(full=True)
    assert isinstance(report.stopped, ServiceDownError)
    assert "10 questions in a row" in report.stopped.what
    assert len(report.failed) == 12
    assert len(fake.requests) < 3 * 10 + 3 * 8 + 2  # attempts of ten, of those that were on their way, and the lists
    fake.recover()
    assert run().failed == ()


def test_a_sync_that_is_told_to_stop_does_not_ask_for_the_next_list(fake, client, book, three):
    stop, answer = threading.Event(), client.entries

    def entries(experiment):
        stop.set()
        return answer(experiment)

    client.entries = entries
    plan = look_around(client, book, Policy(everything=True))
    report = sync(client, book, plan, jobs=1, stop=stop)
    first = next(outcome for outcome in report.outcomes if outcome.attempted)
    assert first.errors[Resource.RUNS] == "not asked for: the sync was ended before"
    assert Resource.ENTRIES not in first.errors
    assert {request.route for request in fake.requests} <= {"experiment_names_updated_within", "experiments", "elog"}


def test_what_makes_no_sense_does_not_make_what_is_stored_missing(run, fake, three, book):
    run()
    experiment = three[0]
    definitions = len(list(book.documents(Resource.WORKFLOWS, experiment)))
    held = fake.truth(experiment).entries
    entry = next(iter(held))
    fake.change_entry(experiment, entry, _id=None)
    report = run(full=True)
    assert report.failed == ()
    (told,) = [outcome for outcome in report.outcomes if outcome.notes]
    assert "1 documents of elog make no sense" in told.notes[0] or "1 documents" in " ".join(told.notes)
    assert book.document(Resource.ENTRIES, experiment, entry)["_id"] == entry
    assert report.change.missing == 0
    assert len(list(book.documents(Resource.WORKFLOWS, experiment))) == definitions


def test_entries_that_the_logbook_does_not_have_any_more_are_told_of(run, fake, three, book):
    run()
    held = fake._held[three[0]]
    held.entries.pop(next(iter(held.entries)))
    held.version = -1
    report = run(full=True)
    assert report.change.missing == 1
    assert any("1 entries are no longer in the logbook" in note for o in report.outcomes for note in o.notes)
