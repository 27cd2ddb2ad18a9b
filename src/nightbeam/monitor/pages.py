"""The pages that people look at: each a question to the reader and a template, and the same answer as JSON.

A page works without JavaScript; what is filtered by stands in its address. Nothing here reads a database or a file of the
site: the reader does. What it could not read is said on the page in its words.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter, FastAPI, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from nightbeam import __version__
from nightbeam.core.errors import AuthError, BusyError, InputError, MissingError, NightbeamError
from nightbeam.core.times import mjd_from_datetime
from nightbeam.monitor import show
from nightbeam.monitor.auth import COOKIE, CSRF_FIELD, Auth, Session, local_path
from nightbeam.monitor.files import token_path
from nightbeam.monitor.logs import log_tail, steps_with_logs
from nightbeam.monitor.model import CalibrationSet, GroupDetail, MosaicDetail, QueueGroup, Score
from nightbeam.monitor.read import Reader

__all__ = ["install", "router"]

router = APIRouter(include_in_schema=False)

#: Seconds between two looks of a page at itself.
_REFRESH_S: Final = 10
_LIMITS: Final = (20, 50, 100, 200)
_STATES: Final = ("failed", "in_progress", "pending", "collecting", "completed")
#: What stands on the page of which system.
_PAGES: Final = {
    "contimg": "/groups", "elog": "/elog", "constants": "/constants", "scans": "/scans", "cxi": "/cxi",
    "platform": "/platform",
}  # fmt: skip
_STATIC: Final = {
    "style.css": "text/css; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
#: Of what failed, no more and nothing older is put before people.
_MOST_ATTENTION, _ATTENTION = 12, timedelta(days=7)
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".svg")
_RUN_OF_FILE: Final = re.compile(r"(.*?_(?:r\d{4,}|norun))_")
#: As `Registry.find_set` has it: farther apart in declination is another strip.
_STRIP_DEG: Final = 1.0
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Message:
    """Something that a page says at its top, once."""

    tone: str
    words: str
    link: str = ""
    link_words: str = ""


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
    message: Message | None = None


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
        kept = {k: v for k, v in self.request.query_params.items() if k not in _SAID and v != ""}
        kept |= {k: str(v) for k, v in changes.items()}
        given = {k: v for k, v in kept.items() if changes.get(k, "") is not None}
        path = self.request.url.path.removesuffix(".json")
        return path + (f"?{urlencode(given)}" if given else "")


_SAID: Final = ("said", "run")


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
    of_group = lambda g: _Attention(  # noqa: E731
        g.group_id, address("/groups", g.group_id), group_state(g), g.last_update, g.error
    )
    found = [of_group(g) for g in reader.groups(state="failed", limit=50).items]
    pending = [g for g in reader.groups(state="pending", limit=100).items if group_state(g) != "pending"]
    found += [of_group(g) for g in pending]
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
    filters = {
        "state": ask.one_of("state", _STATES),
        "since": ask.day("since"),
        "until": ask.day("until"),
        "text": ask.text("text"),
        "limit": ask.whole("limit", 50),
    }
    before = ask.text("before")
    found = ask.reader.groups(
        state=filters["state"], since=ask.begin("since"), until=ask.end("until"), text=filters["text"],
        limit=filters["limit"], before=before,
    )  # fmt: skip
    filtered = any(filters[name] for name in ("state", "since", "until", "text"))
    context = {
        "groups": found,
        "filters": filters,
        "filtered": filtered,
        "nothing": "No group is like that." if filtered or before else "No group has come yet.",
        **_turning(ask, found.before, before),
    }
    return View("groups.html", found, context, "/groups", refreshes=before is None)


def _group(ask: Ask) -> View:
    group_id = ask.request.path_params["group_id"]
    group = ask.reader.group(group_id)
    if group is None:
        problems = ask.reader.problems_of_queue()
        if problems:
            raise MissingError(
                f"the queue cannot be read: {problems[0]}", fix="see Platform, and the log of the monitor"
            )
        raise MissingError(
            f"there is no group {group_id}", fix="look for it among the groups; ids are like 2026-11-21T03:15:02"
        )
    cells = show.arrival_cells(group.files)
    steps = [(step.step, step.seconds) for step in group.steps]
    bar = show.stage_bar(steps)
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
        "owner_url": next((a.run_url for a in reversed(group.history) if a.owner == group.owner), None),
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
    said = reader.receipt(group.group_id, "calibrate")
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
            known = {one.set_name: one for one in reader.calibration_sets(limit=200).items}
            found = known.get(image.calibration_set)
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
    filters = {
        "days": days,
        "until": ask.day("until"),
        "status": ask.one_of("status", ("active", "retired", "failed")),
        "text": ask.text("text"),
    }
    # The present stands at two thirds of the line, so that one sees what ends soon.
    end = ask.end("until") or ask.now + timedelta(days=days / 3)
    start = end - timedelta(days=days)
    sets = ask.reader.calibration_sets(limit=500)
    shown = [one for one in sets.items if _matches(one, filters["status"], filters["text"])]
    groups = ask.reader.groups(since=start, until=end, limit=500)
    windows = [_window(one, ask.now) for one in shown]
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
        "shown": show.worst_first(shown, lambda one: show.Tone.OFF if one.status == "retired" else show.Tone.GOOD),
        "holding": _holding(sets.items, ask.now),
        "line": line,
        "filters": filters,
        "filtered": any(filters[name] for name in ("until", "status", "text")),
    }
    context["shown"] = sorted(shown, key=lambda one: (one.status == "retired", -_stamp(one.created_at)))
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


def _window(one: CalibrationSet, now: datetime) -> dict[str, Any] | None:
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
    """The worst of what was said of something, and why."""

    verdict: str
    name: str
    reason: str | None

    @property
    def tone_rank(self) -> int:
        """0: bad, 1: doubtful, more: neither."""
        return show.mark(self.verdict).tone.rank


def _by_verdict(scores: Iterable[Score]) -> list[Score]:
    return show.worst_first(scores, lambda one: show.mark(one.verdict).tone)


def _verdicts(reader: Reader, kind: str) -> dict[str, _Verdict]:
    """Return the worst verdict of each group or mosaic that was judged lately; what is unknown counts for least."""
    worst: dict[str, _Verdict] = {}
    for score in reversed(_by_verdict(reader.scores(kind=kind, limit=1000).items)):
        if score.verdict != "unknown" or score.subject not in worst:
            worst[score.subject] = _Verdict(score.verdict, score.name, score.reason)
    return worst


def _images(ask: Ask) -> View:
    filters = {
        "since": ask.day("since"),
        "until": ask.day("until"),
        "view": ask.one_of("view", ("pictures", "table")) or "pictures",
        "limit": ask.whole("limit", 50),
    }
    before = ask.whole("before", 0, most=999_999_999) or None
    found = ask.reader.images(since=ask.begin("since"), until=ask.end("until"), before=before, limit=filters["limit"])
    context = {
        "images": found,
        "verdicts": _verdicts(ask.reader, "group"),
        "filters": filters,
        "filtered": any(filters[name] for name in ("since", "until")),
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
    filters = {
        "status": ask.one_of("status", ("failed", "planned", "built")),
        "text": ask.text("text"),
        "limit": ask.whole("limit", 50),
    }
    found = ask.reader.mosaics(limit=500)
    text = (filters["text"] or "").lower()
    items = [
        one
        for one in found.items
        if filters["status"] in (None, one.status) and text in f"{one.name} {one.plan or ''} {one.error or ''}".lower()
    ]
    found = dataclasses.replace(found, items=items[: filters["limit"]])
    nights = ask.reader.nights(limit=31)
    filtered = any(filters[name] for name in ("status", "text"))
    context = {"mosaics": found, "nights": nights, "filters": filters, "filtered": filtered}
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
        "scores": _by_verdict(detail.scores),
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


_GROUP: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


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
    words = {True: "good", False: "bad"}
    found = [
        _Check(
            str(one.get("name", "")),
            words.get(one.get("passed"), "unknown"),
            one.get("value"),
            str(one.get("text") or ""),
        )  # fmt: skip
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
    return View("cxi.html", found, {"cxi": found, "writers": writers, "runs": _runs(found.newest)}, "/cxi")


def _ratio(above: Any, below: float) -> float | None:
    return float(above) / below if isinstance(above, int | float) and below else None


def _runs(files: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the runs that the newest files are of, by the names of the files."""
    runs: dict[str, dict[str, Any]] = {}
    for one in files:
        found = _RUN_OF_FILE.match(one.name)
        if found is None:
            continue
        run = runs.setdefault(found[1], {"name": found[1], "files": 0, "size_bytes": 0, "written_at": None})
        run["files"] += 1
        run["size_bytes"] += one.size_bytes
        run["written_at"] = max(filter(None, (run["written_at"], one.written_at)), default=None)
    return list(runs.values())


def _platform(ask: Ask) -> View:
    found = ask.reader.platform()
    processes = show.worst_first(found.processes, lambda one: show.mark(one.state).tone)
    return View("platform.html", found, {"platform": found, "processes": processes}, "/platform")


# -- from a view to an answer ---------------------------------------------------------------------------------------


def _turning(ask: Ask, older: object | None, before: object | None) -> dict[str, str | None]:
    return {
        "older_url": None if older is None else ask.address(before=older),
        "newest_url": None if before is None else ask.address(before=None),
    }


def group_state(group: QueueGroup | GroupDetail) -> str:
    """Return the state of a group in one word: one that waits for gains is not merely pending."""
    return "waiting_for_gains" if group.state == "pending" and group.stage == "waiting_for_gains" else group.state


def address(*parts: object) -> str:
    """Return an address of this site whose parts may hold anything; the first is as it is."""
    first, *rest = parts
    return "/".join([str(first), *(quote(str(part), safe=":") for part in rest)])


def plain_name(name: str) -> bool:
    """Return whether a name can be that of a directory in another, and of nothing else."""
    return bool(name) and not name.startswith(".") and not set(name) & {"/", "\\", "\0"}


def anchor(name: str) -> str:
    """Return a name that can stand behind a ``#``, another one for each name."""
    return "set-" + "".join(c if c.isascii() and (c.isalnum() or c in "-.") else f"_{ord(c):x}_" for c in name)


@functools.cache
def static_file(name: str) -> tuple[bytes, str]:
    """Return a file that comes with the pages, and a word that changes with its content."""
    data = (resources.files("nightbeam.monitor") / "static" / name).read_bytes()
    return data, hashlib.sha256(data).hexdigest()[:12]


def static(name: str) -> str:
    """Return the address of a file that comes with the pages."""
    return f"/static/{name}?v={static_file(name)[1]}"


@functools.cache
def templates() -> Environment:
    """Return the templates; everything that is put into them is escaped."""
    found = Environment(
        loader=PackageLoader("nightbeam.monitor", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "ago": show.ago, "anchor": anchor, "byte_size": show.byte_size, "degrees": show.degrees, "dms": show.dms,
        "duration": show.duration, "fact": show.fact, "hms": show.hms, "instant": show.instant, "iso": show.iso,
        "jansky": show.jansky, "moment_in": show.moment_in, "number": show.number, "per_cent": show.per_cent, "utc": show.utc, "words": show.words,
        "beam": lambda one: show.beam(one.beam_major_arcsec, one.beam_minor_arcsec, one.beam_pa_deg),
    }  # fmt: skip
    found.globals |= {
        "mark": show.mark, "address": address, "static": static, "version": __version__, "limits": _LIMITS,
        "group_state": group_state, "group_mark": lambda group: show.mark(group_state(group)),
        "between": lambda a, b: None if a is None or b is None else (b - a).total_seconds(),
        "boosted": Markup('hx-boost="true"'),
    }  # fmt: skip
    return found


def plain(value: Any) -> Any:
    """Return an answer as what JSON can hold: times as text with Z, numbers that JSON has not as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _wants_still(request: Request) -> bool:
    return request.query_params.get("refresh") == "0"


def _common(request: Request, reader: Reader, now: datetime) -> dict[str, Any]:
    """Return what every page needs."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return {
        "now": now,
        "prefect_url": reader.prefect_page(),
        "logged_in": (session := session_of(request)) is not None,
        "csrf": "" if session is None else session.csrf,
        "login_url": f"/login?{urlencode({'next': here})}",
        "place": None,
        "json_url": None,
        "refreshes": None,
        "polling": "",
        "message": None,
    }


def _as_html(ask: Ask, view: View) -> Response:
    context = {**_common(ask.request, ask.reader, ask.now), **view.context, "place": view.place}
    path, query = ask.request.url.path, ask.request.url.query
    context["json_url"] = ("/tonight.json" if path == "/" else f"{path}.json") + (f"?{query}" if query else "")
    if view.refreshes:
        still = _wants_still(ask.request)
        context |= {
            "refreshes": 0 if still else _REFRESH_S,
            "still_url": ask.address(refresh=0),
            "fresh_url": ask.address(refresh=None),
            "polling": "" if still else _polling(ask.address()),
        }
    context["message"] = view.message or _said(ask.request, context["prefect_url"])
    return HTMLResponse(templates().get_template(view.template).render(context))


def _polling(url: str) -> Markup:
    text = ' hx-get="{}" hx-trigger="every {}s, seen" hx-select="#fresh" hx-swap="outerHTML"'
    return Markup(text).format(url, _REFRESH_S)


#: What a page says after something was done, by the word in its address.
_MESSAGES: Final = {
    "reprocessing": Message("good", "The group is pending again, and a run was started."),
    "again": Message("good", "The group is pending again; the run that was started for it already is on its way."),
    "pending": Message("warn", "The group is pending again. No run could be started now; the next look at the queue does so."),
    "in": Message("good", "You are logged in."),
    "out": Message("good", "You are logged out."),
}  # fmt: skip


def _said(request: Request, prefect_url: str | None) -> Message | None:
    found = _MESSAGES.get(request.query_params.get("said", ""))
    run = request.query_params.get("run", "")
    if found is not None and prefect_url and _UUID.fullmatch(run):
        return dataclasses.replace(found, link=f"{prefect_url}/runs/flow-run/{run}", link_words="See it in Prefect")
    return found


def problem(request: Request, reader: Reader, *, status: int, title: str, what: str, fix: str = "") -> Response:
    """Return the page that says what is wrong, and what helps."""
    context = _common(request, reader, reader.now())
    context |= {"title": title, "what": what, "fix": fix, "tone": "bad" if status >= 500 else "warn"}
    context["near"] = [{"href": href, "name": href} for href in _near(request.url.path)] if status == 404 else []
    return HTMLResponse(templates().get_template("problem.html").render(context), status_code=status)


def _near(path: str) -> list[str]:
    """Return addresses that may have been meant."""
    known = [one for one in _ADDRESSES if "{" not in one]
    first = "/" + path.strip("/").split("/")[0]
    return list(
        dict.fromkeys(
            [
                *(one for one in known if one == first and one != "/"),
                *difflib.get_close_matches(path, known, n=3, cutoff=0.5),
            ]
        )
    )


_ADDRESSES: Final[dict[str, Callable[[Ask], View]]] = {
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


def _html(build: Callable[[Ask], View]) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        ask = _ask(request)
        try:
            view = build(ask)
        except NightbeamError as error:
            status, title = _status_of(error)
            return problem(request, ask.reader, status=status, title=title, what=error.what, fix=error.fix)
        return _as_html(ask, view)

    return page


def _json(build: Callable[[Ask], View]) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        ask = _ask(request)
        try:
            view = build(ask)
        except NightbeamError as error:
            status, _ = _status_of(error)
            return JSONResponse({"error": error.what, "fix": error.fix}, status_code=status)
        return JSONResponse(plain(view.answer))

    return page


def _ask(request: Request) -> Ask:
    reader: Reader = request.app.state.reader
    return Ask(request, reader, reader.now())


def _status_of(error: NightbeamError) -> tuple[int, str]:
    if isinstance(error, MissingError):
        return 404, "It is not here"
    if isinstance(error, InputError):
        return 400, "That cannot be done"
    if isinstance(error, BusyError):
        return 409, "Somebody else is at it"
    return 503, "It cannot be read now"


for _path, _build in _ADDRESSES.items():
    _plain_path = "/tonight" if _path == "/" else _path
    router.add_route(f"{_plain_path}.json", _json(_build), methods=["GET"], include_in_schema=False)
    router.add_route(_path, _html(_build), methods=["GET"], include_in_schema=False)
router.add_route("/index.json", _json(_tonight), methods=["GET"], include_in_schema=False)


@router.get("/tonight")
@router.get("/ui")
def _home() -> Response:
    return RedirectResponse("/", 307)


@router.get("/static/{name}")
def _static(name: str, request: Request) -> Response:
    kind = _STATIC.get(name)
    if kind is None:
        raise HTTPException(404)
    data, word = static_file(name)
    # Whoever asks with the word of this very content never has to ask again.
    keep = "public, max-age=31536000, immutable" if request.query_params.get("v") == word else "no-cache"
    return Response(data, media_type=kind, headers={"Cache-Control": keep, "ETag": f'"{word}"'})


# -- what changes something -----------------------------------------------------------------------------------------


def session_of(request: Request) -> Session | None:
    """Return the session of who asks, or None."""
    auth: Auth = request.app.state.auth
    return auth.session(request.cookies.get(COOKIE))


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form; the size of a body is bounded before it comes here."""
    body = await request.body()
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        return {}


@router.get("/login")
def _login_page(request: Request, next: str = "/") -> Response:  # noqa: A002
    return _login(request, next)


def _login(request: Request, to: str, message: Message | None = None, status: int = 200) -> Response:
    reader: Reader = request.app.state.reader
    settings = reader.settings
    context = _common(request, reader, reader.now()) | {
        "message": message,
        "next": local_path(to),
        "token_file": token_path(settings.state_dir, settings.monitor.token_file),
        "login_url": "/login",
    }
    return HTMLResponse(templates().get_template("login.html").render(context), status_code=status)


@router.post("/login")
async def _log_in(request: Request) -> Response:
    form, auth = await _form(request), request.app.state.auth
    to = local_path(form.get("next"))
    try:
        auth.demand_origin(request.headers, scheme=request.url.scheme)
    except AuthError as error:
        return await run_in_threadpool(_login, request, to, Message("bad", error.what), 403)
    if not auth.knows(form.get("token", "").strip()):
        return await run_in_threadpool(_login, request, to, Message("bad", "That is not the word of this site."), 403)
    answer = RedirectResponse(_saying(to, "in"), 303)
    answer.set_cookie(
        COOKIE, auth.new_session().value, max_age=12 * 3600, httponly=True, samesite="strict",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    return answer


@router.post("/logout")
async def _log_out(request: Request) -> Response:
    answer = RedirectResponse(_saying("/", "out"), 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


def _saying(to: str, word: str, **more: str | None) -> str:
    """Return an address with what its page is to say once."""
    path, _, query = to.partition("?")
    kept = [(k, v) for k, v in parse_qsl(query, keep_blank_values=True) if k not in _SAID]
    said = [("said", word), *((k, v) for k, v in more.items() if v)]
    return f"{path}?{urlencode([*kept, *said])}"


@router.post("/groups/{group_id}/reprocess")
async def _reprocess(request: Request, group_id: str) -> Response:
    form, state = await _form(request), request.app.state
    here = address("/groups", group_id)
    if session_of(request) is None:
        return RedirectResponse(f"/login?{urlencode({'next': here})}", 303)

    def work() -> Response:
        try:
            state.auth.demand(
                request.headers, request.cookies.get(COOKIE), scheme=request.url.scheme, csrf=form.get(CSRF_FIELD, "")
            )
            done = state.reprocessing.start(group_id)
        except NightbeamError as error:
            status = 403 if isinstance(error, AuthError) else _status_of(error)[0]
            return problem(
                request, state.reader, status=status, title="It was not reprocessed", what=error.what, fix=error.fix
            )
        word = "pending" if done.run_id is None else "reprocessing" if done.started else "again"
        return RedirectResponse(_saying(here, word, run=done.run_id), 303)

    return await run_in_threadpool(work)


# -- addresses that are none ----------------------------------------------------------------------------------------


def install(app: FastAPI) -> None:
    """Put the pages into an application, also the one for an address that is none."""
    app.include_router(router)
    otherwise: Any = app.exception_handlers.get(HTTPException)

    async def handle(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        if (
            path.startswith(("/api/", "/static/"))
            or path.endswith(".json")
            or "html" not in request.headers.get("accept", "")
        ):
            if otherwise is not None:
                found: Response = await otherwise(request, error)
                return found
            return JSONResponse({"detail": error.detail}, status_code=error.status_code)
        title = "There is no such page" if error.status_code == 404 else f"{error.status_code} {error.detail}"
        what = f"Nothing is at {path}." if error.status_code == 404 else f"{request.method} {path}: {error.detail}."
        return await run_in_threadpool(
            functools.partial(
                problem,
                request,
                request.app.state.reader,
                status=error.status_code,
                title=title,
                what=what,
                fix="the menu above leads to all there is" if error.status_code == 404 else "",
            )  # fmt: skip
        )

    app.add_exception_handler(HTTPException, handle)
