"""Looks for new subbands and starts one run for each group that is ready."""

from __future__ import annotations

import logging
import socket
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from blocks import ContimgSite
from nightbeam import contimg
from nightbeam.catalog.model import Dispatch, GroupRow, State
from tasks import contimg as steps

logger = logging.getLogger("nightbeam.ingest")

DEPLOYMENT = "group-imaging/default"


@flow(name="ingest-subbands")
def ingest_subbands(site: str = "main", at_most: int = 4) -> dict[str, Any]:
    """Bring the queue up to date and dispatch what is ready, each attempt at a group exactly once.

    Parameters
    ----------
    site
        Name of the ``contimg-site`` block.
    at_most
        Groups dispatched in one look; the rest wait for the next, 30 s later.
    """
    block = ContimgSite.load(site)
    assert isinstance(block, ContimgSite)
    place = block.site()
    report = steps.scan_arrivals(place)
    lost = recover_lost(place)
    started = [start_group(place, dispatch, site) for dispatch in contimg.take_dispatchable(place, at_most)]
    return {"new_files": report.new_files, "recovered": [*report.recovered, *lost], "started": started}


def start_group(place: contimg.Site, dispatch: Dispatch, site: str) -> str:
    """Ask for a run of ``group-imaging``; the same key gives the same run, however often it is asked for.

    Where that run is over and nobody has claimed the group (it was cancelled, or crashed before it began), the
    next look asks for another.
    """
    group = dispatch.group_id
    run = run_deployment(
        DEPLOYMENT,
        parameters={"group": group, "site": site},
        flow_run_name=group,
        idempotency_key=f"{site}/{dispatch.idempotency_key}",  # sites that share a server have queues of their own
        timeout=0,
        as_subflow=False,
    )
    assert isinstance(run, FlowRun)
    logger.info("group %s is run %s", group, run.id)
    if run.state is not None and run.state.is_final() and place.queue().forget_dispatch(dispatch):
        logger.warning("run %s of group %s is over and has not claimed it", run.id, group)
    return group


def recover_lost(place: contimg.Site) -> list[str]:
    """Take back groups whose flow run, on another machine, is over or unknown to the server.

    On this machine the process itself is the better witness, and the scan has asked for it: a run that
    is called crashed may have a process that still writes.
    """
    queue = place.queue()
    elsewhere = [row for row in queue.groups(state=State.IN_PROGRESS) if row.owner_host != socket.gethostname()]
    over = {row.owner for row in elsewhere if _is_over(row)}
    return queue.recover(lambda row: row.owner in over, full=contimg.full_disk(place)) if over else []


def _is_over(row: GroupRow) -> bool:
    try:
        run_id = UUID(row.owner or "")
    except ValueError:
        return False  # taken by hand, by no flow run
    with get_client(sync_client=True) as api:
        try:
            state = api.read_flow_run(run_id).state
        except ObjectNotFound:
            return True
    return state is not None and state.is_final()
