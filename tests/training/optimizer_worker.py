"""Run as four gloo ranks by test_optimizer_ranks.py: each optimizer on a network some of whose parameters have fewer rows than there are ranks.

For each name: four steps, against the same without sharding; two steps, saved, read back into a fresh optimizer on the same layout and on 2 x 2, two
steps more. `optimizer_worker.py FOLDER NAME...`
"""

import sys
from pathlib import Path


def main(folder: Path, names: list[str]) -> None:
    import math

    import torch
    from torch import Tensor, nn
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor

    from training.checkpoints.checkpoint import CheckpointRecord, load_tensors
    from training.checkpoints.writer import save_checkpoint
    from training.mesh import MeshShape, make_mesh
    from training.optimizing.local_parts import local_part
    from training.optimizing.optimizer import StepOptimizer, build_optimizer
    from training.optimizing.optimizer_config import OptimizerConfig
    from training.parallel import World, open_world

    class Network(nn.Module):
        """Three output rows over four ranks; rows of 2,048 numbers fit 8 bits."""

        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = nn.Linear(6, 8)
            self.dual_blocks = nn.ModuleList(
                [nn.Sequential(nn.Linear(8, 2048), nn.LayerNorm(2048), nn.Linear(2048, 3))]
            )
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))

        def forward(self, values: Tensor) -> Tensor:
            return self.dual_blocks[0](self.patch_embed(values)).square().sum()

    def sharded(shape: MeshShape) -> Network:
        network = Network()
        fully_shard(network, mesh=make_mesh("cpu", shape))
        assert isinstance(network, FSDPModule)
        network.set_force_sum_reduction_for_comms(True)
        network.set_gradient_divide_factor(1.0)
        return network

    def steps(network: nn.Module, optimizer: StepOptimizer, world: World | None, which: range) -> None:
        for step in which:
            values = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            network(values if world is None else values[world.rank : world.rank + 1]).backward()
            optimizer.collect()
            squares = float(optimizer.squared_norm())
            if world is not None:
                first = next(iter(network.parameters()))
                assert isinstance(first, DTensor)
                is_first = first.device_mesh.ndim == 1 or first.device_mesh.get_local_rank("replicate") == 0
                squares = world.sum_float64([squares if is_first else 0.0])[0]
            optimizer.update(math.sqrt(squares), 0.01)

    def state(network: nn.Module, optimizer: StepOptimizer) -> dict[str, Tensor]:
        weights = {f"model/{name}": parameter.detach() for name, parameter in network.named_parameters()}
        return weights | optimizer.tensors()

    flat, square = MeshShape(replicate=1, shard=4), MeshShape(replicate=2, shard=2)
    with open_world(torch.device("cpu")) as world:
        assert world.size == 4
        for name in names:
            config = OptimizerConfig(name=name, weight_decay=0.1)
            plain, whole = Network(), sharded(flat)
            steps(plain, build_optimizer(plain, config), None, range(4))
            through = build_optimizer(whole, config)
            steps(whole, through, world, range(4))
            empty = [local_part(parameter.detach()).numel() == 0 for parameter in whole.parameters()]
            assert any(empty) == (world.rank == 3), "a rank without rows is what this is about"
            for (key, left), right in zip(plain.named_parameters(), whole.parameters(), strict=True):
                torch.testing.assert_close(right.full_tensor(), left, rtol=1e-3, atol=1e-4, msg=f"{name}: {key}")
            half = sharded(flat)
            optimizer = build_optimizer(half, config)
            steps(half, optimizer, world, range(2))
            record = CheckpointRecord(next_step=2, plan_hash="p", config={}, environment={})
            saved = save_checkpoint(folder / name, state(half, optimizer), record, world)
            for shape in (flat, square):
                rest = sharded(shape)
                optimizer = build_optimizer(rest, config)
                load_tensors(saved, state(rest, optimizer), world=world)
                optimizer.set_updates_done(2)
                steps(rest, optimizer, world, range(2, 4))
                there, here = state(whole, through), state(rest, optimizer)
                assert there.keys() == here.keys()
                for key, tensor in there.items():
                    left, right = tensor.full_tensor(), here[key].full_tensor()
                    if shape == flat:
                        assert torch.equal(left, right), f"{name}: {key} is not the same to the bit"
                    elif left.is_floating_point():
                        torch.testing.assert_close(right, left, rtol=1e-3, atol=1e-4, msg=f"{name}: {key}")


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main(Path(sys.argv[1]), sys.argv[2:])
