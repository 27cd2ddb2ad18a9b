"""What the steps use to work on data, by default the real things; loaded when a step needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nightbeam.catalog.model import Imaging
from nightbeam.contimg.pressure import quick_limits
from nightbeam.contimg.site import Site
from nightbeam.core.errors import InputError, MissingError

if TYPE_CHECKING:
    from nightbeam.catalog import CalTableRow
    from nightbeam.gains import ApplyReport, CalibratorMatch, CalTable, SolutionSet
    from nightbeam.imaging import ImageProduct, Verdict
    from nightbeam.ms import MsSummary
    from nightbeam.qa import CalibrationUse, QaReport, Unread
    from nightbeam.rfi import FlagReport
    from nightbeam.sky import Calibrator
    from nightbeam.uvh5.model import ConvertReport, SubbandHeader

__all__ = ["TOOLS", "Tools"]


def _read_header(path: Path) -> SubbandHeader:
    from nightbeam.uvh5.files import check_subband

    return check_subband(path)


def _convert(site: Site, files: Sequence[Path], ms: Path, *, expected_subbands: int, scratch: Path) -> ConvertReport:
    from nightbeam.uvh5.convert import convert_group

    c = site.convert
    return convert_group(
        files,
        ms,
        writer=c.writer,
        max_workers=c.max_workers,
        scratch_dir=scratch,
        expected_subbands=expected_subbands,
    )


def _flag(site: Site, ms: Path, *, work: Path, log: Path) -> FlagReport:
    from nightbeam.rfi import FlagOptions, flag_ms

    c = site.flag
    options = FlagOptions(strategy=c.strategy, max_flagged_fraction=c.max_flagged_fraction)
    return flag_ms(ms, options=options, work_dir=work, log=log, timeout_s=c.timeout_s, threads=site.threads)


def _verify_ms(site: Site, ms: Path, rows: int, *, applied: bool = False) -> None:
    from nightbeam.ms import MsExpectation, verify_ms

    found = verify_ms(ms, MsExpectation(rows=rows, max_flagged_fraction=site.convert.max_flagged_fraction))
    if applied and not found.has_corrected:
        raise InputError(f"{ms.name} has no CORRECTED_DATA", fix="apply the calibration again")


def _read_ms(ms: Path, *, prove: bool = False) -> MsSummary:
    from nightbeam.ms import MsExpectation, read_summary, verify_ms

    # Others may have written it: their windows need not ascend.
    return verify_ms(ms, MsExpectation(ascending=False)) if prove else read_summary(ms, flags=False)


def _match(site: Site, ra_deg: float, dec_deg: float) -> list[CalibratorMatch]:
    from nightbeam.gains import match_calibrators
    from nightbeam.sky import read_calibrators

    c = site.calibrate
    catalogue = read_calibrators(c.catalogue)
    return match_calibrators(
        catalogue, ra_deg=ra_deg, dec_deg=dec_deg, radius_deg=c.match_radius_deg, topn=c.match_topn
    )


def _solve(
    site: Site, ms: Path, calibrator: CalibratorMatch, prefix: Path, *, dec_deg: float | None, work: Path, log: Path
) -> SolutionSet:
    from nightbeam.gains import SolveOptions, other_sources, solve_gains
    from nightbeam.sky import read_calibrators

    c = site.calibrate
    options = SolveOptions(
        refants=c.refants,
        solve_delays=c.solve_delays,
        bp_minsnr=c.bp_minsnr,
        gain_minsnr=c.gain_minsnr,
        uvrange=c.uvrange,
        max_flagged_fraction=c.max_flagged_fraction,
        pointing_dec_deg=c.pointing_dec_deg if dec_deg is None else dec_deg,
        timeout_s=site.step_timeout_s,
        threads=site.threads,
    )
    others = other_sources(ms, calibrator, read_calibrators(c.catalogue), options=options)
    return solve_gains(ms, calibrator, prefix, options=options, others=others, work_dir=work, log=log)


def _apply(site: Site, ms: Path, tables: Sequence[CalTableRow], *, work: Path, log: Path) -> ApplyReport:
    from nightbeam.gains import apply_gains

    known = [_cal_table(row) for row in tables]
    return apply_gains(ms, known, work_dir=work, log=log, timeout_s=site.step_timeout_s, threads=site.threads)


def _cal_table(row: CalTableRow) -> CalTable | Path:
    from nightbeam.gains import CalTable, TableKind

    if row.table_type not in set(TableKind):
        return Path(row.path)  # a seed's own kind: its name says what it corrects, or it is refused
    return CalTable(Path(row.path), TableKind(row.table_type), row.order_index, row.cal_field or "", row.refant or "")


def _image(site: Site, ms: Path, stem: Path, *, provenance: Mapping[str, str], work: Path, log: Path) -> ImageProduct:
    from nightbeam.imaging import ImageOptions, image_ms

    return image_ms(
        ms,
        stem,
        options=ImageOptions.from_mapping({**site.image.model_dump(), "datacolumn": "corrected"}),
        work_dir=work,
        provenance=provenance,
        log=log,
        timeout_s=site.image.timeout_s,
        threads=site.threads,
        memory_gb=site.image.memory_gb,
    )


def _judge(site: Site, product: ImageProduct) -> Verdict:
    from nightbeam.imaging import judge_image

    return judge_image(product, min_peak_over_noise=site.image.min_peak_over_noise)


def _finished_image(stem: Path) -> ImageProduct:
    from nightbeam.imaging import read_product, verify_product

    product = read_product(stem)
    verify_product(product)
    return product


def _write_qa(
    site: Site,
    group_id: str,
    *,
    ms: Path,
    tables: Sequence[CalTableRow] | Unread,
    product: ImageProduct | Unread,
    calibration: CalibrationUse | Unread,
    subbands: tuple[Sequence[int], int] | None,
    figures: bool = True,
) -> QaReport:
    from nightbeam.imaging import ImageProduct
    from nightbeam.qa import QaLimits, Unread, write_qa

    known = tables if isinstance(tables, Unread) else [_known_table(row) for row in tables]
    quick = isinstance(product, ImageProduct) and product.provenance.get("imaging") == Imaging.QUICK
    limits = quick_limits(site.qa, site.pressure.quick_tolerance) if quick else site.qa
    catalogue, name = _catalogue(site, group_id, product.freq_hz if isinstance(product, ImageProduct) else None)
    return write_qa(
        group_id,
        site.qa_dir(),
        ms=ms,
        tables=known,
        product=product,
        catalogue=catalogue,
        catalogue_name=name,
        calibration=calibration,
        subbands=subbands,
        verdict=_judge(site, product) if isinstance(product, ImageProduct) else None,
        limits=QaLimits.from_mapping(limits.model_dump()),
        figures=figures,
    )


def _known_table(row: CalTableRow) -> CalTable | Unread:
    from nightbeam.qa import Unread

    table = _cal_table(row)
    return Unread(f"{table.name} is of the kind {row.table_type}: not judged") if isinstance(table, Path) else table


def _catalogue(site: Site, group_id: str, freq_hz: float | None) -> tuple[Sequence[Calibrator] | Unread, str]:
    """Return the sources that an image is held against, and what they are: the site's, the simulator's or the VLA's.

    Simulated data have their truth beside them; at a site that names a catalogue, that is what counts.
    """
    from nightbeam.qa import Unread
    from nightbeam.sky import read_calibrators

    path = site.mosaic.catalogue
    try:
        if path is None:
            truth = _simulated(site, group_id, freq_hz)
            if truth:
                return truth, "the truth of the simulation"
        listed = read_calibrators(path or site.calibrate.catalogue)
    except (InputError, MissingError) as error:
        return Unread(error.what), "the catalogue"
    return listed, path.name if path else "the calibrator list"


def _simulated(site: Site, group_id: str, freq_hz: float | None) -> list[Calibrator]:
    """Return the true sources of a simulated group at the frequency of its image; none of any other group."""
    from nightbeam.simulate import read_truth
    from nightbeam.sky import Calibrator

    try:
        truth = read_truth(site.input_dir)
    except MissingError:
        return []
    if group_id not in {group.group_id for group in truth.groups}:
        return []
    ratio = (freq_hz or truth.reference_freq_hz) / truth.reference_freq_hz
    return [Calibrator(s.name, s.ra_deg, s.dec_deg, s.flux_jy * ratio**s.spectral_index) for s in truth.sources]


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions that touch data; tests put others in their place."""

    read_header: Callable[[Path], Any] = _read_header
    convert: Callable[..., Any] = _convert
    flag: Callable[..., Any] = _flag
    verify_ms: Callable[..., None] = _verify_ms
    read_ms: Callable[..., Any] = _read_ms
    match: Callable[..., Any] = _match
    solve: Callable[..., Any] = _solve
    apply: Callable[..., Any] = _apply
    image: Callable[..., Any] = _image
    judge: Callable[..., Any] = _judge
    finished_image: Callable[[Path], Any] = _finished_image
    write_qa: Callable[..., Any] = _write_qa


TOOLS = Tools()
