"""How interference is looked for, and what became of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nightbeam.core.errors import UsageError

__all__ = ["FlagOptions", "FlagReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagOptions:
    """How a set is flagged.

    Attributes
    ----------
    strategy
        A Lua script as AOFlagger's ``rfigui`` writes them; None: AOFlagger's own for the telescope, which for one that
        it does not know is the generic one.
    max_flagged_fraction
        Of the cross-correlations, all flags together; with more the set is turned down.
    """

    strategy: Path | None = None
    max_flagged_fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.max_flagged_fraction <= 1:
            raise UsageError(f"max_flagged_fraction {self.max_flagged_fraction} is not between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagReport:
    """What flagging did to a set.

    Attributes
    ----------
    engine, version
        The program.
    strategy, strategy_sha256
        Name and digest of the script; ``default`` and empty for AOFlagger's own.
    before, after
        Flagged fraction of the cross-correlations; no flag is ever taken away.
    seconds
        It took.
    """

    engine: str
    version: str
    strategy: str
    strategy_sha256: str
    before: float
    after: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return asdict(self)

    def same_way(self, other: FlagReport) -> bool:
        """Return whether both were made by the same program with the same script."""
        ways = [(r.engine, r.version, r.strategy_sha256) for r in (self, other)]
        return ways[0] == ways[1]
