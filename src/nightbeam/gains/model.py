"""The nouns of interferometer calibration: calibrators, tables, solutions, reports and limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Acceptance",
    "ApplyReport",
    "CalSolutions",
    "CalTable",
    "CalibratorMatch",
    "CatalogueSource",
    "FlagReport",
    "ModelSource",
    "MsLayout",
    "RefantChoice",
    "SolutionReport",
    "SolutionSet",
    "SolveOptions",
    "TableKind",
    "TableStats",
]


class CatalogueSource(Protocol):
    """What a calibrator list says of one source (ICRS degrees, Jy at 20 cm)."""

    @property
    def name(self) -> str:
        """Its name in the list."""

    @property
    def ra_deg(self) -> float:
        """Right ascension."""

    @property
    def dec_deg(self) -> float:
        """Declination."""

    @property
    def flux_jy(self) -> float | None:
        """Flux density, None where the list does not know it."""


@dataclass(frozen=True, slots=True)
class CalibratorMatch:
    """A calibrator near the centre of a group's field.

    ``weighted_flux`` is its flux times the primary beam at ``sep_deg``; ``field_fraction`` its share of
    the beam-weighted flux of all the listed sources in the field.
    """

    name: str
    ra_deg: float
    dec_deg: float
    flux_jy: float
    sep_deg: float = 0.0
    weighted_flux: float = 0.0
    field_fraction: float | None = None
    spectral_index: float = 0.0

    def stored(self) -> dict[str, Any]:
        """Return the form that the queue's database keeps: name, ra_deg, dec_deg, sep_deg, weighted_flux."""
        return {
            "name": self.name,
            "ra_deg": self.ra_deg,
            "dec_deg": self.dec_deg,
            "sep_deg": self.sep_deg,
            "weighted_flux": self.weighted_flux,
        }


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A point source of the model: ICRS degrees, Jy at ``reference_hz``."""

    name: str
    ra_deg: float
    dec_deg: float
    flux_jy: float
    spectral_index: float = 0.0
    reference_hz: float = 1.405e9


class TableKind(StrEnum):
    """What a calibration table corrects, by its type in the registry."""

    DELAY = "K"
    BANDPASS = "BP"
    GAIN = "GA"
    PHASE = "GP"
    SHORT = "2G"

    @property
    def suffix(self) -> str:
        """The end of the table's name."""
        return {"K": "_kcal", "BP": "_bpcal", "GA": "_gacal", "GP": "_gpcal", "2G": "_2gcal"}[self.value]

    @property
    def order_index(self) -> int:
        """Its place among the tables of a set: they are applied in this order."""
        return {"K": 10, "BP": 30, "GA": 40, "GP": 50, "2G": 60}[self.value]

    @property
    def interp(self) -> str:
        """How applycal carries it to other times and channels.

        A bandpass is taken from the nearest time and from its own channel: one without a solution flags
        the data, rather than be guessed from its neighbours. Gains are linear in time and
        constant outside the solved times.
        """
        return "nearest,nearestflag" if self is TableKind.BANDPASS else "linear"


@dataclass(frozen=True, slots=True)
class CalTable:
    """One calibration table of a set."""

    path: Path
    kind: TableKind
    order_index: int
    cal_field: str
    refant: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The limits beyond which a set of solutions warns or fails."""

    warn_snr: float = 10.0
    fail_snr: float = 3.0
    warn_flagged: float = 0.20
    fail_flagged: float = 0.50
    warn_bandpass_flagged: float = 0.03
    fail_bandpass_flagged: float = 0.20
    min_antennas: int = 10
    warn_ratio: float = 1.5
    fail_ratio: float = 5.0
    fail_coherence: float = 0.1
    fail_unsolved: float = 0.50


@dataclass(frozen=True, slots=True)
class SolveOptions:
    """How a set is solved.

    Attributes
    ----------
    refants
        Reference antennas in order of preference; without any, or when none has data, the antenna
        with most unflagged baselines near the core.
    solve_delays
        Solve K first.
    pre_bandpass_interval, gain_interval
        CASA solution intervals of the phases taken out before the bandpass, and of the gains.
    average
        Solve from data over model, averaged over the shortest interval: the same solutions, several times sooner.
    fast_interval
        With one, a second complex gain at this interval, on top of all the others.
    uvrange
        CASA selection of baselines for the solves.
    autoflag
        CASA's automatic flaggers to run first: any of ``"tfcrop"``, ``"rflag"``.
    clip_above
        Raw amplitudes above this are flagged; None: no limit.
    beam_model, dish_diameter_m, drift
        The primary beam of the model; ``drift`` None: as the telescope's name says.
    threads
        Of CASA's child. Its threads wait by spinning: a second one gains little and loses much on a busy machine.
    pointing_dec_deg
        Apparent declination at which a drifting array points; None: that of the phase centre.
    """

    refants: tuple[str, ...] = ("103",)
    solve_delays: bool = False
    pre_bandpass_interval: str = "60s"
    gain_interval: str = "inf"
    average: bool = True
    fast_interval: str | None = None
    bp_minsnr: float = 5.0
    gain_minsnr: float = 3.0
    uvrange: str = ""
    min_baselines: int = 4
    fill_gaps: int = 3
    autoflag: tuple[str, ...] = ()
    clip_above: float | None = None
    max_flagged_fraction: float = 0.5
    beam_model: str = "dsacalib"
    dish_diameter_m: float = 4.65
    drift: bool | None = None
    pointing_dec_deg: float | None = None
    acceptance: Acceptance = Acceptance()
    timeout_s: float = 1800.0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class MsLayout:
    """What solving and applying need to know of a Measurement Set.

    ``channel_hz`` has one array of channel centres per spectral window; ``corr_types`` are CASA's
    numbers (9 XX, 12 YY, 5 RR, 8 LL); ``parallel`` says which of them are parallel hands.
    """

    path: Path
    rows: int
    antenna_names: tuple[str, ...]
    antenna_xyz_m: NDArray[np.float64]
    field_names: tuple[str, ...]
    field_deg: NDArray[np.float64]
    channel_hz: tuple[NDArray[np.float64], ...]
    corr_types: tuple[int, ...]
    window_of_ddid: tuple[int, ...]
    telescope: str
    columns: frozenset[str]

    @property
    def parallel(self) -> tuple[int, ...]:
        """Indices of the parallel-hand products on the correlation axis."""
        return tuple(i for i, c in enumerate(self.corr_types) if c in (5, 8, 9, 12, 1))


@dataclass(frozen=True, slots=True)
class FlagReport:
    """What is flagged, autocorrelations left out.

    ``by_antenna`` is over the baselines to antennas that are not dead; ``dead`` are those flagged above
    95 %; ``active_fraction`` leaves the dead out. ``by_length`` maps "0-50 m" and so on.
    ``receptor_samples`` counts the unflagged samples of each antenna and parallel hand. ``absurd`` samples
    were flagged because they are ten thousand times the typical amplitude; rows of ``bad_weights`` (zero, negative
    or not finite) are left to whoever judges, since CASA drops them without a word.
    """

    fraction: float
    active_fraction: float
    newly_flagged: int
    by_antenna: dict[str, float]
    by_window: dict[int, float]
    by_length: dict[str, float]
    dead: tuple[str, ...]
    absurd: int = 0
    bad_weights: float = 0.0
    weight_example: float | None = None
    unflagged_baselines: dict[str, int] = field(repr=False, default_factory=dict)
    receptor_samples: tuple[tuple[int, ...], ...] = field(repr=False, default=())


@dataclass(frozen=True, slots=True)
class RefantChoice:
    """A reference antenna and why it was taken."""

    name: str
    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class CalSolutions:
    """The content of one calibration table, rows as they lie there.

    Attributes
    ----------
    antennas : (n_ant,)
        Names, all of the array.
    antenna, spw, field_id, refant : (row,)
        Indices; ``refant`` is the antenna that CASA referred the phases to, -1 for none.
    time_mjd : (row,)
        Middle of the solution interval.
    values : (row, chan, pol)
        Complex gains; real delays in ns for a delay table.
    flags, snr : (row, chan, pol)
    freqs_hz : per spectral window (chan,)
    kind_name
        CASA's own word: "G Jones", "B Jones", "K Jones".
    """

    path: Path
    kind_name: str
    antennas: tuple[str, ...]
    antenna: NDArray[np.int64]
    spw: NDArray[np.int64]
    field_id: NDArray[np.int64]
    refant: NDArray[np.int64]
    time_mjd: NDArray[np.float64]
    values: NDArray[Any]
    flags: NDArray[np.bool_]
    snr: NDArray[np.float64]
    freqs_hz: tuple[NDArray[np.float64], ...]

    @property
    def polarizations(self) -> int:
        """How many receptors each antenna has."""
        return int(self.values.shape[2])


@dataclass(frozen=True, slots=True)
class TableStats:
    """The health of one table.

    ``dead_receptors`` have no solution anywhere in it; ``flagged_fraction`` and the medians are over the
    others. ``unsolved_fraction`` is the share of receptors that have data and are nevertheless dead.
    """

    name: str
    kind: str
    solutions: int
    flagged: int
    raw_flagged_fraction: float
    receptors: int
    dead_receptors: int
    working_solutions: int
    working_flagged: int
    flagged_fraction: float
    antennas_with_solutions: int
    unsolved_fraction: float
    median_snr: float | None
    median_amplitude: float | None
    amplitude_scatter: float | None
    phase_scatter_deg: float | None
    refants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SolutionReport:
    """Whether a set of solutions can be believed, and the figures that say so."""

    accepted: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    tables: tuple[TableStats, ...]
    corrected_over_model: float | None
    coherence: float | None
    refant: str
    refant_reason: str
    flags: FlagReport | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SolutionSet:
    """The accepted tables of one calibrator observation, in the order in which they are applied."""

    tables: tuple[CalTable, ...]
    report: SolutionReport
    calibrator: CalibratorMatch


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What applying a set did to a Measurement Set.

    ``corrected_over_model`` compares with MODEL_DATA where that column says something, else it is None.
    """

    ms: Path
    tables: tuple[Path, ...]
    flagged_before: float
    flagged_fraction: float
    sample: int
    median_amplitude: float
    corrected_over_model: float | None
    seconds: float
