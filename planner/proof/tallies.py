"""What the figures of `plan.json` are made of, counted lane by lane: micro-batches and domains by step, sources by step, shortened uses.

Kept are a counter for each step and bucket or domain, and 8 bytes a use where the plan says how often clips of one source meet. Price: past the
limits below a figure is given up and said to be not checked, rather than checked in memory that nobody has.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numba import njit

from planner.proof.labels import MOST_VALUES
from planner.proof.lane_tables import LaneTable
from planner.proof.truth import Truth
from schemas.plan import PlanMeta
from schemas.tables import SAMPLES

__all__ = ["Tallies"]

_MOST_CELLS = 1 << 26
"""Steps x domains."""
_MOST_PAIRED = 1 << 26
"""Uses whose sources are kept."""


class Tallies:
    """Counters over lanes; a step is `micro_per_step` rows of the plan, a last one that is not full is left out."""

    def __init__(self, meta: PlanMeta, truth: Truth, row_epoch: np.ndarray) -> None:
        self._truth = truth
        self.lanes = 0
        """Lanes that were counted."""
        self.steps = len(row_epoch) // max(1, meta.micro_per_step)
        self._row_step = np.arange(len(row_epoch), dtype=np.int64) // max(1, meta.micro_per_step)
        self._row_epoch = row_epoch
        self.buckets = np.zeros((self.steps, len(meta.batches)), np.int32)
        """Micro-batches of each step, by line of the batch table."""
        self.shortened = 0
        """Uses at a bucket of fewer frames than the clip has."""
        self.not_counted: dict[str, str] = {}
        """`domains` and `sources` to why they are not counted."""
        self._frames = np.array([size[0] for size in truth.sizes], np.int64)
        self._domain_of, num_domains = self._labels(truth, meta.domain_column, "domains")
        if self.steps * num_domains > _MOST_CELLS:
            self.not_counted["domains"] = f"{self.steps} steps x {num_domains} domains are too many to count in memory"
            self._domain_of, num_domains = np.zeros(0, np.int32), 0
        self.domains = np.zeros((self.steps, num_domains), np.int32)
        """Clips of each step, by domain."""
        self._source_of, self._num_sources = self._labels(truth, "source", "sources")
        self._keys: list[list[np.ndarray]] = [[] for _ in range(len(truth.uses))]
        self._paired = 0

    def _labels(self, truth: Truth, column: str, what: str) -> tuple[np.ndarray, int]:
        found = truth.labels(column)
        if found is None:
            text = column in SAMPLES.names and pa.types.is_string(SAMPLES.field(column).type)
            self.not_counted[what] = f"column {column!r} of the samples " + (
                f"has over {MOST_VALUES} different values" if text else "is no column of text"
            )
            return np.zeros(0, np.int32), 0
        return found

    def note(self, table: LaneTable, line: np.ndarray, clip: np.ndarray, row_use: np.ndarray) -> None:
        """One lane: line of the batch table of each row and sample of each use, -1 where there is none."""
        self.lanes += 1
        whole = (line >= 0) & (self._row_step < self.steps)
        np.add.at(self.buckets, (self._row_step[whole], line[whole]), 1)
        self.shortened += _tally(
            self._row_step,
            table.use_start,
            clip,
            np.ascontiguousarray(table.sides[:, 0]).astype(np.int64),
            self._frames,
            self._truth.code,
            self._domain_of,
            self.domains,
        )
        if self._num_sources and "sources" not in self.not_counted:
            self._note_sources(clip, row_use)

    def _note_sources(self, clip: np.ndarray, row_use: np.ndarray) -> None:
        source = np.where(clip >= 0, self._source_of[clip], -1)
        kept = source >= 0
        self._paired += int(kept.sum())
        if self._paired > _MOST_PAIRED:
            self.not_counted["sources"] = f"more than {_MOST_PAIRED} uses are too many to match in memory"
            self._keys = []
            return
        key = self._row_step[row_use[kept]] * self._num_sources + source[kept]
        epoch = self._row_epoch[row_use[kept]]
        if len(epoch) and epoch[0] == epoch[-1]:
            self._keys[epoch[0]].append(key)
            return
        for number in np.unique(epoch).tolist():
            self._keys[number].append(key[epoch == number])

    def shared_source_ratios(self) -> list[float] | None:
        """Of each epoch; frees what was kept for it."""
        if "sources" in self.not_counted:
            return None
        found = []
        for number, pieces in enumerate(self._keys):
            key = np.concatenate([np.empty(0, np.int64), *pieces])
            self._keys[number] = []
            found.append(_shared_ratio(key, self._num_sources, self.steps))
        return found


def _shared_ratio(key: np.ndarray, num_sources: int, steps: int) -> float:
    """Pairs of uses of one source in one step over their number in a random order; `key` is step x num_sources + source."""
    uses = len(key)
    if uses < 2:
        return 0.0
    per_step = np.bincount(key // num_sources, minlength=steps).astype(np.float64)
    per_source = np.bincount(key % num_sources).astype(np.float64)
    key.sort()
    edges = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1], [True]]))
    together = np.diff(edges)
    pairs = int((together * (together - 1)).sum()) // 2
    chance = float((per_step * (per_step - 1)).sum()) / (uses * (uses - 1.0))
    expected = float((per_source * (per_source - 1)).sum()) / 2 * chance
    return pairs / expected if expected > 0 else 0.0


@njit(cache=True, nogil=True)
def _tally(
    row_step: np.ndarray,
    use_start: np.ndarray,
    clip: np.ndarray,
    row_frames: np.ndarray,
    frames_of_code: np.ndarray,
    code: np.ndarray,
    domain_of: np.ndarray,
    domains: np.ndarray,
) -> int:
    """Counts into `domains` (steps x domains); returns shortened uses."""
    shortened = 0
    steps = domains.shape[0]
    by_domain = len(domain_of) > 0
    for row in range(len(row_step)):
        for use in range(use_start[row], use_start[row + 1]):
            one = clip[use]
            if one < 0:
                continue
            if frames_of_code[code[one]] > row_frames[row]:
                shortened += 1
            if by_domain and row_step[row] < steps and domain_of[one] >= 0:
                domains[row_step[row], domain_of[one]] += 1
    return shortened
