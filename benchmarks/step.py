"""Forward and backward of our network against diffusers' own class with the same weights, TREAD against its ideal, the price of stored-teacher REPA.

    python benchmarks/step.py [--quick] [--json FILE] [--device cuda --dtype bfloat16]

Four buckets, captions of the lengths that the report's shares give (long, short, first sentence). Both sides get the same noisy latents, states
and weights, and agree before anything is timed. `speedup_vs_diffusers`: text as each side's own pipeline brings it: diffusers pads every caption
to 512 tokens under a mask, our loader keeps real tokens. `..._trimmed`: diffusers gets no more columns than the longest caption of a row,
and no mask where none is shorter. `..._unpadded`: all captions equally long, no mask on either side, so that only the code differs.
`tread_of_ideal`: speed-up of the training network with half the tokens dropped over the speed-up that the FLOP count gives. `repa_overhead`: the
training network with projector and cosine loss over the same without, minus 1. Every round takes all sides in turn; a figure is the median of
the rounds' ratios, `..._spread` the largest minus the smallest, `..._least` the least favourable bucket. On a CPU the comparison with diffusers
has a quarter of the 2B network's depth at width 512, TREAD and REPA half of it; on CUDA both have the 2B network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_table import Row, row, show, write
from torch import Tensor, nn

from schemas.buckets import Bucket
from schemas.model_shape import ModelShape
from training.batch import TrainingBatch
from training.config import RepaConfig, TrainConfig, TreadConfig
from training.dit.initialization import build_model, initialize_weights
from training.dit.model import MotifVideoDiT
from training.interop import diffusers_config, to_diffusers
from training.network import TrainingNetwork, build_network
from training.profiling import random_batch

PADDED_TOKENS = 512
"""What diffusers' Motif pipeline pads a caption to."""
TEACHER_WIDTH = 320
CPU_SHAPE = ModelShape(
    width=512, heads=4, dual_blocks=3, single_blocks=4, decoder_blocks=2, sca_query_norm=False, image_width=None
)
CPU_DEEPER = CPU_SHAPE.model_copy(update={"dual_blocks": 6, "single_blocks": 8, "decoder_blocks": 4})
CPU_BUCKETS = ((Bucket(1, 144, 256), 8), (Bucket(1, 368, 640), 2), (Bucket(33, 64, 112), 4), (Bucket(33, 144, 256), 1))
GPU_SHAPE = ModelShape(sca_query_norm=False, image_width=None)
GPU_BUCKETS = (
    (Bucket(1, 144, 256), 32),
    (Bucket(33, 144, 256), 8),
    (Bucket(65, 144, 256), 4),
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
        bucket=bucket,
    )


class Sides:
    """Both networks with the same weights, moved off their start so that every path counts."""

    def __init__(self, shape: ModelShape, device: str, dtype: torch.dtype) -> None:
        from diffusers import MotifVideoTransformer3DModel

        self.ours = moved(build_model(shape, seed=0))
        self.theirs = MotifVideoTransformer3DModel(**diffusers_config(shape))
        self.theirs.load_state_dict(to_diffusers(self.ours.state_dict(), shape))
        for module in (self.ours, self.theirs):
            module.to(device, dtype).train()

    def run_ours(self, given: Inputs, lengths: Tensor | None = None) -> Tensor:
        """Our velocity; text as the loader brings it."""
        text, mask = texts(given, given.longest if lengths is None else int(lengths.max()), lengths)
        return self.ours(given.latent_BCTYX, given.timestep_B, text, mask).velocity_BCTYX

    def run_theirs(self, given: Inputs, columns: int, lengths: Tensor | None = None) -> Tensor:
        """diffusers' velocity with that many text columns."""
        text, mask = texts(given, columns, lengths)
        on_device = None if mask is None else mask.to(text.device)
        velocity: Tensor = self.theirs(given.latent_BCTYX, given.timestep_B, text, on_device).sample
        return velocity


def texts(given: Inputs, columns: int, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The first columns of the states, and the mask unless all of it is real."""
    mask_BE = given.mask_BE if lengths is None else torch.arange(PADDED_TOKENS)[None] < lengths[:, None]
    mask_BE = mask_BE[:, :columns]
    return given.text_BED[:, :columns], None if bool(mask_BE.all()) else mask_BE


def moved(module: MotifVideoDiT) -> MotifVideoDiT:
    """Away from the start, where zero gates hide most of the network."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return module


def seconds(run: Callable[[], Tensor], modules: Sequence[nn.Module]) -> float:
    """Forward and backward of a loss."""
    for module in modules:
        module.zero_grad(set_to_none=True)
    _wait()
    start = time.perf_counter()
    run().backward()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rounds_of(
    runs: dict[str, Callable[[], Tensor]], modules: Sequence[nn.Module], rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of each round, after one that does not count; every round takes all sides in turn."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = seconds(run, modules)
            if number:
                found[name].append(spent)
    return {name: np.array(values) for name, values in found.items()}


def against_diffusers(sides: Sides, given: Inputs, rounds: int) -> dict[str, np.ndarray]:
    """Ratios of each round, theirs over ours."""
    even = torch.full((len(given.mask_BE),), 128)

    def loss(velocity: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: velocity().float().square().mean()

    times = rounds_of(
        {
            "ours": loss(lambda: sides.run_ours(given)),
            "padded": loss(lambda: sides.run_theirs(given, PADDED_TOKENS)),
            "trimmed": loss(lambda: sides.run_theirs(given, given.longest)),
            "ours even": loss(lambda: sides.run_ours(given, even)),
            "theirs even": loss(lambda: sides.run_theirs(given, 128, even)),
        },
        (sides.ours, sides.theirs),
        rounds,
    )
    return {
        "speedup_vs_diffusers": times["padded"] / times["ours"],
        "speedup_vs_diffusers_trimmed": times["trimmed"] / times["ours"],
        "speedup_vs_diffusers_unpadded": times["theirs even"] / times["ours even"],
    }


def of_training(
    shape: ModelShape, bucket: Bucket, clips: int, device: str, dtype: torch.dtype, rounds: int
) -> dict[str, np.ndarray]:
    """TREAD and REPA in the training network, on micro-batches of the maker that training uses."""
    first, last = 1, shape.encoder_blocks - 2
    tread = TreadConfig(start_block=first, end_block=last, drop_ratio=0.5)
    repa = RepaConfig(tap_block=shape.encoder_blocks // 3, weight=0.5, hidden_width=2048 * shape.width // 1536)
    dense = TrainConfig(model=shape)
    widths = {"efficientnet_lite0": TEACHER_WIDTH}
    dit = moved(build_model(shape, seed=0))
    projectors = build_network(dense.model_copy(update={"repa": repa}), widths).projectors.to_empty(device="cpu")
    initialize_weights(projectors, 0)
    aligned = TrainingNetwork(dit, dict(projectors.items()), repa.tap_block).to(device, dtype).train()
    plain = TrainingNetwork(dit, {}, None).train()

    def batch(config: TrainConfig) -> TrainingBatch:
        return random_batch(config, bucket, clips, 128, widths).to(torch.device(device))

    batches = [
        batch(dense),
        batch(dense.model_copy(update={"tread": tread})),
        batch(dense.model_copy(update={"repa": repa})),
    ]

    def with_alignment() -> Tensor:
        losses = aligned(batches[2])
        assert losses.repa_total is not None
        return losses.flow_total + 0.5 * losses.repa_total

    times = rounds_of(
        {
            "dense": lambda: plain(batches[0]).flow_total,
            "routed": lambda: plain(batches[1]).flow_total,
            "aligned": with_alignment,
        },
        (aligned,),
        rounds,
    )
    tokens = bucket.video_tokens
    flops = [shape.forward_flops(tokens, 128, route=route).total for route in (None, (first, last, 0.5))]
    return {
        "tread_of_ideal": times["dense"] / times["routed"] / (flops[0] / flops[1]),
        "repa_overhead": times["aligned"] / times["dense"] - 1,
        "tflops_per_s": 3 * clips * flops[0] / times["dense"] / 1e12,
    }


METRICS: dict[str, dict[str, Any]] = {
    "speedup_vs_diffusers": {"unit": "times", "goal": 1.25, "better": "higher"},
    "speedup_vs_diffusers_trimmed": {"unit": "times", "goal": None, "better": "higher"},
    "speedup_vs_diffusers_unpadded": {"unit": "times", "goal": None, "better": "higher"},
    "tread_of_ideal": {"unit": "of the FLOPs' speed-up", "goal": 0.9, "better": "higher"},
    "repa_overhead": {"unit": "of a step", "goal": 0.03, "better": "lower"},
    "tflops_per_s": {"unit": "TFLOP/s", "goal": None, "better": "higher"},
}


def rows_of(found: dict[str, dict[str, np.ndarray]]) -> list[Row]:
    """The least favourable bucket of what has a goal, then every bucket with its spread."""
    rows = []
    for metric, words in METRICS.items():
        values = {name: float(np.median(ratios[metric])) for name, ratios in found.items()}
        least = min(values.values()) if words["better"] == "higher" else max(values.values())
        if words["goal"] is not None:
            rows.append(row(f"{metric}_least", least, words["unit"], goal=words["goal"], better=words["better"]))
            middle = float(np.median(list(values.values())))
            rows.append(row(metric, middle, f"{words['unit']}, median", goal=words["goal"], better=words["better"]))
        for name, value in values.items():
            rows.append(row(f"{metric} {name}", value, words["unit"], goal=None, better=words["better"]))
            spread = float(np.ptp(found[name][metric]))
            rows.append(row(f"{metric}_spread {name}", spread, words["unit"], goal=None, better="lower"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small buckets, one round")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    on_gpu, dtype = arguments.device == "cuda", getattr(torch, arguments.dtype)
    shape, deeper = (GPU_SHAPE, GPU_SHAPE) if on_gpu else (CPU_SHAPE, CPU_SHAPE if arguments.quick else CPU_DEEPER)
    buckets, rounds = (QUICK_BUCKETS, 1) if arguments.quick else (GPU_BUCKETS, 9) if on_gpu else (CPU_BUCKETS, 5)
    limit = 1e-5 if dtype is torch.float32 else 0.05
    found: dict[str, dict[str, np.ndarray]] = {}
    sides = Sides(shape, arguments.device, dtype)
    for bucket, clips in buckets:
        given = inputs(shape, bucket, clips, arguments.device, dtype)
        with torch.no_grad():
            theirs = sides.run_theirs(given, PADDED_TOKENS).float()
            difference = ((sides.run_ours(given).float() - theirs).norm() / theirs.norm()).item()
        assert difference < limit, f"{bucket}: the two networks differ by {difference} of the velocity"
        found[f"{bucket} x {clips}"] = against_diffusers(sides, given, rounds)
    del sides
    for bucket, clips in buckets:
        name = f"{bucket} x {clips}"
        found[name] |= of_training(deeper, bucket, clips, arguments.device, dtype, rounds)
        print(name, {key: round(float(np.median(value)), 3) for key, value in found[name].items()}, flush=True)
    rows = rows_of(found)
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
