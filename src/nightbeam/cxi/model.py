"""Events on their way into files, and what is asked of the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nightbeam.peaks.model import PeakTable
from nightbeam.stream.model import BatchHeader

__all__ = ["Event", "OutputPlan", "ProcessedBatch"]


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One frame that passed the filter.

    Attributes
    ----------
    batch
        The batch that it came with.
    index
        Which event of that batch.
    peaks
        Its peaks, at most ``max_num_peak``; ``row`` is still ``index * panels + panel``.
    image : (C, H0, W0) or None
        The detector's pixels; may be a view of a batch's array.
    segmentation : (C, H0, W0), bool, or None
        Pixels of peaks, where maps are wanted.
    """

    batch: BatchHeader
    index: int
    peaks: PeakTable
    image: NDArray[Any] | None
    segmentation: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedBatch:
    """A batch whose peaks have been found: its hits, its misses and how many were cut short.

    Attributes
    ----------
    events
        Those that passed the filter, in order.
    filtered
        How many did not.
    truncated
        How many hits had more peaks than fit.
    misses : sequence of (C, H0, W0)
        Images of those that did not pass, for the powder of misses; may be empty.
    """

    batch: BatchHeader
    events: tuple[Event, ...]
    filtered: int
    truncated: int = 0
    misses: tuple[NDArray[Any], ...] = ()


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """How files are named, cut and laid out; see the configuration's section ``output``."""

    output_dir: Path
    file_prefix: str = "peaknet_cxi"
    buffer_size: int = 100
    batches_per_file: int | None = None
    flush_interval_s: float | None = None
    per_run: bool = False
    name_template: str = "{prefix}_{time}_{writer}_chunk{chunk}"
    lst: bool = True
    geom: bool = True
    master: bool = True
    images: bool = True
    dtype: Literal["float32", "uint16", "int16", "int32", "float16"] = "float32"
    compression: str = "none"
    compat: tuple[Literal["cheetah", "psocake"], ...] = ("cheetah",)
    save_segmentation_maps: bool = False
    min_num_peak: int = 10
    max_num_peak: int = 2048
    pixel_size_m: float | None = None
    static: Mapping[str, Any] = field(default_factory=dict)
    create_output_dir: bool = True
    config_sha256: str = ""
