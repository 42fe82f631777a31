"""Follow a plan with your own trainer: read batches, stop in the middle, and go on exactly there.

    python examples/planned_loader.py --plan demo/plan --samples demo/sets/64p [--rank 0 --world-size 1] [--steps 4]

The "trainer" here only adds up latents. Everything else is as it would be: one loader per rank, a batch as torch tensors, the state saved as JSON
beside the trainer's own checkpoint, and a second loader that continues from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch

from training.loader import PlannedLoader


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", required=True)
    parser.add_argument("--samples", required=True, nargs="+", help="folders or URLs of the sets that the plan reads")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args(arguments)

    loader = PlannedLoader(options.plan, options.rank, options.world_size, samples=options.samples)
    print(f"{len(loader)} steps; the loader takes at most {loader.memory_bound_bytes / 1e6:.1f} MB")
    state = follow(loader, options.steps // 2)
    print(f"stopped; all there is to save: {state}")

    again = PlannedLoader(options.plan, options.rank, options.world_size, samples=options.samples)
    again.load_state_dict(json.loads(state))
    follow(again, options.steps - options.steps // 2)


def follow(loader: PlannedLoader, steps: int) -> str:
    """Take so many steps; the loader's state after them as JSON."""
    for _, step in zip(range(steps), loader, strict=False):
        for batch in step.batches:
            latent_BTCHW = batch.latents().float()
            texts = [torch.tensor(clip.text_by_kind["long"]) for clip in batch.clips]
            print(
                f"step {step.step}, lane {batch.lane}: {len(batch.clips)} clips of {batch.bucket}, mean {latent_BTCHW.mean():+.4f}, "
                f"{sum(map(len, texts))} text tokens, waited {step.wait_ms:.2f} ms"
            )
        for replaced in step.substitutions:
            print(f"  clip {replaced.clip_id} could not be used ({replaced.reason}); {replaced.replaced_by} stands in")
    loader.close()
    return json.dumps(loader.state_dict())


if __name__ == "__main__":
    main()
