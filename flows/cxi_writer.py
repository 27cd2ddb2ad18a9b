"""The CXI writer: what a network found in a stream of detector images becomes files that CrystFEL indexes."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from prefect import flow
from prefect.client.schemas.objects import State

from blocks import RayCluster
from flows._service import TAKEOVER_S, run_service, unless_cancelled
from nightbeam.core.errors import ConfigError
from nightbeam.core.locks import sole_owner
from nightbeam.core.settings import Settings, StreamSettings, load_settings

if TYPE_CHECKING:
    from nightbeam.cxi.config import WriterConfig
    from nightbeam.cxi.worker import CxiService

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

    def loop(stop: threading.Event) -> None:
        with sole_owner(_output_lock(writer), wait_s=TAKEOVER_S, what=f"the output {writer.output.output_dir}"):
            service.loop(stop)

    return run_service(
        loop,
        lock=stream_lock(settings.state_dir, writer.ray.namespace, writer.queue.name),
        name="cxi-writer",
        counters=lambda: _numbers(service),
        tables={"lost": lambda: _reasons(service)},
        fence_s=fence_s,
    )


def stream_lock(state_dir: Path, namespace: str, queue: str) -> Path:
    """Return the lock of the one run that takes from a queue: what a run has taken, no other will ever see."""
    return state_dir / "cxi" / f"{quote(namespace, safe='')}.{quote(queue, safe='')}.lock"


def _output_lock(writer: WriterConfig) -> Path:
    return writer.output.output_dir / f"{writer.output.file_prefix}.lock"


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
    for key, given in (("output.output_dir", writer.output.output_dir), ("geometry.geom_file", writer.geometry.geom_file)):
        if given is not None and not given.is_absolute():
            raise ConfigError(f"{key} of {path} is {given}, and a service stands nowhere", fix="write the whole path")
    return writer


def _show_token(stream: StreamSettings) -> None:
    """Have this process show the cluster's word; Ray reads it from the environment alone."""
    if stream.token_file is not None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(stream.token_file)}


def _service(writer: WriterConfig, *, until_end: bool) -> CxiService:
    from nightbeam.cxi.worker import CxiService  # heavy: an apply imports every flow

    return CxiService(writer, until_end=until_end)


def _numbers(service: CxiService) -> Mapping[str, Any]:
    return dict(service.counters())


def _reasons(service: CxiService) -> list[dict[str, Any]]:
    return []
