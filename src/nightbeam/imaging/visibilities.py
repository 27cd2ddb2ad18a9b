"""What an imager must know of a Measurement Set before it starts: selection, baselines, times, data column."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError, MissingError
from nightbeam.imaging.model import ImageOptions
from nightbeam.ms import MsField, MsSummary, RowBlock, SpectralWindow, iterate_blocks, read_summary
from nightbeam.sky.model import SPEED_OF_LIGHT_M_S, Site

__all__ = ["Visibilities", "drift_pointings", "fingerprint", "is_transit", "read_visibilities"]

logger = logging.getLogger(__name__)

#: Telescopes whose dishes stand still on the meridian while the sky drifts through.
TRANSIT_TELESCOPES = frozenset({"OVRO_MMA", "DSA_110", "DSA-110", "DSA110"})

#: Codes of correlations that a Stokes I can be made of (casacore's Stokes::StokesTypes), and their sisters.
_HANDS = {1: "I", 5: "RR", 6: "RL", 7: "LR", 8: "LL", 9: "XX", 10: "XY", 11: "YX", 12: "YY"}

_NUMBERS = re.compile(r"\s*\d+\s*(~\s*\d+\s*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Visibilities:
    """The selected part of a Measurement Set, summed up.

    Attributes
    ----------
    field, fields
        The field whose centre is the image's, and the numbers of all that are selected.
    uv_max_m
        Longest projected baseline (of u and v) with an unflagged visibility.
    flagged_fraction
        Of the cross-correlations selected.
    times_mjd : (n,)
        Distinct times, middles of integrations.
    uv_wavelengths : (m, 2), float32
        One for each selected row with an unflagged visibility, at the middle of its window.
    rows_flagged
        Whether a selected row is flagged as a row (FLAG_ROW) while its FLAG does not say so.
    hands
        Correlations, such as ``("XX", "YY")``, those of all windows together.
    """

    summary: MsSummary
    field: MsField
    fields: tuple[int, ...]
    windows: tuple[SpectralWindow, ...]
    datacolumn: Literal["corrected", "data"]
    uv_max_m: float
    flagged_fraction: float
    times_mjd: NDArray[np.float64]
    uv_wavelengths: NDArray[np.float32]
    rows_flagged: bool
    hands: tuple[str, ...]

    @property
    def freq_hz(self) -> float:
        """Middle of the band."""
        return 0.5 * (min(w.low_hz for w in self.windows) + max(w.high_hz for w in self.windows))

    @property
    def bandwidth_hz(self) -> float:
        """Sum of the channels, holes left out."""
        return float(sum(abs(width) for w in self.windows for width in w.widths_hz))

    @property
    def channel_width_hz(self) -> float:
        """Of the widest channel."""
        return max(abs(width) for w in self.windows for width in w.widths_hz)

    @property
    def diameter_m(self) -> float:
        """Dish diameter: the median of the antennas that have data."""
        return float(np.median([self.summary.antennas[k].diameter_m for k in self.summary.active_antennas]))

    @property
    def site(self) -> Site:
        """Where the array stands: the mean of its antennas."""
        import erfa

        centre = np.mean([a.position_m for a in self.summary.antennas if np.hypot(*a.position_m[:2]) > 0], axis=0)
        longitude, latitude, height = erfa.gc2gd(1, centre)
        return Site(float(np.degrees(longitude)), float(np.degrees(latitude)), float(height))


def read_visibilities(ms: Path, options: ImageOptions) -> Visibilities:
    """Look through the selected rows of a Measurement Set.

    Raises
    ------
    MissingError
        If there is none, or no field or window of that name.
    InputError
        If it is damaged, has several fields and none was chosen, or holds no unflagged, finite
        cross-correlation that is not zero.
    """
    if not ms.is_dir():
        raise MissingError(f"no Measurement Set {ms}", fix="check the name, or convert the group first")
    summary = read_summary(ms, flags=False)
    fields = _choose_fields(summary.fields, options.field, centred=bool(options.phasecenter))
    windows = _choose_windows(summary.windows, options.spw)
    middle_hz = {w.index: 0.5 * (w.low_hz + w.high_hz) for w in windows}
    chosen = [
        (middle_hz[block.window], _cross(block, [f.index for f in fields]))
        for block in iterate_blocks(ms)
        if block.window in middle_hz
    ]
    chosen = [(freq, rows) for freq, rows in chosen if len(rows)]
    blocks = [rows for _, rows in chosen]
    longest, flagged, total, times, uv = 0.0, 0, 0, [np.zeros(0)], [np.zeros((0, 2), np.float32)]
    rows_flagged = False
    with open_table(ms) as table:
        for freq, rows in chosen:
            flag, whole = _column(table, "FLAG", rows), _column(table, "FLAG_ROW", rows)
            rows_flagged = rows_flagged or bool(np.any(whole & ~flag.all(axis=(1, 2))))
            flag = flag | whole[:, None, None]
            flagged, total = flagged + int(np.count_nonzero(flag)), total + flag.size
            uvw = _column(table, "UVW", rows)[~flag.all(axis=(1, 2))]
            longest = max(longest, float(np.hypot(uvw[:, 0], uvw[:, 1]).max(initial=0.0)))
            uv.append((uvw[:, :2] * (freq / SPEED_OF_LIGHT_M_S)).astype(np.float32))
            times.append(np.unique(_column(table, "TIME", rows)))
    if flagged == total:
        raise InputError(
            f"{ms}: all {total} selected cross-correlations are flagged" if total else f"{ms}: nothing is selected",
            fix="look at its flags, and at field and spw",
        )
    return Visibilities(
        summary=summary,
        field=fields[0],
        fields=tuple(dict.fromkeys(f.index for f in fields)),
        windows=windows,
        datacolumn=_choose_column(ms, summary, blocks, options.datacolumn),
        uv_max_m=longest,
        flagged_fraction=flagged / total,
        times_mjd=np.unique(np.concatenate(times)) / 86400.0,
        uv_wavelengths=np.concatenate(uv),
        rows_flagged=rows_flagged,
        hands=_hands(ms),
    )


def _hands(ms: Path) -> tuple[str, ...]:
    with open_table(ms / "POLARIZATION") as table:
        found = {int(code) for row in range(table.nrows()) for code in table.getcell("CORR_TYPE", row)}
    return tuple(_HANDS.get(code, str(code)) for code in sorted(found))


def _choose_column(
    ms: Path, summary: MsSummary, blocks: Sequence[NDArray[np.int64]], wanted: Literal["auto", "corrected", "data"]
) -> Literal["corrected", "data"]:
    if wanted != "data":
        reason = _why_unusable(ms, summary, blocks, "CORRECTED_DATA")
        if not reason:
            return "corrected"
        if wanted == "corrected":
            raise InputError(f"{ms}: CORRECTED_DATA {reason}", fix="apply a calibration first, or image DATA")
        if summary.has_corrected:
            logger.warning("%s: CORRECTED_DATA %s; imaging DATA", ms, reason)
    reason = _why_unusable(ms, summary, blocks, "DATA")
    if reason:
        raise InputError(f"{ms}: DATA {reason}", fix="convert the group again, and look at its flags")
    return "data"


def _why_unusable(ms: Path, summary: MsSummary, blocks: Sequence[NDArray[np.int64]], column: str) -> str:
    if column not in summary.columns:
        return "is not there"
    try:
        with open_table(ms) as table:
            for rows in blocks:
                data = _column(table, column, rows)
                size = np.abs(data[~_flags(table, rows)])
                if np.any((size > 0) & np.isfinite(size)):
                    return ""
    except InputError as error:  # cells that were never written
        return f"cannot be read ({error.what})"
    return "holds no unflagged, finite cross-correlation that is not zero"


def _cross(block: RowBlock, fields: Sequence[int]) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = block.rows[(block.antenna1 != block.antenna2) & np.isin(block.field_id, fields)]
    return rows


def _column(table: Any, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    # Rows of a block lie close together: one read of the whole stretch is faster than a row list.
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 <= 4 * len(rows):
        whole: NDArray[Any] = table.getcol(name, first, last - first + 1)
        return whole if len(whole) == len(rows) else whole[rows - first]
    chosen = table.selectrows(rows.tolist())
    try:
        found: NDArray[Any] = chosen.getcol(name)
        return found
    finally:
        chosen.close()


def _flags(table: Any, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    flag: NDArray[np.bool_] = _column(table, "FLAG", rows) | _column(table, "FLAG_ROW", rows)[:, None, None]
    return flag


def _choose_fields(fields: Sequence[MsField], wanted: str, *, centred: bool) -> list[MsField]:
    if not wanted.strip():
        if len({(round(f.ra_deg, 6), round(f.dec_deg, 6)) for f in fields}) > 1 and not centred:
            raise InputError(
                f"there are {len(fields)} fields ({', '.join(f.name for f in fields[:6])})", fix="choose one: field"
            )
        return list(fields)
    chosen = [f for part in wanted.split(",") for f in _matching(fields, part.strip())]
    if not chosen:
        names = ", ".join(f"{f.index}={f.name}" for f in fields[:10])
        raise MissingError(f"no field {wanted!r}", fix=f"choose of {names}")
    return chosen


def _matching(fields: Sequence[MsField], part: str) -> Iterator[MsField]:
    numbers = _span(part)
    for item in fields:
        if item.index in numbers if numbers is not None else item.name == part:
            yield item


def _choose_windows(windows: Sequence[SpectralWindow], wanted: str) -> tuple[SpectralWindow, ...]:
    if wanted.strip() in ("", "*"):
        return tuple(windows)
    numbers: set[int] = set()
    for part in wanted.split(","):
        head = part.partition(":")[0].strip()
        span = range(len(windows)) if head in ("", "*") else _span(head)
        if span is None:  # a name or a frequency: CASA will find it, and our sums take every window
            return tuple(windows)
        numbers.update(span)
    chosen = tuple(w for w in windows if w.index in numbers)
    if not chosen:
        raise MissingError(f"no spectral window {wanted!r}", fix=f"choose of 0 to {len(windows) - 1}")
    return chosen


def _span(text: str) -> range | None:
    if not _NUMBERS.fullmatch(text):
        return None
    first, _, last = (part.strip() for part in text.partition("~"))
    return range(int(first), int(last or first) + 1)


def is_transit(telescope: str) -> bool:
    """Return whether the dishes of a telescope stand still while the sky drifts through their beam."""
    return telescope.upper() in TRANSIT_TELESCOPES


def drift_pointings(vis: Visibilities, *, n_most: int = 24) -> NDArray[np.float64]:
    """Return where the dishes of a transit telescope pointed: (n, 2), ICRS degrees.

    The field's centre is the meridian at the middle of the observation; its apparent declination was kept
    throughout. At most ``n_most`` times, evenly spread, are given.
    """
    from nightbeam.sky import apparent_hadec, meridian_icrs

    _, dec = apparent_hadec(vis.summary.mid_mjd + 2400000.5, vis.field.ra_deg, vis.field.dec_deg, vis.site)
    times = vis.times_mjd
    if len(times) > n_most:
        times = times[np.linspace(0, len(times) - 1, n_most).round().astype(int)]
    return np.stack(meridian_icrs(times + 2400000.5, dec, vis.site), axis=-1)


def fingerprint(ms: Path) -> str:
    """Return a digest of the names, sizes and times of change of a Measurement Set's files.

    Reading every byte of some gigabytes would cost more than a quick image. Lock files and CASA's own
    history of who looked are left out.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in ms.rglob("*") if p.is_file()):
        name = path.relative_to(ms).as_posix()
        if path.name == "table.lock" or name.startswith("HISTORY/"):
            continue
        state = path.stat()
        digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
