"""What may be seen, where the token lies, and where the monitor says that it listens."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nightbeam.core.errors import InputError, MissingError
from nightbeam.monitor import files


@pytest.fixture
def qa(tmp_path: Path) -> Path:
    here = tmp_path / "state" / "qa" / "g"
    here.mkdir(parents=True)
    (here / "a.png").write_bytes(b"png")
    (here / "notes.txt").write_text("no")
    (here / ".hidden.png").write_bytes(b"no")
    (here / "directory.png").mkdir()
    (tmp_path / "state" / "secret.png").write_bytes(b"no")
    (tmp_path / "state" / "monitor.token").write_text("no")
    (here / "out.png").symlink_to(tmp_path / "state" / "secret.png")
    (here / "circle.png").symlink_to(here / "circle.png")
    (here / "in.png").symlink_to(here / "a.png")
    (here.parent / "link").symlink_to(tmp_path / "state")
    return here.parent


def test_a_file_of_a_group_is_found_also_by_a_link_that_stays(qa: Path):
    assert files.qa_file(qa, "g", "a.png") == qa / "g" / "a.png"
    assert files.qa_file(qa, "g", "in.png") == qa / "g" / "a.png"
    assert files.content_of(qa / "g" / "a.png") == (b"png", "image/png")


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("g", "missing.png"),
        ("g", "notes.txt"),
        ("g", ".hidden.png"),
        ("g", "directory.png"),
        ("g", "out.png"),
        ("g", "circle.png"),
        ("link", "secret.png"),
        ("..", "secret.png"),
        (".", "a.png"),
        ("g", "../../secret.png"),
        ("g/..", "g"),
        ("g", "..\\..\\secret.png"),
        ("g", "a.png\0.txt"),
        ("g\0", "a.png"),
        ("", "a.png"),
        ("g", ""),
        ("g" * 300, "a.png"),
        ("\u00e9" * 200, "a.png"),
        ("g", "\udcff.png"),
        ("g", "a.png/"),
        ("/etc", "passwd"),
    ],
)
def test_nothing_else_is_found_whatever_the_names_are_made_of(qa: Path, group: str, name: str):
    with pytest.raises(MissingError, match="no such file"):
        files.qa_file(qa, group, name)


def test_a_picture_that_a_database_names_must_lie_where_pictures_are(tmp_path: Path):
    home, other = tmp_path / "ms", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    (home / "a.png").write_bytes(b"png")
    (other / "b.png").write_bytes(b"png")
    (home / "b.png").symlink_to(other / "b.png")
    (home / "c.fits").write_bytes(b"fits")
    assert files.picture(str(home / "a.png"), [home]) == home / "a.png"
    for named in (
        None,
        "",
        "a.png",
        str(other / "b.png"),
        str(home / "b.png"),
        str(home / "c.fits"),
        f"{home}/a.png\0",
    ):
        with pytest.raises(MissingError):
            files.picture(named, [home])


def test_pictures_of_the_last_groups_come_first(tmp_path: Path):
    for group in ("2025-10-02T00:00:00", "2025-10-03T00:00:00"):
        (tmp_path / group).mkdir()
        for name in ("b.png", "a.JPG", "c.json"):
            (tmp_path / group / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in files.qa_files(tmp_path, group_id=None, limit=3)]
    assert found == ["2025-10-03T00:00:00/a.JPG", "2025-10-03T00:00:00/b.png", "2025-10-02T00:00:00/a.JPG"]
    assert files.qa_files(tmp_path / "none", group_id=None, limit=3) == []
    assert files.qa_files(tmp_path, group_id="..", limit=3) == []


def test_a_token_is_made_once_and_read_by_its_owner_alone(tmp_path: Path):
    path = tmp_path / "state" / "monitor.token"
    word = files.read_token(path)
    assert len(word) >= 32
    assert files.read_token(path) == word
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["monitor.token"]


def test_a_token_that_others_may_read_is_none(tmp_path: Path):
    path = tmp_path / "monitor.token"
    files.read_token(path)
    path.chmod(0o640)
    with pytest.raises(InputError, match="others may read"):
        files.read_token(path)


@pytest.mark.parametrize("text", ["", "short", "two words and more of them", "caf\u00e9-caf\u00e9-caf\u00e9-caf\u00e9"])
def test_what_is_no_token_is_said_and_not_replaced(tmp_path: Path, text: str):
    path = tmp_path / "monitor.token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InputError, match="holds no token"):
        files.read_token(path)
    assert path.read_text() == text


def test_none_is_made_where_none_is_to_be(tmp_path: Path):
    with pytest.raises(MissingError, match="monitor token"):
        files.read_token(tmp_path / "monitor.token", make=False)
    assert not (tmp_path / "monitor.token").exists()


def test_an_address_is_taken_back_only_by_who_gave_it(tmp_path: Path):
    files.write_address(tmp_path, "http://127.0.0.1:8000")
    files.forget_address(tmp_path, "http://127.0.0.1:8001")
    assert files.read_address(tmp_path) == "http://127.0.0.1:8000"
    files.forget_address(tmp_path, "http://127.0.0.1:8000")
    assert files.read_address(tmp_path) is None


def test_of_each_group_the_newest_picture_is_found_however_many_another_has(tmp_path: Path):
    for number, (group, name) in enumerate((("b", "z.png"), ("a", "c.png"), ("b", "a.png"), ("a", "x.json"))):
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / name).write_bytes(b"x")
        os.utime(tmp_path / group / name, (1000.0 + number, 1000.0 + number))
    for number in range(1200):
        (tmp_path / "b" / f"m{number:04d}.png").write_bytes(b"")
        os.utime(tmp_path / "b" / f"m{number:04d}.png", (5.0, 5.0))
    found = files.newest_pictures(tmp_path, limit=10)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["b/a.png", "a/c.png"]
    assert files.newest_pictures(tmp_path, limit=1) == found[:1]
    assert files.newest_pictures(tmp_path / "none", limit=1) == []
