"""What Ray raises, in our words: one translation for all that speak to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nightbeam.core.errors import NightbeamError, StorageError, ToolError, UnavailableError
from nightbeam.stream.model import LostError

__all__ = ["chain_of", "line_of", "ray_errors", "root_of", "translated"]


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what caused it, what caused that, and on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def line_of(error: BaseException) -> str:
    """Return the last telling line of a foreign error, not too long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


@contextlib.contextmanager
def ray_errors(what: str) -> Iterator[None]:
    """Translate what Ray raises while ``what`` is asked for.

    Raises
    ------
    NightbeamError
        Of the kind that `translated` chooses.
    """
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise translated(error, what) from error


def translated(error: BaseException, what: str) -> NightbeamError:
    """Return the error of ours that says what Ray raised while ``what`` was asked for."""
    from ray import exceptions

    root = root_of(error)
    if isinstance(root, NightbeamError):
        return root
    if isinstance(root, exceptions.OwnerDiedError):
        return LostError(
            f"{what}: the process that made the object has ended",
            fix="keep the producer running until the writer has taken all, or send arrays by value",
        )
    if isinstance(root, exceptions.ObjectLostError | exceptions.NodeDiedError):
        return LostError(f"{what}: the object is gone ({type(root).__name__})")
    if isinstance(root, exceptions.GetTimeoutError):
        return LostError(f"{what}: it did not come in time", reason="fetch timeout")
    if isinstance(root, exceptions.ObjectStoreFullError | exceptions.OutOfDiskError):
        return StorageError(
            f"{what}: Ray {type(root).__name__}: {line_of(root)}",
            fix="decrease processing.max_pending_tasks or increase Ray's object store",
        )
    if isinstance(root, exceptions.RayActorError | exceptions.RpcError | exceptions.LocalRayletDiedError):
        return UnavailableError(f"{what}: {line_of(root)}", fix="is the Ray cluster still up?")
    return ToolError(f"{what}: {type(root).__name__}: {line_of(root)}")


def root_of(error: BaseException) -> BaseException:
    """Return what failed in the other process."""
    from ray.exceptions import RayTaskError

    seen = 0
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) and seen < 8:
        error, seen = error.cause, seen + 1
    return error
