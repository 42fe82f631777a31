"""Writing one checkpoint, on all ranks: aside, checksummed, flushed, and renamed by rank 0 when everyone is done.

    rank 0 empties `.tmp-step-N` | every rank writes its file there, flushes it, hashes it | rank 0 looks whether it sees all of them, writes
    the record, flushes the folder, renames it to `step-N`

After each part the ranks tell each other how it went, on a gloo group that nothing else uses, so this runs in a background thread as well as in
the training thread. If one cannot go on, all raise the same error. The files are safetensors as DCP's reader knows them, one for each rank. They
are written by `safetensors.torch.save_file`, straight from the tensors' memory and without the interpreter's lock; DCP's own writer makes
two more copies of the whole state first, under that lock. Price: the file is read once more, from the page cache, for its sha256.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import (
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    HF_DCP_VERSION,
    SAVED_OFFSETS_KEY,
)

from schemas.command import say
from schemas.errors import ReelyardError
from schemas.files import flush_to_disk, write_json
from schemas.ids import content_hash
from training.checkpoints.checkpoint import RECORD_NAME, CheckpointRecord
from training.checkpoints.folders import checkpoint_folder, publish, temporary_folder
from training.checkpoints.parts import Parts, plan_parts, tensors_of
from training.parallel import World

__all__ = ["save_checkpoint", "write_checkpoint"]

_FAILURES = (OSError, SafetensorError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What a rank tells of its file."""

    file: str
    num_bytes: int
    sha256: str


def write_checkpoint(
    run: Path,
    parts: Parts,
    tensors: Sequence[Tensor],
    record: CheckpointRecord,
    world: World,
    *,
    then: Callable[[], None] | None = None,
) -> Path:
    """Write one checkpoint from this rank's parts of it; every rank calls it. Returns the complete folder.

    Rank 0 does `then` after that, before the others go on. The checkpoint is there by then, so an OSError of it is only said.

    Raises:
        ReelyardError: on all ranks alike, when one of them cannot write or is gone.
    """
    target, temporary = checkpoint_folder(run, record.next_step), temporary_folder(run, record.next_step)

    def make_folder() -> str:
        if world.rank == 0:
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
        return ""

    def write_mine() -> str:
        return _write_file(temporary, parts, tensors, world.rank)

    def publish_all() -> str:
        if world.rank == 0:
            files = _seen(temporary, said)
            write_json(temporary / RECORD_NAME, record.model_copy(update={"files": files}).model_dump(mode="json"))
            flush_to_disk(temporary)
            publish(temporary, target)
            _after(then, target)
        return ""

    try:
        _together(make_folder, target, world)
        said = _together(write_mine, target, world)
        _together(publish_all, target, world)
    except ReelyardError:
        if world.rank == 0:
            with suppress(OSError):
                shutil.rmtree(temporary)  # what is there of it fills the disk
        raise
    return target


def save_checkpoint(run: Path, tensors: dict[str, Tensor], record: CheckpointRecord, world: World) -> Path:
    """Plan and write one checkpoint, in this thread; every rank calls it."""
    parts = plan_parts(tensors, world)
    return write_checkpoint(run, parts, tensors_of(parts, tensors), record, world)


def _after(then: Callable[[], None] | None, target: Path) -> None:
    """What comes after the rename is no part of the checkpoint."""
    try:
        if then is not None:
            then()
    except OSError as error:
        say(
            f"warning: {target} is complete, but older checkpoints could not all be removed ({error}); the run goes on, "
            "the next save tries again: set permissions there, or remove them by hand"
        )


def _write_file(folder: Path, parts: Parts, tensors: Sequence[Tensor], rank: int) -> str:
    """Write, flush and hash this rank's file; returns `_Written` as JSON, nothing if the rank has no parts."""
    if not parts:
        return ""
    path = folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
    offsets = {part.name: {SAVED_OFFSETS_KEY: part.offsets} for part in parts}
    metadata = {CUSTOM_METADATA_KEY: json.dumps(offsets), DCP_VERSION_KEY: str(HF_DCP_VERSION), "format": "pt"}
    whole = {part.name: tensor.contiguous() for part, tensor in zip(parts, tensors, strict=True)}
    save_file(whole, path, metadata=metadata)
    flush_to_disk(path)
    with path.open("rb") as stream:
        digest = content_hash(stream)
    return json.dumps({"file": path.name, "num_bytes": path.stat().st_size, "sha256": digest})


def _seen(folder: Path, said: Sequence[str]) -> dict[str, str]:
    """File name to sha256 of what the ranks wrote, after a look whether rank 0 sees it as well."""
    files = {}
    for rank, text in enumerate(said):
        if not text:
            continue
        written = _Written(**json.loads(text))
        path = folder / written.file
        found = path.stat().st_size if path.is_file() else None
        if found != written.num_bytes:
            what = "not there" if found is None else f"{found} bytes long"
            raise OSError(
                f"{path}, which rank {rank} wrote with {written.num_bytes} bytes, is {what} as rank 0 sees it; "
                "expected --output on a file system that all machines of the run share"
            )
        files[written.file] = written.sha256
    return files


def _together(action: Callable[[], str], target: Path, world: World) -> list[str]:
    """Do one rank's part and hear how all others did; every rank gets the texts of all, or raises the same error."""
    result, unexpected = {"said": ""}, None
    try:
        result = {"said": action()}
    except _FAILURES as error:
        result = {"error": str(error) or type(error).__name__}
    except Exception as error:
        result, unexpected = {"error": f"{type(error).__name__}: {error}"}, error
    try:
        heard = [json.loads(text) for text in _exchange(json.dumps(result), world)]
    except RuntimeError as error:
        raise ReelyardError(
            f"checkpoint {target} was not completed: another process of the run is gone ({str(error).splitlines()[0]}); "
            "the checkpoints before it are whole, run the same command again"
        ) from error
    if unexpected is not None:
        raise unexpected
    errors = [f"rank {rank}: {answer['error']}" for rank, answer in enumerate(heard) if "error" in answer]
    if errors:
        raise ReelyardError(
            f"checkpoint {target} could not be written: {'; '.join(errors)}. Make room or set permissions there, "
            "then run the same command again: the checkpoints before it are whole"
        )
    return [answer["said"] for answer in heard]


def _exchange(text: str, world: World) -> list[str]:
    """Every rank's text, in order."""
    mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world.size)]
    dist.all_gather(lengths, torch.tensor([len(mine)]), group=world.saving_group)
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(mine)] = mine
    texts = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(texts, padded, group=world.saving_group)
    return [bytes(part[: int(length)].tolist()).decode() for part, length in zip(texts, lengths, strict=True)]
