from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from nightbeam.casa import open_table
from nightbeam.core.errors import BusyError, InputError, RejectedError, StorageError, UsageError
from nightbeam.core.locks import sole_owner
from nightbeam.ms import iterate_blocks, read_antennas, read_fields, read_spectral_windows, read_summary, verify_ms
from nightbeam.ms.writing import read_record
from nightbeam.sky import (
    DISH_DIAMETER_M,
    SPEED_OF_LIGHT_M_S,
    beam_attenuation,
    meridian_icrs,
    offset_position,
    separation,
)
from nightbeam.uvh5 import compute, convert, convert_group, model, read_header

pytestmark = pytest.mark.slow

COLUMNS = ("TIME", "ANTENNA1", "ANTENNA2", "DATA_DESC_ID", "UVW", "DATA", "FLAG", "WEIGHT", "SIGMA",
           "WEIGHT_SPECTRUM", "FLAG_ROW", "INTERVAL", "EXPOSURE", "SCAN_NUMBER")  # fmt: skip


def columns(ms: Path) -> dict[str, np.ndarray]:
    """All rows, sorted by window, time and antennas."""
    with open_table(ms) as table:
        found = {name: table.getcol(name) for name in COLUMNS}
    keys = [found[n] for n in ("ANTENNA2", "ANTENNA1")] + [np.round(found["TIME"], 1), found["DATA_DESC_ID"]]
    order = np.lexsort(keys)
    return {name: values[order] for name, values in found.items()}


def flux_at(ms: Path, ra_deg: float, dec_deg: float) -> float:
    """The direct Fourier sum of the window at 1.4 GHz over its unflagged visibilities: one pixel of an image."""
    field = read_fields(ms)[0]
    ra0, dec0, ra, dec = np.radians([field.ra_deg, field.dec_deg, ra_deg, dec_deg])
    east = np.cos(dec) * np.sin(ra - ra0)
    north = np.sin(dec) * np.cos(dec0) - np.cos(dec) * np.sin(dec0) * np.cos(ra - ra0)
    lmn = np.array([east, north, np.sqrt(1 - east**2 - north**2) - 1])
    window = next(w.index for w in read_spectral_windows(ms) if w.low_hz <= 1.4e9 < w.high_hz)
    total = weight = 0.0
    with open_table(ms) as table:
        for block in iterate_blocks(ms):
            if block.window == window:
                first, count = int(block.rows[0]), len(block.rows)
                data, flag = table.getcol("DATA", first, count), table.getcol("FLAG", first, count)
                turn = -2j * np.pi * (block.uvw_m @ lmn)[:, None] * block.freqs_hz / SPEED_OF_LIGHT_M_S
                good = ~flag
                total += float((data * np.exp(turn)[:, :, None])[good].real.sum())
                weight += good.sum()
    return total / weight


@pytest.fixture(scope="module")
def seen_flux(truth):
    """What the drifting beam leaves of the source at 1.4 GHz, on average."""
    group, (source,) = truth.groups[0], truth.sources
    times = np.linspace(group.start_jd, group.end_jd, 24)
    from nightbeam.sky import OVRO_DSA110

    ra, dec = meridian_icrs(times, np.radians(truth.array.dec_apparent_deg), OVRO_DSA110)
    off = np.radians(separation(ra, dec, source.ra_deg, source.dec_deg))
    return source.flux_jy * float(beam_attenuation(off, 1.4e9, diameter_m=DISH_DIAMETER_M).mean())


@pytest.fixture(scope="module")
def ms(group_files, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ms") / "2025-10-03T11:48:57.ms"
    convert_group(group_files, out)
    return out


def mirrored(ms: Path) -> tuple[float, float]:
    """The place on the other side of the centre, half a degree to the south-west."""
    field = read_fields(ms)[0]
    ra, dec = offset_position(field.ra_deg, field.dec_deg, 0.5, 225.0)
    return float(ra), float(dec)


def found_fraction(ms: Path, truth, seen_flux: float) -> float:
    (source,) = truth.sources
    return flux_at(ms, source.ra_deg, source.dec_deg) / seen_flux


def test_a_source_half_a_degree_north_east_keeps_its_flux_at_its_place(ms, truth, seen_flux):
    assert found_fraction(ms, truth, seen_flux) == pytest.approx(1.0, abs=0.02)
    assert abs(flux_at(ms, *mirrored(ms))) < 0.5 * seen_flux


def test_the_wrong_sign_loses_the_source(group_files, tmp_path, monkeypatch, truth, seen_flux):
    monkeypatch.setattr(model, "FILE_SIGN", -1)
    convert_group(group_files, tmp_path / "wrong.ms")
    assert found_fraction(tmp_path / "wrong.ms", truth, seen_flux) < 0.5


def test_half_of_the_sign_mirrors_the_sky(group_files, tmp_path, monkeypatch, truth, seen_flux):
    from nightbeam.uvh5 import direct

    monkeypatch.setattr(direct, "conjugate_rows", lambda one, two: ~compute.conjugate_rows(one, two))
    convert_group(group_files, tmp_path / "half.ms")
    assert found_fraction(tmp_path / "half.ms", truth, seen_flux) < 0.5
    assert flux_at(tmp_path / "half.ms", *mirrored(tmp_path / "half.ms")) > 0.95 * seen_flux


def test_data_that_are_not_rotated_lose_the_source(group_files, tmp_path, monkeypatch, truth, seen_flux):
    from nightbeam.uvh5 import direct

    monkeypatch.setattr(direct, "rotation_sign", lambda: 0.0)
    convert_group(group_files, tmp_path / "still.ms")
    assert found_fraction(tmp_path / "still.ms", truth, seen_flux) < 0.5


def test_any_order_of_arrival_makes_the_same_set(ms, group_files, tmp_path):
    rng = np.random.default_rng(3)
    convert_group([group_files[k] for k in rng.permutation(16)], tmp_path / "other.ms")
    one, two = columns(ms), columns(tmp_path / "other.ms")
    assert all(np.array_equal(one[name], two[name]) for name in COLUMNS)
    assert read_summary(ms).windows == read_summary(tmp_path / "other.ms").windows


def test_both_writers_agree_row_by_row(ms, group_files, tmp_path):
    report = convert_group(group_files, tmp_path / "ref.ms", writer="pyuvdata")
    assert report.writer_type == "pyuvdata"
    ours, theirs = columns(ms), columns(tmp_path / "ref.ms")
    cross = ours["ANTENNA1"] != ours["ANTENNA2"]
    apart = np.abs(ours["DATA"] - theirs["DATA"])[cross].max()
    assert apart < 1e-5 * np.abs(theirs["DATA"][cross]).mean()
    for name in ("ANTENNA1", "ANTENNA2", "DATA_DESC_ID", "FLAG", "FLAG_ROW", "WEIGHT_SPECTRUM", "SCAN_NUMBER"):
        assert np.array_equal(ours[name], theirs[name]), name
    for name in ("TIME", "WEIGHT", "SIGMA", "INTERVAL", "EXPOSURE"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name
    assert np.abs(ours["UVW"] - theirs["UVW"]).max() < 1e-6 * np.abs(theirs["UVW"]).max()
    one, two = ([w.freqs_hz for w in read_spectral_windows(m)] for m in (ms, tmp_path / "ref.ms"))
    assert np.array(one) == pytest.approx(np.array(two))


def test_rows_through_casacore_are_the_same_as_rows_written_plainly(ms, group_files, tmp_path, monkeypatch):
    from nightbeam.ms import writing

    monkeypatch.setattr(writing, "probe_raw_columns", lambda path, layout: None)
    convert_group(group_files, tmp_path / "slow.ms")
    one, two = columns(ms), columns(tmp_path / "slow.ms")
    assert all(np.array_equal(one[name], two[name]) for name in COLUMNS)


def test_a_layout_whose_flags_fill_no_bytes_goes_through_casacore(tmp_path):
    from nightbeam.simulate import SimulationSpec, simulate_subbands

    simulate_subbands(tmp_path / "g", SimulationSpec(antennas=3, channels=3, integrations=2, sources=1))
    report = convert_group(list((tmp_path / "g").glob("*.hdf5")), tmp_path / "odd.ms")
    assert report.rows == 16 * 2 * 6
    assert verify_ms(tmp_path / "odd.ms").n_chan == 3


def test_the_set_is_as_casa_and_wsclean_want_it(ms, truth):
    summary = verify_ms(ms)
    assert (summary.n_spw, summary.n_chan, summary.n_pol, summary.n_times) == (16, 8, 2, 24)
    assert summary.telescope == "OVRO_MMA"
    assert summary.rows == 16 * 24 * 36
    assert not summary.has_model
    assert not summary.has_corrected
    antennas = read_antennas(ms)
    assert len(antennas) == 117
    assert [a.name for a in antennas] == [str(k) for k in range(1, 118)]
    assert {a.mount for a in antennas} == {"ALT-AZ"}
    assert {a.diameter_m for a in antennas} == {4.65}
    starts = [w.freqs_hz[0] for w in summary.windows]
    assert starts == sorted(starts)
    assert summary.windows[0].name == "sb15"
    assert summary.freq_high_hz == pytest.approx(1498.765e6, abs=1e3)
    group = truth.groups[0]
    assert separation(group.ra_deg, group.dec_deg, summary.fields[0].ra_deg, summary.fields[0].dec_deg) < 1e-7
    assert summary.mid_mjd == pytest.approx(group.mid_jd - 2400000.5, abs=1e-8)
    with open_table(ms / "FIELD") as table:
        directions = [table.getcol(f"{kind}_DIR") for kind in ("PHASE", "DELAY", "REFERENCE")]
    assert np.array_equal(directions[0], directions[1])
    assert np.array_equal(directions[0], directions[2])


def test_autocorrelations_are_flagged_and_nothing_else(ms):
    found = columns(ms)
    auto = found["ANTENNA1"] == found["ANTENNA2"]
    assert found["FLAG"][auto].all()
    assert not found["FLAG"][~auto].any()
    assert np.array_equal(found["FLAG_ROW"], auto)
    assert np.all(found["WEIGHT"] > 0)


def test_antenna_places_are_those_of_the_survey(ms, shared_data):
    import csv

    with (shared_data / "dsa110" / "antennas.csv").open() as table:
        survey = [[float(r[f"itrf_{x}_m"]) for x in "xyz"] for r in csv.DictReader(table)]
    assert np.abs(np.array([a.position_m for a in read_antennas(ms)]) - survey).max() < 0.05


def test_missing_subbands_stay_missing_and_are_listed(group_files, tmp_path):
    some = [f for f in group_files if "_sb05" not in f.name and "_sb15" not in f.name]
    report = convert_group(some, tmp_path / "some.ms")
    assert report.missing_subbands == (5, 15)
    assert report.n_spw == 14
    windows = read_spectral_windows(tmp_path / "some.ms")
    assert [w.name for w in windows] == [f"sb{n:02d}" for n in range(14, -1, -1) if n != 5]
    own = {f"sb{header.subband:02d}": sorted(header.freqs_hz) for header in map(read_header, some)}
    for window in windows:  # each has its own frequencies, and none those of a neighbour
        assert sorted(window.freqs_hz) == pytest.approx(own[window.name], abs=1.0)


def test_auto_takes_pyuvdata_for_two_files_only():
    assert convert.writer_named("auto", 2).name == "pyuvdata"
    assert convert.writer_named("auto", 3).name == "direct-subband"
    with pytest.raises(UsageError, match="no writer"):
        convert.writer_named("fastest", 1)


def test_a_finished_set_of_the_same_files_is_left_alone(group_files, tmp_path):
    out = tmp_path / "a.ms"
    first = convert_group(group_files, out)
    before = (out / "table.dat").stat().st_mtime_ns
    again = convert_group(list(reversed(group_files)), out)
    assert (out / "table.dat").stat().st_mtime_ns == before
    assert again.reused
    assert not first.reused
    assert (again.rows, again.total_s, again.ms) == (first.rows, first.total_s, out)
    record = json.loads(read_record(out))
    assert len(record["inputs"]) == 16


def test_a_set_of_other_files_or_a_spoilt_one_is_made_again(group_files, tmp_path):
    out = tmp_path / "a.ms"
    convert_group(group_files[:4], out)
    assert convert_group(group_files, out).n_spw == 16
    (out / "table.dat").unlink()
    assert not convert_group(group_files, out).reused
    assert verify_ms(out).n_spw == 16


def test_a_set_made_with_the_other_sign_is_made_again(group_files, tmp_path, monkeypatch):
    out = tmp_path / "a.ms"
    convert_group(group_files[:1], out)
    monkeypatch.setattr(model, "FILE_SIGN", -1)
    assert not convert_group(group_files[:1], out).reused
    assert convert_group(group_files[:1], out).reused


WRITERS = ["direct-subband", pytest.param("pyuvdata", marks=pytest.mark.slow)]


def spoil(path: Path, change) -> None:
    with h5py.File(path, "r+") as file:
        values = file["Data/visdata"][()]
        change(values)
        file["Data/visdata"][...] = values


@pytest.mark.parametrize(("value", "said"), [(0.0, "exact zeros"), (np.nan, "not finite")])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_subband_of_nothing_is_refused_and_named(own_files, tmp_path, value, said, writer):
    spoil(own_files[4], lambda v: v.fill(value))
    with pytest.raises((RejectedError, InputError)) as caught:
        convert_group(own_files, tmp_path / "out.ms", writer=writer)
    if writer == "direct-subband":
        assert "_sb04" in str(caught.value)
        assert said in str(caught.value)
    assert not list(tmp_path.glob("*.ms"))
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("writer", WRITERS)
def test_some_nan_and_zeros_are_flagged_and_the_rest_kept(own_files, tmp_path, writer):
    def some(values):
        values[1::36, :, 2] = np.nan  # the second baseline, which is none of an antenna with itself
        values[3::36, :, 5] = 0

    spoil(own_files[4], some)
    report = convert_group(own_files, tmp_path / "out.ms", writer=writer)
    assert report.flagged_fraction == pytest.approx(2 / (16 * 8 * 28))
    found = columns(tmp_path / "out.ms")
    assert np.isfinite(found["DATA"]).all()


def test_samples_without_weight_are_flagged_and_weights_stay_positive(own_files, tmp_path):
    with h5py.File(own_files[0], "r+") as file:
        samples = file["Data/nsamples"][()]
        samples[1::36, :, 0], samples[1::36, :, 1], samples[1::36, :, 2] = 0, -1, np.inf
        file["Data/nsamples"][...] = samples
    convert_group(own_files, tmp_path / "out.ms")
    found = columns(tmp_path / "out.ms")
    assert np.all(found["WEIGHT_SPECTRUM"] > 0)
    assert np.isfinite(found["WEIGHT_SPECTRUM"]).all()
    cross = found["ANTENNA1"] != found["ANTENNA2"]
    assert found["FLAG"][cross].sum() == 3 * 24 * 2
    assert found["SIGMA"] == pytest.approx(1 / np.sqrt(found["WEIGHT"]))


def test_flags_of_the_file_are_kept_and_too_many_refuse_the_group(own_files, tmp_path):
    for path in own_files:
        with h5py.File(path, "r+") as file:
            flags = file["Data/flags"]
            flags[: 36 * 18] = np.ones((36 * 18, *flags.shape[1:]), bool)
    with pytest.raises(RejectedError, match=r"75.0 % of the cross-correlations are flagged"):
        convert_group(own_files, tmp_path / "out.ms", max_flagged_fraction=0.5)
    assert convert_group(own_files, tmp_path / "out.ms").flagged_fraction == pytest.approx(0.75)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_subband_of_which_all_is_flagged_is_refused(own_files, tmp_path, writer):
    with h5py.File(own_files[4], "r+") as file:
        flags = file["Data/flags"]
        flags[...] = np.ones(flags.shape, bool)
    with pytest.raises((RejectedError, InputError)) as caught:
        convert_group(own_files, tmp_path / "out.ms", writer=writer)
    if writer == "direct-subband":
        assert "_sb04" in str(caught.value)
        assert "0 exact zeros, 0 not finite, 10752 flagged" in str(caught.value)
    assert not list(tmp_path.glob("*.ms"))


def test_flags_that_came_after_the_conversion_do_not_stand_in_the_way_of_another(group_files, tmp_path):
    out = tmp_path / "a.ms"
    convert_group(group_files[:2], out, max_flagged_fraction=0.9)
    with open_table(out, write=True) as table:
        flag = table.getcol("FLAG")
        flag[np.arange(len(flag)) % 20 != 1] = True
        table.putcol("FLAG", flag)
    again = convert_group(group_files[:2], out, max_flagged_fraction=0.9)
    assert not again.reused
    assert again.flagged_fraction == 0


def test_products_in_another_order_are_refused(own_files, tmp_path):
    for path in own_files:
        with h5py.File(path, "r+") as file:
            file["Header/polarization_array"][...] = [-6, -5]
    with pytest.raises(InputError, match=r"polarizations \(-6, -5\), wanted XX, YY"):
        convert_group(own_files, tmp_path / "out.ms")


def test_mixed_pointing_is_one_clear_error(own_files, tmp_path):
    with h5py.File(own_files[2], "r+") as file:
        file["Header/extra_keywords/phase_center_dec"][...] = 0.28
    with pytest.raises(InputError, match=r"it points to Dec 16\.0428 deg"):
        convert_group(own_files, tmp_path / "out.ms")


def test_one_subband_of_another_time_is_one_clear_error(own_files, tmp_path):
    with h5py.File(own_files[2], "r+") as file:
        file["Header/time_array"][...] = file["Header/time_array"][()] + 309.24 / 86400
    with pytest.raises(InputError, match=r"_sb02.*it starts \+309.2"):
        convert_group(own_files, tmp_path / "out.ms")


def test_a_wished_phase_centre_is_taken(group_files, tmp_path, truth, seen_flux):
    (source,) = truth.sources
    convert_group(group_files, tmp_path / "out.ms", phase_center=(source.ra_deg, source.dec_deg))
    assert found_fraction(tmp_path / "out.ms", truth, seen_flux) == pytest.approx(1.0, abs=0.02)
    found = columns(tmp_path / "out.ms")
    cross = found["ANTENNA1"] != found["ANTENNA2"]
    assert np.abs(np.angle(found["DATA"][cross])).max() < 1e-4  # at the centre all phases are flat


def test_a_place_in_memory_and_a_scratch_directory_leave_nothing_behind(group_files, tmp_path):
    shm, scratch = tmp_path / "shm", tmp_path / "scratch"
    shm.mkdir()
    convert_group(group_files, tmp_path / "a.ms", stage_to_tmpfs=True, tmpfs_path=shm)
    convert_group(group_files, tmp_path / "b.ms", scratch_dir=scratch)
    assert not list(shm.iterdir())
    assert not list(scratch.iterdir())
    one, two = columns(tmp_path / "a.ms"), columns(tmp_path / "b.ms")
    assert np.array_equal(one["DATA"], two["DATA"])


def test_no_room_in_memory_means_disk_and_no_room_on_disk_means_an_error(group_files, tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 10_000))
    with pytest.raises(StorageError, match=r"needs .* in"):
        convert_group(group_files, tmp_path / "a.ms", stage_to_tmpfs=True)
    assert not (tmp_path / "a.ms").exists()


def test_two_conversions_to_one_set_do_not_meet(group_files, tmp_path):
    with sole_owner(tmp_path / ".a.ms.lock"), pytest.raises(BusyError, match="the conversion to"):
        convert_group(group_files, tmp_path / "a.ms")


def test_what_a_killed_conversion_left_is_removed(group_files, tmp_path):
    left = tmp_path / ".a.ms.1234.abcd.part"
    left.mkdir()
    (left / "table.dat").touch()
    convert_group(group_files[:1], tmp_path / "a.ms")
    assert not left.exists()


def test_other_threads_run_while_a_group_is_converted(group_files, tmp_path):
    stop, beats = threading.Event(), []

    def beat():
        while not stop.wait(0.01):
            beats.append(time.monotonic())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        convert_group(group_files, tmp_path / "a.ms", max_workers=2)
    finally:
        stop.set()
        thread.join()
    assert len(beats) > 5


def test_a_disk_that_fills_up_on_the_way_is_one_error_and_leaves_nothing(group_files, tmp_path, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    from nightbeam.ms import writing

    monkeypatch.setattr(writing, "_write_all", full)
    with pytest.raises(StorageError, match="no space left"):
        convert_group(group_files, tmp_path / "a.ms")
    assert not list(tmp_path.glob("*.ms"))
    assert not list(tmp_path.glob(".*.part"))
