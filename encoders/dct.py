"""The codec without weights: a fixed orthonormal 3-D DCT over 4x8x8 blocks of YCbCr, 16 coefficients kept.

It has the shape, the causality and the scale of a learned video codec's latent, runs on NumPy at hundreds of frames a second, and decodes, so
that the whole path can be run, looked at and tested on a laptop. Which coefficients are kept was chosen by their energy on real clips and
photographs (weighted by what they do to RGB), not by taste. The first frame has no neighbours in time, so the five slots that hold motion in
the groups hold finer detail there; its coefficients are doubled, so that a frame standing still has the same values in both kinds.

Colour transform and DCT are one matrix: a block is 768 (or 192) numbers, its latent is 16, decoding is the transposed way. Each latent frame is
computed by a call of its own, whose shape depends on the picture size only: the latent of a prefix is equal bit for bit.
Price: detail beyond the kept coefficients is gone (a sharp 90p clip comes back soft), and nothing is learned.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from encoders.latents import LatentCodec, check_frames, check_latent
from schemas.ids import fingerprint

__all__ = ["DctCodec"]

_CODE_VERSION = 1
_BLOCK = 8
_GROUP = 4

# (plane, temporal, vertical, horizontal frequency) of each channel; plane 0 Y, 1 Cb, 2 Cr.
_SPATIAL = (
    (0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0),
    (0, 0, 0, 1), (0, 0, 1, 0), (0, 0, 1, 1), (0, 0, 0, 2), (0, 0, 2, 0), (0, 0, 0, 3), (0, 0, 3, 0), (0, 0, 1, 2),
)  # fmt: skip
_GROUP_CHANNELS = (*_SPATIAL, (0, 1, 0, 0), (0, 2, 0, 0), (0, 3, 0, 0), (0, 1, 0, 1), (0, 1, 1, 0))
_FIRST_CHANNELS = (*_SPATIAL, (0, 0, 2, 1), (1, 0, 1, 0), (2, 0, 1, 0), (0, 0, 2, 2), (0, 0, 4, 0))

# Full-range BT.601, as in JPEG: rows Y, Cb, Cr over R, G, B.
_YCC_OF_RGB = np.array(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], dtype=np.float64
)

# Rounded statistics of 7 photographs and 3 clips of the registry, each at native size, 256x144 and 112x64.
_MEAN = (-2.5, -1.0, 0.5, *(0.0,) * 13)
_STD = (7.2, 2.25, 2.0, 1.4, 1.5, 0.72, 0.7, 0.84, 0.46, 0.52, 0.46, 0.93, 0.58, 0.35, 0.32, 0.31)
_FIRST_STD_TAIL = (0.48, 0.4, 0.46, 0.37, 0.37)


class DctCodec(LatentCodec):
    """`encode` and `decode` of the module docstring; stateless."""

    name = "dct"

    def __init__(self) -> None:
        self.mean = _MEAN
        self.std = _STD
        self.revision = f"code {_CODE_VERSION}"
        constants = [_CODE_VERSION, _GROUP_CHANNELS, _FIRST_CHANNELS, _MEAN, _STD, _FIRST_STD_TAIL]
        self.fingerprint = fingerprint([self.name, *constants])

    def encode(self, frames_THWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Latent (T', 16, H/8, W/8), float16."""
        check_frames(frames_THWC)
        groups = [frames_THWC[:1]] + [frames_THWC[i : i + _GROUP] for i in range(1, len(frames_THWC), _GROUP)]
        return np.stack([self._encode_group(group) for group in groups])

    def decode(self, latent_TCHW: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Frames (4 (T' - 1) + 1, 8 H, 8 W, 3), uint8, rounded and clipped."""
        check_latent(latent_TCHW)
        return np.concatenate([self._decode_frame(latent, i == 0) for i, latent in enumerate(latent_TCHW)])

    def _encode_group(self, group_THWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        frames, height, width, _ = group_THWC.shape
        rows, columns = height // _BLOCK, width // _BLOCK
        pixels = group_THWC.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)
        blocks = pixels.reshape(frames, rows, _BLOCK, columns, _BLOCK, 3).transpose(1, 3, 0, 2, 4, 5)
        coefficients = blocks.reshape(rows * columns, -1) @ _analysis(frames)
        mean, std = _statistics(frames)
        latent = ((coefficients - mean) / std).reshape(rows, columns, self.channels).transpose(2, 0, 1)
        return np.ascontiguousarray(latent, dtype=np.float16)

    def _decode_frame(self, latent_CHW: NDArray[np.floating], first: bool) -> NDArray[np.uint8]:
        frames = 1 if first else _GROUP
        _, rows, columns = latent_CHW.shape
        mean, std = _statistics(frames)
        coefficients = latent_CHW.astype(np.float32).reshape(self.channels, -1).T * std + mean
        blocks = (coefficients @ _synthesis(frames)).reshape(rows, columns, frames, _BLOCK, _BLOCK, 3)
        pixels = blocks.transpose(2, 0, 3, 1, 4, 5).reshape(frames, rows * _BLOCK, columns * _BLOCK, 3)
        return np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)


def _cosines(size: int) -> NDArray[np.float64]:
    """Orthonormal DCT-II: row k is the k-th basis vector."""
    frequency, position = np.arange(size)[:, None], np.arange(size)[None, :]
    basis = np.sqrt(2 / size) * np.cos(np.pi * (2 * position + 1) * frequency / (2 * size))
    basis[0] /= np.sqrt(2)
    return basis


@cache
def _basis(frames: int) -> NDArray[np.float64]:
    """(16, frames, 8, 8) orthonormal basis blocks of the kept coefficients."""
    time, space = _cosines(frames), _cosines(_BLOCK)
    channels = _FIRST_CHANNELS if frames == 1 else _GROUP_CHANNELS
    return np.stack([np.einsum("t,y,x->tyx", time[t], space[v], space[u]) for _, t, v, u in channels])


def _planes(frames: int) -> list[int]:
    return [channel[0] for channel in (_FIRST_CHANNELS if frames == 1 else _GROUP_CHANNELS)]


@cache
def _analysis(frames: int) -> NDArray[np.float32]:
    """(frames * 8 * 8 * 3, 16): RGB block to coefficients. A single frame counts double: sqrt(4) is what four equal frames give."""
    gain = np.sqrt(_GROUP / frames)
    colour = _YCC_OF_RGB[_planes(frames)]
    matrix = gain * _basis(frames)[..., None] * colour[:, None, None, None, :]
    return np.ascontiguousarray(matrix.reshape(len(colour), -1).T, dtype=np.float32)


@cache
def _synthesis(frames: int) -> NDArray[np.float32]:
    """(16, frames * 8 * 8 * 3): coefficients to RGB block."""
    gain = np.sqrt(frames / _GROUP)
    colour = np.linalg.inv(_YCC_OF_RGB).T[_planes(frames)]
    matrix = gain * _basis(frames)[..., None] * colour[:, None, None, None, :]
    return np.ascontiguousarray(matrix.reshape(len(colour), -1), dtype=np.float32)


@cache
def _statistics(frames: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per-channel mean and std of a first frame or a group; they differ in the five slots of another meaning."""
    std = (*_STD[: len(_SPATIAL)], *_FIRST_STD_TAIL) if frames == 1 else _STD
    return np.array(_MEAN, dtype=np.float32), np.array(std, dtype=np.float32)
