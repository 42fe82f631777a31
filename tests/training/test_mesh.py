"""A layout that does not fit the world is refused with both numbers and with what would fit."""

import pytest

from schemas.errors import ConfigError
from training.mesh import MeshShape, mesh_shape
from training.parallel_config import ParallelConfig


@pytest.mark.parametrize(
    ("replicate", "shard", "world", "expected"),
    [(1, None, 8, (1, 8)), (2, None, 8, (2, 4)), (2, 4, 8, (2, 4)), (4, 1, 4, (4, 1)), (1, 1, 1, (1, 1))],
)
def test_groups_times_their_ranks_is_the_world(
    replicate: int, shard: int | None, world: int, expected: tuple[int, int]
) -> None:
    found = mesh_shape(ParallelConfig(replicate=replicate, shard=shard), world)
    assert found == MeshShape(replicate=expected[0], shard=expected[1]) and found.size == world


@pytest.mark.parametrize(
    ("replicate", "shard", "world", "message"),
    [
        (3, None, 8, r"parallel.replicate is 3, which does not divide the run's 8 ranks; set it to one of 1, 2, 4, 8"),
        (
            2,
            2,
            8,
            r"parallel.replicate 2 x parallel.shard 2 is 4 ranks, but the run has 8; set parallel.shard=4 or null",
        ),
        (1, 1, 2, r"parallel.replicate 1 x parallel.shard 1 is 1 ranks, but the run has 2"),
    ],
)
def test_anything_else_is_refused(replicate: int, shard: int | None, world: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mesh_shape(ParallelConfig(replicate=replicate, shard=shard), world)
