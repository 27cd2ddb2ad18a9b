"""What people see at the run of a group or of a night: tables, the picture, and where the files lie."""

from __future__ import annotations

import base64
import html
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from nightbeam import contimg
from nightbeam.contimg.mosaics import mosaic_report
from nightbeam.contimg.nights import NightOutcome

__all__ = ["mosaic_markdown", "picture_uri", "show_group", "show_night"]

logger = logging.getLogger("nightbeam.group")

#: Pictures lie in Prefect's database, which keeps them for as long as the run.
MOST_PICTURE_BYTES = 100_000


def show_group(
    place: contimg.Site,
    group: str,
    *,
    imaged: contimg.ImageReceipt,
    calibrated: contimg.CalibrateReceipt,
    quality: contimg.QaReceipt,
) -> None:
    """Leave table, link and picture at the run. The group is completed already: nothing here can undo that."""
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
    if uri := picture_uri(quality.artifacts):
        create_image_artifact(uri, key="group-image", description=f"Group {group}")


def show_night(place: contimg.Site, outcome: NightOutcome) -> None:
    """Leave at the run what became of a night: of each mosaic its place, its tiles with their verdicts, its checks."""
    products = place.products()
    rows = products.mosaics(plan=outcome.name)
    parts = [f"# {outcome.night}: {outcome.action}", *([f"**{_text(outcome.error)}**"] if outcome.error else [])]
    parts += [mosaic_markdown(mosaic_report(row)) for row in rows]
    create_markdown_artifact("\n\n".join(parts), key="nightly-mosaic", description=f"Night {outcome.night}")
    for row in rows:
        if uri := picture_uri({a.name: a.path for a in products.qa_artifacts(row.name)}):
            create_image_artifact(uri, key="nightly-mosaic-image", description=row.name)


def mosaic_markdown(report: dict[str, Any]) -> str:
    """Return the report of a mosaic as markdown."""
    mosaic = report["mosaic"]
    image = mosaic["image"]
    lines = [f"## {_text(mosaic['name'])}: {mosaic['status']}", ""]
    if image:
        lines += [f"[{_text(image)}]({Path(image).as_uri()})", ""]
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
    return "\n".join([*lines, *(f"- {_text(issue)}" for issue in report["issues"])])


def _markdown_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines] + [""]


def _cell(text: str) -> str:
    return text if text.startswith("**") else _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    """Return text that may come from a file such that no page takes it for markup."""
    return html.escape(" ".join(text.split()), quote=False)


def picture_uri(artifacts: dict[str, str]) -> str | None:
    """Return the picture of the image as a ``data:`` address, or None if there is none small enough.

    Parameters
    ----------
    artifacts
        Paths of the QA artifacts by name; the picture is ``image``.
    """
    path = next((Path(p) for name, p in artifacts.items() if Path(name).stem == "image" and p.endswith(".png")), None)
    if path is None:
        return None
    data = path.read_bytes()
    if len(data) > MOST_PICTURE_BYTES:
        logger.warning("the picture %s has %d bytes and is not shown at the run", path, len(data))
        return None
    return "data:image/png;base64," + base64.b64encode(data).decode()
