"""The stream's part of the demo without a platform: what is right counts as right, and what is wrong is seen."""

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from nightbeam.core.settings import load_settings
from nightbeam.cxi.files import Chunk
from nightbeam.demo import demo_settings
from nightbeam.demo.stream import PLAN, StreamDemo, compare, geometry_text
from nightbeam.frames.model import FrameTruth
from nightbeam.geometry.compute import tile_origins
from nightbeam.geometry.files import parse_geometry

STAMPS = np.array([7 << 32, 8 << 32, 9 << 32], np.uint64)


def truth(*peaks: tuple[int, int, float, float]) -> FrameTruth:
    event, panel, y, x = (np.array(column) for column in zip(*peaks, strict=True))
    n = len(STAMPS)
    return FrameTruth(
        event=event.astype(np.int64),
        panel=panel.astype(np.int64),
        y=y.astype(float),
        x=x.astype(float),
        total_adu=np.full(len(event), 1e3),
        first_event=0,
        hit=np.ones(n, bool),
        timestamps=STAMPS,
        photon_energy_ev=np.full(n, 9500.0),
        clen_mm=np.full(n, 120.0),
    )


def chunk(stamps: list[int], *events: list[tuple[float, float]]) -> Chunk:
    """A file with peaks (y, x) in the slab."""
    tables = np.zeros((2, len(events), 4), np.float32)
    for k, peaks in enumerate(events):
        for p, place in enumerate(peaks):
            tables[:, k, p] = place
    return Chunk(
        path=Path("a.cxi"),
        n_peaks=np.array([len(peaks) for peaks in events]),
        peaks=MappingProxyType({"peakYPosRaw": tables[0], "peakXPosRaw": tables[1]}),
        events=MappingProxyType({"/LCLS/detector_1/timestamp": STAMPS[stamps]}),
        slab=(20, 10),
        attributes=MappingProxyType({}),
    )


def test_peaks_are_compared_in_the_slab_and_events_are_known_by_their_time():
    true = truth((0, 0, 3.0, 4.0), (2, 1, 5.0, 6.0))
    found = compare([chunk([2], [(15.0, 6.0)]), chunk([0], [(3.0, 4.5)])], true, 10)
    assert found.events == (0, 2)
    assert (found.recall, found.precision) == (1.0, 1.0)
    assert found.error_px == pytest.approx(np.sqrt(0.125))


def test_what_was_not_found_what_is_not_true_and_what_is_too_far_away_counts():
    true = truth((0, 0, 3.0, 4.0), (0, 0, 8.0, 8.0), (1, 0, 1.0, 1.0))
    found = compare([chunk([0, 1], [(3.0, 4.0), (3.0, 4.2)], [(1.0, 3.0)])], true, 10)
    assert found.recall == pytest.approx(1 / 3)
    assert found.precision == pytest.approx(1 / 3)
    assert found.error_px == 0.0


def test_files_without_a_true_peak_are_wrong_and_no_mistake_of_ours():
    found = compare([], truth((0, 0, 1.0, 1.0)), 10)
    assert (found.events, found.recall, found.precision, found.error_px) == ((), 0.0, 0.0, np.inf)


def test_the_detector_of_the_demo_is_stacked_in_the_slab():
    geometry = parse_geometry(geometry_text(PLAN))
    assert geometry.slab_shape == (4 * 96, 96)
    assert tile_origins(geometry, PLAN.shape).tolist() == [[0, 0], [96, 0], [192, 0], [288, 0]]


def test_nothing_of_a_sites_own_stream_is_touched(tmp_path):
    overrides = {"stream.address": "head.site:6379", "cxi.config": "/the/sites.yaml", "cxi.output_dir": "/the/sites"}
    base = load_settings(config=Path("/dev/null"), overrides=overrides, environ={})
    settings = demo_settings(tmp_path / "demo", base)
    assert settings.stream.address is None
    assert settings.cxi.output_dir is None
    demo = StreamDemo.of(settings)
    assert demo.out.is_relative_to(tmp_path / "demo")
    assert demo.flows.is_relative_to(tmp_path / "demo")
