"""Images in FITS and their descriptions in JSON: written, checked, completed, read back, measured."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError, RejectedError, ToolError
from nightbeam.core.files import sha256, storage_errors, write_text
from nightbeam.imaging.compute import Beam, fit_source, local_maxima, robust_noise
from nightbeam.imaging.model import ImageProduct, SourceFit

__all__ = [
    "SkyImage",
    "check_image",
    "find_sources",
    "measure_plane",
    "measure_sources",
    "open_image",
    "read_product",
    "set_cards",
    "sidecar_path",
    "verify_product",
    "write_image",
    "write_product",
]

_VERSION = 1


@dataclass(frozen=True)
class SkyImage:
    """A plane of the sky.

    Attributes
    ----------
    data : (ny, nx), float32
        Frequency and Stokes axes of length 1 taken off.
    header : astropy.io.fits.Header
    wcs : astropy.wcs.WCS
        Celestial, two axes.
    """

    path: Path
    data: NDArray[np.float32]
    header: Any
    wcs: Any

    @property
    def cell_arcsec(self) -> float:
        """Side of a pixel."""
        return abs(float(self.header["CDELT2"])) * 3600.0

    @property
    def beam(self) -> Beam:
        """The restoring beam in pixels.

        Raises
        ------
        InputError
            If the header has none.
        """
        try:
            major, minor, pa = (float(self.header[name]) for name in ("BMAJ", "BMIN", "BPA"))
        except KeyError as error:
            raise InputError(f"{self.path} has no restoring beam", fix="give an image in Jy/beam") from error
        cell = abs(float(self.header["CDELT2"]))
        return Beam(major / cell, minor / cell, pa)

    def to_pixel(self, ra_deg: float, dec_deg: float) -> tuple[float, float]:
        """Return x and y of an ICRS direction (0, 0: centre of the first pixel), NaN behind the sky."""
        from astropy.coordinates import SkyCoord
        from astropy.wcs.utils import skycoord_to_pixel

        with _quiet(), np.errstate(invalid="ignore"):
            x, y = skycoord_to_pixel(SkyCoord(ra_deg, dec_deg, unit="deg", frame="icrs"), self.wcs, origin=0)
        # An orthographic projection shows the far side of the sphere at the same pixels.
        back = self.to_sky(float(x), float(y)) if np.isfinite(x) else (math.nan, math.nan)
        behind = not abs(back[1] - dec_deg) < 1e-3
        return (math.nan, math.nan) if behind else (float(x), float(y))

    def to_sky(self, x: float, y: float) -> tuple[float, float]:
        """Return the ICRS direction of a pixel, degrees."""
        from astropy.wcs.utils import pixel_to_skycoord

        with _quiet(), np.errstate(invalid="ignore"):
            place = pixel_to_skycoord(x, y, self.wcs, origin=0).icrs
        return float(place.ra.deg), float(place.dec.deg)


@contextmanager
def _quiet() -> Iterator[None]:
    from astropy.wcs import FITSFixedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)  # astropy tells how it reads old-style headers
        yield


def open_image(path: Path) -> SkyImage:
    """Read one plane of the sky from a FITS file.

    Raises
    ------
    MissingError
        If it is not there.
    InputError
        If it is no FITS image, has more than one plane, or no celestial axes.
    """
    from astropy.io import fits
    from astropy.wcs import WCS

    try:
        with fits.open(path, memmap=False) as hdus:
            header, data = hdus[0].header.copy(), hdus[0].data
    except FileNotFoundError as error:
        raise MissingError(f"no image {path}", fix="check the name") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not a FITS image: {error}", fix="make the image again") from error
    if data is None or data.ndim < 2 or any(n != 1 for n in data.shape[:-2]):
        shape = None if data is None else data.shape
        raise InputError(f"{path} holds {shape}, wanted one plane", fix="give an image of one frequency and Stokes I")
    with _quiet():
        wcs = WCS(header).celestial
    if wcs.naxis != 2:
        raise InputError(f"{path} has no celestial axes", fix="give an image of the sky")
    plane = np.ascontiguousarray(data.reshape(data.shape[-2:]).astype(np.float32))
    return SkyImage(Path(path), plane, header, wcs)


def write_image(path: Path, image: NDArray[np.floating[Any]], header: Any, *, like: tuple[int, ...]) -> None:
    """Write a plane with a header; ``like`` is the shape with its axes of length 1."""
    from astropy.io import fits

    with storage_errors(path):
        fits.writeto(path, np.asarray(image, np.float32).reshape(like), header, overwrite=True, output_verify="fix")


def check_image(path: Path, kind: str, *, imsize: int) -> SkyImage:
    """Return an image that an engine made, once it is proved to be one.

    Raises
    ------
    ToolError
        If it is missing, unreadable or of the wrong shape.
    RejectedError
        If it is blank: not finite, or, for an image, residual or beam, zero everywhere.
    """
    try:
        found = open_image(path)
    except (MissingError, InputError) as error:
        raise ToolError(f"the imager left no usable {kind}: {error.what}", fix="read its log") from error
    if found.data.shape != (imsize, imsize):
        raise ToolError(f"the {kind} is {found.data.shape} pixels, wanted {imsize} x {imsize}", fix="read its log")
    finite = np.isfinite(found.data)
    if kind == "pbcor":
        if not finite.any():
            raise RejectedError("the beam-corrected image is blank: pblimit is above the whole beam", fix="lower it")
        return found
    if not finite.all() and kind != "pb":
        raise RejectedError(
            f"{np.count_nonzero(~finite)} pixels of the {kind} are not finite",
            fix="look for visibilities that are not finite or weights that are absurd",
        )
    if kind != "model" and not np.any(found.data[finite]):
        raise RejectedError(f"the {kind} is zero everywhere", fix="look at weights (all 0?) and flags of the data")
    return found


def measure_sources(
    image: Path,
    positions: Sequence[tuple[float, float]],
    *,
    pb: Path | None = None,
    names: Sequence[str] = (),
    search_arcsec: float | None = None,
    min_snr: float = 5.0,
) -> list[SourceFit]:
    """Measure sources at known places.

    Parameters
    ----------
    image
        FITS in Jy/beam. Give the flat-noise image together with ``pb``, or a corrected image without.
    positions
        ICRS right ascension and declination, degrees.
    pb
        Primary beam by whose value at the source the fluxes are divided.
    names
        One for each position; else numbers.
    search_arcsec
        How far from its place a source is looked for; two beams if not given.
    min_snr
        A fainter peak counts as not found.

    Returns
    -------
    list of SourceFit
        In the order of ``positions``.

    Raises
    ------
    MissingError, InputError
        If an image cannot be read or has no beam.
    """
    beam_map = None if pb is None else open_image(pb)
    return measure_plane(
        open_image(image), positions, pb=beam_map, names=names, search_arcsec=search_arcsec, min_snr=min_snr
    )


def measure_plane(
    sky: SkyImage,
    positions: Sequence[tuple[float, float]],
    *,
    pb: SkyImage | None = None,
    names: Sequence[str] = (),
    search_arcsec: float | None = None,
    min_snr: float = 5.0,
) -> list[SourceFit]:
    """Measure sources at known places of an image, or of a piece of one, that is in memory: as `measure_sources`."""
    labels = list(names) or [str(k) for k in range(len(positions))]
    return [
        _measure(sky, pb, name, ra, dec, search_arcsec, min_snr)
        for name, (ra, dec) in zip(labels, positions, strict=True)
    ]


def find_sources(
    image: Path, *, pb: Path | None = None, noise_jy: float | None = None, min_snr: float = 5.0, most: int = 200
) -> list[SourceFit]:
    """Find sources without knowing where they are: peaks above ``min_snr`` times the noise.

    The brightest peak within a beam counts; each is then measured as by `measure_sources` and those
    that lie within half a beam of a brighter one are left out.

    Parameters
    ----------
    noise_jy
        Of the image; by default its robust noise.
    most
        The brightest so many.
    """
    sky, beam_map = open_image(image), None if pb is None else open_image(pb)
    noise = robust_noise(sky.data) if noise_jy is None else noise_jy
    found: list[SourceFit] = []
    for y, x in local_maxima(sky.data, above=min_snr * noise, beam=sky.beam)[:most]:
        ra, dec = sky.to_sky(x, y)
        fit = _measure(sky, beam_map, f"{_hms_name(ra, dec)}", ra, dec, None, min_snr)
        if fit.found and not any(_near(fit, other, sky) for other in found):
            found.append(fit)
    return found


def _near(one: SourceFit, other: SourceFit, sky: SkyImage) -> bool:
    from nightbeam.sky import separation

    apart = separation(one.found_ra_deg, one.found_dec_deg, other.found_ra_deg, other.found_dec_deg)
    return float(apart) * 3600.0 < 0.5 * sky.beam.major_px * sky.cell_arcsec


def _hms_name(ra_deg: float, dec_deg: float) -> str:
    from astropy.coordinates import SkyCoord

    place = SkyCoord(ra_deg, dec_deg, unit="deg")
    ra = place.ra.to_string(unit="hourangle", sep="", precision=1, pad=True)
    dec = place.dec.to_string(sep="", precision=0, pad=True, alwayssign=True)
    return f"J{ra}{dec}"


def _measure(
    sky: SkyImage,
    pb: SkyImage | None,
    name: str,
    ra: float,
    dec: float,
    search_arcsec: float | None,
    min_snr: float,
) -> SourceFit:
    x, y = sky.to_pixel(ra, dec)
    ny, nx = sky.data.shape
    if not (-0.5 <= x <= nx - 0.5 and -0.5 <= y <= ny - 0.5):
        return SourceFit(name=name, ra_deg=ra, dec_deg=dec, found=False, reason="it lies outside the image")
    beam = sky.beam
    search = 2.0 * beam.major_px if search_arcsec is None else search_arcsec / sky.cell_arcsec
    noise = _local_noise(sky.data, x, y, beam)
    fit = fit_source(sky.data, x, y, beam=beam, search_px=search)
    if fit is None or not noise > 0:
        reason = "there is no peak near its place" if noise > 0 else "the image is blank there"
        return SourceFit(name=name, ra_deg=ra, dec_deg=dec, found=False, reason=reason, noise_jy=noise)
    from nightbeam.sky import separation

    found_ra, found_dec = sky.to_sky(fit.x, fit.y)
    offset = float(separation(ra, dec, found_ra, found_dec)) * 3600.0
    level = _beam_at(pb, found_ra, found_dec)
    snr = fit.amplitude / noise
    found = snr >= min_snr and level > 0
    total = fit.amplitude * fit.major_px * fit.minor_px / (beam.major_px * beam.minor_px)
    reason = "" if found else f"its peak is {snr:.1f} times the local noise" if level > 0 else "it is outside the beam"
    return SourceFit(
        name=name,
        ra_deg=ra,
        dec_deg=dec,
        found=found,
        reason=reason,
        found_ra_deg=found_ra,
        found_dec_deg=found_dec,
        peak_jy=fit.amplitude / level if level > 0 else math.nan,
        integrated_jy=total / level if level > 0 else math.nan,
        major_arcsec=fit.major_px * sky.cell_arcsec,
        minor_arcsec=fit.minor_px * sky.cell_arcsec,
        noise_jy=noise / level if level > 0 else math.nan,
        snr=snr,
        pb=level,
        offset_arcsec=offset,
        offset_beams=offset / (math.sqrt(beam.major_px * beam.minor_px) * sky.cell_arcsec),
    )


def _beam_at(pb: SkyImage | None, ra: float, dec: float) -> float:
    if pb is None:
        return 1.0
    x, y = pb.to_pixel(ra, dec)
    if not (math.isfinite(x) and math.isfinite(y)):
        return 0.0
    ny, nx = pb.data.shape
    level = float(pb.data[min(max(round(y), 0), ny - 1), min(max(round(x), 0), nx - 1)])
    return level if math.isfinite(level) else 0.0


def _local_noise(image: NDArray[np.float32], x: float, y: float, beam: Beam) -> float:
    half = max(30, math.ceil(10 * beam.major_px))
    cx, cy = round(x), round(y)
    cut = image[max(0, cy - half) : cy + half + 1, max(0, cx - half) : cx + half + 1]
    return robust_noise(cut) if np.isfinite(cut).any() else math.nan


def sidecar_path(stem: Path) -> Path:
    """Return the JSON file whose presence says that a product is whole: ``x.img`` gives ``x.img.json``."""
    return stem.with_name(stem.name + ".json")


def write_product(product: ImageProduct) -> None:
    """Write the description of a finished product, last of all its files."""
    text = json.dumps({"version": _VERSION, "product": product.to_json()}, indent=1, sort_keys=True, allow_nan=False)
    write_text(sidecar_path(product.stem), text + "\n")


def read_product(stem: Path) -> ImageProduct:
    """Return the product of a stem, as described beside it; its files are not looked at.

    Raises
    ------
    MissingError
        If there is no description.
    InputError
        If it is damaged or of another version.
    """
    path = sidecar_path(stem)
    try:
        plain = json.loads(path.read_text())
        version, product = plain["version"], plain["product"]
    except FileNotFoundError as error:
        raise MissingError(f"no image {stem}: {path.name} is not there", fix="make the image") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe an image: {error}", fix="make the image again") from error
    if version != _VERSION:
        raise InputError(f"{path} is of version {version}, wanted {_VERSION}", fix="make the image again")
    return ImageProduct.from_json(product, stem.parent)


def verify_product(product: ImageProduct) -> None:
    """Prove that every file of a product is there and unchanged.

    Raises
    ------
    MissingError
        Naming a file that is gone.
    InputError
        Naming one whose bytes have changed.
    """
    for path in _files_of(product):
        if not path.exists():
            raise MissingError(f"{path} is gone", fix="make the image again")
        wanted = product.sha256.get(path.name)
        if wanted is not None and sha256(path) != wanted:
            raise InputError(f"{path} was changed after it was made", fix="make the image again")


def _files_of(product: ImageProduct) -> Iterable[Path]:
    return [*product.fits.values(), *product.native.values(), product.png]


def set_cards(header: Any, cards: Mapping[str, tuple[Any, str]], history: Sequence[str]) -> None:
    """Put cards and HISTORY lines into a FITS header; text is brought to ASCII, as FITS wants it."""
    for name, (value, comment) in cards.items():
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if isinstance(value, str):
            value = _ascii(value)
        header[name] = (value, comment)
    for line in history:
        header.add_history(_ascii(line))


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode().replace("\n", " ")
