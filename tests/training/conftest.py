"""What the training tests share: a small set and plan, a small network's configuration, and processes that train with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.tiny_plans import Plan, write_plan
from tests.training.tiny_sets import TEXT_WIDTH, Clip, pack_set

PROJECT = Path(__file__).resolve().parents[2]


def train_config(**changes: Any) -> dict[str, Any]:
    """A small network with routing and alignment on; `changes` replace whole sections."""
    return {
        "model": {
            "width": 32,
            "heads": 2,
            "head_width": 16,
            "dual_blocks": 1,
            "single_blocks": 3,
            "decoder_blocks": 1,
            "text_width": TEXT_WIDTH,
            "image_width": None,
            "rope_axes": [4, 6, 6],
            "timestep_width": 32,
        },
        "optimizer": {"lr": 1e-3, "warmup_steps": 3},
        "tread": {"start_block": 1, "end_block": 2, "drop_ratio": 0.5},
        "repa": {"tap_block": 1, "weight": 0.5, "hidden_width": 24},
        "ema_decays": [0.99],
        "i2v": {"probability": 0.3},
        "checkpoint": {"every_steps": 4, "keep": 3},
        "seed": 7,
        "device": "cpu",
        **changes,
    }


@pytest.fixture(scope="session")
def make_set() -> Callable[..., Path]:
    """`pack_set`."""
    return pack_set


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """`write_plan`."""
    return write_plan


@pytest.fixture(scope="session")
def clip_type() -> type[Clip]:
    """`Clip`."""
    return Clip


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 40 clips in four buckets and six shards; not to be changed."""
    return pack_set(tmp_path_factory.mktemp("sets") / "tiny")


@pytest.fixture(scope="session")
def tiny_plan(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Ten steps of two rows on two lanes over `tiny_set`; not to be changed."""
    return write_plan(tmp_path_factory.mktemp("plans") / "plan", [tiny_set])


@pytest.fixture(scope="session")
def small_config() -> Callable[..., dict[str, Any]]:
    """`train_config`."""
    return train_config


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write `train_config(**changes)` as YAML and return its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path_factory.mktemp("configs") / "train.yaml"
        path.write_text(yaml.safe_dump(train_config(**changes)))
        return path

    return write


@pytest.fixture(scope="session")
def start_training() -> Callable[..., subprocess.Popen[str]]:
    """Start `training/train.py` with arguments, with torchrun for several processes, else alone."""

    def start(*arguments: object, processes: int = 1) -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        return subprocess.Popen(
            [sys.executable, *(launcher if processes > 1 else []), "training/train.py", *map(str, arguments)],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def run_arguments(tiny_set: Path, tiny_plan: Plan, config_file: Callable[..., Path]) -> Callable[..., list[str]]:
    """Arguments of a training run on `tiny_set` into a folder; `changes` go into the configuration."""

    def arguments(
        output: Path, *extra: object, plan: Path | None = None, samples: Path | None = None, **changes: Any
    ) -> list[str]:
        paths = ["--plan", plan or tiny_plan.folder, "--samples", samples or tiny_set, "--output", output]
        return [str(part) for part in ["--config", config_file(**changes), *paths, *extra]]

    return arguments


@pytest.fixture(scope="session")
def two_rank_run(
    tmp_path_factory: pytest.TempPathFactory,
    run_arguments: Callable[..., list[str]],
    start_training: Callable[..., subprocess.Popen[str]],
) -> Path:
    """The folder of ten steps on two gloo ranks, through torchrun, without interruption; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "two"
    process = start_training(*run_arguments(output), processes=2)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="session")
def kill_tree() -> Callable[[subprocess.Popen[str]], None]:
    """SIGKILL a process and all below it: torchrun starts its workers in sessions of their own."""

    def kill(process: subprocess.Popen[str]) -> None:
        for pid in [process.pid, *_descendants(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        process.wait()

    return kill


def _descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in _descendants(child)]


@pytest.fixture(scope="session")
def text_model(small_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The small network with the text width of the real default text encoder."""
    return {**small_config()["model"], "text_width": 384}


@pytest.fixture(scope="session")
def text_set(
    tmp_path_factory: pytest.TempPathFactory, make_set: Callable[..., Path], clip_type: type[Clip]
) -> tuple[Path, Path]:
    """A set with states of that width, and a plan of six steps over it."""
    from encoders.registry import fetch

    fetch("text.minilm")
    folder = tmp_path_factory.mktemp("text")
    samples = make_set(folder / "set", [clip_type(33), clip_type(1)] * 4, per_shard=4, text_width=384)
    return samples, write_plan(folder / "plan", [samples], lanes=2, micro=1, steps=6, batch={1: 1, 33: 1}).folder


@pytest.fixture(scope="session")
def text_run(
    tmp_path_factory: pytest.TempPathFactory,
    text_set: tuple[Path, Path],
    text_model: dict[str, Any],
    config_file: Callable[..., Path],
) -> Path:
    """A run of two steps whose prompts the real default text encoder can encode; not to be changed."""
    from training.cli import main

    run = tmp_path_factory.mktemp("runs") / "text"
    config = config_file(model=text_model, steps=2)
    arguments = ["--config", config, "--plan", text_set[1], "--samples", text_set[0], "--output", run]
    assert main(["run", *map(str, arguments)]) == 0
    return run


@pytest.fixture(scope="session")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Run attempts, one after another, through `run_driver.py`: real processes, killed at exact moments. Returns a result for each."""
    driver, folder = Path(__file__).with_name("run_driver.py"), tmp_path_factory.mktemp("driven")
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(driver), str(folder)],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None

        def run(*attempts: dict[str, Any]) -> list[dict[str, Any]]:
            results = []
            for attempt in attempts:
                process.stdin.write(json.dumps(attempt) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                assert answer, (folder / "errors").read_text()
                results.append(json.loads(answer))
            return results

        yield run
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=20)
