"""The quality of groups and mosaics: recorded, made again from what is on disk, and shown."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nightbeam.catalog.model import CalTableRow, GroupRow, ImageRow, Owed, QaScoreRow, State
from nightbeam.contimg.model import CalibrateReceipt, ConvertReceipt, Receipt
from nightbeam.contimg.site import Site
from nightbeam.contimg.tools import TOOLS, Tools
from nightbeam.core.errors import BusyError, InputError, MissingError, RejectedError
from nightbeam.core.files import storage_errors
from nightbeam.core.locks import sole_owner

if TYPE_CHECKING:
    from nightbeam.catalog import Queue
    from nightbeam.imaging import ImageProduct
    from nightbeam.qa import CalibrationUse, QaReport, Unread

__all__ = ["calibration_use", "forget_quality", "make_quality", "quality_of", "record_quality", "tables_or_reason"]

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Receipt)
#: How long another process of this machine that works on the group is waited for.
_LOCK_WAIT_S = 5.0


def record_quality(site: Site, subject: str, report: QaReport, *, kind: str = "group") -> None:
    """Let the products say what a report says of a group or mosaic, and nothing of what an earlier one said.

    Files that an earlier report had and this one has not are removed.
    """
    products = site.products()
    gone = products.replace_qa_artifacts(subject, {artifact.name: artifact.path for artifact in report.artifacts})
    products.put_scores(kind, subject, report.scores)
    for row in gone:
        path = Path(row.path)
        if path.parent == site.qa_dir() / subject:  # whatever a row says, only what is ours
            with storage_errors(path):
                path.unlink(missing_ok=True)


def forget_quality(site: Site, subject: str, *, kind: str = "group") -> None:
    """Let nothing be said of a group or mosaic any more, for what was said of it is about to be made again."""
    from nightbeam.qa import QaReport

    products = site.products()
    if products.scores(kind, subject, limit=1) or products.qa_artifacts(subject):
        record_quality(site, subject, QaReport((), ()), kind=kind)


def calibration_use(site: Site, calibrated: CalibrateReceipt) -> CalibrationUse | Unread:
    """Return how the calibration served a group, with what was written down when it was solved."""
    from nightbeam.qa import CalibrationUse, Unread

    if calibrated.set_name is None:
        return Unread("the group has no calibration set")
    report = site.registry().set_report(calibrated.set_name) or {}
    ratio = report.get("corrected_over_model")
    return CalibrationUse(
        set_name=calibrated.set_name,
        age_hours=None if calibrated.age_days is None else 24.0 * abs(calibrated.age_days),
        borrowed=calibrated.borrowed,
        solved_here=calibrated.solved and calibrated.set_name == f"calset_{calibrated.group_id}",
        ratio=float(ratio) if isinstance(ratio, int | float) else None,
    )


def tables_or_reason(site: Site, set_name: str | None, paths: Sequence[str]) -> tuple[CalTableRow, ...] | Unread:
    """Return the rows of the tables that served a group, of whatever status; or why they are not known."""
    from nightbeam.qa import Unread

    rows = {t.path: t for t in site.registry().tables(set_name)} if set_name else {}
    gone = [path for path in paths if path not in rows]
    if gone or not paths:
        return Unread(f"the set {set_name} no longer has {gone[0]}" if gone else "no calibration tables are known")
    return tuple(rows[path] for path in paths)


def _row_or_none(queue: Queue, group_id: str) -> GroupRow | None:
    try:
        return queue.group(group_id)
    except MissingError:  # a Measurement Set of elsewhere has no group
        return None


def make_quality(site: Site, group_id: str, *, tools: Tools = TOOLS) -> QaReport:
    """Judge a group anew from what is on disk, and draw its figures again.

    Parameters
    ----------
    group_id
        One that has an image or a Measurement Set. What is missing of it is among the scores as unknown.

    Raises
    ------
    MissingError
        If there is neither.
    BusyError
        If the group is being worked on.
    StorageError
        If there is no room.
    """
    from nightbeam.qa import Unread

    queue = site.queue()
    row = _row_or_none(queue, group_id)
    if row is not None and row.state == State.IN_PROGRESS:
        raise BusyError(f"group {group_id} is being worked on", fix="its figures are made when it is done")
    images = site.products().images(group_id=group_id, limit=1)
    converted = _receipt(site, group_id, "convert", ConvertReceipt)
    ms = Path(converted.ms) if converted else site.ms_path(group_id)
    product = _product_or_reason(site, group_id, tools)
    if isinstance(product, Unread) and not ms.is_dir():
        raise MissingError(
            f"group {group_id} has neither an image nor a Measurement Set",
            fix=f"nightbeam groups show {group_id} says what there is of it",
        )
    used = _receipt(site, group_id, "calibrate", CalibrateReceipt) or _calibrated(site, group_id, images)
    expected = (row.expected_subbands if row else None) or site.ingest.expected_subbands
    with sole_owner(site.group_lock(group_id), wait_s=_LOCK_WAIT_S, what=f"group {group_id}"):
        report: QaReport = tools.write_qa(
            site,
            group_id,
            ms=ms,
            tables=tables_or_reason(site, used.set_name, used.tables),
            product=product,
            calibration=calibration_use(site, used),
            subbands=(converted.missing_subbands, expected) if converted else None,
        )
        record_quality(site, group_id, report)
    if row is not None:
        queue.arrears.pay(group_id, Owed.FIGURES)
    return report


def _receipt(site: Site, group_id: str, name: str, kind: type[R]) -> R | None:
    content = site.queue().receipt(group_id, name)
    return None if content is None else kind.from_json(content)


def _product_or_reason(site: Site, group_id: str, tools: Tools) -> ImageProduct | Unread:
    from nightbeam.qa import Unread

    try:
        product: ImageProduct = tools.finished_image(site.image_stem(group_id))
    except (MissingError, InputError, RejectedError) as error:
        logger.warning("group %s: %s", group_id, error.what)
        return Unread(error.what)
    return product


def _calibrated(site: Site, group_id: str, images: Sequence[ImageRow]) -> CalibrateReceipt:
    """Return what the row of its image says of the calibration of a group whose receipt is gone."""
    name = images[0].calibration_set if images else None
    tables = site.registry().tables(name) if name else []
    return CalibrateReceipt(
        group_id=group_id,
        set_name=name,
        tables=tuple(t.path for t in tables),
        kinds=tuple(t.table_type for t in tables),
        age_days=images[0].cal_age_days if images else None,
        borrowed=bool(images and images[0].cal_borrowed),
    )


def quality_of(site: Site, subject: str) -> dict[str, Any]:
    """Return the scores of a group or mosaic, the worst first, and its figures and reports.

    Raises
    ------
    MissingError
        If nothing of that name was judged.
    """
    products = site.products()
    scores = products.scores(subject=subject)
    artifacts = sorted(products.qa_artifacts(subject), key=lambda row: row.name)
    if not scores and not artifacts:
        raise MissingError(
            f"nothing named {subject} was judged", fix=f"if it is a group with an image: nightbeam qa make {subject}"
        )
    return {
        "kind": scores[0].kind if scores else None,
        "subject": subject,
        "verdict": scores[0].verdict if scores else None,
        "scores": [_shown(score) for score in scores],
        "artifacts": [{"name": row.name, "path": row.path} for row in artifacts],
    }


def _shown(score: QaScoreRow) -> dict[str, Any]:
    return {name: value for name, value in asdict(score).items() if name not in ("kind", "subject", "created_at")}
