"""What the platform costs: from the last subband to the start of its run, and how fast the queue is when it is long.

Two parts. `queue`: operations of the queue with 100,000 groups (1.6 million files) in it, on SQLite and on PostgreSQL,
each beside the same change as one bare UPDATE in a transaction of its own through the database's own driver. `chain`:
small groups through a platform with its watcher; the time from the last subband's final name to the start of its run
and to its image, and the CPU of everything that runs there less that of the same groups without any platform, as a
share of what a full-size group takes (benchmarks/group.py; --work-cpu).

    python benchmarks/platform.py [--quick] [--json] [--parts queue,chain] [--groups 100000] [--work DIR]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A module of the standard library bears the name of this file. Python looks first beside the script that it runs, so
# it finds this one here, whichever benchmark it is that runs; from here on it does not look there any more.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
if __name__ == "platform":
    del sys.modules["platform"]
    import platform  # noqa: F401

import argparse  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager, suppress  # noqa: E402
from typing import Any  # noqa: E402

INFRA = Path(__file__).resolve().parents[1] / "infra"
CADENCE_S = 309.24
AIM_START_S = 3.0
AIM_SHARE = 0.05
#: How long a platform is watched while nothing comes; its schedules repeat within this.
IDLE_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 groups in the queue, two through the platform")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--parts", default="queue,chain")
    parser.add_argument("--groups", type=int, default=100_000)
    parser.add_argument("--work", type=Path, help="where to work; a temporary directory else")
    parser.add_argument("--work-cpu", type=float, default=300.0, help="CPU seconds of a full-size group")
    told = parser.parse_args()
    parts = told.parts.split(",")
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="nightbeam-bench-", dir=told.work) as work:
        if "queue" in parts:
            report["queue"] = queue(Path(work), 2_000 if told.quick else told.groups)
            if not told.json:
                print(_queue_table(report["queue"]), flush=True)
        if "chain" in parts:
            report["chain"] = chain(Path(work) / "chain", 2 if told.quick else 6, told.work_cpu)
            if not told.json:
                print(_chain_table(report["chain"]), flush=True)
    if told.json:
        print(json.dumps(report))


# -- the queue ------------------------------------------------------------------------------------------------------


def queue(work: Path, groups: int) -> dict[str, Any]:
    """Measure both databases."""
    found = {"groups": groups, "sqlite": _queue_on(f"sqlite:///{work}/queue.sqlite3", groups)}
    with _postgresql() as url:
        found["postgresql"] = None if url is None else _queue_on(url, groups)
    return found


def _queue_on(url: str, groups: int) -> dict[str, float]:
    from nightbeam.catalog import Queue
    from nightbeam.catalog.model import FileFact, GroupFact, Owner, State

    opened = Queue(url)
    filled = _clock(lambda: _fill(opened, groups))
    owner = Owner("bench", "bench", os.getpid(), time.time(), None)
    names = [_group(groups + k) for k in range(200)]
    rates: dict[str, float] = {"filled_s": filled}

    def each(what: Callable[[str], object], of: list[str] = names) -> float:
        begin = time.perf_counter()
        for name in of:
            what(name)
        return len(of) / (time.perf_counter() - begin)

    def record(name: str) -> None:
        mjd = 60_000.0 + int(name[-8:].replace(":", "")) / 1e6 + names.index(name)
        files = [FileFact(k, Path(f"/new/{name}_sb{k:02d}.hdf5"), 1, 1.0) for k in range(16)]
        opened.record(GroupFact(name, mjd, mjd, 54.57), files)

    rates["bare update"] = _bare(url, 200)
    rates["record 16 files"] = each(record)
    rates["dispatch"] = 1.0 / _clock(lambda: opened.take_dispatchable(4))
    rates["claim"] = each(lambda name: opened.claim(name, owner))
    rates["heartbeat"] = each(lambda name: opened.heartbeat(name, owner))
    rates["receipt"] = each(lambda name: opened.put_receipt(name, owner, "convert", {"ms": "/a.ms"}, seconds=1.0))
    rates["complete"] = each(lambda name: opened.complete(name, owner))
    rates["counts"] = each(lambda _: opened.counts(), names[:5])
    rates["pending groups"] = each(lambda _: opened.groups(state=State.PENDING), names[:20])
    there = [f"/data/{_group(n)}_sb{k:02d}.hdf5" for n in range(min(groups, 6_250)) for k in range(16)]
    rates[f"known of {len(there):,} paths"] = each(lambda _: opened.known_among(there), names[:2])
    return rates


def _fill(opened: Any, groups: int) -> None:
    import sqlalchemy as sa

    from nightbeam.catalog import schema

    for first in range(0, groups, 5_000):
        numbers = range(first, min(first + 5_000, groups))
        rows = [
            {"group_id": _group(n), "state": "completed", "received_at": float(n), "last_update": float(n),
             "expected_subbands": 16, "retry_count": 0, "start_mjd": n / 300.0, "attempts": 1}
            for n in numbers
        ]  # fmt: skip
        files = [
            {"group_id": _group(n), "subband_idx": k, "path": f"/data/{_group(n)}_sb{k:02d}.hdf5", "size_bytes": 1,
             "mtime": 1.0, "recorded_at": 1.0, "late": 0}
            for n in numbers for k in range(16)
        ]  # fmt: skip
        with opened.database.write() as connection:
            connection.execute(sa.insert(schema.QueueTable.__table__), rows)
            connection.execute(sa.insert(schema.SubbandTable.__table__), files)


def _bare(url: str, count: int) -> float:
    """Return how many single changes a second the driver makes by itself, each in a transaction of its own."""
    change = "UPDATE ingest_queue SET last_update = {} WHERE group_id = {}"
    if url.startswith("sqlite"):
        import sqlite3

        connection: Any = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("PRAGMA synchronous=NORMAL")
        change = change.format("?", "?")
    else:
        import psycopg

        connection = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        change = change.format("%s", "%s")
    begin = time.perf_counter()
    for number in range(count):
        connection.execute(change, (float(number), _group(number)))
    rate = count / (time.perf_counter() - begin)
    connection.close()
    return rate


def _group(number: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_700_000_000 + number * CADENCE_S))


@contextmanager
def _postgresql() -> Iterator[str | None]:
    """Yield the address of a database, with PostgreSQL's own defaults of durability, or None where there is none."""
    import yaml

    with tempfile.TemporaryDirectory(prefix="nightbeam-bench-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        command = [sys.executable, str(INFRA / "services.py"), "up", "--dir", f"{directory}/services"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"no figures of PostgreSQL: {done.stderr.strip()}", file=sys.stderr)
            yield None
            return
        try:
            yield yaml.safe_load(done.stdout)["contimg"]["queue_db"]
        finally:
            command[2] = "down"
            subprocess.run(command, check=True)


def _clock(what: Callable[[], object]) -> float:
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def _queue_table(report: dict[str, Any]) -> str:
    lines = [
        f"queue with {report['groups']:,} groups: operations a second (times the bare update of the same database)"
    ]
    lines.append(f"{'':20}{'SQLite':>18}{'PostgreSQL':>18}")
    for what in report["sqlite"]:
        cells = []
        for name in ("sqlite", "postgresql"):
            rates = report[name]
            if rates is None:
                cells.append(f"{'-':>18}")
            elif what == "filled_s":
                cells.append(f"{rates[what]:>16.1f} s")
            else:
                cells.append(f"{rates[what]:>10.1f} ({rates[what] / rates['bare update']:4.2f})")
        lines.append(f"{what:20}{''.join(cells)}")
    return "\n".join(lines)


# -- the chain ------------------------------------------------------------------------------------------------------


def chain(work: Path, groups: int, work_cpu_s: float) -> dict[str, Any]:
    """Let small groups arrive one after the other on a platform of our own, and measure each."""
    from nightbeam import platform
    from nightbeam.contimg import Site
    from nightbeam.core.settings import load_settings
    from nightbeam.simulate import SimulationSpec, read_truth, simulate_subbands

    work.mkdir(parents=True)
    sky = work / "sky"
    small = {"antennas": 12, "channels": 4, "integrations": 4, "sources": 1}
    simulate_subbands(sky, SimulationSpec(groups=groups + 1, calibrator="3C48", noise=0.5, seed=3, **small))
    overrides = {
        "state_dir": work / "state", "contimg.ingest.settle_s": 0.5, "contimg.image.imsize": 128,
        "contimg.image.cell_arcsec": 40.0, "contimg.image.niter": 20, "contimg.image.chanbin": 4,
        "platform.pools": {"batch": 2, "casa": 1}, "monitor.enabled": False,
    }  # fmt: skip
    settings = load_settings(config=Path(os.devnull), overrides=overrides, environ={}).resolved()
    site = Site.from_settings(settings)
    site.input_dir.mkdir(parents=True)
    all_groups = read_truth(sky).groups
    rows = []
    started = platform.start(settings)
    try:
        platform.PrefectApi(started.api_url).run_deployment("watch-subbands/default")
        time.sleep(20.0)  # until it is at work
        idle = -_cpu_of(settings.state_dir)
        time.sleep(IDLE_S)
        idle += _cpu_of(settings.state_dir)
        for group in all_groups:
            before, begun = _cpu_of(settings.state_dir), time.time()
            for name in group.files:
                shutil.copyfile(sky / name, site.input_dir / f".{name}")
                (site.input_dir / f".{name}").rename(site.input_dir / name)
            arrived = time.time()
            row = _await_group(site, group.group_id)
            seen = {"platform_cpu_s": _cpu_of(settings.state_dir) - before, "wall_s": time.time() - begun}
            rows.append(seen | _measured(site, group.group_id, arrived, row))
    finally:
        platform.stop(settings)
    alone = _alone(settings, work / "alone", [group.group_id for group in all_groups])
    for row, cpu_s in zip(rows, alone, strict=True):
        row["alone_cpu_s"] = cpu_s
        # What the platform spends on doing nothing it spends anyhow.
        row["orchestration_cpu_s"] = row["platform_cpu_s"] - cpu_s - idle / IDLE_S * row["wall_s"]
    first, *others = rows  # the calibrator's, which also solves
    return {
        "groups": len(others), "calibrator": first, "others": others, "idle_cpu_of_a_core": idle / IDLE_S,
        "work_cpu_s": work_cpu_s,
    }  # fmt: skip


def _await_group(site: Any, group_id: str) -> Any:
    from nightbeam.core.errors import MissingError

    until = time.monotonic() + 600.0
    while time.monotonic() < until:
        with suppress(MissingError):
            row = site.queue().group(group_id)
            if row.state == "failed":
                raise SystemExit(f"group {group_id} failed: {row.error}")
            if row.state == "completed":
                return row
        time.sleep(0.2)
    raise SystemExit(f"group {group_id} has not ended after ten minutes")


def _measured(site: Any, group_id: str, arrived: float, row: Any) -> dict[str, float]:
    queue = site.queue()
    begun = min(attempt.started_at for attempt in queue.attempts(group_id))
    steps_s = sum(receipt.seconds or 0.0 for receipt in queue.receipts(group_id))
    return {
        "to_start_s": begun - arrived,
        "to_image_s": row.finished_at - arrived,
        "steps_s": steps_s,
        "between_s": row.finished_at - begun - steps_s,
    }


def _alone(settings: Any, state: Path, groups: list[str]) -> list[float]:
    """Return the CPU seconds of each group by itself, without any platform, program start included."""
    from nightbeam.core.settings import CONFIG_VARIABLE

    names = ("output_dir", "scratch_dir", "queue_db", "registry_db", "products_db", "state_dir")
    contimg = settings.contimg.model_copy(update=dict.fromkeys(names))
    contimg = contimg.model_copy(update={"mosaic": contimg.mosaic.model_copy(update={"output_dir": None})})
    tidy = contimg.housekeeping.model_copy(update={"quarantine_dir": None})
    contimg = contimg.model_copy(update={"housekeeping": tidy})
    state.mkdir()
    (state / "alone.yaml").write_text(settings.model_copy(update={"state_dir": state, "contimg": contimg}).to_yaml())
    environ = {**os.environ, CONFIG_VARIABLE: str(state / "alone.yaml")}
    run = "import sys; from nightbeam.cli import main; sys.argv[0] = 'nightbeam'; main()"
    subprocess.run(
        [sys.executable, "-c", run, "groups", "scan", "--wait", "10"], env=environ, capture_output=True, check=True
    )
    found = []
    for group in groups:
        before = os.times()
        argv = [sys.executable, "-c", run, "groups", "run", group]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        after = os.times()
        if done.returncode != 0:
            raise SystemExit(f"alone, group {group} ended with {done.returncode}: {done.stderr[-500:]}")
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        found.append(spent)
    return found


def _cpu_of(state: Path) -> float:
    """Return the CPU seconds, so far, of all processes of a platform and of those that they have waited for."""
    import psutil

    from nightbeam.platform.files import read_report
    from nightbeam.platform.model import Layout

    report = read_report(Layout(state))
    supervisor = report.pid if report is not None else None  # its environment is that of whoever started it
    total = 0.0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.environ().get("PREFECT_HOME") == str(state / "prefect")
            if ours or process.pid == supervisor:
                total += sum(process.cpu_times()[:4])
    return total


def _chain_table(report: dict[str, Any]) -> str:
    others = report["others"]
    lines = [f"platform: {report['groups']} small groups one after the other (median, worst)"]
    for what, label in (
        ("to_start_s", f"last subband to start of its run (aim {AIM_START_S:.0f} s)"),
        ("to_image_s", "last subband to recorded image"),
        ("steps_s", "  of that our steps"),
        ("between_s", "  of that between the claim and the end, but not in a step"),
        ("platform_cpu_s", "CPU of the platform meanwhile"),
        ("alone_cpu_s", "CPU of the same group without a platform"),
        ("orchestration_cpu_s", "CPU of orchestration"),
    ):
        values = [row[what] for row in others]
        lines.append(f"  {label:60}{statistics.median(values):8.2f} s{max(values):8.2f} s")
    share = statistics.median(row["orchestration_cpu_s"] for row in others) / report["work_cpu_s"]
    lines += [
        f"  orchestration of a group: {share:.1%} of the {report['work_cpu_s']:.0f} CPU s of a full-size one "
        f"(aim {AIM_SHARE:.0%}); a platform with nothing to do: {report['idle_cpu_of_a_core']:.2f} of a core"
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
