"""What would end a set of ablations, or single runs of it, found from files before anything is trained; all of it, not the first.

The checks are the trainer's own where it has one. Price: the samples tables of all sets are read, which the runs do again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from schemas.config import build_config
from schemas.errors import PlanError, ReelyardError
from schemas.plan import PlanMeta, read_plan_meta
from schemas.shards import samples_path
from schemas.tables import SAMPLES, read_table
from training.ablations.config import DataPart, Variant, variant_settings
from training.ablations.data import Data, check_can_be_planned, planner_command, samples_hash, shards_of_share
from training.ablations.suite import SuiteRequest, check_steps
from training.config import TrainConfig
from training.evaluation.held_out import open_held_out
from training.loading.sample_sets import open_sample_sets
from training.set_encoders import check_fit, encoders_of
from training.teachers import check_teachers

__all__ = ["all_problems", "shared_problems"]


class _Problems:
    """A list that collects the messages of errors."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def noting(self, name: str = "") -> Iterator[None]:
        """Note an error for the user, and go on."""
        try:
            yield
        except ReelyardError as error:
            self.found.append(f"{name}: {error}" if name else str(error))


def shared_problems(request: SuiteRequest) -> list[str]:
    """What every run needs: the plan, its sets with their shards, enough steps, held-out sets that fit and are apart."""
    problems = _Problems()
    with problems.noting():
        meta = read_plan_meta(request.data.plan)
        with problems.noting():
            check_steps(request)
        with problems.noting():
            sets = open_sample_sets(meta, request.data.samples)
            if request.validation:
                with problems.noting():
                    open_held_out(
                        request.validation, expected=encoders_of(sets.infos[0]), trained_on=request.data.samples
                    )
    return problems.found


def all_problems(request: SuiteRequest) -> list[str]:
    """`shared_problems`, and what single variants need: networks that fit the sets, whole shards, plans of parts, clips of a level."""
    problems = _Problems()
    problems.found += shared_problems(request)
    try:
        meta = read_plan_meta(request.data.plan)
    except ReelyardError:
        return problems.found
    _networks(problems, request, meta)
    for path in request.data.samples:
        with problems.noting():
            _whole_shards(problems, meta, path)
    named = dict.fromkeys(variant.data for variant in request.variants if variant.data is not None)
    for name in named:
        if name in request.other_data:
            _made_by_hand(problems, name, request.other_data[name], _most_steps(request, name))
        else:
            _part(problems, name, request.config.data[name], request.data, meta)
    return problems.found


def _networks(problems: _Problems, request: SuiteRequest, meta: PlanMeta) -> None:
    try:
        infos = open_sample_sets(meta, request.data.samples).infos
    except ReelyardError:
        return  # said already
    checks: tuple[Callable[[TrainConfig], None], ...] = (
        lambda config: check_fit(config, infos),
        lambda config: check_teachers(config.repa, infos),
    )
    runs: list[Variant | None] = [None, *request.variants]
    by_message: dict[str, list[str]] = {}
    for variant in runs:
        name = "base" if variant is None else variant.name
        config = build_config(TrainConfig, variant_settings(request.config, variant), source=name)
        for check in checks:
            try:
                check(config)
            except ReelyardError as error:
                by_message.setdefault(str(error), []).append(name)
    problems.found += [f"{', '.join(names)}: {message}" for message, names in by_message.items()]


def _whole_shards(problems: _Problems, meta: PlanMeta, folder: Path) -> None:
    """Shards of another size than the plan says; a run would replace their clips one by one."""
    known = {found.samples_hash: found for found in meta.sets}.get(samples_hash(folder))
    for name, size in zip(known.shard_names, known.shard_bytes, strict=True) if known else ():
        path = folder / name
        if path.is_file() and path.stat().st_size != size:
            problems.found.append(
                f"shard {path} has {path.stat().st_size} bytes, the plan expects {size}; copy the whole set, or pack it again"
            )


def _most_steps(request: SuiteRequest, name: str) -> int:
    return max(
        variant_settings(request.config, variant)["steps"] for variant in request.variants if variant.data == name
    )


def _made_by_hand(problems: _Problems, name: str, data: Data, steps: int) -> None:
    with problems.noting(f"data {name}"):
        meta = read_plan_meta(data.plan)
        open_sample_sets(meta, data.samples)
        if steps > meta.num_steps:
            raise PlanError(f"{steps} steps are asked for, the plan {data.plan} has {meta.num_steps}")


def _part(problems: _Problems, name: str, part: DataPart, whole: Data, meta: PlanMeta) -> None:
    with problems.noting(f"data {name}"):
        planner_command()
    with problems.noting(f"data {name}"):
        check_can_be_planned(meta)
    with problems.noting(f"data {name}"):
        level = part.admission or meta.admission
        admitted, levels = 0, Counter[str]()
        for path in whole.samples:
            chosen = shards_of_share(path, part.share) if part.share < 1.0 else None
            found = _levels(path, chosen)
            levels += found
            admitted += found[level]
        if admitted == 0:
            there = ", ".join(f"{one} ({count} clips)" for one, count in sorted(levels.items())) or "none"
            raise PlanError(
                f"no clip of its shards is admitted at {level!r}, levels there are: {there}; pack sets that admit some, "
                f"leave out its variants with --only, or give other data with --data {name}=PLAN,SET"
            )


def _levels(folder: Path, shards: Sequence[int] | None) -> Counter[str]:
    """Clips at each level, in some shards or in all."""
    table = read_table(samples_path(folder), SAMPLES)
    rows = zip(table.column("shard_index").to_pylist(), table.column("admissions").to_pylist(), strict=True)
    return Counter(level for shard, levels in rows if shards is None or shard in shards for level in levels)
