"""How much memory and disk a run takes, by arithmetic on its configuration and plan; nothing is allocated.

A rank holds its share of float32 weights, gradients, two moments and averages (4 bytes each), the block that is gathered, the activations of its
largest micro-batch, and the loader's bytes: what the plan says it buffers, and the parsed steps. Activations come from the plan's profile where it
has one; else 34 bytes per token, width and block in bf16 (Korthikanti et al. 2022, equation 2 without the attention matrix, which is never stored),
2 with activation checkpointing: good for a factor of two, not more.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.buckets import Bucket
from schemas.plan import PlanMeta, lanes_of_rank
from training.config import TrainConfig
from training.network import TrainingNetwork

__all__ = ["MemoryEstimate", "checkpoint_bytes", "estimate_memory", "gigabytes"]

_FLOAT = 4
_ACTIVATION_BYTES, _CHECKPOINTED_BYTES = 34, 2
_TRAINING_FILES_BYTES = 600_000_000
"""torch and its libraries in a process that has trained a step on a CPU, measured as resident memory."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one rank."""

    state: int
    """Weights, gradients, moments and averages: its share."""
    activations: int
    activations_from: str
    loader: int
    """In the machine's memory, also where training is on a GPU."""

    @property
    def on_device(self) -> int:
        """What training itself needs."""
        return self.state + self.activations

    def in_machine(self, *, trains_on_cpu: bool) -> int:
        """What the process needs of the machine."""
        return self.loader + _TRAINING_FILES_BYTES + (self.on_device if trains_on_cpu else 0)


def checkpoint_bytes(network: TrainingNetwork, config: TrainConfig) -> int:
    """Of one checkpoint: weights, two moments of what is trained, and averages of the DiT."""
    weights, trained, averaged = _entries(network)
    return _FLOAT * (weights + 2 * trained + len(config.ema_decays) * averaged)


def estimate_memory(network: TrainingNetwork, config: TrainConfig, meta: PlanMeta, world_size: int) -> MemoryEstimate:
    """Of the rank that needs most."""
    weights, trained, averaged = _entries(network)
    state = _FLOAT * (weights + 3 * trained + len(config.ema_decays) * averaged) // world_size
    state += _FLOAT * _largest_block(network)  # gathered for its own forward and backward pass
    profiled = [entry.memory_bytes for entry in meta.batches if entry.memory_bytes is not None]
    if profiled and len(profiled) == len(meta.batches):
        # The profile's peak is one device's, with the whole state on it.
        whole = _FLOAT * (weights + 3 * trained + len(config.ema_decays) * averaged)
        activations, source = max(0, max(profiled) - whole), "the plan's profile"
    else:
        activations, source = _activations(config, meta), "the model's shape, within a factor of two"
    lanes = [lanes_of_rank(rank, world_size, meta.num_lanes) for rank in range(world_size)]
    buffered = max(sum(meta.peak_buffer_bytes[lane] for lane in some) for some in lanes)
    parsed = _parsed_bytes(config, meta) * len(lanes[0]) * meta.micro_per_step * 2
    return MemoryEstimate(state=state, activations=activations, activations_from=source, loader=buffered + parsed)


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


def _activations(config: TrainConfig, meta: PlanMeta) -> int:
    tokens = max(entry.clips_per_lane * Bucket.parse(entry.bucket).video_tokens for entry in meta.batches)
    per_block = _CHECKPOINTED_BYTES if config.activation_checkpointing else _ACTIVATION_BYTES
    blocks = config.model.total_blocks + (
        _ACTIVATION_BYTES // _CHECKPOINTED_BYTES if config.activation_checkpointing else 0
    )
    return tokens * config.model.width * blocks * per_block * (1 if config.precision == "bf16" else 2)


def _parsed_bytes(config: TrainConfig, meta: PlanMeta) -> int:
    """Of the largest micro-batch as tensors: clean latents and noise in float32."""
    sizes = []
    for entry in meta.batches:
        frames, rows, columns = Bucket.parse(entry.bucket).latent_shape
        sizes.append(entry.clips_per_lane * config.model.out_channels * frames * rows * columns)
    return 2 * _FLOAT * max(sizes)
