"""The steps of a group, and the mosaic of a night, as tasks. Each is idempotent in the library and leaves a receipt."""

from __future__ import annotations

from nightbeam import contimg
from nightbeam.contimg import nights
from tasks._policy import effect

__all__ = ["apply_gains", "calibrate", "convert", "image", "make_night", "record", "scan_arrivals", "write_qa"]

scan_arrivals = effect(contimg.scan_arrivals, name="scan-arrivals", task_run_name="scan-arrivals")

convert = effect(contimg.convert_group_step, name="convert", task_run_name="convert {group_id}")
calibrate = effect(contimg.calibrate_or_find, name="calibrate", task_run_name="calibrate {group_id}")
apply_gains = effect(contimg.apply_step, name="apply", task_run_name="apply {group_id}")
image = effect(contimg.image_step, name="image", task_run_name="image {group_id}")
record = effect(contimg.record_step, name="record", task_run_name="record {group_id}")
write_qa = effect(contimg.qa_step, name="qa", task_run_name="qa {group_id}")

make_night = effect(nights.make_night, name="make-night", task_run_name="{night}")
