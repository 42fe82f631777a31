"""Kernels whose bits do not depend on which thread of a GPU comes first.

On a CPU a run with the same threads gives the same bits anyway. On a GPU the backward passes of flash attention and of picking tokens add with
atomics, so two runs of one configuration part in their last bits, and a resumed run from the one that it continues. `deterministic: true` takes
torch's ordered kernels instead; what that costs is measured by `benchmarks/engine_cuda.py`. An operation that has none is an error, so nothing is
only nearly the same. The record of a checkpoint says whether it was on (`training.checkpoints.environment`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from schemas.errors import ConfigError

__all__ = ["deterministic_kernels"]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_ORDERED = (":4096:8", ":16:8")


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Inside, torch takes ordered kernels only, if `wanted`; ConfigError if the environment keeps cuBLAS from them."""
    if not wanted:
        yield
        return
    if os.environ.setdefault(_CUBLAS, _ORDERED[0]) not in _ORDERED:
        raise ConfigError(
            f"deterministic is true, but {_CUBLAS} is {os.environ[_CUBLAS]!r} in the environment, with which cuBLAS repeats no bits; unset it, or "
            f"set it to {' or '.join(_ORDERED)}"
        )
    settings: Any = torch.utils.deterministic
    was, filled = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # it finds reads of memory that nothing wrote, for a write of all of it
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        settings.fill_uninitialized_memory = filled
