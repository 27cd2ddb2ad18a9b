"""Measurement Sets and calibration tables as calibration sees them: layout, flags, model, solutions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.casa.tables import is_table, open_table
from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.times import SECONDS_PER_DAY
from nightbeam.gains.compute import direction_cosines, gain_cube, predict_block, source_spectrum
from nightbeam.gains.model import CalSolutions, CalTable, FlagReport, ModelSource, MsLayout
from nightbeam.ms import RowBlock, write_model_column

__all__ = [
    "KEPT_FLAGS",
    "Sample",
    "average_for_solving",
    "check_tables",
    "fill_model",
    "flag_bad_data",
    "match_windows",
    "read_caltable",
    "read_layout",
    "read_sample",
    "read_times",
    "restore_flags",
    "undo_calibration",
]

#: A copy of FLAG as it was before any calibration, so that applying another set begins from the same flags.
KEPT_FLAGS = "FLAG_BEFORE_GAINS"
#: Keyword of that column, put once all of it is filled: a process may die while it copies.
_ALL_KEPT = "COMPLETE"

_BLOCK_ROWS = 32768
_DEAD = 0.95
_ABSURD = 1e4
_LENGTHS_M = (0.0, 50.0, 100.0, 200.0, 400.0, 800.0, 1600.0, 3200.0)


def read_layout(ms: Path) -> MsLayout:
    """Return the antennas, windows, fields and products of a Measurement Set.

    Raises
    ------
    MissingError
        If there is none.
    InputError
        If it has no rows, a sub-table is damaged, or windows differ in their products.
    """
    with open_table(ms) as table:
        rows, columns = int(table.nrows()), frozenset(table.colnames())
    if rows == 0:
        raise InputError(f"{ms} has no rows", fix="convert the group again")
    if "DATA" not in columns:
        raise InputError(f"{ms} has no DATA column", fix="convert the group again")
    with open_table(ms / "ANTENNA") as table:
        names, xyz = tuple(str(n) for n in table.getcol("NAME")), np.asarray(table.getcol("POSITION"), float)
    with open_table(ms / "FIELD") as table:
        fields = tuple(str(n) for n in table.getcol("NAME"))
        directions = np.degrees(np.asarray([table.getcell("PHASE_DIR", i)[0] for i in range(table.nrows())], float))
    with open_table(ms / "SPECTRAL_WINDOW") as table:
        channels = tuple(np.asarray(table.getcell("CHAN_FREQ", i), float) for i in range(table.nrows()))
    with open_table(ms / "DATA_DESCRIPTION") as table:
        windows = tuple(int(w) for w in table.getcol("SPECTRAL_WINDOW_ID"))
    with open_table(ms / "POLARIZATION") as table:
        products = {tuple(int(c) for c in table.getcell("CORR_TYPE", i)) for i in range(table.nrows())}
    if len(products) != 1:
        raise InputError(f"{ms} has windows with different products: {sorted(products)}", fix="split it first")
    with open_table(ms / "OBSERVATION") as table:
        telescope = str(table.getcell("TELESCOPE_NAME", 0)) if table.nrows() else ""
    return MsLayout(
        path=ms,
        rows=rows,
        antenna_names=names,
        antenna_xyz_m=xyz,
        field_names=fields,
        field_deg=directions,
        channel_hz=channels,
        corr_types=products.pop(),
        window_of_ddid=windows,
        telescope=telescope,
        columns=columns,
    )


def read_times(ms: Path) -> NDArray[np.float64]:
    """Return the distinct times of the main table, MJD (UTC)."""
    with open_table(ms) as table:
        return np.asarray(np.unique(table.getcol("TIME"))) / 86400.0


def _blocks(ddid: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (start, count) of runs of rows of one window, at most a block long."""
    edges = np.flatnonzero(np.diff(ddid)) + 1
    for start, end in zip([0, *edges], [*edges, len(ddid)], strict=True):
        for first in range(int(start), int(end), _BLOCK_ROWS):
            yield first, min(_BLOCK_ROWS, int(end) - first)


def flag_bad_data(ms: Path, *, clip_above: float | None = None) -> FlagReport:
    """Flag what cannot be data (zeros, NaN, infinities, absurd or clipped amplitudes) and count all flags.

    Flags that are there stay. A baseline is counted in both of its antennas; autocorrelations are neither
    flagged nor counted.

    Parameters
    ----------
    clip_above
        In the units of DATA; None: no limit.

    Raises
    ------
    InputError
        If the table is damaged (a DATA file that was cut short shows here).
    """
    layout = read_layout(ms)
    hands = list(layout.parallel)
    counts = _Counts(len(layout.antenna_names), len(layout.channel_hz), len(hands))
    with open_table(ms, write=True) as table:
        ant1, ant2 = table.getcol("ANTENNA1"), table.getcol("ANTENNA2")
        ddid, row_flag = table.getcol("DATA_DESC_ID"), table.getcol("FLAG_ROW")
        counts.judge_weights(np.asarray(table.getcol("WEIGHT"))[ant1 != ant2])
        keep = _has_kept_flags(table)
        for start, count in _blocks(ddid):
            rows = slice(start, start + count)
            data, flags = table.getcol("DATA", start, count), table.getcol("FLAG", start, count)
            bad = ~np.isfinite(data.real + data.imag) | (data == 0)
            cross = (ant1[rows] != ant2[rows])[:, None, None]
            with np.errstate(over="ignore", invalid="ignore"):
                amplitude = np.abs(data)
                absurd = (amplitude > _ABSURD * _typical(amplitude, bad | flags)) & ~bad & ~flags & cross
                bad |= absurd
                if clip_above is not None:
                    bad |= amplitude > clip_above
            bad &= cross
            counts.absurd += int(absurd.sum())
            fresh = int((bad & ~flags).sum())
            if fresh:
                flags |= bad
                table.putcol("FLAG", flags, start, count)
                if keep:
                    table.putcol(KEPT_FLAGS, table.getcol(KEPT_FLAGS, start, count) | bad, start, count)
            seen = flags[:, :, hands] | row_flag[rows][:, None, None]
            counts.add(ant1[rows], ant2[rows], layout.window_of_ddid[int(ddid[start])], seen, fresh)
    return counts.report(layout)


def _typical(amplitude: NDArray[np.floating], bad: NDArray[np.bool_]) -> float:
    """Return the median of some of the good amplitudes; infinity where there is none."""
    sample = amplitude.reshape(-1)[::17][~bad.reshape(-1)[::17]]
    return float(np.median(sample)) if sample.size else float("inf")


class _Counts:
    """Samples, all and flagged, by baseline and window."""

    def __init__(self, antennas: int, windows: int, hands: int) -> None:
        self.n = antennas
        self.total = np.zeros((windows, antennas * antennas))
        self.flagged = np.zeros((windows, antennas * antennas))
        self.unflagged_hand = np.zeros((hands, antennas * antennas))
        self.fresh = self.absurd = 0
        self.bad_weights = 0.0
        self.weight_example: float | None = None

    def judge_weights(self, weights: NDArray[np.floating]) -> None:
        bad = ~(np.isfinite(weights) & (weights > 0)).all(axis=1)
        if bad.any():
            self.bad_weights, self.weight_example = float(bad.mean()), float(weights[bad][0, 0])

    def add(self, ant1: NDArray[Any], ant2: NDArray[Any], window: int, flags: NDArray[np.bool_], fresh: int) -> None:
        cross = ant1 != ant2
        pair = (ant1.astype(np.int64) * self.n + ant2)[cross]
        per_hand = flags[cross].sum(axis=1)
        samples, size = flags.shape[1], self.n * self.n
        self.total[window] += np.bincount(pair, minlength=size) * samples * flags.shape[2]
        self.flagged[window] += np.bincount(pair, weights=per_hand.sum(axis=1), minlength=size)
        for hand in range(flags.shape[2]):
            self.unflagged_hand[hand] += np.bincount(pair, weights=samples - per_hand[:, hand], minlength=size)
        self.fresh += fresh

    def report(self, layout: MsLayout) -> FlagReport:
        names, n = layout.antenna_names, self.n
        total = self.total.sum(axis=0).reshape(n, n)
        flagged = self.flagged.sum(axis=0).reshape(n, n)
        total, flagged = total + total.T, flagged + flagged.T  # symmetric: row i is antenna i
        dead, alive = _dead_antennas(total, flagged)
        live = np.ix_(alive, alive)
        hand = self.unflagged_hand.reshape(-1, n, n)
        per_receptor = (hand + hand.transpose(0, 2, 1)).sum(axis=2).T
        lengths = np.linalg.norm(layout.antenna_xyz_m[:, None] - layout.antenna_xyz_m[None], axis=2)
        return FlagReport(
            fraction=_ratio(flagged.sum(), total.sum()),
            active_fraction=_ratio(flagged[live].sum(), total[live].sum(), empty=1.0),
            newly_flagged=self.fresh,
            by_antenna={
                names[i]: _ratio(flagged[i, alive].sum(), total[i, alive].sum(), empty=1.0)
                for i in np.flatnonzero(total.sum(axis=1))
            },
            by_window={w: _ratio(self.flagged[w].sum(), t.sum()) for w, t in enumerate(self.total) if t.sum()},
            by_length=_by_length(lengths[live], flagged[live], total[live]),
            dead=tuple(names[i] for i in dead),
            absurd=self.absurd,
            bad_weights=self.bad_weights,
            weight_example=self.weight_example,
            unflagged_baselines={names[i]: int((total > flagged)[i].sum()) for i in range(n)},
            receptor_samples=tuple(tuple(int(v) for v in row) for row in per_receptor),
        )


def _dead_antennas(total: NDArray[Any], flagged: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    # A live antenna's baselines to dead ones are flagged too: take the worst away until the rest is sound.
    alive = total.sum(axis=1) > 0
    there = alive.copy()
    while alive.any():
        sums = np.where(alive, total[:, alive].sum(axis=1), 0.0)
        share = np.where(sums > 0, flagged[:, alive].sum(axis=1) / np.maximum(sums, 1.0), np.where(alive, 1.0, 0.0))
        worst = share[alive].max()
        if worst <= _DEAD:
            break
        alive &= share < worst
    return np.flatnonzero(there & ~alive), alive


def _ratio(part: float, whole: float, *, empty: float = 0.0) -> float:
    return float(part / whole) if whole else empty


def _by_length(lengths: NDArray[Any], flagged: NDArray[Any], total: NDArray[Any]) -> dict[str, float]:
    out: dict[str, float] = {}
    for low, high in pairwise(_LENGTHS_M):
        inside = (lengths >= low) & (lengths < high) & (total > 0)
        if inside.any():
            out[f"{low:.0f}-{high:.0f} m"] = _ratio(flagged[inside].sum(), total[inside].sum())
    return out


def fill_model(
    ms: Path,
    sources: Sequence[ModelSource],
    *,
    field: int,
    beam: NDArray[np.float64] | None = None,
    times_mjd: NDArray[np.float64] | None = None,
) -> None:
    """Write MODEL_DATA for every row: point sources as seen from the phase centre, through the beam.

    Rows of other fields get 1 in the parallel hands. Virtual models that CASA may have left in the
    table are taken out, since they would go before the column.

    Parameters
    ----------
    field
        The field whose phase centre counts.
    beam : (source, time, window, chan)
        Primary beam on each source; None: 1. Its times are ``times_mjd``.
    """
    layout = read_layout(ms)
    hands = list(layout.parallel)
    ra0, dec0 = layout.field_deg[field]
    lmn = direction_cosines(
        np.array([s.ra_deg for s in sources]), np.array([s.dec_deg for s in sources]), float(ra0), float(dec0)
    )

    def model(block: RowBlock) -> NDArray[np.complex64]:
        count, chans = len(block.rows), len(block.freqs_hz)
        amplitude = np.stack([source_spectrum(s, block.freqs_hz) for s in sources])[:, None, :]
        when = np.zeros(count, np.intp)
        if beam is not None and times_mjd is not None:
            amplitude = amplitude * beam[:, :, block.window, :chans]
            when = np.clip(np.searchsorted(times_mjd, block.time_mjd - 1e-9), 0, len(times_mjd) - 1)
        stokes = predict_block(block.uvw_m, block.freqs_hz, lmn, amplitude, when)
        stokes[block.field_id != field] = 1.0
        filled = np.zeros((count, chans, block.n_pol), np.complex64)
        filled[:, :, hands] = stokes[:, :, None]
        return filled

    write_model_column(ms, model)
    with open_table(ms, write=True) as table:
        _forget_virtual_models(table)


def average_for_solving(
    ms: Path, out: Path, *, field: int, interval_s: float, weighted: bool = False, gains: Sequence[CalSolutions] = ()
) -> int:
    """Write a small Measurement Set to solve gains from: data over model, averaged in time.

    CASA's solvers cost time for each row, however short. Each row of ``out`` holds sum(w V conj M) / sum(w |M|^2) of
    the unflagged samples of one baseline, window and interval, with sum(w |M|^2) as its weight and 1 as its model: for
    gains that stand still over an interval this has the same solution as the data themselves. Autocorrelations are
    left out.

    Parameters
    ----------
    interval_s
        Infinity: all times in one.
    weighted
        Whether w is the weight of the data, as in what this function wrote before; else every sample counts the same.
    gains
        Solutions that are divided out first, for gains that do not stand still; nearest in time. They are part of the
        model M. Where one is flagged, so are the data.

    Returns
    -------
    int
        The rows written.

    Raises
    ------
    InputError
        If the field has no cross-correlations.
    """
    layout = read_layout(ms)
    with open_table(ms) as table:
        ant1, ant2, ddid = (table.getcol(c).astype(np.int64) for c in ("ANTENNA1", "ANTENNA2", "DATA_DESC_ID"))
        times, fields = table.getcol("TIME"), table.getcol("FIELD_ID")
        rows = np.flatnonzero((ant1 != ant2) & (fields == field))
        if len(rows) == 0:
            raise InputError(f"field {field} of {ms} has no cross-correlations", fix="choose another field")
        slot = ((times[rows] - times[rows].min() + 1e-3) // interval_s).astype(np.int64)
        n = len(layout.antenna_names)
        key = ((ddid[rows] * (slot.max() + 1) + slot) * n + ant1[rows]) * n + ant2[rows]
        order = np.argsort(key, kind="stable")
        rows, begins = rows[order], np.flatnonzero(np.diff(key[order], prepend=-1))
        table.selectrows(rows[begins].tolist()).copy(str(out), deep=True).close()
        ends = np.append(begins[1:], len(rows))
        with open_table(out, write=True) as small:
            for first, last in _runs(ddid[rows[begins]]):
                part = rows[int(begins[first]) : int(ends[last - 1])]
                prior = _PriorGains(
                    gains, layout, layout.window_of_ddid[int(ddid[part[0]])], ant1[part], ant2[part], times[part]
                )
                _average_window(table, small, part, begins[first:last] - begins[first], first, prior, weighted)
            mean = np.add.reduceat(times[rows], begins) / (ends - begins)
            for column in ("TIME", "TIME_CENTROID"):
                small.putcol(column, mean)
    return len(begins)


@dataclass(frozen=True, slots=True)
class _PriorGains:
    """What is known of the rows of one window already."""

    solutions: Sequence[CalSolutions]
    layout: MsLayout
    window: int
    antenna1: NDArray[np.int64]
    antenna2: NDArray[np.int64]
    time_s: NDArray[np.float64]

    def onto(self, model: NDArray[Any], good: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the model of each row with the gains in it, and what is still good; (row, chan, pol).

        Cross hands stay as they are: gains are known of receptors, and are solved from the parallel hands.
        """
        if not self.solutions:
            return model, good
        model, good = model.astype(np.complex128), good.copy()
        freqs_hz = self.layout.channel_hz[self.window]
        times, which = np.unique(self.time_s, return_inverse=True)
        for number, time in enumerate(times):
            mine = np.flatnonzero(which == number)
            i, j = self.antenna1[mine], self.antenna2[mine]
            for found in self.solutions:
                values, bad = gain_cube(found, self.window, freqs_hz, float(time) / SECONDS_PER_DAY)
                for receptor, hand in enumerate(self.layout.parallel):
                    model[mine, :, hand] *= values[i, :, receptor] * np.conj(values[j, :, receptor])
                    good[mine, :, hand] &= ~(bad[i, :, receptor] | bad[j, :, receptor])
        return model, good


def _runs(labels: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(labels)) + 1
    yield from zip([0, *map(int, edges)], [*map(int, edges), len(labels)], strict=True)


def _average_window(
    table: Any,
    small: Any,
    rows: NDArray[np.intp],
    begins: NDArray[np.intp],
    first: int,
    prior: _PriorGains,
    weighted: bool,
) -> None:
    """Average one window: ``begins`` index the first of ``rows`` of each group, ``first`` the row to write at."""
    low, high = int(rows.min()), int(rows.max()) + 1
    read = {c: table.getcol(c, low, high - low)[rows - low] for c in ("DATA", "MODEL_DATA", "FLAG")}
    good = ~(read["FLAG"] | table.getcol("FLAG_ROW", low, high - low)[rows - low][:, None, None])
    model, good = prior.onto(read["MODEL_DATA"], good)
    data = np.where(good, read["DATA"], 0)
    samples = np.where(good, np.abs(model) ** 2, 0)
    if weighted:
        spectrum = "WEIGHT_SPECTRUM" in table.colnames()
        weights = table.getcol("WEIGHT_SPECTRUM" if spectrum else "WEIGHT", low, high - low)[rows - low]
        weights = weights if spectrum else weights[:, None, :]
        data, samples = data * weights, samples * weights
    power = np.add.reduceat(samples, begins, axis=0)
    ratio = np.add.reduceat(data * np.conj(model), begins, axis=0) / np.where(power > 0, power, 1)
    count, none = len(begins), np.asarray(power <= 0)
    weight = np.where(none, 0, power)
    mean = weight.mean(axis=1)
    cells: dict[str, Any] = {
        "DATA": ratio.astype(np.complex64),
        "MODEL_DATA": np.ones_like(ratio, np.complex64),
        "FLAG": none,
        "FLAG_ROW": none.all(axis=(1, 2)),
        "WEIGHT": np.where(mean > 0, mean, 1).astype(np.float32),
        "SIGMA": (1 / np.sqrt(np.where(mean > 0, mean, 1))).astype(np.float32),
    }
    if "WEIGHT_SPECTRUM" in small.colnames():
        cells["WEIGHT_SPECTRUM"] = weight.astype(np.float32)
    for column, values in cells.items():
        small.putcol(column, values, first, count)


def _add_like(table: Any, source: str, name: str) -> bool:
    """Add a column stored as ``source`` is; False if it was there."""
    if name in table.colnames():
        return False
    description = table.getcoldesc(source)
    description["keywords"] = {}
    manager = table.getdminfo(source)
    manager["NAME"] = f"nightbeam-{name}"
    manager["COLUMNS"] = [name]
    table.addcols({name: description}, manager)
    return True


def _forget_virtual_models(table: Any) -> None:
    for keyword in table.keywordnames():
        if keyword.startswith(("definedmodel_field_", "model_")):
            table.removekeyword(keyword)


def restore_flags(ms: Path) -> None:
    """Bring FLAG back to what it was before any calibration was applied, or remember it if none was."""
    with open_table(ms, write=True) as table:
        kept = _has_kept_flags(table)
        _add_like(table, "FLAG", KEPT_FLAGS)
        source, target = (KEPT_FLAGS, "FLAG") if kept else ("FLAG", KEPT_FLAGS)
        for start, count in _blocks(table.getcol("DATA_DESC_ID")):
            table.putcol(target, table.getcol(source, start, count), start, count)
        if not kept:
            table.flush()  # the values are there before it is said that they are
            table.putcolkeyword(KEPT_FLAGS, _ALL_KEPT, True)


def undo_calibration(ms: Path) -> None:
    """Take back what applying gains did: the flags of failed solutions, and CORRECTED_DATA, which they go with."""
    with open_table(ms) as table:
        applied = _has_kept_flags(table)
    if not applied:
        return
    restore_flags(ms)
    with open_table(ms, write=True) as table:
        if "CORRECTED_DATA" in table.colnames():
            table.removecols("CORRECTED_DATA")


def _has_kept_flags(table: Any) -> bool:
    return KEPT_FLAGS in table.colnames() and _ALL_KEPT in table.colkeywordnames(KEPT_FLAGS)


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of one window: (row,) antennas and times, (row, chan, parallel hand) columns."""

    window: int
    antenna1: NDArray[np.intp]
    antenna2: NDArray[np.intp]
    time_mjd: NDArray[np.float64]
    columns: Mapping[str, NDArray[Any]]
    flags: NDArray[np.bool_]


def read_sample(
    ms: Path, columns: Sequence[str], *, field: int | None = None, rows_per_window: int = 4096, pieces: int = 4
) -> list[Sample]:
    """Return cross-correlations of every window, from a few stretches of rows spread over the table.

    Raises
    ------
    InputError
        If a column is absent or cannot be read.
    """
    layout = read_layout(ms)
    absent = [c for c in columns if c not in layout.columns]
    if absent:
        raise InputError(f"{ms} has no column {', '.join(absent)}", fix="solve or apply first")
    hands = list(layout.parallel)
    samples: list[Sample] = []
    with open_table(ms) as table:
        ddid, ant1, ant2 = table.getcol("DATA_DESC_ID"), table.getcol("ANTENNA1"), table.getcol("ANTENNA2")
        fields, times = table.getcol("FIELD_ID"), table.getcol("TIME") / 86400.0
        row_flag = table.getcol("FLAG_ROW")
        wanted = ant1 != ant2
        if field is not None:
            wanted &= fields == field
        for number, window in enumerate(layout.window_of_ddid):
            mine = np.flatnonzero((ddid == number) & wanted)
            for part in _stretches(mine, rows_per_window, pieces):
                start, count = int(part[0]), int(part[-1] - part[0] + 1)
                inside = part - start
                read = {c: table.getcol(c, start, count)[inside][:, :, hands] for c in columns}
                flags = table.getcol("FLAG", start, count)[inside][:, :, hands] | row_flag[part][:, None, None]
                samples.append(Sample(window, ant1[part], ant2[part], times[part], read, flags))
    return samples


def _stretches(rows: NDArray[np.intp], most: int, pieces: int) -> Iterator[NDArray[np.intp]]:
    if len(rows) <= most:
        begins, length = [0], len(rows)
    else:
        length = most // pieces
        begins = [int(b) for b in np.linspace(0, len(rows) - length, pieces)]
    for begin in begins:
        part = rows[begin : begin + length]
        # a stretch that lies scattered over the table (windows interleaved) is cut where it would cost too much
        if len(part):
            yield part[part - part[0] < 64 * most]


def read_caltable(path: Path) -> CalSolutions:
    """Return the content of a CASA calibration table (G, B or K).

    Raises
    ------
    MissingError
        If there is none.
    InputError
        If it is not a calibration table, has no rows, or is damaged.
    """
    with open_table(path) as table:
        names = set(table.colnames())
        parameter = "CPARAM" if "CPARAM" in names else "FPARAM" if "FPARAM" in names else ""
        if not parameter or "SPECTRAL_WINDOW_ID" not in names:
            raise InputError(f"{path} is no calibration table", fix="name a table that gaincal or bandpass wrote")
        if table.nrows() == 0:
            raise InputError(f"{path} holds no solutions", fix="solve again")
        kind = str(table.getkeyword("VisCal")) if "VisCal" in table.keywordnames() else ""
        values, flags, snr = (_cells(table, column) for column in (parameter, "FLAG", "SNR"))
        index = {c: np.asarray(table.getcol(c), np.int64) for c in ("ANTENNA1", "ANTENNA2", "FIELD_ID")}
        spw = np.asarray(table.getcol("SPECTRAL_WINDOW_ID"), np.int64)
        times = np.asarray(table.getcol("TIME"), float) / 86400.0
    with open_table(path / "ANTENNA") as table:
        antennas = tuple(str(n) for n in table.getcol("NAME"))
    with open_table(path / "SPECTRAL_WINDOW") as table:
        freqs = tuple(np.asarray(table.getcell("CHAN_FREQ", i), float) for i in range(table.nrows()))
    return CalSolutions(
        path=path,
        kind_name=kind,
        antennas=antennas,
        antenna=index["ANTENNA1"],
        spw=spw,
        field_id=index["FIELD_ID"],
        refant=index["ANTENNA2"],
        time_mjd=times,
        values=values,
        flags=flags.astype(bool),
        snr=np.asarray(snr, float),
        freqs_hz=freqs,
    )


def _cells(table: Any, column: str) -> NDArray[Any]:
    """Return a column whose cells may differ in their channels, padded to the longest: flagged, or 0."""
    cells = [table.getcell(column, row) for row in range(table.nrows())]
    most = max(cell.shape[0] for cell in cells)
    if all(cell.shape[0] == most for cell in cells):
        return np.stack(cells)
    fill = column == "FLAG"
    out = np.full((len(cells), most, cells[0].shape[1]), fill, cells[0].dtype)
    for row, cell in enumerate(cells):
        out[row, : cell.shape[0]] = cell
    return out


def check_tables(tables: Sequence[CalTable], layout: MsLayout) -> list[CalSolutions]:
    """Read tables and make sure that they were solved for this array, these windows and these products.

    Raises
    ------
    MissingError
        If a table does not exist.
    InputError
        Naming the table and what differs.
    """
    absent = [t.path for t in tables if not is_table(t.path)]
    if absent:
        raise MissingError(
            f"no calibration table {', '.join(str(p) for p in absent)}", fix="solve again, or retire the set"
        )
    solutions = [read_caltable(t.path) for t in tables]
    for found in solutions:
        _check_table(found, layout)
    return solutions


def _check_table(found: CalSolutions, layout: MsLayout) -> None:
    where, fix = f"{found.path.name} does not fit {layout.path.name}", "apply a set that was solved for this array"
    if found.antennas != layout.antenna_names:
        extra = sorted(set(layout.antenna_names) ^ set(found.antennas))
        what = f"antennas {', '.join(extra[:5])} are in only one of them" if extra else "antennas are in another order"
        raise InputError(f"{where}: {what}", fix=fix)
    if found.polarizations != len(layout.parallel):
        raise InputError(f"{where}: {found.polarizations} receptors against {len(layout.parallel)}", fix=fix)
    windows = match_windows(found, layout)
    missing = sorted({windows[window] for window in layout.window_of_ddid} - set(found.spw.tolist()))
    if missing:
        raise InputError(f"{where}: it has no solutions for windows {missing}", fix=fix)


def match_windows(found: CalSolutions, layout: MsLayout) -> tuple[int, ...]:
    """Return for each spectral window of a Measurement Set which window of a table is of the same frequencies.

    A set may lack windows that a table has, as one of a group does whose subbands did not all come.

    Raises
    ------
    InputError
        Naming the first window that the table does not have, and how far off the nearest is.
    """
    return tuple(_matching_window(found, layout, window) for window in range(len(layout.channel_hz)))


def _matching_window(found: CalSolutions, layout: MsLayout, window: int) -> int:
    where, fix = f"{found.path.name} does not fit {layout.path.name}", "apply a set that was solved for this array"
    theirs = layout.channel_hz[window]
    width = abs(theirs[1] - theirs[0]) if len(theirs) > 1 else 1e6
    middles = [abs(float(mine.mean() - theirs.mean())) for mine in found.freqs_hz]
    # Where two are as near, as those of a table that gives each window one number may be, its own number decides.
    number = min(range(len(middles)), key=lambda n: (round(middles[n] / width), n != window))
    mine = found.freqs_hz[number]
    if len(mine) == len(theirs):
        off = float(np.abs(mine - theirs).max())
    elif len(mine) == 1:  # a gain: one number for the window, named by a frequency inside it
        off = max(0.0, float(theirs.min() - mine[0]), float(mine[0] - theirs.max()))
    else:
        raise InputError(f"{where}: {len(mine)} channels against {len(theirs)} in window {window}", fix=fix)
    if off > 0.01 * width:
        raise InputError(f"{where}: window {window} is off by {off:.0f} Hz", fix=fix)
    return number
