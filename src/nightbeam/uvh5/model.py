"""Subband files, the observation that some of them make, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nightbeam.sky.model import Site

__all__ = [
    "FILE_SIGN",
    "TELESCOPE",
    "ConvertReport",
    "MsWriter",
    "Observation",
    "PhaseTrack",
    "SubbandHeader",
    "WriterName",
    "WriterTimes",
]

#: The name by which the correlator of DSA-110 (and casacore's table of observatories) calls the array.
TELESCOPE = "OVRO_MMA"

#: The sign s of the exponent in a file's visibilities, ``S exp(s 2 pi i (u l + v m + w (n-1)) nu/c)`` with the
#: baseline position(ant_2) - position(ant_1). This is the one place: turn it over if real data prove it wrong.
FILE_SIGN = 1

WriterName = Literal["direct-subband", "pyuvdata", "auto"]


@dataclass(frozen=True)
class SubbandHeader:
    """What one subband file says of itself.

    Attributes
    ----------
    subband
        From its name, NN of ``_sbNN``; None where the name says nothing.
    start_jd, mid_jd, times_jd
        Middle of the first integration, mean of the first and the last, and all of them: JD, UTC.
    freqs_hz : (channel,)
        Channel centres in the file's order (falling in files of the correlator).
    dec_rad
        Apparent declination of the pointing.
    ant_numbers
        Indices (station - 1) of the antennas with data, in the correlator's order.
    antenna_positions_m : (antenna, 3)
        ITRF minus the array centre, of every antenna of the array.
    ant_1, ant_2 : (baseline,)
        Ends of the baselines, as indices into the antennas, in the order of the rows of one integration.
    """

    path: Path
    subband: int | None
    telescope: str
    start_jd: float
    mid_jd: float
    times_jd: tuple[float, ...]
    freqs_hz: NDArray[np.float64]
    channel_width_hz: float
    integration_s: float
    dec_rad: float
    ant_numbers: tuple[int, ...]
    antenna_names: tuple[str, ...]
    antenna_positions_m: NDArray[np.float64]
    antenna_diameters_m: NDArray[np.float64]
    ant_1: NDArray[np.int64]
    ant_2: NDArray[np.int64]
    longitude_deg: float
    latitude_deg: float
    altitude_m: float
    n_blts: int
    n_bls: int
    n_pols: int
    polarizations: tuple[int, ...]
    history: str = ""

    @property
    def site(self) -> Site:
        """Where the array stands."""
        return Site(self.longitude_deg, self.latitude_deg, self.altitude_m)

    @property
    def layout(self) -> str:
        """What all files of one observation have in common beside times and pointing, in words."""
        stations = _ranges(sorted(number + 1 for number in self.ant_numbers))
        return (
            f"{self.n_times} integrations of {self.integration_s:.3f} s, "
            f"{len(self.ant_numbers)} antennas ({stations}), {self.n_bls} baselines, "
            f"{self.n_freqs} channels of {self.channel_width_hz:.3f} Hz, "
            f"polarizations {' '.join(str(p) for p in self.polarizations)}"
        )

    @property
    def n_times(self) -> int:
        """Integrations in the file."""
        return len(self.times_jd)

    @property
    def n_freqs(self) -> int:
        """Channels in the file."""
        return len(self.freqs_hz)


@dataclass(frozen=True)
class Observation:
    """Files that are one observation, in ascending frequency; ``missing`` are the subbands that are not there."""

    headers: tuple[SubbandHeader, ...]
    subbands: tuple[int, ...]
    missing: tuple[int, ...]

    @property
    def first(self) -> SubbandHeader:
        """Any header: all but frequencies and paths are equal."""
        return self.headers[0]

    @property
    def n_rows(self) -> int:
        """Rows of the Measurement Set."""
        return len(self.headers) * self.first.n_blts


@dataclass(frozen=True)
class PhaseTrack:
    """One phase centre as seen by the array in each integration.

    Attributes
    ----------
    ra_deg, dec_deg
        ICRS.
    uvw_m : (time, baseline, 3)
        Position of the file's ant_2 minus that of ant_1 for the new centre; v points to ICRS north.
    path_m : (time, baseline)
        w of the new centre minus the w that the correlator took out.
    pointing_deg : (time, 2)
        Where the dishes pointed: the meridian at each time, ICRS.
    """

    ra_deg: float
    dec_deg: float
    uvw_m: NDArray[np.float64]
    path_m: NDArray[np.float64]
    pointing_deg: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WriterTimes:
    """Seconds of wall clock that reading, rotating and writing took; summed over workers, then divided by them."""

    load_s: float
    phase_s: float
    write_s: float


class MsWriter(Protocol):
    """A strategy: from an observation and its phase track to a Measurement Set under a temporary name."""

    name: str

    def write(self, observation: Observation, track: PhaseTrack, ms: Path, *, max_workers: int) -> WriterTimes:
        """Write ``ms``, which does not exist yet.

        Raises
        ------
        RejectedError
            If a subband holds nothing but zeros or NaN.
        """


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion made.

    Attributes
    ----------
    writer_type
        The strategy that wrote it, for the queue's ``performance_metrics``.
    missing_subbands
        Those that the group should have had.
    start_mjd, mid_mjd, end_mjd
        UTC days: beginning of the first integration, middle, end of the last.
    ra_deg, dec_deg
        Phase centre, ICRS.
    flagged_fraction
        Of the cross-correlations.
    load_s, phase_s, write_s, total_s
        Measured wall seconds; those of an earlier run where ``reused``.
    reused
        Whether a finished Measurement Set of the same inputs was there already.
    """

    ms: Path
    writer_type: str
    rows: int
    n_spw: int
    missing_subbands: tuple[int, ...]
    start_mjd: float
    mid_mjd: float
    end_mjd: float
    ra_deg: float
    dec_deg: float
    flagged_fraction: float
    load_s: float
    phase_s: float
    write_s: float
    total_s: float
    reused: bool = False


def _ranges(numbers: list[int]) -> str:
    """Return rising numbers in words, such as ``1-9 11 20-51``."""
    runs: list[list[int]] = []
    for number in numbers:
        if not runs or number != runs[-1][1] + 1:
            runs.append([number, number])
        runs[-1][1] = number
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
