"""What a person must see: a line for each alarm, in a file that outlives Prefect's own records."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from nightbeam.core.files import storage_errors, write_text
from nightbeam.core.times import iso_z, utc_now

__all__ = ["Alarm", "read_alarms", "record_alarm"]

_FILE = "alarms.jsonl"
_MOST, _KEPT = 2000, 1000


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that a person must see; ``at`` is ISO 8601 UTC."""

    at: str
    what: str
    subject: str
    detail: str = ""


def record_alarm(state_dir: Path, what: str, subject: str, detail: str = "", *, at: datetime | None = None) -> Alarm:
    """Add an alarm to the file ``alarms.jsonl`` of a state directory; of very many the older ones go."""
    alarm = Alarm(iso_z(at or utc_now()), what, subject, detail)
    file = state_dir / _FILE
    with storage_errors(file):
        state_dir.mkdir(parents=True, exist_ok=True)
        # One write in append mode: of two at once neither is torn.
        out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(out, (json.dumps(asdict(alarm)) + "\n").encode())
        finally:
            os.close(out)
        lines = file.read_text(errors="replace").splitlines()
    if len(lines) > _MOST:
        write_text(file, "\n".join(lines[-_KEPT:]) + "\n")
    return alarm


def read_alarms(state_dir: Path) -> list[Alarm]:
    """Return the alarms of a state directory, oldest first; a torn line is none."""
    try:
        lines = (state_dir / _FILE).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(Alarm(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found
