"""What a run writes down: one line per step with fixed keys, the losses also exactly, and a line per replaced clip.

    <run>/metrics.jsonl               rank 0; METRIC_KEYS in this order
    <run>/ledger/lane-0003.jsonl      the rank that runs the lane; loader.Substitution

Losses are in hexadecimal as well (`float.fromhex`), so that two runs can be compared to the last bit. When a run continues from step n, lines of
step n and later are dropped first: the files say what led to the weights that there are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from schemas.files import write_bytes
from training.loader import Substitution

__all__ = ["METRIC_KEYS", "append_substitutions", "mfu_percent", "read_lines", "rewind", "write_metrics"]

METRIC_KEYS = (
    "step",
    "loss",
    "loss_hex",
    "flow_loss",
    "repa_loss",
    "loss_by_bucket",
    "loss_by_time",
    "grad_norm",
    "lr",
    "step_ms",
    "data_wait_ms",
    "tokens_per_s",
    "mfu_pct",
    "buckets",
    "clips",
    "clips_digest",
)
"""step: 0-based, of the plan. repa_loss: before its weight; null when no clip had a teacher or alignment is off.
loss_by_bucket: flow loss of each bucket. loss_by_time: flow loss of the clips in each tenth of the time s, 0 data to 1 noise, null without clips.
data_wait_ms: of the slowest
rank. tokens_per_s: video tokens of all ranks, dropped ones counted. mfu_pct: null where the peak is not known (`mfu_percent`). buckets: clips of
each. clips_digest: which clips they were, see `training.clips_digest`."""

_PEAK_FLOPS_BF16 = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("A100", 312e12),
)
"""Dense bf16 peak by a part of the device's name, the first that fits; vendor data sheets."""


def mfu_percent(
    forward_flops: int, seconds: float, device_name: str, world_size: int, precision: torch.dtype
) -> float | None:
    """Model FLOPs of a step (three forward passes' worth, recomputation not counted) over what the devices could do in that time.

    None where the peak is not known: another device, or another precision than bfloat16.
    """
    peaks = [peak for part, peak in _PEAK_FLOPS_BF16 if part in device_name and precision is torch.bfloat16]
    return 100 * 3 * forward_flops / (seconds * peaks[0] * world_size) if peaks else None


def write_metrics(run: Path, values: Mapping[str, Any]) -> None:
    """Append one step's line; exactly `METRIC_KEYS` but loss_hex, which is made here."""
    line = {key: float(values["loss"]).hex() if key == "loss_hex" else values[key] for key in METRIC_KEYS}
    assert set(values) <= set(METRIC_KEYS)
    _append(run / "metrics.jsonl", [line])


def append_substitutions(run: Path, substitutions: Iterable[Substitution]) -> None:
    """Record replaced clips in the ledger of their lane."""
    for substitution in substitutions:
        _append(run / "ledger" / f"lane-{substitution.lane:04d}.jsonl", [dataclasses.asdict(substitution)])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a JSON lines file; none when it does not exist. A last line that was cut off by a kill is left out."""
    if not path.is_file():
        return []
    complete = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in complete]


def rewind(run: Path, step: int) -> None:
    """Drop what was written of `step` and later ones."""
    for path in [run / "metrics.jsonl", *sorted((run / "ledger").glob("lane-*.jsonl"))]:
        if path.is_file():
            kept = [line for line in read_lines(path) if line["step"] < step]
            write_bytes(path, "".join(_encoded(line) for line in kept).encode())


def device_name(device: torch.device) -> str:
    """Name of a CUDA device, "cpu" otherwise."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write("".join(_encoded(line) for line in lines))


def _encoded(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n"
