"""The ends of the logs that the steps of a group wrote."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["LogTail", "log_tail", "steps_with_logs"]

_MOST_BYTES: Final = 128 << 10
_LONGEST_LINE: Final = 2000
_COLOURS: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class LogTail:
    """The last lines of a log; ``cut`` says whether there are more before them."""

    step: str
    path: str
    lines: tuple[str, ...]
    cut: bool


def steps_with_logs(directory: Path) -> list[str]:
    """Return the steps that have a log in the directory of their group, the one written last at the end."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for one in entries:
                if one.name.endswith(".log") and not one.name.startswith(".") and one.is_file(follow_symlinks=False):
                    found.append((one.stat().st_mtime_ns, one.name.removesuffix(".log")))
    except OSError:  # no step has begun, or the logs are gone
        return []
    return [name for _, name in sorted(found)]


def log_tail(directory: Path, step: str, *, lines: int = 200) -> LogTail | None:
    """Return the last lines of the log of a step, or None where it has none that can be read.

    Parameters
    ----------
    directory
        Of the group's logs.
    step
        One of `steps_with_logs`; anything else has no log.
    lines
        At most so many, and not more than 128 KiB.
    """
    if step not in steps_with_logs(directory):
        return None
    path = directory / f"{step}.log"
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(size - _MOST_BYTES, 0)
            file.seek(begin)
            text = file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    found = [_plain(line) for line in text.split("\n")]
    if begin:
        del found[0]  # its beginning is not there
    if found and not found[-1]:
        del found[-1]
    return LogTail(step, str(path), tuple(found[-lines:]), bool(begin) or len(found) > lines)


def _plain(line: str) -> str:
    """Return a line as it would look on a terminal: what was written over is gone, and so are colours."""
    shown = _COLOURS.sub("", line.rstrip("\r")).rsplit("\r", 1)[-1]
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", shown)[:_LONGEST_LINE]
