"""Laws fitted to a cost table: seconds and memory of a micro-batch from its clips B and the tokens S of one clip (video and text).

    seconds   t = a + B (b S + c S^2), coefficients at least 0, times the bucket's own measured / fitted ratio
    memory    m = d + e B S,           coefficients at least 0, raised so that no measurement lies above it

The ratio is interpolated between the batches that were measured and constant outside them, so a measured micro-batch gets its measured value.
Fits weigh relative errors: a bucket of 0.1 s counts as much as one of 40 s. Their error is by leaving one measurement out at a time and predicting
it from the others. Price of so simple a law: kernels that jump with a shape are only seen where they were measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from schemas.buckets import Bucket
from schemas.cost_table import CostMeasurement

__all__ = ["FAR", "MemoryLaw", "TimeLaw", "error_summary", "leave_one_out", "nonnegative_fit", "scaled_errors"]

FAR = 2.0
"""Work (B S) or tokens beyond this many times what was measured is an extrapolation that is named."""


def nonnegative_fit(columns_NxP: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """The P >= 0 coefficients of least relative squared error; exact, by trying every set of columns (P is at most 3 here)."""
    rows = columns_NxP / values_N[:, None]
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0.0] = 1.0
    best, least = np.zeros(rows.shape[1]), float(len(rows))
    for size in range(1, rows.shape[1] + 1):
        for chosen in map(list, combinations(range(rows.shape[1]), size)):
            found = np.linalg.lstsq(rows[:, chosen] / scale[chosen], np.ones(len(rows)), rcond=None)[0]
            error = float(np.square(rows[:, chosen] / scale[chosen] @ found - 1.0).sum())
            if (found >= 0.0).all() and error < least * (1.0 - 1e-9) - 1e-15:
                best, least = np.zeros(rows.shape[1]), error
                best[chosen] = found / scale[chosen]
    return best


@dataclass(frozen=True)
class TimeLaw:
    """Seconds of a micro-batch."""

    overhead: float
    linear: float
    quadratic: float
    ratios: Mapping[Bucket, tuple[tuple[int, float], ...]]
    """Bucket to (clips, measured / law) in rising order of clips."""
    text_tokens: int

    @classmethod
    def fitted(cls, measured: Sequence[CostMeasurement], text_tokens: int) -> TimeLaw:
        """The law of these measurements."""
        clips = np.array([one.clips for one in measured], dtype=np.float64)
        tokens = np.array([Bucket.parse(one.bucket).video_tokens + text_tokens for one in measured], dtype=np.float64)
        seconds = np.array([one.seconds for one in measured])
        columns = np.stack([np.ones(len(clips)), clips * tokens, clips * tokens**2], axis=1)
        overhead, linear, quadratic = nonnegative_fit(columns, seconds).tolist()
        bare = cls(overhead, linear, quadratic, {}, text_tokens)
        ratios: dict[Bucket, dict[int, float]] = defaultdict(dict)
        for one in measured:
            bucket = Bucket.parse(one.bucket)
            ratios[bucket][one.clips] = one.seconds / bare.seconds(bucket, one.clips)
        return replace(bare, ratios={bucket: tuple(sorted(by_clips.items())) for bucket, by_clips in ratios.items()})

    def seconds(self, bucket: Bucket, clips: int) -> float:
        """Predicted, above 0."""
        tokens = bucket.video_tokens + self.text_tokens
        law = self.overhead + clips * (self.linear * tokens + self.quadratic * tokens**2)
        known = self.ratios.get(bucket)
        if known is None:
            return law
        return law * float(np.interp(clips, [count for count, _ in known], [ratio for _, ratio in known]))


@dataclass(frozen=True)
class MemoryLaw:
    """Peak bytes of a micro-batch, never falling with its clips."""

    fixed: float
    per_token: float
    measured: Mapping[Bucket, tuple[tuple[int, int], ...]]
    """Bucket to (clips, bytes) in rising order of clips."""
    text_tokens: int

    @classmethod
    def fitted(cls, measured: Sequence[CostMeasurement], text_tokens: int) -> MemoryLaw | None:
        """The law of these measurements; None where a device did not count memory."""
        counted = [(one, one.peak_memory_bytes) for one in measured if one.peak_memory_bytes]
        if not counted:
            return None
        work = np.array(
            [one.clips * (Bucket.parse(one.bucket).video_tokens + text_tokens) for one, _ in counted], np.float64
        )
        used = np.array([value for _, value in counted], dtype=np.float64)
        fixed, per_token = nonnegative_fit(np.stack([np.ones(len(work)), work], axis=1), used).tolist()
        above = max(1.0, float((used / (fixed + per_token * work)).max()))
        known: dict[Bucket, dict[int, int]] = defaultdict(dict)
        for one, value in counted:
            known[Bucket.parse(one.bucket)][one.clips] = value
        points = {bucket: tuple(sorted(by_clips.items())) for bucket, by_clips in known.items()}
        return cls(fixed * above, per_token * above, points, text_tokens)

    def peak_bytes(self, bucket: Bucket, clips: int) -> int:
        """Measured where it was; elsewhere by the law, between what fewer and what more clips of the bucket were measured to take."""
        points = self.measured.get(bucket, ())
        law = int(self.fixed + self.per_token * clips * (bucket.video_tokens + self.text_tokens))
        least = max((value for count, value in points if count <= clips), default=0)
        most = min((value for count, value in points if count >= clips), default=None)
        return max(least, law if most is None else min(law, most))


def leave_one_out(measured: Sequence[CostMeasurement], text_tokens: int) -> np.ndarray:
    """Signed relative errors: each measurement predicted by the law of the others. Needs two or more."""
    errors = []
    for index, one in enumerate(measured):
        law = TimeLaw.fitted([*measured[:index], *measured[index + 1 :]], text_tokens)
        errors.append(law.seconds(Bucket.parse(one.bucket), one.clips) / one.seconds - 1.0)
    return np.array(errors)


def scaled_errors(predicted: np.ndarray, measured: np.ndarray) -> tuple[float, np.ndarray]:
    """(factor, signed relative errors) of `predicted` times the one factor that makes its relative errors least."""
    ratio = predicted / measured
    factor = float(ratio.sum() / np.square(ratio).sum())
    return factor, factor * ratio - 1.0


def error_summary(errors: np.ndarray) -> dict[str, float]:
    """mape, p95 and worst of signed relative errors, as shares."""
    size = np.abs(errors)
    return {"mape": float(size.mean()), "p95": float(np.quantile(size, 0.95)), "worst": float(size.max())}
