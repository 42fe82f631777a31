"""A prompt to a video: Euler steps along the learned velocity, with classifier-free guidance, on averaged weights, decoded to pixels.

One process, no sharding: the averages are read from a checkpoint of any world size. With guidance g the velocity is `v_null + g (v_text - v_null)`,
both from one forward pass of two clips. The noise is a function of the seed alone, so prompts can be compared on the same noise. Price: two
clips' compute per step, also for g = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.buckets import SIDE_MULTIPLE, latent_frames
from schemas.config import build_config
from schemas.errors import UsageError
from training import randomness
from training.batch import pad_texts
from training.checkpoint import find_checkpoint, load_tensors, read_record
from training.config import TrainConfig
from training.flow import euler_schedule, euler_step, model_input, timestep_of
from training.model import MotifVideoDiT
from training.parallel import choose_device, choose_precision, open_world
from training.run_setup import RunInfo, read_run_info, run_null_text

__all__ = ["SampleRequest", "SampleResult", "integrate", "load_averaged_model", "sample_video"]


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What to sample."""

    run: Path
    prompt: str
    frames: int
    """Pixel frames, 4k + 1."""
    height: int
    width: int
    num_steps: int
    guidance: float
    seed: int
    checkpoint: int | None = None
    """Step; None takes the latest."""
    shift: float | None = None
    """Of the Euler schedule; None takes the training shift of this size."""
    text_encoder_path: Path | None = None
    codec_path: Path | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """Frames, and where they come from."""

    frames_THWC: np.ndarray
    fps: float
    checkpoint: Path
    notes: tuple[str, ...]


def sample_video(request: SampleRequest, *, on_step: Callable[[int, int], None] | None = None) -> SampleResult:
    """Sample one clip from a run's averaged weights.

    Raises:
        UsageError: for sizes that the codec or the network cannot do, a folder that is no run, or a checkpoint that is not there.
    """
    _check_size(request)
    info = read_run_info(request.run)
    checkpoint = find_checkpoint(request.run, request.checkpoint)
    config = build_config(TrainConfig, read_record(checkpoint).config, source=str(checkpoint / "record.json"))
    text_ED, notes = _encode_prompt(request, info)
    codec, codec_notes = _codec(request, info)
    device = choose_device(request.device)
    dtype = choose_precision("auto", device)
    model = load_averaged_model(checkpoint, config).to(device, dtype)
    latent_TCYX = integrate(
        model,
        text_ED,
        run_null_text(request.run, config.model.text_width),
        frames=request.frames,
        height=request.height,
        width=request.width,
        num_steps=request.num_steps,
        guidance=request.guidance,
        seed=request.seed,
        shift=_shift(request, config),
        on_step=on_step,
    )
    frames_THWC = codec.decode(latent_TCYX.numpy().astype(np.float16))
    return SampleResult(
        frames_THWC=frames_THWC, fps=info.fps, checkpoint=checkpoint, notes=tuple([*notes, *codec_notes])
    )


def load_averaged_model(checkpoint: Path, config: TrainConfig) -> MotifVideoDiT:
    """The network with a checkpoint's first average (the trained weights where a run keeps none), float32 on the CPU."""
    with torch.device("meta"):
        model = MotifVideoDiT(config.model)
    model.to_empty(device="cpu")
    source = f"ema_{config.ema_decays[0]}" if config.ema_decays else "model"
    tensors = {f"{source}/dit.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    with open_world(torch.device("cpu")) as world:
        load_tensors(checkpoint, tensors, world=world)
    return model.eval()


@torch.inference_mode()
def integrate(
    model: MotifVideoDiT,
    text_ED: np.ndarray,
    null_text_ED: np.ndarray,
    *,
    frames: int,
    height: int,
    width: int,
    num_steps: int,
    guidance: float,
    seed: int,
    shift: float,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Noise to a float32 latent T C H W on the CPU, in `num_steps` Euler steps."""
    device = next(model.parameters()).device
    size = (model.shape.out_channels, latent_frames(frames), height // 8, width // 8)
    latent_BCTYX = randomness.noise(seed, 0, ["sample"], size).to(device)
    text_BED, mask_BE = pad_texts([text_ED, null_text_ED])
    text_BED, mask_BE = text_BED.to(device), mask_BE.to(device)
    no_condition = torch.zeros(2, dtype=torch.bool, device=device)
    sigmas = euler_schedule(num_steps, shift).tolist()
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        twice = latent_BCTYX.expand(2, -1, -1, -1, -1)
        timestep_B = timestep_of(torch.full((2,), sigma, dtype=torch.float64, device=device))
        velocity = model(model_input(twice, twice, no_condition), timestep_B, text_BED, mask_BE).velocity_BCTYX.float()
        guided = velocity[1:] + guidance * (velocity[:1] - velocity[1:])
        latent_BCTYX = euler_step(latent_BCTYX, guided, sigma, next_sigma)
        if on_step is not None:
            on_step(index + 1, num_steps)
    return latent_BCTYX[0].transpose(0, 1).contiguous().cpu()


def _check_size(request: SampleRequest) -> None:
    if request.frames < 1 or request.frames % 4 != 1:
        raise UsageError(f"--frames is {request.frames}, expected 4k + 1: 1, 33, 65, 121, ...")
    for flag, value in (("--height", request.height), ("--width", request.width)):
        if value <= 0 or value % SIDE_MULTIPLE:
            raise UsageError(f"{flag} is {value}, expected a positive multiple of {SIDE_MULTIPLE}")


def _shift(request: SampleRequest, config: TrainConfig) -> float:
    if request.shift is not None:
        return request.shift
    tokens = latent_frames(request.frames) * (request.height // 16) * (request.width // 16)
    return config.flow.shift_of(tokens)


def _encode_prompt(request: SampleRequest, info: RunInfo) -> tuple[np.ndarray, list[str]]:
    """States of the prompt, by the encoder that made the run's captions."""
    from encoders.text import get_text_encoder

    options: dict[str, Any] = {} if request.text_encoder_path is None else {"path": request.text_encoder_path}
    encoder = get_text_encoder(info.text_encoder, **options)
    notes = _note("text encoder", info.text_encoder_fingerprint, encoder.fingerprint)
    return encoder.encode([request.prompt])[0], notes


def _codec(request: SampleRequest, info: RunInfo):  # type: ignore[no-untyped-def]  # a LatentCodec, imported late
    from encoders.latents import get_codec

    options: dict[str, Any] = {} if request.codec_path is None else {"path": request.codec_path}
    codec = get_codec(info.codec, **options)
    return codec, _note("codec", info.codec_fingerprint, codec.fingerprint)


def _note(what: str, trained: str, found: str) -> list[str]:
    if trained == found:
        return []
    return [f"the {what} is not the one that the run was trained with (fingerprint {found}, was {trained})"]
