"""The whole set: base and its seeds first, then the variants in the file's order, each failure a row and not the end.

Differences are to what a variant names: to the mean of the base's seeds mostly, else to one other run. noise.py says how large chance makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from schemas.errors import ReelyardError, UsageError
from schemas.files import write_json
from schemas.plan import read_plan_meta
from training.ablations.config import BASE, AblationConfig, Variant, variant_settings
from training.ablations.data import Data, prepare_data
from training.ablations.noise import FALSE_ALARMS, Noise, measure_noise
from training.ablations.results import RunResult
from training.ablations.runs import RunRequest, StoppedError, finish_run, noting_sigterm

__all__ = ["MEASURES", "Row", "SuiteRequest", "SuiteTable", "check_steps", "run_suite"]

MEASURES = ("final_flow_loss", "validation_loss")
"""What rows are compared by."""
_VALIDATIONS = 8
"""On the way, where the file does not say how often."""


@dataclass(frozen=True, kw_only=True)
class SuiteRequest:
    """What to run."""

    config: AblationConfig
    variants: tuple[Variant, ...]
    data: Data
    other_data: Mapping[str, Data]
    """Made by hand, by name."""
    validation: tuple[Path, ...]
    output: Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run in the table."""

    name: str
    group: str
    question: str
    against: str | None
    """None for the base and its seeds."""
    result: RunResult | None
    reason: str = ""
    """Why there is no result."""


@dataclass(frozen=True, kw_only=True)
class SuiteTable:
    """All rows, and what follows from several."""

    rows: tuple[Row, ...]

    def row(self, name: str) -> Row | None:
        """By name."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def seeds(self) -> tuple[Row, ...]:
        """The base's runs that have a result."""
        return tuple(row for row in self.rows if row.against is None and row.result is not None)

    def measure(self, row: Row | None, key: str) -> float | None:
        """`final_flow_loss` or `validation_loss` of a row."""
        if row is None or row.result is None:
            return None
        value: float | None = getattr(row.result, key)
        return value

    def difference(self, row: Row, key: str) -> float | None:
        """To what the row is compared with, for the base the mean of its seeds; below 0 is better."""
        mine, other = self.measure(row, key), None
        if row.against == BASE:
            found = self._of_seeds(key)
            other = fmean(found) if found else None
        elif row.against is not None:
            other = self.measure(self.row(row.against), key)
        return None if mine is None or other is None else mine - other

    def noise(self, key: str) -> Noise | None:
        """Of the base's seeds; None with fewer than two."""
        return measure_noise(self._of_seeds(key))

    def is_within_noise(self, row: Row, key: str) -> bool:
        """Whether chance makes differences as large as the row's; True where the noise is unknown."""
        found, noise = self.difference(row, key), self.noise(key)
        if found is None or noise is None:
            return True
        return abs(found) <= (noise.to_base if row.against == BASE else noise.between_runs)

    @property
    def num_compared(self) -> int:
        """Variants with a difference."""
        return sum(self.difference(row, "final_flow_loss") is not None for row in self.rows)

    def _of_seeds(self, key: str) -> list[float]:
        return [value for row in self.seeds if (value := self.measure(row, key)) is not None]

    def to_json(self) -> dict[str, Any]:
        """For `table.json`."""
        return {
            "noise": {key: None if (noise := self.noise(key)) is None else noise.to_json() for key in MEASURES},
            "false_alarms": {"share": FALSE_ALARMS, "expected": FALSE_ALARMS * self.num_compared},
            "rows": [
                {
                    "name": row.name,
                    "group": row.group,
                    "question": row.question,
                    "against": row.against,
                    "reason": row.reason,
                    "result": None if row.result is None else row.result.to_json(),
                    "differences": {key: self.difference(row, key) for key in MEASURES},
                    "within_noise": {
                        key: None if self.difference(row, key) is None else self.is_within_noise(row, key)
                        for key in MEASURES
                    },
                }
                for row in self.rows
            ],
        }


def run_suite(request: SuiteRequest, *, on_row: Callable[[Row, bool], None] | None = None) -> SuiteTable:
    """Run what is not done yet; `on_row(row, was_done)` after each. `table.json` is written after every row.

    Raises:
        UsageError: when the output holds runs of other settings, or the plan has too few steps.
        StoppedError: after a SIGTERM.
    """
    check_steps(request)
    with noting_sigterm() as stopped:
        return _run_all(request, stopped, on_row)


def _run_all(request: SuiteRequest, stopped: Sequence[int], on_row: Callable[[Row, bool], None] | None) -> SuiteTable:
    rows: list[Row] = []
    seeds = [(BASE if seed == 0 else f"{BASE}-seed-{seed}", None, seed) for seed in range(request.config.seeds)]
    for name, variant, seed in [*seeds, *((variant.name, variant, 0) for variant in request.variants)]:
        row, was_done = _run(request, name, variant, seed, rows, stopped)
        rows.append(row)
        write_json(request.output / "table.json", SuiteTable(rows=tuple(rows)).to_json())
        if on_row is not None:
            on_row(row, was_done)
    return SuiteTable(rows=tuple(rows))


def _run(
    request: SuiteRequest,
    name: str,
    variant: Variant | None,
    seed: int,
    before: Sequence[Row],
    stopped: Sequence[int],
) -> tuple[Row, bool]:
    group, question, against = (
        (BASE, "the base" if seed == 0 else "the base with another seed: how much is noise", None)
        if variant is None
        else (variant.group, variant.question, variant.against)
    )
    reason, result, was_done = "", None, False
    try:
        run_request = _run_request(request, name, variant, seed, before)
        if stopped:
            raise StoppedError(f"stopped by SIGTERM before {name}")
        result, was_done = finish_run(run_request)
    except (StoppedError, UsageError):
        raise
    except ReelyardError as error:
        reason = str(error)
    return Row(name=name, group=group, question=question, against=against, result=result, reason=reason), was_done


def _run_request(
    request: SuiteRequest, name: str, variant: Variant | None, seed: int, before: Sequence[Row]
) -> RunRequest:
    config = request.config
    settings = variant_settings(config, variant, seed=seed)
    if request.validation and settings.get("validation") is None:
        settings["validation"] = {"every_steps": max(1, settings["steps"] // _VALIDATIONS)}
    if not request.validation:
        settings["validation"] = None
    init_from = None
    if variant is not None and variant.after is not None:
        if not any(row.name == variant.after and row.result is not None for row in before):
            raise _NoStartError(f"it begins with the weights of {variant.after}, which failed")
        init_from = request.output / "runs" / variant.after / "run"
    return RunRequest(
        name=name,
        folder=request.output / "runs" / name,
        settings=settings,
        data=_data(request, variant),
        init_from=init_from,
        validation=request.validation,
        last_steps=config.last_steps,
        text_tokens=config.text_tokens,
    )


class _NoStartError(ReelyardError):
    """The run that this one begins with has no result."""


def _data(request: SuiteRequest, variant: Variant | None) -> Data:
    if variant is None or variant.data is None:
        return request.data
    if variant.data in request.other_data:
        return request.other_data[variant.data]
    try:
        return prepare_data(request.config.data[variant.data], request.data, request.output / "data" / variant.data)
    except UsageError as error:  # the data of one variant, not the command
        raise _NoStartError(str(error)) from error


def check_steps(request: SuiteRequest) -> None:
    """UsageError when a run has more steps than the plan."""
    available = read_plan_meta(request.data.plan).num_steps
    wanted = max(
        [
            request.config.steps,
            *(round(request.config.steps * v.steps_share) for v in request.variants if v.data is None),
        ]
    )
    if wanted > available:
        raise UsageError(
            f"{wanted} steps are asked for, the plan {request.data.plan} has {available}; set --steps to at most that, "
            "or build a plan of more steps (max_steps)"
        )
