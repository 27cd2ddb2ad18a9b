"""Black bodies, airmass, and air in layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.atmosphere import (
    BACKGROUND_K,
    ClosedFormAtmosphere,
    LayeredAtmosphere,
    Layers,
    Weather,
    airmass_of,
    planck_j,
    transmission,
)
from nightbeam.core.errors import InputError

FREQ = np.linspace(805.0, 813.0, 41)


@pytest.mark.parametrize(
    ("freq_ghz", "temperature_k", "j_k"),
    [
        (230.538, 2.725, 0.1942),
        (230.538, 78.0, 72.5987),
        (230.538, 293.0, 287.5028),
        (460.5, 78.0, 67.4709),
        (460.5, 293.0, 282.0886),
        (809.3, 78.0, 60.1850),
        (809.3, 293.0, 274.0088),
        (1900.5369, 293.0, 249.7567),
    ],
)
def test_a_black_body_has_the_published_rayleigh_jeans_brightness(freq_ghz, temperature_k, j_k):
    assert planck_j(freq_ghz, temperature_k) == pytest.approx(j_k, abs=5e-5)


@given(st.floats(1.0, 2000.0), st.floats(2.0, 400.0))
def test_a_black_body_is_a_little_colder_than_itself_by_half_a_quantum_at_most(freq_ghz, temperature_k):
    quantum = 0.04799243073366221 * freq_ghz
    assert temperature_k - quantum / 2 - 1e-9 <= planck_j(freq_ghz, temperature_k) < temperature_k


def test_in_the_far_wien_tail_there_is_nothing_and_no_warning():
    assert planck_j(1e6, 2.725) == 0.0


def test_airmass_is_one_over_the_sine_and_not_asked_for_at_the_horizon():
    assert airmass_of([90.0, 30.0]).tolist() == pytest.approx([1.0, 2.0])
    assert airmass_of(48.0) == pytest.approx(1.34563, abs=1e-5)
    for elevation in (4.99, -30.0, 90.1, np.nan):
        with pytest.raises(InputError, match="elevation"):
            airmass_of([45.0, elevation])


def layered(model: ClosedFormAtmosphere, parts: list[float]) -> LayeredAtmosphere:
    """The closed form's layer cut into parts of its opacity."""
    share = np.array(parts)[:, None] / sum(parts)
    dry, both = model.opacity(FREQ, 0.0), model.opacity(FREQ, 1.0)
    temperatures = np.full(len(parts), model.temperature_k)
    return LayeredAtmosphere(Layers(FREQ, temperatures, share * dry, share * (both - dry)))


@pytest.mark.slow
@given(
    st.lists(st.floats(0.1, 5.0), min_size=1, max_size=6),
    st.floats(0.01, 10.0),
    st.floats(1.0, 11.0),
)
def test_a_layer_cut_into_pieces_is_the_same_layer(parts, pwv_mm, airmass):
    model = ClosedFormAtmosphere()
    pieces = layered(model, parts)
    assert pieces.opacity(FREQ, pwv_mm) == pytest.approx(model.opacity(FREQ, pwv_mm), rel=1e-9)
    assert pieces.sky(FREQ, pwv_mm, airmass) == pytest.approx(model.sky(FREQ, pwv_mm, airmass), rel=1e-9)


def test_without_air_there_is_the_background_and_behind_a_wall_there_is_the_wall():
    nothing = LayeredAtmosphere(Layers(FREQ, np.array([260.0]), np.zeros((1, 41)), np.zeros((1, 41))))
    assert nothing.sky(FREQ, 1.0, 1.0) == pytest.approx(planck_j(FREQ, BACKGROUND_K))
    assert transmission(nothing.opacity(FREQ, 1.0), 1.0) == pytest.approx(1.0)
    wall = LayeredAtmosphere(Layers(FREQ, np.array([260.0, 200.0]), np.full((2, 41), 50.0), np.zeros((2, 41))))
    assert wall.sky(FREQ, 0.1, 1.0) == pytest.approx(planck_j(FREQ, 260.0))


def test_the_nearer_layer_hides_the_farther_one():
    # Worked by hand: J_1 (1 - e^-1) + J_2 (1 - e^-2) e^-1 + J_bg e^-3.
    two = LayeredAtmosphere(
        Layers(FREQ, np.array([280.0, 220.0]), np.array([[1.0] * 41, [2.0] * 41]), np.zeros((2, 41)))
    )
    near, far, behind = (planck_j(FREQ, one) for one in (280.0, 220.0, BACKGROUND_K))
    expected = near * (1 - np.exp(-1)) + far * (1 - np.exp(-2)) * np.exp(-1) + behind * np.exp(-3)
    assert two.sky(FREQ, 0.5, 1.0) == pytest.approx(expected)


def test_many_amounts_of_water_and_airmasses_are_answered_at_once():
    air = layered(ClosedFormAtmosphere(), [1.0, 2.0])
    water, path = np.array([[0.2], [0.5], [1.0]]), np.array([[1.0], [1.2], [2.0]])
    found = air.sky(FREQ, water, path)
    assert found.shape == (3, 41)
    for n in range(3):
        assert found[n] == pytest.approx(air.sky(FREQ, water[n, 0], path[n, 0]))


def test_between_the_frequencies_of_the_layers_opacity_and_brightness_are_smooth():
    model = ClosedFormAtmosphere()
    air, between = layered(model, [1.0]), np.linspace(805.05, 812.95, 173)
    assert air.opacity(between, 0.6) == pytest.approx(model.opacity(between, 0.6), rel=1e-6)
    assert air.sky(between, 0.6, 1.3) == pytest.approx(model.sky(between, 0.6, 1.3), abs=1e-4)


def test_beyond_the_frequencies_of_the_layers_nothing_is_made_up():
    air = layered(ClosedFormAtmosphere(), [1.0])
    for bad in (804.9, 813.1, np.nan):
        with pytest.raises(InputError, match=r"the layers reach from 805\.000 to 813\.000"):
            air.opacity([806.0, bad], 0.5)
        with pytest.raises(InputError, match="frequencies from"):
            air.sky([806.0, bad], 0.5, 1.0)


@pytest.mark.parametrize("shape", [(2, 40), (3, 41)])
def test_layers_that_do_not_fit_their_axes_are_refused(shape):
    with pytest.raises(InputError, match="2 layers and 41 frequencies"):
        Layers(FREQ, np.array([280.0, 220.0]), np.zeros((2, 41)), np.zeros(shape))


def test_layers_in_disorder_or_of_three_frequencies_are_refused():
    with pytest.raises(InputError, match="do not ascend"):
        Layers(FREQ[::-1], np.array([280.0]), np.zeros((1, 41)), np.zeros((1, 41)))
    few = Layers(FREQ[:3], np.array([280.0]), np.zeros((1, 3)), np.zeros((1, 3)))
    with pytest.raises(InputError, match="at least 4"):
        LayeredAtmosphere(few)


@given(st.floats(0.02, 8.0), st.floats(1.0, 3.0), st.floats(200.0, 950.0))
def test_more_water_is_brighter_and_darker_behind(pwv_mm, airmass, freq_ghz):
    model = ClosedFormAtmosphere()
    less, more = (model.sky(freq_ghz, amount, airmass) for amount in (pwv_mm, 1.1 * pwv_mm))
    assert planck_j(freq_ghz, BACKGROUND_K) <= less <= more <= planck_j(freq_ghz, model.temperature_k)
    assert model.opacity(freq_ghz, 1.1 * pwv_mm) > model.opacity(freq_ghz, pwv_mm)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pressure_hpa", float("nan")),  # on which Pardo's model hangs for ever
        ("pressure_hpa", -5.0),
        ("pressure_hpa", 52_000.0),  # in Pa
        ("temperature_k", 0.0),
        ("temperature_k", -8.0),  # in degrees Celsius
        ("altitude_m", 60_000.0),
        ("humidity_pct", 101.0),
        ("humidity_pct", float("inf")),
    ],
)
def test_weather_that_cannot_be_is_refused_by_name(name, value):
    good = {"altitude_m": 5612.0, "pressure_hpa": 520.0, "temperature_k": 265.0, "humidity_pct": 20.0}
    with pytest.raises(InputError, match=f"{name} is "):
        Weather(**(good | {name: value}))
    assert Weather(**good).humidity_pct == 20.0
