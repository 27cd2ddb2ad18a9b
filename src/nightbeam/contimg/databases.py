"""The three databases of a site, as far as they are there, for those who only tidy up or look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nightbeam.contimg.site import Site
from nightbeam.core.errors import MissingError

if TYPE_CHECKING:
    from nightbeam.catalog import Products, Queue, Registry

__all__ = ["Databases", "open_existing"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Databases:
    """Those that there are; ``notes`` says which are not."""

    queue: Queue | None
    registry: Registry | None
    products: Products | None
    notes: tuple[str, ...] = ()


def open_existing(site: Site, *, migrate: bool) -> Databases:
    """Open the databases that there are; none is made.

    Parameters
    ----------
    site
        Whose.
    migrate
        Whether those of an older nightbeam are brought up to date; if not, they are refused.

    Raises
    ------
    InputError
        If one was made by a newer nightbeam, or is none.
    """
    from nightbeam.catalog import Products, Queue, Registry

    notes: list[str] = []

    def opened(make: Callable[..., T], url: str, **more: Any) -> T | None:
        try:
            return make(url, create=False, migrate=migrate, **more)
        except MissingError as error:
            notes.append(error.what)
            return None

    queue = opened(Queue, site.queue_url, max_retries=site.ingest.max_retries)
    registry, products = opened(Registry, site.registry_url), opened(Products, site.products_url)
    return Databases(queue, registry, products, tuple(notes))
