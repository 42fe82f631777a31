"""Plans of small sets, built and written with few settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planner.admission import read_scores
from planner.building import PlannedRun, build_plan
from planner.folder import write_plan
from planner.samples import load_corpus
from planner.settings import PlanConfig
from schemas.plan import PlanMeta

__all__ = ["small_config", "write_small_plan"]


def small_config(**values: Any) -> PlanConfig:
    """Two lanes, the tiny network, few annealing moves; `values` win."""
    base = {"lanes": 2, "max_tokens_per_micro_batch": 2048, "anneal_steps": 60, "cost": {"preset": "tiny"}}
    return PlanConfig.model_validate(base | values)


def write_small_plan(
    folders: Sequence[Path], plan: Path, *, scores: Path | None = None, **values: Any
) -> tuple[PlannedRun, PlanMeta]:
    """Build and write a plan of these sets, as `reelyard-plan build` does."""
    config = small_config(**values)
    corpus = load_corpus(
        folders,
        config.admission,
        config.rules,
        scores=read_scores(scores, config.rules),
        domain_column=config.domain_column,
        frames=config.frames,
    )
    run = build_plan(corpus, config)
    return run, write_plan(run, plan)
