"""UVH5 subband files: the header, whether a file is whole, and its data block by block."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError, NightbeamError, StorageError, UnavailableError
from nightbeam.core.keys import SubbandName
from nightbeam.uvh5.model import TELESCOPE, SubbandHeader

if TYPE_CHECKING:
    import h5py

__all__ = ["DataBlock", "SubbandData", "check_subband", "open_data", "read_header"]

# Longest stretch of rows that chunks of all three datasets must begin together in; more is read by h5py.
_MOST_ALIGNED_ROWS = 16384
#: What is said of a disk that somebody writes to.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_DATASETS = ("visdata", "flags", "nsamples")
_EARLIEST_JD, _LATEST_JD = 2433282.5, 2488069.5  # 1950 and 2100
_ON_MERIDIAN_RAD = 1e-6
_FARTHEST_M = 1e6  # from the array's centre: positions that count from the Earth's are six times as long


@dataclass(frozen=True)
class DataBlock:
    """Some rows of a subband file, in the file's order.

    Attributes
    ----------
    vis : (row, chan, pol), complex64
    flags : (row, chan, pol), bool
    nsamples : (row, chan, pol), float32
    """

    vis: NDArray[np.complex64]
    flags: NDArray[np.bool_]
    nsamples: NDArray[np.float32]


def read_header(path: Path, *, telescope: str | None = TELESCOPE) -> SubbandHeader:
    """Return what a subband file says of itself, reading single items of its header (a few ms).

    Files of the correlator (an old layout, with a length-1 spectral-window axis) and of present-day writers
    (a flat frequency axis) are both understood.

    Parameters
    ----------
    path
        The file.
    telescope
        Whose files are accepted; None: anybody's.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is not HDF5 or truncated, comes from another telescope, lacks an item, or contradicts itself.
    """
    with _opened(path) as file:
        return _header(path, file, telescope)


def check_subband(path: Path, *, telescope: str | None = TELESCOPE) -> SubbandHeader:
    """Return the header of a subband file whose data are all there.

    Beyond `read_header`: the three datasets have the shape that the header promises and the right types,
    and the file is long enough to hold them.

    Raises
    ------
    MissingError, InputError
        As `read_header`.
    """
    with _opened(path) as file:
        header = _header(path, file, telescope)
        _check_data(path, file, header)
        return header


@contextmanager
def open_data(header: SubbandHeader) -> Iterator[SubbandData]:
    """Open the data of a subband for reading block by block.

    Raises
    ------
    InputError
        If the file has changed since its header was read, or is damaged.
    """
    with _opened(header.path) as file:
        _check_data(header.path, file, header)
        handle = os.open(header.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield SubbandData(header, file, handle)
        finally:
            os.close(handle)


class SubbandData:
    """The data of one open subband file.

    Where the file is plain (no compression) its chunks are fetched with `os.preadv`, which leaves other
    threads running; h5py holds a lock over the whole process while it reads.
    """

    def __init__(self, header: SubbandHeader, file: h5py.File, handle: int) -> None:
        self._header = header
        self._data = file["Data"]
        self._shape = (header.n_freqs, header.n_pols)
        self._chunks = {name: _ChunkMap.of(self._data[name], handle, self._shape) for name in _DATASETS}
        self.block_rows = self._aligned_rows()

    @property
    def direct(self) -> bool:
        """Whether h5py is left out."""
        return all(self._chunks.values())

    def blocks(self, rows: int = 1024) -> Iterator[tuple[int, DataBlock]]:
        """Yield all rows, about ``rows`` at a time, each block with the number of its first row."""
        size = max(1, rows // self.block_rows) * self.block_rows
        for begin in range(0, self._header.n_blts, size):
            end = min(begin + size, self._header.n_blts)
            with _reading(self._header.path):
                arrays = [self._read(name, begin, end) for name in _DATASETS]
            yield begin, DataBlock(arrays[0], arrays[1].view(np.bool_), arrays[2])

    def _aligned_rows(self) -> int:
        lengths = [c.rows for c in self._chunks.values() if c]
        if len(lengths) < len(_DATASETS):
            return 1
        common = int(np.lcm.reduce(lengths))
        if common > _MOST_ALIGNED_ROWS:
            self._chunks = dict.fromkeys(_DATASETS)
            return 1
        return common

    def _read(self, name: str, begin: int, end: int) -> NDArray[Any]:
        chunks = self._chunks[name]
        if chunks:
            return chunks.read(begin, end)
        found = self._data[name][begin:end]
        wanted = {"visdata": np.complex64, "flags": np.uint8, "nsamples": np.float32}[name]
        return np.ascontiguousarray(found.reshape(end - begin, *self._shape)).astype(wanted, copy=False)


@dataclass(frozen=True)
class _ChunkMap:
    """Where the chunks of an uncompressed dataset lie in its file."""

    handle: int
    rows: int
    chans: int
    pols: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    offsets: NDArray[np.int64]  # (row chunk, chan chunk, pol chunk)

    @classmethod
    def of(cls, dataset: h5py.Dataset, handle: int, shape: tuple[int, int]) -> _ChunkMap | None:
        """Return the map, or None where h5py must do the reading."""
        wanted = {"c": np.dtype("<c8"), "f": np.dtype("<f4"), "b": np.dtype(bool)}.get(dataset.dtype.kind)
        if wanted is None or dataset.dtype != wanted:
            return None
        kind = np.dtype(np.uint8) if dataset.dtype.kind == "b" else wanted
        if dataset.chunks is None:
            offset = dataset.id.get_offset()
            if offset is None or dataset.id.get_storage_size() != dataset.size * kind.itemsize:
                return None
            step = shape[0] * shape[1] * kind.itemsize
            return cls(handle, 1, *shape, shape, kind, (offset + step * np.arange(len(dataset)))[:, None, None])
        if dataset.id.get_create_plist().get_nfilters():
            return None
        return cls._of_chunks(dataset, handle, shape, kind)

    @classmethod
    def _of_chunks(
        cls, dataset: h5py.Dataset, handle: int, shape: tuple[int, int], kind: np.dtype[Any]
    ) -> _ChunkMap | None:
        rows, *_, chans, pols = dataset.chunks
        counts = [-(-n // c) for n, c in zip((len(dataset), *shape), (rows, chans, pols), strict=True)]
        offsets = np.full(counts, -1, np.int64)

        def note(chunk: Any) -> None:
            at = chunk.chunk_offset
            offsets[at[0] // rows, at[-2] // chans, at[-1] // pols] = chunk.byte_offset

        dataset.id.chunk_iter(note)
        if (offsets < 0).any():  # never written: h5py knows the fill value
            return None
        return cls(handle, rows, chans, pols, shape, kind, offsets)

    def read(self, begin: int, end: int) -> NDArray[Any]:
        """Return rows (row, chan, pol); ``begin`` is the first row of a chunk."""
        from nightbeam.uvh5.kernels import gather_chunks

        picked = self.offsets[begin // self.rows : -(-end // self.rows)]
        size = self.rows * self.chans * self.pols * self.dtype.itemsize
        raw = _read_pieces(self.handle, picked.ravel(), size).view(self.dtype)
        if (self.chans, self.pols) == self.shape:
            return raw.reshape(-1, *self.shape)[: end - begin]
        out = np.empty((end - begin, *self.shape), self.dtype)
        gather_chunks(raw.reshape(*picked.shape, self.rows, self.chans, self.pols), out)
        return out


def _read_pieces(handle: int, offsets: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Return pieces of one size, in the order of their offsets' places; neighbours in the file are read at once."""
    out = np.empty(len(offsets) * size, np.uint8)
    breaks = np.flatnonzero(np.diff(offsets) != size) + 1
    for first, last in zip(np.r_[0, breaks], np.r_[breaks, len(offsets)], strict=True):
        view = out.data[int(first) * size : int(last) * size]
        at, done = int(offsets[first]), 0
        while done < len(view):
            got = os.preadv(handle, [view[done:]], at + done)
            if got == 0:
                raise OSError("the file ends before its data")
            done += got
    return out


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    # The correlator's file systems know no locks, and a finished file has no writer.
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    import h5py

    if not path.is_file():
        raise MissingError(f"no file {path}", fix="check the name; it may have been moved")
    if path.stat().st_size == 0:
        raise InputError(f"{path} has zero bytes", fix="copy it again from the correlator")
    with _reading(path), h5py.File(path, "r", locking=False) as file:
        yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except NightbeamError:
        raise
    except KeyError as error:
        raise InputError(
            f"{path} has no item {_item_name(error)}", fix="it is no finished subband file: copy it again"
        ) from error
    except OSError as error:
        if error.errno:
            reason = os.strerror(error.errno)
            # Whoever has the file open may write meanwhile. A file that cannot be read is one group's trouble and not
            # that of the disk on which all are worked on, for which every other group would wait.
            kind = StorageError if error.errno in _UNWRITABLE else UnavailableError
            raise kind(f"cannot read {path}: {reason}", fix="check the mount and its owner") from error
        reason = str(error)
        if "signature not found" in reason:
            raise InputError(f"{path} is not an HDF5 file", fix="give subband files (*_sbNN.hdf5)") from error
        what = "is truncated" if "truncated" in reason or "ends before" in reason else "is damaged"
        raise InputError(f"{path} {what}: {reason}", fix="copy it again from the correlator") from error
    # What h5py and numpy say of damaged insides, wrong types and empty arrays.
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError, ArithmeticError) as error:
        raise InputError(f"{path} cannot be read: {error}", fix="copy it again from the correlator") from error


def _item_name(error: KeyError) -> str:
    text = str(error.args[0]) if error.args else "?"
    return text.split("'")[1] if text.count("'") >= 2 else text


def _header(path: Path, file: h5py.File, telescope: str | None) -> SubbandHeader:
    if "Header" not in file or "Data" not in file:
        raise InputError(f"{path} is HDF5 but not UVH5: no Header or no Data group", fix="give subband files")
    header = file["Header"]
    found = _text(header, "telescope_name")
    if telescope is not None and found != telescope:
        raise InputError(f"{path} comes from another telescope, {found!r}, not {telescope!r}", fix="leave it out")
    times, n_bls = _times(path, header)
    ant_1, ant_2 = (_per_baseline(path, header, name, n_bls) for name in ("ant_1_array", "ant_2_array"))
    freqs, width = _frequencies(path, header)
    antennas = _antennas(path, header, ant_1, ant_2)
    name = SubbandName.parse(path.name)
    latitude, longitude, altitude = _site(path, header)
    return SubbandHeader(
        path=path,
        subband=name.subband if name else None,
        telescope=found,
        start_jd=times[0],
        mid_jd=0.5 * (times[0] + times[-1]),
        times_jd=times,
        freqs_hz=freqs,
        channel_width_hz=width,
        integration_s=_integration_s(path, header),
        dec_rad=_pointing(path, header, strict=telescope is not None),
        longitude_deg=longitude,
        latitude_deg=latitude,
        altitude_m=altitude,
        n_blts=len(times) * n_bls,
        n_bls=n_bls,
        n_pols=len(header["polarization_array"]),
        polarizations=tuple(int(p) for p in header["polarization_array"][()]),
        history=_text(header, "history") if "history" in header else "",
        ant_1=antennas["ant_1"],
        ant_2=antennas["ant_2"],
        ant_numbers=tuple(int(a) for a in antennas["active"]),
        antenna_names=tuple(antennas["names"]),
        antenna_positions_m=antennas["positions"],
        antenna_diameters_m=antennas["diameters"],
    )


def _site(path: Path, header: h5py.Group) -> tuple[float, float, float]:
    """Return latitude, longitude (degrees) and height (metres)."""
    latitude, longitude, altitude = (float(header[k][()]) for k in ("latitude", "longitude", "altitude"))
    if not (abs(latitude) <= 90.0 and abs(longitude) <= 360.0 and abs(altitude) < 1e4):
        raise InputError(
            f"{path}: latitude {latitude}, longitude {longitude}, altitude {altitude} is no place on Earth",
            fix="copy the file again",
        )
    return latitude, longitude, altitude


def _text(header: h5py.Group, name: str) -> str:
    value = header[name][()]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _count(header: h5py.Group, name: str) -> int:
    return int(header[name][()])


def _times(path: Path, header: h5py.Group) -> tuple[tuple[float, ...], int]:
    """Return the times of the integrations and the rows of each."""
    rows = header["time_array"][()]
    n_blts, n_times = _count(header, "Nblts"), _count(header, "Ntimes")
    if rows.shape != (n_blts,) or not n_blts:
        raise InputError(f"{path}: time_array is {rows.shape}, Nblts {n_blts}", fix="copy the file again")
    if n_times < 1 or n_blts % n_times:
        raise InputError(f"{path}: {n_blts} rows are not {n_times} whole integrations", fix="copy the file again")
    by_time = rows.reshape(n_times, -1)
    if not np.isfinite(rows).all() or (by_time != by_time[:, :1]).any() or (np.diff(by_time[:, 0]) <= 0).any():
        raise InputError(
            f"{path}: time_array is not {n_times} ascending times of {by_time.shape[1]} rows each",
            fix="the file is damaged or written by another program: copy it again",
        )
    if not (rows[0] > _EARLIEST_JD and rows[-1] < _LATEST_JD):
        raise InputError(
            f"{path}: time_array begins at {rows[0]}, which is no Julian Date of a radio observation",
            fix="times are JD (UTC), not MJD: copy the file again",
        )
    return tuple(by_time[:, 0].tolist()), by_time.shape[1]


def _per_baseline(path: Path, header: h5py.Group, name: str, n_bls: int) -> NDArray[np.int64]:
    rows = header[name][()]
    if rows.ndim != 1 or len(rows) % n_bls or len(rows) != _count(header, "Nblts"):
        raise InputError(f"{path}: {name} is {rows.shape}, Nblts {_count(header, 'Nblts')}", fix="copy the file again")
    by_time = rows.reshape(-1, n_bls)
    if (by_time != by_time[:1]).any():
        raise InputError(f"{path}: the antennas of {name} change in mid file", fix="copy the file again")
    return np.asarray(by_time[0], np.int64)


def _frequencies(path: Path, header: h5py.Group) -> tuple[NDArray[np.float64], float]:
    freqs = np.asarray(header["freq_array"][()], float)
    if freqs.ndim == 2 and freqs.shape[0] == 1:
        freqs = freqs[0]
    n_freqs = _count(header, "Nfreqs")
    if freqs.shape != (n_freqs,) or not n_freqs:
        raise InputError(f"{path}: freq_array is {freqs.shape}, Nfreqs {n_freqs}", fix="copy the file again")
    width = float(np.abs(np.asarray(header["channel_width"][()], float)).flat[0])
    steps = np.diff(freqs)
    even = np.allclose(np.abs(steps), width, rtol=1e-3) and (len(set(np.sign(steps))) <= 1)
    if not (np.isfinite(freqs).all() and (freqs > 0).all() and width > 0 and even):
        raise InputError(f"{path}: the channels are not {width} Hz apart in one direction", fix="copy the file again")
    return freqs, width


def _antennas(path: Path, header: h5py.Group, ant_1: NDArray[np.int64], ant_2: NDArray[np.int64]) -> Mapping[str, Any]:
    """Return names, places and diameters, and the ends of the baselines as indices into them."""
    numbers, positions = header["antenna_numbers"][()].astype(np.int64), header["antenna_positions"][()]
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in header["antenna_names"][()]]
    count = _count(header, "Nants_telescope")
    if positions.shape != (count, 3) or len(names) != count or numbers.shape != (count,):
        raise InputError(
            f"{path}: {len(names)} names, {len(numbers)} numbers and positions {positions.shape} of {count} antennas",
            fix="copy the file again",
        )
    order = np.argsort(numbers)
    used = np.r_[ant_1, ant_2]
    found = np.searchsorted(numbers[order], used)
    if (found >= count).any() or (numbers[order][np.minimum(found, count - 1)] != used).any():
        raise InputError(f"{path}: there are baselines of antennas that have no position", fix="copy the file again")
    index = order[found]
    active, first = np.unique(index, return_index=True)
    if len(active) != _count(header, "Nants_data") or not np.isfinite(positions).all():
        raise InputError(
            f"{path}: {len(active)} antennas have data, Nants_data {_count(header, 'Nants_data')}",
            fix="copy the file again",
        )
    one, two = index[: len(ant_1)], index[len(ant_1) :]
    _check_baselines(path, one, two, positions, names)
    diameters = header["antenna_diameters"][()] if "antenna_diameters" in header else np.full(count, 4.65)
    if diameters.shape != (count,) or not (diameters[active] > 0).all():
        raise InputError(
            f"{path}: antenna_diameters {diameters.shape} are not {count} positive numbers", fix="copy the file again"
        )
    return {
        "ant_1": one,
        "ant_2": two,
        "active": active[np.argsort(first)],
        "names": names,
        "positions": np.asarray(positions, float),
        "diameters": np.asarray(diameters, float),
    }


def _check_baselines(
    path: Path, one: NDArray[np.int64], two: NDArray[np.int64], positions: NDArray[np.float64], names: list[str]
) -> None:
    """Refuse a baseline that is there twice, and places that cannot be those of antennas."""
    pairs = np.minimum(one, two) * len(names) + np.maximum(one, two)
    unique = len(np.unique(pairs))
    if unique != len(pairs):
        raise InputError(
            f"{path}: {len(pairs) - unique} of {len(pairs)} baselines are there twice", fix="copy the file again"
        )
    farthest = float(np.abs(positions).max())
    if farthest > _FARTHEST_M:
        raise InputError(
            f"{path}: antenna_positions reach {farthest / 1e3:.0f} km from the array's centre",
            fix="positions are ITRF minus the array's centre: copy the file again",
        )
    same = np.flatnonzero((one != two) & (positions[one] == positions[two]).all(axis=1))
    if len(same):
        a, b = names[one[same[0]]], names[two[same[0]]]
        raise InputError(f"{path}: antennas {a} and {b} stand at the same place", fix="copy the file again")


def _integration_s(path: Path, header: h5py.Group) -> float:
    values = np.atleast_1d(np.asarray(header["integration_time"][()], float))
    value = float(values[0])
    if not (np.isfinite(value) and value > 0 and (values == value).all()):
        raise InputError(
            f"{path}: the integration times are {values.min()} to {values.max()} s, wanted one that is positive",
            fix="copy the file again",
        )
    return value


def _pointing(path: Path, header: h5py.Group, *, strict: bool) -> float:
    extra = header.get("extra_keywords", {})
    if "phase_center_dec" in extra:
        dec = float(extra["phase_center_dec"][()])
    elif "phase_center_app_dec" in header:
        dec = float(np.asarray(header["phase_center_app_dec"][()]).flat[0])
    elif strict:
        raise KeyError("extra_keywords/phase_center_dec")
    else:
        dec = float("nan")
    if strict and not abs(dec) <= 0.5 * np.pi:
        raise InputError(f"{path}: the pointing declination is {dec} rad", fix="copy the file again")
    hour_angle = float(extra["ha_phase_center"][()]) if "ha_phase_center" in extra else 0.0
    if strict and not abs(hour_angle) < _ON_MERIDIAN_RAD:
        raise InputError(
            f"{path}: the data are phased to hour angle {hour_angle} rad, not to the meridian",
            fix="only data of the meridian can be rotated: leave the file out",
        )
    return dec


def _check_data(path: Path, file: h5py.File, header: SubbandHeader) -> None:
    data = file["Data"]
    rows, freqs, pols = header.n_blts, header.n_freqs, header.n_pols
    for name, kinds in (("visdata", "cV"), ("flags", "b"), ("nsamples", "f")):
        dataset = data[name]
        if dataset.shape not in ((rows, 1, freqs, pols), (rows, freqs, pols)):
            raise InputError(
                f"{path}: {name} is {dataset.shape}, the header promises {(rows, 1, freqs, pols)}",
                fix="the file was not finished: copy it again",
            )
        if dataset.dtype.kind not in kinds:
            raise InputError(f"{path}: {name} is of type {dataset.dtype}", fix="copy the file again")
        if not dataset.id.get_storage_size():
            raise InputError(f"{path}: {name} was never written", fix="copy the file again")
