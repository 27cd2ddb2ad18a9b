"""The flags of a Measurement Set, changed aside and brought back as one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError
from nightbeam.rfi.model import FlagReport

__all__ = ["hard_link", "merge_flags", "read_report", "twin", "write_report"]

#: Where a set says by what it was flagged: a keyword of its main table, which copies of the set keep.
KEYWORD = "NIGHTBEAM_RFI"
#: Rows at a time: at 48 x 2 flags, 3 MB.
_BLOCK_ROWS = 32768


def twin(ms: Path, target: Path, *, link: Callable[[Path, Path], None] = os.symlink) -> Path:
    """Return a set with flags and sub-tables of its own that shares all else with another.

    Whoever writes flags into it, and rows of history, leaves the first as it is. Data are not copied.

    Raises
    ------
    MissingError, InputError
        If there is no set, or it is damaged.
    """
    with open_table(ms) as table:
        number = int(table.getdminfo("FLAG")["SEQNR"])
    own = re.compile(rf"table\.(dat|info|lock|f{number}(\D.*)?)")
    target.mkdir()
    for path in ms.iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        elif own.fullmatch(path.name):
            shutil.copy2(path, target / path.name)
        else:
            link(path, target / path.name)
    return target


def hard_link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def merge_flags(original: Path, found: Path, target: Path | None = None) -> tuple[float, float]:
    """Add the flags of one set to those of another; return the flagged fractions before and after.

    Parameters
    ----------
    original
        Its flags are kept, all of them.
    found
        A set of the same rows whose flags are added.
    target
        Gets the union; None: only the fractions are wanted.

    Returns
    -------
    (before, after)
        Of the cross-correlations, rows flagged as a whole counted.

    Raises
    ------
    InputError
        If the two are not of the same shape, or there is no cross-correlation.
    """
    before = after = total = 0
    with open_table(original) as old, open_table(found) as new:
        rows = int(old.nrows())
        if new.nrows() != rows:
            raise InputError(f"{found} has {new.nrows()} rows, {original} has {rows}", fix="flag the set again")
        for first in range(0, rows, _BLOCK_ROWS):
            count = min(_BLOCK_ROWS, rows - first)
            flags, added = (_flags(table, first, count) for table in (old, new))
            if flags.shape != added.shape:
                raise InputError(f"flags of {found} are of another shape than those of {original}")
            union = flags | added
            cross = old.getcol("ANTENNA1", first, count) != old.getcol("ANTENNA2", first, count)
            whole = old.getcol("FLAG_ROW", first, count)[:, None, None]
            before += int(np.count_nonzero((flags | whole)[cross]))
            after += int(np.count_nonzero((union | whole)[cross]))
            total += int(flags[cross].size)
            if target is not None and not np.array_equal(union, flags):
                with open_table(target, write=True) as out:
                    out.putcol("FLAG", union, first, count)
    if not total:
        raise InputError(f"{original} has no cross-correlation", fix="look at its antennas")
    return before / total, after / total


def _flags(table: object, first: int, count: int) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = table.getcol("FLAG", first, count)  # type: ignore[attr-defined]
    return flags


def write_report(ms: Path, report: FlagReport) -> None:
    """Keep in a set by what it was flagged."""
    with open_table(ms, write=True) as table:
        table.putkeyword(KEYWORD, json.dumps(report.to_json()))


def read_report(ms: Path) -> FlagReport | None:
    """Return what `write_report` kept; None for a set that was not flagged, or by another version of ours."""
    with open_table(ms) as table:
        text = str(table.getkeyword(KEYWORD)) if KEYWORD in table.keywordnames() else ""
    try:
        return FlagReport(**json.loads(text)) if text else None
    except (TypeError, ValueError):
        return None
