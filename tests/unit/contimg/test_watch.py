"""The watcher takes files in as they come, dispatches what is complete, and outlives what happens to the directory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightbeam.catalog import Queue
from nightbeam.contimg import Site, Tools, arrivals, scan_arrivals
from nightbeam.contimg import watch as module
from nightbeam.contimg.watch import ArrivalWatch, must_list, type_of_file_system
from nightbeam.core.errors import InputError, MissingError, UnavailableError
from nightbeam.core.settings import Settings

G = "2025-10-02T01:02:03"


def read(path: Path) -> Any:
    if not path.read_text().startswith("+"):
        raise InputError(f"{path.name} is not HDF5")
    start = 2460950.5 + (3723.25 / 86400)
    return SimpleNamespace(subband=None, start_jd=start, mid_jd=start + 0.0018, dec_rad=0.5)


TOOLS = Tools(read_header=read)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    settings = {"state_dir": tmp_path / "state", "contimg": {"ingest": {"settle_s": 0, "watch_every_s": 0.01}}}
    site = Site.from_settings(Settings.model_validate(settings))
    site.input_dir.mkdir(parents=True)
    return site


class Started:
    """Counts the groups that it is asked to start."""

    def __init__(self, site: Site) -> None:
        self.site, self.groups, self.some = site, list[str](), threading.Event()

    def __call__(self) -> int:
        taken = self.site.queue().take_dispatchable(9)
        self.groups += [one.group_id for one in taken]
        if taken:
            self.some.set()
        return len(taken)


@pytest.fixture
def started(site: Site) -> Started:
    return Started(site)


@pytest.fixture
def watch(site: Site, started: Started) -> ArrivalWatch:
    return ArrivalWatch(site, started, tools=TOOLS, listing=False)


def put(site: Site, sb: int, text: str = "+", second: int = 1) -> Path:
    path = site.input_dir / f"2025-10-02T01:02:{second:02d}_sb{sb:02d}.hdf5"
    path.write_text(text)
    return path


def test_a_group_is_dispatched_with_its_last_subband_whether_created_or_moved(
    site: Site, watch: ArrivalWatch, started: Started
):
    assert watch.look() is None
    for sb in range(15):
        put(site, sb)
    report = watch.look()
    assert report is not None
    assert (report.new_files, started.groups) == (15, [])
    hidden = site.input_dir / ".2025-10-02T01:02:01_sb15.hdf5.Xy12"
    hidden.write_text("+")
    assert watch.look() is None
    hidden.rename(site.input_dir / "2025-10-02T01:02:01_sb15.hdf5")
    report = watch.look()
    assert report is not None
    assert (report.became_pending, started.groups) == ((G,), [G])
    assert watch.look() is None
    assert started.groups == [G]


def test_the_loop_ends_when_it_is_asked_to(site: Site, watch: ArrivalWatch, started: Started):
    stop = threading.Event()
    thread = threading.Thread(target=watch.loop, args=(stop,))
    thread.start()
    for sb in range(16):
        put(site, sb)
    assert started.some.wait(60.0)
    stop.set()
    thread.join(60.0)
    assert not thread.is_alive()
    assert started.groups == [G]


def test_a_directory_that_has_not_changed_is_not_listed(site: Site, watch: ArrivalWatch):
    put(site, 0)
    long_ago = time.time() - 10.0
    os.utime(site.input_dir, (long_ago, long_ago))
    for _ in range(5):
        watch.look()
    assert watch.counters.listings == 1
    put(site, 1)
    watch.look()
    assert watch.counters.listings == 2


def test_where_its_time_tells_nothing_the_directory_is_listed_at_each_look(site: Site, started: Started):
    watch = ArrivalWatch(site, started, tools=TOOLS, listing=True)
    watch.look()
    put(site, 0)
    os.utime(site.input_dir, (1.0, 1.0))
    watch.look()
    put(site, 1)
    os.utime(site.input_dir, (1.0, 1.0))  # as on a file system that keeps what it knew
    report = watch.look()
    assert report is not None
    assert (report.new_files, watch.counters.listings) == (1, 3)


def test_a_file_is_opened_when_it_has_settled_and_not_before(site: Site, started: Started):
    slow = replace(site, ingest=site.ingest.model_copy(update={"settle_s": 2.0}))
    opened: list[Path] = []
    watch = ArrivalWatch(slow, started, tools=Tools(read_header=lambda path: opened.append(path) or read(path)))
    path = put(site, 0)
    written = path.stat().st_mtime
    assert watch.look(now=written + 1.9) is None
    assert (opened, watch.counters.waiting) == ([], 1)
    # Whoever keeps its times has finished it: what was renamed now was written before.
    os.utime(path, (written - 60.0, written - 60.0))
    assert watch.look(now=written + 1.95) is not None
    assert opened == [path]


def test_a_file_that_was_bad_is_taken_in_when_the_rest_of_it_has_come(site: Site, watch: ArrivalWatch):
    path = put(site, 0, "half")
    report = watch.look()
    assert report is not None
    assert list(report.bad) == [str(path)]
    assert watch.look() is None
    path.write_text("+ and whole")
    report = watch.look()
    assert report is not None
    assert report.new_files == 1


def test_a_file_that_the_scan_called_bad_first_is_taken_in_when_the_rest_of_it_has_come(
    site: Site, watch: ArrivalWatch
):
    path = put(site, 0, "half")
    assert list(scan_arrivals(site, tools=TOOLS).bad) == [str(path)]
    report = watch.look()
    assert report is not None
    assert (report.bad, report.still_bad) == ({}, (str(path),))
    assert watch.look() is None
    path.write_text("+ and whole")
    report = watch.look()
    assert report is not None
    assert report.new_files == 1


def test_a_file_that_the_others_of_its_group_made_bad_is_taken_in_when_it_was_written_again(
    site: Site, watch: ArrivalWatch, monkeypatch: pytest.MonkeyPatch
):
    def of_two_minds(path: Path) -> Any:
        header = read(path)
        return SimpleNamespace(**{**vars(header), "dec_rad": 0.51 if path.read_text() == "+odd" else 0.5})

    watch.tools = Tools(read_header=of_two_minds)
    odd = put(site, 0, "+odd")
    watch.look()
    for sb in range(1, 16):
        put(site, sb)
    report = watch.look()
    assert report is not None
    assert list(report.bad) == [str(odd)]
    watch.look()
    assert watch.look() is None
    odd.write_text("+ and of this group")
    report = watch.look()
    assert report is not None
    assert report.became_pending == (G,)


def test_a_file_that_is_dated_ahead_is_opened_when_it_was_seen_unchanged_for_long_enough(
    site: Site, started: Started, monkeypatch: pytest.MonkeyPatch
):
    slow, seconds = replace(site, ingest=site.ingest.model_copy(update={"settle_s": 2.0})), [0.0]
    monkeypatch.setattr("nightbeam.ingest.files.time", SimpleNamespace(monotonic=lambda: seconds[0], time=time.time))
    watch = ArrivalWatch(slow, started, tools=TOOLS, listing=False)
    path = put(site, 0)
    an_hour_ago = path.stat().st_ctime - 3600.0
    assert watch.look(now=an_hour_ago) is None
    seconds[0] = 1.9
    path.write_text("+0")
    assert watch.look(now=an_hour_ago + 1.9) is None
    seconds[0] = 3.8
    assert watch.look(now=an_hour_ago + 3.8) is None
    seconds[0] = 4.0
    report = watch.look(now=an_hour_ago + 4.0)
    assert report is not None
    assert report.new_files == 1


def test_a_watcher_that_is_asked_to_stop_among_very_many_files_looks_at_the_rest_when_it_goes_on(
    site: Site, watch: ArrivalWatch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(arrivals, "_BATCH", 6)
    for sb in range(16):
        put(site, sb)
    answers = iter([False, False, True, True])
    report = watch.look(stop=lambda: next(answers))
    assert report is not None
    assert report.new_files == 12
    report = watch.look()
    assert report is not None
    assert (report.new_files, report.became_pending) == (4, (G,))


def test_whether_to_list_is_asked_again_when_another_directory_lies_there_and_now_and_then(
    site: Site, started: Started, monkeypatch: pytest.MonkeyPatch
):
    answer, asked = [False], list[bool]()

    def must_list(_: Site) -> bool:
        asked.append(answer[0])
        return answer[0]

    monkeypatch.setattr(module, "must_list", must_list)
    watch = ArrivalWatch(site, started, tools=TOOLS)
    for _ in range(3):
        watch.look()
    assert asked == [False]
    answer[0] = True
    site.input_dir.rename(site.input_dir.with_name("before"))
    site.input_dir.mkdir()
    watch.look()
    assert asked == [False, True]
    listed = watch.counters.listings
    os.utime(site.input_dir, (1.0, 1.0))
    for _ in range(3):
        watch.look()
    assert watch.counters.listings == listed + 3
    answer[0] = False  # a mount that came unseen
    for _ in range(module._ASK_AGAIN):
        watch.look()
    assert asked[-1] is False


def test_the_scan_and_the_watcher_take_a_file_in_once(site: Site, watch: ArrivalWatch, started: Started):
    for sb in range(16):
        put(site, sb)
    assert scan_arrivals(site, tools=TOOLS).new_files == 16
    report = watch.look()
    assert report is not None
    assert report.new_files == 0
    assert started.groups == [G]
    assert scan_arrivals(site, tools=TOOLS).new_files == 0


def test_a_directory_that_vanishes_is_said_once_and_looked_at_anew_when_it_is_back(
    site: Site, watch: ArrivalWatch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    for sb in range(15):
        put(site, sb)
    watch.look()
    away = site.input_dir.with_name("away")
    site.input_dir.rename(away)
    turns = iter([0, 1, 2])

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if next(turns) == 2:
                self.set()
            return self.is_set()

    watch.loop(Stop())
    assert sum("no input directory" in record.message for record in caplog.records) == 1
    with pytest.raises(MissingError):
        watch.look()
    assert len(Queue(site.queue_url).subbands(G)) == 15
    away.rename(site.input_dir)
    anew = watch.look()
    assert anew is not None, "what was known before is looked at again"
    assert (anew.new_files, anew.duplicates) == (0, ())
    put(site, 15)
    report = watch.look()
    assert report is not None
    assert (report.new_files, report.became_pending) == (1, (G,))


def test_an_empty_mount_point_loses_nothing(site: Site, watch: ArrivalWatch):
    for sb in range(16):
        put(site, sb)
    watch.look()
    full = site.input_dir.with_name("full")
    site.input_dir.rename(full)
    site.input_dir.mkdir()
    assert watch.look() is None
    site.input_dir.rmdir()
    full.rename(site.input_dir)
    report = watch.look()
    assert report is not None
    assert (report.new_files, site.queue().group(G).state) == (0, "pending")


def test_what_could_not_be_started_is_asked_for_again(site: Site):
    answers: list[Callable[[], int]] = [lambda: 0]

    def refused() -> int:
        raise UnavailableError("the server is away")

    asked: list[int] = []

    def dispatch() -> int:
        asked.append(1)
        return answers[-1]()

    watch = ArrivalWatch(site, dispatch, tools=TOOLS)
    watch.look()
    for sb in range(16):
        put(site, sb)
    answers.append(refused)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            watch.look()
    answers.append(lambda: 1)
    watch.look()
    watch.look()
    assert (len(asked), watch.counters.dispatched) == (4, 1)


def test_what_it_knows_does_not_grow_with_the_files_that_came_and_went(site: Site, watch: ArrivalWatch):
    for second in range(5):
        path = put(site, 0, second=second)
        watch.look()
        path.unlink()
    put(site, 1)
    watch.look()
    assert len(watch._known) == 1


@pytest.mark.parametrize(
    ("kind", "listed"), [("ext4", False), ("xfs", False), ("nfs4", True), ("fuse.sshfs", True), ("", True)]
)
def test_a_file_system_that_others_serve_is_listed(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: str, listed: bool
):
    parts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(site.input_dir), fstype=kind),
        SimpleNamespace(mountpoint=f"{site.input_dir}-other", fstype="tmpfs"),
    ]
    monkeypatch.setattr(module.psutil, "disk_partitions", lambda **_: parts)
    assert type_of_file_system(site.input_dir / "x") == kind
    assert must_list(site) is listed
    by_option = replace(site, ingest=site.ingest.model_copy(update={"watch_by": "listing"}))
    assert must_list(by_option)
