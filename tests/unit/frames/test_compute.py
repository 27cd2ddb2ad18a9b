"""Simulated frames are what their truth says; slabs are cut where the rule says."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from nightbeam.core.errors import ConfigError, InputError
from nightbeam.frames.compute import (
    SimulatedFrames,
    cut_slab,
    expected_background,
    lcls_time,
    panel_radii,
    simulate_frames,
    stacked_radii,
    tile_slab,
    true_peaks,
)
from nightbeam.frames.model import FramePlan, Ring

#: Nothing but peaks: no background, no noise.
CLEAN = FramePlan(background_photons=0, rings=(), read_noise_adu=0, photon_noise=False, hit_rate=1, seed=5)


def test_a_range_is_the_same_however_it_is_asked_for():
    plan = FramePlan(shape=(2, 64, 64), n_peaks=(2, 9))
    frames, truth = simulate_frames(plan, 3, 4)
    for k in (6, 3, 5, 4):
        one, said = simulate_frames(plan, k, 1)
        assert np.array_equal(one[0], frames[k - 3])
        assert np.array_equal(said.x, truth.peaks_of(k).x)
        assert said.timestamps[0] == truth.timestamps[k - 3]


def test_another_process_makes_the_same_frames():
    code = (
        "from nightbeam.frames.compute import simulate_frames; from nightbeam.frames.model import FramePlan;"
        "import hashlib; print(hashlib.sha256(simulate_frames(FramePlan(shape=(2, 64, 64), n_peaks=(2, 9)), 7, 2)[0]"
        ".tobytes()).hexdigest())"
    )
    import hashlib

    here, _ = simulate_frames(FramePlan(shape=(2, 64, 64), n_peaks=(2, 9)), 7, 2)
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(here.tobytes()).hexdigest()


def test_another_seed_gives_other_frames():
    one, _ = simulate_frames(FramePlan(seed=1), 0, 1)
    other, _ = simulate_frames(FramePlan(seed=2), 0, 1)
    assert not np.array_equal(one, other)


def test_a_peak_is_a_gaussian_integrated_over_its_pixels():
    plan = FramePlan(
        shape=(1, 40, 40), n_peaks=(1, 1), hit_rate=1, margin_px=15, background_photons=0, rings=(), read_noise_adu=0,
        photon_noise=False, spot_sigma_px=1.5,
    )  # fmt: skip
    frames, truth = simulate_frames(plan, 0, 1)
    edges = np.arange(41) - 0.5
    shares = [np.diff(norm.cdf(edges, at, 1.5)) for at in (truth.y[0], truth.x[0])]
    assert frames[0, 0] == pytest.approx(np.outer(*shares) * truth.total_adu[0], rel=1e-4, abs=0.01)


def test_without_noise_the_sum_and_the_centre_of_mass_are_the_true_ones():
    frames, truth = simulate_frames(CLEAN, 0, 2)
    for event in (0, 1):
        assert frames[event].sum() == pytest.approx(truth.peaks_of(event).total_adu.sum(), rel=1e-4)
    single = FramePlan(shape=(1, 64, 64), n_peaks=(1, 1), hit_rate=1, background_photons=0, rings=(), read_noise_adu=0,
                       photon_noise=False, margin_px=10)  # fmt: skip
    frame, true = simulate_frames(single, 0, 1)
    y, x = np.indices((64, 64))
    total = frame.sum(dtype=float)
    centre = (frame[0, 0] * y).sum() / total, (frame[0, 0] * x).sum() / total
    assert centre == pytest.approx((true.y[0], true.x[0]), abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_peaks_keep_their_distance_and_their_margin(seed):
    plan = FramePlan(seed=seed, hit_rate=1, n_peaks=(40, 40), separation_px=9, margin_px=11)
    truth = true_peaks(plan, 0, 5)
    for event in range(5):
        for panel in range(4):
            here = truth.peaks_of(event)
            at = np.column_stack([here.y, here.x])[here.panel == panel]
            apart = np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(at))
            assert not len(at) or apart.min() >= 9
            assert not len(at) or (at.min() >= 11 and at.max() <= 127 - 11)


def test_hits_have_as_many_peaks_as_the_plan_says_and_misses_none():
    plan = FramePlan(hit_rate=0.3, n_peaks=(4, 7))
    truth = true_peaks(plan, 0, 400)
    counts = np.bincount(truth.event, minlength=400)
    assert set(counts[truth.hit]) == {4, 5, 6, 7}
    assert not counts[~truth.hit].any()
    # 400 draws at 0.3: within five standard deviations, and always the same ones.
    assert abs(truth.hit.sum() - 120) < 5 * np.sqrt(400 * 0.3 * 0.7)


def test_peaks_are_sorted_by_event_panel_and_row():
    truth = true_peaks(FramePlan(hit_rate=1), 0, 6)
    keys = list(zip(truth.event, truth.panel, truth.y, strict=True))
    assert keys == sorted(keys)


def test_totals_are_uniform_in_the_logarithm():
    truth = true_peaks(FramePlan(hit_rate=1, n_peaks=(30, 30), total_adu=(100, 10_000)), 0, 100)
    assert truth.total_adu.min() >= 100
    assert truth.total_adu.max() <= 10_000
    assert np.median(truth.total_adu) == pytest.approx(1000, rel=0.15)


def test_noise_has_the_mean_and_the_variance_of_its_physics():
    plan = FramePlan(
        shape=(1, 512, 512), hit_rate=0, background_photons=2, rings=(), adu_per_photon=3, read_noise_adu=1.5
    )
    frames, _ = simulate_frames(plan, 0, 1)
    # Poisson of mean 2, times 3, and a Gaussian: mean 6, variance 9 * 2 + 1.5**2; 2**18 pixels.
    assert frames.mean(dtype=float) == pytest.approx(6.0, abs=5 * 4.5 / 512)
    assert frames.var(dtype=float) == pytest.approx(20.25, rel=0.02)


def test_a_ring_is_brightest_at_its_radius():
    plan = FramePlan(shape=(1, 401, 401), rings=(Ring(0.5, 0.05, 3.0),), background_photons=1.0)
    radius = stacked_radii(plan.shape)
    photons = expected_background(plan, radius)
    at = np.unravel_index(photons.argmax(), photons.shape)
    assert photons.max() == pytest.approx(4.0, rel=1e-3)
    assert radius[at] / radius.max() == pytest.approx(0.5, abs=0.005)
    assert photons[0, 200, 200] == pytest.approx(1.0)


def test_the_beam_is_amid_four_panels():
    radius = stacked_radii((4, 10, 20))
    # The inner corners: half a pixel from the middle, on both axes.
    assert [radius[0, -1, -1], radius[1, -1, 0], radius[2, 0, -1], radius[3, 0, 0]] == pytest.approx(
        [np.hypot(0.5, 0.5)] * 4
    )


def test_time_stamps_are_seconds_and_nanoseconds():
    assert lcls_time(np.array([1_500_000_001_250_000_000])).tolist() == [(1_500_000_001 << 32) | 250_000_000]
    truth = true_peaks(FramePlan(rate_hz=4, start_s=100), 0, 6)
    assert truth.timestamps.tolist() == [(100 << 32) + k * 250_000_000 for k in range(4)] + [
        101 << 32,
        (101 << 32) + 250_000_000,
    ]
    assert truth.timestamps.dtype == np.uint64


def test_energies_and_camera_lengths_are_one_for_each_event():
    truth = true_peaks(FramePlan(photon_energy_ev=8000, photon_energy_spread=0.001, clen_mm=99.5), 0, 200)
    assert truth.photon_energy_ev.mean() == pytest.approx(8000, abs=5 * 8 / np.sqrt(200))
    assert np.all(truth.clen_mm == 99.5)


def test_a_peak_at_the_edge_is_cut():
    plan = FramePlan(
        shape=(1, 3, 3), n_peaks=(1, 1), hit_rate=1, margin_px=0, background_photons=0, rings=(), read_noise_adu=0,
        photon_noise=False,
    )  # fmt: skip
    frames, truth = simulate_frames(plan, 0, 8)
    assert np.all(frames.sum((1, 2, 3)) < truth.total_adu)
    assert np.all(frames.sum((1, 2, 3)) > 0.1 * truth.total_adu)


def test_a_given_background_is_used():
    plan = FramePlan(shape=(1, 4, 4), hit_rate=0, read_noise_adu=0, photon_noise=False, adu_per_photon=2)
    photons = np.arange(16.0).reshape(1, 4, 4)
    frames, _ = simulate_frames(plan, 0, 1, background=photons)
    assert np.array_equal(frames[0], 2 * photons)
    with pytest.raises(InputError, match=r"background is \(4, 4\)"):
        simulate_frames(plan, 0, 1, background=photons[0])


def test_a_source_of_simulated_frames_ends():
    source = SimulatedFrames(FramePlan(shape=(1, 16, 16), hit_rate=0), 5)
    assert len(source.read(3, 10).images) == 2
    assert source.read(3, 10).first_event == 3
    assert len(source.read(9, 10).images) == 0
    assert source.shape == (1, 16, 16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (0, 4, 4)},
        {"shape": (1 << 20, 1 << 10, 1 << 10)},
        {"hit_rate": 1.5},
        {"n_peaks": (5, 4)},
        {"total_adu": (0.0, 1.0)},
        {"spot_sigma_px": 0.0},
        {"seed": -1},
        {"read_noise_adu": float("nan")},
        {"n_peaks": (5000, 5000)},
        {"shape": (1, 8, 8), "margin_px": 6.0},
    ],
    ids=str,
)
def test_a_plan_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError):
        FramePlan(**wrong)


def test_a_range_that_is_none_is_refused():
    with pytest.raises(InputError, match="from number -1"):
        true_peaks(FramePlan(), -1, 2)


# -- slabs --------------------------------------------------------------------------------------------------------


def test_tiles_are_numbered_column_by_column():
    # The LCLS rule for CSPAD: row = 185 * (seg mod 8), col = 388 * (seg div 8).
    origins = tile_slab((1480, 1552), (185, 388))
    assert origins.tolist() == [[185 * (seg % 8), 388 * (seg // 8)] for seg in range(32)]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_cutting_undoes_laying_out(down, across, height, width, n):
    panels = np.arange(n * down * across * height * width).reshape(n, down * across, height, width)
    origins = tile_slab((down * height, across * width), (height, width))
    slab = np.empty((n, down * height, across * width), panels.dtype)
    for panel, (y, x) in enumerate(origins):
        slab[:, y : y + height, x : x + width] = panels[:, panel]
    assert np.array_equal(cut_slab(slab, origins, (height, width)), panels)


def test_panels_one_below_the_other_are_no_copy():
    slab = np.zeros((2, 12, 5))
    assert np.shares_memory(cut_slab(slab, tile_slab((12, 5), (4, 5)), (4, 5)), slab)


def test_what_does_not_fit_is_said():
    with pytest.raises(InputError, match="10 x 10 px cannot be cut into panels of 3 x 5"):
        tile_slab((10, 10), (3, 5))
    with pytest.raises(InputError, match=r"panel 1 of 4 x 4 px at \(7, 0\) reaches out"):
        cut_slab(np.zeros((1, 10, 10)), np.array([[0, 0], [7, 0]]), (4, 4))
    with pytest.raises(InputError, match="origins"):
        cut_slab(np.zeros((1, 10, 10)), np.empty((0, 2), int), (4, 4))


def test_distances_from_the_beam_are_cut_like_the_slab_and_gaps_have_none():
    slab = np.array([[1.0, 2.0], [np.nan, 4.0]])
    assert panel_radii(slab, np.array([[1, 0], [0, 0]]), (1, 2)).tolist() == [[[0.0, 4.0]], [[1.0, 2.0]]]
