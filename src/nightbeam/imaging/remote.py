"""CASA's tclean as an imager, in a child process."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nightbeam.casa.model import CasaCall
from nightbeam.casa.remote import run_casa
from nightbeam.core.errors import UsageError
from nightbeam.core.files import remove
from nightbeam.imaging.averaging import CROSS, average_here, split_call
from nightbeam.imaging.model import (
    ENGINES,
    MAJOR_GAIN,
    EngineImages,
    ImageKind,
    ImageOptions,
    Imager,
    ImageRequest,
    product_path,
)
from nightbeam.imaging.visibilities import Visibilities
from nightbeam.imaging.wsclean import WscleanImager, check_wsclean, check_wsclean_data

__all__ = ["TcleanImager", "check_data", "check_engine", "imager_named"]

logger = logging.getLogger(__name__)

_MADE: tuple[ImageKind, ...] = ("image", "pb", "residual", "model")


class TcleanImager:
    """CASA tclean: channels averaged first, here or by CASA, then multi-frequency synthesis of Stokes I."""

    name = "tclean"

    def make(self, request: ImageRequest) -> EngineImages:
        """Average, image and export in one child process.

        Raises
        ------
        ToolError
            If CASA fails, says SEVERE, or takes longer than ``request.timeout_s``.
        """
        stem = request.directory / "tile"
        averaged = request.directory / "averaged.ms"
        calls = []
        if request.width > 1 and average_here(request, averaged) is None:
            calls.append(split_call(request, averaged))
        parameters = _tclean_arguments(request, averaged if request.width > 1 else None, stem)
        calls.append(CasaCall("tclean", parameters))
        for kind in _MADE:
            calls.append(CasaCall("exportfits", _export_arguments(stem, kind)))
        for stale in request.directory.glob("tile.*"):
            remove(stale)  # tclean would go on with images of this name
        run_casa(
            calls, work_dir=request.directory, log=request.log, timeout_s=request.timeout_s, threads=request.threads
        )
        remove(averaged)
        native = {path.name.removeprefix("tile"): path for path in request.directory.glob("tile.*") if path.is_dir()}
        return EngineImages(
            fits={kind: product_path(stem, kind) for kind in _MADE},
            native={name: path for name, path in sorted(native.items()) if name in _NATIVE},
            parameters={name: value for name, value in parameters.items() if name not in ("vis", "imagename")},
            versions={package: version(package) for package in ("casatasks", "casatools", "python-casacore")},
        )

    def adopt(self, fits: Path, native: Path, *, log: Path, timeout_s: float) -> None:
        """Write a FITS image as a CASA image."""
        call = CasaCall("importfits", {"fitsimage": fits.absolute(), "imagename": native.absolute(), "overwrite": True})
        run_casa([call], work_dir=native.parent, log=log, timeout_s=timeout_s)


_NATIVE = frozenset({".image", ".pb", ".residual", ".model", ".psf"})


def imager_named(name: str) -> Imager:
    """Return the engine of that name.

    Raises
    ------
    UsageError
        If there is none.
    """
    engines: list[Imager] = [TcleanImager(), WscleanImager()]
    for engine in engines:
        if engine.name == name:
            return engine
    raise UsageError(f"no imaging engine {name!r}", fix=f"choose {' or '.join(ENGINES)}")


def check_engine(options: ImageOptions) -> None:
    """Say before any work is done what would stop the engine of some options.

    Raises
    ------
    UsageError
        If it cannot do what an option asks.
    ToolError
        If its program is not installed.
    """
    if options.engine == WscleanImager.name:
        check_wsclean(options)


def check_data(options: ImageOptions, vis: Visibilities) -> None:
    """Say before any work is done what of the data the engine of some options cannot image.

    Raises
    ------
    InputError
        If the fields selected have different centres, or Stokes I cannot be made of the correlations.
    """
    if options.engine == WscleanImager.name:
        check_wsclean_data(vis)


def _tclean_arguments(request: ImageRequest, averaged: Path | None, stem: Path) -> dict[str, Any]:
    options = request.options
    selection: dict[str, Any] = (
        {"vis": averaged, "datacolumn": "data"}
        if averaged
        else {
            "vis": request.ms.absolute(),
            "datacolumn": request.datacolumn,
            "field": options.field,
            "spw": options.spw,
            "uvrange": options.uvrange,
            "antenna": CROSS,
        }
    )
    return selection | {
        "imagename": stem,
        "imsize": [options.imsize, options.imsize],
        "cell": [f"{request.cell_arcsec:.6f}arcsec"],
        "phasecenter": options.phasecenter,
        "specmode": "mfs",
        "stokes": "I",
        "gridder": options.gridder,
        "wprojplanes": request.w_planes if options.gridder == "wproject" else 1,
        # A positive limit would put a mask on image and residual; ours ends only the corrected image.
        "pblimit": -abs(options.pblimit),
        "psfcutoff": options.psfcutoff,
        "deconvolver": options.deconvolver,
        "weighting": options.weighting,
        "robust": options.robust,
        "niter": options.niter,
        "threshold": f"{options.threshold_jy!r}Jy",
        **_major_cycle(options.deconvolver),
        "interactive": False,
        "savemodel": "none",
        "parallel": False,
        "pbcor": False,  # corrected by our own beam, once it is known
        "restart": False,
    }


def _major_cycle(deconvolver: str) -> dict[str, float]:
    """Return how deep one round of cleaning goes: as deep as WSClean's, with the algorithm that subtracts whole beams.

    CASA's own rule, the highest sidelobe times what is left, makes about twice as many rounds with our array, and each
    grids all data again. Clark's subtracts a patch of the beam, and needs that rule; the others
    were not tried without it.
    """
    if deconvolver != "hogbom":
        return {}
    left = round(1.0 - MAJOR_GAIN, 6)
    return {"minpsffraction": left, "maxpsffraction": left}


def _export_arguments(stem: Path, kind: ImageKind) -> dict[str, Any]:
    return {
        "imagename": product_path(stem, kind, fits=False),
        "fitsimage": product_path(stem, kind),
        "overwrite": True,
        "history": kind == "image",
    }
