"""What a rank of a run is controlled by: signals that are noted, a watchdog, and errors that all ranks have alike or that come from a lost rank.

Ranks agree where they meet anyway: whether everyone has its data and nobody is to stop, before a step; whether somebody has a signal, in the sums
after it. So all stop at the same step, whichever rank was asked to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch.distributed as dist

from schemas.errors import ReelyardError
from training.config import WatchdogConfig
from training.control.heartbeats import Pulse
from training.control.launch import launched_rank, launched_world_size
from training.control.stop_signals import StopSignals, signals_noted
from training.control.watchdog import HEARTBEATS, Watchdog
from training.parallel import OtherRankError, World
from training.run_setup import PreparedRun

__all__ = [
    "RunControl",
    "StoppedError",
    "collective_timeout_s",
    "lost_rank_said",
    "run_controlled",
    "said_by_rank_0",
]


class StoppedError(Exception):
    """A signal on some rank; raised on all of them at the same place."""


@dataclass(frozen=True, kw_only=True)
class RunControl:
    """The signals that came to this rank, and its pulse."""

    signals: StopSignals = field(default_factory=StopSignals)
    pulse: Pulse = field(default_factory=Pulse)


@contextmanager
def run_controlled(prepared: PreparedRun, signals: StopSignals | None = None) -> Iterator[RunControl]:
    """Note signals and watch over the run as long as the block lasts; `signals` are those that the command notes already."""
    config, rank = prepared.config.watchdog, launched_rank()
    with signals_noted(signals) as noted:
        if config is None:
            yield RunControl(signals=noted)
            return
        pulse = Pulse(prepared.output / HEARTBEATS, rank)
        watchdog = Watchdog(config, prepared.output, rank=rank, world_size=launched_world_size(), pulse=pulse).start()
        try:
            yield RunControl(signals=noted, pulse=pulse)
        finally:
            watchdog.stop()


def collective_timeout_s(config: WatchdogConfig | None) -> float | None:
    """How long a collective may take before torch gives up: well after the watchdog, which knows more. None leaves torch's own limit."""
    return None if config is None else 2 * max(config.seconds, config.first_step_seconds) + 60.0


@contextmanager
def said_by_rank_0(world: World) -> Iterator[None]:
    """Around what fails on all ranks alike: rank 0 keeps the error, the others end quietly."""
    try:
        yield
    except ReelyardError as error:
        if world.rank == 0:
            raise
        raise OtherRankError("rank 0 failed alike and says why") from error


@contextmanager
def lost_rank_said() -> Iterator[None]:
    """Around all of a run: a collective that broke because another process died becomes words, on rank 0, instead of a traceback on each."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        if launched_rank() != 0:
            raise OtherRankError("another rank is gone") from error
        first = str(error).strip().splitlines()[0]
        raise ReelyardError(
            f"the connection to another rank broke: it died, or its machine is gone ({first}); all ranks end. "
            "Run the same command again to continue from the last checkpoint, or start with --max-restarts to have that done"
        ) from error


def _is_lost_connection(error: RuntimeError) -> bool:
    """gloo raises plain RuntimeErrors that name its source files."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)
