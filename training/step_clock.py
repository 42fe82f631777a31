"""Where a rank's time of a step goes, without a synchronisation of its own: waiting for data, waiting for other ranks, and each micro-batch.

    data       from asking the loader to having the step, W_r
    gathering  the rest of the time until all ranks have theirs, G_r
    network    inside FSDP's collectives of forward and backward, N_r

Time in a collective is its transfer, and waiting for whoever comes last; the rank that spent least in it waited for nobody. So a rank waited

    idle_r = W_r + (G_r - min G) + (N_r - min N)            idle_share = mean over ranks of idle_r / step time

Every rank's four numbers travel in the step's one exchange of sums. On a CPU collectives block, and are timed by the clock of the host; on a GPU
by pairs of events on the stream that runs them, which are read once the device has been waited for anyway.
Price: two events for each collective and micro-batch. On a GPU prefetched gathers run beside the computation, so N is an upper bound of
what they cost. The all-reduce between replicas of a hybrid mesh is FSDP's own and is not seen.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

__all__ = ["NUMBERS_PER_RANK", "RankTimes", "StepClock", "watch_collectives"]

NUMBERS_PER_RANK = 4
_NETWORK = "network"


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """What all ranks spent and held, from the exchanged numbers."""

    data_wait_ms: float
    """Of the slowest rank."""
    idle_ms: float
    """Mean over ranks, see the module."""
    peak_bytes: int
    """Of the largest rank."""

    @classmethod
    def of(cls, exchanged: Sequence[float]) -> RankTimes:
        """`exchanged`: `NUMBERS_PER_RANK` for each rank in turn.

        >>> RankTimes.of([100, 2, 5, 7e9, 0, 102, 3, 8e9]).idle_ms  # the second rank waits for the first one's data, then a little the first
        101.0
        """
        waits, gathering, network, peaks = (exchanged[place::NUMBERS_PER_RANK] for place in range(NUMBERS_PER_RANK))
        lost = sum(waits) + sum(gathering) + sum(network)
        return cls(
            data_wait_ms=max(waits),
            idle_ms=lost / len(waits) - min(gathering) - min(network),
            peak_bytes=int(max(peaks)),
        )


@dataclass
class StepClock:
    """This rank's clock. It runs from `begin` to `exchanged`: what lies between (saving, evaluation) is not timed."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _runs: bool = False
    _gathering_ms: float = 0.0
    _spans: list[tuple[str, Any, Any]] = field(default_factory=list)
    """(what, begin, end): seconds of the host, or events of the device."""
    micro_batch_ms: dict[str, list[float]] = field(default_factory=dict)
    """Forward and backward of this rank's micro-batches of the last step, by bucket."""

    def begin(self) -> None:
        """A step begins."""
        self._runs, self._gathering_ms = True, 0.0
        self._spans.clear()

    def gathered(self, milliseconds: float) -> None:
        """All ranks have their data; this long after this one had its own."""
        self._gathering_ms += max(0.0, milliseconds)

    @contextmanager
    def micro_batch(self, bucket: str) -> Iterator[None]:
        """Around forward and backward of one."""
        begin = self._now()
        yield
        self._spans.append((f"/{bucket}", begin, self._now()))

    def collective(self, call: Any, *arguments: Any, **options: Any) -> Any:
        """`call(*arguments, **options)`, timed as one of the network's."""
        if not self._runs:
            return call(*arguments, **options)
        begin = self._now()
        result = call(*arguments, **options)
        self._spans.append((_NETWORK, begin, self._now()))
        return result

    def exchanged(self, rank: int, size: int, wait_ms: float) -> list[float]:
        """This rank's numbers in their place among zeros, to be summed over ranks; the device must have been waited for."""
        spent: dict[str, list[float]] = defaultdict(list)
        for what, begin, end in self._spans:
            spent[what].append(self._between_ms(begin, end))
        network = sum(spent.pop(_NETWORK, []))
        self.micro_batch_ms = {what.removeprefix("/"): times for what, times in spent.items()}
        numbers = [0.0] * (NUMBERS_PER_RANK * size)
        numbers[NUMBERS_PER_RANK * rank : NUMBERS_PER_RANK * (rank + 1)] = [
            wait_ms,
            self._gathering_ms,
            network,
            float(peak_bytes(self.device)),
        ]
        self._runs = False
        self._spans.clear()
        return numbers

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between_ms(self, begin: Any, end: Any) -> float:
        if self.device.type != "cuda":
            return 1000.0 * (end - begin)
        if not end.query():
            end.synchronize()
        return float(begin.elapsed_time(end))


def watch_collectives(network: nn.Module, clock: StepClock) -> None:
    """Let FSDP's gathers and reductions of every sharded module be timed; they stay torch's own."""
    gather, scatter = _TimedAllGather(clock), _TimedReduceScatter(clock)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_all_gather(gather)
            module.set_custom_reduce_scatter(scatter)


def peak_bytes(device: torch.device) -> int:
    """Most that the allocator of a GPU had set aside so far; on a CPU the largest resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _TimedAllGather(DefaultAllGather):
    def __init__(self, clock: StepClock) -> None:
        super().__init__()
        self._clock = clock

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._clock.collective(super().__call__, *arguments, **options)


class _TimedReduceScatter(DefaultReduceScatter):
    def __init__(self, clock: StepClock) -> None:
        super().__init__()
        self._clock = clock

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._clock.collective(super().__call__, *arguments, **options)
