"""The ``nightbeam`` command: parse, call one library function, render.

Only what a command needs is imported, when it runs, so that ``nightbeam --help`` answers at once.
"""

from __future__ import annotations

import errno
import importlib
import logging
import sys
from pathlib import Path
from typing import NoReturn

import click

from nightbeam import __version__
from nightbeam.core.errors import NightbeamError, StorageError

__all__ = ["main", "nightbeam"]

click.UsageError.exit_code = 64  # 2 is taken: some items worked, some did not

#: Of a path that somebody named and that cannot serve, whoever of us met it first.
_NOT_TO_BE_USED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
                             errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EIO})  # fmt: skip

#: name -> (module:attribute, one line of help). Help is here so that listing the commands imports none of them.
COMMANDS: dict[str, tuple[str, str]] = {
    "apply": ("nightbeam.cli.platform:apply", "Bring a Prefect server to what prefect.yaml says."),
    "backfill": ("nightbeam.cli.backfill:backfill", "Image the Measurement Sets that have no good image."),
    "calib": ("nightbeam.cli.calib:calib", "Detector constants: inspect runs, prefetch, look at the cache."),
    "canary": ("nightbeam.cli.canary:canary", "Take a group of known truth through the whole machine."),
    "convert": ("nightbeam.cli.convert:convert", "Write a group of subbands as one Measurement Set."),
    "cxi": ("nightbeam.cli.cxi:cxi", "Write CXI files for CrystFEL, check them, look at them."),
    "demo": ("nightbeam.cli.demo:demo", "Run the main job end to end on simulated and real data."),
    "doctor": ("nightbeam.cli.doctor:doctor", "Say what on this machine would stop nightbeam, and how to mend it."),
    "down": ("nightbeam.cli.platform:down", "Stop the platform in the order that loses nothing."),
    "gains": ("nightbeam.cli.gains:gains", "Match calibrators, solve and apply interferometer gains."),
    "geometry": ("nightbeam.cli.geometry:geometry", "Look at the geometry file of a detector."),
    "elog": ("nightbeam.cli.elog:elog", "Mirror, search and export the electronic logbook."),
    "groups": ("nightbeam.cli.groups:groups", "List, show, run and reprocess groups of subbands."),
    "housekeeping": (
        "nightbeam.cli.housekeeping:housekeeping",
        "Tidy a site up; put old products aside, and back.",
    ),
    "image": ("nightbeam.cli.image:image", "Make an image of a Measurement Set and measure its quality."),
    "monitor": ("nightbeam.cli.monitor:monitor", "Serve the page and the API that show the state of everything."),
    "mosaic": ("nightbeam.cli.mosaic:mosaic", "Plan, build and show mosaics; make those of the nights."),
    "provenance": (
        "nightbeam.cli.provenance:provenance",
        "Show what a product was made of, and check that.",
    ),
    "qa": ("nightbeam.cli.qa:qa", "Show how groups and mosaics are judged, and judge them anew."),
    "registry": ("nightbeam.cli.registry:registry", "Keep the registry of calibration tables."),
    "scans": ("nightbeam.cli.scans:scans", "Calibrate single-dish spectra, look at them, simulate them."),
    "simulate": ("nightbeam.cli.simulate:simulate", "Make data whose truth is known."),
    "status": ("nightbeam.cli.platform:status", "Show the servers, workers and queues of the platform."),
    "stream": ("nightbeam.cli.stream:stream", "Look at the queues between a network and the CXI writer."),
    "up": ("nightbeam.cli.platform:up", "Start the platform: server, pools, deployments, workers."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in order."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, importing its module."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx) if name in COMMANDS])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nightbeam")
@click.option("--config", type=click.Path(path_type=Path), help="Settings file (YAML) instead of nightbeam.yaml.")
@click.option("--log-level", help="DEBUG, INFO, WARNING or ERROR, to standard error.  [default: WARNING]")
@click.pass_context
def nightbeam(ctx: click.Context, config: Path | None, log_level: str | None) -> None:
    """Run a scientific facility's data work."""
    ctx.obj = {"config": config, "log_level": log_level}
    from nightbeam.core.log import set_up_logging

    set_up_logging(log_level or "WARNING")


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command and turn our errors into two lines and their exit code."""
    try:
        code = nightbeam.main(argv, prog_name="nightbeam", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except NightbeamError as error:
        from nightbeam.cli.output import talk

        talk(f"nightbeam: {error}")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)  # the reader of our output (head, less) had enough
    except OSError as error:
        from nightbeam.cli.output import talk

        if error.errno not in _NOT_TO_BE_USED or error.filename is None:
            raise
        logging.getLogger(__name__).debug("where it came from", exc_info=True)
        talk(
            f"nightbeam: cannot use {error.filename}: {error.strerror}\n  fix: check its owner, its mount and its name"
        )
        sys.exit(StorageError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
