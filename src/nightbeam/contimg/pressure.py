"""How far behind the site is, and what gives way: first optional work, then the size of images.

The backlog is counted from the queue. A level begins at one number of groups that wait and ends at a lower one, so that
it does not come and go with each group; it is kept in the queue, so that all machines have the same. What was put off
is made when nothing else waits.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from nightbeam.catalog.model import BacklogRow, Imaging, Owed, PressureRow
from nightbeam.core.settings import PressureSettings, QaSettings
from nightbeam.core.times import SECONDS_PER_DAY

if TYPE_CHECKING:
    from nightbeam.contimg.site import Site

__all__ = [
    "Backlog",
    "Level",
    "Pressure",
    "as_quick",
    "backlog_of",
    "is_smaller",
    "measure",
    "next_level",
    "owed_by",
    "quick_limits",
    "stand_back",
    "take_up_owed",
    "wanted_imaging",
    "weigh",
    "would_be",
]

logger = logging.getLogger(__name__)

_MJD_OF_EPOCH = 40587.0
_QUICK_LIMITS_UP = ("noise_mjy", "thermal_factor")
_QUICK_LIMITS_DOWN = ("dynamic_range", "peak_over_hole")


class Level(StrEnum):
    """What gives way."""

    CALM = "calm"
    BEHIND = "behind"
    QUICK = "quick"


@dataclass(frozen=True, slots=True)
class Backlog:
    """What has come and is not imaged, as groups and as minutes of sky.

    Attributes
    ----------
    waiting, minutes
        Groups that could be worked on now and are not, and how much of the sky's time that is.
    in_work, for_gains
        Groups that somebody has, and those that wait for a calibration set, which more speed would not help.
    owed_images, owed_figures
        Groups that are imaged, and whose full images or figures were put off.
    oldest_s
        How long ago the oldest data begin that wait; None where nothing does.
    """

    waiting: int = 0
    minutes: float = 0.0
    in_work: int = 0
    for_gains: int = 0
    owed_images: int = 0
    owed_figures: int = 0
    oldest_s: float | None = None

    def __str__(self) -> str:
        groups = "1 group waits" if self.waiting == 1 else f"{self.waiting} groups wait"
        return f"{groups} ({self.minutes:.0f} min of sky)" if self.waiting else "no group waits"


@dataclass(frozen=True, slots=True)
class Pressure:
    """What gives way, since when (epoch seconds; None: nobody has noted it yet), and the backlog that it follows."""

    level: Level
    since: float | None
    backlog: Backlog

    @property
    def reason(self) -> str:
        """Why optional work waits, in a sentence; empty where it does not."""
        return "" if self.level is Level.CALM else f"{self.backlog}, and new data come first"


def next_level(level: Level, waiting: int, limits: PressureSettings) -> Level:
    """Return the level that follows ``level`` where so many groups wait.

    A level begins above its number of groups and ends at ``relief`` times it.
    """

    def holds(begin: int, was: bool) -> bool:
        return waiting > begin or (was and waiting > limits.relief * begin)

    if limits.mode == "off":
        return Level.CALM
    if limits.mode == "quick" and holds(limits.quick_groups, level is Level.QUICK):
        return Level.QUICK
    return Level.BEHIND if holds(limits.behind_groups, level is not Level.CALM) else Level.CALM


def backlog_of(row: BacklogRow, *, minutes_each: float, now: float) -> Backlog:
    """Return the backlog of what the queue counts.

    Parameters
    ----------
    row
        What it counts.
    minutes_each
        Of sky, in a group.
    now
        Epoch seconds.
    """
    oldest = None
    if row.oldest_mjd is not None:
        oldest = max(0.0, now - (row.oldest_mjd - _MJD_OF_EPOCH) * SECONDS_PER_DAY)
    return Backlog(
        waiting=row.waiting,
        minutes=row.waiting * minutes_each,
        in_work=row.in_work + row.owed_in_work,
        for_gains=row.for_gains,
        owed_images=row.owed_images,
        owed_figures=row.owed_figures,
        oldest_s=oldest,
    )


def would_be(known: PressureRow | None, backlog: Backlog, limits: PressureSettings) -> Pressure:
    """Return the pressure that a backlog makes, after what was noted last."""
    before = _level_of(known)
    level = next_level(before, backlog.waiting, limits)
    since = known.since if known is not None and known.level == level else None
    return Pressure(level, since, backlog)


def measure(site: Site, *, now: float | None = None) -> Backlog:
    """Return the backlog of a site."""
    now = time.time() if now is None else now
    return backlog_of(site.queue().arrears.backlog(), minutes_each=site.ingest.chunk_minutes, now=now)


def weigh(site: Site, *, now: float | None = None, note: bool = True) -> Pressure:
    """Return how far behind a site is, and note it where that is news.

    Parameters
    ----------
    site
        Where.
    now
        Epoch seconds.
    note
        Whether to; who only looks does not.
    """
    now = time.time() if now is None else now
    arrears = site.queue().arrears
    known = arrears.pressure()
    found = would_be(known, measure(site, now=now), site.pressure)
    before = _level_of(known)
    if not note or found.level is before:
        return found
    if arrears.put_pressure(found.level, before=known, waiting=found.backlog.waiting, now=now):
        worse = list(Level).index(found.level) > list(Level).index(before)
        logger.log(logging.WARNING if worse else logging.INFO, "%s: from %s to %s", found.backlog, before, found.level)
    return replace(found, since=now)


def stand_back(site: Site, what: str) -> str:
    """Return why optional work is to wait, having said so; empty where it need not."""
    reason = weigh(site).reason
    if reason:
        logger.warning("%s is put off: %s", what, reason)
    return reason


# -- what is owed -------------------------------------------------------------------------------------------------


def take_up_owed(site: Site) -> str | None:
    """Let the group with the oldest data that is owed something be done again, if nothing else is; returns which.

    One at a time is: the next when that one is begun. Where the Measurement Set is gone, what there is stays.
    """
    if weigh(site).level is not Level.CALM:
        return None
    queue = site.queue()
    while found := queue.arrears.owed(limit=1):
        group_id, owed = found[0]
        ms = Path(str((queue.receipt(group_id, "convert") or {}).get("ms", site.ms_path(group_id))))
        if ms.is_dir():
            taken = queue.arrears.take_up(group_id)
            if taken:
                logger.info("group %s is taken up again for its %s", group_id, owed)
            return group_id if taken else None
        queue.arrears.pay(group_id, owed)
        logger.warning("group %s never gets its %s: %s is gone", group_id, owed, ms)
    return None


def owed_by(*, quick: bool, figures: bool) -> Owed | None:
    """Return what a finished group is owed: its full image (and its figures with it), or only its figures."""
    return Owed.IMAGE if quick else None if figures else Owed.FIGURES


# -- quick images -------------------------------------------------------------------------------------------------


def as_quick(site: Site) -> Site:
    """Return the site whose images are made quickly."""
    return replace(site, image=site.image.model_copy(update={"quick": True}))


def is_smaller(site: Site) -> bool:
    """Return whether a quick image of this site is another one than its usual image."""
    from nightbeam.imaging import ImageOptions

    usual = ImageOptions.from_mapping(site.image.model_dump())
    return usual.quick() != usual


def wanted_imaging(site: Site, *, owed: str | None) -> Imaging:
    """Return how an image that is about to be made is best made now; what is ``owed`` is made in full."""
    if owed is None and is_smaller(site) and weigh(site).level is Level.QUICK:
        return Imaging.QUICK
    return Imaging.FULL


def quick_limits(limits: QaSettings, tolerance: float) -> QaSettings:
    """Return the limits of a quick image: what lies outside its smaller field is not cleaned, and is its noise."""
    up = {name: tuple(v * tolerance for v in getattr(limits, name)) for name in _QUICK_LIMITS_UP}
    down = {name: tuple(v / tolerance for v in getattr(limits, name)) for name in _QUICK_LIMITS_DOWN}
    return limits.model_copy(update=up | down)


def _level_of(known: PressureRow | None) -> Level:
    """Return the level that was noted; one that another nightbeam has is none of ours."""
    return Level(known.level) if known is not None and known.level in set(Level) else Level.CALM
