"""What a micro-batch costs: seconds, and memory where it is known, from analytic FLOPs or from a table that was measured on the device.

A measured micro-batch costs what was measured; one between or beyond the measurements what the law fitted to them says
(planner.pricing.cost_fit). How far that law is from measurements it has not seen, and how far FLOPs over the best single rate would be, is in
`errors`, so that nobody has to trust either. Price: a table holds for the device, the network, the precision and the number of text tokens that
it was measured with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from planner.pricing.cost_fit import FAR, MemoryLaw, TimeLaw, error_summary, leave_one_out, scaled_errors
from planner.settings import CostConfig, PlanConfig
from schemas.buckets import Bucket
from schemas.cost_table import CostTable
from schemas.errors import ConfigError

__all__ = ["AnalyticCosts", "CostModel", "MeasuredCosts", "analytic_seconds", "cost_model", "cost_words"]

TRAIN_OVER_FORWARD = 3
"""FLOPs of forward and backward over forward alone."""


class CostModel(Protocol):
    """What batch sizes, tiers and predicted step times are computed from."""

    @property
    def words(self) -> str:
        """Where the numbers come from, for `plan.json`."""
        ...

    @property
    def errors(self) -> dict[str, float]:
        """How far from measurements, as shares: mape, p95, worst (each measurement predicted from the others), `bias/BUCKET` (signed mean of the
        same), analytic_mape and analytic_worst (FLOPs over the best single rate). Empty where nothing was measured."""
        ...

    def seconds(self, bucket: Bucket, clips: int) -> float:
        """Forward and backward of `clips` clips on one device."""
        ...

    def memory_bytes(self, bucket: Bucket, clips: int) -> int | None:
        """Peak memory of the same, or None where it is not known; never falls with `clips`."""
        ...

    def is_far(self, bucket: Bucket, clips: int) -> bool:
        """Whether the prediction lies beyond twice what was measured."""
        ...


def cost_model(config: PlanConfig, table: CostTable | None) -> CostModel:
    """The model of a measured table, else of analytic FLOPs.

    Raises:
        ConfigError: if the table measures one micro-batch twice.
    """
    return AnalyticCosts(config.cost) if table is None else MeasuredCosts(table, config.cost)


def analytic_seconds(bucket: Bucket, clips: int, cost: CostConfig) -> float:
    """3 x forward FLOPs over the nominal rate, plus the overhead."""
    route = None if cost.route is None else (cost.route.first_block, cost.route.last_block, cost.route.drop_ratio)
    forward = cost.model_shape.forward_flops(bucket.video_tokens, cost.text_tokens, route=route).total
    return TRAIN_OVER_FORWARD * forward * clips / (cost.teraflops_per_second * 1e12) + cost.overhead_seconds


def cost_words(costs: CostModel, micro_batches: Iterable[tuple[Bucket, int]]) -> str:
    """`costs.words`, and which of the (bucket, clips) in use are extrapolated far."""
    far = [f"{bucket} x {clips}" for bucket, clips in micro_batches if costs.is_far(bucket, clips)]
    return costs.words + (f"; extrapolated beyond {FAR:g} times the measured range: {', '.join(far)}" if far else "")


@dataclass(frozen=True)
class AnalyticCosts:
    """FLOPs of the network over a nominal rate."""

    cost: CostConfig
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Where the numbers come from."""
        cost = self.cost
        shape = "own shape" if cost.shape is not None else cost.preset
        overhead = f" + {cost.overhead_seconds:g} s" if cost.overhead_seconds else ""
        return (
            f"analytic: 3 x forward FLOPs of {shape} ({cost.text_tokens} text tokens{', TREAD' if cost.route else ''}) "
            f"over a nominal {cost.teraflops_per_second:g} TFLOP/s{overhead}; not measured"
        )

    def seconds(self, bucket: Bucket, clips: int) -> float:
        """See `CostModel`."""
        return analytic_seconds(bucket, clips, self.cost)

    def memory_bytes(self, bucket: Bucket, clips: int) -> int | None:
        """Not known."""
        return None

    def is_far(self, bucket: Bucket, clips: int) -> bool:
        """Nothing was measured; `words` says so."""
        return False


class MeasuredCosts:
    """A cost table, and the laws fitted to it."""

    def __init__(self, table: CostTable, cost: CostConfig) -> None:
        seen = [(one.bucket, one.clips) for one in table.measurements]
        twice = sorted({pair for pair in seen if seen.count(pair) > 1})
        if twice:
            raise ConfigError(
                f"the cost table of {table.device} measures {twice[0][0]} with {twice[0][1]} clips more than once; keep one of the measurements"
            )
        self._table = table
        self._law = TimeLaw.fitted(table.measurements, table.text_tokens)
        self._memory = MemoryLaw.fitted(table.measurements, table.text_tokens)
        self._tokens = [Bucket.parse(one.bucket).video_tokens + table.text_tokens for one in table.measurements]
        self._work = [tokens * one.clips for tokens, one in zip(self._tokens, table.measurements, strict=True)]
        self.errors, self._rate = _errors(table, cost)
        self._asked_text_tokens = cost.text_tokens

    @property
    def words(self) -> str:
        """Where the numbers come from."""
        table, text = self._table, self._table.text_tokens
        parts = [
            f"measured on {table.device}: {len(table.measurements)} micro-batches of {table.model}, {text} text tokens, medians of {table.repeats}"
        ]
        if "mape" in self.errors:
            parts.append(
                f"the rest by a + B (b S + c S^2) and the bucket's own ratio, off by {self.errors['mape']:.1%} on average and "
                f"{self.errors['worst']:.1%} at worst on measurements left out"
            )
        else:
            parts.append("the rest scaled from this one measurement, error not known")
        parts.append(
            f"FLOPs over the best single rate ({self._rate:.3g} TFLOP/s) would be off by {self.errors['analytic_mape']:.1%} on average and "
            f"{self.errors['analytic_worst']:.1%} at worst"
        )
        if self._asked_text_tokens != text:
            parts.append(f"cost.text_tokens {self._asked_text_tokens} is not what was measured and is not used")
        return "; ".join(parts)

    def seconds(self, bucket: Bucket, clips: int) -> float:
        """See `CostModel`."""
        return self._law.seconds(bucket, clips)

    def memory_bytes(self, bucket: Bucket, clips: int) -> int | None:
        """See `CostModel`; None if the device does not count memory."""
        return None if self._memory is None else self._memory.peak_bytes(bucket, clips)

    def is_far(self, bucket: Bucket, clips: int) -> bool:
        """See `CostModel`."""
        tokens = bucket.video_tokens + self._table.text_tokens
        return _outside(tokens, self._tokens) or _outside(tokens * clips, self._work)


def _outside(value: float, measured: list[int]) -> bool:
    return value > FAR * max(measured) or value * FAR < min(measured)


def _errors(table: CostTable, cost: CostConfig) -> tuple[dict[str, float], float]:
    """(errors, the single rate in TFLOP/s that fits the measurements best)."""
    measured, found = table.measurements, {}
    names = np.array([one.bucket for one in measured])
    seconds = np.array([one.seconds for one in measured])
    if len(measured) > 1:
        errors = leave_one_out(measured, table.text_tokens)
        found = error_summary(errors)
        found |= {f"bias/{name}": float(errors[names == name].mean()) for name in dict.fromkeys(names.tolist())}
    bare = cost.model_copy(update={"text_tokens": table.text_tokens, "overhead_seconds": 0.0})
    flops = np.array([analytic_seconds(Bucket.parse(one.bucket), one.clips, bare) for one in measured])
    factor, analytic = scaled_errors(flops, seconds)
    summary = error_summary(analytic)
    found |= {"analytic_mape": summary["mape"], "analytic_worst": summary["worst"]}
    return found, cost.teraflops_per_second / factor
