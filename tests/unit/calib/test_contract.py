"""The contract's functions, and the thirteen rows of the original's failures with what is required of us instead."""

import errno
import inspect
import logging
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import nightbeam.calib
from nightbeam.calib import (
    detector_info_from_file,
    detector_info_from_run,
    ensure_valid_calibconst,
    files,
    get_latest_run,
    load_existing_run,
    needs_update,
    open_constants,
    try_load_calib_const_from_file,
    update_calib,
)
from nightbeam.calib import prefetch as prefetch_module
from nightbeam.calib.files import entry_path
from nightbeam.calib.remote import CalibService
from nightbeam.core.errors import InputError, NightbeamError, StorageError, UnavailableError
from nightbeam.testing.calib_service import FakeCalibService
from nightbeam.testing.xtc2_files import detector, write_run

EXP, UID, OTHER = "mfxl1033223", "jungfrau_0123456-789_abc", "jungfrau_9999999-999_xyz"
INFO = {"jf": UID}


def pedestals(value):
    return np.full((3, 2, 4, 4), value, np.float32)


@pytest.fixture
def fake():
    with FakeCalibService(hang_s=1.0) as service:
        for uid in (UID, OTHER):
            service.add_detector(uid)
        service.deploy(EXP, UID, "pedestals", pedestals(1), run=1)
        service.deploy(EXP, OTHER, "pedestals", pedestals(7), run=1)
        yield service


@pytest.fixture
def ensure(fake, cache, patience):
    with CalibService(fake.url, **patience) as service:

        def call(run, info=INFO, skip=()):
            return ensure_valid_calibconst(
                expcode=EXP,
                latest_run=run,
                latest_info=info,
                xtc_dir=None,
                skip_calib_load=skip,
                output_dir=cache,
                service=service,
            )

        yield call


def value(constants, detector="jf"):
    return float(constants[detector]["pedestals"][0].max())


def data_requests(fake):
    return [r for r in fake.requests if r.is_data]


# --- the table of spec 1.3, row by row


def test_row_1_same_ids_are_reused_only_if_the_documents_are_the_same_and_the_run_is_recorded(ensure, fake, cache):
    ensure(5)
    fake.forget()
    assert ensure(6)[1] == 6
    assert data_requests(fake) == []
    assert entry_path(cache, EXP, 6).exists()
    fake.deploy(EXP, UID, "pedestals", pedestals(2), run=7)
    assert value(ensure(7)[0]) == 2
    assert value(ensure(6)[0]) == 1


def test_row_2_a_damaged_highest_file_is_treated_as_absent_and_replaced(ensure, cache):
    ensure(5)
    path = entry_path(cache, EXP, 5)
    path.write_bytes(path.read_bytes()[:5000])
    path.chmod(0o640)
    constants, run = ensure(5)
    assert (value(constants), run) == (1, 5)
    assert value(open_constants(EXP, 5, cache)) == 1


def test_row_3_a_failure_for_one_detector_is_not_cached(ensure, fake, cache):
    ensure(5)
    before = entry_path(cache, EXP, 5).read_bytes()
    fake.deploy(EXP, UID, "pedestals", pedestals(2), run=1)
    fake.fail(None, "500", path="/gridfs/")
    assert value(ensure(5)[0]) == 1  # the good one of this very run; a warning says why
    assert entry_path(cache, EXP, 5).read_bytes() == before
    with pytest.raises(UnavailableError):
        ensure(6)
    assert not entry_path(cache, EXP, 6).exists()
    fake.recover()
    assert value(ensure(5)[0]) == 2


def test_row_4_503_is_retried_and_then_raised_but_never_ends_the_process(ensure, fake, cache):
    fake.fail(2, "503")
    assert value(ensure(5)[0]) == 1
    fake.fail(None, "503")
    with pytest.raises(UnavailableError, match="503"):
        ensure(6)


def test_row_5_one_detector_that_fails_does_not_bring_back_an_older_file_with_other_ids(ensure, fake, cache):
    ensure(5, {"jf": OTHER})
    fake.fail(None, "503", path="/gridfs/")
    with pytest.raises(UnavailableError):
        ensure(6)
    with pytest.raises(UnavailableError):
        ensure(5)  # cached, but of another detector


def test_row_6_the_requested_run_decides_and_not_the_highest_one(ensure, fake):
    fake.deploy(EXP, UID, "pedestals", pedestals(100), run=80)
    assert value(ensure(100)[0]) == 100
    constants, run = ensure(50)
    assert (value(constants), run) == (1, 50)


def test_row_7_another_detector_in_an_earlier_run_gets_its_own_constants(ensure):
    ensure(100)
    constants, run = ensure(50, {"jf": OTHER})
    assert (value(constants), run) == (7, 50)


def test_row_8_a_detector_that_was_skipped_is_fetched_when_it_is_asked_for(ensure, cache):
    both = {"jf": UID, "jf2": OTHER}
    constants, _ = ensure(5, both, skip=["jf2"])
    assert constants["jf2"] is None
    assert "jf2" not in open_constants(EXP, 5, cache)
    assert value(ensure(5, both)[0], "jf2") == 7
    assert value(ensure(5, both, skip=["jf2"])[0], "jf") == 1
    assert "jf2" in open_constants(EXP, 5, cache)  # what is there is not thrown away


def test_row_9_no_detectors_write_nothing_and_say_so(ensure, cache, caplog):
    ensure(5)
    assert ensure(6, {}) == ({}, -1)
    assert "no detectors were given" in caplog.text
    assert [p.name for p in cache.glob("calibconst*")] == [entry_path(cache, EXP, 5).name]


def test_row_10_two_writers_of_one_run_fetch_once_and_readers_never_see_half(ensure, fake, cache):
    stop, problems = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                found = open_constants(EXP, 5, cache)["jf"]["pedestals"][0]
            except FileNotFoundError:
                continue
            if len(np.unique(found)) != 1:
                problems.append(found.copy())

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=ensure, args=(5,)) for _ in range(2)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not problems
    assert len(data_requests(fake)) == 1


def test_row_11_what_a_crashed_writer_left_is_removed(ensure, cache):
    code = (
        "import os, pathlib, sys\n"
        "from nightbeam.calib.files import Payload, entry_path, write_entry\n"
        f"path = entry_path(pathlib.Path(sys.argv[1]), {EXP!r}, 5)\n"
        "die = lambda: os.kill(os.getpid(), 9)\n"
        "write_entry(path, {'d': 'd_1'}, {'d': [Payload('c', 'db', {}, die)]})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(cache)], check=False)
    assert done.returncode == -9
    assert len(list(cache.glob("*.inprogress"))) == 1
    ensure(5)
    assert list(cache.glob("*.inprogress")) == []


def test_row_12_old_runs_are_removed(ensure, cache):
    for run in range(1, 9):
        ensure(run)
    assert sorted(line.run for line in files.list_entries(cache)) == [4, 5, 6, 7, 8]
    files.collect(cache, keep=3)
    assert load_existing_run(cache, EXP) == 8
    assert sorted(line.run for line in files.list_entries(cache)) == [6, 7, 8]


def test_row_13_a_full_disk_leaves_the_old_file_and_nothing_else(ensure, fake, cache, monkeypatch):
    ensure(5)
    before = entry_path(cache, EXP, 5).read_bytes()
    fake.deploy(EXP, UID, "pedestals", pedestals(2), run=1)

    def full(file, body, hasher):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_write_hashed", full)
    assert value(ensure(5)[0]) == 1
    with pytest.raises(StorageError, match="no space left"):
        ensure(6)
    assert entry_path(cache, EXP, 5).read_bytes() == before
    assert sorted(p.name for p in cache.glob("calibconst*")) == [entry_path(cache, EXP, 5).name]


# --- nothing that was not asked for, and nothing of another detector


def test_a_skipped_detector_is_none_even_where_the_cache_has_another_one_of_that_name(ensure):
    ensure(5, {"jf": UID, "jf2": UID})
    constants, _ = ensure(5, {"jf": UID, "jf2": OTHER}, skip=["jf2"])
    assert constants["jf2"] is None


def test_detectors_beyond_the_request_are_not_handed_out(ensure):
    ensure(5, {"jf": UID, "jf2": OTHER})
    assert set(ensure(5, {"jf": UID})[0]) == {"jf"}


def test_what_is_returned_was_opened_before_anybody_could_replace_it(ensure, fake, cache, monkeypatch):
    real = prefetch_module.prefetch_and_open

    def overtaken(*arguments, **options):
        found = real(*arguments, **options)
        real(*arguments, **(options | {"det_info": {"jf": OTHER}}))
        files.collect(cache, keep=1)
        for path in cache.glob("*.pkl"):
            path.unlink()
        return found

    monkeypatch.setattr("nightbeam.calib.contract.prefetch_and_open", overtaken)
    assert value(ensure(5)[0]) == 1


def test_whoever_compares_ids_sees_that_a_skipped_detector_is_not_served(ensure, cache):
    both = {"jf": UID, "jf2": OTHER}
    ensure(5, both, skip=["jf2"])
    assert detector_info_from_file(cache, EXP, 5) == {"jf": UID}
    with entry_path(cache, EXP, 5).open("rb") as file:
        plain = pickle.load(file)
    assert plain["det_info"] == {"jf": UID}
    assert plain["calib_const"]["jf2"] is None
    assert needs_update(both, plain["det_info"])


def test_a_skipped_detector_that_is_cached_stays_when_another_one_changes(ensure, fake, cache):
    both = {"jf": UID, "jf2": OTHER}
    ensure(5, both)
    fake.deploy(EXP, UID, "pedestals", pedestals(2), run=1)
    fake.deploy(EXP, OTHER, "pedestals", pedestals(8), run=1)
    constants, _ = ensure(5, both, skip=["jf2"])
    assert (value(constants), constants["jf2"]) == (2, None)
    assert value(open_constants(EXP, 5, cache), "jf2") == 8  # it stays, and stays right


def test_a_pickle_of_another_program_that_was_cut_is_not_counted(cache):
    data = pickle.dumps({"det_info": INFO, "calib_const": {"jf": {"c": (np.full(4096, 46, np.uint8), {})}}})
    path = entry_path(cache, EXP, 5)
    path.write_bytes(data)
    path.chmod(0o640)
    assert load_existing_run(cache, EXP) == 5
    path.write_bytes(data[:3000])
    assert data[2999:3000] == b"."
    assert load_existing_run(cache, EXP) == -1


def test_a_run_number_of_numpy_is_a_run_number(ensure):
    assert ensure(np.int64(5))[1] == 5


# --- the functions


def test_the_five_are_importable_and_take_the_arguments_of_the_contract():
    def first(function):
        return [
            (p.name, None if p.default is p.empty else p.default)
            for p in inspect.signature(function).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD
        ]

    assert first(get_latest_run) == [("output_dir", None), ("expcode", None), ("log", None), ("xtc_dir", None)]
    assert first(load_existing_run) == [("output_dir", None), ("expcode", None)]
    assert first(detector_info_from_run) == [("expcode", None), ("runnum", None), ("xtc_dir", None)]
    assert first(detector_info_from_file) == [("output_dir", None), ("expcode", None), ("runnum", None)]
    assert [name for name, _ in first(needs_update)] == ["latest", "existing"]
    assert first(try_load_calib_const_from_file) == [("output_dir", None), ("expcode", None)]
    assert first(update_calib) == [
        ("expcode", None),
        ("latest_run", None),
        ("latest_info", None),
        ("output_dir", "/dev/shm"),
        ("log", None),
        ("xtc_dir", None),
        ("skip_calib_load", ()),
    ]
    assert [name for name, _ in first(ensure_valid_calibconst)] == [
        "expcode",
        "latest_run",
        "latest_info",
        "xtc_dir",
        "skip_calib_load",
        "output_dir",
        "log",
    ]
    assert set(nightbeam.calib.__all__) >= {"get_latest_run", "load_existing_run", "needs_update", "update_calib"}


def test_opening_constants_loads_neither_the_client_nor_the_reader_of_data_files():
    code = (
        "import sys; from nightbeam.calib import open_constants;"
        "print(sorted({'requests', 'nightbeam.xtc2', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = nightbeam.calib.nonsense


@pytest.fixture
def xtc(tmp_path):
    directory = tmp_path / "xtc"
    directory.mkdir()
    jf = detector("jf", "jungfrau", UID.split("_")[1:])
    for run in (3, 4):
        write_run(directory, [jf], experiment=EXP, run=run)
    write_run(directory, [jf], experiment="other0001", run=50)
    for name in (f"{EXP}-rABC-s000-c000.xtc2", f"{EXP}-r0005-s000-c000.xtc2"):
        (directory / name).write_bytes(b"rubbish" * 10)
    return directory


@pytest.fixture
def environ(fake, monkeypatch):
    monkeypatch.setenv("LCLS_CALIB_HTTP", fake.url)
    for name in ("CALIB_JWT", "SIT_PSDM_OFFSITE"):
        monkeypatch.delenv(name, raising=False)


def test_the_latest_run_is_found_until_it_is_cached(xtc, cache, environ, caplog):
    log = logging.getLogger("nightbeam.test")
    assert get_latest_run(cache, EXP, log, xtc) == 4
    assert "run 5" in caplog.text
    update_calib(EXP, output_dir=cache, xtc_dir=xtc)
    assert get_latest_run(cache, EXP, None, xtc) is None
    entry_path(cache, EXP, 4).write_bytes(b"damaged")
    assert get_latest_run(cache, EXP, None, xtc) == 4


def test_no_directory_of_runs_is_none_and_none_at_all_is_a_type_error(cache, tmp_path):
    assert get_latest_run(cache, EXP, None, tmp_path / "no") is None
    with pytest.raises(TypeError):
        get_latest_run(cache, EXP, None)


def test_the_contracts_example_works_with_the_environments_service(xtc, cache, environ):
    info = detector_info_from_run(EXP, 4, xtc)
    assert info == INFO
    update_calib(EXP, 4, info, cache)
    assert detector_info_from_file(cache, EXP, 4) == INFO
    calib_const, runnum = ensure_valid_calibconst(
        expcode=EXP, latest_run=4, latest_info=info, xtc_dir=xtc, skip_calib_load=["det0"], output_dir=cache
    )
    assert (value(calib_const), runnum) == (1, 4)
    with entry_path(cache, EXP, 4).open("rb") as file:
        assert set(pickle.load(file)) == {"det_info", "calib_const"}


def test_without_run_or_info_they_come_from_the_files(xtc, cache, environ):
    constants, run = ensure_valid_calibconst(EXP, None, None, xtc, [], cache, logging.getLogger("nightbeam.test"))
    assert (value(constants), run) == (1, 4)
    constants, run = ensure_valid_calibconst(EXP, 3, None, xtc, [], cache)
    assert (value(constants), run) == (1, 3)
    assert ensure_valid_calibconst("none00000", None, None, xtc, [], cache) == ({}, -1)


def test_skipping_all_fetches_and_writes_nothing(ensure, fake, cache):
    assert ensure(5, skip="all") == ({"jf": None}, 5)
    assert fake.requests == []
    assert list(cache.glob("calibconst*")) == []


def test_a_skip_that_is_text_is_a_name_and_not_a_search(ensure):
    assert value(ensure(5, skip="jf_and_more")[0]) == 1


def test_what_cannot_be_read_is_an_empty_answer_where_the_contract_says_so(cache, tmp_path):
    assert detector_info_from_run(EXP, 4, None) == {}
    assert detector_info_from_run(EXP, 4, tmp_path / "no") == {}
    assert detector_info_from_run(EXP, 9, tmp_path) == {}
    assert detector_info_from_file(cache, EXP, 4) is None
    assert try_load_calib_const_from_file(cache, EXP) == ({}, -1)
    assert try_load_calib_const_from_file(tmp_path / "no", EXP) == ({}, -1)
    assert load_existing_run(cache, EXP) == -1
    with pytest.raises(FileNotFoundError):
        load_existing_run(tmp_path / "no", EXP)


def test_the_highest_file_that_can_be_used_counts(ensure, cache):
    ensure(5)
    (cache / f"calibconst_{EXP}_rXYZ.pkl").write_bytes(b"x")
    entry_path(cache, EXP, 9).write_bytes(b"x")
    (cache / f"calibconst_{EXP}_r0011.pkl.inprogress").write_bytes(b"x")
    psana = entry_path(cache, EXP, 7)
    psana.write_bytes(pickle.dumps({"det_info": INFO, "calib_const": {"jf": {"pedestals": (pedestals(3), {})}}}))
    psana.chmod(0o600)
    assert load_existing_run(cache, EXP) == 7
    constants, run = try_load_calib_const_from_file(cache, EXP)
    assert (value(constants), run) == (3, 7)
    assert detector_info_from_file(cache, EXP, 7) == INFO


def test_a_planted_file_is_never_used_and_replaced(ensure, cache, tmp_path):
    elsewhere = tmp_path / "elsewhere.pkl"
    elsewhere.write_bytes(b"x")
    entry_path(cache, EXP, 5).symlink_to(elsewhere)
    assert value(ensure(5)[0]) == 1
    assert elsewhere.read_bytes() == b"x"
    assert not entry_path(cache, EXP, 5).is_symlink()


def test_a_failure_that_no_retry_heals_is_raised_even_if_something_is_cached(ensure, fake):
    ensure(5)
    fake.fail(None, "html")
    with pytest.raises(InputError):
        ensure(5)


def test_a_file_with_a_skipped_detector_is_no_stand_in(ensure, fake):
    ensure(5, {"jf": UID, "jf2": OTHER}, skip=["jf2"])
    fake.fail(None, "503")
    with pytest.raises(NightbeamError):
        ensure(5, {"jf": UID, "jf2": OTHER})
    assert value(ensure(5)[0]) == 1
