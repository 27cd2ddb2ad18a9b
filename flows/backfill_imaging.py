"""Images the Measurement Sets of a night or of a directory that have no good image."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run

from blocks import ContimgSite
from nightbeam import contimg
from nightbeam.catalog.model import Owner
from nightbeam.contimg import backfill as library
from tasks import contimg as steps

logger = logging.getLogger("nightbeam.backfill")


def _run_name() -> str:
    given = flow_run.parameters
    return str(given.get("night") or given.get("directory") or given.get("site") or "main")


@flow(name="backfill-imaging", flow_run_name=_run_name)
def backfill_imaging(
    night: str | None = None,
    directory: str | None = None,
    limit: int | None = None,
    site: str = "main",
    most_behind: int | None = None,
) -> dict[str, int]:
    """Image what has no good image; one bad set does not stop the others, and all bad ones are named at the end.

    Parameters
    ----------
    night
        Only sets whose data begin on this UTC day, such as 2025-10-02.
    directory
        Only those below it; without night and directory, all of the site.
    limit
        At most so many.
    site
        Name of the ``contimg-site`` block.
    most_behind
        Where more groups than this wait to be imaged, the rest is left for another time: new data come first. Without
        it the site's own pressure decides.

    Returns
    -------
    dict
        How many were imaged, wait for gains, were left alone.
    """
    place = _load(site)
    day = library.parse_night(night) if night else None
    found = steps.find_unimaged(place, Path(directory) if directory else None, night=day)
    wanted = library.first_to_do(found, limit)
    owner = contimg.this_process(flow_run.id)
    report = library.BackfillReport.of([_image(place, one, owner, most_behind) for one in wanted])
    if report.outcomes:
        rows = [
            {"set": o.group_id or o.ms, "became": o.state, "why": o.why, "image": o.image or ""}
            for o in report.outcomes
        ]
        create_table_artifact(rows, key="backfill", description=f"Backfill of {_run_name()}")
    report.raise_failures()
    return dict(report.counts)


def _image(
    place: contimg.Site, one: contimg.Unimaged, owner: Owner, most_behind: int | None
) -> contimg.BackfillOutcome:
    if one.state == library.LEFT:
        return contimg.BackfillOutcome(one.group_id, one.state, one.ms, one.why)
    why = _why_not_now(place, one, most_behind)
    if why:
        return contimg.BackfillOutcome(one.group_id, library.LEFT, one.ms, why)
    state = steps.backfill_set(place, one, owner, one.name, return_state=True)
    found = state.result(raise_on_failure=False)
    return library.outcome_of_error(one, found) if isinstance(found, BaseException) else found


def _why_not_now(place: contimg.Site, one: contimg.Unimaged, most_behind: int | None) -> str:
    if most_behind is None:
        return contimg.stand_back(place, f"imaging {one.name}")
    behind = library.groups_ahead(place)
    return f"{behind} groups wait to be imaged, and new data come first" if behind > most_behind else ""


def _load(site: str) -> contimg.Site:
    block = ContimgSite.load(site)
    assert isinstance(block, ContimgSite)
    return block.site()
