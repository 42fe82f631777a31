"""The validation loss of any checkpoint on any packed sets, in one process, with the times and densities of the run's configuration.

The sets need not be held out: on training sets it says how far memorising went. Only their encoders must be those that the run was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.buckets import FRAME_COUNTS
from schemas.errors import UsageError
from training.checkpoints.checkpoint import read_record
from training.checkpoints.whole_network import load_network, read_run_config
from training.evaluation.held_out import open_held_out
from training.evaluation.settings import ValidationConfig
from training.evaluation.validation import Validation, ValidationResult
from training.parallel import choose_device, choose_precision, open_world
from training.run_setup import read_run_info
from training.sampling import velocity_of
from training.set_encoders import encoders_of_run

__all__ = ["CheckpointValidation", "ValidationRequest", "table_lines", "validate_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class ValidationRequest:
    """What to measure."""

    run: Path
    samples: tuple[Path, ...]
    config: ValidationConfig
    checkpoint: int | None = None
    """Step; None takes the latest."""
    max_frames: int = FRAME_COUNTS[-1]
    """Longer clips are cut to the longest bucket of at most so many frames."""
    clips_per_pass: int = 1
    """Rows of a bucket (clip and time) that go through the network together."""
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class CheckpointValidation:
    """A result for each set of weights."""

    checkpoint: Path
    steps_done: int
    results: dict[str, ValidationResult]

    def facts(self) -> list[dict[str, Any]]:
        """Lines like those of a run's `validation.jsonl`."""
        return [
            {"steps_done": self.steps_done, "weights": weights, **result.line()}
            for weights, result in self.results.items()
        ]


def validate_checkpoint(request: ValidationRequest) -> CheckpointValidation:
    """Measure a checkpoint.

    Raises:
        UsageError: for a folder that is no run, weights or a checkpoint that are not there.
        DataError: for sets packed with other encoders than the run's, or damaged clips.
    """
    if request.max_frames < 1 or request.clips_per_pass < 1:
        raise UsageError(
            f"--max-frames is {request.max_frames}, --clips-per-pass is {request.clips_per_pass}; both must be at least 1"
        )
    info = read_run_info(request.run)
    checkpoint, config = read_run_config(request.run, request.checkpoint)
    held_out = open_held_out(
        request.samples,
        expected=encoders_of_run(info, config),
        max_frames=request.max_frames,
        clips_per_bucket=request.config.clips_per_bucket,
    )
    validation = Validation(held_out, request.config, config.flow, clips_per_pass=lambda _: request.clips_per_pass)
    device = choose_device(request.device)
    results: dict[str, ValidationResult] = {}
    for weights in request.config.weights:
        network = load_network(checkpoint, config, weights).to(device, choose_precision(config.precision, device))
        with open_world(device) as world:
            results[weights] = validation.measure(velocity_of(network), world)
    return CheckpointValidation(checkpoint=checkpoint, steps_done=read_record(checkpoint).next_step, results=results)


def table_lines(measured: CheckpointValidation) -> list[str]:
    """Loss by bucket and by share of the times, a column for each set of weights."""
    results = list(measured.results.values())
    lines = ["".join([f"{'':18}{'clips':>7}", *(f"{weights:>12}" for weights in measured.results)])]

    def row(name: str, clips: str, losses: Sequence[float | None]) -> None:
        cells = ("not finite" if loss is None else f"{loss:.5f}" for loss in losses)
        lines.append("".join([f"{name:18}{clips:>7}", *(f"{cell:>12}" for cell in cells)]))

    facts = [result.line() for result in results]
    for bucket, found in facts[0]["buckets"].items():
        row(bucket, str(found["clips"]), [fact["buckets"][bucket]["loss"] for fact in facts])
    row("all", str(facts[0]["clips"]), [fact["loss"] for fact in facts])
    count = len(facts[0]["by_share"])
    for index in range(count):
        row(f"share {index + 1} of {count}", "", [fact["by_share"][index] for fact in facts])
    return lines
