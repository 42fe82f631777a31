"""How much memory a loader has taken, now and at most."""

from __future__ import annotations

__all__ = ["MemoryMeter"]


class MemoryMeter:
    """Bytes by the loader's own count, which its bound is of; changed under the loader's lock."""

    def __init__(self) -> None:
        self.now_bytes = self.peak_bytes = 0

    def add(self, change: int) -> None:
        """So many more, or fewer."""
        self.now_bytes += change

    def note(self, free_bytes: int) -> None:
        """How much free memory is kept beside."""
        self.peak_bytes = max(self.peak_bytes, self.now_bytes + free_bytes)

    def reset(self) -> None:
        """All is given up; the peak stays."""
        self.now_bytes = 0
