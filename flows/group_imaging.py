"""One group of subbands, from its files to a verified image."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.runtime import flow_run

from blocks import ContimgSite
from flows import _show
from nightbeam import contimg
from nightbeam.catalog.model import Owner, State
from nightbeam.core.errors import BusyError, InputError
from nightbeam.core.keys import GroupId
from tasks import contimg as steps

logger = logging.getLogger("nightbeam.group")


@flow(name="group-imaging", flow_run_name="{group}")
def group_imaging(group: str, site: str = "main") -> str:
    """Convert, calibrate, image, record and judge one group, e.g. 2025-10-02T01:02:03.

    What an earlier run of the same group finished is found, checked and kept. A failure ends here and in
    the queue alike, with the same reason; whether the group is tried again is the queue's decision.

    Parameters
    ----------
    group
        The group.
    site
        Name of the ``contimg-site`` block.

    Returns
    -------
    str
        ``completed``, or ``waiting_for_gains`` where no calibration serves its time yet.
    """
    place = _load(site)
    key = str(GroupId.parse(group))
    owner = contimg.this_process(flow_run.id)
    claim = contimg.claim_group(place, key, owner=owner)
    if not claim.claimed:
        refusal = BusyError if claim.state in (State.IN_PROGRESS, State.PENDING) else InputError
        raise refusal(claim.reason, fix=f"`nightbeam groups show {key}` says more")
    with _told_to_the_queue(place, key, owner):
        return _go_through(place, key, owner)


def _load(site: str) -> contimg.Site:
    block = ContimgSite.load(site)
    assert isinstance(block, ContimgSite)
    return block.site()


def _go_through(place: contimg.Site, group: str, owner: Owner) -> str:
    bar = _Bar(group)
    steps.convert(place, group, owner=owner)
    bar.to(1, "converted")
    calibrated = steps.calibrate(place, group, owner=owner)
    if calibrated.waiting:
        bar.to(2, "waits for gains")
        return "waiting_for_gains"
    bar.to(2, f"calibrated by {calibrated.set_name}")
    steps.apply_gains(place, group, owner=owner)
    bar.to(3, "gains applied")
    imaged = steps.image(place, group, owner=owner)
    bar.to(4, "imaged")
    steps.record(place, group, owner=owner)
    bar.to(5, "recorded")
    quality = steps.write_qa(place, group, owner=owner)
    contimg.finish(place, group, owner=owner)
    bar.to(6, "completed")
    with _show.showing(f"group {group}"):
        _show.show_group(place, group, imaged=imaged, calibrated=calibrated, quality=quality)
    return "completed"


@contextmanager
def _told_to_the_queue(place: contimg.Site, group: str, owner: Owner) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Somebody else may hold the group by now: then its state is theirs to tell, and our error goes on.
        with suppress(BusyError):
            contimg.fail_group(place, group, error, owner=owner)
        raise
    except BaseException:  # cancelled, or the worker is stopping: not the group's fault
        with suppress(BusyError):
            place.queue().release(group, owner, reason="the run was asked to stop")
        raise


class _Bar:
    """How far the run has come, at the run."""

    def __init__(self, group: str) -> None:
        self._id: UUID | None = None
        self._group = group
        with _show.showing(f"group {group}"):
            found = create_progress_artifact(0.0, key="group-progress", description=f"Group {group}")
            assert isinstance(found, UUID)
            self._id = found

    def to(self, step: int, what: str) -> None:
        if self._id is None:
            return
        done = 100.0 * step / len(contimg.STEPS)
        with _show.showing(f"group {self._group}"):
            update_progress_artifact(self._id, progress=done, description=f"Group {self._group}: {what}")
