"""A trainer of one's own on a plan: `PlannedLoader` gives the clips, everything else is yours.

    python examples/planned_loader.py --plan plan --samples sets/64p --output own          # again, after any stop: goes on where it was
    torchrun --nproc-per-node 2 examples/planned_loader.py --plan plan --samples sets/64p --output own

A per-channel scale of the latents is fitted, so small that the loop stays in view: whole steps from the loader, the mean over all clips of a step
whatever the number of ranks, the loader's state beside the weights, replaced clips in a ledger. Price of the shortness: one all-reduce for each
parameter, and a checkpoint that is written while all wait.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from schemas.files import atomic_path
from training.loader import LaneBatch, LoadedStep, PlannedLoader

SAVE_EVERY = 4


def prepared(batch: LaneBatch) -> torch.Tensor:
    """A micro-batch as the network takes it; made in a thread of the loader, so that the loop does not wait for it."""
    return batch.latents().float()


def train_step(step: LoadedStep[torch.Tensor], scale_C: torch.Tensor, rate: float = 0.1) -> float:
    """One optimizer step over all micro-batches of all ranks; its loss."""
    clips, total, slope_C = torch.zeros(1), torch.zeros(1), torch.zeros_like(scale_C)
    for latent_BTCHW in step.batches:
        power_BC = latent_BTCHW.square().mean(dim=(1, 3, 4))
        gap_BC = scale_C.square() * power_BC - 1.0
        clips += len(latent_BTCHW)
        total += gap_BC.square().mean(dim=1).sum()
        slope_C += (4 * gap_BC * scale_C * power_BC).mean(dim=1, keepdim=True).expand_as(power_BC).sum(dim=0)
    for part in (clips, total, slope_C):  # sums over clips, so any number of ranks takes the same step
        if dist.is_initialized():
            dist.all_reduce(part)
    scale_C -= rate * (slope_C / clips).clamp(-1, 1)
    return float(total / clips)


def save(output: Path, scale_C: torch.Tensor, state: dict[str, object]) -> None:
    """Weights and the loader's state in one file, complete or not there."""
    with atomic_path(output / "state.safetensors") as path:
        save_file({"scale_C": scale_C}, path, metadata={"loader": json.dumps(state)})


def main() -> None:
    """Train from the saved step to the plan's end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--plan", "--samples", "--output"):
        parser.add_argument(flag, type=Path, required=True)
    parser.add_argument("--steps", type=int, help="take so many, then stop")
    options = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    loader = PlannedLoader(options.plan, rank, world_size, samples=[options.samples], prepare=prepared)
    options.output.mkdir(parents=True, exist_ok=True)
    saved = options.output / "state.safetensors"
    channels = json.loads((options.samples / "set.json").read_text())["latent_channels"]
    scale_C = torch.ones(channels)
    if saved.exists():
        scale_C = load_file(saved)["scale_C"]
        loader.load_state_dict(json.loads(_metadata(saved)["loader"]))
    taken = 0
    with closing(iter(loader)) as steps:  # leaving it early ends the loader's threads
        for step in steps:
            for gone in step.substitutions:  # damaged clips, and what took their places
                with (options.output / f"ledger-{rank}.jsonl").open("a") as ledger:
                    ledger.write(json.dumps(asdict(gone)) + "\n")
            loss = train_step(step, scale_C)
            taken += 1
            if rank == 0:
                print(f"step {step.step}: loss {loss:.9g}, waited {step.wait_ms:.1f} ms", flush=True)
            last = taken == options.steps or not len(loader)
            if rank == 0 and (last or taken % SAVE_EVERY == 0):
                save(options.output, scale_C, loader.state_dict())
            if last:
                break
    if dist.is_initialized():
        dist.destroy_process_group()


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


if __name__ == "__main__":
    main()
