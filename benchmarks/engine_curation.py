"""What starting the engine costs, and what a lost node costs: our executor against NeMo Curator's Ray Data executor, the peer, on the same stage.

`noop_seconds_first` and `_next`: a pipeline of three tasks without work, the first and the second of a process, on three local nodes of one logical
CPU each, whose start is not counted. `node_loss_seconds`: tasks of one second, one of the three nodes is killed after the third task.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench_table import Row, row

__all__ = ["rows"]

STORE_BYTES = 80 << 20


def _measure(executor: str, units: int, *, lose: bool) -> list[float]:
    """Seconds of two no-op pipelines, or of one that loses a node; in this process, on a cluster of its own."""
    import logging

    import ray
    from loguru import logger
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline
    from nemo_curator.stages.base import ProcessingStage
    from nemo_curator.stages.resources import Resources
    from ray.cluster_utils import Cluster

    from curation.executor import UnitExecutor, WorkerPool
    from curation.stages import UnitTask

    folder = Path(tempfile.mkdtemp())

    class Wait(ProcessingStage[UnitTask, UnitTask]):
        name = "wait"
        resources = Resources(cpus=0.9)

        def inputs(self) -> tuple[list[str], list[str]]:
            return ["data"], []

        def outputs(self) -> tuple[list[str], list[str]]:
            return ["data"], []

        def num_workers(self) -> int:
            return 3

        def setup(self, worker_metadata: Any = None) -> None:
            """Overridden, so that Ray Data uses actors, too."""

        def process(self, task: UnitTask) -> UnitTask:
            if lose:
                time.sleep(1)
                (folder / task.data["label"]).touch()
            return task

    logger.remove()
    logging.disable(logging.WARNING)
    head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head, connect=False)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]

    def remove() -> None:
        while len(list(folder.iterdir())) < 3:
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)

    if lose:
        threading.Thread(target=remove, daemon=True).start()
    seconds, pool = [], WorkerPool()
    for _ in range(1 if lose else 2):
        tasks = [UnitTask(dataset_name="t", data={"label": f"u{n}", "parts": {}, "results": {}}) for n in range(units)]
        start = time.monotonic()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        ray.data.DataContext.get_current().enable_progress_bars = False
        engine = RayDataExecutor() if executor == "ray_data" else UnitExecutor(pool, lambda: {"wait": 3})
        finished = Pipeline("bench", stages=[Wait()]).run(engine, initial_tasks=tasks) or []
        seconds.append(time.monotonic() - start)
        assert len(finished) == units, f"{len(finished)} of {units} came back"
    ray.shutdown()
    cluster.shutdown()
    return seconds


def _apart(executor: str, units: int, *, lose: bool) -> list[float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, executor, str(units), str(int(lose))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    values: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return values


def rows(*, quick: bool) -> list[Row]:
    """Measure both sides, each in processes of its own; quick: eight tasks instead of twenty around the lost node."""
    peer, ours = (_apart(name, 3, lose=False) for name in ("ray_data", "ours"))
    found = [row("noop_seconds_first", ours[0], "s", goal=None, better="lower", peer=peer[0])]
    found.append(row("noop_seconds_next", ours[1], "s", goal=None, better="lower", peer=peer[1]))
    units = 8 if quick else 20
    peer, ours = (_apart(name, units, lose=True) for name in ("ray_data", "ours"))
    return [*found, row("node_loss_seconds", ours[0], "s", goal=None, better="lower", peer=peer[0])]


if __name__ == "__main__":  # `_apart` starts this file for one measurement
    executor, count, lost = sys.argv[1:]
    print(json.dumps(_measure(executor, int(count), lose=bool(int(lost)))))
