"""Processes, devices and sharding: FSDP2 or HSDP, sums instead of averages, and the same starting weights for every layout of ranks.

Parameters are float32 shards; when they are gathered is `training.sync`'s, over which ranks they are cut `training.mesh`'s. Gradients are SUMMED over
ranks (FSDP2 averages by default): the loss is divided by the clip count of the whole step, so one rank and many take the same optimizer step.
Tensors on GPUs go over NCCL; numbers of the host go over gloo always, so that no exchange of counts waits for a GPU. One rank in float32 has
nothing to cut and nothing to cast, so FSDP2 is left out there: its copies cost time for nothing (`fsdp_copies_1` of
`benchmarks/engine.py`). Price: a second, shorter path, whose last bits are not FSDP2's.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.torch_version import TorchVersion

from schemas.errors import ConfigError, ReelyardError
from training.config import TrainConfig
from training.control.launch import launch_variable, launched_rank, launched_world_size
from training.control.meeting import fresh_store, under_torchrun
from training.curriculum.stage import any_covers, covers
from training.dit.initialization import canonical_name, initialize_weights
from training.mesh import MeshShape, make_mesh
from training.network import TrainingNetwork
from training.step_clock import StepClock, watch_collectives

__all__ = [
    "OtherRankError",
    "World",
    "choose_device",
    "choose_precision",
    "compile_block",
    "drop_gathered",
    "freeze_all_but",
    "open_world",
    "shard_network",
]

_MAX_GRAPHS = 4096
"""Of one class of block: buckets x {dense, routed} x text lengths."""
_FUSION = "triton.mix_order_reduction"


class OtherRankError(ReelyardError):
    """Another rank failed and says why; this one ends quietly."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all of the run."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    """(shard) or, with replicas, (replicate, shard)."""
    saving_group: dist.ProcessGroup
    """All ranks again, on gloo: a checkpoint that is written in the background talks there, whatever the training thread is at."""
    clock: StepClock = field(default_factory=StepClock)
    """Of this rank; not part of what is the same on all."""

    @property
    def is_first_copy(self) -> bool:
        """Whether this rank's shards are of the first replica: each number of the network is in exactly one such rank."""
        return self.mesh.ndim == 1 or self.mesh.get_local_rank("replicate") == 0

    def sum_int64(self, values: list[int]) -> list[int]:
        """Element-wise sum over all ranks."""
        return self._sum(torch.tensor(values, dtype=torch.int64))

    def sum_float64(self, values: list[float]) -> list[float]:
        """Element-wise sum over all ranks; the same bits on each."""
        return self._sum(torch.tensor(values, dtype=torch.float64))

    def gather_int64(self, value: int) -> list[int]:
        """Every rank's number, in order."""
        slots = [0] * self.size
        slots[self.rank] = value
        return self.sum_int64(slots)

    def sum_tensor(self, values: torch.Tensor) -> torch.Tensor:
        """The same for a tensor on the rank's device, in its own type."""
        dist.all_reduce(values)
        return values

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, in order; all have one shape and type, and lie on the rank's device."""
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values)
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum_int64([0])

    def any_rank(self, mine: bool) -> bool:
        """Whether it is so on some rank; every rank calls it, and gets the same answer."""
        return self.any_of([mine])[0]

    def any_of(self, mine: list[bool]) -> list[bool]:
        """`any_rank` for several at once."""
        return [count > 0 for count in self.sum_int64([int(value) for value in mine])]

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Around what one rank alone may fail at, with no collective inside: if any rank does, all raise, so that none waits for it.

        The rank raises its own ReelyardError, the others OtherRankError.
        """
        failure: ReelyardError | None = None
        try:
            yield
        except ReelyardError as error:
            failure = error
        if self.any_rank(failure is not None):
            raise failure or OtherRankError("another rank failed and says why")

    def _sum(self, values: torch.Tensor) -> list:
        if self.size > 1:
            dist.all_reduce(values)  # on the host, over gloo
        return values.tolist()


def choose_device(wanted: str) -> torch.device:
    """The device of this process: `auto` takes this rank's GPU if there is one. ConfigError for what is not there."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {wanted!r}, expected auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch sees no CUDA device; set device=auto or device=cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", launch_variable("LOCAL_RANK", 0))


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Type of the computation: `auto` is bfloat16 on CUDA, float32 on a CPU."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[wanted]


@contextmanager
def open_world(
    device: torch.device, shape: MeshShape | None = None, *, timeout_s: float | None = None
) -> Iterator[World]:
    """Join the other processes of the run (or be alone) and leave them at the end; `shape` None cuts weights over all of them.

    A collective may take `timeout_s`; None: as long as torch says.
    """
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    size = launched_world_size()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1 and "MASTER_ADDR" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    elif under_torchrun():
        store = fresh_store(timeout)
        dist.init_process_group(backend, store=store, rank=launched_rank(), world_size=size, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)
    try:
        mesh = make_mesh(device.type, shape or MeshShape(replicate=1, shard=size))
        saving_group = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(saving_group, dist.ProcessGroup)  # every rank is in it
        clock = StepClock(device)
        yield World(rank=dist.get_rank(), size=size, device=device, mesh=mesh, saving_group=saving_group, clock=clock)
    finally:
        dist.destroy_process_group()


def shard_network(network: TrainingNetwork, config: TrainConfig, world: World) -> TrainingNetwork:
    """Checkpointing, compilation and sharding of each block, then of the rest; then memory and starting weights."""
    _wrap_blocks(network, config)
    precision = choose_precision(config.precision, world.device)
    if world.size > 1 or precision is not torch.float32:
        _shard(network, precision, world)
    network.to_empty(device=world.device)
    initialize_weights(network.dit, config.seed)
    initialize_weights(network.projectors, config.seed)
    return network


def _shard(network: TrainingNetwork, precision: torch.dtype, world: World) -> None:
    """FSDP2 around each block, then around the rest."""
    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for blocks in _block_lists(network):
        for block in blocks:
            fully_shard(block, mesh=world.mesh, mp_policy=policy)
    fully_shard(network, mesh=world.mesh, mp_policy=policy)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    register_fsdp_forward_method(network, "velocity")
    if world.size > 1:
        watch_collectives(network, world.clock)


def freeze_all_but(network: TrainingNetwork, patterns: Sequence[str]) -> None:
    """Leave only the parameters of these modules trainable; before `shard_network`. ConfigError for a pattern that names none."""
    names = [canonical_name(name) for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not any(covers(pattern, name) for name in names):
            raise ConfigError(
                f"stage.train_only: {pattern!r} meets no parameter of the network; "
                f"name one of its modules: {', '.join(sorted({'.'.join(name.split('.')[:2]) for name in names}))}"
            )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any_covers(patterns, canonical_name(name)))


def compile_block(block: nn.Module, backend: str = "inductor") -> nn.Module:
    """The block compiled whole, with a graph for each shape that it meets: a break in the graph, or more shapes than are allowed for, is an error.

    A module around the block, not `block.compile()`: that would compile FSDP2's hooks as well. Blocks of one class share their graphs. torch
    counts graphs by class, and by default runs eager, with a warning, from the ninth on; here there is room for `_MAX_GRAPHS`.

    Inductor's fusion of a normalization's backward pass with sums over tokens is off: with one clip in a micro-batch it leaves gradients of the
    modulations unwritten (seen as NaN on an H100; pytorch issue 193061, from torch 2.10 on, 2.14 has it still).
    """
    import torch._dynamo.config as limits
    from torch import _inductor

    limits.recompile_limit = max(limits.recompile_limit, _MAX_GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, _MAX_GRAPHS)
    options = _inductor_options(_inductor.list_options()) if backend == "inductor" else None
    compiled = torch.compile(block, backend=backend, dynamic=False, fullgraph=True, options=options)
    assert isinstance(compiled, nn.Module)
    return compiled


def _inductor_options(known: Collection[str]) -> dict[str, Any]:
    """What is switched off, as options of the compiled module: settings of the process are seen by one thread alone, and backward passes are compiled
    in autograd's. ConfigError for a torch that may have the fusion under another name than the `known`."""
    if _FUSION in known:
        return {_FUSION: False}
    if torch.__version__ >= TorchVersion("2.10"):
        raise ConfigError(
            f"compile is on, but torch {torch.__version__} has no setting {_FUSION}, so a fusion that leaves gradients unwritten cannot be "
            "switched off; take a torch that this version of Reelyard was tested with, or set compile=false"
        )
    return {}


def drop_gathered(network: nn.Module) -> None:
    """Let go of parameters that a forward pass left gathered (the root's stay for a backward pass); the next gathers the shards as they are then."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _block_lists(network: TrainingNetwork) -> tuple[nn.ModuleList, ...]:
    dit = network.dit
    return (dit.dual_blocks, dit.single_blocks, dit.decoder_blocks)


def _wrap_blocks(network: TrainingNetwork, config: TrainConfig) -> None:
    """Activation checkpointing, then compilation around it, block by block, in place."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    number = 0
    for blocks in _block_lists(network):
        for index, block in enumerate(blocks):
            if config.activation_checkpointing and number % int(config.activation_checkpointing) == 0:
                blocks[index] = checkpoint_wrapper(block)
            if config.compile:
                blocks[index] = compile_block(blocks[index])
            number += 1
