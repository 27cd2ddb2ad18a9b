"""Laws that hold all over the sky."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightbeam.sky import (
    BEAM_MODELS,
    OVRO_DSA110,
    BeamModel,
    apparent_hadec,
    beam_attenuation,
    beam_first_null_rad,
    meridian_icrs,
    offset_position,
    separation,
    uvw_basis,
)

ras = st.floats(0.0, 360.0, exclude_max=True)
decs = st.floats(-90.0, 90.0)
models = st.sampled_from(BEAM_MODELS)
freqs = st.floats(1.3e9, 1.5e9)


@given(ras, decs, ras, decs)
def test_separation_is_symmetric_bounded_and_blind_to_whole_turns(ra1: float, dec1: float, ra2: float, dec2: float):
    there, back = separation(ra1, dec1, ra2, dec2), separation(ra2, dec2, ra1, dec1)
    assert there == pytest.approx(back, abs=1e-9)
    assert 0.0 <= there <= 180.0 + 1e-9
    assert separation(ra1 + 360.0, dec1, ra2, dec2) == pytest.approx(there, abs=1e-9)


@given(ras, st.floats(-89.0, 89.0), st.floats(0.0, 179.0), st.floats(0.0, 360.0))
def test_an_offset_lies_at_its_distance(ra: float, dec: float, distance: float, bearing: float):
    there = offset_position(ra, dec, distance, bearing)
    assert separation(ra, dec, *there) == pytest.approx(distance, abs=1e-7)


@given(models, freqs, st.floats(3.0, 30.0))
def test_a_beam_is_one_at_its_centre_and_falls_to_its_first_null(model: BeamModel, freq: float, diameter: float):
    edge = min(beam_first_null_rad(freq, model=model, diameter_m=diameter), 0.3)
    values = beam_attenuation(np.linspace(0.0, edge, 200), freq, model=model, diameter_m=diameter)
    assert values[0] == 1.0
    assert np.all(np.diff(values) <= 1e-12)


@given(models, freqs, st.floats(0.0, np.pi))
def test_a_beam_never_amplifies(model: BeamModel, freq: float, theta: float):
    assert 0.0 <= beam_attenuation(theta, freq, model=model, diameter_m=4.65) <= 1.0


@given(st.floats(-np.pi, np.pi), st.floats(-np.pi / 2, np.pi / 2), st.floats(-180.0, 180.0))
def test_uvw_axes_turn_lengths_into_themselves(ha: float, dec: float, longitude: float):
    basis = uvw_basis(ha, dec, longitude)
    assert basis @ basis.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(basis) == pytest.approx(1.0)


@settings(max_examples=30, deadline=None)
@given(st.floats(2458000.0, 2461500.0), st.floats(-50.0, 89.0))
def test_a_point_of_the_meridian_comes_back(jd: float, dec_deg: float):
    ra, dec = meridian_icrs(jd, np.radians(dec_deg), OVRO_DSA110)
    ha, app = apparent_hadec(jd, ra, dec, OVRO_DSA110)
    assert ha * np.cos(app) == pytest.approx(0.0, abs=1e-10)
    assert app == pytest.approx(np.radians(dec_deg), abs=1e-10)
