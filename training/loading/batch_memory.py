"""Memory for the latents of micro-batches: page-locked where a GPU will fetch them, otherwise recycled.

An array goes back into the pool by itself when nobody refers to it or to a view of it any more, so no caller can overwrite what another still looks
at. Recycling saves the page faults of fresh memory, about a third of the time of a read that comes from the page cache. Page-locked memory is left to
PyTorch's own pool, which also knows when a copy to the device is through; it takes powers of two, and keeps for later what it once took. Price: free
arrays are kept as long as the loader leaves room for them within its bound.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, TypeVar

import numpy as np

__all__ = ["BatchMemory", "rounded_bytes"]

_PAGE_BYTES = 4096

N = TypeVar("N", int, np.ndarray)


def rounded_bytes(size: N, *, pinned: bool = False) -> N:
    """What an array of `size` bytes takes: whole pages, powers of two where page-locked."""
    if pinned:
        powers: Any = np.where(np.asarray(size) > 0, 2 ** np.ceil(np.log2(np.maximum(size, 1))).astype(np.int64), 0)
        return powers[()]  # type: ignore[no-any-return]
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES


class BatchMemory:
    """Arrays of bytes; at most `room_bytes` of free ones are kept, which `trim` sets anew as the loader's other memory grows and shrinks."""

    def __init__(self, room_bytes: int, *, pinned: bool = False) -> None:
        self._room_bytes = room_bytes
        self._pinned = pinned
        self._lock = threading.Lock()
        self._free: dict[int, list[np.ndarray]] = {}
        self._given_back: deque[np.ndarray] = deque()
        self._free_bytes = 0

    @property
    def free_bytes(self) -> int:
        """Of arrays that nobody uses, and that are kept."""
        return self._free_bytes

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

    def trim(self, room_bytes: int) -> None:
        """Keep no more than so many bytes of free arrays from now on."""
        self._room_bytes = room_bytes
        if self._given_back or self._free_bytes > room_bytes:
            with self._lock:
                self._collect()
                self._let_go()

    def _slab(self, size: int) -> np.ndarray:
        with self._lock:
            self._collect()
            self._room_bytes -= size  # until the loader has counted it
            if self._free.get(size):
                self._free_bytes -= size
                return self._free[size].pop()
            self._let_go()
        return np.empty(size, np.uint8)

    def _collect(self) -> None:
        while self._given_back:
            slab = self._given_back.popleft()
            self._free_bytes += slab.nbytes
            self._free.setdefault(slab.nbytes, []).append(slab)

    def _let_go(self) -> None:
        """The largest free arrays, until the rest has room."""
        while self._free_bytes > max(0, self._room_bytes):
            largest = max(key for key, slabs in self._free.items() if slabs)
            self._free_bytes -= self._free[largest].pop().nbytes


class _Loan:
    """Lends a slab to numpy: arrays made of it refer to it, and when the last one is gone the slab goes back."""

    def __init__(self, slab: np.ndarray, given_back: deque[np.ndarray]) -> None:
        self.__array_interface__ = slab.__array_interface__
        self._slab = slab
        self._given_back = given_back

    def __del__(self) -> None:
        self._given_back.append(self._slab)  # one atomic operation: this may run anywhere, also while the lock is held
