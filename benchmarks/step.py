"""Forward and backward of our network against diffusers' own class with the same weights, TREAD against its ideal, the price of stored-teacher REPA.

    python benchmarks/step.py [--quick] [--json FILE] [--device cuda --dtype bfloat16]

Half the depth of the 2B network (6 dual, 8 single, 4 decoder blocks) at width 512, four buckets, captions of the lengths that the report's shares
give (long, short, first sentence). Both sides get the same noisy latents, states and weights, and agree to 1e-4 before anything is timed.
`speedup_vs_diffusers`: text as each side's own pipeline brings it: diffusers pads every caption to 512 tokens under a mask, our loader keeps real
tokens; `..._trimmed`: diffusers, too, gets no more columns than the longest caption of the micro-batch. `tread_of_ideal`: measured speed-up of half
the tokens dropped over the speed-up that the FLOP count gives. `repa_overhead`: time with a projector and cosine loss over time without, minus 1.
Rounds alternate between the sides; the best round of each counts. `..._least` is the least favourable of the buckets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_table import Row, row, show, write
from torch import Tensor, nn

from schemas.buckets import Bucket
from schemas.model_shape import ModelShape
from training.alignment import AlignmentProjector
from training.initialization import build_model, initialize_weights
from training.interop import diffusers_config, to_diffusers
from training.routing import Route, RouteSpec

PADDED_TOKENS = 512
"""What diffusers' Motif pipeline pads a caption to."""
TEACHER_WIDTH = 320
CPU_SHAPE = ModelShape(
    width=512,
    heads=4,
    dual_blocks=6,
    single_blocks=8,
    decoder_blocks=4,
    sca_query_norm=False,
    image_width=None,
)
CPU_BUCKETS = ((Bucket(1, 144, 256), 8), (Bucket(1, 368, 640), 2), (Bucket(33, 64, 112), 4), (Bucket(33, 144, 256), 1))
GPU_SHAPE = ModelShape(sca_query_norm=False, image_width=None)
GPU_BUCKETS = (
    (Bucket(1, 144, 256), 32),
    (Bucket(33, 144, 256), 4),
    (Bucket(65, 144, 256), 2),
    (Bucket(33, 368, 640), 1),
)
QUICK_BUCKETS = tuple((Bucket(frames, 64, 112), clips) for frames, clips in ((1, 8), (1, 4), (33, 2), (33, 1)))


@dataclass(frozen=True)
class Inputs:
    """One micro-batch."""

    latent_BCTYX: Tensor
    timestep_B: Tensor
    text_BED: Tensor
    """Padded to 512."""
    mask_BE: Tensor
    """On the CPU, as the loader has it."""
    teacher_BLF: Tensor
    bucket: Bucket

    @property
    def longest(self) -> int:
        """Real tokens of the longest caption."""
        return int(self.mask_BE.sum(dim=1).max())


def caption_tokens(rng: np.random.Generator) -> int:
    """Tokens of a caption: long 150 to 250 words in half of the draws, short 15 to 25, or a sentence of 20 to 35; 1.3 tokens a word."""
    low, high = ((150, 250), (15, 25), (20, 35))[int(rng.choice(3, p=[0.5, 0.3, 0.2]))]
    return min(PADDED_TOKENS, round(1.3 * int(rng.integers(low, high + 1))))


def inputs(shape: ModelShape, bucket: Bucket, clips: int, device: str, dtype: torch.dtype) -> Inputs:
    """Random latents and states, the same in every run."""
    rng = np.random.default_rng([bucket.video_tokens, clips])

    def normal(*size: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(size, dtype=np.float32)).to(device, dtype)

    lengths = torch.tensor([caption_tokens(rng) for _ in range(clips)])
    return Inputs(
        latent_BCTYX=normal(clips, shape.in_channels, *bucket.latent_shape),
        timestep_B=torch.linspace(950.0, 50.0, clips, device=device),
        text_BED=normal(clips, PADDED_TOKENS, shape.text_width),
        mask_BE=torch.arange(PADDED_TOKENS)[None] < lengths[:, None],
        teacher_BLF=normal(clips, bucket.video_tokens, TEACHER_WIDTH),
        bucket=bucket,
    )


class Bench:
    """Both networks with the same weights, moved off their start so that every path counts."""

    def __init__(self, shape: ModelShape, device: str, dtype: torch.dtype) -> None:
        from diffusers import MotifVideoTransformer3DModel

        self.shape = shape
        self.ours = build_model(shape, seed=0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.ours.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        self.theirs = MotifVideoTransformer3DModel(**diffusers_config(shape))
        self.theirs.load_state_dict(to_diffusers(self.ours.state_dict(), shape))
        self.projector = AlignmentProjector(shape.width, TEACHER_WIDTH, 2048 * shape.width // 1536)
        initialize_weights(self.projector, 0)
        for module in (self.ours, self.theirs, self.projector):
            module.to(device, dtype).train()

    def run_ours(self, given: Inputs, route: Route | None = None, *, tap: int | None = None) -> Tensor:
        """Our velocity; text as the loader brings it. With a tap, the alignment loss is added to the first element."""
        longest = given.longest
        out = self.ours(
            given.latent_BCTYX,
            given.timestep_B,
            given.text_BED[:, :longest],
            given.mask_BE[:, :longest],
            route=route,
            tap=tap,
        )
        if tap is None:
            return out.velocity_BCTYX
        cosine = nn.functional.cosine_similarity(
            self.projector(out.tapped_BLD).float(), given.teacher_BLF.float(), dim=-1
        )
        return out.velocity_BCTYX + (1 - cosine).mean()

    def run_theirs(self, given: Inputs, tokens: int) -> Tensor:
        """diffusers' velocity with that many text columns."""
        mask = given.mask_BE[:, :tokens].to(given.latent_BCTYX.device)
        velocity: Tensor = self.theirs(given.latent_BCTYX, given.timestep_B, given.text_BED[:, :tokens], mask).sample
        return velocity

    def seconds(self, run: Callable[[], Tensor]) -> float:
        """Forward, a loss, backward."""
        for module in (self.ours, self.theirs, self.projector):
            module.zero_grad(set_to_none=True)
        _wait()
        start = time.perf_counter()
        run().float().square().mean().backward()
        _wait()
        return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def best(bench: Bench, runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """The fastest of some rounds for each, after one that does not count; sides take turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = bench.seconds(run)
            if number:
                found[name].append(spent)
    return {name: min(values) for name, values in found.items()}


def measure(bench: Bench, given: Inputs, clips: int, rounds: int) -> dict[str, float]:
    """Ratios of one bucket."""
    shape, model = bench.shape, bench.ours
    spec = RouteSpec(start=1, end=shape.encoder_blocks - 2, drop_ratio=0.5)
    ids = [str(index) for index in range(clips)]
    drawn = spec.for_clips(seed=0, step=0, clip_ids=ids, num_tokens=given.bucket.video_tokens)
    route = Route(start=drawn.start, end=drawn.end, kept_BK=drawn.kept_BK.to(given.latent_BCTYX.device))
    tap = shape.encoder_blocks // 3
    times = best(
        bench,
        {
            "ours": lambda: bench.run_ours(given),
            "padded": lambda: bench.run_theirs(given, PADDED_TOKENS),
            "trimmed": lambda: bench.run_theirs(given, given.longest),
            "routed": lambda: bench.run_ours(given, route),
            "aligned": lambda: bench.run_ours(given, tap=tap),
        },
        rounds,
    )
    lengths = given.mask_BE.sum(dim=1).tolist()
    flops = [
        sum(shape.forward_flops(given.bucket.video_tokens, n, route=r).total for n in lengths)
        for r in (None, (1, shape.encoder_blocks - 2, 0.5))
    ]
    model.zero_grad(set_to_none=True)
    return {
        "speedup_vs_diffusers": times["padded"] / times["ours"],
        "speedup_vs_diffusers_trimmed": times["trimmed"] / times["ours"],
        "tread_of_ideal": (times["ours"] / times["routed"]) / (flops[0] / flops[1]),
        "repa_overhead": times["aligned"] / times["ours"] - 1,
        "tflops_per_s": 3 * flops[0] / times["ours"] / 1e12,
    }


METRICS: dict[str, dict[str, Any]] = {
    "speedup_vs_diffusers": {"unit": "times", "goal": 1.25, "better": "higher"},
    "speedup_vs_diffusers_trimmed": {"unit": "times", "goal": None, "better": "higher"},
    "tread_of_ideal": {"unit": "of the FLOPs' speed-up", "goal": 0.9, "better": "higher"},
    "repa_overhead": {"unit": "of a step", "goal": 0.03, "better": "lower"},
    "tflops_per_s": {"unit": "TFLOP/s", "goal": None, "better": "higher"},
}


def rows_of(found: dict[str, dict[str, float]]) -> list[Row]:
    """Every bucket, and first of all the least favourable one."""
    rows = []
    for metric, words in METRICS.items():
        values = {name: ratios[metric] for name, ratios in found.items()}
        least = min(values.values()) if words["better"] == "higher" else max(values.values())
        if words["goal"] is not None:
            rows.append(row(f"{metric}_least", least, words["unit"], goal=words["goal"], better=words["better"]))
        mean = (
            float(np.exp(np.mean(np.log(list(values.values())))))
            if min(values.values()) > 0
            else float(np.mean(list(values.values())))
        )
        rows.append(row(metric, mean, f"{words['unit']}, mean", goal=words["goal"], better=words["better"]))
        rows += [
            row(f"{metric} {name}", value, words["unit"], goal=None, better=words["better"])
            for name, value in values.items()
        ]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small buckets, one round")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    shape = CPU_SHAPE if not on_gpu else GPU_SHAPE
    buckets, rounds = (QUICK_BUCKETS, 1) if arguments.quick else (GPU_BUCKETS, 5) if on_gpu else (CPU_BUCKETS, 3)
    dtype = getattr(torch, arguments.dtype)
    bench = Bench(shape, arguments.device, dtype)
    found = {}
    for bucket, clips in buckets:
        given = inputs(shape, bucket, clips, arguments.device, dtype)
        with torch.no_grad():
            difference = (bench.run_ours(given) - bench.run_theirs(given, PADDED_TOKENS)).abs().max().item()
        assert difference < (1e-4 if dtype is torch.float32 else 0.5), (
            f"{bucket}: the two networks differ by {difference}"
        )
        name = f"{bucket} x {clips}"
        found[name] = measure(bench, given, clips, rounds)
        print(name, {key: round(value, 3) for key, value in found[name].items()}, flush=True)
    rows = rows_of(found)
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
