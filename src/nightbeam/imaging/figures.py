"""Pictures of images: axes of the sky, the beam, a bar with units. Drawn without a screen and without pyplot."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, Final

import numpy as np

from nightbeam.core.files import write_bytes
from nightbeam.imaging.compute import robust_noise
from nightbeam.imaging.files import SkyImage

__all__ = ["draw_image", "plain_bar", "png_bytes", "save_png"]

#: From here on a sky that is wider than high is drawn across, with its bar below.
_ACROSS: Final = 1.6


def draw_image(sky: SkyImage, *, title: str = "", inches: float = 6.0) -> Any:
    """Return a matplotlib Figure of an image in mJy/beam.

    Grey from -3 to 20 times the robust noise through an arcsinh, so that noise and bright sources both show; right
    ascension grows to the left; the restoring beam is drawn in the lower left corner. The figure is as long as the sky:
    a strip is ``1.6 * inches`` wide and no higher than it needs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import AsinhNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse

    ny, nx = sky.data.shape
    across = nx > _ACROSS * ny
    size = (1.6 * inches, 1.5 + 1.6 * inches * max(ny / nx, 0.06)) if across else (inches, 0.87 * inches)
    figure = Figure(figsize=size, layout="constrained")
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
    below: dict[str, Any] = {"location": "bottom", "aspect": 60, "shrink": 0.6, "pad": 0.02}
    bar = figure.colorbar(shown, ax=axes, **(below if across else {"shrink": 0.9}))
    plain_bar(bar)
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


def plain_bar(bar: Any) -> None:
    """Put few and plain numbers at a colour bar: 0 and whole powers of ten, or 1, 2 and 5 times them if there is room.

    No number stands so near to 0 that the two touch.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = float(bar.norm.vmin), float(bar.norm.vmax)
    least = max(abs(low), 1e-9) if low <= 0 else low
    decades = [10.0**k for k in range(math.floor(math.log10(least)), math.ceil(math.log10(max(high, least))) + 1)]
    factors = (1.0,) if len(decades) > 4 else (1.0, 2.0, 5.0)
    ticks = [t for d in decades for t in (f * d for f in factors) if least <= t <= high]
    axis = bar.long_axis
    axis.set_major_locator(FixedLocator([0.0, *ticks] if low < 0 else ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


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
