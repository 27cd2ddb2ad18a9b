"""The steps of a group, the mosaic of a night and what is done for all, as tasks. Each is idempotent in the library."""

from __future__ import annotations

from nightbeam import contimg
from nightbeam.catalog.model import Owner
from nightbeam.contimg import canary, nights
from tasks._policy import effect, pure

__all__ = [
    "apply_gains",
    "backfill_set",
    "calibrate",
    "convert",
    "find_unimaged",
    "fly_canary",
    "image",
    "make_night",
    "record",
    "scan_arrivals",
    "tidy_up",
    "write_qa",
]

scan_arrivals = effect(contimg.scan_arrivals, name="scan-arrivals", task_run_name="scan-arrivals")

convert = effect(contimg.convert_group_step, name="convert", task_run_name="convert {group_id}")
calibrate = effect(contimg.calibrate_or_find, name="calibrate", task_run_name="calibrate {group_id}")
apply_gains = effect(contimg.apply_step, name="apply", task_run_name="apply {group_id}")
image = effect(contimg.image_step, name="image", task_run_name="image {group_id}")
record = effect(contimg.record_step, name="record", task_run_name="record {group_id}")
write_qa = effect(contimg.qa_step, name="qa", task_run_name="qa {group_id}")

make_night = effect(nights.make_night, name="make-night", task_run_name="{night}")


def _backfill(place: contimg.Site, one: contimg.Unimaged, owner: Owner, name: str) -> contimg.BackfillOutcome:
    del name  # for the run's name
    return contimg.backfill_one(place, one, owner=owner)


find_unimaged = effect(contimg.find_unimaged, name="find-unimaged", task_run_name="find-unimaged")
#: Not tried again by itself: the queue counts the attempts at a group, and the next backfill finds what has failed.
backfill_set = pure(_backfill, name="backfill-set", task_run_name="backfill {name}")
#: Nor is the canary: what fails once is what a person wants to know of.
fly_canary = pure(canary.fly_canary, name="fly-canary", task_run_name="canary")
#: Not tried again either: the next hour is soon enough.
tidy_up = pure(contimg.tidy_up, name="tidy-up", task_run_name="tidy-up")
