"""What a writer says of itself while it runs."""

import json
import logging
from dataclasses import replace

import numpy as np

from nightbeam.cxi.doors import the_world
from nightbeam.cxi.health import Health, metrics_text
from nightbeam.cxi.ledger import status_path
from nightbeam.cxi.worker import CxiService
from nightbeam.testing.cxi_world import small_config


def status(tmp_path):
    return json.loads(status_path(tmp_path, "peaknet_cxi").read_text())


def test_the_status_file_is_there_from_the_beginning_and_says_how_it_ended(world, make_service, tmp_path, turn):
    service = make_service()
    service.open()
    assert status(tmp_path)["state"] == "running"
    world.send(0)
    world.end()
    turn(service)
    service.close()
    found = status(tmp_path)
    assert (found["state"], found["ended_by"]) == ("ended", "all producers have ended")
    assert found["counters"]["total_events_written"] == 4
    assert found["producers"]["p"]["settled"] == [[0, 0, 0, 4]]


def test_the_status_is_written_once_a_second(world, make_service, tmp_path, turn):
    service = make_service()
    service.open()
    status_path(tmp_path, "peaknet_cxi").unlink()
    turn(service, 3)
    assert not status_path(tmp_path, "peaknet_cxi").exists()
    world.clock.now_s += 1.0
    turn(service, 1)
    assert status(tmp_path)["state"] == "running"


def test_a_status_that_cannot_be_written_stops_nothing(world, make_service, tmp_path, turn):
    service = make_service()
    service.open()
    path = status_path(tmp_path, "peaknet_cxi")
    path.unlink()
    path.mkdir()
    world.clock.now_s += 1.0
    turn(service, 1)
    assert "status" in service.health().problems[0]
    path.rmdir()
    world.clock.now_s += 1.0
    turn(service, 1)
    assert service.health().works


def test_progress_is_said_after_so_many_batches(world, make_service, caplog, through):
    caplog.set_level(logging.INFO, "nightbeam")
    for k in range(6):
        world.send(k)
    world.end()
    through(make_service(system={"progress_interval": 2}))
    assert [f"{k} batches, {4 * k} events" in caplog.text for k in (2, 3, 4, 6)] == [True, False, True, True]


def test_the_loop_that_does_not_turn_is_not_healthy(world, make_service):
    service = make_service()
    service.open()
    assert service.health().works
    world.clock.now_s += 61
    assert "has not turned" in service.health().problems[0]


def test_pixels_that_the_files_cannot_hold_are_counted_in_the_status_and_said_once(world, tmp_path, caplog, through):
    for k in range(2):
        message = world.send(k, peaks=(3,))
        image = world.objects[message.original_image_ref.key]
        image[0, 0, 0, :4] = [np.nan, 0.5, 70000.0, -1.0]
    world.end()
    config = small_config(tmp_path, output={"dtype": "uint16", "buffer_size": 1})
    found = through(CxiService(config, doors=replace(world.doors(), files=the_world().files), clock=world.clock))
    counted = [found[f"pixels_{name}"] for name in ("clipped", "rounded", "not_finite")]
    assert (counted, found["write_failures"]) == ([4, 2, 2], 0)
    assert caplog.text.count("said once") == 3
    assert json.loads(status_path(tmp_path, "peaknet_cxi").read_text())["counters"]["pixels_clipped"] == 4
    assert b"cxi_pixels_clipped_total 4.0" in metrics_text(found, Health())
