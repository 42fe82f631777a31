"""What `reelyard-plan build` and `replan` do, from their arguments to the lines they print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from planner.admission import read_scores
from planner.building import PlannedRun, build_plan
from planner.folder import refuse_existing, write_plan
from planner.looking.show import summary_lines
from planner.pricing.costs import cost_model
from planner.replanning import continued_config, plan_chain, replan, replan_in_smaller_steps
from planner.samples import Corpus, load_corpus, set_folder
from planner.settings import PlanConfig
from planner.stamps import changed_shards
from schemas.buckets import Bucket
from schemas.command import say
from schemas.config import load_config
from schemas.cost_table import read_cost_table
from schemas.errors import DataError, UsageError
from schemas.shards import read_set_info

__all__ = ["build_command", "open_corpus", "replan_command"]

_SHOWN_NAMES = 12


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
    for note in _unknown_names(corpus, config):
        say(note)
    run = build_plan(corpus, config, costs)
    yield from written(run, samples, output, overwrite=overwrite)


def _unknown_names(corpus: Corpus, config: PlanConfig) -> Iterator[str]:
    """A line for each name in the settings that no admitted clip has: allowed, since settings are shared between sets, but maybe a typo."""
    for name in sorted({name for phase in config.mix for name in phase.domain_weights} - set(corpus.domains)):
        column, known = config.domain_column, _some(corpus.domains)
        yield f"note: mix gives domain {name!r} a weight, but no admitted clip has it in {column}; the domains are {known}"
    sizes = {
        (bucket.height, bucket.width): bucket.frames for bucket in corpus.buckets
    }  # sorted: the longest comes last
    for name in sorted(config.batch_clips):
        bucket = Bucket.parse(name)
        if sizes.get((bucket.height, bucket.width), 0) < bucket.frames:
            yield f"note: batch_clips gives bucket {name} a size, but no admitted clip fits it; the buckets are {_some(map(str, corpus.buckets))}"


def _some(names: Iterable[str]) -> str:
    """The first few."""
    listed = list(names)
    return ", ".join(listed[:_SHOWN_NAMES]) + (
        f" and {len(listed) - _SHOWN_NAMES} more" if len(listed) > _SHOWN_NAMES else ""
    )


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
    if output.resolve() in {path.resolve() for path in (plan, *continues)}:
        raise UsageError(
            f"--output {output} is a plan that the new one goes on from, and without it nobody can prove that each clip comes once; "
            "give another folder"
        )
    chain = plan_chain(plan, continues)
    config = continued_config(chain[-1][1], lanes, micro_per_step, overrides)
    costs = cost_model(config, None if cost_table is None else read_cost_table(cost_table))
    corpus = open_corpus(samples, config, scores)
    say(f"going on from step {from_step} of {plan} on {lanes} lanes")
    go_on = replan if micro_per_step is not None else replan_in_smaller_steps
    run = go_on(chain, from_step, corpus, config, costs)
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
        frames=config.frames,
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
    most, end = run.config.max_steps, run.first_step + run.num_steps
    if most is not None and end < most:
        yield f"note: max_steps is {most}, but {run.config.epochs} epochs end after {end} steps; raise epochs, or set epochs: null"
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
            changes = [
                "fewer lanes",
                *(["a smaller batch (batch_clips)"] if line.clips_per_lane > 1 else []),
                *(["left_over: repeat"] if run.config.left_over != "repeat" else []),
                *(["policy: tiers"] if run.config.policy != "tiers" else []),
            ]
            yield (
                f"note: bucket {line.bucket} has no row: {line.clips_in_set} clips, a row of {run.config.lanes} lanes takes "
                f"{run.config.lanes * line.clips_per_lane} ({line.clips_per_lane} each); its {what} stand in the ledger. "
                f"What may use them: {', '.join(changes)}"
            )
