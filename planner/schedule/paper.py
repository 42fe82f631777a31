"""The policy `paper`: the report's sampler as a plan that can be verified, so that its figures stand beside ours.

Whole tars are put on lanes greedily, then 30,000 swaps are annealed on the coefficient of variation (planner.baselines.whole_tars); a bucket has
as many rows as its poorest lane has micro-batches, and what the other lanes have more is left over. Which of a lane's clips those are is drawn
anew in each epoch, least used first.
"""

from __future__ import annotations

import numpy as np

from planner.baselines.outcomes import Setup
from planner.baselines.whole_tars import anneal_swaps, place_tars_greedily, tar_counts
from planner.samples import Corpus
from planner.schedule.demand import Demand, DemandMaker
from planner.schedule.selection import LEFT_OVER
from planner.settings import PlanConfig
from schemas.errors import PlanError

__all__ = ["place_whole_tars"]


def place_whole_tars(
    corpus: Corpus,
    native: np.ndarray,
    demands: DemandMaker,
    config: PlanConfig,
    epoch: int,
    available: np.ndarray | None,
) -> tuple[Demand, np.ndarray, np.ndarray]:
    """(demand, line of each clip or LEFT_OVER, lane of each clip).

    Raises:
        PlanError: if some lane is too poor for any step.
    """
    setup = Setup(
        bucket=native.astype(np.int64),
        shard=corpus.shard,
        length=corpus.length,
        source=corpus.source,
        domain=corpus.domain,
        clips_per_batch=demands.batch,
        seconds=np.array([line.seconds for line in demands.lines]),
        lanes=config.lanes,
        micro_per_step=config.micro_per_step,
        seed=config.seed + epoch,
    )
    shards, counts = tar_counts(setup)
    tar_lanes = anneal_swaps(setup, counts, place_tars_greedily(setup, counts))
    lane = tar_lanes[np.searchsorted(shards, corpus.shard)].astype(np.int32)
    key = lane.astype(np.int64) * len(demands.lines) + native
    free = np.ones(len(native), dtype=bool) if available is None else available
    have = np.bincount(key[free], minlength=config.lanes * len(demands.lines)).reshape(config.lanes, -1)
    rows = (have // demands.batch).min(axis=0)
    rows = _whole_steps(rows, demands.batch, config)
    micro = np.repeat(rows[None, :], config.lanes, axis=0)
    chosen = np.full(len(native), LEFT_OVER, dtype=np.int16)
    draw = np.random.default_rng([config.seed, epoch, 1]).permutation(len(native))
    order = np.lexsort((draw, key))
    order = order[free[order]]
    start = np.searchsorted(key[order], np.arange(config.lanes * len(demands.lines)))
    rank = np.arange(len(order)) - start[key[order]]
    taken = order[rank < (rows * demands.batch)[native[order]]]
    chosen[taken] = native[taken]
    reason = "whole tars on lanes: the bucket has as many rows as its poorest lane has micro-batches"
    distinct = rows * demands.batch * config.lanes
    lost = np.bincount(native[free], minlength=len(demands.lines)) - distinct
    demand = Demand(
        micro=micro,
        rows_by_group=rows,
        distinct=distinct,
        repeated=np.zeros_like(distinct),
        cut=((reason, lost),),
    )
    return demand, chosen, lane


def _whole_steps(rows: np.ndarray, batch: np.ndarray, config: PlanConfig) -> np.ndarray:
    """Without the rows that fill no step, smallest batches first."""
    surplus = int(rows.sum()) % config.micro_per_step
    if int(rows.sum()) < config.micro_per_step:
        raise PlanError(
            f"policy paper: the poorest of {config.lanes} lanes has micro-batches for {int(rows.sum())} rows, fewer than a step of "
            f"{config.micro_per_step}; it needs more tars than lanes, each with clips of many buckets: use policy uniform or tiers, or fewer lanes"
        )
    kept = rows.copy()
    for line in np.argsort(batch, kind="stable").tolist():
        taken = min(surplus, int(kept[line]))
        kept[line] -= taken
        surplus -= taken
    return kept
