"""What a step is asked before it begins: room on the disks, a place for its scratch, its turn on the memory."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nightbeam.contimg.budget import Budget
from nightbeam.contimg.demand import Demand, Sizes, mosaic_demand, ram_for_image, same_step, step_demand
from nightbeam.contimg.owners import remove_dead_scratch
from nightbeam.contimg.site import Site
from nightbeam.core.errors import NightbeamError
from nightbeam.core.files import require_room
from nightbeam.core.memory import read_memory

__all__ = ["Plan", "at_work", "plan_mosaic", "plan_step", "remove_dead_ram"]

logger = logging.getLogger(__name__)

#: So many times the input must be free in memory for a set to grow there (b.3 of the facts, as of old).
_RAM_OF_INPUT = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step will take, and the directory in which it gets its scratch."""

    demand: Demand
    scratch: Path


def plan_step(site: Site, group_id: str, step: str, *, input_bytes: int, set_bytes: int) -> Plan:
    """Return what a step of a group takes at a site, in memory where that is wanted and there is room.

    Parameters
    ----------
    site, group_id, step
        Which.
    input_bytes, set_bytes
        Of its subbands, and of its Measurement Set as it is.
    """
    image = site.image
    sizes = Sizes(
        input_bytes=input_bytes,
        set_bytes=set_bytes,
        imsize=min(image.imsize, 512) if image.quick else image.imsize,
        engine=image.engine,
        chanbin=image.chanbin,
        engine_bytes=int(image.memory_gb * 1e9),
    )
    flagging = site.flag.engine != "none"

    def demand(scratch: Path) -> Demand:
        return step_demand(
            step, sizes, output=site.output_dir, scratch=scratch, state=site.state_dir, flagging=flagging
        )

    on_disk = Plan(demand(site.scratch_dir), site.scratch_dir)
    if site.scratch_ram is None or step not in ("convert", "image"):
        return on_disk
    wanted = _RAM_OF_INPUT * input_bytes if step == "convert" else ram_for_image(sizes)
    staged = demand(site.scratch_ram)
    in_ram = replace(staged, memory_bytes=staged.memory_bytes + staged.writes[site.scratch_ram])
    try:
        why = _why_not_ram(site, wanted, in_ram.memory_bytes)
    except (NightbeamError, OSError) as error:
        why = str(error)
    if why:
        logger.info("%s of group %s has its scratch on disk: %s", step, group_id, why)
        return on_disk
    return Plan(in_ram, site.scratch_ram)


def plan_mosaic(site: Site, tiles: int) -> Plan:
    """Return what a mosaic of so many tiles takes; room on disks it asks for itself, once its grid is known."""
    return Plan(
        mosaic_demand(tiles, imsize=site.image.imsize, block=site.mosaic.block_pixels, workers=site.mosaic.workers),
        site.scratch_dir,
    )


@contextmanager
def at_work(
    site: Site, order: str, step: str, plan: Plan, *, still: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Refuse where there is no room, wait for a turn on this machine's memory, and hold that for the block.

    While it waits it calls ``still`` now and then, an error of which ends the wait.

    Raises
    ------
    StorageError
        If a disk is too full.
    ConfigError, ResourceError, BusyError
        As `nightbeam.contimg.budget.Ledger.turn`.
    """
    demand, what = plan.demand, f"{step} of {order}"
    require_room(demand.writes, what=what)
    chosen = site.pipeline
    budget = Budget(chosen.memory_gb, chosen.same_step, chosen.patience_s)
    most = same_step(
        step, cores=len(os.sched_getaffinity(0)), threads=site.threads, converters=site.convert.max_workers
    )
    with site.ledger().turn(
        order, step, demand.memory_bytes, budget=budget, same_step=most, lower=demand.lower, still=still
    ):
        require_room(demand.writes, what=what)  # others have written while we waited
        yield


def remove_dead_ram(site: Site) -> list[Path]:
    """Remove the scratch in memory that processes of this machine left when they died; returns what was removed.

    Also that of groups which somebody works on again: names there say which machine and process made them.
    """
    return remove_dead_scratch(*(place for place in site.ram_places() if _is_ours(place)))


def _is_ours(place: Path) -> bool:
    # Anybody may make names where memory is shared.
    try:
        found = place.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _why_not_ram(site: Site, wanted: int, memory_bytes: int) -> str:
    ram = site.scratch_ram
    assert ram is not None
    ram.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(ram):
        return f"{ram} is not a directory of ours"
    remove_dead_ram(site)
    free = shutil.disk_usage(ram).free
    if free <= wanted:
        return f"{free / 1e9:.2f} GB are free in {ram}, {wanted / 1e9:.2f} GB are wanted"
    budget = Budget(site.pipeline.memory_gb).bytes_of(read_memory())
    if memory_bytes > budget:
        return f"{memory_bytes / 1e9:.2f} GB of memory would be taken, the budget is {budget / 1e9:.2f} GB"
    return ""
