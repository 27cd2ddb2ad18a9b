"""The one door for tensors of torch: what comes in leaves as an array of numpy.

torch itself is never imported here: a tensor brings it along.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError

__all__ = ["is_tensor", "logits_array"]

_HALVES: Final = ("torch.bfloat16", "torch.float16")
_ACCEPTED: Final = (*_HALVES, "torch.float32", "torch.float64")
_WANTED: Final = "give float32, float64, float16 or bfloat16 of shape (rows, classes, height, width)"


def is_tensor(thing: object) -> bool:
    """Return whether that is a tensor of torch, without importing torch."""
    return any(kind.__name__ == "Tensor" and kind.__module__.split(".")[0] == "torch" for kind in type(thing).__mro__)


def logits_array(tensor: Any) -> NDArray[np.floating[Any]]:
    """Return logits as a C-contiguous array.

    Parameters
    ----------
    tensor : (rows, classes, height, width)
        A tensor of torch on any device, or an array of numpy: float32, float64, float16 or bfloat16.

    Returns
    -------
    (rows, classes, height, width), float32 or float64
        float16 and bfloat16 become float32, which has all their numbers. What is float32 or float64, C-contiguous and
        in the machine's memory is not copied.

    Raises
    ------
    InputError
        If it is something else, of another type or rank, sparse, or cannot be brought from its device.
    """
    if is_tensor(tensor):
        return _of_tensor(tensor)
    if not isinstance(tensor, np.ndarray):
        raise InputError(f"logits are a {type(tensor).__name__}", fix="give a tensor of torch or an array of numpy")
    if tensor.ndim != 4 or tensor.dtype.kind != "f" or tensor.dtype.itemsize > 8:
        raise InputError(f"logits are {tensor.dtype} of shape {tensor.shape}", fix=_WANTED)
    kind = np.float64 if tensor.dtype.itemsize == 8 else np.float32
    return np.ascontiguousarray(tensor, kind)


def _of_tensor(tensor: Any) -> NDArray[np.floating[Any]]:
    kind, layout, device = str(tensor.dtype), str(tensor.layout), str(tensor.device)
    if kind not in _ACCEPTED or tensor.dim() != 4 or layout != "torch.strided" or device == "meta":
        raise InputError(f"logits are a {layout} tensor of {kind}, shape {tuple(tensor.shape)}, on {device}",
                         fix=_WANTED)  # fmt: skip
    try:
        # Halves cross from the device as they are and grow here.
        here = tensor.detach().cpu()
        here = here.float() if kind in _HALVES else here
        array: NDArray[np.floating[Any]] = here.resolve_neg().contiguous().numpy()
    except RuntimeError as error:
        raise InputError(f"logits cannot be brought from {device}: {error}", fix="send them from the CPU") from error
    return array
