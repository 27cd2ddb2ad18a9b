"""A mirror of the logbook: first sync and a sync of nothing new, beside a bare bulk client that stores nothing.

50 experiments with 200 entries, 50 runs of 100 parameters and 200 files each, on a logbook on loopback that answers
after 0, 30 and 200 ms. The floor is a program that asks once for each list, ten at a time, and throws the answers
away. Each figure is from a fresh process; the logbook is a process of its own.

    python benchmarks/elog.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

JOBS = 10
LISTS = ("elog", "runs?includeParams=true", "files", "workflow_definitions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 small experiments")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dir", type=Path, help="where the mirrors are written")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, url, where = options.child
        print(json.dumps({"sync": _sync, "bare": _bare}[what](url, Path(where))))
    elif options.serve:
        _serve(float(options.serve[0]), json.loads(options.serve[1]))
    else:
        size = (8, 20, 5, 20) if options.quick else (50, 200, 50, 200)
        with tempfile.TemporaryDirectory(prefix="nightbeam-bench-", dir=options.dir) as work:
            report = _run(Path(work), size, (0.0, 0.03, 0.2), quick=options.quick)
        print(json.dumps(report) if options.json else _table(report))


def _run(work: Path, size: tuple[int, ...], latencies: tuple[float, ...], *, quick: bool) -> dict:
    rows = [_at(work / f"{1e3 * latency:.0f}", size, latency) for latency in latencies]
    fewer = None if quick else _at(work / "fewer", (10, *size[1:]), 0.0)
    experiments, slowest = size[0], rows[-1]
    aims = {
        "full_sync_at_most_6_requests_an_experiment": all(r["full"]["requests"] <= 6 * experiments for r in rows),
        "nothing_new_at_most_2.1_requests_an_experiment": all(
            r["again"]["requests"] <= 2.1 * experiments for r in rows
        ),
        "nothing_new_writes_no_row": all(r["again"]["written"] == 0 for r in rows),
        "at_200_ms_at_most_1.5_times_the_bare_client": slowest["full"]["seconds"] <= 1.5 * slowest["bare"]["seconds"],
        "at_most_10_in_flight": all(r["full"]["in_flight"] <= JOBS for r in rows),
    }
    if fewer is not None:
        aims["memory_does_not_grow_with_experiments"] = rows[0]["full"]["peak_mib"] < 1.3 * fewer["full"]["peak_mib"]
    return {
        "experiments": experiments,
        "rows": rows,
        "peak_mib_of_10_experiments": fewer and fewer["full"]["peak_mib"],
        "aims": aims,
        "load_average": os.getloadavg()[0],
    }


def _at(work: Path, size: tuple[int, ...], latency: float) -> dict:
    work.mkdir()
    argv = [sys.executable, __file__, "--serve", str(latency), json.dumps(size)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        try:
            full, again, bare = (_child(what, url, work) for what in ("sync", "sync", "bare"))
        finally:
            server.communicate("stop\n")
    return {"latency_ms": 1e3 * latency, "full": full, "again": again, "bare": bare}


def _child(what: str, url: str, work: Path) -> dict:
    argv = [sys.executable, __file__, "--child", what, url, str(work)]
    return json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _serve(latency_s: float, size: list[int]) -> None:
    from nightbeam.testing.elog_service import FakeLogbook

    experiments, entries, runs, files = size
    with FakeLogbook(everyone="jdoe", latency_s=latency_s) as service:
        service.populate(experiments, entries, runs, files, parameters=100, odd=0.0)
        print(service.url, flush=True)
        sys.stdin.readline()


def _sync(url: str, work: Path) -> dict:
    from nightbeam.catalog import Logbook
    from nightbeam.elog.remote import LogbookClient, NoAuth
    from nightbeam.elogsync.model import Policy
    from nightbeam.elogsync.worker import look_around, sync

    book = Logbook(f"sqlite:///{work}/elog.db")
    with LogbookClient(url, auth=NoAuth()) as client:
        begin, cpu = time.perf_counter(), time.process_time()
        plan = look_around(client, book, Policy(everything=not book.experiments()))
        report = sync(client, book, plan, jobs=JOBS)
        assert report.failed == ()
        return {
            "seconds": round(time.perf_counter() - begin, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "requests": client.traffic.requests,
            "written": report.change.written,
            "in_flight": client.traffic.most_in_flight,
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


def _bare(url: str, work: Path) -> dict:
    """Ask once for each list, ten at a time, and keep nothing."""
    import requests

    del work
    own, got = threading.local(), []

    def ask(address: str) -> None:
        if not hasattr(own, "session"):
            own.session = requests.Session()
        answer = own.session.get(address, timeout=300)
        answer.raise_for_status()
        got.append(len(answer.json()))

    begin, cpu = time.perf_counter(), time.process_time()
    names = [e["_id"] for e in requests.get(f"{url}/ws/lgbk/lgbk/ws/experiments", timeout=300).json()["value"]]
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(ask, [f"{url}/ws/lgbk/lgbk/{name}/ws/{what}" for name in names for what in LISTS]))
    return {
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "requests": len(got) + 1,
    }


def _table(report: dict) -> str:
    lines = [f"{report['experiments']} experiments; load average {report['load_average']:.1f}"]
    lines += [f"{'':24}{'seconds':>9}{'CPU s':>8}{'requests':>10}{'rows':>9}{'in flight':>11}{'peak MiB':>10}"]
    for row in report["rows"]:
        for what, name in (("full", "first sync"), ("again", "nothing new"), ("bare", "bare client")):
            each = row[what]
            lines += [
                f"{row['latency_ms']:5.0f} ms, {name:14}{each['seconds']:9.2f}{each['cpu_seconds']:8.2f}"
                f"{each['requests']:10}{each.get('written', ''):>9}{each.get('in_flight', ''):>11}"
                f"{each.get('peak_mib', ''):>10}"
            ]
    if report["peak_mib_of_10_experiments"]:
        lines += [f"peak memory with 10 experiments: {report['peak_mib_of_10_experiments']} MiB"]
    lines += [f"{'met' if met else 'NOT met'}: {aim.replace('_', ' ')}" for aim, met in report["aims"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
