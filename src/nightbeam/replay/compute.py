"""From frames to what a network takes, and from its logits to what is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError
from nightbeam.peaks.model import Window
from nightbeam.stream.model import Form, PadStyle

if TYPE_CHECKING:
    import torch

__all__ = ["mask_of", "normalize", "pad", "padded_size", "predictions_of"]


def padded_size(panel: tuple[int, int], *, size: tuple[int, int] | None = None, multiple: int = 1) -> tuple[int, int]:
    """Return the size of the network's panel.

    Parameters
    ----------
    panel
        (H0, W0) of the detector.
    size
        Of the network's panel, where it is fixed.
    multiple
        What its sides are multiples of, where it is not.

    Raises
    ------
    InputError
        If ``size`` is smaller than the detector's panel.
    """
    if size is None:
        return -(-panel[0] // multiple) * multiple, -(-panel[1] // multiple) * multiple
    if size[0] < panel[0] or size[1] < panel[1]:
        raise InputError(
            f"panels of {panel[0]} x {panel[1]} px do not fit into {size[0]} x {size[1]}", fix="pad to a larger size"
        )
    return size


def pad(
    frames: NDArray[np.float32], size: tuple[int, int], style: PadStyle = "bottom-right"
) -> tuple[NDArray[np.float32], Window]:
    """Return panels as the rows of a batch, padded with zeros.

    Parameters
    ----------
    frames : (B, C, H0, W0), float32
    size
        (H, W), no smaller.
    style
        ``bottom-right``: padded there alone; ``center``: on all sides, an odd pixel at the bottom or the right.

    Returns
    -------
    rows : (B*C, 1, H, W), float32
        A view where nothing is padded.
    window
        Where the detector's pixels are.

    Raises
    ------
    InputError
        If the panels do not fit.
    """
    b, c, height, width = frames.shape
    padded_size((height, width), size=size)
    top, left = ((size[0] - height) // 2, (size[1] - width) // 2) if style == "center" else (0, 0)
    window = Window(top, left, height, width)
    if size == (height, width):
        return frames.reshape(b * c, 1, height, width), window
    rows = np.zeros((b * c, 1, *size), np.float32)
    rows[:, 0, top : top + height, left : left + width] = frames.reshape(b * c, height, width)
    return rows, window


def normalize(
    frames: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Give each panel mean 0 and variance 1; a panel of one value has its mean taken away.

    Pixels that are not finite do not count, and stay what they are.

    Parameters
    ----------
    frames : (B, C, H0, W0), float32

    Returns
    -------
    normalized : (B, C, H0, W0), float32
    mean, std : (B*C,), float64
        What undoes it: ``normalized * std + mean``; 0 and 1 where no pixel of a panel is finite.
    """
    finite = np.isfinite(frames)
    count = np.maximum(finite.sum((2, 3)), 1)
    mean = frames.sum((2, 3), dtype=np.float64, where=finite) / count
    std = np.sqrt(((frames - mean[:, :, None, None]) ** 2).sum((2, 3), dtype=np.float64, where=finite) / count)
    std[~(std > 0)] = 1.0
    normalized = (frames - mean[:, :, None, None]) / std[:, :, None, None]
    return normalized.astype(np.float32), mean.ravel(), std.ravel()


def mask_of(logits: torch.Tensor) -> NDArray[np.bool_]:
    """Return which pixels are of a peak: its logit is strictly the larger one; what is not a number is background.

    Parameters
    ----------
    logits : (rows, 2, H, W)

    Returns
    -------
    (rows, H, W), bool
    """
    mask: NDArray[np.bool_] = (logits[:, 1] > logits[:, 0]).cpu().numpy()
    return mask


def predictions_of(logits: torch.Tensor, mask: NDArray[np.bool_], form: Form, *, by_value: bool = False) -> Any:
    """Return what a message carries, see `nightbeam.stream.model.Form`.

    Parameters
    ----------
    logits : (rows, 2, H, W)
    mask : (rows, H, W), bool
        Of `mask_of`.
    form
        Of the message.
    by_value
        Logits are then a torch tensor on the CPU, as existing producers send them; else an array.

    Returns
    -------
    array, or tensor
        Logits of half precision stay so; bfloat16, which numpy does not know, becomes float32.
    """
    if form == "bits":
        return np.packbits(mask, axis=-1)
    if form == "pixels":
        return np.argwhere(mask).astype(np.int32)
    logits = logits.detach().cpu()
    if by_value:
        return logits
    name = str(logits.dtype).removeprefix("torch.")
    return (logits.float() if name == "bfloat16" else logits).contiguous().numpy()
