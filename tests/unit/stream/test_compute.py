from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.peaks.model import Window
from nightbeam.stream.compute import check_arrays, describe, detector_images, is_end, needs_arrays, producer_of
from nightbeam.stream.model import BatchError, MessageDefaults, PipelineOutput, PreprocessingMetadata

REF = object()  # stands for a reference; nothing here may look into it
SHAPES = PreprocessingMetadata((3, 2, 5, 7), (6, 1, 8, 10))


NONE = MessageDefaults()


def message(metadata=None, shapes=SHAPES, **more):
    given = {"predictions_ref": REF, "original_image_ref": REF, "batch_id": "b"} | more
    return PipelineOutput(metadata=metadata or {}, preprocessing_metadata=shapes, **given)


def header(metadata=None, shapes=SHAPES, defaults=NONE, **more):
    return describe(message(metadata, shapes, **more), defaults)


def reason(*args, **kwargs):
    with pytest.raises(BatchError) as caught:
        header(*args, **kwargs)
    return caught.value.reason


# -- shapes -------------------------------------------------------------------------------------------------------


def test_shapes_are_those_of_the_message():
    found = header()
    assert (found.n_events, found.n_panels) == (3, 2)
    assert (found.panel_shape, found.network_shape) == ((5, 7), (8, 10))
    assert found.window == Window(0, 0, 5, 7)


def test_any_object_with_the_attributes_is_a_message():
    other = SimpleNamespace(
        predictions=None,
        predictions_ref=REF,
        metadata={"producer_id": 7},
        batch_id="b",
        original_image_ref=REF,
        preprocessing_metadata=SimpleNamespace(
            original_shape=torch.Size([1, 2, 3, 4]),
            preprocessed_shape=np.array([2, 1, 4, 4]),
        ),
    )
    found = describe(other, MessageDefaults())
    assert (found.n_events, found.n_panels, found.producer) == (1, 2, "7")


def test_sizes_may_be_of_numpy():
    shapes = PreprocessingMetadata(tuple(np.int32(n) for n in (3, 2, 5, 7)), tuple(np.int64(n) for n in (6, 1, 8, 10)))
    assert header(shapes=shapes).n_events == 3


@pytest.mark.parametrize(
    ("before", "after", "window"),
    [
        ((5, 7), (8, 10), Window(1, 1, 5, 7)),  # 3 and 3 to spare: 1 above, 2 below
        ((5, 7), (9, 7), Window(2, 0, 5, 7)),
        ((352, 384), (512, 512), Window(80, 64, 352, 384)),
        ((4, 4), (4, 4), Window(0, 0, 4, 4)),
    ],
)
def test_the_odd_pixel_of_centre_padding_is_at_the_bottom_and_the_right(before, after, window):
    shapes = PreprocessingMetadata((1, 1, *before), (1, 1, *after))
    assert header({"pad_style": "center"}, shapes).window == window
    assert header({"pad_style": "bottom-right"}, shapes).window == Window(0, 0, *before)


def test_the_message_knows_better_than_the_configuration_how_it_is_padded():
    centred = MessageDefaults(pad_style="center")
    assert header(defaults=centred).window.top == 1
    assert header({"pad_style": "bottom-right"}, defaults=centred).window.top == 0


@pytest.mark.parametrize(
    ("original", "preprocessed", "word"),
    [
        ((3, 2, 9, 7), (6, 1, 8, 10), "bad shape"),  # the network's panel is smaller
        ((3, 2, 5, 7), (7, 1, 8, 10), "bad shape"),
        ((3, 2, 5, 7), (6, 2, 8, 10), "bad shape"),
        ((-3, 2, 5, 7), (6, 1, 8, 10), "malformed"),
        ((0, 2, 5, 7), (0, 1, 8, 10), "malformed"),
        ((3, 2, 5), (6, 1, 8, 10), "malformed"),
        (("3", "2", "5", "7"), (6, 1, 8, 10), "malformed"),
        ((3.0, 2, 5, 7), (6, 1, 8, 10), "malformed"),
        ((True, 2, 5, 7), (2, 1, 8, 10), "malformed"),
        ("3257", (6, 1, 8, 10), "malformed"),
        (None, (6, 1, 8, 10), "malformed"),
        (1234, (6, 1, 8, 10), "malformed"),
        ((3, 2, 5, 7), (6, 1, 8, 1 << 40), "malformed"),
        ((1 << 70, 1, 5, 7), (1 << 70, 1, 8, 10), "malformed"),
    ],
)
def test_hostile_shapes_are_the_fault_of_the_batch(original, preprocessed, word):
    assert reason(shapes=PreprocessingMetadata(original, preprocessed)) == word


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "timestamp",
    "photon_wavelength",
    "photon_energy",
    "photon_energies",
    "encoder_value",
    "sequence",
    "event_index",
]
KEYS += ["pad_style", "run", "experiment", "normalization", "prediction_form", "producer_id", "other"]


@pytest.mark.slow
@given(anything, anything, st.dictionaries(st.sampled_from(KEYS), anything), anything)
def test_whatever_a_message_says_the_answer_is_a_header_or_the_fault_of_the_batch(original, after, metadata, batch_id):
    odd = SimpleNamespace(
        predictions=None,
        predictions_ref=REF,
        original_image_ref=REF,
        metadata=metadata,
        batch_id=batch_id,
        preprocessing_metadata=PreprocessingMetadata(original, after),
    )
    for shapes in (odd.preprocessing_metadata, SHAPES):
        odd.preprocessing_metadata = shapes
        try:
            found = describe(odd, MessageDefaults(copy=("other",)))
        except BatchError:
            continue
        assert len(found.timestamps) == len(found.photon_energy_ev) == len(found.clen_mm) == 3
        assert np.isfinite(found.photon_energy_ev).all()


@pytest.mark.parametrize("odd", [None, "text", 7, {}, object(), SimpleNamespace(metadata=[1])])
def test_what_is_no_message_is_the_fault_of_the_batch(odd):
    assert is_end(odd) is None
    with pytest.raises(BatchError):
        describe(odd, MessageDefaults())


# -- incomplete messages ------------------------------------------------------------------------------------------


def test_without_shapes_nobody_guesses_how_many_panels_an_event_has():
    assert needs_arrays(message(shapes=None))
    with pytest.raises(BatchError) as caught:
        describe(message(shapes=None), MessageDefaults(), shape=(6, 2, 8, 10))
    assert caught.value.reason == "no shape"
    assert "detector.num_panels" in caught.value.fix


def test_without_shapes_those_of_the_configuration_are_taken():
    known = MessageDefaults(num_panels=2, panel_shape=(5, 7))
    found = describe(message(shapes=None), known, shape=(6, 2, 8, 10))
    assert (found.n_events, found.panel_shape, found.network_shape) == (3, (5, 7), (8, 10))
    found = describe(message(shapes=None), known, rows=6)
    assert (found.n_events, found.network_shape) == (3, (5, 7))


def test_a_tensor_that_came_with_the_message_tells_its_shape():
    direct = message(shapes=None, predictions=torch.zeros(6, 2, 8, 10), predictions_ref=None)
    assert not needs_arrays(direct)
    assert describe(direct, MessageDefaults(num_panels=2)).panel_shape == (8, 10)


@pytest.mark.parametrize("known", [MessageDefaults(num_panels=2), MessageDefaults(num_panels=4, panel_shape=(5, 7))])
def test_what_does_not_suffice_is_no_shape(known):
    with pytest.raises(BatchError) as caught:
        describe(message(shapes=None), known, rows=6)
    assert caught.value.reason == "no shape"


def test_a_batch_without_image_is_refused_unless_none_is_wanted():
    assert reason(original_image_ref=None) == "no image"
    assert header(original_image_ref=None, defaults=MessageDefaults(images=False)).image_kind == "none"


def test_calibrated_images_are_preferred():
    assert header({"calibrated_image_ref": REF}).image_kind == "calibrated"
    assert header().image_kind == "network_input"


def test_predictions_must_be_there_once():
    odd = SimpleNamespace(**{name: getattr(message(), name) for name in PipelineOutput.__slots__})
    odd.predictions = REF
    with pytest.raises(BatchError, match="both"):
        describe(odd, MessageDefaults())


# -- metadata -----------------------------------------------------------------------------------------------------

THREE = [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    "form",
    [THREE, tuple(THREE), np.array(THREE), np.array(THREE)[:, None], np.array([THREE], "f4"), torch.tensor(THREE)],
)
def test_a_value_for_each_event_may_come_in_any_form(form):
    assert header({"encoder_value": form}).clen_mm.tolist() == THREE


@pytest.mark.parametrize("form", [5, 5.0, np.float32(5), np.array(5), np.int64(5)])
def test_a_scalar_is_for_all_events(form):
    assert header({"photon_energy": form}).photon_energy_ev.tolist() == [5.0] * 3


@pytest.mark.parametrize("key", ["timestamp", "photon_wavelength", "photon_energy", "photon_energies", "encoder_value"])
@pytest.mark.parametrize("short", [[1], [1, 2], []])
def test_fewer_values_than_events_are_an_error_of_the_batch(key, short):
    assert reason({key: short}) == "short metadata"


def test_more_values_than_events_are_one_too():
    assert reason({"photon_energy": [1.0] * 4}) == "malformed"


def test_energy_follows_from_the_wavelength_which_wins():
    # 12398.4198 eV Å, as the document of the format has it
    found = header({"photon_wavelength": [1.0, 2.0, 1.3], "photon_energy": 1.0})
    assert found.photon_energy_ev == pytest.approx([12398.4198, 6199.2099, 9537.2460], rel=1e-6)
    assert found.warnings == ()


@pytest.mark.parametrize("odd", [0.0, -1.0, float("nan"), float("inf"), 1e-320])
def test_a_wavelength_of_no_photon_is_energy_0_and_said(odd):
    found = header({"photon_wavelength": [1.0, odd, 1.0]})
    assert found.photon_energy_ev[1] == 0.0
    assert "1 events" in found.warnings[0]


def test_energies_of_a_random_source_and_of_the_configuration_come_last():
    known = MessageDefaults(photon_energy_ev=9000.0, clen_mm=120.0)
    assert header({"photon_energies": [1, 2, 3]}, defaults=known).photon_energy_ev.tolist() == [1, 2, 3]
    assert header(defaults=known).photon_energy_ev.tolist() == [9000.0] * 3
    assert header(defaults=known).clen_mm.tolist() == [120.0] * 3
    assert np.isnan(header().clen_mm).all()


def test_what_is_no_number_is_left_out_and_said():
    class Odd:
        def __array__(self, *args, **kwargs):
            raise RuntimeError("no")

    for odd in (Odd(), "text", ["a", "b", "c"], object(), {"a": 1}, [[1], [1, 2]]):
        found = header({"photon_energy": odd})
        assert found.photon_energy_ev.tolist() == [0.0] * 3
        assert found.warnings == ("photon_energy is no number",)


def test_none_among_numbers_is_not_known():
    assert header({"photon_energy": [1.0, None, 3.0]}).photon_energy_ev.tolist() == [1.0, 0.0, 3.0]


STAMP = (1_700_000_000 << 32) | 999_999_999


@pytest.mark.parametrize(
    "form", [[STAMP] * 3, np.full(3, STAMP, np.uint64), np.full((3, 1), STAMP), STAMP, np.uint64(STAMP)]
)
def test_a_time_keeps_all_its_bits(form):
    found = header({"timestamp": form})
    assert found.timestamps.dtype == np.uint64
    assert found.timestamps.tolist() == [STAMP] * 3
    assert found.wall_clock_s is None


def test_times_above_63_bits_and_small_ones_together_keep_their_bits():
    assert header({"timestamp": [2**63 + 1, 1, 0]}).timestamps.tolist() == [2**63 + 1, 1, 0]


def test_a_single_float_is_the_clock_of_the_producer():
    found = header({"timestamp": 1_700_000_000.25})
    assert found.wall_clock_s == 1_700_000_000.25
    assert found.timestamps.tolist() == [0, 0, 0]
    assert header({"timestamp": float("nan")}).wall_clock_s is None


def test_floats_for_each_event_are_what_they_can_be():
    assert header({"timestamp": [1.7e9] * 3}).wall_clock_s == 1.7e9
    packed = header({"timestamp": [float(1_700_000_000 << 32)] * 3})
    assert packed.timestamps.tolist() == [1_700_000_000 << 32] * 3
    assert packed.warnings


def test_a_time_below_0_is_unknown():
    assert header({"timestamp": [-1, 5, 6]}).timestamps.tolist() == [0, 5, 6]


def test_running_numbers_run_and_experiment():
    found = header({"sequence": np.int64(4), "event_index": 12, "run": "r0042", "experiment": "mfxl1033223"})
    assert (found.sequence, found.first_event, found.run, found.experiment) == (4, 12, 42, "mfxl1033223")


@pytest.mark.parametrize(
    ("key", "odd"),
    [("sequence", -1), ("sequence", "4"), ("sequence", True), ("sequence", 2**70), ("run", -3), ("run", "r1/2"),
     ("experiment", "../up"), ("experiment", 7), ("experiment", "a" * 65), ("event_index", [1, 2])],
)  # fmt: skip
def test_odd_numbers_and_names_are_left_out_and_said(key, odd):
    found = header({key: odd})
    assert {"sequence": found.sequence, "event_index": found.first_event, "run": found.run}.get(key) is None
    assert found.experiment is None
    assert found.warnings[0].startswith(key)


def test_an_unknown_padding_or_form_is_an_error_of_the_batch():
    assert reason({"pad_style": "top-left"}) == "malformed"
    assert reason({"prediction_form": "softmax"}) == "malformed"
    assert header({"prediction_form": "bits"}).form == "bits"


def test_metadata_are_copied_one_value_for_each_event():
    wanted = MessageDefaults(copy=("a", "b", "c", "d", "e", "not there"))
    values = {"a": [1, 2, 3], "b": "ring", "c": np.zeros((3, 2)), "d": [1, 2], "e": object()}
    found = header(values, defaults=wanted)
    assert {key: value.shape for key, value in found.copied.items()} == {"a": (3,), "b": (3,), "c": (3, 2)}
    assert len(found.warnings) == 2


def test_normalisation_is_for_each_row_or_for_all():
    found = header({"normalization": {"mean": 2.0, "std": np.arange(1.0, 7.0)}})
    assert found.mean.tolist() == [2.0] * 6
    assert found.std.tolist() == [1, 2, 3, 4, 5, 6]
    assert reason({"normalization": {"mean": 0.0, "std": [1.0] * 3}}) == "short metadata"
    assert reason({"normalization": {"mean": 0.0}}) == "malformed"
    assert reason({"normalization": {"mean": np.nan, "std": 1}}) == "malformed"


# -- arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [(6, 1, 8, 10), (6, 8, 10)])
def test_arrays_as_announced_are_accepted(form):
    check_arrays(header(), (6, 2, 8, 10), form)


@pytest.mark.parametrize(
    ("predictions", "images"),
    [
        ((6, 3, 8, 10), (6, 1, 8, 10)),
        ((5, 2, 8, 10), (6, 1, 8, 10)),
        ((6, 2, 8, 10), (3, 2, 8, 10)),
        ((6, 2, 8, 10), (6, 1, 5, 7)),
        ((), (6, 1, 8, 10)),
    ],
)
def test_arrays_of_other_shapes_are_refused(predictions, images):
    with pytest.raises(BatchError) as caught:
        check_arrays(header(), predictions, images)
    assert caught.value.reason == "bad shape"


def test_compact_forms_have_shapes_of_their_own():
    check_arrays(header({"prediction_form": "bits"}), (6, 8, 2), (6, 8, 10))
    check_arrays(header({"prediction_form": "pixels"}), (0, 3), (6, 8, 10))
    with pytest.raises(BatchError):
        check_arrays(header({"prediction_form": "pixels"}), (4, 2), (6, 8, 10))


def test_an_image_that_was_announced_must_be_there():
    with pytest.raises(BatchError) as caught:
        check_arrays(header(), (6, 2, 8, 10), None)
    assert caught.value.reason == "no image"


def test_the_padding_is_cut_off_without_a_copy():
    images = np.arange(6 * 80).reshape(6, 1, 8, 10)
    seen = detector_images(header({"pad_style": "center"}), images)
    assert np.shares_memory(seen, images)
    assert np.array_equal(seen, images[:, 0, 1:6, 1:8])


@pytest.mark.parametrize("form", [(3, 2, 5, 7), (6, 5, 7), (6, 1, 5, 7)])
def test_calibrated_images_may_have_no_padding(form):
    images = np.arange(210).reshape(form)
    found = detector_images(header({"calibrated_image_ref": REF}), images)
    assert np.array_equal(found, images.reshape(6, 5, 7))
    assert np.shares_memory(found, images)


def test_normalisation_is_undone():
    images = np.ones((6, 1, 8, 10), np.float32)
    seen = detector_images(header({"normalization": {"mean": 10.0, "std": [1, 2, 3, 4, 5, 6]}}), images)
    assert seen[:, 0, 0].tolist() == [11, 12, 13, 14, 15, 16]
    assert seen.dtype == np.float32


# -- who ----------------------------------------------------------------------------------------------------------


def test_an_end_marker_names_its_producer():
    assert is_end(PipelineOutput(metadata={"end_of_stream": True, "producer_id": "p"})) == "p"
    assert is_end(SimpleNamespace(metadata={"end_of_stream": np.True_})) == ""
    assert is_end(message({"end_of_stream": 1})) is None
    assert producer_of(message({"producer_id": np.int64(3)})) == "3"


@pytest.mark.parametrize("useless", [0.0, -3.0, float("nan"), float("inf")])
def test_an_encoder_that_says_no_length_is_not_believed(useless):
    found = header({"encoder_value": [useless, 5.0, 6.0]}, defaults=MessageDefaults(clen_mm=100.0))
    assert found.clen_mm.tolist() == [100.0, 5.0, 6.0]
    assert found.warnings == ("encoder_value is no camera length in 1 events; taken as 100 mm",)
    unknown = header({"encoder_value": useless})
    assert np.isnan(unknown.clen_mm).all()
    assert unknown.warnings == ("encoder_value is no camera length in 3 events; unknown",)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int16])
def test_normalisation_is_undone_in_numbers_that_hold_the_detectors(kind):
    # 1000.25 + 5 has no half float (their step is 1 there), and 150 000 is beyond them all.
    said = header({"normalization": {"mean": [1000.25] * 5 + [100000.0], "std": [5.0] * 5 + [50000.0]}})
    images = detector_images(said, np.ones((6, 1, 8, 10), kind))
    assert images.dtype == (np.float64 if kind == np.float64 else np.float32)
    assert np.unique(images).tolist() == [1005.25, 150000.0]
