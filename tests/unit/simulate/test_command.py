"""``nightbeam simulate subbands``, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nightbeam.cli import main

SMALL = ["--antennas", "4", "--channels", "2", "--integrations", "2", "--subbands", "2", "--sources", "1"]


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["simulate", "subbands", *words])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_files_and_truth_are_written_and_each_group_is_one_line_of_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    code, text, talk = _run(capsys, str(out), *SMALL, "--groups", "2", "--fault", "missing-subband:1@1", "--json")
    rows = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert [(len(r["files"]), r["missing"]) for r in rows] == [(2, []), (1, [1])]
    assert len(list(out.glob("*.hdf5"))) == 3
    assert (out / "truth.json").is_file()
    assert talk.count("wrote") == 3


def test_people_see_one_line_a_group_in_eighty_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, text, _ = _run(
        capsys, str(tmp_path / "out"), *SMALL, "--fault", "missing-subband:1", "--fault", "late-subband:0"
    )
    line = next(line for line in text.splitlines() if "2025-10-03T11:48:57" in line)
    assert "missing 1, late 0" in line
    assert "54.5" in line


def test_a_night_of_everything_says_what_goes_wrong_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [*SMALL, "--groups", "20", "--fault-rate", "1", "--arrivals", "real", "--dry-run"]
    _, text, _ = _run(capsys, str(tmp_path / "out"), *words)
    shown = " ".join(text.replace("│", " ").split())
    assert all(word in shown for word in ("zero-byte", "clock-jump", "foreign-file", "rfi-line", "wrong-pointing"))
    _, text, _ = _run(capsys, str(tmp_path / "out"), *words, "--json")
    rows = [json.loads(line) for line in text.splitlines()]
    assert {"completed", "incomplete"} <= {row["outcome"] for row in rows}
    assert all(bool(row["reason"]) == (row["outcome"] != "completed") for row in rows)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, text, _ = _run(capsys, str(tmp_path / "out"), "--calibrator", "3C48", "--dry-run", "--json")
    assert code == 0
    assert json.loads(text)["calibrator"] == "0137+331"
    assert not (tmp_path / "out").exists()


def test_a_sky_of_ones_own_no_noise_and_no_gains(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sky = tmp_path / "sky.csv"
    sky.write_text("name,ra_deg,dec_deg,flux_jy\nA,71.5,54.6,2\n")
    words = [*SMALL[:-2], "--sources", str(sky), "--noise", "none", "--no-gains", "--start", "2025-10-03T12:00:00Z"]
    code, text, _ = _run(capsys, str(tmp_path / "out"), *words, "--json")
    truth = json.loads((tmp_path / "out" / "truth.json").read_text())
    assert code == 0
    assert json.loads(text)["group_id"] == "2025-10-03T12:00:00"
    assert [s["name"] for s in truth["sources"]] == ["A"]
    assert (truth["noise_jy"], truth["gains"]) == (None, {})


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--fault", "fire"], 64, "no fault 'fire'"),
        (["--fault", "clock-jump=soon"], 64, "'soon' is no number"),
        (["--fault-rate", "2"], 64, "the fault rate is 2"),
        (["--arrivals", "never"], 64, "never"),
        (["--noise", "loud"], 64, "'loud' is no noise"),
        (["--start", "yesterday"], 64, "'yesterday' is no time"),
        (["--antennas", "1"], 64, "1 antennas"),
        (["--sources", "none.csv"], 66, "no source list none.csv"),
        (["--calibrator", "3C999"], 66, "no calibrator '3C999'"),
        (["--bogus"], 64, "No such option"),
    ],
)
def test_a_wrong_option_ends_with_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
):
    found, text, error = _run(capsys, str(tmp_path / "out"), *words)
    assert (found, text) == (code, "")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_second_run_needs_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "out")
    assert _run(capsys, out, *SMALL)[0] == 0
    code, _, error = _run(capsys, out, *SMALL)
    assert (code, "is not empty" in error) == (65, True)
    assert _run(capsys, out, *SMALL, "--overwrite")[0] == 0
