"""The paper's situation, few tars of very different mixes: how much of the data a plan uses, and at what price in opens and buffer.

    python benchmarks/plan_hard_set.py [--quick] [--json FILE]

64 lanes, 1,000 clips a tar, micro-batches of 8, frame buckets with shares 0.4/0.3/0.2/0.1, each tar's mix from a Dirichlet of total
concentration 1; 600, 1,500 and 5,000 tars (`NAME/TARS`; `/sorted`: the clips of each tar lie in the order of their buckets), three seeds.
`--quick`: a quarter of lanes, tars and clips per tar, one seed, the names unchanged.

Ours: `reelyard-plan build` under a cap of 4,096 clips per lane, and `used_share` is the verifier's, from the steps as written; the reads are
measured from the lane tables. Each of our values is the worst of the seeds. `used_share_random`, `_greedy` and `_paper`: the paper's three
steps, whole tars, means of the seeds; used share = sum over buckets of lanes x batch x min over lanes of floor(clips / batch), over all clips;
`_paper` is the policy `paper` of the planner, verified too. Clips are not shortened. Peer: the paper's.

`used_share_bound`: sum over buckets of lanes x batch x floor(clips / (lanes x batch)), over all clips, which nothing can exceed that gives every
lane whole micro-batches of the same bucket.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_table import Row, row, show, write
from plan_sets import SetShape, bucket_counts, write_set

from planner.baselines.lane_schedules import plan_schedule
from planner.baselines.outcomes import Setup, measure
from planner.baselines.strategies import run_baseline
from planner.building import build_plan
from planner.folder import write_plan
from planner.samples import Corpus, load_corpus
from planner.settings import PlanConfig
from planner.verify import verify_plan
from schemas.command import say
from schemas.plan import read_plan_meta

BUCKETS = ("1x144x256", "33x144x256", "65x144x256", "121x144x256")
SHARES = (0.4, 0.3, 0.2, 0.1)
BATCH = 8
CAP_CLIPS = 4096
NO_CAP_MB = 1e9
GOALS = {"random": {"share_of_bound": 0.995, "opens": 2.0}, "sorted": {"share_of_bound": 0.97, "opens": 4.0}}


@dataclass(frozen=True)
class Scale:
    """Full or quick."""

    lanes: int
    clips_per_shard: int
    tars: Mapping[int, int]
    """Name to tars."""
    seeds: int


FULL = Scale(64, 1000, {600: 600, 1500: 1500, 5000: 5000}, 3)
QUICK = Scale(16, 250, {600: 150, 1500: 375, 5000: 1250}, 1)


def config(scale: Scale, seed: int, **changes: Any) -> PlanConfig:
    """The settings of ours; the paper's differ by `changes`."""
    return PlanConfig.model_validate(
        {
            "lanes": scale.lanes,
            "seed": seed,
            "batch_clips": dict.fromkeys(BUCKETS, BATCH),
            "max_buffer_clips": CAP_CLIPS,
            "max_buffer_mb": NO_CAP_MB,
            "shorten_left_over": False,
            "left_over": "drop",
            **changes,
        }
    )


def verified(folder: Path, corpus: Corpus, settings: PlanConfig) -> tuple[Setup, dict[str, float]]:
    """Build, write, verify and measure one plan.

    Raises:
        SystemExit: if the verifier finds a broken rule; then no figure of the plan means anything.
    """
    with tempfile.TemporaryDirectory() as name:
        plan = Path(name) / "plan"
        write_plan(build_plan(corpus, settings), plan)
        report = verify_plan(plan, [folder])
        if not report.ok:
            raise SystemExit(f"the plan does not verify: {report.broken}")
        setup, schedule = plan_schedule(plan, read_plan_meta(plan), corpus, settings)
        values = {
            name: value for name, value in measure("ours", setup, schedule, 0.0).values.items() if value is not None
        }
    return setup, {**values, "used_share": report.bounds["used_share"]}


def one_set(scale: Scale, tars: int, seed: int, order: str) -> tuple[dict[str, float], dict[str, float]]:
    """(ours, the paper's steps) on one set; the paper's are the same for either order of the clips, and are left out for the sorted one."""
    shape = SetShape(
        shards=tars,
        clips_per_shard=scale.clips_per_shard,
        buckets=BUCKETS,
        shares=SHARES,
        concentration=1.0,
        sorted_by_bucket=order == "sorted",
        seed=seed,
    )
    say(f"{tars} tars, {order}, seed {seed}")
    clips = bucket_counts(shape).sum(axis=0)
    unit = scale.lanes * BATCH
    bound = float((clips // unit * unit).sum() / clips.sum())
    with tempfile.TemporaryDirectory() as name:
        folder = write_set(Path(name) / "set", shape)
        corpus = load_corpus([folder], "144p")
        setup, ours = verified(folder, corpus, config(scale, seed))
        ours |= {"used_share_bound": bound, "share_of_bound": ours["used_share"] / bound}
        if order == "sorted":
            return ours, {}
        paper = {
            name: run_baseline(f"paper_{name}", setup).values["used_share"] or 0.0 for name in ("random", "greedy")
        }
        _, last = verified(folder, corpus, config(scale, seed, policy="paper", max_buffer_clips=None))
    return ours, {**paper, "paper": last["used_share"]}


def rows_of(scale: Scale, tars: int, name: int, order: str) -> list[Row]:
    """The lines of one size and order."""
    found = [one_set(scale, tars, seed, order) for seed in range(scale.seeds)]
    goals = GOALS[order]
    suffix = ("" if name == 600 else f"/{name}") + ("" if order == "random" else "/sorted")

    def ours(metric: str, worst: Any) -> float:
        return float(worst(values[metric] for values, _ in found))

    paper = {key: float(np.mean([values[key] for _, values in found])) for key in found[0][1]}
    peer = paper.get("paper")
    bound = ours("used_share_bound", max)
    lines = [
        row(
            f"used_share{suffix}",
            ours("used_share", min),
            "of clips",
            goal=goals["share_of_bound"] * bound,
            better="higher",
            peer=peer,
        ),
        row(
            f"used_share_of_bound{suffix}",
            ours("share_of_bound", min),
            "share",
            goal=goals["share_of_bound"],
            better="higher",
        ),
        row(f"used_share_bound{suffix}", bound, "of clips", goal=None, better="higher"),
    ]
    lines += [
        row(f"used_share_{key}{suffix}", value, "of clips", goal=None, better="higher") for key, value in paper.items()
    ]
    return [
        *lines,
        row(f"sequential_share{suffix}", ours("sequential_share", min), "of bytes", goal=1.0, better="higher"),
        row(f"read_amplification{suffix}", ours("read_amplification", max), "ratio", goal=1.0, better="lower"),
        row(
            f"opens_per_shard{suffix}",
            ours("opens_per_shard", max),
            "lanes a shard",
            goal=goals["opens"],
            better="lower",
        ),
        row(f"ranges_per_shard{suffix}", ours("ranges_per_shard", max), "ranges", goal=None, better="lower"),
        row(
            f"peak_buffer_clips{suffix}", ours("peak_buffer_clips", max), "clips a lane", goal=CAP_CLIPS, better="lower"
        ),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute: a sixteenth of the clips, one seed")
    parser.add_argument("--json", type=Path, default=None, help="write the rows to this file")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    rows: list[Row] = []
    for name, tars in scale.tars.items():
        for order in GOALS:
            rows += rows_of(scale, tars, name, order)
    show(rows)
    write(options.json, rows)


if __name__ == "__main__":
    main()
