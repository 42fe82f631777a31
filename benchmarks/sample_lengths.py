"""Seconds and memory of sampling at 121 frames and beyond, beside what the analytic count of operations says.

    python benchmarks/sample_lengths.py [--quick] [--json FILE] [--device auto|cpu|cuda] [--lengths 121,161,201,241] [--size HEIGHTxWIDTH]

The sampler's own loop (`training.sampling`) runs with classifier-free guidance, two passes a step, over a network of random weights: times and
memory do not depend on the weights. On CUDA it is the 2B network in bf16 at 480x832 (`--quick`: 144p), on a CPU a small one in fp32 at 64x112.
`time_over_flops`: how the time of a pass grew from the first length to the last, over how the operations grew; attention grows with the
square of the frames, so 1.0 is what the hardware's arithmetic allows. Drift is not measured here, for it needs trained weights:
`reelyard-train evaluate lengths`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from bench_table import Row, row, show, write

from schemas.model_shape import MOTIF_2B, ModelShape
from training.dit.model import MotifVideoDiT
from training.evaluation.peak_memory import peak_memory
from training.parallel import choose_device, choose_precision
from training.sampler_config import LatentSize, SamplerConfig
from training.sampling import Conditions, Velocity, sample_latents, velocity_of

TEXT_TOKENS, NULL_TOKENS, NUM_STEPS = 153, 2, 2
SMALL = ModelShape(
    width=192,
    heads=4,
    head_width=48,
    dual_blocks=3,
    single_blocks=4,
    decoder_blocks=2,
    text_width=384,
    image_width=None,
    rope_axes=(8, 20, 20),
)


def main() -> None:
    """Measure every length, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--lengths", default="121,161,201,241")
    parser.add_argument("--size", help="HEIGHTxWIDTH in pixels")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    shape, size = (SMALL, "64x112") if device.type == "cpu" else (MOTIF_2B, "144x256" if arguments.quick else "480x832")
    height, width = map(int, (arguments.size or size).split("x"))
    velocity = velocity_of(random_network(shape, device))
    rows: list[Row] = []
    for frames in map(int, arguments.lengths.split(",")):
        rows += measure(velocity, shape, LatentSize(frames, height, width), device)
    rows.append(growth(rows))
    show(rows)
    write(arguments.json, rows)


def random_network(shape: ModelShape, device: torch.device) -> MotifVideoDiT:
    """Weights of a plausible size, made on the device."""
    with torch.device("meta"):
        network = MotifVideoDiT(shape)
    network.to(choose_precision("auto", device)).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.02, generator=generator)
    return network.eval()


def measure(velocity: Velocity, shape: ModelShape, size: LatentSize, device: torch.device) -> list[Row]:
    """One length: a warm-up step, then two steps."""
    texts = [
        np.random.default_rng(0).standard_normal((count, shape.text_width)) for count in (TEXT_TOKENS, NULL_TOKENS)
    ]
    conditions = Conditions(texts=[texts[0].astype(np.float16)], null_text_ED=texts[1].astype(np.float16))

    def run(num_steps: int) -> float:
        started = time.perf_counter()
        sample_latents(
            velocity,
            conditions,
            size,
            SamplerConfig(num_steps=num_steps),
            channels=shape.out_channels,
            shift=1.0,
            seeds=[0],
            device=device,
        )
        return time.perf_counter() - started

    run(1)
    with peak_memory(device) as peak:
        # The noise is drawn in both, so the difference of the two is passes alone.
        seconds = (run(1 + NUM_STEPS) - run(1)) / (2 * NUM_STEPS)
    flops = shape.forward_flops(size.video_tokens, TEXT_TOKENS).total
    name = f"{size.frames} frames of {size.width}x{size.height}"
    rows = [
        row(f"{name}: a pass", seconds, "s", goal=None, better="lower"),
        row(f"{name}: operations of a pass", flops / 1e12, "TFLOP", goal=None, better="lower"),
        row(f"{name}: rate", flops / seconds / 1e12, "TFLOP/s", goal=None, better="higher"),
    ]
    if peak.bytes is not None:
        rows.append(row(f"{name}: peak memory", peak.bytes / 1e9, "GB, weights and all", goal=None, better="lower"))
    return rows


def growth(rows: list[Row]) -> Row:
    """Growth of the time over growth of the operations, from the first length to the last."""
    seconds, flops = (
        [line["value"] for line in rows if line["metric"].endswith(ending)] for ending in (": a pass", "of a pass")
    )
    grown = (seconds[-1] / seconds[0]) / (flops[-1] / flops[0])
    return row("time_over_flops", grown, "growth over growth", goal=1.25, better="lower")


if __name__ == "__main__":
    main()
