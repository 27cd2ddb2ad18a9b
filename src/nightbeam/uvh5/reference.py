"""The reference writer: the same conversion by pyuvdata, in as much memory as the data need."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError, NightbeamError
from nightbeam.ms.files import iterate_blocks
from nightbeam.uvh5.model import FILE_SIGN, Observation, PhaseTrack, SubbandHeader, WriterTimes

__all__ = ["PyuvdataWriter", "phase_from_meridian", "read_uvdata"]

#: How far to both sides of the centre north is measured. Across pyuvdata's own half degree the meridians converge by
#: up to 5e-5 rad at Dec 54.6; across this step by 6e-9, and rounding adds no more.
_NORTH_STEP_RAD = 1e-6

_NO_CHECKS = {
    "run_check": False,
    "run_check_acceptability": False,
    "check_extra": False,
}


class PyuvdataWriter:
    """`UVData`: read all, phase, write. An independent way to the same Measurement Set, to hold ours against."""

    name = "pyuvdata"

    def write(self, observation: Observation, track: PhaseTrack, ms: Path, *, max_workers: int) -> WriterTimes:
        """Write ``ms``; see `nightbeam.uvh5.model.MsWriter`. ``max_workers`` makes no difference."""
        del max_workers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an old layout, of missing feeds: known, and mended here
            try:
                begin = time.perf_counter()
                data = read_uvdata(observation)
                load_s = time.perf_counter() - begin
                begin = time.perf_counter()
                phase_from_meridian(data, track)
                phase_s = time.perf_counter() - begin
                begin = time.perf_counter()
                _write(data, observation, ms)
                write_s = time.perf_counter() - begin
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, NightbeamError):
                    raise
                raise InputError(f"pyuvdata refuses the group: {error}", fix="use --writer direct-subband") from error
        return WriterTimes(load_s=load_s, phase_s=phase_s, write_s=write_s)


def phase_from_meridian(data: Any, track: PhaseTrack) -> None:
    """Bring a `UVData` in which each integration is phased to its own meridian to one centre, in place.

    pyuvdata reads the correlator's files as unprojected and would take out the whole geometric phase a
    second time. It is told first what was taken out: one centre for each integration.
    """
    times, index = np.unique(data.time_array, return_inverse=True)
    data.phase_center_catalog = {}
    data.Nphase = 0
    for k, (ra, dec) in enumerate(np.radians(track.pointing_deg)):
        data._add_phase_center(
            f"meridian_{k}", cat_type="sidereal", cat_lon=ra, cat_lat=dec, cat_frame="icrs", cat_id=k
        )
    assert len(times) == len(track.pointing_deg)
    data.phase_center_id_array = index.astype(int)
    data.set_lsts_from_time_array(astrometry_library="erfa")
    data._set_app_coords_helper()
    data.set_uvws_from_antenna_positions(update_vis=False)
    data.phase(
        lon=np.radians(track.ra_deg), lat=np.radians(track.dec_deg), phase_frame="icrs", cat_name="meridian",
        cat_type="sidereal",
    )  # fmt: skip
    _turn_to_north(data)


def _turn_to_north(data: Any) -> None:
    """Measure north at the phase centre itself and turn u and v there; w, and so the data, stay."""
    from pyuvdata.utils import phasing

    data.phase_center_frame_pa = phasing.calc_frame_pos_angle(
        time_array=data.time_array, app_ra=data.phase_center_app_ra, app_dec=data.phase_center_app_dec,
        telescope_loc=data.telescope.location, ref_frame="icrs", offset_pos=_NORTH_STEP_RAD,
    )  # fmt: skip
    data.set_uvws_from_antenna_positions(update_vis=False)


def read_uvdata(observation: Observation) -> Any:
    """Return all files as one `UVData`: a window for each, frequencies ascending, bad values flagged."""
    from pyuvdata import UVData

    first = observation.first
    parts = []
    for header in observation.headers:
        part = UVData()
        part.read(str(header.path), file_type="uvh5", strict_uvw_antpos_check=False, **_NO_CHECKS)
        part.uvw_array = part.uvw_array.astype(float)  # single precision fails the check that joining cannot skip
        parts.append(part)
    data = parts[0]
    if len(parts) > 1:
        data.fast_concat(parts[1:], "freq", inplace=True, **_NO_CHECKS)
    del parts
    data.vis_units = "uncalib"
    data.telescope.set_feeds_from_x_orientation("east", polarization_array=data.polarization_array)
    data.telescope.mount_type = ["alt-az"] * len(first.antenna_names)
    _order_windows(data, observation)
    _flag(data)
    if FILE_SIGN < 0:
        data.data_array = data.data_array.conj()
    return data


def _order_windows(data: Any, observation: Observation) -> None:
    """One window for each subband, frequencies ascending."""
    order = np.argsort(data.freq_array)
    if (np.diff(order) != 1).any():
        data.reorder_freqs(channel_order="freq", run_check=False)
    n_freqs = observation.first.n_freqs
    windows = len(observation.headers)
    data.Nspws = windows
    data.spw_array = np.arange(windows)
    data.flex_spw_id_array = np.repeat(data.spw_array, n_freqs)
    data.eq_coeffs = None


def _flag(data: Any) -> None:
    vis, samples = data.data_array, data.nsample_array
    finite = np.isfinite(vis)
    good = np.isfinite(samples) & (samples > 0)
    data.flag_array |= ~finite | (vis == 0) | ~good
    data.flag_array[data.ant_1_array == data.ant_2_array] = True
    vis[~finite] = 0
    samples[~good] = 1


def _write(data: Any, observation: Observation, ms: Path) -> None:
    data.write_ms(str(ms), **_NO_CHECKS, strict_uvw_antpos_check=False, clobber=False)
    _mend(ms, observation.first)


def _mend(ms: Path, first: SubbandHeader) -> None:
    """Put right what pyuvdata leaves to chance: names, scans, states, weights of flagged data."""
    names = list(first.antenna_names)
    with open_table(ms / "ANTENNA", write=True) as table:
        numbers = table.nrows()
        table.putcol("NAME", names[:numbers])
        table.putcol("STATION", names[:numbers])
        table.putcol("MOUNT", ["ALT-AZ"] * numbers)
        table.putcol("DISH_DIAMETER", first.antenna_diameters_m[:numbers])
    blocks = list(iterate_blocks(ms))
    with open_table(ms, write=True) as table:
        for block in blocks:
            first_row, count = int(block.rows[0]), len(block.rows)
            if int(block.rows[-1]) - first_row + 1 != count:
                raise InputError(f"{ms}: the windows' rows are mixed", fix="use --writer direct-subband")
            weight, row_flag = _weights(*(table.getcol(c, first_row, count) for c in ("WEIGHT_SPECTRUM", "FLAG")))
            table.putcol("WEIGHT", weight, first_row, count)
            table.putcol("SIGMA", (1.0 / np.sqrt(weight)).astype(np.float32), first_row, count)
            table.putcol("FLAG_ROW", row_flag, first_row, count)
            table.putcol("SCAN_NUMBER", np.ones(count, np.int32), first_row, count)


def _weights(spectrum: Any, flag: Any) -> tuple[Any, Any]:
    """Return the mean weight of the unflagged channels (row, pol), and whether all of a row is flagged."""
    good = (~flag).sum(axis=1)
    mean = np.where(flag, 0.0, spectrum).sum(axis=1) / np.maximum(good, 1)
    return np.where(good > 0, mean, 1.0).astype(np.float32), flag.all(axis=(1, 2))
