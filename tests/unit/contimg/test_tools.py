"""What the real tools are told: the settings of the site reach the functions that work on data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from nightbeam.contimg import TOOLS, Site
from nightbeam.contimg.pressure import as_quick
from nightbeam.core.settings import ImageSettings, Settings


@pytest.fixture
def site(tmp_path: Path) -> Site:
    contimg = {"threads": 3, "image": {"timeout_s": 77.0, "niter": 5}, "calibrate": {"pointing_dec_deg": 16.1}}
    return Site.from_settings(Settings.model_validate({"state_dir": tmp_path, "contimg": contimg}))


def test_the_imager_has_the_sites_limit_and_threads(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: dict[str, Any] = {}
    monkeypatch.setattr("nightbeam.imaging.image_ms", lambda _ms, _stem, **given: told.update(given))
    TOOLS.image(site, tmp_path / "a.ms", tmp_path / "a", provenance={}, work=tmp_path, log=tmp_path / "log")
    assert (told["timeout_s"], told["threads"]) == (77.0, 3)
    assert (told["options"].niter, told["options"].datacolumn) == (5, "corrected")


@pytest.mark.parametrize(("of_the_files", "used"), [(33.0, 33.0), (None, 16.1)])
def test_the_sites_declination_is_used_only_where_the_files_have_none(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_the_files: float | None, used: float
):
    told: dict[str, Any] = {}
    monkeypatch.setattr("nightbeam.gains.other_sources", lambda *_args, **_given: (), raising=False)
    monkeypatch.setattr("nightbeam.gains.solve_gains", lambda *_args, **given: told.update(given))
    TOOLS.solve(site, tmp_path, SimpleNamespace(), tmp_path, dec_deg=of_the_files, work=tmp_path, log=tmp_path / "log")
    assert (told["options"].pointing_dec_deg, told["options"].threads) == (used, 3)


@pytest.mark.parametrize(("imaging", "noise_mjy"), [("full", (40.0, 100.0)), ("quick", (80.0, 200.0))])
def test_a_quick_image_is_judged_by_limits_that_fit_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imaging: str, noise_mjy: tuple[float, float]
):
    told: dict[str, Any] = {}

    class Product:
        provenance: ClassVar[dict[str, str]] = {"imaging": imaging}
        freq_hz, noise_jy, peak_jy, deepest_jy = 1.4e9, 0.01, 1.0, 0.0

    monkeypatch.setattr("nightbeam.imaging.ImageProduct", Product)
    monkeypatch.setattr("nightbeam.qa.write_qa", lambda *_args, **given: told.update(given))
    TOOLS.write_qa(
        site, "2025-10-02T01:02:03", ms=tmp_path, tables=(), product=Product(), calibration=None, subbands=None,
        figures=False,
    )  # fmt: skip
    assert (told["limits"].noise_mjy, told["figures"]) == (noise_mjy, False)


def test_a_quick_site_asks_for_few_pixels_and_components(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: dict[str, Any] = {}
    monkeypatch.setattr("nightbeam.imaging.image_ms", lambda _ms, _stem, **given: told.update(given))
    usual = replace(site, image=ImageSettings(imsize=1024, niter=1000, cell_arcsec=3.0))
    TOOLS.image(as_quick(usual), tmp_path / "a.ms", tmp_path / "a", provenance={}, work=tmp_path, log=tmp_path / "l")
    options = told["options"]
    assert (options.imsize, options.niter, options.cell_arcsec) == (512, 300, 3.0)
