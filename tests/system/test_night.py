"""A small night with faults through a platform whose processes are killed: all as it should be, nothing twice."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from astropy.io import fits

from nightbeam.contimg import Site
from nightbeam.core.settings import load_settings
from nightbeam.imaging import product_path
from nightbeam.simulate import read_truth
from nightbeam.testing.audit import compare_nights, judge_image_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

NIGHT = Path(__file__).resolve().parents[2] / "benchmarks" / "night.py"


def test_a_night_whose_processes_are_killed_ends_as_stated_and_as_an_undisturbed_one(tmp_path: Path):
    command = [sys.executable, str(NIGHT), "--quick", "--seed", "11", "--minutes", "12", "--json"]
    done = subprocess.run([*command, "--work", str(tmp_path)], capture_output=True, text=True, check=False)
    report = json.loads(done.stdout or "{}")
    assert report, done.stderr[-3000:]
    assert report["wrong"] == []
    assert (done.returncode, report["drained"], len(report["kills"])) == (0, True, 6), report["kills"]
    assert len(report["killed"]) >= 4, "of several kinds"
    assert report["groups"] == {"completed": 4, "failed": 1, "partial": 1}
    assert [one["state"] for one in report["not_imaged"]] == ["failed"]
    (came,) = re.findall(r"(\d+) of 16 subbands, missing sb", report["not_imaged"][0]["reason"])
    assert int(came) < report["plan"]["minimum_subbands"]

    # Had it been otherwise, it would have been seen.
    site = Site.from_settings(load_settings(config=tmp_path / "state" / "nightbeam.yaml", environ={}))
    other = _beside(site, tmp_path / "undisturbed")
    truth = read_truth(tmp_path / "sky")
    group = truth.groups[0]
    assert judge_image_of(site, truth, group) == ""
    brighter = replace(truth, sources=tuple(replace(one, flux_jy=1.1 * one.flux_jy) for one in truth.sources))
    assert "of its flux" in judge_image_of(site, brighter, group)
    with fits.open(product_path(other.image_stem(group.group_id), "image"), mode="update") as file:
        file[0].data[..., 320, 320] *= 1.001
    (wrong,) = (one for one in compare_nights(site, other, [group.group_id])[0] if not one.right)
    assert wrong.what == "pixels as undisturbed"


def _beside(site: Site, top: Path) -> Site:
    return replace(
        site,
        input_dir=top / "incoming",
        output_dir=top / "ms",
        queue_url=f"sqlite:///{top / 'ingest.sqlite3'}",
        products_url=f"sqlite:///{top / 'products.sqlite3'}",
    )
