"""Kernels whose bits do not depend on which thread of a GPU comes first.

On a CPU a run with the same threads gives the same bits anyway. On a GPU the backward passes of flash attention and of picking tokens add with
atomics, so two runs of one configuration part in their last bits, and a resumed run from the one that it continues. `deterministic: true` takes
torch's ordered kernels instead; what that costs is measured by `benchmarks/engine_cuda.py`. An operation that has none is an error, so nothing is
only nearly the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

__all__ = ["deterministic_kernels"]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Inside, torch takes ordered kernels only, if `wanted`; before the process computes anything on a GPU, since cuBLAS reads its setting once."""
    if not wanted:
        yield
        return
    os.environ.setdefault(_CUBLAS, ":4096:8")
    settings: Any = torch.utils.deterministic
    was, filled = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # it finds reads of memory that nothing wrote, for a write of all of it
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        settings.fill_uninitialized_memory = filled
