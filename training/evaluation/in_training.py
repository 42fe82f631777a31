"""What is measured while a network trains: videos of fixed prompts, and the loss on held-out clips, every so many steps.

    <run>/samples/step-00000020/    0001.mp4 ..., contact-sheet.png, samples.json (written last)
    <run>/validation.jsonl          a line for each measured set of weights

Before the first step, after the last, and when `every_steps` divides the steps done. Nothing of training is touched: there is no generator whose
state could move, averages are swapped in and out again bit for bit, and gathered parameters are dropped before and after. A signal is looked for
between passes; what a stop or a kill left undone is made when the run continues. Every rank runs equally many passes of equally many steps, so
that sharded networks meet in their collectives, and ranks agree on failures before each.
Encoders are gone after the prompts are encoded, the codec after each set of videos. Price: the time of it, in which no step is taken.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from schemas.buckets import Bucket
from schemas.command import say
from schemas.errors import UsageError
from schemas.files import said_if_unwritten, write_bytes
from training.control.run_control import RunControl, StoppedError
from training.evaluation.held_out import open_held_out
from training.evaluation.training_samples import TrainingSamples, open_training_samples, samples_folder
from training.evaluation.validation import Validation
from training.metrics import read_lines
from training.network import TrainingNetwork
from training.optimizing.ema import WeightAverages
from training.parallel import World, drop_gathered
from training.set_encoders import encoders_of

if TYPE_CHECKING:
    from training.run_setup import PreparedRun

__all__ = ["Evaluations", "Measured", "forget_later", "open_evaluations"]

_VALIDATION = "validation.jsonl"


@dataclass(kw_only=True)
class Measured:
    """What was measured after a step."""

    whole: bool = True
    """Whether nothing is left to the run's continuation, because of a signal."""
    validation: list[dict[str, Any]] = field(default_factory=list)
    """Lines that were added to `validation.jsonl`; on rank 0 alone."""
    samples: Path | None = None
    """The folder of new videos; on rank 0 alone."""
    began: bool = False
    """Whether anything was due and not measured yet; the same on all ranks."""


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Ready to run after any step; without sections in the configuration it does nothing."""

    prepared: PreparedRun
    samples: TrainingSamples | None
    validation: Validation | None

    def shared(self, world: World) -> Evaluations:
        """The same on every rank, once no rank has failed to open its own; every rank calls it."""
        if world.rank == 0:
            notes = [] if self.validation is None else [*self.validation.held_out.notes]
            notes += [] if self.samples is None or self.samples.note is None else [self.samples.note]
            for note in notes:
                say(f"note: {note}")
        return replace(self, samples=None if self.samples is None else self.samples.shared(world))

    def run(
        self,
        network: TrainingNetwork,
        averages: WeightAverages,
        world: World,
        *,
        done: int,
        last: bool,
        control: RunControl | None = None,
    ) -> Measured:
        """Measure what is due after `done` steps and not measured yet; every rank calls it. Leaves the rest once some rank has a signal to stop.

        Raises:
            ReelyardError: when a rank cannot decode or write; OtherRankError on the others.
        """

        def go_on() -> None:
            if control is not None:
                control.pulse.at("evaluation", done)
            if world.any_rank(control is not None and bool(control.signals)):
                raise StoppedError

        measured = Measured()
        try:
            self._run(network, averages, world, done, last, go_on, measured)
        except StoppedError:
            if world.rank == 0:
                name = "a signal" if control is None else control.signals.name
                say(f"{name}: the evaluation after {done} steps is left, and made when the run continues")
            measured.whole = False
        return measured

    def _run(
        self,
        network: TrainingNetwork,
        averages: WeightAverages,
        world: World,
        done: int,
        last: bool,
        go_on: Callable[[], None],
        measured: Measured,
    ) -> None:
        config = self.prepared.config
        if config.validation is not None and self._is_due(config.validation.every_steps, done, last):
            for weights in config.validation.weights:
                if weights == "trained" or averages.averages:
                    self._validate(weights, network, averages, world, done, go_on, measured)
        if config.evaluation is not None and self._is_due(config.evaluation.every_steps, done, last):
            self._sample(network, averages, world, done, go_on, measured)

    def due(self, done: int, last: bool) -> bool:
        """Whether something is to be measured after `done` steps, if it was not yet; averages may be swapped in for it."""
        sections = (self.prepared.config.validation, self.prepared.config.evaluation)
        return any(section is not None and self._is_due(section.every_steps, done, last) for section in sections)

    def _is_due(self, every_steps: int, done: int, last: bool) -> bool:
        return last or done == self.prepared.first_step or done % every_steps == 0

    def _validate(
        self,
        weights: str,
        network: TrainingNetwork,
        averages: WeightAverages,
        world: World,
        done: int,
        go_on: Callable[[], None],
        measured: Measured,
    ) -> None:
        assert self.validation is not None
        path = self.prepared.output / _VALIDATION
        if world.any_rank(world.rank == 0 and _has_line(path, done, weights)):
            return
        measured.began = True
        with _holding(weights, network, averages):
            result = self.validation.measure(network.velocity, world, go_on=go_on)
        with world.failing_together():
            if world.rank == 0:
                line = {"steps_done": done, "weights": weights, **result.line()}
                _append(path, line)
                measured.validation.append(line)
        if world.rank == 0:
            if result.num_not_finite:
                say(
                    f"warning: after {done} steps {result.num_not_finite} of {result.losses_NS.size} validation losses ({weights}) "
                    f"are not finite, they are null in {path}; the training has diverged, or the clips are damaged"
                )
            say(f"after {done} steps: validation loss {result.loss:.4f} ({weights})")

    def _sample(
        self,
        network: TrainingNetwork,
        averages: WeightAverages,
        world: World,
        done: int,
        go_on: Callable[[], None],
        measured: Measured,
    ) -> None:
        assert self.samples is not None
        folder = samples_folder(self.prepared.output, done)
        if world.any_rank(world.rank == 0 and (folder / "samples.json").is_file()):
            return
        measured.began = True
        weights = "ema" if averages.averages else "trained"
        with _holding(weights, network, averages):
            self.samples.make(network.velocity, world, folder, done=done, weights=weights, go_on=go_on)
        measured.samples = folder if world.rank == 0 else None


def open_evaluations(prepared: PreparedRun, world: World) -> Evaluations:
    """Read held-out clips, encode prompts; to be `shared` once no rank has failed.

    Raises:
        ReelyardError: for sets that are trained on, damaged clips, missing encoders; with what to do.
    """
    config, info = prepared.config, prepared.sets.infos[0]
    samples = validation = None
    if config.validation is not None:
        if not prepared.validation_sets:
            raise UsageError(
                "validation is on, but no set is given; name sets that are not trained on with --validation SET, or --set validation=null"
            )
        clips_of = {entry.bucket: entry.clips_per_lane for entry in prepared.meta.batches}
        held_out = open_held_out(
            prepared.validation_sets,
            trained_on=prepared.sets.folders,
            expected=encoders_of(info),
            max_frames=max(Bucket.parse(name).frames for name in clips_of),
            clips_per_bucket=config.validation.clips_per_bucket,
        )
        validation = Validation(
            held_out,
            config.validation,
            config.flow,
            clips_per_pass=lambda bucket: clips_of.get(str(bucket), 1),
            rank=world.rank,
            world_size=world.size,
        )
    elif prepared.validation_sets:
        raise UsageError("--validation names a set, but the configuration has no section `validation`; add one")
    if config.evaluation is not None:
        samples = open_training_samples(
            config.evaluation,
            config,
            info,
            prepared.null_text_ED,
            world,
            text_encoder_path=prepared.text_encoder_path,
            codec_path=prepared.codec_path,
        )
    return Evaluations(prepared=prepared, samples=samples, validation=validation)


def forget_later(run: Path, done: int) -> None:
    """What was measured after more than `done` steps makes way: lines are dropped, folders of videos renamed to `abandoned-step-...`."""
    path = run / _VALIDATION
    if path.is_file():
        kept = [line for line in read_lines(path) if line["steps_done"] <= done]
        write_bytes(path, "".join(_encoded(line) for line in kept).encode())
    for folder in sorted((run / "samples").glob("step-*")):
        if int(folder.name.removeprefix("step-")) > done:
            aside = folder.with_name(f"abandoned-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


@contextmanager
def _holding(weights: str, network: TrainingNetwork, averages: WeightAverages) -> Iterator[None]:
    """The network in evaluation mode with its first averages, or with its own weights; afterwards as it was, but for the mode.

    Compiled blocks run eagerly meanwhile, and context is packed: texts and sizes of evaluation are none of training's, and each would make graphs
    of its own.
    """
    network.eval()
    drop_gathered(network)
    swapped = averages.swapped_in(next(iter(averages.averages))) if weights == "ema" else nullcontext()
    packs_context, network.dit.packs_context = network.dit.packs_context, True
    with swapped, torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            network.dit.packs_context = packs_context
            drop_gathered(network)  # else the next step would find these gathered, and train on them


def _has_line(path: Path, done: int, weights: str) -> bool:
    return any(line["steps_done"] == done and line["weights"] == weights for line in read_lines(path))


def _append(path: Path, line: dict[str, object]) -> None:
    with said_if_unwritten(path), path.open("a", encoding="utf-8") as stream:
        stream.write(_encoded(line))


def _encoded(line: dict[str, object]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
