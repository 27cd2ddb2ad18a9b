"""``nightbeam stream``: the queues between a network and the writer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import json_option, settings_of, show, talk
from nightbeam.cli.replay import export_network, replay

if TYPE_CHECKING:
    from nightbeam.stream.queues import QueueFound, ShardedQueue

__all__ = ["stream"]


def cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--address`` and ``--namespace``."""
    address = click.option(
        "--address", default="auto", show_default=True, help="Of the Ray cluster: auto, host:port or ray://host:port."
    )
    namespace = click.option("--namespace", help="Of the queue.  [default: the only one that has a queue of that name]")
    return address(namespace(function))


@click.group("stream")
@click.pass_context
def stream(ctx: click.Context) -> None:
    """Look at the queues between a network and the writer, fill one, and remove those that are left over.

    The cluster is that of the settings (`stream.address`), where they name one.
    """
    found = settings_of(ctx).stream
    if found.token_file is not None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(found.token_file)}
    if found.address is not None:
        there = {"address": found.address}
        ctx.default_map = {"status": there, "drop": there, "replay": {**there, "namespace": found.namespace}}


@stream.command("status")
@click.argument("name", required=False)
@cluster_options
@json_option
def status(name: str | None, address: str, namespace: str | None, as_json: bool) -> None:
    """List the queues of the cluster with the messages that wait in them; with NAME those of that name."""
    from nightbeam.stream import queues

    _connect(address)
    found = [one for one in queues.list_queues() if name in (None, one.name) and namespace in (None, one.namespace)]
    if name is not None and not found:
        raise queues.not_there(name, namespace)
    show([_line(one, as_json=as_json) for one in found], as_json=as_json)
    if not found:
        talk("no queue is there")


@stream.command("drop")
@click.argument("name")
@cluster_options
@click.option("--yes", is_flag=True, help="Also if it holds messages, which are lost with it.")
@json_option
def drop(name: str, address: str, namespace: str | None, yes: bool, as_json: bool) -> None:
    """Remove the queue NAME, which a run has left in the cluster.

    Whoever still uses it gets errors.
    """
    from nightbeam.core.errors import BusyError
    from nightbeam.stream import queues

    _connect(address)
    found = queues.find_queue(name, namespace)
    queue = queues.ShardedQueue.of(found)
    waiting = queue.size()
    if waiting and not yes:
        raise BusyError(
            f"queue '{name}' in namespace '{found.namespace}' holds {waiting} messages",
            fix="let a writer take them, or lose them with --yes",
        )
    lost = queue.drop()
    if as_json:
        show([{"name": name, "namespace": found.namespace, "lost": lost}], as_json=True)
    else:
        talk(f"removed queue {name} of namespace {found.namespace}, {lost} messages with it")


def _connect(address: str) -> None:
    from nightbeam.stream.remote import connect

    connect(address, "nightbeam-stream")


def _line(found: QueueFound, *, as_json: bool) -> dict[str, Any]:
    from nightbeam.stream.queues import ShardedQueue

    queue: ShardedQueue = ShardedQueue.of(found)
    sizes = queue.sizes()
    row: dict[str, Any] = {
        "name": found.name,
        "namespace": found.namespace,
        "shards": len(found.shards),
        "messages": sum(size or 0 for size in sizes),
    }
    gone = list(found.gaps)
    if as_json:
        return row | {"sizes": dict(zip(map(str, found.shards), sizes, strict=True)), "gone": gone}
    return (
        row
        | {"in each shard": " ".join("-" if size is None else str(size) for size in sizes)}
        | ({"gone": gone} if gone else {})
    )


stream.add_command(replay)
stream.add_command(export_network)
