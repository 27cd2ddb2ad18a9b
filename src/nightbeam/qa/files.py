"""What quality control reads from a Measurement Set, and the report that it keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError
from nightbeam.core.files import write_text
from nightbeam.ms import iterate_blocks, read_summary
from nightbeam.qa.model import VisibilitySample
from nightbeam.sky.model import SPEED_OF_LIGHT_M_S

__all__ = ["METRICS", "read_metrics", "sample_visibilities", "update_metrics"]

METRICS = "metrics.json"


def sample_visibilities(ms: Path, *, most_rows: int = 20_000) -> VisibilitySample:
    """Return unflagged cross-correlations spread evenly over a Measurement Set.

    CORRECTED_DATA is looked at where there is one, else DATA.

    Raises
    ------
    MissingError, InputError
        If it is not there or damaged.
    """
    summary = read_summary(ms, flags=False)
    column = "CORRECTED_DATA" if summary.has_corrected else "DATA"
    # Whole stretches of rows are read, one in so many blocks, because single rows cost a seek each.
    blocks = [block for block in iterate_blocks(ms, block_rows=512) if np.any(block.antenna1 != block.antenna2)]
    chosen = blocks[:: max(1, len(blocks) * 512 // most_rows)]
    u, v, amplitude = ([np.zeros(0)] for _ in range(3))
    with open_table(ms) as table:
        for block in chosen:
            part = table.selectrows(block.rows.tolist())
            try:
                data, flag = part.getcol(column), part.getcol("FLAG") | part.getcol("FLAG_ROW")[:, None, None]
            finally:
                part.close()
            bad = flag | ~np.isfinite(data)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = np.where(bad, 0.0, np.abs(data)).sum(axis=(1, 2)) / (~bad).sum(axis=(1, 2))
            keep = (block.antenna1 != block.antenna2) & np.isfinite(mean)
            wave_m = SPEED_OF_LIGHT_M_S / float(np.mean(block.freqs_hz))
            u.append(block.uvw_m[keep, 0] / wave_m / 1e3)
            v.append(block.uvw_m[keep, 1] / wave_m / 1e3)
            amplitude.append(mean[keep].astype(float))
    return VisibilitySample(column, np.concatenate(u), np.concatenate(v), np.concatenate(amplitude))


def read_metrics(directory: Path) -> dict[str, Any]:
    """Return the report of a group, empty if there is none yet.

    Raises
    ------
    InputError
        If it is no JSON object.
    """
    path = directory / METRICS
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", fix="remove it; it is written again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no report", fix="remove it; it is written again")
    return found


def update_metrics(directory: Path, sections: Mapping[str, Any]) -> Path:
    """Put sections into a group's report, leaving the others, and return its path."""
    path = directory / METRICS
    whole = read_metrics(directory) | dict(sections)
    write_text(path, json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return path
