"""Pictures of images: axes of the sky, the beam, a bar with units. Drawn without a screen and without pyplot."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam.core.files import write_bytes
from nightbeam.imaging.compute import robust_noise
from nightbeam.imaging.files import SkyImage

__all__ = ["draw_image", "png_bytes", "save_png"]


def draw_image(sky: SkyImage, *, title: str = "", inches: float = 6.0) -> Any:
    """Return a matplotlib Figure of an image in mJy/beam.

    Grey from -3 to 20 times the robust noise through an arcsinh, so that noise and bright sources both show; right
    ascension grows to the left; the restoring beam is drawn in the lower left corner.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import AsinhNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse

    figure = Figure(figsize=(inches, 0.87 * inches), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(projection=sky.wcs)
    noise = robust_noise(sky.data) * 1e3 or 1e-3
    top = max(20.0 * noise, 0.5e3 * float(np.nanmax(sky.data)))
    shown = axes.imshow(
        1e3 * sky.data,
        origin="lower",
        cmap="gray_r",
        norm=AsinhNorm(linear_width=3.0 * noise, vmin=-3.0 * noise, vmax=top),
        interpolation="none" if max(sky.data.shape) < 400 else "antialiased",
    )
    bar = figure.colorbar(shown, ax=axes, shrink=0.9, format="%g")
    bar.set_label("mJy/beam")
    ra, dec = axes.coords[0], axes.coords[1]
    ra.set_axislabel("right ascension (ICRS)" if sky.wcs.wcs.radesys == "ICRS" else "right ascension (J2000)")
    dec.set_axislabel("declination")
    if "BMAJ" in sky.header:
        beam = sky.beam
        at = 0.04 * max(sky.data.shape) + beam.major_px
        axes.add_patch(
            Ellipse((at, at), beam.minor_px, beam.major_px, angle=beam.pa_deg, facecolor="none", edgecolor="tab:red")
        )
    if title:
        axes.set_title(title, fontsize="medium")
    return figure


def png_bytes(figure: Any, *, dpi: float = 110.0, most_bytes: int | None = None) -> bytes:
    """Return a figure as PNG, with fewer colours and then fewer dots until it fits into ``most_bytes``."""
    data = _render(figure, dpi)
    while most_bytes is not None and len(data) > most_bytes:
        data = _quantised(data)
        if len(data) <= most_bytes:
            break
        dpi *= max(0.5, 0.95 * math.sqrt(most_bytes / len(data)))
        data = _render(figure, dpi)
    return data


def save_png(figure: Any, path: Path, *, dpi: float = 110.0, most_bytes: int | None = None) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_bytes(path, png_bytes(figure, dpi=dpi, most_bytes=most_bytes))


def _render(figure: Any, dpi: float) -> bytes:
    out = io.BytesIO()
    # No date and no version inside: the same figure gives the same bytes.
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def _quantised(data: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").quantize(colors=64, method=Image.Quantize.FASTOCTREE).save(
            out, format="PNG", optimize=True
        )
    return out.getvalue()
