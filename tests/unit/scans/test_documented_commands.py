"""Every command and every example in Python on the pages of scans is run, in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from nightbeam.cli import main
from nightbeam.core.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_clean_environ")]

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("docs/how-to/calibrate-scans.md", "docs/reference/scans.md")


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_do_what_they_say(page: str, capsys: pytest.CaptureFixture[str]):
    lines = re.findall(r"^\$ nightbeam (.*)$", "".join(blocks(page, "console")), re.MULTILINE)
    assert len(lines) >= 7
    for words in map(shlex.split, lines):
        # Scan 3 of both nights has no reference, and fails unless others are asked for.
        owed = 2 if words[1] == "calibrate" and not {"--scan", "--dry-run"} & set(words) else 0
        assert run(words) == owed, f"$ nightbeam {shlex.join(words)}\n{capsys.readouterr().err}"
    for text in blocks(page, "python"):
        space: dict[str, object] = {}
        exec(compile(text, page, "exec"), space)
        if "peak_ghz" in space:
            assert space["peak_ghz"] == pytest.approx(809.3, abs=0.02)
    assert list(Path().glob("*.png"))
    for text in blocks(page, "yaml"):
        assert Settings.model_validate(yaml.safe_load(text)).scans.max_cal_age_s == 900
