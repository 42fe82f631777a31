"""An executor for NeMo Curator's stages: a few long-lived Ray actors per stage, and queues in the driver.

It takes any `ProcessingStage`, through NeMo Curator's own adapter. What its Ray Data executor does not give is here: workers stay warm from one
pipeline of a command to the next; a unit whose worker or node died goes back into the queue and to whichever worker is free, so a run goes on
with what is left of a cluster and no unit waits for a node that never returns; nodes that join get workers. Price: every task passes through the
driver between two stages, so tasks should be small (ours name files); queues between stages are bounded, so that large ones are at least few.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from nemo_curator.backends.base import BaseExecutor, BaseStageAdapter
from nemo_curator.backends.utils import get_worker_metadata_and_node_id
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import Task
from ray.exceptions import RayError, RayTaskError

from curation.run_status import StageLoad
from schemas.errors import ReelyardError

__all__ = ["UnitExecutor", "WorkerPool"]

_WAIT_SECONDS = 1.0
_RECOUNT_SECONDS = 5.0
_NO_WORKER_SECONDS = 300.0
_STARVED_SECONDS = 30.0
_MOST_DEATHS = 12
"""Workers that one task may cost; our stages quarantine a unit long before, on counts that survive the driver."""
_MOST_START_FAILURES = 5
_QUEUE_PER_WORKER = 2


class _StageWorker(BaseStageAdapter):
    """The actor: holds one stage at a time, set up as NeMo Curator's own actors do it."""

    def __init__(self) -> None:
        self._held: ProcessingStage | None = None

    def load(self, stage: ProcessingStage) -> None:
        self.unload()
        self.stage, self._timer = stage, None
        node, worker = get_worker_metadata_and_node_id()
        stage.setup_on_node(node, worker)
        stage.setup(worker)
        self._held = stage

    def unload(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.teardown()

    def process(self, tasks: list[Task]) -> list[Task]:
        results: list[Task] = self.process_batch(tasks)
        return results


_Key = tuple[float, float, str]
"""CPUs, GPUs and runtime environment of a worker: equal ones can be used again."""


def _key(stage: ProcessingStage) -> _Key:
    return stage.resources.cpus, stage.resources.gpus, repr(stage.runtime_env)


class WorkerPool:
    """Idle workers of one command, kept between its pipelines."""

    def __init__(self) -> None:
        self._idle: list[tuple[_Key, Any]] = []

    def take(self, stage: ProcessingStage) -> Any:
        """An idle worker with the resources of `stage`, else a new one; Ray starts it when there is room."""
        for position, (key, actor) in enumerate(self._idle):
            if key == _key(stage):
                del self._idle[position]
                return actor
        options: dict[str, Any] = {"num_cpus": stage.resources.cpus, "num_gpus": stage.resources.gpus}
        if stage.runtime_env:
            options["runtime_env"] = stage.runtime_env
        made = ray.remote(_StageWorker).options(scheduling_strategy="SPREAD", max_restarts=0, **options)
        return made.remote()

    def give_back(self, stage: ProcessingStage, actor: Any) -> None:
        """Keep an idle worker; its stage is torn down, so its models and child process are gone."""
        actor.unload.remote()
        self._idle.append((_key(stage), actor))

    def keep_for(self, stages: Sequence[ProcessingStage]) -> None:
        """End the workers that none of these stages can use: they hold CPUs."""
        wanted = {_key(stage) for stage in stages}
        for _, actor in [entry for entry in self._idle if entry[0] not in wanted]:
            _end(actor)
        self._idle = [entry for entry in self._idle if entry[0] in wanted]

    def close(self) -> None:
        self.keep_for(())


def _end(actor: Any) -> None:
    with contextlib.suppress(RayError, ValueError):
        ray.kill(actor, no_restart=True)


@dataclass
class _Line:
    """One stage at work: its queue and its workers."""

    stage: ProcessingStage
    wanted: int
    waiting: deque[Task] = field(default_factory=deque)
    starting: dict[Any, Any] = field(default_factory=dict)
    """Reference of the set-up to the worker."""
    idle: list[Any] = field(default_factory=list)
    running: dict[Any, tuple[Any, list[Task], float]] = field(default_factory=dict)
    """Reference of the result to worker, tasks, start."""
    done: int = 0
    busy_seconds: float = 0.0
    start_failures: int = 0
    last_ready: float = field(default_factory=time.monotonic)
    """When a worker of it was last there."""

    @property
    def workers(self) -> int:
        return len(self.starting) + len(self.idle) + len(self.running)

    def load(self) -> StageLoad:
        now = time.monotonic()
        busy = self.busy_seconds + sum(now - start for _, _, start in self.running.values())
        ready = len(self.idle) + len(self.running)
        return StageLoad(self.stage.name, ready, len(self.running), len(self.waiting), self.done, busy)


class UnitExecutor(BaseExecutor):
    """Runs one pipeline; `counts` says how many workers each stage, by name, should have by now."""

    def __init__(
        self,
        pool: WorkerPool,
        counts: Callable[[], dict[str, int]],
        *,
        on_load: Callable[[list[StageLoad]], None] = lambda loads: None,
        on_finished: Callable[[Task], None] = lambda task: None,
    ) -> None:
        super().__init__()
        self._pool, self._counts = pool, counts
        self._on_load, self._on_finished = on_load, on_finished
        self._lines: list[_Line] = []
        self._finished: list[Task] = []
        self._deaths: Counter[str] = Counter()
        self._counted = self._progressed = time.monotonic()

    def execute(self, stages: list[ProcessingStage], initial_tasks: list[Task] | None = None) -> list[Task]:  # type: ignore[override]
        """Every task through every stage; results in the order in which they end.

        Raises:
            ReelyardError: a stage raised, no worker could be started, or one task ended worker after worker.
        """
        counts = self._counts()
        self._lines = [_Line(stage, counts.get(stage.name, stage.num_workers() or 1)) for stage in stages]
        self._lines[0].waiting.extend(initial_tasks or [])
        self._pool.keep_for(stages)
        try:
            while any(line.waiting or line.running for line in self._lines):
                self._staff()
                self._assign()
                self._on_load([line.load() for line in self._lines])
                self._collect()
        finally:
            self._on_load([line.load() for line in self._lines])
            self._dismiss()
        return self._finished

    def _staff(self) -> None:
        """Workers up to the wanted number, never more than there is work; workers that will get none make room for those that wait."""
        now = time.monotonic()
        if now - self._counted > _RECOUNT_SECONDS:
            self._counted = now
            counts = self._counts()
            for line in self._lines:
                line.wanted = max(1, counts.get(line.stage.name, line.wanted))
        ended = True
        for line in self._lines:
            ended = ended and not line.waiting and not line.running
            if ended:
                while line.idle:
                    _end(line.idle.pop())
                continue
            while line.workers < line.wanted:
                actor = self._pool.take(line.stage)
                line.starting[actor.load.remote(line.stage)] = actor
        self._make_room(now)
        if any(line.running or line.idle for line in self._lines):
            self._progressed = now
        elif now - self._progressed > _NO_WORKER_SECONDS:
            raise ReelyardError(
                f"no worker could be started within {_NO_WORKER_SECONDS:g} s; the cluster now has "
                f"{ray.cluster_resources().get('CPU', 0):g} CPUs. What is committed stays; run the same command again"
            )

    def _make_room(self, now: float) -> None:
        """A stage that lost its last worker gets the room of an idle one: the stages before it may stand still because of it."""
        for line in self._lines:
            if line.idle or line.running or not line.waiting:
                line.last_ready = now
            elif now - line.last_ready > _STARVED_SECONDS:
                line.last_ready = now
                for other in self._lines:
                    if other is not line and other.idle:
                        _end(other.idle.pop())
                        other.wanted = max(1, other.wanted - 1)
                        break

    def _assign(self) -> None:
        """Give waiting tasks to idle workers, unless the next stage has enough waiting."""
        for line, after in zip(self._lines, [*self._lines[1:], None], strict=True):
            size = line.stage.batch_size or 1
            while line.waiting and line.idle:
                if after is not None and len(after.waiting) >= _QUEUE_PER_WORKER * max(1, after.wanted):
                    break
                actor = line.idle.pop()
                tasks = [line.waiting.popleft() for _ in range(min(size, len(line.waiting)))]
                line.running[actor.process.remote(tasks)] = (actor, tasks, time.monotonic())

    def _collect(self) -> None:
        """Wait a moment for results and for workers that become ready."""
        waiting = [ref for line in self._lines for ref in (*line.running, *line.starting)]
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0) if waiting else ([], [])
        if not ready:
            ready, _ = ray.wait(waiting, num_returns=1, timeout=_WAIT_SECONDS)
        for ref in ready:
            for index, line in enumerate(self._lines):
                if ref in line.running:
                    self._take_result(index, line, ref)
                elif ref in line.starting:
                    self._take_worker(line, ref)

    def _take_result(self, index: int, line: _Line, ref: Any) -> None:
        actor, tasks, start = line.running.pop(ref)
        line.busy_seconds += time.monotonic() - start
        try:
            results = ray.get(ref)
        except RayTaskError as error:
            raise ReelyardError(f"stage {line.stage.name} raised {_cause(error)}") from error
        except RayError as error:
            _end(actor)
            self._again(line, tasks, error)
            return
        line.idle.append(actor)
        line.done += len(tasks)
        if index + 1 < len(self._lines):
            self._lines[index + 1].waiting.extend(results)
        else:
            self._finished.extend(results)
            for task in results:
                self._on_finished(task)

    def _again(self, line: _Line, tasks: list[Task], error: RayError) -> None:
        """Tasks whose worker died go to the front of the queue."""
        for task in reversed(tasks):
            self._deaths[task.task_id] += 1
            if self._deaths[task.task_id] >= _MOST_DEATHS:
                raise ReelyardError(
                    f"stage {line.stage.name}: {_MOST_DEATHS} workers died on one task ({task.task_id}); "
                    f"the last one: {_cause(error)}"
                ) from error
            line.waiting.appendleft(task)

    def _take_worker(self, line: _Line, ref: Any) -> None:
        actor = line.starting.pop(ref)
        try:
            ray.get(ref)
        except RayTaskError as error:
            raise ReelyardError(f"stage {line.stage.name} could not be set up: {_cause(error)}") from error
        except RayError as error:
            _end(actor)
            line.start_failures += 1
            if line.start_failures >= _MOST_START_FAILURES:
                raise ReelyardError(
                    f"{line.start_failures} workers of stage {line.stage.name} died while starting; the last one: {_cause(error)}"
                ) from error
            return
        line.start_failures = 0
        line.idle.append(actor)

    def _dismiss(self) -> None:
        """Idle workers are kept for the next pipeline; the others end."""
        for line in self._lines:
            for actor in line.idle:
                self._pool.give_back(line.stage, actor)
            for actor in (*line.starting.values(), *(entry[0] for entry in line.running.values())):
                _end(actor)


def _cause(error: RayError) -> str:
    """One line of what went wrong."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"
