"""Start, stop and look at a platform from outside its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml

from nightbeam.core.children import log_tail, run_child
from nightbeam.core.errors import AuthError, BusyError, NightbeamError, ToolError, UnavailableError
from nightbeam.core.locks import is_held, lock_holder, sole_owner
from nightbeam.core.settings import Settings
from nightbeam.platform import compute
from nightbeam.platform.files import read_report, write_flow_settings
from nightbeam.platform.model import Layout, PartState, PartStatus, Phase, PlatformStatus, PoolStatus, Report
from nightbeam.platform.processes import Process, flow_processes
from nightbeam.platform.ray_head import ray_processes
from nightbeam.platform.remote import NonsenseError, PrefectApi
from nightbeam.platform.worker import APPLY_S, Supervisor, supervise

__all__ = [
    "Started",
    "Stopped",
    "apply_deployments",
    "ask_server",
    "platform_status",
    "run_in_foreground",
    "start",
    "stop",
]

_POLL_S = 0.2


@dataclass(frozen=True)
class Started:
    """What `start` found or did."""

    api_url: str
    already_running: bool
    seconds: float
    monitor: str = ""
    #: Of the supervisor.
    pid: int | None = None


@dataclass(frozen=True)
class Stopped:
    """What `stop` found or did."""

    was_running: bool
    seconds: float


def start(settings: Settings, *, schedules: bool = True, timeout_s: float = 300.0) -> Started:
    """Start the platform in the background and return when all of it works.

    A platform that runs already is left as it is.

    Parameters
    ----------
    settings
        Resolved settings.
    schedules
        False leaves every schedule inactive.

    Raises
    ------
    ToolError
        If it does not come up; the end of the supervisor's log is part of the message.
    BusyError
        If it is just being stopped.
    """
    begin = time.monotonic()
    layout = Layout(settings.state_dir)
    already = is_held(layout.lock)
    child = None if already else _spawn(settings, layout, schedules)
    until = begin + timeout_s
    while time.monotonic() < until:
        report = read_report(layout)
        if child is not None and child.poll() is not None:
            raise ToolError(f"the platform did not start:\n{log_tail(layout.supervisor_log)}", fix=_see(layout))
        if report is not None and (already or (child is not None and report.pid == child.pid)):
            if report.phase is Phase.RUNNING:
                return Started(report.api_url, already, time.monotonic() - begin, report.monitor, report.pid)
            if report.phase in (Phase.STOPPING, Phase.FAILED) and already:
                raise BusyError(f"the platform of {layout.state_dir} is being stopped", fix="try again in a minute")
        if already and not is_held(layout.lock):
            raise ToolError(f"the platform did not start:\n{log_tail(layout.supervisor_log)}", fix=_see(layout))
        time.sleep(_POLL_S)
    raise ToolError(f"the platform was not up after {timeout_s:.0f} s", fix=_see(layout))


def run_in_foreground(settings: Settings, *, schedules: bool = True) -> None:
    """Run the platform in this process until SIGTERM or SIGINT; for systemd and containers."""
    supervise(settings, schedules=schedules)


def stop(settings: Settings, *, timeout_s: float = 180.0) -> Stopped:
    """Stop the platform: pools are paused, runs cancelled and waited for, then workers and server end.

    Where the supervisor died and left its processes, they are stopped in the same order.

    Raises
    ------
    ToolError
        If it has not ended after ``timeout_s``.
    """
    begin = time.monotonic()
    layout = Layout(settings.state_dir)
    if not layout.own.is_dir():
        return Stopped(False, 0.0)
    until = begin + timeout_s
    was_running = False
    while is_held(layout.lock):
        if not was_running:
            was_running = True
            with suppress(ProcessLookupError):
                os.kill(int(lock_holder(layout.lock)["pid"]), signal.SIGTERM)
        if time.monotonic() > until:
            raise ToolError(f"the platform has not ended after {timeout_s:.0f} s", fix=_see(layout))
        time.sleep(_POLL_S)
    if not was_running:
        was_running = _stop_leftovers(settings, layout)
    return Stopped(was_running, time.monotonic() - begin)


def platform_status(settings: Settings) -> PlatformStatus:
    """Return what runs, what waits and what is wrong. Never fails because something is down."""
    layout = Layout(settings.state_dir)
    report = read_report(layout)
    running = is_held(layout.lock)
    api_url = settings.platform.api_url or (report.api_url if report else "")
    server, pools = ask_server(api_url, settings.platform.auth_string)
    if report is None or not running:
        problem = _why_not_running(report)
        parts = _left_running(report)
        return PlatformStatus(Phase.STOPPED, api_url, server, problem=problem, parts=parts, pools=pools)
    groups, ray = _groups(settings), report.ray or settings.stream.address or ""
    return PlatformStatus(
        report.phase, api_url, server, report.pid, _problem_of(report), report.parts, pools, groups, ray, report.monitor
    )


def apply_deployments(settings: Settings, api_url: str, *, schedules: bool = True) -> str:
    """Bring a Prefect server to what prefect.yaml and the files in ``deployments`` say; return what was done.

    Raises
    ------
    UnavailableError
        If no server answers at ``api_url``.
    ToolError
        If it refuses what it is given; its words are quoted.
    """
    layout = Layout(settings.state_dir)
    platform = settings.platform
    PrefectApi(api_url, auth_string=platform.auth_string).version()
    if not is_held(layout.lock):
        write_flow_settings(layout.config, settings)
    log = layout.log_of("apply")
    before = log.stat().st_size if log.exists() else 0
    run_child(
        compute.apply_argv(schedules=schedules),
        log=log,
        timeout_s=APPLY_S,
        cwd=layout.state_dir,
        env=compute.client_environment(
            layout, api_url, platform=platform, threads=settings.contimg.threads, environ=os.environ
        ),
        what="deployments.apply",
    )
    with log.open("rb") as said:
        said.seek(before)
        return said.read().decode(errors="replace")


def _spawn(settings: Settings, layout: Layout, schedules: bool) -> subprocess.Popen[bytes]:
    layout.own.mkdir(parents=True, exist_ok=True)
    layout.logs.mkdir(parents=True, exist_ok=True)
    given = yaml.safe_dump({"settings": settings.model_dump(mode="json"), "schedules": schedules})
    with layout.supervisor_log.open("ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "nightbeam.platform"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=layout.state_dir,
            start_new_session=True,
        )
    # The supervisor outlives us; should it end before, it is to leave no zombie.
    threading.Thread(target=child.wait, name="reaper", daemon=True).start()
    assert child.stdin is not None
    with suppress(BrokenPipeError), child.stdin:
        child.stdin.write(given.encode())
    return child


def _stop_leftovers(settings: Settings, layout: Layout) -> bool:
    left = (_left_running(read_report(layout)), flow_processes(layout.prefect_home), ray_processes(layout))
    if not any(left):
        return False
    with sole_owner(layout.lock, wait_s=5.0, what=f"the platform of {layout.state_dir}"):
        supervisor = Supervisor(settings)
        supervisor.adopt_leftovers()
        supervisor.stop_everything()
    return True


def _left_running(report: Report | None) -> tuple[PartStatus, ...]:
    """Return the parts of a dead supervisor that live on."""
    return tuple(part for part in (report.parts if report else ()) if Process.find(part.pid, part.created))


def _why_not_running(report: Report | None) -> str:
    if report is None or report.phase is Phase.STOPPED:
        return ""
    if report.phase is Phase.FAILED:
        return report.problem
    return "the supervisor died; `nightbeam up` takes over what it left"


def _problem_of(report: Report) -> str:
    lost = [f"{part.name} was given up ({part.last_exit}); read {part.log}" for part in report.parts if _lost(part)]
    return "; ".join([*([report.problem] if report.problem else []), *lost])


def _lost(part: PartStatus) -> bool:
    return part.state is PartState.GIVEN_UP


def ask_server(api_url: str, auth_string: str | None, *, timeout_s: float = 10.0) -> tuple[str, tuple[PoolStatus, ...]]:
    """Return how the server does (``healthy``, ``unreachable``, ``none`` or what else it says), and its pools.

    Parameters
    ----------
    api_url
        "" for none.
    auth_string
        ``user:password`` if it wants one.
    timeout_s
        For each of a few requests a pool.
    """
    if not api_url:
        return "none", ()
    api = PrefectApi(api_url, auth_string=auth_string, timeout_s=timeout_s)
    try:
        return "healthy", tuple(_pool(api, pool) for pool in api.pools())
    except AuthError:
        return "refuses us: set platform.auth_string", ()
    except NonsenseError as error:
        return f"answers nonsense: {error.what}", ()
    except UnavailableError:
        return "unreachable", ()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"answers nonsense: {type(error).__name__} {error}", ()


def _pool(api: PrefectApi, pool: dict[str, Any]) -> PoolStatus:
    here = (pool["name"],)
    return PoolStatus(
        name=pool["name"],
        paused=pool["is_paused"],
        workers_online=sum(worker["status"] == "ONLINE" for worker in api.workers(pool["name"])),
        running=api.count_runs(types=("RUNNING", "CANCELLING"), pools=here),
        pending=api.count_runs(types=("PENDING",), pools=here),
        scheduled=api.count_runs(types=("SCHEDULED",), pools=here),
        late=api.count_runs(names=("Late",), pools=here),
    )


def _groups(settings: Settings) -> dict[str, int]:
    from nightbeam.contimg import Site
    from nightbeam.contimg.pressure import measure

    try:
        site = Site.from_settings(settings)
        return {**site.queue().counts(), "backlog_minutes": round(measure(site).minutes)}
    except NightbeamError:
        return {}


def _see(layout: Layout) -> str:
    return f"read {layout.supervisor_log} and the logs beside it"
