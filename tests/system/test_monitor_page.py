"""The monitor's page in a real browser, over a night that is well under way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import Queue
from nightbeam.testing.sample_night import HOSTILE, SampleNight, sample_night

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

#: What the test itself asks for from within the page, to know that a request to the outside would be seen.
CONTROL = "outside.invalid"
#: Every picture of the page, also those that nobody has scrolled to yet.
LOAD_ALL = "document.querySelectorAll('img').forEach(i => { i.loading = 'eager' }); 0"
UNLOADED = "[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src)"
#: Whether the page is wider than the window, so that it would have to be moved sideways.
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass
class Served:
    night: SampleNight
    url: str

    def group(self, kind: str) -> str:
        return f"{self.url}/groups/{self.night.group(kind)}"


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """A night of which `nightbeam monitor serve` tells."""
    night = sample_night(tmp_path / "state", hostile="hostile" in request.fixturenames)
    config = tmp_path / "nightbeam.yaml"
    config.write_text(night.settings.to_yaml())
    with (tmp_path / "monitor.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "nightbeam", "monitor", "serve"],
            env=os.environ | {"NIGHTBEAM_CONFIG": str(config)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert server.stdout is not None
        try:
            yield Served(night, server.stdout.readline().strip())
        finally:
            server.terminate()
            server.wait(30.0)


@pytest.fixture
def hostile() -> None:
    """Asks for a night that tries to be run."""


def see(browser: Any, address: str, shows: str, until: Callable[..., Any]) -> str:
    """Go to a page, load all of its pictures, and return what it says."""
    browser.open(address, shows=shows)
    browser.run(LOAD_ALL)
    until(lambda: browser.run(UNLOADED) == [], 20.0)
    return str(browser.text())


def test_every_page_is_drawn_with_all_its_pictures_without_a_complaint_and_asks_nobody_else(served, browser, until):
    night, pages = served.night, {
        "/": "Look here first", "/groups": "Attempts", "/calibration": "holds now", "/images": "dynamic range",
        "/mosaics": "Nights", "/elog": "503", "/constants": "ready", "/scans": "chunk 0.3", "/cxi": "Hit rate",
        "/platform": "Nothing runs", "/login": "Token", f"/mosaics/{served.night.mosaic}": "Tiles",
    }  # fmt: skip
    pages |= {f"/groups/{group}": "Arrival" for kind, group in night.groups.items() if kind != "completed"}
    pictures = 0
    for path, words in pages.items():
        see(browser, served.url + path, words, until)
        pictures += browser.run("document.images.length")
    assert pictures > 20
    assert browser.complaints == []
    assert browser.outside() == set()
    assert browser.hosts_asked(CONTROL) == {"127.0.0.1", CONTROL}


def test_states_are_told_by_words_and_what_failed_stands_first(served, browser, until):
    said = see(browser, served.url, "Look here first", until)
    first = said[said.index("Look here first") :]
    assert first.index(served.night.group("failed")) < first.index(served.night.group("waiting"))
    see(browser, f"{served.url}/groups?limit=200", "Attempts", until)
    shown = browser.run("[...document.querySelectorAll('tbody .state')].map(s => s.innerText.trim())")
    assert {"failed", "waits for gains", "in progress", "pending", "collecting", "completed"} <= set(shown)
    assert browser.run("document.querySelectorAll('tbody .state:not(:has(svg.mark))').length") == 0


def test_a_filter_is_chosen_with_the_form_and_can_be_handed_on_as_an_address(served, browser, until):
    browser.open(f"{served.url}/groups", shows="Attempts")
    browser.run("document.querySelector('select[name=state]').value = 'failed'; 0")
    browser.run("document.querySelector('form[role=search] button').click()")
    until(lambda: "state=failed" in str(browser.run("location.search")), 20.0)
    until(lambda: browser.run("document.querySelectorAll('tbody tr').length") == 2, 20.0)
    address = browser.run("location.href")
    browser.open(address, shows=served.night.group("failed"))
    assert browser.run("document.querySelectorAll('tbody tr').length") == 2
    assert browser.run("document.querySelector('select[name=state]').value") == "failed"
    assert browser.complaints == []


def test_what_changes_is_seen_without_a_reload_unless_the_page_is_held_still(served, browser, until):
    browser.open(f"{served.url}/groups?state=failed", shows=served.night.group("failed"))
    browser.run("window.neverReloaded = true; 0")
    queue = Queue(str(served.night.settings.contimg.queue_db))
    queue.reprocess(served.night.group("failed"))
    until(lambda: served.night.group("failed") not in browser.text(), 30.0)
    assert browser.run("window.neverReloaded") is True
    browser.open(f"{served.url}/groups?refresh=0", shows="It stands still")
    assert browser.run("document.querySelectorAll('[hx-trigger]').length") == 0
    assert browser.complaints == []


def test_a_page_that_nobody_looks_at_asks_for_nothing(served, browser, until):
    browser.open(f"{served.url}/groups", shows="Attempts")
    seen = "Object.defineProperty(document, 'hidden', {configurable: true, value: %s}); "
    ask = "window.asked = 0; addEventListener('htmx:beforeSend', () => { window.asked += 1 }); "
    browser.run(ask + seen % "true" + "htmx.trigger('#fresh', 'seen')")
    assert browser.run("window.asked") == 0
    browser.run(seen % "false" + "document.dispatchEvent(new Event('visibilitychange'))")
    until(lambda: browser.run("window.asked") == 1, 10.0)


def test_all_is_told_and_done_without_javascript(served, browser, until):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    see(browser, served.url, "Look here first", until)
    see(browser, f"{served.url}/groups?state=failed", served.night.group("failed"), until)
    # Scripts of the page are off; the test types and clicks as the browser itself.
    token = (served.night.settings.state_dir / "monitor.token").read_text().strip()
    browser.open(f"{served.url}/login?next=/groups/{served.night.group('failed')}", shows="Token")
    browser.call("Input.insertText", text=token)
    _press_enter(browser)
    until(lambda: "You are logged in" in browser.text(), 20.0)
    assert "Reprocess" in browser.text()
    browser.run("document.querySelector('form[action$=reprocess] button').focus()")
    _press_enter(browser)
    # No platform runs here: the page says so, in words that help.
    until(lambda: "nightbeam up" in browser.text(), 20.0)
    assert browser.outside() == set()


def _press_enter(browser: Any) -> None:
    for kind in ("keyDown", "keyUp"):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        browser.call("Input.dispatchKeyEvent", type=kind, **key)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_a_telephone(served, browser, until, scheme):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    pages = (
        "/",
        "/groups",
        "/calibration",
        "/images",
        "/images?view=table",
        "/mosaics",
        "/elog",
        "/constants",
        "/scans",
        "/cxi",
    )
    wide = {}
    for path in (*pages, f"/groups/{served.night.group('late')}", f"/mosaics/{served.night.mosaic}"):
        see(browser, served.url + path, "nightbeam", until)
        wide[path] = browser.run(TOO_WIDE)
    assert {path: by for path, by in wide.items() if by > 0} == {}


def test_a_hostile_night_is_shown_and_does_nothing(hostile, served, browser, until):
    browser.call("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.was_run = true }")
    group = served.night.group("failed")
    for path in (
        "/",
        "/groups",
        f"/groups/{group}",
        "/calibration",
        "/mosaics",
        "/elog",
        "/constants",
        "/scans",
        "/cxi",
    ):
        said = see(browser, served.url + path, "<script>alert", until)
        assert HOSTILE in re.sub(r"\s+", " ", said)
        assert browser.run("window.was_run") is None, path
    assert browser.complaints == []
