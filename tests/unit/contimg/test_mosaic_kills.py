"""A night killed with SIGKILL at every moment that matters, and made again: the same mosaic, and one row."""

from __future__ import annotations

import dataclasses
import json
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from nightbeam.contimg import Site
from nightbeam.contimg.nights import make_night
from nightbeam.contimg.owners import remove_dead_scratch
from nightbeam.core.settings import load_settings

observe_sky = runpy.run_path(str(Path(__file__).resolve().parents[2] / "mosaic_world.py"))["observe_sky"]

pytestmark = pytest.mark.slow
NIGHT = "2025-10-03"
WHENS = [f"{NIGHT}T04:{minute:02d}:00" for minute in (0, 5, 10)]
PRODUCTS = "nightbeam.catalog.products:Products"

#: What is called when, which of its calls, and whether the end comes before or after it.
MOMENTS = [
    (f"{PRODUCTS}.put_plan", 1, "before"),
    (f"{PRODUCTS}.put_plan", 1, "after"),
    ("nightbeam.mosaic.product:PlaneWriter.write", 2, "after"),
    ("nightbeam.mosaic.product:replace_path", 1, "before"),
    ("nightbeam.mosaic.product:replace_path", 2, "after"),
    ("nightbeam.mosaic.product:write_mosaic", 1, "before"),
    ("nightbeam.mosaic.product:write_mosaic", 1, "after"),
    (f"{PRODUCTS}.mosaic_built", 1, "before"),
    (f"{PRODUCTS}.mosaic_built", 1, "after"),
    (f"{PRODUCTS}.replace_qa_artifacts", 1, "before"),
    (f"{PRODUCTS}.put_scores", 1, "before"),  # those of an earlier one are taken away
    (f"{PRODUCTS}.put_scores", 1, "after"),
    (f"{PRODUCTS}.put_scores", 2, "before"),  # its own are put there
    (f"{PRODUCTS}.put_scores", 2, "after"),
    (f"{PRODUCTS}.put_night", 1, "after"),
    (f"{PRODUCTS}.put_night", 2, "before"),
    (f"{PRODUCTS}.put_night", 2, "after"),
]

#: A process that has imported what a night needs, and nothing else: each that is killed is a fork of it.
PARENT = """
import functools, importlib, json, os, signal, sys, traceback
import matplotlib.backends.backend_agg, matplotlib.figure
import nightbeam.contimg.mosaics, nightbeam.contimg.nights, nightbeam.mosaic.product, nightbeam.qa
from nightbeam.cli import main

def die():
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()  # it comes to this thread, or to all of them in a moment

def make(where, nth, when, night):
    module, _, path = where.partition(":")
    *owners, last = path.split(".")
    owner = importlib.import_module(module)
    for name in owners:
        owner = getattr(owner, name)
    real, calls = getattr(owner, last), 0

    @functools.wraps(real)
    def watched(*args, **keywords):
        nonlocal calls
        calls += 1
        mine = calls == nth
        if mine and when == "before":
            die()
        found = real(*args, **keywords)
        if mine and when == "after":
            die()
        return found

    setattr(owner, last, watched)
    main(["mosaic", "nightly", "--night", night])

print("ready", flush=True)
for line in sys.stdin:
    state, said, where, nth, when, night = json.loads(line)
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
            os.dup2(2, 1)
            os.environ["NIGHTBEAM_STATE_DIR"] = state
            os.chdir(os.path.dirname(state))
            make(where, nth, when, night)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Iterator[Callable[[Path, str, int, str], None]]:
    """Make a night in a process that is killed at a moment of its work."""
    home = tmp_path_factory.mktemp("parent")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=home
    )
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"

        def make(state: Path, where: str, nth: int, when: str) -> None:
            said = state.parent / "said"
            print(json.dumps([str(state), str(said), where, nth, when, NIGHT]), file=parent.stdin, flush=True)
            assert int(parent.stdout.readline()) == -signal.SIGKILL, said.read_text()

        yield make
        parent.stdin.close()


def site_at(state: Path) -> Site:
    return Site.from_settings(load_settings(environ={"NIGHTBEAM_STATE_DIR": str(state)}))


def rows(site: Site) -> list[dict[str, Any]]:
    """What the rows say, without times of writing, the site's own directories and headers' dates."""
    found = []
    for row in site.products().mosaics():
        plain = dataclasses.asdict(row)
        del plain["created_at"], plain["built_at"], plain["sha256"], plain["id"]
        found.append(json.loads(json.dumps(plain).replace(str(site.state_dir), "STATE")))
        parameters = json.loads(found[-1].pop("parameters"))
        found[-1]["window"] = parameters["window"]
    return found


def pixels(site: Site) -> dict[str, Any]:
    kinds = ("image", "weight", "noise")
    return {kind: fits.getdata(site.mosaic_dir() / f"night_2025_10_03.{kind}.fits") for kind in kinds}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = site_at(tmp_path_factory.mktemp("undisturbed") / "state")
    observe_sky(site, WHENS)
    make_night(site, NIGHT)
    return site


def judged(site: Site) -> list[Any]:
    products = site.products()
    scores = [(s.name, s.value, s.verdict) for s in products.scores("mosaic", "night_2025_10_03")]
    assert scores
    return [sorted(scores), sorted(a.name for a in products.qa_artifacts("night_2025_10_03"))]


def assert_is_the_same(site: Site, undisturbed: Site) -> None:
    assert len(site.products().mosaics()) == 1
    assert rows(site) == rows(undisturbed)
    for kind, data in pixels(site).items():
        np.testing.assert_array_equal(data, pixels(undisturbed)[kind])
    assert [(n.night, n.state, n.tiles) for n in site.products().nights()] == [(NIGHT, "done", 3)]
    names = [sorted(p.name for p in one.mosaic_dir().iterdir() if p.suffix != ".lock") for one in (site, undisturbed)]
    assert names[0] == names[1]
    assert judged(site) == judged(undisturbed)
    remove_dead_scratch(site.scratch_dir)
    assert not site.scratch_dir.exists() or list(site.scratch_dir.iterdir()) == []


@pytest.mark.parametrize(("where", "nth", "when"), MOMENTS, ids=lambda v: str(v).rpartition(":")[2])
def test_the_same_night_after_a_kill_gives_the_same_mosaic_in_one_row(tmp_path, undisturbed, killed, where, nth, when):
    site = site_at(tmp_path / "state")
    observe_sky(site, WHENS)
    killed(site.state_dir, where, nth, when)
    make_night(site, NIGHT)
    assert_is_the_same(site, undisturbed)
    assert make_night(site, NIGHT).action == "unchanged"


@pytest.mark.parametrize(
    ("where", "nth", "when"), [MOMENTS[1], MOMENTS[4], MOMENTS[7], MOMENTS[8]], ids=lambda v: str(v).rpartition(":")[2]
)
def test_a_night_that_is_killed_while_it_replaces_an_earlier_mosaic_is_never_taken_for_whole(
    tmp_path, undisturbed, killed, where, nth, when
):
    site = site_at(tmp_path / "state")
    observe_sky(site, WHENS)
    late = site.products().images()[0]
    hidden = Path(late.path).rename(tmp_path / "late")
    assert make_night(site, NIGHT).action == "built"
    assert site.products().mosaics()[0].tiles_used == 2
    hidden.rename(late.path)
    killed(site.state_dir, where, nth, when)
    built = (where, when) == MOMENTS[8][::2]
    assert site.products().mosaics()[0].status == ("built" if built else "planned")
    make_night(site, NIGHT)
    assert_is_the_same(site, undisturbed)
