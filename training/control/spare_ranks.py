"""More ranks than the plan's lanes can use: the largest number that divides the lanes trains, the others wait until it is done.

For `torchrun --nnodes=1:8` after a machine is lost: 56 ranks cannot run 64 lanes, 32 of them can. The spare ones join no process group. They must
stay, because an agent whose workers have all ended closes the rendezvous, and then nobody could join again; so each waits in the launcher's store
for a word of rank 0. Price: what is left over is idle until the next restart counts the ranks again.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from schemas.command import say
from schemas.plan import read_plan_meta
from training.control.launch import launched_rank, launched_world_size
from training.control.meeting import agent_store
from training.control.restarts import ranks_for

__all__ = ["say_ended", "waited_as_spare"]

_SPARES = "REELYARD_SPARE_RANKS"
_POLL = timedelta(seconds=2)


def waited_as_spare(plan: Path) -> bool:
    """Whether this rank is a spare one: then it returns when the others are done. Else the environment's WORLD_SIZE is what divides the lanes."""
    rank, launched = launched_rank(), launched_world_size()
    used = ranks_for(read_plan_meta(plan).num_lanes, launched)
    if used == launched:
        return False
    if rank < used:
        os.environ["WORLD_SIZE"], os.environ[_SPARES] = str(used), str(launched - used)
        if rank == 0:
            say(f"{launched} ranks cannot share the plan's lanes equally: {used} train, {launched - used} wait")
        return False
    _wait()
    return True


def say_ended() -> None:
    """Rank 0 is done: let the spare ranks go, if there are any."""
    if _SPARES in os.environ and launched_rank() == 0:
        agent_store().set(_key(), "1")


def _wait() -> None:
    from torch.distributed import DistError

    store = agent_store()
    while True:
        try:
            store.wait([_key()], _POLL)
            return
        except DistError as error:
            if "timed out" not in str(error).lower() and "timeout" not in str(error).lower():
                return  # the store is gone, and with it the run


def _key() -> str:
    return f"reelyard/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
