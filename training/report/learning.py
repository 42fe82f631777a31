"""The report's losses, gradient norm and learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.pages.markup import legend, panel
from training.pages.svg import HUES, Curve, curves
from training.report.charts import chart, legend_of, linear_or_log, pair, resume_marks, smooth_curve, thin_curve
from training.report.run_data import RunData
from training.report.thinning import raw_and_smoothed

__all__ = ["losses", "losses_apart", "optimizer", "validation"]


def losses(runs: Sequence[RunData]) -> str:
    """Loss against the step, raw and smoothed, with a linear and a log axis."""
    lines: list[Curve] = []
    for index, run in reversed(list(enumerate(runs))):
        lines += raw_and_smoothed(
            run.step_numbers, run.metrics["loss"], name=f"{run.name}: loss", colour=HUES[index + 1], with_raw=index == 0
        )
    return legend_of(runs) + linear_or_log("loss", lines, runs[0], y_name="loss", width=1260, height=330)


def losses_apart(run: RunData) -> str:
    """By bucket and by time, smoothed: a mean over all hides where a network fails."""
    buckets = run.metrics.by_bucket["loss_by_bucket"]
    by_bucket = [
        smooth_curve(run.step_numbers, values, name, HUES[(index + 1) % len(HUES)])
        for index, (name, values) in enumerate(buckets.items())
    ]
    times = run.metrics.by_time_NS
    shades = [f"hsl({220 - 22 * index} 60% 50%)" for index in range(times.shape[1])]
    names = [f"s {index / 10:g} to {(index + 1) / 10:g}" for index in range(times.shape[1])]
    by_time = [
        smooth_curve(run.step_numbers, times[:, index], names[index], shades[index])
        for index in range(times.shape[1])
        if np.isfinite(times[:, index]).any()
    ]
    return pair(
        (
            "Flow loss by bucket",
            legend([(curve.colour, curve.name.removesuffix(", smoothed")) for curve in by_bucket])
            + chart(by_bucket, run, "flow loss"),
        ),
        (
            "Flow loss by time s, 0 data to 1 noise",
            legend([(curve.colour, curve.name.removesuffix(", smoothed")) for curve in by_time])
            + chart(by_time, run, "flow loss"),
        ),
    )


def validation(runs: Sequence[RunData]) -> str:
    """Loss on held-out clips, nothing where none was measured."""
    lines: list[Curve] = []
    for run in runs:
        for weights in sorted({line["weights"] for line in run.validation}):
            own = [line for line in run.validation if line["weights"] == weights and line["loss"] is not None]
            points = tuple((float(line["steps_done"]), float(line["loss"])) for line in own)
            name = f"{run.name}: {weights}" if len(runs) > 1 else weights
            lines.append(Curve(name=name, colour=HUES[(len(lines) + 1) % len(HUES)], points=points, dots=True))
    if not lines:
        return ""
    picture = curves(
        lines, x_name="steps done", y_name="validation loss", width=1260, height=240, marks=resume_marks(runs[0])
    )
    return legend([(line.colour, line.name) for line in lines]) + panel(picture)


def optimizer(run: RunData) -> str:
    """Gradient norm and learning rate."""
    norm = raw_and_smoothed(run.step_numbers, run.metrics["grad_norm"], name="gradient norm", colour=HUES[1])
    return pair(
        (
            "Gradient norm before clipping",
            linear_or_log("grad-norm", norm, run, y_name="global norm", from_zero=True),
        ),
        (
            "Learning rate",
            chart([thin_curve(run.step_numbers, run.metrics["lr"], "lr", HUES[3])], run, "rate", from_zero=True),
        ),
    )
