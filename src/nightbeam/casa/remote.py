"""CASA tasks, each job in a child process with its own directory, home, log, threads and time limit."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.casa.config import child_environment
from nightbeam.casa.model import BEGIN, BENIGN_SEVERE, CasaCall
from nightbeam.core.children import log_tail, log_tells_of_full_disk, run_child
from nightbeam.core.errors import ToolError, UsageError
from nightbeam.core.files import full_place, no_space, remove, scratch_directory, storage_errors, write_text

__all__ = ["air_layers", "run_casa", "severe_lines"]

logger = logging.getLogger(__name__)

_TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\s+")


def run_casa(
    calls: Sequence[CasaCall],
    *,
    work_dir: Path,
    log: Path,
    timeout_s: float,
    threads: int = 2,
    flux_standards: Path | None = None,
    tolerate: Sequence[str] = (),
) -> list[Any]:
    """Run CASA tasks in order in one child process and return what each returned.

    Parameters
    ----------
    calls
        At least one. Files in them are absolute paths: the child stands in a directory of its own.
    work_dir
        Where that directory is made; it is gone when this returns.
    log
        The child's stdout and stderr and CASA's log are appended here.
    timeout_s
        For all the calls together, imports (about a second) included.
    threads
        OpenMP threads of the child.
    flux_standards
        A folder that holds ``nrao/VLA/standards``, if setjy shall use a named flux standard.
    tolerate
        Regular expressions of SEVERE lines that are no failure of these calls.

    Returns
    -------
    list
        One value per call, as JSON types (arrays are nested lists).

    Raises
    ------
    UsageError
        If a task is not one that we use, or an argument cannot be handed over.
    ToolError
        If the child cannot start, runs out of time, ends with an error, or if CASA logged a SEVERE line
        although the task returned; the exit code and the end of the log are part of the message.
    StorageError
        If it failed on a full disk.
    MissingError
        If CASA's measures tables or the flux standards are missing.

    Notes
    -----
    A return is no proof of a product: CASA's solvers return normally when they wrote no table
    (check the table). Interrupting this call, or killing this process, kills the child.
    """
    if not calls:
        raise UsageError("there is nothing for CASA to do", fix="give at least one call")
    job = [call.to_json() for call in calls]
    name = "+".join(dict.fromkeys(call.task for call in calls))
    with storage_errors(work_dir):
        scratch = scratch_directory(work_dir.absolute(), owner="casa")
    log = log.absolute()
    begin = log.stat().st_size if log.exists() else 0
    try:
        with storage_errors(scratch):
            values = _run(job, name, scratch, log, timeout_s, threads, flux_standards)
        _refuse_severe(log, begin, name, tolerate)
    except ToolError as error:
        # Of a full disk CASA dies in many ways, most of them without a word of it.
        places = _places(calls)
        if not log_tells_of_full_disk(log, begin, scratch, *places):
            raise
        full = next((place for place in (scratch, *places, log) if full_place(place)), scratch)
        raise no_space(full, told=f": {error.what}") from error
    finally:
        remove(scratch)
    return values


def _places(calls: Sequence[CasaCall]) -> list[Path]:
    """Return the files that are named in some calls: CASA may write any of them."""
    values = [value for call in calls for value in call.to_json()["kwargs"].values()]
    return [Path(value) for value in values if isinstance(value, str) and value.startswith("/")]


def air_layers(
    weather: Mapping[str, float],
    bands: Sequence[tuple[float, float, float]],
    *,
    work_dir: Path,
    timeout_s: float = 120.0,
    kind: int = 1,
    lapse_k_km: float = -5.6,
    scale_height_km: float = 2.0,
) -> list[dict[str, NDArray[np.float64]]]:
    """Ask CASA's model of the atmosphere (ATM, Pardo, Cernicharo & Serabyn 2001) for its layers of air.

    Parameters
    ----------
    weather
        ``altitude_m``, ``pressure_hpa``, ``temperature_k``, ``humidity_pct``, of this planet: the model believes
        anything, and hangs on what is not a number.
    bands
        Centre, width and step of each in GHz; a band has ``int(width / step)`` frequencies, symmetric about its
        centre.
    work_dir
        Where the child has its directory; that is gone when this returns.
    kind
        1 tropical, 2 and 3 mid-latitude summer and winter, 4 and 5 subarctic summer and winter.
    lapse_k_km, scale_height_km
        Fall of the temperature with height, and the height in which the water falls to 1/e.

    Returns
    -------
    list
        For each band ``freq_ghz`` (chan,), ``temperature_k`` (layer,), and zenith opacities ``tau_dry`` and, for each
        millimetre of water in the column, ``tau_wet_per_mm`` (layer, chan); the lowest layer first.

    Raises
    ------
    ToolError
        If the child cannot start, runs out of time or ends with an error.
    """
    if not bands or not all(math.isfinite(number) for number in (*weather.values(), *chain(*bands))):
        raise UsageError(f"there is no air to ask for: {dict(weather)}, {list(bands)}")
    with storage_errors(work_dir):
        scratch = scratch_directory(work_dir.absolute(), owner="air")
    try:
        with storage_errors(scratch):
            stand, answer, job_file, log = (scratch / name for name in ("cwd", "answer.npz", "job.json", "log"))
            env = child_environment(scratch, threads=1)
            stand.mkdir()
            names = ("centre_ghz", "width_ghz", "step_ghz")
            job = {
                "weather": dict(weather),
                "bands": [dict(zip(names, band, strict=True)) for band in bands],
                "kind": kind,
                "lapse_k_km": lapse_k_km,
                "scale_height_km": scale_height_km,
                "answer": str(answer),
            }
            write_text(job_file, json.dumps(job))
            argv: list[str | Path] = [sys.executable, "-P", "-m", "nightbeam.casa.air_child", job_file]
            run_child(argv, log=log, timeout_s=timeout_s, cwd=stand, env=env, what="CASA's atmosphere")
            if not answer.exists():
                raise ToolError(f"CASA's atmosphere ended without an answer; it last said:\n{log_tail(log)}")
            with np.load(answer, allow_pickle=False) as found:
                kinds = ("freq_ghz", "temperature_k", "tau_dry", "tau_wet_per_mm")
                return [{name: found[f"{name}_{n}"] for name in kinds} for n in range(len(bands))]
    finally:
        remove(scratch)


def _run(
    job: list[dict[str, Any]],
    name: str,
    scratch: Path,
    log: Path,
    timeout_s: float,
    threads: int,
    flux_standards: Path | None,
) -> list[Any]:
    env = child_environment(scratch, log=log, threads=threads, flux_standards=flux_standards)
    stand, answer, job_file = scratch / "cwd", scratch / "answer.json", scratch / "job.json"
    stand.mkdir()
    write_text(job_file, json.dumps({"calls": job, "answer": str(answer)}))
    argv: list[str | Path] = [sys.executable, "-P", "-m", "nightbeam.casa.child", job_file]
    run_child(argv, log=log, timeout_s=timeout_s, cwd=stand, env=env, what=f"CASA {name}")
    try:
        results = json.loads(answer.read_text())
    except (OSError, ValueError) as error:
        raise ToolError(f"CASA {name} ended without an answer; it last said:\n{log_tail(log)}") from error
    for result in results:
        logger.info("CASA %s took %.2f s", result["task"], result["seconds"])
    return [result["value"] for result in results]


def _refuse_severe(log: Path, begin: int, name: str, tolerate: Sequence[str]) -> None:
    with log.open("rb") as data:
        data.seek(begin)
        found = severe_lines(data.read().decode(errors="replace"), tolerate=tolerate)
    if found:
        shown = "\n".join(found[:5])
        raise ToolError(f"CASA {name} returned, but it said:\n{shown}", fix=f"read {log}")


def severe_lines(text: str, *, tolerate: Sequence[str] = ()) -> list[str]:
    """Return the lines of a CASA log that CASA itself calls SEVERE, without their times.

    Lines known to be harmless (`BENIGN_SEVERE`) and those that match ``tolerate`` are left out.
    """
    harmless = [re.compile(pattern) for pattern in (*BENIGN_SEVERE, *tolerate)]
    lines = [_TIMESTAMP.sub("", line).strip() for line in text.splitlines() if "\tSEVERE\t" in line]
    lines = [line for line in lines if not line.startswith(BEGIN)]
    return [line for line in lines if not any(pattern.search(line) for pattern in harmless)]
