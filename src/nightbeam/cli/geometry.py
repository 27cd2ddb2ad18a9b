"""``nightbeam geometry``: what a detector's geometry file says."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import json_option, show, talk

if TYPE_CHECKING:
    from nightbeam.geometry.model import Geometry, Quantity

__all__ = ["geometry"]


@click.group("geometry")
def geometry() -> None:
    """Look at CrystFEL geometry files."""


@geometry.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def show_file(file: Path, as_json: bool) -> None:
    """Show panels, slab, groups and what is doubtful in the geometry FILE."""
    from nightbeam.geometry.files import read_geometry

    found = read_geometry(file)
    said = _summary(found)
    if as_json:
        show([said], as_json=True)
        return
    rows = [{"what": name.replace("_", " "), "value": _in_words(value)} for name, value in said.items()]
    show([row for row in rows if row["what"] != "warnings"], title=str(file))
    for warning in found.warnings:
        talk(f"warning: {warning}")


def _summary(found: Geometry) -> dict[str, Any]:
    from nightbeam.geometry.compute import crystfel_complaints

    return {
        "panels": len(found.panels),
        "bad": len(found.bad),
        "slab": list(found.slab_shape),
        "groups": _counts(found.groups),
        "rigid_groups": _counts(found.rigid_groups),
        "pixels": sum(rows * columns for rows, columns in (p.shape for p in found.panels)),
        "data": sorted({p.data for p in found.panels}),
        "dims": sorted({",".join(map(str, p.dims)) for p in found.panels}),
        "clen": _written(found.clen),
        "photon_energy": _written(found.photon_energy),
        "wavelength": _written(found.wavelength),
        "peak_list": found.peak_list,
        "crystfel_complaints": list(crystfel_complaints(found)),
        "warnings": list(found.warnings),
    }


def _counts(groups: Mapping[str, Sized]) -> dict[str, int]:
    return {name: len(members) for name, members in groups.items()}


def _written(value: Quantity | None) -> str | None:
    return None if value is None else f"{value.value} {value.unit}"


def _in_words(value: Any) -> str | int | None:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count}" for name, count in value.items()) or None
    if isinstance(value, list):
        return (" x " if all(isinstance(v, int) for v in value) else "\n").join(map(str, value)) or None
    return value  # type: ignore[no-any-return]
