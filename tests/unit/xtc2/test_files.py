"""Real files against the values that the original's compiled reader gives for them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from nightbeam.core.errors import MissingError
from nightbeam.testing.xtc2_files import block, datagram, detector, names_block, names_of, write_xtc2, xtc2_bytes
from nightbeam.xtc2 import (
    ChunkInfo,
    Detector,
    Names,
    RunInfo,
    StreamStatus,
    Transition,
    Xtc2Error,
    detectors_of,
    inspect_file,
    judge_run,
    read_configure,
    read_datagrams,
)
from nightbeam.xtc2.compute import parse_names, read_values, walk
from nightbeam.xtc2.files import read_head
from nightbeam.xtc2.model import BlockKind

#: name below shared/data/xtc2 -> status and the oddity in the reason
REAL = {
    "chunking/data-r0001-s000-c001.xtc2": ("continuation", "begins with SlowUpdate"),
    "chunking/smalldata/xpptut15-r0014-s000-c000.smd.xtc2": ("has events", ""),
    "chunking/xpptut15-r0014-s000-c000.xtc2": ("has events", ""),
    "mixed_rate/xpptut15-r0014-s000-c000.xtc2": ("has events", ""),
    "mixed_rate/xpptut15-r0014-s001-c000.xtc2": ("has events", ""),
    "multirun/xpptut15-r0014-s000-c000.xtc2": ("has events", ""),
    "single/test_hsd.xtc2": ("has events", "truncated: the L1Accept at 430884 has 4500 bytes, 3292 are there"),
    "single/test_ts.xtc2": ("has events", ""),
}
EPIX = detector("epix", "epix10ka", ["11-22", "33-44"])


@pytest.fixture(scope="session")
def xtc2_data(shared_data: Path) -> Path:
    return shared_data / "xtc2"


@pytest.fixture(scope="session")
def expected(xtc2_data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((xtc2_data / "expected.json").read_text())
    return found


def described(detector: Detector) -> dict[str, Any]:
    return {
        "dettype": detector.type,
        "has_data_alg": detector.has_data_algorithm,
        "reserved": detector.is_pseudo,
        "segments": {
            str(s.number): {"algs": [str(a) for a in s.algorithms], "detid": s.detector_id} for s in detector.segments
        },
        "uniqueid": detector.unique_id,
    }


def test_every_expected_file_is_looked_at(expected):
    assert set(expected) == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_holds_what_the_original_reader_finds_in_it(xtc2_data, expected, name):
    path, wanted = xtc2_data / name, expected[name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted["sha256"]
    report = inspect_file(path)
    status, oddity = REAL[name]
    assert report.status == status
    assert oddity in report.reason
    assert bool(report.reason) == bool(oddity)
    assert report.datagrams == wanted["dgrams"]
    assert report.readable
    assert report.size_bytes == wanted["size"]
    assert report.truncated == (wanted["parse_error"] is not None)
    assert [(r.experiment, r.run) for r in report.runs] == [(r["expt"], r["runnum"]) for r in wanted["runinfo"]]
    assert [(c.chunk, c.filename) for c in report.chunks] == [
        (c["chunkid"], c["filename"]) for c in wanted["chunkinfo"]
    ]


@pytest.mark.parametrize("name", REAL)
def test_every_configure_of_a_real_file_announces_the_expected_detectors(xtc2_data, expected, name):
    report, wanted = inspect_file(xtc2_data / name), expected[name]["configures"]
    assert [c.offset for c in report.configurations] == [c["offset"] for c in wanted]
    for found, configure in zip(report.configurations, wanted, strict=True):
        assert {d.name: described(d) for d in found.detectors} == configure["detectors"]
    if wanted:
        assert len(read_configure(xtc2_data / name)) == wanted[0]["n_names"]
        assert report.detectors == report.configurations[0].detectors


@pytest.mark.parametrize("name", REAL)
def test_every_complete_datagram_of_a_real_file_decodes_to_its_last_byte(xtc2_data, expected, name):
    wanted = expected[name]
    end = largest = count = 0
    naming: list[Names] = []
    for one in read_datagrams(xtc2_data / name, bodies=set(Transition), growing=True):
        body = one.body or b""
        if one.transition is Transition.Configure:
            naming = [parse_names(body, b) for b in walk(body) if b.kind is BlockKind.NAMES]
        for names, values in read_values(body, naming):  # raises where shapes do not make up the data
            assert list(values) == [field.name for field in names.fields]
        assert one.offset == end
        end, largest, count = end + one.header.size, max(largest, one.header.size), count + 1
    assert (largest, count) == (wanted["largest_dgram_bytes"], wanted["n_complete_dgrams"])
    assert end == (430884 if wanted["parse_error"] else wanted["size"])


def test_the_worked_example_of_the_format_notes(xtc2_data):
    # shared/spec/calib_prefetch.md, 2.4
    path = xtc2_data / "multirun" / "xpptut15-r0014-s000-c000.xtc2"
    found = list(read_datagrams(path, bodies={Transition.Configure, Transition.BeginRun}))
    configure, begin = found[:2]
    assert (configure.offset, configure.header.size) == (0, 5788)
    assert (begin.offset, begin.timestamp, begin.header.env, begin.header.extent) == (5788, 1, 0x0400_0000, 84)
    assert begin.body is not None
    (shapes_data,) = walk(begin.body)
    assert (shapes_data.names_id, shapes_data.end - shapes_data.begin + 12) == (0x101, 72)
    ((names, values),) = read_values(begin.body, read_configure(path))
    assert names.detector_name == "runinfo"
    assert values == {"expt": "xpptut15", "runnum": 1}
    assert [d.offset for d in found if d.transition is Transition.Configure] == [0, 6560]
    assert [run.run for run in inspect_file(path).runs] == [1, 2, 3]


def test_the_segments_of_two_streams_make_one_detector(xtc2_data):
    folder = xtc2_data / "mixed_rate"
    names = [n for path in sorted(folder.glob("*.xtc2")) for n in read_configure(path)]
    found = {d.name: d for d in detectors_of(names)}
    assert found["xpphsd"].unique_id == "hsd_detnum1234_detnum1234_detnum1234_detnum1234"
    assert found["xppcspad"].unique_id == "cspad_detnum1234_detnum1234_detnum1234_detnum1234"
    assert [s.number for s in found["xppcspad"].segments] == [0, 1, 2, 3]


def test_a_cut_last_datagram_is_an_error_to_those_who_want_every_datagram(tmp_path):
    path = write_xtc2(tmp_path / "a.xtc2", [EPIX], until=Transition.L1Accept, cut_bytes=5)
    whole = write_xtc2(tmp_path / "b.xtc2", [EPIX], until=Transition.L1Accept)
    growing = path.rename(tmp_path / "a.xtc2.inprogress")
    assert len(list(read_datagrams(growing))) == len(list(read_datagrams(whole))) - 1
    with pytest.raises(Xtc2Error, match=r"the L1Accept at .* has 168 bytes, 163 are there"):
        list(read_datagrams(growing, growing=False))


def test_only_the_bodies_that_are_asked_for_are_read(tmp_path):
    path = write_xtc2(tmp_path / "a.xtc2", [EPIX], events=2)
    found = list(read_datagrams(path, bodies={Transition.L1Accept}))
    assert [d.transition.name for d in found if d.body is not None] == ["L1Accept", "L1Accept"]


def test_events_are_stepped_over_however_large_they_are(tmp_path):
    path = tmp_path / "a.xtc2"
    event = 600 << 20  # never written: a hole in the file
    with path.open("wb") as out:
        out.write(xtc2_bytes([EPIX], until=Transition.Enable))
        out.write(datagram(Transition.L1Accept, extent=event))
        out.truncate(out.tell() - 24 + 12 + event)
        out.seek(0, os.SEEK_END)
        out.write(datagram(Transition.EndRun))
    report = inspect_file(path)
    assert (report.status, report.datagrams["L1Accept"], report.datagrams["EndRun"]) == ("has events", 1, 1)
    with pytest.raises(Xtc2Error, match=r"L1Accept at .* more than"):
        list(read_datagrams(path, bodies={Transition.L1Accept}))


@pytest.mark.parametrize(
    ("until", "status"),
    [("Configure", "configured"), ("BeginRun", "begun"), ("Enable", "begun"), ("L1Accept", "has events")],
)
def test_the_status_says_how_far_a_file_has_come(tmp_path, until, status):
    path = write_xtc2(tmp_path / "a.xtc2", [EPIX], until=Transition[until])
    assert inspect_file(path).status == read_head(path).status == status


def test_a_head_is_read_to_the_first_event_and_no_further(tmp_path):
    path = tmp_path / "a.xtc2"
    path.write_bytes(xtc2_bytes([EPIX], events=1, until=Transition.L1Accept) + b"\xff" * 100)
    assert read_head(path).reason == ""
    report = inspect_file(path)
    assert (report.status, report.damaged, report.readable) == (StreamStatus.HAS_EVENTS, True, False)
    assert str(path) in report.reason


def test_a_head_without_an_event_is_given_up_after_so_many_datagrams(tmp_path):
    path = tmp_path / "a.xtc2"
    path.write_bytes(xtc2_bytes([EPIX], until=Transition.Configure) + datagram(Transition.SlowUpdate) * 50)
    assert read_head(path, most_datagrams=10).status is StreamStatus.CONFIGURED


def test_the_run_is_named_where_it_is_told(tmp_path):
    path = write_xtc2(tmp_path / "a.xtc2", [EPIX], experiment="mfx1234567", run=70000)
    assert inspect_file(path).runs == (RunInfo("mfx1234567", 70000),)
    silent = write_xtc2(tmp_path / "b.xtc2", [EPIX], run_info=False)
    assert inspect_file(silent).runs == ()


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ("x" * 128, "expt has more than 127 characters"),
        ("x" * 100_000, "expt has more than 127 characters"),
        ("mfx\xe9", "no printable ASCII text"),
        ("\x1b[2J", "no printable ASCII text"),
    ],
)
def test_a_run_whose_name_makes_no_sense_is_a_remark_and_the_rest_is_read(tmp_path, experiment, words):
    path = tmp_path / "mfx1-r0009-s000-c000.xtc2"
    good = xtc2_bytes([EPIX], experiment="mfx1", run=10)
    begin = len(xtc2_bytes([EPIX], until=Transition.Configure))
    path.write_bytes(xtc2_bytes([EPIX], experiment=experiment, run=9) + good[begin:])
    report = inspect_file(path)
    assert (report.status, report.readable, report.damaged) == (StreamStatus.HAS_EVENTS, True, False)
    assert (report.runs, report.datagrams["L1Accept"]) == ((RunInfo("mfx1", 10),), 6)
    assert report.reason.startswith(f"the runinfo at {begin} is unreadable: ")
    assert words in report.reason
    assert report.reason.isprintable()
    assert judge_run(tmp_path, "mfx1", 9).usable


def test_a_next_chunk_whose_name_makes_no_sense_is_a_remark(tmp_path):
    path = write_xtc2(tmp_path / "a.xtc2", [EPIX], next_chunk=ChunkInfo(1, "x" * 256))
    report = inspect_file(path)
    assert (report.readable, report.chunks, report.runs) == (True, (), (RunInfo("xpptut15", 1),))
    assert "is unreadable: filename has more than 255 characters" in report.reason


def test_of_many_runs_whose_names_make_no_sense_one_is_told_and_the_others_are_counted(tmp_path):
    path = tmp_path / "a.xtc2"
    whole = xtc2_bytes([EPIX], experiment="x" * 200)
    begin = len(xtc2_bytes([EPIX], until=Transition.Configure))
    path.write_bytes(whole[:begin] + whole[begin:] * 40)
    first, rest = inspect_file(path).reason.split("; ")
    assert first == f"the runinfo at {begin} is unreadable: expt has more than 127 characters"
    assert rest == "39 more runs or chunks are unreadable"


def test_the_next_chunk_is_named_and_has_no_configure(tmp_path):
    first = write_xtc2(tmp_path / "a.xtc2", [EPIX], next_chunk=ChunkInfo(1, "elsewhere.xtc2"))
    assert inspect_file(first).chunks == (ChunkInfo(1, "elsewhere.xtc2"),)
    later = inspect_file(write_xtc2(tmp_path / "b.xtc2", [EPIX], configure=False))
    assert (later.status, later.readable, later.detectors) == (StreamStatus.CONTINUATION, True, ())
    with pytest.raises(Xtc2Error, match="begins with L1Accept, not with Configure"):
        read_configure(tmp_path / "b.xtc2")


def test_small_data_say_where_the_events_of_the_bulk_file_are(tmp_path):
    bulk = write_xtc2(tmp_path / "a.xtc2", [EPIX])
    small = write_xtc2(tmp_path / "a.smd.xtc2", [EPIX], small_data=True)
    places = [
        (int(values["intOffset"]), int(values["intDgramSize"]))
        for one in read_datagrams(small, bodies={Transition.L1Accept})
        for _, values in read_values(one.body or b"", read_configure(small))
    ]
    events = [(d.offset, d.header.size) for d in read_datagrams(bulk) if d.transition is Transition.L1Accept]
    assert places == events


@pytest.mark.parametrize("suffix", ["", ".inprogress"])
def test_an_unfinished_configure_is_told_from_something_else(tmp_path, suffix):
    path = tmp_path / f"a.xtc2{suffix}"
    path.write_bytes(xtc2_bytes([EPIX])[:2000])
    report = inspect_file(path)
    assert (report.status, report.truncated, report.readable) == (StreamStatus.PARTIAL_CONFIGURE, True, False)
    with pytest.raises(Xtc2Error, match="2000 are there"):
        read_configure(path)


def test_a_file_of_something_else_is_no_xtc2_though_its_length_could_be_right(tmp_path):
    path = tmp_path / "a.xtc2"
    path.write_bytes(datagram(Transition.Configure, b"\xff" * 500, extent=5000))
    assert inspect_file(path).status is StreamStatus.NOT_XTC2


def test_an_empty_file_is_called_empty(tmp_path):
    path = tmp_path / "a.xtc2"
    path.touch()
    assert inspect_file(path).status is StreamStatus.EMPTY
    with pytest.raises(Xtc2Error, match="zero bytes"):
        read_configure(path)


def test_a_missing_file_is_missing(tmp_path):
    for read in (inspect_file, read_configure, read_head):
        with pytest.raises(MissingError, match="no file"):
            read(tmp_path / "none.xtc2")


@pytest.mark.timeout(10)
def test_a_pipe_or_directory_of_that_name_stops_nobody(tmp_path):
    os.mkfifo(tmp_path / "pipe.xtc2")
    os.mknod(tmp_path / "socket.xtc2", 0o600 | stat.S_IFSOCK)
    (tmp_path / "folder.xtc2").mkdir()
    for name in ("pipe.xtc2", "socket.xtc2", "folder.xtc2"):
        for read in (inspect_file, read_configure, read_head):
            with pytest.raises(Xtc2Error, match="no regular file"):
                read(tmp_path / name)


def test_a_device_is_not_even_opened(monkeypatch):
    def opened(*_: object) -> int:
        raise AssertionError("opened")

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(Xtc2Error, match="no regular file"):
        inspect_file(Path("/dev/null"))


@pytest.mark.parametrize("name", ["a\0b.xtc2", "\ud800.xtc2"])
def test_a_name_that_no_file_can_have_is_missing(tmp_path, name):
    for read in (inspect_file, read_configure, read_head):
        with pytest.raises(MissingError, match="no file"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["two\nlines.xtc2", os.fsdecode(b"\xff.xtc2"), "a" * 250 + ".xtc2"])
def test_odd_names_are_names(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(xtc2_bytes([EPIX]))
    assert inspect_file(path).readable


def test_a_part_marked_as_corrupted_is_not_looked_into(tmp_path):
    names = b"".join(names_block(n) for n in names_of([EPIX]))
    path = tmp_path / "a.xtc2"
    path.write_bytes(datagram(Transition.Configure, names + block(BlockKind.PARENT, b"nonsense", damage=8)))
    with pytest.raises(Xtc2Error, match="marked as corrupted"):
        read_configure(path)
    path.write_bytes(datagram(Transition.Configure, names) + datagram(Transition.BeginRun, b"nonsense", damage=8))
    assert inspect_file(path).status is StreamStatus.BEGUN


@pytest.mark.parametrize("payload", [b"".join(names_block(n) for n in names_of([EPIX])), b"nonsense"])
def test_a_configure_marked_as_corrupted_is_not_looked_into(tmp_path, payload):
    path = tmp_path / "mfx1-r0009-s000-c000.xtc2"
    path.write_bytes(datagram(Transition.Configure, payload, damage=8) + datagram(Transition.BeginRun))
    with pytest.raises(Xtc2Error, match="the Configure is marked as corrupted"):
        read_configure(path)
    report = inspect_file(path)
    assert (report.status, report.detectors, report.readable) == (StreamStatus.NOT_XTC2, (), False)
    assert "datagram at 0: the Configure is marked as corrupted" in report.reason
    assert read_head(path).names == ()
    verdict = judge_run(tmp_path, "mfx1", 9)
    assert (verdict.usable, verdict.det_info) == (False, {})
    assert "marked as corrupted" in verdict.reasons[0]


@pytest.mark.parametrize("damage", [1, 2, 4, 16, 32, 64, 0xF000])
def test_other_damage_of_a_configure_does_not_stop_us(tmp_path, damage):
    path = tmp_path / "mfx1-r0009-s000-c000.xtc2"
    names = b"".join(names_block(n) for n in names_of([EPIX]))
    path.write_bytes(datagram(Transition.Configure, names, damage=damage) + datagram(Transition.BeginRun))
    assert len(read_configure(path)) == 4
    assert judge_run(tmp_path, "mfx1", 9).usable


def test_nodes_in_one_file_lie_in_parents_of_their_own(tmp_path):
    nodes = [detector("hsd", "hsd", ["a"]), detector("ts", "ts", ["b"])]
    parents = [block(BlockKind.PARENT, b"".join(names_block(n) for n in names_of([d]))) for d in nodes]
    # The same ids in two nodes are a contradiction: ids hold for a whole Configure.
    path = tmp_path / "a.xtc2"
    path.write_bytes(datagram(Transition.Configure, b"".join(parents)))
    with pytest.raises(Xtc2Error, match="two Names blocks have the id 0x100"):
        read_configure(path)
    names = names_of(nodes)
    nested = block(BlockKind.PARENT, block(BlockKind.PARENT, names_block(names[0])) + names_block(names[2]))
    path.write_bytes(datagram(Transition.Configure, nested))
    assert [n.detector_name for n in read_configure(path)] == ["hsd", "ts"]
