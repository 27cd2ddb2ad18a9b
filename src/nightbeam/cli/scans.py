"""``nightbeam scans``: single-dish spectra, from counts to temperatures; also a night of them to practise on."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nightbeam.cli.output import dry_run_option, json_option, plain, printable, settings_of, show, talk
from nightbeam.cli.signals import stopped_by_signals
from nightbeam.core.errors import BusyError, NightbeamError, UsageError

if TYPE_CHECKING:
    from nightbeam.scans.model import PipelineConfig, PipelineResult, RejectedCalibration, ScanFailure, ScanResult
    from nightbeam.scans.summary import ScanSummary
    from nightbeam.testing.dish import Line
    from nightbeam.testing.night import NightPlan, NightTruth

__all__ = ["scans"]

_PATH = click.Path(path_type=Path)
_UNITS = {"": 1e9, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([a-zA-Z]*)\s*")
_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_LINE = re.compile(rf"{_NUMBER}@{_NUMBER}:{_NUMBER}")


class _Scans(click.Group):
    """A group that ends with 1 where a run cannot start, whatever prevents it, as users of the calibrator expect.

    What keeps its own code is a call that makes no sense (64), and a place that somebody else works on (75).
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (UsageError, BusyError):
            raise
        except NightbeamError as error:
            talk(f"nightbeam: {error}")
            return 1


@click.group("scans", cls=_Scans)
def scans() -> None:
    """Calibrate single-dish spectra, look at them, and simulate them."""


# -- words on the command line ------------------------------------------------------------------------------------


class _Bytes(click.ParamType[int]):
    """A size such as 8 (GB), 500MB or 1.5GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(value)
        if found is None or found[2].lower() not in _UNITS:
            self.fail(f"{value!r} is no size: write 8GB, 500MB or 1.5GiB", param, ctx)
        size = int(float(found[1]) * _UNITS[found[2].lower()])
        if size < 1:
            self.fail(f"{value!r}: a size above zero is wanted", param, ctx)
        return size


class _Pair(click.ParamType[tuple[int, int]]):
    """Two numbers of scans, SCAN=CAL."""

    name = "pair"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return both."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+)=(\d+)", value, re.ASCII)
        if found is None:
            self.fail(f"{value!r} names no scan and calibration: write 12=100009", param, ctx)
        return int(found[1]), int(found[2])


def _keep_config(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    # That of the command comes after that of all commands, and wins.
    if path is not None:
        ctx.obj = dict(ctx.obj or {}) | {"config": path}


# -- calibrate ----------------------------------------------------------------------------------------------------


@scans.command("calibrate")
@click.argument("l0", type=_PATH)
@click.argument("l1", type=_PATH)
@click.option("--scan", "only", multiple=True, type=click.IntRange(min=0), metavar="N", help="This one; repeatable.")
@click.option("--force", is_flag=True, help="Also what has been done already.")
@click.option("--calibration", type=_Pair(), multiple=True, metavar="SCAN=CAL", help="Use CAL for SCAN; repeatable.")
@click.option("--sky", type=click.Choice(["cal", "off"]), help="Water from the calibration's sky, or from the OFFs.")
@click.option("--atmosphere", type=click.Choice(["casa", "closed-form"]), help="closed-form: for simulations only.")
@click.option("--memory-budget", type=_Bytes(), metavar="SIZE", help="For scans in work, GB or e.g. 500MB.")
@click.option("--failures", type=_PATH, help="Where failures are written.  [default: L1 stem.failures.json]")
@click.option(
    "--config", type=_PATH, callback=_keep_config, expose_value=False, help="Settings file (YAML), here or before."
)
@dry_run_option
@json_option
@click.pass_context
def calibrate(
    ctx: click.Context,
    /,
    l0: Path,
    l1: Path,
    only: tuple[int, ...],
    force: bool,
    calibration: tuple[tuple[int, int], ...],
    memory_budget: int | None,
    dry_run: bool,
    as_json: bool,
    **asked: Any,
) -> int:
    """Calibrate the scans in the store L0 that the store L1 does not have yet.

    Options that are not given come from the settings (scans). A scan that cannot be calibrated does not stop the
    others. Exit code 2: some failed; 1: nothing succeeded, or the run could not start; 75: another run writes to L1.
    """
    if len({scan for scan, _ in calibration}) < len(calibration):
        raise click.UsageError("--calibration names a scan twice")
    from nightbeam.scans.config import pipeline_config

    config = pipeline_config(
        settings_of(ctx),
        scans=tuple(sorted(set(only))) or None,
        force=force or None,
        force_calibration=calibration or None,
        memory_budget_bytes=memory_budget,
        **asked,
    )
    if dry_run:
        _show_plan(l0, l1, config, as_json=as_json)
        return 0
    return _calibrate(l0, l1, config, as_json=as_json)


def _show_plan(l0: Path, l1: Path, config: PipelineConfig, *, as_json: bool) -> None:
    from nightbeam.scans.worker import plan_store

    rows = [{"scan": scan, "would_be": what} for scan, what in plan_store(l0, l1, config)]
    show(rows, as_json=as_json, title="" if as_json else f"{l0.name} to {l1.name}")


def _calibrate(l0: Path, l1: Path, config: PipelineConfig, *, as_json: bool) -> int:
    from nightbeam.scans.model import ScanResult
    from nightbeam.scans.worker import calibrate_store

    stop = threading.Event()
    with _said_here(), stopped_by_signals(stop) as told, _progress("scans", as_json=as_json) as bar:

        def tell(one: ScanResult | ScanFailure) -> None:
            if as_json:
                show([_as_json(one)], as_json=True)
            elif not isinstance(one, ScanResult):
                bar.say(_complaint(one))
            bar.step(f"scan {one.scan}")

        result = calibrate_store(l0, l1, config, stop=stop, on_begin=bar.begin, on_scan=tell)
    code = 128 + told[0] if told and result.stopped else result.exit_code
    _show_result(result, l1, config, code, as_json=as_json)
    return code


def _as_json(one: ScanResult | ScanFailure) -> dict[str, Any]:
    from nightbeam.scans.model import ScanResult

    return {"kind": "scan", "status": "calibrated" if isinstance(one, ScanResult) else "failed"} | {
        # The kind of an object is scan; a failure has one of its own.
        {"kind": "failure_kind"}.get(name, name): value
        for name, value in plain(one).items()
    }


def _complaint(one: ScanFailure) -> str:
    # A mistake in the program has its traceback from the second line on; that is in the list of failures.
    said = one.message.strip().partition("\n")[0]
    return printable(f"scan {one.scan} failed ({one.stage}, {one.error}): {said}", keep="")


@contextmanager
def _said_here() -> Iterator[None]:
    """Keep failed scans out of the log on the terminal, where they would be told twice."""

    def is_news(record: logging.LogRecord) -> bool:
        return not (record.name == "nightbeam.scans.pipeline" and record.levelno == logging.ERROR)

    handlers = list(logging.getLogger("nightbeam").handlers)
    for handler in handlers:
        handler.addFilter(is_news)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_news)


def _show_result(result: PipelineResult, l1: Path, config: PipelineConfig, code: int, *, as_json: bool) -> None:
    from nightbeam.scans.report import failures_path

    failures = (config.failures or failures_path(l1)) if result.failures or result.rejected else None
    counts = {
        "calibrated": len(result.successes),
        "failed": len(result.failures),
        "skipped": len(result.skipped),
        "incomplete": len(result.incomplete),
    }
    if as_json:
        rejected = [one.scan for one in result.rejected]
        said = {"rejected_calibrations": rejected, "stopped": result.stopped, "failures": failures, "exit_code": code}
        whole = {"kind": "run", **counts, **said}
        show([whole], as_json=True)
        return
    if result.successes:
        show([_line(one) for one in result.successes], title=str(l1))
    for one in result.successes:
        for warning in one.warnings:
            talk(f"scan {one.scan}: {warning}")
    talk(
        f"{counts['calibrated']} calibrated, {counts['failed']} failed, {counts['skipped']} were there already"
        + (f", {counts['incomplete']} are still being written" if result.incomplete else "")
        + ("; stopped before the end" if result.stopped else "")
    )
    if not any(counts.values()) and not result.stopped:
        talk("nothing to do: the store has no scan of a source")
    if result.rejected:
        talk(f"load calibrations that cannot be used: {', '.join(str(one.scan) for one in result.rejected)}")
    if failures is not None:
        talk(f"what failed, and why: {failures}")


def _line(one: ScanResult) -> dict[str, Any]:
    quality = one.quality
    return {
        "scan": one.scan,
        "cal": ", ".join(map(str, one.calibration_scans)),
        "pwv mm": _digits(one.pwv_mm, "{:.3f}"),
        "from": one.pwv_source,
        "Tsys K": _digits(quality.get("t_sys_k"), "{:.0f}"),
        "Trec K": _digits(quality.get("t_rec_k"), "{:.0f}"),
        "noise": _digits(quality.get("scatter"), "{:.2f}"),
        "seconds": _digits(one.seconds, "{:.1f}"),
    }


class _Bar:
    """What somebody at a terminal sees of the progress; nobody else sees anything."""

    def begin(self, total: int) -> None:
        """Say how much there is to do."""

    def step(self, what: str) -> None:
        """Say that one more is done."""

    def say(self, message: str) -> None:
        """Write a line that stays."""
        talk(message)


@contextmanager
def _progress(what: str, *, as_json: bool) -> Iterator[_Bar]:
    if as_json or not sys.stderr.isatty():
        yield _Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        # The log writes where the terminal was before the bar came; its lines would cut through it.
        handlers = [one for one in logging.getLogger("nightbeam").handlers if type(one) is logging.StreamHandler]
        before = [handler.setStream(sys.stderr) for handler in handlers]

        class Bar(_Bar):
            def begin(self, total: int) -> None:
                progress.update(task, total=total)

            def step(self, what: str) -> None:
                progress.update(task, advance=1, description=printable(what))

            def say(self, message: str) -> None:
                progress.console.print(Text(message), soft_wrap=True)

        try:
            yield Bar()
        finally:
            for handler, stream in zip(handlers, before, strict=True):
                handler.setStream(stream or sys.__stderr__)


# -- looking ------------------------------------------------------------------------------------------------------


@scans.command("status")
@click.argument("l1", type=_PATH)
@click.option("--failures", type=_PATH, help="Where failures were written.  [default: L1 stem.failures.json]")
@json_option
def status(l1: Path, failures: Path | None, as_json: bool) -> None:
    """List the calibrated scans of the store L1, what failed in the last run, and whether a run is going on."""
    from nightbeam.scans.summary import failure_report, running, store_attributes, summarize_store

    said, found = store_attributes(l1), summarize_store(l1)
    report, who = failure_report(l1, failures), running(l1)
    failed, rejected = (report.failures, report.rejected) if report else ((), ())
    if as_json:
        whole = {
            "kind": "store",
            "path": l1,
            "l0": said.get("l0"),
            "calibrated": len(found),
            "failed": len(failed),
            "rejected_calibrations": len(rejected),
            "running": who,
            "last_failure": report and {"path": report.path, "run_id": report.run_id, "finished": report.finished},
        }
        scan_rows = ({"kind": "scan"} | plain(one) for one in found)
        rejected_rows = ({"kind": "rejected_calibration"} | plain(one) for one in rejected)
        show([*scan_rows, *(_failed(one) for one in failed), *rejected_rows, whole], as_json=True)
        return
    _show_summary(found, l1)
    if failed:
        show([_failure_line(one) for one in failed], title="failed in the last run")
    if rejected:
        show([_failure_line(one) for one in rejected], title="load calibrations that cannot be used")
    talk(f"{len(found)} scans calibrated, {len(failed)} failed in the last run")
    if who is not None:
        since = f" (process {who['pid']} on {who['host']} since {who['since']})" if who else ""
        talk(f"a run is going on{since}")


def _failed(one: ScanFailure) -> dict[str, Any]:
    return _as_json(one) | {"kind": "failure"}


def _show_summary(found: list[ScanSummary], l1: Path) -> None:
    begins = [one.begin for one in found if one.begin is not None]
    one_night = not begins or (max(begins) - min(begins)).days == 0
    form = "%H:%M" if one_night else "%m-%d %H:%M"
    show([_summary_line(one, form) for one in found], title=f"{l1}" + (f", {min(begins):%Y-%m-%d}" if begins else ""))
    if notes := [{"scan": one.scan, "warning": warning} for one in found for warning in one.warnings]:
        show(notes, title="to look at")


def _summary_line(one: ScanSummary, form: str) -> dict[str, Any]:
    # Short, so that a line of it is one on a terminal of 80 columns; --json has all of it.
    return {
        "scan": one.scan,
        "source": one.source if one.status == "complete" else one.status,
        "UTC": one.begin and one.begin.strftime(form),
        "cal": ", ".join(map(str, one.calibration_scans)) or None,
        "pwv mm": _digits(one.pwv_mm, "{:.3f}"),
        "Tsys K": _digits(one.t_sys_k, "{:.0f}"),
        "Trec K": _digits(one.t_rec_k, "{:.0f}"),
        "flag%": _digits(one.flagged and 100 * one.flagged, "{:.2f}"),
        "noise": _digits(one.scatter, "{:.2f}"),
    }


def _digits(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)


def _failure_line(one: ScanFailure | RejectedCalibration) -> dict[str, Any]:
    return {"scan": one.scan, "error": one.error, "stage": one.stage, "message": one.message.strip()}


@scans.command("plot")
@click.argument("l1", type=_PATH)
@click.argument("scan", type=click.IntRange(min=0), required=False)
@click.option("-o", "--out", type=_PATH, help="The figure (PNG).  [default: beside L1]")
@click.option("--pixel", type=click.IntRange(min=0), help="Of this pixel; without it the mean of all.")
@click.option("--rest-ghz", type=float, help="Also the radio velocity of a line of this frequency.")
@json_option
def plot(
    l1: Path, scan: int | None, out: Path | None, pixel: int | None, rest_ghz: float | None, as_json: bool
) -> None:
    """Draw SCAN of the store L1: spectrum, temperatures of the system, opacities, all dumps.

    Without SCAN: water and system temperature of all scans against the time.
    """
    from nightbeam.scans.plot import plot_night, plot_scan

    stem = l1.name.removesuffix(".zarr")
    if scan is None:
        if pixel is not None or rest_ghz is not None:
            raise click.UsageError("--pixel and --rest-ghz are about one scan: name it")
        figure = plot_night(l1, out or l1.with_name(f"{stem}.night.png"))
    else:
        place = out or l1.with_name(f"{stem}.scan_{scan:06d}.png")
        figure = plot_scan(l1, scan, place, pixel=pixel, rest_ghz=rest_ghz)
    if as_json:
        show([{"scan": scan, "figure": figure}], as_json=True)
    else:
        talk(f"wrote {figure}")


# -- simulating ---------------------------------------------------------------------------------------------------


class _WithFaults(click.Command):
    """A command whose help ends with the kinds of faults; they are looked up only when somebody reads it."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list."""
        del ctx
        from nightbeam.testing.night_faults import FAULT_KINDS

        with formatter.section("Faults"):
            formatter.write_dl([(name, f"{kind.says}  [{_owed(kind)}]") for name, kind in FAULT_KINDS.items()])


def _owed(kind: Any) -> str:
    return kind.error.__name__ if kind.error is not None else f"flag {int(kind.flag)}"


@scans.command("simulate", cls=_WithFaults)
@click.argument("out", type=_PATH)
@click.option("--scans", default=12, show_default=True, help="Scans of a source, beside their load calibrations.")
@click.option("--pixels", default=8, show_default=True, help="Of the receiver.")
@click.option("--channels", default=1024, show_default=True, help="Of 1 MHz, about 809.3 GHz.")
@click.option("--mode", type=click.Choice(["otf", "tp", "both"]), default="both", show_default=True, help="Or in turn.")
@click.option("--rows", default=4, show_default=True, help="Of a map; or sequences OFF ON ON OFF.")
@click.option("--dumps", default=20, show_default=True, help="On the source, in each row of a map.")
@click.option("--pwv", metavar="MM[:MM]", default="0.60:0.64", show_default=True, help="Water at begin and end.")
@click.option("--gain-drift", default=0.02, show_default=True, help="Fraction by which gains grow in an hour.")
@click.option(
    "--line", "lines", multiple=True, metavar="K@GHZ:MHZ", help="Peak, place, width; repeatable.  [5@809.3:40]"
)
@click.option("--noise/--no-noise", default=True, help="Whether there is any.  [default: noise]")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same counts.")
@click.option("--fault", "faults", multiple=True, metavar="KIND:SCAN", help="What goes wrong; repeatable, see below.")
@click.option(
    "--air", type=click.Choice(["closed-form", "casa"]), default="closed-form", show_default=True, help="Above it."
)
@dry_run_option
@json_option
@click.pass_context
def simulate(ctx: click.Context, /, out: Path, air: str, dry_run: bool, as_json: bool, **asked: Any) -> None:
    """Write a night of raw scans whose truth is known into the store OUT, and its truth beside it.

    Calibrate it with the same atmosphere: --atmosphere closed-form, unless it is made with --air casa.
    """
    from nightbeam.testing.night import casa_air, simulate_night, truth_path

    plan = _plan(**asked)
    if dry_run:
        rows = [_planned(plan, scan) for scan in range(1, plan.scans + 1)]
        show(rows, as_json=as_json, title="" if as_json else f"would be in {out}")
        return
    with _progress("scans", as_json=as_json) as bar:
        bar.begin(plan.scans)
        model = casa_air(plan, cache_dir=settings_of(ctx).scans.cache_dir) if air == "casa" else None
        truth = simulate_night(out, plan, air=model, on_scan=lambda one: bar.step(f"scan {one.scan}"))
    _show_truth(truth, out, as_json=as_json)
    talk(f"wrote {out} and {truth_path(out).name}")


def _plan(*, pwv: str, lines: tuple[str, ...], faults: tuple[str, ...], **asked: Any) -> NightPlan:
    from nightbeam.testing.night import Fault, NightPlan

    if lines:
        asked["lines"] = tuple(_parse_line(text) for text in lines)
    plan = NightPlan(pwv_mm=_parse_pwv(pwv), faults=tuple(Fault.parse(text) for text in faults), **asked)
    half = 0.5 * plan.channels * plan.width_hz
    low, high = plan.lo_hz + plan.if_hz - half, plan.lo_hz + plan.if_hz + half
    for line in plan.lines:
        if not low <= line.freq_hz <= high:
            raise UsageError(
                f"a line at {line.freq_hz / 1e9:g} GHz is not in the band, {low / 1e9:.3f} to {high / 1e9:.3f} GHz"
            )
    return plan


def _parse_pwv(text: str) -> tuple[float, float]:
    found = re.fullmatch(rf"{_NUMBER}(?::{_NUMBER})?", text)
    if found is None:
        _reject("--pwv", text, "write 0.6, or 0.6:0.9 for begin and end")
    begin, end = float(found[1]), float(found[2] or found[1])
    if not (0 < begin < 30 and 0 < end < 30):
        _reject("--pwv", text, "between 0 and 30 mm")
    return begin, end


def _parse_line(text: str) -> Line:
    from nightbeam.testing.dish import Line

    found = _LINE.fullmatch(text)
    if found is None:
        _reject("--line", text, "write 5@809.3:40 for 5 K at 809.3 GHz, 40 MHz wide")
    peak_k, freq_ghz, fwhm_mhz = (float(found[n]) for n in (1, 2, 3))
    if fwhm_mhz <= 0:
        _reject("--line", text, "a width above zero")
    return Line(peak_k, freq_ghz * 1e9, fwhm_mhz * 1e6)


def _reject(option: str, text: str, wanted: str) -> NoReturn:
    raise click.BadParameter(f"{text!r}: {wanted}", param_hint=option)


def _planned(plan: NightPlan, scan: int) -> dict[str, Any]:
    fault = plan.fault_of(scan)
    return {
        "scan": scan,
        "type": plan.kind_of(scan),
        "fault": None if fault is None else fault.kind,
        "owed": None if fault is None else _owed(fault.meaning),
    }


def _show_truth(truth: NightTruth, out: Path, *, as_json: bool) -> None:
    if as_json:
        show(truth.scans, as_json=True)
        return
    rows = [
        {
            "scan": one.scan,
            "type": one.obs_type,
            "elevation_deg": round(one.elevation_deg, 2),
            "pwv_mm": round(one.pwv_mm, 4),
            "calibration": one.calibration,
            "fault": one.fault,
            "owed": one.error or (f"flag {one.flag}" if one.flag else None),
        }
        for one in truth.scans
    ]
    show(rows, title=str(out))
