"""The watcher: a group is dispatched within a moment of its last subband."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks import ContimgSite
from flows._service import run_service
from flows.ingest_subbands import start_group
from nightbeam import contimg
from nightbeam.contimg.watch import ArrivalWatch
from nightbeam.core.errors import NightbeamError, UnavailableError


@flow(name="watch-subbands")
def watch_subbands(site: str = "main", at_most: int = 4, fence_s: float = 10.0) -> State[Any]:
    """Take subbands in as they come and dispatch what is complete, until asked to stop.

    Parameters
    ----------
    site
        Name of the ``contimg-site`` block.
    at_most
        Groups dispatched at a time; the rest is for ``ingest-subbands``.
    fence_s
        How often the server is asked whether this run is still supposed to run.
    """
    place = _load(site)
    watch = ArrivalWatch(place, lambda: _dispatch(place, site, at_most))
    return run_service(
        watch.loop,
        lock=place.state_dir / "services" / f"watch-subbands-{site}.lock",
        name="watch-subbands",
        counters=lambda: _numbers(watch),
        fence_s=fence_s,
    )


def _load(site: str) -> contimg.Site:
    block = ContimgSite.load(site)
    assert isinstance(block, ContimgSite)
    return block.site()


def _dispatch(place: contimg.Site, site: str, at_most: int) -> int:
    taken = contimg.take_dispatchable(place, at_most)
    try:
        return len([start_group(place, one, site) for one in taken])
    except NightbeamError:
        raise
    except Exception as error:  # whatever httpx or Prefect call it; what was taken is sent again by the scan
        raise UnavailableError(f"the server does not start runs: {error}", fix="is it running?") from error


def _numbers(watch: ArrivalWatch) -> Mapping[str, Any]:
    found = watch.counters
    return {
        "looks": found.looks,
        "listings": found.listings,
        "new files": found.new_files,
        "groups complete": found.groups,
        "groups dispatched": found.dispatched,
        "files not ready": found.waiting,
        "last group": found.last_group or "-",
        "waits for": found.problem or "-",
    }
