"""One optimizer step: its data and the counts of the whole step, forward and backward of each micro-batch, the update, and what is known after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from training.batch import TrainingBatch
from training.clips_digest import digest_number, digest_text
from training.config import TrainConfig
from training.loader import LoadedStep
from training.optimizer import take_step
from training.parallel import World, set_gradient_sync
from training.run_control import said_by_rank_0
from training.run_setup import PreparedRun
from training.tally import LossTally
from training.train_state import TrainState

__all__ = ["StepCounts", "StepResults", "next_step", "run_step"]


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Facts of a whole step, summed over ranks before anything is computed."""

    clips: int
    teachers: int
    replaced: int
    video_tokens: int
    forward_flops: int
    clips_by_bucket: dict[str, int]
    clips_digest: str
    """Of the clips that were really there, in any order: see `clips_digest`."""


@dataclass(frozen=True, kw_only=True)
class StepResults:
    """What a step gave, equal on all ranks."""

    flow_sum: float
    repa_sum: float
    loss_by_bucket: dict[str, float]
    loss_by_time: list[float | None]
    grad_norm: float
    lr: float
    data_wait_ms: float


def next_step(
    steps: Iterator[LoadedStep[TrainingBatch]], world: World, prepared: PreparedRun
) -> tuple[LoadedStep[TrainingBatch], StepCounts]:
    """This rank's share of the next step, and the counts of the whole step."""
    with world.failing_together():
        loaded = next(steps)
    buckets = [entry.bucket for entry in prepared.meta.batches]
    by_bucket = [sum(b.num_clips for b in loaded.batches if str(b.bucket) == name) for name in buckets]
    summed = world.sum_int64(
        [
            sum(batch.num_clips for batch in loaded.batches),
            sum(batch.num_teachers for batch in loaded.batches),
            len(loaded.substitutions),
            sum(batch.num_clips * batch.bucket.video_tokens for batch in loaded.batches),
            sum(batch.forward_flops for batch in loaded.batches),
            digest_number(clip_id for batch in loaded.batches for clip_id in batch.clip_ids),
            *by_bucket,
        ]
    )
    return loaded, StepCounts(
        clips=summed[0],
        teachers=summed[1],
        replaced=summed[2],
        video_tokens=summed[3],
        forward_flops=summed[4],
        clips_by_bucket={name: count for name, count in zip(buckets, summed[6:], strict=True) if count},
        clips_digest=digest_text(summed[5]),
    )


def run_step(
    config: TrainConfig, world: World, state: TrainState, loaded: LoadedStep[TrainingBatch], counts: StepCounts
) -> StepResults:
    """Forward and backward of every micro-batch of this rank, one optimizer step, one update of the averages."""
    network, weight = state.network, 0.0 if config.repa is None else config.repa.weight_at(loaded.step)
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    tally = LossTally(tuple(counts.clips_by_bucket), world.device)
    network.train()
    for index, batch in enumerate(loaded.batches):
        set_gradient_sync(network, index == len(loaded.batches) - 1)
        losses = network(batch.to(world.device))
        loss = losses.flow_total / counts.clips
        sums[0] += losses.flow_total.detach()
        tally.add(str(batch.bucket), batch.sigma_B, losses.flow_per_clip_B)
        if losses.repa_total is not None:
            loss = loss + losses.repa_total * (weight / max(1, counts.teachers))
            sums[1] += losses.repa_total.detach()
        loss.backward()
    with said_by_rank_0(world):
        grad_norm, lr = take_step(network, state.optimizer, config.optimizer, loaded.step)
    state.averages.update(loaded.step)
    waits = [0.0] * world.size
    waits[world.rank] = loaded.wait_ms
    flow_sum, repa_sum, *rest = world.sum_float64([*sums.tolist(), *waits, *tally.numbers()])
    waits, tallied = rest[: world.size], rest[world.size :]
    return StepResults(
        flow_sum=flow_sum,
        repa_sum=repa_sum,
        loss_by_bucket=tally.by_bucket(tallied),
        loss_by_time=tally.by_time(tallied),
        grad_norm=grad_norm,
        lr=lr,
        data_wait_ms=max(waits),
    )
