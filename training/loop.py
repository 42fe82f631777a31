"""The training loop, to be read top to bottom.

    a step's micro-batches (loader) -> clip counts of the whole step, summed over ranks -> forward and backward of each, gradients reduced
    with the last -> clip -> AdamW -> averages -> one line of metrics -> a checkpoint when due -> evaluation when due

The only state is the weights, the optimizer's moments, the averages, and one integer: the next step of the plan. On SIGTERM or SIGINT the step
is finished, a wait for data or an evaluation left, a checkpoint saved, and the run ends as resumable. Ranks agree three times a step: has everyone
its data, with the counts; the losses and the gradient's norm; has anyone a signal. An error of one rank's data or evaluation, or a loss that is not
finite, ends all of them in order. Price of that: three all-reduces of a few numbers a step, between hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from schemas.command import say
from training.batch import BatchMaker, TrainingBatch
from training.checkpoints.checkpoint import load_tensors
from training.checkpoints.continuation import environment_differences, say_differences
from training.checkpoints.environment import current_environment
from training.checkpoints.folders import set_aside_later_checkpoints
from training.checkpoints.run_saves import RunSaves
from training.control.launch import launched_world_size
from training.control.nonfinite import NonFiniteStepError, StepsNotTaken
from training.control.run_control import (
    RunControl,
    StoppedError,
    collective_timeout_s,
    lost_rank_said,
    run_controlled,
    said_by_rank_0,
)
from training.control.run_lock import run_held
from training.control.spare_ranks import say_ended
from training.control.stop_signals import StopSignals
from training.deterministic import deterministic_kernels
from training.evaluation.in_training import Evaluations, forget_later, open_evaluations
from training.loader import LoadedStep, PlannedLoader
from training.mesh import mesh_shape
from training.metrics import rewind
from training.parallel import OtherRankError, World, choose_device, choose_precision, open_world
from training.run_setup import PreparedRun, check_same_start, write_run_info
from training.run_starts import note_start
from training.step_log import StepLog
from training.teachers import open_teachers
from training.train_state import TrainState
from training.train_step import next_step, run_step

__all__ = ["OtherRankError", "TrainSummary", "train"]


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
    skipped_steps: int
    """Those whose loss or gradient was not finite."""
    stopped_by: str
    """Name of the signal that came to this rank, if one did."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it before its last step."""
        return self.next_step < self.stop_step


def train(prepared: PreparedRun, signals: StopSignals | None = None) -> TrainSummary:
    """Run the steps that `prepared` says; every rank calls it, and gets the same summary. `signals` are those that are noted already.

    Raises:
        ReelyardError: with what went wrong; OtherRankError on ranks that leave the word to another.
    """
    config = prepared.config
    shape = mesh_shape(config.parallel, launched_world_size())
    kernels = deterministic_kernels(config.deterministic)
    with lost_rank_said(), kernels, run_controlled(prepared, signals) as control:
        with open_world(choose_device(config.device), shape, timeout_s=collective_timeout_s(config.watchdog)) as world:
            with said_by_rank_0(world):
                check_same_start(world.gather_int64(prepared.start_step), prepared.output)
            with run_held(prepared.output, world):
                evaluations = _open_evaluations(prepared, world)
                loader, state = _ready(prepared, world)
                with (
                    closing(iter(loader)) as steps,
                    closing(RunSaves(prepared, world, state)) as saves,
                    StepLog(prepared, world) as log,
                ):
                    summary = _Run(prepared, world, state, evaluations, control, saves, log).steps(steps)
        say_ended()
        return summary


def _open_evaluations(prepared: PreparedRun, world: World) -> Evaluations:
    """What is measured on the way; before the network is made, so that encoders have the device for themselves."""
    with world.failing_together():
        evaluations = open_evaluations(prepared, world)
    return evaluations.shared(world)


def _ready(prepared: PreparedRun, world: World) -> tuple[PlannedLoader[TrainingBatch], TrainState]:
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
        maker = BatchMaker(
            config,
            prepared.null_text_ED,
            teachers,
            device=world.device,
            largest_members=prepared.sets.largest_members,
        )
        loader = PlannedLoader(
            prepared.plan,
            world.rank,
            world.size,
            samples=prepared.sets,
            prepare=maker,
            prepared_bytes=maker.prepared_bytes,
            start_step=prepared.start_step,
            stop_step=prepared.stop_step,
            **config.loader.model_dump(),
            with_teacher=config.repa is not None and config.repa.source == "stored",
            with_image=config.i2v.image_tokens,
            device=world.device.type,
        )
    with said_by_rank_0(world):
        state = TrainState(prepared, {} if teachers is None else teachers.widths, world)
    with world.failing_together():
        state.check_memory(prepared, world)
    for note in (*loader.notes, *(teachers.notes if teachers is not None else ())) if world.rank == 0 else ():
        say(note)
    _announce(prepared, world, state)
    if prepared.resume_from is not None:
        with said_by_rank_0(world):
            record = load_tensors(prepared.resume_from, state.tensors(), world=world)
        state.optimizer.set_updates_done(record.next_step - prepared.first_step)
        now = current_environment(world, choose_precision(config.precision, world.device))
        if world.rank == 0:
            say_differences(
                [*prepared.differences, *environment_differences(record.environment, now)], prepared.resume_from
            )
    if world.rank == 0:
        write_run_info(prepared)
        if prepared.start_step < prepared.stop_step:
            _drop_later_steps(prepared)
            note_start(prepared)
    world.barrier()
    return loader, state


def _drop_later_steps(prepared: PreparedRun) -> None:
    """What an earlier attempt wrote of the steps to come makes way: checkpoints are set aside, lines dropped.

    In this order: killed in between, there are more lines than checkpoints, as after any kill.
    """
    later = set_aside_later_checkpoints(prepared.output, prepared.start_step)
    rewind(prepared.output, prepared.start_step)
    forget_later(prepared.output, prepared.start_step)
    if later:
        say(
            f"checkpoints of steps {', '.join(map(str, later))} are of the abandoned continuation: renamed to abandoned-step-..."
        )


class _Run:
    """The steps of one run, and what follows each of them; every rank has one and calls it alike."""

    def __init__(
        self,
        prepared: PreparedRun,
        world: World,
        state: TrainState,
        evaluations: Evaluations,
        control: RunControl,
        saves: RunSaves,
        log: StepLog,
    ) -> None:
        self._prepared, self._world, self._state = prepared, world, state
        self._evaluations, self._control, self._saves, self._log = evaluations, control, saves, log
        self._not_taken = StepsNotTaken(prepared, world, state, saves)
        self._done = self._saved = prepared.start_step
        self._digest: str | None = None
        """Of the clips of the last step."""

    def steps(self, steps: Iterator[LoadedStep[TrainingBatch]]) -> TrainSummary:
        """Run them until the last one, or until a rank has a signal."""
        stopping = not self._evaluate()
        self._begin_step()
        while not (stopping or self._at_end):
            try:
                stopping = self._step(steps)
            except StoppedError:  # while it waited for data
                break
            if stopping or self._at_end or self._saves.due(self._done):
                self._save()
            stopping = stopping or not self._evaluate()
            self._begin_step()
        if self._done != self._saved:  # stopped while it waited for data, or measured
            self._save()
        self._finish()
        return self._summary()

    @property
    def _at_end(self) -> bool:
        return self._done == self._prepared.stop_step

    def _step(self, steps: Iterator[LoadedStep[TrainingBatch]]) -> bool:
        """One step and its line; whether some rank has a signal. The loader's step ends with this call."""
        control, log = self._control, self._log
        loaded, counts = next_step(steps, self._world, self._prepared, control)
        line = None
        try:
            results = run_step(self._prepared.config, self._world, self._state, loaded, counts, control)
        except NonFiniteStepError as trouble:
            self._not_taken.skip_or_stop(loaded, trouble)
            log.note_replaced(loaded, counts)
        else:
            self._not_taken.taken()
            line = log.write(loaded, counts, results)
        stopping, unsaved = self._world.any_of([bool(control.signals), self._saves.failed])
        if unsaved:
            with said_by_rank_0(self._world):
                self._saves.finish()
        self._done, self._digest = loaded.step + 1, counts.clips_digest
        control.pulse.step_done()
        if line is not None:
            log.say(line, always=stopping or self._at_end)
        return stopping

    def _begin_step(self) -> None:
        """The next step's time begins. After what only one rank may have spent time on, all begin together."""
        if self._log.has_paused:
            self._world.barrier()
        self._log.begin()

    def _save(self) -> None:
        self._control.pulse.at("save", self._done)
        with said_by_rank_0(self._world), self._log.saving():
            self._saves.save(self._done, self._digest)
        self._saved = self._done

    def _evaluate(self) -> bool:
        """Measure what is due; False when a signal came meanwhile."""
        done, state = self._done, self._state
        self._control.pulse.at("evaluation", done)
        if self._evaluations.due(done, self._at_end):
            state.about_to_change()  # averages are swapped in
        measured = self._evaluations.run(
            state.network, state.averages, self._world, done=done, last=self._at_end, control=self._control
        )
        self._log.evaluated(measured)
        return measured.whole

    def _finish(self) -> None:
        self._control.pulse.at("save", self._done)
        with said_by_rank_0(self._world):
            self._saves.finish()
        self._control.pulse.at("end", self._done)

    def _summary(self) -> TrainSummary:
        return TrainSummary(
            first_step=self._prepared.start_step,
            next_step=self._done,
            stop_step=self._prepared.stop_step,
            first_loss=self._log.first_loss,
            last_loss=self._log.last_loss,
            checkpoint=self._saves.latest,
            replaced_clips=self._log.replaced,
            skipped_steps=self._not_taken.skipped,
            stopped_by=self._control.signals.name,
        )


def _announce(prepared: PreparedRun, world: World, state: TrainState) -> None:
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
