"""One CXI file, written whole: HDF5 is spoken here and where files are read."""

from __future__ import annotations

import errno
import importlib
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import ConfigError, StorageError
from nightbeam.core.files import storage_errors
from nightbeam.cxi import layout
from nightbeam.cxi.columns import conditions, copied_columns, event_columns, peak_columns
from nightbeam.cxi.detector import Detector, Slabs
from nightbeam.cxi.model import Event, OutputPlan

__all__ = [
    "ChunkContents",
    "PackedMask",
    "Powders",
    "compression_of",
    "environment_line",
    "open_new",
    "sync",
    "write_chunk",
]

#: CrystFEL's HDF5 1.10 reads it, and attributes may be longer than 64 KiB.
_LIBVER: Final = ("v108", "v110")
_PLUGINS: Final = ("bslz4", "bszstd", "zstd")


@dataclass(slots=True)
class Powders:
    """Brightest finite values of a run; -inf where there was none.

    Attributes
    ----------
    hits, misses : (C, H0, W0) or None
        None: no image yet.
    """

    hits: NDArray[np.float32] | None = None
    misses: NDArray[np.float32] | None = None

    def add_hit(self, image: NDArray[Any]) -> None:
        """Add an image; to add it again changes nothing."""
        self.hits = _brightest(self.hits, image)

    def add_miss(self, image: NDArray[Any]) -> None:
        """Add an image."""
        self.misses = _brightest(self.misses, image)


def _brightest(powder: NDArray[np.float32] | None, image: NDArray[Any]) -> NDArray[np.float32]:
    if powder is None:
        powder = np.full(image.shape, -np.inf, np.float32)
    most = float(np.finfo(np.float32).max)
    with np.errstate(over="ignore"):  # float64 below float32's range becomes -inf, which is no maximum
        if np.fmax.reduce(image, axis=None) > most:
            np.fmax(powder, image, out=powder, where=image <= most, casting="same_kind")
        else:  # nearly always, and twice as fast
            np.fmax(powder, image, out=powder, casting="same_kind")
    return powder


@dataclass(frozen=True, slots=True)
class ChunkContents:
    """What goes into one file.

    Attributes
    ----------
    events, numbers
        At least one, and the running number of each in its run.
    powders
        Brightest values so far; these events' are added as they are written.
    attributes
        Of the file.
    """

    events: Sequence[Event]
    numbers: Sequence[int]
    powders: Powders
    attributes: Mapping[str, Any]


# -- compression --------------------------------------------------------------------------------------------------


def compression_of(text: str) -> dict[str, Any]:
    """Return what h5py is told to compress images with; empty for ``none``.

    Raises
    ------
    ConfigError
        If there is no such compression, or its plugin is not installed.
    """
    if text == "none":
        return {}
    if found := re.fullmatch(r"gzip-([1-9])", text):
        return {"compression": "gzip", "compression_opts": int(found[1]), "shuffle": True}
    if text not in _PLUGINS:
        raise ConfigError(f"compression is {text!r}", fix=f"none, gzip-1 to gzip-9, {', '.join(_PLUGINS)}")
    plugin = _plugin(text)
    if text == "zstd":
        return {**plugin.Zstd(), "shuffle": True}
    return dict(plugin.Bitshuffle(cname=text.removeprefix("bs")))


def environment_line(text: str) -> str:
    """Return the line a shell needs before CrystFEL can read files of this compression; "" if it needs none."""
    return f"export HDF5_PLUGIN_PATH={_plugin(text).PLUGIN_PATH}" if text in _PLUGINS else ""


def _plugin(text: str) -> Any:
    try:
        return importlib.import_module("hdf5plugin")
    except ImportError as error:
        raise ConfigError(
            f"compression {text} needs the package hdf5plugin, which is not installed",
            fix="pip install hdf5plugin, or choose none or gzip-1",
        ) from error


# -- the file -----------------------------------------------------------------------------------------------------


@contextmanager
def open_new(path: Path) -> Iterator[Any]:
    """Yield a new HDF5 file that CrystFEL's library can read; if it cannot be written, its space is given back.

    Raises
    ------
    StorageError
        If the disk is full or does not work.
    """
    with _no_trace(path), storage_errors(path), _hdf5_errors(path):
        with h5py.File(path, "w", libver=_LIBVER, locking="best-effort") as file:
            yield file
        sync(path)


@contextmanager
def _no_trace(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # HDF5 cannot close a file that it cannot write, so that to remove it frees nothing; to empty it does.
        if path.exists():
            os.truncate(path, 0)
            path.unlink(missing_ok=True)
        raise


@contextmanager
def _hdf5_errors(path: Path) -> Iterator[None]:
    """Give h5py's errors of writing the number of the system's error that is in their text."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, StorageError):
            raise
        found = re.search(r"errno = (\d+)", str(error))
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(f"no space left for {path}", fix="free some space, then try again") from error
        said = os.strerror(number) if number else str(error)[:200]
        raise StorageError(f"cannot write {path}: {said}", fix="check the disk, its mount and its owner") from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot do it for directories.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


class PackedMask:
    """The mask of all events, compressed once."""

    def __init__(self, bad: NDArray[np.bool_]) -> None:
        self.values = bad.astype(np.uint16)
        self.packed = zlib.compress(self.values.view(np.uint8).reshape(-1, 2).T.tobytes(), 1)


def write_chunk(
    path: Path,
    contents: ChunkContents,
    *,
    plan: OutputPlan,
    detector: Detector,
    slabs: Slabs,
    mask: PackedMask | None,
) -> None:
    """Write a file that was not there, to the disk itself.

    Raises
    ------
    StorageError
        If the disk is full or does not work; then there is no file.
    """
    writer = _Writer(contents, plan, detector, slabs, mask)
    with open_new(path) as file:
        writer.write(file)


class _Writer:
    def __init__(
        self, contents: ChunkContents, plan: OutputPlan, detector: Detector, slabs: Slabs, mask: PackedMask | None
    ) -> None:
        self.contents, self.plan, self.detector, self.slabs, self.mask = contents, plan, detector, slabs, mask
        self.columns = event_columns(contents.events, contents.numbers, detector)
        maps = plan.save_segmentation_maps and all(e.segmentation is not None for e in contents.events)
        self.conditions = conditions(self.columns, detector, images=plan.images, compat=plan.compat, maps=maps)
        self.datasets = layout.wanted(self.conditions)
        self.columns |= peak_columns(
            contents.events, detector, names=[d.name for d in self.datasets if d.axes == ("event", "peak")]
        )
        self.lengths = {
            "event": len(contents.events),
            "peak": max(1, int(self.columns["nPeaks"].max())),
            "ss": detector.slab[0],
            "fs": detector.slab[1],
        }
        self.pictures: dict[str, Callable[[Any], None]] = {
            layout.DATA: self._images,
            layout.MASK: self._mask,
            layout.POWDER_HITS: lambda made: self._powder(made, contents.powders.hits),
            layout.POWDER_MISSES: lambda made: self._powder(made, contents.powders.misses),
            layout.SEGMENTATION: self._maps,
        }

    def write(self, file: Any) -> None:
        for dataset in self.datasets:
            made = self._make(file, dataset)
            made.attrs.update({**layout.attributes_of(dataset), **self._own_attributes(dataset)})
            if dataset.path in self.pictures:
                self.pictures[dataset.path](made)
        for where, target, when in layout.LINKS:
            if self.conditions.issuperset(when):
                file[where] = h5py.SoftLink(target)
        self._metadata(file)
        file.attrs.update(self.contents.attributes)

    def _make(self, file: Any, dataset: layout.Dataset) -> Any:
        shape = layout.shape_of(dataset, self.lengths)
        if dataset.path in self.pictures:
            return file.create_dataset(dataset.path, shape, self._dtype(dataset), **self._storage(dataset, shape))
        if dataset.value is not None:
            return file.create_dataset(dataset.path, data=np.array(dataset.value, dataset.dtype))
        values = self.columns[dataset.name]
        return file.create_dataset(dataset.path, data=values if dataset.dtype == "S" else values.astype(dataset.dtype))

    def _dtype(self, dataset: layout.Dataset) -> str:
        return self.plan.dtype if dataset.dtype == "output" else dataset.dtype

    def _storage(self, dataset: layout.Dataset, shape: tuple[int, ...]) -> dict[str, Any]:
        """Return one chunk for each event, as psocake and LUTE have it; what is one slab lies in one piece."""
        pressed = compression_of("gzip-1") if dataset.compressed else {}
        if dataset.path == layout.DATA:
            pressed = compression_of(self.plan.compression)
        if dataset.axes[0] == "event":
            return {"chunks": (1, *shape[1:]), "maxshape": (None, *shape[1:]), **pressed}
        return {"chunks": shape, **pressed} if pressed else {}

    def _own_attributes(self, dataset: layout.Dataset) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if dataset.path == layout.N_PEAKS:
            more = {"minPeaks": self.plan.min_num_peak, "maxPeaks": self.plan.max_num_peak}
        if dataset.path == layout.DATA:
            raw = any(e.batch.image_kind == "network_input" and e.batch.mean is None for e in self.contents.events)
            more = {"intensity_scale": "network_input" if raw else "detector"}
        if "cheetah" in self.conditions and dataset.axes[:1] == ("event",):
            more["numEvents"] = self.lengths["event"]
        return more

    def _images(self, made: Any) -> None:
        for n, event in enumerate(self.contents.events):
            self.contents.powders.add_hit(_present(event.image))  # now: what is written next is in the cache then
            slab = self.slabs.of(_present(event.image))
            if self.plan.compression == "none":
                made.id.write_direct_chunk((n, 0, 0), slab)  # nothing between the array and the file
            else:
                made[n] = slab

    def _mask(self, made: Any) -> None:
        mask = _present(self.mask)
        for at in [(n, 0, 0) for n in range(self.lengths["event"])] if made.ndim == 3 else [(0, 0)]:
            made.id.write_direct_chunk(at, mask.packed)

    def _powder(self, made: Any, powder: NDArray[np.float32] | None) -> None:
        if powder is not None:
            made[...] = self.slabs.spread(np.where(np.isfinite(powder), powder, np.float32(0.0)))

    def _maps(self, made: Any) -> None:
        for n, event in enumerate(self.contents.events):
            made[n] = self.slabs.spread(_present(event.segmentation).astype(np.uint8))

    def _metadata(self, file: Any) -> None:
        for key, values in copied_columns(self.contents.events).items():
            file.create_dataset(f"{layout.COPIED}/{key}", data=values).attrs["axes"] = "experiment_identifier"
        for key, value in self.plan.static.items():
            file[f"{layout.STATIC}/{key}"] = value


def _present(value: Any) -> Any:
    if value is None:
        raise ValueError("an event without an image, or a mask that is not there, got past the checks")
    return value
