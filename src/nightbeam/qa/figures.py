"""Small figures of flags, uv coverage, gains and images; each returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nightbeam.imaging.figures import draw_image
from nightbeam.imaging.files import SkyImage
from nightbeam.imaging.model import SourceFit
from nightbeam.qa.compute import GainPoints, Waterfall, amplitudes_by_spacing
from nightbeam.qa.model import VisibilitySample

__all__ = ["draw_amplitudes", "draw_flags", "draw_gains", "draw_sky", "draw_uv", "draw_waterfall"]

_POLARIZATION_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_flags(by_antenna: Mapping[str, float], by_window: Mapping[int, float]) -> Any:
    """Return bars of the flagged per cent of each antenna and of each spectral window."""
    figure = _figure(7.0, 4.5)
    above, below = figure.subplots(2, 1)
    for axes, bars, label in ((above, by_antenna, "antenna"), (below, by_window, "spectral window")):
        names = [str(name) for name in bars]
        axes.bar(range(len(names)), [100.0 * f for f in bars.values()], color="tab:gray")
        step = max(1, len(names) // 32)
        axes.set_xticks(range(0, len(names), step), names[::step], fontsize="x-small", rotation=90 if step > 1 else 0)
        axes.set(
            xlabel=label, ylabel="flagged (%)", ylim=(0, _top(bars.values())), xlim=(-0.7, max(len(names), 1) - 0.3)
        )
    return figure


def _top(fractions: Iterable[float]) -> float:
    return min(100.0, max(5.0, 110.0 * max(fractions, default=0.0)))


def draw_uv(sample: VisibilitySample) -> Any:
    """Return the uv coverage, each visibility with its conjugate."""
    figure = _figure(4.2, 4.0)
    axes = figure.add_subplot()
    for sign in (1, -1):
        dots = {"marker": ",", "alpha": 0.5} if len(sample.u_klambda) > 2000 else {"marker": ".", "markersize": 2}
        axes.plot(sign * sample.u_klambda, sign * sample.v_klambda, linestyle="", color="black", **dots)
    axes.set(xlabel="u (kilo-wavelengths)", ylabel="v (kilo-wavelengths)", aspect="equal")
    axes.invert_xaxis()  # east to the left, as on the sky
    return figure


def draw_amplitudes(sample: VisibilitySample) -> Any:
    """Return amplitude against spacing: the median and the middle two thirds."""
    figure = _figure(5.0, 3.6)
    axes = figure.add_subplot()
    if len(sample.amplitude):
        binned = amplitudes_by_spacing(np.hypot(sample.u_klambda, sample.v_klambda), sample.amplitude)
        axes.fill_between(binned.spacing_klambda, binned.low, binned.high, color="tab:gray", alpha=0.4)
        axes.plot(binned.spacing_klambda, binned.median, "o-", color="black", markersize=3)
    unit = "Jy" if sample.column == "CORRECTED_DATA" else "as recorded"
    axes.set(xlabel="spacing (kilo-wavelengths)", ylabel=f"mean amplitude ({unit})", xlim=(0, None), ylim=(0, None))
    axes.set_title(sample.column, fontsize="small")
    return figure


def draw_waterfall(bandpass: Waterfall, *, title: str = "") -> Any:
    """Return a bandpass: one line of pixels an antenna; amplitude and phase of each polarization."""
    pols = len(bandpass.amplitude)
    figure = _figure(7.5, 2.4 * pols + 0.6)
    grid = figure.subplots(pols, 2, squeeze=False, sharex=True, sharey=True)
    extent = (float(bandpass.freq_mhz[0]), float(bandpass.freq_mhz[-1]), len(bandpass.antennas) - 0.5, -0.5)
    finite = bandpass.amplitude[np.isfinite(bandpass.amplitude)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    for pol, (left, right) in enumerate(grid):
        shown = left.imshow(bandpass.amplitude[pol], extent=extent, aspect="auto", vmin=low, vmax=high, cmap="viridis")
        figure.colorbar(shown, ax=left, label="amplitude")
        shown = right.imshow(
            bandpass.phase_deg[pol], extent=extent, aspect="auto", vmin=-180, vmax=180, cmap="twilight"
        )
        figure.colorbar(shown, ax=right, label="phase (deg)")
        step = max(1, len(bandpass.antennas) // 16)
        left.set_yticks(range(0, len(bandpass.antennas), step), bandpass.antennas[::step], fontsize="x-small")
        left.set_ylabel(f"antenna, product {pol}")
    for axes in grid[-1]:
        axes.set_xlabel("frequency (MHz)")
    if title:
        figure.suptitle(title, fontsize="small")
    return figure


def draw_gains(points: GainPoints, *, title: str = "", delays: bool = False) -> Any:
    """Return every solution by antenna: amplitude (or delay) above, phase below; one colour a polarization."""
    figure = _figure(7.0, 2.4 if delays else 4.5)
    panels = figure.subplots(1 if delays else 2, 1, squeeze=False, sharex=True)[:, 0]
    for pol in np.unique(points.polarization):
        of = points.polarization == pol
        colour = _POLARIZATION_COLOURS[int(pol) % 4]
        at = points.antenna[of] + 0.25 * (float(pol) - 0.5)
        panels[0].plot(at, points.amplitude[of], ".", markersize=3, color=colour, label=f"product {pol}")
        if not delays:
            panels[1].plot(at, points.phase_deg[of], ".", markersize=3, color=colour)
    panels[0].set_ylabel("delay (ns)" if delays else "amplitude")
    if len(points.antenna):
        panels[0].legend(fontsize="x-small", loc="upper right")
    if not delays:
        panels[1].set(ylabel="phase (deg)", ylim=(-190, 190), yticks=(-180, -90, 0, 90, 180))
    step = max(1, len(points.names) // 32)
    panels[-1].set_xticks(range(0, len(points.names), step), points.names[::step], fontsize="x-small", rotation=90)
    panels[-1].set_xlabel("antenna")
    if title:
        figure.suptitle(title, fontsize="small")
    return figure


def draw_sky(sky: SkyImage, sources: Sequence[SourceFit] = (), *, title: str = "") -> Any:
    """Return the image with a circle where each source was looked for: green found, red not."""
    figure = draw_image(sky, title=title, inches=5.0)
    axes = figure.axes[0]
    for source in sources:
        x, y = sky.to_pixel(source.ra_deg, source.dec_deg)
        if np.isfinite(x):
            colour = "tab:green" if source.found else "tab:red"
            axes.plot([x], [y], "o", fillstyle="none", markersize=11, markeredgewidth=1.8, color=colour)
    if sources:
        axes.set(xlim=(-0.5, sky.data.shape[1] - 0.5), ylim=(-0.5, sky.data.shape[0] - 0.5))
    return figure
