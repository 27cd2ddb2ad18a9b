"""What is said of a result: the arrays beside its spectra, its attributes, how good it is, what to look at."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam import __version__
from nightbeam.atmosphere import AtmosphereModel
from nightbeam.core.times import datetime_from_mjd, iso_z, utc_now
from nightbeam.scans.compute import zero_point
from nightbeam.scans.model import (
    Atmosphere,
    CalibrationError,
    CalibrationLoadFull,
    CalibrationOptions,
    MeasuredSky,
    Phase,
    PreparedData,
    RawScan,
    ScanLimits,
    ScanResult,
)
from nightbeam.scans.results import ResultStore, StagedScan, scan_arrays

__all__ = [
    "ScanWork",
    "attributes_of",
    "begin_result",
    "early_warnings",
    "ends",
    "result_of",
    "span",
    "suspect_ceiling",
]

_log = logging.getLogger(__name__)


@dataclass
class ScanWork:
    """A scan on its way, in one block or several."""

    scan: int
    begun: float
    head: RawScan
    load: CalibrationLoadFull
    passed_over: Mapping[int, CalibrationError]
    tried: tuple[int, ...]
    mark: str
    sky: MeasuredSky | None
    warnings: list[str]
    timings: dict[str, float] = field(default_factory=dict)
    air: Atmosphere | None = None
    model: AtmosphereModel | None = None
    staged: StagedScan | None = None
    scatter: list[NDArray[np.float64]] = field(default_factory=list)
    weights: list[NDArray[np.float32]] = field(default_factory=list)
    t_sys: list[NDArray[np.float32]] = field(default_factory=list)
    usable: bool = False
    failed: bool = False


@contextlib.contextmanager
def span(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Time a stage; an error that leaves it remembers where it came from."""
    begin = time.perf_counter()
    try:
        yield
    except Exception as error:
        if not hasattr(error, "stage"):
            error.stage = stage  # type: ignore[attr-defined]
        raise
    finally:
        timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - begin


def early_warnings(
    head: RawScan, load: CalibrationLoadFull, passed_over: Mapping[int, CalibrationError], limits: ScanLimits
) -> list[str]:
    """Return what somebody should look at, as far as it is known before the counts are."""
    found = [f"calibration {number} was passed over: {error.what}" for number, error in passed_over.items()]
    if load.span_s > limits.load_span_s:
        found.append(
            f"the calibration took {load.span_s:.0f} s from loads to sky, more than {limits.load_span_s:.0f} s"
        )
    if (apart := elevations_apart(head)) > limits.elevation_deg:
        found.append(
            f"source and reference are up to {apart:.1f} degrees apart in elevation, more than "
            f"{limits.elevation_deg:g}: expect a baseline"
        )
    if head.gain_signal.shape != load.gain_signal.shape or not np.allclose(head.gain_signal, load.gain_signal):
        found.append("the sideband gains of the scan are not those of its calibration")
    return found


def elevations_apart(head: RawScan) -> float:
    """Return the largest distance in elevation of a dump on the source from the nearer end of its references, deg."""
    on, off = (head.elevation_deg[head.phase == phase] for phase in (Phase.ON, Phase.OFF))
    if not (on.size and off.size):
        return 0.0
    return float(np.max(np.abs(on[:, None] - np.array([off.min(), off.max()])[None]).min(axis=1)))


def begin_result(store: ResultStore, work: ScanWork, prepared: PreparedData, options: CalibrationOptions) -> StagedScan:
    """Begin a result: all that does not grow with the number of spectra is written at once."""
    assert work.air is not None
    head, on = work.head, prepared.on
    pixels, channels = head.lon_off_deg.shape[1], head.freq_hz.size
    whole = prepared  # of the first block: what is taken from it is the same for all
    photon = (
        zero_point(head.freq_hz / 1e9, head.image_hz / 1e9, work.load.gain_signal) if options.callen_welton else 0.0
    )
    arrays = scan_arrays(head, whole, work.load, work.air, photon_k=photon) | {
        "lon_off": head.lon_off_deg[on],
        "lat_off": head.lat_off_deg[on],
        "main_beam_eff": head.main_beam_eff.astype(np.float32),
    }
    cube = (on.size, pixels, channels)
    shapes: dict[str, tuple[int, ...]] = {name: values.shape for name, values in arrays.items()}
    shapes |= {"ta_star": cube, "flag": cube, "weight": cube[:2], "tsys": cube[1:]}
    if options.elevation_correction == "model":
        shapes["baseline_model"] = cube
    staged = store.stage(work.scan, shapes)
    for name, values in arrays.items():
        staged.put(name, values)
    return staged


def attributes_of(
    work: ScanWork, prepared: PreparedData, options: CalibrationOptions, atmosphere: str
) -> dict[str, Any]:
    """Return what is said of a result, as JSON types."""
    air, load, head = work.air, work.load, work.head
    assert air is not None
    assert work.staged is not None
    begin, end = ends(head)
    quality = _quality(work, prepared)
    warnings = [*work.warnings, *_late_warnings(work, quality)]
    info = head.info
    return {
        "fingerprint": work.mark,
        "calibrations_tried": list(work.tried),
        "calibration_scans": list(load.scans),
        "obs_type": info.obs_type,
        "source": info.source,
        "lo_hz": info.lo_hz,
        "signal_sideband": info.signal_sideband,
        "tuning_id": info.tuning_id,
        "backend": info.backend,
        "forward_eff": info.forward_eff,
        "begin": iso_z(datetime_from_mjd(begin / 86_400.0)),
        "end": iso_z(datetime_from_mjd(end / 86_400.0)),
        "pwv_mm": air.pwv_mm,
        "pwv_source": air.source,
        "temperature_scale": "callen-welton" if options.callen_welton else "rj-planck",
        "options": _plain(asdict(options)),
        "atmosphere": {
            "model": atmosphere,
            "altitude_m": info.altitude_m,
            "pressure_hpa": info.pressure_hpa,
            "temperature_k": info.temperature_k,
            "humidity_pct": info.humidity_pct,
            "spill_k": info.temperature_k if info.spill_k is None else info.spill_k,
        },
        "quality": quality,
        "warnings": warnings,
        "timings": {stage: round(seconds, 4) for stage, seconds in work.timings.items()},
        "seconds": round(time.monotonic() - work.begun, 3),
        # Finer than a second: a retry that comes at once has to know what the attempt before it has done.
        "finished": utc_now().isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "code_version": __version__,
    }


def _quality(work: ScanWork, prepared: PreparedData) -> dict[str, float]:
    """Return numbers that say how good a result is; those that are not known are left out."""
    air, load = work.air, work.load
    assert air is not None
    assert work.staged is not None
    fit, head = air.pwv, work.head
    samples = prepared.on.size * head.lon_off_deg.shape[1] * head.freq_hz.size
    begin, end = ends(head)
    found = {
        "scatter": _median(np.concatenate(work.scatter)),
        "t_rec_k": _median(load.gain.t_rec),
        "t_sys_k": _median(np.concatenate(work.t_sys)),
        "flagged": work.staged.flagged / samples,
        "calibration_age_s": max(0.0, begin - load.time_s, load.time_s - end),
        "calibration_span_s": load.span_s,
        "elevation_deg": float(np.mean(head.elevation_deg[prepared.on])),
        "off_elevation_difference_deg": elevations_apart(head),
    }
    if fit is not None:
        found |= {
            "pwv_error_mm": _median(fit.error_mm), "pwv_rms_k": _median(fit.rms_k), "pwv_iterations": fit.iterations,
            "pwv_channels": float(np.sum(fit.channels)), "pwv_at_bound": float(np.sum(fit.at_bound)),
        }  # fmt: skip
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def _late_warnings(work: ScanWork, quality: Mapping[str, float]) -> list[str]:
    found = []
    if work.air is not None and work.air.source != "fit":
        found.append(f"the water is {work.air.source}, not fitted: {work.air.failure}")
    scatter = quality.get("scatter", 1.0)
    if not 0.7 <= scatter <= 1.5:
        found.append(f"the noise from channel to channel is {scatter:.2f} times what is expected")
    if (bound := quality.get("pwv_at_bound", 0.0)) > 0:
        found.append(f"the water of {bound:.0f} pixels is at the end of what was tried")
    return found


def result_of(work: ScanWork, path: Path, said: Mapping[str, Any]) -> ScanResult:
    """Return a result as it is told, and say it in the log."""
    timings = dict(said["timings"])
    _log.info(
        "scan %d: %s; pwv %.3f mm (%s)", work.scan,
        ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in timings.items()), said["pwv_mm"], said["pwv_source"],
    )  # fmt: skip
    return ScanResult(
        work.scan, path, work.load.scans, said["pwv_mm"], said["pwv_source"], said["seconds"], timings,
        said["quality"], tuple(said["warnings"]),
    )  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _median(values: NDArray[Any]) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")


def ends(head: RawScan) -> tuple[float, float]:
    """Return begin and end of a scan, in the seconds of its times."""
    half = 0.5 * head.duration_s
    return float(head.time_s[0] - half[0]), float(head.time_s[-1] + half[-1])


def suspect_ceiling(scan: RawScan) -> list[str]:
    """Say where a bright load repeats itself exactly, in a store that does not say where its digitizer ends."""
    hot = np.flatnonzero(scan.phase == Phase.HOT)
    if scan.info.adc_ceiling is not None or hot.size <= 3:
        return []
    brightest = scan.counts[hot].max(axis=0)
    repeated = (scan.counts[hot] == brightest).sum(axis=0) > 3
    if not (number := int(np.count_nonzero(repeated & (brightest > 0)))):
        return []
    return [
        f"{number} channels of the hot load of scan {scan.info.scan} repeat their highest value: are they saturated?"
    ]
