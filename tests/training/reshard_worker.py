"""Run under torchrun by test_checkpoint.py: check and save the same tensors, cut over however many ranks there are.

Some have fewer rows than there are ranks, so that a rank's part is empty; one has rows that do not divide.
`reshard_worker.py FROM TO`: load from run FROM unless it is `-`, save to run TO unless it is `-`.
"""

import sys
from pathlib import Path


def main(source: str, target: str) -> None:
    import torch
    from torch.distributed.tensor import Shard, distribute_tensor

    from training.checkpoint import CheckpointRecord, find_checkpoint, load_tensors
    from training.checkpoint_writer import save_checkpoint
    from training.parallel import open_world

    full = {
        "model/rows": torch.arange(12.0).reshape(4, 3),
        "model/uneven": torch.arange(5.0),
        "model/one_row": torch.arange(3.0).reshape(1, 3),
        "ema_0.9/value": torch.tensor([7.0]),
    }
    with open_world(torch.device("cpu")) as world:
        parts = {name: distribute_tensor(value, world.mesh, [Shard(0)]) for name, value in full.items()}
        if source != "-":
            for part in parts.values():
                part.to_local().fill_(-1.0)
            load_tensors(find_checkpoint(Path(source), None), parts, world=world)
        for name, value in full.items():
            assert torch.equal(parts[name].full_tensor(), value), name
        if target != "-":
            record = CheckpointRecord(next_step=1, plan_hash="p", config={}, environment={"world_size": world.size})
            save_checkpoint(Path(target), parts, record, world)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main(*sys.argv[1:])
