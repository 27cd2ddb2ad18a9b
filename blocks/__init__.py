"""A site's addresses and secrets, as Prefect blocks.

Prefect finds the classes here by the entry point ``prefect.collections``.
"""

from prefect.blocks.core import Block

from blocks.calib import CalibrationService
from blocks.contimg import ContimgSite
from blocks.elog import ElogService
from blocks.stream import RayCluster
from nightbeam.core.settings import Settings

__all__ = ["KINDS", "CalibrationService", "ContimgSite", "ElogService", "RayCluster", "save_site_blocks"]

#: Every block of ours.
KINDS: tuple[type[Block], ...] = (CalibrationService, ContimgSite, ElogService, RayCluster)


def save_site_blocks(settings: Settings) -> list[str]:
    """Save what the resolved settings say as the blocks called ``main``; return ``type/name`` of each.

    A site with several instruments of a kind saves more documents under other names; these are not touched.
    """
    _calibration_service(settings).save("main", overwrite=True)
    ContimgSite.of(settings).save("main", overwrite=True)
    _elog_service(settings).save("main", overwrite=True)
    _ray_cluster().save("main", overwrite=True)
    return ["calibration-service/main", "contimg-site/main", "elog-service/main", "ray-cluster/main"]


def _calibration_service(settings: Settings) -> CalibrationService:
    """Return the block of the settings; how to be let in is set by an operator in the page, and stays."""
    try:
        known = CalibrationService.load("main")
    except ValueError:  # Prefect's word for: there is none
        known = CalibrationService()
    assert isinstance(known, CalibrationService)
    return known.at(settings.calib.service_url)


def _elog_service(settings: Settings) -> ElogService:
    """Return the block of the settings; how to be let in is set by an operator in the page, and stays."""
    try:
        known = ElogService.load("main")
    except ValueError:
        return ElogService.of(settings)
    assert isinstance(known, ElogService)
    return ElogService.of(settings, known=known)


def _ray_cluster() -> RayCluster:
    """Return the block as an operator has set it; one that says nothing means what the settings say when it is read."""
    try:
        known = RayCluster.load("main")
    except ValueError:
        return RayCluster()
    assert isinstance(known, RayCluster)
    return known
