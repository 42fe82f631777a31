"""A picture as the first frame of a video: cut to size, encoded as a clip of one frame, and to image tokens where the network takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from schemas.errors import ConfigError, UsageError
from training.sampler_config import LatentSize

if TYPE_CHECKING:
    from encoders.latents import LatentCodec

__all__ = ["encode_first_frame", "encode_image_tokens", "read_picture"]


def read_picture(path: Path, size: LatentSize) -> np.ndarray:
    """A picture file as uint8 RGB (height, width, 3): scaled to cover the size, its middle kept, turned upright as its metadata says."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
            fitted = ImageOps.fit(picture, (size.width, size.height), method=Image.Resampling.LANCZOS)
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"--image {path} cannot be read as a picture ({error}); expected a PNG, JPEG or WebP file"
        ) from error
    return np.asarray(fitted)


def encode_first_frame(codec: LatentCodec, frame_HWC: np.ndarray) -> Tensor:
    """Latent C Y X, float32: codecs are causal, so a clip's first latent frame is that of its first picture alone."""
    return torch.from_numpy(codec.encode(frame_HWC[None])[0].astype(np.float32))


def encode_image_tokens(frame_HWC: np.ndarray, *, path: Path | None, width: int, device: str) -> tuple[Tensor, str]:
    """Image tokens (I, D) by the SigLIP tower, and its fingerprint.

    Raises:
        ModelMissingError: when its weights are not on this machine.
        ConfigError: when its tokens are not as wide as the network's image input.
    """
    from encoders.image_tokens import SiglipTokens

    options: dict[str, Any] = {} if path is None else {"path": path}
    encoder = SiglipTokens(device=device, **options)
    if encoder.width != width:
        raise ConfigError(
            f"the image encoder gives tokens of width {encoder.width}, model.image_width is {width}; "
            "give the encoder that the network was trained with (--image-encoder-path), or leave image tokens out (--no-image-tokens)"
        )
    return torch.from_numpy(encoder.tokens(frame_HWC)), encoder.fingerprint
