"""A figure of some CXI files: a frame with its peaks, the brightest of all hits, and how many hits there were."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError, UsageError
from nightbeam.core.files import write_bytes
from nightbeam.cxi import layout
from nightbeam.cxi.columns import event_time
from nightbeam.cxi.files import Chunk, kind_of, open_chunk, read_chunk, read_image
from nightbeam.geometry.compute import pixel_maps
from nightbeam.geometry.model import Geometry

__all__ = ["CxiView", "Picture", "draw_view", "picture_of", "plot_files", "view_files"]

#: A picture has at most so many rows or columns.
_PICTURE: Final = 1400
#: The rate is the mean of so many groups of batches at most.
_GROUPS: Final = 200


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """How a slab becomes a picture: as it is, or as the detector stands in the laboratory, seen along the beam.

    Attributes
    ----------
    row, column : (SS, FS), intp
        Where each pixel goes; -1: nowhere.
    shape
        Rows and columns; of several pixels in one place the brightest is seen.
    lab
        Whether it is the laboratory.
    """

    row: NDArray[np.intp]
    column: NDArray[np.intp]
    shape: tuple[int, int]
    lab: bool

    def of(self, slab: NDArray[Any]) -> NDArray[np.float32]:
        """Return the picture of a slab; NaN where no pixel is."""
        picture = np.full(self.shape, np.nan, np.float32)
        seen = self.row >= 0
        with np.errstate(over="ignore"):  # beyond float32: infinite
            values = slab[seen].astype(np.float32)
        np.fmax.at(picture, (self.row[seen], self.column[seen]), values)
        return picture


@dataclass(frozen=True, slots=True, eq=False)
class CxiView:
    """What a figure shows.

    Attributes
    ----------
    frame, powder
        Pictures; None where files have no images.
    peak_row, peak_column
        Where the frame's peaks are in its picture.
    n_peaks
        Of each event, one file after the other.
    when_s : seconds since 1970
        Of each event; 0: unknown.
    rate_event, rate
        Running number of an event, and the fraction of hits about it; empty where files do not say.
    rate_when_s : seconds since 1970
        Of the first event of those that each rate is of; 0: unknown.
    """

    title: str
    lab: bool
    frame: NDArray[np.float32] | None
    powder: NDArray[np.float32] | None
    peak_row: NDArray[np.intp]
    peak_column: NDArray[np.intp]
    frame_name: str
    n_peaks: NDArray[np.int64]
    when_s: NDArray[np.float64]
    rate_event: NDArray[np.float64]
    rate: NDArray[np.float64]
    rate_when_s: NDArray[np.float64]


def picture_of(slab: tuple[int, int], geometry: Geometry | None = None) -> Picture:
    """Return how slabs of a shape become pictures.

    Raises
    ------
    InputError
        If the geometry's panels are not all within the slab.
    """
    if geometry is None:
        step = -(-max(slab) // _PICTURE)
        row, column = np.indices(slab) // step
        return Picture(row, column, (-(-slab[0] // step), -(-slab[1] // step)), lab=False)
    rows, columns = geometry.slab_shape
    if rows > slab[0] or columns > slab[1]:
        raise InputError(f"{geometry.source} has a slab of {rows} x {columns}, the file one of {slab[0]} x {slab[1]}",
                         fix="give the geometry that belongs to the file")  # fmt: skip
    maps = pixel_maps(geometry, clen_m=0.0)
    x, y = (np.full(slab, np.nan, np.float32) for _ in range(2))
    x[:rows, :columns], y[:rows, :columns] = maps.x, maps.y
    pixel = float(np.median([1.0 / panel.res for panel in geometry.panels]))
    extent = max(np.nanmax(x) - np.nanmin(x), np.nanmax(y) - np.nanmin(y))
    step_m = pixel * max(1.0, float(extent) / pixel / _PICTURE)
    row, column = (_cells(values, step_m) for values in (np.nanmax(y) - y, x - np.nanmin(x)))
    return Picture(row, column, (int(row.max()) + 1, int(column.max()) + 1), lab=True)


def _cells(values: NDArray[np.float32], step: float) -> NDArray[np.intp]:
    return np.where(np.isnan(values), -1.0, np.rint(values / step)).astype(np.intp)


def view_files(
    files: Sequence[Path], *, geometry: Geometry | None = None, event: tuple[Path, int] | None = None
) -> CxiView:
    """Read what a figure shows of some files.

    Parameters
    ----------
    geometry
        Pictures are as the detector stands; without it they are slabs.
    event
        Which frame; by default the one with the most peaks.

    Raises
    ------
    MissingError, InputError
        As `nightbeam.cxi.files.read_chunk`; also if there is no file, or no such event.
    """
    if not files:
        raise MissingError("no file to draw", fix="name some CXI files")
    chunks = [read_chunk(path) for path in files]
    chosen, index = _chosen(chunks, event)
    picture = None if chosen.slab is None else picture_of(chosen.slab, geometry)
    rate_event, rate, rate_when_s = _rates(chunks)
    place = _peaks_in(picture, chosen, index)
    return CxiView(
        title=_title(chunks),
        lab=geometry is not None,
        frame=None if picture is None else picture.of(read_image(chosen.path, index)),
        powder=None if picture is None else _powder(chunks, picture, chosen.slab),
        peak_row=place[0],
        peak_column=place[1],
        frame_name=f"{chosen.path.name} //{index}",
        n_peaks=np.concatenate([c.n_peaks for c in chunks]),
        when_s=np.concatenate([_times(c) for c in chunks]),
        rate_event=rate_event,
        rate=rate,
        rate_when_s=rate_when_s,
    )


def _chosen(chunks: Sequence[Chunk], event: tuple[Path, int] | None) -> tuple[Chunk, int]:
    if event is None:
        most = [int(c.n_peaks.max(initial=-1)) for c in chunks]
        chunk = chunks[int(np.argmax(most))]
        if not len(chunk.n_peaks):
            raise MissingError(f"there is no event in {chunk.path}")
        return chunk, int(np.argmax(chunk.n_peaks))
    path, index = event
    chunk = next((c for c in chunks if c.path == path), chunks[0])
    if not 0 <= index < len(chunk.n_peaks):
        raise MissingError(f"{chunk.path} has no event {index}", fix=f"they are 0 to {len(chunk.n_peaks) - 1}")
    return chunk, index


def _peaks_in(picture: Picture | None, chunk: Chunk, index: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    names = ("peakYPosRaw", "peakXPosRaw")
    if picture is None or any(name not in chunk.peaks for name in names):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    places = [np.rint(np.nan_to_num(chunk.table(name, index), nan=-1.0)).astype(np.intp) for name in names]
    inside = np.all([(at >= 0) & (at < n) for at, n in zip(places, picture.row.shape, strict=True)], axis=0)
    at = places[0][inside], places[1][inside]
    row, column = picture.row[at], picture.column[at]
    return row[row >= 0], column[row >= 0]


def _powder(chunks: Sequence[Chunk], picture: Picture, slab: tuple[int, int] | None) -> NDArray[np.float32] | None:
    """Return the brightest of all files whose slabs are alike; each has that of its writer so far."""
    brightest: NDArray[Any] | None = None
    for chunk in (c for c in chunks if c.slab == slab):
        with open_chunk(chunk.path) as file:
            found = file.get(layout.POWDER_HITS)
            if isinstance(found, h5py.Dataset) and found.shape == slab:
                if kind_of(found) not in "iufb":
                    raise InputError(
                        f"{chunk.path}: {layout.POWDER_HITS} has no numbers", fix="mend it or leave it out"
                    )
                brightest = found[...] if brightest is None else np.fmax(brightest, found[...])
    return None if brightest is None else picture.of(brightest)


def _times(chunk: Chunk) -> NDArray[np.float64]:
    stamps = chunk.events.get(layout.TIMESTAMP)
    if stamps is None:
        return np.zeros(len(chunk.n_peaks))
    # What cannot be a time is unknown.
    known = np.isfinite(stamps) & (stamps >= 0) & (stamps < 2.0**64)
    return np.array([_second(int(stamp)) for stamp in np.where(known, stamps, 0)])


def _second(stamp: int) -> float:
    """Return seconds since 1970 of an LCLS time; 0: unknown."""
    seconds, nanoseconds = stamp >> 32, stamp & 0xFFFFFFFF
    return event_time(seconds) + 1e-9 * nanoseconds if seconds else 0.0


def _rates(chunks: Sequence[Chunk]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return of groups of batches where they are, their fractions of hits, and when each began.

    A batch that two files share is counted once.
    """
    counts: dict[Any, tuple[int, int, float]] = {}
    for chunk in chunks:
        records = chunk.attributes.get("batches")
        for record in records if isinstance(records, list) else []:
            if isinstance(record, dict) and {"batch_id", "events", "hits"} <= record.keys():
                counts[str(record.get("producer")), str(record["batch_id"])] = _numbers_of(record, chunk.path)
    if not counts:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    events, hits, when_s = np.array([*counts.values()], float).T
    starts = np.arange(0, len(events), -(-len(events) // _GROUPS))
    summed, shared = np.add.reduceat(events, starts), np.add.reduceat(hits, starts)
    middle = np.cumsum(summed) - summed / 2
    return middle, np.divide(shared, summed, out=np.zeros_like(shared), where=summed > 0), when_s[starts]


def _numbers_of(record: dict[str, Any], path: Path) -> tuple[int, int, float]:
    events, hits = record["events"], record["hits"]
    if not all(isinstance(n, int) and 0 <= n < 2**53 for n in (events, hits)):
        raise InputError(f"{path}: its attribute batches counts events {events!r:.40}, hits {hits!r:.40}",
                         fix="whole numbers are wanted; the file is damaged, or another program's")  # fmt: skip
    stamp = record.get("time")
    return events, hits, _second(stamp) if isinstance(stamp, int) and 0 < stamp < 2**64 else 0.0


def _title(chunks: Sequence[Chunk]) -> str:
    events, peaks = sum(len(c.n_peaks) for c in chunks), sum(int(c.n_peaks.sum()) for c in chunks)
    name = chunks[0].path.name if len(chunks) == 1 else f"{len(chunks)} files, {chunks[0].path.name} ..."
    return f"{name}: {events} events, {peaks} peaks"


# -- drawing ------------------------------------------------------------------------------------------------------


def draw_view(view: CxiView) -> Any:
    """Return a matplotlib Figure: the frame with its peaks, the powder, peaks of each event and the rate of hits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 9.0), layout="constrained")
    FigureCanvasAgg(figure)
    frame, powder, peaks, rate = figure.subplots(2, 2, height_ratios=(3, 1)).ravel()
    _draw_picture(figure, frame, view.frame, view, f"{view.frame_name}, {view.peak_row.size} peaks")
    frame.plot(view.peak_column, view.peak_row, "o", markersize=11, markerfacecolor="none", markeredgecolor="tab:red",
               markeredgewidth=0.8)  # fmt: skip
    _draw_picture(figure, powder, view.powder, view, "brightest of all hits")
    _draw_peaks(peaks, view)
    _draw_rate(rate, view)
    figure.suptitle(view.title.replace("$", r"\$"), fontsize="small")
    return figure


def _draw_picture(figure: Any, axes: Any, picture: NDArray[np.float32] | None, view: CxiView, title: str) -> None:
    axes.set_title(title.replace("$", r"\$"), fontsize="x-small")
    axes.set_axis_off()
    if picture is None:
        axes.text(0.5, 0.5, "no images", ha="center", transform=axes.transAxes)
        return
    good = picture[np.isfinite(picture)]
    low, high = np.percentile(good, (1.0, 99.8)) if good.size else (0.0, 1.0)
    aspect = "equal" if view.lab else "auto"
    shown = axes.imshow(picture, cmap="viridis", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect,
                        interpolation="nearest")  # fmt: skip
    figure.colorbar(shown, ax=axes, location="bottom", aspect=50, shrink=0.8)


def _draw_rate(axes: Any, view: CxiView) -> None:
    known = view.rate.size > 0 and bool((view.rate_when_s > 0).all())
    if view.rate.size:
        along = view.rate_when_s - view.rate_when_s.min() if known else view.rate_event
        axes.plot(along, 100.0 * view.rate, ".-", linewidth=0.7, color="tab:blue")
    else:
        axes.text(0.5, 0.5, "files do not say how many events there were", ha="center", transform=axes.transAxes)
    axes.set(xlabel="time [s]" if known else "event received", ylabel="hits [%]", ylim=(0, None))


def _draw_peaks(axes: Any, view: CxiView) -> None:
    known = view.when_s > 0
    if known.any() and known.all():
        axes.plot(view.when_s - view.when_s.min(), view.n_peaks, ".", markersize=3, color="black")
        axes.set_xlabel("time [s]")
    else:
        axes.plot(np.arange(view.n_peaks.size), view.n_peaks, ".", markersize=3, color="black")
        axes.set_xlabel("event written")
    axes.set(ylabel="peaks", ylim=(0, None))


def plot_files(
    files: Sequence[Path], out: Path, *, geometry: Geometry | None = None, event: tuple[Path, int] | None = None
) -> Path:
    """Write the figure of some files as PNG, whole or not at all; returns its place.

    Raises
    ------
    MissingError, InputError
        As `view_files`.
    UsageError
        If its place is a directory.
    StorageError
        If it cannot be written.
    """
    if out.is_dir():
        raise UsageError(f"{out} is a directory", fix="name a file for the figure")
    data = io.BytesIO()
    # No date and no version inside: the same figure gives the same bytes.
    figure = draw_view(view_files(files, geometry=geometry, event=event))
    figure.savefig(data, format="png", dpi=110.0, metadata={"Software": None})
    write_bytes(out, data.getvalue())
    return out
