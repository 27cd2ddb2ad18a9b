"""Processes that outlive the one that started them: known by pid *and* time of birth, never by name."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from nightbeam.core.errors import BusyError, InputError, ToolError
from nightbeam.platform.model import Program

__all__ = ["Process", "flow_processes", "free_port", "is_free", "process_lives", "runs_of", "stop_all", "tell_to_end"]

#: Kernels give the time of birth to 10 ms; two readings of it agree to better than this.
_SAME_BIRTH_S = 0.05

#: Longest time we wait for a new process to show its arguments.
_ARGUMENTS_WITHIN_S = 5.0


class Process:
    """One process of ours, started now or by an earlier supervisor."""

    def __init__(self, process: psutil.Process, child: subprocess.Popen[bytes] | None = None) -> None:
        self._process = process
        self._child = child
        self.pid = process.pid
        self.created = process.create_time()
        self.began = time.monotonic() - max(0.0, time.time() - self.created)

    @classmethod
    def start(cls, program: Program, *, cwd: Path) -> Process:
        """Start a program in a session of its own, its output appended to its log.

        Raises
        ------
        ToolError
            If it cannot be started.
        """
        program.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with program.log.open("ab") as out:
                child = subprocess.Popen(
                    program.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env=program.env,
                    start_new_session=True,
                )
            return cls(psutil.Process(child.pid), child)
        except (OSError, psutil.NoSuchProcess) as error:
            raise ToolError(f"{program.name} could not be started: {error}", fix=f"read {program.log}") from error

    @classmethod
    def find(cls, pid: int | None, created: float | None) -> Process | None:
        """Return the living process with this pid and time of birth, if there is one."""
        if pid is None or created is None:
            return None
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - created) > _SAME_BIRTH_S or process.status() == psutil.STATUS_ZOMBIE:
                return None
            return cls(process)
        except psutil.NoSuchProcess:
            return None

    def alive(self) -> bool:
        """Say whether it still runs; one that ended is reaped."""
        if self._child is not None:
            return self._child.poll() is None
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def exit_words(self) -> str:
        """Say how it ended, as far as we can know."""
        code = None if self._child is None else self._child.returncode
        if code is None:
            return "ended"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def lived_s(self) -> float:
        """Return its age in seconds."""
        return time.monotonic() - self.began

    def runs(self, argv: Iterable[str]) -> bool:
        """Say whether it was started with exactly this command.

        A program that has just been started has no command line for a moment: the kernel closes the pipe
        its parent waits on before it sets the arguments. So an empty one is asked again.
        """
        until = time.monotonic() + _ARGUMENTS_WITHIN_S
        try:
            while not (line := self._process.cmdline()) and self.alive() and time.monotonic() < until:
                time.sleep(0.01)
        except psutil.Error:
            return False
        return line == list(argv)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended gets none, and neither does one with its pid."""
        try:
            if self.alive():
                self._process.send_signal(number)
        except psutil.NoSuchProcess:
            return

    def stop(self, *, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after ``grace_s``."""
        self.send(signal.SIGTERM)
        if not self.wait(grace_s):
            self.send(signal.SIGKILL)
            self.wait(10.0)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; say whether it came."""
        until = time.monotonic() + timeout_s
        while self.alive():
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        return True


def process_lives(pid: int, *, born_before: float) -> bool:
    """Say whether the process that had ``pid`` at a given time still runs on this machine.

    Parameters
    ----------
    pid
        Its number.
    born_before
        Epoch seconds at which it is known to have run; a process born later only inherited the number.
    """
    try:
        process = psutil.Process(pid)
        return bool(process.create_time() <= born_before and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def flow_processes(prefect_home: Path) -> list[psutil.Process]:
    """Return the processes of flow runs, and what they started, that belong to one platform.

    They are told by two variables of their environment: Prefect's directory and the id of a flow run.
    """
    found = []
    for process in psutil.process_iter():
        try:
            env = process.environ()
            if (
                env.get("PREFECT_HOME") == str(prefect_home)
                and env.get("PREFECT__FLOW_RUN_ID")
                and process.status() != psutil.STATUS_ZOMBIE
                and process.pid != os.getpid()
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def runs_of(processes: Iterable[psutil.Process]) -> set[str]:
    """Return the ids of the flow runs that some processes belong to."""
    found = set()
    for process in processes:
        with suppress(psutil.Error):
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return found - {""}


def tell_to_end(processes: Iterable[psutil.Process]) -> int:
    """SIGTERM to the group of each process that none of the others started; return how many groups there are.

    A run is more than one process. As a worker that cancels it does, all of its group are told; children with a
    group of their own are ended by the one that started them.
    """
    processes = list(processes)
    ours = {process.pid for process in processes}
    groups = set()
    for process in processes:
        with suppress(psutil.Error, ProcessLookupError):
            if process.ppid() not in ours and os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGTERM)
                groups.add(process.pid)
            elif process.ppid() not in ours:
                process.terminate()
                groups.add(process.pid)
    return len(groups)


def stop_all(processes: Iterable[psutil.Process], *, grace_s: float) -> int:
    """SIGTERM to all, SIGKILL to those left after ``grace_s``; return how many had to be killed."""
    processes = list(processes)
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        _, processes = psutil.wait_procs(processes, timeout=wait_s)
        if not processes:
            return 0 if number is signal.SIGTERM else 1
    return len(processes)


def is_free(host: str, port: int) -> bool:
    """Say whether a server could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, ValueError):  # ValueError: a name that cannot be one
            return False
        return True


def free_port(host: str, first: int, *, tries: int = 200) -> int:
    """Return the first free port from ``first`` on.

    Raises
    ------
    BusyError
        If none of ``tries`` ports is free.
    InputError
        If this machine has no such address.
    """
    if not is_free(host, 0):  # any port at all
        raise InputError(f"nothing can listen at {host!r}: it is no address of this machine", fix="name one of its own")
    for port in range(first, first + tries):
        if is_free(host, port):
            return port
    raise BusyError(f"no free port from {first} to {first + tries - 1} on {host}", fix="name one with --port")
