"""``nightbeam demo``."""

from __future__ import annotations

from pathlib import Path

import click

from nightbeam.cli.output import json_option, settings_of, show, talk


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
@click.option("--timeout", "timeout_s", default=540.0, show_default=True, help="Seconds that the groups may take.")
@click.option("--keep-running", is_flag=True, help="Leave the platform up, to look at its page.")
@json_option
@click.pass_context
def demo(
    ctx: click.Context, directory: Path, real_data: Path, timeout_s: float, keep_running: bool, as_json: bool
) -> None:
    """Run the main job end to end and compare the images with the truth.

    A platform is started, three groups of simulated subbands trickle in (one with a calibrator, one with a late
    subband), and each must become an image that shows the simulated sky. Then real observations go through the same
    calibration and imaging. Exit code 1 when anything is wrong.
    """
    from nightbeam.cli.output import plain
    from nightbeam.demo import run_demo

    report = run_demo(
        directory, settings_of(ctx), real_data=real_data, timeout_s=timeout_s, keep_running=keep_running, say=talk
    )
    if as_json:
        show([report], as_json=True)
    else:
        names = ("group_id", "state", "attempts", "found_sources", "expected_sources")
        figures = ("worst_offset_beams", "median_flux_ratio", "calibrator_flux_ratio", "noise_mjy", "calibration_set")
        show([{n: plain(getattr(g, n)) for n in names + figures} for g in report.groups], title="images and truth")
        show([{"group": g.group_id, **g.seconds} for g in report.groups], title="seconds of each step")
        if report.real_data:
            show(report.real_data, title="real observations")
        for group in report.groups:
            talk(f"{group.group_id}: {group.image or 'no image'}  {group.flow_run}")
    for words in report.left_out:
        talk(f"left out: {words}")
    for problem in report.problems:
        talk(f"WRONG: {problem}")
    talk(f"{'something is wrong' if report.problems else 'all is right'} after {report.seconds['all']:.0f} s")
    ctx.exit(int(bool(report.problems)))
