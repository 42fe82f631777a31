"""Your own trainer on a plan: read a packed set with `PlannedLoader`, train a small denoiser on its latents, stop, and go on where it stopped.

    reelyard-plan build --config configs/plan/... --samples SET --output PLAN
    python examples/planned_loader.py --plan PLAN --samples SET --output RUN
    torchrun --nproc-per-node 2 examples/planned_loader.py --plan PLAN --samples SET --output RUN

SET may be a folder or a URL (`s3://bucket/sets/144p`). Nothing of Reelyard's trainer is used: a step of the plan is a tuple of micro-batches, each a
float16 array (B, T, C, H, W) and its clips. What is saved beside the weights is the loader's state, two values. The loss is divided by the
clips of the whole step on all ranks, as the plan means it, so it does not depend on how many ranks there are.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.loader import LaneBatch, PlannedLoader


class Denoiser(nn.Module):
    """Two convolutions over single latent frames: an example's network."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)
        )

    def forward(self, noisy_NCHW: Tensor) -> Tensor:
        """The clean frames."""
        out: Tensor = self.layers(noisy_NCHW)
        return out


def batch_loss(network: nn.Module, batch: LaneBatch, device: torch.device) -> Tensor:
    """Squared error, averaged over each clip, summed over clips."""
    clean = batch.latents().to(device, non_blocking=True).float()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(batch.step)).to(device)
    frames = (clean + 0.3 * noise).flatten(0, 1)
    error = (network(frames) - clean.flatten(0, 1)).square()
    return error.mean(dim=(1, 2, 3)).view(clean.shape[:2]).mean(dim=1).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", required=True, help="folder that `reelyard-plan build` wrote")
    parser.add_argument("--samples", required=True, nargs="+", help="folders or URLs of the plan's sets")
    parser.add_argument("--output", required=True, type=Path, help="folder for weights, loader state and the log")
    parser.add_argument("--steps", type=int, help="stop before this step")
    given = parser.parse_args()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        dist.init_process_group("gloo")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    loader: PlannedLoader[LaneBatch] = PlannedLoader(
        given.plan, rank, world_size, samples=given.samples, stop_step=given.steps, device=device.type
    )
    channels = loader.infos[0].latent_channels
    torch.manual_seed(0)
    network = Denoiser(channels).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    weights, state = given.output / "weights.pt", given.output / "loader.json"
    if state.is_file():
        network.load_state_dict(torch.load(weights, weights_only=True))
        loader.load_state_dict(json.loads(state.read_text()))
    given.output.mkdir(parents=True, exist_ok=True)

    for step in loader:
        totals = torch.tensor([sum(len(batch.clips) for batch in step.batches), 0.0], dtype=torch.float64)
        for batch in step.batches:
            loss = batch_loss(network, batch, device)
            loss.backward()
            totals[1] += loss.item()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        if world_size > 1:
            for tensor in (totals, *gradients):
                dist.all_reduce(tensor)
        for gradient in gradients:
            gradient /= totals[0].item()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            torch.save(network.state_dict(), weights)
            state.write_text(json.dumps(loader.state_dict()))
            line = {"step": step.step, "loss": (totals[1] / totals[0]).item(), "wait_ms": round(step.wait_ms, 3)}
            with (given.output / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            for clip in step.substitutions:
                print(f"step {clip.step}: clip {clip.clip_id} was replaced by {clip.replaced_by}: {clip.reason}")
    if rank == 0:
        held, bound = loader.peak_bytes_seen, loader.memory_bound_bytes
        print(
            f"up to step {loader.state_dict()['next_step']}; the loader took {held} bytes at most, {bound} were its bound"
        )
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
