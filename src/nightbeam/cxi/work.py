"""From the arrays of a batch to the events that are written: what workers do, wherever they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError
from nightbeam.cxi.model import Event, ProcessedBatch
from nightbeam.peaks.compute import (
    find_peaks,
    find_peaks_in_bits,
    find_peaks_in_pixels,
    join_tables,
    masks,
    masks_in_bits,
    masks_in_pixels,
    select_events,
    strongest,
)
from nightbeam.peaks.model import PeakSettings, PeakTable
from nightbeam.peaks.tensors import logits_array
from nightbeam.stream.compute import check_arrays, detector_images
from nightbeam.stream.model import BatchError, BatchHeader

__all__ = ["HitSettings", "RowsResult", "assemble", "batch_bytes", "images_of_rows", "process_rows", "split_rows"]


@dataclass(frozen=True, slots=True)
class HitSettings:
    """Which events are hits, and what of them is kept.

    Attributes
    ----------
    min_num_peak
        Events with fewer are not written.
    max_num_peak
        Peaks kept of an event, the strongest.
    reject_above
        Whether an event with more is dropped instead.
    images
        Whether hits keep their image.
    misses
        Whether the images of the others are handed on too.
    """

    min_num_peak: int = 10
    max_num_peak: int = 2048
    reject_above: bool = False
    images: bool = True
    misses: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class RowsResult:
    """Peaks of some rows of a batch, and their mask where maps are wanted.

    Attributes
    ----------
    start
        First row.
    peaks
        ``row`` counts from the batch's first row.
    mask : (rows, H0, W0), bool, or None
    """

    start: int
    peaks: PeakTable
    mask: NDArray[np.bool_] | None = None


def split_rows(n_rows: int, num_workers: int) -> list[tuple[int, int]]:
    """Cut the rows of a batch into mini-batches of ``max(1, n_rows // num_workers)``; the last may be shorter.

    Examples
    --------
    >>> split_rows(5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    size = max(1, n_rows // max(1, num_workers))
    return [(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def batch_bytes(header: BatchHeader) -> tuple[int, int]:
    """Return about how many bytes the predictions and the images of a batch hold."""
    rows, (height, width) = header.n_events * header.n_panels, header.network_shape
    pixels = rows * height * width
    predictions = {"logits": 8 * pixels, "bits": pixels // 8, "pixels": 0}[header.form]
    return predictions, 0 if header.image_kind == "none" else 4 * pixels


def process_rows(
    predictions: Any,
    images: NDArray[Any] | None,
    header: BatchHeader,
    settings: PeakSettings,
    start: int,
    stop: int,
    maps: bool = False,
) -> RowsResult:
    """Find the peaks of the rows from ``start`` up to ``stop``; a Ray task may run it.

    Parameters
    ----------
    predictions
        Of the whole batch, in the header's form: an array, or for logits also a tensor of torch.
    images
        Of the whole batch, as they came; None where there are none.
    header, settings
        What the batch is, and what a peak is.
    start, stop
        Rows of the batch, ``event * n_panels + panel``.
    maps
        Whether the mask is wanted too.

    Returns
    -------
    RowsResult

    Raises
    ------
    BatchError
        If the arrays are not what the header says.
    """
    check_arrays(header, tuple(predictions.shape), None if images is None else tuple(images.shape))
    pixels = None if images is None else images_of_rows(header, images, start, stop)
    try:
        peaks = _peaks(predictions, pixels, header, settings, start, stop)
        mask = _mask(predictions, header, settings, start, stop) if maps else None
    except InputError as error:
        raise BatchError(error.what, fix=error.fix) from error
    return RowsResult(start, peaks, mask)


def images_of_rows(header: BatchHeader, images: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """Return the detector's pixels of some rows, normalisation undone.

    Parameters
    ----------
    header
        Of the batch.
    images
        Of the whole batch, of a shape that `nightbeam.stream.compute.check_arrays` accepts.
    start, stop
        Rows.

    Returns
    -------
    (stop - start, H0, W0)
        A view where nothing is to be undone.
    """
    rows = images.reshape(-1, *images.shape[-2:])[start:stop]
    mean, std = (None if one is None else one[start:stop] for one in (header.mean, header.std))
    part = replace(header, n_events=stop - start, n_panels=1, mean=mean, std=std)
    return detector_images(part, rows)


def assemble(
    header: BatchHeader, parts: Sequence[RowsResult], images: NDArray[Any] | None, settings: HitSettings
) -> ProcessedBatch:
    """Gather the peaks of a batch by event and keep the hits.

    Parameters
    ----------
    header
        Of the batch.
    parts
        Results of all its rows, in any order.
    images
        Of the whole batch, as they came; None where there are none.
    settings
        Which events are hits.

    Returns
    -------
    ProcessedBatch
        Images are views of the batch where no normalisation was undone.
    """
    ordered = sorted(parts, key=lambda part: part.start)
    table = join_tables([part.peaks for part in ordered])
    starts = select_events(table, header.n_events, header.n_panels)
    counts = np.diff(starts)
    hits = counts >= settings.min_num_peak
    above = counts > settings.max_num_peak
    if settings.reject_above:
        hits &= ~above
    known = images if settings.images else None
    mask = _joined_mask(ordered)
    events = tuple(
        Event(
            header,
            index,
            strongest(table.select(slice(int(starts[index]), int(starts[index + 1]))), settings.max_num_peak),
            _image(header, known, index),
            None if mask is None else mask[_rows_of(header, index)].copy(),
        )
        for index in np.flatnonzero(hits).tolist()
    )
    misses = tuple(_image(header, known, index) for index in np.flatnonzero(~hits).tolist()) if settings.misses else ()
    return ProcessedBatch(
        header,
        events,
        filtered=header.n_events - len(events),
        truncated=int((hits & above).sum()),
        misses=tuple(miss for miss in misses if miss is not None),
    )


# -- parts --------------------------------------------------------------------------------------------------------


def _peaks(
    predictions: Any, images: NDArray[Any] | None, header: BatchHeader, settings: PeakSettings, start: int, stop: int
) -> PeakTable:
    known: dict[str, Any] = {"window": header.window, "settings": settings, "first_row": start}
    if header.form == "logits":
        return find_peaks(logits_array(predictions[start:stop]), images, **known)
    if header.form == "bits":
        return find_peaks_in_bits(_array(predictions)[start:stop], header.network_shape[1], images, **known)
    own = _pixels(_array(predictions), header, start, stop)
    return find_peaks_in_pixels(own, stop - start, header.network_shape, images, **known)


def _mask(predictions: Any, header: BatchHeader, settings: PeakSettings, start: int, stop: int) -> NDArray[np.bool_]:
    if header.form == "logits":
        return masks(logits_array(predictions[start:stop]), header.window, settings)
    if header.form == "bits":
        return masks_in_bits(_array(predictions)[start:stop], header.network_shape[1], header.window)
    own = _pixels(_array(predictions), header, start, stop)
    return masks_in_pixels(own, stop - start, header.network_shape, header.window)


def _array(predictions: Any) -> NDArray[Any]:
    if not isinstance(predictions, np.ndarray):
        raise BatchError(f"predictions are a {type(predictions).__name__}", fix="bits and pixels are numpy arrays")
    return predictions


def _pixels(pixels: NDArray[Any], header: BatchHeader, start: int, stop: int) -> NDArray[Any]:
    """Return the listed pixels of some rows, counted from the first of these rows."""
    row = pixels[:, 0]
    if len(row) and not 0 <= int(row.min()) <= int(row.max()) < header.n_events * header.n_panels:
        raise BatchError(f"pixels of rows {row.min()} to {row.max()}", fix="count rows from 0 within the batch")
    own: NDArray[Any] = pixels[(row >= start) & (row < stop)] - np.array([start, 0, 0], pixels.dtype)
    return own


def _rows_of(header: BatchHeader, index: int) -> slice:
    return slice(index * header.n_panels, (index + 1) * header.n_panels)


def _joined_mask(parts: Sequence[RowsResult]) -> NDArray[np.bool_] | None:
    found = [part.mask for part in parts if part.mask is not None]
    return np.concatenate(found) if found else None


def _image(header: BatchHeader, images: NDArray[Any] | None, index: int) -> NDArray[Any] | None:
    if images is None:
        return None
    rows = _rows_of(header, index)
    return images_of_rows(header, images, rows.start, rows.stop)
