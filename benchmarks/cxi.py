"""The CXI writer beside its floors, measured in one run.

Peaks: events of 16 panels of 352 x 384 pixels, with 45 and with 322 components. The floor is one pass that counts where
logit 1 exceeds logit 0, compiled, in one thread; the rival is scipy's label with bincount for size and centroid, which
does less: it measures no intensity. Each in turns, several times, and right after one of its own kind, as in
a service that does nothing else; a figure is the least CPU time, by event. The logits are larger than any cache.

Writer: files of such events, with all that a file has, list and master. The floor is bare h5py: one contiguous dataset
of the same pixels that lie ready in one array, written and synced as ours are. In memory (/dev/shm) only the work is
left, and CPU time is counted; on a disk wall time. Also what a dataset costs in one piece, in a chunk for each event,
and in such chunks without HDF5 between. Each in turns; a figure is of the least time, by bytes of images that came.

Chain: batches of 16 such events from a real queue, by reference, through the writer as it is used, into files in
memory, which are removed at once; and the same batches where they need not come from anywhere. CPU time is that of the
writer's process and of all of Ray's, not of who sends; what the first takes more than the second is Ray's overhead.

    python benchmarks/cxi.py [--quick] [--json] [--only SECTION] [--repeat N]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numba
import numpy as np
import psutil
from scipy import ndimage

from nightbeam.core.children import die_with_parent
from nightbeam.cxi.config import writer_config
from nightbeam.cxi.doors import Cluster, Doors, the_world
from nightbeam.cxi.model import Event, OutputPlan, ProcessedBatch
from nightbeam.cxi.worker import CxiService
from nightbeam.cxi.writing import CxiWriter
from nightbeam.peaks import compute
from nightbeam.peaks.model import PeakSettings, PeakTable, Window
from nightbeam.platform.processes import free_port
from nightbeam.stream import cluster
from nightbeam.stream.arrays import Arrays
from nightbeam.stream.model import BatchHeader, PreprocessingMetadata

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
    """Least CPU seconds of each, in turns; each right after one of its own kind that does not count."""
    best = dict.fromkeys(turns, np.inf)
    for _ in range(repeat):
        for name, work in turns.items():
            work()
            begin = time.process_time()
            work()
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


# -- chain --------------------------------------------------------------------------------------------------------

_CHAIN_BATCH = 16
_WARM = 3
_QUEUE = {"ray": {"namespace": "bench"}, "queue": {"name": "bench", "num_shards": 2}}

#: Sends so many batches, each as references to the same few arrays: what a producer computes is not measured.
_SENDER = """
import sys
import numpy as np
import ray
from nightbeam.stream.model import PreprocessingMetadata
from nightbeam.stream.producer import Producer
from nightbeam.stream.queues import ShardedQueue
from nightbeam.stream.remote import connect

address, count, logits, images = sys.argv[1], int(sys.argv[2]), np.load(sys.argv[3]), np.load(sys.argv[4])
connect(address, "bench")
sender = Producer(ShardedQueue.create("bench", 2, 1000), "sender")
rows, _, height, width = logits.shape
shapes = PreprocessingMetadata((rows // 16, 16, height, width), (rows, 1, height, width))
refs = [(ray.put(logits), ray.put(images[:, None])) for _ in range(2)]
for number in range(count):
    sender.send(*refs[number % 2], preprocessing=shapes, metadata={"photon_energy": 9500.0, "encoder_value": 100.0})
print("sent", flush=True)
sender.finish(wait=False)
sys.stdin.read()
"""


def chain(repeat: int, quick: bool) -> dict:
    """Events a CPU-second from the queue to files, with Ray and with batches that are there already."""
    batches = 12 if quick else 20  # the first eight or so are taken before the first file is written
    logits, images = _spots(_CHAIN_BATCH, 45)
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    found: dict[str, list[dict]] = {"through Ray": [], "without Ray": []}
    with tempfile.TemporaryDirectory(prefix="nightbeam-bench-", dir=place) as name, _ray_head() as (address, head):
        work = Path(name)
        np.save(work / "logits.npy", logits)
        np.save(work / "images.npy", images)
        for turn in range(max(2, repeat // 5) + 1):
            with _sender(address, batches + _WARM, work):
                through = _run_chain(work, None, address, head)
            without = _run_chain(work, _no_ray(logits, images, batches + _WARM), address, None)
            if turn:
                found["through Ray"].append(through)
                found["without Ray"].append(without)
    best = {name: min(runs, key=lambda run: run["cpu_s"] / run["events"]) for name, runs in found.items()}
    cost = {name: run["cpu_s"] / run["events"] for name, run in best.items()}
    overhead = cost["through Ray"] / cost["without Ray"] - 1
    events = best["through Ray"]["events"]
    return {
        "load_average": os.getloadavg()[0],
        "events": events,
        "events_a_cpu_second": {name: round(1 / seconds, 1) for name, seconds in cost.items()},
        "events_a_second": {name: round(run["events"] / run["wall_s"], 1) for name, run in best.items()},
        "ray_overhead": round(overhead, 3),
        "of_that_in_processes_of_ray": round(best["through Ray"]["ray_cpu_s"] / events / cost["without Ray"], 3),
        "aims": {
            "at least 60 events a CPU-second, by reference": cost["through Ray"] <= 1 / 60,
            "Ray's overhead at most 15 % of the work": overhead <= 0.15,
        },
    }


def _run_chain(work: Path, doors: Any, address: str, head: psutil.Process | None) -> dict[str, float]:
    """CPU of this process and of Ray's, and wall time, from the first batch to the last file."""
    out = work / "out"
    config = writer_config(
        {
            **_QUEUE,
            "ray": {"namespace": "bench", "address": address},
            "output": {"output_dir": str(out), "buffer_size": 40, "master": False, "lst": False},
            "peak_finding": {"min_num_peak": 1},
            "processing": {"mode": "threads", "max_pending_bytes": 1 << 30},
        }
    )
    service = CxiService(config, doors=doors)
    service.open()
    # Pages of the object store are new to a process once: not until the arrays have been read are they as later.
    while service.counters()["total_events_written"] < (_WARM - 1) * _CHAIN_BATCH:
        service.step()
        _remove_files(out)
    events = service.counts.events_received
    begin, cpu, theirs = time.perf_counter(), time.process_time(), _cpu_of(head)
    while service.step():
        _remove_files(out)
    service.close()
    spent = {
        "events": service.counts.events_received - events,
        "wall_s": time.perf_counter() - begin,
        "own_cpu_s": time.process_time() - cpu,
        "ray_cpu_s": _cpu_of(head) - theirs,
    }
    shutil.rmtree(out)
    return spent | {"cpu_s": spent["own_cpu_s"] + spent["ray_cpu_s"]}


def _remove_files(out: Path) -> None:
    """Let the next file have the memory of the last: new memory costs a virtual machine more than all the work."""
    for path in out.glob("*.cxi"):
        path.unlink()


def _cpu_of(head: psutil.Process | None) -> float:
    """CPU seconds of all processes of Ray's: its stores, its shards."""
    if head is None:
        return 0.0
    times = [one.cpu_times() for one in (head, *head.children(recursive=True))]
    return sum(one.user + one.system for one in times)


@contextlib.contextmanager
def _ray_head() -> Iterator[tuple[str, psutil.Process]]:
    with tempfile.TemporaryDirectory(prefix="nb-bench-", dir="/tmp") as place:
        port = free_port(cluster.LOOPBACK, 26900)
        argv = cluster.head_argv(port=port, temp_dir=Path(place), num_cpus=2, object_store_bytes=3 << 29)
        child = subprocess.Popen(
            argv,
            env=os.environ | cluster.head_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(),
        )
        try:
            while not cluster.alive(cluster.address_of(port)):
                time.sleep(0.2)
            yield cluster.address_of(port), psutil.Process(child.pid)
        finally:
            child.terminate()
            child.wait(60.0)


@contextlib.contextmanager
def _sender(address: str, batches: int, work: Path) -> Iterator[None]:
    """A process whose batches wait in the queue."""
    argv = [sys.executable, "-c", _SENDER, address, str(batches), work / "logits.npy", work / "images.npy"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=die_with_parent()) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"sent\n"
        yield
        child.kill()


def _no_ray(logits: np.ndarray, images: np.ndarray, batches: int) -> Doors:
    """The same batches, in this process already."""
    shape = logits.shape
    shapes = PreprocessingMetadata((shape[0] // _PANELS, _PANELS, *shape[2:]), (shape[0], 1, *shape[2:]))
    waiting = [
        Message(
            {"photon_energy": 9500.0, "encoder_value": 100.0, "producer_id": "here", "sequence": n,
             "event_index": n * _CHAIN_BATCH},
            f"here_{n}", logits, images[:, None], shapes,
        )
        for n in range(batches)
    ]  # fmt: skip
    ends = [Message({"end_of_stream": True, "producer_id": "here", "sequence": batches}, "end", None, None, None)]
    return dataclasses.replace(
        the_world(),
        connect=lambda _: Cluster(),
        source=lambda _: Ready([*waiting, *ends]),
        fetch=lambda message, _: Arrays(message.predictions_ref, message.original_image_ref),
        disconnect=lambda: None,
    )


@dataclasses.dataclass
class Message:
    metadata: dict
    batch_id: str
    predictions_ref: Any
    original_image_ref: Any
    preprocessing_metadata: Any
    predictions: Any = None


class Ready:
    """A queue that holds everything from the beginning."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages = deque(messages)

    def take(self, _timeout_s: float) -> Any:
        return self.look_once()

    def look_once(self) -> Any:
        return self._messages.popleft() if self._messages else None

    def stop_asking(self) -> None:
        pass

    def drain(self) -> list:
        return []

    def size(self) -> int:
        return len(self._messages)


def _chain_table(report: dict) -> str:
    lines = [f"chain: {report['events']} events of {_PANELS} x {_HEIGHT} x {_WIDTH} with 45 peaks, files in memory; "
             f"load average {report['load_average']:.1f}"]  # fmt: skip
    lines += [f"  {'':20}{'events/CPU-s':>14}{'events/s':>12}"]
    for name, rate in report["events_a_cpu_second"].items():
        lines += [f"  {name:20}{rate:14.1f}{report['events_a_second'][name]:12.1f}"]
    lines += [
        f"  Ray's overhead: {100 * report['ray_overhead']:.1f} % of the work, "
        f"{100 * report['of_that_in_processes_of_ray']:.1f} % in processes of Ray"
    ]
    return "\n".join([*lines, *(f"  {line}" for line in _met(report["aims"]))])


#: What is measured, and how it is shown.
_SECTIONS: dict[str, tuple[Callable[[int, bool], dict], Callable[[dict], str]]] = {
    "peaks": (peaks, _peaks_table),
    "writer": (writer, _writer_table),
    "chain": (chain, _chain_table),
}


if __name__ == "__main__":
    main()
