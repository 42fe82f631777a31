"""A request to frames: the run's network, the prompts' states, a given first frame, latents, pixels.

One process, no sharding. Clips are made one pass after another and given out as they are done, so that memory holds those of one pass only.
Frozen encoders run on the same device as the network, one after another: the text encoder is gone before the network is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from schemas.errors import UsageError
from training.checkpoints.whole_network import WeightsKind, load_network, read_run_config
from training.config import TrainConfig
from training.parallel import choose_device, choose_precision
from training.run_setup import RunInfo, read_run_info, run_null_text
from training.sampler_config import LatentSize, LowPassConfig, SamplerConfig
from training.sampling.images import encode_first_frame, encode_image_tokens, read_picture
from training.sampling.integrate import Conditions, Velocity, sample_as_trained, velocity_of
from training.sampling.prompts import encode_texts

if TYPE_CHECKING:
    from encoders.latents import LatentCodec

__all__ = ["OpenSampler", "SampleRequest", "SampledVideo", "open_codec", "open_sampler"]


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What to sample."""

    run: Path
    prompts: tuple[str, ...]
    size: LatentSize
    sampler: SamplerConfig
    seed: int = 0
    """Of the noise, the same for every prompt."""
    clips_per_pass: int = 1
    """Prompts that go through the network together. The last bits of a video may depend on it."""
    checkpoint: int | None = None
    """Step; None takes the latest."""
    weights: WeightsKind = "ema"
    image: Path | None = None
    """Picture to begin with; None is text to video."""
    image_tokens: bool = True
    """Give the picture's tokens too, where the network was trained with them (`i2v.image_tokens`)."""
    text_encoder_path: Path | None = None
    image_encoder_path: Path | None = None
    codec_path: Path | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.clips_per_pass < 1:
            raise UsageError(f"--clips-per-pass is {self.clips_per_pass}, expected at least 1")
        if self.image is not None and self.size.frames == 1:
            raise UsageError("--image gives the first frame of a video, but --frames is 1; ask for 5 frames or more")
        without_effect = {
            "--set low_pass": self.sampler.low_pass != LowPassConfig(),
            "--no-image-tokens": not self.image_tokens,
            "--image-encoder-path": self.image_encoder_path is not None,
        }
        if self.image is None and any(without_effect.values()):
            flags = ", ".join(flag for flag, given in without_effect.items() if given)
            raise UsageError(f"{flags}: has no effect without --image, the first frame; give one, or leave it out")


@dataclass(frozen=True, kw_only=True)
class SampledVideo:
    """One clip."""

    index: int
    """Of its prompt, from 0."""
    prompt: str
    frames_THWC: np.ndarray
    """uint8 RGB."""


@dataclass(frozen=True, kw_only=True)
class OpenSampler:
    """A network with all that its samples are conditioned on, ready to run."""

    request: SampleRequest
    config: TrainConfig
    info: RunInfo
    checkpoint: Path
    device: torch.device
    velocity: Velocity
    codec: LatentCodec
    texts: tuple[np.ndarray, ...]
    null_text_ED: np.ndarray
    first_frame_CYX: Tensor | None
    image_ID: Tensor | None
    notes: tuple[str, ...] = field(default=())

    def latents(
        self,
        first: int,
        stop: int,
        size: LatentSize | None = None,
        *,
        seed: int | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Latents B T C Y X of the prompts from `first` to before `stop`, in one batch; `size` and `seed` None are the request's."""
        size = size or self.request.size
        count = stop - first
        repeated = [
            None if one is None else one.expand(count, *one.shape) for one in (self.first_frame_CYX, self.image_ID)
        ]
        return sample_as_trained(
            self.config,
            self.velocity,
            Conditions(
                texts=self.texts[first:stop],
                null_text_ED=self.null_text_ED,
                first_frame_BCYX=repeated[0],
                image_BID=repeated[1],
            ),
            size,
            self.request.sampler,
            seeds=[self.request.seed if seed is None else seed] * count,
            device=self.device,
            on_step=on_step,
        )

    def decode(self, latent_TCYX: Tensor) -> np.ndarray:
        """Frames T H W C."""
        return self.codec.decode(latent_TCYX.numpy().astype(np.float16))

    def videos(self, *, on_step: Callable[[int, int], None] | None = None) -> Iterator[SampledVideo]:
        """Every prompt's clip, in order."""
        prompts, together = self.request.prompts, self.request.clips_per_pass
        for first in range(0, len(prompts), together):
            stop = min(first + together, len(prompts))
            for index, latent_TCYX in enumerate(self.latents(first, stop, on_step=on_step), start=first):
                yield SampledVideo(index=index, prompt=prompts[index], frames_THWC=self.decode(latent_TCYX))


def open_sampler(request: SampleRequest) -> OpenSampler:
    """Load everything that a request needs.

    Raises:
        UsageError: for a folder that is no run, a checkpoint or averages that are not there, or a picture that cannot be read.
        ModelMissingError, ConfigError: for encoders that are not there or do not fit the network.
    """
    device = choose_device(request.device)
    info = read_run_info(request.run)
    checkpoint, config = read_run_config(request.run, request.checkpoint)
    null_text_ED = run_null_text(request.run, config.model.text_width)
    texts, null_text_ED, notes = _texts(request, info, config, null_text_ED, device)
    codec = open_codec(info.codec, request.codec_path, device)
    notes += _note("codec", info.codec_fingerprint, codec.fingerprint)
    notes += _image_notes(request, config)
    first_frame_CYX, image_ID = _first_frame(request, config, codec, device)
    network = load_network(checkpoint, config, request.weights).to(device, choose_precision(config.precision, device))
    return OpenSampler(
        request=request,
        config=config,
        info=info,
        checkpoint=checkpoint,
        device=device,
        velocity=velocity_of(network),
        codec=codec,
        texts=texts,
        null_text_ED=null_text_ED,
        first_frame_CYX=first_frame_CYX,
        image_ID=image_ID,
        notes=tuple(notes),
    )


def open_codec(name: str, path: Path | None, device: torch.device) -> LatentCodec:
    """The codec of a set; one with weights runs on `device`."""
    from encoders.latents import get_codec

    options: dict[str, Any] = {} if path is None else {"path": path}
    if name != "dct":
        options["device"] = device.type
    return get_codec(name, **options)


def _texts(
    request: SampleRequest, info: RunInfo, config: TrainConfig, null_text_ED: np.ndarray, device: torch.device
) -> tuple[tuple[np.ndarray, ...], np.ndarray, list[str]]:
    """States of the prompts and of what they are guided away from, and what is to be said about the encoder."""
    negative = request.sampler.negative_prompt
    encoded = encode_texts(
        [*request.prompts, *([] if negative is None else [negative])],
        encoder=info.text_encoder,
        path=request.text_encoder_path,
        width=config.model.text_width,
        device=device.type,
        asked_by="sampling",
    )
    texts = encoded.states[: len(request.prompts)]
    notes = _note("text encoder", info.text_encoder_fingerprint, encoded.fingerprint)
    return texts, null_text_ED if negative is None else encoded.states[-1], notes


def _first_frame(
    request: SampleRequest, config: TrainConfig, codec: LatentCodec, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Latent and image tokens of the given picture."""
    if request.image is None:
        return None, None
    frame_HWC = read_picture(request.image, request.size)
    width = config.model.image_width
    image_ID = None
    if request.image_tokens and config.i2v.image_tokens and width is not None:
        image_ID, _ = encode_image_tokens(frame_HWC, path=request.image_encoder_path, width=width, device=device.type)
    return encode_first_frame(codec, frame_HWC), image_ID


def _image_notes(request: SampleRequest, config: TrainConfig) -> list[str]:
    """What a given picture cannot do with this run."""
    if request.image is None:
        return []
    notes = []
    if config.i2v.probability == 0.0:
        notes.append(
            "--image: the run did not train image-to-video (i2v.probability is 0), so unless the weights that it started from did, "
            "the network does not know what to do with a first frame"
        )
    if request.image_encoder_path is not None and not config.i2v.image_tokens:
        notes.append(
            "--image-encoder-path: the run was trained without image tokens (i2v.image_tokens), none are given"
        )
    return notes


def _note(what: str, trained: str, found: str) -> list[str]:
    if trained == found:
        return []
    return [f"the {what} is not the one that the run was trained with (fingerprint {found}, was {trained})"]
