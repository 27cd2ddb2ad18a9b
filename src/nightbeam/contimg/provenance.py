"""What every product is made of, written down in the step that records it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from nightbeam import __version__
from nightbeam.catalog.model import CalTableRow, MosaicRow, Owner, ProvenanceInput
from nightbeam.contimg.checksums import ENDS, WHOLE, ends_digest
from nightbeam.contimg.site import Site
from nightbeam.core.files import directory_bytes

if TYPE_CHECKING:
    from nightbeam.mosaic.model import MosaicProduct

__all__ = [
    "configuration_of",
    "note_image",
    "note_mosaic",
    "note_ms",
    "note_ms_state",
    "note_step",
    "note_tables",
    "programs",
    "working_as",
]

#: Whose versions decide what comes out.
_DISTRIBUTIONS = ("astropy", "casatasks", "casatools", "h5py", "numba", "numpy", "python-casacore", "pyuvdata", "scipy")
_run: ContextVar[str | None] = ContextVar("nightbeam_run", default=None)


@contextmanager
def working_as(name: str | None) -> Iterator[None]:
    """Let what is made in the block be made by a run of this name, such as the id of a flow run."""
    token = _run.set(name)
    try:
        yield
    finally:
        _run.reset(token)


def configuration_of(site: Site) -> dict[str, Any]:
    """Return the settings of a site as they are in force, as JSON types; addresses without their passwords."""
    from nightbeam.catalog.remote import shown_url

    def plain(name: str, value: Any) -> Any:
        if name.endswith("_url") and isinstance(value, str):
            return shown_url(value)
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json")
        return str(value) if isinstance(value, Path) else value

    return {f.name: plain(f.name, getattr(site, f.name)) for f in dataclasses.fields(site)}


@cache
def programs() -> Mapping[str, str]:
    """Return the versions of the programs that decide what comes out, as far as they are installed."""
    found = {"nightbeam": __version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def note_step(site: Site, group_id: str, step: str, *, owner: Owner, seconds: float) -> None:
    """Write down who has done a step of a group, and with which settings."""
    origins = site.products().origins
    configuration = origins.put_configuration(configuration_of(site))
    origins.put_step(group_id, step, run=owner.name, version=__version__, configuration=configuration, seconds=seconds)


def note_ms(
    site: Site, group_id: str, ms: Path, inputs: Sequence[ProvenanceInput], *, owner: Owner, writer: str
) -> None:
    """Write down of which subbands a Measurement Set was made; none where another program made it."""
    _put(
        site, ms, "ms", group_id, inputs, run=owner.name, digest=ends_digest(ms), digest_kind=ENDS,
        size_bytes=directory_bytes(ms), programs={**programs(), "writer": writer},
    )  # fmt: skip


def note_ms_state(site: Site, ms: Path) -> bool:
    """Write down what a Measurement Set is after data were added to it; returns False for one without a history."""
    return site.products().origins.change(ms, digest=ends_digest(ms), size_bytes=directory_bytes(ms))


def note_tables(site: Site, ms: Path, tables: Iterable[CalTableRow], *, owner: Owner) -> None:
    """Write down on which Measurement Set calibration tables were solved."""
    for row in tables:
        path = Path(row.path)
        _put(
            site, path, "caltable", row.set_name, [ProvenanceInput(str(ms), "ms")], run=owner.name,
            digest=row.sha256, digest_kind=WHOLE, size_bytes=directory_bytes(path), programs=programs(),
        )  # fmt: skip


def note_image(
    site: Site, group_id: str, ms: Path, product: Any, tables: Iterable[CalTableRow], *, owner: Owner
) -> None:
    """Write down of which Measurement Set, and with which tables, an image was made."""
    inputs = [ProvenanceInput(str(ms), "ms"), *(ProvenanceInput(t.path, "caltable", digest=t.sha256) for t in tables)]
    path = Path(product.path)
    used = {**programs(), **dict(getattr(product, "versions", {}))}
    _put(
        site, path, "image", group_id, inputs, run=owner.name, digest=product.sha256.get(path.name), digest_kind=WHOLE,
        size_bytes=_bytes(path), programs=used, files=_files(path, product.sha256),
    )  # fmt: skip


def note_mosaic(site: Site, row: MosaicRow, product: MosaicProduct, *, run: str) -> None:
    """Write down of which tiles a mosaic was made, each as it was then."""
    tiles = [ProvenanceInput(str(t.path), "tile", _bytes(t.path), _mtime(t.path), t.sha256) for t in product.tiles]
    _put(
        site, product.path, "mosaic", row.name, tiles, run=run, digest=product.sha256.get(product.path.name),
        digest_kind=WHOLE, size_bytes=_bytes(product.path), programs={**programs(), **dict(product.versions)},
        files=_files(product.path, product.sha256),
    )  # fmt: skip


def _put(
    site: Site, path: Path, kind: str, subject: str, inputs: Sequence[ProvenanceInput], *, run: str, **values: Any
) -> None:
    origins = site.products().origins
    configuration = origins.put_configuration(configuration_of(site))
    origins.put(
        path, kind=kind, subject=subject, inputs=inputs, made_at=time.time(), run=_run.get() or run,
        version=__version__, configuration=configuration, **values,
    )  # fmt: skip


def _files(path: Path, sums: Mapping[str, str]) -> dict[str, str]:
    return {str(path.with_name(name)): digest for name, digest in sums.items()}


def _bytes(path: Path) -> int | None:
    return directory_bytes(path) if path.exists() else None


def _mtime(path: Path) -> float | None:
    return path.stat().st_mtime if path.exists() else None
