from __future__ import annotations

import csv
import errno
from pathlib import Path

import h5py
import numpy as np
import pytest

from nightbeam.core.errors import InputError, MissingError, StorageError, UnavailableError
from nightbeam.uvh5 import check_subband, read_header
from nightbeam.uvh5.files import open_data

ONE_HEADER_ITEM_EACH = [
    "telescope_name", "time_array", "freq_array", "antenna_positions", "ant_1_array", "Nblts", "latitude",
    "polarization_array", "channel_width", "integration_time",
]  # fmt: skip


def test_header_says_what_was_simulated(own_files, truth):
    header = read_header(own_files[3])
    assert header.subband == 3
    assert header.telescope == "OVRO_MMA"
    assert header.start_jd == truth.groups[0].start_jd
    assert header.n_bls == 8 * 9 // 2
    assert header.n_blts == 24 * 36
    assert header.polarizations == (-5, -6)
    assert sorted(header.ant_numbers) == sorted(s - 1 for s in truth.array.stations)
    assert np.degrees(header.dec_rad) == pytest.approx(54.57)
    assert len(header.antenna_names) == 117


def test_frequencies_are_those_of_the_band_plan(tmp_path, shared_data):
    from nightbeam.simulate import SimulationSpec, simulate_subbands

    simulate_subbands(tmp_path / "g", SimulationSpec(antennas=2, integrations=1, noise=None, gains=False, sources=0))
    with (shared_data / "dsa110" / "subbands.csv").open() as table:
        plan = {row["sb"]: row for row in csv.DictReader(table)}
    for path in (tmp_path / "g").glob("*.hdf5"):
        freqs, row = read_header(path).freqs_hz, plan[path.stem[-4:]]
        assert freqs[0] == pytest.approx(float(row["first_chan_hz"]), abs=1e-3)
        assert freqs[-1] == pytest.approx(float(row["last_chan_hz"]), abs=1e-3)


def test_no_file_is_missing_and_an_empty_one_is_named(tmp_path):
    with pytest.raises(MissingError, match="no file"):
        read_header(tmp_path / "none.hdf5")
    (tmp_path / "empty.hdf5").touch()
    with pytest.raises(InputError, match=r"empty\.hdf5 has zero bytes"):
        read_header(tmp_path / "empty.hdf5")


def test_text_is_not_hdf5(tmp_path):
    (tmp_path / "text.hdf5").write_text("not a subband\n" * 100)
    with pytest.raises(InputError, match="is not an HDF5 file"):
        read_header(tmp_path / "text.hdf5")


def test_a_truncated_file_is_called_truncated(own_files):
    whole = own_files[0].read_bytes()
    own_files[0].write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(InputError, match="truncated"):
        check_subband(own_files[0])


def test_whatever_part_of_a_file_was_lost_the_error_is_ours(own_files):
    whole, spoilt = own_files[0].read_bytes(), 0
    for at in np.random.default_rng(8).integers(0, len(whole), 300):
        # As after a power cut: a page of it was never written.
        own_files[0].write_bytes(whole[:at] + bytes(min(4096, len(whole) - at)) + whole[at + 4096 :])
        try:
            check_subband(own_files[0])
        except (InputError, StorageError, UnavailableError):
            spoilt += 1
    assert spoilt > 30


@pytest.mark.parametrize(
    ("item", "value"),
    [("time_array", b"noon"), ("integration_time", np.zeros(0)), ("Ntimes", np.inf), ("ant_1_array", h5py.Empty("i8"))],
)
def test_an_item_of_the_wrong_kind_is_our_error(own_files, item, value):
    with h5py.File(own_files[0], "r+") as file:
        del file["Header"][item]
        file["Header"][item] = value
    with pytest.raises(InputError):
        check_subband(own_files[0])


@pytest.mark.parametrize("item", ONE_HEADER_ITEM_EACH)
def test_a_missing_header_item_is_named(own_files, item):
    with h5py.File(own_files[0], "r+") as file:
        del file["Header"][item]
    with pytest.raises(InputError, match=f"has no item {item}"):
        read_header(own_files[0])


def test_the_pointing_must_be_said(own_files):
    with h5py.File(own_files[0], "r+") as file:
        del file["Header/phase_center_app_dec"], file["Header/extra_keywords/phase_center_dec"]
    with pytest.raises(InputError, match="phase_center_dec"):
        read_header(own_files[0])


def test_data_of_another_shape_than_promised_are_refused(own_files):
    with h5py.File(own_files[0], "r+") as file:
        file["Data/visdata"].resize(36 * 23, axis=0)
    assert read_header(own_files[0]).n_times == 24
    with pytest.raises(InputError, match=r"visdata is \(828, 1, 8, 2\), the header promises \(864, 1, 8, 2\)"):
        check_subband(own_files[0])


def test_a_missing_dataset_is_named(own_files):
    with h5py.File(own_files[0], "r+") as file:
        del file["Data/nsamples"]
    with pytest.raises(InputError, match="nsamples"):
        check_subband(own_files[0])


@pytest.mark.parametrize(
    ("item", "spoil", "complaint"),
    [
        ("Header/time_array", lambda a: a[::-1], "ascending times"),
        ("Header/time_array", lambda a: np.where(np.arange(len(a)) == 5, np.nan, a), "ascending times"),
        ("Header/ant_1_array", lambda a: np.roll(a, 1) + (np.arange(len(a)) == 40), "change in mid file"),
        ("Header/ant_2_array", lambda a: np.full_like(a, 500), "no position"),
        ("Header/freq_array", lambda a: a * (1 + np.arange(a.size)), "apart in one direction"),
        ("Header/Nants_data", lambda a: a + 1, "antennas have data"),
        ("Header/Ntimes", lambda a: a - 1, "whole integrations"),
        ("Header/antenna_positions", lambda a: a * np.nan, "antennas have data"),
        ("Header/antenna_positions", lambda a: a * 0, "stand at the same place"),
        ("Header/antenna_positions", lambda a: a + 5e6, "reach 500[0-9] km from the array's centre"),
        ("Header/antenna_diameters", lambda a: a * 0, "antenna_diameters"),
        ("Header/ant_1_array", lambda a: np.tile(np.r_[a[:2], a[0], a[3:36]], 24), "1 of 36 baselines are there twice"),
        ("Header/time_array", lambda a: a - 2400000.5, "no Julian Date"),
        ("Header/integration_time", lambda a: a * np.nan, "integration times are"),
        ("Header/integration_time", lambda a: a + (np.arange(len(a)) == 7), "integration times are 12.88.* to 13.88"),
        ("Header/latitude", lambda a: a * np.nan, "no place on Earth"),
        ("Header/extra_keywords/ha_phase_center", lambda a: a + 0.1, "hour angle 0.1 rad"),
        ("Header/extra_keywords/phase_center_dec", lambda a: a * np.nan, "pointing declination is nan"),
        ("Header/extra_keywords/phase_center_dec", lambda a: a * 0 + 54.57, "pointing declination is 54.57 rad"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(own_files, item, spoil, complaint):
    with h5py.File(own_files[0], "r+") as file:
        file[item][...] = spoil(file[item][()])
    with pytest.raises(InputError, match=complaint):
        read_header(own_files[0])


@pytest.mark.parametrize("pattern", ["ata.LoA.C0352*.uvh5", "zen.2458098*.uvh5"])
def test_other_telescopes_are_refused_unless_asked_for(shared_data, pattern):
    (path,) = (shared_data / "radio").glob(pattern)
    with pytest.raises(InputError, match="comes from another telescope"):
        read_header(path)


def test_a_present_day_file_of_another_telescope_is_read_when_asked_for(shared_data):
    (ata,) = (shared_data / "radio").glob("ata.LoA.C0352*.uvh5")
    header = check_subband(ata, telescope=None)
    assert (header.n_freqs, header.n_bls, header.n_times, header.n_pols) == (16, 406, 1, 4)
    assert header.freqs_hz[[0, -1]] == pytest.approx([1252e6, 1259.5e6])


def read_all(path: Path):
    header = check_subband(path)
    with open_data(header) as data:
        blocks = [block for _, block in data.blocks(300)]
        return data.direct, [np.concatenate([getattr(b, n) for b in blocks]) for n in ("vis", "flags", "nsamples")]


def test_chunks_read_past_h5py_are_what_h5py_reads(own_files):
    direct, arrays = read_all(own_files[0])
    assert direct
    with h5py.File(own_files[0]) as file:
        for array, name in zip(arrays, ("visdata", "flags", "nsamples"), strict=True):
            assert np.array_equal(array, file["Data"][name][:, 0])


@pytest.mark.parametrize("options", [{"compression": "lzf"}, {"chunks": None, "maxshape": None}, {}])
def test_compressed_plain_and_flat_files_read_the_same(own_files, options):
    _, wanted = read_all(own_files[0])
    with h5py.File(own_files[0], "r+") as file:
        for name in ("visdata", "flags", "nsamples"):
            values = file["Data"][name][:, 0]
            del file["Data"][name]
            file["Data"].create_dataset(name, data=values, **options)
    direct, arrays = read_all(own_files[0])
    assert direct == ("compression" not in options)
    assert all(np.array_equal(a, w) for a, w in zip(arrays, wanted, strict=True))


def test_a_disk_that_fails_is_worth_another_try(own_files, monkeypatch):
    import os

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    header = check_subband(own_files[0])
    monkeypatch.setattr(os, "preadv", broken)
    with open_data(header) as data, pytest.raises(UnavailableError, match=r"cannot read .*: Input/output error"):
        next(iter(data.blocks()))


def test_whoever_has_a_file_open_and_fills_a_disk_is_told_of_the_disk(own_files):
    with pytest.raises(StorageError), open_data(check_subband(own_files[0])):
        raise OSError(errno.ENOSPC, "No space left on device")
