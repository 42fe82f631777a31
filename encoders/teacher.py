"""REPA teachers: a frozen image network whose feature map lies exactly on the trainer's token grid.

A token is one latent frame by 2x2 latent pixels, that is 16x16 pixels. The teacher sees one frame per latent frame: frame 0, then the last of each
group of four, the moment that a causal codec has fully seen. It is resized so that the network's stride maps one position to one token, so no
feature is interpolated afterwards; features of a prefix are a prefix of the features. Price: small classes are enlarged (twice, for stride 32).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.efficientnet import NUM_CHANNELS, STRIDE, load_efficientnet_lite0, normalised
from encoders.registry import Registry
from encoders.weights import hash_folder, quiet_loading, resolve_folder
from schemas.buckets import latent_frames
from schemas.errors import ConfigError
from schemas.ids import fingerprint

__all__ = ["TEACHERS", "DinoTeacher", "EfficientNetTeacher", "Teacher", "get_teacher", "teacher_frames"]

_CODE_VERSION = 1
_TOKEN_PIXELS = 16

TEACHERS = ("efficientnet_lite0", "dinov2")


class Teacher(ABC):
    """Frames to one feature vector per video token."""

    name: str
    fingerprint: str
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
        self._network: Any = load_efficientnet_lite0(registry.local_path(entry), device=device)
        self._device = device
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, registry.weights_hash(entry)])

    @torch.inference_mode()
    def features(
        self, frames_THWC: NDArray[np.uint8], grid_TYX: tuple[int, int, int] | None = None
    ) -> NDArray[np.float16]:
        """(T', Y, X, 320) float16."""
        num_frames, rows, columns = _grid(frames_THWC, grid_TYX)
        network, maps = self._network, []
        for frame in teacher_frames(frames_THWC)[:num_frames]:
            pixels = normalised(_resize(frame, STRIDE * rows, STRIDE * columns), self._device)
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
        with quiet_loading():
            self._model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        self._model.to(device).eval().requires_grad_(False)
        self._device = device
        self.channels = int(self._model.config.hidden_size)
        self._patch = int(self._model.config.patch_size)
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, hash_folder(folder)])

    @torch.inference_mode()
    def features(
        self, frames_THWC: NDArray[np.uint8], grid_TYX: tuple[int, int, int] | None = None
    ) -> NDArray[np.float16]:
        """(T', Y, X, hidden size) float16."""
        num_frames, rows, columns = _grid(frames_THWC, grid_TYX)
        mean, std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
        maps = []
        for frame in teacher_frames(frames_THWC)[:num_frames]:
            resized = _resize(frame, self._patch * rows, self._patch * columns)
            pixels = (
                torch.from_numpy(np.array(resized, order="C")).to(self._device).permute(2, 0, 1)[None].float() / 255.0
            )
            hidden_BLD = self._model(pixel_values=(pixels - mean) / std).last_hidden_state
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
    raise ConfigError(f"teacher {name!r} is unknown; expected one of {', '.join(TEACHERS)}")


def teacher_frames(frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frame 0, 4, 8, ...: the first frame, then the last of each group of four."""
    latent_frames(len(frames_THWC))
    return frames_THWC[::4]


def _grid(frames_THWC: NDArray[np.uint8], grid_TYX: tuple[int, int, int] | None) -> tuple[int, int, int]:
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


def _resize(frame_HWC: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    import cv2

    shrinks = height * width < frame_HWC.shape[0] * frame_HWC.shape[1]
    resized = cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)
