"""The sharded queue: named actors of a Ray cluster, made, found, filled and removed."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from nightbeam.core.errors import ConfigError, InputError, MissingError, UnavailableError
from nightbeam.stream import shard
from nightbeam.stream.faults import line_of, ray_errors, root_of, translated
from nightbeam.stream.shard import Shard

__all__ = ["QueueFound", "ShardedQueue", "find_queue", "list_queues", "not_there"]

log = logging.getLogger(__name__)

_SHARD = re.compile(r"(?P<base>.+)_shard_(?P<number>0|[1-9][0-9]{0,5})", re.DOTALL)
_SAME_NAMESPACE = "check `ray.namespace` matches in both configs"
_FIRST_WAIT_S: Final = 0.005
_MOST_WAIT_S: Final = 0.1
#: A shard that cannot be reached for so long is taken for dead.
_MOST_SILENCE_S: Final = 20.0


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

    with ray_errors("the list of queues"):
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
        # By value: a client that cannot import the class could call `size`, but nothing that has an argument.
        ray.cloudpickle.register_pickle_by_value(shard)
        actor = ray.remote(Shard)
        with ray_errors(f"queue {name!r}"):
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
            with ray_errors(f"queue {name!r}"):
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
        except TypeError as error:
            if "positional arguments" not in str(error):  # a message that cannot be pickled
                raise
            # Ray could not import the actor's class, and takes its methods to have no arguments.
            raise ConfigError(
                f"shard {k} of queue {self.name!r} was made by a program whose class cannot be imported here",
                fix=f"remove the queue with `nightbeam stream drop {self.name}`, or install that program here",
            ) from error
        except ray.exceptions.RayActorError as error:
            self.note_failure(k, error)
            return None
        except ray.exceptions.RayTaskError as error:
            raise InputError(
                f"shard {k} of queue {self.name!r} cannot read the message: {line_of(root_of(error))}",
                fix="install the package of the message's class where the shards run",
            ) from error
        except ray.exceptions.RayError as error:
            raise translated(error, f"shard {k} of queue {self.name!r}") from error
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
                log.warning("shard %d of queue %r cannot be reached: %s", k, self.name, line_of(error))
            return "silent" if before == now else "still silent"
        if k not in self._dead:
            self._dead.add(k)
            log.error("shard %d of queue %r has died, what was in it is lost: %s", k, self.name, line_of(error))
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
        for actor in self._shards:
            ray.kill(actor)
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
        fix="check `queue.num_shards` matches the pipeline's `queue_num_shards`, or set it to auto; if the last shards "
        f"have died, remove the queue with `nightbeam stream drop {found.name}` and start the pipeline anew",
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
