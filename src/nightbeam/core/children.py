"""Child processes that cannot outlive us, hang us or lose their last words."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nightbeam.core.errors import ToolError
from nightbeam.core.files import full_place, storage_errors

__all__ = ["die_with_parent", "log_tail", "log_tells_of_full_disk", "run_child", "stop_child", "whose"]

#: A platform knows by these, of the environment, which processes are its own, and of which run.
_WHOSE = ("PREFECT_HOME", "PREFECT__FLOW_RUN_ID")

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
#: What casacore, CFITSIO, WSClean and the C library say of it.
_FULL = re.compile(r"write error|error writing|no space left|disk full|file size limit", re.IGNORECASE)


def die_with_parent() -> Callable[[], None]:
    """Return what a child has to call to be killed by the kernel when the thread that started it ends.

    For `subprocess.Popen(preexec_fn=die_with_parent())`. The thread that starts a child must therefore wait for it.
    """
    parent = os.getpid()

    def ask() -> None:
        os.setsid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)

    return ask


def whose() -> dict[str, str]:
    """Return what a child with an environment of its own must have of ours to be known as ours while it lives."""
    return {name: os.environ[name] for name in _WHOSE if name in os.environ}


def run_child(
    argv: Sequence[str | Path],
    *,
    log: Path,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    what: str = "",
    grace_s: float = 10.0,
) -> None:
    """Run a program to its end, in a session of its own, with its output in a file.

    It is killed with its descendants when the time is up, when this call is interrupted, and (the
    program itself) when we die.

    Raises
    ------
    ToolError
        If it cannot be started, runs past ``timeout_s`` or ends with anything but 0; the end of
        its log is part of the message.
    StorageError
        If the log cannot be opened.
    """
    what = what or Path(argv[0]).name
    with storage_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        out = log.open("ab")
    with out:
        try:
            child = subprocess.Popen(
                [str(a) for a in argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=None if env is None else dict(env),
                preexec_fn=die_with_parent(),
            )
        except OSError as error:
            raise ToolError(f"{what} could not be started: {error}", fix=f"is {argv[0]} installed?") from error
    try:
        code = child.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ToolError(
            f"{what} ran longer than {timeout_s:.0f} s and was stopped{_said(log)}",
            fix="raise its time limit if the machine is busy",
        ) from error
    finally:
        stop_child(child, grace_s=grace_s)
    if code != 0:
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise ToolError(f"{what} {ended}{_said(log)}", fix=f"read {log}")


def stop_child(child: subprocess.Popen[bytes], *, grace_s: float = 10.0) -> None:
    """End a child and its session: SIGTERM, then SIGKILL after ``grace_s``; one already ended is fine."""
    if child.poll() is not None:
        return
    _signal_session(child.pid, signal.SIGTERM)
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        _signal_session(child.pid, signal.SIGKILL)
        child.wait()


def _signal_session(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def log_tail(log: Path, *, lines: int = 20, most: int = 8192) -> str:
    """Return the last lines of a log, at most ``most`` bytes of them; nothing there gives ``""``."""
    try:
        with log.open("rb") as data:
            data.seek(max(0, log.stat().st_size - most))
            text = data.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def log_tells_of_full_disk(log: Path, begin: int, *places: Path) -> bool:
    """Return whether a program that failed may have failed for want of room.

    Parameters
    ----------
    log, begin
        What it said is in there, from this byte on; on a full disk there may be nothing.
    places
        Where it wrote: whether there is room on them now is looked at too, before anything is cleaned up.
    """
    try:
        with log.open("rb") as data:
            data.seek(begin)
            said = data.read().decode(errors="replace")
    except OSError:
        said = ""
    return bool(_FULL.search(said)) or bool(full_place(log, *places))


def _said(log: Path) -> str:
    tail = log_tail(log)
    return f"; it last said:\n{tail}" if tail else ""
