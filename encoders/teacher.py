"""REPA teachers: a frozen network whose feature map lies exactly on the trainer's token grid; the image networks are here, video in `vjepa`.

A token is one latent frame by 2x2 latent pixels, that is 16x16 pixels. An image network sees one frame per latent frame: frame 0, then the last
of each group of four, the moment that a causal codec has fully seen. It is resized so that the network's stride maps one position to one token,
so no feature is interpolated afterwards; features of a prefix are a prefix of the features. Price: small classes are enlarged (twice, for stride 32).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.devices import pick_device
from encoders.efficientnet import NUM_CHANNELS, STRIDE, load_efficientnet_lite0, normalised
from encoders.registry import Registry
from encoders.weights import hash_folder, load_network, resolve_folder, revision_of
from schemas.buckets import latent_frames
from schemas.errors import ConfigError
from schemas.ids import fingerprint

__all__ = [
    "TEACHERS",
    "DinoTeacher",
    "EfficientNetTeacher",
    "Teacher",
    "get_teacher",
    "imagenet_normalised",
    "resize_frame",
    "teacher_frames",
    "token_grid",
]

_CODE_VERSION = 1
_TOKEN_PIXELS = 16

TEACHERS = ("efficientnet_lite0", "dinov2", "vjepa2")


class Teacher(ABC):
    """Frames to one feature vector per video token."""

    name: str
    fingerprint: str
    revision: str
    """Of the weights: a commit of the hub, or a hash of their files."""
    channels: int

    @abstractmethod
    def features(
        self, frames_THWC: NDArray[np.uint8], grid_TYX: tuple[int, int, int] | None = None
    ) -> NDArray[np.float16]:
        """(T', Y, X, C) float16 of 4k + 1 frames; `grid_TYX` defaults to (k + 1, H / 16, W / 16)."""


class EfficientNetTeacher(Teacher):
    """The default: EfficientNet-Lite0's stride-32 map, 320 channels, from frames resized to (32 Y, 32 X)."""

    name = "efficientnet_lite0"
    channels = NUM_CHANNELS

    def __init__(self, *, device: str = "cpu", registry: Registry | None = None) -> None:
        registry = registry or Registry()
        entry = "teacher.efficientnet_lite0"
        self._device = pick_device(device, purpose="teacher efficientnet_lite0")
        self._network: Any = load_efficientnet_lite0(registry.local_path(entry), device=self._device)
        self.revision = f"sha256:{registry.weights_hash(entry)}"
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, registry.weights_hash(entry)])

    @torch.inference_mode()
    def features(
        self, frames_THWC: NDArray[np.uint8], grid_TYX: tuple[int, int, int] | None = None
    ) -> NDArray[np.float16]:
        """(T', Y, X, 320) float16."""
        num_frames, rows, columns = token_grid(frames_THWC, grid_TYX)
        network, maps = self._network, []
        for frame in teacher_frames(frames_THWC)[:num_frames]:
            pixels = normalised(resize_frame(frame, STRIDE * rows, STRIDE * columns), self._device)
            map_BCYX = network.blocks(network.bn1(network.conv_stem(pixels)))
            maps.append(map_BCYX[0].permute(1, 2, 0).to("cpu", torch.float16).numpy())
        return np.stack(maps)


class DinoTeacher(Teacher):
    """DINOv2 from a `transformers` folder: patch tokens of frames resized to (patch Y, patch X), class and register tokens left out."""

    name = "dinov2"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str = "cpu",
        registry: Registry | None = None,
        revision: str | None = None,
    ) -> None:
        from transformers import AutoModel

        folder = resolve_folder(path, default="teacher.dinov2", registry=registry, revision=revision)
        self._device = pick_device(device, purpose="teacher dinov2")
        self._model = load_network(AutoModel, folder).to(self._device).eval().requires_grad_(False)
        self.revision = revision_of(folder)
        self.channels = int(self._model.config.hidden_size)
        self._patch = int(self._model.config.patch_size)
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, hash_folder(folder)])

    @torch.inference_mode()
    def features(
        self, frames_THWC: NDArray[np.uint8], grid_TYX: tuple[int, int, int] | None = None
    ) -> NDArray[np.float16]:
        """(T', Y, X, hidden size) float16."""
        num_frames, rows, columns = token_grid(frames_THWC, grid_TYX)
        maps = []
        for frame in teacher_frames(frames_THWC)[:num_frames]:
            resized = resize_frame(frame, self._patch * rows, self._patch * columns)
            hidden_BLD = self._model(pixel_values=imagenet_normalised(resized, self._device)).last_hidden_state
            patches = hidden_BLD[0, -rows * columns :].reshape(rows, columns, self.channels)
            maps.append(patches.to("cpu", torch.float16).numpy())
        return np.stack(maps)


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def get_teacher(name: str, **options: Any) -> Teacher:
    """`get_teacher("efficientnet_lite0")`, `get_teacher("dinov2", path="/models/dinov2")`; ConfigError for an unknown name."""
    if name == "efficientnet_lite0":
        return EfficientNetTeacher(**options)
    if name == "dinov2":
        return DinoTeacher(**options)
    if name == "vjepa2":
        from encoders.vjepa import VJepaTeacher

        return VJepaTeacher(**options)
    raise ConfigError(f"teacher {name!r} is unknown; expected one of {', '.join(TEACHERS)}")


def teacher_frames(frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frame 0, 4, 8, ...: the first frame, then the last of each group of four."""
    latent_frames(len(frames_THWC))
    return frames_THWC[::4]


def imagenet_normalised(frame_HWC: NDArray[np.uint8], device: str) -> torch.Tensor:
    """(1, 3, H, W) float32, with ImageNet's mean and deviation, as DINOv2 and V-JEPA 2 were trained."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
    pixels = torch.from_numpy(np.array(frame_HWC, order="C")).to(device).permute(2, 0, 1)[None].float() / 255.0
    return (pixels - mean) / std


def token_grid(frames_THWC: NDArray[np.uint8], grid_TYX: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The grid asked for, or that of the frames: latent frames, H / 16, W / 16; ValueError when it does not fit."""
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3:
        raise ValueError(f"frames {frames_THWC.dtype}{list(frames_THWC.shape)} must be uint8 (T, H, W, 3)")
    num_latent = latent_frames(frames_THWC.shape[0])
    height, width = frames_THWC.shape[1:3]
    if grid_TYX is None:
        if height % _TOKEN_PIXELS or width % _TOKEN_PIXELS:
            raise ValueError(f"frame size {width}x{height} must be multiples of {_TOKEN_PIXELS}, or give the grid")
        return num_latent, height // _TOKEN_PIXELS, width // _TOKEN_PIXELS
    if not 1 <= grid_TYX[0] <= num_latent or min(grid_TYX[1:]) < 1:
        raise ValueError(f"grid {grid_TYX} does not fit {num_latent} latent frames")
    return grid_TYX


def resize_frame(frame_HWC: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Averaged when shrunk, interpolated when enlarged."""
    import cv2

    shrinks = height * width < frame_HWC.shape[0] * frame_HWC.shape[1]
    resized = cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)
