"""Weights & Biases: one run there for one folder here, by an id that lies in the folder.

    <run>/wandb.json     {"id": ..., "project": ...}
    <run>/wandb/         what the package writes itself, all of it when offline

When a run continues at step n, its run there is rewound to step n - 1 (`resume_from`), so that steps of an abandoned continuation vanish there as
well; an offline folder holds that wish for `wandb sync`. A run that begins anew, or has another project, gets a new one with all earlier lines.
A server that cannot rewind gets the run resumed as it is, and keeps the first version of steps that come again: the same numbers,
unless something was changed. Neither standard output nor code is sent. Price: a process of its own beside rank 0, and a second or more at either end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from schemas.command import say
from schemas.config import read_yaml
from schemas.files import write_json
from training.logs.scalars import scalars
from training.logs.settings import WandbConfig
from training.logs.sinks import Sample
from training.metrics import read_lines

__all__ = ["Wandb"]

_ID_FILE = "wandb.json"
_INIT_SECONDS = 60


class Wandb:
    """A `Sink`."""

    def __init__(self, config: WandbConfig, run: Path, run_config: Mapping[str, Any], start_step: int) -> None:
        import wandb

        path = run / _ID_FILE
        known = read_yaml(path) if path.is_file() else {}
        same = start_step > 0 and known.get("project") == config.project
        self._id: str = known["id"] if same else uuid4().hex[:12]
        write_json(path, {"id": self._id, "project": config.project})
        common: dict[str, Any] = {
            "project": config.project,
            "entity": config.entity,
            "name": config.name or run.resolve().name,
            "dir": str(run),
            "mode": config.mode,
            "config": dict(run_config),
            "settings": wandb.Settings(
                console="off",
                save_code=False,
                disable_git=True,
                silent=True,
                init_timeout=_INIT_SECONDS,
                login_timeout=_INIT_SECONDS,
            ),
        }
        self._wandb = wandb
        self._run = self._open(common, start_step if same else 0)
        if not same:
            for line in read_lines(run / "metrics.jsonl"):
                self.numbers(line["step"], scalars(line))

    def _open(self, common: Mapping[str, Any], start_step: int) -> Any:
        """A new run, or the one that there is, rewound."""
        if start_step == 0:
            return self._wandb.init(**common, id=self._id, resume="allow")
        try:
            return self._wandb.init(**common, resume_from=f"{self._id}?_step={start_step - 1}")
        except (self._wandb.Error, TimeoutError) as error:
            first = str(error).strip().split("\n")[0]
            say(
                f"note: wandb did not rewind run {self._id} to step {start_step - 1} ({first}); it keeps what it has of later steps"
            )
            return self._wandb.init(**common, id=self._id, resume="allow")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._run.log(dict(values), step=step)

    def sample(self, step: int, sample: Sample) -> None:
        """The contact sheet and the videos."""
        pictures: dict[str, Any] = {"samples": self._wandb.Image(str(sample.sheet))}
        for index, (path, prompt) in enumerate(sample.videos, start=1):
            pictures[f"samples/{index:04d}"] = self._wandb.Video(str(path), caption=prompt, format="mp4")
        self._run.log(pictures, step=step)

    def flush(self) -> None:
        """The package's own process has what was logged."""

    def close(self) -> None:
        """See `Sink`; waits until everything is written, or sent."""
        self._run.finish()
