"""Names of files: what a template makes, which are ours, and who left the unfinished ones."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import socket
import string
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from nightbeam.core.errors import ConfigError

__all__ = ["Naming", "is_dead", "new_writer", "partial_path", "unfinished"]

_KEYS: Final = ("prefix", "experiment", "run", "chunk", "time", "writer")
_LONGEST: Final = 200
#: Host, process and chance: who wrote a file.
_WRITER: Final = r"[A-Za-z0-9-]+-\d+-[0-9a-f]{8}"
_MATCHES: Final = {
    "experiment": r"[^/]*?", "run": r"(?:r\d{4,}|norun)", "chunk": r"\d{4,}", "time": r"\d{8}_\d{6}_\d{6}",
    "writer": _WRITER,
}  # fmt: skip


def new_writer() -> str:
    """Return a name for this writer that no other has: ``host-pid-8 hex digits``."""
    return f"{_host()}-{os.getpid()}-{os.urandom(4).hex()}"


@functools.cache
def _host() -> str:
    """Return a name of this machine, of its boot and of its process numbers: names alone are often cut or alike."""
    name = socket.gethostname()
    whose = [name, *(_said(path) for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"))]
    digest = hashlib.sha256("\0".join(whose).encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9-]', '-', name.split('.')[0])[:20] or 'host'}-{digest}"


def _said(path: str) -> str:
    try:
        return str(Path(path).readlink()) if path.endswith("ns/pid") else Path(path).read_text()
    except OSError:  # a system that does not say
        return ""


@dataclass(frozen=True, slots=True)
class Naming:
    """A prefix and a template, checked.

    Attributes
    ----------
    prefix
        How names begin, and what ``.lst``, ``.geom`` and the master are called.
    template
        With ``{chunk}`` and any of ``{prefix} {experiment} {run} {time} {writer}``; without ``.cxi``.

    Raises
    ------
    ConfigError
        If a file could get a name that is none, or lie elsewhere.
    """

    prefix: str
    template: str

    def __post_init__(self) -> None:
        _check_plain("file_prefix", self.prefix)
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise ConfigError(f"name_template {self.template!r}: {error}", fix="write {chunk}, {time} ...") from error
        _check_plain("name_template", "".join(text for text, *_ in parts) or "x")
        names = [name for _, name, *_ in parts if name is not None]
        if unknown := [name for name in names if name not in _KEYS]:
            raise ConfigError(f"name_template has {{{unknown[0]}}}", fix=f"there are {', '.join(_KEYS)}")
        if any(form or conversion for _, _, form, conversion in parts):
            raise ConfigError(f"name_template {self.template!r} has a format", fix="write {chunk}, not {chunk:04d}")
        if "chunk" not in names:
            raise ConfigError(f"name_template {self.template!r} has no {{chunk}}", fix="files need different names")
        longest = self.name(chunk=10**9, writer="w" * 50, when=datetime.now(UTC), run=10**9, experiment="e" * 40)
        if len(longest.encode()) > _LONGEST:
            raise ConfigError(f"file_prefix and name_template make names like {longest}", fix="shorten them")

    def name(self, *, chunk: int, writer: str, when: datetime, run: int | None, experiment: str | None) -> str:
        """Return the name of a file, ``.cxi`` and all.

        Examples
        --------
        >>> Naming("p", "{prefix}_{run}_{chunk}").name(
        ...     chunk=3, writer="w", when=datetime(2025, 1, 2, tzinfo=UTC), run=42, experiment=None)
        'p_r0042_0003.cxi'
        """
        values = {
            "prefix": self.prefix,
            "experiment": re.sub(r"[^A-Za-z0-9._+-]", "-", experiment or "").lstrip(".")[:40] or "noexp",
            "run": "norun" if run is None else f"r{run:04d}",
            "chunk": f"{chunk:04d}",
            "time": when.astimezone(UTC).strftime("%Y%m%d_%H%M%S_%f"),
            "writer": writer,
        }
        return f"{self.template.format(**values)}.cxi"

    def is_ours(self, name: str) -> bool:
        """Say whether a file has a name that this template makes, by whichever writer.

        Examples
        --------
        >>> Naming("p", "{prefix}_{chunk}").is_ours("p_0003.cxi"), Naming("p", "{prefix}_{chunk}").is_ours("pq_3.cxi")
        (True, False)
        """
        return _pattern(self.prefix, self.template).fullmatch(name) is not None

    def ours_in(self, directory: Path, *, but: Collection[str] = (), since_s: float | None = None) -> list[Path]:
        """Return the finished files of this prefix in a directory, oldest first.

        Parameters
        ----------
        directory
            Where to look.
        but
            Names that are not wanted; files of such names are not looked at.
        since_s
            Those that were last changed before are not wanted, seconds since 1970.
        """
        found: list[tuple[int, str]] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name in but or not self.is_ours(entry.name):
                    continue
                with contextlib.suppress(FileNotFoundError):  # somebody has just moved it
                    if entry.is_file() and (changed := entry.stat().st_mtime_ns) >= (since_s or 0.0) * 1e9:
                        found.append((changed, entry.name))
        return [directory / name for _, name in sorted(found)]

    def partials_in(self, directory: Path) -> Iterator[tuple[Path, str]]:
        """Yield the unfinished files of this prefix in a directory, each with its writer."""
        wanted = re.compile(rf"\.(?P<name>.+?)\.(?P<writer>{_WRITER})\.partial")
        for path in directory.iterdir():
            found = wanted.fullmatch(path.name)
            if found and self.is_ours(found["name"]) and path.is_file() and not path.is_symlink():
                yield path, found["writer"]


@functools.lru_cache(maxsize=16)
def _pattern(prefix: str, template: str) -> re.Pattern[str]:
    known = {**_MATCHES, "prefix": re.escape(prefix)}
    parts = string.Formatter().parse(template)
    made = "".join(re.escape(text) + (known[name] if name else "") for text, name, *_ in parts)
    return re.compile(made + r"(?:-\d+)?\.cxi")


def partial_path(path: Path, writer: str) -> Path:
    """Return the hidden name that a file has while it is being written; ``*.cxi`` does not find it."""
    return path.with_name(f".{path.name}.{writer}.partial")


def is_dead(writer: str) -> bool:
    """Say whether a writer is surely gone: of this host, and no process has its number."""
    host, pid, _ = writer.rsplit("-", 2)
    if host != _host():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def unfinished(directory: Path, naming: Naming) -> list[Path]:
    """Return what writers have left that died while they wrote."""
    return [path for path, writer in naming.partials_in(directory) if is_dead(writer)]


def _check_plain(what: str, text: str) -> None:
    bad = not text or not text.isprintable() or text.startswith(".") or set(text) & set("/\\{}")
    if bad:
        raise ConfigError(f"{what} is {text!r}", fix="a plain name: no path separators, no braces, no dot in front")
