"""The caption stage: a batch of sources, of which each is committed, quarantined or left open on its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.caption import CaptionSettings
from curation.caption_stage import CaptionStage
from curation.captioning.settings import ServerSettings
from curation.captioning.worker import CaptionSource
from curation.commits import DONE, QUARANTINED, CommitStore
from curation.stages import STOPPED, StageSpec, UnitTask
from schemas.tables import CLIPS, LABELS, read_table, table_from_rows, write_table

HERE = Path(__file__).parent
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path) -> CommitStore:
    return CommitStore(tmp_path / "commits")


@pytest.fixture
def run(tmp_path: Path, store: CommitStore, settings: Callable[..., ServerSettings]) -> Iterator[Run]:
    """Run one batch of these sources in a worker process; the stage's result."""
    stages = []

    def of(sources: list[CaptionSource], **changes: Any) -> dict[str, Any]:
        members = []
        for source in sources:
            analysis = tmp_path / "analysis" / source.unit
            write_table(analysis / "clips.parquet", table_from_rows(CLIPS, source.rows), CLIPS)
            ids = [row["clip_id"] for row in source.rows]
            member = {"unit": source.unit, "analysis": str(analysis), "path": source.path, "clip_ids": ids}
            members.append({**member, "label": source.path, "timeout_s": 60.0})
        chosen = CaptionSettings(captioner="server", server=settings(**changes))
        spec = StageSpec(
            stage="caption",
            group="caption",
            setup={"settings": chosen.model_dump(mode="json"), "cache_dir": None},
            root=str(store.root),
            scratch=str(tmp_path / "attempts"),
            logs=str(tmp_path / "logs"),
            attempts=2,
            memory_mb=2000,
            cpus=0.9,
            gpus=0.0,
            workers=1,
            jobs="caption_jobs",
            python_path=(str(HERE),),
        )
        stage = CaptionStage(spec)
        stage.setup()
        stages.append(stage)
        part = {"unit": "batch", "arguments": {"members": members}, "timeout_s": 120.0}
        task = UnitTask(dataset_name="t", data={"label": "batch", "parts": {"caption": part}, "results": {}})
        result: dict[str, Any] = stage.process(task).data["results"]["caption"]
        return result

    yield of
    for stage in stages:
        stage.teardown()


def _captions(store: CommitStore, unit: str) -> int:
    return int(read_table(store.folder("caption", unit) / "labels.parquet", LABELS).num_rows)


def test_a_source_that_kills_the_process_costs_itself_only(
    run: Run, store: CommitStore, server: Any, photographs: Callable[[int], list[CaptionSource]]
) -> None:
    sources = photographs(4)
    deadly = Path(sources[1].path).with_name("deadly.png")
    shutil.move(sources[1].path, deadly)
    sources[1].path = str(deadly)
    result = run(sources)
    assert result["status"] == QUARANTINED and "SIGSEGV" in result["reason"]
    records = {source.unit: store.record("caption", source.unit) for source in sources}
    assert [records[source.unit]["status"] for source in sources] == [DONE, QUARANTINED, DONE, DONE]
    assert "SIGSEGV" in records["unit001"]["reason"]
    assert [_captions(store, f"unit00{number}") for number in (0, 2, 3)] == [1, 1, 1]
    assert all(len(times) == 1 for times in server.times.values()), "what was answered is not asked again"


def test_a_server_that_goes_away_stops_the_unit_and_keeps_what_is_done(
    run: Run, store: CommitStore, server: Any, photographs: Callable[[int], list[CaptionSource]]
) -> None:
    sources = photographs(4)

    def gone_after_two(clip_id: str, asked: int) -> str:
        server.alive = server.alive and len(server.answered) < 2
        return "ok" if server.alive else "dropped"

    server.behave = gone_after_two
    result = run(sources, max_in_flight=1, outage_s=0.5)
    assert result["status"] == STOPPED and "has not answered for 0.5 s" in result["reason"]
    assert store.keys("caption") == ["unit000", "unit001"], "nothing is blamed on the others"
    server.behave, server.alive = lambda clip_id, asked: "ok", True
    assert run(sources)["status"] == DONE
    assert len(store.keys("caption")) == 4
    assert not list((store.root / "caption").glob(".tmp-*"))


def test_reasons_of_clips_are_in_the_record(
    run: Run, store: CommitStore, server: Any, photographs: Callable[[int], list[CaptionSource]]
) -> None:
    sources = photographs(2)
    bad = sources[0].rows[0]["clip_id"]
    server.behave = lambda clip_id, asked: "refused" if clip_id == bad else "ok"
    assert run(sources)["status"] == DONE
    record = store.record("caption", "unit000")
    assert record["status"] == DONE and record["answer"]["failed"] == {
        bad: "caption server: the model refused: I cannot help with that"
    }
    assert (_captions(store, "unit000"), _captions(store, "unit001")) == (0, 1)
