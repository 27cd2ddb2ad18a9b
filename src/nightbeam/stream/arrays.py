"""The arrays of a message: brought from the object store where they travelled by reference."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Final

from nightbeam.stream.faults import ray_errors
from nightbeam.stream.model import BatchHeader

__all__ = ["Arrays", "fetch", "fetch_object", "is_ref"]

#: How long arrays may take to come from another node, and those that the loop itself waits for.
_FETCH_S: Final = 120.0
_SHAPE_FETCH_S: Final = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """The large arrays of a batch: read-only views of the object store where they travelled by reference."""

    predictions: Any
    images: Any


def fetch(message: Any, header: BatchHeader | None = None, *, timeout_s: float | EllipsisType | None = ...) -> Arrays:
    """Return the arrays of a message.

    Parameters
    ----------
    message
        Anything with the attributes of `PipelineOutput`.
    header
        What is known of it; where it says that there is no image, none is fetched.
    timeout_s
        How long they may take to come from another node; None: for ever. By default 120 s, and 10 s without a header:
        who does not even know their shape can do nothing else meanwhile.

    Raises
    ------
    LostError
        If the process that made them has ended, or they are gone for another reason.
    """
    if isinstance(timeout_s, EllipsisType):
        timeout_s = _SHAPE_FETCH_S if header is None else _FETCH_S
    images = None
    if header is None or header.image_kind != "none":
        calibrated = message.metadata.get("calibrated_image_ref")
        images = calibrated if calibrated is not None else message.original_image_ref
    predictions = message.predictions if message.predictions is not None else message.predictions_ref
    what = f"batch {getattr(message, 'batch_id', '')!r}"
    return Arrays(*_fetch_all([predictions, images], what, timeout_s))


def fetch_object(value: Any, *, what: str = "predictions", timeout_s: float | None = 120.0) -> Any:
    """Return what a reference refers to; a value is returned as it is.

    Raises
    ------
    LostError
        If it is gone.
    """
    return _fetch_all([value], what, timeout_s)[0]


def _fetch_all(values: list[Any], what: str, timeout_s: float | None) -> list[Any]:
    at = [k for k, one in enumerate(values) if is_ref(one)]
    if not at:
        return values
    import ray

    with ray_errors(what):
        for k, found in zip(at, ray.get([values[k] for k in at], timeout=timeout_s), strict=True):
            values[k] = found
    return values


def is_ref(value: Any) -> bool:
    """Return whether a value is a reference of Ray; it need not be loaded to say so."""
    return type(value).__name__ in ("ObjectRef", "ClientObjectRef")
