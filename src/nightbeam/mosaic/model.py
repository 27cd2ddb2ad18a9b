"""What a mosaic is made of, what it is asked to be, and what it turned out to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self, get_args

from nightbeam.core.errors import InputError, UsageError
from nightbeam.imaging.model import ImageProduct

__all__ = [
    "MOSAIC_KINDS",
    "Check",
    "MosaicKind",
    "MosaicOptions",
    "MosaicProduct",
    "Reason",
    "ReasonCode",
    "SkyGrid",
    "Strip",
    "Tile",
    "TileFacts",
    "TileUse",
    "TileVerdict",
    "mosaic_path",
]

#: The files of one mosaic. ``image`` is the sky in Jy/beam, ``noise`` its standard deviation, ``weight`` the inverse
#: square of that.
MosaicKind = Literal["image", "weight", "noise"]
MOSAIC_KINDS: tuple[MosaicKind, ...] = get_args(MosaicKind)

#: Settings that say where mosaics go, when and with how many hands, not what they are.
_NOT_OPTIONS = frozenset(
    {"output_dir", "name_prefix", "window_days", "catch_up_days", "catalogue", "workers", "block_pixels"}
)


def mosaic_path(stem: Path, kind: MosaicKind) -> Path:
    """Return where a file of ``stem`` lies: ``night_2025_10_02`` and ``noise`` give ``night_2025_10_02.noise.fits``."""
    return stem.with_name(f"{stem.name}.{kind}.fits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One image that may become part of a mosaic, as a database or a sidecar describes it.

    What is not known is None; `inspect_tile` reads it from the file.

    Attributes
    ----------
    path
        The image that is corrected for the primary beam, or the flat one where ``pbcor`` is False.
    pb_path
        Its primary beam on the same pixels.
    start_mjd, mid_mjd, end_mjd
        When it was observed, UTC.
    ra_deg, dec_deg
        Its centre.
    width, height
        In pixels.
    noise_jy
        In the middle, that is, of the flat image.
    calibration_set, cal_age_days, cal_borrowed
        What it was calibrated with, how old that was, and whether it was used outside its validity.
    quick
        Whether it is a quick image: of a smaller field, and less deeply cleaned.
    """

    path: Path
    pb_path: Path | None = None
    group_id: str | None = None
    ms_path: str | None = None
    start_mjd: float | None = None
    mid_mjd: float | None = None
    end_mjd: float | None = None
    ra_deg: float | None = None
    dec_deg: float | None = None
    width: int | None = None
    height: int | None = None
    cell_arcsec: float | None = None
    beam_major_arcsec: float | None = None
    beam_minor_arcsec: float | None = None
    beam_pa_deg: float | None = None
    noise_jy: float | None = None
    dynamic_range: float | None = None
    freq_hz: float | None = None
    calibration_set: str | None = None
    cal_age_days: float | None = None
    cal_borrowed: bool = False
    pbcor: bool = True
    quick: bool = False

    @property
    def name(self) -> str:
        """What it is called in reports: the group, or else the file."""
        return self.group_id or self.path.name

    @classmethod
    def from_image(cls, product: ImageProduct, *, group_id: str | None = None) -> Self:
        """Return the tile that a finished image is."""
        return cls(
            path=product.path,
            pb_path=product.fits.get("pb"),
            group_id=group_id,
            ms_path=str(product.ms),
            start_mjd=product.start_mjd,
            mid_mjd=product.mid_mjd,
            end_mjd=product.end_mjd,
            ra_deg=product.ra_deg,
            dec_deg=product.dec_deg,
            width=product.imsize,
            height=product.imsize,
            cell_arcsec=product.cell_arcsec,
            beam_major_arcsec=product.beam_major_arcsec,
            beam_minor_arcsec=product.beam_minor_arcsec,
            beam_pa_deg=product.beam_pa_deg,
            noise_jy=product.noise_jy,
            dynamic_range=product.dynamic_range,
            freq_hz=product.freq_hz,
            calibration_set=product.provenance.get("calibration_set"),
            pbcor=product.pbcor,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the tile as JSON types."""
        return asdict(self) | {"path": str(self.path), "pb_path": None if self.pb_path is None else str(self.pb_path)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Return the tile that `to_json` wrote."""
        pb = plain.get("pb_path")
        return cls(**{**plain, "path": Path(plain["path"]), "pb_path": None if pb is None else Path(pb)})


class ReasonCode(StrEnum):
    """Why a tile is not used."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    NOT_PBCOR = "not_pbcor"
    NO_PB = "no_pb"
    NO_BEAM = "no_beam"
    NO_WCS = "no_wcs"
    ALL_NAN = "all_nan"
    PRIMARY_BEAM = "primary_beam"
    NOISE = "noise"
    DYNAMIC_RANGE = "dynamic_range"
    BEAM = "beam"
    PIXEL_SIZE = "pixel_size"
    FREQUENCY = "frequency"
    CALIBRATION = "calibration"
    ASTROMETRY = "astrometry"
    STRIP = "strip"
    DUPLICATE = "duplicate"
    NOT_ALIGNED = "not_aligned"


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason against a tile; the text says what was found and what was wanted."""

    code: ReasonCode
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TileFacts:
    """A tile as its files are.

    Attributes
    ----------
    tile
        With everything filled in that its headers and its sidecar say; where they contradict what was given, the
        files are believed.
    problems
        What makes it impossible to use, found in the files themselves.
    valid_fraction
        Of its pixels, where image and beam are finite and the beam is above the cut.
    pb_min, pb_max
        Of the primary beam: the least where the image is used, and the highest anywhere.
    sources, astrometry_arcsec, astrometry_error_arcsec, flux_ratio
        How many sources of the catalogue were found on it, the length of their median offset from their places with
        its error from the noise, and the median of measured over catalogued flux; None without sources.
    """

    tile: Tile
    problems: tuple[Reason, ...] = ()
    valid_fraction: float | None = None
    pb_min: float | None = None
    pb_max: float | None = None
    sources: int = 0
    astrometry_arcsec: float | None = None
    astrometry_error_arcsec: float | None = None
    flux_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class TileVerdict:
    """Whether a tile is used, and every reason why not."""

    tile: Tile
    accepted: bool
    reasons: tuple[Reason, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON types: path, name, accepted, reasons (code and text), and the whole tile."""
        return {
            "path": str(self.tile.path),
            "name": self.tile.name,
            "accepted": self.accepted,
            "reasons": [{"code": str(reason.code), "text": reason.text} for reason in self.reasons],
            "tile": self.tile.to_json(),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Return the verdict that `to_json` wrote."""
        reasons = tuple(Reason(ReasonCode(r["code"]), r["text"]) for r in plain["reasons"])
        return cls(Tile.from_json(plain["tile"]), bool(plain["accepted"]), reasons)


@dataclass(frozen=True, slots=True)
class Strip:
    """Tiles that lie side by side, from west to east as the sky drifts through the beam."""

    tiles: tuple[Tile, ...]

    @property
    def start_mjd(self) -> float | None:
        """When the first of them began (its middle where that is not known); None if no time is known."""
        return min((t for tile in self.tiles if (t := _first(tile.start_mjd, tile.mid_mjd)) is not None), default=None)

    @property
    def end_mjd(self) -> float | None:
        """When the last of them ended (its middle where that is not known); None if no time is known."""
        return max((t for tile in self.tiles if (t := _first(tile.end_mjd, tile.mid_mjd)) is not None), default=None)

    @property
    def mid_mjd(self) -> float | None:
        """Middle between the beginning and the end."""
        if self.start_mjd is None or self.end_mjd is None:
            return None
        return 0.5 * (self.start_mjd + self.end_mjd)

    @property
    def ra_deg(self) -> float:
        """Right ascension half way between the first and the last, eastwards."""
        first, last = (_known(tile.ra_deg, tile, "right ascension") for tile in (self.tiles[0], self.tiles[-1]))
        return (first + 0.5 * ((last - first) % 360.0)) % 360.0

    @property
    def dec_deg(self) -> float:
        """Mean declination."""
        return math.fsum(_known(tile.dec_deg, tile, "declination") for tile in self.tiles) / len(self.tiles)


def _first(*values: float | None) -> float | None:
    return next((v for v in values if v is not None), None)


def _known(value: float | None, tile: Tile, what: str) -> float:
    if value is None or not math.isfinite(value):
        raise InputError(f"the {what} of {tile.name} is not known", fix="inspect the tile first")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicOptions:
    """What a mosaic is and what is asked of its tiles and of itself.

    Attributes
    ----------
    method
        ``weighted``: by primary beam and noise on a common grid; ``mean``: plain mean of tiles that share their pixels.
    include_unpbcor
        Whether tiles that are not corrected for the primary beam are used. With ``weighted`` such a tile still needs
        its primary beam; with ``mean`` it is taken as it is.
    pb_cut
        A tile counts where its primary beam is above this.
    min_dynamic_range, max_noise_factor, beam_tolerance, freq_tolerance_mhz
        A tile with a lower peak over noise, with more noise than this times the median of the tiles (of two: than the
        lesser), with a beam, a pixel (by ``beam_tolerance`` too) or a frequency farther from the median is rejected.
    dec_tolerance_deg, min_overlap
        What makes tiles neighbours of one strip: `nightbeam.mosaic.compute.split_strips`.
    max_span_deg, overlap_tiles
        A longer strip is cut into several mosaics that have tiles in common: `nightbeam.mosaic.compute.cut_strip`.
        Not with ``mean``.
    max_astrometry_arcsec, min_sources, min_source_jy
        A tile whose sources are farther from their places in the catalogue (median) is rejected; fewer sources in
        common judge nothing; fainter ones are not looked for.
    max_cal_age_days, same_calibration
        A tile calibrated outside the validity of its set by more is rejected; and, if asked, every tile that has not
        the set which most tiles have.
    min_coverage, max_rms_variation, max_negative_fraction
        Least covered fraction of the strip's rectangle; most by which the noise of one part of the mosaic, measured
        over expected, may exceed that of another (of 20 parts or more, the 95th over the 5th percentile); most
        pixels below -5 sigma.
    flux_ratio, min_completeness, max_noise_jy
        What the sources of the catalogue must show: range of the median of measured over catalogued flux, fraction
        found; and the highest allowed median of the noise map.
    """

    method: Literal["weighted", "mean"] = "weighted"
    include_unpbcor: bool = False
    pb_cut: float = 0.15
    min_dynamic_range: float = 5.0
    max_noise_factor: float = 5.0
    beam_tolerance: float = 0.2
    freq_tolerance_mhz: float = 50.0
    dec_tolerance_deg: float = 1.0
    min_overlap: float = 0.0
    max_span_deg: float = 60.0
    overlap_tiles: int = 2
    max_astrometry_arcsec: float = 2.0
    min_sources: int = 3
    min_source_jy: float = 0.01
    max_cal_age_days: float = 1.0
    same_calibration: bool = False
    min_coverage: float = 0.1
    max_rms_variation: float = 2.0
    max_negative_fraction: float = 0.01
    flux_ratio: tuple[float, float] = (0.8, 1.2)
    min_completeness: float = 0.6
    max_noise_jy: float = 0.0186

    def __post_init__(self) -> None:
        wrong = [
            (self.method not in ("weighted", "mean"), f"no method {self.method!r}"),
            (not 0 < self.pb_cut < 1, f"pb_cut {self.pb_cut} is not between 0 and 1"),
            (not self.max_noise_factor > 1, f"max_noise_factor {self.max_noise_factor} is not above 1"),
            (not self.beam_tolerance > 0, f"beam_tolerance {self.beam_tolerance} is not positive"),
            (not self.freq_tolerance_mhz > 0, f"freq_tolerance_mhz {self.freq_tolerance_mhz} is not positive"),
            (not self.dec_tolerance_deg > 0, f"dec_tolerance_deg {self.dec_tolerance_deg} is not positive"),
            (not 0 <= self.min_overlap < 1, f"min_overlap {self.min_overlap} is not between 0 and 1"),
            (not 0 < self.max_span_deg <= 360, f"max_span_deg {self.max_span_deg} is not between 0 and 360"),
            (self.overlap_tiles < 0, f"overlap_tiles {self.overlap_tiles} is negative"),
            (self.min_sources < 1, f"min_sources {self.min_sources} is less than 1"),
        ]
        for is_wrong, what in wrong:
            if is_wrong:
                raise UsageError(what, fix="see the section mosaic of docs/reference/settings.md")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Return the options that a section of settings names.

        Raises
        ------
        UsageError
            If a key is unknown or a value cannot be.
        """
        known = {f.name for f in fields(cls)}
        unknown = set(values) - known - _NOT_OPTIONS
        if unknown:
            raise UsageError(f"no mosaic option {', '.join(sorted(unknown))}", fix=f"one of {', '.join(sorted(known))}")
        chosen = {name: value for name, value in values.items() if name in known}
        if "flux_ratio" in chosen:
            low, high = chosen["flux_ratio"]
            chosen["flux_ratio"] = (float(low), float(high))
        return cls(**chosen)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing asked of a finished mosaic. ``passed`` is None where it could not be judged; ``text`` says why.

    ``ideal`` is where nothing is left to wish for: on which side of ``limit`` it lies says which side is good. Checks
    that were written before there was one have none.
    """

    name: str
    value: float | None
    limit: float | None
    passed: bool | None
    text: str
    ideal: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyGrid:
    """The common grid: pixels of equal area, north up at the middle of the strip.

    Attributes
    ----------
    projection
        ``ZEA`` (zenithal equal-area) or ``CEA`` (cylindrical equal-area along the equator); of tiles that share their
        pixels, their own.
    width, height
        In pixels.
    ra_deg, dec_deg
        Its middle.
    cards
        Of the FITS header: CTYPE, CRVAL, CRPIX, CDELT, LONPOLE, PV2_1 ..., RADESYS.
    """

    projection: str
    width: int
    height: int
    cell_arcsec: float
    ra_deg: float
    dec_deg: float
    cards: Mapping[str, float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileUse:
    """What one tile gave to a mosaic.

    ``interpolation_factor`` is what interpolation leaves of its ``noise_jy``; their product weighs it. ``share`` is its
    part of the sum of all weights, between 0 and 1.
    """

    path: Path
    name: str
    noise_jy: float
    interpolation_factor: float
    beam_major_arcsec: float
    beam_minor_arcsec: float
    beam_pa_deg: float
    share: float
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicProduct:
    """One finished mosaic with what was measured on it.

    Attributes
    ----------
    stem, name
        What the names of its files begin with, and what it is called.
    fits, png
        Its files: image, weight and noise by kind, and a picture.
    beam_major_arcsec, beam_minor_arcsec, beam_pa_deg
        Of the header: the weighted mean of the tiles' beams (the tiles keep their own; see ``tiles``).
    noise_least_jy, noise_median_jy
        Of the noise map.
    peak_jy, peak_ra_deg, peak_dec_deg
        Brightest pixel.
    covered_fraction
        Of the grid.
    tiles
        Those used, with what they gave.
    verdicts
        On every tile that was offered.
    input_fingerprint
        Of the tiles, the options and the catalogue: a mosaic with the same is not made again.
    """

    stem: Path
    name: str
    method: str
    fits: Mapping[MosaicKind, Path]
    png: Path
    width: int
    height: int
    projection: str
    ra_deg: float
    dec_deg: float
    cell_arcsec: float
    beam_major_arcsec: float
    beam_minor_arcsec: float
    beam_pa_deg: float
    freq_hz: float | None
    start_mjd: float | None
    mid_mjd: float | None
    end_mjd: float | None
    noise_least_jy: float
    noise_median_jy: float
    peak_jy: float
    peak_ra_deg: float
    peak_dec_deg: float
    covered_fraction: float
    tiles: tuple[TileUse, ...]
    verdicts: tuple[TileVerdict, ...]
    checks: tuple[Check, ...]
    made_at: datetime
    seconds: float
    version: str
    versions: Mapping[str, str]
    parameters: Mapping[str, Any]
    provenance: Mapping[str, str]
    options: MosaicOptions
    input_fingerprint: str
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file that stands for the mosaic."""
        return self.fits["image"]

    @property
    def good(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the product as JSON types, files by name only, so that its directory can be moved."""
        plain = asdict(self)
        plain["stem"], plain["png"] = self.stem.name, self.png.name
        plain["fits"] = {kind: path.name for kind, path in self.fits.items()}
        plain["tiles"] = [asdict(use) | {"path": str(use.path)} for use in self.tiles]
        plain["verdicts"] = [verdict.to_json() for verdict in self.verdicts]
        plain["made_at"] = self.made_at.isoformat()
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
            values["stem"], values["png"] = directory / values["stem"], directory / values["png"]
            values["fits"] = {kind: directory / name for kind, name in values["fits"].items()}
            values["tiles"] = tuple(TileUse(**{**use, "path": Path(use["path"])}) for use in values["tiles"])
            values["verdicts"] = tuple(TileVerdict.from_json(v) for v in values["verdicts"])
            values["checks"] = tuple(Check(**check) for check in values["checks"])
            values["made_at"] = datetime.fromisoformat(values["made_at"])
            values["options"] = MosaicOptions.from_mapping(values["options"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not the description of a mosaic: {error}", fix="make the mosaic again") from error
