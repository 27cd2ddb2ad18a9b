"""The steps of a group. Each keeps the lease while it works, and leaves a receipt when it is done.

A step that left a receipt before is not done again while what it made is still there; where it is not,
that step and all after it are.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nightbeam import __version__
from nightbeam.catalog.model import CalSet, CalTableRow, GroupRow, Imaging, Owed, Owner, SetSpec, State, TableSpec
from nightbeam.contimg.checksums import InputSums
from nightbeam.contimg.guard import Plan, at_work, plan_step
from nightbeam.contimg.model import (
    STEPS,
    ApplyReceipt,
    CalibrateReceipt,
    Claim,
    ConvertReceipt,
    ImageReceipt,
    QaReceipt,
    Receipt,
    RecordReceipt,
)
from nightbeam.contimg.owners import is_dead, keeping_lease, owned_scratch
from nightbeam.contimg.pressure import as_quick, is_smaller, owed_by, stand_back, wanted_imaging
from nightbeam.contimg.provenance import note_image, note_ms, note_ms_state, note_step, note_tables
from nightbeam.contimg.quality import calibration_use, forget_quality, record_quality, tables_or_reason
from nightbeam.contimg.room import full_disk, no_input
from nightbeam.contimg.site import Site
from nightbeam.contimg.tools import TOOLS, Tools
from nightbeam.core.errors import (
    BusyError,
    InputError,
    MissingError,
    NightbeamError,
    RejectedError,
    ResourceError,
    StorageError,
    UnavailableError,
    UsageError,
)
from nightbeam.core.files import directory_bytes, storage_errors
from nightbeam.core.locks import sole_owner
from nightbeam.core.times import SECONDS_PER_DAY, datetime_from_mjd, iso_z

if TYPE_CHECKING:
    from nightbeam.catalog import Queue, Registry

__all__ = [
    "apply_step",
    "calibrate_or_find",
    "chosen_set",
    "claim_group",
    "convert_group_step",
    "fail_group",
    "finish",
    "image_columns",
    "image_step",
    "provenance_of",
    "qa_step",
    "record_step",
    "require_good",
]

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Receipt)
#: How long a step waits for another process of this machine that still works on the group.
_LOCK_WAIT_S = 20.0
#: What these make is what is judged: when one of them is done again, what was said before does not hold.
_JUDGED = ("convert", "calibrate", "apply", "image")
#: The data are at fault, not the moment: no other attempt can end differently.
_FINAL = (InputError, RejectedError, UsageError)
#: What the machine had too little of: no fault of the group's.
_SHORT: dict[type[NightbeamError], Literal["disk", "memory"]] = {StorageError: "disk", ResourceError: "memory"}


def claim_group(site: Site, group_id: str, *, owner: Owner) -> Claim:
    """Take a group, unless somebody living has it or there is nothing to take.

    A group whose owner is a dead process of this machine is taken back first, which counts as a
    retry; an owner of the same name takes up its own group where it was. One that is to be converted is not taken on a
    machine that does not see the input directory, which another one may: no attempt is spent.

    Returns
    -------
    Claim
        ``claimed`` says whether it is ours; if not, ``reason`` and ``state`` say why.

    Raises
    ------
    MissingError
        If the queue has no such group.
    """
    queue = site.queue()
    row, lock = queue.group(group_id), site.group_lock(group_id)
    if row.state == State.IN_PROGRESS and row.owner != owner.name and is_dead(row, lock=lock):
        queue.recover(lambda r: r.group_id == group_id and is_dead(r, lock=lock), full=full_disk(site))
        row = queue.group(group_id)
    if row.state == State.PENDING and (why := _why_not_here(site, queue, group_id)):
        return Claim(group_id, owner.name, False, row.state, row.attempts, why)
    try:
        row = queue.claim(group_id, owner)
    except (BusyError, InputError) as error:
        row = queue.group(group_id)
        return Claim(group_id, owner.name, False, row.state, row.attempts, error.what)
    return Claim(group_id, owner.name, True, row.state, row.attempts)


def convert_group_step(site: Site, group_id: str, *, owner: Owner, tools: Tools = TOOLS) -> ConvertReceipt:
    """Write the subbands of a group as one verified Measurement Set; flag interference in it, where that is set.

    Raises
    ------
    StorageError, ResourceError
        If there is no room for it; like every step below it waits for its turn on the machine's memory first.
    BusyError
        If a subband changed while it was read.
    MissingError, InputError, RejectedError, ToolError
        From the converter and the flagger.
    """

    def work(queue: Queue, scratch_dir: Path) -> ConvertReceipt:
        row, files = queue.group(group_id), _files(queue, group_id)
        ms = site.ms_path(group_id)
        with storage_errors(site.output_dir):
            site.output_dir.mkdir(parents=True, exist_ok=True)
        expected = row.expected_subbands or site.ingest.expected_subbands
        sums = InputSums(files)
        with owned_scratch(scratch_dir, group_id, "convert") as scratch:
            with sums:
                report = tools.convert(site, files, ms, expected_subbands=expected, scratch=scratch)
            inputs = sums.result()
            receipt = _converted(group_id, report)
            if site.flag.engine != "none":
                flagged = tools.flag(site, ms, work=scratch, log=site.log(group_id, "flag"))
                receipt = replace(receipt, flagged_fraction=flagged.after, flagging=flagged.to_json())
        note_ms(site, group_id, ms, inputs, owner=owner, writer=receipt.writer_type)
        site.products().upsert_ms(
            ms,
            group_id=group_id,
            partial=row.partial,
            status="in_progress",
            stage="concatenated",
            cal_applied=0,
            version=__version__,
            start_mjd=receipt.start_mjd,
            mid_mjd=receipt.mid_mjd,
            end_mjd=receipt.end_mjd,
            ra_deg=receipt.ra_deg,
            dec_deg=receipt.dec_deg,
            flagged_fraction=receipt.flagged_fraction,
            n_rows=receipt.rows,
            n_spw=receipt.n_spw,
            writer_type=receipt.writer_type,
        )
        return receipt

    def good(receipt: ConvertReceipt) -> None:
        tools.verify_ms(site, Path(receipt.ms), receipt.rows)

    return _step(site, group_id, "convert", ConvertReceipt, owner, work, good)


def calibrate_or_find(site: Site, group_id: str, *, owner: Owner, tools: Tools = TOOLS) -> CalibrateReceipt:
    """Solve on a calibrator in the field where there is one worth it, and choose the set for the group's time.

    Returns
    -------
    CalibrateReceipt
        Where there is no set, it says ``waiting`` and the group has been put aside: stop here.

    Raises
    ------
    RejectedError
        If the solutions were turned down and no other set serves.
    ToolError
        If CASA failed.
    """
    converted = _required(site, group_id, "convert", ConvertReceipt)

    def work(queue: Queue, _scratch_dir: Path) -> CalibrateReceipt:
        row, registry = queue.group(group_id), site.registry()
        begin = time.perf_counter()
        matches = tools.match(site, converted.ra_deg, converted.dec_deg)
        queue.set_calibrators(group_id, [m.stored() for m in matches])
        worth = [m for m in matches if m.weighted_flux >= site.calibrate.min_flux_jy]
        solved, rejected = False, None
        if worth and converted.missing_subbands:
            # Its set would be the nearest of all that follow, and have no solutions for some of their windows.
            logger.warning("group %s lacks subbands: no set is solved on %s", group_id, worth[0].name)
            worth = []
        if worth:
            try:
                registered = _solve_and_register(site, registry, row, converted, worth[0], tools)
                note_tables(site, Path(converted.ms), registered, owner=owner)
                solved = True
            except RejectedError as error:
                rejected = error.what
                _note_rejection(registry, row, converted, worth[0].name, rejected)
            note_ms_state(site, Path(converted.ms))  # the model was written into it
        found = registry.find_set(
            converted.mid_mjd, dec_deg=_strip(row, converted), borrow_days=site.calibrate.borrow_days
        )
        if found is None and rejected is not None:
            raise RejectedError(f"{rejected}; and no other set serves this time", fix="look at the calibrator's data")
        name = worth[0].name if worth else None
        return chosen_set(group_id, found, solved, name, rejected, time.perf_counter() - begin)

    def good(receipt: CalibrateReceipt) -> None:
        site.registry().verify(_tables(site, receipt))

    receipt = _step(site, group_id, "calibrate", CalibrateReceipt, owner, work, good, keep=lambda r: not r.waiting)
    if receipt.waiting:
        reason = f"no calibration set for MJD {converted.mid_mjd:.5f}"
        broken = site.registry().broken_sets(
            converted.mid_mjd,
            dec_deg=_strip(site.queue().group(group_id), converted),
            borrow_days=site.calibrate.borrow_days,
        )
        if broken:
            name, fault = broken[0]
            reason += f"; {name} would serve, but {fault}"
        site.products().upsert_ms(Path(converted.ms), status="skipped_no_caltables")
        site.queue().wait_for_gains(group_id, owner, reason)
        logger.warning("group %s waits: %s", group_id, reason)
    return receipt


def apply_step(site: Site, group_id: str, *, owner: Owner, tools: Tools = TOOLS) -> ApplyReceipt:
    """Apply the chosen set; CORRECTED_DATA is proved to hold something.

    Raises
    ------
    MissingError, InputError
        If a table is gone, has changed or does not fit.
    RejectedError
        If what came out is empty.
    ToolError
        If CASA failed.
    """
    converted = _required(site, group_id, "convert", ConvertReceipt)
    calibrated = _required(site, group_id, "calibrate", CalibrateReceipt)
    ms = Path(converted.ms)

    def work(_queue: Queue, _scratch_dir: Path) -> ApplyReceipt:
        products = site.products()
        tables = _tables(site, calibrated)
        products.upsert_ms(ms, status="in_progress", stage="calibrated")
        try:
            site.registry().verify(tables)
            with owned_scratch(site.scratch_dir, group_id, "apply") as scratch:
                report = tools.apply(site, ms, tables, work=scratch, log=site.log(group_id, "apply"))
        except NightbeamError:
            products.upsert_ms(ms, stage="applycal_failed", cal_applied=0)
            raise
        note_ms_state(site, ms)
        products.upsert_ms(
            ms,
            stage="applycal_done",
            cal_applied=1,
            calibration_set=calibrated.set_name,
            cal_age_days=calibrated.age_days,
            cal_borrowed=int(calibrated.borrowed),
            flagged_fraction=report.flagged_fraction,
        )
        return ApplyReceipt(
            group_id, str(ms), str(calibrated.set_name), float(report.flagged_fraction), float(report.seconds)
        )

    def good(receipt: ApplyReceipt) -> None:
        if receipt.set_name != calibrated.set_name:
            raise InputError(f"{receipt.set_name} was applied, {calibrated.set_name} is wanted")
        # Whoever solves on the set again by hand takes back what was applied.
        tools.verify_ms(site, ms, converted.rows, applied=True)

    return _step(site, group_id, "apply", ApplyReceipt, owner, work, good)


def image_step(site: Site, group_id: str, *, owner: Owner, tools: Tools = TOOLS) -> ImageReceipt:
    """Make the image and judge it; a quick one where the site is far behind (`pressure`).

    That is decided once, before anything is made, and holds for every other attempt. A quick image that is not good
    is made in full at once. Where a full image that was owed is not good, the quick one is made again: it was good.

    Raises
    ------
    RejectedError
        With every reason, if it is not good.
    ToolError
        If the imager failed.
    """
    converted = _required(site, group_id, "convert", ConvertReceipt)
    calibrated = _required(site, group_id, "calibrate", CalibrateReceipt)
    applied = _required(site, group_id, "apply", ApplyReceipt)
    stem = site.image_stem(group_id)

    def make(scratch_dir: Path, *, quick: bool) -> ImageReceipt:
        place = as_quick(site) if quick else site
        with owned_scratch(scratch_dir, group_id, "image") as scratch:
            product = tools.image(
                place,
                Path(applied.ms),
                stem,
                provenance=provenance_of(group_id, converted, calibrated, quick=place.image.quick),
                work=scratch,
                log=site.log(group_id, "image"),
            )
        require_good(site, group_id, product, tools)
        return replace(_imaged(group_id, product), quick=quick)

    def work(queue: Queue, scratch_dir: Path) -> ImageReceipt:
        with storage_errors(stem.parent):
            stem.parent.mkdir(parents=True, exist_ok=True)
        owed = queue.group(group_id).owed
        wanted = wanted_imaging(site, owed=owed)
        decided = queue.arrears.decide(group_id, owner, wanted)
        if decided is Imaging.QUICK and is_smaller(site):
            try:
                return make(scratch_dir, quick=True)
            except RejectedError as error:
                logger.warning("group %s is imaged in full at once: %s", group_id, error.what)
                queue.arrears.decide(group_id, owner, Imaging.FULL, change=True)
        try:
            return make(scratch_dir, quick=False)
        except RejectedError as error:
            if owed != Owed.IMAGE or not is_smaller(site):
                raise
            logger.warning("group %s keeps its quick image: %s", group_id, error.what)
            queue.arrears.decide(group_id, owner, Imaging.QUICK, change=True)
            return replace(make(scratch_dir, quick=True), turned_down=error.what)

    def good(receipt: ImageReceipt) -> None:
        decided = site.queue().group(group_id).imaging
        if receipt.quick and decided == Imaging.FULL:
            raise InputError("its image is a quick one, and the full one is wanted")
        tools.finished_image(stem)

    return _step(site, group_id, "image", ImageReceipt, owner, work, good)


def record_step(site: Site, group_id: str, *, owner: Owner, tools: Tools = TOOLS) -> RecordReceipt:
    """Check once more what was made, and write the rows of the products and of the measured times.

    Raises
    ------
    MissingError, InputError, RejectedError
        If the Measurement Set or the image is not what the receipts say.
    """
    converted = _required(site, group_id, "convert", ConvertReceipt)
    calibrated = _required(site, group_id, "calibrate", CalibrateReceipt)
    imaged = _required(site, group_id, "image", ImageReceipt)
    ms, stem = Path(converted.ms), Path(imaged.stem)

    def work(queue: Queue, _scratch_dir: Path) -> RecordReceipt:
        tools.verify_ms(site, ms, converted.rows)
        product = tools.finished_image(stem)
        require_good(site, group_id, product, tools)
        products = site.products()
        note_ms_state(site, ms)
        note_image(site, group_id, ms, product, _used(site, calibrated), owner=owner)
        row = products.upsert_image(
            product.path,
            ms_path=ms,
            **image_columns(group_id, queue.group(group_id).partial, product, calibrated),
            quick=int(imaged.quick or site.image.quick),
        )
        products.upsert_ms(ms, status="done", stage="imaged", processed_at=time.time(), imagename=str(stem))
        queue.put_performance(group_id, **_performance(queue, group_id))
        return RecordReceipt(group_id, str(ms), row.path, row.id)

    def good(receipt: RecordReceipt) -> None:
        if not any(image.path == receipt.image for image in site.products().images(group_id=group_id)):
            raise MissingError(f"the products have no row for {receipt.image}")

    return _step(site, group_id, "record", RecordReceipt, owner, work, good)


def qa_step(site: Site, group_id: str, *, owner: Owner, tools: Tools = TOOLS) -> QaReceipt:
    """Judge what was made: scores with reasons, figures and a report, and their rows; no figures while behind.

    What cannot be read or drawn is among the scores as unknown, and is no reason to fail a group that has its image.

    Raises
    ------
    MissingError, InputError
        If the image is not what its receipt says.
    StorageError
        If there is no room.
    """
    converted = _required(site, group_id, "convert", ConvertReceipt)
    calibrated = _required(site, group_id, "calibrate", CalibrateReceipt)
    imaged = _required(site, group_id, "image", ImageReceipt)

    def work(queue: Queue, _scratch_dir: Path) -> QaReceipt:
        product = tools.finished_image(Path(imaged.stem))
        row = queue.group(group_id)
        expected = row.expected_subbands or site.ingest.expected_subbands
        # Whoever is taken up for what it is owed gets all of it.
        figures = row.owed is not None or not stand_back(site, f"drawing the figures of {group_id}")
        report = tools.write_qa(
            site,
            group_id,
            ms=Path(converted.ms),
            tables=tables_or_reason(site, calibrated.set_name, calibrated.tables),
            product=product,
            calibration=calibration_use(site, calibrated),
            subbands=(converted.missing_subbands, expected),
            figures=figures,
        )
        record_quality(site, group_id, report)
        return QaReceipt(group_id, {artifact.name: str(artifact.path) for artifact in report.artifacts}, figures)

    def good(receipt: QaReceipt) -> None:
        if not receipt.figures and site.queue().group(group_id).owed is not None:
            raise MissingError("its figures were put off")
        gone = [path for path in receipt.artifacts.values() if not Path(path).is_file()]
        if gone:
            raise MissingError(f"{gone[0]} is gone")

    return _step(site, group_id, "qa", QaReceipt, owner, work, good)


def finish(site: Site, group_id: str, *, owner: Owner, tools: Tools = TOOLS) -> None:
    """Complete a group, once every step has left its receipt and its image is there and unchanged.

    Raises
    ------
    MissingError, InputError
        If a step is missing, or the image is.
    """
    queue = site.queue()
    done = {receipt.step for receipt in queue.receipts(group_id)}
    missing = [step for step in STEPS if step not in done]
    if missing:
        raise MissingError(f"group {group_id} has not been through {', '.join(missing)}", fix="run those steps first")
    imaged = _required(site, group_id, "image", ImageReceipt)
    judged = _required(site, group_id, "qa", QaReceipt)
    tools.finished_image(Path(imaged.stem))
    seconds = sum(receipt.seconds or 0.0 for receipt in queue.receipts(group_id))
    queue.put_performance(group_id, group_time=seconds)
    owed = owed_by(quick=imaged.quick and not imaged.turned_down, figures=judged.figures)
    queue.complete(group_id, owner, owed=owed)
    later = {Owed.IMAGE: "; quickly, the full image follows", Owed.FIGURES: "; its figures follow", None: ""}[owed]
    logger.info("group %s is completed: %s%s", group_id, imaged.path, later)


def fail_group(site: Site, group_id: str, error: BaseException, *, owner: Owner) -> GroupRow:
    """End an attempt with its error, in the queue and in the index of Measurement Sets.

    Malformed or rejected data are failed at once; anything else is tried again while attempts are left. What a full or
    failing disk or other programs' memory ends is no attempt: the group waits for room (`nightbeam.contimg.room`).
    """
    queue = site.queue()
    text = error.what if isinstance(error, NightbeamError) else f"{type(error).__name__}: {error}"
    short = next((what for kind, what in _SHORT.items() if isinstance(error, kind)), None)
    row = queue.fail(group_id, owner, text, final=isinstance(error, _FINAL), short_of=short)
    products = site.products()
    if row.state == State.FAILED and products.ms(site.ms_path(group_id)) is not None:
        products.upsert_ms(site.ms_path(group_id), status="failed")
    logger.error("group %s is %s: %s", group_id, row.state, text)
    return row


# -- inside -----------------------------------------------------------------------------------------------------


def _why_not_here(site: Site, queue: Queue, group_id: str) -> str:
    """Return why a group cannot be converted on this machine, where its files lie in the input directory."""
    if queue.receipt(group_id, "convert") is not None or site.input_dir not in {
        f.parent for f in _files(queue, group_id)
    }:
        return ""
    why = no_input(site)
    return f"group {group_id} cannot be converted on {socket.gethostname()}: {why}" if why else ""


def _step(
    site: Site,
    group_id: str,
    name: str,
    kind: type[R],
    owner: Owner,
    work: Callable[[Queue, Path], R],
    good: Callable[[R], None],
    *,
    keep: Callable[[R], bool] = lambda _receipt: True,
) -> R:
    queue = site.queue()
    queue.heartbeat(group_id, owner, step=name)
    lock = site.group_lock(group_id)
    with (
        sole_owner(lock, wait_s=_LOCK_WAIT_S, what=f"group {group_id}"),
        keeping_lease(queue, group_id, owner, every_s=min(30.0, site.ingest.in_progress_timeout_s / 5.0)),
    ):
        found = _finished(queue, group_id, name, kind, good)
        if found is not None:
            logger.info("group %s: %s was done before", group_id, name)
            return found
        plan = _plan(site, queue, group_id, name)
        with at_work(site, group_id, name, plan, still=lambda: _still_ours(queue, group_id, owner)):
            queue.heartbeat(group_id, owner)  # while we waited it may have become somebody else's
            if name in _JUDGED:
                forget_quality(site, group_id)
            begin = time.perf_counter()
            receipt = work(queue, plan.scratch)
            seconds = time.perf_counter() - begin
    if keep(receipt):
        note_step(site, group_id, name, owner=owner, seconds=seconds)
        queue.put_receipt(group_id, owner, name, receipt.to_json(), seconds=seconds)
    logger.info("group %s: %s took %.1f s", group_id, name, seconds)
    return receipt


def _still_ours(queue: Queue, group_id: str, owner: Owner) -> None:
    """Raise BusyError where the group of a step that waits has become somebody else's, who needs its lock."""
    try:
        row = queue.group(group_id)
    except (BusyError, StorageError, UnavailableError) as error:  # of the database; the lease is asked for at the end
        logger.warning("whether group %s is still ours cannot be read: %s", group_id, error.what)
        return
    if (row.state, row.owner) != (State.IN_PROGRESS, owner.name):
        queue.heartbeat(group_id, owner)


def _finished(queue: Queue, group_id: str, name: str, kind: type[R], good: Callable[[R], None]) -> R | None:
    content = queue.receipt(group_id, name)
    receipt = None if content is None else kind.from_json(content)
    if receipt is not None:
        try:
            good(receipt)
        except (InputError, MissingError, RejectedError) as error:
            logger.warning("group %s: %s is done again: %s", group_id, name, error.what)
        else:
            return receipt
    queue.drop_receipts(group_id, STEPS[STEPS.index(name) :])
    return None


def _required(site: Site, group_id: str, name: str, kind: type[R]) -> R:
    content = site.queue().receipt(group_id, name)
    receipt = None if content is None else kind.from_json(content)
    if receipt is None:
        raise MissingError(f"group {group_id} has no receipt of {name}", fix=f"run the step {name} first")
    return receipt


def _plan(site: Site, queue: Queue, group_id: str, step: str) -> Plan:
    if step == "convert":
        return plan_step(site, group_id, step, input_bytes=_bytes(_files(queue, group_id)), set_bytes=0)
    # The subbands may have been moved away by now.
    recorded = sum(s.size_bytes or 0 for s in queue.subbands(group_id) if not s.late)
    return plan_step(site, group_id, step, input_bytes=recorded, set_bytes=directory_bytes(site.ms_path(group_id)))


def _files(queue: Queue, group_id: str) -> list[Path]:
    # Those that came after the group was taken are for whoever reprocesses it: what is partial stays so.
    return [Path(s.path) for s in queue.subbands(group_id) if not s.late]


def _bytes(files: list[Path]) -> int:
    try:
        return sum(path.stat().st_size for path in files)
    except OSError as error:
        raise MissingError(f"cannot find {error.filename}", fix="was the file moved after it was recorded?") from error


def _converted(group_id: str, report: Any) -> ConvertReceipt:
    def seconds(name: str) -> float | None:
        value = getattr(report, name)
        return None if value is None else float(value)

    return ConvertReceipt(
        group_id=group_id,
        ms=str(report.ms),
        writer_type=str(report.writer_type),
        rows=int(report.rows),
        n_spw=int(report.n_spw),
        missing_subbands=tuple(int(n) for n in report.missing_subbands),
        start_mjd=float(report.start_mjd),
        mid_mjd=float(report.mid_mjd),
        end_mjd=float(report.end_mjd),
        ra_deg=float(report.ra_deg),
        dec_deg=float(report.dec_deg),
        flagged_fraction=float(report.flagged_fraction),
        load_s=seconds("load_s"),
        phase_s=seconds("phase_s"),
        write_s=seconds("write_s"),
        total_s=float(report.total_s),
    )


def _strip(row: GroupRow, converted: ConvertReceipt) -> float:
    """Return the declination of the strip: the apparent one of the headers, by which all groups are known."""
    return row.dec_deg if row.dec_deg is not None else converted.dec_deg


def _set_name(group_id: str) -> str:
    return f"calset_{group_id}"


def _solve_and_register(
    site: Site, registry: Registry, row: GroupRow, converted: ConvertReceipt, calibrator: Any, tools: Tools
) -> list[CalTableRow]:
    group_id, ms = row.group_id, Path(converted.ms)
    prefix = site.caltable_prefix(group_id)
    with storage_errors(prefix.parent):
        prefix.parent.mkdir(parents=True, exist_ok=True)
    with owned_scratch(site.scratch_dir, group_id, "calibrate") as scratch:
        solved = tools.solve(
            site, ms, calibrator, prefix, dec_deg=row.dec_deg, work=scratch, log=site.log(group_id, "calibrate")
        )
    half = site.calibrate.validity_minutes * 60.0 / SECONDS_PER_DAY
    tables = tuple(
        TableSpec(Path(t.path), str(t.kind), int(t.order_index), t.cal_field or None, t.refant or None)
        for t in solved.tables
    )
    spec = SetSpec(
        name=_set_name(group_id),
        tables=tables,
        valid_start_mjd=converted.mid_mjd - half,
        valid_end_mjd=converted.mid_mjd + half,
        mid_mjd=converted.mid_mjd,
        dec_deg=_strip(row, converted),
        group_id=group_id,
        calibrator=calibrator.name,
        notes=f"solved on {calibrator.name} by nightbeam {__version__}",
        report=_report_of(solved),
    )
    return registry.register_set(spec)


def _report_of(solved: Any) -> dict[str, Any]:
    report = getattr(solved, "report", None)
    names = ("corrected_over_model", "coherence", "refant", "seconds")
    plain = {name: getattr(report, name, None) for name in names}
    return {**plain, "warnings": list(getattr(report, "warnings", ()))}


def _note_rejection(registry: Registry, row: GroupRow, converted: ConvertReceipt, calibrator: str, reason: str) -> None:
    registry.register_failure(
        _set_name(row.group_id),
        reason,
        group_id=row.group_id,
        calibrator=calibrator,
        mid_mjd=converted.mid_mjd,
        dec_deg=_strip(row, converted),
    )
    logger.warning("group %s: %s", row.group_id, reason)


def chosen_set(
    group_id: str,
    found: CalSet | None,
    solved: bool,
    calibrator: str | None,
    rejected: str | None,
    seconds: float,
) -> CalibrateReceipt:
    """Return the receipt of the set that was chosen for a group, or of none."""
    if found is None:
        return CalibrateReceipt(group_id, None, calibrator=calibrator, seconds=seconds)
    return CalibrateReceipt(
        group_id=group_id,
        set_name=found.set_name,
        tables=tuple(t.path for t in found.tables),
        kinds=tuple(t.table_type for t in found.tables),
        mid_mjd=found.mid_mjd,
        age_days=found.age_days,
        borrowed=found.borrowed,
        solved=solved,
        calibrator=calibrator,
        rejected=rejected,
        seconds=seconds,
    )


def _tables(site: Site, calibrated: CalibrateReceipt) -> tuple[CalTableRow, ...]:
    rows = {t.path: t for t in site.registry().tables(calibrated.set_name) if t.status == "active"}
    gone = [path for path in calibrated.tables if path not in rows]
    if gone:
        raise MissingError(
            f"the set {calibrated.set_name} no longer has {gone[0]} among its active tables",
            fix="another set will be chosen when the group is tried again",
        )
    return tuple(rows[path] for path in calibrated.tables)


def _used(site: Site, calibrated: CalibrateReceipt) -> list[CalTableRow]:
    """Return the tables that were applied, as the registry has them, active or retired since."""
    rows = {t.path: t for t in site.registry().tables(calibrated.set_name)}
    return [rows[path] for path in calibrated.tables if path in rows]


def provenance_of(
    group_id: str, converted: ConvertReceipt, calibrated: CalibrateReceipt, *, quick: bool = False
) -> Mapping[str, str]:
    """Return what an image's headers and description say of where it comes from, and whether it was made quickly."""
    made = "" if calibrated.mid_mjd is None else iso_z(datetime_from_mjd(calibrated.mid_mjd))
    flagging = converted.flagging
    flagger = {"flagger": f"{flagging['engine']} {flagging['version']} ({flagging['strategy']})"} if flagging else {}
    return {
        "group": group_id,
        **flagger,
        "calibration_set": calibrated.set_name or "",
        "calibration_date": made,
        "calibration_age_days": f"{calibrated.age_days or 0.0:.5f}",
        "calibration_borrowed": "yes" if calibrated.borrowed else "no",
        "imaging": str(Imaging.QUICK if quick else Imaging.FULL),
        "writer": converted.writer_type,
        "missing_subbands": ",".join(f"sb{n:02d}" for n in converted.missing_subbands) or "none",
        "nightbeam": __version__,
    }


def require_good(site: Site, group_id: str, product: Any, tools: Tools) -> None:
    """Raise RejectedError with every reason unless an image is good."""
    verdict = tools.judge(site, product)
    if not verdict.good:
        raise RejectedError(
            f"the image {Path(product.stem).name} is not good: {'; '.join(verdict.reasons)}",
            fix=f"`nightbeam qa make {group_id}` draws it; look at its calibration set",
        )


def _imaged(group_id: str, product: Any) -> ImageReceipt:
    path = Path(product.path)
    return ImageReceipt(
        group_id=group_id,
        stem=str(product.stem),
        path=str(path),
        sha256=product.sha256.get(path.name),
        noise_jy=float(product.noise_jy),
        peak_jy=float(product.peak_jy),
        dynamic_range=float(product.dynamic_range),
        beam_major_arcsec=float(product.beam_major_arcsec),
        seconds=float(product.seconds),
    )


def image_columns(group_id: str, partial: int, product: Any, calibrated: CalibrateReceipt) -> dict[str, Any]:
    """Return what the row of an image says, but for its path and that of its Measurement Set."""
    measured = (
        "beam_major_arcsec",
        "beam_minor_arcsec",
        "beam_pa_deg",
        "noise_jy",
        "noise_centre_jy",
        "peak_jy",
        "dynamic_range",
        "ra_deg",
        "dec_deg",
        "cell_arcsec",
        "freq_hz",
        "bandwidth_hz",
        "integration_s",
        "mid_mjd",
    )
    path = Path(product.path)
    return {
        **{name: float(getattr(product, name)) for name in measured},
        "imsize": int(product.imsize),
        "group_id": group_id,
        "pbcor": int("pbcor" in product.fits),
        "partial": partial,
        "calibration_set": calibrated.set_name,
        "cal_age_days": calibrated.age_days,
        "cal_borrowed": int(calibrated.borrowed),
        "files": {kind: str(file) for kind, file in product.fits.items()} | {"png": str(product.png)},
        "parameters": dict(product.parameters),
        "version": product.version,
        "sha256": product.sha256.get(path.name),
    }


def _performance(queue: Queue, group_id: str) -> dict[str, Any]:
    taken = {receipt.step: receipt.seconds for receipt in queue.receipts(group_id)}
    converted = queue.receipt(group_id, "convert") or {}
    return {
        "load_time": converted.get("load_s"),
        "phase_time": converted.get("phase_s"),
        "write_time": converted.get("write_s"),
        "total_time": converted.get("total_s"),
        "writer_type": converted.get("writer_type"),
        "calibrate_time": taken.get("calibrate"),
        "apply_time": taken.get("apply"),
        "image_time": taken.get("image"),
    }
