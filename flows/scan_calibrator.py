"""The scan calibrator: what the telescope has observed is calibrated as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect import flow
from prefect.client.schemas.objects import State

from flows._service import run_service, unless_cancelled
from nightbeam.core.settings import load_settings
from nightbeam.scans.config import pipeline_config

if TYPE_CHECKING:
    from nightbeam.scans.service import ScanService

#: Rows of a table at the run.
_MOST_ROWS: Final = 100


@flow(name="scan-calibrator")
def scan_calibrator(
    input_dir: str | None = None,
    output_dir: str | None = None,
    interval_s: float | None = None,
    settle_s: float | None = None,
    fence_s: float = 10.0,
) -> State[Any]:
    """Calibrate each scan once, as it completes, until asked to stop; one at a time on an output.

    Parameters
    ----------
    input_dir
        Where stores of raw scans arrive, or one such store; null: as the settings say, here and below.
    output_dir
        Where stores of results of the same names go.
    interval_s
        Between two looks.
    settle_s
        A scan that does not say whether it is complete must not have changed for so long.
    fence_s
        How often the server is asked whether this run is still supposed to run.
    """
    return unless_cancelled(lambda: _serve(input_dir, output_dir, interval_s, settle_s, fence_s))


def _serve(
    input_dir: str | None, output_dir: str | None, interval_s: float | None, settle_s: float | None, fence_s: float
) -> State[Any]:
    from nightbeam.scans.service import ScanService  # heavy: an apply imports every flow

    settings = load_settings().resolved()
    scans = settings.scans
    assert scans.input_dir is not None  # resolved
    assert scans.output_dir is not None
    out = Path(output_dir or scans.output_dir)
    service = ScanService(
        Path(input_dir or scans.input_dir),
        out,
        pipeline_config(settings),
        interval_s=scans.interval_s if interval_s is None else interval_s,
        settle_s=scans.settle_s if settle_s is None else settle_s,
        heartbeat=out / "scan-calibrator.json",
    )
    return run_service(
        service.loop,
        lock=out / "scan-calibrator.lock",
        name="scan-calibrator",
        counters=lambda: _numbers(service),
        tables={"pwv": lambda: _water(service), "failures": lambda: _failures(service)},
        fence_s=fence_s,
    )


def _numbers(service: ScanService) -> Mapping[str, Any]:
    found = service.counters()
    return {
        "scans done": found.done,
        "found done": found.skipped,
        "failed": found.failed,
        "backlog": found.backlog,
        "being written": found.writing,
        "stores": found.stores,
        "seconds a scan": ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in found.seconds.items()) or "-",
        "last scan": found.last_scan or "-",
        "last error": found.last_error or "-",
        "waits for": "; ".join(found.problems) or "-",
    }


def _water(service: ScanService) -> list[dict[str, Any]]:
    last = service.counters().water[-_MOST_ROWS:]
    return [
        {"at": one.at, "store": one.store, "scan": one.scan, "pwv (mm)": round(one.pwv_mm, 3), "from": one.source}
        for one in last
    ]


def _failures(service: ScanService) -> list[dict[str, Any]]:
    return [
        {"store": store, "scan": one.scan, "error": one.error, "stage": one.stage, "what": one.message.splitlines()[0]}
        for store, one in service.failures()[:_MOST_ROWS]
    ]
