"""Run by test_checkpoint.py on several ranks: check and save the same tensors, cut over however many ranks there are.

Some have fewer rows than there are ranks, so that a rank's part is empty; one has rows that do not divide. Averages of two decays are moved along
with sharded weights, and must be those of the whole weights to the last bit.
`main(FROM, TO, REPLICATE)`: load from run FROM unless it is `-`, save to run TO unless it is `-`; REPLICATE copies of the tensors.
"""

from pathlib import Path
from typing import Any

DECAYS = (0.5, 0.9)


def main(source: str, target: str, replicate: int) -> None:
    """On every rank."""
    import torch
    from torch import nn
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from training.checkpoints.checkpoint import CheckpointRecord, find_checkpoint, load_tensors
    from training.checkpoints.writer import save_checkpoint
    from training.control.launch import launched_world_size
    from training.mesh import MeshShape
    from training.optimizing.ema import WeightAverages
    from training.parallel import open_world

    weights = {
        "rows": torch.arange(12.0).reshape(4, 3) / 7,
        "uneven": torch.arange(5.0) / 3,
        "one_row": torch.arange(3.0).reshape(1, 3),
    }

    def state_of(whole: dict[str, torch.Tensor], cut: Any) -> dict[str, torch.Tensor]:
        """Weights moved twice, with averages that follow."""
        parameters = {name: nn.Parameter(cut(value.clone())) for name, value in whole.items()}
        averages = WeightAverages(parameters, DECAYS)
        for step in range(2):
            for parameter in parameters.values():
                parameter.data.mul_(1.1)
            averages.update(step)
        return {f"model/{name}": parameter.detach() for name, parameter in parameters.items()} | averages.tensors()

    full = state_of(weights, lambda value: value)
    shape = MeshShape(replicate=replicate, shard=launched_world_size() // replicate)
    with open_world(torch.device("cpu"), shape) as world:
        placements = [Shard(0)] if replicate == 1 else [Replicate(), Shard(0)]
        parts = state_of(weights, lambda value: distribute_tensor(value, world.mesh, placements))
        assert parts.keys() == full.keys()
        if source != "-":
            for part in parts.values():
                part.to_local().fill_(-1.0)
            load_tensors(find_checkpoint(Path(source), None), parts, world=world)
        for name, value in full.items():
            assert torch.equal(parts[name].full_tensor(), value), name
        if target != "-":
            record = CheckpointRecord(next_step=1, plan_hash="p", config={}, environment={"world_size": world.size})
            save_checkpoint(Path(target), parts, record, world)
