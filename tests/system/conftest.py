"""One running platform for all system tests that want one (with a password, all schedules inactive); a browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from websockets.sync.client import connect

from nightbeam import platform
from nightbeam.core.settings import Settings, load_settings

PASSWORD = "site:a-password"
#: Groups of 12 antennas and 4 channels become images in seconds, and are judged as ever.
SMALL_GROUPS = {
    "contimg.ingest.settle_s": 0.5,
    "contimg.image.imsize": 128,
    "contimg.image.cell_arcsec": 40.0,
    "contimg.image.niter": 20,
    "contimg.image.gridder": "standard",
    "contimg.image.chanbin": 4,
}
#: Simulated scans are of this air; the service looks for them often.
SIMULATED_SCANS = {"scans.atmosphere": "closed-form", "scans.interval_s": 0.5}
#: The platform's own Ray cluster is a small one.
SMALL_STREAM = {"stream.num_cpus": 1, "stream.object_store_gb": 0.2}


@dataclass
class RunningPlatform:
    settings: Settings
    api: platform.PrefectApi

    @property
    def layout(self) -> platform.Layout:
        return platform.Layout(self.settings.state_dir)

    def pids(self) -> dict[str, int | None]:
        return {part.name: part.pid for part in platform.platform_status(self.settings).parts}

    def processes(self) -> list[psutil.Process]:
        """Every living process that this state directory started, however deep."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("PREFECT_HOME") == str(self.layout.prefect_home)
                told = str(self.settings.state_dir) in " ".join(process.cmdline())
                if (ours or told) and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found


def wait_for(what: Callable[[], Any], seconds: float, *, every_s: float = 0.25) -> Any:
    """Return the first true answer; fail after so many seconds."""
    until = time.monotonic() + seconds
    while not (answer := what()):
        if time.monotonic() > until:
            raise AssertionError(f"did not happen within {seconds} s")
        time.sleep(every_s)
    return answer


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    return wait_for


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def platform_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    state = tmp_path_factory.mktemp("platform") / "state"
    overrides = {
        "state_dir": state,
        "platform.auth_string": PASSWORD,
        "platform.port": unused_port(),
        "monitor.port": unused_port(),
        **SMALL_GROUPS,
        **SIMULATED_SCANS,
        **SMALL_STREAM,
        "stream.port": unused_port(),
        "cxi.config": state.parent / "writer.yaml",
    }
    return load_settings(config=Path(os.devnull), overrides=overrides, environ={}).resolved()


@pytest.fixture(scope="session")
def running_platform(platform_settings: Settings) -> Iterator[RunningPlatform]:
    started = platform.start(platform_settings, schedules=False)
    try:
        yield RunningPlatform(platform_settings, platform.PrefectApi(started.api_url, auth_string=PASSWORD))
    finally:
        platform.stop(platform_settings)


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


class Browser:
    """A headless Chromium: where its page goes, and whom the page and all its workers ask."""

    def __init__(self, program: str, directory: Path, until: Callable[..., Any]) -> None:
        self.until, self.net_log, self.asked = until, directory / "net-log.json", set[str]()
        self.complaints: list[str] = []
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
        for method in ("Network.enable", "Page.enable", "Runtime.enable", "Log.enable"):
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
        elif (complaint := _complaint(event)) is not None:
            self.complaints.append(complaint)

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

    def outside(self) -> set[str]:
        """Every address of another host that the page, or one of its workers, was seen to ask for."""
        return {a for a in self.asked if urlsplit(a).scheme not in ("data", "blob", "about") and host(a) != "127.0.0.1"}

    def asked_by_pages(self) -> set[str]:
        """Every address that a page or one of its workers asked for, by the browser's own record; it must be closed.

        Chromium itself asks for its maker's services (time, updates); such requests have no page as their initiator.
        """
        record = json.loads(self.net_log.read_text())
        start = record["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
        jobs = [e["params"] for e in record["events"] if e["type"] == start and "url" in e.get("params", {})]
        return {job["url"] for job in jobs if job["initiator"] != "not an origin"}

    def hosts_asked(self, control: str) -> set[str]:
        """Ask for a host that is not there from a page and from a worker, close, and return all hosts that were asked.

        That one among them shows that an attempt to leave this machine would be seen.
        """
        self.run(
            f"fetch('http://{control}/asked').catch(() => 0); new Worker(URL.createObjectURL(new Blob(["
            f"\"fetch('http://{control}/by-a-worker').catch(() => 0)\"]))); 0"
        )
        time.sleep(2.0)
        self.close()
        asked = self.asked_by_pages()
        assert {f"http://{control}/asked", f"http://{control}/by-a-worker"} <= asked
        return {host(a) for a in asked}


def _complaint(event: dict[str, Any]) -> str | None:
    """Return what the console of a browser shows in red: errors of scripts, requests and the policy of a page."""
    params = event.get("params", {})
    if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
        return f"{params['entry']['text']} {params['entry'].get('url', '')}"
    if event.get("method") == "Runtime.exceptionThrown":
        return str(params["exceptionDetails"])
    if event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
        return str(params["args"])
    return None


def host(address: str) -> str:
    return urlsplit(address).hostname or ""


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
