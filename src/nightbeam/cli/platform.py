"""``nightbeam up``, ``down``, ``status`` and ``apply``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nightbeam.cli.output import dry_run_option, json_option, plain, settings_of, show, talk

__all__ = ["apply", "down", "status", "up"]

_state_dir = click.option(
    "--state-dir", type=click.Path(path_type=Path), help="Databases, locks and logs.  [default: state]"
)


@click.command("up")
@_state_dir
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the Prefect server.  [default: 4200 or the next]")
@click.option("--foreground", is_flag=True, help="Stay until SIGTERM or Ctrl-C; for systemd and containers.")
@click.option("--no-schedules", is_flag=True, help="Leave every schedule inactive.")
@dry_run_option
@click.pass_context
def up(
    ctx: click.Context, state_dir: Path | None, port: int | None, foreground: bool, no_schedules: bool, dry_run: bool
) -> None:
    """Start the platform: Prefect server, pools, deployments and workers.

    Returns when all of it works. A platform that runs already is left as it is.
    """
    from nightbeam import platform

    settings = settings_of(ctx, state_dir=state_dir, platform__port=port)
    if dry_run:
        found = platform.platform_status(settings)
        doing = "would change nothing" if found.phase is platform.Phase.RUNNING else "would start the platform"
        talk(f"{doing}; state in {settings.state_dir}, pools {', '.join(settings.platform.pools)}")
        return
    if foreground:
        from nightbeam.core.log import set_up_logging

        set_up_logging((ctx.obj or {}).get("log_level") or settings.log_level)
        platform.run_in_foreground(settings, schedules=not no_schedules)
        return
    started = platform.start(settings, schedules=not no_schedules)
    if started.already_running:
        talk(f"already running as process {started.pid}; nothing changed" if started.pid else "already running")
    else:
        talk(f"up after {started.seconds:.1f} s; logs in {platform.Layout(settings.state_dir).logs}")
    if started.monitor:
        talk(f"the state of everything: {started.monitor}")
    click.echo(started.api_url.removesuffix("/api"))


@click.command("down")
@_state_dir
@dry_run_option
@click.pass_context
def down(ctx: click.Context, state_dir: Path | None, dry_run: bool) -> None:
    """Stop the platform in the order that loses nothing.

    Pools are paused, runs cancelled and waited for; then workers, server and supervisor end.
    Where other machines serve the pools too, the runs of this one alone end.
    """
    from nightbeam import platform

    settings = settings_of(ctx, state_dir=state_dir)
    if dry_run:
        found = platform.platform_status(settings)
        talk(
            f"would stop {len(found.parts)} processes and cancel {sum(p.running + p.pending for p in found.pools)} runs"
        )
        return
    stopped = platform.stop(settings)
    talk(f"down after {stopped.seconds:.1f} s" if stopped.was_running else "was not running")


@click.command("status")
@_state_dir
@json_option
@click.pass_context
def status(ctx: click.Context, state_dir: Path | None, as_json: bool) -> None:
    """Show supervisor, server, workers, pools and queue.

    Exit code 0 when all is well, 2 when something is wrong, 69 when the platform is down.
    """
    from nightbeam import platform

    found = platform.platform_status(settings_of(ctx, state_dir=state_dir))
    if as_json:
        show([{**plain(found), "healthy": found.healthy}], as_json=True)
    else:
        _show_status(found)
    if not found.healthy:
        ctx.exit(2 if found.phase is not platform.Phase.STOPPED else 69)


def _show_status(found: Any) -> None:
    head = {"supervisor": found.phase, "pid": found.supervisor_pid, "server": found.server, "api": found.api_url}
    head |= {"monitor": found.monitor} if found.monitor else {}
    head |= {"ray": found.ray} if found.ray else {}
    show([head], title="platform")
    if found.parts:
        names = ("name", "state", "pid", "since", "restarts", "last_exit")
        show([{name: getattr(part, name) for name in names} for part in found.parts], title="processes")
    if found.pools:
        show(found.pools, title="work pools")
    if found.groups:
        show([found.groups], title="groups of subbands")
    if found.problem:
        talk(f"problem: {found.problem}")


@click.command("apply")
@click.option("--api-url", help="API of the Prefect server, e.g. http://prefect:4200/api.  [default: the platform's]")
@_state_dir
@click.option("--no-schedules", is_flag=True, help="Leave every schedule inactive.")
@dry_run_option
@click.pass_context
def apply(ctx: click.Context, api_url: str | None, state_dir: Path | None, no_schedules: bool, dry_run: bool) -> None:
    """Bring a Prefect server to what prefect.yaml says.

    Creates or updates pools, limits, blocks, deployments and automations by name. What an operator
    has paused stays paused.
    """
    from nightbeam import platform
    from nightbeam.core.errors import UnavailableError

    settings = settings_of(ctx, state_dir=state_dir, platform__api_url=api_url)
    url = settings.platform.api_url or platform.platform_status(settings).api_url
    if not url:
        raise UnavailableError("no Prefect server to apply to", fix="start one with `nightbeam up`, or give --api-url")
    if dry_run:
        talk(f"would apply pools, limits, blocks, deployments and automations to {url}")
        return
    click.echo(platform.apply_deployments(settings, url, schedules=not no_schedules), nl=False)
