"""What CrystFEL will make of a file: its rules, without it.

The rules are those of CrystFEL 0.12 with HDF5 1.10: what it opens, where it looks for what, and which peaks it keeps
when it is told ``--peaks=cxi --no-revalidate``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError
from nightbeam.cxi import layout
from nightbeam.cxi.files import kind_of, read_values
from nightbeam.geometry.compute import bad_pixels, crystfel_complaints, panel_index
from nightbeam.geometry.model import Geometry, Panel, Quantity

__all__ = ["CheckReport", "Finding", "check_file", "files_of"]

#: Filters of HDF5 itself: deflate, shuffle, fletcher32, szip, nbit, scaleoffset.
_BUILT_IN: Final = range(1, 7)
_LZF: Final = 32000
_TABLES: Final = ("peakXPosRaw", "peakYPosRaw", "peakTotalIntensity")
_MOST_LINES: Final = 1_000_000
#: CrystFEL counts peaks with 32 bits.
_MOST_PEAKS: Final = 2**31 - 1
_NUMBERS: Final = "iuf"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that CrystFEL, or its user, will stumble over.

    Attributes
    ----------
    code
        A short name of the rule.
    text
        What was found, what was wanted.
    event
        Which event; None: the file.
    """

    code: str
    text: str
    event: int | None = None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What will be made of a file.

    Attributes
    ----------
    events
        How many it has.
    num_peaks
        That CrystFEL reports for each event.
    findings
        Empty: all is well.
    """

    path: str
    events: int
    num_peaks: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def files_of(path: Path) -> list[Path]:
    """Return the files that are meant: those of a list (``.lst``, from where we stand), or the file itself.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is no list of names.
    """
    if not path.is_file():
        raise MissingError(f"no file {path}", fix="check its name")
    if path.suffix != ".lst":
        return [path]
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", fix="a list has one name of a file a line") from error
    names = [line.split(" //")[0].strip() for line in lines if line.strip()]
    if not names or len(names) > _MOST_LINES:
        raise InputError(f"{path} names {len(names)} files", fix="a list has one name of a file a line")
    return [Path(name) for name in dict.fromkeys(names)]


def check_file(path: Path, geometry: Geometry | None = None) -> CheckReport:
    """Say what CrystFEL will make of a file.

    Parameters
    ----------
    geometry
        That indexamajig will be given; without it, what depends on it is not looked at and the paths are ours.
    """
    if not path.is_file():
        return CheckReport(str(path), 0, (), (Finding("file", f"there is no file {path}"),))
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            check = _Check(file, geometry)
            findings = list(check.run())
            return CheckReport(str(path), len(check.counts), tuple(check.predicted.tolist()), tuple(findings))
    except InputError as error:
        return CheckReport(str(path), 0, (), (Finding("size", error.what),))
    except MemoryError:
        return CheckReport(str(path), 0, (), (Finding("size", f"{path} is larger than the memory of this machine"),))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        text = f"HDF5 cannot read it, it is cut short, damaged or none: {str(error)[:200]}"
        return CheckReport(str(path), 0, (), (Finding("open", text),))


class _Check:
    def __init__(self, file: Any, geometry: Geometry | None) -> None:
        self.file, self.geometry = file, geometry
        self.group = layout.RESULT if geometry is None else geometry.peak_list
        self.counts = np.zeros(0, np.int64)
        self.predicted = np.zeros(0, np.int64)
        self.tables: dict[str, NDArray[np.float64]] = {}
        self.members: dict[str, str] = {}

    def run(self) -> Iterator[Finding]:
        yield from self._geometry()
        yield from self._lists()
        yield from self._images()
        yield from self._numbers()
        yield from self._masks()
        yield from self._places()
        yield from self._names()
        yield from self._gone()

    # -- the geometry by itself -----------------------------------------------------------------------------------

    def _geometry(self) -> Iterator[Finding]:
        if self.geometry is None:
            return
        for text in crystfel_complaints(self.geometry):
            yield Finding("geometry", f"CrystFEL refuses {self.geometry.source}: {text}")
        if self.group is None:
            yield Finding("peak_list", f"{self.geometry.source} has no peak_list: CrystFEL finds 0 peaks")
        kind = self.geometry.peak_list_type
        if kind == "list3" or (kind in (None, "auto") and not str(self.file.filename).endswith(".cxi")):
            yield Finding("peak_list", f"{self.geometry.source}: write 'peak_list_type = cxi'")

    # -- lists of peaks -------------------------------------------------------------------------------------------

    def _lists(self) -> Iterator[Finding]:
        group = self.group or layout.RESULT
        counts = self._dataset(f"{group}/nPeaks")
        if counts is None:
            yield Finding("nPeaks", f"there is no {group}/nPeaks")
            return
        yield from self._filters(counts)
        if counts.ndim != 1 or kind_of(counts) not in "iu":
            yield Finding("nPeaks", f"nPeaks is {_form(counts)}: one whole number an event")
            return
        yield from self._counted(read_values(counts))
        whole = True
        for name in _TABLES:
            wrong = list(self._table(f"{group}/{name}", name))
            whole = whole and not wrong
            yield from wrong
        if whole and self.group is not None:
            self.predicted = self.counts.copy()
            yield from self._not_finite()

    def _counted(self, counts: NDArray[Any]) -> Iterator[Finding]:
        none = (counts < 0) | (counts > _MOST_PEAKS)
        self.counts = np.where(none, 0, counts).astype(np.int64)
        self.predicted = np.zeros(len(self.counts), np.int64)
        if none.any():
            first = int(np.flatnonzero(none)[0])
            yield Finding("nPeaks", f"nPeaks is {counts[first]} ({int(none.sum())} such), no number of peaks", first)
        if len(self.counts) == 0:
            yield Finding("nPeaks", "there is no event")

    def _not_finite(self) -> Iterator[Finding]:
        for name, table in self.tables.items():
            place = name != "peakTotalIntensity"
            if place and self.geometry is not None:
                continue  # a place that is none is in no panel, which is said there
            wrong = ~np.isfinite(table) & self._used(table)
            if wrong.any():
                event, peak = (int(n) for n in np.argwhere(wrong)[0])
                which = f"{name} is {table[event, peak]:g} of peak {peak} ({int(wrong.sum())} such)"
                yield Finding("peaks", which + (": such a peak is in no panel" if place else ""), event)

    def _used(self, table: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(np.arange(table.shape[1]) < self.counts[:, None])

    def _table(self, path: str, name: str) -> Iterator[Finding]:
        table = self._dataset(path)
        if table is None:
            yield Finding("peaks", f"there is no {path}: CrystFEL reads 0 peaks and says nothing")
            return
        if blocked := list(self._filters(table)):
            yield from blocked
            return
        if table.ndim != 2 or len(table) != len(self.counts) or kind_of(table) not in _NUMBERS:
            yield Finding("peaks", f"{name} is {_form(table)}: numbers ({len(self.counts)}, most peaks) are wanted")
            return
        most = int(self.counts.max(initial=0))
        if table.shape[1] < most:
            yield Finding("peaks", f"{name} has {table.shape[1]} places and an event {most} peaks")
            return
        self.tables[name] = read_values(table).astype(np.float64)

    # -- images and what belongs to them --------------------------------------------------------------------------

    def _images(self) -> Iterator[Finding]:
        if self.geometry is None:
            data = self._dataset(layout.DATA)
            if data is None:
                yield self._no_images(layout.DATA)
            else:
                yield from self._filters(data)
                yield from self._pixels(data)
                if data.ndim >= 3:
                    yield from self._long_enough(data, 0, layout.DATA)
                else:
                    yield Finding("data", f"{layout.DATA} is {_form(data)}: (events, ss, fs) is wanted")
            return
        for (path, dims), panels in _by_data(self.geometry).items():
            yield from self._image_of(path, dims, panels)

    def _image_of(self, path: str, dims: tuple[str | int, ...], panels: list[Panel]) -> Iterator[Finding]:
        if "%" in path:
            yield Finding("data", f"{path}: a place for each event; it was not looked at")
            return
        data = self._dataset(path)
        if data is None:
            yield self._no_images(path)
            return
        yield from self._filters(data)
        yield from self._pixels(data)
        if "%" not in dims or dims.count("ss") != 1 or dims.count("fs") != 1 or any(isinstance(d, int) for d in dims):
            yield Finding("dims", f"panel {panels[0].name}: axes {dims}; with lists of peaks they are %, ss, fs")
            return
        if data.ndim != len(dims):
            yield Finding("dims", f"{path} has {data.ndim} axes and the geometry {len(dims)}: {dims}")
            return
        yield from self._long_enough(data, dims.index("%"), path)
        rows, columns = data.shape[dims.index("ss")], data.shape[dims.index("fs")]
        outside = [p.name for p in panels if p.max_ss >= rows or p.max_fs >= columns]
        if outside:
            yield Finding("slab", f"panel {outside[0]} lies outside {path} of {rows} x {columns} ({len(outside)} such)")

    def _pixels(self, data: Any) -> Iterator[Finding]:
        if kind_of(data) not in _NUMBERS:
            yield Finding("data", f"{data.name} is {_form(data)}: whole or real numbers are wanted")
        if 0 in data.shape[1:]:
            yield Finding("data", f"{data.name} is {_form(data)}: it has no pixel")

    def _no_images(self, path: str) -> Finding:
        return Finding("data", f"there is no {path}: a file of lists of peaks only, which indexamajig cannot use alone")

    def _long_enough(self, data: Any, axis: int, path: str) -> Iterator[Finding]:
        if data.shape[axis] != len(self.counts):
            yield Finding("events", f"{path} has {data.shape[axis]} events and nPeaks {len(self.counts)}")

    def _numbers(self) -> Iterator[Finding]:
        if self.geometry is None:
            if (ours := self._dataset(layout.PHOTON_ENERGY)) is not None:
                yield from self._value("photon_energy", ours)
            if (ours := self._dataset(layout.CLEN)) is not None:
                yield from self._value("clen", ours)
            return
        for name in ("clen", "photon_energy", "wavelength", "electron_voltage", "detector_shift_x", "detector_shift_y"):
            quantity: Quantity | None = getattr(self.geometry, name)
            if quantity is None or quantity.path is None:
                continue
            found = self._dataset(quantity.path)
            if found is None:
                yield Finding(name, f"the geometry reads {name} from {quantity.path}, which is not there")
            else:
                yield from self._value(name, found)

    def _value(self, name: str, found: Any) -> Iterator[Finding]:
        """Look at numbers of events; all but shifts of the detector must be above 0."""
        yield from self._filters(found)
        if kind_of(found) not in _NUMBERS or found.size not in (1, len(self.counts) or found.size):
            yield Finding(
                name, f"{found.name} is {_form(found)}: a number, or one for each of {len(self.counts)} events"
            )
            return
        values = np.atleast_1d(read_values(found)).ravel()
        good = np.isfinite(values) & ((values > 0) | name.startswith("detector_shift"))
        if name == "clen" and self.geometry is None:
            good |= np.isnan(values)  # unknown: a geometry may know it
        wrong = np.flatnonzero(~good)
        if wrong.size:
            yield Finding(name, f"{name} is {values[wrong[0]]:g} ({wrong.size} such)", int(wrong[0]))

    def _masks(self) -> Iterator[Finding]:
        if self.geometry is None:
            return
        rows, columns = self.geometry.slab_shape
        for path in sorted({m.data for p in self.geometry.panels for m in p.masks if m.data and m.file is None}):
            mask = self._dataset(path)
            if mask is None:
                yield Finding("mask", f"the geometry reads a mask from {path}, which is not there")
                continue
            yield from self._filters(mask)
            if kind_of(mask) not in "iufb":
                yield Finding("mask", f"{path} is {_form(mask)}: numbers are wanted")
                continue
            fits = mask.shape[-2:] >= (rows, columns) and mask.shape[-1] >= columns
            if mask.ndim not in (2, 3) or not fits or (mask.ndim == 3 and len(mask) != len(self.counts)):
                yield Finding("mask", f"{path} is of shape {mask.shape}: ({rows}, {columns}), or that for each event")
        for file in sorted({m.file for p in self.geometry.panels for m in p.masks if m.file}):
            if not Path(file).is_file():
                yield Finding("mask", f"the geometry reads a mask from {file}, which is not there")

    # -- peaks ----------------------------------------------------------------------------------------------------

    def _places(self) -> Iterator[Finding]:
        if self.geometry is None or len(self.tables) < len(_TABLES) or self.group is None:
            return
        if any(isinstance(d, int) for p in self.geometry.panels for d in p.dims):
            self.predicted[:] = 0
            return  # said already: places in the slab are ambiguous
        owner, bad = panel_index(self.geometry), bad_pixels(self.geometry)
        x, y = self.tables["peakXPosRaw"], self.tables["peakYPosRaw"]
        used = self._used(x)
        # CrystFEL adds half a pixel and then asks in which panel it is.
        row, column = np.floor(y + 0.5), np.floor(x + 0.5)
        on = used & (row >= 0) & (row < owner.shape[0]) & (column >= 0) & (column < owner.shape[1])
        at = np.where(on, row, 0).astype(np.intp), np.where(on, column, 0).astype(np.intp)
        inside = on & (owner[at] >= 0)
        self.predicted = inside.sum(axis=1)
        yield from self._first("outside", "in no panel", used & ~inside, x, y)
        yield from self._first("bad pixel", "on a bad pixel", inside & bad[at], x, y)

    def _first(
        self, code: str, what: str, which: NDArray[np.bool_], x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> Iterator[Finding]:
        if which.any():
            event, peak = (int(n) for n in np.argwhere(which)[0])
            place = f"fs {x[event, peak]:.2f}, ss {y[event, peak]:.2f}"
            yield Finding(code, f"{int(which.sum())} peaks are {what}; the first: peak {peak} at {place}", event)

    def _names(self) -> Iterator[Finding]:
        names = self._dataset(layout.IDENTIFIER)
        if names is None or names.ndim != 1:
            return
        if kind_of(names) not in "iufSO" or (kind_of(names) == "O" and h5py.check_string_dtype(names.dtype) is None):
            yield Finding("names", f"{names.name} is {_form(names)}: text is wanted")
            return
        values = np.asarray(read_values(names))
        _, first, how_many = np.unique(values, return_index=True, return_counts=True)
        again = np.flatnonzero(how_many > 1)
        if again.size:
            at = int(first[again[0]])
            yield Finding("names", f"{again.size} names belong to several events, such as {values[at]!r}", at)

    # -- datasets -------------------------------------------------------------------------------------------------

    def _dataset(self, path: str) -> Any:
        found = self.file.get(path)
        if not isinstance(found, h5py.Dataset) or found.shape is None:
            return None
        if found.is_virtual:
            for source in found.virtual_sources():
                self.members.setdefault(source.file_name, path)
        return found

    def _gone(self) -> Iterator[Finding]:
        """Look for the files that a master reads from; HDF5 takes a missing one for zeros and says nothing."""
        here = Path(self.file.filename).parent
        # "." is the file itself; a name with % stands for many.
        gone = [name for name in self.members if name != "." and "%" not in name and not _is_there(name, here)]
        if gone:
            text = f"{self.members[gone[0]]} reads from {gone[0]}, which is not there: its events are empty"
            yield Finding("member", f"{text} ({len(gone)} such files)")

    def _filters(self, dataset: Any) -> Iterator[Finding]:
        made = dataset.id.get_create_plist()
        for number in (made.get_filter(n)[0] for n in range(made.get_nfilters())):
            if number == _LZF:
                yield Finding("filter", f"{dataset.name} is compressed with lzf, which CrystFEL cannot read")
            elif number not in _BUILT_IN:
                yield Finding("filter", f"{dataset.name} needs the HDF5 plugin of filter {number}: "
                                        "set HDF5_PLUGIN_PATH before CrystFEL runs")  # fmt: skip


def _is_there(name: str, here: Path) -> bool:
    """Return whether HDF5 finds a file: beside the master, by its last name there if it was moved, or from here."""
    return any(path.is_file() for path in (here / name, here / Path(name).name, Path(name)))


def _form(dataset: Any) -> str:
    kind = "HDF5's own" if kind_of(dataset) == "?" else str(dataset.dtype)[:60]
    return f"of type {kind} and shape {dataset.shape}"


def _by_data(geometry: Geometry) -> dict[tuple[str, tuple[str | int, ...]], list[Panel]]:
    groups: dict[tuple[str, tuple[str | int, ...]], list[Panel]] = {}
    for panel in geometry.panels:
        groups.setdefault((panel.data, panel.dims), []).append(panel)
    return groups
