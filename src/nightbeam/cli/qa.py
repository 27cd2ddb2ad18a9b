"""``nightbeam qa``: how groups and mosaics are judged, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import json_option, settings_of, show, talk

if TYPE_CHECKING:
    from nightbeam.contimg import Site

__all__ = ["qa"]


@click.group("qa")
def qa() -> None:
    """Show how groups and mosaics are judged, and judge a group anew."""


@qa.command("show")
@click.argument("subject", metavar="GROUP|MOSAIC")
@json_option
@click.pass_context
def show_quality(ctx: click.Context, subject: str, as_json: bool) -> None:
    """List the scores of a GROUP or a MOSAIC with their reasons, the worst first, and its figures."""
    from nightbeam.contimg import quality_of

    _print(quality_of(_site(ctx), subject), as_json=as_json)


@qa.command("make")
@click.argument("group")
@json_option
@click.pass_context
def make(ctx: click.Context, group: str, as_json: bool) -> None:
    """Judge GROUP anew from what is on disk, and draw its figures again."""
    from nightbeam.contimg import make_quality, quality_of
    from nightbeam.core.keys import GroupId

    site, name = _site(ctx), str(GroupId.parse(group))
    make_quality(site, name)
    _print(quality_of(site, name), as_json=as_json)


def _site(ctx: click.Context) -> Site:
    from nightbeam.contimg import Site

    return Site.from_settings(settings_of(ctx))


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show([found], as_json=True)
        return
    lines = [
        {
            "measure": s["name"],
            "verdict": s["verdict"],
            "score": None if s["score"] is None else round(s["score"], 2),
            "reason": s["reason"],
        }
        for s in found["scores"]
    ]
    show(lines, title=found["subject"])
    for directory in dict.fromkeys(str(Path(artifact["path"]).parent) for artifact in found["artifacts"]):
        of = [a["name"] for a in found["artifacts"] if str(Path(a["path"]).parent) == directory]
        talk(f"{directory}: {', '.join(name for name in of if name.endswith('.png')) or 'no figures'}")
