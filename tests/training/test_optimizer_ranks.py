"""Optimizers on four ranks of which one holds no row of some parameters: nobody waits for ever, and nothing is lost by saving and cutting anew."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("optimizer_worker.py")
EIGHT_BITS = importlib.util.find_spec("torchao") is not None


def test_parts_without_rows_hang_nothing_and_state_is_read_by_another_layout(tmp_path: Path) -> None:
    names = ["adamw", "muon", *(["adamw8bit"] if EIGHT_BITS else [])]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path), *names],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(4)
    ]
    try:
        said = [process.communicate(timeout=150)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(text[-1500:] for text in said)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_eight_bits_are_exercised() -> None:
    if not EIGHT_BITS:
        pytest.skip("torchao is not installed: adamw8bit was NOT exercised on several ranks")
