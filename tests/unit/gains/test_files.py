"""What calibration reads from and writes to a Measurement Set."""

from dataclasses import replace

import numpy as np
import pytest

from nightbeam.casa.tables import array_column, create_table, open_table, scalar_column
from nightbeam.core.errors import InputError, MissingError
from nightbeam.gains import ModelSource, SolveOptions, flag_bad_data, read_caltable, write_model
from nightbeam.gains.files import (
    KEPT_FLAGS,
    _PriorGains,
    average_for_solving,
    fill_model,
    read_layout,
    read_sample,
    read_times,
    restore_flags,
)
from nightbeam.gains.model import CalSolutions


def edit(ms, column, change, rows=slice(None)):
    with open_table(ms, write=True) as table:
        values = table.getcol(column)
        values[rows] = change(values[rows])
        table.putcol(column, values)


def test_the_layout_is_read(made):
    layout = read_layout(made.path)
    assert layout.antenna_names == tuple(made.names)
    assert layout.telescope == "OVRO_MMA"
    assert layout.parallel == (0, 1)
    assert np.allclose(layout.channel_hz[1], made.freqs[1])
    assert np.allclose(read_times(made.path), 60000.0 + np.arange(3) * 13.0 / 86400.0)


def test_good_data_get_no_flags_and_autocorrelations_are_not_counted(made):
    report = flag_bad_data(made.path)
    assert (report.fraction, report.newly_flagged, report.dead, report.bad_weights) == (0.0, 0, (), 0.0)
    # 11 baselines x 2 windows x 3 times x 8 channels for each receptor
    assert set(np.ravel(report.receptor_samples)) == {11 * 2 * 3 * 8}
    assert set(report.unflagged_baselines.values()) == {11}


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1e33])
def test_what_cannot_be_data_is_flagged_and_counted_once(made, value):
    with open_table(made.path, write=True) as table:
        data = table.getcell("DATA", 1)  # antennas 101-102, first time, first window
        data[3, 0] = value
        table.putcell("DATA", 1, data)
    report = flag_bad_data(made.path)
    samples = 66 * 2 * 3 * 8 * 2
    assert report.newly_flagged == 1
    assert report.fraction == pytest.approx(1 / samples)
    assert report.by_window == {0: pytest.approx(2 / samples), 1: 0.0}
    assert report.absurd == (1 if value == 1e33 else 0)
    assert flag_bad_data(made.path).newly_flagged == 0


def test_a_dead_antenna_is_left_out_of_the_active_fraction(made):
    with open_table(made.path) as table:
        touched = (table.getcol("ANTENNA1") == 4) | (table.getcol("ANTENNA2") == 4)
    edit(made.path, "DATA", lambda d: d * 0, touched)
    report = flag_bad_data(made.path)
    assert report.dead == ("105",)
    assert report.active_fraction == 0.0
    assert report.fraction == pytest.approx(2 * 11 / (12 * 11))
    assert report.by_antenna["101"] == 0.0
    assert report.receptor_samples[4] == (0, 0)


def test_a_limit_on_the_amplitude_flags_what_is_above_it(made):
    assert flag_bad_data(made.path, clip_above=1e9).newly_flagged == 0
    assert flag_bad_data(made.path, clip_above=1e-9).active_fraction == 1.0


def test_weights_that_are_not_positive_are_reported(made):
    edit(made.path, "WEIGHT", lambda w: w * 0 - 1.2e12)
    report = flag_bad_data(made.path)
    assert report.bad_weights == 1.0
    assert report.weight_example == pytest.approx(-1.2e12, rel=1e-6)


def test_the_model_is_the_source_where_it_stands_in_every_row(made, sky):
    write_model(made.path, [ModelSource("s", *sky.offset, sky.flux)], options=SolveOptions(drift=False))
    with open_table(made.path) as table:
        model, data = table.getcol("MODEL_DATA"), table.getcol("DATA")
        i, j = table.getcol("ANTENNA1"), table.getcol("ANTENNA2")
    expected = data / (made.gains[i] * made.gains[j].conj())[:, None, :]
    # 0.0225 deg off centre, where the beam of a 4.65 m dish is 0.9996
    assert np.abs(model - expected).max() < 0.003 * sky.flux
    assert np.abs(np.angle(model / expected)).max() < 1e-3  # which is the noise


def test_rows_of_another_field_get_one_and_virtual_models_go(made):
    with open_table(made.path, write=True) as table:
        table.putkeyword("definedmodel_field_0", "x")
    edit(made.path, "FIELD_ID", lambda f: f + 1, slice(0, 3))
    fill_model(made.path, [ModelSource("s", 150.0, 33.0, 2.0)], field=0)
    with open_table(made.path) as table:
        model = table.getcol("MODEL_DATA")
        assert "definedmodel_field_0" not in table.keywordnames()
    assert np.all(model[:3] == 1.0)
    assert np.allclose(model[3:], 2.0)


def test_flags_from_before_any_calibration_come_back(made):
    edit(made.path, "FLAG", lambda f: ~f, slice(0, 2))
    restore_flags(made.path)
    edit(made.path, "FLAG", lambda f: f | True)
    restore_flags(made.path)
    with open_table(made.path) as table:
        flags = table.getcol("FLAG")
        assert KEPT_FLAGS in table.colnames()
    assert flags[:2].all()
    assert not flags[2:].any()


def test_samples_hold_cross_correlations_of_every_window(made):
    samples = read_sample(made.path, ["DATA"], rows_per_window=40, pieces=2)
    assert {s.window for s in samples} == {0, 1}
    assert all((s.antenna1 != s.antenna2).all() for s in samples)
    assert all(len(s.antenna1) == 20 for s in samples)
    with pytest.raises(InputError, match="no column CORRECTED_DATA"):
        read_sample(made.path, ["CORRECTED_DATA"])


def test_a_measurement_set_that_was_cut_short_is_an_input_error(made):
    with open_table(made.path) as table:
        number = table.getdminfo("DATA")["SEQNR"]
    victim = next(p for p in sorted(made.path.glob(f"table.f{number}*")) if p.stat().st_size > 4096)
    with victim.open("r+b") as data:
        data.truncate(victim.stat().st_size // 2)
    with pytest.raises(InputError, match=r"made\.ms"):
        flag_bad_data(made.path)


def test_a_missing_caltable_and_one_of_another_kind_are_told_apart(tmp_path, made):
    with pytest.raises(MissingError):
        read_caltable(tmp_path / "no_bpcal")
    with pytest.raises(InputError, match="no calibration table"):
        read_caltable(made.path)
    with create_table(
        tmp_path / "empty_gacal", [array_column("CPARAM", 1j, ndim=2), scalar_column("SPECTRAL_WINDOW_ID", 1)]
    ):
        pass
    with pytest.raises(InputError, match="no solutions"):
        read_caltable(tmp_path / "empty_gacal")


def test_averaged_data_over_model_are_the_gains_of_each_baseline(made, sky, tmp_path):
    write_model(made.path, [ModelSource("s", *sky.offset, sky.flux)], options=SolveOptions(drift=False))
    with open_table(made.path, write=True) as table:
        flags = table.getcol("FLAG")
        flags[1, 3], flags[1 + 78, 3] = True, True  # antennas 101-102, channel 3, the first two times
        flags[[2, 2 + 78, 2 + 2 * 78]] = True  # antennas 101-103, all times of the first window
        table.putcol("FLAG", flags)
    # three times 13 s apart: two intervals of 26 s for each of 66 baselines and 2 windows
    assert average_for_solving(made.path, tmp_path / "small.ms", field=0, interval_s=26.0) == 2 * 66 * 2
    with open_table(tmp_path / "small.ms") as table:
        cells = {c: table.getcol(c) for c in ("DATA", "MODEL_DATA", "FLAG", "WEIGHT", "WEIGHT_SPECTRUM", "TIME")}
        i, j = table.getcol("ANTENNA1"), table.getcol("ANTENNA2")
    expected = np.broadcast_to((made.gains[i] * made.gains[j].conj())[:, None, :], cells["DATA"].shape)
    good = ~cells["FLAG"]
    # the beam at the source, 0.9996, is in the model and not in these data
    assert np.abs(cells["DATA"][good] / expected[good] - 1).max() < 3e-3
    assert np.all(cells["MODEL_DATA"] == 1.0)
    assert sorted(set(np.round(cells["TIME"] - 60000.0 * 86400.0, 3))) == [6.5, 26.0]
    first = np.flatnonzero((i == 0) & (j == 1))[0]
    assert cells["FLAG"][first].sum() == 2
    assert cells["FLAG"][first, 3].all()
    assert cells["FLAG"][(i == 0) & (j == 2)].sum() == 2 * 8 * 2
    two, one = cells["WEIGHT_SPECTRUM"].max(), 25.0
    assert two == pytest.approx(2 * one, rel=2e-3)


def _turning(made, *, at_time):
    """Return phases of antennas (time, ant, pol) as a solved table, and put them into the data."""
    rng = np.random.default_rng(4)
    phases = np.exp(1j * rng.uniform(-1, 1, (len(at_time), len(made.names), 2)))
    with open_table(made.path, write=True) as table:
        i, j = table.getcol("ANTENNA1"), table.getcol("ANTENNA2")
        when = np.searchsorted(at_time, table.getcol("TIME") / 86400.0 - 1e-9)
        turned = phases[when, i] * phases[when, j].conj()
        table.putcol("DATA", table.getcol("DATA") * turned[:, None, :])
    cells = [(t, a, w) for t in range(len(at_time)) for a in range(len(made.names)) for w in range(2)]
    time, ant, window = (np.array(c) for c in zip(*cells, strict=True))
    shape = (len(cells), 1, 2)
    return CalSolutions(
        path=made.path, kind_name="G Jones", antennas=tuple(made.names), antenna=ant, spw=window,
        field_id=np.zeros(len(cells), int), refant=np.full(len(cells), 2), time_mjd=at_time[time],
        values=phases[time, ant][:, None, :], flags=np.zeros(shape, bool), snr=np.full(shape, 50.0),
        freqs_hz=tuple(f[:1] for f in made.freqs),
    )  # fmt: skip


def test_phases_that_are_known_are_divided_out_before_times_are_averaged(made, sky, tmp_path):
    write_model(made.path, [ModelSource("s", *sky.offset, sky.flux)], options=SolveOptions(drift=False))
    phases = _turning(made, at_time=read_times(made.path))
    phases.flags[(phases.antenna == 5) & (phases.time_mjd > 60000.0), 0, 1] = True  # but for the first time
    average_for_solving(made.path, tmp_path / "still.ms", field=0, interval_s=np.inf, gains=[phases])
    with open_table(tmp_path / "still.ms") as table:
        data, flags, weight = (table.getcol(c) for c in ("DATA", "FLAG", "WEIGHT_SPECTRUM"))
        i, j = table.getcol("ANTENNA1"), table.getcol("ANTENNA2")
    assert len(data) == 66 * 2
    assert not flags.any()
    expected = np.broadcast_to((made.gains[i] * made.gains[j].conj())[:, None, :], data.shape)
    assert np.abs(data / expected - 1).max() < 3e-3
    touched = (i == 5) | (j == 5)
    assert weight[touched][..., 1].mean() == pytest.approx(weight[~touched].mean() / 3, rel=1e-2)
    assert weight[touched][..., 0].mean() == pytest.approx(weight[~touched].mean(), rel=1e-2)


def test_gains_are_those_of_the_window_that_a_description_names_and_leave_cross_hands_alone(made, sky, tmp_path):
    write_model(made.path, [ModelSource("s", *sky.offset, sky.flux)], options=SolveOptions(drift=False))
    with open_table(made.path / "DATA_DESCRIPTION", write=True) as table:
        table.putcol("SPECTRAL_WINDOW_ID", np.array([1, 0], np.int32))
    average_for_solving(made.path, tmp_path / "before.ms", field=0, interval_s=np.inf)
    with open_table(made.path) as table:
        raw, of_first = table.getcol("DATA"), table.getcol("DATA_DESC_ID") == 1
    phases = _turning(made, at_time=read_times(made.path))
    phases.values[phases.spw == 1] = 1.0
    edit(made.path, "DATA", lambda turned: np.where(of_first[:, None, None], turned, raw))
    average_for_solving(made.path, tmp_path / "after.ms", field=0, interval_s=np.inf, gains=[phases])
    with open_table(tmp_path / "before.ms") as one, open_table(tmp_path / "after.ms") as two:
        assert np.allclose(one.getcol("DATA"), two.getcol("DATA"), rtol=1e-4)

    layout = replace(read_layout(made.path), corr_types=(9, 10, 11, 12))
    pair = np.array([0]), np.array([1]), read_times(made.path)[:1] * 86400.0
    model, good = _PriorGains([phases], layout, 0, *pair).onto(np.ones((1, 8, 4), complex), np.ones((1, 8, 4), bool))
    assert good.all()
    assert np.all(model[..., 1:3] == 1.0)
    assert np.abs(model[0, 0, [0, 3]] - 1.0).min() > 1e-3


def test_averaged_twice_is_averaged_once(made, sky, tmp_path):
    write_model(made.path, [ModelSource("s", *sky.offset, sky.flux)], options=SolveOptions(drift=False))
    _turning(made, at_time=read_times(made.path))
    with open_table(made.path, write=True) as table:
        flags = table.getcol("FLAG")
        flags[1, 3] = flags[1 + 78, 5:] = True  # antennas 101-102: a channel of the first time, three of the second
        table.putcol("FLAG", flags)
    average_for_solving(made.path, tmp_path / "once.ms", field=0, interval_s=np.inf)
    average_for_solving(made.path, tmp_path / "part.ms", field=0, interval_s=26.0)
    average_for_solving(tmp_path / "part.ms", tmp_path / "twice.ms", field=0, interval_s=np.inf, weighted=True)
    with open_table(tmp_path / "once.ms") as one, open_table(tmp_path / "twice.ms") as two:
        for column in ("DATA", "WEIGHT_SPECTRUM", "WEIGHT", "FLAG", "ANTENNA1", "ANTENNA2"):
            assert np.allclose(one.getcol(column), two.getcol(column), rtol=1e-5), column


def test_a_copy_of_the_flags_that_a_kill_cut_short_is_not_believed(made, monkeypatch):
    from nightbeam.gains import files

    with open_table(made.path, write=True) as table:
        flags = table.getcol("FLAG")
        flags[::3] = True
        table.putcol("FLAG", flags)
    monkeypatch.setattr(files, "_blocks", lambda _: iter(()))  # the column is there, and nothing in it
    monkeypatch.setattr(files, "_ALL_KEPT", "NEVER SAID")
    restore_flags(made.path)
    monkeypatch.undo()
    restore_flags(made.path)
    restore_flags(made.path)
    with open_table(made.path) as table:
        assert np.array_equal(table.getcol("FLAG"), flags)
        assert np.array_equal(table.getcol(KEPT_FLAGS), flags)
