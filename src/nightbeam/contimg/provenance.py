"""What every product is made of, written down in the step that records it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
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
from nightbeam.rfi.files import read_report

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
#: Databases keep times to less than this.
_SAME_S = 0.01
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
    """Write down of which subbands a Measurement Set was made; none where another program made it.

    One that was found finished keeps who made it and when. By which program it was flagged the set itself says, also
    where the settings name none any more.
    """
    origins, made_at = site.products().origins, _made_at(ms)
    flagged = read_report(ms) if (ms / "FIELD").is_dir() else None
    by = {flagged.engine: f"{flagged.version}, strategy {flagged.strategy}"} if flagged is not None else {}
    known = origins.of(ms)
    same = [(one.path, one.digest) for one in origins.inputs(ms)] == [(one.path, one.digest) for one in inputs]
    if known is not None and same and known.made_at >= made_at - _SAME_S:
        told = json.dumps({**json.loads(known.programs or "{}"), **by}, sort_keys=True)
        origins.change(ms, digest=ends_digest(ms), size_bytes=directory_bytes(ms), programs=told)
        return
    _put(
        site, ms, "ms", group_id, inputs, run=owner.name, digest=ends_digest(ms), digest_kind=ENDS,
        size_bytes=directory_bytes(ms), programs={**programs(), "writer": writer, **by}, made_at=made_at,
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
    """Write down of which Measurement Set, and with which tables, an image was made.

    Its maker is who did the step `image`: whoever records it may be another, after the first was killed. One that was
    found finished and is written down already stays as it is.
    """
    origins = site.products().origins
    inputs = [ProvenanceInput(str(ms), "ms"), *(ProvenanceInput(t.path, "caltable", digest=t.sha256) for t in tables)]
    path = Path(product.path)
    digest = product.sha256.get(path.name)
    known, told = origins.of(path), getattr(product, "made_at", None)
    made_at = told.timestamp() if told is not None else _made_at(path)
    same = known is not None and known.digest == digest and origins.inputs(path) == inputs
    if known is not None and same and known.made_at >= made_at - _SAME_S:
        return
    used = {**programs(), **dict(getattr(product, "versions", {}))}
    maker = next((step for step in origins.steps(group_id) if step.step == "image"), None)
    by: dict[str, Any] = {"run": owner.name, "made_at": made_at}
    if maker is not None and maker.run and maker.finished_at >= made_at - 1.0:
        by |= {"run": maker.run, "version": maker.version, "configuration": maker.configuration}
    _put(
        site, path, "image", group_id, inputs, digest=digest, digest_kind=WHOLE,
        size_bytes=_bytes(path), programs=used, files=_files(path, product.sha256), **by,
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
    site: Site,
    path: Path,
    kind: str,
    subject: str,
    inputs: Sequence[ProvenanceInput],
    *,
    run: str,
    made_at: float | None = None,
    **values: Any,
) -> None:
    origins = site.products().origins
    values.setdefault("version", __version__)
    if "configuration" not in values:
        values["configuration"] = origins.put_configuration(configuration_of(site))
        run = _run.get() or run
    made_at = time.time() if made_at is None else made_at
    origins.put(path, kind=kind, subject=subject, inputs=inputs, made_at=made_at, run=run, **values)


def _made_at(path: Path) -> float:
    """Return when a Measurement Set or a file was written.

    Of a set that is the time of its antennas: nothing that is done to it later touches them.
    """
    first = path / "ANTENNA" / "table.dat"
    for place in (first, path / "table.dat", path):
        if place.exists():
            return min(time.time(), place.stat().st_mtime)
    return time.time()


def _files(path: Path, sums: Mapping[str, str]) -> dict[str, str]:
    return {str(path.with_name(name)): digest for name, digest in sums.items()}


def _bytes(path: Path) -> int | None:
    return directory_bytes(path) if path.exists() else None


def _mtime(path: Path) -> float | None:
    return path.stat().st_mtime if path.exists() else None
