"""Every stage of one group, at several sizes, against the disk and the 309 s between two groups.

The group holds a calibrator, so that it goes through every stage. The floor is reading and writing, once, the bytes
that it must read and write. Afterwards both imaging engines make the same image of the Measurement Set, one after the
other, everything included: averaging, cleaning, beam, checks.

    python benchmarks/group.py [--quick] [--json] [--sizes small,medium,full] [--work DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

CADENCE_S = 309.24
SIZES = {
    "small": {"antennas": 20, "channels": 8},
    "medium": {"antennas": 48, "channels": 16},
    "full": {"antennas": 96, "channels": 48},
}
IMSIZE, CELL_ARCSEC, NITER = 1024, 4.0, 2000
_CHUNK = 1 << 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small size only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sizes", default="small,medium,full")
    parser.add_argument("--work", type=Path, help="where to work (6 GB for the full size); a temporary directory else")
    options = parser.parse_args()
    names = ["small"] if options.quick else options.sizes.split(",")
    reports = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="nightbeam-bench-", dir=options.work) as work:
            reports.append(_run(name, Path(work)))
        if not options.json:
            print(_table(reports[-1]), flush=True)
    if options.json:
        print(json.dumps(reports))


def _run(name: str, work: Path) -> dict:
    from nightbeam import contimg
    from nightbeam.core.settings import load_settings
    from nightbeam.simulate import SimulationSpec, simulate_subbands

    overrides = {
        "state_dir": work / "state",
        "contimg.ingest.settle_s": 0.0,
        "contimg.image.imsize": IMSIZE,
        "contimg.image.cell_arcsec": CELL_ARCSEC,
        "contimg.image.niter": NITER,
    }
    site = contimg.Site.from_settings(load_settings(overrides=overrides, environ={}))
    simulate_subbands(site.input_dir, SimulationSpec(calibrator="3C48", sources=6, **SIZES[name]))
    contimg.scan_arrivals(site)
    marks = [_now()]
    stages: dict[str, dict] = {}

    def mark(step: str, _receipt: object) -> None:
        marks.append(_now())
        stages[step] = {k: round(marks[-1][k] - marks[-2][k], 2) for k in ("wall_s", "cpu_s")}

    outcome = contimg.run_group(site, site.queue().groups()[0].group_id, on_step=mark)
    ms = next(site.output_dir.glob("*.ms"))
    bytes_in, bytes_out = _bytes(site.input_dir), _bytes(site.output_dir)
    floor = _floor(bytes_in + bytes_out, work)
    engines = {
        name: _image(name, ms, work) for name in ("tclean", "wsclean") if name != "wsclean" or shutil.which(name)
    }
    total = {k: round(sum(s[k] for s in stages.values()), 2) for k in ("wall_s", "cpu_s")}
    return {
        "size": name,
        **SIZES[name],
        "state": outcome.state,
        "input_mb": round(bytes_in / 1e6),
        "output_mb": round(bytes_out / 1e6),
        "peak_child_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "peak_own_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "stages": stages,
        "total": total,
        "engines": engines,
        "tclean_over_wsclean": "wsclean" in engines
        and {k: round(engines["tclean"][k] / engines["wsclean"][k], 2) for k in ("wall_s", "cpu_s")},
        "floor_s": round(floor, 2),
        "total_over_floor": round(total["wall_s"] / floor, 1),
        "of_cadence": round(total["wall_s"] / CADENCE_S, 3),
        "cpu_of_two_cores": round(total["cpu_s"] / (2 * CADENCE_S), 3),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _now() -> dict[str, float]:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"wall_s": time.perf_counter(), "cpu_s": sum(u.ru_utime + u.ru_stime for u in used)}


def _image(engine: str, ms: Path, work: Path) -> dict:
    from nightbeam.imaging import ImageOptions, image_ms

    options = ImageOptions(engine=engine, imsize=IMSIZE, cell_arcsec=CELL_ARCSEC, niter=NITER, datacolumn="corrected")
    begin = _now()
    product = image_ms(ms, work / f"{engine}.img", options=options, work_dir=work / "engines")
    end = _now()
    measured = {"noise_mjy": round(1e3 * product.noise_jy, 3), "peak_jy": round(product.peak_jy, 4)}
    return {k: round(end[k] - begin[k], 2) for k in begin} | measured


def _floor(count: int, work: Path) -> float:
    """Write as many bytes as the group reads and writes, and read them back."""
    path, block, left = work / "floor", os.urandom(_CHUNK), count
    begin = time.perf_counter()
    with path.open("wb", buffering=0) as out:
        while left > 0:
            left -= out.write(block[: min(left, _CHUNK)])
    with path.open("rb", buffering=0) as data:
        while data.read(_CHUNK):
            pass
    path.unlink()
    return time.perf_counter() - begin


def _bytes(directory: Path) -> int:
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def _table(report: dict) -> str:
    head = f"{report['size']}: {report['antennas']} antennas, 16 x {report['channels']} channels, "
    lines = [head + f"{report['input_mb']} MB in, {report['output_mb']} MB out; load average {report['load_average']}"]
    lines += [f"{'':12}{'wall s':>9}{'CPU s':>9}"]
    rows = {**report["stages"], "all": report["total"], **report["engines"]}
    lines += [f"{name:12}{row['wall_s']:9.1f}{row['cpu_s']:9.1f}" for name, row in rows.items()]
    lines += [
        f"{report['of_cadence']:.2f} of the 309 s cadence ({report['cpu_of_two_cores']:.2f} of two cores); "
        f"tclean takes {report['tclean_over_wsclean'] or '?'} times what WSClean takes; "
        f"{report['total_over_floor']} times the floor of {report['floor_s']} s; "
        f"peak {report['peak_child_mb']} MB in a child, {report['peak_own_mb']} MB in the process"
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
