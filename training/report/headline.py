"""The report's numbers: what one asks for first, and two runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from training.config import config_differences, is_free
from training.logs.progress import duration_words
from training.pages.markup import fact, facts, note, percent, table
from training.report.column_facts import end_window, finite, first_and_last, median, quantile
from training.report.run_data import RunData

__all__ = ["comparison", "headline"]


def headline(run: RunData) -> str:
    """The numbers that one asks for first."""
    metrics, state = run.metrics, run.state()
    done, planned = int(run.step_numbers[-1]) + 1, run.stop_step
    first, last = first_and_last(metrics["loss"])
    waits = finite(metrics["data_wait_ms"])
    idle, error = run.idle_share(), run.costs["steps"]["p95"]
    moods = {"finished": "good", "failed": "bad", "killed": "bad"}
    found = [
        fact(state, "state", _ended_words(run), mood=moods.get(state, "")),
        fact(f"{done:,}", "steps" if planned is None else f"of {planned:,} steps", _wall_words(run)),
        fact(f"{first:.4g} → {last:.4g}", "loss", f"mean of the first and last {end_window(len(metrics))} steps"),
        fact(f"{median(metrics['tokens_per_s']):,.0f}", "video tokens/s", "median"),
        fact("-" if not len(finite(metrics["mfu_pct"])) else f"{median(metrics['mfu_pct']):.1f} %", "MFU", "median"),
        fact(f"{median(metrics['step_ms']):,.0f} ms", "step time", "median"),
        fact(
            "-" if np.isnan(idle) else percent(idle),
            "idle share",
            "devices waited for data or each other",
            mood="bad" if idle > 0.1 else "",
        ),
        fact(
            "-" if not len(waits) else f"{np.quantile(waits, 0.99):.3g} ms",
            "data wait, p99",
            "" if not len(waits) else f"p50 {np.quantile(waits, 0.5):.3g} ms",
        ),
        fact("-" if error is None else percent(error), "planner's error, p95", "of predicted step times"),
        fact(str(len(run.replaced)), "replaced clips", "damaged ones", mood="bad" if run.replaced else ""),
        fact(str(max(0, len(run.starts) - 1)), "restarts", f"{len(run.checkpoints)} checkpoints kept"),
    ]
    return facts(found)


def comparison(one: RunData, other: RunData) -> str:
    """Two runs side by side: numbers, what differs in their settings, and from which step on losses differ."""
    rows = []
    for name, value in _facts():
        left, right = value(one), value(other)
        ratio = f"{left / right:.3f}" if right and np.isfinite(left) and np.isfinite(right) else ""
        rows.append([name, *("-" if np.isnan(value_) else f"{value_:,.5g}" for value_ in (left, right)), ratio])
    differ = [
        [key, json.dumps(left), json.dumps(right)]
        for key, (left, right) in config_differences(one.config, other.config).items()
        if not is_free(key)
    ]
    settings_ = (
        table(["setting", one.name, other.name], differ, text=3)
        if differ
        else note("No setting that changes the maths differs.")
    )
    return (
        note(_same_losses(one, other))
        + table(["", one.name, other.name, "ratio"], rows)
        + "<h3>Settings that differ</h3>"
        + settings_
    )


def _facts() -> list[tuple[str, Callable[[RunData], float]]]:
    return [
        ("steps", lambda run: float(len(run.metrics))),
        ("last loss", lambda run: first_and_last(run.metrics["loss"])[1]),
        ("step time, median ms", lambda run: median(run.metrics["step_ms"])),
        ("video tokens/s, median", lambda run: median(run.metrics["tokens_per_s"])),
        ("idle share", lambda run: run.idle_share()),
        ("data wait, p99 ms", lambda run: quantile(run.metrics["data_wait_ms"], 0.99)),
        ("peak memory, GB", lambda run: quantile(run.metrics["mem_gb"], 1.0)),
        ("gradient norm, median", lambda run: median(run.metrics["grad_norm"])),
    ]


def _same_losses(one: RunData, other: RunData) -> str:
    """How far the two agree to the bit."""
    left = dict(zip(one.step_numbers.astype(int).tolist(), one.metrics.loss_hex, strict=True))
    right = dict(zip(other.step_numbers.astype(int).tolist(), other.metrics.loss_hex, strict=True))
    common = sorted(left.keys() & right.keys())
    if not common:
        return "The runs have no step in common."
    differ = next((step for step in common if left[step] != right[step]), None)
    if differ is None:
        return f"All {len(common):,} steps that both have lost the same to the last bit."
    sizes = np.array([abs(float.fromhex(left[s]) / float.fromhex(right[s]) - 1) for s in common])
    return f"Losses are the same bits before step {differ:,} and differ from there on, by at most {np.nanmax(sizes):.2g} of their size."


def _ended_words(run: RunData) -> str:
    ends = run.events("end")
    if run.state() == "failed":
        return f"{ends[-1]['error']} after step {ends[-1]['steps_done']}"
    return {"killed": "no end was written", "stopped": "resumable", "unknown": "no history.jsonl"}.get(run.state(), "")


def _wall_words(run: RunData) -> str:
    """From the first start to the last line, pauses between starts counted."""
    moments = finite(run.metrics["unix_s"])
    if not run.starts or not len(moments):
        return ""
    return f"{duration_words(max(0.0, float(moments[-1]) - float(run.starts[0]['unix_s'])))} since the first start"
