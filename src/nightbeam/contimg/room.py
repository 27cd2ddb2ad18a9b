"""Whether there is room to begin with another group: a full disk stops the dispatch, and no group is failed by it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nightbeam.contimg.site import Site
from nightbeam.core.errors import MissingError, StorageError
from nightbeam.core.files import full_place, require_space

if TYPE_CHECKING:
    from nightbeam.catalog import Queue

__all__ = ["SPACE_OF_INPUT", "full_disk", "may_dispatch", "no_input", "why_none_converted"]

#: Of the input's bytes: the Measurement Set with all three data columns, and as much again while staging.
SPACE_OF_INPUT = 3.2
#: How long after a group was stopped by a disk on which there is room, or by want of memory, the next one is tried.
_PAUSE_S = 60.0


def full_disk(site: Site) -> str:
    """Return which of the disks that a group is worked on is full, and of what; ``""`` if none is."""
    return full_place(site.output_dir, site.scratch_dir, site.state_dir, *_database_dirs(site))


def may_dispatch(site: Site, limit: int, *, now: float | None = None) -> tuple[int, str]:
    """Return how many groups may be begun now, and why not more.

    None while a disk is full, or while none can be converted (`why_none_converted`) and all that wait are to be. Where
    a disk has stopped groups although there seems to be room, or want of memory has, one is tried a minute later; when
    none is left that was stopped so, as many as before.
    """
    now = time.time() if now is None else now
    if full := full_disk(site):  # asked first: on a full disk SQLite can not even be read
        return 0, f"no space left ({full})"
    queue = site.queue()
    if queue.next_pending() is None:
        return limit, ""
    if queue.next_pending(converted=True) is None and (why := why_none_converted(site)):
        return 0, why
    stopped = queue.stopped()
    if not stopped:
        return limit, ""
    last = max(stopped, key=lambda attempt: attempt.ended_at or 0.0)
    since = now - (last.ended_at or 0.0)
    why = f"{last.group_id} was stopped {since:.0f} s ago: {last.error}"
    return (0 if 0 <= since < _PAUSE_S else min(1, limit)), why


def why_none_converted(site: Site) -> str:
    """Return why no other group can be converted now; ``""`` if the next one can, or if none waits for it.

    There is no room for it, or the input directory is gone or empty: each attempt would only find that its files are
    not there. A group that has its Measurement Set needs neither.
    """
    queue = site.queue()
    group_id = queue.next_pending(converted=False)
    return "" if group_id is None else no_input(site) or _too_little(site, queue, group_id)


def no_input(site: Site) -> str:
    """Return what is wrong with the input directory where it is gone, or empty as it is where a mount is missing."""
    try:
        with os.scandir(site.input_dir) as entries:
            if next(entries, None) is not None:
                return ""
    except OSError as error:
        return f"the input directory {site.input_dir} cannot be read: {error.strerror}"
    return f"the input directory {site.input_dir} is empty; is it mounted?"


def _too_little(site: Site, queue: Queue, group_id: str) -> str:
    size = queue.bytes_of([group_id]).get(group_id, 0)
    try:
        for directory, factor in ((site.output_dir, SPACE_OF_INPUT), (site.scratch_dir, 1.0)):
            there = next((p for p in (directory, *directory.parents) if p.is_dir()), None)
            if there is not None:
                require_space(there, int(factor * size), what=f"group {group_id}")
    except (StorageError, MissingError) as error:
        return error.what
    return ""


def _database_dirs(site: Site) -> Iterator[Path]:
    from nightbeam.catalog.remote import sqlite_file

    for url in (site.queue_url, site.products_url, site.registry_url):
        file = sqlite_file(url)
        if file is not None:
            yield file.parent
