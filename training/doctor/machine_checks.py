"""Checks of the machine: devices, threads, memory, open files, disk and the output folder."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from schemas.files import TEMPORARY_PREFIX, flush_to_disk
from training.control.run_lock import holder_of
from training.doctor.estimates import checkpoint_bytes, estimate_memory, gigabytes
from training.doctor.findings import Finding, fail, ok, skipped, warn
from training.doctor.request_checks import Patient
from training.loader import most_open_files
from training.parallel import choose_device, choose_precision

__all__ = [
    "available_memory",
    "check_device",
    "check_disk",
    "check_files",
    "check_memory",
    "check_output",
    "check_threads",
    "existing_parent",
]

_FILES_OF_A_PROCESS = 128
_SLOW_WRITE_MB_PER_S = 50.0
_PROBE_BYTES = 8 << 20


def check_device(patient: Patient) -> Iterable[Finding]:
    """CUDA, NCCL, bf16 and compile: what is there and what is chosen."""
    import torch
    import torch.distributed as dist

    if (lack := patient.lacks("config")) is not None:
        yield skipped(lack)
        return
    config = patient.config
    device = choose_device(config.device)
    precision = str(choose_precision(config.precision, device)).removeprefix("torch.")
    if device.type == "cuda":
        yield from _cuda(patient.world_size, precision)
    else:
        seen = "torch sees no CUDA device" if config.device == "auto" else "asked for"
        yield ok(f"cpu ({seen}), computation in {precision}, collectives on gloo, torch {torch.__version__}")
    if not dist.is_available() or (device.type == "cpu" and not dist.is_gloo_available()):
        yield fail("this torch has no torch.distributed with gloo", "install a torch build that has it")
    if config.compile and shutil.which("cc") is None and shutil.which("gcc") is None and device.type == "cpu":
        yield fail(
            "compile is true, and there is no C compiler, which torch.compile needs on a CPU",
            "install gcc, or set compile=false",
        )


def _cuda(processes: int, precision: str) -> Iterable[Finding]:
    import torch
    import torch.distributed as dist

    count = torch.cuda.device_count()
    names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))
    yield ok(f"{count} x {names}, computation in {precision}, CUDA {torch.version.cuda}, torch {torch.__version__}")
    if processes > count:
        yield warn(
            f"{processes} processes, and this machine has {count} GPUs",
            "fine if the others run elsewhere; else use fewer --processes",
        )
    if not dist.is_nccl_available():
        yield fail("this torch has no NCCL", "install a CUDA build of torch")
    if precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        yield fail("the GPU has no bf16", "set precision=fp32")


def check_threads(patient: Patient) -> Iterable[Finding]:
    """CPUs against processes and threads."""
    cpus = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS")
    threads = int(asked) if asked and asked.isdigit() else (1 if patient.world_size > 1 else cpus)
    text = f"{patient.world_size} processes x {threads} threads on {cpus} CPUs"
    if patient.world_size * threads > cpus:
        yield warn(text + ": they share CPUs", "set OMP_NUM_THREADS lower, or use fewer processes on this machine")
    else:
        yield ok(text)


def check_memory(patient: Patient) -> Iterable[Finding]:
    """The estimate against what the machine and the device have."""
    if (lack := patient.lacks("config", "meta", "sets", "network")) is not None:
        yield skipped(lack)
        return
    import torch

    if patient.meta.num_lanes % patient.world_size:
        yield skipped("needs a number of processes that divides the lanes")
        return
    device = choose_device(patient.config.device)
    need = estimate_memory(
        patient.network, patient.config, patient.meta, patient.request.plan, patient.sets, patient.world_size
    )
    parts = (
        f"state {gigabytes(need.state)}, activations {gigabytes(need.activations)} (from {need.activations_from}), "
        f"loader {gigabytes(need.loader)} a process"
    )
    here = patient.world_size if device.type == "cpu" else min(patient.world_size, torch.cuda.device_count())
    total, there = here * need.in_machine(trains_on_cpu=device.type == "cpu"), available_memory()
    yield _against("machine", total, there, f"{here} processes; {parts}", need.is_measured)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        yield _against("GPU", need.on_device, free, parts, need.is_measured)


def _against(what: str, need: int, there: int, parts: str, is_measured: bool) -> Finding:
    """A failure where the need is known, or twice as much would be too little; an estimate within a factor of two is a warning."""
    text = f"{what}: about {gigabytes(need)} of {gigabytes(there)} that are free ({parts})"
    todo = "use more processes on more machines, activation_checkpointing=true, or a plan with smaller micro-batches"
    if need > (there if is_measured else 2 * there):
        return fail(text, todo)
    return warn(text, todo) if need > 0.85 * there else ok(text)


def available_memory() -> int:
    """Bytes that this process's machine, or its control group, has left."""
    left = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    information = Path("/proc/meminfo")
    if information.is_file():
        for line in information.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                left = [int(line.split()[1]) * 1024]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        paths = Path("/sys/fs/cgroup", limit), Path("/sys/fs/cgroup", used)
        if all(path.is_file() for path in paths):
            allowed, taken = (path.read_text(encoding="ascii").strip() for path in paths)
            if allowed.isdigit() and int(allowed) < 1 << 60:
                left.append(max(0, int(allowed) - int(taken)))
    return min(left)


def check_disk(patient: Patient) -> Iterable[Finding]:
    """Checkpoints that are kept at once against free space."""
    if (lack := patient.lacks("config", "meta", "sets", "network")) is not None:
        yield skipped(lack)
        return
    size, keep = checkpoint_bytes(patient.network, patient.config), patient.config.checkpoint.keep
    folder = existing_parent(patient.request.output)
    free = shutil.disk_usage(folder).free
    have = sum(path.stat().st_size for path in (patient.request.output / "checkpoints").glob("step-*/*.safetensors"))
    every, steps = patient.config.checkpoint.keep_every_steps, patient.config.steps or patient.meta.num_steps
    keep += 0 if every is None else steps // every
    need = max(0, size * (keep + 1) - have)
    text = f"a checkpoint is {gigabytes(size)}; {keep} are kept and one is being written: {gigabytes(need)} more, {gigabytes(free)} free"
    if need > free:
        yield fail(f"{folder}: {text}", "free some space, give another --output, or lower checkpoint.keep")
    elif need > 0.9 * free:
        yield warn(f"{folder}: {text}", "free some space")
    else:
        yield ok(text)


def check_output(patient: Patient) -> Iterable[Finding]:
    """Whether the output can be written to, flushed and renamed in, and how fast; nothing of it is left behind."""
    output = patient.request.output
    folder = existing_parent(output)
    if not folder.is_dir():
        yield fail(f"--output {output}: {folder} is a file", "give the folder of a run, or a name that is free")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}doctor-", dir=folder) as name:
            started = time.perf_counter()
            path = Path(name, "probe")
            path.write_bytes(os.urandom(_PROBE_BYTES))
            flush_to_disk(path)
            path.rename(path.with_name("renamed"))
            flush_to_disk(Path(name))
            speed = _PROBE_BYTES / 1e6 / (time.perf_counter() - started)
    except OSError as error:
        yield fail(
            f"{folder} cannot be written ({error.strerror or error})",
            "give another --output, or change its permissions",
        )
        return
    with suppress(OSError):  # a file system without locks
        if (holder := holder_of(output)) is not None:
            yield fail(
                f"another run is writing to {output}: {holder}", "wait for it, stop it, or give another --output"
            )
            return
    text = f"{folder}: written, flushed and renamed at {speed:.0f} MB/s"
    if speed < _SLOW_WRITE_MB_PER_S and patient.lacks("config", "meta", "sets", "network") is None:
        seconds = checkpoint_bytes(patient.network, patient.config) / 1e6 / speed
        if seconds > 60:
            yield warn(f"{text}: a checkpoint takes about {seconds:.0f} s", "give an --output on a faster disk")
            return
    yield ok(text)


def check_files(patient: Patient) -> Iterable[Finding]:
    """Shards that a rank has open at once against the limit of the process."""
    if (lack := patient.lacks("meta")) is not None:
        yield skipped(lack)
        return
    meta = patient.meta
    lanes = -(-meta.num_lanes // patient.world_size)
    open_shards = most_open_files(lanes)
    need = open_shards + _FILES_OF_A_PROCESS
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    text = f"up to {need} open files a process ({open_shards} shards of {lanes} lanes among them), the limit is {limit}"
    yield ok(text) if need <= limit else fail(text, f"ulimit -n {need} before the run, or use more processes")


def existing_parent(path: Path) -> Path:
    """The path itself, or its nearest parent that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
