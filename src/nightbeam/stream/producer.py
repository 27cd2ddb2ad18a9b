"""Sending: batches onto a queue, numbered, their arrays in the object store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from nightbeam.stream.faults import ray_errors
from nightbeam.stream.model import END_OF_STREAM, Form, PadStyle, PipelineOutput, PreprocessingMetadata
from nightbeam.stream.queues import ShardedQueue

__all__ = ["Producer"]


class Producer:
    """What puts the batches of one producer on a queue, numbered, and says when it has no more.

    The process must live until the writer has fetched what was sent by reference: its arrays are gone with it.

    Parameters
    ----------
    queue
        Where to.
    producer_id
        Its name; two producers of one queue must not share it.
    pad_style
        Where panels were padded.
    run, experiment
        Sent with each batch.

    Attributes
    ----------
    batches, events
        Sent so far.
    waited_s
        Time spent on sending, most of it waiting for room.
    refused
        How often there was no room in time.
    """

    def __init__(
        self,
        queue: ShardedQueue,
        producer_id: str,
        *,
        pad_style: PadStyle = "bottom-right",
        run: int | None = None,
        experiment: str | None = None,
    ) -> None:
        self.queue, self.producer_id = queue, producer_id
        self.batches = self.events = self.refused = 0
        self.waited_s = 0.0
        about = {"producer_id": producer_id, "pad_style": pad_style, "run": run, "experiment": experiment}
        self._about = {key: value for key, value in about.items() if value is not None}
        self._sent: set[Any] = set()

    def send(
        self,
        predictions: Any,
        images: Any = None,
        *,
        preprocessing: PreprocessingMetadata | None = None,
        metadata: dict[str, Any] | None = None,
        form: Form = "logits",
        by: Literal["reference", "value"] = "reference",
        calibrated: Any = None,
        batch_id: str | None = None,
        timeout_s: float | None = None,
    ) -> bool:
        """Send a batch; waits for room, and drops nothing.

        Parameters
        ----------
        predictions
            Array or torch tensor of the given form, or a Ray reference to one.
        images
            What the network saw, (B*C, 1, H, W), array or reference.
        preprocessing
            Shapes before and after padding; B of it counts the events.
        metadata
            From the data source; the keys of this class win.
        form
            What ``predictions`` are.
        by
            ``reference``: arrays stay in the object store of this node, and only references travel; ``value``: they
            travel inside the message, which costs a copy into the shard, and outlive this process.
        calibrated
            Images in detector units, (B, C, H0, W0), array or reference.
        batch_id
            Its name; ``PRODUCER_batch_NUMBER`` if not given.
        timeout_s
            How long to wait for room; None: for ever.

        Returns
        -------
        bool
            False where there was no room in time; nothing was sent and no number used.
        """
        begin = time.monotonic()
        message = self._message(predictions, images, calibrated, preprocessing, metadata or {}, form, by, batch_id)
        done = self.queue.put(message, timeout_s=timeout_s)
        self.waited_s += time.monotonic() - begin
        if not done:
            self.refused += 1
            return False
        self.batches += 1
        self.events += 0 if preprocessing is None else int(preprocessing.original_shape[0])
        return True

    def finish(self, *, wait: bool = True, timeout_s: float | None = None, grace_s: float = 5.0) -> bool:
        """Say that there is no more; wait until all has been taken out of the queue and fetched.

        Parameters
        ----------
        wait
            Whether to wait; without it the caller must stay alive by itself.
        timeout_s
            How long to wait for room and for the consumer; None: for ever.
        grace_s
            How long to stay after the queue is empty where Ray does not say whether arrays are still in use.

        Returns
        -------
        bool
            False where it was not all taken in time.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        counts = {"sequence": self.batches, "event_index": self.events}
        marker = PipelineOutput(
            metadata={**self._about, **counts, END_OF_STREAM: True}, batch_id=f"{self.producer_id}_end"
        )
        if not self.queue.put(marker, timeout_s=timeout_s):
            return False
        return not wait or self._drained(until, grace_s)

    def outstanding(self) -> int | None:
        """Return how many arrays of ours somebody may still want; None where Ray does not say."""
        in_use = _references_in_use()
        if in_use is None:
            return None
        self._sent &= in_use
        return len(self._sent)

    def _drained(self, until: float | None, grace_s: float) -> bool:
        if not _wait_until(lambda: self.queue.size() == 0, until):
            return False
        if not self._sent:
            return True
        if self.outstanding() is None:
            time.sleep(grace_s if until is None else max(0.0, min(grace_s, until - time.monotonic())))
            return True
        return _wait_until(lambda: self.outstanding() == 0, until)

    def _message(
        self,
        predictions: Any,
        images: Any,
        calibrated: Any,
        preprocessing: PreprocessingMetadata | None,
        metadata: dict[str, Any],
        form: Form,
        by: str,
        batch_id: str | None,
    ) -> PipelineOutput:
        about = {**metadata, **self._about, "sequence": self.batches}
        if preprocessing is not None:
            about["event_index"] = self.events
        if form != "logits":
            about["prediction_form"] = form
        carry: Callable[[Any], Any] = self.share if by == "reference" else _plain
        if calibrated is not None:
            about["calibrated_image_ref"] = carry(calibrated)
        direct = by == "value" and form == "logits" and _is_tensor(predictions)
        return PipelineOutput(
            predictions=predictions.detach().cpu() if direct else None,
            predictions_ref=None if direct else carry(predictions),
            metadata=about,
            batch_id=batch_id or f"{self.producer_id}_batch_{self.batches}",
            original_image_ref=None if images is None else carry(images),
            preprocessing_metadata=preprocessing,
        )

    def share(self, value: Any) -> Any:
        """Put an array into the object store and return its reference; a reference is returned as it is.

        For a batch that may be offered several times. Ray keeps it as long as anybody has its reference.

        Raises
        ------
        StorageError
            If the object store is full.
        """
        import ray

        if isinstance(value, ray.ObjectRef):
            return value
        with ray_errors("the object store"):
            ref = ray.put(_plain(value))
        self._sent.add(ref.hex())
        if len(self._sent) % 64 == 0:
            self.outstanding()  # forgets those that nobody has any more
        return ref


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _plain(value: Any) -> Any:
    """Return a tensor as an array; everything else as it is."""
    if not _is_tensor(value):
        return value
    tensor = value.detach().cpu()
    return tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()


def _references_in_use() -> set[str] | None:
    """Return the objects of this process that anybody has a reference to, also others."""
    import ray

    core = getattr(getattr(ray._private.worker, "global_worker", None), "core_worker", None)
    count = getattr(core, "get_all_reference_counts", None)
    if count is None:  # it is no public part of Ray
        return None
    return {key if isinstance(key, str) else key.decode() for key in count()}


def _wait_until(true: Callable[[], bool], until: float | None) -> bool:
    while not true():
        if until is not None and time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True
