"""Peak memory of a piece of work: what the allocator of a GPU gave out at once, or the largest resident size of the process.

On a CPU it is Linux's high-water mark, reset before; elsewhere nothing can be said. Both count what was there before the work: the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["PeakMemory", "peak_memory"]

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """Filled when the work ends."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure what is done inside."""
    found = PeakMemory()
    known = True
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            _RESET.write_text("5")
        except OSError:
            known = False
    yield found
    if device.type == "cuda":
        found.bytes = torch.cuda.max_memory_allocated(device)
    elif known:
        found.bytes = _high_water_mark()


def _high_water_mark() -> int | None:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return None
