"""A small simulated group of known truth, taken through the same steps as the real ones, to prove the machine.

It has directories and databases of its own, below the state directory; nothing of the site's is touched or read but
its settings.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nightbeam.catalog.model import Owner
from nightbeam.contimg.arrivals import scan_arrivals
from nightbeam.contimg.owners import this_process
from nightbeam.contimg.run import run_group
from nightbeam.contimg.site import Site
from nightbeam.contimg.steps import calibrate_or_find, claim_group, convert_group_step
from nightbeam.contimg.tools import TOOLS, Tools
from nightbeam.core.errors import InputError, NightbeamError, RejectedError
from nightbeam.core.files import part_path, remove, write_text
from nightbeam.core.locks import sole_owner
from nightbeam.core.settings import HousekeepingSettings, IngestSettings, MosaicSettings, PressureSettings

__all__ = ["CanaryReport", "canary_site", "fly_canary", "judge_canary"]

logger = logging.getLogger(__name__)

#: Flux of the source, and how far it lies from the centre to the east and to the north.
FLUX_JY = 2.0
EAST_DEG, NORTH_DEG = 0.12, 0.16
#: How far an image may be from the truth. Thirty times the noise of so few stations, and what cleaning leaves.
MOST_FLUX_ERROR = 0.05
MOST_OFFSET_BEAMS = 0.3
_MARK = "made-by-nightbeam-canary"
_IMAGE = {"imsize": 640, "cell_arcsec": 4.0, "niter": 300}


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """What the image of a canary shows, beside the truth.

    Attributes
    ----------
    right
        Whether the source is there with its flux and at its place.
    found
        That, or what went wrong, in a sentence.
    flux_ratio, offset_beams
        Measured over true flux; distance from the true place. None where there is no image.
    image
        To be looked at until the next canary.
    ended_at
        Epoch seconds; of one that flies, when it began.
    flying
        It has begun. In the record of one that died this stands for ever.
    """

    right: bool
    found: str
    flux_ratio: float | None = None
    offset_beams: float | None = None
    noise_jy: float | None = None
    image: str | None = None
    seconds: float = 0.0
    ended_at: float = 0.0
    flying: bool = False


def canary_site(site: Site) -> Site:
    """Return where a site's canary is worked on: its ways, but directories, databases and pixels of its own."""
    top = site.state_dir / "canary" / "site"
    return dataclasses.replace(
        site,
        state_dir=top,
        input_dir=top / "incoming",
        output_dir=top / "ms",
        scratch_dir=top / "scratch",
        queue_url=f"sqlite:///{top / 'ingest.sqlite3'}",
        registry_url=f"sqlite:///{top / 'cal_registry.sqlite3'}",
        products_url=f"sqlite:///{top / 'products.sqlite3'}",
        ingest=IngestSettings(settle_s=0.0, max_retries=1),
        calibrate=site.calibrate.model_copy(update={"catalogue": None, "pointing_dec_deg": None}),
        image=site.image.model_copy(update=_IMAGE),
        mosaic=MosaicSettings(),
        housekeeping=HousekeepingSettings(),
        pressure=PressureSettings(mode="off"),
    )


def fly_canary(
    site: Site, *, owner: Owner | None = None, tools: Tools = TOOLS, say: Callable[[str], None] = logger.info
) -> CanaryReport:
    """Simulate a calibrator and a group of one source, take them through the steps, and hold the image to the truth.

    Parameters
    ----------
    site
        Whose machine and settings are proved; the result is left in ``canary/last.json`` of its state directory.
    owner
        Who does it.
    tools
        What works on the data.
    say
        Told how far it is.

    Returns
    -------
    CanaryReport
        Also where a step failed: then it is not right, and says why.

    Raises
    ------
    BusyError
        If another canary of this site is flying.
    InputError
        If something else is where it would work.
    """
    place, owner = canary_site(site), owner or this_process()
    with sole_owner(site.state_dir / "locks" / "canary.lock", what="a canary"):
        begin = time.perf_counter()
        _make_room(place.state_dir)
        # What the last one found must not stand for one that dies.
        _record(site, CanaryReport(False, "it has begun and not ended", ended_at=time.time(), flying=True))
        try:
            report = _fly(place, owner, tools, say)
        except NightbeamError as error:
            report = CanaryReport(False, error.what.splitlines()[0])
        report = dataclasses.replace(report, seconds=time.perf_counter() - begin, ended_at=time.time())
        _record(site, report)
    logger.info("canary: %s", report.found)
    return report


def judge_canary(*, found: bool, flux_ratio: float, offset_beams: float) -> str:
    """Return what is wrong with what was measured of the source; "" if nothing is."""
    if not found:
        return f"its source of {FLUX_JY:g} Jy is not in the image"
    if not abs(flux_ratio - 1.0) <= MOST_FLUX_ERROR:
        return f"its source has {flux_ratio:.3f} of its flux"
    if not offset_beams <= MOST_OFFSET_BEAMS:
        return f"its source is {offset_beams:.2f} beams from its place"
    return ""


def _record(site: Site, report: CanaryReport) -> None:
    write_text(site.state_dir / "canary" / "last.json", json.dumps(asdict(report), indent=1) + "\n")


def _make_room(top: Path) -> None:
    if top.exists() and any(top.iterdir()) and not (top / _MARK).exists():
        raise InputError(f"{top} holds something that is no canary", fix="move it away")
    if top.exists():  # a removal that is cut short may have taken the mark and left the rest
        top.rename(part_path(top))
    for old in top.parent.glob(f".{top.name}.*.part"):
        remove(old)
    top.mkdir(parents=True)
    (top / _MARK).touch()


def _fly(place: Site, owner: Owner, tools: Tools, say: Callable[[str], None]) -> CanaryReport:
    from nightbeam.imaging import measure_sources, product_path
    from nightbeam.simulate import SimulationSpec, SkySource, plan_simulation, simulate_subbands

    # The calibrator is three observations earlier: out of the beam, and within the time that its gains are good for.
    spec = SimulationSpec(
        groups=2, antennas=20, channels=4, integrations=12, calibrator="3C48", stride=3, sources=0, seed=3
    )
    centre = plan_simulation(spec).groups[1]
    ra_deg = (centre.ra_deg + EAST_DEG / math.cos(math.radians(centre.dec_deg))) % 360.0
    source = SkySource("canary", ra_deg, centre.dec_deg + NORTH_DEG, FLUX_JY)
    truth = simulate_subbands(place.input_dir, dataclasses.replace(spec, sources=(source,)))
    calibrator, group = (one.group_id for one in truth.groups)
    say("canary: simulated")
    arrived = scan_arrivals(place, tools=tools)
    if set(arrived.became_pending) != {calibrator, group}:
        raise RejectedError(f"of its groups {', '.join(arrived.became_pending) or 'none'} arrived whole")
    claim = claim_group(place, calibrator, owner=owner)
    if not claim.claimed:
        raise RejectedError(f"its calibrator's group could not be taken: {claim.reason}")
    convert_group_step(place, calibrator, owner=owner, tools=tools)
    solved = calibrate_or_find(place, calibrator, owner=owner, tools=tools)
    say(f"canary: solved {solved.set_name}")
    outcome = run_group(place, group, owner=owner, tools=tools)
    if outcome.image is None or outcome.calibration_set != solved.set_name:
        raise RejectedError(f"its group ended {outcome.state}, calibrated by {outcome.calibration_set}")
    stem = place.image_stem(group)
    (fit,) = measure_sources(
        product_path(stem, "image"), [(source.ra_deg, source.dec_deg)], pb=product_path(stem, "pb"), names=["canary"]
    )
    ratio = fit.peak_jy / FLUX_JY
    wrong = judge_canary(found=fit.found, flux_ratio=ratio, offset_beams=fit.offset_beams)
    text = wrong or f"{ratio:.3f} of its flux, {fit.offset_beams:.2f} beams from its place"
    report = CanaryReport(not wrong, text, noise_jy=outcome.noise_jy, image=outcome.image)
    if not fit.found:
        return report
    return dataclasses.replace(report, flux_ratio=ratio, offset_beams=float(fit.offset_beams))
