"""AOFlagger, in a child process, on a twin of the set."""

from __future__ import annotations

import glob
import logging
import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from nightbeam.core.children import log_tail, log_tells_of_full_disk, run_child, whose
from nightbeam.core.errors import MissingError, RejectedError, StorageError, ToolError
from nightbeam.core.files import part_path, put_back, remove, replace_path, scratch_directory, sha256, storage_errors
from nightbeam.core.locks import sole_owner
from nightbeam.rfi.files import hard_link, merge_flags, read_report, twin, write_report
from nightbeam.rfi.model import FlagOptions, FlagReport

__all__ = ["aoflagger_version", "check_aoflagger", "flag_ms"]

logger = logging.getLogger(__name__)

PROGRAM = "aoflagger"


def flag_ms(
    ms: Path,
    *,
    options: FlagOptions | None = None,
    work_dir: Path,
    log: Path,
    timeout_s: float = 1800.0,
    threads: int = 1,
) -> FlagReport:
    """Find interference in the DATA of a Measurement Set and flag it.

    Parameters
    ----------
    ms
        Its cross-correlations are looked at, each baseline and window by itself. Only FLAG changes: what was flagged
        stays so. The flags come all at once, by a rename, or not at all.
    options
        How; the defaults of `FlagOptions` if not given.
    work_dir
        Where a scratch directory is made; it is gone when this returns.
    log
        What AOFlagger says is appended here.
    timeout_s, threads
        Of its child process.

    Returns
    -------
    FlagReport
        That which the set holds, if it was flagged by the same program with the same script before.

    Raises
    ------
    RejectedError
        If too much is flagged; the set is as it was.
    ToolError
        If AOFlagger is not installed, failed or took too long; its words are quoted.
    MissingError, InputError
        If there is no set or no script, or the set is damaged.
    BusyError
        If somebody else writes the set.
    StorageError
        If there is no room.
    """
    options = options or FlagOptions()
    check_aoflagger(options)
    ms, work_dir = Path(ms).absolute(), Path(work_dir).absolute()
    if not ms.parent.is_dir():
        raise MissingError(f"no Measurement Set {ms}", fix="check the name, or convert the group first")
    # The lock is that of the conversion: who makes a set new must not do so under our hands.
    with storage_errors(ms), sole_owner(ms.with_name(f".{ms.name}.lock"), what=f"the flags of {ms}"):
        if put_back(ms):
            logger.warning("%s is put back: somebody was killed as it was replaced", ms.name)
        if not ms.is_dir():
            raise MissingError(f"no Measurement Set {ms}", fix="check the name, or convert the group first")
        wanted, found = _report(options), read_report(ms)
        if found is not None and found.same_way(wanted):
            logger.info("%s was flagged before", ms.name)
            _require_enough(ms, found, options)
            return found
        for stale in ms.parent.glob(f".{glob.escape(ms.name)}.*.part"):  # of one that was killed
            remove(stale)
        scratch = scratch_directory(work_dir, owner="rfi")
        try:
            return _flag(ms, wanted, options, scratch, log.absolute(), timeout_s, threads)
        finally:
            remove(scratch)


def check_aoflagger(options: FlagOptions) -> None:
    """Say before any work is done what would stop it.

    Raises
    ------
    ToolError
        If AOFlagger is not installed.
    MissingError
        If the script is not there.
    """
    if shutil.which(PROGRAM) is None:
        raise ToolError(
            "AOFlagger is not installed", fix="apt-get install aoflagger, or set contimg.flag.engine to none"
        )
    if options.strategy is not None and not options.strategy.is_file():
        raise MissingError(f"no flagging strategy {options.strategy}", fix="correct contimg.flag.strategy")


def aoflagger_version() -> str:
    """Return the version that the program says it is, ``unknown`` if it says none."""
    try:
        # It knows no option for it, but says it before it refuses what it was given.
        done = subprocess.run([PROGRAM], capture_output=True, text=True, check=False, timeout=60.0)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(r"AOFlagger (\d\S*)", done.stdout + done.stderr)
    return found[1] if found else "unknown"


def _report(options: FlagOptions) -> FlagReport:
    strategy = options.strategy
    return FlagReport(
        engine=PROGRAM,
        version=aoflagger_version(),
        strategy=strategy.name if strategy else "default",
        strategy_sha256=sha256(strategy) if strategy else "",
        before=0.0,
        after=0.0,
        seconds=0.0,
    )


def _flag(
    ms: Path, report: FlagReport, options: FlagOptions, scratch: Path, log: Path, timeout_s: float, threads: int
) -> FlagReport:
    begin = time.monotonic()
    looked_at = twin(ms, scratch / ms.name)
    _run(looked_at, options, scratch, log, timeout_s, threads)
    before, after = merge_flags(ms, looked_at)
    report = replace(report, before=before, after=after, seconds=round(time.monotonic() - begin, 3))
    _require_enough(ms, report, options)
    part = part_path(ms)
    try:
        merge_flags(ms, looked_at, twin(ms, part, link=hard_link))
        write_report(part, report)
        replace_path(part, ms)
    finally:
        remove(part)
    logger.info("%s: %.2f %% flagged, %.2f %% before", ms.name, 100 * after, 100 * before)
    return report


def _run(ms: Path, options: FlagOptions, scratch: Path, log: Path, timeout_s: float, threads: int) -> None:
    strategy = ["-strategy", str(options.strategy.absolute())] if options.strategy else []
    argv = [PROGRAM, "-j", str(threads), "-column", "DATA", *strategy, str(ms)]
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": str(scratch), "OMP_NUM_THREADS": "1"}
    env |= whose()
    begin = log.stat().st_size if log.exists() else 0
    try:
        run_child(argv, log=log, timeout_s=timeout_s, cwd=scratch, env=env, what="AOFlagger")
    except ToolError as error:
        if log_tells_of_full_disk(log, begin, scratch):
            raise StorageError(
                f"AOFlagger found no room in {scratch}:\n{log_tail(log, lines=5)}",
                fix="free some space, then try again",
            ) from error
        raise


def _require_enough(ms: Path, report: FlagReport, options: FlagOptions) -> None:
    if report.after > options.max_flagged_fraction:
        raise RejectedError(
            f"{ms.name}: {100 * report.after:.1f} % are flagged ({100 * report.before:.1f} % before AOFlagger), "
            f"more than {100 * options.max_flagged_fraction:.1f} %",
            fix="look at the data for interference, or raise contimg.flag.max_flagged_fraction",
        )
