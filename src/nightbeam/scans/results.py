"""Calibrated scans in a Zarr store (format 3): written beside it, and there all at once or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import BaseZarrError

from nightbeam.core.errors import InputError
from nightbeam.core.files import remove, replace_path, scratch_directory, storage_errors
from nightbeam.core.locks import sole_owner
from nightbeam.scans.files import scan_name
from nightbeam.scans.model import Atmosphere, CalibrationLoadFull, CalibrationResult, PreparedData, RawScan

__all__ = ["L1_SCHEMA", "ResultStore", "arrays_of", "fingerprint"]

L1_SCHEMA: Final = "scal-l1"
_VERSION: Final = 1
_COMPLETE: Final = "complete"
_CHUNK_BYTES: Final = 8 << 20
#: Dimensions and units of what is written.
_ARRAYS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "ta_star": (("dump", "pixel", "channel"), "K"),
    "flag": (("dump", "pixel", "channel"), "1"),
    "weight": (("dump", "pixel"), "K-2"),
    "baseline_model": (("dump", "pixel", "channel"), "K"),
    "tsys": (("pixel", "channel"), "K"),
    "trec": (("pixel", "channel"), "K"),
    "gamma": (("pixel", "channel"), "counts K-1"),
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
    they are whole and on the disk. Whoever is killed leaves the last good state.

    Raises
    ------
    InputError
        If something else is at the place.
    StorageError
        If it cannot be written.
    """

    def __init__(self, path: Path, **attributes: Any) -> None:
        self.path, self.staging = path, path.with_name(f"{path.name}.staging")
        if path.exists():
            self._check()
        else:
            said = {"schema": L1_SCHEMA, "schema_version": _VERSION, **attributes}
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                zarr.create_group(path, zarr_format=3, attributes=said)

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
        with storage_errors(self.path), sole_owner(lock, what=f"the results {self.path}"):
            remove(self.staging)
            try:
                yield
            finally:
                remove(self.staging)

    def done(self, scan: int, mark: str) -> bool:
        """Say whether a scan's result is there, whole, and of these inputs (see `fingerprint`)."""
        try:
            attributes = json.loads((self._place(scan) / "zarr.json").read_text())["attributes"]
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

    def write(self, scan: int, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> Path:
        """Write a scan's result; one that is there is replaced when this one is whole. Returns its place.

        Raises
        ------
        StorageError
            If there is no space, or it cannot be written; what was there stays.
        """
        place = self._place(scan)
        with storage_errors(self.path):
            part = scratch_directory(self.staging, owner=scan_name(scan))
            try:
                group = zarr.create_group(part, zarr_format=3, overwrite=True)
                for name, values in arrays.items():
                    _write(group, name, values)
                group.attrs.update({**attributes, "scan": scan, "coordinates": _COORDINATES, "status": _COMPLETE})
                _on_disk(part)
                place.parent.mkdir(parents=True, exist_ok=True)
                self._name_the_group()
                replace_path(part, place)
            finally:
                remove(part)
        return place

    def _place(self, scan: int) -> Path:
        return self.path / "scans" / scan_name(scan)

    def _name_the_group(self) -> None:
        """Have the group of all scans, without which a reader does not see them listed."""
        if not (self.path / "scans" / "zarr.json").exists():
            root = zarr.open_group(self.path, mode="r+", zarr_format=3, use_consolidated=False)
            root.require_group("scans")


def arrays_of(
    scan: RawScan, prepared: PreparedData, load: CalibrationLoadFull, air: Atmosphere, result: CalibrationResult
) -> dict[str, NDArray[Any]]:
    """Return what is stored of a calibrated scan, by its name in the store."""
    on, f4 = prepared.on, np.float32
    found: dict[str, NDArray[Any]] = {
        "ta_star": result.ta_star,
        "flag": result.flag,
        "weight": result.weight,
        "tsys": result.t_sys.astype(f4),
        "trec": load.gain.t_rec.astype(f4),
        "gamma": load.gain.gamma.astype(f4),
        "tr_s": air.tr_s.astype(f4),
        "tr_i": air.tr_i.astype(f4),
        "tau_s": air.tau_s.astype(f4),
        "tau_i": air.tau_i.astype(f4),
        "time": scan.time_s[on],
        "duration": scan.duration_s[on],
        "elevation": scan.elevation_deg[on],
        "lon_off": scan.lon_off_deg[on],
        "lat_off": scan.lat_off_deg[on],
        "frequency": scan.freq_hz,
        "frequency_image": scan.image_hz,
    }
    if result.baseline_model is not None:
        found["baseline_model"] = result.baseline_model
    fit, pixels = air.pwv, scan.counts.shape[1]
    nowhere = np.full(pixels, np.nan)
    found["pwv"] = (np.full(pixels, air.pwv_mm) if fit is None else fit.pwv_mm).astype(f4)
    found["pwv_error"] = (nowhere if fit is None else fit.error_mm).astype(f4)
    found["pwv_rms"] = (nowhere if fit is None else fit.rms_k).astype(f4)
    return found


def _write(group: Any, name: str, values: NDArray[Any]) -> None:
    dims, units = _ARRAYS[name]
    flags = values.dtype == np.uint8
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=_chunks(values),
        dtype=values.dtype,
        compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()] if flags else [Crc32cCodec()],
        fill_value=0 if values.dtype.kind in "ui" else np.nan,
        dimension_names=dims,
        attributes={"units": units} | ({"epoch": "MJD 0, UTC"} if name == "time" else {}),
        config={"write_empty_chunks": True},
    )
    array[...] = values


def _chunks(values: NDArray[Any]) -> tuple[int, ...]:
    if values.ndim < 3:
        return tuple(max(1, size) for size in values.shape)
    dumps, pixels, channels = values.shape
    of_pixels = min(pixels, 8)
    spectra = max(1, _CHUNK_BYTES // (channels * values.dtype.itemsize))
    return min(dumps, max(1, spectra // of_pixels)), of_pixels, channels


def _on_disk(directory: Path) -> None:
    """Have every file below a directory, and their names, on the disk."""
    for place, _, names in os.walk(directory):
        for one in (*(Path(place) / name for name in names), Path(place)):
            handle = os.open(one, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
