"""A site's addresses and secrets, as Prefect blocks.

Prefect finds the classes here by the entry point ``prefect.collections``.
"""

from prefect.blocks.core import Block

from blocks.contimg import ContimgSite
from nightbeam.core.settings import Settings

__all__ = ["KINDS", "ContimgSite", "save_site_blocks"]

#: Every block of ours.
KINDS: tuple[type[Block], ...] = (ContimgSite,)


def save_site_blocks(settings: Settings) -> list[str]:
    """Save what the resolved settings say as the blocks called ``main``; return ``type/name`` of each.

    A site with several instruments of a kind saves more documents under other names; these are not touched.
    """
    ContimgSite.of(settings).save("main", overwrite=True)
    return ["contimg-site/main"]
