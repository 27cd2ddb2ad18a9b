"""Small figures of flags, coverage, solutions, sources and images; each returns a matplotlib Figure.

Colours are those of Okabe and Ito, which people with any colour vision tell apart, and what matters differs
in its form besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightbeam.imaging.figures import draw_image, plain_bar
from nightbeam.imaging.files import SkyImage
from nightbeam.imaging.model import SourceFit
from nightbeam.qa.compute import GainPoints, Panels, by_spacing
from nightbeam.qa.files import CoarsePlane
from nightbeam.qa.model import SourceComparison, VisibilitySample

__all__ = [
    "BLUE",
    "ORANGE",
    "draw_flags",
    "draw_gains",
    "draw_mosaic",
    "draw_panels",
    "draw_sky",
    "draw_sources",
    "draw_uv",
    "draw_visibilities",
]

#: Okabe & Ito (2008): blue, vermillion, sky blue, reddish purple.
BLUE, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#56B4E9", "#CC79A7"
_OF_PRODUCT = (BLUE, ORANGE, PURPLE, "black")
_MARK_OF_PRODUCT = ("o", "x", "+", ".")

Floats = NDArray[np.floating[Any]]


def _figure(width: float, height: float, *, layout: Literal["constrained"] | None = "constrained") -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


# -- flags and coverage -----------------------------------------------------------------------------------------


def draw_flags(
    by_antenna: Mapping[str, float],
    by_window: Mapping[str, float],
    by_length: Mapping[str, float],
    *,
    dead: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
) -> Any:
    """Return bars of the flagged per cent of each antenna, window and class of baseline length.

    Dead antennas are hatched, for all of them is flagged; broken and dotted lines are where a warning begins and where
    it is bad.
    """
    figure = _figure(8.0, 5.6)
    grid = figure.add_gridspec(2, 2)
    by_antenna = {name: by_antenna.get(name, 1.0) for name in _natural([*by_antenna, *dead])}
    for place, bars, label in (
        (grid[0, :], by_antenna, "antenna" + (f" (hatched: {len(dead)} dead)" if dead else "")),
        (grid[1, 0], by_window, "spectral window"),
        (grid[1, 1], by_length, "baseline length"),
    ):
        axes = figure.add_subplot(place)
        names, values = list(bars), [100.0 * v for v in bars.values()]
        drawn = axes.bar(range(len(names)), values, color=SKY, edgecolor=BLUE, linewidth=0.4)
        for name, bar in zip(names, drawn, strict=True):
            if bars is by_antenna and name in dead:
                bar.set(facecolor="white", edgecolor=ORANGE, hatch="////")
        _name_ticks(axes, names, most=32 if bars is by_antenna else 16)
        alive = [v for n, v in zip(names, values, strict=True) if not (bars is by_antenna and n in dead)]
        top = min(100.0, max(5.0, 1.15 * max(alive, default=0.0)))
        for at, style in zip(limits or (), ("--", ":"), strict=False):
            if 100.0 * at < top:
                axes.axhline(100.0 * at, color="black", linewidth=0.8, linestyle=style)
        axes.set(xlabel=label, ylabel="flagged (%)", ylim=(0, top), xlim=(-0.7, max(len(names), 1) - 0.3))
        if not any(alive):
            _say_empty(axes, "nothing of what works is flagged" if names else "nothing to show")
    return figure


def _natural(names: Sequence[str]) -> list[str]:
    """Return names once each, numbers in the order of numbers."""
    return sorted(dict.fromkeys(names), key=lambda n: (0, int(n), n) if n.isdecimal() else (1, 0, n))


def _name_ticks(axes: Any, names: Sequence[str], *, most: int) -> None:
    step = max(1, -(-len(names) // most))
    turned = len(names) > 12 or any(len(name) > 5 for name in names)
    axes.set_xticks(range(0, len(names), step), names[::step], fontsize="x-small", rotation=90 if turned else 0)


def _say_empty(axes: Any, text: str = "nothing to show") -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="gray")


def draw_uv(uv_klambda: Floats, *, gap: tuple[float, float] | None = None, title: str = "") -> Any:
    """Return the uv coverage (n, 2), each place with its conjugate: all of it, and its middle.

    ``gap`` is where the largest gap between spacings begins and ends; it is shaded.
    """
    from matplotlib.patches import Annulus

    figure = _figure(8.0, 4.2)
    spacing = np.hypot(*uv_klambda.T) if len(uv_klambda) else np.zeros(0)
    longest = float(spacing.max(initial=0.0)) or 1.0
    inner = 1.15 * float(np.percentile(spacing, 60)) if len(spacing) else 1.0
    for axes, reach in zip(figure.subplots(1, 2), (1.05 * longest, min(inner, 1.05 * longest)), strict=True):
        size = 0.7 if len(uv_klambda) > 2000 else 2.0
        for sign in (1, -1):
            axes.plot(*(sign * uv_klambda.T), linestyle="", marker=".", markersize=size, color=BLUE, markeredgewidth=0)
        if gap is not None and all(map(math.isfinite, gap)) and gap[1] <= 1.02 * longest:
            axes.add_patch(Annulus((0, 0), gap[1], max(1e-9, gap[1] - gap[0]), color=ORANGE, alpha=0.25, linewidth=0))
        # east to the left, as on the sky
        axes.set(xlabel="u (kilo-wavelengths)", aspect="equal", xlim=(reach, -reach), ylim=(-reach, reach))
        if not len(uv_klambda):
            _say_empty(axes)
    figure.axes[0].set_ylabel("v (kilo-wavelengths)")
    figure.suptitle(title or None, fontsize="small")
    return figure


def draw_visibilities(sample: VisibilitySample, *, dots: int = 1500) -> Any:
    """Return amplitude and phase against spacing: dots, the median, and the band of the middle two thirds."""
    figure = _figure(6.4, 5.2)
    above, below = figure.subplots(2, 1, sharex=True)
    spacing = np.hypot(sample.u_klambda, sample.v_klambda)
    chosen = thin(len(spacing), dots)
    top = float(np.nanpercentile(sample.amplitude, 99.5)) if len(spacing) else 1.0
    for axes, values in ((above, sample.amplitude), (below, sample.phase_deg)):
        axes.plot(spacing[chosen], values[chosen], ".", markersize=1.5, color=SKY, alpha=0.6, zorder=1)
    if len(spacing):
        binned = by_spacing(sample)
        for axes, levels in ((above, binned.amplitude), (below, binned.phase_deg)):
            axes.fill_between(binned.spacing_klambda, levels[0], levels[2], color=BLUE, alpha=0.25, linewidth=0)
            axes.plot(binned.spacing_klambda, levels[1], "-", color=BLUE, linewidth=1.2)
        most = float(np.nanmax(binned.amplitude))
        top = max(top, most)
    else:
        _say_empty(above)
        _say_empty(below)
    unit = "Jy" if sample.column == "CORRECTED_DATA" else "as recorded"
    above.set(ylabel=f"mean amplitude ({unit})", ylim=(0, 1.08 * top if top > 0 else 1.0))
    above.set_title(f"{sample.column}: line, median; band, 16 to 84 %", fontsize="small")
    below.set(xlabel="spacing (kilo-wavelengths)", ylabel="phase (deg)", xlim=(0, None), ylim=(-190, 190))
    below.set_yticks((-180, -90, 0, 90, 180))
    return figure


def thin(n: int, most: int) -> NDArray[np.int64]:
    """Return at most so many numbers below ``n``, ascending, with no pattern in them; always the same ones."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))


# -- solutions --------------------------------------------------------------------------------------------------


def draw_panels(panels: Panels, quantity: str, *, xlabel: str, title: str = "") -> Any:
    """Return ``amplitude`` or ``phase`` by antenna: one small panel each, one line a product, all of one scale.

    Parameters
    ----------
    panels
        Solutions along frequency or time.
    quantity
        ``"amplitude"`` or ``"phase"``.
    """
    values = panels.amplitude if quantity == "amplitude" else panels.phase_deg
    count = max(1, len(panels.antennas))
    columns = max(1, min(count, math.ceil(math.sqrt(1.6 * count))))
    lines = -(-count // columns)
    width, height = max(5.0, min(12.0, 1.0 + 1.2 * columns)), max(2.6, min(9.6, 1.1 + 0.95 * lines))
    # One pair of axes for all of them: a hundred pairs take many seconds to lay out.
    figure = _figure(width, height, layout=None)
    axes = figure.add_axes((0.75 / width, 0.5 / height, 1.0 - 0.85 / width, 1.0 - 1.0 / height))
    axes.set(xlim=(-0.02, columns), ylim=(lines, -0.02))
    axes.axis("off")
    span = _Span(*_x_range(panels.x)), _Span(*_range(values, quantity))
    _frames(axes, count, columns)
    _lines(axes, panels, values, columns, span)
    for k, name in enumerate(panels.antennas):
        axes.text(k % columns + 0.05, k // columns + 0.06, name, fontsize=6.5, va="top", weight="bold")
    _scales(axes, count, columns, span, "phase" if quantity == "phase" else "")
    if not panels.antennas:
        axes.text(0.5, 0.5, "no antenna has a solution", ha="center", va="center", color="gray")
    figure.text(0.5, 0.06 / height, xlabel, ha="center", va="bottom", fontsize="small")
    unit = "phase (deg)" if quantity == "phase" else "amplitude"
    figure.text(0.08 / width, 0.5, unit, ha="left", va="center", rotation=90, fontsize="small")
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_OF_PRODUCT[p % 4], label=f"product {p}") for p in range(len(values))]
    figure.legend(handles=handles, loc="upper right", ncols=4, fontsize="x-small", frameon=False)
    figure.text(
        0.08 / width, 1.0 - 0.06 / height, _with_without(title, panels.without), ha="left", va="top", fontsize="small"
    )
    return figure


class _Span(NamedTuple):
    """What one side of every panel runs over."""

    low: float
    high: float

    def place(self, values: Any) -> Any:
        """Return values as shares of the side; what lies beyond stays at the edge."""
        return np.clip((np.asarray(values, float) - self.low) / (self.high - self.low), 0.0, 1.0)

    def ticks(self) -> list[float]:
        """Return two to four round numbers inside."""
        from matplotlib.ticker import MaxNLocator

        inside: list[float] = []
        for bins in (2, 3, 4, 5):
            found = MaxNLocator(nbins=bins, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
            inside = [float(t) for t in found if self.low < t < self.high]
            if len(inside) > 1:
                break
        return inside


#: Share of a cell that its panel takes.
_PANEL = 0.93


def _frames(axes: Any, count: int, columns: int) -> None:
    from matplotlib.collections import LineCollection

    square = np.array([(0, 0), (_PANEL, 0), (_PANEL, _PANEL), (0, _PANEL), (0, 0)])
    frames = [square + np.array([k % columns, k // columns]) for k in range(count)]
    axes.add_collection(LineCollection(frames, colors="gray", linewidths=0.5))


def _lines(axes: Any, panels: Panels, values: Floats, columns: int, span: tuple[_Span, _Span]) -> None:
    from matplotlib.collections import LineCollection

    x = _PANEL * span[0].place(panels.x)
    for pol in range(len(values)):
        y = _PANEL * (1.0 - span[1].place(values[pol]))
        paths = [np.stack([x + k % columns, y[k] + k // columns], axis=1) for k in range(len(panels.antennas))]
        colour = _OF_PRODUCT[pol % 4]
        axes.add_collection(LineCollection(paths, colors=colour, linewidths=0.7))
        if len(panels.x) < 8 and paths:
            axes.plot(*np.concatenate(paths).T, linestyle="", marker=".", markersize=2.5, color=colour)


def _scales(axes: Any, count: int, columns: int, span: tuple[_Span, _Span], quantity: str) -> None:
    """Put numbers at the left of each line of panels, and below the last panel of each column."""
    y_ticks = [-180.0, 0.0, 180.0] if quantity == "phase" and span[1].low < -170 else span[1].ticks()
    for line in range(-(-count // columns)):
        for tick in y_ticks:
            at = line + _PANEL * (1.0 - float(span[1].place(tick)))
            axes.text(-0.04, at, f"{tick:g}", fontsize=5, ha="right", va="center")
            axes.plot([0, 0.03], [at, at], color="gray", linewidth=0.5)
    for column in range(min(columns, count)):
        last = (count - 1 - column) // columns
        for tick in span[0].ticks():
            at = column + _PANEL * float(span[0].place(tick))
            axes.text(at, last + _PANEL + 0.03, f"{tick:g}", fontsize=5, ha="center", va="top")


def _x_range(x: Floats) -> tuple[float, float]:
    if not len(x):
        return 0.0, 1.0
    first, last = float(x[0]), float(x[-1])
    return (first, last) if last > first else (first - 1.0, first + 1.0)


def _range(values: Floats, quantity: str) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if quantity == "phase":
        reach = float(np.percentile(np.abs(finite), 99.5)) if finite.size else 180.0
        return (-190.0, 190.0) if reach > 60.0 else (-max(5.0, 1.3 * reach), max(5.0, 1.3 * reach))
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (0.5, 99.5)))
    room = 0.25 * (high - low) or 0.1 * abs(high) or 0.1
    return max(0.0, low - room), high + room


def _with_without(title: str, without: Sequence[str]) -> str:
    if not without:
        return title
    named = ", ".join(without[:10]) + (f" and {len(without) - 10} more" if len(without) > 10 else "")
    return f"{title}\nno solution: {named}"


def draw_gains(points: GainPoints, *, title: str = "", delays: bool = False) -> Any:
    """Return every solution by antenna: amplitude (or delay) above, phase below; a colour and mark a product."""
    figure = _figure(8.0, 2.6 if delays else 4.6)
    panels = figure.subplots(1 if delays else 2, 1, squeeze=False, sharex=True)[:, 0]
    for pol in np.unique(points.polarization):
        of = points.polarization == pol
        look = {"color": _OF_PRODUCT[int(pol) % 4], "marker": _MARK_OF_PRODUCT[int(pol) % 4], "linestyle": ""}
        at = points.antenna[of] + 0.3 * (float(pol) - 0.5)
        chosen = thin(len(at), 6000)
        panels[0].plot(at[chosen], points.amplitude[of][chosen], markersize=2.5, label=f"product {pol}", **look)
        if not delays:
            panels[1].plot(at[chosen], points.phase_deg[of][chosen], markersize=2.5, **look)
    panels[0].set_ylabel("delay (ns)" if delays else "amplitude")
    if len(points.antenna):
        figure.legend(loc="outside upper right", ncols=4, fontsize="x-small", frameon=False)
        panels[0].set_xlim(-0.7, len(points.names) - 0.3)
    else:
        _say_empty(panels[0], "no antenna has a solution")
    if not delays:
        finite = points.amplitude[np.isfinite(points.amplitude)]
        if finite.size:
            panels[0].set_ylim(0, 1.15 * float(np.percentile(finite, 99.5)) or 1.0)
        panels[1].set(ylabel="phase (deg)", ylim=(-190, 190), yticks=(-180, -90, 0, 90, 180))
    _name_ticks(panels[-1], list(points.names), most=48)
    panels[-1].set_xlabel("antenna")
    figure.suptitle(title or None, fontsize="small", x=0.01, ha="left")
    return figure


# -- the sky ----------------------------------------------------------------------------------------------------


def draw_sky(sky: SkyImage, sources: Sequence[SourceFit] = (), *, title: str = "") -> Any:
    """Return the image with a mark where each source was looked for: a blue circle found, an orange cross not."""
    figure = draw_image(sky, title=title, inches=5.6)
    axes = figure.axes[0]
    looks = {
        True: {"marker": "o", "color": BLUE, "fillstyle": "none", "markersize": 11, "label": "found"},
        False: {"marker": "x", "color": ORANGE, "markersize": 8, "label": "not found"},
    }
    for found, look in looks.items():
        places = [sky.to_pixel(s.ra_deg, s.dec_deg) for s in sources if s.found is found]
        places = [place for place in places if np.isfinite(place[0])]
        if places:
            axes.plot(*zip(*places, strict=True), linestyle="", markeredgewidth=1.6, **look)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", fontsize="x-small", framealpha=0.9)
    axes.set(xlim=(-0.5, sky.data.shape[1] - 0.5), ylim=(-0.5, sky.data.shape[0] - 0.5))
    return figure


def draw_sources(
    found: SourceComparison,
    *,
    beam_arcsec: float,
    ratio_limits: tuple[float, float],
    offset_limits: tuple[float, float],
) -> Any:
    """Return flux measured against flux listed, and how far the sources are from their places.

    Broken lines are where a warning begins, dotted ones where it is bad; the gray disc is the beam.
    """
    from matplotlib.patches import Circle

    figure = _figure(8.0, 3.9)
    left, right = figure.subplots(1, 2)
    seen, listed = found.found, found.catalogue_jy
    fluxes = np.concatenate([listed, found.measured_jy[seen]])
    fluxes = fluxes[np.isfinite(fluxes) & (fluxes > 0)]
    low, high = (0.6 * fluxes.min(), 1.7 * fluxes.max()) if fluxes.size else (0.1, 10.0)
    line = np.array([low, high])
    left.plot(line, line, color="black", linewidth=0.8)
    for factor, style in zip(ratio_limits, ("--", ":"), strict=True):
        for by in (factor, 1.0 / factor):
            left.plot(line, by * line, color="black", linewidth=0.7, linestyle=style)
    left.plot(listed[seen], found.measured_jy[seen], "o", color=BLUE, markersize=4, label="found")
    if (~seen).any():
        left.plot(listed[~seen], np.full((~seen).sum(), 1.15 * low), "x", color=ORANGE, label="not found")
    left.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    left.set(xlabel="flux of the list (Jy)", ylabel="measured (Jy)")
    left.legend(fontsize="x-small", loc="upper left")
    left.set_title(found.catalogue, fontsize="small")
    _plain_logs(left)
    away = np.hypot(found.east_arcsec[seen], found.north_arcsec[seen])
    reach = 1.15 * max(offset_limits[0], float(np.nanmax(away, initial=0.0)))
    if math.isfinite(beam_arcsec) and beam_arcsec > 0:
        right.add_patch(Circle((0, 0), 0.5 * beam_arcsec, color="#e8e8e8", zorder=0))
    for radius, style in zip(offset_limits, ("--", ":"), strict=True):
        right.add_patch(Circle((0, 0), radius, fill=False, linestyle=style, linewidth=0.8))
    right.plot(found.east_arcsec[seen], found.north_arcsec[seen], "o", color=BLUE, markersize=4)
    right.axhline(0, color="black", linewidth=0.4)
    right.axvline(0, color="black", linewidth=0.4)
    right.set(xlim=(reach, -reach), ylim=(-reach, reach), aspect="equal")
    right.set_title("gray: the beam; broken: warning; dotted: bad", fontsize="small")
    right.set(xlabel="east of the list (arcsec)", ylabel="north of the list (arcsec)")
    return figure


def _plain_logs(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize="x-small")


def draw_mosaic(
    image: CoarsePlane,
    noise: CoarsePlane | None,
    *,
    tiles: Mapping[str, Floats] | None = None,
    rejected: Mapping[str, Floats] | None = None,
    title: str = "",
) -> Any:
    """Return a mosaic and its noise map beside each other, with the outlines (n, 2; ICRS degrees) of its tiles.

    Tiles are blue, rejected ones orange and broken. A strip that is wide has its noise below.
    """
    ny, nx = image.data.shape
    planes = [p for p in (image, noise) if p is not None]
    wide = nx > 1.3 * ny
    ratio = min(max(ny / nx, 0.16), 3.0)
    size = (9.0, len(planes) * (0.9 + 8.0 * ratio)) if wide else (4.9 * len(planes), 0.9 + 4.0 * ratio)
    figure = _figure(size[0], min(11.0, size[1]))
    for k, plane in enumerate(planes):
        wcs = plane.wcs.slice((slice(None, None, plane.step), slice(None, None, plane.step)))
        place = (len(planes), 1, k + 1) if wide else (1, len(planes), k + 1)
        axes = figure.add_subplot(*place, projection=wcs)
        shown = axes.imshow(1e3 * plane.data, origin="lower", interpolation="none", **_stretch(plane, image=k == 0))
        bar = figure.colorbar(shown, ax=axes, shrink=0.95, pad=0.01)
        plain_bar(bar)
        bar.set_label("mJy/beam" if k == 0 else "noise (mJy/beam)", fontsize="small")
        bar.ax.tick_params(labelsize="x-small")
        for outlines, colour, style in ((tiles, BLUE, "-"), (rejected, ORANGE, "--")):
            for outline in (outlines or {}).values():
                _draw_outline(axes, wcs, outline, colour, style)
        axes.set(xlim=(-0.5, plane.data.shape[1] - 0.5), ylim=(-0.5, plane.data.shape[0] - 0.5))
        for coord, label in zip(axes.coords, ("right ascension", "declination"), strict=True):
            coord.set_axislabel(label, fontsize="small")
            coord.set_ticklabel(size="x-small", exclude_overlapping=True)
    figure.suptitle(title or None, fontsize="small")
    return figure


def _stretch(plane: CoarsePlane, *, image: bool) -> dict[str, Any]:
    from matplotlib.colors import AsinhNorm, LogNorm

    finite = plane.data[np.isfinite(plane.data)]
    if not finite.size:
        return {"cmap": "gray_r", "vmin": 0.0, "vmax": 1.0}
    if image:
        middle = float(np.median(finite))
        spread = 1.4826 * float(np.median(np.abs(finite - middle))) or 1e-6
        top = max(middle + 20.0 * spread, 0.5 * float(finite.max()))
        norm = AsinhNorm(3e3 * spread, vmin=1e3 * (middle - 3.0 * spread), vmax=1e3 * top)
        return {"cmap": "gray_r", "norm": norm}
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high > 3.0 * low:
        return {"cmap": "cividis", "norm": LogNorm(1e3 * low, 1e3 * high)}
    return {"cmap": "cividis", "vmin": 1e3 * low, "vmax": 1e3 * (high if high > low else low + 1e-6)}


def _draw_outline(axes: Any, wcs: Any, outline: Floats, colour: str, style: str) -> None:
    from astropy.coordinates import SkyCoord
    from astropy.wcs.utils import skycoord_to_pixel

    good = outline[np.isfinite(outline).all(axis=1)]
    if len(good) < 3:
        return
    place = SkyCoord(good[:, 0], good[:, 1], unit="deg", frame="icrs")
    with np.errstate(invalid="ignore"):
        x, y = skycoord_to_pixel(place, wcs, origin=0)
    axes.plot(np.append(x, x[0]), np.append(y, y[0]), color=colour, linestyle=style, linewidth=0.8)
