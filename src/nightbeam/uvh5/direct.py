"""The default writer: every subband straight from its file into its rows, several at a time, in little memory."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import RejectedError
from nightbeam.ms.model import MsAntenna, MsLayout, SpectralWindow
from nightbeam.ms.writing import RowSink, RowValues, create_ms, new_rows, put_row_flags
from nightbeam.sky import SPEED_OF_LIGHT_M_S, itrf_from_site
from nightbeam.uvh5.compute import conjugate_rows, rotation_sign
from nightbeam.uvh5.files import DataBlock, open_data
from nightbeam.uvh5.model import Observation, PhaseTrack, SubbandHeader, WriterTimes

__all__ = ["DirectWriter", "ms_layout"]

#: Rows of one step of a worker: 1 MB in, 1.2 MB out, so that both stay in the processor's cache.
_BLOCK_ROWS = 1024
_CORR_TYPES = {-5: 9, -6: 12}  # AIPS's XX, YY to CASA's


@dataclass
class _Rows:
    """Geometry of the rows of one window; the same for all windows. One array each, (row, ...)."""

    uvw_m: NDArray[np.float64]
    path_m: NDArray[np.float64]
    conjugate: NDArray[np.bool_]
    auto: NDArray[np.bool_]


@dataclass
class _Clock:
    """Seconds that one worker spent on each kind of work."""

    seconds: dict[str, float] = field(default_factory=lambda: {"load": 0.0, "phase": 0.0, "write": 0.0})
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, kind: str) -> None:
        now = time.perf_counter()
        self.seconds[kind] += now - self._since
        self._since = now


class DirectWriter:
    """One window to a subband, written by threads that meet only where casacore makes the tables."""

    name = "direct-subband"

    def write(self, observation: Observation, track: PhaseTrack, ms: Path, *, max_workers: int) -> WriterTimes:
        """Write ``ms``; see `nightbeam.uvh5.model.MsWriter`."""
        layout = ms_layout(observation, track)
        begin = time.perf_counter()
        create_ms(ms, layout)
        made_s = time.perf_counter() - begin
        rows = _rows(observation.first, track)
        workers = max(1, min(max_workers, len(observation.headers), os.cpu_count() or 1))
        flags = np.empty(layout.n_rows, bool)
        with new_rows(ms, layout) as sink, ThreadPoolExecutor(workers, thread_name_prefix="subband") as pool:
            jobs = [
                pool.submit(_convert_subband, header, rows, sink, window * layout.window_rows, flags)
                for window, header in enumerate(observation.headers)
            ]
            try:
                clocks = [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        begin = time.perf_counter()
        put_row_flags(ms, flags)
        made_s += time.perf_counter() - begin
        spent = {kind: sum(c.seconds[kind] for c in clocks) / workers for kind in ("load", "phase", "write")}
        return WriterTimes(load_s=spent["load"], phase_s=spent["phase"], write_s=spent["write"] + made_s)


def ms_layout(observation: Observation, track: PhaseTrack) -> MsLayout:
    """Return the Measurement Set that an observation becomes."""
    first = observation.first
    one, two = first.ant_1, first.ant_2
    centre = itrf_from_site(first.site)
    names = [str(h.path.name) for h in observation.headers]
    return MsLayout(
        telescope=first.telescope,
        antennas=tuple(
            MsAntenna(k, name, _triple(centre + position), float(diameter), "ALT-AZ")
            for k, (name, position, diameter) in enumerate(
                zip(first.antenna_names, first.antenna_positions_m, first.antenna_diameters_m, strict=True)
            )
        ),
        field_name="meridian",
        ra_deg=track.ra_deg,
        dec_deg=track.dec_deg,
        windows=tuple(
            _window(index, subband, header)
            for index, (subband, header) in enumerate(zip(observation.subbands, observation.headers, strict=True))
        ),
        times_mjd=np.array(first.times_jd) - 2400000.5,
        integration_s=first.integration_s,
        antenna1=np.minimum(one, two).astype(np.int32),
        antenna2=np.maximum(one, two).astype(np.int32),
        corr_types=tuple(_CORR_TYPES[p] for p in first.polarizations),
        pointing_deg=track.pointing_deg,
        history=("rotated to one phase centre from: " + " ".join(names), first.history),
    )


def _triple(position: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in position)
    return x, y, z


def _window(index: int, subband: int, header: SubbandHeader) -> SpectralWindow:
    freqs = tuple(float(f) for f in np.sort(header.freqs_hz))
    return SpectralWindow(index, freqs, (header.channel_width_hz,) * len(freqs), f"sb{subband:02d}")


def _rows(header: SubbandHeader, track: PhaseTrack) -> _Rows:
    times = header.n_times
    # ANTENNA1 is the smaller index; UVW = position(ANTENNA1) - position(ANTENNA2).
    flip = np.where(header.ant_1 <= header.ant_2, -1.0, 1.0)[None, :, None]
    return _Rows(
        uvw_m=np.ascontiguousarray((flip * track.uvw_m).reshape(-1, 3)),
        path_m=np.ascontiguousarray(track.path_m.reshape(-1)),
        conjugate=np.tile(conjugate_rows(header.ant_1, header.ant_2), times),
        auto=np.tile(header.ant_1 == header.ant_2, times),
    )


def _convert_subband(
    header: SubbandHeader, rows: _Rows, sink: RowSink, first_row: int, flags: NDArray[np.bool_]
) -> _Clock:
    clock = _Clock()
    counts = np.zeros(3, np.int64)
    with open_data(header) as data:
        for begin, block in data.blocks(_BLOCK_ROWS):
            clock.lap("load")
            values, row_flag = _rotate(header, rows, begin, block, counts)
            clock.lap("phase")
            sink.put(first_row + begin, values)
            flags[first_row + begin : first_row + begin + len(row_flag)] = row_flag
            clock.lap("write")
    _refuse_empty(header, rows, counts)
    return clock


def _rotate(
    header: SubbandHeader, rows: _Rows, begin: int, block: DataBlock, counts: NDArray[np.int64]
) -> tuple[RowValues, NDArray[np.bool_]]:
    from nightbeam.uvh5.kernels import rotate_rows

    shape = block.vis.shape
    part = slice(begin, begin + shape[0])
    cycles_per_hz = rotation_sign() * rows.path_m[part] / SPEED_OF_LIGHT_M_S
    freqs = header.freqs_hz
    step_hz = (freqs[-1] - freqs[0]) / max(len(freqs) - 1, 1)
    values = RowValues(
        data=np.empty(shape, np.complex64),
        flag=np.empty(shape, bool),
        spectrum=np.empty(shape, np.float32),
        weight=np.empty((shape[0], shape[2]), np.float32),
        sigma=np.empty((shape[0], shape[2]), np.float32),
        uvw_m=rows.uvw_m[part],
    )
    row_flag = np.empty(shape[0], bool)
    rotate_rows(
        block.vis, block.flags, block.nsamples,
        2.0 * np.pi * cycles_per_hz * freqs[0], 2.0 * np.pi * cycles_per_hz * step_hz,
        rows.conjugate[part], rows.auto[part], bool(step_hz < 0),
        values.data, values.flag, values.spectrum, values.weight, values.sigma, row_flag, counts,
    )  # fmt: skip
    return values, row_flag


def _refuse_empty(header: SubbandHeader, rows: _Rows, counts: NDArray[Any]) -> None:
    total = int(np.count_nonzero(~rows.auto)) * header.n_freqs * header.n_pols
    zeros, broken, bad = (int(c) for c in counts)
    if bad < total:
        return
    why = f"{zeros} exact zeros, {broken} not finite, {total - zeros - broken} flagged or without weight"
    raise RejectedError(
        f"{header.path} has no usable cross-correlation: of {total} visibilities {why}",
        fix="leave that subband out, or copy it again from the correlator",
    )
