"""Many short training runs on one to four gloo processes, in the same processes one after another: torch is imported once for each.

Shared by `loss_equality.py` and the tests of layouts. Each run is the arguments of `reelyard-train run`; what it did is in its metrics.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run."""

    processes: int
    arguments: tuple[str, ...]
    copied: tuple[Path, Path] | None = None
    """A run's folder that is copied first, and to where: a run that goes on from an earlier one of these."""
    nudge: int | None = None
    """With a number, one starting weight of the projection of that number to queries, keys and values is changed in its last bit."""
    nudged_type: str = "float32"
    """The type whose last bit is meant: what the run computes in, else the change could be lost in rounding."""


def run_all(runs: Sequence[Run], *, seconds: float = 1200.0) -> None:
    """Do all of them; RuntimeError with what the processes said if one fails."""
    jobs = [{**asdict(run), "copied": list(map(str, run.copied or ())), "port": _free_port()} for run in runs]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.json"
        path.write_text(json.dumps(jobs))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
        ranks = range(max(run.processes for run in runs))
        for rank in ranks:
            (Path(folder) / f"at-{rank}").touch()
        said = [Path(folder) / f"rank-{rank}.txt" for rank in ranks]
        streams = [path.open("wb") for path in said]
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(rank), str(path)],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=streams[rank],
            )
            for rank in ranks
        ]
        _wait(processes, seconds)
        for stream in streams:
            stream.close()
        if any(process.returncode for process in processes):
            texts = [f"rank {rank}:\n{said[rank].read_text(errors='replace')[-2000:]}" for rank in ranks]
            raise RuntimeError("\n".join(texts))


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all have ended, one has failed, or it took too long; then none is left."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if None not in codes or any(codes):
            break
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.wait()


def _worker(rank: int, path: Path) -> int:
    """One process's share of all runs."""
    from training import loop
    from training.cli import main

    plain = loop.TrainState
    jobs, workers = json.loads(path.read_text()), len(list(path.parent.glob("at-*")))
    for number, job in enumerate(jobs, start=1):
        alone = job["processes"] == 1 and not job["copied"]
        if alone and rank != number % workers:
            continue  # such runs go on side by side, until another one needs all processes
        if not alone:
            _wait_for_others(path.parent, rank, 2 * number - 1)
            if rank == 0 and job["copied"]:
                shutil.copytree(*job["copied"])
            _wait_for_others(path.parent, rank, 2 * number)
            if rank >= job["processes"]:
                continue
        own = 0 if alone else rank
        names = {"RANK": own, "LOCAL_RANK": own, "WORLD_SIZE": job["processes"], "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {name: str(value) for name, value in {**names, "MASTER_PORT": job["port"]}.items()}
        loop.TrainState = plain if job["nudge"] is None else _nudged(job["nudge"], job["nudged_type"])  # type: ignore[misc]
        code = main(["run", *job["arguments"]])
        if code:
            return code
    return 0


def _wait_for_others(folder: Path, rank: int, number: int) -> None:
    """Until every process has come to this point, so that all see the same files."""
    (folder / f"at-{rank}").write_text("x" * number)
    while any(path.stat().st_size < number for path in folder.glob("at-*")):
        time.sleep(0.01)


def _nudged(place: int, type_name: str) -> type:
    """`TrainState` that starts one last bit apart."""
    import torch

    from training.optimizing.local_parts import local_part
    from training.train_state import TrainState

    class Nudged(TrainState):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            weights = [parameter for parameter, name in self.names.items() if name.endswith("qkv.weight")]
            with torch.no_grad():
                first = local_part(weights[place % len(weights)]).view(-1)[:1]
                rounded = first.to(getattr(torch, type_name))
                first.copy_(torch.nextafter(rounded, torch.full_like(rounded, torch.inf)))

    return Nudged


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(_worker(int(sys.argv[1]), Path(sys.argv[2])))
