"""What is inside a Measurement Set, what is expected of one, and the rows that are worked on at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ModelFunction",
    "MsAntenna",
    "MsExpectation",
    "MsField",
    "MsLayout",
    "MsSummary",
    "RowBlock",
    "SpectralWindow",
]


@dataclass(frozen=True, slots=True)
class MsAntenna:
    """One row of ANTENNA; ``index`` is the number that the main table uses."""

    index: int
    name: str
    position_m: tuple[float, float, float]
    diameter_m: float
    mount: str


@dataclass(frozen=True, slots=True)
class MsField:
    """One row of FIELD: the phase centre, in degrees of the frame ``frame`` (``J2000`` or ``ICRS``)."""

    index: int
    name: str
    ra_deg: float
    dec_deg: float
    frame: str


@dataclass(frozen=True, slots=True)
class SpectralWindow:
    """One row of SPECTRAL_WINDOW: channel centres and their (positive) widths in Hz."""

    index: int
    freqs_hz: tuple[float, ...]
    widths_hz: tuple[float, ...]
    name: str = ""

    @property
    def low_hz(self) -> float:
        """Lower edge of the window."""
        return min(f - 0.5 * abs(w) for f, w in zip(self.freqs_hz, self.widths_hz, strict=True))

    @property
    def high_hz(self) -> float:
        """Upper edge of the window."""
        return max(f + 0.5 * abs(w) for f, w in zip(self.freqs_hz, self.widths_hz, strict=True))


@dataclass(frozen=True)
class MsSummary:
    """What a Measurement Set holds.

    Attributes
    ----------
    n_chan
        Channels of the first window; all windows of a set that we wrote have as many.
    antennas
        Every antenna of the array, also those without data.
    active_antennas
        Indices of those that occur in the main table.
    start_mjd, mid_mjd, end_mjd
        UTC days: beginning of the first integration, middle, end of the last.
    freq_low_hz, freq_high_hz
        Outer edges of all windows.
    flagged_fraction
        Of the cross-correlations; NaN where it was not asked for.
    columns
        Of the main table.
    """

    path: Path
    telescope: str
    rows: int
    n_spw: int
    n_chan: int
    n_pol: int
    n_times: int
    antennas: tuple[MsAntenna, ...]
    active_antennas: tuple[int, ...]
    fields: tuple[MsField, ...]
    windows: tuple[SpectralWindow, ...]
    start_mjd: float
    mid_mjd: float
    end_mjd: float
    integration_s: float
    freq_low_hz: float
    freq_high_hz: float
    flagged_fraction: float
    columns: tuple[str, ...]

    @property
    def has_model(self) -> bool:
        """Whether there is a MODEL_DATA column."""
        return "MODEL_DATA" in self.columns

    @property
    def has_corrected(self) -> bool:
        """Whether there is a CORRECTED_DATA column."""
        return "CORRECTED_DATA" in self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class MsExpectation:
    """What a Measurement Set must be to be trusted; None means: not looked at.

    ``ra_deg`` and ``dec_deg`` are held against the first field, to 1 arcsec.
    """

    rows: int | None = None
    n_spw: int | None = None
    n_chan: int | None = None
    n_pol: int | None = None
    antennas: int | None = None
    telescope: str | None = None
    ra_deg: float | None = None
    dec_deg: float | None = None
    ascending: bool = True
    max_flagged_fraction: float | None = None
    columns: tuple[str, ...] = ("DATA",)


@dataclass(frozen=True)
class RowBlock:
    """Some rows of one spectral window, as they are handed to whoever makes a model for them.

    Attributes
    ----------
    rows : (row,)
        Row numbers in the main table.
    window
        Which spectral window.
    freqs_hz : (chan,)
    n_pol
        Polarization products.
    time_mjd : (row,)
        Days, UTC, mid-integration.
    antenna1, antenna2 : (row,)
    uvw_m : (row, 3)
        Position of ``antenna1`` minus position of ``antenna2``; the data are
        ``S exp(+2 pi i (u l + v m + w (n-1)) nu/c)``.
    field_id : (row,)
    """

    rows: NDArray[np.int64]
    window: int
    freqs_hz: NDArray[np.float64]
    n_pol: int
    time_mjd: NDArray[np.float64]
    antenna1: NDArray[np.int64]
    antenna2: NDArray[np.int64]
    uvw_m: NDArray[np.float64]
    field_id: NDArray[np.int64]


#: From rows to model visibilities (Jy) of a shape that broadcasts to (row, chan, pol).
ModelFunction = Callable[[RowBlock], NDArray[np.complexfloating]]


@dataclass(frozen=True, kw_only=True)
class MsLayout:
    """All of a new Measurement Set but its visibilities, weights, flags and uvw.

    Rows are grouped by window, then by time, then by baseline; all windows have the same number of channels.

    Attributes
    ----------
    antennas
        Absolute ITRF positions.
    ra_deg, dec_deg
        The one phase centre, ICRS.
    windows
        In ascending frequency.
    times_mjd : (time,)
        Days, UTC, mid-integration.
    antenna1, antenna2 : (baseline,)
    corr_types
        Stokes codes of CASA: 9 XX, 12 YY.
    pointing_deg : (time, 2)
        Where all dishes pointed, ICRS.
    """

    telescope: str
    antennas: tuple[MsAntenna, ...]
    field_name: str
    ra_deg: float
    dec_deg: float
    windows: tuple[SpectralWindow, ...]
    times_mjd: NDArray[np.float64]
    integration_s: float
    antenna1: NDArray[np.int32]
    antenna2: NDArray[np.int32]
    corr_types: tuple[int, ...]
    pointing_deg: NDArray[np.float64]
    history: tuple[str, ...]

    @property
    def n_chan(self) -> int:
        """Channels of each window."""
        return len(self.windows[0].freqs_hz)

    @property
    def n_pol(self) -> int:
        """Polarization products."""
        return len(self.corr_types)

    @property
    def window_rows(self) -> int:
        """Rows of each window."""
        return len(self.times_mjd) * len(self.antenna1)

    @property
    def n_rows(self) -> int:
        """Rows of the set."""
        return len(self.windows) * self.window_rows
