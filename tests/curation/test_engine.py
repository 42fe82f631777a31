"""Units on Ray through NeMo Curator's executor: one that kills its Ray worker and one that kills its child cost themselves only."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from curation.commits import CommitStore
from curation.config import CurateConfig
from curation.engine import Engine, metrics_address
from schemas.config import build_config
from schemas.errors import PreflightError, ReelyardError

HERE = Path(__file__).parent
# The driver's side of Ray is in this process: it warns of its own deprecated settings and leaves sockets to the collector.
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One head for this module: two CPUs, one GPU that exists in Ray's books only; it tells its numbers every second."""
    folder = tmp_path_factory.mktemp("engine")
    ray = {"num_cpus": 2, "num_gpus": 1, "others": {"shared": {"cpus": 0.3, "gpus": 0.25}}}
    ray["others"] |= {"crowded": {"cpus": 0.3, "gpus": 0.25, "workers": 5}}
    config = build_config(CurateConfig, {"output": str(folder), "sources": ["/in"], "ray": ray}, source="t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        with Engine(config) as engine:
            yield engine


def _unit(name: str, behaviour: str, stage: str = "analyze", **more: Any) -> dict[str, Any]:
    part = {"unit": name, "arguments": {"behaviour": behaviour, **more}, "timeout_s": 20}
    return {"label": name, "parts": {stage: part}, "results": {}}


def _stages(
    output: Path, store: CommitStore, workers: dict[str, int], stage: str = "analyze", **more: float
) -> Sequence[Any]:
    from curation.stages import FolderStage, StageSpec

    resources = {"cpus": 0.9, "gpus": 0.0} | more
    spec = StageSpec(
        stage=stage,
        group=stage,
        setup={},
        root=str(store.root),
        scratch=str(output / "attempts"),
        logs=str(output / "logs"),
        attempts=2,
        memory_mb=2000,
        cpus=resources["cpus"],
        gpus=resources["gpus"],
        workers=workers[stage],
        jobs="worker_jobs",
        python_path=(str(HERE),),
    )
    return [FolderStage(spec)]


_REASONS = {"kill the worker": "its Ray worker died", "crash": "worker killed by SIGSEGV"}


def _run(engine: Engine, output: Path, units: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    store = CommitStore(output / "commits")
    finished = engine.run("analyze", units, lambda workers: _stages(output, store, workers), ["analyze"])
    return {unit["label"]: unit["results"]["analyze"] for unit in finished}


@pytest.mark.parametrize(
    "behaviours", [{3: "kill the worker"}, {3: "kill the worker", 5: "crash"}], ids=["one deadly", "two deadly"]
)
def test_of_eight_inputs_only_the_deadly_are_quarantined(
    behaviours: dict[int, str], engine: Engine, tmp_path: Path
) -> None:
    results = _run(engine, tmp_path, [_unit(f"u{index}", behaviours.get(index, "fine")) for index in range(8)])
    store = CommitStore(tmp_path / "commits")
    fine = {f"u{index}" for index in range(8) if index not in behaviours}
    assert {name for name, result in results.items() if result["status"] == "done"} == fine
    quarantined = {name: r["reason"] for name, r in results.items() if r["status"] == "quarantined"}
    assert quarantined == {f"u{index}": _REASONS[behaviour] for index, behaviour in behaviours.items()}
    assert store.keys("analyze") == [f"u{index}" for index in range(8)], "the bad ones are committed with their reason"
    assert {name: store.record("analyze", name)["reason"] for name in quarantined} == quarantined
    again = _run(engine, tmp_path, [_unit("u0", "crash"), _unit("u3", "fine")])
    assert [again[name]["attempts"] for name in ("u0", "u3")] == [0, 0], "what is committed is not done again"
    assert again["u3"]["status"] == "quarantined"


def test_a_full_disk_is_nobodys_fault(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ReelyardError, match=r"1 of 1 units could not be tried.*No space left"):
        _run(engine, tmp_path, [_unit("full", "disk full")])
    assert not CommitStore(tmp_path / "commits").is_committed("analyze", "full"), "nothing is committed"


def test_four_workers_share_a_gpu_and_a_fifth_is_refused(engine: Engine, tmp_path: Path) -> None:
    store = CommitStore(tmp_path / "commits")
    most: list[int] = []

    def build(workers: dict[str, int]) -> Sequence[Any]:
        most.append(workers["shared"])
        return _stages(tmp_path, store, workers, "shared", cpus=0.3, gpus=0.25)

    units = [_unit(f"u{index}", "look", "shared", seconds=1) for index in range(6)]
    engine.run("shared", units, build, ["shared"])
    answers = [store.record("shared", f"u{index}")["answer"] for index in range(6)]
    assert most == [4]
    assert {answer["devices"] for answer in answers} == {"0"}, "the child sees the GPU that its worker reserved"
    assert len({answer["pid"] for answer in answers}) > 1
    with pytest.raises(PreflightError, match=r"need 1\.25 GPUs \(crowded 5 x 0\.25\), the cluster has 1"):
        engine.run("crowded", [_unit("v", "look", "crowded")], build, ["crowded"])


def test_ray_serves_our_series(engine: Engine, tmp_path: Path) -> None:
    store = CommitStore(tmp_path / "commits")

    def run(what: str, seconds: int) -> None:
        units = [_unit(f"{what}{index}", "look", seconds=seconds) for index in range(3)]
        engine.run(what, units, lambda workers: _stages(tmp_path, store, workers), ["analyze"])

    run("connected", 0)
    address = metrics_address()
    seen: list[str] = []
    end = threading.Event()

    def read() -> None:
        while not end.wait(0.3):
            with urllib.request.urlopen(address, timeout=30) as answer:
                seen.append(answer.read().decode())

    wanted = [
        r'reelyard_clips_total{[^}]*phase="metered"[^}]*} 6',
        r'reelyard_video_seconds_total{[^}]*phase="metered"[^}]*} 22\.5',
        r'reelyard_units_total{[^}]*phase="metered",result="done"[^}]*} 3',
        r'reelyard_stage_queue{[^}]*phase="metered",stage="analyze"[^}]*} 0',
        r'reelyard_stage_workers{[^}]*phase="metered",stage="analyze"[^}]*} [12]',
        r'reelyard_stage_busy_seconds{[^}]*phase="metered",stage="analyze"[^}]*} [0-9.]+',
    ]
    reader = threading.Thread(target=read)
    reader.start()
    try:
        run("metered", 3)
        deadline = time.monotonic() + 60
        while missing := [line for line in wanted if not any(re.search(line, text) for text in seen)]:
            assert time.monotonic() < deadline, missing
            time.sleep(0.5)
    finally:
        end.set()
        reader.join()


def test_an_address_that_nobody_answers_is_refused_in_time(tmp_path: Path) -> None:
    ray = {"address": "127.0.0.1:9", "start_seconds": 3}
    config = build_config(CurateConfig, {"output": str(tmp_path), "sources": ["/in"], "ray": ray}, source="test")
    with (
        Engine(config) as engine,
        pytest.raises(PreflightError, match=r"no Ray cluster answers at '127\.0\.0\.1:9' within 3 s"),
    ):
        engine.run("analyze", [_unit("u", "fine")], lambda workers: [], ["analyze"])
