"""The one door to SQLAlchemy: the queue, the calibration registry, the products and the logbook's mirror.

`Queue`, `Registry`, `Products` and `Logbook` are imported when they are first asked for, because they bring
SQLAlchemy with them and the command line must answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nightbeam.catalog.elog_model import Access, Change, ExperimentRow, Hit, SyncState
from nightbeam.catalog.model import (
    AttemptRow,
    BadFileRow,
    CalSet,
    CalSetSummary,
    CalTableRow,
    Dispatch,
    DuplicateRow,
    FileFact,
    GroupFact,
    GroupRow,
    ImageRow,
    MosaicRow,
    MsRow,
    NightRow,
    Owner,
    PerformanceRow,
    QaArtifactRow,
    QaScoreRow,
    QuarantineRow,
    ReceiptRow,
    Recorded,
    SetAsideRow,
    SetSpec,
    Stage,
    State,
    SubbandRow,
    TableSpec,
)

if TYPE_CHECKING:
    from nightbeam.catalog.elog import Logbook
    from nightbeam.catalog.products import Products
    from nightbeam.catalog.queue import Queue
    from nightbeam.catalog.registry import Registry

__all__ = [
    "Access",
    "AttemptRow",
    "BadFileRow",
    "CalSet",
    "CalSetSummary",
    "CalTableRow",
    "Change",
    "Dispatch",
    "DuplicateRow",
    "ExperimentRow",
    "FileFact",
    "GroupFact",
    "GroupRow",
    "Hit",
    "ImageRow",
    "Logbook",
    "MosaicRow",
    "MsRow",
    "NightRow",
    "Owner",
    "PerformanceRow",
    "Products",
    "QaArtifactRow",
    "QaScoreRow",
    "QuarantineRow",
    "Queue",
    "ReceiptRow",
    "Recorded",
    "Registry",
    "SetAsideRow",
    "SetSpec",
    "Stage",
    "State",
    "SubbandRow",
    "SyncState",
    "TableSpec",
]

_LATER = {"Logbook": "elog", "Products": "products", "Queue": "queue", "Registry": "registry"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
