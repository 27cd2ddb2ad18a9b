"""A whole group in one process, as ``nightbeam groups run`` does it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nightbeam.catalog.model import Owner, State
from nightbeam.contimg.model import CalibrateReceipt, GroupOutcome, ImageReceipt, Receipt
from nightbeam.contimg.owners import this_process
from nightbeam.contimg.site import Site
from nightbeam.contimg.steps import (
    apply_step,
    calibrate_or_find,
    claim_group,
    convert_group_step,
    fail_group,
    finish,
    image_step,
    qa_step,
    record_step,
)
from nightbeam.contimg.tools import TOOLS, Tools
from nightbeam.core.errors import BusyError, InputError

__all__ = ["run_group"]

logger = logging.getLogger(__name__)

Step = Callable[..., Receipt]
_STEPS: tuple[tuple[str, Step], ...] = (
    ("convert", convert_group_step),
    ("calibrate", calibrate_or_find),
    ("apply", apply_step),
    ("image", image_step),
    ("record", record_step),
    ("qa", qa_step),
)


def run_group(
    site: Site,
    group_id: str,
    *,
    owner: Owner | None = None,
    tools: Tools = TOOLS,
    on_step: Callable[[str, Receipt], None] | None = None,
) -> GroupOutcome:
    """Take a group through every step that it has not been through.

    Parameters
    ----------
    site, group_id
        Where, and which.
    owner
        Who does it; this process by default.
    tools
        What works on the data.
    on_step
        Told after each step, with its receipt.

    Returns
    -------
    GroupOutcome
        ``completed``, or ``waiting_for_gains``.

    Raises
    ------
    MissingError
        If there is no such group.
    BusyError
        If somebody else has it.
    InputError
        If it is not there to be taken: collecting, completed or failed.
    NightbeamError
        What a step failed with; the queue knows it too.
    """
    owner = owner or this_process()
    claim = claim_group(site, group_id, owner=owner)
    if not claim.claimed:
        refusal = BusyError if claim.state in (State.IN_PROGRESS, State.PENDING) else InputError
        raise refusal(claim.reason, fix=f"nightbeam groups show {group_id} says more")
    try:
        return _go_through(site, group_id, owner, tools, on_step)
    except Exception as error:
        # Somebody else may hold the group by now: then the state is theirs to tell, and our error goes on.
        with suppress(BusyError):
            fail_group(site, group_id, error, owner=owner)
        raise
    except BaseException:  # interrupted: not the group's fault
        with suppress(BusyError):
            site.queue().release(group_id, owner, reason="interrupted")
        raise


def _go_through(
    site: Site, group_id: str, owner: Owner, tools: Tools, on_step: Callable[[str, Receipt], None] | None
) -> GroupOutcome:
    receipts: dict[str, Receipt] = {}
    for name, step in _STEPS:
        receipts[name] = step(site, group_id, owner=owner, tools=tools)
        if on_step is not None:
            on_step(name, receipts[name])
        calibrated = receipts.get("calibrate")
        if isinstance(calibrated, CalibrateReceipt) and calibrated.waiting:
            return GroupOutcome(group_id, "waiting_for_gains")
    finish(site, group_id, owner=owner, tools=tools)
    imaged, calibrated = receipts["image"], receipts["calibrate"]
    assert isinstance(imaged, ImageReceipt)
    assert isinstance(calibrated, CalibrateReceipt)
    seconds = {r.step: round(r.seconds or 0.0, 3) for r in site.queue().receipts(group_id)}
    return GroupOutcome(group_id, "completed", str(Path(imaged.path)), calibrated.set_name, imaged.noise_jy, seconds)
