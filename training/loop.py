"""The training loop, to be read top to bottom.

    a step's micro-batches (loader) -> clip counts of the whole step, summed over ranks -> forward and backward of each, gradients reduced
    with the last -> clip -> AdamW -> averages -> one line of metrics -> a checkpoint when due -> evaluation when due

The only state is the weights, the optimizer's two moments, the averages, and one integer: the next step of the plan. On SIGTERM the step is
finished, an evaluation left, a checkpoint saved, and the run ends as resumable. Ranks agree four times a step: has everyone its data, the
counts, the losses, has anyone a SIGTERM; an error of one rank's data or evaluation ends all of them in order. Price of that: four all-reduces of
a few numbers a step, and one more of the gradient norm's.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from schemas.command import say
from schemas.errors import ReelyardError
from training.batch import BatchMaker, TrainingBatch
from training.checkpoint import (
    CheckpointRecord,
    current_environment,
    load_tensors,
    remove_old_checkpoints,
    save_checkpoint,
    set_aside_later_checkpoints,
)
from training.config import TrainConfig
from training.curriculum.weight_source import carry_weights
from training.ema import WeightAverages
from training.evaluation.in_training import Evaluations, forget_later, open_evaluations
from training.initialization import canonical_name
from training.loader import LoadedStep, PlannedLoader
from training.metrics import append_substitutions, device_name, mfu_percent, rewind, write_metrics
from training.network import build_network
from training.optimizer import build_optimizer, optimizer_tensors, set_updates_done, take_step
from training.parallel import (
    OtherRankError,
    World,
    choose_device,
    choose_precision,
    freeze_all_but,
    open_world,
    set_gradient_sync,
    shard_network,
)
from training.run_setup import PreparedRun, environment_notes, write_run_info
from training.tally import LossTally
from training.teachers import open_teachers

__all__ = ["OtherRankError", "TrainSummary", "train"]

_SAY_EVERY_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How a run ended."""

    first_step: int
    next_step: int
    stop_step: int
    first_loss: float | None
    last_loss: float | None
    checkpoint: Path | None
    replaced_clips: int

    @property
    def interrupted(self) -> bool:
        """Whether a SIGTERM ended it before its last step."""
        return self.next_step < self.stop_step


class _TrainState:
    """Weights, optimizer and averages, as one mapping of named tensors."""

    def __init__(self, prepared: PreparedRun, teacher_widths: Mapping[str, int], world: World) -> None:
        config = prepared.config
        network = build_network(config, teacher_widths)
        if config.stage is not None and config.stage.train_only is not None:
            freeze_all_but(network, config.stage.train_only)
        self.network = shard_network(network, config, world)
        self.names = {parameter: canonical_name(name) for name, parameter in self.network.named_parameters()}
        if prepared.start is not None:
            # Before the averages are made: they begin as copies of the weights.
            parameters = {name: parameter.detach() for parameter, name in self.names.items()}
            carry_weights(prepared.start.source, prepared.start.transition, parameters, world=world)
        self.optimizer = build_optimizer(self.network, config.optimizer)
        in_dit = {name: parameter for parameter, name in self.names.items() if name.startswith("dit.")}
        self.averages = WeightAverages(in_dit, config.ema_decays)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint holds; the tensors are the live ones."""
        weights = {f"model/{name}": parameter.detach() for parameter, name in self.names.items()}
        return weights | optimizer_tensors(self.optimizer, self.names) | self.averages.tensors()


def train(prepared: PreparedRun) -> TrainSummary:
    """Run the steps that `prepared` says; every rank calls it, and gets the same summary."""
    with open_world(choose_device(prepared.config.device)) as world, _sigterm_noted() as stop:
        evaluations = _open_evaluations(prepared, world)
        loader, state = _ready(prepared, world)
        with closing(iter(loader)) as steps:
            return _run_steps(prepared, world, steps, state, evaluations, stop)


def _open_evaluations(prepared: PreparedRun, world: World) -> Evaluations:
    """What is measured on the way; before the network is made, so that encoders have the device for themselves."""
    with world.failing_together():
        evaluations = open_evaluations(prepared, world)
    return evaluations.shared(world)


def _ready(prepared: PreparedRun, world: World) -> tuple[PlannedLoader[TrainingBatch], _TrainState]:
    """The loader and the state at the first step; mistakes of one rank end all."""
    config = prepared.config
    with world.failing_together():
        teachers = open_teachers(
            config.repa,
            prepared.sets.infos,
            teacher_paths=prepared.teacher_paths,
            codec_path=prepared.codec_path,
            device=str(world.device),
        )
        loader = PlannedLoader(
            prepared.plan,
            prepared.meta,
            prepared.sets,
            rank=world.rank,
            world_size=world.size,
            prepare=BatchMaker(config, prepared.null_text_ED, teachers),
            start_step=prepared.start_step,
            stop_step=prepared.stop_step,
            read_ahead_steps=config.read_ahead_steps,
            with_teacher=config.repa is not None and config.repa.source == "stored",
            with_image=config.i2v.image_tokens,
        )
    with _said_by_rank_0(world):
        state = _TrainState(prepared, {} if teachers is None else teachers.widths, world)
    for note in teachers.notes if teachers is not None and world.rank == 0 else ():
        say(note)
    _announce(prepared, world, state)
    if prepared.resume_from is not None:
        with _said_by_rank_0(world):
            record = load_tensors(prepared.resume_from, state.tensors(), world=world)
        set_updates_done(state.optimizer, record.next_step - prepared.first_step)
        now = current_environment(world, choose_precision(config.precision, world.device))
        for note in environment_notes(record.environment, now) if world.rank == 0 else []:
            say(f"continuing is not exact: {note}")
    if world.rank == 0:
        write_run_info(prepared)
        if prepared.start_step < prepared.stop_step:
            _drop_later_steps(prepared)
    world.barrier()
    return loader, state


def _drop_later_steps(prepared: PreparedRun) -> None:
    """What an earlier attempt wrote of the steps to come makes way: lines are dropped, checkpoints set aside."""
    rewind(prepared.output, prepared.start_step)
    forget_later(prepared.output, prepared.start_step)
    later = set_aside_later_checkpoints(prepared.output, prepared.start_step)
    if later:
        say(
            f"checkpoints of steps {', '.join(map(str, later))} are of the abandoned continuation: renamed to abandoned-step-..."
        )


def _run_steps(
    prepared: PreparedRun,
    world: World,
    steps: Iterator[LoadedStep[TrainingBatch]],
    state: _TrainState,
    evaluations: Evaluations,
    stop: list[int],
) -> TrainSummary:
    config, losses, replaced = prepared.config, [], 0
    checkpoint, next_step = prepared.resume_from, prepared.start_step

    def evaluated(last: bool) -> bool:
        """Whether what is due has been measured; False when a SIGTERM came meanwhile."""
        return evaluations.run(state.network, state.averages, world, done=next_step, last=last, stop=stop)

    stopping = not evaluated(last=next_step == prepared.stop_step)
    said = started = time.perf_counter()
    while next_step < prepared.stop_step and not stopping:
        loaded, counts = _next_step(steps, world, prepared)
        results = _train_step(config, world, state, loaded, counts)
        stopping = world.any_rank(bool(stop))
        now = time.perf_counter()
        line = _metrics(prepared, world, loaded.step, counts, results, now - started)
        started = now
        append_substitutions(prepared.output, loaded.substitutions)
        losses.append(line["loss"])
        replaced += counts.replaced
        next_step = loaded.step + 1
        del loaded  # with the next call the loader takes it for gone
        ending = stopping or next_step == prepared.stop_step
        if world.rank == 0:
            write_metrics(prepared.output, line)
            if ending or now - said >= _SAY_EVERY_SECONDS:
                said = now
                _say_progress(line, prepared.stop_step)
        saving = ending or next_step % config.checkpoint.every_steps == 0
        if saving:
            checkpoint = _save(prepared, world, state, next_step)
        if not stopping and not evaluated(last=ending):
            stopping = True
            if not saving:
                checkpoint = _save(prepared, world, state, next_step)
        started = time.perf_counter()
    return TrainSummary(
        first_step=prepared.start_step,
        next_step=next_step,
        stop_step=prepared.stop_step,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        checkpoint=checkpoint,
        replaced_clips=replaced,
    )


@dataclass(frozen=True, kw_only=True)
class _StepCounts:
    """Facts of a whole step, summed over ranks before anything is computed."""

    clips: int
    teachers: int
    replaced: int
    video_tokens: int
    forward_flops: int
    clips_by_bucket: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class _StepResults:
    """What a step gave, equal on all ranks."""

    flow_sum: float
    repa_sum: float
    loss_by_bucket: dict[str, float]
    loss_by_time: list[float | None]
    grad_norm: float
    lr: float
    data_wait_ms: float


def _next_step(
    steps: Iterator[LoadedStep[TrainingBatch]], world: World, prepared: PreparedRun
) -> tuple[LoadedStep[TrainingBatch], _StepCounts]:
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
            *by_bucket,
        ]
    )
    return loaded, _StepCounts(
        clips=summed[0],
        teachers=summed[1],
        replaced=summed[2],
        video_tokens=summed[3],
        forward_flops=summed[4],
        clips_by_bucket={name: count for name, count in zip(buckets, summed[5:], strict=True) if count},
    )


def _train_step(
    config: TrainConfig, world: World, state: _TrainState, loaded: LoadedStep[TrainingBatch], counts: _StepCounts
) -> _StepResults:
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
    with _said_by_rank_0(world):
        grad_norm, lr = take_step(network, state.optimizer, config.optimizer, loaded.step)
    state.averages.update(loaded.step)
    waits = [0.0] * world.size
    waits[world.rank] = loaded.wait_ms
    flow_sum, repa_sum, *rest = world.sum_float64([*sums.tolist(), *waits, *tally.numbers()])
    waits, tallied = rest[: world.size], rest[world.size :]
    return _StepResults(
        flow_sum=flow_sum,
        repa_sum=repa_sum,
        loss_by_bucket=tally.by_bucket(tallied),
        loss_by_time=tally.by_time(tallied),
        grad_norm=grad_norm,
        lr=lr,
        data_wait_ms=max(waits),
    )


def _metrics(
    prepared: PreparedRun, world: World, step: int, counts: _StepCounts, results: _StepResults, seconds: float
) -> dict[str, Any]:
    """The step's line of `metrics.jsonl`."""
    repa = prepared.config.repa
    flow_loss = results.flow_sum / counts.clips
    repa_loss = results.repa_sum / counts.teachers if counts.teachers else None
    loss = flow_loss + (repa.weight_at(step) * repa_loss if repa is not None and repa_loss is not None else 0.0)
    return {
        "step": step,
        "loss": loss,
        "flow_loss": flow_loss,
        "repa_loss": repa_loss,
        "loss_by_bucket": results.loss_by_bucket,
        "loss_by_time": results.loss_by_time,
        "grad_norm": results.grad_norm,
        "lr": results.lr,
        "step_ms": round(seconds * 1000, 3),
        "data_wait_ms": round(results.data_wait_ms, 3),
        "tokens_per_s": round(counts.video_tokens / seconds, 1),
        "mfu_pct": mfu_percent(
            counts.forward_flops,
            seconds,
            device_name(world.device),
            world.size,
            choose_precision(prepared.config.precision, world.device),
        ),
        "buckets": counts.clips_by_bucket,
        "clips": counts.clips,
    }


def _save(prepared: PreparedRun, world: World, state: _TrainState, next_step: int) -> Path:
    config = prepared.config
    record = CheckpointRecord(
        next_step=next_step,
        plan_hash=prepared.meta.plan_hash,
        config=config.model_dump(mode="json"),
        environment=current_environment(world, choose_precision(config.precision, world.device)),
        origin=prepared.origin,
    )
    folder = save_checkpoint(prepared.output, state.tensors(), record, world)
    if world.rank == 0:
        remove_old_checkpoints(prepared.output, config.checkpoint.keep)
    return folder


@contextmanager
def _said_by_rank_0(world: World) -> Iterator[None]:
    """Around what fails on all ranks alike: rank 0 keeps the error, the others end quietly."""
    try:
        yield
    except ReelyardError as error:
        if world.rank == 0:
            raise
        raise OtherRankError("rank 0 failed alike and says why") from error


@contextmanager
def _sigterm_noted() -> Iterator[list[int]]:
    """A list that a SIGTERM appends to, instead of ending the process."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, previous)


def _announce(prepared: PreparedRun, world: World, state: _TrainState) -> None:
    if world.rank != 0:
        return
    count = sum(parameter.numel() for parameter in state.names)
    precision = str(choose_precision(prepared.config.precision, world.device)).removeprefix("torch.")
    start = f"from {prepared.resume_from}" if prepared.resume_from is not None else "from the start"
    if prepared.start is not None:
        start = f"from {prepared.start.source.words()}: {prepared.start.transition.line()}"
    frozen = count - sum(parameter.numel() for parameter in state.names if parameter.requires_grad)
    kept = f" ({frozen:,} of them frozen)" if frozen else ""
    say(
        f"training {count:,} parameters{kept} in {precision} on {world.size} x {world.device.type}, {prepared.meta.num_lanes} lanes, "
        f"steps {prepared.start_step} to {prepared.stop_step - 1} of {prepared.meta.steps.stop}, {start}"
    )


def _say_progress(line: dict[str, Any], stop_step: int) -> None:
    say(
        f"step {line['step'] + 1} of {stop_step}: loss {line['loss']:.4f}, grad norm {line['grad_norm']:.3f}, {line['step_ms']:.0f} ms "
        f"(waited {line['data_wait_ms']:.1f} ms for data), {line['tokens_per_s']:.0f} video tokens/s"
    )
