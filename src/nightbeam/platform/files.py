"""The supervisor's small files: its report, the pools it paused, and the settings for flows."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from pathlib import Path

from nightbeam.core.errors import InputError
from nightbeam.core.files import part_path, storage_errors, write_text
from nightbeam.core.settings import Settings
from nightbeam.platform.model import Layout, PartState, PartStatus, Phase, Report

__all__ = [
    "read_paused",
    "read_report",
    "remove_older",
    "trim_logs",
    "write_flow_settings",
    "write_paused",
    "write_report",
]


logger = logging.getLogger(__name__)


def write_report(layout: Layout, report: Report) -> None:
    """Replace the report."""
    write_text(layout.report, json.dumps(dataclasses.asdict(report), indent=1) + "\n")


def read_report(layout: Layout) -> Report | None:
    """Return the last report of a supervisor, or None if there never was one.

    Raises
    ------
    InputError
        If the file is not a report.
    """
    try:
        found = json.loads(layout.report.read_text())
        parts = tuple(PartStatus(**{**part, "state": PartState(part["state"])}) for part in found.pop("parts"))
        return Report(**{**found, "phase": Phase(found["phase"]), "parts": parts})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{layout.report} is no report of a supervisor: {error}", fix="remove it") from error


def write_paused(layout: Layout, pools: list[str]) -> None:
    """Remember which pools the stop paused."""
    write_text(layout.paused, json.dumps(sorted(pools)) + "\n")


def read_paused(layout: Layout) -> list[str]:
    """Return the pools that the last stop paused and nobody has resumed since."""
    try:
        found = json.loads(layout.paused.read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise InputError(f"{layout.paused} is not JSON: {error}", fix="remove it") from error
    return [str(name) for name in found]


def write_flow_settings(path: Path, settings: Settings) -> None:
    """Write the settings that flows read, for the owner's eyes only and without Prefect's passwords."""
    platform = settings.platform.model_copy(update={"auth_string": None, "database_url": None, "redis_url": None})
    text = settings.model_copy(update={"platform": platform}).to_yaml()
    part = part_path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(text)
        part.replace(path)


def remove_older(directory: Path, *, older_than_s: float) -> tuple[int, int]:
    """Remove the files below a directory that were last written so long ago; return how many, and their bytes.

    A file that somebody else removes meanwhile is fine; a directory that is not there holds nothing.
    """
    limit = time.time() - older_than_s
    files = size = 0
    for path in directory.rglob("*"):
        try:
            found = path.stat()
            if not path.is_file() or found.st_mtime >= limit:
                continue
            path.unlink()
        except FileNotFoundError:
            continue
        files, size = files + 1, size + found.st_size
    logger.info("removed %d files (%.1f MB) from %s", files, size / 1e6, directory)
    return files, size


def trim_logs(directory: Path, *, most_bytes: int) -> list[Path]:
    """Let each log of a directory that has grown too long begin anew; its end is kept beside it as ``NAME.1``.

    Services keep their logs open for months and write at the end of them, wherever that is: a log is emptied and not
    renamed. What is written in the moment between copying and emptying is lost.

    Parameters
    ----------
    directory
        Where ``*.log`` are looked for; not below it.
    most_bytes
        A longer one is trimmed, and so long an end is kept.

    Returns
    -------
    list of Path
        Those that were trimmed.
    """
    trimmed = []
    for path in sorted(directory.glob("*.log")) if directory.is_dir() else []:
        if path.is_symlink() or not path.is_file() or path.stat().st_size <= most_bytes:
            continue
        kept = path.with_name(f"{path.name}.1")
        part = part_path(kept)
        with storage_errors(kept):
            try:
                with path.open("rb") as old, part.open("wb") as new:
                    old.seek(-most_bytes, os.SEEK_END)
                    old.readline()  # half a line helps nobody
                    shutil.copyfileobj(old, new)
                part.replace(kept)
                os.truncate(path, 0)
            finally:
                part.unlink(missing_ok=True)
        logger.info("%s begins anew; its end is in %s", path, kept.name)
        trimmed.append(path)
    return trimmed
