"""Logging for commands and services. Library modules only ever ask for ``logging.getLogger(__name__)``."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nightbeam.core.errors import StorageError
from nightbeam.core.files import storage_errors

__all__ = ["log_also_to", "set_up_logging", "span"]

_FORMAT = "%(levelname)-7s %(name)s: %(message)s"


def set_up_logging(level: str = "INFO", *, file: Path | None = None, timestamps: bool = True) -> None:
    """Send the library's log to stderr, or to ``file``, with UTC times. Called by programs, never on import."""
    handler = logging.StreamHandler() if file is None else _file_handler(file)
    handler.setFormatter(_formatter(timestamps))
    handler.setLevel(level.upper())
    logger = logging.getLogger("nightbeam")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        if isinstance(old, logging.FileHandler):
            old.close()
    logger.addHandler(handler)
    logger.setLevel(level.upper())


def log_also_to(file: Path, *, level: str = "INFO") -> None:
    """Append the library's log to ``file`` as well, whatever is said elsewhere.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    try:
        with storage_errors(file):
            handler = _file_handler(file)
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise StorageError(f"cannot write {file}: {error.strerror}", fix="name another file for the log") from error
    handler.setFormatter(_formatter(timestamps=True))
    handler.setLevel(level.upper())
    logger = logging.getLogger("nightbeam")
    logger.addHandler(handler)
    logger.setLevel(min(logger.level or handler.level, handler.level))


def _file_handler(file: Path) -> logging.Handler:
    file.parent.mkdir(parents=True, exist_ok=True)
    return logging.FileHandler(file, encoding="utf-8")


def _formatter(timestamps: bool) -> logging.Formatter:
    formatter = logging.Formatter(("%(asctime)s " if timestamps else "") + _FORMAT, "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    return formatter


@contextmanager
def span(logger: logging.Logger, what: str) -> Iterator[dict[str, float]]:
    """Time a block: logs ``what`` and its seconds, and leaves them in the yielded dict under ``seconds``."""
    taken: dict[str, float] = {}
    begin = time.perf_counter()
    try:
        yield taken
    finally:
        taken["seconds"] = time.perf_counter() - begin
        logger.info("%s took %.2f s", what, taken["seconds"])
