"""Errors that say what was found, how to mend it, and whether a later try can help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

__all__ = [
    "AuthError",
    "BusyError",
    "ConfigError",
    "InputError",
    "MissingError",
    "NightbeamError",
    "PartialError",
    "RejectedError",
    "ResourceError",
    "StorageError",
    "ToolError",
    "UnavailableError",
    "UsageError",
]


class NightbeamError(Exception):
    """``what`` went wrong and, if we know, how to ``fix`` it.

    Attributes
    ----------
    exit_code
        What the ``nightbeam`` command returns to the shell.
    retry
        True where the same call may work later without anybody doing anything.
    """

    exit_code: ClassVar[int] = 1
    retry: ClassVar[bool] = False

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(what)
        self.what, self.fix = what, fix

    def __str__(self) -> str:
        return f"{self.what}\n  fix: {self.fix}" if self.fix else self.what

    def __reduce__(self) -> tuple[Callable[..., NightbeamError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.what, self.fix)


def _rebuild(kind: type[NightbeamError], what: str, fix: str) -> NightbeamError:
    # Exception.__reduce__ would lose the keyword-only argument on the way to another process.
    return kind(what, fix=fix)


class PartialError(NightbeamError):
    """Some items worked and some did not."""

    exit_code = 2


class RejectedError(NightbeamError):
    """The data were read and understood, and a quality gate turned them down."""

    exit_code = 3


class UsageError(NightbeamError, TypeError):
    """The call makes no sense, whatever the data are."""

    exit_code = 64


class InputError(NightbeamError, ValueError):
    """Data are malformed, truncated, foreign or inconsistent."""

    exit_code = 65


class MissingError(NightbeamError, FileNotFoundError):
    """A file, row or name that should be there is not."""

    exit_code = 66


class UnavailableError(NightbeamError, ConnectionError):
    """A service is down or overloaded; a later try may work."""

    exit_code, retry = 69, True


class ToolError(NightbeamError, RuntimeError):
    """A program that we run for the user (CASA, WSClean) failed; its own words are quoted."""

    exit_code = 70


class ResourceError(NightbeamError, MemoryError):
    """The machine has no memory left for it; it may have when others have ended."""

    exit_code, retry = 71, True


class StorageError(NightbeamError, OSError):
    """A disk is full, read-only or failing; it may recover when space is made."""

    exit_code, retry = 74, True


class BusyError(NightbeamError, BlockingIOError):
    """Somebody else holds what we need."""

    exit_code, retry = 75, True


class AuthError(NightbeamError, PermissionError):
    """A credential is missing, expired or refused."""

    exit_code = 77


class ConfigError(NightbeamError, ValueError):
    """A setting is unknown, malformed or contradicts another."""

    exit_code = 78
