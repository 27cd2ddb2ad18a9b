"""Scans: the whole chain beside the floors of reading, computing and writing as many bytes, measured in one run.

The floors: a copy in memory, a file read and written, Zarr read into a buffer that is used again (L0 as it is), Zarr
written (L1 as it is: temperatures, and flags), and the arithmetic alone, in one thread. Its rivals are the same formula
in numpy, naively and in place dump by dump. Then the chain: over scans in the page cache, over many small ones, and
with stages that sleep; the most memory it holds; the fit of the water. A figure is the least of several runs in turns,
and by GB of spectra on the source (ON). The floors of Zarr sync nothing; the chain syncs all before it renames.

    python benchmarks/scans.py [--quick] [--json] [--air] [--dir DIR] [--repeat N]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

_MB, _GB = 1e6, 1e9
#: Four chunks of 8 MiB that Zarr reads and four that it writes, each in two copies, whatever the scans' size.
_UNDER_WAY_MB = 134


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="scans of 17 MB")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--air", action="store_true", help="also the layers of air of CASA, from nothing")
    parser.add_argument("--dir", type=Path, help="where the stores are written")
    parser.add_argument("--repeat", type=int, help="runs of each; the least counts (quick: 1, else 5)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, given = options.child
        print(json.dumps({"figures": _figures, "memory": _memory, "air": _air}[what](**json.loads(given))))
        return
    repeat = options.repeat or (1 if options.quick else 5)
    with tempfile.TemporaryDirectory(prefix="nightbeam-bench-", dir=options.dir) as work:
        report = _run(Path(work), repeat, quick=options.quick, air=options.air)
    print(json.dumps(report) if options.json else _table(report))


def _run(work: Path, repeat: int, *, quick: bool, air: bool) -> dict:
    size = _Size(3, 8, 4096, 4, 32) if quick else _Size(8, 8, 16384, 32, 32)
    small = _Size(12 if quick else 40, 4, 256, 3, 10)
    held = replace(size, channels=min(8192, size.channels))
    stores = {"large": size, "few": replace(held, scans=3), "many": replace(held, scans=6), "small": small}
    for name, one in stores.items():
        _store(work / f"{name}.zarr", one)
    # A scan of 20 GB takes longer than 2 s in each stage.
    stages = [(0.4, 0.4, 0.4)] if quick else [(2.0, 2.0, 2.0), (2.0, 0.6, 0.6), (0.6, 2.0, 0.6), (0.6, 0.6, 2.0)]
    report: dict[str, Any] = {
        "scans": size.scans,
        "mb_on_of_a_scan": round(size.on_bytes / _MB, 1),
        **_child("figures", work=str(work), repeat=repeat, size=asdict(size), stages=stages, slow=4 if quick else 8),
        "memory": [_child("memory", l0=str(work / f"{name}.zarr"), work=str(work)) for name in ("few", "many")],
        "load_average": os.getloadavg()[0],
    }
    if air:
        report["air"] = _child("air", work=str(work))
    report["aims"] = _aims(report)
    return report


def _aims(report: dict) -> dict[str, bool]:
    measured = report["measured"]
    aims = {
        "stages_that_sleep_at_most_1.05_of_the_ideal": max(one["of_the_ideal"] for one in report["sleep"]) <= 1.05,
        "cpu_at_most_1.15_of_read_and_write_and_kernel": measured["cpu_of_floors"] <= 1.15,
        "cpu_at_most_1.4_s_a_GB": measured["rows"]["chain"]["cpu_s_gb"] <= 1.4,
        "kernel_at_least_3_times_numpy_in_place": measured["kernel_of_numpy"] >= 3.0,
        "kernel_at_least_4_GB_a_second": measured["rows"]["kernel"]["gb_s"] >= 4.0,
        f"memory_at_most_2_scans_and_1_result_and_{_UNDER_WAY_MB}_MB": max(one["beyond_mb"] for one in report["memory"])
        <= _UNDER_WAY_MB,
        "memory_does_not_grow_with_scans": report["memory"][1]["grown_mb"] < 1.15 * report["memory"][0]["grown_mb"],
        "a_small_scan_at_most_60_ms": report["small"]["wall_ms"] < 60.0,
        "water_of_128_pixels_at_most_0.2_s": report["water"]["fit_s"] < 0.2,
    }
    if report.get("air", {}).get("cold_s") is not None:
        aims["cold_layers_of_air_at_most_2.5_s"] = report["air"]["cold_s"] < 2.5
    return aims


def _child(what: str, **given: Any) -> dict:
    argv = [sys.executable, __file__, "--child", what, json.dumps(given)]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _figures(work: str, repeat: int, size: dict, stages: list[list[float]], slow: int) -> dict:
    small = str(Path(work) / "small.zarr")
    return {
        "measured": _measure(str(Path(work) / "large.zarr"), work, repeat, size),
        "small": _small(small, work, repeat),
        "sleep": [_sleep(small, work, one, slow) for one in stages],
        "water": _water(repeat),
    }


# -- what is observed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Size:
    scans: int
    pixels: int
    channels: int
    rows: int
    dumps: int

    @property
    def on_bytes(self) -> int:
        return 4 * self.rows * self.dumps * self.pixels * self.channels

    def dish(self) -> Any:
        from nightbeam.testing.dish import Dish, Line

        lines = (Line(5.0, 809.3e9, 40e6),)
        return Dish(pixels=self.pixels, channels=self.channels, width_hz=4e9 / self.channels, lines=lines)


def _store(path: Path, size: _Size) -> None:
    """One map under many numbers (links to one), and the loads before it."""
    from nightbeam.scans.files import create_raw_store, scan_name, write_raw_scan

    dish = size.dish()
    create_raw_store(path, telescope="bench", altitude_m=5612.0)
    write_raw_scan(path, dish.calibration(100_000))
    scan = dish.otf(1, rows=size.rows, dumps=size.dumps)
    write_raw_scan(path, scan)
    first = path / "scans" / scan_name(1)
    for number in range(2, size.scans + 1):
        shutil.copytree(first, first.with_name(scan_name(number)), copy_function=os.link)


def _config() -> Any:
    from nightbeam.scans.model import PipelineConfig

    return PipelineConfig(atmosphere="closed-form", memory_budget_bytes=1 << 40)


def _calibrate(l0: Path, l1: Path) -> Any:
    from nightbeam.scans.worker import calibrate_store

    result = calibrate_store(l0, l1, _config())
    assert not result.failures, result.failures
    return result


# -- floors, rivals, and the chain --------------------------------------------------------------------------------


def _measure(l0: str, work: str, repeat: int, size: dict) -> dict:
    """Each in turn, several times."""
    bench = _Bench(Path(l0), Path(work), _Size(**size))
    turns = {
        "copy": bench.copy, "file read": bench.file_read, "file write": bench.file_write, "zarr read": bench.zarr_read,
        "zarr write": bench.zarr_write, "kernel": bench.kernel, "references": bench.references, "flags": bench.flags,
        "numpy naive": bench.numpy_naive, "numpy in place": bench.numpy_in_place, "chain": bench.chain,
    }  # fmt: skip
    best: dict[str, dict[str, float]] = {}
    for turn in range(repeat + 1):
        for name, work_ in turns.items():
            bench.restore()
            wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            work_()
            wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
            user = after.ru_utime - before.ru_utime
            if turn:  # the first compiles, and touches what is new
                now = {"wall_s": wall, "cpu_s": user + after.ru_stime - before.ru_stime, "user_s": user}
                seen = best.setdefault(name, now)
                seen.update({key: min(value, now[key]) for key, value in seen.items() if key in now})
    gb = size["scans"] * bench.size.on_bytes / _GB
    for name, seen in best.items():
        of = gb if name == "chain" else gb / size["scans"]
        seen["cpu_s_gb"], seen["user_s_gb"], seen["gb_s"] = seen["cpu_s"] / of, seen["user_s"] / of, of / seen["wall_s"]
    cpu = {name: seen["cpu_s_gb"] for name, seen in best.items()}
    wall = {name: 1.0 / seen["gb_s"] for name, seen in best.items()}
    user = {name: seen["user_s_gb"] for name, seen in best.items()}
    parts = ("zarr read", "zarr write", "kernel", "references", "flags")
    compute = cpu["kernel"] + cpu["references"] + cpu["flags"]
    slowest = max(wall["zarr read"], wall["kernel"] + wall["references"], wall["zarr write"] + wall["flags"])
    return {
        "rows": {name: {key: round(value, 3) for key, value in seen.items()} for name, seen in best.items()},
        "cpu_of_floors": round(cpu["chain"] / sum(cpu[part] for part in parts), 3),
        # What the system does with pages and disks depends on who else is on the machine.
        "user_of_floors": round(user["chain"] / sum(user[part] for part in parts), 3),
        "kernel_of_numpy": round(cpu["numpy in place"] / compute, 2),
        "kernel_of_naive": round(cpu["numpy naive"] / compute, 2),
        "wall_of_bound": round(wall["chain"] / max(slowest, cpu["chain"] / (os.cpu_count() or 1)), 3),
        "same_as_numpy_k": bench.difference(),
        "stages_s": {name: round(seconds, 3) for name, seconds in bench.stages.items()},
    }


class _Bench:
    """One scan in memory and on disk, and everything that can be done to it."""

    def __init__(self, l0: Path, work: Path, size: _Size) -> None:
        import zarr

        from nightbeam.atmosphere import ClosedFormAtmosphere
        from nightbeam.scans.files import RawStore
        from nightbeam.scans.stages import determine_atmosphere_full, load_of_scan, prepare_otf

        zarr.config.set({"async.concurrency": 4, "threading.max_workers": 2})
        self.l0, self.out, self.size = l0, work / "floor", size
        self.model, store = ClosedFormAtmosphere(), RawStore(l0)
        self.scan, self.load = store.read(1), load_of_scan(store.read(100_000))
        self.prepared = prepare_otf(self.scan)
        self.air = determine_atmosphere_full(self.scan, self.load, self.model, self.prepared)
        self.buffer = self.scan.counts.copy()
        self.ta_star = self.buffer[: self.prepared.on.size]
        self.flag = np_zeros(self.ta_star.shape)
        self.part = np_zeros((max(1, (8 << 20) // (self.ta_star[0].size)), *self.ta_star.shape[1:]))
        self.stages: dict[str, float] = {}
        self._file, self._new = work / "floor.bin", work / "new.bin"
        self.buffer.tofile(self._file)

    def restore(self) -> None:
        """Counts where temperatures have been; and no results of the last."""
        self.buffer[...] = self.scan.counts
        shutil.rmtree(self.out, ignore_errors=True)

    def copy(self) -> None:
        self.buffer[...] = self.scan.counts

    def file_read(self) -> None:
        with self._file.open("rb", buffering=0) as file:
            view = memoryview(self.buffer).cast("B")
            done = 0
            while done < len(view):
                done += file.readinto(view[done : done + (16 << 20)])

    def file_write(self) -> None:
        with self._new.open("wb", buffering=0) as file:
            view = memoryview(self.ta_star).cast("B")
            done = 0
            while done < len(view):
                done += file.write(view[done : done + (16 << 20)])
        self._new.unlink()

    def zarr_read(self) -> None:
        import zarr
        from zarr.core.buffer import default_buffer_prototype

        counts = zarr.open_group(self.l0, mode="r", zarr_format=3, use_consolidated=False)["scans/scan_000001/counts"]
        counts.get_basic_selection(..., out=default_buffer_prototype().nd_buffer.from_numpy_array(self.buffer))

    def zarr_write(self) -> None:
        """Counts for temperatures, which are not compressed, and hardly a flag, as is usual."""
        import zarr
        from zarr.codecs import BloscCodec, Crc32cCodec

        from nightbeam.scans.results import _chunks

        group = zarr.create_group(self.out, zarr_format=3)
        lz4 = [BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()]
        for name, values, how in (("ta_star", self.ta_star, [Crc32cCodec()]), ("flag", self.flag, lz4)):
            chunks = _chunks(values.shape, values.itemsize)
            array = group.create_array(
                name, shape=values.shape, chunks=chunks, dtype=values.dtype, compressors=how,
                fill_value=0, config={"write_empty_chunks": True},
            )  # fmt: skip
            array[...] = values

    def kernel(self) -> None:
        from nightbeam.scans.stages import calibrate_full

        scan = replace(self.scan, counts=self.buffer)
        calibrate_full(scan, self.prepared, self.load, self.air, self.model, out=self.buffer)
        self.ours = self.ta_star.copy() if not hasattr(self, "ours") else self.ours

    def references(self) -> None:
        from nightbeam.scans.stages import prepare_otf

        prepare_otf(self.scan)

    def flags(self) -> None:
        from nightbeam.scans.kernel import flag_bytes

        bits, step = self.ta_star.view("u4"), len(self.part)
        for begin in range(0, len(bits), step):
            some = bits[begin : begin + step]
            flag_bytes(some, self.part[: len(some)])

    def numpy_in_place(self) -> None:
        """As somebody writes it who knows numpy: references averaged, buffers used again, flags in an array."""
        import numpy as np

        x, scan, on, at = self.buffer, self.scan, self.prepared.on, self.prepared.references
        off, seen, divisor = self._terms()
        shape = off.shape[1:]
        reference, other, mask = np.empty(shape, "f4"), np.empty(shape, "f4"), np.empty(shape, bool)
        ceiling = np.float32(scan.info.adc_ceiling)
        for n, dump in enumerate(on):
            b, a, w = at.before[0, n], at.after[0, n], np.float32(at.weight_after[0, n])
            counts, out, flag = x[dump], x[n], self.flag[n]
            np.isfinite(counts, out=mask)
            np.logical_not(mask, out=flag.view(bool))
            np.greater_equal(counts, ceiling, out=mask)
            flag[mask] |= 4
            np.equal(counts, 0, out=mask)
            flag[mask] |= 2
            np.multiply(off[b], 1 - w, out=reference)
            np.multiply(off[a], w, out=other)
            np.add(reference, other, out=reference)
            np.subtract(counts, reference, out=out)
            np.divide(out, reference, out=out)
            np.multiply(seen[b], 1 - w, out=reference)
            np.multiply(seen[a], w, out=other)
            np.add(reference, other, out=reference)
            np.multiply(out, reference, out=out)
            np.divide(out, divisor, out=out)
            out[flag != 0] = np.nan
        self.plain = self.ta_star.copy() if not hasattr(self, "plain") else self.plain

    def numpy_naive(self) -> None:
        """As the formula is written on paper."""
        import numpy as np

        scan, on, at = self.scan, self.prepared.on, self.prepared.references
        off, seen, divisor = self._terms()
        b, a, w = at.before[0], at.after[0], at.weight_after[0].astype("f4")[:, None, None]
        counts = scan.counts[on]
        reference = (1 - w) * off[b] + w * off[a]
        t_sys = ((1 - w) * seen[b] + w * seen[a]) / divisor
        ta_star = (counts - reference) / reference * t_sys
        flag = 1 * ~np.isfinite(counts) | 4 * (counts >= scan.info.adc_ceiling) | 2 * (counts == 0)
        ta_star[flag != 0] = np.nan

    def _terms(self) -> Any:
        """References, what is seen at them, and what comes through of a source: each (pixel, channel)."""
        import numpy as np

        from nightbeam.atmosphere import planck_j
        from nightbeam.scans.compute import sky_input, source_divisor, visits
        from nightbeam.scans.model import Phase

        scan, load, air = self.scan, self.load, self.air
        visit = visits(scan.phase == Phase.OFF)
        off = np.array([scan.counts[visit == n].mean(axis=0) for n in range(visit.max() + 1)])
        freq, image, kelvin = scan.freq_hz / 1e9, scan.image_hz / 1e9, scan.info.temperature_k
        said = {"gain_signal": scan.gain_signal, "forward_eff": scan.info.forward_eff}
        sky = [
            sky_input(
                self.model.sky(freq, air.pwv_mm, path), self.model.sky(image, air.pwv_mm, path),
                spill_signal=planck_j(freq, kelvin), spill_image=planck_j(image, kelvin), **said,
            ) for path in self.prepared.off_airmass
        ]  # fmt: skip
        seen = np.array([load.gain.t_rec + one for one in sky], "f4")
        divisor = source_divisor(air.tr_s, air.tr_i, mode="line", **said)
        return off, seen, divisor.astype("f4")

    def difference(self) -> float:
        """Between ours and numpy's in place, at most, of what is no spike."""
        import numpy as np

        return float(np.nanmax(np.abs(self.ours - self.plain)))

    def chain(self) -> None:
        result = _calibrate(self.l0, self.out)
        for one in result.successes:
            for stage, seconds in one.timings.items():
                self.stages[stage] = self.stages.get(stage, 0.0) + seconds


def np_zeros(shape: tuple[int, ...]) -> Any:
    import numpy as np

    return np.zeros(shape, np.uint8)


# -- memory, small scans ------------------------------------------------------------------------------------------


def _memory(l0: str, work: str) -> dict:
    """The most that the chain holds, above what the program and its libraries do after a small run."""
    size, tiny = Path(l0), Path(work) / f"tiny-{os.getpid()}.zarr"
    _store(tiny, _Size(2, 2, 256, 2, 6))
    _calibrate(tiny, Path(work) / f"tiny-out-{os.getpid()}")
    from nightbeam.scans.files import RawStore

    dumps, pixels, channels, _ = RawStore(size).shape(1)
    base = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest is the present from now on
    out = Path(work) / "memory"
    result = _calibrate(size, out)
    shutil.rmtree(out)
    grown, scan = _status("VmHWM") - base, 4 * dumps * pixels * channels / _MB
    return {
        "scans": len(result.successes), "base_mb": round(base), "grown_mb": round(grown), "scan_mb": round(scan, 1),
        "beyond_mb": round(grown - 3 * scan),
    }  # fmt: skip


def _status(key: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) * 1024 / _MB


def _small(l0: str, work: str, repeat: int) -> dict:
    """Scans so small that all there is to them is what is written about them."""
    best: dict[str, float] = {}
    for turn in range(repeat + 1):
        out = Path(work) / "small-out"
        wall, cpu = time.perf_counter(), time.process_time()
        result = _calibrate(Path(l0), out)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        number = len(result.successes)
        shutil.rmtree(out)
        if turn:
            best["wall_ms"] = min(1e3 * wall / number, best.get("wall_ms", 1e9))
            best["cpu_ms"] = min(1e3 * cpu / number, best.get("cpu_ms", 1e9))
    best["fsync_ms"] = 1e3 * min(_fsync_s(Path(work) / "fsync") for _ in range(10))
    return {"scans": number} | {key: round(value, 1) for key, value in best.items()}


def _fsync_s(path: Path) -> float:
    """A new small file: a result has half a hundred of them."""
    begin = time.perf_counter()
    with path.open("wb") as file:
        file.write(bytes(1000))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    return time.perf_counter() - begin


# -- stages that sleep --------------------------------------------------------------------------------------------


def _sleep(l0: str, work: str, stages: list[float], scans: int) -> dict:
    """Reading, calibrating and writing wait as for a slow disk; their own work counts as a loss."""
    from nightbeam.atmosphere import ClosedFormAtmosphere
    from nightbeam.scans.files import RawStore
    from nightbeam.scans.pipeline import Pipeline
    from nightbeam.scans.results import ResultStore, StagedScan
    from nightbeam.scans.run import Run

    r, c, w = stages

    class SlowStaged(StagedScan):
        def put_ta_star(self, *args: Any, **more: Any) -> bool:
            time.sleep(w)
            return super().put_ta_star(*args, **more)

    class SlowResults(ResultStore):
        def stage(self, scan: int, shapes: Any) -> StagedScan:
            return SlowStaged(self, scan, shapes)

    class SlowAir:
        """Asked twice for the opacity of each scan, where it is calibrated."""

        name, inner = "slow", ClosedFormAtmosphere()

        def opacity(self, *args: Any) -> Any:
            time.sleep(c / 2)
            return self.inner.opacity(*args)

        def sky(self, *args: Any) -> Any:
            return self.inner.sky(*args)

    store = RawStore(Path(l0))

    def read(*args: Any, **more: Any) -> Any:
        time.sleep(r)
        return store.read(*args, **more)

    _calibrate(Path(l0), Path(work) / "warm")
    shutil.rmtree(Path(work) / "warm")
    out = Path(work) / "slow"
    run = Run(store, SlowResults(out), _config(), air=SlowAir(), stop=threading.Event(), read=read)
    with run.output.sole_writer():
        begin = time.perf_counter()
        result = Pipeline(run, list(range(1, scans + 1)), lambda _: None).run()
        wall = time.perf_counter() - begin
    assert len(result.successes) == scans, result.failures
    shutil.rmtree(out)
    ideal = (scans - 1) * max(r, c, w) + r + c + w
    return {"stages_s": stages, "scans": scans, "wall_s": round(wall, 2), "ideal_s": round(ideal, 2),
            "of_the_ideal": round(wall / ideal, 3),
        "lost_ms_a_scan": round(1e3 * (wall - ideal) / scans, 1)}  # fmt: skip


# -- water and air ------------------------------------------------------------------------------------------------


def _water(repeat: int) -> dict:
    """128 pixels of 860 channels, the table of the sky there or not; one amount for all, and one for each."""
    import numpy as np

    from nightbeam.atmosphere import ClosedFormAtmosphere, planck_j
    from nightbeam.scans.compute import SkyTable, fit_pwv, sky_input

    model, dice = ClosedFormAtmosphere(), np.random.default_rng(1)
    freq = np.linspace(807.3, 811.3, 860)
    image, truth = 2 * 803.3 - freq, 0.62
    said = {"gain_signal": np.full((128, 1), 0.5), "forward_eff": 0.95, "spill_signal": planck_j(freq, 265.0),
            "spill_image": planck_j(image, 265.0)}  # fmt: skip
    seen = sky_input(model.sky(freq, truth, 1.35), model.sky(image, truth, 1.35), **said)
    sigma = np.full(seen.shape, 0.1)
    noisy = seen + sigma * dice.standard_normal(seen.shape)
    turns: dict[str, Callable[[], Any]] = {
        "table_s": lambda: SkyTable(model, freq, image, airmass=1.35),
        "fit_s": lambda: fit_pwv(noisy, sigma, table, common=False, **said),
        "common_fit_s": lambda: fit_pwv(noisy, sigma, table, common=True, **said),
    }
    table, best = turns["table_s"](), dict.fromkeys(turns, 1e9)
    for _ in range(repeat + 1):
        for name, work in turns.items():
            begin = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - begin)
    found = turns["fit_s"]().pwv_mm
    return {name: round(seconds, 4) for name, seconds in best.items()} | {
        "rms_error_mm": float(f"{np.sqrt(np.mean((found - truth) ** 2)):.2g}")
    }


def _air(work: str) -> dict:
    """Layers of two sidebands of 4 GHz from CASA, in a process that has to be begun; and again, from the disk."""
    import importlib.util

    import numpy as np

    if importlib.util.find_spec("casatools") is None:
        return {"cold_s": None}
    from nightbeam.atmosphere import Weather
    from nightbeam.atmosphere.remote import casa_atmosphere

    bands = [np.linspace(807.3, 811.3, 860), np.linspace(795.3, 799.3, 860)]
    took = []
    for _ in range(2):
        begin = time.perf_counter()
        casa_atmosphere(Weather(5612.0, 520.0, 265.0, 20.0), bands, cache_dir=Path(work) / "air")
        took.append(time.perf_counter() - begin)
    return {"cold_s": round(took[0], 2), "warm_s": round(took[1], 4)}


# -- the table ----------------------------------------------------------------------------------------------------


def _table(report: dict) -> str:
    measured, small, water = report["measured"], report["small"], report["water"]
    lines = [
        f"{report['scans']} scans with {report['mb_on_of_a_scan']} MB on the source; load average "
        f"{report['load_average']:.1f}",
        f"{'':16}{'GB/s':>8}{'CPU s/GB':>10}{'of it user':>12}",
        *(
            f"{name:16}{row['gb_s']:8.2f}{row['cpu_s_gb']:10.3f}{row['user_s_gb']:12.3f}"
            for name, row in measured["rows"].items()
        ),
        f"chain: {measured['cpu_of_floors']} of the CPU of read, write and arithmetic, without the system's part "
        f"{measured['user_of_floors']}; wall {measured['wall_of_bound']} of its bound; stages {measured['stages_s']}",
        f"arithmetic (kernel, references, flags): {measured['kernel_of_numpy']} times faster than numpy in place, "
        f"{measured['kernel_of_naive']} than numpy naive; at most {measured['same_as_numpy_k']:.1e} K apart",
    ]
    for one in report["memory"]:
        lines += [f"{one['scans']} scans of {one['scan_mb']} MB: {one['grown_mb']} MB beyond {one['base_mb']} MB, "
                  f"{one['beyond_mb']} MB more than three scans"]  # fmt: skip
    lines += [
        f"small scans ({small['scans']}): {small['wall_ms']} ms each, {small['cpu_ms']} ms of CPU; one fsync "
        f"{small['fsync_ms']} ms"
    ]
    for one in report["sleep"]:
        lines += [
            f"stages that sleep {one['stages_s']} s: {one['wall_s']} s, {one['of_the_ideal']} of the ideal, "
            f"{one['lost_ms_a_scan']} ms lost a scan"
        ]
    lines += [f"water of 128 pixels: fit {water['fit_s']} s, common fit {water['common_fit_s']} s, table "
              f"{water['table_s']} s, error {water['rms_error_mm']} mm"]  # fmt: skip
    if "air" in report:
        lines += [f"layers of air: {report['air']}"]
    lines += [f"{'met' if met else 'NOT met'}: {aim.replace('_', ' ')}" for aim, met in report["aims"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
