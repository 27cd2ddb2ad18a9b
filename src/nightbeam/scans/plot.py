"""Figures of calibrated scans: one of a scan's spectrum, receivers and air, one of a whole night."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import BaseZarrError

from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.core.files import write_bytes
from nightbeam.scans.files import scan_name
from nightbeam.scans.summary import ScanSummary, store_attributes, summarize_scan, summarize_store

__all__ = ["ScanView", "draw_night", "draw_scan", "plot_night", "plot_scan", "velocity_km_s", "view_scan"]

_GHZ: Final = 1e9
_LIGHT_KM_S: Final = 299_792.458
#: Spectra are read in pieces of about so many bytes.
_PIECE_BYTES: Final = 8 << 20
#: The picture of all dumps has at most so many rows and columns.
_PICTURE: Final = (1024, 1024)


@dataclass(frozen=True, slots=True)
class ScanView:
    """What a figure of a scan shows; channels ascend in signal frequency, and what is flagged is NaN.

    Attributes
    ----------
    freq_ghz, ta_star_k : (channel,)
        Signal frequency, and the mean spectrum, weighted, over dumps and pixels.
    t_sys_k, t_rec_k : (channel,)
        Median over pixels, or of the one.
    tau_s, tau_i : (channel,), nepers
        Towards the zenith, of each channel's signal and image frequency.
    image_ghz : (channel,)
    dumps_k : (row, column), K
        Mean spectra of groups of dumps, in groups of channels.
    dumps, pixels
        How many there are.
    pixel
        The only one that is shown; None: all.
    """

    summary: ScanSummary
    freq_ghz: NDArray[np.float64]
    image_ghz: NDArray[np.float64]
    ta_star_k: NDArray[np.float64]
    t_sys_k: NDArray[np.float64]
    t_rec_k: NDArray[np.float64]
    tau_s: NDArray[np.float64]
    tau_i: NDArray[np.float64]
    dumps_k: NDArray[np.float64]
    dumps: int
    pixels: int
    pixel: int | None


def velocity_km_s(freq_ghz: NDArray[np.float64], rest_ghz: float) -> NDArray[np.float64]:
    """Return radio velocities: ``c (1 - f / f_rest)``, in the frame of the frequencies.

    Examples
    --------
    >>> round(float(velocity_km_s(np.array(99.0), 100.0)), 3)
    2997.925
    """
    return np.asarray(_LIGHT_KM_S * (1.0 - np.asarray(freq_ghz) / rest_ghz))


# -- reading ------------------------------------------------------------------------------------------------------


def view_scan(l1: Path, scan: int, *, pixel: int | None = None) -> ScanView:
    """Read what a figure shows of a scan, some dumps at a time.

    Raises
    ------
    MissingError
        If there is no such store or scan.
    InputError
        If the store, or an array of the scan, is damaged.
    UsageError
        If there is no such pixel.
    """
    store_attributes(l1)
    summary = summarize_scan(l1, scan)
    try:
        group = zarr.open_group(l1 / "scans" / scan_name(scan), mode="r", zarr_format=3, use_consolidated=False)
        return _view(summary, group, pixel)
    except (BaseZarrError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        raise InputError(
            f"the result of scan {scan} in {l1} cannot be read: {type(error).__name__}: {str(error)[:300]}",
            fix=f"calibrate it again: nightbeam scans calibrate L0 {l1} --scan {scan} --force",
        ) from error


def _view(summary: ScanSummary, group: Any, pixel: int | None) -> ScanView:
    dumps, pixels, _ = group["ta_star"].shape
    if pixel is not None and not 0 <= pixel < pixels:
        raise UsageError(f"scan {summary.scan} has no pixel {pixel}", fix=f"they are 0 to {pixels - 1}")
    freq = group["frequency"][...]
    order = np.argsort(freq)
    mean, picture = _mean_spectra(group, pixel)
    by_channel = {name: _of_pixels(group[name][...] if pixel is None else group[name][pixel : pixel + 1])
                  for name in ("tsys", "trec")}  # fmt: skip
    descending = order.size > 1 and order[0] > order[-1]
    return ScanView(
        summary=summary,
        freq_ghz=freq[order] / _GHZ,
        image_ghz=group["frequency_image"][...][order] / _GHZ,
        ta_star_k=mean[order],
        t_sys_k=by_channel["tsys"][order],
        t_rec_k=by_channel["trec"][order],
        tau_s=np.asarray(group["tau_s"][...], float)[order],
        tau_i=np.asarray(group["tau_i"][...], float)[order],
        dumps_k=picture[:, ::-1] if descending else picture,
        dumps=dumps,
        pixels=pixels,
        pixel=pixel,
    )


def _mean_spectra(group: Any, pixel: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weighted mean over dumps and pixels, and a picture of the means over pixels."""
    spectra, weights = group["ta_star"], group["weight"][...]
    dumps, _, channels = spectra.shape
    by_row, by_column = (-(-size // most) for size, most in zip((dumps, channels), _PICTURE, strict=True))
    starts = np.arange(0, channels, by_column)
    total, weight = np.zeros((2, channels))
    seen, seen_weight = np.zeros((2, -(-dumps // by_row), starts.size))
    for first, last, of in _pieces(spectra, pixel):
        values = spectra[first:last, of]
        share = np.nan_to_num(np.asarray(weights[first:last, of], float))[:, :, None] * np.isfinite(values)
        summed, shared = (np.einsum("dpc->dc", one) for one in (share * np.nan_to_num(values), share))
        total += summed.sum(axis=0)
        weight += shared.sum(axis=0)
        at = np.arange(first, last) // by_row
        np.add.at(seen, at, np.add.reduceat(summed, starts, axis=1))
        np.add.at(seen_weight, at, np.add.reduceat(shared, starts, axis=1))
    return _ratio(total, weight), _ratio(seen, seen_weight)


def _pieces(spectra: Any, pixel: int | None) -> Iterator[tuple[int, int, slice]]:
    """Yield ranges of dumps and of pixels that are whole chunks, and small."""
    dumps, pixels, channels = spectra.shape
    of_dumps, of_pixels, _ = spectra.chunks
    ranges = [slice(n, min(pixels, n + of_pixels)) for n in range(0, pixels, of_pixels)]
    if pixel is not None:
        ranges = [slice(pixel, pixel + 1)]
    fit = _PIECE_BYTES // max(1, of_dumps * of_pixels * channels * spectra.dtype.itemsize)
    step = of_dumps * max(1, fit)
    for first in range(0, dumps, step):
        for of in ranges:
            yield first, min(dumps, first + step), of


def _ratio(total: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0))


def _of_pixels(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the median over pixels; NaN where none is good."""
    median, good = np.full(values.shape[1], np.nan), np.isfinite(values).any(axis=0)
    median[good] = np.nanmedian(values[:, good], axis=0)
    return median


# -- drawing ------------------------------------------------------------------------------------------------------


def draw_scan(view: ScanView, *, rest_ghz: float | None = None) -> Any:
    """Return a matplotlib Figure: mean spectrum, temperatures of the receivers, opacities, and all dumps.

    Parameters
    ----------
    rest_ghz
        Also give the radio velocity of this line, in the frame of the frequencies.

    Raises
    ------
    UsageError
        If that is no frequency.
    """
    if rest_ghz is not None and not 0 < rest_ghz < np.inf:
        raise UsageError(f"a rest frequency of {rest_ghz:g} GHz", fix="give that of a line, above zero")
    figure = _figure(8.0, 10.0)
    spectrum, receiver, air, dumps = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2, 1.5, 3))
    freq = view.freq_ghz
    spectrum.plot(freq, view.ta_star_k, drawstyle="steps-mid", color="black", linewidth=0.7)
    spectrum.axhline(0.0, color="tab:gray", linewidth=0.5)
    spectrum.set_ylabel(r"$T_A^*$ [K]")
    if rest_ghz is not None:
        _velocity_axis(spectrum, rest_ghz)
    for axes, kelvin, name, colour in (
        (receiver, view.t_sys_k, r"$T_{sys}$ [K]", "tab:blue"),
        (receiver.twinx(), view.t_rec_k, r"$T_{rec}$ (DSB) [K]", "tab:red"),
    ):
        axes.plot(freq, kelvin, drawstyle="steps-mid", color=colour, linewidth=0.7)
        axes.set_ylabel(name, color=colour)
        axes.ticklabel_format(axis="y", useOffset=False)
    image = f"image, {view.image_ghz.min():.2f} to {view.image_ghz.max():.2f} GHz"
    air.plot(freq, view.tau_s, color="tab:blue", linewidth=0.9, label="signal")
    air.plot(freq, view.tau_i, color="tab:orange", linewidth=0.9, label=image)
    air.set(ylabel=r"$\tau$ [Np]", ylim=(0, None))
    air.legend(fontsize="x-small", loc="best")
    _draw_dumps(figure, dumps, view)
    dumps.set_xlabel("signal frequency [GHz]")
    dumps.ticklabel_format(axis="x", useOffset=False)
    figure.suptitle(_title(view), fontsize="small")
    return figure


def _draw_dumps(figure: Any, axes: Any, view: ScanView) -> None:
    half = 0.5 * float(np.ptp(view.freq_ghz)) / max(1, view.freq_ghz.size - 1)
    good = view.dumps_k[np.isfinite(view.dumps_k)]
    low, high = np.percentile(good, (0.5, 99.5)) if good.size else (0.0, 1.0)
    shown = axes.imshow(
        view.dumps_k,
        extent=(view.freq_ghz[0] - half, view.freq_ghz[-1] + half, view.dumps - 0.5, -0.5),
        aspect="auto",
        interpolation="none",
        cmap="viridis",
        vmin=low,
        vmax=high,
    )
    axes.set_ylabel("dump")
    figure.colorbar(shown, ax=axes, location="bottom", aspect=50, label=r"$T_A^*$ [K]")


def _velocity_axis(axes: Any, rest_ghz: float) -> None:
    above = axes.secondary_xaxis(
        "top",
        functions=(
            lambda freq: velocity_km_s(freq, rest_ghz),
            lambda velocity: rest_ghz * (1.0 - np.asarray(velocity) / _LIGHT_KM_S),
        ),
    )
    above.set_xlabel(f"radio velocity [km s$^{{-1}}$], rest frequency {rest_ghz:g} GHz")


def _title(view: ScanView) -> str:
    s = view.summary
    of = f"pixel {view.pixel}" if view.pixel is not None else f"{view.pixels} pixels"
    when = "" if s.middle is None else f"{s.middle:%Y-%m-%d %H:%M:%S} UTC"
    water = "" if s.pwv_mm is None else f"pwv {s.pwv_mm:.3f} mm ({s.pwv_source or 'unknown'})"
    parts = (f"scan {s.scan}", s.source, s.obs_type, when, of, f"{view.dumps} dumps", water)
    # A source is called what somebody typed: no formulas.
    return ", ".join(part for part in parts if part).replace("$", r"\$")


def draw_night(scans: Sequence[ScanSummary], *, title: str = "") -> Any:
    """Return a matplotlib Figure: water and system temperature of each scan against the time.

    Raises
    ------
    MissingError
        If no scan says when it was.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    known = [one for one in scans if one.middle is not None]
    begin = min((one.begin for one in known if one.begin is not None), default=None)
    if begin is None:
        raise MissingError("no scan of the store says when it was observed", fix="calibrate some first")
    figure = _figure(8.0, 5.5)
    water, system = figure.subplots(2, 1, sharex=True)
    for source, marker in (("fit", "o"), ("radiometer", "s"), ("configured", "x"), (None, "+")):
        those = [one for one in known if one.pwv_source == source and one.pwv_mm is not None]
        if those:
            water.errorbar(
                [one.middle for one in those],
                [one.pwv_mm for one in those],
                yerr=[0.0 if one.pwv_error_mm is None else one.pwv_error_mm for one in those],
                marker=marker,
                linestyle="",
                capsize=2,
                label=source or "unknown",
            )
    water.set_ylabel("pwv [mm]")
    if water.get_legend_handles_labels()[0]:
        water.legend(fontsize="x-small", title="found by", title_fontsize="x-small")
    measured = [one for one in known if one.t_sys_k is not None]
    system.plot([one.middle for one in measured], [one.t_sys_k for one in measured], "o", color="tab:blue")
    system.set(ylabel=r"median $T_{sys}$ [K]", xlabel=f"UTC, from {begin:%Y-%m-%d}")
    locator = AutoDateLocator()
    system.xaxis.set_major_locator(locator)
    system.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize="small")
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


# -- files --------------------------------------------------------------------------------------------------------


def plot_scan(l1: Path, scan: int, out: Path, *, pixel: int | None = None, rest_ghz: float | None = None) -> Path:
    """Write the figure of a scan as PNG, whole or not at all; returns its place.

    Raises
    ------
    MissingError, InputError, UsageError
        As `view_scan`.
    StorageError
        If it cannot be written.
    """
    return _save(draw_scan(view_scan(l1, scan, pixel=pixel), rest_ghz=rest_ghz), out)


def plot_night(l1: Path, out: Path) -> Path:
    """Write the figure of a night as PNG, whole or not at all; returns its place.

    Raises
    ------
    MissingError, InputError
        If there is no store, it is damaged, or there is no scan in it.
    UsageError
        If its place is a directory.
    StorageError
        If it cannot be written.
    """
    return _save(draw_night(summarize_store(l1), title=l1.name), out)


def _save(figure: Any, out: Path) -> Path:
    if out.is_dir():
        raise UsageError(f"{out} is a directory", fix="name a file for the figure")
    data = io.BytesIO()
    # No date and no version inside: the same figure gives the same bytes.
    figure.savefig(data, format="png", dpi=110.0, metadata={"Software": None})
    write_bytes(out, data.getvalue())
    return out
