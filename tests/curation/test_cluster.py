"""A cluster of three nodes that loses one in mid-run: the run goes on with the others, and its tables and tars are those of one machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from encoders.registry import fetch

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPHS = ("chelsea", "china", "flower", "coffee", "rocket")
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, media_cases: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    media_cases.trimmed(fetch("media.bigbuckbunny"), folder / "bunny.mp4", seconds=3)
    media_cases.trimmed(fetch("media.bikes"), folder / "bikes.mp4", seconds=3)
    for name in PHOTOGRAPHS:
        path = fetch(f"media.{name}")
        shutil.copyfile(path, folder / f"{name}{path.suffix}")
    return folder


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Three nodes of one CPU each, on this machine, the driver's one among them."""
    from ray.cluster_utils import Cluster

    store = 80 << 20
    head = {"num_cpus": 1, "object_store_memory": store, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head, connect=False)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=store)
        yield cluster
    finally:
        cluster.shutdown()


def _start(source: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    settings = [f"output={output}", f"sources={json.dumps([str(source)])}", "pack.target_shard_samples=3"]
    overrides = [word for setting in (*settings, "ray.start_seconds=300", *more) for word in ("--set", setting)]
    config = ROOT / "configs" / "curate_demo.yaml"
    return subprocess.Popen(
        [sys.executable, str(ROOT / "curation" / "run.py"), "--config", str(config), *overrides],
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _digests(output: Path) -> dict[str, str]:
    files = [path for folder in ("tables", "sets") for path in sorted((output / folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_node_is_lost_in_mid_run_and_nothing_else(source: Path, cluster: Any, tmp_path: Path) -> None:
    analyses = tmp_path / "many" / "commits" / "analyze"
    removed: list[int] = []

    def remove() -> None:
        while not (done := [path for path in analyses.glob("*") if path.name[0] != "."]):
            time.sleep(0.05)
        removed.append(len(done))
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)

    threading.Thread(target=remove, daemon=True).start()
    with _start(source, tmp_path / "many", f"ray.address={cluster.address}") as many:
        said, _ = many.communicate(timeout=900)
    assert many.returncode == 0, said
    assert "workers analyze 3" in said, "a worker on each node"
    assert removed and removed[0] < 2 + len(PHOTOGRAPHS), "in mid-run"
    assert len([node for node in cluster.list_all_nodes() if node]) == 2
    with _start(source, tmp_path / "one") as one:
        said, _ = one.communicate(timeout=900)
    assert one.returncode == 0, said
    assert _digests(tmp_path / "many") == _digests(tmp_path / "one")
