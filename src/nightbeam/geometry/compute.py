"""Which pixel is where: between the panels of the data, the slab of a file and the laboratory.

Pixels are counted from 0, and the centre of the first one is (0, 0) in indices and (0.5, 0.5) from its corner.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nightbeam.core.errors import InputError
from nightbeam.geometry.model import (
    MAX_PANELS,
    MAX_SLAB_PIXELS,
    BadRegion,
    Geometry,
    Mask,
    Panel,
    PixelMaps,
    Quantity,
    QuantityName,
)

__all__ = [
    "bad_pixels",
    "beam_radius_px",
    "count_tiles",
    "crystfel_complaints",
    "explicit_origins",
    "for_cxi",
    "panel_index",
    "pixel_maps",
    "placed_panels",
    "slab_of",
    "stacked_origins",
    "tile_origins",
    "to_panel",
    "to_slab",
]

Origins = NDArray[np.intp]
Shape = tuple[int, int, int]

#: Members of a group, and groups, that CrystFEL 0.12 takes.
_MOST_MEMBERS, _MOST_GROUPS = 64, 512
_PANEL_MAP = "name the geometry of this detector, or give the panels' places as geometry.panel_map: [[ss0, fs0], ...]"


# -- panels of the data and the slab ------------------------------------------------------------------------------


def tile_origins(geometry: Geometry, shape: Shape) -> Origins:
    """Return where each panel of the data begins in the slab.

    The slab is cut into tiles of a panel's size, numbered column by column (down, then right); panel p of the data
    is the p-th tile that holds panels of the geometry. Nothing is ever rotated or flipped.

    Parameters
    ----------
    geometry
        Its panels may be parts of a panel of the data, such as ASICs of a module.
    shape : (C, H0, W0)
        Of one event's data. It must come from the data: some wrong shapes also fit.

    Returns
    -------
    (C, 2), intp
        Rows (ss0, fs0): ``slab[ss0:ss0 + H0, fs0:fs0 + W0]`` is panel p.

    Raises
    ------
    InputError
        Naming shape and file, if the tiles do not fit, or panels overlap.
    """
    count, height, width = _checked_shape(shape)
    misfit = f"data of shape ({count}, {height}, {width}) do not fit the geometry {geometry.source}"
    tiles = _tiles(geometry, height, width, misfit)
    if len(tiles) != count:
        raise InputError(f"{misfit}: {len(tiles)} of its tiles hold panels, not {count}", fix=_PANEL_MAP)
    return np.ascontiguousarray(tiles[:, ::-1] * [height, width], dtype=np.intp)


def count_tiles(geometry: Geometry, panel_shape: tuple[int, int]) -> int:
    """Return how many panels the data have, if one of them has so many rows and columns.

    Parameters
    ----------
    panel_shape : (H0, W0)
        Of a panel of the data; the geometry's own panels may be parts of it.

    Raises
    ------
    InputError
        If tiles of this size do not fit the geometry, or panels overlap.
    """
    _, height, width = _checked_shape((1, *panel_shape))
    return len(_tiles(geometry, height, width, f"panels of {height} x {width} do not fit {geometry.source}"))


def _tiles(geometry: Geometry, height: int, width: int, misfit: str) -> NDArray[np.int64]:
    """Return column and row of each tile that holds panels, column by column."""
    _require_one_slab(geometry)
    rows, columns = geometry.slab_shape
    if rows % height or columns % width:
        raise InputError(
            f"{misfit}: its slab of {rows} x {columns} cannot be cut into {height} x {width}", fix=_PANEL_MAP
        )
    bounds = _bounds(geometry)
    ss, fs = bounds[:, :2] // height, bounds[:, 2:] // width
    crossing = (ss[:, 0] != ss[:, 1]) | (fs[:, 0] != fs[:, 1])
    if crossing.any():
        name = geometry.panels[int(np.argmax(crossing))].name
        raise InputError(f"{misfit}: its panel {name} crosses a border of {height} x {width}", fix=_PANEL_MAP)
    return np.unique(np.stack([fs[:, 0], ss[:, 0]], axis=1), axis=0)


def stacked_origins(shape: Shape) -> Origins:
    """Return where each panel begins in a slab of all panels one below the other, as without a geometry.

    Parameters
    ----------
    shape : (C, H0, W0)

    Returns
    -------
    (C, 2), intp
        Rows (p * H0, 0).
    """
    count, height, _ = _checked_shape(shape)
    return np.stack([np.arange(count, dtype=np.intp) * height, np.zeros(count, np.intp)], axis=1)


def explicit_origins(
    panel_map: Sequence[Sequence[int]], shape: Shape, *, slab: tuple[int, int] | None = None
) -> Origins:
    """Return a user's own places of panels, checked.

    Parameters
    ----------
    panel_map
        ``[[ss0, fs0], ...]``, one for each panel of the data.
    shape : (C, H0, W0)
        Of one event's data.
    slab : (SS, FS), optional
        That they must lie in, such as `Geometry.slab_shape`.

    Raises
    ------
    InputError
        If it has another length, something else than whole numbers from 0, leads out of the slab, or panels overlap.
    """
    count, height, width = _checked_shape(shape)
    origins = _pairs(panel_map)
    if len(origins) != count:
        raise InputError(f"panel_map has {len(origins)} places, the data have {count} panels")
    if (origins < 0).any():
        raise InputError("panel_map has a place below 0", fix="give rows and columns of the slab, from 0")
    ends = origins + np.array([height, width])
    rows, columns = slab_of(origins, shape)
    if slab is not None and (rows > slab[0] or columns > slab[1]):
        raise InputError(f"panel_map leads to {rows} x {columns}, the slab is {slab[0]} x {slab[1]}")
    found = _overlap(np.stack([origins[:, 0], ends[:, 0] - 1, origins[:, 1], ends[:, 1] - 1], axis=1))
    if found is not None:
        raise InputError(f"panel_map lets panels {min(found)} and {max(found)} of {height} x {width} overlap")
    return origins


def _pairs(panel_map: Sequence[Sequence[int]]) -> Origins:
    try:
        pairs = [tuple(pair) for pair in panel_map]
    except TypeError:
        pairs = [()]
    if not all(len(pair) == 2 and all(_is_index(n) for n in pair) for pair in pairs):
        raise InputError("panel_map is no list of pairs of whole numbers", fix="write [[ss0, fs0], [ss0, fs0], ...]")
    return np.array(pairs, dtype=np.intp).reshape(-1, 2)


def _is_index(number: object) -> bool:
    # True is an int to Python.
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    return whole and abs(int(number)) <= MAX_SLAB_PIXELS  # type: ignore[call-overload]


def slab_of(origins: Origins, shape: Shape) -> tuple[int, int]:
    """Return rows and columns of the smallest slab that holds all panels.

    Raises
    ------
    InputError
        If it has more than 2**28 pixels.
    """
    rows, columns = (int(n) for n in origins.max(axis=0) + np.array(shape[1:]))
    if rows * columns > MAX_SLAB_PIXELS:
        raise InputError(f"a slab of {rows} x {columns} is larger than {MAX_SLAB_PIXELS} pixels")
    return rows, columns


def to_slab(origins: Origins, panel: ArrayLike, y: ArrayLike, x: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return where points of panels are in the slab: (ss, fs).

    Parameters
    ----------
    origins : (C, 2)
    panel : (n,), int
    y, x : (n,), pixel indices
        Within the panel.
    """
    begin = origins[np.asarray(panel)]
    return begin[..., 0] + np.asarray(y), begin[..., 1] + np.asarray(x)


def to_panel(
    origins: Origins, shape: Shape, ss: ArrayLike, fs: ArrayLike
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Return which panels hold points of the slab, and where: (panel, y, x).

    Parameters
    ----------
    origins : (C, 2)
    shape : (C, H0, W0)
    ss, fs : (n,), pixel indices
        A pixel reaches from half a pixel before its index to half a pixel behind it.

    Returns
    -------
    (n,) each
        -1 and NaN where there is no panel.
    """
    ss_, fs_ = (np.atleast_1d(np.asarray(v, float)) for v in (ss, fs))
    panel = np.full(ss_.shape, -1, np.intp)
    for index, (ss0, fs0) in enumerate(origins):
        y, x = ss_ + 0.5 - ss0, fs_ + 0.5 - fs0
        panel[(y >= 0) & (y < shape[1]) & (x >= 0) & (x < shape[2])] = index
    y, x = (np.where(panel < 0, np.nan, v - origins[panel, axis]) for axis, v in enumerate((ss_, fs_)))
    return panel, y, x


def _checked_shape(shape: Sequence[int]) -> Shape:
    if len(shape) != 3 or not all(_is_index(n) and n > 0 for n in shape):
        raise InputError(f"the data's shape is {tuple(shape)}: (panels, rows, columns) is wanted")
    count, height, width = (int(n) for n in shape)
    if count > MAX_PANELS or count * height * width > MAX_SLAB_PIXELS:
        limits = f"{MAX_PANELS} panels or {MAX_SLAB_PIXELS} pixels"
        raise InputError(f"data of shape ({count}, {height}, {width}) are larger than {limits}")
    return count, height, width


# -- maps of the slab ---------------------------------------------------------------------------------------------


def placed_panels(geometry: Geometry) -> tuple[Panel, ...]:
    """Return the panels where the detector stands in the laboratory.

    ``detector_shift_x`` and ``_y``, where they are numbers, are added to the panels' corners, as CrystFEL does
    (libcrystfel, ``create_detgeom``: ``cnx += shift_x / pixel_pitch``). One that is kept in the data file is not known
    here and not looked at.
    """
    x, y = (0.0 if shift is None or shift.base is None else shift.base
            for shift in (geometry.detector_shift_x, geometry.detector_shift_y))  # fmt: skip
    if x == y == 0.0:
        return geometry.panels
    return tuple(replace(p, corner_x=p.corner_x + x * p.res, corner_y=p.corner_y + y * p.res) for p in geometry.panels)


def panel_index(geometry: Geometry) -> NDArray[np.int16]:
    """Return which panel of the geometry each pixel of the slab is of; -1 where there is none.

    Raises
    ------
    InputError
        If panels overlap in the slab.
    """
    _require_one_slab(geometry)
    index = np.full(geometry.slab_shape, -1, np.int16)
    for number, panel in enumerate(geometry.panels):
        index[panel.slices] = number
    return index


def bad_pixels(geometry: Geometry) -> NDArray[np.bool_]:
    """Return the pixels of the slab that are bad by the geometry alone.

    Those are gaps between panels, panels with ``no_index``, borders (``mask_edge_pixels``) and bad regions. Masks in
    files, and values, are not looked at.

    Returns
    -------
    (SS, FS), bool

    Raises
    ------
    InputError
        If panels overlap in the slab.
    """
    _require_one_slab(geometry)
    bad = np.ones(geometry.slab_shape, bool)
    for panel in geometry.panels:
        if not panel.no_index:
            edge = panel.mask_edge_pixels
            rows, columns = panel.shape
            bad[panel.slices][edge : max(rows - edge, 0), edge : max(columns - edge, 0)] = False
    lab = _LabRegions(geometry)
    for region in geometry.bad:
        if region.slices is not None:
            bad[region.slices] = True
        else:
            lab.mark(region, bad)
    return bad


class _LabRegions:
    """Rectangles of the laboratory in the slab; only pixels near them are looked at."""

    def __init__(self, geometry: Geometry) -> None:
        self.panels = placed_panels(geometry)
        self.corners = np.array([(p.corner_x, p.corner_y) for p in self.panels])
        axes = np.array([[(p.fs[0], p.ss[0]), (p.fs[1], p.ss[1])] for p in self.panels])
        determinant = axes[:, 0, 0] * axes[:, 1, 1] - axes[:, 0, 1] * axes[:, 1, 0]
        adjugate = np.stack([axes[:, 1, 1], -axes[:, 0, 1], -axes[:, 1, 0], axes[:, 0, 0]], axis=1).reshape(-1, 2, 2)
        # Axes that are nearly parallel cannot be inverted with any certainty.
        lengths = np.linalg.norm(axes, axis=1).prod(axis=1)
        determinant[abs(determinant) <= 1e-6 * lengths] = np.nan
        self.inverse = adjugate / determinant[:, None, None]
        self.ends = np.array([(p.shape[1], p.shape[0]) for p in self.panels])
        reach = axes * self.ends[:, None, :]
        self.low = self.corners + np.minimum(reach, 0).sum(axis=2)
        self.high = self.corners + np.maximum(reach, 0).sum(axis=2)

    def mark(self, region: BadRegion, bad: NDArray[np.bool_]) -> None:
        """Mark the pixels of one region."""
        if region.lab is None:
            return
        first, last = region.lab[::2], region.lab[1::2]
        near = np.flatnonzero(((self.low - 1 < last) & (self.high + 1 > first)).all(axis=1))
        begin, end = self._windows(region.lab, near)
        for number, (fs0, ss0), (fs1, ss1) in zip(near, begin, end, strict=True):
            self._mark_panel(self.panels[number], (ss0, ss1, fs0, fs1), region.lab, bad)

    def _windows(self, lab: tuple[float, float, float, float], near: Origins) -> tuple[Origins, Origins]:
        # The rectangle's corners in each panel's own axes; a panel seen edge on has none: all of it is looked at.
        corners, ends = np.array(list(itertools.product(lab[:2], lab[2:]))), self.ends[near]
        with np.errstate(invalid="ignore", over="ignore"):
            own = np.einsum("pij,pkj->pki", self.inverse[near], corners[None] - self.corners[near, None])
        low, high = own.min(axis=1) - 1, own.max(axis=1) + 2
        lost = ~(np.isfinite(low) & np.isfinite(high)).all(axis=1, keepdims=True)
        begin = np.clip(np.where(lost, 0, low), 0, ends)
        end = np.clip(np.where(lost, ends, high), 0, ends)
        return begin.astype(np.intp), np.ceil(end).astype(np.intp)

    @staticmethod
    def _mark_panel(
        panel: Panel, window: tuple[int, int, int, int], lab: tuple[float, ...], bad: NDArray[np.bool_]
    ) -> None:
        ss0, ss1, fs0, fs1 = window
        x, y = _lab_xy(panel, np.arange(ss0, ss1, dtype=float), np.arange(fs0, fs1, dtype=float))
        inside = (x > lab[0]) & (x < lab[1]) & (y > lab[2]) & (y < lab[3])
        bad[panel.slices][ss0:ss1, fs0:fs1] |= inside


def _lab_xy(
    panel: Panel, ss: NDArray[np.float64], fs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y in pixels of a grid of points, rows and columns from the panel's corner."""
    x = (panel.corner_x + fs * panel.fs[0])[None, :] + (ss * panel.ss[0])[:, None]
    y = (panel.corner_y + fs * panel.fs[1])[None, :] + (ss * panel.ss[1])[:, None]
    return x, y


#: Rows that are worked on at a time: maps of large panels are made without a second one beside them.
_ROWS = 512


def _centres(panel: Panel) -> Iterator[tuple[tuple[slice, slice], NDArray[np.float64], NDArray[np.float64]]]:
    """Yield blocks of a panel: where in the slab, and rows and columns of the pixel centres from the corner."""
    rows, columns = panel.shape
    fs = np.arange(columns, dtype=np.float64) + 0.5
    for begin in range(0, rows, _ROWS):
        end = min(begin + _ROWS, rows)
        place = slice(panel.min_ss + begin, panel.min_ss + end), panel.slices[1]
        yield place, np.arange(begin, end, dtype=np.float64) + 0.5, fs


def pixel_maps(geometry: Geometry, *, clen_m: float) -> PixelMaps:
    """Return where the centre of every pixel lies.

    Parameters
    ----------
    geometry
        A shift of the detector that is a number counts. Camera lengths of panels of their own are not looked at.
    clen_m
        Camera length; each panel's ``coffset`` is added.

    Raises
    ------
    InputError
        If panels overlap in the slab, or the camera length is no number.
    """
    if not math.isfinite(clen_m):
        raise InputError(f"the camera length is {clen_m}: metres are wanted")
    _require_one_slab(geometry)
    maps = PixelMaps(*(np.full(geometry.slab_shape, np.nan, np.float32) for _ in range(3)))
    for panel in placed_panels(geometry):
        for place, ss, fs in _centres(panel):
            x, y = _lab_xy(panel, ss, fs)
            depth = (fs * panel.fs[2])[None, :] + (ss * panel.ss[2])[:, None]
            maps.x[place], maps.y[place] = x / panel.res, y / panel.res
            maps.z[place] = clen_m + panel.coffset + depth / panel.res
    return maps


def beam_radius_px(geometry: Geometry) -> NDArray[np.float32]:
    """Return how far the centre of every pixel is from the beam, across it, in pixels; NaN where there is no panel.

    A shift of the detector that is a number counts, see `placed_panels`.

    Returns
    -------
    (SS, FS), float32

    Raises
    ------
    InputError
        If panels overlap in the slab.
    """
    _require_one_slab(geometry)
    radius = np.full(geometry.slab_shape, np.nan, np.float32)
    for panel in placed_panels(geometry):
        for place, ss, fs in _centres(panel):
            radius[place] = np.hypot(*_lab_xy(panel, ss, fs))
    return radius


def _bounds(geometry: Geometry) -> NDArray[np.int64]:
    return np.array([(p.min_ss, p.max_ss, p.min_fs, p.max_fs) for p in geometry.panels], dtype=np.int64)


def _require_one_slab(geometry: Geometry) -> None:
    rows, columns = geometry.slab_shape
    if rows * columns > MAX_SLAB_PIXELS:
        raise InputError(
            f"{geometry.source} has a slab of {rows} x {columns}, more than {MAX_SLAB_PIXELS} pixels",
            fix="correct max_ss and max_fs",
        )
    found = _overlap(_bounds(geometry))
    if found is not None:
        first, second = (geometry.panels[number] for number in found)
        own_axis = first.dims != second.dims or first.data != second.data
        raise InputError(
            f"{geometry.source}: panels {first.name} and {second.name} have pixels of the slab in common"
            + (", they differ in dataset or index" if own_axis else ""),
            fix="use a geometry whose panels lie side by side in one array of rows and columns",
        )


def _overlap(bounds: NDArray[np.int64]) -> tuple[int, int] | None:
    """Return two rectangles (first and last row, first and last column) that have a pixel in common."""
    order = np.argsort(bounds[:, 0], kind="stable")
    ss0, ss1, fs0, fs1 = bounds[order].T
    ends = np.searchsorted(ss0, ss1, side="right")
    for number, end in enumerate(ends):  # the others that begin before this one ends
        rest = slice(number + 1, end)
        hits = np.flatnonzero((fs0[rest] <= fs1[number]) & (fs1[rest] >= fs0[number]))
        if len(hits):
            pair = sorted((int(order[number]), int(order[number + 1 + hits[0]])))
            return pair[0], pair[1]
    return None


# -- what CrystFEL makes of it ------------------------------------------------------------------------------------


def crystfel_complaints(geometry: Geometry) -> tuple[str, ...]:
    """Return why CrystFEL 0.12 would refuse the geometry; empty if it would not."""
    return (*geometry.refused, *_missing(geometry), *_panel_complaints(geometry), *_group_complaints(geometry))


def _missing(geometry: Geometry) -> Iterator[str]:
    if geometry.photon_energy is None and geometry.wavelength is None and geometry.electron_voltage is None:
        yield "the wavelength is not given (wavelength, photon_energy or electron_voltage)"
    if geometry.clen is None:
        yield "the camera length (clen) is not given"


def _panel_complaints(geometry: Geometry) -> Iterator[str]:
    own = [p.name for p in geometry.panels if p.clen is not None]
    if own:
        yield f"clen belongs to the top level, not to panel {_named(own)}"
    gainless = [p.name for p in geometry.panels if p.adu_per_ev is None and p.adu_per_photon is None]
    if gainless:
        yield f"neither adu_per_eV nor adu_per_photon is given for panel {_named(gainless)}"


def _group_complaints(geometry: Geometry) -> Iterator[str]:
    if not geometry.groups and len(geometry.panels) > _MOST_MEMBERS:
        yield f"{len(geometry.panels)} panels without groups: CrystFEL puts {_MOST_MEMBERS} in one group at most"
    large = [name for name, members in geometry.groups.items() if len(members) > _MOST_MEMBERS]
    if large:
        yield f"more than {_MOST_MEMBERS} members in group {_named(large)}"
    if len(geometry.groups) > _MOST_GROUPS:
        yield f"{len(geometry.groups)} groups, {_MOST_GROUPS} at most"


def _named(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


# -- the companion of a CXI file ----------------------------------------------------------------------------------


#: Where a CXI file of ours has them.
_CLEN = "/LCLS/detector_1/EncoderValue"
_PHOTON_ENERGY = "/LCLS/photon_energy_eV"


def for_cxi(
    geometry: Geometry,
    *,
    data: str = "/entry_1/data_1/data",
    mask: str | None = "/entry_1/data_1/mask",
    peak_list: str = "/entry_1/result_1",
    clen: str | float | None = None,
    photon_energy: str | float | None = None,
    base: Path | None = None,
) -> Geometry:
    """Return the geometry that goes with CXI files of one slab an event, for CrystFEL and its peak lists.

    Parameters
    ----------
    geometry
        Panels, places and bad regions stay as they are. What points into files of another layout (masks, saturation
        maps, energy, camera length) is left out or replaced, and said so; masks in files of their own stay.
    data, mask, peak_list
        Where the file has them; no mask: None.
    clen
        As in a geometry file (``0.1``, ``95 mm``, a path), or metres. By default what the geometry says if that is a
        number, or else ``/LCLS/detector_1/EncoderValue`` (mm).
    photon_energy
        Likewise, or eV; ``/LCLS/photon_energy_eV``.
    base
        Folder that relative names of mask and saturation files start from; they become absolute, because the companion
        stands elsewhere. By default that of the geometry's file; they stay as they are if it came from none.

    Returns
    -------
    Geometry
        With ``adu_per_photon = 1`` where no gain is given, and groups if there are more than 64 panels. Obsolete keys
        are replaced.

    Raises
    ------
    InputError
        If panels are told apart by a fixed index of an axis, or overlap in the slab, or have camera lengths of their
        own in files.
    """
    _require_no_panel_axis(geometry)
    _require_one_slab(geometry)
    notes: list[str] = []
    folder = _folder(geometry) if base is None else base.absolute()
    made = _hoist_clen(geometry, notes)
    made = _set_energy(replace(made, clen=_length(made.clen, clen, notes)), photon_energy, notes)
    return replace(
        made,
        panels=tuple(_cxi_panel(_with_absolute_files(p, folder), data, mask) for p in made.panels),
        peak_list=peak_list,
        peak_list_type="cxi",
        groups=_cxi_groups(made),
        refused=(),
        warnings=(*notes, *_left_out(geometry, mask), *_shifts_in_files(geometry)),
    )


def _folder(geometry: Geometry) -> Path | None:
    source = Path(geometry.source)
    return source.absolute().parent if source.is_file() else None


def _with_absolute_files(panel: Panel, folder: Path | None) -> Panel:
    if folder is None:
        return panel
    saturation = panel.saturation_map_file
    return replace(
        panel,
        masks=tuple(m if m.file is None else replace(m, file=str(folder / m.file)) for m in panel.masks),
        saturation_map_file=None if saturation is None else str(folder / saturation),
    )


def _require_no_panel_axis(geometry: Geometry) -> None:
    for panel in geometry.panels:
        fixed = [f"dim{axis} = {what}" for axis, what in enumerate(panel.dims) if isinstance(what, int)]
        if fixed:
            raise InputError(
                f"{geometry.source}: panel {panel.name} has {fixed[0]}; CXI peak lists know one slab only",
                fix="use a geometry of the slab: panels side by side, dims %, ss, fs",
            )


def _hoist_clen(geometry: Geometry, notes: list[str]) -> Geometry:
    """Make one camera length of the panels' own, as CrystFEL wants; what they differ by goes into ``coffset``."""
    own = {p.clen for p in geometry.panels if p.clen is not None}
    if not own:
        return geometry
    common = geometry.clen or next(p.clen for p in geometry.panels if p.clen is not None)
    panels = tuple(_with_common_clen(p, p.clen or common, common, geometry.source) for p in geometry.panels)
    notes.append("clen of single panels is one clen now; what they differ by is in coffset")
    return replace(geometry, panels=panels, clen=common)


def _with_common_clen(panel: Panel, own: Quantity, common: Quantity, source: str) -> Panel:
    if own == common:
        return replace(panel, clen=None)
    if own.base is None or common.base is None:
        raise InputError(
            f"{source}: panels have camera lengths at several places of the file, among them {panel.name}",
            fix="write one clen on the top level, and the differences as coffset",
        )
    return replace(panel, clen=None, coffset=panel.coffset + own.base - common.base)


def _length(found: Quantity | None, asked: str | float | None, notes: list[str]) -> Quantity:
    if asked is not None:
        return _asked("clen", asked)
    if found is not None and (found.path is None or found == Quantity(_CLEN, "mm")):
        return found
    if found is not None:
        notes.append(f"clen is read from {_CLEN} (mm), not from {found.path} ({found.unit})")
    return Quantity(_CLEN, "mm")


def _set_energy(geometry: Geometry, asked: str | float | None, notes: list[str]) -> Geometry:
    if asked is not None:
        energy = _asked("photon_energy", asked)
        return replace(geometry, photon_energy=energy, wavelength=None, electron_voltage=None)
    given = geometry.photon_energy or geometry.wavelength or geometry.electron_voltage
    if given is not None and (given.path is None or given == Quantity(_PHOTON_ENERGY, "eV")):
        return geometry
    if given is not None:
        notes.append(f"photon_energy is read from {_PHOTON_ENERGY} (eV), not from {given.path} ({given.unit})")
    energy = Quantity(_PHOTON_ENERGY, "eV")
    return replace(geometry, photon_energy=energy, wavelength=None, electron_voltage=None)


def _asked(name: QuantityName, asked: str | float) -> Quantity:
    return Quantity.parse(name, asked if isinstance(asked, str) else repr(float(asked)))


def _cxi_panel(panel: Panel, data: str, mask: str | None) -> Panel:
    own = [m for m in panel.masks if m.file is not None]
    first = [] if mask is None else [Mask(0, mask, None, 0x0000, 0xFFFF)]
    if len(own) + len(first) > 8:
        raise InputError(f"panel {panel.name} has {len(own)} masks in files, and 8 is the most", fix="leave one out")
    gain = panel.adu_per_ev is None and panel.adu_per_photon is None
    return replace(
        panel,
        data=data,
        dims=("%", "ss", "fs"),
        masks=tuple(replace(m, number=n) for n, m in enumerate([*first, *own])),
        saturation_map=panel.saturation_map if panel.saturation_map_file else None,
        adu_per_photon=1.0 if gain else panel.adu_per_photon,
        extra={name: text for name, text in panel.extra.items() if name != "badrow_direction"},
    )


def _left_out(geometry: Geometry, mask: str | None) -> Iterator[str]:
    masks = {m.data for p in geometry.panels for m in p.masks if m.file is None and m.data and m.data != mask}
    for path in sorted(masks):
        yield f"the mask {path} of the data file is left out"
    maps = {p.saturation_map for p in geometry.panels if p.saturation_map and not p.saturation_map_file}
    for path in sorted(maps):
        yield f"the saturation map {path} of the data file is left out"


def _shifts_in_files(geometry: Geometry) -> Iterator[str]:
    for name in ("detector_shift_x", "detector_shift_y"):
        shift: Quantity | None = getattr(geometry, name)
        if shift is not None and shift.path is not None:
            yield f"{name} is read from {shift.path}, which the file must have"


def _cxi_groups(geometry: Geometry) -> dict[str, tuple[str, ...]]:
    """Return the groups there are if CrystFEL takes them, or else new ones, from the bottom up."""
    if not any(_group_complaints(geometry)):
        return dict(geometry.groups)
    groups: dict[str, tuple[str, ...]] = {}
    names = [p.name for p in geometry.panels]
    taken = set(names)
    parts = _modules(names)
    for level in itertools.count():
        members = [_new_name(f"g{level}_{number}", taken) for number in range(len(parts))]
        groups |= dict(zip(members, parts, strict=True))
        if len(members) <= _MOST_MEMBERS:
            return groups | {_new_name("all", taken): tuple(members)}
        parts = _chunks(members)
    raise AssertionError("a count has no end")


def _new_name(wish: str, taken: set[str]) -> str:
    while wish in taken:
        wish += "_"
    taken.add(wish)
    return wish


def _modules(names: list[str]) -> list[tuple[str, ...]]:
    # p3a0 to p3a7 are one module; where names do not say so, neighbours are together.
    modules = [tuple(part) for _, part in itertools.groupby(names, lambda name: re.sub(r"\d+$", "", name))]
    if len(modules) > _MOST_MEMBERS or max(map(len, modules)) > _MOST_MEMBERS:
        return _chunks(names)
    return modules


def _chunks(names: list[str]) -> list[tuple[str, ...]]:
    return [tuple(names[at : at + _MOST_MEMBERS]) for at in range(0, len(names), _MOST_MEMBERS)]
