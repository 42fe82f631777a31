"""Ranks on a Ray cluster: one actor per rank, each with a `training/train.py` of its own; a lost actor or machine makes all start again.

Ray places the ranks and notices who is gone; the processes meet through torch as everywhere, so a run on Ray is the run of `--processes` or
torchrun, to the bit. As many ranks are started as there is room for, between `--min-processes` and `--processes`, of the numbers that divide the
plan's lanes. Ray Train's trainer is not used: why, is in docs/decisions/015-ranks-on-ray.md. Price: room that comes back is used from the next
restart on only.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from schemas.command import say
from schemas.errors import PreflightError, UsageError
from training.control.job_paths import under_ray_job
from training.control.launch import (
    TRAIN_SCRIPT,
    exit_code,
    free_port,
    held_back_signals,
    rank_environment,
    wait_for_ranks,
)
from training.control.restarts import may_restart, world_sizes
from training.control.stop_signals import handling

__all__ = ["RankHost", "RayRequest", "launch_on_ray"]

_POLL_SECONDS = 0.25
_PROBE_SECONDS, _SLICE_SECONDS = 60.0, 1.0
_ROOM_SECONDS, _LESS_ROOM_SECONDS, _PATIENCE_SECONDS = 20.0, 5.0, 300.0
_PROBE = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


@dataclass(frozen=True, kw_only=True)
class RayRequest:
    """What is to run on the cluster."""

    lanes: int
    """Of the plan: the number of ranks divides it."""
    processes: int
    min_processes: int
    cpus_per_process: float
    gpus_per_process: float | None
    """None: 1 if the cluster has GPUs, else 0."""
    arguments: Sequence[str]
    """Of `training/train.py`; paths are absolute."""
    output: Path
    max_restarts: int


class RankHost:
    """The actor: starts a rank's process on its node, passes signals on, and says whether it has ended. When the actor dies, so does the process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> tuple[str, int]:
        """Where this node can be met, if it is rank 0's."""
        import ray

        node = ray.util.get_node_ip_address()
        return node, free_port(node)

    def start(self, rank: int, world_size: int, address: str, port: int, arguments: Sequence[str]) -> int:
        """Start the process; returns its id."""
        # Ray shows an actor its own GPUs only, so the device is the first one.
        environment = rank_environment(rank, world_size, 0, address, port)
        with held_back_signals():
            self._process = subprocess.Popen(
                [sys.executable, str(TRAIN_SCRIPT), *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def pass_on(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)


def launch_on_ray(request: RayRequest) -> int:
    """Run the ranks on the cluster of RAY_ADDRESS and return the exit code: as `launch.launch_local`, with restarts on what room there is.

    Raises:
        UsageError, PreflightError: when there is no cluster, or no room for the fewest ranks; with what to do.
    """
    with _connected() as ray:
        gpus = request.gpus_per_process
        if gpus is None:
            gpus = float(ray.cluster_resources().get("GPU", 0) > 0)
        bundle = {"CPU": request.cpus_per_process} | ({"GPU": gpus} if gpus else {})
        ranks = _Ranks(ray, request, {name: amount for name, amount in bundle.items() if amount})
        with handling(ranks.note):
            for restart in range(request.max_restarts + 1):
                started = time.time()
                code = ranks.run()
                if ranks.noted or restart == request.max_restarts or not may_restart(code, request.output, started):
                    break
                say(f"starting again from the last checkpoint (restart {restart + 1} of {request.max_restarts})")
        return exit_code(code)


@contextmanager
def _connected() -> Iterator[Any]:
    """Ray, connected to the cluster that RAY_ADDRESS names. Tried in a process of its own first: connecting to a stale address blocks for minutes."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise UsageError(
            "--ray needs a cluster: RAY_ADDRESS is not set; submit the command with `ray job submit`, set RAY_ADDRESS=HOST:6379, "
            "or leave --ray out to start the processes on this machine"
        )
    try:
        import ray
    except ImportError as error:
        raise UsageError("--ray needs Ray, which is not installed: pip install 'reelyard[ray]'") from error
    _probe(address)
    # Under a job the working directory comes with the job; elsewhere every node has the code under the same path.
    variables = {} if under_ray_job() else {"env_vars": {"PYTHONPATH": str(TRAIN_SCRIPT.parent.parent)}}
    ray.init(address=address, runtime_env=variables, logging_level=logging.WARNING)
    try:
        yield ray
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """PreflightError when no cluster answers at `address` within a minute, or it refuses the token."""
    command = [sys.executable, "-P", "-c", _PROBE, address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise PreflightError(
            f"no Ray cluster answers at RAY_ADDRESS={address} within {_PROBE_SECONDS:g} s; correct it, or unset it and leave --ray out"
        ) from error
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise PreflightError(
            f"the Ray cluster at RAY_ADDRESS={address} refused the connection: {last[0]}\n"
            "check the address and the token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)"
        )


class _Ranks:
    """One attempt after the other."""

    def __init__(self, ray: Any, request: RayRequest, bundle: dict[str, float]) -> None:
        self._ray = ray
        self._request = request
        self._bundle = bundle
        self._hosts: list[Any] = []
        self._processes: list[int] = []
        self.noted: list[int] = []
        self._passed_on = 0

    def note(self, number: int, _: FrameType | None) -> None:
        """A signal of this process; it is passed on between two looks at the ranks, since Ray must not be called from here."""
        self.noted.append(number)

    def run(self) -> int:
        """Place, start, wait; the exit code."""
        placed = self._placed()
        if placed is None:
            name = signal.Signals(self.noted[0]).name
            say(f"stopped by {name} before the ranks were started: resumable, run the same command again")
            return 0
        group, count = placed
        where = "while the ranks were being started"
        try:
            self._start(group, count)
            where = "in the run"
            return self._wait()
        except self._ray.exceptions.RayError as error:
            say(f"error: the ranks' actors or their cluster were lost {where} ({type(error).__name__})")
            return 1
        finally:
            for host in self._hosts:
                with suppress(self._ray.exceptions.RayError):
                    self._ray.kill(host)
            self._ray.util.remove_placement_group(group)
            self._hosts = []

    def _placed(self) -> tuple[Any, int] | None:
        """Room for as many ranks as possible, None when a signal came; PreflightError when there is none for the fewest within five minutes."""
        request = self._request
        sizes = world_sizes(request.lanes, request.min_processes, request.processes)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for size in sizes:
                group = self._ray.util.placement_group([self._bundle] * size, strategy="PACK")
                has_room = self._has_room(group, _ROOM_SECONDS if size == sizes[0] else _LESS_ROOM_SECONDS)
                if has_room and not self.noted:
                    return group, size
                self._ray.util.remove_placement_group(group)
                if self.noted:
                    return None
        there = {name: self._ray.cluster_resources().get(name, 0.0) for name in self._bundle}
        raise PreflightError(
            f"no room for {sizes[-1]} ranks of {self._bundle} each: the cluster has {there} in all; wait for machines, or ask for less "
            "with --processes, --min-processes, --cpus-per-process or --gpus-per-process"
        )

    def _has_room(self, group: Any, seconds: float) -> bool:
        """Whether the group found its place within this time; asked in slices, so that a signal ends the wait."""
        deadline = time.monotonic() + seconds
        while not self.noted:
            if group.wait(timeout_seconds=_SLICE_SECONDS):
                return True
            if time.monotonic() >= deadline:
                return False
        return False

    def _start(self, group: Any, count: int) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        host_type = self._ray.remote(RankHost)
        self._hosts = [
            host_type.options(
                num_cpus=self._bundle.get("CPU", 0),
                num_gpus=self._bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            ).remote()
            for index in range(count)
        ]
        address, port = self._ray.get(self._hosts[0].address.remote())
        arguments = list(self._request.arguments)
        started = [host.start.remote(rank, count, address, port, arguments) for rank, host in enumerate(self._hosts)]
        self._processes = self._ray.get(started)
        say(f"{count} ranks on the Ray cluster, rank 0 at {address}")

    def _wait(self) -> int:
        def exit_codes() -> list[int | None]:
            self._pass_on()
            return [self._poll(rank) for rank in range(len(self._hosts))]

        return wait_for_ranks(exit_codes, self._processes, every_seconds=_POLL_SECONDS)

    def _poll(self, rank: int) -> int | None:
        """The exit code of a rank; that of a killed process when its actor or machine is gone."""
        try:
            found = self._ray.get(self._hosts[rank].poll.remote())
        except self._ray.exceptions.RayActorError:
            return -signal.SIGKILL
        assert found is None or isinstance(found, int)
        return found

    def _pass_on(self) -> None:
        while self._passed_on < len(self.noted):
            self._passed_on += 1
            for host in self._hosts:
                with suppress(self._ray.exceptions.RayError):
                    self._ray.get(host.pass_on.remote(self.noted[self._passed_on - 1]))
