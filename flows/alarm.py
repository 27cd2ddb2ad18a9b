"""Writes down what an automation has seen go wrong, and tells whoever is to be told."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable
from typing import Any

from prefect import flow
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block

from nightbeam.core.errors import ConfigError, StorageError
from nightbeam.core.settings import load_settings
from nightbeam.core.times import iso_z, utc_now
from nightbeam.platform.alarms import record_alarm

logger = logging.getLogger("nightbeam.alarm")


@flow(name="alarm", flow_run_name="{what} {subject}")
def alarm(what: str, subject: str = "", detail: str = "") -> str:
    """Log an alarm and add it to ``alarms.jsonl``; where the setting `doctor.notify_block` names a block, notify.

    Parameters
    ----------
    what, subject, detail
        The event, whose it is, and more of it.

    Returns
    -------
    str
        What was said.
    """
    settings = load_settings().resolved()
    said = f"{iso_z(utc_now())} {f'{what} {subject}'.strip()}" + (f": {detail}" if detail else "")
    logger.error("%s", said)
    try:
        record_alarm(settings.state_dir, what, subject, detail)
    except StorageError as error:  # a full disk is a reason to tell somebody, not to keep silent
        said += f" (not written down: {error.what})"
        logger.error("the alarm is not written down: %s", error.what)
    if settings.doctor.notify_block:
        _notify(settings.doctor.notify_block, said)
    return said


def _notify(name: str, said: str) -> None:
    try:
        block = Block.load(name)
    except ValueError as error:
        raise ConfigError(f"no block {name}: {error}", fix="make it on the page, or correct the setting") from error
    if not isinstance(block, NotificationBlock):
        raise ConfigError(f"the block {name} cannot notify", fix="name one such as slack-webhook/operators")
    told: Any = block.notify(said, "nightbeam")
    if inspect.isawaitable(told):  # as the block's maker pleases
        asyncio.run(_awaited(told))


async def _awaited(told: Awaitable[Any]) -> None:
    await told
