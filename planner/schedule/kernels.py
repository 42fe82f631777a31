"""How compiled kernels are declared, and their random numbers.

Kernels release the interpreter's lock, so lanes and windows run on threads, and they are cached on disk next to the module (numba falls back to
the user's cache folder where that is read-only): the first build on a machine compiles for some seconds, later ones do not. Random numbers are
splitmix64 over a state that the caller seeds, one per lane or window, so results do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba
import numpy as np

from schemas.command import progress

__all__ = ["kernel", "new_state", "on_threads", "random_below", "random_unit"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile `function` with numba at its first call."""
    compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    return cast(F, compiled)


def new_state(*seed: int) -> np.ndarray:
    """State of a stream of random numbers, uint64 (1,), from the numbers that name it."""
    return np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)


@kernel
def random_bits(state: np.ndarray) -> Any:
    """Next 64 bits (splitmix64: Steele, Lea and Flood 2014); advances the state."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    bits = state[0]
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@kernel
def random_below(state: np.ndarray, limit: int) -> Any:
    """Next integer in [0, limit), limit below 2^31."""
    return np.int64(((random_bits(state) >> np.uint64(33)) * np.uint64(limit)) >> np.uint64(31))


@kernel
def random_unit(state: np.ndarray) -> Any:
    """Next float in [0, 1)."""
    return np.float64(random_bits(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


def on_threads(function: Callable[[int], T], items: Sequence[int], *, what: str) -> list[T]:
    """`function` of each item, in order, on as many threads as there are processors; results must not depend on how many.

    `what` is shown with the progress, where it takes some seconds.
    """
    workers = min(len(items), thread_count())
    if workers <= 1:
        return [function(item) for item in progress(items, what=what, is_part=True)]
    with ThreadPoolExecutor(workers) as pool:
        return list(progress(pool.map(function, items), what=what, total=len(items), is_part=True))


def thread_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
