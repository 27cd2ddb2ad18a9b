"""Raw scans in a Zarr store (format 3): one group for each scan, whole and plausible or not read at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.errors import BaseZarrError
from zarr.storage import LocalStore, MemoryStore, StorePath

from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.files import storage_errors
from nightbeam.scans.model import (
    ElevationError,
    FrequencyAxisError,
    Phase,
    RawScan,
    ScanInfo,
    ScanSchemaError,
    StoreReadError,
)

__all__ = ["L0_SCHEMA", "RawStore", "ReadingStopped", "create_raw_store", "scan_name", "write_raw_scan"]

L0_SCHEMA: Final = "scal-l0"
_VERSION: Final = 1
#: What a damaged store has made Zarr raise.
_DAMAGE: Final = (
    BaseZarrError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
)  # fmt: skip
_NAME = re.compile(r"scan_(\d{6,9})")
#: Attributes of a scan by our names, and what type they are; `_OPTIONAL` may be missing.
_ATTRIBUTES: Final[Mapping[str, tuple[str, type]]] = {
    "obs_type": ("obs_type", str),
    "source": ("source", str),
    "lo_hz": ("lo_hz", float),
    "signal_sideband": ("signal_sideband", str),
    "tuning_id": ("tuning_id", str),
    "backend": ("backend", str),
    "t_hot_k": ("t_hot_k", float),
    "t_cold_k": ("t_cold_k", float),
    "pressure_hpa": ("pressure_hpa", float),
    "temperature_k": ("temperature_k", float),
    "humidity_pct": ("humidity_pct", float),
    "forward_eff": ("forward_eff", float),
    "adc_ceiling": ("adc_ceiling", float),
    "spill_k": ("spill_k", float),
    "complete": ("complete", bool),
    "radiometer_pwv_mm": ("radiometer_pwv_mm", float),
}
_OPTIONAL: Final = frozenset({"humidity_pct", "forward_eff", "adc_ceiling", "spill_k", "complete", "radiometer_pwv_mm"})
_POSITIVE: Final = frozenset({"lo_hz", "temperature_k", "forward_eff", "adc_ceiling", "spill_k", "radiometer_pwv_mm"})
#: No quantity of a telescope is as large.
_HUGE: Final = 1e30
#: Of arrays: dimensions, type as it is written, units.
_ARRAYS: Final[Mapping[str, tuple[tuple[str, ...], str, str]]] = {
    "counts": (("dump", "pixel", "channel"), "f4", "counts"),
    "phase": (("dump",), "u1", "1"),
    "time": (("dump",), "f8", "s"),
    "duration": (("dump",), "f8", "s"),
    "elevation": (("dump",), "f8", "degree"),
    "azimuth": (("dump",), "f8", "degree"),
    "lon_off": (("dump", "pixel"), "f8", "degree"),
    "lat_off": (("dump", "pixel"), "f8", "degree"),
    "row": (("dump",), "i4", "1"),
    "frequency": (("channel",), "f8", "Hz"),
    "frequency_image": (("channel",), "f8", "Hz"),
    "gain_signal": (("pixel",), "f4", "1"),
    "main_beam_eff": (("pixel",), "f4", "1"),
    "flag": (("dump", "pixel"), "u1", "1"),
}
#: Arrays that may be zero throughout: on the source, no flag set, pointing unknown while loads are seen.
_MAY_BE_ZERO: Final = frozenset({"elevation", "azimuth", "lon_off", "lat_off", "row", "flag"})
#: Our names of what is called otherwise in the store.
_OURS: Final = {
    "time": "time_s", "duration": "duration_s", "elevation": "elevation_deg", "azimuth": "azimuth_deg",
    "lon_off": "lon_off_deg", "lat_off": "lat_off_deg", "frequency": "freq_hz", "frequency_image": "image_hz",
}  # fmt: skip
#: Image and signal frequency lie about the local oscillator, to so many Hz.
_LO_TOLERANCE_HZ: Final = 1e3
#: Of Unix's begin, in seconds of MJD.
_UNIX_BEGIN_S: Final = 40_587 * 86_400.0
#: 1900 and 2200, in seconds of MJD.
_FIRST_S: Final = 15_020 * 86_400.0
_LAST_S: Final = 124_593 * 86_400.0
#: No writer makes larger ones; whose metadata claim it has not written that.
_LARGEST_CHUNK: Final = 1 << 31
#: Arrays whose files have up to so many bytes are read as files, and by zarr from memory: most of what a small array
#: costs is zarr's way to a file and back.
_SMALL_BYTES: Final = 1 << 20
_SMALL_FILES: Final = 64
#: Of chunks of spectra, in bytes, about.
_CHUNK_BYTES: Final = 8 << 20
#: Of counts, read at a time: who asks for an end waits for so much, or for one row of chunks.
_PART_BYTES: Final = 128 << 20


def scan_name(scan: int) -> str:
    """Return the name of a scan's group."""
    return f"scan_{scan:06d}"


# -- reading ------------------------------------------------------------------------------------------------------


class ReadingStopped(Exception):  # noqa: N818 (no error: somebody asked for it)
    """Somebody asked for an end while counts were read."""


class RawStore:
    """A store of raw scans, open for reading.

    Raises
    ------
    MissingError
        If there is nothing at the place.
    InputError
        If it is no Zarr store of format 3, or not one of raw scans.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            there, old = path.exists(), (path / ".zgroup").exists() or (path / ".zarray").exists()
        except OSError as error:
            raise InputError(f"{path} cannot be looked at: {error.strerror}", fix="let it be read") from error
        if not there:
            raise MissingError(f"there is no store {path}", fix="correct its name")
        if old:
            raise InputError(f"{path} is a Zarr store of format 2, raw scans are of format 3", fix="convert it")
        try:
            self._root = zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
            attributes = dict(self._root.attrs)
        except _DAMAGE as error:
            raise InputError(f"{path} is no Zarr store: {error}", fix="name a directory that ends in .zarr") from error
        if (schema := attributes.get("schema")) != L0_SCHEMA:
            raise InputError(f"{path} is a store of {schema!r}, not of {L0_SCHEMA!r}", fix="name a store of raw scans")
        if (version := attributes.get("schema_version")) != _VERSION:
            raise InputError(f"{path} has version {version!r} of its schema, this nightbeam knows {_VERSION}")
        self.attributes: Mapping[str, Any] = attributes

    def scans(self) -> list[int]:
        """Return the numbers of the scans that are there, in order, those that are not complete too.

        Raises
        ------
        InputError
            If ``scans`` is no directory, or cannot be listed.
        """
        try:
            names = [entry.name for entry in (self.path / "scans").iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(
                f"{self.path / 'scans'} cannot be listed: {error.strerror}; a directory with a group for each scan is "
                "wanted",
                fix="let it be read, or copy the store again from where it was written",
            ) from error
        numbers = {name: int(found[1]) for name in names if (found := _NAME.fullmatch(name))}
        # Of two names with one number, one is a scan's.
        return sorted(number for name, number in numbers.items() if scan_name(number) == name)

    def info(self, scan: int) -> ScanInfo:
        """Return what a scan's attributes say.

        Raises
        ------
        StoreReadError
            If there is no such scan.
        ScanSchemaError
            If an attribute is missing or of another kind.
        """
        with _reading(scan):
            attributes = self._attributes(scan)
        values = {ours: _attribute(scan, attributes, name, kind) for ours, (name, kind) in _ATTRIBUTES.items()}
        values = {name: value for name, value in values.items() if value is not None}
        site = self.attributes.get("site")
        altitude = _attribute(
            scan, site if isinstance(site, dict) else {}, "altitude_m", float, place="site of the store"
        )
        return ScanInfo(scan=scan, altitude_m=altitude, **values)

    def kind(self, scan: int) -> str:
        """Return the way of observing of a scan, or "" where it does not say; never an error.

        Who lists scans must not be stopped by one of them.
        """
        try:
            found = self._attributes(scan).get("obs_type")
        except _DAMAGE:
            return ""
        return found if isinstance(found, str) else ""

    def stat(self, scan: int) -> str:
        """Return what changes when a scan does: a digest of its metadata, and of its files' sizes and times."""
        digest, top = hashlib.blake2b(digest_size=16), str(self.path / "scans" / scan_name(scan))
        try:
            for name, entry in _files_below(top):
                if entry.name == "zarr.json":
                    digest.update(Path(entry.path).read_bytes())
                else:
                    status = entry.stat()
                    digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
        except (OSError, RecursionError) as error:
            raise StoreReadError(
                f"scan {scan} cannot be looked at: {error}", fix="is it still being written?"
            ) from error
        return digest.hexdigest()

    def shape(self, scan: int) -> tuple[int, int, int, int]:
        """Return dumps, pixels and channels of a scan, and the pixels of a chunk."""
        with _reading(scan):
            counts = self._array(scan, "counts")
            if counts is None:
                raise ScanSchemaError(f"scan {scan}: counts is no array")
            if counts.ndim != 3:
                raise ScanSchemaError(
                    f"scan {scan}: counts has the shape {counts.shape}, (dump, pixel, channel) is wanted"
                )
            dumps, pixels, channels = counts.shape
            return dumps, pixels, channels, int(counts.chunks[1])

    def read(
        self,
        scan: int,
        *,
        pixels: slice = slice(None),
        dumps: slice = slice(None),
        into: NDArray[np.float32] | None = None,
        counts: bool = True,
        head: RawScan | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> RawScan:
        """Return a scan, or some of its pixels and dumps.

        Parameters
        ----------
        into
            Flat memory for the counts, which become float32; None: new memory, and the type they have.
        counts
            False: leave them out, they get no channels.
        head
            The whole scan as it was read without its counts: what it has is not read again.
        stop
            Asked between two parts of the counts; they are not longer than the chunks allow.

        Raises
        ------
        ReadingStopped
            If ``stop`` said so.
        StoreReadError
            If a chunk is missing, truncated or fails its checksum.
        ScanSchemaError
            If an array is missing, or the arrays do not fit together.
        FrequencyAxisError, ElevationError
            If the frequencies are no spectrum's, or the telescope points at nothing.
        """
        if head is not None:
            return self._read_counts(scan, head, pixels, dumps, into, stop)
        info = self.info(scan)
        found: dict[str, NDArray[Any]] = {}
        with _reading(scan):
            self._attributes(scan)
            held: dict[str, Buffer] = {}
            arrays = {name: array for name in _ARRAYS if (array := self._array(scan, name, held)) is not None}
            _check_arrays(scan, arrays)
        chosen = {"pixel": pixels, "dump": dumps}
        with _reading(scan):
            for name, array in arrays.items():
                where = tuple(chosen.get(dim, slice(None)) for dim in _ARRAYS[name][0][: array.ndim])
                if name == "counts":
                    _check_chunks(scan, array, self._place(scan) / name)
                    found[name] = _counts(array, where, into, stop) if counts else np.empty((0, 0, 0), np.float32)
                else:
                    _check_chunks(scan, array, self._place(scan) / name, held)
                    found[name] = np.asarray(array[where])
            epoch = str(arrays["time"].attrs.get("epoch", ""))
        found["time"] = _seconds_of_mjd(scan, found["time"], epoch)
        return _plausible(_raw_scan(info, found))

    def _read_counts(
        self,
        scan: int,
        head: RawScan,
        pixels: slice,
        dumps: slice,
        into: NDArray[np.float32] | None,
        stop: Callable[[], bool] | None,
    ) -> RawScan:
        with _reading(scan):
            array = self._array(scan, "counts")
            if array is None:
                raise ScanSchemaError(f"scan {scan}: counts is no array")
            _check_arrays(scan, {"counts": array}, only=("counts",))
            dumps_, pixels_ = head.lon_off_deg.shape
            if array.shape != (dumps_, pixels_, head.freq_hz.size):
                raise ScanSchemaError(f"scan {scan}: counts has the shape {array.shape} now")
            _check_chunks(scan, array, self._place(scan) / "counts")
            counts = _counts(array, (dumps, pixels, slice(None)), into, stop)
        of_both = {name: getattr(head, name)[dumps, pixels] for name in ("lon_off_deg", "lat_off_deg", "flag")}
        of_dumps = {
            name: getattr(head, name)[dumps]
            for name in ("phase", "time_s", "duration_s", "elevation_deg", "azimuth_deg", "row")
        }
        of_pixels = {name: getattr(head, name)[pixels] for name in ("gain_signal", "main_beam_eff")}
        return replace(head, counts=counts, **of_both, **of_dumps, **of_pixels)

    def _place(self, scan: int) -> Path:
        return self.path / "scans" / scan_name(scan)

    def _attributes(self, scan: int) -> dict[str, Any]:
        """Return what a scan's group says; raises whatever reading damaged metadata raises."""
        said = json.loads((self._place(scan) / "zarr.json").read_bytes())
        if (said.get("zarr_format"), said.get("node_type")) != (3, "group"):
            raise ValueError(f"its zarr.json is of {said.get('node_type')!r}, format {said.get('zarr_format')!r}")
        return dict(said.get("attributes") or {})

    def _array(self, scan: int, name: str, held: dict[str, Buffer] | None = None) -> Any:
        """Return an array of a scan, or None where there is none; what is small is read at once, into ``held``."""
        place = self._place(scan) / name
        try:
            metadata = _array_metadata((place / "zarr.json").read_bytes())
        except FileNotFoundError:
            return None
        if metadata is None:
            return None
        on_disk = zarr.AsyncArray(metadata, StorePath(LocalStore(place.parent, read_only=True), name))
        if held is None or name == "counts" or (files := _small_files(place, on_disk)) is None:
            return zarr.Array(on_disk)
        held.update({f"{name}/{key}": content for key, content in files.items()})
        return zarr.Array(zarr.AsyncArray(metadata, StorePath(MemoryStore(held, read_only=True), name)))


@lru_cache(maxsize=256)
def _array_metadata(text: bytes) -> Any:
    """Return zarr's metadata of an array, None where it is of something else; many arrays have the same."""
    said = json.loads(text)
    if said.get("node_type") != "array":
        return None
    if said.get("zarr_format") != 3:
        raise ValueError(f"an array of format {said.get('zarr_format')!r}")
    return zarr.AsyncArray(said, StorePath(MemoryStore(), "")).metadata


def _grid(array: Any) -> list[int]:
    """Return how many files an array has in each dimension."""
    return [-(-size // step) for size, step in zip(array.shape, array.shards or array.chunks, strict=True)]


def _chunk_names(array: Any) -> Iterator[str]:
    """Yield the names of an array's files, as far as they hold chunks."""
    return (array.metadata.encode_chunk_key(at) for at in product(*map(range, _grid(array))))


def _small_files(place: Path, array: Any) -> dict[str, Buffer] | None:
    """Return the chunks of an array that are there, by their names; None if it is not small."""
    if math.prod(_grid(array)) > _SMALL_FILES:
        return None
    sizes: dict[str, int] = {}
    for name in _chunk_names(array):
        with suppress(FileNotFoundError):
            status = os.stat(place / name)  # noqa: PTH116
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{place / name} is no file")
            sizes[name] = status.st_size
    if sum(sizes.values()) > _SMALL_BYTES:
        return None
    buffer = default_buffer_prototype().buffer
    return {name: buffer.from_bytes((place / name).read_bytes()) for name in sizes}


def _files_below(
    top: str, below: str = "", links: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield what is no directory below one, in order, with its name from there; links to directories are followed.

    A loop of links is an OSError: sooner or later it leads through one directory twice.
    """
    with os.scandir(f"{top}/{below}") as entries:
        found = sorted(entries, key=lambda one: one.name)
    for entry in found:
        name, followed = f"{below}{entry.name}", links
        if not entry.is_dir():
            yield name, entry
            continue
        if entry.is_symlink():
            status = entry.stat()
            if (place := (status.st_dev, status.st_ino)) in links:
                raise OSError(errno.ELOOP, "a loop of links", entry.path)
            followed = links | {place}
        yield from _files_below(top, f"{name}/", followed)


@contextmanager
def _reading(scan: int) -> Iterator[None]:
    """Turn what a damaged store can raise into one error."""
    try:
        yield
    except _DAMAGE as error:
        raise StoreReadError(
            f"scan {scan} cannot be read: {type(error).__name__}: {str(error)[:300]}",
            fix="copy it again from where it was written; if it is still being written, wait",
        ) from error


def _counts(
    array: Any, where: tuple[slice, ...], into: NDArray[np.float32] | None, stop: Callable[[], bool] | None
) -> NDArray[Any]:
    shape = tuple(len(range(*one.indices(size))) for one, size in zip(where, array.shape, strict=True))
    dumps, rows = where[0].indices(array.shape[0]), array.chunks[0]
    # What becomes another type is there twice, and all at once would be a second scan in memory.
    converted = into is not None and array.dtype != np.float32
    row_bytes = rows * shape[1] * shape[2] * array.dtype.itemsize
    step = rows if converted else max(1, _PART_BYTES // max(1, row_bytes)) * rows
    target = None if into is None else into[: int(np.prod(shape))].reshape(shape)
    for part in _parts(dumps[0], dumps[1], step):
        if stop is not None and stop():
            raise ReadingStopped
        here, at = (part, *where[1:]), slice(part.start - dumps[0], part.stop - dumps[0])
        if target is None:
            found = np.asarray(array[here])
            if len(found) == shape[0]:
                return found
            target = np.empty(shape, found.dtype)
            target[at] = found
        elif array.dtype == target.dtype:
            # Fresh memory for every scan would cost more than reading it.
            array.get_basic_selection(here, out=default_buffer_prototype().nd_buffer.from_numpy_array(target[at]))
        else:
            with np.errstate(over="ignore"):  # what is too large for float32 is not finite, and flagged
                target[at] = array[here]
    return np.asarray(array[where]) if target is None else target


def _parts(begin: int, end: int, step: int) -> Iterator[slice]:
    """Cut a range where the numbers are multiples of a step."""
    while begin < end:
        next_ = min(end, (begin // step + 1) * step)
        yield slice(begin, next_)
        begin = next_


def _attribute(scan: int, attributes: Mapping[str, Any], name: str, kind: type, *, place: str = "") -> Any:
    value = attributes.get(name)
    where = f"scan {scan}" + (f", {place}" if place else "")
    if value is None:
        if name in _OPTIONAL:
            return None
        raise ScanSchemaError(f"{where}: the attribute {name} is missing", fix="was it written by an older program?")
    good = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not good or (isinstance(value, bool) and kind is not bool):
        raise ScanSchemaError(f"{where}: {name} is {repr(value)[:80]}, a {kind.__name__} is wanted")
    if kind is float and not (abs(value) < _HUGE and (value > 0 or name not in _POSITIVE)):
        wanted = "a number above zero" if name in _POSITIVE else "a number"
        raise ScanSchemaError(f"{where}: {name} is {float(np.clip(value, -_HUGE, _HUGE)):g}, {wanted} is wanted")
    return kind(value)


def _check_arrays(scan: int, arrays: Mapping[str, Any], *, only: Collection[str] = ()) -> None:
    wanted = {*only} or _ARRAYS.keys() - {"flag", "row"}
    if missing := sorted(wanted - arrays.keys()):
        raise ScanSchemaError(f"scan {scan}: {', '.join(missing)} missing", fix="was it written by an older program?")
    sizes = dict(zip(_ARRAYS["counts"][0], arrays["counts"].shape, strict=False))
    for name, array in arrays.items():
        dims, kind, _ = _ARRAYS[name]
        per_channel = name == "gain_signal" and array.ndim == 2
        shape = tuple(sizes.get(dim) for dim in (("pixel", "channel") if per_channel else dims))
        if array.shape != shape or None in shape:
            raise ScanSchemaError(f"scan {scan}: {name} has the shape {array.shape}, {shape} is wanted")
        if 0 in shape:
            raise ScanSchemaError(f"scan {scan}: {name} is empty")
        if (size := math.prod(array.chunks) * array.dtype.itemsize) > _LARGEST_CHUNK:
            raise ScanSchemaError(f"scan {scan}: {name} claims chunks of {size / 1e9:.3g} GB")
        integer = np.dtype(kind).kind in "ui"
        if array.dtype.kind not in ("ui" if integer else "fui"):
            raise ScanSchemaError(f"scan {scan}: {name} has the type {array.dtype}, {np.dtype(kind)} is wanted")
        _check_units(scan, name, array.attrs.get("units"))


#: Other spellings of units, as they are written.
_SPELLINGS: Final = {
    "s": {"s", "sec", "second", "seconds"},
    "degree": {"degree", "degrees", "deg"},
    "Hz": {"Hz", "hertz"},
    "counts": {"counts", "count", "1", "ct", "adu"},
    "1": {"1", ""},
}


def _check_units(scan: int, name: str, said: Any) -> None:
    """Refuse an array whose units are others; one that says nothing is believed."""
    wanted = _ARRAYS[name][2]
    if said is not None and not (isinstance(said, str) and said in _SPELLINGS[wanted]):
        raise ScanSchemaError(
            f"scan {scan}: {name} is in {said!r}, {wanted!r} is wanted", fix="convert it, or its units"
        )


def _check_chunks(scan: int, array: Any, place: Path, held: Collection[str] = ()) -> None:
    """Refuse an array that lacks chunks: they would read as its fill value, without a word.

    Writers may leave out chunks that hold nothing but the fill value, which cannot be told from chunks that were lost.
    It is believed only of whole arrays of zeros, where zeros cannot make a spectrum that looks right and is not.
    """
    wanted = math.prod(_grid(array))
    if isinstance(array.store, MemoryStore):
        there = {key.removeprefix(f"{place.name}/") for key in held if key.startswith(f"{place.name}/")}
    else:
        there = {name for name, _ in _files_below(str(place))} - {"zarr.json"}
    missing = wanted - len(there)
    # Each is looked for by its name, which takes for ever where the metadata claim ever so many.
    if missing <= 0 or wanted <= _SMALL_FILES:
        missing = sum(name not in there for name in _chunk_names(array))
    if missing and not (missing == wanted and place.name in _MAY_BE_ZERO and array.fill_value == 0):
        raise StoreReadError(
            f"scan {scan}: {missing} of {wanted} chunks of {place.name} are missing",
            fix="copy it again from where it was written; if it is still being written, wait; if its writer leaves "
            "out chunks of one value, have it write them (write_empty_chunks)",
        )


def _seconds_of_mjd(scan: int, seconds: NDArray[np.float64], epoch: str) -> NDArray[np.float64]:
    if epoch.upper().startswith("MJD"):
        return seconds
    if epoch.lower().startswith(("unix", "1970-01-01")):
        return seconds + _UNIX_BEGIN_S
    raise ScanSchemaError(
        f"scan {scan}: the times count from {epoch!r}", fix="give the array `time` the attribute epoch, MJD or unix"
    )


def _raw_scan(info: ScanInfo, found: Mapping[str, NDArray[Any]]) -> RawScan:
    dumps, pixels = found["lon_off"].shape
    rest = {_OURS.get(name, name): values for name, values in found.items()}
    rest.setdefault("flag", np.zeros((dumps, pixels), np.uint8))
    rest.setdefault("row", np.full(dumps, -1, np.int32))
    gain = rest.pop("gain_signal")
    return RawScan(info=info, gain_signal=gain[:, None] if gain.ndim == 1 else gain, **rest)


def _plausible(scan: RawScan) -> RawScan:
    """Return the scan if its axes can be those of an observation."""
    number = scan.info.scan
    _check_frequencies(scan)
    if not np.all(np.isfinite(scan.time_s)) or np.any(np.diff(scan.time_s) <= 0):
        raise ScanSchemaError(f"scan {number}: the times of its dumps do not increase")
    if not _FIRST_S < scan.time_s[0] <= scan.time_s[-1] < _LAST_S:
        raise ScanSchemaError(
            f"scan {number}: its times are not of these centuries", fix="are they in seconds, and is their epoch right?"
        )
    if not np.all(np.isfinite(scan.duration_s)) or np.any(scan.duration_s <= 0):
        raise ScanSchemaError(f"scan {number}: a dump of {np.min(scan.duration_s):g} s")
    if strange := sorted(set(np.unique(scan.phase).tolist()) - {int(phase) for phase in Phase}):
        raise ScanSchemaError(f"scan {number}: phases {strange} mean nothing")
    if not np.all((scan.gain_signal > 0) & (scan.gain_signal <= 1)):
        raise ScanSchemaError(f"scan {number}: a signal sideband gain that is not between 0 and 1")
    if not 0 < scan.info.forward_eff <= 1:
        raise ScanSchemaError(
            f"scan {number}: forward_eff is {scan.info.forward_eff:g}, more than 0 and at most 1 is wanted"
        )
    # Where the telescope points while it sees a load does not matter, and may not be known.
    elevation = scan.elevation_deg[~np.isin(scan.phase, (Phase.HOT, Phase.COLD, Phase.ZERO))]
    if not np.all((elevation >= 5.0) & (elevation <= 90.0)):
        worst = elevation[~((elevation >= 5.0) & (elevation <= 90.0))][0]
        raise ElevationError(f"scan {number}: an elevation of {worst:g} degrees, between 5 and 90 is wanted")
    return scan


def _check_frequencies(scan: RawScan) -> None:
    number, freq, image = scan.info.scan, scan.freq_hz, scan.image_hz
    steps = np.diff(freq)
    if not np.all(np.isfinite(freq) & np.isfinite(image) & (freq > 0) & (image > 0)):
        raise FrequencyAxisError(f"scan {number}: frequencies that are not above zero")
    if freq.size > 1 and not (np.all(steps > 0) or np.all(steps < 0)):
        raise FrequencyAxisError(f"scan {number}: the frequencies neither rise nor fall throughout")
    off = float(np.max(np.abs(freq + image - 2.0 * scan.info.lo_hz)))
    if off > _LO_TOLERANCE_HZ:
        raise FrequencyAxisError(
            f"scan {number}: signal and image frequencies lie {off:g} Hz beside the local oscillator's mirror",
            fix="are they in Hz, and of this tuning?",
        )


# -- writing ------------------------------------------------------------------------------------------------------


def create_raw_store(path: Path, *, telescope: str, altitude_m: float, **attributes: Any) -> None:
    """Make an empty store of raw scans; one that is there stays as it is.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    if path.exists():
        RawStore(path)
        return
    said = {"schema": L0_SCHEMA, "schema_version": _VERSION, "telescope": telescope, "site": {"altitude_m": altitude_m}}
    with storage_errors(path):
        zarr.create_group(path, zarr_format=3, attributes={**said, **attributes})


def write_raw_scan(path: Path, scan: RawScan, *, complete: bool = True) -> None:
    """Write a scan into a store; ``complete`` is set last, so that who watches does not take a part for the whole.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    info = scan.info
    said = {name: getattr(info, ours) for ours, (name, _) in _ATTRIBUTES.items() if getattr(info, ours) is not None}
    with storage_errors(path):
        root = zarr.open_group(path, mode="r+", zarr_format=3, use_consolidated=False)
        group = root.create_group(f"scans/{scan_name(info.scan)}", overwrite=True)
        group.attrs.update({**said, "scan": info.scan, "complete": False})
        for name, (dims, kind, units) in _ARRAYS.items():
            values = np.asarray(getattr(scan, _OURS.get(name, name)))
            if name == "gain_signal":
                dims, values = (("pixel",), values[:, 0]) if values.shape[1] == 1 else (("pixel", "channel"), values)
            _write_array(group, name, values.astype(kind, copy=False), dims, units)
        if complete:
            group.attrs["complete"] = True


def _write_array(group: Any, name: str, values: NDArray[Any], dims: tuple[str, ...], units: str) -> None:
    chunks = _chunks(values) if name == "counts" else values.shape
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=chunks,
        dtype=values.dtype,
        compressors=[Crc32cCodec()],
        fill_value=np.nan if values.dtype.kind == "f" else 0,
        dimension_names=dims,
        attributes={"units": units} | ({"epoch": "MJD 0, UTC"} if name == "time" else {}),
        config={"write_empty_chunks": True},
    )
    array[...] = values


def _chunks(values: NDArray[Any]) -> tuple[int, ...]:
    """All channels of some pixels of some dumps."""
    dumps, pixels, channels = values.shape
    spectra = max(1, _CHUNK_BYTES // (channels * values.dtype.itemsize))
    of_pixels = min(pixels, 8)
    return min(dumps, max(1, spectra // of_pixels)), of_pixels, channels
