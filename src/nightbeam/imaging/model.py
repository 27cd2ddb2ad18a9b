"""What an image is asked to be, what it turned out to be, and what makes one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args

from nightbeam.core.errors import InputError, UsageError
from nightbeam.sky.model import BEAM_MODELS

__all__ = [
    "KINDS",
    "EngineImages",
    "ImageKind",
    "ImageOptions",
    "ImagePlan",
    "ImageProduct",
    "ImageRequest",
    "Imager",
    "SourceFit",
    "Verdict",
    "product_path",
]

#: The images of one product. ``pbcor`` is the sky; ``image`` has the same noise everywhere.
ImageKind = Literal["image", "pb", "pbcor", "residual", "model"]
KINDS: tuple[ImageKind, ...] = get_args(ImageKind)

#: CASA's names for them, kept by every engine, because people and scripts look for them.
_SUFFIX: Mapping[ImageKind, str] = {
    "image": ".image",
    "pb": ".pb",
    "pbcor": ".image.pbcor",
    "residual": ".residual",
    "model": ".model",
}

#: Settings that say what is done with an image, not how it is made.
_NOT_OPTIONS = frozenset({"quick", "min_peak_over_noise", "timeout_s", "threads", "memory_gb"})

_THRESHOLD = re.compile(r"\s*(?P<value>[0-9.]+(?:[eE][-+]?\d+)?)\s*(?P<unit>|Jy|mJy|uJy)\s*")
_IN_JY = {"": 1.0, "Jy": 1.0, "mJy": 1e-3, "uJy": 1e-6}

#: The imagers there are.
ENGINES: tuple[str, ...] = ("tclean", "wsclean")

#: How much of the peak a round of cleaning takes away before the model is subtracted from the visibilities (the advice
#: of WSClean's author).
MAJOR_GAIN = 0.8

QUICK_IMSIZE = 512
QUICK_NITER = 300


def product_path(stem: Path, kind: ImageKind, *, fits: bool = True) -> Path:
    """Return where an image of ``stem`` lies: ``x.img`` and ``pbcor`` give ``x.img.image.pbcor.fits``.

    ``Path.with_suffix`` would eat part of a stem that holds dots.
    """
    return stem.with_name(f"{stem.name}{_SUFFIX[kind]}{'.fits' if fits else ''}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """How an image is made; whatever the engine.

    Attributes
    ----------
    engine
        Name of the imager. WSClean does not use ``wprojplanes``; what else it cannot do it refuses
        (`wsclean.check_wsclean`).
    imsize
        Pixels on a side.
    cell_arcsec
        Pixel size; None: from the longest baseline, or as coarse as it takes to see the whole primary beam
        (`compute.choose_cell_arcsec`).
    weighting, robust
        Weights of the visibilities on the uv plane.
    niter, threshold, deconvolver
        Where cleaning stops, and its minor cycle. A threshold without a unit is in Jy.
    psfcutoff
        Level of the dirty beam above which its main lobe is fitted to give the restoring beam.
    gridder, wprojplanes
        ``wproject`` corrects for the curvature of the sky; ``standard`` displaces sources.
    pbcor, pblimit
        Whether an image corrected for the primary beam is made, and where it ends.
    beam_model
        ``auto``: the drift-averaged beam of `nightbeam.sky` for a transit telescope, the engine's for
        any other (with WSClean, which has none: that of a uniformly lit dish); ``engine``; or a name of
        `nightbeam.sky.beam_attenuation`.
    chanbin, max_smearing
        At most so many channels are averaged first, fewer where a source at the edge of the image
        would lose more than ``max_smearing`` of its amplitude on the longest baseline.
    datacolumn
        ``auto``: CORRECTED_DATA where it holds something, else DATA.
    field, spw, uvrange, phasecenter
        Selections and centre as CASA writes them; empty: everything, the field's own centre.
    skip_fits, keep_casa_images
        Leave the engine's own images (CASA tables) instead of FITS, or besides.
    """

    engine: Literal["tclean", "wsclean"] = "tclean"
    imsize: int = 1024
    cell_arcsec: float | None = None
    weighting: Literal["briggs", "natural", "uniform"] = "briggs"
    robust: float = 0.0
    niter: int = 1000
    threshold: str = "0.0Jy"
    deconvolver: str = "hogbom"
    gridder: Literal["standard", "wproject"] = "wproject"
    wprojplanes: int = -1
    pbcor: bool = True
    pblimit: float = 0.2
    psfcutoff: float = 0.35
    beam_model: str = "auto"
    chanbin: int = 8
    max_smearing: float = 0.05
    datacolumn: Literal["auto", "corrected", "data"] = "auto"
    field: str = ""
    spw: str = ""
    uvrange: str = ""
    phasecenter: str = ""
    skip_fits: bool = False
    keep_casa_images: bool = False

    def __post_init__(self) -> None:
        wrong = [
            (self.engine not in ENGINES, f"no imaging engine {self.engine!r}: {' or '.join(ENGINES)}"),
            (not 64 <= self.imsize <= 16384, f"imsize {self.imsize} is not between 64 and 16384 pixels"),
            (
                self.cell_arcsec is not None and not 0 < self.cell_arcsec < math.inf,
                f"cell_arcsec {self.cell_arcsec} is not positive",
            ),
            (self.weighting not in ("briggs", "natural", "uniform"), f"no weighting {self.weighting!r}"),
            (not -2 <= self.robust <= 2, f"robust {self.robust} is not between -2 and 2"),
            (self.niter < 0, f"niter {self.niter} is negative"),
            (self.gridder not in ("standard", "wproject"), f"no gridder {self.gridder!r}"),
            (not 0 < abs(self.pblimit) < 1, f"pblimit {self.pblimit} is not between 0 and 1"),
            (not 0 < self.psfcutoff < 1, f"psfcutoff {self.psfcutoff} is not between 0 and 1"),
            (self.chanbin < 1, f"chanbin {self.chanbin} is less than 1"),
            (not 0 < self.max_smearing < 1, f"max_smearing {self.max_smearing} is not between 0 and 1"),
            (self.beam_model not in ("auto", "engine", *BEAM_MODELS), f"no beam model {self.beam_model!r}"),
            (self.datacolumn not in ("auto", "corrected", "data"), f"no data column {self.datacolumn!r}"),
        ]
        for is_wrong, what in wrong:
            if is_wrong:
                raise UsageError(what, fix="see docs/reference/image.md for what is accepted")
        self.threshold_jy  # noqa: B018 - says what is wrong with it

    @property
    def threshold_jy(self) -> float:
        """Where cleaning stops, in Jy."""
        found = _THRESHOLD.fullmatch(self.threshold)
        try:
            return float(found["value"]) * _IN_JY[found["unit"]] if found else _raise_threshold(self.threshold)
        except ValueError:
            return _raise_threshold(self.threshold)

    def quick(self) -> Self:
        """Return the same options for a quick look: at most 512 pixels and 300 components."""
        return replace(self, imsize=min(self.imsize, QUICK_IMSIZE), niter=min(self.niter, QUICK_NITER))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Return the options that a section of settings names; ``quick: true`` makes them quick.

        Raises
        ------
        UsageError
            If a key is unknown or a value cannot be.
        """
        known = {f.name for f in fields(cls)}
        unknown = set(values) - known - _NOT_OPTIONS
        if unknown:
            raise UsageError(f"no image option {', '.join(sorted(unknown))}", fix=f"one of {', '.join(sorted(known))}")
        options = cls(**{name: value for name, value in values.items() if name in known})
        return options.quick() if values.get("quick") else options


def _raise_threshold(text: str) -> float:
    raise UsageError(f"threshold {text!r} is not a flux density", fix="write it like 0.5mJy")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """What will be made of a Measurement Set, worked out from it before anything is made."""

    ms: Path
    stem: Path
    engine: str
    datacolumn: Literal["corrected", "data"]
    imsize: int
    cell_arcsec: float
    field_of_view_deg: float
    channels_averaged: int
    uv_max_m: float
    freq_hz: float
    flagged_fraction: float
    beam_model: str
    expected: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """What an engine is asked for: everything decided, nothing to guess.

    ``width`` channels are averaged, ``w_planes`` used for w-projection; the answer's images carry the name
    ``directory / "tile"``. ``fields`` are the numbers that the selection came to, ``frame`` is
    that of the phase ``centre`` (``ICRS`` or ``J2000``; degrees). An engine that can be told keeps to ``memory_gb``.
    With ``rows_flagged`` some rows are flagged by FLAG_ROW alone, which not every engine looks at.
    """

    ms: Path
    directory: Path
    options: ImageOptions
    datacolumn: Literal["corrected", "data"]
    cell_arcsec: float
    width: int
    w_planes: int
    fields: tuple[int, ...]
    frame: str
    centre: tuple[float, float]
    log: Path
    timeout_s: float
    threads: int
    memory_gb: float
    rows_flagged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineImages:
    """What an engine made: FITS by kind (image, residual, model; pb if it has one), and its own images where asked.

    ``parameters`` are the engine's own, as given to it; ``versions`` name the programs that ran.
    """

    fits: Mapping[ImageKind, Path]
    native: Mapping[str, Path]
    parameters: Mapping[str, Any]
    versions: Mapping[str, str]


class Imager(Protocol):
    """An engine: visibilities in, FITS images out, in a directory of its own."""

    name: str

    def make(self, request: ImageRequest) -> EngineImages:
        """Make the images, or raise ToolError; the caller judges and publishes them."""
        ...

    def adopt(self, fits: Path, native: Path, *, log: Path, timeout_s: float) -> None:
        """Write a FITS image in the engine's own format (for those who keep native images)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProduct:
    """One finished image with what was measured on it.

    Attributes
    ----------
    stem
        What the names of its files begin with.
    fits
        By kind: ``image``, ``pb``, ``pbcor``, ``residual``, ``model`` (empty with ``skip_fits``).
    native
        The engine's own images that were kept, by suffix.
    noise_jy, noise_centre_jy
        Robust noise (1.4826 MAD) of the residual, over the whole and over the central quarter.
    peak_jy, deepest_jy
        Brightest and deepest pixel of the image before primary-beam correction, Jy/beam.
    dynamic_range
        Peak over noise of the whole.
    peak_pbcor_jy
        Brightest pixel of the corrected image; NaN without one.
    ra_deg, dec_deg
        Centre, in the frame of the FITS header (ICRS for our own Measurement Sets).
    integration_s
        Time on the sky: the intervals of all distinct times.
    flagged_fraction
        Of the cross-correlations of the selection.
    channels_averaged
        How many channels of the input went into one of the gridded.
    sha256, input_fingerprint
        Of each file by name, and of the Measurement Set as it was.
    """

    stem: Path
    ms: Path
    engine: str
    fits: Mapping[ImageKind, Path]
    native: Mapping[str, Path]
    png: Path
    object_name: str
    telescope: str
    beam_major_arcsec: float
    beam_minor_arcsec: float
    beam_pa_deg: float
    noise_jy: float
    noise_centre_jy: float
    peak_jy: float
    peak_ra_deg: float
    peak_dec_deg: float
    deepest_jy: float
    dynamic_range: float
    peak_pbcor_jy: float
    ra_deg: float
    dec_deg: float
    imsize: int
    cell_arcsec: float
    freq_hz: float
    bandwidth_hz: float
    integration_s: float
    start_mjd: float
    mid_mjd: float
    end_mjd: float
    datacolumn: str
    flagged_fraction: float
    channels_averaged: int
    beam_model: str
    pbcor: bool
    made_at: datetime
    seconds: float
    version: str
    versions: Mapping[str, str]
    parameters: Mapping[str, Any]
    provenance: Mapping[str, str]
    options: ImageOptions
    input_fingerprint: str
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file that stands for the product: the corrected image where there is one."""
        for path in (self.fits.get("pbcor"), self.fits.get("image"), self.native.get("image.pbcor")):
            if path is not None:
                return path
        return self.native.get("image", self.png)

    def to_json(self) -> dict[str, Any]:
        """Return the product as JSON types, files by name only, so that its directory can be moved."""
        plain = asdict(self)
        plain["stem"], plain["png"] = self.stem.name, self.png.name
        plain["fits"] = {kind: path.name for kind, path in self.fits.items()}
        plain["native"] = {kind: path.name for kind, path in self.native.items()}
        plain["ms"], plain["made_at"] = str(self.ms), self.made_at.isoformat()
        if math.isnan(self.peak_pbcor_jy):
            plain["peak_pbcor_jy"] = None
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], directory: Path) -> Self:
        """Return the product that `to_json` wrote, with its files in ``directory``.

        Raises
        ------
        InputError
            If it is not one, or one of another version of nightbeam with other fields.
        """
        try:
            values = dict(plain)
            values["options"] = ImageOptions(**values["options"])
            values["stem"], values["png"] = directory / values["stem"], directory / values["png"]
            values["ms"], values["made_at"] = Path(values["ms"]), datetime.fromisoformat(values["made_at"])
            for name in ("fits", "native"):
                values[name] = {kind: directory / path for kind, path in values[name].items()}
            if values["peak_pbcor_jy"] is None:
                values["peak_pbcor_jy"] = math.nan
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not the description of an image: {error}", fix="make the image again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFit:
    """One source measured on an image.

    ``ra_deg, dec_deg`` is where it was looked for and ``found_*`` where it is; fluxes are divided by
    the primary beam where one was given. ``offset_beams`` is in units of the geometric mean of the beam's axes.
    Where ``found`` is False, ``reason`` says why and the numbers are NaN as far as they are unknown.
    """

    name: str
    ra_deg: float
    dec_deg: float
    found: bool
    reason: str = ""
    found_ra_deg: float = math.nan
    found_dec_deg: float = math.nan
    peak_jy: float = math.nan
    integrated_jy: float = math.nan
    major_arcsec: float = math.nan
    minor_arcsec: float = math.nan
    noise_jy: float = math.nan
    snr: float = math.nan
    pb: float = 1.0
    offset_arcsec: float = math.nan
    offset_beams: float = math.nan


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a product is good, and every reason why not."""

    good: bool
    reasons: tuple[str, ...] = ()
