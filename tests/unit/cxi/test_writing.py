"""What files hold, when they are written, and what is left when they cannot be."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightbeam.core.errors import ConfigError, InputError, MissingError, StorageError
from nightbeam.cxi import directory, writing
from nightbeam.cxi.files import read_chunk, read_image, summarize
from nightbeam.cxi.writing import CxiWriter
from nightbeam.geometry.files import parse_geometry, read_geometry
from nightbeam.stream.model import BatchError


def files_of(writer):
    """Return its files, oldest first: their names have the time."""
    return sorted(writer.plan.output_dir.rglob("*.cxi"), key=lambda path: path.name)


def write(plan, geometry, *batches, **options):
    writer = CxiWriter(plan, geometry=geometry, **options)
    for batch in batches:
        writer.submit(batch)
    writer.flush_final()
    return writer


def value(path, name):
    with h5py.File(path) as file:
        return file[name][...]


# -- contents -----------------------------------------------------------------------------------------------------


def test_modules_and_peaks_go_to_their_tiles_down_then_right(plan, geometry, make_batch):
    batch = make_batch(places=[(0, 2.25, 3.5), (1, 4.0, 13.0), (2, 5.0, 0.0), (3, 19.0, 23.0)])
    path = files_of(write(plan, geometry, batch))[0]
    chunk = read_chunk(path)
    assert chunk.table("peakXPosRaw", 0).tolist() == [3.5, 13.0, 24.0, 47.0]
    assert chunk.table("peakYPosRaw", 0).tolist() == [2.25, 24.0, 5.0, 39.0]
    assert chunk.table("peakSegPosRaw", 0).tolist() == [0, 1, 2, 3]
    slab = read_image(path, 1)
    image = batch.events[1].image
    assert np.array_equal(slab[20:40, 0:24], image[1])
    assert np.array_equal(slab[0:20, 24:48], image[2])


def test_without_a_geometry_modules_are_stacked_and_the_peaks_with_them(plan, make_batch):
    batch = make_batch(places=[(0, 2.25, 3.5), (3, 4.0, 13.0)])
    path = files_of(write(plan, None, batch))[0]
    chunk = read_chunk(path)
    assert chunk.slab == (80, 24)
    assert chunk.table("peakYPosRaw", 0).tolist() == [2.25, 64.0]
    assert chunk.table("peakXPosRaw", 0).tolist() == [3.5, 13.0]
    assert np.array_equal(read_image(path, 2), batch.events[2].image.reshape(80, 24))


def test_explicit_origins_leave_gaps_that_are_zero(plan, make_batch):
    batch = make_batch(places=[(1, 1.0, 2.0)])
    path = files_of(write(plan, None, batch, origins=[[0, 0], [22, 0], [44, 0], [66, 0]]))[0]
    assert not read_image(path, 0)[20:22].any()
    assert read_chunk(path).table("peakYPosRaw", 0).tolist() == [23.0]


def test_an_image_that_is_a_window_of_a_larger_panel_is_written_as_it_is_seen(plan, make_batch):
    batch = make_batch()
    wide = np.arange(4 * 30 * 30, dtype=np.float32).reshape(4, 30, 30)
    seen = wide[:, 5:25, 3:27]
    batch = replace(batch, events=(replace(batch.events[0], image=seen),))
    path = files_of(write(plan, None, batch))[0]
    assert np.array_equal(read_image(path, 0), seen.reshape(80, 24))


def test_tables_are_as_wide_as_the_widest_event_and_unused_places_are_zero(plan, make_batch):
    first = make_batch(0, events=1, places=[(0, 1.0, 1.0)])
    second = make_batch(1, events=1, places=[(0, 1.0, 1.0), (0, 3.0, 5.0), (2, 1.0, 1.0)])
    path = files_of(write(plan, None, first, second))[0]
    assert value(path, "/entry_1/result_1/peakXPosRaw").tolist() == [[1, 0, 0], [1, 5, 1]]
    assert value(path, "/entry_1/result_1/nPeaks").tolist() == [1, 3]
    assert value(path, "/entry_1/result_1/peakTotalIntensity").tolist() == [[100, 0, 0], [100, 200, 300]]


def test_an_event_without_peaks_still_has_a_place_in_the_tables(plan, make_batch):
    path = files_of(write(replace(plan, min_num_peak=0), None, make_batch(events=1, places=[])))[0]
    assert value(path, "/entry_1/result_1/peakXPosRaw").shape == (1, 1)


def test_numbers_of_the_source_have_the_units_of_their_datasets(plan, geometry, make_batch):
    path = files_of(write(plan, geometry, make_batch(events=1)))[0]
    assert value(path, "/LCLS/photon_energy_eV").tolist() == [9500.0]
    # 9500 eV x 1.602176634e-19 J/eV, by hand.
    assert value(path, "/entry_1/instrument_1/source_1/energy")[0] == pytest.approx(1.5220678023e-15, rel=1e-10)
    assert value(path, "/LCLS/photon_wavelength_A")[0] == pytest.approx(1.30509682, rel=1e-7)
    assert value(path, "/instrument/detector_1/EncoderValue").tolist() == [120.0]
    assert value(path, "/entry_1/instrument_1/detector_1/distance")[0] == pytest.approx(0.14)
    assert value(path, "/entry_1/instrument_1/detector_1/x_pixel_size")[0] == pytest.approx(1e-4)
    assert value(path, "/cxi_version") == 160


def test_an_unknown_energy_is_zero_because_crystfel_wants_a_number(plan, make_batch):
    path = files_of(write(plan, None, make_batch(events=1, photon_energy_ev=np.zeros(1))))[0]
    assert value(path, "/LCLS/photon_energy_eV").tolist() == [0.0]
    assert value(path, "/LCLS/photon_wavelength_A").tolist() == [0.0]


def test_a_time_is_kept_whole_and_in_its_halves(plan, make_batch):
    path = files_of(write(plan, None, make_batch(events=2)))[0]
    assert value(path, "/LCLS/detector_1/timestamp").tolist() == [(1_700_000_000 << 32) | 1000,
                                                                  (1_700_000_000 << 32) | 1001]  # fmt: skip
    assert value(path, "/LCLS/machineTime").tolist() == [1_700_000_000] * 2
    assert value(path, "/LCLS/machineTimeNanoSeconds").tolist() == [1000, 1001]
    # date -u -d @1700000000
    assert value(path, "/LCLS/eventTimeString")[0] == b"Tue Nov 14 22:13:20 2023"
    assert value(path, "/entry_1/experiment_identifier").tolist() == [b"1700000000-1000-0", b"1700000000-1001-0"]


def test_events_without_a_time_are_named_by_their_batch_and_no_two_alike(plan, make_batch):
    none = make_batch(events=2, timestamps=np.zeros(2, np.uint64))
    path = files_of(write(plan, None, none, none))[0]
    assert value(path, "/entry_1/experiment_identifier").tolist() == [b"batch_0-0", b"batch_0-1", b"batch_0-0-2",
                                                                      b"batch_0-1-2"]  # fmt: skip
    with h5py.File(path) as file:
        assert "timestamp" not in file["/LCLS/detector_1"]


def test_the_radius_of_a_peak_is_its_distance_from_the_beam(plan, geometry, make_batch):
    # Module 3, second half: corner x = 36 - 24 + 3 = 15, y = 20 - 20 - 3 = -3; the peak at fs 44.0, ss 24.0 of the slab
    # is 8.5 px along x and 4.5 px along -y from that corner.
    path = files_of(write(plan, geometry, make_batch(events=1, places=[(3, 4.0, 20.0)])))[0]
    assert value(path, "/entry_1/result_1/peakRadius")[0, 0] == pytest.approx(np.hypot(23.5, 7.5), rel=1e-6)


def test_the_mask_has_the_bad_pixels_of_the_geometry_and_of_the_user(plan, geometry, make_batch):
    own = np.zeros((4, 20, 24), np.uint8)
    own[2, 0, 1] = 1
    path = files_of(write(plan, geometry, make_batch(events=2), mask=own))[0]
    mask = value(path, "/entry_1/data_1/mask")
    assert mask.shape == (2, 40, 48)
    assert mask.dtype == np.uint16
    assert np.argwhere(mask[1]).tolist() == [[0, 25], [30, 40], [30, 41]]


def test_without_cheetah_there_is_one_mask_for_all(plan, geometry, make_batch):
    path = files_of(write(replace(plan, compat=()), geometry, make_batch(events=2)))[0]
    assert value(path, "/entry_1/data_1/mask").shape == (40, 48)
    with h5py.File(path) as file:
        assert "peakMaximumValue" not in file["/entry_1/result_1"]


def test_psocake_gets_its_boxes_and_its_misspelt_names(plan, make_batch):
    path = files_of(write(replace(plan, compat=("psocake",)), None, make_batch(events=1, places=[(1, 4.0, 13.0)])))[0]
    assert value(path, "/entry_1/experimental_identifier").tolist() == [0]
    assert [float(value(path, f"/entry_1/result_1/{n}")[0, 0]) for n in ("rcent", "ccent", "rmin", "cmax")] == [
        4.0, 13.0, 4.0, 13.0]  # fmt: skip


def test_powders_are_the_brightest_of_all_hits_and_of_all_misses_so_far(plan, make_batch):
    first, second = make_batch(0, hits=[0, 2]), make_batch(1, hits=[1])
    writer = write(replace(plan, buffer_size=2), None, first, second)
    hits = np.maximum.reduce([e.image for b in (first, second) for e in b.events])
    misses = np.maximum.reduce([m for b in (first, second) for m in b.misses])
    last = files_of(writer)[-1]
    assert np.array_equal(value(last, "/entry_1/data_1/powderHits"), hits.reshape(80, 24))
    assert np.array_equal(value(last, "/entry_1/data_1/powderMisses"), misses.reshape(80, 24))


def test_copied_and_static_metadata_are_in_the_file(plan, make_batch):
    copied = {"laser": np.array([1.5, 2.5]), "note": np.array(["a", "b"], object)}
    first = make_batch(0, events=2, copied=copied)
    path = files_of(write(replace(plan, static={"operator": "me", "dose": 3.5}), None, first, make_batch(1, events=2)))[
        0
    ]
    assert value(path, "/LCLS/laser").tolist()[:2] == [1.5, 2.5]
    assert np.isnan(value(path, "/LCLS/laser")[2:]).all()
    assert value(path, "/LCLS/note").tolist() == [b"a", b"b", b"", b""]
    with h5py.File(path) as file:
        assert file["/entry_1/static/operator"].asstr()[()] == "me"
        assert file["/entry_1/static/dose"][()] == 3.5


def test_metadata_cannot_take_the_place_of_what_crystfel_reads(plan, make_batch):
    writer = CxiWriter(plan, geometry=None)
    with pytest.raises(ConfigError, match="photon_energy_eV"):
        writer.submit(make_batch(copied={"photon_energy_eV": np.zeros(3)}))
    assert writer.get_statistics()["buffer_size"] == 0


def test_a_file_says_where_it_comes_from(plan, geometry, make_batch):
    path = files_of(
        write(replace(plan, config_sha256="abc"), geometry, make_batch(0, hits=[1]), make_batch(1, hits=[]))
    )[0]
    with h5py.File(path) as file:
        said = dict(file.attrs)
    assert said["software"] == "nightbeam"
    assert said["config_sha256"] == "abc"
    assert said["geometry_file"] == "small.geom"
    assert said["num_events"] == 1
    assert json.loads(said["batch_ids"]) == ["batch_0"]
    assert json.loads(said["batches"]) == [
        {"batch_id": "batch_0", "producer": "gpu0", "sequence": 0, "first_event": 0, "events": 3,
         "time": (1_700_000_000 << 32) | 1000, "hits": 1, "written": 1},
        {"batch_id": "batch_1", "producer": "gpu0", "sequence": 1, "first_event": 3, "events": 3,
         "time": (1_700_000_001 << 32) | 1000, "hits": 0, "written": 0},
    ]  # fmt: skip


def test_many_batches_without_a_hit_still_fit_the_files_attribute(plan, make_batch):
    empty = [make_batch(n, events=1, hits=[]) for n in range(1500)]
    path = files_of(write(plan, None, *empty, make_batch(1500, events=1)))[0]
    assert len(read_chunk(path).attributes["batches"]) == 1501


def test_intensities_of_the_networks_input_are_marked_unless_undone(plan, make_batch):
    raw = files_of(write(plan, None, make_batch(events=1)))[0]
    undone = files_of(write(plan, None, make_batch(events=1, mean=np.zeros(4), std=np.ones(4))))[-1]
    marks = []
    for path in (raw, undone):
        with h5py.File(path) as file:
            marks.append(file["/entry_1/data_1/data"].attrs["intensity_scale"])
    assert marks == ["network_input", "detector"]


def test_lists_of_peaks_alone_hold_no_pixels(plan, geometry, make_batch):
    path = files_of(write(replace(plan, images=False), geometry, make_batch(images=False)))[0]
    with h5py.File(path) as file:
        assert "data_1" not in file["/entry_1"]
    assert read_chunk(path).slab is None


def test_segmentation_maps_lie_on_the_slab(plan, geometry, make_batch):
    batch = make_batch(events=1)
    maps = np.zeros((4, 20, 24), bool)
    maps[2, 3, 4] = True
    batch = replace(batch, events=(replace(batch.events[0], segmentation=maps),))
    path = files_of(write(replace(plan, save_segmentation_maps=True), geometry, batch))[0]
    assert np.argwhere(value(path, "/entry_1/result_1/segmentation_map")).tolist() == [[0, 3, 28]]


# -- types and compression ----------------------------------------------------------------------------------------


def test_what_a_smaller_type_cannot_hold_is_clipped_rounded_and_counted(plan, make_batch):
    batch = make_batch(events=1)
    image = np.zeros((4, 20, 24), np.float32)
    image[0, 0, :5] = [-3.0, 70000.0, 2.5, 3.5, np.nan]
    batch = replace(batch, events=(replace(batch.events[0], image=image),))
    writer = write(replace(plan, dtype="uint16"), None, batch)
    assert read_image(files_of(writer)[0], 0)[0, :5].tolist() == [0, 65535, 2, 4, 0]
    said = writer.get_statistics()
    assert (said["pixels_clipped"], said["pixels_rounded"], said["pixels_not_finite"]) == (2, 2, 1)


def test_a_half_float_keeps_nan_and_is_clipped_at_its_largest(plan, make_batch):
    batch = make_batch(events=1)
    image = np.zeros((4, 20, 24), np.float32)
    image[0, 0, :3] = [1e6, np.nan, 1.0001]
    batch = replace(batch, events=(replace(batch.events[0], image=image),))
    writer = write(replace(plan, dtype="float16"), None, batch)
    read = read_image(files_of(writer)[0], 0)[0, :3].astype(float)
    assert read[0] == 65504.0
    assert np.isnan(read[1])
    said = writer.get_statistics()
    assert (said["pixels_clipped"], said["pixels_rounded"], said["pixels_not_finite"]) == (1, 1, 1)


@pytest.mark.parametrize("compression", ["gzip-1", "bslz4", "bszstd", "zstd"])
def test_compressed_images_read_back_as_they_were(plan, make_batch, compression):
    if compression != "gzip-1":
        pytest.importorskip("hdf5plugin")
    batch = make_batch()
    path = files_of(write(replace(plan, compression=compression), None, batch))[0]
    assert np.array_equal(read_image(path, 1), batch.events[1].image.reshape(80, 24))
    assert summarize(path).compression != "none"


# -- when ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 7))
def test_files_are_exactly_full_and_events_keep_their_order(tmp_path_factory, make_batch, sizes, most):
    from nightbeam.cxi.model import OutputPlan

    plan = OutputPlan(output_dir=tmp_path_factory.mktemp("o"), buffer_size=most, images=False, master=False)
    batches = [make_batch(n, events=5, hits=list(range(size)), images=False) for n, size in enumerate(sizes)]
    writer = write(plan, None, *batches)
    counts = [len(read_chunk(path).n_peaks) for path in files_of(writer)]
    assert counts == [most] * (sum(sizes) // most) + ([sum(sizes) % most] if sum(sizes) % most else [])
    numbers = [n for path in files_of(writer) for n in value(path, "/LCLS/eventNumber").tolist()]
    assert numbers == [5 * b + n for b, size in enumerate(sizes) for n in range(size)]
    said = writer.get_statistics()
    assert said["total_events_written"] + said["total_events_filtered"] == said["events_received"]


def test_a_file_ends_after_so_many_batches_even_if_it_is_not_full(plan, make_batch):
    writer = CxiWriter(replace(plan, buffer_size=100, batches_per_file=2), geometry=None)
    for n in range(3):
        writer.submit(make_batch(n, hits=[0]))
    assert [len(read_chunk(p).n_peaks) for p in files_of(writer)] == [2]
    assert writer.get_statistics()["buffer_size"] == 1


def test_a_file_ends_after_the_interval_by_the_callers_clock(plan, make_batch):
    writer = CxiWriter(replace(plan, flush_interval_s=10.0), geometry=None)
    writer.tick(0.0)
    writer.submit(make_batch(hits=[0]))
    for now in (5.0, 14.9):
        writer.tick(now)
    assert files_of(writer) == []
    writer.tick(15.0)
    assert len(files_of(writer)) == 1


def test_no_file_is_written_where_nothing_passed(plan, make_batch):
    writer = write(plan, None, make_batch(hits=[]))
    assert [p for p in plan.output_dir.iterdir() if p.suffix in (".cxi", ".lst", ".h5")] == []
    assert writer.get_statistics()["total_events_filtered"] == 3


def test_a_change_of_run_ends_the_file_and_begins_a_directory(plan, make_batch):
    kept_apart = replace(plan, per_run=True, buffer_size=100)
    writer = write(kept_apart, None, make_batch(0, run=7), make_batch(1, run=7), make_batch(2, run=8))
    assert [p.parent.name for p in files_of(writer)] == ["r0007", "r0008"]
    assert [len(read_chunk(p).n_peaks) for p in files_of(writer)] == [6, 3]
    assert (plan.output_dir / "r0007" / "p_r0007_master.h5").exists()


def test_an_image_of_a_batch_with_few_hits_does_not_keep_the_whole_batch(plan, make_batch):
    writer = CxiWriter(plan, geometry=None)
    sparse, dense = make_batch(0, hits=[1]), make_batch(1, hits=[0, 1])
    writer.submit(sparse)
    writer.submit(dense)
    held = [event.image for event in writer._chunks[-1].events]
    assert not np.shares_memory(held[0], sparse.events[0].image)
    assert np.shares_memory(held[1], dense.events[0].image)


# -- what is refused ----------------------------------------------------------------------------------------------


def test_a_batch_of_another_shape_is_refused_and_nothing_of_it_is_taken(plan, make_batch):
    writer = CxiWriter(plan, geometry=None)
    writer.submit(make_batch(0, hits=[0]))
    with pytest.raises(BatchError) as caught:
        writer.submit(make_batch(1, shape=(2, 20, 24), places=[]))
    assert caught.value.reason == "bad shape"
    assert writer.get_statistics()["batches_received"] == 1


def test_an_event_without_its_image_is_refused(plan, make_batch):
    with pytest.raises(BatchError, match="no image"):
        CxiWriter(plan, geometry=None).submit(make_batch(images=False))


def test_a_batch_that_is_in_a_file_already_is_refused(plan, make_batch):
    with pytest.raises(BatchError) as caught:
        CxiWriter(plan, geometry=None, batches_seen={"batch_3"}).submit(make_batch(3))
    assert caught.value.reason == "duplicate"


def test_a_shape_that_does_not_tile_the_geometry_is_an_error(plan, geometry, make_batch):
    with pytest.raises(InputError, match=r"small\.geom"):
        CxiWriter(plan, geometry=geometry).submit(make_batch(shape=(4, 19, 24), places=[]))


def test_a_camera_length_that_the_geometry_reads_from_the_file_must_be_known(plan, geom_text, make_batch):
    geometry = parse_geometry(geom_text(clen="clen = /LCLS/detector_1/EncoderValue"), source="g.geom")
    writer = CxiWriter(plan, geometry=geometry)
    with pytest.raises(ConfigError, match="camera length") as caught:
        writer.submit(make_batch(clen_mm=np.full(3, np.nan)))
    assert "instrument.camera_length_mm" in caught.value.fix


def test_an_unknown_camera_length_is_left_out_where_the_geometry_has_its_own(plan, geometry, make_batch):
    path = files_of(write(plan, geometry, make_batch(clen_mm=np.full(3, np.nan))))[0]
    with h5py.File(path) as file:
        assert "EncoderValue" not in file["/LCLS"].get("detector_1", {})
    assert read_geometry(plan.output_dir / "p.geom").clen.base == 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"file_prefix": "a/b"},
        {"file_prefix": ".hidden"},
        {"name_template": "{prefix}"},
        {"name_template": "{prefix}_{chunk}_{nothing}"},
        {"name_template": "../{chunk}"},
        {"name_template": "{chunk:>9}"},
        {"name_template": "{chunk"},
        {"name_template": "x" * 300 + "{chunk}"},
        {"compression": "lzf"},
        {"buffer_size": 0},
        {"static": {"a/b": 1}},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_before_anything_is_made(plan, wrong):
    with pytest.raises(ConfigError):
        CxiWriter(replace(plan, **wrong), geometry=None)
    assert not plan.output_dir.exists()


def test_a_missing_directory_is_an_error_where_it_is_not_to_be_made(plan):
    with pytest.raises(MissingError, match="out"):
        CxiWriter(replace(plan, create_output_dir=False), geometry=None)


def test_a_geometry_with_an_axis_of_panels_is_refused(plan, shared_data):
    with pytest.raises(InputError, match="dim2"):
        CxiWriter(plan, geometry=read_geometry(shared_data / "geom" / "two-panels-dim2.geom"))


# -- when the disk fails ------------------------------------------------------------------------------------------


def test_a_write_that_fails_once_is_tried_again(plan, make_batch, monkeypatch):
    whole, failed = writing.write_chunk, []

    def once(path, *args, **kwargs):
        if not failed:
            failed.append(path)
            raise StorageError("no space left")
        whole(path, *args, **kwargs)

    monkeypatch.setattr(writing, "write_chunk", once)
    writer = write(plan, None, make_batch())
    assert len(files_of(writer)) == 1
    assert writer.get_statistics()["write_failures"] == 1


def test_events_stay_in_memory_while_the_disk_fails_and_are_written_when_it_does_not(plan, make_batch, monkeypatch):
    def never(path, *args, **kwargs):
        path.write_bytes(b"half")
        raise StorageError("no space left")

    writer = CxiWriter(replace(plan, buffer_size=2), geometry=None)
    with monkeypatch.context() as patched:
        patched.setattr(writing, "write_chunk", never)
        with pytest.raises(StorageError, match="3 events are kept"):
            writer.submit(make_batch())
    assert list(plan.output_dir.iterdir()) == []
    assert writer.get_statistics()["buffer_size"] == 3
    writer.flush_final()
    assert [len(read_chunk(p).n_peaks) for p in files_of(writer)] == [2, 1]
    assert writer.get_statistics()["total_events_written"] == 3


def test_no_file_is_begun_where_it_cannot_fit(plan, make_batch, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 999, 1))
    writer = CxiWriter(plan, geometry=None)
    writer.submit(make_batch())
    with pytest.raises(StorageError, match="are free"):
        writer.flush_final()
    assert list(plan.output_dir.iterdir()) == []


def test_the_callback_hears_of_each_file(plan, make_batch):
    heard = []
    write(plan, None, make_batch(0), make_batch(1), on_written=heard.append)
    assert [(one.events, one.peaks) for one in heard] == [(4, 8), (2, 4)]
    assert [record["batch_id"] for record in heard[1].batches] == ["batch_1"]


def test_a_file_that_is_moved_at_once_is_written_once_and_counted(plan, make_batch, monkeypatch):
    away = plan.output_dir.parent / "away"
    away.mkdir()
    publish = directory._publish

    def move(part, path):
        done = publish(part, path)
        done.rename(away / done.name)
        return done

    monkeypatch.setattr(directory, "_publish", move)
    writer = write(plan, None, make_batch(0), make_batch(1))
    said = writer.get_statistics()
    assert (said["total_events_written"], said["chunks_written"], said["write_failures"]) == (6, 2, 0)
    assert [len(read_chunk(p).n_peaks) for p in sorted(away.iterdir())] == [4, 2]
    assert said["bytes_written"] == sum(p.stat().st_size for p in away.iterdir())


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ESTALE])
def test_events_are_written_once_although_the_list_fails_and_the_list_is_mended(plan, make_batch, monkeypatch, number):
    def fail(handle, data):
        raise OSError(number, os.strerror(number))

    writer = CxiWriter(plan, geometry=None)
    with monkeypatch.context() as patched:
        patched.setattr(directory, "_write_all", fail)
        writer.submit(make_batch(0, events=4))
    writer.submit(make_batch(1, events=4))
    assert writer.get_statistics()["total_events_written"] == 8
    assert (plan.output_dir / "p.lst").read_text().splitlines() == [str(p) for p in files_of(writer)]


def test_events_are_kept_while_their_directory_is_gone(plan, make_batch):
    writer = CxiWriter(plan, geometry=None)
    plan.output_dir.rename(plan.output_dir.with_name("away"))
    with pytest.raises(StorageError, match="4 events are kept"):
        writer.submit(make_batch(0, events=4))
    plan.output_dir.mkdir()
    writer.flush_final()
    assert writer.get_statistics()["total_events_written"] == 4


def test_a_file_with_events_of_two_runs_names_none_of_them(plan, make_batch):
    first, second = make_batch(0, run=1), make_batch(1, run=2)
    mixed, plain = files_of(write(plan, None, first, second))
    with h5py.File(mixed) as file:
        assert "run" not in file.attrs
    with h5py.File(plain) as file:
        assert file.attrs["run"] == 2
