"""The Ray cluster of a command: the one it was given, or a head of its own that lives exactly as long as the command.

NeMo Curator's executor calls `ray.shutdown()` after each pipeline, so a head inside the driver would die between phases; ours is a process of its
own, reached by an explicit address, with its own ports, temporary folder and token, tied to the driver by the kernel. An address that somebody
else gave is probed with a deadline, because `ray.init` on a stale one blocks for minutes. Price: about 8 s to start.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from curation.config import RaySettings
from schemas.errors import PreflightError

__all__ = ["RayHead", "free_ports", "own_head", "probe", "reach_cluster", "under_ray_job", "usable_cpus"]

_MEBIBYTE = 1 << 20
_FOLDER_PREFIX = "reelyard-ray-"
_LOCK = "driver.lock"
_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_STOP_SECONDS = 4.0
_START_TRIES = 3
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True)
class RayHead:
    """A running cluster: its address, and whether this command started it."""

    address: str
    own: bool


def under_ray_job() -> bool:
    """Whether `ray job submit` started this process."""
    return _JOB_VARIABLE in os.environ


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


@contextmanager
def reach_cluster(settings: RaySettings) -> Iterator[RayHead]:
    """The cluster to use: `ray.address`, else RAY_ADDRESS, else a head of our own that ends with the block.

    Sets RAY_ADDRESS for the block, because the executor calls `ray.init()` without an address.

    Raises:
        PreflightError: the given address does not answer, or our head does not start; within `ray.start_seconds`.
    """
    given = settings.address or os.environ.get("RAY_ADDRESS")
    if given:
        probe(given, settings.start_seconds)
        with _variables({"RAY_ADDRESS": given}):
            yield RayHead(given, own=False)
        return
    with own_head(settings) as head:
        yield head


def probe(address: str, seconds: float) -> None:
    """Connect in a process of its own, with a deadline; PreflightError says why it failed."""
    program = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", program, address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise PreflightError(
            f"no Ray cluster answers at {address!r} within {seconds:g} s (ray.start_seconds); if it ended, "
            "unset RAY_ADDRESS and ray.address so that this command starts a head of its own"
        ) from error
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise PreflightError(
            f"the Ray cluster at {address!r} refused the connection: {last[0]}\n"
            "check the address and the token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH), or unset RAY_ADDRESS"
        )


@contextmanager
def own_head(settings: RaySettings, *, dashboard: bool = False) -> Iterator[RayHead]:
    """Start a head on this machine, with token authentication; it ends with the block, or with this process."""
    _remove_stale_folders()
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    variables |= {_LOG_LEVEL: os.environ.get(_LOG_LEVEL, "fatal")}  # of the driver's own core, not of the head
    with _variables(variables), _held(folder):
        _reread_token()
        try:
            process, address = _started(settings, folder, dashboard)
            try:
                with _variables({"RAY_ADDRESS": address}):
                    yield RayHead(address, own=True)
            finally:
                _stop(process)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _started(settings: RaySettings, folder: Path, dashboard: bool) -> tuple[subprocess.Popen[bytes], str]:
    """A head that is up, and its address. Ends while starting are tried again: another process may have taken a port meanwhile.

    Raises:
        PreflightError: it ended every time, or was not up within `ray.start_seconds`.
    """
    for tries_left in reversed(range(_START_TRIES)):
        port, client_port = free_ports(2)
        address = f"127.0.0.1:{port}"
        process = _start(settings, folder, (port, client_port), dashboard)
        try:
            _wait_until_up(process, folder, address, settings.start_seconds)
            return process, address
        except BaseException:
            ended = process.poll() is not None
            _stop(process)
            if not ended or tries_left == 0:
                raise
    raise AssertionError("not reached")


def _reread_token() -> None:
    """A Ray that was imported before the token was there remembers that; Ray's own start-up code refreshes itself the same way."""
    if "ray" in sys.modules:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock the folder of a head for as long as its driver lives."""
    with (folder / _LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_stale_folders() -> None:
    """Folders of heads whose driver was killed: their lock is free."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*/{_LOCK}"):
        try:
            with lock.open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            continue  # in use, or another user's


def _start(settings: RaySettings, folder: Path, ports: tuple[int, int], dashboard: bool) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-P", "-m", "curation.tether", str(os.getpid())),
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}"),
        f"--num-cpus={settings.num_cpus or usable_cpus()}",
        f"--object-store-memory={settings.object_store_mb * _MEBIBYTE}",
        f"--include-dashboard={'true' if dashboard else 'false'}",
        f"--temp-dir={folder / 'r'}",
    ]
    if settings.num_gpus is not None:
        command.append(f"--num-gpus={settings.num_gpus}")
    if settings.metrics_port is not None:
        command.append(f"--metrics-export-port={settings.metrics_port}")
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", _LOG_LEVEL)}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with (folder / "start.log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _wait_until_up(process: subprocess.Popen[bytes], folder: Path, address: str, seconds: float) -> None:
    """The head says "Ray runtime started" once every part of it runs."""
    log = folder / "start.log"
    deadline = time.monotonic() + seconds
    while b"Ray runtime started" not in log.read_bytes():
        text = log.read_text(encoding="utf-8", errors="replace")
        if process.poll() is not None:
            raise PreflightError(f"the Ray head ended with code {process.returncode} while starting:\n{text[-2000:]}")
        if time.monotonic() > deadline:
            raise PreflightError(
                f"the Ray head at {address} did not start within {seconds:g} s (ray.start_seconds); it said:\n{text[-2000:]}"
            )
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM lets the head end its own processes; when it does not at once, the kernel ends them with it (Ray ties them to it)."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_ports(count: int) -> list[int]:
    """Free TCP ports on the loopback address; somebody else may still take one, then the head refuses in words."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the block, restored after it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
