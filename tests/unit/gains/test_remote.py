"""Solving and applying with CASA on a Measurement Set made by hand, and every way in which it must fail."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError, MissingError, RejectedError, UsageError
from nightbeam.gains import CalibratorMatch, SolveOptions, TableKind, apply_gains, read_caltable, solve_gains
from nightbeam.gains.files import read_layout
from nightbeam.gains.model import CalTable, ModelSource
from nightbeam.gains.remote import judge_tables, other_sources, table_at, tables_of_prefix

OPTIONS = SolveOptions(refants=("103",), drift=False)


@pytest.fixture
def places(tmp_path):
    return {"work_dir": tmp_path / "work", "log": tmp_path / "log" / "casa.log"}


@pytest.fixture
def calibrator(sky):
    return CalibratorMatch("s", *sky.offset, sky.flux)


def corrected(ms):
    with open_table(ms) as table:
        columns = {c: table.getcol(c) for c in ("CORRECTED_DATA", "MODEL_DATA", "FLAG", "ANTENNA1", "ANTENNA2")}
    cross = columns["ANTENNA1"] != columns["ANTENNA2"]
    return columns["CORRECTED_DATA"][cross], columns["MODEL_DATA"][cross], columns["FLAG"][cross]


@pytest.mark.system
@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, solve_delays=True, fast_interval="13s")])
def test_data_come_back_as_the_model_whatever_the_chain(made, calibrator, places, tmp_path, options):
    # A table that corrected what another one corrects already would show as a residual here.
    found = solve_gains(made.path, calibrator, tmp_path / "cal" / "made_0", options=options, **places)
    report = apply_gains(made.path, found.tables, **places)
    data, model, flags = corrected(made.path)
    assert not flags.any()
    assert np.abs(data / model - 1).max() < 1e-3
    assert report.corrected_over_model == pytest.approx(1.0, abs=1e-5)
    assert found.report.corrected_over_model == pytest.approx(1.0, abs=1e-5)
    assert found.report.coherence == pytest.approx(1.0, abs=1e-5)
    assert [t.order_index for t in found.tables] == sorted(t.order_index for t in found.tables)
    assert sorted(p.name for p in (tmp_path / "cal").iterdir()) == sorted(
        [*(f"made_0{t.kind.suffix}" for t in found.tables), "made_0_solutions.json"]
    )
    assert json.loads((tmp_path / "cal/made_0_solutions.json").read_text())["accepted"] is True
    first = data.copy()
    apply_gains(made.path, list(reversed(found.tables)), **places)
    assert np.array_equal(corrected(made.path)[0], first)
    assert [t.path for t in tables_of_prefix(tmp_path / "cal/made_0")] == [t.path for t in found.tables]


@pytest.mark.system
def test_the_gains_that_were_put_in_come_out(made, calibrator, places, tmp_path):
    found = solve_gains(made.path, calibrator, tmp_path / "made_0", options=OPTIONS, **places)
    gain = read_caltable(found.tables[-1].path)
    band = read_caltable(found.tables[0].path)
    whole = gain.values[:, 0] * np.mean(band.values, axis=1)
    true = made.gains * np.exp(-1j * np.angle(made.gains[2]))
    assert np.abs(whole / true[gain.antenna] - 1).max() < 5e-4
    assert set(gain.refant) == {2}


@pytest.mark.system
@pytest.mark.parametrize("delays", [False, True])
def test_averaging_what_is_solved_from_changes_no_solution(made, calibrator, places, tmp_path, delays):
    rng = np.random.default_rng(2)
    with open_table(made.path, write=True) as table:
        i, j = table.getcol("ANTENNA1"), table.getcol("ANTENNA2")
        _, when = np.unique(table.getcol("TIME"), return_inverse=True)
        phases = np.exp(1j * rng.uniform(-0.5, 0.5, (3, 12, 2)))
        noise = 0.3 * (rng.normal(size=table.getcol("DATA").shape) + 1j * rng.normal(size=table.getcol("DATA").shape))
        table.putcol("DATA", table.getcol("DATA") * (phases[when, i] * phases[when, j].conj())[:, None, :] + noise)
    options = replace(OPTIONS, pre_bandpass_interval="13s", solve_delays=delays)
    found = {
        average: solve_gains(
            made.path, calibrator, tmp_path / f"{average}_0", options=replace(options, average=average), **places
        )
        for average in (True, False)
    }
    assert len(found[True].tables) == (3 if delays else 2)
    for ours, theirs in zip(found[True].tables, found[False].tables, strict=True):
        one, other = read_caltable(ours.path), read_caltable(theirs.path)
        assert np.array_equal(one.flags, other.flags)
        assert np.allclose(one.values, other.values, rtol=2e-4, atol=2e-4), ours.kind
        assert np.median(one.snr) == pytest.approx(np.median(other.snr), rel=0.2)


@pytest.mark.system
def test_a_dead_antenna_is_left_out_and_its_data_are_flagged(made, calibrator, places, tmp_path):
    with open_table(made.path, write=True) as table:
        data = table.getcol("DATA")
        touched = (table.getcol("ANTENNA1") == 4) | (table.getcol("ANTENNA2") == 4)
        data[touched] = 0
        table.putcol("DATA", data)
    found = solve_gains(made.path, calibrator, tmp_path / "made_0", options=OPTIONS, **places)
    assert found.report.flags.dead == ("105",)
    assert {t.dead_receptors for t in found.report.tables} == {2}
    assert {t.flagged_fraction for t in found.report.tables} == {0.0}
    apply_gains(made.path, found.tables, **places)
    with open_table(made.path) as table:
        flags = table.getcol("FLAG")
    assert flags[touched].all()
    assert not flags[~touched].any()


@pytest.mark.system
def test_applying_another_set_does_not_inherit_flags_of_the_first(made, calibrator, places, tmp_path):
    found = solve_gains(made.path, calibrator, tmp_path / "made_0", options=OPTIONS, **places)
    with open_table(found.tables[-1].path, write=True) as table:
        good = table.getcol("FLAG")
        bad = good.copy()
        bad[table.getcol("ANTENNA1") == 7] = True
        table.putcol("FLAG", bad)
    assert apply_gains(made.path, found.tables, **places).flagged_fraction == pytest.approx(11 / 66)
    with open_table(found.tables[-1].path, write=True) as table:
        table.putcol("FLAG", good)
    assert apply_gains(made.path, found.tables, **places).flagged_fraction == 0.0
    with open_table(found.tables[-1].path, write=True) as table:
        table.putcol("FLAG", good | True)
    with pytest.raises(RejectedError, match=r"every sample of made\.ms is flagged"):
        apply_gains(made.path, found.tables, **places)


@pytest.mark.system
def test_solving_again_does_not_inherit_flags_of_the_gains_before(made, calibrator, places, tmp_path):
    found = solve_gains(made.path, calibrator, tmp_path / "made_0", options=OPTIONS, **places)
    with open_table(found.tables[-1].path, write=True) as table:
        bad = table.getcol("FLAG")
        bad[table.getcol("ANTENNA1") == 7] = True
        table.putcol("FLAG", bad)
    assert apply_gains(made.path, found.tables, **places).flagged_fraction > 0.1
    again = solve_gains(made.path, calibrator, tmp_path / "made_0", options=OPTIONS, **places)
    assert again.report.flags.fraction == 0.0
    assert "CORRECTED_DATA" not in read_layout(made.path).columns  # or it would be read without its flags
    assert apply_gains(made.path, again.tables, **places).flagged_fraction == 0.0


@pytest.mark.system
def test_noise_without_a_fringe_is_rejected_with_reasons_and_leaves_no_table(made, calibrator, places, tmp_path):
    rng = np.random.default_rng(0)
    with open_table(made.path, write=True) as table:
        shape = table.getcol("DATA").shape
        table.putcol("DATA", (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64))
    with pytest.raises(RejectedError, match=r"the solutions of s from made\.ms are not accepted"):
        solve_gains(made.path, calibrator, tmp_path / "cal/made_0", options=OPTIONS, **places)
    assert [p.name for p in (tmp_path / "cal").iterdir()] == ["made_0_solutions.json"]
    report = json.loads((tmp_path / "cal/made_0_solutions.json").read_text())
    assert report["accepted"] is False
    assert report["reasons"]


@pytest.mark.system
def test_tables_of_another_array_are_refused(made, calibrator, places, tmp_path):
    found = solve_gains(made.path, calibrator, tmp_path / "made_0", options=OPTIONS, **places)
    layout = read_layout(made.path)
    with open_table(made.path / "ANTENNA", write=True) as table:
        table.putcell("NAME", 3, "999")
    with pytest.raises(InputError, match=r"made_0_bpcal does not fit made.ms: antennas 104, 999 are in only one"):
        apply_gains(made.path, found.tables, **places)
    with open_table(made.path / "ANTENNA", write=True) as table:
        table.putcell("NAME", 3, layout.antenna_names[3])
    with open_table(made.path / "SPECTRAL_WINDOW", write=True) as table:
        table.putcell("CHAN_FREQ", 1, layout.channel_hz[1] + 2e5)
    with pytest.raises(InputError, match="window 1 is off by 200000 Hz"):
        apply_gains(made.path, found.tables, **places)


@pytest.mark.system
def test_a_set_that_lacks_a_window_is_calibrated_with_the_solutions_of_those_that_it_has(
    made, calibrator, places, tmp_path
):
    with open_table(made.path, write=True) as table:
        data, window = table.getcol("DATA"), table.getcol("DATA_DESC_ID")
        data[window == 0] *= 3.0  # solutions of the other window would be seen
        table.putcol("DATA", data)
    found = solve_gains(made.path, calibrator, tmp_path / "made_0", options=OPTIONS, **places)
    with open_table(made.path, write=True) as table:
        table.removerows(np.flatnonzero(window == 0).tolist())
        table.putcol("DATA_DESC_ID", np.zeros(table.nrows(), np.int32))
    for name in ("SPECTRAL_WINDOW", "DATA_DESCRIPTION"):
        with open_table(made.path / name, write=True) as table:
            table.removerows([0])
            if name == "DATA_DESCRIPTION":
                table.putcol("SPECTRAL_WINDOW_ID", np.zeros(1, np.int32))
    apply_gains(made.path, found.tables, **places)
    data, model, flags = corrected(made.path)
    assert not flags.any()
    assert np.abs(data / model - 1).max() < 1e-3


def test_everything_flagged_is_rejected_before_casa_starts(made, calibrator, places, tmp_path):
    with open_table(made.path, write=True) as table:
        table.putcol("FLAG", np.ones_like(table.getcol("FLAG")))
    with pytest.raises(RejectedError, match=r"100.0% of the data is flagged"):
        solve_gains(made.path, calibrator, tmp_path / "x", options=OPTIONS, **places)
    assert not places["log"].exists()


def test_weights_that_are_not_positive_are_rejected_before_casa_starts(made, calibrator, places, tmp_path):
    with open_table(made.path, write=True) as table:
        table.putcol("WEIGHT", -table.getcol("WEIGHT"))
    with pytest.raises(RejectedError, match="have a weight that is not positive"):
        solve_gains(made.path, calibrator, tmp_path / "x", options=OPTIONS, **places)


def test_an_absent_reference_antenna_and_an_absent_field_are_named(made, calibrator, places, tmp_path):
    with pytest.raises(MissingError, match="no antenna named 77"):
        solve_gains(made.path, calibrator, tmp_path / "x", options=replace(OPTIONS, refants=("77",)), **places)
    with pytest.raises(InputError, match="has no field 3"):
        solve_gains(made.path, calibrator, tmp_path / "x", options=OPTIONS, field=3, **places)
    with pytest.raises(UsageError, match="no automatic flagger"):
        solve_gains(made.path, calibrator, tmp_path / "x", options=replace(OPTIONS, autoflag=("magic",)), **places)


def test_a_missing_measurement_set_or_table_is_named(made, calibrator, places, tmp_path):
    with pytest.raises(MissingError, match=r"no\.ms does not exist"):
        solve_gains(tmp_path / "no.ms", calibrator, tmp_path / "x", **places)
    with pytest.raises(MissingError, match=r"no calibration table .*x_bpcal"):
        apply_gains(made.path, [tmp_path / "x_bpcal"], **places)
    with pytest.raises(MissingError, match="no calibration tables begin with"):
        tables_of_prefix(tmp_path / "x")
    with pytest.raises(UsageError):
        apply_gains(made.path, [], **places)


def test_two_tables_of_one_kind_are_refused_because_both_would_be_applied(made, places, tmp_path):
    twice = [CalTable(tmp_path / n, TableKind.DELAY, 10, "0", "1") for n in ("a_kcal", "b_kcal")]
    with pytest.raises(InputError, match="correct the same thing"):
        apply_gains(made.path, twice, **places)


def test_the_name_says_what_a_table_corrects(tmp_path):
    assert table_at(tmp_path / "x_0_bpcal").kind is TableKind.BANDPASS
    with pytest.raises(InputError, match="does not say"):
        table_at(tmp_path / "x_0.cal")


def test_other_sources_of_the_list_join_the_model_of_our_telescope_only(made, calibrator):
    listed = [ModelSource("s", *calibrator_place(calibrator), 5.0), ModelSource("b", 150.5, 33.2, 0.4)]
    (other,) = other_sources(made.path, calibrator, listed)
    assert (other.name, other.flux_jy) == ("b", 0.4)
    with open_table(made.path / "OBSERVATION", write=True) as table:
        table.putcell("TELESCOPE_NAME", 0, "EVLA")
    assert other_sources(made.path, calibrator, listed) == []


def calibrator_place(calibrator):
    return calibrator.ra_deg, calibrator.dec_deg


def test_tables_that_leave_nothing_to_compare_with_the_model_are_rejected(made, tmp_path, monkeypatch):
    # Each table may look well while together they flag everything.
    from nightbeam.gains import remote

    fine = SimpleNamespace(
        name="a_bpcal", kind="BP", working_solutions=100, working_flagged=0, flagged_fraction=0.0, refants=(),
        unsolved_fraction=0.0, antennas_with_solutions=12, median_snr=90.0,
    )  # fmt: skip
    monkeypatch.setattr(remote, "read_caltable", lambda path: None)
    monkeypatch.setattr(remote, "table_stats", lambda *_, **__: fine)
    monkeypatch.setattr(remote, "calibrator_ratio", lambda *_, **__: (None, None))
    table = CalTable(tmp_path / "a_bpcal", TableKind.BANDPASS, 30, "0", "103")
    report = judge_tables(made.path, [table], options=OPTIONS)
    assert not report.accepted
    assert report.reasons == ("no calibrated data are left to compare with the model",)
