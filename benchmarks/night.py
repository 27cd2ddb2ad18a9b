"""A night that survives: small groups with every fault through a platform, processes of it killed, and an audit.

A simulated night (12 antennas, 4 channels, 24 integrations, an image of 640 pixels by WSClean, interference flagged by
AOFlagger) arrives in compressed real time at a platform of its own: server, workers, schedules, watcher. Meanwhile
processes of it are killed with SIGKILL at drawn moments, whichever of some kind live then. When the queue has drained,
everything is held to the truth of the simulation (nightbeam.testing.audit) and to the same night as the library makes
it by itself in one process, without a platform and undisturbed.

    python benchmarks/night.py [--quick] [--groups 100] [--kills 50] [--rate 40] [--minutes 120] [--json] [--work DIR]

It ends with 1 where anything is not as it should be. With --work it goes on where an earlier call with the same DIR was
stopped, and leaves everything there to be looked at.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Beside this file lies one that bears the name of a module of the standard library.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import suppress  # noqa: E402
from dataclasses import asdict, dataclass, field  # noqa: E402
from typing import Any, Final  # noqa: E402

import numpy as np  # noqa: E402
import psutil  # noqa: E402

CALIBRATOR: Final = "3C48"
#: How often each kind of process is drawn. Groups and what they start are most of what runs.
WEIGHTS: Final = {
    "group": 6, "child of a group": 5, "ingest": 3, "watcher": 2, "worker": 4, "server": 3, "supervisor": 2, "page": 1,
}  # fmt: skip
#: A part of the platform that is younger is left to come up: one that dies too often in a minute is given up.
LEAST_AGE_S: Final = 25.0
#: How long a victim of the kind that was drawn is waited for.
PATIENCE_S: Final = 20.0
#: How often somebody of a kind is asked for before those who are there, if nobody ever is.
MOST_ASKED: Final = 5
SAMPLE_EVERY_S: Final = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 groups, 6 kills, rate 60")
    parser.add_argument("--groups", type=int, help="beside the calibrator's  [default: 100]")
    parser.add_argument("--kills", type=int, help="[default: 50]")
    parser.add_argument("--rate", type=float, help="times faster than the telescope  [default: 40]")
    parser.add_argument("--fault-rate", type=float, help="part of the groups with a fault  [default: 0.5]")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=2, help="groups in work at a time")
    parser.add_argument("--minutes", type=float, default=120.0, help="after which it is not waited for any more")
    parser.add_argument("--no-reference", action="store_true", help="do not make the undisturbed night")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", type=Path, help="where to work and stay; a temporary directory else")
    told = parser.parse_args()
    logging.getLogger("nightbeam").addHandler(logging.NullHandler())  # what is wrong with the night is in the report
    plan = Plan(
        groups=told.groups or (5 if told.quick else 100),
        kills=(6 if told.quick else 50) if told.kills is None else told.kills,
        rate=told.rate or (60.0 if told.quick else 40.0),
        fault_rate=(1.0 if told.quick else 0.5) if told.fault_rate is None else told.fault_rate,
        seed=told.seed,
        at_once=told.at_once,
        too_late=0 if told.quick else 3,
        arrivals="regular" if told.quick else "real",
        beside=told.quick,
    )
    say = _teller(quiet=told.json)
    with tempfile.TemporaryDirectory(prefix="nightbeam-night-") as spare:
        work = (told.work or Path(spare)).absolute()
        report = run_night(plan, work, minutes=told.minutes, reference=not told.no_reference, say=say)
        (work / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report) if told.json else table(report))
    raise SystemExit(0 if report["right"] else 1)


@dataclass(frozen=True)
class Plan:
    """One night. Timeouts are seconds of the clock on the wall; ``beside``: the undisturbed one is made meanwhile."""

    groups: int
    kills: int
    rate: float
    fault_rate: float
    seed: int
    at_once: int
    too_late: int
    arrivals: Any
    beside: bool
    partial_after_s: float = 45.0
    give_up_s: float = 75.0
    set_aside_s: float = 15.0
    minimum_subbands: int = 14

    def spec(self) -> Any:
        """Return what is simulated: groups so far apart that none sees the source of another."""
        from nightbeam.simulate import Fault, SimulationSpec

        # So late that no stop of a machine in between makes it come in time after all.
        late_s = (self.partial_after_s + 300.0) * self.rate
        some = [Fault("late-subband", 3 + k, 2 + k, f"{late_s:.0f}") for k in range(self.too_late)]
        # One group has too few to be imaged.
        some += [Fault("missing-subband", 4 * k, self.groups) for k in range(17 - self.minimum_subbands)]
        return SimulationSpec(
            groups=self.groups + 1, antennas=12, channels=4, integrations=24, calibrator=CALIBRATOR, stride=(3, 2),
            sources=1, calibrator_sources=0, source_radius_deg=0.12, source_flux_jy=(2.0, 4.0), noise=0.5,
            seed=self.seed, faults=tuple(some), fault_rate=self.fault_rate, arrivals=self.arrivals,
        )  # fmt: skip

    def policy(self) -> Any:
        from nightbeam.testing.audit import Policy

        return Policy(self.minimum_subbands, self.partial_after_s * self.rate)


# -- the night --------------------------------------------------------------------------------------------------------


def run_night(plan: Plan, work: Path, *, minutes: float, reference: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Simulate a night, let a platform live through it, and return what is to be said of it."""
    from nightbeam.simulate import read_truth, simulate_subbands
    from nightbeam.testing.audit import (
        Finding,
        audit_memory,
        audit_night,
        audit_processes,
        audit_runs,
        checksums,
        compare_nights,
        not_imaged,
    )

    begin = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    _same_plan(work, plan)
    sky = work / "sky"
    if not (work / "simulated").exists():
        simulate_subbands(sky, plan.spec(), overwrite=sky.exists())
        (work / "simulated").touch()
    truth = read_truth(sky)
    sums = checksums(sky, (arrival.name for arrival in truth.arrivals))
    say(f"{len(truth.groups)} groups, {len(truth.arrivals)} files, {len(truth.faults)} faults")
    night = Night(plan, work, truth, say)
    ram = night.ram
    alone = threading.Thread(
        target=undisturbed, args=(night.settings, plan, work / "undisturbed", sky, truth, say), daemon=True
    )
    if reference and plan.beside:
        alone.start()
    night.live_through(sky, until=begin + 60.0 * minutes)
    findings: list[Any] = []
    try:
        findings += audit_night(night.site, truth, sums, policy=plan.policy(), mounts=[night.site.scratch_ram or ram])
        findings.append(audit_processes(night.layout.prefect_home, night.roots(), at_work=night.at_work()))
        runs = night.runs()
        findings.append(audit_runs(runs))
    finally:
        night.stop()
    findings.append(audit_processes(night.layout.prefect_home, ()))
    met = Counter(kill.kind for kill in night.kills)
    # Of fewer kills some are spent before one of every kind was there to be killed.
    if plan.kills >= 2 * len(WEIGHTS):
        findings += [Finding("killed at least once", kind, "yes", "yes" if met[kind] else "never") for kind in WEIGHTS]
    memory, slopes = audit_memory(night.samples)
    findings += memory
    worst = None
    if reference:
        if plan.beside:
            alone.join()
        site = undisturbed(night.settings, plan, work / "undisturbed", sky, truth, say)
        compared, worst = compare_nights(night.site, site, [group.group_id for group in truth.groups])
        findings += compared
    shutil.rmtree(ram, ignore_errors=True)
    wrong = [asdict(finding) for finding in findings if not finding.right]
    return {
        "right": night.drained and not wrong and len(night.kills) >= plan.kills,
        "drained": night.drained,
        "plan": asdict(plan),
        "seconds": {"all": time.monotonic() - begin, "platform": night.seconds},
        "groups": dict(Counter(plan.policy().stated(truth, group.group_id).state for group in truth.groups)),
        "files": dict(Counter(arrival.outcome for arrival in truth.arrivals)),
        "faults": dict(Counter(event.kind for event in truth.events)),
        "looked_at": dict(Counter(finding.what for finding in findings)),
        "wrong": wrong,
        "kills": [asdict(kill) for kill in night.kills],
        "killed": dict(met),
        "never_killed": [kind for kind in WEIGHTS if not met[kind]] if plan.kills else [],
        "killed_in": dict(Counter(kill.step for kill in night.kills if kill.step)),
        "not_imaged": not_imaged(night.site, truth),
        "attempts": night.attempts(),
        "runs": dict(Counter(str(run["state_type"]) for run in runs)),
        "memory": slopes,
        "worst_pixel": worst,
    }


def _same_plan(work: Path, plan: Plan) -> None:
    said = work / "plan.json"
    if said.exists() and json.loads(said.read_text()) != asdict(plan):
        raise SystemExit(f"{work} holds another night; give its own options again, or another directory")
    said.write_text(json.dumps(asdict(plan)))


def settings_of(plan: Plan, state: Path, ram: Path, ports: tuple[int, int]) -> Any:
    """Return the settings of the platform: its own directories and ports, the smallest images; list its calibrator."""
    from nightbeam.core.settings import load_settings
    from nightbeam.sky import find_calibrator, read_calibrators

    # Other calibrators of the list go through the beam in the course of a night, and this sky does not hold them.
    known = find_calibrator(read_calibrators(), CALIBRATOR)
    listed = state.parent / "calibrators.csv"
    listed.write_text(
        f"name,ra_deg,dec_deg,flux_jy\n{known.name},{known.ra_deg!r},{known.dec_deg!r},{known.flux_jy!r}\n"
    )
    overrides = {
        "state_dir": state, "platform.port": ports[0], "monitor.port": ports[1],
        "platform.pools": {"batch": 3, "casa": plan.at_once},
        "contimg.ingest.settle_s": 0.5, "contimg.ingest.min_subbands": plan.minimum_subbands,
        "contimg.ingest.partial_after_s": plan.partial_after_s, "contimg.ingest.collecting_timeout_s": plan.give_up_s,
        "contimg.ingest.bad_file_wait_s": plan.set_aside_s,
        # A group whose workers are killed is not at fault, however often it is hit.
        "contimg.ingest.max_retries": 10, "contimg.ingest.in_progress_timeout_s": 120.0,
        "contimg.convert.max_workers": 1, "contimg.convert.stage_to_tmpfs": True, "contimg.convert.tmpfs_path": ram,
        "contimg.flag.engine": "aoflagger", "contimg.image.engine": "wsclean", "contimg.image.imsize": 640,
        "contimg.image.cell_arcsec": 5.0, "contimg.image.niter": 200, "contimg.image.chanbin": 4,
        "contimg.image.memory_gb": 1.0, "contimg.calibrate.borrow_days": 2.0,
        "contimg.calibrate.catalogue": listed,
    }  # fmt: skip
    return load_settings(config=Path(os.devnull), overrides=overrides, environ={}).resolved()


@dataclass
class Kill:
    """Who was killed, when, and in the middle of what."""

    second: float
    kind: str
    pid: int
    what: str
    group: str = ""
    step: str = ""


@dataclass
class Night:
    """A platform, the stream that comes to it, and who kills."""

    plan: Plan
    work: Path
    truth: Any
    say: Callable[[str], None]
    kills: list[Kill] = field(default_factory=list)
    samples: list[tuple[float, str, int, float]] = field(default_factory=list)
    drained: bool = False
    seconds: float = 0.0

    def __post_init__(self) -> None:
        from nightbeam.contimg import Site
        from nightbeam.platform import Layout

        state = self.work / "state"
        ports = self.work / "ports.json"
        if not ports.exists():
            ports.write_text(json.dumps([_unused_port(), _unused_port()]))
        shm = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else self.work
        self.ram = shm / f"nightbeam-night-{json.loads(ports.read_text())[0]}-{os.getuid()}"
        self.ram.mkdir(exist_ok=True)
        self.settings = settings_of(self.plan, state, self.ram, tuple(json.loads(ports.read_text())))
        self.layout = Layout(self.settings.state_dir)
        self.site = Site.from_settings(self.settings)
        self.rng = np.random.default_rng([self.plan.seed, 99])
        self._begin = time.monotonic()
        self._delivered = self.work / "delivered"
        self._stop = threading.Event()

    # -- the stream

    def live_through(self, sky: Path, *, until: float) -> None:
        """Start the platform, deliver, kill, and return when the queue has drained or the time is up."""
        from nightbeam import platform
        from nightbeam.simulate.files import TRUTH_NAME

        started = platform.start(self.settings)
        self.say(f"platform up after {started.seconds:.0f} s")
        self.api = platform.PrefectApi(started.api_url)
        self.site.input_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sky / TRUTH_NAME, self.site.input_dir / TRUTH_NAME)
        self._watch_arrivals()
        threads = [threading.Thread(target=work, daemon=True) for work in (lambda: self._feed(sky), self._sample)]
        self._begin = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            self._kill_at(self._moments(), until)
            threads[0].join(max(0.0, until - time.monotonic()))
            self.say(f"all files are there after {time.monotonic() - self._begin:.0f} s")
            self.drained = self._drain(until)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(30.0)
            self.seconds = time.monotonic() - self._begin

    def _watch_arrivals(self) -> None:
        """Start the watcher, and have it started again whatever becomes of it, as a site does."""
        name = "watch-subbands/default"
        watcher = self.api.deployment(name)
        for schedule in watcher["schedules"]:
            path = f"/deployments/{watcher['id']}/schedules/{schedule['id']}"
            self.api._call("PATCH", path, {"active": True})
        self.api.run_deployment(name)

    def _feed(self, sky: Path) -> None:
        from nightbeam.testing.rehearsal import deliver

        done = int(self._delivered.read_text()) if self._delivered.exists() else 0
        arrivals = self.truth.arrivals
        first_s = arrivals[done].arrival_s if done < len(arrivals) else 0.0
        begin = time.monotonic()
        for number in range(done, len(arrivals)):
            wait_s = begin + (arrivals[number].arrival_s - first_s) / self.plan.rate - time.monotonic()
            if self._stop.wait(max(0.0, wait_s)):
                return
            deliver(sky, arrivals[number].name, self.site.input_dir)
            self._delivered.write_text(str(number + 1))

    def _drain(self, until: float) -> bool:
        """Wait until every group has ended and has what it is owed, every bad file is moved, and runs are over."""
        from nightbeam.core.errors import NightbeamError

        said = ""
        while time.monotonic() < until:
            with suppress(NightbeamError):
                counts = self.site.queue().counts()
                waits = counts["collecting"] + counts["pending"] + counts["in_progress"]
                waits += len(self.site.queue().arrears.owed())
                bad = len(self.site.queue().bad_files())
                if not waits and not bad and not self._groups_run():
                    return True
                now = f"{waits} groups (or what they are owed) and {bad} bad files are left: {counts}"
                if now != said:
                    self.say(f"{time.monotonic() - self._begin:5.0f} s  {now}")
                    said = now
            time.sleep(1.0)
        return False

    def _groups_run(self) -> bool:
        from nightbeam.testing.audit import audit_runs

        return any(_flow_of(process) == "group" for process in self._processes()) or not audit_runs(self.runs()).right

    def runs(self) -> list[dict[str, Any]]:
        """Return the runs of groups, as the server knows them."""
        return list(self.api.flow_runs(flows={"name": {"any_": ["group-imaging"]}}))

    def at_work(self) -> list[str]:
        """Return the ids of all runs that the server calls running."""
        found = self.api.flow_runs(types=("RUNNING",))
        return [str(run["id"]) for run in found]

    def attempts(self) -> dict[str, int]:
        """Return how the attempts at all groups ended."""
        queue = self.site.queue()
        found = (attempt.outcome for row in queue.groups() for attempt in queue.attempts(row.group_id))
        return dict(Counter(found))

    def stop(self) -> None:
        from nightbeam import platform

        platform.stop(self.settings)

    # -- who kills

    def _moments(self) -> list[float]:
        """Return when to kill, in seconds from now: drawn over the time in which files come and some beyond."""
        if not self.plan.kills:
            return []
        last = self.truth.arrivals[-self.plan.too_late - 1].arrival_s - self.truth.arrivals[0].arrival_s
        span = last / self.plan.rate + 30.0
        return sorted(float(t) for t in self.rng.uniform(5.0, span, self.plan.kills))

    def _kill_at(self, moments: list[float], until: float) -> None:
        said = self.work / "kills"
        self.kills = [Kill(**json.loads(line)) for line in said.read_text().splitlines()] if said.exists() else []
        order = self._kinds(len(moments))
        asked: Counter[str] = Counter()
        for moment, first in list(zip(moments, order, strict=True))[len(self.kills) :]:
            if self._stop.wait(max(0.0, min(self._begin + moment, until) - time.monotonic())):
                return
            # Whoever was not there when it was asked for is asked for again, before all others.
            met = {kill.kind for kill in self.kills}
            kind = next((one for one in order[: len(self.kills)] if one not in met and asked[one] < MOST_ASKED), first)
            asked[kind] += 1
            while time.monotonic() < until:
                if (kill := self._kill_one(kind)) is not None:
                    self.kills.append(kill)
                    with said.open("a") as file:
                        file.write(json.dumps(asdict(kill)) + "\n")
                    doing = f"{kill.what} {kill.group} {kill.step}".strip()
                    self.say(f"{kill.second:5.0f} s  killed {kill.kind} {kill.pid}: {doing}")
                    break
                kind = order[int(self.rng.integers(len(order)))]

    def _kinds(self, count: int) -> list[str]:
        """Return whom to kill, in this order: each kind once, then as often as its weight says."""
        every = [kind for kind, weight in WEIGHTS.items() for _ in range(weight - 1)]
        found: list[str] = []
        while len(found) < count:
            for some in (list(WEIGHTS), every):
                found += [some[int(k)] for k in self.rng.permutation(len(some))]
        return found[:count]

    def _kill_one(self, kind: str) -> Kill | None:
        until = time.monotonic() + PATIENCE_S
        while not (victims := self._victims(kind)) and time.monotonic() < until:
            time.sleep(0.02)
        if not victims:
            return None
        victim, what = victims[int(self.rng.integers(len(victims)))]
        group, step = self._doing(victim) if kind in ("group", "child of a group") else ("", "")
        try:
            if victim.status() == psutil.STATUS_ZOMBIE:
                return None
            victim.send_signal(signal.SIGKILL)
            with suppress(psutil.TimeoutExpired):
                victim.wait(5.0)
        except psutil.NoSuchProcess:
            return None
        if kind == "supervisor":
            threading.Thread(target=self._up_again, args=(victim,), daemon=True).start()
        return Kill(round(time.monotonic() - self._begin, 1), kind, victim.pid, what, group, step)

    def _up_again(self, dead: psutil.Process) -> None:
        """Do what systemd does."""
        from nightbeam import platform
        from nightbeam.core.errors import NightbeamError

        with suppress(psutil.Error):
            dead.wait(20.0)
        while not self._stop.is_set():
            try:
                started = platform.start(self.settings)
                self.say(f"up again after {started.seconds:.0f} s")
                return
            except NightbeamError as error:
                self.say(f"not up again: {error}")
                time.sleep(5.0)

    def _victims(self, kind: str) -> list[tuple[psutil.Process, str]]:
        if kind == "supervisor":
            return [(process, "supervisor") for process in self._parts(kind)]
        if kind in ("worker", "server", "page"):
            return [(process, name) for process, name in self._old_parts(kind)]
        found = []
        for process in self._processes():
            flow = _flow_of(process)
            if flow == kind:
                found.append((process, flow))
            elif kind == "child of a group" and flow == "":
                name = _child_of_group(process)
                if name:
                    found.append((process, name))
        return found

    def _parts(self, kind: str) -> Iterator[psutil.Process]:
        from nightbeam.platform.files import read_report

        report = read_report(self.layout)
        if report is not None and kind == "supervisor":
            with suppress(psutil.Error, OSError):
                process = psutil.Process(report.pid)
                # Whoever got the number of one that died was born after the last word of it.
                if process.create_time() <= self.layout.report.stat().st_mtime + 0.05:
                    yield process

    def _old_parts(self, kind: str) -> Iterator[tuple[psutil.Process, str]]:
        from nightbeam.platform.files import read_report
        from nightbeam.platform.processes import Process

        report = read_report(self.layout)
        for part in report.parts if report is not None else ():
            named = {"monitor": "page"}.get(part.name, part.name.split("-")[0])
            with suppress(psutil.Error):
                found = Process.find(part.pid, part.created) if named == kind else None
                if found is not None and found.lived_s() > LEAST_AGE_S:
                    yield psutil.Process(found.pid), part.name

    def roots(self) -> set[int]:
        """Return the processes that should always run."""
        from nightbeam.platform.files import read_report

        report = read_report(self.layout)
        return set() if report is None else {report.pid, *(part.pid for part in report.parts if part.pid)}

    def _doing(self, victim: psutil.Process) -> tuple[str, str]:
        from nightbeam.core.errors import NightbeamError

        with suppress(psutil.Error, NightbeamError):
            pids = {victim.pid, *(parent.pid for parent in victim.parents())}
            for row in self.site.queue().groups(state="in_progress"):
                if row.owner_pid in pids:
                    return row.group_id, row.current_step or ""
        return "", "before the claim"

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get("PREFECT_HOME") == str(self.layout.prefect_home)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _sample(self) -> None:
        from nightbeam.platform.files import read_report

        while not self._stop.wait(SAMPLE_EVERY_S):
            report = read_report(self.layout)
            if report is None:
                continue
            named = [("supervisor", report.pid), *((part.name, part.pid) for part in report.parts if part.pid)]
            named += [("watcher", process.pid) for process in self._processes() if _flow_of(process) == "watcher"]
            for name, pid in named:
                with suppress(psutil.Error):
                    self.samples.append((time.monotonic(), name, pid, float(psutil.Process(pid).memory_info().rss)))


_KINDS = {"group-imaging": "group", "ingest-subbands": "ingest", "watch-subbands": "watcher"}


def _flow_of(process: psutil.Process) -> str:
    """Return which flow a process runs, "" if it is none that anybody here asks for, or only the child of one."""
    with suppress(psutil.Error):
        environ = process.environ()
        if environ.get("PREFECT__FLOW_RUN_ID") and any("prefect." in word for word in process.cmdline()[:4]):
            # Where a flow is to be found is told to those of the pool casa alone, its name to all.
            return _KINDS.get(environ.get("PREFECT__FLOW_NAME", ""), "")
    return ""


def _child_of_group(process: psutil.Process) -> str:
    """Return what a process is that works for a group; "" if it is none."""
    with suppress(psutil.Error):
        line = process.cmdline()
        for name in ("nightbeam.casa.child", "wsclean", "aoflagger"):
            if any(name in Path(word).name for word in line[:5]):
                return name
    return ""


# -- the same, undisturbed --------------------------------------------------------------------------------------------


def undisturbed(settings: Any, plan: Plan, top: Path, sky: Path, truth: Any, say: Callable[[str], None]) -> Any:
    """Let the library live through the same night by itself, in one process; return its site."""
    import dataclasses

    from nightbeam.contimg import Site
    from nightbeam.testing.rehearsal import live_through

    site = Site.from_settings(settings)
    ingest = site.ingest.model_copy(
        update={
            "settle_s": 0.0,
            "partial_after_s": plan.partial_after_s * plan.rate,
            "collecting_timeout_s": plan.give_up_s * plan.rate,
            "bad_file_wait_s": plan.set_aside_s * plan.rate,
            "set_aside_dir": None,
        }
    )
    here = dataclasses.replace(
        site, state_dir=top, input_dir=top / "incoming", output_dir=top / "ms", scratch_dir=top / "scratch",
        queue_url=f"sqlite:///{top / 'ingest.sqlite3'}", registry_url=f"sqlite:///{top / 'cal_registry.sqlite3'}",
        products_url=f"sqlite:///{top / 'products.sqlite3'}", ingest=ingest,
        convert=site.convert.model_copy(update={"stage_to_tmpfs": False}),
        mosaic=site.mosaic.model_copy(update={"output_dir": None}),
        housekeeping=site.housekeeping.model_copy(update={"quarantine_dir": None}),
    )  # fmt: skip
    if not (top / "done").exists():
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir(parents=True)
        live_through(here, sky, truth, say=lambda what: say(f"undisturbed: {what}"))
        (top / "done").touch()
    return here


# -- what is said -----------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """Return what a person reads."""
    lines = [
        f"a night of {sum(report['groups'].values())} groups: {_counted(report['groups'])}",
        f"  files: {_counted(report['files'])}",
        f"  faults: {_counted(report['faults'])}",
        f"  platform: {report['seconds']['platform']:.0f} s; all: {report['seconds']['all']:.0f} s; "
        f"{'drained' if report['drained'] else 'NOT DRAINED'}",
        f"  killed: {len(report['kills'])} ({_counted(report['killed'])}); "
        f"never: {', '.join(report['never_killed']) or 'none'}",
        f"  of groups, in: {_counted(report['killed_in'])}",
        f"  attempts: {_counted(report['attempts'])}; runs: {_counted(report['runs'])}",
    ]
    for slope in report["memory"]:
        lines.append(
            f"  memory of {slope['process']:20} {slope['mb']:7.1f} MB, {slope['mb_an_hour']:+8.2f} MB an hour in "
            f"{slope['lived_s']} s"
        )
    if report["worst_pixel"] is not None:
        lines.append(f"  greatest difference from the undisturbed night: {report['worst_pixel']:.2g} of a peak")
    lines.append(f"  not imaged: {len(report['not_imaged'])}")
    lines += [f"    {one['group']} {one['state']:8} {one['reason'][:110]}" for one in report["not_imaged"]]
    lines.append(f"  looked at: {_counted(report['looked_at'])}")
    lines.append(f"  wrong: {len(report['wrong'])}")
    lines += [
        f"    {one['what']} {one['subject']}: expected {one['expected'][:200]!r}, found {one['found'][:200]!r}"
        for one in report["wrong"]
    ]
    lines.append("RIGHT" if report["right"] else "WRONG")
    return "\n".join(lines)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _teller(*, quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if quiet else lambda what: print(what, file=sys.stderr, flush=True)


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
