"""What ranks wait for inside a step, seen on a world of four of which only this rank is real; and a run that would wait otherwise than planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from schemas.errors import ConfigError
from training.mesh import MeshShape, make_mesh
from training.parallel_config import ParallelConfig
from training.sync import Sync, check_memory, choose_sync, micro_batch, step_of

BLOCKS = 3


class Spoken(TorchDispatchMode):
    """Names of the collectives, between marks that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in str(func):
            self.log.append(str(func).split(".")[1].strip("_"))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fake_world() -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()


def spoken(sync: Sync, shape: MeshShape, micro_batches: int = 3) -> list[list[str]]:
    """Collectives before the first micro-batch, then of the forward and backward pass of each."""
    mesh = make_mesh("cpu", shape)
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(BLOCKS)), nn.Linear(8, 1))
    for block in list(network)[:BLOCKS]:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    found = []
    with Spoken() as mode:

        def cut() -> None:
            found.append(mode.log)
            mode.log = []

        for _ in range(2):  # the second step is looked at: the first one also sets FSDP2 up
            found.clear()
            mode.log = []
            with step_of(network, sync):
                cut()
                for index in range(micro_batches):
                    micro_batch(network, sync, last=index == micro_batches - 1)
                    loss = network(torch.zeros(2, 8)).sum()
                    cut()
                    loss.backward()
                    cut()
    cut()
    return found


def kinds(calls: list[str]) -> dict[str, int]:
    names = {"allgather_base": "gather", "reduce_scatter_base": "scatter", "allreduce": "reduce"}
    return {names[call]: calls.count(call) for call in sorted(set(calls))}


@pytest.mark.usefixtures("fake_world")
@pytest.mark.parametrize(
    ("shape", "last"),
    [
        (MeshShape(replicate=1, shard=4), {"scatter": 4}),
        (MeshShape(replicate=2, shard=2), {"reduce": 4, "scatter": 4}),
    ],
)
def test_under_step_ranks_meet_before_the_first_micro_batch_and_in_the_last_backward_pass(
    shape: MeshShape, last: dict[str, int]
) -> None:
    before, *passes, after = spoken("step", shape)
    assert kinds(before) == {"gather": BLOCKS + 1}
    assert [kinds(calls) for calls in passes] == [{}, {}, {}, {}, {}, last]
    assert after == []


@pytest.mark.usefixtures("fake_world")
def test_under_micro_each_pass_gathers_and_only_the_last_reduces() -> None:
    before, *passes, _ = spoken("micro", MeshShape(replicate=1, shard=4))
    assert before == []
    forward, backward, last = {"gather": BLOCKS + 1}, {"gather": BLOCKS}, {"gather": BLOCKS, "scatter": BLOCKS + 1}
    assert [kinds(calls) for calls in passes] == [forward, backward, forward, backward, forward, last]


@pytest.mark.usefixtures("fake_world")
def test_copies_that_are_not_cut_gather_nothing() -> None:
    before, *passes, _ = spoken("micro", MeshShape(replicate=4, shard=1))
    assert before == []
    assert [kinds(calls) for calls in passes] == [{}, {}, {}, {}, {}, {"reduce": BLOCKS + 1}]


def test_a_run_that_would_wait_otherwise_than_planned_is_refused() -> None:
    assert choose_sync(ParallelConfig(), "step") == "step" and choose_sync(ParallelConfig(), "micro") == "micro"
    assert choose_sync(ParallelConfig(sync="step"), "step") == "step"
    with pytest.raises(
        ConfigError,
        match=r"parallel.sync is 'micro', but the plan was built for 'step' \(plan.json: sync\).*set parallel.sync=auto",
    ):
        choose_sync(ParallelConfig(sync="micro"), "step")
    with pytest.raises(ConfigError, match=r"build the plan with sync: step"):
        choose_sync(ParallelConfig(sync="step"), "micro")


def test_what_is_kept_whole_between_micro_batches_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    network, gpu = nn.Linear(1 << 10, 1 << 10, bias=False, device="meta"), torch.device("cuda", 0)  # 4 MiB of gradients
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 << 20, 80 << 30))
    check_memory("micro", network, torch.bfloat16, gpu, micro_batches=1)
    check_memory("step", network, torch.bfloat16, torch.device("cpu"), micro_batches=4)
    with pytest.raises(
        ConfigError, match=r"sync micro with 2 micro-batches .* keeps the gradients of .*one micro-batch a step"
    ):
        check_memory("micro", network, torch.bfloat16, gpu, micro_batches=2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5 << 20, 80 << 30))
    check_memory("micro", network, torch.bfloat16, gpu, micro_batches=2)
    with pytest.raises(ConfigError, match=r"sync step .* keeps the whole network and its gradients .*sync: micro"):
        check_memory("step", network, torch.bfloat16, gpu, micro_batches=1)
