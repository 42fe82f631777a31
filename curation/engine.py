"""Runs lists of stages over units on Ray; the only module that connects to a cluster.

The cluster is reached when the first unit needs it and kept, with its warm workers, for the rest of the command, so a rerun with nothing to do
starts no Ray and only the first phase pays for the start. Price: a worker keeps its CPUs reserved between two phases of a command.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from curation.config import CurateConfig, StageResources
from curation.ray_head import RayHead, reach_cluster
from curation.run_status import Board
from schemas.command import say
from schemas.errors import PreflightError, ReelyardError

if TYPE_CHECKING:
    from curation.executor import WorkerPool

__all__ = ["Engine", "StageCount", "metrics_address", "workers_for"]

StageCount = dict[str, int]
"""Stage name to its number of workers."""


class Engine:
    """The cluster of one command; use it as a context manager."""

    def __init__(self, config: CurateConfig, board: Board | None = None) -> None:
        self._config = config
        self._board = Board(None) if board is None else board
        self._stack = ExitStack()
        self._head: RayHead | None = None
        self._pool: WorkerPool | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(
        self,
        what: str,
        units: Sequence[dict[str, Any]],
        build: Callable[[StageCount], Sequence[Any]],
        stages: Sequence[str],
        *,
        skipped: int = 0,
    ) -> list[dict[str, Any]]:
        """Run every unit through the stages; returns the units with their results, sorted by label.

        Args:
            what: name for the progress lines.
            units: `UnitTask.data` of each unit.
            build: worker counts to the list of stages.
            stages: names of those stages, as in the `ray` section of the config.
            skipped: units that an earlier run did, for the status.

        Raises:
            PreflightError: the cluster is too small for one worker of each stage.
            ReelyardError: a unit was stopped, or never came back.
        """
        if not units:
            return []
        pool = self._reach()
        from nemo_curator.pipeline import Pipeline

        from curation.executor import UnitExecutor
        from curation.stages import UnitTask

        wanted = {name: self._config.stage_resources(name) for name in stages}
        counts = workers_for(wanted, *_cluster_size(), len(units))
        say(f"{what}: {len(units)} units, workers {', '.join(f'{name} {count}' for name, count in counts.items())}")

        def now() -> StageCount:
            """Counts of the cluster as it is by now; a cluster that shrank keeps the old ones and does what it can."""
            try:
                return workers_for(wanted, *_cluster_size(), len(units))
            except PreflightError:
                return counts

        tasks = [UnitTask(dataset_name=what, data=unit) for unit in units]
        board = self._board
        scaled = _room_for(wanted, self._config.ray.scale_to_workers, len(units))
        with _only_errors(), board.work(what, units, skipped=skipped), scaled:
            pipeline = Pipeline(what, stages=list(build(counts)))
            executor = UnitExecutor(pool, now, on_load=board.loads, on_finished=lambda task: board.finished(task.data))
            finished = pipeline.run(executor, initial_tasks=tasks) or []
        return _checked(what, units, [task.data for task in finished])

    def _reach(self) -> WorkerPool:
        """Connect, once per command."""
        if self._pool is None:
            say("ray: connecting" if self._config.ray.address else "ray: starting or connecting")
            self._head = self._stack.enter_context(reach_cluster(self._config.ray))
            say(f"ray: {'a head of our own' if self._head.own else 'the cluster'} at {self._head.address}")
            self._pool = self._stack.enter_context(_connected(self._head))
            say(f"ray: Prometheus series at {metrics_address()}")
        return self._pool


@contextmanager
def _connected(head: RayHead) -> Iterator[WorkerPool]:
    """The driver's connection, and the workers that it keeps."""
    import ray

    from curation.executor import WorkerPool

    ray.init(address=head.address, log_to_driver=False, logging_level=logging.ERROR)
    pool = WorkerPool()
    try:
        yield pool
    finally:
        pool.close()
        ray.shutdown()


@contextmanager
def _room_for(wanted: Mapping[str, StageResources], most: int | None, num_units: int) -> Iterator[None]:
    """Ask the cluster's autoscaler for room for `most` workers of each stage for the block; nodes that come get workers."""
    if most is None:
        yield
        return
    from ray.autoscaler.sdk import request_resources

    bundles: list[dict[str, float]] = []
    for stage in wanted.values():
        bundle = {"CPU": stage.cpus, "GPU": stage.gpus} if stage.gpus else {"CPU": stage.cpus}
        bundles += [bundle] * min(num_units, most if stage.workers is None else stage.workers)
    request_resources(bundles=bundles)
    try:
        yield
    finally:
        request_resources(bundles=[])


def metrics_address() -> str:
    """Where the node of this driver serves Ray's Prometheus series, ours among them."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def _cluster_size() -> tuple[float, float]:
    """CPUs and GPUs of the nodes that are up."""
    import ray

    resources: Mapping[str, float] = ray.cluster_resources()
    return float(resources.get("CPU", 0)), float(resources.get("GPU", 0))


def workers_for(wanted: dict[str, StageResources], cpus: float, gpus: float, num_units: int) -> StageCount:
    """Workers per stage: what the config says, else an equal number that the cluster can hold at once, at most one per unit.

    Raises:
        PreflightError: with the numbers, when one worker of each stage does not fit, or the asked-for ones do not.
    """
    for kind, have, need in (
        ("CPU", cpus, sum(stage.cpus * (stage.workers or 1) for stage in wanted.values())),
        ("GPU", gpus, sum(stage.gpus * (stage.workers or 1) for stage in wanted.values())),
    ):
        if need > have + 1e-9:
            parts = " + ".join(
                f"{name} {stage.workers or 1} x {getattr(stage, kind.lower() + 's'):g}"
                for name, stage in wanted.items()
            )
            raise PreflightError(
                f"these stages run at the same time and need {need:g} {kind}s ({parts}), the cluster has {have:g}; "
                f"lower ray.{next(iter(wanted))}.{kind.lower()}s or .workers, or use a larger cluster. Ray would wait for ever"
            )
    free = [name for name, stage in wanted.items() if stage.workers is None]
    fixed = [stage for name, stage in wanted.items() if name not in free]
    room: list[float] = []
    for have, asked in ((cpus, "cpus"), (gpus, "gpus")):
        each = sum(getattr(wanted[name], asked) for name in free)
        if each > 0:
            room.append((have - sum(getattr(stage, asked) * (stage.workers or 1) for stage in fixed)) / each)
    shared = max(1, int(min(room) + 1e-9)) if room else 1
    return {name: max(1, min(num_units, stage.workers or shared)) for name, stage in wanted.items()}


def _checked(what: str, units: Sequence[dict[str, Any]], finished: list[dict[str, Any]]) -> list[dict[str, Any]]:
    stopped = sorted(
        f"{unit['label']}: {result['reason']}"
        for unit in finished
        for result in unit["results"].values()
        if result["status"] == "stopped"
    )
    if stopped:
        raise ReelyardError(
            f"{what} stopped: {len(stopped)} of {len(units)} units could not be tried. First: {stopped[0]}\n"
            "what is committed stays; correct this and run the same command again"
        )
    if len(finished) != len(units):
        raise ReelyardError(
            f"{what}: {len(units)} units went in, {len(finished)} came back; run the same command again"
        )
    return sorted(finished, key=lambda unit: str(unit["label"]))


@contextmanager
def _only_errors() -> Iterator[None]:
    """Only errors from NeMo Curator and Ray, each of which sets its own log level anew: the progress lines and the summary are ours."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="ERROR", format="nemo-curator: {message}")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
