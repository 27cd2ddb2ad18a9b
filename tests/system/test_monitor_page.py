"""The monitor's page in a real browser, over a night that is well under way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def serving(directory: Path, *, hostile: bool = False) -> Iterator[Served]:
    """Let `nightbeam monitor serve` tell of a night."""
    night = sample_night(directory / "state", hostile=hostile)
    config = directory / "nightbeam.yaml"
    config.write_text(night.settings.to_yaml())
    with (directory / "monitor.log").open("w") as log:
        command = [sys.executable, "-m", "nightbeam", "monitor", "serve"]
        environ = os.environ | {"NIGHTBEAM_CONFIG": str(config)}
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True) as server:
            assert server.stdout is not None
            try:
                yield Served(night, server.stdout.readline().strip())
            finally:
                server.terminate()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A night that no test changes."""
    with serving(tmp_path_factory.mktemp("night")) as served:
        yield served


def see(browser: Any, address: str, shows: str, until: Callable[..., Any]) -> str:
    """Go to a page, load all of its pictures, and return what it says."""
    browser.call("Page.navigate", url=address)
    until(lambda: browser.run("document.readyState == 'complete' && location.href") == address, 30.0, every_s=0.05)
    until(lambda: shows.lower() in browser.text().lower(), 10.0, every_s=0.05)
    browser.run(LOAD_ALL)
    until(lambda: browser.run(UNLOADED) == [], 20.0)
    return str(browser.text())


def test_every_page_is_drawn_with_all_its_pictures_without_a_complaint_and_asks_nobody_else(served, browser, until):
    night, pages = served.night, {
        "/": "Look here first", "/groups": "Attempts", "/calibration": "holds now", "/images": "dynamic range",
        "/mosaics": "Nights", "/elog": "503", "/constants": "ready", "/scans": "chunk 0.3", "/cxi": "Hit rate",
        "/platform": "Nothing runs", "/login": "Token", f"/mosaics/{served.night.mosaic}": "Tiles",
    }  # fmt: skip
    pages |= {f"/groups/{group}": "Arrival" for group, kind in night.groups.items() if kind != "completed"}
    pictures = 0
    for path, words in pages.items():
        see(browser, served.url + path, words, until)
        pictures += browser.run("document.images.length")
    assert pictures > 20
    assert browser.complaints == []
    assert browser.outside() == set()
    browser.run(f"fetch('http://{CONTROL}/from-the-page').catch(() => 0); 0")
    until(lambda: browser.run("1") and browser.complaints, 10.0)
    assert "Content Security Policy" in browser.complaints[0]
    # A page without a policy can ask, and it is seen: that nothing was is no blindness.
    browser.call("Page.navigate", url="about:blank")
    assert browser.hosts_asked(CONTROL) == {"127.0.0.1", CONTROL}
    assert f"http://{CONTROL}/from-the-page" not in browser.asked_by_pages()


def test_states_are_told_by_words_and_what_failed_stands_first(served, browser, until):
    said = see(browser, f"{served.url}/", "Look here first", until)
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


def test_what_changes_is_seen_without_a_reload_unless_the_page_is_held_still(tmp_path, browser, until):
    with serving(tmp_path) as served:
        group = served.night.group("failed")
        see(browser, f"{served.url}/groups?state=failed", group, until)
        browser.run("window.neverReloaded = true; 0")
        Queue(str(served.night.settings.contimg.queue_db)).reprocess(group)
        until(lambda: group not in browser.text(), 30.0)
        assert browser.run("window.neverReloaded") is True
        see(browser, f"{served.url}/groups?refresh=0", "It stands still", until)
        assert browser.run("document.querySelectorAll('[hx-trigger]').length") == 0
        assert browser.complaints == []


def test_a_page_that_is_brought_up_to_date_keeps_a_tick_and_says_when_its_monitor_is_gone(tmp_path, browser, until):
    with serving(tmp_path) as served:
        token = (served.night.settings.state_dir / "monitor.token").read_text().strip()
        group = served.night.group("collecting")
        browser.open(f"{served.url}/login?next=/groups/{group}", shows="Token")
        browser.call("Input.insertText", text=token)
        _press_enter(browser)
        until(lambda: "subbands are missing" in browser.text(), 20.0)
        browser.run("document.getElementById('partial').checked = true; 0")
        browser.run("document.getElementById('made').textContent = 'long ago'; 0")
        browser.run("document.querySelector('#log-panel h2').textContent = 'older'; 0")
        browser.run("document.querySelector('#fresh h1').textContent = 'older'; 0")
        refresh = "htmx.trigger('#fresh', 'seen'); 0"
        browser.run(refresh)
        until(lambda: f"Group {group}" in browser.text(), 20.0)
        assert "long ago" not in browser.text()
        assert "older" not in browser.text().lower()
        assert browser.run("document.getElementById('partial').checked") is True
        assert browser.run("document.querySelectorAll('#made, #log-panel, #fresh, #partial').length") == 4
        assert browser.complaints == []
        # As where the monitor has died, and has come back.
        browser.call("Network.enable")
        browser.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1,
                     uploadThroughput=-1)  # fmt: skip
        browser.run(refresh)
        until(lambda: "The monitor does not answer" in browser.text(), 20.0)
        assert browser.run("document.getElementById('silent').getAttribute('role')") == "alert"
        browser.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1,
                     uploadThroughput=-1)  # fmt: skip
        browser.run(refresh)
        until(lambda: "The monitor does not answer" not in browser.text(), 20.0)


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
    see(browser, f"{served.url}/", "Look here first", until)
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
        see(browser, served.url + path, "All times are UTC", until)
        wide[path] = browser.run(TOO_WIDE)
    assert {path: by for path, by in wide.items() if by > 0} == {}


def test_a_hostile_night_is_shown_and_does_nothing(tmp_path, browser, until):
    browser.call("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.was_run = true }")
    with serving(tmp_path, hostile=True) as served:
        for path in (
            "/",
            f"/groups/{served.night.group('failed')}",
            "/calibration",
            "/mosaics",
            "/elog",
            "/scans",
            "/cxi",
        ):
            said = see(browser, served.url + path, "<script>alert('x')</script>", until)
            assert HOSTILE in re.sub(r"\s+", " ", said)
            assert browser.run("window.was_run") is None, path
    assert browser.complaints == []
