"""The band, the array, clocks, noise and visibilities, against the telescope's own numbers."""

from __future__ import annotations

import csv
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from nightbeam.core.errors import UsageError
from nightbeam.core.keys import SubbandName
from nightbeam.simulate import SkySource, read_stations
from nightbeam.simulate.compute import (
    CADENCE_S,
    add_noise,
    band_edges,
    baseline_pairs,
    channel_freqs,
    channel_width,
    choose_stations,
    clock_offsets,
    correlator_order,
    draw_receptors,
    draw_sources,
    radiometer_noise,
    source_terms,
    transit_after,
    true_visibilities,
)
from nightbeam.sky import OVRO_DSA110, SPEED_OF_LIGHT_M_S, apparent_hadec, meridian_icrs, separation


def test_the_first_and_last_channels_are_those_of_a_real_header():
    assert channel_freqs(0)[[0, -1]] == pytest.approx([1498643188.4765625, 1487168579.1015625], abs=1e-6)
    assert channel_freqs(15)[[0, -1]] == pytest.approx([1322861938.4765625, 1311387329.1015625], abs=1e-6)
    assert channel_width() == 244140.625


def test_every_subband_is_that_of_the_band_plan(shared_data: Path):
    with (shared_data / "dsa110" / "subbands.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 16
    for row in rows:
        freqs = channel_freqs(int(row["sb"][2:]))
        assert freqs[0] == pytest.approx(float(row["first_chan_hz"]), abs=1e-5)
        assert freqs[-1] == pytest.approx(float(row["last_chan_hz"]), abs=1e-5)


@pytest.mark.parametrize("channels", [1, 4, 8, 48])
def test_fewer_channels_fill_the_same_band_without_a_hole(channels: int):
    freqs = np.concatenate([channel_freqs(sb, channels) for sb in range(16)])
    width = channel_width(channels)
    assert np.diff(freqs) == pytest.approx(-width)
    assert (freqs[-1] - width / 2, freqs[0] + width / 2) == pytest.approx(band_edges(), abs=1e-5)
    assert width * channels == 11718750.0


def test_the_stations_are_where_they_were_surveyed():
    table = read_stations()
    active = table.positions_m[table.active]
    first, second = baseline_pairs(len(active))
    lengths = np.linalg.norm(active[second] - active[first], axis=1)
    cross = lengths[first != second]
    assert (len(table.number), len(active), len(lengths), len(cross)) == (117, 96, 4656, 4560)
    assert cross.min() == pytest.approx(5.751, abs=0.001)
    assert np.median(cross) == pytest.approx(308.37, abs=0.01)
    assert cross.max() == pytest.approx(2601.63, abs=0.01)


@pytest.mark.parametrize("antennas", [2, 4, 8, 20, 40, 96])
def test_a_choice_of_stations_keeps_the_shape_of_the_array(antennas: int):
    table = read_stations()
    chosen = choose_stations(table, antennas)
    assert len(set(chosen)) == antennas
    assert set(chosen) <= set(table.number[table.active].tolist())
    if antennas >= 8:
        arms = Counter(table.arm[n - 1] for n in chosen)
        assert arms["outrigger"] == pytest.approx(antennas * 14 / 96, abs=1)
        assert min(arms["E-W"], arms["N-S"]) >= antennas // 3
        assert 103 in chosen


@pytest.mark.parametrize("antennas", [1, 97])
def test_a_choice_of_too_few_or_too_many_stations_is_refused(antennas: int):
    with pytest.raises(UsageError, match="cannot be simulated"):
        choose_stations(read_stations(), antennas)


def test_baselines_come_in_the_order_of_the_correlator():
    first, second = baseline_pairs(3)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)]


def test_the_correlator_does_not_sort_its_stations():
    order = correlator_order(choose_stations(read_stations(), 20))
    assert sorted(order) != list(order)
    assert sorted(order) == sorted(choose_stations(read_stations(), 20))


def test_clocks_differ_as_they_do_at_the_telescope():
    rng = np.random.default_rng(1)
    spreads = np.array([clock_offsets(rng, 16).max() for _ in range(6000)])
    edges = [(0, 0, 31), (1, 1, 1867), (2, 12, 112), (13, 22, 186), (59, 82, 12)]
    for low, high, of_2208 in edges:
        seen = ((spreads >= low) & (spreads <= high)).mean()
        assert seen == pytest.approx(of_2208 / 2208, abs=4 * np.sqrt(of_2208) / 2208 + 0.002)
    assert spreads.max() <= 82


@pytest.mark.parametrize("subbands", [1, 2, 5, 16])
def test_no_hole_in_the_names_of_an_observation_is_longer_than_20_s(subbands: int):
    rng = np.random.default_rng(2)
    for _ in range(300):
        offsets = clock_offsets(rng, subbands)
        assert len(offsets) == subbands
        assert offsets.min() == 0
        assert np.diff(np.sort(offsets)).max(initial=0) <= 20


def test_the_spreads_we_draw_are_those_of_the_real_inventory(shared_data: Path):
    with (shared_data / "dsa110" / "subband_name_inventory_2026.csv").open() as table:
        rows = [r for r in csv.DictReader(table) if r["source"] == "fs"]
    stamps = sorted((datetime.fromisoformat(r["name_timestamp"]), int(r["n_files"])) for r in rows)
    groups: list[list[tuple[datetime, int]]] = []
    for stamp, files in stamps:
        if groups and (stamp - groups[-1][-1][0]).total_seconds() <= 90:
            groups[-1].append((stamp, files))
        else:
            groups.append([(stamp, files)])
    spreads = [(g[-1][0] - g[0][0]).total_seconds() for g in groups if sum(n for _, n in g) == 16]
    ranges = [(0, 0), (1, 1), (2, 12), (13, 22), (59, 82)]
    assert [sum(low <= s <= high for s in spreads) for low, high in ranges] == [31, 1867, 112, 186, 12]


def test_noise_is_that_of_the_radiometer_equation():
    # 6500 Jy / sqrt(2 * 244140.625 Hz * 12.884901888 s): 2.59 Jy in each part of one visibility.
    assert radiometer_noise(244140.625) == pytest.approx(2.5914, abs=1e-4)


def test_noise_has_its_sigma_and_autocorrelations_hold_the_system():
    vis = np.zeros((4, 6, 500, 2), np.complex64)
    auto = np.array([True, False, True, False, False, True])
    add_noise(vis, auto, np.random.default_rng(3), sigma_jy=2.0, width_hz=244140.625)
    cross = vis[:, ~auto]
    assert cross.real.std() == pytest.approx(2.0, rel=0.03)
    assert cross.imag.std() == pytest.approx(2.0, rel=0.03)
    assert not vis[:, auto].imag.any()
    # The system of which 2 Jy is the noise: 2 * sqrt(2 * 244140.625 * 12.884901888) Jy.
    assert vis[:, auto].real.mean() == pytest.approx(2.0 * 2508.27, rel=1e-3)


def test_one_source_gives_the_visibility_worked_out_by_hand():
    # A source 0.001 rad east on a baseline of 100 wavelengths to the east: a phase of 0.1 turns.
    wave = 0.2
    uvw = np.array([[0.0, 0.0, 0.0], [100 * wave, 0.0, 0.0]])
    pairs = (np.array([0, 1, 0]), np.array([1, 0, 0]))
    freq = np.array([SPEED_OF_LIGHT_M_S / wave])
    sky = [SkySource("s", 0, 0, 2.0)]
    vis = true_visibilities(
        uvw, pairs, np.array([[0.001, 0.0, 0.0]]), np.array([0.0]), sky, freq, beam="dsacalib", diameter_m=4.65
    )
    turn = np.exp(0.2j * np.pi)
    assert vis[:, 0] == pytest.approx([2.0 * turn, 2.0 * turn.conj(), 2.0])


def test_flux_follows_its_spectral_index_and_the_beam():
    uvw, lmn, pairs = np.zeros((2, 3)), np.zeros((1, 3)), (np.array([0]), np.array([1]))
    freq = np.array([1.405e9, 2 * 1.405e9])
    steep = [SkySource("s", 0, 0, 8.0, -1.0)]
    vis = true_visibilities(uvw, pairs, lmn, np.array([0.0]), steep, freq, beam="gaussian", diameter_m=4.65)
    assert vis[0].real == pytest.approx([8.0, 4.0])
    half = 0.5 * 1.22 * SPEED_OF_LIGHT_M_S / 1.405e9 / 4.65
    vis = true_visibilities(uvw, pairs, lmn, np.array([half]), steep, freq, beam="gaussian", diameter_m=4.65)
    assert vis[0].real == pytest.approx([4.0, 4.0 / 16])


def test_sources_add_up():
    rng = np.random.default_rng(5)
    uvw, pairs = rng.normal(size=(5, 3)) * 300, baseline_pairs(5)
    lmn, theta = rng.normal(size=(7, 3)) * 0.005, rng.uniform(0, 0.01, 7)
    sky = [SkySource(f"s{k}", 0, 0, float(k + 1), -0.7) for k in range(7)]
    freq = channel_freqs(3, 4)
    together = true_visibilities(uvw, pairs, lmn, theta, sky, freq, beam="airy", diameter_m=4.65)
    one_by_one = [
        true_visibilities(uvw, pairs, lmn[[k]], theta[[k]], [s], freq, beam="airy", diameter_m=4.65)
        for k, s in enumerate(sky)
    ]
    assert together == pytest.approx(sum(one_by_one), abs=1e-4)


def test_a_source_moves_west_through_the_field_and_crosses_its_middle():
    jd, dec = 2460951.99, np.radians(54.57)
    ra, dec_icrs = (float(x) for x in meridian_icrs(jd, dec, OVRO_DSA110))
    times = jd + np.array([-60.0, 0.0, 60.0]) / 86400
    lmn, theta = source_terms([SkySource("s", ra, dec_icrs, 1.0)], times, dec, OVRO_DSA110)
    # 15.04 arcsec per second of time, times cos(Dec); east is positive.
    step = np.radians(60 * 15.041 / 3600) * np.cos(dec)
    assert lmn[:, 0, 0] == pytest.approx([step, 0.0, -step], rel=1e-3, abs=1e-10)
    assert theta[1, 0] == pytest.approx(0.0, abs=1e-10)
    assert lmn[1, 0] == pytest.approx([0, 0, 0], abs=1e-10)


def test_a_source_north_of_the_centre_has_positive_m():
    jd, dec = 2460951.99, np.radians(16.1)
    ra, dec_icrs = (float(x) for x in meridian_icrs(jd, dec + 0.01, OVRO_DSA110))
    lmn, theta = source_terms([SkySource("s", ra, dec_icrs, 1.0)], np.array([jd]), dec, OVRO_DSA110)
    assert lmn[0, 0] == pytest.approx([0.0, np.sin(0.01), np.cos(0.01) - 1.0], abs=1e-9)
    assert theta[0, 0] == pytest.approx(0.01, abs=1e-9)


def test_a_transit_is_when_the_hour_angle_is_zero_and_within_a_day():
    when, dec = transit_after(2460951.99, 24.42208096, 33.15975916, OVRO_DSA110)
    ha, _ = apparent_hadec(when, 24.42208096, 33.15975916, OVRO_DSA110)
    assert 0.0 <= when - 2460951.99 < 1.0
    assert np.degrees(ha) * 3600 == pytest.approx(0.0, abs=0.01)
    # 3C48 in 2025: 33 deg 17.5 arcmin, from J2000 by 25.8 years of precession (20.04 arcsec cos(RA) a year).
    assert np.degrees(dec) == pytest.approx(33.15975916 + 25.8 * 20.04 * np.cos(np.radians(24.4)) / 3600, abs=0.006)


def test_drawn_sources_keep_their_distance_and_stay_in_the_field():
    found = draw_sources(
        np.random.default_rng(4), 30, ra_deg=0.1, dec_deg=54.0, radius_deg=0.6, flux_jy=(0.1, 1.0), prefix="s"
    )
    assert len({s.name for s in found}) == 30
    for k, one in enumerate(found):
        assert separation(0.1, 54.0, one.ra_deg, one.dec_deg) <= 0.6 + 1e-9
        assert 0.1 <= one.flux_jy <= 1.0
        assert all(separation(one.ra_deg, one.dec_deg, o.ra_deg, o.dec_deg) >= 0.04 for o in found[:k])


def test_more_sources_than_fit_are_refused():
    with pytest.raises(UsageError, match="do not fit"):
        draw_sources(
            np.random.default_rng(4), 50, ra_deg=0.0, dec_deg=0.0, radius_deg=0.05, flux_jy=(0.1, 1.0), prefix="s"
        )


def test_a_station_has_the_same_gains_whatever_else_is_simulated_and_others_have_others():
    assert draw_receptors(7, 24, scale=0.07) == draw_receptors(7, 24, scale=0.07)
    assert draw_receptors(7, 24, scale=0.07) != draw_receptors(7, 25, scale=0.07)
    assert draw_receptors(7, 24, scale=0.07) != draw_receptors(8, 24, scale=0.07)


def test_files_follow_each_other_at_309_or_310_seconds():
    assert pytest.approx(309.2376, abs=1e-3) == CADENCE_S
    assert SubbandName(datetime(2025, 1, 1, tzinfo=UTC), 0).later(CADENCE_S).stamp.second == 9
