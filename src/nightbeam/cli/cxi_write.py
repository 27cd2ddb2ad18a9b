"""``cxi-writer`` and ``nightbeam cxi write|validate-config|status|account``: the CXI writer as a command."""

from __future__ import annotations

import argparse
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nightbeam import __version__
from nightbeam.cli.output import json_option, show, talk
from nightbeam.cli.signals import stopped_by_signals
from nightbeam.core.errors import ConfigError, NightbeamError

if TYPE_CHECKING:
    from nightbeam.cxi.config import WriterConfig
    from nightbeam.cxi.ledger import Range

__all__ = ["account", "add_to", "cxi_writer", "status", "validate_config", "write"]

_log = logging.getLogger(__name__)

_PATH = click.Path(path_type=Path)
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def add_to(group: click.Group) -> None:
    """Hang the commands of the writer into a group."""
    for command in (write, validate_config, status, account):
        group.add_command(command)


# -- commands of nightbeam cxi ------------------------------------------------------------------------------------


@click.command("write")
@click.option("--config", "config_path", type=_PATH, required=True, help="The writer's configuration (YAML).")
@click.option("--output-dir", type=_PATH, help="Where files go.")
@click.option("--file-prefix", help="How their names begin.")
@click.option("--geom-file", type=_PATH, help="CrystFEL geometry.")
@click.option("--num-cpu-workers", help="Mini-batches of a batch, or auto.")
@click.option("--max-pending-tasks", type=int, help="Tasks open at a time.")
@click.option("--batches-per-file", type=int, help="A file ends after so many batches.")
@click.option("--save-segmentation-maps", is_flag=True, default=None, help="Also write the masks.")
@click.option("--mode", type=click.Choice(["auto", "threads", "tasks"]), help="Who finds the peaks.")
@click.option("--health-port", type=int, help="Serve health and metrics there; 0: a free port.")
@click.option("--log-level", type=click.Choice(_LEVELS, case_sensitive=False), help="What is said.")
@json_option
def write(config_path: Path, as_json: bool, **overrides: Any) -> None:
    """Take the network's output from the queue and write CXI files until the stream ends.

    SIGINT or SIGTERM: what was taken is written, exit code 0. A second one ends it at once.
    """
    counters = _write(_merged(config_path, overrides), config_path)
    show([counters] if as_json else [_summary(counters)], as_json=as_json)


@click.command("validate-config")
@click.option("--pipeline-config", type=_PATH, required=True, help="The pipeline's configuration (YAML).")
@click.option("--writer-config", type=_PATH, required=True, help="The writer's.")
def validate_config(pipeline_config: Path, writer_config: Path) -> None:
    """Say whether the writer takes from where the pipeline puts."""
    _validate(pipeline_config, writer_config)


@click.command("status")
@click.argument("output_dir", type=_PATH)
@click.option("--prefix", default="peaknet_cxi", show_default=True, help="The writer's output.file_prefix.")
@json_option
def status(output_dir: Path, prefix: str, as_json: bool) -> None:
    """Show how the writer of OUTPUT_DIR does, or how it ended."""
    from nightbeam.core.locks import is_held
    from nightbeam.cxi.ledger import lock_path, read_status, status_path

    found = read_status(status_path(output_dir, prefix))
    if found.get("state") != "ended" and not is_held(lock_path(output_dir, prefix)):
        found["state"] = "killed"
    if as_json:
        show([found], as_json=True)
        return
    rows = {name: found.get(name) for name in ("state", "ended_by", "problems", "updated", "pid", "host")}
    show([{"what": name, "value": value} for name, value in (rows | _mapping(found["counters"])).items()])


@click.command("account")
@click.argument("output_dir", type=_PATH)
@click.option("--prefix", default="peaknet_cxi", show_default=True, help="The writer's output.file_prefix.")
@json_option
def account(output_dir: Path, prefix: str, as_json: bool) -> None:
    """State which batches a writer took from the queue and never wrote, by producer."""
    from nightbeam.cxi import ledger

    found = ledger.account(output_dir, prefix)
    if as_json:
        show(found, as_json=True)
        return
    names = ("received", "missing", "never_received", "in_hand")
    show(
        {
            "producer": one.producer,
            **{name: _ranges(getattr(one, name)) for name in names},
            "events_missing": one.events_missing,
        }
        for one in found
    )


def _ranges(ranges: Sequence[Range]) -> str:
    return ", ".join(f"{one.first}" if one.first == one.last else f"{one.first}-{one.last}" for one in ranges)


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


# -- the console script -------------------------------------------------------------------------------------------


def cxi_writer(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``cxi-writer``. Exit codes: 0 ended or stopped, 1 it could not run, 2 the call makes no sense."""
    parser = _parser()
    options = vars(parser.parse_args(argv))
    validate, pipeline, writer = (options.pop(name) for name in ("validate_config", "pipeline_config", "writer_config"))
    config = options.pop("config")
    if validate and (pipeline is None or writer is None):
        parser.error("--validate-config needs --pipeline-config and --writer-config")
    if not validate and config is None:
        parser.error("--config is required")
    try:
        if validate:
            _validate(pipeline, writer)
        else:
            counters = _write(_merged(config, options), config)
            click.echo("\n".join(f"{name}: {value}" for name, value in _summary(counters).items()))
    except NightbeamError as error:
        talk(f"Error: {error}")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cxi-writer", description="Take the network's output from the queue Q2 and write CXI files."
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="the writer's configuration (YAML)")
    add("--output-dir", metavar="D", help="where files go")
    add("--file-prefix", metavar="P", help="how their names begin")
    add("--geom-file", metavar="G", help="CrystFEL geometry")
    add("--num-cpu-workers", metavar="N", help="mini-batches of a batch, or auto")
    add("--max-pending-tasks", type=int, metavar="N", help="tasks open at a time")
    add("--batches-per-file", type=int, metavar="N", help="a file ends after so many batches")
    add("--save-segmentation-maps", action="store_true", default=None, help="also write the masks")
    add("--log-level", type=str.upper, choices=_LEVELS, metavar="LEVEL", help=", ".join(_LEVELS))
    add("--version", action="version", version=f"cxi-writer {__version__}")
    add("--validate-config", action="store_true", help="compare the two configurations and do nothing else")
    add("--pipeline-config", type=Path, metavar="A.yaml", help="the pipeline's configuration")
    add("--writer-config", type=Path, metavar="B.yaml", help="the writer's configuration")
    return parser


# -- what both do -------------------------------------------------------------------------------------------------


def _merged(config_path: Path, overrides: Mapping[str, Any]) -> WriterConfig:
    from nightbeam.cxi.config import load_config, merge_config_with_overrides

    given = {name: value for name, value in overrides.items() if value is not None}
    if "log_level" in given:
        given["log_level"] = given["log_level"].upper()
    return merge_config_with_overrides(load_config(config_path), given)


_STOPPING = "stopping: what was taken is being written; once more to stop at once"


def _write(config: WriterConfig, config_path: Path) -> dict[str, Any]:
    from nightbeam.cxi.logs import logged
    from nightbeam.cxi.worker import CxiService

    stop = threading.Event()
    with logged(config.system, program=True), stopped_by_signals(stop, saying=_STOPPING):
        return CxiService(config, config_path=config_path).loop(stop)


def _validate(pipeline_config: Path, writer_config: Path) -> None:
    from nightbeam.cxi.config import consistency_warnings, load_config, read_yaml, validate_consistency

    pipeline, writer = read_yaml(pipeline_config), load_config(writer_config)
    try:
        lines = validate_consistency(pipeline, writer)
    except ConfigError as error:
        listed = "\n".join(f"  ✗ {line}" for line in error.what.splitlines())
        raise ConfigError(f"the two configurations do not agree:\n{listed}", fix=error.fix) from error
    for warning in consistency_warnings(pipeline, writer):
        talk(f"warning: {warning}")
    click.echo("\n".join(lines))


def _summary(counters: Mapping[str, Any]) -> dict[str, Any]:
    names = ("total_events_written", "total_events_filtered", "chunks_written", "events_received")
    gone = {name: sum(counters[name].values()) for name in ("events_rejected", "events_lost")}
    return {name: counters.get(name) for name in names} | gone
