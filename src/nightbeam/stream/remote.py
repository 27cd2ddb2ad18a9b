"""The one door for Ray: clusters, the sharded queue, arrays by reference, tasks. Ray is imported when it is used."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any, Final, Literal, Self

from nightbeam.core.errors import (
    AuthError,
    BusyError,
    ConfigError,
    InputError,
    MissingError,
    NightbeamError,
    StorageError,
    ToolError,
    UnavailableError,
)
from nightbeam.stream.cluster import LOOPBACK, alive, listens_on_loopback_only, prepare_environment
from nightbeam.stream.compute import is_end
from nightbeam.stream.model import (
    END_OF_STREAM,
    BatchHeader,
    Form,
    LostError,
    PadStyle,
    PipelineOutput,
    PreprocessingMetadata,
)
from nightbeam.stream.signals import our_signals

__all__ = [
    "Arrays",
    "Producer",
    "QueueFound",
    "RayWorkers",
    "Receiver",
    "ShardedQueue",
    "Unreadable",
    "connect",
    "disconnect",
    "fetch",
    "fetch_object",
    "find_queue",
    "is_end",
    "list_queues",
    "not_there",
    "object_store_bytes",
]

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]+\]):(?P<port>[0-9]{1,5})")
_SHARD = re.compile(r"(?P<base>.+)_shard_(?P<number>0|[1-9][0-9]{0,5})", re.DOTALL)
_SAME_NAMESPACE = "check `ray.namespace` matches in both configs"
_FIRST_WAIT_S: Final = 0.005
_MOST_WAIT_S: Final = 0.1
#: A shard that cannot be reached for so long is taken for dead.
_MOST_SILENCE_S: Final = 20.0
#: A question costs a millisecond of CPU. With 8 shards that have nothing this makes some 3 % of a core.
_IDLE_S: Final = 0.15
#: How long arrays may take to come from another node, and those that the loop itself waits for.
_FETCH_S: Final = 120.0
_SHAPE_FETCH_S: Final = 10.0


# -- the cluster --------------------------------------------------------------------------------------------------


def connect(
    address: str,
    namespace: str,
    *,
    num_cpus: int | None = None,
    object_store_bytes: int | None = None,
    temp_dir: Path | None = None,
) -> None:
    """Connect this process to a Ray cluster; where it is connected already, check that it is to this namespace.

    Parameters
    ----------
    address
        ``auto``: the running cluster that ``RAY_ADDRESS`` names or that was started on this machine; none is ever
        started. ``host:port`` of a cluster's head, or ``ray://host:port`` of its client server. ``local``: start a
        cluster inside this process that ends with it and listens on 127.0.0.1 alone.
    namespace
        Of the queue's actors.
    num_cpus, object_store_bytes, temp_dir
        Of a ``local`` cluster.

    Raises
    ------
    UnavailableError
        If there is no cluster at the address.
    AuthError
        If it wants a token that we have not.
    ConfigError
        If the address or the namespace makes no sense, or the process is connected to another namespace.
    """
    if not namespace:
        raise ConfigError("ray.namespace is empty", fix="name the namespace of the pipeline")
    prepare_environment()
    with our_signals():
        import ray

        if ray.is_initialized():
            _check_namespace(namespace)
            return
        options: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "WARNING"}
        if address == "local":
            options |= _local(num_cpus, object_store_bytes, temp_dir)
        else:
            options |= {"address": _resolve(address)}
        with _init_errors(address):
            _knock(options["address"])
            ray.init(**options, configure_logging=False)


def disconnect() -> None:
    """Leave the cluster; a ``local`` one ends. Not to be connected is fine."""
    import sys

    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        with our_signals():
            ray.shutdown()


def object_store_bytes() -> int:
    """Return the size of the object stores of the cluster, bytes."""
    import ray

    with _errors("the size of the object store"):
        return int(ray.cluster_resources().get("object_store_memory", 0))


def _check_namespace(namespace: str) -> None:
    import ray

    found = ray.get_runtime_context().namespace
    if found != namespace:
        raise ConfigError(
            f"this process is connected to namespace {found!r}, not {namespace!r}",
            fix="call disconnect() before connecting to another",
        )


def _local(num_cpus: int | None, object_store: int | None, temp_dir: Path | None) -> dict[str, Any]:
    _use_loopback()
    return {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": num_cpus,
        "object_store_memory": object_store,
        "_node_ip_address": LOOPBACK,
        "_temp_dir": None if temp_dir is None else str(temp_dir),
    }


def _use_loopback() -> None:
    """Make Ray speak on 127.0.0.1; else it puts the address of a network card in its place."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def _resolve(address: str) -> str:
    """Return where the cluster is; nobody there is an error at once, and not after Ray's minutes."""
    found = _running() if address == "auto" else address
    if found.startswith("ray://"):
        return found
    parts = _ADDRESS.fullmatch(found)
    if parts is None:
        raise ConfigError(
            f"{found!r} is no address of a Ray cluster", fix="give auto, local, host:port or ray://host:port"
        )
    if not alive(found):
        raise UnavailableError(f"there is no Ray cluster at {found}", fix="start it, or check ray.address")
    if parts["host"] in (LOOPBACK, "localhost") and listens_on_loopback_only(int(parts["port"])):
        _use_loopback()
    return found


def _knock(address: str) -> None:
    """Ask the head once whether our token will do: when `ray.init` is refused it tries again for 20 s."""
    import ray

    if ":" not in address or address.startswith("ray://"):
        return
    try:
        ray._raylet.GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        raise
    except ray.exceptions.RayError as error:
        log.info("the Ray cluster at %s is not ready: %s", address, _line(error))


def _running() -> str:
    """Return the address of the running cluster that ``auto`` means."""
    from ray._private import services, utils

    told = os.environ.get("RAY_ADDRESS", "")
    if told == "local":
        raise UnavailableError("RAY_ADDRESS is local, so there is no cluster to find", fix=_START_ONE)
    if told and told != "auto":
        return told
    written = utils.read_ray_address()
    if written and alive(written):
        return str(written)
    found = sorted(services.find_gcs_addresses())
    if len(found) > 1:
        raise ConfigError(f"several Ray clusters run here: {', '.join(found)}", fix="name one in ray.address")
    if not found:
        raise UnavailableError("no running Ray cluster was found", fix=_START_ONE)
    return str(found[0])


_START_ONE = "start one (ray start --head), name it in ray.address or RAY_ADDRESS, or set ray.address to local"


@contextlib.contextmanager
def _init_errors(address: str) -> Iterator[None]:
    import ray

    try:
        yield
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError, TimeoutError) as error:
        causes = list(_chain(error))
        text = _line(causes[-1])
        if any("AuthenticationError" in f"{type(one).__name__} {one}" for one in causes):
            raise AuthError(
                f"the Ray cluster at {address} wants a token: {text}",
                fix="let RAY_AUTH_TOKEN_PATH name its token file, or copy it to ~/.ray/auth_token",
            ) from error
        if "ersion mismatch" in str(error):
            raise ConfigError(
                f"the Ray cluster at {address} is of another version: {text}", fix="install its version"
            ) from error
        raise UnavailableError(f"cannot connect to Ray at {address}: {text}", fix="is the cluster up?") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    """Return the last telling line of a foreign error, not too long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    """Translate what Ray raises while ``what`` is asked for."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise _translated(error, what) from error


def _translated(error: BaseException, what: str) -> NightbeamError:
    from ray import exceptions

    root = _root(error)
    if isinstance(root, NightbeamError):
        return root
    if isinstance(root, exceptions.OwnerDiedError):
        return LostError(
            f"{what}: the process that made the object has ended",
            fix="keep the producer running until the writer has taken all, or send arrays by value",
        )
    if isinstance(root, exceptions.ObjectLostError | exceptions.NodeDiedError):
        return LostError(f"{what}: the object is gone ({type(root).__name__})")
    if isinstance(root, exceptions.GetTimeoutError):
        return LostError(f"{what}: it did not come in time", reason="fetch timeout")
    if isinstance(root, exceptions.ObjectStoreFullError | exceptions.OutOfDiskError):
        return StorageError(
            f"{what}: Ray {type(root).__name__}: {_line(root)}",
            fix="decrease processing.max_pending_tasks or increase Ray's object store",
        )
    if isinstance(root, exceptions.RayActorError | exceptions.RpcError | exceptions.LocalRayletDiedError):
        return UnavailableError(f"{what}: {_line(root)}", fix="is the Ray cluster still up?")
    return ToolError(f"{what}: {type(root).__name__}: {_line(root)}")


def _root(error: BaseException) -> BaseException:
    """Return what failed in the other process."""
    from ray.exceptions import RayTaskError

    seen = 0
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) and seen < 8:
        error, seen = error.cause, seen + 1
    return error


# -- the queue ----------------------------------------------------------------------------------------------------


class _Shard:
    """A bounded first-in-first-out list of messages; what the clients of existing pipelines call, no more."""

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> bool:
        if len(self._items) >= self._maxsize:
            return False
        self._items.append(item)
        return True

    def get(self) -> Any:
        return self._items.popleft() if self._items else None

    def size(self) -> int:
        return len(self._items)

    def is_empty(self) -> bool:
        return not self._items

    def is_full(self) -> bool:
        return len(self._items) >= self._maxsize


@dataclass(frozen=True, slots=True)
class QueueFound:
    """A queue of the cluster.

    Attributes
    ----------
    name, namespace
        Of the queue.
    shards
        Numbers of its shards, ascending; all from 0 unless some are gone.
    """

    name: str
    namespace: str
    shards: tuple[int, ...]

    @property
    def gaps(self) -> tuple[int, ...]:
        """Return the numbers that are not there although higher ones are."""
        return tuple(sorted(set(range(self.shards[-1] + 1)) - set(self.shards)))


def list_queues() -> list[QueueFound]:
    """Return all queues of the cluster, of every namespace, by name.

    Raises
    ------
    UnavailableError
        If the cluster does not answer.
    """
    import ray

    with _errors("the list of queues"):
        actors = ray.util.list_named_actors(all_namespaces=True)
    found: dict[tuple[str, str], list[int]] = {}
    for actor in actors:
        if parts := _SHARD.fullmatch(actor["name"]):
            found.setdefault((parts["base"], actor["namespace"]), []).append(int(parts["number"]))
    return [QueueFound(*key, tuple(sorted(numbers))) for key, numbers in sorted(found.items())]


class ShardedQueue:
    """A queue of messages spread over named actors, ``NAME_shard_0`` and on, in the namespace we are connected to.

    Make one with `create` or `open`. The actors outlive every process that uses them, until `drop`.

    Attributes
    ----------
    name, namespace
        Of the queue.
    """

    def __init__(self, name: str, namespace: str, shards: Sequence[Any]) -> None:
        self.name, self.namespace = name, namespace
        self._shards = list(shards)
        self._dead: set[int] = set()
        self._silent: dict[int, float] = {}  # since when they cannot be reached
        self._next = 0

    @classmethod
    def create(cls, name: str, num_shards: int, maxsize_per_shard: int) -> Self:
        """Connect to a queue, making the shards that are not there.

        Several processes may do so at the same moment. What an earlier run left in it is kept, and said in the log.

        Parameters
        ----------
        name
            Of the queue.
        num_shards
            How many shards it has.
        maxsize_per_shard
            Messages that each new shard holds; those that are there keep theirs.

        Raises
        ------
        ConfigError
            If it exists with another number of shards.
        UnavailableError
            If the cluster does not answer.
        """
        import ray

        if not name or num_shards < 1 or maxsize_per_shard < 1:
            raise ConfigError(
                f"a queue named {name!r} of {num_shards} shards of {maxsize_per_shard} messages",
                fix="give a name and at least one of each",
            )
        namespace = ray.get_runtime_context().namespace
        before = _settled(name, namespace, num_shards)
        if before is not None and (before.shards[-1] + 1 != num_shards):
            raise _wrong_count(before, num_shards)
        actor = ray.remote(_Shard)
        with _errors(f"queue {name!r}"):
            shards = [
                actor.options(
                    name=f"{name}_shard_{k}", namespace=namespace, lifetime="detached", get_if_exists=True, num_cpus=0
                ).remote(maxsize_per_shard)
                for k in range(num_shards)
            ]
            queue = cls(name, namespace, shards)
            waiting = sum(ray.get([one.size.remote() for one in shards]))
        if before is not None and before.gaps:
            log.warning("queue %r: shards %s were gone and are new", name, _listed(before.gaps))
        if waiting:
            log.warning("queue %r was there before and holds %d messages; they are used", name, waiting)
        return queue

    @classmethod
    def open(cls, name: str, num_shards: int | Literal["auto"] = "auto") -> Self:
        """Connect to a queue that exists.

        Raises
        ------
        MissingError
            If it does not; the message names the namespaces where one of that name does.
        ConfigError
            If it has another number of shards, or some of them are gone.
        """
        import ray

        namespace = ray.get_runtime_context().namespace
        found = _find(name, namespace)
        if found is None:
            raise not_there(name, namespace)
        if found.gaps:
            raise ConfigError(
                f"queue {name!r} has shards {_listed(found.shards)}; {_listed(found.gaps)} are gone",
                fix=f"remove it with `nightbeam stream drop {name}` and start the pipeline anew",
            )
        if num_shards not in ("auto", len(found.shards)):
            raise _wrong_count(found, int(num_shards))
        return cls.of(found)

    @classmethod
    def of(cls, found: QueueFound) -> Self:
        """Connect to a queue that `list_queues` has shown, of any namespace, to those of its shards that are there.

        Raises
        ------
        MissingError
            If it has been dropped since.
        """
        import ray

        name, namespace = found.name, found.namespace
        try:
            with _errors(f"queue {name!r}"):
                shards = [ray.get_actor(f"{name}_shard_{k}", namespace=namespace) for k in found.shards]
        except ValueError as error:  # it was dropped since we looked
            raise not_there(name, namespace) from error
        return cls(name, namespace, shards)

    @property
    def num_shards(self) -> int:
        """How many shards it has, also those that died."""
        return len(self._shards)

    def put(self, item: Any, *, timeout_s: float | None = None) -> bool:
        """Put a message on the next shard that has room; wait for room where none has.

        Parameters
        ----------
        item
            What can be pickled.
        timeout_s
            How long to wait; None: for ever. 0: every shard is tried once.

        Returns
        -------
        bool
            False where there was no room in time; the message was then not put.

        Raises
        ------
        UnavailableError
            If every shard has died.
        InputError
            If a shard cannot unpickle the message.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        wait_s = _FIRST_WAIT_S
        while not self._try_put(item):
            while True:
                left = wait_s if until is None else min(wait_s, until - time.monotonic())
                if left <= 0:
                    return False
                time.sleep(left)
                wait_s = min(2 * wait_s, _MOST_WAIT_S)
                if self._has_room():  # cheaper to ask than to send the message
                    break
        return True

    def _try_put(self, item: Any) -> bool:
        for k in self._round():
            if self._ask(k, "put", item):
                self._next = (k + 1) % len(self._shards)
                return True
        return False

    def _has_room(self) -> bool:
        return any(self._ask(k, "is_full") is False for k in self._round())

    def _round(self) -> list[int]:
        """Return the living shards, from the one after the last that took something."""
        n = len(self._shards)
        living = [k for k in ((self._next + i) % n for i in range(n)) if k not in self._dead]
        if not living:
            raise self.gone()
        return living

    def _ask(self, k: int, method: str, *args: Any) -> Any:
        """Call a shard; one that died gives None and is asked no more."""
        import ray

        try:
            answer = ray.get(getattr(self._shards[k], method).remote(*args))
        except ray.exceptions.RayActorError as error:
            self.note_failure(k, error)
            return None
        except ray.exceptions.RayTaskError as error:
            raise InputError(
                f"shard {k} of queue {self.name!r} cannot read the message: {_line(_root(error))}",
                fix="install the package of the message's class where the shards run",
            ) from error
        except ray.exceptions.RayError as error:
            raise _translated(error, f"shard {k} of queue {self.name!r}") from error
        self.note_answer(k)
        return answer

    def note_answer(self, k: int) -> None:
        """Take note that a shard has answered."""
        self._silent.pop(k, None)

    def note_failure(self, k: int, error: BaseException) -> Literal["silent", "still silent", "dead"]:
        """Take note that a shard did not answer; one that died is lost with what was in it, and the others go on."""
        from ray.exceptions import ActorUnavailableError

        now = time.monotonic()
        before = self._silent.setdefault(k, now)
        if isinstance(error, ActorUnavailableError) and now - before < _MOST_SILENCE_S:
            if before == now:
                log.warning("shard %d of queue %r cannot be reached: %s", k, self.name, _line(error))
            return "silent" if before == now else "still silent"
        if k not in self._dead:
            self._dead.add(k)
            log.error("shard %d of queue %r has died, what was in it is lost: %s", k, self.name, _line(error))
        return "dead"

    def gone(self) -> UnavailableError:
        """Return the error that says that there is nothing left of it."""
        return UnavailableError(
            f"every shard of queue {self.name!r} has died", fix="start the pipeline anew, it makes new ones"
        )

    def call(self, k: int, method: str) -> Any:
        """Ask a shard without waiting; returns Ray's reference of the answer."""
        return getattr(self._shards[k], method).remote()

    @property
    def dead(self) -> frozenset[int]:
        """Numbers of the shards that are known to have died."""
        return frozenset(self._dead)

    def sizes(self) -> list[int | None]:
        """Return how many messages each shard holds; None: it has died."""
        return [None if k in self._dead else self._ask(k, "size") for k in range(len(self._shards))]

    def size(self) -> int:
        """Return how many messages it holds."""
        return sum(one or 0 for one in self.sizes())

    def drop(self) -> int:
        """Remove the queue from the cluster; returns how many messages were lost with it."""
        import ray

        lost = self.size()
        for shard in self._shards:
            ray.kill(shard)
        until = time.monotonic() + 10.0
        while _find(self.name, self.namespace) is not None and time.monotonic() < until:
            time.sleep(0.02)
        self._dead = set(range(len(self._shards)))
        return lost


def _find(name: str, namespace: str) -> QueueFound | None:
    return next((one for one in list_queues() if (one.name, one.namespace) == (name, namespace)), None)


def _settled(name: str, namespace: str, num_shards: int) -> QueueFound | None:
    """Return the queue as it is once nobody is making it any more."""
    found = _find(name, namespace)
    until = time.monotonic() + 2.0
    while found is not None and len(found.shards) < num_shards and time.monotonic() < until:
        time.sleep(0.1)
        before, found = found, _find(name, namespace)
        if found is not None and len(found.shards) > len(before.shards):
            until = time.monotonic() + 2.0
    return found


def _wrong_count(found: QueueFound, expected: int) -> ConfigError:
    return ConfigError(
        f"Queue '{found.name}' has {len(found.shards)} shards, expected {expected}",
        fix="check `queue.num_shards` matches the pipeline's `queue_num_shards`, or set it to auto",
    )


def find_queue(name: str, namespace: str | None = None) -> QueueFound:
    """Return the queue of that name.

    Parameters
    ----------
    name
        Of the queue.
    namespace
        Where; None: there must be one alone of that name.

    Raises
    ------
    MissingError
        If there is none.
    ConfigError
        If several namespaces have one.
    """
    found = [one for one in list_queues() if one.name == name and namespace in (None, one.namespace)]
    if not found:
        raise not_there(name, namespace)
    if len(found) > 1:
        where = _listed([one.namespace for one in found])
        raise ConfigError(f"there is a queue '{name}' in each of the namespaces {where}", fix="name one of them")
    return found[0]


def not_there(name: str, namespace: str | None) -> MissingError:
    """Return the error that says where else there is a queue of that name."""
    elsewhere = [one.namespace for one in list_queues() if one.name == name]
    found = f"; there is one in namespace {_listed(elsewhere)}" if elsewhere else ""
    where = "any namespace" if namespace is None else f"namespace '{namespace}'"
    fix = _SAME_NAMESPACE if elsewhere else f"{_SAME_NAMESPACE}, and that the pipeline has been started"
    return MissingError(f"Cannot find queue '{name}' in {where}{found}", fix=fix)


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(f"'{one}'" if isinstance(one, str) else str(one) for one in items)


# -- sending ------------------------------------------------------------------------------------------------------


class Producer:
    """What puts the batches of one producer on a queue, numbered, and says when it has no more.

    The process must live until the writer has fetched what was sent by reference: its arrays are gone with it.

    Parameters
    ----------
    queue
        Where to.
    producer_id
        Its name; two producers of one queue must not share it.
    pad_style
        Where panels were padded.
    run, experiment
        Sent with each batch.

    Attributes
    ----------
    batches, events
        Sent so far.
    waited_s
        Time spent on sending, most of it waiting for room.
    refused
        How often there was no room in time.
    """

    def __init__(
        self,
        queue: ShardedQueue,
        producer_id: str,
        *,
        pad_style: PadStyle = "bottom-right",
        run: int | None = None,
        experiment: str | None = None,
    ) -> None:
        self.queue, self.producer_id = queue, producer_id
        self.batches = self.events = self.refused = 0
        self.waited_s = 0.0
        about = {"producer_id": producer_id, "pad_style": pad_style, "run": run, "experiment": experiment}
        self._about = {key: value for key, value in about.items() if value is not None}
        self._sent: set[Any] = set()

    def send(
        self,
        predictions: Any,
        images: Any = None,
        *,
        preprocessing: PreprocessingMetadata | None = None,
        metadata: dict[str, Any] | None = None,
        form: Form = "logits",
        by: Literal["reference", "value"] = "reference",
        calibrated: Any = None,
        batch_id: str | None = None,
        timeout_s: float | None = None,
    ) -> bool:
        """Send a batch; waits for room, and drops nothing.

        Parameters
        ----------
        predictions
            Array or torch tensor of the given form, or a Ray reference to one.
        images
            What the network saw, (B*C, 1, H, W), array or reference.
        preprocessing
            Shapes before and after padding; B of it counts the events.
        metadata
            From the data source; the keys of this class win.
        form
            What ``predictions`` are.
        by
            ``reference``: arrays stay in the object store of this node, and only references travel; ``value``: they
            travel inside the message, which costs a copy into the shard, and outlive this process.
        calibrated
            Images in detector units, (B, C, H0, W0), array or reference.
        batch_id
            Its name; ``PRODUCER_batch_NUMBER`` if not given.
        timeout_s
            How long to wait for room; None: for ever.

        Returns
        -------
        bool
            False where there was no room in time; nothing was sent and no number used.
        """
        begin = time.monotonic()
        message = self._message(predictions, images, calibrated, preprocessing, metadata or {}, form, by, batch_id)
        done = self.queue.put(message, timeout_s=timeout_s)
        self.waited_s += time.monotonic() - begin
        if not done:
            self.refused += 1
            return False
        self.batches += 1
        self.events += 0 if preprocessing is None else int(preprocessing.original_shape[0])
        return True

    def finish(self, *, wait: bool = True, timeout_s: float | None = None, grace_s: float = 5.0) -> bool:
        """Say that there is no more; wait until all has been taken out of the queue and fetched.

        Parameters
        ----------
        wait
            Whether to wait; without it the caller must stay alive by itself.
        timeout_s
            How long to wait for room and for the consumer; None: for ever.
        grace_s
            How long to stay after the queue is empty where Ray does not say whether arrays are still in use.

        Returns
        -------
        bool
            False where it was not all taken in time.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        counts = {"sequence": self.batches, "event_index": self.events}
        marker = PipelineOutput(
            metadata={**self._about, **counts, END_OF_STREAM: True}, batch_id=f"{self.producer_id}_end"
        )
        if not self.queue.put(marker, timeout_s=timeout_s):
            return False
        return not wait or self._drained(until, grace_s)

    def outstanding(self) -> int | None:
        """Return how many arrays of ours somebody may still want; None where Ray does not say."""
        in_use = _references_in_use()
        if in_use is None:
            return None
        self._sent &= in_use
        return len(self._sent)

    def _drained(self, until: float | None, grace_s: float) -> bool:
        if not _wait_until(lambda: self.queue.size() == 0, until):
            return False
        if not self._sent:
            return True
        if self.outstanding() is None:
            time.sleep(grace_s if until is None else max(0.0, min(grace_s, until - time.monotonic())))
            return True
        return _wait_until(lambda: self.outstanding() == 0, until)

    def _message(
        self,
        predictions: Any,
        images: Any,
        calibrated: Any,
        preprocessing: PreprocessingMetadata | None,
        metadata: dict[str, Any],
        form: Form,
        by: str,
        batch_id: str | None,
    ) -> PipelineOutput:
        about = {**metadata, **self._about, "sequence": self.batches}
        if preprocessing is not None:
            about["event_index"] = self.events
        if form != "logits":
            about["prediction_form"] = form
        carry: Callable[[Any], Any] = self.share if by == "reference" else _plain
        if calibrated is not None:
            about["calibrated_image_ref"] = carry(calibrated)
        direct = by == "value" and form == "logits" and _is_tensor(predictions)
        return PipelineOutput(
            predictions=predictions.detach().cpu() if direct else None,
            predictions_ref=None if direct else carry(predictions),
            metadata=about,
            batch_id=batch_id or f"{self.producer_id}_batch_{self.batches}",
            original_image_ref=None if images is None else carry(images),
            preprocessing_metadata=preprocessing,
        )

    def share(self, value: Any) -> Any:
        """Put an array into the object store and return its reference; a reference is returned as it is.

        For a batch that may be offered several times. Ray keeps it as long as anybody has its reference.

        Raises
        ------
        StorageError
            If the object store is full.
        """
        import ray

        if isinstance(value, ray.ObjectRef):
            return value
        with _errors("the object store"):
            ref = ray.put(_plain(value))
        self._sent.add(ref.hex())
        if len(self._sent) % 64 == 0:
            self.outstanding()  # forgets those that nobody has any more
        return ref


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _plain(value: Any) -> Any:
    """Return a tensor as an array; everything else as it is."""
    if not _is_tensor(value):
        return value
    tensor = value.detach().cpu()
    return tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()


def _references_in_use() -> set[str] | None:
    """Return the objects of this process that anybody has a reference to, also others."""
    import ray

    core = getattr(getattr(ray._private.worker, "global_worker", None), "core_worker", None)
    count = getattr(core, "get_all_reference_counts", None)
    if count is None:  # it is no public part of Ray
        return None
    return {key if isinstance(key, str) else key.decode() for key in count()}


def _wait_until(true: Callable[[], bool], until: float | None) -> bool:
    while not true():
        if until is not None and time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True


# -- receiving ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What came in place of a message.

    Attributes
    ----------
    reason
        A short word that is counted: ``unreadable``: a message was taken and cannot be unpickled here; ``shard
        lost``: a shard has died with what it held, which may have been nothing; ``shard silent``: it could not be
        reached just now, and the message of one answer may be lost.
    text
        What there is to say.
    shard
        Where.
    """

    reason: str
    text: str
    shard: int


@dataclass(slots=True)
class _Lane:
    """What a receiver knows of a shard."""

    open: deque[tuple[Any, int, float]] = field(default_factory=deque)  # reference, number of the question, since when
    items: deque[tuple[Any, int]] = field(default_factory=deque)  # message, number of the last question when it came
    empty: int = -1  # number of the last question to which the answer was: nothing
    due_s: float = 0.0
    wait_s: float = 0.0


class Receiver:
    """What takes messages out of a queue, all shards at once, in the order in which one producer put them.

    A shard that has nothing is asked again after ``poll_s``, later and later, so that waiting costs little: the shard
    whose turn it is every 150 ms, the others less often the more there are.

    An item is gone from the queue as soon as a shard has answered. Therefore `stop_asking` and `drain` at the end.

    Parameters
    ----------
    queue
        Which.
    in_flight
        Questions and messages held here, for each shard.
    poll_s
        The first pause before a shard that had nothing is asked again.

    Raises
    ------
    ConfigError
        If a number is not above 0.
    """

    def __init__(self, queue: ShardedQueue, *, in_flight: int = 1, poll_s: float = 0.01) -> None:
        if in_flight < 1 or not poll_s > 0:
            raise ConfigError(f"in_flight is {in_flight}, poll_timeout {poll_s}", fix="give numbers above 0")
        self.queue, self._in_flight, self._poll_s = queue, in_flight, poll_s
        self._lanes = [_Lane() for _ in range(queue.num_shards)]
        self._turn = 0
        self._asked = 0
        self._stopped = False
        self._sizes: list[Any] = []

    def take(self, timeout_s: float | None) -> Any:
        """Return the next message, an `Unreadable` in its place, or None where none came in time.

        Parameters
        ----------
        timeout_s
            How long to wait; None: for ever.

        Raises
        ------
        UnavailableError
            If every shard has died.
        """
        until = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while True:
            found = self._next()
            now = time.monotonic()
            if found is not None or (now >= until and timeout_s):
                return found
            if not self._stopped:
                self._ask_those_due(now)
            elif not any(lane.open for lane in self._lanes):
                return self._next(strict=False)
            self._await(min(until, now + _MOST_WAIT_S) - now)
            if now >= until:
                return self._next()

    def look_once(self) -> Any:
        """Ask every shard and return what comes first, in no order; None: each has answered that it has nothing.

        A shard that does not answer within a second counts as one that has nothing.
        """
        begin = self._asked
        until = time.monotonic() + 1.0
        while True:
            found = self._next(strict=False)
            open_ones = [k for k in self._living() if self._lanes[k].empty < begin]
            if found is not None or not open_ones or time.monotonic() > until:
                return found
            for k in open_ones:
                if not self._lanes[k].open:
                    self._ask(k)
            self._await(0.05)

    def size(self, timeout_s: float = 0.2) -> int:
        """Return how many messages the queue holds, without waiting long.

        Raises
        ------
        UnavailableError
            If a shard does not say so in time; the next call looks whether it has answered meanwhile.
        """
        import ray

        if self._sizes:
            timeout_s = 0.0  # that long it was waited for before
        with _errors(f"the size of queue {self.queue.name!r}"):
            self._sizes = self._sizes or [self.queue.call(k, "size") for k in self._living()]
            late = self._sizes and ray.wait(self._sizes, num_returns=len(self._sizes), timeout=timeout_s)[1]
            if late:
                raise UnavailableError(f"{len(late)} shards of queue {self.queue.name!r} do not say their size")
            answers, self._sizes = self._sizes, []
            return sum(ray.get(answers))

    def stop_asking(self) -> None:
        """Ask no more; `take` still returns what open questions bring."""
        self._stopped = True

    def drain(self, *, timeout_s: float = 5.0) -> list[Any]:
        """Stop asking and return all that open questions still bring; where the cluster has gone, what is here."""
        self.stop_asking()
        until = time.monotonic() + timeout_s
        found = []
        try:
            while any(lane.open for lane in self._lanes) and time.monotonic() < until:
                self._await(0.1)
        except NightbeamError as error:
            log.error("queue %r does not bring what it was asked for: %s", self.queue.name, error)
        while (item := self._first(strict=False)) is not None:
            found.append(item)
        if late := [k for k, lane in enumerate(self._lanes) if lane.open]:
            log.error("shards %s of queue %r did not answer; a message of each may be lost", late, self.queue.name)
        return found

    # A message is handed out when every shard before its own, from the one whose turn it is, has said after the
    # message came that it has nothing: with one producer, that is the order in which it put them.

    def _next(self, *, strict: bool = True) -> Any:
        found = self._first(strict=strict)
        if found is None and not any(lane.items for lane in self._lanes) and not self._living():
            raise self.queue.gone()
        return found

    def _first(self, *, strict: bool) -> Any:
        n = len(self._lanes)
        for i in range(n):
            k = (self._turn + i) % n
            lane = self._lanes[k]
            if not lane.items:
                continue
            item, question = lane.items[0]
            if isinstance(item, Unreadable) and item.reason != "unreadable":
                return lane.items.popleft()[0]  # news of a shard; it is still the same one's turn
            if strict and not self._stopped and not self._all_empty_since(question, range(i)):
                return None
            self._turn = (k + 1) % n
            return self._hand_out(lane)
        return None

    def _hand_out(self, lane: _Lane) -> Any:
        for one in self._lanes:
            one.wait_s = one.due_s = 0.0
        return lane.items.popleft()[0]

    def _all_empty_since(self, question: int, steps: range) -> bool:
        sure, now = True, time.monotonic()
        for i in steps:
            k = (self._turn + i) % len(self._lanes)
            lane = self._lanes[k]
            slow = bool(lane.open) and now - lane.open[0][2] > 1.0
            if k in self.queue.dead or lane.empty > question or slow:
                continue
            lane.due_s, sure = 0.0, False
        return sure

    def _living(self) -> list[int]:
        return [k for k in range(len(self._lanes)) if k not in self.queue.dead]

    def _ask_those_due(self, now: float) -> None:
        living = [(k, self._lanes[k]) for k in self._living()]
        if not any(lane.due_s <= now and self._wants_more(lane) for _, lane in living):
            return
        for k, lane in living:
            # Two questions at once cost little more than one: whose turn comes soon is asked with those who are due.
            if lane.due_s - min(lane.wait_s / 2, _IDLE_S / 3) <= now:
                while len(lane.open) + len(lane.items) < self._in_flight:
                    self._ask(k)

    def _ask(self, k: int) -> None:
        self._asked += 1
        self._lanes[k].open.append((self.queue.call(k, "get"), self._asked, time.monotonic()))

    def _await(self, seconds: float) -> None:
        """Wait for an answer, or until a shard is to be asked again, and take in the answers that are there."""
        import ray

        now = time.monotonic()
        if not self._stopped:
            free = [self._lanes[k].due_s - now for k in self._living() if self._wants_more(self._lanes[k])]
            seconds = min(seconds, *free) if free else seconds
        seconds = max(seconds, 0.0)
        refs = [lane.open[0][0] for lane in self._lanes if lane.open]
        if not refs:
            time.sleep(seconds)
            return
        with _errors(f"queue {self.queue.name!r}"):
            # A question that has been put is answered in a millisecond: not to wait for it would only ask again.
            ready, rest = ray.wait(refs, timeout=max(seconds, 0.002))
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        there = set(ready)
        for k, lane in enumerate(self._lanes):
            while lane.open and lane.open[0][0] in there:
                self._take_in(k, lane)

    def _wants_more(self, lane: _Lane) -> bool:
        return len(lane.open) + len(lane.items) < self._in_flight

    def _take_in(self, k: int, lane: _Lane) -> None:
        ref, question, _ = lane.open.popleft()
        answer = self._read(k, ref)
        if answer is not None:
            lane.items.append((answer, self._asked))
            return
        lane.empty = question
        if k in self.queue.dead:
            return
        most_s = _IDLE_S if k == self._turn else max(_IDLE_S, _IDLE_S / 2 * len(self._lanes))
        lane.wait_s = min(max(2 * lane.wait_s, self._poll_s), max(most_s, self._poll_s))
        lane.due_s = time.monotonic() + lane.wait_s

    def _read(self, k: int, ref: Any) -> Any:
        import ray

        try:
            answer = ray.get(ref)
        except ray.exceptions.RayActorError as error:
            return self._failure(k, error)
        except (ray.exceptions.RpcError, ray.exceptions.LocalRayletDiedError, ConnectionError) as error:
            raise UnavailableError(
                f"queue {self.queue.name!r} cannot be reached: {_line(error)}", fix="is the Ray cluster still up?"
            ) from error
        except Exception as error:  # to unpickle a stranger's message may raise anything
            text = f"a message of shard {k} of queue {self.queue.name!r} cannot be read: {_line(_root(error))}"
            log.error("%s", text)
            return Unreadable("unreadable", text, k)
        self.queue.note_answer(k)
        return answer

    def _failure(self, k: int, error: BaseException) -> Unreadable | None:
        if k in self.queue.dead:
            return None
        state = self.queue.note_failure(k, error)
        if state == "still silent":
            return None
        what, reason = ("has died", "shard lost") if state == "dead" else ("does not answer", "shard silent")
        return Unreadable(reason, f"shard {k} of queue {self.queue.name!r} {what}: {_line(error)}", k)


# -- arrays -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """The large arrays of a batch: read-only views of the object store where they travelled by reference."""

    predictions: Any
    images: Any


def fetch(message: Any, header: BatchHeader | None = None, *, timeout_s: float | EllipsisType | None = ...) -> Arrays:
    """Return the arrays of a message.

    Parameters
    ----------
    message
        Anything with the attributes of `PipelineOutput`.
    header
        What is known of it; where it says that there is no image, none is fetched.
    timeout_s
        How long they may take to come from another node; None: for ever. By default 120 s, and 10 s without a header:
        who does not even know their shape can do nothing else meanwhile.

    Raises
    ------
    LostError
        If the process that made them has ended, or they are gone for another reason.
    """
    if isinstance(timeout_s, EllipsisType):
        timeout_s = _SHAPE_FETCH_S if header is None else _FETCH_S
    images = None
    if header is None or header.image_kind != "none":
        calibrated = message.metadata.get("calibrated_image_ref")
        images = calibrated if calibrated is not None else message.original_image_ref
    predictions = message.predictions if message.predictions is not None else message.predictions_ref
    what = f"batch {getattr(message, 'batch_id', '')!r}"
    return Arrays(*_fetch_all([predictions, images], what, timeout_s))


def fetch_object(value: Any, *, what: str = "predictions", timeout_s: float | None = 120.0) -> Any:
    """Return what a reference refers to; a value is returned as it is.

    Raises
    ------
    LostError
        If it is gone.
    """
    return _fetch_all([value], what, timeout_s)[0]


def _fetch_all(values: list[Any], what: str, timeout_s: float | None) -> list[Any]:
    at = [k for k, one in enumerate(values) if _is_ref(one)]
    if not at:
        return values
    import ray

    with _errors(what):
        for k, found in zip(at, ray.get([values[k] for k in at], timeout=timeout_s), strict=True):
            values[k] = found
    return values


def _is_ref(value: Any) -> bool:
    return type(value).__name__ in ("ObjectRef", "ClientObjectRef")


# -- tasks --------------------------------------------------------------------------------------------------------


def _call(function: Callable[..., Any], args: tuple[Any, ...], *arrays: Any) -> Any:
    return function(*arrays, *args)


@dataclass(slots=True)
class _Open:
    handle: int
    call: tuple[Any, ...]
    tries: int = 1


class RayWorkers:
    """Tasks on the cluster, a bounded number at a time; each that fails is tried once more.

    Parameters
    ----------
    max_tasks
        Open at a time, at most.
    num_cpus
        That each task takes.

    Attributes
    ----------
    retried
        How many tasks were tried again.
    """

    def __init__(self, max_tasks: int, *, num_cpus: float = 1.0) -> None:
        import ray

        if max_tasks < 1:
            raise ConfigError(f"max_pending_tasks is {max_tasks}", fix="give 1 or more")
        self.max_tasks, self.retried = max_tasks, 0
        self._task = ray.remote(num_cpus=num_cpus, max_retries=0)(_call)
        self._open: dict[Any, _Open] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def room(self) -> int:
        """How many more tasks may be submitted now."""
        return self.max_tasks - len(self._open)

    def share(self, value: Any) -> Any:
        """Return a reference for an array that came by value, so that it is stored once for all tasks.

        Raises
        ------
        StorageError
            If the object store is full.
        """
        import ray

        if value is None or _is_ref(value):
            return value
        with _errors("the object store"):
            return ray.put(value)

    def submit(self, function: Callable[..., Any], refs: Sequence[Any], *args: Any) -> int:
        """Start ``function(*arrays, *args)`` somewhere on the cluster, with the arrays that ``refs`` refer to.

        References are handed on as they are: the task maps the object that is there already.

        Parameters
        ----------
        function
            Of a module that the cluster can import.
        refs
            References; None and values stay as they are.
        args
            Small values.

        Returns
        -------
        int
            What `finished` will name it by.

        Raises
        ------
        BusyError
            If as many as may be are open.
        NightbeamError
            If the cluster does not take it.
        """
        if not self.room:
            raise BusyError(f"{len(self)} tasks are open", fix="collect some with finished() first")
        self._count += 1
        self._start(_Open(self._count, (function, args, *refs)))
        return self._count

    def finished(self, timeout_s: float | None) -> list[tuple[int, Any]]:
        """Return the tasks that have ended, each with its result or its error; waits for the first of them.

        Parameters
        ----------
        timeout_s
            How long to wait; None: for ever.

        Raises
        ------
        NightbeamError
            If Ray does not say; the tasks are still open.
        """
        import ray

        if not self._open:
            return []
        refs = list(self._open)
        with _errors("Ray's tasks"):
            ready, rest = ray.wait(refs, timeout=timeout_s)
            if ready and rest:
                more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
                ready += more
        return self._results(ready)

    def _results(self, refs: list[Any]) -> list[tuple[int, Any]]:
        import ray

        tasks = [self._open.pop(ref) for ref in refs]
        try:
            results = ray.get(refs) if refs else []
        except Exception:  # of any of them: each is asked for its own
            results = [self._result(ref, task) for ref, task in zip(refs, tasks, strict=True)]
        pairs = zip(tasks, results, strict=True)
        return [(task.handle, one) for task, one in pairs if one is not _AGAIN]

    def _result(self, ref: Any, task: _Open) -> Any:
        import ray

        try:
            return ray.get(ref)
        except Exception as error:
            found = _translated(error, f"task {task.handle}")
        if task.tries > 1 or (type(found) is not ToolError and not found.retry):
            return found
        log.warning("task %d is tried again: %s", task.handle, found)
        self.retried += 1
        task.tries += 1
        try:
            self._start(task)
        except NightbeamError as gone:
            return gone
        return _AGAIN

    def _start(self, task: _Open) -> None:
        with _errors(f"task {task.handle}"):
            self._open[self._task.remote(*task.call)] = task


_AGAIN = object()
