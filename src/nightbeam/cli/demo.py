"""``nightbeam demo``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import json_option, settings_of, show, talk

if TYPE_CHECKING:
    from nightbeam.demo import GroupCheck, MosaicSource


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Where everything is kept; an earlier demo there is replaced.",
)
@click.option(
    "--real-data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("../shared/data/radio"),
    show_default=True,
    help="Folder with the real observations; left out if it is not there.",
)
@click.option(
    "--xtc2",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("../shared/data/xtc2"),
    show_default=True,
    help="Folder with real LCLS-II files; left out if it is not there.",
)
@click.option("--timeout", "timeout_s", default=540.0, show_default=True, help="Seconds that the groups may take.")
@click.option("--keep-running", is_flag=True, help="Leave the platform up, to look at its page.")
@json_option
@click.pass_context
def demo(
    ctx: click.Context,
    directory: Path,
    real_data: Path,
    xtc2: Path,
    timeout_s: float,
    keep_running: bool,
    as_json: bool,
) -> None:
    """Run the main jobs end to end and compare what comes out with the truth.

    A platform is started. Detector constants are prefetched from a calibration service of the demo. A logbook of the
    demo is mirrored, changes, and is mirrored again. A night of single-dish scans, one of them damaged, is calibrated
    while it is observed. Simulated frames go through a network into a queue, and files of their peaks are written
    while they come. Three groups of simulated subbands trickle in (one with a calibrator, one with a late
    subband), and each must become an image that shows the simulated sky; the mosaics of their night must show it as
    well. Then real observations go through the same calibration and imaging. Exit code 1 when anything is wrong.
    """
    from nightbeam.demo import run_demo

    report = run_demo(
        directory,
        settings_of(ctx),
        real_data=real_data,
        xtc2=xtc2,
        timeout_s=timeout_s,
        keep_running=keep_running,
        say=talk,
    )
    if as_json:
        show([report], as_json=True)
    else:
        title = "images and truth: offset in beams, flux measured/true, noise in mJy"
        show([_against_truth(group) for group in report.groups], title=title)
        show([{"group": g.group_id, **g.seconds} for g in report.groups], title="seconds of each step")
        show(report.constants, title="detector constants")
        show(report.logbook, title="mirror of the electronic logbook")
        show(report.scans, title="scans of a single dish: recovered beside the truth")
        show(report.stream, title="detector stream: files beside the truth")
        show([_on_mosaic(source) for source in report.mosaic_sources], title="mosaics: sources beside the truth")
        show(report.mosaic, title="mosaics: what is asked of them")
        show(report.page, title="the page: what it shows of all this")
        if report.real_data:
            show(report.real_data, title="real observations")
        for group in report.groups:
            talk(f"{group.group_id}  {group.state}")
            talk(f"  image     {group.image or 'none'}")
            talk(f"  gains     {group.calibration_set or 'none'}")
            talk(f"  flow run  {group.flow_run or 'none'}")
    for words in report.left_out:
        talk(f"left out: {words}")
    talk(f"look at it all: {_page(directory, report.address, keep_running)}")
    for problem in report.problems:
        talk(f"WRONG: {problem}")
    talk(f"{'something is wrong' if report.problems else 'all is right'} after {report.seconds['all']:.0f} s")
    ctx.exit(int(bool(report.problems)))


def _page(directory: Path, address: str, running: bool) -> str:
    return address if running else f"nightbeam monitor serve --state-dir {directory}"


def _against_truth(group: GroupCheck) -> dict[str, Any]:
    return {
        "group": group.group_id,
        "state": group.state,
        "sources": f"{group.found_sources}/{group.expected_sources}",
        "offset": f"{group.worst_offset_beams:.3f}",
        "flux": f"{group.median_flux_ratio:.3f}",
        "calib.": "-" if math.isnan(group.calibrator_flux_ratio) else f"{group.calibrator_flux_ratio:.3f}",
        "noise": f"{group.noise_mjy:.2f}",
    }


def _on_mosaic(source: MosaicSource) -> dict[str, Any]:
    check = source.check
    return {
        "mosaic": source.mosaic,
        "source": check.name,
        "true Jy": f"{check.true_jy:.3f}",
        "found Jy": f"{check.flux_ratio * check.true_jy:.3f}" if check.found else "-",
        "offset (beams)": f"{check.offset_beams:.3f}" if check.found else "-",
    }
