"""Detector constants in the demo: a service on loopback, the files of a run, and what the cache then holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from nightbeam.calib import open_constants
from nightbeam.core.errors import NightbeamError
from nightbeam.demo.model import RealCheck
from nightbeam.demo.remote import Ended, run_to_end
from nightbeam.platform import PrefectApi
from nightbeam.testing.calib_service import FakeCalibService
from nightbeam.testing.xtc2_files import detector, write_run
from nightbeam.xtc2 import judge_run

__all__ = ["ConstantsDemo", "constants_demo"]

DEPLOYMENT: Final = "calib-prefetch/default"
EXPERIMENT: Final = "nbdemo2026"
RUN: Final = 50
#: Real files of two streams, if they are at hand: experiment and run.
REAL: Final = ("xpptut15", 14, "mixed_rate")

#: One with three gain ranges, one with text besides, and one that has no constants, as most timing detectors.
_DETECTORS: Final = (
    detector("jungfrau", "jungfrau", ["3d8af-0042-1", "3d8af-0042-2"]),
    detector("epixquad", "epix10ka", ["3926196238-0175152897-1157627926"]),
    detector("hsd", "hsd", ["detnum1234"], algorithms=("raw", "fex")),
)


@dataclass
class ConstantsDemo:
    """A calibration service whose contents are known, and the runs for which it is asked."""

    service: FakeCalibService
    directory: Path
    #: (experiment, run, detector, ctype) -> what must be in the cache, and from which run it is valid.
    truth: dict[tuple[str, int, str, str], tuple[Any, int]] = field(default_factory=dict)
    runs: dict[str, tuple[int, Path]] = field(default_factory=dict)

    @property
    def output_dir(self) -> Path:
        """Where the demo's cache files go."""
        return self.directory / "cache"

    def check(self, api: PrefectApi, *, timeout_s: float = 120.0) -> tuple[RealCheck, ...]:
        """Let the deployment fill the cache for each experiment, and compare what is in it with what was deployed."""
        rows: list[RealCheck] = []
        for experiment, (run, xtc_dir) in self.runs.items():
            ended = self._prefetch(api, experiment, xtc_dir, timeout_s)
            if not ended.completed:
                rows.append(RealCheck(f"{experiment}: the run of {DEPLOYMENT}", "COMPLETED", ended.told, False))
                continue
            rows += self._compare(experiment, run)
        experiment, (_, xtc_dir) = next(iter(self.runs.items()))
        self.service.forget()
        ended = self._prefetch(api, experiment, xtc_dir, timeout_s)
        asked = self.service.requests
        fetched = sum(request.is_data for request in asked)
        most = 2 * len(_DETECTORS)
        found = f"{len(asked)} questions, {fetched} arrays, {ended.told}"
        right = 0 < len(asked) <= most and not fetched and ended.completed
        expected = f"{most} questions or fewer, 0 arrays, COMPLETED"
        rows.append(RealCheck(f"{experiment}: a second look", expected, found, right))
        return tuple(rows)

    def _prefetch(self, api: PrefectApi, experiment: str, xtc_dir: Path, timeout_s: float) -> Ended:
        asked = {"experiment": experiment, "xtc_dir": str(xtc_dir), "output_dir": str(self.output_dir)}
        return run_to_end(api, DEPLOYMENT, parameters=asked, timeout_s=timeout_s)

    def _compare(self, experiment: str, run: int) -> Iterator[RealCheck]:
        try:
            constants = open_constants(experiment, run, self.output_dir)
        except NightbeamError as error:
            yield RealCheck(f"{experiment} run {run}: the cache", "a file", str(error), False)
            return
        for (of, _, name, ctype), (value, run_from) in self.truth.items():
            if of == experiment:
                expected = _told(value, run_from, same=True)
                found = _found(constants, name, ctype, value)
                yield RealCheck(f"{experiment} run {run}: {name} {ctype}", expected, found, found == expected)


def _found(constants: Mapping[str, Any], name: str, ctype: str, value: Any) -> str:
    if ctype not in constants.get(name, {}):
        return "nothing"
    array, document = constants[name][ctype]
    same = np.array_equal(array, value) if isinstance(value, np.ndarray) else array == value
    return _told(array, int(document["run"]), same=bool(same))


def _told(value: Any, run_from: int, *, same: bool) -> str:
    size = f"{value.nbytes / 1e6:.1f} MB" if isinstance(value, np.ndarray) else f"{len(value)} characters"
    return f"{size}, valid from run {run_from}, {'as deployed' if same else 'not as deployed'}"


@contextmanager
def constants_demo(directory: Path, real_files: Path | None) -> Iterator[ConstantsDemo]:
    """Start a calibration service, write the files of a run, and deploy constants for it.

    Parameters
    ----------
    directory
        Where files and cache go.
    real_files
        A folder with real LCLS-II files; None, or one that is not there: simulated ones alone.
    """
    with FakeCalibService() as service:
        demo = ConstantsDemo(service, directory)
        demo.output_dir.mkdir(parents=True)
        xtc_dir = directory / "xtc"
        write_run(xtc_dir, _DETECTORS, experiment=EXPERIMENT, run=RUN, streams=2, events=3)
        demo.runs[EXPERIMENT] = (RUN, xtc_dir)
        ids = {one.name: one.unique_id for one in _DETECTORS}
        _deploy(demo, EXPERIMENT, RUN, "jungfrau", ids["jungfrau"], (3, 2, 512, 1024))
        _deploy(demo, EXPERIMENT, RUN, "epixquad", ids["epixquad"], (7, 1, 352, 384))
        service.add_detector(ids["hsd"])
        if real_files is not None and (real_files / REAL[2]).is_dir():
            _deploy_for_real_files(demo, real_files / REAL[2])
        yield demo


def _deploy_for_real_files(demo: ConstantsDemo, xtc_dir: Path) -> None:
    experiment, run, _ = REAL
    demo.runs[experiment] = (run, xtc_dir)
    # All detectors of the tutorial experiment have the constants of one unique id (spec of the service).
    value = np.arange(18, dtype=np.float32).reshape(3, 6)
    for name in judge_run(xtc_dir, experiment, run).det_info:
        demo.truth[experiment, run, name, "pedestals"] = (value, 1)
    demo.service.deploy(experiment, "cspad_detnum1234", "pedestals", value, run=1)


def _deploy(demo: ConstantsDemo, experiment: str, run: int, name: str, unique_id: str, shape: tuple[int, ...]) -> None:
    """Deploy constants from run 1 on, better ones from ten runs before, and later ones that must not be served."""
    random = np.random.default_rng(len(shape) + shape[0])
    pedestals = [random.normal(2000.0, 20.0, shape).astype(np.float32) for _ in range(3)]
    for value, since in zip(pedestals, (1, run - 10, 2 * run), strict=True):
        demo.service.deploy(experiment, unique_id, "pedestals", value, run=since)
    status = (random.random(shape) < 0.001).astype(np.uint64)
    geometry = "# a geometry of the demo\n"
    demo.service.deploy(experiment, unique_id, "pixel_status", status, run=1)
    demo.service.deploy(experiment, unique_id, "geometry", geometry, run=1)
    demo.truth |= {
        (experiment, run, name, "pedestals"): (pedestals[1], run - 10),
        (experiment, run, name, "pixel_status"): (status, 1),
        (experiment, run, name, "geometry"): (geometry, 1),
    }
