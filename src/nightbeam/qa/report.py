"""The quality-control files of a group or a mosaic: figures small enough to embed, the numbers in them, one report."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, NightbeamError
from nightbeam.core.files import storage_errors, write_bytes
from nightbeam.gains.model import CalSolutions, CalTable, CatalogueSource, TableKind
from nightbeam.imaging.figures import png_bytes
from nightbeam.imaging.files import SkyImage, measure_sources, open_image
from nightbeam.imaging.model import ImageProduct, SourceFit
from nightbeam.imaging.model import Verdict as ImageVerdict
from nightbeam.qa.compute import (
    FlagSummary,
    bandpass_panels,
    by_spacing,
    compare_sources,
    elongation,
    gain_panels,
    gain_points,
    judge,
    largest_gap,
    sum_flags,
    thermal_noise_jy,
    worst_first,
)
from nightbeam.qa.files import (
    METRICS,
    count_flags,
    image_outline,
    read_coarse,
    sample_visibilities,
    update_metrics,
)
from nightbeam.qa.measures import (
    Unread,
    calibration_measures,
    corrected_measures,
    coverage_measures,
    flag_measures,
    image_measures,
    source_measures,
    subband_measures,
    table_measures,
)
from nightbeam.qa.model import (
    MOST_BYTES,
    CalibrationUse,
    FlagCounts,
    Grade,
    Measure,
    QaArtifact,
    QaLimits,
    QaReport,
    Score,
    SourceComparison,
    VisibilitySample,
)

__all__ = ["write_mosaic_qa", "write_qa"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Larger images are shown in cells, of which their figure has no more than this on a side.
_SHOWN_PIXELS = 1500
#: A source of a list must stand out of the noise by so much to be expected in an image.
_EXPECTED_SNR = 10.0
#: Nor is one expected where the primary beam is less than this, and no more of them are measured.
_LEAST_BEAM, _MOST_SOURCES = 0.2, 30
#: Nearer than so many beams a neighbour changes a source's peak.
_ALONE_BEAMS = 2.0
#: What keys end with that hold places on the sky, or outlines there.
_PLACES = ("ra_deg", "dec_deg", "tiles", "rejected")
#: Of the outlines of tiles there are no more points than this beside a figure.
_OUTLINE_POINTS = 1600
_UV_DOTS, _DOTS = 4000, 1500
#: The receivers' noise is known of DSA-110.
_KNOWN_RECEIVERS = frozenset({"OVRO_MMA", "DSA_110", "DSA-110", "DSA110"})


#: Sections of the report of more than one name, or another, by what they are made of.
_SECTIONS = {"ms": ("flags", "coverage", "visibilities"), "image": ("image", "sources")}


@dataclass
class _Made:
    """What one call has made so far."""

    limits: QaLimits
    draws: bool = True
    figures: dict[str, tuple[Any, Mapping[str, Any]]] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)

    def name_of(self, wanted: str) -> str:
        """Return a name that no table of this call has had, ``bpcal`` and then ``bpcal2``."""
        self.names[wanted] += 1
        return wanted if self.names[wanted] == 1 else f"{wanted}{self.names[wanted]}"

    def judge(self, measures: Sequence[Measure]) -> None:
        self.scores += map(judge, measures)

    def draw(self, name: str, draw: Callable[[], Any], numbers: Mapping[str, Any]) -> None:
        """Keep a figure with its numbers; where the data cannot be drawn, that is said among the scores."""
        if not self.draws:
            return
        figure = _read(draw)
        if isinstance(figure, Unread):
            reason = f"{name}.png could not be drawn: {figure.reason}"
            self.scores.append(Score(f"figure_{name}", None, "", None, Grade.UNKNOWN, reason))
        else:
            self.figures[name] = figure, numbers


def _read(function: Callable[..., T], *arguments: Any, **keywords: Any) -> T | Unread:
    """Return what a function returns, or why the data do not allow it.

    What may be better next time (a full disk, a table that somebody writes) is raised, and so is whatever is
    no fault of the data.
    """
    try:
        return function(*arguments, **keywords)
    except NightbeamError as error:
        if error.retry:
            raise
        logger.warning("quality control goes on without: %s", error.what)
        return Unread(error.what)


def write_qa(
    group_id: str,
    qa_dir: Path,
    *,
    ms: Path | None = None,
    tables: Sequence[CalTable | Unread] | Unread = (),
    product: ImageProduct | Unread | None = None,
    catalogue: Sequence[CatalogueSource] | Unread | None = None,
    catalogue_name: str = "the list",
    calibration: CalibrationUse | Unread | None = None,
    subbands: tuple[Sequence[int], int] | None = None,
    verdict: ImageVerdict | None = None,
    extra: Mapping[str, Any] | None = None,
    limits: QaLimits | None = None,
    figures: bool = True,
) -> QaReport:
    """Judge a group, and write what there is to be seen of it into ``qa_dir/group_id``.

    It may be called for some parts only: the report keeps the sections that a call says nothing of. Those of what is
    given and cannot be read become null.
    A part that cannot be read or drawn leaves ``unknown`` among the scores, with the reason, and the rest is made.

    Parameters
    ----------
    group_id
        Name of the group.
    qa_dir
        Where groups have their directories.
    ms
        Gives ``flags``, ``uv`` and ``visibilities``.
    tables
        Each gives its solutions by antenna: ``bpcal_amplitude`` and ``bpcal_phase``, ``gacal``, and so on.
    product
        Gives ``image`` and, with ``catalogue``, ``sources``.
    catalogue, catalogue_name
        What sources are compared with, ICRS degrees and Jy.
    calibration
        What served the group.
    subbands
        The numbers of those that are missing, and how many there should be.
    verdict
        What the gate said of the image; for the report only.
    extra
        More sections of JSON types for the report.
    limits
        By what it is judged.
    figures
        Whether they are drawn; the scores are the same without.

    Returns
    -------
    QaReport
        For each figure a PNG and a JSON of the same name with the numbers drawn, each at most 100 kB; ``metrics.json``
        is the last. The scores are those of this call, the worst first.

    Raises
    ------
    StorageError
        If there is no room.
    BusyError
        If a table is being written.
    """
    made = _Made(limits or QaLimits(), figures, sections={"group_id": group_id, **(extra or {})})
    asked = {"ms": ms, "tables": tables or None, "calibration": calibration, "image": product, "sources": catalogue}
    for part, given in asked.items():  # what an earlier call said of what is given does not hold
        made.sections |= {} if given is None else dict.fromkeys(_SECTIONS.get(part, (part,)))
    counts = _data_part(ms, made) if ms is not None else Unread("the Measurement Set was not looked at")
    if isinstance(tables, Unread):
        made.scores.append(Score("solutions", None, "", None, Grade.UNKNOWN, tables.reason))
    else:
        for table in tables:
            if isinstance(table, Unread):
                name = made.name_of("solutions")
                made.scores.append(Score(name, None, "", None, Grade.UNKNOWN, table.reason))
            else:
                _table_part(table, counts, made)
    if calibration is not None:
        made.judge(calibration_measures(calibration, made.limits))
        if isinstance(calibration, CalibrationUse):
            made.sections["calibration"] = asdict(calibration)
    if subbands is not None:
        made.judge(subband_measures(*subbands, made.limits))
    if product is not None:
        _image_part(product, catalogue, catalogue_name, counts, made)
    if verdict is not None:
        made.sections["verdict"] = asdict(verdict)
    scores = tuple(worst_first(made.scores))
    if scores:
        made.sections["scores"] = [asdict(score) for score in scores]
    directory = qa_dir / group_id
    artifacts = _write_figures(group_id, directory, made.figures)
    path = update_metrics(directory, _plain(made.sections))
    return QaReport((*artifacts, QaArtifact(group_id, METRICS, path)), scores)


def write_mosaic_qa(
    name: str,
    qa_dir: Path,
    image_path: Path,
    noise_path: Path | None,
    *,
    tiles: Sequence[Path] = (),
    rejected: Sequence[Path] = (),
    title: str = "",
) -> list[QaArtifact]:
    """Write ``mosaic.png`` and ``mosaic.json`` into ``qa_dir/name``: the mosaic and its noise map with its tiles.

    However large the mosaic is, a part of it is held at a time. A tile that cannot be read has no outline.

    Parameters
    ----------
    name
        Of the mosaic.
    image_path, noise_path
        FITS, one plane each.
    tiles, rejected
        FITS of the tiles that went into it, and of those that did not; only their headers are read.

    Raises
    ------
    MissingError, InputError
        If the image or the noise map cannot be read.
    StorageError
        If there is no room.
    """
    from nightbeam.qa.figures import draw_mosaic

    image = read_coarse(image_path)
    noise = None if noise_path is None else read_coarse(noise_path, brightest=False)
    used, left_out = ({str(p): o for p, o in _outlines(paths)} for paths in (tiles, rejected))
    # Every side has eight points; its corners are left, however many tiles there are.
    step = next((k for k in (1, 2, 4) if (len(used) + len(left_out)) * 32 // k <= _OUTLINE_POINTS), 8)
    ny, nx = image.shape
    says = title or f"{name}: {nx} by {ny} pixels, {len(used)} tiles"
    if image.step > 1:
        says += f"; the brightest of each {image.step} by {image.step}"
    figure = draw_mosaic(image, noise, tiles=used, rejected=left_out, title=says)
    numbers = {
        "kind": "mosaic",
        "width": nx,
        "height": ny,
        "step": image.step,
        "brightest_jy": float(np.nanmax(image.data)) if np.isfinite(image.data).any() else None,
        "least_noise_jy": None if noise is None else noise.least,
        "tiles": {tile: outline[::step].tolist() for tile, outline in used.items()},
        "rejected": {tile: outline[::step].tolist() for tile, outline in left_out.items()},
    }  # fmt: skip
    return _write_figures(name, qa_dir / name, {"mosaic": (figure, numbers)})


def _outlines(paths: Sequence[Path]) -> list[tuple[Path, Any]]:
    found = [(path, _read(image_outline, path)) for path in paths]
    return [(path, outline) for path, outline in found if not isinstance(outline, Unread)]


# -- the parts --------------------------------------------------------------------------------------------------


def _data_part(ms: Path, made: _Made) -> FlagCounts | Unread:
    from nightbeam.qa.figures import draw_flags, draw_uv, draw_visibilities, thin

    counts = _read(count_flags, ms)
    flags = counts if isinstance(counts, Unread) else sum_flags(counts)
    made.judge(flag_measures(flags, made.limits))
    made.judge(coverage_measures(counts if isinstance(counts, Unread) else counts.uv_klambda, made.limits))
    if isinstance(counts, FlagCounts) and isinstance(flags, FlagSummary):
        made.sections["flags"] = {**flags._asdict()}
        by = {name: getattr(flags, name) for name in ("by_antenna", "by_window", "by_length")}
        made.draw(
            "flags",
            lambda: draw_flags(**by, dead=flags.dead_antennas, limits=made.limits.flagged_fraction),
            {"kind": "flags", **by, "dead_antennas": flags.dead_antennas},
        )
        spacing = np.hypot(*counts.uv_klambda.T).astype(float)
        # with the longest, at which the gap may end
        chosen = np.append(thin(len(spacing), _UV_DOTS), spacing.argmax()) if len(spacing) else np.zeros(0, int)
        uv = counts.uv_klambda[np.unique(chosen)]
        gap, inner, outer = largest_gap(spacing)
        covered = {
            "largest_gap": gap,
            "gap_klambda": [inner, outer],
            "elongation": elongation(counts.uv_klambda.astype(float)),
            **_range_of(spacing),
        }
        made.sections["coverage"] = covered
        title = f"largest gap {gap:.2f} (shaded), {inner:.3g} to {outer:.3g} kilo-wavelengths"
        made.draw(
            "uv",
            lambda: draw_uv(uv, gap=(inner, outer), title=title if math.isfinite(gap) else ""),
            {"kind": "uv", **covered, "u_klambda": uv[:, 0], "v_klambda": uv[:, 1]},
        )
    sample = _read(sample_visibilities, ms)
    if isinstance(sample, Unread):
        made.scores.append(Score("corrected_data", None, "", None, Grade.UNKNOWN, sample.reason))
        return counts
    made.judge(corrected_measures(sample.column, sample.usable))
    made.sections["visibilities"] = {
        "column": sample.column,
        "sample": len(sample.amplitude),
        "median_amplitude": float(np.median(sample.amplitude)) if len(sample.amplitude) else None,
        "usable": sample.usable,
    }
    made.draw("visibilities", lambda: draw_visibilities(sample), _sample_numbers(sample))
    return counts


def _range_of(spacing: Any) -> dict[str, Any]:
    some = len(spacing) > 0
    return {
        "shortest_klambda": float(spacing.min()) if some else None,
        "longest_klambda": float(spacing.max()) if some else None,
    }


def _sample_numbers(sample: VisibilitySample) -> dict[str, Any]:
    from nightbeam.qa.figures import thin

    chosen = thin(len(sample.amplitude), _DOTS)
    return {
        "kind": "visibilities",
        "column": sample.column,
        "binned": by_spacing(sample)._asdict(),
        "spacing_klambda": np.hypot(sample.u_klambda, sample.v_klambda)[chosen],
        "amplitude": sample.amplitude[chosen],
        "phase_deg": sample.phase_deg[chosen],
    }


def _table_part(table: CalTable, counts: FlagCounts | Unread, made: _Made) -> None:
    from nightbeam.gains import read_caltable, table_stats
    from nightbeam.qa.figures import draw_gains, draw_panels

    name, kind = made.name_of(table.kind.suffix.removeprefix("_")), str(table.kind)
    solutions = _read(read_caltable, table.path)
    if isinstance(solutions, Unread):
        made.judge(table_measures(solutions, made.limits, name=name, kind=kind))
        return
    recorded = counts if isinstance(counts, Unread) else _recorded(solutions, counts)
    seen = None if isinstance(recorded, Unread) else recorded
    stats = table_stats(solutions, name=name, kind=kind, receptors_with_data=seen)
    with_data = recorded if isinstance(recorded, Unread) else int(recorded.sum())
    antennas = None if seen is None else int(seen.any(axis=1).sum())
    made.judge(table_measures(stats, made.limits, name=name, kind=kind, with_data=with_data, antennas=antennas))
    tables = made.sections.get("tables") or {}
    made.sections["tables"] = tables | {name: {"path": str(table.path), **asdict(stats)}}
    title = table.path.name
    bandpass = table.kind is TableKind.BANDPASS
    panels = None
    if bandpass:
        panels = bandpass_panels(solutions)
    elif table.kind is not TableKind.DELAY:
        panels = gain_panels(solutions)
    if panels is None or (not bandpass and len(panels.x) < 2):
        points = gain_points(solutions)
        chosen = points._asdict() | {"kind": "gains"}
        delays = table.kind is TableKind.DELAY
        made.draw(name, lambda: draw_gains(points, title=title, delays=delays), _thinned(chosen))
        return
    xlabel = "frequency (MHz)" if bandpass else "minutes from the first solution"
    for quantity, values in (("amplitude", panels.amplitude), ("phase", panels.phase_deg)):
        made.draw(
            f"{name}_{quantity}",
            lambda quantity=quantity: draw_panels(panels, quantity, xlabel=xlabel, title=title),  # type: ignore[misc]
            {
                "kind": "panels", "quantity": quantity, "xlabel": xlabel, "x": panels.x, "antennas": panels.antennas,
                "without": panels.without, "values": values,
            },
        )  # fmt: skip


def _recorded(solutions: CalSolutions, counts: FlagCounts) -> NDArray[np.bool_] | Unread:
    """Return which receptors of a table were recorded in the data, flagged or not: (ant, pol)."""
    total = counts.total.sum(axis=0)
    seen: NDArray[np.bool_] = (total.sum(axis=2) + total.sum(axis=1) > 0).T
    fits = seen.shape == (len(solutions.antennas), solutions.polarizations)
    if not fits or counts.antennas != solutions.antennas:
        return Unread("the table is of another array")
    return seen


def _thinned(numbers: Mapping[str, Any], most: int = 3000) -> dict[str, Any]:
    from nightbeam.qa.figures import thin

    chosen = thin(len(numbers["antenna"]), most)
    return {k: v[chosen] if isinstance(v, np.ndarray) else v for k, v in numbers.items()}


def _image_part(
    product: ImageProduct | Unread,
    catalogue: Sequence[CatalogueSource] | Unread | None,
    catalogue_name: str,
    counts: FlagCounts | Unread,
    made: _Made,
) -> None:
    from nightbeam.qa.figures import draw_sky, draw_sources

    thermal, beam = _thermal(counts), _expected_beam(product, counts)
    made.judge(image_measures(product, made.limits, thermal_jy=thermal, expected_beam_arcsec=beam))
    if isinstance(product, Unread):
        if catalogue is not None:
            made.judge(source_measures(product, made.limits))
        return
    made.sections["image"] = product.to_json() | {"thermal_jy": _value(thermal), "expected_beam_arcsec": _value(beam)}
    fits: list[SourceFit] = []
    if catalogue is not None:
        compared = _read(_measured, product, catalogue, catalogue_name)
        fits, comparison = compared if isinstance(compared, tuple) else ([], compared)
        made.judge(source_measures(comparison, made.limits))
        if fits and isinstance(comparison, SourceComparison):
            made.sections["sources"] = {"catalogue": catalogue_name, "fits": [asdict(fit) for fit in fits]}
            both = {"ratio_limits": made.limits.flux_ratio, "offset_limits": made.limits.astrometry_arcsec}
            made.draw(
                "sources",
                lambda: draw_sources(comparison, beam_arcsec=product.beam_minor_arcsec, **both),
                {"kind": "sources", **asdict(comparison)},
            )
    path = product.fits.get("image")
    if path is not None:  # else CASA images only: its preview is all that can be shown
        title = f"noise {1e3 * product.noise_jy:.2f} mJy/beam, dynamic range {product.dynamic_range:.0f}"
        made.draw("image", lambda: draw_sky(_shown(path), fits, title=title), _image_numbers(product, fits))


def _value(found: float | Unread) -> float | None:
    return None if isinstance(found, Unread) else found


def _image_numbers(product: ImageProduct, fits: Sequence[SourceFit]) -> dict[str, Any]:
    names = (
        "noise_jy", "noise_centre_jy", "peak_jy", "peak_ra_deg", "peak_dec_deg", "deepest_jy", "dynamic_range",
        "beam_major_arcsec", "beam_minor_arcsec", "beam_pa_deg", "ra_deg", "dec_deg", "imsize", "cell_arcsec",
    )  # fmt: skip
    marks = [{"name": f.name, "ra_deg": f.ra_deg, "dec_deg": f.dec_deg, "found": f.found} for f in fits]
    return {"kind": "image", **{name: getattr(product, name) for name in names}, "sources": marks}


def _thermal(counts: FlagCounts | Unread) -> float | Unread:
    if isinstance(counts, Unread):
        return counts
    if counts.telescope.upper() not in _KNOWN_RECEIVERS:
        return Unread(f"the receivers of {counts.telescope or 'this telescope'} are not known")
    samples = int((counts.total - counts.flagged).sum())
    noise = thermal_noise_jy(samples, width_hz=counts.width_hz, integration_s=counts.integration_s)
    return noise if math.isfinite(noise) else Unread("everything is flagged")


def _expected_beam(product: ImageProduct | Unread, counts: FlagCounts | Unread) -> float | Unread:
    from nightbeam.imaging.compute import ARCSEC_PER_RAD, synthesized_beam_rad

    if isinstance(product, Unread) or isinstance(counts, Unread):
        return product if isinstance(product, Unread) else counts if isinstance(counts, Unread) else Unread("")
    options = product.options
    if options.uvrange or options.spw or options.field:
        return Unread("the image is of a part of the data")
    beam = synthesized_beam_rad(
        1e3 * counts.uv_klambda.astype(float),
        weighting=options.weighting,
        robust=options.robust,
        field_of_view_rad=product.imsize * product.cell_arcsec / ARCSEC_PER_RAD,
        most_cells=5000,
    )
    return beam * ARCSEC_PER_RAD if math.isfinite(beam) else Unread("there is no visibility to make a beam of")


def _measured(
    product: ImageProduct, catalogue: Sequence[CatalogueSource] | Unread, name: str
) -> tuple[list[SourceFit], SourceComparison]:
    """Return the sources of a list that the image should show, measured on it."""
    if isinstance(catalogue, Unread):
        raise InputError(catalogue.reason)
    image, beam = product.fits.get("image"), product.fits.get("pb")
    if image is None or beam is None:
        raise InputError(f"{product.stem.name} has no FITS image, or no primary beam beside it")
    expected = _expected_sources(product, catalogue, open_image(beam))
    fits = measure_sources(image, [(s.ra_deg, s.dec_deg) for s in expected], pb=beam, names=[s.name for s in expected])
    size = product.beam_major_arcsec, product.beam_minor_arcsec
    return fits, compare_sources(fits, expected, catalogue=name, beam_arcsec=size)


def _expected_sources(
    product: ImageProduct, catalogue: Sequence[CatalogueSource], beam: SkyImage
) -> list[CatalogueSource]:
    """Return the brightest sources of a list that the image should show, and that no neighbour makes brighter."""
    from nightbeam.sky import is_alone, separation

    ny, nx = beam.data.shape
    reach_deg = 0.75 * max(nx, ny) * product.cell_arcsec / 3600.0
    listed = [s for s in catalogue if s.flux_jy]
    if not listed or not (math.isfinite(product.noise_jy) and product.noise_jy > 0):
        return []
    lists = [s.ra_deg for s in listed], [s.dec_deg for s in listed], [s.flux_jy or 0.0 for s in listed]
    apart = separation(lists[0], lists[1], product.ra_deg, product.dec_deg)
    seen: dict[int, float] = {}
    for k in map(int, np.flatnonzero(apart <= reach_deg)):
        x, y = beam.to_pixel(listed[k].ra_deg, listed[k].dec_deg)
        if not (-0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5):
            continue
        level = float(beam.data[round(y), round(x)])
        flux = lists[2][k] * level
        if level >= _LEAST_BEAM and flux >= _EXPECTED_SNR * product.noise_jy:
            seen[k] = flux
    brightest = sorted(seen, key=lambda k: -seen[k])
    alone = is_alone(*lists, within_arcsec=_ALONE_BEAMS * product.beam_major_arcsec, among=brightest)
    return [listed[k] for k, free in zip(brightest, alone, strict=True) if free][:_MOST_SOURCES]


def _shown(path: Path) -> SkyImage:
    """Return an image to look at; a large one in cells, of each its brightest pixel."""
    from astropy.io import fits

    plane = read_coarse(path, most=_SHOWN_PIXELS)
    if plane.step == 1:
        return open_image(path)
    header = fits.getheader(path)
    for axis in ("1", "2"):
        header[f"CDELT{axis}"] *= plane.step
    every = slice(None, None, plane.step)
    return SkyImage(path, plane.data, header, plane.wcs.slice((every, every)))


# -- files ------------------------------------------------------------------------------------------------------


def _write_figures(
    subject: str, directory: Path, figures: Mapping[str, tuple[Any, Mapping[str, Any]]]
) -> list[QaArtifact]:
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    artifacts = []
    for name, (figure, numbers) in figures.items():
        png = png_bytes(figure, dpi=100.0, most_bytes=MOST_BYTES)
        text = json.dumps(_plain(numbers, digits=4), separators=(",", ":"), allow_nan=False)
        for suffix, data in ((".png", png), (".json", text.encode() + b"\n")):
            path = directory / f"{name}{suffix}"
            write_bytes(path, data)
            artifacts.append(QaArtifact(subject, path.name, path))
    return artifacts


def _plain(value: Any, *, digits: int | None = None) -> Any:
    """Return JSON types: paths as text, what is not finite as null, numbers of so many significant digits.

    Places on the sky keep ten: a hundredth of an arcsecond, and more than an image has.
    """
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {
            str(k): _plain(v, digits=10 if digits is not None and str(k).endswith(_PLACES) else digits)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v, digits=digits) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), digits=digits)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    return value
