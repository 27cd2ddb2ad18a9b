"""Whether every directory of a site can be written, and has room for the groups that come next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nightbeam.core.files import part_path
from nightbeam.core.settings import Settings
from nightbeam.platform.findings import Finding, Health, guarded

__all__ = ["GROUP_BYTES", "Needs", "directories_of", "examine_storage", "needs_of"]

#: Subbands of one group of DSA-110, for a site that has seen none yet.
GROUP_BYTES = 2.33e9
#: Of a group's subbands, in bytes: the Measurement Set with all columns, as much again in scratch while it is staged,
#: and what is asked to be free before a group is begun (contimg.room; 2.33 GB become 5.1 GB; DSA-110).
_STAYS, _STAGED, _ASKED = 2.2, 2.2, 3.2
#: Less than this stops databases, logs and locks, whatever the groups are like.
_FLOOR_BYTES, _LOW_BYTES = 0.2e9, 2e9
#: A group is some 300 files, and while it is converted twice as many.
_FLOOR_INODES, _LOW_INODES = 1_000, 10_000


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that groups need in a directory: ``next`` those that are next, ``ahead`` all that are looked ahead to."""

    next: float = 0.0
    ahead: float = 0.0


@dataclass(frozen=True, slots=True)
class _Room:
    device: int
    free: float
    inodes: int
    inodes_free: int


def directories_of(settings: Settings) -> list[Path]:
    """Return every directory that resolved settings have something written to."""
    c, calib = settings.contimg, settings.calib
    named = [
        *(settings.state_dir, c.state_dir, c.input_dir, c.output_dir, c.scratch_dir),
        *(c.ingest.set_aside_dir, c.housekeeping.quarantine_dir, c.mosaic.output_dir),
        *(settings.scans.output_dir, settings.elog.database_dir, settings.cxi.output_dir),
        calib.output_dir if calib.experiment else None,
        c.convert.tmpfs_path if c.convert.stage_to_tmpfs else None,
    ]
    return list(dict.fromkeys(path for path in named if path is not None))


def needs_of(settings: Settings, group_bytes: float | None) -> dict[Path, Needs]:
    """Return what the next groups need where.

    Parameters
    ----------
    settings
        Resolved.
    group_bytes
        Of the subbands of one group; None where nobody knows yet: then a group of DSA-110 is only warned of.
    """
    c = settings.contimg
    assert c.input_dir is not None
    assert c.output_dir is not None
    assert c.scratch_dir is not None
    at_once, ahead = settings.platform.pools.get("casa", 1), settings.doctor.ahead_groups
    size, more = group_bytes or GROUP_BYTES, max(0, ahead - at_once) if group_bytes else 0
    parts = {c.input_dir: (1.0, 1.0), c.output_dir: (_ASKED, _STAYS), c.scratch_dir: (_STAGED, 0.0)}
    found: dict[Path, Needs] = {}
    for path, (now, stays) in parts.items():
        soon = size * (at_once * now + more * stays)
        found[path] = Needs(size * at_once * now if group_bytes else 0.0, soon)
    return found


def examine_storage(directories: Sequence[Path], needs: Mapping[Path, Needs]) -> list[Finding]:
    """Look at every directory, and at what is free on each file system against all that is needed there.

    Parameters
    ----------
    directories
        Need not exist yet.
    needs
        By directory; those of directories on one file system add up.

    Returns
    -------
    list of Finding
        For each directory, but for one that is not there and lies in another of them: it is made when it is first
        used. Free inodes are told once for each file system.
    """
    findings: list[Finding] = []
    rooms: dict[Path, _Room] = {}
    for path in directories:  # whoever does not come back writes into what nobody reads any more
        above = [other for other in directories if other in path.parents]
        findings += guarded(f"directory {path}", partial(_probe, path, above, rooms), timeout_s=10.0)
    rooms = dict(rooms)
    total: dict[int, Needs] = {}
    for path, one in needs.items():
        # What is not there yet will lie where the nearest of its parents does.
        where = next((rooms[p] for p in (path, *path.parents) if p in rooms), None)
        if where is not None:
            sum_ = total.get(where.device, Needs())
            total[where.device] = Needs(sum_.next + one.next, sum_.ahead + one.ahead)
    told: set[int] = set()
    for path, room in rooms.items():
        findings.append(_room(f"directory {path}", room.free, total.get(room.device, Needs())))
        if room.device not in told:
            findings.append(_inodes(f"inodes {path}", room))
            told.add(room.device)
    return findings


def _probe(path: Path, above: Sequence[Path], rooms: dict[Path, _Room]) -> list[Finding]:
    if above and not path.exists():
        return []
    place = next(p for p in (path, *path.parents) if p.exists())
    probe = part_path(place / "doctor")
    try:
        probe.touch()
        probe.unlink()
        state = os.statvfs(place)
    except OSError as error:
        return [Finding(f"directory {path}", Health.FAIL, f"cannot write: {error.strerror}", f"chown or mount {place}")]
    rooms[path] = _Room(place.stat().st_dev, state.f_bavail * state.f_frsize, state.f_files, state.f_favail)
    return []


def _room(check: str, free: float, needs: Needs) -> Finding:
    found, fix = f"{free / 1e9:.1f} GB free", "free some space: docs/how-to/keep-the-disk-free.md"
    least, low = max(needs.next, _FLOOR_BYTES), max(needs.ahead, _LOW_BYTES)
    if free < least:
        return Finding(check, Health.FAIL, f"{found}, the next groups need {least / 1e9:.1f} there", fix)
    if free < low:
        return Finding(check, Health.WARN, f"{found}, wanted {low / 1e9:.1f} for what comes", fix)
    return Finding(check, Health.OK, found)


def _inodes(check: str, room: _Room) -> Finding:
    if room.inodes == 0:  # btrfs and others make them as they are needed
        return Finding(check, Health.OK, "as many as there is space for")
    found = f"{room.inodes_free} free of {room.inodes}"
    if room.inodes_free < _FLOOR_INODES:
        return Finding(check, Health.FAIL, f"{found}: the next group cannot be written", "remove small files there")
    if room.inodes_free < _LOW_INODES:
        return Finding(check, Health.WARN, found, "remove small files there")
    return Finding(check, Health.OK, found)
