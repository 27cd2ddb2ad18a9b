"""The smallest loop that is worth keeping alive: it counts, and never writes half a number."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

from nightbeam.core.errors import InputError
from nightbeam.core.files import write_text
from nightbeam.core.times import iso_z, utc_now

__all__ = ["count_up", "read_count"]

logger = logging.getLogger(__name__)


def count_up(path: Path, stop: threading.Event, *, every_s: float = 1.0) -> int:
    """Add one to the number in a file again and again until asked to stop; return the last.

    The example of a long-lived service: a plain function with a stop event, which owns its output,
    goes on from what it finds, and leaves a whole file behind whenever it is killed.

    Parameters
    ----------
    path
        A JSON file with ``count``, ``pid`` and ``at``; made if absent.
    stop
        Set by whoever wants it to end.
    every_s
        Seconds between two numbers.

    Raises
    ------
    InputError
        If the file is not one of ours.
    """
    count = read_count(path)
    logger.info("counting on from %d in %s", count, path)
    while True:
        count += 1
        write_text(path, json.dumps({"count": count, "pid": os.getpid(), "at": iso_z(utc_now())}) + "\n")
        if stop.wait(every_s):
            logger.info("asked to stop at %d", count)
            return count


def read_count(path: Path) -> int:
    """Return the number in a file; 0 where there is none.

    Raises
    ------
    InputError
        If the file is not one of ours.
    """
    try:
        return int(json.loads(path.read_text())["count"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no counter file: {error!r}", fix="remove it") from error
