"""What `infra/` holds for systemd, containers, Kubernetes and Slurm speaks of commands and settings that exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders

from nightbeam.cli import nightbeam
from nightbeam.core.settings import Settings, load_settings

INFRA = Path(__file__).resolve().parents[2] / "infra"
UNITS = sorted((INFRA / "systemd").glob("*.service"))
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
WORKERS = yaml.safe_load((INFRA / "kubernetes" / "workers.yaml").read_text())
POOL = json.loads((INFRA / "kubernetes" / "pool.json").read_text())


def parses(words: list[str]) -> None:
    """Have our own command line read the words, without doing what they say."""
    command: click.Command = nightbeam
    context = click.Context(nightbeam)
    while isinstance(command, click.Group):
        word, words = words[0], words[1:]
        found = command.get_command(context, word)
        assert found is not None, word
        command = found
    command.make_context("infra", list(words))


def are_settings(environ: dict[str, str]) -> Settings:
    given = {name: re.sub(r"\$\{\w+:\?\}", "word", str(value)) for name, value in environ.items()}
    return load_settings(config=Path(os.devnull), environ=given).resolved()


@pytest.fixture
def fake_home(tmp_path: Path) -> Path:
    """Return a place whose program `nightbeam` writes down how it was called, and ends well when told to."""
    program = tmp_path / "bin" / "nightbeam"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/bash\n"
        f"trap 'echo told > {tmp_path}/told; exit 0' TERM\n"
        f'env > {tmp_path}/environ; echo "$@" > {tmp_path}/called; echo ready\n'
        "while kill -0 $PPID; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_units_are_what_systemd_reads_and_call_us_rightly(unit: Path, tmp_path: Path):
    text = unit.read_text()
    for line in re.findall(r"^Exec\w+=/opt/nightbeam/bin/nightbeam (.*)$", text, re.MULTILINE):
        parses(shlex.split(line))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: install Debian's systemd")
    here = tmp_path / unit.name
    here.write_text(re.sub(r"/opt/nightbeam/bin/\w+", "/bin/true", text).replace("User=nightbeam", "User=root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_containers_name_only_what_is_there_and_listen_on_loopback_alone():
    services = COMPOSE["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service.get("volumes", []):
            name = volume.partition(":")[0]
            assert name.startswith("$") or name in COMPOSE["volumes"], volume
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
    sites = [are_settings(services[name]["environment"]).contimg for name in ("server", "worker", "monitor")]
    # Each that starts saves the site for the flows of all; the last one must not change it.
    assert sites[0] == sites[1] == sites[2]
    places = ("state_dir", "input_dir", "output_dir", "scratch_dir")
    assert all(getattr(sites[0], place).is_relative_to("/data") for place in places)
    for name in ("server", "worker"):  # who writes there: the server's supervisor its alarms
        assert any(volume.endswith(":/data") for volume in services[name]["volumes"]), name
    parses(services["monitor"]["command"])
    made = {f"nightbeam_{name}" for name in ("queue", "registry", "products")}
    assert made == set(re.findall(r"CREATE DATABASE (\w+);", COMPOSE["configs"]["databases"]["content"]))


def test_the_image_starts_the_platform_as_a_command_of_ours():
    text = (INFRA / "Dockerfile").read_text()
    entry, command = (
        json.loads(re.findall(rf"^{word} (\[.*\])$", text, re.MULTILINE)[0]) for word in ("ENTRYPOINT", "CMD")
    )
    assert entry[-1] == "nightbeam"
    parses(command)


def test_no_password_stands_in_a_command_line():
    for name, service in COMPOSE["services"].items():
        assert "PASSWORD" not in json.dumps(service.get("command", [])), name
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]
    assert "requirepass ${REDIS_PASSWORD" in COMPOSE["configs"]["redis"]["content"]


def test_pods_of_workers_start_us_with_settings_that_exist():
    (container,) = WORKERS["spec"]["template"]["spec"]["containers"]
    assert container["imagePullPolicy"] == "IfNotPresent"
    parses(container["args"])
    are_settings({item["name"]: item["value"] for item in container["env"]})
    spec = WORKERS["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in spec["template"]["spec"]["volumes"]}


def test_the_template_of_a_pool_of_pods_is_whole_and_makes_a_job():
    variables = POOL["variables"]
    jsonschema.Draft202012Validator.check_schema(variables)
    used = {placeholder.name for placeholder in find_placeholders(POOL["job_configuration"])}
    assert used == set(variables["properties"])
    values: dict[str, Any] = {n: p["default"] for n, p in variables["properties"].items() if "default" in p}
    values |= {"name": "group", "env": {"A": "b"}, "labels": {"c": "d"}}
    jsonschema.validate(values, variables)
    job = apply_values(POOL["job_configuration"], values)["job_manifest"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 60
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert "{{" not in json.dumps(job)
    container = pod["containers"][0]
    # The image's own entry point ends with our command line, which is not what runs a flow.
    assert "nightbeam" not in container["command"]
    assert container["args"] == "python -m prefect.engine"


@pytest.mark.timeout(90)
@pytest.mark.parametrize("cores", ["2", "8"])
def test_a_slurm_job_ends_its_workers_and_asks_to_be_queued_again(fake_home: Path, cores: str):
    scontrol = fake_home / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/bash\necho "$@" > {fake_home}/asked\n')
    scontrol.chmod(0o755)
    environ = {
        "PATH": f"{fake_home / 'bin'}:{os.environ['PATH']}",
        "NIGHTBEAM_HOME": str(fake_home),
        "NIGHTBEAM_CONFIG": "/shared/worker.yaml",
        "SLURM_JOB_ID": "17",
        "SLURM_CPUS_PER_TASK": cores,
        "SLURM_TMPDIR": str(fake_home),
    }
    job = subprocess.Popen(["bash", str(INFRA / "slurm" / "worker.sbatch")], env=environ, stdout=subprocess.PIPE)
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == b"ready\n"
        parses((fake_home / "called").read_text().split())
        told = dict(line.partition("=")[::2] for line in (fake_home / "environ").read_text().splitlines())
        assert json.loads(told["NIGHTBEAM_PLATFORM__POOLS"]) == {"casa": max(1, int(cores) // 4)}
        are_settings({name: value for name, value in told.items() if name.startswith("NIGHTBEAM_PLATFORM")})
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 0
    finally:
        job.kill()
        job.stdout.close()
    assert (fake_home / "told").read_text() == "told\n"
    assert (fake_home / "asked").read_text() == "requeue 17\n"


def test_a_slurm_job_without_settings_says_which_are_wanted(fake_home: Path):
    environ = {"PATH": os.environ["PATH"], "NIGHTBEAM_HOME": str(fake_home)}
    done = subprocess.run(
        ["bash", str(INFRA / "slurm" / "worker.sbatch")], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "name the settings of the workers" in done.stderr
