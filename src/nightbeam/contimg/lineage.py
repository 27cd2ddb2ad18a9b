"""The tree of what a product was made of, down to the files of the telescope, and whether that is still what it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nightbeam.catalog.model import ProvenanceInput, ProvenanceRow
from nightbeam.contimg.checksums import WHOLE, digest_of
from nightbeam.contimg.site import Site
from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.keys import GroupId
from nightbeam.core.times import iso_z

if TYPE_CHECKING:
    from nightbeam.catalog import Products, Registry

__all__ = ["Node", "Standing", "configurations_in", "nodes_of", "trace", "verify"]

OLD = "made before provenance was kept: nothing is known of its inputs"
BY_HAND = "not solved by a group of this site, or before provenance was kept"
FOREIGN = "another program made it: nothing is known of its subbands"
NEWER = "it was made again since it was used here: of the one that was used nothing is known any more"
ABOVE = "shown above"
_STEPS_OF = {"ms": ("convert",), "image": ("calibrate", "apply", "image", "record", "qa")}


class Standing(StrEnum):
    """Whether something is still what it was."""

    SAME = "same"
    CHANGED = "changed"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Node:
    """One product or input, and what it was made of.

    Attributes
    ----------
    kind
        ``mosaic``, ``image``, ``ms``, ``caltable`` or ``subband``.
    digest, digest_kind
        As it was when it was recorded; see `contimg.checksums`.
    used_digest
        As it was when the product above was made of it, where that was written down.
    steps
        Of its group: who did what when, with which configuration.
    note
        What is not known, and why.
    standing, found
        After `verify`: whether it is what it was, and what was found.
    """

    kind: str
    path: str
    subject: str | None = None
    size_bytes: int | None = None
    mtime: str | None = None
    digest: str | None = None
    digest_kind: str | None = None
    used_digest: str | None = None
    made_at: str | None = None
    run: str | None = None
    version: str | None = None
    programs: Mapping[str, str] = field(default_factory=dict)
    configuration: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Mapping[str, Any], ...] = ()
    note: str = ""
    standing: Standing | None = None
    found: str = ""
    inputs: tuple[Node, ...] = ()


def trace(site: Site, product: str) -> Node:
    """Return the tree of a product.

    Parameters
    ----------
    site
        Whose databases are asked.
    product
        Path of an image or of a file beside it, a Measurement Set, a calibration table or a mosaic; the id of a group;
        the name of a mosaic.

    Raises
    ------
    MissingError
        If none of the databases knows it.
    """
    return _Tracer(site).tree(product)


def nodes_of(node: Node) -> Iterator[Node]:
    """Yield a tree's nodes, from the product down; what is only referred to is left out."""
    if node.note != ABOVE:
        yield node
    for one in node.inputs:
        yield from nodes_of(one)


def configurations_in(site: Site, node: Node) -> dict[str, dict[str, Any]]:
    """Return the settings that anything in a tree was made with, by their SHA-256."""
    origins = site.products().origins
    named = {one.configuration for one in nodes_of(node)}
    named |= {step.get("configuration") for one in nodes_of(node) for step in one.steps}
    found = {digest: origins.configuration(digest) for digest in sorted(filter(None, named))}
    return {digest: content for digest, content in found.items() if content is not None}


def verify(site: Site, node: Node) -> Node:
    """Return a tree with what is on disk now held against what was written down, reading every byte of every file."""
    products = site.products()
    known: dict[str, tuple[Standing, str]] = {}

    def looked(one: Node) -> Node:
        if one.path not in known:  # what is shown above comes first
            known[one.path] = _look(products, one)
        standing, found = known[one.path]
        if one.used_digest and one.digest and one.used_digest != one.digest:
            standing, found = Standing.CHANGED, "it was made again since it was used here"
        return replace(one, standing=standing, found=found, inputs=tuple(looked(below) for below in one.inputs))

    return looked(node)


def _look(products: Products, node: Node) -> tuple[Standing, str]:
    path, wanted = Path(node.path), {node.path: node.digest or node.used_digest or "", **node.files}
    if not path.exists():
        held = products.quarantine.rows(states=("held",), original=path)
        return Standing.GONE, f"put aside to {held[0].path}" if held else "no longer there"
    if not wanted[node.path]:
        return Standing.UNKNOWN, "no checksum was written down"
    for name, digest in wanted.items():
        file = Path(name)
        try:
            if not file.exists():
                return Standing.GONE, f"{file.name} is no longer there"
            if digest_of(file, node.digest_kind or WHOLE) != digest:
                return Standing.CHANGED, f"{file.name} differs"
        except OSError as error:
            return Standing.UNKNOWN, f"{file.name} cannot be read: {error.strerror}"
    return Standing.SAME, ""


class _Tracer:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.products: Products = site.products()
        self.registry: Registry = site.registry()
        self.shown: set[str] = set()

    def tree(self, product: str) -> Node:
        if (found := self._named(product)) is not None:
            return found
        path = Path(product).expanduser().absolute()
        if (found := self._at(path)) is not None:
            return found
        raise MissingError(
            f"no product {product}",
            fix="give the path of an image, Measurement Set, calibration table or mosaic, a group, or a mosaic's name",
        )

    def _named(self, product: str) -> Node | None:
        try:
            group = str(GroupId.parse(product))
        except InputError:
            group = None
        if group is not None:
            images = self.products.images(group_id=group, limit=1)
            if images:
                return self._image(images[0].path, group)
            ms = self.site.ms_path(group)
            return self._ms(str(ms), group) if self.products.ms(ms) is not None else None
        row = self.products.mosaic(product)
        if row is None:
            return None
        if row.output_path is None:
            raise MissingError(f"the mosaic {product} is {row.status}", fix="build it first")
        return self._mosaic(row.output_path, row.name, row.tiles.splitlines())

    def _at(self, path: Path) -> Node | None:
        if (image := self.products.image_of_file(path)) is not None:
            return self._image(image.path, image.group_id)
        if (mosaic := self.products.mosaic_of_file(path)) is not None and mosaic.output_path:
            return self._mosaic(mosaic.output_path, mosaic.name, mosaic.tiles.splitlines())
        if (ms := self.products.ms(path)) is not None:
            return self._ms(str(path), ms.group_id)
        if any(table.path == str(path) for table in self.registry.tables()):
            return self._table(str(path), None)
        return None

    def _mosaic(self, path: str, name: str, tiles: list[str]) -> Node:
        inputs = self._inputs(path) or [ProvenanceInput(tile, "tile") for tile in tiles if tile]
        return self._node("mosaic", path, name, lambda: [self._tile(tile) for tile in inputs])

    def _tile(self, tile: ProvenanceInput) -> Node:
        row = self.products.image_of_file(Path(tile.path))
        node = self._image(row.path if row else tile.path, row.group_id if row else None)
        if row is not None and row.path != tile.path:
            return node  # the checksum is of another file of the image
        return replace(node, used_digest=tile.digest, digest=node.digest or tile.digest)

    def _image(self, path: str, group: str | None) -> Node:
        row = next(iter(self.products.images(group_id=group)), None) if group else None
        inputs = self._inputs(path)
        if not inputs and row is not None:  # older ones have at least what their row says
            tables = self.registry.tables(row.calibration_set) if row.calibration_set else []
            inputs = [ProvenanceInput(row.ms_path, "ms"), *(ProvenanceInput(t.path, "caltable") for t in tables)]
        node = self._node("image", path, group, lambda: [self._input(path, one, group) for one in inputs])
        return node if node.digest or row is None or row.path != path else replace(node, digest=row.sha256)

    def _input(self, product: str, one: ProvenanceInput, group: str | None) -> Node:
        return self._used_ms(product, one.path, group) if one.role == "ms" else self._table(one.path, one.digest)

    def _used_ms(self, product: str, path: str, group: str | None) -> Node:
        """Return the set that a product was made of; nothing of a newer one that has its path now."""
        made, now = self.products.origins.of(Path(product)), self.products.origins.of(Path(path))
        if made is not None and now is not None and now.made_at > made.made_at:
            return Node("ms", path, now.subject or group, note=NEWER)
        return self._ms(path, group)

    def _ms(self, path: str, group: str | None) -> Node:
        row = self.products.ms(Path(path))
        group = row.group_id if row is not None and row.group_id else group
        subbands = self._inputs(path)
        node = self._node("ms", path, group, lambda: [_subband(one) for one in subbands])
        return node if subbands or node.note else replace(node, note=FOREIGN)

    def _table(self, path: str, used: str | None) -> Node:
        row = next((t for t in self.registry.tables() if t.path == path), None)
        inputs = self._inputs(path)
        name = row.set_name if row else None
        node = self._node(
            "caltable", path, name, lambda: [self._used_ms(path, one.path, None) for one in inputs], old=BY_HAND
        )
        digest = row.sha256 if row is not None else node.digest
        return replace(node, digest=digest or used, digest_kind=WHOLE, used_digest=used)

    def _inputs(self, path: str) -> list[ProvenanceInput]:
        return self.products.origins.inputs(Path(path))

    def _node(self, kind: str, path: str, subject: str | None, below: Any, *, old: str = OLD) -> Node:
        if path in self.shown:
            return Node(kind, path, subject, note=ABOVE)
        self.shown.add(path)
        row = self.products.origins.of(Path(path))
        if row is None:
            return Node(kind, path, subject, note=old, inputs=tuple(below()))
        return _told(row, kind, subject, self._steps(kind, subject), tuple(below()))

    def _steps(self, kind: str, group: str | None) -> tuple[Mapping[str, Any], ...]:
        wanted = _STEPS_OF.get(kind, ())
        if not wanted or group is None:
            return ()
        return tuple(
            {
                "step": step.step,
                "finished_at": _utc(step.finished_at),
                "seconds": step.seconds,
                "run": step.run,
                "version": step.version,
                "configuration": step.configuration,
            }
            for step in self.products.origins.steps(group)
            if step.step in wanted
        )


def _told(
    row: ProvenanceRow, kind: str, subject: str | None, steps: tuple[Mapping[str, Any], ...], inputs: tuple[Node, ...]
) -> Node:
    return Node(
        kind=kind,
        path=row.path,
        subject=row.subject or subject,
        size_bytes=row.size_bytes,
        digest=row.digest,
        digest_kind=row.digest_kind,
        made_at=_utc(row.made_at),
        run=row.run,
        version=row.version,
        programs=json.loads(row.programs or "{}"),
        configuration=row.configuration,
        files=json.loads(row.files or "{}"),
        steps=steps,
        inputs=inputs,
    )


def _subband(one: ProvenanceInput) -> Node:
    mtime = None if one.mtime is None else _utc(one.mtime)
    return Node("subband", one.path, None, one.size_bytes, mtime, one.digest, WHOLE)


def _utc(seconds: float) -> str:
    return iso_z(datetime.fromtimestamp(seconds, UTC))
