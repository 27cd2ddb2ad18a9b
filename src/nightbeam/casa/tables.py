"""casacore tables in this process: opened briefly, never waited for without limit, always closed."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nightbeam.core.errors import BusyError, InputError, MissingError, NightbeamError
from nightbeam.core.files import full_place, no_space, storage_errors

__all__ = [
    "array_column",
    "create_table",
    "is_table",
    "ms_columns",
    "new_ms",
    "new_ms_subtable",
    "open_table",
    "scalar_column",
]

#: Tables that could not be closed for want of room, with their paths.
_stuck: list[tuple[Path, Any]] = []


@contextmanager
def open_table(path: Path | str, *, write: bool = False) -> Iterator[Any]:
    """Open a casacore table (an MS, a caltable, a sub-table) and close it when the block ends.

    Reading takes no lock, so that it never waits for a writer. Writing takes the lock for as long as
    the table is open and refuses at once when somebody else has it.

    Parameters
    ----------
    path
        The table's directory; a sub-table is ``ms / "ANTENNA"``.
    write
        Whether it may be changed.

    Yields
    ------
    casacore.tables.table

    Raises
    ------
    MissingError
        If there is no table.
    BusyError
        If another process holds it.
    InputError
        If it is damaged, or casacore refuses what the block asks of it.
    """
    from casacore.tables import table

    path = Path(path)
    if not (path / "table.dat").is_file():
        what = "is no casacore table (no table.dat)" if path.is_dir() else "does not exist"
        raise MissingError(f"{path} {what}", fix="check the name, or make the table again")
    with _casacore_errors(path), storage_errors(path):
        if write or _stuck:
            _require_room(path)
            _free_stuck(path)
        opened = table(str(path), readonly=not write, ack=False, lockoptions="permanent" if write else "usernoread")
        if not write:
            try:
                yield opened
            finally:
                opened.close()
            return
        with _written_out(path, opened):
            yield opened


def is_table(path: Path) -> bool:
    """Return whether a directory looks like a casacore table."""
    return (path / "table.dat").is_file()


@contextmanager
def _written_out(path: Path, opened: Any) -> Iterator[None]:
    """Close a table that was written to; one whose last bytes would find no room is never closed.

    Where casacore cannot write the small files that describe a table, which it does when a table is flushed or closed,
    it throws in a destructor, and the whole process is aborted. So it is not let try.
    """
    try:
        yield
        _require_room(path)
        opened.flush(recursive=True)
    except BaseException:
        if full_place(path):
            _keep(path, opened)
            raise
        opened.close()
        raise
    opened.close()


def _require_room(path: Path) -> None:
    if full_place(path):
        raise no_space(path)


def _keep(path: Path, opened: Any) -> None:
    """Let a table never be destroyed, not even when the interpreter ends; what it holds of the disk is given back."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened))
    if any(name.endswith(".part") for name in path.parts):  # nobody will want it, but its files are open
        for file in path.rglob("*"):
            if file.is_file() and file.stat().st_nlink == 1:  # what has another name belongs to another table too
                os.truncate(file, 0)
    else:
        _stuck.append((path, opened))


def _free_stuck(path: Path) -> None:
    """Close what could not be closed before, now that there is room for it, before anybody opens that table again."""
    for one in [one for one in _stuck if one[0] == path]:
        one[1].flush(recursive=True)
        one[1].close()
        _stuck.remove(one)


@contextmanager
def _casacore_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except NightbeamError:
        raise
    except RuntimeError as error:  # all that casacore ever raises
        text = str(error)
        if "lock" in text and "could not be acquired" in text:
            raise BusyError(f"{path} is being written by another process", fix="try again when it is done") from error
        # It names the cause of the last system call that failed, which need not be this one: the disk is asked too.
        if os.strerror(errno.ENOSPC) in text or full_place(path):
            raise no_space(path, told=f": {text.splitlines()[0]}") from error
        raise InputError(f"{path}: {text.splitlines()[0]}", fix="the table is damaged or of another kind") from error


def scalar_column(name: str, sample: Any, **keywords: Any) -> Any:
    """Describe a column of scalars of ``sample``'s type (``datamanagertype``, ``datamanagergroup`` as keywords)."""
    from casacore.tables import makescacoldesc

    return makescacoldesc(name, sample, **keywords)


def array_column(name: str, sample: Any, *, shape: Sequence[int] = (), ndim: int = 0, **keywords: Any) -> Any:
    """Describe a column of arrays: fixed ``shape`` (numpy order), or only ``ndim`` axes."""
    from casacore.tables import makearrcoldesc

    return makearrcoldesc(name, sample, ndim=ndim or len(shape), shape=list(shape), **keywords)


@contextmanager
def create_table(path: Path, columns: Sequence[Any], *, rows: int = 0, dminfo: Any = None) -> Iterator[Any]:
    """Create a table with the given column descriptions and yield it open for writing."""
    from casacore.tables import maketabdesc, table

    with _casacore_errors(path), storage_errors(path):
        _require_room(path)
        created = table(str(path), maketabdesc(list(columns)), nrow=rows, ack=False, dminfo=dminfo or {})
        with _written_out(path, created):
            yield created


def ms_columns() -> dict[str, Any]:
    """Return the standard's description of the required columns of a Measurement Set, by name."""
    from casacore.tables import required_ms_desc

    return {name: column for name, column in required_ms_desc("MAIN").items() if not name.startswith("_")}


def new_ms(path: Path, *, columns: Mapping[str, Any] | Sequence[Any] = (), dminfo: Any = None) -> None:
    """Create an empty Measurement Set with the required columns and sub-tables, and ``columns`` besides."""
    from casacore.tables import default_ms, maketabdesc

    extra = dict(columns) if isinstance(columns, Mapping) else maketabdesc(list(columns)) if columns else None
    with _casacore_errors(path), storage_errors(path):
        _require_room(path)
        default_ms(str(path), extra, dminfo).close()


def new_ms_subtable(kind: str, path: Path) -> None:
    """Create an empty sub-table (``"SOURCE"``) of the standard's description."""
    from casacore.tables import default_ms_subtable

    with _casacore_errors(path), storage_errors(path):
        _require_room(path)
        default_ms_subtable(kind, str(path)).close()
