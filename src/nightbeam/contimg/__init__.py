"""One group of subbands from arrival to image: the steps, in the order in which they run.

Each step can be run again: what it finished before is found, checked and kept. The same functions are
called by ``nightbeam groups run`` in one process and by the tasks of the flow ``group-imaging``.
"""

from __future__ import annotations

from nightbeam.contimg.arrivals import scan_arrivals, scan_until_ready, take_dispatchable, wake_waiting
from nightbeam.contimg.backfill import (
    BackfillOutcome,
    BackfillReport,
    Unimaged,
    backfill_one,
    find_unimaged,
    parse_night,
)
from nightbeam.contimg.housekeeping import TidyReport, tidy_up
from nightbeam.contimg.model import (
    STEPS,
    ApplyReceipt,
    ArrivalReport,
    CalibrateReceipt,
    Claim,
    ConvertReceipt,
    GroupOutcome,
    ImageReceipt,
    QaReceipt,
    Receipt,
    RecordReceipt,
)
from nightbeam.contimg.owners import this_process
from nightbeam.contimg.pressure import Backlog, Level, Pressure, stand_back, weigh
from nightbeam.contimg.quality import make_quality, quality_of
from nightbeam.contimg.room import full_disk
from nightbeam.contimg.run import run_group
from nightbeam.contimg.site import Site
from nightbeam.contimg.steps import (
    apply_step,
    calibrate_or_find,
    claim_group,
    convert_group_step,
    fail_group,
    finish,
    image_step,
    qa_step,
    record_step,
)
from nightbeam.contimg.tools import TOOLS, Tools

__all__ = [
    "STEPS",
    "TOOLS",
    "ApplyReceipt",
    "ArrivalReport",
    "BackfillOutcome",
    "BackfillReport",
    "Backlog",
    "CalibrateReceipt",
    "Claim",
    "ConvertReceipt",
    "GroupOutcome",
    "ImageReceipt",
    "Level",
    "Pressure",
    "QaReceipt",
    "Receipt",
    "RecordReceipt",
    "Site",
    "TidyReport",
    "Tools",
    "Unimaged",
    "apply_step",
    "backfill_one",
    "calibrate_or_find",
    "claim_group",
    "convert_group_step",
    "fail_group",
    "find_unimaged",
    "finish",
    "full_disk",
    "image_step",
    "make_quality",
    "parse_night",
    "qa_step",
    "quality_of",
    "record_step",
    "run_group",
    "scan_arrivals",
    "scan_until_ready",
    "stand_back",
    "take_dispatchable",
    "this_process",
    "tidy_up",
    "wake_waiting",
    "weigh",
]
