"""Measurement Sets on disk: reading what is inside, proving that one is sound, filling a model column."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError, RejectedError
from nightbeam.core.times import SECONDS_PER_DAY
from nightbeam.ms.compute import cross_uv_range, row_runs
from nightbeam.ms.model import (
    ModelFunction,
    MsAntenna,
    MsExpectation,
    MsField,
    MsSummary,
    RowBlock,
    SpectralWindow,
)

__all__ = [
    "flagged_by_antenna",
    "flagged_by_window",
    "iterate_blocks",
    "read_antennas",
    "read_fields",
    "read_spectral_windows",
    "read_summary",
    "read_telescope",
    "rows_of",
    "uv_range_m",
    "verify_ms",
    "write_model_column",
]

#: Rows read or written at a time: at 48 x 2 visibilities 25 MB of complex numbers.
BLOCK_ROWS = 32768

_SUB_TABLES = (
    "ANTENNA", "DATA_DESCRIPTION", "FEED", "FIELD", "FLAG_CMD", "HISTORY", "OBSERVATION", "POINTING", "POLARIZATION",
    "PROCESSOR", "SPECTRAL_WINDOW", "STATE",
)  # fmt: skip


def read_telescope(ms: Path) -> str:
    """Return the telescope's name."""
    with open_table(ms / "OBSERVATION") as table:
        return str(table.getcell("TELESCOPE_NAME", 0)) if table.nrows() else ""


def read_antennas(ms: Path) -> tuple[MsAntenna, ...]:
    """Return every antenna of the array, in the order of the numbers that the main table uses."""
    with open_table(ms / "ANTENNA") as table:
        columns = [table.getcol(name) for name in ("NAME", "POSITION", "DISH_DIAMETER", "MOUNT")]
    return tuple(
        MsAntenna(
            k, str(name), (float(position[0]), float(position[1]), float(position[2])), float(diameter), str(mount)
        )
        for k, (name, position, diameter, mount) in enumerate(zip(*columns, strict=True))
    )


def read_fields(ms: Path) -> tuple[MsField, ...]:
    """Return the fields with their phase centres."""
    with open_table(ms / "FIELD") as table:
        info = table.getcolkeyword("PHASE_DIR", "MEASINFO")
        frame = str(info.get("Ref", "J2000"))
        fields = []
        for k in range(table.nrows()):
            ra, dec = np.degrees(table.getcell("PHASE_DIR", k)[0])
            fields.append(MsField(k, str(table.getcell("NAME", k)), float(ra) % 360.0, float(dec), frame))
    return tuple(fields)


def read_spectral_windows(ms: Path) -> tuple[SpectralWindow, ...]:
    """Return the spectral windows."""
    with open_table(ms / "SPECTRAL_WINDOW") as table:
        return tuple(
            SpectralWindow(
                k,
                tuple(table.getcell("CHAN_FREQ", k).tolist()),
                tuple(table.getcell("CHAN_WIDTH", k).tolist()),
                str(table.getcell("NAME", k)),
            )
            for k in range(table.nrows())
        )


def read_summary(ms: Path, *, flags: bool = True) -> MsSummary:
    """Return what a Measurement Set holds.

    Parameters
    ----------
    ms
        Its directory.
    flags
        Whether to count the flags, which reads the whole FLAG column (half a second at full size).

    Raises
    ------
    MissingError
        If it, or one of its sub-tables, is not there.
    InputError
        If it is empty or damaged.
    """
    windows, fields, antennas = read_spectral_windows(ms), read_fields(ms), read_antennas(ms)
    telescope = read_telescope(ms)
    with open_table(ms / "POLARIZATION") as table:
        n_pol = int(table.getcell("NUM_CORR", 0)) if table.nrows() else 0
    with open_table(ms) as table:
        if not table.nrows() or not windows or not fields:
            raise InputError(f"{ms} has no rows, no window or no field", fix="convert the group again")
        times, interval = np.unique(table.getcol("TIME")), float(table.getcell("INTERVAL", 0))
        active = np.union1d(table.getcol("ANTENNA1"), table.getcol("ANTENNA2"))
        columns, rows = tuple(sorted(table.colnames())), int(table.nrows())
    start, end = times[0] - 0.5 * interval, times[-1] + 0.5 * interval
    return MsSummary(
        path=Path(ms),
        telescope=telescope,
        rows=rows,
        n_spw=len(windows),
        n_chan=len(windows[0].freqs_hz),
        n_pol=n_pol,
        n_times=len(times),
        antennas=antennas,
        active_antennas=tuple(int(a) for a in active),
        fields=fields,
        windows=windows,
        start_mjd=float(start / SECONDS_PER_DAY),
        mid_mjd=float(0.5 * (start + end) / SECONDS_PER_DAY),
        end_mjd=float(end / SECONDS_PER_DAY),
        integration_s=interval,
        freq_low_hz=min(w.low_hz for w in windows),
        freq_high_hz=max(w.high_hz for w in windows),
        flagged_fraction=_flagged_fraction(ms) if flags else math.nan,
        columns=columns,
    )


def uv_range_m(ms: Path) -> tuple[float, float]:
    """Return the shortest and the longest projected spacing in metres of the cross-correlations."""
    with open_table(ms) as table:
        return cross_uv_range(table.getcol("UVW"), table.getcol("ANTENNA1"), table.getcol("ANTENNA2"))


def flagged_by_antenna(ms: Path) -> dict[str, float]:
    """Return the flagged fraction of each antenna's cross-correlations, by its name; only antennas with rows."""
    names = [a.name for a in read_antennas(ms)]
    flagged, total = np.zeros(len(names)), np.zeros(len(names))
    for block, flag in _flag_blocks(ms):
        bad, all_of = flag.sum(axis=1), np.full(len(flag), flag.shape[1])
        for ends in (block.antenna1, block.antenna2):
            flagged += np.bincount(ends, bad, len(names))
            total += np.bincount(ends, all_of, len(names))
    return {name: float(b / t) for name, b, t in zip(names, flagged, total, strict=True) if t}


def flagged_by_window(ms: Path) -> dict[int, float]:
    """Return the flagged fraction of the cross-correlations of each spectral window."""
    flagged: dict[int, float] = {}
    total: dict[int, float] = {}
    for block, flag in _flag_blocks(ms):
        flagged[block.window] = flagged.get(block.window, 0.0) + float(flag.sum())
        total[block.window] = total.get(block.window, 0.0) + float(flag.size)
    return {window: flagged[window] / total[window] for window in sorted(total) if total[window]}


def verify_ms(ms: Path, expect: MsExpectation | None = None) -> MsSummary:
    """Prove that a Measurement Set can be used, and return what it holds.

    Every sub-table opens; frequencies ascend; widths, intervals and weights are positive; the first and the
    last row of every window can be read; every window has an unflagged cross-correlation that is not zero.

    Raises
    ------
    MissingError
        If it or a part of it is not there.
    InputError
        Naming what is wrong.
    RejectedError
        If more is flagged than ``expect.max_flagged_fraction``.
    """
    expect = expect or MsExpectation()
    for name in _SUB_TABLES:
        with open_table(ms / name):
            pass
    found = read_summary(ms)
    _compare(found, expect)
    _check_windows(found, ascending=expect.ascending)
    _check_rows(found)
    limit = expect.max_flagged_fraction
    if limit is not None and found.flagged_fraction > limit:
        raise RejectedError(
            f"{ms}: {100 * found.flagged_fraction:.1f} % of the cross-correlations are flagged, "
            f"at most {100 * limit:.0f} % are accepted",
            fix="look at the antennas of that observation, or raise max_flagged_fraction",
        )
    return found


def iterate_blocks(ms: Path, *, block_rows: int = BLOCK_ROWS) -> Iterator[RowBlock]:
    """Yield every row of a Measurement Set, in blocks of one spectral window each."""
    with open_table(ms / "DATA_DESCRIPTION") as table:
        window_of = table.getcol("SPECTRAL_WINDOW_ID")
    freqs = [np.array(w.freqs_hz) for w in read_spectral_windows(ms)]
    with open_table(ms / "POLARIZATION") as table:
        n_pol = int(table.getcell("NUM_CORR", 0))
    with open_table(ms) as table:
        descriptions = table.getcol("DATA_DESC_ID")
        for rows in row_runs(descriptions, block_rows):
            part = rows_of(table, rows)
            window = int(window_of[descriptions[rows[0]]])
            yield RowBlock(
                rows=rows,
                window=window,
                freqs_hz=freqs[window],
                n_pol=n_pol,
                time_mjd=part("TIME") / SECONDS_PER_DAY,
                antenna1=part("ANTENNA1").astype(np.int64),
                antenna2=part("ANTENNA2").astype(np.int64),
                uvw_m=part("UVW"),
                field_id=part("FIELD_ID").astype(np.int64),
            )


def write_model_column(ms: Path, model: ModelFunction | complex, *, block_rows: int = BLOCK_ROWS) -> None:
    """Fill MODEL_DATA in every row, making the column where there is none.

    Parameters
    ----------
    ms
        Its directory.
    model
        Jy: one value for everything, or a function from a `RowBlock` to an array that broadcasts to
        (row, chan, pol).

    Raises
    ------
    InputError
        If the model is not finite or of another shape.
    """
    blocks = list(iterate_blocks(ms, block_rows=block_rows))
    with open_table(ms, write=True) as table:
        if "MODEL_DATA" not in table.colnames():
            _add_like_data(table, "MODEL_DATA", "the model, in Jy")
        for block in blocks:
            shape = (len(block.rows), len(block.freqs_hz), block.n_pol)
            values = np.asarray(model(block) if callable(model) else model, np.complex64)
            if not np.isfinite(values).all():
                raise InputError(f"the model of window {block.window} is not finite", fix="check the source's flux")
            try:
                filled = np.broadcast_to(values, shape)
            except ValueError as error:
                raise InputError(f"the model is {values.shape}, wanted {shape}", fix="correct the model") from error
            _put_rows(table, "MODEL_DATA", block.rows, np.ascontiguousarray(filled))


def _flagged_fraction(ms: Path) -> float:
    flagged = total = 0.0
    for _, flag in _flag_blocks(ms):
        flagged, total = flagged + float(np.count_nonzero(flag)), total + flag.size
    return flagged / total if total else math.nan


def _flag_blocks(ms: Path) -> Iterator[tuple[RowBlock, NDArray[np.bool_]]]:
    """Yield cross-correlations and their flags (row, chan * pol)."""
    with open_table(ms) as table:
        for block in iterate_blocks(ms):
            flag = rows_of(table, block.rows)("FLAG")
            cross = block.antenna1 != block.antenna2
            flat = flag.reshape(len(flag), -1)[cross]
            yield _take(block, cross), flat


def _take(block: RowBlock, keep: NDArray[np.bool_]) -> RowBlock:
    return RowBlock(
        rows=block.rows[keep],
        window=block.window,
        freqs_hz=block.freqs_hz,
        n_pol=block.n_pol,
        time_mjd=block.time_mjd[keep],
        antenna1=block.antenna1[keep],
        antenna2=block.antenna2[keep],
        uvw_m=block.uvw_m[keep],
        field_id=block.field_id[keep],
    )


def rows_of(table: Any, rows: NDArray[np.int64]) -> Any:
    """Return a function from a column's name to its values in ``rows``, read in one piece where they touch."""
    first, count = int(rows[0]), len(rows)
    if int(rows[-1]) - first + 1 == count:
        return lambda name: table.getcol(name, first, count)
    chosen = table.selectrows(rows.tolist())
    return lambda name: chosen.getcol(name)


def _put_rows(table: Any, column: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
    first, count = int(rows[0]), len(rows)
    if int(rows[-1]) - first + 1 == count:
        table.putcol(column, values, first, count)
    else:
        table.selectrows(rows.tolist()).putcol(column, values)


def _add_like_data(table: Any, name: str, comment: str) -> None:
    """Add a column of the shape, type and tiling of DATA."""
    source = "DATA" if "DATA" in table.colnames() else "CORRECTED_DATA"
    description = dict(table.getcoldesc(source))
    description["comment"] = comment
    description["keywords"] = {}
    manager = dict(table.getdminfo(source))
    manager["NAME"] = f"Tiled{name}"
    description["dataManagerGroup"] = manager["NAME"]
    table.addcols({name: description}, manager)


def _compare(found: MsSummary, expect: MsExpectation) -> None:
    wanted = {
        "rows": (found.rows, expect.rows),
        "spectral windows": (found.n_spw, expect.n_spw),
        "channels per window": (found.n_chan, expect.n_chan),
        "polarizations": (found.n_pol, expect.n_pol),
        "antennas": (len(found.antennas), expect.antennas),
        "telescope": (found.telescope, expect.telescope),
    }
    for what, (has, wants) in wanted.items():
        if wants is not None and has != wants:
            raise InputError(f"{found.path}: {what} {has}, wanted {wants}", fix="convert the group again")
    missing = [c for c in expect.columns if c not in found.columns]
    if missing:
        raise InputError(f"{found.path} has no column {', '.join(missing)}", fix="run the step that makes it")
    if expect.ra_deg is not None and expect.dec_deg is not None:
        field = found.fields[0]
        east = ((field.ra_deg - expect.ra_deg + 180) % 360 - 180) * math.cos(math.radians(expect.dec_deg))
        off_arcsec = 3600.0 * math.hypot(east, field.dec_deg - expect.dec_deg)
        if off_arcsec > 1.0:
            raise InputError(
                f"{found.path}: phase centre {field.ra_deg:.5f} {field.dec_deg:+.5f} is {off_arcsec:.1f} arcsec "
                f"from the wanted {expect.ra_deg:.5f} {expect.dec_deg:+.5f}",
                fix="convert the group again",
            )


def _check_windows(found: MsSummary, *, ascending: bool) -> None:
    for window in found.windows:
        if min(window.widths_hz) <= 0:
            raise InputError(f"{found.path}: window {window.index} has channels of no positive width", fix="convert")
        if ascending and np.any(np.diff(window.freqs_hz) <= 0):
            raise InputError(f"{found.path}: frequencies fall inside window {window.index}", fix="convert it again")
    centres = [np.mean(w.freqs_hz) for w in found.windows]
    if ascending and np.any(np.diff(centres) <= 0):
        raise InputError(f"{found.path}: the windows are not in ascending frequency", fix="convert it again")


def _check_rows(found: MsSummary) -> None:
    """Read the ends of every window, and look for one unflagged cross-correlation in each."""
    with open_table(found.path) as table:
        descriptions = table.getcol("DATA_DESC_ID")
        cross = table.getcol("ANTENNA1") != table.getcol("ANTENNA2")
        column = "DATA" if "DATA" in found.columns else "CORRECTED_DATA"
        if not table.getcol("INTERVAL", 0, 1)[0] > 0 or not table.getcol("EXPOSURE", 0, 1)[0] > 0:
            raise InputError(f"{found.path}: INTERVAL or EXPOSURE is not positive", fix="convert it again")
        for description in np.unique(descriptions):
            rows = np.flatnonzero(descriptions == description)
            for row in (rows[0], rows[-1]):
                _check_row(found.path, table, column, int(row))
            _find_good(found.path, table, column, rows[cross[rows]], int(description))


def _check_row(ms: Path, table: Any, column: str, row: int) -> None:
    data, flag = table.getcell(column, row), table.getcell("FLAG", row)
    weight, sigma, uvw = (table.getcell(name, row) for name in ("WEIGHT", "SIGMA", "UVW"))
    if not np.isfinite(data[~flag]).all() or not np.isfinite(uvw).all():
        raise InputError(f"{ms}: row {row} holds unflagged values that are not finite", fix="convert it again")
    if not (np.all(weight > 0) and np.all(sigma > 0) and np.isfinite(weight).all()):
        raise InputError(f"{ms}: row {row} has weights that are not positive", fix="convert it again")


def _find_good(ms: Path, table: Any, column: str, rows: NDArray[np.int64], description: int) -> None:
    for begin in range(0, len(rows), 4096):
        part = rows_of(table, rows[begin : begin + 4096])
        data, flag = part(column), part("FLAG")
        if np.any(np.abs(data[~flag]) > 0):
            return
    raise InputError(
        f"{ms}: window {description} has no unflagged cross-correlation that is not zero",
        fix="leave that subband out, or look at why its data are bad",
    )
