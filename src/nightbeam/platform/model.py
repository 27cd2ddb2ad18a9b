"""What the platform is made of, and what can be said about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

__all__ = [
    "Layout",
    "PartState",
    "PartStatus",
    "Phase",
    "PlatformStatus",
    "PoolStatus",
    "Program",
    "Report",
]


class Phase(StrEnum):
    """Where in its life the supervisor is."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class PartState(StrEnum):
    """What the supervisor thinks of one of its processes."""

    RUNNING = "running"
    WAITING = "waiting to restart"
    GIVEN_UP = "given up"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Layout:
    """Where the platform keeps things under a state directory (absolute)."""

    state_dir: Path

    @property
    def config(self) -> Path:
        """The resolved settings that flows read."""
        return self.state_dir / "nightbeam.yaml"

    @property
    def logs(self) -> Path:
        """One log for each process."""
        return self.state_dir / "logs"

    @property
    def prefect_home(self) -> Path:
        """Prefect's own directory, with its database."""
        return self.state_dir / "prefect"

    @property
    def results(self) -> Path:
        """Results of tasks, which must outlive the process that made them."""
        return self.prefect_home / "results"

    @property
    def own(self) -> Path:
        """The supervisor's own files."""
        return self.state_dir / "platform"

    @property
    def lock(self) -> Path:
        """Held by the supervisor while it lives."""
        return self.own / "supervisor.lock"

    @property
    def report(self) -> Path:
        """What the supervisor last said of itself."""
        return self.own / "status.json"

    @property
    def paused(self) -> Path:
        """Names of the pools that the stop paused, to be resumed by the next start."""
        return self.own / "paused.json"

    @property
    def watched(self) -> Path:
        """How far the supervisor's watchman has seen."""
        return self.own / "watched.json"

    @property
    def ray_token(self) -> Path:
        """What a client of the platform's own Ray cluster has to show."""
        return self.own / "ray.token"

    @property
    def supervisor_log(self) -> Path:
        """The supervisor's log."""
        return self.logs / "supervisor.log"

    def log_of(self, part: str) -> Path:
        """Return the log of one process."""
        return self.logs / f"{part}.log"


@dataclass(frozen=True)
class Program:
    """One process to keep running."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    log: Path


@dataclass(frozen=True)
class PartStatus:
    """One process of the platform. Times are ISO 8601 UTC."""

    name: str
    state: PartState
    pid: int | None = None
    created: float | None = None
    since: str = ""
    restarts: int = 0
    last_exit: str = ""
    log: str = ""


@dataclass(frozen=True)
class Report:
    """What a supervisor says of itself in its status file.

    ``ray`` is the address of its own Ray cluster, ``monitor`` that of its page; "" for none. ``shares_pools`` says
    that other machines serve its pools, for whoever has to stop what a dead supervisor left.
    """

    phase: Phase
    pid: int
    api_url: str
    port: int | None = None
    problem: str = ""
    schedules: bool = True
    parts: tuple[PartStatus, ...] = ()
    ray: str = ""
    monitor: str = ""
    shares_pools: bool = False


@dataclass(frozen=True)
class PoolStatus:
    """One work pool as the server sees it, and how many runs it has in each stage."""

    name: str
    paused: bool
    workers_online: int
    running: int
    pending: int
    scheduled: int
    late: int


@dataclass(frozen=True)
class PlatformStatus:
    """Everything there is to say about a platform.

    Attributes
    ----------
    phase
        The supervisor's phase; ``stopped`` when no supervisor holds the lock, whatever its last report.
    server
        ``healthy``, ``unreachable``, or why it refuses us.
    parts, pools
        One entry for each.
    groups
        Groups of subbands in each state of the queue.
    ray
        Address of the Ray cluster, the platform's own or another; "" for none.
    monitor
        Address of the page that shows everything; "" for none.
    """

    phase: Phase
    api_url: str
    server: str
    supervisor_pid: int | None = None
    problem: str = ""
    parts: tuple[PartStatus, ...] = ()
    pools: tuple[PoolStatus, ...] = ()
    groups: dict[str, int] = field(default_factory=dict)
    ray: str = ""
    monitor: str = ""

    @property
    def healthy(self) -> bool:
        """True when everything that should run does."""
        return (
            self.phase is Phase.RUNNING
            and self.server == "healthy"
            and not self.problem
            and all(part.state is PartState.RUNNING for part in self.parts)
        )
