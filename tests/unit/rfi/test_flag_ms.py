"""Flags come all at once or not at all, and none is ever lost; a script stands for AOFlagger."""

import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError, MissingError, RejectedError, StorageError, ToolError, UsageError
from nightbeam.rfi import FlagOptions, FlagReport, flag_ms
from nightbeam.rfi.files import merge_flags, read_report, twin

write_analytic_ms = runpy.run_path(str(Path(__file__).resolve().parents[2] / "analytic_ms.py"))["write_analytic_ms"]
CENTRE = (70.9, 54.52)

FLAGS_CHANNEL_2 = """
import sys
from casacore.tables import table
opened = table(sys.argv[-1], readonly=False, ack=False)
flags = opened.getcol("FLAG")
flags[:] = False
flags[:, 2] = True
opened.putcol("FLAG", flags)
opened.close()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("rfi") / "made.ms"
    return write_analytic_ms(path, centre=CENTRE, sources=[(*CENTRE, 1.0)], antennas=5, channels=4, integrations=2)


@pytest.fixture
def ms(made, tmp_path):
    """Its first row is flagged, and channel 0 of its second: 4 + 1 of 80 channels."""
    own = shutil.copytree(made, tmp_path / "own.ms")
    with open_table(own, write=True) as table:
        flags = table.getcol("FLAG")
        flags[0], flags[1, 0] = True, True
        table.putcol("FLAG", flags)
    return own


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put something named aoflagger on the path."""

    def write(script="exit 0", *, python=""):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "does.py").write_text(python)
        script = f'exec {sys.executable} {folder}/does.py "$@"' if python else script
        version = 'if [ $# = 0 ]; then echo "AOFlagger 3.1 (2021)"; exit 1; fi'
        text = f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{version}\n{script}\n'
        (folder / "aoflagger").write_text(text)
        (folder / "aoflagger").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return write


@pytest.fixture
def flag(ms, tmp_path):
    def run(**more):
        return flag_ms(ms, work_dir=tmp_path / "scratch", log=tmp_path / "log", timeout_s=60.0, **more)

    return run


def flags(ms):
    with open_table(ms) as table:
        return table.getcol("FLAG")


def pixels(ms):
    with open_table(ms) as table:
        return table.getcol("DATA")


def test_what_is_found_is_added_to_what_was_flagged(ms, flag, program, tmp_path):
    program(python=FLAGS_CHANNEL_2)
    data = pixels(ms)
    report = flag()
    assert (report.before, report.after) == (5 / 80, (5 + 19) / 80)
    found = flags(ms)
    assert all(part.all() for part in (found[0], found[1, 0], found[:, 2]))
    assert found.mean() == 24 / 80
    assert np.array_equal(pixels(ms), data)
    assert (report.engine, report.version, report.strategy) == ("aoflagger", "3.1", "default")
    assert sorted(p.name for p in tmp_path.glob("own.ms*")) == ["own.ms"]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert [p.stat().st_nlink for p in ms.iterdir() if p.is_file()] == [1] * sum(p.is_file() for p in ms.iterdir())


def test_what_runs_for_a_flow_is_known_by_whose_it_is(flag, program, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", "/state/prefect")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "run 7")
    program('echo "of $PREFECT_HOME, $PREFECT__FLOW_RUN_ID"; exit 1')
    with pytest.raises(ToolError, match="of /state/prefect, run 7"):
        flag()


def test_a_set_is_flagged_once_by_each_strategy(ms, flag, program, tmp_path):
    program(python=FLAGS_CHANNEL_2)
    first = flag()
    assert flag() == first == read_report(ms)
    runs = [line for line in (tmp_path / "calls").read_text().splitlines() if line]
    assert len(runs) == 1
    strategy = tmp_path / "own.lua"
    strategy.write_text("function execute(input) end")
    again = flag(options=FlagOptions(strategy=strategy))
    assert (again.before, again.after, again.strategy) == (24 / 80, 24 / 80, "own.lua")


@pytest.mark.parametrize(
    ("script", "error", "what"),
    [
        ("echo 'bad.lua:1: syntax error'; exit 30", ToolError, "syntax error"),
        ("kill -9 $$", ToolError, "signal 9"),
        ("echo 'FiledesIO::write - write error in table.f1_TSM0'; kill -6 $$", StorageError, "no room"),
    ],
)
def test_a_flagger_that_fails_leaves_the_set_as_it_was(ms, flag, program, tmp_path, script, error, what):
    program(script)
    before = flags(ms)
    with pytest.raises(error, match=what):
        flag()
    assert np.array_equal(flags(ms), before)
    assert read_report(ms) is None
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_flagger_killed_in_the_middle_of_writing_leaves_the_set_as_it_was(ms, flag, program):
    program(python=FLAGS_CHANNEL_2 + "import os; os.kill(os.getpid(), 9)")
    before = flags(ms)
    with pytest.raises(ToolError, match="signal 9"):
        flag()
    assert np.array_equal(flags(ms), before)


def test_what_a_killed_run_left_beside_the_set_is_removed(ms, flag, program, tmp_path):
    program(python=FLAGS_CHANNEL_2)
    left = twin(ms, tmp_path / f".own.ms.{os.getpid()}.abcd.part", link=os.link)
    flag()
    assert not left.exists()
    assert flags(ms)[:, 2].all()


def test_a_set_that_is_found_moved_aside_is_put_back_and_flagged(ms, flag, program):
    program(python=FLAGS_CHANNEL_2)
    ms.rename(ms.with_name(f".own.ms.{os.getpid()}.abcd.old"))  # killed between two renames, on a network file system
    assert flag().after == 24 / 80
    assert not list(ms.parent.glob(".own.ms.*.old"))


def test_the_set_is_there_at_every_moment(ms, flag, program, monkeypatch):
    program(python=FLAGS_CHANNEL_2)
    real, seen = Path.rename, []

    def watched(self, target):
        result = real(self, target)
        seen.append(ms.is_dir())
        return result

    monkeypatch.setattr(Path, "rename", watched)
    flag()
    assert all(seen)


def test_too_much_flagged_is_turned_down_and_the_set_is_as_it_was(ms, flag, program):
    program(python=FLAGS_CHANNEL_2)
    with pytest.raises(RejectedError, match=r"30\.0 % are flagged \(6\.2 % before"):
        flag(options=FlagOptions(max_flagged_fraction=0.2))
    assert flags(ms).mean() == 5 / 80
    flag()
    with pytest.raises(RejectedError):
        flag(options=FlagOptions(max_flagged_fraction=0.2))


def test_what_is_missing_is_said_before_any_work(ms, flag, program, monkeypatch, tmp_path):
    program()
    with pytest.raises(MissingError, match="strategy"):
        flag(options=FlagOptions(strategy=tmp_path / "none.lua"))
    with pytest.raises(UsageError):
        FlagOptions(max_flagged_fraction=0.0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="not installed") as caught:
        flag()
    assert "apt-get install aoflagger" in caught.value.fix
    assert not (tmp_path / "scratch").exists()


def test_a_twin_has_flags_of_its_own_and_no_copy_of_the_data(ms, tmp_path):
    other = twin(ms, tmp_path / "twin.ms")
    with open_table(other, write=True) as table:
        table.putcol("FLAG", ~table.getcol("FLAG"))
    assert flags(ms).mean() == 5 / 80
    assert flags(other).mean() == 75 / 80
    assert merge_flags(ms, other) == (5 / 80, 1.0)
    assert any(path.is_symlink() for path in other.iterdir())


def test_flags_of_another_set_are_refused(ms, made, tmp_path):
    other = write_analytic_ms(
        tmp_path / "o.ms", centre=CENTRE, sources=[(*CENTRE, 1.0)], antennas=4, channels=4, integrations=2
    )
    with pytest.raises(InputError, match="rows"):
        merge_flags(ms, other)


def test_a_report_of_another_version_of_ours_is_as_good_as_none(ms):
    with open_table(ms, write=True) as table:
        table.putkeyword("NIGHTBEAM_RFI", '{"engine": "aoflagger"}')
    assert read_report(ms) is None


def test_ways_differ_by_program_version_and_script():
    one = FlagReport(
        engine="aoflagger", version="3.1", strategy="a", strategy_sha256="x", before=0.1, after=0.2, seconds=1.0
    )
    assert one.same_way(FlagReport(**one.to_json() | {"after": 0.3, "strategy": "b"}))
    assert not one.same_way(FlagReport(**one.to_json() | {"version": "3.2"}))
