"""Which ranks hold which part of the network: one group that is cut over all ranks (FSDP), or several groups with a copy each (HSDP).

    world 4, replicate 2, shard 2:     rank 0 | rank 1     first copy, cut in two
                                       rank 2 | rank 3     second copy, cut in two

Gradients are summed inside a group by reduce-scatter, then between ranks of the same place by all-reduce. A group is ranks one after another.
Price of a copy: its memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from schemas.errors import ConfigError
from training.parallel_config import ParallelConfig

__all__ = ["MeshShape", "make_mesh", "mesh_shape"]


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """How the ranks of a run are arranged."""

    replicate: int
    shard: int

    @property
    def size(self) -> int:
        """Ranks."""
        return self.replicate * self.shard


def mesh_shape(config: ParallelConfig, world_size: int) -> MeshShape:
    """The arrangement of a world.

    Raises:
        ConfigError: if the two numbers do not make the world size, with those that would.
    """
    if world_size % config.replicate:
        divisors = [count for count in range(1, world_size + 1) if world_size % count == 0]
        raise ConfigError(
            f"parallel.replicate is {config.replicate}, which does not divide the run's {world_size} ranks; "
            f"set it to one of {', '.join(map(str, divisors))}, or start another number of ranks"
        )
    shard = world_size // config.replicate
    if config.shard is not None and config.shard != shard:
        raise ConfigError(
            f"parallel.replicate {config.replicate} x parallel.shard {config.shard} is {config.replicate * config.shard} ranks, "
            f"but the run has {world_size}; set parallel.shard={shard} or null, or start {config.replicate * config.shard} ranks"
        )
    return MeshShape(replicate=config.replicate, shard=shard)


def make_mesh(device_type: str, shape: MeshShape) -> DeviceMesh:
    """The mesh that `fully_shard` takes; every rank calls it."""
    if shape.replicate == 1:
        return init_device_mesh(device_type, (shape.shard,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (shape.replicate, shape.shard), mesh_dim_names=("replicate", "shard"))
