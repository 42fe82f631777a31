"""Going on from the middle of a plan on another number of lanes: every clip of the epoch still exactly once, over both parts.

What the plan has used before the step is read from its lane tables; the rest of that epoch, and the epochs behind it, are planned anew as any other
data, at the same batch sizes. Shards that were read in part are read on from where the remaining clips lie; clips that a lane had in memory but had
not used are read again (their bytes are counted in the new plan). The new plan numbers its steps on, so a trainer that goes on has the same learning
rate and the same randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from planner.building import History, PlannedRun, build_plan
from planner.pricing.costs import CostModel
from planner.samples import Corpus
from planner.schedule.demand import StepNotFilledError
from planner.settings import PlanConfig
from schemas.command import progress, say
from schemas.config import build_config, merge_overrides
from schemas.errors import PlanError, UsageError
from schemas.plan import ROWS, PlanContinues, PlanMeta, read_lane, read_plan_meta, read_plan_table

__all__ = ["continued_config", "plan_chain", "replan", "replan_in_smaller_steps"]

_ORDINAL_BITS = 32
_DECIDED = {"lanes": "--lanes", "micro_per_step": "--micro-per-step", "batch_clips": "the plan that it continues"}
"""Settings that are not the user's to override, and where they come from."""


def plan_chain(plan: Path, continues: Sequence[Path]) -> list[tuple[Path, PlanMeta]]:
    """The plans that led to `plan`, oldest first, and it.

    Raises:
        UsageError: if one is missing, or they do not continue each other.
    """
    chain = [(path, read_plan_meta(path)) for path in [*continues, plan]]
    wanted = chain[0][1].continues
    if wanted is not None:
        raise UsageError(
            f"{chain[0][0]} continues plan {wanted.plan_hash[:12]}; give it, and what it continues, with --continues, oldest first"
        )
    for (_, before), (path, after) in pairwise(chain):
        if after.continues is None or after.continues.plan_hash != before.plan_hash:
            raise UsageError(f"{path} does not continue plan {before.plan_hash[:12]}; give --continues oldest first")
    return chain


def continued_config(meta: PlanMeta, lanes: int, micro_per_step: int | None, overrides: Sequence[str]) -> PlanConfig:
    """The settings of a plan for another number of lanes: its batch sizes, and as many micro-batches in a step as come nearest.

    Raises:
        ConfigError: if an override is wrong.
        UsageError: if one is of a key that the plan or the command's own options decide.
    """
    for override in overrides:
        key = override.partition("=")[0].partition(".")[0]
        if key in _DECIDED:
            raise UsageError(f"--set {override}: replan takes {key} from {_DECIDED[key]}; leave it out")
    micro = micro_per_step or max(1, round(meta.num_lanes * meta.micro_per_step / lanes))
    if micro * lanes != meta.num_lanes * meta.micro_per_step:
        say(
            f"note: a step had {meta.num_lanes} x {meta.micro_per_step} micro-batches and will have {lanes} x {micro}; "
            "give --micro-per-step, or lanes that divide the product, to keep it"
        )
    values: dict[str, Any] = merge_overrides(dict(meta.config), overrides)
    values |= {
        "lanes": lanes,
        "micro_per_step": micro,
        "batch_clips": {entry.bucket: entry.clips_per_lane for entry in meta.batches},
    }
    return build_config(PlanConfig, values, source="plan.json: config")


def replan(
    chain: Sequence[tuple[Path, PlanMeta]], from_step: int, corpus: Corpus, config: PlanConfig, costs: CostModel | None
) -> PlannedRun:
    """Plan what is left from `from_step` of the last plan of the chain on.

    Raises:
        UsageError: for a step that it does not have.
        PlanError: if the samples are others, or nothing that fills a step is left.
    """
    path, meta = chain[-1]
    if not meta.first_step <= from_step <= meta.steps.stop:
        raise UsageError(
            f"--from-step {from_step}: plan {path} has steps {meta.first_step} to {meta.steps.stop - 1}; "
            f"give one of them, or {meta.steps.stop} to go on behind it"
        )
    if [item.samples_hash for item in corpus.sets] != [item.samples_hash for item in meta.sets]:
        raise PlanError(
            f"plan {path} was built from other samples ({', '.join(item.name for item in meta.sets)}); "
            "give the sets that it was built from, in its order"
        )
    epoch = _epoch_of(path, meta, from_step, config)
    uses, native_uses, used_now = _uses(chain, from_step, epoch, corpus)
    history = History(
        continues=PlanContinues(plan_hash=meta.plan_hash, from_step=from_step, num_lanes=meta.num_lanes),
        first_epoch=epoch,
        used_now=used_now,
        uses=uses,
        native_uses=native_uses,
    )
    return build_plan(corpus, config, costs, history)


def replan_in_smaller_steps(
    chain: Sequence[tuple[Path, PlanMeta]], from_step: int, corpus: Corpus, config: PlanConfig, costs: CostModel | None
) -> PlannedRun:
    """`replan`, with half the micro-batches a step, and half again, where the last epoch's rest fills no step otherwise.

    Epochs behind it would have the small steps too, so with more of them to come it is refused as by `replan`.
    """
    while True:
        try:
            return replan(chain, from_step, corpus, config, costs)
        except StepNotFilledError:
            path, meta = chain[-1]
            is_last = config.epochs is not None and _epoch_of(path, meta, from_step, config) + 1 >= config.epochs
            if config.micro_per_step == 1 or not is_last:
                raise
            config = config.model_copy(update={"micro_per_step": config.micro_per_step // 2})
            say(f"note: what is left of the epoch fills no larger step; its steps have {config.micro_per_step} rows")


def _epoch_of(path: Path, meta: PlanMeta, from_step: int, config: PlanConfig) -> int:
    """The epoch that is gone on with: that of the step, or behind the end the one that a limit of steps cut, else the next."""
    rows = read_plan_table(path, "rows", ROWS, meta)
    epochs = rows.column("epoch").to_numpy()
    if from_step < meta.steps.stop:
        return int(epochs[(from_step - meta.first_step) * meta.micro_per_step])
    old = meta.config.get("max_steps")
    cut = old is not None and meta.steps.stop == old
    return int(epochs[-1]) if cut and config.max_steps != old else int(epochs[-1]) + 1


def _uses(
    chain: Sequence[tuple[Path, PlanMeta]], from_step: int, epoch: int, corpus: Corpus
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(uses of each clip, those at its longest bucket, mask of those used in `epoch`), in the steps that were run."""
    places = (corpus.shard.astype(np.int64) << _ORDINAL_BITS) | corpus.ordinal
    frames = np.array([bucket.frames for bucket in corpus.buckets])[corpus.bucket]
    uses = np.zeros(corpus.num_clips, dtype=np.int32)
    native_uses = np.zeros(corpus.num_clips, dtype=np.int32)
    used_now = np.zeros(corpus.num_clips, dtype=bool)
    ends = [after.first_step for _, after in chain[1:]] + [from_step]
    for (path, meta), end in zip(chain, ends, strict=True):
        for lane in progress(range(meta.num_lanes), what=f"reading lanes of {path.name}"):
            table = read_lane(path, lane, meta)
            table = table.filter(pc.less(table.column("step"), end))
            clips = table.column("clips").combine_chunks()
            row = np.repeat(np.arange(table.num_rows), pc.list_value_length(clips).to_numpy())
            flat = clips.flatten()
            shard, ordinal = (
                flat.field(name).to_numpy(zero_copy_only=False).astype(np.int64) for name in ("shard", "ordinal")
            )
            at = np.searchsorted(places, (shard << _ORDINAL_BITS) | ordinal)
            if len(at) and (at.max() >= len(places) or (places[at] != (shard << _ORDINAL_BITS) | ordinal).any()):
                raise PlanError(
                    f"{path}: lane {lane} uses clips that these settings do not admit; leave admission and rules as they were"
                )
            np.add.at(uses, at, 1)
            own = table.column("frames").to_numpy()[row] == frames[at]
            np.add.at(native_uses, at[own], 1)
            used_now[at[table.column("epoch").to_numpy()[row] == epoch]] = True
    return uses, native_uses, used_now
