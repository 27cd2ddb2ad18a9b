import errno
import os
import shutil
import types
from contextlib import suppress
from pathlib import Path

import pytest

from nightbeam.core.errors import MissingError, StorageError
from nightbeam.core.files import (
    directory_bytes,
    exchange_paths,
    full_place,
    new_directory,
    no_space,
    put_back,
    remove,
    rename_new,
    replace_path,
    require_space,
    scratch_directory,
    sha256,
    storage_errors,
    write_text,
)


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    write_text(tmp_path / "a" / "list.txt", "one")
    write_text(tmp_path / "a" / "list.txt", "two")
    assert (tmp_path / "a" / "list.txt").read_text() == "two"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["list.txt"]


def test_a_directory_takes_its_name_only_when_it_is_finished(tmp_path):
    with new_directory(tmp_path / "a.ms") as part:
        (part / "table.dat").write_text("rows")
        assert not (tmp_path / "a.ms").exists()
    assert (tmp_path / "a.ms" / "table.dat").read_text() == "rows"


def test_a_directory_that_failed_leaves_the_old_one(tmp_path):
    (tmp_path / "a.ms").mkdir()
    (tmp_path / "a.ms" / "old").touch()
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "a.ms") as part:
        (part / str(1 // 0)).touch()
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "a.ms" / "old").exists()


def test_a_full_directory_is_replaced_by_another(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_path(tmp_path / "a", tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["a"]
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "no space"), (errno.EROFS, "cannot write")])
def test_a_full_or_read_only_disk_is_named_and_may_be_tried_again(tmp_path, number, word):
    with pytest.raises(StorageError, match=word) as caught, storage_errors(tmp_path / "x"):
        raise OSError(number, "as the kernel says")
    assert caught.value.retry


def test_too_little_space_is_refused_before_the_work(tmp_path):
    with pytest.raises(StorageError, match=r"a group needs 1000000000\.00 GB"):
        require_space(tmp_path, 10**18, what="a group")
    with pytest.raises(MissingError, match="no directory"):
        require_space(tmp_path / "nowhere", 1, what="a group")


def test_the_digest_of_a_directory_sees_contents_and_names_but_not_locks(tmp_path):
    (tmp_path / "t").mkdir()
    write_text(tmp_path / "t" / "f0", "abc")
    one = sha256(tmp_path / "t")
    (tmp_path / "t" / "table.lock").write_text("7")
    assert sha256(tmp_path / "t") == one
    (tmp_path / "t" / "f0").rename(tmp_path / "t" / "f1")
    assert sha256(tmp_path / "t") != one
    # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "t" / "f1") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert directory_bytes(tmp_path / "t") == 4


def test_scratch_says_whose_it_is(tmp_path):
    made = scratch_directory(tmp_path / "scratch", owner="convert")
    assert made.is_dir()
    assert made.name.startswith("convert.pid")
    remove(made)
    remove(made)
    assert not made.exists()


def test_a_copy_of_a_tree_that_found_no_room_is_told_as_such(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")

    def full(*_args, **_more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    with pytest.raises(StorageError, match="no space left for"), storage_errors(tmp_path / "b"):
        shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=full)


@pytest.mark.parametrize(
    ("blocks", "inodes", "total", "said"),
    [
        (10, 1000, 1000, "0.00 GB free in"),
        (3_000_000, 1000, 1000, "3.00 MB free in"),
        (10_000_000, 7, 1000, "7 inodes free in"),
        (10_000_000, 0, 0, ""),  # btrfs has no table of them
        (10_000_000, 1000, 1000, ""),
    ],
)
def test_the_file_system_that_is_full_is_named_with_what_it_lacks(tmp_path, monkeypatch, blocks, inodes, total, said):
    found = types.SimpleNamespace(f_bavail=blocks, f_frsize=1, f_files=total, f_favail=inodes)
    monkeypatch.setattr("nightbeam.core.files.os.statvfs", lambda _: found)
    told = full_place(tmp_path / "not" / "there" / "yet")
    assert told == (f"{said} {tmp_path}" if said else "")
    assert str(no_space(tmp_path / "x").what) == f"no space left for {tmp_path / 'x'}" + (f" ({told})" if told else "")


def test_two_directories_change_names_at_once(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    assert exchange_paths(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "is").read_text() for name in "ab"] == ["b", "a"]
    with pytest.raises(FileNotFoundError):
        exchange_paths(tmp_path / "a", tmp_path / "none")


@pytest.mark.parametrize("can", [True, False])
@pytest.mark.parametrize("there", ["file", "directory", "link to nothing"])
def test_a_new_name_replaces_nothing(tmp_path, monkeypatch, can, there):
    if not can:
        monkeypatch.setattr("nightbeam.core.files._renameat2", lambda one, other, flag: False)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("a")
    if there == "file":
        target.write_text("b")
    elif there == "directory":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "none")
    before = target.lstat()
    with pytest.raises(FileExistsError):
        rename_new(source, target)
    assert (source.read_text(), target.lstat()) == ("a", before)
    rename_new(source, tmp_path / "c")
    assert ((tmp_path / "c").read_text(), source.exists()) == ("a", False)


@pytest.mark.parametrize("can", [True, False])
def test_a_directory_is_replaced_whether_or_not_names_can_be_exchanged(tmp_path, monkeypatch, can):
    if not can:
        monkeypatch.setattr("nightbeam.core.files.exchange_paths", lambda one, other: False)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    replace_path(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "is").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir() if path.name != "cwd"] == ["b"]
    assert put_back(tmp_path / "b") is False


def test_what_a_kill_left_of_an_older_replacement_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("nightbeam.core.files.exchange_paths", lambda one, other: False)
    for name in ("a", "b", ".b.12.abcd.old"):
        (tmp_path / name).mkdir()
    replace_path(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cwd"] == ["b"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("can", [True, False])
@pytest.mark.parametrize("nth", [1, 2])
def test_one_who_is_killed_at_any_step_of_replacing_leaves_the_old_or_the_new(tmp_path, monkeypatch, can, nth):
    from nightbeam.core import files

    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    done = []

    def dies_after(step):
        def stepped(*given):
            result = step(*given)
            done.append(step)
            if len(done) == nth:
                raise Killed
            return result

        return stepped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies_after(Path.rename))
        patch.setattr(files, "exchange_paths", dies_after(exchange_paths if can else lambda one, other: False))
        with suppress(Killed):
            replace_path(tmp_path / "a", tmp_path / "b")
    put_back(tmp_path / "b")
    assert (tmp_path / "b" / "is").read_text() in ("a", "b")
    assert not list(tmp_path.glob(".b.*"))
