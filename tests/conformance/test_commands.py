"""Every command has help, a page, and is light until it runs."""

import json
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nightbeam.cli import COMMANDS, nightbeam

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "casatasks",
    "casatools",
    "ray",
    "prefect",
    "sqlalchemy",
    "numpy",
    "astropy",
    "pyuvdata",
    "matplotlib",
)
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])


def every_command(command=nightbeam, path=()):
    context = click.Context(command, info_name=path[-1] if path else "nightbeam")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from every_command(command.get_command(context, name), (*path, name))
    else:
        yield path, command


def test_asking_for_help_costs_less_than_half_a_second_of_cpu():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "nightbeam", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(name in done.stdout for name in COMMANDS)
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 0.5


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import json, sys; import nightbeam.cli as c; import click; ctx = click.Context(c.nightbeam);"
        "[c.nightbeam.get_command(ctx, n) for n in c.COMMANDS]; print(json.dumps(sorted(sys.modules)))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert not set(loaded) & set(HEAVY)


@pytest.mark.parametrize(("path", "command"), [pytest.param(p, c, id=" ".join(p)) for p, c in every_command()])
def test_every_command_and_option_has_help(path, command):
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"nightbeam {' '.join(path)} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_a_page(name):
    said = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    assert re.search(rf"\bnightbeam {name}\b", said), f"docs/reference says nothing of `nightbeam {name}`"


def documented():
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
            joined = block.replace("\\\n", " ")
            for line in re.findall(r"^\$ (nightbeam .*)$", joined, re.MULTILINE):
                yield pytest.param(line, id=f"{page.stem}: {line}")


@pytest.mark.parametrize("line", list(documented()))
def test_a_command_in_the_documentation_exists_with_its_options(line):
    words = shlex.split(re.split(r" [|>&]", line)[0], comments=True)[1:]
    command: click.Command = nightbeam
    context = click.Context(command, info_name="nightbeam")
    while isinstance(command, click.Group):
        while words and words[0].startswith("-") and words[0] != "--help":  # options of the group itself
            words = words[2:]
        if words and words[0] == "--help":
            return
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]!r}"
        command, words = found, words[1:]
    if "--help" not in words:
        command.make_context("documented", words, resilient_parsing=True)
        options = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
        used = [word.split("=")[0] for word in words if word.startswith("--")]
        assert set(used) <= options, f"no such option: {set(used) - options}"
