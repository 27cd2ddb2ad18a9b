"""What is looked at before anything is taken."""

from dataclasses import replace
from pathlib import Path

import pytest

from nightbeam.core.errors import BusyError, MissingError, StorageError
from nightbeam.cxi import start
from nightbeam.cxi.ledger import account, status_path
from nightbeam.cxi.worker import CxiService
from nightbeam.testing.cxi_world import small_config


def test_a_second_writer_of_the_same_files_is_refused_and_one_of_another_prefix_is_not(world, make_service):
    make_service().open()
    with pytest.raises(BusyError, match="file_prefix"):
        make_service().open()
    make_service(output={"file_prefix": "other"}).open()


def test_output_that_cannot_be_written_is_said_before_anything_is_taken(world, tmp_path):
    (tmp_path / "file").write_text("x")
    world.send(0)
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(StorageError) as caught:
            CxiService(small_config(place), doors=world.doors()).open()
        assert caught.value.fix
    assert world.queue.size() == 1


def test_a_geometry_that_is_not_there_is_said_before_anything_is_taken(world, make_service, tmp_path):
    with pytest.raises(MissingError, match="geometry"):
        make_service(geometry={"geom_file": str(tmp_path / "no.geom")}).open()


def test_what_crystfel_lacks_in_the_users_geometry_is_no_warning_where_ours_supplies_it(tmp_path, geom_text, caplog):
    (tmp_path / "g.geom").write_text(geom_text(clen="") + "colour = red\n")
    named = {"geom_file": str(tmp_path / "g.geom")}
    assert len(start.usable_geometry(small_config(tmp_path, geometry=named)).panels) == 8
    assert "refuses" not in caplog.text
    assert "'colour' is unknown" in caplog.text
    caplog.clear()
    start.usable_geometry(small_config(tmp_path, geometry=named, output={"geom": False}))
    assert "clen) is not given" in caplog.text


def test_without_a_geometry_there_is_none(tmp_path):
    assert start.usable_geometry(small_config(tmp_path)) is None


def test_kernels_are_compiled_before_anybody_is_connected(world, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(start, "find_peaks", lambda *_, **__: done.append("compiled"))
    connect = world.doors().connect
    doors = replace(world.doors(), connect=lambda config: done.append("connected") or connect(config))
    service = CxiService(small_config(tmp_path), doors=doors, clock=world.clock)
    service.open()
    service.close()
    assert done == ["compiled", "compiled", "connected"]


def test_a_writer_that_was_killed_leaves_an_account_and_the_next_one_goes_on(
    world, make_service, tmp_path, caplog, turn, until
):
    first = make_service(output={"buffer_size": 100})
    first.open()
    for k in range(3):
        world.send(k)
    until(first, lambda: first.counters()["buffer_size"] == 12)
    first._report.write(force=True)
    first._stack.close()  # as a kill does: the lock is free, nothing is flushed
    first._standing.state = "ended"
    (found,) = account(tmp_path)
    assert (found.missing[0].first, found.missing[0].last, found.events_missing) == (0, 2, 12)
    second = make_service()
    second.open()
    assert "batches 0-2 of producer 'p' (12 events) were taken and never written" in caplog.text
    for k in range(3, 5):
        world.send(k)
    world.end()
    turn(second)
    second.close()
    (found,) = account(tmp_path)
    assert [(one.first, one.last) for one in found.received] == [(3, 4)]
    assert [(one.first, one.last) for one in found.missing] == [(0, 2)]


def test_where_nobody_wrote_before_there_is_no_account_and_a_damaged_one_is_said(tmp_path, caplog):
    output = small_config(tmp_path).output
    assert start.earlier_account(output) is None
    assert not caplog.text
    status_path(tmp_path, output.file_prefix).write_text("{")
    assert start.earlier_account(output) is None
    assert "is not gone on with" in caplog.text
