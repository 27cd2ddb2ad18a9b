"""Geometries: the real files, small ones as text, and a detector of 128 panels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nightbeam.geometry.files import parse_geometry, read_geometry
from nightbeam.geometry.model import Geometry

HEAD = "clen = 0.1\nphoton_energy = 9000\nadu_per_photon = 1\nres = 10000\n"
PANEL = {"min_fs": 0, "max_fs": 3, "min_ss": 0, "max_ss": 1, "corner_x": 0, "corner_y": 0, "fs": "x", "ss": "y"}


def _panel(name: str = "p", **fields: object) -> str:
    return "".join(f"{name}/{key} = {value}\n" for key, value in (PANEL | fields).items())


@pytest.fixture
def panel() -> Callable[..., str]:
    """Lines of a panel of 2 x 4 pixels; keywords replace its fields."""
    return _panel


@pytest.fixture
def geometry_of() -> Callable[..., Geometry]:
    """Read text behind the usual defaults."""

    def read(*parts: str) -> Geometry:
        return parse_geometry(HEAD + "".join(parts))

    return read


@pytest.fixture(scope="session")
def geom(shared_data: Path) -> Path:
    """The folder of real geometry files."""
    return shared_data / "geom"


@pytest.fixture(scope="session")
def expected(geom: Path) -> dict[str, Any]:
    """What is in the real files, found by other programs."""
    found: dict[str, Any] = json.loads((geom / "expected.json").read_text())
    return found


@pytest.fixture(scope="session")
def real(geom: Path) -> Callable[[str], Geometry]:
    """Read a real file by its name."""
    return lambda name: read_geometry(geom / name)


@pytest.fixture(scope="session")
def agipd() -> Geometry:
    """16 modules of 8 panels of 64 x 128, one below the other, as CrystFEL has it for the European XFEL."""
    lines = [HEAD, "dim0 = %\ndim1 = ss\ndim2 = fs\n"]
    for module in range(16):
        for asic in range(8):
            first = module * 512 + asic * 64
            corner_x, corner_y = -500.0 + 66 * asic, 600.0 - 70 * module
            place = {"min_ss": first, "max_ss": first + 63, "max_fs": 127, "corner_x": corner_x, "corner_y": corner_y}
            lines.append(_panel(f"p{module}a{asic}", **place, fs="-1.0y", ss="+1.0x"))
    return parse_geometry("".join(lines), source="agipd.geom")
