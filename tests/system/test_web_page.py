"""The platform's page in a real browser: whatever it shows, it asks nobody but its own server."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

#: No name but our own address is ever found, so that nothing leaves this machine and every attempt is in the log.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--window-size=1400,2400",  # lists are only filled as far as they are seen
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
#: What the test itself asks for from within the page, to know that a request to the outside would be seen.
CONTROL = "outside.invalid"


class Browser:
    """A headless Chromium: where its page goes, and whom the page and all its workers ask."""

    def __init__(self, program: str, directory: Path, until: Callable[..., Any]) -> None:
        self.until, self.net_log, self.asked = until, directory / "net-log.json", set[str]()
        profile = directory / "profile"
        mine = (f"--user-data-dir={profile}", f"--log-net-log={self.net_log}", "about:blank")
        with (directory / "chromium.log").open("wb") as log:
            self.process = subprocess.Popen([program, *FLAGS, *mine], stdout=log, stderr=log, start_new_session=True)
        port_file = profile / "DevToolsActivePort"
        until(lambda: port_file.exists() and port_file.read_text().count("\n"), 60.0)
        port, path = port_file.read_text().split("\n")[:2]
        self.socket = connect(f"ws://127.0.0.1:{port}{path}", proxy=None, max_size=None)
        self.sent, self.session = 0, ""
        (page,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for method in ("Network.enable", "Page.enable", "Runtime.enable"):
            self.call(method)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command to the page (before there is one, to the browser) and return its answer."""
        self.sent += 1
        to = {"sessionId": self.session} if self.session else {}
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params, **to}))
        while True:
            said = json.loads(self.socket.recv(timeout=60.0))
            if said.get("id") == self.sent:
                assert "error" not in said, said
                return dict(said["result"])
            self._note(said)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Network.requestWillBeSent":
            self.asked.add(event["params"]["request"]["url"])
        elif event.get("method") == "Network.webSocketCreated":
            self.asked.add(event["params"]["url"])

    def run(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def text(self) -> str:
        return str(self.run("document.body ? document.body.innerText : ''"))

    def open(self, address: str, *, shows: str) -> None:
        """Go to an address, wait until the page shows some words and has asked nothing new for two seconds."""
        self.call("Page.navigate", url=address)
        try:
            self.until(lambda: shows.lower() in self.text().lower(), 45.0)
        except AssertionError:
            raise AssertionError(f"{address} does not show {shows!r} but {self.text()[-900:]!r}") from None
        before, since = len(self.asked), time.monotonic()
        while time.monotonic() - since < 2.0:
            time.sleep(0.25)
            self.text()
            if len(self.asked) != before:
                before, since = len(self.asked), time.monotonic()

    def close(self) -> None:
        """End it in order, so that its log is complete."""
        if self.process.poll() is None:
            self.session = ""
            self.call("Browser.close")
            self.process.wait(30.0)


@pytest.fixture
def browser(tmp_path: Path, until: Callable[..., Any]) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here: install Debian's chromium")
    browser = Browser(program, tmp_path, until)
    try:
        yield browser
    finally:
        with suppress(ProcessLookupError):
            os.killpg(browser.process.pid, signal.SIGKILL)
        browser.process.wait(30.0)


def outside(addresses: set[str]) -> set[str]:
    return {a for a in addresses if urlsplit(a).scheme not in ("data", "blob", "about") and _host(a) != "127.0.0.1"}


def asked_by_pages(net_log: Path) -> set[str]:
    """Every address that a page or one of its workers asked for, by the browser's own record.

    Chromium itself asks for its maker's services (time, updates); such requests have no page as their initiator.
    """
    record = json.loads(net_log.read_text())
    start = record["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [e["params"] for e in record["events"] if e["type"] == start and "url" in e.get("params", {})]
    return {job["url"] for job in jobs if job["initiator"] != "not an origin"}


def _host(address: str) -> str:
    return urlsplit(address).hostname or ""


def test_the_page_asks_nobody_but_its_own_server_whatever_it_shows(running_platform, browser, until):
    api, base = running_platform.api, running_platform.api.url.removesuffix("/api")
    run = api.run_deployment("flight-check/default")
    until(lambda: api.flow_run(run["id"])["state_type"] == "COMPLETED", 60.0)

    browser.open(f"{base}/dashboard", shows="Login")
    word = base64.b64encode(running_platform.settings.platform.auth_string.encode()).decode()
    browser.run(f"localStorage.setItem('prefect-password', {word!r})")
    browser.open(f"{base}/dashboard", shows="Flow Runs")
    browser.open(f"{base}/runs", shows=run["name"])
    browser.open(f"{base}/runs/flow-run/{run['id']}", shows="flight-check")
    browser.open(f"{base}/deployments", shows="ingest-subbands")
    assert any(a.startswith(f"{base}/api/flow_runs/") for a in browser.asked), "it works: it has read runs"
    assert outside(browser.asked) == set()

    browser.run(
        f"fetch('http://{CONTROL}/asked').catch(() => 0); new Worker(URL.createObjectURL(new Blob(["
        f"\"fetch('http://{CONTROL}/by-a-worker').catch(() => 0)\"]))); 0"
    )
    time.sleep(2.0)
    browser.close()
    asked = asked_by_pages(browser.net_log)
    assert {f"http://{CONTROL}/asked", f"http://{CONTROL}/by-a-worker"} <= asked, "an attempt to leave would be seen"
    assert {_host(a) for a in asked} == {"127.0.0.1", CONTROL}
