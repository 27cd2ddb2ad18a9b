"""What lies beside the mirror: snapshots, the lock, the list of failures, and the configuration of elogfetch."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from nightbeam.catalog import Logbook
from nightbeam.catalog.elog_model import LAST_CHANGE
from nightbeam.catalog.elog_snapshot import is_snapshot, snapshot_counts, snapshot_mark
from nightbeam.core.errors import ConfigError, InputError, MissingError, RejectedError
from nightbeam.core.files import storage_errors, write_text
from nightbeam.core.times import iso_z, utc_now
from nightbeam.elogsync.compute import kept_snapshots, shrunk, snapshot_name, snapshot_time
from nightbeam.elogsync.model import Outcome

__all__ = [
    "FAILED",
    "Published",
    "latest_snapshot",
    "outdated",
    "publish",
    "read_config",
    "read_failed",
    "snapshots",
    "write_failed",
]

_log = logging.getLogger(__name__)

#: Where elogfetch keeps the experiments that could not be read.
FAILED = "failed_experiments.json"

_NO_LIST = "name the file that an update wrote"

#: Keys of elogfetch's configuration that are ours under another name, and those that mean nothing here.
_KEYS = {"database_path": "database"}
_IGNORED = frozenset({"queue_size", "batch_commit_size"})

#: What has not got its name yet (`nightbeam.core.files.part_path`), and what SQLite and our locks lay beside it.
_PART = re.compile(r"\.{1,2}(.+)\.(\d{1,9})\.[0-9a-f]{8}\.part(?:-wal|-shm|-journal|\.lock)?")


@dataclass(frozen=True, slots=True)
class Published:
    """A snapshot.

    Attributes
    ----------
    rows
        By table, without those of what the service has no more.
    removed
        Snapshots that their age made superfluous.
    """

    path: Path
    rows: Mapping[str, int]
    removed: tuple[Path, ...] = ()


def snapshots(directory: Path) -> list[Path]:
    """Return the snapshots of a directory, the newest last; none where there is no such directory."""
    try:
        found = [path for path in directory.iterdir() if snapshot_time(path.name) is not None]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda path: path.name)


def latest_snapshot(directory: Path) -> Path | None:
    """Return the newest snapshot, or None."""
    found = snapshots(directory)
    return found[-1] if found else None


def outdated(logbook: Logbook, directory: Path) -> bool:
    """Say whether the newest snapshot lacks something that the mirror has, whoever wrote it and however that ended."""
    last = latest_snapshot(directory)
    try:
        return last is None or snapshot_mark(last) != logbook.metadata().get(LAST_CHANGE)
    except (InputError, MissingError):
        return True


def publish(
    logbook: Logbook,
    directory: Path,
    *,
    most_shrink: float = 0.1,
    shrink: bool = False,
    now: Callable[[], datetime] = datetime.now,
) -> Published:
    """Publish the mirror as it is now, for readers of a single file, and remove old snapshots by their age.

    To be called by its sole writer; what a killed one has left half done is removed. Files of the same names that
    another program made are neither compared with, nor replaced, nor removed.

    Parameters
    ----------
    most_shrink
        The fraction of its rows that a table may have lost since the last snapshot. Rows count that the service had
        when its lists were read last.
    shrink
        Publish whatever was lost.
    now
        The local time, for names.

    Raises
    ------
    RejectedError
        If far fewer rows would be published than last time; the last snapshot stays.
    ConfigError
        If the mirror itself has the name of a snapshot, and lies among them.
    StorageError
        If it cannot be written.
    """
    _refuse_snapshot_as_mirror(logbook, directory)
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
    ours = [path for path in snapshots(directory) if is_snapshot(path)]
    # What the service has no more keeps its rows, but readers of the views do not see them.
    rows = logbook.counts(present=True)
    last, before = _last_counts(ours)
    if not shrink and (lost := shrunk(before, rows, most=most_shrink)):
        raise RejectedError(
            f"not published: {'; '.join(lost)} ({last})",
            fix="find out what became of them; if that is right, publish with --shrink",
        )
    path = logbook.backup(_free_name(directory, ours, now()))
    names = {one.name for one in ours} | {path.name}
    kept = kept_snapshots(names, now=now())
    removed = [directory / name for name in sorted(names - kept - {path.name})]
    for one in removed:
        with storage_errors(one):
            one.unlink(missing_ok=True)
    return Published(path, rows, tuple(removed))


def _refuse_snapshot_as_mirror(logbook: Logbook, directory: Path) -> None:
    """Refuse a mirror that would be taken for one of its own snapshots, and removed when it is old."""
    file = logbook.database.file
    if file is not None and snapshot_time(file.name) is not None and file.resolve().parent == directory.resolve():
        raise ConfigError(
            f"the mirror {file} has the name of a snapshot and lies among them",
            fix="rename it, to elog.db for example, and say so with --database",
        )


def _last_counts(ours: Sequence[Path]) -> tuple[Path | None, Mapping[str, int]]:
    """Return the newest snapshot that can be read, and its rows."""
    for path in reversed(ours):
        try:
            return path, snapshot_counts(path, present=True)
        except InputError as error:
            _log.warning("%s is passed over: %s", path, error.what)
    return None, {}


def _free_name(directory: Path, ours: Iterable[Path], now: datetime) -> Path:
    """Return where a snapshot of this minute goes; what is not ours is not replaced."""
    path, known = directory / snapshot_name(now), set(ours)
    while path.exists() and path not in known:
        now += timedelta(minutes=1)
        path = directory / snapshot_name(now)
    return path


def _sweep(directory: Path) -> None:
    """Remove what those who were killed on this machine have not brought to its name."""
    for path in directory.iterdir():
        found = _PART.fullmatch(path.name)
        if found and (found[1] == FAILED or snapshot_time(found[1]) is not None) and not _lives(int(found[2])):
            path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def write_failed(
    directory: Path, outcomes: Iterable[Outcome], *, others: bool = False, now: datetime | None = None
) -> Path | None:
    """Write which experiments could not be read, as elogfetch does; returns None, and no file stays, if all could.

    Parameters
    ----------
    others
        Whether experiments that nobody has tried to read now stay in the list.
    """
    path, tried = directory / FAILED, list(outcomes)
    stamp = iso_z(now or utc_now())
    failed = [
        {"experiment_id": one.experiment_id, "error": _why(one), "timestamp": stamp} for one in tried if one.failed
    ]
    if others:
        known = {one.experiment_id for one in tried}
        failed = [one for one in _listed(path) if one["experiment_id"] not in known] + failed
    with storage_errors(path):
        if directory.is_dir():
            _sweep(directory)
        if not failed:
            path.unlink(missing_ok=True)
            return None
    write_text(path, json.dumps(failed, indent=1) + "\n")
    return path


def _listed(path: Path) -> list[dict[str, Any]]:
    try:
        read_failed(path)
        found: list[dict[str, Any]] = json.loads(path.read_text())
    except (InputError, MissingError):
        return []
    return found


def _why(outcome: Outcome) -> str:
    found = [f"{resource.value}: {error}" for resource, error in outcome.errors.items()]
    return "; ".join(found or outcome.notes or ("not attempted",))


def read_failed(path: Path) -> list[str]:
    """Return the ids in a list of failures, each once.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is no such list.
    """
    try:
        found = json.loads(path.read_text())
        names = [item["experiment_id"] for item in found]
    except FileNotFoundError as error:
        raise MissingError(
            f"there is no list of failures {path}", fix="nothing failed, or name another file"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is no list of failures: {error!r}", fix="name the file that an update wrote"
        ) from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} is no list of failures", fix=_NO_LIST)
    return list(dict.fromkeys(names))


def read_config(path: Path | None, environ: Mapping[str, str], known: Iterable[str]) -> dict[str, Any]:
    """Return what a flat configuration file of elogfetch says, by our dotted names.

    Parameters
    ----------
    path
        None: ``~/.config/elogfetch/config.yaml``, which need not be there.
    environ
        Its ``XDG_CONFIG_HOME`` and ``HOME`` say where that is.
    known
        The settings of the section ``elog``.

    Raises
    ------
    ConfigError
        If a file that was named is not there, is no YAML, or has a key that means nothing.
    """
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".config")
    place = path or home / "elogfetch" / "config.yaml"
    try:
        tree = yaml.safe_load(place.read_text())
    except FileNotFoundError as error:
        if path is None:
            return {}
        raise ConfigError(f"no configuration file {path}", fix="create it or correct its name") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place} is not YAML: {error}", fix="correct the file") from error
    except OSError as error:
        raise ConfigError(f"cannot read {place}: {error.strerror}", fix="check the file") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{place} holds a {type(tree).__name__}, not settings", fix="write `name: value` lines")
    return {
        f"elog.{_known_key(str(key), place, frozenset(known))}": value
        for key, value in tree.items()
        if str(key) not in _IGNORED
    }


def _known_key(key: str, place: Path, known: frozenset[str]) -> str:
    name = _KEYS.get(key, key)
    if name not in known:
        near = difflib.get_close_matches(key, [*known, *_KEYS], n=1, cutoff=0.5)
        raise ConfigError(
            f"{place}: there is no setting {key!r}", fix=f"did you mean {near[0]}?" if near else "remove it"
        )
    return name
