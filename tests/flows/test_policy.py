"""What is retried and what is not."""

from __future__ import annotations

import pytest
from prefect import flow

from nightbeam.core.errors import InputError, StorageError
from tasks._policy import effect, pure


def test_an_effect_that_can_heal_is_tried_again_and_one_that_cannot_is_not():
    calls = {"heals": 0, "cannot": 0}

    def heals():
        calls["heals"] += 1
        if calls["heals"] < 3:
            raise StorageError("no space left")
        return "done"

    def cannot():
        calls["cannot"] += 1
        raise InputError("not HDF5")

    quick = effect(heals).with_options(retry_delay_seconds=0, retry_jitter_factor=0)
    hopeless = effect(cannot).with_options(retry_delay_seconds=0, retry_jitter_factor=0)

    @flow
    def both():
        assert quick() == "done"
        return hopeless()

    with pytest.raises(InputError):
        both()
    assert calls == {"heals": 3, "cannot": 1}


def test_neither_kind_of_task_is_answered_from_a_cache():
    calls = []
    asked = pure(lambda n: calls.append(n) or n, name="asked")

    @flow
    def twice():
        return asked(1), asked(1)

    assert twice() == (1, 1)
    assert calls == [1, 1]
