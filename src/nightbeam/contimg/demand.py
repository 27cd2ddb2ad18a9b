"""What a step of a group will take: memory, and room on disks. Pure arithmetic of sizes.

The laws were measured (docs/explanations/decisions/0051-memory-budget.md): the processes of a step together, that is
ours and the child that it starts, at 20 antennas with 8 channels, 48 with 16, and 96 with 48, each in 16 subbands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Demand", "Sizes", "image_demand", "mosaic_demand", "ram_for_image", "same_step", "step_demand"]

_MB, _GB = 1_000_000, 1_000_000_000
#: Of the bytes of the subbands: a Measurement Set with DATA alone, its MODEL_DATA, its CORRECTED_DATA (8 of 13 bytes
#: each), and what else grows (b.3.10 of the facts: 2.33 GB in, 2.1 GB with DATA, 5.1 GB with all three).
_SET, _COLUMN = 1.0, 0.65
_WHOLE_SET = 2.2
#: Most that the averaged copy of a set and what WSClean reorders of it take, where nothing can be averaged.
_COPIES_OF_SET = 2.0
#: Bytes a pixel that an imager leaves in scratch, and in the output.
_SCRATCH_PIXEL, _OUTPUT_PIXEL = 160, 44
#: Bytes a pixel that the engines take, and ours take after them.
_PIXEL_TCLEAN, _PIXEL_WSCLEAN, _PIXEL_OURS = 110, 60, 80
#: Logs and rows of a step; figures of a group.
_SMALL, _FIGURES = 2 * _MB, 10 * _MB


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a demand depends on.

    Attributes
    ----------
    input_bytes
        Of all subbands: antennas, times, channels and correlations in one number.
    set_bytes
        Of the Measurement Set as it is; 0 before there is one.
    imsize
        Pixels on a side.
    engine
        Of the image.
    chanbin
        Channels averaged before an image is made, at most.
    engine_bytes
        What WSClean is allowed (``contimg.image.memory_gb``).
    """

    input_bytes: int
    set_bytes: int = 0
    imsize: int = 1024
    engine: str = "tclean"
    chanbin: int = 8
    engine_bytes: int = 4 * _GB


@dataclass(frozen=True, slots=True)
class Demand:
    """What a step will take.

    Attributes
    ----------
    memory_bytes
        Of all its processes together, at its worst moment.
    writes : {directory: bytes}
        What it adds there.
    lower
        Settings that make it less, for who has too little.
    """

    memory_bytes: int
    writes: Mapping[Path, int] = field(default_factory=dict)
    lower: str = ""


def step_demand(step: str, sizes: Sizes, *, output: Path, scratch: Path, state: Path, flagging: bool = False) -> Demand:
    """Return what a step of a group takes.

    Parameters
    ----------
    step
        One of `nightbeam.contimg.model.STEPS`.
    sizes
        Of the group and its image.
    output, scratch, state
        Where Measurement Set, tables and images lie; work in progress; figures and logs.
    flagging
        Whether interference is flagged after the conversion.
    """
    data = max(sizes.input_bytes, int(sizes.set_bytes / _WHOLE_SET))
    small = {state: _SMALL}
    if step == "convert":
        # What cannot be finished is not begun: the columns that calibration adds are asked for here too.
        in_scratch = int((_SET + (0.1 if flagging else 0.0)) * data)
        writes = _sum({output: int(_WHOLE_SET * data)}, {scratch: in_scratch}, small)
        return Demand(int(0.45 * _GB + (0.6 if flagging else 0.25) * data), writes)
    if step in ("calibrate", "apply"):
        return Demand(int(0.75 * _GB + 0.55 * data), _sum({output: int(_COLUMN * data)}, small))
    if step == "image":
        return image_demand(sizes, output=output, scratch=scratch, state=state)
    if step == "qa":
        return Demand(int(0.5 * _GB + 0.1 * data + 24 * sizes.imsize**2), {state: _FIGURES})
    return Demand(int(0.45 * _GB), small)


def image_demand(sizes: Sizes, *, output: Path, scratch: Path, state: Path) -> Demand:
    """Return what making an image takes."""
    data = max(sizes.input_bytes, int(sizes.set_bytes / _WHOLE_SET))
    pixels = sizes.imsize**2
    in_scratch = int(_COPIES_OF_SET * sizes.set_bytes / max(sizes.chanbin, 1)) + _SCRATCH_PIXEL * pixels
    writes = _sum({output: _OUTPUT_PIXEL * pixels}, {scratch: in_scratch}, {state: _SMALL})
    if sizes.engine == "wsclean":
        engine = 0.25 * _GB + 0.35 * data + min(sizes.engine_bytes, _PIXEL_WSCLEAN * pixels)
    else:
        engine = 0.25 * _GB + 0.35 * data + _PIXEL_TCLEAN * pixels
    # Beam, checks and picture are ours, and come when the engine has ended.
    memory = 0.45 * _GB + 0.1 * data + max(engine, _PIXEL_OURS * pixels)
    return Demand(int(memory), writes, "contimg.image.imsize")


def mosaic_demand(tiles: int, *, imsize: int, block: int, workers: int) -> Demand:
    """Return what making a mosaic takes: 381 MB for 3 tiles of a megapixel, 541 MB for 48, were measured."""
    return Demand(
        int(0.45 * _GB + 4 * _MB * tiles + 64 * imsize**2 + 40 * workers * block**2),
        lower="contimg.mosaic.workers or contimg.mosaic.block_pixels",
    )


def ram_for_image(sizes: Sizes) -> int:
    """Return the most that making an image leaves in scratch, where nothing can be averaged."""
    return int(_COPIES_OF_SET * sizes.set_bytes) + _SCRATCH_PIXEL * sizes.imsize**2


def same_step(step: str, *, cores: int, threads: int, converters: int) -> int:
    """Return how many steps of a kind a machine does well at a time: as many as have cores of their own, at least one.

    Parameters
    ----------
    step
        Which kind.
    cores
        Of the machine.
    threads
        Of each child process that solves, applies or images.
    converters
        Threads of a conversion, at most the cores there are.
    """
    each = min(converters, cores) if step == "convert" else threads
    return max(1, cores // max(1, each))


def _sum(*writes: Mapping[Path, int]) -> dict[Path, int]:
    total: dict[Path, int] = {}
    for one in writes:
        for directory, count in one.items():
            total[directory] = total.get(directory, 0) + count
    return total
