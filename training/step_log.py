"""What is written and said of each step while a run goes on: the line of metrics, and a line of progress every few seconds."""

from __future__ import annotations

import time
from typing import Any

from schemas.command import say
from training.loader import LoadedStep
from training.metrics import append_substitutions, device_name, mfu_percent, write_metrics
from training.parallel import World, choose_precision
from training.run_setup import PreparedRun
from training.train_step import StepCounts, StepResults

__all__ = ["StepLog"]

_SAY_EVERY_SECONDS = 5.0


class StepLog:
    """Called on every rank after each step. `ended` says that the step's time is over, `started` that the next one's begins."""

    def __init__(self, prepared: PreparedRun, world: World) -> None:
        self._prepared = prepared
        self._world = world
        self._said = self._started = time.perf_counter()
        self.losses: list[float] = []
        self.replaced = 0

    def begin(self) -> None:
        """The next step's time begins here; what lies between `write` and this (saving, evaluation) belongs to no step."""
        self._started = time.perf_counter()

    def write(self, loaded: LoadedStep[Any], counts: StepCounts, results: StepResults) -> dict[str, Any]:
        """The step's time ends here: write its line and its replaced clips."""
        line = _line(self._prepared, self._world, loaded.step, counts, results, time.perf_counter() - self._started)
        append_substitutions(self._prepared.output, loaded.substitutions)
        self.losses.append(line["loss"])
        self.replaced += counts.replaced
        if self._world.rank == 0:
            write_metrics(self._prepared.output, line)
        return line

    def say(self, line: dict[str, Any], *, always: bool) -> None:
        """Progress, on rank 0, every few seconds or `always`."""
        now = time.perf_counter()
        if self._world.rank == 0 and (always or now - self._said >= _SAY_EVERY_SECONDS):
            self._said = now
            _say_progress(line, self._prepared.stop_step)


def _line(
    prepared: PreparedRun, world: World, step: int, counts: StepCounts, results: StepResults, seconds: float
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
        "clips_digest": counts.clips_digest,
    }


def _say_progress(line: dict[str, Any], stop_step: int) -> None:
    say(
        f"step {line['step'] + 1} of {stop_step}: loss {line['loss']:.4f}, grad norm {line['grad_norm']:.3f}, {line['step_ms']:.0f} ms "
        f"(waited {line['data_wait_ms']:.1f} ms for data), {line['tokens_per_s']:.0f} video tokens/s"
    )
