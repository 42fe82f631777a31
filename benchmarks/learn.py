"""Does it learn: a small network memorises eight real clips, sampled back from noise, from text and from a first frame; TREAD and REPA by effect.

    python benchmarks/learn.py [--quick] [--json FILE] [--sheet FILE] [--curves FILE]

Eight clips of 17 frames at 96x96 (five latent frames, 180 video tokens) from films that PyPI packages ship, DCT latents, MiniLM text states,
EfficientNet features; the network, losses, optimizer, averages and sampler are those of `training/`. `sample_psnr_db`: averaged weights, 30
Euler steps from noise with each clip's caption alone, against that clip's decoded latent, mean of the eight; `..._least` the worst of them.
Recorded earlier, not in the same run: 18.2 dB by diffusers' own model of 14.5 M parameters on such clips, in 13 minutes of two cores.
`text_picks`: samples that lie nearest to the clip of their caption. `first_frame_psnr_db`: frame 0 of samples whose first frame was given.
`tread_loss_ratio` and `repa_loss_ratio`: the dense loss at fixed noise and times after the same seconds of training, with the method over
without (below 1 it helps); `..._at_equal_steps` the same after the same steps; `seed_loss_ratio` is what another seed alone does. One short run
each, so a difference like the seed's says nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from bench_table import row, show, write
from torch import Tensor, nn

from schemas.model_shape import ModelShape
from training import randomness
from training.alignment import AlignmentProjector, TeacherFeatures, alignment_loss
from training.batch import pad_texts
from training.config import OptimizerConfig
from training.dit.initialization import build_model, initialize_weights
from training.dit.model import MotifVideoDiT
from training.dit.routing import RouteSpec
from training.flow import flow_loss, interpolate, model_input, sample_sigma, timestep_of
from training.optimizing.ema import WeightAverages
from training.optimizing.learning_rate import learning_rate
from training.optimizing.optimizer import build_optimizer
from training.sampler_config import LatentSize, SamplerConfig
from training.sampling import Conditions, sample_latents, velocity_of

FRAMES, SIDE = 17, 96
CLIPS = (
    ("bikes", 4, "a brown block slides along a wide grey ramp seen from above"),
    ("bikes", 52, "the roof of a taxi rises in front of blurred lights at dusk"),
    ("bikes", 112, "a cyclist with a helmet stands beside a tram with an orange light"),
    ("bikes", 150, "an old city street with parked cars behind a dark railing"),
    ("bikes", 190, "a man in black walks past a bicycle and a stone bollard"),
    ("bigbuckbunny", 60, "a fat white cartoon rabbit stretches in a green meadow"),
    ("carphone", 20, "a young man with a bow tie talks in the back of a car"),
    ("multi_shot", 1450, "a singer in a dark jacket stands before a purple wall"),
)


@dataclass(frozen=True)
class Data:
    """What is learnt, N clips."""

    latents_NTCYX: Tensor
    texts: list[np.ndarray]
    """(tokens, width) each."""
    teachers_NLF: Tensor
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    shape: ModelShape
    steps: int
    lr: float
    warmup_steps: int = 20
    decay_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    ema: float = 0.99
    copies: int = 1
    """Draws of noise and time for each clip in a step."""
    density: str = "logit_normal"
    shift: float = 1.0
    i2v: float = 0.3
    text_dropout: float = 0.0
    route: RouteSpec | None = None
    repa: tuple[int, float, int] | None = None
    """Tapped block, weight, hidden width of the projector."""
    seed: int = 0


def shape_of(
    width: int, heads: int, dual: int, single: int, decoder: int, axes: tuple[int, int, int], text_width: int = 384
) -> ModelShape:
    """A small network with every kind of block."""
    return ModelShape(
        width=width,
        heads=heads,
        head_width=width // heads,
        dual_blocks=dual,
        single_blocks=single,
        decoder_blocks=decoder,
        text_width=text_width,
        image_width=None,
        rope_axes=axes,
        timestep_width=128,
    )


class Trainer:
    """The parts of `training/`, put together for a handful of clips that stay in memory."""

    def __init__(self, data: Data, recipe: Recipe, device: str = "cpu") -> None:
        self.data, self.recipe, self.device = data, recipe, device
        self.dit = build_model(recipe.shape, seed=recipe.seed, device=device)
        modules: dict[str, nn.Module] = {"dit": self.dit}
        if recipe.repa is not None:
            projector = AlignmentProjector(recipe.shape.width, data.teachers_NLF.shape[-1], recipe.repa[2])
            initialize_weights(projector, recipe.seed)
            modules["projector"] = projector.to(device)
        self.network = nn.ModuleDict(modules)
        self.optimizer_config = OptimizerConfig(
            lr=recipe.lr,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup_steps,
            decay_steps=recipe.decay_steps,
        )
        self.optimizer = build_optimizer(self.network, self.optimizer_config)
        self.averages = WeightAverages(dict(self.dit.named_parameters()), [recipe.ema])
        self.latents_NCTYX = data.latents_NTCYX.transpose(1, 2).float().to(device)
        self.seconds = 0.0

    def step(self, number: int) -> None:
        """One step over all clips."""
        recipe, started = self.recipe, time.perf_counter()
        keys = [f"clip-{index}-{copy}" for copy in range(recipe.copies) for index in range(len(self.data.texts))]
        clean = self.latents_NCTYX.repeat(recipe.copies, 1, 1, 1, 1)
        noise = randomness.noise(recipe.seed, number, keys, tuple(clean.shape[1:])).to(self.device)
        sigma_B = sample_sigma(
            randomness.uniform(recipe.seed, number, keys, "timestep"), density=recipe.density, shift=recipe.shift
        ).to(self.device)
        given_B = randomness.chance(recipe.seed, number, keys, "image_to_video", recipe.i2v)
        text_BED, mask_BE = pad_texts(self.data.texts * recipe.copies)
        route = None
        if recipe.route is not None:
            route = recipe.route.for_clips(
                seed=recipe.seed, step=number, clip_ids=keys, num_tokens=self.data.teachers_NLF.shape[1]
            )
            route = replace(route, kept_BK=route.kept_BK.to(self.device))
        self.dit.train()
        output = self.dit(
            model_input(interpolate(clean, noise, sigma_B), clean, given_B),
            timestep_of(sigma_B),
            text_BED.to(self.device),
            mask_BE,
            route=route,
            tap=None if recipe.repa is None else recipe.repa[0],
        )
        loss = flow_loss(output.velocity_BCTYX, clean, noise).total / len(keys)
        if recipe.repa is not None:
            loss = loss + recipe.repa[1] * self._alignment(output.tapped_BLD, output.kept_BK)
        loss.backward()
        self.optimizer.step_alone(learning_rate(self.optimizer_config, number))
        self.averages.update(number)
        self.seconds += time.perf_counter() - started

    def _alignment(self, tapped_BLD: Tensor, kept_BK: Tensor | None) -> Tensor:
        """Mean over the clips of one minus the cosine."""
        teacher = TeacherFeatures(
            rows_N=torch.arange(len(tapped_BLD), device=self.device),
            features_NLC=self.data.teachers_NLF.to(self.device).repeat(self.recipe.copies, 1, 1),
        )
        aligned = alignment_loss(self.network["projector"], tapped_BLD, teacher, kept_BK)
        return aligned.total / len(tapped_BLD)

    def averaged(self) -> MotifVideoDiT:
        """The averaged network, in evaluation."""
        model = build_model(self.recipe.shape, seed=0, device=self.device)
        model.load_state_dict(self.averages.averages[self.recipe.ema])
        return model.eval()


@torch.inference_mode()
def dense_loss(model: MotifVideoDiT, data: Data, *, times: int = 8, given: bool = False) -> float:
    """Mean squared velocity error at fixed noise and evenly spaced times, all tokens."""
    device = next(model.parameters()).device
    clean = data.latents_NTCYX.transpose(1, 2).float().to(device)
    keys = [f"clip-{index}" for index in range(len(clean))]
    text_BED, mask_BE = pad_texts(data.texts)
    given_B = torch.full((len(keys),), given)
    losses = []
    for index in range(times):
        noise = randomness.noise(991, index, keys, tuple(clean.shape[1:])).to(device)
        sigma_B = torch.full((len(keys),), (index + 0.5) / times, dtype=torch.float64, device=device)
        noisy = model_input(interpolate(clean, noise, sigma_B), clean, given_B)
        velocity = model(noisy, timestep_of(sigma_B), text_BED.to(device), mask_BE).velocity_BCTYX
        losses.append(flow_loss(velocity, clean, noise).total.item() / len(keys))
    return float(np.mean(losses))


def sample(model: MotifVideoDiT, data: Data, *, given: bool) -> Tensor:
    """One latent (T, C, Y, X) for each caption, from noise, with the first frame given or not."""
    conditions = Conditions(
        texts=data.texts,
        null_text_ED=data.texts[0],
        first_frame_BCYX=data.latents_NTCYX[:, 0].float() if given else None,
    )
    return sample_latents(
        velocity_of(model),
        conditions,
        LatentSize(FRAMES, SIDE, SIDE),
        SamplerConfig.model_validate({"num_steps": 30, "guidance": 1.0, "low_pass": {"share": 0.0}}),
        channels=data.latents_NTCYX.shape[2],
        shift=1.0,
        seeds=list(range(77, 77 + len(data.texts))),
        device=next(model.parameters()).device,
    )


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of uint8 pictures, in dB."""
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-9)))


def decoded(latents_NTCYX: Tensor) -> list[np.ndarray]:
    """Pixels (T, H, W, 3) of each latent."""
    from encoders.dct import DctCodec

    codec = DctCodec()
    return [codec.decode(latent.numpy().astype(np.float16)) for latent in latents_NTCYX]


def picks(samples: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> int:
    """Samples nearest to the clip of their own caption."""
    return sum(int(np.argmax([psnr(one, truth) for truth in truths])) == index for index, one in enumerate(samples))


def load_data() -> tuple[Data, list[np.ndarray]]:
    """The eight clips as latents, text states and teacher features, and their pixels."""
    import av
    import cv2

    from encoders.dct import DctCodec
    from encoders.registry import fetch_many
    from encoders.teacher import get_teacher
    from encoders.text import get_text_encoder

    fetch_many(["text.minilm", "teacher.efficientnet_lite0"])
    media = fetch_many(sorted({f"media.{name}" for name, _, _ in CLIPS}))
    codec, encoder, teacher = DctCodec(), get_text_encoder("minilm"), get_teacher("efficientnet_lite0")
    pixels = []
    for name, first, _ in CLIPS:
        with av.open(str(media[f"media.{name}"])) as container:
            decoded_frames = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
            frames = [
                frame for index, frame in zip(range(first + FRAMES), decoded_frames, strict=False) if index >= first
            ]
        height, width = frames[0].shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        method = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
        squares = [frame[top : top + side, left : left + side] for frame in frames]
        pixels.append(np.stack([cv2.resize(square, (SIDE, SIDE), interpolation=method) for square in squares]))
    captions = tuple(caption for _, _, caption in CLIPS)
    data = Data(
        latents_NTCYX=torch.from_numpy(np.stack([codec.encode(clip) for clip in pixels])).float(),
        texts=encoder.encode(list(captions)),
        teachers_NLF=torch.from_numpy(
            np.stack([features.reshape(-1, features.shape[-1]) for features in map(teacher.features, pixels)])
        ),
        captions=captions,
    )
    return data, pixels


Curve = list[tuple[int, float, float]]
"""(steps done, seconds of training, dense loss of the averaged weights)."""


def train(data: Data, recipe: Recipe, *, stop: int, every: int, label: str) -> tuple[Trainer, Curve]:
    """Train to step `stop`, with the dense loss every so often; evaluating is not in the seconds."""
    trainer, curve = Trainer(data, recipe), []
    for number in range(stop):
        trainer.step(number)
        if (number + 1) % every == 0 or number + 1 == stop:
            curve.append((number + 1, trainer.seconds, dense_loss(trainer.averaged(), data)))
            print(f"{label}: step {number + 1}, {trainer.seconds:.0f} s, dense loss {curve[-1][2]:.4f}", flush=True)
    return trainer, curve


def loss_at(curve: Curve, seconds: float) -> float:
    """The curve at a time, a line between its points."""
    return float(np.interp(seconds, [point[1] for point in curve], [point[2] for point in curve]))


def compare(base: Curve, other: Curve) -> tuple[float, float]:
    """Dense loss over the base's: after the same seconds, and after the same steps (at the last that both have)."""
    seconds = min(base[-1][1], other[-1][1])
    steps = sorted({point[0] for point in base} & {point[0] for point in other})[-1]
    at_steps = [next(point[2] for point in curve if point[0] == steps) for curve in (other, base)]
    return loss_at(other, seconds) / loss_at(base, seconds), at_steps[0] / at_steps[1]


def write_curves(path: Path, curves: dict[str, Curve]) -> None:
    """Dense loss of the averaged weights over seconds of training, one line for each run."""
    width, height, margin = 640, 320, 40
    longest = max(point[1] for curve in curves.values() for point in curve)
    highest = max(point[2] for curve in curves.values() for point in curve)
    parts = []
    for index, (name, curve) in enumerate(curves.items()):
        colour = ("#1f4e9c", "#c2571a", "#2b7d3f", "#888888")[index % 4]
        points = " ".join(
            f"{margin + (width - 2 * margin) * seconds / longest:.1f},{height - margin - (height - 2 * margin) * loss / highest:.1f}"
            for _, seconds, loss in curve
        )
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        parts.append(f'<text x="{width - 130}" y="{30 + 18 * index}" fill="{colour}">{name}</text>')
    axes = (
        f'<path d="M{margin} {margin}V{height - margin}H{width - margin}" fill="none" stroke="#444"/>'
        f'<text x="{margin}" y="{height - 12}">0 to {longest:.0f} s of training</text>'
        f'<text x="{margin}" y="{margin - 12}">dense loss, 0 to {highest:.2f}</text>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">'
    path.write_text(
        f'{head}<rect width="100%" height="100%" fill="#fff"/>{axes}{"".join(parts)}</svg>\n', encoding="utf-8"
    )


def write_sheet(path: Path, columns: Sequence[Sequence[np.ndarray]]) -> None:
    """A row for each clip: source, decoded latent, sample from text, sample with the first frame given; three frames of each."""
    from PIL import Image

    rows = [
        np.concatenate([clip[:: FRAMES // 2][:3].swapaxes(0, 1).reshape(SIDE, -1, 3) for clip in row], axis=1)
        for row in zip(*columns, strict=True)
    ]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps: the same metrics, nothing learnt")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) there")
    parser.add_argument("--curves", type=Path, help="write the loss curves (SVG) there")
    arguments = parser.parse_args()
    steps, short, every = (8, 4, 2) if arguments.quick else (560, 150, 50)
    recipe = Recipe(
        shape=shape_of(256, 4, 3, 6, 3, (16, 24, 24)),
        steps=steps,
        lr=3e-3,
        warmup_steps=min(20, steps // 2),
        decay_steps=steps,
        betas=(0.9, 0.99),
        ema=0.98,
        shift=2.5,
    )
    data, pixels = load_data()
    trainer, base = train(data, recipe, stop=steps, every=every, label="base")
    model = trainer.averaged()
    truths = decoded(data.latents_NTCYX)
    from_text, from_frame = (decoded(sample(model, data, given=given)) for given in (False, True))
    if arguments.sheet is not None:
        write_sheet(arguments.sheet, [pixels, truths, from_text, from_frame])
    blocks = recipe.shape.encoder_blocks
    routed = replace(recipe, route=RouteSpec(start=2, end=blocks - 2, drop_ratio=0.5))
    aligned = replace(recipe, repa=(blocks // 2, 0.5, 512))
    _, with_tread = train(data, routed, stop=short, every=every, label="TREAD")
    _, with_repa = train(data, aligned, stop=short, every=every, label="REPA")
    _, other_seed = train(data, replace(recipe, seed=1), stop=short, every=every, label="seed")
    if arguments.curves is not None:
        write_curves(arguments.curves, {"base": base, "TREAD": with_tread, "REPA": with_repa, "other seed": other_seed})
    tread, repa, seed = (compare(base, curve) for curve in (with_tread, with_repa, other_seed))
    least = min(mean_psnr([one], [truth]) for one, truth in zip(from_text, truths, strict=True))
    least_frame = min(mean_psnr([one], [truth], frames=1) for one, truth in zip(from_frame, truths, strict=True))
    rows = [
        row("sample_psnr_db", mean_psnr(from_text, truths), "dB", goal=22, better="higher"),
        row("sample_psnr_db_least", least, "dB", goal=None, better="higher"),
        row("text_picks", picks(from_text, truths), "of 8", goal=8, better="higher"),
        row("first_frame_psnr_db", mean_psnr(from_frame, truths, frames=1), "dB", goal=26, better="higher"),
        row("first_frame_psnr_db_least", least_frame, "dB", goal=None, better="higher"),
        row("codec_psnr_db", mean_psnr(truths, pixels), "dB", goal=None, better="higher"),
        row("train_seconds", trainer.seconds, "s", goal=None, better="lower"),
        row("parameters", recipe.shape.parameter_count() / 1e6, "M", goal=None, better="lower"),
        row("tread_loss_ratio", tread[0], "with / without", goal=None, better="lower"),
        row("tread_loss_ratio_at_equal_steps", tread[1], "with / without", goal=None, better="lower"),
        row("repa_loss_ratio", repa[0], "with / without", goal=None, better="lower"),
        row("repa_loss_ratio_at_equal_steps", repa[1], "with / without", goal=None, better="lower"),
        row("seed_loss_ratio", seed[0], "other seed / base", goal=None, better="lower"),
        row("seed_loss_ratio_at_equal_steps", seed[1], "other seed / base", goal=None, better="lower"),
    ]
    show(rows)
    write(arguments.json, rows)
    return 0


def mean_psnr(videos: Sequence[np.ndarray], truths: Sequence[np.ndarray], frames: int = FRAMES) -> float:
    """Mean over the clips, of their first `frames` frames."""
    return float(np.mean([psnr(one[:frames], other[:frames]) for one, other in zip(videos, truths, strict=True)]))


if __name__ == "__main__":
    raise SystemExit(main())
