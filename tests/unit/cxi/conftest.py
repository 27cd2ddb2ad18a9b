"""Batches whose peaks have been found, of a small detector with a geometry of eight panels; and a writer to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightbeam.cxi.model import Event, OutputPlan, ProcessedBatch
from nightbeam.cxi.worker import CxiService
from nightbeam.geometry.files import parse_geometry
from nightbeam.geometry.model import Geometry
from nightbeam.peaks.model import PeakTable, Window
from nightbeam.stream.model import BatchHeader
from nightbeam.testing.cxi_world import World, small_config

#: Modules, rows, columns. In the slab, (40, 48), they stand two by two: down, then right.
SHAPE = (4, 20, 24)


def _geom(clen: str = "clen = 0.1", energy: str = "photon_energy = 9500 eV") -> str:
    lines = [clen, energy, "adu_per_photon = 1", "res = 10000", "data = /data/data", "dim0 = %", "dim1 = ss",
             "dim2 = fs", "coffset = 0.02"]  # fmt: skip
    for module in range(4):
        ss0, fs0 = 20 * (module % 2), 24 * (module // 2)
        for half in range(2):
            name, left = f"p{module}a{half}", fs0 + 12 * half
            lines += [
                f"{name}/min_fs = {left}",
                f"{name}/max_fs = {left + 11}",
                f"{name}/min_ss = {ss0}",
                f"{name}/max_ss = {ss0 + 19}",
                f"{name}/fs = x",
                f"{name}/ss = -y",
                f"{name}/corner_x = {left - 24 + (3 if left >= 24 else -3)}",
                f"{name}/corner_y = {20 - ss0 + (3 if ss0 == 0 else -3)}",
            ]
    lines += ["bad_spot/panel = p3a1", "bad_spot/min_fs = 40", "bad_spot/max_fs = 41", "bad_spot/min_ss = 30",
              "bad_spot/max_ss = 30"]  # fmt: skip
    return "\n".join(lines) + "\n"


@pytest.fixture
def geom_text() -> Callable[..., str]:
    """The text of the geometry; keywords replace its lines of camera length and energy."""
    return _geom


@pytest.fixture
def geometry() -> Geometry:
    """Eight panels on a slab of 40 x 48, with a literal camera length."""
    return parse_geometry(_geom(), source="small.geom")


@pytest.fixture
def plan(tmp_path: Path) -> OutputPlan:
    """Four events a file."""
    return OutputPlan(output_dir=tmp_path / "out", file_prefix="p", buffer_size=4)


def _table(index: int, places: list[tuple[int, float, float]], panels: int) -> PeakTable:
    n = len(places)
    values = np.arange(1.0, n + 1.0)
    at = np.array([(y, y, x, x) for _, y, x in places], float).reshape(n, 4).round().astype(np.int64)
    return PeakTable(
        row=np.array([index * panels + panel for panel, _, _ in places], np.int64),
        y=np.array([y for _, y, _ in places]),
        x=np.array([x for _, _, x in places]),
        n_pixels=np.full(n, 3, np.int64),
        total=100.0 * values,
        maximum=50.0 * values,
        background=np.zeros(n),
        sigma=np.ones(n),
        snr=7.0 * values,
        box=at,
    )


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., ProcessedBatch]:
    """Make a batch; ``hits`` are the events that are kept, each with ``places`` (panel, y, x) of peaks."""

    def make(
        number: int = 0,
        *,
        events: int = 3,
        hits: list[int] | None = None,
        places: list[tuple[int, float, float]] | None = None,
        shape: tuple[int, int, int] = SHAPE,
        images: bool = True,
        misses: bool = True,
        **header: Any,
    ) -> ProcessedBatch:
        seconds = 1_700_000_000 + number
        stamps = [(seconds << 32) | (1000 + n) for n in range(events)]
        said = BatchHeader(
            batch_id=f"batch_{number}",
            producer="gpu0",
            sequence=number,
            first_event=number * events,
            run=None,
            experiment="mfxl1033223",
            n_events=events,
            n_panels=shape[0],
            panel_shape=shape[1:],
            network_shape=shape[1:],
            window=Window(0, 0, *shape[1:]),
            form="logits",
            image_kind="network_input",
            timestamps=np.array(stamps, np.uint64),
            wall_clock_s=None,
            photon_energy_ev=np.full(events, 9500.0),
            clen_mm=np.full(events, 120.0),
        )
        said = replace(said, **header)
        rng = np.random.default_rng(number)
        pixels = rng.uniform(0, 100, (events, *shape)).astype(np.float32)
        kept = list(range(events)) if hits is None else hits
        peaks = [(0, 2.25, 3.5), (1, 4.0, 13.0)] if places is None else places
        made = tuple(Event(said, n, _table(n, peaks, shape[0]), pixels[n] if images else None) for n in kept)
        dropped = tuple(pixels[n] for n in range(events) if n not in kept) if misses and images else ()
        return ProcessedBatch(said, made, filtered=events - len(kept), misses=dropped)

    return make


# -- a writer in a world in which nothing is real -----------------------------------------------------------------


@pytest.fixture
def world() -> World:
    """Queue, arrays, tasks, files and time."""
    return World()


@pytest.fixture
def make_service(tmp_path: Path, world: World) -> Iterator[Callable[..., CxiService]]:
    """Make a writer in that world; keywords are sections of its configuration. It is closed in the end."""
    made = []

    def make(**sections: Any) -> CxiService:
        one = CxiService(small_config(tmp_path, **sections), doors=world.doors(), clock=world.clock)
        made.append(one)
        return one

    yield make
    world.files.gate.set()
    world.files.full = False
    for one in made:
        one.close()


def _turn(service: CxiService, times: int | None = None) -> bool:
    going, k = True, 0
    while going and (times is None or k < times):
        going, k = service.step(), k + 1
        service.require_balance()
        assert k < 5000
    return going


@pytest.fixture(scope="session")
def turn() -> Callable[..., bool]:
    """Let the loop turn until it ends, or so many times; the sum comes out after every turn."""
    return _turn


@pytest.fixture(scope="session")
def through() -> Callable[[CxiService], dict[str, Any]]:
    """Let a writer run from beginning to end; returns its counters."""

    def run(service: CxiService) -> dict[str, Any]:
        service.open()
        _turn(service)
        service.close()
        service.require_balance()
        return service.counters()

    return run


@pytest.fixture(scope="session")
def until() -> Callable[[CxiService, Callable[[], Any]], None]:
    """Let the loop turn until something is true."""

    def run(service: CxiService, true: Callable[[], Any]) -> None:
        patience = time.monotonic() + 60
        while not true():
            assert time.monotonic() < patience, "it never became true"
            service.step()
            service.require_balance()
            service._outlet.wait(0.005)

    return run
