"""Whatever the data are, a table shows them and nothing else happens."""

from __future__ import annotations

import io
import sys

import pytest

from nightbeam.cli.output import printable, show, talk


@pytest.mark.parametrize("text", ["[/b]", "[red]12", "[link=file:///etc]a[/link]", "a[", "\\[b]", ":smiley:", "[/]"])
def test_brackets_and_colons_are_shown_as_they_are(capsys, text):
    show([{"name": text}], title=text)
    show([{text: 1}])
    assert capsys.readouterr().out.count(text) == 3


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x9b2Jb", r"a\x9b2Jb"),
        ("a\x07\x08b", r"a\x07\x08b"),
        ("a\rb", r"a\rb"),
        ("a\u202eb", r"a\u202eb"),
        ("a\udcffb", r"a\udcffb"),
        ("a\x00b", r"a\x00b"),
    ],
)
def test_no_order_reaches_the_terminal(capsys, text, seen):
    show([{"name": text, text: 1}], title=text)
    talk(text)
    out, err = capsys.readouterr()
    assert (out.count(seen), err) == (3, seen + "\n")
    assert not set(text) & set("\x1b\x9b\x07\x08\r\u202e\udcff\x00") & set(out + err)


def test_line_breaks_that_are_meant_stay(capsys):
    talk("one\n  two\tthree")
    assert capsys.readouterr().err == "one\n  two\tthree\n"
    show([{"name": "one\ntwo"}])
    assert len([line for line in capsys.readouterr().out.splitlines() if "one" in line or "two" in line]) == 2
    assert printable("one\ntwo", keep="") == r"one\ntwo"
    assert printable("Größe 10 µJy → ok") == "Größe 10 µJy → ok"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_terminal_has_not_are_no_error(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    show([{"name": "μ"}])
    sys.stdout.flush()
    assert ("μ" if encoding == "utf-8" else r"\u03bc") in raw.getvalue().decode(encoding)


def test_where_there_is_nothing_that_is_said_to_the_person_and_not_to_the_program(capsys):
    show([], title="mosaics")
    assert capsys.readouterr() == ("", "mosaics: none\n")
    show([], as_json=True, title="mosaics")
    assert capsys.readouterr() == ("", "")


def test_what_is_much_wider_than_the_terminal_can_still_be_copied_from(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = "/data/" + "deep/" * 30 + "one.ms"
    show(
        [{"path": path, "kind": "ms", "size_bytes": 5}, {"path": path + "x", "kind": "image", "size_bytes": None}],
        title="held",
    )
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()] == [
        ["held", "1", "of", "2"], ["path", path], ["kind", "ms"], ["size", "bytes", "5"],
        ["held", "2", "of", "2"], ["path", path + "x"], ["kind", "image"], ["size", "bytes", "-"],
    ]  # fmt: skip


def test_lists_and_facts_are_words_and_not_json(capsys):
    show([{"tiles": ["a", "b"], "seconds": {"convert": 8.25, "image": None}, "none": [], "empty": {}}])
    row = capsys.readouterr().out.splitlines()[3]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["a, b", "convert 8.25, image -", "-", "-"]


def test_long_sentences_are_folded_in_a_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show([{"what": "a thing", "expected": "nothing", "found": "a sentence of many short words " * 12}])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "what" in lines[1]
    assert "expected" in lines[1]
