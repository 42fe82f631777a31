"""Idle time against mixing on buckets of very different cost, and how far a plan is from what no plan can beat.

    python benchmarks/plan_waste.py [--quick] [--json FILE]

64 lanes, K = 8, 12 buckets from a 512-pixel image to 720p x 121 frames (1.0 k to 119.0 k tokens), as many tokens in every micro-batch as the longest
clip has; seconds of a DiT of width 3072 and 32 blocks at 400 TFLOP/s plus 0.15 s for each micro-batch (7 to 48 s), given to the planner as a cost
table; a bucket's share of the clips falls with its tokens to the power -0.7. Policy `tiers` with max_waste 1.5 %.

All of ours is counted from the lane tables of a plan that verifies. `waste_micro`: idle share when every row waits for its slowest lane; peer: the
same micro-batches in random order. `mix_index_W`: mean total variation of the buckets of W steps from the whole, over that of random draws; peer:
rigid tiers, the fewest of least waste whose rows are drawn at random from the tier, tiers in even order. `mix_index_1_bound`: the least of any cut
into tiers at a waste of 1.5 %, with whole rows of tiers in every step, rows in order of cost; `mix_index_1_bound_drawn`: rows drawn at the tier's
shares. `gap_to_bound`: seconds of windows of two steps over the least that CP-SAT allows, minus 1: the window's own micro-batches in any rows, no
step's mix farther from the whole (window_optimum.py); `gap_to_bound/8x4`: 8 of the lanes, four steps, which it seldom closes. `step_gap`: the plan's
seconds over those of its steps, each sorted by cost and cut into rows whatever the tiers, minus 1; `gap_to_sort`: all of the plan at once, whatever
the mix.
`--quick`: a fifth of the steps and few windows.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_table import Row, row, show, write
from plan_sets import SetShape, write_set
from window_optimum import least_seconds

from planner.building import build_plan
from planner.folder import write_plan
from planner.mixing import mix_index, waste
from planner.pricing.costs import CostModel, cost_model
from planner.pricing.tier_bounds import mix_index_1_bound, sort_bound
from planner.pricing.tiers import row_seconds
from planner.samples import load_corpus
from planner.settings import PlanConfig
from planner.verify import verify_plan
from schemas.buckets import Bucket
from schemas.command import say
from schemas.cost_table import CostMeasurement, CostTable
from schemas.plan import PlanMeta, read_lane, read_plan_meta

LANES, MICRO, MAX_WASTE = 64, 8, 0.015
NAMES = (
    *("1x512x512", "1x768x768", "1x736x1280", "33x144x256", "65x144x256", "121x144x256"),
    *("33x368x640", "65x368x640", "121x368x640", "33x736x1280", "65x736x1280", "121x768x1280"),
)
BUCKETS = tuple(Bucket.parse(name) for name in NAMES)
TOKENS = np.array([bucket.video_tokens for bucket in BUCKETS], dtype=np.float64)
BATCH = np.maximum(1, TOKENS.max() // TOKENS).astype(np.int64)
CLIP_SHARE = TOKENS**-0.7 / (TOKENS**-0.7).sum()
WIDTH, BLOCKS, FLOPS_PER_SECOND, OVERHEAD_SECONDS = 3072, 32, 400e12, 0.15


@dataclass(frozen=True)
class Scale:
    """Full or quick."""

    steps: int
    windows: int
    limit_seconds: float


FULL = Scale(160, 8, 15.0)
QUICK = Scale(32, 2, 4.0)


def dit_seconds() -> np.ndarray:
    """Forward and backward of one micro-batch of each bucket: 3 x B x blocks x (24 S D^2 + 4 S^2 D) FLOPs."""
    flops = 3 * BATCH * BLOCKS * (24 * TOKENS * WIDTH**2 + 4 * TOKENS**2 * WIDTH)
    return flops / FLOPS_PER_SECOND + OVERHEAD_SECONDS


def settings() -> tuple[PlanConfig, CostModel]:
    """The plan's settings and costs."""
    measured = tuple(
        CostMeasurement(bucket=str(bucket), clips=int(clips), seconds=float(seconds))
        for bucket, clips, seconds in zip(BUCKETS, BATCH, dit_seconds(), strict=True)
    )
    table = CostTable(
        device="the model of this benchmark",
        model=f"a DiT of width {WIDTH} and {BLOCKS} blocks",
        text_tokens=0,
        repeats=1,
        measurements=measured,
    )
    config = PlanConfig(
        lanes=LANES,
        micro_per_step=MICRO,
        policy="tiers",
        max_waste=MAX_WASTE,
        batch_clips={str(bucket): int(clips) for bucket, clips in zip(BUCKETS, BATCH, strict=True)},
        shorten_left_over=False,
        left_over="drop",
        max_buffer_mb=1e9,
    )
    return config, cost_model(config, table)


def planned_buckets(scale: Scale) -> np.ndarray:
    """(lanes, rows) of bucket numbers in a plan of about `scale.steps` steps, from its lane tables.

    Raises:
        SystemExit: if the plan does not verify.
    """
    config, costs = settings()
    micro_per_clip = float((CLIP_SHARE / BATCH).sum())
    clips = int(scale.steps * LANES * MICRO / micro_per_clip)
    shape = SetShape(
        shards=-(-clips // 1000),
        buckets=tuple(map(str, BUCKETS)),
        shares=tuple(CLIP_SHARE.tolist()),
        concentration=None,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = write_set(Path(name) / "set", shape)
        corpus = load_corpus([folder], "144p")
        say(f"planning {corpus.num_clips} clips on {LANES} lanes")
        run = build_plan(corpus, config, costs)
        plan = Path(name) / "plan"
        write_plan(run, plan)
        for point in run.curve:
            print(
                f"{point.tiers:5d} tiers: {point.waste:6.2%} idle, mix {point.mix_index_1:.3f}, over 8 steps {point.mix_index_8:.3f}"
            )
        report = verify_plan(plan, [folder])
        if not report.ok:
            raise SystemExit(f"the plan does not verify: {report.broken}")
        meta = read_plan_meta(plan)
        return np.stack([_lane_buckets(plan, lane, meta) for lane in range(LANES)])


def _lane_buckets(plan: Path, lane: int, meta: PlanMeta) -> np.ndarray:
    table = read_lane(plan, lane, meta)
    number = {bucket: index for index, bucket in enumerate(BUCKETS)}
    columns = [table.column(name).to_pylist() for name in ("frames", "height", "width")]
    return np.array([number[Bucket(*values)] for values in zip(*columns, strict=True)])


def step_counts(buckets_VxM: np.ndarray) -> np.ndarray:
    """Micro-batches by step and bucket."""
    steps = buckets_VxM.shape[1] // MICRO
    of_step = buckets_VxM.T.reshape(steps, -1)
    return np.stack([np.bincount(step, minlength=len(BUCKETS)) for step in of_step])


def rigid_tiers(buckets_VxM: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The same micro-batches in the fewest tiers of least waste within the limit, rows drawn, tiers in even order; (lanes, rows)."""
    rng = np.random.default_rng([7, 1])
    order = np.argsort(seconds, kind="stable")
    weights = np.bincount(buckets_VxM.ravel(), minlength=len(seconds)).astype(np.float64)
    ends = _fewest_tiers(seconds[order], weights[order])
    rows, keys = [], []
    rest: list[int] = []
    for first, last in zip((0, *ends[:-1]), ends, strict=True):
        members = order[first:last]
        micro = np.repeat(members, weights[members].astype(int))
        rng.shuffle(micro)
        whole = len(micro) // LANES * LANES
        rows += np.split(micro[:whole], whole // LANES) if whole else []
        keys += ((np.arange(whole // LANES) + rng.random()) / max(1, whole // LANES)).tolist()
        rest += micro[whole:].tolist()
    rest = sorted(rest, key=lambda bucket: seconds[bucket])
    rows += np.split(np.array(rest), len(rest) // LANES) if rest else []
    keys += rng.random(len(rest) // LANES).tolist()
    return np.stack([rows[index] for index in np.argsort(keys)], axis=1)


def _fewest_tiers(seconds: np.ndarray, weights: np.ndarray) -> tuple[int, ...]:
    """Ends of the tiers, over cost-sorted buckets."""
    count, busy = len(seconds), float((seconds * weights).sum())
    best = {(0, 0): (0.0, ())}
    for tiers in range(1, count + 1):
        for last in range(tiers, count + 1):
            found = [
                (
                    time + weights[first:last].sum() * row_seconds(seconds[first:last], weights[first:last], LANES),
                    (*ends, last),
                )
                for first in range(tiers - 1, last)
                for time, ends in [best.get((tiers - 1, first), (np.inf, ()))]
                if np.isfinite(time)
            ]
            if found:
                best[tiers, last] = min(found)
        time, ends = best[tiers, count]
        if 1.0 - busy / time <= MAX_WASTE:
            break
    return ends


def window_gap(
    buckets_VxM: np.ndarray, seconds: np.ndarray, num_lanes: int, num_steps: int, scale: Scale
) -> tuple[float, int]:
    """(seconds of some windows over the solver's bound - 1, windows that it closed)."""
    rng = np.random.default_rng([7, 2, num_lanes])
    share = np.bincount(buckets_VxM.ravel(), minlength=len(seconds)) / buckets_VxM.size
    steps = buckets_VxM.shape[1] // MICRO
    ours = least = 0.0
    closed = 0
    for _ in range(scale.windows):
        first = int(rng.integers(steps - num_steps + 1)) * MICRO
        lanes = rng.choice(LANES, num_lanes, replace=False)
        window = buckets_VxM[lanes, first : first + num_steps * MICRO].T.reshape(num_steps, MICRO, num_lanes)
        optimum = least_seconds(window, seconds, share, limit_seconds=scale.limit_seconds)
        taken = float(seconds[window].max(axis=2).sum())
        say(
            f"{num_lanes} lanes, {num_steps} steps: {taken:.1f} s, at least {optimum.bound:.1f} s{'' if optimum.proven else ' (not closed)'}"
        )
        ours, least, closed = ours + taken, least + optimum.bound, closed + optimum.proven
    return ours / least - 1.0, closed


def rows_of(scale: Scale) -> list[Row]:
    """All metrics."""
    buckets, seconds = planned_buckets(scale), dit_seconds()
    counts = step_counts(buckets)
    weights = counts.sum(axis=0).astype(np.float64)
    shuffled = np.random.default_rng([7, 3]).permuted(buckets.ravel()).reshape(buckets.shape)
    rigid = rigid_tiers(buckets, seconds)
    rigid_counts = step_counts(rigid)
    bound = mix_index_1_bound(seconds, weights, LANES, MICRO, MAX_WASTE)
    drawn = mix_index_1_bound(seconds, weights, LANES, MICRO, MAX_WASTE, drawn=True)
    mixed = mix_index(counts, 1)
    time = float(seconds[buckets].max(axis=0).sum())
    sorted_steps = sum(
        sort_bound(seconds[buckets[:, first : first + MICRO]], LANES) for first in range(0, buckets.shape[1], MICRO)
    )
    gap, closed = window_gap(buckets, seconds, LANES, 2, scale)
    wide_gap, wide_closed = window_gap(buckets, seconds, 8, 4, scale)

    def line(metric: str, value: float, unit: str, goal: float | None, peer: float | None = None) -> Row:
        return row(metric, value, unit, goal=goal, better="lower", peer=peer)

    return [
        line(
            "waste_micro",
            waste(seconds[buckets], MICRO, "micro"),
            "of time",
            MAX_WASTE,
            waste(seconds[shuffled], MICRO, "micro"),
        ),
        line("waste_micro_rigid_tiers", waste(seconds[rigid], MICRO, "micro"), "of time", None),
        line("mix_index_8", mix_index(counts, 8), "x random", 1.0, mix_index(rigid_counts, 8)),
        line("mix_index_1", mixed, "x random", None, mix_index(rigid_counts, 1)),
        line("mix_index_1_bound", bound, "x random", None),
        line("mix_index_1_bound_drawn", drawn, "x random", None),
        line("mix_index_1_over_bound", mixed / bound, "ratio", None),
        line("mix_index_1_over_bound_drawn", mixed / drawn, "ratio", None),
        line("gap_to_bound", gap, f"share, {closed}/{scale.windows} closed", 0.01),
        line("gap_to_bound/8x4", wide_gap, f"share, {wide_closed}/{scale.windows} closed", None),
        line("step_gap", time / sorted_steps - 1.0, "share", 0.01),
        line("gap_to_sort", time / sort_bound(seconds[buckets], LANES) - 1.0, "share", None),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer steps and windows")
    parser.add_argument("--json", type=Path, default=None, help="write the rows to this file")
    options = parser.parse_args()
    rows = rows_of(QUICK if options.quick else FULL)
    show(rows)
    write(options.json, rows)


if __name__ == "__main__":
    main()
