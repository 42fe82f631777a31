"""The metrics of an opened plan in plain Python, from their definitions in words; apart from both the planner and the verifier."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mutations.opened import OpenPlan

__all__ = ["measured"]

Row = dict[str, Any]
Place = tuple[int, int]


def measured(plan: OpenPlan) -> dict[str, float]:
    """All that follow from the tables and the samples."""
    epochs = list(plan.epochs())
    uses = {epoch: plan.uses(epoch) for epoch in epochs}
    total = sum(sum(counts.values()) for counts in uses.values())
    over_all: Counter[Place] = sum(uses.values(), Counter())
    admitted = _admitted(plan)
    shards = sum(len(item["shard_names"]) for item in plan.meta["sets"]) * len(epochs)
    reads = [
        (row["epoch"], lane, read) for lane in range(plan.num_lanes) for row in plan.lane(lane) for read in row["reads"]
    ]
    before = plan.used_before() & admitted
    available = {epoch: len(admitted) - (len(before) if epoch == epochs[0] else 0) for epoch in epochs}
    whole = [epoch for epoch in epochs if available[epoch] == len(admitted)]
    values = {f"used_share/epoch-{epoch:04d}": len(uses[epoch]) / available[epoch] for epoch in epochs}
    if whole:
        values["used_share_full_epochs"] = sum(len(uses[epoch]) for epoch in whole) / (len(admitted) * len(whole))
    return values | {
        "clips_ever_used_share": len(over_all) / len(admitted),
        "use_count_min": float(min(over_all[place] for place in admitted)),
        "use_count_max": float(max(over_all[place] for place in admitted)),
        "repeated_uses": float(total - sum(map(len, uses.values()))),
        "shortened_uses": float(_shortened(plan)),
        "opens_per_shard": len({(epoch, lane, read["shard"]) for epoch, lane, read in reads}) / shards,
        "ranges_per_shard": _runs(reads) / shards,
        "reads_per_clip": len(reads) / total,
        "read_amplification": 1.0,
        "sequential_share": 1.0,
        "shared_source_ratio": math.fsum(_source_ratio(plan, epoch) for epoch in epochs) / len(epochs),
        **_time(plan),
        **_mix(plan),
    }


def _admitted(plan: OpenPlan) -> set[Place]:
    at_level = {place for place, fact in plan.facts.items() if plan.meta["admission"] in fact["admissions"]}
    if not plan.meta["rules"]:
        return at_level
    accounted = {(row["shard"], row["ordinal"]) for row in plan.tables["ledger"]}
    return accounted.union(*(plan.uses(epoch) for epoch in plan.epochs()))


def _shortened(plan: OpenPlan) -> int:
    return sum(
        plan.facts[clip["shard"], clip["ordinal"]]["frames"] > row["frames"]
        for lane in range(plan.num_lanes)
        for row in plan.lane(lane)
        for clip in row["clips"]
    )


def _runs(reads: Iterable[tuple[int, int, Row]]) -> int:
    spans = sorted((epoch, lane, read["shard"], read["offset"], read["length"]) for epoch, lane, read in reads)
    joined = sum(one[:3] == other[:3] and one[3] + one[4] == other[3] for one, other in pairwise(spans))
    return len(spans) - joined


def _source_ratio(plan: OpenPlan, epoch: int) -> float:
    uses = [
        (row["step"], plan.facts[clip["shard"], clip["ordinal"]]["source"])
        for lane in range(plan.num_lanes)
        for row in plan.lane(lane)
        if row["epoch"] == epoch
        for clip in row["clips"]
    ]
    if len(uses) < 2:
        return 0.0
    pairs = _pairs(uses)
    expected = _pairs(source for _, source in uses) * _pairs(step for step, _ in uses) / math.comb(len(uses), 2)
    return pairs / expected if expected else 0.0


def _pairs(items: Iterable[Hashable]) -> int:
    return sum(math.comb(count, 2) for count in Counter(items).values())


def _time(plan: OpenPlan) -> dict[str, float]:
    seconds = {entry["bucket"]: entry["predicted_seconds"] for entry in plan.meta["batches"]}
    lanes = [[seconds[_bucket(row)] for row in plan.lane(lane)] for lane in range(plan.num_lanes)]
    per_step = plan.meta["micro_per_step"]
    busy = math.fsum(map(math.fsum, lanes))
    by_row = math.fsum(map(max, zip(*lanes, strict=True)))
    summed = [[math.fsum(lane[at : at + per_step]) for at in range(0, len(lane), per_step)] for lane in lanes]
    by_step = math.fsum(map(max, zip(*summed, strict=True)))
    each = sorted((value for lane in lanes for value in lane), reverse=True)
    return {
        "waste_micro": max(0.0, 1 - busy / (len(lanes) * by_row)),
        "waste_step": max(0.0, 1 - busy / (len(lanes) * by_step)),
        "predicted_hours": (by_row if plan.meta["sync"] == "micro" else by_step) / 3600,
        "time_over_bound": by_row / math.fsum(each[:: len(lanes)]),
    }


def _mix(plan: OpenPlan) -> dict[str, float]:
    rows = [row for lane in range(plan.num_lanes) for row in plan.lane(lane)]
    domain: Callable[[Row], str] = lambda clip: plan.facts[clip["shard"], clip["ordinal"]]["domain"]  # noqa: E731
    draws = {
        "bucket": [(row["step"], _bucket(row)) for row in rows],
        "domain": [(row["step"], domain(clip)) for row in rows for clip in row["clips"]],
    }
    steps = sorted({row["step"] for row in rows})
    found = {}
    for name in plan.meta["metrics"]:
        if name.startswith("mix_index_"):
            window, group = name.removeprefix("mix_index_").split("/")
            found[name] = _mix_index(draws[group], steps, int(window))
    return found


def _mix_index(draws: Sequence[tuple[int, str]], steps: Sequence[int], window: int) -> float:
    whole = Counter(group for _, group in draws)
    if len(whole) < 2:
        return 0.0
    share = {group: count / len(draws) for group, count in whole.items()}
    window = min(window, len(steps))
    distances, sizes = [], []
    for first in range(len(steps) - window + 1):
        inside = Counter(group for step, group in draws if steps[first] <= step <= steps[first + window - 1])
        size = sum(inside.values())
        sizes.append(size)
        distances.append(sum(abs(inside[group] / size - share[group]) for group in share) / 2)
    mean = sum(sizes) / len(sizes)
    floor = sum(math.sqrt(p * (1 - p) / (2 * math.pi * mean)) for p in share.values())
    return sum(distances) / len(distances) / floor


def _bucket(row: Row) -> str:
    return f"{row['frames']}x{row['height']}x{row['width']}"
