"""Conversion with real consequences: what CASA makes of a set, a kill in the middle, memory, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nightbeam.casa import CasaCall, run_casa
from nightbeam.ms import read_summary, verify_ms
from nightbeam.simulate import SimulationSpec, SkySource, plan_simulation, simulate_subbands
from nightbeam.sky import offset_position
from nightbeam.uvh5 import convert_group

pytestmark = pytest.mark.system


def simulate(out: Path, **size) -> list[Path]:
    """One source of 1 Jy 0.5 deg north-east of the centre; the Gaussian beam leaves most of it."""
    spec = SimulationSpec(noise=None, gains=False, sources=(), beam="gaussian", **size)
    centre = plan_simulation(spec).groups[0]
    ra, dec = offset_position(centre.ra_deg, centre.dec_deg, 0.5, 45.0)
    simulate_subbands(out, SimulationSpec(**{**vars(spec), "sources": (SkySource("ne", float(ra), float(dec), 1.0),)}))
    return sorted(out.glob("*.hdf5"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    return simulate(tmp_path_factory.mktemp("casa") / "g", antennas=12, channels=4)


def image(ms: Path, work: Path) -> tuple[float, float, float, float]:
    """Let tclean make a dirty image; return the peak, its RA and Dec (degrees), and the mean amplitude of the data."""
    from astropy.io import fits
    from astropy.wcs import WCS

    stem = str(work / "img")
    calls = [
        CasaCall("listobs", {"vis": str(ms), "listfile": str(work / "obs.txt")}),
        CasaCall(
            "tclean",
            {
                "vis": str(ms), "imagename": stem, "imsize": 1024, "cell": "3arcsec", "niter": 0, "pblimit": -0.001,
                "gridder": "wproject", "wprojplanes": -1, "weighting": "natural", "stokes": "I",
            },
        ),
        CasaCall("exportfits", {"imagename": f"{stem}.image", "fitsimage": f"{stem}.fits", "dropdeg": True}),
    ]  # fmt: skip
    run_casa(calls, work_dir=work, log=work / "casa.log", timeout_s=200)
    assert "OVRO_MMA" in (work / "obs.txt").read_text()
    with fits.open(f"{stem}.fits") as hdus:
        pixels, wcs = np.squeeze(hdus[0].data), WCS(hdus[0].header, fix=False).celestial
    y, x = np.unravel_index(np.nanargmax(pixels), pixels.shape)
    ra, dec = wcs.wcs_pix2world(x, y, 0)
    from nightbeam.casa import open_table

    with open_table(ms) as table:
        data, flag = table.getcol("DATA"), table.getcol("FLAG")
    return float(pixels[y, x]), float(ra), float(dec), float(np.abs(data[~flag]).mean())


def test_casa_sees_the_source_at_its_place_with_its_flux(files, tmp_path):
    from nightbeam.simulate import read_truth
    from nightbeam.sky import separation

    convert_group(files, tmp_path / "a.ms")
    peak, ra, dec, amplitude = image(tmp_path / "a.ms", tmp_path)
    (source,) = read_truth(files[0].parent).sources
    assert 3600 * separation(ra, dec, source.ra_deg, source.dec_deg) < 5.0  # a pixel is 3 arcsec
    assert peak > 0.95 * amplitude


def test_casa_does_not_see_it_there_with_the_wrong_sign(files, tmp_path, monkeypatch):
    from nightbeam.uvh5 import model

    monkeypatch.setattr(model, "FILE_SIGN", -1)
    convert_group(files, tmp_path / "a.ms")
    peak, *_, amplitude = image(tmp_path / "a.ms", tmp_path)
    assert peak < 0.7 * amplitude


CONVERT = "import sys; from pathlib import Path; from nightbeam.uvh5 import convert_group; \
convert_group(sorted(Path(sys.argv[1]).glob('*.hdf5')), Path(sys.argv[2]))"


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> list[Path]:
    return simulate(tmp_path_factory.mktemp("large") / "g", antennas=32, channels=32)


def test_a_kill_in_the_middle_leaves_nothing_that_looks_finished(large, tmp_path):
    out = tmp_path / "out" / "a.ms"
    argv = [sys.executable, "-c", CONVERT, str(large[0].parent), str(out)]
    killed = 0
    for after_files in range(3):
        child = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < until:
            parts = list(out.parent.glob(".a.ms.*.part/table.f0_TSM0")) if out.parent.exists() else []
            if parts:
                time.sleep(0.05 * after_files)
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        killed += child.wait() == -signal.SIGKILL
        assert killed == 0 or not out.exists() or verify_ms(out)
        assert [p.name for p in out.parent.glob("*.ms")] in ([], ["a.ms"])
        if out.exists():
            break
    assert killed
    report = convert_group(large, out)
    assert verify_ms(out).rows == report.rows
    assert sorted(p.name for p in out.parent.iterdir()) == [".a.ms.lock", "a.ms"]


def test_memory_does_not_grow_with_the_data(large, tmp_path):
    argv = [
        sys.executable,
        "-c",
        CONVERT
        # Not ru_maxrss: it begins with the size of the process that started this one.
        + "; print(next(li for li in open('/proc/self/status') if li.startswith('VmHWM')).split()[1])",
        str(large[0].parent),
        str(tmp_path / "a.ms"),
    ]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="2"))
    assert int(done.stdout.split()[-1]) < 500_000  # kB; the set itself has 160 MB, imports take 250


def test_the_command_converts_complete_groups_and_reports_them(tmp_path):
    simulate_subbands(
        tmp_path / "in",
        SimulationSpec(antennas=4, channels=4, integrations=3, groups=2, sources=1, faults=()),
    )
    next((tmp_path / "in").glob("*T11:5*_sb07.hdf5")).unlink()
    argv = [sys.executable, "-m", "nightbeam", "convert", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    plan = subprocess.run([*argv, "--dry-run", "--json"], check=True, capture_output=True, text=True)
    assert json.loads(plan.stdout)["files"] == 16
    assert not (tmp_path / "out").exists()
    done = subprocess.run([*argv, "--json"], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert "subbands 07 are missing" in done.stderr
    assert "WRITER_TYPE: direct-subband" in done.stderr
    assert read_summary(Path(report["ms"])).rows == report["rows"] == 16 * 3 * 10
    both = subprocess.run([*argv, "--partial"], check=True, capture_output=True, text=True)
    assert "07" in both.stdout
    assert len(list((tmp_path / "out").glob("*.ms"))) == 2


def test_the_command_says_what_is_wrong_in_two_lines(tmp_path):
    (tmp_path / "2025-10-03T11:48:57_sb00.hdf5").write_text("no")
    argv = [sys.executable, "-m", "nightbeam", "convert", str(tmp_path / "2025-10-03T11:48:57_sb00.hdf5")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 65
    assert "is not an HDF5 file" in done.stderr
    assert "Traceback" not in done.stderr
