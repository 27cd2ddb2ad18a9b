"""The mosaics of the nights that are due."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from blocks import ContimgSite
from flows import _show
from nightbeam import contimg
from nightbeam.contimg import nights
from nightbeam.contimg.mosaic_plan import Window
from nightbeam.contimg.provenance import working_as
from nightbeam.core.times import utc_now
from tasks import contimg as steps

logger = logging.getLogger("nightbeam.mosaic")


def _run_name() -> str:
    """Return the night that was asked for, or the last that can be due."""
    night = flow_run.parameters.get("night")
    return str(night or f"nights up to {utc_now().date() - timedelta(days=1)}")


@flow(name="nightly-mosaic", flow_run_name=_run_name)
def nightly_mosaic(site: str = "main", night: str | None = None, force: bool = False) -> list[dict[str, Any]]:
    """Make the mosaic of every night that is due, each in a task; one bad night does not stop the others.

    What is due is read from the data, so that a run makes up for those that the platform slept through, and one
    that was killed, or that stood back because groups wait, is made up for by the next.

    Parameters
    ----------
    site
        Name of the ``contimg-site`` block.
    night
        This UTC day alone, YYYY-MM-DD, due or not.
    force
        Make it again although nothing has changed.

    Returns
    -------
    list of dict
        For each night what was done (``built``, ``unchanged``, ``empty``), and its mosaics.
    """
    place = _load(site)
    if night is None and not place.nightly_mosaics:
        logger.warning("contimg.nightly_mosaics is off: nothing is made")
        return []
    if night is None and contimg.stand_back(place, "the mosaic of the night"):
        return []
    if night is not None:
        Window.of_night(night)  # or it is refused before anything is touched
    chosen = [night] if night is not None else nights.nights_due(place)
    logger.info("due: %s", ", ".join(chosen) or "nothing")
    with working_as(flow_run.id):
        outcomes = [_make(place, one, force) for one in chosen]
    nights.raise_failed(outcomes)
    return [{"night": one.night, "action": one.action, "mosaics": list(one.mosaics)} for one in outcomes]


def _load(site: str) -> contimg.Site:
    block = ContimgSite.load(site)
    assert isinstance(block, ContimgSite)
    return block.site()


def _make(place: contimg.Site, night: str, force: bool) -> nights.NightOutcome:
    state = steps.make_night(place, night, force=force, return_state=True)
    found = state.result(raise_on_failure=False)
    outcome = found if isinstance(found, nights.NightOutcome) else nights.failed_night(place, night, found)
    with _show.showing(f"night {night}"):
        _show.show_night(place, outcome)
    return outcome
