"""The lease of an output on an object store: one holder, renewed, let go of, and taken over only when it is abandoned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curation.leases import hold_lease, is_alive, start_of
from curation.objects import Objects
from schemas.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_one_command_at_a_time_and_a_killed_one_is_taken_over_at_once(
    bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import sys; from curation.leases import hold_lease; from curation.objects import Objects\n"
        "with hold_lease(Objects(sys.argv[1]), '.lock'):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", program, f"{bucket}/run"]
    objects = Objects(f"{bucket}/run")
    with subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        words = rf"in use by another curation command \(process {other.pid} on "
        with pytest.raises(UsageError, match=words), hold_lease(objects, ".lock"):
            pass
        other.kill()
    with hold_lease(objects, ".lock"):
        assert json.loads(objects.read(".lock"))["pid"] == os.getpid()
    assert "taking over the lease" in capsys.readouterr().err
    assert objects.facts(".lock") is None


def test_a_lease_of_another_host_is_taken_over_only_when_it_is_old(bucket: str) -> None:
    objects = Objects(bucket)
    lease = {"host": "elsewhere", "pid": 1, "start": "1", "token": "t", "renewed": time.time() - 100}
    objects.write(".lock", json.dumps(lease).encode())
    with pytest.raises(UsageError, match=r"process 1 on elsewhere"), hold_lease(objects, ".lock"):
        pass
    with hold_lease(objects, ".lock", stale_seconds=50):
        pass
    objects.write(".lock", b"{ damaged")
    with hold_lease(objects, ".lock"):
        pass


def test_it_is_renewed_and_its_loss_ends_the_command(bucket: str) -> None:
    objects = Objects(bucket)
    with (
        pytest.raises(UsageError, match=r"process 7 on thief took the lease"),
        hold_lease(objects, ".lock", beat_seconds=0.05),
    ):
        first = json.loads(objects.read(".lock"))["renewed"]
        while json.loads(objects.read(".lock"))["renewed"] == first:
            time.sleep(0.02)
        thief = {"host": "thief", "pid": 7, "start": "1", "token": "t", "renewed": time.time()}
        while True:  # until the thread that renews sees it
            objects.write(".lock", json.dumps(thief).encode())
            time.sleep(0.2)
    assert json.loads(objects.read(".lock"))["host"] == "thief", "only our own lease is let go of"


def test_a_process_is_known_by_its_start() -> None:
    assert is_alive(os.getpid(), start_of(os.getpid()))
    assert not is_alive(os.getpid(), "1") and not is_alive(1 << 22, start_of(1 << 22))
