"""The report's times: steps and waits, and what the plan predicted of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.pages.bars import log_histogram, paired_bars
from training.pages.markup import legend, note, panel, percent, table
from training.pages.svg import HUES
from training.report.charts import as_dots, chart, cut_high, linear_or_log, pair, smooth_curve, thin_curve
from training.report.column_facts import finite
from training.report.run_data import RunData
from training.report.thinning import raw_and_smoothed

__all__ = ["costs", "speed"]


def speed(run: RunData) -> str:
    """Step time with what was waited for, tokens, memory."""
    metrics, steps = run.metrics, run.step_numbers
    took = raw_and_smoothed(steps, cut_high(metrics["step_ms"]), name="step", colour=HUES[1])
    saves = np.where(metrics["save_ms"] > 0, metrics["save_ms"], np.nan)
    saved = as_dots(thin_curve(steps, cut_high(saves), "saving before the step", HUES[4]))
    idle = raw_and_smoothed(steps, cut_high(100 * metrics["idle_share"]), name="idle share", colour=HUES[2])
    tokens = raw_and_smoothed(steps, metrics["tokens_per_s"], name="video tokens/s", colour=HUES[3])
    memory = [thin_curve(steps, metrics["mem_gb"], "peak memory", HUES[5])]
    waits = finite(metrics["data_wait_ms"])
    marks = [(float(np.quantile(waits, share)), f"p{100 * share:g}") for share in (0.5, 0.99)] if len(waits) else []
    mfu = raw_and_smoothed(steps, metrics["mfu_pct"], name="MFU", colour=HUES[4])
    parts = [
        (
            "Step time, extremes cut",
            legend([(HUES[1], "step"), (HUES[4], "a save before it")])
            + linear_or_log("step-time", [*took, saved], run, y_name="ms", from_zero=True),
        ),
        (
            "Waiting for data, of the slowest rank",
            panel(log_histogram(waits, x_name="ms a step, log axis", marks=marks)),
        ),
        ("Idle share, extremes cut", chart(idle, run, "% of the step", from_zero=True)),
        ("Video tokens", chart(tokens, run, "tokens/s", from_zero=True)),
        ("Memory", chart(memory, run, "GB, peak so far", from_zero=True)),
    ]
    if len(finite(metrics["mfu_pct"])):
        parts.append(("MFU", chart(mfu, run, "% of the bf16 peak", from_zero=True)))
    return pair(*parts)


def costs(run: RunData) -> str:
    """Predicted against measured: steps, and micro-batches by bucket."""
    found = run.costs
    if not found["buckets"]:
        return note("The run has no measured micro-batches, or its plan no predicted seconds.")
    metrics = run.metrics
    measured = cut_high(metrics["step_ms"] - metrics["data_wait_ms"])
    lines = [
        smooth_curve(run.step_numbers, measured, "measured, without data wait", HUES[1]),
        smooth_curve(run.step_numbers, cut_high(metrics["predicted_ms"]), "predicted", HUES[2]),
    ]
    errors = cut_high(metrics["cost_error_pct"])
    error = raw_and_smoothed(run.step_numbers, errors, name="cost error", colour=HUES[4])
    bars = [
        (name, line["predicted_ms"], line["measured_ms"], _bar_words(line)) for name, line in found["buckets"].items()
    ]
    rows = [
        [
            name,
            f"{line['micro_batches']:,}",
            f"{line['plan_ms']:,.4g}",
            f"{line['predicted_ms']:,.1f}",
            f"{line['measured_ms']:,.1f}",
            f"{line['mean']:+.1%}",
            percent(line["p95"]),
        ]
        for name, line in found["buckets"].items()
    ]
    head = ["bucket", "steps", "plan, ms", "predicted", "measured", "mean error", "p95"]
    about = (
        f"Plan: {run.cost_model or 'its costs are not known'}. Predicted is the plan's number times {found['ratio']:.4g}, the run's median of "
        "measured over planned: what is left is the error of the plan's proportions. Micro-batches are forward and backward on rank 0, waits in "
        "its collectives counted. cost_table.json holds the measured ones for `reelyard-plan build --cost-table`."
    )
    pictures = pair(
        (
            "Micro-batches by bucket: predicted (pale) and measured",
            panel(paired_bars(bars, names=("predicted", "measured"))),
        ),
        (
            "Steps, extremes cut",
            legend([(line.colour, line.name) for line in lines]) + chart(lines, run, "ms", from_zero=True),
        ),
        ("Cost error of steps, above 0: took less than predicted", chart(error, run, "%")),
        ("In numbers", table(head, rows)),
    )
    return note(about) + pictures


def _bar_words(line: Mapping[str, Any]) -> str:
    return f"{line['measured_ms']:.3g} ms, {line['predicted_ms'] / line['measured_ms'] - 1:+.1%}"
