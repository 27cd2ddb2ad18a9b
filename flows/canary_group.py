"""A group of known truth through the whole machine, so that it is known to work before the night."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run

from blocks import ContimgSite
from flows import _show
from nightbeam import contimg
from nightbeam.core.errors import RejectedError
from tasks import contimg as steps


@flow(name="canary-group", flow_run_name="{site}")
def canary_group(site: str = "main") -> dict[str, Any]:
    """Simulate, calibrate and image a small group in directories of its own; fail unless the image shows the truth.

    Parameters
    ----------
    site
        Name of the ``contimg-site`` block, whose settings are proved and whose products are not touched.

    Returns
    -------
    dict
        What was measured; or ``put off`` and why, where groups wait: then the next of the schedule flies.
    """
    place = _load(site)
    reason = contimg.stand_back(place, "the canary")
    if reason:
        return {"put off": reason}
    report = steps.fly_canary(place, owner=contimg.this_process(flow_run.id))
    told = {
        "right": report.right,
        "found": report.found,
        "flux_ratio": report.flux_ratio,
        "offset_beams": report.offset_beams,
        "noise_jy": report.noise_jy,
        "seconds": report.seconds,
        "image": report.image,
    }
    with _show.showing("the canary"):
        rows = [{"what": name, "value": str(value)} for name, value in told.items()]
        create_table_artifact(rows, key="canary", description=f"Canary of the site {site}")
    if not report.right:
        raise RejectedError(
            f"the canary of {site}: {report.found}", fix="look at its image and its logs, then fly again"
        )
    return told


def _load(site: str) -> contimg.Site:
    block = ContimgSite.load(site)
    assert isinstance(block, ContimgSite)
    return block.site()
