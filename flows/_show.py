"""What people see at the run of a group or of a night: measures, scores with their reasons, links to the figures.

Nothing but text is kept in Prefect's database: figures stay where they are, and are linked to.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from nightbeam import contimg
from nightbeam.catalog.model import QaScoreRow
from nightbeam.contimg.mosaics import mosaic_report
from nightbeam.contimg.nights import NightOutcome

__all__ = [
    "figure_address",
    "monitor_address",
    "mosaic_markdown",
    "quality_text",
    "show_group",
    "show_night",
    "showing",
]

logger = logging.getLogger("nightbeam.show")

_ADDRESS = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")
_WORDS = {"bad": "**bad**", "warn": "warning", "unknown": "unknown", "good": "good"}


@contextmanager
def showing(what: str) -> Iterator[None]:
    """Warn of what cannot be shown at a run, and go on: what was made is none the worse for that."""
    try:
        yield
    except Exception as error:  # any failure to tell, whatever httpx, Prefect or a database call it
        logger.warning("%s is not shown at its run: %s: %s", what, type(error).__name__, error)


def show_group(
    place: contimg.Site,
    group: str,
    *,
    imaged: contimg.ImageReceipt,
    calibrated: contimg.CalibrateReceipt,
    quality: contimg.QaReceipt,
) -> None:
    """Leave tables and links at the run. The group is completed already: nothing here can undo that."""
    metrics = {
        "noise (mJy)": f"{imaged.noise_jy * 1e3:.3g}",
        "peak (Jy)": f"{imaged.peak_jy:.4g}",
        "dynamic range": f"{imaged.dynamic_range:.0f}",
        "beam (arcsec)": f"{imaged.beam_major_arcsec:.1f}",
        "calibration set": calibrated.set_name or "",
        "its age (h)": "" if calibrated.age_days is None else f"{calibrated.age_days * 24:.2f}",
        "borrowed": "yes" if calibrated.borrowed else "no",
    }
    times = {f"{r.step} (s)": f"{r.seconds or 0.0:.1f}" for r in place.queue().receipts(group)}
    rows = [{"what": what, "value": value} for what, value in {**metrics, **times}.items()]
    create_table_artifact(rows, key="group-metrics", description=f"Group {group}")
    create_link_artifact(Path(imaged.path).as_uri(), key="group-image-file", link_text=imaged.path)
    base = monitor_address(place.state_dir)
    text = quality_text(group, place.products().scores("group", group), quality.artifacts, base=base)
    create_markdown_artifact(text, key="group-quality", description=f"Quality of group {group}")
    picture = quality.artifacts.get("image.png")
    if picture is None:
        return
    address = figure_address(group, "image.png", picture, base=base)
    if base is None:  # browsers show no pictures of files beside pages of servers
        create_link_artifact(address, key="group-image", link_text=picture, description=f"Group {group}")
    else:
        create_image_artifact(address, key="group-image", description=f"Group {group}")


def show_night(place: contimg.Site, outcome: NightOutcome) -> None:
    """Leave at the run what became of a night: of each mosaic its place, its tiles with their verdicts, its checks."""
    products = place.products()
    rows = products.mosaics(plan=outcome.name)
    parts = [f"# {outcome.night}: {outcome.action}", *([f"**{_escaped(outcome.error)}**"] if outcome.error else [])]
    parts += [mosaic_markdown(mosaic_report(row)) for row in rows]
    create_markdown_artifact("\n\n".join(parts), key="nightly-mosaic", description=f"Night {outcome.night}")
    base = monitor_address(place.state_dir)
    for row in rows:
        for artifact in products.qa_artifacts(row.name):
            if artifact.name != "image.png":
                continue
            address = figure_address(row.name, artifact.name, artifact.path, base=base)
            if base is None:
                create_link_artifact(address, key="nightly-mosaic-image", link_text=artifact.path, description=row.name)
            else:
                create_image_artifact(address, key="nightly-mosaic-image", description=row.name)


def mosaic_markdown(report: dict[str, Any]) -> str:
    """Return the report of a mosaic as markdown."""
    mosaic = report["mosaic"]
    image = mosaic["image"]
    lines = [f"## {_escaped(mosaic['name'])}: {mosaic['status']}", ""]
    if image:
        lines += [f"[{_escaped(image)}]({Path(image).as_uri()})", ""]
    if mosaic["noise_mjy"] is not None:
        beam = f"{mosaic['beam_major_arcsec']:.1f} x {mosaic['beam_minor_arcsec']:.1f}"
        size = f"{mosaic['width']} x {mosaic['height']} pixels of {mosaic['cell_arcsec']:.2f} arcsec"
        lines += [f"{size}, beam {beam} arcsec, least noise {mosaic['noise_mjy']:.3g} mJy, "
                  f"peak {mosaic['peak_jy']:.4g} Jy", ""]  # fmt: skip
    tiles = [(t["tile"], "used" if t["used"] else "**rejected**", t["reasons"]) for t in report["tiles"]]
    lines += _markdown_table(("tile", "verdict", "reasons"), tiles)
    passed = {True: "passed", False: "**failed**", None: "not judged"}
    checks = [(c["name"], passed[c["passed"]], c["text"]) for c in report["checks"]]
    lines += _markdown_table(("check", "verdict", "found"), checks)
    return "\n".join([*lines, *(f"- {_escaped(issue)}" for issue in report["issues"])])


def _markdown_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines] + [""]


def _cell(text: str) -> str:
    return text if text.startswith("**") else _escaped(text)


def monitor_address(state_dir: Path) -> str | None:
    """Return the address at which the monitor's pages are, as it wrote it down when it started; None without one."""
    try:
        said = (state_dir / "monitor" / "address").read_text(encoding="utf-8")[:500].strip()
    except (OSError, UnicodeDecodeError):
        return None
    return said.rstrip("/") if _ADDRESS.fullmatch(said) else None


def figure_address(group: str, name: str, path: str, *, base: str | None) -> str:
    """Return where a figure can be seen: at the monitor, or as a file where there is no monitor."""
    if base is None:
        return Path(path).absolute().as_uri()
    return f"{base}/api/qa/file/{quote(group, safe=':')}/{quote(name, safe='')}"


def quality_text(group: str, scores: Sequence[QaScoreRow], artifacts: Mapping[str, str], *, base: str | None) -> str:
    """Return the scores as a table in Markdown, in the order in which they come, with links to the figures.

    Parameters
    ----------
    artifacts
        Paths of the figures and their numbers by name.
    base
        Address of the monitor.
    """
    counts = {word: sum(score.verdict == word for score in scores) for word in _WORDS}
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "nothing was judged"
    lines = [f"# Group {group}", "", f"{said}.", ""]
    if scores:
        lines += ["| measure | verdict | score | why |", "| --- | --- | --- | --- |"]
        lines += [_row(score) for score in scores]
        lines.append("")
    links = [f"- [{name}]({figure_address(group, name, path, base=base)})" for name, path in sorted(artifacts.items())]
    return "\n".join([*lines, *links, ""])


def _row(score: QaScoreRow) -> str:
    number = "" if score.score is None else f"{score.score:.2f}"
    cells = (_escaped(score.name), _WORDS.get(score.verdict, _escaped(score.verdict)), number)
    return f"| {' | '.join(cells)} | {_escaped(score.reason or '')} |"


def _escaped(text: str) -> str:
    """Return text that Markdown and HTML take for nothing but text, in one cell of a table."""
    return re.sub(r"([\\`*_\[\]<>|&#])", r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\&", "&amp;")
