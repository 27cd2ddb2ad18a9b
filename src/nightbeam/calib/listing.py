"""What a cache file holds, line by line, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nightbeam.calib.files import entry_path, map_entry
from nightbeam.calib.layout import ConstantPlace, EntryIndex, placed_arrays
from nightbeam.core.errors import InputError

__all__ = ["ConstantLine", "constant_lines", "read_lines"]


@dataclass(frozen=True)
class ConstantLine:
    """One constant of one detector, or a detector without any.

    Attributes
    ----------
    dtype, shape
        Of an array; None for a text or a dict.
    valid_from, valid_to
        Runs, as the document says.
    note
        Why there is none, or what is missing.
    """

    detector: str
    unique_id: str
    ctype: str | None = None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    bytes: int = 0
    document_id: str | None = None
    database: str | None = None
    valid_from: int | None = None
    valid_to: str | None = None
    note: str | None = None


def read_lines(cache_dir: Path, experiment: str, run: int, *, owners: tuple[str | int, ...] = ()) -> list[ConstantLine]:
    """Return what the cache holds for a run.

    Raises
    ------
    MissingError, RejectedError, InputError
        As `nightbeam.calib.files.open_entry`.
    """
    path = entry_path(cache_dir, experiment, run)
    entry = map_entry(path, owners=owners)
    if entry is None:
        raise InputError(f"{path} has no index", fix="another program wrote it; fetch it anew to see what it holds")
    return constant_lines(entry.index)


def constant_lines(index: EntryIndex) -> list[ConstantLine]:
    """Return one line for each constant, and one for each detector that has none."""
    lines: list[ConstantLine] = []
    for name, uid in index.det_info.items():
        place = index.detectors[name]
        if place.constants is None:
            lines.append(ConstantLine(name, uid, note="skipped on request"))
            continue
        lines += [_line(name, uid, ctype, constant) for ctype, constant in place.constants.items()]
        notes = [place.reason] if place.reason else [f"incomplete: {gap}" for gap in place.gaps]
        lines += [ConstantLine(name, uid, note=note) for note in notes]
    return lines


def _line(name: str, uid: str, ctype: str, constant: ConstantPlace) -> ConstantLine:
    arrays = list(placed_arrays(constant.data))
    alone = arrays[0] if len(arrays) == 1 and "array" in constant.data else None
    document = constant.document
    first = document.get("run")
    return ConstantLine(
        name,
        uid,
        ctype,
        alone.dtype if alone else None,
        alone.shape if alone else None,
        constant.nbytes,
        str(document.get("_id")),
        constant.database,
        first if isinstance(first, int) else None,
        str(document["run_end"]) if "run_end" in document else None,
    )
