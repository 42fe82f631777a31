"""The flow loss of a step, told apart by bucket and by time: sums over clips that are added up over micro-batches and ranks.

A mean over all times hides where a network fails: near noise (composition) or near data (detail). Sums stay on the device until the step's one
exchange between ranks. Price: a few numbers more in that exchange.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.dit.attention import to_device

__all__ = ["TIME_BINS", "LossTally"]

TIME_BINS = 10
"""Equal parts of [0, 1] by time s: the first is nearly clean data, the last nearly noise."""


class LossTally:
    """Loss sums and clip counts by bucket and by time bin; one for each step."""

    def __init__(self, buckets: Sequence[str], device: torch.device) -> None:
        self._buckets = list(buckets)
        self.sums = torch.zeros(len(self._buckets) + TIME_BINS, dtype=torch.float64, device=device)
        """On the device; what follows of it goes with `counts` through the step's exchange."""
        self._counts = torch.zeros(len(self._buckets) + TIME_BINS, dtype=torch.float64)

    def add(self, bucket: str, sigma_B: Tensor, per_clip_B: Tensor) -> None:
        """One micro-batch: times on the CPU, losses of the clips on the device."""
        place = self._buckets.index(bucket)
        bins_B = len(self._buckets) + (sigma_B * TIME_BINS).long().clamp(0, TIME_BINS - 1)
        losses_B = per_clip_B.detach().to(torch.float64)
        self.sums[place] += losses_B.sum()
        self.sums.index_add_(0, to_device(bins_B, self.sums.device), losses_B)
        self._counts[place] += len(sigma_B)
        self._counts.index_add_(0, bins_B, torch.ones(len(sigma_B), dtype=torch.float64))

    @property
    def counts(self) -> list[float]:
        """Clips by bucket and by time bin."""
        return self._counts.tolist()

    def by_bucket(self, summed: Sequence[float]) -> dict[str, float]:
        """Mean loss of each bucket that the step had, from `sums` and `counts`, summed over ranks."""
        means = self._means(summed)[: len(self._buckets)]
        return {name: mean for name, mean in zip(self._buckets, means, strict=True) if mean is not None}

    def by_time(self, summed: Sequence[float]) -> list[float | None]:
        """Mean loss of each time bin, None where the step had no clip."""
        return self._means(summed)[len(self._buckets) :]

    def _means(self, summed: Sequence[float]) -> list[float | None]:
        size = len(self.sums)
        pairs = zip(summed[:size], summed[size:], strict=True)
        return [total / count if count else None for total, count in pairs]
