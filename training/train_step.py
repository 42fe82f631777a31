"""One optimizer step: its data and the counts of the whole step, forward and backward of each micro-batch, the update, and what is known after it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.batch import TrainingBatch
from training.clips_digest import digest_number, digest_text
from training.config import TrainConfig
from training.control.nonfinite import BatchLoss, NonFiniteStepError
from training.control.run_control import RunControl, StoppedError
from training.control.stop_signals import StopWhileWaitingError
from training.loader import LoadedStep
from training.optimizing.learning_rate import learning_rate, schedule_step
from training.parallel import OtherRankError, World
from training.run_setup import PreparedRun
from training.step_clock import RankTimes
from training.sync import micro_batch, step_of
from training.tally import LossTally
from training.train_state import TrainState

__all__ = ["StepCounts", "StepResults", "fetched_from_device", "next_step", "run_step"]


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
    times: RankTimes


def next_step(
    steps: Iterator[LoadedStep[TrainingBatch]], world: World, prepared: PreparedRun, control: RunControl
) -> tuple[LoadedStep[TrainingBatch], StepCounts]:
    """This rank's share of the next step, and the counts of the whole step.

    Raises:
        Exception: on all ranks, in the same exchange, if one rank's data fails, by a ReelyardError or by a mistake in the code that makes batches.
        StoppedError: the same, if a signal came to one, also while it waits.
    """
    control.pulse.at("data")
    asked = time.perf_counter()
    buckets = [entry.bucket for entry in prepared.meta.batches]
    loaded, failure, mine = None, None, [0] * (6 + len(buckets))
    try:
        with control.signals.waiting():
            loaded = next(steps)
        mine = _counts(loaded, buckets)
    except StopWhileWaitingError:
        pass  # the exchange tells everyone
    except Exception as error:  # whatever it is, the others wait in the exchange
        failure = error
    failed, stopped, *summed = world.sum_int64([int(failure is not None), int(bool(control.signals)), *mine])
    if failed:
        raise failure or OtherRankError("another rank failed and says why")
    if stopped or loaded is None:
        raise StoppedError
    control.pulse.at("data", loaded.step)
    world.clock.gathered(1000 * (time.perf_counter() - asked) - loaded.wait_ms)
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
    config: TrainConfig,
    world: World,
    state: TrainState,
    loaded: LoadedStep[TrainingBatch],
    counts: StepCounts,
    control: RunControl,
) -> StepResults:
    """Forward and backward of every micro-batch of this rank, one optimizer step, one update of the averages.

    What the device has to say is fetched once, and exchanged once: the losses, and this rank's share of the gradient's norm.

    Raises:
        NonFiniteStepError: on all ranks, before anything is updated, if the loss or the gradient is not finite.
    """
    tally = LossTally(tuple(counts.clips_by_bucket), world.device)
    of_batches: list[BatchLoss] = []
    sums = _backward(config, world, state, loaded, counts, tally, of_batches, control)
    control.pulse.at("reduce")
    state.optimizer.collect()
    *found, squares = fetched_from_device(torch.cat([sums, tally.sums, state.optimizer.squared_norm()[None]]))
    if not world.is_first_copy:
        squares = 0.0  # the first copy speaks for all, so that all go on with the same bits
    times = world.clock.exchanged(world.rank, world.size, loaded.wait_ms)
    summed = world.sum_float64([squares, *times, *found, *tally.counts])
    grad_norm, times, (flow_sum, repa_sum, *tallied) = (
        math.sqrt(summed[0]),
        summed[1 : 1 + len(times)],
        summed[1 + len(times) :],
    )
    if not math.isfinite(flow_sum + repa_sum):
        raise NonFiniteStepError("loss", flow_sum + repa_sum, of_batches)
    if not math.isfinite(grad_norm):
        raise NonFiniteStepError("gradient", grad_norm, of_batches)
    control.pulse.at("optimizer")
    lr = learning_rate(config.optimizer, schedule_step(config.optimizer, loaded.step, state.first_step))
    state.update(grad_norm, lr, loaded.step)
    return StepResults(
        flow_sum=flow_sum,
        repa_sum=repa_sum,
        loss_by_bucket=tally.by_bucket(tallied),
        loss_by_time=tally.by_time(tallied),
        grad_norm=grad_norm,
        lr=lr,
        times=RankTimes.of(times),
    )


def fetched_from_device(values: Tensor) -> list[float]:
    """The numbers, when the device is done with what it has to do, collectives among it: the watchdog knows this wait by its name."""
    return list(values.tolist())


def _backward(
    config: TrainConfig,
    world: World,
    state: TrainState,
    loaded: LoadedStep[TrainingBatch],
    counts: StepCounts,
    tally: LossTally,
    of_batches: list[BatchLoss],
    control: RunControl,
) -> Tensor:
    """Gradients of the step's loss, summed over ranks; this rank's sums of the flow and of the alignment loss, float64 on the device."""
    network, weight = state.network, 0.0 if config.repa is None else config.repa.weight_at(loaded.step)
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    network.train()
    with step_of(network, state.sync):
        for index, batch in enumerate(loaded.batches):
            micro_batch(network, state.sync, last=index == len(loaded.batches) - 1)
            with world.clock.micro_batch(str(batch.bucket)):
                control.pulse.at("forward", loaded.step)
                losses = network(batch.to(world.device))
                loss = losses.flow_total / counts.clips
                sums[0] += losses.flow_total.detach()
                tally.add(str(batch.bucket), batch.sigma_B, losses.flow_per_clip_B)
                if losses.repa_total is not None:
                    loss = loss + losses.repa_total * (weight / max(1, counts.teachers))
                    sums[1] += losses.repa_total.detach()
                of_batches.append(BatchLoss.of(losses))
                control.pulse.at("backward")
                loss.backward()
    return sums


def _counts(loaded: LoadedStep[TrainingBatch], buckets: Sequence[str]) -> list[int]:
    """This rank's numbers of `StepCounts`, and its clips by bucket."""
    return [
        sum(batch.num_clips for batch in loaded.batches),
        sum(batch.num_teachers for batch in loaded.batches),
        len(loaded.substitutions),
        sum(batch.num_clips * batch.bucket.video_tokens for batch in loaded.batches),
        sum(batch.forward_flops for batch in loaded.batches),
        digest_number(clip_id for batch in loaded.batches for clip_id in batch.clip_ids),
        *(sum(b.num_clips for b in loaded.batches if str(b.bucket) == name) for name in buckets),
    ]
