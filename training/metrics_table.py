"""The metrics of a run as columns: read line by line, so that a run of a hundred thousand steps takes a second or two and little memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.metrics import METRICS
from training.tally import TIME_BINS

__all__ = ["MetricsTable", "iterate_lines"]

_BY_BUCKET = ("loss_by_bucket", "micro_ms_by_bucket", "buckets")
_NOT_NUMBERS = (*_BY_BUCKET, "loss_by_time", "loss_hex", "clips_digest")


@dataclass(frozen=True, kw_only=True)
class MetricsTable:
    """N lines in their order; NaN where a line has null, or lacks the key."""

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Each key with one number to float64 (N,)."""
    by_bucket: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """loss_by_bucket, micro_ms_by_bucket, buckets to bucket to float64 (N,)."""
    by_time_NS: np.ndarray
    """loss_by_time."""
    loss_hex: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.loss_hex)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.columns[key]

    @classmethod
    def read(cls, run: Path) -> MetricsTable:
        """Of a run's folder; empty where there is no file."""
        names = [key for key in METRICS if key not in _NOT_NUMBERS]
        numbers = {name: array("d") for name in names}
        parts: dict[str, dict[str, tuple[list[int], array[float]]]] = {key: {} for key in _BY_BUCKET}
        times, loss_hex = array("d"), []
        for index, line in enumerate(iterate_lines(run / "metrics.jsonl")):
            for name in names:
                numbers[name].append(_number(line.get(name)))
            for key in _BY_BUCKET:
                for bucket, value in (line.get(key) or {}).items():
                    places, values = parts[key].setdefault(bucket, ([], array("d")))
                    places.append(index)
                    values.append(_number(value))
            times.extend(_number(value) for value in line.get("loss_by_time") or [None] * TIME_BINS)
            loss_hex.append(line["loss_hex"])
        count = len(loss_hex)
        return cls(
            columns={name: np.array(values, dtype=np.float64) for name, values in numbers.items()},
            by_bucket={
                key: {bucket: _placed(count, *found) for bucket, found in sorted(buckets.items())}
                for key, buckets in parts.items()
            },
            by_time_NS=np.array(times, dtype=np.float64).reshape(count, TIME_BINS),
            loss_hex=tuple(loss_hex),
        )


def iterate_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Lines of a JSON lines file, one in memory at a time; none when it does not exist. A last line that a kill cut off is left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as stream:
        for text in stream:
            if text.endswith("\n"):
                yield json.loads(text)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _placed(count: int, places: list[int], values: array[float]) -> np.ndarray:
    found = np.full(count, np.nan)
    found[places] = values
    return found
