"""What `reelyard-plan build` and `replan` do, from their arguments to the lines they print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from planner.admission import read_scores
from planner.building import PlannedRun, build_plan
from planner.folder import refuse_existing, write_plan
from planner.looking.show import summary_lines
from planner.pricing.costs import cost_model
from planner.replanning import continued_config, plan_chain, replan
from planner.samples import Corpus, load_corpus, set_folder
from planner.settings import PlanConfig
from planner.stamps import changed_shards
from schemas.command import say
from schemas.config import load_config
from schemas.cost_table import read_cost_table
from schemas.errors import DataError
from schemas.shards import read_set_info

__all__ = ["build_command", "open_corpus", "replan_command"]


def build_command(
    samples: Sequence[Path],
    config_path: Path,
    overrides: Sequence[str],
    output: Path,
    *,
    scores: Path | None,
    cost_table: Path | None,
    overwrite: bool,
) -> Iterator[str]:
    """Build and write; yields the summary."""
    config = load_config(PlanConfig, config_path, overrides)
    refuse_existing(output, overwrite=overwrite)
    costs = cost_model(config, None if cost_table is None else read_cost_table(cost_table))
    corpus = open_corpus(samples, config, scores)
    say(
        f"planning {corpus.num_clips} of {corpus.clips_in_tables} clips in {corpus.num_shards} shards on {config.lanes} lanes"
    )
    run = build_plan(corpus, config, costs)
    yield from written(run, samples, output, overwrite=overwrite)


def replan_command(
    plan: Path,
    from_step: int,
    lanes: int,
    samples: Sequence[Path],
    overrides: Sequence[str],
    output: Path,
    *,
    micro_per_step: int | None,
    continues: Sequence[Path],
    scores: Path | None,
    cost_table: Path | None,
    overwrite: bool,
) -> Iterator[str]:
    """Plan and write what is left of a plan; yields the summary."""
    refuse_existing(output, overwrite=overwrite)
    chain = plan_chain(plan, continues)
    config = continued_config(chain[-1][1], lanes, micro_per_step, overrides)
    costs = cost_model(config, None if cost_table is None else read_cost_table(cost_table))
    corpus = open_corpus(samples, config, scores)
    say(f"going on from step {from_step} of {plan} on {lanes} lanes")
    run = replan(chain, from_step, corpus, config, costs)
    more = "".join(f" --continues {path}" for path, _ in chain)
    yield from written(run, samples, output, overwrite=overwrite, more=more)


def open_corpus(samples: Sequence[Path], config: PlanConfig, scores: Path | None) -> Corpus:
    """The clips that the settings admit.

    Raises:
        DataError: if tars have changed since they were packed or indexed; and what `load_corpus` raises.
    """
    corpus = load_corpus(
        samples,
        config.admission,
        config.rules,
        scores=read_scores(scores, config.rules),
        domain_column=config.domain_column,
    )
    for path in samples:
        folder = set_folder(path)
        changed = changed_shards(folder, read_set_info(folder))
        if changed:
            raise DataError(
                f"{len(changed)} tars of {folder} are not what its set.json says: {'; '.join(changed[:3])}"
                f"{'; ...' if len(changed) > 3 else ''}; index or pack the set again, so that no byte range is wrong"
            )
    return corpus


def written(
    run: PlannedRun, samples: Sequence[Path], output: Path, *, overwrite: bool, more: str = ""
) -> Iterator[str]:
    """Write a run; yields its summary, and says how to prove it."""
    meta = write_plan(run, output, overwrite=overwrite)
    yield from summary_lines(meta)
    yield from _empty_buckets(run)
    say(
        f"plan written to {output}; prove it with: reelyard-plan verify {output} "
        + " ".join(f"--samples {path}" for path in samples)
        + more
    )


def _empty_buckets(run: PlannedRun) -> Iterator[str]:
    """A line for each bucket that has clips and no row, so that nobody finds out from the samples of the model."""
    in_rows = {int(line) for epoch in run.epochs for line in np.unique(epoch.rows)}
    for number, line in enumerate(run.lines):
        if line.clips_in_set and number not in in_rows:
            what = (
                "clips go to shorter buckets or" if run.config.shorten_left_over and line.bucket.frames > 1 else "clips"
            )
            yield (
                f"note: bucket {line.bucket} has no row: {line.clips_in_set} clips, a row of {run.config.lanes} lanes takes "
                f"{run.config.lanes * line.clips_per_lane} ({line.clips_per_lane} each); its {what} stand in the ledger. "
                "Fewer lanes, a smaller batch (batch_clips), left_over: repeat or policy: tiers may use them"
            )
