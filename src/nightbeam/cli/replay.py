"""``nightbeam stream replay``: frames through a torch network into the queue; also the network as a file."""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import json_option, plain, show, talk
from nightbeam.cli.signals import stopped_by_signals
from nightbeam.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nightbeam.frames.model import FrameSource
    from nightbeam.replay.model import BatchSink, MatchedFilter, ReplayPlan, ReplayReport
    from nightbeam.replay.network import Network

__all__ = ["export_network", "replay"]

_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)


class _Sizes(click.ParamType[tuple[int, ...]]):
    """Whole numbers joined by x, such as 16x352x384."""

    name = "size"

    def __init__(self, *lengths: int) -> None:
        self._lengths = lengths

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        words = value.split("x")
        if len(words) not in self._lengths or not all(re.fullmatch(r"[1-9][0-9]{0,6}", word) for word in words):
            self.fail(f"{value!r}: whole numbers joined by x are wanted", param, ctx)
        return tuple(map(int, words))


class _Range(click.ParamType[tuple[float, float]]):
    """One number, or two joined by a colon."""

    name = "range"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Return least and most."""
        if isinstance(value, tuple):
            return value
        least, _, most = value.partition(":")
        try:
            return self._kind(least), self._kind(most or least)
        except ValueError:
            self.fail(f"{value!r}: a number is wanted, or two as in 15:30", param, ctx)


@click.command("replay")
@click.option("--queue", required=True, metavar="NAME", help="The queue that the batches go into.")
@click.option("--namespace", required=True, metavar="NS", help="Its namespace in Ray.")
@click.option("--address", default="auto", show_default=True, metavar="A", help="Of Ray; local: start one here.")
@click.option("--shards", type=_COUNT, default=4, show_default=True, metavar="N", help="Of the queue.")
@click.option(
    "--maxsize", type=_COUNT, default=1600, show_default=True, metavar="N", help="Batches in a shard, if new."
)
@click.option("--frames", type=_PATH, metavar="FILE", help="HDF5, CXI or npy file to read frames from.")
@click.option("--dataset", metavar="D", help="Of the file.  [default: as CXI has it, or the only one]")
@click.option("--simulate", type=_COUNT, metavar="N", help="Make N events instead.")
@click.option("--panels", type=_Sizes(2, 3), metavar="CxHxW", help="Shape of events; of a file's slabs.")
@click.option("--geometry", type=_PATH, metavar="FILE", help="Where the panels are in the slab, and the rings in them.")
@click.option("--hit-rate", type=click.FloatRange(0, 1), help="Share of simulated events with peaks.  [default: 0.5]")
@click.option("--peaks", type=_Range(int), metavar="N[:M]", help="Peaks of a simulated hit.  [default: 15:30]")
@click.option("--intensity", type=_Range(float), metavar="A[:B]", help="Of a peak, ADU.  [default: 600:6000]")
@click.option("--margin", type=click.FloatRange(min=0), metavar="PX", help="Peaks to a panel's edge.  [default: 6]")
@click.option("--seed", type=click.IntRange(min=0), help="Of the simulation.  [default: 0]")
@click.option("--truth", type=_PATH, metavar="FILE", help="Write the true peaks: .npz, else JSON lines.")
@click.option(
    "--first", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Event to begin at."
)
@click.option("--events", type=_COUNT, metavar="N", help="How many.  [default: all]")
@click.option("--batch", type=_COUNT, default=8, show_default=True, metavar="B", help="Events in a message.")
@click.option("--model", type=_PATH, metavar="FILE", help="torch.export or TorchScript. It is a program and is run!")
@click.option("--threshold", type=float, metavar="SNR", help="Of the network that is shipped.  [default: 6]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--threads", type=_COUNT, metavar="N", help="That torch may use.  [default: as torch decides]")
@click.option(
    "--pad", type=_Sizes(1, 2), metavar="MULTIPLE|HxW", help="Size of the network's panels.  [default: as is]"
)
@click.option("--pad-style", type=click.Choice(["bottom-right", "center"]), default="bottom-right", show_default=True,
              help="Where the pad goes.")  # fmt: skip
@click.option("--normalize", is_flag=True, help="Give the network panels of mean 0 and variance 1.")
@click.option("--calibrated/--no-calibrated", help="Send the frames themselves as well.  [default: no]")
@click.option("--form", type=click.Choice(["logits", "bits", "pixels"]), default="logits", show_default=True,
              help="What is sent of the network's answer.")  # fmt: skip
@click.option("--by", type=click.Choice(["reference", "value"]), default="reference", show_default=True,
              help="How it is sent.")  # fmt: skip
@click.option("--run", type=click.IntRange(min=0), help="Number of the run, for the metadata.")
@click.option("--experiment", help="Its name, for the metadata.")
@click.option("--producer", metavar="ID", help="Name of this producer.  [default: replay-HOST-PID-RANDOM]")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="HZ", help="Most events in a second.")
@click.option("--repeat", type=_COUNT, default=1, show_default=True, metavar="N", help="Send everything N times.")
@click.option("--end/--no-end", default=True, help="Say at the end that no more come.  [default: yes]")
@click.option("--wait/--no-wait", default=True, help="Stay until all is taken: the arrays are of this process.  "
              "[default: yes]")  # fmt: skip
@json_option
def replay(
    queue: str,
    namespace: str,
    address: str,
    shards: int,
    maxsize: int,
    producer: str | None,
    as_json: bool,
    **asked: Any,
) -> int:
    """Send frames of a file, or simulated ones, through a network into the queue that the writer reads.

    SIGINT or SIGTERM: no more is sent, the end is said, what was sent is waited for; the exit code is then 130 or 143.
    A second one ends at once, and what was sent by reference and not yet taken is lost.
    """
    from nightbeam.replay.worker import replay as run

    plan = _plan(asked)
    stop = threading.Event()
    with ExitStack() as stack:
        source = stack.enter_context(_source(asked))
        network = _network(asked)
        name = producer or _own_name()
        sink = stack.enter_context(_producer(queue, namespace, address, shards, maxsize, name, asked))
        told = stack.enter_context(stopped_by_signals(stop, saying=_STOPPING))
        _write_truth(asked, source, plan)
        report = run(source, network, sink, plan, stop, on_sent=lambda: None if told else _say_sent(plan, queue))
    _show(report, as_json=as_json)
    return 128 + told[0] if told and report.stopped else 0


_STOPPING = "stopping: no more is sent, and what was sent is waited for; once more to stop at once"


def _say_sent(plan: ReplayPlan, queue: str) -> None:
    """Say what is waited for: without a writer it takes for ever."""
    if plan.wait:
        talk(f"all is sent; waiting until it has been taken from queue {queue!r} (to stop at once: Ctrl-C twice)")


def _own_name() -> str:
    """Return a name that no other replay has: the writer takes what comes again under one name for a repeat."""
    return f"replay-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def _plan(asked: dict[str, Any]) -> ReplayPlan:
    from nightbeam.replay.model import ReplayPlan

    pad: Any = asked["pad"] or (1,)
    same = ("batch", "repeat", "pad_style", "normalize", "calibrated", "form", "by", "end", "wait")
    return ReplayPlan(
        first_event=asked["first"],
        n_events=asked["events"],
        pad_to=pad if len(pad) == 2 else None,
        pad_multiple=pad[0] if len(pad) == 1 else 1,
        rate_hz=asked["rate"],
        **{name: asked[name] for name in same},
    )


# -- frames -------------------------------------------------------------------------------------------------------

_SIMULATION = ("hit_rate", "peaks", "intensity", "margin", "seed", "truth")


@contextmanager
def _source(asked: dict[str, Any]) -> Iterator[FrameSource]:
    if (asked["frames"] is None) == (asked["simulate"] is None):
        raise UsageError("frames come from a file or are simulated", fix="give --frames FILE or --simulate N")
    if asked["simulate"] is not None:
        yield _simulated(asked)
        return
    if given := [name for name in _SIMULATION if asked[name] is not None]:
        what = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{what} is for --simulate", fix="leave it out with --frames")
    from nightbeam.frames.files import open_frames

    panels = asked["panels"]
    origins = _geometry(asked)[0] if asked["geometry"] is not None else None
    with open_frames(asked["frames"], asked["dataset"], panel_shape=panels and panels[-2:], origins=origins) as reader:
        if panels and len(panels) == 3 and reader.shape != panels:
            raise UsageError(f"events of {asked['frames']} are {reader.shape}, not {panels}", fix="correct --panels")
        yield reader


def _simulated(asked: dict[str, Any]) -> FrameSource:
    from nightbeam.frames.compute import SimulatedFrames, expected_background, panel_radii
    from nightbeam.frames.model import FramePlan

    names = {
        "hit_rate": "hit_rate",
        "peaks": "n_peaks",
        "intensity": "total_adu",
        "margin": "margin_px",
        "seed": "seed",
    }
    given = {ours: asked[name] for name, ours in names.items() if asked[name] is not None}
    if asked["dataset"] is not None:
        raise UsageError("--dataset is for --frames", fix="leave it out with --simulate")
    if asked["panels"] is not None:
        given["shape"] = asked["panels"] if len(asked["panels"]) == 3 else (1, *asked["panels"])
    plan = FramePlan(**given)
    if asked["geometry"] is None:
        return SimulatedFrames(plan, asked["simulate"])
    origins, radius = _geometry(asked)
    return SimulatedFrames(
        plan, asked["simulate"], expected_background(plan, panel_radii(radius, origins, plan.shape[1:]))
    )


def _geometry(asked: dict[str, Any]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the origins of the panels in the slab, and the slab of distances from the beam."""
    if asked["panels"] is None or len(asked["panels"]) != 3:
        raise UsageError("a geometry file does not say how large a module is", fix="give --panels CxHxW too")
    from nightbeam.geometry.compute import beam_radius_px, tile_origins
    from nightbeam.geometry.files import read_geometry

    geometry = read_geometry(asked["geometry"])
    return tile_origins(geometry, asked["panels"]), beam_radius_px(geometry)


def _write_truth(asked: dict[str, Any], source: FrameSource, plan: ReplayPlan) -> None:
    if asked["truth"] is None:
        return
    from nightbeam.frames.compute import SimulatedFrames, true_peaks
    from nightbeam.frames.truth import write_truth

    if isinstance(source, SimulatedFrames):
        left = max(0, source.n_events - plan.first_event)
        write_truth(asked["truth"], true_peaks(source.plan, plan.first_event, min(left, plan.n_events or left)))


# -- network and queue --------------------------------------------------------------------------------------------


def _network(asked: dict[str, Any]) -> Network:
    from nightbeam.replay.network import load_network

    if asked["model"] is not None and asked["threshold"] is not None:
        raise UsageError("--threshold is of the network that is shipped", fix="leave it out with --model")
    settings = _matched_filter(asked["threshold"])
    return load_network(asked["model"], asked["device"], settings=settings, threads=asked["threads"])


def _matched_filter(threshold: float | None, sigma: float | None = None) -> MatchedFilter:
    from nightbeam.replay.model import MatchedFilter

    given = {"threshold": threshold, "sigma_px": sigma}
    return MatchedFilter(**{name: value for name, value in given.items() if value is not None})


@contextmanager
def _producer(
    queue: str, namespace: str, address: str, shards: int, maxsize: int, producer: str, asked: dict[str, Any]
) -> Iterator[BatchSink]:
    from nightbeam.stream.producer import Producer
    from nightbeam.stream.queues import ShardedQueue
    from nightbeam.stream.remote import connect, disconnect

    connect(address, namespace)
    try:
        yield Producer(
            ShardedQueue.create(queue, shards, maxsize),
            producer,
            pad_style=asked["pad_style"],
            run=asked["run"],
            experiment=asked["experiment"],
        )
    finally:
        disconnect()


def _show(report: ReplayReport, *, as_json: bool) -> None:
    if as_json:
        show([plain(report) | {"events_per_s": report.events_per_s}], as_json=True)
        return
    talk(
        f"{report.events} events in {report.batches} batches, {report.events_per_s:.1f} events/s on {report.device}"
        f" (read {report.read_s:.1f} s, network {report.network_s:.1f} s, send {report.send_s:.1f} s,"
        f" of that {report.waited_s:.1f} s for room)" + ("; stopped before the end" if report.stopped else "")
    )


@click.command("export-network")
@click.argument("file", type=_PATH)
@click.option("--threshold", type=float, metavar="SNR", help="Signal-to-noise ratio of a peak's pixel.  [default: 6]")
@click.option("--sigma", type=float, metavar="PX", help="Width of the peaks it looks for.  [default: 1.2]")
def export_network(file: Path, threshold: float | None, sigma: float | None) -> None:
    """Write the matched filter as a model FILE: by torch.export if it ends in .pt2, else as TorchScript."""
    from nightbeam.replay.network import export_network as write

    write(file, settings=_matched_filter(threshold, sigma))
    talk(f"{file} takes float32 (rows, 1, H, W) and returns logits (rows, 2, H, W)")
