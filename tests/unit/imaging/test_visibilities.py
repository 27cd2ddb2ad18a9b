import shutil

import numpy as np
import pytest

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError, MissingError
from nightbeam.imaging import ImageOptions
from nightbeam.imaging.visibilities import drift_pointings, fingerprint, read_visibilities
from nightbeam.sky import separation


@pytest.fixture
def ms(tiny_ms, tmp_path):
    return shutil.copytree(tiny_ms, tmp_path / "own.ms")


def change(ms, column, function, rows=slice(None)):
    with open_table(ms, write=True) as table:
        values = table.getcol(column)
        values[rows] = function(values[rows])
        table.putcol(column, values)


def add_corrected(ms, factor):
    with open_table(ms, write=True) as table:
        column = table.getcoldesc("DATA")
        table.addcols({"CORRECTED_DATA": column})
        if factor is not None:
            table.putcol("CORRECTED_DATA", factor * table.getcol("DATA"))


@pytest.mark.slow
def test_what_there_is_to_image(tiny_ms):
    vis = read_visibilities(tiny_ms, ImageOptions())
    with open_table(tiny_ms) as table:
        uvw = table.getcol("UVW")
    assert vis.uv_max_m == pytest.approx(np.hypot(uvw[:, 0], uvw[:, 1]).max())
    assert (vis.datacolumn, vis.flagged_fraction, len(vis.times_mjd)) == ("data", 0.0, 2)
    assert vis.freq_hz == pytest.approx(1.405015e9, abs=1e4)
    assert (vis.bandwidth_hz, vis.channel_width_hz, vis.diameter_m) == pytest.approx((187.5e6, 187.5e6 / 4, 4.65))
    assert vis.site.longitude_deg == pytest.approx(-118.283, abs=0.05)


def test_v_counts_as_much_as_u(ms):
    change(ms, "UVW", lambda uvw: np.where([True, False, True], 0.0, 1e4), slice(0, 1))
    assert read_visibilities(ms, ImageOptions()).uv_max_m == pytest.approx(1e4)


def test_flagged_rows_count_neither_as_baselines_nor_as_data(ms):
    change(ms, "UVW", lambda uvw: uvw * 100, slice(0, 1))
    change(ms, "FLAG", lambda flag: flag | True, slice(0, 1))
    vis = read_visibilities(ms, ImageOptions())
    assert vis.uv_max_m < 1200
    assert vis.flagged_fraction == pytest.approx(1 / 20)


def test_corrected_data_are_preferred(ms):
    add_corrected(ms, 2.0)
    assert read_visibilities(ms, ImageOptions()).datacolumn == "corrected"
    assert read_visibilities(ms, ImageOptions(datacolumn="data")).datacolumn == "data"


@pytest.mark.parametrize("factor", [0.0, np.nan, None])
def test_a_corrected_column_that_says_nothing_is_not_imaged(ms, factor):
    add_corrected(ms, factor)
    assert read_visibilities(ms, ImageOptions()).datacolumn == "data"
    with pytest.raises(InputError, match="CORRECTED_DATA"):
        read_visibilities(ms, ImageOptions(datacolumn="corrected"))


def test_a_corrected_column_is_believed_though_its_first_rows_are_flagged(ms):
    add_corrected(ms, 1.0)
    change(ms, "CORRECTED_DATA", lambda data: 0 * data, slice(0, 15))
    change(ms, "FLAG", lambda flag: flag | True, slice(0, 15))
    assert read_visibilities(ms, ImageOptions()).datacolumn == "corrected"


def test_a_column_that_is_not_there_cannot_be_asked_for(tiny_ms):
    with pytest.raises(InputError, match="is not there"):
        read_visibilities(tiny_ms, ImageOptions(datacolumn="corrected"))


def test_nothing_to_image_is_one_clear_error(ms):
    change(ms, "DATA", lambda data: 0 * data)
    with pytest.raises(InputError, match="that is not zero"):
        read_visibilities(ms, ImageOptions())
    change(ms, "FLAG", lambda flag: flag | True)
    with pytest.raises(InputError, match=r"all 160 selected cross-correlations are flagged"):
        read_visibilities(ms, ImageOptions())


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"field": "3C48"}, MissingError, "no field '3C48'"),
        ({"field": "7"}, MissingError, "no field"),
        ({"spw": "3"}, MissingError, "no spectral window"),
    ],
)
def test_a_selection_of_nothing_is_named(tiny_ms, options, error, word):
    with pytest.raises(error, match=word):
        read_visibilities(tiny_ms, ImageOptions(**options))


@pytest.mark.parametrize("options", [{"field": "0"}, {"field": "tile"}, {"spw": "0:1~2"}, {"spw": "*"}])
def test_casas_selections_are_understood(tiny_ms, options):
    assert read_visibilities(tiny_ms, ImageOptions(**options)).field.name == "tile"


def test_no_measurement_set_is_one_clear_error(tmp_path):
    with pytest.raises(MissingError, match=r"none\.ms"):
        read_visibilities(tmp_path / "none.ms", ImageOptions())


def test_the_dishes_drift_by_fifteen_arcsec_a_second(tiny_ms):
    points = drift_pointings(read_visibilities(tiny_ms, ImageOptions()))
    moved = float(separation(*points[0], *points[1])) * 3600
    assert moved == pytest.approx(15.041 * 12.884901888 * np.cos(np.radians(54.57)), rel=2e-3)


def test_looking_at_data_does_not_change_their_fingerprint_and_writing_does(ms):
    before = fingerprint(ms)
    read_visibilities(ms, ImageOptions())
    assert fingerprint(ms) == before
    change(ms, "DATA", lambda data: 2 * data)
    assert fingerprint(ms) != before
