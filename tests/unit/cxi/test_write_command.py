import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import yaml
from click.testing import CliRunner

from nightbeam.cli import cxi_write
from nightbeam.cli.cxi import cxi
from nightbeam.core.errors import UnavailableError
from nightbeam.cxi import worker
from nightbeam.cxi.doors import the_world
from nightbeam.stream import queues
from nightbeam.testing.cxi_world import World

WRITER = {
    "ray": {"namespace": "peaknet-pipeline"},
    "queue": {"name": "peaknet_q2", "num_shards": 8, "maxsize_per_shard": 1600},
    "processing": {"num_cpu_workers": 2},
    "peak_finding": {"min_num_peak": 1},
}
PIPELINE = {
    "ray": {"namespace": "peaknet-pipeline"},
    "runtime": {
        "queue_num_shards": 8,
        "queue_maxsize_per_shard": 1600,
        "queue_names": {"output_queue": "peaknet_q2"},
        "enable_output_queue": True,
    },
}


@pytest.fixture
def files(tmp_path):
    writer, pipeline = tmp_path / "writer.yaml", tmp_path / "pipeline.yaml"
    writer.write_text(yaml.safe_dump(WRITER | {"output": {"output_dir": str(tmp_path / "out")}}))
    pipeline.write_text(yaml.safe_dump(PIPELINE))
    return str(writer), str(pipeline)


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(worker, "the_world", made.doors)
    return made


def run(*argv):
    with pytest.raises(SystemExit) as ended:
        cxi_write.cxi_writer(argv)
    return ended.value.code


def test_configurations_that_agree_are_said_line_by_line(files, capsys):
    writer, pipeline = files
    assert run("--validate-config", "--pipeline-config", pipeline, "--writer-config", writer) == 0
    assert capsys.readouterr().out.splitlines() == [
        "✓ Ray namespace matches: peaknet-pipeline",
        "✓ Q2 queue name matches: peaknet_q2",
        "✓ Q2 num shards matches: 8",
        "✓ Configuration validation passed",
    ]


def test_every_mismatch_is_listed_and_the_exit_code_is_one(files, capsys, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"ray": {"namespace": "x"}}))
    assert run("--validate-config", "--pipeline-config", str(other), "--writer-config", files[0]) == 1
    said = capsys.readouterr().err
    assert said.count("✗") == 3  # the pipeline's default is the same name of the queue


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--validate-config", "--pipeline-config", "a"],
        ["--validate-config", "--writer-config", "a"],
        ["--config"],
        ["--config", "a", "--max-pending-tasks", "many"],
        ["--no-such-option"],
        ["--config", "a", "--log-level", "LOUD"],
    ],
)
def test_a_call_that_makes_no_sense_ends_with_two(argv, capsys):
    assert run(*argv) == 2
    assert "usage: cxi-writer" in capsys.readouterr().err


def test_the_version_is_said(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("cxi-writer ")


@pytest.mark.parametrize("text", ["", "ray: [", "queue: {name: q}"])
def test_a_bad_configuration_ends_with_one(tmp_path, capsys, text):
    (tmp_path / "w.yaml").write_text(text)
    assert run("--config", str(tmp_path / "w.yaml")) == 1
    assert "Error" in capsys.readouterr().err


def test_no_cluster_ends_with_one_and_says_what_to_do(files, world, capsys, monkeypatch):
    def none(_):
        raise UnavailableError("no running Ray cluster was found", fix="start one")

    doors = world.doors()
    monkeypatch.setattr(worker, "the_world", lambda: type(doors)(**{**vars(doors), "connect": none}))
    assert run("--config", files[0]) == 1
    assert "start one" in capsys.readouterr().err


def test_shards_that_are_to_be_found_before_there_is_a_queue_end_with_one(files, world, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(queues, "list_queues", list)
    monkeypatch.setattr(queues, "_find", lambda *_: None)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(namespace="peaknet-pipeline"))
    monkeypatch.setattr(worker, "the_world", lambda: replace(world.doors(), source=the_world().source))
    tree = yaml.safe_load(Path(files[0]).read_text())
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump(tree | {"queue": {"name": "q", "num_shards": "auto"}}))
    assert run("--config", str(tmp_path / "auto.yaml")) == 1
    assert "or give a number as `queue.num_shards`, then it is made" in capsys.readouterr().err


def test_a_stream_is_written_and_options_win_over_the_file(files, world, tmp_path, capsys):
    world.send(0)
    world.end()
    where = tmp_path / "elsewhere"
    assert run("--config", files[0], "--output-dir", str(where), "--file-prefix", "abc", "--num-cpu-workers", "3") == 0
    assert "total_events_written: 4" in capsys.readouterr().out
    assert (where / "abc_status.json").exists()
    status = json.loads((where / "abc_status.json").read_text())
    assert (status["state"], len(status["config_sha256"])) == ("ended", 64)


def test_a_signal_ends_it_with_everything_written_and_exit_code_zero(files, world, monkeypatch):
    world.send(0)
    signals = iter([signal.SIGTERM])

    def interrupted(self, timeout_s):
        found = self.messages.popleft() if self.messages else None
        if found is None and (number := next(signals, None)):  # once: the second would end this very process
            signal.raise_signal(number)
        return found

    monkeypatch.setattr(type(world.queue), "take", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert run("--config", files[0]) == 0
    assert len(world.files.events()) == 4
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_log_goes_to_the_file_too(files, world, tmp_path):
    tree = yaml.safe_load(Path(files[0]).read_text())
    path = tmp_path / "logged.yaml"
    path.write_text(yaml.safe_dump(tree | {"system": {"log_file": str(tmp_path / "log" / "w.log")}}))
    world.end()
    assert run("--config", str(path)) == 0
    assert "producer 'p' has ended" in (tmp_path / "log" / "w.log").read_text()


def call(*argv):
    return CliRunner().invoke(cxi, argv, catch_exceptions=True)


def test_the_same_under_nightbeam_cxi(files, world, tmp_path):
    world.send(0)
    world.end()
    done = call("write", "--config", files[0], "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["total_events_written"] == 4
    done = call("validate-config", "--pipeline-config", files[1], "--writer-config", files[0])
    assert done.stdout.splitlines()[-1] == "✓ Configuration validation passed"
    done = call("status", str(tmp_path / "out"), "--json")
    assert json.loads(done.stdout)["state"] == "ended"
    assert "total_events_written" in call("status", str(tmp_path / "out")).stdout
    done = call("account", str(tmp_path / "out"), "--json")
    assert json.loads(done.stdout)["events_missing"] == 0
    assert "received" in call("account", str(tmp_path / "out")).stdout


def test_a_writer_that_is_gone_without_an_end_was_killed(files, world, tmp_path):
    world.end()
    run("--config", files[0])
    path = tmp_path / "out" / "peaknet_cxi_status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running"}))
    assert json.loads(call("status", str(tmp_path / "out"), "--json").stdout)["state"] == "killed"


def test_every_command_of_the_writer_hangs_in_a_group_that_asks_for_it():
    group = click.Group("x")
    cxi_write.add_to(group)
    assert sorted(group.commands) == ["account", "status", "validate-config", "write"]
