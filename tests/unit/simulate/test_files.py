"""The bytes of subband files, source lists and truth.json."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from nightbeam.core.errors import InputError, MissingError, StorageError
from nightbeam.core.keys import SubbandName
from nightbeam.simulate import (
    SimulationSpec,
    SkySource,
    SubbandBlock,
    Truth,
    plan_simulation,
    read_sources,
    read_stations,
    read_truth,
    simulate_subbands,
    write_subband,
)
from nightbeam.simulate.files import incomplete_path, write_truth
from nightbeam.sky import OVRO_DSA110

#: name -> (kind, shape) as in the correlator's writer; n is rows.
HEADER: dict[str, tuple[str, tuple[Any, ...]]] = {
    "latitude": ("f8", ()),
    "longitude": ("f8", ()),
    "altitude": ("f8", ()),
    "telescope_name": ("S", ()),
    "instrument": ("S", ()),
    "object_name": ("S", ()),
    "history": ("S", ()),
    "phase_type": ("S", ()),
    "phase_center_app_dec": ("f8", ()),
    "Nants_data": ("i8", ()),
    "Nants_telescope": ("i8", ()),
    "Nbls": ("i8", ()),
    "Nblts": ("i8", ()),
    "Nfreqs": ("i8", ()),
    "Npols": ("i8", ()),
    "Ntimes": ("i8", ()),
    "Nspws": ("i8", ()),
    "antenna_names": ("S4", (117,)),
    "antenna_numbers": ("i8", (117,)),
    "antenna_diameters": ("f8", (117,)),
    "antenna_positions": ("f8", (117, 3)),
    "ant_1_array": ("i8", ("n",)),
    "ant_2_array": ("i8", ("n",)),
    "uvw_array": ("f4", ("n", 3)),
    "time_array": ("f8", ("n",)),
    "integration_time": ("f8", ("n",)),
    "freq_array": ("f8", (1, 4)),
    "channel_width": ("f8", ()),
    "spw_array": ("i8", (1,)),
    "polarization_array": ("i8", (2,)),
}
ROWS = 3 * 15  # 5 antennas: 15 baselines


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    out = tmp_path_factory.mktemp("small")
    return out, simulate_subbands(out, SimulationSpec(antennas=5, channels=4, integrations=3, subbands=2, sources=2))


@pytest.fixture
def first(small: tuple[Path, Truth]) -> Path:
    out, truth = small
    return out / truth.groups[0].files[0]


def test_the_header_holds_what_the_correlator_writes_and_nothing_else(first: Path):
    with h5py.File(first) as file:
        assert set(file) == {"Header", "Data"}
        header = file["Header"]
        assert set(header) == {*HEADER, "extra_keywords"}
        for name, (kind, shape) in HEADER.items():
            found = header[name]
            assert found.shape == tuple(ROWS if n == "n" else n for n in shape), name
            assert found.dtype.kind == "S" if kind == "S" else found.dtype == np.dtype(kind), name


def test_the_header_says_what_the_real_one_says(first: Path):
    with h5py.File(first) as file:
        header = {name: item[()] for name, item in file["Header"].items() if isinstance(item, h5py.Dataset)}
    assert header["telescope_name"] == b"OVRO_MMA"
    assert (header["instrument"], header["object_name"], header["phase_type"]) == (b"DSA", b"search", b"drift")
    assert (header["Nants_data"], header["Nbls"], header["Nblts"], header["Ntimes"]) == (5, 15, ROWS, 3)
    assert header["antenna_names"].tolist() == [str(n).encode() for n in range(1, 118)]
    assert header["antenna_numbers"].tolist() == list(range(117))
    assert set(header["antenna_diameters"]) == {4.65}
    assert header["polarization_array"].tolist() == [-5, -6]
    assert set(header["integration_time"]) == {12.884902000427246}
    assert header["channel_width"] == 11718750.0 / 4
    assert np.all(np.diff(header["freq_array"][0]) < 0)
    assert header["longitude"] == pytest.approx(-118.283, abs=1e-9)
    assert header["latitude"] == pytest.approx(37.2334051, abs=1e-7)


def test_the_extra_keywords_are_those_of_a_hadec_file(first: Path, small: tuple[Path, Truth]):
    with h5py.File(first) as file:
        extra = {name: item[()] for name, item in file["Header/extra_keywords"].items()}
        top = file["Header/phase_center_app_dec"][()]
    assert np.degrees(extra["phase_center_dec"]) == pytest.approx(54.57)
    assert extra["phase_center_dec"] == top
    assert (extra["ha_phase_center"], extra["phase_center_epoch"]) == (0.0, b"HADEC")
    delays = np.array(extra["applied_delays_ns"].split(), float)
    assert delays.shape == (234,)
    assert np.flatnonzero(delays.reshape(117, 2).any(axis=1) == 0).tolist() == [9, 20, 21, 22, *range(51, 67), 116]


def test_the_data_are_growing_arrays_with_a_window_axis(first: Path):
    with h5py.File(first) as file:
        data = file["Data"]
        assert {name: (item.dtype, item.shape) for name, item in data.items()} == {
            "visdata": (np.dtype(np.complex64), (ROWS, 1, 4, 2)),
            "flags": (np.dtype(bool), (ROWS, 1, 4, 2)),
            "nsamples": (np.dtype(np.float32), (ROWS, 1, 4, 2)),
        }
        assert all(item.maxshape == (None, 1, 4, 2) for item in data.values())
        assert not data["flags"][:].any()
        assert np.isfinite(data["visdata"][:]).all()


def test_rows_are_time_blocks_of_lower_triangles_in_the_correlators_order(first: Path, small: tuple[Path, Truth]):
    order = [n - 1 for n in small[1].array.stations]
    pairs = [(order[i], order[j]) for j in range(5) for i in range(j + 1)]
    with h5py.File(first) as file:
        header = file["Header"]
        one, two, time = header["ant_1_array"][:], header["ant_2_array"][:], header["time_array"][:]
    assert list(zip(one.tolist(), two.tolist(), strict=True)) == pairs * 3
    assert any(a > b for a, b in pairs)
    assert [len(set(block)) for block in time.reshape(3, 15)] == [1, 1, 1]
    assert np.diff(time.reshape(3, 15)[:, 0]) * 86400 == pytest.approx(12.884901888, abs=1e-4)


def test_uvw_are_projected_for_the_meridian_and_do_not_change(first: Path):
    with h5py.File(first) as file:
        header = file["Header"]
        positions, uvw = header["antenna_positions"][:], header["uvw_array"][:]
        one, two = header["ant_1_array"][:], header["ant_2_array"][:]
        dec, lon = header["extra_keywords/phase_center_dec"][()], np.radians(header["longitude"][()])
    assert np.array_equal(uvw[:15], uvw[15:30])
    x, y, z = (positions[two] - positions[one]).T
    towards_meridian, east = x * np.cos(lon) + y * np.sin(lon), -x * np.sin(lon) + y * np.cos(lon)
    expected = [
        east,
        z * np.cos(dec) - towards_meridian * np.sin(dec),
        towards_meridian * np.cos(dec) + z * np.sin(dec),
    ]
    assert uvw == pytest.approx(np.array(expected).T, abs=2e-4)


def test_times_are_bit_identical_in_all_files_of_a_group(small: tuple[Path, Truth]):
    out, truth = small
    times = []
    for name in truth.groups[0].files:
        with h5py.File(out / name) as file:
            times.append(file["Header/time_array"][:].tobytes())
    assert len(set(times)) == 1
    assert np.frombuffer(times[0])[0] == truth.groups[0].start_jd


@pytest.mark.slow
def test_a_full_size_file_is_as_large_as_a_real_one(tmp_path: Path):
    truth = simulate_subbands(tmp_path / "out", SimulationSpec(subbands=1, sources=1))
    file = tmp_path / "out" / truth.groups[0].files[0]
    assert file.stat().st_size == pytest.approx(145_348_600, rel=0.01)
    with h5py.File(file) as opened:
        assert opened["Data/visdata"].shape == (111_744, 1, 48, 2)
        assert opened["Header/Nbls"][()] == 4656


def test_an_incomplete_name_is_no_finished_subband():
    path = Path("2025-10-02T01:02:03_sb07.hdf5")
    assert incomplete_path(path).name == "2025-10-02T01:02:03_sb07_incomplete.hdf5"
    assert SubbandName.parse(incomplete_path(path).name) is None


@pytest.fixture(scope="module")
def block() -> SubbandBlock:
    table = read_stations()
    return SubbandBlock(
        vis=np.ones((1, 3, 2, 2), np.complex64),
        times_jd=np.array([2460951.99]),
        freqs_hz=np.array([1.41e9, 1.40e9]),
        channel_width_hz=1e7,
        integration_s=12.884901888,
        ant1=np.array([4, 4, 1]),
        ant2=np.array([4, 1, 1]),
        uvw_m=np.zeros((3, 3)),
        dec_rad=0.95,
        site=OVRO_DSA110,
        positions_m=table.positions_m,
        applied_delays_ns=np.zeros(234, int),
        history="made by hand",
    )


def test_a_block_becomes_a_file_of_its_final_name_only(tmp_path: Path, block: SubbandBlock):
    out = tmp_path / "out"
    out.mkdir()
    write_subband(out / "2025-10-02T01:02:03_sb07.hdf5", block)
    assert [p.name for p in out.iterdir()] == ["2025-10-02T01:02:03_sb07.hdf5"]
    with h5py.File(out / "2025-10-02T01:02:03_sb07.hdf5") as file:
        assert file["Header/Nants_data"][()] == 2
        assert file["Header/ant_1_array"][:].tolist() == [4, 4, 1]


def test_a_full_disk_is_named_and_leaves_no_file(tmp_path: Path, block: SubbandBlock, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    out.mkdir()

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="no space left"):
        write_subband(out / "2025-10-02T01:02:03_sb07.hdf5", block)
    assert not any(out.iterdir())


def test_a_directory_that_is_not_there_is_named(tmp_path: Path, block: SubbandBlock):
    with pytest.raises(MissingError, match="no directory"):
        write_subband(tmp_path / "none" / "2025-10-02T01:02:03_sb07.hdf5", block)


def test_truth_is_read_back_as_it_was_written(small: tuple[Path, Truth]):
    out, truth = small
    assert read_truth(out) == truth
    assert read_truth(out / "truth.json") == truth


def test_truth_json_is_complete(small: tuple[Path, Truth]):
    tree = json.loads((small[0] / "truth.json").read_text())
    assert tree["version"] == 1
    assert set(tree) >= {
        "seed", "array", "sources", "beam", "groups", "gains", "bandpass", "delays_ns", "noise_jy", "conventions",
    }  # fmt: skip
    assert set(tree["sources"][0]) == {"name", "ra_deg", "dec_deg", "flux_jy", "spectral_index"}
    assert set(tree["groups"][0]) >= {"group_id", "start_jd", "files", "missing", "calibrator"}
    stations = {str(s) for s in tree["array"]["stations"]}
    assert set(tree["gains"]) == set(tree["bandpass"]) == set(tree["delays_ns"]) == stations
    assert set(next(iter(tree["gains"].values()))["XX"]) == {"amp", "phase_deg"}
    assert tree["beam"] == {"model": "dsacalib", "diameter_m": 4.65}
    assert "conj(g_j)" in tree["conventions"]["gains"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot read"), ("[]", "version list"), ('{"version": 2}', "version 2"), ('{"version": 1}', "no truth")],
)
def test_a_truth_that_is_none_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_truth(tmp_path)


def test_a_truth_that_is_not_there_is_missed(tmp_path: Path):
    with pytest.raises(MissingError, match=r"truth\.json"):
        read_truth(tmp_path)


def test_a_truth_survives_the_disk(tmp_path: Path):
    truth = plan_simulation(SimulationSpec(antennas=3, calibrator="3C48", gains=False, noise=None))
    write_truth(tmp_path, truth)
    assert read_truth(tmp_path) == truth


def test_a_source_list_is_read(tmp_path: Path):
    path = tmp_path / "sky.csv"
    path.write_text("name,ra_deg,dec_deg,flux_jy,spectral_index\nA,10.5,-3,2.5,-0.7\nB,0,1,1,\n")
    assert read_sources(path) == (SkySource("A", 10.5, -3.0, 2.5, -0.7), SkySource("B", 0.0, 1.0, 1.0, 0.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,ra_deg,dec_deg\nA,1,2\n", "no column flux_jy"),
        ("name,ra_deg,dec_deg,flux_jy\nA,1,2,bright\n", "line 2 cannot be read"),
        ("name,ra_deg,dec_deg,flux_jy\nA,1\n", "line 2 cannot be read"),
        ("name,ra_deg,dec_deg,flux_jy\nA,-1,2,1\n", "line 2 is no source"),
        ("name,ra_deg,dec_deg,flux_jy\nA,1,2,nan\n", "line 2 is no source"),
    ],
)
def test_a_source_list_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "sky.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_sources(path)


def test_a_source_list_that_is_not_there_is_missed(tmp_path: Path):
    with pytest.raises(MissingError, match="no source list"):
        read_sources(tmp_path / "none.csv")
