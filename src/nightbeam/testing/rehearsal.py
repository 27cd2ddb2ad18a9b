"""A simulated night lived through by the library alone, in one process and on a clock of its own.

The same files in the same order as on a platform, without one: what that must not differ from.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nightbeam.catalog.model import Stage, State
from nightbeam.contimg import TOOLS, Site, Tools, run_group, scan_arrivals
from nightbeam.core.errors import NightbeamError
from nightbeam.simulate import Truth
from nightbeam.simulate.files import TRUTH_NAME, hidden_path

__all__ = ["deliver", "live_through"]


def deliver(sky: Path, name: str, input_dir: Path) -> None:
    """Let one file of a simulation get its final name in an input directory, by a rename, as a copy from afar does."""
    path = input_dir / name
    part = hidden_path(path)
    shutil.copyfile(sky / name, part)
    part.replace(path)


def live_through(
    site: Site,
    sky: Path,
    truth: Truth,
    *,
    tools: Tools = TOOLS,
    look_every_s: float = 60.0,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Deliver all files of a simulation in the order of their arrival and do what there is to do after each look.

    Parameters
    ----------
    site
        Where; its timeouts are seconds of the telescope, and files are to be ready as soon as they are there
        (``settle_s`` 0).
    sky
        Where the simulation was written.
    truth
        What it holds.
    tools
        What works on the data.
    look_every_s
        Between two looks at the input directory.
    say
        Told how each group ended.

    Notes
    -----
    The clock is that of the telescope. It must stay ahead of the one by which files are dated, which it does as long as
    a group takes less time than the telescope needs for it.
    """
    ingest = site.ingest
    site.input_dir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sky / TRUTH_NAME, site.input_dir / TRUTH_NAME)
    first_s = last_s = min((arrival.arrival_s for arrival in truth.arrivals), default=0.0)
    begin, look_s = time.time() + 1.0 - first_s, first_s
    for arrival in truth.arrivals:
        while look_s < arrival.arrival_s:
            _look(site, begin + look_s, tools, say)
            look_s += look_every_s
        deliver(sky, arrival.name, site.input_dir)
        last_s = arrival.arrival_s
    # From the look that takes in the last file: its group's time, then that of what is bad.
    until_s = last_s + ingest.collecting_timeout_s + ingest.bad_file_wait_s + 3.0 * look_every_s
    while look_s < until_s:
        _look(site, begin + look_s, tools, say)
        look_s += look_every_s


def _look(site: Site, now: float, tools: Tools, say: Callable[[str], None]) -> None:
    scan_arrivals(site, tools=tools, now=now)
    queue = site.queue()
    for row in queue.groups(state=State.PENDING):
        if row.processing_stage == Stage.WAITING_FOR_GAINS:
            continue
        with suppress(NightbeamError):  # the queue has it, with its reason
            run_group(site, row.group_id, tools=tools)
        say(f"{row.group_id} {queue.group(row.group_id).state}")
