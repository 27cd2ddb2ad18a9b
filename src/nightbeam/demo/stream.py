"""The CXI writer in the demo: simulated frames go through a network into the queue, and files are beside the truth."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from nightbeam.core.children import run_child
from nightbeam.core.errors import NightbeamError, ToolError
from nightbeam.core.files import write_text
from nightbeam.core.settings import CxiSettings, Settings, StreamSettings
from nightbeam.cxi.check import check_file
from nightbeam.cxi.files import Chunk, read_chunk
from nightbeam.cxi.ledger import lock_path, read_status, status_path
from nightbeam.demo.model import RealCheck
from nightbeam.demo.night import cancel_service
from nightbeam.frames.compute import true_peaks
from nightbeam.frames.model import FramePlan, FrameTruth
from nightbeam.geometry.files import format_geometry, parse_geometry, read_geometry
from nightbeam.platform import Layout, PrefectApi

__all__ = ["Comparison", "StreamDemo", "compare"]

DEPLOYMENT: Final = "cxi-writer/default"
#: Two panels above two others; each is a module, and they are stacked in the slab.
PLAN: Final = FramePlan(shape=(4, 96, 96), seed=20261122, n_peaks=(15, 30))
EVENTS: Final = 96
_QUEUE: Final = "demo"
_PREFIX: Final = "demo"
_MIN_PEAKS: Final = 8
#: A peak that was found is the true one that lies so near.
_NEAR_PX: Final = 1.5
#: At a threshold of six times the noise, of peaks of 600 ADU and more; two whose pixels touch are found as one.
LEAST_RECALL: Final = 0.97
LEAST_PRECISION: Final = 0.97
MOST_ERROR_PX: Final = 0.35
#: A cancelled service has to let go of its output in this time.
MOST_DRAIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class StreamDemo:
    """Where a stream is written.

    Attributes
    ----------
    home
        Geometry, configuration and truth.
    flows
        The settings that the platform writes for flows; its cluster is in them.
    """

    home: Path
    flows: Path
    log: Path

    @classmethod
    def of(cls, settings: Settings) -> StreamDemo:
        """Return the demo of some settings, which are resolved."""
        assert settings.cxi.config is not None
        layout = Layout(settings.state_dir)
        return cls(settings.cxi.config.parent, layout.config, layout.log_of("replay"))

    @staticmethod
    def settings(directory: Path) -> dict[str, Any]:
        """Return the sections of the demo: none of a site's, and a small cluster of the platform's own."""
        return {
            "cxi": CxiSettings(config=directory / "stream" / "writer.yaml"),
            "stream": StreamSettings(object_store_gb=0.3),
        }

    @property
    def out(self) -> Path:
        """Where the files go."""
        return self.home / "cxi"

    def check(
        self, api: PrefectApi, *, timeout_s: float = 120.0, say: Callable[[str], None] = lambda _: None
    ) -> tuple[RealCheck, ...]:
        """Let the service write what a replay sends, then cancel it; compare with what was simulated."""
        self._prepare()
        run = api.run_deployment(DEPLOYMENT, parameters={"fence_s": 2.0})
        try:
            self._replay(timeout_s)
            self._wait(timeout_s)
            rows = list(self._rows(true_peaks(PLAN, 0, EVENTS), say))
        except NightbeamError as error:
            rows = [RealCheck("the written stream", "files", str(error), False)]
        return (*rows, cancel_service(api, str(run["id"]), lock_path(self.out, _PREFIX), most_drain_s=MOST_DRAIN_S))

    def _prepare(self) -> None:
        geometry = self.home / "detector.geom"
        write_text(geometry, geometry_text(PLAN))
        tree = {
            "ray": {"namespace": StreamSettings().namespace},
            "queue": {"name": _QUEUE, "num_shards": "auto"},
            "processing": {"num_cpu_workers": "auto"},
            "peak_finding": {"min_num_peak": _MIN_PEAKS, "max_num_peak": 64},
            "geometry": {"geom_file": str(geometry)},
            "output": {"output_dir": str(self.out), "file_prefix": _PREFIX, "buffer_size": 20},
        }
        write_text(self.home / "writer.yaml", yaml.safe_dump(tree))

    def _replay(self, timeout_s: float) -> None:
        """Send the frames, from a process of its own as at a beamline; it stays until the writer has them."""
        panels, peaks = "x".join(map(str, PLAN.shape)), ":".join(map(str, PLAN.n_peaks))
        run_child(
            [
                *(sys.executable, "-m", "nightbeam", "--config", self.flows, "stream", "replay"),
                *("--queue", _QUEUE, "--shards", "2", "--simulate", str(EVENTS), "--panels", panels),
                *("--peaks", peaks, "--seed", str(PLAN.seed), "--run", "1", "--calibrated", "--threads", "1"),
            ],
            log=self.log,
            timeout_s=timeout_s,
            what="the replay",
        )

    def _wait(self, timeout_s: float) -> None:
        """Wait until the writer's own account says that all events are written or filtered."""
        until, settled = time.monotonic() + timeout_s, 0
        while time.monotonic() < until:
            path = status_path(self.out, _PREFIX)
            pages = read_status(path).get("producers", {}) if path.exists() else {}
            settled = sum((end or 0) - (begin or 0) for page in pages.values() for _, _, begin, end in page["settled"])
            if settled >= EVENTS:
                return
            time.sleep(0.25)
        raise ToolError(f"{settled} of {EVENTS} events were written or filtered", fix=f"read {self.log}")

    def _rows(self, truth: FrameTruth, say: Callable[[str], None]) -> Iterator[RealCheck]:
        paths = sorted(self.out.glob("*.cxi"))
        found = compare([read_chunk(path) for path in paths], truth, PLAN.shape[1])
        hits = np.bincount(truth.event, minlength=EVENTS) >= _MIN_PEAKS
        expected = f"the {int(hits.sum())} of {EVENTS} events with {_MIN_PEAKS} peaks or more"
        right = found.events == tuple(np.flatnonzero(hits).tolist())
        yield RealCheck("events in files", expected, f"{len(found.events)} in {len(paths)} files", right)
        yield RealCheck("true peaks that were found", f">= {LEAST_RECALL:.0%}", f"{found.recall:.1%}",
                        found.recall >= LEAST_RECALL)  # fmt: skip
        yield RealCheck("found peaks that are true", f">= {LEAST_PRECISION:.0%}", f"{found.precision:.1%}",
                        found.precision >= LEAST_PRECISION)  # fmt: skip
        yield RealCheck("error of their places (rms)", f"<= {MOST_ERROR_PX} px", f"{found.error_px:.3f} px",
                        found.error_px <= MOST_ERROR_PX)  # fmt: skip
        yield self._as_crystfel_reads(paths)
        yield self._figure(paths, say)

    def _as_crystfel_reads(self, paths: Sequence[Path]) -> RealCheck:
        geometry = read_geometry(self.out / f"{_PREFIX}.geom")
        findings = [f"{path.name}: {one.text}" for path in paths for one in check_file(path, geometry).findings]
        said = "; ".join(findings[:3]) or "nothing to complain of"
        return RealCheck("the files as CrystFEL reads them", "nothing to complain of", said, not findings)

    def _figure(self, paths: Sequence[Path], say: Callable[[str], None]) -> RealCheck:
        from nightbeam.cxi.plot import plot_files

        path = plot_files(paths, self.home / "stream.png", geometry=read_geometry(self.out / f"{_PREFIX}.geom"))
        say(f"stream: {path}")
        good = path.read_bytes().startswith(b"\x89PNG")
        return RealCheck("figure of the stream", "stream.png", path.name if good else "nothing", good)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Files beside the truth.

    Attributes
    ----------
    events
        Numbers of the events in the files.
    recall
        Share of these events' true peaks that were found.
    precision
        Share of the found peaks that are true.
    error_px
        Root of the mean square of the distance from the true place.
    """

    events: tuple[int, ...]
    recall: float
    precision: float
    error_px: float


def compare(chunks: Sequence[Chunk], truth: FrameTruth, panel_rows: int) -> Comparison:
    """Compare files of panels that are stacked in the slab with what was simulated.

    Parameters
    ----------
    chunks
        The files.
    truth
        Of the events, which are known again by their time.
    panel_rows
        Rows of a panel.
    """
    numbers = {int(time): truth.first_event + k for k, time in enumerate(truth.timestamps)}
    events, true, found, errors = [], 0, 0, []
    for chunk in chunks:
        for k, stamp in enumerate(chunk.events["/LCLS/detector_1/timestamp"]):
            event = numbers[int(stamp)]
            peaks = truth.peaks_of(event)
            there = np.stack([peaks.y + panel_rows * peaks.panel, peaks.x], axis=1)
            here = np.stack([chunk.table("peakYPosRaw", k), chunk.table("peakXPosRaw", k)], axis=1)
            events.append(event)
            true, found = true + len(there), found + len(here)
            errors += _distances(there, here.astype(float))
    n = len(errors)
    rms = float(np.sqrt(np.mean(np.square(errors)))) if n else np.inf
    return Comparison(tuple(sorted(events)), n / true if true else 0.0, n / found if found else 0.0, rms)


def _distances(there: NDArray[np.float64], here: NDArray[np.float64]) -> list[float]:
    """Return how far each true peak is from the one that was found for it; each serves once."""
    if not len(there) or not len(here):
        return []
    far = np.hypot(*(there[:, None, axis] - here[None, :, axis] for axis in (0, 1)))
    matched: list[float] = []
    while far.size and (best := float(far.min())) <= _NEAR_PX:
        row, column = np.unravel_index(int(far.argmin()), far.shape)
        far[row, :] = far[:, column] = np.inf
        matched.append(best)
    return matched


def geometry_text(plan: FramePlan) -> str:
    """Return a CrystFEL geometry of four modules, two by two around the beam, stacked in the slab."""
    panels, rows, columns = plan.shape
    lines = [
        f"clen = {plan.clen_mm / 1e3:g} m",
        f"photon_energy = {plan.photon_energy_ev:g} eV",
        "res = 13333.3",
        f"adu_per_photon = {plan.adu_per_photon:g}",
    ]
    for k in range(panels):
        x, y = (k % 2) * (columns + 4) - columns - 2, (k // 2) * (rows + 4) - rows - 2
        lines += [
            f"p{k}/min_fs = 0",
            f"p{k}/max_fs = {columns - 1}",
            f"p{k}/min_ss = {k * rows}",
            f"p{k}/max_ss = {(k + 1) * rows - 1}",
            f"p{k}/corner_x = {x}",
            f"p{k}/corner_y = {y}",
            f"p{k}/fs = x",
            f"p{k}/ss = y",
        ]
    return format_geometry(parse_geometry("\n".join(lines) + "\n", source="the demo's detector"))
