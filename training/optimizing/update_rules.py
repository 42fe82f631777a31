"""How a group of parameters is updated: AdamW, AdamW with moments in 8 bits, or Muon. Each rule's state is a few flat tensors.

    AdamW      exp_avg, exp_avg_sq                             float32, cut as the parameter is
    AdamW8bit  exp_avg_codes, _sq_codes, exp_avg_scale, ...    uint8 as the parameter; float32 (rows, blocks of 256 in a row), cut by the same rows
    Muon       momentum                                        float32, cut as the parameter is

All of it is cut by rows and nothing spans two of them, so any number of ranks reads what any other wrote, to the bit. The tensors that `tensors`
gives are the live ones. The 8-bit update is compiled on CUDA and run eagerly on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from schemas.errors import ConfigError
from training.optimizing.local_parts import LocalPart, as_sharded
from training.optimizing.optimizer_config import OptimizerConfig
from training.optimizing.parameter_groups import decays

__all__ = ["EIGHT_BIT_BLOCK", "AdamW", "AdamW8bit", "UpdateRule", "check_packages", "fits_eight_bits"]

EIGHT_BIT_BLOCK = 256
"""Neighbouring numbers of a row that share a scale."""
_EIGHT_BIT_LEAST = 4096
"""Numbers of a parameter below which 8 bits save nothing."""


class UpdateRule(Protocol):
    """Some parameters and how they change; their gradients are in the stand-ins."""

    def update(self, rate: float) -> None:
        """One update at a learning rate."""

    def tensors(self) -> dict[str, Tensor]:
        """The whole state as `<kind>/<name>`, live."""

    def set_updates_done(self, updates: int) -> None:
        """Say how many updates a loaded state has seen."""


def check_packages(config: OptimizerConfig) -> None:
    """ConfigError, with the extra to install, if the optimizer's package is not there."""
    from importlib.util import find_spec

    if config.name == "adamw8bit" and find_spec("torchao") is None:
        raise ConfigError(
            "optimizer.name is 'adamw8bit', which needs the package torchao; "
            "install it with `pip install 'reelyard[optimizers]'`, or set optimizer.name=adamw"
        )


def fits_eight_bits(shape: Sequence[int]) -> bool:
    """Whether a parameter's moments can be held in 8 bits without a block that spans two rows."""
    return len(shape) >= 2 and math.prod(shape) >= _EIGHT_BIT_LEAST and math.prod(shape[1:]) % EIGHT_BIT_BLOCK == 0


class AdamW:
    """torch's AdamW, the update of all parameters in one fused pass."""

    def __init__(self, parts: Sequence[LocalPart], config: OptimizerConfig) -> None:
        self._parts = list(parts)
        self._optimizer = torch.optim.AdamW(
            _groups(self._parts, config), lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )
        for part in self._parts:
            plain = part.plain
            self._optimizer.state[plain] = {
                "step": torch.zeros((), dtype=torch.float32, device=plain.device),
                "exp_avg": torch.zeros_like(plain),
                "exp_avg_sq": torch.zeros_like(plain),
            }

    def update(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{kind}/{part.name}": as_sharded(self._optimizer.state[part.plain][kind].detach(), part.parameter)
            for kind in ("exp_avg", "exp_avg_sq")
            for part in self._parts
        }

    def set_updates_done(self, updates: int) -> None:
        for state in self._optimizer.state.values():
            state["step"].fill_(float(updates))


class AdamW8bit:
    """torchao's AdamW; a part without rows on this rank has no state and is passed over."""

    def __init__(self, parts: Sequence[LocalPart], config: OptimizerConfig) -> None:
        from torchao.optim import AdamW8bit as Library

        if not parts:
            raise ConfigError(
                f"optimizer.name is 'adamw8bit', but the network has no matrix with rows of a multiple of {EIGHT_BIT_BLOCK} numbers: "
                "nothing would be held in 8 bits; set optimizer.name=adamw"
            )
        self._parts = list(parts)
        self._here = [part for part in self._parts if part.plain.numel()]
        self._device = self._parts[0].plain.device
        self._optimizer = (
            Library(
                _groups(self._here, config),
                lr=config.lr,
                betas=config.betas,
                eps=config.eps,
                block_size=EIGHT_BIT_BLOCK,
            )
            if self._here
            else None
        )
        for part in self._here:
            assert self._optimizer is not None
            self._optimizer.state[part.plain] = {
                "step": torch.tensor(0.0),
                "exp_avg": _eight_bit_zeros(part.plain, signed=True),
                "exp_avg_sq": _eight_bit_zeros(part.plain, signed=False),
            }

    def update(self, rate: float) -> None:
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            group["lr"].fill_(rate)
        eagerly = torch.compiler.set_stance("force_eager") if self._device.type == "cpu" else nullcontext()
        with eagerly:
            self._optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in self._parts:
            shape = part.parameter.shape
            blocks = math.prod(shape[1:]) // EIGHT_BIT_BLOCK
            for kind in ("exp_avg", "exp_avg_sq"):
                if self._optimizer is not None and part.plain in self._optimizer.state:
                    state = self._optimizer.state[part.plain][kind]
                    codes, scale = state.codes, state.scale.view(-1, blocks)
                else:
                    codes = torch.empty((0, *shape[1:]), dtype=torch.uint8, device=self._device)
                    scale = torch.empty((0, blocks), device=self._device)
                found[f"{kind}_codes/{part.name}"] = as_sharded(codes, part.parameter)
                found[f"{kind}_scale/{part.name}"] = as_sharded(scale, part.parameter, (shape[0], blocks))
        return found

    def set_updates_done(self, updates: int) -> None:
        if self._optimizer is not None:
            for state in self._optimizer.state.values():
                state["step"].fill_(float(updates))


def _eight_bit_zeros(plain: Tensor, *, signed: bool) -> Tensor:
    from torchao.optim.subclass_8bit import OptimState8bit

    return OptimState8bit.zeros(plain.shape, signed, EIGHT_BIT_BLOCK, plain.device, dtype=plain.dtype)


def _groups(parts: Sequence[LocalPart], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Torch's parameter groups: with weight decay and without; none is empty."""
    with_decay = [part.plain for part in parts if decays(part.name, part.parameter.ndim)]
    without = [part.plain for part in parts if not decays(part.name, part.parameter.ndim)]
    groups = [{"params": with_decay, "weight_decay": config.weight_decay}, {"params": without, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
