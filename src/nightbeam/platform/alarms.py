"""What a person must see: a line for each alarm, in a file that outlives Prefect's own records."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nightbeam.core.errors import StorageError
from nightbeam.core.files import no_space, storage_errors, write_text

__all__ = ["Alarm", "AlarmBook", "alarm_file", "read_alarms", "record_alarms"]

_MOST, _KEPT = 2000, 1000
#: So long, in seconds, a file that does not answer is waited for.
_WITHIN_S = 10.0


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
    """Return where the supervisor of a machine writes alarms for all machines, or for itself where nothing is shared.

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
            data = (b"\n" if torn else b"") + text.encode()
            if os.write(out, data) < len(data):  # of a disk that has just become full
                raise no_space(file)
        finally:
            os.close(out)
        lines = file.read_text(errors="replace").splitlines()
    if len(lines) > _MOST:
        write_text(file, "\n".join(lines[-_KEPT:]) + "\n")


class AlarmBook:
    """A file of alarms that a thread of its own writes: a network file system that is gone keeps nobody else.

    What it could not write then it writes when the file system is back. No other process writes the file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._waiting: list[Alarm] = []
        self._thread: threading.Thread | None = None
        self._wrong = ""

    def add(self, alarms: Sequence[Alarm]) -> str:
        """Write alarms down; return why they are not, "" if they are."""
        with self._lock:
            self._waiting = [*self._waiting, *alarms][-_KEPT:]
            thread, hangs = self._thread, self._thread is not None
            if thread is None:
                thread = self._thread = threading.Thread(
                    target=self._write, name=f"write-{self._file.name}", daemon=True
                )
                thread.start()
        thread.join(0.0 if hangs else _WITHIN_S)  # it was waited for before
        return f"{self._file} does not answer" if thread.is_alive() else self._wrong

    def _write(self) -> None:
        while True:
            with self._lock:
                alarms, self._waiting = self._waiting, []
                if not alarms:
                    self._thread = None
                    return
            try:
                record_alarms(self._file, alarms)
                self._wrong = ""
            except StorageError as error:
                self._wrong = error.what
            except Exception as error:  # whatever it is, the thread goes on to what waits
                self._wrong = f"{self._file}: {error}"


def read_alarms(*directories: Path | None) -> list[Alarm]:
    """Return the alarms of all machines in some directories, in the order in which they happened.

    A torn line is none; a directory that is named twice is read once, and so is an alarm that two files have.
    """
    found = []
    for directory in dict.fromkeys(path for path in directories if path is not None):
        for file in sorted(directory.glob("alarms*.jsonl")):
            for line in file.read_text(errors="replace").splitlines():
                try:
                    found.append(Alarm(**json.loads(line)))
                except (ValueError, TypeError):
                    continue
    return sorted(dict.fromkeys(found), key=lambda alarm: alarm.at)
