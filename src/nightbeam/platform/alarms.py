"""What a person must see: a line for each alarm, in a file that outlives Prefect's own records."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nightbeam.core.files import storage_errors, write_text

__all__ = ["Alarm", "alarm_file", "read_alarms", "record_alarms"]

_MOST, _KEPT = 2000, 1000


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that a person must see.

    Attributes
    ----------
    at
        When it happened, ISO 8601 UTC: not when it was noticed. Of several, when the last did.
    what, subject, detail
        The event, whose it is, and more of it.
    count, first_at
        How many of the kind are told of here, and when the first happened.
    machine
        Whose supervisor noticed it.
    """

    at: str
    what: str
    subject: str
    detail: str = ""
    count: int = 1
    first_at: str = ""
    machine: str = ""

    def sentence(self) -> str:
        """Return it in a line."""
        several = f" ({self.count} since {self.first_at})" if self.count > 1 else ""
        more = f": {self.detail}" if self.detail else ""
        return f"{self.at} {f'{self.what} {self.subject}'.strip()}{several}{more}"


def alarm_file(state_dir: Path, shared_dir: Path | None, machine: str) -> Path:
    """Return where the supervisor of a machine writes alarms.

    Where several machines share a directory each has a file of its own there: of a network file system that appends
    for two nobody knows what comes out.
    """
    if shared_dir is None or shared_dir == state_dir:
        return state_dir / "alarms.jsonl"
    return shared_dir / f"alarms-{machine}.jsonl"


def record_alarms(file: Path, alarms: Sequence[Alarm]) -> None:
    """Add alarms to a file that no other process writes; of very many the older ones go.

    Raises
    ------
    StorageError
        If there is no room.
    """
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        out = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            # A line that was cut short, by a full disk or a kill, must not swallow the next.
            size = os.fstat(out).st_size
            torn = size > 0 and os.pread(out, 1, size - 1) != b"\n"
            text = "".join(json.dumps(asdict(alarm)) + "\n" for alarm in alarms)
            os.write(out, (b"\n" if torn else b"") + text.encode())
        finally:
            os.close(out)
        lines = file.read_text(errors="replace").splitlines()
    if len(lines) > _MOST:
        write_text(file, "\n".join(lines[-_KEPT:]) + "\n")


def read_alarms(*directories: Path | None) -> list[Alarm]:
    """Return the alarms of all machines in some directories, in the order in which they happened.

    A torn line is none; a directory that is named twice is read once.
    """
    found = []
    for directory in dict.fromkeys(path for path in directories if path is not None):
        for file in sorted(directory.glob("alarms*.jsonl")):
            for line in file.read_text(errors="replace").splitlines():
                try:
                    found.append(Alarm(**json.loads(line)))
                except (ValueError, TypeError):
                    continue
    return sorted(found, key=lambda alarm: alarm.at)
