"""Single-dish scans in the demo: a simulated night that the service calibrates as it is observed, beside its truth."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from nightbeam.core.errors import NightbeamError
from nightbeam.core.locks import is_held
from nightbeam.core.settings import ScansSettings
from nightbeam.demo.model import RealCheck
from nightbeam.platform import FINAL, PrefectApi
from nightbeam.scans.plot import plot_night, plot_scan
from nightbeam.scans.report import failures_path, read_failures
from nightbeam.scans.summary import summarize_scan
from nightbeam.testing.night import Fault, NightPlan, NightTruth, ScanTruth, simulate_night, truth_spectrum

__all__ = ["NightDemo", "cancel_service", "line_strength"]

DEPLOYMENT: Final = "scan-calibrator/default"
#: Six scans, one of which is half a file; loads before every second one.
PLAN: Final = NightPlan(
    scans=6, pixels=8, channels=512, rows=2, dumps=20, calibration_every=2, faults=(Fault("truncated-chunk", 4),)
)
#: Of line and water, beside five times the noise.
MOST_ERROR: Final = 0.02
#: A cancelled service has to let go of its output in this time.
MOST_DRAIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class NightDemo:
    """Where a night is observed, and where its results go."""

    l0: Path
    l1: Path

    @classmethod
    def of(cls, settings: ScansSettings) -> NightDemo:
        """Return the night of some settings, which are resolved."""
        assert settings.input_dir is not None
        assert settings.output_dir is not None
        return cls(settings.input_dir / "night.zarr", settings.output_dir / "night.zarr")

    @staticmethod
    def settings(base: ScansSettings) -> ScansSettings:
        """Return the settings of the demo: none of a site's, the simulated air, the water of each scan's own time."""
        own = {"atmosphere": "closed-form", "sky": "off", "interval_s": 0.5}
        return ScansSettings().model_copy(update={"cache_dir": base.cache_dir, **own})

    def check(
        self, api: PrefectApi, *, timeout_s: float = 120.0, say: Callable[[str], None] = lambda _: None
    ) -> tuple[RealCheck, ...]:
        """Let the service calibrate the night while it is observed, then cancel it; compare with what was simulated."""
        self.l0.parent.mkdir(parents=True, exist_ok=True)
        run = api.run_deployment(DEPLOYMENT, parameters={"fence_s": 2.0})
        try:
            truth = simulate_night(self.l0, PLAN)
            self._wait(truth, timeout_s)
            rows = [*self._scans(truth), self._figures(truth, say)]
        except NightbeamError as error:
            rows = [RealCheck("the calibrated night", "results", str(error), False)]
        return (*rows, cancel_service(api, str(run["id"]), self.l1.with_name("scan-calibrator.lock")))

    def _wait(self, truth: NightTruth, timeout_s: float) -> None:
        """Wait until the service says that it has had its turn with every scan."""
        beat, until = self.l1.with_name("scan-calibrator.json"), time.monotonic() + timeout_s
        while time.monotonic() < until:
            said = json.loads(beat.read_text()) if beat.exists() else {}
            if said.get("done", 0) + said.get("failed", 0) >= len(truth.scans) and not said.get("writing"):
                return
            time.sleep(0.25)

    def _scans(self, truth: NightTruth) -> Iterator[RealCheck]:
        failed = {one.scan: one.error for one in read_failures(failures_path(self.l1))}
        for one in truth.scans:
            what = f"scan {one.scan} ({one.obs_type}{f', {one.fault}' if one.fault else ''})"
            if one.error is not None or one.scan in failed:
                expected, found = (error or "a result" for error in (one.error, failed.get(one.scan)))
                yield RealCheck(what, expected, found, expected == found)
            else:
                yield self._scan(what, truth, one)

    def _scan(self, what: str, truth: NightTruth, one: ScanTruth) -> RealCheck:
        peak_k, pwv_mm = truth.plan.lines[0].peak_k, one.pwv_mm
        expected = f"line {peak_k:.2f} K, pwv {pwv_mm:.3f} mm"
        try:
            summary = summarize_scan(self.l1, one.scan)
            strength, error = line_strength(self.l1, truth, one.scan)
        except NightbeamError as problem:
            return RealCheck(what, expected, str(problem), False)
        if summary.pwv_mm is None or summary.pwv_error_mm is None:
            return RealCheck(what, expected, "no water was found", False)
        found = f"line {peak_k * strength:.2f} +- {peak_k * error:.2f} K, pwv {summary.pwv_mm:.3f} mm"
        right = abs(strength - 1.0) <= MOST_ERROR + 5.0 * error
        right &= abs(summary.pwv_mm / pwv_mm - 1.0) <= MOST_ERROR + 5.0 * summary.pwv_error_mm / pwv_mm
        return RealCheck(what, expected, found, right)

    def _figures(self, truth: NightTruth, say: Callable[[str], None]) -> RealCheck:
        scan = next(one.scan for one in truth.scans if one.error is None)
        rest_ghz = truth.plan.lines[0].freq_hz / 1e9
        paths = (
            plot_scan(self.l1, scan, self.l1.with_name(f"scan_{scan:06d}.png"), rest_ghz=rest_ghz),
            plot_night(self.l1, self.l1.with_name("night.png")),
        )
        for path in paths:
            say(f"scans: {path}")
        there = [path.name for path in paths if path.read_bytes().startswith(b"\x89PNG")]
        expected = ", ".join(path.name for path in paths)
        return RealCheck("figures of a scan and of the night", expected, ", ".join(there) or "nothing", len(there) == 2)


def line_strength(l1: Path, truth: NightTruth, scan: int) -> tuple[float, float]:
    """Return how strong the line of a calibrated scan is in units of the true one, and the error of the noise.

    The weighted mean spectrum is fitted with the true line and a constant.
    """
    group: Any = zarr.open_group(l1 / "scans" / f"scan_{scan:06d}", mode="r", zarr_format=3, use_consolidated=False)
    spectra = np.asarray(group["ta_star"][...], float)
    weight = np.where(np.isfinite(spectra), np.nan_to_num(np.asarray(group["weight"][...], float))[:, :, None], 0.0)
    found, line = (_mean(values, weight) for values in (np.nan_to_num(spectra), truth_spectrum(truth, scan)))
    good = np.isfinite(found)
    model = np.stack([line[good], np.ones(int(good.sum()))], axis=1)
    solution, *_ = np.linalg.lstsq(model, found[good], rcond=None)
    left = float(np.std(found[good] - model @ solution, ddof=2))
    return float(solution[0]), left * math.sqrt(float(np.linalg.inv(model.T @ model)[0, 0]))


def _mean(values: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    total = weight.sum(axis=(0, 1))
    return np.asarray(
        np.divide((values * weight).sum(axis=(0, 1)), total, out=np.full(total.shape, np.nan), where=total > 0)
    )


def cancel_service(api: PrefectApi, run_id: str, lock: Path, *, most_drain_s: float = MOST_DRAIN_S) -> RealCheck:
    """Cancel the service; see how long it takes until it has let go of its output, and until its run says so."""
    begin, drained_s = time.monotonic(), math.inf
    api.cancel(run_id)
    while (seconds := time.monotonic() - begin) < 60.0:
        drained_s = min(drained_s, seconds if not is_held(lock) else math.inf)
        if (now := api.flow_run(run_id)["state_type"]) in FINAL:
            break
        time.sleep(0.1)
    expected = f"drained within {most_drain_s:.0f} s, CANCELLED"
    found = f"drained after {drained_s:.1f} s, {now} after {seconds:.1f} s"
    return RealCheck("the service is cancelled", expected, found, drained_s <= most_drain_s and now == "CANCELLED")
