"""Products put aside instead of deleted: moved, put back, or deleted for good after a while.

Each step is written down before it is taken and again after it, so that whoever is killed in between leaves a row
that says in the middle of what; `settle` brings that to an end. A product is never half at one place: a directory
is renamed, or copied under a hidden name, compared, and renamed.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from errno import EXDEV
from pathlib import Path
from typing import TYPE_CHECKING

from nightbeam.contimg.mosaics import LEFT_BEHIND, output_stem
from nightbeam.contimg.site import Site
from nightbeam.core.errors import InputError, MissingError, StorageError
from nightbeam.core.files import directory_bytes, part_path, remove, rename_new, require_space, sha256, storage_errors
from nightbeam.core.times import SECONDS_PER_DAY, datetime_from_mjd
from nightbeam.imaging.model import KINDS, product_path
from nightbeam.mosaic.files import mosaic_sidecar_path
from nightbeam.mosaic.model import MOSAIC_KINDS, mosaic_path

if TYPE_CHECKING:
    from nightbeam.catalog import ImageRow, MosaicRow, Products, QuarantineRow

__all__ = [
    "Item",
    "held_at",
    "image_rows",
    "image_stem_of",
    "inside",
    "is_same",
    "is_there",
    "item_of",
    "left_behind",
    "mosaic_files",
    "move",
    "purge",
    "put_aside",
    "restore",
    "settle",
]

logger = logging.getLogger(__name__)

_MJD_OF_EPOCH = 40587.0
#: Directories of their own; the others are files that share a beginning.
WHOLE = ("ms", "qa")
#: What CASA leaves beside an image, besides the kinds that every engine makes.
_BESIDE = (".psf", ".sumwt", ".mask", ".weight")
_ENDINGS = (".image.pbcor.fits", ".image.fits", ".image.pbcor", ".image")


@dataclass(frozen=True, slots=True)
class Item:
    """A product on disk.

    Attributes
    ----------
    kind
        ``ms``, ``image``, ``mosaic``, ``qa``, or ``leftover``: a mosaic that a row names as left behind.
    original
        What it is known by: the directory, the stem of an image, the file of a mosaic.
    members
        What there is of it now; the description of an image, which says that it is whole, comes first.
    """

    kind: str
    original: Path
    members: tuple[Path, ...]


def item_of(products: Products, kind: str, original: Path, images: Sequence[ImageRow] | None = None) -> Item:
    """Return a product as it lies on disk now; nothing there is no member.

    Parameters
    ----------
    products, kind, original
        Which.
    images
        Its rows, if it is an image and they are known.
    """
    if kind in WHOLE:
        return Item(kind, original, (original,) if original.is_dir() else ())
    if kind == "image":
        named = _image_files(original, image_rows(products, original) if images is None else images)
        # A row may name anything; another product, and a Measurement Set above all, is no part of an image.
        members = (p for p in named if p.exists() and not (p.is_dir() and products.ms(p) is not None))
        return Item(kind, original, tuple(members))
    if kind == "leftover":
        stem = output_stem(original)  # these names and no others: nothing tells what else may lie there
        named = [mosaic_sidecar_path(stem), *(mosaic_path(stem, k) for k in MOSAIC_KINDS)]
        named.append(stem.with_name(f"{stem.name}.png"))
        return Item(kind, original, tuple(path for path in named if path.exists()))
    rows = [row for row in products.mosaics(status="built") if row.output_path == str(original)]
    files = dict.fromkeys(path for row in rows for path in mosaic_files(row) if path.exists())
    return Item(kind, original, tuple(files))


def image_rows(products: Products, stem: Path) -> list[ImageRow]:
    """Return the rows of the images whose files begin with a stem."""
    return [row for row in products.images(beginning=stem) if image_stem_of(row) == stem]


def _image_files(stem: Path, rows: Iterable[ImageRow]) -> list[Path]:
    """Return what an image's files may be called: as it is known, and as its rows say; its description first."""
    known = [product_path(stem, kind, fits=fits) for kind in KINDS for fits in (True, False)]
    known += [stem.with_name(stem.name + ending) for ending in (*_BESIDE, ".png")]
    for row in rows:
        told = [Path(row.path), *(Path(str(path)) for path in _files(row.files).values())]
        known += [p for p in told if p.parent == stem.parent and p.name.startswith(f"{stem.name}.")]
    first = stem.with_name(f"{stem.name}.json")
    return [first, *sorted({p for p in known if p != first and p.suffix != ".ms"})]


def mosaic_files(row: MosaicRow) -> list[Path]:
    """Return the files of a mosaic, its description first; one of an older pipeline has none."""
    paths = {Path(str(path)) for path in _files(row.files).values()}
    if row.output_path:
        if paths:
            paths.add(mosaic_sidecar_path(output_stem(Path(row.output_path))))
        paths.add(Path(row.output_path))
    return sorted(paths, key=lambda p: (p.suffix != ".json", str(p)))


def left_behind(row: MosaicRow) -> list[Path]:
    """Return the mosaics of earlier plans that a row names."""
    lines = (row.validation_issues or "").splitlines()
    return [Path(line.removeprefix(LEFT_BEHIND)) for line in lines if line.startswith(LEFT_BEHIND)]


def _files(text: str | None) -> dict[str, object]:
    found = json.loads(text) if text else {}
    if not isinstance(found, dict):
        raise InputError(f"its row names no files but {text}", fix="correct the column files")
    return found


def image_stem_of(row: ImageRow) -> Path:
    """Return what the names of an image's files begin with."""
    ending = next((e for e in _ENDINGS if row.path.endswith(e)), "")
    return Path(row.path.removesuffix(ending)) if ending else Path(row.path).with_suffix("")


def inside(path: Path, directory: Path) -> bool:
    """Return whether a path is truly below a directory, whatever symbolic links lie on the way to it."""
    if path.name in ("", ".."):
        return False
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
    if target.parent.stat().st_dev != item.original.parent.stat().st_dev:
        require_space(target.parent, size, what=f"the copy of {item.original.name}")
    products.quarantine.begin(target, original=item.original, kind=item.kind, reason=reason, size_bytes=size, now=now)
    moves = _ways_aside(item, target)
    try:
        _carry(moves)
    except OSError:
        _move_back(moves)
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            products.quarantine.forget(target)
            _remove_empty(target, site.quarantine_dir())
        raise
    _held(products, item.kind, item.original, target, now)
    logger.info("put aside %s: %s", item.original, reason)
    return target


def held_at(products: Products, path: Path) -> QuarantineRow:
    """Return what lies in quarantine at a path, or lay at it before: then the last that was put aside from there.

    Raises
    ------
    MissingError
        If there is nothing.
    """
    held = products.quarantine.rows(states=("held", "moving", "restoring"))
    found = [row for row in held if str(path) in (row.path, row.original_path)]
    if not found:
        raise MissingError(f"{path} is not in quarantine", fix="nightbeam housekeeping --held lists what is")
    return found[-1]


def restore(site: Site, products: Products, row: QuarantineRow, *, now: float) -> Path:
    """Put a product back where it lay; returns that place. For who keeps all others away from it.

    Parameters
    ----------
    site, products, row
        What, and where.
    now
        Epoch seconds. Its age is counted from here on.

    Raises
    ------
    MissingError
        If it is gone from there.
    InputError
        If something else lies at its place.
    StorageError
        If there is no room: it is in quarantine still.
    """
    source, original = Path(row.path), Path(row.original_path)
    if not source.exists():
        raise MissingError(f"{source} is gone from quarantine", fix="was it moved by hand?")
    moves = _ways_back(row)
    if row.state == "held":
        taken = next((target for _, target in moves if is_there(target)), None)
    else:  # somebody was stopped in the middle: a copy may be at both places
        taken = _in_the_way(moves)
    if taken is not None:
        raise InputError(f"something lies at {taken} already", fix="move it away first")
    products.quarantine.become(source, "restoring", moved=True, now=now)
    _carry(moves)
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


def settle(site: Site, products: Products, row: QuarantineRow, *, now: float, follows: bool = False) -> None:
    """Bring to its end what somebody was stopped in the middle of, for who keeps all others away from it.

    What can be read is deleted only where the same bytes lie at the other place.

    Parameters
    ----------
    site, products, row
        What, and where.
    now
        Epoch seconds.
    follows
        Whether what still lies where a product lay is the rest of it, and not of one that was made meanwhile.

    Raises
    ------
    StorageError
        If there is no room.
    """
    if row.state == "moving":
        _settle_moving(site, products, row, now=now, follows=follows)
    else:
        _settle_restoring(site, products, row, now=now)


# -- inside -----------------------------------------------------------------------------------------------------


def _settle_moving(site: Site, products: Products, row: QuarantineRow, *, now: float, follows: bool) -> None:
    path, original = Path(row.path), Path(row.original_path)
    begun = path.exists() and (row.kind in WHOLE or any(path.iterdir()))
    if not begun:
        _remove_empty(path, site.quarantine_dir())
        products.quarantine.forget(path)
        return
    item = item_of(products, row.kind, original)
    if row.kind not in WHOLE and item.members:
        moves = _ways_aside(item, path)
        if follows and _in_the_way(moves) is None:
            _carry(moves)
        else:
            logger.warning("%s is in quarantine in part; what lies at its place is another one", original)
    _held(products, row.kind, original, path, now)


def _settle_restoring(site: Site, products: Products, row: QuarantineRow, *, now: float) -> None:
    path, original = Path(row.path), Path(row.original_path)
    moves = _ways_back(row) if path.exists() else []
    if _in_the_way(moves) is not None:  # something else has come to its place
        found = products.ms(original) if row.kind == "ms" else None
        if found is not None and found.status == "quarantined":
            products.upsert_ms(original, status="done", now=now)
        products.quarantine.become(path, "held", moved=True, now=now)
        return
    back = path.exists() or bool(item_of(products, row.kind, original).members)
    _carry(moves)
    if back:
        _restored(products, row, now)
    else:
        products.quarantine.become(path, "deleted", now=now)
    _remove_empty(path, site.quarantine_dir())


def _held(products: Products, kind: str, original: Path, target: Path, now: float) -> None:
    if kind == "ms" and not original.exists():
        products.upsert_ms(original, status="quarantined", now=now)
    if kind == "leftover" and not original.exists():
        _strike(products, original)
    products.quarantine.become(target, "held", moved=True, now=now)


def _strike(products: Products, original: Path) -> None:
    """Have no row name any longer what was left behind."""
    for row in products.mosaics():
        if original in left_behind(row):
            lines = [n for n in (row.validation_issues or "").splitlines() if n != f"{LEFT_BEHIND}{original}"]
            products.change_mosaic(row.name, validation_issues="\n".join(lines) or None)


def _restored(products: Products, row: QuarantineRow, now: float) -> None:
    if row.kind == "ms":
        products.upsert_ms(Path(row.original_path), status="done", now=now)
    products.quarantine.become(Path(row.path), "restored", now=now)


def _is_last_word(products: Products, row: QuarantineRow) -> bool:
    """Return whether the index still means what lies here, and not a Measurement Set that was made anew."""
    found = products.ms(Path(row.original_path))
    return found is not None and found.status == "quarantined" and not Path(row.original_path).exists()


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


def _ways_aside(item: Item, target: Path) -> list[tuple[Path, Path]]:
    if item.kind in WHOLE:
        return [(item.members[0], target)]
    return [(member, target / member.name) for member in item.members]


def _ways_back(row: QuarantineRow) -> list[tuple[Path, Path]]:
    path, original = Path(row.path), Path(row.original_path)
    if row.kind in WHOLE:
        return [(path, original)]
    members = sorted(path.iterdir(), key=lambda p: (p.suffix == ".json", p.name))  # its description last
    return [(member, original.parent / member.name) for member in members]


def _carry(moves: Iterable[tuple[Path, Path]]) -> None:
    """Move each to its place; where its copy lies there already, there is only the original to be dropped.

    Raises
    ------
    InputError
        If something else has come to a place: both stay.
    """
    for here, there in moves:
        if not is_there(there):
            move(here, there)
        elif is_same(here, there):
            _drop(here)
        else:
            raise _taken(there)


def _move_back(moves: list[tuple[Path, Path]]) -> None:
    """Undo as much of some moves as can be undone; what cannot is settled later."""
    for here, there in reversed(moves):
        try:
            if is_there(there) and not is_there(here):
                move(there, here)
            elif is_there(there) and is_same(here, there):
                _drop(there)
        except (InputError, OSError) as error:
            logger.warning("%s could not be moved back: %s", there, error)


def _in_the_way(moves: Iterable[tuple[Path, Path]]) -> Path | None:
    """Return the first place at which something else lies than what is to go there."""
    return next((there for here, there in moves if is_there(there) and not is_same(here, there)), None)


def is_there(path: Path) -> bool:
    """Return whether something has this name, be it a symbolic link to nothing."""
    return path.exists() or path.is_symlink()


def is_same(one: Path, other: Path) -> bool:
    """Return whether two things, and not one by two names, hold the same."""
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    if one.is_dir() != other.is_dir() or one.samefile(other):
        return False
    return _contents(one) == _contents(other) and sha256(one) == sha256(other)


def _contents(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.name != "table.lock")


def move(source: Path, target: Path) -> None:
    """Give something another name, on another file system by a copy that is compared before the source goes.

    Raises
    ------
    InputError
        If something has that name: both stay.
    """
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            rename_new(source, target)
        except FileExistsError as error:
            raise _taken(target) from error
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
        rename_new(part, target)
    except FileExistsError as error:
        raise _taken(target) from error
    finally:
        remove(part)
    _drop(source)


def _taken(target: Path) -> InputError:
    return InputError(f"something lies at {target} already", fix="move it away first")


def _drop(path: Path) -> None:
    gone = part_path(path)
    path.rename(gone)  # at once, so that nobody finds half of it
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
