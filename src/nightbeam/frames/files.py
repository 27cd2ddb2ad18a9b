"""Frames out of HDF5, CXI and npy files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.frames.compute import cut_slab, lcls_time, tile_slab
from nightbeam.frames.model import Frames

__all__ = ["FrameReader", "open_frames"]

#: Where CXI and NeXus files of detectors have their frames, in the order of trial.
_DATASETS: Final = (
    "/entry_1/data_1/data",
    "/entry_1/instrument_1/detector_1/data",
    "/entry_1/image_1/data",
    "/entry/data/data",
    "/data/data",
)
_ENERGY_EV, _ENERGY_J = "/LCLS/photon_energy_eV", "/entry_1/instrument_1/source_1/energy"
_CLEN_MM = "/LCLS/detector_1/EncoderValue"
_TIMESTAMP = "/LCLS/detector_1/timestamp"
_SECONDS, _NANOSECONDS = "/LCLS/machineTime", "/LCLS/machineTimeNanoSeconds"
_EV_PER_JOULE: Final = 1.0 / 1.602176634e-19

#: The largest event, and the largest chunk, that is read: what a file says of its size is not to be believed.
_MOST_BYTES: Final = 4 << 30
#: So many objects of a file are looked at for one with frames.
_MOST_OBJECTS: Final = 10_000
_MOST_EVENTS: Final = 1 << 40
#: A value for each event is read for so many at most.
_MOST_VALUES: Final = 1 << 27


class _Array(Protocol):
    """What an array of numpy and a dataset of h5py have in common."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, which: slice, /) -> Any: ...


class FrameReader:
    """An open file of frames; a context manager.

    Attributes
    ----------
    path
        Of the file.
    dataset
        Name of the one that is read; ``""`` for npy.
    shape
        (C, H0, W0).
    n_events
        How many frames there are.
    timestamps : (N,), uint64, or None
        LCLS event times, where the file has them; 0 for what cannot be one: NaN, or below 0.
    photon_energy_ev, clen_mm : (N,), float64, or None
        Likewise.
    """

    def __init__(
        self,
        path: Path,
        dataset: str,
        data: _Array,
        cut: Callable[[NDArray[Any]], NDArray[Any]],
        shape: tuple[int, int, int],
        *,
        known: dict[str, NDArray[Any]],
        close: Callable[[], None],
    ) -> None:
        self.path, self.dataset, self.shape = path, dataset, shape
        self.n_events = data.shape[0]
        self.timestamps = known.get("timestamps")
        self.photon_energy_ev = known.get("photon_energy_ev")
        self.clen_mm = known.get("clen_mm")
        self._data, self._cut, self._close = data, cut, close

    def read(self, first: int, n: int) -> Frames:
        """Return ``n`` events from number ``first`` on, fewer at the end.

        Raises
        ------
        InputError
            If the file cannot be read there.
        """
        if first < 0 or n < 0:
            raise InputError(f"{n} events from number {first} on", fix="give numbers from 0 on")
        here = slice(min(first, self.n_events), min(first + n, self.n_events))
        with _reading(self.path):
            raw = np.asarray(self._data[here])
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, as it is said
            images = np.ascontiguousarray(self._cut(raw), np.float32)
        count = len(images)
        times = np.zeros(count, np.uint64) if self.timestamps is None else self.timestamps[here]
        return Frames(images, first, times, _part(self.photon_energy_ev, here), _part(self.clen_mm, here))

    def close(self) -> None:
        """Close the file."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def _part(values: NDArray[np.float64] | None, here: slice) -> NDArray[np.float64] | None:
    return None if values is None else values[here]


def open_frames(
    path: Path,
    dataset: str | None = None,
    *,
    panel_shape: tuple[int, int] | None = None,
    origins: NDArray[np.integer] | None = None,
) -> FrameReader:
    """Open a file of frames: HDF5 or CXI, or npy.

    Parameters
    ----------
    path
        Of the file; what it is is told by its first bytes.
    dataset
        Of an HDF5 file: (N, C, H0, W0), (N, SS, FS) or (N, H, W). By default the first of the names that CXI files
        use, else the only one of three or four axes. An npy file may also hold a single (H, W).
    panel_shape
        (H0, W0), where three axes are slabs that are to be cut into panels; without it each is one panel.
    origins : (C, 2), optional
        Row and column of each panel in the slab; by default all tiles of ``panel_shape``, column by column.

    Raises
    ------
    MissingError
        If there is no such file or dataset.
    InputError
        If it is neither, is truncated or empty, holds no frames, or does not say which dataset does; if an event is
        larger than 4 GiB; if the panels do not fit.
    UsageError
        If origins are given without a panel shape.
    """
    if origins is not None and panel_shape is None:
        raise UsageError("origins of panels were given without the shape of one", fix="give panel_shape too")
    start = _first_bytes(path)
    if start.startswith(b"\x93NUMPY"):
        if dataset is not None:
            raise InputError(f"{path} is an npy file, which has no dataset {dataset}", fix="leave the dataset out")
        return _open_npy(path, panel_shape, origins)
    import h5py

    with _reading(path):
        is_hdf5 = bool(h5py.is_hdf5(path))
    if not is_hdf5:
        what = "is empty" if not start else "is neither HDF5 (CXI) nor npy"
        raise InputError(f"{path} {what}", fix="give a file of frames that is complete")
    return _open_hdf5(path, dataset, panel_shape, origins)


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except FileNotFoundError as error:
        raise MissingError(f"no file {path}", fix="correct the path") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", fix="give a file that you may read") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say in our words that a library could not make sense of a file."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, SyntaxError, OverflowError, TypeError) as error:
        said = " ".join(str(error).split())[:300]
        fix = "it is truncated, damaged, or compressed with a filter that is not installed"
        raise InputError(f"cannot read {path}: {said}", fix=fix) from error


# -- npy ----------------------------------------------------------------------------------------------------------


def _open_npy(path: Path, panel_shape: tuple[int, int] | None, origins: NDArray[np.integer] | None) -> FrameReader:
    with _reading(path):
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    if data.ndim == 2:
        data = data[None]
    cut, shape = _plan_cut(str(path), data, panel_shape, origins)
    return FrameReader(path, "", data, cut, shape, known={}, close=lambda: None)


# -- HDF5 ---------------------------------------------------------------------------------------------------------


def _open_hdf5(
    path: Path, dataset: str | None, panel_shape: tuple[int, int] | None, origins: NDArray[np.integer] | None
) -> FrameReader:
    import h5py

    with _reading(path):
        file = h5py.File(path, "r", locking=False)
    try:
        name = _find_dataset(file, path) if dataset is None else _named(file, path, dataset)
        data = file[name]
        cut, shape = _plan_cut(f"{name} of {path}", data, panel_shape, origins)
        if math.prod(data.chunks or (1,)) * data.dtype.itemsize > _MOST_BYTES:
            raise InputError(f"{name} of {path} has chunks of {data.chunks}", fix="write it with chunks of one event")
        known = _known_of_events(file, path, data.shape[0])
    except BaseException:
        file.close()
        raise
    return FrameReader(path, name, data, cut, shape, known=known, close=file.close)


def _named(file: Any, path: Path, name: str) -> str:
    import h5py

    with _reading(path):
        found = file.get(name)
        if isinstance(found, h5py.Dataset) and not _has_type(found):
            raise InputError(f"{name} of {path} is of a type of HDF5's own, no frames", fix="numbers are wanted")
    if not isinstance(found, h5py.Dataset):
        raise MissingError(f"no dataset {name} in {path}", fix=_choice(_candidates(file, path)))
    return name


def _find_dataset(file: Any, path: Path) -> str:
    with _reading(path):
        for name in _DATASETS:
            if _holds_frames(file.get(name)):
                return name
    names = _candidates(file, path)
    if len(names) != 1:
        what = "several datasets that may hold frames" if names else "no dataset of three or four axes"
        raise InputError(f"{path} has {what}", fix=_choice(names))
    return names[0]


def _choice(names: list[str]) -> str:
    if not names:
        return "give a file that holds frames"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"name one of {', '.join(names[:8])}{more}"


def _candidates(file: Any, path: Path) -> list[str]:
    names: list[str] = []
    seen = 0

    def look(name: str, item: Any) -> bool | None:
        nonlocal seen
        seen += 1
        if _holds_frames(item):
            names.append(f"/{name}")
        return True if seen >= _MOST_OBJECTS else None  # anything but None ends the visit

    with _reading(path):
        file.visititems(look)
    return names


def _holds_frames(item: Any) -> bool:
    import h5py

    return isinstance(item, h5py.Dataset) and item.ndim in (3, 4) and _has_type(item) and item.dtype.kind in "iuf"


def _has_type(item: Any) -> bool:
    """Return whether numpy has the type of a dataset; it has none for times."""
    try:
        return item.dtype is not None
    except TypeError:
        return False


def _known_of_events(file: Any, path: Path, n: int) -> dict[str, NDArray[Any]]:
    known: dict[str, NDArray[Any] | None] = {
        "photon_energy_ev": _column(file, path, _ENERGY_EV, n),
        "clen_mm": _column(file, path, _CLEN_MM, n),
        "timestamps": _timestamps(file, path, n),
    }
    if known["photon_energy_ev"] is None and (joules := _column(file, path, _ENERGY_J, n)) is not None:
        known["photon_energy_ev"] = joules * _EV_PER_JOULE
    return {name: values for name, values in known.items() if values is not None}


def _timestamps(file: Any, path: Path, n: int) -> NDArray[np.uint64] | None:
    stamp = _column(file, path, _TIMESTAMP, n, None)
    if stamp is not None:
        return _whole(stamp, 2**64, f"{_TIMESTAMP} of {path}")
    seconds, rest = (_column(file, path, name, n, None) for name in (_SECONDS, _NANOSECONDS))
    if seconds is None or rest is None:
        return None
    seconds, rest = _whole(seconds, 2**32, f"{_SECONDS} of {path}"), _whole(rest, 10**9, f"{_NANOSECONDS} of {path}")
    return np.where(seconds == 0, 0, lcls_time(seconds.astype(np.int64) * 10**9 + rest.astype(np.int64)))


def _whole(values: NDArray[Any], end: int, what: str) -> NDArray[np.uint64]:
    """Return whole numbers below an end; NaN and what is below 0 becomes 0, unknown."""
    beyond = values >= float(end) if values.dtype.kind == "f" else values > end - 1
    if beyond.any():
        at = int(np.flatnonzero(beyond)[0])
        raise InputError(f"{what} is {values[at]} of event {at}, no time", fix="mend the file, or leave it out")
    with np.errstate(invalid="ignore"):
        return np.where(values > 0, values, 0).astype(np.uint64)


def _column(file: Any, path: Path, name: str, n: int, dtype: Any = np.float64) -> NDArray[Any] | None:
    """Return a value for each event, as it is or of a type, or None where the file has no such dataset."""
    import h5py

    with _reading(path):
        item = file.get(name)
        if not isinstance(item, h5py.Dataset):
            return None
        if item.shape not in ((n,), (n, 1), (), (1,)) or item.dtype.kind not in "iuf":
            raise InputError(
                f"{name} of {path} is {item.dtype} of shape {item.shape}, and there are {n} events",
                fix="mend the file, or copy the frames alone into one",
            )
        if item.size > _MOST_VALUES:
            raise InputError(f"{name} of {path} says it has {item.size} values", fix="copy fewer events into a file")
        values = np.asarray(item[()]).reshape(-1)
        return np.broadcast_to(values if dtype is None else values.astype(dtype), (n,))


# -- shapes -------------------------------------------------------------------------------------------------------


def _plan_cut(
    what: str, data: Any, panel_shape: tuple[int, int] | None, origins: NDArray[np.integer] | None
) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], tuple[int, int, int]]:
    """Return what cuts a block of events into panels, and the shape of an event."""
    _check_data(what, data)
    if data.ndim == 4:
        if panel_shape is not None and tuple(data.shape[2:]) != tuple(panel_shape):
            raise InputError(f"{what} has panels of {data.shape[2:]}, not {panel_shape}", fix="correct the panel shape")
        return (lambda block: block), tuple(data.shape[1:])
    if panel_shape is None:
        return (lambda block: block[:, None]), (1, *data.shape[1:])
    places = tile_slab(data.shape[1:], panel_shape) if origins is None else origins
    shape = panel_shape
    cut_slab(np.empty((0, *data.shape[1:]), data.dtype), places, shape)  # says now what does not fit
    return (lambda block: cut_slab(block, places, shape)), (len(places), *shape)


def _check_data(what: str, data: Any) -> None:
    if data.ndim not in (3, 4) or data.dtype.kind not in "iuf":
        raise InputError(
            f"{what} is {data.dtype} of shape {data.shape}, no frames", fix="numbers of 3 or 4 axes, event first"
        )
    if 0 in data.shape or data.shape[0] > _MOST_EVENTS:
        raise InputError(f"{what} is of shape {data.shape}", fix="give a file with frames in it")
    if math.prod(data.shape[1:]) * data.dtype.itemsize > _MOST_BYTES:
        raise InputError(f"an event of {what} is of shape {data.shape[1:]}, more than 4 GiB", fix="is it a frame file?")
