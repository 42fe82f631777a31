"""Runs lists of stages over units on Ray, through NeMo Curator's Ray Data executor; the only module that connects to a cluster.

The cluster is reached when the first unit needs it and kept for the rest of the command, so a rerun with nothing to do starts no Ray. Price: the
executor reconnects for every pipeline (about a second), and each pipeline starts its own workers.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from curation.config import CurateConfig, StageResources
from curation.ray_head import RayHead, reach_cluster
from schemas.command import progress, say
from schemas.errors import PreflightError, ReelyardError

__all__ = ["Engine", "StageCount", "workers_for"]

StageCount = dict[str, int]
"""Stage name to its number of workers."""
_POLL_SECONDS = 1.0


class Engine:
    """The cluster of one command; use it as a context manager."""

    def __init__(self, config: CurateConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self._head: RayHead | None = None

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
        is_done: Callable[[dict[str, Any]], bool],
    ) -> list[dict[str, Any]]:
        """Run every unit through the stages; returns the units with their results, sorted by label.

        Args:
            what: name for the progress lines.
            units: `UnitTask.data` of each unit.
            build: worker counts to the list of stages.
            stages: names of those stages, as in the `ray` section of the config.
            is_done: whether a unit is committed, for the progress lines.

        Raises:
            PreflightError: the cluster is too small for one worker of each stage.
            ReelyardError: a unit was stopped, or never came back.
        """
        if not units:
            return []
        head = self._reach()
        import ray
        from nemo_curator.backends.ray_data import RayDataExecutor
        from nemo_curator.pipeline import Pipeline

        from curation.stages import UnitTask

        ray.init(address=head.address, log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        cpus = float(ray.cluster_resources().get("CPU", 0))
        gpus = float(ray.cluster_resources().get("GPU", 0))
        counts = workers_for({name: self._config.stage_resources(name) for name in stages}, cpus, gpus, len(units))
        say(f"{what}: {len(units)} units, workers {', '.join(f'{name} {count}' for name, count in counts.items())}")
        pipeline = Pipeline(what, stages=list(build(counts)))
        tasks = [UnitTask(dataset_name=what, data=unit) for unit in units]
        with _only_errors(), _progress_lines(what, units, is_done):
            finished = pipeline.run(RayDataExecutor(), initial_tasks=tasks) or []
        return _checked(what, units, [task.data for task in finished])

    def _reach(self) -> RayHead:
        if self._head is None:
            say("ray: connecting" if self._config.ray.address else "ray: starting or connecting")
            self._head = self._stack.enter_context(reach_cluster(self._config.ray))
            say(f"ray: {'a head of our own' if self._head.own else 'the cluster'} at {self._head.address}")
        return self._head


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


class _progress_lines:  # noqa: N801 - used as a with-statement helper
    """Shows how many units are committed while the executor blocks the main thread."""

    def __init__(self, what: str, units: Sequence[dict[str, Any]], is_done: Callable[[dict[str, Any]], bool]) -> None:
        self._what = what
        self._units = list(units)
        self._is_done = is_done
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _show(self) -> None:
        for _ in progress(self._committed(), what=self._what, total=len(self._units)):
            pass

    def _committed(self) -> Iterator[str]:
        open_units = self._units
        while open_units:
            ended = self._end.wait(_POLL_SECONDS)
            still_open = []
            for unit in open_units:
                if self._is_done(unit):
                    yield unit["label"]
                else:
                    still_open.append(unit)
            open_units = still_open
            if ended:
                return
