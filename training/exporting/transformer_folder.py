"""A folder that `diffusers.MotifVideoTransformer3DModel.from_pretrained` loads: `config.json` and safetensors, in shards above a size.

    diffusion_pytorch_model.safetensors                   one file, or
    diffusion_pytorch_model-00001-of-00002.safetensors    shards, tensors in the order of the network,
    diffusion_pytorch_model.safetensors.index.json        and the file of each

Written without diffusers, whose own writer wants its model in memory beside ours. Price: its names are repeated here; a test loads the folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.errors import DataError
from schemas.files import write_json
from schemas.model_shape import ModelShape
from training.interop import diffusers_config, to_diffusers

__all__ = ["MAX_SHARD_BYTES", "save_tensors", "stamped", "write_transformer"]

MAX_SHARD_BYTES = 10_000_000_000
"""diffusers' own limit."""

_STEM = "diffusion_pytorch_model"


def write_transformer(
    folder: Path,
    state: Mapping[str, Tensor],
    shape: ModelShape,
    *,
    dtype: torch.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write our state dict for diffusers; returns the number of its tensors, the copies of shared weights counted."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in diffusers_config(shape).items()}
    write_json(folder / "config.json", stamped("MotifVideoTransformer3DModel", config))
    theirs = to_diffusers(state, shape)
    shards = _shards(theirs, dtype, max_shard_bytes)
    if len(shards) == 1:
        save_tensors(folder / f"{_STEM}.safetensors", theirs, shards[0], dtype)
        return len(theirs)
    files: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"{_STEM}-{number:05d}-of-{len(shards):05d}.safetensors"
        save_tensors(folder / file, theirs, names, dtype)
        files |= dict.fromkeys(names, file)
    total = sum(value.numel() for value in theirs.values()) * dtype.itemsize
    write_json(folder / f"{_STEM}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": files})
    return len(theirs)


def stamped(class_name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the class and version that diffusers looks for."""
    return {"_class_name": class_name, "_diffusers_version": version("diffusers"), **values}


def save_tensors(file: Path, tensors: Mapping[str, Tensor], names: Iterable[str], dtype: torch.dtype) -> None:
    """Some tensors into one file, converted; DataError when one holds numbers that are not finite.

    They are copied, for safetensors refuses parts of one storage under several names.
    """
    from safetensors.torch import save_file

    names = list(names)
    for name in names:
        if not torch.isfinite(tensors[name]).all():
            raise DataError(f"tensor {name} holds numbers that are not finite; export an earlier checkpoint of the run")
    converted = {
        name: tensors[name].detach().to(dtype, copy=True, memory_format=torch.contiguous_format) for name in names
    }
    save_file(converted, file, metadata={"format": "pt"})


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype, max_bytes: int) -> list[list[str]]:
    """Names file by file, in order; a file is full before it would pass the limit, and holds one tensor at least."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, value in tensors.items():
        size = value.numel() * dtype.itemsize
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
