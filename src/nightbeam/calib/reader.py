"""The reader's door: the constants of one run, shared by every process of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nightbeam.calib.entry import Constants
from nightbeam.calib.files import entry_path, load_pickle, map_entry
from nightbeam.core.errors import InputError

__all__ = ["open_constants"]


def open_constants(experiment: str, run: int, cache_dir: Path, *, owners: Iterable[str | int] = ()) -> Constants:
    """Return the constants of a run, from the cache alone; no service is asked.

    Opening takes well under a millisecond for a detector or two, whatever the size of their arrays, and some
    milliseconds for twenty, whose documents are read: arrays are read-only views of pages that all processes of the
    machine share. They stay valid when the file is replaced or removed. A pickle that another program wrote is read
    too, but copied.

    Parameters
    ----------
    experiment, run
        Whose constants.
    cache_dir
        Where `nightbeam.calib.prefetch` puts them, such as ``/dev/shm``.
    owners
        Users, by name or number, whose files are trusted beside our own.

    Returns
    -------
    mapping
        Detector name -> type of constant -> (data, document). Data are an array, text or a dict. A detector without
        constants has an empty mapping; one that was skipped is absent.

    Raises
    ------
    MissingError
        If nothing is cached for this run.
    RejectedError
        If the file is a link, another user's, writable by others, or names code; it was not run.
    InputError
        If it is damaged or holds another experiment's constants.
    """
    path = entry_path(Path(cache_dir), experiment, run)
    entry = map_entry(path, owners=owners)
    if entry is None:
        return _of_pickle(load_pickle(path, owners=owners))
    if entry.index.experiment != experiment:
        raise InputError(f"{path} holds constants of {entry.index.experiment}", fix="remove it; it is fetched anew")
    return entry


def _of_pickle(found: Mapping[str, Any]) -> Constants:
    constants = found["calib_const"]
    return MappingProxyType({name: MappingProxyType(c) for name, c in constants.items() if isinstance(c, dict)})
