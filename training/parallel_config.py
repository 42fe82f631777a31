"""The section `parallel`: over how many ranks weights are cut, and when ranks wait for each other. Nothing in it changes what is computed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.config import StrictConfig

__all__ = ["ParallelConfig"]


class ParallelConfig(StrictConfig):
    """How the ranks of a run are arranged; free to change when a run is continued."""

    replicate: int = Field(default=1, gt=0)
    """Groups of ranks that each hold the whole network: 1 is FSDP, more is HSDP. Torch numbers the ranks of a machine one after another, so with as
    many groups as machines weights are gathered inside a machine, and only gradients cross between them."""
    shard: int | None = Field(default=None, gt=0)
    """Ranks of a group, over which its copy is cut; null: world size / replicate. 1 holds everything everywhere and gathers nothing."""
    sync: Literal["auto", "micro", "step"] = "auto"
    """What ranks wait for: each micro-batch (weights are gathered anew for each) or each step (gathered once, kept until its last backward pass).
    auto: what the plan was built for. Naming the other one is refused."""
