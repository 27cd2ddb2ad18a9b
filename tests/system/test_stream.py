"""The queue on a real Ray cluster of this machine, with each side in a process of its own where that matters."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from nightbeam.core.errors import AuthError, BusyError, ConfigError, MissingError, UnavailableError
from nightbeam.stream import cluster, queues, remote
from nightbeam.stream.arrays import fetch
from nightbeam.stream.compute import is_end
from nightbeam.stream.model import BatchError, LostError, PipelineOutput, PreprocessingMetadata
from nightbeam.stream.producer import Producer
from nightbeam.stream.queues import ShardedQueue
from nightbeam.stream.receiver import Receiver
from nightbeam.stream.shard import Shard
from nightbeam.stream.tasks import RayWorkers

pytestmark = pytest.mark.system

NAMESPACE = "pipeline"
SHAPES = PreprocessingMetadata((2, 3, 4, 5), (6, 1, 8, 8))


class Head:
    """A head in a process of its own."""

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.token = cluster.make_token(directory / "token")
        self.temp_dir = cluster.short_temp_dir(directory)
        argv = cluster.head_argv(port=self.port, temp_dir=self.temp_dir, num_cpus=2, object_store_bytes=100 << 20)
        environment = os.environ | cluster.head_environment(token_file=self.token)
        self.log = directory / "head.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(argv, env=environment, stdout=out, stderr=out, start_new_session=True)

    def family(self) -> list[psutil.Process]:
        """The processes of its session, also those whose parent has died."""
        return [one for one in psutil.process_iter() if _session(one.pid) == self.process.pid]

    def connections(self) -> list[psutil._common.sconn]:
        found = []
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                found += process.net_connections("inet")
        return found

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(cluster.STOP_GRACE_S)
        finally:
            for one in self.family():
                one.kill()
            shutil.rmtree(self.temp_dir, ignore_errors=True)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return 0


@pytest.fixture(scope="module")
def head(tmp_path_factory, until) -> Iterator[Head]:
    patch = pytest.MonkeyPatch()
    directory = tmp_path_factory.mktemp("ray")
    running = Head(directory)
    for name, value in {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(running.token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    }.items():
        patch.setenv(name, value)
    patch.delenv("RAY_ADDRESS", raising=False)
    try:
        until(lambda: "block forever" in running.log.read_text(), 60.0)
        before = signal.getsignal(signal.SIGTERM)
        remote.connect(cluster.address_of(running.port), NAMESPACE)
        assert signal.getsignal(signal.SIGTERM) is before
        yield running
    finally:
        remote.disconnect()
        running.stop()
        patch.undo()


@pytest.fixture(autouse=True)
def _connected(head):
    """Every test has the cluster."""


@pytest.fixture(scope="module")
def _queues(head) -> dict[tuple[int, int], ShardedQueue]:
    return {}


@pytest.fixture
def shared(_queues):
    """Queues that many tests use, as it takes long to make one; each finds them empty."""

    def give(num_shards: int, maxsize: int = 20) -> ShardedQueue:
        key = num_shards, maxsize
        if key not in _queues:
            _queues[key] = ShardedQueue.create(f"shared {key}", *key)
        queue = ShardedQueue.open(_queues[key].name)
        rest = Receiver(queue)
        while rest.look_once() is not None:
            pass
        return queue

    return give


@pytest.fixture
def name(request) -> Iterator[str]:
    """The name of a queue of its own, which is gone afterwards."""
    name = request.node.name.replace("[", "-").replace("]", "")
    yield name
    for found in queues.list_queues():
        if found.name == name:
            ShardedQueue.of(found).drop()


def message(number, **more):
    return PipelineOutput(predictions_ref=np.zeros(1), batch_id=str(number), **more)


def numbers(taken):
    return [int(one.batch_id) for one in taken]


def script(head: Head, code: str) -> subprocess.Popen[str]:
    """Run some lines as another process that is connected to the cluster."""
    begin = (
        "import os, sys, json\nimport numpy as np\n"
        "from nightbeam.stream import remote\nfrom nightbeam.stream.model import *\n"
        "from nightbeam.stream.producer import Producer\nfrom nightbeam.stream.queues import ShardedQueue\n"
        f"remote.connect('127.0.0.1:{head.port}', '{NAMESPACE}')\n"
    )
    argv = [sys.executable, "-c", begin + code]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return out


# -- the cluster --------------------------------------------------------------------------------------------------


def test_nothing_listens_or_speaks_where_another_machine_could_be(head):
    ShardedQueue.create("listeners", 1, 1)  # so that a worker is among them
    connections = head.connections()
    heard = {one.laddr.ip.removeprefix("::ffff:") for one in connections if one.status == psutil.CONN_LISTEN}
    spoken = {one.raddr.ip.removeprefix("::ffff:") for one in connections if one.raddr}
    assert heard == spoken == {"127.0.0.1"}


def test_to_connect_again_is_fine_but_not_to_another_namespace(head):
    remote.connect("auto", NAMESPACE)
    with pytest.raises(ConfigError, match="'pipeline', not 'other'"):
        remote.connect("auto", "other")


def test_the_object_store_has_a_size():
    assert 50 << 20 < remote.object_store_bytes() <= 100 << 20


def test_without_the_token_nobody_connects(head):
    code = (
        "from nightbeam.stream import remote\nfrom nightbeam.core.errors import AuthError\n"
        f"try: remote.connect('127.0.0.1:{head.port}', 'x')\nexcept AuthError as error: print(error.fix)"
    )
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=100
    )
    assert "RAY_AUTH_TOKEN_PATH" in done.stdout
    assert AuthError.exit_code == 77


def test_a_token_is_read_anew_for_every_connection(head, tmp_path):
    wrong = tmp_path / "wrong"
    cluster.make_token(wrong)
    code = (
        "import os, ray\nfrom nightbeam.stream import remote\nfrom nightbeam.core.errors import AuthError\n"
        f"for mode, token in (('disabled', ''), ('token', {str(wrong)!r}), ('token', {str(head.token)!r})):\n"
        "    os.environ.update(RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN_PATH=token)\n"
        f"    try: remote.connect('127.0.0.1:{head.port}', 'x')\n    except AuthError: print('no')\n"
        "    else: print('yes')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.split() == ["no", "no", "yes"]


# -- making and finding -------------------------------------------------------------------------------------------


def test_two_processes_may_make_a_queue_at_the_same_moment(head, name):
    code = f"print('ready', flush=True); sys.stdin.readline()\nprint(ShardedQueue.create({name!r}, 4, 5).num_shards)"
    both = [script(head, code) for _ in range(2)]
    for one in both:
        one.stdout.readline()
    for one in both:
        one.stdin.write("go\n")
        one.stdin.flush()
    assert [said(one) for one in both] == ["4\n", "4\n"]
    assert ShardedQueue.open(name, "auto").num_shards == 4


def test_a_queue_of_an_earlier_run_is_used_and_said(shared, caplog):
    before = shared(4)
    before.put(message(1))
    with caplog.at_level(logging.WARNING, "nightbeam"):
        again = ShardedQueue.create(before.name, 4, 5)
    assert "holds 1 messages" in caplog.text
    assert again.size() == 1


@pytest.mark.parametrize("wrong", [3, 5])
def test_another_number_of_shards_is_an_error(shared, wrong):
    name = shared(4).name
    for way in (lambda: ShardedQueue.create(name, wrong, 5), lambda: ShardedQueue.open(name, wrong)):
        with pytest.raises(ConfigError, match=f"has 4 shards, expected {wrong}") as caught:
            way()
        assert "queue.num_shards" in caught.value.fix
    assert queues.find_queue(name).shards == (0, 1, 2, 3)


def test_a_queue_that_is_not_there_is_an_error_that_says_where_it_is(name):
    import ray

    with pytest.raises(MissingError, match=f"Cannot find queue '{name}' in namespace 'pipeline'") as caught:
        ShardedQueue.open(name)
    assert "ray.namespace" in caught.value.fix
    actor = ray.remote(Shard)
    actor.options(name=f"{name}_shard_0", namespace="elsewhere", lifetime="detached", num_cpus=0).remote(1)
    with pytest.raises(MissingError, match="there is one in namespace 'elsewhere'"):
        ShardedQueue.open(name)


def test_a_shard_that_is_gone_is_named(name):
    import ray

    ShardedQueue.create(name, 3, 5)
    ray.kill(ray.get_actor(f"{name}_shard_1"))
    with pytest.raises(ConfigError, match="has shards 0, 2; 1 are gone"):
        ShardedQueue.open(name)


def test_nonsense_is_no_queue():
    with pytest.raises(ConfigError):
        ShardedQueue.create("q", 0, 5)


# -- order and limits ---------------------------------------------------------------------------------------------


def test_twelve_batches_over_four_shards_come_in_the_order_in_which_they_were_put(shared):
    queue = shared(4)
    for number in range(12):
        assert queue.put(message(number))
    receiver = Receiver(queue)
    assert numbers(receiver.take(10.0) for _ in range(12)) == list(range(12))
    assert receiver.take(0.05) is None


def test_order_holds_while_one_puts_and_another_takes(head, shared):
    queue = shared(3, 2)  # small: most of the time it is full
    code = (
        f"queue = ShardedQueue.open({queue.name!r})\n"
        "for k in range(60): queue.put(PipelineOutput(predictions_ref=np.zeros(1), batch_id=str(k)))\n"
    )
    other = script(head, code)
    receiver = Receiver(queue)
    taken = numbers(receiver.take(60.0) for _ in range(60))
    said(other)
    assert sorted(taken) == list(range(60))
    # With gets under way a full shard may get room before the one whose turn it is; then numbers are needed.
    assert max(abs(place - number) for place, number in enumerate(taken)) <= 3


def test_a_full_queue_takes_nothing_until_there_is_room(shared):
    queue = shared(2, 1)
    assert [queue.put(message(k), timeout_s=0) for k in range(3)] == [True, True, False]
    assert not queue.put(message(3), timeout_s=0.02)
    done = threading.Event()
    waiting = threading.Thread(target=lambda: queue.put(message(4)) and done.set())
    waiting.start()
    assert not done.wait(0.2)
    receiver = Receiver(queue)
    first = receiver.take(10.0)
    assert done.wait(60.0)
    waiting.join()
    assert sorted(numbers([first, receiver.take(10.0), receiver.take(10.0)])) == [0, 1, 4]


def test_nothing_that_was_taken_is_lost_when_asking_stops(shared):
    queue = shared(4)
    for number in range(30):
        queue.put(message(number))
    receiver = Receiver(queue, in_flight=3)
    taken = [receiver.take(10.0) for _ in range(5)]
    receiver.stop_asking()
    taken.append(receiver.take(10.0))
    taken += receiver.drain()
    assert receiver.take(0.01) is None
    rest = Receiver(queue)
    while (one := rest.look_once()) is not None:
        taken.append(one)
    assert sorted(numbers(taken)) == list(range(30))


def test_to_look_once_finds_what_is_in_any_shard(shared):
    queue = shared(4)
    receiver = Receiver(queue)
    assert receiver.look_once() is None
    for number in range(3):
        queue.put(message(number))
    # Of the shards that answer at a time any may be the first; only `take` keeps the order.
    assert sorted(numbers(receiver.look_once() for _ in range(3))) == [0, 1, 2]
    assert receiver.look_once() is None


# -- clients and actors of other programs ---------------------------------------------------------------------------

#: As other programs have them: no more than the five methods, found by name.
FOREIGN = """
import ray
@ray.remote
class Theirs:
    def __init__(self, maxsize): self.items, self.maxsize = [], maxsize
    def put(self, item):
        if len(self.items) >= self.maxsize: return False
        self.items.append(item); return True
    def get(self): return self.items.pop(0) if self.items else None
    def size(self): return len(self.items)
    def is_empty(self): return not self.items
    def is_full(self): return len(self.items) >= self.maxsize
"""


def test_our_clients_work_with_shards_of_another_program(head, name):
    code = FOREIGN + (
        f"names = [f'{name}_shard_{{k}}' for k in range(2)]\n"
        "kept = [Theirs.options(name=one, lifetime='detached', num_cpus=0).remote(2) for one in names]\n"
        "print(ray.get([one.size.remote() for one in kept]))\n"
    )
    said(script(head, code))
    queue = ShardedQueue.create(name, 2, 5)
    assert [queue.put(message(k), timeout_s=0) for k in range(5)] == [True] * 4 + [False]
    receiver = Receiver(queue)
    assert numbers(receiver.take(10.0) for _ in range(4)) == [0, 1, 2, 3]


def test_another_program_works_with_our_shards(name):
    import ray

    ShardedQueue.create(name, 2, 1)
    theirs = [ray.get_actor(f"{name}_shard_{k}") for k in range(2)]
    assert ray.get(theirs[0].put.remote("a")) is True
    assert ray.get(theirs[0].put.remote("b")) is False
    assert ray.get([theirs[0].size.remote(), theirs[0].is_full.remote(), theirs[1].is_empty.remote()]) == [
        1,
        True,
        True,
    ]
    assert ray.get([theirs[0].get.remote(), theirs[0].get.remote()]) == ["a", None]


def test_another_program_that_has_no_nightbeam_works_with_our_shards(head, name):
    ShardedQueue.create(name, 1, 1)
    code = (
        "import sys\nsys.modules['nightbeam'] = None\nimport ray\n"
        f"ray.init('127.0.0.1:{head.port}', namespace='{NAMESPACE}', log_to_driver=False)\n"
        f"shard = ray.get_actor('{name}_shard_0')\n"
        "print(ray.get([shard.put.remote('a'), shard.put.remote('b'), shard.size.remote(), shard.get.remote()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | cluster.head_environment(token_file=head.token),
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.stdout == "[True, False, 1, 'a']\n", done.stderr


# -- producers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["reference", "value"])
def test_a_batch_comes_as_it_was_sent(shared, by):
    import torch

    queue = shared(4)
    producer = Producer(queue, "p", pad_style="center", run=7, experiment="exp")
    logits, images = torch.arange(768.0).reshape(6, 2, 8, 8), np.full((6, 1, 8, 8), 2.0, np.float32)
    for _ in range(2):
        assert producer.send(logits, images, preprocessing=SHAPES, metadata={"photon_energy": 1.0}, by=by)
    receiver = Receiver(queue)
    first, second = receiver.take(10.0), receiver.take(10.0)
    assert (second.batch_id, second.metadata["sequence"], second.metadata["event_index"]) == ("p_batch_1", 1, 2)
    assert {
        "photon_energy": 1.0,
        "run": 7,
        "experiment": "exp",
        "pad_style": "center",
    }.items() <= first.metadata.items()
    arrays = fetch(first)
    assert np.array_equal(np.asarray(arrays.predictions), logits.numpy())
    assert np.array_equal(arrays.images, images)
    assert np.array_equal(first.get_numpy_array(), logits.numpy())
    assert np.array_equal(first.get_torch_tensor().numpy(), logits.numpy())


def test_a_batch_that_found_no_room_uses_no_number(shared):
    producer = Producer(shared(1, 1), "p")
    assert producer.send(np.zeros(3))
    assert not producer.send(np.zeros(3), timeout_s=0)
    assert (producer.batches, producer.refused) == (1, 1)
    assert producer.outstanding() == 1


def test_an_array_is_in_use_until_the_one_who_took_it_forgets_it(shared, until):
    queue = shared(4)
    producer = Producer(queue, "p")
    producer.send(np.zeros(3), np.zeros(3))
    gc.collect()
    assert producer.outstanding() == 2
    taken = Receiver(queue).take(10.0)
    assert not producer.finish(timeout_s=0.2)
    del taken
    gc.collect()
    until(lambda: producer.outstanding() == 0, 30.0)


def test_the_end_says_how_many_there_were_and_waits_for_the_last(head, shared):
    queue = shared(4)
    code = (
        f"producer = Producer(ShardedQueue.open({queue.name!r}), 'p')\n"
        "shapes = PreprocessingMetadata((2, 1, 4, 5), (2, 1, 8, 8))\n"
        "for k in range(3): producer.send(np.full(1000, k), preprocessing=shapes)\n"
        "print(producer.finish(timeout_s=60))\n"
    )
    other = script(head, code)
    receiver = Receiver(queue)
    *batches, end = [receiver.take(60.0) for _ in range(4)]
    assert is_end(end) == "p"
    assert [is_end(one) for one in batches] == [None] * 3
    assert (end.metadata["sequence"], end.metadata["event_index"]) == (3, 6)
    assert [int(fetch(one).predictions[0]) for one in batches] == [0, 1, 2]  # the producer is still there
    del batches, end
    gc.collect()
    assert said(other) == "True\n"


def lost(message):
    try:
        fetch(message)
    except LostError as error:
        return error
    return None


def test_arrays_by_reference_are_gone_with_their_producer_and_those_by_value_are_not(head, shared, until):
    queue = shared(4)
    code = (
        f"producer = Producer(ShardedQueue.open({queue.name!r}), 'p')\n"
        "producer.send(np.ones(1000), by='reference'); producer.send(np.ones(1000), by='value')\n"
    )
    said(script(head, code))
    receiver = Receiver(queue)
    gone, there = receiver.take(10.0), receiver.take(10.0)
    error = until(lambda: lost(gone), 30.0)  # the cluster takes a moment to note that a process has ended
    assert error.reason == "object lost"
    assert "'p_batch_0': the process that made the object has ended" in error.what
    assert fetch(there).predictions.sum() == 1000
    workers = RayWorkers(1)
    workers.submit(total, [gone.predictions_ref], 0.0)
    ((_, found),) = workers.finished(60.0)
    assert isinstance(found, LostError)


# -- what goes wrong ----------------------------------------------------------------------------------------------


def _only_in_a_shard():
    import ray

    if ray.get_runtime_context().get_actor_id() is None:
        raise ModuleNotFoundError("No module named 'their_package'")
    return Foreign()


class Foreign:
    def __reduce__(self):
        return _only_in_a_shard, ()


@pytest.fixture
def _by_value():
    import ray

    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.usefixtures("_by_value")
def test_a_message_that_cannot_be_read_here_stops_nothing(shared):
    queue = shared(1)
    queue.put(Foreign())
    queue.put(message(1))
    receiver = Receiver(queue)
    bad = receiver.take(10.0)
    assert (bad.reason, bad.shard) == ("unreadable", 0)
    assert "their_package" in bad.text
    assert numbers([receiver.take(10.0)]) == [1]


def test_a_shard_that_died_is_named_and_the_others_go_on(name):
    import ray

    queue = ShardedQueue.create(name, 3, 5)
    receiver = Receiver(queue)
    ray.kill(ray.get_actor(f"{name}_shard_1"))
    lost = receiver.take(30.0)
    assert (lost.reason, lost.shard) == ("shard lost", 1)
    for number in range(4):
        assert queue.put(message(number))
    assert numbers(receiver.take(10.0) for _ in range(4)) == [0, 1, 2, 3]
    assert queue.sizes() == [0, None, 0]


def test_a_queue_of_which_nothing_is_left_is_an_error(name):
    queue = ShardedQueue.create(name, 2, 5)
    receiver = Receiver(queue)
    queue.put(message(1))
    assert ShardedQueue.open(name).drop() == 1
    assert [receiver.take(30.0).reason for _ in range(2)] == ["shard lost"] * 2
    with pytest.raises(UnavailableError, match="every shard"):
        receiver.take(1.0)
    with pytest.raises(UnavailableError, match="every shard"):
        ShardedQueue(name, NAMESPACE, queue._shards).put(message(2))


# -- tasks --------------------------------------------------------------------------------------------------------


def total(array, add):
    if array.flags.writeable:
        raise AssertionError("a copy came, not the object of the store")
    return float(array.sum()) + add


def fails_once(flag, where):
    if not Path(where).exists():
        Path(where).touch()
        raise OSError("no luck")
    return "done"


def refuses(_, where):
    with Path(where).open("a") as out:
        out.write("x")
    raise BatchError("turned down", reason="bad shape")


def dies(_):
    os._exit(7)


@pytest.mark.usefixtures("_by_value")
def test_tasks_get_the_arrays_that_are_there_already():
    workers = RayWorkers(3)
    ref = workers.share(np.ones(100_000))
    assert workers.share(ref) is ref
    handles = {workers.submit(total, [ref], add): add for add in (1, 2, 3)}
    with pytest.raises(BusyError):
        workers.submit(total, [ref], 4)
    found = {}
    while len(found) < 3:
        found |= dict(workers.finished(60.0))
    assert found == {handle: 100_000.0 + add for handle, add in handles.items()}
    assert workers.finished(0.0) == []


def all_of(workers):
    found = []
    while not found:
        found = workers.finished(60.0)
    return found[0][1]


@pytest.mark.usefixtures("_by_value")
def test_a_task_that_fails_is_tried_once_more_and_no_oftener(tmp_path):
    workers = RayWorkers(1)
    workers.submit(fails_once, [None], str(tmp_path / "flag"))
    assert all_of(workers) == "done"
    assert workers.retried == 1
    workers.submit(dies, [None])
    assert "WorkerCrashedError" in str(all_of(workers))
    assert workers.retried == 2


@pytest.mark.usefixtures("_by_value")
def test_a_batch_that_is_turned_down_is_not_tried_again(tmp_path):
    workers = RayWorkers(1)
    workers.submit(refuses, [None], str(tmp_path / "tries"))
    found = all_of(workers)
    assert (type(found), found.reason) == (BatchError, "bad shape")
    assert (tmp_path / "tries").read_text() == "x"


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command_shows_queues_and_removes_those_that_are_empty(head, name):
    import ray

    ShardedQueue.create(name, 2, 5).put(message(1))
    code = (
        "from click.testing import CliRunner\nfrom nightbeam.cli.stream import stream\nimport json\n"
        f"at = ['--address', '127.0.0.1:{head.port}']\n"
        f"name = {name!r}\n"
        "calls = [['status', name, '--json', *at], ['status', *at], ['status', 'none', *at], ['drop', name, *at],\n"
        "         ['drop', name, '--yes', '--json', *at], ['drop', name, *at]]\n"
        "for call in calls:\n"
        "    done = CliRunner().invoke(stream, call)\n"
        "    print(json.dumps([done.stdout, str(done.exception or '')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    shown, table, none, busy, dropped, missing = (json.loads(line) for line in done.stdout.splitlines())
    row = json.loads(shown[0])
    assert row == {
        "name": name, "namespace": NAMESPACE, "shards": 2, "messages": 1, "sizes": {"0": 1, "1": 0}, "gone": [],
    }  # fmt: skip
    assert NAMESPACE in table[0]
    assert "Cannot find queue 'none'" in none[1]
    assert "holds 1 messages" in busy[1]
    assert json.loads(dropped[0])["lost"] == 1
    assert "Cannot find queue" in missing[1]
    with pytest.raises(ValueError):
        ray.get_actor(f"{name}_shard_0")


# -- the end: this test must be the last ---------------------------------------------------------------------------


def test_a_signal_ends_the_head_and_all_it_started(head, until):
    ShardedQueue.create("left over", 2, 5)
    assert len(head.family()) > 4
    remote.disconnect()
    remote.disconnect()
    head.process.send_signal(signal.SIGTERM)
    head.process.wait(cluster.STOP_GRACE_S)
    until(lambda: not head.family(), 10.0)
    assert not cluster.alive(cluster.address_of(head.port))
