"""The user's own mask of bad pixels, from a file that anybody may have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, MissingError
from nightbeam.geometry.compute import explicit_origins, slab_of, tile_origins
from nightbeam.geometry.model import MAX_SLAB_PIXELS, Geometry

__all__ = ["check_mask", "mask_place", "read_mask"]

_WANTED: Final = "write a slab (SS, FS) or (C, H0, W0) of whole numbers or truth values, not 0 where a pixel is bad"


def mask_place(path: Path) -> tuple[Path, str]:
    """Return the file and the dataset of ``FILE.h5:/DATASET``; no dataset: ``""``.

    Examples
    --------
    >>> mask_place(Path("a/b.h5:/entry_1/mask"))[1]
    '/entry_1/mask'
    """
    file, colon, dataset = str(path).rpartition(":/")
    return (Path(file), f"/{dataset}") if colon else (path, "")


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask, True where a pixel is bad.

    Parameters
    ----------
    path
        ``FILE.npy``, or ``FILE.h5:/DATASET`` for HDF5.

    Returns
    -------
    (SS, FS) or (C, H0, W0), bool

    Raises
    ------
    MissingError
        If there is no such file or dataset.
    InputError
        If it is something else, or too large.
    """
    file, dataset = mask_place(path)
    try:
        return _of_hdf5(file, dataset) if dataset else _of_npy(file)
    except FileNotFoundError as error:
        raise MissingError(f"no mask file {file}", fix="verify that `geometry.mask_file` is correct") from error
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError | MissingError):
            raise
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{file} holds no mask: {said}", fix="name FILE.npy, or FILE.h5:/DATASET") from error


def _of_npy(file: Path) -> NDArray[np.bool_]:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"{file} holds several arrays", fix="write one with numpy.save")
    _require_mask(array, file)
    return np.asarray(array != 0)


def _of_hdf5(file: Path, name: str) -> NDArray[np.bool_]:
    import h5py

    with h5py.File(file, "r") as opened:
        found = opened.get(name)
        if not isinstance(found, h5py.Dataset):
            raise MissingError(f"{file} has no dataset {name}", fix="write FILE.h5:/DATASET in `geometry.mask_file`")
        _require_mask(found, f"{file}:{name}")
        return np.asarray(found[()] != 0)


def _require_mask(found: Any, where: object) -> None:
    if found.dtype.kind not in "biu" or len(found.shape) not in (2, 3):
        raise InputError(f"{where} is of type {found.dtype} and shape {found.shape}", fix=_WANTED)
    if not 0 < int(np.prod([int(n) for n in found.shape], dtype=object)) <= MAX_SLAB_PIXELS:
        raise InputError(f"{where} has shape {found.shape}", fix=f"at most {MAX_SLAB_PIXELS} pixels")


def check_mask(mask: NDArray[Any], *, geometry: Geometry | None, origins: Any = None) -> None:
    """Refuse a mask that cannot be one of this detector, as far as that is known before any data are.

    Parameters
    ----------
    mask : (SS, FS) or (C, H0, W0)
    geometry, origins
        As `nightbeam.cxi.detector.describe_detector` takes them.

    Raises
    ------
    InputError
        Naming both shapes.
    """
    try:
        if mask.ndim == 3 and origins is not None:
            slab_of(explicit_origins(origins, mask.shape), mask.shape)
        elif mask.ndim == 3 and geometry is not None:
            tile_origins(geometry, mask.shape)
        elif mask.ndim == 2 and geometry is not None and origins is None and mask.shape != geometry.slab_shape:
            raise InputError(f"its shape is {mask.shape}, the slab of {geometry.source} is {geometry.slab_shape}")
    except InputError as error:
        raise InputError(f"the mask does not fit: {error.what}", fix="correct `geometry.mask_file`") from error
