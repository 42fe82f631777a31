"""The learning rate as a function of the step: warm-up, then constant, or falling as a cosine or a line. No scheduler, so no state of one.

    rate                                   with decay_steps: null
    lr          /------\\                   lr    /---------------
               /        \\ cosine, linear         /
    0         /          \\____ final_ratio      /
    step      0   warmup  decay_steps

A stage that starts from another's weights in the middle of a plan counts from its own first step with `steps_from: start`. Price: a run that is
continued with another `decay_steps` is another run, which is refused unless it is named.
"""

from __future__ import annotations

import math

from training.optimizing.optimizer_config import OptimizerConfig

__all__ = ["learning_rate", "schedule_step"]


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Rate of a 0-based step: `lr (step + 1) / warmup_steps` up to `lr`, then `lr`, or falling to `lr final_ratio` at `decay_steps`."""
    if step + 1 < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay_steps is None:
        return config.lr
    share = min(1.0, max(0, step - config.warmup_steps) / (config.decay_steps - config.warmup_steps))
    left = 1.0 - share if config.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
    return config.lr * (config.final_ratio + (1.0 - config.final_ratio) * left)


def schedule_step(config: OptimizerConfig, step: int, first_step: int) -> int:
    """The step that `learning_rate` is asked for: the plan's own, or counted from `first_step`, at which the optimizer began."""
    return step - first_step if config.steps_from == "start" else step
