"""What people and programs are shown of groups."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nightbeam.catalog.model import GroupRow, GroupStepRow, Stage, State
from nightbeam.contimg.budget import why_waiting
from nightbeam.contimg.model import STEPS
from nightbeam.contimg.pressure import weigh
from nightbeam.contimg.site import Site
from nightbeam.contimg.tools import TOOLS, Tools
from nightbeam.core.errors import MissingError
from nightbeam.core.times import iso_z
from nightbeam.ingest import group_arrivals, list_names, scan_directory

__all__ = ["backlog_line", "group_lines", "group_report", "line_of", "look", "next_group", "plan"]


def group_lines(site: Site, *, state: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """Return one line per group, newest data first."""
    rows = site.queue().groups(state=state, limit=limit)
    return [line_of(row) for row in rows]


def line_of(row: GroupRow) -> dict[str, Any]:
    """Return what a list says of a group."""
    return {
        "group": row.group_id,
        "state": row.state,
        "stage": row.current_step if row.state == State.IN_PROGRESS else row.processing_stage,
        "subbands": f"{row.subbands_present}/{row.expected_subbands}",
        "dec_deg": row.dec_deg,
        "calibrators": [match["name"] for match in json.loads(row.calibrators or "[]")],
        "imaging": row.imaging,
        "owed": row.owed,
        "attempts": row.attempts,
        "retries": row.retry_count,
        "owner": row.owner,
        "last_update": _utc(row.last_update),
        "error": row.error,
    }


def _waits(site: Site, row: GroupRow) -> str | None:
    return why_waiting(site.ledgers(), row.group_id) if row.state == State.IN_PROGRESS else None


def backlog_line(site: Site) -> dict[str, Any]:
    """Return what waits, and what gives way because of it."""
    found = weigh(site, note=False)
    return {
        "pressure": str(found.level),
        "since": None if found.since is None else _utc(found.since),
        "waiting": found.backlog.waiting,
        "minutes": round(found.backlog.minutes, 1),
        "oldest_h": None if found.backlog.oldest_s is None else round(found.backlog.oldest_s / 3600.0, 2),
        "in_work": found.backlog.in_work,
        "for_gains": found.backlog.for_gains,
        "owed_images": found.backlog.owed_images,
        "owed_figures": found.backlog.owed_figures,
    }


def group_report(site: Site, group_id: str) -> dict[str, Any]:
    """Return everything that the databases know of a group.

    Raises
    ------
    MissingError
        If the queue has no such group.
    """
    queue, products = site.queue(), site.products()
    row = queue.group(group_id)
    measured = queue.performance(group_id)
    steps = {step.step: step for step in products.origins.steps(group_id)}
    return {
        "group": {
            **line_of(row),
            "waits": _waits(site, row),
            "received_at": _utc(row.received_at),
            "partial": bool(row.partial),
        },
        "files": [
            {
                "subband": s.subband_idx,
                "path": s.path,
                "late": bool(s.late),
                "changed": None if s.changed_at is None else _utc(s.changed_at),
            }
            for s in queue.subbands(group_id)
        ],
        "duplicates": [
            {"subband": d.subband_idx, "path": d.path, "what": f"second file; {d.first_path} is kept"}
            for d in queue.duplicates(group_id)
        ],
        "attempts": [
            {
                "attempt": a.attempt,
                "outcome": a.outcome,
                "step": a.step,
                "owner": a.owner,
                "started_at": _utc(a.started_at),
                "ended_at": None if a.ended_at is None else _utc(a.ended_at),
                "error": a.error,
            }
            for a in queue.attempts(group_id)
        ],
        "steps": [
            {
                "step": r.step,
                "seconds": r.seconds,
                "finished_at": _utc(r.finished_at),
                **_made_with(steps.get(r.step)),
            }
            for r in queue.receipts(group_id)
        ],
        "times": [] if measured is None else [measured],
        "images": [
            {
                "path": i.path,
                "quick": bool(i.quick),
                "noise_jy": i.noise_jy,
                "peak_jy": i.peak_jy,
                "dynamic_range": i.dynamic_range,
                "beam_major_arcsec": i.beam_major_arcsec,
                "calibration_set": i.calibration_set,
                "cal_age_days": i.cal_age_days,
                "cal_borrowed": bool(i.cal_borrowed),
            }
            for i in products.images(group_id=group_id)
        ],
        "qa": [{"name": q.name, "path": q.path} for q in products.qa_artifacts(group_id)],
    }


def _made_with(step: GroupStepRow | None) -> dict[str, Any]:
    """Return with which nightbeam and settings a step was done; `nightbeam provenance --config` has them whole."""
    if step is None:
        return {"version": None, "configuration": None}
    return {"version": step.version, "configuration": (step.configuration or "")[:12] or None}


def look(site: Site, *, tools: Tools = TOOLS) -> list[dict[str, Any]]:
    """Return what a scan would record, without recording it."""
    queue, names = site.queue(), list_names(site.input_dir)
    known = queue.known_among(str(site.input_dir / name) for name in names)
    scan = scan_directory(
        site.input_dir,
        names=names,
        known={Path(path).name for path in known},
        rejected={Path(b.path): (b.size_bytes, b.mtime) for b in queue.bad_files()},
        settle_s=site.ingest.settle_s,
        read=tools.read_header,
    )
    groups = group_arrivals(scan.ready, gap_s=site.ingest.name_gap_s)
    return [
        *({"group": str(g.group_id), "subbands": len(g.subbands), "what": "new files"} for g in groups),
        *({"file": str(b.path), "what": f"bad: {b.reason}"} for b in scan.bad),
        *({"file": str(u.path), "what": f"not ready: {u.reason}"} for u in scan.unready),
    ]


def next_group(site: Site) -> str:
    """Return the pending group with the oldest data; last those that are only owed something.

    Raises
    ------
    MissingError
        If nothing is pending, or everything that is waits for gains.
    """
    for row in sorted(site.queue().groups(state=State.PENDING), key=lambda row: row.owed is not None):
        if row.processing_stage != Stage.WAITING_FOR_GAINS:
            return row.group_id
    raise MissingError("no group is pending", fix="nightbeam groups list shows what there is")


def plan(site: Site, group_id: str) -> list[dict[str, Any]]:
    """Return the steps of a group and whether each has been finished.

    Raises
    ------
    MissingError
        If the queue has no such group.
    """
    queue = site.queue()
    queue.group(group_id)
    done = {receipt.step for receipt in queue.receipts(group_id)}
    return [{"step": step, "what": "finished before" if step in done else "to be done"} for step in STEPS]


def _utc(seconds: float) -> str:
    return iso_z(datetime.fromtimestamp(seconds, UTC))
