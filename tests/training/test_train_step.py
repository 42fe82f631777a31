"""A rank whose data fails takes part in the exchange before it says so, whatever the error: the others wait there."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from schemas.errors import DataError
from training.control.run_control import RunControl
from training.parallel import World, open_world
from training.train_step import next_step


@pytest.mark.parametrize("failure", [DataError("bad"), RuntimeError("bad"), MemoryError("bad"), ValueError("bad")])
def test_any_error_of_the_data_is_exchanged_before_it_is_raised(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanged: list[list[int]] = []
    original = World.sum_int64

    def spy(self: World, values: list[int]) -> list[int]:
        exchanged.append(values)
        return original(self, values)

    def steps() -> Iterator[Any]:
        raise failure
        yield

    monkeypatch.setattr(World, "sum_int64", spy)
    prepared: Any = SimpleNamespace(meta=SimpleNamespace(batches=()))
    with open_world(torch.device("cpu")) as world, pytest.raises(type(failure), match="bad"):
        next_step(steps(), world, prepared, RunControl())
    assert [values[0] for values in exchanged] == [1]
