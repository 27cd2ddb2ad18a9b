"""The canary: what it is held to, where it works, and what is left of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from nightbeam.contimg import Site, Tools
from nightbeam.contimg.canary import CanaryReport, canary_site, fly_canary, judge_canary
from nightbeam.core.errors import BusyError, InputError, ToolError
from nightbeam.core.locks import sole_owner
from nightbeam.core.settings import Settings


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.from_settings(Settings.model_validate({"state_dir": tmp_path / "state"}))


@pytest.mark.parametrize(
    ("found", "ratio", "offset", "wrong"),
    [
        (True, 1.0, 0.0, ""),
        (True, 0.96, 0.2, ""),
        (True, 0.9, 0.0, "has 0.900 of its flux"),
        (True, 1.1, 0.0, "has 1.100 of its flux"),
        (True, float("nan"), 0.0, "has nan of its flux"),
        (True, 1.0, 0.5, "is 0.50 beams from its place"),
        (True, 1.0, float("nan"), "is nan beams from its place"),
        (False, 1.0, 0.0, "is not in the image"),
    ],
)
def test_a_canary_is_right_with_its_flux_and_at_its_place(found: bool, ratio: float, offset: float, wrong: str):
    said = judge_canary(found=found, flux_ratio=ratio, offset_beams=offset)
    assert (said == "") == (wrong == "")
    assert wrong in said


def test_nothing_of_the_site_but_its_ways_is_used(site: Site):
    canary, top = canary_site(site), str(site.state_dir / "canary" / "site")
    places = [canary.state_dir, canary.input_dir, canary.output_dir, canary.scratch_dir, canary.mosaic_dir()]
    places += [canary.quarantine_dir(), canary.qa_dir()]
    assert all(str(place).startswith(top) for place in places)
    assert all(top in url for url in (canary.queue_url, canary.registry_url, canary.products_url))
    assert (canary.convert, canary.image.robust) == (site.convert, site.image.robust)
    assert {f.name for f in dataclasses.fields(Site)} == {f.name for f in dataclasses.fields(canary)}


def last(site: Site) -> dict[str, object]:
    found = json.loads((site.state_dir / "canary" / "last.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_a_step_that_fails_is_what_is_left_of_the_canary(site: Site):
    def convert(*_: object, **__: object) -> None:
        raise ToolError("the converter fell over")

    report = fly_canary(site, tools=dataclasses.replace(Tools(), convert=convert))
    assert (report.right, report.found) == (False, "the converter fell over")
    assert (last(site)["right"], last(site)["found"]) == (False, "the converter fell over")
    assert not list(site.state_dir.glob("*.sqlite3"))
    again = fly_canary(site, tools=dataclasses.replace(Tools(), convert=convert))
    assert again.found == "the converter fell over", "what an earlier one left is in nobody's way"


def test_what_is_no_canary_is_not_removed(site: Site):
    precious = site.state_dir / "canary" / "site" / "precious"
    precious.mkdir(parents=True)
    with pytest.raises(InputError, match="holds something that is no canary"):
        fly_canary(site)
    assert precious.is_dir()


class Killed(BaseException):
    pass


def test_one_that_dies_leaves_nothing_that_says_right(site: Site, monkeypatch: pytest.MonkeyPatch):
    record = site.state_dir / "canary" / "last.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"right": True, "found": "1.000 of its flux", "ended_at": 1.0}))

    def dies(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("nightbeam.contimg.canary._fly", dies)
    with pytest.raises(Killed):
        fly_canary(site)
    assert (last(site)["right"], last(site)["flying"]) == (False, True)
    assert last(site)["found"] == "it has begun and not ended"


def test_a_removal_that_is_cut_short_is_in_nobodys_way(site: Site, monkeypatch: pytest.MonkeyPatch):
    from nightbeam.contimg import canary

    def fly(place: Site, *_: object) -> CanaryReport:
        (place.state_dir / "a-large-file").touch()
        return CanaryReport(True, "as it should be")

    monkeypatch.setattr(canary, "_fly", fly)
    assert fly_canary(site).right
    top = site.state_dir / "canary" / "site"

    def cut_short(path: Path) -> None:
        (path / "made-by-nightbeam-canary").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(canary, "remove", cut_short)
        with pytest.raises(Killed):
            fly_canary(site)
    assert fly_canary(site).right
    assert [path.name for path in top.parent.iterdir() if path.is_dir()] == ["site"]


def test_two_do_not_fly_at_once(site: Site):
    with sole_owner(site.state_dir / "locks" / "canary.lock", what="a canary"), pytest.raises(BusyError):
        fly_canary(site)


@pytest.mark.system
@pytest.mark.timeout(300)
def test_the_canary_comes_through_the_real_machine(site: Site):
    report = fly_canary(site)
    assert report.right, report.found
    assert report.flux_ratio == pytest.approx(1.0, abs=0.05)
    assert report.image is not None
    assert Path(report.image).is_file()
    assert not list(site.state_dir.glob("*.sqlite3"))
