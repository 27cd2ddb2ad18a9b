"""Groups under pressure, with stand-ins for the tools: imaged quickly, owed their full image, made up for in calm."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import FileFact, GroupFact, Owner
from nightbeam.catalog.model import Imaging
from nightbeam.contimg import Site, make_quality, run_group, scan_arrivals, take_dispatchable
from nightbeam.contimg.report import backlog_line, group_report, line_of, next_group
from nightbeam.core.errors import RejectedError, ToolError
from nightbeam.core.settings import ImageSettings

_steps = runpy.run_path(str(Path(__file__).with_name("test_steps.py")))
Fakes, G = _steps["Fakes"], _steps["G"]
site, fakes = _steps["site"], _steps["fakes"]

pytestmark = pytest.mark.slow
OTHERS = Owner("others")


@pytest.fixture
def tools(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-ins, which note how images were asked for and which of them are bad."""
    fakes.asked, fakes.bad, fakes.drawn = [], set(), []
    image, judge, write_qa = fakes.image, fakes.judge, fakes.write_qa

    def note_image(site: Site, *args: Any, **told: Any) -> Any:
        fakes.asked.append(site.image.quick)
        return image(site, *args, **told)

    def note_judge(site: Site, product: Any) -> Any:
        fakes.good = fakes.asked[-1] not in fakes.bad
        return judge(site, product)

    def note_qa(site: Site, group_id: str, **told: Any) -> Any:
        fakes.drawn.append(told.get("figures", True))
        return write_qa(site, group_id, **told)

    return replace(fakes.tools(), image=note_image, judge=note_judge, write_qa=note_qa)


def name(n: int) -> str:
    return f"2025-10-03T{n:02d}:00:00"


def come(site: Site, n: int) -> None:
    for k in range(n):
        fact = GroupFact(name(k), 60951.0 + k, dec_deg=33.0)
        site.queue().record(fact, [FileFact(0, Path(f"/in/{k}_sb00.hdf5"))], expected_subbands=1)


def go(site: Site, n: int) -> None:
    for k in range(n):
        site.queue().claim(name(k), OTHERS)
        site.queue().complete(name(k), OTHERS)


def told(site: Site) -> tuple[Any, ...]:
    row = site.queue().group(G)
    (image,) = site.products().images(group_id=G)
    header = json.loads(Path(image.path).read_text())["imaging"]
    return row.state, row.imaging, row.owed, image.quick, header


def test_a_group_is_imaged_quickly_while_many_wait_and_in_full_when_none_does(site: Site, fakes: Any, tools: Any):
    come(site, 21)
    run_group(site, G, tools=tools)
    assert told(site) == ("completed", "quick", "image", 1, "quick")
    assert (fakes.asked, fakes.drawn) == ([True], [False])
    assert (backlog_line(site)["pressure"], backlog_line(site)["minutes"]) == ("quick", 105.0)
    assert take_dispatchable(site, 99)[-1].group_id == name(20), "nothing is taken up while groups wait"
    go(site, 21)
    fakes.calls.clear()
    assert [d.group_id for d in take_dispatchable(site, 9)] == [G]
    assert next_group(site) == G
    run_group(site, G, tools=tools)
    assert told(site) == ("completed", "full", None, 0, "full")
    assert (fakes.asked, fakes.drawn) == ([True, False], [False, True])
    assert fakes.calls == ["image", "qa"], "the Measurement Set is as it was"
    assert take_dispatchable(site, 9) == []
    assert (line_of(site.queue().group(G))["imaging"], group_report(site, G)["images"][0]["quick"]) == ("full", False)


def test_a_group_whose_imager_died_is_imaged_as_was_decided_though_the_pressure_is_gone(
    site: Site, fakes: Any, tools: Any
):
    come(site, 21)
    fakes.fail["image"] = ToolError("killed")
    with pytest.raises(ToolError):
        run_group(site, G, tools=tools)
    fakes.fail.clear()
    go(site, 21)
    run_group(site, G, tools=tools)
    assert (fakes.asked, told(site)) == ([True, True], ("completed", "quick", "image", 1, "quick"))


def test_a_quick_image_that_is_not_good_is_made_in_full_at_once(site: Site, fakes: Any, tools: Any):
    come(site, 21)
    fakes.bad.add(True)
    run_group(site, G, tools=tools)
    assert (fakes.asked, told(site)) == ([True, False], ("completed", "full", "figures", 0, "full"))


def test_a_group_whose_full_image_is_not_good_either_is_failed_with_the_reason(site: Site, fakes: Any, tools: Any):
    come(site, 21)
    fakes.bad |= {True, False}
    with pytest.raises(RejectedError, match=r"peak 2\.0 times the noise"):
        run_group(site, G, tools=tools)
    assert site.queue().group(G).state == "failed"


def test_figures_are_put_off_while_some_wait_and_drawn_when_none_does(site: Site, fakes: Any, tools: Any):
    come(site, 11)
    run_group(site, G, tools=tools)
    assert told(site) == ("completed", "full", "figures", 0, "full")
    assert site.products().scores("group", G), "scores are not put off"
    go(site, 11)
    fakes.calls.clear()
    assert [d.group_id for d in take_dispatchable(site, 9)] == [G]
    run_group(site, G, tools=tools)
    assert (fakes.calls, fakes.drawn, site.queue().group(G).owed) == (["qa"], [False, True], None)


def test_figures_that_somebody_has_drawn_are_owed_no_longer(site: Site, tools: Any):
    come(site, 11)
    run_group(site, G, tools=tools)
    make_quality(site, G, tools=tools)
    assert site.queue().group(G).owed is None


def test_a_person_has_a_group_imaged_quickly_and_then_in_full_whatever_waits(site: Site, fakes: Any, tools: Any):
    site.queue().arrears.force(G, Imaging.QUICK)
    run_group(site, G, tools=tools)
    assert told(site) == ("completed", "quick", "image", 1, "quick")
    come(site, 21)
    site.queue().arrears.force(G, Imaging.FULL)
    run_group(site, G, tools=tools)
    assert (fakes.asked, told(site)[:2]) == ([True, False], ("completed", "full"))


@pytest.mark.parametrize("mode", ["off", "optional"])
def test_a_site_that_wants_no_quick_images_has_none(site: Site, fakes: Any, tools: Any, mode: str):
    come(site, 21)
    place = replace(site, pressure=site.pressure.model_copy(update={"mode": mode}))
    run_group(place, G, tools=tools)
    assert told(place)[:3] == ("completed", "full", "figures" if mode == "optional" else None)


def test_where_all_images_are_as_small_none_is_owed(site: Site, tools: Any):
    come(site, 21)
    run_group(replace(site, image=ImageSettings(quick=True)), G, tools=tools)
    assert told(site) == ("completed", "full", "figures", 1, "quick")


def test_a_group_that_is_done_again_from_the_beginning_is_decided_anew(site: Site, fakes: Any, tools: Any):
    come(site, 21)
    run_group(site, G, tools=tools)
    go(site, 21)
    site.queue().reprocess(G)
    scan_arrivals(site, tools=tools)
    run_group(site, G, tools=tools)
    assert (fakes.asked, told(site)[:3]) == ([True, False], ("completed", "full", None))


def test_a_full_image_that_is_owed_and_not_good_leaves_the_quick_one_standing(site: Site, fakes: Any, tools: Any):
    come(site, 21)
    run_group(site, G, tools=tools)
    go(site, 21)
    fakes.bad.add(False)
    assert [d.group_id for d in take_dispatchable(site, 9)] == [G]
    run_group(site, G, tools=tools)
    assert told(site) == ("completed", "quick", None, 1, "quick")
    assert (fakes.asked, fakes.drawn) == ([True, False, True], [False, True])
    assert "peak 2.0 times the noise" in (site.queue().receipt(G, "image") or {})["turned_down"]
    assert take_dispatchable(site, 9) == [], "it is owed no longer"
