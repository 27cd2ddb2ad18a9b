"""Fakes: a producer that keeps what it is sent, and a network that answers by brightness."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nightbeam.frames.model import Frames
from nightbeam.replay.network import Network, export_network


@dataclass
class FakeProducer:
    """Has the methods of `nightbeam.stream.producer.Producer`; ``room`` tells how many batches fit at first."""

    producer_id: str = "fake"
    waited_s: float = 0.0
    room: int = 1 << 30
    when_full: Any = None
    sent: list[dict[str, Any]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    offers: int = 0
    stored: int = 0
    waiting: int = 0
    left: int | None = 0

    @property
    def queue(self) -> FakeProducer:
        return self

    def size(self) -> int:
        self.waiting = max(0, self.waiting - 1)
        return self.waiting

    def share(self, value: Any) -> Any:
        self.stored += 1
        return value

    def send(self, predictions: Any, images: Any = None, **rest: Any) -> bool:
        self.offers += 1
        self.waited_s += 0.25
        if len(self.sent) >= self.room:
            self.when_full(self)
            return False
        self.sent.append({"predictions": predictions, "images": images} | rest)
        return True

    def finish(self, *, wait: bool = True) -> bool:
        self.ended.append(wait)
        return True

    def outstanding(self) -> int | None:
        return self.left


@dataclass
class Bright:
    """A source of small frames: event k has the value 10 * k, and 1000 at one pixel of panel 1."""

    n_events: int = 10
    shape: tuple[int, int, int] = (2, 5, 7)

    def read(self, first: int, n: int) -> Frames:
        events = np.arange(first, min(first + n, self.n_events))
        images = np.broadcast_to(10.0 * events[:, None, None, None], (len(events), *self.shape)).astype(np.float32)
        images[:, 1, 2, 3] = 1000
        return Frames(images, first, (events + 1).astype(np.uint64) << np.uint64(32), 9000.0 + events, 1.0 * events)


@dataclass
class FakeClock:
    """Time that only passes when somebody waits."""

    time: float = 100.0
    waits: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float, stop: threading.Event) -> None:
        self.waits.append(seconds)
        self.time += seconds


@pytest.fixture
def producer() -> FakeProducer:
    return FakeProducer()


@pytest.fixture
def source() -> Bright:
    return Bright()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def network() -> Network:
    return Network(lambda x: torch.cat((torch.full_like(x, 500.0), x), 1), name="bright", device="cpu")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The matched filter as `torch.export` writes it, which takes torch some seconds."""
    path = tmp_path_factory.mktemp("model") / "m.pt2"
    export_network(path)
    return path
