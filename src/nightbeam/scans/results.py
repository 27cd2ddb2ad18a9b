"""Calibrated scans in a Zarr store (format 3): written beside it, and there all at once or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.errors import BaseZarrError, ContainsGroupError
from zarr.storage import LocalStore, MemoryStore, StorePath

from nightbeam.core.errors import InputError, UsageError
from nightbeam.core.files import remove, replace_path, scratch_directory, storage_errors
from nightbeam.core.locks import sole_owner
from nightbeam.scans.files import scan_name
from nightbeam.scans.kernel import flag_bytes
from nightbeam.scans.model import Atmosphere, CalibrationLoadFull, CalibrationResult, PreparedData, RawScan

__all__ = ["CHUNK_PIXELS", "L1_SCHEMA", "ResultStore", "StagedScan", "arrays_of", "fingerprint", "scan_arrays"]

L1_SCHEMA: Final = "scal-l1"
_VERSION: Final = 1
#: Whoever looks whether somebody holds the lock holds it for a moment.
_LOOK_S: Final = 0.5
_COMPLETE: Final = "complete"
_CHUNK_BYTES: Final = 8 << 20
#: Of a chunk of spectra, at most; blocks of pixels are whole chunks.
CHUNK_PIXELS: Final = 8
#: Written at a time.
_PART_BYTES: Final = 256 << 20
#: Arrays up to so many bytes are made in memory, and become files at the end: most of what a small array costs is
#: zarr's way to a file and back.
_SMALL_BYTES: Final = 1 << 20
#: Files brought to the disk at a time.
_SYNCS: Final = 8
#: Dimensions and units of what is written.
_ARRAYS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "ta_star": (("dump", "pixel", "channel"), "K"),
    "flag": (("dump", "pixel", "channel"), "1"),
    "weight": (("dump", "pixel"), "K-2"),
    "baseline_model": (("dump", "pixel", "channel"), "K"),
    "tsys": (("pixel", "channel"), "K"),
    "trec": (("pixel", "channel"), "K"),
    "gamma": (("pixel", "channel"), "counts K-1"),
    "gain_signal": (("pixel", "channel"), "1"),
    "main_beam_eff": (("pixel",), "1"),
    "tr_s": (("dump", "channel"), "1"),
    "tr_i": (("dump", "channel"), "1"),
    "tau_s": (("channel",), "1"),
    "tau_i": (("channel",), "1"),
    "pwv": (("pixel",), "mm"),
    "pwv_error": (("pixel",), "mm"),
    "pwv_rms": (("pixel",), "K"),
    "time": (("dump",), "s"),
    "duration": (("dump",), "s"),
    "elevation": (("dump",), "degree"),
    "lon_off": (("dump", "pixel"), "degree"),
    "lat_off": (("dump", "pixel"), "degree"),
    "frequency": (("channel",), "Hz"),
    "frequency_image": (("channel",), "Hz"),
}
#: What readers of labelled arrays take for axes.
_COORDINATES: Final = "time frequency frequency_image lon_off lat_off"


def fingerprint(*parts: Any) -> str:
    """Return what tells whether a result is of these inputs: of JSON types and dataclasses of them."""
    text = json.dumps(parts, sort_keys=True, default=lambda one: getattr(one, "__dict__", None) or repr(one))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class ResultStore:
    """A store of calibrated scans, which one run at a time writes to.

    Results are written to ``NAME.staging`` beside it, which must be on the same file system, and get their name when
    they are whole and on the disk. Whoever is killed leaves the last good state. Symbolic links are followed.

    Raises
    ------
    UsageError
        If the place has no name of its own, as ``.`` and ``/``.
    InputError
        If something else is at the place.
    StorageError
        If it cannot be written.
    """

    def __init__(self, path: Path, **attributes: Any) -> None:
        #: As it was named; whichever of its names that is, the place is one, and so are its lock and its disk.
        self.given = path
        if path.name in ("", ".."):
            raise UsageError(f"{str(path)!r} has no name, and results lie beside it too", fix="name a store of results")
        try:
            path = path.resolve()
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path} leads nowhere: {error}", fix="name another place for results") from error
        self.path, self.staging = path, path.with_name(f"{path.name}.staging")
        if path.exists() and not _is_empty(path):
            self._check()
        else:
            said = {"schema": L1_SCHEMA, "schema_version": _VERSION, **attributes}
            with storage_errors(path):
                made = [one for one in (path, *path.parents) if not one.exists()]
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    zarr.create_group(path, zarr_format=3, attributes=said)
                except ContainsGroupError:  # another run was quicker
                    self._check()
                # A name is on the disk when the directory that it is in is.
                _sync_all([path / "zarr.json", path, *(one.parent for one in made)])

    def _check(self) -> None:
        try:
            said = dict(zarr.open_group(self.path, mode="r", zarr_format=3, use_consolidated=False).attrs)
        except (BaseZarrError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path} is no Zarr store: {error}", fix="name another place for results") from error
        if (said.get("schema"), said.get("schema_version")) != (L1_SCHEMA, _VERSION):
            raise InputError(
                f"{self.path} is a store of {said.get('schema')!r}, version {said.get('schema_version')!r}; "
                f"{L1_SCHEMA!r}, version {_VERSION} is wanted",
                fix="name another place for results",
            )

    @contextmanager
    def sole_writer(self) -> Iterator[None]:
        """Be the only one who writes to it, and remove what those left half done who were killed.

        Raises
        ------
        BusyError
            Naming who is at it.
        """
        lock = self.path.with_name(f"{self.path.name}.lock")
        with storage_errors(self.path), sole_owner(lock, wait_s=_LOOK_S, what=f"the results {self.path}"):
            self._tidy()
            try:
                yield
            finally:
                self._tidy()

    def _tidy(self) -> None:
        """Remove what is half done, or was about to be replaced: nobody else is at it."""
        remove(self.staging)
        for old in self.path.glob("scans/.scan_*.part"):
            place = old.with_name(old.name.split(".")[1])
            if place.exists():
                remove(old)
            else:  # whoever was about to replace it was killed before the new one had its name
                old.rename(place)
        # Zarr's, which writes its metadata in the same way.
        for left in (*self.path.glob("*.partial"), *self.path.glob("scans/*.partial")):
            remove(left)

    def done(self, scan: int, mark: str) -> bool:
        """Say whether a scan's result is there, whole, and of these inputs (see `fingerprint`)."""
        try:
            attributes = json.loads((self.place(scan) / "zarr.json").read_text())["attributes"]
        except (OSError, ValueError, KeyError):
            return False
        return bool(attributes.get("status") == _COMPLETE and attributes.get("fingerprint") == mark)

    def scans(self) -> list[int]:
        """Return the numbers of the scans that have a result."""
        try:
            names = sorted(entry.name for entry in (self.path / "scans").iterdir())
        except FileNotFoundError:
            return []
        return [int(name.removeprefix("scan_")) for name in names if name.startswith("scan_")]

    def attributes(self, scan: int) -> dict[str, Any]:
        """Return what is said of a scan's result; nothing where there is none, or none that can be read."""
        try:
            found = json.loads((self.place(scan) / "zarr.json").read_text())["attributes"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return dict(found) if isinstance(found, dict) else {}

    def describe(self, **attributes: Any) -> None:
        """Have the store say of itself what it says for the last run that wrote to it; it is not touched in vain."""
        with storage_errors(self.path):
            root = zarr.open_group(self.path, mode="r+", zarr_format=3, use_consolidated=False)
            if any(root.attrs.get(name) != value for name, value in attributes.items()):
                root.update_attributes({**root.attrs, **attributes})
                _sync_all([self.path / "zarr.json", self.path])

    def stage(self, scan: int, shapes: Mapping[str, tuple[int, ...]]) -> StagedScan:
        """Begin a scan's result, beside the store: see `StagedScan`."""
        with storage_errors(self.path):
            return StagedScan(self, scan, shapes)

    def write(self, scan: int, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> Path:
        """Write a scan's result; one that is there is replaced when this one is whole. Returns its place.

        Raises
        ------
        StorageError
            If there is no space, or it cannot be written; what was there stays.
        """
        staged = self.stage(scan, {name: values.shape for name, values in arrays.items()})
        try:
            for name, values in arrays.items():
                staged.put(name, values)
            return staged.finish(attributes)
        finally:
            staged.discard()

    def place(self, scan: int) -> Path:
        """Return where a scan's result is, or would be."""
        return self.path / "scans" / scan_name(scan)

    def name_the_group(self) -> None:
        """Have the group of all scans, without which a reader does not see them listed."""
        if not (self.path / "scans" / "zarr.json").exists():
            root = zarr.open_group(self.path, mode="r+", zarr_format=3, use_consolidated=False)
            root.require_group("scans")
            _sync_all([self.path / "scans" / "zarr.json", self.path / "scans", self.path])


class StagedScan:
    """A scan's result while it is written: some pixels at a time, and nobody sees it before it is whole.

    Raises
    ------
    StorageError
        From every method: if there is no space, or it cannot be written.
    """

    def __init__(self, store: ResultStore, scan: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._store, self._scan = store, scan
        files, empty = _made(tuple(shapes.items()))
        self._scratch = scratch_directory(store.staging, owner=scan_name(scan))
        self._part = self._scratch / scan_name(scan)  # of its own: the one above is its owner's alone to read
        self._part.mkdir()
        self.flagged = self.saturated = 0
        #: What has been made in memory, by its place in the scan's directory.
        self._small = dict(files)
        held, disk = MemoryStore(self._small), LocalStore(self._part)
        self._arrays = {
            name: zarr.Array(
                zarr.AsyncArray(
                    array.metadata,
                    StorePath(held if array.nbytes <= _SMALL_BYTES else disk, name),
                    {"write_empty_chunks": True},
                )
            )
            for name, array in empty.items()
        }

    def put(
        self, name: str, values: NDArray[Any], *, pixels: slice = slice(None), stop: Callable[[], bool] | None = None
    ) -> bool:
        """Write some pixels of an array that has pixels, or the whole of one that has none.

        Parameters
        ----------
        stop
            Asked between two parts of long arrays.

        Returns
        -------
        bool
            False if ``stop`` said so; the rest was left out.
        """
        array, dims = self._arrays[name], _ARRAYS[name][0]
        with storage_errors(self._store.path):
            if dims[:2] != ("dump", "pixel") or len(dims) < 3:
                where = tuple(pixels if dim == "pixel" else slice(None) for dim in dims[: array.ndim])
                array[where] = values
                return True
            step = max(array.chunks[0], _PART_BYTES // max(1, values[0].nbytes) // array.chunks[0] * array.chunks[0])
            for begin in range(0, values.shape[0], step):
                if stop is not None and stop():
                    return False
                dumps = slice(begin, min(begin + step, values.shape[0]))
                array[dumps, pixels, :] = values[dumps]
        return True

    def put_ta_star(
        self, values: NDArray[np.float32], *, pixels: slice = slice(None), stop: Callable[[], bool] | None = None
    ) -> bool:
        """Write temperatures and, as an array of their own, the flags they carry. Returns as `put`."""
        if not self.put("ta_star", values, pixels=pixels, stop=stop):
            return False
        array, bits = self._arrays["flag"], values.view(np.uint32)
        step = array.chunks[0]
        part = np.empty((min(step, values.shape[0]), *values.shape[1:]), np.uint8)
        with storage_errors(self._store.path):
            for begin in range(0, values.shape[0], step):
                if stop is not None and stop():
                    return False
                end = min(begin + step, values.shape[0])
                flagged, saturated = flag_bytes(bits[begin:end], part[: end - begin])
                self.flagged, self.saturated = self.flagged + flagged, self.saturated + saturated
                array[begin:end, pixels, :] = part[: end - begin]
        return True

    def finish(self, attributes: Mapping[str, Any]) -> Path:
        """Have it on the disk, and then under its name; one that was there is replaced. Returns its place."""
        store, place = self._store, self._store.place(self._scan)
        with storage_errors(store.path):
            said = {**attributes, "scan": self._scan, "coordinates": _COORDINATES, "status": _COMPLETE}
            zarr.create_group(MemoryStore(self._small), zarr_format=3, attributes=said)
            self._write_small()
            _on_disk(self._part)
            place.parent.mkdir(parents=True, exist_ok=True)
            store.name_the_group()
            replace_path(self._part, place)
            _sync(place.parent)
            self.discard()
        return place

    def _write_small(self) -> None:
        for place in {os.path.dirname(key) for key in self._small}:  # noqa: PTH120 (keys are no paths yet)
            (self._part / place).mkdir(parents=True, exist_ok=True)
        for key, content in self._small.items():
            (self._part / key).write_bytes(content.to_bytes())

    def discard(self) -> None:
        """Remove what is not finished; nothing happens to what is."""
        with suppress(OSError):
            remove(self._scratch)


def arrays_of(
    scan: RawScan,
    prepared: PreparedData,
    load: CalibrationLoadFull,
    air: Atmosphere,
    result: CalibrationResult,
    *,
    photon_k: NDArray[np.float64] | float = 0.0,
) -> dict[str, NDArray[Any]]:
    """Return what is stored of a calibrated scan, by its name in the store.

    Parameters
    ----------
    photon_k
        Taken from the receiver temperature (see `nightbeam.scans.compute.zero_point`).
    """
    found = scan_arrays(scan, prepared, load, air, photon_k=photon_k) | {
        "ta_star": result.ta_star,
        "flag": result.flag,
        "weight": result.weight,
        "tsys": result.t_sys.astype(np.float32),
        "lon_off": scan.lon_off_deg[prepared.on],
        "lat_off": scan.lat_off_deg[prepared.on],
        "main_beam_eff": scan.main_beam_eff.astype(np.float32),
    }
    if result.baseline_model is not None:
        found["baseline_model"] = result.baseline_model
    return found


def scan_arrays(
    scan: RawScan,
    prepared: PreparedData,
    load: CalibrationLoadFull,
    air: Atmosphere,
    *,
    photon_k: NDArray[np.float64] | float = 0.0,
) -> dict[str, NDArray[Any]]:
    """Return those arrays that do not grow with the number of spectra, of all pixels of ``load``."""
    on, f4, fit = prepared.on, np.float32, air.pwv
    pixels = load.gain.gamma.shape[0]
    nowhere = np.full(pixels, np.nan)
    gain_signal = load.gain_signal if load.gain_signal.shape[1] > 1 else load.gain_signal[:, 0]
    return {
        "trec": (load.gain.t_rec - photon_k).astype(f4),
        "gamma": load.gain.gamma.astype(f4),
        "gain_signal": gain_signal.astype(f4),
        "tr_s": air.tr_s,
        "tr_i": air.tr_i,
        "tau_s": air.tau_s.astype(f4),
        "tau_i": air.tau_i.astype(f4),
        "pwv": (np.full(pixels, air.pwv_mm) if fit is None else fit.pwv_mm).astype(f4),
        "pwv_error": (nowhere if fit is None else fit.error_mm).astype(f4),
        "pwv_rms": (nowhere if fit is None else fit.rms_k).astype(f4),
        "time": scan.time_s[on],
        "duration": scan.duration_s[on],
        "elevation": scan.elevation_deg[on],
        "frequency": scan.freq_hz,
        "frequency_image": scan.image_hz,
    }


def _is_empty(path: Path) -> bool:
    """Say whether a directory holds nothing: whoever made it was killed before it became a store."""
    return path.is_dir() and all(one.name.endswith(".partial") for one in path.iterdir())


@lru_cache(maxsize=4)
def _made(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[Mapping[str, Buffer], Mapping[str, Any]]:
    """Return the files of arrays in which nothing is yet, by their place, and the arrays: many scans have the same."""
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(files), zarr_format=3)
    arrays = {name: _create(group, name, shape) for name, shape in shapes}
    del files["zarr.json"]
    return files, arrays


def _create(group: Any, name: str, shape: tuple[int, ...]) -> Any:
    dims, units = _ARRAYS[name]
    if name in ("tr_s", "tr_i") and shape[0] == 1:
        dims = ("any_dump", "channel")  # the same for all
    flags = name == "flag"
    doubles = name in ("time", "duration", "elevation", "lon_off", "lat_off", "frequency", "frequency_image")
    return group.create_array(
        name,
        shape=shape,
        chunks=_chunks(shape, 1 if flags else 4),
        dtype="u1" if flags else "f8" if doubles else "f4",
        compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()] if flags else [Crc32cCodec()],
        fill_value=0 if flags else np.nan,
        dimension_names=dims[: len(shape)],
        attributes={"units": units} | ({"epoch": "MJD 0, UTC"} if name == "time" else {}),
        config={"write_empty_chunks": True},
    )


def _chunks(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    if len(shape) < 3:
        return tuple(max(1, size) for size in shape)
    dumps, pixels, channels = shape
    of_pixels = min(pixels, CHUNK_PIXELS)
    spectra = max(1, _CHUNK_BYTES // (channels * item_bytes))
    return min(dumps, max(1, spectra // of_pixels)), of_pixels, channels


def _on_disk(directory: Path) -> None:
    """Have every file below a directory, and then their names, on the disk: many at a time, as each waits for it."""
    found = [(place, names) for place, _, names in os.walk(directory)]
    files = [f"{place}/{name}" for place, names in found for name in names]
    with ThreadPoolExecutor(_SYNCS, thread_name_prefix="scans-sync") as pool:
        for paths in (files, [place for place, _ in found]):
            list(pool.map(_sync_all, [paths[n::_SYNCS] for n in range(_SYNCS)]))


def _sync_all(paths: Iterable[str | Path]) -> None:
    for path in paths:
        _sync(path)


def _sync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
