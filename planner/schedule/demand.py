"""How many micro-batches of each bucket an epoch has, on each lane, and why the rest of the clips is left over.

`uniform`: a row takes B_b clips on each of V lanes, so n clips fill floor(n / (V B_b)) rows. `tiers`: n clips make floor(n / B_b) micro-batches, a
row takes any V micro-batches of one tier, so far less is left over. What is left of a long bucket goes down to the next shorter one of the same
size and is counted there. Then come the ratio of images to videos, and whole steps: up to K-1 rows of an epoch fill no step and stay out, small
rows first, in turns. All of it is arithmetic on counts; which clips they fall on is decided in planner.schedule.selection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.pricing.batches import BatchLine
from planner.settings import PlanConfig
from schemas.errors import PlanError

__all__ = ["Demand", "DemandMaker", "StepNotFilledError", "apportion"]

_MOST_REPEATED = 0.5
"""Share of a last row that may be clips used once more; the few clips of an emptier one are not worth so many repeats."""
_MOST_PASSES = 20
"""Times that micro-batches are taken out of tiers so that their clips may go down; more were never needed in tests."""


class StepNotFilledError(PlanError):
    """There are rows, but fewer than a step takes."""


@dataclass(frozen=True)
class Demand:
    """One epoch in numbers; lines are those of the batch table."""

    micro: np.ndarray
    """Micro-batches, (lanes, lines)."""
    rows_by_group: np.ndarray
    """Rows of each group: a line (uniform) or a tier."""
    distinct: np.ndarray
    """Different clips used, by line."""
    repeated: np.ndarray
    """Uses beyond the first, by line."""
    cut: tuple[tuple[str, np.ndarray], ...]
    """(reason, clips by line) of what was taken away from the rows that the clips would fill."""

    @property
    def num_rows(self) -> int:
        """Rows of the epoch."""
        return int(self.rows_by_group.sum())


def apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Integers in proportion to `weights` that add up to `total` and exceed no weight (integers; total at most their sum).

    `apportion(3, np.array([4, 2])) == [2, 1]`
    """
    whole = int(weights.sum())
    assert 0 <= total <= whole
    if total == 0:
        return np.zeros(len(weights), dtype=np.int64)
    exact = weights.astype(np.float64) * total / whole
    result = np.minimum(np.floor(exact), weights).astype(np.int64)
    order = np.lexsort((np.arange(len(weights)), result - exact))
    for index in np.concatenate([order, order]):
        if result.sum() == total:
            break
        if result[index] < weights[index]:
            result[index] += 1
    return result


@dataclass
class DemandMaker:
    """Makes the demand of one epoch after another; remembers which rows were left out of full steps."""

    lines: Sequence[BatchLine]
    config: PlanConfig
    lost_rows: np.ndarray = field(init=False)
    """Rows that each group lost so far to full steps."""
    lost_micro: np.ndarray = field(init=False)
    """Micro-batches that each line lost so far to full rows of its tier."""

    def __post_init__(self) -> None:
        self.batch = np.array([line.clips_per_lane for line in self.lines], dtype=np.int64)
        uniform = self.config.policy != "tiers"
        self.group = np.array(
            [index if uniform else line.tier for index, line in enumerate(self.lines)], dtype=np.int64
        )
        self.num_groups = int(self.group.max()) + 1
        self.is_image = np.array([line.bucket.frames == 1 for line in self.lines])
        self.lost_rows = np.zeros(self.num_groups, dtype=np.int64)
        self.lost_micro = np.zeros(len(self.lines), dtype=np.int64)
        chains: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in reversed(range(len(self.lines))):
            chains[self.lines[index].bucket.height, self.lines[index].bucket.width].append(index)
        self.chains = list(chains.values())
        """Lines of one size, longest first."""

    def make(
        self, own: np.ndarray, images_per_video: float | None, epoch: int, without_repeats: frozenset[int] = frozenset()
    ) -> Demand:
        """Demand of an epoch that has `own[line]` clips whose longest bucket is the line's.

        Raises:
            PlanError: if the clips fill no step.
        """
        filled, micro = self._fill(own, without_repeats)
        cut: list[tuple[str, np.ndarray]] = []
        if images_per_video is not None:
            micro = self._in_ratio(micro, filled, images_per_video, without_repeats, cut)
        micro = self._whole_steps(micro, own, cut)
        need = micro * self.batch
        distinct = np.minimum(need, filled)
        rows = np.bincount(self.group, micro, self.num_groups).astype(np.int64) // self.config.lanes
        return Demand(
            micro=self._dealt(micro, epoch),
            rows_by_group=rows,
            distinct=distinct,
            repeated=need - distinct,
            cut=tuple(cut),
        )

    def _fill(self, own: np.ndarray, without_repeats: frozenset[int]) -> tuple[np.ndarray, np.ndarray]:
        """(different clips that each line's micro-batches take, micro-batches over all lanes).

        Under `tiers`, micro-batches that fill no row of their tier are taken out until none is left; their clips go down as well, and may
        fill rows of a shorter bucket.
        """
        out = np.zeros(len(self.lines), dtype=np.int64)
        for _ in range(_MOST_PASSES):
            pool, micro = self._fill_chains(own, without_repeats, out)
            whole = self._whole_rows(micro)
            if (whole == micro).all() or not self.config.shorten_left_over:
                break
            out += micro - whole
        self.lost_micro += micro - whole
        return np.minimum(whole * self.batch, pool), whole

    def _fill_chains(
        self, own: np.ndarray, without_repeats: frozenset[int], out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        pool = np.zeros(len(self.lines), dtype=np.int64)
        micro = np.zeros(len(self.lines), dtype=np.int64)
        for chain in self.chains:
            passed = 0
            for line in chain:
                pool[line] = own[line] + passed
                micro[line] = max(0, self._micro(line, int(pool[line]), without_repeats) - int(out[line]))
                used = min(int(micro[line] * self.batch[line]), int(pool[line]))
                passed = int(pool[line]) - used if self.config.shorten_left_over else 0
        return pool, micro

    def _micro(self, line: int, clips: int, without_repeats: frozenset[int]) -> int:
        """Micro-batches that `clips` fill: whole rows under uniform; one more by repeats, where half of it is new or there is no other."""
        unit = int(self.batch[line]) * (self.config.lanes if self.config.policy != "tiers" else 1)
        count = clips // unit
        missing = -clips % unit
        if self.config.left_over == "repeat" and line not in without_repeats and missing and clips:
            each = clips // self.config.lanes if self.config.policy != "tiers" else clips
            worth_it = not count or missing <= unit * _MOST_REPEATED
            if worth_it and missing <= (self.config.repeat_at_most - 1) * clips and each >= int(self.batch[line]):
                count += 1
        return count * (self.config.lanes if self.config.policy != "tiers" else 1)

    def _whole_rows(self, micro: np.ndarray) -> np.ndarray:
        """Tiers: without the micro-batches that fill no row of their tier; small ones, of buckets that lost a small share of theirs so far."""
        if self.config.policy != "tiers":
            return micro
        result = micro.copy()
        for tier in range(self.num_groups):
            members = np.flatnonzero(self.group == tier)
            self._take_out(result, micro, members, int(result[members].sum()) % self.config.lanes)
        return result

    def _take_out(self, result: np.ndarray, micro: np.ndarray, members: np.ndarray, count: int) -> None:
        """Lower `result` by `count` micro-batches of `members`: small ones, of lines that lost a small share of theirs so far."""
        for _ in range(count):
            lost = self.lost_micro[members] + micro[members] - result[members]
            share = (lost + 1) / np.maximum(micro[members], 1)
            price = np.where(result[members] > 0, self.batch[members] * share**2, np.inf)
            result[members[np.argmin(price)]] -= 1

    def _in_ratio(
        self,
        micro: np.ndarray,
        filled: np.ndarray,
        images_per_video: float,
        without_repeats: frozenset[int],
        cut: list[tuple[str, np.ndarray]],
    ) -> np.ndarray:
        """Rows of images and videos in the ratio; the richer side gives way, or the poorer one is repeated."""
        lanes = self.config.lanes
        rows = np.bincount(self.group, micro, self.num_groups).astype(np.int64) // lanes
        image_group = np.zeros(self.num_groups, dtype=bool)
        image_group[self.group[self.is_image]] = True
        images, videos = int(rows[image_group].sum()), int(rows[~image_group].sum())
        if not images or not videos:
            raise PlanError(
                f"mix asks for {images_per_video:g} rows of images per row of videos, but the clips fill {images} rows of images and "
                f"{videos} of videos; add the missing set with --samples, or take mix out"
            )
        if self.config.left_over == "repeat":
            micro = self._repeat_poorer(micro, filled, images, videos, images_per_video, image_group, without_repeats)
            rows = np.bincount(self.group, micro, self.num_groups).astype(np.int64) // lanes
            images, videos = int(rows[image_group].sum()), int(rows[~image_group].sum())
        keep_images = min(images, max(1, round(videos * images_per_video)))
        keep_videos = min(videos, max(1, round(keep_images / images_per_video)))
        kept = rows.copy()
        kept[image_group] = apportion(keep_images, rows[image_group])
        kept[~image_group] = apportion(keep_videos, rows[~image_group])
        result = self._with_rows(micro, kept)
        reason = f"mix takes {keep_images} rows of images and {keep_videos} of videos, of {images} and {videos} that the clips fill"
        cut.append((reason, (micro - result) * self.batch))
        return result

    def _repeat_poorer(
        self,
        micro: np.ndarray,
        filled: np.ndarray,
        images: int,
        videos: int,
        ratio: float,
        image_group: np.ndarray,
        without_repeats: frozenset[int],
    ) -> np.ndarray:
        """More micro-batches for the side that is short, up to `repeat_at_most` uses of each clip."""
        short_of_images = images < videos * ratio
        factor = (videos * ratio / images) if short_of_images else (images / ratio / videos)
        factor = min(factor, float(self.config.repeat_at_most))
        result = micro.copy()
        unit = self.config.lanes if self.config.policy != "tiers" else 1
        for line in np.flatnonzero((self.is_image == short_of_images) & (micro > 0)).tolist():
            if line in without_repeats:
                continue
            most = int(filled[line]) * self.config.repeat_at_most // int(self.batch[line]) // unit * unit
            result[line] = max(int(micro[line]), min(most, int(micro[line] * factor) // unit * unit))
        return self._whole_rows(result)

    def _whole_steps(self, micro: np.ndarray, own: np.ndarray, cut: list[tuple[str, np.ndarray]]) -> np.ndarray:
        """Without the rows that fill no step: small rows, of groups that lost a small share of theirs so far."""
        per_step = self.config.micro_per_step
        rows = np.bincount(self.group, micro, self.num_groups).astype(np.int64) // self.config.lanes
        total = int(rows.sum())
        if total < per_step:
            lanes, clips_left = self.config.lanes, int(own.sum())
            if not total:
                raise PlanError(
                    f"the epoch's {clips_left} clips fill no row of {lanes} lanes; use fewer lanes, smaller micro-batches (config: batch_clips, "
                    "max_tokens_per_micro_batch) or more data"
                )
            raise StepNotFilledError(
                f"an epoch of {total} rows fills no step of {per_step} rows, and a step over two epochs would name clips twice; "
                f"set micro_per_step to at most {total}, make micro-batches smaller (config: batch_clips, max_tokens_per_micro_batch), "
                f"or add data ({clips_left} clips on {lanes} lanes)"
            )
        clips = np.bincount(self.group, micro * self.batch, self.num_groups) / np.maximum(rows, 1)
        kept = rows.copy()
        for _ in range(total % per_step):
            share = (self.lost_rows + 1) / np.maximum(rows, 1)
            price = np.where(kept > 0, clips * share**2, np.inf)
            group = int(np.argmin(price))
            kept[group] -= 1
            self.lost_rows[group] += 1
        result = micro.copy()
        for group in np.flatnonzero(kept < rows).tolist():
            members = np.flatnonzero(self.group == group)
            self._take_out(result, micro, members, int(rows[group] - kept[group]) * self.config.lanes)
        self.lost_micro += micro - result
        if (result != micro).any():
            reason = f"its row does not fill a step of {per_step} rows within the epoch"
            cut.append((reason, (micro - result) * self.batch))
        return result

    def _with_rows(self, micro: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """As many micro-batches as `rows` by group take, each line in proportion."""
        result = np.zeros_like(micro)
        for group in range(self.num_groups):
            members = np.flatnonzero(self.group == group)
            result[members] = apportion(int(rows[group]) * self.config.lanes, micro[members])
        return result

    def _dealt(self, micro: np.ndarray, epoch: int) -> np.ndarray:
        """(lanes, lines): the same on all lanes but for remainders, which go around so that every lane has as many of each group."""
        lanes = self.config.lanes
        result = np.repeat((micro // lanes)[None, :], lanes, axis=0)
        for group in range(self.num_groups):
            members = np.flatnonzero(self.group == group)
            extra = np.repeat(members, micro[members] % lanes)
            first = int(np.random.default_rng([self.config.seed, epoch, 7, group]).integers(lanes))
            np.add.at(result, ((first + np.arange(len(extra))) % lanes, extra), 1)
        return result
