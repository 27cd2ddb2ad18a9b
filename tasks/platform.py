"""Looks at the machine and at the site, as tasks."""

from __future__ import annotations

from nightbeam.core.settings import load_settings
from nightbeam.platform.doctor import examine
from nightbeam.platform.findings import Finding
from nightbeam.platform.readiness import examine_site
from tasks._policy import pure

__all__ = ["look_around"]


def _look_around() -> list[Finding]:
    settings = load_settings().resolved()
    contimg = settings.contimg
    places = [path for path in (contimg.input_dir, contimg.output_dir, contimg.scratch_dir) if path]
    return [*examine(state_dir=settings.state_dir, directories=places), *examine_site(settings)]


look_around = pure(_look_around, name="look-around", task_run_name="look-around")
