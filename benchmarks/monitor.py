"""The monitor under 50 clients that ask without pause, on 100,000 groups and 300,000 products.

Each address is asked by 50 connections at once, each of which asks again as soon as it has its answer: what is
measured is the worst that 50 people, or a thousand who also read, can do. An address with {any} is another group's
each time, so that no answer is shared. The floor is a server with the same rules
for every answer (host, headers, sizes) and one route that returns a constant. Server and clients share the machine.

    python benchmarks/monitor.py [--quick] [--json] [--seconds S] [--clients N] [--pause S] [--work DIR] [--only TEXT]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

GROUPS, IMAGES_A_GROUP = 100_000, 2
QUICK_GROUPS = 2_000
SETS_EVERY = 100
CADENCE_S = 309.24
STEPS = ("convert", "calibrate", "apply", "image", "record", "qa")
LIMIT_MS = 200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 groups and half a second an address")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, help="for each address")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that a client looks at what it got")
    parser.add_argument("--work", type=Path, help="keep the databases here, and use them again")
    parser.add_argument("--only", default="", help="addresses that contain this")
    options = parser.parse_args()
    groups = QUICK_GROUPS if options.quick else GROUPS
    seconds = options.seconds or (0.5 if options.quick else 5.0)
    with tempfile.TemporaryDirectory(prefix="nightbeam-bench-") as scratch:
        state = (options.work or Path(scratch)).absolute()
        filled_s = fill(state, groups)
        report = {
            "groups": groups,
            "clients": options.clients,
            "seconds": seconds,
            "pause_s": options.pause,
            "filled_s": round(filled_s, 1),
        }
        with serving(_floor_argv(), "floor") as (pid, port):
            report["floor"] = measure(pid, port, "/", groups, options.clients, seconds, options.pause)
        argv = [sys.executable, "-m", "nightbeam", "monitor", "serve", "--state-dir", str(state)]
        with serving(argv, "monitor") as (pid, port):
            report["start_rss_mb"] = round(psutil.Process(pid).memory_info().rss / 1e6, 1)
            report["pages"] = {
                path: measure(pid, port, path, groups, options.clients, seconds, options.pause)
                for path in addresses(groups)
                if options.only in path
            }
            report["end_rss_mb"] = round(psutil.Process(pid).memory_info().rss / 1e6, 1)
    worst = max((page["p95_ms"] for page in report["pages"].values()), default=0.0)
    report["worst_p95_ms"] = worst
    print(json.dumps(report) if options.json else table(report), flush=True)


def addresses(groups: int) -> list[str]:
    """Return every route with its usual questions, and every page."""
    middle = group_id(groups // 2)
    day = group_id(groups // 2)[:10]
    api = [
        "/api/health", "/api/tonight", "/api/status", "/api/products", "/api/calibrator_matches",
        "/api/calibrator_matches?matched_only=true", "/api/qa", "/api/qa/thumbs", "/api/metrics/system",
        "/api/metrics/system/history", "/api/groups", "/api/groups?state=completed", "/api/groups?state=failed",
        f"/api/groups?text={day}", "/api/groups?text=3C48", f"/api/groups?before={middle}", f"/api/groups/{middle}",
        "/api/ms_index", "/api/ms_index?stage=imaged", "/api/ms_index?status=failed", "/api/ui/calibrators",
        "/api/calibration", "/api/images", f"/api/images?since={day}T00:00:00Z&until={day}T23:59:59Z",
        "/api/mosaics", "/api/mosaics/night_0100", "/api/nights", "/api/scores", "/api/scores?verdict=bad",
        f"/api/scores?kind=group&subject={middle}", "/api/quarantine", "/api/elog", "/api/constants", "/api/scans",
        "/api/cxi", "/api/platform", "/metrics",
        # Each client asks for another one each time, so that nobody shares an answer.
        "/api/groups/{any}", "/api/groups?before={any}", "/api/images?limit=20&since={any}",
        "/api/scores?kind=group&subject={any}",
    ]  # fmt: skip
    return api + pages(middle) + [path.replace(middle, "{any}") for path in pages(middle) if middle in path]


def pages(middle: str) -> list[str]:
    """Return the addresses of the page's own routes, where there is one."""
    try:
        from nightbeam.monitor.pages import router
    except ImportError:
        return []
    given = {"{group_id}": middle, "{group}": middle, "{name}": "night_0100"}
    found = []
    for route in router.routes:
        path, methods = getattr(route, "path", ""), getattr(route, "methods", None) or ()
        for mark, value in given.items():
            path = path.replace(mark, value)
        if "GET" in methods and "{" not in path:
            found.append(path)
    return found


# -- the databases ------------------------------------------------------------------------------------------------


def group_id(number: int) -> str:
    """Return the name of a group; the last of them begins now."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_700_000_000 + number * CADENCE_S))


def fill(state: Path, groups: int) -> float:
    """Make the three databases, unless they are there; returns the seconds that took."""
    import sqlalchemy as sa

    from nightbeam.catalog import schema
    from nightbeam.catalog.remote import Database

    begin = time.perf_counter()
    if (state / "products.sqlite3").exists():
        return 0.0
    queue, registry, products = (
        Database(f"sqlite:///{state}/{name}", which)
        for name, which in (
            ("ingest.sqlite3", "queue"), ("cal_registry.sqlite3", "registry"), ("products.sqlite3", "products")
        )
    )  # fmt: skip

    def put(database: Database, table: type, rows: list[dict]) -> None:
        with database.write() as connection:
            connection.execute(sa.insert(table.__table__), rows)

    matches = json.dumps([{"name": "3C48", "ra_deg": 24.4, "dec_deg": 33.2, "sep_deg": 0.3, "weighted_flux": 12.5}])
    states = ["completed"] * 97 + ["failed", "failed", "collecting"]
    size = 5_000
    for first in range(0, groups, size):
        numbers = range(first, min(first + size, groups))
        put(queue, schema.QueueTable, [_queue_row(n, states[n % 100], matches) for n in numbers])
        put(queue, schema.SubbandTable, [row for n in numbers for row in _subband_rows(n)])
        put(queue, schema.AttemptTable, [_attempt_row(n) for n in numbers])
        put(queue, schema.ReceiptTable, [row for n in numbers for row in _receipt_rows(n)])
        put(
            queue,
            schema.PerformanceTable,
            [
                {"group_id": group_id(n), "total_time": 61.2, "writer_type": "direct-subband", "recorded_at": _at(n)}
                for n in numbers
            ],
        )
        put(products, schema.MsTable, [_ms_row(n) for n in numbers])
        put(products, schema.ImageTable, [row for n in numbers for row in _image_rows(n)])
        put(products, schema.QaArtifactTable, [row for n in numbers for row in _artifact_rows(n)])
        put(products, schema.QaScoreTable, [row for n in numbers for row in _score_rows(n)])
    put(registry, schema.CalTable, [row for n in range(0, groups, SETS_EVERY) for row in _table_rows(n)])
    put(registry, schema.CalSetTable, [_set_row(n) for n in range(0, groups, SETS_EVERY)])
    nights = range(groups // 280 + 1)
    put(products, schema.MosaicTable, [_mosaic_row(n) for n in range(max(400, len(nights)))])
    put(
        products,
        schema.NightTable,
        [
            {"night": group_id(n * 280)[:10], "state": "done", "tiles": 270, "attempts": 1, "updated_at": _at(n)}
            for n in range(0, len(nights), 2)
        ],
    )
    return time.perf_counter() - begin


def _at(number: int) -> float:
    return 1_700_000_000 + number * CADENCE_S


def _mjd(number: int) -> float:
    return _at(number) / 86400.0 + 40587.0


def _queue_row(n: int, state: str, matches: str) -> dict:
    return {
        "group_id": group_id(n), "state": state, "received_at": _at(n), "last_update": _at(n) + 200.0,
        "expected_subbands": 16, "retry_count": 0, "has_calibrator": int(n % 96 == 0),
        "calibrators": matches if n % 96 == 0 else "[]", "start_mjd": _mjd(n), "start_source": "header",
        "mid_mjd": _mjd(n) + 0.0018, "dec_deg": 54.57, "attempts": 1, "processing_stage": state,
        "error": "the imager failed: exit code 1" if state == "failed" else None, "finished_at": _at(n) + 200.0,
    }  # fmt: skip


def _subband_rows(n: int) -> list[dict]:
    name = group_id(n)
    return [
        {"group_id": name, "subband_idx": k, "path": f"/data/incoming/{name}_sb{k:02d}.hdf5", "size_bytes": 145_348_600,
         "mtime": _at(n) + k, "recorded_at": _at(n) + k + 2.0, "late": 0}
        for k in range(16)
    ]  # fmt: skip


def _attempt_row(n: int) -> dict:
    return {
        "group_id": group_id(n),
        "attempt": 1,
        "owner": f"run {n}",
        "started_at": _at(n) + 20,
        "ended_at": _at(n) + 200,
        "outcome": "completed",
    }


def _receipt_rows(n: int) -> list[dict]:
    return [
        {
            "group_id": group_id(n),
            "step": step,
            "attempt": 1,
            "finished_at": _at(n) + 20 + 30 * k,
            "seconds": 29.0,
            "content": "{}",
        }
        for k, step in enumerate(STEPS, 1)
    ]


def _ms_row(n: int) -> dict:
    return {
        "path": f"/data/ms/{group_id(n)}.ms", "start_mjd": _mjd(n), "end_mjd": _mjd(n) + 0.0036,
        "mid_mjd": _mjd(n) + 0.0018,
        "processed_at": _at(n) + 200, "status": "failed" if n % 50 == 0 else "done", "stage": "imaged",
        "stage_updated_at": _at(n) + 200, "cal_applied": 1, "group_id": group_id(n), "calibration_set": "set",
    }  # fmt: skip


def _image_rows(n: int) -> list[dict]:
    name = group_id(n)
    return [
        {"path": f"/data/ms/images/{name}.img.{kind}.fits", "ms_path": f"/data/ms/{name}.ms",
         "created_at": _at(n) + 190 + k,
         "type": "5min", "beam_major_arcsec": 12.5, "noise_jy": 0.012, "pbcor": k, "group_id": name,
         "mid_mjd": _mjd(n) + 0.0018,
         "peak_jy": 2.5, "dynamic_range": 208.0, "ra_deg": 71.4, "dec_deg": 54.57, "imsize": 1024, "cell_arcsec": 4.0,
         "freq_hz": 1.405e9, "files": json.dumps({"png": f"/data/ms/images/{name}.img.png"}), "calibration_set": "set"}
        for k, kind in enumerate(("image", "pbcor")[:IMAGES_A_GROUP])
    ]  # fmt: skip


def _artifact_rows(n: int) -> list[dict]:
    return [
        {
            "group_id": group_id(n),
            "name": name,
            "path": f"/data/state/qa/{group_id(n)}/{name}",
            "created_at": _at(n) + 199,
        }
        for name in ("flags.png", "image.png", "metrics.json")
    ]


def _score_rows(n: int) -> list[dict]:
    return [
        {
            "kind": "group",
            "subject": group_id(n),
            "name": name,
            "value": 0.1,
            "score": 0.9,
            "verdict": "bad" if n % 100 == 0 else "good",
            "created_at": _at(n) + 199,
        }
        for name in ("flagged_fraction", "noise_mjy", "dynamic_range")
    ]


def _table_rows(n: int) -> list[dict]:
    return [
        {"set_name": f"{group_id(n)}_3C48", "path": f"/data/ms/caltables/{group_id(n)}_0_{kind.lower()}cal",
         "table_type": kind,
         "order_index": order, "created_at": _at(n) + 100, "valid_start_mjd": _mjd(n) - 0.02,
         "valid_end_mjd": _mjd(n) + 0.02,
         "status": "active", "mid_mjd": _mjd(n), "dec_deg": 54.57}
        for kind, order in (("BP", 30), ("GA", 40), ("GP", 50))
    ]  # fmt: skip


def _set_row(n: int) -> dict:
    return {
        "set_name": f"{group_id(n)}_3C48",
        "status": "active",
        "group_id": group_id(n),
        "calibrator": "3C48",
        "mid_mjd": _mjd(n),
        "dec_deg": 54.57,
        "created_at": _at(n) + 100,
    }


def _mosaic_row(n: int) -> dict:
    tiles = "\n".join(f"/data/ms/images/{group_id(280 * n + k)}.img.pbcor.fits" for k in range(270))
    return {
        "name": f"night_{n:04d}", "created_at": _at(280 * n), "status": "built", "method": "weighted", "tiles": tiles,
        "output_path": f"/data/ms/mosaics/night_{n:04d}.fits", "start_mjd": _mjd(280 * n),
        "mid_mjd": _mjd(280 * n) + 0.5,
        "end_mjd": _mjd(280 * n) + 1, "tiles_used": 270, "noise_jy": 0.005, "plan": f"night_{n:04d}",
    }  # fmt: skip


# -- servers and clients ------------------------------------------------------------------------------------------

_FLOOR = """
import sys, uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from nightbeam.monitor.manners import Manners
app = FastAPI()
@app.get("/")
def constant(limit: int = 50) -> Response:
    return Response(b'{"ok":true}', media_type="application/json")
app.add_middleware(Manners, allowed_hosts=["127.0.0.1"], most_bytes=65536, observe=lambda *_: None)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_config=None, access_log=False)
"""


def _floor_argv() -> list[str]:
    return [sys.executable, "-c", _FLOOR]


class serving:  # noqa: N801
    """A server in a process of its own: its pid and port."""

    def __init__(self, argv: list[str], name: str) -> None:
        self.argv, self.name = argv, name

    def __enter__(self) -> tuple[int, int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen([*self.argv, "--port", str(port)], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return self.process.pid, port
            if self.process.poll() is not None:
                raise SystemExit(f"the {self.name} ended with {self.process.returncode}")
            time.sleep(0.05)
        raise SystemExit(f"the {self.name} did not start")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)


def measure(pid: int, port: int, path: str, groups: int, clients: int, seconds: float, pause: float) -> dict:
    """Ask one address by many clients at once, and return how long the answers took."""
    asyncio.run(ask(port, path, groups, 1, 0.0, 0.0))  # what is made once is made
    server = psutil.Process(pid)
    before = server.cpu_times()
    times, statuses, size = asyncio.run(ask(port, path, groups, clients, seconds, pause))
    after = server.cpu_times()
    cpu = (after.user - before.user) + (after.system - before.system)
    marks = statistics.quantiles(times, n=100) if len(times) > 1 else [times[0]] * 99
    return {
        "requests": len(times), "per_s": round(len(times) / max(seconds, 1e-9), 1), "bytes": size,
        **{f"p{n}_ms": round(1e3 * marks[n - 1], 1) for n in (50, 95, 99)},
        "cpu_ms": round(1e3 * cpu / len(times), 2), "statuses": statuses,
    }  # fmt: skip


async def ask(
    port: int, path: str, groups: int, clients: int, seconds: float, pause: float
) -> tuple[list[float], dict[str, int], int]:
    """Return the time of each answer, how often each status came, and the bytes of one."""
    turn = itertools.count()
    until = time.perf_counter() + seconds
    times: list[float] = []
    statuses: dict[str, int] = {}
    size = [0]

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        try:
            await asyncio.sleep(pause * random.random())
            while True:
                asked = path.replace("{any}", group_id(turn.__next__() * 7 % groups)) if "{any}" in path else path
                request = f"GET {asked} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
                begin = time.perf_counter()
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
                times.append(time.perf_counter() - begin)
                word = head[9:12].decode()
                statuses[word] = statuses.get(word, 0) + 1
                size[0] = length
                if time.perf_counter() >= until:
                    return
                if pause:
                    await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        finally:
            writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return times, statuses, size[0]


def table(report: dict) -> str:
    """Return the report as text."""
    lines = [
        f"{report['groups']:,} groups, {3 * report['groups']:,} products, {report['clients']} clients, "
        f"{report['seconds']:g} s each; filled in {report['filled_s']} s; "
        f"memory {report['start_rss_mb']} -> {report['end_rss_mb']} MB; {os.cpu_count()} cores for all",
        f"{'address':62} {'p50':>7} {'p95':>7} {'p99':>7} {'per s':>7} {'CPU':>6} {'kB':>6}",
    ]
    for path, page in {"(the floor)": report["floor"], **report["pages"]}.items():
        odd = "" if list(page["statuses"]) == ["200"] else f"  {page['statuses']}"
        slow = "  TOO SLOW" if page["p95_ms"] >= LIMIT_MS else ""
        lines.append(
            f"{path:62} {page['p50_ms']:7} {page['p95_ms']:7} {page['p99_ms']:7} {page['per_s']:7} {page['cpu_ms']:6} "
            f"{page['bytes'] / 1e3:6.1f}{odd}{slow}"
        )
    lines.append(f"worst p95: {report['worst_p95_ms']} ms (asked for: less than {LIMIT_MS:g})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
