"""Weight averages: the formula to the last bit, on plain tensors and on shards."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from training.optimizing.ema import WeightAverages, decay_at
from training.parallel import open_world


@given(decay=st.floats(0.01, 0.9999), step=st.integers(0, 10**6))
def test_the_decay_rises_to_its_limit_and_starts_small(decay: float, step: int) -> None:
    assert decay_at(decay, 0) == min(decay, 0.1)
    assert 0 < decay_at(decay, step) <= decay_at(decay, step + 1) <= decay
    assert decay_at(decay, 10**7) == decay


def averaged(values: list[torch.Tensor], decay: float) -> torch.Tensor:
    """The same average, written out for one whole tensor."""
    average = values[0].clone()
    for step, value in enumerate(values[1:]):
        average = torch.lerp(average, value, 1.0 - decay_at(decay, step))
    return average


def test_averages_follow_the_weights_exactly_for_every_decay() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(5, 3, generator=generator) for _ in range(6)]
    weight = nn.Parameter(values[0].clone())
    averages = WeightAverages({"w": weight}, [0.05, 0.9])
    for step, value in enumerate(values[1:]):
        with torch.no_grad():
            weight.copy_(value)
        averages.update(step)
    tensors = averages.tensors()
    assert set(tensors) == {"ema_0.05/w", "ema_0.9/w"}
    for decay in (0.05, 0.9):
        assert torch.equal(tensors[f"ema_{decay}/w"], averaged(values, decay))
    assert not tensors["ema_0.9/w"].requires_grad


def test_sharded_averages_equal_whole_ones_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(7, 2, generator=generator) for _ in range(4)]
    with open_world(torch.device("cpu")) as world:
        weight = nn.Parameter(distribute_tensor(values[0].clone(), world.mesh, [Shard(0)]))
        averages = WeightAverages({"w": weight}, [0.5])
        for step, value in enumerate(values[1:]):
            with torch.no_grad():
                weight.copy_(distribute_tensor(value, world.mesh, [Shard(0)]))
            averages.update(step)
        found = averages.tensors()["ema_0.5/w"]
        assert isinstance(found, DTensor)
        assert torch.equal(found.full_tensor(), averaged(values, 0.5))


def test_averages_take_the_weights_place_and_both_come_back_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    with open_world(torch.device("cpu")) as world:
        whole = {name: torch.randn(5, 3, generator=generator) for name in ("plain", "shard")}
        weights = {
            "plain": nn.Parameter(whole["plain"].clone()),
            "shard": nn.Parameter(distribute_tensor(whole["shard"].clone(), world.mesh, [Shard(0)])),
        }
        averages = WeightAverages(weights, [0.5, 0.9])
        with torch.no_grad():
            for weight in weights.values():
                weight.add_(1.0)
        averages.update(0)
        before = _values(weights) | _values(averages.tensors())
        with pytest.raises(RuntimeError, match="in the midst"), averages.swapped_in(0.9):
            inside = _values(weights) | _values(averages.tensors())
            raise RuntimeError("in the midst")
        after = _values(weights) | _values(averages.tensors())
    for name in ("plain", "shard"):
        assert torch.equal(inside[name], before[f"ema_0.9/{name}"]) and not torch.equal(inside[name], before[name])
        assert torch.equal(inside[f"ema_0.5/{name}"], before[f"ema_0.5/{name}"]), "the other average was touched"
    assert all(torch.equal(after[name], value) for name, value in before.items())


def _values(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of whole tensors."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in tensors.items()
    }
