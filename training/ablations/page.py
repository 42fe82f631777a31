"""A set of ablations as one self-contained HTML page: the table, and for each group its curves over the base's, whose seeds are a band."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from training.ablations.config import BASE
from training.ablations.results import RunResult
from training.ablations.suite import Row, SuiteTable
from training.ablations.table import difference_words, noise_lines
from training.pages.markup import fact, facts, legend, note, page, table
from training.pages.svg import HUES, Curve, curves

__all__ = ["render_ablations"]


def render_ablations(found: SuiteTable, *, title: str, subtitle: str) -> str:
    """The page; title and subtitle are plain text."""
    done = sum(row.result is not None for row in found.rows)
    head = [fact(f"{done} of {len(found.rows)}", "runs have a result")]
    for key, words in (("final_flow_loss", "flow loss"), ("validation_loss", "validation loss")):
        value = found.noise(key)
        if value is not None:
            head.append(
                fact(f"{value.to_base:.4f}", f"noise of the {words}", f"to the mean of {value.seeds} seeds of the base")
            )
    parts = [
        facts(head),
        "<h2>Runs</h2>",
        _table(found),
        note(
            "Difference: to the run in the column `against` (base: to the mean of its seeds), below 0 is better. "
            + " ".join(f"{line[0].upper()}{line[1:]}." for line in noise_lines(found))
            + " Flow loss: of training, mean of the last steps; routed tokens and other data make it incomparable between some runs. "
            + ("Validation loss: dense, on held-out clips, the same for all. " if _has_validation(found) else "")
            + "FLOPs: of a training step per clip, with the run's route."
        ),
    ]
    for group in dict.fromkeys(row.group for row in found.rows if row.against is not None):
        parts.append(_group(found, group))
    return page(title, subtitle, parts)


def _table(found: SuiteTable) -> str:
    head = [
        *("run", "group", "against", "steps", "flow loss", "difference", "validation", "difference"),
        *("s / step", "parameters", "GFLOP / clip"),
    ]
    failed = [note(f"{row.name} has no result: {row.reason}") for row in found.rows if row.result is None]
    return table(head, [_cells(found, row) for row in found.rows], text=3) + "".join(failed)


def _cells(found: SuiteTable, row: Row) -> list[str]:
    words = [row.name, row.group, row.against or ""]
    if row.result is None:
        return [*words, "none", *[""] * 7]
    result = row.result
    return [
        *words,
        f"{result.steps:,}",
        f"{result.final_flow_loss:.4f}",
        difference_words(found, row, "final_flow_loss"),
        "" if result.validation_loss is None else f"{result.validation_loss:.4f}",
        difference_words(found, row, "validation_loss"),
        f"{result.seconds_per_step:.3f}",
        f"{result.parameters:,}",
        f"{result.flops_per_clip / 1e9:,.2f}",
    ]


def _group(found: SuiteTable, group: str) -> str:
    """Curves of one group's variants, and of what they are compared with."""
    rows = [row for row in found.rows if row.group == group and row.against is not None and row.result is not None]
    others = [found.row(name) for name in dict.fromkeys(row.against or BASE for row in rows)]
    shown = [row for row in [*others, *rows] if row is not None and row.result is not None]
    shown = list({row.name: row for row in shown}.values())
    parts = [f"<h2>{escape(group)}</h2>"]
    for row in found.rows:
        if row.group == group and row.against is not None:
            parts.append(note(f"{row.name}: {row.question}" + ("" if row.result is not None else " (no result)")))
    if not shown:
        return "".join(parts)
    parts.append(legend([(HUES[index % len(HUES)], row.name) for index, row in enumerate(shown)]))
    lines = [_curve(found, row, index) for index, row in enumerate(shown)]
    parts.append(_panel(curves(lines, x_name="step", y_name="flow loss, smoothed")))
    if any(row.result is not None and row.result.validation_curve for row in shown):
        lines = [_curve(found, row, index, validation=True) for index, row in enumerate(shown)]
        parts.append(_panel(curves(lines, x_name="steps done", y_name="validation loss")))
    return "".join(parts)


def _panel(picture: str) -> str:
    return f"<div class='wide'>{picture}</div>"


def _curve(found: SuiteTable, row: Row, index: int, *, validation: bool = False) -> Curve:
    def points(result: RunResult | None) -> tuple[tuple[float, float], ...]:
        if result is None:
            return ()
        return result.validation_curve if validation else result.flow_curve

    band: tuple[tuple[float, float, float], ...] = ()
    if row.name == BASE:
        band = _band([points(seed.result) for seed in found.seeds])
    return Curve(name=row.name, colour=HUES[index % len(HUES)], points=points(row.result), band=band)


def _band(every: Sequence[tuple[tuple[float, float], ...]]) -> tuple[tuple[float, float, float], ...]:
    """Lowest and highest of the seeds at each step; none where they are fewer than two."""
    if len(every) < 2:
        return ()
    columns = zip(*every, strict=False)
    return tuple((column[0][0], min(y for _, y in column), max(y for _, y in column)) for column in columns)


def _has_validation(found: SuiteTable) -> bool:
    return any(row.result is not None and row.result.validation_loss is not None for row in found.rows)
