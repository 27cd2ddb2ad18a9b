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
from nightbeam.catalog.elog_model import LAST_CHANGE
from nightbeam.catalog.elog_schema import VIEWS, ElogBase
from nightbeam.cli import main
from nightbeam.elogsync.export import columns_of

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _plain(_clean_environ, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    # What is asked again is asked again at once.
    monkeypatch.setattr("nightbeam.elog.remote._LONGEST_WAIT_S", 0.01)
    for name in [name for name in os.environ if name.startswith("FETCH_ELOG_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "mirror"


@pytest.fixture
def elog(fake, place, capsys):
    """Run a command on the logbook and the mirror; returns exit code, standard output, standard error."""

    def run(command, *arguments, group=()):
        argv = ["elog", *map(str, group), command, *map(str, arguments), "--database-dir", str(place)]
        if command in ("update", "fetch", "retry", "list-experiments") or "--remote" in arguments:
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
    assert not place.exists()


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
    code, out, _ = elog("list-experiments", "--hours", "168", "--json", "--exclude", two[0].upper())
    assert (code, [row["name"] for row in lines(out)]) == (0, [two[1]])
    elog("update")
    code, out, _ = elog("list", "--json", "--exclude", two[0].upper())
    assert [row["experiment_id"] for row in lines(out)] == [two[1]]
    code, _, err = elog("list", "--hours", "24")
    assert code == 64
    assert "--remote" in err


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


def test_what_a_failed_first_update_removes_is_its_own_only(elog, place, two):
    place.mkdir()
    theirs = ["elog.db-old", "elog.db-2025-backup", ".elog.db.my-lock", ".elog.db.clock"]
    for name in theirs:
        (place / name).write_text("mine")
    assert elog("fetch", "nosuch99")[0] == 2
    assert sorted(path.name for path in place.iterdir()) == sorted([*theirs, "failed_experiments.json"])


def last_update(place, value=None):
    book = Logbook(f"sqlite:///{place}/elog.db", create=False)
    if value is not None:
        book.set_metadata(last_update=value)
    return book.metadata().get("last_update")


def test_only_an_update_counts_as_one(elog, place, fake, two, monkeypatch):
    monkeypatch.setenv("NIGHTBEAM_ELOG__UPDATE_FREQUENCY_HOURS", "12")
    elog("fetch", two[0])
    assert last_update(place) is None
    assert "nothing done" not in elog("update")[2]
    last_update(place, "2026-01-02T03:04:05+00:00")
    elog("fetch", two[0])
    assert last_update(place) == "2026-01-02T03:04:05+00:00"


@pytest.mark.parametrize("known_by", ["list", "mirror"])
def test_an_update_is_not_put_off_while_something_is_owed(elog, place, fake, two, monkeypatch, known_by):
    monkeypatch.setenv("NIGHTBEAM_ELOG__UPDATE_FREQUENCY_HOURS", "12")
    fake.fail(None, "503", route=f"{two[0]}/{'info|elog|runs' if known_by == 'list' else 'runs'}$")
    assert elog("update")[0] == 2
    if known_by == "mirror":
        (place / "failed_experiments.json").unlink()
    fake.recover()
    code, _, err = elog("update")
    assert (code, "nothing done" in err) == (0, False)
    assert "nothing done" in elog("update")[2]


def test_what_nobody_wants_any_more_is_not_owed(elog, place, fake, two, monkeypatch):
    monkeypatch.setenv("NIGHTBEAM_ELOG__UPDATE_FREQUENCY_HOURS", "12")
    fake.fail(None, "503", route=f"{two[0]}/runs$")
    assert elog("update")[0] == 2
    (place / "failed_experiments.json").unlink()
    assert "nothing done" in elog("update", "--exclude", two[0])[2]


def shrink(place):
    """Lose all files, and have something to publish."""
    with sqlite3.connect(place / "elog.db") as mirror:
        mirror.execute("DELETE FROM files")
    Logbook(f"sqlite:///{place}/elog.db", create=False).set_metadata(**{LAST_CHANGE: "now"})


def test_a_snapshot_that_is_not_published_hides_neither_what_came_nor_what_failed(elog, place, fake, two):
    elog("update")
    shrink(place)
    fake.post(two[1], "the jet restarted")
    fake.fail(None, "503", route=f"{two[0]}/runs$")
    code, out, err = elog("update")
    assert code == 3
    assert "what came" in out
    assert "2 experiments, 1 failed" in err
    assert err.index(f"1 of 2 experiments could not be read, or not all of them: {two[0]}") < err.index("not published")
    code, out, _ = elog("update", "--json")
    assert (code, lines(out)[-1]["failed"], lines(out)[-1]["snapshot"]) == (3, 1, None)


def test_a_refused_credential_comes_before_all_else(elog, place, fake, two):
    elog("update")
    shrink(place)
    fake.fail(None, "401", route="elog$")
    code, _, err = elog("update")
    assert code == 77
    assert "not published" in err
    assert "of 2 experiments could not be read" in err
    assert err.index("not published") < err.rindex("fix: say who asks")


def test_an_experiment_that_is_not_there_is_said_and_a_name_is_as_good_as_an_id(elog, fake, two):
    fake.add_experiment("Laser Hall", standing=True)
    fake.post("Laser Hall", "the shutter is stuck")
    assert elog("fetch", "Laser Hall", two[0])[0] == 0
    for words in (("export",), ("search", "shutter")):
        code, out, err = elog(*words, "--experiment", "laserhal")
        assert (code, out) == (66, "")
        assert "laserhal" in err
    assert len(elog("export", "--experiment", "Laser Hall")[1].splitlines()) == 2
    assert "stuck" in elog("export", "Logbook", "--experiment", "Laser Hall", "--format", "json")[1]
    assert [hit["name"] for hit in lines(elog("search", "shutter", "--experiment", "Laser Hall", "--json")[1])]


def test_csv_names_its_columns_even_where_there_are_no_rows(elog, fake, two):
    fake.add_experiment("Laser Hall", standing=True)
    elog("fetch", "Laser Hall")
    code, out, _ = elog("export", "runs", "--experiment", "Laser Hall")
    assert (code, out.splitlines()) == (0, [",".join(columns_of("runs"))])
    assert columns_of("nonsense") == ()


def test_the_columns_are_those_of_the_rows(elog, place, fake, two):
    elog("update")
    book = Logbook(f"sqlite:///{place}/elog.db", create=False)
    seen = 0
    for table in [*ElogBase.metadata.tables, *(view.name for view in VIEWS)]:
        for row in list(book.rows(table))[:1]:
            assert tuple(row) == columns_of(table), table
            seen += 1
    assert seen > 10


def test_a_configuration_file_is_named_before_or_after_the_command(elog, tmp_path, fake, two):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"exclude_patterns: ['{two[0]}']")
    second.write_text(f"exclude_patterns: ['{two[1]}']")
    for group, arguments, seen in [
        (["-c", first], [], two[1]),
        ([], ["--config", first], two[1]),
        (["--config", first], ["-c", second], two[0]),
    ]:
        _, out, _ = elog("update", "--dry-run", "--json", *arguments, group=group)
        assert [row["experiment"] for row in lines(out)] == [seen]


def test_quiet_is_errors_only(elog, place, fake, two):
    assert elog("update", group=["-q"]) == (0, "", "")
    fake.fail(None, "503", route=f"{two[0]}/runs$")
    code, out, err = elog("update", group=["-q"])
    assert (code, out) == (2, "")
    assert [line for line in err.splitlines() if not line.startswith(("nightbeam: 1 of 2", "  fix:"))] == []


def test_verbose_is_every_question(elog, fake, two):
    _, _, err = elog("update", group=["-v"])
    assert err.count(" GET ") == len(fake.requests)


def test_rows_are_utf_8_whatever_the_terminal_says(elog, place, fake, two):
    fake.post(two[0], "das Gerät läuft 実験 🎈")
    elog("update")
    argv = [sys.executable, "-m", "nightbeam", "elog", "export", "Logbook", "--database-dir", str(place)]
    done = subprocess.run(argv, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0, done.stderr
    assert "das Gerät läuft 実験 🎈" in done.stdout.decode("utf-8")
    assert b"\r\n" in done.stdout
    assert b"\r\r\n" not in done.stdout


def test_a_spreadsheet_finds_no_formula(elog, fake, two):
    fake.post(two[0], '=HYPERLINK("http://outside.invalid","jet")')
    elog("update")
    assert ',"=HYPERLINK' in elog("export", "Logbook")[1]
    _, out, _ = elog("export", "Logbook", "--spreadsheet")
    assert ",\"'=HYPERLINK" in out
    assert elog("export", "Logbook", "--spreadsheet", "--format", "json")[0] == 64


def test_an_experiment_that_is_named_twice_is_read_once(elog, fake, two):
    fake.add_experiment("Laser Hall", standing=True)
    _, out, _ = elog("fetch", two[0], two[0], "Laser Hall", "Laser_Hall", "--json")
    assert {row["experiment"] for row in lines(out)[:-1]} == {two[0], "Laser_Hall"}
    assert lines(out)[-1]["experiments"] == 2
    assert [request.route for request in fake.requests].count("info") == 2


def test_a_retry_of_nothing_is_no_failure(elog, place, tmp_path, two):
    code, _, err = elog("retry")
    assert (code, "nothing to read again" in err, place.exists()) == (0, True, False)
    assert elog("retry", "--file", tmp_path / "none.json")[0] == 66
    assert elog("retry", "--file", tmp_path)[0] == 64
    (tmp_path / "empty.json").write_text("[]")
    assert elog("retry", "--file", tmp_path / "empty.json")[0] == 0


def test_a_token_file_that_would_not_be_read_is_an_error(elog, tmp_path, two):
    code, _, err = elog("update", "--token-file", tmp_path / "token")
    assert code == 64
    assert "--auth bearer" in err


@pytest.mark.parametrize(
    "old",
    [
        ["--incremental"],
        ["-i", "elog_2025_0101_0000.db"],
        ["--queue-size", "100", "--batch-size", "50"],
        ["-q", "5", "-b", "5"],
        ["--incremental=x.db"],
    ],
)
def test_crontabs_of_elogfetch_go_on_working(elog, two, old):
    code, _, err = elog("update", *old)
    assert code == 0
    assert len([line for line in err.splitlines() if "nothing of the kind is needed" in line]) == 1
    assert elog("update", *old, group=["-q"]) == (0, "", "")
    assert "incremental" not in elog("update", "--help")[1]


def test_places_that_are_none_are_said(elog, place, tmp_path, two):
    elog("update")
    code, _, err = elog("export", "runs", "--file", tmp_path / "none" / "x.csv")
    assert code == 66
    assert str(tmp_path / "none") in err
    assert elog("export", "runs", "--file", tmp_path)[0] == 64


@pytest.mark.parametrize("below", ["", "there"])
@pytest.mark.parametrize("command", ["status", "update", "list", "retry"])
def test_a_file_in_place_of_the_directory_is_said(tmp_path, capsys, command, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["elog", command, "--database-dir", str(tmp_path / "file" / below)])
    assert ended.value.code == 78
    assert f"{tmp_path / 'file'} is no directory" in capsys.readouterr().err


def test_a_log_file_has_what_was_done_however_quietly(elog, tmp_path, fake, two):
    file = tmp_path / "home" / ".config" / "elogfetch" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("log_file: ~/elog.log\n")
    fake.fail(None, "503", route=f"{two[0]}/runs$")
    assert elog("update", group=["-q"])[0] == 2
    text = (tmp_path / "home" / "elog.log").read_text()
    assert "nightbeam elog update" in text
    assert text.count(" GET ") == len(fake.requests)
    assert "2 experiments, 1 failed" in text
    assert "exit code 2: 1 of 2 experiments could not be read" in text


def test_an_experiment_that_is_gone_is_told_to_who_fetches_it_and_does_not_stay_in_the_list_for_ever(
    elog, place, fake, two
):
    assert elog("update")[0] == 0
    fake.delete_experiment(two[0])
    code, _, err = elog("fetch", two[0])
    assert code == 2
    assert two[0] in err
    assert elog("retry")[0] == 0
    assert not (place / "failed_experiments.json").exists()


def test_what_waits_for_the_next_update_is_counted(elog, tmp_path, fake, two):
    assert elog("update")[0] == 0
    file = tmp_path / "home" / ".config" / "elogfetch" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("due_most: 1\nfull_days: 1.0e-9\nhours_lookback: 0.001\n")
    code, _, err = elog("update")
    assert code == 0
    assert "1 more are due and wait for the next update" in err
