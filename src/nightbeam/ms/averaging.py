"""A Measurement Set of fewer channels: neighbours averaged by their weights, what is flagged left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.casa.tables import is_table, new_ms, open_table
from nightbeam.core.errors import InputError, UsageError
from nightbeam.core.files import remove
from nightbeam.ms.files import iterate_blocks, read_fields, read_spectral_windows, rows_of
from nightbeam.ms.model import RowBlock
from nightbeam.ms.writing import tiled_columns

__all__ = ["can_be_averaged", "write_averaged"]

#: Of the main table, as they are. STATE and PROCESSOR say nothing of how data are imaged and are left out.
_KEPT = (
    *("ANTENNA1", "ANTENNA2", "ARRAY_ID", "DATA_DESC_ID", "EXPOSURE", "FEED1", "FEED2", "INTERVAL"),
    *("OBSERVATION_ID", "SCAN_NUMBER", "TIME", "TIME_CENTROID", "UVW"),
)
_TABLES = ("ANTENNA", "DATA_DESCRIPTION", "FEED", "FIELD", "OBSERVATION", "POLARIZATION", "SPECTRAL_WINDOW")
_BLOCK_ROWS = 16384


def can_be_averaged(ms: Path, width: int) -> bool:
    """Return whether `write_averaged` can: windows of equally many channels, a multiple of ``width``; one setup."""
    with open_table(ms / "POLARIZATION") as table:
        setups = int(table.nrows())
    channels = {len(window.freqs_hz) for window in read_spectral_windows(ms)}
    return width >= 1 and setups == 1 and len(channels) == 1 and not channels.pop() % width


def write_averaged(ms: Path, out: Path, *, column: str, width: int, fields: Iterable[int]) -> int:
    """Write the cross-correlations of some fields as a set of their own, ``width`` channels averaged.

    The mean of a bin is weighted by WEIGHT_SPECTRUM (or WEIGHT) over its unflagged, finite samples; its weight is
    their sum. Flags of rows count as flags of all their samples. Fields are numbered anew, in ascending order.

    Parameters
    ----------
    out
        Made anew; what was there is removed.
    column
        ``DATA`` or ``CORRECTED_DATA``; it becomes DATA.

    Returns
    -------
    int
        The rows written.

    Raises
    ------
    UsageError
        If the channels cannot be averaged so (`can_be_averaged`).
    InputError
        If nothing is selected, or the set is damaged.
    """
    if not can_be_averaged(ms, width):
        raise UsageError(
            f"the channels of {ms.name} are no multiple of {width} in every window",
            fix="average fewer channels, or let CASA's split do it",
        )
    known = [field.index for field in read_fields(ms)]
    chosen = sorted(set(fields) & set(known))
    if not chosen:
        raise InputError(f"nothing of {ms.name} is selected", fix=f"its fields are {known}")
    windows = read_spectral_windows(ms)
    with open_table(ms / "POLARIZATION") as table:
        n_pol = int(table.getcell("NUM_CORR", 0))
    remove(out)
    columns, managers = tiled_columns(len(windows[0].freqs_hz) // width, n_pol)
    new_ms(out, columns=columns, dminfo=managers)
    _copy_tables(ms, out, chosen)
    _average_windows(out, width)
    with open_table(ms) as source:
        keywords = {name: source.getcolkeywords(name) for name in ("TIME", "TIME_CENTROID", "UVW")}
    written = 0
    with open_table(out, write=True) as table:
        for name, found in keywords.items():
            table.putcolkeywords(name, found)
        for cells in _averaged_blocks(ms, column, width, chosen):
            count = len(cells["DATA"])
            table.addrows(count)
            for name, values in cells.items():
                table.putcol(name, values, written, count)
            written += count
    if not written:
        raise InputError(f"nothing of {ms.name} is selected", fix=f"its fields {chosen} have no cross-correlations")
    return written


def _has_spectrum(table: Any) -> bool:
    # Sets of others have the column and nothing in it, as the standard allows: WEIGHT holds then.
    return "WEIGHT_SPECTRUM" in table.colnames() and bool(table.iscelldefined("WEIGHT_SPECTRUM", 0))


def _copy_tables(ms: Path, out: Path, fields: list[int]) -> None:
    for name in _TABLES:
        remove(out / name)
        with open_table(ms / name) as table:
            if name == "FIELD":
                table.selectrows(fields).copy(str(out / name), deep=True).close()
            else:
                table.copy(str(out / name), deep=True).close()
    if is_table(ms / "SOURCE"):
        with open_table(ms / "SOURCE") as table:
            table.copy(str(out / "SOURCE"), deep=True).close()
        with open_table(out, write=True) as table:
            table.putkeyword("SOURCE", f"Table: {out / 'SOURCE'}")


def _average_windows(out: Path, width: int) -> None:
    with open_table(out / "SPECTRAL_WINDOW", write=True) as table:
        for row in range(table.nrows()):
            for name, how in (("CHAN_FREQ", np.mean), ("CHAN_WIDTH", np.sum)):
                table.putcell(name, row, how(table.getcell(name, row).reshape(-1, width), axis=1))
            for name in ("EFFECTIVE_BW", "RESOLUTION"):
                table.putcell(name, row, np.abs(table.getcell(name, row)).reshape(-1, width).sum(axis=1))
            table.putcell("NUM_CHAN", row, len(table.getcell("CHAN_FREQ", row)))


def _averaged_blocks(ms: Path, column: str, width: int, fields: list[int]) -> Iterator[dict[str, NDArray[Any]]]:
    with open_table(ms) as table:
        for block in iterate_blocks(ms, block_rows=_BLOCK_ROWS):
            keep = (block.antenna1 != block.antenna2) & np.isin(block.field_id, fields)
            if keep.any():
                yield _average_block(table, block, keep, column, width, fields)


def _average_block(
    table: Any, block: RowBlock, keep: NDArray[np.bool_], column: str, width: int, fields: list[int]
) -> dict[str, NDArray[Any]]:
    from nightbeam.ms.kernels import average_channels  # the compiler behind it takes a second to load

    def read(name: str) -> NDArray[Any]:
        found: NDArray[Any] = of_block(name)
        return found if keep.all() else found[keep]

    of_block = rows_of(table, block.rows)
    data = read(column)
    weights = read("WEIGHT_SPECTRUM") if _has_spectrum(table) else read("WEIGHT")[:, None, :]
    shape = (len(data), data.shape[1] // width, data.shape[2])
    mean, weight = np.empty(shape, np.complex64), np.empty(shape, np.float32)
    average_channels(
        data, read("FLAG"), read("FLAG_ROW"), np.ascontiguousarray(weights, np.float32), width, mean, weight
    )
    flagged = weight <= 0
    typical = weight.mean(axis=1)
    typical[typical <= 0] = 1.0
    nobody = np.full(len(data), -1, np.int32)
    return {name: read(name) for name in _KEPT} | {
        "FIELD_ID": np.searchsorted(fields, block.field_id[keep]).astype(np.int32),
        "DATA": mean,
        "FLAG": flagged,
        "FLAG_ROW": flagged.all(axis=(1, 2)),
        "WEIGHT_SPECTRUM": weight,
        "WEIGHT": typical,
        "SIGMA": 1.0 / np.sqrt(typical),
        "STATE_ID": nobody,
        "PROCESSOR_ID": nobody,
    }
