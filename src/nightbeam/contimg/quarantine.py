"""Products put aside instead of deleted: moved, put back, or deleted for good after a while.

Each step is written down before it is taken and again after it, so that whoever is killed in between leaves a row
that says in the middle of what; `settle` brings that to an end. A product is never half at one place: a directory
is renamed, or copied under a hidden name, compared, and renamed.
"""

from __future__ import annotations

import glob
import itertools
import json
import logging
import os
import shutil
from dataclasses import dataclass
from errno import EXDEV
from pathlib import Path
from typing import TYPE_CHECKING

from nightbeam.contimg.site import Site
from nightbeam.core.errors import InputError, MissingError, StorageError
from nightbeam.core.files import directory_bytes, part_path, remove, require_space, sha256, storage_errors
from nightbeam.core.times import SECONDS_PER_DAY, datetime_from_mjd

if TYPE_CHECKING:
    from nightbeam.catalog import ImageRow, MosaicRow, Products, QuarantineRow

__all__ = ["Item", "image_stem_of", "inside", "item_of", "mosaic_files", "purge", "put_aside", "restore", "settle"]

logger = logging.getLogger(__name__)

_MJD_OF_EPOCH = 40587.0
#: Directories of their own; the others are files that share a beginning.
_WHOLE = ("ms", "qa")
_ENDINGS = (".image.pbcor.fits", ".image.fits", ".image.pbcor", ".image")


@dataclass(frozen=True, slots=True)
class Item:
    """A product on disk.

    Attributes
    ----------
    kind
        ``ms``, ``image``, ``mosaic`` or ``qa``.
    original
        What it is known by: the directory, the stem of an image, the file of a mosaic.
    members
        What there is of it now; the description of an image, which says that it is whole, comes first.
    """

    kind: str
    original: Path
    members: tuple[Path, ...]


def item_of(products: Products, kind: str, original: Path) -> Item:
    """Return a product as it lies on disk now; nothing there is no member."""
    if kind in _WHOLE:
        return Item(kind, original, (original,) if original.is_dir() else ())
    if kind == "image":
        found = sorted(original.parent.glob(f"{glob.escape(original.name)}.*"))
        return Item(kind, original, tuple(sorted(found, key=lambda p: p.suffix != ".json")))
    rows = [row for row in products.mosaics(status="built") if row.output_path == str(original)]
    return Item(kind, original, tuple(path for row in rows for path in mosaic_files(row) if path.exists()))


def mosaic_files(row: MosaicRow) -> list[Path]:
    """Return the files of a mosaic, its description first."""
    named = json.loads(row.files) if row.files else {}
    paths = {Path(str(p)) for p in named.values()} | ({Path(row.output_path)} if row.output_path else set())
    return sorted(paths, key=lambda p: (p.suffix != ".json", str(p)))


def image_stem_of(row: ImageRow) -> Path:
    """Return what the names of an image's files begin with."""
    ending = next((e for e in _ENDINGS if row.path.endswith(e)), "")
    return Path(row.path.removesuffix(ending)) if ending else Path(row.path).with_suffix("")


def inside(path: Path, directory: Path) -> bool:
    """Return whether a path is truly below a directory, whatever symbolic links lie on the way to it."""
    real = path.parent.resolve() / path.name
    return real != directory.resolve() and real.is_relative_to(directory.resolve())


def put_aside(site: Site, products: Products, item: Item, *, reason: str, now: float) -> Path:
    """Move a product into quarantine, and have the tables say so; returns where it lies now.

    Raises
    ------
    MissingError
        If there is nothing of it.
    StorageError
        If there is no room for a copy, or it cannot be moved: it is where it was.
    """
    if not item.members:
        raise MissingError(f"there is nothing of {item.original}", fix="was it removed by hand?")
    target = _free_place(site, products, item.original.name, now)
    size = sum(directory_bytes(path) for path in item.members)
    products.quarantine.begin(target, original=item.original, kind=item.kind, reason=reason, size_bytes=size, now=now)
    try:
        _move_all(item, target)
    except OSError:
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            products.quarantine.forget(target)
            _remove_empty(target, site.quarantine_dir())
        raise
    _held(products, item.kind, item.original, target, now)
    logger.info("put aside %s: %s", item.original, reason)
    return target


def restore(site: Site, products: Products, path: Path, *, now: float) -> Path:
    """Put a product back where it lay; returns that place.

    Parameters
    ----------
    site, products
        Where.
    path
        Where it lies in quarantine, or where it lay before: then the last that was put aside from there.
    now
        Epoch seconds. Its age is counted from here on.

    Raises
    ------
    MissingError
        If it is not in quarantine.
    InputError
        If something else lies at its place.
    StorageError
        If there is no room: it is in quarantine still.
    """
    held = products.quarantine.rows(states=("held", "restoring"))
    found = [row for row in held if str(path) in (row.path, row.original_path)]
    if not found:
        raise MissingError(f"{path} is not in quarantine", fix="nightbeam housekeeping --held lists what is")
    row = found[-1]
    source, original = Path(row.path), Path(row.original_path)
    if not source.exists():
        raise MissingError(f"{source} is gone from quarantine", fix="was it moved by hand?")
    moves = _ways_back(row)
    taken = [target for _, target in moves if target.exists() or target.is_symlink()]
    if taken:
        raise InputError(f"something lies at {taken[0]} already", fix="move it away first")
    products.quarantine.become(source, "restoring", now=now)
    for here, there in moves:
        _move(here, there)
    _restored(products, row, now)
    _remove_empty(source, site.quarantine_dir())
    logger.info("put back %s", original)
    return original


def purge(site: Site, products: Products, row: QuarantineRow, *, now: float) -> None:
    """Delete for good what lies in quarantine.

    Raises
    ------
    InputError
        If it does not lie there: nothing is deleted.
    StorageError
        If it cannot be removed.
    """
    path = Path(row.path)
    if not inside(path, site.quarantine_dir()):
        raise InputError(f"{path} is not in {site.quarantine_dir()}", fix="look at contimg.housekeeping.quarantine_dir")
    products.quarantine.become(path, "deleting", now=now)
    with storage_errors(path):
        remove(path)
    if row.kind == "ms" and _is_last_word(products, row):
        products.upsert_ms(Path(row.original_path), status="deleted", now=now)
    products.quarantine.become(path, "deleted", now=now)
    _remove_empty(path.parent, site.quarantine_dir())
    logger.info("deleted %s, which lay at %s", path, row.original_path)


def settle(site: Site, products: Products, row: QuarantineRow, *, now: float) -> None:
    """Bring to its end what somebody was stopped in the middle of; what can be read is never deleted here.

    Raises
    ------
    StorageError
        If there is no room.
    """
    path, original = Path(row.path), Path(row.original_path)
    if row.state == "moving":
        item = item_of(products, row.kind, original)
        if row.kind not in _WHOLE and path.is_dir() and item.members and not _begins_whole(item):
            _move_all(item, path)  # its description is here already: the rest follows
        if path.exists() and (row.kind in _WHOLE or any(path.iterdir())):
            _held(products, row.kind, original, path, now)
        else:
            _remove_empty(path, site.quarantine_dir())
            products.quarantine.forget(path)
        return
    moves = _ways_back(row) if path.exists() else []
    if any(target.exists() for _, target in moves):  # a copy is back, and what it was made of is here still
        found = products.ms(original) if row.kind == "ms" else None
        if found is not None and found.status == "quarantined":
            products.upsert_ms(original, status="done", now=now)
        products.quarantine.become(path, "held", moved=True, now=now)
        return
    for here, there in moves:
        _move(here, there)
    if moves or item_of(products, row.kind, original).members:
        _restored(products, row, now)
    else:
        products.quarantine.become(path, "deleted", now=now)
    _remove_empty(path, site.quarantine_dir())


# -- inside -----------------------------------------------------------------------------------------------------


def _held(products: Products, kind: str, original: Path, target: Path, now: float) -> None:
    if kind == "ms" and not original.exists():
        products.upsert_ms(original, status="quarantined", now=now)
    products.quarantine.become(target, "held", moved=True, now=now)


def _restored(products: Products, row: QuarantineRow, now: float) -> None:
    if row.kind == "ms":
        products.upsert_ms(Path(row.original_path), status="done", now=now)
    products.quarantine.become(Path(row.path), "restored", now=now)


def _is_last_word(products: Products, row: QuarantineRow) -> bool:
    """Return whether the index still means what lies here, and not a Measurement Set that was made anew."""
    found = products.ms(Path(row.original_path))
    return found is not None and found.status == "quarantined" and not Path(row.original_path).exists()


def _begins_whole(item: Item) -> bool:
    return item.members[0].suffix == ".json"


def _free_place(site: Site, products: Products, name: str, now: float) -> Path:
    day = datetime_from_mjd(_MJD_OF_EPOCH + now / SECONDS_PER_DAY).strftime("%Y-%m-%d")
    directory = site.quarantine_dir() / day
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = directory / (name if number == 1 else f"{name}.{number}")
        if not path.exists() and products.quarantine.row(path) is None:
            break
    return path


def _move_all(item: Item, target: Path) -> None:
    if item.kind in _WHOLE:
        _move(item.members[0], target)
        return
    with storage_errors(target):
        target.mkdir(exist_ok=True)
    for member in item.members:
        _move(member, target / member.name)


def _ways_back(row: QuarantineRow) -> list[tuple[Path, Path]]:
    path, original = Path(row.path), Path(row.original_path)
    if row.kind in _WHOLE:
        return [(path, original)]
    members = sorted(path.iterdir(), key=lambda p: (p.suffix == ".json", p.name))  # its description last
    return [(member, original.parent / member.name) for member in members]


def _move(source: Path, target: Path) -> None:
    """Give something another name, on another file system by a copy that is compared before the source goes."""
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != EXDEV:
                raise
            _move_by_copy(source, target)


def _move_by_copy(source: Path, target: Path) -> None:
    require_space(target.parent, directory_bytes(source), what=f"the copy of {source.name}")
    part = part_path(target)
    try:
        _copy(source, part)
        if sha256(part) != sha256(source):
            raise StorageError(f"the copy of {source} differs from it", fix="check the disk, or try again")
        part.rename(target)
    finally:
        remove(part)
    gone = part_path(source)
    source.rename(gone)  # at once, so that nobody finds half of it
    remove(gone)


def _copy(source: Path, target: Path) -> None:
    # As shutil.copytree, which hides what the disk says in a list of its own.
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir()
        for child in source.iterdir():
            _copy(child, target / child.name)
        shutil.copystat(source, target)
    else:
        shutil.copy2(source, target)
        with target.open("rb") as copied:  # it must be on the disk before the source goes
            os.fsync(copied.fileno())


def _remove_empty(directory: Path, top: Path) -> None:
    """Remove a directory, and the day it lies in, where nothing is left in them."""
    for path in (directory, directory.parent):
        if path != top and inside(path, top) and path.is_dir() and not any(path.iterdir()):
            path.rmdir()
