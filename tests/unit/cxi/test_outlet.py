"""The thread that writes: its ticks, its patience with the disk, its end."""

import errno
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from nightbeam.core.errors import MissingError, StorageError
from nightbeam.cxi import directory, outlet, writing
from nightbeam.cxi.counts import Counts
from nightbeam.cxi.doors import the_world
from nightbeam.cxi.outlet import Outlet, Parcel
from nightbeam.cxi.worker import CxiService
from nightbeam.cxi.writing import CxiWriter
from nightbeam.testing.cxi_world import Clock, FilesInMemory, World, small_config


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def counts():
    return Counts()


@pytest.fixture
def give(counts):
    """Hand batches over, counted as taken."""

    def put(out, *batches):
        for batch in batches:
            counts.take(batch.batch.n_events)
            out.put(Parcel(batch))

    return put


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(outlet, "_FIRST_PAUSE_S", 0.01)


def until(out, true):
    patience = time.monotonic() + 60
    while not true():
        assert time.monotonic() < patience, "it never became true"
        out.wait(0.005)


def test_files_are_ticked_in_time_although_batches_keep_coming(clock, counts, give, make_batch):
    calls = []

    class Slow(FilesInMemory):
        def submit(self, batch):
            super().submit(batch)
            calls.append("submit")
            clock.now_s += 0.25

        def tick(self, now_s):
            calls.append(now_s)

    files = Slow(100)
    files.gate.clear()
    out = Outlet(files, counts, clock=clock, tick_s=0.5)
    give(out, *(make_batch(k) for k in range(6)))
    files.gate.set()
    out.close()
    first = calls.index("submit")
    assert calls[first : first + 8] == ["submit", "submit", 1000.5, "submit", "submit", 1001.0, "submit", "submit"]


def test_events_and_hits_are_counted_for_each_run_also_where_a_batch_is_taken_in_parts(clock, counts, give, make_batch):
    class Half(FilesInMemory):
        full = True

        def submit(self, batch):
            if self.full:
                self.full = False
                super().submit(replace(batch, events=batch.events[:1], filtered=0))
                raise OSError(errno.ENOSPC, "no space left")
            super().submit(batch)

    out = Outlet(Half(100), counts, clock=clock, tick_s=0.5)
    give(out, make_batch(0, run=7, hits=[0, 2], places=[(0, 1.0, 2.0)]), make_batch(1, run=8, hits=[]))
    give(out, make_batch(2, run=7, hits=[1], places=[(0, 1.0, 2.0), (0, 4.0, 4.0)]))
    out.close()
    told = [(t.run, t.events, t.hits, t.peaks) for t in counts.runs.newest()]
    assert told == [(7, 6, 3, 4), (8, 3, 0, 0)]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "it has gone"),
        OSError(errno.ESTALE, "stale file handle"),
        OSError(errno.ENOTCONN, "not connected"),
        MissingError("no directory"),
        ValueError("a mistake"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_tick_raises_is_waited_out_and_said_once(error, clock, counts, give, make_batch, caplog):
    class Broken(FilesInMemory):
        broken = False

        def tick(self, now_s):
            if self.broken:
                raise error
            super().tick(now_s)

    files = Broken(3)
    files.broken = True
    out = Outlet(files, counts, clock=clock, tick_s=0.01)
    until(out, lambda: out.blocked is not None)
    give(out, make_batch(0))
    until(out, lambda: out._pause_s > 0.03)
    assert (files.written, out.waiting_events) == ([], 3)
    files.broken = False
    until(out, lambda: counts.written == 3)
    assert out.blocked is out.failed is None
    out.close()
    assert caplog.text.count("no file can be written") == 1


def test_files_whose_directory_has_gone_are_written_when_it_is_there_again(plan, clock, counts, give, make_batch):
    files = CxiWriter(replace(plan, buffer_size=3), geometry=None)
    out = Outlet(files, counts, clock=clock, tick_s=0.01)
    shutil.rmtree(plan.output_dir)
    give(out, make_batch(0))
    until(out, lambda: out.blocked is not None)
    assert (counts.written, counts.buffered, counts.balance()) == (0, 3, 0)
    plan.output_dir.mkdir()
    until(out, lambda: counts.written == 3)
    out.close()
    assert counts.to_json()["events_lost"] == {}
    assert list(files.plan.output_dir.glob("*.cxi"))


def test_events_wait_where_the_directory_of_their_run_is_not_ours(plan, clock, counts, give, make_batch, monkeypatch):
    files = CxiWriter(replace(plan, buffer_size=3, per_run=True), geometry=None)
    out = Outlet(files, counts, clock=clock, tick_s=0.01)
    with monkeypatch.context() as patched:
        patched.setattr(directory.os, "access", lambda path, _: path != plan.output_dir / "r0007")
        give(out, make_batch(0, run=7))
        until(out, lambda: out.blocked is not None)
        assert "r0007" in out.blocked.what
        assert (counts.written, counts.balance()) == (0, 0)
    until(out, lambda: counts.written == 3)
    out.close()
    assert counts.to_json()["events_rejected"] == {}


def test_a_batch_that_the_disk_did_not_let_the_files_take_is_given_again_with_a_growing_pause(
    clock, counts, give, make_batch
):
    class Closed(FilesInMemory):
        tries = 0

        def submit(self, batch):
            self.tries += 1
            if self.tries < 4:
                raise OSError(errno.ESTALE, "stale file handle")
            super().submit(batch)

    files = Closed(3)
    out = Outlet(files, counts, clock=clock)
    pauses = []
    out._block, block = lambda error: (block(error), pauses.append(out._pause_s)), out._block
    give(out, make_batch(0))
    until(out, lambda: counts.written == 3)
    out.close()
    assert pauses == [0.01, 0.02, 0.04]
    assert counts.to_json()["events_lost"] == counts.to_json()["events_rejected"] == {}


def test_the_sum_comes_out_after_every_single_change(clock, give, make_batch):
    sums = []

    class Watched(Counts):
        def now_written(self, **said):
            super().now_written(**said)
            sums.append(self.balance())

        def pass_on(self, *args, **said):
            super().pass_on(*args, **said)
            sums.append(self.balance())

    counts = Watched()
    out = Outlet(FilesInMemory(4), counts, clock=clock)
    for k in range(4):
        counts.take(3)
        out.put(Parcel(make_batch(k)))
    out.close()
    assert set(sums) == {0}


def test_a_file_that_cannot_be_made_is_given_up_and_those_after_it_are_written(
    plan, clock, counts, give, make_batch, monkeypatch, caplog
):
    real = writing.write_chunk

    def write_chunk(path, *, contents, **how):
        if contents.events[0].batch.batch_id == "batch_1":
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        real(path, contents=contents, **how)

    monkeypatch.setattr(writing, "write_chunk", write_chunk)
    settled = []
    files = CxiWriter(replace(plan, buffer_size=3), geometry=None)
    out = Outlet(files, counts, clock=clock, on_settled=lambda header: settled.append(header.batch_id))
    give(out, *(make_batch(k) for k in range(4)))
    out.close()
    found = counts.to_json()
    assert found["events_lost"] == {"write failed": 3}
    assert (found["total_events_written"], found["events_in_flight"], found["balance"]) == (9, 0, 0)
    assert settled == [f"batch_{k}" for k in range(4)]
    assert "a file of 3 events cannot be made" in caplog.text
    assert "['batch_1']" in caplog.text


def test_text_that_is_no_unicode_is_written_as_well_as_it_can_be(plan, make_batch):
    notes = np.array(["good", "bad \ud800", "good"], object)
    files = CxiWriter(replace(plan, buffer_size=3), geometry=None)
    files.submit(make_batch(0, copied={"note": notes}))
    assert files.get_statistics()["chunks_written"] == 1


def test_images_are_copied_while_the_files_hold_too_many_views(clock, counts, give, make_batch):
    class Holding(FilesInMemory):
        def get_statistics(self):
            held = [event.image.nbytes for event in self._buffer]
            return super().get_statistics() | {"buffered_bytes": sum(held)}

    files = Holding(9)
    batches = [make_batch(k) for k in range(4)]
    one = batches[0].events[0].image.nbytes
    out = Outlet(files, counts, clock=clock, most_view_bytes=5 * one)
    give(out, *batches)
    out.close()
    shared = [
        any(np.shares_memory(event.image, old.image) for batch in batches for old in batch.events)
        for file in files.written
        for event in file
    ]
    # 0, 3 and 6 images are held when the batches come; with the ninth a file is full and none is held.
    assert shared == [True] * 6 + [False] * 3 + [True] * 3
    assert counts.written == 12


def test_a_writing_thread_that_has_ended_is_no_secret(tmp_path):
    world = World()
    service = CxiService(small_config(tmp_path), doors=world.doors(), clock=world.clock)
    service.open()

    def mistake(_):
        service._outlet._on_settled = settle
        raise ZeroDivisionError("a mistake of ours")

    service._outlet._on_settled, settle = mistake, service._outlet._on_settled
    for k in range(3):
        world.send(k)

    def turns():
        patience = time.monotonic() + 60
        while time.monotonic() < patience:
            service.step()
            service._outlet.wait(0.005)

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        turns()
    assert "a mistake of ours" in " ".join(service.health().problems)
    with pytest.raises(RuntimeError, match="the thread that writes files has ended"):
        service.close()
    found = service.counters()
    assert (found["balance"], found["events_in_flight"], found["buffer_size"]) == (0, 0, 0)


def test_files_that_cannot_be_flushed_at_the_end_lose_what_they_hold_and_the_thread_ends(
    clock, counts, give, make_batch
):
    class Broken(FilesInMemory):
        def flush_final(self):
            raise OSError(errno.ENOTCONN, "not connected")

    out = Outlet(Broken(100), counts, clock=clock)
    give(out, make_batch(0))
    with pytest.raises(StorageError, match="3 events could not be written"):
        out.close()
    assert counts.to_json()["events_lost"] == {"not written": 3}


def test_real_files_go_on_after_metadata_that_are_no_unicode(tmp_path):
    world = World()
    doors = replace(world.doors(), files=the_world().files)
    service = CxiService(small_config(tmp_path, metadata={"copy": ["note"]}), doors=doors, clock=world.clock)
    for k in range(4):
        world.send(k, note="bad \ud800" if k == 1 else "x")
    world.end()
    service.open()
    while service.step():
        pass
    service.close()
    assert service.counters()["total_events_written"] == 16
