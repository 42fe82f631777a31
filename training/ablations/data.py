"""Less data, or other data, for some variants: a set of fewer shards, and a plan of it by the planner's own command.

A smaller set has links to some shards of the whole one and a samples table of their rows, so it is a set like any other. Its plan is built by
`reelyard-plan build` with the settings that the base's plan was built with, and as many steps. Trainer and planner share files alone, so
the command is called as a person would. Price: a plan that was built with `--scores` or `--cost-table` is not built again alike; such data is made
by hand and named with `--data`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import PlanError, PreflightError, UsageError
from schemas.files import atomic_folder, write_json
from schemas.plan import PlanMeta, read_plan_meta
from schemas.shards import read_set_info, samples_path, write_set_info
from schemas.tables import SAMPLES, read_table, write_table
from training.ablations.config import DataPart

__all__ = ["Data", "build_plan", "parse_data", "part_of_set", "planner_command", "prepare_data"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run reads."""

    plan: Path
    samples: tuple[Path, ...]


def parse_data(texts: tuple[str, ...]) -> dict[str, Data]:
    """`half=PLAN,SET,SET` of the command line, by name."""
    found = {}
    for text in texts:
        name, _, paths = text.partition("=")
        plan, *samples = paths.split(",")
        if not (name and plan and samples and all(samples)):
            raise UsageError(f"--data is {text!r}, expected NAME=PLAN,SET or NAME=PLAN,SET,SET")
        found[name] = Data(plan=Path(plan), samples=tuple(map(Path, samples)))
    return found


def prepare_data(part: DataPart, whole: Data, folder: Path) -> Data:
    """The sets and the plan of a part of the data below `folder`; what is there already is used.

    Raises:
        UsageError: when the sets have too few shards for the share.
        PreflightError, PlanError: when the planner's command is not there, or cannot plan it.
    """
    samples = whole.samples
    if part.share < 1.0:
        samples = tuple(
            part_of_set(path, folder / f"set-{index}", part.share) for index, path in enumerate(whole.samples)
        )
    plan = folder / "plan"
    if not (plan / "plan.json").is_file():
        build_plan(read_plan_meta(whole.plan), samples, plan, admission=part.admission)
    return Data(plan=plan, samples=samples)


def part_of_set(source: Path, target: Path, share: float) -> Path:
    """A set with some shards of `source`, evenly chosen, hard-linked where the file system can, else linked."""
    info = read_set_info(source)
    count = max(1, round(share * len(info.shards)))
    if count == len(info.shards):
        raise UsageError(
            f"{source} has {len(info.shards)} shards: {share:g} of them cannot be taken; pack the set in smaller shards, or leave the variant out"
        )
    if (target / "set.json").is_file():
        return target
    chosen = np.linspace(0, len(info.shards), count, endpoint=False).astype(int).tolist()
    with atomic_folder(target) as folder:
        for index in chosen:
            _link(source / info.shards[index].name, folder / info.shards[index].name)
        shutil.copyfile(source / info.null_text, folder / info.null_text)
        write_table(samples_path(folder), _rows_of(read_table(samples_path(source), SAMPLES), chosen), SAMPLES)
        write_set_info(folder, info.model_copy(update={"shards": tuple(info.shards[index] for index in chosen)}))
    return target


def build_plan(like: PlanMeta, samples: tuple[Path, ...], output: Path, *, admission: str | None) -> None:
    """Call `reelyard-plan build` with the settings of another plan and as many steps, in as many epochs as they need."""
    if not like.config:
        raise PlanError(
            "the base's plan does not say the settings that it was built with; build it with `reelyard-plan build`"
        )
    settings = {**like.config, "epochs": None, "max_steps": like.num_steps}
    if admission is not None:
        settings["admission"] = admission
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.with_name("plan-settings.json")
    write_json(config, settings)
    arguments = [part for path in samples for part in ("--samples", str(path))]
    command = [planner_command(), "build", *arguments, "--config", str(config), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise PlanError(f"reelyard-plan build gave up: {said[-1] if said else f'exit code {done.returncode}'}")


def planner_command() -> str:
    """`reelyard-plan` of this environment, else of the path."""
    beside = Path(sys.executable).with_name("reelyard-plan")
    found = str(beside) if beside.is_file() else shutil.which("reelyard-plan")
    if found is None:
        raise PreflightError(
            "reelyard-plan is not installed here, and this data needs a plan of its own; install reelyard[planner], "
            "or build the plan elsewhere and give it with --data NAME=PLAN,SET"
        )
    return found


def _rows_of(table: pa.Table, chosen: list[int]) -> pa.Table:
    """The rows of some shards, numbered anew from 0."""
    kept = table.filter(pc.is_in(table.column("shard_index"), pa.array(chosen, table.schema.field("shard_index").type)))
    place = {old: new for new, old in enumerate(chosen)}
    renumbered = [place[old] for old in kept.column("shard_index").to_pylist()]
    column = table.schema.get_field_index("shard_index")
    return kept.set_column(
        column, SAMPLES.field("shard_index"), pa.array(renumbered, SAMPLES.field("shard_index").type)
    )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source.absolute())
