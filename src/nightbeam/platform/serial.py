"""One machine at a time, for what a server does not bear twice at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nightbeam.catalog.serial import has_advisory_locks, one_at_a_time
from nightbeam.core.locks import sole_owner
from nightbeam.core.settings import Settings

__all__ = ["applying"]


@contextmanager
def applying(settings: Settings, *, wait_s: float = 240.0) -> Iterator[None]:
    """Be the only machine of a site that brings its Prefect server up to date, for the block.

    By the database that all machines of a site have in common, or, where that is a file, by a file in ``locks``.

    Raises
    ------
    BusyError
        If another one is still at it after ``wait_s``.
    """
    c = settings.contimg
    if has_advisory_locks(c.queue_db):
        with one_at_a_time(str(c.queue_db), "the server's deployments", wait_s=wait_s):
            yield
        return
    directory = c.state_dir or settings.state_dir
    with sole_owner(directory / "locks" / "apply.lock", wait_s=wait_s, what="the server's deployments"):
        yield
