"""``nightbeam canary``: a group of known truth through the whole machine."""

from __future__ import annotations

import click

from nightbeam.cli.output import json_option, settings_of, show, talk


@click.command()
@json_option
@click.pass_context
def canary(ctx: click.Context, as_json: bool) -> None:
    """Take a small simulated group through every step and hold its image to the truth.

    It has its own directories and databases under canary/ of the state directory; the site's are not touched. Exit code
    1 if the source is not in the image with its flux and at its place, or a step failed.
    """
    from nightbeam.contimg import Site
    from nightbeam.contimg.canary import fly_canary

    report = fly_canary(Site.from_settings(settings_of(ctx)), say=talk)
    show([report], as_json=as_json, title="canary")
    ctx.exit(int(not report.right))
