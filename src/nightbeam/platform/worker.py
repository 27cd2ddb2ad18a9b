"""The supervisor: starts the server and the workers, mends what dies, stops them in the order that loses nothing."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import yaml

from nightbeam.core.children import run_child
from nightbeam.core.errors import MissingError, NightbeamError, StorageError, ToolError, UnavailableError
from nightbeam.core.locks import sole_owner
from nightbeam.core.log import set_up_logging
from nightbeam.core.settings import Settings
from nightbeam.core.times import iso_z, utc_now
from nightbeam.platform import compute, ray_head
from nightbeam.platform.alarms import alarm_file
from nightbeam.platform.files import (
    read_paused,
    read_report,
    trim_logs,
    write_flow_settings,
    write_paused,
    write_report,
)
from nightbeam.platform.model import Layout, PartState, PartStatus, Phase, Program, Report
from nightbeam.platform.processes import Process, flow_processes, free_port, is_free, runs_of, stop_all, tell_to_end
from nightbeam.platform.remote import ACTIVE, FINAL, PrefectApi
from nightbeam.platform.watchman import Watchman
from nightbeam.stream.cluster import STOP_GRACE_S, address_of

__all__ = ["Part", "Supervisor", "main"]

logger = logging.getLogger(__name__)

#: A fresh database takes 10 s on an idle machine.
SERVER_START_S = 150.0
#: A server that lives but does not answer for this long is replaced.
SERVER_SILENT_S = 90.0
#: Prefect kills a run 30 s after it was told to end; ours flush within 25.
RUNS_END_S = 50.0
APPLY_S = 300.0
PREPARE_S = 300.0
#: Between two looks of the watchman, and how long a block may take to tell somebody.
LOOK_EVERY_S = 15.0
NOTIFY_S = 60.0
#: A longer log of ours begins anew; its end is kept beside it.
MOST_LOG_BYTES, TRIM_EVERY_S = 50_000_000, 3600.0
_CHECK_HEALTH_EVERY_S = 5.0
_TICK_S = 0.5


class Part:
    """One program that should always run."""

    def __init__(self, program: Program, *, cwd_of: Layout, clock: Callable[[], float] = time.monotonic) -> None:
        self.program = program
        self.process: Process | None = None
        self.restarts = 0
        self.given_up = False
        self.last_exit = ""
        self._cwd = cwd_of.state_dir
        self._clock = clock
        self._since = ""
        self._lifetimes_s: list[float] = []
        self._next_start = 0.0

    def start(self) -> None:
        """Start it now."""
        self.process = Process.start(self.program, cwd=self._cwd)
        self._since = iso_z(utc_now())
        logger.info("%s started as process %d", self.program.name, self.process.pid)

    def adopt(self, known: PartStatus) -> bool:
        """Go on with the process of an earlier supervisor, if it lives and is the one we would start."""
        process = Process.find(known.pid, known.created)
        if process is None:
            return False
        if not process.runs(self.program.argv):
            logger.warning("%s runs with another command; it is replaced", self.program.name)
            process.stop(grace_s=20.0)
            return False
        self.process, self.restarts, self._since = process, known.restarts, known.since
        logger.info("%s goes on as process %d", self.program.name, process.pid)
        return True

    def mend(self) -> bool:
        """Notice a death and start again when it is time; say whether anything changed."""
        if self.given_up:
            return False
        if self.process is not None:
            if self.process.alive():
                return False
            self._bury()
            return True
        if self._clock() < self._next_start:
            return False
        self.restarts += 1
        self.start()
        return True

    def kill(self, why: str) -> None:
        """End a process that lives but does not work; `mend` starts the next."""
        logger.error("%s is replaced: %s", self.program.name, why)
        if self.process is not None:
            self.process.stop(grace_s=5.0)

    def stop(self, *, grace_s: float) -> None:
        """End it for good."""
        if self.process is not None:
            self.process.stop(grace_s=grace_s)
            self.last_exit = self.process.exit_words()
            self.process = None

    def status(self) -> PartStatus:
        """Return what there is to say."""
        state = PartState.RUNNING if self.process else PartState.GIVEN_UP if self.given_up else PartState.WAITING
        return PartStatus(
            name=self.program.name,
            state=state,
            pid=self.process.pid if self.process else None,
            created=self.process.created if self.process else None,
            since=self._since,
            restarts=self.restarts,
            last_exit=self.last_exit,
            log=str(self.program.log),
        )

    def _bury(self) -> None:
        assert self.process is not None
        self._lifetimes_s.append(self.process.lived_s())
        self.last_exit = f"{self.process.exit_words()} at {iso_z(utc_now())}"
        self.process = None
        if compute.gave_up(self._lifetimes_s):
            self.given_up = True
            logger.critical(
                "%s died %d times in a row, last: %s. GIVEN UP; read %s, then `nightbeam down` and `nightbeam up`",
                *(self.program.name, compute.MOST_FAST_DEATHS, self.last_exit, self.program.log),
            )
            return
        wait_s = compute.backoff_s(compute.fast_deaths(self._lifetimes_s))
        self._next_start = self._clock() + wait_s
        logger.error("%s died (%s); next start in %.0f s", self.program.name, self.last_exit, wait_s)


class Supervisor:
    """Keeps one platform running. One for each state directory.

    Parameters
    ----------
    settings
        Resolved settings.
    schedules
        False leaves every schedule inactive (for tests and for work by hand).
    """

    def __init__(self, settings: Settings, *, schedules: bool = True) -> None:
        self._settings = settings
        self._schedules = schedules
        self._layout = Layout(settings.state_dir)
        self._phase = Phase.STARTING
        self._problem = ""
        self._stop = threading.Event()
        self._port: int | None = None
        self._api_url = settings.platform.api_url or ""
        self._server: Part | None = None
        self._services: Part | None = None
        self._workers: list[Part] = []
        self._ray: Part | None = None
        self._ray_port: int | None = None
        self._monitor: Part | None = None
        self._monitor_port: int | None = None
        self._no_monitor: PartStatus | None = None
        self._silent_since: float | None = None
        self._next_health = 0.0
        self._shares = compute.shares_pools(settings.platform)
        self._over = threading.Event()
        self._watch_thread: threading.Thread | None = None
        self._inherited: tuple[PartStatus, ...] = ()

    def run(self) -> None:
        """Start everything, watch it until asked to stop, stop everything.

        Raises
        ------
        BusyError
            If another supervisor has this state directory.
        ToolError, UnavailableError
            If the platform does not come up; it is stopped again.
        """
        # Somebody who only looks at the lock holds it for a moment.
        with sole_owner(self._layout.lock, wait_s=2.0, what=f"the platform of {self._layout.state_dir}"):
            try:
                self._start()
                self._watch()
            except NightbeamError as error:
                self._problem = str(error)
                logger.critical("%s", error)
                raise
            finally:
                self.stop_everything()

    def ask_to_stop(self) -> None:
        """Make `run` end."""
        self._stop.set()

    # ---------------------------------------------------------------- start

    def _start(self) -> None:
        platform = self._settings.platform
        before = read_report(self._layout)
        self._inherited = before.parts if before else ()
        self._layout.results.mkdir(parents=True, exist_ok=True)
        self._settle_ray(before)
        write_flow_settings(self._layout.config, self._settings)
        self._make_default_directories()
        if not platform.api_url:
            self._start_server(before)
        threads = self._settings.contimg.threads
        env = compute.client_environment(
            self._layout, self._api_url, platform=platform, threads=threads, environ=os.environ
        )
        self._report()
        self._await_health()
        self._apply(env)
        self._resume_pools()
        self._start_workers(env, before)
        self._try_to_start_monitor(env, before)
        self._await_workers()
        self._start_ray(before)
        self._post_watchman(env)
        if not self._stop.is_set():
            self._end_inherited()
            self._phase = Phase.RUNNING
            self._report()
            logger.info("up at %s", self._api_url)

    def _make_default_directories(self) -> None:
        """Make the directories that lie in ours; one that a site has named elsewhere may be a mount that is missing."""
        contimg = self._settings.contimg
        for path in (contimg.input_dir, contimg.output_dir, contimg.scratch_dir):
            if path is not None and path.is_relative_to(self._layout.state_dir):
                path.mkdir(parents=True, exist_ok=True)

    def _start_server(self, before: Report | None) -> None:
        platform = self._settings.platform
        known = {part.name: part for part in before.parts} if before else {}
        if before and before.port and "server" in known and platform.port in (None, before.port):
            self._port = before.port
            self._server = self._server_part(before.port)
            self._api_url = compute.api_url_of(platform.host, before.port)
            if self._server.adopt(known["server"]):
                self._start_services(before.port, known)
                return
        self._port = self._choose_port(before.port if before else None)
        self._api_url = compute.api_url_of(platform.host, self._port)
        self._server = self._server_part(self._port)
        self._prepare_database(self._server.program)
        self._server.start()
        self._start_services(self._port, known)

    def _server_part(self, port: int) -> Part:
        return Part(self._server_programs(port)[0], cwd_of=self._layout)

    def _server_programs(self, port: int) -> list[Program]:
        return compute.server_programs(self._layout, port, platform=self._settings.platform, environ=os.environ)

    def _start_services(self, port: int, known: dict[str, PartStatus]) -> None:
        """Start the loops of a server whose API is a program of its own."""
        for program in self._server_programs(port)[1:]:
            self._services = Part(program, cwd_of=self._layout)
            if not (program.name in known and self._services.adopt(known[program.name])):
                self._services.start()

    def _prepare_database(self, server: Program) -> None:
        """Bring Prefect's database up to date where its server is told not to."""
        if not self._settings.platform.redis_url:
            return
        run_child(
            compute.prepare_argv(),
            log=self._layout.log_of("prepare"),
            timeout_s=PREPARE_S,
            cwd=self._layout.state_dir,
            env=server.env,
            what="deployments.prepare",
        )

    def _choose_port(self, remembered: int | None) -> int:
        platform = self._settings.platform
        if platform.port is not None:
            if not is_free(platform.host, platform.port):
                raise ToolError(
                    f"port {platform.port} on {platform.host} is taken", fix="stop what listens there, or name another"
                )
            return platform.port
        if remembered and is_free(platform.host, remembered):
            return remembered
        return free_port(platform.host, 4200)

    def _api(self) -> PrefectApi:
        return PrefectApi(self._api_url, auth_string=self._settings.platform.auth_string)

    def _await_health(self) -> None:
        until = time.monotonic() + SERVER_START_S
        while not self._stop.wait(_TICK_S):
            if self._api().healthy():
                return
            if self._server is not None:
                if self._server.mend():
                    self._report()
                if self._server.given_up:
                    raise ToolError("the Prefect server does not start", fix=f"read {self._server.program.log}")
            if time.monotonic() > until:
                raise UnavailableError(
                    f"the Prefect server at {self._api_url} did not answer within {SERVER_START_S:.0f} s",
                    fix=f"read {self._layout.log_of('server')}",
                )

    def _apply(self, env: dict[str, str]) -> None:
        """Bring the server to what prefect.yaml says; again where it died meanwhile, which is not what was told it."""
        while not self._stop.is_set():
            try:
                run_child(
                    compute.apply_argv(schedules=self._schedules),
                    log=self._layout.log_of("apply"),
                    timeout_s=APPLY_S,
                    cwd=self._layout.state_dir,
                    env=env,
                    what="deployments.apply",
                )
                return
            except ToolError:
                if self._server is None or not self._server.mend():
                    raise
            self._report()
            self._await_health()

    def _resume_pools(self) -> None:
        for pool in read_paused(self._layout):
            with suppress(MissingError):
                self._api().pause_pool(pool, False)
                logger.info("pool %s goes on (it was paused by the last stop)", pool)
        write_paused(self._layout, [])

    def _start_workers(self, env: dict[str, str], before: Report | None) -> None:
        known = {part.name: part for part in before.parts} if before else {}
        programs = compute.worker_programs(
            self._layout, self._settings.platform.pools, env=env, host=socket.gethostname()
        )
        for program in programs:
            if self._stop.is_set():
                return
            part = Part(program, cwd_of=self._layout)
            if not (program.name in known and part.adopt(known[program.name])):
                part.start()
            self._workers.append(part)
        self._report()

    def _try_to_start_monitor(self, env: dict[str, str], before: Report | None) -> None:
        """Start the page; where that cannot be, all else goes on without it."""
        try:
            self._start_monitor(env, before)
        except (NightbeamError, OSError) as error:
            logger.error("no page: %s", error)
            self._monitor, self._monitor_port = None, None
            said = error.what if isinstance(error, NightbeamError) else str(error)
            self._no_monitor = PartStatus(
                "monitor", PartState.GIVEN_UP, last_exit=said, log=str(self._layout.supervisor_log)
            )

    def _start_monitor(self, env: dict[str, str], before: Report | None) -> None:
        """Start the page, at the port that it had; nothing waits for it, and nothing else depends on it."""
        told = self._settings.monitor
        if not told.enabled or self._stop.is_set():
            return
        port = told.port or _port_of(before.monitor if before else "")
        known = {part.name: part for part in before.parts} if before else {}
        if port is not None:
            self._monitor = self._monitor_part(port, env)
            self._monitor_port = port
            if "monitor" in known and self._monitor.adopt(known["monitor"]):
                return
        if told.port is None and (port is None or not is_free(told.host, port)):
            self._monitor_port = free_port(told.host, 8000)
            self._monitor = self._monitor_part(self._monitor_port, env)
        assert self._monitor is not None
        self._monitor.start()

    def _monitor_part(self, port: int, env: dict[str, str]) -> Part:
        told = self._settings
        program = compute.monitor_program(
            self._layout, told.monitor.host, port, env=env, auth_string=told.platform.auth_string
        )
        return Part(program, cwd_of=self._layout)

    def _settle_ray(self, before: Report | None) -> None:
        """Decide where our own Ray cluster will listen, so that the settings of flows can name it."""
        if not ray_head.is_wanted(self._settings, before):
            return
        self._ray_port = ray_head.choose_port(self._layout, self._settings, before)
        found = {"address": address_of(self._ray_port), "token_file": self._layout.ray_token}
        stream = self._settings.stream.model_copy(update=found)
        self._settings = self._settings.model_copy(update={"stream": stream})

    def _start_ray(self, before: Report | None) -> None:
        """Start the Ray cluster, last of all and without waiting for it: only runs of one pool need it."""
        if self._ray_port is None:
            self._sweep_ray()  # of a platform that had one
        if self._ray_port is None or self._stop.is_set():
            return
        ray_head.make_token(self._layout)
        known = {part.name: part for part in before.parts} if before else {}
        program = ray_head.ray_program(self._layout, self._ray_port, settings=self._settings, environ=os.environ)
        self._ray = Part(program, cwd_of=self._layout)
        if ray_head.NAME in known and self._ray.adopt(known[ray_head.NAME]):
            return
        self._sweep_ray()
        ray_head.trim_sessions(self._layout)
        self._ray.start()

    def _sweep_ray(self) -> None:
        """End what a Ray cluster of ours has left: a raylet or a worker may outlive the head."""
        if stop_all(ray_head.ray_processes(self._layout), grace_s=5.0):
            logger.error("some processes of the Ray cluster had to be killed")

    def _await_workers(self) -> None:
        until = time.monotonic() + 60.0
        waiting = set(self._settings.platform.pools)
        while waiting and not self._stop.wait(_TICK_S):
            with suppress(UnavailableError, MissingError):
                waiting -= {p for p in waiting if _online(self._api().workers(p))}
            for part in self._workers:
                part.mend()
            if time.monotonic() > until:
                logger.error("no worker of %s has reported yet", ", ".join(sorted(waiting)))
                return

    # ---------------------------------------------------------------- watch

    def _post_watchman(self, env: dict[str, str]) -> None:
        """Have alarms raised by a thread of ours: what they tell of may be the death of whatever else could."""
        settings, layout = self._settings, self._layout
        platform, block = settings.platform, settings.doctor.notify_block
        watches = not platform.api_url if platform.watches is None else platform.watches

        def notify(text: str) -> None:
            argv = compute.notify_argv(block or "", text)
            log, what = layout.log_of("notify"), "deployments.notify"
            run_child(argv, log=log, timeout_s=NOTIFY_S, cwd=layout.state_dir, env=env, what=what)

        own = alarm_file(layout.state_dir, None, socket.gethostname())
        shared = alarm_file(layout.state_dir, settings.contimg.state_dir, socket.gethostname())
        watchman = Watchman(
            self._api(),
            file=own,
            shared=None if shared == own else shared,
            memory=layout.watched,
            machine=socket.gethostname(),
            pools=platform.pools if watches else (),
            runs=watches,
            clock=time.time,
            elapsed=time.monotonic,
            notify=notify if block else None,
        )
        self._watch_thread = threading.Thread(target=self._keep_watch, args=(watchman,), name="watchman", daemon=True)
        self._watch_thread.start()

    def _keep_watch(self, watchman: Watchman) -> None:
        next_trim = time.monotonic()
        while not self._over.wait(LOOK_EVERY_S):
            try:
                watchman.look([part.status() for part in self._parts()])
                if time.monotonic() >= next_trim:
                    next_trim = time.monotonic() + TRIM_EVERY_S
                    trim_logs(self._layout.logs, most_bytes=MOST_LOG_BYTES)
            except Exception:  # whatever it is, the next look may be better, and without the thread there is none
                logger.exception("the watchman stumbled")

    def _watch(self) -> None:
        while not self._stop.wait(_TICK_S):
            changed = False
            for part in self._parts():
                try:
                    if part.mend():
                        changed = True
                        if part in self._workers and part.process is not None:
                            self._sweep()
                        if part is self._ray and part.process is None:
                            self._sweep_ray()
                except ToolError as error:
                    logger.error("%s", error)
            self._check_health()
            if changed:
                self._report()

    def _sweep(self) -> None:
        """Have the runs looked for that the dead worker left behind."""
        try:
            self._api().run_deployment("sweep-zombies/default", run_name="after a worker's death")
        except NightbeamError as error:
            logger.warning("no sweep for zombies after a worker's death: %s", error.what)

    def _check_health(self) -> None:
        now = time.monotonic()
        if now < self._next_health:
            return
        self._next_health = now + _CHECK_HEALTH_EVERY_S
        if self._api().healthy():
            if self._silent_since is not None:
                logger.info("the server answers again after %.0f s", now - self._silent_since)
            self._silent_since = None
            return
        if self._silent_since is None:
            self._silent_since = now
            logger.warning("the server at %s does not answer", self._api_url)
        server = self._server
        if server is None or server.process is None or server.process.lived_s() < SERVER_START_S:
            return
        if now - self._silent_since > SERVER_SILENT_S:
            server.kill(f"it has not answered for {SERVER_SILENT_S:.0f} s")
            self._silent_since = None

    # ---------------------------------------------------------------- stop

    def adopt_leftovers(self) -> None:
        """Take over what a dead supervisor left running, to be stopped."""
        before = read_report(self._layout)
        self._inherited = before.parts if before else ()
        self._take_over_inherited()
        self._ray_port = ray_head.port_of(before)
        if before and not self._api_url:
            self._api_url = before.api_url
        # Whoever stops it may not have the settings that it was started with.
        self._shares = self._shares or bool(before and before.shares_pools)

    def _left_over(self) -> list[PartStatus]:
        """Return the living parts of an earlier supervisor that are not ours yet.

        Until then they stay in our report: whoever comes after us, should we die before, would know of no others.
        """
        ours = {part.program.name for part in self._parts()}
        return [known for known in self._inherited if known.name not in ours and Process.find(known.pid, known.created)]

    def _take_over_inherited(self) -> None:
        for known in self._left_over():
            part = Part(Program(known.name, (), {}, self._layout.log_of(known.name)), cwd_of=self._layout)
            part.process = Process.find(known.pid, known.created)
            if known.name == "server":
                self._server = part
            elif known.name == compute.SERVICES:
                self._services = part
            elif known.name == ray_head.NAME:
                self._ray = part
            elif known.name == "monitor":
                self._monitor = part
            else:
                self._workers.append(part)

    def _end_inherited(self) -> None:
        """End what an earlier supervisor left that nobody asks for any more, such as the worker of another pool."""
        for known in self._left_over():
            logger.warning("%s of an earlier supervisor is not wanted any more", known.name)
            if (process := Process.find(known.pid, known.created)) is not None:
                process.stop(grace_s=20.0)
        self._inherited = ()

    def stop_everything(self) -> None:
        """End the runs and wait for them, then workers, stragglers, Ray and server.

        Pools of our own are paused and their runs cancelled; of shared pools only this machine's runs are ended.
        """
        failed = bool(self._problem)
        self._over.set()
        self._take_over_inherited()
        self._phase = Phase.STOPPING
        self._report()
        if self._workers and (self._shares or self._sees_others()):
            self._leave_pools()
        elif self._workers:
            try:
                self._pause_pools()
                self._drain()
            except NightbeamError as error:
                logger.error("the server cannot be asked to end the runs: %s", error.what)
        for part in self._workers:
            part.stop(grace_s=20.0)
        killed = stop_all(flow_processes(self._layout.prefect_home), grace_s=30.0)
        if killed:
            logger.error("some processes of flow runs had to be killed")
        if self._ray is not None:
            self._ray.stop(grace_s=STOP_GRACE_S)
        self._sweep_ray()
        for last in (self._monitor, self._services, self._server):
            if last is not None:
                last.stop(grace_s=20.0)
        self._workers = []
        self._ray = self._monitor = self._services = self._server = self._no_monitor = None
        self._phase = Phase.FAILED if failed else Phase.STOPPED
        self._report()
        logger.info("down")

    def _sees_others(self) -> bool:
        """Say whether other machines serve our pools just now, where the settings leave it open."""
        if self._settings.platform.shares_pools is not None:
            return False
        try:
            workers = {pool: self._api().workers(pool) for pool in self._settings.platform.pools}
        except NightbeamError as error:
            logger.warning("whether others serve the pools cannot be asked: %s", error.what)
            return False
        others = compute.strangers(workers, socket.gethostname())
        if others:
            logger.info("the pools go on for %s", ", ".join(others))
        return bool(others)

    def _leave_pools(self) -> None:
        """End this machine's runs and let the pools go on for the others.

        To cancel a run takes its worker, which would meanwhile take the next one. So the workers go first, and at
        once: told to end, they would kill their runs. The runs are then told as a worker would tell them. That they
        are being cancelled is said before: what ends by a signal that nobody announced has crashed, and that alarms.
        """
        for part in self._workers:
            if part.process is not None:
                part.process.send(signal.SIGKILL)
        runs = self._announced()
        told = tell_to_end(flow_processes(self._layout.prefect_home))
        if told:
            logger.info("%d runs are told to end", told)
        until = time.monotonic() + RUNS_END_S
        while flow_processes(self._layout.prefect_home) and time.monotonic() < until:
            time.sleep(_TICK_S)
        for run in runs:
            try:
                self._hand_over(run)
            except NightbeamError as error:
                logger.error("run %s: %s", run["name"], error.what)

    def _announced(self) -> list[dict[str, Any]]:
        """Tell the server that this machine's runs are being cancelled; return them as they were."""
        announced = []
        here = runs_of(flow_processes(self._layout.prefect_home))
        names = {compute.worker_name(pool, socket.gethostname()) for pool in self._settings.platform.pools}
        try:
            active = self._api().flow_runs(types=("PENDING", "RUNNING"))
            # A run that a worker had just taken has no process yet, and will have none.
            active = [run for run in active if run["id"] in here or (_is_pending(run) and _worker_of(run) in names)]
            for run in active:
                with suppress(MissingError):
                    self._api().cancel(run["id"])
                    announced.append(run)
        except NightbeamError as error:
            logger.error("the server cannot be told of the runs that end: %s", error.what)
        return announced

    def _hand_over(self, run: dict[str, Any]) -> None:
        """Close a run that has ended here; a service begins again on another machine.

        The groups of other runs are in the queue again, from which any machine takes them.
        """
        with suppress(MissingError):
            if self._api().flow_run(run["id"])["state_type"] not in FINAL:
                self._api().set_state(run["id"], "CANCELLED", "Cancelled", "its machine was stopped")
            if "service" in run["tags"] and run["deployment_id"]:
                self._api().run_again(run)

    def _pause_pools(self) -> None:
        ours = self._settings.platform.pools
        pause = [p["name"] for p in self._api().pools() if p["name"] in ours and not p["is_paused"]]
        # Written first: a stop that is cut short must not leave pools paused for ever.
        write_paused(self._layout, sorted({*read_paused(self._layout), *pause}))
        for pool in pause:
            self._api().pause_pool(pool, True)

    def _drain(self) -> None:
        pools = tuple(self._settings.platform.pools)
        for run in self._api().flow_runs(types=("PENDING", "RUNNING"), pools=pools):
            logger.info("cancelling run %s", run["name"])
            with suppress(MissingError):
                self._api().cancel(run["id"])
        until = time.monotonic() + RUNS_END_S
        while time.monotonic() < until:
            if not self._api().count_runs(types=ACTIVE, pools=pools) and not flow_processes(self._layout.prefect_home):
                return
            time.sleep(_TICK_S)
        logger.error("some runs did not end within %.0f s; their processes are ended now", RUNS_END_S)

    def _parts(self) -> list[Part]:
        return [
            part
            for part in (self._server, self._services, self._monitor, *self._workers, self._ray)
            if part is not None
        ]

    def _monitor_address(self) -> str:
        if self._monitor_port is None:
            return ""
        return compute.page_address(self._settings.monitor.host, self._monitor_port)

    def _report(self) -> None:
        report = Report(
            phase=self._phase,
            pid=os.getpid(),
            api_url=self._api_url,
            port=self._port,
            problem=self._problem,
            schedules=self._schedules,
            parts=(
                *(part.status() for part in self._parts()),
                *self._left_over(),
                *([self._no_monitor] if self._no_monitor else []),
            ),
            ray=address_of(self._ray_port) if self._ray_port is not None else "",
            monitor=self._monitor_address(),
            shares_pools=self._shares,
        )
        try:
            write_report(self._layout, report)
        except StorageError as error:  # on a full disk, too, what dies is mended; the next report tells of it
            logger.error("what runs is not written down: %s", error.what)


def _port_of(address: str) -> int | None:
    """Return the port of an address of ours; None for none."""
    last = address.rpartition(":")[2]
    return int(last) if last.isdigit() else None


def _is_pending(run: dict[str, Any]) -> bool:
    return bool(run["state_type"] == "PENDING")


def _worker_of(run: dict[str, Any]) -> object:
    return (run.get("labels") or {}).get("prefect.worker.name")


def _online(workers: list[dict[str, object]]) -> bool:
    return any(worker["status"] == "ONLINE" for worker in workers)


def supervise(settings: Settings, *, schedules: bool = True) -> None:
    """Run a supervisor in this process until it gets SIGTERM or SIGINT."""
    supervisor = Supervisor(settings, schedules=schedules)

    def stop(_number: int, _frame: object) -> None:
        supervisor.ask_to_stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        supervisor.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run as ``python -m nightbeam.platform``: settings as YAML on standard input, log on standard error."""
    given = yaml.safe_load(sys.stdin.read())
    sys.stdin.close()
    settings = Settings.model_validate(given["settings"])
    set_up_logging(settings.log_level)
    try:
        supervise(settings, schedules=given["schedules"])
    except NightbeamError as error:
        sys.exit(error.exit_code)
