"""Looking at the input directory and bringing the queue up to date."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from nightbeam.catalog import Owner
from nightbeam.contimg import Site, Tools, arrivals, scan_arrivals, scan_until_ready, take_dispatchable
from nightbeam.contimg.owners import is_dead, owned_scratch, remove_dead_scratch, scratch_maker, this_process
from nightbeam.contimg.report import group_report
from nightbeam.core.errors import InputError, MissingError, StorageError
from nightbeam.core.locks import sole_owner
from nightbeam.core.settings import Settings
from nightbeam.ingest import list_names

G = "2025-10-02T01:02:03"
START_JD = 2460950.5 + (3723.25 / 86400)


def read(path: Path) -> Any:
    text = path.read_text()
    if not text.startswith("+"):
        raise InputError(f"{path.name} is not HDF5")
    late_s, _, dec_rad = text.partition("@")
    start = START_JD + float(late_s) / 86400
    return SimpleNamespace(subband=None, start_jd=start, mid_jd=start + 0.0018, dec_rad=float(dec_rad or 0.5))


TOOLS = Tools(read_header=read)


@pytest.fixture
def site(tmp_path: Path, contimg_databases: dict[str, str]) -> Site:
    site = Site.from_settings(
        Settings.model_validate(
            {"state_dir": tmp_path / "state", "contimg": {"ingest": {"settle_s": 0}, **contimg_databases}}
        )
    )
    site.input_dir.mkdir(parents=True)
    return site


def put(site: Site, sb: int, *, second: int = 1, text: str = "+0.0") -> Path:
    path = site.input_dir / f"2025-10-02T01:02:{second:02d}_sb{sb:02d}.hdf5"
    path.write_text(text)
    return path


def test_a_group_becomes_pending_with_its_last_subband_and_is_dispatched_once(site: Site):
    for sb in range(15):
        put(site, sb, second=sb)
    report = scan_arrivals(site, tools=TOOLS)
    assert (report.new_files, report.groups, report.became_pending) == (15, (G,), ())
    assert take_dispatchable(site, 9) == []
    put(site, 15, second=40)
    report = scan_arrivals(site, tools=TOOLS)
    assert (report.new_files, report.became_pending, report.counts["pending"]) == (1, (G,), 1)
    assert [d.group_id for d in take_dispatchable(site, 9)] == [G]
    assert scan_arrivals(site, tools=TOOLS).new_files == 0
    assert take_dispatchable(site, 9) == []


def test_whoever_waits_sees_files_become_ready(site: Site, monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=time.time())

    def sleep(seconds: float) -> None:
        clock.now += seconds

    read_clock = SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now, sleep=sleep)
    for module in ("contimg.arrivals", "ingest.files"):
        monkeypatch.setattr(f"nightbeam.{module}.time", read_clock)
    slow = replace(site, ingest=site.ingest.model_copy(update={"settle_s": 0.6}))
    for sb in range(16):
        put(slow, sb, second=sb)
    at_once = scan_until_ready(slow, 0.0, tools=TOOLS)
    assert (at_once.new_files, len(at_once.unready)) == (0, 16)
    in_time = scan_until_ready(slow, 20.0, tools=TOOLS)
    assert (in_time.new_files, in_time.unready, in_time.became_pending) == (16, {}, (G,))


def test_bad_files_are_kept_with_their_reason_and_the_rest_goes_on(site: Site):
    bad = put(site, 3, text="rubbish")
    put(site, 4)
    report = scan_arrivals(site, tools=TOOLS)
    assert report.bad == {str(bad): f"{bad.name} is not HDF5"}
    assert report.new_files == 1
    assert [b.reason for b in site.queue().bad_files()] == [f"{bad.name} is not HDF5"]
    assert scan_arrivals(site, tools=TOOLS).bad == {}


def test_a_subband_from_another_time_is_a_group_of_its_own_or_bad(site: Site):
    stray = put(site, 2, text="+0.4")  # within the same second: the same name, another start
    assert scan_arrivals(site, tools=TOOLS).bad == {}
    for sb in range(3, 11):
        put(site, sb)
    assert scan_arrivals(site, tools=TOOLS).bad == {}
    put(site, 1, text="+309.24")
    put(site, 0)
    report = scan_arrivals(site, tools=TOOLS)
    assert sorted(report.groups) == [G, "2025-10-02T01:07:12"]
    assert "it starts +0.400 s from the others" in report.bad[str(stray)]
    assert scan_arrivals(site, tools=TOOLS).bad == {}
    assert [s.subband_idx for s in site.queue().subbands(G)] == [0, *range(3, 11)]


def test_a_file_of_another_pointing_is_bad_is_moved_aside_and_the_group_goes_on(site: Site):
    # A file is moved aside after ten minutes; this group is borne for longer.
    site = replace(site, ingest=site.ingest.model_copy(update={"collecting_timeout_s": 3600.0}))
    odd = put(site, 0, text="+0.0@0.51")
    scan_arrivals(site, tools=TOOLS)
    for sb in range(1, 16):
        put(site, sb)
    report = scan_arrivals(site, tools=TOOLS)
    assert list(report.bad) == [str(odd)]
    assert "its pointing is Dec 29.2208 deg, that of the others 28.6479 deg" in report.bad[str(odd)]
    assert site.queue().group(G).state == "collecting"
    assert site.queue().group(G).dec_deg == pytest.approx(28.6479, abs=1e-4)
    later = odd.stat().st_ctime + site.ingest.bad_file_wait_s + 1.0
    assert scan_arrivals(site, tools=TOOLS, now=later).set_aside == (str(odd),)
    put(site, 0)
    assert scan_arrivals(site, tools=TOOLS).became_pending == (G,)


def test_files_whose_header_contradicts_the_others_end_as_the_simulator_states(site: Site, tmp_path: Path):
    from nightbeam.simulate import Fault, SimulationSpec, simulate_subbands

    faults = tuple(map(Fault.parse, ("wrong-pointing:5=0.001@0", "duplicate-subband:7@0", "zero-byte:9@1")))
    spec = SimulationSpec(groups=2, antennas=3, channels=2, integrations=2, sources=0, noise=None, faults=faults)
    truth = simulate_subbands(tmp_path / "night", spec)
    # The same name twice means one file; the first of two for a subband is the first by name, when both are there.
    names = sorted({arrival.name for arrival in truth.arrivals})
    random.Random(1).shuffle(names)
    for part in range(4):
        for name in names[part::4]:
            (tmp_path / "night" / name).rename(site.input_dir / name)
        scan_arrivals(site)
    bad = {Path(row.path).name: row.reason for row in site.queue().bad_files()}
    stated = {arrival.name: arrival.reason for arrival in truth.arrivals if arrival.outcome == "bad"}
    assert bad.keys() == stated.keys()
    assert all(reason in bad[name] or reason == "zero bytes" for name, reason in stated.items())
    for group in truth.groups:
        assert tuple(row.subband_idx for row in site.queue().subbands(group.group_id)) == group.usable
    assert [row.subband_idx for row in site.queue().duplicates()] == [7]


def test_a_few_files_that_contradict_each_other_wait_for_the_time_of_their_group(site: Site):
    odd = put(site, 0, text="+0.0@0.51")
    put(site, 1)
    put(site, 2)
    scan_arrivals(site, tools=TOOLS, now=1000.0)
    assert scan_arrivals(site, tools=TOOLS, now=1339.0).bad == {}
    assert list(scan_arrivals(site, tools=TOOLS, now=1341.0).bad) == [str(odd)]


def test_a_second_file_takes_the_place_of_a_first_that_went_bad(site: Site):
    first = put(site, 3)
    scan_arrivals(site, tools=TOOLS)
    second = put(site, 3, second=30)
    scan_arrivals(site, tools=TOOLS)
    first.write_text("now it is rubbish")
    report = scan_arrivals(site, tools=TOOLS)
    assert (report.new_files, list(report.bad)) == (1, [str(first)])
    assert [s.path for s in site.queue().subbands(G)] == [str(second)]
    assert site.queue().duplicates() == []
    for sb in (n for n in range(16) if n != 3):
        put(site, sb)
    assert scan_arrivals(site, tools=TOOLS).became_pending == (G,)


def test_a_second_file_takes_the_place_of_a_first_that_is_of_another_pointing_in_the_same_scan(site: Site):
    put(site, 3, text="+0.0@0.51")
    second = put(site, 3, second=30)
    assert scan_arrivals(site, tools=TOOLS).duplicates == (str(second),)
    for sb in (n for n in range(16) if n != 3):
        put(site, sb)
    assert scan_arrivals(site, tools=TOOLS).became_pending == (G,)
    assert site.queue().subbands(G)[3].path == str(second)


def test_very_many_files_are_taken_in_some_at_a_time_and_whoever_is_killed_between_loses_none(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        pass

    for number in range(4):
        for sb in range(16):
            put(site, sb, second=number, text=f"+{309.24 * number}")
    put(site, 15, second=40, text="rubbish")
    monkeypatch.setattr(arrivals, "_BATCH", 20)
    opened: list[Path] = []

    def dying(path: Path) -> Any:
        opened.append(path)
        if len(opened) == 50:
            raise Killed
        return read(path)

    with pytest.raises(Killed):
        scan_arrivals(site, tools=Tools(read_header=dying))
    queue = site.queue()
    assert sum(row.subbands_present for row in queue.groups()) == 40
    report = scan_arrivals(site, tools=TOOLS)
    assert (report.new_files, len(report.bad), report.duplicates) == (24, 1, ())
    assert {row.state for row in queue.groups()} == {"pending"}
    assert len(queue.groups()) == 4


def test_whoever_is_asked_to_stop_leaves_the_rest_of_very_many_files_for_another_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    for sb in range(16):
        put(site, sb)
    monkeypatch.setattr(arrivals, "_BATCH", 6)
    asked = iter([False, False, True])
    report = arrivals.take_in(site, list_names(site.input_dir), tools=TOOLS, stop=lambda: next(asked))
    assert report.new_files == 12
    assert arrivals.take_in(site, list_names(site.input_dir), tools=TOOLS).became_pending == (G,)


@pytest.mark.parametrize("ahead_s", [3600.0, 0.0], ids=["the clock was set back by an hour", "it was not"])
def test_files_that_are_dated_ahead_are_taken_in_when_two_looks_saw_them_alike(
    site: Site, monkeypatch: pytest.MonkeyPatch, ahead_s: float
):
    clock = SimpleNamespace(now=0.0)
    paths = [put(site, sb) for sb in range(16)]
    written = max(path.stat().st_ctime for path in paths)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.now += seconds
        if len(pauses) == 1:
            paths[3].write_text("+0.00")  # somebody is still at it

    monkeypatch.setattr(arrivals.time, "sleep", sleep)
    monkeypatch.setattr("nightbeam.ingest.files.time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time))
    slow = replace(site, ingest=site.ingest.model_copy(update={"settle_s": 2.0}))
    now = written - ahead_s if ahead_s else written + 60.0
    report = scan_arrivals(slow, tools=TOOLS, now=now)
    assert (report.new_files, list(report.unready)) == ((15, [str(paths[3])]) if ahead_s else (16, []))
    assert pauses == ([2.0] if ahead_s else [])
    if ahead_s:
        assert scan_arrivals(slow, tools=TOOLS, now=now + 30.0).became_pending == (G,)


def test_duplicates_and_late_files_are_said(site: Site):
    for sb in range(16):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS)
    again = put(site, 5, second=30)
    assert scan_arrivals(site, tools=TOOLS).duplicates == (str(again),)
    assert scan_arrivals(site, tools=TOOLS).duplicates == ()


def test_groups_that_stay_incomplete_are_warned_of_and_failed(site: Site):
    put(site, 0)
    scan_arrivals(site, tools=TOOLS, now=1000.0)
    assert scan_arrivals(site, tools=TOOLS, now=1181.0).stale == (G,)
    assert scan_arrivals(site, tools=TOOLS, now=1340.0).expired == ()
    assert scan_arrivals(site, tools=TOOLS, now=1341.0).expired == (G,)
    assert "1 of 16 subbands" in (site.queue().group(G).error or "")
    late = put(site, 1)
    assert scan_arrivals(site, tools=TOOLS, now=1400.0).late == (str(late),)
    assert site.queue().group(G).state == "failed", "a late file does not bring it back; a person does"
    for sb in range(2, 16):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS, now=1500.0)
    assert site.queue().reprocess(G).state == "pending"


def test_a_group_is_not_given_up_while_the_file_that_it_lacks_is_still_written(site: Site):
    first = max(put(site, sb).stat().st_ctime for sb in range(15)) + 1.0
    scan_arrivals(site, tools=TOOLS, now=first)
    last = put(site, 15)
    os.utime(last, (first + 345.0,) * 2)
    slow = replace(site, ingest=site.ingest.model_copy(update={"settle_s": 30.0}))
    found = scan_arrivals(slow, tools=TOOLS, now=first + 350.0)
    assert (found.expired, list(found.unready)) == ((), [str(last)])
    assert scan_arrivals(slow, tools=TOOLS, now=first + 376.0).became_pending == (G,)


def test_no_group_is_decided_on_while_the_mount_of_the_input_is_missing(site: Site):
    ingest = site.ingest.model_copy(update={"min_subbands": 1})
    site = replace(site, ingest=ingest)
    put(site, 0)
    scan_arrivals(site, tools=TOOLS, now=1000.0)
    away = site.input_dir.with_name("away")
    site.input_dir.rename(away)
    site.input_dir.mkdir()
    report = scan_arrivals(site, tools=TOOLS, now=9000.0)
    assert (report.partial, report.expired, site.queue().group(G).state) == ((), (), "collecting")
    site.input_dir.rmdir()
    away.rename(site.input_dir)
    for sb in range(16):
        put(site, sb)
    assert scan_arrivals(site, tools=TOOLS, now=9030.0).became_pending == (G,)


def test_a_site_that_gives_partial_groups_longer_gives_the_others_as_long(site: Site):
    patient = of_14(site)
    ingest = patient.ingest.model_copy(update={"partial_after_s": 600.0})
    patient = replace(patient, ingest=ingest)
    for sb in range(14):
        put(site, sb)
    scan_arrivals(patient, tools=TOOLS, now=1000.0)
    assert scan_arrivals(patient, tools=TOOLS, now=1599.0).expired == ()
    assert scan_arrivals(patient, tools=TOOLS, now=1601.0).partial == (G,)


def test_groups_and_scratch_of_dead_processes_are_taken_back(site: Site):
    for sb in range(16):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    site.queue().claim(G, Owner("gone", socket.gethostname(), dead.pid, 1.0))
    host = socket.gethostname()
    left = site.scratch_dir / f"{host}.{G}.image.pid{dead.pid}.abc12345"
    left.mkdir(parents=True)
    site.output_dir.mkdir()
    part = site.output_dir / f".{G}.ms.{dead.pid}.00ff00ff.part"
    part.mkdir()
    kept = [
        site.scratch_dir / f"{host}.{G}.image.pid{os.getpid()}.abc12345",
        site.scratch_dir / f"elsewhere.{G}.image.pid{dead.pid}.abc12345",
        site.scratch_dir / "people.keep.this",
    ]
    for path in kept:
        path.mkdir()
    assert scan_arrivals(site, tools=TOOLS).recovered == (G,)
    assert not left.exists()
    assert not part.exists()
    assert all(path.exists() for path in kept)


def test_a_living_process_that_is_silent_keeps_its_group_and_one_of_another_machine_does_not(site: Site):
    for sb in range(16):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS, now=1000.0)
    site.queue().claim(G, this_process("me"), now=1000.0)
    assert scan_arrivals(site, tools=TOOLS, now=9000.0).recovered == ()
    site.queue().release(G, this_process("me"), now=9000.0)
    site.queue().claim(G, Owner("away", "another-machine", 1, 1.0), now=9000.0)
    assert scan_arrivals(site, tools=TOOLS, now=9800.0).recovered == ()
    assert scan_arrivals(site, tools=TOOLS, now=9901.0).recovered == (G,)


@pytest.mark.parametrize(
    ("name", "alive"),
    [
        (f"{socket.gethostname()}.{G}.image.pid{os.getpid()}.abc12345", True),
        (f"{socket.gethostname()}.{G}.image.pid{2**22 + 5}.abc12345", False),
        (f"elsewhere.{G}.image.pid{os.getpid()}.abc12345", None),
        (f"imaging.pid{os.getpid()}.abc12345", True),
        (f"casa.pid{2**22 + 5}.abc12345", False),
        (f".{G}.ms.{os.getpid()}.00ff00ff.part", True),
        (f".{G}.ms.{2**22 + 5}.00ff00ff.part", False),
        ("stream_2025-10-02T01:02:03_ab12", None),
    ],
    # Its own name for each: a number of this process in it would be another one in each worker of pytest.
    ids=[
        "ours",
        "a dead one's",
        "another machine's",
        "nobody's, ours",
        "nobody's, a dead one's",
        "part",
        "dead part",
        "stream",
    ],
)
def test_the_name_of_scratch_tells_whether_its_maker_lives(name: str, alive: bool | None):
    maker = scratch_maker(name)
    assert maker is not None
    assert maker.alive is alive


@pytest.mark.parametrize("name", ["people.keep.this", f"{G}.ms", "stream", "notes.pid", ".hidden"])
def test_names_that_none_of_us_gives_are_nobodys_scratch(name: str):
    assert scratch_maker(name) is None


def test_what_another_machine_works_on_is_not_removed(site: Site):
    part = site.scratch_dir / f".{G}.ms.{2**22 + 5}.00ff00ff.part"
    part.mkdir(parents=True)
    assert remove_dead_scratch(site.scratch_dir, keep=[G]) == []
    assert remove_dead_scratch(site.scratch_dir) == [part]


def test_this_process_is_alive_and_a_recycled_pid_is_not(site: Site):
    for sb in range(16):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS)
    queue, mine = site.queue(), this_process("me")
    queue.claim(G, mine)
    assert not is_dead(queue.group(G))
    queue.claim(G, Owner("me", mine.host, mine.pid, (mine.started or 0.0) - 1000.0))
    assert is_dead(queue.group(G))
    queue.claim(G, Owner("me", "another-machine", 1, 1.0))
    assert not is_dead(queue.group(G))


def test_a_clock_that_is_set_takes_no_group_from_a_living_process(site: Site, monkeypatch: pytest.MonkeyPatch):
    for sb in range(16):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS)
    mine = this_process()
    site.queue().claim(G, mine)
    real = psutil.Process.create_time
    # As psutil has it: ticks since the boot, and the time of the boot, which moves with the clock.
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 5.0)
    assert scan_arrivals(site, tools=TOOLS).recovered == ()
    assert this_process() == mine
    other_boot = replace(mine, birth=f"another-{mine.birth}")
    site.queue().claim(G, other_boot)
    assert is_dead(site.queue().group(G))


def test_a_process_that_began_later_under_the_same_number_is_another_one(site: Site):
    for sb in range(16):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS)
    mine = this_process()
    boot, ticks = str(mine.birth).split("/")
    site.queue().claim(G, replace(mine, birth=f"{boot}/{int(ticks) - 1}"))
    assert is_dead(site.queue().group(G))


def test_nobody_is_called_dead_while_the_lock_of_its_group_is_held(site: Site):
    for sb in range(16):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS)
    site.queue().claim(G, Owner("gone", socket.gethostname(), 2**22 + 5, 1.0))
    with sole_owner(site.group_lock(G)):
        assert scan_arrivals(site, tools=TOOLS).recovered == ()
    assert scan_arrivals(site, tools=TOOLS).recovered == (G,)


def test_scratch_is_gone_after_the_step(tmp_path: Path):
    with owned_scratch(tmp_path / "scratch", G, "image") as path:
        (path / "x").write_text("x")
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_scratch_on_a_disk_that_cannot_be_written_is_a_matter_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def broken(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkdtemp", broken)
        with pytest.raises(StorageError), owned_scratch(tmp_path, G, "image"):
            pass
    with pytest.raises(StorageError), owned_scratch(tmp_path, G, "image"):
        monkeypatch.setattr(shutil, "rmtree", broken)


def test_scratch_that_cannot_be_removed_keeps_nobody_from_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f"{socket.gethostname()}.{G}.image.pid{dead.pid}.abc1234{n}" for n in range(3)]
    for name in names:
        (tmp_path / name).mkdir()
    real, errors = (
        shutil.rmtree,
        dict(zip(names, (PermissionError(13, "Permission denied"), FileNotFoundError(2, "gone")), strict=False)),
    )

    def broken(path: Path) -> None:
        if error := errors.get(path.name):
            raise error
        real(path)

    monkeypatch.setattr(shutil, "rmtree", broken)
    assert remove_dead_scratch(tmp_path) == [tmp_path / names[2]]
    assert "Permission denied" in caplog.text


def test_a_missing_input_directory_is_named(site: Site):
    site.input_dir.rmdir()
    with pytest.raises(MissingError, match="no input directory"):
        scan_arrivals(site, tools=TOOLS)


def test_a_bad_file_that_was_copied_again_is_no_longer_among_the_bad(site: Site):
    put(site, 3, text="rubbish")
    scan_arrivals(site, tools=TOOLS)
    put(site, 3, text="+0.0")
    report = scan_arrivals(site, tools=TOOLS)
    assert (report.new_files, report.bad) == (1, {})
    assert site.queue().bad_files() == []


def test_locks_of_groups_that_nobody_works_on_are_removed(site: Site):
    old, held = (site.group_lock(name) for name in ("2025-10-01T00:00:00", "2025-10-01T01:00:00"))
    old.parent.mkdir(parents=True)
    old.touch()
    with sole_owner(held):
        scan_arrivals(site, tools=TOOLS)
        assert list(old.parent.iterdir()) == [held]


def of_14(site: Site) -> Site:
    return replace(site, ingest=site.ingest.model_copy(update={"min_subbands": 14}))


def test_a_group_of_enough_subbands_goes_on_as_partial_after_its_time_and_a_smaller_one_fails_at_last(site: Site):
    site = of_14(site)
    for sb in range(13):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS, now=1000.0)
    assert scan_arrivals(site, tools=TOOLS, now=1338.0).partial == ()
    put(site, 13)
    assert scan_arrivals(site, tools=TOOLS, now=1339.0).partial == ()
    report = scan_arrivals(site, tools=TOOLS, now=1341.0)
    assert (report.partial, report.became_pending) == ((G,), (G,))
    assert (site.queue().group(G).state, site.queue().group(G).partial) == ("pending", 1)
    assert [d.group_id for d in take_dispatchable(site, 9)] == [G]
    few = put(site, 3, second=59, text="+309.24")
    scan_arrivals(site, tools=TOOLS, now=2000.0)
    assert few.exists()
    assert scan_arrivals(site, tools=TOOLS, now=2341.0).expired == ("2025-10-02T01:07:12",)
    assert "1 of 16 subbands, missing sb00" in (site.queue().group("2025-10-02T01:07:12").error or "")


def test_by_itself_no_group_is_partial(site: Site):
    for sb in range(15):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS, now=1000.0)
    assert scan_arrivals(site, tools=TOOLS, now=1341.0).partial == ()
    assert site.queue().group(G).state == "failed"


def test_a_partial_group_that_is_filled_before_it_is_taken_is_whole_and_one_that_was_taken_stays_partial(site: Site):
    site, queue = of_14(site), site.queue()
    for sb in range(14):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS, now=1000.0)
    scan_arrivals(site, tools=TOOLS, now=1400.0)
    put(site, 14)
    assert scan_arrivals(site, tools=TOOLS, now=1401.0).new_files == 1
    assert queue.group(G).partial == 1
    queue.claim(G, this_process("me"), now=1402.0)
    late = put(site, 15)
    assert scan_arrivals(site, tools=TOOLS, now=1403.0).late == (str(late),)
    # An attempt that failed does not open it again: what it has made is of 15 subbands.
    queue.fail(G, this_process("me"), "no luck", now=1404.0)
    assert (queue.group(G).state, queue.group(G).partial) == ("pending", 1)
    assert [s.late for s in queue.subbands(G)] == [0] * 15 + [1]
    # Whoever starts it anew takes all that has come.
    assert queue.reprocess(G, now=1405.0).partial == 0
    assert [s.late for s in queue.subbands(G)] == [0] * 16


def test_a_subband_that_comes_between_two_attempts_is_late(site: Site):
    site, queue = of_14(site), site.queue()
    for sb in range(15):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS, now=1000.0)
    scan_arrivals(site, tools=TOOLS, now=1400.0)
    queue.claim(G, this_process("me"), now=1402.0)
    queue.fail(G, this_process("me"), "no luck", now=1404.0)
    late = put(site, 15)
    assert scan_arrivals(site, tools=TOOLS, now=1405.0).late == (str(late),)
    assert queue.group(G).partial == 1


def test_the_last_subband_before_the_group_is_taken_makes_a_partial_group_whole(site: Site):
    site, queue = of_14(site), site.queue()
    for sb in range(15):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS, now=1000.0)
    scan_arrivals(site, tools=TOOLS, now=1400.0)
    put(site, 15)
    scan_arrivals(site, tools=TOOLS, now=1401.0)
    assert (queue.group(G).state, queue.group(G).partial) == ("pending", 0)


def test_a_file_that_is_rewritten_while_its_group_collects_is_looked_at_again(site: Site):
    path = put(site, 3)
    scan_arrivals(site, tools=TOOLS)
    put(site, 3, text="now it is rubbish")
    report = scan_arrivals(site, tools=TOOLS)
    assert (report.changed, list(report.bad)) == ((), [str(path)])
    assert site.queue().subbands(G) == []
    put(site, 3, text="+0.00 and whole"[:6])
    assert scan_arrivals(site, tools=TOOLS).new_files == 1
    assert [s.size_bytes for s in site.queue().subbands(G)] == [6]


def test_a_file_that_is_rewritten_after_its_group_was_taken_is_said_once_and_changes_no_state(site: Site):
    for sb in range(16):
        put(site, sb)
    scan_arrivals(site, tools=TOOLS)
    queue = site.queue()
    queue.claim(G, this_process("me"))
    again = put(site, 5, text="+0.000")
    assert scan_arrivals(site, tools=TOOLS).changed == (str(again),)
    assert scan_arrivals(site, tools=TOOLS).changed == ()
    assert queue.group(G).state == "in_progress"
    assert [s.subband_idx for s in queue.subbands(G) if s.changed_at is not None] == [5]
    queue.complete(G, this_process("me"))
    put(site, 6, text="+0.000")
    assert len(scan_arrivals(site, tools=TOOLS).changed) == 1
    put(site, 7, text="+0.000")
    long_over = queue.group(G).last_update + site.ingest.remember_s + 1.0
    assert scan_arrivals(site, tools=TOOLS, now=long_over).changed == ()


def test_a_second_file_is_told_from_the_first_and_the_same_path_is_nothing_new(site: Site):
    first = put(site, 5)
    scan_arrivals(site, tools=TOOLS)
    second = put(site, 5, second=30)
    scan_arrivals(site, tools=TOOLS)
    assert scan_arrivals(site, tools=TOOLS).duplicates == ()
    (line,) = group_report(site, G)["duplicates"]
    assert line == {"subband": 5, "path": str(second), "what": f"second file; {first} is kept"}
