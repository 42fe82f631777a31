"""What a latent codec is: pixels to a small grid of 16 channels and back, causal in time.

Every codec takes 4k + 1 frames, the first alone and then groups of four, so that the first latent frames of a long clip ARE the latent of the
shorter clip. Latents are stored T C H W, float16, normalised to about zero mean and unit variance per channel; `mean` and `std` are recorded so
that a reader can undo it. Price: a codec with another stride needs another interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from schemas.buckets import latent_frames
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from encoders.registry import Registry

__all__ = ["CODECS", "LatentCodec", "check_frames", "check_latent", "get_codec"]

CODECS = ("dct", "wan")


class LatentCodec(ABC):
    """Frozen pixels <-> latents. T H W C uint8 RGB on the pixel side, T' C H/8 W/8 float16 on the latent side."""

    name: str
    fingerprint: str
    """Changes whenever the latents of the same frames may change: weights, code version, options."""
    revision: str
    """Of the weights: a commit of the hub, or a hash of their files; of arithmetic: the version of its code."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: ClassVar[int] = 16
    spatial_stride: ClassVar[int] = 8
    temporal_stride: ClassVar[int] = 4

    @abstractmethod
    def encode(self, frames_THWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Latent (T', 16, H/8, W/8) of 4k + 1 frames, T' = k + 1; H and W are multiples of 8."""

    @abstractmethod
    def decode(self, latent_TCHW: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Frames (4 (T' - 1) + 1, 8 H, 8 W, 3) of a latent."""


def check_frames(frames_THWC: NDArray[np.uint8]) -> None:
    """ValueError unless the array is RGB uint8, 4k + 1 frames, sides multiples of 8."""
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3:
        raise ValueError(f"frames {frames_THWC.dtype}{list(frames_THWC.shape)} must be uint8 (T, H, W, 3)")
    latent_frames(frames_THWC.shape[0])
    height, width = frames_THWC.shape[1:3]
    if height % LatentCodec.spatial_stride or width % LatentCodec.spatial_stride or not height or not width:
        raise ValueError(f"frame size {width}x{height} must be positive multiples of {LatentCodec.spatial_stride}")


def check_latent(latent_TCHW: NDArray[np.floating]) -> None:
    """ValueError unless the array is a latent of at least one frame."""
    if latent_TCHW.ndim != 4 or latent_TCHW.shape[1] != LatentCodec.channels or 0 in latent_TCHW.shape:
        raise ValueError(
            f"latent of shape {list(latent_TCHW.shape)} must be (T, {LatentCodec.channels}, H, W), not empty"
        )


def get_codec(name: str, *, registry: Registry | None = None, **options: Any) -> LatentCodec:
    """The codec of a config: `get_codec("dct")`, `get_codec("wan", path="/models/wan-vae")`.

    Args:
        registry: where `wan` finds its weights when no path is given; None: the registry over the user's own cache.

    Raises:
        ConfigError: for an unknown name.
        ModelMissingError: when weights are not on this machine.
    """
    if name == "dct":
        from encoders.dct import DctCodec

        return DctCodec(**options)
    if name == "wan":
        from encoders.wan import WanCodec

        return WanCodec(registry=registry, **options)
    raise ConfigError(f"codec {name!r} is unknown; expected one of {', '.join(CODECS)}")
