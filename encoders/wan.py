"""The production codec: the video VAE of Wan2.1 (`diffusers.AutoencoderKLWan`), frozen, normalised as the paper's released code does.

The latent is the mean of the posterior, not a draw, so that a clip has one latent. The network keeps a feature cache and takes the first frame
alone and then groups of four, each call of one shape, so prefixes hold here too. The groups are fed from here, one call at a time: only their
pixels are ever on the device as floats, so memory does not grow with the length of a clip. `frames_per_call` feeds several groups at once (the same
latents to rounding); `tile_pixels` cuts the picture into overlapping tiles whose latents are blended, so memory does not grow with its size.
Tiles change the values near their seams, so they are an option and part of the fingerprint. Price: a GPU is wanted; on a CPU it is for tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from numpy.typing import NDArray

from encoders.devices import pick_device, pick_dtype
from encoders.latents import LatentCodec, check_frames, check_latent
from encoders.registry import Registry
from encoders.tiling import tile_spans, tile_weights
from encoders.weights import hash_folder, part_of, resolve_folder, revision_of
from schemas.errors import ConfigError, DataError
from schemas.ids import fingerprint

__all__ = ["WAN_MEAN", "WAN_STD", "WanCodec"]

_CODE_VERSION = 2

WAN_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


class WanCodec(LatentCodec):
    """The Wan VAE.

    Args:
        path: folder with `config.json` and safetensors, or a hub id; None means the registry's `latents.wan`.
        frames_per_call: pictures per call after the first, a multiple of 4.
        tile_pixels: largest side of a tile, a multiple of 8; 0 encodes the picture whole.
        tile_overlap_pixels: overlap of two tiles.
    """

    name = "wan"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
        registry: Registry | None = None,
        revision: str | None = None,
        frames_per_call: int = 4,
        tile_pixels: int = 0,
        tile_overlap_pixels: int = 64,
    ) -> None:
        _check_options(frames_per_call, tile_pixels, tile_overlap_pixels)
        folder = part_of(resolve_folder(path, default="latents.wan", registry=registry, revision=revision), "vae")
        self.mean, self.std = WAN_MEAN, WAN_STD
        self.revision = revision_of(folder)
        tiling = (tile_pixels, tile_overlap_pixels) if tile_pixels else None
        options = [precision, frames_per_call, tiling]
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, hash_folder(folder), WAN_MEAN, WAN_STD, options])
        self._frames_per_call, self._tile, self._overlap = frames_per_call, tile_pixels, tile_overlap_pixels
        self._device, self._dtype = pick_device(device, purpose="codec wan"), pick_dtype(precision)
        self._vae = AutoencoderKLWan.from_pretrained(
            folder, torch_dtype=self._dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        self._vae.to(self._device).eval().requires_grad_(False)
        if self._vae.config.z_dim != self.channels:
            raise DataError(f"{folder}/config.json: z_dim {self._vae.config.z_dim}, expected {self.channels}")
        self._num_caches = sum(isinstance(module, WanCausalConv3d) for module in self._vae.encoder.modules())

    @torch.inference_mode()
    def encode(self, frames_THWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Latent (T', 16, H/8, W/8), float16."""
        check_frames(frames_THWC)
        frames, height, width, _ = frames_THWC.shape
        s = self.spatial_stride
        spans = [tile_spans(side // s, self._tile // s, self._overlap // s) for side in (height, width)]
        row_weights, column_weights = tile_weights(spans[0]), tile_weights(spans[1])
        latent_TCHW = np.zeros(((frames - 1) // 4 + 1, self.channels, height // s, width // s), np.float32)
        for (top, bottom), row_weight in zip(spans[0], row_weights, strict=True):
            for (left, right), column_weight in zip(spans[1], column_weights, strict=True):
                tile = self._encode_tile(frames_THWC[:, s * top : s * bottom, s * left : s * right])
                latent_TCHW[:, :, top:bottom, left:right] += tile * (row_weight[:, None] * column_weight)
        return latent_TCHW.astype(np.float16)

    def _encode_tile(self, frames_THWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Latent of one tile: the first picture, then `frames_per_call` at a time through the network's feature cache."""
        cache: list[Any] = [None] * self._num_caches
        starts = [0, *range(1, len(frames_THWC), self._frames_per_call)]
        moments = []
        for start, end in zip(starts, [*starts[1:], len(frames_THWC)], strict=True):
            pixels = torch.from_numpy(np.array(frames_THWC[start:end], order="C")).to(self._device)
            pixels_BCTHW = pixels.permute(3, 0, 1, 2)[None].to(self._dtype) / 127.5 - 1.0
            moments.append(self._vae.encoder(pixels_BCTHW, feat_cache=cache, feat_idx=[0]))
        mean, std = self._statistics()
        latent_BCTHW = self._vae.quant_conv(torch.cat(moments, dim=2))[:, : self.channels].float()
        latent_TCHW: NDArray[np.float32] = ((latent_BCTHW - mean) / std)[0].transpose(0, 1).cpu().contiguous().numpy()
        return latent_TCHW

    @torch.inference_mode()
    def decode(self, latent_TCHW: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Frames (4 (T' - 1) + 1, 8 H, 8 W, 3), uint8."""
        check_latent(latent_TCHW)
        mean, std = self._statistics()
        latent = torch.from_numpy(np.array(latent_TCHW, dtype=np.float32, order="C")).to(self._device)
        latent_BCTHW = latent.transpose(0, 1)[None] * std + mean
        pixels_BCTHW = self._vae.decode(latent_BCTHW.to(self._dtype)).sample.float()
        frames = ((pixels_BCTHW[0].permute(1, 2, 3, 0) + 1.0) * 127.5).round().clamp(0, 255)
        result: NDArray[np.uint8] = frames.to("cpu", torch.uint8).contiguous().numpy()
        return result

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, self.channels, 1, 1, 1)
        mean, std = (torch.tensor(values, device=self._device).view(shape) for values in (self.mean, self.std))
        return mean, std


def _check_options(frames_per_call: int, tile_pixels: int, tile_overlap_pixels: int) -> None:
    if frames_per_call < 4 or frames_per_call % 4:
        raise ConfigError(f"frames_per_call {frames_per_call} of codec wan must be a positive multiple of 4")
    if tile_pixels < 0 or tile_pixels % 8 or (tile_pixels and not 0 <= tile_overlap_pixels < tile_pixels):
        raise ConfigError(
            f"tile_pixels {tile_pixels} of codec wan must be 0 or a multiple of 8, larger than tile_overlap_pixels {tile_overlap_pixels}"
        )
