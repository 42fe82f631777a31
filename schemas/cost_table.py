"""The cost table: what micro-batches were measured to take on a device, as `reelyard-train profile` writes it and the planner reads it.

One JSON file. Seconds are of a whole training micro-batch (forward and backward, no optimizer step), the median of `repeats` runs after a warm-up;
memory is what the device had set aside at its peak, weights, gradients, optimizer state and averages included, or null where the device does not
count it (a CPU).
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from schemas.buckets import Bucket
from schemas.config import StrictConfig, build_config, read_yaml
from schemas.errors import DataError
from schemas.files import write_json

__all__ = ["COST_TABLE_VERSION", "CostMeasurement", "CostTable", "read_cost_table", "write_cost_table"]

COST_TABLE_VERSION = 1


class CostMeasurement(StrictConfig):
    """One (bucket, batch)."""

    bucket: str
    """FRAMESxHEIGHTxWIDTH in pixels."""
    clips: int = Field(ge=1)
    """B: clips of the micro-batch."""
    seconds: float = Field(gt=0.0)
    """Median over the repeats."""
    spread_seconds: float = Field(default=0.0, ge=0.0)
    """Largest minus smallest of the repeats."""
    peak_memory_bytes: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        Bucket.parse(self.bucket)
        return self


class CostTable(StrictConfig):
    """The file."""

    format_version: int = COST_TABLE_VERSION
    device: str
    """As the device names itself."""
    model: str
    """What was measured, in words: parameters, TREAD, precision, checkpointing."""
    text_tokens: int
    repeats: int
    measurements: tuple[CostMeasurement, ...] = Field(min_length=1)


def write_cost_table(path: Path, table: CostTable) -> None:
    """Write it atomically."""
    write_json(path, table.model_dump(mode="json"))


def read_cost_table(path: Path) -> CostTable:
    """Read and check it.

    Raises:
        DataError: if it is of another version.
        ConfigError: if it is missing or malformed.
    """
    table = build_config(CostTable, read_yaml(path), source=str(path))
    if table.format_version != COST_TABLE_VERSION:
        raise DataError(
            f"{path}: format_version {table.format_version}, expected {COST_TABLE_VERSION}; measure again with `reelyard-train profile`"
        )
    return table
