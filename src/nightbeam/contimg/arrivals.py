"""From the input directory to the queue, and from the queue to whoever starts the work."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nightbeam.catalog.model import Dispatch, FileFact, GroupFact, GroupRow, Recorded, State
from nightbeam.contimg.clock import ClockLook, look_at_clock
from nightbeam.contimg.model import ArrivalReport
from nightbeam.contimg.owners import is_alive, is_dead, remove_dead_scratch
from nightbeam.contimg.room import full_disk, may_dispatch
from nightbeam.contimg.set_aside import move_bad_files
from nightbeam.contimg.site import Site
from nightbeam.contimg.tools import TOOLS, Tools
from nightbeam.core.errors import InputError, StorageError
from nightbeam.core.keys import SubbandName
from nightbeam.core.times import JD_OF_MJD_ZERO
from nightbeam.ingest import SubbandGroup, group_arrivals, list_names, scan_directory

if TYPE_CHECKING:
    from nightbeam.catalog import Queue, Registry
    from nightbeam.ingest import Arrival

__all__ = ["scan_arrivals", "scan_until_ready", "take_dispatchable", "take_in", "wake_waiting"]

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.5


def scan_arrivals(site: Site, *, tools: Tools = TOOLS, now: float | None = None) -> ArrivalReport:
    """Look once at the input directory and at the queue, and bring the queue up to date.

    New ready files are recorded in their groups, unreadable ones with the reason and later moved aside; groups of
    dead workers come back, those incomplete for too long are imaged as partial or failed, and those that wait for
    gains are woken where there is a set now. Two who scan at once do no harm, unless both are the first to see a
    clock that was set: then the ages of groups are corrected twice.

    Raises
    ------
    MissingError
        If there is no input directory.
    StorageError
        If it cannot be read.
    """
    queue, ingest = site.queue(), site.ingest
    clock = look_at_clock(site) if now is None else None
    now = time.time() if now is None else now
    if clock is not None:
        _follow(queue, clock)
    recovered = _recover(site, queue, now, clock)
    names = list_names(site.input_dir)
    changed = _note_changed(site, queue, now)
    report = take_in(site, names, tools=tools, now=now)
    aside = move_bad_files(site, queue, now=now)
    partial = _let_partial_go(site, queue, now)
    expired = queue.expire_collecting(ingest.collecting_timeout_s, now=now)
    report = replace(
        report,
        changed=tuple(changed),
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
    site: Site, names: Collection[str], *, tools: Tools = TOOLS, now: float | None = None, queue: Queue | None = None
) -> ArrivalReport:
    """Record those files of the input directory that the queue does not know.

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
    """
    now = time.time() if now is None else now
    queue = site.queue() if queue is None else queue
    # Only these: a database may refuse even to be asked for what other programs call their files.
    names = [name for name in names if SubbandName.parse(name) is not None]
    beginning = f"{site.input_dir}/"
    known = {path.removeprefix(beginning) for path in queue.known_among(beginning + name for name in names)}
    rejected = {Path(b.path): (b.size_bytes, b.mtime) for b in queue.bad_files()}
    scan = scan_directory(
        site.input_dir,
        names=names,
        known=known,
        rejected=rejected,
        settle_s=site.ingest.settle_s,
        read=tools.read_header,
    )
    bad = {str(b.path): b.reason for b in scan.bad}
    for item in scan.bad:
        queue.record_bad_file(item.path, item.reason, size_bytes=item.size_bytes, mtime=item.mtime, now=now)
        logger.warning("%s is no readable subband: %s", item.path, item.reason)
    groups = group_arrivals(scan.ready, gap_s=site.ingest.name_gap_s)
    before = queue.ids(State.PENDING) if groups else set()
    what: dict[Path, Recorded] = {}
    for group in groups:
        what |= _record(site, queue, group, bad, now)
    for path in rejected.keys() & what.keys():
        queue.forget_bad_file(path)
    pending = queue.ids(State.PENDING) if groups else set()
    report = ArrivalReport(
        new_files=sum(w is Recorded.NEW for w in what.values()),
        duplicates=_paths(what, Recorded.DUPLICATE),
        late=_paths(what, Recorded.LATE),
        bad=bad,
        unready={str(u.path): u.reason for u in scan.unready},
        groups=tuple(str(g.group_id) for g in groups),
        became_pending=tuple(sorted(pending - before)),
    )
    for file in report.duplicates:
        logger.warning("%s is a second file for its subband; the first is kept", file)
    for file in report.late:
        logger.warning("%s came after its group had been taken", file)
    return report


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

    Each attempt at a group has one idempotency key: a group is given again, ``resend_after_s`` after it was
    taken and not claimed, with the same key. None is taken while there is no room for it (`may_dispatch`).
    """
    wake_waiting(site)
    limit, why = may_dispatch(site, limit)
    if why:
        logger.warning("%s: %s", "one group is tried" if limit else "no group is begun", why)
    return site.queue().take_dispatchable(limit, resend_after_s=resend_after_s) if limit else []


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


def _follow(queue: Queue, clock: ClockLook) -> None:
    """Let no group be old because the clock was set."""
    if not clock.step_s:
        return
    here = clock.now.wall
    moved = queue.follow_clock(clock.step_s, but_since=here - clock.elapsed_s - 1.0, until=here + 1.0)
    logger.warning("the clock was set by %+.0f s; %d groups that collect keep their age", clock.step_s, moved)


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
        try:
            clock.keep(site, set(held))
        except StorageError as error:  # a full disk stops whoever needs it, not the scan
            logger.warning("%s", error.what)
    out = site.output_dir
    roots = (site.scratch_dir, out, out / "caltables", out / "images")
    for path in remove_dead_scratch(*roots, keep=held):
        logger.info("removed %s, left behind by a process that is gone", path)
    site.remove_free_locks(keep=held)
    return recovered


def _record(site: Site, queue: Queue, group: SubbandGroup, bad: dict[str, str], now: float) -> dict[Path, Recorded]:
    fact = _fact(group)
    files = [FileFact(a.subband, a.path, a.size_bytes, a.mtime) for a in group.arrivals]
    expected, minutes = site.ingest.expected_subbands, site.ingest.chunk_minutes
    try:
        return queue.record(fact, files, expected_subbands=expected, chunk_minutes=minutes, now=now)
    except InputError as error:
        for arrival in group.arrivals:
            bad[str(arrival.path)] = error.what
            queue.record_bad_file(arrival.path, error.what, size_bytes=arrival.size_bytes, mtime=arrival.mtime, now=now)
        return {}


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
