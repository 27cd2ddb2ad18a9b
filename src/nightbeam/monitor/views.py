"""What each page shows: a question to the reader, its answer put in the order in which people look.

Nothing here reads a database; of files the ends of logs only.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import Any, Final
from urllib.parse import quote, urlencode

from fastapi import Request

from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.times import mjd_from_datetime
from nightbeam.monitor import show
from nightbeam.monitor.logs import log_tail, steps_with_logs
from nightbeam.monitor.model import CalibrationSet, GroupDetail, MosaicDetail, QueueGroup, Score
from nightbeam.monitor.read import MOST, Reader

__all__ = ["ONCE", "VIEWS", "Ask", "View", "address", "group_state", "is_silent"]

_STATES: Final = ("failed", "in_progress", "pending", "collecting", "completed")
#: What stands on the page of which system.
_PAGES: Final = {
    "contimg": "/groups", "elog": "/elog", "constants": "/constants", "scans": "/scans", "cxi": "/cxi",
    "platform": "/platform",
}  # fmt: skip
#: Of what failed, no more and nothing older is put before people.
_MOST_ATTENTION, _ATTENTION = 12, timedelta(days=7)
#: Mosaics that are looked through for a state or a text: some years.
_MOST_MOSAICS: Final = 500
#: As the older pipeline's monitor warns of.
_SILENT: Final = timedelta(minutes=15)
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".svg")
#: As `Registry.find_set` has it: farther apart in declination is another strip.
_STRIP_DEG: Final = 1.0
_GROUP: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
#: Of an address, what is said on its page once only.
ONCE: Final = ("said", "run")


@dataclass(frozen=True, slots=True)
class View:
    """What a page shows.

    Attributes
    ----------
    template
        Under ``templates/``.
    answer
        What the page as JSON is.
    context
        What the template needs beside that.
    place
        The entry of the menu that it belongs to.
    refreshes
        Whether it is brought up to date while it is looked at.
    """

    template: str
    answer: Any
    context: Mapping[str, Any]
    place: str
    refreshes: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to a page: its address, and the reader that answers."""

    request: Request
    reader: Reader
    now: datetime

    def text(self, name: str, *, most: int = 200) -> str | None:
        """Return a text of the address, or None."""
        return self.request.query_params.get(name, "").strip()[:most] or None

    def one_of(self, name: str, choices: Iterable[str]) -> str | None:
        """Return a word of the address that is among some.

        Raises
        ------
        InputError
            If it is another.
        """
        found, known = self.text(name), list(choices)
        if found is not None and found not in known:
            raise InputError(f"{name}={found} is unknown here", fix=f"{name} is one of {', '.join(known)}")
        return found

    def whole(self, name: str, default: int, *, least: int = 1, most: int = 1000) -> int:
        """Return a number of the address.

        Raises
        ------
        InputError
            If it is none, or out of bounds.
        """
        found = self.text(name)
        if found is None:
            return default
        if not re.fullmatch(r"\d{1,9}", found, re.ASCII) or not least <= int(found) <= most:
            raise InputError(f"{name}={found} cannot be", fix=f"give a number from {least} to {most}")
        return int(found)

    def day(self, name: str) -> date | None:
        """Return a UTC day of the address.

        Raises
        ------
        InputError
            If it is none.
        """
        found = self.text(name)
        try:
            return None if found is None else date.fromisoformat(found)
        except ValueError as error:
            raise InputError(f"{name}={found} is no day", fix="write it as 2026-11-21") from error

    def begin(self, name: str) -> datetime | None:
        """Return when a day of the address begins."""
        found = self.day(name)
        return None if found is None else datetime.combine(found, time_of_day(), UTC)

    def end(self, name: str) -> datetime | None:
        """Return when a day of the address is over."""
        found = self.day(name)
        try:
            return None if found is None else datetime.combine(found, time_of_day(), UTC) + timedelta(days=1)
        except OverflowError as error:
            raise InputError(f"{name}={found} is no day", fix="give an earlier one") from error

    def address(self, **changes: object) -> str:
        """Return the address of this page with some of its filters changed; None takes one out."""
        kept = {k: v for k, v in self.request.query_params.items() if k not in ONCE and v != ""}
        kept |= {k: str(v) for k, v in changes.items()}
        given = {k: v for k, v in kept.items() if changes.get(k, "") is not None}
        path = self.request.url.path.removesuffix(".json")
        return path + (f"?{urlencode(given)}" if given else "")


# -- the pages ----------------------------------------------------------------------------------------------------


def _tonight(ask: Ask) -> View:
    reader = ask.reader
    tonight, sets = reader.tonight(), reader.calibration_sets(since=ask.now, until=ask.now, limit=200)
    groups = reader.groups(limit=8)
    mosaics = reader.mosaics(limit=20)
    attention = _attention(reader, ask.now)
    built = [one for one in mosaics.items if one.status == "built"]
    holding = _holding(sets.items, ask.now)
    valid = sorted((s for s in sets.items if s.set_name in holding), key=lambda s: (s.dec_deg is None, s.dec_deg))
    context = {
        "tonight": tonight,
        "problems": list(dict.fromkeys([*tonight.problems, *groups.problems, *mosaics.problems])),
        "mosaic_problems": mosaics.problems,
        "systems": show.worst_first(tonight.systems, lambda one: show.mark(one.standing.value).tone),
        "attention": attention[:_MOST_ATTENTION],
        "attention_left": len(attention[_MOST_ATTENTION:]),
        "mosaic": built[0] if built else None,
        "sets": sets,
        "valid": valid,
        "uncovered": _uncovered(reader.groups(since=ask.now - timedelta(hours=12), limit=200).items, valid),
        "groups": groups,
        "pages": _PAGES,
    }
    answer = {"tonight": tonight, "groups": groups.items, "mosaic": context["mosaic"], "calibration": context["valid"],
              "attention": attention}  # fmt: skip
    return View("tonight.html", answer, context, "/", refreshes=True)


@dataclass(frozen=True, slots=True)
class _Attention:
    """Something that somebody should look at."""

    name: str
    href: str
    state: str
    when: datetime | None
    why: str | None


def _attention(reader: Reader, now: datetime) -> list[_Attention]:
    """Return what failed or waits and is not old, the worst first and of that the newest."""
    failed = reader.groups(state="failed", limit=50).items
    waiting = [g for g in reader.groups(state="pending", limit=100).items if group_state(g) != "pending"]
    found = [
        _Attention(g.group_id, address("/groups", g.group_id), group_state(g), g.last_update, g.error)
        for g in (*failed, *waiting)
    ]
    found += [
        _Attention(m.name, address("/mosaics", m.name), m.status, m.built_at or m.created_at, m.error)
        for m in reader.mosaics(limit=20).items
        if m.status == "failed"
    ]
    found += [
        _Attention(f"night {n.night}", "/mosaics#nights", n.state, n.updated_at, n.error)
        for n in reader.nights(limit=8).items
        if n.state == "failed"
    ]
    recent = [one for one in found if one.when is not None and now - one.when <= _ATTENTION]
    recent.sort(key=lambda one: one.when or now, reverse=True)
    return show.worst_first(recent, lambda one: show.mark(one.state).tone)


def _groups(ask: Ask) -> View:
    state, text, limit, before = (
        ask.one_of("state", _STATES),
        ask.text("text"),
        ask.whole("limit", 50),
        ask.text("before"),
    )
    days = {"since": ask.day("since"), "until": ask.day("until")}
    found = ask.reader.groups(
        state=state, since=ask.begin("since"), until=ask.end("until"), text=text, limit=limit, before=before
    )
    filtered = any((state, text, *days.values()))
    context = {
        "groups": found,
        "bad_files": [] if filtered or before else ask.reader.bad_files(limit=20),
        "filters": {"state": state, "text": text, "limit": limit, **days},
        "filtered": filtered,
        "nothing": "No group is like that." if filtered or before else "No group has come yet.",
        **_turning(ask, found.before, before),
    }
    return View("groups.html", found, context, "/groups", refreshes=before is None)


def _group(ask: Ask) -> View:
    group_id = ask.request.path_params["group_id"]
    group = ask.reader.group(group_id)
    if group is None:
        raise MissingError(
            f"there is no group {group_id}", fix="look for it among the groups; ids are like 2026-11-21T03:15:02"
        )
    cells = show.arrival_cells(group.files)
    bar = show.stage_bar([(step.step, step.seconds) for step in group.steps])
    log_dir = ask.reader.site.log(group.group_id, "any").parent if plain_name(group.group_id) else None
    logs = steps_with_logs(log_dir) if log_dir is not None else []
    wanted = ask.text("log")
    context = {
        "group": group,
        "cells": cells,
        "first_file": min((f.arrived_at for f in group.files if f.arrived_at is not None), default=None),
        "total_bytes": sum(f.size_bytes or 0 for f in group.files),
        "bar": bar,
        "colours": {span.name: span.number for span in bar.spans},
        "scores": _by_verdict(group.scores),
        "figures": [a for a in group.qa if a.url and a.name.lower().endswith(_PICTURES)],
        "reports": [a for a in group.qa if not a.name.lower().endswith(_PICTURES)],
        "used": _used(ask.reader, group),
        "owner_url": group.history[-1].run_url if group.history and group.state == "in_progress" else None,
        "logs": logs,
        "log": log_tail(log_dir, wanted or _telling(group, logs)) if log_dir is not None and logs else None,
    }
    working = group.state in ("collecting", "pending", "in_progress")
    return View("group.html", group, context, "/groups", refreshes=working)


@dataclass(frozen=True, slots=True)
class _Used:
    """The tables of a group."""

    set_name: str
    age_days: float | None
    borrowed: bool
    solved: bool
    calibrator: str | None
    rejected: str | None
    tables: list[str]


def _used(reader: Reader, group: GroupDetail) -> _Used | None:
    """Return which set served a group: by its receipt, or where it has none any more by its image."""
    said = group.calibration
    if said.get("set_name"):
        age = said.get("age_days")
        return _Used(
            set_name=str(said["set_name"]),
            age_days=float(age) if isinstance(age, int | float) else None,
            borrowed=bool(said.get("borrowed")),
            solved=bool(said.get("solved")),
            calibrator=str(said.get("calibrator") or "") or None,
            rejected=str(said.get("rejected") or "") or None,
            tables=[str(table) for table in _list(said.get("tables"))],
        )
    for image in group.images:
        if image.calibration_set:
            found = reader.calibration_set(image.calibration_set)
            return _Used(
                set_name=image.calibration_set,
                age_days=image.cal_age_days,
                borrowed=image.cal_borrowed,
                solved=found is not None and found.group_id == group.group_id,
                calibrator=found.calibrator if found else None,
                rejected=None,
                tables=list(found.tables) if found else [],
            )
    return None


def _telling(group: GroupDetail, logs: list[str]) -> str:
    """Return the step whose log tells most: the one at work or that failed, or else the last."""
    for step in group.steps:
        if step.state in ("running", "failed") and step.step in logs:
            return step.step
    ended = [a.step for a in group.history if a.step in logs and a.outcome != "completed"]
    last = [step.step for step in group.steps if step.step in logs]
    return str(ended[-1] if ended and group.state != "completed" else last[-1] if last else logs[-1])


def _calibration(ask: Ask) -> View:
    days = ask.whole("days", 3, most=30)
    status, text = ask.one_of("status", ("active", "retired", "failed")), ask.text("text")
    # The present stands at two thirds of the line, so that one sees what ends soon.
    end = ask.end("until") or ask.now + timedelta(days=days / 3)
    try:
        start = end - timedelta(days=days)
    except OverflowError as error:
        raise InputError(f"until={ask.text('until')} is too early", fix="give a later day") from error
    sets = ask.reader.calibration_sets(since=start, until=end, limit=500)
    shown = [one for one in sets.items if _matches(one, status, text)]
    groups = ask.reader.groups(since=start, until=end, limit=MOST)
    windows = [_window(one) for one in shown]
    line = show.time_line(
        [w for w in windows if w is not None],
        [
            {"name": g.group_id, "mjd": g.start_mjd, "dec_deg": g.dec_deg}
            for g in groups.items
            if g.start_mjd is not None
        ],
        start_mjd=mjd_from_datetime(start),
        end_mjd=mjd_from_datetime(end),
        now_mjd=mjd_from_datetime(ask.now),
        strip_deg=_STRIP_DEG,
    )
    context = {
        "sets": sets,
        "shown": sorted(shown, key=lambda one: (one.status == "retired", -_stamp(one.created_at))),
        "holding": _holding(sets.items, ask.now),
        "line": line,
        "many": MOST if groups.before is not None else None,
        "filters": {"days": days, "until": ask.day("until"), "status": status, "text": text},
        "filtered": any((status, text, ask.day("until"))),
    }
    return View("calibration.html", dataclasses.replace(sets, items=shown), context, "/calibration")


def _stamp(when: datetime | None) -> float:
    return 0.0 if when is None else when.timestamp()


def _uncovered(groups: Iterable[QueueGroup], valid: Iterable[CalibrationSet]) -> list[float]:
    """Return the declinations of groups for which no set holds, one for each strip."""
    known = [one.dec_deg for one in valid]
    found: list[float] = []
    if None in known:  # it holds wherever one looks
        return found
    for dec in sorted({g.dec_deg for g in groups if g.dec_deg is not None}):
        near = [other for other in (*known, *found) if other is not None and abs(other - dec) <= _STRIP_DEG]
        if not near:
            found.append(dec)
    return found


def _matches(one: CalibrationSet, status: str | None, text: str | None) -> bool:
    said = f"{one.set_name} {one.calibrator or ''} {one.group_id or ''} {one.reason or ''}".lower()
    return status in (None, one.status) and (text is None or text.lower() in said)


def _holding(sets: Iterable[CalibrationSet], now: datetime) -> set[str]:
    """Return the names of the sets that are active and valid now."""
    return {
        one.set_name
        for one in sets
        if one.status == "active"
        and one.valid_start is not None
        and one.valid_end is not None
        and one.valid_start <= now <= one.valid_end
    }


def _window(one: CalibrationSet) -> dict[str, Any] | None:
    """Return the window of a set for the time line; of a set that was turned down, a moment."""
    start, end = one.valid_start_mjd, one.valid_end_mjd
    if start is None or end is None:
        if one.mid_mjd is None:
            return None
        start = end = one.mid_mjd
    words = f"{one.set_name}: {one.status}, {show.utc(show.of_mjd(start))} to {show.utc(show.of_mjd(end))}"
    return {
        "name": one.set_name,
        "tone": {"active": "good", "failed": "bad"}.get(one.status, "off"),
        "title": words + (f": {one.reason}" if one.reason else ""),
        "start_mjd": start,
        "end_mjd": end,
        "dec_deg": one.dec_deg,
    }


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The worst of what was said of something, why, and how many measures beside it could not be judged."""

    verdict: str
    name: str
    reason: str | None
    unknown: int = 0

    @property
    def tone_rank(self) -> int:
        """0: bad, 1: doubtful, more: neither."""
        return show.mark(self.verdict).tone.rank


def _by_verdict(scores: Iterable[Score]) -> list[Score]:
    return show.worst_first(scores, lambda one: show.mark(one.verdict).tone)


def _verdicts(reader: Reader, kind: str, subjects: Iterable[str | None]) -> dict[str, _Verdict]:
    """Return the worst verdict on each of some groups or mosaics, and how many measures beside it are unknown."""
    worst: dict[str, _Verdict] = {}
    scores = reader.scores_of(kind, [one for one in subjects if one]).items
    unknown = Counter(score.subject for score in scores if score.verdict == "unknown")
    for score in reversed(_by_verdict(scores)):
        if score.verdict != "unknown" or score.subject not in worst:
            beside = 0 if score.verdict == "unknown" else unknown[score.subject]
            worst[score.subject] = _Verdict(score.verdict, score.name, score.reason, beside)
    return worst


def _images(ask: Ask) -> View:
    limit, before = ask.whole("limit", 50), ask.whole("before", 0, most=999_999_999) or None
    view = ask.one_of("view", ("pictures", "table")) or "pictures"
    days = {"since": ask.day("since"), "until": ask.day("until")}
    found = ask.reader.images(since=ask.begin("since"), until=ask.end("until"), before=before, limit=limit)
    context = {
        "images": found,
        "verdicts": _verdicts(ask.reader, "group", (image.group_id for image in found.items)),
        "filters": {"view": view, "limit": limit, **days},
        "filtered": any(days.values()) or before is not None,
        **_turning(ask, found.before, before),
    }
    return View("images.html", found, context, "/images")


def _image(ask: Ask) -> View:
    number = ask.request.path_params["image_id"]
    image = ask.reader.image(int(number)) if re.fullmatch(r"\d{1,18}", number, re.ASCII) else None
    if image is None:
        raise MissingError(f"there is no image {number}", fix="look for it among the images")
    scores = ask.reader.scores(kind="group", subject=image.group_id) if image.group_id else None
    context = {
        "image": image,
        "scores": _by_verdict(scores.items) if scores else [],
        "problems": scores.problems if scores else [],
    }
    return View("image.html", image, context, "/images")


def _mosaics(ask: Ask) -> View:
    status, text = ask.one_of("status", ("failed", "planned", "built")), ask.text("text")
    limit = ask.whole("limit", 50)
    found = ask.reader.mosaics(limit=_MOST_MOSAICS)
    whole = len(found.items) < _MOST_MOSAICS
    items = [
        one
        for one in found.items
        if status in (None, one.status) and (text or "").lower() in f"{one.name} {one.plan} {one.error or ''}".lower()
    ]
    found = dataclasses.replace(found, items=items[:limit])
    nights = ask.reader.nights(limit=31)
    context = {
        "mosaics": found,
        "nights": nights,
        "looked_through": None if whole else _MOST_MOSAICS,
        "filters": {"status": status, "text": text, "limit": limit},
        "filtered": any((status, text)),
    }
    return View("mosaics.html", {"mosaics": found, "nights": nights}, context, "/mosaics")


def _mosaic(ask: Ask) -> View:
    name = ask.request.path_params["name"]
    detail = ask.reader.mosaic(name)
    if detail is None:
        raise MissingError(f"there is no mosaic {name}", fix="look for it among the mosaics")
    context = {
        "detail": detail,
        "mosaic": detail.mosaic,
        "tiles": _tiles(detail),
        "checks": _checks(detail.checks),
        "issues": _lines(detail.validation_issues),
        # The checks have a table of their own.
        "scores": _by_verdict(s for s in detail.scores if not s.name.startswith("check_")),
        "figures": [a for a in detail.qa if a.url and a.name.lower().endswith(_PICTURES)],
    }
    return View("mosaic.html", detail, context, "/mosaics")


@dataclass(frozen=True, slots=True)
class _Tile:
    """One tile of a mosaic; ``used`` is None where nothing was said of it."""

    path: str
    group_id: str | None
    used: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class _Check:
    """One thing asked of a mosaic."""

    name: str
    verdict: str
    value: Any
    reason: str


def _tiles(detail: MosaicDetail) -> list[_Tile]:
    """Return the tiles of a mosaic with what was said of each, rejected ones first."""
    said = [one for one in _list(detail.verdicts) if isinstance(one, dict)]
    tiles = [
        _Tile(
            str(one.get("path", "")),
            _group_in(f"{one.get('name', '')} {one.get('path', '')}"),
            None if one.get("accepted") is None else bool(one["accepted"]),
            "; ".join(
                str(r.get("text") or r.get("code")) if isinstance(r, dict) else str(r)
                for r in _list(one.get("reasons"))
            ),
        )
        for one in said
    ]
    known = {tile.path for tile in tiles}
    tiles += [_Tile(path, _group_in(path), None, "") for path in detail.tiles if path not in known]
    return sorted(tiles, key=lambda tile: tile.used is not False)


def _group_in(text: str) -> str | None:
    found = _GROUP.search(text)
    return found[0] if found else None


def _checks(checks: Any) -> list[_Check]:
    """Return the checks of a mosaic, failed ones first."""
    found = [
        _Check(
            str(one.get("name", "")),
            "unknown" if one.get("passed") is None else "good" if one["passed"] else "bad",
            one.get("value"),
            str(one.get("text") or ""),
        )
        for one in _list(checks)
        if isinstance(one, dict)
    ]
    return show.worst_first(found, lambda one: show.mark(one.verdict).tone)


def _lines(text: Any) -> list[str]:
    if isinstance(text, str):
        return [line for line in text.splitlines() if line.strip()]
    return [str(one) for one in _list(text)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _elog(ask: Ask) -> View:
    found = ask.reader.elog()
    return View("elog.html", found, {"elog": found}, "/elog")


def _constants(ask: Ask) -> View:
    found = ask.reader.constants()
    items = sorted(found.items, key=lambda one: one.reason is None)
    return View("constants.html", found, {"constants": found, "items": items}, "/constants")


def _scans(ask: Ask) -> View:
    found = ask.reader.scans()
    stores = sorted(found.stores, key=lambda one: not one.failures)
    return View("scans.html", found, {"scans": found, "stores": stores}, "/scans", refreshes=False)


def _cxi(ask: Ask) -> View:
    found = ask.reader.cxi()
    writers = [
        {
            **{f.name: getattr(one, f.name) for f in dataclasses.fields(one)},
            # What its last word was says nothing of a writer that is gone.
            "how": "dead" if one.state in ("starting", "running", "draining") and not one.running else one.state,
            "peaks_per_hit": _ratio(one.counters.get("peaks_written"), one.events_written),
        }
        for one in found.writers
    ]
    return View("cxi.html", found, {"cxi": found, "writers": writers}, "/cxi")


def _ratio(above: Any, below: float) -> float | None:
    return float(above) / below if isinstance(above, int | float) and below else None


def _platform(ask: Ask) -> View:
    found = ask.reader.platform()
    processes = show.worst_first(found.processes, lambda one: show.mark(one.state).tone)
    context = {
        "platform": found,
        "processes": processes,
        "machine": ask.request.app.state.machine.now(),
        "aside": ask.reader.quarantine(limit=20),
    }
    return View("platform.html", found, context, "/platform")


def _turning(ask: Ask, older: object | None, before: object | None) -> dict[str, str | None]:
    return {
        "older_url": None if older is None else ask.address(before=older),
        "newest_url": None if before is None else ask.address(before=None),
    }


def group_state(group: QueueGroup | GroupDetail) -> str:
    """Return the state of a group in one word: one that waits for gains is not merely pending."""
    return "waiting_for_gains" if group.state == "pending" and group.stage == "waiting_for_gains" else group.state


def is_silent(group: QueueGroup | GroupDetail, now: datetime) -> bool:
    """Return whether somebody is said to work on a group and has given no sign of life for too long."""
    return group.state == "in_progress" and group.last_update is not None and now - group.last_update > _SILENT


def address(*parts: object) -> str:
    """Return an address of this site whose parts may hold anything; the first is as it is."""
    first, *rest = parts
    return "/".join([str(first), *(quote(str(part), safe=":") for part in rest)])


def plain_name(name: str) -> bool:
    """Return whether a name can be that of a directory in another, and of nothing else."""
    return bool(name) and not name.startswith(".") and not set(name) & {"/", "\\", "\0"}


#: What is shown where.
VIEWS: Final[Mapping[str, Callable[[Ask], View]]] = {
    "/": _tonight,
    "/groups": _groups,
    "/groups/{group_id}": _group,
    "/calibration": _calibration,
    "/images": _images,
    "/images/{image_id}": _image,
    "/mosaics": _mosaics,
    "/mosaics/{name}": _mosaic,
    "/elog": _elog,
    "/constants": _constants,
    "/scans": _scans,
    "/cxi": _cxi,
    "/platform": _platform,
}
