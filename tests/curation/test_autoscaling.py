"""Ray's own autoscaler, with nodes that are processes of this machine: a run asks for room, a node comes, and gets a worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from curation.commits import CommitStore
from curation.config import CurateConfig
from curation.engine import Engine
from curation.ray_head import free_ports
from schemas.config import build_config

HERE = Path(__file__).parent
UNITS = 60
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def _launcher(port: int) -> dict[str, Any]:
    """What `ray up` would hand to the head: one CPU is there, one node more may come."""
    node = {"resources": {"CPU": 1, "object_store_memory": 80 << 20}, "node_config": {}, "min_workers": 0}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "processes",
        "max_workers": 1,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"},
        "available_node_types": {"head": {**node, "max_workers": 0}, "cpu": {**node, "max_workers": 1}},
        "head_node_type": "head",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{f"{name}_commands": [] for name in commands},
    }


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ra", ignore_cleanup_errors=True) as name:
        home = Path(name)
        port, client = free_ports(2)
        (home / "launcher.json").write_text(json.dumps(_launcher(port)))
        command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1"]
        command += [
            "--disable-usage-stats",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            f"--temp-dir={home / 'r'}",
        ]
        command += [f"--ray-client-server-port={client}", "--include-dashboard=false", "--object-store-memory=83886080"]
        command.append(f"--autoscaling-config={home / 'launcher.json'}")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "PYTHONPATH": str(HERE.parents[1]),
        }
        log = home / "start.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
        try:
            deadline = time.monotonic() + 200
            while b"Ray runtime started" not in log.read_bytes():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            time.sleep(4)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_cluster_grows_while_units_wait(address: str, tmp_path: Path) -> None:
    from curation.stages import FolderStage, StageSpec

    store = CommitStore(tmp_path / "commits")
    ray = {"address": address, "scale_to_workers": 2, "start_seconds": 200}
    config = build_config(CurateConfig, {"output": str(tmp_path), "sources": ["/in"], "ray": ray}, source="t")
    first: list[int] = []

    def build(workers: dict[str, int]) -> Sequence[Any]:
        first.append(workers["analyze"])
        places = {"root": str(store.root), "scratch": str(tmp_path / "attempts"), "logs": str(tmp_path / "logs")}
        limits = {"attempts": 2, "memory_mb": 2000, "cpus": 0.9, "gpus": 0.0, "workers": workers["analyze"]}
        jobs = {"jobs": "worker_jobs", "python_path": (str(HERE),), "near": str(tmp_path / "near")}
        return [FolderStage(StageSpec(stage="analyze", group="analyze", setup={}, **places, **limits, **jobs))]

    units = []
    for index in range(UNITS):
        part = {"unit": f"u{index}", "arguments": {"behaviour": "look", "seconds": 2}, "timeout_s": 60}
        units.append({"label": f"u{index:02}", "parts": {"analyze": part}, "results": {}})
    with Engine(config) as engine:
        finished = engine.run("analyze", units, build, ["analyze"])
    assert first == [1], "one CPU was there at the start"
    assert [unit["results"]["analyze"]["status"] for unit in finished] == ["done"] * UNITS
    pids = {store.record("analyze", f"u{index}")["answer"]["pid"] for index in range(UNITS)}
    assert len(pids) == 2, "the node that came got a worker of its own"
