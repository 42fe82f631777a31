"""When the ranks of a run wait for each other inside a step: at each micro-batch, or once.

    micro   each micro-batch gathers each block's weights for its forward pass and again for its backward pass, so ranks go through the
            micro-batches side by side, and a row lasts as long as its slowest lane. Least memory.
    step    all weights are gathered before the first micro-batch and kept until the last one's backward pass, which reduces the gradients.
            Until then no rank waits for another: a step lasts as long as the rank with most to do. Price: the whole network in the
            computation's type on every rank.

The plan was built for one of them (its idle time, its tiers and batches follow from it), so the run does the same or does not start. Both give the
same bits. Gradients are reduced once a step in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from schemas.errors import ConfigError
from training.parallel_config import ParallelConfig

__all__ = ["Sync", "check_memory", "choose_sync", "micro_batch", "step_of"]

Sync = Literal["micro", "step"]
_COSTS = {
    "micro": "its rows were filled so that lanes side by side take about as long",
    "step": "its lanes take equally long over a step, not row by row",
}


def choose_sync(config: ParallelConfig, planned: Sync) -> Sync:
    """What the run does; ConfigError if the configuration names another than the plan was built for."""
    if config.sync not in ("auto", planned):
        raise ConfigError(
            f"parallel.sync is {config.sync!r}, but the plan was built for {planned!r} (plan.json: sync): {_COSTS[planned]}, "
            f"so its predicted idle time would not hold; set parallel.sync=auto, or build the plan with sync: {config.sync}"
        )
    return planned


def check_memory(
    sync: Sync, network: nn.Module, dtype: torch.dtype, device: torch.device, *, micro_batches: int
) -> None:
    """ConfigError if a CUDA device cannot hold what a rank keeps whole between its micro-batches of a step.

    Under `step` the network in `dtype`, and with several micro-batches, under either, the gradients in float32: they are reduced with the last.
    """
    if device.type != "cuda" or (sync == "micro" and micro_batches == 1):
        return
    numbers = sum(parameter.numel() for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    wanted = 4 * trained + (numbers * dtype.itemsize if sync == "step" else 0)
    kept = "the whole network and its gradients" if sync == "step" else "the gradients of the whole network"
    advice = "build the plan with sync: micro" if sync == "step" else "have one micro-batch a step on each rank"
    free, total = torch.cuda.mem_get_info(device)
    if wanted > free:
        raise ConfigError(
            f"the plan was built for sync {sync} with {micro_batches} micro-batches a step on a rank, which keeps {kept} on each: "
            f"{wanted / 2**30:.1f} GiB, but {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free on {device}; {advice}, or use larger devices"
        )


@contextmanager
def step_of(network: nn.Module, sync: Sync) -> Iterator[None]:
    """Around the micro-batches of one step; afterwards nothing is gathered, as before."""
    if sync == "micro":
        yield
        return
    blocks = [module for module in _sharded(network) if module is not network]
    for module in blocks:
        module.set_reshard_after_forward(False, recurse=False)
    for module in _sharded(network):
        module.unshard()
    try:
        yield
    finally:
        for module in blocks:
            module.set_reshard_after_forward(True, recurse=False)


def micro_batch(network: nn.Module, sync: Sync, *, last: bool) -> None:
    """Before each micro-batch of a step: whether its backward pass reduces gradients over ranks (else they add up here), and lets go of weights."""
    if not isinstance(network, FSDPModule):
        return  # one rank in float32: `training.parallel`
    network.set_requires_gradient_sync(last)
    network.set_is_last_backward(last)
    network.set_reshard_after_backward(last or sync == "micro")


def _sharded(network: nn.Module) -> list[FSDPModule]:
    return [module for module in network.modules() if isinstance(module, FSDPModule)]
