"""The table of a set of ablations for a terminal: a line per run, its loss curve as a row of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from training.ablations.noise import FALSE_ALARMS, SEEDS_WANTED
from training.ablations.suite import Row, SuiteTable

__all__ = ["difference_words", "noise_lines", "sparkline", "table_lines"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 16


def table_lines(table: SuiteTable) -> list[str]:
    """Head, a line for each run, and what the noise is."""
    width = max(len(row.name) for row in table.rows) + 2
    head = f"{'':{width}}{'steps':>7}{'flow loss':>11}{'validation':>12}{'difference':>13}{'s/step':>9}{'parameters':>13}{'GFLOP/clip':>12}  curve"
    span = _span(table)
    lines = [head, *(_line(table, row, width, span) for row in table.rows)]
    lines += noise_lines(table)
    lines.append("difference: of the validation loss where there is one, else of the flow loss")
    return lines


def noise_lines(table: SuiteTable) -> list[str]:
    """How large chance makes differences, and how often `~` is missing by chance."""
    lines = []
    for key, words in (("final_flow_loss", "flow loss"), ("validation_loss", "validation loss")):
        noise = table.noise(key)
        if noise is not None:
            lines.append(
                f"noise of the {words}: {noise.to_base:.4f} to the base, {noise.between_runs:.4f} between two runs, by Student's t; "
                f"{noise.seeds} seeds of the base have a standard deviation of {noise.deviation:.4f}"
            )
    if not lines:
        return [
            "noise: unknown, the base has not two seeds with a result; no difference can be told from chance, all bear ~"
        ]
    noise = table.noise("final_flow_loss")
    if noise is not None and noise.seeds < SEEDS_WANTED:
        lines.append(f"{noise.seeds} seeds make that wide: --seeds {SEEDS_WANTED} would tell smaller differences")
    count = table.num_compared
    lines.append(
        f"~ marks a difference within the noise; a variant that changes nothing lacks the mark in {FALSE_ALARMS:.0%} of cases: "
        f"of {count} variants {FALSE_ALARMS * count:.1f} by chance"
    )
    return lines


def difference_words(table: SuiteTable, row: Row, key: str) -> str:
    """Signed, with `~` before it where chance makes differences as large, or the noise is unknown."""
    found = table.difference(row, key)
    return "" if found is None else f"{'~' if table.is_within_noise(row, key) else ''}{found:+.4f}"


def sparkline(values: Sequence[float], low: float, high: float, *, width: int = _SPARK_WIDTH) -> str:
    """At most `width` blocks from low to high: `sparkline([0, 1, 2], 0, 2) == "▁▅█"`."""
    if not values:
        return ""
    step = max(1.0, len(values) / width)
    chosen = [values[min(len(values) - 1, int(index * step))] for index in range(min(width, len(values)))]
    chosen[-1] = values[-1]
    room = (high - low) or 1.0
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[min(top, max(0, round((value - low) / room * top)))] for value in chosen)


def _line(table: SuiteTable, row: Row, width: int, span: tuple[float, float]) -> str:
    if row.result is None:
        return f"{row.name:{width}}{'none':>7}  {row.reason}"
    result = row.result
    validation = "" if result.validation_loss is None else f"{result.validation_loss:.4f}"
    key = "final_flow_loss" if table.difference(row, "validation_loss") is None else "validation_loss"
    curve = sparkline([loss for _, loss in result.flow_curve], *span)
    return (
        f"{row.name:{width}}{result.steps:>7}{result.final_flow_loss:>11.4f}{validation:>12}{difference_words(table, row, key):>13}"
        f"{result.seconds_per_step:>9.3f}{result.parameters:>13,}{result.flops_per_clip / 1e9:>12,.2f}  {curve}"
    )


def _span(table: SuiteTable) -> tuple[float, float]:
    losses = [loss for row in table.rows if row.result is not None for _, loss in row.result.flow_curve]
    return (min(losses), max(losses)) if losses else (0.0, 1.0)
