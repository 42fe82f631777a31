"""Jobs that misbehave on purpose, for the tests of the sandbox and of the engine."""

import os
import signal
import time
from pathlib import Path

from curation.child import Job


def _run(setup, models, arguments):
    behaviour = arguments["behaviour"]
    if behaviour == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "kill the worker":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if behaviour == "exit":
        os._exit(7)
    if behaviour == "hang":
        time.sleep(600)
    if behaviour == "raise":
        raise ValueError("no such\n  thing")
    if behaviour == "disk full":
        raise OSError(28, "No space left on device")
    if behaviour == "memory":
        hold = b"x" * (arguments["mib"] << 20)
        time.sleep(60)
        return len(hold)
    if behaviour == "print":
        print("a library talks")
        os.write(1, b"and writes to descriptor 1\n")
    if "folder" in arguments:
        (Path(arguments["folder"]) / "result.txt").write_text(behaviour)
    answer = {"pid": os.getpid(), "models": models, "behaviour": behaviour}
    if behaviour == "look":
        time.sleep(arguments["seconds"])
        answer |= {"devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "counts": {"clips": 2, "video_seconds": 7.5}}
    return answer


def _load(setup):
    if "killed_while_loading" in setup:
        with Path(setup["killed_while_loading"]).open("a+") as times:
            times.write(".")
            if times.tell() < setup["times"]:
                times.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    if setup.get("broken"):
        raise ValueError("weights are of another kind")
    return {"loaded": setup.get("name", "")}


JOBS = {name: Job(_load, _run) for name in ("analyze", "shared", "crowded")}
