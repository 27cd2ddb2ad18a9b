"""``nightbeam doctor``."""

from __future__ import annotations

import click

from nightbeam.cli.output import json_option, settings_of, show


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what on this machine or at this site would stop nightbeam, and how to mend it.

    Exit code 1 if anything is broken; what is merely missing or small is a warning, and the code is 0.
    """
    from nightbeam.platform.findings import Health
    from nightbeam.platform.readiness import look_around

    findings = look_around(settings_of(ctx))
    show(findings, as_json=as_json, title="nightbeam doctor")
    ctx.exit(int(any(finding.health is Health.FAIL for finding in findings)))
