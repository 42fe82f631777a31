"""VBench's results files to a table and its three totals.

A results file is `{dimension: [score, [{"video_path", "video_results"}, ...]]}`. Quality and semantic score are the weighted means of the
normalized scores, the total is (4 quality + 1 semantic) / 5, as in VBench's `scripts/cal_final_score.py`. That script counts a dimension without
result as 0; here a total needs all of its dimensions, since 0 would be read as a measurement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemas.errors import DataError
from training.evaluation.vbench.dimensions import DIMENSIONS, QUALITY_WEIGHT, SEMANTIC_WEIGHT

__all__ = ["DimensionScore", "Totals", "read_results", "report", "table_lines", "totals"]


@dataclass(frozen=True, kw_only=True)
class DimensionScore:
    """A row of the table."""

    dimension: str
    score: float | None
    """As the package gives it, 0 to 1; None with a reason."""
    num_videos: int = 0
    """That the package scored."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """None where a dimension is missing."""

    quality: float | None
    semantic: float | None
    total: float | None


def read_results(path: Path) -> dict[str, DimensionScore]:
    """Scores of a results file, by dimension.

    Raises:
        DataError: when the file is not in VBench's form, or a score is not a number from 0 to 1.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as VBench results ({error}); score again") from error
    if not isinstance(values, dict) or not values:
        raise DataError(f"{path} holds a {type(values).__name__}, expected VBench's mapping of dimensions to results")
    return {name: _row(path, name, value) for name, value in values.items()}


def totals(scores: Mapping[str, DimensionScore]) -> Totals:
    """Quality, semantic and total score, on VBench's scale from 0 to 1."""
    quality, semantic = _half(scores, quality=True), _half(scores, quality=False)
    total = None
    if quality is not None and semantic is not None:
        total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return Totals(quality=quality, semantic=semantic, total=total)


def report(scores: Mapping[str, DimensionScore], version: str) -> dict[str, Any]:
    """The table as JSON values."""
    rows = [
        {**asdict(row), "normalized": None if row.score is None else DIMENSIONS[name].normalized(row.score)}
        for name, row in scores.items()
    ]
    return {"vbench_version": version, "dimensions": rows, **asdict(totals(scores))}


def table_lines(scores: Mapping[str, DimensionScore]) -> list[str]:
    """The table for a terminal, percentages as on VBench's board."""
    lines = [f"{'dimension':24}{'videos':>8}{'score':>9}{'normalized':>12}"]
    for name, row in scores.items():
        if row.score is None:
            lines.append(f"{name:24}{'':>8}{'none':>9}  {row.reason}")
        else:
            normalized = DIMENSIONS[name].normalized(row.score)
            lines.append(
                f"{name:24}{row.num_videos:>8}{100 * row.score:>9.2f}{100 * normalized:>12.2f}  {row.reason}".rstrip()
            )
    for name, value in asdict(totals(scores)).items():
        missing = _missing(scores, name)
        words = (
            f"{100 * value:>9.2f}" if value is not None else f"{'none':>9}  {len(missing)} dimensions without a score"
        )
        lines.append(f"{name + ' score':24}{'':>8}{words}")
    return lines


def _row(path: Path, name: str, value: Any) -> DimensionScore:
    if name not in DIMENSIONS:
        raise DataError(f"{path}: {name!r} is no dimension of VBench; expected some of {', '.join(DIMENSIONS)}")
    if not isinstance(value, Sequence) or len(value) != 2 or not isinstance(value[0], int | float):
        raise DataError(f"{path}: {name} is {str(value)[:60]!r}, expected [score, [a result for each video]]")
    score, videos = float(value[0]), value[1]
    count = len(videos) if isinstance(videos, list) else 0
    if math.isnan(score):
        return DimensionScore(dimension=name, score=None, num_videos=count, reason="the package scored no video")
    if not -1e-6 <= score <= 1.0 + 1e-6:
        raise DataError(f"{path}: {name} is {score}, expected 0 to 1; was it written by another version of vbench?")
    return DimensionScore(dimension=name, score=score, num_videos=count)


def _half(scores: Mapping[str, DimensionScore], *, quality: bool) -> float | None:
    summed, weight = 0.0, 0.0
    for dimension in DIMENSIONS.values():
        if dimension.quality == quality:
            row = scores.get(dimension.name)
            if row is None or row.score is None:
                return None
            summed += dimension.weight * dimension.normalized(row.score)
            weight += dimension.weight
    return summed / weight


def _missing(scores: Mapping[str, DimensionScore], total: str) -> list[str]:
    wanted = {"quality": (True,), "semantic": (False,), "total": (True, False)}[total]
    return [
        name
        for name, dimension in DIMENSIONS.items()
        if dimension.quality in wanted and (name not in scores or scores[name].score is None)
    ]
