"""What is written and said of each step while a run goes on, on rank 0: the line of metrics to every place that wants it, and how far the run is.

The numbers of other ranks came with the step's own exchange (`training.step_clock`), so nothing here talks to them or waits for a device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from schemas.config import read_yaml
from schemas.plan import PlanMeta
from training.batch import TrainingBatch
from training.checkpoints.environment import current_environment
from training.evaluation.in_training import Measured
from training.ledger import Ledger
from training.loader import LoadedStep
from training.logs.history import RunHistory
from training.logs.progress import RunProgress
from training.logs.scalars import scalars
from training.logs.sinks import Sample, Sink, Sinks, never_fatal
from training.metrics import LineFile, device_name, mfu_percent, write_metrics
from training.metrics_table import MetricsTable
from training.parallel import World, choose_precision
from training.profiling import device_words, model_words
from training.run_setup import PreparedRun
from training.step_costs import CostCheck, cost_errors, cost_table_of, step_seconds, write_cost_error
from training.train_step import StepCounts, StepResults

__all__ = ["StepLog"]


class StepLog:
    """Every rank has one and calls it alike; only rank 0 writes, but for the ledger, which is each rank's own.

    A context manager: however the run ends, files and tools are closed and the end is noted.
    """

    def __init__(self, prepared: PreparedRun, world: World) -> None:
        self._prepared, self._world = prepared, world
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self.replaced = 0
        self.has_paused = False
        """Whether something was saved or measured since the last step began, so that ranks may have spent unequal time."""
        self._writer = _Writer(prepared, world) if world.rank == 0 else None
        self._ledger = Ledger(prepared.output)
        self._done = prepared.start_step
        self._save_ms, self._started = 0.0, time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ledger.close()
        if self._writer is not None:
            self._writer.close(self._done, None if kind is None else kind.__name__)

    def begin(self) -> None:
        """The next step's time begins here; what lies between `write` and this (saving, evaluation) belongs to no step."""
        self.has_paused = False
        self._started = time.perf_counter()
        self._world.clock.begin()

    def write(self, loaded: LoadedStep[TrainingBatch], counts: StepCounts, results: StepResults) -> dict[str, Any]:
        """The step's time ends here: write its line and its replaced clips."""
        seconds = time.perf_counter() - self._started
        self.note_replaced(loaded, counts)
        line = _line(self._prepared, self._world, loaded.step, counts, results, seconds)
        self.first_loss = line["loss"] if self.first_loss is None else self.first_loss
        self.last_loss = line["loss"]
        line["save_ms"], self._save_ms = round(self._save_ms, 3), 0.0
        return line if self._writer is None else self._writer.write(loaded, line)

    def note_replaced(self, loaded: LoadedStep[TrainingBatch], counts: StepCounts) -> None:
        """A step's replaced clips; all there is to say of a step that was left out."""
        self._ledger.append(loaded.substitutions)
        self.replaced += counts.replaced
        self._done = loaded.step + 1

    def say(self, line: dict[str, Any], *, always: bool) -> None:
        """Progress, on rank 0, every few seconds or `always`."""
        if self._writer is not None:
            self._writer.show(line, always=always)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around what a checkpoint holds the run up for; the ledger is on the disk before it is begun."""
        started = time.perf_counter()
        self._ledger.flush()
        yield
        took_ms = 1000 * (time.perf_counter() - started)
        self.has_paused = True
        self._save_ms += took_ms
        if self._writer is not None:
            self._writer.saved(self._done, took_ms)

    def evaluated(self, measured: Measured) -> None:
        """This was measured after the last step."""
        self.has_paused |= measured.began
        if self._writer is not None and measured.began:
            self._writer.evaluated(self._done, measured)


class _Writer:
    """Rank 0's part."""

    def __init__(self, prepared: PreparedRun, world: World) -> None:
        self._prepared, self._world = prepared, world
        config, output, meta = prepared.config, prepared.output, prepared.meta
        self._metrics = LineFile(output / "metrics.jsonl")
        self._history = RunHistory(output)
        seconds = np.zeros(meta.num_steps)
        with never_fatal("the prediction of step times", "plan_ms is 0, and nothing is predicted"):
            seconds = step_seconds(prepared.plan, meta, world.size)
        self._costs = CostCheck(seconds, meta.steps.start, prepared.start_step, prepared.stop_step)
        self._progress = RunProgress(prepared.stop_step)
        self._opened = time.perf_counter()
        self._text_tokens = self._clips = 0
        self._has_work = prepared.start_step < prepared.stop_step
        if self._has_work:
            environment = current_environment(world, choose_precision(config.precision, world.device))
            self._history.note(
                "start",
                prepared.start_step,
                stop_step=prepared.stop_step,
                plan={
                    "hash": meta.plan_hash,
                    "lanes": meta.num_lanes,
                    "cost_model": meta.cost_model,
                    "seconds": _predicted(meta),
                },
                environment=environment,
                config=config.model_dump(mode="json"),
            )
        self._sinks = Sinks(_openers(prepared) if self._has_work else {})

    def write(self, loaded: LoadedStep[TrainingBatch], line: dict[str, Any]) -> dict[str, Any]:
        """Add what only rank 0 knows, and write."""
        took = self._world.clock.micro_batch_ms
        line |= self._costs.step(loaded.step, line["step_ms"] - line["data_wait_ms"])
        line["micro_ms_by_bucket"] = {bucket: round(sum(times) / len(times), 3) for bucket, times in took.items()}
        for batch in loaded.batches:
            self._text_tokens += int(batch.text_mask_BE.sum())
            self._clips += batch.num_clips
        written = write_metrics(self._metrics, line)
        if self._sinks:
            self._sinks.numbers(loaded.step, scalars(written))
        return written

    def show(self, line: dict[str, Any], *, always: bool) -> None:
        """Progress, with the time that is left."""
        left = self._costs.seconds_left(time.perf_counter() - self._opened)
        self._progress.show(line, left, always=always)

    def saved(self, done: int, took_ms: float) -> None:
        """A checkpoint was written, or begun; what tools hold back is written too, so that no step before it is lost to them."""
        self._history.note("save", done, save_ms=round(took_ms, 3))
        self._sinks.flush()

    def evaluated(self, done: int, measured: Measured) -> None:
        """Give tools the validation losses and videos of this step; those of a run's beginning count as its first step's."""
        if self._sinks:
            with never_fatal("telling tools of an evaluation", f"it lies in {self._prepared.output}"):
                self._tell_evaluation(max(0, done - 1), measured)

    def _tell_evaluation(self, step: int, measured: Measured) -> None:
        found = [line for line in measured.validation if line["loss"] is not None]
        losses = {f"validation_loss/{line['weights']}": line["loss"] for line in found}
        if losses:
            self._sinks.numbers(step, losses)
        sample = None if measured.samples is None else _sample(measured.samples)
        if sample is not None:
            self._sinks.sample(step, sample)

    def close(self, done: int, error: str | None) -> None:
        """The end, of whatever kind."""
        self._progress.close()
        state = "failed" if error else "finished" if done >= self._prepared.stop_step else "stopped"
        if self._has_work:
            self._history.note("end", done, state=state, error=error)
        self._metrics.close()
        self._sinks.close()
        if self._clips and error is None:
            with never_fatal("cost_error.json", "the report has the same"):
                self._write_cost_error()

    def _write_cost_error(self) -> None:
        config, meta, device = self._prepared.config, self._prepared.meta, self._world.device
        found = cost_errors(MetricsTable.read(self._prepared.output), _predicted(meta))
        table = cost_table_of(
            found,
            meta,
            device=device_words(device),
            model=f"{model_words(config, device)}, in a run on {self._world.size}",
            text_tokens=max(1, round(self._text_tokens / self._clips)),
        )
        write_cost_error(self._prepared.output, found, meta, table)


def _predicted(meta: PlanMeta) -> dict[str, float]:
    """Bucket to the plan's seconds of a micro-batch."""
    return {entry.bucket: entry.predicted_seconds for entry in meta.batches}


def _openers(prepared: PreparedRun) -> dict[str, Any]:
    """What is asked for, by name; opened by `Sinks`."""
    config, run, start = prepared.config, prepared.output, prepared.start_step

    def tensorboard() -> Sink:
        from training.logs.tensorboard_log import TensorBoard

        return TensorBoard(run, start)

    def wandb() -> Sink:
        from training.logs.wandb_log import Wandb

        assert config.logging.wandb is not None
        return Wandb(config.logging.wandb, run, config.model_dump(mode="json"), start)

    found = {"TensorBoard": tensorboard} if config.logging.tensorboard else {}
    return found if config.logging.wandb is None else {**found, "Weights & Biases": wandb}


def _sample(folder: Path) -> Sample | None:
    """The videos of one evaluation, if it is complete."""
    index = folder / "samples.json"
    if not index.is_file():
        return None
    videos = tuple((folder / clip["file"], clip["prompt"]) for clip in read_yaml(index).get("clips", []))
    return Sample(sheet=folder / "contact-sheet.png", videos=videos)


def _line(
    prepared: PreparedRun, world: World, step: int, counts: StepCounts, results: StepResults, seconds: float
) -> dict[str, Any]:
    """The step's line of `metrics.jsonl`, as far as all ranks know it."""
    repa, times = prepared.config.repa, results.times
    flow_loss = results.flow_sum / counts.clips
    repa_loss = results.repa_sum / counts.teachers if counts.teachers else None
    loss = flow_loss + (repa.weight_at(step) * repa_loss if repa is not None and repa_loss is not None else 0.0)
    precision = choose_precision(prepared.config.precision, world.device)
    return {
        "step": step,
        "unix_s": round(time.time(), 3),
        "loss": loss,
        "flow_loss": flow_loss,
        "repa_loss": repa_loss,
        "loss_by_bucket": results.loss_by_bucket,
        "loss_by_time": results.loss_by_time,
        "grad_norm": results.grad_norm,
        "lr": results.lr,
        "step_ms": round(seconds * 1000, 3),
        "data_wait_ms": round(times.data_wait_ms, 3),
        "idle_share": round(min(1.0, max(0.0, times.idle_ms / (seconds * 1000))), 6),
        "tokens_per_s": round(counts.video_tokens / seconds, 1),
        "mfu_pct": mfu_percent(counts.forward_flops, seconds, device_name(world.device), world.size, precision),
        "mem_gb": round(times.peak_bytes / 1e9, 3),
        "buckets": counts.clips_by_bucket,
        "clips": counts.clips,
        "replaced": counts.replaced,
        "clips_digest": counts.clips_digest,
    }
