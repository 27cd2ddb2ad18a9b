"""The long loop: keep the cache of one experiment up to date until told to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from nightbeam.calib.prefetch import PrefetchReport, Progress, prefetch
from nightbeam.calib.remote import CalibService
from nightbeam.core.errors import InputError, NightbeamError

__all__ = ["prefetch_loop"]

_log = logging.getLogger(__name__)


def prefetch_loop(
    stop: threading.Event,
    *,
    experiment: str,
    xtc_dir: Path,
    output_dir: Path,
    service: CalibService,
    interval_s: float = 300.0,
    once: bool = False,
    skip: Collection[str] = (),
    keep: int | None = None,
    owners: Iterable[str | int] = (),
    on_report: Callable[[PrefetchReport], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> int:
    """Bring the cache up to date for the latest run, again and again.

    A pass that fails is logged and leaves the cache as it was; the next one comes after the same interval.

    Parameters
    ----------
    stop
        Ends the loop at once while it waits, and after the pass otherwise.
    interval_s
        Between the end of one pass and the begin of the next.
    once
        One pass only, whose failure is raised.
    on_report
        Called after every pass that worked.
    experiment, xtc_dir, output_dir, service, skip, keep, owners, on_progress
        As `nightbeam.calib.prefetch.prefetch`.

    Returns
    -------
    int
        How many passes worked.

    Raises
    ------
    InputError
        If the interval is not positive, or longer than can be slept.
    NightbeamError
        With ``once``, what the pass raised.
    """
    if not 0 < interval_s <= threading.TIMEOUT_MAX:
        raise InputError(f"an interval of {interval_s:g} s makes no sense", fix="give minutes greater than 0")

    def one_pass() -> None:
        report = prefetch(
            experiment,
            xtc_dir=xtc_dir,
            output_dir=output_dir,
            service=service,
            skip=skip,
            keep=keep,
            owners=tuple(owners),
            on_progress=on_progress,
        )
        _log.info("%s", _said(report))
        if on_report is not None:
            on_report(report)

    if once:
        one_pass()
        return 1
    worked = 0
    while not stop.is_set():
        try:
            one_pass()
            worked += 1
        except NightbeamError as error:
            _log.error("%s: %s", experiment, error)
        except Exception:  # a service that runs for weeks outlives what nobody thought of
            _log.exception("%s: an unforeseen error", experiment)
        stop.wait(interval_s)
    return worked


def _said(report: PrefetchReport) -> str:
    if report.run is None or report.reason:
        return f"{report.experiment}: {report.reason}"
    arrays = sum(1 for row in report.detectors if row.document_id)
    return (
        f"run {report.run} of {report.experiment}: {report.action}, {arrays} constants, {report.requests} requests, "
        f"{report.bytes_fetched / 1e6:.1f} MB in {report.seconds:.1f} s"
    )
