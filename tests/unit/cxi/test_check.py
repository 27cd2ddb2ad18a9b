"""What CrystFEL will make of a file. Its answers were tried with indexamajig 0.12.0 (see the reference page)."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest

from nightbeam.core.errors import InputError, MissingError
from nightbeam.cxi.check import check_file, files_of
from nightbeam.cxi.writing import CxiWriter
from nightbeam.geometry.files import parse_geometry, read_geometry

X, Y = "/entry_1/result_1/peakXPosRaw", "/entry_1/result_1/peakYPosRaw"
TOTAL = "/entry_1/result_1/peakTotalIntensity"


@pytest.fixture
def written(plan, geometry, make_batch):
    """A good file and the geometry beside it; no peak is near the bad spot."""

    def write(geometry=geometry, **changes):
        writer = CxiWriter(replace(plan, **changes), geometry=geometry)
        writer.submit(make_batch(images=changes.get("images", True)))
        writer.flush_final()
        return writer.files[0], read_geometry(plan.output_dir / "p.geom")

    return write


def codes(report):
    return [finding.code for finding in report.findings]


def spoilt(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replaced(name, data, **options):
    def change(file):
        del file[name]
        file.create_dataset(name, data=data, **options)

    return change


def test_a_file_of_ours_with_its_geometry_is_good(written):
    report = check_file(*written())
    assert report.findings == ()
    assert report.num_peaks == (2, 2, 2)


def test_the_master_is_good_as_well(written, plan):
    _, geometry = written()
    report = check_file(plan.output_dir / "p_master.h5", geometry)
    assert report.findings == ()
    assert report.num_peaks == (2, 2, 2)


def test_without_a_geometry_the_file_alone_is_looked_at(written):
    report = check_file(written()[0])
    assert report.findings == ()
    assert report.num_peaks == (2, 2, 2)


def test_a_geometry_without_a_list_of_peaks_finds_none(written, geometry):
    path, _ = written()
    report = check_file(path, geometry)
    assert "peak_list" in codes(report)
    assert report.num_peaks == (0, 0, 0)


def test_without_total_intensities_crystfel_silently_reads_no_peak(written):
    path, geometry = written()
    spoilt(path, lambda f: f.__delitem__("/entry_1/result_1/peakTotalIntensity"))
    report = check_file(path, geometry)
    assert codes(report) == ["peaks"]
    assert report.num_peaks == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (replaced("/entry_1/result_1/nPeaks", np.ones((3, 1), np.int32)), "nPeaks"),
        (replaced("/entry_1/result_1/nPeaks", np.array([2, 2, 9])), "peaks"),
        (replaced(X, np.zeros(6)), "peaks"),
        (replaced(X, np.zeros((3, 2)), compression="lzf"), "filter"),
        (replaced("/entry_1/data_1/data", np.zeros((40, 48))), "dims"),
        (replaced("/entry_1/data_1/data", np.zeros((3, 40, 40))), "slab"),
        (replaced("/entry_1/data_1/data", np.zeros((2, 40, 48))), "events"),
        (replaced("/entry_1/data_1/mask", np.zeros((40, 40), np.uint16)), "mask"),
        (lambda f: f.__delitem__("/entry_1/data_1/mask"), "mask"),
        (replaced("/entry_1/experiment_identifier", np.array([b"a", b"b", b"a"])), "names"),
        (replaced(X, np.array([[3.5, 60.0], [3.5, 13.0], [3.5, 13.0]])), "outside"),
        (replaced(X, np.array([[3.5, np.nan], [3.5, 13.0], [3.5, 13.0]])), "outside"),
        (replaced("/entry_1/result_1/nPeaks", np.array([-1, 2, 2])), "nPeaks"),
        (replaced("/entry_1/result_1/nPeaks", np.array([2**64 - 1, 2, 2], np.uint64)), "nPeaks"),
        (replaced("/entry_1/result_1/nPeaks", np.array([b"1", b"2", b"3"])), "nPeaks"),
        (replaced(X, np.array([[b"a", b"b"]] * 3)), "peaks"),
        (replaced(X, np.zeros((3, 2), [("a", "f4")])), "peaks"),
        (replaced(TOTAL, np.array([[1.0, 1.0], [1.0, np.nan], [1.0, 1.0]])), "peaks"),
        (replaced("/entry_1/data_1/data", np.full((3, 40, 48), b"a")), "data"),
        (replaced("/entry_1/data_1/data", np.zeros((3, 40, 48), complex)), "data"),
        (replaced("/entry_1/data_1/data", np.zeros((3, 40, 48), bool)), "data"),
        (replaced("/entry_1/data_1/mask", np.full((40, 48), b"a")), "mask"),
        (replaced("/entry_1/experiment_identifier", np.zeros(3, [("a", "f4")])), "names"),
    ],
)
def test_each_thing_that_crystfel_stumbles_over_is_found(written, change, code):
    path, geometry = written()
    assert code in codes(check_file(spoilt(path, change), geometry))


def test_a_peak_counts_for_the_panel_that_it_is_in_after_half_a_pixel_is_added(written):
    # Columns 0 to 47: -0.5 becomes 0.0, which is inside; 47.5 becomes 48.0, which is not.
    path, geometry = written()
    report = check_file(spoilt(path, replaced(X, np.array([[-0.5, 47.49], [-0.51, 13.0], [47.5, 13.0]]))), geometry)
    assert report.num_peaks == (2, 1, 1)


def test_a_peak_on_a_bad_pixel_is_found_and_still_counted(written):
    path, geometry = written()
    spoilt(path, replaced(X, np.array([[40.0, 13.0]] * 3)))
    report = check_file(spoilt(path, replaced(Y, np.array([[30.2, 4.0]] * 3))), geometry)
    assert codes(report) == ["bad pixel"]
    assert report.num_peaks == (2, 2, 2)


def test_numbers_that_the_geometry_reads_from_the_file_must_be_there_and_make_sense(written, geom_text):
    text = geom_text(clen="clen = /LCLS/detector_1/EncoderValue", energy="photon_energy = /LCLS/photon_energy_eV")
    path, geometry = written(parse_geometry(text))
    assert check_file(path, geometry).findings == ()
    spoilt(path, replaced("/LCLS/photon_energy_eV", np.array([9500.0, 0.0, 9500.0])))
    spoilt(path, lambda f: f.__delitem__("/LCLS/detector_1/EncoderValue"))
    report = check_file(path, geometry)
    assert codes(report) == ["clen", "photon_energy"]
    assert report.findings[1].event == 1


def test_lists_of_peaks_alone_are_said_to_be_no_food_for_indexamajig(written):
    report = check_file(*written(images=False))
    assert codes(report) == ["data"]


def test_filters_that_need_a_plugin_are_named(written):
    pytest.importorskip("hdf5plugin")
    report = check_file(*written(compression="bslz4"))
    assert codes(report) == ["filter"]
    assert "HDF5_PLUGIN_PATH" in report.findings[0].text


@pytest.mark.parametrize("length", [0, 100, 1000])
def test_a_file_that_is_none_or_cut_short_is_a_finding(written, length):
    path, geometry = written()
    path.write_bytes(path.read_bytes()[:length])
    assert codes(check_file(path, geometry)) == ["open"]


def test_a_missing_file_is_a_finding_of_a_list_and_an_error_by_itself(tmp_path):
    (tmp_path / "a.lst").write_text(f"{tmp_path}/gone.cxi //3\n")
    assert [codes(check_file(path)) for path in files_of(tmp_path / "a.lst")] == [["file"]]
    with pytest.raises(MissingError):
        files_of(tmp_path / "gone.cxi")
    (tmp_path / "empty.lst").write_text("\n")
    with pytest.raises(InputError):
        files_of(tmp_path / "empty.lst")


def test_a_geometry_with_an_axis_of_panels_is_said_to_be_ambiguous(written, shared_data):
    report = check_file(written()[0], read_geometry(shared_data / "geom" / "two-panels-dim2.geom"))
    assert not report.good


def test_without_counts_nothing_is_said_of_lengths_of_columns(written):
    path, _ = written(images=False)
    assert codes(check_file(spoilt(path, lambda f: f.__delitem__("/entry_1/result_1/nPeaks")))) == ["nPeaks", "data"]


def test_odd_types_do_not_hide_what_else_is_wrong(written):
    path, geometry = written()
    spoilt(path, replaced(X, np.array([[b"a", b"b"]] * 3)))
    spoilt(path, replaced("/entry_1/data_1/data", np.zeros((2, 40, 48))))
    assert codes(check_file(path, geometry)) == ["peaks", "events"]


def test_a_time_type_of_hdf5_is_a_finding_like_any_other(written):
    path, geometry = written()

    def change(file):
        del file[X]
        space = h5py.h5s.create_simple((3, 2))
        h5py.h5d.create(file["/entry_1/result_1"].id, b"peakXPosRaw", h5py.h5t.UNIX_D32LE, space)

    assert codes(check_file(spoilt(path, change), geometry)) == ["peaks"]


@pytest.mark.parametrize("name", ["clen", "photon_energy"])
@pytest.mark.parametrize(
    ("values", "good"),
    [
        ([0.0, 1.0, 1.0], False),
        ([1.0, -2.0, 1.0], False),
        ([1.0, 1.0, np.nan], False),
        ([1.0, 1.0], False),
        ([b"a", b"b", b"c"], False),
        ([1.0, 2.0, 3.0], True),
        (5.0, True),
    ],
)
def test_what_the_geometry_reads_for_each_event_is_a_number_above_0_for_each(written, geom_text, name, values, good):
    asked = geom_text(clen="clen = /LCLS/detector_1/EncoderValue", energy="photon_energy = /LCLS/photon_energy_eV")
    path, geometry = written(parse_geometry(asked))
    where = "/LCLS/detector_1/EncoderValue" if name == "clen" else "/LCLS/photon_energy_eV"
    found = codes(check_file(spoilt(path, replaced(where, np.array(values))), geometry))
    assert found == ([] if good else [name])


def test_without_a_geometry_the_numbers_are_looked_at_as_well(written):
    path, _ = written()
    spoilt(path, replaced("/LCLS/detector_1/EncoderValue", np.array([np.nan, 0.0, 5.0])))
    spoilt(path, replaced(X, np.array([[3.5, np.nan], [3.5, 13.0], [3.5, 13.0]])))
    report = check_file(path)
    assert [(f.code, f.event) for f in report.findings] == [("peaks", 0), ("clen", 1)]


@pytest.mark.parametrize("data", [1.0, np.zeros(3), np.zeros((3, 0, 0))])
def test_a_number_in_place_of_images_is_found_without_a_geometry(written, data):
    path, _ = written()
    assert codes(check_file(spoilt(path, replaced("/entry_1/data_1/data", data)))) == ["data"]


def test_a_master_whose_member_is_gone_is_not_good(written, plan):
    path, geometry = written()
    path.unlink()
    report = check_file(plan.output_dir / "p_master.h5", geometry)
    assert "member" in codes(report)
    assert path.name in next(f.text for f in report.findings if f.code == "member")


def test_a_small_file_that_says_it_has_2_to_the_28_events_is_not_believed(tmp_path):
    with h5py.File(tmp_path / "huge.cxi", "w") as file:
        file.create_dataset("/entry_1/result_1/nPeaks", (2**28,), "i1", chunks=(2**20,))
    assert codes(check_file(tmp_path / "huge.cxi")) == ["size"]
