"""Constants of a large detector: opened by us, by pickle and by numpy; fetched from a service on loopback.

A Jungfrau-like set of 201 MB (four arrays (3, 8, 512, 1024) of float32, and a geometry) lies in shared memory in each
form. Every figure is from fresh processes with their modules loaded; the fastest of several counts.

    python benchmarks/calib.py [--quick] [--json] [--repeat N] [--dir DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

OURS, PICKLE, LOAD, MAPPED = "ours (mapped)", "pickle protocol 4", "np.load", "np.load mmap_mode=r"
EXP, RUN, UID = "mfxl1033223", 42, "jungfrau_0123456-789_abc"
CTYPES = ("pedestals", "pixel_gain", "pixel_offset", "pixel_rms")
GEOMETRY = "# geometry\n" + "QUAD:V1 0 JFPANEL:V1 0 1.5 2.5 0 0 0 0 0 0 0\n" * 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="25 MB and fewer repeats")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeat", type=int, help="runs of each; the fastest counts")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where the set lies")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child_main(*options.child)
    elif options.serve:
        _serve(json.loads(options.serve))
    else:
        with tempfile.TemporaryDirectory(prefix="nightbeam-bench-", dir=options.dir) as work:
            report = _run(Path(work), quick=options.quick, repeat=options.repeat or (2 if options.quick else 5))
        print(json.dumps(report) if options.json else _table(report))


def _run(work: Path, *, quick: bool, repeat: int) -> dict:
    shape = (3, 1, 512, 1024) if quick else (3, 8, 512, 1024)
    fetching = _fetching(work, shape, repeat)
    _write_rivals(work)
    forms = {name: _form(work, name, repeat) for name in (OURS, PICKLE, LOAD, MAPPED)}
    ours, rival = forms[OURS], forms[PICKLE]
    aims = {
        "open_at_most_1_ms": ours["open_ms"] <= 1.0,
        "private_at_most_20_mib_each_of_four": ours["four_private_mib"] <= 20.0,
        "fetch_at_least_70_percent_of_bare": fetching["fetch_of_bare"] >= 0.7,
        "poll_at_most_2_requests_a_detector_and_no_array": fetching["poll_requests"] <= 2
        and fetching["poll_bytes"] == 0,
    }
    if not quick:  # a pickle of an eighth of the size is opened eight times faster
        aims["open_100_times_faster_than_pickle"] = rival["open_ms"] >= 100 * ours["open_ms"]
    return {
        "open_20_detectors_ms": _open_many(work, repeat),
        "set_mb": round(len(CTYPES) * int(np.prod(shape)) * 4 / 1e6, 1),
        "forms": forms,
        "open_faster_than_pickle": round(rival["open_ms"] / ours["open_ms"]),
        "fetch": fetching,
        "aims": aims,
        "load_average": os.getloadavg()[0],
    }


# ------------------------------------------------------------------------------------------------ reading


def _write_rivals(work: Path) -> None:
    from nightbeam.calib import open_constants

    found = open_constants(EXP, RUN, work)["jungfrau"]
    whole = {"det_info": {"jungfrau": UID}, "calib_const": {"jungfrau": dict(found)}}
    with (work / "rival.pkl").open("wb") as out:
        pickle.dump(whole, out, protocol=4)
    for ctype in CTYPES:
        np.save(work / f"{ctype}.npy", found[ctype][0])


def _open(which: str, work: Path) -> list[np.ndarray]:
    """Open the set and return its arrays."""
    if which == OURS:
        found = _open_constants(EXP, RUN, work)["jungfrau"]
        return [found[ctype][0] for ctype in CTYPES]
    if which == PICKLE:
        with (work / "rival.pkl").open("rb") as file:
            found = pickle.load(file)["calib_const"]["jungfrau"]
        return [found[ctype][0] for ctype in CTYPES]
    return [np.load(work / f"{ctype}.npy", mmap_mode="r" if which == MAPPED else None) for ctype in CTYPES]


def _open_constants(*arguments):
    from nightbeam.calib import open_constants

    return open_constants(*arguments)


def _child_main(which: str, work: str, told: str) -> None:
    """Open and read when told; then wait, so that the parent can look at four of us at once."""
    if which == OURS:
        from nightbeam.calib import open_constants  # noqa: F401  loaded before the clock starts
    np.ones(10, np.float32).sum()
    before = _private_mib()
    if told == "four":
        print("ready", flush=True)
        sys.stdin.readline()
    begin = time.perf_counter()
    arrays = _open(which, Path(work))
    opened = time.perf_counter()
    total = float(sum(np.add.reduce(a.reshape(-1).view(np.uint32), dtype=np.uint64) for a in arrays))
    done = time.perf_counter()
    found = {"open_ms": 1e3 * (opened - begin), "all_ms": 1e3 * (done - begin), "total": total}
    if told == "four":
        print("read", flush=True)
        sys.stdin.readline()
        found |= {"private_mib": _private_mib(), "before_mib": before}
        print("measured", flush=True)
        print(json.dumps(found), flush=True)
        sys.stdin.readline()
    else:
        print(json.dumps(found))


def _private_mib() -> float:
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1024


def _form(work: Path, which: str, repeat: int) -> dict:
    single = [json.loads(_out([which, str(work), "one"])) for _ in range(repeat)]
    four = [_four(work, which) for _ in range(max(1, repeat // 2))]
    assert len({each["total"] for each in single}) == 1
    return {
        "open_ms": round(min(each["open_ms"] for each in single), 3),
        "open_and_read_ms": round(min(each["all_ms"] for each in single), 1),
        "four_open_and_read_ms": round(min(max(each["all_ms"] for each in group) for group in four), 1),
        "four_private_mib": round(min(max(each["private_mib"] for each in group) for group in four), 1),
        "of_which_python_mib": round(statistics.median(each["before_mib"] for group in four for each in group), 1),
        "total": single[0]["total"],
    }


def _open_many(work: Path, repeat: int) -> float:
    """Open a run with 20 detectors of nine constants each: what its documents cost."""
    from nightbeam.calib import open_constants
    from nightbeam.calib.files import Payload, entry_path, write_entry

    document = {f"key{n}": "a value of a usual length" for n in range(25)}
    constants = {
        f"detector{d}": [Payload(f"kind{k}", "cdb", {"_id": f"{d}-{k}", **document}, np.zeros(4)) for k in range(9)]
        for d in range(20)
    }
    write_entry(entry_path(work, EXP, 1), dict.fromkeys(constants, UID), constants)
    times = []
    for _ in range(10 * repeat):
        begin = time.perf_counter()
        found = open_constants(EXP, 1, work)
        assert all(len(found[name]) == 9 for name in found)
        times.append(1e3 * (time.perf_counter() - begin))
    return round(min(times), 2)


def _out(child: list[str]) -> str:
    argv = [sys.executable, __file__, "--child", *child]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def _four(work: Path, which: str) -> list[dict]:
    argv = [sys.executable, __file__, "--child", which, str(work), "four"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(argv, **pipes) for _ in range(4)]

    def all_say(word: str, *, then: bool) -> None:
        for child in children:
            said = child.stdout.readline().strip()
            assert said == word, (said, word)
        for child in children if then else ():
            child.stdin.write("go\n")
            child.stdin.flush()

    all_say("ready", then=True)
    all_say("read", then=True)  # all four have read everything and are alive while each is measured
    all_say("measured", then=False)
    found = [json.loads(child.stdout.readline()) for child in children]
    for child in children:
        child.communicate("go\n")
    return found


# ----------------------------------------------------------------------------------------------- fetching


def _serve(shape: list[int]) -> None:
    """Be the service, in a process of its own."""
    from nightbeam.testing.calib_service import FakeCalibService

    rng = np.random.default_rng(1)
    with FakeCalibService() as service:
        service.add_detector(UID)
        for ctype in CTYPES:
            service.deploy(EXP, UID, ctype, rng.random(shape, np.float32), run=1)
        service.deploy(EXP, UID, "geometry", GEOMETRY, run=1)
        print(service.url, flush=True)
        sys.stdin.readline()


def _fetching(work: Path, shape: tuple[int, ...], repeat: int) -> dict:
    argv = [sys.executable, __file__, "--serve", json.dumps(shape)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        try:
            return _fetched(work, url, repeat)
        finally:
            server.communicate("stop\n")


def _fetched(work: Path, url: str, repeat: int) -> dict:
    from nightbeam.calib.prefetch import prefetch
    from nightbeam.calib.remote import CalibService

    with CalibService(url) as service:
        choices = service.select(EXP, RUN, "jungfrau", UID).choices
        wanted = [choices[ctype] for ctype in CTYPES]
        rates: dict[str, list[float]] = {"bare": [], "fetch": [], "prefetch": []}
        for number in range(repeat):
            rates["bare"].append(_rate(lambda: sum(_bare(url, each) for each in wanted)))
            rates["fetch"].append(_rate(lambda: sum(len(service.fetch(each)) for each in wanted)))
            cold = work / f"cold{number}"
            cold.mkdir()
            rates["prefetch"].append(_rate(lambda into=cold: _cold(prefetch, service, into)))
            (cold / f"calibconst_{EXP}_r{RUN:04d}.pkl").replace(work / f"calibconst_{EXP}_r{RUN:04d}.pkl")
        poll = prefetch(EXP, output_dir=work, service=service, run=RUN, det_info={"jungfrau": UID})
    best = {name: max(each) for name, each in rates.items()}
    return {
        "bare_mb_s": round(best["bare"]),
        "fetch_mb_s": round(best["fetch"]),
        "prefetch_mb_s": round(best["prefetch"]),
        "fetch_of_bare": round(best["fetch"] / best["bare"], 2),
        "prefetch_of_bare": round(best["prefetch"] / best["bare"], 2),
        "poll_ms": round(1e3 * poll.seconds, 1),
        "poll_requests": poll.requests,
        "poll_bytes": poll.bytes_fetched,
    }


def _rate(fetch: Callable[[], int]) -> float:
    begin = time.perf_counter()
    size = fetch()
    return size / 1e6 / (time.perf_counter() - begin)


def _bare(url: str, choice) -> int:
    """What anybody would write: a streamed GET whose pieces are kept nowhere."""
    import requests

    with requests.get(f"{url}/{choice.database}/gridfs/{choice.data_id}", stream=True, timeout=60) as answer:
        return sum(len(piece) for piece in answer.iter_content(1 << 20))


def _cold(prefetch, service, into: Path) -> int:
    """Everything: questions, data, checksums, and the file in shared memory."""
    report = prefetch(EXP, output_dir=into, service=service, run=RUN, det_info={"jungfrau": UID})
    return report.bytes_fetched


def _table(report: dict) -> str:
    lines = [f"a set of {report['set_mb']} MB in shared memory; load average {report['load_average']:.1f}"]
    lines += [f"{'':22}{'open ms':>10}{'+ read ms':>11}{'four: ms':>10}{'private MiB each':>18}{'(Python)':>10}"]
    for name, form in report["forms"].items():
        lines += [
            f"{name:22}{form['open_ms']:10.3f}{form['open_and_read_ms']:11.1f}{form['four_open_and_read_ms']:10.1f}"
            f"{form['four_private_mib']:18.1f}{form['of_which_python_mib']:10.1f}"
        ]
    lines += [f"a run with 20 detectors of nine small constants each is opened in {report['open_20_detectors_ms']} ms"]
    fetch = report["fetch"]
    lines += [
        f"opened {report['open_faster_than_pickle']} times faster than by pickle",
        f"fetch {fetch['fetch_mb_s']} MB/s, {100 * fetch['fetch_of_bare']:.0f} % of a bare stream "
        f"({fetch['bare_mb_s']} MB/s); into the cache with checksums {fetch['prefetch_mb_s']} MB/s",
        f"a poll with nothing new: {fetch['poll_requests']} requests, {fetch['poll_bytes']} bytes of constants, "
        f"{fetch['poll_ms']} ms",
    ]
    lines += [f"{'met' if met else 'NOT met'}: {aim.replace('_', ' ')}" for aim, met in report["aims"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
