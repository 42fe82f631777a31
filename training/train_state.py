"""The state of a run as named tensors: weights, the optimizer's moments, the averages.

Built alike for a fresh run, a stage that starts from another's weights, and a run that goes on: the last one then fills `tensors()`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from training.checkpoints.parts import HostCopy
from training.curriculum.weight_source import carry_weights
from training.dit.initialization import canonical_name
from training.network import build_network
from training.optimizing.ema import WeightAverages
from training.optimizing.optimizer import build_optimizer
from training.parallel import World, choose_precision, freeze_all_but, shard_network
from training.run_setup import PreparedRun
from training.sync import check_memory, choose_sync

__all__ = ["TrainState"]


class TrainState:
    """Weights, optimizer and averages, as one mapping of named tensors."""

    def __init__(self, prepared: PreparedRun, teacher_widths: Mapping[str, int], world: World) -> None:
        config = prepared.config
        network = build_network(config, teacher_widths)
        if config.stage is not None and config.stage.train_only is not None:
            freeze_all_but(network, config.stage.train_only)
        self.sync = choose_sync(config.parallel, prepared.meta.sync)
        """When the ranks wait for each other."""
        self.first_step = prepared.first_step
        """The step at which the optimizer began."""
        self.network = shard_network(network, config, world)
        self.names = {parameter: canonical_name(name) for name, parameter in self.network.named_parameters()}
        if prepared.start is not None:
            # Before the averages are made: they begin as copies of the weights.
            parameters = {name: parameter.detach() for parameter, name in self.names.items()}
            carry_weights(prepared.start.source, prepared.start.transition, parameters, world=world)
        self.optimizer = build_optimizer(self.network, config.optimizer)
        in_dit = {name: parameter for parameter, name in self.names.items() if name.startswith("dit.")}
        self.averages = WeightAverages(in_dit, config.ema_decays)
        self.copy: HostCopy | None = None
        """What checkpoints copy the tensors into."""

    def update(self, grad_norm: float, lr: float, step: int) -> None:
        """One update of weights and moments by the gradients at hand, and one of the averages."""
        self.about_to_change()
        self.optimizer.update(grad_norm, lr)
        self.averages.update(step)

    def about_to_change(self) -> None:
        """Before anything changes a tensor in place: a copy of it may still be under way on the device."""
        if self.copy is not None:
            self.copy.hold_device()

    def check_memory(self, prepared: PreparedRun, world: World) -> None:
        """ConfigError if this rank's device has no room for what a step keeps whole; other ranks' devices may have."""
        micro_batches = prepared.meta.micro_per_step * prepared.meta.num_lanes // world.size
        dtype = choose_precision(prepared.config.precision, world.device)
        check_memory(self.sync, self.network, dtype, world.device, micro_batches=micro_batches)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint holds; the tensors are the live ones."""
        weights = {f"model/{name}": parameter.detach() for parameter, name in self.names.items()}
        return weights | self.optimizer.tensors() | self.averages.tensors()
