"""The training loop on one GPU against the bare network, its saves against three others, and what ordered kernels and compilation change.

    python benchmarks/engine_cuda.py [--quick] [--json FILE]

Needs a CUDA device. The network has a sixth of the 2B network's blocks (`--quick`: a small one), in bf16 under FSDP2 on one rank,
eager; the run is a real one, `training.loop.train` on a packed set of 33-frame clips at 360p (`--quick`: 64 x 112) and a plan of it, four clips a
step. `engine_overhead`: in turns with the loop's own step, the same network and optimizer take the same batches without loader, counts, metrics,
averages; (loop - bare) / loop, median. `data_wait_p99_ms`: of that run. `save_stall_share`: by how much a save lengthens the loop, its call and
the next step together, in steps. Saves take turns: ours, copied on a stream of its own beside the next step; the same on the training stream
(`_same_stream`); all wait for the disk (`_synchronous`); and torch's `dcp.async_save` (`_dcp_async`). Between two saves the loop waits until all
is written, under TMPDIR. `deterministic_cost`: a step with `deterministic: true` over one without, minus 1; `same_bits`: whether two such runs had
equal losses to the last bit, `same_bits_without` two plain ones. `compile_speedup`: an eager step over a compiled one, both after the first steps.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from bench_table import Row, row, show, write
from loader_sets import LoaderSet, build_plan, pack

from schemas.buckets import Bucket
from schemas.model_shape import MOTIF_2B, TINY
from training import loop
from training.checkpoints.run_saves import RunSaves
from training.metrics import read_lines
from training.parallel import choose_device
from training.run_setup import RunRequest, prepare_run
from training.sync import micro_batch, step_of

MICRO_PER_STEP = 4
WARM = 4
"""Steps before anything is measured."""
KINDS = ("ours", "same_stream", "synchronous", "dcp_async")


@dataclass(frozen=True)
class Case:
    """What is trained."""

    model: dict[str, Any]
    samples: Path
    plan: Path
    folder: Path


@dataclass
class Clock:
    """What is measured of each step."""

    step_s: list[float] = field(default_factory=list)
    """From one end to the next, without what is done aside."""
    bare_s: list[float] = field(default_factory=list)
    last_end: float = 0.0
    aside_s: float = 0.0
    saves: list[tuple[int, str, float]] = field(default_factory=list)
    """Steps done, kind, seconds of the call."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network; the same metrics")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    choose_device("cuda")  # or an error
    with tempfile.TemporaryDirectory() as name:
        case = prepared_case(Path(name), quick=arguments.quick)
        rows: list[Row] = []
        for part in (overhead, saves, ordered, compiled):
            found = part(case)
            show(found)
            rows += found
            write(arguments.json, rows)
    return 0


def prepared_case(folder: Path, *, quick: bool) -> Case:
    """A set, a plan, a network."""
    bucket = Bucket(33, 64, 112) if quick else Bucket(33, 368, 640)
    what = LoaderSet(name="engine", bucket=bucket, clips=48, clips_per_shard=24, batch_clips=1)
    samples = pack(folder / "set", what)
    plan = build_plan(samples, folder / "plan", what, lanes=1, batch_clips=1, epochs=24, micro_per_step=MICRO_PER_STEP)
    shape = TINY.model_copy(update={"width": 256, "heads": 4, "head_width": 64, "rope_axes": (16, 24, 24)})
    if not quick:
        shape = MOTIF_2B.model_copy(update={"dual_blocks": 2, "single_blocks": 3, "decoder_blocks": 1})
    shape = shape.model_copy(update={"text_width": 384, "image_width": None})
    return Case(shape.model_dump(mode="json"), samples, plan, folder)


@contextmanager
def timed_loop(clock: Clock, aside: Callable[..., None] | None = None) -> Iterator[None]:
    """Inside, the loop's steps are timed, the device waited for at the end of each; `aside` is done after each."""
    run_step = loop.run_step

    def timed(*arguments: Any) -> Any:
        results = run_step(*arguments)
        torch.cuda.synchronize()
        end = time.perf_counter()
        clock.step_s.append(end - clock.last_end - clock.aside_s if clock.last_end else float("nan"))
        if aside is not None:
            aside(*arguments)
        clock.last_end, clock.aside_s = end, time.perf_counter() - end
        return results

    with mock.patch.object(loop, "run_step", timed):
        yield


def run(case: Case, name: str, steps: int, **changes: Any) -> Path:
    """One run of the trainer; its folder. It saves only if `changes` say when."""
    never = {"every_steps": 10**6, "keep": 1, "asynchronous": False}
    config = {"model": case.model, "optimizer": {"lr": 1e-4}, "device": "cuda", "checkpoint": never, "steps": steps}
    file = case.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**config, **changes}))
    output = case.folder / name
    request = RunRequest(config=file, plan=case.plan, samples=(case.samples,), output=output)
    with nullcontext() if "checkpoint" in changes else mock.patch.object(loop._Run, "_save", lambda self: None):
        loop.train(prepare_run(request))
    gc.collect()
    torch.cuda.empty_cache()
    return output


def overhead(case: Case) -> list[Row]:
    """The loop against the bare network."""
    clock = Clock()

    def bare(_config: Any, world: Any, state: Any, loaded: Any, counts: Any, _control: Any) -> None:
        begun = time.perf_counter()
        with step_of(state.network, state.sync):
            for index, batch in enumerate(loaded.batches):
                micro_batch(state.network, state.sync, last=index == len(loaded.batches) - 1)
                (state.network(batch.to(world.device)).flow_total / counts.clips).backward()
        state.optimizer.step_alone(1e-4)
        torch.cuda.synchronize()
        clock.bare_s.append(time.perf_counter() - begun)

    with timed_loop(clock, bare):
        output = run(case, "overhead", WARM + 30)
    pairs = list(zip(clock.step_s, clock.bare_s, strict=True))[WARM:]
    waits = [line["data_wait_ms"] for line in read_lines(output / "metrics.jsonl")[WARM:]]
    step_s = statistics.median(step for step, _ in pairs)
    share = statistics.median((step - bare_s) / step for step, bare_s in pairs)
    return [
        row("engine_overhead", share, "of a step", goal=0.03, better="lower"),
        row("step_ms", 1000 * step_s, "ms", goal=None, better="lower"),
        row("data_wait_p99_ms", float(np.percentile(waits, 99)), "ms", goal=1.0, better="lower"),
    ]


def saves(case: Case) -> list[Row]:
    """Four ways of saving, in turns; the first round sets things up."""
    clock, pending, rounds = Clock(), [], 3
    save = RunSaves.save

    def wait(*_: Any) -> None:
        """Until the last save is written, but only after the step that follows it."""
        if clock.saves and len(clock.step_s) > clock.saves[-1][0]:
            while pending:
                pending.pop()()

    def timed_save(self: RunSaves, next_step: int, clips_digest: str | None = None) -> None:
        kind = KINDS[len(clock.saves) % len(KINDS)]
        begun = time.perf_counter()
        pending.append(_save(kind, self, next_step, case.folder / "dcp", save))
        clock.saves.append((next_step, kind, time.perf_counter() - begun))

    every = 5
    keeping = {"every_steps": every, "keep": 1}
    with timed_loop(clock, wait), mock.patch.object(RunSaves, "save", timed_save):
        output = run(case, "saves", WARM + every * len(KINDS) * rounds, checkpoint=keeping)
    copied = sum(file.stat().st_size for file in output.glob("checkpoints/*/*.safetensors"))
    saved = {step for step, _, _ in clock.saves}
    step_s = statistics.median(clock.step_s[n] for n in range(WARM, len(clock.step_s)) if n not in saved)
    stalls: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for step, kind, _ in clock.saves[len(KINDS) :]:
        if step < len(clock.step_s):  # `step_s` of the next one holds the call as well
            stalls[kind].append((clock.step_s[step] - step_s) / step_s)
    found = {kind: statistics.median(shares) for kind, shares in stalls.items() if shares}
    ours = found.pop("ours")
    rows = [
        row(f"save_stall_share_{kind}", ours, "of a step", goal=0.1, better="lower", peer=peer)
        for kind, peer in found.items()
    ]
    place = f"GB in a checkpoint, under {tempfile.gettempdir()}"
    return [*rows, row("state_gb", copied / 1e9, place, goal=None, better="lower")]


def _save(kind: str, saves: Any, next_step: int, target: Path, save: Callable[..., None]) -> Callable[[], object]:
    """Save in one of the four ways; returns how to wait for its end."""
    saves.finish()
    if kind == "dcp_async":
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import HuggingFaceStorageWriter

        writer = HuggingFaceStorageWriter(str(target), save_distributed=True)
        answer = dcp.async_save(saves._state.tensors(), storage_writer=writer, process_group=saves._world.saving_group)
        assert isinstance(answer, Future)
        return answer.result
    if kind == "synchronous":
        copy, saves._copy = saves._copy, None
        try:
            save(saves, next_step)
        finally:
            saves._copy = copy
        return saves.finish
    on_this_stream = mock.patch.object(saves._copy, "_stream", torch.cuda.current_stream())
    with on_this_stream if kind == "same_stream" else nullcontext():
        save(saves, next_step)
    return saves.finish


def ordered(case: Case) -> list[Row]:
    """Ordered kernels against torch's usual ones, two runs of each in turns."""
    seconds, losses, lines = {}, {}, {}
    for kind, changes in (("plain", {}), ("ordered", {"deterministic": True})) * 2:
        name = f"{kind}-{'again' if kind in seconds else 'first'}"
        seconds[kind], lines[kind] = plainly_timed(case, name, **changes)
        losses.setdefault(kind, []).append([line["loss_hex"] for line in lines[kind]])
    same = {kind: float(first == again) for kind, (first, again) in losses.items()}
    mfu, memory = ([line[key] for line in lines["plain"][WARM:]] for key in ("mfu_pct", "mem_gb"))
    return [
        row("mfu_pct", statistics.median(mfu), "%", goal=None, better="higher"),
        row("mem_gb", memory[-1], "GB", goal=None, better="lower"),
        row("deterministic_cost", seconds["ordered"] / seconds["plain"] - 1.0, "of a step", goal=None, better="lower"),
        row("same_bits", same["ordered"], "1: yes", goal=1.0, better="higher"),
        row("same_bits_without", same["plain"], "1: yes", goal=None, better="higher"),
    ]


def compiled(case: Case) -> list[Row]:
    """Compiled blocks against eager ones, with texts of few lengths."""
    text = {"length_multiple": 64}
    eager_s, _ = plainly_timed(case, "eager", text=text)
    compiled_s, _ = plainly_timed(case, "compiled", text=text, compile=True)
    return [row("compile_speedup", eager_s / compiled_s, "x", goal=None, better="higher")]


def plainly_timed(case: Case, name: str, **changes: Any) -> tuple[float, list[dict[str, Any]]]:
    """Median seconds of a step of one run, and its lines."""
    clock = Clock()
    with timed_loop(clock):
        output = run(case, name, WARM + 12, **changes)
    return statistics.median(clock.step_s[WARM:]), read_lines(output / "metrics.jsonl")


if __name__ == "__main__":
    raise SystemExit(main())
