"""The command ``replay``, with a fake in place of the queue."""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import nightbeam.cli.replay as commands
from nightbeam.core.errors import NightbeamError, UsageError
from nightbeam.frames.compute import simulate_frames
from nightbeam.frames.model import FramePlan

QUEUE = ["--queue", "q", "--namespace", "ns", "--device", "cpu"]


@pytest.fixture
def run(producer, monkeypatch):
    """Call the command; errors of ours come out as they are."""
    asked = []

    @contextmanager
    def fake(*words):
        asked.append(words)
        yield producer

    monkeypatch.setattr(commands, "_producer", fake)

    def call(*words: str, command: click.Command = commands.replay):
        done = CliRunner().invoke(
            command, [*(QUEUE if command is commands.replay else []), *words], standalone_mode=False
        )
        if isinstance(done.exception, NightbeamError | click.ClickException):
            raise done.exception
        assert done.exception is None, done.exception
        return done

    call.asked = asked
    return call


def test_simulated_frames_go_through_the_network_into_the_queue(run, producer, tmp_path):
    done = run("--simulate", "6", "--panels", "2x64x64", "--peaks", "3:5", "--hit-rate", "1", "--batch", "4",
               "--truth", str(tmp_path / "t.npz"), "--seed", "9", "--form", "pixels", "--json", "--shards", "3",
               "--producer", "p1", "--run", "7", "--experiment", "mfx1")  # fmt: skip
    (report,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (report["events"], report["batches"], report["stopped"]) == (6, 2, False)
    ((queue, namespace, address, shards, maxsize, name, options),) = run.asked
    assert (queue, namespace, address, shards, maxsize, name) == ("q", "ns", "auto", 3, 1600, "p1")
    assert (options["run"], options["experiment"]) == (7, "mfx1")
    plan = FramePlan(shape=(2, 64, 64), n_peaks=(3, 5), hit_rate=1, seed=9)
    frames, truth = simulate_frames(plan, 0, 6)
    assert np.array_equal(producer.sent[1]["images"].reshape(2, 2, 64, 64), frames[4:])
    with np.load(tmp_path / "t.npz") as arrays:
        assert np.array_equal(arrays["y"], truth.y)


def test_the_truth_is_of_the_events_that_are_sent(run, tmp_path):
    run("--simulate", "9", "--panels", "64x64", "--peaks", "1", "--first", "2", "--events", "3", "--truth", "t.jsonl",
        "--margin", "10", "--intensity", "500", "--threshold", "8")  # fmt: skip
    with Path("t.jsonl").open() as file:
        assert [json.loads(line)["event"] for line in file] == [2, 3, 4]


def test_a_file_is_read_and_cut_into_panels(run, producer, tmp_path):
    with h5py.File("a.cxi", "w") as file:
        file["entry_1/data_1/data"] = np.zeros((3, 32, 16))
    run("--frames", "a.cxi", "--panels", "2x16x16", "--pad", "24x24", "--pad-style", "center", "--normalize",
        "--calibrated", "--batch", "2")  # fmt: skip
    assert [one["preprocessing"].original_shape for one in producer.sent] == [(2, 2, 16, 16), (1, 2, 16, 16)]
    assert producer.sent[0]["images"].shape == (4, 1, 24, 24)
    assert producer.sent[0]["calibrated"].shape == (2, 2, 16, 16)
    run("--frames", "a.cxi", "--pad", "64", "--threads", "1")
    assert producer.sent[2]["preprocessing"].preprocessed_shape == (3, 1, 64, 64)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "from a file or are simulated"),
        (("--simulate", "3", "--frames", "a.npy"), "from a file or are simulated"),
        (("--frames", "a.npy", "--hit-rate", "0.3", "--seed", "1"), "--hit-rate, --seed is for --simulate"),
        (("--simulate", "3", "--dataset", "d"), "--dataset is for --frames"),
        (("--simulate", "3", "--model", "m.pt", "--threshold", "3"), "--threshold"),
        (("--simulate", "3", "--geometry", "g.geom"), "how large a module"),
        (("--frames", "a.npy", "--panels", "3x4x4"), r"\(1, 4, 4\), not \(3, 4, 4\)"),
    ],
)
def test_options_that_contradict_each_other_are_refused(run, words, said):
    np.save("a.npy", np.zeros((2, 4, 4)))
    with pytest.raises(UsageError, match=said):
        run(*words)


@pytest.mark.parametrize(("option", "value"), [("--panels", "0x4x4"), ("--panels", "4"), ("--pad", "1x2x3"),
                                               ("--peaks", "few"), ("--rate", "0")])  # fmt: skip
def test_words_that_are_no_numbers_are_refused(run, option, value):
    with pytest.raises(click.BadParameter):
        run("--simulate", "1", option, value)


def test_the_network_is_written_and_can_be_used(run, producer):
    run("m.pt", "--threshold", "7", command=commands.export_network)
    run("--simulate", "1", "--panels", "32x32", "--hit-rate", "0", "--model", "m.pt")
    assert producer.sent[0]["predictions"].shape == (1, 2, 32, 32)


def test_a_person_is_told_what_is_waited_for_and_what_was_done(run):
    done = run("--simulate", "2", "--panels", "32x32", "--hit-rate", "0")
    assert done.stdout == ""
    sent, report = done.stderr.splitlines()
    assert sent.startswith("all is sent; waiting until it has been taken from queue 'q'")
    assert report.startswith("2 events in 1 batches, ")


def test_each_replay_is_a_producer_of_its_own_unless_it_is_named(run):
    for _ in range(2):
        run("--simulate", "1", "--panels", "1x64x64", "--peaks", "1:2")
    names = [words[5] for words in run.asked]
    assert len(set(names)) == 2
    assert all(name.startswith(f"replay-{socket.gethostname()}-{os.getpid()}-") for name in names)
