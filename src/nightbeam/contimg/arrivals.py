"""From the input directory to the queue, and from the queue to whoever starts the work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nightbeam.catalog.model import Dispatch, FileFact, GroupFact, GroupRow, Recorded, State
from nightbeam.contimg.clock import ClockLook, look_at_clock
from nightbeam.contimg.guard import remove_dead_ram
from nightbeam.contimg.model import ArrivalReport
from nightbeam.contimg.owners import is_alive, is_dead, remove_dead_scratch
from nightbeam.contimg.pressure import take_up_owed
from nightbeam.contimg.room import full_disk, may_dispatch, no_input, why_none_converted
from nightbeam.contimg.set_aside import move_bad_files
from nightbeam.contimg.site import Site
from nightbeam.contimg.tools import TOOLS, Tools
from nightbeam.core.keys import SubbandName
from nightbeam.core.times import JD_OF_MJD_ZERO
from nightbeam.ingest import Looks, SubbandGroup, group_arrivals, list_names, scan_directory

if TYPE_CHECKING:
    from nightbeam.catalog import Queue, Registry
    from nightbeam.ingest import Arrival, BadFile

__all__ = ["scan_arrivals", "scan_until_ready", "take_dispatchable", "take_in", "wake_waiting"]

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.5
#: So many files are taken in at a time; whoever is stopped then has recorded those before.
_BATCH = 1000
#: So much longer an incomplete group is borne while some files are not ready.
_UNREADY_S = 60.0


def scan_arrivals(site: Site, *, tools: Tools = TOOLS, now: float | None = None) -> ArrivalReport:
    """Look once at the input directory and at the queue, and bring the queue up to date.

    New ready files are recorded in their groups, unreadable ones with the reason and later moved aside; groups of
    dead workers come back, those incomplete for too long are imaged as partial or failed, and those that wait for
    gains are woken where there is a set now. While the input directory is empty, as it is where a mount is missing, no
    group is decided on that still collects. Two who scan at once do no harm.

    Raises
    ------
    MissingError
        If there is no input directory.
    StorageError
        If it cannot be read.
    """
    queue, ingest = site.queue(), site.ingest
    clock = look_at_clock(queue) if now is None else None
    now = time.time() if now is None else now
    if clock is not None and clock.step_s:
        logger.warning("the clock was set by %+.0f s; %d groups that collect keep their age", clock.step_s, clock.moved)
    recovered = _recover(site, queue, now, clock)
    names = list_names(site.input_dir)
    changed = _note_changed(site, queue, now)
    away = no_input(site)  # what a group lacks may have come, and cannot be seen
    contradicting = {}
    if not away:
        contradicting = _odd_ones(queue, queue.decide_contradictions(ingest.partial_after_s, now=now))
    report = take_in(site, names, tools=tools, now=now)
    aside = move_bad_files(site, queue, names=names, now=now)
    partial, expired = [], []
    if not away:
        partial = _let_partial_go(site, queue, now)
        # The file that makes a group whole may be one of those that still change.
        expired = queue.expire_collecting(ingest.give_up_s + (_UNREADY_S if report.unready else 0.0), now=now)
    report = replace(
        report,
        changed=tuple(changed),
        bad={**contradicting, **report.bad},
        set_aside=tuple(aside),
        partial=tuple(partial),
        became_pending=tuple(sorted({*report.became_pending, *partial})),
        recovered=tuple(recovered),
        expired=tuple(expired),
        stale=tuple(r.group_id for r in queue.stale_collecting(ingest.collecting_warn_s, now=now)),
        woken=wake_waiting(site),
        counts=queue.counts(),
    )
    _talk(report)
    return report


def take_in(
    site: Site,
    names: Collection[str],
    *,
    tools: Tools = TOOLS,
    now: float | None = None,
    queue: Queue | None = None,
    looks: Looks | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ArrivalReport:
    """Record those files of the input directory that the queue does not know, some at a time.

    What has been recorded stays so, whoever is stopped or killed then; the rest is as unknown as before.

    Parameters
    ----------
    site, tools
        Where, and with what.
    names
        What there is in the input directory, or only what is new in it.
    now
        Epoch seconds.
    queue
        Where it is open already.
    looks
        What the caller's earlier looks saw. Without, files that are dated ahead of our clock are looked at twice, for
        which `contimg.ingest.settle_s` is waited once.
    stop
        Asked between two batches whether to leave the rest for another time.
    """
    now = time.time() if now is None else now
    queue = site.queue() if queue is None else queue
    # Only these: a database may refuse even to be asked for what other programs call their files.
    names = [name for name in names if SubbandName.parse(name) is not None]
    beginning = f"{site.input_dir}/"
    known = {path.removeprefix(beginning) for path in queue.known_among(beginning + name for name in names)}
    left = sorted(name for name in names if name not in known)
    taking = _Taking(site, queue, tools, now, Looks() if looks is None else looks, stop)
    with queue.database.kept_open() if left else nullcontext():
        taking.take(left)
        again = taking.looks.ahead if looks is None else frozenset[str]()
        if again and not stop():
            time.sleep(site.ingest.settle_s)
            taking.take(sorted(again))
    return taking.report()


class _Taking:
    """Takes files in batch by batch, and remembers what became of them."""

    def __init__(
        self, site: Site, queue: Queue, tools: Tools, now: float, looks: Looks, stop: Callable[[], bool]
    ) -> None:
        self.site, self.queue, self.tools, self.now, self.looks, self.stop = site, queue, tools, now, looks, stop
        self.what: dict[Path, Recorded] = {}
        self.bad: dict[str, str] = {}
        self.still_bad: list[str] = []
        self.unready: dict[str, str] = {}
        self.groups: dict[str, None] = {}
        self.pending: set[str] = set()

    def take(self, names: list[str]) -> None:
        """Take in files of the input directory that are not known."""
        for begin in range(0, len(names), _BATCH):
            if self.stop():
                return
            freed = self._take_batch(names[begin : begin + _BATCH])
            if freed:  # whose first was found to be of another observation
                self._take_batch(freed)

    def report(self) -> ArrivalReport:
        """Return what became of the files, and say what somebody should see to."""
        report = ArrivalReport(
            new_files=sum(w is Recorded.NEW for w in self.what.values()),
            duplicates=_paths(self.what, Recorded.DUPLICATE),
            late=_paths(self.what, Recorded.LATE),
            bad=self.bad,
            still_bad=tuple(self.still_bad),
            unready=self.unready,
            groups=tuple(self.groups),
            became_pending=tuple(sorted(self.pending)),
        )
        for file in report.duplicates:
            logger.warning("%s is a second file for its subband; the first is kept", file)
        for file in report.late:
            logger.warning("%s came after its group had been taken", file)
        return report

    def _take_batch(self, names: list[str]) -> list[str]:
        """Take in some files; returns those that are to be looked at anew."""
        judged = self.queue.bad_among(str(self.site.input_dir / name) for name in names)
        rejected = {Path(b.path): (b.size_bytes, b.mtime) for b in judged}
        scan = scan_directory(
            self.site.input_dir,
            names=names,
            rejected=rejected,
            settle_s=self.site.ingest.settle_s,
            link_wait_s=self.site.ingest.bad_file_wait_s,
            read=self.tools.read_header,
            looks=self.looks,
            now=self.now,
        )
        self._note_bad(scan.bad)
        groups = group_arrivals(scan.ready, gap_s=self.site.ingest.name_gap_s)
        before = self.queue.ids(State.PENDING) if groups else set()
        what: dict[Path, Recorded] = {}
        for group in groups:
            what |= _record(self.site, self.queue, group, self.now)
        odd = _odd_ones(self.queue, what)
        for path in rejected.keys() & (what.keys() - {Path(path) for path in odd}):
            self.queue.forget_bad_file(path)
        self.bad |= odd
        self.pending |= (self.queue.ids(State.PENDING) if groups else set()) - before
        self.groups |= dict.fromkeys(str(group.group_id) for group in groups)
        for name in names:
            self.unready.pop(str(self.site.input_dir / name), None)
        self.unready |= {str(u.path): u.reason for u in scan.unready}
        self.still_bad += [str(path) for path in scan.still_bad]
        self.looks.forget({arrival.path.name for arrival in scan.ready} | {file.path.name for file in scan.bad})
        freed = [path for path, became in what.items() if became is Recorded.FREED]
        self.what |= {path: became for path, became in what.items() if became is not Recorded.FREED}
        return sorted(path.name for path in freed if path.parent == self.site.input_dir)

    def _note_bad(self, files: Sequence[BadFile]) -> None:
        if not files:
            return
        self.queue.record_bad_files(files, now=self.now)
        for file in files:
            self.bad[str(file.path)] = file.reason
            logger.warning("%s is no readable subband: %s", file.path, file.reason)


def scan_until_ready(site: Site, wait_s: float, *, tools: Tools = TOOLS) -> ArrivalReport:
    """Look again for at most ``wait_s`` seconds while files are not ready, such as those that still change.

    Returns the last report, with the new files of all the looks. Raises what `scan_arrivals` raises.
    """
    until = time.monotonic() + wait_s
    report = scan_arrivals(site, tools=tools)
    while report.unready and (left := until - time.monotonic()) > 0:
        time.sleep(min(_LOOK_AGAIN_S, left))
        again = scan_arrivals(site, tools=tools)
        report = replace(
            again,
            new_files=report.new_files + again.new_files,
            became_pending=tuple(sorted({*report.became_pending, *again.became_pending})),
        )
    return report


def take_dispatchable(site: Site, limit: int, *, resend_after_s: float | None = 120.0) -> list[Dispatch]:
    """Wake what can be calibrated now, then take pending groups to be started elsewhere, oldest data first.

    Where there are none, a group is taken up again that is owed its full image or its figures (`pressure`).

    Each attempt at a group has one idempotency key: a group is given again, ``resend_after_s`` after it was
    taken and not claimed, with the same key. None is taken while there is no room for it (`may_dispatch`), and only
    those that have their Measurement Set while no other can be converted.
    """
    wake_waiting(site)
    take_up_owed(site)
    limit, why = may_dispatch(site, limit)
    if why:
        logger.warning("%s: %s", "one group is tried" if limit else "no group is begun", why)
    if not limit:
        return []
    held_up = why_none_converted(site)
    if held_up:
        logger.warning("only groups that are converted are begun: %s", held_up)
    return site.queue().take_dispatchable(limit, converted=bool(held_up), resend_after_s=resend_after_s)


def wake_waiting(site: Site) -> tuple[str, ...]:
    """Let groups that wait for gains go on where the registry has a set for their time; returns which."""
    queue = site.queue()
    waiting = queue.waiting_for_gains()
    if not waiting:
        return ()
    registry = site.registry()
    return tuple(r.group_id for r in waiting if _has_gains(site, registry, r) and queue.wake(r.group_id))


def _has_gains(site: Site, registry: Registry, row: GroupRow) -> bool:
    mjd = row.mid_mjd if row.mid_mjd is not None else row.start_mjd
    if mjd is None:
        return False
    borrow = site.calibrate.borrow_days
    return registry.find_set(mjd, dec_deg=row.dec_deg, borrow_days=borrow) is not None


def _recover(site: Site, queue: Queue, now: float, clock: ClockLook | None = None) -> list[str]:
    lease_s = site.ingest.in_progress_timeout_s

    def lives(row: GroupRow) -> bool:
        # Where the clock was set, the times that other machines write say nothing.
        unsure = clock is not None and clock.stepped and clock.silent_s(row) <= lease_s
        return unsure or is_alive(row)

    recovered = queue.recover(
        lambda row: is_dead(row, lock=site.group_lock(row.group_id)),
        lease_s=lease_s,
        is_alive=lives,
        full=full_disk(site),
        now=now,
    )
    if recovered:
        logger.warning("took back from workers that are gone: %s", ", ".join(recovered))
    held = [r.group_id for r in queue.groups(state=State.IN_PROGRESS)]
    if clock is not None:
        clock.keep(queue, set(held))
    out = site.output_dir
    roots = (site.scratch_dir, out, out / "caltables", out / "images")
    for path in [*remove_dead_scratch(*roots, keep=held), *remove_dead_ram(site)]:
        logger.info("removed %s, left behind by a process that is gone", path)
    site.remove_free_locks(keep=held)
    return recovered


def _record(site: Site, queue: Queue, group: SubbandGroup, now: float) -> dict[Path, Recorded]:
    files = [
        FileFact(
            a.subband,
            a.path,
            a.size_bytes,
            a.mtime,
            start_mjd=None if a.start_jd is None else a.start_jd - JD_OF_MJD_ZERO,
            mid_mjd=None if a.mid_jd is None else a.mid_jd - JD_OF_MJD_ZERO,
            dec_deg=a.dec_deg,
            layout=a.layout,
        )
        for a in group.arrivals
    ]
    expected, minutes = site.ingest.expected_subbands, site.ingest.chunk_minutes
    return queue.record(_fact(group), files, expected_subbands=expected, chunk_minutes=minutes, now=now)


def _odd_ones(queue: Queue, what: Mapping[Path, Recorded]) -> dict[str, str]:
    """Return the files that contradict their group, and in what."""
    odd = {str(path) for path, became in what.items() if became is Recorded.ODD}
    found = {row.path: row.reason for row in queue.bad_among(odd)} if odd else {}
    for path, reason in found.items():
        logger.warning("%s is not used: %s", path, reason)
    return found


def _fact(group: SubbandGroup) -> GroupFact:
    first: Arrival = group.arrivals[0]
    # From the headers: a scan hands over only files whose header was read.
    start_jd = group.start_jd if group.start_jd is not None else 0.0
    return GroupFact(
        group_id=str(group.group_id),
        start_mjd=start_jd - JD_OF_MJD_ZERO,
        mid_mjd=None if first.mid_jd is None else first.mid_jd - JD_OF_MJD_ZERO,
        dec_deg=first.dec_deg,
    )


def _paths(what: dict[Path, Recorded], kind: Recorded) -> tuple[str, ...]:
    return tuple(str(path) for path, found in what.items() if found is kind)


def _note_changed(site: Site, queue: Queue, now: float) -> list[str]:
    """Look whether files of groups that are not long over are still those that were recorded."""
    changed = []
    for file in queue.living_files(now - site.ingest.remember_s):
        try:
            found = Path(file.path).stat()
        except OSError:
            continue  # whether it is needed, and then missed, is for who needs it to say
        if (found.st_size, found.st_mtime) == (file.size_bytes, file.mtime) or file.mtime is None:
            continue
        if queue.file_changed(file, found.st_size, found.st_mtime, now=now):
            logger.info("%s was rewritten and is looked at again", file.path)
        else:
            logger.warning("%s was rewritten after group %s was complete", file.path, file.group_id)
            changed.append(file.path)
    return changed


def _let_partial_go(site: Site, queue: Queue, now: float) -> list[str]:
    ingest = site.ingest
    if ingest.min_subbands >= ingest.expected_subbands:
        return []
    return queue.let_partial_go(ingest.min_subbands, ingest.partial_after_s, now=now)


def _talk(report: ArrivalReport) -> None:
    for group_id in report.partial:
        logger.warning("group %s goes on with the subbands that it has", group_id)
    for group_id in report.stale:
        logger.warning("group %s is still incomplete", group_id)
    for group_id in report.expired:
        logger.error("group %s is failed: incomplete for too long", group_id)
