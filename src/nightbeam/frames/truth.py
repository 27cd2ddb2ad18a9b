"""What is true of simulated frames, as a file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam.core.files import write_bytes
from nightbeam.frames.model import FrameTruth

__all__ = ["write_truth"]


def write_truth(path: Path, truth: FrameTruth) -> None:
    """Write the true peaks: arrays if the name ends in ``.npz``, else one JSON object a line, for each event.

    Parameters
    ----------
    path
        Of the file. The arrays have the names of the attributes of `FrameTruth`. A line has ``event``, ``timestamp``
        (LCLS), ``hit``, ``photon_energy_ev``, ``clen_mm`` and ``peaks``: lists of panel, y, x, total_adu.
    truth
        To be written.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    if path.suffix == ".npz":
        out = io.BytesIO()
        np.savez_compressed(out, **{name: getattr(truth, name) for name in FrameTruth.__slots__})
        write_bytes(path, out.getvalue())
    else:
        write_bytes(path, b"".join(json.dumps(line).encode() + b"\n" for line in _lines(truth)))


def _lines(truth: FrameTruth) -> Iterator[dict[str, Any]]:
    n = len(truth.hit)
    ends = np.searchsorted(truth.event, truth.first_event + np.arange(n + 1))
    rows = list(zip(truth.panel.tolist(), truth.y.tolist(), truth.x.tolist(), truth.total_adu.tolist(), strict=True))
    for k in range(n):
        yield {
            "event": truth.first_event + k,
            "timestamp": int(truth.timestamps[k]),
            "hit": bool(truth.hit[k]),
            "photon_energy_ev": float(truth.photon_energy_ev[k]),
            "clen_mm": float(truth.clen_mm[k]),
            "peaks": rows[ends[k] : ends[k + 1]],
        }
