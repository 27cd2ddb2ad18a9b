"""Which programs run with which environment, and when to stop trying. Pure functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nightbeam.core.errors import UsageError
from nightbeam.core.settings import CONFIG_VARIABLE, PREFIX, SEED_VARIABLES, PlatformSettings
from nightbeam.platform.model import Layout, Program

__all__ = [
    "api_url_of",
    "apply_argv",
    "backoff_s",
    "client_environment",
    "gave_up",
    "monitor_program",
    "notify_argv",
    "page_address",
    "prepare_argv",
    "server_programs",
    "shares_pools",
    "strangers",
    "worker_name",
    "worker_programs",
]

#: A process that lived this long was well started; its next death counts from nought.
WELL_STARTED_S = 60.0
#: What the loops of a server are called where they are a program of their own.
SERVICES = "services"
#: Deaths in a row, each before it was well started, after which a part is given up.
MOST_FAST_DEATHS = 6

#: What a person's shell may hold for another Prefect; ours is set explicitly or not at all.
_FOREIGN = (
    "PREFECT_API_URL",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_HOME",
    "PREFECT_PROFILE",
    "PREFECT_PROFILES_PATH",
    "PREFECT__FLOW_RUN_ID",
    "PYTHONDONTWRITEBYTECODE",  # would compile our modules anew in each flow process
)

#: Nothing leaves the machine. The V2 page asks an outside address once per load even with analytics off.
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}

#: Batched, one server digests 75 to 135 task runs a second instead of 30.
_BATCHES = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
}


def api_url_of(host: str, port: int) -> str:
    """Return the address of the API of a server that listens at ``host`` and ``port``.

    One that listens everywhere is spoken to by loopback.
    """
    return f"{page_address(host, port)}/api"


def page_address(host: str, port: int) -> str:
    """Return how this machine's browsers reach what listens at ``host`` and ``port``."""
    host = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_programs(
    layout: Layout, port: int, *, platform: PlatformSettings, environ: Mapping[str, str]
) -> list[Program]:
    """Return how the Prefect server of a state directory is started.

    With Redis its API and its loops are two programs, as many processes of the API as were asked for; else it is one.

    Raises
    ------
    UsageError
        If there are to be several processes of the API, and nothing by which they could work together.
    """
    if platform.server_workers > 1 and not (platform.redis_url and _on_a_server(platform.database_url)):
        raise UsageError(
            f"{platform.server_workers} processes of Prefect's API on "
            f"{'SQLite' if not _on_a_server(platform.database_url) else 'no Redis'}",
            fix="set platform.database_url (postgresql+asyncpg://...) and platform.redis_url, or server_workers to 1",
        )
    env = _without_foreign(environ) | _QUIET | _BATCHES
    # Without the plugin the server comes to wait for itself (catalog/patience.py).
    ours = f"sqlite+aiosqlite:///{layout.prefect_home / 'prefect.db'}?plugin=nightbeam_patience"
    database = platform.database_url or ours
    env |= {
        "PREFECT_HOME": str(layout.prefect_home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        # Left to itself the page looks for its server on port 4200, wherever that was started.
        "PREFECT_SERVER_UI_API_URL": platform.page_api_url or api_url_of(platform.host, port),
        # A run that waits for a place in its deployment looks again this often (default 30 s).
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "10",
    }
    if platform.auth_string:
        env["PREFECT_SERVER_API_AUTH_STRING"] = platform.auth_string
    argv = (sys.executable, "-m", "prefect", "server", "start", "--host", platform.host, "--port", str(port))
    if not platform.redis_url:
        return [Program("server", argv, env, layout.log_of("server"))]
    # Each process would bring the database up to date at its start, all at the same moment (`prepare_argv`).
    env |= _on_redis(platform.redis_url)
    env |= {"PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false", "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false"}
    several = (*argv, "--no-services", "--workers", str(platform.server_workers))
    loops = (sys.executable, "-m", "prefect", "server", "services", "start")
    return [
        Program("server", several, env, layout.log_of("server")),
        Program(SERVICES, loops, dict(env), layout.log_of(SERVICES)),
    ]


def prepare_argv() -> list[str]:
    """Return the command that brings Prefect's database up to date, for when its server is not to do so itself."""
    return [sys.executable, "-m", "deployments.prepare"]


def shares_pools(platform: PlatformSettings) -> bool:
    """Say whether other machines may serve the same pools, as far as the settings tell."""
    return bool(platform.api_url) if platform.shares_pools is None else platform.shares_pools


def strangers(workers: Mapping[str, Sequence[Mapping[str, Any]]], host: str) -> list[str]:
    """Return the workers that are online and of other machines.

    Parameters
    ----------
    workers
        Those of each pool, as the server tells of them.
    host
        This machine's name.
    """
    return sorted(
        str(worker["name"])
        for pool, seen in workers.items()
        for worker in seen
        if worker["status"] == "ONLINE" and worker["name"] != worker_name(pool, host)
    )


def notify_argv(block: str, text: str) -> list[str]:
    """Return the command that has a block of the server tell people something."""
    return [sys.executable, "-m", "deployments.notify", block, text]


def _on_a_server(database_url: str | None) -> bool:
    return bool(database_url) and not str(database_url).startswith("sqlite")


def _on_redis(url: str) -> dict[str, str]:
    return {
        "PREFECT_REDIS_MESSAGING_URL": url,
        "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
        "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
        "PREFECT_SERVER_DOCKET_URL": url,
    }


def client_environment(
    layout: Layout, api_url: str, *, platform: PlatformSettings, threads: int, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of whatever speaks to the server: apply, workers and, through them, flows.

    All settings travel in the resolved file. Variables that name settings are taken out, because a
    relative path in one of them would mean something else where the flow stands. The number of ``threads`` is in
    both: without a variable numerical libraries take every core, and it would outrank what the file says.
    """
    env = {
        name: value
        for name, value in _without_foreign(environ).items()
        if not name.startswith(PREFIX) and name not in SEED_VARIABLES
    }
    env |= {
        CONFIG_VARIABLE: str(layout.config),
        "PREFECT_HOME": str(layout.prefect_home),
        "PREFECT_API_URL": api_url,
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(layout.results),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "nightbeam",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        # `python -m prefect.engine` of the pool templates must be this environment's Python.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)]),
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "DO_NOT_TRACK": "1",
    }
    env["OMP_NUM_THREADS"] = str(threads)
    if platform.auth_string:
        env["PREFECT_API_AUTH_STRING"] = platform.auth_string
    return env


def worker_programs(layout: Layout, pools: Mapping[str, int], *, env: Mapping[str, str], host: str) -> list[Program]:
    """Return one worker for each pool.

    Parameters
    ----------
    pools
        Name of the pool and how many runs its worker may have at a time; a worker without a limit has none.
    host
        The machine's name, part of the worker's.
    """
    programs = []
    for pool, limit in pools.items():
        argv = (
            *(sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", worker_name(pool, host)),
            *("--limit", str(limit), "--install-policy", "never", "--type", "process"),
        )
        programs.append(Program(f"worker-{pool}", argv, dict(env), layout.log_of(f"worker-{pool}")))
    return programs


def worker_name(pool: str, host: str) -> str:
    """Return what the worker of a pool on a machine is called, by which its runs are known to be there."""
    return f"{pool}-{host}"


def monitor_program(
    layout: Layout, host: str, port: int, *, env: Mapping[str, str], auth_string: str | None
) -> Program:
    """Return how the page that shows everything is started.

    Parameters
    ----------
    env
        Of whatever speaks to the server; it names the settings.
    auth_string
        ``user:password`` of the server, which is not in those settings.
    """
    told = {f"{PREFIX}PLATFORM__AUTH_STRING": auth_string} if auth_string else {}
    argv = (sys.executable, "-m", "nightbeam", "monitor", "serve", "--host", host, "--port", str(port))
    return Program("monitor", argv, {**env, **told}, layout.log_of("monitor"))


def apply_argv(*, schedules: bool) -> list[str]:
    """Return the command that brings the server to what prefect.yaml says."""
    return [sys.executable, "-m", "deployments.apply", *([] if schedules else ["--no-schedules"])]


def backoff_s(fast_deaths: int) -> float:
    """Return how long to wait before the next start: 1, 2, 4 ... 30 s."""
    return float(min(30, 2 ** max(0, fast_deaths - 1)))


def gave_up(lifetimes_s: Sequence[float]) -> bool:
    """Say whether a part has died too often in a row before it was well started.

    Parameters
    ----------
    lifetimes_s
        How long each of its processes lived, oldest first.
    """
    return fast_deaths(lifetimes_s) >= MOST_FAST_DEATHS


def fast_deaths(lifetimes_s: Sequence[float]) -> int:
    """Return how many processes have died in a row before they were well started."""
    count = 0
    for lived in reversed(lifetimes_s):
        if lived >= WELL_STARTED_S:
            break
        count += 1
    return count


def _without_foreign(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in _FOREIGN}
