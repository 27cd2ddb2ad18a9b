"""The CXI writer: what a network found in a stream of detector images becomes files that CrystFEL indexes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect import flow
from prefect.client.schemas.objects import State

from blocks import RayCluster
from flows._service import run_service, unless_cancelled
from nightbeam.core.errors import ConfigError
from nightbeam.core.settings import Settings, StreamSettings, load_settings

if TYPE_CHECKING:
    from nightbeam.cxi.config import WriterConfig
    from nightbeam.cxi.service import StreamWriter

#: Rows of a table at the run.
_MOST_ROWS: Final = 100


@flow(name="cxi-writer")
def cxi_writer(
    config: str | None = None,
    cluster: str = "main",
    output_dir: str | None = None,
    file_prefix: str | None = None,
    until_end: bool = False,
    fence_s: float = 10.0,
) -> State[Any]:
    """Write CXI files from one stream of batches until asked to stop; one at a time on a stream and on an output.

    Parameters
    ----------
    config
        The writer's configuration (YAML); null: the one that the settings name.
    cluster
        Name of the block that says where the Ray cluster is.
    output_dir, file_prefix
        In place of what the configuration says.
    until_end
        Whether the run is over when the producers say that they have no more. Otherwise what they sent is
        written out then, and the next producer is waited for.
    fence_s
        How often the server is asked whether this run is still supposed to run.
    """
    return unless_cancelled(lambda: _serve(config, cluster, output_dir, file_prefix, until_end, fence_s))


def _serve(
    config: str | None,
    cluster: str,
    output_dir: str | None,
    file_prefix: str | None,
    until_end: bool,
    fence_s: float,
) -> State[Any]:
    settings = load_settings().resolved()
    block = RayCluster.load(cluster)
    assert isinstance(block, RayCluster)
    stream = block.stream(settings.stream)
    told = {"output_dir": output_dir, "file_prefix": file_prefix, "ray.namespace": block.namespace}
    writer = _writer(settings, config, told, stream)
    _show_token(stream)
    service = _service(writer, until_end=until_end)
    return run_service(
        service.loop,
        lock=stream_lock(settings.state_dir, writer.ray.namespace, writer.queue.name),
        name="cxi-writer",
        counters=lambda: _numbers(service),
        tables={"lost": lambda: _reasons(service)},
        fence_s=fence_s,
    )


def stream_lock(state_dir: Path, namespace: str, queue: str) -> Path:
    """Return the lock of the one run that takes from a queue: what a run has taken, no other will ever see."""
    name = hashlib.sha256(f"{namespace}\0{queue}".encode()).hexdigest()[:16]
    return state_dir / "cxi" / f"stream-{name}.lock"


def _writer(settings: Settings, config: str | None, told: Mapping[str, Any], stream: StreamSettings) -> WriterConfig:
    """Return the writer's configuration with what the run, the block and the settings say instead."""
    from nightbeam.cxi.config import load_config, merge_config_with_overrides

    path = Path(config) if config else settings.cxi.config
    if path is None:
        raise ConfigError("nobody has said what the CXI writer is to do", fix="set cxi.config to its configuration")
    read = load_config(path)
    known = {"output_dir": settings.cxi.output_dir} if told["output_dir"] is None else {}
    # The file's own cluster is believed where it names one: `auto` is its way to say nothing.
    address = {"ray.address": stream.address} if stream.address and read.ray.address == "auto" else {}
    writer = merge_config_with_overrides(read, {**told, **known, **address})
    for key, given in (
        ("output.output_dir", writer.output.output_dir),
        ("geometry.geom_file", writer.geometry.geom_file),
    ):
        if given is not None and not given.is_absolute():
            raise ConfigError(f"{key} of {path} is {given}, and a service stands nowhere", fix="write the whole path")
    return writer


def _show_token(stream: StreamSettings) -> None:
    """Have this process show the cluster's word; Ray reads it from the environment alone."""
    if stream.token_file is not None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(stream.token_file)}


def _service(writer: WriterConfig, *, until_end: bool) -> StreamWriter:
    from nightbeam.cxi.service import StreamWriter  # heavy: an apply imports every flow

    return StreamWriter(writer, until_end=until_end)


def _numbers(service: StreamWriter) -> Mapping[str, Any]:
    found = service.counters()
    written, filtered = (found.get(name, 0) for name in ("total_events_written", "total_events_filtered"))
    hits = written + found.get("buffer_size", 0)
    return {
        "batches": found.get("batches_received", 0),
        "events": found.get("events_received", 0),
        "hit rate": f"{hits / (hits + filtered):.3f}" if hits + filtered else "-",
        "written": written,
        "rejected": sum(found.get("events_rejected", {}).values()),
        "lost": sum(found.get("events_lost", {}).values()),
        "batches that never came": sum(gap["batches"] for gap in found.get("events_missing", {}).values()),
        "batches in the queue": _or_dash(found.get("queue_size")),
        "events/s": found.get("events_per_s", 0.0),
        "files": found.get("chunks_written", 0),
        "last file": _or_dash(found.get("last_file")),
        "last event": _or_dash(found.get("last_event")),
        "sessions": found["sessions"],
        "waits for": "; ".join(found["problems"]) or "-",
    }


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value


def _reasons(service: StreamWriter) -> list[dict[str, Any]]:
    """Return what was not written and why, most first."""
    found = service.counters()
    rows = [
        {"what": what, "reason": reason, "events": events, "batches": found[f"batches_{what}"].get(reason, 0)}
        for what in ("rejected", "lost")
        for reason, events in found.get(f"events_{what}", {}).items()
    ]
    gaps = [
        {"what": "never came", "reason": f"left out by {producer}", "events": gap["events"], "batches": gap["batches"]}
        for producer, gap in found.get("events_missing", {}).items()
    ]
    return sorted(rows, key=lambda row: -row["events"])[:_MOST_ROWS] + gaps[:_MOST_ROWS]
