"""How the cost of a group grows: with its subbands, with its antennas, and with how many are worked on at a time.

For each stage the CPU-seconds, the seconds, the largest memory of all its processes together and the bytes that were
handed to the system to be written, over 2 to 16 subbands, 16 to 96 antennas and 1 to 8 groups in flight. To each a
power law is fitted, cost = a x^p, by least squares of the logarithms: p with its standard error, and the same exponent
between the two largest points, where what every group costs anyhow (programs that start) weighs least.

    python benchmarks/growth.py [--quick] [--json] [--work DIR]

The full run takes about ten minutes on two idle cores and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

COSTS = ("cpu_s", "wall_s", "peak_mb", "written_mb")
#: What grows, through which numbers (fewer where it is to be quick), and what every group is like beside it.
SWEEPS: dict[str, dict[str, Any]] = {
    "subbands": {"points": (2, 4, 8, 16), "quick": (2, 4, 8), "like": {"antennas": 32, "channels": 16}},
    "antennas": {"points": (16, 24, 32, 48, 64, 96), "quick": (16, 24, 32), "like": {"subbands": 4, "channels": 8}},
    "in flight": {"points": (1, 2, 4, 8), "quick": (1, 2), "like": {"antennas": 24, "channels": 8, "subbands": 8}},
}
#: Of the images: as they are, and where it is to be quick.
IMAGE = {"imsize": 512, "cell_arcsec": 8.0, "niter": 500}
QUICK_IMAGE = {"imsize": 128, "cell_arcsec": 32.0, "niter": 20}
_LOOK_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three small points of each")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", type=Path, help="where to work; a temporary directory else")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(_measure(json.loads(options.point))))
        return
    report = {name: _sweep(name, sweep, options) for name, sweep in SWEEPS.items()}
    if options.json:
        print(json.dumps({"load_average": round(os.getloadavg()[0], 1), "sweeps": report}))


def _sweep(name: str, sweep: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    points: dict[int, dict[str, dict[str, float]]] = {}
    for x in sweep["quick" if options.quick else "points"]:
        spec = {**sweep["like"], "groups": 1} | ({"groups": 1 + x} if name == "in flight" else {name: x})
        if options.quick:
            spec["integrations"] = 6
        with tempfile.TemporaryDirectory(prefix="nightbeam-bench-", dir=options.work) as work:
            image = QUICK_IMAGE if options.quick else IMAGE
            points[x] = _point({"spec": spec, "image": image, "work": work, "in_flight": name == "in flight"})
    stages = list(next(iter(points.values())))
    laws = {
        stage: {cost: fit_power_law([(x, point[stage][cost]) for x, point in points.items()]) for cost in COSTS}
        for stage in stages
    }
    if not options.json:
        print(_table(name, points, laws), flush=True)
    return {"points": points, "laws": laws}


def _point(point: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measure in a process of its own, so that the memory of one point is not that of another."""
    done = subprocess.run(
        [sys.executable, __file__, "--point", json.dumps(point)], stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(point: dict[str, Any]) -> dict[str, dict[str, float]]:
    from nightbeam import contimg

    config = _prepare(Path(point["work"]), point["spec"], point["image"])
    site = contimg.Site.from_settings(_settings(config))
    groups = [row.group_id for row in site.queue().groups()]
    stages: dict[str, dict[str, float]] = {}
    if point["in_flight"]:
        _run_all(config, groups[:1])  # leaves the gains that the others use
        with _Meter() as meter:
            _run_all(config, groups[1:])
            stages["all groups"] = meter.lap()
        return stages
    with _Meter() as meter:

        def mark(step: str, _receipt: object) -> None:
            stages[step] = meter.lap()

        contimg.run_group(site, groups[0], on_step=mark)
    stages["all"] = {
        cost: round((max if cost == "peak_mb" else sum)(stage[cost] for stage in stages.values()), 3) for cost in COSTS
    }
    return stages


def _prepare(work: Path, spec: dict[str, Any], image: dict[str, float]) -> Path:
    """Simulate the groups in another process, for memory's sake, and put them into the queue."""
    config = work / "nightbeam.yaml"
    ingest = f"{{settle_s: 0, expected_subbands: {spec.get('subbands', 16)}}}"
    config.write_text(f"state_dir: {work}/state\ncontimg:\n  ingest: {ingest}\n  image: {json.dumps(image)}\n")
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom nightbeam import contimg\n"
        "from nightbeam.core.settings import load_settings\n"
        "from nightbeam.simulate import SimulationSpec, simulate_subbands\n"
        "site = contimg.Site.from_settings(load_settings(config=Path(sys.argv[1]), environ={}))\n"
        "spec = SimulationSpec(calibrator='3C48', sources=3, seed=1, **json.loads(sys.argv[2]))\n"
        "simulate_subbands(site.input_dir, spec)\ncontimg.scan_arrivals(site)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(config), json.dumps(spec)], check=True)
    return config


def _settings(config: Path) -> Any:
    from nightbeam.core.settings import load_settings

    return load_settings(config=config, environ={})


def _run_all(config: Path, groups: list[str]) -> None:
    command = [sys.executable, "-m", "nightbeam", "--config", str(config), "groups", "run"]
    children = [
        subprocess.Popen([*command, group], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for group in groups
    ]
    codes = [child.wait() for child in children]
    if any(codes):
        raise SystemExit(f"groups ended with {codes}")


class _Meter:
    """What this process and its descendants have used since the last lap."""

    def __enter__(self) -> _Meter:
        self._peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._last = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def lap(self) -> dict[str, float]:
        now = self._now()
        used = {name: round(now[name] - self._last[name], 3) for name in now}
        peak, self._peak, self._last = self._peak, 0.0, now
        return {**used, "peak_mb": round(peak, 1)}

    def _now(self) -> dict[str, float]:
        import resource

        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        # Linux adds what a child has written when it is waited for; what goes through a mapped file is not in it.
        lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return {
            "cpu_s": sum(u.ru_utime + u.ru_stime for u in used),
            "wall_s": time.perf_counter(),
            "written_mb": int(lines["wchar"]) / 1e6,
        }

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._stop.wait(_LOOK_S):
            total = 0
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.Error):
                    total += process.memory_info().rss
            self._peak = max(self._peak, total / 1e6)


def fit_power_law(points: list[tuple[float, float]]) -> dict[str, float | None]:
    """Return a and p of y = a x^p with the standard error of p, and p between the last two points."""
    known = [(math.log(x), math.log(y)) for x, y in points if y > 0]
    if len(known) < 2:
        return {"a": None, "p": None, "error": None, "at_the_end": None}
    n = len(known)
    mean: Callable[[int], float] = lambda axis: sum(point[axis] for point in known) / n  # noqa: E731
    mx, my = mean(0), mean(1)
    sxx = sum((x - mx) ** 2 for x, _ in known)
    p = sum((x - mx) * (y - my) for x, y in known) / sxx
    left = sum((y - my - p * (x - mx)) ** 2 for x, y in known)
    (x1, y1), (x2, y2) = known[-2:]
    return {
        "a": round(math.exp(my - p * mx), 5),
        "p": round(p, 3),
        "error": round(math.sqrt(left / (n - 2) / sxx), 3) if n > 2 else None,
        "at_the_end": round((y2 - y1) / (x2 - x1), 3),
    }


def _table(name: str, points: dict[int, dict[str, Any]], laws: dict[str, dict[str, Any]]) -> str:
    lines = [f"{name}: cost over {', '.join(map(str, points))}; load average {os.getloadavg()[0]:.1f}"]
    for stage, by_cost in laws.items():
        for cost in COSTS:
            law = by_cost[cost]
            measured = "".join(f"{point[stage][cost]:10.1f}" for point in points.values())
            if law["p"] is None:
                lines.append(f"  {stage:11}{cost:11}{measured}")
                continue
            error = "" if law["error"] is None else f" +- {law['error']:.2f}"
            said = f"~ {name}^({law['p']:.2f}{error}), at the end {law['at_the_end']:.2f}"
            lines.append(f"  {stage:11}{cost:11}{measured}   {said}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
