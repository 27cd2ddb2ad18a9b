"""What may be asked of CASA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from nightbeam.core.errors import UsageError

__all__ = ["BEGIN", "BENIGN_SEVERE", "TASKS", "CasaCall"]

#: What the log shows before each call, so that the lines after it can be laid to it.
BEGIN = "### nightbeam casa call"

#: The casatasks functions that we use. A name from elsewhere never reaches the child's import machinery.
TASKS: frozenset[str] = frozenset(
    {
        "applycal",
        "bandpass",
        "clearcal",
        "concat",
        "delmod",
        "exportfits",
        "flagdata",
        "flagmanager",
        "fluxscale",
        "ft",
        "gaincal",
        "imhead",
        "importasdm",
        "importfits",
        "importuvfits",
        "imstat",
        "imsubimage",
        "impbcor",
        "initweights",
        "listobs",
        "mstransform",
        "phaseshift",
        "setjy",
        "split",
        "tclean",
        "uvcontsub",
        "virtualconcat",
        "visstat",
    }
)

#: SEVERE lines that CASA writes though nothing is wrong (a leap-second table half a year old, and its echo).
BENIGN_SEVERE: tuple[str, ...] = (
    r"Leap second table TAI_UTC seems out-of-date",
    r"Until the table is updated .* times and coordinates",
    r"derived from UTC could be wrong by 1s or more",
)

#: Parameters that name files. The child stands in a directory of its own, so that a relative one would go astray.
_FILES: frozenset[str] = frozenset(
    {
        "caltable",
        "concatvis",
        "fitsfile",
        "fitsimage",
        "fluxtable",
        "imagename",
        "incomplist",
        "listfile",
        "mask",
        "model",
        "outfile",
        "outputvis",
        "pbimage",
        "startmodel",
        "vis",
    }
)


@dataclass(frozen=True, slots=True)
class CasaCall:
    """One call of a CASA task.

    Attributes
    ----------
    task
        A name in `TASKS`.
    kwargs
        Its arguments, as JSON types; files are absolute paths (text or `Path`).
    """

    task: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the call as JSON types.

        Raises
        ------
        UsageError
            If the task is not one that we use, an argument is no JSON type, or a file is named relatively.
        """
        if self.task not in TASKS:
            raise UsageError(f"{self.task!r} is not a CASA task that nightbeam runs", fix=f"one of {sorted(TASKS)}")
        kwargs = {name: _plain(value, name) for name, value in self.kwargs.items()}
        for name in _FILES.intersection(kwargs):
            values = kwargs[name] if isinstance(kwargs[name], list) else [kwargs[name]]
            for text in values:
                if isinstance(text, str) and text and not text.startswith("/") and not _is_region(name, text):
                    raise UsageError(f"{self.task}: {name}={text!r} is a relative path", fix="give an absolute one")
        return {"task": self.task, "kwargs": kwargs}


def _is_region(name: str, text: str) -> bool:
    # tclean's mask may be a region ("circle[[512pix,512pix],90pix]") and setjy's model an image CASA ships.
    return (name == "mask" and re.match(r"\s*(user|auto|pb|\w+\s*\[)", text) is not None) or name == "model"


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v, name) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, name) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), name)
    raise UsageError(f"{name}={value!r} cannot be handed to another process", fix="give numbers, text or lists")
