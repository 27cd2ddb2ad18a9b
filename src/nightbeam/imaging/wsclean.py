"""WSClean as an imager, in a child process: the second opinion on every image, and the faster one."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam.casa.model import CasaCall
from nightbeam.casa.remote import run_casa
from nightbeam.casa.tables import open_table
from nightbeam.core.children import log_tail, log_tells_of_full_disk, run_child, whose
from nightbeam.core.errors import InputError, NightbeamError, StorageError, ToolError, UsageError
from nightbeam.core.files import remove, storage_errors
from nightbeam.imaging.averaging import average_here, split_call
from nightbeam.imaging.compute import fit_beam
from nightbeam.imaging.files import open_image
from nightbeam.imaging.model import MAJOR_GAIN, EngineImages, ImageKind, ImageOptions, ImageRequest, product_path
from nightbeam.imaging.visibilities import Visibilities
from nightbeam.rfi.files import twin

__all__ = ["WscleanImager", "check_wsclean", "check_wsclean_data", "with_row_flags", "wsclean_arguments"]

PROGRAM = "wsclean"
#: Names of minor cycles that both engines know, and what makes WSClean do them. Its own is Hogbom's, with Clark's way
#: of looking only at the brightest pixels between two rounds through the visibilities.
_DECONVOLVERS: dict[str, tuple[str, ...]] = {"hogbom": (), "clark": (), "multiscale": ("-multiscale",)}
#: Any of these sets of correlations makes a Stokes I.
_STOKES_I = ({"I"}, {"XX", "YY"}, {"RR", "LL"})
_BLOCK_ROWS = 32768
_MEMORY = re.compile(r"bad_alloc|cannot allocate memory|was killed by signal 9")
_MADE: tuple[ImageKind, ...] = ("image", "residual", "model")


class WscleanImager:
    """WSClean: visibilities selected and averaged by CASA, as for tclean; then one image of the whole band, Stokes I.

    Each channel that is left is gridded at its own frequency. The Measurement Set is only read: what WSClean reorders
    and predicts lies in the request's directory. It makes no primary beam for telescopes it does not know;
    `product` makes ours.
    """

    name = "wsclean"

    def make(self, request: ImageRequest) -> EngineImages:
        """Select and average, here or in a child process of CASA, where that is asked for; image in one of WSClean.

        Raises
        ------
        ToolError
            If WSClean is not installed, if it or CASA fails, is killed, or takes longer than ``request.timeout_s``.
        StorageError
            If it found no room for its images or for what it reorders.
        UsageError
            If an option is one that WSClean cannot do.
        """
        check_wsclean(request.options)
        prefix = request.directory / "tile"
        begin = time.monotonic()
        selected = request.width > 1 or request.options.uvrange.strip() or request.options.spw.strip(" *")
        averaged, averaging = _average(request) if selected else (None, {})
        with storage_errors(request.directory):
            asked = request
            if request.rows_flagged and not averaged:  # what is averaged has no row that is flagged as one alone
                asked = replace(request, ms=with_row_flags(request.ms, request.directory / "flagged.ms"))
            argv = [PROGRAM, *wsclean_arguments(asked, prefix, averaged)]
            (request.directory / "reordered").mkdir(exist_ok=True)
            _run(argv, request, timeout_s=max(1.0, request.timeout_s - (time.monotonic() - begin)))
            for used in (averaged, asked.ms if asked is not request else None):
                if used:
                    remove(used)
            fits = {kind: _named(prefix, kind) for kind in _MADE}
            shutil.rmtree(request.directory / "reordered")
            parameters: dict[str, Any] = {"command": shlex.join(argv), **averaging}
            beam = _fit_psf(prefix, request)
            if request.options.niter:
                restore = [PROGRAM, *_restore_arguments(fits, beam, request)]
                _run(restore, request, timeout_s=max(1.0, request.timeout_s - (time.monotonic() - begin)))
                parameters["restore"] = shlex.join(restore)
            for path in fits.values():
                _complete_header(path, request, beam)
        return EngineImages(
            fits=fits,
            native=_as_casa_images(request, fits, prefix),
            parameters=parameters,
            versions={"wsclean": wsclean_version()}
            | ({"casatasks": version("casatasks")} if "split" in averaging else {}),
        )

    def adopt(self, fits: Path, native: Path, *, log: Path, timeout_s: float) -> None:
        """Write a FITS image as a CASA image: WSClean has no format of its own."""
        run_casa([_import(fits, native)], work_dir=native.parent, log=log, timeout_s=timeout_s)


def check_wsclean(options: ImageOptions) -> None:
    """Refuse what WSClean cannot do, and say if it is not there.

    Raises
    ------
    UsageError
        If an option is one that only tclean understands.
    ToolError
        If the program is not installed.
    """
    if options.deconvolver not in _DECONVOLVERS:
        raise UsageError(
            f"WSClean has no deconvolver {options.deconvolver!r}", fix=f"choose {', '.join(_DECONVOLVERS)}, or tclean"
        )
    if options.phasecenter:
        raise UsageError("WSClean images about the field's own centre", fix="leave phasecenter empty, or choose tclean")
    if options.beam_model == "engine":
        raise UsageError("WSClean knows no primary beam of this telescope", fix="choose beam_model auto, or tclean")
    if shutil.which(PROGRAM) is None:
        raise ToolError(
            "WSClean is not installed", fix="apt-get install wsclean, or set contimg.image.engine to tclean"
        )


def check_wsclean_data(vis: Visibilities) -> None:
    """Refuse data that WSClean would image wrongly, or not at all.

    Raises
    ------
    InputError
        If the fields selected have different centres: it grids all as if they had that of the first. If a hand is
        missing: it makes Stokes I of both parallel hands only.
    """
    fields = [field for field in vis.summary.fields if field.index in vis.fields]
    if len({(round(field.ra_deg, 6), round(field.dec_deg, 6)) for field in fields}) > 1:
        raise InputError(
            f"WSClean images one centre, and the fields {', '.join(field.name for field in fields[:6])} have several",
            fix="choose one field, or the engine tclean",
        )
    if not any(pair <= set(vis.hands) for pair in _STOKES_I):
        raise InputError(
            f"WSClean makes Stokes I of both parallel hands, and the data have {', '.join(vis.hands)} only",
            fix="convert both hands",
        )


def wsclean_version() -> str:
    """Return the version that the program says it is, ``unknown`` if it says none."""
    try:
        done = subprocess.run([PROGRAM, "-version"], capture_output=True, text=True, check=False, timeout=60.0)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(r"WSClean version (\S+)", done.stdout)
    return found[1] if found else "unknown"


def wsclean_arguments(request: ImageRequest, prefix: Path, averaged: Path | None = None) -> list[str]:
    """Return what WSClean is called with, but for its own name.

    ``averaged`` holds the selection already, in DATA, with fields and windows that are numbered anew.
    Data are reordered always: left in place, WSClean would keep its model in a column of the Measurement Set.
    Autocorrelations and flagged visibilities it leaves out by itself; Stokes I is the mean of the parallel hands
    where both are good, as in tclean.
    """
    options = request.options
    n = str(options.imsize)
    weight = ["briggs", f"{options.robust:g}"] if options.weighting == "briggs" else [options.weighting]
    clean: list[str] = []
    if options.niter:
        clean = ["-niter", str(options.niter), "-mgain", f"{MAJOR_GAIN:g}", "-threshold", f"{options.threshold_jy!r}"]
        clean += _DECONVOLVERS[options.deconvolver]
    selection = [
        *("-data-column", {"corrected": "CORRECTED_DATA", "data": "DATA"}[request.datacolumn]),
        *("-field", ",".join(map(str, request.fields))),
    ]
    if averaged:
        selection = ["-data-column", "DATA", "-field", "0" if len(request.fields) == 1 else "all"]
    return [
        *("-j", str(request.threads), "-abs-mem", f"{request.memory_gb:g}"),
        *("-reorder", "-temp-dir", str(request.directory / "reordered"), "-no-update-model-required"),
        *("-name", str(prefix), "-size", n, n, "-scale", f"{request.cell_arcsec:.6f}asec"),
        *("-pol", "I", *selection),
        *("-weight", *weight, *(("-use-wgridder",) if options.gridder == "wproject" else ("-nwlayers", "1"))),
        *("-make-psf", *clean),
        str(averaged or request.ms.absolute()),
    ]


def with_row_flags(ms: Path, target: Path) -> Path:
    """Return a set that shares all with another but its flags, where FLAG also says what FLAG_ROW does.

    WSClean never looks at FLAG_ROW. The other set is only read.
    """
    twin(ms, target)
    with open_table(target, write=True) as table:
        for first in range(0, int(table.nrows()), _BLOCK_ROWS):
            count = min(_BLOCK_ROWS, int(table.nrows()) - first)
            whole = table.getcol("FLAG_ROW", first, count)
            if np.any(whole):
                table.putcol("FLAG", table.getcol("FLAG", first, count) | whole[:, None, None], first, count)
    return target


def _average(request: ImageRequest) -> tuple[Path, dict[str, Any]]:
    """Return the set of what is selected, and what was done for it."""
    averaged = request.directory / "averaged.ms"
    done = average_here(request, averaged)
    if done is not None:
        return averaged, {"averaging": done}
    remove(averaged)
    call = split_call(request, averaged)
    run_casa(
        [call],
        work_dir=request.directory,
        log=request.log,
        timeout_s=request.timeout_s,
        threads=request.threads,
    )
    return averaged, {"split": {k: v for k, v in call.kwargs.items() if k not in ("vis", "outputvis")}}


def _run(argv: list[str], request: ImageRequest, *, timeout_s: float) -> None:
    begin = request.log.stat().st_size if request.log.exists() else 0
    env = whose() | {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "HOME": str(request.directory),
        "OMP_NUM_THREADS": str(request.threads),
        "OPENBLAS_NUM_THREADS": "1",  # WSClean's own threads call it
    }
    try:
        run_child(argv, log=request.log, timeout_s=timeout_s, cwd=request.directory, env=env, what="WSClean")
    except ToolError as error:
        said = _since(request.log, begin)
        if log_tells_of_full_disk(request.log, begin, request.directory):
            raise StorageError(
                f"WSClean found no room in {request.directory}:\n{log_tail(request.log, lines=5)}",
                fix="free some space, or set contimg.scratch_dir to a larger disk",
            ) from error
        if _MEMORY.search(said) or _MEMORY.search(error.what):
            raise ToolError(
                f"WSClean ran out of memory or was killed: {error.what}",
                fix=f"lower contimg.image.memory_gb (now {request.memory_gb:g}) or imsize; a later try may work",
            ) from error
        raise


def _since(log: Path, begin: int) -> str:
    with log.open("rb") as data:
        data.seek(begin)
        return data.read().decode(errors="replace")


def _named(prefix: Path, kind: ImageKind) -> Path:
    """Give one of WSClean's images the name that it has with us.

    Without cleaning there is no residual and no model: the image is the residual, and the model is nothing.
    """
    target = product_path(prefix, kind)
    made = prefix.with_name(f"{prefix.name}-{kind}.fits")
    if made.exists():
        made.replace(target)
    elif kind != "image" and (image := product_path(prefix, "image")).exists():
        shutil.copy(image, target)
        if kind == "model":
            _blank(target)
    return target  # where there is none, the check of the images says so


def _blank(path: Path) -> None:
    from astropy.io import fits

    with fits.open(path, mode="update", memmap=False) as hdus:
        hdus[0].data = np.zeros_like(hdus[0].data)


def _fit_psf(prefix: Path, request: ImageRequest) -> tuple[float, float, float]:
    """Return the restoring beam in arcsec and degrees, fitted to the main lobe as for tclean.

    WSClean itself fits a larger box, and calls the beam of the full DSA-110 42 x 10 arcsec where it is 26 x 13.
    """
    path = prefix.with_name(f"{prefix.name}-psf.fits")
    try:
        beam = fit_beam(open_image(path).data, cutoff=request.options.psfcutoff)
    except NightbeamError as error:
        raise ToolError(f"WSClean left no dirty beam that can be fitted: {error.what}", fix="read its log") from error
    return beam.major_px * request.cell_arcsec, beam.minor_px * request.cell_arcsec, beam.pa_deg


def _restore_arguments(
    fits: dict[ImageKind, Path], beam: tuple[float, float, float], request: ImageRequest
) -> list[str]:
    shape = [f"{beam[0]:.6f}asec", f"{beam[1]:.6f}asec", f"{beam[2]:.6f}deg"]
    images = [str(fits[kind]) for kind in ("residual", "model", "image")]
    return ["-j", str(request.threads), "-beam-shape", *shape, "-restore", *images]


def _complete_header(path: Path, request: ImageRequest, beam: tuple[float, float, float]) -> None:
    """Put in the beam, and the centre in the frame of the data: WSClean turns all into J2000, 0.02 arcsec from ICRS."""
    from astropy.io import fits

    if not path.exists():
        return
    with fits.open(path, mode="update", memmap=False) as hdus:
        header: Any = hdus[0].header
        if request.frame == "ICRS":
            header.remove("EQUINOX", ignore_missing=True)
            header["RADESYS"] = "ICRS"
            header["CRVAL1"], header["CRVAL2"] = request.centre
        header["CRVAL1"] = float(header["CRVAL1"]) % 360.0
        header["BMAJ"], header["BMIN"], header["BPA"] = beam[0] / 3600.0, beam[1] / 3600.0, beam[2]


def _import(fits: Path, native: Path) -> CasaCall:
    return CasaCall("importfits", {"fitsimage": fits.absolute(), "imagename": native.absolute(), "overwrite": True})


def _as_casa_images(request: ImageRequest, fits: dict[ImageKind, Path], prefix: Path) -> dict[str, Path]:
    """Return the images by the names that tclean gives its own, where they are asked for."""
    if not (request.options.keep_casa_images or request.options.skip_fits):
        return {}
    sources = {f".{kind}": path for kind, path in fits.items()} | {".psf": prefix.with_name(f"{prefix.name}-psf.fits")}
    native = {name: prefix.with_name(f"{prefix.name}{name}") for name in sources}
    calls = [_import(sources[name], native[name]) for name in sources]
    run_casa(calls, work_dir=request.directory, log=request.log, timeout_s=request.timeout_s)
    return native
