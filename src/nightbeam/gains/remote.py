"""Solving and applying gains: our model and our checks around CASA's solvers in child processes."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.casa import CasaCall, run_casa
from nightbeam.casa.tables import is_table
from nightbeam.core.errors import InputError, MissingError, RejectedError, ToolError, UsageError
from nightbeam.core.files import part_path, remove, replace_path, storage_errors, write_text
from nightbeam.gains.compute import (
    accept,
    averaging_interval_s,
    beam_on_sources,
    choose_refant,
    divide_gains,
    field_sources,
    gain_cube,
    model_ratio,
    pointing_track,
    table_stats,
)
from nightbeam.gains.files import (
    Sample,
    average_for_solving,
    check_tables,
    fill_model,
    flag_bad_data,
    match_windows,
    read_caltable,
    read_layout,
    read_sample,
    read_times,
    restore_flags,
    undo_calibration,
)
from nightbeam.gains.model import (
    ApplyReport,
    CalibratorMatch,
    CalSolutions,
    CalTable,
    CatalogueSource,
    FlagReport,
    ModelSource,
    MsLayout,
    RefantChoice,
    SolutionReport,
    SolutionSet,
    SolveOptions,
    TableKind,
    TableStats,
)
from nightbeam.sky import Site

__all__ = [
    "DRIFT_TELESCOPES",
    "apply_gains",
    "judge_tables",
    "other_sources",
    "solve_gains",
    "tables_of_prefix",
    "write_model",
]

logger = logging.getLogger(__name__)

#: Telescopes that stand on the meridian while the sky drifts through.
DRIFT_TELESCOPES = frozenset({"OVRO_MMA", "DSA_110", "DSA-110", "DSA"})

_AUTOFLAG: dict[str, dict[str, Any]] = {
    "tfcrop": {
        "mode": "tfcrop",
        "timecutoff": 4.0,
        "freqcutoff": 4.0,
        "timefit": "line",
        "freqfit": "poly",
        "maxnpieces": 5,
        "flagdimension": "freqtime",
        "extendflags": False,
    },
    "rflag": {"mode": "rflag", "timedevscale": 4.0, "freqdevscale": 4.0, "extendflags": False},
}


def solve_gains(
    ms: Path,
    calibrator: CalibratorMatch,
    out_prefix: Path,
    *,
    options: SolveOptions | None = None,
    others: Iterable[ModelSource] = (),
    field: int = 0,
    work_dir: Path,
    log: Path,
) -> SolutionSet:
    """Solve delays (if asked for), bandpass and gains on a calibrator, and accept or refuse the set as a whole.

    The chain is: [K] -> phases at a short interval (used for the bandpass only) -> B -> complex G -> [fast G].
    Each table is solved with exactly those before it that will be applied with it.

    Parameters
    ----------
    ms
        Gets flags on bad data and MODEL_DATA. Gains that were applied before are taken back: their flags,
        and CORRECTED_DATA.
    calibrator
        Who it is; its flux is taken at 1.405 GHz.
    out_prefix
        Tables are named ``<out_prefix>_bpcal`` and so on; ``<out_prefix>_solutions.json`` says how they fared,
        accepted or not.
    others
        Further sources of the field's model.
    field
        Index of the field to solve on.
    work_dir, log
        For CASA's children.

    Returns
    -------
    SolutionSet

    Raises
    ------
    RejectedError
        With the reasons, when the solutions are not good enough. No table is left under its final name.
    InputError, MissingError
        If the data, the field or the reference antenna cannot be used.
    ToolError
        If CASA fails.
    """
    options = options or SolveOptions()
    begin = time.perf_counter()
    layout = read_layout(ms)
    _require_field(layout, field)
    undo_calibration(ms)
    flags = flag_data(ms, options=options, work_dir=work_dir, log=log)
    refuse_flagged(ms, flags, options.max_flagged_fraction)
    refant = choose_refant(layout.antenna_names, layout.antenna_xyz_m, flags.unflagged_baselines, options.refants)
    logger.info("%s: reference antenna %s (%s)", ms.name, refant.name, refant.reason)
    source = ModelSource(
        calibrator.name, calibrator.ra_deg, calibrator.dec_deg, calibrator.flux_jy, calibrator.spectral_index
    )
    others = tuple(others)
    write_model(ms, [source, *others], field=field, options=options)
    out_prefix = out_prefix.absolute()
    staging = part_path(out_prefix)
    try:
        with storage_errors(staging):
            staging.mkdir(parents=True)
        data, steady = _averaged(ms.absolute(), staging, field, options)
        steps = _chain(data, staging / out_prefix.name, _casa_antenna(layout, refant), field, steady)
        complaint = _run_chain(steps, data, options, work_dir, log, field=field)
        made = _made_tables(steps, str(field), refant.name)
        report = judge_tables(
            ms, made, options=options, field=field, flags=flags, refant=refant, extra_reasons=complaint,
            expected=len([s for s in steps if s.kind]), seconds=time.perf_counter() - begin,
        )  # fmt: skip
        _write_report(out_prefix, calibrator, others, report)
        if not report.accepted:
            raise RejectedError(
                f"the solutions of {calibrator.name} from {ms.name} are not accepted: {'; '.join(report.reasons)}",
                fix="look at the data and their flags, or solve on another observation",
            )
        return SolutionSet(_publish(made, out_prefix), report, calibrator)
    finally:
        remove(staging)


def other_sources(
    ms: Path,
    calibrator: CalibratorMatch,
    catalogue: Iterable[CatalogueSource],
    *,
    options: SolveOptions | None = None,
    field: int = 0,
) -> list[ModelSource]:
    """Return the other listed sources in the beam that are worth a place in the model beside the calibrator.

    Those of at least 1 % of its flux times beam (`field_sources`). None for telescopes other than ours: the
    list's fluxes are for 20 cm, and the beam of `SolveOptions` is that of our dishes.
    """
    options = options or SolveOptions()
    layout = read_layout(ms)
    if layout.telescope not in DRIFT_TELESCOPES:
        return []
    _require_field(layout, field)
    ra_deg, dec_deg = (float(x) for x in layout.field_deg[field])
    found = field_sources(
        catalogue, calibrator, ra_deg=ra_deg, dec_deg=dec_deg,
        beam_model=options.beam_model, dish_diameter_m=options.dish_diameter_m,
    )  # fmt: skip
    if found:
        names = ", ".join(f"{s.name} {s.flux_jy:g} Jy" for s in found)
        logger.info("%s: the model also holds %s", ms.name, names)
    return found


@dataclass(frozen=True, slots=True)
class _Data:
    """What the solves read. ``still``: all times in one, from which those solve whose gains stand still."""

    ms: Path
    still: Path | None = None
    #: As ``still``, the phases of before the bandpass divided out.
    steadied: Path | None = None


def _averaged(ms: Path, staging: Path, field: int, options: SolveOptions) -> tuple[_Data, SolveOptions]:
    """Return what to solve from, and the options for it: intervals as long as a row are then every integration."""
    names = ("pre_bandpass_interval", "gain_interval", "fast_interval")
    intervals = {name: getattr(options, name) for name in names}
    seconds = averaging_interval_s(intervals.values())
    if not options.average or seconds is None:
        return _Data(ms), options
    small = staging / "averaged.ms"
    rows = average_for_solving(ms, small, field=field, interval_s=seconds)
    logger.info("%s: solving from %d averaged rows", ms.name, rows)
    ours: dict[str, Any] = {
        k: "int" for k, v in intervals.items() if v is not None and averaging_interval_s([v]) == seconds
    }
    # Between the times of longer intervals CASA interpolates the phases; those of every row it need not.
    steadied = staging / "steadied.ms" if "pre_bandpass_interval" in ours else None
    still = staging / "still.ms" if options.gain_interval.lower().startswith("inf") else None
    return _Data(small, still, steadied), replace(options, **ours)


def _average_again(data: _Data, phases: Path, *, field: int) -> None:
    """Write what the bandpass and gains that stand still are solved from: one row a baseline and window."""
    for out, gains in ((data.steadied, [read_caltable(phases)]), (data.still, [])):
        if out is not None:
            average_for_solving(data.ms, out, field=field, interval_s=np.inf, weighted=True, gains=gains)


def _casa_antenna(layout: MsLayout, refant: RefantChoice) -> str:
    """Return what CASA takes for this antenna: it reads "1c" as a quantity with a unit, but knows its number."""
    if re.fullmatch(r"\d+|[A-Za-z]\w*", refant.name) or str(refant.index) in layout.antenna_names:
        return refant.name
    return str(refant.index)


def _require_field(layout: MsLayout, field: int) -> None:
    if not 0 <= field < len(layout.field_names):
        raise InputError(f"{layout.path} has no field {field}", fix=f"it has {', '.join(layout.field_names)} (from 0)")


def flag_data(ms: Path, *, options: SolveOptions, work_dir: Path, log: Path) -> FlagReport:
    """Flag what cannot be data, run the automatic flaggers that are asked for, and count."""
    unknown = [name for name in options.autoflag if name not in _AUTOFLAG]
    if unknown:
        raise UsageError(f"no automatic flagger {unknown[0]!r}", fix=f"choose from {', '.join(_AUTOFLAG)}")
    report = flag_bad_data(ms, clip_above=options.clip_above)
    if not options.autoflag:
        return report
    calls = [
        CasaCall(
            "flagdata",
            {"vis": ms.absolute(), "datacolumn": "data", "action": "apply", "flagbackup": False, **_AUTOFLAG[name]},
        )
        for name in options.autoflag
    ]
    run_casa(calls, work_dir=work_dir, log=log, timeout_s=options.timeout_s, threads=options.threads)
    return flag_bad_data(ms, clip_above=options.clip_above)


def refuse_flagged(ms: Path, flags: FlagReport, limit: float) -> None:
    """Raise RejectedError, with every reason, when the data of living antennas are not worth solving on."""
    reasons = []
    if flags.bad_weights > limit:
        reasons.append(
            f"{flags.bad_weights:.1%} of the rows have a weight that is not positive ({flags.weight_example:.3g})"
        )
    if flags.active_fraction > limit:
        dead = f", {len(flags.dead)} antennas dead" if flags.dead else ""
        reasons.append(f"{flags.active_fraction:.1%} of the data is flagged{dead} (limit {limit:.0%})")
    if reasons:
        if flags.absurd:
            reasons.append(f"{flags.absurd} visibilities are ten thousand times the typical amplitude")
        raise RejectedError(
            f"{ms.name} is not worth solving on: {'; '.join(reasons)}", fix="look at how the data were taken"
        )


def write_model(
    ms: Path, sources: Sequence[ModelSource], *, field: int = 0, options: SolveOptions | None = None
) -> None:
    """Write MODEL_DATA: the sources as seen from the phase centre through the (drifting) primary beam."""
    options = options or SolveOptions()
    layout = read_layout(ms)
    times = read_times(ms)
    centre = float(layout.field_deg[field][0]), float(layout.field_deg[field][1])
    drift = layout.telescope in DRIFT_TELESCOPES if options.drift is None else options.drift
    if drift:
        site = _site(layout)
        track = pointing_track(times, centre, site=site, pointing_dec_deg=options.pointing_dec_deg)
    else:
        track = np.full(len(times), centre[0]), np.full(len(times), centre[1])
    beam = beam_on_sources(
        sources, track, layout.channel_hz, beam_model=options.beam_model, dish_diameter_m=options.dish_diameter_m
    )
    fill_model(ms, sources, field=field, beam=beam, times_mjd=times)


def _site(layout: MsLayout) -> Site:
    import erfa

    east, north, height = erfa.gc2gd(1, layout.antenna_xyz_m.mean(axis=0))
    return Site(float(np.degrees(east)), float(np.degrees(north)), float(height))


@dataclass(frozen=True, slots=True)
class _Step:
    """One solve; ``kind`` None: used on the way and not applied to anything."""

    call: CasaCall
    table: Path
    kind: TableKind | None


def _chain(data: _Data, stem: Path, refant: str, field: int, options: SolveOptions) -> list[_Step]:
    steps: list[_Step] = []
    shared: dict[str, Any] = {
        "vis": data.ms,
        "field": str(field),
        "uvrange": options.uvrange,
        "refant": refant,
        "minblperant": options.min_baselines,
        "parang": False,
    }

    def add(task: str, kind: TableKind | None, suffix: str, priors: Sequence[_Step], **own: Any) -> _Step:
        table = stem.with_name(stem.name + suffix)
        before = {
            "gaintable": [p.table for p in priors],
            "gainfield": [""] * len(priors),
            "interp": [p.kind.interp if p.kind else "linear" for p in priors],
        }
        step = _Step(CasaCall(task, {**shared, **before, **own, "caltable": table}), table, kind)
        steps.append(step)
        return step

    applied: list[_Step] = []
    if options.solve_delays:
        kind = TableKind.DELAY
        own = {"gaintype": "K", "solint": "inf", "combine": "scan", "minsnr": options.gain_minsnr}
        applied.append(add("gaincal", kind, kind.suffix, applied, **own))
    phases = add(
        "gaincal", None, "_prebp", applied,
        gaintype="G", calmode="p", solint=options.pre_bandpass_interval, minsnr=options.gain_minsnr,
    )  # fmt: skip
    kind = TableKind.BANDPASS
    band = add(
        "bandpass", kind, kind.suffix, applied if data.steadied else [*applied, phases],
        vis=data.steadied or data.ms, bandtype="B", solint="inf", combine="scan", solnorm=True,
        minsnr=options.bp_minsnr, fillgaps=options.fill_gaps,
    )  # fmt: skip
    applied.append(band)
    kind = TableKind.GAIN
    combine = "scan" if options.gain_interval == "inf" else ""
    own = {"gaintype": "G", "calmode": "ap", "solint": options.gain_interval, "combine": combine}
    own["vis"] = data.still or data.ms
    applied.append(add("gaincal", kind, kind.suffix, applied, minsnr=options.gain_minsnr, **own))
    if options.fast_interval:
        kind = TableKind.SHORT
        own = {"gaintype": "G", "calmode": "ap", "solint": options.fast_interval, "combine": ""}
        add("gaincal", kind, kind.suffix, applied, minsnr=options.gain_minsnr, **own)
    return steps


def _run_chain(
    steps: Sequence[_Step], data: _Data, options: SolveOptions, work_dir: Path, log: Path, *, field: int
) -> list[str]:
    """Run the solves; what is returned are reasons to reject (a solver that found nothing to solve)."""
    phases = next(number for number, step in enumerate(steps) if step.kind is None)
    if data.still is None and data.steadied is None:
        return _run_solves(steps, options, work_dir, log)
    complaint = _run_solves(steps[: phases + 1], options, work_dir, log)
    if complaint:
        return complaint
    _average_again(data, steps[phases].table, field=field)
    return _run_solves(steps[phases + 1 :], options, work_dir, log)


def _run_solves(steps: Sequence[_Step], options: SolveOptions, work_dir: Path, log: Path) -> list[str]:
    try:
        run_casa(
            [step.call for step in steps],
            work_dir=work_dir,
            log=log,
            timeout_s=options.timeout_s,
            threads=options.threads,
        )
    except ToolError as error:
        # A solver without data returns normally and writes no table; the next one, which names it, then fails.
        nothing = re.search(r"[Ff]ound no unflagged data|no valid data|no unflagged data", error.what)
        first = next((s for s in steps if not is_table(s.table)), None)
        if first is None or not (nothing or _solved_nothing(log)):
            raise
        return [f"{first.table.name}: CASA found no unflagged data to solve from"]
    missing = [step.table.name for step in steps if not is_table(step.table)]
    if missing and _solved_nothing(log):
        return [f"{missing[0]}: CASA found no unflagged data to solve from"]
    return [f"{name}: CASA returned normally and wrote no table" for name in missing]


def _solved_nothing(log: Path) -> bool:
    from nightbeam.core.children import log_tail

    return "ound no unflagged data" in log_tail(log, lines=400, most=65536)


def _made_tables(steps: Sequence[_Step], cal_field: str, refant: str) -> list[CalTable]:
    return [
        CalTable(step.table, step.kind, step.kind.order_index, cal_field, refant)
        for step in steps
        if step.kind and is_table(step.table)
    ]


def judge_tables(
    ms: Path,
    tables: Sequence[CalTable],
    *,
    options: SolveOptions,
    field: int = 0,
    flags: FlagReport | None = None,
    refant: RefantChoice | None = None,
    extra_reasons: Sequence[str] = (),
    expected: int = 0,
    seconds: float = 0.0,
) -> SolutionReport:
    """Look into the tables themselves and say whether they can be believed.

    ``ms`` is what they were solved from; its MODEL_DATA is what the corrected data are compared with.
    """
    reasons, solutions, stats = list(extra_reasons), [], []
    with_data = None
    if flags is not None and flags.receptor_samples:
        with_data = np.array(flags.receptor_samples) > 0
    for table in tables:
        try:
            found = read_caltable(table.path)
        except InputError as error:
            reasons.append(error.what)
            continue
        solutions.append(found)
        stats.append(table_stats(found, name=table.path.name, kind=table.kind, receptors_with_data=with_data))
    if len(stats) < expected and not reasons:
        reasons.append(f"only {len(stats)} of {expected} tables were written")
    if refant is not None:
        reasons += _refant_reasons(stats, refant)
    ratio, coherence = None, None
    if stats and len(stats) == len(tables) and not extra_reasons:
        ratio, coherence = calibrator_ratio(ms, solutions, field=field)
        if ratio is None:
            reasons.append("no calibrated data are left to compare with the model")
    failed, warnings = accept(stats, options.acceptance, corrected_over_model=ratio, coherence=coherence)
    reasons += [reason for reason in failed if reason not in reasons and not (extra_reasons and "no table" in reason)]
    return SolutionReport(
        accepted=not reasons,
        reasons=tuple(reasons),
        warnings=tuple(warnings),
        tables=tuple(stats),
        corrected_over_model=ratio,
        coherence=coherence,
        refant=refant.name if refant else "",
        refant_reason=refant.reason if refant else "",
        flags=flags,
        seconds=seconds,
    )


def _refant_reasons(stats: Sequence[TableStats], refant: RefantChoice) -> list[str]:
    # An array whose antennas are named by numbers invites CASA to take a name for an index.
    return [
        f"{table.name}: CASA referred the phases to {', '.join(table.refants)}, not to {refant.name}"
        for table in stats
        if table.refants and refant.name not in table.refants
    ]


def calibrator_ratio(
    ms: Path, solutions: Sequence[CalSolutions], *, field: int = 0
) -> tuple[float | None, float | None]:
    """Return corrected over model flux, and the coherence, from a sample of the data (`model_ratio`).

    The gains are divided out here, by numpy, as an independent look at what the tables hold.
    """
    layout = read_layout(ms)
    corrected, model, good = [], [], []
    for sample in read_sample(ms, ["DATA", "MODEL_DATA"], field=field):
        data, flags = _divide(sample, solutions, layout)
        corrected.append(data.ravel())
        model.append(sample.columns["MODEL_DATA"].ravel())
        good.append(~flags.ravel())
    if not corrected:
        return None, None
    return model_ratio(np.concatenate(corrected), np.concatenate(model), np.concatenate(good))


def _divide(
    sample: Sample, solutions: Sequence[CalSolutions], layout: MsLayout
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    data, flags = sample.columns["DATA"].astype(complex), sample.flags | ~np.isfinite(sample.columns["DATA"])
    data[flags] = 0
    middle = float(np.median(sample.time_mjd))
    for found in solutions:
        gains, bad = gain_cube(found, sample.window, layout.channel_hz[sample.window], middle)
        data, flags = divide_gains(data, flags, sample.antenna1, sample.antenna2, gains, bad)
    return data, flags


def _write_report(
    out_prefix: Path, calibrator: CalibratorMatch, others: Sequence[ModelSource], report: SolutionReport
) -> None:
    record = {"calibrator": asdict(calibrator), "others": [asdict(source) for source in others], **asdict(report)}
    write_text(out_prefix.with_name(out_prefix.name + "_solutions.json"), json.dumps(record, indent=1) + "\n")


def _publish(made: Sequence[CalTable], out_prefix: Path) -> tuple[CalTable, ...]:
    final = []
    for table in made:
        target = out_prefix.with_name(table.path.name)
        with storage_errors(target):
            replace_path(table.path, target)
        final.append(CalTable(target, table.kind, table.order_index, table.cal_field, table.refant))
    return tuple(final)


def tables_of_prefix(prefix: Path) -> tuple[CalTable, ...]:
    """Return the tables ``<prefix>_bpcal`` and so on that exist, in the order in which they are applied.

    Raises
    ------
    MissingError
        If there is none.
    """
    kinds = sorted(TableKind, key=lambda kind: kind.order_index)
    found = [(kind, prefix.with_name(prefix.name + kind.suffix)) for kind in kinds]
    tables = tuple(CalTable(path, kind, kind.order_index, "", "") for kind, path in found if is_table(path))
    if not tables:
        raise MissingError(f"no calibration tables begin with {prefix}", fix="solve first, or correct the prefix")
    return tables


def table_at(path: Path) -> CalTable:
    """Return the table of a path, its kind told by its name.

    Raises
    ------
    InputError
        If the name ends in no suffix that we know.
    """
    for kind in TableKind:
        if path.name.endswith(kind.suffix):
            return CalTable(path, kind, kind.order_index, "", "")
    known = ", ".join(kind.suffix for kind in TableKind)
    raise InputError(f"the name of {path} does not say what it corrects", fix=f"let it end in one of {known}")


def apply_gains(
    ms: Path,
    tables: Sequence[CalTable | Path],
    *,
    work_dir: Path,
    log: Path,
    timeout_s: float = 1800.0,
    threads: int = 1,
    calwt: bool = False,
    gainfield: str = "",
) -> ApplyReport:
    """Apply calibration tables to a Measurement Set: CORRECTED_DATA, and flags where there is no solution.

    Doing it twice gives the same, and applying another set does not inherit the flags of the first: FLAG
    is brought back to what it was before any calibration.

    Parameters
    ----------
    tables
        In any order; they are applied by ``order_index``. Paths are told by their suffix.
    calwt
        Whether weights are scaled by the gains too. Off, because WEIGHT counts samples here: scaling it by
        gains would claim that the raw noise of all receivers is equal, which nobody has measured.
    gainfield
        Which solutions of a table with several calibrators: CASA's ``"nearest"`` on the sky, or a field.

    Raises
    ------
    MissingError, InputError
        If a table is absent, or was not solved for these antennas, windows and products.
    RejectedError
        If CORRECTED_DATA then holds nothing: absent, all flagged, all zero or non-finite.
    ToolError
        If CASA fails.
    """
    if not tables:
        raise UsageError("there are no tables to apply", fix="name at least one")
    begin = time.perf_counter()
    layout = read_layout(ms)
    known = [t if isinstance(t, CalTable) else table_at(Path(t)) for t in tables]
    ordered = sorted(known, key=lambda t: t.order_index)
    _refuse_doubles(ordered)
    windows = [list(match_windows(found, layout)) for found in check_tables(ordered, layout)]
    restore_flags(ms)
    before = _flagged_fraction(ms)
    call = CasaCall(
        "applycal",
        {
            "vis": ms.absolute(),
            "gaintable": [t.path.absolute() for t in ordered],
            "gainfield": [gainfield] * len(ordered),
            "interp": [t.kind.interp for t in ordered],
            "spwmap": [] if all(own == list(range(len(own))) for own in windows) else windows,
            "calwt": [calwt] * len(ordered),
            "parang": False,
            "applymode": "calflag",
            "flagbackup": False,
        },
    )
    run_casa([call], work_dir=work_dir, log=log, timeout_s=timeout_s, threads=threads)
    sample, amplitude, ratio = verify_corrected(ms)
    return ApplyReport(
        ms=ms,
        tables=tuple(t.path for t in ordered),
        flagged_before=before,
        flagged_fraction=_flagged_fraction(ms),
        sample=sample,
        median_amplitude=amplitude,
        corrected_over_model=ratio,
        seconds=time.perf_counter() - begin,
    )


def _refuse_doubles(tables: Sequence[CalTable]) -> None:
    kinds = [t.kind for t in tables]
    twice = [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]
    if twice:
        names = ", ".join(t.path.name for t in tables if t.kind is twice[0])
        raise InputError(f"{names} correct the same thing ({twice[0].value}) twice", fix="apply one of them")


def _flagged_fraction(ms: Path) -> float:
    samples = read_sample(ms, [])
    total = sum(s.flags.size for s in samples)
    return float(sum(int(s.flags.sum()) for s in samples) / total) if total else 1.0


def verify_corrected(ms: Path) -> tuple[int, float, float | None]:
    """Return the size of an unflagged sample of CORRECTED_DATA, its median amplitude, and its ratio to the model.

    Raises
    ------
    RejectedError
        If the column is absent, or its sample is empty, all zero or not finite.
    """
    layout = read_layout(ms)
    if "CORRECTED_DATA" not in layout.columns:
        raise RejectedError(f"{ms.name} has no CORRECTED_DATA after applycal", fix="read the log of the step")
    compare = "MODEL_DATA" in layout.columns
    samples = read_sample(ms, ["CORRECTED_DATA", *(["MODEL_DATA"] if compare else [])])
    values = np.concatenate([s.columns["CORRECTED_DATA"][~s.flags] for s in samples] or [np.zeros(0, complex)])
    if values.size == 0:
        raise RejectedError(
            f"every sample of {ms.name} is flagged after applycal", fix="the solutions do not cover these data"
        )
    if not np.isfinite(values).all() or not values.any():
        what = "zero" if np.isfinite(values).all() else "not finite"
        raise RejectedError(f"CORRECTED_DATA of {ms.name} is {what} in unflagged samples", fix="solve again")
    ratio = None
    if compare:
        model = np.concatenate([s.columns["MODEL_DATA"][~s.flags] for s in samples])
        if not np.all(model == 1.0):  # 1 is what a column holds that nobody has filled
            ratio, _ = model_ratio(values, model, np.ones(values.size, bool))
    return int(values.size), float(np.median(np.abs(values))), ratio
