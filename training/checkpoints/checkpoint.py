"""Checkpoints on disk, and reading them: safetensors files that DCP reads, and a record that says everything else as JSON.

    <run>/checkpoints/step-00000004/shard-00001-model-00001-of-00001.safetensors    one file per rank
    <run>/checkpoints/step-00000004/record.json                                     CheckpointRecord, sha256 of each file

A folder without a prefix is complete (`training.checkpoints.folders`). Nothing is pickled: DCP's own metadata would be, so its safetensors storage is
used (docs/decisions/001-checkpoint-format.md); it reshards on loading, so any world size reads what any other wrote. Price: the files are read
twice when a run continues, the first time for their sha256; the ranks share that work.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from pydantic import Field
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader

from schemas.config import StrictConfig, build_config, read_yaml
from schemas.errors import DataError
from schemas.ids import content_hash
from training.checkpoints.folders import checkpoint_steps, find_checkpoint
from training.curriculum.origin import Origin
from training.parallel import World

__all__ = [
    "RECORD_NAME",
    "CheckpointRecord",
    "check_files",
    "checkpoint_steps",
    "fill_tensors",
    "find_checkpoint",
    "is_checkpoint",
    "load_tensors",
    "read_record",
    "stored_shapes",
]

FORMAT_VERSION = 1
RECORD_NAME = "record.json"


class CheckpointRecord(StrictConfig):
    """`record.json`: all state that is not a tensor, and all that an exact continuation depends on."""

    format_version: int = FORMAT_VERSION
    next_step: int
    """Steps done; the plan's step to do next. With the plan's hash, the whole state of the loader."""
    plan_hash: str
    config: dict[str, Any]
    """The run's TrainConfig."""
    environment: dict[str, Any]
    """What decides the last bits: see `training.checkpoints.environment`."""
    clips_digest: str | None = None
    """Of the last step done, as in its line of the metrics."""
    plan: str | None = None
    """Where the plan was. Free to change; its hash is what counts."""
    samples: tuple[str, ...] = ()
    """Where the sample sets were."""
    origin: Origin | None = None
    """What the run's first weights came from; null for starting weights."""
    files: dict[str, str] = Field(default_factory=dict)
    """File name to sha256."""


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is one checkpoint, rather than a run."""
    return (folder / RECORD_NAME).is_file()


def read_record(checkpoint: Path) -> CheckpointRecord:
    """The record of a checkpoint; DataError when it is missing or of another version."""
    path = checkpoint / RECORD_NAME
    if not path.is_file():
        raise DataError(
            f"{checkpoint} is not a checkpoint: {RECORD_NAME} is missing; take another with --checkpoint STEP"
        )
    values = read_yaml(path)
    if values.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version {values.get('format_version')!r}, expected {FORMAT_VERSION}; "
            "read it with the version of Reelyard that wrote it"
        )
    return build_config(CheckpointRecord, values, source=str(path))


def load_tensors(checkpoint: Path, tensors: Mapping[str, Tensor], *, world: World) -> CheckpointRecord:
    """Fill `tensors` in place from a checkpoint of any world size, after checking its files. DTensors take their part, plain tensors all.

    Raises:
        DataError: if a file is missing or damaged, or a tensor is not in it or has another shape.
    """
    record = read_record(checkpoint)
    check_files(checkpoint, record.files, world=world)
    fill_tensors(checkpoint, tensors)
    return record


def check_files(folder: Path, files: Mapping[str, str], *, world: World) -> None:
    """DataError on every rank if a file of a folder is missing or has not the sha256 that was written down; each rank reads some of them."""
    names = sorted(files)
    mine = names[world.rank :: world.size]
    damaged = {name for name in mine if _damage(folder, name, files[name]) is not None}
    flags = world.sum_int64([int(name in damaged) for name in names])
    for name in [name for name, flag in zip(names, flags, strict=True) if flag]:
        raise DataError(
            _damage(folder, name, files[name]) or f"{folder / name} was damaged, and is no longer: try again"
        )


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a folder of safetensors files, from their headers alone.

    Raises:
        DataError: if a file cannot be read.
    """
    from safetensors import SafetensorError

    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{folder}: its safetensors files cannot be read ({error}); take another, or copy it again"
        ) from error
    return {name: tuple(getattr(found, "size", ())) for name, found in stored.items()}


def fill_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors`, named as the folder names them, in place. DTensors take their part, plain tensors all; every rank calls it.

    Raises:
        DataError: if a tensor is not in it or has another shape.
    """
    stored = stored_shapes(folder)
    for name, tensor in tensors.items():
        if stored.get(name) != tuple(tensor.shape):
            raise DataError(
                f"checkpoint {folder}: tensor {name} is {stored.get(name, 'missing')}, expected shape {tuple(tensor.shape)}; "
                "it belongs to a network of another shape"
            )
    dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))


def _damage(checkpoint: Path, name: str, expected: str) -> str | None:
    """What is wrong with a file of a checkpoint, in words; None when all is well."""
    path = checkpoint / name
    if not path.is_file():
        return f"checkpoint {checkpoint}: file {name} is missing; copy it again, or take another with --checkpoint STEP"
    try:
        with path.open("rb") as stream:
            found = content_hash(stream)
    except OSError as error:
        return f"checkpoint {checkpoint}: file {name} cannot be read ({error.strerror}); take another with --checkpoint STEP"
    if found == expected:
        return None
    return (
        f"checkpoint {checkpoint}: file {name} has sha256 {found[:12]}..., the record says {expected[:12]}...; "
        "it is damaged: copy it again, or take another with --checkpoint STEP"
    )
