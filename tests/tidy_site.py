"""A site made of rows and small files, of any age, for what tidies it up."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from nightbeam.catalog import FileFact, GroupFact, Owner
from nightbeam.catalog.schema import CalSetTable, CalTable, QueueTable
from nightbeam.contimg import Site, Tools, this_process
from nightbeam.core.errors import MissingError
from nightbeam.core.settings import Settings
from nightbeam.core.times import mjd_from_datetime

#: The present of all these tests: 2026-01-31 12:00:00 UTC.
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
DAY = 86400.0


def finished_image(stem: Path) -> Any:
    """Play `nightbeam.imaging.verify_product`: an image is good while its description is there."""
    if not stem.with_name(stem.name + ".json").is_file():
        raise MissingError(f"{stem.name}.json is gone")
    return SimpleNamespace(stem=stem)


TOOLS = Tools(finished_image=finished_image)


def new_site(state_dir: Path, **sections: dict[str, Any]) -> Site:
    """Return a site with its three databases; ``sections`` are settings of contimg."""
    site = Site.from_settings(Settings.model_validate({"state_dir": state_dir, "contimg": sections}))
    for directory in (site.input_dir, site.output_dir, site.scratch_dir):
        directory.mkdir(parents=True)
    for name, content in _databases().items():
        (state_dir / name).write_bytes(content)
    return site


@cache
def _databases() -> dict[str, bytes]:
    """Return three new databases: to make them takes longer than all that most of these tests do."""
    with tempfile.TemporaryDirectory() as name:
        site = Site.from_settings(Settings(state_dir=Path(name)))
        site.queue(), site.registry(), site.products()
        return {path.name: path.read_bytes() for path in Path(name).glob("*.sqlite3")}


def group_name(number: int) -> str:
    """Return the id of one of many groups."""
    start = datetime(2025, 10, 2, 1, 2, 3, tzinfo=UTC) + timedelta(seconds=309 * number)
    return start.strftime("%Y-%m-%dT%H:%M:%S")


@cache
def dead_pid() -> int:
    """Return the number of a process that has ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def owner(kind: str) -> Owner:
    """Return an owner that is ``alive`` or ``dead`` on this machine, or works ``elsewhere``."""
    if kind == "alive":
        return this_process("alive")
    if kind == "dead":
        return Owner("dead", socket.gethostname(), dead_pid(), 1.0)
    return Owner("elsewhere", "another-machine", 12, 1.0)


def put_group(site: Site, group_id: str, state: str, *, seen_at: float, held_by: str = "alive", **values: Any) -> None:
    """Make a group in a state since ``seen_at``; ``values`` are more columns of its row."""
    queue = site.queue()
    start = datetime.fromisoformat(group_id).replace(tzinfo=UTC)
    files = [FileFact(sb, site.input_dir / f"{group_id}_sb{sb:02d}.hdf5") for sb in range(3)]
    if state == "collecting":  # what is written without them is an input directory whose mount is missing
        for file in files:
            file.path.write_text("data")
    fact = GroupFact(group_id, mjd_from_datetime(start), dec_deg=33.0)
    queue.record(fact, files, expected_subbands=16 if state == "collecting" else 3, now=seen_at)
    who = owner(held_by)
    if state in ("in_progress", "completed", "failed"):
        queue.claim(group_id, who, now=seen_at)
    if state == "completed":
        queue.complete(group_id, who, now=seen_at)
    if state == "failed":
        queue.fail(group_id, who, "it failed", final=True, now=seen_at)
    if values:
        with queue.database.write() as connection:
            connection.execute(sa.update(QueueTable).where(QueueTable.group_id == group_id).values(**values))


def put_ms(site: Site, group_id: str, *, made_at: float, status: str = "done", image: bool = True) -> Path:
    """Make a Measurement Set and its image, on disk and in the tables."""
    ms, stem = site.ms_path(group_id), site.image_stem(group_id)
    ms.mkdir(parents=True)
    (ms / "table.dat").write_text(f"visibilities of {group_id}")
    (ms / "FIELD").mkdir()
    (ms / "FIELD" / "table.dat").write_text("field")
    products = site.products()
    products.upsert_ms(ms, group_id=group_id, status=status, stage="imaged", processed_at=made_at, now=made_at)
    if image:
        stem.parent.mkdir(exist_ok=True)
        for ending in (".image.pbcor.fits", ".png", ".json"):
            stem.with_name(stem.name + ending).write_text(f"{group_id}{ending}")
        fits = stem.with_name(stem.name + ".image.pbcor.fits")
        products.upsert_image(fits, ms_path=ms, group_id=group_id, now=made_at)
    return ms


def put_set(site: Site, group_id: str, status: str) -> None:
    """Make a calibration set that was solved on a group."""
    name, path = f"calset_{group_id}", site.output_dir / "caltables" / f"{group_id}_0_bpcal"
    path.mkdir(parents=True)
    with site.registry().database.write() as connection:
        connection.execute(sa.insert(CalSetTable).values(set_name=name, status=status, created_at=NOW))
        connection.execute(
            sa.insert(CalTable).values(
                set_name=name, path=str(path), table_type="BP", order_index=30, created_at=NOW, status=status,
                valid_start_mjd=1.0, valid_end_mjd=2.0,
            )
        )  # fmt: skip


def put_scratch(path: Path, changed_at: float) -> Path:
    """Make a directory with a file in it, both last changed at a time."""
    path.mkdir(parents=True)
    (path / "half").write_text("half written")
    for item in (path / "half", path):
        os.utime(item, (changed_at, changed_at))
    return path


def tree(*roots: Path) -> dict[str, str]:
    """Return every path below with a digest of what it is; access times do not count."""
    found = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
            found[str(path)] = f"{digest} {path.lstat().st_mtime_ns}"
    return found
