"""The demo itself: a platform, three groups that trickle in, and a comparison with the truth."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam import platform
from nightbeam.catalog import GroupRow, Products, Queue, State
from nightbeam.contimg.real_data import calibrate_ngc5921, image_ngc5921, reject_ata_pair
from nightbeam.core.children import run_child
from nightbeam.core.errors import InputError, NightbeamError, ToolError
from nightbeam.core.files import remove, write_text
from nightbeam.core.settings import MosaicSettings, Settings
from nightbeam.demo.compute import check_sources, judge_sources, sources_in_reach
from nightbeam.demo.detector_constants import ConstantsDemo, constants_demo
from nightbeam.demo.logbook import LogbookDemo, logbook_demo
from nightbeam.demo.model import DemoReport, GroupCheck, RealCheck
from nightbeam.demo.mosaic import MosaicDemo
from nightbeam.demo.night import NightDemo
from nightbeam.demo.page import PageDemo
from nightbeam.demo.stream import StreamDemo
from nightbeam.imaging import measure_sources, product_path
from nightbeam.simulate import Truth, TruthGroup, read_truth

__all__ = ["demo_settings", "run_demo"]

_log = logging.getLogger(__name__)

MARK = "made-by-nightbeam-demo"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ENDED = (State.COMPLETED, State.FAILED)
#: The first two are neighbours whose images overlap; the calibrator comes three observations later, out of their
#: beams. Sixty times faster than at the telescope.
STRIDES = "1,3"
RATE = 60.0
#: Tiles of the mosaics that the night must have: one of the neighbours, one of the calibrator's own field.
STRIPS = (2, 1)

#: Three groups of 20 real stations. The calibrator crosses the meridian in the last, so the first two must wait for
#: its gains. In the second, one subband comes late. The neighbours have half as many sources as the calibrator's field:
#: each sees those of the other, too, in the flanks of its beam, and so few stations can clean only so many.
DEMO_ARGUMENTS = (
    *("--groups", "3", "--antennas", "20", "--channels", "8", "--calibrator", "3C48", "--calibrator-group", "2"),
    *("--stride", STRIDES, "--sources", "4", "--calibrator-sources", "8", "--seed", "20251005"),
    *("--rate", str(RATE), "--fault", "late-subband:7@1"),
)


def demo_settings(directory: Path, base: Settings) -> Settings:
    """Return the settings of the demo: everything in ``directory``, images of 1.4 degrees, no second attempts.

    The demo never touches a site's own directories or databases.
    """
    contimg = base.contimg.model_copy(
        update={
            **dict.fromkeys(
                ("state_dir", "input_dir", "output_dir", "scratch_dir", "queue_db", "registry_db", "products_db")
            ),
            "ingest": base.contimg.ingest.model_copy(update={"set_aside_dir": None}),
            "housekeeping": base.contimg.housekeeping.model_copy(update={"quarantine_dir": None}),
            "image": base.contimg.image.model_copy(update={"imsize": 1280, "cell_arcsec": 4.0, "niter": 2000}),
            "mosaic": MosaicSettings(),
        }
    )
    elog = base.elog.model_copy(update={"database": None, "database_dir": None})
    parts = {
        "contimg": contimg,
        "elog": elog,
        "scans": NightDemo.settings(base.scans),
        **StreamDemo.settings(directory),
    }
    return base.model_copy(update={"state_dir": directory, **parts}).resolved()


def run_demo(
    directory: Path,
    settings: Settings,
    *,
    real_data: Path | None,
    xtc2: Path | None = None,
    timeout_s: float = 540.0,
    keep_running: bool = False,
    say: Callable[[str], None] = _log.info,
) -> DemoReport:
    """Run the main job end to end and compare what comes out with what is known.

    Parameters
    ----------
    directory
        Where everything is kept; an earlier demo there is replaced, anything else is refused.
    settings
        The site's; directories and databases are replaced by the demo's own.
    real_data
        A folder with the NGC 5921 and ATA sets; None: simulated data only.
    xtc2
        A folder with real LCLS-II files; None: simulated ones alone.
    timeout_s
        For the groups.
    keep_running
        Leave the platform up to look at its page.

    Returns
    -------
    DemoReport
        Look at its ``problems``.

    Raises
    ------
    InputError
        If ``directory`` holds something else.
    """
    begin = time.monotonic()
    # Flows run elsewhere: what they are told must not depend on where this process stands.
    real_data, xtc2 = (None if path is None else path.absolute() for path in (real_data, xtc2))
    settings = demo_settings(directory.absolute(), settings)
    _fresh(settings)
    seconds: dict[str, float] = {}
    left_out: tuple[str, ...] = ()
    with constants_demo(settings.state_dir / "constants", xtc2) as constants, logbook_demo() as logbook:
        settings = _asking(settings, constants, logbook)
        try:
            started = platform.start(settings)
            seconds["platform up"] = started.seconds
            say(f"platform up after {started.seconds:.0f} s: {started.api_url.removesuffix('/api')}")
            say("detector constants: prefetched for the newest run of each experiment")
            api = platform.PrefectApi(started.api_url, auth_string=settings.platform.auth_string)
            cached = constants.check(api)
            seconds["detector constants"] = time.monotonic() - begin - sum(seconds.values())
            say("electronic logbook: mirrored, changed, mirrored again")
            mirrored = logbook.check(api, settings.elog)
            seconds["logbook"] = time.monotonic() - begin - sum(seconds.values())
            say("single-dish scans: calibrated by the service while they are observed; one of them is damaged")
            scans = NightDemo.of(settings.scans).check(api, say=say)
            seconds["scans"] = time.monotonic() - begin - sum(seconds.values())
            say("detector stream: simulated frames through a network, written by the service")
            stream = StreamDemo.of(settings).check(api, say=say)
            seconds["stream"] = time.monotonic() - begin - sum(seconds.values())
            groups = _watch_groups(settings, started.api_url, timeout_s=timeout_s, say=say)
            seconds["groups"] = time.monotonic() - begin - sum(seconds.values())
            say("the night's mosaics: of its groups' images, beside the simulated sky")
            truth = read_truth(_incoming(settings))
            mosaic, sources = MosaicDemo.of(settings, truth, strips=STRIPS).check(api, say=say)
            seconds["mosaics"] = time.monotonic() - begin - sum(seconds.values())
            say(f"the page: {started.monitor}")
            page = PageDemo(started.monitor).check(groups, sources)
        finally:
            if not keep_running:
                seconds["platform down"] = platform.stop(settings).seconds
    if xtc2 is None or not xtc2.is_dir():
        left_out = (f"real LCLS-II files: there is no folder {xtc2}",)
    rows: tuple[RealCheck, ...] = ()
    if real_data is not None and real_data.is_dir():
        say("real observations: NGC 5921 (VLA, 1995) and a pair of ATA subbands")
        before = time.monotonic()
        rows = _real_observations(real_data, settings.state_dir / "real")
        seconds["real observations"] = time.monotonic() - before
    else:
        left_out = (*left_out, f"the real observations: there is no folder {real_data}")
    seconds["all"] = time.monotonic() - begin
    return DemoReport(
        groups, rows, cached, mirrored, scans, stream, mosaic, sources, page, started.monitor, left_out, seconds
    )


def _incoming(settings: Settings) -> Path:
    incoming = settings.contimg.input_dir
    assert incoming is not None  # resolved
    return incoming


def _asking(settings: Settings, constants: ConstantsDemo, logbook: LogbookDemo) -> Settings:
    """Return the settings that ask the demo's own services."""
    calib = settings.calib.model_copy(update={"service_url": constants.service.url})
    return settings.model_copy(update={"calib": calib, "elog": logbook.settings(settings.elog)}).resolved()


def _real_observations(radio: Path, out: Path) -> tuple[RealCheck, ...]:
    out.mkdir(parents=True)
    log = out / "real.log"
    observation = calibrate_ngc5921(radio, out, log=log)
    figures = (*observation.checks, *image_ngc5921(observation, out))
    rows = [
        RealCheck(f"NGC 5921: {c.what}", f"{c.expected:.6g} {c.unit}", f"{c.found:.6g} {c.unit}", c.ok) for c in figures
    ]
    try:
        refusals = reject_ata_pair(radio, out, log=log)
    except ToolError as error:  # the gate let it through
        return (*rows, RealCheck("ATA pair", "rejected", str(error), False))
    return (*rows, *(RealCheck(f"ATA pair, {r.what}", "rejected", f"rejected: {r.reason}", True) for r in refusals))


def _fresh(settings: Settings) -> None:
    directory = settings.state_dir
    if directory.exists() and any(directory.iterdir()):
        if not (directory / MARK).exists():
            raise InputError(
                f"{directory} is not empty and was not made by a demo", fix="choose another with --directory"
            )
        platform.stop(settings)
        remove(directory)
    write_text(directory / MARK, "this directory may be deleted\n")


def _watch_groups(
    settings: Settings, api_url: str, *, timeout_s: float, say: Callable[[str], None]
) -> tuple[GroupCheck, ...]:
    incoming = _incoming(settings)
    failure: list[NightbeamError] = []
    telescope = threading.Thread(target=_telescope, args=(settings, incoming, failure), daemon=True)
    telescope.start()
    queue = Queue(str(settings.contimg.queue_db), max_retries=settings.contimg.ingest.max_retries)
    told: dict[str, str] = {}
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and not failure:
        rows = queue.groups()
        for row in rows:
            _tell(row, told, say)
        if not telescope.is_alive() and _all_ended(incoming, rows):
            break
        time.sleep(1.0)
    telescope.join(1.0)
    if failure:
        raise failure[0]
    truth = read_truth(incoming)
    return tuple(_check_group(settings, queue, truth, group, api_url) for group in truth.groups)


def _telescope(settings: Settings, incoming: Path, failure: list[NightbeamError]) -> None:
    """Let the subbands trickle in, from a process of its own as at the telescope."""
    try:
        run_child(
            [sys.executable, "-m", "nightbeam", "simulate", "subbands", incoming, *DEMO_ARGUMENTS],
            log=settings.state_dir / "logs" / "telescope.log",
            timeout_s=300.0,
            what="the simulated telescope",
        )
    except NightbeamError as error:
        failure.append(error)


def _all_ended(incoming: Path, rows: list[GroupRow]) -> bool:
    wanted = {group.group_id for group in read_truth(incoming).groups}
    return wanted <= {row.group_id for row in rows if row.state in ENDED}


def _tell(row: GroupRow, told: dict[str, str], say: Callable[[str], None]) -> None:
    news = f"{row.state}" + (f", {row.current_step}" if row.state == State.IN_PROGRESS and row.current_step else "")
    if row.state == State.COLLECTING:
        news = f"collecting ({row.subbands_present}/{row.expected_subbands})" if row.subbands_present % 8 == 0 else ""
    elif row.state == State.PENDING and row.processing_stage == "waiting_for_gains":
        news = "waiting for gains"
    if news and told.get(row.group_id) != news:
        told[row.group_id] = news
        say(f"{row.group_id}  {news}")


def _check_group(settings: Settings, queue: Queue, truth: Truth, group: TruthGroup, api_url: str) -> GroupCheck:
    known = {row.group_id: row for row in queue.groups()}
    row = known.get(group.group_id)
    if row is None:
        return _never_came(group)
    images = [i for i in Products(str(settings.contimg.products_db)).images() if i.group_id == group.group_id]
    attempts = queue.attempts(group.group_id)
    common: dict[str, Any] = {
        "group_id": group.group_id,
        "state": str(row.state),
        "attempts": len(attempts),
        "seconds": _seconds(queue, group.group_id),
        "flow_run": _address(api_url, attempts[-1].owner if attempts else None),
    }
    if row.state != State.COMPLETED or len(images) != 1:
        what = row.error or f"{len(images)} images in the products database"
        return GroupCheck(
            **common,
            **_NOTHING,
            problems=(f"{row.state}: {what}",),
        )
    image = images[0]
    files = json.loads(image.files or "{}")
    stem = Path(image.path).with_name(f"{group.group_id}.img")
    near = sources_in_reach(
        truth.sources,
        ra_deg=float(image.ra_deg or group.ra_deg),
        dec_deg=float(image.dec_deg or group.dec_deg),
        radius_deg=0.48 * float(image.imsize or 0) * float(image.cell_arcsec or 0) / 3600.0,
    )
    fits = measure_sources(
        product_path(stem, "image"),
        [(s.ra_deg, s.dec_deg) for s in near],
        pb=product_path(stem, "pb"),
        names=[s.name for s in near],
    )
    checks = check_sources(
        fits,
        near,
        freq_hz=float(image.freq_hz or 0.0),
        reference_hz=truth.reference_freq_hz,
        noise_jy=float(image.noise_jy or math.nan),
    )
    found = [c for c in checks if c.found]
    missing_files = tuple(f"{path} is not on disk" for path in files.values() if not Path(path).is_file())
    return GroupCheck(
        **common,
        image=Path(image.path),
        calibration_set=image.calibration_set or "",
        noise_mjy=1e3 * float(image.noise_jy or math.nan),
        expected_sources=len(checks),
        found_sources=len(found),
        worst_offset_beams=max((c.offset_beams for c in found), default=math.nan),
        calibrator_flux_ratio=next((c.flux_ratio for c in found if c.name == group.calibrator), math.nan),
        median_flux_ratio=float(np.median([c.flux_ratio for c in found])) if found else math.nan,
        problems=judge_sources(checks, calibrator=group.calibrator) + missing_files,
    )


_NOTHING: dict[str, Any] = {
    "image": None,
    "calibration_set": "",
    "noise_mjy": math.nan,
    "expected_sources": 0,
    "found_sources": 0,
    "worst_offset_beams": math.nan,
    "calibrator_flux_ratio": math.nan,
    "median_flux_ratio": math.nan,
}


def _never_came(group: TruthGroup) -> GroupCheck:
    return GroupCheck(
        group_id=group.group_id,
        state="unknown",
        attempts=0,
        seconds={},
        flow_run="",
        **_NOTHING,
        problems=("the queue has never heard of it",),
    )


def _seconds(queue: Queue, group_id: str) -> dict[str, float]:
    return {r.step: round(r.seconds, 1) for r in queue.receipts(group_id) if r.seconds is not None}


def _address(api_url: str, owner: str | None) -> str:
    """Return the page of the flow run that owned a group; owners that are no flow run have none."""
    run = _UUID.search(owner or "")
    return f"{api_url.removesuffix('/api')}/runs/flow-run/{run[0]}" if run else ""
