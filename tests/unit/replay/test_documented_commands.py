"""What the page on replaying says is run: here with a fake in place of the queue, small files and few events."""

from __future__ import annotations

import re
import shlex
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import nightbeam.cli.replay as commands

PAGE = Path(__file__).resolve().parents[3] / "docs/how-to/replay-frames.md"
#: A test needs no more events and no larger panels.
SMALLER = {"1000": "3", "240": "3", "16x352x384": "2x64x64", "120": "100000"}


@pytest.mark.slow
def test_the_page_does_what_it_says(producer, exported, monkeypatch):
    @contextmanager
    def fake(*_):
        yield producer

    monkeypatch.setattr(commands, "_producer", fake)
    with h5py.File("run42.cxi", "w") as file:
        file["entry_1/data_1/data"] = np.zeros((2, 128, 64), np.float32)
    Path("my_network.pt2").write_bytes(exported.read_bytes())
    text = "".join(re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)).replace("\\\n", " ")
    lines = re.findall(r"^\$ nightbeam stream (.*)$", text, re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        name, *words = [SMALLER.get(word, word) for word in shlex.split(line)]
        if "matched.pt2" not in words:  # to export by torch.export takes long, and has a test
            command = {"replay": commands.replay, "export-network": commands.export_network}[name]
            done = CliRunner().invoke(command, words, standalone_mode=False, catch_exceptions=False)
            assert done.return_value in (0, None)
    assert sum(len(one["metadata"]["source_event"]) for one in producer.sent) == 3 + 2 + 9
    assert Path("truth.jsonl").read_text().count("\n") == 3
    assert Path("matched.pt").exists()
