"""A Ray head of our own on this machine: how it is started, where it keeps its files, whether it is there."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import sys
import sysconfig
from pathlib import Path
from typing import Final

import psutil

from nightbeam.core.errors import ConfigError, StorageError

__all__ = [
    "LOOPBACK",
    "STOP_GRACE_S",
    "address_of",
    "alive",
    "head_argv",
    "head_environment",
    "listens_on_loopback_only",
    "make_token",
    "prepare_environment",
    "short_temp_dir",
]

LOOPBACK: Final = "127.0.0.1"
#: How long a head takes to end its processes after SIGTERM, at most, with some to spare.
STOP_GRACE_S: Final = 20.0

#: Ray puts a network card's address in place of 127.0.0.1 and then listens on all of them, unless clusters of
#: several nodes are switched off by this variable, whatever the system it is named after.
_ONE_NODE: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
#: A socket's path has 107 characters at most, of which Ray takes up to 64 below its directory.
_MOST_OF_A_PATH: Final = 40


def prepare_environment() -> None:
    """Set what Ray reads when it is imported: it tells nobody of its use, and a token that is there is used."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray ends a process, without a word to it, so many seconds after its cluster has gone. It may have files to finish.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        # A cluster uses a token that it finds; a driver with an explicit address would not.
        os.environ["RAY_AUTH_MODE"] = "token"
    _reread_environment()


def _has_token() -> bool:
    told = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return told or (Path.home() / ".ray" / "auth_token").is_file()


def _reread_environment() -> None:
    """Let a Ray that is imported already forget the mode and the token that it read then or for another cluster."""
    if "ray" not in sys.modules:
        return
    import ray

    if not ray.is_initialized():
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def head_argv(*, port: int, temp_dir: Path, num_cpus: int, object_store_bytes: int) -> list[str]:
    """Return the command of a head that runs in the foreground, on 127.0.0.1, without a dashboard.

    It must run with `head_environment`. SIGTERM ends it and all it started; it exits with 1 then.

    Parameters
    ----------
    port
        Where clients connect.
    temp_dir
        Short; see `short_temp_dir`.
    num_cpus
        Tasks that run at a time.
    object_store_bytes
        Shared memory for arrays, at least 75 MiB.

    Raises
    ------
    ConfigError
        If a value makes no sense.
    """
    if not 1024 <= port <= 65535 or num_cpus < 1:
        raise ConfigError(
            f"a Ray head on port {port} with {num_cpus} cpus", fix="a port from 1024 to 65535, 1 cpu or more"
        )
    if object_store_bytes < 75 << 20:
        raise ConfigError(f"an object store of {object_store_bytes} bytes", fix="Ray wants 75 MiB or more")
    return [
        str(Path(sysconfig.get_path("scripts")) / "ray"),
        "start",
        "--head",
        "--block",
        f"--node-ip-address={LOOPBACK}",
        f"--port={port}",
        f"--num-cpus={num_cpus}",
        f"--object-store-memory={object_store_bytes}",
        f"--temp-dir={temp_dir}",
        "--include-dashboard=false",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        "--log-color=false",
    ]


def head_environment(*, token_file: Path | None = None) -> dict[str, str]:
    """Return what is to be added to the environment of a head.

    Parameters
    ----------
    token_file
        Clients must know the token in it, and have it named by ``RAY_AUTH_TOKEN_PATH``; None: as Ray finds it, which is
        ``~/.ray/auth_token`` if there is one.
    """
    found = {
        _ONE_NODE: "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # There is no other node that could take over what is drained; detached actors would be waited for in vain.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    if token_file is not None:
        found |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    return found


def make_token(file: Path) -> Path:
    """Write a token of a new cluster into a file that only we can read; one that is there is kept.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_hex(32))
    except FileExistsError:
        return file
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}", fix="check the directory") from error
    return file


def short_temp_dir(state_dir: Path) -> Path:
    """Return the directory for the sockets of the head of a state directory, made if it is not there.

    It is in ``XDG_RUNTIME_DIR`` where that is short enough, else in ``/tmp``; nobody else can look into it.

    Raises
    ------
    StorageError
        If it belongs to somebody else, or cannot be made.
    """
    digest = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:10]
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    if not runtime.is_dir() or len(str(runtime)) > _MOST_OF_A_PATH - 16 or not os.access(runtime, os.W_OK):
        runtime = Path("/tmp")
    place = runtime / f"nb-{digest}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
    except OSError as error:
        raise StorageError(f"cannot make {place}: {error.strerror}", fix="free that name") from error
    if place.is_symlink() or found.st_uid != os.getuid():
        raise StorageError(f"{place} belongs to somebody else", fix="remove it, or set XDG_RUNTIME_DIR")
    place.chmod(0o700)
    return place


def address_of(port: int) -> str:
    """Return what clients of our head connect to."""
    return f"{LOOPBACK}:{port}"


def alive(address: str, *, timeout_s: float = 2.0) -> bool:
    """Return whether somebody listens at ``host:port``; not whether it is Ray."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def listens_on_loopback_only(port: int) -> bool:
    """Return whether what listens on this port of this machine cannot be reached from another."""
    found = {
        one.laddr.ip.removeprefix("::ffff:")
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
    }
    return bool(found) and all(ip.startswith("127.") or ip == "::1" for ip in found)
