"""How each of the systems does, from what it leaves behind: databases, status files, locks, directories.

Nothing is asked that takes long, and nothing is raised: what cannot be told is unknown, with the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from nightbeam.calib.files import EntryLine, list_entries
from nightbeam.catalog.model import GroupRow
from nightbeam.catalog.pages import ElogPages
from nightbeam.contimg.pressure import Level
from nightbeam.core.errors import MissingError, NightbeamError
from nightbeam.core.locks import is_held
from nightbeam.core.settings import Settings
from nightbeam.cxi.ledger import lock_path, read_status
from nightbeam.cxi.tallies import RunTallies
from nightbeam.elogsync.files import snapshots
from nightbeam.monitor.compute import age_words, instant_of_text, instant_of_time, number, text, whole
from nightbeam.monitor.model import (
    ConstantsFile,
    ConstantsState,
    CxiFile,
    CxiProducer,
    CxiRun,
    CxiState,
    CxiWriter,
    ElogExperiment,
    ElogFailure,
    ElogSnapshot,
    ElogState,
    QueueBacklog,
    QueueCounts,
    ScanFailure,
    ScansState,
    ScanStore,
    ScanWater,
    Standing,
    System,
)
from nightbeam.scans.report import failures_path

__all__ = [
    "constants_state",
    "contimg_system",
    "cxi_state",
    "elog_state",
    "first_line",
    "held",
    "scans_state",
    "shown",
]

#: Groups that wait and are not taken for so long have nobody who would take them: three groups come meanwhile.
_IDLE_S: Final = 3 * 309.0
#: A sign of life that is this far ahead of the clock: one of the two is wrong.
_AHEAD_S: Final = 120.0
_STALE_BEAT_S: Final = 120.0
_STALE_STATUS_S: Final = 30.0
_STALE_MIRROR: Final = timedelta(hours=25)
#: What is looked at of a directory, and shown of it.
_MOST_ENTRIES: Final = 5000
_MOST_SHOWN: Final = 200
_MOST_BYTES: Final = 4 << 20


# -- continuum imaging --------------------------------------------------------------------------------------------


def contimg_system(
    settings: Settings,
    now: datetime,
    *,
    counts: Callable[[], QueueCounts],
    backlog: Callable[[], QueueBacklog],
    last_update: Callable[[], Any],
    last_received: Callable[[], Any],
    working: Callable[[], Sequence[GroupRow]],
    collecting: Callable[[], Sequence[GroupRow]],
    failed: Callable[[], Sequence[GroupRow]],
    failures: Callable[[], int],
    finished: Callable[[], int],
    platform_runs: bool,
) -> System:
    """Return how continuum imaging does; the questions are asked of the queue."""
    ingest = settings.contimg.ingest
    about = partial(System, key="contimg", title="DSA-110 continuum imaging")
    try:
        n, since, behind = counts(), instant_of_time(last_update()), backlog()
        newest = instant_of_time(last_received())
        silent = [
            row for row in working() if _age(now, row.heartbeat_at or row.last_update) > ingest.in_progress_timeout_s
        ]
        stale = [row for row in collecting() if _age(now, row.received_at) > ingest.collecting_warn_s]
        lost, done = list(failed()), finished()
        losses = failures() if lost else 0
    except MissingError:
        return about(standing=Standing.OFF, reason="no group has come yet: there is no queue")
    except NightbeamError as error:
        return about(standing=Standing.TROUBLE, reason=error.what)
    facts: dict[str, int | float | str | None] = {
        "pending": n.pending,
        "in_progress": n.in_progress,
        "collecting": n.collecting,
        "completed_24h": done,
        "failed_24h": losses,
        "backlog_minutes": round(behind.minutes),
        "owed_images": behind.owed_images,
        "last_arrival": None if newest is None else newest.isoformat().replace("+00:00", "Z"),
    }
    if silent:
        quiet = max(_age(now, row.heartbeat_at or row.last_update) for row in silent)
        word, why = Standing.TROUBLE, f"{silent[0].group_id} has been silent for {quiet / 60:.0f} min"
    elif lost:
        word = Standing.TROUBLE
        why = f"{_many(losses, 'group')} failed in 24 h, last {lost[0].group_id}: {first_line(lost[0].error)}"
    elif (ahead := _ahead(now, since)) is not None:
        word, why = Standing.TROUBLE, ahead
    elif not platform_runs and (n.pending or n.in_progress):
        left = [f"{_many(n.pending, 'group')} {_wait(n.pending)}"] if n.pending else []
        left += [f"{_many(n.in_progress, 'group')} {_was(n.in_progress)} in work"] if n.in_progress else []
        word, why = Standing.OFF, f"the platform is stopped, {' and '.join(left)}"
    elif n.pending and not n.in_progress and since is not None and _age_of(now, since) > _IDLE_S:
        asleep = age_words(_age_of(now, since))
        word, why = (
            Standing.WAITING,
            f"{_many(n.pending, 'group')} {_wait(n.pending)} and nobody works on one; the last change was {asleep}",
        )
    elif behind.level != Level.CALM:
        gives = "images are quick until" if behind.level == Level.QUICK else "optional work waits until"
        why = f"{_many(behind.waiting, 'group')} ({behind.minutes:.0f} min of sky) behind: {gives} that is made up for"
        word = Standing.WAITING
    elif stale:
        row = stale[0]
        word, why = (
            Standing.WAITING,
            f"{row.group_id} is still incomplete after {_age(now, row.received_at) / 60:.0f} min",
        )
    elif not n.total:
        word, why = Standing.WAITING, "no group has come yet"
    elif not platform_runs:
        word, why = Standing.OFF, "the platform is stopped; nothing waits"
    elif n.in_progress or n.pending or n.collecting:
        word, why = Standing.OK, f"{n.in_progress} in work, {n.pending} waiting, {n.collecting} arriving"
    else:
        came = "" if newest is None else f"; the last began to arrive {age_words(_age_of(now, newest))}"
        word, why = Standing.OK, f"all groups done, {done} in 24 h{came}"
    return about(standing=word, reason=why, since=since, facts=facts)


def _many(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _wait(n: int) -> str:
    return "waits" if n == 1 else "wait"


def _was(n: int) -> str:
    return "was" if n == 1 else "were"


# -- the logbook --------------------------------------------------------------------------------------------------


def elog_state(settings: Settings, pages: ElogPages, now: datetime) -> ElogState:
    """Return the mirror of the logbook."""
    about = partial(System, key="elog", title="Electronic logbook")
    directory = settings.elog.database_dir
    copies = _snapshots(directory) if directory is not None else []
    mirror = pages.kept.shown
    try:
        said, failures = pages.summary(), pages.failures(limit=50)
        newest = pages.newest(limit=50)
    except MissingError as error:
        system = about(standing=Standing.OFF, reason="nothing is mirrored yet")
        return ElogState(system=system, database=mirror, snapshots=copies, problems=[error.what])
    except NightbeamError as error:
        system = about(standing=Standing.TROUBLE, reason=error.what)
        return ElogState(system=system, database=mirror, snapshots=copies, problems=[error.what])
    updated = instant_of_text(said.metadata.get("last_update"))
    success = instant_of_text(said.last_success)
    since = max((one for one in (updated, success) if one is not None), default=None)
    if said.failed:
        first = failures[0] if failures else {}
        word = Standing.TROUBLE
        why = f"{said.failed} of {said.failed + said.ok} lists could not be read: {first_line(first.get('error'))}"
    elif (ahead := _ahead(now, since)) is not None:
        word, why = Standing.TROUBLE, ahead
    elif since is None:
        word, why = Standing.WAITING, "the first update has not ended yet"
    elif now - since > _STALE_MIRROR:
        word, why = Standing.WAITING, f"the last update was {age_words((now - since).total_seconds())}"
    else:
        word, why = (
            Standing.OK,
            f"{_many(said.experiments, 'experiment')}, updated {age_words((now - since).total_seconds())}",
        )
    return ElogState(
        system=about(
            standing=word,
            reason=why,
            since=since,
            facts={"experiments": said.experiments, "entries": said.entries, "failed_lists": said.failed},
        ),
        database=mirror,
        last_update=updated,
        last_success=success,
        experiments=said.experiments,
        entries=said.entries,
        runs=said.runs,
        lists_ok=said.ok,
        lists_failed=said.failed,
        newest=[
            ElogExperiment(
                experiment_id=text(one.experiment_id) or "",
                name=text(one.name) or "",
                instrument=text(one.instrument),
                start_time=_in_utc(one.start_time),
                end_time=_in_utc(one.end_time),
                status=str(one.status),
                run_count=whole(one.run_count),
                last_run=whole(one.last_run),
                updated_at=_in_utc(one.updated_at),
            )
            for one in newest
        ],
        failures=[
            ElogFailure(
                experiment_id=text(one["experiment_id"]) or "",
                resource=str(one["resource"]),
                error=text(one["error"]),
                attempted_at=instant_of_text(one["attempted_at"]),
                synced_at=instant_of_text(one["synced_at"]),
                failures=whole(one["failures"]) or 0,
            )
            for one in failures
        ],
        snapshots=copies,
    )


def _in_utc(written: Any) -> str | None:
    """Return a time with Z; what the service has written and is none, as it is."""
    found = instant_of_text(written)
    return text(written) if found is None else found.isoformat().replace("+00:00", "Z")


def _snapshots(directory: Path) -> list[ElogSnapshot]:
    found = []
    with suppress(OSError):
        for path in reversed(snapshots(directory)[-20:]):
            with suppress(OSError):
                said = path.stat()
                found.append(
                    ElogSnapshot(
                        path=shown(str(path)), size_bytes=said.st_size, written_at=instant_of_time(said.st_mtime)
                    )
                )
    return found


# -- detector constants -------------------------------------------------------------------------------------------


def constants_state(settings: Settings, now: datetime) -> ConstantsState:
    """Return the cache of detector constants."""
    calib = settings.calib
    about = partial(System, key="constants", title="Detector constants")
    place = partial(ConstantsState, directory=shown(str(calib.output_dir)), experiment=calib.experiment)
    try:
        lines = list_entries(calib.output_dir, owners=calib.owners)
    except MissingError as error:
        wanted = calib.experiment is not None
        word = Standing.TROUBLE if wanted else Standing.OFF
        return place(system=about(standing=word, reason=error.what), problems=[error.what])
    except (NightbeamError, OSError) as error:
        said = error.what if isinstance(error, NightbeamError) else str(error)
        return place(system=about(standing=Standing.UNKNOWN, reason=said), problems=[said])
    items = sorted(map(_constants_file, lines), key=lambda one: (one.experiment, -one.run))[:_MOST_SHOWN]
    since = max((one.created_at for one in items if one.created_at is not None), default=None)
    bad = [one for one in items if one.reason]
    ours = [one for one in items if one.experiment == calib.experiment and not one.reason]
    if bad:
        word, why = (
            Standing.TROUBLE,
            f"{len(bad)} of {len(items)} cache files cannot be used: {first_line(bad[0].reason)}",
        )
    elif (ahead := _ahead(now, since)) is not None:
        word, why = Standing.TROUBLE, ahead
    elif calib.experiment is not None and not ours:
        word, why = Standing.WAITING, f"no constants of {calib.experiment} yet"
    elif not items:
        word, why = Standing.OFF, "no experiment is named, and nothing is cached"
    else:
        best = ours[0] if ours else items[0]
        word, why = Standing.OK, f"{best.experiment} up to run {best.run}, {_many(best.constants or 0, 'constant')}"
    facts: dict[str, int | float | str | None] = {
        "files": len(items),
        "bytes": sum({line.inode: line.bytes for line in lines}.values()),
    }
    return place(system=about(standing=word, reason=why, since=since, facts=facts), items=items)


def _constants_file(line: EntryLine) -> ConstantsFile:
    return ConstantsFile(
        experiment=line.experiment,
        run=line.run,
        path=shown(str(line.path)),
        size_bytes=line.bytes,
        created_at=instant_of_text(line.created),
        detectors=line.detectors,
        constants=line.constants,
        skipped=list(line.skipped),
        shared_by=line.shared_by,
        reason=text(line.reason),
    )


# -- scans --------------------------------------------------------------------------------------------------------


def scans_state(settings: Settings, now: datetime) -> ScansState:
    """Return the scan calibrator and its stores."""
    out = settings.scans.output_dir
    assert out is not None  # resolved
    about = partial(System, key="scans", title="Single-dish scans")
    problems: list[str] = []
    beat = _object(out / "scan-calibrator.json", problems)
    runs = held(out / "scan-calibrator.lock")
    stores = _stores(out, problems)
    failures = [one for store in stores[:20] for one in _failures(out, store)][:_MOST_SHOWN]
    at = instant_of_text(beat.get("at"))
    failed, waits = whole(beat.get("failed")) or 0, _texts(beat.get("problems"))
    backlog = whole(beat.get("backlog")) or 0
    silent_s = _age_of(now, at)
    if not beat and not runs:
        if problems:
            word, why = Standing.UNKNOWN, problems[0]
        elif stores:
            word, why = Standing.OFF, f"not running; {_many(len(stores), 'store')} of results"
        else:
            word, why = Standing.OFF, "nobody has started it"
    elif not runs:
        word, why = Standing.OFF, f"not running, last seen {age_words(silent_s)}"
        if backlog or waits:
            word, why = (
                Standing.TROUBLE,
                f"not running, and {_many(backlog, 'scan')} {_wait(backlog)}" if backlog else first_line(waits[0]),
            )
    elif at is None:
        word, why = Standing.UNKNOWN, "it runs and has not said how it does"
    elif silent_s > max(_STALE_BEAT_S, 20 * settings.scans.interval_s):
        word, why = Standing.TROUBLE, f"it runs and has been silent for {silent_s / 60:.0f} min"
    elif (ahead := _ahead(now, at)) is not None:
        word, why = Standing.TROUBLE, ahead
    elif waits:
        word, why = Standing.TROUBLE, first_line(waits[0])
    elif failed:
        word, why = (
            Standing.TROUBLE,
            f"{_many(failed, 'scan')} cannot be calibrated: {first_line(beat.get('last_error'))}",
        )
    elif backlog:
        word, why = (
            Standing.WAITING,
            f"{_many(backlog, 'scan')} {_wait(backlog)} for {'its' if backlog == 1 else 'their'} turn",
        )
    else:
        word, why = Standing.OK, f"{_many(whole(beat.get('done')) or 0, 'scan')} calibrated, none waits"
    changed = max((store.changed_at for store in stores if store.changed_at is not None), default=None)
    facts: dict[str, int | float | str | None] = {"backlog": backlog, "failed": failed, "stores": len(stores)}
    return ScansState(
        system=about(standing=word, reason=why, since=at or changed, facts=facts),
        directory=shown(str(out)),
        running=runs,
        pid=whole(beat.get("pid")),
        beat_at=at,
        done=whole(beat.get("done")) or 0,
        skipped=whole(beat.get("skipped")) or 0,
        failed=failed,
        backlog=backlog,
        writing=whole(beat.get("writing")) or 0,
        seconds={str(k): n for k, v in _mapping(beat.get("seconds")).items() if (n := number(v)) is not None},
        last_scan=text(beat.get("last_scan")) or None,
        last_error=text(beat.get("last_error")) or None,
        water=[_water(one) for one in _dicts(beat.get("water"))[-500:]],
        stores=stores,
        failures=failures,
        problems=[*problems, *waits],
    )


def _stores(out: Path, problems: list[str]) -> list[ScanStore]:
    found = []
    for entry in _entries(out, problems):
        if not entry.name.endswith(".zarr"):
            continue
        with suppress(OSError):
            scans = out / entry.name / "scans"
            changed = scans.stat().st_mtime if scans.is_dir() else entry.stat().st_mtime
            numbers = sum(one.name.startswith("scan") and one.is_dir() for one in _entries(scans, []))
            found.append(
                ScanStore(
                    name=shown(entry.name.removesuffix(".zarr")),
                    path=shown(entry.path),
                    scans=numbers,
                    changed_at=instant_of_time(changed),
                    failures=len(_dicts(_object(failures_path(out / entry.name), []).get("failures"))),
                    running=held(out / f"{entry.name}.lock"),
                )
            )
    return sorted(found, key=lambda one: -(one.changed_at.timestamp() if one.changed_at else 0.0))[:_MOST_SHOWN]


def _failures(out: Path, store: ScanStore) -> Iterator[ScanFailure]:
    if not store.failures:
        return
    for one in _dicts(_object(failures_path(out / f"{store.name}.zarr"), []).get("failures")):
        yield ScanFailure(
            store=store.name,
            scan=whole(one.get("scan")) or 0,
            error=text(one.get("error")) or "",
            stage=text(one.get("stage")) or "",
            message=first_line(one.get("message")),
        )


def _water(one: Mapping[str, Any]) -> ScanWater:
    return ScanWater(
        at=instant_of_text(one.get("at")),
        store=text(one.get("store")) or "",
        scan=whole(one.get("scan")) or 0,
        pwv_mm=number(one.get("pwv_mm")),
        source=text(one.get("source")) or "",
    )


# -- CXI ----------------------------------------------------------------------------------------------------------


def cxi_state(settings: Settings, now: datetime) -> CxiState:
    """Return the CXI writers of the output directory."""
    about = partial(System, key="cxi", title="CXI files")
    problems: list[str] = []
    out = _cxi_directory(settings, problems)
    if out is None:
        word = Standing.TROUBLE if problems else Standing.OFF
        why = problems[0] if problems else "no writer is configured: set cxi.config or cxi.output_dir"
        return CxiState(system=about(standing=word, reason=why), directory=None, problems=problems)
    told = _statuses(out, problems)
    writers = sorted(
        (_writer(out, prefix, said) for prefix, said in told),
        key=lambda one: (not one.running, -(one.updated_at.timestamp() if one.updated_at else 0.0)),
    )
    runs = [run for prefix, said in told for run in _runs_of(prefix, said)]
    newest = _cxi_files(out)
    since = max((one.updated_at for one in writers if one.updated_at is not None), default=None)
    running = [one for one in writers if one.running]
    silent = [one for one in running if one.updated_at is None or _age_of(now, one.updated_at) > _STALE_STATUS_S]
    ill = [one for one in running if one.problems]
    last = max(writers, key=lambda one: one.updated_at.timestamp() if one.updated_at else 0.0, default=None)
    if silent:
        quiet = silent[0].updated_at
        said = "does not say when it last did" if quiet is None else f"has been silent for {_age_of(now, quiet):.0f} s"
        word, why = Standing.TROUBLE, f"{silent[0].prefix} runs and {said}"
    elif ill:
        word, why = Standing.TROUBLE, f"{ill[0].prefix}: {first_line(ill[0].problems[0])}"
    elif (ahead := _ahead(now, since)) is not None:
        word, why = Standing.TROUBLE, ahead
    elif running:
        rate = sum(one.events_per_s or 0.0 for one in running)
        written = sum(one.events_written for one in running)
        word = Standing.OK if any(one.events_received for one in running) else Standing.WAITING
        why = (
            f"{_many(written, 'event')} written, {rate:.1f} events/s"
            if word is Standing.OK
            else "running, nothing has come yet"
        )
    elif last is not None and last.state not in ("ended",):
        word, why = Standing.TROUBLE, f"{last.prefix} is gone and has not ended: its last word was {last.state}"
    elif last is not None and last.events_lost:
        word, why = Standing.TROUBLE, f"{last.prefix} has ended and lost {_many(last.events_lost, 'event')}"
    elif last is not None:
        word, why = (
            Standing.OFF,
            f"ended{f' ({last.ended_by})' if last.ended_by else ''}, {_many(last.events_written, 'event')} written",
        )
    elif problems:
        word, why = Standing.UNKNOWN, problems[0]
    else:
        word, why = Standing.OFF, "nobody has started it"
    facts: dict[str, int | float | str | None] = {
        "writers": len(writers),
        "running": len(running),
        "events_written": sum(one.events_written for one in writers),
        "events_lost": sum(one.events_lost for one in writers),
    }
    return CxiState(
        system=about(standing=word, reason=why, since=since, facts=facts),
        directory=shown(str(out)),
        writers=writers,
        runs=sorted(runs, key=lambda one: one.until.timestamp() if one.until else 0.0, reverse=True)[:_MOST_SHOWN],
        newest=newest,
        problems=problems,
    )


def _cxi_directory(settings: Settings, problems: list[str]) -> Path | None:
    if settings.cxi.output_dir is not None:
        return settings.cxi.output_dir
    if settings.cxi.config is None:
        return None
    from nightbeam.cxi.config import load_config

    try:
        return load_config(settings.cxi.config).output.output_dir.absolute()
    except (NightbeamError, OSError) as error:
        problems.append(error.what if isinstance(error, NightbeamError) else str(error))
        return None


def _statuses(out: Path, problems: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = []
    for entry in _entries(out, problems):
        if not entry.name.endswith("_status.json") or entry.name.startswith("."):
            continue
        try:
            found.append((entry.name.removesuffix("_status.json"), read_status(Path(entry.path))))
        except MissingError:
            continue  # it was removed meanwhile
        except (NightbeamError, OSError) as error:
            problems.append(error.what if isinstance(error, NightbeamError) else str(error))
    return found


def _runs_of(prefix: str, said: Mapping[str, Any]) -> list[CxiRun]:
    return [
        CxiRun(
            writer=shown(prefix),
            experiment=None if one.experiment is None else shown(one.experiment),
            run=one.run,
            events=one.events,
            hits=one.hits,
            peaks=one.peaks,
            hit_rate=one.hit_rate,
            since=instant_of_text(one.since),
            until=instant_of_text(one.until),
        )
        for one in RunTallies.from_json(said.get("runs")).newest()
    ]


def _writer(out: Path, prefix: str, said: Mapping[str, Any]) -> CxiWriter:
    counters = _mapping(said.get("counters"))
    queue = _mapping(said.get("queue"))
    return CxiWriter(
        prefix=shown(prefix),
        directory=shown(str(out)),
        state=text(said.get("state")) or "unknown",
        running=held(lock_path(out, prefix)),
        updated_at=instant_of_text(said.get("updated")),
        pid=whole(said.get("pid")),
        host=text(said.get("host")),
        queue=text(queue.get("name")),
        ended_by=text(said.get("ended_by")),
        events_received=whole(counters.get("events_received")) or 0,
        events_written=whole(counters.get("total_events_written")) or 0,
        events_filtered=whole(counters.get("total_events_filtered")) or 0,
        events_rejected=_total(counters.get("events_rejected")),
        events_lost=_total(counters.get("events_lost")),
        files=whole(counters.get("chunks_written")) or 0,
        events_per_s=number(counters.get("events_per_s")),
        hit_rate=number(counters.get("hit_rate")),
        last_file=text(counters.get("last_file")),
        queue_size=whole(counters.get("queue_size")),
        producers=[_producer(str(name), page) for name, page in list(_mapping(said.get("producers")).items())[:100]],
        problems=_texts(said.get("problems")),
        counters={str(k): v for k, v in counters.items() if v is None or isinstance(v, str | int | bool)}
        | {str(k): number(v) for k, v in counters.items() if isinstance(v, float)},
    )


def _producer(name: str, page: Any) -> CxiProducer:
    said = _mapping(page)
    return CxiProducer(
        name=shown(name),
        batches=_length(said.get("taken")),
        settled=_length(said.get("settled")),
        abandoned=_length(said.get("abandoned")),
        ended=bool(said.get("ended")),
    )


def _length(ranges: Any) -> int:
    """Return how many numbers a list of ranges (first, last, ...) holds."""
    total = 0
    for one in ranges if isinstance(ranges, list) else []:
        first, last = (whole(n) for n in one[:2]) if isinstance(one, list) and len(one) >= 2 else (None, None)
        total += max(0, last - first + 1) if first is not None and last is not None else 0
    return total


def _cxi_files(out: Path) -> list[CxiFile]:
    found = []
    for entry in _entries(out, []):
        if entry.name.endswith(".cxi") and not entry.name.startswith("."):
            with suppress(OSError):
                said = entry.stat()
                found.append((said.st_mtime, said.st_size, entry.name))
    found.sort(reverse=True)
    return [CxiFile(name=shown(name), size_bytes=size, written_at=instant_of_time(at)) for at, size, name in found[:50]]


# -- small things -------------------------------------------------------------------------------------------------


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return a JSON object of a file, empty where there is none; what else is wrong is said."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        found = json.loads(data) if len(data) <= _MOST_BYTES else None
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        problems.append(f"{shown(str(path))} cannot be read: {error.strerror}")
        return {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        problems.append(f"{shown(str(path))} is damaged")
        return {}
    return found


def _entries(directory: Path, problems: list[str]) -> list[os.DirEntry[str]]:
    found: list[os.DirEntry[str]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                found.append(entry)
                if len(found) >= _MOST_ENTRIES:
                    problems.append(
                        f"{shown(str(directory))} holds more than {_MOST_ENTRIES} things; not all were looked at"
                    )
                    break
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        problems.append(f"{shown(str(directory))} cannot be listed: {error.strerror}")
    return found


def held(lock: Path) -> bool:
    """Say whether somebody holds a lock; False where it cannot be told."""
    try:
        return is_held(lock)
    except OSError:
        return False


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _texts(value: Any) -> list[str]:
    return [shown(str(one)) for one in value] if isinstance(value, list) else []


def _total(reasons: Any) -> int:
    return sum(whole(n) or 0 for n in _mapping(reasons).values())


def first_line(value: Any) -> str:
    """Return the first line of a text, short enough for a glance."""
    lines = shown(str(value or "")).strip().splitlines()
    first = lines[0] if lines else "no reason was given"
    return first if len(first) <= 200 else f"{first[:199]}\N{HORIZONTAL ELLIPSIS}"


def shown(written: str) -> str:
    """Return a name of a file as text that can be sent."""
    return text(written) or ""


def _age(now: datetime, seconds: Any) -> float:
    found = number(seconds)
    return 0.0 if found is None else now.timestamp() - found


def _age_of(now: datetime, then: datetime | None) -> float:
    return 0.0 if then is None else (now - then).total_seconds()


def _ahead(now: datetime, then: datetime | None) -> str | None:
    """Return what is wrong where a sign of life is of the future."""
    age = _age_of(now, then)
    return f"its last sign of life is {-age / 60:.0f} min in the future: a clock is wrong" if age < -_AHEAD_S else None
