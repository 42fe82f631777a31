"""Every random choice of training, as a pure function of (seed, step, clip id, purpose).

There is no generator state: nothing to save, nothing that depends on the rank, the world size or the order in which clips are visited, and a
resumed run draws what the uninterrupted one would have drawn. The stream of a key is NumPy's Philox-4x64 keyed by a 128-bit BLAKE2b hash of
the key. `torch.Generator` is not used because its CPU engine reads only the low 32 bits of a seed (among 77,000 keys two probably share a stream)
and because its CUDA stream differs from its CPU stream. Price: noise is drawn on the host, about 20 ns a value (0.14 s for the largest 720p
latent), to be hidden in the loader's thread. Philox's integers and uniforms are fixed for ever; NumPy may change its normal sampler between
minor versions, so the NumPy version belongs into the run's record beside torch's.

Legend: B batch, C channels, T latent frames, Y/X latent rows and columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from schemas.errors import ConfigError

__all__ = [
    "CAPTION_SHARES",
    "CaptionKind",
    "Purpose",
    "caption_kind",
    "chance",
    "noise",
    "stream",
    "uniform",
]

Purpose = Literal["noise", "timestep", "text_dropout", "caption", "image_to_video", "blur", "route", "weights"]
"""What a stream is for; streams of two purposes are independent."""

CaptionKind = Literal["long", "short", "first"]

CAPTION_SHARES: Mapping[CaptionKind, float] = {"long": 0.5, "short": 0.3, "first": 0.2}
"""How often each caption of a clip is used (arXiv 2604.16503, reported): long, short, first sentence of the long one."""

_KEY_VERSION = b"reelyard-stream-1"


def stream(seed: int, step: int, clip_id: str, purpose: Purpose) -> np.random.Generator:
    """The random stream of one clip in one step for one purpose; equal arguments give equal streams, on every machine."""
    fields = [_KEY_VERSION, str(int(seed)).encode(), str(int(step)).encode(), purpose.encode(), clip_id.encode()]
    # Each field is preceded by its length, so that no two keys run together.
    framed = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
    key = int.from_bytes(hashlib.blake2b(framed, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def uniform(seed: int, step: int, clip_ids: Sequence[str], purpose: Purpose) -> Tensor:
    """One float64 value in [0, 1) for each clip."""
    return torch.tensor([stream(seed, step, clip_id, purpose).random() for clip_id in clip_ids], dtype=torch.float64)


def chance(seed: int, step: int, clip_ids: Sequence[str], purpose: Purpose, probability: float) -> Tensor:
    """True for each clip with `probability` (text dropout, image-to-video); never for 0.0, always for 1.0."""
    if not 0.0 <= probability <= 1.0:
        raise ConfigError(f"probability of {purpose} is {probability}, expected 0.0 to 1.0; correct the stage config")
    return uniform(seed, step, clip_ids, purpose) < probability


def noise(seed: int, step: int, clip_ids: Sequence[str], shape_CTYX: tuple[int, int, int, int]) -> Tensor:
    """Standard normal float32 noise, one draw per clip, on the CPU."""
    noise_BCTYX = np.empty((len(clip_ids), *shape_CTYX), np.float32)
    for clip_id, noise_CTYX in zip(clip_ids, noise_BCTYX, strict=True):
        stream(seed, step, clip_id, "noise").standard_normal(dtype=np.float32, out=noise_CTYX)
    return torch.from_numpy(noise_BCTYX)


def caption_kind(
    seed: int,
    step: int,
    clip_id: str,
    available: Sequence[CaptionKind] = ("long", "short", "first"),
    shares: Mapping[CaptionKind, float] = CAPTION_SHARES,
) -> CaptionKind:
    """Which caption a clip is trained with in a step; the shares of captions that a clip lacks go to those it has.

    Raises ConfigError when none of the available captions has a share.
    """
    order: tuple[CaptionKind, ...] = ("long", "short", "first")
    kinds = [kind for kind in order if kind in available and shares.get(kind, 0.0) > 0.0]
    total = sum(shares[kind] for kind in kinds)
    if not kinds:
        raise ConfigError(
            f"clip {clip_id}: no caption to choose: it has {list(available)}, the shares are {dict(shares)}; "
            "give one of its captions a share in the stage config"
        )
    value = stream(seed, step, clip_id, "caption").random() * total
    for kind in kinds:
        value -= shares[kind]
        if value < 0.0:
            return kind
    return kinds[-1]
