import errno
import fcntl
import os
import pickle
import pickletools
import re
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from nightbeam.calib import files
from nightbeam.calib.files import (
    Payload,
    collect,
    entry_path,
    link_entry,
    list_entries,
    load_pickle,
    lock_path,
    open_entry,
    owner_ids,
    parse_entry_name,
    read_index,
    remove_stale,
    verify_entry,
    write_entry,
)
from nightbeam.core.errors import InputError, MissingError, RejectedError, StorageError

DET_INFO = {"jungfrau": "jungfrau_0123-4567_89ab-cdef", "hsd": "hsd_"}
LARGE = -(1 << 40)


def document(ctype, number=1, **more):
    return {
        "_id": f"{number:024x}",
        "id_data": f"{number + 1000:024x}",
        "ctype": ctype,
        "run": 3,
        "run_end": "end",
        **more,
    }


def constants(value=1.5, shape=(3, 2, 8, 16)):
    rng = np.random.default_rng(5)
    return {
        "jungfrau": [
            Payload("pedestals", "cdb_x", document("pedestals", 1), np.full(shape, value, np.float32)),
            Payload(
                "pixel_status", "cdb_x", document("pixel_status", 2), lambda: rng.integers(0, 9, shape).astype("u8")
            ),
            Payload("geometry", "cdb_x", document("geometry", 3, comment="µ"), "# geometry\nDX 1.5 µm\n"),
            Payload("common_mode", "cdb_x", document("common_mode", 4), np.array([6.0, 2.0, 10.0])),
        ],
        "hsd": [],
    }


@pytest.fixture
def written(cache):
    path = entry_path(cache, "xpptut15", 14)
    write_entry(path, DET_INFO, constants(), reasons={"hsd": "no constants"})
    return path


# --- names


def test_a_name_has_the_experiment_and_a_run_of_at_least_four_digits(cache):
    assert entry_path(cache, "xpptut15", 14).name == "calibconst_xpptut15_r0014.pkl"
    assert entry_path(cache, "xpptut15", 12345).name == "calibconst_xpptut15_r12345.pkl"
    assert parse_entry_name("calibconst_a_r_b_r12345.pkl") == files.EntryName("a_r_b", 12345)


@pytest.mark.parametrize(
    "name", ["calibconst_x_rABC.pkl", "calibconst_x_r0001.pkl.inprogress", "x.pkl", "calibconst_a b_r1.pkl"]
)
def test_other_names_are_no_cache_files(name):
    assert parse_entry_name(name) is None


@pytest.mark.parametrize("experiment", ["../x", "a/b", "", ".", "x\n", "x" * 128, "é"])
def test_an_experiment_that_would_leave_the_directory_is_refused(cache, experiment):
    with pytest.raises(InputError, match="experiment"):
        entry_path(cache, experiment, 1)


# --- both forms


def test_plain_pickle_and_numpy_read_what_the_contract_says(written):
    with written.open("rb") as file:
        found = pickle.load(file)
    assert set(found) == {"det_info", "calib_const"}
    assert found["det_info"] == DET_INFO
    pedestals, doc = found["calib_const"]["jungfrau"]["pedestals"]
    assert (pedestals.dtype, pedestals.shape, float(pedestals.min())) == (np.float32, (3, 2, 8, 16), 1.5)
    assert doc == document("pedestals", 1)
    assert found["calib_const"]["jungfrau"]["geometry"][0] == "# geometry\nDX 1.5 µm\n"
    assert found["calib_const"]["hsd"] == {}
    pedestals += 1  # the original's arrays could be written; a private copy still can


def test_the_mapped_form_says_the_same_as_the_pickle(written):
    entry = open_entry(written)
    with written.open("rb") as file:
        found = pickle.load(file)["calib_const"]
    assert set(entry) == set(found)
    for detector, each in found.items():
        assert list(entry[detector]) == list(each)
        for ctype, (data, doc) in each.items():
            np.testing.assert_array_equal(entry[detector][ctype][0], data)
            assert getattr(entry[detector][ctype][0], "dtype", None) == getattr(data, "dtype", None)
            assert entry[detector][ctype][1] == doc


def test_arrays_begin_on_pages_and_cannot_be_written(written):
    entry = open_entry(written)
    for ctype in ("pedestals", "pixel_status", "common_mode"):
        array = entry["jungfrau"][ctype][0]
        place = next(iter(files.placed_arrays(entry.index.detectors["jungfrau"].constants[ctype].data)))
        assert place.offset % 4096 == 0
        assert array.ctypes.data % 4096 == 0
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


ODD = [
    np.array(3.5),
    np.zeros((0, 4), np.uint16),
    np.asfortranarray(np.arange(12, dtype="i2").reshape(3, 4)),
    np.arange(24.0).reshape(4, 6)[::2, ::3],
    np.arange(4, dtype=">f8"),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.array(["a", "µµµ"]),
    np.array([b"ab", b"c"]),
    {
        "a": [1, 2.5, None, True, LARGE, (b"\x00" * 300, "x" * 300)],
        "n": np.float64(2.5),
        "d": {"deep": np.arange(3)},
        7: 2**70,
    },
    "x" * 70000,
    "",
]


def same(a, b):
    if isinstance(a, np.ndarray):
        # numpy itself turns foreign byte order to native when it unpickles
        assert (a.dtype.newbyteorder("="), a.shape) == (b.dtype.newbyteorder("="), b.shape)
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


@pytest.mark.parametrize("value", ODD, ids=lambda v: type(v).__name__ + str(getattr(v, "dtype", "")))
def test_odd_values_come_back_by_every_door(cache, value):
    path = entry_path(cache, "x", 1)
    write_entry(path, {"d": "d_1"}, {"d": [Payload("odd", "cdb_x", document("odd"), value)]})
    with path.open("rb") as file:
        plain = pickle.load(file)
    for found in (plain["calib_const"], load_pickle(path)["calib_const"], open_entry(path)):
        same(value, found["d"]["odd"][0])


@pytest.mark.parametrize("value", [np.array([object()]), np.zeros(2, [("a", "i4")]), object(), {1.5: 2}, {"a": {1, 2}}])
def test_values_that_could_not_be_mapped_are_refused_and_leave_nothing(cache, value):
    path = entry_path(cache, "x", 1)
    with pytest.raises(InputError):
        write_entry(path, {"d": "d_1"}, {"d": [Payload("odd", "cdb_x", document("odd"), value)]})
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("length", [*range(4070, 4100), 0, 1, 7, 200, 300])
def test_padding_is_right_wherever_the_array_falls(cache, length):
    path = entry_path(cache, "x", 1)
    write_entry(path, {"d": "u" * length}, {"d": [Payload("c", "cdb_x", document("c"), np.arange(5))]})
    assert list(open_entry(path)["d"]["c"][0]) == [0, 1, 2, 3, 4]
    with path.open("rb") as file:
        assert pickle.load(file)["calib_const"]["d"]["c"][0].sum() == 10


def test_the_pickle_names_only_what_numpy_1_and_2_both_have(written):
    with written.open("rb") as file:
        named = {arg for op, arg, _ in pickletools.genops(file) if op.name == "GLOBAL"}
    assert named == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}


def test_a_file_is_for_us_and_our_group_only(written):
    assert written.stat().st_mode & 0o777 == 0o640


# --- opening


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def plant(path, content=None):
    path.write_bytes(pickle.dumps({"det_info": {}, "calib_const": {"d": Evil()}}) if content is None else content)
    path.chmod(0o640)
    return path


def test_code_in_a_pickle_is_refused_and_never_run(cache, tmp_path):
    path = plant(entry_path(cache, "x", 1))
    with pytest.raises(RejectedError, match=r"posix.mkdir"):
        load_pickle(path)
    with pytest.raises(InputError, match="no index"):
        open_entry(path)
    assert not (tmp_path / "cwd" / "executed").exists()


@pytest.mark.parametrize("open_it", [open_entry, load_pickle, read_index, verify_entry])
def test_a_link_is_refused(written, cache, open_it):
    link = entry_path(cache, "xpptut15", 15)
    link.symlink_to(written)
    with pytest.raises(RejectedError, match="symbolic link"):
        open_it(link)


@pytest.mark.parametrize("mode", [0o660, 0o602, 0o666])
@pytest.mark.parametrize("open_it", [open_entry, load_pickle, read_index])
def test_a_file_that_others_can_write_is_refused(written, mode, open_it):
    written.chmod(mode)
    with pytest.raises(RejectedError, match="can be written by others"):
        open_it(written)


@pytest.mark.parametrize("open_it", [open_entry, load_pickle, read_index])
def test_another_users_file_is_refused_unless_that_user_is_named(written, monkeypatch, open_it):
    owner = written.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(RejectedError, match=f"user {owner}, who is not trusted"):
        open_it(written)
    assert open_it(written, owners=[owner])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_given_to_another_user_is_refused(written):
    os.chown(written, 12345, -1)
    with pytest.raises(RejectedError, match="user 12345"):
        open_entry(written)
    assert open_entry(written, owners=("12345",))["hsd"] == {}


def test_a_pipe_a_directory_and_nothing_are_refused_at_once(cache):
    os.mkfifo(entry_path(cache, "x", 1), 0o600)
    entry_path(cache, "x", 2).mkdir(mode=0o700)
    for run in (1, 2):
        with pytest.raises(RejectedError, match="not a regular file"):
            open_entry(entry_path(cache, "x", run))
    with pytest.raises(MissingError, match="no constants"):
        open_entry(entry_path(cache, "x", 3))


def test_owners_are_given_by_name_or_number():
    assert owner_ids(["root", "17", 18]) == {0, 17, 18}
    with pytest.raises(InputError, match="no-such-user"):
        owner_ids(["no-such-user"])


def test_a_file_cut_anywhere_is_damaged_or_without_index_never_wrong(written, cache):
    whole = written.read_bytes()
    step = max(1, len(whole) // 400)
    for length in [*range(0, len(whole), step), *range(len(whole) - 70, len(whole))]:
        cut = plant(entry_path(cache, "cut", 1), whole[:length])
        with pytest.raises(InputError):
            open_entry(cut)


def test_a_changed_byte_of_the_index_is_noticed_on_opening_and_of_an_array_on_verifying(written, cache):
    whole = bytearray(written.read_bytes())
    entry = open_entry(written)
    tail = entry.index.data_bytes
    assert verify_entry(written) == entry.index
    for at in range(tail, len(whole), 13):
        changed = bytearray(whole)
        changed[at] ^= 0x41
        with pytest.raises(InputError):
            open_entry(plant(entry_path(cache, "bad", 1), bytes(changed)))
    place = next(iter(files.placed_arrays(entry.index.detectors["jungfrau"].constants["pedestals"].data)))
    whole[place.offset + 5] ^= 1
    damaged = plant(entry_path(cache, "bad", 1), bytes(whole))
    open_entry(damaged)
    with pytest.raises(InputError, match="pedestals of jungfrau is damaged"):
        verify_entry(damaged)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"offset": 1 << 40}, "outside"),
        ({"offset": -8}, "places an array"),
        ({"nbytes": 8}, "outside"),
        ({"shape": [1 << 40]}, "outside"),
        ({"shape": [-1, 6]}, "places an array"),
        ({"dtype": "|O"}, "no plain number"),
        ({"dtype": "nonsense"}, "names a type"),
        ({"shape": None}, "describes an array"),
    ],
)
def test_an_index_that_points_outside_is_refused(written, cache, change, complaint):
    import dataclasses

    from nightbeam.calib.layout import pack_tail

    index = read_index(written)
    place = index.detectors["jungfrau"].constants["pedestals"]
    place.data["array"].update(change)
    path = entry_path(cache, "bad", 1)
    plant(path, written.read_bytes()[: index.data_bytes] + pack_tail(dataclasses.replace(index)))
    with pytest.raises(InputError, match=complaint):
        open_entry(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"hello", pickle.dumps([1]), pickle.dumps({"det_info": 1, "calib_const": 2})]
)
def test_what_is_no_pickle_of_constants_is_one_error(cache, content):
    with pytest.raises(InputError):
        load_pickle(plant(entry_path(cache, "x", 1), content))


def test_ten_thousand_damaged_pickles_raise_our_errors_or_load(cache):
    rng = np.random.default_rng(7)
    array = np.arange(6, dtype="f4").reshape(2, 3)
    good = pickle.dumps({"det_info": {"d": "d_1"}, "calib_const": {"d": {"p": (array, document("p"))}}})
    from io import BytesIO

    from nightbeam.calib.pickles import read_restricted

    refused = 0
    for _ in range(10_000):
        bad = bytearray(good)
        for at in rng.integers(0, len(bad), rng.integers(1, 4)):
            bad[at] = rng.integers(0, 256)
        try:
            read_restricted(BytesIO(bytes(bad)))
        except (InputError, RejectedError):
            refused += 1
    assert refused > 3000


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_psana_are_read_at_every_protocol(cache, protocol):
    array = np.arange(6, dtype="f4").reshape(2, 3)
    content = {
        "det_info": {"d": "d_1"},
        "calib_const": {"d": {"p": (array, {"a": 1}), "s": (np.float32(2), {})}, "e": None},
    }
    found = load_pickle(plant(entry_path(cache, "x", 1), pickle.dumps(content, protocol)))
    np.testing.assert_array_equal(found["calib_const"]["d"]["p"][0], array)
    assert not found["calib_const"]["d"]["p"][0].flags.writeable


def test_a_pickle_with_an_array_of_objects_is_refused(cache):
    content = {"det_info": {}, "calib_const": {"d": {"p": (np.array([None, 1]), {})}}}
    with pytest.raises(InputError, match="array of object"):
        load_pickle(plant(entry_path(cache, "x", 1), pickle.dumps(content)))


# --- writing


def test_readers_that_mapped_the_old_file_keep_it(written):
    old = open_entry(written)["jungfrau"]["pedestals"][0]
    write_entry(written, DET_INFO, constants(9.0))
    assert float(old[0, 0, 0, 0]) == 1.5
    assert float(open_entry(written)["jungfrau"]["pedestals"][0][0, 0, 0, 0]) == 9.0


def test_only_one_constant_is_in_memory_at_a_time(cache):
    alive, most = [], []

    class Counted(np.ndarray):
        def __del__(self):
            if alive:
                alive.pop()

    def fetch():
        alive.append(1)
        most.append(len(alive))
        return np.zeros(10, np.float32).view(Counted)

    each = [Payload(f"c{n}", "cdb_x", document("c", n), fetch) for n in range(5)]
    write_entry(entry_path(cache, "x", 1), {"d": "d_1"}, {"d": each})
    assert len(most) == 5
    assert max(most) <= 2  # the old one is dropped when the new one is bound


def test_a_failure_while_fetching_leaves_the_old_file_and_no_debris(written, cache):
    before = written.read_bytes()

    def fail():
        raise InputError("wrong byte count")

    broken = constants()
    broken["jungfrau"].append(Payload("pixel_rms", "cdb_x", document("pixel_rms", 9), fail))
    with pytest.raises(InputError, match="wrong byte count"):
        write_entry(written, DET_INFO, broken)
    assert written.read_bytes() == before
    assert list(cache.iterdir()) == [written]


def test_a_full_disk_leaves_the_old_file_and_no_debris(written, cache, monkeypatch):
    before = written.read_bytes()

    def full(file, body, hasher):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_write_hashed", full)
    with pytest.raises(StorageError, match="no space left"):
        write_entry(written, DET_INFO, constants(2.0))
    assert written.read_bytes() == before
    assert list(cache.iterdir()) == [written]


def test_too_little_space_is_said_before_anything_is_fetched(cache):
    def never():
        raise AssertionError("fetched")

    each = {"d": [Payload("c", "cdb_x", document("c"), never)]}
    with pytest.raises(StorageError, match="are free"):
        write_entry(entry_path(cache, "x", 1), {"d": "d_1"}, each, need_bytes=1 << 60)
    assert list(cache.iterdir()) == []


def test_no_directory_is_a_missing_directory(tmp_path):
    with pytest.raises(MissingError, match="no directory"):
        write_entry(entry_path(tmp_path / "no", "x", 1), {"d": "d_1"}, {"d": []})
    with pytest.raises(MissingError, match="no directory"):
        list_entries(tmp_path / "no")


def test_a_planted_temporary_is_not_followed(written, cache, monkeypatch, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    tokens = iter([b"\x01" * 6])
    monkeypatch.setattr(os, "urandom", lambda n: next(tokens))
    files.part_name(written)
    monkeypatch.setattr(os, "urandom", lambda n: b"\x01" * 6)
    files.part_name(written).symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_entry(written, DET_INFO, constants())
    assert victim.read_text() == "precious"


# --- sharing


def test_a_second_run_shares_the_content(written, cache):
    second = entry_path(cache, "xpptut15", 15)
    link_entry(written, second)
    assert second.samefile(written)
    assert [line.shared_by for line in list_entries(cache)] == [2, 2]
    link_entry(written, second)  # the same again: nothing changes and nothing is left over
    assert sorted(cache.iterdir()) == [written, second]
    write_entry(written, DET_INFO, constants(9.0))
    assert float(open_entry(second)["jungfrau"]["pedestals"][0].max()) == 1.5


def test_a_link_replaces_what_was_there(written, cache):
    second = entry_path(cache, "xpptut15", 15)
    write_entry(second, DET_INFO, constants(9.0))
    link_entry(written, second)
    assert second.samefile(written)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_the_content_is_copied(written, cache, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    second = entry_path(cache, "xpptut15", 15)
    link_entry(written, second)
    assert not second.samefile(written)
    assert second.read_bytes() == written.read_bytes()
    assert sorted(cache.iterdir()) == [written, second]


def test_content_that_is_not_ours_is_not_shared(cache, tmp_path):
    outside = tmp_path / "secret"
    outside.write_text("secret")
    entry_path(cache, "x", 1).symlink_to(outside)
    with pytest.raises(RejectedError):
        link_entry(entry_path(cache, "x", 1), entry_path(cache, "x", 2))


# --- keeping house


def test_the_list_says_what_cannot_be_used_and_why(written, cache):
    plant(entry_path(cache, "xpptut15", 20), b"\x80\x04garbage")
    entry_path(cache, "xpptut15", 21).symlink_to(written)
    (cache / "unrelated").write_text("x")
    lines = list_entries(cache, "xpptut15")
    assert [line.run for line in lines] == [14, 20, 21]
    assert (lines[0].detectors, lines[0].constants, lines[0].reason) == (2, 4, None)
    assert "no index" in lines[1].reason
    assert "symbolic link" in lines[2].reason
    assert list_entries(cache, "other") == []


def test_a_file_under_another_experiments_name_cannot_be_used(written, cache):
    os.link(written, entry_path(cache, "other", 14))
    assert "xpptut15" in list_entries(cache, "other")[0].reason


def test_text_that_differs_between_the_two_forms_is_found(written):
    raw = bytearray(written.read_bytes())
    raw[raw.index(b"geometry") + 40] ^= 1
    written.write_bytes(raw)
    with pytest.raises(InputError, match="pickle is damaged"):
        verify_entry(written)


def test_the_highest_runs_are_kept_of_each_experiment(cache):
    for experiment, runs in {"a": (1, 2, 10), "b": (5,)}.items():
        for run in runs:
            write_entry(entry_path(cache, experiment, run), {"d": "d_1"}, {"d": []})
    assert [line.run for line in collect(cache, keep=2, dry_run=True)] == [1]
    assert len(list_entries(cache)) == 4
    collect(cache, keep=2)
    assert [(line.experiment, line.run) for line in list_entries(cache)] == [("a", 2), ("a", 10), ("b", 5)]
    collect(cache, keep=1, experiment="a", spare=[entry_path(cache, "a", 2)])
    assert [(line.experiment, line.run) for line in list_entries(cache)] == [("a", 2), ("a", 10), ("b", 5)]
    with pytest.raises(InputError):
        collect(cache, keep=0)


def dead_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def part(cache, host, pid, age_s=0.0):
    path = cache / f"calibconst_x_r0001.pkl.{host}.{pid}.0a0b0c.inprogress"
    path.write_text("half")
    return path


HOST = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())


def test_temporaries_of_dead_writers_are_removed_at_once_and_of_living_ones_never(cache):
    dead, alive = part(cache, HOST, dead_pid()), part(cache, HOST, os.getpid())
    elsewhere = part(cache, "another-host", 1)
    psana = cache / "calibconst_x_r0001.pkl.inprogress"
    psana.write_text("half")
    other = cache / "something.inprogress"
    other.write_text("not ours")
    assert remove_stale(cache) == [dead]
    assert sorted(cache.iterdir()) == sorted([alive, elsewhere, psana, other])


def test_temporaries_of_other_machines_and_programs_are_removed_when_old(cache, monkeypatch):
    elsewhere, reused = part(cache, "another-host", 1), part(cache, HOST, os.getpid())
    psana = cache / "calibconst_x_r0001.pkl.inprogress"
    psana.write_text("half")
    now = time.time()
    monkeypatch.setattr(files.time, "time", lambda: now + 100)
    assert remove_stale(cache) == [reused]
    monkeypatch.setattr(files.time, "time", lambda: now + 3700)
    assert sorted(remove_stale(cache)) == sorted([elsewhere, psana])


def test_a_temporary_that_is_locked_has_a_living_writer_whatever_its_name_says(cache):
    path = part(cache, HOST, dead_pid())  # a process of another container, whose number we do not know
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert remove_stale(cache) == []
    assert remove_stale(cache) == [path]


def test_cleaning_up_never_takes_a_file_from_its_writer(cache, monkeypatch):
    monkeypatch.setattr(files, "_patience_s", lambda name: 0.0)  # as if every writer's process were unknown
    stop = threading.Event()

    def clean():
        while not stop.is_set():
            remove_stale(cache)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for run in range(200):
            write_entry(entry_path(cache, "x", run), {"d": "d_1"}, {"d": []})
    finally:
        stop.set()
        cleaner.join()
    assert len(list_entries(cache)) == 200


def test_locks_lie_in_a_directory_that_only_we_can_write(cache):
    path = lock_path(cache, "x")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert lock_path(cache, "x") == path


def test_a_planted_directory_of_locks_is_refused(cache, tmp_path):
    (cache / f".calibconst.{os.geteuid()}").symlink_to(tmp_path)
    with pytest.raises(RejectedError, match="ours alone"):
        lock_path(cache, "x")
