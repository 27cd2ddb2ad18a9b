"""Two machines, one queue on PostgreSQL: one is killed in mid-group, the other's network is cut for a minute."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from astropy.io import fits

from nightbeam import platform
from nightbeam.catalog.model import GroupRow, State
from nightbeam.contimg import STEPS, Site, run_group, scan_arrivals
from nightbeam.core.settings import Settings, load_settings
from nightbeam.platform.files import read_report
from nightbeam.platform.model import Layout, Phase
from nightbeam.platform.processes import free_port
from nightbeam.simulate import SimulationSpec, read_truth, simulate_subbands

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SERVICES = Path(__file__).resolve().parents[2] / "infra" / "services.py"
SMALL = {
    "contimg.ingest.settle_s": 0.5,
    # A machine that is not heard of for this long has lost its groups.
    "contimg.ingest.in_progress_timeout_s": 20.0,
    "contimg.image.imsize": 128,
    "contimg.image.cell_arcsec": 40.0,
    "contimg.image.niter": 20,
    "contimg.image.gridder": "standard",
    "contimg.image.chanbin": 4,
    "contimg.threads": 1,
}
CUT_S = 60.0
#: By which the second machine reaches the first; all of 127/8 is this machine.
FAR = "127.0.0.2"


class Wire:
    """Forwards connections to a port of 127.0.0.1, unless it is cut: then nothing is lost, and nothing comes."""

    def __init__(self, port: int) -> None:
        self._port, self._whole = port, threading.Event()
        self._whole.set()
        self._listener = socket.create_server((FAR, port))
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        self.mend()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                self._whole.wait()
                there = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._whole.wait()
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class Machine:
    """A supervisor with a host name of its own, and whatever it starts."""

    def __init__(self, name: str, settings: dict[str, Any], place: Path, environ: dict[str, str]) -> None:
        self.name, self.state = name, place / name
        place.mkdir(exist_ok=True)
        config = place / f"{name}.yaml"
        config.write_text(yaml.safe_dump(settings))
        up = [sys.executable, "-m", "nightbeam", "--config", str(config)]
        up += ["up", "--foreground", "--state-dir", str(self.state)]
        self._mark = f"TEST_MACHINE={place}/{name}"
        key, _, value = self._mark.partition("=")
        with (place / f"{name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name, *up],
                env={**os.environ, **environ, key: value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if self._mark in (f"{k}={v}" for k, v in process.environ().items()):
                    found.append(process)
        return found

    def is_up(self) -> bool:
        report = read_report(Layout(self.state))
        return report is not None and report.phase is Phase.RUNNING

    def die(self) -> None:
        """As when the plug is pulled: all at once, and nothing is told to anybody."""
        while processes := self.processes():
            for process in processes:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(processes, timeout=10.0)
        self._process.wait(20)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(150)


@contextmanager
def databases() -> Iterator[dict[str, Any]]:
    """Yield the settings of a PostgreSQL and a Redis that run."""
    # Another user owns them where we are root, and could not pass pytest's directory.
    with tempfile.TemporaryDirectory(prefix="nightbeam-services-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        command = [sys.executable, str(SERVICES), "up", "--dir", f"{directory}/services"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 69:
            pytest.skip(done.stderr)
        try:
            assert done.returncode == 0, done.stderr
            yield yaml.safe_load(done.stdout)
        finally:
            command[2] = "down"
            assert subprocess.run(command, check=False).returncode == 0


class Site2:
    """What the two machines and the server have in common."""

    def __init__(self, stack: ExitStack, place: Path, until: Callable[..., Any]) -> None:
        told = stack.enter_context(databases())
        self.place, self.until = place, until
        port = free_port("127.0.0.1", 45200)
        shared = {"state_dir": str(place / "shared"), **told["contimg"]}
        overrides: dict[str, Any] = {"state_dir": place / "server", **SMALL, "monitor.enabled": False}
        overrides |= {f"contimg.{name}": value for name, value in shared.items()}
        overrides |= {f"platform.{name}": value for name, value in told["platform"].items()}
        overrides |= {"platform.port": port, "platform.pools": {"batch": 2}, "platform.server_workers": 1}
        self.settings = load_settings(config=Path(os.devnull), overrides=overrides, environ={}).resolved()
        self.site = Site.from_settings(self.settings)
        self.queue = self.site.queue()
        started = platform.start(self.settings)
        stack.callback(platform.stop, self.settings)
        self.api = platform.PrefectApi(started.api_url)
        base = int(told["contimg"]["queue_db"].partition("@127.0.0.1:")[2].partition("/")[0])
        self.wires = [Wire(port), Wire(base)]
        for wire in self.wires:
            stack.callback(wire.close)
        contimg = self.settings.contimg.model_dump(mode="json")
        pools = {"pools": {"casa": 1}}
        near = {"api_url": f"http://127.0.0.1:{port}/api", **pools}
        far = {"api_url": f"http://{FAR}:{port}/api", **pools}
        common = {"contimg": contimg, "monitor": {"enabled": False}}
        self.doomed = Machine("doomed", {**common, "platform": near}, place / "machines", {})
        stack.callback(self.doomed.die)
        # The same addresses of the databases as everybody's, by another way.
        self.remote = Machine("remote", {**common, "platform": far}, place / "machines", {"PGHOSTADDR": FAR})
        stack.callback(self.remote.stop)
        for machine in (self.doomed, self.remote):
            until(machine.is_up, 240.0)

    def held_by(self, machine: Machine) -> list[GroupRow]:
        return [row for row in self.queue.groups(state=State.IN_PROGRESS) if row.owner_host == machine.name]

    def caught_after(self, machine: Machine, step: str) -> str:
        """Wait until a machine has done a step of a group and is at the next; return the group."""

        def found() -> str | None:
            rows = self.held_by(machine)
            last = STEPS[STEPS.index(step) + 1 :]
            return next(
                (
                    row.group_id
                    for row in rows
                    if self.queue.receipt(row.group_id, step) and not self.queue.receipt(row.group_id, last[0])
                ),
                None,
            )

        return str(self.until(found, 300.0, every_s=0.02))

    def runs_of(self, group_id: str) -> list[dict[str, Any]]:
        return self.api.flow_runs(flow_runs={"name": {"any_": [group_id]}})


@pytest.fixture
def subbands(tmp_path: Path) -> Path:
    """Three groups of 16 subbands and 12 antennas; 3C48 crosses the meridian in the first."""
    small = {"groups": 3, "antennas": 12, "channels": 4, "integrations": 4, "sources": 1}
    simulate_subbands(tmp_path / "sky", SimulationSpec(**small, calibrator="3C48", noise=0.5, seed=5))
    return tmp_path / "sky"


def pixels(site: Site, group_id: str) -> dict[str, np.ndarray]:
    (row,) = site.products().images(group_id=group_id)
    files = {kind: path for kind, path in json.loads(row.files).items() if path.endswith(".fits")}
    return {kind: np.array(fits.getdata(path)) for kind, path in files.items()}


@pytest.mark.skipif(os.geteuid() != 0, reason="a machine's name of its own needs root (unshare --uts)")
def test_one_machine_is_killed_and_the_other_cut_off_and_every_group_is_made_once(subbands, tmp_path, until):
    groups = {group.group_id: group.files for group in read_truth(subbands).groups}
    calibrator = next(iter(groups))
    with ExitStack() as stack:
        here = Site2(stack, tmp_path / "two", until)

        def deliver(group: str) -> None:
            for name in groups[group]:
                shutil.copy2(subbands / name, here.site.input_dir / name)

        def over(group: str) -> bool:
            return here.queue.group(group).state in (State.COMPLETED, State.FAILED)

        here.site.input_dir.mkdir(parents=True, exist_ok=True)
        deliver(calibrator)
        until(lambda: calibrator in {row.group_id for row in here.queue.groups()}, 60.0)
        until(lambda: over(calibrator), 240.0)
        for group in list(groups)[1:]:
            deliver(group)

        cut = here.caught_after(here.remote, "convert")
        for wire in here.wires:
            wire.cut()
        mend = threading.Timer(CUT_S, lambda: [wire.mend() for wire in here.wires])
        mend.start()
        killed = here.caught_after(here.doomed, "convert")
        here.doomed.die()
        mend.join()

        until(lambda: all(over(group) for group in groups), 400.0)
        rows = {group: here.queue.group(group) for group in groups}
        assert {group: (row.state, row.error) for group, row in rows.items()} == {
            group: (State.COMPLETED, rows[group].error) for group in groups
        }
        assert rows[killed].retry_count >= 1
        for group in groups:
            attempts = here.queue.attempts(group)
            assert [a.outcome == "completed" for a in attempts] == [False] * (len(attempts) - 1) + [True]
            assert all(new.started_at >= (old.ended_at or np.inf) for old, new in pairwise(attempts)), (
                "never two at once"
            )
            assert sorted(r.step for r in here.queue.receipts(group)) == sorted(STEPS)
        assert len(here.site.products().images(limit=100)) == len(groups)
        assert len(here.site.products().ms_index(limit=100)) == len(groups)
        until(lambda: not list(here.site.scratch_dir.iterdir()), 60.0)
        made = {group: pixels(here.site, group) for group in (cut, killed)}

    # The same files, by one process and undisturbed.
    alone = reference(here.settings, tmp_path / "alone", here.site.input_dir)
    for group in groups:
        run_group(alone, group)
    for group, found in made.items():
        expected = pixels(alone, group)
        assert set(found) == set(expected)
        for kind, values in expected.items():
            np.testing.assert_array_equal(found[kind], values, err_msg=f"{group} {kind}")


def reference(settings: Settings, state: Path, input_dir: Path) -> Site:
    names = ("state_dir", "output_dir", "scratch_dir", "queue_db", "registry_db", "products_db")
    ready = settings.contimg.ingest.model_copy(update={"settle_s": 0.0})
    contimg = settings.contimg.model_copy(update={**dict.fromkeys(names), "ingest": ready, "input_dir": input_dir})
    contimg = contimg.model_copy(update={"mosaic": contimg.mosaic.model_copy(update={"output_dir": None})})
    site = Site.from_settings(settings.model_copy(update={"state_dir": state, "contimg": contimg}))
    scan_arrivals(site)
    return site
