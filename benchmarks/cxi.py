"""The CXI writer beside its floors, measured in one run.

Peaks: events of 16 panels of 352 x 384 pixels, with 45 and with 322 components. The floor is one pass that counts where
logit 1 exceeds logit 0, compiled, in one thread; the rival is scipy's label with bincount for size and centroid, which
does less: it measures no intensity. Each in turns, several times; a figure is the least CPU time, by event.

Writer: files of such events, with all that a file has, list and master. The floor is bare h5py: one contiguous dataset
of the same pixels that lie ready in one array, written and synced as ours are. In memory (/dev/shm) only the work is
left, and CPU time is counted; on a disk wall time. Also what a dataset costs in one piece, in a chunk for each event,
and in such chunks without HDF5 between. Each in turns; a figure is of the least time, by bytes of images that came.

    python benchmarks/cxi.py [--quick] [--json] [--only SECTION] [--repeat N]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numba
import numpy as np
from scipy import ndimage

from nightbeam.cxi.model import Event, OutputPlan, ProcessedBatch
from nightbeam.cxi.writing import CxiWriter
from nightbeam.peaks import compute
from nightbeam.peaks.model import PeakSettings, PeakTable, Window
from nightbeam.stream.model import BatchHeader

_PANELS, _HEIGHT, _WIDTH = 16, 352, 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer events and runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=sorted(_SECTIONS), help="one section")
    parser.add_argument("--repeat", type=int, help="runs of each; the least counts (quick: 3, else 15)")
    options = parser.parse_args()
    repeat = options.repeat or (3 if options.quick else 15)
    names = [options.only] if options.only else list(_SECTIONS)
    report = {name: _SECTIONS[name][0](repeat, options.quick) for name in names}
    if options.json:
        print(json.dumps(report))
        return
    for name in names:
        print(_SECTIONS[name][1](report[name]))


def _least(turns: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Least CPU seconds of each, in turns; a first time does not count."""
    best = dict.fromkeys(turns, np.inf)
    for turn in range(repeat + 1):
        for name, work in turns.items():
            begin = time.process_time()
            work()
            if turn:
                best[name] = min(best[name], time.process_time() - begin)
    return best


def _met(aims: dict[str, bool]) -> list[str]:
    return [f"{'met' if met else 'NOT met'}: {aim}" for aim, met in aims.items()]


# -- peaks --------------------------------------------------------------------------------------------------------


def peaks(repeat: int, quick: bool) -> dict:
    """Events a core-second of the floor, the rival and ours, where peaks are few and many."""
    return {
        "load_average": os.getloadavg()[0],
        **{str(number): _peaks(number, repeat, 2 if quick else 4) for number in (45, 322)},
    }


def _peaks(number: int, repeat: int, events: int) -> dict:
    logits, images = _spots(events, number)
    hit = logits[:, 1] > logits[:, 0]
    bits = np.packbits(hit, axis=2)
    pixels = np.argwhere(hit).astype(np.int32)
    rows, shape = len(logits), (_HEIGHT, _WIDTH)
    turns: dict[str, Callable[[], Any]] = {
        "threshold only": lambda: _floor(logits),
        "scipy label + bincount": lambda: _rival(logits),
        "ours": lambda: compute.find_peaks(logits, images),
        "ours, without images": lambda: compute.find_peaks(logits, None),
        "ours, weighted centroids": lambda: compute.find_peaks(
            logits, images, settings=PeakSettings(centroid="intensity")
        ),
        "ours, of bits": lambda: compute.find_peaks_in_bits(bits, _WIDTH, images),
        "ours, of pixels": lambda: compute.find_peaks_in_pixels(pixels, rows, shape, images),
    }
    best = _least(turns, repeat)
    found = len(compute.find_peaks(logits, images))
    floor, rival, ours = (best[name] for name in ("threshold only", "scipy label + bincount", "ours"))
    return {
        "components": found / events,
        "events_a_core_second": {name: round(events / seconds, 1) for name, seconds in best.items()},
        "of_the_floor": {name: round(floor / seconds, 3) for name, seconds in best.items()},
        "gb_a_second": round(logits.nbytes / floor / 1e9, 2),
        "aims": {
            "at least 0.6 of the threshold-only floor": floor / ours >= 0.6,
            "at least 4 times scipy label + bincount": rival / ours >= 4.0,
        },
    }


def _spots(events: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Discs of 1 to 3 pixels radius that never touch, at chance places of a grid; and images with light there."""
    dice = np.random.default_rng(7)
    shape = (events * _PANELS, _HEIGHT, _WIDTH)
    logits = dice.normal(0.0, 1.0, (shape[0], 2, *shape[1:])).astype(np.float32)
    logits[:, 0] += 12.0
    images = dice.normal(10.0, 3.0, shape).astype(np.float32)
    cell = 16
    down, across = _HEIGHT // cell, _WIDTH // cell
    for event in range(events):
        for place in dice.choice(_PANELS * down * across, number, replace=False):
            row, y, x = np.unravel_index(place, (_PANELS, down, across))
            at_y, at_x = cell * y + dice.uniform(5, 10), cell * x + dice.uniform(5, 10)
            grid_y, grid_x = np.mgrid[cell * y : cell * (y + 1), cell * x : cell * (x + 1)]
            square = (grid_y - at_y) ** 2 + (grid_x - at_x) ** 2
            cut = (event * _PANELS + row, slice(cell * y, cell * (y + 1)), slice(cell * x, cell * (x + 1)))
            logits[cut[0], 1, cut[1], cut[2]] += 24.0 * (square < dice.uniform(1.0, 3.0) ** 2)
            images[cut] += 300.0 * np.exp(-square / 3.0)
    return logits, images


@numba.njit(nogil=True, error_model="numpy")
def _floor(logits: Any) -> int:
    some = 0
    for r in range(logits.shape[0]):
        low, high = logits[r, 0].ravel(), logits[r, 1].ravel()
        for c in range(low.size):
            some += high[c] > low[c]
    return some


def _rival(logits: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Size and centroid of every component: label, then bincount over the labelled pixels."""
    around, found = np.ones((3, 3)), []
    for low, high in logits:
        labels, number = ndimage.label(high > low, structure=around)
        y, x = np.nonzero(labels)
        label = labels[y, x]
        size = np.bincount(label, minlength=number + 1)[1:]
        sums = [np.bincount(label, weights=at, minlength=number + 1)[1:] for at in (y, x)]
        found.append((size, *(total / size for total in sums)))
    return found


def _peaks_table(report: dict) -> str:
    lines = [f"peaks: {_PANELS} x {_HEIGHT} x {_WIDTH}; load average {report['load_average']:.1f}"]
    for number in ("45", "322"):
        one = report[number]
        lines += [f"{one['components']:.0f} components an event (floor reads {one['gb_a_second']} GB/s)"]
        lines += [f"  {'':26}{'events/core-s':>14}{'of the floor':>14}{'times scipy':>13}"]
        rival = one["events_a_core_second"]["scipy label + bincount"]
        for name, rate in one["events_a_core_second"].items():
            lines += [f"  {name:26}{rate:14.1f}{one['of_the_floor'][name]:14.3f}{rate / rival:13.2f}"]
        lines += [f"  {line}" for line in _met(one["aims"])]
    return "\n".join(lines)


# -- writer -------------------------------------------------------------------------------------------------------

_BATCH = 10
_CLOCKS = {"memory": time.process_time, "disk": time.perf_counter}


def writer(repeat: int, quick: bool) -> dict:
    """GB/s of images into files: bare h5py, ours, and ways to store a stack."""
    events = 20 if quick else 100
    places = {"memory": Path("/dev/shm"), "disk": Path(tempfile.gettempdir())}
    report: dict[str, Any] = {"load_average": os.getloadavg()[0], "events": events, "of_the_floor": {}, "aims": {}}
    images = np.random.default_rng(3).normal(10, 3, (events, _PANELS, _HEIGHT, _WIDTH)).astype(np.float32)
    for where, place in places.items():
        if place.is_dir():
            with tempfile.TemporaryDirectory(prefix="nightbeam-bench-", dir=place) as work:
                report[where] = _writer(Path(work), images, max(3, repeat // 2), _CLOCKS[where])
            floor = report[where]["bare h5py"]
            report["of_the_floor"][where] = {name: round(rate / floor, 3) for name, rate in report[where].items()}
            report["aims"][f"at least 0.6 of bare h5py, in {where}"] = report[where]["ours"] / floor >= 0.6
    return report


def _writer(work: Path, images: np.ndarray, repeat: int, clock: Callable[[], float]) -> dict[str, float]:
    side_by_side = [[_HEIGHT * (n % 8), _WIDTH * (n // 8)] for n in range(_PANELS)]
    turns: dict[str, Callable[[], Any]] = {
        "bare h5py": partial(_bare, work / "bare.h5", images),
        "bare h5py, not synced": partial(_bare, work / "bare.h5", images, sync=False),
        "ours": partial(_ours, work / "ours", _batches(images), None),
        "ours, one hit in ten": partial(_ours, work / "ours", _batches(images, every=10), None),
        "ours, modules side by side": partial(_ours, work / "ours", _batches(images), side_by_side),
        "ours, as uint16": partial(_ours, work / "ours", _batches(images), None, dtype="uint16"),
        "a dataset in one piece": partial(_stack, work / "s.h5", images, "one piece"),
        "a chunk for each event": partial(_stack, work / "s.h5", images, "chunks"),
        "such chunks, written directly": partial(_stack, work / "s.h5", images, "direct"),
    }
    best = dict.fromkeys(turns, np.inf)
    for turn in range(repeat + 1):
        for name, write in turns.items():
            begin = clock()
            write()
            if turn:
                best[name] = min(best[name], clock() - begin)
            for left in work.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return {name: round(images.nbytes / seconds / 1e9, 3) for name, seconds in best.items()}


def _bare(path: Path, images: np.ndarray, sync: bool = True) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=images.reshape(len(images), -1, _WIDTH))
    if sync:
        _sync(path)


def _stack(path: Path, images: np.ndarray, how: str) -> None:
    slabs = images.reshape(len(images), -1, _WIDTH)
    chunked = {} if how == "one piece" else {"chunks": (1, *slabs.shape[1:]), "maxshape": (None, *slabs.shape[1:])}
    with h5py.File(path, "w") as file:
        made = file.create_dataset("data", slabs.shape, slabs.dtype, **chunked)
        for n, slab in enumerate(slabs):
            if how == "direct":
                made.id.write_direct_chunk((n, 0, 0), slab)
            else:
                made[n] = slab
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _ours(work: Path, batches: list[ProcessedBatch], origins: Any, **changes: Any) -> None:
    plan = OutputPlan(output_dir=work, buffer_size=sum(len(b.events) for b in batches), **changes)
    writing = CxiWriter(plan, geometry=None, origins=origins)
    for batch in batches:
        writing.submit(batch)
    writing.flush_final()


def _batches(images: np.ndarray, every: int = 1) -> list[ProcessedBatch]:
    """Batches of events with 45 peaks each; with ``every``, only one event in so many is a hit."""
    made = []
    for first in range(0, len(images), _BATCH):
        pixels = images[first : first + _BATCH]
        shape = pixels.shape[2:]
        said = BatchHeader(
            f"b{first}", "gpu0", first // _BATCH, first, None, None, len(pixels), _PANELS, shape, shape,
            Window(0, 0, *shape), "logits", "network_input", np.arange(1, len(pixels) + 1, dtype=np.uint64) << 32, None,
            np.full(len(pixels), 9500.0), np.full(len(pixels), 120.0),
        )  # fmt: skip
        events = [Event(said, n, _peaks_of(n), pixels[n]) for n in range(0, len(pixels), every)]
        misses = tuple(pixels[n] for n in range(len(pixels)) if n % every)
        made.append(ProcessedBatch(said, tuple(events), len(misses), misses=misses))
    return made


def _peaks_of(event: int, number: int = 45) -> PeakTable:
    row = event * _PANELS + np.arange(number) % _PANELS
    y, x = np.linspace(5, _HEIGHT - 5, number), np.linspace(5, _WIDTH - 5, number)
    ones = np.ones(number)
    box = np.stack([y, y, x, x], axis=1).astype(np.int64)
    return PeakTable(row, y, x, ones.astype(np.int64), ones, ones, ones, ones, ones, box)


def _writer_table(report: dict) -> str:
    lines = [f"writer: {report['events']} events of {_PANELS} x {_HEIGHT} x {_WIDTH}, float32; "
             f"load average {report['load_average']:.1f}"]  # fmt: skip
    for where in report["of_the_floor"]:
        lines += [f"  {where:32}{'GB/s':>10}{'of the floor':>14}"]
        lines += [
            f"  {name:32}{rate:10.2f}{report['of_the_floor'][where][name]:14.3f}"
            for name, rate in report[where].items()
        ]
    return "\n".join([*lines, *(f"  {line}" for line in _met(report["aims"]))])


#: What is measured, and how it is shown.
_SECTIONS: dict[str, tuple[Callable[[int, bool], dict], Callable[[dict], str]]] = {
    "peaks": (peaks, _peaks_table),
    "writer": (writer, _writer_table),
}


if __name__ == "__main__":
    main()
