"""Logging for commands and services. Library modules only ever ask for ``logging.getLogger(__name__)``."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["set_up_logging", "span"]

_FORMAT = "%(levelname)-7s %(name)s: %(message)s"


def set_up_logging(level: str = "INFO", *, file: Path | None = None, timestamps: bool = True) -> None:
    """Send the library's log to stderr, or to ``file``, with UTC times. Called by programs, never on import."""
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler()
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file)
    formatter = logging.Formatter(("%(asctime)s " if timestamps else "") + _FORMAT, "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("nightbeam")
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level.upper())


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
