"""From the subband files of one group to one verified Measurement Set, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nightbeam import __version__
from nightbeam.core.errors import InputError, NightbeamError, UsageError
from nightbeam.core.files import copy_tree, part_path, put_back, remove, replace_path, require_space, storage_errors
from nightbeam.core.locks import sole_owner
from nightbeam.ms.files import verify_ms
from nightbeam.ms.model import MsExpectation, MsSummary
from nightbeam.ms.writing import read_record, write_record
from nightbeam.uvh5 import model
from nightbeam.uvh5.compute import group_observation, phase_track
from nightbeam.uvh5.files import check_subband
from nightbeam.uvh5.model import ConvertReport, MsWriter, Observation, PhaseTrack, WriterName

__all__ = ["convert_group", "group_name", "ms_bytes", "read_group", "writer_named"]

_log = logging.getLogger(__name__)

_RECORD_VERSION = 1
_MOST_BY_PYUVDATA = 2


def convert_group(
    files: Sequence[Path],
    ms: Path,
    *,
    writer: WriterName = "direct-subband",
    max_workers: int = 4,
    scratch_dir: Path | None = None,
    expected_subbands: int = 16,
    stage_to_tmpfs: bool = False,
    tmpfs_path: Path = Path("/dev/shm"),
    phase_center: tuple[float, float] | None = None,
    max_flagged_fraction: float = 0.9,
) -> ConvertReport:
    """Convert the subbands of one observation to one Measurement Set.

    All integrations are rotated to one phase centre; windows and channels ascend in frequency; exact zeros,
    values that are not finite, and autocorrelations are flagged. The set takes its name only after it was
    read back through casacore. A finished set of the same files is verified and returned as it is.

    Parameters
    ----------
    files
        In any order; subbands that are not there are left out and listed.
    ms
        Where the set shall lie. One made of other files is replaced.
    writer : {"direct-subband", "pyuvdata", "auto"}
        ``auto``: pyuvdata for at most two subbands.
    max_workers
        Subbands handled at the same time, at most the cores there are.
    scratch_dir
        Where the set grows; by default beside ``ms``.
    expected_subbands
        Of a complete group.
    stage_to_tmpfs, tmpfs_path
        Let it grow in memory where twice the size of the input is free there.
    phase_center
        ICRS, degrees; by default the meridian at the pointing declination in the middle of the observation.
    max_flagged_fraction
        Of the cross-correlations; with more flagged the group is refused.

    Raises
    ------
    MissingError, InputError
        If a file cannot be used, or the files are not one observation.
    RejectedError
        If a subband holds nothing usable, or too much is flagged.
    StorageError
        If the disk is full.
    BusyError
        If another process converts to the same ``ms``.
    """
    begin = time.perf_counter()
    ms = Path(ms).absolute()
    observation = read_group(files, expected_subbands=expected_subbands)
    track = phase_track(observation.first, phase_center)
    strategy = writer_named(writer, len(observation.headers))
    with storage_errors(ms):
        ms.parent.mkdir(parents=True, exist_ok=True)
    with sole_owner(ms.with_name(f".{ms.name}.lock"), what=f"the conversion to {ms}"):
        if put_back(ms):
            _log.warning("%s is put back: somebody was killed as it was replaced", ms.name)
        _remove_leftovers(ms, (scratch_dir, tmpfs_path if stage_to_tmpfs else None))
        record = _record(observation, track, strategy)
        expect = _expectation(observation, track, max_flagged_fraction)
        finished = _finished(ms, record, expect)
        if finished is not None:
            _log.info("%s is there already, made of the same files", ms)
            return finished
        grow_in = _growing_place(observation, ms, scratch_dir, tmpfs_path if stage_to_tmpfs else None)
        require_space(ms.parent, ms_bytes(observation), what=f"converting {ms.name}")
        with _part(grow_in, ms.name) as part:
            times = strategy.write(observation, track, part, max_workers=max_workers)
            summary = verify_ms(part, expect)
            report = _report(ms, observation, track, strategy, summary)
            report = dataclasses.replace(report, **dataclasses.asdict(times))
            with storage_errors(ms):
                moved = _beside(part, ms)
                try:
                    report = dataclasses.replace(report, total_s=time.perf_counter() - begin)
                    write_record(moved, json.dumps({**record, "report": _plain(report)}))
                    replace_path(moved, ms)
                except BaseException:
                    remove(moved)
                    raise
    _log.info("WRITER_TYPE: %s", report.writer_type)
    return report


def read_group(files: Sequence[Path], *, expected_subbands: int = 16) -> Observation:
    """Check files one by one and against each other; return the observation that they are.

    Raises
    ------
    MissingError, InputError
        Naming the file and what is wrong with it.
    """
    headers = [check_subband(Path(f)) for f in files]
    observation = group_observation(headers, expected_subbands=expected_subbands)
    if observation.first.polarizations not in ((-5, -6), (-5,), (-6,)):
        raise InputError(
            f"{observation.first.path}: polarizations {observation.first.polarizations}, wanted XX, YY (-5, -6)",
            fix="convert it with pyuvdata itself",
        )
    return observation


def group_name(observation: Observation) -> str:
    """Return the group id of an observation: the ISO second of its first header time."""
    from nightbeam.core.keys import GroupId

    return str(GroupId.from_jd(observation.first.start_jd))


def ms_bytes(observation: Observation) -> int:
    """Return about how many bytes the Measurement Set takes."""
    first = observation.first
    return int(observation.n_rows * (first.n_freqs * first.n_pols * 12.125 + 60) * 1.01) + 4_000_000


def writer_named(name: str, n_files: int) -> MsWriter:
    """Return the strategy of that name for so many files.

    Raises
    ------
    UsageError
        If there is none.
    """
    from nightbeam.uvh5.direct import DirectWriter
    from nightbeam.uvh5.reference import PyuvdataWriter

    if name == "auto":
        name = "pyuvdata" if n_files <= _MOST_BY_PYUVDATA else "direct-subband"
    writers: tuple[MsWriter, ...] = (DirectWriter(), PyuvdataWriter())
    for candidate in writers:
        if candidate.name == name:
            return candidate
    raise UsageError(f"no writer {name!r}", fix="choose direct-subband, pyuvdata or auto")


def _record(observation: Observation, track: PhaseTrack, strategy: MsWriter) -> dict[str, object]:
    """Return what tells two conversions apart, as JSON types."""
    inputs = []
    for header in sorted(observation.headers, key=lambda h: h.path.name):
        stat = header.path.stat()
        inputs.append([header.path.name, stat.st_size, stat.st_mtime_ns])
    return {
        "version": _RECORD_VERSION,
        "nightbeam": __version__,
        "inputs": inputs,
        "phase_center": [round(track.ra_deg, 9), round(track.dec_deg, 9)],
        "file_sign": model.FILE_SIGN,
        "writer": strategy.name,
    }


def _finished(ms: Path, record: dict[str, object], expect: MsExpectation) -> ConvertReport | None:
    """Return the report of a sound set of the same inputs, or None if there is none (it is then replaced)."""
    if not ms.exists():
        return None
    try:
        kept = json.loads(read_record(ms) or "{}")
        if any(kept.get(key) != record[key] for key in ("version", "inputs", "phase_center", "file_sign")):
            _log.warning("%s was made of other files or in another way: it is made again", ms)
            return None
        # Flags may have come since, of a calibration that failed: a set with too many is made again, too.
        verify_ms(ms, expect)
    except (NightbeamError, ValueError) as error:
        _log.warning("%s is not sound and is made again: %s", ms, error)
        return None
    values = kept["report"]
    values.update(ms=ms, missing_subbands=tuple(values["missing_subbands"]), reused=True)
    return ConvertReport(**values)


def _expectation(observation: Observation, track: PhaseTrack, max_flagged_fraction: float) -> MsExpectation:
    first = observation.first
    return MsExpectation(
        rows=observation.n_rows,
        n_spw=len(observation.headers),
        n_chan=first.n_freqs,
        n_pol=first.n_pols,
        antennas=len(first.antenna_names),
        telescope=first.telescope,
        ra_deg=track.ra_deg,
        dec_deg=track.dec_deg,
        max_flagged_fraction=max_flagged_fraction,
        columns=("DATA", "FLAG", "WEIGHT", "SIGMA", "WEIGHT_SPECTRUM", "UVW", "FLAG_CATEGORY"),
    )


def _report(
    ms: Path, observation: Observation, track: PhaseTrack, strategy: MsWriter, summary: MsSummary
) -> ConvertReport:
    return ConvertReport(
        ms=ms,
        writer_type=strategy.name,
        rows=summary.rows,
        n_spw=summary.n_spw,
        missing_subbands=observation.missing,
        start_mjd=summary.start_mjd,
        mid_mjd=summary.mid_mjd,
        end_mjd=summary.end_mjd,
        ra_deg=track.ra_deg,
        dec_deg=track.dec_deg,
        flagged_fraction=summary.flagged_fraction,
        load_s=math.nan,
        phase_s=math.nan,
        write_s=math.nan,
        total_s=math.nan,
    )


def _plain(report: ConvertReport) -> dict[str, object]:
    return {**dataclasses.asdict(report), "ms": str(report.ms)}


def _growing_place(observation: Observation, ms: Path, scratch_dir: Path | None, tmpfs: Path | None) -> Path:
    """Return the directory in which the set grows."""
    if tmpfs is not None:
        needed = 2 * sum(h.path.stat().st_size for h in observation.headers)
        free = shutil.disk_usage(tmpfs).free if tmpfs.is_dir() else 0
        if free > needed:
            return tmpfs
        _log.warning("%s has %.1f GB free, %.1f GB are wanted: written to disk", tmpfs, free / 1e9, needed / 1e9)
    if scratch_dir is None:
        return ms.parent
    with storage_errors(scratch_dir):
        scratch_dir.mkdir(parents=True, exist_ok=True)
    require_space(scratch_dir, ms_bytes(observation), what=f"converting {ms.name}")
    return scratch_dir


@contextlib.contextmanager
def _part(directory: Path, name: str) -> Iterator[Path]:
    """Yield a name under which nothing lies yet, and leave nothing there."""
    part = part_path(directory / name)
    with storage_errors(part):
        try:
            yield part
        finally:
            remove(part)


def _beside(part: Path, ms: Path) -> Path:
    """Return the set in the directory where it belongs, copied there if it grew on another file system."""
    if part.stat().st_dev == ms.parent.stat().st_dev:
        return part
    there = part_path(ms)
    with storage_errors(there):
        copy_tree(part, there)
    return there


def _remove_leftovers(ms: Path, others: tuple[Path | None, ...]) -> None:
    """Remove what a killed conversion to the same set left; we hold its lock, so nobody writes there.

    In directories that are shared (scratch, memory) a set of the same name may be made for another place:
    there only what a dead process of this machine left is removed.
    """
    for part in ms.parent.glob(f".{ms.name}.*.part"):
        _log.warning("removing %s, left by a conversion that was killed", part)
        remove(part)
    for directory in {d for d in others if d is not None and d != ms.parent}:
        for part in directory.glob(f".{ms.name}.*.part"):
            if not _is_running(part.name):
                _log.warning("removing %s, left by a conversion that was killed", part)
                remove(part)


def _is_running(part_name: str) -> bool:
    pid = part_name.removesuffix(".part").split(".")[-2]
    return pid.isdigit() and Path(f"/proc/{pid}").exists()
