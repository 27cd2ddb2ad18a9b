"""From rows of the databases to what is answered. Nothing in a row is trusted to be what its column promises."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from nightbeam.catalog.model import (
    AttemptRow,
    CalSetSummary,
    CalTableRow,
    DuplicateRow,
    GroupRow,
    ImageRow,
    MosaicRow,
    MsRow,
    QaArtifactRow,
    QaScoreRow,
    ReceiptRow,
    State,
    SubbandRow,
)
from nightbeam.core.times import datetime_from_mjd, mjd_from_datetime
from nightbeam.monitor.model import (
    Artifact,
    Attempt,
    CalibrationSet,
    CalibrationTable,
    GroupFile,
    GroupStep,
    Image,
    Match,
    MeasurementSet,
    Mosaic,
    Product,
    QueueGroup,
    Score,
)

__all__ = [
    "age_words",
    "are_blind",
    "artifact_of",
    "attempt_of",
    "files_named",
    "files_of",
    "group_of",
    "image_of",
    "instant_of_mjd",
    "instant_of_text",
    "instant_of_time",
    "json_of",
    "matches_of",
    "mosaic_of",
    "ms_of",
    "number",
    "period_of_text",
    "product_of",
    "qa_url",
    "receipt_of",
    "run_of",
    "score_of",
    "set_of",
    "steps_of",
    "text",
    "tiles_of",
    "whole",
]

_PARTIAL_TIME = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:\.\d+)?)?)?)?)?)?Z?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHOWN = (".png", ".jpg", ".jpeg", ".svg", ".json")
#: Of an error, as much as a page bears.
_LONGEST_ERROR = 10_000


# -- numbers, times, texts ----------------------------------------------------------------------------------------


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """Return a whole number, or None for anything else."""
    if type(value) is int:
        return value
    found = number(value)
    return None if found is None else int(found)


def text(value: Any) -> str | None:
    """Return a text that can be sent, or None."""
    if value is None:
        return None
    if type(value) is str and value.isascii():
        return value if len(value) <= _LONGEST_ERROR else value[:_LONGEST_ERROR]
    return str(value).encode("utf-8", "replace").decode()[:_LONGEST_ERROR]


def instant_of_time(seconds: Any) -> datetime | None:
    """Return the time of epoch seconds; None for what is no time between the years 1 and 9999."""
    found = number(seconds)
    if found is None:
        return None
    try:
        return datetime.fromtimestamp(found, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def instant_of_mjd(mjd: Any) -> datetime | None:
    """Return the time of a Modified Julian Date; None for what is none."""
    found = number(mjd)
    if found is None:
        return None
    try:
        return datetime_from_mjd(found)
    except (ValueError, OverflowError):
        return None


def instant_of_text(written: Any) -> datetime | None:
    """Return the time that ISO 8601 names, in UTC where it does not say; None for what is none."""
    if not isinstance(written, str):
        return None
    try:
        found = datetime.fromisoformat(written)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def period_of_text(written: str) -> tuple[float, float] | None:
    """Return the MJD at which a year, month, day, hour, minute or second begins, and at which it ends.

    Examples
    --------
    >>> period_of_text("2025-10-03")
    (60951.0, 60952.0)
    >>> period_of_text("3C48") is None
    True
    """
    found = _PARTIAL_TIME.fullmatch(written.strip())
    if found is None:
        return None
    given = [int(one) for one in found.groups() if one is not None]
    try:
        begin = datetime(*(given + [1] * (3 - len(given))), tzinfo=UTC)  # type: ignore[misc,arg-type]
        end = _end_of(begin, len(given))
    except (ValueError, OverflowError):
        return None
    return mjd_from_datetime(begin), mjd_from_datetime(end)


def _end_of(begin: datetime, parts: int) -> datetime:
    if parts == 1:
        return begin.replace(year=begin.year + 1)
    if parts == 2:
        return (begin.replace(day=28) + timedelta(days=4)).replace(day=1)
    return (
        begin + {3: timedelta(days=1), 4: timedelta(hours=1), 5: timedelta(minutes=1), 6: timedelta(seconds=1)}[parts]
    )


def are_blind(problems: Iterable[str]) -> bool:
    """Say whether one of some problems keeps us from telling what there is.

    A database that nobody has made yet is empty, and that can be told.

    Examples
    --------
    >>> are_blind(["there is no queue database /data/ingest.sqlite3"]), are_blind(["it is locked"])
    (False, True)
    """
    return any(not one.startswith("there is no ") for one in problems)


def age_words(seconds: float) -> str:
    """Return how long ago something was, in one or two words; what is in the future is said to be.

    Examples
    --------
    >>> age_words(125.0), age_words(7300.0), age_words(-90.0)
    ('2 min ago', '2.0 h ago', '2 min ahead of the clock')
    """
    after = " ago" if seconds >= 0 else " ahead of the clock"
    size = abs(seconds)
    if size < 90:
        return (
            "just now"
            if -2 < seconds < 10
            else f"{size:.0f} s{after}"
            if seconds >= 0 or size < 60
            else f"2 min{after}"
        )
    if size < 5400:
        return f"{size / 60:.0f} min{after}"
    return f"{size / 3600:.1f} h{after}" if size < 172_800 else f"{size / 86_400:.0f} days{after}"


def json_of(written: Any, *, most: int = 1 << 20) -> Any:
    """Return what a JSON text says, with null for numbers that JSON has not; None for what is no JSON, or too long."""
    if not isinstance(written, str) or not written or len(written) > most:
        return None
    try:
        return json.loads(written, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


# -- groups -------------------------------------------------------------------------------------------------------


def matches_of(calibrators: Any) -> list[Match] | None:
    """Return the calibrators of a row, or None where nobody has looked for any."""
    if calibrators == "[]":
        return []
    found = json_of(calibrators)
    if not isinstance(found, list):
        return None
    return [
        Match(
            name=text(one.get("name")) or "",
            ra_deg=number(one.get("ra_deg")),
            dec_deg=number(one.get("dec_deg")),
            sep_deg=number(one.get("sep_deg")),
            weighted_flux=number(one.get("weighted_flux")),
        )
        for one in found
        if isinstance(one, dict)
    ]


def group_of(row: GroupRow) -> QueueGroup:
    """Return what is said of a group in a list."""
    has = whole(row.has_calibrator)
    working = row.state in (State.IN_PROGRESS, State.FAILED)
    return QueueGroup(
        group_id=str(row.group_id),
        state=str(row.state),
        received_at=instant_of_time(row.received_at),
        last_update=instant_of_time(row.last_update),
        subbands_present=whole(row.subbands_present) or 0,
        expected_subbands=whole(row.expected_subbands),
        has_calibrator=None if has is None else bool(has),
        matches=matches_of(row.calibrators),
        stage=text((row.current_step if working else None) or row.processing_stage),
        start=instant_of_mjd(row.start_mjd),
        start_mjd=number(row.start_mjd),
        dec_deg=number(row.dec_deg),
        attempts=whole(row.attempts) or 0,
        retries=whole(row.retry_count) or 0,
        partial=bool(whole(row.partial)),
        owner=text(row.owner),
        error=text(row.error),
        finished_at=instant_of_time(row.finished_at),
        imaging=text(row.imaging),
        owed=text(row.owed),
    )


def files_of(expected: int | None, rows: Iterable[SubbandRow], duplicates: Iterable[DuplicateRow]) -> list[GroupFile]:
    """Return a line for each subband, also for those that are missing."""
    there = {row.subband_idx: row for row in rows}
    twice: dict[int, list[str]] = {}
    for one in duplicates:
        twice.setdefault(one.subband_idx, []).append(str(one.path))
    lines = []
    for subband in sorted({*there, *range(min(expected or 0, 99))}):
        row = there.get(subband)
        if row is None:
            lines.append(GroupFile(subband=subband, missing=True))
            continue
        lines.append(
            GroupFile(
                subband=subband,
                path=text(row.path),
                size_bytes=whole(row.size_bytes),
                arrived_at=instant_of_time(row.recorded_at),
                written_at=instant_of_time(row.mtime),
                late=bool(whole(row.late)),
                duplicates=twice.get(subband, []),
            )
        )
    return lines


def steps_of(steps: Sequence[str], row: GroupRow, receipts: Iterable[ReceiptRow]) -> list[GroupStep]:
    """Return a line for each step of the chain, with the time that it took."""
    done = {receipt.step: receipt for receipt in receipts}
    lines = []
    for step in steps:
        receipt = done.get(step)
        if receipt is not None:
            seconds = number(receipt.seconds)
            end = number(receipt.finished_at)
            begin = None if end is None or seconds is None else end - seconds
            lines.append(
                GroupStep(
                    step=step,
                    state="done",
                    seconds=seconds,
                    started_at=instant_of_time(begin),
                    finished_at=instant_of_time(end),
                    attempt=whole(receipt.attempt),
                )
            )
            continue
        here = row.current_step == step
        word = (
            {State.IN_PROGRESS: "running", State.FAILED: "failed"}.get(State(row.state)) if _known(row.state) else None
        )
        lines.append(GroupStep(step=step, state=word if here and word else "open"))
    return lines


def receipt_of(step: str, receipts: Iterable[ReceiptRow]) -> dict[str, Any]:
    """Return what a finished step left behind; nothing where it has not finished."""
    found = [json_of(row.content) for row in receipts if row.step == step]
    return next((one for one in found if isinstance(one, dict)), {})


def _known(state: Any) -> bool:
    return state in {one.value for one in State}


def run_of(owner: Any) -> str | None:
    """Return the id of the flow run that an owner is; None where it is none."""
    found = _UUID.search(str(owner or ""))
    return found[0] if found else None


def attempt_of(row: AttemptRow, page_url: str | None) -> Attempt:
    """Return what became of an attempt."""
    run = run_of(row.owner)
    return Attempt(
        attempt=whole(row.attempt) or 0,
        outcome=str(row.outcome),
        step=text(row.step),
        owner=text(row.owner),
        started_at=instant_of_time(row.started_at),
        ended_at=instant_of_time(row.ended_at),
        error=text(row.error),
        run_url=f"{page_url}/runs/flow-run/{run}" if page_url and run else None,
    )


# -- calibration --------------------------------------------------------------------------------------------------


def set_of(
    short: CalSetSummary, group_id: str | None, mid_mjd: float | None, tables: list[CalTableRow]
) -> CalibrationSet:
    """Return a set with its tables."""
    ordered = sorted(tables, key=lambda row: (whole(row.order_index) or 0, row.id))
    return CalibrationSet(
        set_name=str(short.set),
        tables=[str(row.path) for row in ordered],
        active=short.active,
        total=short.rows,
        status=str(short.status),
        calibrator=text(short.calibrator),
        group_id=text(group_id),
        valid_start=instant_of_mjd(short.valid_start_mjd),
        valid_end=instant_of_mjd(short.valid_end_mjd),
        valid_start_mjd=number(short.valid_start_mjd),
        valid_end_mjd=number(short.valid_end_mjd),
        mid_mjd=number(mid_mjd),
        dec_deg=number(short.dec_deg),
        created_at=instant_of_time(short.created_at),
        reason=text(short.reason),
        details=[
            CalibrationTable(
                path=str(row.path),
                table_type=str(row.table_type),
                order_index=whole(row.order_index) or 0,
                status=str(row.status),
                cal_field=text(row.cal_field),
                refant=text(row.refant),
            )
            for row in ordered
        ],
    )


# -- products -----------------------------------------------------------------------------------------------------


def product_of(row: ImageRow) -> Product:
    """Return an image in the words of the older pipeline."""
    return Product(
        id=row.id,
        path=str(row.path),
        ms_path=str(row.ms_path),
        created_at=instant_of_time(row.created_at),
        type=str(row.type),
        beam_major_arcsec=number(row.beam_major_arcsec),
        noise_jy=number(row.noise_jy),
        pbcor=bool(whole(row.pbcor)),
    )


def image_of(row: ImageRow) -> Image:
    """Return an image with its measures."""
    has_png = '"png"' in str(row.files or "")
    return Image(
        id=row.id,
        path=str(row.path),
        ms_path=str(row.ms_path),
        created_at=instant_of_time(row.created_at),
        type=str(row.type),
        group_id=text(row.group_id),
        mid=instant_of_mjd(row.mid_mjd),
        mid_mjd=number(row.mid_mjd),
        beam_major_arcsec=number(row.beam_major_arcsec),
        beam_minor_arcsec=number(row.beam_minor_arcsec),
        beam_pa_deg=number(row.beam_pa_deg),
        noise_jy=number(row.noise_jy),
        noise_centre_jy=number(row.noise_centre_jy),
        peak_jy=number(row.peak_jy),
        dynamic_range=number(row.dynamic_range),
        ra_deg=number(row.ra_deg),
        dec_deg=number(row.dec_deg),
        imsize=whole(row.imsize),
        cell_arcsec=number(row.cell_arcsec),
        freq_hz=number(row.freq_hz),
        bandwidth_hz=number(row.bandwidth_hz),
        integration_s=number(row.integration_s),
        calibration_set=text(row.calibration_set),
        cal_age_days=number(row.cal_age_days),
        cal_borrowed=bool(whole(row.cal_borrowed)),
        partial=bool(whole(row.partial)),
        quick=bool(whole(row.quick)),
        pbcor=bool(whole(row.pbcor)),
        png_url=f"/api/images/{row.id}/png" if has_png else None,
        version=text(row.version),
    )


def ms_of(row: MsRow) -> MeasurementSet:
    """Return a row of the index of Measurement Sets."""
    return MeasurementSet(
        path=str(row.path),
        start_mjd=number(row.start_mjd),
        end_mjd=number(row.end_mjd),
        mid_mjd=number(row.mid_mjd),
        processed_at=instant_of_time(row.processed_at),
        status=text(row.status),
        stage=text(row.stage),
        stage_updated_at=instant_of_time(row.stage_updated_at),
        cal_applied=whole(row.cal_applied),
        imagename=text(row.imagename),
        group_id=text(row.group_id),
        partial=bool(whole(row.partial)),
        flagged_fraction=number(row.flagged_fraction),
        calibration_set=text(row.calibration_set),
    )


def mosaic_of(row: MosaicRow) -> Mosaic:
    """Return a mosaic without its tiles."""
    has_png = '"png"' in str(row.files or "")
    return Mosaic(
        id=row.id,
        name=str(row.name),
        status=str(row.status),
        created_at=instant_of_time(row.created_at),
        built_at=instant_of_time(row.built_at),
        method=text(row.method),
        plan=text(row.plan),
        strip=whole(row.strip),
        start=instant_of_mjd(row.start_mjd),
        end=instant_of_mjd(row.end_mjd),
        start_mjd=number(row.start_mjd),
        mid_mjd=number(row.mid_mjd),
        end_mjd=number(row.end_mjd),
        ra_deg=number(row.ra_deg),
        dec_deg=number(row.dec_deg),
        width=whole(row.width),
        height=whole(row.height),
        cell_arcsec=number(row.cell_arcsec),
        freq_hz=number(row.freq_hz),
        beam_major_arcsec=number(row.beam_major_arcsec),
        beam_minor_arcsec=number(row.beam_minor_arcsec),
        beam_pa_deg=number(row.beam_pa_deg),
        noise_jy=number(row.noise_jy),
        peak_jy=number(row.peak_jy),
        tiles_used=whole(row.tiles_used),
        tiles_rejected=whole(row.tiles_rejected),
        output_path=text(row.output_path),
        png_url=f"/api/mosaics/{quote(str(row.name), safe='')}/png" if has_png else None,
        error=text(row.error),
    )


def files_named(written: Any) -> Mapping[str, str]:
    """Return the files that a product names, by kind."""
    found = json_of(written)
    return {str(k): str(v) for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def tiles_of(written: Any) -> list[str]:
    """Return the tiles of a mosaic: one path a line, or the JSON list of the older pipeline."""
    found = json_of(written)
    if isinstance(found, list):
        return [str(one) for one in found]
    return [line for line in str(written or "").splitlines() if line.strip()]


def qa_url(group_id: str, name: str) -> str | None:
    """Return where a figure or report is served; None for a name that is served by nobody."""
    if not str(name).lower().endswith(_SHOWN) or any("/" in one or one in ("", ".", "..") for one in (group_id, name)):
        return None
    return f"/api/qa/file/{quote(group_id, safe='')}/{quote(name, safe='')}"


def artifact_of(row: QaArtifactRow) -> Artifact:
    """Return a figure or report."""
    group_id, name = text(row.group_id) or "", text(row.name) or ""
    return Artifact(
        group_id=group_id,
        name=name,
        path=text(row.path) or "",
        created_at=instant_of_time(row.created_at),
        url=qa_url(group_id, name) or qa_url(group_id, str(row.path).rpartition("/")[2]),
    )


def score_of(row: QaScoreRow) -> Score:
    """Return a judged measure."""
    return Score(
        kind=str(row.kind),
        subject=str(row.subject),
        name=str(row.name),
        value=number(row.value),
        unit=text(row.unit),
        score=number(row.score),
        verdict=str(row.verdict),
        reason=text(row.reason),
        created_at=instant_of_time(row.created_at),
    )
