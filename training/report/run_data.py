"""Everything that a run's folder says of it, read once: metrics, history, evaluations, replaced clips, configuration.

Any run can be read, also one that is still going on, was killed, or was written before there was a history: what is not there is empty.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.config import read_yaml
from schemas.errors import UsageError
from training.checkpoints.checkpoint import checkpoint_steps, find_checkpoint, read_record
from training.logs.history import read_history
from training.metrics import read_lines
from training.metrics_table import MetricsTable
from training.step_costs import cost_errors

__all__ = ["EvaluationSample", "RunData", "read_run"]

_QUIET_SECONDS = 600
"""A start without an end whose last step is older than this was killed, rather than still going on."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSample:
    """Videos of fixed prompts."""

    steps_done: int
    folder: Path
    videos: tuple[tuple[Path, str], ...]
    """(file, prompt)."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run."""

    folder: Path
    metrics: MetricsTable
    history: tuple[Mapping[str, Any], ...]
    validation: tuple[Mapping[str, Any], ...]
    samples: tuple[EvaluationSample, ...]
    replaced: tuple[Mapping[str, Any], ...]
    """Lines of the ledger, by step."""
    checkpoints: tuple[int, ...]
    """Those that are there now."""
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    stop_step: int | None
    costs: Mapping[str, Any]
    """See `step_costs.cost_errors`."""
    cost_model: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.resolve().name

    @property
    def step_numbers(self) -> np.ndarray:
        """0-based."""
        return self.metrics["step"]

    @property
    def starts(self) -> list[Mapping[str, Any]]:
        """Each time the run was started, the first one too."""
        return self.events("start")

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        """start, save or end."""
        return [line for line in self.history if line["event"] == kind]

    def state(self, now: float | None = None) -> str:
        """finished, stopped, failed, running, or killed; "unknown" without a history."""
        if not self.history:
            return "unknown"
        ends = [index for index, line in enumerate(self.history) if line["event"] == "end"]
        starts = [index for index, line in enumerate(self.history) if line["event"] == "start"]
        if ends and (not starts or ends[-1] > starts[-1]):
            return str(self.history[ends[-1]]["state"])
        times = [float(self.history[-1]["unix_s"]), *self.metrics["unix_s"][-1:].tolist()]
        last = max(moment for moment in times if np.isfinite(moment))
        return "running" if (time.time() if now is None else now) - last < _QUIET_SECONDS else "killed"

    def idle_share(self) -> float:
        """Of all time in steps; NaN without."""
        took, idle = self.metrics["step_ms"], self.metrics["idle_share"]
        known = np.isfinite(took) & np.isfinite(idle)
        total = float(took[known].sum())
        return float((took[known] * idle[known]).sum()) / total if total > 0 else float("nan")


def read_run(folder: Path) -> RunData:
    """Read a run's folder.

    Raises:
        UsageError: where no step has been written down.
    """
    metrics = MetricsTable.read(folder)
    if not len(metrics):
        raise UsageError(
            f"{folder} holds no metrics.jsonl with at least one step; give the folder of `reelyard-train run --output`"
        )
    history = tuple(read_history(folder))
    started = next((line for line in reversed(history) if line["event"] == "start"), None)
    config, environment = _settings(folder, started)
    plan = {} if started is None else started["plan"]
    ledgers = (line for path in sorted((folder / "ledger").glob("lane-*.jsonl")) for line in read_lines(path))
    return RunData(
        folder=folder,
        metrics=metrics,
        history=history,
        validation=tuple(read_lines(folder / "validation.jsonl")),
        samples=tuple(_samples(folder)),
        replaced=tuple(sorted(ledgers, key=lambda line: (line["step"], line["lane"]))),
        checkpoints=tuple(checkpoint_steps(folder)),
        config=config,
        environment=environment,
        stop_step=None if started is None else started["stop_step"],
        costs=cost_errors(metrics, plan.get("seconds", {})),
        cost_model=plan.get("cost_model", ""),
    )


def _settings(folder: Path, started: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Configuration and environment: of the last start, else of the latest checkpoint."""
    if started is not None:
        return started["config"], started["environment"]
    if checkpoint_steps(folder):
        record = read_record(find_checkpoint(folder, None))
        return record.config, record.environment
    return {}, {}


def _samples(folder: Path) -> list[EvaluationSample]:
    found = []
    for index in sorted((folder / "samples").glob("step-*/samples.json")):
        facts = read_yaml(index)
        videos = tuple((index.parent / clip["file"], str(clip["prompt"])) for clip in facts.get("clips", []))
        done = int(index.parent.name.removeprefix("step-"))
        found.append(EvaluationSample(steps_done=done, folder=index.parent, videos=videos))
    return found
