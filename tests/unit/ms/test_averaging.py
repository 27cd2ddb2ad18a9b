"""Averaged channels: against sums written out by hand, and against CASA's own."""

import numpy as np
import pytest

from nightbeam.casa import CasaCall, run_casa
from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError, UsageError
from nightbeam.ms import iterate_blocks, read_fields, read_spectral_windows, read_summary
from nightbeam.ms.averaging import can_be_averaged, write_averaged

COMPARED = (
    "ANTENNA1",
    "ANTENNA2",
    "DATA",
    "DATA_DESC_ID",
    "FIELD_ID",
    "FLAG",
    "INTERVAL",
    "TIME",
    "UVW",
    "WEIGHT_SPECTRUM",
)


def columns(ms, names=COMPARED):
    with open_table(ms) as table:
        return {name: table.getcol(name) for name in names}


@pytest.fixture
def uneven(own_ms):
    """Weights that differ, one flag, one NaN, one flagged row, and one bin of which nothing is left."""
    rng = np.random.default_rng(8)
    with open_table(own_ms, write=True) as table:
        cross = np.flatnonzero(table.getcol("ANTENNA1") != table.getcol("ANTENNA2"))
        flags, data = table.getcol("FLAG"), table.getcol("DATA")
        weights = rng.uniform(0.5, 2.0, data.shape).astype(np.float32)
        flags[cross[3], 0, 1] = True
        data[cross[4], 1, 0] = np.nan
        flags[cross[4], 1, 0] = True
        flags[cross[5], 2:, 0] = True
        for name, values in (("FLAG", flags), ("DATA", data), ("WEIGHT_SPECTRUM", weights)):
            table.putcol(name, values)
    return own_ms, cross


def test_a_bin_is_the_weighted_mean_of_what_is_good(uneven, tmp_path):
    ms, cross = uneven
    with open_table(ms, write=True) as table:
        table.putcell("FLAG_ROW", int(cross[6]), True)
    assert write_averaged(ms, tmp_path / "small.ms", column="DATA", width=2, fields=[0]) == len(cross) == 12
    before = columns(ms, ("DATA", "FLAG", "WEIGHT_SPECTRUM", "UVW"))
    after = columns(tmp_path / "small.ms")
    for row, old in enumerate(cross):
        for b in range(2):
            for pol in range(2):
                total, weight = 0.0, 0.0
                for chan in (2 * b, 2 * b + 1):
                    if not before["FLAG"][old, chan, pol] and old != cross[6]:
                        total += complex(before["DATA"][old, chan, pol]) * float(
                            before["WEIGHT_SPECTRUM"][old, chan, pol]
                        )
                        weight += float(before["WEIGHT_SPECTRUM"][old, chan, pol])
                assert bool(after["FLAG"][row, b, pol]) == (weight == 0)
                assert after["WEIGHT_SPECTRUM"][row, b, pol] == pytest.approx(weight)
                assert after["DATA"][row, b, pol] == pytest.approx(total / weight if weight else 0.0, rel=1e-6)
        assert np.array_equal(after["UVW"][row], before["UVW"][old])
    assert np.isfinite(after["DATA"]).all()
    flagged = np.flatnonzero(columns(tmp_path / "small.ms", ("FLAG_ROW",))["FLAG_ROW"])
    assert set(flagged) >= {list(cross).index(cross[6])}


def test_what_is_not_flagged_and_not_finite_is_left_out(own_ms, tmp_path):
    with open_table(own_ms, write=True) as table:
        row = int(np.flatnonzero((table.getcol("ANTENNA1") == 0) & (table.getcol("ANTENNA2") == 2))[0])
        data = table.getcell("DATA", row)
        data[0, 0] = np.inf
        table.putcell("DATA", row, data)
    write_averaged(own_ms, tmp_path / "small.ms", column="DATA", width=2, fields=[0])
    after = columns(tmp_path / "small.ms")
    mine = np.flatnonzero((after["ANTENNA1"] == 0) & (after["ANTENNA2"] == 2))[0]
    assert after["DATA"][mine, 0, 0] == data[1, 0]
    assert after["WEIGHT_SPECTRUM"][mine, 0].tolist() == [2.0, 4.0]


def test_without_weights_of_channels_those_of_rows_hold(own_ms, tmp_path):
    with open_table(own_ms, write=True) as table:
        weights = table.getcol("WEIGHT")
        weights[:, 1] = 3.0
        table.putcol("WEIGHT", weights)
        table.putcol("FLAG", np.zeros_like(table.getcol("FLAG")))
        description = {k: v for k, v in table.getcoldesc("WEIGHT_SPECTRUM").items() if k not in ("shape", "option")}
        table.removecols("WEIGHT_SPECTRUM")
        table.addcols({"WEIGHT_SPECTRUM": {**description, "dataManagerType": "StandardStMan", "dataManagerGroup": "w"}})
        assert not table.iscelldefined("WEIGHT_SPECTRUM", 0)
    write_averaged(own_ms, tmp_path / "small.ms", column="DATA", width=2, fields=[0])
    after = columns(tmp_path / "small.ms", ("WEIGHT_SPECTRUM", "FLAG_ROW"))
    used = after["WEIGHT_SPECTRUM"][~after["FLAG_ROW"]]
    assert len(used)
    assert np.all(used == 2 * weights[0])


def test_windows_become_coarser_and_stay_where_they_are(own_ms, tmp_path):
    write_averaged(own_ms, tmp_path / "small.ms", column="DATA", width=2, fields=[0])
    for old, new in zip(read_spectral_windows(own_ms), read_spectral_windows(tmp_path / "small.ms"), strict=True):
        assert np.allclose(new.freqs_hz, np.mean(np.reshape(old.freqs_hz, (-1, 2)), axis=1))
        assert np.allclose(new.widths_hz, 2e6)
        assert sum(new.widths_hz) == pytest.approx(sum(old.widths_hz))
    assert next(iterate_blocks(tmp_path / "small.ms")).freqs_hz.tolist() == [1.3005e9, 1.3025e9]
    assert read_summary(tmp_path / "small.ms").telescope == read_summary(own_ms).telescope


def test_fields_are_chosen_and_numbered_anew(own_ms, tmp_path):
    with open_table(own_ms / "FIELD", write=True) as table:
        table.addrows(2)
        for row, name in ((1, "second"), (2, "third")):
            for column in ("PHASE_DIR", "DELAY_DIR", "REFERENCE_DIR"):
                table.putcell(column, row, table.getcell(column, 0))
            table.putcell("NAME", row, name)
    with open_table(own_ms, write=True) as table:
        table.putcol("FIELD_ID", np.arange(table.nrows(), dtype=np.int32) % 3)
        kept = np.count_nonzero((table.getcol("FIELD_ID") > 0) & (table.getcol("ANTENNA1") != table.getcol("ANTENNA2")))
    assert write_averaged(own_ms, tmp_path / "small.ms", column="DATA", width=4, fields=[2, 1]) == kept
    assert [field.name for field in read_fields(tmp_path / "small.ms")] == ["second", "third"]
    assert set(columns(tmp_path / "small.ms", ("FIELD_ID",))["FIELD_ID"]) == {0, 1}


def test_what_cannot_be_averaged_is_refused(own_ms, tmp_path):
    assert can_be_averaged(own_ms, 4)
    assert not can_be_averaged(own_ms, 3)
    with pytest.raises(UsageError, match="no multiple of 3"):
        write_averaged(own_ms, tmp_path / "small.ms", column="DATA", width=3, fields=[0])
    with pytest.raises(InputError, match="nothing of"):
        write_averaged(own_ms, tmp_path / "small.ms", column="DATA", width=2, fields=[7])
    with pytest.raises(InputError, match=r"/own\.ms"):  # what is wrong is in the source, not in the copy
        write_averaged(own_ms, tmp_path / "small.ms", column="CORRECTED_DATA", width=2, fields=[0])


@pytest.mark.system
def test_casas_split_finds_the_same(uneven, tmp_path):
    # Of CORRECTED_DATA: DATA it weighs by SIGMA, which here is one for all channels.
    ms, _ = uneven
    with open_table(ms, write=True) as table:
        table.addcols({"CORRECTED_DATA": table.getcoldesc("DATA") | {"dataManagerGroup": "Corrected"}})
        table.putcol("CORRECTED_DATA", table.getcol("DATA"))
    asked = {
        "vis": ms,
        "outputvis": tmp_path / "casa.ms",
        "datacolumn": "corrected",
        "width": 2,
        "antenna": "*&",
        "keepflags": False,
    }
    run_casa([CasaCall("split", asked)], work_dir=tmp_path / "work", log=tmp_path / "log", timeout_s=120.0)
    write_averaged(ms, tmp_path / "small.ms", column="CORRECTED_DATA", width=2, fields=[0])
    ours, theirs = columns(tmp_path / "small.ms"), columns(tmp_path / "casa.ms")
    key = ("DATA_DESC_ID", "TIME", "ANTENNA1", "ANTENNA2")
    left = ~ours["FLAG"].all(axis=(1, 2))
    ours = {name: values[left] for name, values in ours.items()}
    for found in (ours, theirs):
        order = np.lexsort([found[name] for name in reversed(key)])
        found.update({name: values[order] for name, values in found.items()})
    assert np.array_equal(ours["FLAG"], theirs["FLAG"])
    good = ~ours["FLAG"]
    for name in COMPARED:
        one, other = ours[name], theirs[name]
        if one.shape == good.shape:
            one, other = one[good], other[good]
        assert np.allclose(one, other, rtol=1e-5), name
