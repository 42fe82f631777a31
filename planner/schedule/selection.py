"""Which clips an epoch uses, at which bucket, and which it leaves over.

Counts come from the demand; with `left_over` carry or repeat the clips that have been used least come first, then those that would stay at their own
bucket, then a seeded draw. So nothing is left over twice before all others of its size were, and shortening rotates as well. With `drop` only the
draw decides. Domains with a weight below one take part in that share of the epochs, each clip in epochs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.pricing.batches import BatchLine
from planner.samples import Corpus
from planner.schedule.demand import Demand
from planner.settings import PlanConfig

__all__ = ["LEFT_OVER", "Selection"]

LEFT_OVER = -1
_MOST_USES = (1 << 15) - 1


class Selection:
    """Chooses epoch by epoch; remembers how often each clip was used, and how often at its own bucket."""

    def __init__(
        self, corpus: Corpus, lines: Sequence[BatchLine], chains: Sequence[Sequence[int]], config: PlanConfig
    ) -> None:
        self._config = config
        self._corpus = corpus
        self._chains = chains
        self.uses = np.zeros(corpus.num_clips, dtype=np.int32)
        """Per clip, so far."""
        self.native_uses = np.zeros(corpus.num_clips, dtype=np.int32)
        self.shortened = 0
        """Uses of a clip below its longest bucket."""
        position = {line.bucket: index for index, line in enumerate(lines)}
        self.native = np.array([position[bucket] for bucket in corpus.buckets], dtype=np.int16)[corpus.bucket]
        """Index of each clip's longest bucket in the batch table."""

    def eligible(self, epoch: int, domain_weights: dict[str, float]) -> np.ndarray | None:
        """Which clips take part in the epoch, or None for all: a clip of weight w does in w of the epochs, evenly spaced from a seeded start."""
        if not domain_weights:
            return None
        weight = np.array([domain_weights.get(name, 1.0) for name in self._corpus.domains])[self._corpus.domain]
        phase = np.random.default_rng([self._config.seed, 8]).random(self._corpus.num_clips)
        taken: np.ndarray = np.floor(weight * (epoch + 1) + phase) > np.floor(weight * epoch + phase)
        return taken

    def own_counts(self, available: np.ndarray | None, num_lines: int) -> np.ndarray:
        """Available clips by the line of their longest bucket."""
        native = self.native if available is None else self.native[available]
        return np.bincount(native, minlength=num_lines).astype(np.int64)

    def choose(self, epoch: int, demand: Demand, available: np.ndarray | None) -> np.ndarray:
        """Line per clip, or LEFT_OVER (int16); each line gets exactly `demand.distinct` clips."""
        draw = np.random.default_rng([self._config.seed, epoch, 1]).integers(1 << 32, size=len(self.native))
        key = draw.astype(np.uint64)
        if self._config.left_over != "drop":
            key |= np.minimum(self.native_uses, _MOST_USES).astype(np.uint64) << np.uint64(32)
            key |= np.minimum(self.uses, _MOST_USES).astype(np.uint64) << np.uint64(48)
        chosen = np.full(len(self.native), LEFT_OVER, dtype=np.int16)
        for chain in self._chains:
            passed = np.empty(0, dtype=np.int64)
            for line in chain:
                own = self.native == line
                pool = np.flatnonzero(own if available is None else own & available)
                order = key[pool]
                if len(passed):
                    pool = np.concatenate([pool, passed])
                    order = np.concatenate([order, key[passed] | np.uint64(1 << 47)])
                wanted = int(demand.distinct[line])
                if wanted < len(pool):
                    split = np.argpartition(order, wanted) if wanted else np.arange(len(pool))
                    taken, rest = pool[split[:wanted]], pool[split[wanted:]]
                else:
                    taken, rest = pool, pool[:0]
                chosen[taken] = line
                passed = np.sort(rest) if self._config.shorten_left_over else rest[:0]
        return chosen

    def record(self, used: np.ndarray, times: np.ndarray, chosen: np.ndarray) -> None:
        """Count the uses (clip, how often) that the epoch's rows really name."""
        self.uses[used] += times.astype(np.int32)
        own = chosen[used] == self.native[used]
        self.native_uses[used[own]] += times[own].astype(np.int32)
        self.shortened += int(times[~own].sum())
