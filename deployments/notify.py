"""Tell people by a notification block of the server: ``python -m deployments.notify slack-webhook/operators TEXT``.

The supervisor, which has never heard of Prefect, runs this for its alarms.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import sys
from collections.abc import Awaitable
from typing import Any

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block

from nightbeam.core.errors import ConfigError, NightbeamError

__all__ = ["notify"]


def notify(name: str, text: str) -> None:
    """Have the block ``type/name`` tell what it is given.

    Raises
    ------
    ConfigError
        If there is none, or it is one that cannot notify.
    """
    try:
        block = Block.load(name)
    except ValueError as error:
        raise ConfigError(f"no block {name}: {error}", fix="make it on the page, or correct the setting") from error
    if not isinstance(block, NotificationBlock):
        raise ConfigError(f"the block {name} cannot notify", fix="name one such as slack-webhook/operators")
    told: Any = block.notify(text, "nightbeam")
    if inspect.isawaitable(told):  # as the block's maker pleases
        asyncio.run(_awaited(told))


async def _awaited(told: Awaitable[Any]) -> None:
    await told


def main() -> None:
    """Notify; exit code of the error otherwise."""
    parser = argparse.ArgumentParser(prog="python -m deployments.notify", description=notify.__doc__)
    parser.add_argument("block")
    parser.add_argument("text")
    told = parser.parse_args()
    try:
        notify(told.block, told.text)
    except NightbeamError as error:
        sys.stderr.write(f"deployments.notify: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
