"""Stages whose store is on an S3 server: commits and counts go there, sources come near, and nothing stays behind on the node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.commits import DONE, QUARANTINED
from curation.config import SourceEntry
from curation.content_hashes import HashCache, hash_sources
from curation.object_commits import ObjectCommits
from curation.objects import Objects
from curation.requests import SourceRequest
from curation.sources import discover
from curation.stages import STOPPED, FolderStage, StageSpec, UnitTask

HERE = Path(__file__).parent


@pytest.fixture
def stage(bucket: str, tmp_path: Path) -> Iterator[FolderStage]:
    spec = StageSpec(
        stage="analyze",
        group="analyze",
        setup={},
        root=f"{bucket}/run/commits",
        scratch=f"{bucket}/run/.tmp-attempts/now",
        logs=str(tmp_path / "logs"),
        attempts=2,
        memory_mb=2000,
        cpus=0.9,
        gpus=0.0,
        workers=1,
        jobs="worker_jobs",
        python_path=(str(HERE),),
        output=f"{bucket}/run",
        near=str(tmp_path / "near"),
    )
    stage = FolderStage(spec)
    stage.setup()
    yield stage
    stage.teardown()


def _process(stage: FolderStage, unit: str, behaviour: str = "fine", **arguments: Any) -> dict[str, Any]:
    part = {"unit": unit, "arguments": {"behaviour": behaviour, **arguments}, "timeout_s": 20}
    done = stage.process(UnitTask(dataset_name="t", data={"label": unit, "parts": {"analyze": part}, "results": {}}))
    result: dict[str, Any] = done.data["results"]["analyze"]
    return result


def _source(bucket: str, tmp_path: Path) -> SourceRequest:
    Objects(bucket).write("films/a.mp4", b"film")
    found, _ = discover([SourceEntry(folder=f"{bucket}/films")])
    (request,), _ = hash_sources(found, HashCache(tmp_path / "hashes.json"))
    return request


def test_a_unit_is_committed_once_and_nothing_stays_near(stage: FolderStage, bucket: str, tmp_path: Path) -> None:
    request = _source(bucket, tmp_path).to_json()
    assert _process(stage, "u", request=request)["status"] == DONE
    store = ObjectCommits(stage.spec.root, tmp_path / "copies")
    assert store.record("analyze", "u")["files"] == {"result.txt": 4}
    again = _process(stage, "u", "crash", request=request)
    assert (again["status"], again["attempts"]) == (DONE, 0), "it was committed before its worker died"
    assert not [path for path in (tmp_path / "near").rglob("*") if path.is_file()]


def test_a_unit_that_kills_its_child_is_quarantined_and_its_attempts_are_counted_there(
    stage: FolderStage, bucket: str, tmp_path: Path
) -> None:
    result = _process(stage, "u", "crash")
    assert (result["status"], result["attempts"], result["reason"]) == (QUARANTINED, 2, "worker killed by SIGSEGV")
    assert Objects(stage.spec.scratch).read("analyze-u") == b".."
    assert ObjectCommits(stage.spec.root, tmp_path / "copies").record("analyze", "u")["status"] == QUARANTINED


def test_a_source_that_vanished_is_a_reason_now_and_tried_again_by_the_next_command(
    stage: FolderStage, bucket: str, tmp_path: Path
) -> None:
    request = _source(bucket, tmp_path)
    Objects(bucket).remove(["films/a.mp4"])
    result = _process(stage, "u", request=request.to_json())
    assert result["status"] == QUARANTINED and result["reason"].startswith("is not there (404)")
    store = ObjectCommits(stage.spec.root, tmp_path / "copies")
    assert store.is_committed("analyze", "u")
    assert store.forget_marked() == 1 and store.forget_marked() == 0
    Objects(bucket).write("films/a.mp4", b"film")
    restored = stage.spec.scratch.replace("now", "next")
    stage.spec = StageSpec(**{**vars(stage.spec), "scratch": restored})
    assert _process(stage, "u", request=request.to_json())["status"] == DONE


def test_a_store_that_takes_nothing_stops_the_phase(stage: FolderStage, s3: Any) -> None:
    s3.fail({"path": "/run/commits/", "method": "PUT", "status": 403, "times": 99})
    result = _process(stage, "u")
    assert result["status"] == STOPPED and "PermissionError" in result["reason"]
