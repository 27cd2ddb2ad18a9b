"""Channels averaged before an image is made: the same visibilities, whatever the engine."""

from __future__ import annotations

from pathlib import Path

from nightbeam.casa.model import CasaCall
from nightbeam.imaging.model import ImageRequest

__all__ = ["CROSS", "split_call"]

#: Cross-correlations only: an autocorrelation at the origin of the uv plane adds a pedestal.
CROSS = "*&"


def split_call(request: ImageRequest, averaged: Path) -> CasaCall:
    """Return what CASA has to do to write the selection, ``request.width`` channels averaged, as a set of its own.

    Its data are in DATA, whichever column they come from.
    """
    options = request.options
    return CasaCall(
        "split",
        {
            "vis": request.ms.absolute(),
            "outputvis": averaged,
            "datacolumn": request.datacolumn,
            "field": options.field,
            "spw": options.spw,
            "uvrange": options.uvrange,
            "antenna": CROSS,
            "width": request.width,
            "keepflags": False,
        },
    )
