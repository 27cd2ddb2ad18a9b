"""Tidies a continuum imaging site up."""

from __future__ import annotations

import logging

from prefect import flow
from prefect.artifacts import create_table_artifact

from blocks import ContimgSite
from nightbeam import contimg
from tasks import contimg as steps

logger = logging.getLogger("nightbeam.housekeeping")

#: Rows that the page shows; the log has all.
MOST_ROWS = 200


@flow(name="housekeeping", flow_run_name="{site}")
def housekeeping(site: str = "main", dry_run: bool = False) -> dict[str, int]:
    """Take groups back from dead runs, give up those that stay incomplete, remove scratch, put old products aside.

    Parameters
    ----------
    site
        Name of the ``contimg-site`` block.
    dry_run
        Only say what would be done.

    Returns
    -------
    dict
        How many of each kind.
    """
    report = steps.tidy_up(_load(site), dry_run=dry_run)
    lines = report.lines()
    if lines:
        said = f"{'Would be done' if dry_run else 'Done'} at the site {site}: {len(lines)} things"
        create_table_artifact(lines[:MOST_ROWS], key="housekeeping", description=said)
    for note in report.notes:
        logger.info("%s", note)
    report.raise_failures()
    return report.counts


def _load(site: str) -> contimg.Site:
    block = ContimgSite.load(site)
    assert isinstance(block, ContimgSite)
    return block.site()
