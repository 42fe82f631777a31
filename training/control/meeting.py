"""Where the ranks of one attempt meet: a store that no earlier attempt has written to.

torchrun (2.14) keeps one store for all its restarts, and torch puts the ranks' addresses there under the same keys each time. A rank that is
quicker than rank 0 after a restart then reads the address of the dead rank 0, connects to nobody, and the restart fails. So
under torchrun rank 0 starts a store of its own and leaves its address in torchrun's; the others take what they find there and ask again when nobody
answers. An address of an earlier attempt answers nobody: torchrun ends all processes of an attempt before it starts the next.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from schemas.errors import ReelyardError
from training.control.launch import launch_variable, launched_rank, launched_world_size

if TYPE_CHECKING:
    from torch.distributed import TCPStore

__all__ = ["agent_store", "fresh_store", "under_torchrun"]

_KEY = "reelyard/store"
_TRY = timedelta(seconds=2)
_MEET_SECONDS = 900.0


def under_torchrun() -> bool:
    """Whether the launcher has a store of its own, which outlives the processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def agent_store() -> TCPStore:
    """The launcher's store."""
    return _connected(os.environ["MASTER_ADDR"], launch_variable("MASTER_PORT", 0), timedelta(seconds=60))


def fresh_store(timeout: timedelta | None) -> TCPStore:
    """Rank 0's new store, on all ranks; under torchrun alone.

    Raises:
        ReelyardError: when the ranks do not meet within 15 minutes.
    """
    from torch.distributed import DistError, TCPStore

    agent, host = agent_store(), os.environ["MASTER_ADDR"]
    later = timeout or timedelta(minutes=30)
    if launched_rank() == 0:
        store = TCPStore(
            host, 0, launched_world_size(), is_master=True, timeout=later, wait_for_workers=False, multi_tenant=False
        )
        agent.set(_KEY, str(store.port))
        return store
    deadline = time.monotonic() + _MEET_SECONDS
    while time.monotonic() < deadline:
        try:
            agent.wait([_KEY], _TRY)
            store = _connected(host, int(agent.get(_KEY)), _TRY)
        except DistError:
            continue
        store.set_timeout(later)
        return store
    raise ReelyardError(
        f"rank {launched_rank()} did not meet rank 0 at {host} within {_MEET_SECONDS:g} s; see what rank 0 says"
    )


def _connected(host: str, port: int, timeout: timedelta) -> TCPStore:
    from torch.distributed import TCPStore

    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
