"""How much memory and disk a run takes, by arithmetic on its configuration and plan; nothing is allocated.

A rank holds its share of float32 weights, gradients, the optimizer's state and averages, the block that is gathered (with `sync: step` the whole
network and its gradients), the activations of its largest micro-batch, and in the machine's memory the loader's bytes and the copy for asynchronous
checkpoints. Activations come from the plan's profile where it has one; else 34 bytes per token, width and block in 16 bits (Korthikanti et al. 2022,
equation 2, without the attention matrix, which is never stored), 2 with activation checkpointing: good for a factor of two, not more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from schemas.buckets import Bucket
from schemas.plan import PlanMeta, lanes_of_rank
from training.batch import BatchMaker
from training.config import TrainConfig
from training.loader import PlannedLoader
from training.loading.sample_sets import SampleSets
from training.mesh import mesh_shape
from training.network import TrainingNetwork
from training.parallel import choose_device, choose_precision
from training.sync import choose_sync

__all__ = ["MemoryEstimate", "checkpoint_bytes", "estimate_memory", "gigabytes"]

_FLOAT = 4
_PROFILE = "the plan's profile"
_ACTIVATION_BYTES, _CHECKPOINTED_BYTES = 34, 2
_LIBRARIES_BYTES = 600_000_000
"""A round figure for torch and its libraries in a process that trains on a CPU; not measured on every build."""
_OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.1, "muon": 8.0}
"""Of a trained number. Muon's matrices take 4; which those are, is not asked here."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one rank."""

    state: int
    """Weights, gradients, moments and averages: its share, and what is gathered."""
    activations: int
    activations_from: str
    is_measured: bool
    """Whether activations are a profile's, not an estimate."""
    loader: int
    """In the machine's memory, also where training is on a GPU; with the copy for asynchronous checkpoints."""

    @property
    def on_device(self) -> int:
        """What training itself needs."""
        return self.state + self.activations

    def in_machine(self, *, trains_on_cpu: bool) -> int:
        """What the process needs of the machine."""
        return self.loader + _LIBRARIES_BYTES + (self.on_device if trains_on_cpu else 0)


def checkpoint_bytes(network: TrainingNetwork, config: TrainConfig) -> int:
    """Of one checkpoint: weights, the optimizer's state of what is trained, and averages of the DiT."""
    weights, trained, averaged = _entries(network)
    return int(
        _FLOAT * (weights + len(config.ema_decays) * averaged) + _OPTIMIZER_BYTES[config.optimizer.name] * trained
    )


def estimate_memory(
    network: TrainingNetwork, config: TrainConfig, meta: PlanMeta, plan: Path, sets: SampleSets, world_size: int
) -> MemoryEstimate:
    """Of the rank that needs most."""
    weights, trained, _ = _entries(network)
    precision = choose_precision(config.precision, choose_device(config.device))
    shards, saved = mesh_shape(config.parallel, world_size).shard, checkpoint_bytes(network, config)
    whole = saved + _FLOAT * trained  # gradients
    gathered = _FLOAT * _largest_block(network)
    if choose_sync(config.parallel, meta.sync) == "step" and world_size > 1:
        gathered = _FLOAT * (weights + trained)
    profiled = [entry.memory_bytes for entry in meta.batches if entry.memory_bytes is not None]
    if profiled and len(profiled) == len(meta.batches):
        # The profile's peak is one device's, with the whole state on it.
        activations, source = max(0, max(profiled) - whole), _PROFILE
    else:
        activations, source = _activations(config, meta, precision), "the model's shape, within a factor of two"
    copy = saved // shards if config.checkpoint.asynchronous else 0
    return MemoryEstimate(
        state=whole // shards + gathered,
        activations=activations,
        activations_from=source,
        is_measured=source == _PROFILE,
        loader=_loader_bytes(config, meta, plan, sets, world_size) + copy,
    )


def gigabytes(count: float) -> str:
    """`gigabytes(1_500_000_000) == "1.50 GB"`, `gigabytes(2_500_000) == "2.5 MB"`."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _entries(network: TrainingNetwork) -> tuple[int, int, int]:
    """Numbers in all parameters, in those that are trained, in the DiT's."""
    parameters = list(network.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return sum(p.numel() for p in parameters), trained, sum(p.numel() for p in network.dit.parameters())


def _largest_block(network: TrainingNetwork) -> int:
    blocks = [*network.dit.dual_blocks, *network.dit.single_blocks, *network.dit.decoder_blocks]
    return max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks)


def _activations(config: TrainConfig, meta: PlanMeta, precision: torch.dtype) -> int:
    tokens = max(entry.clips_per_lane * Bucket.parse(entry.bucket).video_tokens for entry in meta.batches)
    per_block = _CHECKPOINTED_BYTES if config.activation_checkpointing else _ACTIVATION_BYTES
    blocks = config.model.total_blocks + (
        _ACTIVATION_BYTES // _CHECKPOINTED_BYTES if config.activation_checkpointing else 0
    )
    return tokens * config.model.width * blocks * per_block * (1 if precision is torch.bfloat16 else 2)


def _loader_bytes(config: TrainConfig, meta: PlanMeta, plan: Path, sets: SampleSets, world_size: int) -> int:
    """What the loader itself says, of the rank whose lanes buffer most."""
    buffered = [
        sum(meta.peak_buffer_bytes[lane] for lane in lanes_of_rank(rank, world_size, meta.num_lanes))
        for rank in range(world_size)
    ]
    device = choose_device(config.device)
    null_text_ED = np.zeros((1, config.model.text_width), np.float16)
    maker = BatchMaker(config, null_text_ED, None, device=device, largest_members=sets.largest_members)
    loader = PlannedLoader(
        plan,
        buffered.index(max(buffered)),
        world_size,
        samples=sets,
        prepare=maker,
        prepared_bytes=maker.prepared_bytes,
        **config.loader.model_dump(),
        with_teacher=config.repa is not None and config.repa.source == "stored",
        with_image=config.i2v.image_tokens,
        device=device.type,
    )
    return loader.memory_bound_bytes
