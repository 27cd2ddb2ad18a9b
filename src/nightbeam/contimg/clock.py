"""What a machine's clock did since the last scan: one that is set makes no group old.

The kernel counts the time since the boot whatever is done to the clock; how far the two have drifted apart between two
scans of one machine is by how much the clock was set.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightbeam.catalog.model import GroupRow
from nightbeam.contimg.site import Site
from nightbeam.core.files import write_text

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
    elapsed_s
        Since that scan.
    stepped
        Whether it was set since this machine began.
    beats
        Of groups of other machines: their last sign of life, and since when (seconds of the boot) we have known it.
    """

    now: Instant
    step_s: float
    elapsed_s: float
    stepped: bool
    beats: dict[str, tuple[float, float]]

    def silent_s(self, row: GroupRow) -> float:
        """Return for how long we have known the last sign of life of a group, by no clock that anybody sets."""
        beat = row.heartbeat_at or row.last_update
        known = self.beats.get(row.group_id)
        if known is None or known[0] != beat:
            known = self.beats[row.group_id] = (beat, self.now.since_boot)
        return self.now.since_boot - known[1]

    def keep(self, site: Site, groups: set[str]) -> None:
        """Write down what the next scan needs; of those groups only."""
        content = {
            "wall": self.now.wall,
            "since_boot": self.now.since_boot,
            "boot": self.now.boot,
            "stepped": self.stepped,
            "beats": {group: list(beat) for group, beat in self.beats.items() if group in groups},
        }
        write_text(_file(site), json.dumps(content) + "\n")


def look_at_clock(site: Site, now: Instant | None = None) -> ClockLook:
    """Compare the clock with what the last scan of this machine wrote down; a note that cannot be read is none."""
    now = now or Instant.now()
    try:
        found: dict[str, Any] = json.loads(_file(site).read_text())
        if not now.boot or found["boot"] != now.boot:
            return ClockLook(now, 0.0, 0.0, False, {})
        elapsed = now.since_boot - float(found["since_boot"])
        step = now.wall - float(found["wall"]) - elapsed
        beats = {str(group): (float(beat[0]), float(beat[1])) for group, beat in found["beats"].items()}
        stepped = bool(found["stepped"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ClockLook(now, 0.0, 0.0, False, {})
    step = step if abs(step) > _STEP_S else 0.0
    return ClockLook(now, step, elapsed, stepped or step != 0.0, beats)


def _file(site: Site) -> Path:
    return site.state_dir / f"clock-{socket.gethostname()}.json"
