"""Safetensors files read as one mapping from names to float32 tensors, each read when it is asked for.

So an import holds the result and one tensor more, whatever the number of files; the shapes of all tensors are known from the headers before any
of them is read. Only safetensors are read: a pickle runs code, and quantised weights are not those that were trained. Files may put one prefix
before all names of the network (ComfyUI's `model.diffusion_model.`); it is found and taken off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.config import read_yaml
from schemas.errors import DataError, UsageError

__all__ = ["TensorFiles", "TensorSource", "open_tensor_source"]

_ANCHOR = "x_embedder.proj.weight"
"""A tensor that every layout of this network has once; what stands before it is the prefix of all."""

_OTHER_PARTS = ("vae.", "text_encoders.", "first_stage_model.", "cond_stage_model.", "conditioner.")
"""Prefixes of parts that a single-file checkpoint holds beside the network."""

_READABLE = ("F32", "BF16", "F16")

_REFUSED = {
    ".pt": "a pickle, which can run code when it is read",
    ".pth": "a pickle, which can run code when it is read",
    ".bin": "a pickle, which can run code when it is read",
    ".ckpt": "a pickle, which can run code when it is read",
    ".pkl": "a pickle, which can run code when it is read",
    ".gguf": "quantised, so these are not the weights that were trained",
}


class TensorFiles(Mapping[str, Tensor]):
    """Names without prefix to float32 tensors on the CPU. `sizes` has the shape of each."""

    def __init__(self, places: Mapping[str, tuple[Any, str]]) -> None:
        self._places = dict(places)
        self.sizes: dict[str, tuple[int, ...]] = {}
        for name, (handle, stored) in self._places.items():
            kind = handle.get_slice(stored)
            if kind.get_dtype() not in _READABLE:
                raise DataError(
                    f"tensor {stored} is of type {kind.get_dtype()}, expected one of {', '.join(_READABLE)}; "
                    "import the weights before they were quantised"
                )
            self.sizes[name] = tuple(kind.get_shape())

    def __getitem__(self, name: str) -> Tensor:
        handle, stored = self._places[name]
        tensor: Tensor = handle.get_tensor(stored).to(torch.float32)
        if not torch.isfinite(tensor).all():
            raise DataError(f"tensor {stored} holds numbers that are not finite; the file is damaged, copy it again")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True, kw_only=True)
class TensorSource:
    """What was found at a path."""

    path: Path
    """The file, or the folder of the transformer."""
    tensors: TensorFiles
    config: dict[str, Any] | None
    """The `config.json` beside the tensors, where it is this network's."""
    notes: tuple[str, ...]


def open_tensor_source(path: Path) -> TensorSource:
    """Open a safetensors file, a diffusers transformer folder (one file or shards), or the folder of a whole pipeline.

    Raises:
        UsageError: nothing there that can be read, with what to do.
        DataError: a file is damaged, an index does not fit its files, or the tensors are not this network's.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a .safetensors file or a folder of diffusers on this machine")
    if path.is_file():
        files, folder = [_accepted(path)], path.parent
    else:
        folder = path / "transformer" if (path / "model_index.json").is_file() else path
        files = _files_of(folder)
    places = _places(files)
    tensors, notes = _without_prefix(places, files[0])
    return TensorSource(
        path=path if path.is_file() else folder,
        tensors=TensorFiles(tensors),
        config=_config_of(folder),
        notes=tuple(notes),
    )


def _accepted(file: Path) -> Path:
    """The file itself; UsageError for what is not safetensors."""
    if file.suffix != ".safetensors":
        reason = _REFUSED.get(file.suffix, f"of an unknown kind ({file.suffix or 'no suffix'})")
        raise UsageError(
            f"{file} is {reason}; only .safetensors files are read: get the weights in that format, or convert them"
        )
    return file


def _files_of(folder: Path) -> list[Path]:
    """The safetensors files of a transformer folder: those of its index, or the only one."""
    if (folder / "model.json").is_file():
        raise UsageError(f"{folder} is a weights folder of this project already; use it as it is")
    indexes = sorted(folder.glob("*.safetensors.index.json")) if folder.is_dir() else []
    found = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if len(indexes) == 1:
        return _indexed(indexes[0])
    if not indexes and len(found) == 1:
        return found
    if not found:
        for other in sorted(folder.iterdir()) if folder.is_dir() else []:
            if other.suffix in _REFUSED:
                _accepted(other)
        raise UsageError(f"{folder} holds no .safetensors file; give the folder of a transformer, or of its pipeline")
    raise UsageError(
        f"{folder} holds {len(found)} .safetensors files and {len(indexes)} indexes, expected one file, or shards with one index; "
        "name the file itself"
    )


def _indexed(index: Path) -> list[Path]:
    """Shards of an index, after both agree on every name."""
    from safetensors import safe_open

    weight_map = read_yaml(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(f"{index}: weight_map is missing or empty; copy the folder again")
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if file.parent != index.parent or not file.is_file():
            raise DataError(f"{index}: file {file.name} is missing beside it; copy the folder again")
        with _opened(safe_open, file) as handle:
            stored = set(handle.keys())
        listed = {name for name, shard in weight_map.items() if shard == file.name}
        if stored != listed:
            raise DataError(
                f"{index} and {file.name} disagree on {len(stored ^ listed)} tensors (first {sorted(stored ^ listed)[:3]}); "
                "copy the folder again"
            )
    return files


def _opened(safe_open: Any, file: Path) -> Any:
    from safetensors import SafetensorError

    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} cannot be read as safetensors ({error}); copy it again") from error


def _places(files: list[Path]) -> dict[str, tuple[Any, str]]:
    from safetensors import safe_open

    places: dict[str, tuple[Any, str]] = {}
    for file in files:
        handle = _opened(safe_open, file)
        for name in handle.keys():  # noqa: SIM118  # a handle is no mapping
            places[name] = (handle, name)
    return places


def _without_prefix(places: Mapping[str, tuple[Any, str]], file: Path) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """Names of the network with their prefix taken off; other parts of a checkpoint are left out, anything else is an error."""
    prefixes = [name.removesuffix(_ANCHOR) for name in places if name.endswith(_ANCHOR)]
    if len(prefixes) != 1:
        raise DataError(
            f"{file} has {len(prefixes)} tensors named ...{_ANCHOR}, expected one; it is no Motif-Video transformer "
            f"(it has {len(places)} tensors, first {sorted(places)[:3]})"
        )
    prefix, notes = prefixes[0], []
    rest = [name for name in places if not name.startswith(prefix)]
    strangers = sorted(name for name in rest if not name.startswith(_OTHER_PARTS))
    if strangers:
        raise DataError(
            f"{file}: the network's tensors begin with {prefix!r}, but {len(strangers)} do not (first {strangers[:3]}); "
            "take them out, or import the file that they belong to"
        )
    if rest:
        notes.append(
            f"{len(rest)} tensors of other parts are left out ({', '.join(sorted({n.split('.')[0] for n in rest}))})"
        )
    return {name.removeprefix(prefix): place for name, place in places.items() if name.startswith(prefix)}, notes


def _config_of(folder: Path) -> dict[str, Any] | None:
    """`config.json` where it is there and says that it is this network's."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); copy it again") from error
    is_ours = isinstance(values, dict) and ("num_single_layers" in values)
    return values if is_ours else None
