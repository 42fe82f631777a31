"""The REPA teacher for video: V-JEPA 2 from a `transformers` folder, its patch states brought onto the trainer's token grid.

Time: a latent frame is the first picture alone, or four pictures. The network takes pairs (tubelets): the first picture is shown twice, as an
image, and the two pairs of a group of four are averaged, so every latent frame gets the states of exactly its own pictures. The network sees the
first picture, then windows of 32 pictures, each by itself: attention looks both ways, and only so are the features of the buckets of 1, 33 and
65 frames a prefix of those of 121; it is also linear in the length of a clip. Space: its positions know one square, so pictures are resized to
that square and the states are interpolated to rows and columns of tokens. Price: a window does not see its neighbours, and a wide picture is
squeezed, though not cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from encoders.devices import pick_device, pick_dtype
from encoders.registry import Registry
from encoders.teacher import Teacher, imagenet_normalised, resize_frame, token_grid
from encoders.weights import hash_folder, load_network, resolve_folder, revision_of
from schemas.errors import DataError
from schemas.ids import fingerprint

__all__ = ["VJepaTeacher"]

_CODE_VERSION = 1
_GROUP = 4
_WINDOW = 32


class VJepaTeacher(Teacher):
    """`path` is a folder or hub id of a `VJEPA2Model`; None means the registry's `teacher.vjepa2`."""

    name = "vjepa2"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str = "cpu",
        precision: str = "float32",
        registry: Registry | None = None,
    ) -> None:
        from transformers import VJEPA2Model

        folder = resolve_folder(path, default="teacher.vjepa2", registry=registry)
        model: Any = load_network(VJEPA2Model, folder, unused=("predictor.",))
        config = model.config
        if _GROUP % config.tubelet_size:
            raise DataError(f"{folder}/config.json: tubelet_size {config.tubelet_size}, expected a divisor of {_GROUP}")
        self._device = pick_device(device, purpose="teacher vjepa2")
        self._dtype = pick_dtype(precision)
        self._encoder = model.encoder.to(self._device, self._dtype).eval().requires_grad_(False)
        self._side, self._tubelet = int(config.crop_size), int(config.tubelet_size)
        self._grid = self._side // int(config.patch_size)
        self.channels = int(config.hidden_size)
        self.revision = revision_of(folder)
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, _WINDOW, hash_folder(folder), precision])

    @torch.inference_mode()
    def features(
        self, frames_THWC: NDArray[np.uint8], grid_TYX: tuple[int, int, int] | None = None
    ) -> NDArray[np.float16]:
        """(T', Y, X, hidden size) float16; the first latent frame stands for one picture, the others for four."""
        num_latent, rows, columns = token_grid(frames_THWC, grid_TYX)
        used = frames_THWC[: _GROUP * (num_latent - 1) + 1]
        maps = [self._states([used[0]] * self._tubelet, rows, columns)]
        for start in range(1, len(used), _WINDOW):
            window = self._states(list(used[start : start + _WINDOW]), rows, columns)
            maps.append(window.reshape(-1, _GROUP // self._tubelet, rows, columns, self.channels).mean(dim=1))
        result: NDArray[np.float16] = torch.cat(maps).to("cpu", torch.float16).contiguous().numpy()
        return result

    def _states(self, frames: list[NDArray[np.uint8]], rows: int, columns: int) -> torch.Tensor:
        """(tubelets, rows, columns, channels) float32 of one window."""
        pictures = [imagenet_normalised(resize_frame(frame, self._side, self._side), self._device) for frame in frames]
        video_BTCHW = torch.stack(pictures, dim=1).to(self._dtype)
        hidden_BLD = self._encoder(pixel_values_videos=video_BTCHW).last_hidden_state.float()
        maps_TCYX = hidden_BLD.reshape(-1, self._grid, self._grid, self.channels).permute(0, 3, 1, 2)
        resized = F.interpolate(maps_TCYX, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
        return resized.permute(0, 2, 3, 1)
