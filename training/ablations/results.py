"""What the files of a finished run say: losses, curve, seconds, parameters and FLOPs.

The flow loss of a step is that of training, so routed tokens and other clips make it incomparable between some variants; the validation loss is
dense and the same for all, and is what a difference should be read from. Price: without held-out clips there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from schemas.buckets import Bucket
from schemas.errors import DataError
from training.config import TrainConfig
from training.metrics import read_lines

__all__ = ["RunResult", "read_run", "smoothed"]

_FIRST_STEPS_NOT_TIMED = 2
_MOST_POINTS = 400


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run; JSON values only."""

    steps: int
    final_flow_loss: float
    """Mean of the last steps."""
    validation_loss: float | None
    """Dense, on held-out clips, with the averages where there are any; None without held-out clips."""
    validation_weights: str | None
    seconds_per_step: float
    """Median, without the first two."""
    parameters: int
    """Of the DiT."""
    flops_per_clip: float
    """Of training: three forward passes, with the run's route, mean over the clips it read."""
    flow_curve: tuple[tuple[float, float], ...]
    """(step, loss), smoothed."""
    validation_curve: tuple[tuple[float, float], ...]
    """(steps done, loss)."""

    def to_json(self) -> dict[str, Any]:
        """Values for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunResult:
        """Inverse of `to_json` through a JSON file."""
        curves = {key: tuple((x, y) for x, y in values[key]) for key in ("flow_curve", "validation_curve")}
        return cls(**{**values, **curves})


def read_run(run: Path, config: TrainConfig, *, last_steps: int, text_tokens: int) -> RunResult:
    """Read `metrics.jsonl` and `validation.jsonl`; DataError when the run has not done its steps."""
    lines = read_lines(run / "metrics.jsonl")
    assert config.steps is not None
    if len(lines) < config.steps:
        raise DataError(
            f"{run}: {len(lines)} of {config.steps} steps are in metrics.jsonl; run the command again to go on"
        )
    losses = [line["flow_loss"] for line in lines]
    timed = [line["step_ms"] for line in lines[_FIRST_STEPS_NOT_TIMED:]] or [line["step_ms"] for line in lines]
    weights = "ema" if config.ema_decays else "trained"
    validation = [line for line in read_lines(run / "validation.jsonl") if line["weights"] == weights]
    return RunResult(
        steps=len(lines),
        final_flow_loss=fmean(losses[-max(1, min(last_steps, len(losses) // 5)) :]),
        validation_loss=validation[-1]["loss"] if validation else None,
        validation_weights=weights if validation else None,
        seconds_per_step=median(timed) / 1000,
        parameters=config.model.parameter_count(),
        flops_per_clip=_flops_per_clip(config, lines, text_tokens),
        flow_curve=smoothed([line["step"] for line in lines], losses),
        validation_curve=tuple((line["steps_done"], line["loss"]) for line in validation if line["loss"] is not None),
    )


def smoothed(steps: Sequence[int], losses: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Means over windows of a twentieth of the steps, at most `_MOST_POINTS` points, each at the middle of its window."""
    window = max(1, len(losses) // 20)
    stride = max(1, -(-(len(losses) - window + 1) // _MOST_POINTS))
    starts = range(0, len(losses) - window + 1, stride)
    return tuple((fmean(steps[start : start + window]), fmean(losses[start : start + window])) for start in starts)


def _flops_per_clip(config: TrainConfig, lines: Sequence[Mapping[str, Any]], text_tokens: int) -> float:
    counts: dict[str, int] = {}
    for line in lines:
        for name, count in line["buckets"].items():
            counts[name] = counts.get(name, 0) + count
    flops = sum(3 * config.forward_flops(Bucket.parse(name), text_tokens) * count for name, count in counts.items())
    return flops / sum(counts.values())
