"""What the real tools are told: the settings of the site reach the functions that work on data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightbeam.contimg import TOOLS, Site
from nightbeam.core.settings import Settings


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
