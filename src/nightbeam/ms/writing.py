"""Measurement Sets from nothing: the tables around the visibilities, and the fast way to put those in.

A tiled column of fixed shape whose tiles span whole rows is, on disk, nothing but the rows one after the
other. That lets several threads write such columns at once, where casacore allows one. The layout is not
taken on trust: it is probed in each new set through casacore, and where the probe fails rows go the slow way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nightbeam.casa.tables import ms_columns, new_ms, new_ms_subtable, open_table
from nightbeam.core.errors import InputError
from nightbeam.core.files import storage_errors
from nightbeam.core.times import SECONDS_PER_DAY
from nightbeam.ms.model import MsLayout

__all__ = [
    "RowSink",
    "RowValues",
    "create_ms",
    "new_rows",
    "probe_raw_columns",
    "put_row_flags",
    "read_record",
    "tiled_columns",
    "write_record",
]

RECORD_KEYWORD = "NIGHTBEAM"

_TILE_ROWS = 1024  # of 48 x 2 visibilities: 786 kB, read whole by everything that reads the set in order
_ISM = (
    "TIME", "TIME_CENTROID", "INTERVAL", "EXPOSURE", "DATA_DESC_ID", "FIELD_ID", "SCAN_NUMBER", "ARRAY_ID",
    "OBSERVATION_ID", "STATE_ID", "PROCESSOR_ID", "FEED1", "FEED2",
)  # fmt: skip


@dataclass(frozen=True)
class RowValues:
    """What consecutive rows hold in the columns that `create_ms` leaves open.

    ``data`` (row, chan, pol) complex64; ``flag`` bool and ``spectrum`` float32 of the same shape; ``weight``
    and ``sigma`` (row, pol) float32; ``uvw_m`` (row, 3) float64. All contiguous.
    """

    data: NDArray[np.complex64]
    flag: NDArray[np.bool_]
    spectrum: NDArray[np.float32]
    weight: NDArray[np.float32]
    sigma: NDArray[np.float32]
    uvw_m: NDArray[np.float64]

    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Return the arrays by the name of their column."""
        return {
            "DATA": self.data,
            "FLAG": self.flag,
            "WEIGHT_SPECTRUM": self.spectrum,
            "WEIGHT": self.weight,
            "SIGMA": self.sigma,
            "UVW": self.uvw_m,
        }


class RowSink(Protocol):
    """Where rows go; safe to call from several threads for different rows."""

    #: How, for logs: "raw" or "casacore".
    way: str

    def put(self, first_row: int, values: RowValues) -> None:
        """Write rows ``first_row`` onwards."""


def create_ms(path: Path, layout: MsLayout) -> None:
    """Make a Measurement Set that is complete but for DATA, FLAG, WEIGHT_SPECTRUM, WEIGHT, SIGMA and UVW.

    Those columns have their rows, filled with zeros; `new_rows` fills them. MODEL_DATA and CORRECTED_DATA
    are left out on purpose: a column of zeros would look like data.

    Raises
    ------
    StorageError
        If the disk is full.
    """
    columns, managers = tiled_columns(layout.n_chan, layout.n_pol)
    new_ms(path, columns=columns, dminfo=managers)
    _fill_antennas(path, layout)
    _fill_windows(path, layout)
    _fill_field(path, layout)
    _fill_observation(path, layout)
    _fill_pointing(path, layout)
    _fill_history(path, layout)
    _fill_main(path, layout)


@contextmanager
def new_rows(path: Path, layout: MsLayout) -> Iterator[RowSink]:
    """Yield the sink for the rows of a set that `create_ms` made."""
    raw = probe_raw_columns(path, layout)
    if raw is None:
        with open_table(path, write=True) as table:
            yield _TableSink(table)
        return
    handles = {name: os.open(file, os.O_WRONLY | os.O_CLOEXEC) for name, (file, _) in raw.items()}
    try:
        yield _RawSink(path, {name: (handles[name], row_bytes) for name, (_, row_bytes) in raw.items()})
    finally:
        for handle in handles.values():
            os.close(handle)


def probe_raw_columns(path: Path, layout: MsLayout) -> dict[str, tuple[Path, int]] | None:
    """Return the file and the bytes of a row of each open column, or None where rows are not laid out plainly.

    A pattern is written through casacore into rows at the ends and on both sides of the edges of tiles,
    and looked for in the files.
    """
    if (layout.n_chan * layout.n_pol) % 8:
        return None  # the bits of a row of FLAG do not fill bytes
    rows = sorted({0, 1, _TILE_ROWS - 1, _TILE_ROWS, layout.n_rows // 2, layout.n_rows - 1})
    rows = [r for r in rows if 0 <= r < layout.n_rows]
    patterns = _patterns(layout, len(rows))
    files = {}
    with open_table(path, write=True) as table:
        for name, values in patterns.items():
            files[name] = path / f"table.f{table.getdminfo(name)['SEQNR']}_TSM0"
            for row, value in zip(rows, values, strict=True):
                table.putcell(name, row, value)
    found = {}
    for name, values in patterns.items():
        wanted = [_row_bytes(value) for value in values]
        size = len(wanted[0])
        if not files[name].is_file() or files[name].stat().st_size < layout.n_rows * size:
            return None
        with files[name].open("rb") as file:
            for row, value in zip(rows, wanted, strict=True):
                file.seek(row * size)
                if file.read(size) != value:
                    return None
        found[name] = (files[name], size)
    return found


def write_record(ms: Path, text: str) -> None:
    """Keep what made a set (JSON) in its main table, where copies of the set keep it too."""
    with open_table(ms, write=True) as table:
        table.putkeyword(RECORD_KEYWORD, text)


def read_record(ms: Path) -> str:
    """Return what `write_record` kept, or ``""``."""
    with open_table(ms) as table:
        return str(table.getkeyword(RECORD_KEYWORD)) if RECORD_KEYWORD in table.keywordnames() else ""


class _RawSink:
    way = "raw"

    def __init__(self, ms: Path, columns: Mapping[str, tuple[int, int]]) -> None:
        self._ms = ms
        self._columns = columns

    def put(self, first_row: int, values: RowValues) -> None:
        with storage_errors(self._ms):
            for name, array in values.columns().items():
                handle, size = self._columns[name]
                flat = np.packbits(array, bitorder="little") if name == "FLAG" else array.reshape(-1)
                _write_all(handle, flat.view(np.uint8).data, first_row * size)


class _TableSink:
    way = "casacore"

    def __init__(self, table: Any) -> None:
        self._table = table
        self._one_at_a_time = threading.Lock()

    def put(self, first_row: int, values: RowValues) -> None:
        with self._one_at_a_time:
            for name, array in values.columns().items():
                self._table.putcol(name, array, first_row, len(array))


def _write_all(handle: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], offset + done)


def _row_bytes(value: NDArray[Any]) -> bytes:
    return np.packbits(value, bitorder="little").tobytes() if value.dtype == bool else value.tobytes()


def _patterns(layout: MsLayout, rows: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(1)
    cell = (rows, layout.n_chan, layout.n_pol)
    real = rng.random((2, *cell), np.float32)
    return {
        "DATA": (real[0] + 1j * real[1]).astype(np.complex64),
        "FLAG": rng.random(cell) > 0.5,
        "WEIGHT_SPECTRUM": real[0],
        "WEIGHT": rng.random((rows, layout.n_pol), np.float32),
        "SIGMA": rng.random((rows, layout.n_pol), np.float32),
        "UVW": rng.random((rows, 3)),
    }


def tiled_columns(n_chan: int, n_pol: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the columns of a main table whose rows are all of one shape, and the storage managers that keep them."""
    columns = ms_columns()
    spectrum = (n_chan, n_pol)
    shapes = {
        "DATA": ("complex", spectrum),
        "FLAG": ("boolean", spectrum),
        "WEIGHT_SPECTRUM": ("float", spectrum),
        "WEIGHT": ("float", spectrum[1:]),
        "SIGMA": ("float", spectrum[1:]),
        "UVW": ("double", (3,)),
    }
    managers: dict[str, Any] = {}
    for number, (name, (kind, shape)) in enumerate(shapes.items()):
        group = f"Tiled{name}"
        columns[name] = {
            **columns.get(name, {"comment": _COMMENTS.get(name, ""), "keywords": {}, "maxlen": 0}),
            "valueType": kind,
            "shape": np.array(shape, np.int32),
            "ndim": len(shape),
            "option": 5,  # direct and of fixed shape
            "_c_order": True,
            "dataManagerType": "TiledColumnStMan",
            "dataManagerGroup": group,
        }
        rows = _TILE_ROWS if len(shape) == 2 and kind != "boolean" else 16 * _TILE_ROWS
        managers[f"*{number + 1}"] = {
            "NAME": group,
            "TYPE": "TiledColumnStMan",
            "SEQNR": number,
            "COLUMNS": np.array([name]),
            "SPEC": {"DEFAULTTILESHAPE": np.array([*reversed(shape), rows], np.int32), "MAXIMUMCACHESIZE": 0},
        }
    columns["DATA"]["keywords"] = {"UNIT": "Jy"}
    columns["UVW"]["keywords"] = {"QuantumUnits": np.array(["m"] * 3), "MEASINFO": {"type": "uvw", "Ref": "ICRS"}}
    for name in _ISM:
        columns[name] = {**columns[name], "dataManagerType": "IncrementalStMan", "dataManagerGroup": "Incremental"}
    managers["*7"] = {
        "NAME": "Incremental",
        "TYPE": "IncrementalStMan",
        "SEQNR": 6,
        "COLUMNS": np.array(_ISM),
        "SPEC": {"BUCKETSIZE": 65536},
    }
    return columns, managers


_COMMENTS = {"DATA": "The data column", "WEIGHT_SPECTRUM": "Weight for each data point"}


def _fill_antennas(path: Path, layout: MsLayout) -> None:
    antennas = layout.antennas
    count = len(antennas)
    with open_table(path / "ANTENNA", write=True) as table:
        table.addrows(count)
        table.putcol("NAME", [a.name for a in antennas])
        table.putcol("STATION", [a.name for a in antennas])
        table.putcol("TYPE", ["GROUND-BASED"] * count)
        table.putcol("MOUNT", [a.mount for a in antennas])
        table.putcol("POSITION", np.array([a.position_m for a in antennas]))
        table.putcol("OFFSET", np.zeros((count, 3)))
        table.putcol("DISH_DIAMETER", np.array([a.diameter_m for a in antennas]))
        table.putcol("FLAG_ROW", np.zeros(count, bool))
    with open_table(path / "FEED", write=True) as table:
        table.addrows(count)
        table.putcol("ANTENNA_ID", np.arange(count, dtype=np.int32))
        table.putcol("SPECTRAL_WINDOW_ID", np.full(count, -1, np.int32))
        table.putcol("BEAM_ID", np.full(count, -1, np.int32))
        table.putcol("NUM_RECEPTORS", np.full(count, 2, np.int32))
        table.putcol("INTERVAL", np.full(count, 1e30))
        table.putcol("BEAM_OFFSET", np.zeros((count, 2, 2)))
        table.putcol("RECEPTOR_ANGLE", np.zeros((count, 2)))
        table.putcol("POL_RESPONSE", np.tile(np.eye(2, dtype=np.complex64), (count, 1, 1)))
        table.putcol("POSITION", np.zeros((count, 3)))
        for row in range(count):
            table.putcell("POLARIZATION_TYPE", row, ["X", "Y"])


def _fill_windows(path: Path, layout: MsLayout) -> None:
    windows = layout.windows
    with open_table(path / "SPECTRAL_WINDOW", write=True) as table:
        table.addrows(len(windows))
        for row, window in enumerate(windows):
            widths = np.array(window.widths_hz)
            cells = {
                "NAME": window.name,
                "NUM_CHAN": len(widths),
                "CHAN_FREQ": np.array(window.freqs_hz),
                "CHAN_WIDTH": widths,
                "EFFECTIVE_BW": widths,
                "RESOLUTION": widths,
                "TOTAL_BANDWIDTH": float(widths.sum()),
                "REF_FREQUENCY": float(window.freqs_hz[0]),
                "MEAS_FREQ_REF": 5,  # TOPO
                "NET_SIDEBAND": 1,
                "IF_CONV_CHAIN": 0,
                "FREQ_GROUP": 0,
                "FREQ_GROUP_NAME": "band",
                "FLAG_ROW": False,
            }
            for name, value in cells.items():
                table.putcell(name, row, value)
    with open_table(path / "POLARIZATION", write=True) as table:
        table.addrows(1)
        product = {9: (0, 0), 10: (0, 1), 11: (1, 0), 12: (1, 1)}
        table.putcell("NUM_CORR", 0, layout.n_pol)
        table.putcell("CORR_TYPE", 0, np.array(layout.corr_types, np.int32))
        table.putcell("CORR_PRODUCT", 0, np.array([product[c] for c in layout.corr_types], np.int32))
        table.putcell("FLAG_ROW", 0, False)
    with open_table(path / "DATA_DESCRIPTION", write=True) as table:
        table.addrows(len(windows))
        table.putcol("SPECTRAL_WINDOW_ID", np.arange(len(windows), dtype=np.int32))
        table.putcol("POLARIZATION_ID", np.zeros(len(windows), np.int32))
        table.putcol("FLAG_ROW", np.zeros(len(windows), bool))


def _set_frame(table: Any, column: str) -> None:
    info = dict(table.getcolkeyword(column, "MEASINFO"))
    table.putcolkeyword(column, "MEASINFO", {**info, "Ref": "ICRS"})


def _fill_field(path: Path, layout: MsLayout) -> None:
    direction = np.radians([[layout.ra_deg, layout.dec_deg]])
    start_s = (layout.times_mjd[0] * SECONDS_PER_DAY) - 0.5 * layout.integration_s
    with open_table(path / "FIELD", write=True) as table:
        table.addrows(1)
        for name in ("PHASE_DIR", "DELAY_DIR", "REFERENCE_DIR"):
            _set_frame(table, name)
            table.putcell(name, 0, direction)
        cells = {"NAME": layout.field_name, "CODE": "", "TIME": start_s, "NUM_POLY": 0, "SOURCE_ID": 0}
        for name, value in {**cells, "FLAG_ROW": False}.items():
            table.putcell(name, 0, value)
    new_ms_subtable("SOURCE", path / "SOURCE")
    with open_table(path / "SOURCE", write=True) as table:
        table.addrows(1)
        _set_frame(table, "DIRECTION")
        span_s = layout.integration_s * len(layout.times_mjd)
        cells = {
            "SOURCE_ID": 0,
            "TIME": start_s + 0.5 * span_s,
            "INTERVAL": span_s,
            "SPECTRAL_WINDOW_ID": -1,
            "NUM_LINES": 0,
            "NAME": layout.field_name,
            "CALIBRATION_GROUP": 0,
            "CODE": "",
            "DIRECTION": direction[0],
            "PROPER_MOTION": np.zeros(2),
        }
        for name, value in cells.items():
            table.putcell(name, 0, value)
    with open_table(path, write=True) as table:
        table.putkeyword("SOURCE", f"Table: {(path / 'SOURCE').resolve()}")


def _fill_observation(path: Path, layout: MsLayout) -> None:
    times_s = layout.times_mjd * SECONDS_PER_DAY
    half = 0.5 * layout.integration_s
    with open_table(path / "OBSERVATION", write=True) as table:
        table.addrows(1)
        cells = {
            "TELESCOPE_NAME": layout.telescope,
            "TIME_RANGE": np.array([times_s[0] - half, times_s[-1] + half]),
            "OBSERVER": "drift scan",
            "PROJECT": "",
            "SCHEDULE_TYPE": "",
            "RELEASE_DATE": 0.0,
            "FLAG_ROW": False,
        }
        for name, value in cells.items():
            table.putcell(name, 0, value)
        table.putcell("LOG", 0, [""])
        table.putcell("SCHEDULE", 0, [""])
    with open_table(path / "STATE", write=True) as table:
        table.addrows(1)
        cells = {"SIG": True, "REF": False, "CAL": 0.0, "LOAD": 0.0, "SUB_SCAN": 0, "FLAG_ROW": False}
        for name, value in {**cells, "OBS_MODE": "OBSERVE_TARGET#ON_SOURCE"}.items():
            table.putcell(name, 0, value)
    with open_table(path / "PROCESSOR", write=True) as table:
        table.addrows(1)
        cells = {"TYPE": "CORRELATOR", "SUB_TYPE": "", "TYPE_ID": -1, "MODE_ID": -1, "FLAG_ROW": False}
        for name, value in cells.items():
            table.putcell(name, 0, value)


def _fill_pointing(path: Path, layout: MsLayout) -> None:
    """The dishes stood still while the sky went by: one direction for each integration and antenna."""
    used = np.union1d(layout.antenna1, layout.antenna2).astype(np.int32)
    n_times, count = len(layout.times_mjd), len(used)
    rows = n_times * count
    directions = np.repeat(np.radians(layout.pointing_deg), count, axis=0)[:, None, :]
    times_s = np.repeat(layout.times_mjd * SECONDS_PER_DAY, count)
    with open_table(path / "POINTING", write=True) as table:
        table.addrows(rows)
        for name in ("DIRECTION", "TARGET"):
            _set_frame(table, name)
            table.putcol(name, directions)
        table.putcol("ANTENNA_ID", np.tile(used, n_times))
        table.putcol("TIME", times_s)
        table.putcol("TIME_ORIGIN", times_s)
        table.putcol("INTERVAL", np.full(rows, layout.integration_s))
        table.putcol("NUM_POLY", np.zeros(rows, np.int32))
        table.putcol("TRACKING", np.zeros(rows, bool))


def _fill_history(path: Path, layout: MsLayout) -> None:
    with open_table(path / "HISTORY", write=True) as table:
        for row, line in enumerate(layout.history):
            table.addrows(1)
            cells = {
                "TIME": float(layout.times_mjd[-1] * SECONDS_PER_DAY),
                "OBSERVATION_ID": 0,
                "MESSAGE": line,
                "PRIORITY": "INFO",
                "ORIGIN": "nightbeam",
                "OBJECT_ID": 0,
                "APPLICATION": "nightbeam convert",
            }
            for name, value in cells.items():
                table.putcell(name, row, value)
            table.putcell("CLI_COMMAND", row, [""])
            table.putcell("APP_PARAMS", row, [""])


def _fill_main(path: Path, layout: MsLayout) -> None:
    """Add the rows. An incremental column repeats its last value in new rows, so each value is put once."""
    n_bls = len(layout.antenna1)
    constants = {
        "INTERVAL": layout.integration_s,
        "EXPOSURE": layout.integration_s,
        "SCAN_NUMBER": 1,
        **dict.fromkeys(("FIELD_ID", "ARRAY_ID", "OBSERVATION_ID", "STATE_ID", "PROCESSOR_ID", "FEED1", "FEED2"), 0),
    }
    with open_table(path, write=True) as table:
        row = 0
        for window in range(len(layout.windows)):
            for time_s in layout.times_mjd * SECONDS_PER_DAY:
                table.addrows(1)
                for name, value in (constants if row == 0 else {}).items():
                    table.putcell(name, row, value)
                table.putcell("DATA_DESC_ID", row, window)
                table.putcell("TIME", row, time_s)
                table.putcell("TIME_CENTROID", row, time_s)
                table.addrows(n_bls - 1)
                row += n_bls
        repeats = len(layout.windows) * len(layout.times_mjd)
        table.putcol("ANTENNA1", np.tile(layout.antenna1.astype(np.int32), repeats))
        table.putcol("ANTENNA2", np.tile(layout.antenna2.astype(np.int32), repeats))
        if table.nrows() != layout.n_rows:
            raise InputError(f"{path} has {table.nrows()} rows, wanted {layout.n_rows}", fix="report this fault")


def put_row_flags(path: Path, row_flag: NDArray[np.bool_]) -> None:
    """Fill FLAG_ROW: rows whose every visibility is flagged."""
    with open_table(path, write=True) as table:
        table.putcol("FLAG_ROW", row_flag)
