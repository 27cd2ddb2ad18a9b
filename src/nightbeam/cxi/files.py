"""CXI files read back: ours, and others' that have peaks where CrystFEL looks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError
from nightbeam.cxi import layout

__all__ = ["Chunk", "Summary", "open_chunk", "read_chunk", "read_image", "summarize"]

#: A table of peaks has so many numbers at most, and a slab so many pixels: a file's own word is not to be trusted.
_MOST_VALUES: Final = 2**28
_MOST_EVENTS: Final = 10_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """All of a file but its pixels.

    Attributes
    ----------
    n_peaks : (N,), int64
    peaks
        Name to table (N, P) of all datasets beside it, such as ``peakXPosRaw``.
    events
        Path to values of each event, such as ``/LCLS/photon_energy_eV``.
    slab
        (SS, FS) of the images; None: there are none.
    attributes
        Of the file; ``batches`` and ``batch_ids`` are lists.
    """

    path: Path
    n_peaks: NDArray[np.int64]
    peaks: Mapping[str, NDArray[Any]]
    events: Mapping[str, NDArray[Any]]
    slab: tuple[int, int] | None
    attributes: Mapping[str, Any]

    def table(self, name: str, event: int) -> NDArray[Any]:
        """Return the values of an event's peaks, without unused places."""
        return np.asarray(self.peaks[name][event, : self.n_peaks[event]])


@dataclass(frozen=True, slots=True)
class Summary:
    """What is in a file, in a line."""

    path: str
    events: int
    peaks: int
    slab: tuple[int, int] | None
    dtype: str | None
    compression: str
    bytes: int
    batches: int
    run: int | None
    first_event: str | None
    last_event: str | None
    photon_energy_ev: float | None
    clen_mm: float | None
    created: str | None


@contextmanager
def open_chunk(path: Path) -> Iterator[Any]:
    """Open a file for reading; what HDF5 says of it while it is open becomes one error of ours.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is damaged, foreign, or has no list of peaks.
    """
    if not path.is_file():
        raise MissingError(f"no file {path}", fix="check its name")
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            if not isinstance(file.get(layout.N_PEAKS), h5py.Dataset) or file[layout.N_PEAKS].ndim != 1:
                raise InputError(f"{path} has no list {layout.N_PEAKS}", fix="it is no CXI file with peaks")
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, InputError | MissingError):
            raise
        raise InputError(
            f"{path} cannot be read: {str(error)[:300]}", fix="it is no HDF5 file, cut short, or damaged"
        ) from error


def read_chunk(path: Path) -> Chunk:
    """Read all of a file but its pixels.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is damaged or foreign, or larger than any detector makes it.
    """
    with open_chunk(path) as file:
        counts = _read(file[layout.N_PEAKS]).astype(np.int64)
        group = file[layout.RESULT]
        tables = {name: _read(item) for name, item in _datasets(group) if item.ndim == 2 and len(item) == len(counts)}
        return Chunk(
            path=path,
            n_peaks=counts,
            peaks=tables,
            events=_event_values(file, len(counts)),
            slab=_slab(file),
            attributes=_attributes(file),
        )


def read_image(path: Path, event: int) -> NDArray[Any]:
    """Return the slab (SS, FS) of an event.

    Raises
    ------
    MissingError
        If there is no such file, event or image.
    InputError
        If it is damaged.
    """
    with open_chunk(path) as file:
        data = file.get(layout.DATA)
        if data is None or not 0 <= event < len(data):
            raise MissingError(f"{path} has no image of event {event}")
        _slab(file)
        return np.asarray(data[event])


def summarize(path: Path) -> Summary:
    """Return what is in a file.

    Raises
    ------
    MissingError, InputError
        As `read_chunk`.
    """
    chunk = read_chunk(path)
    with open_chunk(path) as file:
        data = file.get(layout.DATA)
        dtype = None if data is None else str(data.dtype)
        compression = "none" if data is None else _compression(data)
    names = [name.decode("ascii", "replace") for name in chunk.events.get(layout.IDENTIFIER, [])]
    return Summary(
        path=str(path),
        events=len(chunk.n_peaks),
        peaks=int(chunk.n_peaks.sum()),
        slab=chunk.slab,
        dtype=dtype,
        compression=compression,
        bytes=path.stat().st_size,
        batches=len(chunk.attributes.get("batches", [])),
        run=chunk.attributes.get("run"),
        first_event=names[0] if names else None,
        last_event=names[-1] if names else None,
        photon_energy_ev=_median(chunk.events.get(layout.PHOTON_ENERGY)),
        clen_mm=_median(chunk.events.get(layout.CLEN)),
        created=chunk.attributes.get("creation_time"),
    )


def _read(dataset: Any) -> NDArray[Any]:
    if dataset.size > _MOST_VALUES or len(dataset) > _MOST_EVENTS:
        raise InputError(f"{dataset.name} says it has {dataset.size} values", fix="no detector makes so many")
    return np.asarray(dataset[...])


def _datasets(group: Any) -> list[tuple[str, Any]]:
    found = [(name, group.get(name)) for name in group]
    return [(name, item) for name, item in found if isinstance(item, h5py.Dataset)]


def _event_values(file: Any, events: int) -> dict[str, NDArray[Any]]:
    paths = [d.path for d in layout.LAYOUT if d.axes == ("event",)]
    return {path: _read(file[path]) for path in paths
            if isinstance(file.get(path), h5py.Dataset) and file[path].shape == (events,)}  # fmt: skip


def _slab(file: Any) -> tuple[int, int] | None:
    data = file.get(layout.DATA)
    if not isinstance(data, h5py.Dataset):
        return None
    if data.ndim != 3 or data.shape[1] * data.shape[2] > _MOST_VALUES:
        raise InputError(f"{layout.DATA} is of shape {data.shape}", fix="one of (events, ss, fs) is wanted")
    return int(data.shape[1]), int(data.shape[2])


def _attributes(file: Any) -> dict[str, Any]:
    found = {name: value.item() if hasattr(value, "item") else value for name, value in file.attrs.items()}
    for name in ("batches", "batch_ids", "files"):
        if isinstance(found.get(name), str):
            found[name] = json.loads(found[name])
    return found


def _compression(data: Any) -> str:
    names = {1: "gzip", 2: "shuffle", 32000: "lzf", 32001: "blosc", 32008: "bitshuffle", 32015: "zstd",
             32026: "blosc2"}  # fmt: skip
    plist = data.id.get_create_plist()
    filters = [plist.get_filter(n)[0] for n in range(plist.get_nfilters())]
    return "+".join(names.get(number, str(number)) for number in filters) or "none"


def _median(values: NDArray[Any] | None) -> float | None:
    if values is None or not np.isfinite(values).any():
        return None
    return float(np.median(values[np.isfinite(values)]))
