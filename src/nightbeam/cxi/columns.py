"""Tables of a file's events: one value, or one value for each peak, of each event. Nothing here touches a disk."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nightbeam.cxi.detector import Detector, radius_px
from nightbeam.cxi.model import Event

__all__ = ["conditions", "copied_columns", "event_columns", "event_names", "event_time", "peak_columns", "slab_peaks"]

_JOULE_PER_EV: Final = 1.602176634e-19
_EV_ANGSTROM: Final = 12398.4198
#: LCLS-II counts seconds from 1990, LCLS from 1970. Nothing was measured before 2008, and until 2028 the former have
#: not counted so far.
_FIRST_UNIX: Final = 1_200_000_000
_EPOCH_1990: Final = 631_152_000


def event_time(seconds: int) -> int:
    """Return seconds since 1970 of an LCLS event time, whichever year its machine counts from.

    Examples
    --------
    >>> time.gmtime(event_time(1_000_000_000))[:3], time.gmtime(event_time(1_400_000_000))[:3]
    ((2021, 9, 9), (2014, 5, 13))
    """
    return seconds if seconds >= _FIRST_UNIX else seconds + _EPOCH_1990


def event_names(events: Sequence[Event]) -> list[str]:
    """Return names of events, no two alike: ``seconds-nanoseconds-fiducial``, else the batch and the place in it."""
    seen: set[str] = set()
    names = []
    for event in events:
        stamp = int(event.batch.timestamps[event.index])
        name = f"{stamp >> 32}-{stamp & 0xFFFFFFFF}-0" if stamp else f"{_ascii(event.batch.batch_id)}-{event.index}"
        unique, again = name, 1
        while unique in seen:
            again += 1
            unique = f"{name}-{again}"
        seen.add(unique)
        names.append(unique)
    return names


def _ascii(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "_" for c in text)[:200] or "batch"


def event_columns(events: Sequence[Event], numbers: Sequence[int], detector: Detector) -> dict[str, NDArray[Any]]:
    """Return one value for each event, by the name of its dataset.

    Parameters
    ----------
    numbers
        Running number of each event in its run.
    """
    energy = np.array([e.batch.photon_energy_ev[e.index] for e in events], np.float64)
    stamps = np.array([e.batch.timestamps[e.index] for e in events], np.uint64)
    seconds, nanoseconds = stamps >> np.uint64(32), stamps & np.uint64(0xFFFFFFFF)
    clen = np.array([e.batch.clen_mm[e.index] for e in events], np.float64)
    n = len(events)
    return {
        "nPeaks": np.array([len(e.peaks) for e in events], np.int32),
        "experiment_identifier": np.array([name.encode() for name in event_names(events)]),
        "experimental_identifier": np.asarray(numbers, np.int64),
        "x_pixel_size": np.full(n, detector.pixel_size_m or 0.0),
        "y_pixel_size": np.full(n, detector.pixel_size_m or 0.0),
        "distance": _distance(clen, detector),
        "energy": energy * _JOULE_PER_EV,
        "photon_energy_eV": energy,
        "photon_wavelength_A": np.divide(_EV_ANGSTROM, energy, out=np.zeros(n), where=energy > 0),
        "EncoderValue": clen,
        "timestamp": stamps,
        "producer_clock_s": np.array(
            [np.nan if c is None else c for c in (e.batch.wall_clock_s for e in events)], float
        ),
        "machineTime": seconds.astype(np.uint32).view(np.int32),
        "machineTimeNanoSeconds": nanoseconds.astype(np.uint32).view(np.int32),
        "fiducial": np.zeros(n, np.int32),
        "eventNumber": np.asarray(numbers, np.int64),
        "eventTimeString": np.array([_time_text(int(s)) for s in seconds], "S26"),
    }


def _distance(clen_mm: NDArray[np.float64], detector: Detector) -> NDArray[np.float64]:
    literal = np.nan if detector.clen_m is None else detector.clen_m
    return np.asarray(np.where(np.isnan(clen_mm), literal, clen_mm * 1e-3) + detector.coffset_m)


def _time_text(seconds: int) -> bytes:
    return time.asctime(time.gmtime(event_time(seconds))).encode() if seconds else b""


def slab_peaks(
    events: Sequence[Event], detector: Detector
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Return y, x in the slab, and the module, of all peaks of some events, one event after the other."""
    panel = _joined(events, "row").astype(np.intp) % detector.shape[0]
    origin = detector.origins[panel]
    return _joined(events, "y") + origin[:, 0], _joined(events, "x") + origin[:, 1], panel


def peak_columns(events: Sequence[Event], detector: Detector, *, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return tables (N, P) of the peaks of some events, as wide as the widest event needs; unused places are 0.

    Parameters
    ----------
    names
        Of the tables that are wanted; others are left out.
    """
    y, x, panel = slab_peaks(events, detector)
    box = np.concatenate([e.peaks.box for e in events]) if events else np.zeros((0, 4), np.int64)
    maximum = _joined(events, "maximum")
    values: dict[str, Any] = {
        "peakXPosRaw": x,
        "peakYPosRaw": y,
        "peakTotalIntensity": _joined(events, "total"),
        "peakMaxIntensity": maximum,
        "peakMaximumValue": maximum,
        "peakSNR": _joined(events, "snr"),
        "peakNPixels": _joined(events, "n_pixels"),
        "peakSegPosRaw": panel,
        "rcent": _joined(events, "y"),
        "ccent": _joined(events, "x"),
        **{name: box[:, i] for i, name in enumerate(("rmin", "rmax", "cmin", "cmax"))},
    }
    if detector.geometry is not None:
        values["peakRadius"] = radius_px(detector.geometry, y, x)
    counts = np.array([len(e.peaks) for e in events], np.intp)
    return {name: _table(values[name], counts) for name in names}


def _joined(events: Sequence[Event], name: str) -> NDArray[Any]:
    return np.concatenate([getattr(e.peaks, name) for e in events]) if events else np.zeros(0)


def _table(values: NDArray[Any], counts: NDArray[np.intp]) -> NDArray[np.float32]:
    table = np.zeros((len(counts), max(1, int(counts.max(initial=0)))), np.float32)
    table[np.arange(table.shape[1]) < counts[:, None]] = values
    return table


def copied_columns(events: Sequence[Event]) -> dict[str, NDArray[Any]]:
    """Return what was kept of the metadata, by its key.

    Numbers of one shape stay numbers, NaN where a batch has none. Bytes stay as they are; all else becomes UTF-8, with
    a backslash for what is no character.
    """
    keys = dict.fromkeys(key for event in events for key in event.batch.copied)
    return {key: _column([_value(event.batch.copied, key, event.index) for event in events]) for key in keys}


def _value(copied: Mapping[str, NDArray[Any]], key: str, index: int) -> Any:
    return copied[key][index] if key in copied else None


def _column(values: list[Any]) -> NDArray[Any]:
    arrays = [np.asarray(value) for value in values if value is not None]
    if len({a.shape for a in arrays}) == 1 and all(a.dtype.kind in "biuf" for a in arrays):
        missing = np.full(arrays[0].shape, np.nan)
        column = np.stack([missing if value is None else np.asarray(value) for value in values])
        return column.astype(np.uint8) if column.dtype.kind == "b" else column
    return np.array([_bytes(value) for value in values])


def _bytes(value: Any) -> bytes:
    if value is None or isinstance(value, bytes):
        return value or b""
    return str(value).encode("utf-8", "backslashreplace")


def conditions(
    columns: Mapping[str, NDArray[Any]], detector: Detector, *, images: bool, compat: Iterable[str], maps: bool
) -> set[str]:
    """Return which conditions of the layout hold for a file."""
    hold = {
        "images": images,
        "geometry": detector.geometry is not None,
        "mask": detector.bad is not None,
        "pixel size": detector.pixel_size_m is not None,
        "distance": bool(np.isfinite(columns["distance"]).any()),
        "clen": bool(np.isfinite(columns["EncoderValue"]).any()),
        "timestamps": bool(columns["timestamp"].any()),
        "clock": bool(np.isfinite(columns["producer_clock_s"]).any()),
        "segmentation": maps,
    }
    return {name for name, holds in hold.items() if holds} | {*compat}
