"""The written files look like real ones."""

from __future__ import annotations

import pytest

from nightbeam.testing.xtc2_files import detector, names_of, run_directory, shapes_data, write_run, xtc2_bytes
from nightbeam.xtc2 import Transition, inspect_file, read_datagrams
from nightbeam.xtc2.model import Algorithm

EPIX = detector("epix", "epix10ka", ["11-22", "33-44", "55-66"])


def test_a_detector_has_a_segment_for_each_id():
    assert EPIX.unique_id == "epix10ka_11-22_33-44_55-66"
    assert [s.number for s in detector("d", "t", ["a", "b"], first_segment=7).segments] == [7, 8]
    assert EPIX.segments[0].algorithms == (Algorithm("raw", (2, 0, 1)), Algorithm("config", (2, 0, 1)))


def test_a_run_has_a_file_for_each_stream_under_its_proper_name(tmp_path):
    folder = run_directory(tmp_path, "mfx1")
    assert folder == tmp_path / "mfx" / "mfx1" / "xtc"
    write_run(folder, [EPIX], experiment="mfx1", run=3, streams=2, small_data=True, inprogress=True)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == [
        "mfx1-r0003-s000-c000.xtc2.inprogress",
        "mfx1-r0003-s001-c000.xtc2.inprogress",
        "smalldata/mfx1-r0003-s000-c000.smd.xtc2.inprogress",
        "smalldata/mfx1-r0003-s001-c000.smd.xtc2.inprogress",
    ]


def test_segments_are_dealt_out_in_turn_and_a_stream_may_get_none(tmp_path):
    paths = write_run(tmp_path, [EPIX], experiment="mfx1", run=3, streams=4)
    dealt = [[s.number for d in inspect_file(path).detectors if d.name == "epix" for s in d.segments] for path in paths]
    assert dealt == [[0], [1], [2], []]


def test_the_datagrams_come_in_the_order_of_real_files(tmp_path, shared_data):
    (path,) = write_run(tmp_path, [EPIX], experiment="mfx1", run=3)
    real = shared_data / "xtc2" / "mixed_rate" / "xpptut15-r0014-s000-c000.xtc2"

    def order(of):
        found = [d.transition.name for d in read_datagrams(of) if d.transition is not Transition.SlowUpdate]
        return list(dict.fromkeys(found))

    assert order(path) == order(real)
    times = [d.timestamp for d in read_datagrams(path)]
    assert times == sorted(times)


def test_the_same_words_give_the_same_bytes():
    assert xtc2_bytes([EPIX], events=2) == xtc2_bytes([EPIX], events=2)
    assert xtc2_bytes([EPIX], cut_bytes=9) == xtc2_bytes([EPIX])[:-9]
    assert len(xtc2_bytes([EPIX], events=0)) < len(xtc2_bytes([EPIX], events=1))


@pytest.mark.parametrize("last", ["Configure", "BeginRun", "BeginStep", "Enable", "L1Accept", "Disable", "EndRun"])
def test_a_file_ends_with_the_transition_that_was_asked_for(tmp_path, last):
    (path,) = write_run(tmp_path, [EPIX], experiment="mfx1", run=3, until=Transition[last])
    assert [d.transition.name for d in read_datagrams(path)][-1] == last


def test_many_segments_have_ids_of_their_own():
    names = names_of([detector("jungfrau", "jungfrau", [str(n) for n in range(300)])])
    assert len({n.names_id for n in names}) == 600
    assert all(n.names_id & 0xFF < 200 for n in names)  # the last ones have meanings of their own


def test_a_value_of_the_wrong_rank_is_refused():
    raw = names_of([EPIX])[0]
    with pytest.raises(ValueError, match="array has 1 dimensions, not 2"):
        shapes_data(raw, {"array": [1, 2], "count": 0})
