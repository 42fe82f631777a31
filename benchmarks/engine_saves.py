"""Why torch's `dcp.async_save` is not what saves a run: the same jobs by torch's parts (the peer) and by ours, on as many tensors as the 2B run has.

`save_stage_ms`: copying the state before training may go on; torch's `DefaultStager` walks the mapping in Python, ours copies into fixed memory
with one call. `save_plan_ms`: who writes what; torch plans at each save (its own cache on), ours once at the start, so that a save's is zero.
Tensors of these two are tiny: what is measured is the Python around them. `save_longest_gap_ms`: the longest that another thread had to wait
for the interpreter's lock while 256 MB were written by DCP's writer, and by ours. `save_first_copy`: a copy into memory that was touched before,
as ours is when the run starts, and into fresh memory.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_table import Row, row
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["rows"]

KINDS = ("model", "exp_avg", "exp_avg_sq", "ema_0.9999")
BIG_BYTES = 256 << 20


def rows(*, quick: bool) -> list[Row]:
    """Measure in this process, on one rank."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import DefaultSavePlanner, HuggingFaceStorageWriter
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    from torch.distributed.tensor import Shard, distribute_tensor

    from schemas.model_shape import ModelShape
    from training.checkpoints.parts import HostCopy, plan_parts, tensors_of
    from training.dit.model import MotifVideoDiT
    from training.parallel import open_world

    with torch.device("meta"):
        names = [name for name, _ in MotifVideoDiT(ModelShape()).named_parameters()]
    times = 3 if quick else 9
    with open_world(torch.device("cpu")) as world, tempfile.TemporaryDirectory() as folder:
        state = {
            f"{kind}/dit.{name}": distribute_tensor(torch.zeros(8, 4), world.mesh, [Shard(0)])
            for name in names
            for kind in KINDS
        }
        parts = plan_parts(state, world)
        copy = HostCopy(parts, world.device)
        stager = DefaultStager(StagingOptions(False, False, False, False))
        ours = _ms(lambda: copy.take(tensors_of(parts, state)), times)
        theirs = _ms(lambda: stager.stage(state), times)

        def plan() -> None:
            planner = DefaultSavePlanner(enable_plan_caching=True)
            planner.set_up_planner(state, None, True)
            planner.create_global_plan([planner.create_local_plan()])

        planned = _ms(plan, times)
        big = {f"model/{n}": torch.randn(1 << 20) for n in range(BIG_BYTES >> 22)}
        writer = HuggingFaceStorageWriter(str(Path(folder) / "dcp"), save_distributed=True)
        gap_theirs = _longest_gap_ms(lambda: dcp.save(big, storage_writer=writer))
        gap_ours = _longest_gap_ms(lambda: save_file(big, Path(folder) / "ours.safetensors"))
        first, later = _touches(big)
    return [
        row("save_stage_ms", ours, f"ms, {len(state)} tensors", goal=None, better="lower", peer=theirs),
        row("save_plan_ms", 0.0, f"ms, {len(state)} tensors", goal=None, better="lower", peer=planned),
        row("save_longest_gap_ms", gap_ours, "ms", goal=None, better="lower", peer=gap_theirs),
        row("save_first_copy", later, "ms, 256 MB", goal=None, better="lower", peer=first),
    ]


def _ms(action: Callable[[], object], times: int) -> float:
    """Median of some runs, the first apart."""
    action()
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        action()
        found.append(1000 * (time.perf_counter() - begun))
    return sorted(found)[times // 2]


def _longest_gap_ms(action: Callable[[], object]) -> float:
    """The longest time between two turns of a thread that asks for one every half millisecond."""
    gaps, ended = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not ended.wait(0.0005):
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    action()
    ended.set()
    thread.join()
    return 1000 * max(gaps)


def _touches(tensors: dict[str, Tensor]) -> tuple[float, float]:
    """Milliseconds of copying into fresh memory, and into the same again."""
    source = torch.cat(list(tensors.values()))
    fresh = torch.empty_like(source)
    found = []
    for _ in range(3):
        begun = time.perf_counter()
        fresh.copy_(source)
        found.append(1000 * (time.perf_counter() - begun))
    return found[0], found[-1]
