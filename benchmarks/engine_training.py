"""The training loop against the bare model, and its saves in three ways, interleaved in one run of one process with one compute thread.

The run is a real one: `training.loop.train` on a packed set and a plan of it, with loader, averages, metrics and checkpoints. Before or after the
loop's own forward, backward and update, in turns, the same batches go through a second network with the same starting weights, wrapped in
nothing, with the same AdamW and clipping. So each step gives a pair, and noise of the machine meets both.

`engine_overhead`: (loop - bare) / loop, median over the steps without a save, of one process in float32, where nothing is wrapped
(`engine_fsdp.py` has the same with FSDP2, on one process and on two); the averages of the weights are part of the loop, not of the bare
model. `_in_step`: that of forward, backward, update and averages; `_around_step`: of data, counts, metrics and the rest.
`save_stall_share`: how long a save blocks the loop / a step, median: the call, and what the next save has to wait until this one is written, which
comes as much out of the loop's time. `save_wait_share`: of that the wait alone, the longest.
Saves take turns: ours in the background, the same files written while all wait
(`_synchronous`, and the peer of ours), and torch's `dcp.async_save` with its own writer (`_dcp_async`). `save_slowdown`: how much longer the
steps between this save and its end took, all together, in steps. `save_cost`: both together. The network has 3.4 M parameters and a step 1300
video tokens: far more state for each token than a large run has, so a save weighs more here than there.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import engine_fsdp
import engine_saves
import torch
import yaml
from bench_table import Row, row
from loader_sets import LoaderSet, build_plan, pack
from torch import nn

from schemas.buckets import Bucket

__all__ = ["rows"]

SET = LoaderSet(name="engine", bucket=Bucket(33, 144, 256), clips=64, clips_per_shard=32, batch_clips=1)
KINDS = ("ours", "synchronous", "dcp_async")
SAVE_EVERY = 6
CONFIG: dict[str, Any] = {
    "model": {
        "width": 192,
        "heads": 3,
        "head_width": 64,
        "dual_blocks": 1,
        "single_blocks": 2,
        "decoder_blocks": 1,
        "text_width": 384,
        "image_width": None,
        "rope_axes": [16, 24, 24],
        "timestep_width": 64,
    },
    "optimizer": {"lr": 1e-4},
    "checkpoint": {"every_steps": SAVE_EVERY, "keep": 2},
    "device": "cpu",
}


@dataclass
class Clock:
    """What is measured of each step of the loop."""

    loop_s: list[float] = field(default_factory=list)
    """From one step's end to the next one's, without the bare model's part and without the save."""
    wrapped_s: list[float] = field(default_factory=list)
    """Forward, backward and update in the loop."""
    bare_s: list[float] = field(default_factory=list)
    saves: list[tuple[int, str, float]] = field(default_factory=list)
    """Steps done, kind, seconds that the call took."""
    waits_s: dict[int, float] = field(default_factory=dict)
    """How long the next save had to wait for that of so many steps done."""
    busy: list[str | None] = field(default_factory=list)
    """What was being written in the background at some time of a step."""
    last_end: float = 0.0
    aside_s: float = 0.0
    """Since `last_end`, what is not the loop's: the bare model and a save."""


def wrapped(network: Any, config: Any, world: Any) -> Any:
    """What `shard_network` does in a float32 run of several ranks; it would leave one rank unwrapped."""
    from training import parallel
    from training.dit.initialization import initialize_weights

    parallel._shard(network, torch.float32, world)
    network.to_empty(device="cpu")
    initialize_weights(network.dit, config.seed)
    initialize_weights(network.projectors, config.seed)
    return network


class Bare:
    """The network alone, as `training.train_step` uses it; with a world, sharded over it, but without the loop's timing of collectives."""

    def __init__(self, config: Any, world: Any = None) -> None:
        from training import parallel
        from training.dit.initialization import initialize_weights
        from training.network import build_network
        from training.optimizing.optimizer import build_optimizer

        self.config, self.world = config, world
        network: Any = build_network(config, {})
        if world is None:
            initialize_weights(network.to_empty(device="cpu").dit, config.seed)
        else:
            with mock.patch.object(parallel, "watch_collectives", lambda *_: None):
                wrapped(network, config, world)
        self.network: nn.Module = network.train()
        self.optimizer = build_optimizer(self.network, config.optimizer)

    def step(self, loaded: Any, clips: int) -> None:
        for batch in loaded.batches:
            (self.network(batch).flow_total / clips).backward()
        self.optimizer.collect()
        squares = float(self.optimizer.squared_norm())
        if self.world is not None:
            (squares,) = self.world.sum_float64([squares])
        self.optimizer.update(math.sqrt(squares), self.config.optimizer.lr)


def rows(*, quick: bool) -> list[Row]:
    """Run, and make the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = pack(folder / "set", SET)
        clock = _measure(folder, samples, saves=6 if quick else 24)
        sharded = engine_fsdp.rows(folder, samples, quick=quick)
    return [*_rows(clock), *sharded, *engine_saves.rows(quick=quick)]


def _measure(folder: Path, samples: Path, saves: int) -> Clock:
    from training import loop
    from training.checkpoints.run_saves import RunSaves
    from training.run_setup import RunRequest, prepare_run

    steps = SAVE_EVERY * saves + SAVE_EVERY
    plan = build_plan(samples, folder / "plan", SET, lanes=1, batch_clips=1, epochs=-(-steps // SET.clips) + 1)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "steps": steps}))
    request = RunRequest(config=folder / "config.yaml", plan=plan, samples=(samples,), output=folder / "run")
    prepared = prepare_run(request)
    clock, bare = Clock(), Bare(prepared.config)
    run_step, save = loop.run_step, RunSaves.save
    pending: list[tuple[str, Callable[[], bool]]] = []

    def timed_step(config: Any, world: Any, state: Any, loaded: Any, counts: Any, control: Any) -> Any:
        aside_s = _seconds(lambda: bare.step(loaded, counts.clips)) if loaded.step % 2 else 0.0
        begun = time.perf_counter()
        results = run_step(config, world, state, loaded, counts, control)
        end = time.perf_counter()
        clock.loop_s.append(end - clock.last_end - clock.aside_s - aside_s if clock.last_end else float("nan"))
        clock.wrapped_s.append(end - begun)
        after_s = 0.0 if loaded.step % 2 else _seconds(lambda: bare.step(loaded, counts.clips))
        clock.bare_s.append(aside_s or after_s)
        clock.busy.append(pending[0][0] if pending else None)
        clock.last_end, clock.aside_s = end, after_s
        if pending and pending[0][1]():
            pending.clear()
        return results

    def timed_save(self: RunSaves, next_step: int, clips_digest: str | None = None) -> None:
        entered = time.perf_counter()
        while pending and not pending[0][1]():
            time.sleep(0.001)
        pending.clear()
        self.finish()
        if clock.saves:
            clock.waits_s[clock.saves[-1][0]] = time.perf_counter() - entered
        kind = KINDS[len(clock.saves) % len(KINDS)]
        begun = time.perf_counter()
        is_done = _save(kind, self, next_step, folder / f"dcp-{next_step}", save)
        clock.saves.append((next_step, kind, time.perf_counter() - begun))
        if not is_done():
            pending.append((kind, is_done))
        clock.aside_s += time.perf_counter() - entered

    loop.run_step, RunSaves.save = timed_step, timed_save  # type: ignore[method-assign]
    try:
        loop.train(prepared)
    finally:
        loop.run_step, RunSaves.save = run_step, save  # type: ignore[method-assign]
    return clock


def _seconds(action: Callable[[], None]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def _save(kind: str, saves: Any, next_step: int, target: Path, save: Callable[[Any, int], None]) -> Callable[[], bool]:
    """Save in one of the three ways; returns how to ask whether it is complete."""
    if kind == "dcp_async":
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import HuggingFaceStorageWriter

        writer = HuggingFaceStorageWriter(str(target), save_distributed=True)
        group = saves._world.saving_group
        answer = dcp.async_save(saves._state.tensors(), storage_writer=writer, process_group=group)
        assert isinstance(answer, Future)
        return answer.done
    copy, saves._copy = saves._copy, saves._copy if kind == "ours" else None
    try:
        save(saves, next_step)
    finally:
        saves._copy = copy
    under_way = saves._under_way
    return under_way.done if under_way is not None else lambda: True


def _rows(clock: Clock) -> list[Row]:
    saved = {step for step, _, _ in clock.saves}
    quiet = [n for n in range(3, len(clock.loop_s)) if clock.busy[n] is None and n not in saved]
    step_s = statistics.median(clock.loop_s[n] for n in quiet)

    def share(seconds: Callable[[int], float]) -> float:
        return statistics.median(seconds(n) / clock.loop_s[n] for n in quiet)

    overhead = share(lambda n: clock.loop_s[n] - clock.bare_s[n])
    inside = share(lambda n: clock.wrapped_s[n] - clock.bare_s[n])
    stall, slow, wait = {}, {}, {}
    for kind in KINDS:
        mine = [
            (seconds, clock.waits_s.get(step, 0.0)) for step, made, seconds in clock.saves[len(KINDS) :] if made == kind
        ]
        stall[kind] = statistics.median(called + waited for called, waited in mine) / step_s
        wait[kind] = max(waited for _, waited in mine) / step_s
        extra = [_extra(clock, step, kind, step_s) for step, made, _ in clock.saves[len(KINDS) :] if made == kind]
        slow[kind] = statistics.median(extra) / step_s
    found = [
        row("engine_overhead", overhead, "of a step", goal=0.03, better="lower"),
        row("engine_overhead_in_step", inside, "of a step", goal=None, better="lower"),
        row("engine_overhead_around_step", overhead - inside, "of a step", goal=None, better="lower"),
        row("step_ms", 1000 * step_s, "ms", goal=None, better="lower"),
        row("save_stall_share", stall["ours"], "of a step", goal=0.1, better="lower", peer=stall["synchronous"]),
        row(
            "save_stall_share_dcp_async", stall["ours"], "of a step", goal=None, better="lower", peer=stall["dcp_async"]
        ),
        row("save_wait_share", wait["ours"], "of a step", goal=None, better="lower", peer=wait["dcp_async"]),
        row("save_slowdown", slow["ours"], "steps", goal=None, better="lower", peer=slow["dcp_async"]),
    ]
    cost = {kind: stall[kind] + slow[kind] for kind in KINDS}
    found.append(row("save_cost", cost["ours"], "steps", goal=None, better="lower", peer=cost["synchronous"]))
    found.append(row("save_cost_dcp_async", cost["ours"], "steps", goal=None, better="lower", peer=cost["dcp_async"]))
    return found


def _extra(clock: Clock, step: int, kind: str, step_s: float) -> float:
    """By how much the steps after a save were longer than usual, while it was written."""
    extra = 0.0
    for n in range(step, min(step + SAVE_EVERY, len(clock.loop_s))):
        if clock.busy[n] == kind:
            extra += clock.loop_s[n] - step_s
    return extra
