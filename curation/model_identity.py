"""What decides a model's output, as plain values for fingerprints, without loading it: hashes of its weights and of the code that runs them.

Weights count by the registry's sha256, by the content of their folder, or, for a hub id, by that id. Code counts by the bytes of its modules in
`encoders`, so a changed preprocessing can't be forgotten. Price: an edited comment there also redoes the work.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.errors import ModelMissingError
from schemas.ids import content_hash

__all__ = ["code_identity", "model_identity"]


def model_identity(entry: str, modules: Sequence[str], *, path: str | None = None) -> dict[str, Any]:
    """Identity of the registry's `entry`, or of the folder or hub id `path` in its stead, run by `modules` of `encoders`."""
    from encoders.registry import Registry
    from encoders.weights import hash_folder

    if path is None:
        entries = Registry().entries
        weights: Any = {file.name: file.sha256 for file in entries[entry].files} if entry in entries else None
    else:
        folder = Path(path).expanduser()
        weights = hash_folder(folder) if folder.is_dir() else path
    return {"name": entry, "weights": weights, "code": code_identity(modules)}


def code_identity(modules: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each module's source file; the modules are not imported."""
    hashes = {}
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ModelMissingError(
                f"module {module} is not installed, so its version is unknown; install Reelyard again"
            )
        with open(spec.origin, "rb") as stream:
            hashes[module] = content_hash(stream)
    return hashes
