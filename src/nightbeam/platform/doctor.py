"""What on this machine would stop nightbeam, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from nightbeam.casa.config import measures_directory
from nightbeam.casa.tables import open_table
from nightbeam.core.errors import NightbeamError
from nightbeam.core.settings import Settings
from nightbeam.core.times import mjd_from_datetime, utc_now
from nightbeam.platform.findings import Finding, Health, guarded

__all__ = ["Finding", "Health", "examine", "needed_programs"]

#: package -> (lowest, first that does not work): the ranges outside which Prefect 3.8 breaks.
RANGES = {"prefect": ((3, 8, 8), (3, 10)), "fastapi": ((0, 139), (0, 150)), "sqlalchemy": ((2, 0), (2, 1))}
PACKAGES = ("casatasks", "python-casacore", "pyuvdata", "h5py", "numba", "astropy", "alembic", "prefect-shell")
#: Programs of the system, and what each is for.
PROGRAMS = {
    "wsclean": "second imaging engine",
    "aoflagger": "flagging of interference",
    "chromium": "tests of the web page",
}


def needed_programs(settings: Settings) -> list[str]:
    """Return the programs of the system without which some settings cannot be followed."""
    c = settings.contimg
    return [name for name in (c.image.engine, c.flag.engine) if name not in ("tclean", "none")]


def examine(*, needed: Sequence[str] = ()) -> list[Finding]:
    """Look at everything of this machine that nightbeam stands on, whatever the site.

    Parameters
    ----------
    needed
        Programs without which the settings cannot be followed; nobody is warned of others that are missing.

    Returns
    -------
    list of Finding
        Never raises for what it finds: a broken part is a finding.
    """
    findings = [_python(), *map(_package, PACKAGES), *map(_range, RANGES)]
    findings += guarded("measures tables", lambda: [_measures()])
    findings += [_tool(name, use, needed=name in needed) for name, use in PROGRAMS.items()]
    return [*findings, _postgres(), _memory(), _shared_memory(), _open_files()]


def _python() -> Finding:
    found = sys.version.split()[0]
    right = sys.version_info[:2] == (3, 11)
    return Finding("python", Health.OK if right else Health.FAIL, found, "" if right else "use Python 3.11")


def _package(name: str) -> Finding:
    try:
        return Finding(name, Health.OK, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, Health.FAIL, "not installed", "make setup")


def _range(name: str) -> Finding:
    low, high = RANGES[name]
    wanted = f">={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, Health.FAIL, "not installed", "make setup")
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
    if low <= numbers < high:
        return Finding(name, Health.OK, found)
    return Finding(name, Health.FAIL, f"{found}, wanted {wanted}", f"pip install '{name}{wanted}'")


def _measures() -> Finding:
    try:
        table = measures_directory() / "geodetic" / "IERSpredict"
        with open_table(table) as rows:
            last_mjd = float(rows.getcell("MJD", rows.nrows() - 1))
    except (NightbeamError, RuntimeError) as error:
        return Finding("measures tables", Health.FAIL, str(error).splitlines()[0], "make setup")
    ahead = last_mjd - mjd_from_datetime(utc_now())
    if ahead >= 0:
        return Finding("measures tables", Health.OK, f"Earth rotation known {ahead:.0f} days ahead")
    return Finding(
        "measures tables",
        Health.WARN,
        f"Earth rotation ends {-ahead:.0f} days ago (about 1.4 arcsec of azimuth)",
        "pip install --upgrade python-casacore",
    )


def _tool(name: str, use: str, *, needed: bool = False) -> Finding:
    path = shutil.which(name)
    if path:
        return Finding(name, Health.OK, path)
    if needed:
        return Finding(
            name, Health.FAIL, f"not installed, and the settings ask for it ({use})", f"apt-get install {name}"
        )
    return Finding(name, Health.OK, f"not installed, and nothing asks for it ({use})")


def _postgres() -> Finding:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return Finding("postgresql", Health.OK, str(found[-1]))
    return Finding("postgresql", Health.OK, "not installed, and nothing asks for it (databases of many workers)")


def _memory() -> Finding:
    import psutil

    total = psutil.virtual_memory().total
    return _at_least("memory", total, 4e9, "2 GB for the platform and 2 GB for each group at a time")


def _shared_memory() -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("/dev/shm", Health.WARN, "not there (staging in memory)", "mount a tmpfs there")
    return _at_least("/dev/shm", shutil.disk_usage(path).total, 4e9, "room to stage a group in memory")


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= 1024:
        return Finding("open files", Health.OK, str(soft))
    return Finding("open files", Health.WARN, f"{soft}, wanted 1024", "ulimit -n 4096")


def _at_least(check: str, found: float, wanted: float, why: str) -> Finding:
    text = f"{found / 1e9:.1f} GB, {os.cpu_count()} cores" if check == "memory" else f"{found / 1e9:.1f} GB"
    if found >= wanted:
        return Finding(check, Health.OK, text)
    return Finding(check, Health.WARN, f"{text}, wanted {wanted / 1e9:.0f} GB: {why}", "use a larger machine")
