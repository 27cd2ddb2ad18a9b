"""Tidying up: what dead runs left, groups that wait for ever, products that are too old.

It looks, decides (`retention.decide`) and carries out; each thing is looked at again when its turn comes. What the
ingest does every half minute on its own account is done here by the same functions, as a second net where no ingest
runs: taking back the leases of dead owners, giving up groups that stay incomplete, removing the scratch of dead runs.
Only housekeeping knows the rest: scratch of other makers, retention, and the quarantine.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nightbeam.catalog.model import GroupRow, QuarantineRow, State
from nightbeam.contimg.databases import Databases, open_existing
from nightbeam.contimg.owners import is_alive, is_dead, places_in_use, scratch_maker
from nightbeam.contimg.quarantine import (
    image_stem_of,
    inside,
    item_of,
    mosaic_files,
    purge,
    put_aside,
    restore,
    settle,
)
from nightbeam.contimg.retention import (
    Action,
    Collecting,
    Facts,
    Held,
    Lease,
    Limits,
    Product,
    Scratch,
    Verb,
    check_clock,
    decide,
    is_older,
)
from nightbeam.contimg.site import Site
from nightbeam.contimg.tools import TOOLS, Tools
from nightbeam.core.errors import (
    BusyError,
    InputError,
    MissingError,
    NightbeamError,
    PartialError,
    RejectedError,
    StorageError,
)
from nightbeam.core.files import remove, storage_errors, write_text
from nightbeam.core.locks import is_held, remove_free_lock, sole_owner
from nightbeam.core.times import SECONDS_PER_DAY

if TYPE_CHECKING:
    from nightbeam.catalog import MsRow, Registry

__all__ = ["TidyReport", "held_in_quarantine", "put_back", "require_queue", "tidy_up"]

logger = logging.getLogger(__name__)

_UNFINISHED = ("moving", "restoring", "deleting")


@dataclass(frozen=True, slots=True)
class TidyReport:
    """What was done, or would be; what was left alone although it is old; what failed; what could not be looked at."""

    done: tuple[Action, ...] = ()
    left: tuple[Action, ...] = ()
    failed: Mapping[str, NightbeamError] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def raise_failures(self) -> None:
        """Raise the error of what failed: its own, or PartialError where several things have."""
        errors = list(self.failed.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            told = "; ".join(error.what for error in errors)
            raise PartialError(f"{len(errors)} things could not be done: {told}", fix="the rest is done")

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        counts = {verb.value: sum(a.verb is verb for a in self.done) for verb in Verb if verb is not Verb.LEAVE}
        return {**counts, "left": len(self.left), "failed": len(self.failed)}

    def lines(self) -> list[dict[str, Any]]:
        """Return it as rows for people."""
        rows = [{"what": a.verb.value, "kind": a.kind, "which": a.subject, "why": a.reason} for a in self.done]
        rows += [{"what": "left alone", "kind": a.kind, "which": a.subject, "why": a.reason} for a in self.left]
        return rows + [{"what": "failed", "kind": "", "which": w, "why": e.what} for w, e in self.failed.items()]

    def to_json(self) -> dict[str, Any]:
        """Return it as an object for programs."""
        failed = {subject: error.what for subject, error in self.failed.items()}
        return {"done": self.done, "left": self.left, "failed": failed, "notes": self.notes}


def tidy_up(
    site: Site, *, now: float | None = None, dry_run: bool = False, force: bool = False, tools: Tools = TOOLS
) -> TidyReport:
    """Tidy a site up once.

    Parameters
    ----------
    site
        Where; its settings say from which age on.
    now
        Epoch seconds.
    dry_run
        Decide and do nothing.
    force
        Also where the clock seems to have jumped (`retention.check_clock`).
    tools
        What proves an image.

    Returns
    -------
    TidyReport
        One thing that fails does not stop the others; `~TidyReport.raise_failures` turns failures into an error.

    Raises
    ------
    InputError
        If a database was made by a newer nightbeam, or the clock seems to have jumped: nothing is done.
    BusyError
        If somebody else is at it.
    """
    now = time.time() if now is None else now
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(_alone(site))
        databases = open_existing(site, migrate=not dry_run)
        notes = list(databases.notes)
        look = _Look(site, databases, tools, now)
        facts = look.facts()
        actions = decide(facts, look.limits, now)
        if not force:
            try:
                check_clock(facts, actions, now)
            except InputError as error:
                if not dry_run:
                    raise
                notes.append(f"nothing would be done without --force: {error.what}")
        left = [a for a in actions if a.verb is Verb.LEAVE]
        wanted = [a for a in actions if a.verb is not Verb.LEAVE]
        if dry_run:
            return TidyReport(tuple(wanted), tuple(left), notes=tuple(notes))
        report = _carry_out(_Hand(look), wanted, left)
        report = replace(report, notes=tuple(notes))
        try:
            write_text(_record(site), json.dumps({"ended_at": now, "counts": report.counts}) + "\n")
        except StorageError as error:  # all has been done by now
            report = replace(report, notes=(*report.notes, f"what was done could not be noted: {error.what}"))
    _talk(report)
    return report


def put_back(site: Site, path: Path, *, now: float | None = None) -> Path:
    """Put a product back from quarantine; returns where it lies again. See `quarantine.restore`."""
    now = time.time() if now is None else now
    path = Path(os.path.normpath(path.absolute()))
    with _alone(site):
        products = open_existing(site, migrate=True).products
        if products is None:
            raise MissingError(f"{path} is not in quarantine: there is no products database", fix="check the settings")
        return restore(site, products, path, now=now)


def require_queue(site: Site, *, look_only: bool = False) -> None:
    """Raise MissingError unless there is a queue, which is not brought up to date if it is only looked at."""
    from nightbeam.catalog import Queue

    Queue(site.queue_url, create=False, migrate=not look_only)


def held_in_quarantine(site: Site) -> list[QuarantineRow]:
    """Return what lies in quarantine, oldest first."""
    products = open_existing(site, migrate=False).products
    return [] if products is None else products.quarantine.rows(states=("held", *_UNFINISHED))


# -- looking ----------------------------------------------------------------------------------------------------


def _alone(site: Site) -> Any:
    return sole_owner(site.state_dir / "locks" / "housekeeping.lock", what="housekeeping")


def _record(site: Site) -> Path:
    return site.state_dir / "housekeeping.json"


def _limits(site: Site) -> Limits:
    h = site.housekeeping
    days = {"ms": h.ms_days, "image": h.image_days, "mosaic": h.mosaic_days, "qa": h.qa_days, "log": h.log_days}
    return Limits(
        lease_s=site.ingest.in_progress_timeout_s,
        collecting_s=site.ingest.collecting_timeout_s,
        scratch_s=h.scratch_age_s,
        quarantine_days=h.quarantine_days,
        days=days,
    )


class _Look:
    """One look at a site: what there is, how old, and why it must stay."""

    def __init__(self, site: Site, databases: Databases, tools: Tools, now: float) -> None:
        self.site, self.tools, self.now = site, tools, now
        self.queue, self.registry, self.products = databases.queue, databases.registry, databases.products
        self.limits = _limits(site)
        self.groups = {row.group_id: row for row in (self.queue.groups() if self.queue else [])}
        self.sets = _sets(self.registry)
        self.quarantined = self.products.quarantine.rows() if self.products else []
        away = ("held", "deleting", "deleted")
        self.aside = {(row.kind, row.original_path) for row in self.quarantined if row.state in away}
        self.restored = {r.original_path: r.ended_at or 0.0 for r in self.quarantined if r.state == "restored"}

    def refresh(self, group_id: str) -> None:
        """Look again at one group and at the set that was solved on it."""
        if self.queue is not None:
            try:
                self.groups[group_id] = self.queue.group(group_id)
            except MissingError:
                self.groups.pop(group_id, None)
        if self.registry is not None:
            name = f"calset_{group_id}"
            tables = self.registry.tables(name)
            if tables:
                self.sets[name] = _SetFact(tables[0].status, tuple(Path(t.path).name for t in tables))

    def facts(self) -> Facts:
        """Return all of it as plain facts."""
        rows = list(self.groups.values())
        leases = [_lease(row, self.site.group_lock(row.group_id)) for row in rows if row.state == State.IN_PROGRESS]
        products = [*self._ms(), *self._images(), *self._mosaics(), *self._qa(), *self._logs()]
        return Facts(
            leases=tuple(leases),
            collecting=tuple(Collecting(r.group_id, r.received_at) for r in rows if r.state == State.COLLECTING),
            scratch=tuple(self._scratch([lease.group_id for lease in leases])),
            products=tuple(products),
            held=tuple(self._held()),
            last_known=self._last_known(rows),
        )

    def _scratch(self, in_progress: list[str]) -> Iterator[Scratch]:
        used: list[Path] | None = None
        for path in _half_written(self.site):
            maker, changed = scratch_maker(path.name), _newest_change(path)
            if maker is None or changed is None:
                continue
            in_use = False
            if not maker.alive and is_older(changed, self.limits.scratch_s, self.now):
                used = places_in_use() if used is None else used
                in_use = any(place == path or path in place.parents for place in used)
            groups = tuple(group for group in in_progress if group in path.name)
            yield Scratch(str(path), changed, maker.alive, in_use, groups)

    def _ms(self) -> Iterator[Product]:
        if self.products is None or self.limits.days["ms"] is None:
            return
        for row in self.products.ms_index():
            path = Path(row.path)
            if row.status in ("quarantined", "deleted") or not path.is_dir() or not inside(path, self.site.output_dir):
                continue
            since = self._since(path, row.processed_at or row.stage_updated_at)
            keep = self.why_ms_stays(row) if self._is_old("ms", since) else ""
            yield Product("ms", row.path, since, keep)

    def why_ms_stays(self, row: MsRow, *, locked: bool = False) -> str:
        """Return why a Measurement Set must stay, or nothing where it may go; the dear question comes last.

        Parameters
        ----------
        row
            What the index says of it.
        locked
            Whether the lock of its group is ours.
        """
        path = Path(row.path)
        group_id = row.group_id or path.stem
        if self.queue is None or self.registry is None or self.products is None:
            return "not all databases are there"
        if path.is_symlink():
            return "it is a symbolic link"
        if busy := self.why_group_stays(group_id, locked=locked):
            return busy
        if row.status != "done":
            return f"it has no good image: it is {row.status or 'not processed'}"
        if calibrator := self._calibrator(group_id, path):
            return calibrator
        return self._why_no_image(path)

    def why_group_stays(self, group_id: str, *, locked: bool = False) -> str:
        """Return whether somebody works, or will work, on a group; ``locked`` as in `why_ms_stays`."""
        group = self.groups.get(group_id)
        if group is not None and group.state != State.COMPLETED:
            return f"its group is {group.state}"
        if not locked and is_held(self.site.group_lock(group_id)):
            return "its group is being worked on"
        return ""

    def _calibrator(self, group_id: str, ms: Path) -> str:
        own = self.sets.get(f"calset_{group_id}")
        solved = [s for s in self.sets.values() if any(name.startswith(f"{ms.stem}_") for name in s.tables)]
        if any(s.status == "active" for s in (*solved, *([own] if own else []))):
            return "an active calibration set was solved on it"
        group = self.groups.get(group_id)
        if group is not None and group.has_calibrator and not (own and own.status == "retired"):
            return "there is a calibrator in its field"
        return ""

    def _why_no_image(self, ms: Path) -> str:
        assert self.products is not None
        stems = [image_stem_of(image) for image in self.products.images(ms_path=ms)]
        if any(("image", str(stem)) in self.aside for stem in stems):
            return ""
        why = "it has no image"
        for stem in stems:
            try:
                self.tools.finished_image(stem)
            except (InputError, MissingError, RejectedError) as error:
                why = f"it has no good image: {error.what}"
            else:
                return ""
        return why

    def _images(self) -> Iterator[Product]:
        if self.products is None or self.limits.days["image"] is None:
            return
        planned = {tile for row in self.products.mosaics(status="planned") for tile in row.tiles.splitlines()}
        for row in self.products.images():
            stem = image_stem_of(row)
            if not inside(stem, self.site.output_dir) or not item_of(self.products, "image", stem).members:
                continue
            keep = self.why_group_stays(row.group_id or stem.stem)
            yield Product(
                "image",
                str(stem),
                self._since(stem, row.created_at),
                keep or ("a planned mosaic needs it" if row.path in planned else ""),
            )

    def _mosaics(self) -> Iterator[Product]:
        if self.products is None or self.limits.days["mosaic"] is None:
            return
        for row in self.products.mosaics(status="built"):
            path = Path(row.output_path or "")
            files = [file for file in mosaic_files(row) if file.exists()]
            if files and all(inside(file, self.site.mosaic_dir()) for file in files):
                yield Product("mosaic", str(path), self._since(path, row.built_at or row.created_at))

    def _qa(self) -> Iterator[Product]:
        if self.products is None or self.limits.days["qa"] is None:
            return
        newest: dict[str, float] = {}
        for row in self.products.qa_artifacts():
            newest[row.group_id] = max(row.created_at, newest.get(row.group_id, row.created_at))
        for group_id, made in newest.items():
            path = self.site.qa_dir() / group_id
            if path.is_dir() and not path.is_symlink() and inside(path, self.site.qa_dir()):
                yield Product("qa", str(path), self._since(path, made), self.why_group_stays(group_id))

    def _logs(self) -> Iterator[Product]:
        if self.limits.days["log"] is None:
            return
        for path in _children(self.site.log("x", "x").parent.parent):
            changed = _newest_change(path)
            group = self.groups.get(path.name)
            busy = group is not None and group.state in (State.PENDING, State.IN_PROGRESS)
            if changed is not None and path.is_dir():
                yield Product("log", str(path), changed, f"its group is {group.state}" if group and busy else "")

    def _held(self) -> Iterator[Held]:
        for row in self.quarantined:
            if row.state in ("held", *_UNFINISHED):
                there = inside(Path(row.path), self.site.quarantine_dir())
                keep = "" if there else f"it does not lie in {self.site.quarantine_dir()}"
                yield Held(row.path, row.kind, row.state, row.moved_at, row.size_bytes, keep)

    def _since(self, original: Path, made: float | None) -> float | None:
        """Return since when something has been there: it was made, or put back."""
        return max((t for t in (made, self.restored.get(str(original))) if t is not None), default=None)

    def _is_old(self, kind: str, since: float | None) -> bool:
        days = self.limits.days[kind]
        return is_older(since, None if days is None else days * SECONDS_PER_DAY, self.now)

    def _last_known(self, rows: list[GroupRow]) -> float | None:
        try:
            return float(json.loads(_record(self.site).read_text())["ended_at"])
        except (OSError, ValueError, KeyError, TypeError):
            times = [max(row.last_update, row.heartbeat_at or 0.0) for row in rows]
            times += [row.moved_at for row in self.quarantined]
            if self.products is not None:
                times += [row.stage_updated_at or row.processed_at or 0.0 for row in self.products.ms_index(limit=1)]
                times += [row.created_at for row in self.products.images(limit=1)]
            return max(times, default=None)


def _lease(row: GroupRow, lock: Path) -> Lease:
    alive = True if is_alive(row) else (False if is_dead(row, lock=lock) else None)
    return Lease(row.group_id, row.owner or "an unknown worker", row.heartbeat_at or row.last_update, alive)


@dataclass(frozen=True, slots=True)
class _SetFact:
    """A calibration set: whether it is in use, and the names of its tables."""

    status: str
    tables: tuple[str, ...]


def _sets(registry: Registry | None) -> dict[str, _SetFact]:
    if registry is None:
        return {}
    names: dict[str, list[str]] = {}
    for table in registry.tables():
        names.setdefault(table.set_name, []).append(Path(table.path).name)
    return {line.set: _SetFact(line.status, tuple(names.get(line.set, ()))) for line in registry.sets()}


def _half_written(site: Site) -> Iterator[Path]:
    """Yield what lies in the scratch directory, and what is called a part file where products are written."""
    yield from _children(site.scratch_dir)
    out, aside = site.output_dir, site.quarantine_dir()
    days = [path for path in _children(aside) if path.is_dir() and not path.is_symlink()]
    for root in dict.fromkeys((out, out / "caltables", out / "images", site.mosaic_dir(), aside, *days)):
        yield from (path for path in _children(root) if path.name.startswith(".") and path.name.endswith(".part"))


def _children(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _newest_change(path: Path) -> float | None:
    """Return when something last changed, or anything below it; None if it is gone. Links are not followed."""
    try:
        newest = path.lstat().st_mtime
        if path.is_dir() and not path.is_symlink():
            for parent, _, names in os.walk(path):
                newest = max(newest, Path(parent).lstat().st_mtime)
                newest = max([newest, *((Path(parent) / name).lstat().st_mtime for name in names)])
    except FileNotFoundError:
        return None
    return newest


# -- doing ------------------------------------------------------------------------------------------------------


class _Hand:
    """Does what was decided, each thing after another look at it; what has changed meanwhile is left alone."""

    def __init__(self, look: _Look) -> None:
        self.look = look
        self.rows = {row.path: row for row in look.quarantined}

    def do(self, action: Action) -> bool:
        """Return whether it was done."""
        if action.verb is Verb.TAKE_BACK:
            return self._take_back(action)
        if action.verb is Verb.EXPIRE:
            assert self.look.queue is not None
            return self.look.queue.expire(self.look.groups[action.subject], now=self.look.now)
        if action.verb is Verb.REMOVE:
            return self._remove_scratch(Path(action.subject))
        if action.verb is Verb.PUT_ASIDE:
            return self._put_aside(action)
        if action.kind == "log":
            return self._remove_log(Path(action.subject))
        return self._end(action)

    def _take_back(self, action: Action) -> bool:
        assert self.look.queue is not None
        row = self.look.groups[action.subject]
        return self.look.queue.take_back(row, action.reason, now=self.look.now)

    def _remove_scratch(self, path: Path) -> bool:
        maker, changed = scratch_maker(path.name), _newest_change(path)
        old = is_older(changed, self.look.limits.scratch_s, self.look.now)
        if not old or maker is None or maker.alive or self._is_worked_on(path.name):
            return False
        with storage_errors(path):
            remove(path)
        return True

    def _remove_log(self, path: Path) -> bool:
        days = self.look.limits.days["log"]
        changed = _newest_change(path)
        if days is None or not is_older(changed, days * SECONDS_PER_DAY, self.look.now):
            return False
        with storage_errors(path):
            remove(path)
        return True

    def _is_worked_on(self, name: str) -> bool:
        queue = self.look.queue
        return queue is not None and any(r.group_id in name for r in queue.groups(state=State.IN_PROGRESS))

    def _put_aside(self, action: Action) -> bool:
        products = self.look.products
        assert products is not None
        original = Path(action.subject)
        group_id = self._group_of(action.kind, original)
        lock = self.look.site.group_lock(group_id)
        try:
            with sole_owner(lock, what=f"group {group_id}"):
                # Another look, now that nobody else can begin: somebody may have taken the group meanwhile.
                self.look.refresh(group_id)
                if action.kind == "ms":
                    row = products.ms(original)
                    stays = row is None or bool(self.look.why_ms_stays(row, locked=True))
                else:
                    stays = bool(self.look.why_group_stays(group_id, locked=True))
                item = item_of(products, action.kind, original)
                if stays or not item.members:
                    return False
                put_aside(self.look.site, products, item, reason=action.reason, now=self.look.now)
                return True
        finally:
            remove_free_lock(lock)

    def _group_of(self, kind: str, original: Path) -> str:
        if kind == "ms" and self.look.products is not None:
            row = self.look.products.ms(original)
            if row is not None and row.group_id:
                return row.group_id
        return original.name if kind == "qa" else original.stem

    def _end(self, action: Action) -> bool:
        products = self.look.products
        assert products is not None
        row = self.rows[action.subject]
        act = settle if action.verb is Verb.SETTLE else purge
        act(self.look.site, products, row, now=self.look.now)
        return True


def _carry_out(hand: _Hand, wanted: list[Action], left: list[Action]) -> TidyReport:
    done: list[Action] = []
    errors: dict[str, NightbeamError] = {}
    for action in wanted:
        try:
            if hand.do(action):
                done.append(action)
            else:
                left.append(replace(action, verb=Verb.LEAVE, reason=f"{action.reason}; it has changed meanwhile"))
        except BusyError as error:
            left.append(replace(action, verb=Verb.LEAVE, reason=error.what))
        except NightbeamError as error:
            errors[action.subject] = error
        except OSError as error:
            errors[action.subject] = StorageError(f"cannot {action.verb} {action.subject}: {error.strerror or error}")
    return TidyReport(tuple(done), tuple(left), errors)


def _talk(report: TidyReport) -> None:
    for note in report.notes:
        logger.info("%s", note)
    for action in report.done:
        logger.info("%s %s %s: %s", action.verb, action.kind, action.subject, action.reason)
    for action in report.left:
        logger.log(
            logging.WARNING if action.kind == "lease" else logging.INFO,
            "left alone: %s %s: %s", action.kind, action.subject, action.reason,
        )  # fmt: skip
    for subject, error in report.failed.items():
        logger.error("%s: %s", subject, error.what)
