"""The run that is asked about: its starts, and for any step the plan, the sets and the configuration that it was trained with.

The run says where its plan and sets were; `--plan` and `--samples` say where they are now. Plans are told apart by their hash, so several may be
given and only the right one is used. Price: sets are hashed when a plan is opened, once for each plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.config import build_config
from schemas.errors import PlanError, UsageError
from schemas.plan import PlanMeta, read_plan_meta
from training.checkpoints.checkpoint import checkpoint_steps
from training.config import TrainConfig
from training.loading.set_folders import SetPlace, place_of
from training.run_setup import read_run_info
from training.run_starts import RunStart, read_starts, start_of_step
from training.whatwas.set_rows import SetRows, open_set_rows

__all__ = ["OpenPlan", "RunFolder", "open_run_folder"]


@dataclass(frozen=True, kw_only=True)
class OpenPlan:
    """A plan of the run, with its sets."""

    folder: Path
    meta: PlanMeta
    sets: SetRows


class RunFolder:
    """A run, and what it was trained with."""

    def __init__(
        self, run: Path, starts: Sequence[RunStart], plans: Sequence[Path], samples: Sequence[SetPlace]
    ) -> None:
        self.run = run
        self.starts = tuple(starts)
        self._plans = tuple(plans)
        self._samples = tuple(samples)
        self._open: dict[str, OpenPlan] = {}

    def config(self, step: int) -> TrainConfig:
        """The configuration of a step."""
        start = start_of_step(self.starts, step)
        return build_config(TrainConfig, start.config, source=f"{self.run}: configuration of step {start.first_step}")

    def plan(self, step: int) -> OpenPlan:
        """The plan of a step.

        Raises:
            PlanError: when it is not found, is another one, or its sets are not found.
            UsageError: when the plan has no such step.
        """
        plan = self._opened(start_of_step(self.starts, step))
        if step not in plan.meta.steps:
            raise UsageError(
                f"--step {step} is not in the plan of the run: {plan.folder} has steps {plan.meta.steps.start} to {plan.meta.steps.stop - 1}"
            )
        return plan

    def stretches(self) -> list[tuple[range, OpenPlan]]:
        """All steps of the run's plans, each stretch with the plan that it is of."""
        found = []
        for index, start in enumerate(self.starts):
            plan = self._opened(start)
            later = self.starts[index + 1].first_step if index + 1 < len(self.starts) else plan.meta.steps.stop
            found.append((range(max(start.first_step, plan.meta.steps.start), min(later, plan.meta.steps.stop)), plan))
        return found

    def steps_done(self) -> int:
        """Steps that the latest checkpoint holds; 0 without one."""
        return max(checkpoint_steps(self.run), default=0)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        for plan in self._open.values():
            plan.sets.close()

    def _opened(self, start: RunStart) -> OpenPlan:
        if start.plan_hash not in self._open:
            folder, meta = self._find(start)
            given = self._samples or tuple(map(place_of, start.samples))
            if not given:
                raise UsageError(
                    f"{self.run} does not say where the sets of its plan are; give each with --samples FOLDER"
                )
            for path in given if not self._samples else ():
                if isinstance(path, Path) and not (path / "set.json").is_file():
                    raise PlanError(
                        f"the set {path}, which steps {start.first_step} and later were trained on, is not there any more; "
                        "give the folder where each set of the plan is now with --samples"
                    )
            self._open[start.plan_hash] = OpenPlan(folder=folder, meta=meta, sets=open_set_rows(meta, given))
        return self._open[start.plan_hash]

    def _find(self, start: RunStart) -> tuple[Path, PlanMeta]:
        """The plan of a start, by its hash, among those given, else where the run read it."""
        given = self._plans or (() if start.plan is None else (Path(start.plan),))
        if not given:
            raise UsageError(f"{self.run} does not say where its plan is; give it with --plan FOLDER")
        if not self._plans and not (given[0] / "plan.json").is_file():
            raise PlanError(
                f"the plan {given[0]}, which steps {start.first_step} and later were trained with, is not there any more; "
                "give the folder where it is now with --plan"
            )
        metas = [(folder, read_plan_meta(folder)) for folder in given]
        for folder, meta in metas:
            if meta.plan_hash == start.plan_hash:
                return folder, meta
        seen = ", ".join(f"{folder} ({meta.plan_hash[:12]})" for folder, meta in metas)
        raise PlanError(
            f"steps {start.first_step} and later of {self.run} were trained with plan {start.plan_hash[:12]}, given: {seen}; "
            "give the plan of the run with --plan"
        )


def open_run_folder(run: Path, plans: Sequence[Path] = (), samples: Sequence[SetPlace] = ()) -> RunFolder:
    """Open a run; plans and sets are opened when a step asks for them.

    Raises:
        UsageError: when the folder is not a run.
        DataError: when it says nothing of its plan.
    """
    read_run_info(run)
    return RunFolder(run, read_starts(run), plans, samples)
