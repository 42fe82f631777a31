"""Ranks that start again under torchrun meet each other, and not what an earlier attempt left in torchrun's store."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore

PROJECT = Path(__file__).resolve().parents[2]
MEET = """
import sys
from training.control.meeting import fresh_store
store = fresh_store(None)
store.set(sys.argv[1], "here")
store.wait(["0", "1"])
print(store.get(str(1 - int(sys.argv[1]))).decode())
store.set("gone" + sys.argv[1], "")
if sys.argv[1] == "0":
    store.wait(["gone1"])
"""


def test_a_rank_that_is_quicker_than_rank_0_does_not_take_a_dead_address() -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        port = dead.getsockname()[1]
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    agent.set("reelyard/store", str(port))  # of an attempt whose processes are gone

    def start(rank: int) -> subprocess.Popen[str]:
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
        environment = {**os.environ, **variables, "PYTHONPATH": str(PROJECT), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        command = [sys.executable, "-c", MEET, str(rank)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    second = start(1)
    time.sleep(3.0)
    first = start(0)
    said = [process.communicate(timeout=60) for process in (first, second)]
    assert [out.strip() for out, _ in said] == ["here", "here"], said
