"""How much memory this machine has, and how much of it is free: the machine's, or what our cgroup leaves us."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nightbeam.core.errors import UnavailableError

__all__ = ["Memory", "read_memory"]

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that there are for us, and bytes of them that can be had without pushing anything out."""

    total_bytes: int
    available_bytes: int


def read_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> Memory:
    """Return the memory of the machine, or of the tightest cgroup that we are in.

    Parameters
    ----------
    proc, cgroup
        Where the kernel tells it (proc(5), and its documentation of cgroup v2 and v1).

    Raises
    ------
    UnavailableError
        If the kernel does not tell.
    """
    try:
        told = dict(re.findall(r"^(\w+):\s+(\d+) kB$", (proc / "meminfo").read_text(), re.MULTILINE))
        total, available = int(told["MemTotal"]) * 1024, int(told["MemAvailable"]) * 1024
    except (OSError, KeyError, ValueError) as error:
        raise UnavailableError("the kernel does not say how much memory there is", fix="is /proc mounted?") from error
    for limit, used in _limits(proc, cgroup):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, available)


def _limits(proc: Path, cgroup: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use of each cgroup that we are in, from ours up to the root, where there is a limit.

    What the page cache holds of files that nobody looks at is not counted as used: it is given up when asked for.
    """
    for root, inside in _places(proc, cgroup):
        at = root / inside
        while True:
            for limit, used in (
                ("memory.max", "memory.current"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            ):
                if (most := _number(at / limit)) is not None and (now := _number(at / used)) is not None:
                    yield most, max(0, now - _inactive(at / "memory.stat"))
            if at == root or root not in at.parents:
                break
            at = at.parent


def _places(proc: Path, cgroup: Path) -> Iterator[tuple[Path, str]]:
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        inside = inside.strip("/")
        if ".." in inside.split("/"):  # of another namespace: its own limits are those of the root that we see
            inside = ""
        if number == "0":
            yield cgroup, inside
        elif "memory" in controllers.split(","):
            yield cgroup / "memory", inside


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _inactive(path: Path) -> int:
    try:
        found = re.search(r"^(?:total_)?inactive_file (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
