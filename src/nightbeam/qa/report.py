"""The quality-control files of one group: figures small enough to embed, and one report in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam.core.files import storage_errors, write_bytes
from nightbeam.gains.model import CalTable, TableKind
from nightbeam.imaging.figures import png_bytes
from nightbeam.imaging.files import open_image
from nightbeam.imaging.model import ImageProduct, SourceFit, Verdict
from nightbeam.qa.files import METRICS, sample_visibilities, update_metrics
from nightbeam.qa.model import MOST_BYTES, QaArtifact

__all__ = ["write_qa"]


def write_qa(
    group_id: str,
    qa_dir: Path,
    *,
    ms: Path | None = None,
    tables: Sequence[CalTable] = (),
    product: ImageProduct | None = None,
    sources: Sequence[SourceFit] = (),
    verdict: Verdict | None = None,
    extra: Mapping[str, Any] | None = None,
) -> list[QaArtifact]:
    """Write what there is to be seen of a group into ``qa_dir/group_id``.

    It may be called after each step: the report keeps the sections that this call says nothing of.

    Parameters
    ----------
    group_id
        Name of the group.
    qa_dir
        Where groups have their directories.
    ms
        ``flags.png``, ``uv.png``, ``amplitudes.png`` and the flagged fractions are made of it.
    tables
        Each gives ``<suffix>.png``, e.g. ``bpcal.png``.
    product
        Gives ``image.png`` and the metrics of the image.
    sources, verdict
        Measured on the image and marked in its figure; what was decided.
    extra
        More sections of JSON types for the report.

    Returns
    -------
    list of QaArtifact
        What this call wrote, the report ``metrics.json`` last. Every figure is below 100 kB.

    Raises
    ------
    MissingError, InputError
        If something that was named cannot be read.
    StorageError
        If there is no room.
    """
    directory = qa_dir / group_id
    figures: dict[str, Any] = {}
    sections: dict[str, Any] = {"group_id": group_id, **(extra or {})}
    if ms is not None:
        figures |= _data_figures(ms, sections)
    for table in tables:
        figures |= _table_figure(table, sections)
    if product is not None:
        figures |= _image_figure(product, sources, sections)
    if sources:
        sections["sources"] = [asdict(source) for source in sources]
    if verdict is not None:
        sections["verdict"] = asdict(verdict)
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    artifacts = []
    for name, figure in figures.items():
        data = figure if isinstance(figure, bytes) else png_bytes(figure, dpi=90.0, most_bytes=MOST_BYTES)
        path = directory / f"{name}.png"
        write_bytes(path, data)
        artifacts.append(QaArtifact(group_id, path.name, path))
    path = update_metrics(directory, _without_nan(sections))
    return [*artifacts, QaArtifact(group_id, METRICS, path)]


def _data_figures(ms: Path, sections: dict[str, Any]) -> dict[str, Any]:
    from nightbeam.ms import flagged_by_antenna, flagged_by_window
    from nightbeam.qa.figures import draw_amplitudes, draw_flags, draw_uv

    by_antenna, by_window = flagged_by_antenna(ms), flagged_by_window(ms)
    sample = sample_visibilities(ms)
    sections["flags"] = {"by_antenna": by_antenna, "by_window": {str(k): f for k, f in by_window.items()}}
    spacing = np.hypot(sample.u_klambda, sample.v_klambda)
    sections["visibilities"] = {
        "column": sample.column,
        "sample": len(spacing),
        "median_amplitude": float(np.median(sample.amplitude)) if len(spacing) else None,
        "uv_max_klambda": float(spacing.max()) if len(spacing) else None,
    }
    return {
        "flags": draw_flags(by_antenna, by_window),
        "uv": draw_uv(sample),
        "amplitudes": draw_amplitudes(sample),
    }


def _table_figure(table: CalTable, sections: dict[str, Any]) -> dict[str, Any]:
    from nightbeam.gains import read_caltable, table_stats
    from nightbeam.qa.compute import gain_points, waterfall
    from nightbeam.qa.figures import draw_gains, draw_waterfall

    solutions = read_caltable(table.path)
    name = table.kind.suffix.removeprefix("_")
    sections.setdefault("tables", {})[name] = {
        "path": str(table.path),
        **_plain(asdict(table_stats(solutions, name=name, kind=table.kind))),
    }
    if table.kind is TableKind.BANDPASS:
        return {name: draw_waterfall(waterfall(solutions), title=table.path.name)}
    points = gain_points(solutions)
    return {name: draw_gains(points, title=table.path.name, delays=table.kind is TableKind.DELAY)}


def _image_figure(product: ImageProduct, sources: Sequence[SourceFit], sections: dict[str, Any]) -> dict[str, Any]:
    from nightbeam.qa.figures import draw_sky

    sections["image"] = product.to_json()
    if "image" not in product.fits:  # CASA images only: its preview is all that can be shown
        return {}
    title = f"noise {1e3 * product.noise_jy:.2f} mJy/beam, dynamic range {product.dynamic_range:.0f}"
    return {"image": draw_sky(open_image(product.fits["image"]), sources, title=title)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def _without_nan(value: Any) -> Any:
    plain = _plain(value)
    if isinstance(plain, dict):
        return {k: _without_nan(v) for k, v in plain.items()}
    if isinstance(plain, list):
        return [_without_nan(v) for v in plain]
    if isinstance(plain, float) and not math.isfinite(plain):
        return None
    return plain
