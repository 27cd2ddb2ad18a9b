"""What the page on mosaics says is run, on a night of small tiles."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from nightbeam.cli import nightbeam
from nightbeam.contimg import Site
from nightbeam.contimg.nights import make_night
from nightbeam.core.settings import load_settings

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/how-to/make-a-mosaic.md"
observe_sky = runpy.run_path(str(ROOT / "tests" / "mosaic_world.py"))["observe_sky"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nightbeam.yaml").write_text("state_dir: state\n")
    site = Site.from_settings(load_settings())
    observe_sky(site, [f"2025-10-03T08:{minute:02d}:00" for minute in (5, 10, 15)])
    make_night(site, "2025-10-03")
    lines = re.findall(r"^\$ nightbeam (.*)$", "".join(blocks("console")), re.MULTILINE)
    assert len(lines) == 9
    for line in lines:
        done = CliRunner().invoke(nightbeam, shlex.split(line), standalone_mode=False, catch_exceptions=False)
        assert done.return_value in (0, None, 3), done.output  # 3: a sky of three sources covers too little
    assert Path("hour.image.fits").exists()
    assert Path("hour.noise.fits").exists()
    assert {row.name for row in site.products().mosaics()} == {"night_2025_10_03", "hour"}
    (bad, *_) = site.products().images()
    Path(bad.path).unlink()
    (script,) = blocks("python")
    Path("example.py").write_text(script)
    runpy.run_path("example.py")
    assert capsys.readouterr().out == f"{bad.group_id} it is not there\n"


def test_the_settings_on_the_page_are_settings(tmp_path: Path):
    (text,) = blocks("yaml")
    (tmp_path / "site.yaml").write_text(text)
    mosaic = load_settings(config=tmp_path / "site.yaml", environ={}).contimg.mosaic
    assert (mosaic.max_noise_factor, mosaic.max_astrometry_arcsec) == (8.0, 3.0)
