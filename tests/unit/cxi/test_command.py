"""``nightbeam cxi check`` and ``nightbeam cxi plot``."""

from __future__ import annotations

import json

import h5py
import pytest
from click.testing import CliRunner

from nightbeam.cli.cxi import cxi
from nightbeam.cxi.writing import CxiWriter


@pytest.fixture
def run():
    return lambda *words: CliRunner().invoke(cxi, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def files(plan, geometry, make_batch):
    writer = CxiWriter(plan, geometry=geometry)
    for n in range(2):
        writer.submit(make_batch(n))
    writer.flush_final()
    return sorted(writer.plan.output_dir.glob("*.cxi"))


def test_a_good_file_ends_with_0_and_the_geometry_beside_it_is_found(run, files):
    done = run("check", files[0], "--json")
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert (said["good"], said["events"], said["num_peaks"], said["findings"]) == (True, 4, [2, 2, 2, 2], [])


def test_all_files_of_a_list_are_checked(run, files):
    done = run("check", files[0].parent / "p.lst", files[0].parent / "p.geom", "--json")
    assert [json.loads(line)["events"] for line in done.stdout.splitlines()] == [4, 2]


def test_a_finding_ends_with_3_and_is_told(run, files):
    with h5py.File(files[0], "r+") as file:
        del file["/entry_1/result_1/peakTotalIntensity"]
    done = run("check", files[0])
    assert done.exit_code == 3
    assert "peakTotalIntensity" in done.stderr


def test_a_figure_is_drawn_beside_the_file(run, files):
    done = run("plot", *files)
    assert done.exit_code == 0
    assert files[0].with_suffix(".png").is_file()


def test_a_frame_can_be_chosen_and_drawn_as_it_lies_in_the_file(run, files, tmp_path):
    done = run("plot", files[0], "--event", "1", "--slab", "-o", tmp_path / "a.png", "--json")
    assert json.loads(done.stdout) == {"kind": "figure", "path": str(tmp_path / "a.png")}
