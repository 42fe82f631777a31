"""Which part of which tensor each rank writes, decided once by DCP's planner, and host memory to copy the parts into.

DCP knows how a DTensor lies over the ranks, and gives a part that several ranks hold alike (replicas) to one of them. What it decides depends on
names, shapes and placements alone, so it is asked when a run starts and not at each save: for the 2B network's 2584 tensors it takes 0.3 s of
Python, during which a training thread would wait for the interpreter (docs/decisions/001-checkpoint-format.md). Price: a tensor that appears
later is an error.

`HostCopy` is memory for this rank's parts, taken and touched when the run starts: a copy into fresh memory was 20 times slower, and a machine
with too little says so before the first step. For CUDA it is page-locked, in slabs of a power of two as far as there is enough for one (torch's
allocator rounds others up, at most to twice their size: the last slab, and a part above 256 MiB), and
filled beside the forward and backward passes of the next step, which read the weights only; its update waits for the copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, SavePlan

from schemas.errors import ReelyardError
from training.optimizing.local_parts import local_part
from training.parallel import World

__all__ = ["HostCopy", "Part", "Parts", "plan_parts", "tensors_of"]

_SLAB_BYTES = 256 << 20
_ALIGNMENT = 64

Parts = tuple["Part", ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank holds and writes of one tensor."""

    name: str
    offsets: tuple[int, ...]
    """Of its first element in the whole tensor."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of its elements."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def plan_parts(tensors: Mapping[str, Tensor], world: World) -> Parts:
    """This rank's share in writing `tensors`, which have the same names on all ranks; every rank calls it."""
    planner = DefaultSavePlanner()
    planner.set_up_planner(dict(tensors), is_coordinator=world.rank == 0)
    proposed: list[SavePlan] | None = [SavePlan([])] * world.size if world.rank == 0 else None
    dist.gather_object(planner.create_local_plan(), proposed, dst=0, group=world.saving_group)
    decided = None if proposed is None else planner.create_global_plan(proposed)[0]
    mine: list[SavePlan] = [SavePlan([])]
    dist.scatter_object_list(mine, decided, src=0, group=world.saving_group)
    parts = []
    for item in mine[0].items:
        assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
        chunk = item.tensor_data.chunk
        parts.append(
            Part(
                name=item.index.fqn,
                offsets=tuple(chunk.offsets),
                shape=tuple(chunk.sizes),
                dtype=item.tensor_data.properties.dtype,
            )
        )
    assert len({part.name for part in parts}) == len(parts), "a rank holds one part of a tensor"
    return tuple(parts)


def tensors_of(parts: Parts, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The live memory of each part."""
    found = []
    for part in parts:
        local = local_part(tensors[part.name].detach())
        assert tuple(local.shape) == part.shape, f"{part.name} has changed its shape since the run started"
        found.append(local)
    return found


class HostCopy:
    """Memory on the host for one copy of this rank's parts, used again for every save.

    Raises:
        ReelyardError: if there is not so much memory.
    """

    def __init__(self, parts: Parts, device: torch.device) -> None:
        slabs, places = _slabs(parts)
        self.num_bytes = sum(slabs)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._taken: torch.cuda.Event | None = None
        try:
            # zeroed, so that the system gives it now
            memory = [torch.zeros(size, dtype=torch.uint8, pin_memory=self._stream is not None) for size in slabs]
        except RuntimeError as error:
            raise ReelyardError(
                f"asynchronous checkpoints need {self.num_bytes / 1e9:.1f} GB of host memory in every process for a copy of its state, which "
                f"cannot be had ({str(error).splitlines()[0]}); set checkpoint.asynchronous=false, or use more processes or memory"
            ) from error
        self._copies = [
            memory[slab][used : used + part.num_bytes].view(part.dtype).view(part.shape)
            for part, (slab, used) in zip(parts, places, strict=True)
        ]

    def take(self, live: Sequence[Tensor]) -> list[Tensor]:
        """Copy the parts and return the copies.

        From CUDA the copy runs on a stream of its own, behind what the device has been given so far and beside what comes next: `wait` before the
        copies are read, and `hold_device` before the parts change.
        """
        if self._stream is None:
            if live:
                torch._foreach_copy_(self._copies, list(live))
            return self._copies
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            if live:
                torch._foreach_copy_(self._copies, list(live), non_blocking=True)
            self._taken = self._stream.record_event()
        return self._copies

    def wait(self) -> None:
        """Until the copies are there."""
        if self._taken is not None:
            self._taken.synchronize()

    def hold_device(self) -> None:
        """What the device is given from here on may change the parts: it begins when the copies are there. The caller does not wait."""
        if self._taken is not None:
            torch.cuda.current_stream().wait_event(self._taken)


def _slabs(parts: Parts) -> tuple[list[int], list[tuple[int, int]]]:
    """Bytes of each slab, and for each part its slab and its first byte in it, in order."""
    sizes: list[int] = []
    places: list[tuple[int, int]] = []
    used, left = 0, sum(_aligned(part.num_bytes) for part in parts)
    for part in parts:
        size = _aligned(part.num_bytes)
        if not sizes or used + size > sizes[-1]:
            sizes.append(max(size, min(_SLAB_BYTES, left)))
            used = 0
        places.append((len(sizes) - 1, used))
        used, left = used + size, left - size
    return sizes, places


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
