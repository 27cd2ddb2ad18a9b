"""Whether a site is ready for the night: mounts, databases, queue, calibration, tickets, clock, pools, schedules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from nightbeam.catalog.compute import candidates, serves_until
from nightbeam.core.errors import BusyError, InputError, MissingError, NightbeamError
from nightbeam.core.settings import Settings
from nightbeam.core.times import SECONDS_PER_DAY, datetime_from_mjd, iso_z, mjd_from_datetime, utc_now
from nightbeam.platform.doctor import examine, needed_programs
from nightbeam.platform.findings import Finding, Health, guarded
from nightbeam.platform.model import PartState, Phase, PlatformStatus, PoolStatus
from nightbeam.platform.storage import directories_of, examine_storage, needs_of

__all__ = ["CANARY_RECORD", "examine_site", "look_around"]

#: Where the last canary left what it found, below the state directory.
CANARY_RECORD = Path("canary") / "last.json"
#: Of these a site's nights depend; that one has no active schedule is told.
NEEDED = ("ingest-subbands", "housekeeping", "sweep-zombies", "nightly-mosaic", "clean-results", "flight-check")
_LEAST_MEMORY = 2e9
#: A canary takes a minute, and on a busy machine some.
_LONGEST_CANARY_H = 0.5
_DAY_S = 86400.0


def look_around(settings: Settings, *, thorough: bool = True) -> list[Finding]:
    """Look at the machine and at the site; see `doctor.examine` and `examine_site`."""
    return [*examine(needed=needed_programs(settings)), *examine_site(settings, thorough=thorough)]


def examine_site(settings: Settings, *, now: float | None = None, thorough: bool = True) -> list[Finding]:
    """Look at everything that a night at this site needs beside the machine itself.

    Parameters
    ----------
    settings
        Resolved settings.
    now
        Epoch seconds.
    thorough
        Whether the databases are read through for damage, which takes minutes where they are large.

    Returns
    -------
    list of Finding
        Never raises: what cannot be looked at is a finding.
    """
    now = time.time() if now is None else now
    findings: list[Finding] = []
    for mount in settings.doctor.expected_mounts:
        findings += guarded(f"mount {mount}", partial(_one, _mount, mount), timeout_s=10.0)
    findings += _storage(settings)
    findings += guarded("free memory", _free_memory)
    findings += guarded("clock", lambda: [_clock()])
    for name, url in _databases(settings):
        look = partial(_database, name, url, thorough=thorough)
        findings += guarded(f"database {name}", look, timeout_s=600.0 if thorough else 30.0)
    findings += guarded("queue", lambda: _queue(settings, now))
    findings += guarded("calibration", lambda: [_calibration(settings, now)])
    findings += guarded("kerberos ticket", lambda: [_ticket(settings)])
    findings += guarded("canary", lambda: [_canary(settings, now)])
    findings += guarded("alarms", lambda: [_alarms(settings, now)])
    findings += guarded("platform", lambda: _platform(settings), timeout_s=120.0)
    return findings


# -- the machine's storage, memory and clock ----------------------------------------------------------------------


def _one(look: Callable[[Path], Finding], path: Path) -> list[Finding]:
    return [look(path)]


def _mount(path: Path) -> Finding:
    check = f"mount {path}"
    if not path.is_dir():
        return Finding(check, Health.FAIL, "no such directory", f"mount {path}")
    if not os.path.ismount(path):
        where = next(str(p) for p in (path, *path.parents) if os.path.ismount(p))
        return Finding(check, Health.FAIL, f"nothing is mounted there: it is part of {where}", f"mount {path}")
    return Finding(check, Health.OK, "mounted")


def _storage(settings: Settings) -> list[Finding]:
    sizes: list[float] = []

    def ask() -> list[Finding]:
        sizes.extend(_group_bytes(settings))
        return []

    guarded("queue", ask)  # what is wrong with the queue is told where that is looked at
    return examine_storage(directories_of(settings), needs_of(settings, max(list(sizes), default=None)))


def _group_bytes(settings: Settings) -> list[float]:
    """Return the bytes of the newest groups, each as if it were complete."""
    queue = _site(settings).queue
    found = []
    for row in queue.groups(limit=5) if queue is not None else []:
        sizes = [band.size_bytes for band in queue.subbands(row.group_id) if band.size_bytes]
        if sizes:
            found.append(float(max(sizes) * (row.expected_subbands or settings.contimg.ingest.expected_subbands)))
    return found


def _free_memory() -> list[Finding]:
    import psutil

    free = psutil.virtual_memory().available
    found = f"{free / 1e9:.1f} GB available"
    if free >= _LEAST_MEMORY:
        return [Finding("free memory", Health.OK, found)]
    return [Finding("free memory", Health.WARN, f"{found}, a group wants 2", "end what uses it, or fewer at a time")]


def _clock() -> Finding:
    program = shutil.which("timedatectl")
    told = ""
    if program:
        asked = [program, "show", "--property=NTPSynchronized", "--value"]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, timeout=10.0, check=False)
            told = done.stdout.strip() if done.returncode == 0 else ""
        except (OSError, subprocess.TimeoutExpired):
            told = ""
    if told == "yes":
        return Finding("clock", Health.OK, "synchronised")
    if told == "no":
        return Finding("clock", Health.WARN, "not synchronised: ages and leases are wrong by its error", "start NTP")
    return Finding("clock", Health.OK, "nobody here knows whether it is synchronised")


# -- databases, queue, calibration --------------------------------------------------------------------------------


def _databases(settings: Settings) -> list[tuple[Any, str]]:
    c = settings.contimg
    named: list[tuple[Any, str | None]] = [
        ("queue", c.queue_db),
        ("registry", c.registry_db),
        ("products", c.products_db),
        ("elog", settings.elog.database),
    ]
    return [(name, url) for name, url in named if url]


def _database(name: Any, url: str, *, thorough: bool) -> list[Finding]:
    from nightbeam.catalog.remote import Database

    check = f"database {name}"
    try:
        database = Database(url, name, create=False, migrate=False, busy_timeout_s=5.0)
        said = database.quick_check() if thorough else "ok"
        revision = database.revision()
    except MissingError:
        return [Finding(check, Health.OK, "not made yet")]
    except BusyError as error:
        return [Finding(check, Health.WARN, error.what, error.fix)]
    except NightbeamError as error:
        return [Finding(check, Health.FAIL, error.what, error.fix)]
    if said != "ok":
        return [Finding(check, Health.FAIL, f"damaged: {said}", "stop the platform, take a copy, sqlite3 .recover")]
    return [Finding(check, Health.OK, f"{'whole' if thorough else 'opens'}, schema {revision}")]


def _site(settings: Settings) -> Any:
    from nightbeam.contimg.databases import open_existing
    from nightbeam.contimg.site import Site

    return open_existing(Site.from_settings(settings), migrate=False)


def _queue(settings: Settings, now: float) -> list[Finding]:
    from nightbeam.contimg.pressure import Level, backlog_of, would_be
    from nightbeam.contimg.site import Site

    queue = _site(settings).queue
    if queue is None:
        return [Finding("queue", Health.OK, "no group has come yet")]
    site = Site.from_settings(settings)
    row, most = queue.arrears.backlog(), settings.doctor.backlog_groups
    backlog = backlog_of(row, minutes_each=site.ingest.chunk_minutes, now=now)
    pressure = would_be(queue.arrears.pressure(), backlog, site.pressure)
    waiting = backlog.waiting + backlog.for_gains
    said = f"{waiting} groups wait, {backlog.in_work} are worked on"
    said += f"; {backlog.minutes:.0f} min of sky could be imaged" if backlog.waiting else ""
    said += f", the oldest of {backlog.oldest_s / 3600.0:.1f} h ago" if backlog.oldest_s is not None else ""
    said += f"; {backlog.for_gains} wait for gains" if backlog.for_gains else ""
    said += f"; pressure: {pressure.level}" if pressure.level is not Level.CALM else ""
    said += f"; {backlog.owed_images} quick images are to be made in full" if backlog.owed_images else ""
    fix = "nightbeam groups list --state pending; more workers, or quicker images"
    findings = [
        Finding("queue", Health.OK, said) if waiting <= most else Finding("queue", Health.WARN, said, fix),
    ]
    failed = [row for row in queue.groups(state="failed") if now - row.last_update < _DAY_S]
    if failed:
        last = max(failed, key=lambda row: row.last_update)
        text = f"{len(failed)} in the last day; the last to fail was {last.group_id}: {last.error}"
        findings.append(Finding("failed groups", Health.WARN, text, f"nightbeam groups show {last.group_id}"))
    return findings


def _calibration(settings: Settings, now: float) -> Finding:
    """Say for how long there are gains for the strip that is observed: that of the newest group."""
    opened = _site(settings)
    check, fix = "calibration", "image a calibrator, or register a set: nightbeam registry"
    if opened.registry is None:
        return Finding(check, Health.OK, "there is no registry yet: the first calibrator makes it")
    mjd = mjd_from_datetime(utc_now()) + (now - time.time()) / SECONDS_PER_DAY
    active = candidates(opened.registry.tables())
    if not active:
        return Finding(check, Health.WARN, "the registry has no active set: groups wait until there is one", fix)
    newest = opened.queue.groups(limit=1) if opened.queue is not None else []
    dec = newest[0].dec_deg if newest else None
    dec = settings.contimg.calibrate.pointing_dec_deg if dec is None else dec
    borrow = settings.contimg.calibrate.borrow_days
    if dec is None:  # nothing has been observed: of the strip of the newest set
        dec = max(active, key=lambda one: one.mid_mjd).dec_deg
    ends = {one.set_name: serves_until(one, dec_deg=dec, borrow_days=borrow) for one in active}
    strip = "" if dec is None else f" for the strip at Dec {dec:+.2f}"
    best = opened.registry.find_set(mjd, dec_deg=dec, borrow_days=borrow)
    last = max((name for name in ends if ends[name] is not None), key=lambda name: ends[name] or 0.0, default=None)
    end = None if last is None else ends[last]
    if best is None:
        ended = "" if end is None else f"; {last} served until {iso_z(datetime_from_mjd(end))}"
        faulty = "; its tables are gone or have changed" if end is not None and end >= mjd else ""
        return Finding(check, Health.WARN, f"no set{strip} serves now: groups wait{ended}{faulty}", fix)
    how = f"borrowed, {best.age_days * 24.0:.1f} h old" if best.borrowed else "valid"
    left = "" if end is None else f"; {last} serves for {(end - mjd) * 24.0:.1f} h more"
    return Finding(check, Health.OK, f"{best.set_name}{strip} is {how}{left}")


# -- tickets, canary ----------------------------------------------------------------------------------------------


def _ticket(settings: Settings) -> Finding:
    check, elog = "kerberos ticket", settings.elog
    if elog.auth != "kerberos":
        return Finding(check, Health.OK, f"not needed: elog.auth is {elog.auth}")
    from nightbeam.elog.credentials import ticket_seconds

    try:
        left_h = ticket_seconds() / 3600.0
    except NightbeamError as error:
        if not _mirrors(settings):
            return Finding(check, Health.OK, f"{error.what}; no logbook is mirrored here")
        return Finding(check, Health.FAIL, error.what, error.fix or "run kinit")
    if left_h < settings.doctor.ticket_hours:
        return Finding(check, Health.WARN, f"valid for {left_h:.1f} h more", "kinit -R, or a keytab and k5start")
    return Finding(check, Health.OK, f"valid for {left_h:.1f} h more")


def _mirrors(settings: Settings) -> bool:
    """Return whether a logbook has ever been mirrored here."""
    url = settings.elog.database or ""
    return bool(url) and (not url.startswith("sqlite:///") or Path(url.removeprefix("sqlite:///")).exists())


def _canary(settings: Settings, now: float) -> Finding:
    file = (settings.contimg.state_dir or settings.state_dir) / CANARY_RECORD
    try:
        said = json.loads(file.read_text())
        flying = bool(said.get("flying", False))
        age_h, right, found = (now - float(said["ended_at"])) / 3600.0, bool(said["right"]), str(said["found"])
    except FileNotFoundError:
        return Finding("canary", Health.WARN, "none has been flown", "nightbeam canary")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no record of a canary: {error}", fix="nightbeam canary") from error
    if flying and age_h < _LONGEST_CANARY_H:
        return Finding("canary", Health.OK, "is being flown just now")
    if not right:
        return Finding("canary", Health.FAIL, f"{found} ({age_h:.1f} h ago)", "nightbeam canary says more")
    if age_h > settings.doctor.canary_hours:
        return Finding("canary", Health.WARN, f"the last was right {age_h:.1f} h ago", "nightbeam canary")
    return Finding("canary", Health.OK, f"{found} ({age_h:.1f} h ago)")


def _alarms(settings: Settings, now: float) -> Finding:
    from nightbeam.platform.alarms import read_alarms

    since = iso_z(datetime.fromtimestamp(now - _DAY_S, UTC))
    places = dict.fromkeys(path for path in (settings.state_dir, settings.contimg.state_dir) if path)
    new = [alarm for alarm in read_alarms(*places) if alarm.at >= since]
    if not new:
        return Finding("alarms", Health.OK, "none in the last day")
    text = f"{len(new)} in the last day; the last: {new[-1].sentence()}"
    return Finding("alarms", Health.WARN, text, f"read alarms*.jsonl in {' and '.join(map(str, places))}")


# -- the platform -------------------------------------------------------------------------------------------------


def _platform(settings: Settings) -> list[Finding]:
    from nightbeam.platform.control import platform_status

    auth = settings.platform.auth_string or os.environ.get("PREFECT_API_AUTH_STRING")
    platform = settings.platform.model_copy(update={"auth_string": auth})
    settings = settings.model_copy(update={"platform": platform})
    status = platform_status(settings)
    if status.phase is Phase.STOPPED and not status.api_url:
        return [Finding("platform", Health.OK, "never started here")]
    findings = [_supervisor(status), _server(status)]
    if status.server == "healthy":
        most = settings.doctor.backlog_groups
        findings += _pools(status.pools, settings.platform.pools, most, running=status.phase is Phase.RUNNING)
        findings += _schedules(status.api_url, auth)
    return findings


def _supervisor(status: PlatformStatus) -> Finding:
    if status.problem:
        return Finding("platform", Health.FAIL, status.problem, "nightbeam status; read its logs")
    if status.phase is not Phase.RUNNING:
        return Finding("platform", Health.WARN, str(status.phase), "nightbeam up")
    down = [part.name for part in status.parts if part.state is not PartState.RUNNING]
    if down:
        return Finding("platform", Health.WARN, f"{', '.join(down)} not running just now", "nightbeam status")
    return Finding("platform", Health.OK, f"running, {len(status.parts)} parts")


def _server(status: PlatformStatus) -> Finding:
    if status.server == "healthy":
        return Finding("prefect server", Health.OK, status.api_url)
    health = Health.FAIL if status.phase is Phase.RUNNING else Health.WARN
    return Finding("prefect server", health, f"{status.api_url}: {status.server}", "nightbeam up")


def _pools(pools: Sequence[PoolStatus], wanted: dict[str, int], most: int, *, running: bool) -> list[Finding]:
    there = {pool.name: pool for pool in pools}
    return [_pool(name, there.get(name), places, most, running=running) for name, places in sorted(wanted.items())]


def _pool(name: str, pool: PoolStatus | None, places: int, most: int, *, running: bool) -> Finding:
    check = f"pool {name}"
    if pool is None:
        return Finding(check, Health.FAIL, "not on the server", "nightbeam apply")
    if pool.paused:
        return Finding(check, Health.WARN, "paused: nothing of it starts", f"prefect work-pool resume {name}")
    if not pool.workers_online:
        return Finding(check, Health.FAIL if running else Health.WARN, "no worker is online", "nightbeam up")
    said = f"{pool.workers_online} workers, {pool.running} running, {pool.late} late"
    # Behind runs that take every place it is no wonder that some wait; the queue tells how many groups do.
    busy = pool.running + pool.pending >= places
    if pool.late > (most if busy else 0):
        return Finding(check, Health.WARN, said, "more at a time (platform.pools), or look at what runs")
    return Finding(check, Health.OK, said)


def _schedules(api_url: str, auth: str | None) -> list[Finding]:
    from nightbeam.platform.remote import PrefectApi

    off = []
    deployments = {}
    for deployment in PrefectApi(api_url, auth_string=auth).deployments():
        deployments[deployment["entrypoint"].rpartition(".")[2].replace("_", "-")] = deployment
    for name in NEEDED:
        one = deployments.get(name)
        if one is None:
            off.append(f"{name} is not on the server")
        elif one.get("paused") or not any(s.get("active") for s in one.get("schedules", [])):
            off.append(f"{name} is paused")
    if off:
        return [Finding("schedules", Health.WARN, "; ".join(off), "resume them on the page, or nightbeam apply")]
    return [Finding("schedules", Health.OK, f"{len(NEEDED)} active")]
