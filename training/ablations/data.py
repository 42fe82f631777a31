"""Less data, or other data, for some variants: a set of fewer shards, and a plan of it by the planner's own command.

A smaller set has links to some shards of the whole one and a samples table of their rows, so it is a set like any other. Its plan is built by
`reelyard-plan build` with the settings that the base's plan was built with, and as many steps. Trainer and planner share files alone, so
the command is called as a person would. Price: a plan that was built with `--scores` or `--cost-table` is not built again alike; such data is made
by hand and named with `--data`.

    <output>/data/<name>/stamp.json    what it was made of: the base's plan, the samples tables, the part; written last
    <output>/data/<name>/set-0/, ...   the smaller sets, with a share
    <output>/data/<name>/plan/

Data whose stamp says something else is made again. The runs on it have another fingerprint then, and are refused by that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.config import read_yaml
from schemas.errors import PlanError, PreflightError, UsageError
from schemas.files import atomic_folder, write_json
from schemas.hashing import table_hash
from schemas.plan import PlanMeta, read_plan_meta
from schemas.shards import read_set_info, samples_path, write_set_info
from schemas.tables import SAMPLES, read_table, write_table
from training.ablations.config import DataPart

__all__ = [
    "Data",
    "build_plan",
    "check_can_be_planned",
    "parse_data",
    "part_of_set",
    "planner_command",
    "prepare_data",
    "samples_hash",
    "shards_of_share",
]


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


def samples_hash(folder: Path) -> str:
    """Canonical hash of a set's samples table: every clip, offset and checksum, whatever the folder is called."""
    return table_hash(read_table(samples_path(folder), SAMPLES))


def prepare_data(part: DataPart, whole: Data, folder: Path) -> Data:
    """The sets and the plan of a part of the data below `folder`; what was made there of the same things is used.

    Raises:
        UsageError: when the sets have too few shards for the share.
        PreflightError, PlanError: when the planner's command is not there, or cannot plan it.
    """
    base = read_plan_meta(whole.plan)
    stamp = {
        "plan": base.plan_hash,
        "samples": [samples_hash(path) for path in whole.samples],
        "part": part.model_dump(mode="json"),
    }
    stamp_file, plan, samples = folder / "stamp.json", folder / "plan", whole.samples
    kept = stamp_file.is_file() and read_yaml(stamp_file) == stamp
    if not kept:
        _remove(stamp_file, plan, *folder.glob("set-*"))
    if part.share < 1.0:
        targets = [folder / f"set-{index}" for index in range(len(whole.samples))]
        if not kept:
            for source, target in zip(whole.samples, targets, strict=True):
                part_of_set(source, target, part.share)
        samples = tuple(targets)
    if not kept:
        build_plan(base, samples, plan, admission=part.admission)
        write_json(stamp_file, stamp)
    return Data(plan=plan, samples=samples)


def shards_of_share(source: Path, share: float) -> tuple[int, ...]:
    """Indices of the shards that a share takes, evenly chosen; UsageError when that is all of them."""
    total = len(read_set_info(source).shards)
    count = max(1, round(share * total))
    if count == total:
        raise UsageError(
            f"{source} has {total} shards: {share:g} of them cannot be taken; pack the set in smaller shards, or leave the variant out"
        )
    return tuple(np.linspace(0, total, count, endpoint=False).astype(int).tolist())


def part_of_set(source: Path, target: Path, share: float) -> None:
    """Write a set with some shards of `source`, hard-linked where the file system can, else linked."""
    chosen, info = shards_of_share(source, share), read_set_info(source)
    with atomic_folder(target) as folder:
        for index in chosen:
            _link(source / info.shards[index].name, folder / info.shards[index].name)
        shutil.copyfile(source / info.null_text, folder / info.null_text)
        write_table(samples_path(folder), _rows_of(read_table(samples_path(source), SAMPLES), chosen), SAMPLES)
        write_set_info(folder, info.model_copy(update={"shards": tuple(info.shards[index] for index in chosen)}))


def build_plan(like: PlanMeta, samples: tuple[Path, ...], output: Path, *, admission: str | None) -> None:
    """Call `reelyard-plan build` with the settings of another plan and as many steps, in as many epochs as they need."""
    check_can_be_planned(like)
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


def check_can_be_planned(like: PlanMeta) -> None:
    """PlanError when no plan can be built with the settings of this one."""
    if not like.config:
        raise PlanError(
            "the base's plan does not say the settings that it was built with; build it with `reelyard-plan build`"
        )
    if like.scores_hash is not None:
        raise PlanError(
            "the base's plan was built with --scores, which it does not hold; build the plan of this data by hand and give it "
            "with --data NAME=PLAN,SET"
        )


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


def _rows_of(table: pa.Table, chosen: Sequence[int]) -> pa.Table:
    """The rows of some shards, numbered anew from 0."""
    kept = table.filter(pc.is_in(table.column("shard_index"), pa.array(chosen, table.schema.field("shard_index").type)))
    place = {old: new for new, old in enumerate(chosen)}
    renumbered = [place[old] for old in kept.column("shard_index").to_pylist()]
    column = table.schema.get_field_index("shard_index")
    return kept.set_column(
        column, SAMPLES.field("shard_index"), pa.array(renumbered, SAMPLES.field("shard_index").type)
    )


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source.absolute())
