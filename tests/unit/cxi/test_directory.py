"""Names, the list, the geometry beside, and what writers leave that were killed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import StorageError
from nightbeam.cxi import directory as directory_module
from nightbeam.cxi import naming as naming_module
from nightbeam.cxi.directory import Directory
from nightbeam.cxi.naming import Naming, is_dead, new_writer, partial_path
from nightbeam.cxi.writing import CxiWriter
from nightbeam.geometry.files import read_geometry

USUAL = "{prefix}_{time}_{writer}_chunk{chunk}"
WHEN = datetime(2025, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.fixture
def naming():
    return Naming("p", USUAL)


@pytest.fixture
def opened(tmp_path, naming):
    return lambda **options: Directory(tmp_path, naming, new_writer(), listed=True, geometry=None, **options)


@pytest.fixture
def dead_writer():
    """The name of a writer that was of this host and is no more."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    host, _, chance = new_writer().rsplit("-", 2)
    return f"{host}-{int(done.stdout)}-{chance}"


def files_of(writer):
    """Return its files, oldest first: their names have the time."""
    return sorted(writer.plan.output_dir.rglob("*.cxi"), key=lambda path: path.name)


def put(directory, name, text=b"x"):
    return directory.write(name, lambda path: path.write_bytes(text))[0]


# -- names --------------------------------------------------------------------------------------------------------


def test_the_usual_name_has_prefix_time_writer_and_chunk():
    name = Naming("peaknet_cxi", USUAL).name(chunk=12, writer="h-1-00c0ffee", when=WHEN, run=None, experiment=None)
    assert name == "peaknet_cxi_20250102_030405_000678_h-1-00c0ffee_chunk0012.cxi"


def test_an_experiment_cannot_lead_elsewhere():
    name = Naming("p", "{experiment}_{run}_{chunk}").name(chunk=0, writer="w", when=WHEN, run=3, experiment="../a b")
    assert name == "-a-b_r0003_0000.cxi"


@given(st.integers(0, 10**6), st.one_of(st.none(), st.integers(0, 10**5)), st.text(max_size=50))
def test_a_name_is_known_as_ours_again(chunk, run, experiment):
    naming = Naming("pre.fix", "{prefix}_{experiment}_{run}_{time}_{writer}_{chunk}")
    assert naming.is_ours(naming.name(chunk=chunk, writer=new_writer(), when=WHEN, run=run, experiment=experiment))


def test_files_of_another_prefix_are_not_ours(naming):
    other = Naming("p_cxi", USUAL).name(chunk=0, writer=new_writer(), when=WHEN, run=None, experiment=None)
    assert not naming.is_ours(other)
    assert not naming.is_ours("p_master.h5")


def test_two_writers_have_two_names():
    assert new_writer() != new_writer()


def test_a_writer_of_this_process_is_alive_and_one_of_another_host_is_never_called_dead(dead_writer):
    assert not is_dead(new_writer())
    assert is_dead(dead_writer)
    assert not is_dead("another-host-" + dead_writer.split("-", 1)[1])


@pytest.fixture
def _each_time_anew():
    naming_module._host.cache_clear()
    yield
    naming_module._host.cache_clear()


@pytest.mark.usefixtures("_each_time_anew")
def test_a_writer_on_a_machine_whose_name_only_begins_like_ours_is_not_called_dead(monkeypatch):
    name = "cxi-writer-deployment-7d9f8b6c5d"
    monkeypatch.setattr(socket, "gethostname", lambda: f"{name}-aaaaa")
    theirs = f"{new_writer().rsplit('-', 2)[0]}-{2**22 + 1}-0123abcd"
    assert is_dead(theirs)
    naming_module._host.cache_clear()
    monkeypatch.setattr(socket, "gethostname", lambda: f"{name}-bbbbb")
    assert not is_dead(theirs)


# -- files --------------------------------------------------------------------------------------------------------


def test_a_file_of_the_same_name_is_never_replaced(opened, tmp_path):
    directory = opened()
    assert [put(directory, "p.cxi", text).name for text in (b"a", b"b", b"c")] == ["p.cxi", "p-2.cxi", "p-3.cxi"]
    assert (tmp_path / "p.cxi").read_bytes() == b"a"


def test_without_hard_links_a_rename_gives_the_name(opened, tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    directory = opened()
    assert [put(directory, "p.cxi").name for _ in range(2)] == ["p.cxi", "p-2.cxi"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["p-2.cxi", "p.cxi"]


def test_nothing_is_left_of_a_file_that_could_not_be_written(opened, tmp_path):
    def fail(path):
        path.write_bytes(b"half")
        raise StorageError("full")

    with pytest.raises(StorageError):
        opened().write("p.cxi", fail)
    assert [p for p in tmp_path.iterdir() if p.is_file()] == []


def test_what_a_dead_writer_left_is_removed_and_what_a_live_one_writes_is_not(opened, tmp_path, naming, dead_writer):
    name = naming.name(chunk=0, writer=dead_writer, when=WHEN, run=None, experiment=None)
    dead = partial_path(tmp_path / name, dead_writer)
    live = partial_path(tmp_path / name, new_writer())
    other = partial_path(tmp_path / "other_thing.cxi", dead_writer)
    for path in (dead, live, other):
        path.write_bytes(b"half")
    opened()
    assert [path.exists() for path in (dead, live, other)] == [False, True, True]


# -- the list -----------------------------------------------------------------------------------------------------


def test_the_list_has_one_absolute_name_a_line(plan, make_batch, monkeypatch):
    monkeypatch.chdir(plan.output_dir.parent)
    writer = CxiWriter(replace(plan, output_dir=Path("out")), geometry=None)
    for n in range(3):
        writer.submit(make_batch(n))
    writer.flush_final()
    lines = (plan.output_dir / "p.lst").read_text().splitlines()
    assert lines == [str(plan.output_dir / p.name) for p in files_of(writer)]


def test_a_file_that_a_crash_kept_from_the_list_is_added_at_the_next_start(opened, tmp_path, naming):
    name = naming.name(chunk=0, writer=new_writer(), when=WHEN, run=None, experiment=None)
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "p_of_somebody.cxi").write_bytes(b"x")
    opened()
    opened()
    assert (tmp_path / "p.lst").read_text() == f"{tmp_path / name}\n"


def test_half_a_line_is_taken_away_unless_it_is_whole(opened, tmp_path):
    directory = opened()
    first, second = put(directory, "a.cxi"), put(directory, "b.cxi")
    (tmp_path / "p.lst").write_text(f"{first}\n{str(second)[:-3]}")
    directory.add_to_list(second)
    assert (tmp_path / "p.lst").read_text() == f"{first}\n{second}\n"
    (tmp_path / "p.lst").write_text(f"{first}\n{second}")
    directory.add_to_list(first)
    assert (tmp_path / "p.lst").read_text() == f"{first}\n{second}\n"


def test_what_could_not_be_added_to_the_list_is_added_later(opened, tmp_path, monkeypatch):
    directory = opened()
    path = put(directory, "a.cxi")

    def full(handle, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(directory_module, "_write_all", full)
        with pytest.raises(StorageError, match="no space"):
            directory.add_to_list(path)
    directory.catch_up()
    assert (tmp_path / "p.lst").read_text() == f"{path}\n"


# -- the geometry -------------------------------------------------------------------------------------------------


def test_the_geometry_beside_the_files_says_where_everything_is(plan, geometry):
    CxiWriter(plan, geometry=geometry)
    beside = read_geometry(plan.output_dir / "p.geom")
    assert (beside.peak_list, beside.peak_list_type) == ("/entry_1/result_1", "cxi")
    assert {p.data for p in beside.panels} == {"/entry_1/data_1/data"}
    assert {p.dims for p in beside.panels} == {("%", "ss", "fs")}
    assert {m.data for p in beside.panels for m in p.masks} == {"/entry_1/data_1/mask"}


# -- death --------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from nightbeam.cxi import chunkfile, writing
from nightbeam.cxi.directory import Directory
from nightbeam.cxi.naming import Naming, new_writer
naming, place, when = Naming("p", "{prefix}_{writer}_{chunk}"), Path(sys.argv[1]), sys.argv[2]
writer = new_writer()
directory = Directory(place, naming, writer, listed=True, geometry=None)
def write(path):
    with chunkfile.open_new(path) as file:
        file["/entry_1/result_1/nPeaks"] = np.arange(1000)
        if when == "writing":
            os.kill(os.getpid(), 9)
    if when == "before its name":
        os.kill(os.getpid(), 9)
directory.write(f"p_{writer}_0000.cxi", write)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("when", "files"), [("writing", 0), ("before its name", 0), ("before the list", 1)])
def test_a_writer_that_is_killed_leaves_whole_files_only(tmp_path, when, files):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), when], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert len(list(tmp_path.glob("*.cxi"))) == files
    directory = Directory(tmp_path, Naming("p", "{prefix}_{writer}_{chunk}"), new_writer(), listed=True, geometry=None)
    assert list(tmp_path.glob(".*.partial")) == []
    listed = directory.list_path.read_text().splitlines() if files else []
    assert listed == [str(p) for p in tmp_path.glob("*.cxi")]


# -- a file that has its name ------------------------------------------------------------------------------------


def fail_with(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_that_has_its_name_is_written_although_its_directory_cannot_be_synced(opened, monkeypatch, caplog):
    directory = opened()
    monkeypatch.setattr(directory_module, "sync", fail_with(errno.EIO))
    path, size = directory.write("p.cxi", lambda path: path.write_bytes(b"abc"))
    assert (path.read_bytes(), size) == (b"abc", 3)
    assert "may not be on the disk yet" in caplog.text


def test_a_file_that_has_its_name_is_written_although_its_hidden_name_stays(opened, monkeypatch, caplog):
    directory = opened()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", fail_with(errno.ESTALE))
        assert put(directory, "p.cxi").is_file()
    assert "could not be removed" in caplog.text


def test_a_name_that_was_given_and_said_to_be_taken_is_ours(opened, tmp_path, monkeypatch):
    """A network file system that has lost its own answer gives a name and says that it is there."""
    link = os.link

    def link_twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    directory = opened()
    assert put(directory, "p.cxi").name == "p.cxi"
    assert [p.name for p in tmp_path.glob("*.cxi")] == ["p.cxi"]


def test_a_directory_that_has_gone_is_an_error_of_the_disk(opened, tmp_path):
    directory = opened()
    shutil.rmtree(tmp_path)
    with pytest.raises(StorageError, match="cannot write"):
        put(directory, "p.cxi")
    with pytest.raises(StorageError, match="cannot write"):
        directory.add_to_list(tmp_path / "p.cxi")


# -- what grows ---------------------------------------------------------------------------------------------------


def test_the_list_is_not_read_again_for_each_file(opened, monkeypatch):
    directory, read, pread = opened(), [], os.pread

    def count(handle, n, at):
        data = pread(handle, n, at)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", count)
    paths = [directory.path / f"{n}.cxi" for n in range(20)]
    for path in paths:
        directory.add_to_list(path)
    assert sum(read) <= 20
    assert directory.list_path.read_text().splitlines() == [str(path) for path in paths]


def test_a_list_that_somebody_has_written_anew_is_read_anew(opened):
    directory = opened()
    first, second, third = (directory.path / f"{n}.cxi" for n in "abc")
    directory.add_to_list(first)
    directory.list_path.write_text(f"# mine, longer than before\n{second}\n")
    directory.add_to_list(second)
    directory.list_path.write_text("")
    directory.add_to_list(third)
    assert directory.list_path.read_text() == f"{third}\n"


def test_a_list_half_of_whose_lines_could_be_added_has_each_once_in_the_end(opened, monkeypatch):
    directory, whole = opened(), os.write
    paths = [directory.path / f"{n}.cxi" for n in range(3)]
    directory.add_to_list(paths[0])

    def full(handle, data):
        whole(handle, data[: len(data) * 2 // 3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(directory_module, "_write_all", full)
        for path in paths[1:]:
            with pytest.raises(StorageError):
                directory.add_to_list(path)
    directory.catch_up()
    assert directory.list_path.read_text().splitlines() == [str(path) for path in paths]


def test_a_directory_that_is_opened_again_looks_only_at_files_that_are_not_in_the_list(opened, naming, monkeypatch):
    directory = opened()
    names = [naming.name(chunk=n, writer=new_writer(), when=WHEN, run=None, experiment=None) for n in range(3)]
    for name in names[:2]:
        directory.add_to_list(put(directory, name))
    (directory.path / names[2]).write_bytes(b"x")
    asked = []
    append = Directory._append
    monkeypatch.setattr(Directory, "_append", lambda self, paths: (asked.append(paths), append(self, paths)))
    again = opened()
    assert asked == [[directory.path / names[2]]]
    assert again.list_path.read_text().splitlines() == [str(directory.path / name) for name in names]


def test_a_file_that_is_moved_while_it_is_looked_for_is_not_there(naming, tmp_path, monkeypatch):
    names = [naming.name(chunk=n, writer=new_writer(), when=WHEN, run=None, experiment=None) for n in range(2)]

    class Entry:
        def __init__(self, name):
            self.name = name

        def is_file(self):
            return True

        def stat(self):
            if self.name == names[0]:
                raise FileNotFoundError(self.name)
            return Path(__file__).stat()

    monkeypatch.setattr(os, "scandir", lambda _: nullcontext([Entry(name) for name in names]))
    assert naming.ours_in(tmp_path) == [tmp_path / names[1]]


def test_files_that_are_older_are_not_wanted(naming, tmp_path):
    names = [naming.name(chunk=n, writer=new_writer(), when=WHEN, run=None, experiment=None) for n in range(3)]
    for second, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (second, second))
    assert [path.name for path in naming.ours_in(tmp_path, since_s=1.0)] == names[1:]


@pytest.fixture
def masters(monkeypatch):
    """How many files each master had."""
    made: list[int] = []
    monkeypatch.setattr(directory_module, "write_master", lambda path, files: made.append(len(files)))
    return made


def test_the_master_is_made_anew_when_there_are_twice_as_many_files_and_at_the_end(
    plan, make_batch, masters, monkeypatch
):
    monkeypatch.setattr(directory_module, "_MASTER_LEAST", 2)
    writer = CxiWriter(replace(plan, buffer_size=1, images=False), geometry=None)
    for n in range(19):
        writer.submit(make_batch(n, events=1, images=False))
    assert masters == [2, 4, 8, 16]
    writer.flush_final()
    writer.flush_final()
    assert masters == [2, 4, 8, 16, 19]


def test_runs_that_take_turns_have_their_master_once_and_at_the_end(plan, make_batch, masters):
    writer = CxiWriter(replace(plan, buffer_size=1, images=False, per_run=True), geometry=None)
    for n in range(6):
        writer.submit(make_batch(n, events=1, images=False, run=n % 2))
    assert masters == [1, 1]
    writer.flush_final()
    assert masters == [1, 1, 3, 3]


def test_a_master_that_cannot_be_made_is_not_tried_for_each_file(plan, make_batch, monkeypatch):
    monkeypatch.setattr(directory_module, "_MASTER_LEAST", 2)
    tried = []

    def fail(path, files):
        tried.append(len(files))
        raise StorageError("full")

    monkeypatch.setattr(directory_module, "write_master", fail)
    writer = CxiWriter(replace(plan, buffer_size=1, images=False), geometry=None)
    for n in range(10):
        writer.submit(make_batch(n, events=1, images=False))
    assert tried == [2, 4, 8]
