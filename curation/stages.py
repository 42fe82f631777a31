"""Curation's stages for NeMo Curator: each does one unit of work in its child process and commits it by rename.

`process` never raises, because an exception there ends the whole run: a failure becomes a result with a reason, and after `attempts` failures the
unit is committed as quarantined, so that nothing is tried for ever. Attempts are also counted on disk, per run, for the case that the Ray worker
itself is killed: Ray would start the same unit again without end. A stage author writes `publish`; this base owns attempts, timing and commits.
Price: a task is a few hundred bytes of JSON that names files, so workers need to see the output: the same folder, or its object store.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_curator.backends.base import WorkerMetadata
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import Task

from curation.attempts import count_attempt
from curation.commits import DONE, QUARANTINED, CommitStore
from curation.encoding.worker import LATENTS_INDEX
from curation.near import SourceChangedError, bring_near, check_unchanged, default_near, near_folder
from curation.object_commits import open_commits
from curation.sandbox import ItemFailureError, Sandbox, WorkerStopError

__all__ = ["STOPPED", "FolderStage", "LatentStage", "StageSpec", "UnitTask", "WorkerStage"]

STOPPED = "stopped"
"""Status of a unit that could not be tried (weights gone, disk full): not committed, and the phase fails with the reason."""


@dataclass
class UnitTask(Task[dict[str, Any]]):
    """One unit of work: `data["parts"]` has the work of each stage by the stage's name, `data["results"]` what became of it.

    A part has `unit`, `arguments`, `timeout_s`; for the status also `counts` (clips, video_seconds; a job's answer may have them instead) and
    `weight` (how much work it is, in any measure, for the estimate of the end).
    """

    @property
    def num_items(self) -> int:
        return 1

    def validate(self) -> bool:
        return set(self.data) == {"label", "parts", "results"}


@dataclass(frozen=True)
class StageSpec:
    """What a stage needs to know, plain values only: it is pickled to the workers."""

    stage: str
    """Name in `data["parts"]`, and the job that the child runs."""
    group: str
    """Group of the commits."""
    setup: dict[str, Any]
    """What the child's `load` gets."""
    root: str
    """Address of the commit store."""
    scratch: str
    """Address of this run's attempt counts."""
    logs: str
    """Folder of the children's standard error."""
    attempts: int
    memory_mb: int
    cpus: float
    gpus: float
    workers: int
    jobs: str = "curation.jobs"
    """Module of the child's jobs."""
    python_path: tuple[str, ...] = field(default=())
    """Where else the child may import from."""
    output: str = ""
    """Address of the run's output; addresses below it in a unit's arguments are copied near, if it is on an object store."""
    near: str = ""
    """Local folder for such copies; "": `near.default_near`."""


class WorkerStage(ProcessingStage[UnitTask, UnitTask]):
    """Base of the stages: runs one part of a unit in the sandbox. Subclasses say how its files are committed."""

    name = "worker"
    resources = Resources(cpus=1.0)
    batch_size = 1

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec
        self.name = spec.stage
        self.resources = Resources(cpus=spec.cpus, gpus=spec.gpus)
        self._sandbox: Sandbox | None = None
        self._stopped: str | None = None

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def num_workers(self) -> int | None:
        return self.spec.workers

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Once per worker: the sandbox; its child starts with the first unit."""
        spec = self.spec
        log = Path(spec.logs) / f"{spec.stage}-{os.uname().nodename}-{os.getpid()}.log"
        self._sandbox = Sandbox(jobs=spec.jobs, log=log, memory_mb=spec.memory_mb, python_path=spec.python_path)

    def teardown(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()

    def process(self, task: UnitTask) -> UnitTask:
        """The task with this stage's result added: status, reason, seconds, attempts."""
        part = task.data["parts"].get(self.spec.stage)
        if part is not None:
            start = time.monotonic()
            try:
                result = self._run(part)
            except Exception as error:  # a defect or the file system: one row with a reason, and the phase fails
                result = {"status": STOPPED, "reason": f"{type(error).__name__}: {error}", "attempts": 0}
            result["seconds"] = time.monotonic() - start
            task.data["results"][self.spec.stage] = result
        return task

    def _run(self, part: dict[str, Any]) -> dict[str, Any]:
        if self._stopped is not None:
            return {"status": STOPPED, "reason": self._stopped, "attempts": 0}
        store = self.open_store()
        committed = self.committed(store, part)
        if committed is not None:  # its worker died after the commit, before the driver heard of it
            return {"status": committed, "reason": None, "attempts": 0, "counts": part.get("counts")}
        reason, again = "its Ray worker died", False
        attempts = count_attempt(self.spec.scratch, self.spec.stage, part["unit"])
        while attempts <= self.spec.attempts:
            try:
                answer = self._attempt(store, part)
                counts = answer.get("counts") if isinstance(answer, dict) else None
                return {
                    "status": DONE,
                    "reason": None,
                    "attempts": attempts,
                    "counts": counts or part.get("counts"),
                }
            except ItemFailureError as failure:
                reason, again = str(failure), isinstance(failure, SourceChangedError)
            except WorkerStopError as stop:
                self._stopped = str(stop)
                return {"status": STOPPED, "reason": self._stopped, "attempts": attempts}
            if attempts == self.spec.attempts:
                break
            attempts = count_attempt(self.spec.scratch, self.spec.stage, part["unit"])
        if again:
            store.mark_for_retry(self.units(part))
        self.quarantine(store, part, reason)
        return {"status": QUARANTINED, "reason": reason, "attempts": min(attempts, self.spec.attempts)}

    def _attempt(self, store: CommitStore, part: dict[str, Any]) -> Any:
        assert self._sandbox is not None
        work, copies = store.workplace(self.spec.group, part["unit"]), self._near() / "copies"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            check_unchanged(part["arguments"])
            arguments = {**bring_near(part["arguments"], self.spec.output, copies), "folder": str(work)}
            try:
                answer = self._sandbox.call(self.spec.stage, self.spec.setup, arguments, timeout_s=part["timeout_s"])
            except (ItemFailureError, WorkerStopError):
                self.salvage(store, part, work)
                raise
            check_unchanged(part["arguments"])
            self.publish(store, part, work, answer)
            return answer
        finally:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(copies, ignore_errors=True)

    def _near(self) -> Path:
        """This worker's own local folder."""
        return near_folder(Path(self.spec.near) if self.spec.near else default_near())

    def open_store(self) -> CommitStore:
        """The commit store, asked about single units."""
        return open_commits(self.spec.root, self._near() / self.spec.group, one_by_one=True)

    def units(self, part: dict[str, Any]) -> list[tuple[str, str]]:
        """(group, key) of what `quarantine` commits."""
        return [(self.spec.group, part["unit"])]

    def committed(self, store: CommitStore, part: dict[str, Any]) -> str | None:
        """Status of the unit when it is committed, else None."""
        if not store.is_committed(self.spec.group, part["unit"]):
            return None
        return str(store.record(self.spec.group, part["unit"])["status"])

    def publish(self, store: CommitStore, part: dict[str, Any], work: Path, answer: Any) -> None:
        """Commit what the child wrote into `work`."""
        raise TypeError(f"stage {self.name} does not say how its units are committed")

    def salvage(self, store: CommitStore, part: dict[str, Any], work: Path) -> None:
        """Commit what an attempt that failed has finished all the same; nothing, unless a stage says what that is."""

    def quarantine(self, store: CommitStore, part: dict[str, Any], reason: str) -> None:
        """Commit that this unit failed, and why."""
        raise TypeError(f"stage {self.name} does not say how its units are quarantined")


class FolderStage(WorkerStage):
    """A unit whose files are one folder: analyze, text, pack."""

    name = "folder"

    def publish(self, store: CommitStore, part: dict[str, Any], work: Path, answer: Any) -> None:
        with store.unit(self.spec.group, part["unit"], {"status": DONE, "reason": None, "answer": answer}) as folder:
            _move(work, folder)

    def quarantine(self, store: CommitStore, part: dict[str, Any], reason: str) -> None:
        with store.unit(self.spec.group, part["unit"], {"status": QUARANTINED, "reason": reason, "answer": None}):
            pass


class LatentStage(WorkerStage):
    """Latents of the clips of one source: the unit of work is a source, the unit of the cache is a clip in a set.

    `part["targets"]` lists [clip_id, set, key]; the child's files are named `<clip_id>.<set>.*`.
    """

    name = "latents"

    def committed(self, store: CommitStore, part: dict[str, Any]) -> str | None:
        every = all(store.is_committed(f"{self.spec.group}/{name}", key) for _, name, key in part["targets"])
        return DONE if every else None

    def publish(self, store: CommitStore, part: dict[str, Any], work: Path, answer: Any) -> None:
        failed = {(row["clip_id"], row["set"]): row["reason"] for row in answer}
        index = json.loads((work / LATENTS_INDEX).read_text(encoding="utf-8"))
        entries = {(entry["clip_id"], entry["set"]): entry for entry in index}
        for clip, set_name, key in part["targets"]:
            reason = failed.get((clip, set_name))
            record = {"status": QUARANTINED, "reason": reason, "clip_id": clip, "entry": None}
            if reason is None:
                record |= {"status": DONE, "entry": entries[clip, set_name]}
            with store.unit(f"{self.spec.group}/{set_name}", key, record) as folder:
                for path in sorted(work.glob(f"{clip}.{set_name}.*")) if reason is None else ():
                    os.rename(path, folder / path.name.removeprefix(f"{clip}.{set_name}."))

    def units(self, part: dict[str, Any]) -> list[tuple[str, str]]:
        return [(f"{self.spec.group}/{set_name}", key) for _, set_name, key in part["targets"]]

    def quarantine(self, store: CommitStore, part: dict[str, Any], reason: str) -> None:
        for clip, set_name, key in part["targets"]:
            record = {"status": QUARANTINED, "reason": reason, "clip_id": clip, "entry": None}
            with store.unit(f"{self.spec.group}/{set_name}", key, record):
                pass


def _move(work: Path, folder: Path) -> None:
    for path in sorted(work.iterdir()):
        os.rename(path, folder / path.name)
