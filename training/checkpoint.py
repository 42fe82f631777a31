"""Checkpoints: torch DCP over safetensors files, written aside, then renamed; a record beside them says everything else as JSON.

    <run>/checkpoints/step-00000004/shard-00001-model-00001-of-00001.safetensors    one file per rank
    <run>/checkpoints/step-00000004/record.json                                     CheckpointRecord, sha256 of each file

A folder without the temporary prefix is complete. Nothing is pickled: DCP's own metadata would be, so its safetensors storage is used
(docs/decisions/001-checkpoint-format.md); it reshards on loading, so any world size reads what any other wrote. Saving is synchronous. Price: a
step's pause of about the state's size over the disk's speed, and one more read of the files for their sha256.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from pydantic import Field
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from schemas.config import StrictConfig, build_config, read_yaml
from schemas.errors import DataError, UsageError
from schemas.files import TEMPORARY_PREFIX, flush_to_disk, write_json
from schemas.ids import content_hash
from training.curriculum.origin import Origin
from training.parallel import World

__all__ = [
    "CheckpointRecord",
    "check_files",
    "checkpoint_steps",
    "current_environment",
    "fill_tensors",
    "find_checkpoint",
    "is_checkpoint",
    "load_tensors",
    "read_record",
    "remove_old_checkpoints",
    "save_checkpoint",
    "set_aside_later_checkpoints",
    "stored_shapes",
]

FORMAT_VERSION = 1
_RECORD = "record.json"
_PREFIX = "step-"
_ABANDONED_PREFIX = "abandoned-"


class CheckpointRecord(StrictConfig):
    """`record.json`: all state that is not a tensor, and all that an exact continuation depends on."""

    format_version: int = FORMAT_VERSION
    next_step: int
    """Steps done; the plan's step to do next. With the plan's hash, the whole state of the loader."""
    plan_hash: str
    config: dict[str, Any]
    """The run's TrainConfig."""
    environment: dict[str, Any]
    """What decides the last bits: see `current_environment`."""
    origin: Origin | None = None
    """What the run's first weights came from; null for starting weights."""
    files: dict[str, str] = Field(default_factory=dict)
    """File name to sha256."""


def current_environment(world: World, precision: torch.dtype) -> dict[str, Any]:
    """World size, threads, versions and the kind of machine. A run continued under equal ones gives equal bits."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else _cpu_name()
    return {
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "precision": str(precision).removeprefix("torch."),
        "device": device,
        "torch": torch.__version__,
        "torch_build": torch.version.git_version,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    names = [path.name.removeprefix(_PREFIX) for path in folder.iterdir() if path.name.startswith(_PREFIX)]
    return sorted(int(name) for name in names if name.isdigit())


def find_checkpoint(run: Path, step: int | None) -> Path:
    """The folder of one checkpoint; of the latest with None.

    Raises:
        UsageError: if there is none, with the steps that there are.
    """
    steps = checkpoint_steps(run)
    if not steps:
        raise UsageError(f"{run} holds no checkpoint; expected a folder that `reelyard-train run --output` wrote to")
    if step is not None and step not in steps:
        raise UsageError(f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return _folder(run, steps[-1] if step is None else step)


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is one checkpoint, rather than a run."""
    return (folder / _RECORD).is_file()


def read_record(checkpoint: Path) -> CheckpointRecord:
    """The record of a checkpoint; DataError when it is missing or of another version."""
    path = checkpoint / _RECORD
    if not path.is_file():
        raise DataError(f"{checkpoint} is not a checkpoint: {_RECORD} is missing; take another with --checkpoint STEP")
    values = read_yaml(path)
    if values.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version {values.get('format_version')!r}, expected {FORMAT_VERSION}; "
            "read it with the version of Reelyard that wrote it"
        )
    return build_config(CheckpointRecord, values, source=str(path))


def save_checkpoint(run: Path, tensors: Mapping[str, Tensor], record: CheckpointRecord, world: World) -> Path:
    """Write one checkpoint; every rank calls it, its shards go into a file of its own. Returns the complete folder."""
    target = _folder(run, record.next_step)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
    if world.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.barrier()
    dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True))
    world.barrier()
    if world.rank == 0:
        files = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        for path in temporary.iterdir():
            flush_to_disk(path)
        write_json(temporary / _RECORD, record.model_copy(update={"files": files}).model_dump(mode="json"))
        flush_to_disk(temporary)
        _replace(target, temporary)
    world.barrier()
    return target


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
    """DataError on every rank if a file of a folder is missing or has not the sha256 that was written down; rank 0 reads them."""
    problem = _damage(folder, files) if world.rank == 0 else None
    if world.sum_int64([int(problem is not None)])[0] > 0:
        raise DataError(problem or f"{folder} is damaged (rank 0 says how)")


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


def remove_old_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, oldest first."""
    for step in checkpoint_steps(run)[:-keep]:
        _remove(_folder(run, step))


def set_aside_later_checkpoints(run: Path, step: int) -> list[int]:
    """Rename the checkpoints of steps after `step` to `abandoned-step-...`, which nothing finds; return their steps.

    A run that continues from `step` writes its own from there on. Left in place the old ones would be taken for the newest: kept instead of
    those now written, and continued from the next time.
    """
    later = [found for found in checkpoint_steps(run) if found > step]
    for found in later:
        folder = _folder(run, found)
        aside = folder.with_name(f"{_ABANDONED_PREFIX}{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
    return later


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{_PREFIX}{step:08d}"


def _replace(target: Path, temporary: Path) -> None:
    """Rename `temporary` to `target`; a checkpoint of that step from an earlier attempt makes way first."""
    if target.exists():
        _remove(target)
    temporary.rename(target)
    flush_to_disk(target.parent)


def _remove(folder: Path) -> None:
    """Take a checkpoint away: renamed first, so that no half-removed one is ever found."""
    doomed = folder.with_name(f"{TEMPORARY_PREFIX}old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _damage(checkpoint: Path, files: Mapping[str, str]) -> str | None:
    """What is wrong with the files of a checkpoint, in words; None when all is well."""
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"checkpoint {checkpoint}: file {name} is missing; copy it again, or take another with --checkpoint STEP"
        found = _sha256(path)
        if found != expected:
            return (
                f"checkpoint {checkpoint}: file {name} has sha256 {found[:12]}..., the record says {expected[:12]}...; "
                "it is damaged: copy it again, or take another with --checkpoint STEP"
            )
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return content_hash(stream)


def _cpu_name() -> str:
    """The CPU's model as the kernel names it, else its architecture."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
