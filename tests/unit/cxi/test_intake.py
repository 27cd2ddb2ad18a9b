import numpy as np
import pytest

from nightbeam.core.errors import InputError
from nightbeam.cxi import intake
from nightbeam.cxi.intake import Seen
from nightbeam.geometry.compute import count_tiles
from nightbeam.geometry.files import read_geometry
from nightbeam.stream.model import BatchError

SECOND = np.uint64(1 << 32)


@pytest.fixture
def header(make_batch):
    def make(sequence=0, time=0, **changes):
        stamps = np.arange(3, dtype=np.uint64) + np.uint64(time) * SECOND if time else np.zeros(3, np.uint64)
        return make_batch(sequence=sequence, timestamps=stamps, **({"batch_id": f"b{sequence}"} | changes)).batch

    return make


def test_a_true_repeat_is_a_duplicate_with_and_without_a_number(header):
    seen = Seen()
    for number in (*range(100), None):
        seen.check(header(number, 5))
    for number in (0, 7, 63, 64, 99, None):
        with pytest.raises(BatchError, match="came before") as caught:
            seen.check(header(number, 5))
        assert caught.value.reason == "duplicate"


def test_the_same_events_under_another_number_are_a_duplicate(header):
    seen = Seen()
    seen.check(header(0, 5))
    with pytest.raises(BatchError):
        seen.check(header(1, 5, batch_id="b0"))


@pytest.mark.parametrize("other", [{"time": 6}, {"time": 5, "run": 8}, {"time": 0, "wall_clock_s": 1.7e9}])
def test_a_number_that_comes_again_with_other_events_begins_a_new_line(header, other):
    seen = Seen()
    for number in range(9):
        seen.check(header(number, 5))
    found, again = seen.check(header(0, **other))
    assert again
    assert "begun again" in found.warnings[0]
    assert seen.check(header(1, **other))[1] is False
    with pytest.raises(BatchError):
        seen.check(header(1, **other))


def test_a_late_one_of_the_line_before_keeps_its_events_and_takes_nobodys_place(header):
    seen = Seen()
    for number in range(200):
        seen.check(header(number, 5))
    found, again = seen.check(header(150, 6))
    assert (again, found.sequence, found.first_event) == (False, None, None)
    assert "without a number" in found.warnings[0]


def test_without_times_a_producer_has_begun_again_where_its_numbers_go_far_back(header):
    seen = Seen()
    for number in range(100):
        seen.check(header(number))
    for number in (99, 37):
        with pytest.raises(BatchError, match="no times tell the two apart"):
            seen.check(header(number))
    assert seen.check(header(0))[1]
    assert [seen.check(header(number))[1] for number in (1, 2, 99)] == [False, False, False]


def test_without_times_and_numbers_a_batch_that_may_be_a_repeat_is_taken_with_a_warning(header):
    seen = Seen()
    assert seen.check(header(None))[0].warnings == ()
    found, again = seen.check(header(None))
    assert not again
    assert "no timestamps" in found.warnings[0]


def test_the_first_batches_are_remembered_for_ever_and_the_others_for_long(header, monkeypatch):
    monkeypatch.setattr(intake, "_REMEMBERED", 10)
    seen = Seen()
    for number in range(100):
        seen.check(header(number, 5))
    with pytest.raises(BatchError):
        seen.check(header(3, 5))
    assert seen.check(header(70, 5))[0].sequence is None


def test_panels_of_real_detectors_are_counted(shared_data):
    geometry = read_geometry(shared_data / "geom" / "epix10k2M-mfx.geom")
    assert count_tiles(geometry, (352, 384)) == 16
    with pytest.raises(InputError, match=r"crosses a border|cannot be cut"):
        count_tiles(geometry, (350, 384))
