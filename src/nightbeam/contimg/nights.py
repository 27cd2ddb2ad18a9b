"""The mosaic of each night: which nights are due, decided by what the databases hold, and making them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nightbeam.catalog.model import ImageRow, MosaicRow, NightRow
from nightbeam.contimg.mosaic_plan import (
    MosaicTools,
    Window,
    catalogue_stamp,
    has_changed,
    night_inputs,
    night_of,
    options_of,
    plan_mosaic,
    tile_identity,
)
from nightbeam.contimg.mosaics import build_rows, hold_plan, is_plan_held, is_whole, judge_once, store_plan
from nightbeam.contimg.site import Site
from nightbeam.core.errors import NightbeamError, PartialError
from nightbeam.core.times import utc_now

if TYPE_CHECKING:
    from nightbeam.catalog import Products

__all__ = [
    "MOST_ATTEMPTS",
    "NightOutcome",
    "failed_night",
    "is_being_made",
    "make_night",
    "make_nights",
    "mosaic_of_night",
    "nights_due",
    "raise_failed",
]

logger = logging.getLogger(__name__)

#: A night that failed so often for what is in its data is left alone until its tiles or the settings change.
MOST_ATTEMPTS = 3
#: What the row says while a night is made, and for good if that is the end of its process.
_BEGUN = "begun, and not ended yet: if nobody is at it, its process was killed"


@dataclass(frozen=True, slots=True)
class NightOutcome:
    """What became of a night.

    ``action`` is ``built``, ``unchanged`` (it was there), ``empty`` (nothing was observed) or ``failed``; ``mosaics``
    names those that there are now.
    """

    night: str
    name: str
    action: str
    tiles: int = 0
    mosaics: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str | None = None


def mosaic_of_night(site: Site, night: str) -> str:
    """Return what the mosaic of a night is called."""
    return f"{site.mosaic.name_prefix}_{night_of(night).replace('-', '_')}"


def nights_due(site: Site, *, now: datetime | None = None) -> list[str]:
    """Return the nights to be made now: those that failed least first, of these the oldest.

    Of yesterday and the ``catch_up_days`` before it (UTC), those that have tiles and are not done, or have others than
    when they were. Yesterday is also due if it is not known yet that it has none, and is left for a day while it has
    quick images, whose full ones are owed (`pressure`). Nothing else counts, neither when this ran last nor what the
    clock said then. A night that ends its process (by more memory than there is) comes last
    the next time, so that it keeps no other from being made.

    Parameters
    ----------
    site
        Where.
    now
        Aware; the present by default.

    Raises
    ------
    UsageError
        If that cannot be the present.
    """
    present = (now or utc_now()).date()
    night_of(present.isoformat())
    yesterday = present - timedelta(days=1)
    nights = [str(yesterday - timedelta(days=back)) for back in range(site.mosaic.catch_up_days, -1, -1)]
    products = site.products()
    due = [night for night in nights if _is_due(site, products, night, latest=night == str(yesterday))]
    return sorted(due, key=lambda night: _attempts(products.night(night)))


def _attempts(known: NightRow | None) -> int:
    return known.attempts if known is not None and known.state == "failed" else 0


def _is_due(site: Site, products: Products, night: str, *, latest: bool) -> bool:
    tiles, known = _tiles(site, products, night), products.night(night)
    if not tiles:
        return latest and known is None
    quick = sum(bool(row.quick) for row in tiles)
    if latest and quick and not site.image.quick:
        logger.warning("night %s waits a day: %d of its %d images are quick ones", night, quick, len(tiles))
        return False
    if known is None or known.state == "empty":
        return True
    if known.state == "failed":
        return known.attempts < MOST_ATTEMPTS or known.inputs != night_inputs(site, tiles)
    return not _is_made(site, products.mosaics(plan=mosaic_of_night(site, night)), tiles)


def _tiles(site: Site, products: Products, night: str) -> list[ImageRow]:
    window = Window.of_night(night, days=site.mosaic.window_days)
    return [row for row in products.tiles_observed(window.start_mjd, window.end_mjd) if row.mid_mjd is not None]


def _is_made(site: Site, rows: Iterable[MosaicRow], tiles: Iterable[ImageRow]) -> bool:
    """Return whether mosaics were made of these tiles as they are, and in the way that the settings say."""
    rows = list(rows)
    if not rows or any(row.status != "built" for row in rows):
        return False
    parameters = json.loads(rows[0].parameters or "{}")
    same_way = parameters.get("options") == json.loads(json.dumps(asdict(options_of(site))))
    same_sky = parameters.get("reference") == catalogue_stamp(site)
    found = {row.path: tile_identity(row) for row in tiles}
    return same_way and same_sky and not has_changed(found, parameters.get("candidates") or {})


def is_being_made(site: Site, row: NightRow) -> bool:
    """Say whether somebody on this machine is at a night whose row says that it was begun."""
    return row.state == "failed" and row.error == _BEGUN and is_plan_held(site, mosaic_of_night(site, row.night))


def make_night(site: Site, night: str, *, force: bool = False, tools: MosaicTools | None = None) -> NightOutcome:
    """Plan and build the mosaic of a night, unless it is there.

    Safe to be killed and run again at any moment: what is not whole is made anew under the same name.

    Parameters
    ----------
    site, night
        Where, and which UTC day: YYYY-MM-DD.
    force
        Make it again although nothing has changed.
    tools
        What works on tiles.

    Raises
    ------
    UsageError
        If it is no day.
    BusyError
        If somebody else is at it.
    NightbeamError
        Why it could not be made; the night's row says it too.
    """
    begin, night = time.monotonic(), night_of(night)
    name = mosaic_of_night(site, night)
    window = Window.of_night(night, days=site.mosaic.window_days)
    with hold_plan(site, name):
        products = site.products()
        tiles, known = _tiles(site, products, night), products.night(night)
        if not tiles:
            return _nothing_observed(products, night, name, known)
        rows = products.mosaics(plan=name)
        made = not force and _is_made(site, rows, tiles) and all(is_whole(row) for row in rows)
        settled = made and known is not None and known.state == "done"
        with nullcontext() if settled else _attempt(products, night, known, len(tiles), night_inputs(site, tiles)):
            if not made:
                rows = store_plan(site, plan_mosaic(site, name, window, tools=tools))
                rows = build_rows(site, rows, force=force, tools=tools)
            for row in rows:
                judge_once(site, row, tools)
        products.put_night(night, "done", tiles=len(tiles))
    names = tuple(row.name for row in rows)
    action = "unchanged" if made else "built"
    logger.info("night %s: %s, %s of %d tiles", night, action, ", ".join(names), len(tiles))
    return NightOutcome(night, name, action, len(tiles), names, time.monotonic() - begin)


def _nothing_observed(products: Products, night: str, name: str, known: NightRow | None) -> NightOutcome:
    """Say so once; of a night that is done nothing is taken back because its tiles are gone."""
    if known is None or known.state == "failed":
        products.put_night(night, "empty", tiles=0)
        logger.info("night %s has no tiles", night)
    return NightOutcome(night, name, "empty", mosaics=tuple(row.name for row in products.mosaics(plan=name)))


@contextmanager
def _attempt(products: Products, night: str, known: NightRow | None, tiles: int, inputs: str) -> Iterator[None]:
    """Count an attempt before it is made, for it may end this process, and note why it failed.

    What may pass by itself (a full disk, another builder), and a person's or a platform's stop, is not counted.
    """
    before = _attempts(known) if known is not None and known.inputs == inputs else 0
    products.put_night(night, "failed", tiles=tiles, attempts=before + 1, error=_BEGUN, inputs=inputs)
    try:
        yield
    except BaseException as error:  # told to the night's row, then raised
        passing = error.retry if isinstance(error, NightbeamError) else not isinstance(error, Exception)
        text = _text_of(error)
        products.put_night(night, "failed", tiles=tiles, attempts=before + (not passing), error=text, inputs=inputs)
        logger.error("night %s: %s", night, text)
        raise


def make_nights(
    site: Site,
    nights: Iterable[str],
    *,
    force: bool = False,
    tools: MosaicTools | None = None,
    on_night: Callable[[NightOutcome], None] = lambda _: None,
) -> list[NightOutcome]:
    """Make several nights; one that cannot be made does not stop the others.

    Raises
    ------
    UsageError
        If one is no night, before anything is made.
    PartialError
        At the end, naming those that could not, and why.
    """
    outcomes = []
    for night in [night_of(one) for one in nights]:
        try:
            outcome = make_night(site, night, force=force, tools=tools)
        except Exception as error:  # raised at the end, with its night
            outcome = failed_night(site, night, error)
        outcomes.append(outcome)
        on_night(outcome)
    raise_failed(outcomes)
    return outcomes


def failed_night(site: Site, night: str, error: BaseException) -> NightOutcome:
    """Return what is told of a night that could not be made."""
    return NightOutcome(night, mosaic_of_night(site, night), "failed", error=_text_of(error))


def _text_of(error: BaseException) -> str:
    return error.what if isinstance(error, NightbeamError) else f"{type(error).__name__}: {error}"


def raise_failed(outcomes: Iterable[NightOutcome]) -> None:
    """Raise a PartialError that names the nights that failed, if any did."""
    outcomes = list(outcomes)
    failed = [outcome for outcome in outcomes if outcome.action == "failed"]
    if failed:
        named = "; ".join(f"{one.night}: {one.error}" for one in failed)
        raise PartialError(f"{len(failed)} of {len(outcomes)} nights could not be made: {named}")
