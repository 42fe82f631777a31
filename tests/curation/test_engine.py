"""Units on Ray through NeMo Curator's executor: one that kills its Ray worker and one that kills its child cost themselves only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from curation.commits import CommitStore
from curation.config import CurateConfig
from curation.engine import Engine
from schemas.config import build_config
from schemas.errors import PreflightError, ReelyardError

HERE = Path(__file__).parent
# The driver's side of Ray is in this process: it warns of its own deprecated settings and leaves sockets to the collector.
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def _unit(name: str, behaviour: str) -> dict[str, Any]:
    part = {"unit": name, "arguments": {"behaviour": behaviour}, "timeout_s": 20}
    return {"label": name, "parts": {"analyze": part}, "results": {}}


def _stages(output: Path, store: CommitStore, workers: dict[str, int]) -> Sequence[Any]:
    from curation.stages import FolderStage, StageSpec

    spec = StageSpec(
        stage="analyze",
        group="analyze",
        setup={},
        root=str(store.root),
        scratch=str(output / "attempts"),
        logs=str(output / "logs"),
        attempts=2,
        memory_mb=2000,
        cpus=0.9,
        gpus=0.0,
        workers=workers["analyze"],
        jobs="worker_jobs",
        python_path=(str(HERE),),
    )
    return [FolderStage(spec)]


def test_eight_inputs_two_of_them_deadly(tmp_path: Path) -> None:
    behaviours = {3: "kill the worker", 5: "crash"}
    store = CommitStore(tmp_path / "commits")
    config = build_config(
        CurateConfig, {"output": str(tmp_path), "sources": ["/in"], "ray": {"num_cpus": 2}}, source="t"
    )

    def run(engine: Engine, units: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        finished = engine.run(
            "analyze",
            units,
            lambda workers: _stages(tmp_path, store, workers),
            ["analyze"],
            lambda unit: store.is_committed("analyze", unit["label"]),
        )
        return {unit["label"]: unit["results"]["analyze"] for unit in finished}

    with Engine(config) as engine:
        results = run(engine, [_unit(f"u{index}", behaviours.get(index, "fine")) for index in range(8)])
        fine = [f"u{index}" for index in range(8) if index not in behaviours]
        assert [results[name]["status"] for name in fine] == ["done"] * 6
        assert (results["u3"]["status"], results["u3"]["reason"]) == ("quarantined", "its Ray worker died")
        assert (results["u5"]["status"], results["u5"]["reason"]) == ("quarantined", "worker killed by SIGSEGV")
        assert store.keys("analyze") == [f"u{index}" for index in range(8)], (
            "the bad ones are committed with their reason"
        )
        assert store.record("analyze", "u5")["reason"] == "worker killed by SIGSEGV"
        with pytest.raises(ReelyardError, match=r"1 of 1 units could not be tried.*No space left"):
            run(engine, [_unit("full", "disk full")])
        assert not store.is_committed("analyze", "full"), "a full disk is nobody's fault: nothing is committed"


def test_an_address_that_nobody_answers_is_refused_in_time(tmp_path: Path) -> None:
    ray = {"address": "127.0.0.1:9", "start_seconds": 3}
    config = build_config(CurateConfig, {"output": str(tmp_path), "sources": ["/in"], "ray": ray}, source="test")
    with (
        Engine(config) as engine,
        pytest.raises(PreflightError, match=r"no Ray cluster answers at '127\.0\.0\.1:9' within 3 s"),
    ):
        engine.run("analyze", [_unit("u", "fine")], lambda workers: [], ["analyze"], lambda unit: False)
