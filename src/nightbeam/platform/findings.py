"""What was looked at, and how it is to be taken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nightbeam.core.errors import NightbeamError

__all__ = ["Finding", "Health", "guarded", "worst"]


class Health(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    check: str
    health: Health
    found: str
    fix: str = ""


def worst(findings: Sequence[Finding]) -> Health:
    """Return the worst health among findings; ``ok`` of none."""
    order = list(Health)
    return max((finding.health for finding in findings), key=order.index, default=Health.OK)


def guarded(check: str, look: Callable[[], Sequence[Finding]], *, timeout_s: float = 30.0) -> list[Finding]:
    """Return what a look finds; one that raises or does not come back is a finding itself.

    A network file system that is gone keeps whoever asks for ever: a thread asks, and is left behind.
    """
    found: list[Finding] = []

    def work() -> None:
        try:
            found.extend(look())
        except NightbeamError as error:
            found.append(Finding(check, Health.FAIL, error.what.splitlines()[0], error.fix))
        except Exception as error:  # a broken part is a finding, whatever it raises
            found.append(Finding(check, Health.FAIL, f"cannot be looked at: {type(error).__name__}: {error}"))

    thread = threading.Thread(target=work, name=f"look-{check}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        return [Finding(check, Health.FAIL, f"no answer after {timeout_s:.0f} s", "is a network file system gone?")]
    return list(found)
