"""The writer and a producer in processes of their own, over a real Ray: nothing is lost unsaid, whoever dies."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import psutil
import pytest
import yaml

from nightbeam.core.children import die_with_parent
from nightbeam.platform.processes import free_port
from nightbeam.stream.cluster import address_of, alive, head_argv, head_environment, short_temp_dir

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

NAMESPACE = "test-pipeline"
#: Events of a batch, panels, their size, and peaks of an event.
B, C, H, W, PEAKS = 4, 2, 24, 32, 12
KILLS = 32

#: Sends numbered batches as it is told on its standard input: a number of batches, `end`, or `sleep` (until killed).
PRODUCER = f"""
import sys
import numpy as np
from nightbeam.stream.model import PreprocessingMetadata
from nightbeam.stream.producer import Producer
from nightbeam.stream.queues import ShardedQueue
from nightbeam.stream.remote import connect

B, C, H, W, PEAKS = {B}, {C}, {H}, {W}, {PEAKS}
address, name, shards, maxsize, producer, by = sys.argv[1:]
connect(address, {NAMESPACE!r})
queue = ShardedQueue.create(name, int(shards), int(maxsize))
sender = Producer(queue, producer, run=7)
shapes = PreprocessingMetadata((B, C, H, W), (B * C, 1, H, W))

def batch(number):
    logits = np.zeros((B * C, 2, H, W), np.float32)
    images = np.zeros((B * C, 1, H, W), np.float32)
    for event in range(B):
        for k in range(PEAKS):
            panel, y, x = k % C, 2 + 4 * (k // C) % (H - 2), (number * B + event + 5 * k) % W
            logits[event * C + panel, 1, y, x] = 1.0
            images[event * C + panel, 0, y, x] = 100.0 + k
    first = number * B
    stamps = (np.arange(first, first + B, dtype=np.uint64) << np.uint64(32)) + np.uint64(1 << 61)
    return logits, images, {{"timestamp": stamps, "photon_energy": [9500.0] * B, "encoder_value": [100.0] * B}}

print("ready", flush=True)
sent = 0
for line in sys.stdin:
    order = line.strip()
    if order == "end":
        sender.finish(wait=True)
        print("ended", flush=True)
        break
    for _ in range(int(order)):
        logits, images, metadata = batch(sent)
        sender.send(logits, images, preprocessing=shapes, metadata=metadata, by=by)
        sent += 1
        print(sent, flush=True)
"""

#: Forks writers that have everything imported already, as it is told on its standard input.
NURSERY = """
import os, sys
import numpy as np
import ray
from nightbeam.cxi import worker
from nightbeam.peaks.compute import find_peaks
from nightbeam.peaks.model import PeakSettings

find_peaks(np.zeros((1, 2, 4, 4), np.float32), np.zeros((1, 4, 4), np.float32), window=None, settings=PeakSettings())
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        sys.stdin.close()
        worker.run_cpu_postprocessing_pipeline(line.strip())
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


@dataclass
class Talker:
    """A child process that is told things by line, and answers by line."""

    process: subprocess.Popen[str]
    said: queue.Queue[str] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "(raylet)" not in line:  # Ray has its say as well
                self.said.put(line.strip())
        self.process.stdout.close()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, seconds: float = 60.0) -> str:
        return self.said.get(timeout=seconds)

    def hear_until(self, line: str, seconds: float = 60.0) -> None:
        while self.hear(seconds) != line:
            pass


@dataclass
class Bench:
    """A Ray head, and who works with it."""

    address: str
    place: Path
    until: Callable[..., Any]
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *argv: str | Path, text: str = "") -> subprocess.Popen[str]:
        env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
        code = [sys.executable, "-c", text] if text else []
        with (self.place / f"{len(self.children)}.log").open("w") as log:
            child = subprocess.Popen(
                [*code, *map(str, argv)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                env=env,
                cwd=self.place,
                preexec_fn=die_with_parent(),
            )
        self.children.append(child)
        return child

    def producer(
        self, name: str, *, shards: int = 2, maxsize: int = 8, who: str = "p0", by: str = "reference"
    ) -> Talker:
        return Talker(self.start(self.address, name, str(shards), str(maxsize), who, by, text=PRODUCER))

    def writer(self, config: Path) -> subprocess.Popen[str]:
        return self.start(Path(sys.executable).with_name("cxi-writer"), "--config", config)

    def config(self, name: str, **sections: dict[str, Any]) -> Path:
        tree: dict[str, Any] = {
            "ray": {"namespace": NAMESPACE, "address": self.address},
            "queue": {"name": name, "num_shards": 2, "maxsize_per_shard": 8},
            "peak_finding": {"min_num_peak": 5},
            "output": {"output_dir": str(self.place / name), "buffer_size": 10},
        }
        for section, values in sections.items():
            tree[section] = tree.get(section, {}) | values
        path = self.place / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def status(self, name: str) -> dict[str, Any]:
        path = self.place / name / "peaknet_cxi_status.json"
        return dict(json.loads(path.read_text())) if path.exists() else {"counters": Counter(), "state": ""}

    def files(self, name: str) -> list[Path]:
        return sorted((self.place / name).glob("*.cxi"))

    def events(self, name: str) -> list[int]:
        """Return the number of every event in the files, in their order; each is looked at whole."""
        found: list[int] = []
        for path in sorted(self.files(name), key=lambda one: one.stat().st_mtime_ns):
            found += whole_events(path)
        return found


def whole_events(path: Path) -> list[int]:
    """Return the numbers of the events in a file, after a look at each of its values."""
    with h5py.File(path) as file:
        n = file["/entry_1/result_1/nPeaks"].shape[0]
        data, stamps = file["/entry_1/data_1/data"][...], file["/LCLS/detector_1/timestamp"][...]
        x, y = (file[f"/entry_1/result_1/peak{axis}PosRaw"][...] for axis in "XY")
        assert data.shape == (n, C * H, W)
        assert (file["/entry_1/result_1/nPeaks"][...] == PEAKS).all()
        numbers = [int(stamp >> 32) - (1 << 29) for stamp in stamps]
        for k, number in enumerate(numbers):
            expected = sorted(
                ((p % C) * H + 2 + 4 * (p // C) % (H - 2), (number + 5 * p) % W, 100.0 + p) for p in range(PEAKS)
            )
            rows = [(int(y[k, p]), int(x[k, p]), float(data[k, int(y[k, p]), int(x[k, p])])) for p in range(PEAKS)]
            assert sorted(rows) == expected, f"event {number} of {path}"
    return numbers


@pytest.fixture(scope="module")
def ray_address(tmp_path_factory: pytest.TempPathFactory, until: Callable[..., Any]) -> Iterator[str]:
    place = tmp_path_factory.mktemp("ray")
    port = free_port("127.0.0.1", 26400)
    argv = head_argv(port=port, temp_dir=short_temp_dir(place), num_cpus=2, object_store_bytes=200 << 20)
    with (place / "head.log").open("w") as log:
        head = subprocess.Popen(
            argv, env=os.environ | head_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place,
            preexec_fn=die_with_parent(),
        )  # fmt: skip
    try:
        until(lambda: alive(address_of(port)), 60.0)
        yield address_of(port)
    finally:
        below = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        head.wait(60.0)
        _, left = psutil.wait_procs(below, timeout=20.0)
        for one in left:
            one.kill()


@pytest.fixture
def bench(ray_address: str, tmp_path: Path, until: Callable[..., Any]) -> Iterator[Bench]:
    bench = Bench(ray_address, tmp_path, until)
    try:
        yield bench
    finally:
        for child in bench.children:
            child.kill()
            child.wait(30.0)
            for pipe in (child.stdin, child.stdout):
                with suppress(BrokenPipeError):
                    pipe.close()


@pytest.mark.parametrize("first", ["producer", "writer"])
def test_either_side_may_start_first_and_the_order_is_kept(bench, first):
    name = f"order_{first}"
    config = bench.config(name, queue={"num_shards": 4})
    if first == "writer":
        writer = bench.writer(config)
        bench.until(lambda: bench.status(name)["state"] == "running", 60.0)
    producer = bench.producer(name, shards=4)
    assert producer.hear() == "ready"
    producer.say("25")
    if first == "producer":
        producer.hear_until("20")
        writer = bench.writer(config)
    producer.say("end")
    assert writer.wait(120.0) == 0
    assert bench.events(name) == list(range(25 * B))
    assert [len(whole_events(path)) for path in bench.files(name)] == [10] * 10


def test_a_full_queue_makes_the_producer_wait_and_loses_nothing(bench):
    producer = bench.producer("full", shards=2, maxsize=3)
    assert producer.hear() == "ready"
    producer.say("30")
    producer.say("end")
    assert [producer.hear() for _ in range(6)] == [str(k + 1) for k in range(6)]
    # It waits: there is nobody who takes.
    with pytest.raises(queue.Empty):
        producer.hear(1.0)
    assert bench.writer(bench.config("full")).wait(120.0) == 0
    assert bench.events("full") == list(range(30 * B))


def test_arrays_of_a_dead_producer_are_lost_by_name_and_the_writer_goes_on(bench):
    dead, living = bench.producer("dead", who="mortal"), bench.producer("dead", who="other", by="value")
    assert dead.hear() == living.hear() == "ready"
    dead.say("5")
    dead.hear_until("5")
    dead.process.kill()
    dead.process.wait(30.0)
    living.say("6")
    living.say("end")
    config = bench.config("dead")
    assert bench.writer(config).wait(120.0) == 0
    counters = bench.status("dead")["counters"]
    assert counters["events_lost"] == {"object lost": 5 * B}
    assert counters["total_events_written"] == 6 * B
    assert counters["balance"] == 0
    said = "".join(path.read_text() for path in bench.place.glob("*.log"))
    assert all(f"mortal_batch_{k}" in said for k in range(5))


def test_sigterm_writes_everything_that_was_taken(bench):
    producer = bench.producer("term", maxsize=100)
    assert producer.hear() == "ready"
    producer.say("200")
    writer = bench.writer(bench.config("term", output={"buffer_size": 7}))
    bench.until(lambda: len(bench.files("term")) >= 3, 60.0)
    writer.send_signal(signal.SIGTERM)
    assert writer.wait(60.0) == 0
    status = bench.status("term")
    counters, events = status["counters"], bench.events("term")
    assert counters["events_received"] == counters["total_events_written"] == len(events)
    assert counters["balance"] == counters["buffer_size"] == 0
    assert events == list(range(len(events)))
    # What it did not take is still there for the next.
    producer.say("end")
    assert bench.writer(bench.config("term")).wait(120.0) == 0
    assert bench.events("term") == list(range(200 * B))


def _runs(bench: Bench, name: str, pid: int) -> bool:
    return bench.status(name).get("pid") == pid


def _has_files(bench: Bench, name: str, number: int) -> bool:
    return len(bench.files(name)) >= number


def test_no_kill_leaves_half_a_file_and_all_that_is_lost_is_stated(bench):
    name, chance = "killed", random.Random(20261122)
    config = bench.config(name)
    producer = bench.producer(name)
    assert producer.hear() == "ready"
    nursery = Talker(bench.start(text=NURSERY))
    sent = 0
    for number in range(KILLS):
        producer.say("40")
        sent += 40
        files = len(bench.files(name))
        nursery.say(str(config))
        pid = int(nursery.hear())
        if number % 8:  # the others are killed as they begin
            bench.until(partial(_runs, bench, name, pid), 60.0, every_s=0.02)
        if number % 2:
            bench.until(partial(_has_files, bench, name, files + 1), 60.0, every_s=0.02)
        time.sleep(chance.uniform(0.0, 0.4))
        os.kill(pid, signal.SIGKILL)
        assert nursery.hear() == "gone"
        for path in bench.files(name):
            whole_events(path)
    producer.say("end")
    assert bench.writer(config).wait(180.0) == 0
    producer.hear_until("ended", 120.0)
    found = Counter(bench.events(name))
    assert max(found.values()) == 1, "an event was written twice"
    lost = set(range(sent * B)) - set(found)
    account = subprocess.run(
        [sys.executable, "-m", "nightbeam", "cxi", "account", str(bench.place / name), "--json"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    (page,) = [json.loads(line) for line in account.stdout.splitlines()]
    stated = {
        number
        for one in [*page["missing"], *page["never_received"]]
        for number in range(one["first"] * B, (one["last"] + 1) * B)
    }
    assert lost <= stated
    # A batch of which a file holds a part is stated as a whole.
    assert {number // B for number in stated} == {number // B for number in lost}
    assert not list((bench.place / name).glob("*.partial"))
