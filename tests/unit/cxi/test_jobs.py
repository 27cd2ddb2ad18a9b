"""Batches are worked on, here and far away, and some of it fails."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from nightbeam.cxi import jobs
from nightbeam.testing.cxi_world import logits


def test_tasks_are_used_where_the_cluster_has_several_nodes_and_stay_below_their_limit(world, make_service, through):
    world.nodes = 2
    for k in range(6):
        world.send(k)
    world.end()
    found = through(make_service(processing={"num_cpu_workers": 8, "max_pending_tasks": 5}))
    assert found["total_events_written"] == 24
    assert world.tasks.most == 5


def test_a_tensor_that_came_by_value_needs_no_task_far_away(world, make_service, through):
    world.nodes = 2
    message = world.message(0, peaks=(2, 5))
    direct = torch.from_numpy(logits((2, 5))).to(torch.bfloat16)
    world.queue.messages.append(replace(message, predictions=direct, predictions_ref=None))
    world.end()
    assert through(make_service())["total_events_written"] == 2
    assert [len(event.peaks) for file in world.files.written for event in file] == [2, 5]


def test_events_with_too_few_peaks_are_filtered_and_those_with_too_many_cut(world, make_service, through):
    world.send(0, peaks=(0, 1, 5, 9))
    world.end()
    found = through(make_service(peak_finding={"min_num_peak": 2, "max_num_peak": 6}))
    assert (found["total_events_filtered"], found["events_truncated"], found["peaks_written"]) == (2, 1, 11)
    assert found["hit_rate"] == 0.5


def test_a_lost_object_is_a_lost_batch_with_its_name_in_the_log(world, make_service, caplog, through):
    gone = world.send(0)
    del world.objects[gone.predictions_ref.key]
    world.send(1)
    world.end()
    with caplog.at_level(logging.INFO, "nightbeam"):
        found = through(make_service())
    assert found["events_lost"] == {"object lost": 4}
    assert "p_0" in caplog.text
    assert found["total_events_written"] == 4


@pytest.mark.parametrize("nodes", [1, 2])
def test_an_image_alone_that_is_gone_loses_its_batch(world, make_service, nodes, through):
    world.nodes = nodes
    gone = world.send(0)
    del world.objects[gone.original_image_ref.key]
    world.end()
    assert through(make_service())["events_lost"] == {"object lost": 4}


def test_logits_that_are_not_numbers_are_background_counted_and_said_once(world, make_service, caplog, through):
    for k in range(3):
        message = world.send(k)
        world.objects[message.predictions_ref.key][0, 1, 1, 1] = np.nan
    world.end()
    found = through(make_service())
    assert (found["nan_pixels"], found["nan_rows"], found["peaks_written"]) == (3, 3, 3 * (4 * 3 - 1))
    assert caplog.text.count("not a number") == 1


def test_a_task_that_fails_twice_loses_its_batch_and_no_other(world, make_service, monkeypatch, through):
    real, tries = jobs.process_rows, []

    def fails(predictions, images, header, *args):
        if header.batch_id == "p_1":
            tries.append(args)
            raise MemoryError("no")
        return real(predictions, images, header, *args)

    monkeypatch.setattr(jobs, "process_rows", fails)
    for k in range(3):
        world.send(k)
    world.end()
    found = through(make_service(processing={"num_cpu_workers": 1}))
    assert found["events_lost"] == {"task failed": 4}
    assert (len(tries), found["retried_tasks"]) == (2, 1)
    assert [batch for batch, i in world.files.events() if i == 0] == ["p_0", "p_2"]
