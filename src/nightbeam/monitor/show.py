"""How states, times and numbers look to people: words, marks, the geometry of drawings. Nothing here reads anything."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from nightbeam.core.times import SECONDS_PER_DAY, datetime_from_mjd

if TYPE_CHECKING:
    from nightbeam.monitor.model import GroupFile

__all__ = [
    "Bar",
    "Cell",
    "Lane",
    "Mark",
    "Span",
    "StageBar",
    "Tick",
    "TimeLine",
    "Tone",
    "ago",
    "arrival_cells",
    "beam",
    "byte_size",
    "day_of",
    "degrees",
    "dms",
    "duration",
    "fact",
    "hms",
    "instant",
    "iso",
    "jansky",
    "mark",
    "moment_in",
    "number",
    "of_mjd",
    "per_cent",
    "stage_bar",
    "time_line",
    "utc",
    "words",
    "worst_first",
]

_DASH: Final = "–"
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)")


class Tone(StrEnum):
    """How much a state matters to who looks; also a shape and a colour (see ``static/style.css``)."""

    BAD = "bad"
    WARN = "warn"
    WORK = "work"
    WAIT = "wait"
    GOOD = "good"
    OFF = "off"

    @property
    def rank(self) -> int:
        """Where it stands in a list: what is bad comes first."""
        return list(Tone).index(self)


@dataclass(frozen=True, slots=True)
class Mark:
    """A state in words, with its tone."""

    word: str
    tone: Tone


#: Every word of a state, attempt, set, mosaic, night, verdict, mirror or service that the page may meet.
_BY_TONE: Final[Mapping[Tone, tuple[str, ...]]] = {
    Tone.BAD: (
        "failed", "bad", "lost", "dead", "crashed", "error", "missing", "unreadable", "trouble", "given up",
    ),
    Tone.WARN: (
        "waiting_for_gains", "waiting", "warn", "borrowed", "stale", "late", "partial", "duplicate", "no access",
        "gone", "skipped_no_caltables", "degraded", "incomplete", "behind", "paused", "applycal_failed", "unhealthy",
        "held", "waiting to restart", "quick", "disk", "memory",
    ),
    Tone.WORK: ("in_progress", "running", "writing", "busy", "syncing", "starting", "stopping", "restarting"),
    Tone.WAIT: ("pending", "collecting", "planned", "queued", "scheduled", "idle", "open"),
    Tone.GOOD: (
        "completed", "good", "ok", "active", "done", "built", "up", "healthy", "current", "fetched", "restored",
        "ready", "alive", "valid", "solved here", "arrived",
    ),
}  # fmt: skip
_TONES: Final[Mapping[str, Tone]] = {word: tone for tone, words in _BY_TONE.items() for word in words}
_WORDS: Final[Mapping[str, str]] = {
    "waiting_for_gains": "waits for gains",
    "waiting": "waiting",
    "disk": "stopped by the disk",
    "memory": "stopped for want of memory",
    "open": "not yet",
    "in_progress": "in progress",
    "skipped_no_caltables": "no calibration",
    "processing_fresh": "first time",
    "warn": "doubtful",
    "applycal_failed": "apply failed",
    "applycal_done": "applied",
}


def words(text: object) -> str:
    """Return a name of the databases as words: ``in_progress`` is "in progress"."""
    name = str(text)
    return _WORDS.get(name, name.replace("_", " "))


def mark(state: object, *, word: str | None = None) -> Mark:
    """Return the mark of a state; one that nobody foresaw is shown by its own name, without judgement."""
    name = "unknown" if state is None or state == "" else str(state)
    return Mark(words(name) if word is None else word, _TONES.get(name.lower(), Tone.OFF))


def worst_first(items: Iterable[Any], tone: Any) -> list[Any]:
    """Sort items by the tone that the function ``tone`` finds in each, the worst first; equals stay in order."""
    return sorted(items, key=lambda item: tone(item).rank)


# -- times ------------------------------------------------------------------------------------------------------


def instant(value: object) -> datetime | None:
    """Return an aware UTC time of epoch seconds, of ISO 8601 text or of a datetime; None of anything else.

    Text without a zone is UTC, as everywhere here.
    """
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        if isinstance(value, str):
            return instant(datetime.fromisoformat(value))
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def moment_in(value: object) -> datetime | None:
    """Return the time that a text is, written whole as ISO 8601 with its zone; None of anything else."""
    return instant(value) if isinstance(value, str) and _MOMENT.fullmatch(value) else None


def of_mjd(mjd: float | None) -> datetime | None:
    """Return the time of a Modified Julian Date in days, or None."""
    try:
        return None if mjd is None else datetime_from_mjd(mjd)
    except (OverflowError, ValueError):
        return None


def iso(when: datetime) -> str:
    """Return a time for a program: ``2026-11-21T03:15:02Z``."""
    return f"{when.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def utc(when: datetime | None) -> str:
    """Return a time for a person: ``2026-11-21 03:15:02Z``."""
    return _DASH if when is None else iso(when).replace("T", " ")


def day_of(when: datetime) -> str:
    """Return the UTC day of a time, ``2026-11-21``."""
    return when.astimezone(UTC).strftime("%Y-%m-%d")


#: From so many seconds on, one so many seconds long, its name.
_UNITS: Final = ((172800.0, 86400.0, "d"), (5400.0, 3600.0, "h"), (90.0, 60.0, "min"), (1.0, 1.0, "s"))


def ago(when: datetime | None, now: datetime) -> str:
    """Return how long ago a time was, in one unit: ``3 h ago``, ``in 5 min``, ``now``."""
    if when is None:
        return "never"
    seconds = (now - when).total_seconds()
    for least, unit, name in _UNITS:
        if abs(seconds) >= least:
            span = f"{math.floor(abs(seconds) / unit + 0.5)} {name}"
            return f"{span} ago" if seconds > 0 else f"in {span}"
    return "now"


def duration(seconds: float | None) -> str:
    """Return a span of time in at most two units: ``0.4 s``, ``42 s``, ``4 min 32 s``, ``3 h 05 min``, ``12 d 4 h``."""
    if seconds is None or not math.isfinite(seconds):
        return _DASH
    sign, left = ("-", -seconds) if seconds < 0 else ("", seconds)
    if left < 9.95:
        return f"{sign}{left:.1f} s"
    whole = round(left)
    if whole < 60:
        return f"{sign}{whole} s"
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60:02d} s"
    minutes = round(left / 60)
    if minutes < 48 * 60:
        return f"{sign}{minutes // 60} h {minutes % 60:02d} min"
    hours = round(left / 3600)
    return f"{sign}{hours // 24} d {hours % 24} h"


# -- numbers ----------------------------------------------------------------------------------------------------


def fact(value: object) -> str:
    """Return whatever a system says of itself as short text: numbers with separators, yes, no, words."""
    if value is None or value == "":
        return _DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    text = str(value)
    return text if len(text) <= 300 else f"{text[:299]}…"


def number(value: float | None, digits: int = 3, unit: str = "") -> str:
    """Return a number to so many significant digits, without an exponent where that is short, and its unit."""
    if value is None or not math.isfinite(value):
        return _DASH
    if value and not 1e-4 <= abs(value) < 1e7:
        text = f"{value:.{digits - 1}e}"
    elif abs(value) >= 10 ** (digits - 1):
        text = f"{value:.0f}"
    else:
        whole = math.floor(math.log10(abs(value))) if value else 0
        text = f"{value:.{max(digits - 1 - whole, 0)}f}"
    return f"{text} {unit}".rstrip()


def jansky(value: float | None, per: str = "") -> str:
    """Return a flux density in the unit that suits it: ``12.5 mJy``."""
    if value is None or not math.isfinite(value):
        return _DASH
    for scale, unit in ((1.0, "Jy"), (1e3, "mJy")):
        if abs(value) * scale >= 0.9995 or value == 0:
            return number(value * scale, unit=unit + per)
    return number(value * 1e6, unit=f"µJy{per}")


def per_cent(fraction: float | None) -> str:
    """Return a fraction in per cent: ``12.5 %``."""
    if fraction is None or not math.isfinite(fraction):
        return _DASH
    return f"{fraction * 100:.0f} %" if fraction in (0.0, 1.0) else f"{fraction * 100:.1f} %"


def byte_size(n: float | None) -> str:
    """Return a number of bytes in decimal units: ``2.33 GB``."""
    if n is None or not math.isfinite(n):
        return _DASH
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB"), (1e12, "GB")):
        if abs(n) < limit * 0.9995:
            return f"{n:.0f} B" if unit == "B" else number(n / (limit / 1e3), unit=unit)
    return number(n / 1e12, unit="TB")


def hms(ra_deg: float | None) -> str:
    """Return a right ascension as ``01h37m41s``."""
    if ra_deg is None or not math.isfinite(ra_deg):
        return _DASH
    seconds = round(ra_deg % 360.0 * 240.0) % 86400
    return f"{seconds // 3600:02d}h{seconds // 60 % 60:02d}m{seconds % 60:02d}s"


def dms(dec_deg: float | None) -> str:
    """Return a declination as ``+16°09′``."""
    if dec_deg is None or not math.isfinite(dec_deg):
        return _DASH
    minutes = round(abs(dec_deg) * 60.0)
    sign = "-" if dec_deg < 0 and minutes else "+"
    return f"{sign}{minutes // 60:02d}°{minutes % 60:02d}′"


def degrees(value: float | None) -> str:
    """Return an angle as ``+16.1°``."""
    return _DASH if value is None or not math.isfinite(value) else f"{value:+.1f}°"


def beam(major_arcsec: float | None, minor_arcsec: float | None, pa_deg: float | None) -> str:
    """Return a restoring beam as ``31.2″ × 28.0″ @ 12°``, with what is known of it."""
    if major_arcsec is None or not math.isfinite(major_arcsec):
        return _DASH
    text = f"{number(major_arcsec)}″"
    if minor_arcsec is not None and math.isfinite(minor_arcsec):
        text += f" × {number(minor_arcsec)}″"
    if pa_deg is not None and math.isfinite(pa_deg):
        text += f" @ {pa_deg:.0f}°"
    return text


# -- how a group arrived ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """One subband of a group: ``state`` is ``arrived``, ``late``, ``duplicate`` or ``missing``.

    ``after_s`` is how long after the first file of its group it came.
    """

    subband: int
    state: str
    after_s: float | None
    path: str
    duplicates: tuple[str, ...]


def arrival_cells(files: Sequence[GroupFile]) -> list[Cell]:
    """Return one cell for each subband that came or should have, with the time since the first of them."""
    first = min((f.arrived_at for f in files if f.arrived_at is not None), default=None)
    cells = []
    for f in files:
        state = "missing" if f.missing else "late" if f.late else "duplicate" if f.duplicates else "arrived"
        after = None if f.arrived_at is None or first is None else (f.arrived_at - first).total_seconds()
        cells.append(Cell(f.subband, state, after, f.path or "", tuple(f.duplicates)))
    return cells


# -- drawings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """One stage of a group in a bar: where it begins and how wide it is, in units of the drawing."""

    name: str
    seconds: float
    x: float
    width: float
    number: int


@dataclass(frozen=True, slots=True)
class StageBar:
    """The stages of a group one after the other, and where the time between two groups ends."""

    width: float
    spans: tuple[Span, ...]
    total_s: float
    cadence_x: float | None


def stage_bar(
    stages: Sequence[tuple[str, float | None]], *, cadence_s: float = 309.0, width: float = 1000.0
) -> StageBar:
    """Return the geometry of a bar of stages.

    The drawing is as long as the stages or the time between two groups, whichever is longer, so that one
    sees whether the work keeps up with the sky.
    """
    known = [(name, float(s)) for name, s in stages if s is not None and math.isfinite(s) and s >= 0]
    total = sum(s for _, s in known)
    scale = width / max(total, cadence_s)
    spans, x = [], 0.0
    for index, (name, seconds) in enumerate(known):
        spans.append(Span(name, seconds, round(x, 2), round(seconds * scale, 2), index))
        x += seconds * scale
    return StageBar(width, tuple(spans), total, round(cadence_s * scale, 2) if known else None)


@dataclass(frozen=True, slots=True)
class Tick:
    """A line across a time line with its label."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A window of time in its row of a time line."""

    x: float
    y: float
    width: float
    height: float
    name: str
    tone: Tone
    title: str
    from_before: bool
    to_after: bool

    @property
    def label_fits(self) -> bool:
        """Whether its name has room within it (letters of about 6.5 units)."""
        return self.width > 6.5 * len(self.name) + 8


@dataclass(frozen=True, slots=True)
class Lane:
    """The windows of one strip of declination."""

    label: str
    y: float
    height: float
    bars: tuple[Bar, ...]
    dots: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class TimeLine:
    """Windows of time by strip, with the hours, the present, and the times of groups."""

    width: float
    height: float
    left: float
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]
    now_x: float | None


_STEPS_H: Final = (1, 2, 3, 6, 12, 24, 48, 96, 168, 336, 720)
_ROW, _GAP, _HEAD = 20.0, 14.0, 26.0


def time_line(
    windows: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    *,
    start_mjd: float,
    end_mjd: float,
    now_mjd: float,
    strip_deg: float = 1.0,
    width: float = 1000.0,
    left: float = 70.0,
) -> TimeLine:
    """Return the geometry of the windows in which calibration holds.

    Parameters
    ----------
    windows
        Each with ``name``, ``tone``, ``title``, ``start_mjd``, ``end_mjd`` and ``dec_deg`` (None: any).
    groups
        Each with ``name``, ``mjd`` and ``dec_deg``; they become dots below the windows of their strip.
    start_mjd, end_mjd
        What is shown of time.
    strip_deg
        Declinations this near to each other are one strip.
    width, left
        Of the drawing, and of the column with the names of the strips.
    """
    span = max(end_mjd - start_mjd, 1e-6)

    def x_of(mjd: float) -> float:
        return round(left + (mjd - start_mjd) / span * (width - left), 2)

    shown = [w for w in windows if w["end_mjd"] >= start_mjd and w["start_mjd"] <= end_mjd]
    seen = [g for g in groups if start_mjd <= g["mjd"] <= end_mjd]
    strips = _strips([w["dec_deg"] for w in shown] + [g["dec_deg"] for g in seen], strip_deg)
    lanes: list[Lane] = []
    y = _HEAD
    for strip in strips:
        rows = _rows([w for w in shown if _belongs(w["dec_deg"], strip, strip_deg)])
        bars = tuple(
            _bar(w, y + row * (_ROW + 2), x_of, start_mjd, end_mjd) for row, line in enumerate(rows) for w in line
        )
        dots = tuple(Tick(x_of(g["mjd"]), str(g["name"])) for g in seen if _belongs(g["dec_deg"], strip, strip_deg))
        height = max(len(rows), 1) * (_ROW + 2) + _GAP
        lanes.append(Lane("any Dec" if strip is None else degrees(strip), y, height, bars, dots))
        y += height + 6
    now_x = x_of(now_mjd) if start_mjd <= now_mjd <= end_mjd else None
    return TimeLine(width, max(y, _HEAD + _ROW), left, tuple(lanes), _ticks(start_mjd, end_mjd, x_of), now_x)


def _strips(decs: Iterable[float | None], strip_deg: float) -> list[float | None]:
    strips: list[float | None] = []
    for dec in sorted({d for d in decs if d is not None}):
        if not strips or dec - float(strips[-1] or 0.0) > strip_deg:
            strips.append(dec)
    return [*strips, *([None] if None in set(decs) else [])]


def _belongs(dec: float | None, strip: float | None, strip_deg: float) -> bool:
    if dec is None or strip is None:
        return dec is strip
    return 0.0 <= dec - strip <= strip_deg


def _rows(windows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    rows: list[list[Mapping[str, Any]]] = []
    for window in sorted(windows, key=lambda w: (w["start_mjd"], w["end_mjd"])):
        free = next((row for row in rows if row[-1]["end_mjd"] <= window["start_mjd"]), None)
        if free is None:
            rows.append([window])
        else:
            free.append(window)
    return rows


def _bar(window: Mapping[str, Any], y: float, x_of: Any, start_mjd: float, end_mjd: float) -> Bar:
    begin, end = max(window["start_mjd"], start_mjd), min(window["end_mjd"], end_mjd)
    x = x_of(begin)
    return Bar(
        x=x,
        y=y,
        width=round(max(x_of(end) - x, 2.0), 2),
        height=_ROW,
        name=str(window["name"]),
        tone=Tone(window["tone"]),
        title=str(window["title"]),
        from_before=window["start_mjd"] < start_mjd,
        to_after=window["end_mjd"] > end_mjd,
    )


def _ticks(start_mjd: float, end_mjd: float, x_of: Any) -> tuple[Tick, ...]:
    hours = (end_mjd - start_mjd) * 24.0
    step = next((s for s in _STEPS_H if hours / s <= 9), _STEPS_H[-1])
    first = math.ceil(start_mjd * 24.0 / step - 1e-9) * step
    ticks: list[Tick] = []
    while first / 24.0 <= end_mjd and len(ticks) < 400:
        when = datetime_from_mjd(round(first / 24.0 * SECONDS_PER_DAY) / SECONDS_PER_DAY)
        pattern = "%m-%d" if step >= 24 or when.hour == 0 else "%H:%M"
        ticks.append(Tick(x_of(first / 24.0), when.strftime(pattern)))
        first += step
    return tuple(ticks)
