"""What is to be simulated, what goes wrong on purpose, and what is true of the files written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import MissingError, UsageError
from nightbeam.sky import DISH_DIAMETER_M, BeamModel, Site

__all__ = [
    "ARRIVAL_KINDS",
    "DUPLICATE_KINDS",
    "FAULT_KINDS",
    "FOREIGN_KINDS",
    "POLARIZATIONS",
    "ArrivalKind",
    "Bandpass",
    "DuplicateKind",
    "ExpectedSource",
    "Fault",
    "FaultKind",
    "FileOutcome",
    "ForeignKind",
    "Gain",
    "GroupOutcome",
    "SimulationSpec",
    "SkySource",
    "StatedOutcome",
    "StationTable",
    "SubbandBlock",
    "Truth",
    "TruthArray",
    "TruthArrival",
    "TruthFault",
    "TruthGroup",
]

Floats = NDArray[np.float64]
POLARIZATIONS = ("XX", "YY")
FaultKind = Literal[
    "missing-subband",
    "late-subband",
    "dead-antenna",
    "duplicate-subband",
    "truncated-subband",
    "zero-byte",
    "nan-block",
    "restart-gap",
    "clock-jump",
    "rfi-line",
    "rfi-burst",
    "wrong-pointing",
    "foreign-file",
]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
#: What a foreign file may be.
ForeignKind = Literal["text", "no-header", "shape", "extra-subband", "spl", "hidden", "incomplete"]
FOREIGN_KINDS: tuple[ForeignKind, ...] = get_args(ForeignKind)
#: How a subband comes a second time: under another name, or under its own.
DuplicateKind = Literal["renamed", "rewritten"]
DUPLICATE_KINDS: tuple[DuplicateKind, ...] = get_args(DuplicateKind)
#: How files come: as evenly as the correlator intends, or as they did in the winter of 2026.
ArrivalKind = Literal["regular", "real"]
ARRIVAL_KINDS: tuple[ArrivalKind, ...] = get_args(ArrivalKind)
#: What an ingest should do with one file: use it, record it as a second one, refuse it with a reason, or not see it.
FileOutcome = Literal["used", "duplicate", "bad", "ignored"]
#: What should become of a group: all its subbands can be imaged; some never can; nothing of it ever comes.
GroupOutcome = Literal["completed", "incomplete", "absent"]
_FAULT = re.compile(r"(?P<kind>[a-z-]+)(:(?P<number>\d+))?(=(?P<value>[-+.\w/]+))?(@(?P<group>\d+))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong on purpose.

    Attributes
    ----------
    kind
        One of `FAULT_KINDS`; the page of ``nightbeam simulate subbands`` says what each does.
    number
        Subband, station (``dead-antenna``) or integration (``rfi-burst``); None: drawn with the seed, but for
        ``restart-gap``, which has none, and ``wrong-pointing``, where it means the whole group.
    group
        Which group, from 0; None: every group for an antenna, a line of interference, and all that has a
        number; one that is drawn for the others.
    value
        What the kind needs beside: seconds, degrees, Jy, a fraction, or a word; None: its default.
    """

    kind: FaultKind
    number: int | None = None
    group: int | None = None
    value: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the fault that ``text`` names: ``KIND[:NUMBER][=VALUE][@GROUP]``.

        Raises
        ------
        UsageError
            If there is no such kind, or it is not written like this.
        """
        found = _FAULT.fullmatch(text.strip())
        kind = next((k for k in FAULT_KINDS if found and k == found["kind"]), None)
        if not found or kind is None:
            raise UsageError(
                f"no fault {text!r}",
                fix=f"write {', '.join(FAULT_KINDS)}, with :NUMBER, =VALUE and @GROUP, as in clock-jump:5=82@1",
            )
        number, group = (None if found[name] is None else int(found[name]) for name in ("number", "group"))
        return cls(kind, number, group, found["value"])

    def __str__(self) -> str:
        parts = ((":", self.number), ("=", self.value), ("@", self.group))
        return self.kind + "".join(f"{sign}{part}" for sign, part in parts if part is not None)


@dataclass(frozen=True, slots=True)
class SkySource:
    """An unpolarised point source: ICRS, flux at 1.405 GHz, S ~ nu ** spectral_index."""

    name: str
    ra_deg: float
    dec_deg: float
    flux_jy: float
    spectral_index: float = 0.0


@dataclass(frozen=True, slots=True)
class ExpectedSource:
    """What an image of one group should show of a source.

    ``apparent_jy`` is its peak in an image without beam correction, ``flux_jy`` in a perfectly corrected one; both
    are means over all channels and integrations that the group has. ``sep_deg`` is from the group's centre.
    """

    name: str
    ra_deg: float
    dec_deg: float
    sep_deg: float
    apparent_jy: float
    flux_jy: float


@dataclass(frozen=True, kw_only=True)
class SimulationSpec:
    """What to simulate; every field has the value of a full-size DSA-110 observation.

    Attributes
    ----------
    groups, antennas, channels, subbands, integrations
        How many; channels are per subband and always fill its 11.71875 MHz.
    stations
        Which stations, instead of ``antennas`` chosen ones.
    dec_deg
        Apparent declination at which the array points; None: the calibrator's, else 54.57 (a real strip).
    start
        Middle of the first integration of the first group or, with a calibrator, the earliest that may be.
    calibrator
        A name of the VLA list. It crosses the meridian in the middle of group ``calibrator_group``.
    calibrator_flux_jy
        Instead of the list's flux. Its spectral index is 0, as nothing else is listed.
    stride
        Write only every so many-th observation of the 309.24 s cadence; or how many come between a group and the next,
        for each, the last number for all that follow.
    sources
        How many to draw around the centre of each group, or which.
    calibrator_sources
        How many to draw around the centre of the calibrator's group; None: as in the others.
    source_radius_deg, source_flux_jy
        Where drawn sources lie and how bright they are (log-uniform).
    noise
        ``"radiometer"``: from a system equivalent flux density of 6500 Jy; a number: standard deviation
        of the real and of the imaginary part of one visibility, in Jy; None: no noise.
    gains
        False: unit gains, flat bandpass, no delays; the files then hold Jy.
    gain_scale
        Typical amplitude of an antenna gain; real raw data have 0.07.
    delay_rms_ns
        Scatter of residual delays; the correlator applies delays, so that none are left in real data.
    rate
        Files appear this many times faster than at the telescope; 0: at once.
    fault_rate
        In what part of the groups something goes wrong, whatever it is: each kind at least once where there
        are enough groups, one fault a group, none in that of the calibrator.
    arrivals
        ``"real"``: breaks between groups, spreads of names and of arrivals, and incomplete groups as often as
        at the telescope; ``"regular"``: spreads of names only.
    """

    groups: int = 1
    antennas: int = 96
    stations: tuple[int, ...] | None = None
    channels: int = 48
    subbands: int = 16
    integrations: int = 24
    dec_deg: float | None = None
    start: datetime = datetime(2025, 10, 3, 11, 48, 57, tzinfo=UTC)
    calibrator: str | None = None
    calibrator_group: int = 0
    calibrator_flux_jy: float | None = None
    stride: int | tuple[int, ...] = 1
    sources: int | tuple[SkySource, ...] = 10
    calibrator_sources: int | None = None
    source_radius_deg: float = 0.6
    source_flux_jy: tuple[float, float] = (0.1, 1.0)
    noise: float | Literal["radiometer"] | None = "radiometer"
    gains: bool = True
    gain_scale: float = 0.07
    delay_rms_ns: float = 0.0
    beam: BeamModel = "dsacalib"
    faults: tuple[Fault, ...] = ()
    seed: int = 0
    rate: float = 0.0
    fault_rate: float = 0.0
    arrivals: ArrivalKind = "regular"

    def observation(self, index: int) -> int:
        """Return which observation of the cadence a group is, counted from that of the first group."""
        strides = self.stride if isinstance(self.stride, tuple) else (self.stride,)
        return sum(strides[min(k, len(strides) - 1)] for k in range(index))


@dataclass(frozen=True)
class StationTable:
    """Where the dishes stand: ``number`` (n,) from 1, ``positions_m`` (n, 3) ITRF minus the array centre."""

    number: NDArray[np.int64]
    arm: tuple[str, ...]
    active: NDArray[np.bool_]
    positions_m: Floats


@dataclass(frozen=True)
class SubbandBlock:
    """All that one subband file holds.

    Attributes
    ----------
    vis : (time, baseline, channel, pol), complex64
        Raw visibilities.
    times_jd : (time,)
        Middles of the integrations, UTC.
    freqs_hz : (channel,)
        Channel centres, falling.
    ant1, ant2 : (baseline,)
        Station number minus one.
    uvw_m : (baseline, 3)
        Position of ``ant2`` minus that of ``ant1``, for hour angle 0 and ``dec_rad``.
    applied_delays_ns : (2 * station,)
        What the correlator took out, both polarizations of each station in turn.
    """

    vis: NDArray[np.complex64]
    times_jd: Floats
    freqs_hz: Floats
    channel_width_hz: float
    integration_s: float
    ant1: NDArray[np.int64]
    ant2: NDArray[np.int64]
    uvw_m: Floats
    dec_rad: float
    site: Site
    positions_m: Floats
    applied_delays_ns: NDArray[np.int64]
    history: str
    diameter_m: float = DISH_DIAMETER_M


@dataclass(frozen=True, slots=True)
class TruthArray:
    """The instrument as simulated; ``stations`` are those with data, in the correlator's order."""

    telescope: str
    longitude_deg: float
    latitude_deg: float
    height_m: float
    stations: tuple[int, ...]
    subbands: int
    channels: int
    integrations: int
    integration_s: float
    channel_width_hz: float
    dec_apparent_deg: float


@dataclass(frozen=True, slots=True)
class TruthGroup:
    """One observation: its times (UTC, middles of integrations), its centre (ICRS) and its files.

    Attributes
    ----------
    files
        The one file of each subband that comes at all, whole or not; copies and foreign files are in
        `Truth.arrivals`.
    integrations
        How many its files hold; fewer than the array's before a restart.
    usable
        Subbands that can be imaged once they have come.
    header_dec_deg
        What the headers say of the pointing; other than the array's where that is the fault.
    outcome, reason
        What should become of it, and why if it is not ``completed``. How an incomplete group ends is a matter
        of policy: see `stated_outcome`.
    """

    group_id: str
    start_jd: float
    mid_jd: float
    end_jd: float
    ra_deg: float
    dec_deg: float
    files: tuple[str, ...]
    missing: tuple[int, ...]
    late: tuple[int, ...]
    dead_stations: tuple[int, ...]
    calibrator: str | None
    integrations: int
    usable: tuple[int, ...]
    header_dec_deg: float
    outcome: GroupOutcome = "completed"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TruthArrival:
    """One file that gets its final name.

    Attributes
    ----------
    arrival_s
        When, in seconds of the telescope after ``start_jd`` of the first group.
    name
        The name; not unique, as a file may be written again.
    group_id
        Of which observation it is, or beside which a foreign file comes.
    subband
        Which one it holds; None for a foreign file.
    outcome, reason
        What an ingest should do with it, and why if that is not to use it. A file that is ``used`` may still come
        too late for its group: see `stated_outcome`.
    faults
        Those of `Truth.faults` that made it what it is.
    """

    arrival_s: float
    name: str
    group_id: str
    subband: int | None
    outcome: FileOutcome = "used"
    reason: str = ""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TruthFault:
    """One fault in one group, and what it should lead to; arrays that it does not concern are empty.

    Attributes
    ----------
    fault, kind, group_id
        As settled, what, and where.
    what
        The same in words.
    subbands
        Whose files are touched.
    files
        Their names, or those that the fault adds.
    file_outcome
        What an ingest should do with these files; None: they never come.
    group_outcome
        What the fault leads to for the group if nothing else goes wrong in it.
    flagged
        Whether samples of the files should end up flagged: by conversion where they are NaN or 0,
        by a flagger where they are interference.
    channels, freqs_hz
        Places in a file of ``subbands``, in its order, and their frequencies.
    integrations, baselines
        Counted from 0; baselines as rows of an integration in the file's order, first and one past the last.
    stations
        Station numbers.
    value
        Seconds, degrees, Jy or fraction, as ``what`` says.
    """

    fault: str
    kind: FaultKind
    group_id: str
    what: str
    subbands: tuple[int, ...] = ()
    files: tuple[str, ...] = ()
    file_outcome: FileOutcome | None = "used"
    group_outcome: GroupOutcome = "completed"
    flagged: bool = False
    channels: tuple[int, ...] = ()
    freqs_hz: tuple[float, ...] = ()
    integrations: tuple[int, ...] = ()
    baselines: tuple[int, ...] = ()
    stations: tuple[int, ...] = ()
    value: float | None = None


@dataclass(frozen=True, slots=True)
class StatedOutcome:
    """How a group should end under one policy, with the subbands that were used and those that came too late."""

    state: Literal["completed", "partial", "failed", "absent"]
    used: tuple[int, ...]
    late: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain of one receptor."""

    amp: float
    phase_deg: float


@dataclass(frozen=True, slots=True)
class Bandpass:
    """The bandpass of one receptor as cosine coefficients.

    With x from 0 (low edge of the band) to 1 (high edge): amplitude ``1 + sum_k amp[k-1] cos(pi k x)``, phase
    ``sum_k phase_deg[k-1] cos(pi k x)``. Its mean over the whole band is amplitude 1 and phase 0.
    """

    amp: tuple[float, ...]
    phase_deg: tuple[float, ...]


PerReceptor = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Truth:
    """Everything that is true of a set of simulated files; written beside them as ``truth.json``.

    ``gains``, ``bandpass`` and ``delays_ns`` are keyed by station (``"24"``), then by polarization
    (``"XX"``); empty where files were simulated without them. ``faults`` are as they were settled, ``events``
    what each does in each group, ``arrivals`` all files in the order in which they come.
    """

    seed: int
    array: TruthArray
    sources: tuple[SkySource, ...]
    beam: Mapping[str, Any]
    groups: tuple[TruthGroup, ...]
    gains: Mapping[str, Mapping[str, Gain]]
    bandpass: Mapping[str, Mapping[str, Bandpass]]
    delays_ns: Mapping[str, Mapping[str, float]]
    noise_jy: float | None
    band_hz: tuple[float, float]
    faults: tuple[str, ...] = ()
    reference_freq_hz: float = 1.405e9
    conventions: Mapping[str, str] = field(default_factory=dict)
    version: int = 1
    events: tuple[TruthFault, ...] = ()
    arrivals: tuple[TruthArrival, ...] = ()

    def group(self, group_id: str) -> TruthGroup:
        """Return the group of that name.

        Raises
        ------
        MissingError
            If there is none.
        """
        for group in self.groups:
            if group.group_id == group_id:
                return group
        known = ", ".join(g.group_id for g in self.groups)
        raise MissingError(f"no group {group_id!r} was simulated", fix=f"choose one of {known}")

    def receptor_gain(self, freqs_hz: Floats, station: int, pol: str) -> NDArray[np.complex128]:
        """Return the whole response g (gain, bandpass and delay) of one receptor at frequencies.

        Parameters
        ----------
        freqs_hz : (n,)
        station, pol
            Station number and ``"XX"`` or ``"YY"``.

        Returns
        -------
        (n,), complex
            A file holds ``V_raw = g_i conj(g_j) V`` for ant_1 = i, ant_2 = j. A Measurement Set holds the
            conjugate visibilities, hence solutions there are conj(g).
        """
        freqs = np.asarray(freqs_hz, float)
        if not self.gains:
            return np.ones(freqs.shape, complex)
        gain, band = self.gains[str(station)][pol], self.bandpass[str(station)][pol]
        low, high = self.band_hz
        waves = np.cos(np.pi * np.outer((freqs - low) / (high - low), np.arange(1, len(band.amp) + 1)))
        amp = gain.amp * (1.0 + waves @ np.array(band.amp))
        turn = 2.0 * np.pi * self.delays_ns[str(station)][pol] * 1e-9 * (freqs - 0.5 * (low + high))
        phase = np.radians(gain.phase_deg + waves @ np.array(band.phase_deg)) + turn
        return np.asarray(amp * np.exp(1j * phase), complex)
