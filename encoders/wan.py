"""The production codec: the video VAE of Wan2.1 (`diffusers.AutoencoderKLWan`), frozen, normalised as the paper's released code does.

The latent is the mean of the posterior, not a draw, so that a clip has one latent. The network keeps a feature cache and takes the first frame
alone and then groups of four, each call of one shape, so prefixes hold here too. Price: a GPU is wanted; on a CPU it is for tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray

from encoders.latents import LatentCodec, check_frames, check_latent
from encoders.registry import Registry
from encoders.weights import hash_folder, resolve_folder
from schemas.errors import DataError
from schemas.ids import fingerprint

__all__ = ["WAN_MEAN", "WAN_STD", "WanCodec"]

_CODE_VERSION = 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

WAN_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


class WanCodec(LatentCodec):
    """`path` is a folder with `config.json` and safetensors, or a hub id; None means the registry's `latents.wan`."""

    name = "wan"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
        registry: Registry | None = None,
        revision: str | None = None,
    ) -> None:
        folder = resolve_folder(path, default="latents.wan", registry=registry, revision=revision)
        if not (folder / "config.json").is_file() and (folder / "vae").is_dir():
            folder = folder / "vae"
        self.mean, self.std = WAN_MEAN, WAN_STD
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, hash_folder(folder), WAN_MEAN, WAN_STD, precision])
        self._vae = AutoencoderKLWan.from_pretrained(
            folder, torch_dtype=_DTYPES[precision], use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        self._vae.to(device).eval().requires_grad_(False)
        if self._vae.config.z_dim != self.channels:
            raise DataError(f"{folder}/config.json: z_dim {self._vae.config.z_dim}, expected {self.channels}")
        self._device, self._dtype = device, _DTYPES[precision]

    @torch.inference_mode()
    def encode(self, frames_THWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Latent (T', 16, H/8, W/8), float16."""
        check_frames(frames_THWC)
        pixels = torch.from_numpy(np.array(frames_THWC, order="C")).to(self._device)
        pixels_BCTHW = pixels.permute(3, 0, 1, 2)[None].to(self._dtype) / 127.5 - 1.0
        latent_BCTHW = self._vae.encode(pixels_BCTHW).latent_dist.mode().float()
        mean, std = self._statistics()
        latent_TCHW = ((latent_BCTHW - mean) / std)[0].transpose(0, 1).contiguous()
        result: NDArray[np.float16] = latent_TCHW.to("cpu", torch.float16).numpy()
        return result

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
