"""Every key of the configuration and what it does: read from a file, run by the loop, seen in files or behaviour.

Ray alone is not there: what is asked of it is noted. A key that has no row here fails.
"""

from __future__ import annotations

import logging
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from nightbeam.core.errors import MissingError
from nightbeam.cxi import jobs, layout
from nightbeam.cxi.config import known_keys, load_config
from nightbeam.cxi.doors import the_world
from nightbeam.cxi.logs import logged
from nightbeam.cxi.worker import CxiService
from nightbeam.stream import nodes, queues, receiver, remote
from nightbeam.stream.model import PreprocessingMetadata
from nightbeam.testing.cxi_world import World

LEAST = {
    "ray.namespace": "test",
    "queue.name": "q",
    "queue.num_shards": 1,
    "processing.num_cpu_workers": 1,
    "peak_finding.min_num_peak": 1,
    "output.buffer_size": 100,
    "system.log_level": "INFO",
}
#: Two modules of 8 x 8 beside each other.
GEOM = (
    "".join(
        f"p{p}/min_fs = {8 * p}\np{p}/max_fs = {8 * p + 7}\np{p}/min_ss = 0\np{p}/max_ss = 7\np{p}/corner_x = {8 * p}\n"
        f"p{p}/corner_y = 0\np{p}/fs = x\np{p}/ss = y\np{p}/res = 1000\n"
        for p in range(2)
    )
    + "clen = 0.1\nphoton_energy = 9000\n"
)
ROWS: dict[str, Callable[..., None]] = {}


def row(key):
    def keep(function):
        assert key not in ROWS
        ROWS[key] = function
        return function

    return keep


def four(world):
    """One batch of events with 1, 2, 3 and 4 peaks."""
    world.send(0, peaks=(1, 2, 3, 4))


@dataclass
class Run:
    """What came of it."""

    world: World
    service: CxiService
    root: Path
    asked: dict[str, Any]
    over: bool = False
    level: int = 0
    before_end: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self):
        return sorted(path for path in self.root.rglob("*.cxi") if "master" not in path.name)

    def read(self, path, file=0):
        with h5py.File(self.files[file]) as opened:
            found = opened.get(path)
            return None if found is None else found[()]


@pytest.fixture
def run(tmp_path, monkeypatch):
    logger = logging.getLogger("nightbeam")
    before, made = logger.level, []
    logger.setLevel(logging.NOTSET)

    def begin(keys, world, root):
        tree: dict[str, dict[str, Any]] = {}
        for dotted, value in (LEAST | {"output.output_dir": str(root)} | keys).items():
            section, key = dotted.split(".")
            tree.setdefault(section, {})[key] = value
        path = tmp_path / f"{len(made)}.yaml"
        path.write_text(yaml.safe_dump(tree))
        asked = ray(monkeypatch, world)
        real, fake = the_world(), world.doors()
        doors = replace(real, fetch=fake.fetch, fetch_images=fake.fetch_images, remote=fake.remote)
        made.append(Run(world, CxiService(load_config(path), doors=doors, clock=world.clock), root, asked))
        return made[-1]

    def call(keys, send=four, *, end=True, nodes=1, wait_s=0.0, look=lambda _: None):
        world = World(nodes=nodes)
        found = begin(keys, world, tmp_path / f"out{len(made)}")
        send(world)
        if end:
            world.end()
        with logged(found.service.config.system, program=False):
            found.level = logger.getEffectiveLevel()
            found.service.open()
            try:
                turn(found, wait_s)
                look(found)
            finally:
                found.before_end = found.service.counters()
                found.service.close()
        found.counters = found.service.counters()
        return found

    yield call
    logger.setLevel(before)


def ray(monkeypatch, world) -> dict[str, Any]:
    """Be Ray: note what is asked for."""
    asked: dict[str, Any] = {}

    class Receiver:
        def __init__(self, _queue, poll_s):
            asked["poll_s"] = poll_s
            self.look_once, self.stop_asking, self.drain = world.queue.look_once, lambda: None, world.queue.drain
            self.size = world.queue.size

        def take(self, timeout_s):
            asked["longest_take_s"] = max(asked.get("longest_take_s", 0.0), timeout_s)
            return world.queue.take(timeout_s)

    monkeypatch.setattr(remote, "connect", lambda *words: asked.update(connect=words))
    monkeypatch.setattr(remote, "disconnect", lambda: None)
    monkeypatch.setattr(nodes, "count_nodes", lambda: world.nodes)
    monkeypatch.setattr(remote, "object_store_bytes", lambda: world.store_bytes)
    monkeypatch.setattr(queues, "list_queues", list)
    monkeypatch.setattr(receiver, "Receiver", Receiver)
    monkeypatch.setattr(
        queues.ShardedQueue, "create", lambda *words: asked.update(create=words) or world.queue, raising=True
    )
    return asked


def turn(found, wait_s):
    """Let the loop turn until it is over or nothing more happens; then let time pass, and again."""
    service, patience = found.service, time.monotonic() + 60
    for pause_s in (0.0, wait_s):
        found.world.clock.now_s += pause_s
        quiet = 0
        while not found.over and quiet < 10:
            found.over = not service.step()
            busy = service.pool.open or service._outlet.waiting_events
            quiet = 0 if busy else quiet + 1
            service._outlet.wait(0.002)
            assert time.monotonic() < patience


# -- the cluster and the queue ------------------------------------------------------------------------------------


@row("ray.namespace")
def _(run):
    assert run({"ray.namespace": "there"}).asked["connect"] == ("auto", "there")


@row("ray.address")
def _(run):
    assert run({"ray.address": "host:6379"}).asked["connect"] == ("host:6379", "test")


@row("queue.name")
def _(run):
    assert run({"queue.name": "other"}).asked["create"][0] == "other"


@row("queue.num_shards")
def _(run):
    assert run({"queue.num_shards": 3}).asked["create"][1] == 3
    with pytest.raises(MissingError):  # it looks, and there is none
        run({"queue.num_shards": "auto"})


@pytest.fixture(autouse=True)
def no_queue(monkeypatch):
    def absent(name, _num_shards):
        raise MissingError(f"no queue {name}")

    monkeypatch.setattr(queues.ShardedQueue, "open", absent)


@row("queue.maxsize_per_shard")
def _(run):
    assert run({"queue.maxsize_per_shard": 7}).asked["create"][2] == 7


@row("queue.poll_timeout")
def _(run):
    found = run({"queue.poll_timeout": 0.25})
    assert (found.asked["poll_s"], found.asked["longest_take_s"]) == (0.25, 0.25)


@row("queue.num_producers")
def _(run):
    assert run({}).over
    assert not run({"queue.num_producers": 2}).over


# -- who does it --------------------------------------------------------------------------------------------------


@row("processing.num_cpu_workers")
def _(run, monkeypatch):
    real, pieces = jobs.split_rows, []
    monkeypatch.setattr(jobs, "split_rows", lambda *asked: pieces.append(real(*asked)) or pieces[-1])
    run({"processing.num_cpu_workers": 4})
    assert [len(one) for one in pieces] == [4]


@row("processing.max_pending_tasks")
def _(run):
    keys = {"processing.num_cpu_workers": 8, "processing.max_pending_tasks": 3}
    assert run(keys, nodes=2).world.tasks.most == 3


@row("processing.max_pending_bytes")
def _(run):
    def held(world):  # each waits for a number 0 that does not come
        for k in range(1, 6):
            world.send(k)

    one = 8 * 64 * 12
    most = {}
    for key in ({}, {"processing.max_pending_bytes": one}):
        found = run(key | {"output.buffer_size": 1}, held, end=False)
        most[bool(key)] = found.before_end["total_events_written"]
    assert most == {False: 0, True: 20}  # the full memory lets them go on


@row("processing.mode")
def _(run):
    assert run({"processing.mode": "tasks"}).world.tasks.most > 0
    assert run({"processing.mode": "threads"}, nodes=2).world.tasks is None


# -- what is a peak -----------------------------------------------------------------------------------------------


@row("peak_finding.min_num_peak")
def _(run):
    assert run({"peak_finding.min_num_peak": 3}).read(layout.N_PEAKS).tolist() == [3, 4]


@row("peak_finding.max_num_peak")
def _(run):
    assert run({"peak_finding.max_num_peak": 2}).read(layout.N_PEAKS).tolist() == [1, 2, 2, 2]


@row("peak_finding.reject_above")
def _(run):
    keys = {"peak_finding.max_num_peak": 2, "peak_finding.reject_above": True}
    assert run(keys).read(layout.N_PEAKS).tolist() == [1, 2]


def pixels(*places, values=(1.0, 3.0)):
    """One event with peaks of these pixels on its first panel."""

    def send(world):
        message = world.send(0, peaks=(0,))
        for (y, x), value in zip(places, values, strict=False):
            world.objects[message.predictions_ref.key][0, 1, y, x] = 1.0
            world.objects[message.original_image_ref.key][0, 0, y, x] = value

    return send


BESIDE, CORNER = pixels((3, 3), (3, 4)), pixels((3, 3), (4, 4))


@row("peak_finding.connectivity")
def _(run):
    assert run({}, CORNER).read(layout.N_PEAKS).tolist() == [1]
    assert run({"peak_finding.connectivity": 4}, CORNER).read(layout.N_PEAKS).tolist() == [2]


@row("peak_finding.min_probability")
def _(run):
    # A logit of 1 above the other one is a probability of 0.731.
    assert run({"peak_finding.min_probability": 0.73}).counters["total_events_written"] == 4
    assert run({"peak_finding.min_probability": 0.74}).counters["total_events_written"] == 0


@row("peak_finding.centroid")
def _(run):
    keys = {"peak_finding.background": "none"}
    assert run(keys, BESIDE).read(layout.PEAK_X)[0, 0] == 3.5
    assert run(keys | {"peak_finding.centroid": "intensity"}, BESIDE).read(layout.PEAK_X)[0, 0] == 3.75


@row("peak_finding.background")
def _(run):
    peak = pixels((1, 1), values=(5.0,))
    assert run({}, peak).read(layout.TOTAL_INTENSITY)[0, 0] == 4.0
    assert run({"peak_finding.background": "none"}, peak).read(layout.TOTAL_INTENSITY)[0, 0] == 5.0


@row("peak_finding.min_pixels")
def _(run):
    assert run({"peak_finding.min_pixels": 2}, BESIDE).counters["total_events_written"] == 1
    assert run({"peak_finding.min_pixels": 3}, BESIDE).counters["total_events_written"] == 0


@row("peak_finding.max_pixels")
def _(run):
    assert run({"peak_finding.max_pixels": 1}, BESIDE).counters["total_events_written"] == 0


# -- what messages do not say -------------------------------------------------------------------------------------


@row("preprocessing.pad_style")
def _(run):
    def padded(world):
        send = pixels((3, 3), values=(1.0,))
        send(world)
        message = world.queue.messages[-1]
        message.preprocessing_metadata = PreprocessingMetadata((1, 2, 4, 6), (2, 1, 8, 8))

    assert run({}, padded).read(layout.PEAK_X)[0, 0] == 3.0
    centred = run({"preprocessing.pad_style": "center"}, padded)
    assert (centred.read(layout.PEAK_Y)[0, 0], centred.read(layout.PEAK_X)[0, 0]) == (1.0, 2.0)


def bare(world):
    """One batch of 8 rows of 8 x 8 that does not say what they are."""
    world.queue.messages.append(replace(world.message(0, peaks=(1, 2, 3, 4)), preprocessing_metadata=None))


@row("detector.num_panels")
def _(run):
    assert run({}, bare).counters["events_rejected"].keys() == {"no shape"}
    assert run({"detector.num_panels": 4}, bare).read(layout.DATA).shape == (2, 32, 8)


@row("detector.panel_shape")
def _(run):
    keys = {"detector.num_panels": 2, "detector.panel_shape": [5, 7]}
    assert run(keys, bare).read(layout.DATA).shape == (4, 10, 7)


@row("instrument.camera_length_mm")
def _(run):
    assert run({}).read(layout.CLEN) is None
    assert run({"instrument.camera_length_mm": 120.5}).read(layout.CLEN).tolist() == [120.5] * 4


@row("instrument.photon_energy_eV")
def _(run):
    assert run({"instrument.photon_energy_eV": 9500}).read(layout.PHOTON_ENERGY).tolist() == [9500.0] * 4


@row("instrument.pixel_size_m")
def _(run):
    path = "/entry_1/instrument_1/detector_1/x_pixel_size"
    assert run({"instrument.pixel_size_m": 1e-4}).read(path).tolist() == [1e-4] * 4


@row("metadata.copy")
def _(run):
    def lasered(world):
        world.send(0, laser=[1, 0, 1, 0])

    assert run({}, lasered).read("/LCLS/laser") is None
    assert run({"metadata.copy": ["laser"]}, lasered).read("/LCLS/laser").tolist() == [1, 0, 1, 0]


@row("metadata.static")
def _(run):
    assert run({"metadata.static": {"sample": "lysozyme"}}).read("/entry_1/static/sample") == b"lysozyme"


@row("geometry.geom_file")
def _(run, tmp_path):
    (tmp_path / "g.geom").write_text(GEOM)
    found = run({"geometry.geom_file": str(tmp_path / "g.geom")})
    assert found.read(layout.DATA).shape == (4, 8, 16)
    assert found.read("/entry_1/result_1/peakRadius") is not None


@row("geometry.panel_map")
def _(run):
    assert run({}).read(layout.DATA).shape == (4, 16, 8)
    assert run({"geometry.panel_map": [[0, 9], [0, 0]]}).read(layout.DATA).shape == (4, 8, 17)


@row("geometry.mask_file")
def _(run, tmp_path):
    mask = np.zeros((2, 8, 8), bool)
    mask[1, 2, 3] = True
    np.save(tmp_path / "m.npy", mask)
    assert run({}).read(layout.MASK) is None
    found = run({"geometry.mask_file": str(tmp_path / "m.npy")})
    assert np.argwhere(found.read(layout.MASK)[0]).tolist() == [[10, 3]]


# -- when it ends -------------------------------------------------------------------------------------------------


def many(world):
    for k in range(5):
        world.send(k)


@row("run.total_events")
def _(run):
    found = run({"run.total_events": 9}, many, end=False)
    assert (found.over, found.counters["events_received"]) == (True, 12)


@row("run.total_batches")
def _(run):
    found = run({"run.total_batches": 2}, many, end=False)
    assert (found.over, found.counters["batches_received"]) == (True, 2)


@row("run.idle_timeout")
def _(run):
    assert not run({"run.idle_timeout": 5}, end=False, wait_s=4.9).over
    assert run({"run.idle_timeout": 5}, end=False, wait_s=5.1).over


@row("run.startup_timeout")
def _(run):
    assert not run({"run.startup_timeout": 5}, lambda _: None, end=False, wait_s=4.9).over
    assert run({"run.startup_timeout": 5}, lambda _: None, end=False, wait_s=5.1).over


# -- files --------------------------------------------------------------------------------------------------------


@row("output.output_dir")
def _(run, tmp_path):
    run({"output.output_dir": str(tmp_path / "elsewhere")})
    assert len(list((tmp_path / "elsewhere").glob("peaknet_cxi_*_chunk0000.cxi"))) == 1


@row("output.file_prefix")
def _(run):
    assert run({"output.file_prefix": "mfx"}).files[0].name.startswith("mfx_")


@row("output.buffer_size")
def _(run):
    found = run({"output.buffer_size": 3})
    assert [len(found.read(layout.N_PEAKS, k)) for k in range(2)] == [3, 1]


@row("output.batches_per_file")
def _(run):
    assert len(run({}, many).files) == 1
    assert len(run({"output.batches_per_file": 2}, many).files) == 3


@row("output.create_output_dir")
def _(run, tmp_path):
    with pytest.raises(MissingError, match="create_output_dir"):
        run({"output.create_output_dir": False, "output.output_dir": str(tmp_path / "no")})
    assert not (tmp_path / "no").exists()


@row("output.save_segmentation_maps")
def _(run):
    assert run({}).read(layout.SEGMENTATION) is None
    found = run({"output.save_segmentation_maps": True}).read(layout.SEGMENTATION)
    assert found.sum(axis=(1, 2)).tolist() == [1, 2, 3, 4]


@row("output.images")
def _(run):
    found = run({"output.images": False})
    assert found.read(layout.DATA) is None
    assert found.read(layout.N_PEAKS).tolist() == [1, 2, 3, 4]


@row("output.dtype")
def _(run):
    assert run({}).read(layout.DATA).dtype == np.float32
    assert run({"output.dtype": "int16"}).read(layout.DATA).dtype == np.int16


@row("output.compression")
def _(run):
    with h5py.File(run({"output.compression": "gzip-3"}).files[0]) as file:
        data = file[layout.DATA]
        assert (data.compression, data.compression_opts, data.shuffle) == ("gzip", 3, True)


@row("output.flush_interval")
def _(run):
    assert run({}, end=False, wait_s=6).before_end["total_events_written"] == 0

    def look(found):
        patience = time.monotonic() + 30
        while not found.files and time.monotonic() < patience:
            found.world.clock.now_s += 5.0
            found.service._outlet.wait(0.6)
        assert found.files

    run({"output.flush_interval": 5}, end=False, look=look)


@row("output.ordered")
def _(run):
    def second(world):
        world.send(1)

    keys = {"output.buffer_size": 1}
    assert run(keys, second, end=False).before_end["total_events_written"] == 0
    assert run(keys | {"output.ordered": False}, second, end=False).before_end["total_events_written"] == 4


@row("output.per_run")
def _(run):
    found = run({"output.per_run": True}, lambda world: world.send(0, run=42))
    assert found.files[0].parent.name == "r0042"


@row("output.name_template")
def _(run):
    assert run({"output.name_template": "{prefix}-{chunk}"}).files[0].name == "peaknet_cxi-0000.cxi"


@row("output.lst")
def _(run):
    assert (run({}).root / "peaknet_cxi.lst").exists()
    assert not list(run({"output.lst": False}).root.glob("*.lst"))


@row("output.geom")
def _(run, tmp_path):
    (tmp_path / "g.geom").write_text(GEOM)
    keys = {"geometry.geom_file": str(tmp_path / "g.geom")}
    assert "peak_list = /entry_1/result_1" in (run(keys).root / "peaknet_cxi.geom").read_text()
    assert not list(run(keys | {"output.geom": False}).root.glob("*.geom"))


@row("output.master")
def _(run):
    keys = {"output.buffer_size": 2}
    names = [{path.name for path in run(keys | {"output.master": on}).root.iterdir()} for on in (True, False)]
    assert any("master" in name for name in names[0])
    assert not any("master" in name for name in names[1])


@row("output.compat")
def _(run):
    rows, most = "/entry_1/result_1/rcent", "/entry_1/result_1/peakMaximumValue"
    usual, asked = run({}), run({"output.compat": ["psocake"]})
    assert [one.read(rows) is None for one in (usual, asked)] == [True, False]
    assert [one.read(most) is None for one in (usual, asked)] == [False, True]


# -- log and health -----------------------------------------------------------------------------------------------


@row("system.log_level")
def _(run):
    assert run({}).level == logging.INFO
    assert run({"system.log_level": "ERROR"}).level == logging.ERROR


@row("system.log_file")
def _(run, tmp_path):
    run({"system.log_file": str(tmp_path / "w.log")})
    assert "producer 'p' has ended" in (tmp_path / "w.log").read_text()


@row("system.progress_interval")
def _(run, caplog):
    run({"system.progress_interval": 2}, many)
    said = [line for line in caplog.messages if "batches, " in line and not line.startswith("ended")]
    assert [line.split(" ")[0] for line in said] == ["2", "4"]


@row("health.port")
def _(run):
    def look(found):
        with urllib.request.urlopen(f"http://127.0.0.1:{found.service.port}/healthz", timeout=10) as answer:
            assert answer.status == 200

    run({"health.port": 0}, end=False, look=look)
    assert run({}).service.port is None


@pytest.mark.parametrize("key", known_keys())
def test_the_key_does_what_it_says(key, run, request):
    check = ROWS[key]  # a new key needs a row
    names = check.__code__.co_varnames[1 : check.__code__.co_argcount]
    check(run, *(request.getfixturevalue(name) for name in names))


def test_there_is_no_row_of_a_key_that_is_gone():
    assert set(ROWS) == set(known_keys())
