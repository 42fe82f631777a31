"""The section `optimizer`: which one, how fast, and from where its steps are counted."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.config import StrictConfig

__all__ = ["OptimizerConfig"]

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimizerConfig(StrictConfig):
    """AdamW or one of two others; the learning rate is a function of the step alone."""

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """adamw8bit: both moments of matrices in 8 bits (needs torchao). muon: matrices inside the blocks by Muon, everything else by AdamW."""
    lr: float = Field(default=1e-4, gt=0.0)
    """Learning rate after the warm-up. Muon's updates are scaled to AdamW's size, so it is the same for both."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """How much of both moments stays in a step; at 1 nothing new would come in."""
    eps: float = Field(default=1e-8, gt=0.0)
    momentum: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Of Muon (Nesterov's); AdamW has `betas`."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled; on matrices of blocks, projectors and the output, never on biases, norms and embeddings (`training.optimizing.parameter_groups`)."""
    clip_norm: float = Field(default=1.0, gt=0.0)
    """The gradient of a step is scaled down to this global norm."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises in a line; step 0 has `lr / warmup_steps`."""
    decay: Literal["cosine", "linear"] = "cosine"
    """How it falls, where it does."""
    decay_steps: int | None = Field(default=None, gt=0)
    """Step from which on the rate is `lr * final_ratio`; between the warm-up's end and this it falls. null lets it stay at `lr`."""
    final_ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    steps_from: Literal["plan", "start"] = "plan"
    """From where the steps above are counted. plan: the plan's own numbers. start: the step at which these weights began, so that a stage that starts
    from another's weights, in the middle of a plan, has its own warm-up."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps {self.decay_steps} must be above warmup_steps {self.warmup_steps}: the rate rises first, then falls"
            )
        return self
