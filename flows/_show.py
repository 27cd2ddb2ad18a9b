"""What people see at the run of a group: a table, the picture, and where the files lie."""

from __future__ import annotations

import base64
import logging
from pathlib import Path

from prefect.artifacts import create_image_artifact, create_link_artifact, create_table_artifact

from nightbeam import contimg

__all__ = ["picture_uri", "show_group"]

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
