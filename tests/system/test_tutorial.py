"""Every command of the tutorial, in order, in an empty directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.system
@pytest.mark.timeout(600)
def test_the_first_night_works_as_written(tmp_path):
    page = (ROOT / "docs/tutorials/first-night.md").read_text()
    commands = re.findall(r"^\$ (.*)$", "".join(re.findall(r"```console\n(.*?)```", page, re.DOTALL)), re.MULTILINE)
    assert len(commands) >= 6
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    assert list((tmp_path / "state/ms/images").glob("*.img.image.pbcor.fits"))


@pytest.mark.system
def test_the_example_of_the_library_alone_finds_its_calibrator(tmp_path):
    example = ROOT / "examples" / "image_one_group.py"
    done = subprocess.run([sys.executable, example, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^0137\+331 +16\.50 Jy: +16\.\d\d Jy, +\d\.\d arcsec away", done.stdout, re.MULTILINE), (
        done.stdout
    )
