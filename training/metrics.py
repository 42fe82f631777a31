"""What a run writes down: one line per step with fixed keys, the losses also exactly, and a line per replaced clip.

    <run>/metrics.jsonl               rank 0; METRICS in this order
    <run>/ledger/lane-0003.jsonl      the rank that runs the lane; `training.ledger`

Losses are in hexadecimal as well (`float.fromhex`), so that two runs can be compared to the last bit. When a run continues from step n, lines of
step n and later are dropped first: the files say what led to the weights that there are. A line is one write at the end of an open file, so a kill
cuts off the last line at most; a line that the disk has no room for is taken back whole and said once. Price: metrics are not flushed to the disk,
so a machine that loses power may lose the last seconds of them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from schemas.command import say
from schemas.errors import DataError
from schemas.files import write_bytes

__all__ = ["METRICS", "LineFile", "mfu_percent", "read_lines", "rewind", "write_metrics"]

METRICS: dict[str, tuple[str, str]] = {
    "step": ("", "0-based, of the plan"),
    "unix_s": ("s", "time of day at the step's end"),
    "loss": ("", "what was minimised: `flow_loss + repa.weight x repa_loss`"),
    "loss_hex": ("", "the same to the last bit, as a hexadecimal float"),
    "flow_loss": ("", "squared velocity error, mean over the elements of a clip, then over the step's clips"),
    "repa_loss": ("", "mean cosine distance to the teacher, before its weight; null when no clip had one"),
    "loss_by_bucket": ("", "`flow_loss` of the clips of each bucket"),
    "loss_by_time": ("", "`flow_loss` of the clips in each tenth of the time s, 0 data to 1 noise; null without clips"),
    "grad_norm": ("", "global norm of the step's gradient, before clipping"),
    "lr": ("", "learning rate of the step"),
    "step_ms": (
        "ms",
        "wall time of the step on rank 0, from asking for its data to its update; saving and evaluation lie between steps",
    ),
    "data_wait_ms": ("ms", "waiting for the loader, of the slowest rank"),
    "idle_share": ("share", "of `step_ms` in which ranks waited, for data or for the slowest rank; mean over ranks"),
    "plan_ms": ("ms", "what the plan predicts for the step on this many ranks, in the units of its cost model"),
    "predicted_ms": (
        "ms",
        "`plan_ms` times the run's ratio of measured to predicted; null in a start's first two steps",
    ),
    "cost_error_pct": (
        "%",
        "`predicted_ms` over `step_ms - data_wait_ms`, minus 1: above 0, it took less than predicted",
    ),
    "micro_ms_by_bucket": (
        "ms",
        "forward and backward of a micro-batch of each bucket, mean over rank 0's of the step",
    ),
    "save_ms": ("ms", "how long a checkpoint held up the run between the step before and this one; 0 without"),
    "tokens_per_s": ("1/s", "video tokens of all ranks over `step_ms`, those that TREAD drops counted"),
    "mfu_pct": ("%", "of the devices' bf16 peak; null where that is not known, or another precision is used"),
    "mem_gb": ("GB", "peak so far, of the largest rank: device memory set aside, on a CPU the process's resident size"),
    "buckets": ("", "clips of each bucket"),
    "clips": ("", "of all ranks"),
    "replaced": ("", "damaged clips of the step that others took the place of, see the ledger"),
    "clips_digest": ("", "which clips they were, see `training.clips_digest`"),
}
"""Key to its unit and meaning, in the order of a line."""

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


class LineFile:
    """A JSON lines file that is appended to; opened with its first line. What cannot be written is left out and said once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._said = False

    def append(self, lines: Iterable[Mapping[str, Any]]) -> bool:
        """All of them in one write, or none; whether they are there."""
        data = "".join(_encoded(line) for line in lines).encode()
        return self._tried(lambda: self._write(data))

    def flush(self) -> bool:
        """To the disk; whether it is there."""
        descriptor = self._descriptor
        return descriptor is None or self._tried(lambda: os.fsync(descriptor))

    def close(self) -> None:
        """May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _tried(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except OSError as error:
            if not self._said:
                say(
                    f"warning: {self._path} cannot be written ({error.strerror or error}); the run goes on, its lines are lost meanwhile"
                )
            self._said = True
            return False
        return True

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            _drop_torn_line(self._descriptor)
        end = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, data)
            if written < len(data):
                raise OSError(28, f"{len(data) - written} bytes of a line had no room")
        except OSError:
            os.ftruncate(self._descriptor, end)  # half a line would spoil the next one
            raise


def _drop_torn_line(descriptor: int) -> None:
    """Cut off what follows the last newline: a line that a crash tore would take the next one with it."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            os.ftruncate(descriptor, start + newline + 1)
            return
        end = start
    os.ftruncate(descriptor, 0)


def write_metrics(file: LineFile, values: Mapping[str, Any]) -> dict[str, Any]:
    """Append one step's line: all of `METRICS` but loss_hex, which is made here. Returns it as written."""
    line = {key: float(values["loss"]).hex() if key == "loss_hex" else values[key] for key in METRICS}
    assert set(values) <= set(METRICS)
    file.append([line])
    return line


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a JSON lines file; none when it does not exist. A last line that was cut off by a kill is left out.

    Raises:
        DataError: if another line is not JSON.
    """
    if not path.is_file():
        return []
    complete = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    lines = []
    for number, text in enumerate(complete, start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}: line {number} is not JSON ({error.msg}), expected one object a line; the file was damaged: take the line out"
            ) from error
    return lines


def rewind(run: Path, step: int) -> None:
    """Drop what was written of `step` and later ones."""
    for path in [run / "metrics.jsonl", run / "skipped.jsonl", *sorted((run / "ledger").glob("lane-*.jsonl"))]:
        if path.is_file():
            kept = [line for line in read_lines(path) if line["step"] < step]
            write_bytes(path, "".join(_encoded(line) for line in kept).encode())


def device_name(device: torch.device) -> str:
    """Name of a CUDA device, "cpu" otherwise."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _encoded(line: Mapping[str, Any]) -> str:
    return json.dumps(_finite(line), allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """The same with null for what is infinite or no number: JSON has no other word for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
