"""Every directory of a site on a small file system that is full, or fills in the middle of a step.

What is said, what is kept, and that the step then makes what an undisturbed one makes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

PLAYER = Path(__file__).parents[1] / "full_disk.py"
WSCLEAN = {"contimg.image.engine": "wsclean"}
FLAG = {"contimg.flag.engine": "aoflagger"}


def in_own_mounts() -> list[str]:
    """Return what a program is to be started with so that it may mount; as another than root in its own user names."""
    for words in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        probe = [*words, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return words
    pytest.skip("nothing may be mounted here, neither as root nor in a user namespace")


class Player:
    def __init__(self, root: Path) -> None:
        self.root, self.words = root, in_own_mounts()
        self.known: dict[str, str] = {}

    def run(self, what: str) -> Any:
        done = subprocess.run(
            [*self.words, sys.executable, str(PLAYER), str(self.root), what],
            capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{what}: {done.returncode}\n{done.stderr[-3000:]}"
        return json.loads(done.stdout.splitlines()[-1])

    def undisturbed(self, step: str, settings: dict[str, str]) -> str:
        key = json.dumps([step, settings])
        if key not in self.known:
            case = {"kind": "undisturbed", "step": step, "on": "scratch", "settings": settings}
            self.known[key] = self.run(json.dumps(case))["again"]
        return self.known[key]

    def undisturbed_mosaic(self) -> str:
        if "mosaic" not in self.known:
            self.known["mosaic"] = self.run(json.dumps({"kind": "mosaic"}))["again"]
        return self.known["mosaic"]


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Player:
    player = Player(tmp_path_factory.mktemp("disk"))
    player.run("world")
    return player


#: Which step, which directory, what is left of it when the step has begun, with which settings.
CASES = {
    "convert, output full": ("convert", "out", {"bytes": 0}, {}),
    "convert, output fills": ("convert", "out", {"bytes": 600_000}, {}),
    "convert, scratch full": ("convert", "scratch", {"bytes": 0}, {}),
    "convert, scratch fills while the set is made": ("convert", "scratch", {"bytes": 4_300_000}, {}),
    "convert, scratch fills while the set is closed": ("convert", "scratch", {"bytes": 4_800_000}, {}),
    "convert, no inode in output": ("convert", "out", {"inodes": 3}, {}),
    "convert, no inode in scratch": ("convert", "scratch", {"inodes": 3}, {}),
    "flag, output fills": ("convert", "out", {"bytes": 5_000_000}, FLAG),
    "calibrate, output full": ("calibrate", "out", {"bytes": 0}, {}),
    "calibrate, output fills": ("calibrate", "out", {"bytes": 4_500_000}, {}),
    "calibrate, scratch fills": ("calibrate", "scratch", {"bytes": 20_000}, {}),
    "calibrate, no inode in output": ("calibrate", "out", {"inodes": 70}, {}),
    "apply, output full": ("apply", "out", {"bytes": 0}, {}),
    "apply, scratch full": ("apply", "scratch", {"bytes": 0}, {}),
    "apply, no inode in scratch": ("apply", "scratch", {"inodes": 3}, {}),
    "tclean, scratch full": ("image", "scratch", {"bytes": 0}, {}),
    "tclean, scratch fills": ("image", "scratch", {"bytes": 300_000}, {}),
    "tclean, output fills": ("image", "out", {"bytes": 300_000}, {}),
    "tclean, no inode in scratch": ("image", "scratch", {"inodes": 20}, {}),
    "wsclean, scratch full": ("image", "scratch", {"bytes": 0}, WSCLEAN),
    "wsclean, scratch fills": ("image", "scratch", {"bytes": 300_000}, WSCLEAN),
    "wsclean, output fills": ("image", "out", {"bytes": 300_000}, WSCLEAN),
    "wsclean, no inode in scratch": ("image", "scratch", {"inodes": 5}, WSCLEAN),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_that_finds_no_room_says_so_leaves_nothing_and_is_done_when_there_is_some(player: Player, name: str):
    step, on, left, settings = CASES[name]
    seen = player.run(json.dumps({"step": step, "on": on, "settings": settings, **left}))
    assert (seen["error"] or "nothing").startswith("StorageError: "), seen
    assert "no space left" in seen["error"] or "no room" in seen["error"]
    assert f"/site/{on}" in seen["error"], "it does not name the directory"
    assert (seen["state"], seen["retries"], seen["outcomes"]) == ("pending", 0, ["disk"])
    assert seen["why"] in seen["error"]
    assert seen["halves"] == seen["halves_again"] == []
    assert seen["dispatch"][0] == 0
    assert "free in" in seen["dispatch"][1]
    assert seen["again"] == player.undisturbed(step, settings)


#: The databases lie in the state directory: what stopped the step may not even be written down.
STATE = {
    "the queue, full": ("calibrate", {"bytes": 0}),
    "the queue, no inode": ("calibrate", {"inodes": 0}),
    "products, full after the image": ("image", {"bytes": 50_000}),
    "products and provenance": ("record", {"bytes": 40_000}),
    "figures": ("qa", {"bytes": 150_000}),
}


@pytest.mark.parametrize("name", STATE)
def test_a_full_state_directory_loses_no_row_and_the_group_goes_on(player: Player, name: str):
    step, left = STATE[name]
    seen = player.run(json.dumps({"step": step, "on": "state", **left}))
    assert (seen["error"] or "nothing").startswith("StorageError: no space left for "), seen
    assert "/site/state" in seen["error"]
    assert seen["state"] == "pending"
    assert seen["outcomes"] in (["disk"], ["lost"])
    assert seen["retries"] == (seen["outcomes"] == ["lost"])
    assert seen["halves_again"] == []
    assert seen["again"] == player.undisturbed(step, {})


def test_a_disk_without_room_for_a_step_is_told_before_it_begins(player: Player):
    seen = player.run(json.dumps({"step": "convert", "on": "out", "bytes": 500_000, "guards": True, "dispatch": True}))
    assert "StorageError: " in seen["error"]
    assert "MB" in seen["error"] or "GB" in seen["error"]
    assert len(seen["later"]) == 1, "with room again it is dispatched"


def test_files_that_arrive_while_the_queue_is_full_are_taken_in_later(player: Player):
    seen = player.run(json.dumps({"kind": "ingest"}))
    assert seen["error"].startswith("StorageError: no space left for ")
    assert (seen["new"], len(seen["pending"]), seen["bad"]) == (2, 1, {})


@pytest.mark.parametrize("left", [{"bytes": 40_000}, {"inodes": 1}])
def test_a_bad_file_stays_where_it_is_until_there_is_room_to_move_it_to(player: Player, left: dict[str, int]):
    seen = player.run(json.dumps({"kind": "aside", **left}))
    assert (seen["moved"], seen["there"]) == ([], True)
    (why,) = seen["why"]
    assert "no space left" in why or ("needs " in why and "/site/aside" in why)
    assert seen["halves"] == []
    assert len(seen["later"]) == 1
    assert seen["same"] == [True]


@pytest.mark.parametrize(
    ("on", "left"),
    [
        ("out", {"bytes": 0}),
        ("out", {"bytes": 100_000}),
        ("out", {"inodes": 3}),
        ("scratch", {"bytes": 0}),
        ("scratch", {"bytes": 100_000}),
        ("state", {"bytes": 0}),
        ("state", {"bytes": 120_000}),
    ],
    ids=str,
)
def test_a_mosaic_that_finds_no_room_says_so_and_is_made_when_there_is_some(
    player: Player, on: str, left: dict[str, int]
):
    seen = player.run(json.dumps({"kind": "mosaic", "on": on, **left}))
    assert (seen["error"] or "nothing").startswith("StorageError: no space left for "), seen
    assert f"/site/{on}" in seen["error"], "it does not name the directory"
    assert seen["halves"] == seen["halves_again"] == []
    assert seen["attempts"] in ([], [0]) or on == "state", "where the night's row lies it may stay as it was begun"
    assert seen["row"][:2] == ["built", 3]
    assert seen["again"] == player.undisturbed_mosaic()
