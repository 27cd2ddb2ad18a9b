"""The log as the configuration's section ``system`` wants it, for commands and for those who call the writer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from nightbeam.core.log import log_also_to, set_up_logging
from nightbeam.cxi.config import SystemConfig

__all__ = ["logged"]


@contextmanager
def logged(system: SystemConfig, *, program: bool) -> Iterator[None]:
    """Say what ``system.log_level`` asks for, also in ``system.log_file``, for the block.

    Parameters
    ----------
    program
        Whether the log is all ours, as in a command. Otherwise what the caller has set up stays as it is, and the
        level is only changed where nobody has chosen one.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    logger = logging.getLogger("nightbeam")
    before, level = list(logger.handlers), logger.level
    if program or not logger.hasHandlers():
        set_up_logging(system.log_level)
    elif level == logging.NOTSET:
        logger.setLevel(system.log_level)
    ours = list(logger.handlers)
    try:
        if system.log_file is not None:
            log_also_to(system.log_file, level=system.log_level)
        yield
    finally:
        for handler in [one for one in logger.handlers if one not in (ours if program else before)]:
            logger.removeHandler(handler)
            handler.close()
        if not program:
            logger.setLevel(level)
