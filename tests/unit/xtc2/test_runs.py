"""Which runs lie in a directory, and which of them can be used."""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
from pathlib import Path

import pytest

from nightbeam.core.errors import InputError, MissingError
from nightbeam.testing.xtc2_files import block, datagram, detector, write_run, write_xtc2, xtc2_bytes
from nightbeam.xtc2 import StreamName, StreamStatus, Transition, find_runs, judge_run, latest_usable_run, list_runs
from nightbeam.xtc2 import runs as runs_module

EXP = "mfx1033223"
EPIX = detector("epix", "epix10ka", ["11-22", "33-44", "55-66"])
HSD = detector("hsd", "hsd", [""])


def made(tmp_path: Path, run: int = 7, **options: object) -> tuple[Path, ...]:
    return write_run(tmp_path, [EPIX, HSD], experiment=EXP, run=run, **options)  # type: ignore[arg-type]


def name_of(run: int = 7, stream: int = 0, chunk: int = 0) -> str:
    return str(StreamName(EXP, run, stream, chunk))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("xpptut15-r0014-s000-c000.xtc2", ("xpptut15", 14, 0, 0, False, False)),
        ("xpptut15-r0014-s001-c002.xtc2.inprogress", ("xpptut15", 14, 1, 2, False, True)),
        ("xpptut15-r0014-s000-c000.smd.xtc2", ("xpptut15", 14, 0, 0, True, False)),
        ("xpptut15-r0014-s000-c000.smd.xtc2.inprogress", ("xpptut15", 14, 0, 0, True, True)),
        ("tmoc00118-r0222-s00-c01.xtc2", ("tmoc00118", 222, 0, 1, False, False)),
        ("mfx1-r12345-s1000-c1001.xtc2", ("mfx1", 12345, 1000, 1001, False, False)),
        ("mfx-test-r0001-s000-c000.xtc2", ("mfx-test", 1, 0, 0, False, False)),
    ],
)
def test_names_follow_the_grammar(text, parts):
    name = StreamName.parse(text)
    assert name == StreamName(*parts)
    assert StreamName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        "xpptut15-rABC-s000-c000.xtc2",
        "xpptut15-r014-s000-c000.xtc2",
        "xpptut15-r0014-s0-c000.xtc2",
        "xpptut15-r0014-s000.xtc2",
        "xpptut15-r0014-s000-c000.xtc",
        "xpptut15-r0014-s000-c000.xtc2.inprogress.inprogress",
        "xpptut15-r0014-s000-c000.xtc2\n",
        "xpptut15-r٠٠١٤-s000-c000.xtc2",
        "../xpptut15-r0014-s000-c000.xtc2",
        "-r0014-s000-c000.xtc2",
        "test_hsd.xtc2",
        "xpptut15-r" + "9" * 5000 + "-s000-c000.xtc2",
        "",
    ],
)
def test_other_names_are_foreign(text):
    assert StreamName.parse(text) is None


def test_runs_are_found_by_exact_experiment_and_the_rest_is_listed(tmp_path):
    made(tmp_path, 12, streams=2)
    made(tmp_path, 3, inprogress=True, small_data=True)
    for odd in ("mfx1033224-r0099-s000-c000.xtc2", f"{EXP}-rABC-s000-c000.xtc2", f"{EXP}-r0012-s000-c000.smd.xtc2"):
        (tmp_path / odd).touch()
    (tmp_path / "notes.txt").touch()
    listing = list_runs(tmp_path, EXP)
    assert {run: [f.name.stream for f in files] for run, files in listing.runs.items()} == {3: [0], 12: [0, 1]}
    assert {path.name: reason for path, reason in listing.skipped} == {
        "mfx1033224-r0099-s000-c000.xtc2": "belongs to experiment mfx1033224",
        f"{EXP}-rABC-s000-c000.xtc2": "its name is not EXPERIMENT-rRUN-sSTREAM-cCHUNK.xtc2",
        f"{EXP}-r0012-s000-c000.smd.xtc2": "small data",
    }
    assert find_runs(tmp_path, EXP) == listing.runs


def test_a_foreign_name_forges_no_line_of_the_log(tmp_path, caplog):
    (tmp_path / "a\nERROR all is lost\x1b[2J.xtc2").touch()
    with caplog.at_level(logging.DEBUG, logger="nightbeam"):
        assert find_runs(tmp_path, EXP) == {}
    (message,) = caplog.messages
    assert message.isprintable()


def test_a_finished_file_is_preferred_to_the_one_it_was(tmp_path):
    (path,) = made(tmp_path)
    path.with_name(path.name + ".inprogress").touch()
    assert [f.path for f in find_runs(tmp_path, EXP)[7]] == [path]


def test_a_good_run_is_usable_and_lists_its_detectors_over_all_streams(tmp_path):
    made(tmp_path, streams=2, small_data=True)
    verdict = judge_run(tmp_path, EXP, 7)
    assert (verdict.usable, verdict.reasons) == (True, ())
    assert verdict.det_info == {"epix": "epix10ka_11-22_33-44_55-66", "hsd": "hsd_"}
    assert [(s.stream, s.chunk, s.status) for s in verdict.streams] == [(0, 0, "has events"), (1, 0, "has events")]
    assert "runinfo" in {d.name for d in verdict.detectors}


def test_a_real_run_of_two_streams_is_usable(shared_data):
    verdict = judge_run(shared_data / "xtc2" / "mixed_rate", "xpptut15", 14)
    assert verdict.usable
    assert verdict.det_info == {
        "xpphsd": "hsd_detnum1234_detnum1234_detnum1234_detnum1234",
        "xppcspad": "cspad_detnum1234_detnum1234_detnum1234_detnum1234",
    }


def test_in_a_real_directory_the_foreign_chunk_is_passed_over(shared_data):
    folder = shared_data / "xtc2" / "chunking"
    chosen, rejected = latest_usable_run(folder, "xpptut15")
    assert chosen is not None
    assert (chosen.run, rejected) == (14, ())
    verdict = judge_run(folder, "data", 1)  # the later chunk under its own name
    assert not verdict.usable
    assert [(s.status, s.reason) for s in verdict.streams] == [
        (StreamStatus.NO_FILE, "chunk 0 is missing, chunk 1 is the first that is there")
    ]


@pytest.mark.parametrize("inprogress", [False, True])
def test_a_run_that_is_only_configured_waits_for_its_beginning(tmp_path, inprogress):
    made(tmp_path, until=Transition.Configure, inprogress=inprogress)
    verdict = judge_run(tmp_path, EXP, 7)
    assert not verdict.usable
    assert verdict.reasons == ("stream 0: configured (no BeginRun yet)",)
    assert set(verdict.det_info) == {"epix", "hsd"}


def test_a_growing_run_is_usable_once_it_has_begun(tmp_path):
    whole = xtc2_bytes([EPIX], experiment=EXP, run=7, until=Transition.BeginRun)
    path = tmp_path / (name_of() + ".inprogress")
    path.write_bytes(whole[:-1])
    verdict = judge_run(tmp_path, EXP, 7)
    assert [s.status for s in verdict.streams] == [StreamStatus.CONFIGURED]
    assert "still being written" in verdict.reasons[0]
    path.write_bytes(whole + b"\0" * 5)  # the first bytes of the next datagram
    assert judge_run(tmp_path, EXP, 7).usable


def test_a_finished_file_may_lack_its_end(tmp_path):
    made(tmp_path, cut_bytes=10)
    assert judge_run(tmp_path, EXP, 7).usable


def test_small_data_are_not_asked_for_but_every_stream_that_they_know_is(tmp_path):
    paths = made(tmp_path, streams=2, small_data=True)
    paths[1].unlink()
    verdict = judge_run(tmp_path, EXP, 7)
    assert verdict.reasons == (f"stream 1: no file (only small data are there: {EXP}-r0007-s001-c000.smd.xtc2)",)
    assert [(s.stream, s.status) for s in verdict.streams] == [(0, "has events"), (1, "no file")]


@pytest.mark.parametrize(
    ("number", "level"),
    [(errno.EACCES, "WARNING"), (errno.EIO, "WARNING"), (errno.ELOOP, "WARNING"), (errno.ENOENT, "DEBUG")],
)
def test_small_data_that_cannot_be_read_or_go_meanwhile_are_a_remark(tmp_path, monkeypatch, caplog, number, level):
    made(tmp_path, small_data=True)
    real = os.listdir

    def listed(path: Path) -> list[str]:
        if Path(path).name == "smalldata":
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listed)
    with caplog.at_level(logging.DEBUG, logger="nightbeam"):
        assert judge_run(tmp_path, EXP, 7).usable
        assert latest_usable_run(tmp_path, EXP)[0] is not None
    remarks = [r for r in caplog.records if "smalldata" in r.getMessage()]
    assert [r.levelname for r in remarks] == [level] * 2


def test_a_directory_whose_small_data_cannot_even_be_asked_for_has_usable_runs(tmp_path, monkeypatch):
    made(tmp_path, small_data=True)
    real = Path.stat

    def asked(path: Path, **options: bool) -> os.stat_result:
        if path.name == "smalldata":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", asked)
    assert judge_run(tmp_path, EXP, 7).usable


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", "empty"),
        (b"\0" * 7, "not xtc2"),
        (b"<html>" * 10, "not xtc2"),
        (xtc2_bytes([EPIX])[:3000], "partial configure"),
        (xtc2_bytes([EPIX], configure=False), "not xtc2"),
        (datagram(Transition.Configure, block(4)) + datagram(Transition.BeginRun), "not xtc2"),
    ],
)
def test_one_bad_stream_spoils_the_run_and_is_named(tmp_path, content, status):
    made(tmp_path)
    (tmp_path / name_of(stream=1)).write_bytes(content)
    verdict = judge_run(tmp_path, EXP, 7)
    assert not verdict.usable
    assert [s.status for s in verdict.streams] == ["has events", status]
    (reason,) = verdict.reasons
    assert reason.startswith(f"stream 1: {status} (")


def test_a_later_chunk_under_the_name_of_the_first_is_said_to_be_one(tmp_path):
    write_xtc2(tmp_path / name_of(), [EPIX], configure=False)
    assert judge_run(tmp_path, EXP, 7).reasons[0] == (
        "stream 0: not xtc2 (chunk 0 begins with L1Accept, not with Configure)"
    )


def test_a_stream_without_chunk_0_spoils_the_run(tmp_path):
    made(tmp_path)
    write_xtc2(tmp_path / name_of(stream=2, chunk=1), [EPIX], configure=False)
    verdict = judge_run(tmp_path, EXP, 7)
    assert verdict.reasons == ("stream 2: no file (chunk 0 is missing, chunk 1 is the first that is there)",)


def test_later_chunks_of_a_good_stream_do_not_matter(tmp_path):
    made(tmp_path)
    (tmp_path / name_of(chunk=1)).write_bytes(b"anything")
    assert judge_run(tmp_path, EXP, 7).usable


def test_a_run_of_nothing_but_pseudo_detectors_is_of_no_use(tmp_path):
    scan = detector("scan", "scan", [""])
    only_config = detector("timing", "ts", ["1"], algorithms=["config"])
    write_xtc2(tmp_path / name_of(), [scan, only_config])
    verdict = judge_run(tmp_path, EXP, 7)
    assert verdict.det_info == {}
    assert verdict.reasons == ("no detector that measures: scan, timing, runinfo",)


def test_events_can_be_asked_for(tmp_path):
    made(tmp_path, until=Transition.Enable)
    assert judge_run(tmp_path, EXP, 7).usable
    assert judge_run(tmp_path, EXP, 7, events_required=True).reasons == ("no events yet",)


def test_a_run_that_is_not_there_has_no_files(tmp_path):
    assert judge_run(tmp_path, EXP, 7).reasons == ("no files of run 7",)


def test_a_missing_directory_is_missing(tmp_path):
    (tmp_path / "file").touch()
    for directory in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(MissingError, match="no directory"):
            latest_usable_run(directory, EXP)


@pytest.mark.parametrize("experiment", ["", "../mfx", "mfx*", "mfx 1", "é"])
def test_a_name_that_is_no_experiment_is_refused(tmp_path, experiment):
    with pytest.raises(InputError, match="is no experiment"):
        judge_run(tmp_path, experiment, 1)


def test_the_latest_usable_run_comes_with_the_later_ones_that_are_not(tmp_path):
    made(tmp_path, 5)
    made(tmp_path, 6)
    made(tmp_path, 10000, until=Transition.Configure)
    (tmp_path / name_of(9)).touch()
    (tmp_path / "other-r9999-s000-c000.xtc2").write_bytes(xtc2_bytes([EPIX]))
    chosen, rejected = latest_usable_run(tmp_path, EXP)
    assert chosen is not None
    assert chosen.run == 6
    assert [(v.run, v.reasons) for v in rejected] == [
        (10000, ("stream 0: configured (no BeginRun yet)",)),
        (9, ("stream 0: empty (zero bytes)", "no detector that measures: none at all")),
    ]
    lower, passed = latest_usable_run(tmp_path, EXP, below=6)
    assert lower is not None
    assert (lower.run, passed) == (5, ())
    assert latest_usable_run(tmp_path, EXP, below=5) == (None, ())


def test_an_empty_directory_has_no_run(tmp_path):
    assert latest_usable_run(tmp_path, EXP) == (None, ())


def test_a_file_that_gets_its_final_name_meanwhile_is_read_under_it(tmp_path, monkeypatch):
    (path,) = made(tmp_path, inprogress=True)
    files = find_runs(tmp_path, EXP)
    final = path.rename(path.with_suffix(""))
    monkeypatch.setattr(runs_module, "find_runs", lambda *_: files)
    verdict = judge_run(tmp_path, EXP, 7)
    assert verdict.usable
    assert verdict.streams[0].path == final
    final.unlink()
    assert judge_run(tmp_path, EXP, 7).streams[0].status is StreamStatus.NO_FILE


ODD_FILES = {
    "directory": (Path.mkdir, StreamStatus.NOT_XTC2),
    "pipe": (os.mkfifo, StreamStatus.NOT_XTC2),
    "socket": (lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK), StreamStatus.NOT_XTC2),
    "device": (lambda path: path.symlink_to("/dev/zero"), StreamStatus.NOT_XTC2),
    "loop": (lambda path: path.symlink_to(path), StreamStatus.UNREADABLE),
    "dangling": (lambda path: path.symlink_to("nowhere"), StreamStatus.NO_FILE),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("odd", ODD_FILES)
def test_what_is_no_file_rejects_its_run_and_not_those_below(tmp_path, odd):
    made(tmp_path)
    make, status = ODD_FILES[odd]
    make(tmp_path / name_of(9))
    verdict = judge_run(tmp_path, EXP, 9)
    assert (verdict.usable, [s.status for s in verdict.streams]) == (False, [status])
    assert verdict.streams[0].reason
    chosen, rejected = latest_usable_run(tmp_path, EXP)
    assert chosen is not None
    assert (chosen.run, [v.run for v in rejected]) == (7, [9])


def test_a_directory_that_no_system_could_have_is_missing(tmp_path):
    for name in ("a\0b", "\ud800"):
        with pytest.raises(MissingError, match="no directory"):
            list_runs(tmp_path / name, EXP)


@pytest.fixture
def nobody():
    """A directory that everybody may look into, and for the while of the test the rights of nobody special."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        before = os.geteuid()
        yield Path(directory), lambda: os.seteuid(before or 65534)  # root may read everything
        os.seteuid(before)


def test_a_file_that_may_not_be_read_is_unreadable(nobody):
    directory, become = nobody
    (path,) = made(directory)
    path.chmod(0)
    become()
    assert judge_run(directory, EXP, 7).streams[0].status is StreamStatus.UNREADABLE


def test_a_file_whose_disk_fails_is_unreadable(tmp_path, monkeypatch):
    made(tmp_path)

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    (stream,) = judge_run(tmp_path, EXP, 7).streams
    assert stream.status is StreamStatus.UNREADABLE
    assert "Input/output error" in stream.reason
