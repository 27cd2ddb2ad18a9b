"""A site's addresses and secrets, as Prefect blocks.

Prefect finds the classes here by the entry point ``prefect.collections``.
"""

from prefect.blocks.core import Block

from blocks.calib import CalibrationService
from blocks.contimg import ContimgSite
from nightbeam.core.settings import Settings

__all__ = ["KINDS", "CalibrationService", "ContimgSite", "save_site_blocks"]

#: Every block of ours.
KINDS: tuple[type[Block], ...] = (CalibrationService, ContimgSite)


def save_site_blocks(settings: Settings) -> list[str]:
    """Save what the resolved settings say as the blocks called ``main``; return ``type/name`` of each.

    A site with several instruments of a kind saves more documents under other names; these are not touched.
    """
    _calibration_service(settings).save("main", overwrite=True)
    ContimgSite.of(settings).save("main", overwrite=True)
    return ["calibration-service/main", "contimg-site/main"]


def _calibration_service(settings: Settings) -> CalibrationService:
    """Return the block of the settings; how to be let in is set by an operator in the page, and stays."""
    try:
        known = CalibrationService.load("main")
    except ValueError:  # Prefect's word for: there is none
        known = CalibrationService()
    assert isinstance(known, CalibrationService)
    return known.at(settings.calib.service_url)
