"""Tidying up: what dead runs left, groups that wait for ever, products that are too old.

It looks, decides (`retention.decide`) and carries out; each thing is looked at again when its turn comes. What the
ingest does every half minute on its own account is done here by the same functions, as a second net where no ingest
runs: taking back the leases of dead owners, giving up groups that stay incomplete (an hour later than a scan does, and
not while the input directory is empty), removing the scratch of dead runs. On a machine whose clock was set nothing is
taken back or given up for its age.
Only housekeeping knows the rest: scratch of other makers, retention, and the quarantine.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nightbeam.catalog.model import GroupRow, QuarantineRow, State
from nightbeam.contimg.clock import ClockLook, look_at_clock
from nightbeam.contimg.databases import Databases, open_existing
from nightbeam.contimg.mosaics import hold_plan, output_stem
from nightbeam.contimg.owners import is_alive, is_dead, places_in_use, scratch_maker
from nightbeam.contimg.quarantine import (
    WHOLE,
    held_at,
    image_rows,
    image_stem_of,
    inside,
    item_of,
    left_behind,
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
from nightbeam.contimg.room import full_disk, no_input
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
    from nightbeam.catalog import ImageRow, MosaicRow, MsRow, Products, Registry

#: So much longer a group collects than the scan lets it, which looks at the directory before it gives one up.
_AFTER_SCAN_S = 3600.0

__all__ = ["TidyReport", "held_in_quarantine", "put_back", "require_queue", "tidy_up"]

logger = logging.getLogger(__name__)

_UNFINISHED = ("moving", "restoring", "deleting")
#: What one product may be at fault with, on disk or in its row; it must not keep us from the others.
_FAULTS = (NightbeamError, OSError, ValueError, AttributeError, TypeError)


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
    real = now is None
    present = time.time if now is None else partial(float, now)  # by the real one, a long copy takes its time
    now = present()
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(_alone(site))
        databases = open_existing(site, migrate=not dry_run)
        clock = look_at_clock(databases.queue) if real and databases.queue is not None and not dry_run else None
        look = _Look(site, databases, tools, now)
        look.limits = _as_sure(look.limits, site, clock)
        facts = look.facts()
        notes = [*databases.notes, *look.notes]
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
        report = _carry_out(_Hand(look, present), wanted, left)
        report = replace(report, notes=tuple(notes))
        try:
            write_text(_record(site), json.dumps({"ended_at": now, "counts": report.counts}) + "\n")
        except StorageError as error:  # all has been done by now
            report = replace(report, notes=(*report.notes, f"what was done could not be noted: {error.what}"))
    _talk(report)
    return report


def put_back(site: Site, path: Path, *, now: float | None = None) -> Path:
    """Put a product back from quarantine; returns where it lies again.

    Parameters
    ----------
    site
        Where.
    path
        Where it lies in quarantine, or where it lay before: then the last that was put aside from there.
    now
        Epoch seconds. Its age is counted from here on.

    Raises
    ------
    MissingError, InputError, StorageError
        As `quarantine.held_at` and `quarantine.restore`.
    BusyError
        If somebody works, or is about to work, on its group or mosaic.
    """
    now = time.time() if now is None else now
    path = Path(os.path.normpath(path.absolute()))
    with _alone(site):
        databases = open_existing(site, migrate=True)
        products = databases.products
        if products is None:
            raise MissingError(f"{path} is not in quarantine: there is no products database", fix="check the settings")
        row = held_at(products, path)
        with _holding(site, products, row.kind, Path(row.original_path)) as group_id:
            if databases.queue is not None and group_id is not None:
                with suppress(MissingError):
                    state = databases.queue.group(group_id).state
                    if state in (State.PENDING, State.IN_PROGRESS):
                        raise BusyError(f"group {group_id} is {state}", fix="wait until it has ended")
            return restore(site, products, row, now=now)


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


@contextmanager
def _holding(site: Site, products: Products, kind: str, original: Path) -> Iterator[str | None]:
    """Keep all others of this machine away from a product; yields its group, or None for a mosaic's.

    Raises
    ------
    BusyError
        Naming who is at it.
    """
    plan = _plan_of(products, kind, original)
    if plan is not None:
        with ExitStack() as stack:
            stack.enter_context(hold_plan(site, plan))
            if kind == "leftover":  # another plan may take its name
                stem = output_stem(original)
                lock = stem.with_name(f".{stem.name}.lock")
                stack.callback(remove_free_lock, lock)
                stack.enter_context(sole_owner(lock, what=f"the mosaic {stem.name}"))
            yield None
        return
    group_id = _group_of(products, kind, original)
    lock = site.group_lock(group_id)
    try:
        with sole_owner(lock, what=f"group {group_id}"):
            yield group_id
    finally:
        remove_free_lock(lock)


def _plan_of(products: Products, kind: str, original: Path) -> str | None:
    """Return the plan of a mosaic, or of the mosaic whose figures these are; None for what is a group's."""
    if kind == "qa":
        found = products.mosaic(original.name)
        return None if found is None else found.plan or found.name
    if kind == "mosaic":
        rows = [row for row in products.mosaics() if row.output_path == str(original)]
        return next((row.plan or row.name for row in rows), output_stem(original).name)
    if kind == "leftover":
        rows = [row for row in products.mosaics() if original in left_behind(row)]
        return next((row.plan or row.name for row in rows), output_stem(original).name)
    return None


def _group_of(products: Products, kind: str, original: Path) -> str:
    if kind == "ms":
        row = products.ms(original)
        return (row.group_id if row is not None else None) or original.stem
    if kind == "image":
        named = [image.group_id for image in image_rows(products, original) if image.group_id]
        return named[0] if named else original.stem
    return original.name


def _record(site: Site) -> Path:
    return site.state_dir / "housekeeping.json"


def _limits(site: Site) -> Limits:
    h = site.housekeeping
    days = {"ms": h.ms_days, "image": h.image_days, "mosaic": h.mosaic_days, "qa": h.qa_days, "log": h.log_days}
    days["leftover"] = h.leftover_days
    return Limits(
        lease_s=site.ingest.in_progress_timeout_s,
        collecting_s=site.ingest.give_up_s + _AFTER_SCAN_S,
        scratch_s=h.scratch_age_s,
        quarantine_days=h.quarantine_days,
        days=days,
    )


def _as_sure(limits: Limits, site: Site, clock: ClockLook | None) -> Limits:
    """Return the limits without those of ages that nobody can tell now."""
    if clock is not None and clock.step_s:
        logger.warning("the clock was set by %+.0f s; %d groups that collect keep their age", clock.step_s, clock.moved)
    if clock is not None and clock.stepped:  # the scan knows what to make of it
        limits = replace(limits, lease_s=math.inf, collecting_s=math.inf)
    return replace(limits, collecting_s=math.inf) if no_input(site) else limits


class _Look:
    """One look at a site: what there is, how old, and why it must stay."""

    def __init__(self, site: Site, databases: Databases, tools: Tools, now: float) -> None:
        self.site, self.tools, self.now = site, tools, now
        self.queue, self.registry, self.products = databases.queue, databases.registry, databases.products
        self.limits = _limits(site)
        self.notes: list[str] = []
        self.groups = {row.group_id: row for row in (self.queue.groups() if self.queue else [])}
        self.sets = _Sets(self.registry)
        self.quarantined = self.products.quarantine.rows() if self.products else []
        away = ("held", "deleting", "deleted")
        self.aside = {(row.kind, row.original_path) for row in self.quarantined if row.state in away}
        self.restored = {r.original_path: r.ended_at or 0.0 for r in self.quarantined if r.state == "restored"}
        self.unfinished = {(r.kind, r.original_path) for r in self.quarantined if r.state in _UNFINISHED}

    def again(self, kind: str, original: Path, group_id: str | None) -> Product | None:
        """Look again at one product, for who holds it; None where there is nothing of it, or its move is unfinished."""
        assert self.products is not None
        if group_id is not None:
            self.refresh(group_id)
        for row in self.products.quarantine.rows(original=original):
            if row.kind == kind and row.state in _UNFINISHED:
                return None
            if row.kind == kind and row.state == "restored":
                self.restored[row.original_path] = row.ended_at or 0.0
        if kind == "ms":
            found = self.products.ms(original)
            return None if found is None else self._ms_product(found, locked=True)
        if kind == "image":
            return self._image_product(original, image_rows(self.products, original), self._planned(), locked=True)
        if kind == "mosaic":
            rows = [row for row in self.products.mosaics(status="built") if row.output_path == str(original)]
            return self._mosaic_product(rows[0]) if rows else None
        if kind == "leftover":
            return self.leftover(original, self.products.mosaics())
        made = max((row.created_at for row in self.products.qa_artifacts(original.name)), default=None)
        return None if made is None else self._qa_product(original.name, made, locked=True)

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
                self.sets.put(name, tables[0].status, [Path(t.path).name for t in tables])

    def facts(self) -> Facts:
        """Return all of it as plain facts."""
        rows = list(self.groups.values())
        leases = [_lease(row, self.site.group_lock(row.group_id)) for row in rows if row.state == State.IN_PROGRESS]
        products = [*self._ms(), *self._images(), *self._mosaics(), *self._leftovers(), *self._qa(), *self._logs()]
        products = [p for p in products if (p.kind, p.path) not in self.unfinished]
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
        for path in self._half_written():
            maker, changed = scratch_maker(path.name), self._changed(path)
            if maker is None or changed is None:
                continue
            in_use = False
            if not maker.alive and is_older(changed, self.limits.scratch_s, self.now):
                used = places_in_use() if used is None else used
                in_use = _is_used(path, used)
            groups = tuple(group for group in in_progress if group in path.name)
            yield Scratch(str(path), changed, maker.alive, in_use, groups)

    def _half_written(self) -> Iterator[Path]:
        """Yield what lies in the scratch directories, and what is called a part file where products are written."""
        for scratch in (self.site.scratch_dir, *self.site.ram_places()):
            yield from self._children(scratch)
        out, aside = self.site.output_dir, self.site.quarantine_dir()
        days = [path for path in self._children(aside) if path.is_dir() and not path.is_symlink()]
        for root in dict.fromkeys((out, out / "caltables", out / "images", self.site.mosaic_dir(), aside, *days)):
            yield from (p for p in self._children(root) if p.name.startswith(".") and p.name.endswith(".part"))

    def _children(self, directory: Path) -> list[Path]:
        try:
            return sorted(directory.iterdir()) if directory.is_dir() else []
        except OSError as error:
            self.notes.append(f"cannot look into {directory}: {error.strerror or error}")
            return []

    def _changed(self, path: Path) -> float | None:
        try:
            return _newest_change(path)
        except OSError as error:
            self.notes.append(f"cannot look at {path}: {error.strerror or error}")
            return None

    def _ms(self) -> Iterator[Product]:
        if self.products is None or self.limits.days["ms"] is None:
            return
        for row in self.products.ms_index():
            if product := self._ms_product(row):
                yield product

    def _ms_product(self, row: MsRow, *, locked: bool = False) -> Product | None:
        path = Path(row.path)
        since = self._since(path, row.processed_at or row.stage_updated_at)

        def look() -> Product | None:
            gone = row.status in ("quarantined", "deleted") or not path.is_dir()
            if gone or not inside(path, self.site.output_dir):
                return None
            keep = self.why_ms_stays(row, locked=locked) if self.is_old("ms", since) else ""
            return Product("ms", row.path, since, keep)

        return _safely("ms", path, since, look)

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
        if group is not None and group.owed is not None:
            return f"its group is owed its {group.owed}"
        if not locked and is_held(self.site.group_lock(group_id)):
            return "its group is being worked on"
        return ""

    def _calibrator(self, group_id: str, ms: Path) -> str:
        own = self.sets.status.get(f"calset_{group_id}")
        if own == "active" or "active" in self.sets.solved_on(ms.stem):
            return "an active calibration set was solved on it"
        group = self.groups.get(group_id)
        if group is None or not group.has_calibrator or own == "retired":
            return ""
        if own is None and _brightest(group) < self.site.calibrate.min_flux_jy:
            return ""  # nobody solves on it
        return "there is a calibrator in its field"

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
            except OSError as error:
                why = f"its image cannot be read: {error.strerror or error}"
            else:
                return ""
        return why

    def _planned(self) -> set[str]:
        """Return the tiles that planned mosaics need."""
        assert self.products is not None
        return {tile for row in self.products.mosaics(status="planned") for tile in row.tiles.splitlines()}

    def _images(self) -> Iterator[Product]:
        if self.products is None or self.limits.days["image"] is None:
            return
        planned = self._planned()
        by_stem: dict[Path, list[ImageRow]] = defaultdict(list)
        for row in self.products.images():
            by_stem[image_stem_of(row)].append(row)
        for stem, rows in by_stem.items():
            if product := self._image_product(stem, rows, planned):
                yield product

    def _image_product(
        self, stem: Path, rows: Sequence[ImageRow], planned: set[str], *, locked: bool = False
    ) -> Product | None:
        since = self._since(stem, max((row.created_at for row in rows), default=None))

        def look() -> Product | None:
            assert self.products is not None
            if not self.is_old("image", since):  # nothing more is asked of it
                return Product("image", str(stem), since) if any(Path(r.path).exists() for r in rows) else None
            if not inside(stem, self.site.output_dir) or not item_of(self.products, "image", stem, rows).members:
                return None
            named = [row.group_id for row in rows if row.group_id]
            keep = self.why_group_stays(named[0] if named else stem.stem, locked=locked)
            if any(row.path in planned for row in rows):
                keep = keep or "a planned mosaic needs it"
            return Product("image", str(stem), since, keep)

        return _safely("image", stem, since, look)

    def _mosaics(self) -> Iterator[Product]:
        if self.products is None or self.limits.days["mosaic"] is None:
            return
        for row in self.products.mosaics(status="built"):
            if product := self._mosaic_product(row):
                yield product

    def _mosaic_product(self, row: MosaicRow) -> Product | None:
        path = Path(row.output_path or "")
        since = self._since(path, row.built_at or row.created_at)

        def look() -> Product | None:
            files = [file for file in mosaic_files(row) if file.exists()]
            if not files or not all(inside(file, self.site.mosaic_dir()) for file in files):
                return None
            apart = any(file.parent != path.parent for file in files)
            return Product("mosaic", str(path), since, "its files lie in several places" if apart else "")

        return _safely("mosaic", path, since, look)

    def _leftovers(self) -> Iterator[Product]:
        if self.products is None or self.limits.days["leftover"] is None:
            return
        rows = self.products.mosaics()
        for path in dict.fromkeys(path for row in rows for path in left_behind(row)):
            if product := self.leftover(path, rows):
                yield product

    def leftover(self, path: Path, rows: Sequence[MosaicRow]) -> Product | None:
        """Return what there is of a mosaic that an earlier plan left behind; None for nothing."""

        def look() -> Product | None:
            assert self.products is not None
            members = item_of(self.products, "leftover", path).members
            if not members:
                return None
            since = self._since(path, max(member.lstat().st_mtime for member in members))
            keep = self._why_leftover_stays(path, members, rows) if self.is_old("leftover", since) else ""
            return Product("leftover", str(path), since, keep)

        return _safely("leftover", path, None, look)

    def _why_leftover_stays(self, path: Path, members: Sequence[Path], rows: Sequence[MosaicRow]) -> str:
        assert self.products is not None
        stem, there = output_stem(path), {_real(member) for member in members}
        if any(member.is_symlink() or not inside(member, self.site.mosaic_dir()) for member in members):
            return f"it does not lie in {self.site.mosaic_dir()}"
        for row in rows:
            if not there.isdisjoint(_real(file) for file in mosaic_files(row)):
                return f"it is the mosaic {row.name}'s now"
            if row.status != "built" and _real(self.site.mosaic_dir() / row.name) == _real(stem):
                return f"the mosaic {row.name} will be made there"
        if any(_real(Path(image.path)) in there for image in self.products.images(beginning=stem)):
            return "it is among the images"
        return ""

    def _qa(self) -> Iterator[Product]:
        if self.products is None or self.limits.days["qa"] is None:
            return
        newest: dict[str, float] = {}
        for row in self.products.qa_artifacts():
            newest[row.group_id] = max(row.created_at, newest.get(row.group_id, row.created_at))
        for name, made in newest.items():
            if product := self._qa_product(name, made):
                yield product

    def _qa_product(self, name: str, made: float, *, locked: bool = False) -> Product | None:
        path = self.site.qa_dir() / name
        since = self._since(path, made)

        def look() -> Product | None:
            if not path.is_dir() or path.is_symlink() or not inside(path, self.site.qa_dir()):
                return None
            return Product("qa", str(path), since, self.why_group_stays(name, locked=locked))

        return _safely("qa", path, since, look)

    def _logs(self) -> Iterator[Product]:
        if self.limits.days["log"] is None:
            return
        for path in self._children(self.site.log("x", "x").parent.parent):
            changed = self._changed(path)
            group = self.groups.get(path.name)
            busy = group is not None and group.state in (State.PENDING, State.IN_PROGRESS)
            if changed is not None and path.is_dir():
                yield Product("log", str(path), changed, f"its group is {group.state}" if group and busy else "")

    def _held(self) -> Iterator[Held]:
        for row in self.quarantined:
            if row.state in ("held", *_UNFINISHED):
                keep = ""
                try:
                    if not inside(Path(row.path), self.site.quarantine_dir()):
                        keep = f"it does not lie in {self.site.quarantine_dir()}"
                except OSError as error:
                    keep = f"it cannot be looked at: {error.strerror or error}"
                yield Held(row.path, row.kind, row.state, row.moved_at, row.size_bytes, keep)

    def _since(self, original: Path, made: float | None) -> float | None:
        """Return since when something has been there: it was made, or put back."""
        return max((t for t in (made, self.restored.get(str(original))) if t is not None), default=None)

    def is_old(self, kind: str, since: float | None) -> bool:
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


def _safely(kind: str, path: Path, since: float | None, look: Callable[[], Product | None]) -> Product | None:
    """Return what a look says of a product; one at fault stays, and says why."""
    try:
        return look()
    except _FAULTS as error:
        return Product(kind, str(path), since, f"it cannot be looked at: {getattr(error, 'what', None) or error}")


class _Sets:
    """Calibration sets: the state of each, and what they were solved on."""

    def __init__(self, registry: Registry | None) -> None:
        self.status: dict[str, str] = {}
        self._on: dict[str, set[str]] = defaultdict(set)
        if registry is None:
            return
        names: dict[str, list[str]] = {}
        for table in registry.tables():
            names.setdefault(table.set_name, []).append(Path(table.path).name)
        for line in registry.sets():
            self.put(line.set, line.status, names.get(line.set, []))

    def put(self, name: str, status: str, tables: Sequence[str]) -> None:
        """Note what a set is, and the names of its tables: ``STEM_FIELD_KIND``, where any part may hold a ``_``."""
        self.status[name] = status
        for table in tables:
            parts = table.split("_")
            for n in range(1, len(parts)):
                self._on["_".join(parts[:n])].add(name)

    def solved_on(self, stem: str) -> set[str]:
        """Return the states of the sets that were solved on the Measurement Set of that name."""
        return {self.status[name] for name in self._on.get(stem, ())}


def _brightest(group: GroupRow) -> float:
    """Return the flux of the brightest calibrator in a group's field as the beam weighs it, Jy; infinite if unknown."""
    try:
        return max(float(match["weighted_flux"]) for match in json.loads(group.calibrators or ""))
    except (ValueError, TypeError, KeyError):
        return math.inf


def _real(path: Path) -> Path:
    """Return where a name truly lies, whatever links lead there; what it names is not followed."""
    return path.parent.resolve() / path.name


def _is_used(path: Path, places: Sequence[Path]) -> bool:
    """Return whether one of some real places is a path or lies below it, also where links lead to the path."""
    real = _real(path)
    return any(place == real or real in place.parents for place in places)


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

    def __init__(self, look: _Look, clock: Callable[[], float]) -> None:
        self.look, self.clock = look, clock

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
        full = full_disk(self.look.site)  # which has ended its owner
        why = f"{action.reason}; no space left ({full})" if full else action.reason
        return self.look.queue.take_back(row, why, counted=not full, now=self.look.now)

    def _remove_scratch(self, path: Path) -> bool:
        maker, changed = scratch_maker(path.name), _newest_change(path)
        old = is_older(changed, self.look.limits.scratch_s, self.look.now)
        if not old or maker is None or maker.alive or self._is_worked_on(path.name):
            return False
        if _is_used(path, places_in_use()):
            raise BusyError(f"a process uses {path}", fix="it goes when nobody does")
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
        look, products, original = self.look, self.look.products, Path(action.subject)
        assert products is not None
        with _holding(look.site, products, action.kind, original) as group_id:
            # Another look, now that nobody else can begin: somebody may have made it anew meanwhile.
            product = look.again(action.kind, original, group_id)
            if product is None or product.keep or not look.is_old(action.kind, product.since):
                return False
            item = item_of(products, action.kind, original)
            if not item.members:
                return False
            put_aside(look.site, products, item, reason=action.reason, now=self.clock())
            return True

    def _end(self, action: Action) -> bool:
        look, products = self.look, self.look.products
        assert products is not None
        row = products.quarantine.row(Path(action.subject))
        if row is None:
            return False
        if action.verb is Verb.SETTLE:
            return row.state in ("moving", "restoring") and self._settle(products, row)
        days = look.limits.quarantine_days
        old = days is not None and is_older(row.moved_at, days * SECONDS_PER_DAY, look.now)
        if row.state != "deleting" and not (row.state == "held" and old):
            return False
        purge(look.site, products, row, now=self.clock())
        return True

    def _settle(self, products: Products, row: QuarantineRow) -> bool:
        original = Path(row.original_path)
        with _holding(self.look.site, products, row.kind, original) as group_id:
            moves = row.state == "restoring" or row.kind not in WHOLE
            if moves and group_id is not None and (why := self._why_busy(group_id)):
                raise BusyError(f"somebody was stopped while {row.state} it; {why}", fix="wait until it has ended")
            settle(self.look.site, products, row, now=self.clock(), follows=self._follows(products, row))
        return True

    def _follows(self, products: Products, row: QuarantineRow) -> bool:
        if row.kind != "leftover":
            return _is_the_rest(products, row)
        found = self.look.leftover(Path(row.original_path), products.mosaics())
        return found is not None and not found.keep

    def _why_busy(self, group_id: str) -> str:
        self.look.refresh(group_id)
        return self.look.why_group_stays(group_id, locked=True)


def _is_the_rest(products: Products, row: QuarantineRow) -> bool:
    """Return whether what lies at the place of a product that was moved in part belongs to it: nobody made it anew."""
    original = Path(row.original_path)
    if row.kind == "image":
        images = image_rows(products, original)
        sets = [products.ms(Path(image.ms_path)) for image in images]
        at_rest = all(ms is None or ms.status in ("done", "quarantined", "deleted") for ms in sets)
        return at_rest and all(image.created_at < row.moved_at for image in images)
    if row.kind == "mosaic":
        mosaics = [mosaic for mosaic in products.mosaics() if mosaic.output_path == str(original)]
        return all(m.status == "built" and (m.built_at or m.created_at) < row.moved_at for m in mosaics)
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
