"""What travels from a network to the writer: one message is one batch of events."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import RejectedError, UnavailableError
from nightbeam.peaks.model import Window

__all__ = [
    "END_OF_STREAM",
    "BatchError",
    "BatchHeader",
    "Form",
    "LostError",
    "MessageDefaults",
    "PadStyle",
    "PipelineOutput",
    "PreprocessingMetadata",
]

#: Key of the metadata of the message that says that a producer has no more.
END_OF_STREAM: Final = "end_of_stream"

PadStyle = Literal["bottom-right", "center"]
#: ``logits`` (rows, 2, H, W); ``bits`` (rows, H, ceil(W / 8)) uint8 as `numpy.packbits` makes them along the last
#: axis; ``pixels`` (n, 3) int32: row, y, x of every pixel of a peak in the network's panel, in that order. A message
#: says which in ``metadata["prediction_form"]``; the array is in ``predictions_ref``.
Form = Literal["logits", "bits", "pixels"]


class BatchError(RejectedError):
    """A batch was taken and cannot be used; ``reason`` is a short word that is counted."""

    def __init__(self, what: str, *, reason: str = "malformed", fix: str = "") -> None:
        super().__init__(what, fix=fix)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.reason, self.fix)


class LostError(UnavailableError):
    """A batch was announced and its arrays are gone; ``reason`` is a short word that is counted."""

    retry = False

    def __init__(self, what: str, *, reason: str = "object lost", fix: str = "") -> None:
        super().__init__(what, fix=fix)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.reason, self.fix)


def _rebuild(kind: type[BatchError] | type[LostError], what: str, reason: str, fix: str) -> BatchError | LostError:
    return kind(what, reason=reason, fix=fix)


@dataclass(frozen=True, slots=True)
class PreprocessingMetadata:
    """Shapes before and after the network's preprocessing: (B, C, H0, W0) and (B*C, 1, H, W)."""

    original_shape: tuple[int, ...]
    preprocessed_shape: tuple[int, ...]


@dataclass(slots=True, eq=False)
class PipelineOutput:
    """One message of the queue, as existing producers make them; read by attribute, so another class will do.

    Attributes
    ----------
    predictions
        torch tensor of logits (B*C, K, H, W), or None.
    predictions_ref
        Ray reference to an array of that shape (or of another `Form`), or None. Exactly one of the two is set.
    metadata
        From the data source.
    batch_id
        Its name.
    original_image_ref
        Ray reference to the images that the network got, (B*C, 1, H, W).
    preprocessing_metadata
        Anything with ``original_shape`` and ``preprocessed_shape``.

    Raises
    ------
    ValueError
        If both or neither of the predictions are given and it is no end marker.
    TypeError
        If ``predictions`` is no tensor, ``metadata`` no dict or ``batch_id`` no str.
    """

    predictions: Any = None
    predictions_ref: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)
    batch_id: str = ""
    original_image_ref: Any = None
    preprocessing_metadata: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.metadata, dict):
            raise TypeError(f"metadata is a {type(self.metadata).__name__}, not a dict")
        if not isinstance(self.batch_id, str):
            raise TypeError(f"batch_id is a {type(self.batch_id).__name__}, not a str")
        given = [one for one in (self.predictions, self.predictions_ref) if one is not None]
        if len(given) != 1 and not (not given and self.metadata.get(END_OF_STREAM) is True):
            both = "both" if given else "neither"
            raise ValueError(f"{both} of predictions and predictions_ref given: give one of them")
        if self.predictions is not None and not _is_tensor(self.predictions):
            raise TypeError(f"predictions is a {type(self.predictions).__name__}, not a torch tensor")

    def get_numpy_array(self) -> NDArray[Any]:
        """Return the predictions as an array in this process's memory.

        Raises
        ------
        LostError
            If they are a reference and the object is gone.
        """
        if self.predictions is None:
            from nightbeam.stream.arrays import fetch_object

            return np.asarray(fetch_object(self.predictions_ref))
        tensor = self.predictions.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # numpy has no such type
            tensor = tensor.float()
        return np.asarray(tensor.numpy())

    def get_torch_tensor(self, device: str = "cpu") -> Any:
        """Return the predictions as a torch tensor on ``device``.

        Raises
        ------
        LostError
            If they are a reference and the object is gone.
        """
        import torch

        if self.predictions is not None:
            return self.predictions.to(device)
        array = self.get_numpy_array()
        # What Ray hands out cannot be written to, and torch warns of such memory.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # where it is not loaded nothing can be a tensor
    return torch is not None and isinstance(value, torch.Tensor)


@dataclass(frozen=True, slots=True)
class MessageDefaults:
    """What is taken for granted where a message does not say it.

    Attributes
    ----------
    num_panels, panel_shape
        C and (H0, W0), for messages without ``preprocessing_metadata``.
    pad_style
        Where the network's panel was padded; the message's own word wins.
    photon_energy_ev, clen_mm
        Used where the metadata have none.
    copy
        Metadata keys that are kept for each event.
    images
        Whether a batch without images is refused.
    """

    num_panels: int | None = None
    panel_shape: tuple[int, int] | None = None
    pad_style: PadStyle = "bottom-right"
    photon_energy_ev: float | None = None
    clen_mm: float | None = None
    copy: tuple[str, ...] = ()
    images: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class BatchHeader:
    """All that is known of a batch but its large arrays.

    Attributes
    ----------
    batch_id, producer
        Names; ``producer`` is ``""`` where the message does not say.
    sequence
        Running number of the batch of its producer, from 0; None where the producer does not count.
    first_event
        Running number of its first event of its producer, from 0; None likewise.
    run, experiment
        Where the metadata have them.
    n_events, n_panels
        B and C.
    panel_shape, network_shape
        (H0, W0) of the detector's panel and (H, W) of the network's.
    window
        Where the detector's pixels are in the network's panel.
    form
        What the predictions are.
    image_kind
        ``network_input``: as the network got it, in the network's panel; ``calibrated``: in detector units.
    timestamps : (B,), uint64
        LCLS event times, seconds in the upper 32 bits, nanoseconds in the lower; 0: unknown.
    wall_clock_s
        The producer's clock where that is all it said.
    photon_energy_ev : (B,), float64
        0: unknown.
    clen_mm : (B,), float64
        Camera length encoder; NaN: unknown.
    mean, std : (B*C,), float64, or None
        What undoes the network's normalisation: ``image * std + mean``.
    copied
        Metadata to keep, one value (first axis B) for each event.
    warnings
        What was odd and could be mended.
    """

    batch_id: str
    producer: str
    sequence: int | None
    first_event: int | None
    run: int | None
    experiment: str | None
    n_events: int
    n_panels: int
    panel_shape: tuple[int, int]
    network_shape: tuple[int, int]
    window: Window
    form: Form
    image_kind: Literal["network_input", "calibrated", "none"]
    timestamps: NDArray[np.uint64]
    wall_clock_s: float | None
    photon_energy_ev: NDArray[np.float64]
    clen_mm: NDArray[np.float64]
    mean: NDArray[np.float64] | None = None
    std: NDArray[np.float64] | None = None
    copied: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
