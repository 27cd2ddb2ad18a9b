"""Every command on the logbook's pages is run, in order, with a logbook on this machine in place of the real one."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from nightbeam.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("docs/how-to/mirror-the-logbook.md", "docs/reference/elog.md")
#: A server of its own, which tests/system/test_elog_browse.py starts; a server that only a site has.
ELSEWHERE = ("browse", "postgresql://")
OURS = ("nightbeam", "elogfetch")


def commands(page: str) -> list[list[str]]:
    blocks = "".join(re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    found = [shlex.split(line) for line in re.findall(r"^\$ (.*)$", blocks.replace("\\\n", " "), re.MULTILINE)]
    ours = [["elog", *words[1:]] if words[0] == "elogfetch" else words[1:] for words in found if words[0] in OURS]
    return [words for words in ours if not any(one in word for one in ELSEWHERE for word in words)]


@pytest.mark.usefixtures("_clean_environ")
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page_do_what_they_should(page, fake, tmp_path, monkeypatch, capsys):
    fake.add_experiment("mfx100012325", params={"PNR": "L-10001"})
    fake.start_run("mfx100012325", params={"beam on": True})
    fake.post("mfx100012325", "the jet restarted")
    fake.populate(1, 5, 2, 3, parameters=14, seed=1)
    for name in [name for name in os.environ if name.startswith("FETCH_ELOG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("NIGHTBEAM_ELOG__BASE_URL", fake.url)
    monkeypatch.setenv("NIGHTBEAM_ELOG__AUTH", "none")
    done = commands(page)
    assert len(done) > 3
    for words in done:
        if "retry" in words:  # which there is no need of where nothing has failed
            fake.fail(None, "500", route="/files$")
            assert run(["elog", "update", "--full", *words[words.index("retry") + 1 :]]) == 2
            fake.recover()
        assert run(words) == 0, f"$ nightbeam {shlex.join(words)}\n{capsys.readouterr().err}"


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)
