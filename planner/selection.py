"""Which clips an epoch uses, at which bucket, and which it leaves over.

Counts come from the batch table; the clips that have been used least come first, then those that would stay at their own bucket, then a seeded
draw. So nothing is left over twice before all others of its size were, and shortening rotates as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from planner.batches import BatchLine
from planner.samples import Corpus

__all__ = ["LEFT_OVER", "Selection"]

LEFT_OVER = -1


class Selection:
    """Chooses epoch by epoch; remembers how often each clip was used, and how often at its own bucket."""

    def __init__(self, corpus: Corpus, table: Sequence[BatchLine], lanes: int, seed: int, *, shorten: bool) -> None:
        self._seed = seed
        self._shorten = shorten
        self._uses = np.zeros(corpus.num_clips, dtype=np.int64)
        self._native_uses = np.zeros(corpus.num_clips, dtype=np.int64)
        position = {line.bucket: index for index, line in enumerate(table)}
        self.native = np.array([position[bucket] for bucket in corpus.buckets], dtype=np.int64)[corpus.bucket]
        """Index of each clip's longest bucket in the batch table."""
        chains: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for index in reversed(range(len(table))):  # sorted by frames first, so longest first
            line = table[index]
            total = lanes * line.clips_per_lane * line.rows_per_epoch
            chains[line.bucket.height, line.bucket.width].append((index, total))
        self._chains = list(chains.values())

    def choose(self, epoch: int) -> np.ndarray:
        """Index into the batch table per clip, or LEFT_OVER; each bucket gets exactly rows x lanes x B_b clips."""
        draw = np.random.default_rng([self._seed, epoch, 1]).permutation(len(self._uses))
        chosen = np.full(len(self._uses), LEFT_OVER, dtype=np.int64)
        for chain in self._chains:
            passed = np.empty(0, dtype=np.int64)
            for index, total in chain:
                pool = np.concatenate([np.flatnonzero(self.native == index), passed])
                foreign = self.native[pool] != index
                order = pool[np.lexsort((draw[pool], self._native_uses[pool], foreign, self._uses[pool]))]
                chosen[order[:total]] = index
                passed = order[total:] if self._shorten else passed[:0]
        return chosen

    def record(self, used: np.ndarray, chosen: np.ndarray) -> None:
        """Count the clips (positions) that the epoch's rows really name."""
        self._uses[used] += 1
        self._native_uses[used] += chosen[used] == self.native[used]

    @property
    def uses(self) -> np.ndarray:
        """How often each clip was used so far."""
        return self._uses
