"""``nightbeam groups``: the queue and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import dry_run_option, json_option, settings_of, show, talk

if TYPE_CHECKING:
    from nightbeam.contimg import Site

__all__ = ["groups"]

#: What fits a terminal of 80 characters; ``--json`` has more.
_COLUMNS = ("group", "state", "stage", "subbands", "error")
STATES = ("collecting", "pending", "in_progress", "completed", "failed")


@click.group("groups")
def groups() -> None:
    """List, show, run and reprocess groups of subbands; files that are none.

    A group is named by the second at which its data start, such as 2025-10-02T01:02:03.
    """


@groups.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only groups in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The newest so many.")
@json_option
@click.pass_context
def list_groups(ctx: click.Context, state: str | None, limit: int, as_json: bool) -> None:
    """List the groups of the queue, newest data first."""
    from nightbeam.contimg.report import group_lines

    lines = group_lines(_site(ctx), state=state, limit=limit)
    show(lines if as_json else [_short(line) for line in lines], as_json=as_json)


def _short(line: dict[str, Any]) -> dict[str, Any]:
    """Return what fits of a line; of a group that is completed the stage says nothing more, but how it was imaged."""
    quick = line["state"] == "completed" and line["imaging"] == "quick"
    return {name: line[name] for name in _COLUMNS} | ({"stage": "quick image"} if quick else {})


@groups.command("show")
@click.argument("group")
@json_option
@click.pass_context
def show_group(ctx: click.Context, group: str, as_json: bool) -> None:
    """Show GROUP: its files, attempts with their errors, finished steps, times and products."""
    from nightbeam.contimg.report import group_report

    report = group_report(_site(ctx), _name(group))
    if as_json:
        show([report], as_json=True)
        return
    show([{"field": name, "value": value} for name, value in report["group"].items()], title=group)
    for part in ("files", "duplicates", "attempts", "steps", "times", "images", "qa"):
        if report[part]:
            show(report[part], title=part)


@groups.command("backlog")
@json_option
@click.pass_context
def backlog(ctx: click.Context, as_json: bool) -> None:
    """Show what waits, as groups and as minutes of sky, and what gives way because of it."""
    from nightbeam.contimg.report import backlog_line

    show([backlog_line(_site(ctx))], as_json=as_json)


@groups.command("imaging")
@click.argument("how", type=click.Choice(["full", "quick"]))
@click.argument("group", nargs=-1, required=True)
@json_option
@dry_run_option
@click.pass_context
def imaging(ctx: click.Context, how: str, group: tuple[str, ...], as_json: bool, dry_run: bool) -> None:
    """Let the image of each GROUP be made in full or quickly, whatever the backlog.

    That is for groups that are not imaged yet. One that was imaged quickly and is owed its full image gets it now.
    """
    from nightbeam.catalog.model import Imaging
    from nightbeam.contimg.report import line_of

    queue = _site(ctx).queue()
    names = [_name(text) for text in group]
    rows = [queue.group(name) for name in names]  # all of them exist, or nothing is changed
    if not dry_run:
        for name in names:
            queue.arrears.force(name, Imaging(how))
        rows = [queue.group(name) for name in names]
    show([line_of(row) for row in rows], as_json=as_json)


@groups.command("scan")
@click.option("--wait", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Wait for unready files.")
@json_option
@dry_run_option
@click.pass_context
def scan(ctx: click.Context, wait: float, as_json: bool, dry_run: bool) -> None:
    """Look at the input directory and bring the queue up to date."""
    from nightbeam.contimg import scan_until_ready
    from nightbeam.contimg.report import look

    site = _site(ctx)
    if dry_run:
        show(look(site), as_json=as_json, title=f"would be recorded from {site.input_dir}")
        return
    report = scan_until_ready(site, wait)
    if as_json:
        show([report], as_json=True)
        return
    for path, reason in report.bad.items():
        talk(f"bad: {path}: {reason}")
    for path in report.set_aside:
        talk(f"moved aside: {path}")
    for path in report.changed:
        talk(f"rewritten after its group was complete: {path}")
    for path, reason in report.unready.items():
        talk(f"not ready: {path}: {reason}")
    show([{"new_files": report.new_files, "became_pending": report.became_pending, **report.counts}], title="queue")


@groups.command("bad")
@click.option("--all", "every", is_flag=True, help="Also files that were put back.")
@json_option
@click.pass_context
def bad(ctx: click.Context, every: bool, as_json: bool) -> None:
    """List the files that are no readable subbands, or contradict their group: why, and where each of them is now."""
    from nightbeam.contimg.set_aside import bad_lines

    show(bad_lines(_site(ctx), every=every), as_json=as_json)


@groups.command("restore")
@click.argument("path", nargs=-1, required=True, type=click.Path(path_type=Path))
@dry_run_option
@click.pass_context
def restore(ctx: click.Context, path: tuple[Path, ...], dry_run: bool) -> None:
    """Put each file PATH back into the input directory, named by where it lies or lay; it is judged again there."""
    import time

    from nightbeam.contimg.set_aside import put_back

    site = _site(ctx)
    for one in path:
        talk(f"put back {put_back(site, one.absolute(), now=time.time(), dry_run=dry_run)}")


@groups.command("run")
@click.argument("group", required=False)
@click.option("--next", "take_next", is_flag=True, help="The pending group with the oldest data.")
@json_option
@dry_run_option
@click.pass_context
def run(ctx: click.Context, group: str | None, take_next: bool, as_json: bool, dry_run: bool) -> None:
    """Take GROUP through every step that it has not been through, here and now.

    What it finished before is kept. Nothing of Prefect is needed or told.
    """
    from nightbeam.contimg import run_group
    from nightbeam.contimg.pressure import take_up_owed
    from nightbeam.contimg.report import next_group, plan

    if (group is None) == (not take_next):
        raise click.UsageError("give GROUP or --next")
    site = _site(ctx)
    if take_next and not dry_run:
        take_up_owed(site)  # where nothing waits
    name = _name(group) if group is not None else next_group(site)
    if dry_run:
        show(plan(site, name), as_json=as_json, title=f"group {name}")
        return
    outcome = run_group(site, name, on_step=lambda step, _receipt: talk(f"{name}: {step} done"))
    show([outcome], as_json=as_json)


@groups.command("reprocess")
@click.argument("group", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also one that is being worked on, or that lacks subbands.")
@json_option
@dry_run_option
@click.pass_context
def reprocess(ctx: click.Context, group: tuple[str, ...], force: bool, as_json: bool, dry_run: bool) -> None:
    """Make each GROUP pending again, to be done from the beginning with a new set of attempts."""
    from nightbeam.contimg.report import line_of

    queue = _site(ctx).queue()
    names = [_name(text) for text in group]
    rows = [queue.group(name) for name in names]  # all of them exist, or nothing is changed
    if not dry_run:
        rows = [queue.reprocess(name, force=force) for name in names]
    show([line_of(row) for row in rows], as_json=as_json)


def _site(ctx: click.Context) -> Site:
    from nightbeam.contimg import Site

    return Site.from_settings(settings_of(ctx))


def _name(text: str) -> str:
    from nightbeam.core.keys import GroupId

    return str(GroupId.parse(text))
