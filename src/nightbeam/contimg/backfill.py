"""Imaging what was missed: Measurement Sets that have no good image.

A set that came through the queue goes through it again, so that nobody works twice: the group is claimed, and what
its receipts say is finished and still good is kept. One that the queue does not know is calibrated with the set of
its time, imaged, recorded and judged here, under the same lock; it is not solved on.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nightbeam import __version__
from nightbeam.catalog.model import GroupRow, MsRow, Owner, Stage, State
from nightbeam.contimg.databases import Databases, open_existing
from nightbeam.contimg.guard import Plan, at_work, plan_step
from nightbeam.contimg.model import ConvertReceipt
from nightbeam.contimg.owners import is_dead, owned_scratch, this_process
from nightbeam.contimg.provenance import note_image, note_ms, note_ms_state, working_as
from nightbeam.contimg.quality import calibration_use, forget_quality, record_quality
from nightbeam.contimg.quarantine import image_stem_of
from nightbeam.contimg.run import run_group
from nightbeam.contimg.site import Site
from nightbeam.contimg.steps import chosen_set, claim_group, image_columns, provenance_of, require_good
from nightbeam.contimg.tools import TOOLS, Tools
from nightbeam.core.errors import (
    BusyError,
    InputError,
    MissingError,
    NightbeamError,
    PartialError,
    RejectedError,
    UnavailableError,
)
from nightbeam.core.files import directory_bytes
from nightbeam.core.keys import GroupId
from nightbeam.core.locks import sole_owner
from nightbeam.core.times import JD_OF_MJD_ZERO, SECONDS_PER_DAY, datetime_from_mjd

if TYPE_CHECKING:
    from nightbeam.catalog import CalSet, ImageRow

__all__ = [
    "BackfillOutcome",
    "BackfillReport",
    "Unimaged",
    "backfill",
    "backfill_one",
    "find_unimaged",
    "first_to_do",
    "groups_ahead",
    "outcome_of_error",
    "parse_night",
]

logger = logging.getLogger(__name__)

#: Of `Unimaged.state` and `BackfillOutcome.state`.
TO_DO, LEFT = "to do", "left alone"
_HANDED_OUT = "its group is pending, and was handed out: that run will do it"
_NOT_ANY_MORE = "it needs no image any more"
IMAGED, WAITING, FAILED = "imaged", "waiting_for_gains", "failed"


@dataclass(frozen=True, slots=True)
class Unimaged:
    """A Measurement Set that has no good image.

    Attributes
    ----------
    ms
        Its path.
    group_id
        Of its start time; None where it cannot be read.
    state
        ``to do``, or ``left alone`` where somebody else has it or nothing can be done now.
    why
        Why it has no good image, or why it is left alone.
    through_queue
        Whether it is the queue's: done as a group.
    """

    ms: str
    group_id: str | None
    state: str
    why: str
    through_queue: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        return self.group_id or Path(self.ms).name


@dataclass(frozen=True, slots=True)
class BackfillOutcome:
    """What became of one: ``imaged``, ``waiting_for_gains``, ``left alone`` or ``failed``."""

    group_id: str | None
    state: str
    ms: str
    why: str = ""
    image: str | None = None


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """What became of all."""

    outcomes: tuple[BackfillOutcome, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, outcomes: list[BackfillOutcome]) -> BackfillReport:
        """Return the report of some outcomes."""
        names = (IMAGED, WAITING, LEFT, FAILED)
        return cls(tuple(outcomes), {name: sum(o.state == name for o in outcomes) for name in names})

    def raise_failures(self) -> None:
        """Raise PartialError, naming them, where some have failed."""
        failed = [o for o in self.outcomes if o.state == FAILED]
        if failed:
            tried = sum(o.state != LEFT for o in self.outcomes)
            named = "; ".join(f"{o.group_id or Path(o.ms).name}: {o.why}" for o in failed)
            raise PartialError(f"{len(failed)} of {tried} Measurement Sets failed: {named}", fix="the rest is done")


def parse_night(text: str) -> date:
    """Return the UTC day that ``text`` names.

    Raises
    ------
    InputError
        If it is not written like 2025-10-02.
    """
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError as error:
        raise InputError(f"{text!r} is not a night", fix="write the UTC day like 2025-10-02") from error


def find_unimaged(
    site: Site,
    directory: Path | None = None,
    *,
    night: date | None = None,
    tools: Tools = TOOLS,
    look_only: bool = False,
    now: float | None = None,
) -> list[Unimaged]:
    """Return the Measurement Sets that have no good image, in the order of their data.

    Looked at are those of the index and, on disk, the directories ``*.ms`` at any depth; neither what lies inside
    of one, nor in quarantine, in scratch or in hidden directories. A set that was put aside needs no image, nor
    does one whose image was put aside.

    Parameters
    ----------
    site
        Where.
    directory
        Only those below it; by default those below the site's output directory, and all of the index.
    night
        Only those that begin on this UTC day.
    tools
        What reads and proves.
    look_only
        Make and migrate no database.
    now
        Epoch seconds.

    Raises
    ------
    MissingError
        If there is no such directory.
    InputError
        If it lies in quarantine or in scratch.
    """
    if directory is not None and not directory.is_dir():
        raise MissingError(f"no directory {directory}", fix="check the name")
    return _Search(site, _databases(site, look_only=look_only), tools, now or time.time()).find(directory, night)


def first_to_do(found: list[Unimaged], limit: int | None) -> list[Unimaged]:
    """Return no more than so many that are to be done, and all that are left alone."""
    chosen = {one.ms for one in [one for one in found if one.state == TO_DO][:limit]}
    return [one for one in found if one.state == LEFT or one.ms in chosen]


def groups_ahead(site: Site) -> int:
    """Return how many groups could be worked on now and are not: new data, which come before what was missed."""
    pending = site.queue().groups(state=State.PENDING)
    return sum(row.processing_stage != Stage.WAITING_FOR_GAINS for row in pending)


def backfill(
    site: Site,
    wanted: list[Unimaged],
    *,
    out_dir: Path | None = None,
    owner: Owner | None = None,
    tools: Tools = TOOLS,
    on_each: Callable[[BackfillOutcome], None] = lambda _outcome: None,
) -> BackfillReport:
    """Image Measurement Sets one after the other; one that fails does not stop the others.

    Parameters
    ----------
    site, wanted
        Where, and which; those to be left alone are.
    out_dir
        Where images of sets go that the queue does not know; by default where all images go.
    owner
        Who does it; this process by default.
    tools
        What works on the data.
    on_each
        Told of each when it is over.

    Returns
    -------
    BackfillReport
        Its `~BackfillReport.raise_failures` turns failures into an error.
    """
    outcomes = []
    for one in wanted:
        try:
            outcome = backfill_one(site, one, out_dir=out_dir, owner=owner, tools=tools)
        except Exception as error:
            outcome = outcome_of_error(one, error)
        outcomes.append(outcome)
        on_each(outcome)
    return BackfillReport.of(outcomes)


def outcome_of_error(one: Unimaged, error: BaseException) -> BackfillOutcome:
    """Return the outcome of a set that ended with an error."""
    if isinstance(error, NightbeamError):
        return BackfillOutcome(one.group_id, FAILED, one.ms, error.what)
    logger.error("%s", one.ms, exc_info=error)
    return BackfillOutcome(one.group_id, FAILED, one.ms, f"{type(error).__name__}: {error}")


def backfill_one(
    site: Site, one: Unimaged, *, out_dir: Path | None = None, owner: Owner | None = None, tools: Tools = TOOLS
) -> BackfillOutcome:
    """Image one Measurement Set; parameters as in `backfill`.

    Raises
    ------
    NightbeamError
        What it failed with.
    """
    if one.state == LEFT:
        return BackfillOutcome(one.group_id, LEFT, one.ms, one.why)
    if one.group_id is None:
        raise InputError(f"{one.ms}: {one.why}", fix="move it away if it is no Measurement Set")
    if one.through_queue:
        return _through_queue(site, one, one.group_id, owner or this_process(), tools)
    with working_as(owner.name if owner else None):
        return _by_itself(site, one, one.group_id, out_dir, tools)


# -- finding ----------------------------------------------------------------------------------------------------


def _databases(site: Site, *, look_only: bool) -> Databases:
    if look_only:
        return open_existing(site, migrate=False)
    return Databases(site.queue(), site.registry(), site.products())


@dataclass(frozen=True, slots=True)
class _Found:
    """A Measurement Set, when its data are from, and what the index says of it."""

    path: Path
    row: MsRow | None
    group_id: str | None
    start_mjd: float | None
    mid_mjd: float | None
    dec_deg: float | None
    fault: str = ""


class _Search:
    """One search through the index and the disk, or (``only``) another look at one set that it found."""

    def __init__(
        self, site: Site, databases: Databases, tools: Tools, now: float, *, only: Unimaged | None = None
    ) -> None:
        self.site, self.tools, self.now = site, tools, now
        self.queue, self.registry, self.products = databases.queue, databases.registry, databases.products
        groups, index, images = _rows(databases) if only is None else _rows_of(databases, only)
        self.groups: dict[str, GroupRow] = {row.group_id: row for row in groups}
        self.index = {row.path: row for row in index}
        self.images: dict[str, list[ImageRow]] = defaultdict(list)
        for image in images:
            self.images[image.ms_path].append(image)
            self.images[image.group_id or ""].append(image)
        rows = self.products.quarantine.rows() if self.products else []
        self.aside = {(r.kind, r.original_path) for r in rows if r.state != "restored"}

    def find(self, directory: Path | None, night: date | None) -> list[Unimaged]:
        """Return what has no good image."""
        by_group: dict[str, list[_Found]] = {}
        for path in self._paths(directory):
            found = self._read(path)
            if found is not None and (night is None or _is_of(found, night)):
                by_group.setdefault(found.group_id or str(path), []).append(found)
        result: list[tuple[float, Unimaged]] = []
        for same in by_group.values():
            first, *others = sorted(same, key=lambda f: (f.path != self._own_path(f.group_id), str(f.path)))
            judged = self._judge(first)
            if judged is None:
                continue
            result.append((first.start_mjd or 0.0, judged))
            for other in others:
                copy = Unimaged(str(other.path), other.group_id, LEFT, f"it holds the same data as {first.path}")
                result.append((other.start_mjd or 0.0, copy))
        return [one for _, one in sorted(result, key=lambda item: (item[0], item[1].ms))]

    def is_to_do(self, one: Unimaged) -> bool:
        """Return whether a set that was found has no good image yet."""
        found = _Found(Path(one.ms), self.index.get(one.ms), one.group_id, None, None, None)
        return self._why_no_image(found, self.groups.get(one.group_id or "")) is not None

    def _own_path(self, group_id: str | None) -> Path | None:
        return self.site.ms_path(group_id) if group_id else None

    def _paths(self, directory: Path | None) -> list[Path]:
        shut = {_real(self.site.quarantine_dir()), _real(self.site.scratch_dir)}
        top = self.site.output_dir.absolute() if directory is None else self._top(directory, shut)
        found = set(_measurement_sets(top, shut))
        for row in self.index.values():
            path = Path(row.path)
            wanted = directory is None or path.is_relative_to(top)
            if wanted and row.status not in ("quarantined", "deleted") and _may_be_directory(path):
                found.add(path)
        return sorted(found)

    def _top(self, directory: Path, shut: set[Path]) -> Path:
        """Return a directory by the name that the index has for it, whatever links lead there; none that is shut."""
        real, output = _real(directory), _real(self.site.output_dir)
        for place in shut:
            if real.is_relative_to(place) and not output.is_relative_to(place):
                raise InputError(
                    f"{directory} lies in {place}, whose sets are not imaged",
                    fix="put back first what is to be imaged: nightbeam housekeeping --restore",
                )
        if real.is_relative_to(output):
            return self.site.output_dir.absolute() / real.relative_to(output)
        return Path(os.path.normpath(directory.absolute()))

    def _read(self, path: Path) -> _Found | None:
        row = self.index.get(str(path))
        if row is not None and row.status in ("quarantined", "deleted"):
            row = None  # something else has come to its place
        if row is not None and row.group_id and row.start_mjd is not None:
            return _Found(path, row, row.group_id, row.start_mjd, row.mid_mjd, row.dec_deg)
        try:
            summary = self.tools.read_ms(path)
        except (NightbeamError, OSError) as error:
            return _Found(path, row, None, _start_of_name(path), None, None, _said(error))
        group_id = row.group_id if row is not None and row.group_id else _group_of(summary)
        start, mid = float(summary.start_mjd), float(summary.mid_mjd)
        return _Found(path, row, group_id, start, mid, float(summary.fields[0].dec_deg))

    def _judge(self, found: _Found) -> Unimaged | None:
        if found.group_id is None:
            return Unimaged(str(found.path), None, TO_DO, found.fault)
        group = self.groups.get(found.group_id)
        try:
            why = self._why_no_image(found, group)
        except (BusyError, UnavailableError):  # of a database: of the others it would say no more
            raise
        except (NightbeamError, OSError) as error:
            return Unimaged(str(found.path), None, TO_DO, f"its image cannot be looked at: {_said(error)}")
        if why is None:
            return None
        ours = self._is_of_queue(found.path, group)
        left = self._why_left(found, group, ours=ours)
        return Unimaged(str(found.path), found.group_id, LEFT if left else TO_DO, left or why, ours)

    def _why_no_image(self, found: _Found, group: GroupRow | None) -> str | None:
        """Return why there is no good image, or None where there is one."""
        if group is not None and group.state == State.FAILED and self._is_of_queue(found.path, group):
            return f"its group is failed: {group.error}"
        rows = self.images.get(str(found.path)) or self.images.get(found.group_id or "", [])
        why = "it has no image"
        status = None if found.row is None else found.row.status
        if status in ("failed", "skipped_no_caltables"):
            why = f"it is {status}"
        # Of one that is not of the queue nothing else says that it was begun: its image may be whole and not judged.
        begun = status in ("failed", "in_progress") and not self._is_of_queue(found.path, group)
        for stem in map(image_stem_of, rows):
            if ("image", str(stem)) in self.aside:
                return None
            try:
                self.tools.finished_image(stem)
            except (InputError, MissingError, RejectedError) as error:
                why = f"its image is not good: {error.what}"
            else:
                if not begun:
                    return None
                why = f"it is {status}, though its image is there"
        return why

    def _is_of_queue(self, path: Path, group: GroupRow | None) -> bool:
        """Return whether it was converted by the queue's own steps, whose receipts tell what need not be done again."""
        if group is None or self.queue is None:
            return False
        receipt = self.queue.receipt(group.group_id, "convert")
        return receipt is not None and Path(str(receipt.get("ms"))) == path

    def _why_left(self, found: _Found, group: GroupRow | None, *, ours: bool) -> str:
        if (
            group is not None
            and group.state == State.IN_PROGRESS
            and not is_dead(group, lock=self.site.group_lock(group.group_id))
        ):
            return f"its group is being worked on by {group.owner or 'somebody'}"
        waiting = group is not None and group.processing_stage == Stage.WAITING_FOR_GAINS
        if group is not None and group.state in (State.PENDING, State.COLLECTING) and not waiting:
            if not ours:
                return f"its group is {group.state}"
            if group.dispatched_at is not None:
                return _HANDED_OUT
        skipped = found.row is not None and found.row.status == "skipped_no_caltables"
        if (waiting or skipped) and self._set_for(found, group) is None:
            return f"there is no calibration set for MJD {found.mid_mjd or 0.0:.5f} yet"
        if group is None and self._still_changes(found.path):
            return "it still changes"
        return ""

    def _set_for(self, found: _Found, group: GroupRow | None) -> CalSet | None:
        if self.registry is None or found.mid_mjd is None:
            return None
        dec = group.dec_deg if group is not None and group.dec_deg is not None else found.dec_deg
        return self.registry.find_set(found.mid_mjd, dec_deg=dec, borrow_days=self.site.calibrate.borrow_days)

    def _still_changes(self, ms: Path) -> bool:
        try:
            newest = max((p.stat().st_mtime for p in (ms, *ms.rglob("*")) if p.is_file()), default=0.0)
        except OSError:  # what goes while it is looked at changes
            return True
        return 0.0 <= self.now - newest < self.site.ingest.settle_s


_Rows = tuple[list[GroupRow], list[MsRow], list["ImageRow"]]


def _rows(databases: Databases) -> _Rows:
    queue, products = databases.queue, databases.products
    groups = queue.groups() if queue else []
    return (groups, products.ms_index(), products.images()) if products else (groups, [], [])


def _rows_of(databases: Databases, one: Unimaged) -> _Rows:
    queue, products, groups = databases.queue, databases.products, []
    with suppress(MissingError):
        groups = [queue.group(one.group_id)] if queue and one.group_id else []
    if products is None:
        return groups, [], []
    row, images = products.ms(Path(one.ms)), products.images(ms_path=Path(one.ms))
    return groups, [row] if row else [], images + (products.images(group_id=one.group_id) if one.group_id else [])


def _measurement_sets(top: Path, shut: set[Path]) -> Iterator[Path]:
    if top.name.endswith(".ms"):
        yield top
        return
    for parent, names, _ in os.walk(top, onerror=lambda error: logger.warning("cannot look into %s", error.filename)):
        inside = [Path(parent) / name for name in sorted(names) if not name.startswith(".")]
        yield from (path for path in inside if path.name.endswith(".ms"))
        names[:] = [path.name for path in inside if not path.name.endswith(".ms") and _real(path) not in shut]


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike resolve, it bears links that go in a circle


def _may_be_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # whoever reads it will say why it cannot be
        return True


def _said(error: NightbeamError | OSError) -> str:
    return error.what if isinstance(error, NightbeamError) else str(error)


def _group_of(summary: Any) -> str:
    """Return the group by the middle of the first integration, as the headers of subbands give it."""
    first_mjd = summary.start_mjd + 0.5 * summary.integration_s / SECONDS_PER_DAY
    return str(GroupId.from_jd(first_mjd + JD_OF_MJD_ZERO))


def _start_of_name(path: Path) -> float | None:
    from nightbeam.core.times import mjd_from_datetime

    try:
        return mjd_from_datetime(GroupId.parse(path.stem).start)
    except InputError:
        return None


def _is_of(found: _Found, night: date) -> bool:
    if found.start_mjd is None:
        return False
    return night <= datetime_from_mjd(found.start_mjd).date() < night + timedelta(days=1)


# -- doing ------------------------------------------------------------------------------------------------------


def _through_queue(site: Site, one: Unimaged, group_id: str, owner: Owner, tools: Tools) -> BackfillOutcome:
    queue = site.queue()
    row = queue.group(group_id)
    if row.state == State.PENDING and row.dispatched_at is not None:
        return BackfillOutcome(group_id, LEFT, one.ms, _HANDED_OUT)
    if row.state == State.COMPLETED and not _is_still_to_do(site, one, tools):
        return BackfillOutcome(group_id, LEFT, one.ms, _NOT_ANY_MORE)
    if row.state in (State.COMPLETED, State.FAILED):
        try:
            queue.requeue(group_id)
        except InputError as error:  # somebody was faster
            return BackfillOutcome(group_id, LEFT, one.ms, error.what)
    else:
        queue.wake(group_id)
    claim = claim_group(site, group_id, owner=owner)
    if not claim.claimed:
        return BackfillOutcome(group_id, LEFT, one.ms, claim.reason)
    try:
        done = run_group(site, group_id, owner=owner, tools=tools)
    except BusyError as error:
        ended = {attempt.attempt: attempt.outcome for attempt in queue.attempts(group_id)}
        if ended.get(claim.attempt) in ("lost", "released"):  # it is somebody else's now
            return BackfillOutcome(group_id, LEFT, one.ms, error.what)
        raise
    return BackfillOutcome(group_id, IMAGED if done.state == State.COMPLETED else WAITING, one.ms, image=done.image)


def _is_still_to_do(site: Site, one: Unimaged, tools: Tools) -> bool:
    """Return whether a set has no good image yet: another backfill may have found it too."""
    return _Search(site, _databases(site, look_only=False), tools, time.time(), only=one).is_to_do(one)


def _by_itself(site: Site, one: Unimaged, group_id: str, out_dir: Path | None, tools: Tools) -> BackfillOutcome:
    ms = Path(one.ms)
    stem = site.image_stem(group_id) if out_dir is None else out_dir.absolute() / f"{group_id}.img"
    products = site.products()
    with ExitStack() as held:
        try:
            held.enter_context(sole_owner(site.group_lock(group_id), what=f"group {group_id}"))
        except BusyError as error:
            return BackfillOutcome(group_id, LEFT, one.ms, error.what)
        if not _is_still_to_do(site, one, tools):
            return BackfillOutcome(group_id, LEFT, one.ms, _NOT_ANY_MORE)
        try:
            converted = _as_converted(group_id, tools.read_ms(ms, prove=True), ms)
            times = {"start_mjd": converted.start_mjd, "mid_mjd": converted.mid_mjd, "end_mjd": converted.end_mjd}
            products.upsert_ms(
                ms, group_id=group_id, status="in_progress", ra_deg=converted.ra_deg, dec_deg=converted.dec_deg,
                n_rows=converted.rows, n_spw=converted.n_spw, version=__version__, **times,
            )  # fmt: skip
            return _calibrate_and_image(site, one, converted, stem, tools)
        except Exception:
            products.upsert_ms(ms, group_id=group_id, status="failed")
            raise


def _as_converted(group_id: str, summary: Any, ms: Path) -> ConvertReceipt:
    """Return what the converter would have said of a Measurement Set that others wrote."""
    field_ = summary.fields[0]
    return ConvertReceipt(
        group_id=group_id,
        ms=str(ms),
        writer_type="another program",
        rows=int(summary.rows),
        n_spw=int(summary.n_spw),
        missing_subbands=(),
        start_mjd=float(summary.start_mjd),
        mid_mjd=float(summary.mid_mjd),
        end_mjd=float(summary.end_mjd),
        ra_deg=float(field_.ra_deg),
        dec_deg=float(field_.dec_deg),
        flagged_fraction=float(summary.flagged_fraction),
        load_s=None,
        phase_s=None,
        write_s=None,
        total_s=0.0,
    )


def _plan(site: Site, ms: Path, step: str) -> Plan:
    return plan_step(site, ms.stem, step, input_bytes=0, set_bytes=directory_bytes(ms))


def _calibrate_and_image(
    site: Site, one: Unimaged, converted: ConvertReceipt, stem: Path, tools: Tools
) -> BackfillOutcome:
    """Do to a Measurement Set what the steps do to a group.

    What is in CORRECTED_DATA is not asked: only a receipt of ours tells with which set it was written.
    """
    group_id, ms, products = converted.group_id, Path(converted.ms), site.products()
    found = site.registry().find_set(
        converted.mid_mjd, dec_deg=converted.dec_deg, borrow_days=site.calibrate.borrow_days
    )
    calibrated = chosen_set(group_id, found, False, None, None, 0.0)
    if found is None:
        products.upsert_ms(ms, status="skipped_no_caltables")
        return BackfillOutcome(group_id, WAITING, one.ms, f"no calibration set for MJD {converted.mid_mjd:.5f}")
    forget_quality(site, group_id)
    with (
        at_work(site, group_id, "apply", _plan(site, ms, "apply")),
        owned_scratch(site.scratch_dir, group_id, "apply") as work,
    ):
        applied = tools.apply(site, ms, found.tables, work=work, log=site.log(group_id, "apply"))
    products.upsert_ms(
        ms, stage="applycal_done", cal_applied=1, calibration_set=found.set_name, cal_age_days=found.age_days,
        cal_borrowed=int(found.borrowed), flagged_fraction=float(applied.flagged_fraction),
    )  # fmt: skip
    stem.parent.mkdir(parents=True, exist_ok=True)
    said = provenance_of(group_id, converted, calibrated, quick=site.image.quick)
    plan = _plan(site, ms, "image")
    with at_work(site, group_id, "image", plan), owned_scratch(plan.scratch, group_id, "image") as work:
        product = tools.image(site, ms, stem, provenance=said, work=work, log=site.log(group_id, "image"))
    require_good(site, group_id, product, tools)
    report = tools.write_qa(
        site,
        group_id,
        ms=ms,
        tables=found.tables,
        product=product,
        calibration=calibration_use(site, calibrated),
        subbands=None,  # nobody knows how many another program had
    )
    record_quality(site, group_id, report)  # before its row says that it is done, so that none is done and not judged
    me = this_process()
    if not note_ms_state(site, ms):
        note_ms(site, group_id, ms, (), owner=me, writer=converted.writer_type)
    note_image(site, group_id, ms, product, found.tables, owner=me)
    columns = image_columns(group_id, 0, product, calibrated)
    image = products.upsert_image(product.path, ms_path=ms, **columns, quick=int(site.image.quick))
    products.upsert_ms(ms, status="done", stage="imaged", processed_at=time.time(), imagename=str(stem))
    return BackfillOutcome(group_id, IMAGED, one.ms, image=image.path)
