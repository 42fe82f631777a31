"""Micro-batches as safetensors files: every tensor that the network gets, bit for bit, and the rest as JSON in the file's header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from schemas.buckets import Bucket
from schemas.errors import DataError
from training.alignment import TeacherFeatures
from training.batch import TrainingBatch
from training.dit.routing import Route

__all__ = ["read_batches", "write_batches"]

_HEADER = "batches"


def write_batches(path: Path, batches: Mapping[str, TrainingBatch]) -> None:
    """Write micro-batches under their keys; they may lie on any device."""
    tensors: dict[str, Tensor] = {}
    header = {}
    for key, batch in batches.items():
        found = {field.name: getattr(batch, field.name) for field in fields(batch)}
        if batch.route is not None:
            found["route.kept_BK"] = batch.route.kept_BK
        for name, features in batch.teachers.items():
            found |= {
                f"teachers.{name}.rows_N": features.rows_N,
                f"teachers.{name}.features_NLC": features.features_NLC,
            }
        tensors |= {
            f"{key}/{name}": value.detach().cpu().contiguous().clone()
            for name, value in found.items()
            if isinstance(value, Tensor)
        }
        header[key] = {
            "step": batch.step,
            "lane": batch.lane,
            "bucket": str(batch.bucket),
            "clip_ids": list(batch.clip_ids),
            "forward_flops": batch.forward_flops,
            "route": None if batch.route is None else [batch.route.start, batch.route.end],
            "teachers": list(batch.teachers),
        }
    save_file(tensors, path, metadata={_HEADER: json.dumps(header)})


def read_batches(path: Path) -> dict[str, TrainingBatch]:
    """What `write_batches` wrote, on the CPU; DataError when it is not such a file."""
    try:
        with safe_open(path, framework="pt") as stream:
            header = json.loads((stream.metadata() or {})[_HEADER])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as micro-batches of a dump ({error}); copy the dump again") from error
    return {key: _batch(facts, _below(tensors, key)) for key, facts in header.items()}


def _below(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{key}/"): value for name, value in tensors.items() if name.startswith(f"{key}/")}


def _batch(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TrainingBatch:
    optional = {field.name: None for field in fields(TrainingBatch)}
    plain = {name: value for name, value in tensors.items() if "." not in name}
    rest = {
        "step": facts["step"],
        "lane": facts["lane"],
        "bucket": Bucket.parse(facts["bucket"]),
        "clip_ids": tuple(facts["clip_ids"]),
        "forward_flops": facts["forward_flops"],
        "route": None
        if facts["route"] is None
        else Route(start=facts["route"][0], end=facts["route"][1], kept_BK=tensors["route.kept_BK"]),
        "teachers": {
            name: TeacherFeatures(
                rows_N=tensors[f"teachers.{name}.rows_N"], features_NLC=tensors[f"teachers.{name}.features_NLC"]
            )
            for name in facts["teachers"]
        },
    }
    values: dict[str, Any] = {**optional, **plain, **rest}
    return TrainingBatch(**values)
