"""The one place that the page and the API read from: databases, status files and directories, never for writing.

No list raises because something is not there, is damaged or is of another version: what is missing is empty, and
``problems`` says why. What is asked for by its name raises where nobody can tell whether it is there. What needs a
directory to be looked at, or all rows to be counted, is kept for a second or two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from nightbeam import __version__
from nightbeam.catalog.kept import KeptDatabase
from nightbeam.catalog.model import GroupRow, ImageRow, MosaicRow, NightRow, State
from nightbeam.catalog.pages import (
    SEARCHED,
    AboutGroup,
    ElogPages,
    GroupProducts,
    ProductPages,
    QueuePages,
    RegistryPages,
)
from nightbeam.contimg.model import STEPS
from nightbeam.contimg.nights import is_being_made
from nightbeam.contimg.pressure import backlog_of, would_be
from nightbeam.contimg.quarantine import image_stem_of
from nightbeam.contimg.site import Site
from nightbeam.core.errors import MissingError, NightbeamError, UnavailableError
from nightbeam.core.settings import Settings
from nightbeam.core.times import mjd_from_datetime
from nightbeam.monitor import compute, files, services
from nightbeam.monitor.fresh import Fresh
from nightbeam.monitor.model import (
    Artifact,
    Artifacts,
    BadFile,
    CalibrationSet,
    CalibrationSets,
    CalibratorMatch,
    CalibratorMatches,
    ConstantsState,
    CxiState,
    ElogState,
    GroupDetail,
    GroupFile,
    Groups,
    GroupStep,
    Health,
    Image,
    Images,
    MeasurementSets,
    Mosaic,
    MosaicDetail,
    Mosaics,
    Night,
    Nights,
    PlatformState,
    Products,
    Put,
    Quarantined,
    QueueBacklog,
    QueueCounts,
    ScansState,
    Scores,
    Standing,
    Status,
    System,
    Tonight,
)
from nightbeam.monitor.watch import PlatformWatch

__all__ = ["MOST", "Reader"]

T = TypeVar("T")

#: The longest list that is given at once.
MOST: Final = 1000
#: Counts and times of all rows; directories.
_COUNTS_S: Final = 1.0
_SCAN_S: Final = 2.0
#: Times of the data have passed through a Julian Date, which keeps 40 us; no group begins within this of another.
_JD_NOISE_DAYS: Final = 0.5e-3 / 86400.0
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".svg")
#: In this order, worst first.
_WORST: Final = list(Standing)

_NOTHING_ABOUT: Final = AboutGroup(None, None, [], [], [], [], None)
_NOTHING_MADE: Final = GroupProducts([], [], [], [])


class Reader:
    """Everything that can be seen of a site.

    Parameters
    ----------
    settings
        Of the site, resolved or not.
    clock
        Epoch seconds, for tests.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings.resolved()
        self.site = Site.from_settings(self.settings)
        self._clock = clock
        self._queue = QueuePages(KeptDatabase(self.site.queue_url, "queue"))
        self._registry = RegistryPages(KeptDatabase(self.site.registry_url, "registry"))
        self._products = ProductPages(KeptDatabase(self.site.products_url, "products"))
        self._elog = ElogPages(KeptDatabase(str(self.settings.elog.database), "elog"))
        self._counts = Fresh(self._count, keep_s=_COUNTS_S)
        self._backlog = Fresh(self._look_at_backlog, keep_s=_COUNTS_S)
        self._finished = Fresh(lambda: self._queue.finished_since(self._clock() - 86_400.0), keep_s=5 * _COUNTS_S)
        self._contimg = Fresh(self._look_at_contimg, keep_s=_COUNTS_S)
        self._elog_state = Fresh(lambda: services.elog_state(self.settings, self._elog, self.now()), keep_s=_SCAN_S)
        self._constants = Fresh(lambda: services.constants_state(self.settings, self.now()), keep_s=_SCAN_S)
        self._scans = Fresh(lambda: services.scans_state(self.settings, self.now()), keep_s=_SCAN_S)
        self._cxi = Fresh(lambda: services.cxi_state(self.settings, self.now()), keep_s=_SCAN_S)
        self._platform = PlatformWatch(self.settings, now=self.now)

    def close(self) -> None:
        """Close what is open."""
        for kept in self._databases().values():
            kept.close()
        self._platform.close()

    def now(self) -> datetime:
        """Return the present."""
        return datetime.fromtimestamp(self._clock(), UTC)

    # -- the queue ----------------------------------------------------------------------------------------------

    def counts(self) -> QueueCounts:
        """Return how many groups there are in each state, at most a second ago."""
        return _or(QueueCounts(), [], self._counts.get)

    def backlog(self) -> QueueBacklog:
        """Return what waits in the queue, and what gives way because of it."""
        return _or(QueueBacklog(), [], self._backlog.get)

    def forget_counts(self) -> None:
        """Count anew next time, since something was changed here."""
        self._counts.forget()
        self._contimg.forget()

    def status(self, *, limit: int = 20) -> Status:
        """Return the queue in short, with the newest groups and sets of calibration tables."""
        problems: list[str] = []
        counts = _or(QueueCounts(), problems, self._counts.get)
        recent = [compute.group_of(row) for row in _many(problems, lambda: self._queue.groups(limit=_least(limit)))]
        sets = self.calibration_sets(limit=_least(limit))
        return Status(
            queue=counts,
            recent_groups=recent,
            calibration_sets=sets.items,
            matched_recent=sum(bool(group.has_calibrator) for group in recent),
            backlog=_or(QueueBacklog(), problems, self._backlog.get),
            problems=[*problems, *sets.problems],
        )

    def groups(
        self,
        *,
        state: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        text: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> Groups:
        """Return groups, newest data first.

        Parameters
        ----------
        state
            Only in this state.
        since, until
            Only with data from this time on, and before this time.
        text
            The id of a group; a year, month, day, hour or minute of the data, such as ``2025-10-03``; or what the id,
            the error, the owner or a calibrator contains, among the newest `nightbeam.catalog.pages.SEARCHED` of the
            others.
        limit
            At most so many.
        before
            Only older than the group of this id, to go on from the last one seen; one that is gone is a problem.
        """
        problems: list[str] = []
        begin, end = _mjd(since), _mjd(until)
        period = compute.period_of_text(text) if text else None
        if text is not None and period is not None:
            named = _one(problems, lambda: self._queue.group(text)) if before is None else None
            if named is not None and _is_asked_for(named, state, begin, end):
                return Groups(items=[compute.group_of(named)], problems=problems)
            begin, end = _latest(begin, period[0] - _JD_NOISE_DAYS), _earliest(end, period[1] - _JD_NOISE_DAYS)
        searched = SEARCHED if text and period is None else None
        wanted = _least(limit)
        rows = _many(
            problems,
            lambda: self._queue.groups(
                state=state,
                since_mjd=begin,
                until_mjd=end,
                text=text if searched else None,
                before=before,
                limit=wanted + 1,
            ),
        )
        more = rows[wanted - 1].group_id if len(rows) > wanted else None
        return Groups(
            items=[compute.group_of(row) for row in rows[:wanted]],
            before=more,
            searched=searched if searched and self._known(state) > searched else None,
            problems=problems,
        )

    def group(self, group_id: str) -> GroupDetail | None:
        """Return everything that is known of a group; None where the queue has none of that name.

        Raises
        ------
        UnavailableError
            If the queue cannot be read, so that nobody can tell.
        """
        problems: list[str] = []
        row = _told("queue", lambda: self._queue.group(group_id))
        if row is None:
            return None
        about = _one(problems, lambda: self._queue.about(row)) or _NOTHING_ABOUT
        made = _one(problems, lambda: self._products.of_group(group_id)) or _NOTHING_MADE
        measured, page = about.performance, self.prefect_page()
        qa = [compute.artifact_of(one) for one in made.artifacts]
        short = compute.group_of(row)
        return GroupDetail(
            **_fields(short),
            qa=qa or [_listed(path) for path in files.qa_files(self.site.qa_dir(), group_id=group_id, limit=200)],
            perf_total_time=compute.number(measured.total_time) if measured else None,
            writer_type=compute.text(measured.writer_type) if measured else None,
            performance={
                name: compute.number(value) for name, value in _fields(measured).items() if name.endswith("_time")
            },
            files=compute.files_of(compute.whole(row.expected_subbands), about.subbands, about.duplicates),
            steps=compute.steps_of(STEPS, row, about.receipts),
            calibration=compute.receipt_of("calibrate", about.receipts),
            history=[compute.attempt_of(one, page) for one in about.attempts],
            images=self._images_of(made.images, problems),
            measurement_sets=[compute.ms_of(one) for one in made.sets],
            scores=[compute.score_of(one) for one in made.scores],
            newer=about.newer,
            older=about.older,
            problems=problems,
        )

    def queue_row(self, group_id: str) -> GroupRow | None:
        """Return the row of a group, or None."""
        return _one([], lambda: self._queue.group(group_id))

    def group_files(self, group_id: str) -> list[GroupFile]:
        """Return when each subband of a group arrived; nothing for a group that is not known."""
        found = self._about(group_id)
        if found is None:
            return []
        row, about = found
        return compute.files_of(compute.whole(row.expected_subbands), about.subbands, about.duplicates)

    def group_steps(self, group_id: str) -> list[GroupStep]:
        """Return how far a group is and how long each step took; nothing for a group that is not known."""
        found = self._about(group_id)
        return [] if found is None else compute.steps_of(STEPS, found[0], found[1].receipts)

    def calibrator_matches(self, *, limit: int = 50, matched_only: bool = False) -> CalibratorMatches:
        """Return the newest groups with the calibrators in their fields."""
        problems: list[str] = []
        rows = _many(problems, lambda: self._queue.groups(matched=matched_only, limit=_least(limit)))
        items = [
            CalibratorMatch(
                group_id=group.group_id,
                matched=bool(group.has_calibrator),
                matches=group.matches or [],
                received_at=group.received_at,
                last_update=group.last_update,
            )
            for group in map(compute.group_of, rows)
        ]
        return CalibratorMatches(items=items, problems=problems)

    def bad_files(self, *, limit: int = 50) -> list[BadFile]:
        """Return files that are no readable subbands, the last first."""
        rows = _many([], lambda: self._queue.bad_files(limit=_least(limit)))
        return [
            BadFile(
                path=compute.text(row.path) or "",
                reason=compute.text(row.reason) or "",
                size_bytes=compute.whole(row.size_bytes),
                recorded_at=compute.instant_of_time(row.recorded_at),
                note=compute.text(row.not_moved),
            )
            for row in rows
        ]

    def oldest(self) -> dict[str, datetime]:
        """Return when the oldest group of each state that is none of an end was received."""
        found = _or(dict[str, float](), [], self._queue.oldest)
        return {state: at for state, one in found.items() if (at := compute.instant_of_time(one)) is not None}

    def problems_of_queue(self) -> list[str]:
        """Return why the queue cannot be read; nothing where it can."""
        problems: list[str] = []
        _one(problems, self._queue.last_update)
        return problems

    # -- calibration --------------------------------------------------------------------------------------------

    def calibration_sets(
        self, *, since: datetime | None = None, until: datetime | None = None, limit: int = 100
    ) -> CalibrationSets:
        """Return sets of calibration tables that were valid at some time between two, newest first."""
        problems: list[str] = []
        found = _many(
            problems,
            lambda: self._registry.sets(since_mjd=_mjd(since), until_mjd=_mjd(until), limit=_least(limit)),
        )
        return CalibrationSets(items=[compute.set_of(*one) for one in found], problems=problems)

    def calibration_set(self, name: str) -> CalibrationSet | None:
        """Return the set of a name, or None."""
        found = _one([], lambda: self._registry.named(name))
        return None if found is None else compute.set_of(*found)

    # -- products -----------------------------------------------------------------------------------------------

    def products(self, *, limit: int = 50) -> Products:
        """Return images in the words of the older pipeline, newest first."""
        problems: list[str] = []
        rows = _many(problems, lambda: self._products.images(limit=_least(limit)))
        return Products(items=[compute.product_of(row) for row in rows], problems=problems)

    def images(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> Images:
        """Return images with their measures, newest first; by their data where a time is given."""
        problems: list[str] = []
        wanted = _least(limit)
        rows = _many(
            problems,
            lambda: self._products.images(
                since_mjd=_mjd(since), until_mjd=_mjd(until), before=before, limit=wanted + 1
            ),
        )
        more = rows[wanted - 1].id if len(rows) > wanted else None
        items = self._images_of(rows[:wanted], problems)
        return Images(items=items, before=more, problems=problems)

    def image(self, image_id: int) -> Image | None:
        """Return one image; None where there is none of that number.

        Raises
        ------
        UnavailableError
            If the products cannot be read, so that nobody can tell.
        """
        row = _told("products", lambda: self._products.image(image_id))
        return None if row is None else self._images_of([row], [])[0]

    def image_png(self, image_id: int) -> Path:
        """Return the picture of an image.

        Raises
        ------
        MissingError
            If there is none, or it does not lie where pictures of this site are.
        UnavailableError
            If the products cannot be read, so that nobody can tell.
        """
        row: ImageRow | None = _told("products", lambda: self._products.image(image_id))
        named = compute.files_named(row.files) if row is not None else {}
        return files.picture(named.get("png"), self._roots())

    def ms_index(self, *, stage: str | None = None, status: str | None = None, limit: int = 100) -> MeasurementSets:
        """Return Measurement Sets, the newest change of stage first."""
        problems: list[str] = []
        rows = _many(problems, lambda: self._products.ms_index(stage=stage, status=status, limit=_least(limit)))
        return MeasurementSets(items=[compute.ms_of(row) for row in rows], problems=problems)

    def mosaics(self, *, since: datetime | None = None, until: datetime | None = None, limit: int = 50) -> Mosaics:
        """Return mosaics, the newest data first."""
        problems: list[str] = []
        rows = _many(
            problems,
            lambda: self._products.mosaics(since_mjd=_mjd(since), until_mjd=_mjd(until), limit=_least(limit)),
        )
        return Mosaics(items=self._mosaics_of(rows, problems), problems=problems)

    def mosaic(self, name: str) -> MosaicDetail | None:
        """Return a mosaic with its tiles and what was said of each; None where there is none of that name.

        Raises
        ------
        UnavailableError
            If the products cannot be read, so that nobody can tell.
        """
        row: MosaicRow | None = _told("products", lambda: self._products.mosaic(name))
        if row is None:
            return None
        scores, qa = self.scores(kind="mosaic", subject=name), self.qa(group_id=name, limit=200)
        issues = row.validation_issues
        return MosaicDetail(
            mosaic=self._mosaics_of([row], [])[0],
            tiles=compute.tiles_of(row.tiles),
            verdicts=compute.json_of(row.verdicts),
            checks=compute.json_of(row.checks),
            parameters=compute.json_of(row.parameters),
            validation_issues=compute.json_of(issues) if compute.json_of(issues) is not None else compute.text(issues),
            files=dict(compute.files_named(row.files)),
            scores=scores.items,
            qa=qa.items,
            problems=list(dict.fromkeys([*scores.problems, *qa.problems])),
        )

    def mosaic_png(self, name: str) -> Path:
        """Return the picture of a mosaic.

        Raises
        ------
        MissingError
            If there is none, or it does not lie where pictures of this site are.
        UnavailableError
            If the products cannot be read, so that nobody can tell.
        """
        row: MosaicRow | None = _told("products", lambda: self._products.mosaic(name))
        named = compute.files_named(row.files) if row is not None else {}
        return files.picture(named.get("png"), self._roots())

    def nights(self, *, limit: int = 31) -> Nights:
        """Return what became of the mosaics of the last nights, the last first."""
        problems: list[str] = []
        rows = _many(problems, lambda: self._products.nights(limit=_least(limit)))
        items = [
            Night(
                night=str(row.night),
                state="running" if (running := self._is_being_made(row)) else str(row.state),
                tiles=compute.whole(row.tiles),
                attempts=compute.whole(row.attempts) or 0,
                updated_at=compute.instant_of_time(row.updated_at),
                error=None if running else compute.text(row.error),
            )
            for row in rows
        ]
        return Nights(items=items, problems=problems)

    def qa(self, *, group_id: str | None = None, limit: int = 100) -> Artifacts:
        """Return figures and reports of a group or mosaic, or of all, newest first.

        Where the database has none, those files are listed that lie under ``qa`` in the state directory.
        """
        problems: list[str] = []
        rows = _many(problems, lambda: self._products.artifacts(group_id=group_id, limit=_least(limit)))
        if not rows:
            found = files.qa_files(self.site.qa_dir(), group_id=group_id, limit=_least(limit))
            return Artifacts(items=[_listed(path) for path in found], problems=problems)
        return Artifacts(items=[compute.artifact_of(row) for row in rows], problems=problems)

    def qa_thumbs(self, *, limit: int = 100) -> Artifacts:
        """Return the newest picture of each group, newest first."""
        problems: list[str] = []
        rows = _many(problems, lambda: self._products.newest_artifacts(endings=_PICTURES, limit=_least(limit)))
        if not rows:
            found = files.newest_pictures(self.site.qa_dir(), limit=_least(limit))
            return Artifacts(items=[_listed(path) for path in found], problems=problems)
        return Artifacts(items=[compute.artifact_of(row) for row in rows], problems=problems)

    def qa_file(self, group_id: str, name: str) -> Path:
        """Return a figure or report under ``qa`` in the state directory.

        Raises
        ------
        MissingError
            If there is none, whatever the names are made of.
        """
        return files.qa_file(self.site.qa_dir(), group_id, name)

    def scores(
        self, kind: str | None = None, subject: str | None = None, *, verdict: str | None = None, limit: int = 200
    ) -> Scores:
        """Return judged measures: of one group or mosaic, or the last of all."""
        problems: list[str] = []
        rows = _many(
            problems,
            lambda: self._products.scores(kind=kind, subject=subject, verdict=verdict, limit=_least(limit)),
        )
        return Scores(items=[compute.score_of(row) for row in rows], problems=problems)

    def scores_of(self, kind: str, subjects: Sequence[str]) -> Scores:
        """Return judged measures of some groups or mosaics, by subject and name."""
        problems: list[str] = []
        wanted = list(dict.fromkeys(subjects))[:MOST]
        rows = _many(problems, lambda: self._products.scores_of(kind, wanted))
        return Scores(items=[compute.score_of(row) for row in rows], problems=problems)

    def quarantine(self, *, limit: int = 100) -> Put:
        """Return what is in quarantine and what was, the last first."""
        problems: list[str] = []
        rows = _many(problems, lambda: self._products.quarantine(limit=_least(limit)))
        items = [
            Quarantined(
                path=str(row.path),
                original_path=str(row.original_path),
                kind=str(row.kind),
                reason=str(row.reason),
                size_bytes=compute.whole(row.size_bytes),
                moved_at=compute.instant_of_time(row.moved_at),
                state=str(row.state),
                ended_at=compute.instant_of_time(row.ended_at),
            )
            for row in rows
        ]
        return Put(items=items, problems=problems)

    # -- the services -------------------------------------------------------------------------------------------

    def elog(self) -> ElogState:
        """Return the mirror of the logbook, at most two seconds ago."""
        return self._elog_state.get()

    def constants(self) -> ConstantsState:
        """Return the cache of detector constants, at most two seconds ago."""
        return self._constants.get()

    def scans(self) -> ScansState:
        """Return the scan calibrator and its stores, at most two seconds ago."""
        return self._scans.get()

    def cxi(self) -> CxiState:
        """Return the CXI writers, at most two seconds ago."""
        return self._cxi.get()

    def platform(self) -> PlatformState:
        """Return supervisor, server, processes and pools; the server was asked at most a few seconds ago."""
        return self._platform.state()

    def prefect_page(self) -> str | None:
        """Return the address of Prefect's page as browsers see it; None where there is none."""
        return self._platform.page_url()

    def prefect_api(self) -> str:
        """Return the address of Prefect's API, "" where there is none."""
        return self._platform.api_url()

    def contimg(self) -> System:
        """Return how continuum imaging does, at most a second ago."""
        return self._contimg.get()

    def tonight(self) -> Tonight:
        """Return all systems at a glance, those in trouble first."""
        problems: list[str] = []
        counts = _or(QueueCounts(), problems, self._counts.get)
        systems = [
            self.contimg(),
            self.elog().system,
            self.constants().system,
            self.scans().system,
            self.cxi().system,
            self.platform().system,
        ]
        ordered = sorted(systems, key=lambda one: _WORST.index(one.standing))
        return Tonight(now=self.now(), standing=ordered[0].standing, systems=ordered, queue=counts, problems=problems)

    def health(self) -> Health:
        """Return whether the three databases can be read; one that nobody has made yet is no fault."""
        said: dict[str, str] = {}
        problems: list[str] = []
        for name, kept in self._databases().items():
            try:
                kept.must_answer()
                said[name] = "ok"
            except MissingError:
                said[name] = "not there yet"
            except NightbeamError as error:
                said[name] = "unreadable"
                if name != "elog":
                    problems.append(error.what)
        return Health(status="unhealthy" if problems else "ok", version=__version__, databases=said, problems=problems)

    # -- inside -------------------------------------------------------------------------------------------------

    def _databases(self) -> dict[str, KeptDatabase]:
        return {p.kept.name: p.kept for p in (self._queue, self._registry, self._products, self._elog)}

    def _roots(self) -> tuple[Path, ...]:
        return self.site.output_dir, self.site.mosaic_dir(), self.site.state_dir

    def _count(self) -> QueueCounts:
        found = self._queue.counts()
        known = {state.value: found.get(state.value, 0) for state in State}
        return QueueCounts(total=sum(found.values()), **known)

    def _look_at_backlog(self) -> QueueBacklog:
        known, row = self._queue.arrears()
        minutes = self.site.ingest.chunk_minutes
        found = would_be(known, backlog_of(row, minutes_each=minutes, now=self._clock()), self.site.pressure)
        return QueueBacklog(
            level=str(found.level), since=compute.instant_of_time(found.since), **_fields(found.backlog)
        )

    def _known(self, state: str | None) -> int:
        """Return how many groups there are of a state, or of all."""
        counts = self.counts()
        return counts.total if state is None else getattr(counts, state, 0)

    def _images_of(self, rows: Sequence[ImageRow], problems: list[str]) -> list[Image]:
        stems = [str(image_stem_of(row)) for row in rows]
        aside = self._aside("image", stems, problems)
        found = [(compute.image_of(row), row, aside.get(stem)) for row, stem in zip(rows, stems, strict=True)]
        return [
            replace(image, put_aside_at=compute.instant_of_time(at), png_url=None)
            if at is not None and not (compute.number(row.created_at) or 0.0) > at
            else image
            for image, row, at in found
        ]

    def _mosaics_of(self, rows: Sequence[MosaicRow], problems: list[str]) -> list[Mosaic]:
        aside = self._aside("mosaic", [str(row.output_path) for row in rows if row.output_path], problems)
        found = [(compute.mosaic_of(row), row, aside.get(str(row.output_path))) for row in rows]
        return [
            replace(mosaic, put_aside_at=compute.instant_of_time(at), png_url=None)
            if at is not None and not (compute.number(row.built_at) or 0.0) > at
            else mosaic
            for mosaic, row, at in found
        ]

    def _is_being_made(self, row: NightRow) -> bool:
        try:
            return is_being_made(self.site, row)
        except (NightbeamError, OSError, TypeError, AttributeError):  # a night or a lock of another make
            return False

    def _aside(self, kind: str, paths: Sequence[str], problems: list[str]) -> dict[str, float]:
        return _or(dict[str, float](), problems, lambda: self._products.put_aside(kind, paths)) if paths else {}

    def _about(self, group_id: str) -> tuple[GroupRow, AboutGroup] | None:
        row = self.queue_row(group_id)
        about = None if row is None else _one([], lambda: self._queue.about(row))
        return None if row is None or about is None else (row, about)

    def _look_at_contimg(self) -> System:
        now = self.now()
        day = (now - timedelta(days=1)).timestamp()
        return services.contimg_system(
            self.settings,
            now,
            counts=self._counts.get,
            backlog=self._backlog.get,
            last_update=self._queue.last_update,
            last_received=self._queue.last_received,
            working=lambda: self._queue.in_state(State.IN_PROGRESS, limit=50),
            collecting=lambda: self._queue.in_state(State.COLLECTING, limit=50),
            failed=lambda: self._queue.failed_since(day, limit=50),
            failures=lambda: self._queue.failures_since(day),
            finished=self._finished.get,
            platform_runs=self._platform.runs(),
        )


def _many(problems: list[str], ask: Callable[[], list[T]]) -> list[T]:
    """Return the rows that are asked for; where the database says no, none, and why."""
    return _or(list[T](), problems, ask)


def _one(problems: list[str], ask: Callable[[], T | None]) -> T | None:
    """Return the row that is asked for, if there is one; where the database says no, none, and why."""
    return _or(None, problems, ask)


def _told(database: str, ask: Callable[[], T | None]) -> T | None:
    """Return the row that is asked for, or None where there is none; what cannot be read may hold it."""
    try:
        return ask()
    except MissingError:  # nobody has made the database yet
        return None
    except NightbeamError as error:
        raise UnavailableError(
            f"the {database} cannot be read: {error.what}", fix="see Platform, and the monitor's log"
        ) from error


def _or(empty: T, problems: list[str], ask: Callable[[], T]) -> T:
    """Return what is asked for; where the database says no, nothing, and why."""
    try:
        return ask()
    except NightbeamError as error:
        if error.what not in problems:
            problems.append(error.what)
        return empty


def _fields(row: Any) -> dict[str, Any]:
    """Return the fields of a row by name, as they are; nothing of None."""
    return {} if row is None else {one.name: getattr(row, one.name) for one in fields(row)}


def _listed(path: Path) -> Artifact:
    group_id, name = path.parent.name, path.name
    try:
        written = compute.instant_of_time(path.stat().st_mtime)
    except OSError:
        written = None
    return Artifact(
        group_id=compute.text(group_id) or "",
        name=compute.text(name) or "",
        path=compute.text(str(path)) or "",
        created_at=written,
        url=compute.qa_url(group_id, name) if str(path).isprintable() else None,
    )


def _least(limit: int) -> int:
    return max(1, min(limit, MOST))


def _mjd(when: datetime | None) -> float | None:
    return None if when is None else mjd_from_datetime(when if when.tzinfo else when.replace(tzinfo=UTC))


def _is_asked_for(row: GroupRow, state: str | None, begin: float | None, end: float | None) -> bool:
    """Say whether a group is among those of a state and a time."""
    start = compute.number(row.start_mjd)
    if (begin is not None or end is not None) and start is None:
        return False
    after = begin is None or (start is not None and start >= begin)
    return state in (None, row.state) and after and (end is None or (start is not None and start < end))


def _latest(one: float | None, other: float) -> float:
    return other if one is None else max(one, other)


def _earliest(one: float | None, other: float) -> float:
    return other if one is None else min(one, other)
