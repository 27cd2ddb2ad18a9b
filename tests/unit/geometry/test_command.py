"""``nightbeam geometry show``: what a script and a person get."""

from __future__ import annotations

import json

import pytest

from nightbeam.cli import main


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["geometry", *(str(word) for word in argv)])
    return int(stopped.value.code or 0)


def test_numbers_for_programs(geom, capsys):
    assert run("show", geom / "jf-swissfel-16M.geom", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    wanted = {"panels": 32, "bad": 4, "slab": [16448, 1030], "groups": {}, "warnings": [], "pixels": 16941440}
    assert {key: said[key] for key in wanted} == wanted
    assert (said["clen"], said["crystfel_complaints"]) == ("95.3 mm", [])


def test_groups_are_counted_by_name(geom, capsys):
    run("show", geom / "cspad-cxiformat.geom", "--json")
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert (len(groups), groups["a0"], groups["q0"], groups["all"]) == (37, 2, 8, 4)


def test_what_is_doubtful_is_told_on_standard_error(geom, capsys):
    assert run("show", geom / "epix10k2M-mfx.geom") == 0
    out, err = capsys.readouterr()
    assert "5632 x 384" in out
    assert "warning: CrystFEL 0.12 refuses: the camera length (clen) is not given" in err


@pytest.mark.parametrize(("text", "code"), [(None, 66), ("what", 65)])
def test_a_file_that_is_none_is_one_error(tmp_path, capsys, text, code):
    if text is not None:
        (tmp_path / "x.geom").write_text(text)
    assert run("show", tmp_path / "x.geom") == code
    assert "x.geom" in capsys.readouterr().err
