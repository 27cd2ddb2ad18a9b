"""Bringing the cache of one run up to date: ask which documents serve it, fetch only what is not in the cache yet."""

from __future__ import annotations

import hashlib
import logging
import operator
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from nightbeam.calib.compute import check_name, creation_time, decode, expected_bytes, needs_update, text_bytes
from nightbeam.calib.entry import CalibEntry
from nightbeam.calib.files import (
    EntryLine,
    Payload,
    entry_path,
    link_entry,
    list_entries,
    lone_writer,
    map_entry,
    open_entry,
    remove_stale,
    remove_surplus,
    verify_mapped,
    write_entry,
)
from nightbeam.calib.layout import ConstantPlace, EntryIndex, placed_arrays
from nightbeam.calib.model import Choice, Selection
from nightbeam.calib.remote import CalibService
from nightbeam.core.errors import InputError, MissingError, NightbeamError, StorageError, UsageError
from nightbeam.core.times import utc_now
from nightbeam.xtc2 import RunVerdict, judge_run, latest_usable_run

__all__ = ["Action", "DetectorReport", "PrefetchReport", "Progress", "prefetch", "prefetch_and_open", "skipped_names"]

_log = logging.getLogger(__name__)

_SKIPPED = "skipped on request"
_Key = tuple[str, str, str]
#: All questions about documents together; data take the time they take.
_QUESTIONS_S = 240.0
#: Files of which this process has read every byte.
_SOUND: set[tuple[int, int, int, int]] = set()


class Action(StrEnum):
    """What a pass did."""

    FETCHED = "fetched"  # a new file was written
    LINKED = "linked"  # another run's content serves this one too
    CURRENT = "current"  # what is there is right
    NOTHING = "nothing"  # there was nothing to do it for


@dataclass(frozen=True)
class DetectorReport:
    """One constant of one detector, or why there is none.

    Attributes
    ----------
    run_from
        First run for which the document holds.
    age_days
        Since the document was deployed.
    fetched
        Whether its data came over the network this time.
    reason
        Why there is none, or what is missing.
    """

    detector: str
    unique_id: str
    ctype: str | None = None
    document_id: str | None = None
    run_from: int | None = None
    age_days: float | None = None
    bytes: int = 0
    fetched: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class PrefetchReport:
    """What one pass found and did.

    Attributes
    ----------
    path
        The cache file that serves the run; None where nothing was done.
    reason
        Why nothing was done.
    rejected_runs
        Higher runs that cannot be used: run -> why.
    requests, bytes_fetched
        What was asked of the service, and how many bytes of constants came.
    removed
        Cache files of older runs that were removed.
    """

    experiment: str
    run: int | None
    action: Action
    path: Path | None
    detectors: tuple[DetectorReport, ...] = ()
    reason: str | None = None
    rejected_runs: Mapping[int, str] | None = None
    requests: int = 0
    bytes_fetched: int = 0
    seconds: float = 0.0
    removed: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a pass is: constants and bytes that are in the new file, of how many."""

    detector: str
    ctype: str
    done: int
    total: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True)
class _Target:
    """The run that is to be served."""

    experiment: str
    run: int | None
    det_info: Mapping[str, str]
    complete: bool  # whether det_info is all that the run has
    rejected: Mapping[int, str]
    reason: str | None = None


@dataclass(frozen=True)
class _Wanted:
    """What the cache file of a run should hold."""

    det_info: Mapping[str, str]
    skipped: frozenset[str]
    selections: Mapping[str, Selection]

    @property
    def choices(self) -> Iterator[tuple[str, Choice]]:
        for detector, selection in self.selections.items():
            for choice in selection.choices.values():
                yield detector, choice


def prefetch(
    experiment: str,
    *,
    output_dir: Path,
    service: CalibService,
    xtc_dir: Path | None = None,
    run: int | None = None,
    det_info: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
    keep: int | None = None,
    owners: Iterable[str | int] = (),
    on_progress: Callable[[Progress], None] | None = None,
    lock_wait_s: float = 600.0,
) -> PrefetchReport:
    """Make sure that the cache serves a run with the constants that hold for it now.

    The service is asked for documents only (two requests for a detector, and one for its name the first time); data
    are fetched for those that no cache file of the experiment has. A new file appears whole or not at all, and a
    failure leaves everything as it was.

    Parameters
    ----------
    experiment
        Whose runs.
    output_dir
        Where cache files are kept.
    service
        Whom to ask.
    xtc_dir
        Where the runs lie; not needed where ``run`` and ``det_info`` are given.
    run
        None: the latest run that can be used.
    det_info
        Unique id by detector name; None: as the run's files say. Detectors that the file already has for this run are
        kept.
    skip
        Detectors to leave out; ``"all"`` for every one. They are marked, so that a later pass without it fetches them.
    keep
        How many runs of the experiment to keep; None: all.
    owners
        Users whose cache files are trusted beside our own.
    on_progress
        Called after each constant. What it raises ends the pass, and nothing is changed.
    lock_wait_s
        How long to wait for another process that works for the same experiment.

    Raises
    ------
    UnavailableError, AuthError
        If the service failed or refused.
    InputError
        If the run cannot be used, a name is unsafe, or the service's data contradict their documents.
    MissingError
        If a directory or the data of a document are not there.
    StorageError
        If there is not enough space.
    BusyError
        If another process has worked for the experiment for longer than ``lock_wait_s``.
    RejectedError
        If somebody else planted something in our way.
    """
    return prefetch_and_open(
        experiment,
        output_dir=output_dir,
        service=service,
        xtc_dir=xtc_dir,
        run=run,
        det_info=det_info,
        skip=skip,
        keep=keep,
        owners=owners,
        on_progress=on_progress,
        lock_wait_s=lock_wait_s,
    )[0]


def prefetch_and_open(
    experiment: str,
    *,
    output_dir: Path,
    service: CalibService,
    xtc_dir: Path | None = None,
    run: int | None = None,
    det_info: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
    keep: int | None = None,
    owners: Iterable[str | int] = (),
    on_progress: Callable[[Progress], None] | None = None,
    lock_wait_s: float = 600.0,
) -> tuple[PrefetchReport, CalibEntry | None]:
    """Do what `prefetch` does; returns its report and the file it speaks of, opened before anybody could replace it."""
    begin, before = time.monotonic(), service.traffic
    target = _target(experiment, xtc_dir, None if run is None else operator.index(run), det_info)
    skipped = skipped_names(skip, target.det_info)
    report, entry = _nothing(target, skipped), None
    removed: list[EntryLine] = []
    if report is None:
        work = _Pass(target, Path(output_dir), service, skipped, tuple(owners), on_progress, keep, removed)
        with lone_writer(work.output_dir, experiment, wait_s=lock_wait_s):
            report, entry = work.bring_up_to_date()
            work.collect()
    traffic = service.traffic.since(before)
    report = replace(
        report,
        requests=traffic.requests,
        bytes_fetched=traffic.data_bytes,
        seconds=time.monotonic() - begin,
        removed=tuple(line.path for line in removed),
    )
    return report, entry


def _target(experiment: str, xtc_dir: Path | None, run: int | None, det_info: Mapping[str, str] | None) -> _Target:
    check_name("experiment", experiment)
    if run is not None and det_info is not None:
        for name in det_info:
            check_name("detector", name)
        reason = None if det_info else "no detectors were given"
        return _Target(experiment, run, dict(det_info), False, {}, reason)
    if xtc_dir is None:
        raise UsageError("the directory of the runs was not given", fix="give xtc_dir, or a run and its det_info")
    if run is None:
        verdict, rejected = latest_usable_run(Path(xtc_dir), experiment)
    else:
        verdict, rejected = judge_run(Path(xtc_dir), experiment, run), ()
        if not verdict.usable:
            raise InputError(
                f"run {run} of {experiment} cannot be used: {'; '.join(verdict.reasons)}",
                fix="wait until it has begun, or ask for another run",
            )
    why = {each.run: "; ".join(each.reasons) for each in rejected}
    if verdict is None:
        return _Target(experiment, None, {}, True, why, _no_run(experiment, xtc_dir, why))
    found = _names_of(verdict) if det_info is None else dict(det_info)
    return _Target(experiment, verdict.run, found, det_info is None, why)


def _names_of(verdict: RunVerdict) -> dict[str, str]:
    return {check_name("detector", name): unique_id for name, unique_id in verdict.det_info.items()}


def _no_run(experiment: str, xtc_dir: Path, why: Mapping[int, str]) -> str:
    if not why:
        return f"no run of {experiment} in {xtc_dir}"
    return f"none of the {len(why)} runs of {experiment} in {xtc_dir} can be used"


def skipped_names(skip: Collection[str], names: Iterable[str]) -> frozenset[str]:
    """Return which of the names are to be skipped; ``"all"``, alone or in a list, means every one."""
    wanted = {skip} if isinstance(skip, str) else set(skip)
    return frozenset(names) if "all" in wanted else frozenset(names) & wanted


def _nothing(target: _Target, skipped: frozenset[str]) -> PrefetchReport | None:
    reason = target.reason
    if reason is None and not set(target.det_info) - skipped:
        reason = "every detector is skipped" if target.det_info else "no detectors were given"
    if reason is None:
        return None
    _log.warning("%s: nothing written: %s", target.experiment, reason)
    rows = tuple(DetectorReport(name, uid, reason=_SKIPPED) for name, uid in target.det_info.items())
    return PrefetchReport(target.experiment, target.run, Action.NOTHING, None, rows, reason, target.rejected)


@dataclass
class _Pass:
    """One pass over one run, while its experiment's lock is held."""

    target: _Target
    output_dir: Path
    service: CalibService
    skipped: frozenset[str]
    owners: tuple[str | int, ...]
    on_progress: Callable[[Progress], None] | None
    keep: int | None
    removed: list[EntryLine]

    @property
    def run(self) -> int:
        assert self.target.run is not None
        return self.target.run

    @property
    def path(self) -> Path:
        return entry_path(self.output_dir, self.target.experiment, self.run)

    def bring_up_to_date(self) -> tuple[PrefetchReport, CalibEntry]:
        remove_stale(self.output_dir)
        self.collect()
        entries = self._entries()
        own = next((entry for entry in entries if entry.path == self.path), None)
        self._tell_names(entries)
        wanted = self._carried(self._select(self.target.det_info, self.skipped, {}), entries)
        if own is not None and _serves(own.index, wanted) and self._is_sound(own):
            return self._report(Action.CURRENT, wanted, own.index, frozenset()), own
        if own is not None:
            wanted = self._carried(self._with_held(wanted, own.index), entries)
        for twin in entries:
            if self._serves_alone(twin, wanted) and self._is_sound(twin) and self._linked(twin):
                return self._report(Action.LINKED, wanted, twin.index, frozenset()), self._reopened()
        index, fetched = self._written(wanted, entries)
        written = self._reopened()
        _SOUND.add(written.identity)
        return self._report(Action.FETCHED, wanted, index, fetched), written

    def collect(self, most: int | None = None) -> list[EntryLine]:
        """Remove the files of runs that are beyond what is kept; returns them."""
        keep = self.keep if most is None else most
        if keep is None:
            return []
        gone = remove_surplus(self.output_dir, self.target.experiment, keep=keep, spare=[self.path])
        self.removed += gone
        return gone

    def _entries(self) -> list[CalibEntry]:
        """Return the files of the experiment that can be read, each content once, ours first."""
        lines = list_entries(self.output_dir, self.target.experiment, owners=self.owners)
        lines = sorted(lines, key=lambda line: (line.path != self.path, -line.run))
        found: dict[int, CalibEntry] = {}
        for line in lines:
            if line.reason is not None:
                _log.warning("%s is not used: %s", line.path, line.reason)
            elif line.inode not in found:
                entry = self._opened(line.path)
                if entry is not None:
                    found[line.inode] = entry
        return list(found.values())

    def _opened(self, path: Path) -> CalibEntry | None:
        try:
            return map_entry(path, owners=self.owners)
        except NightbeamError as error:  # it was replaced or removed since it was listed
            _log.info("%s is not used: %s", path, error.what)
            return None

    def _reopened(self) -> CalibEntry:
        return open_entry(self.path, owners=self.owners)

    def _is_sound(self, entry: CalibEntry) -> bool:
        """Say whether every byte of a file is as it was written; each is read once in a process."""
        if entry.identity in _SOUND:
            return True
        try:
            verify_mapped(entry)
        except InputError as error:
            _log.warning("%s; it is written anew", error.what)
            return False
        _SOUND.add(entry.identity)
        return True

    def _tell_names(self, entries: Iterable[CalibEntry]) -> None:
        for entry in entries:
            for name, place in entry.index.detectors.items():
                if place.short_name:
                    self.service.remember(self.target.experiment, entry.index.det_info[name], place.short_name)

    def _select(self, det_info: Mapping[str, str], skipped: frozenset[str], known: Mapping[str, Selection]) -> _Wanted:
        asked = {name: uid for name, uid in det_info.items() if name not in skipped}
        with self.service.within(_QUESTIONS_S):
            selections = {
                name: known.get(name) or self.service.select(self.target.experiment, self.run, name, uid)
                for name, uid in asked.items()
            }
        return _Wanted(det_info, skipped, selections)

    def _with_held(self, wanted: _Wanted, own: EntryIndex) -> _Wanted:
        """Ask also for what the file holds beyond the request, so that two who ask in turn do not undo each other."""
        held = {name: uid for name, uid in own.det_info.items() if name not in own.skipped}
        det_info = dict(wanted.det_info) if self.target.complete else {**held, **wanted.det_info}
        skipped = frozenset(name for name in wanted.skipped if held.get(name) != det_info[name])
        return self._select(det_info, skipped, wanted.selections)

    def _carried(self, wanted: _Wanted, entries: Iterable[CalibEntry]) -> _Wanted:
        """Add what the detectors' own databases said earlier where they could not be asked now.

        Their documents hold for every run, so those of another run's file will do.
        """
        entries = tuple(entries)
        selections = {
            name: _completed(selection, self.target.experiment, entries) if selection.gaps else selection
            for name, selection in wanted.selections.items()
        }
        return replace(wanted, selections=selections)

    def _serves_alone(self, twin: CalibEntry, wanted: _Wanted) -> bool:
        """Say whether another run's file holds all that is wanted and no more."""
        index = twin.index
        same = index.skipped == wanted.skipped and dict(index.det_info) == dict(wanted.det_info)
        return twin.path != self.path and same and _serves(index, wanted)

    def _linked(self, twin: CalibEntry) -> bool:
        try:
            link_entry(twin.path, self.path, owners=self.owners)
        except MissingError:  # removed by somebody who does not ask for locks; what is mapped can still be copied
            return False
        return True

    def _written(self, wanted: _Wanted, entries: list[CalibEntry]) -> tuple[EntryIndex, frozenset[_Key]]:
        try:
            return self._write(wanted, entries)
        except StorageError:
            # Runs that the new one would push out may make room for it; the highest stays whatever comes.
            gone = {line.path for line in self.collect(max(self.keep - 1, 1))} if self.keep else set()
            if not gone:
                raise
            entries[:] = [entry for entry in entries if entry.path not in gone]  # what is mapped takes space
            return self._write(wanted, entries)

    def _write(self, wanted: _Wanted, entries: list[CalibEntry]) -> tuple[EntryIndex, frozenset[_Key]]:
        stock = _Stock.of(entries)
        steps = _Steps(wanted, self.on_progress, self.service.max_bytes)
        constants: dict[str, list[Payload] | None] = dict.fromkeys(wanted.det_info)
        for name, selection in wanted.selections.items():
            constants[name] = [self._payload(name, choice, stock, steps) for choice in selection.choices.values()]
        index = write_entry(
            self.path,
            wanted.det_info,
            constants,
            reasons={n: s.reason for n, s in wanted.selections.items() if s.reason},
            gaps={n: s.gaps for n, s in wanted.selections.items() if s.gaps},
            short_names={n: s.short_name for n, s in wanted.selections.items() if s.short_name and s.name_is_exact},
            need_bytes=steps.bytes_total,
        )
        return index, frozenset(steps.fetched)

    def _payload(self, detector: str, choice: Choice, stock: _Stock, steps: _Steps) -> Payload:
        def data() -> Any:
            found, value = stock.take(choice.key)
            if not found:
                data = self.service.fetch(choice)
                value = decode(choice.document, data, max_bytes=self.service.max_bytes)
                steps.fetched.add(choice.key)
            steps.done(detector, choice)
            return value

        return Payload(choice.ctype, choice.database, choice.document, data)

    def _report(self, action: Action, wanted: _Wanted, index: EntryIndex, fetched: frozenset[_Key]) -> PrefetchReport:
        rows: list[DetectorReport] = []
        for name, uid in wanted.det_info.items():
            if name in wanted.skipped:
                rows.append(DetectorReport(name, uid, reason=_SKIPPED))
            else:
                rows += _rows(wanted.selections[name], index.detectors[name].constants or {}, fetched)
        return PrefetchReport(
            self.target.experiment, self.run, action, self.path, tuple(rows), None, self.target.rejected
        )


@dataclass
class _Stock:
    """Constants that cache files already hold, by what identifies them."""

    places: Mapping[_Key, tuple[CalibEntry, ConstantPlace]]

    @classmethod
    def of(cls, entries: Iterable[CalibEntry]) -> _Stock:
        places: dict[_Key, tuple[CalibEntry, ConstantPlace]] = {}
        for entry in entries:
            for detector in entry.index.detectors.values():
                for place in (detector.constants or {}).values():
                    places.setdefault(place.key, (entry, place))
        return cls(places)

    def take(self, key: _Key) -> tuple[bool, Any]:
        """Return whether an undamaged copy is there, and it."""
        if key not in self.places:
            return False, None
        entry, place = self.places[key]
        for array in placed_arrays(place.data):
            if hashlib.sha256(entry.body(array.offset, array.nbytes)).hexdigest() != array.sha256:
                _log.warning("%s: %s is damaged and is fetched anew", entry.path, place.document.get("ctype"))
                return False, None
        return True, entry.value_of(place)


class _Steps:
    """Counts what is done, for whoever watches."""

    def __init__(self, wanted: _Wanted, on_progress: Callable[[Progress], None] | None, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Detectors that are served by the same document share its data.
        sizes = {choice.key: _size(choice, max_bytes) for _, choice in wanted.choices}
        self.total, self.bytes_total = len(sizes), sum(sizes.values())
        self._on_progress, self._done, self._bytes_done = on_progress, 0, 0
        self.fetched: set[_Key] = set()

    def done(self, detector: str, choice: Choice) -> None:
        self._done += 1
        self._bytes_done += _size(choice, self._max_bytes)
        if self._on_progress is not None:
            self._on_progress(
                Progress(detector, choice.ctype, self._done, self.total, self._bytes_done, self.bytes_total)
            )


def _size(choice: Choice, max_bytes: int) -> int:
    size = expected_bytes(choice.document, max_bytes=max_bytes)
    return text_bytes(choice.document) if size is None else size


def _serves(index: EntryIndex, wanted: _Wanted) -> bool:
    """Say whether a file holds exactly the documents that are wanted, of every detector that was asked about."""
    asked = {name: wanted.det_info[name] for name in wanted.selections}
    return not needs_update(asked, index.det_info) and all(
        _same(index, name, selection) for name, selection in wanted.selections.items()
    )


def _same(index: EntryIndex, name: str, selection: Selection) -> bool:
    place = index.detectors[name]
    if place.constants is None or (place.gaps and not selection.gaps):  # the latter: what was missing can be asked now
        return False
    return {ctype: constant.key for ctype, constant in place.constants.items()} == selection.keys


def _completed(selection: Selection, experiment: str, entries: Iterable[CalibEntry]) -> Selection:
    for entry in entries:
        place = entry.index.detectors.get(selection.detector)
        if place is None or not place.constants or entry.index.det_info[selection.detector] != selection.unique_id:
            continue
        earlier = {
            ctype: Choice(ctype, constant.document, constant.database)
            for ctype, constant in place.constants.items()
            if constant.database != f"cdb_{experiment}" and ctype not in selection.refused
        }
        choices = {**earlier, **selection.choices}
        return replace(selection, choices=dict(sorted(choices.items())), reason=None if choices else selection.reason)
    return selection


def _rows(
    selection: Selection, places: Mapping[str, ConstantPlace], fetched: frozenset[_Key]
) -> Iterator[DetectorReport]:
    name, uid = selection.detector, selection.unique_id
    now = utc_now()
    for ctype, choice in selection.choices.items():
        yield DetectorReport(
            name,
            uid,
            ctype,
            choice.document_id,
            choice.run_from,
            (now - creation_time(choice.document_id)).total_seconds() / 86400.0,
            places[ctype].nbytes or text_bytes(choice.document),
            choice.key in fetched,
        )
    for ctype, why in selection.refused.items():
        yield DetectorReport(name, uid, ctype, reason=why)
    for gap in selection.gaps:
        yield DetectorReport(name, uid, reason=f"incomplete: {gap}")
    if selection.reason and not selection.refused:
        yield DetectorReport(name, uid, reason=selection.reason)
