"""`reelyard-plan compare`: our plans and everybody else's strategies on the same clips, lanes and batches, measured alike.

Ours are built, written to a folder that is thrown away, and then known only by their lane tables: the same `planner.baselines.outcomes.measure`
that judges the baselines sees which clips each micro-batch names and which bytes each lane reads. One epoch is compared. Price: three plans are
built.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.baselines.lane_schedules import in_random_order, plan_schedule
from planner.baselines.outcomes import METRICS, Outcome, Schedule, Setup, measure
from planner.baselines.strategies import BASELINES, run_baseline
from planner.building import build_plan
from planner.folder import write_plan
from planner.pricing.costs import CostModel
from planner.samples import Corpus
from planner.settings import PlanConfig
from schemas.command import say
from schemas.errors import PlanError
from schemas.plan import read_plan_meta

__all__ = ["OURS", "Comparison", "compare", "comparison_lines", "comparison_values"]

OURS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "tiers_not_annealed": (
        "tiers, not annealed",
        "our tiers from the constructive start alone",
        {"policy": "tiers", "anneal_steps": 0, "anneal_moves_per_clip": 0.0},
    ),
    "ours_uniform": ("ours: uniform", "the same bucket on all lanes in a row", {"policy": "uniform"}),
    "ours_tiers": ("ours: tiers", "the same cost tier on all lanes in a row", {"policy": "tiers"}),
}
"""Name to label, words, and the settings that make it; all else is the configuration's."""

RANDOM_ORDER = "random_order"
_RANDOM_ORDER_WORDS = (
    "ours, tars in random order",
    "the lanes' tars and rows of ours: uniform, each lane reading its tars in random order and using a clip as soon as a row wants its bucket",
)
_TABLES = (
    (
        "used_share",
        "steps",
        "waste_micro",
        "waste_step",
        "sequential_share",
        "read_amplification",
        "unused_read_share",
        "opens_per_shard",
        "ranges_per_shard",
        "peak_buffer_clips",
        "peak_buffer_mb",
        "seconds_to_plan",
    ),
    (
        "mix_bucket_1",
        "mix_bucket_8",
        "mix_bucket_64",
        "mix_domain_1",
        "mix_domain_8",
        "mix_domain_64",
        "shared_source_ratio",
    ),
)
_HEADS = {
    "used_share": "used",
    "steps": "steps",
    "waste_micro": "idle/row",
    "waste_step": "idle/step",
    "sequential_share": "forward",
    "read_amplification": "amplif.",
    "unused_read_share": "unused",
    "opens_per_shard": "opens",
    "ranges_per_shard": "ranges",
    "peak_buffer_clips": "clips",
    "peak_buffer_mb": "MB",
    "seconds_to_plan": "plan s",
    "mix_bucket_1": "bucket 1",
    "mix_bucket_8": "bucket 8",
    "mix_bucket_64": "bucket 64",
    "mix_domain_1": "domain 1",
    "mix_domain_8": "domain 8",
    "mix_domain_64": "domain 64",
    "shared_source_ratio": "source",
}
_DIGITS = {
    "steps": 0,
    "opens_per_shard": 2,
    "ranges_per_shard": 2,
    "peak_buffer_clips": 0,
    "peak_buffer_mb": 1,
    "seconds_to_plan": 2,
} | {name: 3 for name in METRICS if name.startswith(("mix_", "shared_"))}
_SHARES = ("used_share", "waste_micro", "waste_step", "sequential_share", "unused_read_share")


@dataclass(frozen=True)
class Comparison:
    """All strategies on one number of lanes."""

    lanes: int
    micro_per_step: int
    num_clips: int
    num_shards: int
    outcomes: tuple[Outcome, ...]


def compare(corpus: Corpus, config: PlanConfig, costs: CostModel | None = None) -> Comparison:
    """Every baseline and ours, one epoch; the batch table is that of ours: uniform, or of the first of ours that is not refused.

    Raises:
        PlanError: if all of ours are refused (else one that is refused is a row without values, with the reason).
    """
    ours: dict[str, Outcome] = {}
    measured: dict[str, tuple[Setup, Schedule]] = {}
    for name in OURS:
        say(f"{config.lanes} lanes: {name}")
        try:
            measured[name], spent = _build(name, corpus, config, costs)
        except PlanError as error:
            ours[name] = Outcome(name, dict.fromkeys(METRICS), dict.fromkeys(METRICS, f"refused: {error}"))
            continue
        ours[name] = measure(name, *measured[name], spent)
    if not measured:
        raise PlanError(next(iter(ours["ours_uniform"].notes.values())))
    if "ours_uniform" in measured:
        start = time.perf_counter()
        again = in_random_order(*measured["ours_uniform"])
        spent = time.perf_counter() - start + float(ours["ours_uniform"].values["seconds_to_plan"] or 0.0)
        ours[RANDOM_ORDER] = measure(RANDOM_ORDER, measured["ours_uniform"][0], again, spent)
    setup = measured["ours_uniform" if "ours_uniform" in measured else next(iter(measured))][0]
    del measured
    outcomes = []
    for name in BASELINES:
        say(f"{config.lanes} lanes: {name}")
        outcomes.append(run_baseline(name, setup))
    order = [name for name in ("tiers_not_annealed", RANDOM_ORDER, "ours_uniform", "ours_tiers") if name in ours]
    return Comparison(
        lanes=config.lanes,
        micro_per_step=config.micro_per_step,
        num_clips=corpus.num_clips,
        num_shards=len(np.unique(corpus.shard)),
        outcomes=(*outcomes, *(ours[name] for name in order)),
    )


def _build(
    name: str, corpus: Corpus, config: PlanConfig, costs: CostModel | None
) -> tuple[tuple[Setup, Schedule], float]:
    """One epoch of ours as its lane tables have it, and the seconds that building and writing took."""
    changes = {"epochs": 1, "max_steps": None, **OURS[name][2]}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan"
        write_plan(build_plan(corpus, config.model_copy(update=changes), costs), plan)
        spent = time.perf_counter() - start
        return plan_schedule(plan, read_plan_meta(plan), corpus, config), spent


def _words(name: str) -> tuple[str, str]:
    """(label, what it is)."""
    if name == RANDOM_ORDER:
        return _RANDOM_ORDER_WORDS
    return OURS[name][:2] if name in OURS else (BASELINES[name].label, BASELINES[name].about)


def comparison_lines(comparison: Comparison) -> list[str]:
    """Aligned tables, what each strategy is, the definitions, and why a value is missing."""
    labels = {outcome.name: _words(outcome.name)[0] for outcome in comparison.outcomes}
    left = max(map(len, labels.values()))
    lines = [
        f"{comparison.num_clips} clips in {comparison.num_shards} shards on {comparison.lanes} lanes, "
        f"{comparison.micro_per_step} rows a step, one epoch"
    ]
    for columns in _TABLES:
        lines += ["", " ".join(["strategy".ljust(left), *(f"{_HEADS[name]:>9}" for name in columns)])]
        for outcome in comparison.outcomes:
            cells = (f"{_cell(name, outcome.values[name]):>9}" for name in columns)
            lines.append(" ".join([labels[outcome.name].ljust(left), *cells]))
    lines += ["", "strategies"]
    lines += [f"  {labels[outcome.name].ljust(left)}  {_words(outcome.name)[1]}" for outcome in comparison.outcomes]
    lines += ["", "definitions"]
    lines += [f"  {_HEADS[name]:<9}  {name}: {text}" for name, text in METRICS.items()]
    return lines + _missing(comparison, labels, left)


def _missing(comparison: Comparison, labels: Mapping[str, str], left: int) -> list[str]:
    """Why a cell holds no number; a reason that all strategies share stands once."""
    reasons = [(labels[outcome.name], note) for outcome in comparison.outcomes for note in set(outcome.notes.values())]
    shared = {note for _, note in reasons if sum(note == other for _, other in reasons) == len(labels)}
    lines = [f"  {'all'.ljust(left)}  {note}" for note in sorted(shared)]
    lines += [f"  {label.ljust(left)}  {note}" for label, note in reasons if note not in shared]
    return ["", "no number (-)", *lines] if lines else []


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in _SHARES:
        return f"{100 * value:.2f}%"
    return f"{value:.{_DIGITS.get(name, 4)}f}"


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """The same for `--json`."""
    rows = []
    for outcome in comparison.outcomes:
        label, about = _words(outcome.name)
        rows.append(
            {
                "name": outcome.name,
                "label": label,
                "about": about,
                "values": dict(outcome.values),
                "notes": dict(outcome.notes),
            }
        )
    return {
        "lanes": comparison.lanes,
        "micro_per_step": comparison.micro_per_step,
        "clips": comparison.num_clips,
        "shards": comparison.num_shards,
        "definitions": dict(METRICS),
        "strategies": rows,
    }
