"""Reading byte ranges of shards into given memory: files of this machine by `preadv`, objects by `training.loading.object_store`.

Positions are given with each read, so several threads read one file at once, and a re-read of a replaced clip does not disturb the forward order
of the plan's reads, of which the kernel is told. Few files stay open, the ones used last. A file that is gone, a bad block and a file that ends early
are damage of a shard: its clips are replaced. Any other error of the system (no more file handles, no permission, a mount that went stale) is no
clip's fault, and ends the run: replacing for it would change the data without a word.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from schemas.errors import ServiceError, ShardError
from training.loading.object_store import ObjectStore, StoreSettings, is_url

__all__ = ["ShardFiles", "cut_off", "unreadable"]

_MOST_BUFFERS = 1024
"""Of one preadv; Linux's IOV_MAX."""
_DAMAGE = frozenset({errno.ENOENT, errno.EIO})
"""What a file that is gone, or a disk's bad block, gives; any other error is the machine's."""


class ShardFiles:
    """Open shards, the `most_open` that were used last. Any thread may read."""

    def __init__(self, most_open: int = 8, store: StoreSettings | None = None) -> None:
        self._most_open = most_open
        self._store = ObjectStore(store)
        self._lock = threading.Lock()
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        self._readers: dict[str, int] = {}

    def read_into(self, address: str, offset: int, pieces: Sequence[memoryview]) -> int:
        """Fill `pieces` one after another from `offset` on; how many bytes there were, fewer where the shard ends.

        Raises:
            OSError: the shard is gone, or unreadable there.
            ServiceError: an object store failed.
        """
        if is_url(address):
            return self._store.read_into(address, offset, pieces)
        with self.opened(address) as descriptor:
            return _fill(descriptor, offset, pieces)

    @contextmanager
    def opened(self, address: str) -> Iterator[int]:
        """The descriptor of a shard on this machine, which stays open meanwhile; OSError as `read_into`."""
        descriptor = self._borrow(address)
        try:
            yield descriptor
        finally:
            with self._lock:
                self._readers[address] -= 1

    @staticmethod
    def read_soon(descriptor: int, offset: int, length: int) -> None:
        """Have the kernel begin to fetch bytes of a file that are not in memory yet, as far as it will."""
        if length > 0 and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # it is advice
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def read(self, address: str, offset: int, length: int) -> memoryview:
        """One sample in memory of its own; ShardError when it is damaged, ServiceError when it could not be read."""
        data = memoryview(bytearray(length))
        try:
            filled = self.read_into(address, offset, [data])
        except OSError as error:
            raise unreadable(address, offset, length, error) from error
        if filled < length:
            raise cut_off(address, offset + length, length - filled)
        return data

    def call_off(self) -> None:
        """End reads from stores, running and later ones, with ReadingStoppedError."""
        self._store.close()

    def close(self) -> None:
        """Close all files; no thread may read any more."""
        self.call_off()
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def _borrow(self, address: str) -> int:
        with self._lock:
            descriptor = self._descriptors.get(address)
            if descriptor is None:
                descriptor = os.open(address, os.O_RDONLY | os.O_CLOEXEC)
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                self._descriptors[address] = descriptor
            self._descriptors.move_to_end(address)
            self._readers[address] = self._readers.get(address, 0) + 1
            idle = [name for name in self._descriptors if not self._readers[name]]
            for name in idle[: max(0, len(self._descriptors) - self._most_open)]:
                os.close(self._descriptors.pop(name))
            return descriptor


def unreadable(address: str, offset: int, length: int, error: OSError) -> ShardError:
    """What to say of a read that failed by damage; ServiceError is raised if it failed by anything else."""
    if not isinstance(error, FileNotFoundError) and error.errno not in _DAMAGE:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise ServiceError(
            f"shard {address}: cannot read bytes {offset} to {offset + length} ({name}: {error.strerror or error}); this is no damage of the "
            "shard, so no clip was replaced: look at permissions, mounts, memory and `ulimit -n` of this machine, then run the same command again"
        ) from error
    return ShardError(
        f"shard {address}: cannot read bytes {offset} to {offset + length} ({error.strerror or error}); copy it again"
    )


def cut_off(address: str, end: int, missing: int) -> ShardError:
    """What to say of a read that ended early."""
    return ShardError(f"shard {address}: ends {missing} bytes before {end}; the file is cut off, copy it again")


def _fill(descriptor: int, offset: int, pieces: Sequence[memoryview]) -> int:
    """`preadv` until all is there or the file ends."""
    filled, left = 0, list(pieces)
    while left:
        some = left[:_MOST_BUFFERS]
        count = os.preadv(descriptor, some, offset + filled)
        if not count:
            break
        filled += count
        if count == sum(map(len, some)):
            del left[:_MOST_BUFFERS]
            continue
        while count >= len(left[0]):
            count -= len(left.pop(0))
        left[0] = left[0][count:]
    return filled
