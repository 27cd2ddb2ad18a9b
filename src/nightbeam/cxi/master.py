"""One virtual file over all files of a run: it holds no image, only where each is."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from nightbeam import __version__
from nightbeam.core.errors import NightbeamError
from nightbeam.core.files import part_path, remove_parts
from nightbeam.core.times import iso_z, utc_now
from nightbeam.cxi import layout
from nightbeam.cxi.chunkfile import open_new, sync
from nightbeam.cxi.files import open_chunk

__all__ = ["Member", "look_at", "write_master"]

_log = logging.getLogger(__name__)
_OF_A_FILE: Final = {d.path for d in layout.LAYOUT if d.axes == ("ss", "fs")}


@dataclass(frozen=True, slots=True)
class Member:
    """What the master needs to know of a file.

    Attributes
    ----------
    events
        How many it has.
    datasets
        Path to (shape, type), of those with a value for each event and of the maps of the whole file.
    links
        Soft links, where to what.
    """

    path: Path
    events: int
    datasets: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
    links: Mapping[str, str]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Files that can be one: those whose images, if any, are alike."""
        shape, dtype = self.datasets.get(layout.DATA, ((0,), None))
        return shape[1:], dtype


def look_at(path: Path) -> Member:
    """Return what the master needs to know of a file.

    Raises
    ------
    InputError
        If it is none of ours, or damaged.
    """
    with open_chunk(path) as file:
        events = len(file[layout.N_PEAKS])
        found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}

        def note(name: str, item: Any) -> None:
            at = f"/{name}"
            along = isinstance(item, h5py.Dataset) and item.shape[:1] == (events,) and not at.startswith(layout.STATIC)
            if along or at in _OF_A_FILE:
                found[at] = item.shape, item.dtype

        file.visititems(note)
        links = {where: target for where, target, _ in layout.LINKS if where in file and target in file}
    return Member(path, events, found, links)


def write_master(path: Path, files: Sequence[Path]) -> Path | None:
    """Write a master file of files in the same directory, or replace it; returns its place, None without files.

    Parameters
    ----------
    files
        In order. One whose images are of another shape or type than the last one's is left out, and so is one that
        cannot be read.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    members = _members(files)
    if not members:
        return None
    remove_parts(path)
    part = part_path(path)
    try:
        with open_new(part) as file:
            _fill(file, members)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return path


def _members(files: Sequence[Path]) -> list[Member]:
    members: list[Member] = []
    for path in files:
        try:
            members.append(look_at(path))
        except NightbeamError as error:
            _log.warning("%s is not in the master file: %s", path, error.what)
    same = [one for one in members if one.kind == members[-1].kind]
    if len(same) < len(members):
        _log.warning("%d of %d files have other images and are not in the master file", len(members) - len(same),
                     len(members))  # fmt: skip
    return same


def _fill(file: Any, members: Sequence[Member]) -> None:
    everywhere = [at for at in members[-1].datasets if all(_alike(at, one, members[-1]) for one in members)]
    with h5py.File(members[-1].path, "r", locking="best-effort") as like:
        for at in everywhere:
            made = file.create_virtual_dataset(at, _virtual(at, members), fillvalue=_fill_value(members[-1], at))
            made.attrs.update(dict(like[at].attrs))
            if "numEvents" in made.attrs:
                made.attrs["numEvents"] = sum(one.events for one in members)
        for one in (d for d in layout.LAYOUT if d.value is not None):
            file[one.path] = np.array(one.value, one.dtype)
    for where, target in members[-1].links.items():
        file[where] = h5py.SoftLink(target)
    file.attrs.update({
        "creation_time": iso_z(utc_now()),
        "num_events": sum(one.events for one in members),
        "software": "nightbeam",
        "version": __version__,
        "files": json.dumps([one.path.name for one in members]),
    })  # fmt: skip


def _alike(at: str, one: Member, last: Member) -> bool:
    if at not in one.datasets:
        return False
    (shape, dtype), (wanted, wanted_dtype) = one.datasets[at], last.datasets[at]
    return len(shape) == len(wanted) and dtype.kind == wanted_dtype.kind


def _virtual(at: str, members: Sequence[Member]) -> Any:
    shapes = [one.datasets[at][0] for one in members]
    dtype = max((one.datasets[at][1] for one in members), key=lambda d: d.itemsize)
    source = partial(h5py.VirtualSource, name=at)
    if at in _OF_A_FILE and len(shapes[-1]) == 2:
        whole = h5py.VirtualLayout(shapes[-1], dtype)
        whole[...] = source(members[-1].path.name, shape=shapes[-1])
        return whole
    rest = tuple(max(lengths) for lengths in zip(*(shape[1:] for shape in shapes), strict=True))
    whole = h5py.VirtualLayout((sum(one.events for one in members), *rest), dtype)
    begin = 0
    for one, shape in zip(members, shapes, strict=True):
        place = (slice(begin, begin + one.events), *(slice(0, n) for n in shape[1:]))
        whole[place] = source(one.path.name, shape=shape)
        begin += one.events
    return whole


def _fill_value(member: Member, at: str) -> Any:
    return None if member.datasets[at][1].kind in "SO" else 0
