"""What a writer looks at and makes ready before it takes anything: geometry, directory, kernels, the account before."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import numpy as np

from nightbeam.core.errors import BusyError, InputError, MissingError, StorageError
from nightbeam.core.files import part_path, storage_errors
from nightbeam.core.locks import sole_owner
from nightbeam.cxi.config import OutputConfig, WriterConfig
from nightbeam.cxi.ledger import Range, StreamLedger, lock_path, read_status, resume, status_path, total_events
from nightbeam.cxi.tallies import RunTallies
from nightbeam.geometry.files import read_geometry
from nightbeam.geometry.model import Geometry
from nightbeam.peaks.compute import find_peaks
from nightbeam.peaks.model import PeakSettings, Window

__all__ = ["compile_kernels", "earlier_account", "own_directory", "say_abandoned", "usable_geometry"]

_log = logging.getLogger(__name__)

_RANGES_SAID: Final = 20
#: Whoever looks whether somebody holds the lock holds it for a moment.
_LOOK_S: Final = 0.5


def usable_geometry(config: WriterConfig) -> Geometry | None:
    """Return the geometry that the configuration names, and say what is odd about it; None where it names none.

    Raises
    ------
    MissingError, InputError
        If it is not there or not usable.
    """
    path = config.geometry.geom_file
    geometry = None if path is None else read_geometry(path)
    for text in () if geometry is None else geometry.warnings:
        # The geometry beside the files supplies what CrystFEL lacks in the user's own.
        supplied = config.output.geom and text.startswith("CrystFEL ")
        _log.log(logging.DEBUG if supplied else logging.WARNING, "%s: %s", path, text)
    return geometry


# -- the directory ------------------------------------------------------------------------------------------------


@contextmanager
def own_directory(output: OutputConfig) -> Iterator[None]:
    """Make the directory, see that it can be written, and be the only writer of its prefix for the block.

    Raises
    ------
    StorageError
        If it cannot be written.
    BusyError
        If another writer has this directory and prefix.
    """
    _require_writable(output)
    with ExitStack() as held:
        try:
            held.enter_context(sole_owner(lock_path(output.output_dir, output.file_prefix), wait_s=_LOOK_S))
        except BusyError as error:
            raise BusyError(
                f"another writer writes {output.file_prefix!r} in {output.output_dir}: {error.what}",
                fix="stop it, or give this one another `output.file_prefix`",
            ) from error
        yield


def _require_writable(output: OutputConfig) -> None:
    with storage_errors(output.output_dir):
        try:
            output.output_dir.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
            what = "cannot be made" if isinstance(error, FileNotFoundError) else "is no directory"
            raise StorageError(f"{output.output_dir} {what}", fix="set `output.output_dir` to another one") from error
        probe = part_path(output.output_dir / output.file_prefix)
        try:
            probe.write_bytes(b"\0")
        finally:
            probe.unlink(missing_ok=True)


# -- what was before ----------------------------------------------------------------------------------------------


def earlier_account(output: OutputConfig) -> tuple[StreamLedger, dict[str, list[Range]]] | None:
    """Return the account of an earlier writer of these files, and what it had taken and not written.

    Returns
    -------
    (ledger, abandoned), or None
        As `nightbeam.cxi.ledger.resume`; None where there is none that can be gone on with.
    """
    try:
        return resume(output.output_dir, output.file_prefix)
    except MissingError:
        return None
    except InputError as error:
        _log.warning("the account of an earlier writer is not gone on with: %s", error)
        return None


def earlier_runs(output: OutputConfig) -> RunTallies:
    """Return what an earlier writer of these files has counted of each run; nothing where there was none."""
    try:
        return RunTallies.from_json(read_status(status_path(output.output_dir, output.file_prefix)).get("runs"))
    except (MissingError, InputError):  # `earlier_account` says what is wrong with it
        return RunTallies()


def say_abandoned(abandoned: Mapping[str, Sequence[Range]]) -> None:
    """Say which batches of which producer an earlier writer had taken and not written."""
    for producer, ranges in abandoned.items():
        events = total_events(ranges)
        numbers = ", ".join(f"{one.first}-{one.last}" for one in ranges[:_RANGES_SAID])
        _log.error(
            "an earlier writer was killed: batches %s of producer %r (%s events) were taken and never written",
            numbers, producer, "?" if events is None else events,
        )  # fmt: skip


# -- the kernels --------------------------------------------------------------------------------------------------


def compile_kernels() -> None:
    """Have the kernels compiled before anything is taken: it takes half a minute once, longer than a drain may."""
    logits = np.zeros((1, 2, 16, 16), np.float32)
    logits[0, 1, 7:9, 7:9] = 1.0
    images = np.ones((1, 16, 16), np.float32)
    for window in (None, Window(0, 0, 12, 12)):
        image = images if window is None else images[:, :12, :12]
        find_peaks(logits, image, window=window, settings=PeakSettings())
