"""Digests of inputs and products: of files every byte, of Measurement Sets what can be read at no cost."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nightbeam.catalog.model import ProvenanceInput
from nightbeam.core.errors import BusyError, MissingError
from nightbeam.core.files import sha256

__all__ = ["ENDS", "WHOLE", "InputSums", "digest_of", "ends_digest"]

#: SHA-256 of a file, or of a calibration table as the registry has it (`core.files.sha256`).
WHOLE = "sha256"
#: SHA-256 of what `ends_digest` reads of a tree.
ENDS = "sha256-ends"
_BLOCK = 1 << 20
_SMALL = 1 << 20
_END = 1 << 16


@dataclass(frozen=True, slots=True)
class _Seen:
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        try:
            state = path.stat()
        except OSError as error:
            raise MissingError(f"cannot find {path}", fix="was the file moved after it was recorded?") from error
        return cls(state.st_size, state.st_mtime_ns)


class InputSums:
    """The SHA-256 of files, computed in a thread while somebody else reads them, so that each is read from disk once.

    Used as a context manager around that reading. `result` refuses files that changed in between: what was made of
    them is of no state that they ever had as a whole.

    Parameters
    ----------
    files
        In the order in which they will be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._before = {path: _Seen.of(path) for path in files}
        self._sums: dict[Path, str] = {}
        self._error: OSError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="input-sums", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stop.set()
        self._thread.join()

    def result(self) -> list[ProvenanceInput]:
        """Return size, mtime and SHA-256 of each file, once the block has ended.

        Raises
        ------
        BusyError
            If a file is not what it was when the block began.
        MissingError
            If one is gone, or cannot be read.
        """
        if self._error is not None:
            raise MissingError(
                f"cannot read {self._error.filename}: {self._error.strerror}", fix="was the file moved or deleted?"
            ) from self._error
        changed = [path for path, seen in self._before.items() if _Seen.of(path) != seen]
        if changed:
            raise BusyError(
                f"{changed[0]} changed while it was read", fix="it is read again; whoever writes it must rename at last"
            )
        return [
            ProvenanceInput(str(path), "subband", seen.size, seen.mtime_ns / 1e9, self._sums[path])
            for path, seen in self._before.items()
        ]

    def _work(self) -> None:
        try:
            for path in self._before:
                digest = hashlib.sha256()
                for block in _blocks(path):
                    if self._stop.is_set():
                        return
                    digest.update(block)  # without the interpreter's lock
                self._sums[path] = digest.hexdigest()
        except OSError as error:
            self._error = error


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as data:
        while block := data.read(_BLOCK):
            yield block


def ends_digest(directory: Path) -> str:
    """Return a digest of a directory tree that costs milliseconds, whatever its size.

    It is the SHA-256 of, for each file in the order of its relative path: that path, NUL, its size in decimal, NUL,
    and its content; of files above 1 MiB only the first and the last 64 KiB. Files named ``table.lock``, which
    casacore rewrites on every look, are left out. It tells another Measurement Set, a row or a column more, another
    flag table of a small set; it does not tell a byte that was changed in the middle of a large column.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "table.lock"):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory).as_posix()}\0{size}\0".encode())
        with path.open("rb") as data:
            if size <= _SMALL:
                digest.update(data.read())
            else:
                digest.update(data.read(_END))
                data.seek(-_END, os.SEEK_END)
                digest.update(data.read(_END))
    return digest.hexdigest()


def digest_of(path: Path, kind: str) -> str:
    """Return the digest of a file or directory, of one of the two kinds."""
    return ends_digest(path) if kind == ENDS else sha256(path)
