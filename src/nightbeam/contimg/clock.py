"""What a machine's clock did since the last scan: one that is set makes no group old.

The kernel counts the time since the boot whatever is done to the clock; how far the two have drifted apart between two
scans of one machine is by how much the clock was set. The queue keeps what the last scan saw, and follows the clock in
the same transaction.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nightbeam.catalog.model import ClockStep, GroupRow

if TYPE_CHECKING:
    from nightbeam.catalog import Queue

__all__ = ["ClockLook", "Instant", "look_at_clock"]

#: Smaller steps make no group old; a clock that is slewed never makes one.
_STEP_S = 60.0


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment: epoch seconds, seconds since the boot, and which boot."""

    wall: float
    since_boot: float
    boot: str

    @classmethod
    def now(cls) -> Instant:
        """Return this moment."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            boot = ""
        return cls(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot)


@dataclass(frozen=True, slots=True)
class ClockLook:
    """What a scan needs to know of the clock.

    Attributes
    ----------
    now
        This moment.
    step_s
        By how much the clock was set since the last scan of this machine, 0 if it was not.
    stepped
        Whether it was set since this machine began.
    moved
        How many groups that collect had their age kept.
    beats
        Of groups of other machines: their last sign of life, and since when (seconds of the boot) we have known it.
    """

    now: Instant
    step_s: float
    stepped: bool
    moved: int
    beats: dict[str, tuple[float, float]]

    def silent_s(self, row: GroupRow) -> float:
        """Return for how long we have known the last sign of life of a group, by no clock that anybody sets."""
        beat = row.heartbeat_at or row.last_update
        known = self.beats.get(row.group_id)
        if known is None or known[0] != beat:
            known = self.beats[row.group_id] = (beat, self.now.since_boot)
        return self.now.since_boot - known[1]

    def keep(self, queue: Queue, groups: set[str]) -> None:
        """Keep for the next scan what is known of those groups."""
        beats = {group: beat for group, beat in self.beats.items() if group in groups}
        if self.now.boot and (self.stepped or beats):
            queue.clocks.keep_beats(self.now.boot, beats)


def look_at_clock(queue: Queue, now: Instant | None = None) -> ClockLook:
    """Compare the clock with what the last scan of this machine saw, and have the queue follow it where it was set."""
    now = now or Instant.now()
    if not now.boot:  # a kernel that does not tell one boot from another
        return ClockLook(now, 0.0, False, 0, {})
    host = socket.gethostname()
    found: ClockStep = queue.clocks.follow(
        now.boot, host, wall=now.wall, since_boot=now.since_boot, least_step_s=_STEP_S
    )
    return ClockLook(now, found.step_s, found.stepped, found.moved, dict(found.beats))
