"""The training loop against the bare network where both are sharded by FSDP2, on one process and on two, in the same pairs as `engine_training.py`.

    python benchmarks/engine_fsdp.py JOB RANK       one process of a run, started by `rows`

The bare side is the same network, wrapped by the same calls in float32, with the same AdamW and clipping: forward, backward with FSDP2's own gathers
and reductions, one sum over ranks for the gradient's norm, update. It has no loader, no counts, no metrics, no averages, no timing of collectives.
So `engine_overhead_fsdp_*` is what the loop costs beside a sharded network, not what sharding costs. That is `fsdp_copies_1`: on one process, the
wrapped bare network against the same one wrapped in nothing. Two processes talk over gloo; with no core of its own for each they also wait for turns.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from bench_table import Row, row
from loader_sets import build_plan

__all__ = ["rows"]

PROJECT = Path(__file__).resolve().parents[1]
FIRST = 3
"""Steps before this one set things up."""


def rows(folder: Path, samples: Path, *, quick: bool) -> list[Row]:
    """Run on one process and on two, on a set that is packed already, and make the table."""
    found = []
    for ranks in (1, 2):
        times = _run(folder / f"fsdp-{ranks}", samples, ranks, steps=12 if quick else 36)
        steps = range(FIRST, len(times["loop_s"]))
        overhead = statistics.median((times["loop_s"][n] - times["bare_s"][n]) / times["loop_s"][n] for n in steps)
        step_ms = 1000 * statistics.median(times["loop_s"][FIRST:])
        found.append(row(f"engine_overhead_fsdp_{ranks}", overhead, "of a step", goal=0.03, better="lower"))
        found.append(row(f"step_ms_fsdp_{ranks}", step_ms, "ms", goal=None, better="lower"))
        if ranks == 1:
            copies = statistics.median((times["bare_s"][n] - times["plain_s"][n]) / times["plain_s"][n] for n in steps)
            found.append(row("fsdp_copies_1", copies, "of a step", goal=None, better="lower"))
    return found


def _run(folder: Path, samples: Path, ranks: int, steps: int) -> dict[str, list[float]]:
    """One run in processes of its own; rank 0's seconds by step."""
    from engine_training import CONFIG, SET

    folder.mkdir()
    epochs = -(-steps * ranks // SET.clips) + 1
    plan = build_plan(samples, folder / "plan", SET, lanes=ranks, batch_clips=1, epochs=epochs)
    config = {**CONFIG, "steps": steps, "checkpoint": {"every_steps": 10 * steps, "keep": 1}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    job = {"config": folder / "config.yaml", "plan": plan, "samples": samples, "output": folder / "run"}
    (folder / "job.json").write_text(json.dumps({name: str(path) for name, path in job.items()}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join((str(PROJECT), str(Path(__file__).parent)))
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder / "job.json"), str(rank)],
            env={
                **common,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(ranks)
    ]
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise RuntimeError(f"a process of the run on {ranks} ended with {codes}; what it said stands above")
    times: dict[str, list[float]] = json.loads((folder / "times.json").read_text())
    return times


def _worker(job: Path, rank: int) -> None:
    """One rank: the run, with the bare networks' turns beside it."""
    import torch
    from engine_training import Bare, wrapped

    from training import loop, train_state
    from training.run_setup import RunRequest, prepare_run

    torch.set_num_threads(1)
    paths = {name: Path(text) for name, text in json.loads(job.read_text()).items()}
    samples = paths.pop("samples")
    prepared = prepare_run(RunRequest(samples=(samples,), **paths))
    times: dict[str, list[float]] = {"loop_s": [], "bare_s": [], "plain_s": []}
    bare: list[Bare] = []
    run_step, state = loop.run_step, {"last_end": 0.0, "aside_s": 0.0}

    def timed_step(config: Any, world: Any, *others: Any) -> Any:
        begun = time.perf_counter()
        loaded, counts = others[1], others[2]
        if not bare:
            bare.append(Bare(config, world))
            if world.size == 1:
                bare.append(Bare(config))
        turns = [lambda one=one: one.step(loaded, counts.clips) for one in bare]

        def take_turns() -> None:
            seconds = [_seconds(turn) for turn in (turns if loaded.step % 4 < 2 else turns[::-1])]
            seconds = seconds if loaded.step % 4 < 2 else seconds[::-1]
            times["bare_s"].append(seconds[0])
            times["plain_s"].append(seconds[-1])

        if loaded.step % 2:
            take_turns()
        aside_s = time.perf_counter() - begun
        results = run_step(config, world, *others)
        end = time.perf_counter()
        times["loop_s"].append(end - state["last_end"] - state["aside_s"] - aside_s)
        if not loaded.step % 2:
            take_turns()
        state["last_end"], state["aside_s"] = end, time.perf_counter() - end
        return results

    loop.run_step, train_state.shard_network = timed_step, wrapped
    loop.train(prepared)
    if rank == 0:
        (job.parent / "times.json").write_text(json.dumps(times))


def _seconds(action: Callable[[], None]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), int(sys.argv[2]))
