"""The watcher: groups are dispatched within a moment of their last subband.

It hurries what the scheduled scan does anyway, and what it misses, that finds. It asks the kernel one question at each
look, whether the directory has changed, and lists it only then; on file systems where that answer is not to be
trusted, at each look. Files that are there and not ready are looked at until they are.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from nightbeam.contimg.arrivals import take_in
from nightbeam.contimg.model import ArrivalReport
from nightbeam.contimg.site import Site
from nightbeam.contimg.tools import TOOLS, Tools
from nightbeam.core.errors import MissingError, NightbeamError
from nightbeam.core.keys import SubbandName
from nightbeam.ingest import Looks, list_names

__all__ = ["ArrivalWatch", "must_list", "type_of_file_system"]

logger = logging.getLogger(__name__)

#: Where a new name changes the time of its directory at once. All others (NFS, FUSE, ...) may be served from elsewhere.
_TOLD_BY_TIME = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"})
#: A directory that changed so shortly before it was listed may change again without its time showing it.
_TICK_NS = 50_000_000
#: After an error, so long until the next try.
_PAUSE_S = 5.0
#: So many looks after it was last asked it is asked again whether the directory has to be listed.
_ASK_AGAIN = 240
#: Files that could not be taken in and are watched for being written on; the scheduled scan looks at all of them.
_MOST_STUCK = 1000


@dataclass
class WatchCounters:
    """What the watcher has seen and done since it was started."""

    looks: int = 0
    listings: int = 0
    new_files: int = 0
    groups: int = 0
    dispatched: int = 0
    waiting: int = 0
    problem: str = ""
    last_group: str = ""


@dataclass
class ArrivalWatch:
    """Looks at the input directory of a site until it is asked to stop.

    Parameters
    ----------
    site, tools
        Where, and with what.
    dispatch
        Starts the work on what can be started, and returns on how many groups; it may raise a `NightbeamError`, and
        is called again then.
    listing
        Whether to list the directory at each look; None: what `must_list` says, which is asked when another directory
        or file system lies there, and now and then, for a mount may come and go unseen.
    """

    site: Site
    dispatch: Callable[[], int]
    listing: bool | None = None
    tools: Tools = TOOLS
    counters: WatchCounters = field(default_factory=WatchCounters)

    def __post_init__(self) -> None:
        self._known: set[str] = set()  # what is recorded, and what is no subband
        self._unready: set[str] = set()
        self._stuck: dict[str, tuple[int, float]] = {}
        self._listed: tuple[int, ...] | None = None
        self._owed = True  # what became pending while nobody watched
        self._looks = Looks()
        self._must_list = bool(self.listing)
        self._asked_ago = _ASK_AGAIN

    def loop(self, stop: threading.Event) -> None:
        """Look every `contimg.ingest.watch_every_s` until ``stop`` is set; an error is said once and outlived."""
        while not stop.is_set():
            pause = self.site.ingest.watch_every_s
            try:
                self.look(stop=stop.is_set)
                self._said("")
            except NightbeamError as error:
                self._said(error.what)
                pause = max(pause, _PAUSE_S if not isinstance(error, MissingError) else pause)
            stop.wait(pause)

    def look(self, *, now: float | None = None, stop: Callable[[], bool] = lambda: False) -> ArrivalReport | None:
        """Look once; returns what was taken in, or None where there was nothing to look at.

        Parameters
        ----------
        now
            Epoch seconds.
        stop
            Asked between files, of which there may be very many, whether to leave the rest.

        Raises
        ------
        MissingError
            If there is no input directory; when it is back, everything in it is looked at anew.
        NightbeamError
            What the disk, the queue or the dispatch says; nothing is lost by it.
        """
        now = time.time() if now is None else now
        self.counters.looks += 1
        self._list_if_changed()
        names = self._settled(now)
        report = None
        if names:
            report = take_in(self.site, names, tools=self.tools, now=now, looks=self._looks, stop=stop)
            if stop():  # the rest is as unknown as it was
                return report
            self._sort(names, report)
        if self._owed:
            self.counters.dispatched += self.dispatch()
            self._owed = False
        return report

    def _list_if_changed(self) -> None:
        directory = self.site.input_dir
        try:
            found = directory.stat()
        except OSError:
            self._forget()
            raise MissingError(f"no input directory {directory}", fix="mount it, or set contimg.input_dir") from None
        signature = (found.st_dev, found.st_ino, found.st_mtime_ns)
        if self._listed is not None and signature[:2] != self._listed[:2]:
            self._forget()  # another directory or file system than before
        self._ask()
        if signature == self._listed and not self._must_list:
            return
        names = set(list_names(directory))
        self.counters.listings += 1
        fresh = time.time_ns() - found.st_mtime_ns < _TICK_NS
        self._listed = (*signature[:2], -1) if fresh else signature
        self._looks.forget(self._looks.ahead - names)
        self._known &= names
        self._unready &= names
        self._stuck = {name: what for name, what in self._stuck.items() if name in names}
        for name in names - self._known - self._unready - self._stuck.keys():
            (self._known if SubbandName.parse(name) is None else self._unready).add(name)

    def _ask(self) -> None:
        """Ask the kernel, now and then, of what kind the file system is."""
        self._asked_ago += 1
        if self.listing is None and self._asked_ago > _ASK_AGAIN:
            self._must_list, self._asked_ago = must_list(self.site), 0

    def _forget(self) -> None:
        self._known, self._unready, self._stuck, self._listed = set(), set(), {}, None
        self._looks, self._asked_ago = Looks(), _ASK_AGAIN

    def _settled(self, now: float) -> dict[str, tuple[int, float]]:
        """Return the names that are worth opening, and what they are now."""
        settled = {}
        for name in [*self._unready, *self._stuck]:
            path = self.site.input_dir / name
            try:
                found = path.stat()
            except OSError:
                continue  # gone, or not to be had now: the next listing, or the next look, tells
            state = (found.st_size, found.st_mtime)
            if self._stuck.get(name) == state:
                continue
            if self._looks.unwritten_s(path, found, now) >= self.site.ingest.settle_s:
                settled[name] = state
        self.counters.waiting = len(self._unready)
        return settled

    def _sort(self, looked_at: dict[str, tuple[int, float]], report: ArrivalReport) -> None:
        wanted = {*report.unready, *report.bad, *report.still_bad}
        for name, state in looked_at.items():
            path = str(self.site.input_dir / name)
            self._unready.discard(name)
            self._stuck.pop(name, None)
            if path in wanted and len(self._stuck) < _MOST_STUCK:
                self._stuck[name] = state
            else:
                self._known.add(name)
        for odd in map(Path, report.bad):  # also those that were good until the others of their group came
            if odd.name in self._known and odd.parent == self.site.input_dir and len(self._stuck) < _MOST_STUCK:
                self._known.discard(odd.name)
                self._stuck[odd.name] = (-1, 0.0)
        self.counters.new_files += report.new_files
        self.counters.groups += len(report.became_pending)
        if report.became_pending:
            self.counters.last_group = report.became_pending[-1]
            self._owed = True

    def _said(self, problem: str) -> None:
        if problem == self.counters.problem:
            return
        if problem:
            logger.warning("the watcher waits: %s", problem)
        else:
            logger.info("the watcher goes on")
        self.counters.problem = problem


def must_list(site: Site) -> bool:
    """Return whether the time of the input directory is no witness of what comes into it."""
    return site.ingest.watch_by == "listing" or type_of_file_system(site.input_dir) not in _TOLD_BY_TIME


def type_of_file_system(path: Path) -> str:
    """Return the kernel's name for the file system of a path, such as ``ext4`` or ``nfs4``; empty if unknown."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for part in psutil.disk_partitions(all=True):
        point = part.mountpoint.rstrip("/")
        # Of two at one place the later covers the earlier.
        if (real == point or real.startswith(f"{point}/")) and len(point) >= len(best):
            best, kind = point, part.fstype
    return kind
