"""The loss of every clip of a step, computed anew with the weights of a checkpoint: which of its clips made the step stand out.

The metrics hold means of buckets and of times; a single clip's loss is nowhere. But the step can be had again: plan, ledger and (seed, step, clip id)
give the very same micro-batches, noise and routes included, and one forward pass of each gives the losses. With the checkpoint right before the step
they are those that it was trained with; with another one they say which clips are hard for a network some steps older or younger. Price: the forward
passes of the step, on one device, and the network's weights in memory once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from schemas.command import progress
from schemas.errors import DataError
from training.batch import BatchMaker, TrainingBatch
from training.checkpoints.checkpoint import checkpoint_steps, find_checkpoint
from training.checkpoints.whole_network import load_network
from training.config import TrainConfig
from training.deterministic import deterministic_kernels
from training.loader import PlannedLoader
from training.network import TrainingNetwork
from training.parallel import choose_device, choose_precision
from training.run_setup import run_null_text
from training.tally import TIME_BINS
from training.whatwas.records import ClipRecord, StepRecord
from training.whatwas.run_folder import RunFolder

__all__ = ["checkpoint_for", "with_losses"]

_NEAR = 100
"""Steps to either side whose losses say what is usual."""


def checkpoint_for(run: RunFolder, step: int, wanted: int | None = None) -> int:
    """The checkpoint to take for a step: the wanted one, else the latest that lies before it, else the first after it.

    Raises:
        UsageError: when the run has none, or not the wanted one.
    """
    find_checkpoint(run.run, wanted)
    if wanted is not None:
        return wanted
    there = checkpoint_steps(run.run)
    return max((found for found in there if found <= step), default=there[0])


def with_losses(
    run: RunFolder, records: Sequence[StepRecord], lines: Mapping[int, dict[str, Any]], checkpoint: int | None = None
) -> list[StepRecord]:
    """The records with a loss for each clip.

    Raises:
        UsageError: when the run has no such checkpoint.
        DataError: when the micro-batches have other clips now, because a shard was damaged or mended since.
    """
    taken = {record.step: checkpoint_for(run, record.step, checkpoint) for record in records}
    done: dict[int, StepRecord] = {}
    for number in sorted(set(taken.values())):
        mine = [record for record in records if taken[record.step] == number]
        config = run.config(mine[0].step)
        device = choose_device("auto")
        precision = choose_precision(config.precision, device)
        dit = load_network(find_checkpoint(run.run, number), config, "trained").to(device, precision)
        network = TrainingNetwork(dit, {}, None).train()
        with deterministic_kernels(config.deterministic):
            for record in progress(mine, what=f"losses by checkpoint {number}", is_part=True):
                done[record.step] = _with_losses(run, record, lines, network, device, number)
    return [done[record.step] for record in records]


def _with_losses(
    run: RunFolder,
    record: StepRecord,
    lines: Mapping[int, dict[str, Any]],
    network: TrainingNetwork,
    device: torch.device,
    checkpoint: int,
) -> StepRecord:
    config = run.config(record.step)
    losses: list[float] = []
    ids: list[str] = []
    with torch.no_grad():
        for batch in _batches(run, record.step, config):
            losses += network(batch.to(device)).flow_per_clip_B.double().tolist()
            ids += batch.clip_ids
    if ids != [clip.clip_id for clip in record.clips]:
        raise DataError(
            f"step {record.step} cannot be had again: reading its samples now gives other clips than plan and ledger say, "
            "so a shard was damaged or mended since; copy the shards that the run was trained on, or leave --losses out"
        )
    usual = _usual_by_time(lines, record.step)
    clips = [_priced(clip, loss, usual) for clip, loss in zip(record.clips, losses, strict=True)]
    away = record.step - checkpoint
    when = "right before it" if away == 0 else f"{away} steps before it" if away > 0 else f"{-away} steps after it"
    note = f"losses of clips are by the weights of checkpoint {checkpoint}, {when}"
    return replace(record, clips=tuple(clips), notes=(*record.notes, note))


def _batches(run: RunFolder, step: int, config: TrainConfig) -> list[TrainingBatch]:
    """The step's micro-batches as one rank trains them, without teachers: they have no part in the flow loss."""
    plan = run.plan(step)
    null_text_ED = run_null_text(run.run, config.model.text_width)
    loader = PlannedLoader(
        plan.folder,
        samples=plan.sets.folders,
        prepare=BatchMaker(config, null_text_ED, None),
        start_step=step,
        stop_step=step + 1,
        with_image=config.i2v.image_tokens,
    )
    with closing(iter(loader)) as steps:
        return list(next(steps).batches)


def _usual_by_time(lines: Mapping[int, dict[str, Any]], step: int) -> list[float | None]:
    """The median loss of each tenth of the time over the steps around, the step itself left out."""
    found: list[float | None] = []
    for place in range(TIME_BINS):
        seen = [line["loss_by_time"][place] for number, line in lines.items() if 0 < abs(number - step) <= _NEAR]
        values = sorted(value for value in seen if value is not None)
        found.append(values[len(values) // 2] if values else None)
    return found


def _priced(clip: ClipRecord, loss: float, usual: Sequence[float | None]) -> ClipRecord:
    return replace(clip, loss=loss, usual_loss=usual[min(TIME_BINS - 1, int(clip.draws.sigma * TIME_BINS))])
