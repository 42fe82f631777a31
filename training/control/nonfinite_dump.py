"""The dump of a step whose loss or gradient is not finite: enough to look at it, and to run it again.

    <run>/dumps/step-00000012/dump.json                     what, where, every clip of the step with its loss and time, gradients by parameter,
    configuration <run>/dumps/step-00000012/batches-rank-0001.safetensors micro-batches as the network got them: those whose loss is not finite,
    else all of the rank
    <run>/dumps/step-00000012/weights/                      trained weights as they were before the step, one safetensors file per rank

Every rank writes its part into a temporary folder, rank 0 puts them together and renames it. Numbers that JSON does not know are texts ("nan",
"inf"). Price: the weights once, a quarter of a checkpoint; a run that stops here is in no hurry.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, Replicate

from schemas.command import say
from schemas.config import read_yaml
from schemas.errors import ReelyardError
from schemas.files import TEMPORARY_PREFIX, said_if_unwritten, write_json
from training.batch import TrainingBatch
from training.checkpoints.environment import current_environment
from training.control.batch_files import write_batches
from training.control.restarts import DUMPS
from training.loader import LoadedStep
from training.optimizing.local_parts import local_part
from training.parallel import World, choose_precision
from training.run_setup import PreparedRun
from training.train_state import TrainState

__all__ = ["DUMP_FILE", "DUMP_VERSION", "WEIGHTS", "DumpFacts", "clip_entries", "number", "sentence", "write_dump"]

DUMP_FILE, WEIGHTS = "dump.json", "weights"
DUMP_VERSION = 1
_NAMED_CLIPS, _NAMED_PARAMETERS = 8, 5


@dataclass(frozen=True, kw_only=True)
class DumpFacts:
    """What this rank knows of the step."""

    kind: str
    value: float
    flow_losses: Sequence[Sequence[float]]
    repa_losses: Sequence[float | None]
    checkpoint: Path | None
    lanes_per_rank: int


def write_dump(
    prepared: PreparedRun, world: World, state: TrainState, loaded: LoadedStep[TrainingBatch], facts: DumpFacts
) -> str:
    """Write the dump; every rank calls it. Returns on rank 0 what is to be said.

    Each rank first says its own clips whose loss is not finite where the dump fails, since nothing else would keep them.

    Raises:
        ReelyardError: if the dump cannot be written, on all ranks.
    """
    try:
        return _write_dump(prepared, world, state, loaded, facts)
    except ReelyardError:
        _say_clips(world, loaded, facts)
        raise


def _write_dump(
    prepared: PreparedRun, world: World, state: TrainState, loaded: LoadedStep[TrainingBatch], facts: DumpFacts
) -> str:
    target = prepared.output / DUMPS / f"step-{loaded.step:08d}"
    folder = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
    gradients = _gradients(state, world)
    with world.failing_together(), said_if_unwritten(folder):
        if world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
    with world.failing_together(), said_if_unwritten(folder):
        _write_part(folder, world, loaded, facts)
    weights = {f"model/{name}": parameter.detach() for parameter, name in state.names.items()}
    with world.failing_together():
        _save_weights(folder / WEIGHTS, weights)
    words = ""
    with world.failing_together(), said_if_unwritten(folder):
        if world.rank == 0:
            dump = _whole(prepared, world, loaded, facts, gradients, folder)
            write_json(folder / DUMP_FILE, dump)
            if target.exists():
                shutil.rmtree(target)
            folder.rename(target)
            words = in_words(dump, target)
    return words


def _save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Every rank's part; DCP tells all ranks what one failed at."""
    try:
        dcp.save(weights, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except (CheckpointException, OSError, SafetensorError) as error:
        causes = getattr(error, "failures", {})
        first = next((str(cause[0]) for _, cause in sorted(causes.items())), str(error))
        raise ReelyardError(
            f"{folder} cannot be written ({first}); free some space or set its permissions, then run the same command again"
        ) from error


def _say_clips(world: World, loaded: LoadedStep[TrainingBatch], facts: DumpFacts) -> None:
    """This rank's clips to blame, without a dump."""
    clips = clip_entries(loaded, facts.flow_losses, rank=world.rank, lanes_per_rank=facts.lanes_per_rank)
    blamed = [sentence(clip) for clip in clips if not math.isfinite(clip["loss"])]
    if world.rank == 0 or blamed:
        lines = _listed(blamed, _NAMED_CLIPS) or ["  none of them is of this rank"]
        say(
            "\n".join(
                [f"step {loaded.step}: the {facts.kind} is {facts.value}; clips whose loss is not finite:", *lines]
            )
        )


def clip_entries(
    loaded: LoadedStep[TrainingBatch], flow_losses: Sequence[Sequence[float]], *, rank: int, lanes_per_rank: int
) -> list[dict[str, Any]]:
    """This rank's clips of the step, each with its place, time and loss."""
    return [
        {
            "rank": rank,
            "micro": index // lanes_per_rank,
            "lane": batch.lane,
            "bucket": str(batch.bucket),
            "clip_id": clip_id,
            "loss": loss,
            "sigma": float(sigma),
        }
        for index, (batch, losses) in enumerate(zip(loaded.batches, flow_losses, strict=True))
        for clip_id, loss, sigma in zip(batch.clip_ids, losses, batch.sigma_B, strict=True)
    ]


def sentence(clip: Mapping[str, Any]) -> str:
    """A clip in words."""
    return (
        f"{clip['clip_id']} (rank {clip['rank']}, lane {clip['lane']}, micro-batch {clip['micro']}, {clip['bucket']}, "
        f"time {clip['sigma']:.4f}): loss {clip['loss']}"
    )


def in_words(dump: Mapping[str, Any], folder: Path) -> str:
    """What the run says when it stops here: the clips to blame first."""
    clips, parameters = dump["clips"], dump["gradients"]["parameters"]
    what = "loss" if dump["kind"] == "loss" else "gradient norm"
    lines = [
        f"step {dump['step']}: the {what} is {dump['value']}, expected a finite number; nothing was updated, the weights are those before the step"
    ]
    blamed = [clip for clip in clips if not _is_finite(clip["loss"])]
    places = {(batch["rank"], batch["lane"], batch["micro"]) for batch in dump["batches"] if _is_to_blame(batch)}
    same = [clip for clip in clips if (clip["rank"], clip["lane"], clip["micro"]) in places and clip not in blamed]
    if blamed or same:
        lines.append("clips of the micro-batches whose loss is not finite:")
        lines += _listed([sentence(clip) for clip in [*blamed, *same]], _NAMED_CLIPS)
    else:
        highest = sorted(clips, key=lambda clip: clip["loss"], reverse=True)
        lines.append("every clip's loss is finite; the highest:")
        lines += _listed([sentence(clip) for clip in highest], 3)
    broken = [entry for entry in parameters if entry["nonfinite"]]
    if broken:
        lines.append(f"{len(broken)} of {len(parameters)} parameters have gradients that are not finite:")
        lines += _listed(
            [f"{entry['name']}: {entry['nonfinite']} of {entry['entries']} entries" for entry in broken],
            _NAMED_PARAMETERS,
        )
    lines += [
        f"dump: {folder} (look: reelyard-train dump {folder}; run the step again: reelyard-train dump {folder} --replay)",
        "checkpoints are untouched. Continue with a lower optimizer.lr or clip_norm (--allow-change names what you change), or leave such steps out "
        "with --set on_nonfinite=skip",
    ]
    return "\n".join(lines)


def number(value: float) -> float | str:
    """For JSON, which has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)


def _is_finite(value: float | str | None) -> bool:
    return value is None or (not isinstance(value, str) and math.isfinite(value))


def _is_to_blame(batch: Mapping[str, Any]) -> bool:
    return not (_is_finite(batch["flow_total"]) and _is_finite(batch["repa_total"]))


def _listed(texts: Sequence[str], most: int) -> list[str]:
    return [f"  {text}" for text in texts[:most]] + ([f"  and {len(texts) - most} more"] if len(texts) > most else [])


def _write_part(folder: Path, world: World, loaded: LoadedStep[TrainingBatch], facts: DumpFacts) -> None:
    """This rank's clips as JSON, and its micro-batches."""
    batches = []
    for index, batch in enumerate(loaded.batches):
        repa = facts.repa_losses[index]
        batches.append(
            {
                "rank": world.rank,
                "micro": index // facts.lanes_per_rank,
                "lane": batch.lane,
                "bucket": str(batch.bucket),
                "flow_total": number(sum(facts.flow_losses[index])),
                "repa_total": None if repa is None else number(repa),
                "file": None,
            }
        )
    kept = [index for index, entry in enumerate(batches) if _is_to_blame(entry)]
    if facts.kind == "gradient":
        kept = list(range(len(batches)))
    if kept:
        name = f"batches-rank-{world.rank:04d}.safetensors"
        write_batches(folder / name, {f"{index:04d}": loaded.batches[index] for index in kept})
        for index in kept:
            batches[index] |= {"file": name, "key": f"{index:04d}"}
    clips = clip_entries(loaded, facts.flow_losses, rank=world.rank, lanes_per_rank=facts.lanes_per_rank)
    for clip in clips:
        clip["loss"] = number(clip["loss"])
    write_json(_part_path(folder, world.rank), {"clips": clips, "batches": batches})


def _whole(
    prepared: PreparedRun,
    world: World,
    loaded: LoadedStep[TrainingBatch],
    facts: DumpFacts,
    gradients: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """All ranks' parts as one, with what is alike on all."""
    parts = []
    for rank in range(world.size):
        parts.append(read_yaml(_part_path(folder, rank)))
        _part_path(folder, rank).unlink()
    config = prepared.config
    order = ("micro", "lane")
    return {
        "format_version": DUMP_VERSION,
        "step": loaded.step,
        "kind": facts.kind,
        "value": number(facts.value),
        "plan_hash": prepared.meta.plan_hash,
        "clips": sorted(
            (clip for part in parts for clip in part["clips"]), key=lambda one: [one[key] for key in order]
        ),
        "batches": sorted(
            (one for part in parts for one in part["batches"]), key=lambda one: [one[key] for key in order]
        ),
        "gradients": gradients,
        "config": config.model_dump(mode="json"),
        "environment": current_environment(world, choose_precision(config.precision, world.device)),
        "last_checkpoint": None if facts.checkpoint is None else str(facts.checkpoint),
        "run": str(prepared.output),
    }


def _part_path(folder: Path, rank: int) -> Path:
    return folder / f"part-{rank:04d}.json"


def _gradients(state: TrainState, world: World) -> dict[str, Any]:
    """Norm of the finite entries and number of the others, of each parameter and each block; every rank calls it."""
    named = [(name, parameter) for parameter, name in state.names.items() if parameter.requires_grad]
    sums = torch.zeros(len(named), 2, dtype=torch.float64, device=world.device)
    for index, (_, parameter) in enumerate(named):
        if parameter.grad is not None:
            sums[index] = _sums_of(parameter.grad)
    dist.all_reduce(sums)
    entries = [
        {"name": name, "norm": math.sqrt(squares), "nonfinite": round(count), "entries": parameter.numel()}
        for (name, parameter), (squares, count) in zip(named, sums.tolist(), strict=True)
    ]
    groups: dict[str, dict[str, float]] = {}
    for entry in entries:
        group = groups.setdefault(_group_of(entry["name"]), {"norm": 0.0, "nonfinite": 0})
        group["norm"] = math.hypot(group["norm"], entry["norm"])
        group["nonfinite"] += entry["nonfinite"]
    return {"parameters": entries, "groups": groups}


def _sums_of(gradient: Tensor) -> Tensor:
    """This rank's share of (sum of squares of finite entries, number of others); of what several ranks hold alike, its part."""
    local = local_part(gradient)
    finite = torch.isfinite(local)
    squares = torch.where(finite, local, 0.0).to(torch.float64).square().sum()
    return torch.stack([squares, (~finite).sum().to(torch.float64)]) / _copies(gradient)


def _copies(gradient: Tensor) -> int:
    """How many ranks hold the same entries."""
    if not isinstance(gradient, DTensor):
        return dist.get_world_size()
    mesh, copies = gradient.device_mesh, 1
    for axis, placement in enumerate(gradient.placements):
        copies *= mesh.size(axis) if isinstance(placement, Replicate) else 1
    return copies


def _group_of(name: str) -> str:
    """`_group_of("dit.dual_blocks.0.mlp.up.weight") == "dit.dual_blocks.0"`."""
    parts = name.split(".")
    depth = next((index for index, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[: depth + 1])
