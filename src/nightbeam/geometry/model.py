"""What a detector is made of: panels of a data slab, where they lie in the laboratory, and what of them is bad.

"fs" is the fast axis (a column of the slab), "ss" the slow one (a row). The slab is the 2-D array of one event.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

from nightbeam.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MAX_PANELS",
    "MAX_SLAB_PIXELS",
    "BadRegion",
    "Flag",
    "Geometry",
    "Mask",
    "Panel",
    "PeakListType",
    "PixelMaps",
    "Quantity",
    "QuantityName",
]

#: Pixels of a slab at most, some ten times the largest detector: a file's numbers decide how much is allocated.
MAX_SLAB_PIXELS = 2**28
#: Panels at most: their numbers are stored in 16 bits.
MAX_PANELS = 2**15 - 1

PeakListType = Literal["auto", "cxi", "list3"]
QuantityName = Literal[
    "clen", "photon_energy", "wavelength", "electron_voltage", "detector_shift_x", "detector_shift_y"
]
Vector = tuple[float, float, float]

_LENGTHS = {"m": 1.0, "mm": 1e-3}
_UNITS: Mapping[QuantityName, Mapping[str, float]] = {
    "clen": _LENGTHS,
    "photon_energy": {"eV": 1.0, "keV": 1e3},
    "wavelength": {"m": 1.0, "A": 1e-10},
    "electron_voltage": {"V": 1.0, "kV": 1e3},
    "detector_shift_x": _LENGTHS,
    "detector_shift_y": _LENGTHS,
}
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
#: Neither a number nor a path: 0.1m, 0,1 or nan.
_NO_NUMBER = re.compile(r"[+-]?(?:[\d.]|(?:nan|inf|infinity)$)|[+-]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its unit, or where in the data file the number is.

    Attributes
    ----------
    value
        The number, or the path of a dataset.
    unit
        That the number is in, there or here; also where the file leaves it out.
    """

    value: float | str
    unit: str

    @property
    def path(self) -> str | None:
        """Where in the data file it is; None if the number is here."""
        return self.value if isinstance(self.value, str) else None

    @property
    def scale(self) -> float:
        """What a number in this unit is multiplied with to be in m, eV or V."""
        return next(units[self.unit] for units in _UNITS.values() if self.unit in units)

    @property
    def base(self) -> float | None:
        """The number in m, eV or V; None if it is in the data file."""
        return None if isinstance(self.value, str) else self.value * self.scale

    @classmethod
    def parse(cls, name: QuantityName, text: str) -> Self:
        """Read what stands behind ``name =`` in a geometry file.

        Parameters
        ----------
        name
            Decides which units there are, and which is meant where none is given: a camera length without a unit
            is in metres if it is a number, and in millimetres if it is a path.
        text
            For example ``0.1``, ``95.3 mm``, ``/LCLS/detector_1/EncoderValue`` or ``9.5 keV``.

        Raises
        ------
        InputError
            If the unit is unknown or missing, or the number is none.
        """
        words = text.split()
        if not 1 <= len(words) <= 2:
            raise InputError(f"{name} is {text[:60]!r}", fix="give a number or a path, and a unit behind it")
        value: float | str = words[0]
        if _NUMBER.fullmatch(words[0]):
            value = float(words[0])
        if value in (math.inf, -math.inf) or (isinstance(value, str) and _NO_NUMBER.match(value)):
            raise InputError(
                f"{name} is {text[:60]!r}, no finite number and no path", fix="put a blank between number and unit"
            )
        return cls(value, _unit(name, words[1:], is_path=isinstance(value, str)))

    def written(self, name: QuantityName) -> str:
        """Return what stands behind ``name =``; the unit is left out where it is understood."""
        value = self.value if isinstance(self.value, str) else repr(self.value)
        understood = _understood(name, is_path=isinstance(self.value, str))
        return value if self.unit == understood else f"{value} {self.unit}"


def _understood(name: QuantityName, *, is_path: bool) -> str | None:
    if name == "clen":
        return "mm" if is_path else "m"
    return {"photon_energy": "eV", "detector_shift_x": "m", "detector_shift_y": "m"}.get(name)


def _unit(name: QuantityName, given: list[str], *, is_path: bool) -> str:
    unit = given[0] if given else _understood(name, is_path=is_path)
    wanted = " or ".join(_UNITS[name])
    if unit is None:
        raise InputError(f"{name} has no unit", fix=f"write {wanted} behind the value")
    if unit not in _UNITS[name]:
        raise InputError(f"{name} has the unit {unit!r}", fix=f"give it in {wanted}")
    return unit


@dataclass(frozen=True, slots=True)
class Mask:
    """A map of bad pixels that is kept in a file: bad if ``(v & good) != good`` or ``(v & bad) != 0``.

    Attributes
    ----------
    number
        0 to 7; a panel may have several.
    data
        Path of the dataset.
    file
        File that holds it; None: the data file itself.
    good, bad
        Bits that must be set, and that must not.
    """

    number: int
    data: str | None = None
    file: str | None = None
    good: int = 0
    bad: int = 0


@dataclass(frozen=True, slots=True)
class Flag:
    """Pixels of a certain value are bad: those below, above, or at it."""

    kind: Literal["lessthan", "morethan", "equal"]
    value: float


@dataclass(frozen=True, slots=True)
class Panel:
    """A rectangle of the slab whose pixels lie on one regular grid in the laboratory.

    Attributes
    ----------
    min_fs, max_fs, min_ss, max_ss
        First and last column and row in the slab, both included.
    corner_x, corner_y : pixels
        Outer corner of its first pixel in the laboratory.
    fs, ss : (x, y, z), pixels
        Where one pixel further leads.
    res : pixels per metre
    coffset : m
        Added to the camera length.
    data
        Path of the dataset; ``%`` as an element stands for the event.
    dims
        What each axis of the dataset is: ``ss``, ``fs``, ``%`` (the event) or a fixed index.
    adu_per_ev, adu_per_photon
        One of them at most.
    no_index
        The whole panel is bad.
    mask_edge_pixels
        Width of a border that is bad.
    clen
        A camera length of its own, as old files have it; CrystFEL refuses it now.
    extra
        Fields that mean nothing to us, as they stand in the file.
    """

    name: str
    min_fs: int
    max_fs: int
    min_ss: int
    max_ss: int
    corner_x: float
    corner_y: float
    fs: Vector
    ss: Vector
    res: float
    coffset: float = 0.0
    data: str = "/data/data"
    dims: tuple[str | int, ...] = ("ss", "fs")
    adu_per_ev: float | None = None
    adu_per_photon: float | None = None
    masks: tuple[Mask, ...] = ()
    saturation_map: str | None = None
    saturation_map_file: str | None = None
    max_adu: float = math.inf
    flags: tuple[Flag, ...] = ()
    mask_edge_pixels: int = 0
    no_index: bool = False
    clen: Quantity | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.max_ss - self.min_ss + 1, self.max_fs - self.min_fs + 1

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its place in the slab."""
        return slice(self.min_ss, self.max_ss + 1), slice(self.min_fs, self.max_fs + 1)


@dataclass(frozen=True, slots=True)
class BadRegion:
    """Bad pixels: a rectangle in the laboratory, over all panels, or one of a panel's pixels.

    Attributes
    ----------
    min_x, max_x, min_y, max_y : pixels
        A pixel is bad whose first corner is inside, limits excluded. If one is None, none is.
    min_fs, max_fs, min_ss, max_ss
        Columns and rows of the slab, limits included; None in a laboratory region.
    panel
        Whose pixels they are.
    extra
        Fields that mean nothing to us.
    """

    name: str
    panel: str | None = None
    min_x: float | None = None
    max_x: float | None = None
    min_y: float | None = None
    max_y: float | None = None
    min_fs: int | None = None
    max_fs: int | None = None
    min_ss: int | None = None
    max_ss: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_lab(self) -> bool:
        """Whether it is a rectangle in the laboratory."""
        return self.min_fs is None

    @property
    def lab(self) -> tuple[float, float, float, float] | None:
        """(min_x, max_x, min_y, max_y), or None if one of them is missing."""
        if self.min_x is None or self.max_x is None or self.min_y is None or self.max_y is None:
            return None
        return self.min_x, self.max_x, self.min_y, self.max_y

    @property
    def slices(self) -> tuple[slice, slice] | None:
        """Its place in the slab, or None for a laboratory region."""
        if self.min_ss is None or self.max_ss is None or self.min_fs is None or self.max_fs is None:
            return None
        return slice(self.min_ss, self.max_ss + 1), slice(self.min_fs, self.max_fs + 1)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A geometry file's contents.

    Attributes
    ----------
    panels
        In the order of their first mention.
    bad
        Bad regions, in the same order.
    clen, photon_energy, wavelength, electron_voltage, detector_shift_x, detector_shift_y
        As given, or None.
    bandwidth
        Relative; None if not given.
    peak_list, peak_list_type
        Where CrystFEL finds peaks in the data file.
    groups
        Name to members, panels or groups before it.
    rigid_groups, rigid_group_collections
        The older form, which CrystFEL does not look at any more.
    extra
        Top-level keys that mean nothing to us.
    refused
        What CrystFEL 0.12 refuses in the text and what is no part of the contents, such as defaults behind the last
        panel. No part of a comparison, like the next two.
    warnings
        What somebody should look at.
    source
        The file, for messages.
    """

    panels: tuple[Panel, ...]
    bad: tuple[BadRegion, ...] = ()
    clen: Quantity | None = None
    photon_energy: Quantity | None = None
    wavelength: Quantity | None = None
    electron_voltage: Quantity | None = None
    detector_shift_x: Quantity | None = None
    detector_shift_y: Quantity | None = None
    bandwidth: float | None = None
    peak_list: str | None = None
    peak_list_type: PeakListType | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rigid_groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rigid_group_collections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    refused: tuple[str, ...] = field(default=(), compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
    source: str = field(default="geometry", compare=False)

    @property
    def slab_shape(self) -> tuple[int, int]:
        """Rows and columns (SS, FS) of the array that holds all panels."""
        return max(p.max_ss for p in self.panels) + 1, max(p.max_fs for p in self.panels) + 1


@dataclass(frozen=True, slots=True, eq=False)
class PixelMaps:
    """Where the centre of every pixel lies; NaN where there is no panel.

    Attributes
    ----------
    x, y, z : (SS, FS), float32, m
        +z along the beam, +y up, right-handed; the interaction point is the origin.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    z: NDArray[np.float32]
