"""Where everything is in a CXI file: the layout, as data.

Nothing else in the program knows a path of a file, its type or its shape. A name of an axis stands for a length:
``event`` for the events of the file, ``peak`` for the widest of them (at least 1), ``ss`` and ``fs`` for the slab.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from nightbeam.core.errors import ConfigError

__all__ = [
    "CLEN",
    "COPIED",
    "DATA",
    "IDENTIFIER",
    "LAYOUT",
    "LINKS",
    "MASK",
    "N_PEAKS",
    "PEAK_X",
    "PEAK_Y",
    "PHOTON_ENERGY",
    "POWDER_HITS",
    "POWDER_MISSES",
    "RESULT",
    "SEGMENTATION",
    "STATIC",
    "TIMESTAMP",
    "TOTAL_INTENSITY",
    "WAVELENGTH",
    "Axis",
    "Condition",
    "Dataset",
    "attributes_of",
    "check_names",
    "shape_of",
    "wanted",
]

Axis = Literal["event", "peak", "ss", "fs"]
#: When a dataset is in a file. ``images``: these are written. ``geometry``: there is one. ``mask``: there is one.
#: ``pixel size``, ``distance``: they are known. ``clen``, ``timestamps``, ``clock``: of at least one event.
#: ``segmentation``: maps are asked for. ``cheetah``, ``psocake``: what their programs want; ``not cheetah``: the
#: opposite.
Condition = Literal[
    "images", "geometry", "mask", "pixel size", "distance", "clen", "timestamps", "clock", "segmentation",
    "cheetah", "not cheetah", "psocake",
]  # fmt: skip

DATA: Final = "/entry_1/data_1/data"
MASK: Final = "/entry_1/data_1/mask"
POWDER_HITS: Final = "/entry_1/data_1/powderHits"
POWDER_MISSES: Final = "/entry_1/data_1/powderMisses"
RESULT: Final = "/entry_1/result_1"
N_PEAKS: Final = f"{RESULT}/nPeaks"
PEAK_X: Final = f"{RESULT}/peakXPosRaw"
PEAK_Y: Final = f"{RESULT}/peakYPosRaw"
TOTAL_INTENSITY: Final = f"{RESULT}/peakTotalIntensity"
SEGMENTATION: Final = f"{RESULT}/segmentation_map"
IDENTIFIER: Final = "/entry_1/experiment_identifier"
PHOTON_ENERGY: Final = "/LCLS/photon_energy_eV"
WAVELENGTH: Final = "/LCLS/photon_wavelength_A"
CLEN: Final = "/LCLS/detector_1/EncoderValue"
TIMESTAMP: Final = "/LCLS/detector_1/timestamp"
#: Metadata that the configuration asks to keep: one value for each event, and one for the file.
COPIED: Final = "/LCLS"
STATIC: Final = "/entry_1/static"

#: What CXI and its readers call the axes.
_AXES: Final[Mapping[str, str]] = {"event": "experiment_identifier", "peak": "nPeaks", "ss": "y", "fs": "x"}


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset of a file.

    Attributes
    ----------
    path
        Within the file.
    dtype
        As numpy names it; ``S`` is a fixed string as long as the longest, ``output`` what the plan says.
    axes
        None: a scalar.
    who
        Who needs it: C CrystFEL, c CrystFEL if the geometry names it, V cxiview, L psocake and LUTE, U the existing
        writer of the pipeline, X the CXI format.
    when
        All of these must hold.
    unit
        Of the numbers.
    value
        Of a constant.
    compressed
        Always; its pixels are nearly all the same.
    attributes
        Besides ``axes`` and ``units``.
    """

    path: str
    dtype: str
    axes: tuple[Axis, ...]
    who: str
    when: tuple[Condition, ...] = ()
    unit: str = ""
    value: int | None = None
    compressed: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of its path; no two datasets share one."""
        return self.path.rsplit("/", 1)[1]


def _peaks(names: str, who: str, *when: Condition, unit: str = "") -> tuple[Dataset, ...]:
    return tuple(Dataset(f"{RESULT}/{n}", "float32", ("event", "peak"), who, when, unit) for n in names.split())


_DETECTOR: Final = "/entry_1/instrument_1/detector_1"
_STACK: Final[tuple[Axis, ...]] = ("event", "ss", "fs")
_SLAB: Final[tuple[Axis, ...]] = ("ss", "fs")
_EACH: Final[tuple[Axis, ...]] = ("event",)

#: All of it, in the order in which it is written.
LAYOUT: Final[tuple[Dataset, ...]] = (
    Dataset("/cxi_version", "int32", (), "X", value=160),
    Dataset(DATA, "output", _STACK, "C V L U", ("images",)),
    # CrystFEL takes either shape, cxiview only the one that has a mask for each event.
    Dataset(MASK, "uint16", _STACK, "c V L", ("images", "mask", "cheetah"), compressed=True),
    Dataset(MASK, "uint16", _SLAB, "c L", ("images", "mask", "not cheetah"), compressed=True),
    Dataset(POWDER_HITS, "float32", _SLAB, "L", ("images",)),
    Dataset(POWDER_MISSES, "float32", _SLAB, "L", ("images",)),
    Dataset(SEGMENTATION, "uint8", _STACK, "U", ("segmentation",), compressed=True),
    Dataset(N_PEAKS, "int32", _EACH, "C V L U"),
    *_peaks("peakXPosRaw peakYPosRaw", "C V L U", unit="pixel"),
    *_peaks("peakTotalIntensity", "C L U"),
    *_peaks("peakMaxIntensity", "L"),
    *_peaks("peakMaximumValue", "Cheetah", "cheetah"),
    *_peaks("peakSNR peakNPixels", "L Cheetah"),
    *_peaks("peakSegPosRaw", "U"),
    *_peaks("peakRadius", "L", "geometry", unit="pixel"),
    *_peaks("rcent ccent rmin rmax cmin cmax", "L", "psocake", unit="pixel"),
    Dataset(IDENTIFIER, "S", _EACH, "X Cheetah"),
    Dataset("/entry_1/experimental_identifier", "int64", _EACH, "L", ("psocake",)),
    Dataset(f"{_DETECTOR}/x_pixel_size", "float64", _EACH, "V", ("pixel size",), "m"),
    Dataset(f"{_DETECTOR}/y_pixel_size", "float64", _EACH, "V", ("pixel size",), "m"),
    Dataset(f"{_DETECTOR}/distance", "float64", _EACH, "X", ("distance",), "m"),
    Dataset("/entry_1/instrument_1/source_1/energy", "float64", _EACH, "X", (), "J"),
    Dataset(PHOTON_ENERGY, "float64", _EACH, "C V L U", (), "eV"),
    Dataset(WAVELENGTH, "float64", _EACH, "Cheetah", (), "A"),
    Dataset(CLEN, "float64", _EACH, "C V L U", ("clen",), "mm"),
    Dataset(TIMESTAMP, "uint64", _EACH, "U", ("timestamps",)),
    # All that a producer says of time where its stream gave none for each event.
    Dataset("/LCLS/detector_1/producer_clock_s", "float64", _EACH, "", ("clock",), "s"),
    Dataset("/LCLS/machineTime", "int32", _EACH, "L Cheetah", ("timestamps",), "s"),
    Dataset("/LCLS/machineTimeNanoSeconds", "int32", _EACH, "L Cheetah", ("timestamps",), "ns"),
    Dataset("/LCLS/fiducial", "int32", _EACH, "L Cheetah"),
    Dataset("/LCLS/eventNumber", "int64", _EACH, "L"),
    Dataset("/LCLS/eventTimeString", "S26", _EACH, "Cheetah", ("timestamps", "cheetah"),
            attributes={"timezone": "UTC"}),
)  # fmt: skip

#: Soft links: where -> to what, and when.
LINKS: Final[tuple[tuple[str, str, tuple[Condition, ...]], ...]] = (
    (f"{_DETECTOR}/data", DATA, ("images",)),
    ("/instrument", "/LCLS", ()),
)


def wanted(conditions: Collection[str]) -> tuple[Dataset, ...]:
    """Return the datasets of a file of which all these things hold.

    Examples
    --------
    >>> [d.path for d in wanted(()) if d.axes == ()]
    ['/cxi_version']
    """
    hold = {*conditions, *(() if "cheetah" in conditions else ("not cheetah",))}
    return tuple(one for one in LAYOUT if hold.issuperset(one.when))


def shape_of(dataset: Dataset, lengths: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of a dataset in a file whose axes are so long.

    Examples
    --------
    >>> shape_of(LAYOUT[1], {"event": 3, "ss": 5632, "fs": 384})
    (3, 5632, 384)
    """
    return tuple(lengths[axis] for axis in dataset.axes)


def attributes_of(dataset: Dataset) -> dict[str, Any]:
    """Return the attributes of a dataset that are the same in every file."""
    axes = {"axes": ":".join(_AXES[axis] for axis in dataset.axes)} if dataset.axes else {}
    units = {"units": dataset.unit} if dataset.unit else {}
    return {**axes, **units, **dataset.attributes}


def check_names(names: Iterable[str], *, below: str, what: str) -> None:
    """Refuse names of metadata that cannot be names in the file, or that are taken there.

    Raises
    ------
    ConfigError
        Naming the first such name.
    """
    links = (where for where, _, _ in LINKS)
    taken = {path[len(below) + 1 :].split("/")[0] for path in (*(d.path for d in LAYOUT), *links)
             if path.startswith(f"{below}/")}  # fmt: skip
    for name in names:
        if not name or "/" in name or not name.isprintable() or name.strip(".") == "":
            raise ConfigError(f"{what} {name!r} cannot be a name in a file", fix="no slash, no dots only, no controls")
        if name in taken:
            raise ConfigError(f"{what} {name!r} is taken in the file: {below}/{name}", fix="leave it out or rename it")
