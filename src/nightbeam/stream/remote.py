"""The Ray cluster: to connect to it and to leave it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nightbeam.core.errors import AuthError, ConfigError, UnavailableError
from nightbeam.stream.cluster import LOOPBACK, alive, listens_on_loopback_only, prepare_environment
from nightbeam.stream.faults import chain_of, line_of, ray_errors
from nightbeam.stream.signals import our_signals

__all__ = ["connect", "disconnect", "object_store_bytes"]

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]+\]):(?P<port>[0-9]{1,5})")


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

    with ray_errors("the size of the object store"):
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
        log.info("the Ray cluster at %s is not ready: %s", address, line_of(error))


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
        causes = list(chain_of(error))
        text = line_of(causes[-1])
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
