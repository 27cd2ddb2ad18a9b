"""Channels averaged before an image is made: the same visibilities, whatever the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nightbeam.casa.model import CasaCall
from nightbeam.core.files import storage_errors
from nightbeam.imaging.model import ImageRequest
from nightbeam.ms.averaging import can_be_averaged, write_averaged

__all__ = ["CROSS", "average_here", "split_call"]

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


def average_here(request: ImageRequest, averaged: Path) -> dict[str, Any] | None:
    """Write what `split_call` would, in this process and for a third of the work; rows of which all is flagged stay.

    Returns
    -------
    dict or None
        What was done, for the image's parameters; None, and nothing was done, where it takes CASA: for some of the
        windows, a range of baselines, or channels that are no multiple of the width.
    """
    options = request.options
    if options.uvrange.strip() or options.spw.strip(" *") or not can_be_averaged(request.ms, request.width):
        return None
    column = {"corrected": "CORRECTED_DATA", "data": "DATA"}[request.datacolumn]
    with storage_errors(averaged):
        write_averaged(request.ms, averaged, column=column, width=request.width, fields=request.fields)
    return {"datacolumn": request.datacolumn, "width": request.width, "fields": list(request.fields)}
