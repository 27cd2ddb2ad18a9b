"""From a Measurement Set to a finished, measured, described image: made aside, published as one."""

from __future__ import annotations

import glob
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nightbeam import __version__
from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.core.files import (
    directory_bytes,
    part_path,
    remove,
    replace_path,
    require_space,
    scratch_directory,
    sha256,
    storage_errors,
)
from nightbeam.core.locks import sole_owner
from nightbeam.core.times import datetime_from_mjd, iso_z, utc_now
from nightbeam.imaging.compute import (
    ARCSEC_PER_RAD,
    averaging_width,
    central_quarter,
    choose_cell_arcsec,
    correct_for_beam,
    drift_beam,
    robust_noise,
    synthesized_beam_rad,
    w_planes,
)
from nightbeam.imaging.figures import draw_image, save_png
from nightbeam.imaging.files import (
    SkyImage,
    check_image,
    read_product,
    set_cards,
    sidecar_path,
    verify_product,
    write_image,
    write_product,
)
from nightbeam.imaging.model import (
    KINDS,
    EngineImages,
    ImageKind,
    ImageOptions,
    ImagePlan,
    ImageProduct,
    Imager,
    ImageRequest,
    product_path,
)
from nightbeam.imaging.remote import check_data, check_engine, imager_named
from nightbeam.imaging.visibilities import (
    Visibilities,
    drift_pointings,
    fingerprint,
    is_transit,
    read_visibilities,
)
from nightbeam.sky import beam_fwhm_rad
from nightbeam.sky.model import SPEED_OF_LIGHT_M_S

__all__ = ["image_ms", "plan_image"]

logger = logging.getLogger(__name__)

#: Frequencies at which the beam is averaged over the band.
_BEAM_FREQUENCIES = 5
_CARDS = {
    "calibration_set": ("CALSET", "calibration set applied"),
    "calibration_date": ("CALDATE", "and its date"),
    "imaging": ("IMAGING", "full, or quick: fewer pixels and components"),
}


def plan_image(ms: Path, stem: Path, *, options: ImageOptions | None = None) -> ImagePlan:
    """Return what `image_ms` would make, without making anything.

    Raises
    ------
    MissingError, InputError
        As `image_ms` would.
    """
    options = options or ImageOptions()
    check_engine(options)
    vis = read_visibilities(ms, options)
    check_data(options, vis)
    return _plan(ms, stem, options, vis)


def image_ms(
    ms: Path,
    stem: Path,
    *,
    options: ImageOptions | None = None,
    work_dir: Path,
    provenance: Mapping[str, str] | None = None,
    engine: Imager | None = None,
    log: Path | None = None,
    timeout_s: float = 1800.0,
    threads: int = 1,
    memory_gb: float = 4.0,
    force: bool = False,
) -> ImageProduct:
    """Make an image of a Measurement Set, check it, measure it and describe it.

    Parameters
    ----------
    ms
        A calibrated Measurement Set; it is only read.
    stem
        What the names of the products begin with, e.g. ``images/2025-10-02T01:02:03.img``: beside it appear
        ``.image.fits``, ``.pb.fits``, ``.image.pbcor.fits``, ``.residual.fits``, ``.model.fits``, ``.png`` and, last
        of all, ``.json``, whose presence says that the product is whole.
    options
        How; the defaults of `ImageOptions` if not given.
    work_dir
        Where scratch directories are made; they are gone when this returns.
    provenance
        Goes into the FITS headers and the description, e.g. ``{"calibration_set": ..., "calibration_date": ...}``.
    engine
        An imager; that of ``options.engine`` if not given.
    log
        The engine's words are appended here; by default ``<stem>.log``.
    timeout_s, threads
        Of the engine's child process. Its threads wait for each other by spinning: more of them than there are free
        cores make it many times slower, and a tile gains little from a second.
    memory_gb
        What WSClean plans its gridding for; tclean cannot be told.
    force
        Make it again even if a finished product of the same data and options is there.

    Returns
    -------
    ImageProduct
        The one that was there, if it is of the same data (`visibilities.fingerprint`) and options and its
        files are unchanged; else a new one.

    Raises
    ------
    MissingError
        If there is no Measurement Set, or no such field or window.
    InputError
        If it holds nothing to image.
    RejectedError
        If what came out is blank.
    ToolError
        If the engine is not installed or failed; the end of its log is quoted.
    BusyError
        If somebody else is making the same image.
    StorageError
        If there is no room.
    """
    options = options or ImageOptions()
    ms, stem = ms.absolute(), stem.absolute()
    if not stem.name or stem.is_dir():
        raise UsageError(f"{stem} is no name for an image", fix="give a directory and the beginning of a name")
    with storage_errors(stem), sole_owner(stem.with_name(f".{stem.name}.lock"), what=f"the image {stem.name}"):
        if not ms.is_dir():
            raise MissingError(f"no Measurement Set {ms}", fix="check the name, or convert the group first")
        before = fingerprint(ms)
        if not force and (found := _finished(stem, before, options)):
            logger.info("%s is finished already", stem.name)
            return found
        for stale in stem.parent.glob(f".{glob.escape(stem.name)}.*.part"):  # of one that was killed while publishing
            remove(stale)
        if engine is None:
            check_engine(options)
        maker = engine or imager_named(options.engine)
        scratch = scratch_directory(work_dir.absolute(), owner="imaging")
        try:
            return _make(
                ms, stem, options, maker, scratch, dict(provenance or {}), before,
                log=log or stem.with_name(stem.name + ".log"), timeout_s=timeout_s, threads=threads,
                memory_gb=memory_gb,
            )  # fmt: skip
        finally:
            remove(scratch)


def _finished(stem: Path, before: str, options: ImageOptions) -> ImageProduct | None:
    try:
        product = read_product(stem)
        if product.input_fingerprint != before or product.options != options or product.version != __version__:
            return None
        verify_product(product)
    except (MissingError, InputError) as error:
        if sidecar_path(stem).exists():
            logger.warning("%s is made again: %s", stem.name, error.what)
        return None
    return product


def _plan(ms: Path, stem: Path, options: ImageOptions, vis: Visibilities) -> ImagePlan:
    cell = options.cell_arcsec or _automatic_cell(options, vis)
    half_width = math.radians(0.5 * options.imsize * cell / 3600.0)
    # Nothing bright enough to matter lies beyond the half power of the beam.
    half_power = 0.6 * SPEED_OF_LIGHT_M_S / vis.freq_hz / vis.diameter_m if vis.diameter_m > 0 else half_width
    width = 1
    if ":" not in options.spw:
        width = averaging_width(
            [len(w.freqs_hz) for w in vis.windows],
            vis.channel_width_hz,
            most=options.chanbin,
            uv_max_m=vis.uv_max_m,
            offset_rad=min(half_width, half_power),
            max_loss=options.max_smearing,
        )
    return ImagePlan(
        ms=ms,
        stem=stem,
        engine=options.engine,
        datacolumn=vis.datacolumn,
        imsize=options.imsize,
        cell_arcsec=cell,
        field_of_view_deg=options.imsize * cell / 3600.0,
        channels_averaged=width,
        uv_max_m=vis.uv_max_m,
        freq_hz=vis.freq_hz,
        flagged_fraction=vis.flagged_fraction,
        beam_model=_beam_name(options, vis),
        expected=tuple(product_path(stem, kind) for kind in _kinds(options)) if not options.skip_fits else (),
    )


def _w_planes(options: ImageOptions, plan: ImagePlan) -> int:
    if options.wprojplanes > 0:
        return options.wprojplanes
    field = math.radians(plan.field_of_view_deg)
    return w_planes(uv_max_m=plan.uv_max_m, freq_hz=plan.freq_hz, field_of_view_rad=field)


def _automatic_cell(options: ImageOptions, vis: Visibilities) -> float:
    whole_beam = _beam_fwhm_rad(vis)
    minor = synthesized_beam_rad(
        vis.uv_wavelengths, weighting=options.weighting, robust=options.robust, field_of_view_rad=whole_beam
    )
    return choose_cell_arcsec(
        uv_max_m=vis.uv_max_m,
        freq_hz=vis.freq_hz,
        imsize=options.imsize,
        field_of_view_arcsec=whole_beam * ARCSEC_PER_RAD,
        beam_minor_arcsec=minor * ARCSEC_PER_RAD,
    )


def _beam_fwhm_rad(vis: Visibilities) -> float:
    if is_transit(vis.summary.telescope):
        return beam_fwhm_rad(vis.freq_hz, diameter_m=vis.diameter_m)
    return 1.2 * SPEED_OF_LIGHT_M_S / vis.freq_hz / max(vis.diameter_m, 1.0)


def _beam_name(options: ImageOptions, vis: Visibilities) -> str:
    if options.beam_model != "auto":
        return options.beam_model
    if is_transit(vis.summary.telescope):
        return "dsacalib"
    return "airy" if options.engine == "wsclean" else "engine"


def _kinds(options: ImageOptions) -> tuple[ImageKind, ...]:
    return tuple(kind for kind in KINDS if options.pbcor or kind != "pbcor")


def _make(
    ms: Path,
    stem: Path,
    options: ImageOptions,
    maker: Imager,
    scratch: Path,
    provenance: dict[str, str],
    before: str,
    *,
    log: Path,
    timeout_s: float,
    threads: int,
    memory_gb: float,
) -> ImageProduct:
    begin = time.monotonic()
    vis = read_visibilities(ms, options)
    check_data(options, vis)
    plan = _plan(ms, stem, options, vis)
    require_space(scratch, _scratch_bytes(ms, plan), what=f"imaging {ms.name}")
    made = maker.make(
        ImageRequest(
            ms=ms, directory=scratch, options=options, datacolumn=plan.datacolumn, cell_arcsec=plan.cell_arcsec,
            width=plan.channels_averaged, w_planes=_w_planes(options, plan), fields=vis.fields, frame=vis.field.frame,
            centre=(vis.field.ra_deg, vis.field.dec_deg), log=log, timeout_s=timeout_s,
            threads=threads, memory_gb=memory_gb, rows_flagged=vis.rows_flagged,
        )
    )  # fmt: skip
    planes: dict[str, SkyImage] = {
        kind: check_image(made.fits[kind], kind, imsize=options.imsize) for kind in KINDS if kind in made.fits
    }
    planes["pb"] = _beam_image(planes, plan.beam_model, vis, path=product_path(scratch / "tile", "pb"))
    if options.pbcor:
        path = product_path(scratch / "tile", "pbcor")
        image = planes["image"]
        corrected = correct_for_beam(image.data, planes["pb"].data, limit=options.pblimit)
        planes["pbcor"] = replace(image, path=path, data=corrected, header=image.header.copy())
    product = _measured(ms, stem, options, maker.name, made, planes, plan, vis, provenance, before)
    _complete_files(planes, product)
    native = _native_images(maker, made, planes, options, log, timeout_s)
    for kind in planes:
        check_image(planes[kind].path, kind, imsize=options.imsize)
    png = scratch / "tile.png"
    title = f"{product.object_name}  {iso_z(datetime_from_mjd(product.mid_mjd))}  {product.freq_hz / 1e6:.0f} MHz"
    save_png(draw_image(planes["image"], title=title), png)
    product = replace(product, seconds=round(time.monotonic() - begin, 3))
    return _publish(product, {kind: plane.path for kind, plane in planes.items()}, native, png)


def _scratch_bytes(ms: Path, plan: ImagePlan) -> int:
    # What split writes, and what WSClean reorders of it: 20 bytes for two correlations, which take 25 in a set.
    return 40 * 4 * plan.imsize**2 + 2 * directory_bytes(ms) // plan.channels_averaged


def _beam_image(planes: Mapping[str, SkyImage], model: str, vis: Visibilities, *, path: Path) -> SkyImage:
    if model == "engine":
        return planes["pb"]
    image = planes["image"]  # has the coordinates, whether or not the engine made a beam
    pb = planes.get("pb") or replace(image, path=path, header=image.header.copy())
    drift = is_transit(vis.summary.telescope)
    pointings = drift_pointings(vis) if drift else np.array([[vis.field.ra_deg, vis.field.dec_deg]])
    edges = min(w.low_hz for w in vis.windows), max(w.high_hz for w in vis.windows)
    data = drift_beam(
        pb.wcs,
        (pb.data.shape[0], pb.data.shape[1]),
        pointings,
        [float(f) for f in np.linspace(*edges, _BEAM_FREQUENCIES)],
        model=model,  # type: ignore[arg-type]
        diameter_m=vis.diameter_m,
    )
    return replace(pb, data=data)


def _measured(
    ms: Path,
    stem: Path,
    options: ImageOptions,
    engine: str,
    made: EngineImages,
    planes: Mapping[str, SkyImage],
    plan: ImagePlan,
    vis: Visibilities,
    provenance: dict[str, str],
    before: str,
) -> ImageProduct:
    image, residual = planes["image"], planes["residual"].data
    noise, noise_centre = robust_noise(residual), robust_noise(central_quarter(residual))
    y, x = np.unravel_index(int(np.argmax(image.data)), image.data.shape)
    peak = float(image.data[y, x])
    peak_ra, peak_dec = image.to_sky(float(x), float(y))
    pbcor = planes.get("pbcor")
    summary, header = vis.summary, image.header
    exact_band = ":" in options.spw  # channels picked by CASA: only it knows how many
    return ImageProduct(
        stem=stem,
        ms=ms,
        engine=engine,
        fits={},
        native={},
        png=stem.with_name(stem.name + ".png"),
        object_name=vis.field.name,
        telescope=summary.telescope,
        beam_major_arcsec=float(header["BMAJ"]) * 3600.0,
        beam_minor_arcsec=float(header["BMIN"]) * 3600.0,
        beam_pa_deg=float(header["BPA"]),
        noise_jy=noise,
        noise_centre_jy=noise_centre,
        peak_jy=peak,
        peak_ra_deg=peak_ra,
        peak_dec_deg=peak_dec,
        deepest_jy=float(image.data.min()),
        dynamic_range=peak / noise if noise > 0 else 0.0,
        peak_pbcor_jy=float(np.nanmax(pbcor.data)) if pbcor is not None and np.isfinite(pbcor.data).any() else math.nan,
        ra_deg=float(header["CRVAL1"]) % 360.0,
        dec_deg=float(header["CRVAL2"]),
        imsize=options.imsize,
        cell_arcsec=plan.cell_arcsec,
        freq_hz=float(header["CRVAL3"]) if str(header.get("CTYPE3", "")).startswith("FREQ") else vis.freq_hz,
        bandwidth_hz=abs(float(header["CDELT3"])) if exact_band else vis.bandwidth_hz,
        integration_s=len(vis.times_mjd) * summary.integration_s,
        start_mjd=summary.start_mjd,
        mid_mjd=summary.mid_mjd,
        end_mjd=summary.end_mjd,
        datacolumn=plan.datacolumn,
        flagged_fraction=vis.flagged_fraction,
        channels_averaged=plan.channels_averaged,
        beam_model=plan.beam_model,
        pbcor=pbcor is not None,
        made_at=utc_now(),
        seconds=0.0,
        version=__version__,
        versions={"nightbeam": __version__, **made.versions},
        parameters=_plain(made.parameters),
        provenance=provenance,
        options=options,
        input_fingerprint=before,
    )


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in parameters.items()}


def _complete_files(planes: Mapping[str, SkyImage], product: ImageProduct) -> None:
    cards, history = _cards(product), _history(product)
    for kind, plane in planes.items():
        header = plane.header
        extra = {"BTYPE": ("Beam" if kind == "pb" else "Intensity", ""), "BUNIT": _unit(kind)}
        set_cards(header, cards | extra, history)
        if kind in ("pb", "model"):
            for name in ("BMAJ", "BMIN", "BPA"):
                header.remove(name, ignore_missing=True)
        write_image(plane.path, plane.data, header, like=(1, 1, *plane.data.shape))


def _unit(kind: str) -> tuple[str, str]:
    return {"pb": ("", "power pattern, 1 at its centre"), "model": ("Jy/pixel", "")}.get(kind, ("Jy/beam", ""))


def _cards(product: ImageProduct) -> dict[str, tuple[Any, str]]:
    middle, start, end = (datetime_from_mjd(m) for m in (product.mid_mjd, product.start_mjd, product.end_mjd))
    cards: dict[str, tuple[Any, str]] = {
        "OBJECT": (product.object_name, ""),
        "TELESCOP": (product.telescope, ""),
        "TIMESYS": ("UTC", ""),
        "DATE-OBS": (_fits_time(start), "beginning of the first integration"),
        "DATE-AVG": (_fits_time(middle), "middle"),
        "DATE-END": (_fits_time(end), "end of the last integration"),
        "MJD-OBS": (product.start_mjd, "[d]"),
        "MJD-AVG": (product.mid_mjd, "[d]"),
        "EXPTIME": (product.integration_s, "[s] time on the sky"),
        "RESTFRQ": (product.freq_hz, "[Hz]"),
        "BANDWID": (product.bandwidth_hz, "[Hz] sum of the channels"),
        "NOISE": (product.noise_jy, "[Jy/beam] 1.4826 MAD of the residual"),
        "NOISECEN": (product.noise_centre_jy, "[Jy/beam] the same, central quarter"),
        "DYNRANGE": (product.dynamic_range, "peak over NOISE"),
        "DATACOL": (product.datacolumn.upper(), "column that was imaged"),
        "FLAGFRAC": (product.flagged_fraction, "flagged fraction of the visibilities"),
        "PBMODEL": (product.beam_model, "primary beam; engine: the imager's own"),
        "PBLIMIT": (abs(product.options.pblimit), "beam level where pbcor ends"),
        "IMAGER": (_imager(product), ""),
        "CREATOR": (f"nightbeam {product.version}", ""),
    }
    for name, (card, comment) in _CARDS.items():
        if name in product.provenance:
            cards[card] = (product.provenance[name], comment)
    return cards


def _imager(product: ImageProduct) -> str:
    version = product.versions.get(product.engine) or product.versions.get("casatasks", "")
    return f"{product.engine} {version}".strip()


def _fits_time(when: Any) -> str:
    return str(when.strftime("%Y-%m-%dT%H:%M:%S.%f"))[:-3]


def _history(product: ImageProduct) -> list[str]:
    versions = ", ".join(f"{name} {value}" for name, value in product.versions.items())
    lines = [f"nightbeam: made {iso_z(product.made_at)} with {versions}", f"nightbeam: from {product.ms.name}"]
    lines += [f"nightbeam: {name} = {value}" for name, value in sorted(product.provenance.items())]
    lines += [f"nightbeam: option {name} = {value!r}" for name, value in sorted(asdict(product.options).items())]
    lines += [f"nightbeam: {product.engine} {name} = {value!r}" for name, value in sorted(product.parameters.items())]
    return lines


def _native_images(
    maker: Imager,
    made: EngineImages,
    planes: Mapping[str, SkyImage],
    options: ImageOptions,
    log: Path,
    timeout_s: float,
) -> dict[str, Path]:
    if not (options.skip_fits or options.keep_casa_images):
        return {}
    native = {name.removeprefix("."): path for name, path in made.native.items()}
    changed: tuple[Literal["pb", "pbcor"], ...] = ("pb", "pbcor")
    for kind in changed:  # those that the engine does not know in our form
        if kind in planes:
            target = product_path(planes["image"].path.with_name("tile"), kind, fits=False)
            maker.adopt(planes[kind].path, target, log=log, timeout_s=timeout_s)
            native["image.pbcor" if kind == "pbcor" else kind] = target
    return native


def _publish(product: ImageProduct, fits: Mapping[str, Path], native: Mapping[str, Path], png: Path) -> ImageProduct:
    """Bring everything beside its final name, then rename it all; the description goes first and comes last."""
    stem = product.stem
    targets = {} if product.options.skip_fits else {kind: product_path(stem, kind) for kind in KINDS if kind in fits}
    moves = [(fits[kind], target) for kind, target in targets.items()]
    kept = {name: stem.with_name(f"{stem.name}.{name}") for name in native}
    moves += [(native[name], target) for name, target in kept.items()]
    moves.append((png, product.png))
    parts = [(part_path(target), target) for _, target in moves]
    try:
        for (source, _), (part, _) in zip(moves, parts, strict=True):
            _move(source, part)
        digests = {target.name: sha256(part) for part, target in parts}
        sidecar_path(stem).unlink(missing_ok=True)
        for kind in KINDS:  # what an earlier product of other options has left
            remove(product_path(stem, kind))
        for part, target in parts:
            replace_path(part, target)
    finally:
        for part, _ in parts:
            remove(part)
    product = replace(product, fits=targets, native=kept, sha256=digests)
    write_product(product)
    return product


def _move(source: Path, target: Path) -> None:
    import shutil

    shutil.move(source, target)  # a rename, or a copy where scratch is another file system
