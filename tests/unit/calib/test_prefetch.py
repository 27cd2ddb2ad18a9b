import errno
import hashlib
import os
import pickle
import threading

import numpy as np
import pytest

from nightbeam.calib import files
from nightbeam.calib.files import entry_path, link_entry, list_entries, lock_path, open_entry, remove_stale
from nightbeam.calib.prefetch import Action, prefetch
from nightbeam.calib.remote import CalibService
from nightbeam.core.errors import (
    AuthError,
    BusyError,
    InputError,
    MissingError,
    NightbeamError,
    RejectedError,
    StorageError,
    UnavailableError,
    UsageError,
)
from nightbeam.core.locks import sole_owner
from nightbeam.testing.calib_service import FakeCalibService
from nightbeam.testing.xtc2_files import detector, write_run

EXP = "tmoc00118"
EPIX, HSD = "epix10ka_3926196238-0175152897_1111111111-2222222222", "hsd_detnum1234"
INFO = {"epixquad": EPIX, "hsd": HSD}


@pytest.fixture
def fake():
    with FakeCalibService(hang_s=1.0) as service:
        service.add_detector(EPIX)
        service.add_detector(HSD)
        service.deploy(EXP, EPIX, "pedestals", np.full((7, 4, 8, 8), 1.5, np.float32), run=1)
        service.deploy(EXP, EPIX, "pixel_status", np.arange(16, dtype=np.uint64).reshape(4, 4), run=1)
        service.deploy(EXP, EPIX, "geometry", "# geometry µm\n", run=1)
        yield service


@pytest.fixture
def service(fake, patience):
    with CalibService(fake.url, **patience) as client:
        yield client


@pytest.fixture
def go(cache, service):
    def call(run=5, info=INFO, **options):
        return prefetch(EXP, output_dir=cache, service=service, run=run, det_info=info, **options)

    return call


def data_requests(fake):
    return [r for r in fake.requests if r.is_data]


def test_the_constants_of_a_run_are_fetched_and_can_be_opened(go, cache, fake):
    report = go()
    assert (report.action, report.run, report.path) == (Action.FETCHED, 5, entry_path(cache, EXP, 5))
    entry = open_entry(report.path)
    assert dict(entry.det_info) == INFO
    assert float(entry["epixquad"]["pedestals"][0][0, 0, 0, 0]) == 1.5
    assert entry["epixquad"]["geometry"][0] == "# geometry µm\n"
    assert entry["hsd"] == {}
    assert len(data_requests(fake)) == 3
    assert report.requests == len(fake.requests)
    # 7*4*8*8 float32, 16 uint64, 14 characters one of which has two bytes
    assert report.bytes_fetched == 7 * 4 * 8 * 8 * 4 + 16 * 8 + 15


def test_the_report_lists_every_constant_and_why_a_detector_has_none(go):
    rows = {(row.detector, row.ctype): row for row in go().detectors}
    assert set(rows) == {("epixquad", c) for c in ("geometry", "pedestals", "pixel_status")} | {("hsd", None)}
    pedestals = rows["epixquad", "pedestals"]
    assert (pedestals.run_from, pedestals.bytes, pedestals.fetched) == (1, 7168, True)
    assert 0 <= pedestals.age_days < 1
    assert rows["hsd", None].reason == "no constants"


def test_a_poll_with_nothing_new_asks_two_questions_a_detector_and_moves_no_array(go, fake):
    go()
    fake.forget()
    report = go()
    assert report.action is Action.CURRENT
    assert report.requests == len(fake.requests) <= 2 * len(INFO)
    assert data_requests(fake) == []
    assert report.bytes_fetched == 0


def test_a_new_process_has_the_short_names_from_the_cache(fake, cache):
    def ask():
        fake.forget()
        with CalibService(fake.url) as service:
            return prefetch(EXP, output_dir=cache, service=service, run=5, det_info=INFO).requests

    assert (ask(), ask()) == (3 * len(INFO) + 3, 2 * len(INFO))


def test_a_name_that_was_guessed_is_not_kept_in_the_cache(fake, cache):
    uid = "hsd_newone12"

    def ask():
        with CalibService(fake.url) as service:
            report = prefetch(EXP, output_dir=cache, service=service, run=5, det_info={"hsd2": uid})
        return [row.ctype for row in report.detectors]

    assert ask() == [None]  # too short to be unknown: taken for a name itself
    fake.add_detector(uid, "hsd_000001")
    fake.deploy(EXP, uid, "pedestals", np.ones(3, np.float32), run=1)
    assert ask() == ["pedestals"]


def test_all_questions_of_a_pass_together_have_a_limit(fake, cache, monkeypatch):
    monkeypatch.setattr("nightbeam.calib.prefetch._QUESTIONS_S", 8.0)
    info = {f"d{n}": f"epix10ka_0000000000-000000000{n}_1" for n in range(8)}
    for uid in info.values():
        fake.add_detector(uid)
        fake.deploy(EXP, uid, "pedestals", np.ones(3, np.float32), run=1)
    fake.fail(None, "503", path="^cdb_epix10ka_")
    waits = []  # nothing else takes time, so it is the same on every machine

    def clock():
        return sum(waits)

    with CalibService(fake.url, sleep=waits.append, clock=clock, jitter=lambda: 0.5, deadline_s=6.0) as service:
        # each of eight would be asked for 6 s
        report = prefetch(EXP, output_dir=cache, service=service, run=5, det_info=info)
    assert 6 < clock() < 8
    assert sum("incomplete" in (row.reason or "") for row in report.detectors) == 8


def test_what_is_not_asked_within_the_limit_is_not_taken_for_no_constants(go, cache, monkeypatch):
    go()
    monkeypatch.setattr("nightbeam.calib.prefetch._QUESTIONS_S", 0.0)
    with pytest.raises(UnavailableError, match="was not asked: earlier questions took all the time"):
        go(6)
    assert [entry.run for entry in list_entries(cache)] == [5]
    assert float(open_entry(entry_path(cache, EXP, 5))["epixquad"]["pedestals"][0][0, 0, 0, 0]) == 1.5


def test_the_next_run_with_the_same_documents_shares_the_content(go, fake, cache):
    first = go(5)
    fake.forget()
    second = go(6)
    assert second.action is Action.LINKED
    assert second.path.samefile(first.path)
    assert data_requests(fake) == []
    assert go(6).action is Action.CURRENT


def test_only_what_changed_is_fetched_and_readers_keep_the_old(go, fake):
    old = open_entry(go().path)["epixquad"]["pedestals"][0]
    fake.deploy(EXP, EPIX, "pedestals", np.full((7, 4, 8, 8), 2.5, np.float32), run=1)
    fake.forget()
    report = go()
    assert report.action is Action.FETCHED
    assert [row.ctype for row in report.detectors if row.fetched] == ["pedestals"]
    assert len(data_requests(fake)) == 1
    entry = open_entry(report.path)
    assert float(entry["epixquad"]["pedestals"][0].min()) == 2.5
    assert list(entry["epixquad"]["pixel_status"][0].ravel()) == list(range(16))
    assert float(old.max()) == 1.5


def test_a_constant_that_another_run_has_is_copied_from_it(go, fake):
    go(5)
    fake.deploy(EXP, EPIX, "pedestals", np.full((7, 4, 8, 8), 9.0, np.float32), run=10)
    fake.forget()
    report = go(12)
    assert report.action is Action.FETCHED
    assert [row.ctype for row in report.detectors if row.fetched] == ["pedestals"]
    assert float(open_entry(go(5).path)["epixquad"]["pedestals"][0].max()) == 1.5


def test_a_constant_that_is_damaged_in_the_cache_is_fetched_and_not_copied(go, fake):
    path = go(5).path
    place = open_entry(path).index.detectors["epixquad"].constants["pixel_status"].data["array"]
    with path.open("r+b") as file:
        file.seek(place["offset"])
        file.write(b"\xff")
    fake.deploy(EXP, EPIX, "pedestals", np.zeros((2, 2), np.float32), run=1)
    report = go(5)
    assert sorted(row.ctype for row in report.detectors if row.fetched) == ["pedestals", "pixel_status"]
    assert int(open_entry(path)["epixquad"]["pixel_status"][0][0, 0]) == 0


def test_a_detector_of_the_other_one_asking_is_kept(go):
    go(info={"epixquad": EPIX})
    go(info={"hsd": HSD})
    assert set(open_entry(go(info={"epixquad": EPIX}).path)) == {"epixquad", "hsd"}
    assert go(info={"hsd": HSD}).action is Action.CURRENT


def test_another_unique_id_under_the_same_name_is_another_detector(go):
    go()
    report = go(info={"epixquad": HSD, "hsd": HSD})
    assert report.action is Action.FETCHED
    assert open_entry(report.path)["epixquad"] == {}


def test_an_unknown_detector_says_so_and_stops_nobody(go):
    report = go(info={"epixquad": EPIX, "opal": "opal_0123456789-0123456789"})
    assert {row.detector: row.reason for row in report.detectors}["opal"] == "unknown detector"
    assert set(open_entry(report.path)) == {"epixquad", "opal"}


def test_a_pickle_of_the_service_is_refused_and_the_rest_is_cached(go, fake):
    fake.deploy(EXP, EPIX, "evil", b"cos\nsystem\n(S'touch executed'\ntR.", run=1)
    report = go()
    why = {row.ctype: row.reason for row in report.detectors}
    assert "pickle" in why["evil"]
    assert "pedestals" in open_entry(report.path)["epixquad"]
    assert "evil" not in open_entry(report.path)["epixquad"]
    assert go().action is Action.CURRENT


def test_float64_where_float32_is_usual_is_kept_and_warned_of(go, fake, caplog):
    fake.deploy(EXP, EPIX, "pedestals", np.ones((2, 2), np.float64), run=1)
    assert open_entry(go().path)["epixquad"]["pedestals"][0].dtype == np.float64
    assert "float64" in caplog.text


# --- failures


FAULTS = [
    "503",
    "gone",
    "500",
    "429",
    "401",
    "html",
    "timeout",
    "connection-reset",
    "short-body",
    "long-body",
    "cut-body",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_the_service_does_the_last_good_file_stays(go, fake, cache, fault):
    path = go().path
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    fake.deploy(EXP, EPIX, "pedestals", np.zeros((7, 4, 8, 8), np.float32), run=1)
    fake.fail(None, fault)
    with pytest.raises(NightbeamError) as raised:
        go()
    assert type(raised.value) in (UnavailableError, AuthError, InputError)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert [p.name for p in cache.glob("calibconst*")] == [path.name]
    fake.recover()
    assert go().action is Action.FETCHED


@pytest.mark.parametrize("fault", ["short-body", "long-body", "404", "503"])
def test_data_that_are_wrong_are_never_cached(go, fake, cache, fault):
    fake.fail(None, fault, path="/gridfs/")
    with pytest.raises((InputError, MissingError, UnavailableError)):
        go()
    assert list(cache.glob("calibconst*")) == []


def test_a_hostile_shape_is_refused_and_nothing_is_cached(go, fake, cache):
    fake.fail(None, "bad-shape")
    with pytest.raises(InputError, match="data_shape"):
        go()
    assert list(cache.glob("calibconst*")) == []


def test_a_short_outage_is_sat_out(go, fake):
    fake.fail(3, "503")
    assert go().action is Action.FETCHED


def test_a_gap_is_recorded_and_filled_by_the_next_pass(go, fake):
    fake.deploy(None, EPIX, "pixel_gain", np.ones((2, 2), np.float32), run=1)
    fake.fail(None, "503", path="^cdb_epix10ka_000001/")
    report = go()
    assert any("incomplete" in (row.reason or "") for row in report.detectors)
    assert "pixel_gain" not in open_entry(report.path)["epixquad"]
    assert go().action is Action.CURRENT
    fake.recover()
    assert go().action is Action.FETCHED
    assert "pixel_gain" in open_entry(report.path)["epixquad"]


OWN = "^cdb_epix10ka_000001/"


def test_a_gap_does_not_take_away_what_is_cached(go, fake):
    fake.deploy(None, EPIX, "pixel_gain", np.ones((2, 2), np.float32), run=1)
    before = go().path.read_bytes()
    fake.fail(None, "503", path=OWN)
    report = go()
    assert report.action is Action.CURRENT
    assert any("incomplete" in (row.reason or "") for row in report.detectors)
    assert report.path.read_bytes() == before
    fake.deploy(EXP, EPIX, "pedestals", np.full((7, 4, 8, 8), 2.5, np.float32), run=1, detector_too=False)
    found = open_entry(go().path)["epixquad"]
    assert float(found["pedestals"][0].max()) == 2.5
    assert float(found["pixel_gain"][0].max()) == 1


def test_in_a_gap_a_new_run_has_what_an_earlier_one_has(go, fake):
    fake.deploy(None, EPIX, "pixel_gain", np.ones((2, 2), np.float32), run=1)
    fake.deploy(EXP, EPIX, "pedestals", np.full((7, 4, 8, 8), 2.5, np.float32), run=6)
    go(5)
    fake.fail(None, "503", path=OWN)
    found = open_entry(go(6).path)["epixquad"]
    assert float(found["pedestals"][0].max()) == 2.5
    assert float(found["pixel_gain"][0].max()) == 1


def test_one_document_that_serves_three_detectors_is_fetched_and_stored_once(go, fake, cache):
    report = go(info=dict.fromkeys(("a", "b", "c"), EPIX))
    assert len(data_requests(fake)) == 3
    found = open_entry(report.path)
    assert {float(found[name]["pedestals"][0].max()) for name in "abc"} == {1.5}
    with report.path.open("rb") as file:
        plain = pickle.load(file)["calib_const"]
    np.testing.assert_array_equal(plain["c"]["pedestals"][0], found["c"]["pedestals"][0])
    assert plain["b"]["geometry"][0] == "# geometry µm\n"
    files.verify_entry(report.path)
    places = [found.index.detectors[name].constants["pedestals"].data["array"]["offset"] for name in "abc"]
    assert len(set(places)) == 1


def spoil(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff\xff\x7f\x7f")


def pedestals_of(path):
    return open_entry(path).index.detectors["epixquad"].constants["pedestals"].data["array"]


def test_a_damaged_array_is_neither_kept_nor_linked(go, fake):
    path = go(5).path
    spoil(path, pedestals_of(path)["offset"])
    fake.forget()
    report = go(6)
    assert report.action is Action.FETCHED
    assert [r.path for r in data_requests(fake)] == [r.path for r in data_requests(fake)][:1]  # the others are sound
    assert float(open_entry(report.path)["epixquad"]["pedestals"][0].max()) == 1.5
    assert go(5).action is not Action.CURRENT
    assert float(open_entry(path)["epixquad"]["pedestals"][0].max()) == 1.5


def test_a_damaged_pickle_beside_sound_arrays_is_written_anew(go, fake):
    path = go(5).path
    spoil(path, path.read_bytes().index(b"numpy\nndarray"))
    fake.forget()
    assert go(5).action is Action.FETCHED
    assert data_requests(fake) == []
    with path.open("rb") as file:
        assert set(pickle.load(file)) == {"det_info", "calib_const"}


def test_a_directory_under_the_name_of_the_file_is_said(go, cache):
    entry_path(cache, EXP, 5).mkdir()
    with pytest.raises(RejectedError, match="is a directory"):
        go(5)
    assert list(cache.glob("*.inprogress")) == []


def test_runs_that_the_new_one_pushes_out_make_room_for_it(go, fake, cache, monkeypatch):
    for run in (1, 2, 3):
        fake.deploy(EXP, EPIX, "pedestals", np.full((7, 4, 8, 8), run, np.float32), run=run)
        go(run)
    real = files.require_space

    def small(directory, need, *, what):
        if len(list(cache.glob("*.pkl"))) > 2:
            raise StorageError("full")
        real(directory, need, what=what)

    monkeypatch.setattr(files, "require_space", small)
    fake.deploy(EXP, EPIX, "pedestals", np.full((7, 4, 8, 8), 4, np.float32), run=4)
    with pytest.raises(StorageError):
        go(4)
    assert [line.run for line in list_entries(cache)] == [1, 2, 3]
    report = go(4, keep=3)
    assert [line.run for line in list_entries(cache)] == [2, 3, 4]
    assert report.removed == (entry_path(cache, EXP, 1),)
    assert float(open_entry(report.path)["epixquad"]["pedestals"][0].max()) == 4


def test_damaged_files_are_removed_and_not_counted_among_the_kept(go, cache):
    for run in (1, 2):
        go(run)
    for run in (90, 91):
        path = entry_path(cache, EXP, run)
        path.write_bytes(b"rubbish")
        path.chmod(0o640)
    go(3, keep=2)
    assert [line.run for line in list_entries(cache)] == [2, 3]


def test_a_disk_without_room_is_said_before_anything_is_fetched(go, fake, cache, monkeypatch):
    usage = files.shutil.disk_usage(cache)
    monkeypatch.setattr("nightbeam.core.files.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match="are free"):
        go()
    assert data_requests(fake) == []
    assert list(cache.glob("calibconst*")) == []


def test_a_disk_that_fills_while_we_write_leaves_the_last_good_file(go, fake, cache, monkeypatch):
    path = go().path
    before = path.read_bytes()
    fake.deploy(EXP, EPIX, "pedestals", np.zeros((7, 4, 8, 8), np.float32), run=1)

    def full(file, body, hasher):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(files, "_write_hashed", full)
        with pytest.raises(StorageError, match="no space left"):
            go()
    assert path.read_bytes() == before
    assert sorted(p.name for p in cache.glob("*.inprogress")) == []
    assert go().action is Action.FETCHED


def test_who_watches_can_stop_a_pass(go, cache):
    seen = []

    class StopError(Exception):
        pass

    def watch(progress):
        seen.append((progress.ctype, progress.done, progress.total))
        raise StopError

    with pytest.raises(StopError):
        go(on_progress=watch)
    assert seen == [("geometry", 1, 3)]
    assert list(cache.glob("calibconst*")) == []


def test_progress_counts_constants_and_bytes(go):
    seen = []
    go(on_progress=seen.append)
    assert [(p.detector, p.done, p.total) for p in seen] == [("epixquad", n, 3) for n in (1, 2, 3)]
    assert seen[-1].bytes_done == seen[-1].bytes_total


# --- two at once


def test_the_second_of_two_waits_and_then_has_nothing_to_fetch(go, fake):
    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(data_requests(fake)) == 3


def test_somebody_who_works_for_the_experiment_too_long_is_named(go, cache):
    with sole_owner(lock_path(cache, EXP)), pytest.raises(BusyError, match="held by process"):
        go(lock_wait_s=0.1)


def test_no_lock_stays_behind(go, cache):
    go()
    assert list(lock_path(cache, EXP).parent.iterdir()) == []


def test_a_twin_that_is_removed_after_it_was_opened_is_copied(go, fake, monkeypatch):
    twin = go(5).path
    real = os.link

    def gone(source, new, **options):
        twin.unlink()
        real(source, new, **options)

    monkeypatch.setattr("os.link", gone)
    report = go(6)
    assert report.action is Action.LINKED
    assert float(open_entry(report.path)["epixquad"]["pedestals"][0].max()) == 1.5


def test_a_run_whose_twin_is_removed_meanwhile_is_written_from_what_is_mapped(go, fake, monkeypatch):
    twin = go(5).path
    fake.forget()

    def gone(existing, new, **options):
        twin.unlink()
        return link_entry(existing, new, **options)

    monkeypatch.setattr("nightbeam.calib.prefetch.link_entry", gone)
    report = go(6)
    assert report.action is Action.FETCHED
    assert data_requests(fake) == []
    assert float(open_entry(report.path)["epixquad"]["pedestals"][0].max()) == 1.5


# --- runs


@pytest.fixture
def xtc(tmp_path):
    directory = tmp_path / "xtc"
    directory.mkdir()
    epix = detector("epixquad", "epix10ka", EPIX.split("_")[1:])
    hsd = detector("hsd", "hsd", ["detnum1234"])
    write_run(directory, [epix, hsd], experiment=EXP, run=7)
    (directory / f"{EXP}-r0008-s000-c000.xtc2").write_bytes(b"not xtc2 at all, but long enough for a header")
    write_run(directory, [hsd], experiment="another01", run=99)
    (directory / f"{EXP}-rABC-s000-c000.xtc2").write_bytes(b"")
    return directory


def test_the_latest_usable_run_is_served_and_the_others_say_why_not(xtc, cache, service):
    report = prefetch(EXP, xtc_dir=xtc, output_dir=cache, service=service)
    assert (report.run, report.action) == (7, Action.FETCHED)
    assert list(report.rejected_runs) == [8]
    assert dict(open_entry(report.path).det_info) == INFO


def test_a_directory_without_usable_runs_is_no_failure(tmp_path, cache, service):
    empty = tmp_path / "empty"
    empty.mkdir()
    report = prefetch(EXP, xtc_dir=empty, output_dir=cache, service=service)
    assert (report.action, report.run, report.path) == (Action.NOTHING, None, None)
    assert "no run" in report.reason
    with pytest.raises(MissingError):
        prefetch(EXP, xtc_dir=tmp_path / "no", output_dir=cache, service=service)


def test_a_run_that_was_asked_for_and_cannot_be_used_is_an_error(xtc, cache, service):
    with pytest.raises(InputError, match="run 8"):
        prefetch(EXP, xtc_dir=xtc, output_dir=cache, service=service, run=8)
    with pytest.raises(UsageError):
        prefetch(EXP, output_dir=cache, service=service)


@pytest.mark.parametrize("name", ["../up", "a b", "x/y", ""])
def test_names_that_would_leave_the_directory_are_refused(cache, service, name):
    with pytest.raises(InputError):
        prefetch(name, output_dir=cache, service=service, run=1, det_info=INFO)
    with pytest.raises(InputError):
        prefetch(EXP, output_dir=cache, service=service, run=1, det_info={name: EPIX})


def test_a_missing_output_directory_is_named(tmp_path, service):
    with pytest.raises(MissingError, match="no directory"):
        prefetch(EXP, output_dir=tmp_path / "no", service=service, run=1, det_info=INFO)


def test_old_runs_are_removed_but_never_the_one_asked_for(go, cache):
    for run in (5, 6, 7, 8):
        go(run, keep=2)
    assert [line.run for line in list_entries(cache)] == [7, 8]
    report = go(3, keep=1)
    assert [line.run for line in list_entries(cache)] == [3, 8]
    assert [p.name for p in report.removed] == [f"calibconst_{EXP}_r0007.pkl"]


def test_temporaries_of_the_dead_are_gone_after_a_pass(go, cache):
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    part = files.part_name(entry_path(cache, EXP, 5))
    dead = part.with_name(part.name.replace(f".{os.getpid()}.", f".{child.pid}."))
    dead.write_bytes(b"half")
    go()
    assert not dead.exists()
    assert remove_stale(cache) == []
