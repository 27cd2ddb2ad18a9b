"""The pages tell the truth and the HTML builds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nightbeam.core.settings import SEED_VARIABLES, known_keys

ROOT = Path(__file__).resolve().parents[2]


def test_every_setting_and_every_older_variable_is_in_the_reference():
    page = (ROOT / "docs/reference/settings.md").read_text()
    named = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", page, re.MULTILINE))
    assert named == set(known_keys())
    assert not [name for name in SEED_VARIABLES if f"`{name}`" not in page]


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"], ids=lambda p: p.stem)
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists()
