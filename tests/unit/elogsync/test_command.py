"""``nightbeam elog`` from the outside: what it prints, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest

from nightbeam.catalog import Logbook
from nightbeam.cli import main


@pytest.fixture(autouse=True)
def _plain(_clean_environ, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name in [name for name in os.environ if name.startswith("FETCH_ELOG_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "mirror"


@pytest.fixture
def elog(fake, place, capsys):
    """Run a command on the logbook and the mirror; returns exit code, standard output, standard error."""

    def run(command, *arguments):
        argv = ["elog", command, *map(str, arguments), "--database-dir", str(place)]
        if command in ("update", "fetch", "retry") or "--remote" in arguments:
            argv += ["--base-url", fake.url, "--auth", "none"]
        with pytest.raises(SystemExit) as ended:
            main(argv)
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def two(fake):
    fake.populate(2, 10, 4, 6, parameters=8, seed=2)
    return fake.experiments


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_an_update_reads_publishes_and_says_what_came(elog, place, two):
    code, out, _ = elog("update", "--json")
    assert code == 0
    *each, whole = lines(out)
    assert {row["experiment"] for row in each} == set(two)
    assert (whole["kind"], whole["experiments"], whole["failed"]) == ("update", 2, 0)
    assert whole["new"] > 0
    with sqlite3.connect(whole["snapshot"]) as copy:
        assert copy.execute("SELECT count(*) FROM Logbook").fetchone()[0] > 0
    code, out, _ = elog("update", "--json")
    assert (lines(out)[-1]["new"], lines(out)[-1]["changed"], lines(out)[-1]["snapshot"]) == (0, 0, None)
    assert len(list(place.glob("elog_*.db"))) == 1


def test_a_dry_run_reads_no_list_and_leaves_no_file(elog, place, two, fake):
    code, out, _ = elog("update", "--dry-run", "--json")
    assert code == 0
    assert {row["experiment"] for row in lines(out)} == set(two)
    assert {request.route for request in fake.requests} <= {"experiments", "experiment_names_updated_within"}
    assert not place.exists() or [p.name for p in place.iterdir() if p.suffix == ".db"] == []


def test_some_failures_are_exit_code_2_a_list_and_a_retry(elog, place, two, fake):
    fake.fail(None, "503", route=f"{two[0]}/runs$")
    code, _, err = elog("update")
    assert code == 2
    assert two[0] in err
    listed = json.loads((place / "failed_experiments.json").read_text())
    assert [item["experiment_id"] for item in listed] == [two[0]]
    code, out, _ = elog("status", "--json")
    assert [two[0] in line for line in lines(out)[0]["failing"]] == [True]
    fake.recover()
    assert elog("retry")[0] == 0
    assert not (place / "failed_experiments.json").exists()
    assert elog("retry")[0] == 66


def test_an_unknown_experiment_is_named_and_leaves_no_database(elog, place, two):
    code, _, err = elog("fetch", "nosuch99")
    assert code == 2
    assert "nosuch99" in err
    assert list(place.glob("*elog*db*")) == []


def test_one_experiment_can_be_fetched_by_its_name(elog, fake, two):
    fake.add_experiment("Sample Delivery System", standing=True)
    fake.post("Sample Delivery System", "<p>Jet <b>clogged</b></p>", title="jet")
    assert elog("fetch", "Sample Delivery System")[0] == 0
    code, out, _ = elog("search", "clogged", "--json")
    assert (code, [hit["name"] for hit in lines(out)]) == (0, ["Sample Delivery System"])
    assert elog("search", "clogged", "--since", "yesterday")[0] == 64


def test_without_a_credential_it_is_exit_code_77_with_the_remedy(fake, place, two, capsys):
    argv = ["elog", "update", "--base-url", fake.url, "--auth", "bearer", "--token-file", str(place / "none")]
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--database-dir", str(place)])
    assert ended.value.code == 77
    assert "fix:" in capsys.readouterr().err
    assert list(place.glob("*.db")) == []


def test_a_second_update_is_exit_code_75_and_says_who_has_the_mirror(elog, place, two):
    elog("update")
    with Logbook(f"sqlite:///{place}/elog.db").sole_writer():
        code, _, err = elog("update")
    assert code == 75
    assert str(os.getpid()) in err


@pytest.mark.parametrize("form", ["csv", "json", "ndjson"])
def test_rows_are_exported_whole_or_not_at_all(elog, tmp_path, two, form):
    elog("update")
    file = tmp_path / f"runs.{form}"
    assert elog("export", "runs", "--format", form, "--file", file)[0] == 0
    assert file.stat().st_size > 100
    assert elog("export", "nonsense", "--file", tmp_path / "x")[0] == 64
    assert not (tmp_path / "x").exists()


def test_the_mirror_and_its_snapshot_are_verified(elog, place, two):
    elog("update")
    assert elog("verify")[0] == 0
    snapshot = next(place.glob("elog_*.db"))
    with snapshot.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096)
    code, out, _ = elog("verify", "--json")
    assert code == 65
    assert {row["of"] for row in lines(out)} == {str(snapshot)}


def test_lists_and_the_older_names_of_commands(elog, two):
    code, out, _ = elog("list", "--remote", "--json")
    assert (code, {row["name"] for row in lines(out)}) == (0, set(two))
    elog("update")
    code, out, _ = elog("list-experiments", "--json", "--exclude", two[0].upper())
    assert [row["experiment_id"] for row in lines(out)] == [two[1]]


def test_an_update_waits_for_its_time_unless_it_is_forced(elog, fake, two, monkeypatch):
    monkeypatch.setenv("NIGHTBEAM_ELOG__UPDATE_FREQUENCY_HOURS", "12")
    elog("update")
    fake.forget()
    code, _, err = elog("update")
    assert (code, fake.requests) == (0, [])
    assert "nothing done" in err
    elog("update", "--force")
    assert fake.requests != []


def test_configuration_file_environment_and_options_in_this_order(elog, tmp_path, fake, two, monkeypatch):
    file = tmp_path / "home" / ".config" / "elogfetch" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"exclude_patterns: ['{two[0]}']\nhours_lookback: 500\n")
    _, out, _ = elog("list", "--remote", "--json")
    assert {row["name"] for row in lines(out)} == {two[1]}
    monkeypatch.setenv("FETCH_ELOG_HOURS_LOOKBACK", "600")
    elog("list", "--remote")
    elog("list", "--remote", "--hours", "700")
    hours = [request.args["offset_secs"] for request in fake.requests]
    assert [int(float(str(h).strip("[]'"))) for h in hours] == [500 * 3600, 600 * 3600, 700 * 3600]
    file.write_text("hours_lokback: 5\n")
    assert elog("list")[0] == 78


@pytest.mark.parametrize(("what", "code"), [("text", 65), ("directory", 65)])
def test_what_is_no_mirror_is_said_and_left_alone(elog, place, two, what, code):
    place.mkdir()
    file = place / "elog.db"
    if what == "text":
        file.write_text("not a database " * 100)
    else:
        with sqlite3.connect(file) as other:
            other.execute("CREATE TABLE Experiment (experiment_id TEXT)")
    before = file.read_bytes()
    assert elog("update")[0] == code
    assert file.read_bytes() == before


def test_it_is_also_installed_as_elogfetch():
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['elogfetch', '--help']; "
         "from nightbeam.cli.elog import elogfetch; elogfetch()"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "update" in done.stdout


def test_a_killed_update_leaves_the_lock_free_and_the_next_one_goes_on(fake, place, two, elog):
    fake.fail(None, "slow", route="/files$", seconds=30)
    argv = [sys.executable, "-m", "nightbeam", "elog", "update", "--base-url", fake.url, "--auth", "none"]
    process = subprocess.Popen([*argv, "--database-dir", str(place)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while not any(request.route == "runs" for request in fake.requests):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()
    fake.recover()
    assert elog("update")[0] == 0
