"""A weights folder: the weights of one network apart from any run, as `reelyard-train import` writes them and a stage can start from them.

    <folder>/model.json           format version, the network's shape, where the weights come from
    <folder>/model.safetensors    the DiT's parameters under the names of `MotifVideoDiT`, float32

Price: one file, so exporting and importing hold all the weights in memory once (8 GB for 2 B).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from schemas.config import StrictConfig, build_config, read_yaml
from schemas.errors import DataError
from schemas.files import atomic_path, write_json
from schemas.ids import content_hash
from schemas.model_shape import ModelShape

__all__ = [
    "WEIGHTS_FILE",
    "WEIGHTS_FORMAT_VERSION",
    "WeightsInfo",
    "is_weights_folder",
    "load_weights",
    "read_weights_info",
    "write_weights",
]

WEIGHTS_FORMAT_VERSION = 1
_INFO = "model.json"
WEIGHTS_FILE = "model.safetensors"


class WeightsInfo(StrictConfig):
    """`model.json`."""

    format_version: int = WEIGHTS_FORMAT_VERSION
    shape: ModelShape
    origin: str
    """In words: which file or run the weights were read from."""
    sha256: str
    """Of the tensors' file."""


def is_weights_folder(folder: Path) -> bool:
    """Whether `folder` says that it is one."""
    return (folder / _INFO).is_file()


def write_weights(folder: Path, state: Mapping[str, Tensor], shape: ModelShape, *, origin: str) -> None:
    """Write a network's state dict; the information last, so that a folder is complete or not one."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file({name: value.detach().float().contiguous() for name, value in state.items()}, temporary)
    with (folder / WEIGHTS_FILE).open("rb") as stream:
        digest = content_hash(stream)
    write_json(folder / _INFO, WeightsInfo(shape=shape, origin=origin, sha256=digest).model_dump(mode="json"))


def read_weights_info(folder: Path) -> WeightsInfo:
    """Read `model.json`; DataError when it is missing or of another version."""
    path = folder / _INFO
    if not path.is_file():
        raise DataError(f"{folder} is not a weights folder: {_INFO} is missing; make one with `reelyard-train import`")
    info = build_config(WeightsInfo, read_yaml(path), source=str(path))
    if info.format_version != WEIGHTS_FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version {info.format_version}, expected {WEIGHTS_FORMAT_VERSION}; import the weights again"
        )
    return info


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors, on the CPU; DataError when they are missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder / WEIGHTS_FILE} cannot be read ({error}); import the weights again") from error
