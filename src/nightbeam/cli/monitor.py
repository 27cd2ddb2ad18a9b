"""``nightbeam monitor``: the page and the API that show the state of everything."""

from __future__ import annotations

from pathlib import Path

import click

from nightbeam.cli.output import settings_of, talk

__all__ = ["monitor"]

_state_dir = click.option(
    "--state-dir", type=click.Path(path_type=Path), help="Databases, locks and logs.  [default: state]"
)


@click.group("monitor")
def monitor() -> None:
    """Serve the page and the API that show the state of everything."""


@monitor.command("serve")
@_state_dir
@click.option("--host", help="Where to listen.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen at.  [default: 8000 or the next]")
@click.pass_context
def serve(ctx: click.Context, state_dir: Path | None, host: str | None, port: int | None) -> None:
    """Serve until SIGTERM or Ctrl-C; print the address.

    The platform started by `nightbeam up` does so by itself.
    """
    from nightbeam.core.log import set_up_logging
    from nightbeam.monitor.serve import serve as serve_monitor

    settings = settings_of(ctx, state_dir=state_dir, monitor__host=host, monitor__port=port)
    set_up_logging((ctx.obj or {}).get("log_level") or settings.log_level)
    serve_monitor(settings, say=click.echo)


@monitor.command("token")
@_state_dir
@click.option("--path", "show_path", is_flag=True, help="Print where it lies instead.")
@click.pass_context
def token(ctx: click.Context, state_dir: Path | None, show_path: bool) -> None:
    """Print the word that changing anything asks for; make one where there is none."""
    from nightbeam.monitor.files import read_token, token_path

    settings = settings_of(ctx, state_dir=state_dir)
    path = token_path(settings.state_dir, settings.monitor.token_file)
    if not path.exists():
        talk(f"made {path}")
    word = read_token(path)
    click.echo(str(path) if show_path else word)
