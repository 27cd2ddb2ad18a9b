"""Layers of air kept on disk: one ``.npz`` for each weather and tuning."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam.atmosphere.model import Layers
from nightbeam.core.errors import InputError
from nightbeam.core.files import part_path, storage_errors

__all__ = ["layers_path", "read_layers", "write_layers"]

_ARRAYS = ("freq_ghz", "temperature_k", "tau_dry", "tau_wet_per_mm")


def layers_path(directory: Path, key: Mapping[str, Any]) -> Path:
    """Return where the layers of a question are kept."""
    text = json.dumps(key, sort_keys=True)
    return directory / f"air-{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.npz"


def write_layers(path: Path, bands: Sequence[Layers]) -> None:
    """Keep the layers of all bands; who reads meanwhile has the whole of it or nothing."""
    part = part_path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as out:
                np.savez(out, **{f"{name}_{n}": getattr(one, name) for n, one in enumerate(bands) for name in _ARRAYS})
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def read_layers(path: Path) -> list[Layers] | None:
    """Return the layers of all bands; None where there are none.

    Raises
    ------
    InputError
        If the file is damaged, or holds something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            number = sum(name.startswith("freq_ghz_") for name in found.files)
            return [Layers(*(found[f"{name}_{n}"] for name in _ARRAYS)) for n in range(number)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no layers of air: {error}", fix="remove it, it is made anew") from error
