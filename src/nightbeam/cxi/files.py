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

__all__ = ["Chunk", "Summary", "kind_of", "open_chunk", "read_chunk", "read_image", "read_values", "summarize"]

#: A table of peaks has so many numbers at most, and a slab so many pixels: a file's own word is not to be trusted.
_MOST_VALUES: Final = 2**28
_MOST_EVENTS: Final = 10_000_000
_MOST_BYTES: Final = 2**31
_NUMBERS: Final = "iufb"


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """All of a file but its pixels.

    Attributes
    ----------
    n_peaks : (N,), int64
    peaks
        Name to table (N, P) of all datasets of numbers beside it, such as ``peakXPosRaw``.
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
    except (InputError, MissingError):
        raise
    except MemoryError as error:
        raise InputError(f"{path} is larger than the memory of this machine", fix="use a larger one") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
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
        counts = _counts(file[layout.N_PEAKS], path)
        return Chunk(
            path=path,
            n_peaks=counts,
            peaks=_tables(file, path, len(counts)),
            events=_event_values(file, path, len(counts)),
            slab=_slab(file, path),
            attributes=_attributes(file, path),
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
        if _slab(file, path) is None or not 0 <= event < len(file[layout.DATA]):
            raise MissingError(f"{path} has no image of event {event}")
        return np.asarray(file[layout.DATA][event])


def summarize(path: Path) -> Summary:
    """Return what is in a file.

    Raises
    ------
    MissingError, InputError
        As `read_chunk`.
    """
    chunk = read_chunk(path)
    with open_chunk(path) as file:
        data = None if chunk.slab is None else file[layout.DATA]
        dtype = None if data is None else str(data.dtype)
        compression = "none" if data is None else _compression(data)
    names = [_text(name) for name in chunk.events.get(layout.IDENTIFIER, [])]
    run = chunk.attributes.get("run")
    return Summary(
        path=str(path),
        events=len(chunk.n_peaks),
        peaks=int(chunk.n_peaks.sum()),
        slab=chunk.slab,
        dtype=dtype,
        compression=compression,
        bytes=path.stat().st_size,
        batches=len(batches) if isinstance(batches := chunk.attributes.get("batches"), list) else 0,
        run=run if isinstance(run, int) else None,
        first_event=names[0] if names else None,
        last_event=names[-1] if names else None,
        photon_energy_ev=_median(chunk.events.get(layout.PHOTON_ENERGY)),
        clen_mm=_median(chunk.events.get(layout.CLEN)),
        created=_text(created) if (created := chunk.attributes.get("creation_time")) is not None else None,
    )


def kind_of(dataset: Any) -> str:
    """Return the kind of a dataset's type as numpy has it, ``"?"`` for one that numpy has not, such as times."""
    try:
        return str(dataset.dtype.kind)
    except TypeError:
        return "?"


def read_values(dataset: Any) -> NDArray[Any]:
    """Return all values of a dataset.

    Raises
    ------
    InputError
        If it says that it has more than any detector makes.
    """
    long = dataset.ndim == 1 and dataset.size > _MOST_EVENTS
    if long or dataset.size > _MOST_VALUES or dataset.size * dataset.dtype.itemsize > _MOST_BYTES:
        raise InputError(f"{dataset.name} says it has {dataset.size} values", fix="no detector makes so many")
    return np.asarray(dataset[...])


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _wrong(path: Path, name: str, found: Any, wanted: str) -> InputError:
    return InputError(
        f"{path}: {name} is {str(found)[:100]}, {wanted}", fix="the file is damaged, or another program's"
    )


def _type(dataset: Any) -> str:
    return "of a type of HDF5's own" if kind_of(dataset) == "?" else f"of type {dataset.dtype}"


def _counts(dataset: Any, path: Path) -> NDArray[np.int64]:
    if kind_of(dataset) not in "iu":
        raise _wrong(path, "nPeaks", _type(dataset), "whole numbers are wanted")
    counts = read_values(dataset)
    wrong = np.flatnonzero((counts < 0) | (counts > _MOST_VALUES))
    if wrong.size:
        raise _wrong(path, "nPeaks", counts[wrong[0]], f"of event {wrong[0]}: no number of peaks")
    return counts.astype(np.int64)


def _tables(file: Any, path: Path, events: int) -> dict[str, NDArray[Any]]:
    """Return all tables of numbers; one of ours that has none is an error, another's is left out."""
    ours = {d.name for d in layout.LAYOUT if d.axes == ("event", "peak")}
    tables = {}
    for name, item in _datasets(file[layout.RESULT]):
        if item.ndim != 2 or len(item) != events:
            continue
        if kind_of(item) in _NUMBERS:
            tables[name] = read_values(item)
        elif name in ours:
            raise _wrong(path, name, _type(item), "numbers are wanted")
    return tables


def _datasets(group: Any) -> list[tuple[str, Any]]:
    found = [(name, group.get(name)) for name in group]
    return [(name, item) for name, item in found if isinstance(item, h5py.Dataset)]


def _event_values(file: Any, path: Path, events: int) -> dict[str, NDArray[Any]]:
    found = {}
    for dataset in (d for d in layout.LAYOUT if d.axes == ("event",)):
        item = file.get(dataset.path)
        if not isinstance(item, h5py.Dataset) or item.shape != (events,):
            continue
        is_text = dataset.dtype.startswith("S")
        if kind_of(item) not in (_NUMBERS + "SO" if is_text else _NUMBERS):
            raise _wrong(path, dataset.path, _type(item), "text is wanted" if is_text else "numbers are wanted")
        found[dataset.path] = read_values(item)
    return found


def _slab(file: Any, path: Path) -> tuple[int, int] | None:
    data = file.get(layout.DATA)
    if not isinstance(data, h5py.Dataset):
        return None
    if kind_of(data) not in _NUMBERS:
        raise _wrong(path, layout.DATA, _type(data), "numbers are wanted")
    if data.ndim != 3 or not 0 < data.shape[1] * data.shape[2] <= _MOST_VALUES:
        raise _wrong(path, layout.DATA, f"of shape {data.shape}", "one of (events, ss, fs) is wanted")
    return int(data.shape[1]), int(data.shape[2])


def _attributes(file: Any, path: Path) -> dict[str, Any]:
    found = {name: _plain(value) for name, value in file.attrs.items()}
    for name in ("batches", "batch_ids", "files"):
        if isinstance(found.get(name), str):
            found[name] = _list(found[name], name, path)
    return found


def _plain(value: Any) -> Any:
    """Return a value of an attribute without numpy: a list where it has several, None where it has none."""
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, np.ndarray | np.generic):
        return value.item() if value.size == 1 else value.tolist()
    return value


def _list(text: str, name: str, path: Path) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise _wrong(path, f"attribute {name}", repr(text), "a list as JSON is wanted")
    return found


def _compression(data: Any) -> str:
    names = {1: "gzip", 2: "shuffle", 32000: "lzf", 32001: "blosc", 32008: "bitshuffle", 32015: "zstd",
             32026: "blosc2"}  # fmt: skip
    plist = data.id.get_create_plist()
    filters = [plist.get_filter(n)[0] for n in range(plist.get_nfilters())]
    return "+".join(names.get(number, str(number)) for number in filters) or "none"


def _median(values: NDArray[Any] | None) -> float | None:
    known = np.zeros(0) if values is None else values[np.isfinite(values)]
    return float(np.median(known)) if known.size else None
