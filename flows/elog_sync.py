"""The logbook's mirror, brought up to date."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from blocks import ElogService
from nightbeam.catalog import Logbook
from nightbeam.core.errors import AuthError, BusyError, NightbeamError, PartialError, StorageError
from nightbeam.core.times import utc_now
from nightbeam.elog.remote import ServiceDownError
from nightbeam.elogsync.files import outdated, write_failed
from nightbeam.elogsync.model import Outcome, Plan, Planned, Policy
from tasks import elog as steps

logger = logging.getLogger("nightbeam.elog")

#: Experiments at a time, whatever the settings say: threads of one flow process.
MOST = 16
#: Nobody else would be let in, answered or stored either.
_END_ALL = (AuthError, BusyError, ServiceDownError, StorageError)
#: Under what the mirror notes the run whose plan was walked to its end.
_WALKED = "last_flow_run"


@flow(
    name="elog-sync",
    flow_run_name="{service}",
    retries=1,
    retry_delay_seconds=60,
    task_runner=ThreadPoolTaskRunner(max_workers=MOST),  # type: ignore[arg-type]
)
def elog_sync(
    service: str = "main", full: bool = False, hours: float | None = None, names: list[str] | None = None
) -> dict[str, Any]:
    """Bring the mirror up to date, one task for each experiment; what fails is tried once more after a minute.

    Parameters
    ----------
    service
        Name of the ``elog-service`` block.
    full
        Read every experiment of the mirror, and all of it.
    hours
        How far back an experiment counts as active; null: as the settings say.
    names
        Read these too, active or not.

    Returns
    -------
    dict
        ``experiments``, ``failed``, ``new``, ``changed``, ``requests``, ``snapshot``.
    """
    block = ElogService.load(service)
    assert isinstance(block, ElogService)
    settings = block.settings()
    directory = Path(block.database_dir)
    url = block.database.get_secret_value()
    steps.get_ticket(block)
    with (
        Logbook(url).sole_writer(wait_s=settings.lock_timeout),
        block.client(lambda: steps.renew_ticket(block)) as client,
    ):
        book = Logbook(url)  # opened only now: who held it until now has written to it, or has discarded it
        only_failed = _walked(book)
        policy = Policy(
            hours=settings.hours_lookback if hours is None else hours,
            full_days=settings.full_days,
            slow_hours=settings.slow_hours,
            overlap_minutes=settings.overlap_minutes,
            due_most=settings.due_most,
            jobs=settings.workflow_jobs,
            names=(*settings.names, *(names or ())),
            exclude=settings.exclude_patterns,
            everything=settings.everything,
            full=full and not only_failed,
            only_failed=only_failed,
        )
        before = client.traffic.requests
        plan = steps.look_around(client, book, policy)
        outcomes = list(_outcomes(client, book, plan, min(settings.parallel_jobs, MOST)))
        requests = client.traffic.requests - before
        _show(outcomes, plan, requests)
        write_failed(directory, outcomes)
        if all(outcome.attempted for outcome in outcomes):
            done = {"last_update": utc_now().isoformat(timespec="seconds"), "hours_lookback": f"{policy.hours:g}"}
            book.set_metadata(**done, **{_WALKED: str(flow_run.id or "")})
        failed, snapshot = [outcome for outcome in outcomes if outcome.failed], None
        if settings.publish and book.experiments() and outdated(book, directory):
            try:
                snapshot = str(steps.publish(book, directory, settings.most_shrink).path)
            except NightbeamError as error:
                if not failed:
                    raise
                logger.error("%s", error)
    # The run fails, and is tried once more, although most of it is done: what is not must be seen.
    if failed:
        named = ", ".join(f"{outcome.name} ({_why(outcome)})" for outcome in failed[:5])
        raise PartialError(f"{len(failed)} of {len(outcomes)} experiments could not be read: {named}")
    new, written = (sum(getattr(outcome.change, what) for outcome in outcomes) for what in ("new", "written"))
    return {
        "experiments": len(outcomes),
        "failed": 0,
        "new": new,
        "changed": written - new,
        "requests": requests,
        "snapshot": snapshot,
    }


def _walked(book: Logbook) -> bool:
    """Say whether an earlier attempt of this run had its turn with every experiment: only what failed is left then.

    One that ended on its way, whatever by, leaves no mark; the next one plans as if there had been none, and what is
    stored by now is not asked for again.
    """
    return (flow_run.run_count or 1) > 1 and book.metadata().get(_WALKED) == str(flow_run.id)


def _outcomes(client: Any, book: Logbook, plan: Plan, at_once: int) -> Iterator[Outcome]:
    """Read the experiments, ``at_once`` at a time; what ends one task ends that experiment alone."""
    waiting = list(reversed(plan.planned))
    running: dict[PrefectFuture[Outcome], Planned] = {}
    with _bar(len(waiting)) as step:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    planned = waiting.pop()
                    running[steps.sync_experiment.submit(client, book, planned, planned.name)] = planned
                done = next(iter(as_completed(list(running))))
                planned = running.pop(done)
                step()
                try:
                    yield done.result()
                except NightbeamError as error:
                    logger.error("%s: %s", planned.name, error)
                    yield _unread(planned, error.what)
                    if isinstance(error, _END_ALL):
                        yield from (_unread(one, "not attempted") for one in reversed(waiting))
                        waiting.clear()
        finally:
            # Whoever is let in next must not find them still writing.
            wait(list(running))


def _unread(planned: Planned, why: str) -> Outcome:
    return Outcome(planned.experiment_id, planned.name, planned.reasons, notes=(why,), attempted=False)


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    made = create_progress_artifact(0.0, key="elog-progress", description=f"{total} experiments") if total else None
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if isinstance(made, UUID) and (done == total or done % max(1, total // 20) == 0):
            update_progress_artifact(made, progress=100.0 * done / total)

    yield step


def _show(outcomes: list[Outcome], plan: Plan, requests: int) -> None:
    rows = [
        {
            "experiment": outcome.name,
            "why": ", ".join(str(reason) for reason in outcome.reasons),
            "requests": outcome.requests,
            "rows new": outcome.change.new,
            "rows changed": outcome.change.written - outcome.change.new,
            "failure": _why(outcome) if outcome.failed else "",
            "notes": "; ".join(outcome.notes) if not outcome.failed else "",
        }
        for outcome in sorted(outcomes, key=lambda outcome: (not outcome.failed, outcome.experiment_id))
    ]
    about = f"{len(outcomes)} experiments, {sum(o.failed for o in outcomes)} failed, {requests} requests"
    if plan.postponed:
        about += f"; {plan.postponed} more are due and wait for the next sync"
    create_table_artifact(rows or [{"experiment": "-", "why": "nothing to read"}], key="elog-table", description=about)


def _why(outcome: Outcome) -> str:
    return "; ".join([*(f"{r.value}: {error}" for r, error in outcome.errors.items()), *outcome.notes]) or "not read"
