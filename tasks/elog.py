"""Syncing the logbook as tasks; the work, its idempotency and its states are the library's."""

from __future__ import annotations

import os
from pathlib import Path

from blocks import ElogService
from nightbeam.catalog import Logbook
from nightbeam.core.errors import AuthError, ToolError
from nightbeam.core.files import storage_errors
from nightbeam.elog.remote import LogbookClient
from nightbeam.elogsync.files import Published
from nightbeam.elogsync.files import publish as _publish
from nightbeam.elogsync.model import Outcome, Plan, Planned, Policy
from nightbeam.elogsync.worker import look_around as _look_around
from nightbeam.elogsync.worker import sync_experiment as _sync_experiment
from tasks._policy import effect
from tasks.shell import run_shell

__all__ = ["get_ticket", "look_around", "publish", "renew_ticket", "sync_experiment"]


def renew_ticket(block: ElogService) -> bool:
    """Get a ticket from the block's keytab; returns whether it has one.

    Raises
    ------
    AuthError
        If ``kinit`` refuses, with its reason; where the keytab lies is not said.
    """
    command = block.kinit()
    if command is None:
        return False
    cache = block.ticket_cache
    with storage_errors(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
    # Read by the Kerberos library when the first ticket is asked for, in this process.
    os.environ["KRB5CCNAME"] = f"FILE:{cache}"
    try:
        run_shell(command, hide=_secrets(block))
    except ToolError as error:
        raise AuthError(
            f"no ticket for {block.principal or 'this host'} from the keytab: {error.what}",
            fix="look with `klist -k` for that principal in the keytab of the block; is it the newest one?",
        ) from error
    return True


def _secrets(block: ElogService) -> dict[str, str]:
    return {} if block.keytab is None else {block.keytab.get_secret_value(): "the keytab"}


def _look(client: LogbookClient, book: Logbook, policy: Policy) -> Plan:
    return _look_around(client, book, policy)


def _sync(client: LogbookClient, book: Logbook, planned: Planned, name: str) -> Outcome:
    del name  # for the run's name
    return _sync_experiment(client, book, planned)


def _publish_snapshot(book: Logbook, directory: Path, most_shrink: float) -> Published:
    return _publish(book, directory, most_shrink=most_shrink)


get_ticket = effect(renew_ticket, name="get-ticket")
look_around = effect(_look, name="look-around")
sync_experiment = effect(_sync, name="sync-experiment", task_run_name="sync {name}")
publish = effect(_publish_snapshot, name="publish-snapshot")
