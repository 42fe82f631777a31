"""Memory for the latents of micro-batches: page-locked where a GPU will fetch them, otherwise recycled.

An array goes back into the pool by itself when nobody refers to it or to a view of it any more, so no caller can overwrite what another still looks
at. Recycling saves the page faults of fresh memory, about a third of the time of a read that comes from the page cache. Page-locked memory is left to
PyTorch's own pool, which also knows when a copy to the device is through. Price: free arrays are kept, as long as all of them together, used and
free, stay within the limit.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, TypeVar

import numpy as np

__all__ = ["BatchMemory", "rounded_bytes"]

_PAGE_BYTES = 4096

N = TypeVar("N", int, np.ndarray)


def rounded_bytes(size: N) -> N:
    """Up to whole pages: what an array of `size` bytes takes."""
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES


class BatchMemory:
    """Arrays of bytes; `limit_bytes` is how much may be kept for reuse, used arrays counted in."""

    def __init__(self, limit_bytes: int, *, pinned: bool = False) -> None:
        self._limit_bytes = limit_bytes
        self._pinned = pinned
        self._lock = threading.Lock()
        self._free: dict[int, list[np.ndarray]] = {}
        self._given_back: deque[np.ndarray] = deque()
        self._used_bytes = self._free_bytes = 0

    def take(self, shape: tuple[int, ...]) -> tuple[np.ndarray, Any]:
        """A float16 array of any content, and the page-locked tensor that it is a view of, or None."""
        if self._pinned:
            import torch

            tensor = torch.empty(shape, dtype=torch.float16, pin_memory=True)
            return tensor.numpy(), tensor
        needed = int(np.prod(shape)) * 2
        slab = self._slab(rounded_bytes(needed))
        array = np.asarray(_Loan(slab, self._given_back))
        return array[:needed].view(np.float16).reshape(shape), None

    def _slab(self, size: int) -> np.ndarray:
        with self._lock:
            while self._given_back:
                slab = self._given_back.popleft()
                self._used_bytes -= slab.nbytes
                self._free_bytes += slab.nbytes
                self._free.setdefault(slab.nbytes, []).append(slab)
            self._used_bytes += size
            if self._free.get(size):
                self._free_bytes -= size
                return self._free[size].pop()
            while self._free_bytes and self._used_bytes + self._free_bytes > self._limit_bytes:
                largest = max(key for key, slabs in self._free.items() if slabs)
                self._free_bytes -= self._free[largest].pop().nbytes
        return np.empty(size, np.uint8)


class _Loan:
    """Lends a slab to numpy: arrays made of it refer to it, and when the last one is gone the slab goes back."""

    def __init__(self, slab: np.ndarray, given_back: deque[np.ndarray]) -> None:
        self.__array_interface__ = slab.__array_interface__
        self._slab = slab
        self._given_back = given_back

    def __del__(self) -> None:
        self._given_back.append(self._slab)  # one atomic operation: this may run anywhere, also while the lock is held
