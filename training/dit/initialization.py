"""Starting weights, a function of (seed, parameter name, shape), the same for every world size and device.

Each parameter is drawn whole on the CPU from a stream keyed by its name, then cut to what this rank holds. So it works before sharding and on
the DTensors after `fully_shard` alike, with equal results and without communication; a parameter keeps its start when others are added beside it
(stage transitions). Price: each rank draws all the weights, about a minute for 2 B, one parameter in memory at a time.

The rules are DiT's: AdaLN modulations, the output projection and Shared Cross-Attention's output are zero (every block starts as the identity);
other weights are Xavier-uniform (each part of a fused one by itself), the timestep MLP normal with deviation 0.02, biases 0, norm weights 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from schemas.errors import ConfigError
from schemas.model_shape import ModelShape
from training.dit.blocks import FusedLinear, NormalLinear, ZeroLinear
from training.dit.model import MotifVideoDiT
from training.randomness import stream

__all__ = ["build_model", "canonical_name", "initialize_weights"]

_NORMAL_STD = 0.02


def build_model(shape: ModelShape, *, seed: int, device: str | torch.device = "cpu") -> MotifVideoDiT:
    """The network with starting weights, float32. To shard: build on meta, `fully_shard`, `to_empty`, `initialize_weights`."""
    with torch.device("meta"):
        model = MotifVideoDiT(shape)
    model.to_empty(device=device)
    initialize_weights(model, seed)
    return model


def canonical_name(name: str) -> str:
    """A parameter's name without what activation checkpointing and compilation put into it: a weight keeps its stream with or without them."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


@torch.no_grad()
def initialize_weights(root: nn.Module, seed: int) -> None:
    """Set every parameter of `root` (the DiT or the alignment projector) in place, plain tensors and DTensors alike.

    Raises ConfigError for parameters still on the meta device, and for a layer that has no rule here.
    """
    for module_name, module in root.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            name = canonical_name(f"{module_name}.{parameter_name}")
            if parameter.is_meta:
                raise ConfigError(f"parameter {name} is on the meta device; call model.to_empty(device=...) first")
            _assign(parameter, _starting_value(name, module, parameter_name, tuple(parameter.shape), seed))


def _starting_value(name: str, module: nn.Module, kind: str, size: tuple[int, ...], seed: int) -> Tensor:
    """The whole parameter on the CPU, float32."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return torch.ones(size) if kind == "weight" else torch.zeros(size)
    if isinstance(module, ZeroLinear) or kind == "bias":
        return torch.zeros(size)
    if not isinstance(module, nn.Linear | nn.Conv3d):
        raise ConfigError(
            f"parameter {name}: no starting rule for {type(module).__name__}; add one to initialization.py"
        )
    generator = stream(seed, 0, name, "weights")
    if isinstance(module, NormalLinear):
        return torch.from_numpy(generator.standard_normal(size, dtype=np.float32) * np.float32(_NORMAL_STD))
    parts = module.parts if isinstance(module, FusedLinear) else 1
    fan_out, fan_in = size[0] // parts, math.prod(size[1:])
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    return torch.from_numpy((generator.random(size, dtype=np.float32) * 2 - 1) * np.float32(bound))


def _assign(parameter: nn.Parameter, value: Tensor) -> None:
    """Copy the whole value, or this rank's part of it, into the parameter."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        # src_data_rank=None: every rank cuts its part from its own copy, nothing is sent.
        value = distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(value)
